//! `com.atproto.sync.subscribeRepos`: the log, as subscribers see it.
//!
//! An event is the public part of a frame, copied byte for byte; its `seq` is the frame's LSN, and nothing above the
//! *visible* watermark (applied here and durable in the replica, if there is one) ever leaves (I1). One pump follows
//! the log and fills the [`ring`]; a subscriber reads the log until its cursor meets the ring and the ring from then on,
//! so there is no seam between backfill and live.

pub mod ring;
mod socket;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use engine::entry::EntryKind;
use engine::log::{Lsn, PublicFrame, ReadError};
use tokio_util::sync::CancellationToken;

pub use socket::{not_a_subscription, subscribe};

use crate::service::core::Core;
use ring::{Event, Ring};

/// Bytes of log that one read brings into memory.
const READ_BYTES: usize = 1 << 20;

/// What bounds the firehose.
#[derive(Clone, Copy, Debug)]
pub struct FirehoseSettings {
    /// Bytes of events in memory, which is also how far a live consumer may fall behind.
    pub max_lag_bytes: usize,
    /// How long a consumer may refuse bytes.
    pub stall: Duration,
    /// Consumers at once.
    pub max_subscribers: usize,
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
    subscribers: AtomicUsize,
    stop: CancellationToken,
}

impl Firehose {
    /// A firehose over `engine`; [`Firehose::run`] must be running for events to flow.
    #[must_use]
    pub fn new(engine: Core, settings: FirehoseSettings, stop: CancellationToken) -> Firehose {
        let ring = Ring::new(engine.visible().get(), settings.max_lag_bytes);
        let subscribers = AtomicUsize::new(0);
        Firehose {
            inner: Arc::new(Inner {
                engine,
                ring,
                settings,
                subscribers,
                stop,
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
            loop {
                let (back, batch) = read(tail, limit, piece).await?;
                tail = back;
                let through = tail.position();
                let caught_up = batch.is_empty();
                let events = batch.iter().filter_map(to_event).collect::<Vec<_>>();
                metrics::counter!("pds_firehose_events_total").increment(events.len() as u64);
                inner.ring.push(events, if caught_up { limit } else { through });
                if caught_up || through >= limit {
                    break;
                }
            }
        }
    }

    /// How many consumers are connected.
    #[must_use]
    pub fn subscribers(&self) -> usize {
        self.inner.subscribers.load(Ordering::Relaxed)
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
fn to_event(frame: &PublicFrame) -> Option<Event> {
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
