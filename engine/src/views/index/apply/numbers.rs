//! Repos take the numbers that they had before their history was compacted: numbers are in answers, as cursors.

use redb::ReadableTable;

use super::{ApplyError, Repo, Tables, contradiction};
use crate::entry::RepoNumber;
use crate::log::Lsn;
use crate::views::index::rows::{Counts, HeadRow};

impl Tables<'_> {
    pub(super) fn numbered(&mut self, lsn: Lsn, next: u32, repos: &[RepoNumber]) -> Result<(), ApplyError> {
        for repo in repos {
            self.number(lsn, next, repo)?;
        }
        self.next_repo = self.next_repo.max(next);
        Ok(())
    }

    fn number(&mut self, lsn: Lsn, next: u32, repo: &RepoNumber) -> Result<(), ApplyError> {
        let small = |generation: u32| {
            u16::try_from(generation)
                .map_err(|_| contradiction(lsn, format!("there is no generation {generation}")))
        };
        let taken = repo.number >= next || self.heads.get(repo.number)?.is_some();
        if taken || self.take_known(&repo.did)?.is_some() {
            let what = format!("{} cannot have the number {}", repo.did, repo.number);
            return Err(contradiction(lsn, what));
        }
        self.repos.insert(repo.did.as_str(), repo.number)?;
        let numbered = Repo {
            number: repo.number,
            head: HeadRow {
                generation: small(repo.generation)?,
                newest: small(repo.newest)?,
                ..HeadRow::new(repo.did.clone())
            },
        };
        for generation in &repo.staged {
            let key = numbered.generation(small(*generation)?);
            self.generations
                .insert(key.prefix().as_slice(), Counts::default().encode().as_slice())?;
        }
        self.put_back(numbered);
        Ok(())
    }
}
