//! Compaction of a data directory that no server has open.

use std::sync::Arc;

use super::{CompactError, CompactOptions, Compacted, Plan, Policy, check, follow, inputs, plan, rewrite};
use crate::engine::{Bounds, CHECKPOINTS_DIR, EngineConfig, EngineError, LOG_DIR, open_views};
use crate::log::{Log, Lsn};
use crate::storage::Storage;
use crate::views::View;
use crate::views::checkpoint::{CheckpointError, Checkpoints, ViewSnapshot};
use crate::views::driver::Fold;
use crate::views::index::Renewal;

/// Rows that a piece of a sweep takes from the index.
const SWEEP_ROWS: usize = 10_000;

/// Why a directory was not compacted.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The log or the views cannot be opened.
    #[error(transparent)]
    Open(#[from] EngineError),
    /// The compaction failed.
    #[error(transparent)]
    Compact(#[from] CompactError),
}

/// What was or would be done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OfflineReport {
    /// What there is to do; `None` if nothing may be compacted.
    pub plan: Option<Plan>,
    /// What was done; `None` for a dry run, or if it was not due.
    pub done: Option<Compacted>,
}

fn fail(error: impl Into<CompactError>) -> OfflineError {
    OfflineError::Compact(error.into())
}

/// Compacts the directory of `config` as `policy` says, which decides also for a dry run. A compaction that a crash has
/// interrupted is ended first, also by a dry run. The views are brought up to what is compacted, no further.
///
/// # Errors
/// [`OfflineError`]. Doing it again is always safe.
pub fn compact_offline(
    config: &EngineConfig,
    storage: Arc<dyn Storage>,
    policy: &Policy,
    options: &CompactOptions,
    dry_run: bool,
) -> Result<OfflineReport, OfflineError> {
    let mut recovered = Log::recover(storage, &config.dir.join(LOG_DIR)).map_err(EngineError::from)?;
    recovered.disown().map_err(EngineError::from)?;
    let log = recovered.reader();
    let nothing = OfflineReport {
        plan: None,
        done: None,
    };
    let Some(log_id) = recovered.log_id() else {
        return Ok(nothing);
    };
    let epoch = recovered.last_epoch();
    let sealed = log.segments().into_iter().filter(|segment| segment.sealed);
    let Some(reach) = sealed
        .map(|segment| segment.last)
        .filter(|last| *last <= policy.limit)
        .max()
    else {
        return Ok(nothing);
    };
    let checkpoints = Checkpoints::new(config.dir.join(CHECKPOINTS_DIR), log_id);
    let bounds = Bounds {
        oldest: log.segments().first().map_or(Lsn::ZERO, |first| first.prev),
        log: log.clone(),
        target: reach,
        end: recovered.last_lsn(),
        log_id,
        fetched: None,
    };
    let (mut index, mut accounts) = open_views(config, &checkpoints, &bounds)?;
    {
        let views: Vec<Box<dyn View + '_>> = vec![Box::new(&mut index), Box::new(&mut accounts)];
        let mut fold = Fold::new(views, |from| log.tail(from), config.driver);
        fold.replay(reach, &mut |_| {}).map_err(fail)?;
    }
    while index.sweep(SWEEP_ROWS).map_err(fail)? {}
    let reader = index.reader().map_err(fail)?;
    let planned = plan(&log.segments(), &reader.segments().map_err(fail)?, policy);
    let Some(due) = planned.filter(|plan| plan.due && !dry_run) else {
        return Ok(OfflineReport {
            plan: planned,
            done: None,
        });
    };
    let (written, done) = rewrite(&log, log_id, due.through, &config.dir, options)?;
    let inputs = inputs(&log, due.through).map(|segment| segment.base).collect();
    check(written.reader(), due.through, &reader, &inputs)?;
    drop(reader);
    written.commit().map_err(fail)?;
    follow(&log, &index.source())?;
    accounts
        .persist()
        .map_err(|error| fail(crate::views::driver::DriverError::View(error)))?;
    let checkpoint = |error: CheckpointError| fail(CompactError::Checkpoint(Box::new(error)));
    let (index_copy, accounts_copy) = (
        index.reader().map_err(fail)?,
        accounts.handle().snapshot().map_err(fail)?,
    );
    let snapshots: [&dyn ViewSnapshot; 2] = [&index_copy, &accounts_copy];
    // They have the places of before.
    checkpoints.prune(0).map_err(checkpoint)?;
    if index.applied() == accounts.applied() {
        checkpoints.take(&snapshots, epoch).map_err(checkpoint)?;
    }
    log.end_compaction().map_err(fail)?;
    drop((index_copy, accounts_copy));
    match accounts.handle().empty_wal_blocking() {
        Ok(true) => {}
        Ok(false) => tracing::info!("the account database keeps its write-ahead file"),
        Err(error) => tracing::warn!(%error, "the account database keeps its write-ahead file"),
    }
    let applied = index.applied();
    let source = index.source();
    let renewal = Renewal::prepare(
        &source,
        &config.dir,
        log_id,
        config.index_cache_bytes,
        log,
        config.driver,
        || applied,
    );
    renewal
        .and_then(|renewal| renewal.finish(&source))
        .map_err(fail)?;
    index
        .persist()
        .map_err(|error| fail(crate::views::driver::DriverError::View(error)))?;
    Ok(OfflineReport {
        plan: planned,
        done: Some(done),
    })
}
