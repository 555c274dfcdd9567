//! What is about to be sent to the did:plc directory, and what comes of it.
//!
//! | crash after                        | what is there                          | what the next look does                  |
//! |------------------------------------|----------------------------------------|------------------------------------------|
//! | the intent                         | perhaps a change that only we miss     | asks the directory: makes it, or drops it |
//! | the directory has taken the operation | a change that only we miss          | makes it here                            |
//! | the change here                    | everything, announced                  | nothing                                  |
//!
//! The next look is the next change of the same identity, the next start, or that of a task that looks at all that is open, later
//! and later (`start/identities.rs`). Until then nobody else gets the handle. Where a signing key changes, "the change here" is a
//! new commit, too: see `key`.

use std::time::{Duration, Instant};

use engine::entry::EntryDraft;
use engine::repo::event;
use engine::repo::{Did, Handle};
use engine::views::accounts::{AccountsError, LockKey, queries};
use rusqlite::OptionalExtension;

use super::{Identities, IdentityError, internal};
use crate::client::plc::PlcError;
use crate::plc::op::{ATPROTO_KEY, Operation, PlcState};
use crate::service::accounts::{ChangeError, LifeError, StoredKey, handle_is_promised};
use crate::service::repos::Closed;

/// How long a start may spend on what earlier runs have left.
const RESUME_TOTAL: Duration = Duration::from_secs(20);

/// What the account has here once the directory has taken the operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// This handle.
    Handle(Handle),
    /// This key, which signs its repo.
    Key(StoredKey),
}

/// What came of a look at all changes that are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// Made or given up.
    pub settled: usize,
    /// Still open.
    pub left: usize,
}

impl Wanted {
    /// Whether the directory says it already.
    pub(super) fn is_in(&self, state: &PlcState) -> bool {
        match self {
            Wanted::Handle(handle) => first_alias(state) == Some(handle.as_str()),
            Wanted::Key(key) => state.verification_methods.get(ATPROTO_KEY) == Some(&key.public_key),
        }
    }
}

/// The handle that an identity claims.
pub(super) fn first_alias(state: &PlcState) -> Option<&str> {
    state
        .also_known_as
        .iter()
        .find_map(|alias| alias.strip_prefix("at://"))
}

impl Identities {
    /// Sends an operation and makes the change here that belongs to it. The caller has the identity's turn, and `closed` its repo
    /// where that has to change.
    pub(super) async fn carry_out(
        &self,
        did: &Did,
        operation: Operation,
        wanted: Wanted,
        closed: Option<Closed>,
    ) -> Result<(), IdentityError> {
        self.intend(did, &operation, &wanted).await?;
        let done = self.send(did, &operation, wanted, closed).await;
        if done.is_err() {
            // Perhaps the intent is still there.
            self.inner.left_open.notify_one();
        }
        done
    }

    async fn send(
        &self,
        did: &Did,
        operation: &Operation,
        wanted: Wanted,
        closed: Option<Closed>,
    ) -> Result<(), IdentityError> {
        let plc = &self.parts().plc;
        // An outbound effect follows, which needs the intent in the replica whatever the answers wait for.
        self.replicated().await?;
        let Err(error) = plc.submit(did, operation).await else {
            return self.settle(did, wanted, closed).await;
        };
        if error.status() < 500 {
            self.drop_intent(did).await?;
            return Err(error.into());
        }
        // The answer may have been lost. If it cannot be told now, the next look will.
        match plc.data(did).await {
            Ok(state) if wanted.is_in(&state) => self.settle(did, wanted, closed).await,
            _ => Err(error.into()),
        }
    }

    async fn intend(&self, did: &Did, operation: &Operation, wanted: &Wanted) -> Result<(), IdentityError> {
        let parts = self.parts();
        let (owner, json) = (did.as_str().to_owned(), operation.to_json().to_string());
        let now = engine::repo::datetime::format_datetime(parts.core.now_micros());
        let handle = match wanted {
            Wanted::Handle(handle) => handle,
            Wanted::Key(StoredKey { public_key, wrapped }) => {
                let row = (owner, json, public_key.clone(), wrapped.clone(), now);
                let stored = parts
                    .accounts
                    .change(vec![LockKey::did(did.as_str())], move |tx| {
                        let sql =
                            "INSERT INTO identity_intent (did, operation, publicKey, wrapped, createdAt)
                               VALUES (?1, ?2, ?3, ?4, ?5)";
                        Ok(tx.execute(sql, row)?)
                    });
                stored.await?;
                return Ok(());
            }
        };
        let locks = vec![LockKey::did(did.as_str()), LockKey::handle(handle.as_str())];
        let wanted = handle.as_str().to_owned();
        let free = parts.accounts.change(locks, move |tx| {
            let holder = queries::account_by_handle(tx, &wanted)?;
            let taken = holder.is_some_and(|account| account.actor.did != owner);
            if taken || handle_is_promised(tx, &wanted, &owner)? {
                return Ok(false);
            }
            tx.execute(
                "INSERT INTO identity_intent (did, operation, handle, createdAt) VALUES (?1, ?2, ?3, ?4)",
                rusqlite::params![owner, json, wanted, now],
            )?;
            Ok(true)
        });
        if free.await? {
            Ok(())
        } else {
            Err(IdentityError::Taken(handle.clone()))
        }
    }

    /// Makes the change here, and tells subscribers.
    pub(super) async fn settle(
        &self,
        did: &Did,
        wanted: Wanted,
        closed: Option<Closed>,
    ) -> Result<(), IdentityError> {
        let found = match wanted {
            Wanted::Handle(handle) => self.settle_handle(did, handle).await?,
            Wanted::Key(key) => self.settle_key(did, key, closed).await?,
        };
        self.document_has_changed(did).await;
        if found {
            Ok(())
        } else {
            Err(IdentityError::NoAccount)
        }
    }

    async fn settle_key(
        &self,
        did: &Did,
        stored: StoredKey,
        closed: Option<Closed>,
    ) -> Result<bool, IdentityError> {
        let parts = self.parts();
        let key = parts.keys.open(did, did.as_str(), &stored.wrapped);
        let key = key.map_err(|error| internal(&error))?;
        let closed = match closed {
            Some(closed) => closed,
            None => parts.repos.close_to_writes(did).await?,
        };
        let taken = parts.accounts.take_signing_key(did, key, stored, closed).await;
        taken.map_err(|error| match error {
            LifeError::Change(change) => change.into(),
            LifeError::Repo(repo) => repo.into(),
            other => internal(&other),
        })
    }

    async fn settle_handle(&self, did: &Did, handle: Handle) -> Result<bool, IdentityError> {
        let locks = vec![LockKey::did(did.as_str()), LockKey::handle(handle.as_str())];
        let (owner, name) = (did.as_str().to_owned(), handle.as_str().to_owned());
        let told = |found: &bool| {
            let told =
                found.then(|| EntryDraft::identity(event::encode_identity(did, Some(&handle)), Vec::new()));
            told.into_iter().collect()
        };
        let changed = self.parts().accounts.change_and_tell(
            locks,
            move |tx| {
                tx.execute("DELETE FROM identity_intent WHERE did = ?1", [&owner])?;
                queries::set_handle(tx, &owner, &name)
            },
            told,
        );
        changed.await.map_err(|error| match error {
            ChangeError::Conflict { .. } => IdentityError::Taken(handle.clone()),
            error => error.into(),
        })
    }

    async fn drop_intent(&self, did: &Did) -> Result<(), ChangeError> {
        let owner = did.as_str().to_owned();
        let dropped = self
            .parts()
            .accounts
            .change(vec![LockKey::did(did.as_str())], move |tx| {
                Ok(tx.execute("DELETE FROM identity_intent WHERE did = ?1", [&owner])?)
            });
        dropped.await.map(|_| ())
    }

    /// Finishes or gives up what an earlier change of this identity has left open. The caller has the identity's turn.
    pub(super) async fn look_back(&self, did: &Did) -> Result<(), IdentityError> {
        let parts = self.parts();
        let owner = did.as_str().to_owned();
        let left = parts.core.accounts().read(move |conn| {
            conn.query_row(
                "SELECT handle, publicKey, wrapped FROM identity_intent WHERE did = ?1",
                [owner],
                |row| {
                    Ok(Left {
                        handle: row.get(0)?,
                        public_key: row.get(1)?,
                        wrapped: row.get(2)?,
                    })
                },
            )
            .optional()
            .map_err(AccountsError::from)
        });
        let Some(left) = left.await.map_err(ChangeError::from)? else {
            return Ok(());
        };
        let wanted = left.wanted();
        let state = match parts.plc.data(did).await {
            Ok(state) => Some(state),
            Err(PlcError::NotFound(_) | PlcError::Tombstoned(_)) => None,
            Err(error) => return Err(error.into()),
        };
        match wanted.zip(state) {
            Some((wanted, state)) if wanted.is_in(&state) => {
                tracing::warn!(%did, "a change of an identity was interrupted; it is made now");
                self.settle(did, wanted, None).await
            }
            _ => {
                tracing::warn!(%did, "a change of an identity was interrupted before the directory took it");
                Ok(self.drop_intent(did).await?)
            }
        }
    }

    /// Resolves when a change may have been left open.
    pub async fn left_open(&self) {
        self.inner.left_open.notified().await;
    }

    /// Looks back at every change that is open. Takes a bounded time, for a start waits for it: what a directory out of reach
    /// leaves is for later.
    ///
    /// # Errors
    /// The account database cannot be read.
    pub async fn resume(&self) -> Result<Resumed, ChangeError> {
        let rows = self.parts().core.accounts().read(|conn| {
            let mut rows = conn.prepare("SELECT did FROM identity_intent ORDER BY did LIMIT 10000")?;
            let rows = rows.query_map([], |row| row.get::<_, String>(0))?;
            Ok::<_, AccountsError>(rows.collect::<rusqlite::Result<Vec<_>>>()?)
        });
        let (started, mut settled) = (Instant::now(), 0);
        let rows = rows.await.map_err(ChangeError::from)?;
        let open = rows.len();
        for did in rows {
            if started.elapsed() > RESUME_TOTAL {
                tracing::warn!("more interrupted changes of identities are left for later");
                break;
            }
            let Ok(did) = did.parse::<Did>() else {
                tracing::error!(%did, "an interrupted change of an identity has no DID; its row stays");
                continue;
            };
            let Ok(_turn) = self.turn(&did) else { continue };
            match self.look_back(&did).await {
                Ok(()) => settled += 1,
                Err(IdentityError::Plc(PlcError::Unavailable(cause))) => {
                    tracing::warn!(%cause, "interrupted changes of identities are left for later");
                    break;
                }
                Err(error) => {
                    tracing::warn!(%did, %error, "an interrupted change of an identity stays open");
                }
            }
        }
        let left = open - settled;
        if left > 0 {
            self.inner.left_open.notify_one();
        }
        Ok(Resumed { settled, left })
    }
}

/// The part of an intent's row that says what is wanted.
struct Left {
    handle: Option<String>,
    public_key: Option<String>,
    wrapped: Option<Vec<u8>>,
}

impl Left {
    /// Nothing if the row says nothing of use, which is damage.
    fn wanted(self) -> Option<Wanted> {
        match (self.handle, self.public_key, self.wrapped) {
            (Some(handle), ..) => handle.parse().ok().map(Wanted::Handle),
            (None, Some(public_key), Some(wrapped)) => Some(Wanted::Key(StoredKey { public_key, wrapped })),
            _ => None,
        }
    }
}
