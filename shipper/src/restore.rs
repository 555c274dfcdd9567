//! Bringing a log back on an empty disk.
//!
//! ```text
//! marker file ─► newest manifest ─► checkpoint files ─┐
//!                       └─► sealed segments, in order ─► chunks behind them, in order ─► finish ─► remove the marker
//! ```
//! Everything is checked on the way: digests of objects, checksums and chain of every frame, epochs of the chain. A crash
//! at any point leaves the marker, and the next restore begins anew in a cleaned directory; without the marker the
//! directory is whole.
//!
//! A *lazy* restore leaves those segments in the replica that the checkpoint has folded already: the log is told of them and
//! fetches what is read. Without a usable checkpoint everything is fetched.
//!
//! A writer that is still at work is told what is read ([`readers`](crate::readers)) and keeps it. If it deletes it all the same,
//! because it could not be told or because it took too long, there is a newer manifest, and the restore starts over from that.

mod install;
mod place;
mod work;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::log::{Epoch, InstallError, LogId, Lsn};
use engine::storage::Storage;

use crate::fence::{self, ReplicaError};
use crate::manifest::Manifest;
use crate::names::Generation;
use crate::pit;
use crate::readers::{Announce, Reading};
use crate::requests::Requests;
use crate::sealed::SealedError;
use crate::store::{ReplicaStore, StoreError};
use place::{TEMP_DIR, begin, clean, remove_dir, remove_marker};
use work::Work;

/// The log's directory below a data directory.
pub const LOG_DIR: &str = "log";
/// The checkpoints' directory below a data directory.
pub const CHECKPOINT_DIR: &str = "ckpt";
/// Says that a restore has begun and has not ended.
pub const MARKER: &str = "restore-in-progress";

/// How often a restore starts over because a writer moved things along.
const MAX_ROUNDS: u32 = 5;

/// How far a restore is, in bytes of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Fetched and unpacked.
    pub bytes_done: u64,
    /// In all, as far as is known.
    pub bytes_total: u64,
}

/// Told about [`Progress`] after each object.
pub type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;

/// How to restore.
#[derive(Clone)]
pub struct RestoreOptions {
    /// The disk for the log's segments; checkpoints and temporary files go to the real one.
    pub storage: Arc<dyn Storage>,
    /// The longest that one request may take.
    pub request_timeout: Duration,
    /// Fetch a checkpoint of the views, if there is one.
    pub with_checkpoint: bool,
    /// Leave the segments in the replica that the checkpoint has folded. Whoever opens the log must attach a source.
    pub lazy: bool,
    /// Told about the progress.
    pub on_progress: Option<OnProgress>,
    /// Tell a writer that may be at work on the replica what is read, if that takes long, so that it keeps it meanwhile. Where it
    /// cannot be told, reading goes on with a warning.
    pub announce: Option<Announce>,
}

/// How long the parts took. Checkpoint and log are fetched at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreTimings {
    /// Finding and reading the manifest.
    pub manifest: Duration,
    /// The checkpoint's files.
    pub checkpoint: Duration,
    /// The sealed segments.
    pub segments: Duration,
    /// The chunks.
    pub chunks: Duration,
}

/// What was restored.
#[derive(Clone, Debug)]
pub struct Restored {
    /// The log.
    pub log_id: LogId,
    /// Its last LSN; zero if it has no frames.
    pub last_lsn: Lsn,
    /// The newest reign in the chain.
    pub last_epoch: Epoch,
    /// The directory of the newest usable checkpoint, and its LSN.
    pub checkpoint: Option<(PathBuf, Lsn)>,
    /// That LSN, if each file of the checkpoint was found to be what the checkpoint itself says: nobody needs to read them for that
    /// again.
    pub sound: Option<Lsn>,
    /// Segments that were left in the replica.
    pub away: usize,
    /// Their bytes.
    pub away_bytes: u64,
    /// What was wrong and could be done without: damaged checkpoints, a writer that could not be told.
    pub warnings: Vec<String>,
    /// How long it took.
    pub timings: RestoreTimings,
}

/// Why nothing was restored. The destination is cleaned by the next try.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The replica cannot be read, or an object in it is damaged.
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    /// There is nothing to restore.
    #[error("there is no log in the replica {0}")]
    Empty(String),
    /// A sealed segment is damaged.
    #[error("segment {object} of the replica is damaged")]
    Segment {
        /// The object.
        object: String,
        /// What is wrong.
        #[source]
        source: SealedError,
    },
    /// An object's content is whole but is not what the manifest says.
    #[error("{object} of the replica is not what the manifest says")]
    NotAsNamed {
        /// The object.
        object: String,
    },
    /// A checkpoint's objects are whole, but it says of its files something else than what they are.
    #[error("the checkpoint {lsn} of the replica was damaged before it was shipped: {what}")]
    Unsound {
        /// The checkpoint's.
        lsn: Lsn,
        /// What differs.
        what: String,
    },
    /// The frames in an object do not fit.
    #[error("{object} of the replica cannot be installed")]
    Install {
        /// The object.
        object: String,
        /// What is wrong.
        #[source]
        source: InstallError,
    },
    /// What the wanted moment needs is not in the replica any more.
    #[error(
        "the replica has no history of that moment; the oldest that can be had is {} ({})",
        oldest.get(), String::from_utf8_lossy(&oldest.timestamp())
    )]
    NoHistory {
        /// The oldest state that can be had.
        oldest: Lsn,
    },
    /// There is a log already.
    #[error("{0} is not empty; restore into an empty directory")]
    NotEmpty(PathBuf),
    /// The local disk failed.
    #[error("{path}")]
    Local {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A writer kept deleting what was read. Try again, or stop that writer.
    #[error(
        "the server that is at work on the replica kept deleting what was read; try again with a right to write there, \
         by which it is told to wait, or stop that server"
    )]
    MovingTarget,
    /// A part of the work was lost.
    #[error("restoring: {0}")]
    Task(String),
}

impl From<StoreError> for RestoreError {
    fn from(error: StoreError) -> RestoreError {
        RestoreError::Replica(ReplicaError::Store(error))
    }
}

/// Restores everything that the replica has into `dest`, as `log/` and `ckpt/<LSN, 16 hex>/`. Other files in `dest` are
/// left alone. Writes nothing to the replica but that it is read, if that is asked for and it takes long. Requests that fail in passing are repeated
/// for about a minute each.
///
/// # Errors
/// [`RestoreError`], naming the object at fault.
pub async fn restore(
    store: &Arc<dyn ReplicaStore>,
    dest: &Path,
    options: &RestoreOptions,
) -> Result<Restored, RestoreError> {
    let requests = Requests::new(store.clone(), options.request_timeout);
    begin(dest, options)?;
    let Some(log) = fence::read_log_object(&requests).await? else {
        clean(dest, options)?;
        remove_marker(dest)?;
        return Err(RestoreError::Empty(store.describe()));
    };
    let reading = Reading::new(store, options.announce.as_ref(), options.request_timeout);
    let rounds = rounds(&requests, log.log_id, dest, options, &reading, |manifest| {
        Ok((manifest, true))
    });
    ended(reading.during(rounds).await, reading).await
}

/// Restores as much of the log as is needed to tell the state at `cut`, and no checkpoint: live and displaced segments from
/// the beginning to the one that holds it, and the chunks behind them if it lies there. Without a `cut` it is all history that
/// there is. `dest` is otherwise as after [`restore`].
///
/// # Errors
/// [`RestoreError`], naming the object at fault.
pub async fn restore_history(
    store: &Arc<dyn ReplicaStore>,
    dest: &Path,
    cut: Option<Lsn>,
    options: &RestoreOptions,
) -> Result<Restored, RestoreError> {
    let options = RestoreOptions {
        with_checkpoint: false,
        ..options.clone()
    };
    let requests = Requests::new(store.clone(), options.request_timeout);
    begin(dest, &options)?;
    let Some(log) = fence::read_log_object(&requests).await? else {
        return Err(RestoreError::Empty(store.describe()));
    };
    let part = |mut manifest: Manifest| {
        let history = match cut {
            Some(cut) => pit::history(&manifest, cut),
            None => pit::longest(&manifest),
        };
        let history = history.ok_or_else(|| RestoreError::NoHistory {
            oldest: pit::oldest(&manifest).unwrap_or(Lsn::MAX),
        })?;
        manifest.segments = history.segments;
        Ok((manifest, history.goes_on))
    };
    let reading = Reading::new(store, options.announce.as_ref(), options.request_timeout);
    let rounds = rounds(&requests, log.log_id, dest, &options, &reading, part);
    ended(reading.during(rounds).await, reading).await
}

/// What is read is not needed any more.
async fn ended(outcome: Result<Restored, RestoreError>, reading: Reading) -> Result<Restored, RestoreError> {
    let mut outcome = outcome;
    if let (Ok(restored), Some(why)) = (&mut outcome, reading.refused()) {
        restored.warnings.push(format!(
            "a server that is at work on the replica was not told that it is read ({why}); had it deleted what was \
             read, the restore would have started over"
        ));
    }
    reading.end().await;
    outcome
}

/// Tries by the newest manifest until no writer comes between. `part` says what of a manifest is wanted, and whether the chunks
/// behind it are.
async fn rounds(
    requests: &Requests,
    log_id: LogId,
    dest: &Path,
    options: &RestoreOptions,
    reading: &Reading,
    part: impl Fn(Manifest) -> Result<(Manifest, bool), RestoreError>,
) -> Result<Restored, RestoreError> {
    for _ in 0..MAX_ROUNDS {
        let begun = Instant::now();
        reading.looks();
        let manifest = fence::newest_manifest(requests, log_id).await?;
        let generation = manifest.generation();
        reading.goes_by(generation);
        let (manifest, with_chunks) = part(manifest)?;
        let mut work = Work::new(requests, dest, options, reading, manifest);
        work.with_chunks = with_chunks;
        let manifest_time = begun.elapsed();
        let outcome = Box::pin(work.run()).await;
        // A chunk that was deleted because a newer manifest covers it looks like damage, or like the end of the chain.
        let newest = match outcome.is_ok() && !with_chunks {
            true => None,
            false => newer_manifest(requests, log_id, generation).await?,
        };
        match (outcome, newest) {
            (Ok(restored), newest)
                if newest
                    .as_ref()
                    .is_none_or(|n| n.covered_lsn() <= restored.last_lsn) =>
            {
                remove_dir(&dest.join(TEMP_DIR))?;
                remove_marker(dest)?;
                let timings = RestoreTimings {
                    manifest: manifest_time,
                    ..restored.timings
                };
                return Ok(Restored { timings, ..restored });
            }
            (Err(error), None) => return Err(error),
            (outcome, _) => {
                let why = outcome
                    .err()
                    .map_or_else(|| "chunks were covered meanwhile".into(), |e| e.to_string());
                tracing::info!("the replica moved on while it was read; starting over: {why}");
                clean(dest, options)?;
            }
        }
    }
    Err(RestoreError::MovingTarget)
}

async fn newer_manifest(
    requests: &Requests,
    log_id: LogId,
    than: Generation,
) -> Result<Option<Manifest>, RestoreError> {
    let newer = fence::newest_generation(requests, than).await?;
    match newer.filter(|newer| *newer > than) {
        None => Ok(None),
        Some(_) => Ok(Some(fence::newest_manifest(requests, log_id).await?)),
    }
}

/// True if a restore into `dest` began and did not end; its content is then of no use.
#[must_use]
pub fn is_unfinished(dest: &Path) -> bool {
    dest.join(MARKER).exists()
}
