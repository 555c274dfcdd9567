//! The repos' signing keys: wrapped in the account database, unwrapped in a bounded cache.

use std::sync::Arc;

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
    /// Keys and the revision of the account database that was asked for before they were read. While it is the same no account
    /// has another key, on a server that only follows the log, too.
    cache: Arc<Cache<Did, (u64, Arc<SigningKey>)>>,
}

impl SigningKeys {
    /// Keys of `engine`'s accounts, wrapped under `wrap`.
    #[must_use]
    pub fn new(engine: Core, wrap: Arc<KeyWrap>) -> SigningKeys {
        SigningKeys {
            engine,
            wrap,
            cache: Arc::new(Cache::new(CACHED_KEYS)),
        }
    }

    /// The key of `did`, if it is an account of this server.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub async fn get(&self, did: &Did) -> Result<Option<Arc<SigningKey>>, KeyError> {
        let revision = self.engine.accounts().revision();
        if let Some((_, key)) = self.cache.get(did).filter(|(at, _)| *at == revision) {
            return Ok(Some(key));
        }
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
        let key = Arc::new(self.open(did, did.as_str(), &row.wrapped)?);
        self.cache.insert(did.clone(), (revision, key.clone()));
        Ok(Some(key))
    }

    /// A key for `did` out of an envelope that was sealed under `name`.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn open(&self, did: &Did, name: &str, wrapped: &[u8]) -> Result<SigningKey, KeyError> {
        let opened = self
            .wrap
            .unwrap(Purpose::REPO_SIGNING_KEY, name, wrapped)
            .map_err(|source| KeyError::Wrap {
                did: did.clone(),
                source,
            })?;
        <[u8; 32]>::try_from(opened.expose().as_slice())
            .ok()
            .and_then(|bytes| SigningKey::from_bytes(&bytes).ok())
            .ok_or_else(|| KeyError::Malformed { did: did.clone() })
    }
}
