//! `com.atproto.sync.subscribeRepos`: the log, as subscribers see it.
//!
//! An event is the public part of a frame, copied byte for byte; its `seq` is the frame's LSN, and nothing above the
//! *visible* watermark (applied here and durable in the replica, if there is one) ever leaves (I1). One pump follows
//! the log and fills the [`ring`]; a subscriber reads the log until its cursor meets the ring and the ring from then on,
//! so there is no seam between backfill and live.
//!
//! Pump and subscribers run on threads of their own, so that a fan-out to many cannot delay a commit, nor the other way
//! round. With many subscribers the pump collects for a moment (a fiftieth of a millisecond for each of them) before it
//! wakes them: one wake-up of a thousand for four events costs a quarter of four.

mod places;
mod removed;
pub mod ring;
mod socket;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use engine::entry::EntryKind;
use engine::log::{Lsn, PublicFrame, ReadError};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use socket::{not_a_subscription, subscribe};

use crate::service::core::Core;
use places::Places;
use ring::{Event, Ring};

/// Bytes of log that one read brings into memory.
const READ_BYTES: usize = 1 << 20;

/// Bytes of log that one subscriber reads at a time on its way to the ring.
const BACKFILL_BYTES: usize = 256 << 10;
/// Subscribers whose backfill is read or sent at once; the others wait for their turn. Each holds [`BACKFILL_BYTES`].
const BACKFILLS: usize = 32;
/// Cost of waking one subscriber, by which the pump paces itself.
const WAKE_COST: Duration = Duration::from_micros(20);
/// Shorter pauses are not worth a timer.
const LEAST_PAUSE: Duration = Duration::from_millis(2);
/// However many there are, events wait no longer than this.
const MOST_PAUSE: Duration = Duration::from_millis(200);

/// What bounds the firehose.
#[derive(Clone, Copy, Debug)]
pub struct FirehoseSettings {
    /// Bytes of events in memory, which is also how far a live consumer may fall behind.
    pub max_lag_bytes: usize,
    /// How long a consumer may refuse bytes.
    pub stall: Duration,
    /// Consumers at once.
    pub max_subscribers: usize,
    /// Consumers of one address at once.
    pub max_per_address: usize,
    /// How far back a cursor reaches.
    pub backfill: Duration,
}

/// The firehose of this server; cheap to clone.
#[derive(Clone, Debug)]
pub struct Firehose {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    engine: Core,
    ring: Ring,
    settings: FirehoseSettings,
    places: Arc<Places>,
    backfills: Semaphore,
    runtime: Handle,
    stop: CancellationToken,
    last_event: watch::Sender<Lsn>,
}

impl Firehose {
    /// A firehose over `engine`, whose subscribers run on `runtime`; [`Firehose::run`] must be running for events to flow.
    #[must_use]
    pub fn new(
        engine: Core,
        settings: FirehoseSettings,
        runtime: Handle,
        stop: CancellationToken,
    ) -> Firehose {
        let ring = Ring::new(engine.visible().get(), settings.max_lag_bytes);
        let places = Places::new(settings.max_subscribers, settings.max_per_address);
        Firehose {
            inner: Arc::new(Inner {
                engine,
                ring,
                settings,
                places,
                backfills: Semaphore::new(BACKFILLS),
                runtime,
                stop,
                last_event: watch::Sender::new(Lsn::ZERO),
            }),
        }
    }

    /// Follows the log until the server stops.
    ///
    /// # Errors
    /// The log can no longer be read; the server then stops, as subscribers would miss events.
    pub async fn run(self) -> Result<(), ReadError> {
        let inner = &self.inner;
        let visible = inner.engine.visible();
        let mut tail = inner.engine.tail(inner.ring.newest());
        // A piece that filled the ring would throw out consumers that are not late at all.
        let piece = (inner.settings.max_lag_bytes / 4).min(READ_BYTES);
        loop {
            let seen = inner.ring.newest();
            let waited = tokio::select! {
                () = inner.stop.cancelled() => return Ok(()),
                waited = visible.changed_since(seen) => waited,
            };
            let Ok(limit) = waited else {
                // The engine failed and says so itself; nothing new becomes visible.
                inner.stop.cancelled().await;
                return Ok(());
            };
            let woken = Instant::now();
            loop {
                // Recent frames are in memory; only a pump that is far behind reads files, and then it has nothing to delay.
                let batch = tail.next_public_batch(limit, piece)?;
                let through = tail.position();
                let caught_up = batch.is_empty();
                let events = batch.iter().filter_map(to_event).collect::<Vec<_>>();
                metrics::counter!("pds_firehose_events_total").increment(events.len() as u64);
                let last = events.last().map(|event| event.lsn);
                inner.ring.push(events, if caught_up { limit } else { through });
                if let Some(last) = last {
                    inner.last_event.send_replace(last);
                }
                if caught_up || through >= limit {
                    break;
                }
            }
            let pause = (WAKE_COST * u32::try_from(inner.places.count()).unwrap_or(u32::MAX))
                .min(MOST_PAUSE)
                .saturating_sub(woken.elapsed());
            if pause >= LEAST_PAUSE {
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// The newest event since the server's start, zero before there was one; changes with each that becomes visible.
    #[must_use]
    pub fn last_event(&self) -> watch::Receiver<Lsn> {
        self.inner.last_event.subscribe()
    }

    /// How many consumers are connected.
    #[must_use]
    pub fn subscribers(&self) -> usize {
        self.inner.places.count()
    }

    /// How far the slowest consumer is behind the newest event, in seconds of the log.
    #[must_use]
    pub fn lag_seconds(&self) -> f64 {
        let newest = self.inner.ring.newest();
        let behind = |position: Lsn| newest.get().saturating_sub(position.get());
        let most = self.inner.places.positions().map(behind).max().unwrap_or(0);
        Duration::from_micros(most).as_secs_f64()
    }
}

/// One read of the log off the async threads, as old segments may have to come from the disk.
async fn read(
    mut tail: engine::log::TailReader,
    limit: Lsn,
    max_bytes: usize,
) -> Result<(engine::log::TailReader, Vec<PublicFrame>), ReadError> {
    let joined = tokio::task::spawn_blocking(move || {
        let batch = tail.next_public_batch(limit, max_bytes);
        (tail, batch)
    })
    .await;
    match joined {
        Ok((tail, batch)) => Ok((tail, batch?)),
        Err(error) => Err(ReadError::Io {
            segment: Lsn::ZERO,
            source: std::io::Error::other(error),
        }),
    }
}

/// The event of a frame, if it has one.
pub(crate) fn to_event(frame: &PublicFrame) -> Option<Event> {
    let kind = EntryKind::try_from(frame.kind()).ok()?;
    kind.is_event().then(|| Event {
        lsn: frame.lsn(),
        message: frame.public().clone(),
    })
}

/// The message that tells a subscriber of an error before the connection is closed.
fn error_message(name: &str, message: &str) -> Bytes {
    Bytes::from(engine::repo::event::encode_error(name, Some(message)))
}
