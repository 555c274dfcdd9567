//! The account database as it stood at one LSN, for a checkpoint.

use std::path::Path;

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};

use super::error::AccountsError;
use super::readers::open_reader;
use super::writer::read_applied;
use super::{FILE_NAME, VIEW_NAME};
use crate::log::Lsn;
use crate::views::ViewError;
use crate::views::checkpoint::ViewSnapshot;

/// Pages that SQLite copies at once.
const PAGES_A_STEP: i32 = 256;

/// An open read transaction on a connection of its own. Writing goes on meanwhile; the write-ahead file cannot start
/// over until this is dropped, so do not keep it longer than a copy takes.
#[derive(Debug)]
pub struct AccountsSnapshot {
    pub(super) conn: Connection,
    pub(super) lsn: Lsn,
    /// What the copy is instead, if the database is a stand-in.
    #[cfg(test)]
    pub(super) stand_in: Option<Vec<u8>>,
}

impl AccountsSnapshot {
    /// Pins what is applied now.
    pub(super) fn pin(path: &Path) -> Result<AccountsSnapshot, AccountsError> {
        let conn = open_reader(path)?;
        conn.execute_batch("BEGIN")?;
        let lsn = read_applied(&conn)?;
        Ok(AccountsSnapshot {
            conn,
            lsn,
            #[cfg(test)]
            stand_in: None,
        })
    }

    /// The pinned state itself, for queries.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.conn
    }

    fn copy(&self, to: &Path) -> Result<(), AccountsError> {
        #[cfg(test)]
        if let Some(bytes) = &self.stand_in {
            return Ok(std::fs::write(to, bytes)?);
        }
        {
            let mut copy = Connection::open(to)?;
            // Nobody else sees the file before it is whole and synced.
            copy.pragma_update(None, "journal_mode", "OFF")?;
            copy.pragma_update(None, "synchronous", "OFF")?;
            // The backup reads on this connection's open transaction, so what others commit meanwhile neither shows
            // in the copy nor makes it start over.
            let backup = Backup::new(&self.conn, &mut copy)?;
            loop {
                match backup.step(PAGES_A_STEP)? {
                    StepResult::Done => break,
                    StepResult::More => {}
                    _ => {
                        return Err(AccountsError::Busy {
                            what: "users of the copy",
                        });
                    }
                }
            }
        }
        // The copied header says write-ahead logging; a copy that is to be hashed and shipped is one file.
        let copy = Connection::open(to)?;
        copy.pragma_update(None, "journal_mode", "DELETE")?;
        let copied = read_applied(&copy)?;
        if copied != self.lsn {
            let reason = format!("the copy stands at {copied:?}");
            return Err(AccountsError::Failed {
                applied: self.lsn,
                reason,
            });
        }
        copy.close().map_err(|(_, error)| error)?;
        std::fs::File::open(to)?.sync_all()?;
        Ok(())
    }
}

impl ViewSnapshot for AccountsSnapshot {
    fn file_name(&self) -> &'static str {
        FILE_NAME
    }

    fn lsn(&self) -> Lsn {
        self.lsn
    }

    fn copy_to(&self, path: &Path) -> Result<(), ViewError> {
        self.copy(path)
            .map_err(|error| ViewError::store(VIEW_NAME, error))
    }
}
