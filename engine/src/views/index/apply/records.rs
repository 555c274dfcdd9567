//! The record side of an entry: records, who references which blob, and how many there are.

use std::collections::BTreeSet;

use redb::ReadableTable;

use super::{ApplyError, Repo, Tables, contradiction};
use crate::log::Lsn;
use crate::repo::cbor::blob_refs;
use crate::repo::mst::key_layer;
use crate::repo::{Subject, SubjectKind};
use crate::views::index::rows::{CID_BYTES, Counts, RecordRow, RepoKey, after_prefix, cid_in_key, pack_cid};

/// Changes records of one generation of a repo.
pub(super) struct Records<'a, 't> {
    tables: &'a mut Tables<'t>,
    repo: RepoKey,
    counts: &'a mut Counts,
    lsn: Lsn,
    /// Blobs that lost a reference.
    orphans: BTreeSet<[u8; CID_BYTES]>,
}

impl<'a, 't> Records<'a, 't> {
    pub(super) fn new(
        tables: &'a mut Tables<'t>,
        repo: RepoKey,
        counts: &'a mut Counts,
        lsn: Lsn,
    ) -> Records<'a, 't> {
        Records {
            tables,
            repo,
            counts,
            lsn,
            orphans: BTreeSet::new(),
        }
    }

    pub(super) fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// Blobs that lost a reference and may have none left; see [`Tables::drop_orphans`].
    pub(super) fn finish(self) -> BTreeSet<[u8; CID_BYTES]> {
        self.orphans
    }

    /// Puts a record at a path, and gives the one that was there. `bytes` are the record's.
    pub(super) fn put(
        &mut self,
        path: &str,
        row: RecordRow,
        bytes: &[u8],
    ) -> Result<Option<RecordRow>, ApplyError> {
        let key = self.repo.key(&[path.as_bytes()]);
        let old = self.tables.records.insert(key.as_slice(), &row.encode()?)?;
        let old = old.map(|row| RecordRow::decode(row.value())).transpose()?;
        self.tables.uses.record_added(row.location);
        let refs = blob_refs(bytes).map_err(|error| contradiction(self.lsn, format!("{path}: {error}")))?;
        let blobs = refs.iter().map(|blob| pack_cid(&blob.cid)).collect();
        self.set_blobs(path, row.rev.to_u64(), blobs, old.is_some())?;
        self.set_subject(path, Subject::of(path, bytes), old.is_some())?;
        match &old {
            None => {
                self.counts.records += 1;
                self.tables.add_to_collection(path.as_bytes(), self.repo, 1);
            }
            Some(old) => self.tables.uses.record_gone(old.location),
        }
        Ok(old)
    }

    /// Removes the record at a path, and gives it.
    pub(super) fn remove(&mut self, path: &str) -> Result<Option<RecordRow>, ApplyError> {
        let key = self.repo.key(&[path.as_bytes()]);
        let old = self.tables.records.remove(key.as_slice())?;
        let Some(old) = old.map(|row| RecordRow::decode(row.value())).transpose()? else {
            return Ok(None);
        };
        self.set_blobs(path, 0, BTreeSet::new(), true)?;
        self.set_subject(path, None, true)?;
        self.counts.records = self.counts.records.saturating_sub(1);
        self.tables.add_to_collection(path.as_bytes(), self.repo, -1);
        self.tables.uses.record_gone(old.location);
        let layer = key_layer(path);
        if layer > 0 {
            // The row of the node that began with it, if one did.
            let key = self.repo.node_key(layer, path);
            self.tables.nodes.remove(key.as_slice())?;
        }
        Ok(Some(old))
    }

    /// Makes `now` the blobs that the record at `path` references. `was_there`: a record at this path may have others.
    fn set_blobs(
        &mut self,
        path: &str,
        rev: u64,
        now: BTreeSet<[u8; CID_BYTES]>,
        was_there: bool,
    ) -> Result<(), ApplyError> {
        let (repo, path) = (self.repo, path.as_bytes());
        let mut before = BTreeSet::new();
        if was_there {
            let from = repo.key(&[path, &[0]]);
            for row in self
                .tables
                .record_blobs
                .range(from.as_slice()..after_prefix(&from).as_slice())?
            {
                before.insert(pack_cid(&cid_in_key(row?.0.value(), from.len(), "record_blobs")?));
            }
        }
        for blob in before.difference(&now) {
            self.tables
                .record_blobs
                .remove(repo.key(&[path, &[0], blob]).as_slice())?;
            self.tables.blob_refs.remove(repo.key(&[blob, path]).as_slice())?;
            if !self.tables.is_referenced(repo, blob)? {
                self.counts.blobs_referenced = self.counts.blobs_referenced.saturating_sub(1);
            }
            self.orphans.insert(*blob);
        }
        for blob in &now {
            if !self.tables.is_referenced(repo, blob)? {
                self.counts.blobs_referenced += 1;
            }
            self.tables
                .record_blobs
                .insert(repo.key(&[path, &[0], blob]).as_slice(), ())?;
            self.tables
                .blob_refs
                .insert(repo.key(&[blob, path]).as_slice(), rev)?;
        }
        Ok(())
    }

    /// Makes `now` the subject of the record at `path`. `was_there`: a record at this path may have another.
    fn set_subject(&mut self, path: &str, now: Option<Subject>, was_there: bool) -> Result<(), ApplyError> {
        let Some((kind, rkey)) = path
            .split_once('/')
            .and_then(|(collection, rkey)| Some((SubjectKind::of(collection)?, rkey.as_bytes())))
        else {
            return Ok(());
        };
        let (repo, kind) = (self.repo, [kind as u8]);
        let back = repo.key(&[&kind, rkey]);
        if was_there {
            let before = self
                .tables
                .record_subjects
                .get(back.as_slice())?
                .map(|row| *row.value());
            if before == now.map(|subject| subject.digest) {
                return Ok(());
            }
            if let Some(before) = before {
                self.tables
                    .subjects
                    .remove(repo.key(&[&kind, &before, rkey]).as_slice())?;
            }
            if now.is_none() {
                self.tables.record_subjects.remove(back.as_slice())?;
            }
        }
        if let Some(now) = now {
            self.tables.record_subjects.insert(back.as_slice(), &now.digest)?;
            let key = repo.key(&[&kind, &now.digest, rkey]);
            self.tables.subjects.insert(key.as_slice(), ())?;
        }
        Ok(())
    }
}

impl Tables<'_> {
    fn is_referenced(&self, repo: RepoKey, blob: &[u8; CID_BYTES]) -> Result<bool, ApplyError> {
        let from = repo.key(&[blob]);
        Ok(self
            .blob_refs
            .range(from.as_slice()..after_prefix(&from).as_slice())?
            .next()
            .transpose()?
            .is_some())
    }

    /// Forgets blobs whose last reference is gone: their bytes may be deleted, and whoever wants to reference one again
    /// uploads it again.
    pub(super) fn drop_orphans(
        &mut self,
        repo: &mut Repo,
        orphans: BTreeSet<[u8; CID_BYTES]>,
    ) -> Result<(), ApplyError> {
        for blob in orphans {
            if !self.is_referenced(repo.key(), &blob)? {
                let key = repo.key().number_key(&[&blob]);
                if self.blobs.remove(key.as_slice())?.is_some() {
                    repo.head.blobs_stored = repo.head.blobs_stored.saturating_sub(1);
                }
            }
        }
        Ok(())
    }
}
