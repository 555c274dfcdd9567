//! Restore drills and the scrubbing of the replica, in the background, one after the other, on a thread that stands back behind
//! all others and reads no faster than it may.
//!
//! | crash in | leaves | and the next start |
//! |---|---|---|
//! | a drill | a scratch directory | removes it; the drill is due as it was |
//! | the scrubbing of an object | the same | the same; it goes on behind the last object that was noted |

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use audit::drill::{self, Drill, DrillOptions};
use audit::{Meter, Report, Room};
use shipper::store::counted::Purpose;
use shipper::store::{ReplicaStore, for_purpose};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::compose::empty_dir;
use crate::app::App;
use crate::service::drills::Drills;
use crate::service::replication::Replication;

/// In the data directory: what drills restore. Of no use after a crash.
const SCRATCH: &str = "drill-tmp";
/// Memory for pages of an index; a drill has two open.
const INDEX_CACHE_BYTES: usize = 4 << 20;
/// How nice the thread is.
const NICENESS: i32 = 19;
/// How soon a start without a record makes its first drill, at the latest when the first interval is over.
const FIRST: Duration = Duration::from_secs(3_600);
/// How soon one is tried again that could not be run to its end.
const AGAIN: Duration = Duration::from_secs(3_600);
/// The shortest pause between two objects that are scrubbed.
const SCRUB_PAUSE: Duration = Duration::from_secs(1);
/// The longest wait between two looks at what is due.
const LOOK: Duration = Duration::from_secs(600);

/// Makes drills and scrubs whenever that is due.
pub(super) async fn drills(app: Arc<App>, store: Arc<dyn ReplicaStore>, stop: CancellationToken) {
    let Some(replication) = app.replication.get() else {
        return;
    };
    let settings = app.config.drills;
    let scratch = app.config.data_dir.join(SCRATCH);
    // What a crash has left takes room until then.
    let _absent = tokio::fs::remove_dir_all(&scratch).await;
    let started = replication.clock.now_micros();
    let due = || {
        drill_due(
            &replication.drills,
            settings.interval,
            started,
            replication.clock.now_micros(),
        )
    };
    let scrubs = !settings.scrub_interval.is_zero();
    let mut scrub_at = Instant::now() + LOOK;
    loop {
        let scrub_in = scrubs.then(|| scrub_at.saturating_duration_since(Instant::now()));
        let wait = due().into_iter().chain(scrub_in).min();
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait.unwrap_or(LOOK).min(LOOK)) => {}
        }
        if due() == Some(Duration::ZERO) {
            one_drill(&app, replication, &store, &scratch, &stop).await;
        } else if scrubs && Instant::now() >= scrub_at {
            let pause = scrub_one(&app, replication, &store, &scratch, &stop).await;
            scrub_at = Instant::now() + pause;
        }
    }
}

/// How long until a drill is due; `None` if none ever is. `started` and `now` are microseconds since 1970.
fn drill_due(drills: &Drills, interval: Duration, started: u64, now: u64) -> Option<Duration> {
    if interval.is_zero() {
        return None;
    }
    let record = drills.record();
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let due = match (record.last_run, &record.failure) {
        (None, _) => started.saturating_add(micros(interval.min(FIRST))),
        (Some(last), None) => last.saturating_add(micros(interval)),
        (Some(last), Some(_)) => last.saturating_add(micros(interval.min(AGAIN))),
    };
    Some(Duration::from_micros(due.saturating_sub(now)))
}

async fn one_drill(
    app: &App,
    replication: &Replication,
    store: &Arc<dyn ReplicaStore>,
    scratch: &Path,
    stop: &CancellationToken,
) {
    let settings = app.config.drills;
    let store = for_purpose(store, Purpose::Drill);
    let meter = Throttle::new(settings.bytes_per_second, stop.clone());
    let memory = app.config.memory.drills;
    let (keep_free, request_timeout) = (app.config.import_disk.keep_free, app.config.replica_timeout);
    let (seed, engine) = (replication.clock.now_micros(), app.engine.clone());
    let begun = Instant::now();
    let ran = on_a_nice_thread(scratch.to_owned(), move |runtime, scratch| {
        let live = || Ok(engine.reader()?);
        let options = DrillOptions {
            room: Room {
                temp: scratch,
                index_cache_bytes: INDEX_CACHE_BYTES,
                live: Some(&live),
            },
            // Without memory for it, the replica is sampled.
            whole: memory > 0,
            disk_bytes: settings.disk_bytes,
            keep_free,
            request_timeout,
            seed,
        };
        let mut told = Vec::new();
        let drill = drill::run(runtime, &store, options, &meter, &mut told);
        (drill, String::from_utf8_lossy(&told).into_owned())
    })
    .await;
    if stop.is_cancelled() {
        return;
    }
    let (outcome, failure) = match &ran {
        Ok((Ok(drill), _)) if drill.findings == 0 => ("clean", None),
        Ok((Ok(_), told)) => ("damaged", Some(damage_in(told))),
        Ok((Err(error), _)) => (
            "error",
            Some(format!("it could not be run to its end: {error:#}")),
        ),
        Err(error) => ("error", Some(error.clone())),
    };
    metrics::counter!("pds_drills_total", "outcome" => outcome).increment(1);
    metrics::histogram!("pds_drill_seconds").record(begun.elapsed().as_secs_f64());
    let now = replication.clock.now_micros();
    let seconds = begun.elapsed().as_secs();
    match (&failure, ran) {
        (
            None,
            Ok((
                Ok(Drill {
                    whole, last, needs, ..
                }),
                _,
            )),
        ) => {
            tracing::info!(
                whole,
                last = last.get(),
                needs,
                seconds,
                "the replica restores: a drill has succeeded"
            );
            replication.drills.note(|record| {
                record.last_success = Some(now);
                (record.whole, record.restored_lsn) = (whole, last.get());
            });
        }
        (failure, _) => {
            let failure = failure.as_deref().unwrap_or_default();
            tracing::error!(seconds, "a restore drill has failed: {failure}");
        }
    }
    replication.drills.note(|record| {
        record.last_run = Some(now);
        record.failure = failure;
    });
}

/// The lines of a report that tell of damage.
fn damage_in(report: &str) -> String {
    let damage: Vec<&str> = report.lines().filter(|line| line.starts_with("DAMAGE")).collect();
    damage.join("; ")
}

/// Compares the next object with its digest. How long to wait until the one after it, so that all of them take the interval.
async fn scrub_one(
    app: &App,
    replication: &Replication,
    store: &Arc<dyn ReplicaStore>,
    scratch: &Path,
    stop: &CancellationToken,
) -> Duration {
    let settings = app.config.drills;
    let manifest = replication.ship.manifest();
    let files = manifest
        .checkpoints
        .iter()
        .map(|checkpoint| checkpoint.files.len());
    let objects = manifest.segments.len() + files.sum::<usize>();
    if objects == 0 {
        return LOOK;
    }
    let share = settings.scrub_interval / u32::try_from(objects).unwrap_or(u32::MAX);
    let share = share.max(SCRUB_PAUSE);
    let store = for_purpose(store, Purpose::Scrub);
    let meter = Throttle::new(settings.bytes_per_second, stop.clone());
    let after = replication.drills.record().scrubbed;
    let ran = on_a_nice_thread(scratch.to_owned(), move |runtime, scratch| {
        let mut told = Vec::new();
        let mut report = Report::new(&mut told, &meter);
        let looked = runtime.block_on(audit::replica::next_object(
            &store,
            scratch,
            &manifest,
            &after,
            &mut report,
        ));
        let findings = report.findings();
        drop(report);
        (looked, findings, String::from_utf8_lossy(&told).into_owned())
    })
    .await;
    if stop.is_cancelled() {
        return share;
    }
    let now = replication.clock.now_micros();
    match ran {
        Ok((Ok(Some((object, bytes))), findings, told)) => {
            metrics::counter!("pds_scrub_objects_total").increment(1);
            metrics::counter!("pds_scrub_bytes_total").increment(bytes);
            if findings > 0 {
                metrics::counter!("pds_scrub_findings_total").increment(findings);
                tracing::error!("scrubbing the replica found damage: {}", told.trim());
            }
            replication.drills.note(|record| {
                record.round_began.get_or_insert(now);
                record.round_objects += 1;
                record.scrubbed = object;
                if findings > 0 {
                    record.damage = Some(damage_in(&told));
                }
            });
        }
        Ok((Ok(None), _, _)) => {
            tracing::debug!("all objects of the replica are scrubbed; beginning anew");
            replication.drills.note(|record| {
                record.scrubbed.clear();
                record.round_ended = Some(now);
                (record.round_began, record.round_objects) = (None, 0);
                record.damage_before = record.damage.take();
            });
        }
        // The store is away, or the disk full: the same object is tried again in its turn.
        Ok((Err(error), _, _)) => tracing::warn!("an object of the replica could not be scrubbed: {error:#}"),
        Err(error) => tracing::warn!("an object of the replica could not be scrubbed: {error}"),
    }
    share
}

/// Runs `work` in an empty directory `scratch`, which is removed afterwards, on a thread of its own that stands back.
async fn on_a_nice_thread<T: Send + 'static>(
    scratch: PathBuf,
    work: impl FnOnce(&Handle, &Path) -> T + Send + 'static,
) -> Result<T, String> {
    let (answer, outcome) = oneshot::channel();
    let runtime = Handle::current();
    let body = move || {
        // A system that does not allow it shares evenly.
        let _evenly = rustix::process::setpriority_process(None, NICENESS);
        let done = empty_dir(&scratch).map_err(|error| format!("{}: {error}", scratch.display()));
        let done = done.map(|()| work(&runtime, &scratch));
        if let Err(error) = std::fs::remove_dir_all(&scratch) {
            tracing::warn!(%error, "the scratch directory of a drill is left");
        }
        // Nobody waits any more when the server ends.
        let _ = answer.send(done);
    };
    std::thread::Builder::new()
        .name("drill".to_owned())
        .spawn(body)
        .map_err(|error| format!("the system has no thread for it: {error}"))?;
    outcome.await.map_err(|_| "it panicked".to_owned())?
}

/// Lets so many bytes a second be read, and nothing when the server ends.
struct Throttle {
    begun: Instant,
    bytes: AtomicU64,
    bytes_per_second: u64,
    stop: CancellationToken,
}

impl Throttle {
    /// How often a held thread looks whether the server ends.
    const HELD: Duration = Duration::from_millis(200);

    fn new(bytes_per_second: u64, stop: CancellationToken) -> Throttle {
        Throttle {
            begun: Instant::now(),
            bytes: AtomicU64::new(0),
            bytes_per_second: bytes_per_second.max(1),
            stop,
        }
    }
}

impl Meter for Throttle {
    fn begin(&self, _what: &'static str, _bytes: u64) {}

    fn advance(&self, bytes: u64) -> anyhow::Result<()> {
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        #[expect(clippy::cast_precision_loss, reason = "seconds of a wait")]
        let due = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        loop {
            anyhow::ensure!(!self.stop.is_cancelled(), "the server ends");
            let early = due.saturating_sub(self.begun.elapsed());
            if early.is_zero() {
                return Ok(());
            }
            // The thread is this work's own.
            std::thread::park_timeout(early.min(Throttle::HELD));
        }
    }

    fn end(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drill_is_due_an_interval_after_the_last_and_sooner_after_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let drills = Drills::open(dir.path());
        let week = Duration::from_secs(7 * 86_400);
        let (start, second) = (1_700_000_000_000_000, 1_000_000);
        let due = |now| drill_due(&drills, week, start, now);
        assert_eq!(drill_due(&drills, Duration::ZERO, start, start), None);
        assert_eq!(due(start), Some(FIRST), "a new disk does not wait for a week");
        assert_eq!(due(start + 3_600 * second), Some(Duration::ZERO));
        drills.note(|record| record.last_run = Some(start));
        assert_eq!(due(start + second), Some(week - Duration::from_secs(1)));
        drills.note(|record| record.failure = Some("no".to_owned()));
        assert_eq!(due(start + second), Some(AGAIN - Duration::from_secs(1)));
    }

    #[test]
    fn the_throttle_holds_up_and_ends_with_the_server() {
        let stop = CancellationToken::new();
        let throttle = Throttle::new(1_000, stop.clone());
        let begun = Instant::now();
        throttle.advance(50).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(45));
        stop.cancel();
        assert!(throttle.advance(1_000_000_000).is_err());
    }
}
