//! Opening an engine: look, decide, start. See the steps in [`engine`](super).

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::{AppendError, Durability, Engine, EngineConfig, EngineError, Fence, Inner};
use crate::clock::{Clock, Entropy};
use crate::compact;
use crate::entry::{Change, Entry, EntryDraft};
use crate::log::{
    Cut, Epoch, Log, LogConfig, LogId, LogReader, Lsn, Pending, Recovered, SegmentInfo, Watermark,
};
use crate::storage::Storage;
use crate::views::View;
use crate::views::accounts::{self, Accounts, AccountsError, AccountsView};
use crate::views::checkpoint::Checkpoints;
use crate::views::driver::{DriverError, DriverHandle, Fold, Marks, ReplayProgress};
use crate::views::index::{self, IndexError, IndexView};

/// Where the segments are.
pub(crate) const LOG_DIR: &str = "log";
/// Where the checkpoints are.
pub(crate) const CHECKPOINTS_DIR: &str = "ckpt";
/// Bytes of log that are looked at in one piece when the tail above the durable point is searched.
const SCAN_BYTES: usize = 4 << 20;

/// A directory that was looked at and is locked, but not changed.
#[derive(Debug)]
pub struct EnginePrelude {
    config: EngineConfig,
    recovered: Recovered,
}

/// What the new writer starts with: decided by who holds the replica, if there is one.
pub struct StartOptions {
    /// The new reign; above every epoch in the log and the replica.
    pub epoch: Epoch,
    /// No LSN at or below this is given out: the greatest that anybody has seen.
    pub lsn_floor: Lsn,
    /// Which log this must be; `None` takes what is found, or begins a new one.
    pub log_id: Option<LogId>,
    /// With a replica: how far it has this very log. Entries above are not applied under [`Durability::Remote`], and
    /// not shown to subscribers in any case, until [`Engine::remote`] is advanced.
    pub remote: Option<Lsn>,
    /// Follow another writer: see [`Engine::feed`]. `epoch` and `lsn_floor` are not used then, and `remote` must be what is
    /// here.
    pub follow: bool,
    /// The checkpoint in the data directory that was fetched from the replica just now, and whose files have the digests that it says:
    /// it becomes the views, instead of being read once more and copied.
    pub fetched: Option<Lsn>,
    /// Is told about the replay after each batch.
    pub on_replay: Box<dyn FnMut(ReplayProgress) + Send>,
}

impl std::fmt::Debug for StartOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut options = f.debug_struct("StartOptions");
        options
            .field("epoch", &self.epoch)
            .field("lsn_floor", &self.lsn_floor);
        options
            .field("log_id", &self.log_id)
            .field("remote", &self.remote)
            .finish_non_exhaustive()
    }
}

impl StartOptions {
    /// A start without a replica.
    #[must_use]
    pub fn local(epoch: Epoch) -> StartOptions {
        StartOptions {
            epoch,
            lsn_floor: Lsn::ZERO,
            log_id: None,
            remote: None,
            follow: false,
            fetched: None,
            on_replay: Box::new(|_| {}),
        }
    }
}

impl EnginePrelude {
    /// Looks at `config.dir` (made if missing) and locks its log.
    ///
    /// # Errors
    /// The log is locked, damaged, or of a newer program; or the disk failed. Nothing was changed.
    pub fn recover(config: EngineConfig, storage: Arc<dyn Storage>) -> Result<EnginePrelude, EngineError> {
        make_dir(&config.dir)?;
        let recovered = Log::recover(storage, &config.dir.join(LOG_DIR))?;
        Ok(EnginePrelude { config, recovered })
    }

    /// A directory whose log somebody else has recovered already, such as the shipper at its start.
    #[must_use]
    pub fn of(config: EngineConfig, recovered: Recovered) -> EnginePrelude {
        EnginePrelude { config, recovered }
    }

    /// Which log it is; `None` if there is none yet.
    #[must_use]
    pub fn log_id(&self) -> Option<LogId> {
        self.recovered.log_id()
    }

    /// The last whole entry.
    #[must_use]
    pub fn last_lsn(&self) -> Lsn {
        self.recovered.last_lsn()
    }

    /// The reign of the newest segment.
    #[must_use]
    pub fn last_epoch(&self) -> Epoch {
        self.recovered.last_epoch()
    }

    /// All segments, ascending.
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentInfo> {
        self.recovered.segments()
    }

    /// What a start will cut off because nothing vouches for it.
    #[must_use]
    pub fn cut(&self) -> Option<&Cut> {
        self.recovered.cut()
    }

    /// Reads what is there.
    #[must_use]
    pub fn reader(&self) -> LogReader {
        self.recovered.reader()
    }

    /// Opens everything and replays. Blocks for as long as that takes; the log is written to only to seal what the last
    /// writer left open, and with the schema steps that the account database lacks (see [`Engine::ready`]).
    ///
    /// # Errors
    /// See [`EngineError`]. Everything durable is still there.
    pub fn start(
        self,
        clock: Arc<dyn Clock>,
        entropy: &dyn Entropy,
        mut options: StartOptions,
    ) -> Result<Engine, EngineError> {
        let EnginePrelude { config, recovered } = self;
        let log_id = match recovered.log_id().or(options.log_id) {
            Some(log_id) => log_id,
            None => LogId::random(entropy).map_err(io("choosing the log's id"))?,
        };
        let log_config = LogConfig {
            epoch: options.epoch,
            log_id: options.log_id.or(Some(log_id)),
            lsn_floor: options.lsn_floor,
            ..config.log.clone()
        };
        let epoch = if options.follow {
            recovered.last_epoch()
        } else {
            options.epoch
        };
        let log = if options.follow {
            recovered.follow(clock, &log_config)?
        } else {
            recovered.start(clock, &log_config)?
        };
        let end = log.appended().get();
        let remote = options.remote.map(|remote| Watermark::at(remote.min(end)));
        let durable = match (config.durability, &remote) {
            (Durability::Remote, Some(remote)) => remote.clone(),
            _ => log.local().clone(),
        };
        let target = durable.get();
        let oldest = log.segments().first().map_or(end, |segment| segment.prev);
        let checkpoints = Checkpoints::new(config.dir.join(CHECKPOINTS_DIR), log_id);
        let bounds = Bounds {
            log: log.reader(),
            oldest,
            target,
            end,
            log_id,
            fetched: options.fetched,
        };
        let (mut index, mut accounts) = open_views(&config, &checkpoints, &bounds)?;
        let (source, handle) = (index.source(), accounts.handle());
        {
            let views: Vec<Box<dyn View + '_>> = vec![Box::new(&mut index), Box::new(&mut accounts)];
            let mut replay = Fold::new(views, |from| log.tail(from), config.driver);
            replay
                .replay(target, &mut options.on_replay)
                .map_err(EngineError::Replay)?;
        }
        let applied = index.applied().min(accounts.applied());
        let unapplied = Unapplied::scan(&log, applied)?;
        // Who follows has the writer's schema, and brings it up to date when it becomes the writer.
        let steps = if options.follow {
            Vec::new()
        } else {
            schema_steps(&handle, &unapplied.migrations)?
        };
        let views: Vec<Box<dyn View>> = vec![Box::new(index), Box::new(accounts)];
        let fold = Fold::new(views, |from| log.tail(from), config.driver);

        let marks = Marks {
            durable,
            applied: Watermark::at(fold.applied()),
            visible: Watermark::default(),
            remote: remote.clone(),
            backlog: Arc::new(AtomicU64::new(unapplied.bytes)),
        };
        let (applied, visible) = (marks.applied.clone(), marks.visible.clone());
        let backlog = Arc::clone(&marks.backlog);
        visible.advance(
            remote
                .as_ref()
                .map_or(applied.get(), |remote| remote.get().min(applied.get())),
        );
        let driver =
            DriverHandle::spawn(fold, marks, log.clone()).map_err(io("starting the views' thread"))?;
        let engine = Inner {
            log,
            log_id,
            epoch: AtomicU64::new(epoch.0),
            index: source,
            accounts: handle,
            applied,
            remote,
            visible,
            backlog,
            backlog_max: config.backlog_bytes_max,
            fenced: Fence::default(),
            driver: Mutex::new(Some(Arc::new(driver))),
            checkpoints,
            checkpoints_kept: config.checkpoints_kept,
            checkpointing: tokio::sync::Mutex::new(()),
            dir: config.dir,
            index_cache_bytes: config.index_cache_bytes,
            compacting: tokio::sync::Mutex::new(()),
            replaced: Mutex::new(None),
            accounts_erased: AtomicU64::new(0),
            // Whoever builds a commit continues from what is applied, so all that is here has to be.
            ready_at: AtomicU64::new(end.get()),
        };
        if let Some(pending) = append_steps(&engine.log, steps)? {
            let written = pending.wait_blocking().map_err(AppendError::from);
            let last = written.map_err(EngineError::Migrate)?.last;
            engine.ready_at.store(last.get(), Ordering::Release);
        }
        Ok(Engine {
            inner: Arc::new(engine),
        })
    }
}

/// The steps that the account database lacks and that are not on their way.
pub(super) fn schema_steps(
    accounts: &Accounts,
    on_their_way: &BTreeSet<String>,
) -> Result<Vec<Change>, EngineError> {
    let missing = accounts.missing_migrations().map_err(EngineError::Accounts)?;
    let steps = missing
        .iter()
        .filter(|step| !on_their_way.contains(step.name))
        .map(|step| Change::AccountsMigration {
            name: step.name.to_owned(),
            sql: step.sql.to_owned(),
        });
    Ok(steps.collect())
}

/// Appends schema steps, if there are any.
pub(super) fn append_steps(log: &Log, steps: Vec<Change>) -> Result<Option<Pending>, EngineError> {
    if steps.is_empty() {
        return Ok(None);
    }
    let draft = EntryDraft::private(steps).into_draft();
    let draft = draft.map_err(|error| AppendError::Invalid {
        reason: error.to_string(),
    });
    let pending = draft.and_then(|draft| Ok(log.append(vec![draft])?));
    pending.map(Some).map_err(EngineError::Migrate)
}

/// Between which LSNs a view is of use.
pub(crate) struct Bounds {
    pub(crate) log: LogReader,
    /// Predecessor of the oldest entry: a view behind it cannot catch up.
    pub(crate) oldest: Lsn,
    /// What may be applied.
    pub(crate) target: Lsn,
    /// The last entry: a view ahead of it is of another history.
    pub(crate) end: Lsn,
    pub(crate) log_id: LogId,
    /// See [`StartOptions::fetched`].
    pub(crate) fetched: Option<Lsn>,
}

impl Bounds {
    fn admit(&self, applied: Lsn) -> bool {
        self.oldest <= applied && applied <= self.end && self.log.is_place(applied)
    }
}

/// Opens both views; what is of no use is thrown away and comes from the newest checkpoint, or from the log's beginning.
/// Ends a compaction that the last process did not end.
pub(crate) fn open_views(
    config: &EngineConfig,
    checkpoints: &Checkpoints,
    bounds: &Bounds,
) -> Result<(IndexView, AccountsView), EngineError> {
    if let Err(error) = compact::remove_scratch(&config.dir) {
        tracing::warn!(%error, "scratch files of a compaction are left");
    }
    let views = open_either(config, checkpoints, bounds)?;
    if bounds.log.pending_compaction().is_some() {
        // They have the places of before.
        checkpoints.prune(0).map_err(EngineError::Checkpoint)?;
        match bounds.log.end_compaction() {
            Ok(bytes) => tracing::info!(bytes, "a compaction that was interrupted is ended"),
            Err(error) => tracing::warn!(%error, "what a compaction replaced is still there"),
        }
    }
    Ok(views)
}

fn open_either(
    config: &EngineConfig,
    checkpoints: &Checkpoints,
    bounds: &Bounds,
) -> Result<(IndexView, AccountsView), EngineError> {
    if let Some(views) = open_both(config, bounds, IfMissing::Leave)? {
        return Ok(views);
    }
    // At least one has to start over: both take the checkpoint, which is of one LSN, if there is one.
    if let Some(lsn) = bounds
        .fetched
        .filter(|lsn| *lsn <= bounds.target && bounds.admit(*lsn))
    {
        tracing::info!(%lsn, "the views start from the checkpoint that was fetched");
        let moved = checkpoints
            .open(lsn)
            .and_then(|checkpoint| checkpoint.become_views(&config.dir));
        if let Err(error) = moved {
            tracing::warn!(%lsn, %error, "the checkpoint that was fetched is not in the place of the views");
        }
        if let Some(views) = open_both(config, bounds, IfMissing::Leave)? {
            return Ok(views);
        }
    }
    let newest = checkpoints
        .newest_valid(bounds.target)
        .map_err(EngineError::Checkpoint)?;
    for (lsn, error) in &newest.rejected {
        tracing::warn!(%lsn, %error, "a checkpoint is of no use");
    }
    if let Some(checkpoint) = newest
        .checkpoint
        .filter(|checkpoint| bounds.admit(checkpoint.lsn()))
    {
        tracing::info!(lsn = %checkpoint.lsn(), "the views start from a checkpoint");
        checkpoint.install(&config.dir).map_err(EngineError::Checkpoint)?;
        if let Some(views) = open_both(config, bounds, IfMissing::Leave)? {
            return Ok(views);
        }
        tracing::warn!("a view from a checkpoint is of no use; replaying the whole log");
    }
    let gap = EngineError::Gap {
        views: Lsn::ZERO,
        log: bounds.oldest,
    };
    open_both(config, bounds, IfMissing::Create)?.ok_or(gap)
}

/// What to do about a view that has no file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum IfMissing {
    /// Nothing: a checkpoint may have it.
    Leave,
    /// Begin an empty one.
    Create,
}

fn open_both(
    config: &EngineConfig,
    bounds: &Bounds,
    missing: IfMissing,
) -> Result<Option<(IndexView, AccountsView)>, EngineError> {
    index::remove_leftovers(&config.dir).map_err(|source| EngineError::Io {
        what: "removing an unfinished index".to_owned(),
        source,
    })?;
    // Both are opened, so that both are thrown away if both are of no use.
    let index = open_index(config, bounds, missing)?;
    let accounts = open_accounts(config, bounds, missing)?;
    Ok(index.zip(accounts))
}

/// The index, or `None` after it was thrown away because it was of no use.
fn open_index(
    config: &EngineConfig,
    bounds: &Bounds,
    missing: IfMissing,
) -> Result<Option<IndexView>, EngineError> {
    let path = config.dir.join(index::FILE_NAME);
    if missing == IfMissing::Leave && !exists(&path)? {
        return Ok(None);
    }
    // redb checks what it reads, but a damaged file has made databases panic before.
    let opened = catch_unwind(AssertUnwindSafe(|| {
        IndexView::open(&path, bounds.log_id, config.index_cache_bytes)
    }));
    let reason = match opened {
        Ok(Ok(view)) if bounds.admit(view.applied()) => match settle(&view, &bounds.log) {
            Ok(()) => return Ok(Some(view)),
            Err(reason) => reason,
        },
        Ok(Ok(view)) => format!(
            "it stands at {}, the log is {} to {}",
            view.applied(),
            bounds.oldest,
            bounds.end
        ),
        Ok(Err(error @ (IndexError::Unusable { .. } | IndexError::Row { .. }))) => error.to_string(),
        Ok(Err(error)) => return Err(EngineError::Index(error)),
        Err(_) => "it made the database panic".to_owned(),
    };
    tracing::warn!(%reason, "the index is thrown away; the log has everything");
    remove_file(&path)?;
    Ok(None)
}

/// Whether the rows of an index point into the segments that are there; lets them follow if they can.
fn settle(view: &IndexView, log: &LogReader) -> Result<(), String> {
    if view.applied() == Lsn::ZERO {
        return view.adopt(log.compaction()).map_err(|error| error.to_string());
    }
    let places = view.places().map_err(|error| error.to_string())?;
    if !compact::admits(log, places) {
        return Err(format!("it has the places of another compaction: {places:?}"));
    }
    if log.pending_compaction().is_none() {
        return Ok(());
    }
    compact::follow(log, &view.source()).map_err(|error| error.to_string())
}

/// The account database, or `None` after it was thrown away because it was of no use.
fn open_accounts(
    config: &EngineConfig,
    bounds: &Bounds,
    missing: IfMissing,
) -> Result<Option<AccountsView>, EngineError> {
    if missing == IfMissing::Leave && !exists(&config.dir.join(accounts::FILE_NAME))? {
        return Ok(None);
    }
    let reason = match AccountsView::open_with(&config.dir, bounds.log_id, config.accounts) {
        Ok(view) if bounds.admit(view.applied()) => return Ok(Some(view)),
        Ok(view) => format!(
            "it stands at {}, the log is {} to {}",
            view.applied(),
            bounds.oldest,
            bounds.end
        ),
        Err(error @ (AccountsError::Corrupt(_) | AccountsError::Foreign | AccountsError::Failed { .. })) => {
            error.to_string()
        }
        Err(error) => return Err(EngineError::Accounts(error)),
    };
    tracing::warn!(%reason, "the account database is thrown away; the log has everything");
    AccountsView::delete(&config.dir).map_err(io("removing the account database"))?;
    Ok(None)
}

/// What is in the log and not in the views, because the replica has not got it yet.
struct Unapplied {
    bytes: u64,
    /// Schema steps among it: they must not be appended a second time.
    migrations: BTreeSet<String>,
}

impl Unapplied {
    fn scan(log: &Log, applied: Lsn) -> Result<Unapplied, EngineError> {
        let mut found = Unapplied {
            bytes: 0,
            migrations: BTreeSet::new(),
        };
        let mut tail = log.tail(applied);
        loop {
            let frames = tail
                .next_batch(Lsn::MAX, SCAN_BYTES)
                .map_err(|error| EngineError::Replay(DriverError::Read(error)))?;
            if frames.is_empty() {
                return Ok(found);
            }
            for frame in &frames {
                found.bytes += u64::from(frame.location().len);
                let entry = Entry::decode(frame).map_err(|source| EngineError::Entry {
                    lsn: frame.lsn(),
                    source,
                })?;
                for change in entry.changes {
                    if let Change::AccountsMigration { name, .. } = change {
                        found.migrations.insert(name);
                    }
                }
            }
        }
    }
}

fn exists(path: &Path) -> Result<bool, EngineError> {
    path.try_exists().map_err(io("looking for a view's file"))
}

fn remove_file(path: &Path) -> Result<(), EngineError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(io("removing a view's file")(error))
        }
        _ => Ok(()),
    }
}

fn make_dir(path: &Path) -> Result<(), EngineError> {
    std::fs::create_dir_all(path).map_err(io("making the data directory"))
}

fn io(what: &str) -> impl FnOnce(std::io::Error) -> EngineError + use<'_> {
    move |source| EngineError::Io {
        what: what.to_owned(),
        source,
    }
}
