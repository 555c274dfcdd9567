//! The open file and the snapshot that its readers share.
//!
//! A snapshot costs a place in the database's list of readers and a look-up for each table. As long as nothing is written all
//! readers are given the same one; a commit ends the sharing, so that it holds back no pages.

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use redb::{Database, WriteTransaction};

use super::IndexError;
use super::reader::IndexReader;

/// The open file. Another one may take its place; see `renew`.
#[derive(Debug)]
pub(super) struct Slot {
    open: RwLock<Open>,
    shared: Mutex<Shared>,
}

#[derive(Debug)]
struct Open {
    database: Arc<Database>,
    /// How often another file took the place.
    renewals: u64,
}

/// What new readers are given.
#[derive(Debug, Default)]
struct Shared {
    /// Rises with every commit: a snapshot that was begun before is not shared after it.
    version: u64,
    reader: Option<IndexReader>,
    /// What every snapshot holds a clone of, so that one can tell when all that were taken before a moment are gone.
    held: Arc<()>,
}

/// Snapshots that were taken before a moment.
#[derive(Debug)]
pub(crate) struct OldSnapshots(Arc<()>);

impl OldSnapshots {
    /// Whether there are none any more.
    pub(crate) fn are_gone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl Slot {
    pub(super) fn new(database: Database) -> Arc<Slot> {
        Arc::new(Slot {
            open: RwLock::new(Open {
                database: Arc::new(database),
                renewals: 0,
            }),
            shared: Mutex::default(),
        })
    }

    pub(super) fn database(&self) -> Arc<Database> {
        Arc::clone(&self.open.read().database)
    }

    /// How often another file has taken the place of the first.
    pub(super) fn renewals(&self) -> u64 {
        self.open.read().renewals
    }

    /// Puts another file in the place, and gives the one that was there.
    pub(super) fn replace(&self, database: Arc<Database>) -> Arc<Database> {
        let before = {
            let mut open = self.open.write();
            open.renewals += 1;
            std::mem::replace(&mut open.database, database)
        };
        self.forget();
        before
    }

    /// A snapshot of what is committed.
    pub(super) fn reader(&self) -> Result<IndexReader, IndexError> {
        let (version, held) = {
            let shared = self.shared.lock();
            if let Some(reader) = &shared.reader {
                return Ok(reader.clone());
            }
            // Before the transaction: a snapshot may count as older than it is, never as younger.
            (shared.version, Arc::clone(&shared.held))
        };
        let reader = IndexReader::new(self.database(), held)?;
        let mut shared = self.shared.lock();
        if shared.version == version {
            shared.reader = Some(reader.clone());
        }
        Ok(reader)
    }

    /// Commits what was written to the database of this slot. Readers that are taken from here on see it.
    pub(super) fn commit(&self, transaction: WriteTransaction) -> Result<(), IndexError> {
        transaction.commit()?;
        self.forget();
        Ok(())
    }

    /// The snapshots that were taken up to now.
    pub(super) fn old_snapshots(&self) -> OldSnapshots {
        self.forget();
        OldSnapshots(std::mem::take(&mut self.shared.lock().held))
    }

    fn forget(&self) {
        let _last = {
            let mut shared = self.shared.lock();
            shared.version += 1;
            shared.reader.take()
        };
    }
}
