//! Who reads a replica for long, so that a writer which is at work there deletes nothing under him. It is politeness, not safety:
//! a reader who is not heard, because he may not write or because his clock is wrong, starts over where something is gone.
//!
//! One small object lists the readers, each with the generation of the manifest that he goes by. A reader enters himself and looks
//! whether that is still the newest; a writer looks here *after* its manifest is published and before anything is deleted that
//! the manifest no longer names. So either the reader sees that manifest, or the writer sees the reader. What generation g
//! ceased to name is kept while somebody goes by an older one; see `housekeeping::doomed`.
//!
//! Who is done within seconds does not enter at all: if something is deleted under him he starts over, which is cheaper. So looking
//! at a replica that nobody writes changes nothing in it, unless it takes long.
//!
//! Nobody can hold anything for ever: an entry that was not renewed for [`HOLDS`] is gone, one older than [`LONGEST`] is gone
//! however often it is renewed, and there are [`MAX_READERS`] at most.
//!
//! ```json
//! {"readers":[{"id":"<32 hex>","generation":12,"begunAtMicros":1767225600000000,"renewedAtMicros":1767225720000000}]}
//! ```

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use engine::clock::{Clock, SystemEntropy};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::fence;
use crate::names::{Generation, WriterId};
use crate::requests::Requests;
use crate::store::{ObjectName, ReplicaStore, StoreError, Swap};

/// The object that lists the readers.
pub const READERS_OBJECT: &str = "readers";
/// Most readers that are listed.
pub const MAX_READERS: usize = 64;
/// For how long an entry holds without being renewed.
pub const HOLDS: Duration = Duration::from_secs(600);
/// For how long one reader is heard, however often he renews.
pub const LONGEST: Duration = Duration::from_secs(24 * 3_600);
/// How long somebody reads before he enters himself.
const ENTER_AFTER: Duration = Duration::from_secs(10);
/// How often an entry is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(120);
/// By how much two machines' clocks may differ.
const CLOCK_MARGIN: Duration = Duration::from_secs(60);
/// Most bytes of the object that are read; [`MAX_READERS`] take half of it.
const MAX_BYTES: u64 = 32 << 10;
/// How often a change is tried, against rivals and failures in passing.
const TRIES: u32 = 8;
/// The time for all tries of entering or leaving.
const WHOLE_CHANGE: Duration = Duration::from_secs(30);

/// One reader, as the object tells of him.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    id: String,
    /// The manifest that he goes by; zero while he does not know it.
    generation: u64,
    begun_at_micros: u64,
    renewed_at_micros: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Listed {
    readers: Vec<Entry>,
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Entry {
    /// Whether it holds at `now`. What claims to be of the future is of a clock that nobody can count by.
    fn holds(&self, now: u64) -> bool {
        let margin = micros(CLOCK_MARGIN);
        self.renewed_at_micros <= now.saturating_add(margin)
            && now.saturating_sub(self.renewed_at_micros) <= micros(HOLDS) + margin
            && !self.is_old(now)
    }

    fn is_old(&self, now: u64) -> bool {
        now.saturating_sub(self.begun_at_micros) > micros(LONGEST)
    }
}

/// The oldest manifest that anybody goes by; `None` if nobody reads. What cannot be understood lists nobody. One GET.
pub(crate) async fn oldest(requests: &Requests, now_micros: u64) -> Result<Option<Generation>, StoreError> {
    let name = ObjectName::new(READERS_OBJECT)?;
    let listed = match requests.read_tagged(&name, MAX_BYTES).await {
        Ok(found) => found.map_or_else(Listed::default, |(bytes, _)| listed(&bytes)),
        Err(StoreError::TooLarge { .. }) => Listed::default(),
        Err(error) => return Err(error),
    };
    let readers = listed.readers.iter().take(MAX_READERS);
    let current = readers.filter(|reader| reader.holds(now_micros));
    Ok(current.map(|reader| Generation(reader.generation)).min())
}

fn listed(bytes: &[u8]) -> Listed {
    serde_json::from_slice(bytes).unwrap_or_default()
}

/// How a reader makes himself heard.
#[derive(Clone)]
pub struct Announce {
    /// The time by which he is current.
    pub clock: Arc<dyn Clock>,
    /// How long he reads before he enters himself.
    pub after: Duration,
}

impl Announce {
    /// After ten seconds.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Announce {
        Announce {
            clock,
            after: ENTER_AFTER,
        }
    }
}

/// Somebody who reads, and his entry once there is one.
pub struct Reading {
    requests: Requests,
    announce: Option<Announce>,
    id: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    generation: Generation,
    /// When he entered.
    begun_at_micros: Option<u64>,
    /// Whether something may have been deleted before he entered.
    late: bool,
    refused: Option<String>,
}

impl Reading {
    /// A reader who has not entered yet; without `announce` he never does.
    #[must_use]
    pub fn new(
        store: &Arc<dyn ReplicaStore>,
        announce: Option<&Announce>,
        request_timeout: Duration,
    ) -> Reading {
        let id = WriterId::random(&SystemEntropy);
        let refused = id.as_ref().err().map(ToString::to_string);
        Reading {
            requests: Requests::new(store.clone(), request_timeout),
            announce: announce.filter(|_| refused.is_none()).cloned(),
            id: id.map(|id| id.to_string()).unwrap_or_default(),
            state: Mutex::new(State {
                refused,
                ..State::default()
            }),
        }
    }

    /// Why nobody was told, if somebody should have been: a right that is missing, for instance. Reading goes on without.
    #[must_use]
    pub fn refused(&self) -> Option<String> {
        self.state.lock().refused.clone()
    }

    /// The reader is about to look for the newest manifest.
    pub fn looks(&self) {
        self.state.lock().late = false;
    }

    /// He goes by this manifest now, and not by an older one. The next renewal says so.
    pub fn goes_by(&self, generation: Generation) {
        self.state.lock().generation = generation;
    }

    /// Whether he should look again: there was a newer manifest before he was heard.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.state.lock().late
    }

    /// Does `work`; enters meanwhile, if that takes its time, and renews the entry.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            // In this order always, so that a simulation can be repeated.
            biased;
            done = work => done,
            never = self.announce() => match never {},
        }
    }

    async fn announce(&self) -> Infallible {
        let Some(announce) = &self.announce else {
            return std::future::pending().await;
        };
        tokio::time::sleep(announce.after).await;
        if let Err(error) = self.enter(announce).await {
            tracing::warn!(
                "a server that may be at work on {} was not told that it is read: {error}",
                self.requests.store().describe()
            );
            self.state.lock().refused = Some(error.to_string());
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            if let Err(error) = self.change(announce, true).await {
                tracing::warn!("that the replica is read was not said again: {error}");
            }
        }
    }

    async fn enter(&self, announce: &Announce) -> Result<(), StoreError> {
        self.state.lock().begun_at_micros = Some(announce.clock.now_micros());
        self.change(announce, true).await?;
        let by = self.state.lock().generation;
        if fence::newest_generation(&self.requests, by).await?.is_some() {
            self.state.lock().late = true;
        }
        Ok(())
    }

    /// Leaves. Where that fails the entry ends by itself.
    pub async fn end(self) {
        let entered = self.state.lock().begun_at_micros.is_some();
        if let Some(announce) = self.announce.as_ref().filter(|_| entered)
            && let Err(error) = self.change(announce, false).await
        {
            tracing::debug!("the end of reading was not said: {error}");
        }
    }

    /// Puts the entry into the object as it is now, or takes it out.
    async fn change(&self, announce: &Announce, enter: bool) -> Result<(), StoreError> {
        let changed = tokio::time::timeout(WHOLE_CHANGE, self.try_change(announce, enter)).await;
        changed.unwrap_or(Err(StoreError::Timeout { after: WHOLE_CHANGE }))
    }

    async fn try_change(&self, announce: &Announce, enter: bool) -> Result<(), StoreError> {
        let mut last = None;
        for attempt in 0..TRIES {
            tokio::time::sleep(Duration::from_millis(50) * attempt).await;
            match self.change_once(announce, enter).await {
                Ok(Swap::Swapped(_)) => return Ok(()),
                Ok(Swap::Conflict) => {}
                // Entering twice is entering once, so an unknown outcome is tried again like any failure in passing.
                Err(error) if error.is_retryable() || error.outcome_unknown() => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| StoreError::Other {
            detail: format!("{READERS_OBJECT} is changed by too many at a time"),
            sent: true,
        }))
    }

    async fn change_once(&self, announce: &Announce, enter: bool) -> Result<Swap, StoreError> {
        let name = ObjectName::new(READERS_OBJECT)?;
        let store = self.requests.store();
        let found = self.requests.once(store.read_tagged(&name, MAX_BYTES)).await?;
        let (mut now_listed, tag) = match found {
            Some((bytes, tag)) => (listed(&bytes), Some(tag)),
            None => (Listed::default(), None),
        };
        let now = announce.clock.now_micros();
        let readers = &mut now_listed.readers;
        readers.retain(|reader| reader.id != self.id && !reader.is_old(now));
        if enter {
            if readers.len() >= MAX_READERS {
                readers.retain(|reader| reader.holds(now));
            }
            if readers.len() >= MAX_READERS {
                return Err(StoreError::Invalid {
                    detail: format!("{MAX_READERS} others read this replica already"),
                });
            }
            let state = self.state.lock();
            readers.push(Entry {
                id: self.id.clone(),
                generation: state.generation.0,
                begun_at_micros: state.begun_at_micros.unwrap_or(now),
                renewed_at_micros: now,
            });
        }
        let bytes = serde_json::to_vec(&now_listed).map_err(|error| StoreError::Invalid {
            detail: error.to_string(),
        })?;
        self.requests
            .once(store.swap(&name, bytes.into(), tag.as_ref()))
            .await
    }
}

#[cfg(test)]
mod tests;
