//! Everything that the index holds of each repo, staged generations included, in the order of the tables: what a
//! compaction writes down.

use std::ops::Bound;

use redb::{Range, ReadableTable};

use super::reader::IndexReader;
use super::rows::{
    BlobRow, CommitRow, HeadRow, NUMBER_BYTES, PREFIX_BYTES, RecordRow, RepoKey, after_prefix, cid_in_key,
    text_in_key,
};
use super::{BLOBS, DEAD, GENERATIONS, HEADS, IndexError, META, META_NEXT_REPO, RECORDS, RecordBytes};
use crate::log::Location;
use crate::repo::{Cid, Did, Tid};

/// A repo, without its rows.
#[derive(Clone, Debug)]
pub(crate) struct RepoDump {
    pub(crate) number: u32,
    pub(crate) did: Did,
    /// The live one.
    pub(crate) generation: u16,
    /// The greatest that there ever was.
    pub(crate) newest: u16,
    pub(crate) staged: Vec<u16>,
    pub(crate) head: Option<HeadDump>,
}

/// Where a repo stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadDump {
    pub(crate) rev: Tid,
    pub(crate) commit: Cid,
    pub(crate) data: Cid,
    pub(crate) location: Location,
}

/// A record of any generation.
#[derive(Clone, Debug)]
pub(crate) struct RecordDump {
    pub(crate) generation: u16,
    pub(crate) path: String,
    pub(crate) row: RecordRow,
}

type Rows = Range<'static, &'static [u8], &'static [u8]>;
type RecordRows = Range<'static, &'static [u8], RecordBytes>;

impl IndexReader {
    /// The number that the next new repo gets.
    pub(crate) fn next_repo(&self) -> Result<u32, IndexError> {
        let meta = self.transaction().open_table(META)?;
        let row = meta.get(META_NEXT_REPO)?;
        row.and_then(|row| row.value().try_into().ok().map(u32::from_be_bytes))
            .ok_or(IndexError::Row { table: "meta" })
    }

    /// Repos after the one numbered `after`, those without a commit too, at most `limit`.
    pub(crate) fn dump_repos(&self, after: Option<u32>, limit: usize) -> Result<Vec<RepoDump>, IndexError> {
        let heads = self.transaction().open_table(HEADS)?;
        let generations = self.transaction().open_table(GENERATIONS)?;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = heads.range::<u32>((from, Bound::Unbounded))?.take(limit);
        let mut found = Vec::new();
        for row in rows {
            let (number, row) = row?;
            let (number, head) = (number.value(), HeadRow::decode(row.value())?);
            let (from, to) = all_generations(number);
            let mut staged = Vec::new();
            for row in generations.range(from.as_slice()..to.as_slice())? {
                staged.push(generation_in_key(row?.0.value(), "generations")?);
            }
            found.push(RepoDump {
                number,
                did: head.did,
                generation: head.generation,
                newest: head.newest,
                staged,
                head: head.commit.map(
                    |CommitRow {
                         rev,
                         commit,
                         data,
                         location,
                     }| HeadDump {
                        rev,
                        commit,
                        data,
                        location,
                    },
                ),
            });
        }
        Ok(found)
    }

    /// The records of all generations of a repo, by generation and path.
    pub(crate) fn dump_records(
        &self,
        number: u32,
    ) -> Result<impl Iterator<Item = Result<RecordDump, IndexError>> + use<>, IndexError> {
        let (from, to) = all_generations(number);
        let rows: RecordRows = self
            .transaction()
            .open_table(RECORDS)?
            .range(from.as_slice()..to.as_slice())?;
        Ok(rows.map(|row| {
            let (key, row) = row?;
            Ok(RecordDump {
                generation: generation_in_key(key.value(), "records")?,
                path: text_in_key(key.value(), PREFIX_BYTES, "records")?.to_owned(),
                row: RecordRow::decode(row.value())?,
            })
        }))
    }

    /// The uploaded blobs of a repo, by CID.
    pub(crate) fn dump_blobs(
        &self,
        number: u32,
    ) -> Result<impl Iterator<Item = Result<(Cid, BlobRow), IndexError>> + use<>, IndexError> {
        let from = number.to_be_bytes();
        let rows: Rows = self
            .transaction()
            .open_table(BLOBS)?
            .range(from.as_slice()..after_prefix(&from).as_slice())?;
        Ok(rows.map(|row| {
            let (key, row) = row?;
            Ok((
                cid_in_key(key.value(), NUMBER_BYTES, "blobs")?,
                BlobRow::decode(row.value())?,
            ))
        }))
    }

    /// Whether rows that are in no answer any more still wait to be swept.
    pub(crate) fn is_unswept(&self) -> Result<bool, IndexError> {
        let dead = self.transaction().open_table(DEAD)?;
        Ok(dead.first()?.is_some())
    }
}

fn all_generations(number: u32) -> (Vec<u8>, Vec<u8>) {
    let of = |generation| RepoKey { number, generation };
    (of(0).prefix().to_vec(), of(u16::MAX).end())
}

fn generation_in_key(key: &[u8], table: &'static str) -> Result<u16, IndexError> {
    let bytes = key.get(4..6).and_then(|bytes| bytes.first_chunk::<2>());
    bytes
        .map(|bytes| u16::from_be_bytes(*bytes))
        .ok_or(IndexError::Row { table })
}
