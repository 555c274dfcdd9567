//! Reads of records: one index look-up and one slice of the log.

use std::collections::HashSet;

use engine::repo::{Cid, Did, Nsid, RecordKey, RepoPath};
use engine::views::index::ListOrder;

use super::{WriteError, unread};
use crate::service::core::Core;

/// Bytes of records that one page brings into memory.
pub const PAGE_BYTES: usize = 8 << 20;

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
    let block = engine.read_at(row.location).map_err(unread)?;
    Ok(Some(Record { cid: row.cid, block }))
}

/// Which records of a collection are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// The last key of the page before.
    pub cursor: Option<&'a RecordKey>,
    /// Oldest key first.
    pub reverse: bool,
    /// Most records.
    pub limit: usize,
    /// Keys that are left out.
    pub hidden: &'a HashSet<String>,
}

/// A page of a collection's records, newest key first unless reversed. It ends early, after at least one record, where it
/// would hold more than [`PAGE_BYTES`]. Reads many places of the log: not for async threads.
///
/// # Errors
/// As [`record`].
pub fn list(
    engine: &Core,
    did: &Did,
    collection: &Nsid,
    page: &Page<'_>,
) -> Result<Vec<(RecordKey, Record)>, WriteError> {
    let reader = engine.reader().map_err(internal)?;
    let order = if page.reverse {
        ListOrder::Ascending
    } else {
        ListOrder::Descending
    };
    let items = reader
        .list_records(
            did,
            collection,
            page.cursor,
            order,
            page.limit + page.hidden.len(),
        )
        .map_err(internal)?;
    let shown = items
        .into_iter()
        .filter(|item| !page.hidden.contains(item.rkey.as_str()))
        .take(page.limit);
    let mut records = Vec::with_capacity(page.limit);
    let mut bytes = 0;
    for item in shown {
        bytes += item.row.location.len as usize;
        if bytes > PAGE_BYTES && !records.is_empty() {
            break;
        }
        let cid = item.row.cid;
        let block = engine.read_at(item.row.location).map_err(unread)?;
        records.push((item.rkey, Record { cid, block }));
    }
    Ok(records)
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
