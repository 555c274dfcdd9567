//! The repos' signing keys: wrapped in the account database, unwrapped in a bounded cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use engine::repo::Did;
use engine::repo::SigningKey;
use engine::views::accounts::{AccountsError, queries};
use quick_cache::sync::Cache;

use crate::secrets::{KeyWrap, KeyWrapError, Purpose};
use crate::service::core::Core;

/// Keys kept unwrapped at once.
const CACHED_KEYS: usize = 4096;

/// Why a key cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The account database failed.
    #[error("the signing key of {did} cannot be read: {message}")]
    Read {
        /// Whose key.
        did: Did,
        /// What the database said.
        message: String,
    },
    /// The envelope does not open under our key-encryption key.
    #[error("the signing key of {did} does not unwrap: {source}")]
    Wrap {
        /// Whose key.
        did: Did,
        /// Why.
        #[source]
        source: KeyWrapError,
    },
    /// What was wrapped is not a key.
    #[error("the signing key of {did} is not a secp256k1 key")]
    Malformed {
        /// Whose key.
        did: Did,
    },
}

/// Access to the signing keys; cheap to clone.
#[derive(Clone)]
pub struct SigningKeys {
    engine: Core,
    wrap: Arc<KeyWrap>,
    cache: Arc<Cache<Did, Arc<SigningKey>>>,
    /// How often keys were forgotten.
    forgotten: Arc<AtomicU64>,
}

impl SigningKeys {
    /// Keys of `engine`'s accounts, wrapped under `wrap`.
    #[must_use]
    pub fn new(engine: Core, wrap: Arc<KeyWrap>) -> SigningKeys {
        SigningKeys {
            engine,
            wrap,
            cache: Arc::new(Cache::new(CACHED_KEYS)),
            forgotten: Arc::default(),
        }
    }

    /// The key of `did`, if it is an account of this server.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub async fn get(&self, did: &Did) -> Result<Option<Arc<SigningKey>>, KeyError> {
        if let Some(key) = self.cache.get(did) {
            return Ok(Some(key));
        }
        let forgotten = self.forgotten.load(Ordering::Acquire);
        let wanted = did.clone();
        let row = self
            .engine
            .accounts()
            .read(move |conn| queries::signing_key(conn, wanted.as_str()))
            .await
            .map_err(|error: AccountsError| KeyError::Read {
                did: did.clone(),
                message: error.to_string(),
            })?;
        let Some(row) = row else { return Ok(None) };
        let opened = self
            .wrap
            .unwrap(Purpose::REPO_SIGNING_KEY, did.as_str(), &row.wrapped)
            .map_err(|source| KeyError::Wrap {
                did: did.clone(),
                source,
            })?;
        let key = <[u8; 32]>::try_from(opened.expose().as_slice())
            .ok()
            .and_then(|bytes| SigningKey::from_bytes(&bytes).ok())
            .ok_or_else(|| KeyError::Malformed { did: did.clone() })?;
        let key = Arc::new(key);
        self.cache.insert(did.clone(), key.clone());
        // What was read before a key was forgotten may be that key.
        if self.forgotten.load(Ordering::Acquire) != forgotten {
            self.cache.remove(did);
        }
        Ok(Some(key))
    }

    /// The repo of `did` is gone: if it gets another, that has a key of its own.
    pub fn forget(&self, did: &Did) {
        self.forgotten.fetch_add(1, Ordering::AcqRel);
        self.cache.remove(did);
    }
}
