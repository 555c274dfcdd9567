//! An account's e-mail address: whether it is its holder's, and another one in its place.

use engine::views::accounts::{AccountsError, LockKey, queries};
use rusqlite::Connection;

use super::create::check_email;
use super::mail_tokens::{CodeError, MailPurpose, NotMailed};
use super::{Account, Accounts, ChangeError};

/// Why an address was not confirmed or changed.
#[derive(Debug, thiserror::Error)]
pub enum EmailError {
    /// The account has another address, or none.
    #[error("invalid email")]
    Other,
    /// It is no address.
    #[error("This email address is not supported, please use a different email.")]
    Unsupported,
    /// Somebody has it.
    #[error("This email address is already in use, please use a different email.")]
    Taken,
    /// The account has no address to change, since it has no password.
    #[error("account does not have an email address")]
    NoAddress,
    /// A confirmed address is changed with a code only.
    #[error("confirmation token required")]
    CodeRequired,
    /// The code.
    #[error(transparent)]
    Code(#[from] CodeError),
    /// The account database or the log.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

/// What became of a transaction.
enum Outcome {
    Done,
    Refused(EmailError),
}

impl Outcome {
    fn done(self) -> Result<(), EmailError> {
        match self {
            Outcome::Done => Ok(()),
            Outcome::Refused(error) => Err(error),
        }
    }
}

impl Accounts {
    /// Confirms that the code that was mailed to `email` has arrived.
    ///
    /// # Errors
    /// See [`EmailError`].
    pub async fn confirm_email(&self, account: &Account, email: &str, code: &str) -> Result<(), EmailError> {
        let email = email.to_lowercase();
        if account.email.as_deref() != Some(email.as_str()) {
            return Err(EmailError::Other);
        }
        let code = self
            .check_code(MailPurpose::ConfirmEmail, Some(&account.did), code)
            .await?;
        let now = self.inner.now_text();
        let confirmed = self.change(vec![LockKey::did(account.did.as_str())], move |tx| {
            let login = queries::account_by_did(tx, code.did())?.and_then(|account| account.login);
            if login.is_none_or(|login| login.email != email) {
                return Ok(Outcome::Refused(EmailError::Other));
            }
            if !code.use_up(tx)? {
                return Ok(Outcome::Refused(CodeError::Invalid.into()));
            }
            tx.execute(
                "UPDATE account SET emailConfirmedAt = ?2 WHERE did = ?1",
                [code.did(), &now],
            )?;
            Ok(Outcome::Done)
        });
        confirmed.await?.done()
    }

    /// Prepares a change of address; true if it needs a code, which was mailed to the address of now.
    ///
    /// # Errors
    /// See [`NotMailed`].
    pub async fn request_email_update(&self, account: &Account) -> Result<bool, NotMailed> {
        if account.email.is_none() {
            return Err(NotMailed::NoAddress);
        }
        if account.email_confirmed {
            self.mail_code(account, MailPurpose::UpdateEmail).await?;
        }
        Ok(account.email_confirmed)
    }

    /// Changes the address. The new one is not confirmed, and no code that was mailed to the old one is good any more.
    ///
    /// # Errors
    /// See [`EmailError`].
    pub async fn update_email(
        &self,
        account: &Account,
        email: &str,
        code: Option<&str>,
    ) -> Result<(), EmailError> {
        let email = check_email(email).map_err(|_| EmailError::Unsupported)?;
        if account.email.is_none() {
            return Err(EmailError::NoAddress);
        }
        let code = match (account.email_confirmed, code) {
            (true, Some(code)) => Some(
                self.check_code(MailPurpose::UpdateEmail, Some(&account.did), code)
                    .await?,
            ),
            (true, None) => return Err(EmailError::CodeRequired),
            (false, _) => None,
        };
        let did = account.did.as_str().to_owned();
        let locks = vec![LockKey::did(&did), LockKey::email(&email)];
        let changed = self.change(locks, move |tx| {
            let Some(login) = queries::account_by_did(tx, &did)?.and_then(|account| account.login) else {
                return Ok(Outcome::Refused(EmailError::NoAddress));
            };
            match &code {
                Some(code) if !code.use_up(tx)? => {
                    return Ok(Outcome::Refused(CodeError::Invalid.into()));
                }
                // Confirmed a moment ago.
                None if login.email_confirmed_at.is_some() => {
                    return Ok(Outcome::Refused(EmailError::CodeRequired));
                }
                Some(_) | None => {}
            }
            set_email(tx, &did, &email)?;
            Ok(Outcome::Done)
        });
        match changed.await {
            Ok(outcome) => outcome.done(),
            Err(ChangeError::Conflict { .. }) => Err(EmailError::Taken),
            Err(error) => Err(error.into()),
        }
    }
}

impl Accounts {
    /// Changes the address of an account in its owner's place.
    ///
    /// # Errors
    /// See [`EmailError`].
    pub async fn set_email_by_admin(&self, did: &engine::repo::Did, email: &str) -> Result<(), EmailError> {
        let email = check_email(email).map_err(|_| EmailError::Unsupported)?;
        let did = did.as_str().to_owned();
        let locks = vec![LockKey::did(&did), LockKey::email(&email)];
        let changed = self.change(locks, move |tx| set_email(tx, &did, &email));
        match changed.await {
            Ok(true) => Ok(()),
            Ok(false) => Err(EmailError::NoAddress),
            Err(ChangeError::Conflict { .. }) => Err(EmailError::Taken),
            Err(error) => Err(error.into()),
        }
    }
}

/// Changes an address: the new one is not confirmed, and codes that were mailed to the old one are gone. False if the account
/// has no address. Needs the locks of the account and of the new address.
pub(crate) fn set_email(conn: &Connection, did: &str, email: &str) -> Result<bool, AccountsError> {
    conn.execute("DELETE FROM email_token WHERE did = ?1", [did])?;
    let changed = conn.execute(
        "UPDATE account SET email = ?2, emailConfirmedAt = NULL WHERE did = ?1",
        [did, email],
    )?;
    Ok(changed > 0)
}
