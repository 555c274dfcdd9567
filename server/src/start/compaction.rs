//! Compaction in the background: whenever it pays, at a pace that leaves the disk to those who wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use engine::compact::{CompactError, CompactOptions, Pace, Plan, Policy, Stopped};
use engine::engine::Removal;
use engine::log::{Hydrated, Lsn};
use tokio_util::sync::CancellationToken;

use super::checkpoints::ship_checkpoint;
use super::millis;
use super::removals::{self, Removals};
use crate::app::App;

/// How often it is looked whether there is something to do.
const LOOK: Duration = Duration::from_secs(60);
/// How long files that were replaced stay for those who have only a location in hand.
const GRACE: Duration = Duration::from_secs(60);
/// Logs with less to free than this are left alone.
const MIN_DEAD_BYTES: u64 = 32 << 20;
/// Memory for pages of the index that a compaction builds.
const INDEX_CACHE_BYTES: usize = 16 << 20;

/// Looks now and then, and compacts when it pays.
pub(super) async fn compaction(app: Arc<App>, stop: CancellationToken) {
    let mut removals = Removals::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        look(&app, &mut removals, GRACE, &stop).await;
    }
}

/// One look: ends the last compaction, tells what is gone by it, and begins the next if it is due.
pub(super) async fn look(app: &Arc<App>, removals: &mut Removals, grace: Duration, stop: &CancellationToken) {
    let ended = match app.engine.end_compaction(grace).await {
        Ok(Removal::Removed { bytes }) => {
            metrics::counter!("pds_compaction_freed_bytes_total").increment(bytes);
            tracing::info!(bytes, "what a compaction replaced is removed");
            true
        }
        Ok(Removal::Nothing) => true,
        Ok(Removal::InUse) => false,
        Err(error) => {
            tracing::warn!(error = %with_causes(&error), "what a compaction replaced is still there");
            false
        }
    };
    removals.look(app).await;
    if !ended {
        return;
    }
    if let Some(plan) = plan(app).await.filter(|plan| plan.due)
        && is_here(app, &plan, stop).await
    {
        run(app, plan, stop).await;
    }
}

/// Brings back what the compaction reads, if the disk has room for all of it and for what takes its place. What it reads is read in
/// no order, so that fetching it piece by piece would fetch it many times.
async fn is_here(app: &Arc<App>, plan: &Plan, stop: &CancellationToken) -> bool {
    let reader = app.engine.log_reader();
    let away = || reader.away().iter().any(|away| away.info.last <= plan.through);
    let fits = app.shipper.get().is_none() || app.disk.fits(plan.bytes.saturating_add(plan.bytes_after));
    metrics::gauge!("pds_compaction_waits_for_disk").set(f64::from(u8::from(!fits)));
    if !fits {
        tracing::info!(
            bytes = plan.bytes,
            after = plan.bytes_after,
            "a compaction is due and waits: what it reads and what it writes do not fit into the disk budget together"
        );
        return false;
    }
    let pace = pace(app.config.compaction.bytes_per_second, stop.clone());
    while away() {
        let (reader, through, pace) = (reader.clone(), plan.through, pace.clone());
        let step = move || {
            let fetched = reader.hydrate_through(through)?;
            if let Hydrated::Piece { bytes } = fetched
                && pace(bytes).is_err()
            {
                return Ok(Hydrated::Nothing);
            }
            Ok::<_, engine::log::ReadError>(fetched)
        };
        match tokio::task::spawn_blocking(step).await {
            Ok(Ok(Hydrated::Piece { .. } | Hydrated::Segment { .. })) => {}
            Ok(Ok(Hydrated::Nothing | Hydrated::Damaged { .. })) | Err(_) => return false,
            Ok(Err(error)) => {
                tracing::warn!(%error, "a compaction is due and waits: what it reads cannot be fetched from the replica");
                return false;
            }
        }
    }
    true
}

async fn plan(app: &Arc<App>) -> Option<Plan> {
    let settings = app.config.compaction;
    let now = app.engine.now_micros();
    let before = |age: Duration| {
        let age = u64::try_from(age.as_micros()).unwrap_or(u64::MAX);
        Lsn::saturating(now.saturating_sub(age))
    };
    let erase = if settings.enabled {
        removals::due(app, &before).await
    } else {
        None
    };
    let shipped = app.shipper.get().map_or(Lsn::MAX, |shipper| shipper.covered());
    let policy = Policy {
        limit: before(app.config.firehose_retention).min(shipped),
        min_dead_share: if settings.enabled {
            settings.min_dead_share
        } else {
            f64::INFINITY
        },
        min_dead_bytes: MIN_DEAD_BYTES,
        force_before: if settings.enabled {
            before(app.config.firehose_retention.saturating_add(settings.force_after))
        } else {
            Lsn::ZERO
        },
        erase,
    };
    let engine = app.engine.clone();
    let planned = tokio::task::spawn_blocking(move || engine.plan_compaction(&policy)).await;
    match planned {
        Ok(Ok(plan)) => {
            metrics::gauge!("pds_compaction_eligible_bytes").set(plan.map_or(0, |plan| plan.bytes) as f64);
            metrics::gauge!("pds_compaction_dead_bytes").set(plan.map_or(0, |plan| plan.freed()) as f64);
            plan
        }
        Ok(Err(error)) => {
            tracing::warn!(error = %with_causes(&error), "the log's dead bytes cannot be counted");
            None
        }
        Err(_) => None,
    }
}

async fn run(app: &Arc<App>, plan: Plan, stop: &CancellationToken) {
    tracing::info!(
        through = plan.through.get(),
        segments = plan.segments,
        bytes = plan.bytes,
        dead = plan.freed(),
        "a compaction begins"
    );
    let started = Instant::now();
    let options = CompactOptions {
        segment_bytes: app.config.log_segment_bytes,
        index_cache_bytes: INDEX_CACHE_BYTES,
        pace: pace(app.config.compaction.bytes_per_second, stop.clone()),
    };
    match app.engine.compact(plan.through, options).await {
        Ok(done) => {
            metrics::counter!("pds_compactions_total", "outcome" => "done").increment(1);
            metrics::histogram!("pds_compaction_seconds").record(started.elapsed().as_secs_f64());
            tracing::info!(
                number = done.compaction,
                before = done.bytes_before,
                after = done.bytes_after,
                records = done.records,
                ms = millis(started.elapsed()),
                "a compaction took effect"
            );
            // First, so that what the index's file had of removed repos does not come into the replica.
            if let Err(error) = removals::erase(app).await {
                tracing::warn!(%error, "something of removed repos is still on the disk; it is tried again");
            }
            // The replica names no checkpoint until there is one of the new segments.
            if let Some(lsn) = newest_checkpoint(app) {
                let dir = app.engine.checkpoints().dir_of(lsn);
                if let Err(error) = ship_checkpoint(app, &dir, lsn).await {
                    tracing::warn!(%error, "the checkpoint after a compaction was not shipped; the next one is");
                }
            }
        }
        Err(CompactError::Stopped(_)) => tracing::info!("a compaction was given up because the server stops"),
        Err(error) => {
            metrics::counter!("pds_compactions_total", "outcome" => "failed").increment(1);
            tracing::error!(error = %with_causes(&error), "a compaction failed; no entry is lost by it");
        }
    }
}

pub(super) fn newest_checkpoint(app: &App) -> Option<Lsn> {
    app.engine.checkpoints().list().ok()?.into_iter().next()
}

/// At most so many bytes a second are read and written, counted from the first. Is called on a thread for blocking work.
fn pace(bytes_per_second: u64, stop: CancellationToken) -> Pace {
    let (begun, done) = (Instant::now(), AtomicU64::new(0));
    let runtime = tokio::runtime::Handle::current();
    Arc::new(move |bytes| {
        let so_far = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let due = Duration::from_secs_f64(so_far as f64 / bytes_per_second.max(1) as f64);
        let early = due.saturating_sub(begun.elapsed());
        let stopped = stop.is_cancelled()
            || !early.is_zero()
                && runtime.block_on(async { tokio::time::timeout(early, stop.cancelled()).await.is_ok() });
        if stopped { Err(Stopped) } else { Ok(()) }
    })
}

pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_pace_holds_up_and_ends_when_the_server_stops() {
        let stop = CancellationToken::new();
        let slow = pace(1_000, stop.clone());
        let begun = Instant::now();
        let slow = tokio::task::spawn_blocking(move || {
            slow(50).unwrap();
            slow
        });
        let slow = slow.await.unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(45));
        let held = tokio::task::spawn_blocking(move || slow(1_000_000));
        stop.cancel();
        assert_eq!(held.await.unwrap(), Err(Stopped));
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
}
