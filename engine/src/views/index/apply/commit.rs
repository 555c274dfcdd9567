//! One `#commit` entry: the records of its operations, the nodes of its archive, the head.

use std::collections::{BTreeSet, HashMap};

use redb::ReadableTable;

use super::records::Records;
use super::{ApplyError, Tables, contradiction};
use crate::entry::Entry;
use crate::log::Location;
use crate::repo::car::{CarLimits, CarSlice};
use crate::repo::commit::Commit;
use crate::repo::event::{self, CommitView, Event, RepoOp};
use crate::repo::mst::NodeData;
use crate::repo::{Cid, Tid};
use crate::views::index::IndexError;
use crate::views::index::rows::{CommitRow, HeadRow, NodeRow, RecordRow, RepoKey};

impl Tables<'_> {
    pub(super) fn commit(&mut self, entry: &Entry) -> Result<(), ApplyError> {
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

        let key = repo.key();
        let mut records = Records::new(self, key, &mut repo.head.counts, lsn);
        for op in event.ops.clone() {
            op_on(&mut records, op, &event, &blocks)?;
        }
        let orphans = records.finish();
        self.drop_orphans(&mut repo, orphans)?;

        let deletes = event.ops.clone().any(|op| op.action.cid().is_none());
        let record_cids: BTreeSet<Cid> = event.ops.clone().filter_map(|op| op.action.cid()).collect();
        for (cid, at) in &blocks.by_cid {
            if *cid != event.commit && !record_cids.contains(cid) {
                self.node(repo.key(), event.rev, blocks.bytes(at)?, deletes)
                    .map_err(|error| match error {
                        NodeFailure::NotANode(reason) => {
                            fail(format!("block {cid} is neither record nor node: {reason}"))
                        }
                        NodeFailure::Store(error) => error,
                    })?;
            }
        }
        let known = repo.head.commit.is_some_and(|at| at.data == root);
        if !known && !blocks.by_cid.contains_key(&root) {
            return Err(fail(format!("the root {root} of its tree is not in it")));
        }

        if let Some(before) = &repo.head.commit {
            self.uses.commit_gone(before.location);
        } else {
            repo.head.base = event.rev.to_u64();
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

    /// Stores a node of a commit's tree. Nodes of the proof that were there before are left untouched: they are not of this
    /// commit, and writing the same bytes would only dirty pages.
    ///
    /// A row under any other of its keys is of a node that is gone. There can be none if the node before began with the same
    /// key and the commit deletes nothing: what parts nodes is keys between them.
    fn node(&mut self, repo: RepoKey, rev: Tid, block: &[u8], deletes: bool) -> Result<(), NodeFailure> {
        let data = NodeData::decode_checked_before(block)
            .map_err(|error| NodeFailure::NotANode(error.to_string()))?;
        let (Some(layer @ 1..), Some((first, others))) = (data.layer(), data.entries.split_first()) else {
            return Ok(());
        };
        let key = repo.node_key(layer, &first.key);
        let known = match self.nodes.get(key.as_slice())? {
            Some(known) if NodeRow::decode(known.value())?.block == block => return Ok(()),
            known => known.is_some(),
        };
        let row = NodeRow {
            rev: rev.to_u64(),
            block,
        };
        self.nodes.insert(key.as_slice(), row.encode().as_slice())?;
        if deletes || !known {
            for other in others {
                let key = repo.node_key(layer, &other.key);
                self.nodes.remove(key.as_slice())?;
            }
        }
        Ok(())
    }
}

pub(super) enum NodeFailure {
    NotANode(String),
    Store(ApplyError),
}

impl From<IndexError> for NodeFailure {
    fn from(source: IndexError) -> NodeFailure {
        NodeFailure::Store(source.into())
    }
}

impl From<redb::StorageError> for NodeFailure {
    fn from(source: redb::StorageError) -> NodeFailure {
        NodeFailure::Store(source.into())
    }
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

/// The record side of one operation.
fn op_on(
    records: &mut Records<'_, '_>,
    op: RepoOp<'_>,
    event: &CommitView<'_>,
    blocks: &Blocks<'_>,
) -> Result<(), ApplyError> {
    let old = match op.action.cid() {
        Some(cid) => {
            let (bytes, location) = blocks.get(&cid)?;
            let row = RecordRow {
                cid,
                rev: event.rev,
                location,
            };
            records.put(op.path, row, bytes)?
        }
        None => {
            let old = records.remove(op.path)?;
            if old.is_none() {
                let what = format!("it deletes {}, which is not there", op.path);
                return Err(contradiction(records.lsn(), what));
            }
            old
        }
    };
    if old.map(|row| row.cid) != op.action.prev() {
        let what = format!("it says that {} was another record before", op.path);
        return Err(contradiction(records.lsn(), what));
    }
    Ok(())
}
