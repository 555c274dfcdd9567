//! A forgotten password: a token by mail, and a new password for the token.

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use engine::repo::Did;
use engine::views::accounts::{AccountsError, LockKey, model as view, queries};
use rusqlite::OptionalExtension;
use sha2::{Digest, Sha256};

use super::{Accounts, ChangeError};
use crate::auth::password::PasswordError;
use crate::service::mail::{Mail, NoMail};

/// What these tokens are for, in the table of mail tokens.
const PURPOSE: &str = "reset_password";
/// How long a token is good, in microseconds.
const LIFETIME_MICROS: u64 = 15 * 60 * 1_000_000;

/// Why a password was not reset.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// Nobody here has that address.
    #[error("account does not have an email address")]
    NoAccount,
    /// No such token.
    #[error("Token is invalid")]
    InvalidToken,
    /// Too old a token.
    #[error("Token is expired")]
    ExpiredToken,
    /// The new password is too long.
    #[error("Password too long")]
    TooLong,
    /// Too many at once.
    #[error("the server is busy; try again")]
    Busy,
    /// No way to send mail.
    #[error(transparent)]
    NoMail(#[from] NoMail),
    /// The account database or the log.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

impl Accounts {
    /// Mails a token with which the password of the account with this address can be set anew. A new token replaces
    /// the old one; only its hash is stored.
    ///
    /// # Errors
    /// See [`RecoveryError`].
    pub async fn request_password_reset(&self, email: &str) -> Result<(), RecoveryError> {
        let inner = &self.inner;
        inner.mailer.check()?;
        let account = self
            .by_email(&email.to_lowercase())
            .await
            .map_err(ChangeError::from)?
            .ok_or(RecoveryError::NoAccount)?;
        let address = account.email.clone().ok_or(RecoveryError::NoAccount)?;
        let mut random = [0; 7];
        inner
            .engine
            .entropy()
            .fill(&mut random)
            .map_err(|error| ChangeError::Internal(error.to_string()))?;
        let text: String = BASE32_NOPAD.encode(&random).chars().take(10).collect();
        let token = format!(
            "{}-{}",
            text.get(..5).unwrap_or_default(),
            text.get(5..).unwrap_or_default()
        );
        let (did, hash, now) = (account.did.as_str().to_owned(), hash(&token), inner.now_text());
        let sent_at = now.clone();
        self.change(vec![LockKey::did(account.did.as_str())], move |tx| {
            tx.execute(
                "INSERT INTO email_token (purpose, did, token, requestedAt) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (purpose, did) DO UPDATE SET token = excluded.token, requestedAt = excluded.requestedAt",
                rusqlite::params![PURPOSE, did, hash, now],
            )
            .map_err(AccountsError::from)
        })
        .await?;
        // Mail is an effect on the outside world: the token must be in the replica before it leaves.
        let replicated = inner.engine.in_time(inner.engine.replicated()).await;
        replicated
            .map_err(ChangeError::from)?
            .map_err(|error| ChangeError::Closed(error.to_string()))?;
        inner.mailer.send(Mail {
            to: address,
            subject: "Password Reset Requested".to_owned(),
            text: format!(
                "Somebody, hopefully you, asked to reset the password of {}.\nThe code is {token} and works for 15 minutes.\n",
                account.handle_text()
            ),
            sent_at,
        })?;
        Ok(())
    }

    /// Sets a new password for a mailed token, and ends every session of the account.
    ///
    /// # Errors
    /// See [`RecoveryError`].
    pub async fn reset_password(&self, token: &str, password: &str) -> Result<(), RecoveryError> {
        let inner = &self.inner;
        let hashed_token = hash(&token.to_uppercase());
        let wanted = hashed_token.clone();
        let row = inner.engine.accounts().read(move |conn| {
            conn.query_row(
                "SELECT did, requestedAt FROM email_token WHERE purpose = ?1 AND token = ?2",
                [PURPOSE, wanted.as_str()],
                |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)),
            )
            .optional()
            .map_err(AccountsError::from)
        });
        let (did, requested_at) = row
            .await
            .map_err(ChangeError::from)?
            .ok_or(RecoveryError::InvalidToken)?;
        let did: Did = did.parse().map_err(|_| RecoveryError::InvalidToken)?;
        let oldest = inner.engine.now_micros().saturating_sub(LIFETIME_MICROS);
        if requested_at < engine::repo::datetime::format_datetime(oldest) {
            return Err(RecoveryError::ExpiredToken);
        }
        let password = inner
            .passwords
            .hash(password)
            .await
            .map_err(|error| match error {
                PasswordError::Busy => RecoveryError::Busy,
                PasswordError::TooLong => RecoveryError::TooLong,
                other => RecoveryError::Change(ChangeError::Internal(other.to_string())),
            })?;
        let owner = did.as_str().to_owned();
        let used = self.change(vec![LockKey::did(did.as_str())], move |tx| {
            // Looked at again under the account's lock, so that a token works once.
            let gone = tx.execute(
                "DELETE FROM email_token WHERE purpose = ?1 AND did = ?2 AND token = ?3",
                [PURPOSE, owner.as_str(), hashed_token.as_str()],
            )? == 0;
            if gone {
                return Ok(false);
            }
            queries::set_password(tx, &owner, &view::PasswordHash(password))?;
            queries::delete_refresh_tokens_of(tx, &owner)?;
            Ok(true)
        });
        if used.await? {
            Ok(())
        } else {
            Err(RecoveryError::InvalidToken)
        }
    }
}

fn hash(token: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(token.as_bytes()))
}
