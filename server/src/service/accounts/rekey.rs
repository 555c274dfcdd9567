//! An account gets another signing key, once its identity names it.

use engine::entry::{Change, EntryDraft};
use engine::repo::{Did, Handle, SigningKey, event};
use engine::views::accounts::{LockKey, model as view, queries};

use super::{Accounts, ChangeError, LifeError};
use crate::service::repos::{Closed, Rekeying};

/// A signing key as it is stored.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct StoredKey {
    /// As a `did:key`.
    pub(crate) public_key: String,
    /// Sealed for its account.
    pub(crate) wrapped: Vec<u8>,
}

/// Without the envelope, which no log needs.
impl std::fmt::Debug for StoredKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.public_key)
    }
}

impl Accounts {
    /// Stores `key` as the account's, signs its repo with it and tells subscribers, all in one group; the intent to do so goes
    /// with it. False if there is no such account.
    pub(crate) async fn take_signing_key(
        &self,
        did: &Did,
        key: SigningKey,
        stored: StoredKey,
        closed: Closed,
    ) -> Result<bool, LifeError> {
        let (owner, now) = (did.as_str().to_owned(), self.inner.now_text());
        let locks = vec![LockKey::did(did.as_str())];
        let prepared = self.prepare(locks, move |tx| {
            tx.execute("DELETE FROM identity_intent WHERE did = ?1", [&owner])?;
            let Some(account) = queries::account_by_did(tx, &owner)? else {
                return Ok(None);
            };
            tx.execute(
                "DELETE FROM reserved_key WHERE publicKey = ?1",
                [&stored.public_key],
            )?;
            let key = view::SigningKey {
                did: owner,
                public_key: stored.public_key,
                wrapped: stored.wrapped,
                created_at: now,
            };
            queries::put_signing_key(tx, &key)?;
            Ok(Some(account))
        });
        let prepared = prepared.await?;
        let Some(account) = prepared.value else {
            if !prepared.changeset.is_empty() {
                let change = Change::AccountsChangeset {
                    bytes: prepared.changeset,
                };
                let group = vec![EntryDraft::private(vec![change])];
                self.inner.commit(group, prepared.locks).await?;
            }
            return Ok(false);
        };
        let handle = match &account.actor.handle {
            Some(handle) => handle.parse::<Handle>(),
            None => "handle.invalid".parse(),
        };
        let handle =
            handle.map_err(|error| ChangeError::Internal(format!("the handle of {did}: {error}")))?;
        let rekeying = Rekeying {
            changeset: prepared.changeset,
            locks: prepared.locks,
            identity: EntryDraft::identity(event::encode_identity(did, Some(&handle)), Vec::new()),
            is_active: account.actor.status() == view::ActorStatus::Active,
        };
        self.inner.repos.rekey(closed, key, rekeying).await?;
        Ok(true)
    }
}
