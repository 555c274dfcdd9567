//! Reads of records: one index look-up and one slice of the log.

use engine::repo::{Cid, Did, Nsid, RecordKey, RepoPath};
use engine::views::index::ListOrder;

use super::WriteError;
use crate::service::core::Core;

/// A record as it is stored.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its CID.
    pub cid: Cid,
    /// Its DAG-CBOR.
    pub block: bytes::Bytes,
}

/// The current record at `path`, if there is one.
///
/// # Errors
/// The index or the log cannot be read.
pub fn record(engine: &Core, did: &Did, path: &RepoPath) -> Result<Option<Record>, WriteError> {
    let reader = engine.reader().map_err(internal)?;
    let Some(row) = reader.record(did, path).map_err(internal)? else {
        return Ok(None);
    };
    let block = engine.read_at(row.location).map_err(internal)?;
    Ok(Some(Record { cid: row.cid, block }))
}

/// Up to `limit` records of a collection, newest key first unless `reverse`, after `cursor`.
///
/// # Errors
/// As [`record`].
pub fn list(
    engine: &Core,
    did: &Did,
    collection: &Nsid,
    cursor: Option<&RecordKey>,
    reverse: bool,
    limit: usize,
) -> Result<Vec<(RecordKey, Record)>, WriteError> {
    let reader = engine.reader().map_err(internal)?;
    let order = if reverse {
        ListOrder::Ascending
    } else {
        ListOrder::Descending
    };
    let items = reader
        .list_records(did, collection, cursor, order, limit)
        .map_err(internal)?;
    items
        .into_iter()
        .map(|item| {
            let block = engine.read_at(item.row.location).map_err(internal)?;
            Ok((
                item.rkey,
                Record {
                    cid: item.row.cid,
                    block,
                },
            ))
        })
        .collect()
}

/// The collections of a repo, in order.
///
/// # Errors
/// As [`record`].
pub fn collections(engine: &Core, did: &Did) -> Result<Vec<Nsid>, WriteError> {
    let collections = engine
        .reader()
        .map_err(internal)?
        .collections(did)
        .map_err(internal)?;
    Ok(collections
        .into_iter()
        .map(|(collection, _)| collection)
        .collect())
}

fn internal(error: impl std::fmt::Display) -> WriteError {
    WriteError::Internal(error.to_string())
}
