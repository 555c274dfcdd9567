//! Taking away rows that are in no answer any more, a bounded piece at a time.

use redb::{ReadableTable, TableDefinition, Value, WriteTransaction};

use super::rows::{
    NUMBER_BYTES, PREFIX_BYTES, RecordRow, RepoKey, after_prefix, collection_key, collection_of,
};
use super::segments::Uses;
use super::{
    BLOB_REFS, BLOBS, Bytes, COLLECTIONS, DEAD, IndexError, NODES, RECORD_BLOBS, RECORD_SUBJECTS, RECORDS,
    SUBJECTS,
};

/// Takes away up to `limit` rows below the first prefix in `dead`, and the prefix with the last of them. Answers whether
/// there is more to do. Blobs belong to a repo, not to a generation, so they go only with the whole repo.
pub(super) fn sweep(transaction: &WriteTransaction, limit: usize) -> Result<bool, IndexError> {
    let mut dead = transaction.open_table(DEAD)?;
    let Some(prefix) = dead.first()?.map(|(prefix, _)| prefix.value().to_vec()) else {
        return Ok(false);
    };
    let mut left = limit;
    left -= sweep_records(transaction, &prefix, left)?;
    left -= sweep_table(transaction, NODES, &prefix, left)?;
    left -= sweep_table(transaction, BLOB_REFS, &prefix, left)?;
    left -= sweep_table(transaction, RECORD_BLOBS, &prefix, left)?;
    left -= sweep_table(transaction, SUBJECTS, &prefix, left)?;
    left -= sweep_table(transaction, RECORD_SUBJECTS, &prefix, left)?;
    if prefix.len() == NUMBER_BYTES {
        left -= sweep_table(transaction, BLOBS, &prefix, left)?;
    }
    if left == 0 {
        return Ok(true);
    }
    dead.remove(prefix.as_slice())?;
    Ok(dead.first()?.is_some())
}

fn sweep_table<V: Value + 'static>(
    transaction: &WriteTransaction,
    definition: TableDefinition<Bytes, V>,
    prefix: &[u8],
    limit: usize,
) -> Result<usize, IndexError> {
    let mut table = transaction.open_table(definition)?;
    let mut taken = 0;
    for row in table
        .extract_from_if(prefix..after_prefix(prefix).as_slice(), |_, _| true)?
        .take(limit)
    {
        row?;
        taken += 1;
    }
    Ok(taken)
}

/// Records, and what is counted of them: the use of their segments, and the collections that they are in.
fn sweep_records(transaction: &WriteTransaction, prefix: &[u8], limit: usize) -> Result<usize, IndexError> {
    const TABLE: &str = "records";
    let mut records = transaction.open_table(RECORDS)?;
    let mut collections = transaction.open_table(COLLECTIONS)?;
    let (mut uses, mut taken, mut last) = (Uses::default(), 0, Vec::new());
    for row in records
        .extract_from_if(prefix..after_prefix(prefix).as_slice(), |_, _| true)?
        .take(limit)
    {
        let (key, row) = row?;
        let (repo, path) = key
            .value()
            .split_at_checked(PREFIX_BYTES)
            .ok_or(IndexError::Row { table: TABLE })?;
        let collection = collection_key(collection_of(path), RepoKey::read(repo, TABLE)?);
        if collection != last {
            collections.remove(collection.as_slice())?;
            last = collection;
        }
        uses.record_gone(RecordRow::decode(row.value())?.location);
        taken += 1;
    }
    uses.write(transaction)?;
    Ok(taken)
}
