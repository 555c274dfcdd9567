//! Log in, refresh, log out.

use std::time::{Duration, Instant};

use engine::repo::AtIdentifier;
use engine::repo::Did;
use engine::views::accounts::model::{PasswordHash, RefreshToken, Rotation};
use engine::views::accounts::{LockKey, queries};

use super::{Account, Accounts, AccountsUnavailable, ChangeError, Status};
use crate::auth::password::{PasswordError, Passwords};
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
        let right = self
            .inner
            .passwords
            .verify(password, hash.as_deref())
            .await
            .map_err(|error| match error {
                PasswordError::Busy => LoginError::Busy,
                other => LoginError::Change(ChangeError::Internal(other.to_string())),
            })?;
        let account = account.filter(|_| right).ok_or(LoginError::Wrong)?;
        // A hash of another server is replaced while the password is known; if that is not possible now, next time.
        let better = match hash {
            Some(hash) if Passwords::is_outdated(&hash) => self.inner.passwords.hash(password).await.ok(),
            _ => None,
        };
        if account.status == Status::TakenDown {
            if !allow_takendown {
                return Err(LoginError::TakenDown);
            }
            return self.takendown_session(account).map_err(LoginError::from);
        }
        self.open(account, None, better).await
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
    /// `better` replaces the stored hash of the password that they gave.
    async fn open(
        &self,
        account: Account,
        app_password: Option<String>,
        better: Option<String>,
    ) -> Result<Session, LoginError> {
        let now = self.inner.now_seconds();
        let id = self.new_id()?;
        let access = self
            .inner
            .tokens
            .issue_access(&account.did, Scope::Access, now)
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
            app_password_name: app_password,
        };
        // The password may have been changed while it was checked, and that ends all sessions: none may slip in after.
        let locks = vec![LockKey::did(account.did.as_str())];
        let proven = account.password_hash.clone();
        let opened = self.change(locks, move |tx| {
            let login = queries::account_by_did(tx, &row.did)?.and_then(|account| account.login);
            let still = login.map(|login| login.password.0) == proven;
            if still {
                queries::insert_refresh_token(tx, &row)?;
                if let Some(better) = better {
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
        let locks = vec![LockKey::did(claims.did.as_str())];
        let rotated = self
            .change(locks, move |tx| {
                queries::rotate_refresh_token(tx, &id, &next_id, now_micros, &expires)
            })
            .await?;
        if !matches!(rotated, Rotation::Rotated { .. }) {
            return Err(RefreshError::Revoked);
        }
        Ok(Session {
            access: self
                .inner
                .tokens
                .issue_access(&account.did, Scope::Access, now)
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

pub(super) fn not_issued(error: TokenError) -> ChangeError {
    ChangeError::Internal(error.to_string())
}

/// Seconds since 1970 as the account database writes times.
pub(super) fn seconds_text(seconds: u64) -> String {
    engine::repo::datetime::format_datetime(seconds.saturating_mul(1_000_000))
}
