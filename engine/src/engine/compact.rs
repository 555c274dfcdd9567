//! Compaction of a running engine. See [`compact`](crate::compact) for what it does and why nothing is lost by it.
//!
//! | crash                                  | the next start                                                              |
//! |----------------------------------------|-----------------------------------------------------------------------------|
//! | while segments are written or checked  | removes them                                                                |
//! | after they count                       | lets the index follow, or rebuilds it; removes what was replaced            |
//! | before the checkpoint                  | has no local one until the next; those with the old places are of no use     |

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Engine;
use crate::compact::{self, CompactError, CompactOptions, Compacted, Plan, Policy};
use crate::log::{CompactionError, Lsn};
use crate::views::driver::{DriverConfig, DriverError};
use crate::views::index::{IndexError, OldSnapshots, Renewal, remove_leftovers};

/// How long a compaction waits until rows that are gone are swept from the index.
const SWEEP_WAIT: Duration = Duration::from_secs(60);
/// How often it looks.
const SWEEP_POLL: Duration = Duration::from_millis(50);

/// What a compaction has replaced, and who may still read it.
#[derive(Debug)]
pub(super) struct Replaced {
    snapshots: OldSnapshots,
    since: Instant,
}

/// How far the removal of what a compaction has replaced is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// There is nothing to remove.
    Nothing,
    /// Somebody may still read it; ask again later.
    InUse,
    /// It is gone.
    Removed {
        /// Bytes of the files.
        bytes: u64,
    },
}

impl Engine {
    /// Whether a compaction pays now; `None` if nothing may be compacted. Never goes beyond what is applied.
    ///
    /// # Errors
    /// The index failed.
    pub fn plan_compaction(&self, policy: &Policy) -> Result<Option<Plan>, IndexError> {
        let policy = Policy {
            limit: policy.limit.min(self.applied().get()),
            ..*policy
        };
        Ok(compact::plan(
            &self.segments(),
            &self.reader()?.segments()?,
            &policy,
        ))
    }

    /// Compacts everything up to `through`, the last LSN of a sealed segment that is applied and, with a replica, shipped.
    /// Writes go on meanwhile; the firehose begins after `through` from then on. What is replaced stays readable until
    /// [`Engine::end_compaction`] removes it.
    ///
    /// # Errors
    /// [`CompactError`].
    pub async fn compact(&self, through: Lsn, options: CompactOptions) -> Result<Compacted, CompactError> {
        let inner = &self.inner;
        let _one_at_a_time = inner.compacting.lock().await;
        if self.log_reader().pending_compaction().is_some() {
            return Err(CompactionError::Unfinished.into());
        }
        if through > self.applied().get() {
            return Err(CompactError::Unfit(format!("{through} is not applied yet")));
        }
        let (log, log_id, dir) = (self.log_reader(), self.log_id(), inner.dir.clone());
        let inputs: BTreeSet<Lsn> = compact::inputs(&log, through)
            .map(|segment| segment.base)
            .collect();
        let (written, done) =
            blocking(move || compact::rewrite(&log, log_id, through, &dir, &options)).await?;

        // A checkpoint that is taken while rows move would be of no use.
        let _no_checkpoint = inner.checkpointing.lock().await;
        let (log, index, accounts) = (self.log_reader(), inner.index.clone(), inner.accounts.clone());
        let until = Instant::now() + SWEEP_WAIT;
        while inner.index.reader()?.is_unswept()? && Instant::now() < until {
            tokio::time::sleep(SWEEP_POLL).await;
        }
        blocking(move || {
            compact::check(written.reader(), through, &index.reader()?, &inputs)?;
            written.commit()?;
            compact::follow(&log, &index)?;
            Ok(accounts.persist_blocking()?)
        })
        .await?;
        let snapshots = inner.index.old_snapshots();
        // They have the places of before; one of the same LSN would stand in the way of the new one.
        let checkpoints = inner.checkpoints.clone();
        blocking(move || {
            let pruned = checkpoints.prune(0);
            pruned.map_err(|error| CompactError::Checkpoint(Box::new(error)))
        })
        .await?;
        self.checkpoint_alone()
            .await
            .map_err(|error| CompactError::Checkpoint(Box::new(error)))?;
        *inner.replaced.lock() = Some(Replaced {
            snapshots,
            since: Instant::now(),
        });
        if let Err(error) = self.renew_index().await {
            tracing::warn!(%error, "the index keeps its file, which is bigger than it need be");
            // Perhaps the disk is full: what was copied must not stay on it until the next start.
            if let Err(error) = remove_leftovers(&inner.dir) {
                tracing::warn!(%error, "the unfinished copy of the index stays until the next start");
            }
        }
        Ok(done)
    }

    /// Puts a dense file in the place of the index's. For who has the locks of compaction and checkpoints.
    pub(super) async fn renew_index(&self) -> Result<(), CompactError> {
        let inner = Arc::clone(&self.inner);
        let log = self.log_reader();
        let renewal = blocking(move || {
            Ok(Renewal::prepare(
                &inner.index,
                &inner.dir,
                inner.log_id,
                inner.index_cache_bytes,
                log,
                DriverConfig::default(),
                || inner.applied.get(),
            )?)
        })
        .await?;
        let driver = self.inner.driver.lock().clone().ok_or(DriverError::Stopped)?;
        let index = self.inner.index.clone();
        let retired = driver.between(move || renewal.finish(&index)).await??;
        drop(driver);
        let dir = self.inner.dir.clone();
        blocking(move || {
            drop(retired);
            let synced = std::fs::File::open(&dir).and_then(|dir| dir.sync_all());
            synced.map_err(|source| CompactError::Io {
                what: format!("syncing {}", dir.display()),
                source,
            })
        })
        .await
    }

    /// Removes the files that the last compaction has replaced, once every snapshot of the index that was taken before is
    /// gone and `grace` has passed for those who have only a location in hand.
    ///
    /// # Errors
    /// The disk's; the next start does the rest.
    pub async fn end_compaction(&self, grace: Duration) -> Result<Removal, CompactError> {
        if self.log_reader().pending_compaction().is_none() {
            return Ok(Removal::Nothing);
        }
        {
            let replaced = self.inner.replaced.lock();
            // Without it the compaction went wrong after it took effect: what it replaced is kept for the next start.
            let free = replaced
                .as_ref()
                .is_some_and(|old| old.snapshots.are_gone() && old.since.elapsed() >= grace);
            if !free {
                return Ok(Removal::InUse);
            }
        }
        let log = self.log_reader();
        let bytes = blocking(move || Ok(log.end_compaction()?)).await?;
        *self.inner.replaced.lock() = None;
        Ok(Removal::Removed { bytes })
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CompactError> + Send + 'static,
) -> Result<T, CompactError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(CompactError::Unfit("the work was lost: a defect".to_owned())))
}
