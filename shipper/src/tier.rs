//! The replica as the source of segments that are not on the disk.
//!
//! A read of the log is synchronous and may come from any thread. The request runs on threads of our own, so that a server
//! whose threads all wait for the replica still gets its answer; the store should not be one that others use, for the same
//! reason: its connections are served by the threads that opened them. So many fetches run at a time, so many more wait, and
//! every one ends within a bound.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use engine::log::{AwaySegment, Epoch, LogId, Lsn, SegmentInfo, SegmentSource, SourceError};
use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use crate::handle::with_sources;
use crate::manifest::{Manifest, SegmentEntry};
use crate::sealed::{BLOCK_BYTES, FOOTER_BYTES, Footer, SealedError, SealedIndex};
use crate::store::{ObjectName, ReplicaStore, RetryPolicy, StoreError, retry};

/// Time for one fetch, all tries and the wait for its turn included.
const FETCH_LIMIT: Duration = Duration::from_secs(15);
/// Fetches at a time. Each holds a few MiB.
const AT_A_TIME: usize = 8;
/// Fetches that may be asked for at a time, those that run included; more are refused at once.
const ASKED_AT_A_TIME: usize = 64;
/// Seek tables that are kept: some KiB each.
const TABLES_KEPT: usize = 256;
/// Bytes of a seek table's entry.
const TABLE_ENTRY_BYTES: u64 = 8;

/// See the top of this file.
pub struct ReplicaSource {
    inner: Arc<Inner>,
    runtime: Option<Runtime>,
}

struct Inner {
    store: Arc<dyn ReplicaStore>,
    request_timeout: Duration,
    asked: Arc<Semaphore>,
    running: Semaphore,
    /// Newest last.
    tables: Mutex<VecDeque<(String, Arc<SealedIndex>)>>,
}

impl fmt::Debug for ReplicaSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReplicaSource")
            .field(&self.inner.store.describe())
            .finish()
    }
}

/// Why a fetch failed.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{object} is damaged")]
    Object {
        object: String,
        #[source]
        source: SealedError,
    },
    #[error("{0} is not the segment that it should be")]
    NotAsNamed(String),
}

impl ReplicaSource {
    /// Reads from `store`, which nobody else should use; one request may take `request_timeout`.
    ///
    /// # Errors
    /// The threads cannot be started.
    pub fn new(store: Arc<dyn ReplicaStore>, request_timeout: Duration) -> io::Result<ReplicaSource> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(4)
            .thread_name("tier")
            .enable_all()
            .build()?;
        Ok(ReplicaSource {
            inner: Arc::new(Inner {
                store,
                request_timeout,
                asked: Arc::new(Semaphore::new(ASKED_AT_A_TIME)),
                running: Semaphore::new(AT_A_TIME),
                tables: Mutex::default(),
            }),
            runtime: Some(runtime),
        })
    }
}

impl Drop for ReplicaSource {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // The last handle may go on a thread that must not wait.
            runtime.shutdown_background();
        }
    }
}

impl SegmentSource for ReplicaSource {
    fn fetch(&self, segment: &AwaySegment, range: Range<u64>) -> Result<Bytes, SourceError> {
        let turn = Arc::clone(&self.inner.asked).try_acquire_owned();
        let turn = turn.map_err(|_| SourceError("too many reads wait for the replica already".to_owned()))?;
        let Some(runtime) = &self.runtime else {
            return Err(SourceError("it is being closed".to_owned()));
        };
        let (inner, segment) = (Arc::clone(&self.inner), segment.clone());
        let (answer, answered) = sync_channel(1);
        runtime.spawn(async move {
            let fetched = tokio::time::timeout(FETCH_LIMIT, inner.fetch(&segment, range)).await;
            let fetched =
                fetched.unwrap_or(Err(FetchError::Store(StoreError::Timeout { after: FETCH_LIMIT })));
            drop(turn);
            // Who asked may have given up.
            let _gone = answer.send(fetched);
        });
        match answered.recv_timeout(FETCH_LIMIT * 2) {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(error)) => Err(SourceError(with_sources(&error))),
            Err(_) => Err(SourceError("the fetch was lost".to_owned())),
        }
    }
}

impl Inner {
    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        let policy = RetryPolicy::within(FETCH_LIMIT);
        let after = self.request_timeout;
        retry(&policy, || async {
            let request = self.store.get_range(name, range.clone());
            let answer = tokio::time::timeout(after, request).await;
            answer.unwrap_or(Err(StoreError::Timeout { after }))
        })
        .await
    }

    async fn fetch(&self, segment: &AwaySegment, range: Range<u64>) -> Result<Bytes, FetchError> {
        // It is never closed.
        let _turn = self.running.acquire().await;
        let name = ObjectName::new(segment.object.clone()).map_err(StoreError::from)?;
        let index = self.index(segment, &name).await?;
        let blocks = index.blocks_of(range.clone());
        let stored = index.stored_range(blocks.start).zip(
            blocks
                .end
                .checked_sub(1)
                .and_then(|last| index.stored_range(last)),
        );
        let Some((first, last)) = stored.filter(|_| !blocks.is_empty()) else {
            return Ok(Bytes::new());
        };
        let from = first.start;
        let bytes = self.get_range(&name, from..last.end).await?;
        let damaged = |source| FetchError::Object {
            object: segment.object.clone(),
            source,
        };
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let mut raw =
            BytesMut::with_capacity(size(range.end.saturating_sub(range.start)) + BLOCK_BYTES as usize);
        for block in blocks.clone() {
            let place = index.stored_range(block).unwrap_or_default();
            let stored = bytes.get(size(place.start - from)..size(place.end - from));
            let stored = stored.ok_or_else(|| damaged(SealedError::Truncated))?;
            raw.extend_from_slice(&index.unpack(block, stored).map_err(damaged)?);
        }
        let skip = range.start - u64::from(blocks.start) * u64::from(index.block_bytes());
        let raw = raw.freeze();
        let end = size(skip + (range.end - range.start)).min(raw.len());
        Ok(raw.slice(size(skip).min(end)..end))
    }

    /// The seek table of a segment's object.
    async fn index(&self, segment: &AwaySegment, name: &ObjectName) -> Result<Arc<SealedIndex>, FetchError> {
        {
            let mut tables = self.tables.lock();
            if let Some(at) = tables.iter().position(|(object, _)| *object == segment.object)
                && let Some(found) = tables.remove(at)
            {
                let index = Arc::clone(&found.1);
                tables.push_back(found);
                return Ok(index);
            }
        }
        let damaged = |source| FetchError::Object {
            object: segment.object.clone(),
            source,
        };
        let (size, footer_bytes) = (segment.object_bytes, FOOTER_BYTES as u64);
        if size < footer_bytes {
            return Err(damaged(SealedError::Truncated));
        }
        // Footer and table lie at the end; how long the table is follows from the segment, or else is asked for anew.
        let blocks = segment.info.bytes.div_ceil(u64::from(BLOCK_BYTES));
        let from = size.saturating_sub(footer_bytes + blocks * TABLE_ENTRY_BYTES);
        let end = self.get_range(name, from..size).await?;
        let footer_at = end.len().saturating_sub(FOOTER_BYTES);
        let footer = Footer::decode(end.get(footer_at..).unwrap_or_default(), size).map_err(damaged)?;
        let summary = &footer.summary;
        let is_it = summary.log_id == segment.log_id
            && summary.base == segment.info.base
            && summary.raw_bytes == segment.info.bytes
            && summary.sha256 == segment.file_sha256;
        if !is_it {
            return Err(FetchError::NotAsNamed(segment.object.clone()));
        }
        let place = footer.table_range();
        let table = match place.start.checked_sub(from) {
            Some(skip) => {
                let start = usize::try_from(skip).unwrap_or(usize::MAX);
                end.get(start..footer_at)
                    .map(Bytes::copy_from_slice)
                    .unwrap_or_default()
            }
            None => self.get_range(name, place).await?,
        };
        let index = Arc::new(footer.index(&table).map_err(damaged)?);
        let mut tables = self.tables.lock();
        tables.push_back((segment.object.clone(), Arc::clone(&index)));
        if tables.len() > TABLES_KEPT {
            tables.pop_front();
        }
        Ok(index)
    }
}

/// What a log must know of a segment to do without its bytes; `None` if the manifest does not say it all.
pub(crate) fn away_segment(log_id: LogId, entry: &SegmentEntry) -> Option<AwaySegment> {
    let base = Lsn::saturating(entry.base);
    (entry.frames > 0).then(|| AwaySegment {
        log_id,
        info: SegmentInfo {
            base,
            first: base,
            last: Lsn::saturating(entry.last),
            prev: Lsn::saturating(entry.prev),
            epoch: Epoch(entry.epoch),
            sealed: true,
            bytes: entry.raw_bytes,
            frames: entry.frames,
            sha256: None,
            compaction: entry.compaction,
        },
        file_sha256: entry.sha256,
        object: entry.object.clone(),
        object_bytes: entry.stored_bytes,
    })
}

/// The segments that a manifest names, as a log knows them that has not got them.
pub(crate) fn named(manifest: &Manifest) -> impl Iterator<Item = AwaySegment> {
    let log_id = manifest.log_id();
    manifest
        .segments
        .iter()
        .filter_map(move |entry| away_segment(log_id, entry))
}

/// Whether the manifest names this segment, so that its object stays.
pub(crate) fn is_named(manifest: &Manifest, away: &AwaySegment) -> bool {
    let at = manifest
        .segments
        .binary_search_by_key(&away.info.base.get(), |entry| entry.base);
    at.ok()
        .and_then(|at| manifest.segments.get(at))
        .is_some_and(|entry| {
            let here = (away.info.last.get(), away.info.prev.get(), away.info.bytes);
            here == (entry.last, entry.prev, entry.raw_bytes)
                && away.file_sha256 == entry.sha256
                && away.object == entry.object
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sealed;
    use crate::store::faulty::{Fault, FaultyStore, Rule, Verb};
    use crate::store::memory::MemoryStore;

    const LOG: LogId = LogId([4; 16]);

    async fn object(raw: &[u8]) -> (Arc<FaultyStore<MemoryStore>>, AwaySegment) {
        let store = Arc::new(FaultyStore::new(MemoryStore::new(), 1));
        let base = Lsn::saturating(100);
        let mut object = Vec::new();
        let summary = sealed::encode(raw, &mut object, LOG, base).unwrap();
        let name = ObjectName::new("seg/x").unwrap();
        store.create(&name, object.into()).await.unwrap();
        let entry = SegmentEntry {
            base: 100,
            last: 200,
            prev: 99,
            raw_bytes: summary.raw_bytes,
            sha256: summary.sha256,
            object: "seg/x".to_owned(),
            stored_bytes: summary.stored_bytes,
            epoch: 1,
            frames: 3,
            compaction: 0,
        };
        (store, away_segment(LOG, &entry).unwrap())
    }

    fn noise(len: usize) -> Vec<u8> {
        (0..len).map(|i| ((i * i) >> 7) as u8 ^ (i as u8)).collect()
    }

    fn source(store: &Arc<FaultyStore<MemoryStore>>) -> ReplicaSource {
        ReplicaSource::new(store.clone(), Duration::from_secs(5)).unwrap()
    }

    #[tokio::test]
    async fn any_range_is_had_with_one_request_after_the_one_for_the_table() {
        let raw = noise(BLOCK_BYTES as usize * 3 + 1_234);
        let (store, away) = object(&raw).await;
        let source = source(&store);
        let before = store.calls().len();
        let len = raw.len() as u64;
        let ranges = [
            0..10,
            262_140..262_150,
            200_000..700_000,
            len - 5..len,
            0..len,
            7..7,
        ];
        for range in &ranges {
            let got = source.fetch(&away, range.clone()).unwrap();
            assert_eq!(got, raw[range.start as usize..range.end as usize], "{range:?}");
        }
        assert_eq!(
            store.calls().len() - before,
            1 + 5,
            "nothing is asked for no bytes"
        );
    }

    #[tokio::test]
    async fn an_object_that_is_not_the_segment_is_refused() {
        let (store, away) = object(&noise(1_000)).await;
        let spoilt: [fn(&mut AwaySegment); 5] = [
            |away| away.file_sha256[3] ^= 1,
            |away| away.log_id = LogId([5; 16]),
            |away| away.info.base = Lsn::saturating(101),
            |away| away.object = "seg/y".to_owned(),
            |away| away.object_bytes -= 1,
        ];
        for spoil in spoilt {
            let mut other = away.clone();
            spoil(&mut other);
            assert!(source(&store).fetch(&other, 0..10).is_err());
        }
        assert!(source(&store).fetch(&away, 0..10).is_ok());
    }

    #[tokio::test]
    async fn a_flipped_bit_anywhere_in_what_is_read_is_an_error() {
        let raw = noise(1_000);
        let (store, away) = object(&raw).await;
        let name = ObjectName::new("seg/x").unwrap();
        let whole = store.get(&name, 1 << 20).await.unwrap();
        for at in (0..whole.len()).step_by(29) {
            let mut bytes = whole.to_vec();
            bytes[at] ^= 16;
            let spoilt = format!("seg/{at}");
            let name = ObjectName::new(spoilt.clone()).unwrap();
            store.create(&name, bytes.into()).await.unwrap();
            let away = AwaySegment {
                object: spoilt,
                ..away.clone()
            };
            assert!(source(&store).fetch(&away, 0..1_000).is_err(), "byte {at}");
        }
    }

    #[tokio::test]
    async fn a_store_that_is_gone_is_an_error_in_time_and_too_many_are_refused() {
        let (store, away) = object(&noise(1_000)).await;
        store.add(Rule::always(Fault::Hang).on(Verb::GetRange));
        let source = ReplicaSource::new(store.clone(), Duration::from_millis(50)).unwrap();
        let turns: Vec<_> = (0..ASKED_AT_A_TIME)
            .map(|_| Arc::clone(&source.inner.asked).try_acquire_owned().unwrap())
            .collect();
        let refused = source.fetch(&away, 0..10).unwrap_err();
        assert!(refused.0.contains("too many"), "{refused}");
        drop(turns);
        let begun = std::time::Instant::now();
        assert!(source.fetch(&away, 0..10).is_err());
        assert!(begun.elapsed() < FETCH_LIMIT * 2);
        store.heal();
        assert!(source.fetch(&away, 0..10).is_ok());
    }
}
