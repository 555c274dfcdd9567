//! Repos that were removed and of which copies may be left: the index keeps their names until the log says that the last
//! copy is gone.
//!
//! It also knows of its own file up to which removal nothing is left in it. Rows that were swept leave their bytes in free
//! pages, so the live file never knows; a copy, written row by row when nothing waited to be swept, does.

use std::ops::Bound;

use redb::ReadableTableMetadata;

use super::reader::IndexReader;
use super::{IndexError, META, META_ERASED, REMOVED, lsn_of};
use crate::entry::RepoRemoval;
use crate::log::Lsn;
use crate::repo::Did;

const TABLE: &str = "removed";

/// The removal's LSN, and the DID: removals lie in the order in which they were made.
pub(super) fn removal_key(lsn: Lsn, did: &Did) -> Vec<u8> {
    [&lsn.get().to_be_bytes(), did.as_str().as_bytes()].concat()
}

fn removal_of(key: &[u8]) -> Option<RepoRemoval> {
    let (lsn, did) = key.split_first_chunk::<8>()?;
    Some(RepoRemoval {
        lsn: Lsn::new(u64::from_be_bytes(*lsn))?,
        did: std::str::from_utf8(did).ok()?.parse().ok()?,
    })
}

impl IndexReader {
    /// Removed repos after `after` that are not known to be gone everywhere, the oldest first, at most `limit`.
    ///
    /// # Errors
    /// The database failed or is damaged.
    pub fn removals(
        &self,
        after: Option<&RepoRemoval>,
        limit: usize,
    ) -> Result<Vec<RepoRemoval>, IndexError> {
        let table = self.transaction().open_table(REMOVED)?;
        let after = after.map(|removal| removal_key(removal.lsn, &removal.did));
        let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let rows = table.range::<&[u8]>((from, Bound::Unbounded))?.take(limit);
        rows.map(|row| removal_of(row?.0.value()).ok_or(IndexError::Row { table: TABLE }))
            .collect()
    }

    /// The oldest removal after `after` that is not known to be gone everywhere.
    ///
    /// # Errors
    /// The database failed or is damaged.
    pub fn oldest_removal(&self, after: Lsn) -> Result<Option<RepoRemoval>, IndexError> {
        let table = self.transaction().open_table(REMOVED)?;
        let Some(from) = after.next() else { return Ok(None) };
        let row = table.range(from.get().to_be_bytes().as_slice()..)?.next();
        let Some(row) = row else { return Ok(None) };
        let removal = removal_of(row?.0.value()).ok_or(IndexError::Row { table: TABLE })?;
        Ok(Some(removal))
    }

    /// How many removed repos after the LSN `after` are not known to be gone everywhere. Reads their rows.
    ///
    /// # Errors
    /// The database failed.
    pub fn removals_after(&self, after: Lsn) -> Result<u64, IndexError> {
        let table = self.transaction().open_table(REMOVED)?;
        if after == Lsn::ZERO {
            return Ok(table.len()?);
        }
        let Some(from) = after.next() else { return Ok(0) };
        let mut count = 0;
        for row in table.range(from.get().to_be_bytes().as_slice()..)? {
            row?;
            count += 1;
        }
        Ok(count)
    }

    /// The newest removal at or before `limit` that is not known to be gone everywhere.
    ///
    /// # Errors
    /// The database failed or is damaged.
    pub(crate) fn newest_removal(&self, limit: Lsn) -> Result<Option<Lsn>, IndexError> {
        let table = self.transaction().open_table(REMOVED)?;
        let Some(end) = limit.next() else { return Ok(None) };
        let mut rows = table.range(..end.get().to_be_bytes().as_slice())?;
        let Some(row) = rows.next_back() else {
            return Ok(None);
        };
        let removal = removal_of(row?.0.value()).ok_or(IndexError::Row { table: TABLE })?;
        Ok(Some(removal.lsn))
    }

    /// Removals at or before this LSN have left no bytes in this file, nor in a copy of it that has a later LSN.
    ///
    /// # Errors
    /// The database failed.
    pub fn erased(&self) -> Result<Lsn, IndexError> {
        let meta = self.transaction().open_table(META)?;
        let row = meta.get(META_ERASED)?;
        row.and_then(|row| lsn_of(row.value()))
            .ok_or(IndexError::Row { table: "meta" })
    }

    /// What a copy of this snapshot may say instead of what this file says: everything up to now, if nothing waits to be swept. It
    /// is said only where it makes a difference, so that checkpoints of later LSNs than need be are not waited for.
    pub(super) fn erased_by_a_copy(&self) -> Result<Option<Lsn>, IndexError> {
        let newer = self.removals_after(self.erased()?)? > 0;
        Ok((newer && !self.is_unswept()?).then(|| self.applied()))
    }
}
