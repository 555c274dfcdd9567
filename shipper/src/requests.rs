//! Requests with a bound on each try and on all tries together, for everything but the upload of chunks (which
//! never gives up: see `ship`).

use std::future::Future;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Instant;

use crate::store::{
    Created, MAX_LIST, ObjectMeta, ObjectName, ReplicaStore, RetryPolicy, StoreError, Tag, Tier, TierSet,
    retry,
};

/// Time for all tries of one request.
const ALL_TRIES: Duration = Duration::from_secs(60);
/// Time for a whole file, up or down.
const WHOLE_FILE: Duration = Duration::from_secs(3_600);

/// How long a store that has let us in may refuse our credentials: an identity's token that expires is replaced meanwhile.
const REFUSED_FOR: Duration = Duration::from_secs(10);
/// Between two tries meanwhile.
const REFUSED_PAUSE: Duration = Duration::from_millis(300);

/// A store, and how long to wait for it.
#[derive(Clone)]
pub(crate) struct Requests {
    store: Arc<dyn ReplicaStore>,
    timeout: Duration,
    policy: RetryPolicy,
    /// Whether the store has ever done what we asked.
    let_in: Arc<AtomicBool>,
}

impl Requests {
    pub(crate) fn new(store: Arc<dyn ReplicaStore>, timeout: Duration) -> Requests {
        Requests {
            store,
            timeout,
            policy: RetryPolicy::within(ALL_TRIES.max(timeout * 2)),
            let_in: Arc::default(),
        }
    }

    pub(crate) fn store(&self) -> &Arc<dyn ReplicaStore> {
        &self.store
    }

    /// How long one request is tried again.
    pub(crate) fn policy(&self) -> &RetryPolicy {
        &self.policy
    }

    /// One try of anything, bounded.
    pub(crate) async fn once<T>(
        &self,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        bounded(self.timeout, request).await
    }

    /// Tries again what may go well another time. Refused credentials are a mistake of the settings, to be told at once, unless the
    /// same ones were good before.
    async fn tried<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        request: impl Fn() -> F,
    ) -> Result<T, StoreError> {
        let begun = Instant::now();
        loop {
            match retry(&self.policy, &request).await {
                Err(StoreError::Denied { .. })
                    if self.let_in.load(Ordering::Relaxed) && begun.elapsed() < REFUSED_FOR =>
                {
                    tokio::time::sleep(REFUSED_PAUSE).await;
                }
                answer => {
                    self.let_in.fetch_or(answer.is_ok(), Ordering::Relaxed);
                    return answer;
                }
            }
        }
    }

    pub(crate) async fn get(&self, name: &ObjectName, max_bytes: u64) -> Result<Bytes, StoreError> {
        self.tried(|| self.once(self.store.get(name, max_bytes))).await
    }

    pub(crate) async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.tried(|| self.once(self.store.get_range(name, range.clone())))
            .await
    }

    /// Of objects that nothing depends on: refused credentials are told at once.
    pub(crate) async fn read_tagged(
        &self,
        name: &ObjectName,
        max_bytes: u64,
    ) -> Result<Option<(Bytes, Tag)>, StoreError> {
        retry(&self.policy, || {
            self.once(self.store.read_tagged(name, max_bytes))
        })
        .await
    }

    pub(crate) async fn tidy(&self, before: SystemTime) -> Result<(), StoreError> {
        self.tried(|| self.once(self.store.tidy(before))).await
    }

    pub(crate) async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError> {
        self.tried(|| self.once(self.store.list(prefix, after, limit)))
            .await
    }

    pub(crate) async fn list_all(
        &self,
        prefix: &str,
        after: Option<&str>,
        max_objects: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError> {
        let mut all: Vec<ObjectMeta> = Vec::new();
        loop {
            let from = all.last().map(|last| last.name.as_str().to_owned());
            let page = self.list(prefix, from.as_deref().or(after), MAX_LIST).await?;
            let last = page.len() < MAX_LIST;
            all.extend(page);
            if all.len() > max_objects {
                return Err(StoreError::TooLarge {
                    object: format!("the listing of {prefix:?}"),
                    size: all.len() as u64,
                    max: max_objects as u64,
                });
            }
            if last {
                return Ok(all);
            }
        }
    }

    /// Creates an object, trying again after failures; `Exists` may then mean our own earlier try, so the caller
    /// compares.
    pub(crate) async fn create(&self, name: &ObjectName, bytes: Bytes) -> Result<Created, StoreError> {
        self.tried(|| self.once(self.store.create(name, bytes.clone())))
            .await
    }

    /// As [`Requests::create`], from a file.
    pub(crate) async fn create_from_file(
        &self,
        name: &ObjectName,
        path: &Path,
    ) -> Result<Created, StoreError> {
        self.tried(|| bounded(WHOLE_FILE, self.store.create_from_file(name, path)))
            .await
    }

    pub(crate) async fn get_to_file(&self, name: &ObjectName, path: &Path) -> Result<u64, StoreError> {
        bounded(WHOLE_FILE, self.store.get_to_file(name, path)).await
    }

    /// What fetches a whole file by ranges, bounded.
    pub(crate) async fn whole_file<T>(
        &self,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        bounded(WHOLE_FILE, request).await
    }

    pub(crate) async fn set_tier(&self, name: &ObjectName, tier: Tier) -> Result<TierSet, StoreError> {
        self.tried(|| self.once(self.store.set_tier(name, tier))).await
    }

    pub(crate) async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.tried(|| self.once(self.store.delete(name))).await
    }
}

async fn bounded<T>(
    after: Duration,
    request: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(after, request)
        .await
        .unwrap_or(Err(StoreError::Timeout { after }))
}
