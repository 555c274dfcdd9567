//! Removed repos, until no copy of them is left anywhere.

use super::{ApplyError, Tables};
use crate::entry::RepoRemoval;
use crate::log::Lsn;
use crate::repo::Did;
use crate::views::index::removals::removal_key;

impl Tables<'_> {
    pub(super) fn note_removal(&mut self, lsn: Lsn, did: &Did) -> Result<(), ApplyError> {
        self.removed.insert(removal_key(lsn, did).as_slice(), ())?;
        Ok(())
    }

    /// From a compacted segment.
    pub(super) fn removals_pending(&mut self, removals: &[RepoRemoval]) -> Result<(), ApplyError> {
        for removal in removals {
            self.note_removal(removal.lsn, &removal.did)?;
        }
        Ok(())
    }

    pub(super) fn removals_gone(&mut self, removals: &[RepoRemoval]) -> Result<(), ApplyError> {
        for removal in removals {
            self.removed
                .remove(removal_key(removal.lsn, &removal.did).as_slice())?;
        }
        Ok(())
    }
}
