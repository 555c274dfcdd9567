//! The engine: the log, its views and their watermarks behind one cheap handle.
//!
//! A start has steps, so that whoever ships the log can decide in between:
//!
//! 1. [`EnginePrelude::recover`] looks at the directory and locks it: which log it is, how far it goes, its last epoch.
//! 2. The shipper claims an epoch, ships what the replica lacks, or has the directory replaced.
//! 3. [`EnginePrelude::start`] opens the log for the new epoch, opens the views or rebuilds them (from a checkpoint, or
//!    from the whole log), replays, and starts the [driver](crate::views::driver).
//!
//! Then [`Engine::append`] takes groups of entries, and their [`Receipt`]s resolve when they are durable at the
//! configured level *and* applied to the views (I1). Directory: `log/*.seg`, `index.redb`, `account.sqlite`, `ckpt/<lsn>/`.
//!
//! | crash leaves                                   | the start                                                     |
//! |------------------------------------------------|---------------------------------------------------------------|
//! | views behind the log                           | replays the difference                                        |
//! | a view ahead of the log, damaged, or missing   | throws it away; newest checkpoint, then replay (I4)           |
//! | entries above what the replica has             | keeps them unapplied until the shipper has shipped them       |

mod compact;
mod erase;
mod error;
mod follow;
pub(crate) mod open;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

pub use compact::Removal;
pub use erase::{EraseError, Erased};
pub use error::{AppendError, EngineError, WriteError};
pub use follow::PromotionError;
pub(crate) use open::{Bounds, CHECKPOINTS_DIR, LOG_DIR, open_views};
pub use open::{EnginePrelude, StartOptions};

use crate::entry::EntryDraft;
use crate::log::{
    Epoch, Failed, GroupLsns, Location, Log, LogConfig, LogId, LogReader, Lsn, Pending, ReadError,
    SegmentInfo, TailReader, Watermark,
};
use crate::repo::Did;
use crate::views::accounts::{Accounts, AccountsOptions};
use crate::views::checkpoint::{Checkpoint, CheckpointError, Checkpoints, ViewSnapshot};
use crate::views::driver::{DriverConfig, DriverError, DriverHandle};
use crate::views::index::{IndexError, IndexReader, IndexSource, Rebuilt};

/// When a write is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When it survives a crash of this machine.
    Local,
    /// When the replica store has it.
    Remote,
}

/// How an engine is opened.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Where everything is.
    pub dir: PathBuf,
    /// When a write is answered. [`Durability::Remote`] needs a replica.
    pub durability: Durability,
    /// The log's bounds. `epoch`, `log_id` and `lsn_floor` come from [`StartOptions`].
    pub log: LogConfig,
    /// Memory for pages of the index, bytes.
    pub index_cache_bytes: usize,
    /// Bytes of log that may be written and not yet applied and, where there is a replica, shipped: beyond them, appends are
    /// refused as [`AppendError::Busy`].
    pub backlog_bytes_max: u64,
    /// How many local checkpoints are kept.
    pub checkpoints_kept: usize,
    /// How the views are batched.
    pub driver: DriverConfig,
    /// Bounds of the account database.
    pub accounts: AccountsOptions,
}

impl EngineConfig {
    /// Everything in `dir`, with default bounds.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, durability: Durability) -> EngineConfig {
        EngineConfig {
            dir: dir.into(),
            durability,
            log: LogConfig::default(),
            index_cache_bytes: 64 << 20,
            backlog_bytes_max: 256 << 20,
            checkpoints_kept: 2,
            driver: DriverConfig::default(),
            accounts: AccountsOptions::default(),
        }
    }
}

/// What an engine is doing, for health checks and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Which log.
    pub log_id: LogId,
    /// This writer's reign.
    pub epoch: Epoch,
    /// Written.
    pub appended: Lsn,
    /// Survives a crash of this machine.
    pub local: Lsn,
    /// In the replica store; `None` without one.
    pub remote: Option<Lsn>,
    /// In the views.
    pub applied: Lsn,
    /// What the firehose may show.
    pub visible: Lsn,
    /// Bytes of log that are not in the views yet, or not in the replica store.
    pub backlog_bytes: u64,
    /// Why the engine takes no writes any more, if it does not.
    pub failed: Option<Arc<str>>,
    /// Who has taken over, if somebody has.
    pub fenced: Option<Epoch>,
}

/// How to shut down.
#[derive(Clone, Copy, Debug)]
pub struct Shutdown {
    /// How long to wait until what was appended is applied. Without a replica that takes no time; with one, the shipper
    /// must still be running.
    pub drain: Duration,
    /// Whether to take a checkpoint, so that the next start replays nothing.
    pub checkpoint: bool,
}

/// The handle. Cheap to clone. Dropping the last one without [`Engine::shutdown`] is a crash that loses no entry.
#[derive(Clone, Debug)]
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    log: Log,
    log_id: LogId,
    /// Of the writer that is followed, or its own.
    epoch: AtomicU64,
    index: IndexSource,
    accounts: Accounts,
    applied: Watermark,
    remote: Option<Watermark>,
    visible: Watermark,
    backlog: Arc<AtomicU64>,
    backlog_max: u64,
    fenced: Fence,
    driver: Mutex<Option<Arc<DriverHandle>>>,
    checkpoints: Checkpoints,
    checkpoints_kept: usize,
    /// One checkpoint at a time.
    checkpointing: tokio::sync::Mutex<()>,
    dir: PathBuf,
    index_cache_bytes: usize,
    /// One compaction at a time.
    compacting: tokio::sync::Mutex<()>,
    /// What the last compaction replaced and has not removed.
    replaced: Mutex<Option<compact::Replaced>>,
    /// When the account database's write-ahead file was emptied last: what was applied then.
    accounts_erased: AtomicU64,
    /// The log's end at the start, schema steps that it had to append included.
    ready_at: AtomicU64,
}

/// A group that was accepted. Resolves through [`Receipt::durable`]; dropping it does not take the group back.
#[derive(Debug)]
#[must_use = "whether the group is durable is known only here"]
pub struct Receipt {
    pending: Pending,
    engine: Arc<Inner>,
}

impl Receipt {
    /// Waits until the group is durable at the configured level and applied to the views.
    ///
    /// # Errors
    /// [`WriteError`]: nothing is known about the group then.
    pub async fn durable(self) -> Result<GroupLsns, WriteError> {
        let Receipt { pending, engine } = self;
        let lsns = pending.await.map_err(|error| engine.fenced.not_written(error))?;
        engine.wait_applied(lsns.last).await?;
        Ok(lsns)
    }
}

/// Who has taken over, if somebody has. What outlives the engine may hold it.
#[derive(Clone, Debug, Default)]
struct Fence {
    by: Arc<OnceLock<Epoch>>,
}

impl Fence {
    /// `otherwise`, unless the reason is that another writer has taken over.
    fn doubt(&self, otherwise: WriteError) -> WriteError {
        self.by
            .get()
            .map_or(otherwise, |by| WriteError::Fenced { by: *by })
    }

    fn not_written(&self, error: crate::log::AppendError) -> WriteError {
        self.doubt(match AppendError::from(error) {
            AppendError::Closed => WriteError::Closed,
            AppendError::Poisoned { reason } => WriteError::OutcomeUnknown { reason },
            error => WriteError::OutcomeUnknown {
                reason: error.to_string().into(),
            },
        })
    }
}

impl Inner {
    async fn wait_applied(&self, lsn: Lsn) -> Result<(), WriteError> {
        let failed = |Failed { reason }| self.fenced.doubt(WriteError::OutcomeUnknown { reason });
        self.applied.wait(lsn).await.map(|_| ()).map_err(failed)
    }
}

impl Engine {
    /// Queues a group of entries: all of them become part of the log, next to each other, or none does. Groups get
    /// their places in the order of the calls. Never blocks.
    ///
    /// # Errors
    /// [`AppendError`]; nothing was written.
    pub fn append(&self, group: Vec<EntryDraft>) -> Result<Receipt, AppendError> {
        let pending = self.admit(group, |log, drafts| log.append(drafts))?;
        Ok(Receipt {
            pending,
            engine: Arc::clone(&self.inner),
        })
    }

    /// As [`Engine::append`], but calls `done` when the receipt would resolve, without a task in between: once, on a thread
    /// of the engine, which everybody else waits for meanwhile. It must be quick and must not append. It is not called after
    /// an error.
    ///
    /// # Errors
    /// As [`Engine::append`].
    pub fn append_then(
        &self,
        group: Vec<EntryDraft>,
        done: impl FnOnce(Result<GroupLsns, WriteError>) + Send + 'static,
    ) -> Result<(), AppendError> {
        // Not the engine itself: its last handle must not go on one of its own threads, which it would wait for.
        let (applied, fenced) = (self.inner.applied.clone(), self.inner.fenced.clone());
        self.admit(group, |log, drafts| {
            log.append_then(drafts, move |written| match written {
                Err(error) => done(Err(fenced.not_written(error))),
                Ok(lsns) => applied.on_reached(lsns.last, move |outcome| {
                    let failed = |Failed { reason }| fenced.doubt(WriteError::OutcomeUnknown { reason });
                    done(outcome.map(|_| lsns).map_err(failed));
                }),
            })
        })
    }

    /// Counts a group against what may wait for the views, and queues it.
    fn admit<T>(
        &self,
        group: Vec<EntryDraft>,
        append: impl FnOnce(&Log, Vec<crate::log::Draft>) -> Result<T, crate::log::AppendError>,
    ) -> Result<T, AppendError> {
        let inner = &self.inner;
        if let Some(by) = inner.fenced.by.get() {
            return Err(AppendError::Fenced { by: *by });
        }
        let drafts = group
            .into_iter()
            .map(EntryDraft::into_draft)
            .collect::<Result<Vec<_>, _>>();
        let drafts = drafts.map_err(|error| AppendError::Invalid {
            reason: error.to_string(),
        })?;
        let bytes: u64 = drafts.iter().map(|draft| draft.frame_len() as u64).sum();
        let before = inner.backlog.fetch_add(bytes, Ordering::AcqRel);
        let queued = if before > inner.backlog_max {
            Err(AppendError::Busy)
        } else {
            append(&inner.log, drafts).map_err(AppendError::from)
        };
        if queued.is_err() {
            inner.backlog.fetch_sub(bytes, Ordering::AcqRel);
        }
        queued
    }

    /// Resolves when everything is applied that was in the log at the start, and what the start had to append: the schema steps of
    /// this program. With nothing unshipped and no new schema that is at once; under [`Durability::Remote`] the shipper must be
    /// running. Wait for it before serving: a commit continues from the head that is applied, so one that is built earlier would
    /// not follow the entries that wait.
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn ready(&self) -> Result<(), WriteError> {
        let ready_at = Lsn::saturating(self.inner.ready_at.load(Ordering::Acquire));
        self.inner.wait_applied(ready_at).await
    }

    /// A snapshot of the index.
    ///
    /// # Errors
    /// The database failed.
    pub fn reader(&self) -> Result<IndexReader, IndexError> {
        self.inner.index.reader()
    }

    /// Builds the nodes of a repo's tree in the index anew from its records: for one that is found missing or damaged.
    /// Blocks for as long as that takes, and the views with it.
    ///
    /// # Errors
    /// The database failed or is damaged.
    pub fn rebuild_nodes(&self, did: &Did) -> Result<Rebuilt, IndexError> {
        self.inner.index.rebuild_nodes(did)
    }

    /// The account database.
    #[must_use]
    pub fn accounts(&self) -> &Accounts {
        &self.inner.accounts
    }

    /// Bytes of the log, such as a record's. Blocks on the disk.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read_at(&self, location: Location) -> Result<Bytes, ReadError> {
        self.inner.log.read_at(location)
    }

    /// Follows the log after `from`. The reader itself knows no watermark but `appended`: give it
    /// [`Engine::visible`]'s value as the limit where subscribers read.
    #[must_use]
    pub fn tail(&self, from: Lsn) -> TailReader {
        self.inner.log.tail(from)
    }

    /// The log, for those who only read it.
    #[must_use]
    pub fn log_reader(&self) -> LogReader {
        self.inner.log.reader()
    }

    /// The log itself, for the shipper and for hand-over.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.inner.log
    }

    /// Which log this is.
    #[must_use]
    pub fn log_id(&self) -> LogId {
        self.inner.log_id
    }

    /// This writer's reign.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        Epoch(self.inner.epoch.load(Ordering::Acquire))
    }

    /// Written to the local log.
    #[must_use]
    pub fn appended(&self) -> &Watermark {
        self.inner.log.appended()
    }

    /// Survives a crash of this machine.
    #[must_use]
    pub fn local(&self) -> &Watermark {
        self.inner.log.local()
    }

    /// In the replica store, if there is one: the shipper advances it, and fails it when it stops for good.
    #[must_use]
    pub fn remote(&self) -> Option<&Watermark> {
        self.inner.remote.as_ref()
    }

    /// In the views, hence durable at the configured level.
    #[must_use]
    pub fn applied(&self) -> &Watermark {
        &self.inner.applied
    }

    /// What the firehose may show: in the views, and in the replica store if there is one, whatever the durability.
    #[must_use]
    pub fn visible(&self) -> &Watermark {
        &self.inner.visible
    }

    /// The oldest cursor that can be served in full: the place before the oldest entry that is kept as it was written.
    #[must_use]
    pub fn oldest_lsn(&self) -> Lsn {
        if self.inner.log.segments().is_empty() {
            return self.appended().get();
        }
        self.inner.log.reader().floor()
    }

    /// All segments, ascending.
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentInfo> {
        self.inner.log.segments()
    }

    /// Bytes of all segments that are kept.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        self.inner
            .log
            .segments()
            .iter()
            .map(|segment| segment.bytes)
            .sum()
    }

    /// Another writer has taken over: nothing is accepted any more, and nothing that waits is acknowledged (I5).
    pub fn fence(&self, by: Epoch) {
        // The first is the one that counts; a second fence changes nothing.
        let _ = self.inner.fenced.by.set(by);
        self.inner
            .log
            .poison(format!("another writer has taken over with epoch {by}"));
    }

    /// What the engine is doing.
    #[must_use]
    pub fn health(&self) -> Health {
        let inner = &self.inner;
        let failed = inner.log.local().failed().or_else(|| inner.applied.failed());
        Health {
            log_id: inner.log_id,
            epoch: self.epoch(),
            appended: self.appended().get(),
            local: self.local().get(),
            remote: inner.remote.as_ref().map(Watermark::get),
            applied: inner.applied.get(),
            visible: inner.visible.get(),
            backlog_bytes: inner.backlog.load(Ordering::Acquire),
            failed: failed.map(|Failed { reason }| reason),
            fenced: inner.fenced.by.get().copied(),
        }
    }

    /// The local checkpoints.
    #[must_use]
    pub fn checkpoints(&self) -> &Checkpoints {
        &self.inner.checkpoints
    }

    /// Takes a checkpoint of what is applied now, and prunes old ones. Writes go on meanwhile. It may lie above what the
    /// replica store has if the durability is [`Durability::Local`]: compare before shipping it.
    ///
    /// # Errors
    /// See [`CheckpointFailure`]; [`CheckpointError::Empty`] if nothing was ever applied.
    pub async fn checkpoint(&self) -> Result<Checkpoint, CheckpointFailure> {
        let _one_at_a_time = self.inner.checkpointing.lock().await;
        self.checkpoint_alone().await
    }

    /// [`Engine::checkpoint`] for who has its lock.
    async fn checkpoint_alone(&self) -> Result<Checkpoint, CheckpointFailure> {
        let driver = self.inner.driver.lock().clone().ok_or(DriverError::Stopped)?;
        let (index, accounts) = (self.inner.index.clone(), self.inner.accounts.clone());
        let pinned = driver
            .between(move || (index.reader(), accounts.snapshot()))
            .await?;
        drop(driver);
        let (index, accounts) = (pinned.0?, pinned.1?);
        let (checkpoints, kept) = (self.inner.checkpoints.clone(), self.inner.checkpoints_kept);
        let epoch = self.epoch();
        let taken = tokio::task::spawn_blocking(move || {
            let snapshots: [&dyn ViewSnapshot; 2] = [&index, &accounts];
            let taken = checkpoints.take(&snapshots, epoch)?;
            checkpoints.prune(kept.max(1))?;
            Ok::<_, CheckpointError>(taken)
        });
        taken
            .await
            .map_err(|_| DriverError::Panicked {
                what: "taking a checkpoint".to_owned(),
            })?
            .map_err(Into::into)
    }

    /// The first half of an end in order: seals the open segment, waits until what was appended is applied, takes a
    /// checkpoint if asked to, and makes the views durable. Stop those who append first. The log stays open for its
    /// readers, the shipper among them, until [`Engine::close`].
    ///
    /// # Errors
    /// The first thing that went wrong; the rest was done nevertheless. No acknowledged entry is lost by it: the next
    /// start replays more.
    pub async fn quiesce(&self, how: Shutdown) -> Result<(), ShutdownError> {
        let mut first: Result<(), ShutdownError> = Ok(());
        let mut note = |done: Result<(), ShutdownError>| {
            if first.is_ok() {
                first = done;
            }
        };
        note(match self.inner.log.seal_now().await {
            Ok(_) => Ok(()),
            Err(error) => Err(ShutdownError::Log(error.into())),
        });
        let target = self.appended().get();
        note(
            match tokio::time::timeout(how.drain, self.inner.applied.wait(target)).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(Failed { reason })) => Err(ShutdownError::Views(reason)),
                Err(_) => Err(ShutdownError::NotDrained {
                    applied: self.applied().get(),
                    appended: target,
                }),
            },
        );
        if how.checkpoint {
            note(match self.checkpoint().await {
                Err(CheckpointFailure::Take(CheckpointError::Empty)) | Ok(_) => Ok(()),
                Err(error) => Err(ShutdownError::Checkpoint(error)),
            });
        }
        // A checkpoint that another task is taking uses the driver; it is done when its lock is free.
        let _no_checkpoint = self.inner.checkpointing.lock().await;
        let driver = self.inner.driver.lock().take();
        if let Some(driver) = driver.and_then(Arc::into_inner) {
            note(
                driver
                    .stop()
                    .await
                    .map_err(|error| ShutdownError::Views(error.reason().into())),
            );
        }
        if how.checkpoint && self.removals(1).is_ok_and(|removals| !removals.is_empty()) {
            // So that the directory of a stopped server has no rows that were overwritten.
            let accounts = self.inner.accounts.clone();
            let emptied = tokio::task::spawn_blocking(move || accounts.empty_wal_blocking()).await;
            if !matches!(emptied, Ok(Ok(true))) {
                tracing::info!(?emptied, "the account database keeps its write-ahead file");
            }
        }
        first
    }

    /// The second half: closes the log, for readers too.
    ///
    /// # Errors
    /// The log had failed, or failed now.
    pub async fn close(&self) -> Result<(), ShutdownError> {
        let log = self.inner.log.clone();
        match tokio::task::spawn_blocking(move || log.close()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(ShutdownError::Log(error.into())),
            Err(_) => Err(ShutdownError::Views("closing the log panicked".into())),
        }
    }

    /// [`Engine::quiesce`] and [`Engine::close`], for when nobody ships the log.
    ///
    /// # Errors
    /// The first thing that went wrong; the rest was done nevertheless.
    pub async fn shutdown(&self, how: Shutdown) -> Result<(), ShutdownError> {
        let quiet = self.quiesce(how).await;
        let closed = self.close().await;
        quiet.and(closed)
    }
}

/// Why no checkpoint was taken. The engine goes on; try again later.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointFailure {
    /// The copies could not be taken or written.
    #[error(transparent)]
    Take(#[from] CheckpointError),
    /// The index could not be pinned.
    #[error("pinning the index")]
    Index(#[from] IndexError),
    /// The account database could not be pinned.
    #[error("pinning the account database")]
    Accounts(#[from] crate::views::accounts::AccountsError),
    /// The views have stopped.
    #[error(transparent)]
    Driver(#[from] DriverError),
}

/// What went wrong while shutting down.
#[derive(Debug, thiserror::Error)]
pub enum ShutdownError {
    /// The log had failed, or failed now.
    #[error(transparent)]
    Log(AppendError),
    /// The views had failed, or failed now.
    #[error("the views: {0}")]
    Views(Arc<str>),
    /// Not everything that was appended became durable in time. It is in the local log.
    #[error("entries after {applied} up to {appended} are not durable yet; they are in the local log")]
    NotDrained {
        /// What is durable and applied.
        applied: Lsn,
        /// What is in the log.
        appended: Lsn,
    },
    /// No checkpoint was taken.
    #[error("the checkpoint")]
    Checkpoint(#[source] CheckpointFailure),
}
