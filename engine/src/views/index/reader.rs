//! Questions to the index. One [`IndexReader`] answers all of them from one LSN.

use std::ops::Bound;
use std::sync::Arc;

use redb::{AccessGuard, Database, Range, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable};

use super::nodes::RepoNodes;
use super::rows::{
    HeadRow, PREFIX_BYTES, RecordRow, RepoKey, after_prefix, collection_of, text, text_in_key,
};
use super::{
    COLLECTIONS, GENERATIONS, HEADS, IndexError, META, META_APPLIED, NODES, RECORDS, REPOS, RecordBytes,
};
use crate::log::{Location, Lsn};
use crate::repo::{Cid, Did, Nsid, RecordKey, RepoPath, Tid};

/// A snapshot of the index. Cheap to take and to clone; holds back the reuse of pages while it lives, so do not keep it
/// over a slow client.
#[derive(Clone)]
pub struct IndexReader(Arc<Snapshot>);

/// One read transaction, and the tables that nearly every question needs.
struct Snapshot {
    repos: ReadOnlyTable<&'static str, u32>,
    heads: ReadOnlyTable<u32, &'static [u8]>,
    records: ReadOnlyTable<&'static [u8], RecordBytes>,
    nodes: ReadOnlyTable<&'static [u8], &'static [u8]>,
    transaction: ReadTransaction,
    applied: Lsn,
    /// A snapshot reads from an open file only.
    _open: Arc<Database>,
    /// See [`OldSnapshots`](super::OldSnapshots).
    _held: Arc<()>,
}

impl std::fmt::Debug for IndexReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IndexReader")
            .field("applied", &self.applied())
            .finish_non_exhaustive()
    }
}

/// Where a repo stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoHead {
    /// Its number inside the index, given in the order in which repos appeared.
    pub number: u32,
    /// Its name.
    pub did: Did,
    /// The current commit.
    pub commit: Cid,
    /// The current commit's rev.
    pub rev: Tid,
    /// The root of the current tree.
    pub data: Cid,
    /// The commit block in the log.
    pub commit_location: Location,
    /// How much it holds.
    pub counts: RepoCounts,
}

/// How much a repo holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepoCounts {
    /// Records.
    pub records: u64,
    /// Blobs that were uploaded, whether a record references them or not.
    pub blobs_stored: u64,
    /// Different blobs that records reference, whether they were uploaded or not.
    pub blobs_referenced: u64,
}

/// Which end a list of records starts at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListOrder {
    /// Greatest record key first; with TIDs, the newest.
    Descending,
    /// Smallest record key first.
    Ascending,
}

/// A record in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordItem {
    /// Its key in the collection.
    pub rkey: RecordKey,
    /// Where and what it is.
    pub row: RecordRow,
}

/// A repo's records in path order; see [`IndexReader::records_from`].
pub struct Records(Option<(Range<'static, &'static [u8], RecordBytes>, IndexReader)>);

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records").finish_non_exhaustive()
    }
}

impl Iterator for Records {
    type Item = Result<(RepoPath, RecordRow), IndexError>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = self.0.as_mut()?.0.next()?;
        Some(row.map_err(IndexError::from).and_then(|(key, value)| {
            Ok((
                path_in_key(key.value(), PREFIX_BYTES, "records")?,
                RecordRow::decode(value.value())?,
            ))
        }))
    }
}

type Row<'a> = (AccessGuard<'a, &'static [u8]>, AccessGuard<'a, RecordBytes>);

impl IndexReader {
    pub(super) fn new(database: Arc<Database>, held: Arc<()>) -> Result<IndexReader, IndexError> {
        let transaction = database.begin_read()?;
        let applied = {
            let meta = transaction.open_table(META)?;
            let row = meta.get(META_APPLIED)?.ok_or(IndexError::Row { table: "meta" })?;
            super::lsn_of(row.value()).ok_or(IndexError::Row { table: "meta" })?
        };
        Ok(IndexReader(Arc::new(Snapshot {
            repos: transaction.open_table(REPOS)?,
            heads: transaction.open_table(HEADS)?,
            records: transaction.open_table(RECORDS)?,
            nodes: transaction.open_table(NODES)?,
            transaction,
            applied,
            _open: database,
            _held: held,
        })))
    }

    pub(super) fn transaction(&self) -> &ReadTransaction {
        &self.0.transaction
    }

    pub(super) fn heads(&self) -> &ReadOnlyTable<u32, &'static [u8]> {
        &self.0.heads
    }

    pub(super) fn records(&self) -> &ReadOnlyTable<&'static [u8], RecordBytes> {
        &self.0.records
    }

    pub(super) fn node_rows(&self) -> &ReadOnlyTable<&'static [u8], &'static [u8]> {
        &self.0.nodes
    }

    /// The LSN that every answer is from.
    #[must_use]
    pub fn applied(&self) -> Lsn {
        self.0.applied
    }

    /// Where the repo of `did` stands, or `None` if it never had a commit or was removed.
    ///
    /// # Errors
    /// The database failed or is damaged; the same holds for every question below.
    pub fn repo(&self, did: &Did) -> Result<Option<RepoHead>, IndexError> {
        match self.head(did)? {
            Some((number, head)) => Ok(repo_head(number, head)),
            None => Ok(None),
        }
    }

    /// How many records and blobs `did` has. Unlike [`IndexReader::repo`] it also knows a DID that has uploaded blobs and
    /// has no commit yet.
    ///
    /// # Errors
    /// See [`IndexReader::repo`].
    pub fn counts(&self, did: &Did) -> Result<RepoCounts, IndexError> {
        Ok(self.head(did)?.map(|(_, head)| counts(&head)).unwrap_or_default())
    }

    /// Repos after the one numbered `after`, in the order in which they appeared, at most `limit`. The last one's
    /// number is the next page's `after`. Pages may be shorter than `limit` only at the end.
    ///
    /// # Errors
    /// See [`IndexReader::repo`].
    pub fn repos(&self, after: Option<u32>, limit: usize) -> Result<Vec<RepoHead>, IndexError> {
        let heads = self.heads();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut found = Vec::new();
        for row in heads.range::<u32>((from, Bound::Unbounded))? {
            if found.len() >= limit {
                break;
            }
            let (number, row) = row?;
            found.extend(repo_head(number.value(), HeadRow::decode(row.value())?));
        }
        Ok(found)
    }

    /// Repos that have records of `collection`, as [`IndexReader::repos`] pages them.
    ///
    /// # Errors
    /// See [`IndexReader::repo`].
    pub fn repos_by_collection(
        &self,
        collection: &Nsid,
        after: Option<u32>,
        limit: usize,
    ) -> Result<Vec<(u32, Did)>, IndexError> {
        let Some(from) = after.map_or(Some(0), |after| after.checked_add(1)) else {
            return Ok(Vec::new());
        };
        let prefix = [collection.as_str().as_bytes(), &[0]].concat();
        let from = [&prefix[..], &from.to_be_bytes()].concat();
        let collections = self.transaction().open_table(COLLECTIONS)?;
        let heads = self.heads();
        let mut found = Vec::new();
        for row in collections.range(from.as_slice()..after_prefix(&prefix).as_slice())? {
            if found.len() >= limit {
                break;
            }
            let (key, _) = row?;
            let repo = RepoKey::read(key.value().get(prefix.len()..).unwrap_or_default(), "collections")?;
            // What is staged, or was removed and is not swept yet, is in no answer.
            if let Some(head) = heads.get(repo.number)? {
                let head = HeadRow::decode(head.value())?;
                if head.generation == repo.generation {
                    found.push((repo.number, head.did));
                }
            }
        }
        Ok(found)
    }

    /// The collections in which `did` has records, in order, each with their number.
    ///
    /// # Errors
    /// See [`IndexReader::repo`].
    pub fn collections(&self, did: &Did) -> Result<Vec<(Nsid, u64)>, IndexError> {
        let Some(repo) = self.key(did)? else {
            return Ok(Vec::new());
        };
        let records = self.records();
        let collections = self.transaction().open_table(COLLECTIONS)?;
        let end = repo.end();
        let mut at = repo.prefix().to_vec();
        let mut found = Vec::new();
        // One seek per collection: from its first record to the first path after all of its paths.
        while let Some(row) = records.range(at.as_slice()..end.as_slice())?.next() {
            let (key, _) = row?;
            let path = key
                .value()
                .get(PREFIX_BYTES..)
                .ok_or(IndexError::Row { table: "records" })?;
            let collection = collection_of(path);
            let count = collections.get(super::rows::collection_key(collection, repo).as_slice())?;
            let count = count.ok_or(IndexError::Row { table: "collections" })?.value();
            let name = text(collection, "records")?
                .parse()
                .map_err(|_| IndexError::Row { table: "records" })?;
            found.push((name, count));
            at = after_prefix(&repo.key(&[collection, b"/"]));
        }
        Ok(found)
    }

    /// The record at `path`.
    ///
    /// # Errors
    /// See [`IndexReader::repo`].
    pub fn record(&self, did: &Did, path: &RepoPath) -> Result<Option<RecordRow>, IndexError> {
        let Some(repo) = self.key(did)? else {
            return Ok(None);
        };
        let records = self.records();
        let row = records.get(repo.key(&[path.to_string().as_bytes()]).as_slice())?;
        row.map(|row| RecordRow::decode(row.value())).transpose()
    }

    /// Records of one collection beyond `cursor` (exclusive) in `order`, at most `limit`.
    ///
    /// # Errors
    /// See [`IndexReader::repo`].
    pub fn list_records(
        &self,
        did: &Did,
        collection: &Nsid,
        cursor: Option<&RecordKey>,
        order: ListOrder,
        limit: usize,
    ) -> Result<Vec<RecordItem>, IndexError> {
        let Some(repo) = self.key(did)? else {
            return Ok(Vec::new());
        };
        let prefix = repo.key(&[collection.as_str().as_bytes(), b"/"]);
        let end = after_prefix(&prefix);
        let cursor = cursor.map(|rkey| [&prefix[..], rkey.as_str().as_bytes()].concat());
        let records = self.records();
        let item = |row: Result<Row<'static>, redb::StorageError>| {
            let (key, value) = row?;
            let rkey = text_in_key(key.value(), prefix.len(), "records")?;
            let rkey = rkey.parse().map_err(|_| IndexError::Row { table: "records" })?;
            Ok(RecordItem {
                rkey,
                row: RecordRow::decode(value.value())?,
            })
        };
        match order {
            ListOrder::Ascending => {
                let from = cursor
                    .as_ref()
                    .map_or(Bound::Included(prefix.as_slice()), |at| Bound::Excluded(at));
                records
                    .range::<&[u8]>((from, Bound::Excluded(end.as_slice())))?
                    .take(limit)
                    .map(item)
                    .collect()
            }
            ListOrder::Descending => {
                let to = cursor.as_ref().unwrap_or(&end);
                records
                    .range(prefix.as_slice()..to.as_slice())?
                    .rev()
                    .take(limit)
                    .map(item)
                    .collect()
            }
        }
    }

    /// Every record after `after`, in the order of the tree, for an export. The iterator keeps its snapshot alive.
    ///
    /// # Errors
    /// See [`IndexReader::repo`].
    pub fn records_from(&self, did: &Did, after: Option<&RepoPath>) -> Result<Records, IndexError> {
        let Some(repo) = self.key(did)? else {
            return Ok(Records(None));
        };
        let from = match after {
            Some(path) => repo.key(&[path.to_string().as_bytes(), &[0]]),
            None => repo.prefix().to_vec(),
        };
        let records = self.records();
        let rows = records.range(from.as_slice()..repo.end().as_slice())?;
        Ok(Records(Some((rows, self.clone()))))
    }

    /// The nodes of this repo's tree, for [`Tree`](crate::repo::mst::Tree).
    ///
    /// # Errors
    /// See [`IndexReader::repo`].
    pub fn nodes(&self, did: &Did) -> Result<Option<RepoNodes>, IndexError> {
        Ok(self.key(did)?.map(|repo| RepoNodes::new(self.clone(), repo)))
    }

    /// The generation that an import of `did` may use next: greater than every one that there was. `None` for a DID
    /// without a repo.
    ///
    /// # Errors
    /// See [`IndexReader::repo`].
    pub fn next_generation(&self, did: &Did) -> Result<Option<u32>, IndexError> {
        Ok(self.head(did)?.map(|(_, head)| u32::from(head.newest) + 1))
    }

    /// The generation of `did` that is live. `None` for a DID without a repo.
    ///
    /// # Errors
    /// See [`IndexReader::repo`].
    pub fn live_generation(&self, did: &Did) -> Result<Option<u32>, IndexError> {
        Ok(self.head(did)?.map(|(_, head)| u32::from(head.generation)))
    }

    /// Generations that are staged, at most `limit`: imports that are under way, or that never came to their end.
    ///
    /// # Errors
    /// See [`IndexReader::repo`].
    pub fn staged_generations(&self, limit: usize) -> Result<Vec<(Did, u32)>, IndexError> {
        const TABLE: &str = "generations";
        let generations = self.transaction().open_table(GENERATIONS)?;
        let heads = self.heads();
        let mut found = Vec::new();
        for row in generations.iter()?.take(limit) {
            let (key, _) = row?;
            let repo = RepoKey::read(key.value(), TABLE)?;
            let head = heads.get(repo.number)?.ok_or(IndexError::Row { table: TABLE })?;
            found.push((HeadRow::decode(head.value())?.did, u32::from(repo.generation)));
        }
        Ok(found)
    }

    pub(super) fn head(&self, did: &Did) -> Result<Option<(u32, HeadRow)>, IndexError> {
        let Some(number) = self.0.repos.get(did.as_str())?.map(|row| row.value()) else {
            return Ok(None);
        };
        let heads = self.heads();
        let head = heads.get(number)?.ok_or(IndexError::Row { table: "heads" })?;
        Ok(Some((number, HeadRow::decode(head.value())?)))
    }

    pub(super) fn key(&self, did: &Did) -> Result<Option<RepoKey>, IndexError> {
        let Some(number) = self.0.repos.get(did.as_str())?.map(|row| row.value()) else {
            return Ok(None);
        };
        let row = self.heads().get(number)?;
        let generation = row.and_then(|row| HeadRow::generation(row.value()));
        Ok(Some(RepoKey {
            number,
            generation: generation.ok_or(IndexError::Row { table: "heads" })?,
        }))
    }
}

fn counts(head: &HeadRow) -> RepoCounts {
    RepoCounts {
        records: head.counts.records,
        blobs_stored: head.blobs_stored,
        blobs_referenced: head.counts.blobs_referenced,
    }
}

fn repo_head(number: u32, head: HeadRow) -> Option<RepoHead> {
    let counts = counts(&head);
    head.commit.map(|at| RepoHead {
        number,
        did: head.did,
        commit: at.commit,
        rev: at.rev,
        data: at.data,
        commit_location: at.location,
        counts,
    })
}

pub(super) fn path_in_key(key: &[u8], at: usize, table: &'static str) -> Result<RepoPath, IndexError> {
    let path = key.get(at..).ok_or(IndexError::Row { table })?;
    RepoPath::from_bytes(path).map_err(|_| IndexError::Row { table })
}
