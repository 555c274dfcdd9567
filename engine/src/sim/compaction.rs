//! Compactions: of a running process, step by step between everything else, and of a directory that no process has open.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Seen;
use super::disk::{CrashDisk, put_under};
use super::model::{State, check_repo};
use super::world::{CACHE_BYTES, End, LOG_ID, Life, World, read_accounts};
use crate::compact::{
    self, CompactError, CompactOptions, OfflineError, Pace, Policy, Stopped, compact_offline,
};
use crate::log::{Lsn, WrittenCompaction};
use crate::storage::FaultyStorage;
use crate::views::driver::DriverError;
use crate::views::index::{self, IndexReader, OldSnapshots, Renewal};

/// Pieces of a sweep that a compaction waits for.
const SWEEPS_MAX: u32 = 1_000;

/// How far a compaction is.
pub(super) enum Compacting {
    /// Its segments are written and count for nothing yet.
    Written {
        written: Box<WrittenCompaction>,
        through: Lsn,
        inputs: BTreeSet<Lsn>,
    },
    /// It counts; somebody still reads what it replaced.
    Replaced {
        reader: IndexReader,
        state: State,
        snapshots: OldSnapshots,
        renewing: Renewing,
    },
}

/// How far the new file of the index is.
pub(super) enum Renewing {
    Due,
    /// It is as far as the live one was.
    Prepared(Box<Renewal>),
    /// It is the live one, and its name is not durable.
    Named,
    /// There is one, or there will be none.
    Over,
}

impl Compacting {
    /// Whether the engine takes no checkpoint now.
    pub(super) fn keeps_checkpoints_off(&self) -> bool {
        matches!(
            self,
            Compacting::Replaced {
                renewing: Renewing::Due | Renewing::Prepared(_) | Renewing::Named,
                ..
            }
        )
    }
}

/// A compaction may fail because a disk did, and for no other reason.
fn excuse(error: CompactError) -> End {
    match error {
        CompactError::Damaged { .. }
        | CompactError::Tree { .. }
        | CompactError::Unfit(_)
        | CompactError::Unswept
        | CompactError::Stopped(_) => panic!("a compaction is refused: {error}"),
        _ => End::Failed(format!("{error:?}")),
    }
}

impl World {
    /// Begins a compaction, or takes the next step of one.
    pub(super) fn compact(&mut self, life: &mut Life, seen: &mut Seen) -> Result<(), End> {
        match life.compacting.take() {
            None => self.begin_compaction(life, seen),
            Some(Compacting::Written {
                written,
                through,
                inputs,
            }) => self.take_over(life, *written, through, &inputs, seen),
            Some(Compacting::Replaced {
                reader,
                state,
                snapshots,
                renewing,
            }) => {
                assert!(!snapshots.are_gone(), "a snapshot is held and not counted");
                let renewing = self.renew(life, renewing, seen);
                let goes_on = !matches!(renewing, Renewing::Over) || self.one_in(2);
                // For the last time, and sometimes before.
                if !goes_on || self.one_in(3) {
                    for repo in state.repos.values() {
                        check_repo(repo, &reader, &life.log.reader, &self.judge);
                    }
                }
                if goes_on {
                    life.compacting = Some(Compacting::Replaced {
                        reader,
                        state,
                        snapshots,
                        renewing,
                    });
                    return Ok(());
                }
                drop(reader);
                assert!(snapshots.are_gone(), "nobody holds a snapshot of before");
                self.say(|| "  the compaction ends".to_owned());
                life.log
                    .reader
                    .end_compaction()
                    .map_err(|error| excuse(error.into()))?;
                seen.compactions_ended += 1;
                Ok(())
            }
        }
    }

    fn begin_compaction(&mut self, life: &mut Life, seen: &mut Seen) -> Result<(), End> {
        let log = &life.log.reader;
        if log.pending_compaction().is_some() {
            return Ok(());
        }
        let reach = life.fold.applied().min(self.mark());
        let segments = log.segments();
        let may: Vec<Lsn> = segments
            .iter()
            .filter(|segment| segment.sealed && segment.last <= reach)
            .map(|segment| segment.last)
            .collect();
        if may.is_empty() {
            return Ok(());
        }
        let through = *self.pick(&may);
        let options = self.compact_options();
        let inputs = compact::inputs(log, through)
            .map(|segment| segment.base)
            .collect();
        self.say(|| format!("  compacts through {through}"));
        match compact::rewrite(log, LOG_ID, through, &life.config.dir, &options) {
            Ok((written, _)) => {
                life.compacting = Some(Compacting::Written {
                    written: Box::new(written),
                    through,
                    inputs,
                });
                Ok(())
            }
            Err(CompactError::Stopped(_)) => {
                assert_eq!(
                    log.segments(),
                    segments,
                    "a compaction that was stopped changed the log"
                );
                seen.compactions_stopped += 1;
                Ok(())
            }
            Err(error) => Err(excuse(error)),
        }
    }

    fn compact_options(&self) -> CompactOptions {
        let stop_at = self.one_in(8).then(|| self.below(6));
        let calls = AtomicU64::new(0);
        let pace: Pace = Arc::new(move |_| {
            let call = calls.fetch_add(1, Ordering::Relaxed);
            if stop_at.is_some_and(|at| call >= at) {
                Err(Stopped)
            } else {
                Ok(())
            }
        });
        CompactOptions {
            segment_bytes: 2_000 + self.below(30_000),
            index_cache_bytes: CACHE_BYTES,
            pace,
        }
    }

    /// As [`crate::engine::Engine::compact`] once the segments are written.
    fn take_over(
        &mut self,
        life: &mut Life,
        written: WrittenCompaction,
        through: Lsn,
        inputs: &BTreeSet<Lsn>,
        seen: &mut Seen,
    ) -> Result<(), End> {
        let failed = |error: crate::views::driver::DriverError| End::Failed(error.reason());
        let read = |error: index::IndexError| excuse(error.into());
        let mut pieces = 0..SWEEPS_MAX;
        while life.index.reader().map_err(read)?.is_unswept().map_err(read)? {
            assert!(pieces.next().is_some(), "rows that are gone are never swept");
            life.fold.tidy().map_err(failed)?;
        }
        let reader = life.index.reader().map_err(read)?;
        compact::check(written.reader(), through, &reader, inputs).map_err(excuse)?;
        written.commit().map_err(|error| excuse(error.into()))?;
        compact::follow(&life.log.reader, &life.index).map_err(excuse)?;
        life.fold.persist().map_err(failed)?;
        self.floor = through;
        let snapshots = life.index.old_snapshots();
        self.say(|| format!("  compacted through {through}"));
        life.checkpoints.prune(0).unwrap();
        self.checkpoint(life, seen);
        self.check(life);
        let Some(state) = self.model.at(life.fold.applied()) else {
            panic!("I3: the views show a part of a group");
        };
        life.compacting = Some(Compacting::Replaced {
            reader,
            state,
            snapshots,
            renewing: Renewing::Due,
        });
        seen.compactions += 1;
        Ok(())
    }

    /// The next step to a new file of the index, or a few. One that fails leaves the live one as it is.
    fn renew(&mut self, life: &mut Life, mut renewing: Renewing, seen: &mut Seen) -> Renewing {
        loop {
            renewing = match renewing {
                Renewing::Due => self.prepare_renewal(life, seen),
                Renewing::Prepared(renewal) => self.finish_renewal(life, *renewal, seen),
                Renewing::Named | Renewing::Over => {
                    self.settle_names(false, seen);
                    Renewing::Over
                }
            };
            if matches!(renewing, Renewing::Over) || self.one_in(2) {
                return renewing;
            }
        }
    }

    fn prepare_renewal(&mut self, life: &Life, seen: &mut Seen) -> Renewing {
        if self.one_in(4) {
            life.disks.1.no_room_after(self.below(60));
        }
        let applied = life.fold.applied();
        let renewal = Renewal::prepare(
            &life.index,
            &life.config.dir,
            LOG_ID,
            CACHE_BYTES,
            life.log.reader.clone(),
            life.config.driver,
            || applied,
        );
        self.say(|| format!("  a new file of the index: {:?}", renewal.as_ref().map(drop)));
        match renewal {
            Ok(renewal) => Renewing::Prepared(Box::new(renewal)),
            Err(error) => self.no_renewal(life, &error, seen),
        }
    }

    fn finish_renewal(&mut self, life: &Life, renewal: Renewal, seen: &mut Seen) -> Renewing {
        self.keep_old_name();
        let finished = renewal.finish(&life.index);
        self.say(|| {
            format!(
                "  it takes the live one's place: {:?}",
                finished.as_ref().map(drop)
            )
        });
        match finished {
            Ok(retired) => {
                life.disks.1.new_is_over();
                drop(retired);
                self.check(life);
                seen.renewals += 1;
                Renewing::Named
            }
            Err(error) => self.no_renewal(life, &error, seen),
        }
    }

    /// As the engine, which goes on with the file that it has.
    fn no_renewal(&self, life: &Life, error: &DriverError, seen: &mut Seen) -> Renewing {
        let (faulty, under) = &life.disks;
        assert!(
            under.was_full() || under.struck() || !faulty.struck().is_empty(),
            "a renewal failed without a fault: {}",
            error.reason()
        );
        under.new_is_over();
        index::remove_leftovers(&life.config.dir).unwrap();
        self.settle_names(false, seen);
        self.check_heads(life);
        seen.renewals_failed += 1;
        Renewing::Over
    }

    /// A compaction while no process runs, with faults of its own, and perhaps a crash.
    pub(super) fn compact_between_lives(&mut self, seen: &mut Seen) {
        let faulty = FaultyStorage::new(Arc::new(self.disk.clone()));
        let under = Arc::new(CrashDisk::default());
        self.say(|| "compaction between two lives".to_owned());
        if self.one_in(2) {
            self.inject(&faulty, &under);
        }
        let guard = put_under(&self.dir.path().join(index::FILE_NAME), &under);
        self.keep_old_name();
        let policy = Policy {
            limit: self.mark(),
            min_dead_share: 0.0,
            min_dead_bytes: 0,
            force_before: Lsn::ZERO,
            erase: None,
        };
        let options = self.compact_options();
        let dry_run = self.one_in(5);
        let done = compact_offline(
            &self.config(),
            Arc::new(faulty.clone()),
            &policy,
            &options,
            dry_run,
        );
        match done {
            Ok(report) => {
                *self.accounts_saved.lock() = read_accounts(self.dir.path());
                if let Some(done) = report.done {
                    assert!(!dry_run, "a dry run has compacted");
                    self.say(|| format!("  compacted through {}", done.through));
                    self.floor = done.through;
                    seen.compactions_offline += 1;
                }
            }
            Err(OfflineError::Compact(CompactError::Stopped(_))) => seen.compactions_stopped += 1,
            Err(error) => {
                assert!(
                    !faulty.struck().is_empty() || under.struck(),
                    "a compaction failed without a fault: {error:?}"
                );
                if let OfflineError::Compact(error) = error {
                    let _ = excuse(error);
                }
            }
        }
        seen.faults.extend(faulty.struck());
        seen.index_faults += u64::from(under.struck());
        self.die(None, &under, seen);
        drop(guard);
        self.disk.crash(self.chance.next_u64());
    }
}
