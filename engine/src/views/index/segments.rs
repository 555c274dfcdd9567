//! How much of each segment is in use: what compaction would keep. The sum over the rows of `records` and over the heads'
//! commits, kept along with them in the same transaction.

use std::collections::HashMap;

use redb::{ReadableTable, WriteTransaction};

use super::reader::IndexReader;
use super::{IndexError, SEGMENTS};
use crate::log::{Location, Lsn};

const ROW_BYTES: usize = 32;

/// What of a segment's bytes the index points at. All else in the segment is superseded, framing, or not the index's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentUse {
    /// Base LSN of the segment.
    pub segment: Lsn,
    /// Records whose bytes lie in it.
    pub records: u64,
    /// Bytes of these records.
    pub record_bytes: u64,
    /// Repos whose current commit lies in it.
    pub commits: u64,
    /// Bytes of these commits.
    pub commit_bytes: u64,
}

impl SegmentUse {
    /// Bytes in use.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.record_bytes.saturating_add(self.commit_bytes)
    }

    fn decode(segment: u64, row: &[u8]) -> Result<SegmentUse, IndexError> {
        const DAMAGED: IndexError = IndexError::Row { table: "segments" };
        let (numbers, []) = row.as_chunks::<8>() else {
            return Err(DAMAGED);
        };
        let &[records, record_bytes, commits, commit_bytes] = numbers else {
            return Err(DAMAGED);
        };
        Ok(SegmentUse {
            segment: Lsn::new(segment).ok_or(DAMAGED)?,
            records: u64::from_be_bytes(records),
            record_bytes: u64::from_be_bytes(record_bytes),
            commits: u64::from_be_bytes(commits),
            commit_bytes: u64::from_be_bytes(commit_bytes),
        })
    }

    fn encode(&self) -> Vec<u8> {
        let mut row = Vec::with_capacity(ROW_BYTES);
        for number in [self.records, self.record_bytes, self.commits, self.commit_bytes] {
            row.extend_from_slice(&number.to_be_bytes());
        }
        row
    }
}

/// By how much a batch changes what is in use.
#[derive(Debug, Default)]
pub(super) struct Uses(HashMap<u64, Delta>);

#[derive(Clone, Copy, Debug, Default)]
struct Delta {
    records: i64,
    record_bytes: i64,
    commits: i64,
    commit_bytes: i64,
}

impl Uses {
    fn of(&mut self, location: Location) -> &mut Delta {
        self.0.entry(location.segment.get()).or_default()
    }

    pub(super) fn record_added(&mut self, location: Location) {
        let delta = self.of(location);
        delta.records += 1;
        delta.record_bytes += i64::from(location.len);
    }

    pub(super) fn record_gone(&mut self, location: Location) {
        let delta = self.of(location);
        delta.records -= 1;
        delta.record_bytes -= i64::from(location.len);
    }

    pub(super) fn commit_added(&mut self, location: Location) {
        let delta = self.of(location);
        delta.commits += 1;
        delta.commit_bytes += i64::from(location.len);
    }

    pub(super) fn commit_gone(&mut self, location: Location) {
        let delta = self.of(location);
        delta.commits -= 1;
        delta.commit_bytes -= i64::from(location.len);
    }

    /// Adds the changes to the table. A segment of which nothing is in use has no row.
    pub(super) fn write(&self, transaction: &WriteTransaction) -> Result<(), IndexError> {
        let mut table = transaction.open_table(SEGMENTS)?;
        for (segment, delta) in &self.0 {
            let before = table.get(segment)?;
            let before = before.map(|row| SegmentUse::decode(*segment, row.value()));
            let before = before.transpose()?.unwrap_or_default();
            let sum = |before: u64, by: i64| {
                before
                    .checked_add_signed(by)
                    .ok_or(IndexError::Row { table: "segments" })
            };
            let after = SegmentUse {
                segment: before.segment,
                records: sum(before.records, delta.records)?,
                record_bytes: sum(before.record_bytes, delta.record_bytes)?,
                commits: sum(before.commits, delta.commits)?,
                commit_bytes: sum(before.commit_bytes, delta.commit_bytes)?,
            };
            if (after.records, after.commits) == (0, 0) {
                table.remove(segment)?;
            } else {
                table.insert(segment, after.encode().as_slice())?;
            }
        }
        Ok(())
    }
}

impl IndexReader {
    /// How much of each segment is in use, ascending by base LSN. Segments that are not listed hold nothing that the
    /// index points at.
    ///
    /// # Errors
    /// The database failed or is damaged.
    pub fn segments(&self) -> Result<Vec<SegmentUse>, IndexError> {
        let table = self.transaction().open_table(SEGMENTS)?;
        let mut found = Vec::new();
        for row in table.iter()? {
            let (segment, row) = row?;
            found.push(SegmentUse::decode(segment.value(), row.value())?);
        }
        Ok(found)
    }
}
