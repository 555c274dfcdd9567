//! The end of an account. Its rows, its repo and the event that tells of it are one group of the log; the blobs' bytes and what
//! the log still has of it go later (see `start::removals`). Its DID stays what it is: it belongs to its owner.

use engine::entry::{Change, EntryDraft};
use engine::repo::Did;
use engine::repo::event::{self, AccountStatus};
use engine::views::accounts::{LockGuard, LockKey, queries};

use super::life::Overdue;
use super::mail_tokens::{Code, CodeError, MailPurpose};
use super::{Account, Accounts, ChangeError};
use crate::auth::password::PasswordError;
use crate::service::repos::WriteError;

/// Why an account was not deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeletionError {
    /// There is none.
    #[error("account not found")]
    NoAccount,
    /// Not its password.
    #[error("Invalid did or password")]
    Wrong,
    /// It is not to be deleted any more.
    #[error("the account is not to be deleted any more")]
    NotDue,
    /// The code.
    #[error(transparent)]
    Code(#[from] CodeError),
    /// Too many passwords are checked at once.
    #[error("the server is busy; try again")]
    Busy,
    /// The account database or the log.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The repo cannot be removed.
    #[error(transparent)]
    Repo(#[from] WriteError),
}

/// What has to be so for an account to go, looked at under its lock.
enum Condition {
    /// A code that was mailed to its owner.
    Code(Code),
    /// Its owner's wish for a time that has passed.
    Overdue(Overdue),
    /// The administrator's wish.
    Admin,
}

impl Accounts {
    /// Deletes an account for somebody who has its password and a code that was mailed to its address, whatever its state.
    ///
    /// # Errors
    /// See [`DeletionError`].
    pub async fn delete_by_owner(&self, did: &Did, password: &str, code: &str) -> Result<(), DeletionError> {
        let account = self.by_did(did).await.map_err(ChangeError::from)?;
        let account = account.ok_or(DeletionError::NoAccount)?;
        let hash = account.password_hash.as_deref();
        let right = self.inner.passwords.verify(password, hash).await;
        let right = right.map_err(|error| match error {
            PasswordError::Busy => DeletionError::Busy,
            other => DeletionError::Change(ChangeError::Internal(other.to_string())),
        })?;
        if !right {
            return Err(DeletionError::Wrong);
        }
        let code = self
            .check_code(MailPurpose::DeleteAccount, Some(did), code)
            .await?;
        self.delete_if(&account, Condition::Code(code)).await
    }

    /// Deletes an account that its owner has switched off for long enough.
    pub(super) async fn delete_if_overdue(&self, did: &Did) -> Result<(), DeletionError> {
        let account = self.by_did(did).await.map_err(ChangeError::from)?;
        let account = account.ok_or(DeletionError::NoAccount)?;
        self.delete_if(&account, Condition::Overdue(self.overdue())).await
    }

    /// Deletes an account because the administrator wants it, whatever its state.
    ///
    /// # Errors
    /// See [`DeletionError`].
    pub async fn delete_by_admin(&self, account: &Account) -> Result<(), DeletionError> {
        self.delete_if(account, Condition::Admin).await
    }

    async fn delete_if(&self, account: &Account, condition: Condition) -> Result<(), DeletionError> {
        let did = account.did.as_str().to_owned();
        let mut locks = vec![LockKey::did(&did)];
        locks.extend(
            account
                .handle
                .as_ref()
                .map(|handle| LockKey::handle(handle.as_str())),
        );
        locks.extend(account.email.as_deref().map(LockKey::email));
        let proven = account.password_hash.clone();
        let prepared = self
            .prepare(locks, move |tx| {
                let Some(row) = queries::account_by_did(tx, &did)? else {
                    return Ok(Err(DeletionError::NoAccount));
                };
                match condition {
                    Condition::Admin => {}
                    // The password may have been changed while it was checked.
                    Condition::Code(_) if row.login.map(|login| login.password.0) != proven => {
                        return Ok(Err(DeletionError::Wrong));
                    }
                    Condition::Code(code) => {
                        if !code.use_up(tx)? {
                            return Ok(Err(CodeError::Invalid.into()));
                        }
                    }
                    // Its owner may have come back.
                    Condition::Overdue(overdue) => {
                        if !overdue.is(tx, &did)? {
                            return Ok(Err(DeletionError::NotDue));
                        }
                    }
                }
                // Nobody waits for a handle that it was about to get.
                tx.execute("DELETE FROM identity_intent WHERE did = ?1", [&did])?;
                queries::delete_account(tx, &did)?;
                Ok(Ok(()))
            })
            .await?;
        prepared.value?;
        self.remove(&account.did, prepared.changeset, prepared.locks)
            .await
    }

    /// Logs the end of an account whose rows `changeset` deletes.
    async fn remove(&self, did: &Did, changeset: Vec<u8>, locks: LockGuard) -> Result<(), DeletionError> {
        let told = event::encode_account(did, Some(AccountStatus::Deleted));
        let change = Change::AccountsChangeset { bytes: changeset };
        let beside = vec![EntryDraft::account(told, vec![change])];
        self.inner.repos.remove_with_account(did, beside, locks).await?;
        metrics::counter!("pds_accounts_deleted_total").increment(1);
        Ok(())
    }
}
