//! A forgotten password: a code by mail, and a new password for the code.

use engine::views::accounts::{LockKey, model as view, queries};

use super::mail_tokens::{CodeError, MailPurpose, NotMailed};
use super::{Accounts, ChangeError, MailError};
use crate::auth::password::PasswordError;

/// Why a password was not reset.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The code.
    #[error(transparent)]
    Code(#[from] CodeError),
    /// The new password is too long.
    #[error("Password too long")]
    TooLong,
    /// Too many at once.
    #[error("the server is busy; try again")]
    Busy,
    /// The account database or the log.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

impl Accounts {
    /// Mails a code with which the password of the account with this address can be set anew.
    ///
    /// # Errors
    /// See [`NotMailed`]; nobody with this address counts as no address.
    pub async fn request_password_reset(&self, email: &str) -> Result<(), NotMailed> {
        self.inner.mailer.check().map_err(MailError::from)?;
        let account = self.by_email(&email.to_lowercase()).await;
        let account = account.map_err(ChangeError::from)?.ok_or(NotMailed::NoAddress)?;
        self.mail_code(&account, MailPurpose::ResetPassword).await
    }

    /// Sets a new password in the owner's place, and ends every session of the account. An account without a login has none to set.
    ///
    /// # Errors
    /// See [`RecoveryError`].
    pub async fn set_password_by_admin(
        &self,
        did: &engine::repo::Did,
        password: &str,
    ) -> Result<(), RecoveryError> {
        let password = self.new_hash(password).await?;
        let owner = did.as_str().to_owned();
        self.change(vec![LockKey::did(did.as_str())], move |tx| {
            queries::set_password(tx, &owner, &view::PasswordHash(password))?;
            queries::delete_refresh_tokens_of(tx, &owner)?;
            Ok(())
        })
        .await?;
        Ok(())
    }

    async fn new_hash(&self, password: &str) -> Result<String, RecoveryError> {
        let hashed = self.inner.passwords.hash(password).await;
        hashed.map_err(|error| match error {
            PasswordError::Busy => RecoveryError::Busy,
            PasswordError::TooLong => RecoveryError::TooLong,
            other => RecoveryError::Change(ChangeError::Internal(other.to_string())),
        })
    }

    /// Sets a new password for a mailed code, and ends every session of the account.
    ///
    /// # Errors
    /// See [`RecoveryError`].
    pub async fn reset_password(&self, code: &str, password: &str) -> Result<(), RecoveryError> {
        let code = self.check_code(MailPurpose::ResetPassword, None, code).await?;
        let hashed = self.new_hash(password).await?;
        let used = self.change(vec![LockKey::did(code.did())], move |tx| {
            // Looked at again under the account's lock, so that a code works once.
            if !code.use_up(tx)? {
                return Ok(false);
            }
            queries::set_password(tx, code.did(), &view::PasswordHash(hashed))?;
            queries::delete_refresh_tokens_of(tx, code.did())?;
            Ok(true)
        });
        if used.await? {
            Ok(())
        } else {
            Err(CodeError::Invalid.into())
        }
    }
}
