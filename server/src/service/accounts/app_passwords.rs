//! App passwords: passwords for one client each, which can be taken back one by one and may less than the account's own.

use engine::repo::Did;
use engine::views::accounts::model::AppPassword;
use engine::views::accounts::{AccountsError, LockKey, queries};
use rusqlite::params;
use zeroize::Zeroizing;

use super::{Accounts, AccountsUnavailable, ChangeError};
use crate::auth::password::{PasswordError, new_app_password};

/// Longest name of an app password, in characters. The reference PDS has no bound.
const NAME_CHARS_MAX: usize = 256;
/// Most app passwords of one account. The reference PDS has no bound.
const COUNT_MAX: u32 = 250;

/// An app password that was just made: the only time that anybody sees its text.
pub struct NewAppPassword {
    /// What is remembered of it.
    pub app: AppPassword,
    /// Its text.
    pub password: Zeroizing<String>,
}

/// Why an app password was not made.
#[derive(Debug, thiserror::Error)]
pub enum AppPasswordError {
    /// The account has one of that name.
    #[error("There is an app password of this name already")]
    NameTaken,
    /// The name is too long.
    #[error("The name of an app password may have {NAME_CHARS_MAX} characters")]
    NameTooLong,
    /// The account has as many as it may have.
    #[error("An account may have {COUNT_MAX} app passwords: revoke one first")]
    TooMany,
    /// Too many passwords are hashed at once.
    #[error("the server is busy; try again")]
    Busy,
    /// The account database or the log.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

/// What became of a new row.
enum Outcome {
    Made,
    NameTaken,
    TooMany,
}

impl Accounts {
    /// Makes an app password for the account `did`.
    ///
    /// # Errors
    /// See [`AppPasswordError`].
    pub async fn create_app_password(
        &self,
        did: &Did,
        name: String,
        privileged: bool,
    ) -> Result<NewAppPassword, AppPasswordError> {
        if name.chars().count() > NAME_CHARS_MAX {
            return Err(AppPasswordError::NameTooLong);
        }
        let inner = &self.inner;
        let password = new_app_password(inner.engine.entropy())
            .map_err(|error| ChangeError::Internal(error.to_string()))?;
        let hash = inner.passwords.hash_app_password(did, &password).await;
        let hash = hash.map_err(|error| match error {
            PasswordError::Busy => AppPasswordError::Busy,
            other => ChangeError::Internal(other.to_string()).into(),
        })?;
        let app = AppPassword {
            name,
            created_at: inner.now_text(),
            privileged,
        };
        let (owner, row) = (did.as_str().to_owned(), app.clone());
        let made = self.change(vec![LockKey::did(did.as_str())], move |tx| {
            if queries::app_password_by_name(tx, &owner, &row.name)?.is_some() {
                return Ok(Outcome::NameTaken);
            }
            let sql = "SELECT count(*) FROM app_password WHERE did = ?1";
            let count: u32 = tx.query_row(sql, [&owner], |row| row.get(0))?;
            if count >= COUNT_MAX {
                return Ok(Outcome::TooMany);
            }
            tx.execute(
                "INSERT INTO app_password (did, name, passwordScrypt, createdAt, privileged) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![owner, row.name, hash, row.created_at, row.privileged],
            )?;
            Ok(Outcome::Made)
        });
        match made.await? {
            Outcome::Made => Ok(NewAppPassword { app, password }),
            Outcome::NameTaken => Err(AppPasswordError::NameTaken),
            Outcome::TooMany => Err(AppPasswordError::TooMany),
        }
    }

    /// The app passwords of the account `did`, newest first.
    ///
    /// # Errors
    /// The account database cannot be read.
    pub async fn app_passwords(&self, did: &Did) -> Result<Vec<AppPassword>, AccountsUnavailable> {
        let owner = did.as_str().to_owned();
        let listed = self.inner.engine.accounts().read(move |conn| {
            let mut rows = conn.prepare_cached(
                "SELECT name, createdAt, privileged FROM app_password WHERE did = ?1
                 ORDER BY createdAt DESC, name",
            )?;
            let rows = rows.query_map([owner], |row| {
                Ok(AppPassword {
                    name: row.get(0)?,
                    created_at: row.get(1)?,
                    privileged: row.get(2)?,
                })
            })?;
            Ok::<_, AccountsError>(rows.collect::<rusqlite::Result<Vec<_>>>()?)
        });
        listed.await.map_err(|error| error.into())
    }

    /// Takes an app password back, and ends the sessions that began with it. One that is not there is no error.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn revoke_app_password(&self, did: &Did, name: String) -> Result<(), ChangeError> {
        let owner = did.as_str().to_owned();
        self.change(vec![LockKey::did(did.as_str())], move |tx| {
            queries::delete_refresh_tokens_of_app_password(tx, &owner, &name)?;
            tx.execute(
                "DELETE FROM app_password WHERE did = ?1 AND name = ?2",
                [&owner, &name],
            )?;
            Ok(())
        })
        .await
    }
}
