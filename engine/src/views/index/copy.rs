//! A consistent copy of the index for a checkpoint.

use std::path::Path;

use redb::{Database, Key, ReadTransaction, ReadableTable, TableDefinition, Value, WriteTransaction};

use super::reader::IndexReader;
use super::{
    BLOB_REFS, BLOBS, COLLECTIONS, DEAD, GENERATIONS, HEADS, IndexError, META, META_ERASED, NODES,
    RECORD_BLOBS, RECORD_SUBJECTS, RECORDS, REMOVED, REPOS, SEGMENTS, SUBJECTS, database_at, put_meta,
};

/// Memory that a copy's new file may cache, bytes. Rows are written in order, so little of it is read again.
const COPY_CACHE_BYTES: usize = 16 << 20;
/// Rows per transaction of a copy: bounds what it holds dirty.
const ROWS_PER_TRANSACTION: usize = 50_000;

impl IndexReader {
    /// Writes everything this snapshot shows to a new file at `path`, in key order, synced when it returns. The copy's
    /// applied LSN is [`IndexReader::applied`], and opens as any index of the same log. A crash leaves a file without
    /// an applied LSN, which opens as [`IndexError::Unusable`].
    ///
    /// # Errors
    /// `path` exists, or either file fails.
    pub fn copy_to(&self, path: &Path) -> Result<(), IndexError> {
        self.copy_in_transactions(path, ROWS_PER_TRANSACTION)
    }

    /// The same in transactions of up to `rows`, which is at least one.
    pub(super) fn copy_in_transactions(&self, path: &Path, rows: usize) -> Result<(), IndexError> {
        if path.try_exists().map_err(redb::StorageError::Io)? {
            let exists = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
            return Err(redb::StorageError::Io(exists).into());
        }
        let target = database_at(path, COPY_CACHE_BYTES)?;
        let copy = Copy {
            source: self.transaction(),
            target: &target,
            open: target.begin_write()?,
            room: rows,
            rows,
        };
        let copy = copy
            .table(REPOS)?
            .table(HEADS)?
            .table(RECORDS)?
            .table(NODES)?
            .table(BLOBS)?
            .table(BLOB_REFS)?
            .table(RECORD_BLOBS)?
            .table(SUBJECTS)?
            .table(RECORD_SUBJECTS)?
            .table(COLLECTIONS)?
            .table(GENERATIONS)?
            .table(DEAD)?
            .table(SEGMENTS)?
            .table(REMOVED)?
            .flush()?
            // Last and alone: it makes the file an index.
            .table(META)?;
        let Copy { mut open, .. } = copy;
        if let Some(erased) = self.erased_by_a_copy()? {
            put_meta(&open, META_ERASED, &erased.get().to_be_bytes())?;
        }
        // Opening the copy is immediate then, and closing it gives back the room that it took ahead.
        open.set_quick_repair(true);
        Ok(open.commit()?)
    }
}

/// A copy that is being made.
struct Copy<'a> {
    source: &'a ReadTransaction,
    target: &'a Database,
    open: WriteTransaction,
    /// Rows for which there is room in the open transaction.
    room: usize,
    /// Rows for which there is room in a new one.
    rows: usize,
}

impl<'a> Copy<'a> {
    fn table<K: Key + 'static, V: Value + 'static>(
        mut self,
        definition: TableDefinition<K, V>,
    ) -> Result<Copy<'a>, IndexError> {
        let rows = self.source.open_table(definition)?;
        let mut rows = rows.iter()?;
        loop {
            let mut copied = 0;
            {
                let mut table = self.open.open_table(definition)?;
                for row in rows.by_ref().take(self.room) {
                    let (key, value) = row?;
                    table.insert(key.value(), value.value())?;
                    copied += 1;
                }
            }
            self.room -= copied;
            if self.room > 0 {
                return Ok(self);
            }
            self = self.flush()?;
        }
    }

    /// Ends the open transaction and begins another: one is open at a time.
    fn flush(mut self) -> Result<Copy<'a>, IndexError> {
        self.open.commit()?;
        (self.open, self.room) = (self.target.begin_write()?, self.rows);
        Ok(self)
    }
}
