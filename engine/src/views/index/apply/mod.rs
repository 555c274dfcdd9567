//! Folding entries into the tables. Everything here is a pure function of the entries and the tables: no clock, no
//! chance, and repo numbers are given in log order, so that a rebuilt file answers as the old one did (I4).

mod commit;
mod generations;
mod numbers;
mod records;
mod removals;

use std::collections::HashMap;

use redb::{ReadableTable, Table, WriteTransaction};

use super::rows::{BlobRow, HeadRow, RepoKey, collection_key, collection_of, pack_cid};
use super::segments::Uses;
use super::{
    ApplyError, BLOB_REFS, BLOBS, Bytes, COLLECTIONS, DEAD, GENERATIONS, HEADS, IndexError, META,
    META_NEXT_REPO, NODES, RECORD_BLOBS, RECORD_SUBJECTS, RECORDS, REMOVED, REPOS, RecordBytes, SUBJECTS,
    SubjectBytes,
};
use crate::entry::{Change, Entry, EntryKind};
use crate::log::Lsn;
use crate::repo::{Cid, Did};

pub(super) use generations::Builds;

/// Folds `entries` in order. On an error the transaction must be given up, and `builds` cleared.
pub(super) fn fold(
    transaction: &WriteTransaction,
    entries: &[Entry],
    builds: &mut Builds,
) -> Result<(), ApplyError> {
    let mut tables = Tables::open(transaction)?;
    for entry in entries {
        if entry.kind == EntryKind::Commit {
            tables.commit(entry)?;
        }
        for change in &entry.changes {
            tables.change(entry, change, builds)?;
        }
    }
    tables.close()?;
    Ok(())
}

/// Builds the nodes of a repo's live tree anew from its records; see [`super::IndexSource::rebuild_nodes`].
pub(super) fn rebuild_nodes(
    transaction: &WriteTransaction,
    did: &Did,
) -> Result<Option<(Cid, Cid)>, ApplyError> {
    let mut tables = Tables::open(transaction)?;
    let Some(repo) = tables.take_known(did)? else {
        return Ok(None);
    };
    let Some(head) = repo.head.commit else {
        return Ok(None);
    };
    let root = tables.build(repo.key(), head.rev)?;
    Ok(Some((root, head.data)))
}

struct Tables<'t> {
    transaction: &'t WriteTransaction,
    repos: Table<'t, &'static str, u32>,
    heads: Table<'t, u32, Bytes>,
    records: Table<'t, Bytes, RecordBytes>,
    nodes: Table<'t, Bytes, Bytes>,
    blobs: Table<'t, Bytes, Bytes>,
    blob_refs: Table<'t, Bytes, u64>,
    record_blobs: Table<'t, Bytes, ()>,
    subjects: Table<'t, Bytes, ()>,
    record_subjects: Table<'t, Bytes, SubjectBytes>,
    generations: Table<'t, Bytes, Bytes>,
    dead: Table<'t, Bytes, ()>,
    collections: Table<'t, Bytes, u64>,
    removed: Table<'t, Bytes, ()>,
    /// By how much the counts of `collections` change.
    collection_deltas: HashMap<Vec<u8>, i64>,
    next_repo: u32,
    /// Heads that this batch has touched; written at the end, once per repo.
    touched: HashMap<Did, (u32, HeadRow)>,
    /// How much less or more of each segment is in use.
    uses: Uses,
}

/// A repo while an entry changes it: its head is taken out of the batch's map and put back.
struct Repo {
    number: u32,
    head: HeadRow,
}

impl Repo {
    fn key(&self) -> RepoKey {
        self.generation(self.head.generation)
    }

    fn generation(&self, generation: u16) -> RepoKey {
        RepoKey {
            number: self.number,
            generation,
        }
    }
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t WriteTransaction) -> Result<Tables<'t>, ApplyError> {
        let next_repo = {
            let meta = transaction.open_table(META)?;
            let row = meta
                .get(META_NEXT_REPO)?
                .map(|row| row.value().try_into().map(u32::from_be_bytes));
            match row {
                Some(Ok(next)) => next,
                _ => return Err(IndexError::Row { table: "meta" }.into()),
            }
        };
        Ok(Tables {
            transaction,
            repos: transaction.open_table(REPOS)?,
            heads: transaction.open_table(HEADS)?,
            records: transaction.open_table(RECORDS)?,
            nodes: transaction.open_table(NODES)?,
            blobs: transaction.open_table(BLOBS)?,
            blob_refs: transaction.open_table(BLOB_REFS)?,
            record_blobs: transaction.open_table(RECORD_BLOBS)?,
            subjects: transaction.open_table(SUBJECTS)?,
            record_subjects: transaction.open_table(RECORD_SUBJECTS)?,
            generations: transaction.open_table(GENERATIONS)?,
            dead: transaction.open_table(DEAD)?,
            collections: transaction.open_table(COLLECTIONS)?,
            removed: transaction.open_table(REMOVED)?,
            collection_deltas: HashMap::new(),
            next_repo,
            touched: HashMap::new(),
            uses: Uses::default(),
        })
    }

    fn close(mut self) -> Result<(), ApplyError> {
        for (number, head) in self.touched.values() {
            self.heads.insert(number, head.encode()?.as_slice())?;
        }
        for (key, by) in self.collection_deltas.iter().filter(|(_, by)| **by != 0) {
            let before = self.collections.get(key.as_slice())?.map_or(0, |row| row.value());
            match before.saturating_add_signed(*by) {
                0 => self.collections.remove(key.as_slice())?,
                after => self.collections.insert(key.as_slice(), after)?,
            };
        }
        self.uses.write(self.transaction)?;
        super::put_meta(self.transaction, META_NEXT_REPO, &self.next_repo.to_be_bytes())?;
        Ok(())
    }

    /// Takes the repo of `did` out of the tables, if there is one. Give it back with [`Tables::put_back`].
    fn take_known(&mut self, did: &Did) -> Result<Option<Repo>, ApplyError> {
        if let Some((number, head)) = self.touched.remove(did) {
            return Ok(Some(Repo { number, head }));
        }
        let Some(number) = self.repos.get(did.as_str())?.map(|row| row.value()) else {
            return Ok(None);
        };
        let row = self
            .heads
            .get(number)?
            .ok_or(IndexError::Row { table: "heads" })?;
        Ok(Some(Repo {
            number,
            head: HeadRow::decode(row.value())?,
        }))
    }

    /// As [`Tables::take_known`], but gives an unknown DID the next number.
    fn take(&mut self, did: &Did) -> Result<Repo, ApplyError> {
        if let Some(known) = self.take_known(did)? {
            return Ok(known);
        }
        let number = self.next_repo;
        self.next_repo = number
            .checked_add(1)
            .ok_or(IndexError::Unrepresentable { what: "repo number" })?;
        self.repos.insert(did.as_str(), number)?;
        Ok(Repo {
            number,
            head: HeadRow::new(did.clone()),
        })
    }

    fn put_back(&mut self, repo: Repo) {
        self.touched
            .insert(repo.head.did.clone(), (repo.number, repo.head));
    }

    fn change(&mut self, entry: &Entry, change: &Change, builds: &mut Builds) -> Result<(), ApplyError> {
        let lsn = entry.lsn;
        match change {
            // The account view's business.
            Change::AccountsMigration { .. } | Change::AccountsChangeset { .. } => {}
            Change::BlobStored {
                did,
                cid,
                mime,
                size,
                created_at_micros,
            } => {
                let mut repo = self.take(did)?;
                let row = BlobRow {
                    size: *size,
                    created_at_micros: *created_at_micros,
                    mime: mime.clone(),
                };
                let key = repo.key().number_key(&[&pack_cid(cid)]);
                if self
                    .blobs
                    .insert(key.as_slice(), row.encode().as_slice())?
                    .is_none()
                {
                    repo.head.blobs_stored += 1;
                }
                self.put_back(repo);
            }
            Change::RepoRemoved { did } => {
                if let Some(repo) = self.take_known(did)? {
                    self.remove_repo(&repo, builds)?;
                    self.note_removal(lsn, did)?;
                }
            }
            Change::RepoRows {
                did,
                generation,
                rows,
            } => self.rows(entry, did, *generation, rows, builds)?,
            Change::RowsGone {
                did,
                generation,
                paths,
            } => self.gone(lsn, did, *generation, paths, builds)?,
            Change::RepoHead {
                did,
                generation,
                commit,
            } => self.head(entry, did, *generation, commit, builds)?,
            Change::GenerationSwept { did, generation } => self.swept(lsn, did, *generation, builds)?,
            Change::ReposNumbered { next, repos } => self.numbered(lsn, *next, repos)?,
            Change::RemovalsPending { removals } => self.removals_pending(removals)?,
            Change::RemovalsGone { removals } => self.removals_gone(removals)?,
        }
        Ok(())
    }

    /// Counted in memory, and written once per batch.
    fn add_to_collection(&mut self, path: &[u8], repo: RepoKey, by: i64) {
        let key = collection_key(collection_of(path), repo);
        *self.collection_deltas.entry(key).or_default() += by;
    }
}

fn contradiction(lsn: Lsn, reason: String) -> ApplyError {
    ApplyError::Contradiction { lsn, reason }
}
