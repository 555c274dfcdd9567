//! A consistent copy of the index for a checkpoint.

use std::path::Path;

use redb::{Database, Key, ReadTransaction, ReadableTable, TableDefinition, Value, WriteTransaction};

use super::reader::IndexReader;
use super::{
    BLOB_REFS, BLOBS, COLLECTIONS, DEAD, GENERATIONS, HEADS, IndexError, META, NODES, RECORD_BLOBS, RECORDS,
    REPOS, SEGMENTS,
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
        if path.try_exists().map_err(redb::StorageError::Io)? {
            let exists = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
            return Err(redb::StorageError::Io(exists).into());
        }
        let target = Database::builder()
            .set_cache_size(COPY_CACHE_BYTES)
            .create(path)?;
        let source = self.transaction();
        copy(source, &target, REPOS)?;
        copy(source, &target, HEADS)?;
        copy(source, &target, RECORDS)?;
        copy(source, &target, NODES)?;
        copy(source, &target, BLOBS)?;
        copy(source, &target, BLOB_REFS)?;
        copy(source, &target, RECORD_BLOBS)?;
        copy(source, &target, COLLECTIONS)?;
        copy(source, &target, GENERATIONS)?;
        copy(source, &target, DEAD)?;
        copy(source, &target, SEGMENTS)?;
        copy(source, &target, META)
    }
}

fn copy<K: Key + 'static, V: Value + 'static>(
    source: &ReadTransaction,
    target: &Database,
    definition: TableDefinition<K, V>,
) -> Result<(), IndexError> {
    let rows = source.open_table(definition)?;
    let mut rows = rows.iter()?;
    loop {
        let transaction: WriteTransaction = target.begin_write()?;
        let mut copied = 0;
        {
            let mut table = transaction.open_table(definition)?;
            for row in rows.by_ref().take(ROWS_PER_TRANSACTION) {
                let (key, value) = row?;
                table.insert(key.value(), value.value())?;
                copied += 1;
            }
        }
        transaction.commit()?;
        if copied < ROWS_PER_TRANSACTION {
            return Ok(());
        }
    }
}
