//! Codes that go to an account's address by mail. Of each purpose an account has one at a time, for a quarter of an hour; only
//! its hash is stored.

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use engine::repo::Did;
use engine::views::accounts::{AccountsError, LockKey};
use rusqlite::{Connection, OptionalExtension, params};
use sha2::{Digest, Sha256};

use super::{Account, Accounts, ChangeError, MailError};
use crate::service::mail::Letter;
use crate::service::mail::letters::CODE_LIFETIME;

/// What a code is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MailPurpose {
    /// To confirm the address.
    ConfirmEmail,
    /// To change it.
    UpdateEmail,
    /// To set a new password.
    ResetPassword,
    /// To delete the account.
    DeleteAccount,
    /// To have a did:plc operation signed.
    PlcOperation,
}

impl MailPurpose {
    /// As the table of mail tokens has it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            MailPurpose::ConfirmEmail => "confirm_email",
            MailPurpose::UpdateEmail => "update_email",
            MailPurpose::ResetPassword => "reset_password",
            MailPurpose::DeleteAccount => "delete_account",
            MailPurpose::PlcOperation => "plc_operation",
        }
    }

    /// What the mail says.
    fn letter(self, handle: String, token: String) -> Letter {
        match self {
            MailPurpose::ConfirmEmail => Letter::ConfirmEmail { handle, token },
            MailPurpose::UpdateEmail => Letter::UpdateEmail { handle, token },
            MailPurpose::ResetPassword => Letter::ResetPassword { handle, token },
            MailPurpose::DeleteAccount => Letter::DeleteAccount { handle, token },
            MailPurpose::PlcOperation => Letter::PlcOperation { handle, token },
        }
    }
}

/// Why no code was mailed.
#[derive(Debug, thiserror::Error)]
pub enum NotMailed {
    /// There is nowhere to send it.
    #[error("account does not have an email address")]
    NoAddress,
    /// The mail cannot be sent.
    #[error(transparent)]
    Mail(#[from] MailError),
    /// The account database or the log.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

/// Why a code is not taken.
#[derive(Debug, thiserror::Error)]
pub enum CodeError {
    /// No such code, not this account's, not for this, used or replaced.
    #[error("Token is invalid")]
    Invalid,
    /// Too old.
    #[error("Token is expired")]
    Expired,
    /// The account database cannot be read.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

/// A code that was good when it was looked at. It is used up in a transaction, with [`Code::use_up`].
#[derive(Clone)]
pub(super) struct Code {
    purpose: MailPurpose,
    did: String,
    hash: String,
}

impl Code {
    /// Whose it is.
    pub(super) fn did(&self) -> &str {
        &self.did
    }

    /// Whether it is still there; then it is gone now. Needs the account's lock.
    pub(super) fn use_up(&self, conn: &Connection) -> Result<bool, AccountsError> {
        let gone = conn.execute(
            "DELETE FROM email_token WHERE purpose = ?1 AND did = ?2 AND token = ?3",
            params![self.purpose.name(), self.did, self.hash],
        )?;
        Ok(gone > 0)
    }
}

impl Accounts {
    /// Mails a code to the address of `account`. It takes the place of the one before.
    ///
    /// # Errors
    /// See [`NotMailed`].
    pub(crate) async fn mail_code(&self, account: &Account, purpose: MailPurpose) -> Result<(), NotMailed> {
        let inner = &self.inner;
        inner.mailer.check().map_err(MailError::from)?;
        let to = account.email.clone().ok_or(NotMailed::NoAddress)?;
        let mut random = [0; 7];
        let entropy = inner.engine.entropy();
        entropy
            .fill(&mut random)
            .map_err(|error| ChangeError::Internal(error.to_string()))?;
        let text: String = BASE32_NOPAD.encode(&random).chars().take(10).collect();
        let (first, second) = text.split_at_checked(5).unwrap_or_default();
        let code = format!("{first}-{second}");
        let (did, hash, now) = (account.did.as_str().to_owned(), hash(&code), inner.now_text());
        let letter = purpose.letter(account.handle_text().to_owned(), code);
        let locks = vec![LockKey::did(account.did.as_str())];
        let mailed = self.mail(account.did.as_str(), &to, letter, locks, move |tx| {
            tx.execute(
                "INSERT INTO email_token (purpose, did, token, requestedAt) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (purpose, did) DO UPDATE SET token = excluded.token, requestedAt = excluded.requestedAt",
                params![purpose.name(), did, hash, now],
            )
            .map(|_| ())
            .map_err(AccountsError::from)
        });
        Ok(mailed.await?)
    }

    /// The code as it was mailed: to the account `of`, or to whichever it was.
    ///
    /// # Errors
    /// See [`CodeError`].
    pub(super) async fn check_code(
        &self,
        purpose: MailPurpose,
        of: Option<&Did>,
        text: &str,
    ) -> Result<Code, CodeError> {
        let inner = &self.inner;
        let hash = hash(&text.trim().to_uppercase());
        let wanted = hash.clone();
        let row = inner.engine.accounts().read(move |conn| {
            conn.query_row(
                "SELECT did, requestedAt FROM email_token WHERE purpose = ?1 AND token = ?2",
                [purpose.name(), wanted.as_str()],
                |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)),
            )
            .optional()
            .map_err(AccountsError::from)
        });
        let row = row.await.map_err(ChangeError::from)?;
        let (did, requested_at) = row
            .filter(|(did, _)| of.is_none_or(|of| of.as_str() == did))
            .ok_or(CodeError::Invalid)?;
        let lifetime = u64::try_from(CODE_LIFETIME.as_micros()).unwrap_or(u64::MAX);
        let oldest = inner.engine.now_micros().saturating_sub(lifetime);
        if requested_at < engine::repo::datetime::format_datetime(oldest) {
            return Err(CodeError::Expired);
        }
        Ok(Code { purpose, did, hash })
    }

    /// Uses up a code of an account.
    ///
    /// # Errors
    /// See [`CodeError`].
    pub(crate) async fn use_code(
        &self,
        purpose: MailPurpose,
        did: &Did,
        text: &str,
    ) -> Result<(), CodeError> {
        let code = self.check_code(purpose, Some(did), text).await?;
        let used = self.change(vec![LockKey::did(did.as_str())], move |tx| code.use_up(tx));
        if used.await? {
            Ok(())
        } else {
            Err(CodeError::Invalid)
        }
    }
}

fn hash(code: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(code.as_bytes()))
}
