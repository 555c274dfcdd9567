//! Bringing one chunk to its place, however long it takes, and finding out whose object is there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::clock::Clock;
use engine::log::Epoch;

use crate::chunk::{ChunkError, ChunkHeader, MAX_IN_FLIGHT};
use crate::fence::{self, ReplicaError};
use crate::handle::{Shared, ShipState, with_sources};
use crate::names::{Generation, Ordinal, WAL_PREFIX};
use crate::plan::{self, ExistsVerdict};
use crate::ship::ShipEnd;
use crate::store::{Created, ObjectName, StoreError};

/// How an upload came to its end.
pub(crate) enum UploadEnd {
    Done(Ordinal),
    End(ShipEnd),
}

/// Uploads one chunk, however long it takes.
pub(crate) async fn upload(shared: Arc<Shared>, header: ChunkHeader, object: Bytes) -> UploadEnd {
    let name = match ObjectName::new(header.ordinal.object_name()) {
        Ok(name) => name,
        Err(error) => {
            return UploadEnd::End(ShipEnd::Failed {
                reason: error.to_string(),
            });
        }
    };
    let begun = Instant::now();
    let mut tries = 0u32;
    let mut delay = shared.config.retry_first;
    loop {
        let sent = Sent::now(&*shared.clock);
        tries = tries.saturating_add(1);
        let outcome = attempt(&shared, &header, &name, object.clone()).await;
        let outcome = match outcome {
            Ok(Settled::Ours) if sent.is_older_than(shared.config.suspended_after, &*shared.clock) => {
                still_ours(&shared, &header).await
            }
            other => other,
        };
        let error = match outcome {
            Ok(Settled::Ours) => {
                metrics::histogram!("pds_ship_upload_seconds").record(begun.elapsed().as_secs_f64());
                metrics::counter!("pds_ship_bytes_total").increment(object.len() as u64);
                return UploadEnd::Done(header.ordinal);
            }
            Ok(Settled::Fenced { by }) => return UploadEnd::End(ShipEnd::Fenced { by }),
            Ok(Settled::Unreadable(error)) => {
                let reason =
                    format!("object {name} of the replica, where our chunk belongs, cannot be read: {error}");
                return UploadEnd::End(ShipEnd::Failed { reason });
            }
            Ok(Settled::Gone) => continue_after("the object that was in the way is gone"),
            Err(error) => error,
        };
        let text = shared.note_error(&error);
        let futile = matches!(
            &error,
            StoreError::Denied { .. } | StoreError::Precondition { .. } | StoreError::Invalid { .. }
        );
        if tries == 1 || futile {
            tracing::warn!(object = %name, tries, "upload failed and is tried again: {text}");
        }
        shared.status.lock().state = ShipState::Retrying { tries, error: text };
        let asked = match &error {
            StoreError::Throttled { retry_after, .. } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        // However long a store asks us to stay away: look again now and then, somebody may have mended it.
        tokio::time::sleep(delay.max(asked).min(Duration::from_secs(60))).await;
        delay = (delay * 2).min(shared.config.retry_max);
    }
}

fn continue_after(what: &str) -> StoreError {
    StoreError::Other {
        detail: what.to_owned(),
        sent: false,
    }
}

enum Settled {
    Ours,
    Fenced {
        by: Epoch,
    },
    Unreadable(ChunkError),
    /// Something was there, and then was not.
    Gone,
}

/// One try, settled if it was answered.
async fn attempt(
    shared: &Shared,
    header: &ChunkHeader,
    name: &ObjectName,
    object: Bytes,
) -> Result<Settled, StoreError> {
    let outcome = shared
        .requests
        .once(shared.requests.store().create(name, object))
        .await;
    let result = match &outcome {
        Ok(Created::Created) => "created",
        Ok(Created::Exists) => "exists",
        Err(StoreError::Timeout { .. }) => "timeout",
        Err(StoreError::Denied { .. }) => "denied",
        Err(StoreError::NotFound { .. }) => "not_found",
        Err(StoreError::Throttled { .. }) => "throttled",
        Err(StoreError::Unavailable { .. }) => "unavailable",
        Err(StoreError::Precondition { .. }) => "precondition",
        Err(_) => "other",
    };
    metrics::counter!("pds_ship_requests_total", "result" => result).increment(1);
    match outcome? {
        Created::Created => Ok(Settled::Ours),
        Created::Exists => compare(shared, header).await,
    }
}

async fn compare(shared: &Shared, header: &ChunkHeader) -> Result<Settled, StoreError> {
    Ok(
        match fence::read_header(&shared.requests, header.ordinal).await? {
            None => Settled::Gone,
            Some(there) => match plan::on_chunk_exists(header, there) {
                ExistsVerdict::Ours => Settled::Ours,
                ExistsVerdict::Fenced { by } => Settled::Fenced { by },
                ExistsVerdict::Unreadable(error) => Settled::Unreadable(error),
            },
        },
    )
}

/// After a gap in time: is the chain still ours? Looks for our own object, for a later reign's manifest, and for another
/// writer's object behind ours.
async fn still_ours(shared: &Shared, header: &ChunkHeader) -> Result<Settled, StoreError> {
    tracing::warn!(ordinal = %header.ordinal, "much time has passed since an upload began; reading the chain again");
    let as_store_error = |error: ReplicaError| match error {
        ReplicaError::Store(error) => error,
        other => StoreError::Other {
            detail: with_sources(&other),
            sent: false,
        },
    };
    let newest = fence::newest_manifest(&shared.requests, shared.claim.log_id)
        .await
        .map_err(as_store_error)?;
    if newest.generation() > Generation::NONE && newest.epoch() > shared.claim.epoch {
        return Ok(Settled::Fenced { by: newest.epoch() });
    }
    let after = header.ordinal.object_name();
    let window = usize::try_from(2 * MAX_IN_FLIGHT).unwrap_or(32);
    for object in shared.requests.list(WAL_PREFIX, Some(&after), window).await? {
        let Some(ordinal) = Ordinal::from_object_name(object.name.as_str()) else {
            continue;
        };
        match fence::read_header(&shared.requests, ordinal).await? {
            Some(Ok(there)) if there.epoch > shared.claim.epoch => {
                return Ok(Settled::Fenced { by: there.epoch });
            }
            _ => {}
        }
    }
    compare(shared, header).await
}

/// When a request was sent, by both clocks: the monotonic one stands still while the machine is suspended, the wall
/// clock may jump.
struct Sent {
    monotonic: Instant,
    wall_micros: u64,
}

impl Sent {
    fn now(clock: &dyn Clock) -> Sent {
        Sent {
            monotonic: Instant::now(),
            wall_micros: clock.now_micros(),
        }
    }

    fn is_older_than(&self, bound: Duration, clock: &dyn Clock) -> bool {
        let wall = Duration::from_micros(clock.now_micros().saturating_sub(self.wall_micros));
        self.monotonic.elapsed() > bound || wall > bound
    }
}
