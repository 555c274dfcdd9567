//! An account is switched on and off by its owner, and goes for good when it was off for as long as its owner wanted.

use std::time::Duration;

use engine::entry::{Change, EntryDraft};
use engine::repo::event::{self, AccountStatus};
use engine::repo::{Did, Handle};
use engine::views::accounts::{AccountsError, LockKey, queries};

use super::{Account, Accounts, ChangeError};
use crate::client::did::DidError;
use crate::client::plc::PlcError;
use crate::service::repos::WriteError;

/// How long an account stays off before it is deleted, however early a time its owner has named: whoever has taken its session
/// must not be able to end it at once.
const GRACE: Duration = Duration::from_secs(3 * 24 * 3600);
/// Accounts that one look deletes.
const DELETED_AT_ONCE: u32 = 20;

/// Why an account's state was not changed.
#[derive(Debug, thiserror::Error)]
pub enum LifeError {
    /// There is none, or it is taken down.
    #[error("user not found")]
    NoAccount,
    /// The identity does not lead here.
    #[error("{0}")]
    Identity(String),
    /// The directory, or the host of the DID document, failed.
    #[error("{0}")]
    Upstream(String),
    /// The account database or the log.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The repo.
    #[error(transparent)]
    Repo(#[from] WriteError),
}

impl Accounts {
    /// Whether the identity of `did` leads here now: this server signs its repo and hosts it, and may change its did:plc
    /// operations. Asks the directory itself, past every cache.
    ///
    /// # Errors
    /// [`LifeError::Identity`] if it does not; [`LifeError::Upstream`] if that cannot be known.
    pub async fn check_identity(&self, did: &Did) -> Result<(), LifeError> {
        let refused = |message: &str| Err(LifeError::Identity(message.to_owned()));
        let inner = &self.inner;
        let (endpoint, key) = if did.method() == "plc" {
            let state = inner.plc.data(did).await.map_err(plc_error)?;
            let ours = inner.rotation_key()?.public_key().to_did_key();
            if !state.rotation_keys.contains(&ours) {
                return refused("Server rotation key not included in PLC DID data");
            }
            let service = state.services.get("atproto_pds");
            (
                service.map(|service| service.endpoint.clone()),
                state.verification_methods.get("atproto").cloned(),
            )
        } else {
            let document = inner.names.document(did, true).await.map_err(did_error)?;
            let key = document.key("atproto").ok().flatten();
            (
                document.service("atproto_pds").map(str::to_owned),
                key.map(|key| key.to_did_key()),
            )
        };
        if endpoint.as_deref() != Some(inner.config.public_url().as_str()) {
            return refused("DID document atproto_pds service endpoint does not match PDS public url");
        }
        let of = did.as_str().to_owned();
        let own = inner
            .engine
            .accounts()
            .read(move |conn| queries::signing_key(conn, &of));
        let own = own.await.map_err(ChangeError::from)?;
        if key.is_none() || key != own.map(|own| own.public_key) {
            return refused("DID document verification method does not match expected signing key");
        }
        Ok(())
    }

    /// Switches an account on, if its identity leads here, and tells subscribers all that they need to know of it. One that is on
    /// is announced again.
    ///
    /// # Errors
    /// See [`LifeError`].
    pub async fn activate(&self, did: &Did) -> Result<(), LifeError> {
        self.check_identity(did).await?;
        let owner = did.as_str().to_owned();
        let prepared = self
            .prepare(vec![LockKey::did(did.as_str())], move |tx| {
                if !queries::activate(tx, &owner)? {
                    return Ok(None);
                }
                queries::account_by_did(tx, &owner)
            })
            .await?;
        let account = prepared.value.ok_or(LifeError::NoAccount)?;
        let handle = match &account.actor.handle {
            Some(handle) => handle.parse::<Handle>(),
            None => "handle.invalid".parse(),
        };
        let handle =
            handle.map_err(|error| ChangeError::Internal(format!("the handle of {did}: {error}")))?;
        let mut group = Vec::new();
        if !prepared.changeset.is_empty() {
            group.push(EntryDraft::private(vec![Change::AccountsChangeset {
                bytes: prepared.changeset,
            }]));
        }
        group.push(EntryDraft::account(event::encode_account(did, None), Vec::new()));
        group.push(EntryDraft::identity(
            event::encode_identity(did, Some(&handle)),
            Vec::new(),
        ));
        self.inner.repos.announce(did, group, prepared.locks).await?;
        Ok(())
    }

    /// Switches an account off, and tells subscribers. Its sessions go on, and its handle stays its own. Where `delete_after` names
    /// a time (microseconds since 1970), it is deleted some time after that, and not before it was off for three days.
    ///
    /// # Errors
    /// See [`LifeError`].
    pub async fn deactivate(&self, account: &Account, delete_after: Option<u64>) -> Result<(), LifeError> {
        let did = &account.did;
        let (owner, now) = (did.as_str().to_owned(), self.inner.now_text());
        let delete_after = delete_after.map(engine::repo::datetime::format_datetime);
        let prepared = self
            .prepare(vec![LockKey::did(did.as_str())], move |tx| {
                if !queries::deactivate(tx, &owner, &now, delete_after.as_deref())? {
                    return Ok(None);
                }
                queries::account_by_did(tx, &owner)
            })
            .await?;
        let account = prepared.value.ok_or(LifeError::NoAccount)?;
        let status = if account.actor.takedown_ref.is_some() {
            AccountStatus::Takendown
        } else {
            AccountStatus::Deactivated
        };
        let mut changes = Vec::new();
        if !prepared.changeset.is_empty() {
            changes.push(Change::AccountsChangeset {
                bytes: prepared.changeset,
            });
        }
        let told = EntryDraft::account(event::encode_account(did, Some(status)), changes);
        self.inner.commit(vec![told], prepared.locks).await?;
        Ok(())
    }

    /// Deletes accounts whose owners wanted that for a time which has passed; gives how many. A bounded number: what is left is for
    /// the next look. A takedown keeps an account.
    ///
    /// # Errors
    /// The account database cannot be read. An account that cannot be deleted is logged, and tried again at the next look.
    pub async fn delete_overdue(&self) -> Result<usize, ChangeError> {
        let due = self.overdue();
        let found = self.inner.engine.accounts().read(move |conn| {
            let mut rows = conn.prepare_cached(&format!(
                "SELECT did FROM actor WHERE {OVERDUE} ORDER BY deleteAfter LIMIT ?3"
            ))?;
            let rows = rows.query_map(rusqlite::params![due.now, due.since, DELETED_AT_ONCE], |row| {
                row.get::<_, String>(0)
            })?;
            Ok::<_, AccountsError>(rows.collect::<rusqlite::Result<Vec<_>>>()?)
        });
        let mut deleted = 0;
        for did in found.await.map_err(ChangeError::from)? {
            let Ok(did) = did.parse::<Did>() else {
                tracing::error!(%did, "an account that is to be deleted has no DID");
                continue;
            };
            match self.delete_if_overdue(&did).await {
                Ok(()) => {
                    tracing::info!(%did, "a deactivated account is deleted, as its owner wanted");
                    deleted += 1;
                }
                Err(error) => tracing::warn!(%did, %error, "a deactivated account is not deleted yet"),
            }
        }
        Ok(deleted)
    }

    /// What overdue means now.
    pub(super) fn overdue(&self) -> Overdue {
        let now = self.inner.engine.now_micros();
        let grace = u64::try_from(GRACE.as_micros()).unwrap_or(u64::MAX);
        Overdue {
            now: engine::repo::datetime::format_datetime(now),
            since: engine::repo::datetime::format_datetime(now.saturating_sub(grace)),
        }
    }
}

/// Which actors are overdue: ?1 is now, ?2 the latest deactivation.
const OVERDUE: &str = "deleteAfter <= ?1 AND deactivatedAt <= ?2 AND takedownRef IS NULL";

/// The times that decide whether an account is overdue.
pub(super) struct Overdue {
    now: String,
    since: String,
}

impl Overdue {
    /// Whether the account is. Needs its lock.
    pub(super) fn is(&self, conn: &rusqlite::Connection, did: &str) -> Result<bool, AccountsError> {
        let sql = format!("SELECT EXISTS (SELECT 1 FROM actor WHERE did = ?3 AND {OVERDUE})");
        Ok(
            conn.query_row(&sql, rusqlite::params![self.now, self.since, did], |row| {
                row.get(0)
            })?,
        )
    }
}

fn plc_error(error: PlcError) -> LifeError {
    if error.status() >= 500 {
        LifeError::Upstream(error.to_string())
    } else {
        LifeError::Identity(error.to_string())
    }
}

fn did_error(error: DidError) -> LifeError {
    LifeError::Identity(format!("Could not resolve DID: {error}"))
}
