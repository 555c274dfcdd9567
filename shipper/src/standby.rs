//! The start of a server that does not claim: what is here follows the replica's chain, or is replaced by what the replica has.
//!
//! | crash after | leaves | and the next start |
//! |---|---|---|
//! | the marker is written | a log that is worth no more than its replica | follows on, or takes everything anew if the log does not open |
//! | setting aside | no local log | restores |
//! | a part of the restore | the restore's marker | cleans and restores |
//!
//! The marker ([`FOLLOWING_MARKER`]) goes when the log is promoted: see [`promoted`].

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::log::{Epoch, FOLLOWING_MARKER, LogId, LogReader, OpenError, Recovered};

use crate::fence::{self, Claim, ClaimOptions, ReplicaState};
use crate::follow::{FollowError, FollowOptions, Tracker};
use crate::manifest::Manifest;
use crate::names::WriterId;
use crate::plan::StartDecision;
use crate::readers::Announce;
use crate::restore::{self, CHECKPOINT_DIR, LOG_DIR, RestoreOptions, Restored};
use crate::start::{self, StartError, StartOptions};
use crate::store::ReplicaStore;
use crate::tier;

/// Who has the replica's chain, as far as can be told by reading it.
#[derive(Clone, Debug)]
pub enum Holder {
    /// Nobody: it is empty, its last reign ended on purpose, or began in this very data directory.
    Nobody,
    /// A writer that may be at work.
    Another {
        /// Its reign.
        epoch: Epoch,
        /// The log.
        log_id: LogId,
    },
}

/// Reads the replica and tells who has it.
///
/// # Errors
/// [`StartError`].
pub async fn holder(store: &Arc<dyn ReplicaStore>, options: &StartOptions) -> Result<Holder, StartError> {
    let known = start::read_writers(&options.data_dir)?;
    let Some(replica) = fence::survey(store, options.request_timeout).await? else {
        return Ok(Holder::Nobody);
    };
    if replica.end.handed_over || replica.is_held_by(&known) || replica.end.is_untouched() {
        return Ok(Holder::Nobody);
    }
    Ok(Holder::Another {
        epoch: replica.end.epoch,
        log_id: replica.log_id,
    })
}

/// A log that can be opened to follow, and the place in the chain behind it.
pub struct Standby {
    /// Open it with [`Recovered::follow`] and the log id of the tracker's end: while nothing was written it has none of its own.
    pub recovered: Recovered,
    /// Stands behind the log's last frame.
    pub tracker: Tracker,
    /// What was restored, if anything was.
    pub restored: Option<Restored>,
}

/// Why nothing can be followed.
#[derive(Debug, thiserror::Error)]
pub enum StandbyError {
    /// Local log and replica could not be brought together.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The replica cannot be followed.
    #[error(transparent)]
    Follow(#[from] FollowError),
    /// There is nothing to follow.
    #[error("there is no log in the replica {0}; start its writer first")]
    Empty(String),
}

/// Makes the local log a part of the replica's and tells where to go on. Writes nothing to the replica but that it is read, if that takes long.
///
/// # Errors
/// [`StandbyError`]. Starting again is always safe.
pub async fn begin(
    store: &Arc<dyn ReplicaStore>,
    options: &StartOptions,
    temp_dir: &Path,
) -> Result<Standby, StandbyError> {
    let data_dir = &options.data_dir;
    std::fs::create_dir_all(data_dir).map_err(start::local(data_dir))?;
    let Some(replica) = fence::survey(store, options.request_timeout)
        .await
        .map_err(StartError::from)?
    else {
        return Err(StandbyError::Empty(store.describe()));
    };
    let here = local_log(options)?;
    // Entries that only this log has are no part of what is followed, whoever wrote them.
    let decision = start::decide(here.as_ref(), Some(&replica), &[])?;
    let ahead = |here: &Recovered| here.last_lsn() > replica.end.last_lsn;
    let (recovered, restored) = match (decision, here) {
        (StartDecision::Refuse(refusal), _) => return Err(StartError::from(refusal).into()),
        (StartDecision::Fresh | StartDecision::ContinueLocal { .. }, Some(here)) if !ahead(&here) => {
            mark(data_dir)?;
            (here, None)
        }
        (_, here) => {
            let restored = replace(store, options, here, &replica).await?;
            mark(data_dir)?;
            (start::open(options).map_err(StartError::from)?, Some(restored))
        }
    };
    let follow = FollowOptions {
        request_timeout: options.request_timeout,
        temp_dir: temp_dir.to_owned(),
    };
    let tracker = Tracker::begin(store, follow.clone(), replica.log_id, recovered.last_lsn()).await;
    // A log that goes on uncompacted would bring back what the replica has got rid of.
    let outdated = match &tracker {
        Ok(tracker) => tracker.compaction() > compaction(&recovered),
        Err(error) => matches!(error, FollowError::Compacted { .. }),
    };
    if !outdated || restored.is_some() {
        return Ok(Standby {
            recovered,
            tracker: tracker?,
            restored,
        });
    }
    let restored = replace(store, options, Some(recovered), &replica).await?;
    mark(data_dir)?;
    let recovered = start::open(options).map_err(StartError::from)?;
    let tracker = Tracker::begin(store, follow, replica.log_id, recovered.last_lsn()).await?;
    Ok(Standby {
        recovered,
        tracker,
        restored: Some(restored),
    })
}

fn compaction(here: &Recovered) -> u32 {
    here.segments().first().map_or(0, |segment| segment.compaction)
}

/// Tells a log that follows what its replica has by `manifest`, the newest that is known: that may be evicted. True if the log should
/// be taken from the replica anew: what it has, or has left there, was compacted by the writer. It is still right, but what is away may
/// be gone, and as a writer's log it would bring back what the replica has got rid of.
#[must_use]
pub fn follow_manifest(log: &LogReader, manifest: &Manifest) -> bool {
    log.in_replica(tier::named(manifest));
    let compacted = manifest.segments.first().map_or(0, |first| first.compaction) > log.compaction();
    compacted || !log.away().iter().all(|away| tier::is_named(manifest, away))
}

/// Claims the chain for the log that follows, under an identity that this directory remembers. Feed what the tracker finds up to
/// [`Claim::before`](crate::fence::Claim::before), then promote the log, then call [`promoted`].
///
/// # Errors
/// [`StartError`]. Claiming again is always safe.
pub async fn claim(
    store: &Arc<dyn ReplicaStore>,
    options: &StartOptions,
    tracker: &Tracker,
) -> Result<Claim, StartError> {
    let data_dir = &options.data_dir;
    let writer_id = WriterId::random(&*options.entropy).map_err(start::local(data_dir))?;
    // A reign of before is not ours any more: this log has been another's since.
    start::write_writers(data_dir, std::iter::once(writer_id))?;
    let end = tracker.end();
    let claim_options = ClaimOptions {
        log_id: end.log_id,
        writer_id,
        above_epoch: end.epoch,
        lsn_floor: tracker.have(),
        clock: options.clock.clone(),
        request_timeout: options.request_timeout,
    };
    Ok(fence::claim(store, &claim_options).await?)
}

/// The local log, if it is worth anything: one that was following and does not open is not.
fn local_log(options: &StartOptions) -> Result<Option<Recovered>, StartError> {
    let data_dir = &options.data_dir;
    if restore::is_unfinished(data_dir) {
        return Ok(None);
    }
    match start::open(options) {
        Err(OpenError::Damaged {
            segment,
            offset,
            what,
        }) if data_dir.join(FOLLOWING_MARKER).exists() => {
            tracing::warn!(
                segment = %segment.hex(), offset, what,
                "the log that followed the replica was torn by a crash and is taken from the replica again"
            );
            discard(data_dir)?;
            Ok(None)
        }
        other => Ok(other.map(|here| here.log_id().is_some().then_some(here))?),
    }
}

/// Puts what the replica has into the place of what is here. A log that was only following is removed, any other is set aside.
async fn replace(
    store: &Arc<dyn ReplicaStore>,
    options: &StartOptions,
    here: Option<Recovered>,
    replica: &ReplicaState,
) -> Result<Restored, StandbyError> {
    let data_dir = &options.data_dir;
    if let Some(here) = here {
        let has_frames = here.last_lsn() > engine::log::Lsn::ZERO;
        drop(here);
        if data_dir.join(FOLLOWING_MARKER).exists() {
            discard(data_dir)?;
        } else if has_frames {
            let to = start::set_aside(options)?;
            tracing::error!(
                "the local log differs from the replica, which is followed; the local one was set aside in {}",
                to.display()
            );
        }
    }
    let restore_options = RestoreOptions {
        storage: options.storage.clone(),
        request_timeout: options.request_timeout.max(Duration::from_secs(1)),
        with_checkpoint: true,
        lazy: options.source.is_some(),
        on_progress: options.on_progress.clone(),
        announce: Some(Announce::new(options.clock.clone())),
    };
    let restored = Box::pin(restore::restore(store, data_dir, &restore_options)).await;
    let restored = restored.map_err(StartError::from)?;
    tracing::info!(
        log = %replica.log_id,
        last = restored.last_lsn.get(),
        timings = ?restored.timings,
        "taken from the replica, to follow it"
    );
    Ok(restored)
}

/// Removes log, views and checkpoints of a follower. The marker goes last: while it is there, a crash means to do it again.
fn discard(data_dir: &Path) -> Result<(), StartError> {
    let gone = |result: io::Result<()>, path: &Path| match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(start::local(path)(error)),
        _ => Ok(()),
    };
    for name in [LOG_DIR, CHECKPOINT_DIR] {
        let path = data_dir.join(name);
        gone(std::fs::remove_dir_all(&path), &path)?;
    }
    for entry in std::fs::read_dir(data_dir).map_err(start::local(data_dir))? {
        let path = entry.map_err(start::local(data_dir))?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if name.starts_with("index.redb") || name.starts_with("account.sqlite") {
            gone(std::fs::remove_file(&path), &path)?;
        }
    }
    sync(data_dir)?;
    promoted(data_dir)
}

/// Notes durably that the log here follows.
fn mark(data_dir: &Path) -> Result<(), StartError> {
    let path = data_dir.join(FOLLOWING_MARKER);
    let made = std::fs::File::create(&path).and_then(|file| file.sync_all());
    made.map_err(start::local(&path))?;
    sync(data_dir)
}

/// Notes durably that the log here follows no more. Call it once it is promoted.
///
/// # Errors
/// The local disk's.
pub fn promoted(data_dir: &Path) -> Result<(), StartError> {
    let path = data_dir.join(FOLLOWING_MARKER);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(start::local(&path)(error)),
        _ => {}
    }
    sync(data_dir)
}

fn sync(data_dir: &Path) -> Result<(), StartError> {
    std::fs::File::open(data_dir)
        .and_then(|dir| dir.sync_all())
        .map_err(start::local(data_dir))
}
