//! The order of a start with a replica: look, decide, claim, decide again on what the claim froze, restore if need be.
//!
//! | crash after | leaves | and the next start |
//! |---|---|---|
//! | our identity is written | an unused identity | adds its own |
//! | the claim | an empty reign | recognises it as its own by the identity, decides by the reign before it, and claims anew |
//! | setting aside | no local log | restores |
//! | a part of the restore | the marker | cleans and restores |
//!
//! Looking comes before claiming so that a mistaken setting does not fence somebody else's server. The claim comes before
//! restoring so that nobody can add to what we restore.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine::clock::{Clock, Entropy};
use engine::log::{AwaySegment, Epoch, Log, LogId, Lsn, OpenError, ReadError, Recovered, SegmentSource};
use engine::storage::Storage;
use sha2::{Digest, Sha256};

use crate::fence::{self, Claim, ClaimError, ClaimOptions, ReplicaError, ReplicaState};
use crate::names::WriterId;
use crate::plan::{self, LocalFacts, Overlap, Refusal, StartDecision};
use crate::restore::{self, CHECKPOINT_DIR, LOG_DIR, OnProgress, RestoreError, RestoreOptions, Restored};
use crate::store::ReplicaStore;
use crate::tier;

/// The file in the data directory that holds the identities under which it has claimed.
pub const WRITERS_FILE: &str = "replica-writers";
/// Where a local log goes that lost against the replica.
pub const SET_ASIDE_DIR: &str = "set-aside";

/// What a start needs.
#[derive(Clone)]
pub struct StartOptions {
    /// The data directory; the log is in `log/` below it.
    pub data_dir: PathBuf,
    /// The disk of the log.
    pub storage: Arc<dyn Storage>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub entropy: Arc<dyn Entropy>,
    /// The longest that one request may take.
    pub request_timeout: Duration,
    /// Names in the data directory that stay when a local log is set aside, such as a lock file or the blobs; everything
    /// else moves, because views of a log that lost are wrong.
    pub keep: Vec<String>,
    /// Where segments are read from that are not on the disk. With it a restore is lazy: it leaves those that need not be read
    /// in the replica.
    pub source: Option<Arc<dyn SegmentSource>>,
    /// Told about a restore's progress.
    pub on_progress: Option<OnProgress>,
}

/// A start that may go on: open the log with [`Started::recovered`] and the claim's epoch, id and floor, then ship.
#[derive(Debug)]
pub struct Started {
    /// What was decided.
    pub decision: StartDecision,
    /// The chain is ours.
    pub claim: Claim,
    /// The local log, locked; start it with `epoch: claim.epoch`, `log_id: Some(claim.log_id)`, `lsn_floor:
    /// claim.lsn_floor`.
    pub recovered: Recovered,
    /// What was restored, if anything was.
    pub restored: Option<Restored>,
    /// Where the local log was put, if it lost.
    pub set_aside: Option<PathBuf>,
}

/// Why a start did not come about.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The local log cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The local log cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The replica cannot be read.
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    /// The chain could not be claimed.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The decision is not to start.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The restore failed.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// Segments are away that this replica never had.
    #[error(
        "segment {segment} is not in the data directory but in a replica, and this replica does not reach that far; \
         one of the two settings points to the wrong place"
    )]
    OtherReplica {
        /// The newest of them.
        segment: Lsn,
    },
    /// The restored log does not end where the claimed chain does.
    #[error("the restored log ends at {restored}, the claimed chain at {claimed}")]
    Incomplete {
        /// The log's end.
        restored: Lsn,
        /// The chain's.
        claimed: Lsn,
    },
    /// The local disk, or the source of randomness, failed.
    #[error("{path}")]
    Local {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

pub(crate) fn local(path: &Path) -> impl FnOnce(io::Error) -> StartError {
    let path = path.to_owned();
    move |source| StartError::Local { path, source }
}

/// Makes the local log and the replica agree and makes us the writer of both.
///
/// # Errors
/// [`StartError`]. Starting again is always safe.
pub async fn begin(store: &Arc<dyn ReplicaStore>, options: &StartOptions) -> Result<Started, StartError> {
    let data_dir = &options.data_dir;
    std::fs::create_dir_all(data_dir).map_err(local(data_dir))?;
    let unfinished = restore::is_unfinished(data_dir);
    // Segments of an unfinished restore are no log.
    let here = if unfinished { None } else { Some(open(options)?) };
    let known = read_writers(data_dir)?;
    let replica = fence::survey(store, options.request_timeout).await?;
    let decision = decide(here.as_ref(), replica.as_ref(), &known)?;
    if let StartDecision::Refuse(refusal) = decision {
        return Err(refusal.into());
    }

    let writer_id = WriterId::random(&*options.entropy).map_err(local(data_dir))?;
    // Those that the next start asks about: see `ReplicaFacts::nobody_since`.
    let asked = replica.iter().flat_map(|replica| {
        let fences = replica.fences().map(|fence| fence.writer_id);
        fences.chain(replica.end.writer)
    });
    let asked: Vec<WriterId> = asked.collect();
    let ours = known.iter().copied().filter(|writer| asked.contains(writer));
    write_writers(data_dir, ours.chain([writer_id]))?;
    let log_id = match (
        replica.as_ref().map(|r| r.log_id),
        here.as_ref().and_then(Recovered::log_id),
    ) {
        (Some(id), _) | (None, Some(id)) => id,
        (None, None) => LogId::random(&*options.entropy).map_err(local(data_dir))?,
    };
    let facts = here.as_ref().and_then(facts);
    let claim_options = ClaimOptions {
        log_id,
        writer_id,
        above_epoch: facts.map_or(Epoch::ZERO, |facts| facts.last_epoch),
        lsn_floor: Lsn::ZERO,
        clock: options.clock.clone(),
        request_timeout: options.request_timeout,
    };
    let claim = fence::claim(store, &claim_options).await?;

    // The old writer may have shipped more, or somebody else claimed, since we looked.
    let frozen = (replica.is_some() || !claim.before.is_untouched()).then_some(&claim);
    let decision = match frozen {
        None => decision,
        Some(claim) => {
            let mut state = claim.replica.clone();
            state.end = claim.before;
            state.chain.retain(|chunk| chunk.ordinal < claim.ordinal);
            decide(here.as_ref(), Some(&state), &known)?
        }
    };
    match decision {
        StartDecision::Refuse(refusal) => Err(refusal.into()),
        StartDecision::Fresh | StartDecision::ContinueLocal { .. } => {
            let recovered = match here {
                Some(recovered) => recovered,
                None => open(options)?,
            };
            Ok(Started {
                decision,
                claim,
                recovered,
                restored: None,
                set_aside: None,
            })
        }
        StartDecision::RestoreReplica { set_aside_local } => {
            drop(here);
            let set_aside = if set_aside_local {
                Some(set_aside(options)?)
            } else {
                None
            };
            if let Some(to) = &set_aside {
                tracing::error!(
                    "the local log differs from the replica, which wins; the local one was set aside in {}",
                    to.display()
                );
            }
            let restore_options = RestoreOptions {
                storage: options.storage.clone(),
                request_timeout: options.request_timeout,
                with_checkpoint: true,
                lazy: options.source.is_some(),
                on_progress: options.on_progress.clone(),
                // The chain is ours: no writer is left that could go on deleting.
                announce: None,
            };
            let restored = Box::pin(restore::restore(store, data_dir, &restore_options)).await?;
            if restored.last_lsn != claim.before.last_lsn {
                return Err(StartError::Incomplete {
                    restored: restored.last_lsn,
                    claimed: claim.before.last_lsn,
                });
            }
            let recovered = open(options)?;
            Ok(Started {
                decision,
                claim,
                recovered,
                restored: Some(restored),
                set_aside,
            })
        }
    }
}

pub(crate) fn open(options: &StartOptions) -> Result<Recovered, OpenError> {
    let recovered = Log::recover(options.storage.clone(), &options.data_dir.join(LOG_DIR))?;
    if let Some(source) = &options.source {
        recovered.reader().attach_source(source.clone());
    }
    Ok(recovered)
}

fn facts(recovered: &Recovered) -> Option<LocalFacts> {
    Some(LocalFacts {
        log_id: recovered.log_id()?,
        last_lsn: recovered.last_lsn(),
        last_epoch: recovered.last_epoch(),
    })
}

pub(crate) fn decide(
    here: Option<&Recovered>,
    replica: Option<&ReplicaState>,
    known: &[WriterId],
) -> Result<StartDecision, StartError> {
    let newest_away = here.and_then(|here| here.reader().away().pop());
    if let Some(away) = newest_away
        && replica.is_none_or(|replica| replica.end.last_lsn < away.info.last)
    {
        return Err(StartError::OtherReplica {
            segment: away.info.base,
        });
    }
    let overlap = match (here, replica) {
        (Some(here), Some(replica)) => overlap(here, replica)?,
        _ => Overlap::Prefix,
    };
    let facts_here = here.and_then(facts);
    let local_epoch = facts_here.as_ref().map_or(Epoch::ZERO, |here| here.last_epoch);
    let facts_there = replica.map(|replica| replica.facts(known, local_epoch));
    Ok(plan::decide_start(
        facts_here.as_ref(),
        facts_there.as_ref(),
        overlap,
    ))
}

/// Does the local log hold the replica's newest frames? One that has left segments in the replica needs them there, too.
fn overlap(here: &Recovered, replica: &ReplicaState) -> Result<Overlap, ReadError> {
    let is_there = |away: &Arc<AwaySegment>| tier::is_named(&replica.manifest, away);
    if !here.reader().away().iter().all(is_there) {
        // Somebody else has compacted them since.
        return Ok(Overlap::Diverged);
    }
    let same = if here.log_id() != Some(replica.log_id) || here.last_lsn() < replica.end.last_lsn {
        false
    } else if let Some(chunk) = replica.last_data_chunk() {
        let mut tail = here.reader().tail(chunk.prev_lsn);
        let mut digest = Sha256::new();
        loop {
            let frames = match tail.next_batch(chunk.last_lsn, 1 << 20) {
                Ok(frames) => frames,
                Err(ReadError::Trimmed { .. }) => return Ok(Overlap::Diverged),
                // A chain that does not pass through the chunk's start looks like damage to the reader.
                Err(ReadError::Corrupt { .. }) if tail.position() == chunk.prev_lsn => {
                    return Ok(Overlap::Diverged);
                }
                Err(error) => return Err(error),
            };
            if frames.is_empty() {
                break;
            }
            for frame in &frames {
                digest.update(frame.bytes());
            }
        }
        <[u8; 32]>::from(digest.finalize()) == chunk.raw_sha256
    } else if let Some(newest) = replica.manifest.segments.last() {
        // Of what was compacted here or there, only the end is the same. A compacted base is below every other.
        let segments = here.segments();
        let there = segments
            .first()
            .is_some_and(|first| newest.base < first.base.get());
        let is_it = |segment: &engine::log::SegmentInfo| {
            let whole = (segment.base.get(), segment.prev.get()) == (newest.base, newest.prev);
            segment.last.get() == newest.last && (whole || segment.compaction > 0 || there)
        };
        segments.iter().any(is_it)
    } else {
        true
    };
    Ok(if same { Overlap::Prefix } else { Overlap::Diverged })
}

/// Moves everything but what is to be kept. The log goes last: while it is there, a crash means to do it again.
pub(crate) fn set_aside(options: &StartOptions) -> Result<PathBuf, StartError> {
    let data_dir = &options.data_dir;
    let to = data_dir
        .join(SET_ASIDE_DIR)
        .join(options.clock.now_micros().to_string());
    std::fs::create_dir_all(&to).map_err(local(&to))?;
    let stays =
        |name: &str| name == SET_ASIDE_DIR || name == WRITERS_FILE || options.keep.iter().any(|k| k == name);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(data_dir).map_err(local(data_dir))? {
        let name = entry.map_err(local(data_dir))?.file_name();
        if name != LOG_DIR && !name.to_str().is_some_and(stays) {
            names.push(name);
        }
    }
    names.sort_by_key(|name| name == CHECKPOINT_DIR);
    names.push(LOG_DIR.into());
    for name in names {
        let from = data_dir.join(&name);
        std::fs::rename(&from, to.join(&name)).map_err(local(&from))?;
    }
    for dir in [to.as_path(), data_dir] {
        std::fs::File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(local(dir))?;
    }
    Ok(to)
}

pub(crate) fn read_writers(data_dir: &Path) -> Result<Vec<WriterId>, StartError> {
    let path = data_dir.join(WRITERS_FILE);
    match std::fs::read_to_string(&path) {
        // A line that is no identity knows nobody, which is the safe side.
        Ok(text) => Ok(text.lines().filter_map(WriterId::from_hex).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(local(&path)(error)),
    }
}

pub(crate) fn write_writers(
    data_dir: &Path,
    writers: impl Iterator<Item = WriterId>,
) -> Result<(), StartError> {
    use std::io::Write;
    let path = data_dir.join(WRITERS_FILE);
    let text: String = writers.map(|writer| format!("{writer}\n")).collect();
    let mut temp = tempfile::NamedTempFile::new_in(data_dir).map_err(local(data_dir))?;
    temp.write_all(text.as_bytes())
        .and_then(|()| temp.as_file().sync_all())
        .map_err(local(&path))?;
    temp.persist(&path).map_err(|error| local(&path)(error.error))?;
    std::fs::File::open(data_dir)
        .and_then(|dir| dir.sync_all())
        .map_err(local(data_dir))
}
