//! DID documents: did:plc from its directory, did:web from its host, through a bounded cache.
//!
//! | age of the cached document | answer                                                            |
//! |----------------------------|-------------------------------------------------------------------|
//! | up to an hour              | the cached one                                                    |
//! | up to a day                | the cached one, and a refresh in the background, one per DID      |
//! | more, or none              | a fresh one; the caller waits, and callers for one DID share it   |
//!
//! A DID that turns out not to exist leaves the cache. A refresh that fails otherwise keeps the old document until its day
//! is over. Ages are those of the given clock.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use engine::clock::Clock;
use engine::repo::Did;
use engine::repo::keys::PublicKey;
use quick_cache::sync::Cache;
use serde_json::Value;
use tokio::sync::{Mutex, Semaphore};
use tokio_util::task::TaskTracker;

use super::http::{FetchError, Fetcher};
use super::plc::{PlcError, SharedPlc};
use crate::auth::service_jwt::IssuerKeys;
use crate::identity::document::DidDocument;

/// Longest document, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 256 * 1024;
/// Documents that are kept by default. One is about 2 KiB.
pub const CACHED_DOCUMENTS: usize = 10_000;
const FETCH_LANES: usize = 64;
const MAX_BACKGROUND: usize = 16;

/// How long documents are believed.
#[derive(Clone, Copy, Debug)]
pub struct DidCacheTimes {
    /// Until then a document is fresh. `PDS_DID_CACHE_STALE_TTL`, default one hour.
    pub stale_after: Duration,
    /// Until then a stale one is served while it is refreshed. `PDS_DID_CACHE_MAX_TTL`, default one day.
    pub expired_after: Duration,
}

impl Default for DidCacheTimes {
    fn default() -> DidCacheTimes {
        DidCacheTimes {
            stale_after: Duration::from_secs(60 * 60),
            expired_after: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// Why there is no document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DidError {
    /// The DID does not exist, or was ended.
    #[error("could not resolve {0}")]
    NotFound(Did),
    /// A method other than `plc` and `web`, or a did:web with a path or port.
    #[error("cannot resolve DIDs such as {0}")]
    Unsupported(Did),
    /// What was found is not its document.
    #[error("the document of {did} is malformed: {reason}")]
    Malformed {
        /// Whose.
        did: Did,
        /// What is wrong.
        reason: String,
    },
    /// Whoever has the document did not give it. Trying later may help.
    #[error("the document of {did} could not be fetched: {reason}")]
    Unavailable {
        /// Whose.
        did: Did,
        /// What happened.
        reason: String,
    },
}

#[derive(Clone)]
struct Cached {
    document: Arc<DidDocument>,
    fetched_at: u64,
}

struct Shared {
    plc: SharedPlc,
    fetcher: Fetcher,
    allow_local: bool,
    times: DidCacheTimes,
    clock: Arc<dyn Clock>,
    cache: Cache<Did, Cached>,
    /// Callers for one DID wait for each other here, so that they fetch once.
    lanes: Vec<Mutex<()>>,
    hasher: RandomState,
    background: Arc<Semaphore>,
    refreshing: parking_lot::Mutex<std::collections::HashSet<Did>>,
    tasks: TaskTracker,
}

/// Finds DID documents. Cheap to clone; clones share the cache.
#[derive(Clone)]
pub struct DidResolver(Arc<Shared>);

impl fmt::Debug for DidResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DidResolver")
            .field("cached", &self.0.cache.len())
            .finish_non_exhaustive()
    }
}

/// What a [`DidResolver`] is made of.
pub struct DidResolverParts {
    /// The did:plc directory.
    pub plc: SharedPlc,
    /// Fetches did:web documents.
    pub fetcher: Fetcher,
    /// Development only: did:web of `localhost` with a port, over `http`.
    pub allow_local: bool,
    /// How long documents are believed.
    pub times: DidCacheTimes,
    /// How many are kept.
    pub cached_documents: usize,
    /// What the time is.
    pub clock: Arc<dyn Clock>,
    /// Owns the background refreshes; whoever made it waits for them at the end.
    pub tasks: TaskTracker,
}

impl DidResolver {
    /// A resolver with an empty cache.
    #[must_use]
    pub fn new(parts: DidResolverParts) -> DidResolver {
        DidResolver(Arc::new(Shared {
            plc: parts.plc,
            fetcher: parts.fetcher,
            allow_local: parts.allow_local,
            times: parts.times,
            clock: parts.clock,
            cache: Cache::new(parts.cached_documents.max(1)),
            lanes: (0..FETCH_LANES).map(|_| Mutex::new(())).collect(),
            hasher: RandomState::new(),
            background: Arc::new(Semaphore::new(MAX_BACKGROUND)),
            refreshing: parking_lot::Mutex::default(),
            tasks: parts.tasks,
        }))
    }

    /// The document of `did`, which may be up to a day old.
    ///
    /// # Errors
    /// [`DidError`] if nothing usable is cached and fetching failed.
    pub async fn resolve(&self, did: &Did) -> Result<Arc<DidDocument>, DidError> {
        let shared = &self.0;
        if let Some(cached) = shared.cache.get(did) {
            let age = shared.age(&cached);
            if age < shared.times.stale_after {
                return Ok(cached.document);
            }
            if age < shared.times.expired_after {
                self.refresh_in_background(did);
                return Ok(cached.document);
            }
        }
        shared
            .fetch(did, |cached| shared.age(cached) < shared.times.stale_after)
            .await
    }

    /// The document of `did` as it is now, past the cache, which it renews.
    ///
    /// # Errors
    /// [`DidError`] if fetching failed.
    pub async fn refresh(&self, did: &Did) -> Result<Arc<DidDocument>, DidError> {
        let asked_at = self.0.clock.now_micros();
        // What somebody else fetched after this call began will do.
        self.0.fetch(did, |cached| cached.fetched_at > asked_at).await
    }

    /// Forgets `did`, because its document is known to have changed.
    pub fn forget(&self, did: &Did) {
        self.0.cache.remove(did);
    }

    fn refresh_in_background(&self, did: &Did) {
        let shared = Arc::clone(&self.0);
        // With all hands busy the next caller tries again; the stale document is served meanwhile.
        let Ok(permit) = Arc::clone(&shared.background).try_acquire_owned() else {
            return;
        };
        if !shared.refreshing.lock().insert(did.clone()) {
            return;
        }
        let did = did.clone();
        self.0.tasks.spawn(async move {
            let _permit = permit;
            if let Err(error) = shared
                .fetch(&did, |cached| shared.age(cached) < shared.times.stale_after)
                .await
            {
                tracing::debug!(%error, "a stale DID document was not refreshed");
            }
            shared.refreshing.lock().remove(&did);
        });
    }
}

impl Shared {
    fn age(&self, cached: &Cached) -> Duration {
        Duration::from_micros(self.clock.now_micros().saturating_sub(cached.fetched_at))
    }

    async fn fetch(
        &self,
        did: &Did,
        good_enough: impl Fn(&Cached) -> bool,
    ) -> Result<Arc<DidDocument>, DidError> {
        let lane = usize::try_from(self.hasher.hash_one(did) % FETCH_LANES as u64).unwrap_or(0);
        let _turn = match self.lanes.get(lane) {
            Some(lane) => Some(lane.lock().await),
            None => None,
        };
        if let Some(cached) = self.cache.get(did).filter(|cached| good_enough(cached)) {
            return Ok(cached.document);
        }
        match self.fetch_json(did).await {
            Ok(json) => {
                let document = DidDocument::from_json(did, json).map_err(|error| DidError::Malformed {
                    did: did.clone(),
                    reason: error.to_string(),
                })?;
                let document = Arc::new(document);
                let fetched_at = self.clock.now_micros();
                self.cache.insert(
                    did.clone(),
                    Cached {
                        document: Arc::clone(&document),
                        fetched_at,
                    },
                );
                Ok(document)
            }
            Err(error) => {
                if matches!(error, DidError::NotFound(_)) {
                    self.cache.remove(did);
                }
                Err(error)
            }
        }
    }

    async fn fetch_json(&self, did: &Did) -> Result<Value, DidError> {
        match did.method() {
            "plc" => self.plc.document(did).await.map_err(|error| match error {
                PlcError::NotFound(_) | PlcError::Tombstoned(_) => DidError::NotFound(did.clone()),
                PlcError::Malformed(reason) => DidError::Malformed {
                    did: did.clone(),
                    reason,
                },
                PlcError::Unavailable(reason) | PlcError::Rejected { message: reason, .. } => {
                    DidError::Unavailable {
                        did: did.clone(),
                        reason,
                    }
                }
            }),
            "web" => {
                let url = web_url(did, self.allow_local).ok_or_else(|| DidError::Unsupported(did.clone()))?;
                let body = self
                    .fetcher
                    .get(&url, MAX_DOCUMENT_BYTES)
                    .await
                    .map_err(|error| match error {
                        FetchError::Status(404 | 410) => DidError::NotFound(did.clone()),
                        other => DidError::Unavailable {
                            did: did.clone(),
                            reason: other.to_string(),
                        },
                    })?;
                serde_json::from_slice(&body).map_err(|error| DidError::Malformed {
                    did: did.clone(),
                    reason: error.to_string(),
                })
            }
            _ => Err(DidError::Unsupported(did.clone())),
        }
    }
}

/// Where the document of a did:web is: `did:web:<host>`. Paths are not part of the protocol; a port only of `localhost`.
fn web_url(did: &Did, allow_local: bool) -> Option<String> {
    let identifier = did.identifier();
    if allow_local {
        if identifier == "localhost" {
            return Some("http://localhost/.well-known/did.json".to_owned());
        }
        let port = identifier
            .strip_prefix("localhost%3A")
            .or_else(|| identifier.strip_prefix("localhost%3a"));
        if let Some(port) = port.and_then(|port| port.parse::<u16>().ok()) {
            return Some(format!("http://localhost:{port}/.well-known/did.json"));
        }
    }
    // A handle is a fully qualified domain name of at least two labels, which is what a host must be here.
    let host: engine::repo::Handle = identifier.parse().ok()?;
    Some(format!("https://{host}/.well-known/did.json"))
}

#[async_trait]
impl IssuerKeys for DidResolver {
    async fn issuer_key(&self, did: &Did, fragment: &str, refresh: bool) -> Result<PublicKey, String> {
        let document = if refresh {
            self.refresh(did).await
        } else {
            self.resolve(did).await
        };
        let document = document.map_err(|error| error.to_string())?;
        let key = document.key(fragment).map_err(|error| error.to_string())?;
        key.ok_or_else(|| format!("the document has no key #{fragment}"))
    }
}

#[cfg(test)]
mod tests;
