//! What a store is asked, counted as it will be billed: by class of request and by what it was for.
//!
//! A [`CountedStore`] goes around any store. Where one verb is several billed requests (blocks of a large object, pages of a
//! listing, tries that are repeated inside), the store itself tells each one with `sending`, and says so by
//! [`ReplicaStore::reports_requests`]; of others each verb counts as what Azure would bill for it. A request counts when it
//! is over, however it ends, also if nobody waits for it any more; not if it never left this machine.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    Created, DOWNLOAD_PIECES_IN_FLIGHT, ObjectMeta, ObjectName, ReplicaStore, StoreError, Swap, Tag, Tier,
    TierSet, local_file,
};
use crate::ageing::TIERS_OBJECT;
use crate::ledger::Ledger;
use crate::names::{CHECKPOINT_PREFIX, MANIFEST_PREFIX, SEGMENT_PREFIX, WAL_PREFIX};
use crate::readers::READERS_OBJECT;

/// The size up to which a file is one request where a store does not report its own, and of the blocks beyond it.
const BLOCK_BYTES: u64 = 4 << 20;

/// What a store bills a request as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Creations, staged blocks, replacements, changes of tier.
    Write,
    /// Pages of listings.
    List,
    /// Reads of content or size.
    Read,
    /// Deletions, which most stores do not charge for.
    Delete,
}

impl Class {
    /// All of them, in the order of their numbers.
    pub const ALL: [Class; 4] = [Class::Write, Class::List, Class::Read, Class::Delete];

    /// The word for it in metrics and settings.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Class::Write => "write",
            Class::List => "list",
            Class::Read => "read",
            Class::Delete => "delete",
        }
    }
}

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A start: looking at the replica, claiming it, restoring from it.
    Start,
    /// Chunks of the log.
    Chunk,
    /// Sealed segments.
    Segment,
    /// Copies of the views.
    Checkpoint,
    /// Manifests.
    Manifest,
    /// Looking for what is to be deleted, and deleting it.
    Housekeeping,
    /// Media.
    Blob,
    /// Signs of life, and requests to hand over.
    Lease,
    /// A standby that follows.
    Follow,
    /// Old segments that are fetched when they are read.
    Tier,
    /// Trials of a restore.
    Drill,
    /// Comparing what is there with its digests.
    Scrub,
    /// Anything else.
    Other,
}

impl Purpose {
    /// All of them, in the order of their numbers.
    pub const ALL: [Purpose; 13] = [
        Purpose::Start,
        Purpose::Chunk,
        Purpose::Segment,
        Purpose::Checkpoint,
        Purpose::Manifest,
        Purpose::Housekeeping,
        Purpose::Blob,
        Purpose::Lease,
        Purpose::Follow,
        Purpose::Tier,
        Purpose::Drill,
        Purpose::Scrub,
        Purpose::Other,
    ];

    /// The word for it in metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Purpose::Start => "start",
            Purpose::Chunk => "chunk",
            Purpose::Segment => "segment",
            Purpose::Checkpoint => "checkpoint",
            Purpose::Manifest => "manifest",
            Purpose::Housekeeping => "housekeeping",
            Purpose::Blob => "blob",
            Purpose::Lease => "lease",
            Purpose::Follow => "follow",
            Purpose::Tier => "tier",
            Purpose::Drill => "drill",
            Purpose::Scrub => "scrub",
            Purpose::Other => "other",
        }
    }

    /// What a request is for of which only the name is known.
    fn of(name: &str, class: Class) -> Purpose {
        let is = |prefix| name.starts_with(prefix);
        match class {
            _ if is("blobs/") => Purpose::Blob,
            Class::List | Class::Delete => Purpose::Housekeeping,
            _ if is(WAL_PREFIX) => Purpose::Chunk,
            _ if is(SEGMENT_PREFIX) => Purpose::Segment,
            _ if is(CHECKPOINT_PREFIX) => Purpose::Checkpoint,
            _ if is(MANIFEST_PREFIX) => Purpose::Manifest,
            _ if is("lease") || is("handover") => Purpose::Lease,
            _ if is(READERS_OBJECT) || is(TIERS_OBJECT) => Purpose::Housekeeping,
            _ => Purpose::Other,
        }
    }
}

#[derive(Clone)]
struct Meter {
    ledger: Arc<Ledger>,
    purpose: Purpose,
}

tokio::task_local! {
    static METER: Meter;
}

/// One request on its way, see [`sending`].
#[must_use = "it counts when it is dropped"]
pub(crate) struct Sending {
    meter: Option<Meter>,
    class: Class,
    up: u64,
    down: u64,
}

/// Tells of a request that carries `up` bytes. For stores that report their own; it counts when the answer is dropped.
pub(crate) fn sending(class: Class, up: u64) -> Sending {
    Sending {
        meter: METER.try_with(Clone::clone).ok(),
        class,
        up,
        down: 0,
    }
}

impl Sending {
    /// So many bytes came back.
    pub(crate) fn received(&mut self, bytes: u64) {
        self.down += bytes;
    }

    /// It turned out that there was nothing to ask.
    pub(crate) fn not_made(mut self) {
        self.meter = None;
    }

    /// Counts, unless `error` says that the request never left.
    pub(crate) fn failed(mut self, error: &StoreError) {
        if !has_left(error) {
            self.meter = None;
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some(meter) = &self.meter {
            meter.ledger.count(self.class, meter.purpose, self.up, self.down);
        }
    }
}

/// Whether a request that ended so can have reached the store.
fn has_left(error: &StoreError) -> bool {
    !matches!(
        error,
        StoreError::Unavailable { sent: false, .. }
            | StoreError::Other { sent: false, .. }
            | StoreError::Invalid { .. }
    )
}

/// Any store, with every request counted in a [`Ledger`].
#[derive(Clone)]
pub struct CountedStore {
    inner: Arc<dyn ReplicaStore>,
    ledger: Arc<Ledger>,
    purpose: Option<Purpose>,
}

impl CountedStore {
    /// Counts what `inner` is asked; what for is told by the names of the objects, see [`super::for_purpose`].
    #[must_use]
    pub fn new(inner: Arc<dyn ReplicaStore>, ledger: Arc<Ledger>) -> CountedStore {
        CountedStore {
            inner,
            ledger,
            purpose: None,
        }
    }

    fn meter(&self, name: &str, class: Class) -> Meter {
        Meter {
            ledger: self.ledger.clone(),
            purpose: self.purpose.unwrap_or_else(|| Purpose::of(name, class)),
        }
    }

    /// Makes a request of the inner store. `bytes` go up, and as many come down as `down` finds in the answer.
    async fn counted<T>(
        &self,
        name: &str,
        class: Class,
        up: u64,
        down: impl Fn(&T) -> u64,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let meter = self.meter(name, class);
        let modelled = !self.inner.reports_requests();
        let request = async {
            if !modelled {
                return request.await;
            }
            let mut sending = sending(class, up);
            let answer = request.await;
            match &answer {
                Ok(answer) => sending.received(down(answer)),
                Err(error) => sending.failed(error),
            }
            answer
        };
        METER.scope(meter, request).await
    }
}

fn nothing<T>(_: &T) -> u64 {
    0
}

fn length(bytes: &Bytes) -> u64 {
    bytes.len() as u64
}

#[async_trait]
impl ReplicaStore for CountedStore {
    async fn create(&self, name: &ObjectName, bytes: Bytes) -> Result<Created, StoreError> {
        let up = length(&bytes);
        let request = self.inner.create(name, bytes);
        self.counted(name.as_str(), Class::Write, up, nothing, request)
            .await
    }

    async fn create_from_file(&self, name: &ObjectName, path: &Path) -> Result<Created, StoreError> {
        let size = tokio::fs::metadata(path)
            .await
            .map_err(|error| local_file(path, &error))?
            .len();
        let request = async {
            if size > BLOCK_BYTES && !self.inner.reports_requests() {
                // A look whether it is there, the blocks, and the request around this, which makes an object of them.
                drop(sending(Class::Read, 0));
                for _ in 0..size.div_ceil(BLOCK_BYTES) {
                    drop(sending(Class::Write, 0));
                }
            }
            self.inner.create_from_file(name, path).await
        };
        self.counted(name.as_str(), Class::Write, size, nothing, request)
            .await
    }

    async fn get(&self, name: &ObjectName, max_bytes: u64) -> Result<Bytes, StoreError> {
        let request = self.inner.get(name, max_bytes);
        self.counted(name.as_str(), Class::Read, 0, length, request).await
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        if range.is_empty() {
            return self.inner.get_range(name, range).await;
        }
        let request = self.inner.get_range(name, range);
        self.counted(name.as_str(), Class::Read, 0, length, request).await
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>, StoreError> {
        let request = self.inner.size(name);
        self.counted(name.as_str(), Class::Read, 0, nothing, request)
            .await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError> {
        let request = self.inner.list(prefix, after, limit);
        self.counted(prefix, Class::List, 0, nothing, request).await
    }

    async fn read_tagged(
        &self,
        name: &ObjectName,
        max_bytes: u64,
    ) -> Result<Option<(Bytes, Tag)>, StoreError> {
        let request = self.inner.read_tagged(name, max_bytes);
        let down = |read: &Option<(Bytes, Tag)>| read.as_ref().map_or(0, |(bytes, _)| length(bytes));
        self.counted(name.as_str(), Class::Read, 0, down, request).await
    }

    async fn swap(
        &self,
        name: &ObjectName,
        bytes: Bytes,
        expected: Option<&Tag>,
    ) -> Result<Swap, StoreError> {
        let up = length(&bytes);
        let request = self.inner.swap(name, bytes, expected);
        self.counted(name.as_str(), Class::Write, up, nothing, request)
            .await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let request = self.inner.delete(name);
        self.counted(name.as_str(), Class::Delete, 0, nothing, request)
            .await
    }

    async fn set_tier(&self, name: &ObjectName, tier: Tier) -> Result<TierSet, StoreError> {
        let request = self.inner.set_tier(name, tier);
        if self.inner.reports_requests() {
            return self
                .counted(name.as_str(), Class::Write, 0, nothing, request)
                .await;
        }
        let request = async {
            // A store without tiers is not asked.
            let sending = sending(Class::Write, 0);
            let answer = request.await;
            match &answer {
                Ok(TierSet::Set) => drop(sending),
                Ok(TierSet::Unsupported) => sending.not_made(),
                Err(error) => sending.failed(error),
            }
            answer
        };
        let meter = self.meter(name.as_str(), Class::Write);
        METER.scope(meter, request).await
    }

    async fn tidy(&self, before: SystemTime) -> Result<(), StoreError> {
        let meter = Meter {
            ledger: self.ledger.clone(),
            purpose: self.purpose.unwrap_or(Purpose::Housekeeping),
        };
        METER.scope(meter, self.inner.tidy(before)).await
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    async fn prove(&self) -> Result<(), StoreError> {
        let meter = Meter {
            ledger: self.ledger.clone(),
            purpose: Purpose::Start,
        };
        METER.scope(meter, self.inner.prove()).await
    }

    /// Those that nobody waits for are made one at a time, which takes less memory.
    fn pieces_in_flight(&self) -> usize {
        match self.purpose {
            Some(Purpose::Drill | Purpose::Scrub) => 1,
            _ => DOWNLOAD_PIECES_IN_FLIGHT,
        }
    }

    fn reports_requests(&self) -> bool {
        self.inner.reports_requests()
    }

    fn for_purpose(&self, purpose: Purpose) -> Option<Arc<dyn ReplicaStore>> {
        Some(Arc::new(CountedStore {
            purpose: Some(purpose),
            ..self.clone()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::contract;
    use super::super::faulty::{Answer, Fault, FaultyStore, Rule};
    use super::super::for_purpose;
    use super::super::memory::MemoryStore;
    use super::*;

    fn counted(inner: Arc<dyn ReplicaStore>) -> (Arc<dyn ReplicaStore>, Arc<Ledger>) {
        let ledger = Arc::new(Ledger::default());
        (Arc::new(CountedStore::new(inner, ledger.clone())), ledger)
    }

    fn name(text: &str) -> ObjectName {
        ObjectName::new(text).unwrap()
    }

    #[tokio::test]
    async fn it_keeps_the_contract() {
        contract::all(counted(Arc::new(MemoryStore::new())).0).await;
    }

    #[tokio::test]
    async fn requests_count_by_class_and_by_what_they_are_for() {
        let (store, ledger) = counted(Arc::new(MemoryStore::new()));
        let chunk = name("wal/1");
        store.create(&chunk, Bytes::from_static(b"12345")).await.unwrap();
        store.get(&chunk, 100).await.unwrap();
        for_purpose(&store, Purpose::Drill)
            .get(&chunk, 100)
            .await
            .unwrap();
        store.get_range(&chunk, 1..3).await.unwrap();
        store.get_range(&chunk, 1..1).await.unwrap();
        store.size(&name("blobs/did:web:x/cid")).await.unwrap();
        store.list("wal/", None, 10).await.unwrap();
        store.set_tier(&chunk, Tier::Cool).await.unwrap();
        store.delete(&chunk).await.unwrap();
        let of = |class, purpose| ledger.requests(class, purpose);
        assert_eq!(of(Class::Write, Purpose::Chunk), 2);
        assert_eq!(of(Class::Read, Purpose::Chunk), 2);
        assert_eq!(of(Class::Read, Purpose::Drill), 1);
        assert_eq!(of(Class::Read, Purpose::Blob), 1);
        assert_eq!(of(Class::List, Purpose::Housekeeping), 1);
        assert_eq!(of(Class::Delete, Purpose::Housekeeping), 1);
        assert_eq!(ledger.of_class(Class::Read), 4);
        assert_eq!(ledger.up(Purpose::Chunk), 5);
        assert_eq!(ledger.down(Purpose::Chunk), 7);
    }

    #[tokio::test]
    async fn a_large_file_is_its_blocks_and_a_commit() {
        let (store, ledger) = counted(Arc::new(MemoryStore::new()));
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(2 * BLOCK_BYTES + 1).unwrap();
        store.create_from_file(&name("seg/1"), file.path()).await.unwrap();
        assert_eq!(ledger.requests(Class::Write, Purpose::Segment), 4);
        assert_eq!(ledger.requests(Class::Read, Purpose::Segment), 1);
        assert_eq!(ledger.up(Purpose::Segment), 2 * BLOCK_BYTES + 1);
        let copy = tempfile::NamedTempFile::new().unwrap();
        store.get_to_file(&name("seg/1"), copy.path()).await.unwrap();
        assert_eq!(
            ledger.requests(Class::Read, Purpose::Segment),
            1 + 1 + 3,
            "size and three pieces"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_or_is_given_up_counts_and_what_never_left_does_not() {
        let faulty = FaultyStore::new(MemoryStore::new(), 1);
        faulty.add(Rule::once(Fault::Before(Answer::Unreachable)));
        faulty.add(Rule::once(Fault::Before(Answer::Unavailable)));
        faulty.add(Rule::once(Fault::Hang));
        let (store, ledger) = counted(Arc::new(faulty));
        let chunk = name("wal/1");
        let create = || store.create(&chunk, Bytes::from_static(b"12345"));
        create().await.unwrap_err();
        assert_eq!(ledger.of_class(Class::Write), 0);
        create().await.unwrap_err();
        assert_eq!(ledger.of_class(Class::Write), 1);
        let given_up = tokio::time::timeout(std::time::Duration::from_secs(1), create()).await;
        assert!(given_up.is_err());
        assert_eq!(ledger.of_class(Class::Write), 2);
    }
}
