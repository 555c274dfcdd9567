//! A store that misbehaves by script: the twin of the real network for tests and simulations.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use engine::clock::{Entropy, SeededEntropy};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::{Created, ObjectMeta, ObjectName, ReplicaStore, StoreError, Swap, Tag, Tier, TierSet};

/// The verbs of [`ReplicaStore`] that reach the store; `get_to_file` counts as `Size` and `GetRange`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// `create`
    Create,
    /// `create_from_file`
    CreateFromFile,
    /// `get`
    Get,
    /// `get_range`
    GetRange,
    /// `size`
    Size,
    /// `list`; its name is the prefix
    List,
    /// `read_tagged`
    ReadTagged,
    /// `swap`
    Swap,
    /// `delete`
    Delete,
    /// `set_tier`
    SetTier,
}

/// What a store may answer instead of the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// 404
    NotFound,
    /// 403
    Denied,
    /// 409: a creation answers [`Created::Exists`], a swap [`Swap::Conflict`], anything else a failed condition
    Conflict,
    /// 412
    Precondition,
    /// 429 with the time to stay away
    Throttled(Option<Duration>),
    /// 503, or a connection that broke after the request was sent
    Unavailable,
    /// A connection that could not be made
    Unreachable,
    /// No answer in time
    Timeout,
}

/// What goes wrong with a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The answer comes although nothing was done.
    Before(Answer),
    /// The request is executed; this answer comes whatever the outcome was (a lost acknowledgement).
    After(Answer),
    /// The request is executed after a pause of tokio's time.
    Delay(Duration),
    /// The request is executed once a permit is to be had (and used up): the test says when.
    Hold(Arc<Semaphore>),
    /// No answer ever, and nothing was done.
    Hang,
    /// No answer ever, although the request was executed.
    HangAfter,
}

/// When a fault strikes. A request suffers the first rule that applies to it.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Only this verb.
    pub verb: Option<Verb>,
    /// Only names (for a listing: prefixes) that start so.
    pub prefix: String,
    /// Spares this many matching requests first.
    pub skip: u64,
    /// Strikes at most this often.
    pub times: Option<u64>,
    /// Strikes this often among a thousand, by the seed.
    pub per_mille: u16,
    /// What happens.
    pub fault: Fault,
}

impl Rule {
    /// Every request suffers `fault`.
    #[must_use]
    pub fn always(fault: Fault) -> Rule {
        Rule {
            verb: None,
            prefix: String::new(),
            skip: 0,
            times: None,
            per_mille: 1000,
            fault,
        }
    }

    /// One request suffers `fault`.
    #[must_use]
    pub fn once(fault: Fault) -> Rule {
        Rule {
            times: Some(1),
            ..Rule::always(fault)
        }
    }

    /// Only requests of this verb.
    #[must_use]
    pub fn on(self, verb: Verb) -> Rule {
        Rule {
            verb: Some(verb),
            ..self
        }
    }

    /// Only names that start with `prefix`.
    #[must_use]
    pub fn under(self, prefix: impl Into<String>) -> Rule {
        Rule {
            prefix: prefix.into(),
            ..self
        }
    }

    /// Spares the first `skip` requests.
    #[must_use]
    pub fn after(self, skip: u64) -> Rule {
        Rule { skip, ..self }
    }

    /// By chance, `per_mille` in a thousand.
    #[must_use]
    pub fn sometimes(self, per_mille: u16) -> Rule {
        Rule { per_mille, ..self }
    }
}

struct Script {
    rules: Vec<Rule>,
    chance: SeededEntropy,
    calls: Vec<(Verb, String)>,
}

/// A store that does what `inner` does, except where a [`Rule`] says otherwise, and that remembers every request.
pub struct FaultyStore<S> {
    inner: S,
    script: Mutex<Script>,
}

impl<S: ReplicaStore> FaultyStore<S> {
    /// Wraps `inner`; without rules nothing goes wrong. `seed` drives the rules that strike by chance.
    pub fn new(inner: S, seed: u64) -> FaultyStore<S> {
        let script = Script {
            rules: Vec::new(),
            chance: SeededEntropy::new(seed),
            calls: Vec::new(),
        };
        FaultyStore {
            inner,
            script: Mutex::new(script),
        }
    }

    /// Adds a rule after those that are there.
    pub fn add(&self, rule: Rule) {
        self.script.lock().rules.push(rule);
    }

    /// Lets nothing go wrong any more; requests that hang or wait already keep doing so.
    pub fn heal(&self) {
        self.script.lock().rules.clear();
    }

    /// Every request so far, in the order they came.
    pub fn calls(&self) -> Vec<(Verb, String)> {
        self.script.lock().calls.clone()
    }

    /// The store behind.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    fn strike(&self, verb: Verb, name: &str) -> Option<Fault> {
        let script = &mut *self.script.lock();
        script.calls.push((verb, name.to_owned()));
        for rule in &mut script.rules {
            if rule.verb.is_some_and(|only| only != verb) || !name.starts_with(&rule.prefix) {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            if rule.times == Some(0) {
                continue;
            }
            let mut random = [0; 4];
            let drawn = script
                .chance
                .fill(&mut random)
                .map_or(0, |()| u32::from_le_bytes(random) % 1000);
            if drawn >= u32::from(rule.per_mille) {
                continue;
            }
            if let Some(times) = &mut rule.times {
                *times -= 1;
            }
            return Some(rule.fault.clone());
        }
        None
    }

    async fn through<T>(
        &self,
        verb: Verb,
        name: &str,
        conflict: impl FnOnce() -> Result<T, StoreError> + Send,
        request: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError>
    where
        T: Send,
    {
        match self.strike(verb, name) {
            None => request.await,
            Some(Fault::Before(answer)) => answer.into_result(name, false, conflict),
            Some(Fault::After(answer)) => {
                drop(request.await);
                answer.into_result(name, true, conflict)
            }
            Some(Fault::Delay(pause)) => {
                tokio::time::sleep(pause).await;
                request.await
            }
            Some(Fault::Hold(gate)) => {
                // A closed gate is an open one.
                if let Ok(permit) = gate.acquire().await {
                    permit.forget();
                }
                request.await
            }
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::HangAfter) => {
                drop(request.await);
                std::future::pending().await
            }
        }
    }
}

impl Answer {
    fn into_result<T>(
        self,
        name: &str,
        executed: bool,
        conflict: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let object = name.to_owned();
        let detail = "scripted".to_owned();
        Err(match self {
            Answer::NotFound => StoreError::NotFound { object },
            Answer::Denied => StoreError::Denied { object, detail },
            Answer::Conflict => return conflict(),
            Answer::Precondition => StoreError::Precondition { object, detail },
            Answer::Throttled(retry_after) => StoreError::Throttled { retry_after, detail },
            Answer::Unavailable => StoreError::Unavailable { detail, sent: true },
            Answer::Unreachable => StoreError::Unavailable {
                detail,
                sent: executed,
            },
            Answer::Timeout => StoreError::Timeout {
                after: Duration::ZERO,
            },
        })
    }
}

fn condition<T>(name: &str) -> impl FnOnce() -> Result<T, StoreError> + use<T> {
    let object = name.to_owned();
    move || {
        Err(StoreError::Precondition {
            object,
            detail: "scripted".to_owned(),
        })
    }
}

#[async_trait]
impl<S: ReplicaStore> ReplicaStore for FaultyStore<S> {
    async fn create(&self, name: &ObjectName, bytes: Bytes) -> Result<Created, StoreError> {
        let request = self.inner.create(name, bytes);
        self.through(Verb::Create, name.as_str(), || Ok(Created::Exists), request)
            .await
    }

    async fn create_from_file(&self, name: &ObjectName, path: &Path) -> Result<Created, StoreError> {
        let request = self.inner.create_from_file(name, path);
        self.through(
            Verb::CreateFromFile,
            name.as_str(),
            || Ok(Created::Exists),
            request,
        )
        .await
    }

    async fn get(&self, name: &ObjectName, max_bytes: u64) -> Result<Bytes, StoreError> {
        let request = self.inner.get(name, max_bytes);
        self.through(Verb::Get, name.as_str(), condition(name.as_str()), request)
            .await
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        let request = self.inner.get_range(name, range);
        self.through(Verb::GetRange, name.as_str(), condition(name.as_str()), request)
            .await
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>, StoreError> {
        let request = self.inner.size(name);
        self.through(Verb::Size, name.as_str(), condition(name.as_str()), request)
            .await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError> {
        let request = self.inner.list(prefix, after, limit);
        self.through(Verb::List, prefix, condition(prefix), request).await
    }

    async fn read_tagged(
        &self,
        name: &ObjectName,
        max_bytes: u64,
    ) -> Result<Option<(Bytes, Tag)>, StoreError> {
        let request = self.inner.read_tagged(name, max_bytes);
        self.through(Verb::ReadTagged, name.as_str(), condition(name.as_str()), request)
            .await
    }

    async fn swap(
        &self,
        name: &ObjectName,
        bytes: Bytes,
        expected: Option<&Tag>,
    ) -> Result<Swap, StoreError> {
        let request = self.inner.swap(name, bytes, expected);
        self.through(Verb::Swap, name.as_str(), || Ok(Swap::Conflict), request)
            .await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let request = self.inner.delete(name);
        self.through(Verb::Delete, name.as_str(), condition(name.as_str()), request)
            .await
    }

    async fn set_tier(&self, name: &ObjectName, tier: Tier) -> Result<TierSet, StoreError> {
        let request = self.inner.set_tier(name, tier);
        self.through(Verb::SetTier, name.as_str(), condition(name.as_str()), request)
            .await
    }

    async fn tidy(&self, before: SystemTime) -> Result<(), StoreError> {
        self.inner.tidy(before).await
    }

    async fn prove(&self) -> Result<(), StoreError> {
        self.inner.prove().await
    }

    fn describe(&self) -> String {
        format!("{} (with scripted faults)", self.inner.describe())
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryStore;
    use super::*;

    fn name(text: &str) -> ObjectName {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn a_lost_acknowledgement_leaves_the_object_and_reports_an_unknown_outcome() {
        let store = FaultyStore::new(MemoryStore::new(), 1);
        store.add(
            Rule::once(Fault::After(Answer::Unavailable))
                .on(Verb::Create)
                .under("wal/")
                .after(1),
        );
        for (object, expected) in [("wal/1", true), ("log", true), ("wal/2", false), ("wal/3", true)] {
            let result = store.create(&name(object), Bytes::from_static(b"x")).await;
            assert_eq!(result.is_ok(), expected, "{object}");
            assert!(result.is_ok() || result.unwrap_err().outcome_unknown());
        }
        assert_eq!(store.inner().names().len(), 4);
        assert_eq!(store.calls().len(), 4);
        assert_eq!(
            store.create(&name("wal/2"), Bytes::new()).await,
            Ok(Created::Exists)
        );
    }

    #[tokio::test]
    async fn a_swap_whose_answer_is_lost_has_happened_and_its_repetition_conflicts() {
        let store = FaultyStore::new(MemoryStore::new(), 1);
        let lease = name("lease");
        store.add(Rule::once(Fault::After(Answer::Timeout)).on(Verb::Swap).after(1));
        let Ok(Swap::Swapped(first)) = store.swap(&lease, Bytes::from_static(b"1"), None).await else {
            panic!("the first swap creates");
        };
        let swap = async || store.swap(&lease, Bytes::from_static(b"2"), Some(&first)).await;
        assert!(swap().await.unwrap_err().outcome_unknown());
        assert_eq!(swap().await, Ok(Swap::Conflict));
        let (bytes, now) = store.read_tagged(&lease, 10).await.unwrap().unwrap();
        assert_eq!(&bytes[..], b"2");
        assert_ne!(now, first);
        store.add(Rule::once(Fault::Before(Answer::Conflict)).on(Verb::Swap));
        let scripted = store.swap(&lease, Bytes::from_static(b"3"), Some(&now)).await;
        assert_eq!(scripted, Ok(Swap::Conflict));
        assert_eq!(store.read_tagged(&lease, 10).await, Ok(Some((bytes, now))));
    }

    #[tokio::test]
    async fn a_failure_before_the_store_leaves_nothing() {
        let store = FaultyStore::new(MemoryStore::new(), 1);
        store.add(Rule::always(Fault::Before(Answer::Throttled(None))));
        let error = store.create(&name("a"), Bytes::new()).await.unwrap_err();
        assert!(error.is_retryable() && !error.outcome_unknown());
        store.heal();
        assert_eq!(store.size(&name("a")).await, Ok(None));
        store.add(Rule::once(Fault::Before(Answer::Conflict)));
        assert_eq!(store.create(&name("a"), Bytes::new()).await, Ok(Created::Exists));
        assert_eq!(store.size(&name("a")).await, Ok(None));
    }

    #[tokio::test]
    async fn a_held_request_waits_for_its_permit() {
        let store = Arc::new(FaultyStore::new(MemoryStore::new(), 1));
        let gate = Arc::new(Semaphore::new(0));
        store.add(Rule::once(Fault::Hold(gate.clone())));
        let held = tokio::spawn({
            let store = store.clone();
            async move { store.create(&name("a"), Bytes::new()).await }
        });
        while store.calls().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(store.size(&name("a")).await, Ok(None));
        gate.add_permits(1);
        assert_eq!(held.await.unwrap(), Ok(Created::Created));
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_download_repeats_the_broken_range_and_no_other() {
        let store = FaultyStore::new(MemoryStore::new(), 1);
        let content: Vec<u8> = (0..11_u32 << 18).flat_map(u32::to_le_bytes).collect();
        store
            .create(&name("a"), Bytes::from(content.clone()))
            .await
            .unwrap();
        store.add(
            Rule::once(Fault::Before(Answer::Unavailable))
                .on(Verb::GetRange)
                .after(1),
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(store.get_to_file(&name("a"), file.path()).await, Ok(11 << 20));
        assert!(std::fs::read(file.path()).unwrap() == content);
        let ranges = store
            .calls()
            .iter()
            .filter(|(verb, _)| *verb == Verb::GetRange)
            .count();
        assert_eq!(ranges, 3 + 1);
    }

    #[tokio::test]
    async fn chance_repeats_itself_for_the_same_seed() {
        async fn run(seed: u64) -> Vec<bool> {
            let store = FaultyStore::new(MemoryStore::new(), seed);
            store.add(Rule::always(Fault::Before(Answer::Unavailable)).sometimes(500));
            let mut outcomes = Vec::new();
            for _ in 0..64 {
                outcomes.push(store.size(&name("a")).await.is_ok());
            }
            outcomes
        }
        assert_eq!(run(7).await, run(7).await);
        assert_ne!(run(7).await, run(8).await);
    }
}
