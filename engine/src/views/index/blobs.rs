//! Questions about blobs: what was uploaded, what records reference, what is missing.

use super::reader::{IndexReader, path_in_key};
use super::rows::{BlobRow, CID_BYTES, NUMBER_BYTES, PREFIX_BYTES, after_prefix, cid_in_key, pack_cid};
use super::{BLOB_REFS, BLOBS, IndexError};
use crate::repo::{Cid, Did, RepoPath, Tid};

/// A blob that records reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobItem {
    /// Its CID.
    pub cid: Cid,
    /// The newest rev that wrote a reference to it.
    pub rev: Tid,
}

/// A blob that a record references and nobody has uploaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingBlob {
    /// Its CID.
    pub cid: Cid,
    /// A record that references it.
    pub path: RepoPath,
}

impl IndexReader {
    /// An uploaded blob, temporary or permanent.
    ///
    /// # Errors
    /// See [`IndexReader::repo`].
    pub fn blob(&self, did: &Did, cid: &Cid) -> Result<Option<BlobRow>, IndexError> {
        let Some(repo) = self.key(did)? else {
            return Ok(None);
        };
        let blobs = self.transaction().open_table(BLOBS)?;
        let row = blobs.get(repo.number_key(&[&pack_cid(cid)]).as_slice())?;
        row.map(|row| BlobRow::decode(row.value())).transpose()
    }

    /// Uploaded blobs after `after`, in the order of their packed CIDs, at most `limit`: what a sweep for temporary
    /// blobs that were never referenced walks over.
    ///
    /// # Errors
    /// See [`IndexReader::repo`].
    pub fn stored_blobs(
        &self,
        did: &Did,
        after: Option<&Cid>,
        limit: usize,
    ) -> Result<Vec<(Cid, BlobRow)>, IndexError> {
        let Some(repo) = self.key(did)? else {
            return Ok(Vec::new());
        };
        let all = repo.number_key(&[]);
        let from = after.map_or_else(
            || all.clone(),
            |cid| after_prefix(&repo.number_key(&[&pack_cid(cid)])),
        );
        let blobs = self.transaction().open_table(BLOBS)?;
        let mut found = Vec::new();
        for row in blobs
            .range(from.as_slice()..after_prefix(&all).as_slice())?
            .take(limit)
        {
            let (key, value) = row?;
            found.push((
                cid_in_key(key.value(), NUMBER_BYTES, "blobs")?,
                BlobRow::decode(value.value())?,
            ));
        }
        Ok(found)
    }

    /// Whether any record of this repo references the blob, which makes it permanent.
    ///
    /// # Errors
    /// See [`IndexReader::repo`].
    pub fn is_referenced(&self, did: &Did, cid: &Cid) -> Result<bool, IndexError> {
        Ok(!self.blob_refs(did, cid, 1)?.is_empty())
    }

    /// Records that reference the blob, in path order, at most `limit`.
    ///
    /// # Errors
    /// See [`IndexReader::repo`].
    pub fn blob_refs(&self, did: &Did, cid: &Cid, limit: usize) -> Result<Vec<RepoPath>, IndexError> {
        let Some(repo) = self.key(did)? else {
            return Ok(Vec::new());
        };
        let from = repo.key(&[&pack_cid(cid)]);
        let refs = self.transaction().open_table(BLOB_REFS)?;
        let mut found = Vec::new();
        for row in refs
            .range(from.as_slice()..after_prefix(&from).as_slice())?
            .take(limit)
        {
            found.push(path_in_key(row?.0.value(), from.len(), "blob_refs")?);
        }
        Ok(found)
    }

    /// Blobs that records reference, after `after` in the order of packed CIDs, at most `limit`. With `since`, only
    /// those with a reference written after that rev.
    ///
    /// # Errors
    /// See [`IndexReader::repo`].
    pub fn list_blobs(
        &self,
        did: &Did,
        since: Option<Tid>,
        after: Option<&Cid>,
        limit: usize,
    ) -> Result<Vec<BlobItem>, IndexError> {
        let mut found: Vec<BlobItem> = Vec::new();
        self.each_ref(did, after, |cid, rev, _| {
            if since.is_some_and(|since| rev <= since) {
                return Ok(true);
            }
            let is_full = found.len() >= limit;
            match found.last_mut() {
                Some(last) if last.cid == cid => last.rev = last.rev.max(rev),
                _ if is_full => return Ok(false),
                _ => found.push(BlobItem { cid, rev }),
            }
            Ok(true)
        })?;
        Ok(found)
    }

    /// Blobs that records reference and nobody has uploaded, after `after` in the order of packed CIDs, at most `limit`.
    ///
    /// # Errors
    /// See [`IndexReader::repo`].
    pub fn missing_blobs(
        &self,
        did: &Did,
        after: Option<&Cid>,
        limit: usize,
    ) -> Result<Vec<MissingBlob>, IndexError> {
        let Some(repo) = self.key(did)? else {
            return Ok(Vec::new());
        };
        let blobs = self.transaction().open_table(BLOBS)?;
        let mut found: Vec<MissingBlob> = Vec::new();
        let mut last = None;
        self.each_ref(did, after, |cid, _, path| {
            if last.replace(cid) == Some(cid) {
                return Ok(true);
            }
            if blobs
                .get(repo.number_key(&[&pack_cid(&cid)]).as_slice())?
                .is_none()
            {
                if found.len() >= limit {
                    return Ok(false);
                }
                found.push(MissingBlob {
                    cid,
                    path: path_in_key(path, 0, "blob_refs")?,
                });
            }
            Ok(true)
        })?;
        Ok(found)
    }

    /// Calls `visit` with each reference to a blob until it answers `false`.
    fn each_ref(
        &self,
        did: &Did,
        after: Option<&Cid>,
        mut visit: impl FnMut(Cid, Tid, &[u8]) -> Result<bool, IndexError>,
    ) -> Result<(), IndexError> {
        let Some(repo) = self.key(did)? else { return Ok(()) };
        let from = after.map_or_else(
            || repo.prefix().to_vec(),
            |cid| after_prefix(&repo.key(&[&pack_cid(cid)])),
        );
        let refs = self.transaction().open_table(BLOB_REFS)?;
        for row in refs.range(from.as_slice()..repo.end().as_slice())? {
            let (key, rev) = row?;
            let cid = cid_in_key(key.value(), PREFIX_BYTES, "blob_refs")?;
            let path = key
                .value()
                .get(PREFIX_BYTES + CID_BYTES..)
                .ok_or(IndexError::Row { table: "blob_refs" })?;
            if !visit(cid, Tid::from_u64(rev.value()), path)? {
                break;
            }
        }
        Ok(())
    }
}
