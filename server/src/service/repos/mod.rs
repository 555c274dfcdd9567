//! Repositories: who may write what, and the path of a write from a request to its acknowledgement.
//!
//! One actor a repo (see `actor`) applies writes in memory, builds and signs the commit and hands it to the log; it
//! chains the next commit on its in-memory head without waiting. The caller waits here until its own commit is durable
//! and applied, so whoever got an answer can read what it wrote (I1).

mod actor;
mod build;
pub mod export;
#[cfg(test)]
mod heal_tests;
pub mod import;
pub mod prepare;
pub mod read;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use engine::engine::AppendError;
use engine::repo::{Cid, Did, RepoPath, Tid};
use engine::views::index::IndexReader;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::service::core::{Core, Unconfirmed};
use crate::service::keys::SigningKeys;
use actor::{Actor, Healing, Job, Room};
use prepare::PreparedRecord;

pub use build::{Genesis, genesis};

/// Writes that one request may carry (<https://atproto.com/specs/sync#commit>).
pub const MAX_WRITES: usize = 200;
/// References to blobs of one request that are looked up without going to another thread.
const BLOBS_INLINE: usize = 8;
/// How long a repo that is to be replaced is waited for.
const CLOSE_WAIT: Duration = Duration::from_secs(30);
/// Requests of one repo that may wait for its actor.
const MAILBOX: usize = 256;
/// Memory that one active repo takes at least: its tree's touched paths, its key, its mailbox.
const BYTES_PER_ACTOR: usize = 24 << 10;

/// Why a write was refused or failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WriteError {
    /// There is no such repo here.
    #[error("Could not find repo: {0}")]
    RepoNotFound(Did),
    /// The record is not acceptable.
    #[error("{0}")]
    InvalidRecord(String),
    /// The request as a whole is not acceptable.
    #[error("{0}")]
    InvalidRequest(String),
    /// `swapCommit` names another commit than the head.
    #[error("Commit was at {head}")]
    CommitSwap {
        /// The head.
        head: Cid,
    },
    /// `swapRecord` names another record than the current one.
    #[error("Record was at {}", current.map_or_else(|| "null".to_owned(), |cid| cid.to_string()))]
    RecordSwap {
        /// What is there.
        current: Option<Cid>,
    },
    /// A record references a blob that is not here, or describes it wrongly.
    #[error("{message}")]
    Blob {
        /// The error's name on the wire.
        name: &'static str,
        /// For people.
        message: String,
    },
    /// Too much is waiting already; nothing was done.
    #[error("the server is busy; try again")]
    Busy,
    /// The log is closed to writes, so the outcome may be unknown. Recovery decides.
    #[error("the log is closed to writes: {0}")]
    Closed(String),
    /// It is in the log and not known to be durable yet.
    #[error(transparent)]
    Unconfirmed(#[from] Unconfirmed),
    /// Our mistake or a damaged store.
    #[error("{0}")]
    Internal(String),
}

/// One write to a repo.
#[derive(Clone, Debug)]
pub enum Write {
    /// The record must not exist.
    Create(RepoPath, PreparedRecord),
    /// The record must exist.
    Update(RepoPath, PreparedRecord),
    /// Creates or updates. An identical record is no write at all, whatever the swaps say.
    Put(RepoPath, PreparedRecord, RecordSwap),
    /// The record must exist.
    Delete(RepoPath),
    /// Deletes if it is there; a missing record is no write at all, whatever the swaps say.
    DeleteIfPresent(RepoPath, RecordSwap),
}

impl Write {
    /// The record it is about.
    #[must_use]
    pub fn path(&self) -> &RepoPath {
        match self {
            Write::Create(path, _)
            | Write::Update(path, _)
            | Write::Put(path, _, _)
            | Write::Delete(path)
            | Write::DeleteIfPresent(path, _) => path,
        }
    }

    fn record(&self) -> Option<&PreparedRecord> {
        match self {
            Write::Create(_, record) | Write::Update(_, record) | Write::Put(_, record, _) => Some(record),
            Write::Delete(_) | Write::DeleteIfPresent(_, _) => None,
        }
    }

    fn record_bytes(&self) -> usize {
        self.record().map_or(0, |record| record.block.len())
    }

    /// Memory that it takes while it waits, about.
    fn memory_bytes(&self) -> usize {
        const PATH_AND_FRAME: usize = 512;
        PATH_AND_FRAME + self.record_bytes()
    }
}

/// The caller's expectation of the current record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordSwap {
    /// None.
    Any,
    /// It has this CID.
    Is(Cid),
    /// There is none.
    Absent,
}

/// What a durable write did.
#[derive(Clone, Debug)]
pub struct Written {
    /// The commit, unless nothing had to change.
    pub commit: Option<CommitMeta>,
    /// What became of each write, in the order of the request.
    pub results: Vec<WriteResult>,
}

/// A commit's name.
#[derive(Clone, Debug)]
pub struct CommitMeta {
    /// Its CID.
    pub cid: Cid,
    /// Its revision.
    pub rev: Tid,
}

/// What became of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteResult {
    /// A new record.
    Created(Cid),
    /// A changed record.
    Updated(Cid),
    /// The record is gone.
    Deleted,
    /// Nothing to do.
    Unchanged,
}

/// All repos of this server; cheap to clone.
#[derive(Clone)]
pub struct Repos {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    actors: Mutex<HashMap<Did, Arc<Actor>>>,
    /// Repos that take no writes now. Locked only while `actors` is.
    closed: Mutex<HashSet<Did>>,
    max_actors: usize,
    /// Bytes of writes that wait for their repo.
    waiting: Arc<AtomicUsize>,
    waiting_max: usize,
}

/// What the actors use, apart from what owns them, so that they end with it.
struct Shared {
    engine: Core,
    keys: SigningKeys,
    tids: Tids,
    healing: Healing,
}

impl Repos {
    /// Repos over `engine`, with at most `cache_bytes` for those that are active and `waiting_bytes` of writes that wait for
    /// their repo.
    #[must_use]
    pub fn new(
        engine: Core,
        keys: SigningKeys,
        cache_bytes: usize,
        waiting_bytes: usize,
        clock_id: u16,
    ) -> Repos {
        let max_actors = (cache_bytes / BYTES_PER_ACTOR).max(16);
        Repos::with_max_actors(engine, keys, max_actors, waiting_bytes, clock_id)
    }

    /// As [`Repos::new`], with the number of repos that stay in memory.
    pub(crate) fn with_max_actors(
        engine: Core,
        keys: SigningKeys,
        max_actors: usize,
        waiting_max: usize,
        clock_id: u16,
    ) -> Repos {
        let shared = Shared {
            engine,
            keys,
            tids: Tids {
                last: AtomicU64::new(0),
                clock_id,
            },
            healing: Healing::default(),
        };
        let inner = Inner {
            shared: Arc::new(shared),
            actors: Mutex::new(HashMap::new()),
            closed: Mutex::default(),
            max_actors,
            waiting: Arc::default(),
            waiting_max,
        };
        Repos {
            inner: Arc::new(inner),
        }
    }

    /// A fresh record key.
    #[must_use]
    pub fn next_tid(&self) -> Tid {
        let shared = &self.inner.shared;
        shared.tids.next(shared.engine.now_micros())
    }

    /// Applies `writes` within one commit, perhaps together with other requests that wait, and returns when it is durable and
    /// applied.
    ///
    /// # Errors
    /// See [`WriteError`]; on any error none of the writes happened, except after [`WriteError::Closed`] and [`WriteError::Unconfirmed`], where
    /// recovery decides.
    pub async fn write(
        &self,
        did: &Did,
        writes: Vec<Write>,
        swap_commit: Option<Cid>,
    ) -> Result<Written, WriteError> {
        if writes.len() > MAX_WRITES {
            return Err(WriteError::InvalidRequest(format!(
                "Too many writes. Max: {MAX_WRITES}"
            )));
        }
        let writes = self.check_blobs(did, writes).await?;
        let bytes = writes.iter().map(Write::memory_bytes).sum();
        let room = Room::take(&self.inner.waiting, bytes, self.inner.waiting_max).ok_or(WriteError::Busy)?;
        let (reply, answer) = oneshot::channel();
        let actor = self.actor(did).ok_or(WriteError::Busy)?;
        let sent = actor.send(Job {
            writes,
            swap_commit,
            reply,
            _room: room,
            alone: false,
        });
        drop(actor);
        if !sent {
            return Err(WriteError::Busy);
        }
        let answered = self.inner.shared.engine.in_time(answer).await?;
        answered.map_err(|_| WriteError::Closed("the repo's actor ended".to_owned()))?
    }

    /// Sends the repo's actor away when it has done what it was asked, and lets no other come until the answer is dropped.
    async fn close_to_writes(&self, did: &Did) -> Result<Closed, WriteError> {
        let actor = {
            let mut actors = self.inner.actors.lock();
            if !self.inner.closed.lock().insert(did.clone()) {
                return Err(WriteError::Busy);
            }
            actors.remove(did)
        };
        let closed = Closed {
            repos: self.clone(),
            did: did.clone(),
        };
        if let Some(actor) = actor {
            let deadline = Instant::now() + CLOSE_WAIT;
            // Whoever still holds it may send to it.
            while Arc::strong_count(&actor) > 1 || !actor.is_idle() {
                if Instant::now() > deadline {
                    self.inner.actors.lock().insert(did.clone(), actor);
                    return Err(WriteError::Busy);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Ok(closed)
    }

    /// The actor of a repo; `None` while the repo takes no writes.
    fn actor(&self, did: &Did) -> Option<Arc<Actor>> {
        let now = self.inner.shared.engine.now_micros();
        let mut actors = self.inner.actors.lock();
        if self.inner.closed.lock().contains(did) {
            return None;
        }
        if let Some(actor) = actors.get(did) {
            actor.used_at.store(now, Ordering::Relaxed);
            return Some(actor.clone());
        }
        if actors.len() >= self.inner.max_actors {
            let mut by_age: Vec<(u64, Did)> = actors
                .iter()
                .filter(|(_, actor)| Arc::strong_count(actor) == 1 && actor.is_idle())
                .map(|(did, actor)| (actor.used_at.load(Ordering::Relaxed), did.clone()))
                .collect();
            by_age.sort_unstable_by_key(|(used, _)| *used);
            by_age.truncate(actors.len() / 10 + 1);
            for (_, idle) in by_age {
                actors.remove(&idle);
            }
        }
        let actor = Arc::new(actor::spawn(did.clone(), self.inner.shared.clone(), MAILBOX, now));
        actors.insert(did.clone(), actor.clone());
        Some(actor)
    }

    /// Every referenced blob must be here, and while it is temporary the reference must describe it truly.
    async fn check_blobs(&self, did: &Did, writes: Vec<Write>) -> Result<Vec<Write>, WriteError> {
        let count: usize = writes
            .iter()
            .filter_map(Write::record)
            .map(|record| record.blobs.len())
            .sum();
        if count == 0 {
            return Ok(writes);
        }
        let reader = self.inner.shared.engine.reader().map_err(internal)?;
        if count <= BLOBS_INLINE {
            check_blob_refs(&reader, did, &writes)?;
            return Ok(writes);
        }
        let did = did.clone();
        let checked = tokio::task::spawn_blocking(move || {
            check_blob_refs(&reader, &did, &writes)?;
            Ok(writes)
        });
        checked.await.map_err(internal)?
    }
}

/// A repo that takes no writes. It takes them again when this is dropped.
struct Closed {
    repos: Repos,
    did: Did,
}

impl Drop for Closed {
    fn drop(&mut self) {
        let _actors = self.repos.inner.actors.lock();
        self.repos.inner.closed.lock().remove(&self.did);
    }
}

fn check_blob_refs(reader: &IndexReader, did: &Did, writes: &[Write]) -> Result<(), WriteError> {
    let refused = |name, message| Err(WriteError::Blob { name, message });
    let records = writes.iter().filter_map(Write::record);
    for blob in records.flat_map(|record| &record.blobs) {
        let Some(row) = reader.blob(did, &blob.cid).map_err(internal)? else {
            return refused("BlobNotFound", format!("Could not find blob: {}", blob.cid));
        };
        // Once some record references it, later references are not compared any more.
        if reader.is_referenced(did, &blob.cid).map_err(internal)? {
            continue;
        }
        if row.mime != blob.mime_type {
            return refused(
                "InvalidMimeType",
                format!(
                    "Referenced MimeType does not match stored blob. Expected: {}, Got: {}",
                    row.mime, blob.mime_type
                ),
            );
        }
        if blob.size != Some(row.size) {
            return refused(
                "InvalidSize",
                format!(
                    "Referenced Size does not match stored blob. Expected: {}, Got: {}",
                    row.size,
                    blob.size.unwrap_or_default()
                ),
            );
        }
    }
    Ok(())
}

fn internal(error: impl std::fmt::Display) -> WriteError {
    WriteError::Internal(error.to_string())
}

impl From<AppendError> for WriteError {
    fn from(error: AppendError) -> WriteError {
        match error {
            AppendError::Busy => WriteError::Busy,
            AppendError::Invalid { .. } => WriteError::Internal(error.to_string()),
            other => WriteError::Closed(other.to_string()),
        }
    }
}

/// Timestamps that only go up, for record keys and revisions.
struct Tids {
    last: AtomicU64,
    clock_id: u16,
}

impl Tids {
    fn next(&self, now_micros: u64) -> Tid {
        let mut micros = now_micros;
        let _always = self
            .last
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |last| {
                micros = now_micros.max(last + 1);
                Some(micros)
            });
        Tid::from_micros(micros, self.clock_id)
    }
}
