//! A store behind a longer wire: every request takes some time more. For measurements and tests; a store in the same room
//! answers so fast that it hides what waits for it.

use std::ops::Range;
use std::path::Path;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Created, ObjectMeta, ObjectName, ReplicaStore, StoreError, Swap, Tag, Tier, TierSet};

/// Any store, with latency added to each request before it is made.
#[derive(Debug)]
pub struct DelayedStore<S> {
    inner: S,
    latency: Duration,
}

impl<S: ReplicaStore> DelayedStore<S> {
    /// `inner`, `latency` further away.
    pub fn new(inner: S, latency: Duration) -> DelayedStore<S> {
        DelayedStore { inner, latency }
    }

    async fn travel(&self) {
        tokio::time::sleep(self.latency).await;
    }
}

#[async_trait]
impl<S: ReplicaStore> ReplicaStore for DelayedStore<S> {
    async fn create(&self, name: &ObjectName, bytes: Bytes) -> Result<Created, StoreError> {
        self.travel().await;
        self.inner.create(name, bytes).await
    }

    async fn create_from_file(&self, name: &ObjectName, path: &Path) -> Result<Created, StoreError> {
        self.travel().await;
        self.inner.create_from_file(name, path).await
    }

    async fn get(&self, name: &ObjectName, max_bytes: u64) -> Result<Bytes, StoreError> {
        self.travel().await;
        self.inner.get(name, max_bytes).await
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.travel().await;
        self.inner.get_range(name, range).await
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>, StoreError> {
        self.travel().await;
        self.inner.size(name).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError> {
        self.travel().await;
        self.inner.list(prefix, after, limit).await
    }

    async fn read_tagged(
        &self,
        name: &ObjectName,
        max_bytes: u64,
    ) -> Result<Option<(Bytes, Tag)>, StoreError> {
        self.travel().await;
        self.inner.read_tagged(name, max_bytes).await
    }

    async fn swap(
        &self,
        name: &ObjectName,
        bytes: Bytes,
        expected: Option<&Tag>,
    ) -> Result<Swap, StoreError> {
        self.travel().await;
        self.inner.swap(name, bytes, expected).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.travel().await;
        self.inner.delete(name).await
    }

    async fn set_tier(&self, name: &ObjectName, tier: Tier) -> Result<TierSet, StoreError> {
        self.travel().await;
        self.inner.set_tier(name, tier).await
    }

    async fn tidy(&self, before: SystemTime) -> Result<(), StoreError> {
        self.inner.tidy(before).await
    }

    fn reports_requests(&self) -> bool {
        self.inner.reports_requests()
    }

    async fn prove(&self) -> Result<(), StoreError> {
        self.inner.prove().await
    }

    fn describe(&self) -> String {
        format!(
            "{}, {} ms further away",
            self.inner.describe(),
            self.latency.as_millis()
        )
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::super::contract;
    use super::super::memory::MemoryStore;
    use super::*;

    #[tokio::test]
    async fn it_keeps_the_contract_and_takes_its_time() {
        let latency = Duration::from_millis(2);
        let store = DelayedStore::new(MemoryStore::new(), latency);
        let began = Instant::now();
        assert!(store.list("", None, 1).await.unwrap().is_empty());
        assert!(began.elapsed() >= latency);
        contract::all(Arc::new(store)).await;
    }
}
