//! Following a compaction: rows that point into segments which it replaced are made to point to where it has put the
//! same blocks. Done in pieces between the driver's own transactions, and again from the beginning after a crash: a row
//! that points elsewhere already is left as it is.
//!
//! Which compaction's places an index has is in its `meta` table, so that an index is never used with other segments:
//! `compaction` holds the number whose places all rows have (u32), then the number to which they are being moved (u32);
//! the same number twice when nothing is being moved.

use std::collections::{BTreeSet, HashMap};

use redb::{Durability, ReadableTable, Table, WriteTransaction};

use super::reader::IndexReader;
use super::rows::{HeadRow, RecordRow, RepoKey};
use super::segments::Uses;
use super::{
    Bytes, HEADS, IndexError, IndexSource, IndexView, META, META_COMPACTION, RECORDS, RecordBytes, put_meta,
};
use crate::entry::{Change, Entry};
use crate::log::{Location, Lsn};
use crate::repo::{Cid, Did};

/// Which compaction's places the rows have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// All rows that are not moved yet have the places of this compaction.
    pub settled: u32,
    /// The compaction to whose places rows are being moved; `settled` when none are.
    pub target: u32,
}

impl Places {
    /// All rows have the places of one compaction.
    #[must_use]
    pub fn of(compaction: u32) -> Places {
        Places {
            settled: compaction,
            target: compaction,
        }
    }

    fn decode(row: &[u8]) -> Option<Places> {
        let (settled, target) = row.split_first_chunk::<4>()?;
        Some(Places {
            settled: u32::from_be_bytes(*settled),
            target: u32::from_be_bytes(target.try_into().ok()?),
        })
    }

    pub(super) fn encode(self) -> [u8; 8] {
        let [a, b, c, d] = self.settled.to_be_bytes();
        let [e, f, g, h] = self.target.to_be_bytes();
        [a, b, c, d, e, f, g, h]
    }
}

/// How many rows of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) records: u64,
    pub(crate) commits: u64,
}

impl Moved {
    pub(crate) fn add(&mut self, other: Moved) {
        self.records += other.records;
        self.commits += other.commits;
    }
}

/// Why rows do not follow.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelocateError {
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error("{0}")]
    Contradiction(String),
}

impl From<redb::StorageError> for RelocateError {
    fn from(error: redb::StorageError) -> RelocateError {
        RelocateError::Index(error.into())
    }
}

impl From<redb::TableError> for RelocateError {
    fn from(error: redb::TableError) -> RelocateError {
        RelocateError::Index(error.into())
    }
}

/// Where a compacted entry has put something.
enum Placed<'e> {
    Record {
        repo: RepoKey,
        path: &'e str,
        cid: Cid,
        at: Location,
    },
    Commit {
        number: u32,
        cid: Cid,
        at: Location,
    },
}

/// Walks compacted entries in their order. Repos are known by the numbers that the entries give them, which are never
/// given again: so rows are found also of a repo that was removed meanwhile and waits to be swept.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    numbers: HashMap<Did, u32>,
}

impl Walk {
    fn number(&self, did: &Did) -> Result<u32, RelocateError> {
        let number = self.numbers.get(did).copied();
        number.ok_or_else(|| RelocateError::Contradiction(format!("{did} has rows before its number")))
    }

    /// What an entry holds that the index points at.
    fn placed<'e>(&mut self, entry: &'e Entry) -> Result<Vec<Placed<'e>>, RelocateError> {
        let location = |block: &[u8]| {
            entry
                .private_location(block)
                .ok_or_else(|| RelocateError::Contradiction("a block lies outside of its entry".to_owned()))
        };
        let mut found = Vec::new();
        for change in &entry.changes {
            match change {
                Change::ReposNumbered { repos, .. } => {
                    // Rows follow the numbers at once, so older ones are not asked for any more.
                    self.numbers = repos.iter().map(|repo| (repo.did.clone(), repo.number)).collect();
                }
                Change::RepoRows {
                    did,
                    generation,
                    rows,
                } => {
                    let repo = RepoKey {
                        number: self.number(did)?,
                        generation: u16::try_from(*generation)
                            .map_err(|_| IndexError::Unrepresentable { what: "generation" })?,
                    };
                    for row in rows {
                        found.push(Placed::Record {
                            repo,
                            path: &row.path,
                            cid: row.cid,
                            at: location(&row.block)?,
                        });
                    }
                }
                Change::RepoHead { did, commit, .. } => found.push(Placed::Commit {
                    number: self.number(did)?,
                    cid: Cid::for_dag_cbor(commit),
                    at: location(commit)?,
                }),
                _ => {}
            }
        }
        Ok(found)
    }
}

fn other_block(what: &dyn std::fmt::Display) -> RelocateError {
    RelocateError::Contradiction(format!(
        "the index says that a replaced segment holds another block of {what} than the compacted one"
    ))
}

/// A row that points into a replaced segment, and where it shall point.
enum Step {
    Record(Vec<u8>, RecordRow, Location),
    Commit(u32, HeadRow, Location),
}

/// What is to be done about something that was placed: with the tables of a reader or of a writer.
fn step(
    records: &impl ReadableTable<Bytes, RecordBytes>,
    heads: &impl ReadableTable<u32, Bytes>,
    placed: &Placed<'_>,
    inputs: &BTreeSet<Lsn>,
) -> Result<Option<Step>, RelocateError> {
    match placed {
        Placed::Record { repo, path, cid, at } => {
            let key = repo.key(&[path.as_bytes()]);
            let Some(row) = records.get(key.as_slice())? else {
                return Ok(None);
            };
            let row = RecordRow::decode(row.value())?;
            if !inputs.contains(&row.location.segment) {
                return Ok(None);
            }
            if row.cid != *cid {
                return Err(other_block(path));
            }
            Ok(Some(Step::Record(key, row, *at)))
        }
        Placed::Commit { number, cid, at } => {
            let Some(row) = heads.get(*number)? else {
                return Ok(None);
            };
            let head = HeadRow::decode(row.value())?;
            let Some(commit) = head.commit.filter(|at| inputs.contains(&at.location.segment)) else {
                return Ok(None);
            };
            if commit.commit != *cid {
                return Err(other_block(&head.did));
            }
            Ok(Some(Step::Commit(*number, head, *at)))
        }
    }
}

impl IndexReader {
    /// How many rows of this snapshot would follow the blocks of these compacted entries out of `inputs`.
    pub(crate) fn would_move(
        &self,
        walk: &mut Walk,
        entries: &[Entry],
        inputs: &BTreeSet<Lsn>,
    ) -> Result<Moved, RelocateError> {
        let (records, heads) = (self.records(), self.heads());
        let mut moved = Moved::default();
        for entry in entries {
            for placed in walk.placed(entry)? {
                match step(records, heads, &placed, inputs)? {
                    Some(Step::Record(..)) => moved.records += 1,
                    Some(Step::Commit(..)) => moved.commits += 1,
                    None => {}
                }
            }
        }
        Ok(moved)
    }

    /// What this snapshot still has in `inputs`.
    pub(crate) fn used_of(&self, inputs: &BTreeSet<Lsn>) -> Result<Moved, IndexError> {
        let mut used = Moved::default();
        for segment in self.segments()? {
            if inputs.contains(&segment.segment) {
                used.records += segment.records;
                used.commits += segment.commits;
            }
        }
        Ok(used)
    }

    /// Which compaction's places the rows have.
    ///
    /// # Errors
    /// The database failed or is damaged.
    pub fn places(&self) -> Result<Places, IndexError> {
        let meta = self.transaction().open_table(META)?;
        let row = meta.get(META_COMPACTION)?;
        row.and_then(|row| Places::decode(row.value()))
            .ok_or(IndexError::Row { table: "meta" })
    }
}

impl IndexSource {
    /// Notes that rows are being moved from one compaction's places to another's. Not durable by itself.
    pub(crate) fn set_places(&self, places: Places) -> Result<(), IndexError> {
        let mut transaction = self.database().begin_write()?;
        transaction.set_durability(Durability::None)?;
        put_meta(&transaction, META_COMPACTION, &places.encode())?;
        self.slot.commit(transaction)
    }

    /// Lets the rows follow the blocks of these compacted entries out of `inputs`, in one transaction that is not durable
    /// by itself.
    pub(crate) fn relocate(
        &self,
        walk: &mut Walk,
        entries: &[Entry],
        inputs: &BTreeSet<Lsn>,
    ) -> Result<(), RelocateError> {
        let mut transaction = self.database().begin_write().map_err(IndexError::from)?;
        transaction
            .set_durability(Durability::None)
            .map_err(IndexError::from)?;
        relocate(&transaction, walk, entries, inputs)?;
        self.slot.commit(transaction)?;
        Ok(())
    }

    /// Makes everything that was written survive a crash.
    pub(crate) fn persist(&self) -> Result<(), IndexError> {
        let mut transaction = self.database().begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        transaction.set_quick_repair(true);
        self.slot.commit(transaction)
    }
}

fn relocate(
    transaction: &WriteTransaction,
    walk: &mut Walk,
    entries: &[Entry],
    inputs: &BTreeSet<Lsn>,
) -> Result<(), RelocateError> {
    let mut records: Table<'_, Bytes, RecordBytes> = transaction.open_table(RECORDS)?;
    let mut heads: Table<'_, u32, Bytes> = transaction.open_table(HEADS)?;
    let mut uses = Uses::default();
    for entry in entries {
        for placed in walk.placed(entry)? {
            match step(&records, &heads, &placed, inputs)? {
                Some(Step::Record(key, row, at)) => {
                    uses.record_gone(row.location);
                    uses.record_added(at);
                    let row = RecordRow { location: at, ..row }.encode()?;
                    records.insert(key.as_slice(), &row)?;
                }
                Some(Step::Commit(number, mut head, at)) => {
                    if let Some(commit) = &mut head.commit {
                        uses.commit_gone(commit.location);
                        uses.commit_added(at);
                        commit.location = at;
                    }
                    heads.insert(number, head.encode()?.as_slice())?;
                }
                None => {}
            }
        }
    }
    drop((records, heads));
    uses.write(transaction)?;
    Ok(())
}

impl IndexView {
    /// Which compaction's places the rows have.
    ///
    /// # Errors
    /// The database failed or is damaged.
    pub fn places(&self) -> Result<Places, IndexError> {
        self.reader()?.places()
    }

    /// An index to which nothing was applied belongs to whatever segments it is to be folded from: those of this
    /// compaction, zero for none.
    ///
    /// # Errors
    /// The database failed.
    pub fn adopt(&self, compaction: u32) -> Result<(), IndexError> {
        self.source().set_places(Places::of(compaction))
    }
}
