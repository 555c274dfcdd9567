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
use crate::views::index::{self, IndexReader, OldSnapshots};

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
    },
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
            }) => {
                assert!(!snapshots.are_gone(), "a snapshot is held and not counted");
                for repo in state.repos.values() {
                    check_repo(repo, &reader, &life.log.reader, &self.verified);
                }
                if self.one_in(2) {
                    life.compacting = Some(Compacting::Replaced {
                        reader,
                        state,
                        snapshots,
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
        while life.index.reader().map_err(read)?.is_unswept().map_err(read)? {
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
        });
        seen.compactions += 1;
        Ok(())
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
        let policy = Policy {
            limit: self.mark(),
            min_dead_share: 0.0,
            min_dead_bytes: 0,
            force_before: Lsn::ZERO,
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
