//! All records of a repo in one pass, for exports.

use redb::Range;

use super::reader::IndexReader;
use super::rows::{PREFIX_BYTES, RecordRow, text_in_key};
use super::{IndexError, RecordBytes};
use crate::repo::Did;

/// A repo's records in path order, paths as they are stored; see [`IndexReader::record_rows`].
pub struct RecordRows(Option<(Range<'static, &'static [u8], RecordBytes>, IndexReader)>);

impl std::fmt::Debug for RecordRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordRows").finish_non_exhaustive()
    }
}

impl Iterator for RecordRows {
    type Item = Result<(String, RecordRow), IndexError>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = self.0.as_mut()?.0.next()?;
        Some(row.map_err(IndexError::from).and_then(|(key, value)| {
            let path = text_in_key(key.value(), PREFIX_BYTES, "records")?;
            Ok((path.to_owned(), RecordRow::decode(value.value())?))
        }))
    }
}

impl IndexReader {
    /// Every record of `did` in the order of the tree. Other than [`IndexReader::records_from`] it does not check that
    /// paths are ones: for those who compare the rows with a tree. The iterator keeps its snapshot alive.
    ///
    /// # Errors
    /// See [`IndexReader::repo`].
    pub fn record_rows(&self, did: &Did) -> Result<RecordRows, IndexError> {
        let Some(repo) = self.key(did)? else {
            return Ok(RecordRows(None));
        };
        let records = self.records();
        let rows = records.range(repo.prefix().as_slice()..repo.end().as_slice())?;
        Ok(RecordRows(Some((rows, self.clone()))))
    }
}
