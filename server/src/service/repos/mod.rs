//! Repositories: who may write what, and the path of a write from a request to its acknowledgement.
//!
//! One actor a repo (see `actor`) applies writes in memory, builds and signs the commit and hands it to the log; it
//! chains the next commit on its in-memory head without waiting. The caller waits here until its own commit is durable
//! and applied, so whoever got an answer can read what it wrote (I1).

mod actor;
mod announce;
pub mod blocks;
mod build;
mod closing;
pub mod export;
mod heal;
#[cfg(test)]
mod heal_tests;
pub mod import;
pub mod prepare;
pub mod read;
mod rekey;
#[cfg(test)]
mod removal_tests;
mod restored;
mod subjects;
#[cfg(test)]
mod tests;
mod trees;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use engine::engine::AppendError;
use engine::log::ReadError;
use engine::repo::{Cid, Did, RepoPath, Tid};
use engine::views::index::IndexReader;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::service::core::{Core, Unconfirmed};
use crate::service::keys::SigningKeys;
use actor::{Actor, Job, Room};
use closing::Closing;
use heal::Healing;
use prepare::PreparedRecord;
use trees::{ACTOR_BYTES, Trees};

pub(crate) use closing::Closed;
pub(crate) use rekey::Rekeying;

pub use build::{Genesis, genesis, silent_genesis};

/// Writes that one request may carry (<https://atproto.com/specs/sync#commit>).
pub const MAX_WRITES: usize = 200;
/// References to blobs of one request that are looked up without going to another thread.
const BLOBS_INLINE: usize = 8;
/// Requests of one repo that may wait for its actor.
const MAILBOX: usize = 256;
/// Least time between two looks for repos to forget when there are too many bytes of trees, microseconds.
const FORGET_EVERY_MICROS: u64 = 10_000;

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
    /// What is asked for is in the replica only, which cannot be read now. Nothing is lost.
    #[error("what is asked for cannot be fetched from this server's store now; try again")]
    Elsewhere,
    /// The index has lost what it had of this repo, and its records do not give the tree that was signed. Others are not
    /// concerned. The log says what the operator can do.
    #[error("what this server stores of {0} is damaged; its operator has to repair it")]
    Damaged(Did),
    /// Our mistake or a damaged store.
    #[error("{0}")]
    Internal(String),
}

/// One write to a repo.
#[derive(Clone, Debug)]
pub enum Write {
    /// The record must not exist.
    Create(RepoPath, PreparedRecord),
    /// The record must not exist. Others that are about the same are deleted in the same commit: see
    /// [`engine::repo::Subject`].
    CreateOnly(RepoPath, PreparedRecord),
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
            | Write::CreateOnly(path, _)
            | Write::Update(path, _)
            | Write::Put(path, _, _)
            | Write::Delete(path)
            | Write::DeleteIfPresent(path, _) => path,
        }
    }

    fn record(&self) -> Option<&PreparedRecord> {
        match self {
            Write::Create(_, record)
            | Write::CreateOnly(_, record)
            | Write::Update(_, record)
            | Write::Put(_, record, _) => Some(record),
            Write::Delete(_) | Write::DeleteIfPresent(_, _) => None,
        }
    }

    /// The blobs that its record references.
    pub fn blobs(&self) -> impl Iterator<Item = Cid> {
        self.record()
            .into_iter()
            .flat_map(|record| record.blobs.iter().map(|blob| blob.cid))
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

/// What all repos together may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the trees of repos that were written to lately, and of their actors.
    pub tree_bytes: usize,
    /// Repos that stay in memory.
    pub actors: usize,
    /// Bytes of writes that wait for their repo.
    pub waiting_bytes: usize,
}

impl Limits {
    /// As many repos as fit into `tree_bytes` without their trees, and 16 at least.
    #[must_use]
    pub fn new(tree_bytes: usize, waiting_bytes: usize) -> Limits {
        Limits {
            tree_bytes,
            actors: (tree_bytes / ACTOR_BYTES).max(16),
            waiting_bytes,
        }
    }
}

/// All repos of this server; cheap to clone.
#[derive(Clone)]
pub struct Repos {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    actors: Mutex<HashMap<Did, Arc<Actor>>>,
    /// Repos that take no writes now. Whoever needs both locks takes that of `actors` first.
    closed: Mutex<HashMap<Did, Arc<Closing>>>,
    /// How many repos were removed since the start.
    removals: AtomicU64,
    max_actors: usize,
    /// When repos were last forgotten for the sake of their trees' bytes, microseconds since 1970.
    forgot_at: AtomicU64,
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
    trees: Arc<Trees>,
}

impl Repos {
    /// Repos over `engine`.
    #[must_use]
    pub fn new(engine: Core, keys: SigningKeys, limits: Limits, clock_id: u16) -> Repos {
        let shared = Shared {
            engine,
            keys,
            tids: Tids {
                last: AtomicU64::new(0),
                clock_id,
            },
            healing: Healing::default(),
            trees: Trees::new(limits.tree_bytes),
        };
        let inner = Inner {
            shared: Arc::new(shared),
            actors: Mutex::new(HashMap::new()),
            closed: Mutex::default(),
            removals: AtomicU64::new(0),
            max_actors: limits.actors,
            forgot_at: AtomicU64::new(0),
            waiting: Arc::default(),
            waiting_max: limits.waiting_bytes,
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

    /// The actor of a repo; `None` while the repo takes no writes.
    fn actor(&self, did: &Did) -> Option<Arc<Actor>> {
        let shared = &self.inner.shared;
        let now = shared.engine.now_micros();
        let mut actors = self.inner.actors.lock();
        if self.inner.closed.lock().contains_key(did) {
            return None;
        }
        let actor = if let Some(actor) = actors.get(did) {
            actor.used_at.store(now, Ordering::Relaxed);
            actor.clone()
        } else {
            if actors.len() >= self.inner.max_actors {
                let share = actors.len() / 10 + 1;
                forget_oldest(&mut actors, |gone, _| gone >= share);
            }
            let actor = Arc::new(actor::spawn(did.clone(), shared.clone(), MAILBOX, now));
            actors.insert(did.clone(), actor.clone());
            actor
        };
        let excess = shared.trees.excess();
        if excess > 0
            && now.saturating_sub(self.inner.forgot_at.load(Ordering::Relaxed)) >= FORGET_EVERY_MICROS
        {
            self.inner.forgot_at.store(now, Ordering::Relaxed);
            forget_oldest(&mut actors, |_, bytes| bytes >= excess);
        }
        Some(actor)
    }

    /// Sets the gauges of the repos in memory.
    #[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
    pub fn observe_gauges(&self) {
        let actors = self.inner.actors.lock().len();
        metrics::gauge!("pds_repos_in_memory").set(actors as f64);
        metrics::gauge!("pds_repo_tree_bytes").set(self.inner.shared.trees.used() as f64);
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

/// Forgets repos that nobody uses now, those first that were not used for longest, until `enough` says so of how many went
/// and how many bytes they took.
fn forget_oldest(actors: &mut HashMap<Did, Arc<Actor>>, enough: impl Fn(usize, usize) -> bool) {
    let mut by_age: Vec<(u64, Did)> = actors
        .iter()
        .filter(|(_, actor)| Arc::strong_count(actor) == 1 && actor.is_idle())
        .map(|(did, actor)| (actor.used_at.load(Ordering::Relaxed), did.clone()))
        .collect();
    by_age.sort_unstable_by_key(|(used, _)| *used);
    let (mut gone, mut bytes) = (0, 0);
    for (_, idle) in by_age {
        if enough(gone, bytes) {
            break;
        }
        if let Some(actor) = actors.remove(&idle) {
            gone += 1;
            bytes += actor.charge.bytes();
            // Its task ends a moment later.
            actor.charge.release();
        }
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

/// A read of the log that failed.
fn unread(error: ReadError) -> WriteError {
    match error {
        ReadError::Away { .. } => {
            tracing::warn!(%error, "a read waits for the replica in vain");
            WriteError::Elsewhere
        }
        error => WriteError::Internal(error.to_string()),
    }
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
