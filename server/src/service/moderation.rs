//! Administration: takedowns of accounts, records and blobs, what moderators see of accounts, and what they did.
//!
//! A takedown of an account is a column of its row, which all reads look at. Records and blobs are hidden by rows of
//! `subject_takedown`; only an account that has such rows (`Account::hides_some`) is asked for them. A hidden record stays in
//! the repo and its exports, because the repo is its owner's; it is hidden where this server answers about single records.

use std::collections::HashSet;

use engine::entry::EntryDraft;
use engine::repo::event::{self, AccountStatus};
use engine::repo::{Cid, Did, Nsid, RepoPath};
use engine::views::accounts::{AccountsError, LockKey, model as view, queries};
use rusqlite::{Connection, OptionalExtension, params};

use crate::service::accounts::{Accounts, AccountsUnavailable, ChangeError, Invite, select_invites};
use crate::service::core::Core;
use crate::service::repos::Repos;

/// Most hidden records of a collection that are looked at: beyond it, the rest of that collection is not listed.
const HIDDEN_MAX: u32 = 10_000;
/// Most codes that are shown with an account, the newest first.
const INVITES_MAX: usize = 500;
/// How long an entry of the audit log stays, in microseconds: two years.
const AUDIT_MICROS: u64 = 2 * 365 * 24 * 3600 * 1_000_000;

/// What a takedown is about, besides accounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The record at this path.
    Record(RepoPath),
    /// A blob.
    Blob(Cid),
}

impl Subject {
    fn row(&self) -> (&'static str, String) {
        match self {
            Subject::Record(path) => ("record", path.to_string()),
            Subject::Blob(cid) => ("blob", cid.to_string()),
        }
    }
}

/// Whether a subject is to be hidden, and under which reference; without one, under the time.
#[derive(Clone, Debug)]
pub struct Takedown {
    /// Hidden, or shown again.
    pub applied: bool,
    /// The moderators' name for it.
    pub reference: Option<String>,
}

/// An account as moderators see it.
#[derive(Clone, Debug)]
pub struct AccountView {
    /// Its rows.
    pub account: view::Account,
    /// The code it signed up with.
    pub invited_by: Option<Invite>,
    /// Codes that it can give away, or could.
    pub invites: Vec<Invite>,
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum ModerationError {
    /// There is no such account.
    #[error("Account not found")]
    NoAccount,
    /// The account database or the log.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

impl From<AccountsUnavailable> for ModerationError {
    fn from(error: AccountsUnavailable) -> ModerationError {
        ModerationError::Change(error.into())
    }
}

/// An entry of the audit log, whose outcome is not written down yet.
#[derive(Debug)]
#[must_use = "its outcome is to be written down"]
pub struct Noted {
    id: String,
    detail: serde_json::Map<String, serde_json::Value>,
}

/// What moderators do; cheap to clone.
#[derive(Clone)]
pub struct Moderation {
    core: Core,
    accounts: Accounts,
    repos: Repos,
}

impl Noted {
    fn detail_text(&self) -> String {
        serde_json::Value::from(self.detail.clone()).to_string()
    }
}

impl Moderation {
    /// Over the accounts and repos of this server.
    #[must_use]
    pub fn new(core: Core, accounts: Accounts, repos: Repos) -> Moderation {
        Moderation {
            core,
            accounts,
            repos,
        }
    }

    fn now(&self) -> String {
        engine::repo::datetime::format_datetime(self.core.now_micros())
    }

    /// Writes down what `actor` is about to do. Nothing is done that is not written down.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn note(
        &self,
        actor: &str,
        action: &str,
        subject: &str,
        detail: serde_json::Map<String, serde_json::Value>,
    ) -> Result<Noted, ChangeError> {
        let id = self.repos.next_tid();
        let oldest = engine::repo::Tid::from_micros(id.micros().saturating_sub(AUDIT_MICROS), 0).to_string();
        let noted = Noted {
            id: id.to_string(),
            detail,
        };
        let row = [
            noted.id.clone(),
            self.now(),
            actor.to_owned(),
            action.to_owned(),
            subject.to_owned(),
            noted.detail_text(),
        ];
        tracing::info!(actor, action, subject, "an administrative action");
        let written = self.accounts.change(Vec::new(), move |tx| {
            tx.execute("DELETE FROM admin_audit WHERE id < ?1", [&oldest])?;
            tx.execute(
                "INSERT INTO admin_audit (id, at, actor, action, subject, detail) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                row,
            )?;
            Ok(())
        });
        written.await?;
        Ok(noted)
    }

    /// Adds what came of an action to its entry: `done`, or the name of an error. An entry that says neither is of an action that
    /// was interrupted.
    pub async fn conclude(&self, mut noted: Noted, outcome: &str) {
        noted.detail.insert("outcome".to_owned(), outcome.into());
        let row = [noted.id.clone(), noted.detail_text()];
        let written = self.accounts.change(Vec::new(), move |tx| {
            Ok(tx.execute("UPDATE admin_audit SET detail = ?2 WHERE id = ?1", row)?)
        });
        if let Err(error) = written.await {
            tracing::warn!(id = noted.id, outcome, %error, "the outcome of an administrative action is not written down");
        }
    }

    /// Takes an account down or brings it back, deactivates it in its owner's place, or neither, and tells subscribers how it
    /// stands. Its sessions end when it is taken down; those that began since (to leave with) stay when it comes back.
    ///
    /// # Errors
    /// See [`ModerationError`].
    pub async fn set_account(
        &self,
        did: &Did,
        takedown: Option<Takedown>,
        deactivate: bool,
    ) -> Result<(), ModerationError> {
        let (owner, now) = (did.as_str().to_owned(), self.now());
        let told = |status: &Option<view::ActorStatus>| {
            let status = status.map(|status| match status {
                view::ActorStatus::Active => None,
                view::ActorStatus::Deactivated => Some(AccountStatus::Deactivated),
                view::ActorStatus::Takendown => Some(AccountStatus::Takendown),
            });
            let told =
                status.map(|status| EntryDraft::account(event::encode_account(did, status), Vec::new()));
            told.into_iter().collect()
        };
        let changed = self.accounts.change_and_tell(
            vec![LockKey::did(did.as_str())],
            move |tx| {
                if let Some(Takedown { applied, reference }) = takedown {
                    let reference = applied.then(|| reference.unwrap_or_else(|| now.clone()));
                    queries::set_takedown(tx, &owner, reference.as_deref())?;
                    if applied {
                        queries::delete_refresh_tokens_of(tx, &owner)?;
                        tx.execute("DELETE FROM token WHERE did = ?1", [&owner])?;
                    }
                }
                if deactivate {
                    queries::deactivate(tx, &owner, &now, None)?;
                }
                let account = queries::account_by_did(tx, &owner)?;
                Ok(account.map(|account| account.actor.status()))
            },
            told,
        );
        changed.await?.map(|_| ()).ok_or(ModerationError::NoAccount)
    }

    /// Hides a record or a blob, or shows it again.
    ///
    /// # Errors
    /// See [`ModerationError`].
    pub async fn set_takedown(
        &self,
        did: &Did,
        subject: &Subject,
        takedown: Takedown,
    ) -> Result<(), ModerationError> {
        if self.accounts.by_did(did).await?.is_none() {
            return Err(ModerationError::NoAccount);
        }
        let (kind, name) = subject.row();
        let (owner, now) = (did.as_str().to_owned(), self.now());
        let Takedown { applied, reference } = takedown;
        let reference = reference.unwrap_or_else(|| now.clone());
        let changed = self.accounts.change(vec![LockKey::did(did.as_str())], move |tx| {
            tx.execute(
                "DELETE FROM subject_takedown WHERE did = ?1 AND kind = ?2 AND subject = ?3",
                params![owner, kind, name],
            )?;
            if applied {
                tx.execute(
                    "INSERT INTO subject_takedown (did, kind, subject, takedownRef, createdAt) VALUES (?1, ?2, ?3, ?4, ?5)",
                    params![owner, kind, name, reference, now],
                )?;
            }
            Ok(())
        });
        Ok(changed.await?)
    }

    /// The reference under which a record or a blob is hidden, if it is.
    ///
    /// # Errors
    /// The account database cannot be read.
    pub async fn takedown_of(
        &self,
        did: &Did,
        subject: &Subject,
    ) -> Result<Option<String>, AccountsUnavailable> {
        let (kind, name) = subject.row();
        let owner = did.as_str().to_owned();
        let found = self.core.accounts().read(move |conn| {
            conn.query_row(
                "SELECT takedownRef FROM subject_takedown WHERE did = ?1 AND kind = ?2 AND subject = ?3",
                params![owner, kind, name],
                |row| row.get(0),
            )
            .optional()
            .map_err(AccountsError::from)
        });
        found.await.map_err(|error: AccountsError| error.into())
    }

    /// Keys of the hidden records of a collection.
    ///
    /// # Errors
    /// The account database cannot be read.
    pub async fn hidden_records(
        &self,
        did: &Did,
        collection: &Nsid,
    ) -> Result<HashSet<String>, AccountsUnavailable> {
        let (owner, prefix) = (did.as_str().to_owned(), format!("{collection}/"));
        // `0` follows `/`.
        let end = format!("{collection}0");
        let found = self.core.accounts().read(move |conn| {
            let mut rows = conn.prepare_cached(
                "SELECT subject FROM subject_takedown
                 WHERE did = ?1 AND kind = 'record' AND subject >= ?2 AND subject < ?3 LIMIT ?4",
            )?;
            let rows = rows.query_map(params![owner, prefix, end, HIDDEN_MAX], |row| {
                row.get::<_, String>(0)
            })?;
            let keys =
                rows.map(|row| row.map(|path| path.get(prefix.len()..).unwrap_or_default().to_owned()));
            Ok::<_, AccountsError>(keys.collect::<rusqlite::Result<HashSet<_>>>()?)
        });
        found.await.map_err(|error: AccountsError| error.into())
    }

    /// The first of these blobs that is hidden.
    ///
    /// # Errors
    /// The account database cannot be read.
    pub async fn hidden_blob(&self, did: &Did, blobs: Vec<Cid>) -> Result<Option<Cid>, AccountsUnavailable> {
        let owner = did.as_str().to_owned();
        let found = self.core.accounts().read(move |conn| {
            let mut row = conn.prepare_cached(
                "SELECT 1 FROM subject_takedown WHERE did = ?1 AND kind = 'blob' AND subject = ?2",
            )?;
            for cid in blobs {
                if row.exists(params![owner, cid.to_string()])? {
                    return Ok(Some(cid));
                }
            }
            Ok::<_, AccountsError>(None)
        });
        found.await.map_err(|error: AccountsError| error.into())
    }

    /// Accounts by DID; what is not here is left out.
    ///
    /// # Errors
    /// The account database cannot be read.
    pub async fn accounts(&self, dids: Vec<Did>) -> Result<Vec<AccountView>, AccountsUnavailable> {
        let found = self.core.accounts().read(move |conn| {
            let mut views = Vec::with_capacity(dids.len());
            for did in dids {
                views.extend(account_view(conn, did.as_str())?);
            }
            Ok::<_, AccountsError>(views)
        });
        found.await.map_err(|error: AccountsError| error.into())
    }

    /// Accounts in order of creation after a cursor of creation time and DID; with `email`, those whose address contains it.
    ///
    /// # Errors
    /// The account database cannot be read.
    pub async fn search(
        &self,
        email: Option<String>,
        after: Option<(String, String)>,
        limit: usize,
    ) -> Result<Vec<AccountView>, AccountsUnavailable> {
        let email = email.map(|email| email.to_lowercase());
        let (at, did) = after.unwrap_or_default();
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        let found = self.core.accounts().read(move |conn| {
            let mut rows = conn.prepare_cached(
                "SELECT a.did FROM actor a LEFT JOIN account l ON l.did = a.did
                 WHERE (a.createdAt, a.did) > (?1, ?2) AND (?3 IS NULL OR instr(l.email, ?3) > 0)
                 ORDER BY a.createdAt, a.did LIMIT ?4",
            )?;
            let dids = rows
                .query_map(params![at, did, email, limit], |row| row.get::<_, String>(0))?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            let mut views = Vec::with_capacity(dids.len());
            for did in dids {
                views.extend(account_view(conn, &did)?);
            }
            Ok::<_, AccountsError>(views)
        });
        found.await.map_err(|error: AccountsError| error.into())
    }
}

fn account_view(conn: &Connection, did: &str) -> Result<Option<AccountView>, AccountsError> {
    let Some(account) = queries::account_by_did(conn, did)? else {
        return Ok(None);
    };
    let columns = "SELECT code, availableUses, disabled, forAccount, createdBy, createdAt FROM invite_code";
    let sql = format!("{columns} WHERE code IN (SELECT code FROM invite_code_use WHERE usedBy = ?1) LIMIT 1");
    let invited_by = select_invites(conn, &sql, [did])?;
    let sql = format!("{columns} WHERE forAccount = ?1 ORDER BY createdAt DESC, code LIMIT {INVITES_MAX}");
    let invites = select_invites(conn, &sql, [did])?;
    Ok(Some(AccountView {
        account,
        invited_by: invited_by.into_iter().next(),
        invites,
    }))
}
