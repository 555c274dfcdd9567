//! Sign-up: a new identity, its repo and its first session.
//!
//! The did:plc directory is not ours and takes part in no transaction, so its part is fenced by two entries of the log:
//!
//! | crash after                     | what is there                       | what the next start does                |
//! |---------------------------------|-------------------------------------|-----------------------------------------|
//! | intent (key and genesis logged) | perhaps a DID without an account    | buries the DID, forgets key and intent  |
//! | genesis accepted by the directory | a DID without an account          | the same                                |
//! | account entries                 | the account, announced              | nothing                                 |
//!
//! A sign-up that fails for another reason cleans up after itself. Where the directory does not answer, it cannot know
//! whether the genesis arrived, or will: then the intent stays for the next start, too.
//!
//! Nothing goes to the directory before the intent is durable in the replica (I1).

use std::time::{Duration, Instant};

use engine::entry::{Change, EntryDraft};
use engine::repo::Did;
use engine::repo::Handle;
use engine::repo::event;
use engine::repo::{PublicKey, SigningKey};
use engine::views::accounts::{AccountsError, LockKey, model as view, queries};

use super::sessions::{not_issued, seconds_text};
use super::{Account, Accounts, ChangeError, Inner, Session, Status};
use crate::auth::password::PasswordError;
use crate::auth::tokens::{REFRESH_LIFETIME_SECS, Scope, hash_refresh_id};
use crate::client::plc::PlcError;
use crate::identity::handle::HandleError;
use crate::plc::op::{Operation, PlcState};
use crate::secrets::Purpose;
use crate::service::repos::{WriteError, export, genesis, silent_genesis};

/// Longest e-mail address.
const EMAIL_MAX: usize = 254;

/// How long an account whose identity came from elsewhere may stay deactivated before it is meant to go.
pub const ARRIVAL_DAYS: u64 = 3;
/// How long a start may spend on burying identities.
const BURY_TOTAL: Duration = Duration::from_secs(20);

/// Whether a submitted genesis may still reach the directory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Late {
    /// It was sent a moment ago and not answered.
    Possible,
    /// It was answered, or sent by an earlier run of this server.
    Over,
}

/// What somebody who signs up gives.
#[derive(Clone)]
pub struct CreateAccount {
    /// The wanted handle.
    pub handle: String,
    /// E-mail address; needed with a password.
    pub email: Option<String>,
    /// Password; without one the account has neither password nor e-mail.
    pub password: Option<String>,
    /// Invite code, where one is required.
    pub invite_code: Option<String>,
    /// A did:key of the user's own, put above ours in the rotation keys.
    pub recovery_key: Option<String>,
    /// An identity that there is already, whose owner this is. None: a new one.
    pub did: Option<Did>,
}

/// Who signs up, with everything checked that can be checked before.
struct Newcomer {
    handle: Handle,
    email: Option<String>,
    password_hash: Option<String>,
    invite: Option<String>,
    recovery: Vec<PublicKey>,
}

/// How an account begins.
enum Begin {
    /// With a new identity, which the network is told of.
    Founded,
    /// With an identity from elsewhere: deactivated, nobody is told. Its key as it is stored.
    Arrived(Vec<u8>),
}

/// Why nobody was signed up.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Something in the request.
    #[error("{0}")]
    Invalid(String),
    /// The handle.
    #[error("{message}")]
    Handle {
        /// The error's name on the wire.
        name: &'static str,
        /// For people.
        message: String,
    },
    /// The invite code.
    #[error("Provided invite code not available")]
    InviteCode,
    /// The identity has an account here, in whatever state.
    #[error("Account already exists: {0}")]
    Exists(Did),
    /// Too many at once.
    #[error("too many sign-ups at once; try again")]
    Busy,
    /// The directory refused or failed.
    #[error("{message}")]
    Plc {
        /// Whether it is the directory's fault.
        upstream: bool,
        /// What it said.
        message: String,
    },
    /// The account database or the log.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

impl Accounts {
    /// Signs somebody up, with a new did:plc identity or one that there is, and opens a session. An account with an identity that
    /// there is begins deactivated, its repo empty, and nobody is told of it; unless it is activated it is meant to go after
    /// `ARRIVAL_DAYS`.
    ///
    /// # Errors
    /// See [`CreateError`]; unless it is [`ChangeError::Closed`] or [`ChangeError::Unconfirmed`], nothing of the account remains.
    pub async fn create(&self, input: CreateAccount) -> Result<Session, CreateError> {
        // A task of its own: a client that goes away in the middle must not leave an identity without an account.
        let accounts = self.clone();
        let signing_up = tokio::spawn(async move { accounts.create_to_the_end(input).await });
        signing_up.await.map_err(|error| internal(&error))?
    }

    async fn create_to_the_end(&self, input: CreateAccount) -> Result<Session, CreateError> {
        let did = input.did.clone();
        if let Some(did) = &did
            && self.by_did(did).await.map_err(ChangeError::from)?.is_some()
        {
            return Err(CreateError::Exists(did.clone()));
        }
        let newcomer = self.check(input).await?;
        match did {
            Some(did) => self.take_in(did, newcomer).await,
            None => self.found(newcomer).await,
        }
    }

    async fn check(&self, input: CreateAccount) -> Result<Newcomer, CreateError> {
        let inner = &self.inner;
        let handle = match &input.did {
            None => inner.names.check_new_handle(&input.handle),
            Some(did) => inner.names.check_handle_of(did, &input.handle, false).await,
        };
        let handle = handle.map_err(|error| handle_error(&error))?;
        let email = input.email.as_deref().map(check_email).transpose()?;
        if input.password.is_some() && email.is_none() {
            return Err(CreateError::Invalid("Email is required".to_owned()));
        }
        let invite = self.check_invite(input.invite_code).await?;
        self.check_free(&handle, email.as_deref()).await?;
        // The owner's key is stronger than the operator's.
        let recovery = input
            .recovery_key
            .iter()
            .chain(&inner.config.recovery_did_key)
            .map(|text| PublicKey::from_did_key(text))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| CreateError::Invalid(format!("recoveryKey: {error}")))?;
        let password_hash = match &input.password {
            Some(password) => Some(inner.passwords.hash(password).await.map_err(password_error)?),
            None => None,
        };
        Ok(Newcomer {
            handle,
            email: email.filter(|_| password_hash.is_some()),
            password_hash,
            invite,
            recovery,
        })
    }

    /// An account for an identity that there is. The directory is not concerned: its owner tells it when everything is here.
    async fn take_in(&self, did: Did, newcomer: Newcomer) -> Result<Session, CreateError> {
        let inner = &self.inner;
        let (key, wrapped) = match self.reserved_key(&did).await? {
            Some(reserved) => reserved,
            None => {
                let key = SigningKey::generate(inner.engine.entropy()).map_err(|e| internal(&e))?;
                let wrapped = inner.wrap_key(&did, &key)?;
                (key, wrapped)
            }
        };
        let handle = newcomer.handle.clone();
        let settled = self.settle(&did, &key, newcomer, Begin::Arrived(wrapped)).await;
        settled.map_err(|error| taken(error, &did, &handle))
    }

    /// An account with a new identity.
    async fn found(&self, newcomer: Newcomer) -> Result<Session, CreateError> {
        let inner = &self.inner;
        let handle = newcomer.handle.clone();
        let key = SigningKey::generate(inner.engine.entropy()).map_err(|e| internal(&e))?;
        let rotation = inner.rotation_key()?;
        let mut rotation_keys = Vec::new();
        for key in newcomer.recovery.iter().copied().chain([rotation.public_key()]) {
            // The directory takes no key twice.
            if !rotation_keys.contains(&key) {
                rotation_keys.push(key);
            }
        }
        let state = PlcState::account(
            &rotation_keys,
            &key.public_key(),
            &handle,
            &inner.config.public_url(),
        );
        let operation = Operation::genesis(state, &rotation).map_err(|e| internal(&e))?;
        let did = operation
            .did()
            .ok_or_else(|| internal(&"a genesis operation gives no DID"))?;

        self.intend(&did, &key, &operation).await?;
        if let Err(error) = inner.plc.submit(&did, &operation).await {
            if error.status() < 500 {
                // Refused: there is nothing to bury.
                self.forget(&did).await;
            } else if let Err(cause) = self.bury(&did, &operation, Late::Possible).await {
                tracing::warn!(%did, %cause, "an identity without an account is left to the next start");
            }
            return Err(plc_error(&error));
        }
        let settled = self.settle(&did, &key, newcomer, Begin::Founded).await;
        match settled {
            Ok(session) => Ok(session),
            // The outcome is unknown; the next start looks at what the log says.
            Err(error @ (ChangeError::Closed(_) | ChangeError::Unconfirmed(_))) => Err(error.into()),
            Err(error) => {
                if let Err(cause) = self.bury(&did, &operation, Late::Over).await {
                    tracing::warn!(%did, %cause, "an identity without an account is left to the next start");
                }
                Err(taken(error, &did, &handle))
            }
        }
    }

    /// Finishes what a crash left between an intent and its account; gives how many that were. Called once at start, which
    /// it delays for a bounded time: what a directory out of reach leaves is for the start after.
    ///
    /// # Errors
    /// The account database cannot be read.
    pub async fn bury_abandoned(&self) -> Result<usize, ChangeError> {
        let rows = self
            .inner
            .engine
            .accounts()
            .read(|conn| {
                let mut statement =
                    conn.prepare("SELECT did, operation FROM plc_intent ORDER BY did LIMIT 10000")?;
                let rows = statement
                    .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
                Ok::<_, AccountsError>(rows.collect::<rusqlite::Result<Vec<_>>>()?)
            })
            .await
            .map_err(ChangeError::from)?;
        let mut buried = 0;
        let started = Instant::now();
        for (did, operation) in rows {
            if started.elapsed() > BURY_TOTAL {
                tracing::warn!("more interrupted sign-ups are left to the next start");
                break;
            }
            let parsed = serde_json::from_str(&operation)
                .ok()
                .and_then(|json| Operation::from_json(&json).ok());
            let (Ok(did), Some(operation)) = (did.parse::<Did>(), parsed) else {
                tracing::error!(%did, "an abandoned sign-up does not parse; its row stays");
                continue;
            };
            match self.bury(&did, &operation, Late::Over).await {
                Ok(()) => {
                    tracing::warn!(%did, "a sign-up was interrupted; its identity is buried");
                    buried += 1;
                }
                Err(PlcError::Unavailable(cause)) => {
                    tracing::warn!(%cause, "interrupted sign-ups are left to the next start");
                    break;
                }
                Err(cause) => tracing::warn!(%did, %cause, "an interrupted sign-up cannot be buried"),
            }
        }
        Ok(buried)
    }

    /// Logs what is about to happen, with the key that would otherwise be lost.
    async fn intend(&self, did: &Did, key: &SigningKey, operation: &Operation) -> Result<(), CreateError> {
        let inner = &self.inner;
        let wrapped = inner.wrap_key(did, key)?;
        let public_key = key.public_key().to_did_key();
        let (owner, now, json) = (
            did.as_str().to_owned(),
            inner.now_text(),
            operation.to_json().to_string(),
        );
        self.change(vec![LockKey::did(did.as_str())], move |tx| {
            queries::put_signing_key(
                tx,
                &view::SigningKey {
                    did: owner.clone(),
                    public_key,
                    wrapped,
                    created_at: now.clone(),
                },
            )?;
            tx.execute(
                "INSERT INTO plc_intent (did, operation, createdAt) VALUES (?1, ?2, ?3)",
                rusqlite::params![owner, json, now],
            )
            .map_err(AccountsError::from)
        })
        .await?;
        // An outbound effect follows, which needs the intent in the replica whatever the answers wait for.
        let replicated = inner.engine.in_time(inner.engine.replicated()).await;
        replicated
            .map_err(ChangeError::from)?
            .map_err(|error| ChangeError::Closed(error.to_string()))?;
        Ok(())
    }

    /// Ends an identity that got no account, as far as it exists, and forgets it. On an error its intent stays.
    async fn bury(&self, did: &Did, genesis: &Operation, late: Late) -> Result<(), PlcError> {
        let plc = &self.inner.plc;
        match plc.last_op(did).await {
            Ok(last) if last.is_tombstone() => {}
            Ok(_) => {
                let tombstone = self
                    .inner
                    .rotation_key()
                    .map_err(|error| PlcError::Malformed(error.to_string()))
                    .and_then(|key| {
                        Operation::tombstone(genesis.cid(), &key)
                            .map_err(|error| PlcError::Malformed(error.to_string()))
                    })?;
                plc.submit(did, &tombstone).await?;
            }
            Err(PlcError::Tombstoned(_)) => {}
            // It was never registered.
            Err(PlcError::NotFound(_)) if late == Late::Over => {}
            Err(error) => return Err(error),
        }
        self.forget(did).await;
        Ok(())
    }

    /// Drops key and intent of an identity that is none.
    async fn forget(&self, did: &Did) {
        let owner = did.as_str().to_owned();
        let forgotten = self
            .change(vec![LockKey::did(did.as_str())], move |tx| {
                tx.execute("DELETE FROM signing_key WHERE did = ?1", [&owner])?;
                Ok(tx.execute("DELETE FROM plc_intent WHERE did = ?1", [&owner])?)
            })
            .await;
        if let Err(error) = forgotten {
            tracing::warn!(%did, %error, "an abandoned sign-up is left to the next start");
        }
    }

    /// Logs account, repo and first session as one group.
    async fn settle(
        &self,
        did: &Did,
        key: &SigningKey,
        newcomer: Newcomer,
        begin: Begin,
    ) -> Result<Session, ChangeError> {
        let inner = &self.inner;
        let Newcomer {
            handle,
            email,
            password_hash,
            invite,
            ..
        } = newcomer;
        let now = inner.now_seconds();
        let id = self.new_id()?;
        let access = inner
            .tokens
            .issue_access(did, Scope::Access, now)
            .map_err(not_issued)?;
        let refresh = inner.tokens.issue_refresh(did, &id, now).map_err(not_issued)?;
        let token = view::RefreshToken {
            id: hash_refresh_id(&id),
            did: did.as_str().to_owned(),
            expires_at: seconds_text(now + REFRESH_LIFETIME_SECS),
            next_id: None,
            app_password_name: None,
        };
        let mut locks = vec![LockKey::did(did.as_str()), LockKey::handle(handle.as_str())];
        locks.extend(email.as_deref().map(LockKey::email));
        locks.extend(invite.as_deref().map(LockKey::invite));
        let account = Account {
            did: did.clone(),
            handle: Some(handle.clone()),
            email: email.clone(),
            email_confirmed: false,
            status: match begin {
                Begin::Founded => Status::Active,
                Begin::Arrived(_) => Status::Deactivated,
            },
            hides_some: false,
            password_hash: password_hash.clone(),
        };
        let (owner, name, at) = (
            did.as_str().to_owned(),
            handle.as_str().to_owned(),
            inner.now_text(),
        );
        let arrived = match begin {
            Begin::Founded => None,
            Begin::Arrived(wrapped) => Some(view::SigningKey {
                did: owner.clone(),
                public_key: key.public_key().to_did_key(),
                wrapped,
                created_at: at.clone(),
            }),
        };
        let is_new = arrived.is_none();
        let delete_after = seconds_text(now + ARRIVAL_DAYS * 24 * 3600);
        let prepared = self
            .prepare(locks, move |tx| {
                if let Some(key) = &arrived {
                    if queries::account_by_did(tx, &owner)?.is_some() {
                        return Err(AccountsError::Conflict {
                            table: "actor".to_owned(),
                            column: "did".to_owned(),
                        });
                    }
                    queries::put_signing_key(tx, key)?;
                    tx.execute("DELETE FROM reserved_key WHERE name = ?1", [&owner])?;
                }
                if handle_is_promised(tx, &name, &owner)? {
                    return Err(AccountsError::Conflict {
                        table: "actor".to_owned(),
                        column: "handle".to_owned(),
                    });
                }
                queries::insert_actor(
                    tx,
                    &view::Actor {
                        did: owner.clone(),
                        handle: Some(name),
                        created_at: at.clone(),
                        takedown_ref: None,
                        deactivated_at: arrived.as_ref().map(|_| at.clone()),
                        delete_after: arrived.as_ref().map(|_| delete_after),
                    },
                )?;
                if let (Some(email), Some(hash)) = (email, password_hash) {
                    let password = view::PasswordHash(hash);
                    let login = view::Login {
                        email,
                        password,
                        email_confirmed_at: None,
                        invites_disabled: false,
                    };
                    queries::insert_login(tx, &owner, &login)?;
                }
                if let Some(code) = &invite {
                    // Looked at again under the code's lock: two sign-ups must not share its last use.
                    if invite_uses_left(tx, code)? <= 0 {
                        return Err(AccountsError::Conflict {
                            table: "invite_code_use".to_owned(),
                            column: "code".to_owned(),
                        });
                    }
                    tx.execute(
                        "INSERT INTO invite_code_use (code, usedBy, usedAt) VALUES (?1, ?2, ?3)",
                        rusqlite::params![code, owner, at],
                    )?;
                }
                queries::insert_refresh_token(tx, &token)?;
                Ok(tx.execute("DELETE FROM plc_intent WHERE did = ?1", [&owner])?)
            })
            .await?;
        let change = Change::AccountsChangeset {
            bytes: prepared.changeset,
        };
        let rev = inner.repos.next_tid();
        let internal = |error: WriteError| ChangeError::Internal(error.to_string());
        let group = if is_new {
            let first = genesis(did, key, rev).map_err(internal)?;
            let identity = event::encode_identity(did, Some(&handle));
            vec![
                EntryDraft::identity(identity, vec![change]),
                EntryDraft::account(event::encode_account(did, None), Vec::new()),
                first.commit,
                first.sync,
            ]
        } else {
            // The repo of an account that was deleted here may still be on its way out of the index.
            if export::head(&inner.engine, did).map_err(internal)?.is_some() {
                return Err(ChangeError::Busy);
            }
            vec![EntryDraft::private(vec![
                change,
                silent_genesis(did, key, rev).map_err(internal)?,
            ])]
        };
        inner.commit(group, prepared.locks).await?;
        metrics::counter!("pds_accounts_created_total").increment(1);
        Ok(Session {
            access,
            refresh,
            account,
        })
    }

    async fn check_invite(&self, code: Option<String>) -> Result<Option<String>, CreateError> {
        if !self.inner.config.invite_required {
            return Ok(None);
        }
        let code = code.ok_or(CreateError::InviteCode)?;
        let wanted = code.clone();
        let left = self
            .inner
            .engine
            .accounts()
            .read(move |conn| invite_uses_left(conn, &wanted))
            .await
            .map_err(ChangeError::from)?;
        if left > 0 {
            Ok(Some(code))
        } else {
            Err(CreateError::InviteCode)
        }
    }

    async fn check_free(&self, handle: &Handle, email: Option<&str>) -> Result<(), CreateError> {
        if self.by_handle(handle).await.map_err(ChangeError::from)?.is_some() {
            return Err(handle_taken(handle));
        }
        if let Some(email) = email
            && self.by_email(email).await.map_err(ChangeError::from)?.is_some()
        {
            return Err(email_taken());
        }
        Ok(())
    }
}

impl Inner {
    /// A repo's signing key as it is stored.
    fn wrap_key(&self, did: &Did, key: &SigningKey) -> Result<Vec<u8>, ChangeError> {
        let (bytes, entropy) = (key.to_bytes(), self.engine.entropy());
        self.wrap
            .wrap(Purpose::REPO_SIGNING_KEY, did.as_str(), bytes.as_slice(), entropy)
            .map_err(|error| ChangeError::Internal(error.to_string()))
    }

    pub(super) fn rotation_key(&self) -> Result<SigningKey, ChangeError> {
        SigningKey::from_bytes(self.config.plc_rotation_key.expose())
            .map_err(|error| ChangeError::Internal(format!("the PLC rotation key: {error}")))
    }
}

/// Whether a change of the identity of somebody else than `did` is under way that gives it this handle.
pub(crate) fn handle_is_promised(
    conn: &rusqlite::Connection,
    handle: &str,
    did: &str,
) -> Result<bool, AccountsError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM identity_intent WHERE handle = ?1 AND did <> ?2)";
    Ok(conn.query_row(sql, [handle, did], |row| row.get(0))?)
}

/// How many more people can sign up with a code; none for a code that does not exist or is disabled.
fn invite_uses_left(conn: &rusqlite::Connection, code: &str) -> Result<i64, AccountsError> {
    let sql = "SELECT coalesce(sum(c.availableUses - (SELECT count(*) FROM invite_code_use u WHERE u.code = c.code)), 0)
        FROM invite_code c LEFT JOIN actor a ON a.did = c.forAccount
        WHERE c.code = ?1 AND c.disabled = 0 AND a.takedownRef IS NULL";
    Ok(conn.query_row(sql, [code], |row| row.get(0))?)
}

/// Syntax of an e-mail address as far as it can be judged without sending to it; lower-case.
pub(super) fn check_email(email: &str) -> Result<String, CreateError> {
    let refused = || {
        CreateError::Invalid("This email address is not supported, please use a different email.".to_owned())
    };
    let (local, domain) = email.rsplit_once('@').ok_or_else(refused)?;
    let sound = email.len() <= EMAIL_MAX
        && !local.is_empty()
        && local.len() <= 64
        && domain.contains('.')
        && !email.contains(|c: char| c.is_whitespace() || c.is_control() || "<>()[]\\,;:\"".contains(c))
        && domain.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || !b.is_ascii())
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
        && !local.contains('@');
    if sound {
        Ok(email.to_lowercase())
    } else {
        Err(refused())
    }
}

fn handle_taken(handle: &Handle) -> CreateError {
    CreateError::Handle {
        name: "HandleNotAvailable",
        message: format!("Handle already taken: {handle}"),
    }
}

fn email_taken() -> CreateError {
    CreateError::Invalid("Email already taken".to_owned())
}

/// What somebody is told who was free to sign up a moment ago and lost a race.
fn taken(error: ChangeError, did: &Did, handle: &Handle) -> CreateError {
    match error {
        ChangeError::Conflict { table, column } => match (table.as_str(), column.as_str()) {
            ("actor", "handle") => handle_taken(handle),
            ("actor", "did") => CreateError::Exists(did.clone()),
            ("account", "email") => email_taken(),
            ("invite_code_use", _) => CreateError::InviteCode,
            _ => ChangeError::Conflict { table, column }.into(),
        },
        other => other.into(),
    }
}

fn handle_error(error: &HandleError) -> CreateError {
    CreateError::Handle {
        name: error.name(),
        message: error.to_string(),
    }
}

fn password_error(error: PasswordError) -> CreateError {
    match error {
        PasswordError::Busy => CreateError::Busy,
        PasswordError::TooLong => CreateError::Invalid("Password too long".to_owned()),
        other => internal(&other),
    }
}

fn plc_error(error: &PlcError) -> CreateError {
    CreateError::Plc {
        upstream: error.status() >= 500,
        message: error.to_string(),
    }
}

fn internal(error: &dyn std::fmt::Display) -> CreateError {
    CreateError::Change(ChangeError::Internal(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e_mail_addresses_are_judged_by_their_form() {
        for good in ["a@b.co", "Alice.Bob+tag@sub.example.com", "ü@exämple.com"] {
            assert_eq!(check_email(good).unwrap(), good.to_lowercase(), "{good}");
        }
        for bad in [
            "", "a", "a@b", "@b.co", "a@.co", "a@b..co", "a b@c.co", "a@b.co\n", "a@-b.co", "x@y@z.co",
        ] {
            assert!(check_email(bad).is_err(), "{bad}");
        }
    }
}
