//! What every use case stands on: the engine, and the doors to time and chance.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use engine::Engine;
use engine::clock::{Clock, Entropy};

/// The engine with its clock and its source of randomness; cheap to clone.
#[derive(Clone)]
pub struct Core {
    engine: Engine,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    write_limit: Duration,
}

/// A write is not known to be durable yet: the replica is slow or out of reach. It may still become durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the write was not confirmed as durable in time and may still happen; the replica may be out of reach"
)]
pub struct Unconfirmed;

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("engine", &self.engine)
            .finish_non_exhaustive()
    }
}

impl Core {
    /// Puts them together; a write waits at most `write_limit` to become durable before it is answered.
    #[must_use]
    pub fn new(
        engine: Engine,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        write_limit: Duration,
    ) -> Core {
        Core {
            engine,
            clock,
            entropy,
            write_limit,
        }
    }

    /// Waits for a write to become durable, but no longer than the settings allow. The write itself goes on.
    ///
    /// # Errors
    /// [`Unconfirmed`]: the outcome is not known yet.
    pub async fn in_time<T>(&self, durable: impl Future<Output = T>) -> Result<T, Unconfirmed> {
        tokio::time::timeout(self.write_limit, durable)
            .await
            .map_err(|_| Unconfirmed)
    }

    /// Microseconds since 1970.
    #[must_use]
    pub fn now_micros(&self) -> u64 {
        self.clock.now_micros()
    }

    /// Randomness.
    #[must_use]
    pub fn entropy(&self) -> &dyn Entropy {
        &*self.entropy
    }

    /// Waits until everything that is durable here is in the replica too, if there is one: what an effect on the
    /// outside world needs whatever the answers wait for (I1).
    ///
    /// # Errors
    /// Replication has ended.
    pub async fn replicated(&self) -> Result<(), engine::log::Failed> {
        match self.engine.remote() {
            Some(remote) => remote.wait(self.engine.local().get()).await.map(|_| ()),
            None => Ok(()),
        }
    }
}

impl Deref for Core {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
}
