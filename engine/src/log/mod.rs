//! The append-only log: bytes in, bytes out. What entries mean is not known here.
//!
//! - A [`Draft`] becomes a [`Frame`]; a group of drafts becomes consecutive frames, all of them or none.
//! - [`Log::append`] takes groups in order; a thread writes and syncs whatever has gathered (group commit).
//! - [`Watermark`]s tell how far the log is written and how far it would survive a crash.
//! - [`TailReader`]s follow behind, from memory or from the segment files.
//! - [`Log::recover`] looks at a directory, [`Recovered::start`] opens it for a new writer.
//!
//! Opening is in two steps because the new writer's epoch depends on what is found. After a crash the log holds every
//! group that `local` had reached, and of later ones a prefix; never half a group. `engine/FORMAT.md` draws every byte.

mod append;
mod blocks;
mod compaction;
mod draft;
mod follow;
mod frame;
mod install;
mod journal;
mod lsn;
pub mod mmap;
mod reader;
mod recovery;
mod resident;
mod ring;
mod segment;
mod set;
#[cfg(test)]
pub(crate) mod sim;
#[cfg(test)]
mod tests;
mod tier;
mod watermark;
mod writer;

pub use append::GroupLsns;
pub use blocks::BlockReader;
pub use compaction::{CompactionError, compaction_of};
pub(crate) use compaction::{CompactionWriter, WrittenCompaction};
pub use draft::{Draft, Place, Stamp};
pub use follow::{FOLLOWING_MARKER, FeedError, PromoteError};
pub use frame::{
    FRAME_HEADER_BYTES, Flags, Frame, FrameError, FrameHeader, FramePart, FrameRef, MAX_FRAME_BYTES,
    MAX_GROUP_BYTES, PublicFrame, frames_in,
};
pub use install::{InstallError, SealedUpload, SegmentInstaller};
pub use journal::live_segments;
pub use lsn::{Epoch, Location, LogId, LogIdError, Lsn, LsnOutOfRange};
pub use reader::{LogReader, ReadError, TailReader};
pub use recovery::{Cut, Damage, OpenError, verify_segment};
pub use resident::SealedSegment;
pub use segment::{
    COMPACTED_VERSION, INDEX_EVERY_BYTES, SEGMENT_HEADER_BYTES, SEGMENT_TRAILER_BYTES, SEGMENT_VERSION,
    SegmentFooter, SegmentHeader, SegmentHeaderError, SegmentInfo, segment_file_name,
};
pub use set::PendingCompaction;
pub use tier::{
    AWAY_NAME, AwaySegment, Hydrated, LEAST_PART_BYTES, PIECE_BYTES, SegmentSource, SourceError, TierUse,
    away_segments,
};
pub use watermark::{Failed, Wait, Watermark};

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::clock::{Clock, SystemEntropy};
use crate::storage::Storage;
use append::{LogCore, Origin, seal_file};
use recovery::{Findings, Repair, io_error};
use ring::Ring;
use writer::{Queue, Reply, Shared};

/// A clock may be this far behind the newest entry; then LSNs simply count on until it has caught up.
const CLOCK_TOLERANCE_MICROS: u64 = 24 * 3_600 * 1_000_000;

/// How a log is opened.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// A segment that would grow beyond this many bytes is sealed first. One group may be bigger.
    pub segment_bytes: u64,
    /// Bytes of zeros that are kept written behind the last frame, so that a sync has no metadata to bring out. Not more than
    /// fits a segment; zero for none.
    pub ahead_bytes: u64,
    /// Bytes of groups that may wait to be written; more are refused as [`AppendError::Busy`].
    pub queue_bytes: usize,
    /// How many groups may wait to be written.
    pub queue_count: usize,
    /// Bytes of recent frames that are kept in memory for those who follow the log.
    pub ring_bytes: usize,
    /// Bytes of mapped segments that may count to the resident size; beyond them pages are given back to the kernel's cache.
    pub mapped_bytes: u64,
    /// The new writer's reign: above every epoch found in the log.
    pub epoch: Epoch,
    /// Which log this must be. `None` takes what is found, or begins a new one.
    pub log_id: Option<LogId>,
    /// No LSN at or below this is given out: the greatest that anybody has seen, the replica included.
    pub lsn_floor: Lsn,
}

impl Default for LogConfig {
    fn default() -> LogConfig {
        LogConfig {
            segment_bytes: 64 << 20,
            ahead_bytes: 2 << 20,
            queue_bytes: 32 << 20,
            queue_count: 16_384,
            ring_bytes: 32 << 20,
            mapped_bytes: 32 << 20,
            epoch: Epoch(1),
            log_id: None,
            lsn_floor: Lsn::ZERO,
        }
    }
}

/// Why a group was not appended, or may not have been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Too much is waiting already; try again shortly.
    #[error("the log's queue is full")]
    Busy,
    /// The group, or a frame of it, is over the bounds of the format. It never fits.
    #[error("{bytes} bytes are too many for one {what} (at most {max})")]
    TooLarge {
        /// A frame or a group.
        what: &'static str,
        /// How many there are.
        bytes: usize,
        /// How many there may be.
        max: usize,
    },
    /// The group is empty, or a stamp lies outside its draft's public part: the caller's mistake.
    #[error("not a group: {what}")]
    Invalid {
        /// What is wrong with it.
        what: &'static str,
    },
    /// A write, a sync or something that depends on the log failed. Whether this group survives a restart is unknown;
    /// nothing more is accepted until the log is opened again.
    #[error("{reason}")]
    Poisoned {
        /// What happened, for an operator.
        reason: Arc<str>,
    },
    /// The log follows another writer's and takes nobody else's groups.
    #[error("the log follows another writer")]
    Following,
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
}

type Outcome<T> = Result<T, AppendError>;

/// A group on its way into the log. Resolves when it is written and readers see it; it is durable only when
/// [`Log::local`] reaches [`GroupLsns::last`]. Dropping it does not take the group back.
#[derive(Debug)]
#[must_use = "whether the group was written is known only here"]
pub struct Pending(oneshot::Receiver<Outcome<GroupLsns>>);

impl Pending {
    /// For threads: blocks until the group is written.
    ///
    /// # Errors
    /// As the future.
    ///
    /// # Panics
    /// Within an asynchronous task, which must await instead.
    pub fn wait_blocking(self) -> Result<GroupLsns, AppendError> {
        self.0.blocking_recv().unwrap_or(Err(AppendError::Closed))
    }
}

impl Future for Pending {
    type Output = Result<GroupLsns, AppendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(cx)
            .map(|outcome| outcome.unwrap_or(Err(AppendError::Closed)))
    }
}

/// A log directory that was looked at and is locked, but not yet changed.
#[derive(Debug)]
pub struct Recovered {
    findings: Findings,
}

impl Recovered {
    /// Which log it is; `None` if there are no segments.
    #[must_use]
    pub fn log_id(&self) -> Option<LogId> {
        self.findings.log_id
    }

    /// LSN of the last whole group's last frame.
    #[must_use]
    pub fn last_lsn(&self) -> Lsn {
        self.findings.last_lsn
    }

    /// Epoch of the newest segment.
    #[must_use]
    pub fn last_epoch(&self) -> Epoch {
        self.findings.last_epoch
    }

    /// All segments with a header, ascending.
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentInfo> {
        self.findings.set.infos()
    }

    /// What is not part of the log because nothing vouched for it; a start removes it.
    #[must_use]
    pub fn cut(&self) -> Option<&Cut> {
        self.findings.cut.as_ref()
    }

    /// Reads what is there.
    #[must_use]
    pub fn reader(&self) -> LogReader {
        LogReader {
            set: Arc::clone(&self.findings.set),
            ring: Arc::new(Ring::new(0)),
            appended: Watermark::at(self.findings.last_lsn),
        }
    }

    /// Removes what a compaction left that did not come to count, so that another can begin without a start.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn disown(&mut self) -> Result<(), OpenError> {
        disown(&self.findings.set, self.findings.disowned.take())
    }

    /// Starts a new writer: removes what recovery cut, seals what the last one left open, and takes appends.
    ///
    /// # Errors
    /// [`OpenError::ForeignLog`], [`OpenError::StaleEpoch`], [`OpenError::ClockBehind`], or the disk's. Nothing that
    /// belongs to the log is lost by an error: the directory can be looked at again.
    pub fn start(self, clock: Arc<dyn Clock>, config: &LogConfig) -> Result<Log, OpenError> {
        self.run(clock, config, Role::Writer)
    }

    /// Opens the log to follow another writer: what recovery cut is removed, the newest segment stays open, and the log grows
    /// by [`Log::feed`] until [`Log::promote`]. `config.epoch` is not used.
    ///
    /// # Errors
    /// [`OpenError::ForeignLog`], or the disk's.
    pub fn follow(self, clock: Arc<dyn Clock>, config: &LogConfig) -> Result<Log, OpenError> {
        self.run(clock, config, Role::Follower)
    }

    fn run(self, clock: Arc<dyn Clock>, config: &LogConfig, role: Role) -> Result<Log, OpenError> {
        let (core, lock, reader) = self.into_core_as(clock, config, role)?;
        let shared = Arc::new(Shared {
            following: AtomicBool::new(role == Role::Follower),
            queue: Queue::new(config.queue_bytes, config.queue_count),
            local: Watermark::at(reader.appended.get()),
            reader,
            _lock: lock,
        });
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || writer::run(&for_thread, core))
            .map_err(io_error("starting the log's writer"))?;
        Ok(Log {
            inner: Arc::new(Inner {
                shared,
                thread: Mutex::new(Some(thread)),
            }),
        })
    }

    #[cfg(test)]
    fn into_core(
        self,
        clock: Arc<dyn Clock>,
        config: &LogConfig,
    ) -> Result<(LogCore, Box<dyn crate::storage::StorageLock>, LogReader), OpenError> {
        self.into_core_as(clock, config, Role::Writer)
    }

    fn into_core_as(
        self,
        clock: Arc<dyn Clock>,
        config: &LogConfig,
        role: Role,
    ) -> Result<(LogCore, Box<dyn crate::storage::StorageLock>, LogReader), OpenError> {
        let reader = LogReader {
            ring: Arc::new(Ring::new(config.ring_bytes)),
            ..self.reader()
        };
        let Findings {
            lock,
            set,
            log_id: found,
            last_lsn,
            last_epoch,
            repair,
            leftovers,
            disowned,
            ..
        } = self.findings;
        let log_id = match (found, config.log_id) {
            (Some(found), Some(expected)) if found != expected => {
                return Err(OpenError::ForeignLog {
                    dir: set.dir.display().to_string(),
                    found,
                    expected,
                });
            }
            (Some(found), _) => found,
            (None, Some(expected)) => expected,
            (None, None) => LogId::random(&SystemEntropy).map_err(io_error("choosing the log's id"))?,
        };
        if role == Role::Writer && config.epoch <= last_epoch {
            return Err(OpenError::StaleEpoch {
                asked: config.epoch,
                found: last_epoch,
            });
        }
        let spent = last_lsn.max(config.lsn_floor);
        let now = clock.now_micros();
        if role == Role::Writer && now.saturating_add(CLOCK_TOLERANCE_MICROS) < spent.get() {
            return Err(OpenError::ClockBehind { now, floor: spent });
        }
        set.residence.set_bound(config.mapped_bytes);
        disown(&set, disowned)?;
        let (repair, resumed) = match (role, repair) {
            (Role::Follower, Repair::Seal { entry, file, tally }) if tally.frames > 0 => {
                let what = format!("cutting segment {}", entry.header.base);
                file.set_len(tally.end).map_err(io_error(what.clone()))?;
                file.sync_data().map_err(io_error(what))?;
                (Repair::Nothing, Some((entry, file, tally)))
            }
            (_, repair) => (repair, None),
        };
        mend(&set, repair, &leftovers)?;
        let origin = Origin {
            log_id,
            epoch: match role {
                Role::Writer => config.epoch,
                Role::Follower => last_epoch,
            },
            last: last_lsn,
            spent,
            segment_bytes: config.segment_bytes,
            ahead_bytes: config.ahead_bytes,
        };
        let mut core = LogCore::new(set, clock, origin);
        if let Some((entry, file, tally)) = resumed {
            core.resume(entry, file, *tally);
        }
        Ok((core, lock, reader))
    }
}

/// Whose frames a log takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Those that are appended here.
    Writer,
    /// Another writer's.
    Follower,
}

/// Removes what a compaction left that did not come to count.
fn disown(set: &set::SegmentSet, disowned: Option<Vec<String>>) -> Result<(), OpenError> {
    let Some(names) = disowned else { return Ok(()) };
    journal::remove_then_journal(set.storage.as_ref(), &set.dir, &names)
        .map_err(io_error("removing what an unfinished compaction wrote"))
}

/// Does on disk what recovery decided.
fn mend(set: &set::SegmentSet, repair: Repair, leftovers: &[String]) -> Result<(), OpenError> {
    let dir = &set.dir;
    for name in leftovers {
        set.storage
            .remove(&dir.join(name))
            .map_err(io_error(format!("removing {name}")))?;
    }
    match repair {
        Repair::Nothing if leftovers.is_empty() => return Ok(()),
        Repair::Nothing => {}
        Repair::Remove { base } => {
            let path = set.path(base);
            set.storage
                .remove(&path)
                .map_err(io_error(format!("removing {}", path.display())))?;
        }
        Repair::Seal { entry, tally, .. } if tally.frames == 0 => {
            let path = set.path(entry.header.base);
            set.storage
                .remove(&path)
                .map_err(io_error(format!("removing {}", path.display())))?;
            set.pop();
        }
        Repair::Seal { entry, file, tally } => {
            let what = format!("sealing segment {}", entry.header.base);
            let sealed = (|| {
                // The cut is durable before anything is written behind it, or old bytes could stand behind new ones.
                file.set_len(tally.end)?;
                file.sync_data()?;
                seal_file(&entry.header, file.as_ref(), &tally)
            })();
            entry.seal(sealed.map_err(io_error(what))?);
        }
    }
    set.storage
        .sync_dir(dir)
        .map_err(io_error(format!("syncing {}", dir.display())))
}

/// An open log. Cheap to clone; the last clone to go closes it.
#[derive(Clone, Debug)]
pub struct Log {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Inner {
    fn stop(&self) {
        self.shared.queue.close();
        if let Some(thread) = self.thread.lock().take() {
            // A panic has poisoned the log already.
            let _ = thread.join();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Log {
    /// Looks at the log in `dir` (made if missing) and locks it; changes nothing else on disk.
    ///
    /// # Errors
    /// [`OpenError`]: locked, foreign, of a later version, damaged, or the disk failed.
    pub fn recover(storage: Arc<dyn Storage>, dir: &Path) -> Result<Recovered, OpenError> {
        Ok(Recovered {
            findings: recovery::find(storage, dir)?,
        })
    }

    /// [`Log::recover`] and [`Recovered::start`] in one, for those who know the epoch.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        storage: Arc<dyn Storage>,
        clock: Arc<dyn Clock>,
        dir: &Path,
        config: &LogConfig,
    ) -> Result<(Log, Option<Cut>), OpenError> {
        let recovered = Log::recover(storage, dir)?;
        let cut = recovered.cut().cloned();
        Ok((recovered.start(clock, config)?, cut))
    }

    /// Queues a group: all its drafts become consecutive frames, or none does. Groups get their places in the order of
    /// the calls. Never blocks.
    ///
    /// # Errors
    /// [`AppendError`]; [`AppendError::Busy`] is the only one that is worth another try.
    pub fn append(&self, group: Vec<Draft>) -> Result<Pending, AppendError> {
        let (reply, receiver) = oneshot::channel();
        // Whoever has stopped waiting is not told.
        self.append_then(group, move |outcome| drop(reply.send(outcome)))?;
        Ok(Pending(receiver))
    }

    /// As [`Log::append`], but calls `written` instead of waking a task: once, on the writer's thread, so it must be quick and
    /// must not call back into the log. It is not called after an error.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub fn append_then(
        &self,
        group: Vec<Draft>,
        written: impl FnOnce(Result<GroupLsns, AppendError>) + Send + 'static,
    ) -> Result<(), AppendError> {
        let mut bytes = 0usize;
        for draft in &group {
            let len = draft.frame_len();
            if len > MAX_FRAME_BYTES {
                return Err(AppendError::TooLarge {
                    what: "frame",
                    bytes: len,
                    max: MAX_FRAME_BYTES,
                });
            }
            if !draft.stamps_fit() {
                return Err(AppendError::Invalid {
                    what: "a stamp lies outside the public part",
                });
            }
            bytes = bytes.saturating_add(len);
        }
        if self.is_following() {
            return Err(AppendError::Following);
        }
        if group.is_empty() {
            return Err(AppendError::Invalid { what: "it is empty" });
        }
        if bytes > MAX_GROUP_BYTES {
            return Err(AppendError::TooLarge {
                what: "group",
                bytes,
                max: MAX_GROUP_BYTES,
            });
        }
        self.inner.shared.queue.append(group, bytes, Reply::new(written))
    }

    /// Whether it takes another writer's frames, and no groups.
    #[must_use]
    pub fn is_following(&self) -> bool {
        self.inner.shared.following.load(Ordering::Acquire)
    }

    /// Adds frames of the writer that is followed, whole groups of them as they are in its segments; those that are here
    /// already are passed over. Resolves with the log's last LSN once they survive a crash of this machine.
    ///
    /// # Errors
    /// [`FeedError`]; [`FeedError::Damaged`] and [`FeedError::NotFollowing`] wrote nothing.
    pub async fn feed(&self, raw: bytes::Bytes) -> Result<Lsn, FeedError> {
        let failed = |error: AppendError| FeedError::Failed {
            reason: error.to_string().into(),
        };
        let receiver = self.inner.shared.queue.feed(raw).map_err(failed)?;
        receiver.await.unwrap_or_else(|_| {
            let why = self.inner.shared.queue.poisoned().unwrap_or(AppendError::Closed);
            Err(failed(why))
        })
    }

    /// Makes a follower the writer of its own reign, whose LSNs are above `floor`: the newest segment is sealed, and appends
    /// are taken from now on. Claim the replica and feed everything that it has first.
    ///
    /// # Errors
    /// [`PromoteError`].
    pub async fn promote(&self, epoch: Epoch, floor: Lsn) -> Result<(), PromoteError> {
        let failed = |error: AppendError| PromoteError::Failed {
            reason: error.to_string().into(),
        };
        let receiver = self.inner.shared.queue.promote(epoch, floor).map_err(failed)?;
        receiver.await.unwrap_or_else(|_| {
            let why = self.inner.shared.queue.poisoned().unwrap_or(AppendError::Closed);
            Err(failed(why))
        })
    }

    /// Highest LSN that is written; readers see up to here.
    #[must_use]
    pub fn appended(&self) -> &Watermark {
        &self.inner.shared.reader.appended
    }

    /// Highest LSN that survives a crash of this machine.
    #[must_use]
    pub fn local(&self) -> &Watermark {
        &self.inner.shared.local
    }

    /// For those who only read.
    #[must_use]
    pub fn reader(&self) -> LogReader {
        self.inner.shared.reader.clone()
    }

    /// See [`LogReader::tail`].
    #[must_use]
    pub fn tail(&self, from: Lsn) -> TailReader {
        self.inner.shared.reader.tail(from)
    }

    /// See [`LogReader::read_at`].
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read_at(&self, location: Location) -> Result<bytes::Bytes, ReadError> {
        self.inner.shared.reader.read_at(location)
    }

    /// All segments, ascending; the last may still be open.
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentInfo> {
        self.inner.shared.reader.segments()
    }

    /// Seals the open segment once everything queued before is in it; the next group begins another. Resolves with
    /// what was sealed, or `None` if none was open.
    ///
    /// # Errors
    /// [`AppendError`].
    pub async fn seal_now(&self) -> Result<Option<SegmentInfo>, AppendError> {
        let receiver = self.inner.shared.queue.seal()?;
        receiver.await.unwrap_or(Err(AppendError::Closed))
    }

    /// Stops the log for good because something that depends on it failed: whoever waits gets `reason`.
    pub fn poison(&self, reason: impl Into<Arc<str>>) {
        self.inner.shared.poison(&Failed {
            reason: reason.into(),
        });
    }

    /// Writes and syncs what is queued, accepts nothing more, and waits for the writer to end. The directory's lock is
    /// let go with the last handle. Blocks.
    ///
    /// # Errors
    /// [`AppendError::Poisoned`] if the log had failed.
    pub fn close(&self) -> Result<(), AppendError> {
        self.inner.stop();
        self.inner.shared.queue.poisoned().map_or(Ok(()), Err)
    }
}
