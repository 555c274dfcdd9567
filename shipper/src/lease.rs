//! The lease: one small object that says that a writer is at work, and where. It is politeness, not safety.
//!
//! Nothing that acknowledges, deletes or overwrites asks it; that is the chain's part ([`fence`](crate::fence)). It spares a new
//! server the wait for a writer that is gone, lets a standby notice that a writer is gone, and tells both where it
//! answers.
//!
//! - A renewal replaces exactly the state that was read or written last. What somebody else has put there is left alone if
//!   it is of a later reign: then this writer is being fenced, which the chain will tell it.
//! - A lease is valid for its time from *before* the renewal was sent, by the monotonic clock. A lapsed lease is gone; it
//!   comes back when the store does.
//! - An observer believes in a writer whose lease has changed within its time as the observer's own clock measures it.
//!
//! ```json
//! {"writer":"<32 hex>","instance":"pds-0:/data","epoch":7,"url":"http://10.0.0.7:2583","format":2,"seconds":90,"renewals":12,"renewedAtMicros":1767225600000000}
//! ```

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engine::clock::Clock;
use engine::log::Epoch;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::handover::REPLICA_FORMAT;
use crate::store::{ObjectName, ReplicaStore, StoreError, Swap, Tag};

/// The lease's object.
pub const LEASE_OBJECT: &str = "lease";
/// Most bytes of a lease that a reader accepts.
const MAX_BYTES: u64 = 4_096;
/// By how much two machines' clocks may differ before a dead writer is taken for a living one, or the other way round. Either
/// mistake costs a wait, or the end of a writer that was slow to renew.
const CLOCK_MARGIN: Duration = Duration::from_secs(60);

/// What the object says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// The writing process, 32 hex digits.
    pub writer: String,
    /// Which machine and directory it runs in: a new process there knows that this one is gone.
    pub instance: String,
    /// Its reign.
    pub epoch: u64,
    /// Where it answers requests of other servers; empty if nowhere.
    pub url: String,
    /// The newest replica format that it writes.
    pub format: u32,
    /// For how long it holds; zero once it was given back.
    pub seconds: u64,
    /// How often it was renewed.
    pub renewals: u64,
    /// When it was renewed last by the writer's clock, microseconds since 1970.
    pub renewed_at_micros: u64,
}

impl Lease {
    /// Whether it was given back, or is so old that no clock makes it current.
    #[must_use]
    pub fn is_gone(&self, now_micros: u64) -> bool {
        let holds = Duration::from_secs(self.seconds) + CLOCK_MARGIN;
        let age = Duration::from_micros(now_micros.saturating_sub(self.renewed_at_micros));
        self.seconds == 0 || age > holds
    }
}

/// Reads the lease, with the tag of its state. What cannot be read as one counts as none. One GET.
///
/// # Errors
/// The store failed.
pub async fn read(
    store: &dyn ReplicaStore,
    limit: Duration,
) -> Result<Option<(Option<Lease>, Tag)>, StoreError> {
    let name = ObjectName::new(LEASE_OBJECT)?;
    let asked = tokio::time::timeout(limit, store.read_tagged(&name, MAX_BYTES)).await;
    let found = asked.unwrap_or(Err(StoreError::Timeout { after: limit }))?;
    Ok(found.map(|(bytes, tag)| (serde_json::from_slice(&bytes).ok(), tag)))
}

/// An observer of somebody else's lease.
#[derive(Debug, Default)]
pub struct Observed {
    seen: Option<(Tag, Instant)>,
}

impl Observed {
    /// Looks once. `Some(lease)` is of a writer that is, or was lately, at work; `None`: there is none, it was given back, or it
    /// has not changed within its time since it was seen first.
    ///
    /// # Errors
    /// The store failed: nothing is known.
    pub async fn look(
        &mut self,
        store: &dyn ReplicaStore,
        limit: Duration,
    ) -> Result<Option<Lease>, StoreError> {
        let Some((Some(lease), tag)) = read(store, limit).await? else {
            self.seen = None;
            return Ok(None);
        };
        let now = Instant::now();
        let since = match &self.seen {
            Some((before, since)) if *before == tag => *since,
            _ => now,
        };
        self.seen = Some((tag, since));
        let current = lease.seconds > 0 && now.duration_since(since) <= Duration::from_secs(lease.seconds);
        Ok(current.then_some(lease))
    }
}

/// What is told about a lease that is kept.
#[derive(Clone, Debug, Default)]
pub struct LeaseStatus {
    valid_until: Arc<Mutex<Option<Instant>>>,
}

impl LeaseStatus {
    /// Whether the last renewal still holds.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.valid_until
            .lock()
            .is_some_and(|until| Instant::now() < until)
    }
}

/// Who keeps a lease.
#[derive(Clone, Debug)]
pub struct Writer {
    /// The process, 32 hex digits.
    pub id: String,
    /// Machine and directory.
    pub instance: String,
    /// Its reign.
    pub epoch: Epoch,
    /// Where it answers; empty if nowhere.
    pub url: String,
}

/// Keeps a lease until it is stopped, or a later reign has one.
pub struct Keeper {
    store: Arc<dyn ReplicaStore>,
    clock: Arc<dyn Clock>,
    lease: Lease,
    holds: Duration,
    tag: Option<Tag>,
    status: LeaseStatus,
}

/// How the keeping of a lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseEnd {
    /// It was given back.
    Released,
    /// A later reign has it.
    Superseded {
        /// That reign.
        by: Epoch,
    },
}

impl Keeper {
    /// A lease of `holds` for a writer.
    #[must_use]
    pub fn new(
        store: Arc<dyn ReplicaStore>,
        clock: Arc<dyn Clock>,
        writer: Writer,
        holds: Duration,
    ) -> Keeper {
        // The object counts whole seconds.
        let holds = Duration::from_secs(holds.as_secs().max(1));
        let lease = Lease {
            writer: writer.id,
            instance: writer.instance,
            epoch: writer.epoch.0,
            url: writer.url,
            format: REPLICA_FORMAT,
            seconds: holds.as_secs(),
            renewals: 0,
            renewed_at_micros: 0,
        };
        Keeper {
            store,
            clock,
            lease,
            holds,
            tag: None,
            status: LeaseStatus::default(),
        }
    }

    /// What others may ask.
    #[must_use]
    pub fn status(&self) -> LeaseStatus {
        self.status.clone()
    }

    /// Renews at thirds of the time until `stop`, then gives the lease back. `beat` is called at each turn, at least once a
    /// second: who watches it knows that this task runs.
    pub async fn keep(mut self, stop: CancellationToken, beat: impl Fn()) -> LeaseEnd {
        let mut due = Instant::now();
        loop {
            beat();
            let now = Instant::now();
            if now >= due {
                match self.renew().await {
                    Ok(None) => due = now + self.holds / 3,
                    Ok(Some(by)) => {
                        *self.status.valid_until.lock() = None;
                        return LeaseEnd::Superseded { by };
                    }
                    Err(error) => {
                        tracing::debug!(%error, "the lease was not renewed");
                        due = now + (self.holds / 12).max(Duration::from_millis(100));
                    }
                }
            }
            metrics::gauge!("pds_lease_valid").set(if self.status.is_valid() { 1.0 } else { 0.0 });
            let turn = due.min(Instant::now() + Duration::from_secs(1));
            tokio::select! {
                // Who was told to stop does not renew once more because that is due, too.
                biased;
                () = stop.cancelled() => {
                    self.release().await;
                    return LeaseEnd::Released;
                }
                () = tokio::time::sleep_until(turn) => {}
            }
        }
    }

    /// Renews once. `Some`: a later reign has it.
    async fn renew(&mut self) -> Result<Option<Epoch>, StoreError> {
        if self.tag.is_none()
            && let Some(by) = self.adopt().await?
        {
            return Ok(Some(by));
        }
        self.lease.renewals += 1;
        self.lease.renewed_at_micros = self.clock.now_micros();
        // Whatever the answer's journey takes, the time runs from here.
        let sent = Instant::now();
        match self.swap(self.lease.clone()).await {
            Ok(Swap::Swapped(tag)) => {
                self.tag = Some(tag);
                *self.status.valid_until.lock() = Some(sent + self.holds);
                Ok(None)
            }
            Ok(Swap::Conflict) => {
                // Our own answer that was lost, or somebody else: the next turn reads it.
                self.tag = None;
                self.adopt().await
            }
            Err(error) => {
                self.tag = None;
                Err(error)
            }
        }
    }

    /// Takes the present state as the one to replace, unless it is a later reign's.
    async fn adopt(&mut self) -> Result<Option<Epoch>, StoreError> {
        match read(&*self.store, self.limit()).await? {
            Some((Some(there), _)) if there.epoch > self.lease.epoch => Ok(Some(Epoch(there.epoch))),
            Some((_, tag)) => {
                self.tag = Some(tag);
                Ok(None)
            }
            None => Ok(None),
        }
    }

    async fn release(&mut self) {
        *self.status.valid_until.lock() = None;
        if self.tag.is_none() {
            return;
        }
        let mut lease = self.lease.clone();
        lease.seconds = 0;
        if let Err(error) = self.swap(lease).await {
            tracing::debug!(%error, "the lease was not given back; it runs out by itself");
        }
    }

    async fn swap(&self, lease: Lease) -> Result<Swap, StoreError> {
        let name = ObjectName::new(LEASE_OBJECT)?;
        let bytes = serde_json::to_vec(&lease).map_err(|error| StoreError::Invalid {
            detail: error.to_string(),
        })?;
        let limit = self.limit();
        let swapped = self.store.swap(&name, Bytes::from(bytes), self.tag.as_ref());
        tokio::time::timeout(limit, swapped)
            .await
            .unwrap_or(Err(StoreError::Timeout { after: limit }))
    }

    /// One request may not take longer than a renewal is away.
    fn limit(&self) -> Duration {
        (self.holds / 6).clamp(Duration::from_millis(50), Duration::from_secs(10))
    }
}

#[cfg(test)]
mod tests;
