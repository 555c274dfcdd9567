//! Accounts: who lives here, in which state, and how they sign up and log in.
//!
//! Every change is a transaction that is *prepared* on the account database, logged as a changeset, and real only when
//! its entry is durable; the keys it touches stay locked until then.

mod app_passwords;
mod cache;
mod create;
mod deletion;
mod email;
mod invites;
mod life;
mod mail;
mod mail_tokens;
mod preferences;
mod recovery;
mod rekey;
mod reserved;
mod restored;
#[cfg(test)]
mod restored_tests;
mod sessions;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use engine::engine::AppendError;
use engine::entry::{Change, EntryDraft};
use engine::repo::AtIdentifier;
use engine::repo::Did;
use engine::repo::Handle;
use engine::views::accounts::{AccountsError, LockGuard, LockKey, Prepared, model as view, queries};

use crate::auth::password::Passwords;
use crate::auth::tokens::SessionTokens;
use crate::client::plc::SharedPlc;
use crate::config::Config;
use crate::secrets::KeyWrap;
use crate::service::core::{Core, Unconfirmed};
use crate::service::mail::Mailer;
use crate::service::names::Names;
use crate::service::repos::Repos;
use cache::Cache;

pub use app_passwords::{AppPasswordError, NewAppPassword};
pub(crate) use create::handle_is_promised;
pub use create::{CreateAccount, CreateError};
pub use deletion::DeletionError;
pub use email::EmailError;
pub(crate) use invites::select as select_invites;
pub use invites::{Invite, InviteCursor, InviteError, InviteOrder};
pub use life::LifeError;
pub use mail::MailError;
pub(crate) use mail_tokens::MailPurpose;
pub use mail_tokens::{CodeError, NotMailed};
pub use preferences::PreferencesError;
pub use recovery::RecoveryError;
pub(crate) use rekey::StoredKey;
pub use sessions::{LoginError, RefreshError, Session};

/// The accounts of this server; cheap to clone.
#[derive(Clone)]
pub struct Accounts {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) engine: Core,
    pub(super) config: Arc<Config>,
    pub(super) tokens: Arc<SessionTokens>,
    pub(super) passwords: Passwords,
    pub(super) wrap: Arc<KeyWrap>,
    pub(super) plc: SharedPlc,
    pub(super) names: Names,
    pub(super) repos: Repos,
    pub(super) mailer: Arc<Mailer>,
    cache: Cache,
}

/// The parts that [`Accounts`] is composed of.
pub struct Parts {
    /// The engine.
    pub engine: Core,
    /// The settings.
    pub config: Arc<Config>,
    /// Session tokens.
    pub tokens: Arc<SessionTokens>,
    /// Password hashing.
    pub passwords: Passwords,
    /// The wrap of signing keys.
    pub wrap: Arc<KeyWrap>,
    /// The did:plc directory.
    pub plc: SharedPlc,
    /// Handle and DID look-ups.
    pub names: Names,
    /// The repos.
    pub repos: Repos,
    /// Mail to account holders.
    pub mailer: Arc<Mailer>,
}

/// State of an account, as far as others may know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Nothing special.
    Active,
    /// Taken down by a moderator; wins over deactivation.
    TakenDown,
    /// Switched off by its owner, or not switched on yet.
    Deactivated,
}

impl Status {
    /// The word in `status` fields; none when active.
    #[must_use]
    pub fn word(self) -> Option<&'static str> {
        match self {
            Status::Active => None,
            Status::TakenDown => Some("takendown"),
            Status::Deactivated => Some("deactivated"),
        }
    }
}

/// One account.
#[derive(Clone)]
pub struct Account {
    /// Its DID.
    pub did: Did,
    /// Its handle, unless it lost it.
    pub handle: Option<Handle>,
    /// E-mail address, if it has one.
    pub email: Option<String>,
    /// Whether the address was confirmed.
    pub email_confirmed: bool,
    /// Its state.
    pub status: Status,
    /// Whether moderators have hidden some record or blob of it.
    pub hides_some: bool,
    /// The stored password hash, if it has a password.
    password_hash: Option<String>,
}

/// Why an account's data cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum AccountsUnavailable {
    /// Too many are reading; trying again helps.
    #[error("the account database is busy: {0}")]
    Busy(String),
    /// It does not work.
    #[error("the account database cannot be used: {0}")]
    Failed(String),
}

impl From<AccountsError> for AccountsUnavailable {
    fn from(error: AccountsError) -> AccountsUnavailable {
        if error.is_transient() {
            AccountsUnavailable::Busy(error.to_string())
        } else {
            AccountsUnavailable::Failed(error.to_string())
        }
    }
}

/// Why an account may not do what it wants to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatusError {
    /// Taken down.
    #[error("Account has been taken down")]
    TakenDown,
    /// Deactivated.
    #[error("Account is deactivated")]
    Deactivated,
}

/// Without the e-mail address and the password's hash, which no log needs.
impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Account")
            .field("did", &self.did)
            .field("handle", &self.handle)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl Account {
    fn from_rows(actor: view::Actor, login: Option<view::Login>) -> Result<Account, AccountsError> {
        let status = match actor.status() {
            view::ActorStatus::Active => Status::Active,
            view::ActorStatus::Takendown => Status::TakenDown,
            view::ActorStatus::Deactivated => Status::Deactivated,
        };
        // What is in this table was a DID when it was written; anything else is damage.
        let did = actor.did.parse::<Did>().map_err(|error| AccountsError::Failed {
            applied: engine::log::Lsn::ZERO,
            reason: format!("actor {}: {error}", actor.did),
        })?;
        Ok(Account {
            did,
            handle: actor.handle.and_then(|handle| handle.parse().ok()),
            email_confirmed: login
                .as_ref()
                .is_some_and(|login| login.email_confirmed_at.is_some()),
            password_hash: login.as_ref().map(|login| login.password.0.clone()),
            email: login.map(|login| login.email),
            status,
            hides_some: false,
        })
    }

    /// Whether it is neither taken down nor deactivated.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.status == Status::Active
    }

    /// The handle as answers show it.
    #[must_use]
    pub fn handle_text(&self) -> &str {
        self.handle.as_ref().map_or("handle.invalid", Handle::as_str)
    }

    /// Refuses taken-down accounts.
    ///
    /// # Errors
    /// [`StatusError::TakenDown`].
    pub fn check_not_taken_down(&self) -> Result<(), StatusError> {
        if self.status == Status::TakenDown {
            Err(StatusError::TakenDown)
        } else {
            Ok(())
        }
    }

    /// Refuses everything but active accounts.
    ///
    /// # Errors
    /// The state that it is in.
    pub fn check_may_write(&self) -> Result<(), StatusError> {
        match self.status {
            Status::Active => Ok(()),
            Status::TakenDown => Err(StatusError::TakenDown),
            Status::Deactivated => Err(StatusError::Deactivated),
        }
    }
}

impl Accounts {
    /// Composes the service.
    #[must_use]
    pub fn new(parts: Parts) -> Accounts {
        let Parts {
            engine,
            config,
            tokens,
            passwords,
            wrap,
            plc,
            names,
            repos,
            mailer,
        } = parts;
        Accounts {
            inner: Arc::new(Inner {
                engine,
                config,
                tokens,
                passwords,
                wrap,
                plc,
                names,
                repos,
                mailer,
                cache: Cache::default(),
            }),
        }
    }

    /// The account with this DID or handle, whatever its state.
    ///
    /// # Errors
    /// The account database cannot be read.
    pub async fn find(&self, who: &AtIdentifier) -> Result<Option<Account>, AccountsUnavailable> {
        match who {
            AtIdentifier::Did(did) => self.by_did(did).await,
            AtIdentifier::Handle(handle) => self.by_handle(handle).await,
        }
    }

    /// The account with this DID, whatever its state.
    ///
    /// # Errors
    /// As [`Accounts::find`].
    pub async fn by_did(&self, did: &Did) -> Result<Option<Account>, AccountsUnavailable> {
        let known = |cache: &Cache, revision| cache.by_did(did, revision);
        self.remembered(known, did.as_str(), queries::account_by_did)
            .await
    }

    /// The account with this handle, whatever its state.
    ///
    /// # Errors
    /// As [`Accounts::find`].
    pub async fn by_handle(&self, handle: &Handle) -> Result<Option<Account>, AccountsUnavailable> {
        let known = |cache: &Cache, revision| cache.by_handle(handle, revision);
        self.remembered(known, handle.as_str(), queries::account_by_handle)
            .await
    }

    /// The account with this e-mail address, whatever its state.
    ///
    /// # Errors
    /// As [`Accounts::find`].
    pub async fn by_email(&self, email: &str) -> Result<Option<Account>, AccountsUnavailable> {
        let email = email.to_owned();
        self.row(move |conn| queries::account_by_email(conn, &email))
            .await
    }

    /// Accounts in order of creation, after a cursor of creation time (text) and DID.
    ///
    /// # Errors
    /// As [`Accounts::find`].
    pub async fn list(
        &self,
        after: Option<(String, String)>,
        limit: usize,
    ) -> Result<Vec<(String, Account)>, AccountsUnavailable> {
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        let listed = self.inner.engine.accounts().read(move |conn| {
            let after = after.as_ref().map(|(at, did)| (at.as_str(), did.as_str()));
            let actors = queries::list_actors(conn, after, limit)?;
            actors
                .into_iter()
                .map(|actor| Ok((actor.created_at.clone(), Account::from_rows(actor, None)?)))
                .collect::<Result<Vec<_>, AccountsError>>()
        });
        listed.await.map_err(|error: AccountsError| error.into())
    }

    /// Whether the account database answers at all.
    pub async fn is_healthy(&self) -> bool {
        let answered = self.inner.engine.accounts().read(|conn| {
            conn.query_row("SELECT 1", [], |_| Ok(()))
                .map_err(AccountsError::from)
        });
        answered.await.is_ok()
    }

    /// From the cache, else from the database and into the cache.
    async fn remembered(
        &self,
        known: impl FnOnce(&Cache, u64) -> Option<Account>,
        wanted: &str,
        query: fn(&rusqlite::Connection, &str) -> Result<Option<view::Account>, AccountsError>,
    ) -> Result<Option<Account>, AccountsUnavailable> {
        // Asked for before anything is read: see `cache`.
        let revision = self.inner.engine.accounts().revision();
        if let Some(account) = known(&self.inner.cache, revision) {
            return Ok(Some(account));
        }
        let wanted = wanted.to_owned();
        let found = self.row(move |conn| query(conn, &wanted)).await?;
        if let Some(account) = &found {
            self.inner.cache.insert(account, revision);
        }
        Ok(found)
    }

    async fn row(
        &self,
        query: impl FnOnce(&rusqlite::Connection) -> Result<Option<view::Account>, AccountsError> + Send + 'static,
    ) -> Result<Option<Account>, AccountsUnavailable> {
        let found = self.inner.engine.accounts().read(move |conn| {
            let Some(row) = query(conn)? else { return Ok(None) };
            let hides_some = queries::has_takedowns(conn, &row.actor.did)?;
            let account = Account::from_rows(row.actor, row.login)?;
            Ok(Some(Account {
                hides_some,
                ..account
            }))
        });
        found.await.map_err(|error: AccountsError| error.into())
    }

    /// Runs a transaction, logs its changeset and returns when it is durable and applied.
    pub(crate) async fn change<T: Send + 'static>(
        &self,
        locks: Vec<LockKey>,
        transaction: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<T, AccountsError> + Send + 'static,
    ) -> Result<T, ChangeError> {
        self.change_and_tell(locks, transaction, |_| Vec::new()).await
    }

    /// As [`Accounts::change`]; what `told` makes of the outcome, events for subscribers, goes into the same group.
    pub(crate) async fn change_and_tell<T: Send + 'static>(
        &self,
        locks: Vec<LockKey>,
        transaction: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<T, AccountsError> + Send + 'static,
        told: impl FnOnce(&T) -> Vec<EntryDraft>,
    ) -> Result<T, ChangeError> {
        let prepared = self.prepare(locks, transaction).await?;
        let mut group = told(&prepared.value);
        if !prepared.changeset.is_empty() {
            let change = Change::AccountsChangeset {
                bytes: prepared.changeset,
            };
            group.insert(0, EntryDraft::private(vec![change]));
        }
        if !group.is_empty() {
            self.inner.commit(group, prepared.locks).await?;
        }
        Ok(prepared.value)
    }

    pub(super) async fn prepare<T: Send + 'static>(
        &self,
        locks: Vec<LockKey>,
        transaction: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<T, AccountsError> + Send + 'static,
    ) -> Result<Prepared<T>, ChangeError> {
        self.inner
            .engine
            .accounts()
            .prepare(locks, transaction)
            .await
            .map_err(ChangeError::from)
    }
}

impl Inner {
    /// Appends a group and waits until it is durable and applied. `locks` stay held until then, also when the caller
    /// goes away in between.
    pub(super) async fn commit(&self, group: Vec<EntryDraft>, locks: LockGuard) -> Result<(), ChangeError> {
        let receipt = self.engine.append(group)?;
        locks.logged();
        let durable = self.engine.in_time(receipt.durable()).await?;
        durable.map_err(|error| ChangeError::Closed(error.to_string()))?;
        Ok(())
    }

    /// Seconds since 1970.
    pub(super) fn now_seconds(&self) -> u64 {
        self.engine.now_micros() / 1_000_000
    }

    /// Now as the account database writes times.
    pub(super) fn now_text(&self) -> String {
        engine::repo::datetime::format_datetime(self.engine.now_micros())
    }
}

/// Why a change of the account database did not happen, or its outcome is unknown.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// Something unique is taken already.
    #[error("{column} is already taken")]
    Conflict {
        /// The table that holds it.
        table: String,
        /// The column that must be unique.
        column: String,
    },
    /// Too much is waiting; nothing was done.
    #[error("the server is busy; try again")]
    Busy,
    /// The log is closed to writes.
    #[error("the log is closed to writes: {0}")]
    Closed(String),
    /// It is in the log and not known to be durable yet.
    #[error(transparent)]
    Unconfirmed(#[from] Unconfirmed),
    /// Our mistake or a damaged store.
    #[error("{0}")]
    Internal(String),
}

impl From<AccountsError> for ChangeError {
    fn from(error: AccountsError) -> ChangeError {
        match error {
            AccountsError::Conflict { table, column } => ChangeError::Conflict { table, column },
            error if error.is_transient() => ChangeError::Busy,
            AccountsError::Closed => ChangeError::Closed(error.to_string()),
            other => ChangeError::Internal(other.to_string()),
        }
    }
}

impl From<AppendError> for ChangeError {
    fn from(error: AppendError) -> ChangeError {
        match error {
            AppendError::Busy => ChangeError::Busy,
            AppendError::Invalid { .. } => ChangeError::Internal(error.to_string()),
            other => ChangeError::Closed(other.to_string()),
        }
    }
}
