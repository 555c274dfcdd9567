//! Folding entries into the tables. Everything here is a pure function of the entries and the tables: no clock, no
//! chance, and repo numbers are given in log order, so that a rebuilt file answers as the old one did (I4).

use std::collections::{BTreeSet, HashMap};

use redb::{ReadableTable, Table, WriteTransaction};

use super::rows::{
    BlobRow, CID_BYTES, CommitRow, HeadRow, NodeRow, PREFIX_BYTES, RecordRow, RepoKey, after_prefix,
    cid_in_key, collection_key, collection_of, cut, node_digest, pack_cid, record_digest,
};
use super::segments::Uses;
use super::{
    ApplyError, BLOB_REFS, BLOBS, Bytes, COLLECTIONS, HEADS, IndexError, META, META_NEXT_REPO, NODES,
    RECORD_BLOBS, RECORD_CIDS, RECORDS, REPOS,
};
use crate::entry::{Change, Entry, EntryKind};
use crate::log::{Location, Lsn};
use crate::repo::car::{CarLimits, CarSlice};
use crate::repo::cbor::blob_refs;
use crate::repo::commit::Commit;
use crate::repo::event::{self, CommitView, Event, RepoOp};
use crate::repo::mst::NodeData;
use crate::repo::{Cid, Did, Tid};

/// Folds `entries` in order. On an error the transaction must be given up.
pub(super) fn fold(transaction: &WriteTransaction, entries: &[Entry]) -> Result<(), ApplyError> {
    let mut tables = Tables::open(transaction)?;
    for entry in entries {
        if entry.kind == EntryKind::Commit {
            tables.commit(entry)?;
        }
        for change in &entry.changes {
            tables.change(entry.lsn, change)?;
        }
    }
    tables.close()?;
    Ok(())
}

struct Tables<'t> {
    transaction: &'t WriteTransaction,
    repos: Table<'t, &'static str, u32>,
    heads: Table<'t, u32, Bytes>,
    records: Table<'t, Bytes, Bytes>,
    record_cids: Table<'t, Bytes, ()>,
    nodes: Table<'t, Bytes, Bytes>,
    blobs: Table<'t, Bytes, Bytes>,
    blob_refs: Table<'t, Bytes, u64>,
    record_blobs: Table<'t, Bytes, ()>,
    collections: Table<'t, Bytes, u64>,
    next_repo: u32,
    /// Heads that this batch has touched; written at the end, once per repo.
    touched: HashMap<Did, (u32, HeadRow)>,
    /// How much less or more of each segment is in use.
    uses: Uses,
}

/// A repo while an entry changes it: its head is taken out of the batch's map and put back.
struct Repo {
    number: u32,
    head: HeadRow,
}

impl Repo {
    fn key(&self) -> RepoKey {
        RepoKey {
            number: self.number,
            generation: self.head.generation,
        }
    }
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t WriteTransaction) -> Result<Tables<'t>, ApplyError> {
        let next_repo = {
            let meta = transaction.open_table(META)?;
            let row = meta
                .get(META_NEXT_REPO)?
                .map(|row| row.value().try_into().map(u32::from_be_bytes));
            match row {
                Some(Ok(next)) => next,
                _ => return Err(IndexError::Row { table: "meta" }.into()),
            }
        };
        Ok(Tables {
            transaction,
            repos: transaction.open_table(REPOS)?,
            heads: transaction.open_table(HEADS)?,
            records: transaction.open_table(RECORDS)?,
            record_cids: transaction.open_table(RECORD_CIDS)?,
            nodes: transaction.open_table(NODES)?,
            blobs: transaction.open_table(BLOBS)?,
            blob_refs: transaction.open_table(BLOB_REFS)?,
            record_blobs: transaction.open_table(RECORD_BLOBS)?,
            collections: transaction.open_table(COLLECTIONS)?,
            next_repo,
            touched: HashMap::new(),
            uses: Uses::default(),
        })
    }

    fn close(mut self) -> Result<(), ApplyError> {
        for (number, head) in self.touched.values() {
            self.heads.insert(number, head.encode()?.as_slice())?;
        }
        self.uses.write(self.transaction)?;
        super::put_meta(self.transaction, META_NEXT_REPO, &self.next_repo.to_be_bytes())?;
        Ok(())
    }

    /// Takes the repo of `did` out of the tables, if there is one. Give it back with [`Tables::put_back`].
    fn take_known(&mut self, did: &Did) -> Result<Option<Repo>, ApplyError> {
        if let Some((number, head)) = self.touched.remove(did) {
            return Ok(Some(Repo { number, head }));
        }
        let Some(number) = self.repos.get(did.as_str())?.map(|row| row.value()) else {
            return Ok(None);
        };
        let row = self
            .heads
            .get(number)?
            .ok_or(IndexError::Row { table: "heads" })?;
        Ok(Some(Repo {
            number,
            head: HeadRow::decode(row.value())?,
        }))
    }

    /// As [`Tables::take_known`], but gives an unknown DID the next number.
    fn take(&mut self, did: &Did) -> Result<Repo, ApplyError> {
        if let Some(known) = self.take_known(did)? {
            return Ok(known);
        }
        let number = self.next_repo;
        self.next_repo = number
            .checked_add(1)
            .ok_or(IndexError::Unrepresentable { what: "repo number" })?;
        self.repos.insert(did.as_str(), number)?;
        Ok(Repo {
            number,
            head: HeadRow::new(did.clone()),
        })
    }

    fn put_back(&mut self, repo: Repo) {
        self.touched
            .insert(repo.head.did.clone(), (repo.number, repo.head));
    }

    fn change(&mut self, lsn: Lsn, change: &Change) -> Result<(), ApplyError> {
        match change {
            // The account view's business.
            Change::AccountsMigration { .. } | Change::AccountsChangeset { .. } => {}
            Change::NodesDropped { did, cids } => {
                let Some(repo) = self.take_known(did)? else {
                    return Err(contradiction(
                        lsn,
                        format!("it drops nodes of {did}, which has no repo"),
                    ));
                };
                for digest in cids {
                    self.nodes
                        .remove(repo.key().key(&[&cut::<16>(digest)]).as_slice())?;
                }
                self.put_back(repo);
            }
            Change::BlobStored {
                did,
                cid,
                mime,
                size,
                created_at_micros,
            } => {
                let mut repo = self.take(did)?;
                let row = BlobRow {
                    size: *size,
                    created_at_micros: *created_at_micros,
                    mime: mime.clone(),
                };
                let key = repo.key().key(&[&pack_cid(cid)]);
                if self
                    .blobs
                    .insert(key.as_slice(), row.encode().as_slice())?
                    .is_none()
                {
                    repo.head.blobs_stored += 1;
                }
                self.put_back(repo);
            }
            Change::RepoRemoved { did } => {
                if let Some(repo) = self.take_known(did)? {
                    self.remove_repo(&repo)?;
                }
            }
        }
        Ok(())
    }

    fn commit(&mut self, entry: &Entry) -> Result<(), ApplyError> {
        let lsn = entry.lsn;
        let fail = |reason: String| contradiction(lsn, reason);
        let event = match event::decode(&entry.public) {
            Ok(Event::Commit(event)) => event,
            Ok(_) => return Err(fail("its message is no #commit".to_owned())),
            Err(error) => return Err(fail(error.to_string())),
        };
        let blocks = Blocks::read(entry, &event)?;
        let (commit_bytes, commit_at) = blocks.get(&event.commit)?;
        let commit = Commit::decode(entry.public.slice_ref(commit_bytes))
            .map_err(|error| fail(format!("its commit: {error}")))?;
        if *commit.did() != event.repo || commit.rev() != event.rev {
            return Err(fail(
                "its signed commit is of another repo or rev than its envelope".to_owned(),
            ));
        }
        let root = commit.data();

        let mut repo = self.take(&event.repo)?;
        check_chain(&repo.head, &event).map_err(fail)?;

        let mut records = Records {
            tables: self,
            repo: &mut repo,
            rev: event.rev,
            lsn,
            orphans: BTreeSet::new(),
        };
        for op in event.ops.clone() {
            records.op(op, &blocks)?;
        }
        records.drop_orphans()?;

        let record_cids: BTreeSet<Cid> = event.ops.clone().filter_map(|op| op.action.cid()).collect();
        for (cid, at) in &blocks.by_cid {
            if *cid != event.commit && !record_cids.contains(cid) {
                self.node(&repo, cid, blocks.bytes(at)?)
                    .map_err(|error| match error {
                        NodeFailure::NotANode(reason) => {
                            fail(format!("block {cid} is neither record nor node: {reason}"))
                        }
                        NodeFailure::Store(error) => error,
                    })?;
            }
        }
        if self
            .nodes
            .get(repo.key().key(&[&node_digest(&root)]).as_slice())?
            .is_none()
        {
            return Err(fail(format!(
                "the root {} of its tree is neither in it nor known",
                root
            )));
        }

        if let Some(before) = &repo.head.commit {
            self.uses.commit_gone(before.location);
        }
        self.uses.commit_added(commit_at);
        repo.head.commit = Some(CommitRow {
            rev: event.rev,
            commit: event.commit,
            data: root,
            location: commit_at,
        });
        self.put_back(repo);
        Ok(())
    }

    /// Stores a node of a commit's tree. Proof nodes that were there before are left untouched: writing the same bytes
    /// would only dirty pages.
    fn node(&mut self, repo: &Repo, cid: &Cid, block: &[u8]) -> Result<(), NodeFailure> {
        let data = NodeData::decode(block).map_err(|error| NodeFailure::NotANode(error.to_string()))?;
        let row = match (data.layer(), data.entries.first(), data.left) {
            (Some(0), Some(first), _) => NodeRow::Leaf(first.key.as_bytes()),
            (None, None, None) => NodeRow::Leaf(&[]),
            _ => NodeRow::Interior(block),
        }
        .encode();
        let key = repo.key().key(&[&node_digest(cid)]);
        let known = self
            .nodes
            .get(key.as_slice())?
            .is_some_and(|known| known.value() == row.as_slice());
        if !known {
            self.nodes.insert(key.as_slice(), row.as_slice())?;
        }
        Ok(())
    }

    fn add_to_collection(&mut self, path: &[u8], number: u32, by: i64) -> Result<(), ApplyError> {
        let key = collection_key(collection_of(path), number);
        let before = self.collections.get(key.as_slice())?.map_or(0, |row| row.value());
        match before.saturating_add_signed(by) {
            0 => self.collections.remove(key.as_slice())?,
            after => self.collections.insert(key.as_slice(), after)?,
        };
        Ok(())
    }

    fn remove_repo(&mut self, repo: &Repo) -> Result<(), ApplyError> {
        let (from, to) = (repo.key().prefix().to_vec(), repo.key().end());
        let range = from.as_slice()..to.as_slice();

        let mut collections = Vec::new();
        let mut at = from.clone();
        loop {
            let Some(row) = self.records.range(at.as_slice()..to.as_slice())?.next() else {
                break;
            };
            let path = row?.0.value().get(PREFIX_BYTES..).unwrap_or_default().to_vec();
            let collection = collection_of(&path).to_vec();
            at = after_prefix(&repo.key().key(&[&collection, b"/"]));
            collections.push(collection);
        }
        for collection in collections {
            self.collections
                .remove(collection_key(&collection, repo.number).as_slice())?;
        }

        let mut damaged = false;
        let uses = &mut self.uses;
        self.records
            .retain_in(range.clone(), |_, row| match RecordRow::decode(row) {
                Ok(row) => {
                    uses.record_gone(row.location);
                    false
                }
                Err(_) => {
                    damaged = true;
                    false
                }
            })?;
        if damaged {
            return Err(IndexError::Row { table: "records" }.into());
        }
        if let Some(commit) = &repo.head.commit {
            self.uses.commit_gone(commit.location);
        }
        self.record_cids.retain_in(range.clone(), |_, ()| false)?;
        self.nodes.retain_in(range.clone(), |_, _| false)?;
        self.blobs.retain_in(range.clone(), |_, _| false)?;
        self.blob_refs.retain_in(range.clone(), |_, _| false)?;
        self.record_blobs.retain_in(range, |_, ()| false)?;
        self.heads.remove(repo.number)?;
        self.repos.remove(repo.head.did.as_str())?;
        Ok(())
    }
}

enum NodeFailure {
    NotANode(String),
    Store(ApplyError),
}

impl From<redb::StorageError> for NodeFailure {
    fn from(source: redb::StorageError) -> NodeFailure {
        NodeFailure::Store(source.into())
    }
}

fn contradiction(lsn: Lsn, reason: String) -> ApplyError {
    ApplyError::Contradiction { lsn, reason }
}

/// A commit continues the one that is the head: nothing between them is missing.
fn check_chain(head: &HeadRow, event: &CommitView<'_>) -> Result<(), String> {
    match (&head.commit, event.since) {
        (None, None) => Ok(()),
        (None, Some(since)) => Err(format!(
            "it continues {} from rev {since}, but there is no such repo",
            head.did
        )),
        (Some(at), None) => Err(format!(
            "it starts {}, which is at rev {} already",
            head.did, at.rev
        )),
        (Some(at), Some(since)) if since != at.rev => Err(format!(
            "it continues {} from rev {since}, but the head is {}",
            head.did, at.rev
        )),
        (Some(at), Some(_)) if event.prev_data != Some(at.data) => Err(format!(
            "it continues {} from another tree than the head's",
            head.did
        )),
        (Some(at), Some(_)) if event.rev <= at.rev => Err(format!(
            "its rev {} does not follow {} of {}",
            event.rev, at.rev, head.did
        )),
        (Some(_), Some(_)) => Ok(()),
    }
}

/// Where the blocks of a commit's archive lie: in the entry's bytes, and in the log.
struct Blocks<'e> {
    entry: &'e Entry,
    by_cid: HashMap<Cid, std::ops::Range<usize>>,
}

impl<'e> Blocks<'e> {
    fn read(entry: &'e Entry, event: &CommitView<'_>) -> Result<Blocks<'e>, ApplyError> {
        let mut by_cid = HashMap::new();
        let fail = |error| contradiction(entry.lsn, format!("its archive: {error}"));
        // The frame's checksum vouches for the blocks; `verify` is there to compare each with its CID.
        let limits = CarLimits {
            verify_hashes: false,
            ..CarLimits::default()
        };
        for block in CarSlice::new(event.blocks, limits).map_err(fail)? {
            let block = block.map_err(fail)?;
            let start = event.blocks_at + block.offset;
            by_cid.insert(block.cid, start..start + block.bytes.len());
        }
        Ok(Blocks { entry, by_cid })
    }

    fn bytes(&self, range: &std::ops::Range<usize>) -> Result<&'e [u8], ApplyError> {
        self.entry
            .public
            .get(range.clone())
            .ok_or_else(|| contradiction(self.entry.lsn, "a block lies outside of its message".to_owned()))
    }

    fn get(&self, cid: &Cid) -> Result<(&'e [u8], Location), ApplyError> {
        let range = self
            .by_cid
            .get(cid)
            .ok_or_else(|| contradiction(self.entry.lsn, format!("block {cid} is not in its archive")))?;
        let at = u32::try_from(range.start)
            .ok()
            .zip(u32::try_from(range.len()).ok());
        let location = at.and_then(|(at, len)| self.entry.public_at.part(at, len));
        Ok((
            self.bytes(range)?,
            location.ok_or(IndexError::Unrepresentable { what: "block" })?,
        ))
    }
}

/// The record side of one commit.
struct Records<'a, 't> {
    tables: &'a mut Tables<'t>,
    repo: &'a mut Repo,
    rev: Tid,
    lsn: Lsn,
    /// Blobs that lost a reference in this commit; those that end without any are forgotten.
    orphans: BTreeSet<[u8; CID_BYTES]>,
}

impl Records<'_, '_> {
    fn op(&mut self, op: RepoOp<'_>, blocks: &Blocks<'_>) -> Result<(), ApplyError> {
        let path = op.path.as_bytes();
        let key = self.repo.key().key(&[path]);
        let old = match op.action.cid() {
            Some(cid) => {
                let (bytes, location) = blocks.get(&cid)?;
                let row = RecordRow {
                    cid,
                    rev: self.rev,
                    location,
                }
                .encode()?;
                let old = self.tables.records.insert(key.as_slice(), row.as_slice())?;
                let old = old.map(|row| RecordRow::decode(row.value())).transpose()?;
                self.tables.uses.record_added(location);
                self.tables
                    .record_cids
                    .insert(self.repo.key().key(&[&record_digest(&cid), path]).as_slice(), ())?;
                let refs = blob_refs(bytes)
                    .map_err(|error| contradiction(self.lsn, format!("{}: {error}", op.path)))?;
                self.set_blobs(path, refs.iter().map(|blob| pack_cid(&blob.cid)).collect())?;
                if old.is_none() {
                    self.repo.head.records += 1;
                    self.tables.add_to_collection(path, self.repo.number, 1)?;
                }
                old
            }
            None => {
                let old = self.tables.records.remove(key.as_slice())?;
                let old = old.map(|row| RecordRow::decode(row.value())).transpose()?;
                if old.is_none() {
                    return Err(contradiction(
                        self.lsn,
                        format!("it deletes {}, which is not there", op.path),
                    ));
                }
                self.set_blobs(path, BTreeSet::new())?;
                self.repo.head.records = self.repo.head.records.saturating_sub(1);
                self.tables.add_to_collection(path, self.repo.number, -1)?;
                old
            }
        };
        if let Some(old) = &old {
            self.tables.uses.record_gone(old.location);
        }
        if old.map(|row| row.cid) != op.action.prev() {
            return Err(contradiction(
                self.lsn,
                format!("it says that {} was another record before", op.path),
            ));
        }
        if let Some(old) = old
            && op.action.cid() != Some(old.cid)
        {
            let key = self.repo.key().key(&[&record_digest(&old.cid), path]);
            self.tables.record_cids.remove(key.as_slice())?;
        }
        Ok(())
    }

    /// Makes `now` the blobs that the record at `path` references.
    fn set_blobs(&mut self, path: &[u8], now: BTreeSet<[u8; CID_BYTES]>) -> Result<(), ApplyError> {
        let repo = self.repo.key();
        let from = repo.key(&[path, &[0]]);
        let mut before = BTreeSet::new();
        for row in self
            .tables
            .record_blobs
            .range(from.as_slice()..after_prefix(&from).as_slice())?
        {
            before.insert(pack_cid(&cid_in_key(row?.0.value(), from.len(), "record_blobs")?));
        }
        for blob in before.difference(&now) {
            self.tables
                .record_blobs
                .remove(repo.key(&[path, &[0], blob]).as_slice())?;
            self.tables.blob_refs.remove(repo.key(&[blob, path]).as_slice())?;
            if !self.is_referenced(blob)? {
                self.repo.head.blobs_referenced = self.repo.head.blobs_referenced.saturating_sub(1);
            }
            self.orphans.insert(*blob);
        }
        for blob in &now {
            if !self.is_referenced(blob)? {
                self.repo.head.blobs_referenced += 1;
            }
            self.tables
                .record_blobs
                .insert(repo.key(&[path, &[0], blob]).as_slice(), ())?;
            self.tables
                .blob_refs
                .insert(repo.key(&[blob, path]).as_slice(), self.rev.to_u64())?;
        }
        Ok(())
    }

    fn is_referenced(&self, blob: &[u8; CID_BYTES]) -> Result<bool, ApplyError> {
        let from = self.repo.key().key(&[blob]);
        Ok(self
            .tables
            .blob_refs
            .range(from.as_slice()..after_prefix(&from).as_slice())?
            .next()
            .transpose()?
            .is_some())
    }

    /// Forgets blobs whose last reference this commit took away: their bytes may be deleted, and whoever wants to
    /// reference one again uploads it again.
    fn drop_orphans(mut self) -> Result<(), ApplyError> {
        for blob in std::mem::take(&mut self.orphans) {
            if !self.is_referenced(&blob)? {
                let key = self.repo.key().key(&[&blob]);
                if self.tables.blobs.remove(key.as_slice())?.is_some() {
                    self.repo.head.blobs_stored = self.repo.head.blobs_stored.saturating_sub(1);
                }
            }
        }
        Ok(())
    }
}
