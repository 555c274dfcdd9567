//! The index view: where every repo stands, where each record's bytes lie in the log, and the inner nodes of each tree.
//!
//! One redb file, derived wholly from the log. A batch of entries is one transaction without a sync
//! ([`Durability::None`]); [`View::persist`] makes a durable point. A crash between two durable points leaves the file at
//! the earlier one, with the applied LSN that belongs to it, and replay does the rest. A file that is damaged, of another
//! format or of another log is reported as [`IndexError::Unusable`], and its owner deletes it and replays from the start.
//!
//! Readers take a snapshot ([`IndexView::reader`]): everything one reader answers is from one LSN, whatever is applied
//! meanwhile.

mod apply;
mod blobs;
mod changed;
mod compare;
mod copy;
mod dump;
mod find;
mod nodes;
mod reader;
mod relocate;
mod removals;
mod renew;
mod rows;
mod scan;
mod segments;
mod slot;
mod subjects;
mod sweep;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use redb::{Database, Durability, ReadableDatabase, TableDefinition};

pub use blobs::{BlobItem, MissingBlob};
pub use changed::{ChangedBlock, Stop};
pub use compare::{Difference, DifferenceKind};
pub(crate) use dump::RepoDump;
pub use find::{BlockPlace, FindError};
pub use nodes::RepoNodes;
pub use reader::{IndexReader, ListOrder, RecordItem, Records, RepoCounts, RepoHead};
pub use relocate::Places;
pub(crate) use relocate::{Moved, RelocateError, Walk};
#[cfg(test)]
pub(crate) use renew::NEW_NAME;
pub(crate) use renew::{Renewal, remove_leftovers};
pub use rows::{BlobRow, RecordRow};
pub use scan::RecordRows;
pub use segments::SegmentUse;
pub(crate) use slot::OldSnapshots;
use slot::Slot;

use crate::entry::{Change, Entry};
use crate::log::{LogId, Lsn};
use crate::repo::{Cid, Did, subject};
use crate::views::{View, ViewError};

/// The view's name in logs, metrics and errors.
pub const NAME: &str = "index";
/// The index's file name, among the live views and in a checkpoint.
pub const FILE_NAME: &str = "index.redb";
/// The layout this program reads and writes; any other is rebuilt from the log.
const FORMAT: u32 = 6;

/// Rows that one piece of a sweep takes away: a few milliseconds, for which a batch may have to wait.
const SWEEP_ROWS: usize = 500;

type Bytes = &'static [u8];
type SubjectBytes = &'static [u8; subject::DIGEST_BYTES];
type RecordBytes = &'static [u8; rows::RECORD_ROW_BYTES];

const META: TableDefinition<&str, Bytes> = TableDefinition::new("meta");
const REPOS: TableDefinition<&str, u32> = TableDefinition::new("repos");
const HEADS: TableDefinition<u32, Bytes> = TableDefinition::new("heads");
const RECORDS: TableDefinition<Bytes, RecordBytes> = TableDefinition::new("records");
const NODES: TableDefinition<Bytes, Bytes> = TableDefinition::new("nodes");
const BLOBS: TableDefinition<Bytes, Bytes> = TableDefinition::new("blobs");
const BLOB_REFS: TableDefinition<Bytes, u64> = TableDefinition::new("blob_refs");
const RECORD_BLOBS: TableDefinition<Bytes, ()> = TableDefinition::new("record_blobs");
const SUBJECTS: TableDefinition<Bytes, ()> = TableDefinition::new("subjects");
const RECORD_SUBJECTS: TableDefinition<Bytes, SubjectBytes> = TableDefinition::new("record_subjects");
const COLLECTIONS: TableDefinition<Bytes, u64> = TableDefinition::new("collections");
const GENERATIONS: TableDefinition<Bytes, Bytes> = TableDefinition::new("generations");
const DEAD: TableDefinition<Bytes, ()> = TableDefinition::new("dead");
const SEGMENTS: TableDefinition<u64, Bytes> = TableDefinition::new("segments");
const REMOVED: TableDefinition<Bytes, ()> = TableDefinition::new("removed");

const META_FORMAT: &str = "format";
const META_LOG_ID: &str = "log_id";
const META_APPLIED: &str = "applied";
const META_NEXT_REPO: &str = "next_repo";
const META_COMPACTION: &str = "compaction";
const META_ERASED: &str = "erased";

/// Why the index cannot answer.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The file is damaged, of another format, or of another log. Delete it: the log has everything.
    #[error("the index file is of no use: {reason}")]
    Unusable {
        /// What is wrong with it.
        reason: String,
    },
    /// Another process has the file open.
    #[error("the index file is in use by another process")]
    InUse,
    /// A row does not decode: the file is damaged.
    #[error("a row of table {table} does not decode")]
    Row {
        /// The table.
        table: &'static str,
    },
    /// A value does not fit the index's layout.
    #[error("a {what} is out of the index's range")]
    Unrepresentable {
        /// What it is.
        what: &'static str,
    },
    /// The database failed: a full disk, an I/O error, damage.
    #[error("the index database failed")]
    Database(#[source] Box<redb::Error>),
}

macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for IndexError {
            fn from(source: $error) -> IndexError {
                IndexError::Database(Box::new(source.into()))
            }
        }
    )*};
}
from_redb!(
    redb::StorageError,
    redb::TableError,
    redb::TransactionError,
    redb::CommitError,
    redb::SetDurabilityError
);

impl From<redb::DatabaseError> for IndexError {
    fn from(source: redb::DatabaseError) -> IndexError {
        use redb::{DatabaseError, StorageError};
        match source {
            DatabaseError::DatabaseAlreadyOpen => IndexError::InUse,
            DatabaseError::Storage(StorageError::Io(error))
                if error.kind() != std::io::ErrorKind::InvalidData =>
            {
                IndexError::Database(Box::new(redb::Error::Io(error)))
            }
            other => IndexError::Unusable {
                reason: other.to_string(),
            },
        }
    }
}

/// The index, with the only write access to its file. Readers are handed out by [`IndexView::reader`] or by the cheap,
/// cloneable [`IndexSource`].
#[derive(Debug)]
pub struct IndexView {
    slot: Arc<Slot>,
    /// Which of the slot's databases `builds` belong to.
    renewals: u64,
    applied: Lsn,
    builds: apply::Builds,
    /// Whether there may be something to sweep.
    unswept: bool,
}

/// Hands out snapshots of the index to any thread, without write access.
#[derive(Clone, Debug)]
pub struct IndexSource {
    slot: Arc<Slot>,
}

impl IndexSource {
    /// A snapshot of what is applied now.
    ///
    /// # Errors
    /// The database failed.
    pub fn reader(&self) -> Result<IndexReader, IndexError> {
        self.slot.reader()
    }

    fn database(&self) -> Arc<Database> {
        self.slot.database()
    }

    /// The snapshots that were taken up to now.
    pub(crate) fn old_snapshots(&self) -> OldSnapshots {
        self.slot.old_snapshots()
    }

    /// Builds the nodes of the tree of `did` anew from its records, in one transaction, and compares the root with the
    /// head's. Waits for a batch that is being applied; batches wait for it. Takes about as long as reading the repo's
    /// rows; memory does not grow with the repo.
    ///
    /// # Errors
    /// The database failed or is damaged. Nothing has changed then, nor after any answer but [`Rebuilt::Sound`].
    pub fn rebuild_nodes(&self, did: &Did) -> Result<Rebuilt, IndexError> {
        let mut transaction = self.database().begin_write()?;
        transaction.set_durability(Durability::None)?;
        let built = apply::rebuild_nodes(&transaction, did).map_err(|error| match error {
            ApplyError::Index(error) => error,
            ApplyError::Contradiction { .. } => IndexError::Row { table: "records" },
        })?;
        match built {
            None => Ok(Rebuilt::NoRepo),
            Some((root, expected)) if root == expected => {
                self.slot.commit(transaction)?;
                Ok(Rebuilt::Sound)
            }
            Some((root, expected)) => Ok(Rebuilt::Damaged { root, expected }),
        }
    }
}

/// What [`IndexSource::rebuild_nodes`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebuilt {
    /// There is no such repo, or it has no commit.
    NoRepo,
    /// The records give the tree of the signed commit, and the nodes are there again.
    Sound,
    /// The records give another tree than the one that was signed: rows of records are missing or wrong.
    Damaged {
        /// The root that the records give.
        root: Cid,
        /// The root that was signed.
        expected: Cid,
    },
}

impl IndexView {
    /// Opens the index at `path`, or makes an empty one if there is no file. `log_id` is the log it belongs to;
    /// `cache_bytes` bounds what it keeps in memory.
    ///
    /// # Errors
    /// [`IndexError::Unusable`] and [`IndexError::Row`]: delete the file and open again. Others: the disk failed, or
    /// another process has the file.
    pub fn open(path: &Path, log_id: LogId, cache_bytes: usize) -> Result<IndexView, IndexError> {
        let fresh = std::fs::metadata(path).map_or(true, |file| file.len() == 0);
        let database = database_at(path, cache_bytes)?;
        if fresh {
            initialize(&database, log_id)?;
        }
        let applied = check(&database, log_id)?;
        Ok(IndexView {
            slot: Slot::new(database),
            renewals: 0,
            applied,
            builds: apply::Builds::default(),
            unswept: true,
        })
    }

    /// A snapshot of what is applied now.
    ///
    /// # Errors
    /// The database failed.
    pub fn reader(&self) -> Result<IndexReader, IndexError> {
        self.source().reader()
    }

    /// A handle from which any thread takes snapshots.
    #[must_use]
    pub fn source(&self) -> IndexSource {
        IndexSource {
            slot: Arc::clone(&self.slot),
        }
    }

    fn fold(&mut self, entries: &[Entry]) -> Result<(), ApplyError> {
        let new = &entries[entries.partition_point(|entry| entry.lsn <= self.applied)..];
        let Some(last) = new.last() else { return Ok(()) };
        self.notice_renewal();
        let mut transaction = self.slot.database().begin_write().map_err(IndexError::from)?;
        transaction
            .set_durability(Durability::None)
            .map_err(IndexError::from)?;
        // Given up on an error, and what is built in memory with it.
        let folded = apply::fold(&transaction, new, &mut self.builds).and_then(|()| {
            put_meta(&transaction, META_APPLIED, &last.lsn.get().to_be_bytes())?;
            Ok(self.slot.commit(transaction)?)
        });
        if folded.is_err() {
            self.builds.clear();
            return folded;
        }
        self.applied = last.lsn;
        self.unswept |= new.iter().flat_map(|entry| &entry.changes).any(ends_rows);
        Ok(())
    }

    /// Another file may have taken the place. What was built in memory went into the one before: the flip builds it from the
    /// records. What was swept there since the copy was made is still in this one.
    fn notice_renewal(&mut self) {
        let renewals = self.slot.renewals();
        if renewals != self.renewals {
            (self.renewals, self.unswept) = (renewals, true);
            self.builds.clear();
        }
    }

    /// Takes away up to `limit` rows that are in no answer any more: of repos that were removed, and of generations that
    /// ended. Answers whether there is more. Does not survive a crash before [`View::persist`], and need not.
    ///
    /// # Errors
    /// The database failed or is damaged.
    pub fn sweep(&mut self, limit: usize) -> Result<bool, IndexError> {
        self.notice_renewal();
        if self.unswept {
            let mut transaction = self.slot.database().begin_write()?;
            transaction.set_durability(Durability::None)?;
            self.unswept = sweep::sweep(&transaction, limit)?;
            self.slot.commit(transaction)?;
        }
        Ok(self.unswept)
    }

    fn sync(&mut self) -> Result<(), IndexError> {
        let mut transaction = self.slot.database().begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        // Opening after a crash is then immediate; without it redb walks the whole file.
        transaction.set_quick_repair(true);
        put_meta(&transaction, META_APPLIED, &self.applied.get().to_be_bytes())?;
        self.slot.commit(transaction)
    }
}

impl View for IndexView {
    fn name(&self) -> &'static str {
        NAME
    }

    fn applied(&self) -> Lsn {
        self.applied
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<(), ViewError> {
        self.fold(entries).map_err(|error| match error {
            ApplyError::Index(source) => ViewError::store(NAME, source),
            ApplyError::Contradiction { lsn, reason } => ViewError::Contradiction {
                view: NAME,
                lsn,
                reason,
            },
        })
    }

    fn tidy(&mut self) -> Result<bool, ViewError> {
        self.sweep(SWEEP_ROWS)
            .map_err(|source| ViewError::store(NAME, source))
    }

    fn persist(&mut self) -> Result<(), ViewError> {
        self.sync().map_err(|source| ViewError::store(NAME, source))
    }
}

/// Whether rows leave the answers by this change and wait to be swept.
fn ends_rows(change: &Change) -> bool {
    matches!(
        change,
        Change::RepoRemoved { .. } | Change::RepoHead { .. } | Change::GenerationSwept { .. }
    )
}

/// Why a batch does not apply.
#[derive(Debug, thiserror::Error)]
enum ApplyError {
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error("entry {}: {reason}", lsn.get())]
    Contradiction { lsn: Lsn, reason: String },
}

impl From<redb::StorageError> for ApplyError {
    fn from(source: redb::StorageError) -> ApplyError {
        ApplyError::Index(source.into())
    }
}

impl From<redb::TableError> for ApplyError {
    fn from(source: redb::TableError) -> ApplyError {
        ApplyError::Index(source.into())
    }
}

fn put_meta(transaction: &redb::WriteTransaction, name: &str, value: &[u8]) -> Result<(), IndexError> {
    transaction.open_table(META)?.insert(name, value)?;
    Ok(())
}

/// Opens or creates the file at `path`.
fn database_at(path: &Path, cache_bytes: usize) -> Result<Database, IndexError> {
    let mut builder = Database::builder();
    builder.set_cache_size(cache_bytes);
    #[cfg(test)]
    if let Some(simulated) = crate::sim::disk::backend(path).map_err(redb::StorageError::Io)? {
        return Ok(builder.create_with_backend(simulated)?);
    }
    Ok(builder.create(path)?)
}

/// Makes every table, so that a reader never meets a missing one.
fn initialize(database: &Database, log_id: LogId) -> Result<(), IndexError> {
    let transaction = database.begin_write()?;
    create_tables(&transaction)?;
    put_meta(&transaction, META_FORMAT, &FORMAT.to_be_bytes())?;
    put_meta(&transaction, META_LOG_ID, &log_id.0)?;
    put_meta(&transaction, META_APPLIED, &0u64.to_be_bytes())?;
    put_meta(&transaction, META_NEXT_REPO, &0u32.to_be_bytes())?;
    put_meta(&transaction, META_COMPACTION, &Places::of(0).encode())?;
    put_meta(&transaction, META_ERASED, &0u64.to_be_bytes())?;
    transaction.commit()?;
    Ok(())
}

fn create_tables(transaction: &redb::WriteTransaction) -> Result<(), IndexError> {
    transaction.open_table(META)?;
    transaction.open_table(REPOS)?;
    transaction.open_table(HEADS)?;
    transaction.open_table(RECORDS)?;
    transaction.open_table(NODES)?;
    transaction.open_table(BLOBS)?;
    transaction.open_table(BLOB_REFS)?;
    transaction.open_table(RECORD_BLOBS)?;
    transaction.open_table(SUBJECTS)?;
    transaction.open_table(RECORD_SUBJECTS)?;
    transaction.open_table(COLLECTIONS)?;
    transaction.open_table(GENERATIONS)?;
    transaction.open_table(DEAD)?;
    transaction.open_table(SEGMENTS)?;
    transaction.open_table(REMOVED)?;
    Ok(())
}

/// The applied LSN of a file that is whole, ours, and of this format.
fn check(database: &Database, log_id: LogId) -> Result<Lsn, IndexError> {
    let unusable = |reason: String| IndexError::Unusable { reason };
    let transaction = database.begin_read()?;
    let meta = transaction
        .open_table(META)
        .map_err(|error| unusable(error.to_string()))?;
    let get = |name: &str| -> Result<Vec<u8>, IndexError> {
        Ok(meta
            .get(name)?
            .ok_or_else(|| unusable(format!("it has no {name}")))?
            .value()
            .to_vec())
    };
    let format = get(META_FORMAT)?;
    if format != FORMAT.to_be_bytes() {
        return Err(unusable(format!("its format is {format:?}, ours {FORMAT}")));
    }
    if get(META_LOG_ID)? != log_id.0 {
        return Err(unusable("it belongs to another log".to_owned()));
    }
    lsn_of(&get(META_APPLIED)?).ok_or_else(|| unusable("its applied LSN is damaged".to_owned()))
}

fn lsn_of(row: &[u8]) -> Option<Lsn> {
    row.try_into().ok().map(u64::from_be_bytes).and_then(Lsn::new)
}
