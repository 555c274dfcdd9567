//! Memory for request bodies, shared by all requests: the part of the memory plan that keeps many large bodies at once from
//! becoming more than the process may use.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::{XrpcError, XrpcResult};

/// What one permit stands for.
const UNIT_BYTES: usize = 1024;
/// Bodies up to this size have a room of their own, so that slow large ones cannot keep ordinary requests out.
const SMALL_BYTES: usize = 64 * UNIT_BYTES;
/// How long a body waits for room before its request is refused.
const WAIT: Duration = Duration::from_secs(2);

/// The room for all bodies.
#[derive(Clone, Debug)]
pub struct BodyRoom {
    small: Half,
    large: Half,
    wait: Duration,
}

/// Half of the room.
#[derive(Clone, Debug)]
struct Half {
    units: Arc<Semaphore>,
    all: usize,
}

impl BodyRoom {
    /// Room for `bytes`.
    #[must_use]
    pub fn new(bytes: usize) -> BodyRoom {
        let half = || {
            let all = (bytes / 2 / UNIT_BYTES).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
            Half {
                units: Arc::new(Semaphore::new(all)),
                all,
            }
        };
        BodyRoom {
            small: half(),
            large: half(),
            wait: WAIT,
        }
    }

    /// A place in it that takes nothing yet.
    #[must_use]
    pub fn place(&self) -> BodyPlace {
        BodyPlace {
            room: self.clone(),
            small: None,
            large: None,
        }
    }
}

/// What one request takes of the room, until it is dropped.
#[derive(Debug)]
pub struct BodyPlace {
    room: BodyRoom,
    small: Option<OwnedSemaphorePermit>,
    large: Option<OwnedSemaphorePermit>,
}

impl BodyPlace {
    /// Takes room up to `bytes` in all. It is taken as bytes arrive, so that who announces much and sends little holds
    /// little. One body may be larger than the whole room, and then has it alone.
    ///
    /// # Errors
    /// 503 when others hold the room for too long; nothing was done yet, and trying again is right.
    pub async fn grow_to(&mut self, bytes: usize) -> XrpcResult<()> {
        let (half, held) = if bytes <= SMALL_BYTES {
            (&self.room.small, &mut self.small)
        } else {
            (&self.room.large, &mut self.large)
        };
        let wanted = bytes.div_ceil(UNIT_BYTES).min(half.all);
        let has = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let Some(more) = wanted.checked_sub(has).filter(|more| *more > 0) else {
            return Ok(());
        };
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        let permit = match Arc::clone(&half.units).try_acquire_many_owned(more) {
            Ok(permit) => permit,
            Err(_) => tokio::time::timeout(self.room.wait, Arc::clone(&half.units).acquire_many_owned(more))
                .await
                .map_err(|_| XrpcError::unavailable("Too many large requests at once", 1))?
                .map_err(XrpcError::internal)?,
        };
        match held {
            Some(held) => held.merge(permit),
            None => *held = Some(permit),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    fn free(half: &Half) -> usize {
        half.units.available_permits()
    }

    #[tokio::test]
    async fn a_full_room_makes_others_wait_and_then_refuses_them() {
        let mut room = BodyRoom::new(2 * 2 * SMALL_BYTES);
        room.wait = Duration::from_millis(20);
        let (mut first, mut second) = (room.place(), room.place());
        first.grow_to(SMALL_BYTES).await.unwrap();
        first.grow_to(SMALL_BYTES + UNIT_BYTES).await.unwrap();
        assert_eq!((free(&room.small), free(&room.large)), (64, 63));
        let refused = second.grow_to(SMALL_BYTES * 2).await.unwrap_err();
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        second.grow_to(UNIT_BYTES).await.unwrap();
        drop(first);
        second.grow_to(100 * SMALL_BYTES).await.unwrap();
        assert_eq!(free(&room.large), 0, "one body may have all of it");
        room.place().grow_to(SMALL_BYTES).await.unwrap();
        drop(second);
        assert_eq!((free(&room.small), free(&room.large)), (128, 128));
    }
}
