//! Which records of a repo are about the same.

use super::reader::IndexReader;
use super::rows::{after_prefix, text_in_key};
use super::{IndexError, SUBJECTS};
use crate::repo::{Did, Subject};

impl IndexReader {
    /// The keys of the records of a repo about `subject`, all in the collection of its kind, at most `limit`. Cost: the answer.
    ///
    /// # Errors
    /// See [`IndexReader::repo`].
    pub fn about(&self, did: &Did, subject: &Subject, limit: usize) -> Result<Vec<String>, IndexError> {
        let Some(repo) = self.key(did)? else {
            return Ok(Vec::new());
        };
        let from = repo.key(&[&[subject.kind as u8], &subject.digest]);
        let subjects = self.transaction().open_table(SUBJECTS)?;
        let mut found = Vec::new();
        for row in subjects
            .range(from.as_slice()..after_prefix(&from).as_slice())?
            .take(limit)
        {
            found.push(text_in_key(row?.0.value(), from.len(), "subjects")?.to_owned());
        }
        Ok(found)
    }
}
