//! Log in, refresh, log out.

use std::time::{Duration, Instant};

use engine::repo::AtIdentifier;
use engine::repo::Did;
use engine::views::accounts::model::{AppPassword, PasswordHash, RefreshToken, Rotation};
use engine::views::accounts::{AccountsError, LockKey, queries};

use super::{Account, Accounts, AccountsUnavailable, ChangeError, Status};
use crate::auth::password::{PasswordError, Passwords, is_app_password};
use crate::auth::tokens::{
    REFRESH_LIFETIME_SECS, RefreshClaims, Scope, TokenError, hash_refresh_id, new_refresh_id,
};

/// Every log-in takes at least this long, so that time does not tell a wrong name from a wrong password.
const LOGIN_MIN: Duration = Duration::from_millis(350);

/// A session's tokens with the account they belong to. Not to be printed.
pub struct Session {
    /// The access token.
    pub access: String,
    /// The refresh token.
    pub refresh: String,
    /// Whose session.
    pub account: Account,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("account", &self.account)
            .finish_non_exhaustive()
    }
}

/// With what somebody has shown who they are.
enum Proof {
    /// The account's own password; what is stored of it, and a better hash of it if that is outdated.
    Password {
        stored: Option<String>,
        better: Option<String>,
    },
    /// One of its app passwords; what is stored of it.
    AppPassword { of: AppPassword, stored: PasswordHash },
}

impl Proof {
    fn scope(&self) -> Scope {
        match self {
            Proof::Password { .. } => Scope::Access,
            Proof::AppPassword { of, .. } => scope_of(of),
        }
    }
}

/// Why a log-in failed.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// Unknown name or wrong password; nobody learns which.
    #[error("Invalid identifier or password")]
    Wrong,
    /// The account is taken down.
    #[error("Account has been taken down")]
    TakenDown,
    /// Too many log-ins at once.
    #[error("too many log-ins at once; try again")]
    Busy,
    /// The account database or the log.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

/// Why a session was not refreshed.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// The token's row is gone, or its grace is over.
    #[error("Token has been revoked")]
    Revoked,
    /// The account is gone.
    #[error("Could not find user info for account: {0}")]
    NoAccount(Did),
    /// The account is taken down.
    #[error("Account has been taken down")]
    TakenDown,
    /// The account database or the log.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

impl Accounts {
    /// Checks a password and opens a session. `allow_takendown` gives taken-down accounts a session that can only leave.
    ///
    /// # Errors
    /// See [`LoginError`].
    pub async fn login(
        &self,
        identifier: &str,
        password: &str,
        allow_takendown: bool,
    ) -> Result<Session, LoginError> {
        let started = Instant::now();
        let outcome = self
            .login_at_any_speed(identifier, password, allow_takendown)
            .await;
        tokio::time::sleep(LOGIN_MIN.saturating_sub(started.elapsed())).await;
        outcome
    }

    async fn login_at_any_speed(
        &self,
        identifier: &str,
        password: &str,
        allow_takendown: bool,
    ) -> Result<Session, LoginError> {
        let identifier = identifier.to_lowercase();
        let account = if identifier.contains('@') {
            self.by_email(&identifier).await
        } else {
            match identifier.parse::<AtIdentifier>() {
                Ok(who) => self.find(&who).await,
                Err(_) => Ok(None),
            }
        }
        .map_err(ChangeError::from)?;
        let hash = account.as_ref().and_then(|account| account.password_hash.clone());
        let right = self.inner.passwords.verify(password, hash.as_deref()).await;
        let app = match right.map_err(not_checked)? {
            true => None,
            false => match self.find_app_password(account.as_ref(), password).await? {
                Some(app) => Some(app),
                None => return Err(LoginError::Wrong),
            },
        };
        let account = account.ok_or(LoginError::Wrong)?;
        let proof = match app {
            Some((of, stored)) => Proof::AppPassword { of, stored },
            None => Proof::Password {
                // A hash of another server is replaced while the password is known; if that is not possible now, next time.
                better: match &hash {
                    Some(hash) if Passwords::is_outdated(hash) => {
                        self.inner.passwords.hash(password).await.ok()
                    }
                    _ => None,
                },
                stored: hash,
            },
        };
        if account.status == Status::TakenDown {
            if !allow_takendown {
                return Err(LoginError::TakenDown);
            }
            return self.takendown_session(account).map_err(LoginError::from);
        }
        self.open(account, proof).await
    }

    /// The app password that `password` is, with its stored form. What does not look like one is not looked for; without an
    /// account it computes as long, so that the time does not tell which accounts exist.
    async fn find_app_password(
        &self,
        account: Option<&Account>,
        password: &str,
    ) -> Result<Option<(AppPassword, PasswordHash)>, LoginError> {
        if !is_app_password(password) {
            return Ok(None);
        }
        let inner = &self.inner;
        let did = account.map_or(&inner.config.service_did, |account| &account.did);
        let hash = inner.passwords.hash_app_password(did, password).await;
        let hash = PasswordHash(hash.map_err(not_checked)?);
        let Some(account) = account else { return Ok(None) };
        let (did, wanted) = (account.did.clone(), hash.clone());
        let read = inner
            .engine
            .accounts()
            .read(move |conn| queries::app_password_by_hash(conn, did.as_str(), &wanted));
        let found = read
            .await
            .map_err(|error: AccountsError| LoginError::Change(error.into()))?;
        Ok(found.map(|app| (app, hash)))
    }

    /// A session that can only leave; its refresh token is never stored, so it can never be used.
    fn takendown_session(&self, account: Account) -> Result<Session, ChangeError> {
        let now = self.inner.now_seconds();
        let id = self.new_id()?;
        let tokens = &self.inner.tokens;
        Ok(Session {
            access: tokens
                .issue_access(&account.did, Scope::Takendown, now)
                .map_err(not_issued)?,
            refresh: tokens.issue_refresh(&account.did, &id, now).map_err(not_issued)?,
            account,
        })
    }

    /// Opens a session of an account whose owner has shown who they are.
    async fn open(&self, account: Account, proof: Proof) -> Result<Session, LoginError> {
        let now = self.inner.now_seconds();
        let id = self.new_id()?;
        let access = self
            .inner
            .tokens
            .issue_access(&account.did, proof.scope(), now)
            .map_err(not_issued)?;
        let refresh = self
            .inner
            .tokens
            .issue_refresh(&account.did, &id, now)
            .map_err(not_issued)?;
        let row = RefreshToken {
            id: hash_refresh_id(&id),
            did: account.did.as_str().to_owned(),
            expires_at: seconds_text(now + REFRESH_LIFETIME_SECS),
            next_id: None,
            app_password_name: match &proof {
                Proof::Password { .. } => None,
                Proof::AppPassword { of, .. } => Some(of.name.clone()),
            },
        };
        // What was proven may have been changed or revoked while it was checked, and that ends all sessions: none may slip in after.
        let locks = vec![LockKey::did(account.did.as_str())];
        let opened = self.change(locks, move |tx| {
            let still = match &proof {
                Proof::Password { stored, .. } => {
                    let login = queries::account_by_did(tx, &row.did)?.and_then(|account| account.login);
                    login.map(|login| login.password.0) == *stored
                }
                Proof::AppPassword { of, stored } => {
                    queries::app_password_by_hash(tx, &row.did, stored)?.as_ref() == Some(of)
                }
            };
            if still {
                queries::insert_refresh_token(tx, &row)?;
                if let Proof::Password {
                    better: Some(better), ..
                } = proof
                {
                    queries::set_password(tx, &row.did, &PasswordHash(better))?;
                }
            }
            Ok(still)
        });
        if !opened.await? {
            return Err(LoginError::Wrong);
        }
        Ok(Session {
            access,
            refresh,
            account,
        })
    }

    /// A fresh refresh-token id.
    pub(super) fn new_id(&self) -> Result<String, ChangeError> {
        new_refresh_id(self.inner.engine.entropy()).map_err(|error| ChangeError::Internal(error.to_string()))
    }

    /// Rotates a verified refresh token. Within the grace window an old token gives the same successor every time.
    ///
    /// # Errors
    /// See [`RefreshError`].
    pub async fn refresh(&self, claims: &RefreshClaims) -> Result<Session, RefreshError> {
        let account = self
            .by_did(&claims.did)
            .await
            .map_err(ChangeError::from)?
            .ok_or_else(|| RefreshError::NoAccount(claims.did.clone()))?;
        if account.status == Status::TakenDown {
            return Err(RefreshError::TakenDown);
        }
        let now = self.inner.now_seconds();
        let next = self.inner.tokens.next_refresh_id(&claims.id);
        let (id, next_id) = (hash_refresh_id(&claims.id), hash_refresh_id(&next));
        let now_micros = self.inner.engine.now_micros();
        let expires = seconds_text(now + REFRESH_LIFETIME_SECS);
        let owner = claims.did.as_str().to_owned();
        let locks = vec![LockKey::did(claims.did.as_str())];
        let rotated = self.change(locks, move |tx| {
            let session = queries::refresh_token(tx, &id)?;
            let scope = match session
                .as_ref()
                .and_then(|token| token.app_password_name.as_deref())
            {
                None => Scope::Access,
                Some(name) => match queries::app_password_by_name(tx, &owner, name)? {
                    Some(app) => scope_of(&app),
                    // Its rows go with it; whatever has kept this one, what began it is revoked.
                    None => return Ok(None),
                },
            };
            let rotation = queries::rotate_refresh_token(tx, &id, &next_id, now_micros, &expires)?;
            Ok(matches!(rotation, Rotation::Rotated { .. }).then_some(scope))
        });
        let scope = rotated.await?.ok_or(RefreshError::Revoked)?;
        Ok(Session {
            access: self
                .inner
                .tokens
                .issue_access(&account.did, scope, now)
                .map_err(not_issued)?,
            refresh: self
                .inner
                .tokens
                .issue_refresh(&account.did, &next, now)
                .map_err(not_issued)?,
            account,
        })
    }

    /// Ends the session of a refresh token, which may have expired. A session that is gone already is no error.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn logout(&self, claims: &RefreshClaims) -> Result<(), ChangeError> {
        let id = hash_refresh_id(&claims.id);
        let locks = vec![LockKey::did(claims.did.as_str())];
        self.change(locks, move |tx| {
            queries::delete_refresh_token(tx, &id).map(|_| ())
        })
        .await
    }
}

impl From<AccountsUnavailable> for ChangeError {
    fn from(error: AccountsUnavailable) -> ChangeError {
        match error {
            AccountsUnavailable::Busy(_) => ChangeError::Busy,
            AccountsUnavailable::Failed(cause) => ChangeError::Internal(cause),
        }
    }
}

/// What a session that began with an app password may do.
fn scope_of(app: &AppPassword) -> Scope {
    if app.privileged {
        Scope::AppPassPrivileged
    } else {
        Scope::AppPass
    }
}

fn not_checked(error: PasswordError) -> LoginError {
    match error {
        PasswordError::Busy => LoginError::Busy,
        other => LoginError::Change(ChangeError::Internal(other.to_string())),
    }
}

pub(super) fn not_issued(error: TokenError) -> ChangeError {
    ChangeError::Internal(error.to_string())
}

/// Seconds since 1970 as the account database writes times.
pub(super) fn seconds_text(seconds: u64) -> String {
    engine::repo::datetime::format_datetime(seconds.saturating_mul(1_000_000))
}
