//! A store in memory, for tests and simulations.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::swap::check_swap;
use super::{
    Created, ObjectMeta, ObjectName, ReplicaStore, StoreError, Swap, Tag, Tier, TierSet, check_limit,
    check_size, local_file, slice,
};

/// Objects in a map; gone with the process.
#[derive(Debug, Default)]
pub struct MemoryStore {
    objects: Mutex<Objects>,
}

#[derive(Debug, Default)]
struct Objects {
    /// Each with the number of the write that made it, which is its tag.
    by_name: BTreeMap<ObjectName, (Bytes, u64)>,
    /// Those that are not hot.
    tiers: BTreeMap<ObjectName, Tier>,
    writes: u64,
}

impl Objects {
    fn put(&mut self, name: &ObjectName, bytes: Bytes) -> u64 {
        self.writes += 1;
        self.tiers.remove(name);
        self.by_name.insert(name.clone(), (bytes, self.writes));
        self.writes
    }
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    /// The names of all objects, in order.
    #[must_use]
    pub fn names(&self) -> Vec<ObjectName> {
        self.objects.lock().by_name.keys().cloned().collect()
    }

    /// Where an object is kept.
    #[must_use]
    pub fn tier(&self, name: &ObjectName) -> Tier {
        let objects = self.objects.lock();
        objects.tiers.get(name).copied().unwrap_or(Tier::Hot)
    }

    /// Puts `bytes` in the place of whatever `name` held: damage, or a rival that breaks the rules, for tests.
    pub fn tamper(&self, name: &ObjectName, bytes: Bytes) {
        self.objects.lock().put(name, bytes);
    }

    fn find(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        let found = self.objects.lock().by_name.get(name).cloned();
        found.map(|(bytes, _)| bytes).ok_or_else(|| StoreError::NotFound {
            object: name.to_string(),
        })
    }
}

#[async_trait]
impl ReplicaStore for MemoryStore {
    async fn create(&self, name: &ObjectName, bytes: Bytes) -> Result<Created, StoreError> {
        let mut objects = self.objects.lock();
        if objects.by_name.contains_key(name) {
            return Ok(Created::Exists);
        }
        objects.put(name, bytes);
        Ok(Created::Created)
    }

    async fn create_from_file(&self, name: &ObjectName, path: &Path) -> Result<Created, StoreError> {
        let bytes = tokio::fs::read(path)
            .await
            .map_err(|error| local_file(path, &error))?;
        self.create(name, bytes.into()).await
    }

    async fn get(&self, name: &ObjectName, max_bytes: u64) -> Result<Bytes, StoreError> {
        let bytes = self.find(name)?;
        check_size(name, bytes.len() as u64, max_bytes)?;
        Ok(bytes)
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        slice(name, &self.find(name)?, range)
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>, StoreError> {
        let objects = self.objects.lock();
        Ok(objects.by_name.get(name).map(|(bytes, _)| bytes.len() as u64))
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError> {
        check_limit(limit)?;
        let objects = self.objects.lock();
        let listed = objects
            .by_name
            .iter()
            .filter(|(name, _)| name.as_str().starts_with(prefix))
            .filter(|(name, _)| after.is_none_or(|after| name.as_str() > after))
            .take(limit)
            .map(|(name, (bytes, _))| ObjectMeta {
                name: name.clone(),
                size: bytes.len() as u64,
            });
        Ok(listed.collect())
    }

    async fn read_tagged(
        &self,
        name: &ObjectName,
        max_bytes: u64,
    ) -> Result<Option<(Bytes, Tag)>, StoreError> {
        let found = self.objects.lock().by_name.get(name).cloned();
        let Some((bytes, write)) = found else {
            return Ok(None);
        };
        check_size(name, bytes.len() as u64, max_bytes)?;
        Ok(Some((bytes, Tag::new(name, write.to_string())?)))
    }

    async fn swap(
        &self,
        name: &ObjectName,
        bytes: Bytes,
        expected: Option<&Tag>,
    ) -> Result<Swap, StoreError> {
        check_swap(name, &bytes)?;
        let mut objects = self.objects.lock();
        let found = objects.by_name.get(name).map(|(_, write)| write.to_string());
        if found.as_deref() != expected.map(Tag::as_str) {
            return Ok(Swap::Conflict);
        }
        let write = objects.put(name, bytes);
        Ok(Swap::Swapped(Tag::new(name, write.to_string())?))
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let mut objects = self.objects.lock();
        objects.by_name.remove(name);
        objects.tiers.remove(name);
        Ok(())
    }

    async fn set_tier(&self, name: &ObjectName, tier: Tier) -> Result<TierSet, StoreError> {
        self.find(name)?;
        self.objects.lock().tiers.insert(name.clone(), tier);
        Ok(TierSet::Set)
    }

    fn describe(&self) -> String {
        "memory".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn memory_keeps_the_contract() {
        super::super::contract::all(Arc::new(super::MemoryStore::new())).await;
    }
}
