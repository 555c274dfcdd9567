//! What can go wrong with the account database, by what the caller can do about it.

use std::time::Duration;

use crate::log::Lsn;

/// A failed read, transaction or start of the account database.
#[derive(Debug, thiserror::Error)]
pub enum AccountsError {
    /// A row with this value exists already: the name is taken. Nothing was changed.
    #[error("{table}.{column} is taken")]
    Conflict {
        /// The table whose uniqueness would break.
        table: String,
        /// The column (of several: comma-separated) that must be unique.
        column: String,
    },
    /// Another transaction over one of the same keys was not done in time. Try again later.
    #[error("a transaction over the same keys was not done within {waited:?}")]
    LockTimeout {
        /// How long this one waited.
        waited: Duration,
    },
    /// Too many transactions or readers are waiting already. Try again later.
    #[error("too many {what} are waiting for the account database")]
    Busy {
        /// What there are too many of.
        what: &'static str,
    },
    /// The transaction touches a row that another one, not yet in the view, touches too, and no lock key kept them
    /// apart: the caller forgot to declare one. Nothing was changed; trying again later succeeds, but the keys of one
    /// of the two callers are incomplete, which is a defect.
    #[error("the transaction overlaps an unfinished one in {table}, and its lock keys did not say so")]
    Undeclared {
        /// The table in which they meet.
        table: String,
    },
    /// The changes cannot be replayed row by row from their changeset (rows that trade a unique value among each
    /// other, a table without a primary key). Nothing was changed. Always a defect of the caller.
    #[error("the transaction's changes cannot be replayed: {reason}")]
    Unreplayable {
        /// What the trial application met.
        reason: String,
    },
    /// The transaction changed more than one log entry may hold. Split it.
    #[error("a changeset of {len} bytes, {max} are allowed")]
    TooLarge {
        /// The changeset's length, bytes.
        len: usize,
        /// The limit, bytes.
        max: usize,
    },
    /// The transaction's closure panicked. Nothing was changed.
    #[error("the transaction panicked")]
    Panicked,
    /// Log and view disagree, or the view could not be written. The view takes nothing more until it is reopened; if
    /// that does not help, delete it and let the log rebuild it.
    #[error("the account database stopped at {applied:?}: {reason}")]
    Failed {
        /// The last entry that is in the view.
        applied: Lsn,
        /// What happened.
        reason: String,
    },
    /// The account database is shut down.
    #[error("the account database is closed")]
    Closed,
    /// The schema has a step that this program does not know: a newer one wrote it.
    #[error("the account database has the schema step {name:?} of a newer program")]
    NewerSchema {
        /// The unknown step.
        name: String,
    },
    /// The file is damaged or no database. Delete it and let the log rebuild it.
    #[error("the account database file is damaged: {0}")]
    Corrupt(#[source] rusqlite::Error),
    /// The file was folded from another log. Delete it and let this one rebuild it.
    #[error("the account database belongs to another log")]
    Foreign,
    /// Anything else that SQLite reports.
    #[error("the account database failed: {0}")]
    Sqlite(#[source] rusqlite::Error),
    /// The file system or the thread could not be set up.
    #[error("the account database cannot be opened: {0}")]
    Io(#[from] std::io::Error),
}

impl AccountsError {
    /// Whether trying the same again after a moment can succeed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            AccountsError::LockTimeout { .. } | AccountsError::Busy { .. } | AccountsError::Undeclared { .. }
        )
    }
}

impl From<rusqlite::Error> for AccountsError {
    fn from(error: rusqlite::Error) -> AccountsError {
        use rusqlite::ErrorCode;
        let rusqlite::Error::SqliteFailure(failure, message) = &error else {
            return AccountsError::Sqlite(error);
        };
        match (failure.code, message) {
            (ErrorCode::ConstraintViolation, Some(message)) => match broken_uniqueness(message) {
                Some((table, column)) => AccountsError::Conflict { table, column },
                None => AccountsError::Sqlite(error),
            },
            (ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase, _) => AccountsError::Corrupt(error),
            _ => AccountsError::Sqlite(error),
        }
    }
}

/// Table and columns out of SQLite's `UNIQUE constraint failed: …`, which names columns (`actor.did`) or, for an index
/// over an expression, the index (`index 'actor_handle_lower_idx'`).
fn broken_uniqueness(message: &str) -> Option<(String, String)> {
    let what = message.strip_prefix("UNIQUE constraint failed: ")?;
    if let Some(index) = what
        .strip_prefix("index '")
        .and_then(|rest| rest.strip_suffix('\''))
    {
        let key = super::schema::UNIQUE_KEYS.iter().find(|key| key.index == index)?;
        return Some((key.table.to_owned(), key.columns.join(",")));
    }
    let mut table = "";
    let mut columns = Vec::new();
    for part in what.split(", ") {
        let (of, column) = part.split_once('.')?;
        table = of;
        columns.push(column);
    }
    Some((table.to_owned(), columns.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_uniqueness_is_read_from_what_sqlite_says() {
        let cases = [
            ("UNIQUE constraint failed: actor.did", Some(("actor", "did"))),
            (
                "UNIQUE constraint failed: app_password.did, app_password.name",
                Some(("app_password", "did,name")),
            ),
            (
                "UNIQUE constraint failed: index 'actor_handle_lower_idx'",
                Some(("actor", "handle")),
            ),
            (
                "UNIQUE constraint failed: index 'account_email_lower_idx'",
                Some(("account", "email")),
            ),
            ("NOT NULL constraint failed: actor.did", None),
            ("FOREIGN KEY constraint failed", None),
        ];
        for (message, expected) in cases {
            let expected = expected.map(|(table, column)| (table.to_owned(), column.to_owned()));
            assert_eq!(broken_uniqueness(message), expected, "{message}");
        }
    }
}
