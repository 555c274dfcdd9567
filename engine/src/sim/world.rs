//! One run: a disk, a clock, a workload, and lives of a process that end badly.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::Seen;
use super::compaction::Compacting;
use super::disk::{CrashDisk, put_under};
use super::imports::Import;
use super::model::{ExpectedEvent, Group, Judge, Model};
use super::workload::Planned;
use crate::clock::{Clock, ScriptedClock, SeededEntropy};
use crate::engine::open::{Bounds, open_views};
use crate::engine::{CHECKPOINTS_DIR, Durability, EngineConfig, EngineError, LOG_DIR};
use crate::entry::{Change, Entry, EntryDraft};
use crate::log::sim::SimLog;
use crate::log::{Epoch, Failed, Log, LogConfig, LogId, Lsn, OpenError};
use crate::storage::{Fault, FaultyStorage, MemoryStorage};
use crate::views::accounts::{self, Accounts, AccountsOptions, AccountsView, MIGRATIONS, stand_in};
use crate::views::checkpoint::Checkpoints;
use crate::views::driver::{DriverConfig, Fold};
use crate::views::index::{self, IndexSource};
use crate::views::{View, ViewError};

/// Groups that may wait to be applied before writes are refused.
const BACKLOG_GROUPS: usize = 16;
/// One run in so many has rows in the account database.
const ACCOUNT_RUNS: u64 = 16;
const NOW: u64 = 1_767_225_600_000_000;
pub(super) const LOG_ID: LogId = LogId([6; 16]);
pub(super) const NAMES: [&str; 4] = ["alice", "bob", "carol", "dave"];
pub(super) const CACHE_BYTES: usize = 1 << 20;

/// The files of a database, by name.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// Everything that outlives a process, and what should be true of it.
pub struct World {
    pub(super) chance: SeededEntropy,
    pub(super) disk: MemoryStorage,
    pub(super) clock: Arc<ScriptedClock>,
    pub(super) dir: tempfile::TempDir,
    pub(super) model: Model,
    pub(super) epoch: u64,
    /// Reported durable on this machine.
    pub(super) durable: Lsn,
    /// What the replica has, in runs with one.
    pub(super) remote: Option<Lsn>,
    /// The log begins behind this since the last compaction.
    pub(super) floor: Lsn,
    /// The greatest generation that an import was given.
    pub(super) generation: u32,
    pub(super) judge: Judge,
    /// The account database as it was last made durable.
    pub(super) accounts_saved: Arc<Mutex<Files>>,
    pub(super) runtime: tokio::runtime::Runtime,
    /// Whether the account database is SQLite, with rows, in this run, or its stand-in.
    pub(super) account_rows: bool,
    _stand_in: Option<stand_in::Below>,
    /// Whether every step is printed.
    pub(super) verbose: bool,
}

/// A running process.
pub(super) struct Life {
    pub(super) log: SimLog,
    pub(super) fold: Fold<'static>,
    pub(super) index: IndexSource,
    pub(super) accounts: Accounts,
    pub(super) checkpoints: Checkpoints,
    pub(super) config: EngineConfig,
    /// Up to where each account has a change that is not applied.
    pub(super) changing: BTreeMap<String, Lsn>,
    /// Imports under way, by name.
    pub(super) importing: BTreeMap<&'static str, Import>,
    pub(super) compacting: Option<Compacting>,
    /// The disks of the log and of the index.
    pub(super) disks: (FaultyStorage, Arc<CrashDisk>),
    /// Keeps the locks of what is prepared.
    pub(super) ring_bytes: usize,
}

/// Why a life ended before its time.
#[derive(Debug)]
pub(super) enum End {
    /// Something failed, which it may only after a fault.
    Failed(String),
}

impl From<Failed> for End {
    fn from(failed: Failed) -> End {
        End::Failed(failed.reason.to_string())
    }
}

/// The account database among the views, whose durable points are noted.
struct Noted {
    view: AccountsView,
    dir: PathBuf,
    saved: Arc<Mutex<Files>>,
}

impl View for Noted {
    fn name(&self) -> &'static str {
        self.view.name()
    }

    fn applied(&self) -> Lsn {
        self.view.applied()
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<(), ViewError> {
        self.view.apply(entries)
    }

    fn tidy(&mut self) -> Result<bool, ViewError> {
        self.view.tidy()
    }

    fn persist(&mut self) -> Result<(), ViewError> {
        self.view.persist()?;
        *self.saved.lock() = read_accounts(&self.dir);
        Ok(())
    }
}

pub(super) fn read_accounts(dir: &Path) -> Files {
    let names = ["", "-wal"].map(|suffix| format!("{}{suffix}", accounts::FILE_NAME));
    let files = names.into_iter().filter_map(|name| {
        let bytes = std::fs::read(dir.join(&name)).ok()?;
        Some((name, bytes))
    });
    files.collect()
}

impl World {
    /// The world of `seed`. `account_rows` decides what the account database is, instead of the seed.
    pub fn new(seed: u64, account_rows: Option<bool>, verbose: bool) -> World {
        let chance = SeededEntropy::new(seed);
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() {
            tempfile::Builder::new().prefix("pds-sim-").tempdir_in(memory)
        } else {
            tempfile::tempdir()
        };
        let remote = chance.next_u64().is_multiple_of(3).then_some(Lsn::ZERO);
        let by_chance = chance.next_u64().is_multiple_of(ACCOUNT_RUNS);
        let account_rows = account_rows.unwrap_or(by_chance);
        let dir = dir.unwrap();
        let stand_in = (!account_rows).then(|| stand_in::put_below(dir.path()));
        World {
            chance,
            disk: MemoryStorage::new(),
            clock: Arc::new(ScriptedClock::at(NOW)),
            dir,
            model: Model::default(),
            epoch: 0,
            durable: Lsn::ZERO,
            remote,
            floor: Lsn::ZERO,
            generation: 0,
            judge: Judge::default(),
            accounts_saved: Arc::default(),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .unwrap(),
            account_rows,
            _stand_in: stand_in,
            verbose,
        }
    }

    pub fn below(&self, limit: u64) -> u64 {
        self.chance.next_u64() % limit
    }

    pub(super) fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(super) fn pick<'a, T>(&self, from: &'a [T]) -> &'a T {
        &from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }

    pub(super) fn say(&self, what: impl FnOnce() -> String) {
        if self.verbose {
            println!("{}", what());
        }
    }

    pub(super) fn step_clock(&self) {
        let now = self.clock.now_micros();
        match self.below(12) {
            0 => self.clock.set(now - self.below(3_600_000_000)),
            1 => self.clock.set(now + self.below(3_600_000_000)),
            _ => self.clock.set(now + self.below(3)),
        }
    }

    pub(super) fn inject(&self, faulty: &FaultyStorage, under: &CrashDisk) {
        let kinds = [
            Fault::Stop,
            Fault::ShortWrite,
            Fault::NoSpace,
            Fault::SyncFails,
            Fault::DirSyncFails,
        ];
        match self.below(8) {
            0..3 => {}
            3..7 => {
                let fault = *self.pick(&kinds);
                let spared = self.below(if fault == Fault::DirSyncFails { 4 } else { 40 });
                self.say(|| format!("  the log's disk: {fault:?} after {spared}"));
                faulty.inject(fault, spared);
            }
            _ => {
                let spared = self.below(200);
                self.say(|| format!("  the index's disk fails after {spared} writes"));
                under.fail_after(spared);
            }
        }
    }

    /// One life: start, work, die. `stop_after` instead of faults by chance: the log's disk stops at that operation.
    /// Whether a fault struck.
    pub fn live(&mut self, faults: bool, stop_after: Option<u64>, seen: &mut Seen) -> bool {
        self.epoch += 1 + self.below(2);
        seen.lives += 1;
        self.say(|| format!("life in epoch {}", self.epoch));
        let faulty = FaultyStorage::new(Arc::new(self.disk.clone()));
        let under = Arc::new(CrashDisk::default());
        if let Some(spared) = stop_after {
            faulty.inject(Fault::Stop, spared);
        } else if faults {
            self.inject(&faulty, &under);
        }
        let guard = put_under(&self.dir.path().join(index::FILE_NAME), &under);
        let outcome = self.start(&faulty, &under, seen);
        let mut faults = faulty.struck();
        let mut struck = !faults.is_empty() || under.struck();
        match outcome {
            Ok(mut life) => {
                let steps = self.below(60);
                let ended = (0..steps).try_for_each(|_| {
                    self.step_clock();
                    self.step(&mut life, seen)
                });
                faults = faulty.struck();
                struck = !faults.is_empty() || under.struck();
                match &ended {
                    Ok(()) => {}
                    Err(end) => assert!(struck, "a life ended without a fault: {end:?}"),
                }
                if ended.is_ok() && self.one_in(4) {
                    self.stop_in_order(life, seen);
                    faults = faulty.struck();
                } else {
                    // Nothing that is tidied up while the process is dropped reaches the disk.
                    faulty.inject(Fault::Stop, 0);
                    self.die(Some(life), &under, seen);
                }
            }
            Err(end) => {
                assert!(struck, "a start failed without a fault: {end:?}");
                self.die(None, &under, seen);
            }
        }
        drop(guard);
        seen.faults.extend(faults);
        seen.index_faults += u64::from(under.struck());
        self.disk.crash(self.chance.next_u64());
        struck || under.struck()
    }

    /// A last life without faults must start, whatever came before, and everything is compared.
    pub fn conclude(&mut self, seen: &mut Seen) {
        self.epoch += 1;
        self.say(|| "the last life".to_owned());
        let clean = FaultyStorage::new(Arc::new(self.disk.clone()));
        let under = Arc::new(CrashDisk::default());
        let guard = put_under(&self.dir.path().join(index::FILE_NAME), &under);
        let mut life = self
            .start(&clean, &under, seen)
            .expect("a start after whatever came before");
        self.durable = life.log.sync().unwrap();
        self.remote = self.remote.map(|_| self.durable);
        while life.fold.step(self.durable).unwrap().entries > 0 {}
        assert_eq!(life.fold.applied(), self.model.last());
        self.check(&life);
        self.check_firehose(&life);
        self.rebuild(&life, seen);
        drop(life);
        drop(guard);
    }

    pub(super) fn config(&self) -> EngineConfig {
        EngineConfig {
            index_cache_bytes: CACHE_BYTES,
            driver: DriverConfig {
                batch_bytes: 1 + usize::try_from(self.below(20_000)).unwrap(),
                persist_bytes: 1 + self.below(60_000),
                persist_after: Duration::from_secs(3_600),
            },
            accounts: AccountsOptions {
                readers: 1,
                ..AccountsOptions::default()
            },
            ..EngineConfig::new(self.dir.path(), Durability::Local)
        }
    }

    /// As [`crate::engine::EnginePrelude::start`], on this thread.
    pub(super) fn start(
        &mut self,
        faulty: &FaultyStorage,
        under: &Arc<CrashDisk>,
        seen: &mut Seen,
    ) -> Result<Life, End> {
        let log_error = |error: OpenError| match error {
            OpenError::Io { .. } => End::Failed(error.to_string()),
            other => panic!("refused after a mere crash: {other}"),
        };
        let found =
            Log::recover(Arc::new(faulty.clone()), &self.dir.path().join(LOG_DIR)).map_err(log_error)?;
        seen.cuts += u64::from(found.cut().is_some());
        let ring_bytes = usize::try_from(self.below(8_000)).unwrap();
        let log_config = LogConfig {
            segment_bytes: 2_000 + self.below(30_000),
            ring_bytes,
            epoch: Epoch(self.epoch),
            log_id: Some(LOG_ID),
            ..LogConfig::default()
        };
        let last = found.last_lsn();
        self.say(|| format!("  the log goes to {last}, durable was {}", self.durable));
        seen.lost += self.model.survive(last, self.durable) as u64;
        let log = SimLog::start(found, Arc::clone(&self.clock) as _, &log_config).map_err(log_error)?;
        self.durable = last;
        self.check_floor(&log);
        seen.compactions_rolled_forward += u64::from(log.reader.pending_compaction().is_some());
        self.advance_remote();
        let mark = self.mark();
        let config = self.config();
        let oldest = log.reader.segments().first().map_or(last, |segment| segment.prev);
        let checkpoints = Checkpoints::new(config.dir.join(CHECKPOINTS_DIR), LOG_ID);
        let bounds = Bounds {
            log: log.reader.clone(),
            oldest,
            target: mark,
            end: last,
            log_id: LOG_ID,
            fetched: None,
        };
        let (index, accounts) = open_views(&config, &checkpoints, &bounds).map_err(|error| {
            assert!(
                under.struck() || matches!(error, EngineError::Replay(_)),
                "the views do not open: {error:?}"
            );
            End::Failed(error.to_string())
        })?;
        self.say(|| {
            format!(
                "  the views begin at {} and {}",
                index.applied(),
                accounts.applied()
            )
        });
        seen.rebuilt_views += u64::from(last > Lsn::ZERO && index.applied() == Lsn::ZERO);
        let (source, handle) = (index.source(), accounts.handle());
        let accounts = Noted {
            view: accounts,
            dir: self.dir.path().to_owned(),
            saved: Arc::clone(&self.accounts_saved),
        };
        let views: Vec<Box<dyn View>> = vec![Box::new(index), Box::new(accounts)];
        let mut fold = Fold::new(views, |from| log.reader.tail(from), config.driver);
        fold.replay(mark, &mut |_| {})
            .map_err(|error| End::Failed(error.reason()))?;
        let mut life = Life {
            log,
            fold,
            index: source,
            accounts: handle,
            checkpoints,
            config,
            changing: BTreeMap::new(),
            importing: BTreeMap::new(),
            compacting: None,
            disks: (faulty.clone(), Arc::clone(under)),
            ring_bytes,
        };
        if self.one_in(3) {
            self.check(&life);
        } else {
            self.check_one(&life);
        }
        // The shipper brings out what the replica lacked before anybody writes.
        self.remote = self.remote.map(|_| last);
        while self.apply(&mut life, seen)? {}
        if self.account_rows && !self.model.now().migrated {
            let steps = MIGRATIONS.iter().map(|step| Change::AccountsMigration {
                name: step.name.to_owned(),
                sql: step.sql.to_owned(),
            });
            let mut planned = self.plan();
            planned.drafts.push(EntryDraft::private(steps.collect()));
            planned.state.migrated = true;
            self.append(&mut life, planned, seen)?;
            self.durable = life.log.sync()?;
            self.remote = self.remote.map(|_| self.durable);
            while self.apply(&mut life, seen)? {}
        }
        self.give_up_staged(&mut life, seen)?;
        Ok(life)
    }

    /// The log begins where the last compaction ended, or a later one that a crash kept from being heard of.
    fn check_floor(&mut self, log: &SimLog) {
        let floor = log.reader.floor();
        assert!(
            floor >= self.floor && self.model.at(floor).is_some(),
            "the log begins after {floor}, was compacted through {}",
            self.floor
        );
        self.floor = floor;
        for group in &self.model.groups {
            assert_eq!(
                log.reader.is_place(group.last),
                group.last >= floor,
                "whether a cursor at {} is of use in a log from {floor}",
                group.last
            );
        }
    }

    /// What may be applied.
    pub(super) fn mark(&self) -> Lsn {
        self.remote.unwrap_or(self.durable)
    }

    /// The replica takes some more of what is durable here.
    pub(super) fn advance_remote(&mut self) {
        let Some(remote) = self.remote else { return };
        let ends: Vec<Lsn> = self.model.groups.iter().map(|group| group.last).collect();
        let ends: Vec<Lsn> = ends
            .into_iter()
            .filter(|end| *end > remote && *end <= self.durable)
            .collect();
        if !ends.is_empty() {
            self.remote = Some(*self.pick(&ends));
        }
    }

    fn step(&mut self, life: &mut Life, seen: &mut Seen) -> Result<(), End> {
        let applied = life.fold.applied();
        let groups = &self.model.groups;
        if groups.len() - groups.partition_point(|group| group.last <= applied) > BACKLOG_GROUPS {
            // The engine refuses writes now; the replica catches up.
            seen.full += 1;
            self.durable = life.log.sync()?;
            self.remote = self.remote.map(|_| self.durable);
            self.apply(life, seen)?;
            return Ok(());
        }
        if life.compacting.is_some() && self.one_in(8) {
            return self.compact(life, seen);
        }
        match self.below(46) {
            40..45 => self.import(life, seen)?,
            45 => self.compact(life, seen)?,
            0..14 => self.commit(life, seen)?,
            14..16 => self.upload(life, seen)?,
            16..20 => self.change_account(life, seen)?,
            20..22 => life.log.write()?,
            22..27 => {
                self.durable = life.log.sync()?;
                self.say(|| format!("  durable to {}", self.durable));
                self.advance_remote();
            }
            27 => {
                self.durable = life.log.seal()?;
                self.say(|| format!("  sealed at {}", self.durable));
                seen.seals += 1;
            }
            28..34 => {
                self.advance_remote();
                self.apply(life, seen)?;
            }
            34 => {
                self.say(|| "  persist".to_owned());
                life.fold.persist().map_err(|error| End::Failed(error.reason()))?;
            }
            35 if life
                .compacting
                .as_ref()
                .is_some_and(Compacting::keeps_checkpoints_off) => {}
            35 => self.checkpoint(life, seen),
            36 if self.one_in(4) => self.rebuild(life, seen),
            36 => life.fold.tidy().map_err(|error| End::Failed(error.reason()))?,
            37 => self.check_firehose(life),
            _ => self.check_one(life),
        }
        assert!(
            life.log.ring_bytes() <= life.ring_bytes,
            "I9: the ring is over its bound"
        );
        Ok(())
    }

    /// One batch of the views; whether there was one.
    pub(super) fn apply(&mut self, life: &mut Life, seen: &mut Seen) -> Result<bool, End> {
        let before = life.fold.applied();
        let batch = life
            .fold
            .step(self.mark())
            .map_err(|error| End::Failed(error.reason()))?;
        let applied = life.fold.applied();
        assert!(
            applied >= before && applied <= self.mark(),
            "I1: applied what is not durable"
        );
        self.say(|| format!("  applied to {applied} of {}", self.mark()));
        life.changing.retain(|_, lsn| *lsn > applied);
        seen.batches += 1;
        if self.one_in(3) {
            self.check_heads(life);
        }
        Ok(batch.entries > 0)
    }

    pub(super) fn plan(&self) -> Planned {
        Planned {
            drafts: Vec::new(),
            events: Vec::new(),
            state: self.model.now(),
        }
    }

    pub(super) fn append(&mut self, life: &mut Life, planned: Planned, seen: &mut Seen) -> Result<Lsn, End> {
        let Planned {
            drafts,
            events,
            state,
        } = planned;
        let drafts: Vec<_> = drafts
            .into_iter()
            .map(|draft| draft.into_draft().unwrap())
            .collect();
        let before = self.model.last().max(self.durable);
        let lsns = life.log.append(drafts)?;
        assert!(lsns.first > before, "I2: an LSN went back");
        let events = events.into_iter().map(|(at, kind, did, revs)| ExpectedEvent {
            lsn: Lsn::new(lsns.first.get() + at as u64).unwrap(),
            kind,
            did,
            revs,
        });
        self.say(|| format!("  appended {} to {}", lsns.first, lsns.last));
        seen.groups += 1;
        self.model.groups.push(Group {
            last: lsns.last,
            state,
            events: events.collect(),
        });
        Ok(lsns.last)
    }

    fn stop_in_order(&mut self, mut life: Life, seen: &mut Seen) {
        self.say(|| "  stops in order".to_owned());
        let ended = life.log.seal().map_err(End::from).and_then(|durable| {
            self.durable = durable;
            self.remote = self.remote.map(|_| durable);
            while self.apply(&mut life, seen)? {}
            life.fold.persist().map_err(|error| End::Failed(error.reason()))
        });
        // A fault that waited for its turn may strike here.
        let _ = ended;
        drop(life);
        self.settle_names(false, seen);
        *self.accounts_saved.lock() = read_accounts(self.dir.path());
    }
}
