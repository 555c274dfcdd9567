//! Signing keys that are promised before there is an account: whoever moves an identity here can name the key in its DID document
//! first. Anybody may ask, so what is kept is bounded, and the oldest promise goes first.

use engine::repo::{Did, SigningKey};
use engine::views::accounts::{AccountsError, LockKey};
use rusqlite::{OptionalExtension, params};

use super::{Accounts, ChangeError};
use crate::secrets::Purpose;

/// Most keys that are promised at once; a row takes about 400 bytes.
const RESERVED_MAX: u32 = 10_000;

impl Accounts {
    /// A signing key, as a `did:key`: for a DID always the same while it is kept, else a new one.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn reserve_signing_key(&self, did: Option<&Did>) -> Result<String, ChangeError> {
        let inner = &self.inner;
        if let Some(did) = did {
            let wanted = did.as_str().to_owned();
            let known = inner.engine.accounts().read(move |conn| known(conn, &wanted));
            if let Some(key) = known.await.map_err(ChangeError::from)? {
                return Ok(key);
            }
        }
        let internal = |error: &dyn std::fmt::Display| ChangeError::Internal(error.to_string());
        let key = SigningKey::generate(inner.engine.entropy()).map_err(|error| internal(&error))?;
        let public_key = key.public_key().to_did_key();
        let name = did.map_or_else(|| public_key.clone(), |did| did.as_str().to_owned());
        let secret = key.to_bytes();
        let wrapped = inner
            .wrap
            .wrap(
                Purpose::REPO_SIGNING_KEY,
                &name,
                secret.as_slice(),
                inner.engine.entropy(),
            )
            .map_err(|error| internal(&error))?;
        let now = inner.now_text();
        // One at a time: each may take the place of the oldest.
        self.change(vec![LockKey::token("reserved keys")], move |tx| {
            if let Some(key) = known(tx, &name)? {
                return Ok(key);
            }
            tx.execute(
                "DELETE FROM reserved_key WHERE name IN
                 (SELECT name FROM reserved_key ORDER BY createdAt DESC, name LIMIT -1 OFFSET ?1)",
                [RESERVED_MAX - 1],
            )?;
            tx.execute(
                "INSERT INTO reserved_key (name, publicKey, wrapped, createdAt) VALUES (?1, ?2, ?3, ?4)",
                params![name, public_key, wrapped, now],
            )?;
            Ok(public_key)
        })
        .await
    }

    /// The reserved key with this public key, sealed for the account `did`: reserved for it, or for nobody in particular.
    pub(crate) async fn reserved_key_named(
        &self,
        did: &Did,
        public_key: &str,
    ) -> Result<Option<Vec<u8>>, ChangeError> {
        let inner = &self.inner;
        let (owner, wanted) = (did.as_str().to_owned(), public_key.to_owned());
        let row = inner.engine.accounts().read(move |conn| {
            let sql = "SELECT name, wrapped FROM reserved_key WHERE name IN (?1, ?2) AND publicKey = ?2";
            let row = conn.query_row(sql, [owner, wanted], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?))
            });
            row.optional().map_err(AccountsError::from)
        });
        let Some((name, wrapped)) = row.await.map_err(ChangeError::from)? else {
            return Ok(None);
        };
        if name == did.as_str() {
            return Ok(Some(wrapped));
        }
        let failed = |error: &dyn std::fmt::Display| {
            ChangeError::Internal(format!("the reserved key {name}: {error}"))
        };
        let opened = inner.wrap.unwrap(Purpose::REPO_SIGNING_KEY, &name, &wrapped);
        let opened = opened.map_err(|error| failed(&error))?;
        let wrapped = inner.wrap.wrap(
            Purpose::REPO_SIGNING_KEY,
            did.as_str(),
            opened.expose(),
            inner.engine.entropy(),
        );
        wrapped.map(Some).map_err(|error| failed(&error))
    }

    /// The key that is reserved for a DID, and how it is stored: the account of that DID may take it as it is.
    pub(super) async fn reserved_key(&self, did: &Did) -> Result<Option<(SigningKey, Vec<u8>)>, ChangeError> {
        let inner = &self.inner;
        let wanted = did.as_str().to_owned();
        let row = inner.engine.accounts().read(move |conn| {
            let sql = "SELECT wrapped FROM reserved_key WHERE name = ?1";
            let row = conn.query_row(sql, [wanted], |row| row.get::<_, Vec<u8>>(0));
            row.optional().map_err(AccountsError::from)
        });
        let Some(wrapped) = row.await.map_err(ChangeError::from)? else {
            return Ok(None);
        };
        let opened = inner
            .wrap
            .unwrap(Purpose::REPO_SIGNING_KEY, did.as_str(), &wrapped)
            .map_err(|error| ChangeError::Internal(format!("the key reserved for {did}: {error}")))?;
        let key = <[u8; 32]>::try_from(opened.expose().as_slice())
            .ok()
            .and_then(|bytes| SigningKey::from_bytes(&bytes).ok())
            .ok_or_else(|| ChangeError::Internal(format!("the key reserved for {did} is none")))?;
        Ok(Some((key, wrapped)))
    }
}

fn known(conn: &rusqlite::Connection, name: &str) -> Result<Option<String>, AccountsError> {
    let sql = "SELECT publicKey FROM reserved_key WHERE name = ?1";
    Ok(conn.query_row(sql, [name], |row| row.get(0)).optional()?)
}
