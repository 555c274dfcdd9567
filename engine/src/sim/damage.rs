//! Disks that lie: what was reported durable is not there, or not what was written. Nothing of it may come out as an
//! answer: either it is refused by name, or what is left is the state at the end of an earlier group, to the last bit.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Seen;
use super::checks::fold_up_to;
use super::disk::{CrashDisk, put_under};
use super::liar::LyingStorage;
use super::model::{State, check_repo};
use super::world::{CACHE_BYTES, End, LOG_ID, Life, World};
use crate::engine::open::{Bounds, open_views};
use crate::engine::{CHECKPOINTS_DIR, LOG_DIR};
use crate::log::{Log, LogReader, Lsn, OpenError};
use crate::storage::{Fault, FaultyStorage, OpenMode, Storage};
use crate::views::View;
use crate::views::accounts::AccountsView;
use crate::views::checkpoint::Checkpoints;
use crate::views::driver::{DriverError, Fold};
use crate::views::index::{self, IndexView};

/// What a disk writes whole or not at all.
pub(super) const SECTOR_BYTES: usize = 512;
/// Sectors that one write loses, at most.
pub(super) const SECTORS_MAX: u64 = 6;

/// What a disk did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lie {
    /// A bit is read as what it was not.
    Flip,
    /// A write was acknowledged and never came to be.
    LostWrite,
    /// A write went to another place.
    Misdirected,
    /// Syncs were acknowledged and did nothing; then power was cut.
    LyingSync,
}

impl World {
    fn bytes_of(&self, path: &Path) -> Vec<u8> {
        let file = self.disk.open(path, OpenMode::Read).unwrap();
        file.stable_bytes().unwrap().to_vec()
    }

    /// A range of whole sectors of a file of `len` bytes, which is not empty.
    fn sectors(&self, len: usize) -> std::ops::Range<usize> {
        let sectors = len.div_ceil(SECTOR_BYTES) as u64;
        let from = usize::try_from(self.below(sectors)).unwrap() * SECTOR_BYTES;
        let many = usize::try_from(1 + self.below(SECTORS_MAX)).unwrap() * SECTOR_BYTES;
        from..len.min(from + many)
    }

    fn tell(&self, lie: Lie, bytes: &mut Vec<u8>, elsewhere: &[u8]) {
        match lie {
            Lie::Flip => {
                let at = usize::try_from(self.below(bytes.len() as u64)).unwrap();
                bytes[at] ^= 1 << self.below(8);
            }
            Lie::LostWrite => {
                let lost = self.sectors(bytes.len());
                bytes[lost].fill(0);
            }
            Lie::Misdirected => {
                let (to, from) = (self.sectors(bytes.len()), self.sectors(elsewhere.len()));
                let len = to.len().min(from.len());
                bytes[to.start..to.start + len].copy_from_slice(&elsewhere[from.start..from.start + len]);
            }
            Lie::LyingSync => {
                let len = usize::try_from(self.below(bytes.len() as u64)).unwrap();
                bytes.truncate(len);
            }
        }
    }

    /// The end of a run: the log's disk lies about something, and the log is opened.
    pub(super) fn lie(&mut self, seen: &mut Seen) {
        let lie = *self.pick(&[Lie::Flip, Lie::LostWrite, Lie::Misdirected, Lie::LyingSync]);
        let told = match self.one_in(2) {
            true => self.live_with_a_liar(lie, seen),
            false => self.lie_at_rest(lie, seen),
        };
        if let Some(path) = told {
            self.say(|| format!("the disk has lied about {}: {lie:?}", path.display()));
            self.judge_lie(&path, seen);
        }
    }

    /// A life in which the disk lies, and after it a crash. Which file it was about, if it came to that.
    fn live_with_a_liar(&mut self, lie: Lie, seen: &mut Seen) -> Option<PathBuf> {
        self.epoch += 1;
        seen.lives += 1;
        self.say(|| format!("a life on a disk that lies: {lie:?}"));
        let liar = LyingStorage::new(Arc::new(self.disk.clone()), self.chance.next_u64());
        let faulty = FaultyStorage::new(Arc::new(liar.clone()));
        let under = Arc::new(CrashDisk::default());
        let guard = put_under(&self.dir.path().join(index::FILE_NAME), &under);
        let mut life = self
            .start(&faulty, &under, seen)
            .expect("a start before anything was wrong");
        self.judge.liar = Some(liar.clone());
        liar.ask(lie, self.below(if lie == Lie::LyingSync { 6 } else { 20 }));
        let ended = (0..10 + self.below(50)).try_for_each(|_| {
            self.step_clock();
            self.step_with_a_liar(&mut life, seen)
        });
        let told = liar.told();
        if let Err(End::Failed(reason)) = ended {
            let names_it = ["is damaged at offset", "reading segment"]
                .iter()
                .any(|words| reason.contains(words));
            assert!(
                told.is_some() && names_it,
                "a life ended without a lie, or does not say where: {reason}"
            );
            self.say(|| format!("  refused: {reason}"));
            self.judge.refused.set(self.judge.refused.get() + 1);
        }
        faulty.inject(Fault::Stop, 0);
        self.die(Some(life), &under, seen);
        drop(guard);
        self.disk.crash(self.chance.next_u64());
        self.judge.liar = None;
        seen.lies_refused_running += self.judge.refused.take();
        let (lie, path) = told?;
        seen.lies_running.insert(lie);
        Some(path)
    }

    /// Everything that writes or reads the log, but compactions: they would take a refusal for a defect.
    fn step_with_a_liar(&mut self, life: &mut Life, seen: &mut Seen) -> Result<(), End> {
        match self.below(24) {
            0..8 => self.commit(life, seen)?,
            8 => self.upload(life, seen)?,
            9..11 => life.log.write()?,
            11..15 => {
                self.durable = life.log.sync()?;
                self.advance_remote();
            }
            15 => self.durable = life.log.seal()?,
            16..19 => {
                self.advance_remote();
                self.apply(life, seen)?;
            }
            19 => life.fold.persist().map_err(|error| End::Failed(error.reason()))?,
            20 => self.check_firehose(life),
            21 => self.rebuild(life, seen),
            _ => self.check(life),
        }
        Ok(())
    }

    /// After a life without lies, one segment's file is not what was reported durable. Which one.
    fn lie_at_rest(&mut self, lie: Lie, seen: &mut Seen) -> Option<PathBuf> {
        // So that there is an open segment.
        self.live(false, None, seen);
        let files: Vec<_> = self
            .segment_files()
            .into_iter()
            .map(|path| (self.bytes_of(&path), path))
            .filter(|(bytes, _)| !bytes.is_empty())
            .collect();
        let (before, path) = match self.one_in(2) {
            true => files.last()?,
            false if files.is_empty() => return None,
            false => self.pick(&files),
        };
        let mut after = before.clone();
        self.tell(lie, &mut after, &self.pick(&files).0);
        if after == *before {
            return None;
        }
        let file = self.disk.open(path, OpenMode::Write).unwrap();
        file.set_len(after.len() as u64).unwrap();
        file.write_at(0, &after).unwrap();
        file.sync_data().unwrap();
        seen.lies.insert(lie);
        Some(path.clone())
    }

    /// The files of the log's segments, ascending.
    fn segment_files(&self) -> Vec<PathBuf> {
        let log_dir = self.dir.path().join(LOG_DIR);
        let names = self.disk.list(&log_dir).unwrap().into_iter();
        let names = names.filter(|name| name.ends_with(".seg"));
        names.map(|name| log_dir.join(name)).collect()
    }

    /// What comes of a lie about the file at `path`: a refusal, or the right answers.
    fn judge_lie(&mut self, path: &Path, seen: &mut Seen) {
        let newest = self.segment_files().pop();
        let log_dir = self.dir.path().join(LOG_DIR);
        let mut found = match Log::recover(Arc::new(self.disk.clone()), &log_dir) {
            Ok(found) => found,
            Err(error @ (OpenError::Io { .. } | OpenError::Locked { .. })) => panic!("{error}"),
            Err(error) => {
                self.say(|| format!("  refused: {error}"));
                seen.lies_refused += 1;
                return;
            }
        };
        let last = found.last_lsn();
        if last < self.durable {
            // As after a torn write. With a replica, whoever compares sees that it has more.
            assert_eq!(
                Some(path),
                newest.as_deref(),
                "what was lost is not at the end, and nobody says so"
            );
            seen.lies_cost_the_tail += 1;
        }
        let Some(state) = self.model.at(last) else {
            panic!("I3: the log ends at {last}, within a group");
        };
        found.disown().unwrap();
        let log = found.reader();
        self.judge_views(&log, last, &state, seen);
        let dir = tempfile::tempdir_in(self.dir.path()).unwrap();
        let mut index = IndexView::open(&dir.path().join(index::FILE_NAME), LOG_ID, CACHE_BYTES).unwrap();
        index.adopt(log.compaction()).unwrap();
        let mut accounts = AccountsView::open_with(dir.path(), LOG_ID, self.config().accounts).unwrap();
        {
            let views: Vec<Box<dyn View + '_>> = vec![Box::new(&mut index), Box::new(&mut accounts)];
            let mut fold = Fold::new(views, |from| log.tail(from), self.batches_for_once());
            match fold_up_to(&mut fold, last) {
                Ok(()) => {}
                Err(DriverError::Read(error)) => {
                    self.say(|| format!("  refused when it is read: {error}"));
                    seen.lies_refused += 1;
                    return;
                }
                Err(error) => panic!("other bytes came out: {}", error.reason()),
            }
        }
        let reader = index.reader().unwrap();
        self.check_views(&reader, &accounts.handle(), &state);
        for repo in state.repos.values() {
            check_repo(repo, &reader, &log, &self.judge);
        }
        seen.lies_survived += 1;
    }

    /// The views that are left are brought to the log's end, or thrown away because it lies before them. What they answer is
    /// right, or refused.
    fn judge_views(&mut self, log: &LogReader, last: Lsn, state: &State, seen: &mut Seen) {
        let config = self.config();
        let checkpoints = Checkpoints::new(config.dir.join(CHECKPOINTS_DIR), LOG_ID);
        let bounds = Bounds {
            log: log.clone(),
            oldest: log.segments().first().map_or(last, |segment| segment.prev),
            target: last,
            end: last,
            log_id: LOG_ID,
            fetched: None,
        };
        let (mut index, mut accounts) = open_views(&config, &checkpoints, &bounds).unwrap();
        self.judge.lied_before = true;
        let folded = {
            let views: Vec<Box<dyn View + '_>> = vec![Box::new(&mut index), Box::new(&mut accounts)];
            fold_up_to(&mut Fold::new(views, |from| log.tail(from), config.driver), last)
        };
        match folded {
            Ok(()) => {
                let reader = index.reader().unwrap();
                self.check_views(&reader, &accounts.handle(), state);
                for repo in state.repos.values() {
                    check_repo(repo, &reader, log, &self.judge);
                }
                seen.lies_survived_by_views += 1;
            }
            Err(DriverError::Read(error)) if self.judge.may_refuse(&error) => {}
            Err(error) => panic!("other bytes came out: {}", error.reason()),
        }
        self.judge.lied_before = false;
        seen.lies_refused += u64::from(self.judge.refused.take() > 0);
    }
}
