//! Every event on its own, and every commit against the one before it: what a relay would check, and more.

use std::collections::HashMap;

use bytes::Bytes;
use engine::entry::{Change, Entry};
use engine::repo::car::{CarLimits, CarSlice};
use engine::repo::commit::Commit;
use engine::repo::event::{self, CommitView, Event, SyncView};
use engine::repo::mst::{Change as TreeChange, Tree, invert};
use engine::repo::{Cid, Did, Tid};

use crate::{Report, time};

/// What to do about an event that is not what it should be although its frame is whole.
const DEFECT: &str = "the frame is as it was written, so this is a defect of the writer: report it, and see whether the account's repo needs a new import";

/// The same, where entries before it are damaged already.
const AFTERMATH: &str = "it may follow from the damage above; check again when that is repaired";

/// Where a repo stands.
#[derive(Clone, Copy, Debug)]
struct Head {
    commit: Cid,
    rev: Tid,
    data: Cid,
}

/// What the events so far add up to. Memory: some 200 bytes a repo.
#[derive(Debug, Default)]
pub struct Events {
    heads: HashMap<Did, Head>,
    /// Blocks that were hashed.
    pub blocks: u64,
    /// Commits that were checked.
    pub commits: u64,
    empty_root: Option<Cid>,
    /// Entries were passed over, so that a repo that is not among the heads may have one.
    gap: bool,
}

impl Events {
    /// How many repos there are.
    #[must_use]
    pub fn repos(&self) -> usize {
        self.heads.len()
    }

    /// Entries are passed over, whatever they did.
    pub fn forget(&mut self) {
        self.heads.clear();
        self.gap = true;
    }

    /// Checks the next entry. With `holes`, entries before it are missing or damaged.
    pub fn check(&mut self, entry: &Entry, holes: bool, report: &mut Report<'_>) {
        let place = format!("entry {} (segment {})", entry.lsn, entry.public_at.segment.hex());
        if !entry.public.is_empty()
            && let Err(what) = self.event(entry)
        {
            let advice = if holes { AFTERMATH } else { DEFECT };
            for what in what {
                report.finding(&place, what, advice);
            }
        }
        for change in &entry.changes {
            match change {
                Change::RepoRemoved { did } => {
                    self.heads.remove(did);
                }
                Change::RepoRows { rows, .. } => {
                    for row in rows {
                        if row.cid.matches(&row.block) {
                            self.blocks += 1;
                        } else {
                            let what = format!("record {} of {} does not match its CID", row.cid, row.path);
                            report.finding(&place, what, DEFECT);
                        }
                    }
                }
                Change::RepoHead { did, commit, .. } => match self.head_of(did, commit) {
                    Ok(head) => {
                        self.heads.insert(did.clone(), head);
                    }
                    Err(what) => report.finding(&place, what, DEFECT),
                },
                Change::AccountsMigration { .. }
                | Change::AccountsChangeset { .. }
                | Change::BlobStored { .. }
                | Change::RowsGone { .. }
                | Change::GenerationSwept { .. }
                | Change::ReposNumbered { .. }
                | Change::RemovalsPending { .. }
                | Change::RemovalsGone { .. } => {}
            }
        }
    }

    /// The head that a new generation comes with.
    fn head_of(&mut self, did: &Did, commit: &Bytes) -> Result<Head, String> {
        let commit = Commit::decode(commit.clone()).map_err(|error| error.to_string())?;
        if commit.did() != did {
            return Err(format!(
                "the commit that is to be the head of {did} is of {}",
                commit.did()
            ));
        }
        if let Some(before) = self.heads.get(did)
            && commit.rev() < before.rev
        {
            return Err(format!("the head of {did} goes back to rev {}", commit.rev()));
        }
        self.commits += 1;
        Ok(Head {
            commit: commit.cid(),
            rev: commit.rev(),
            data: commit.data(),
        })
    }

    fn event(&mut self, entry: &Entry) -> Result<(), Vec<String>> {
        let mut wrong = Vec::new();
        let view = event::decode(&entry.public).map_err(|error| vec![error.to_string()])?;
        let (name, seq, at) = match &view {
            Event::Commit(view) => ("commit", view.seq, view.time),
            Event::Sync(view) => ("sync", view.seq, view.time),
            Event::Identity(view) => ("identity", view.seq, view.time),
            Event::Account(view) => ("account", view.seq, view.time),
            Event::Info { .. } | Event::Error { .. } => {
                return Err(vec!["a message that is never logged".to_owned()]);
            }
        };
        if name != entry.kind.name() {
            wrong.push(format!("a #{name} message in a {} entry", entry.kind.name()));
        }
        if seq != entry.lsn.get() || at != time(entry.lsn) {
            wrong.push(format!("its seq {seq} or time {at} is not its place in the log"));
        }
        match view {
            Event::Commit(view) => self.commit(entry, &view, &mut wrong),
            Event::Sync(view) => self.sync(&view, &mut wrong),
            Event::Identity(_) | Event::Account(_) | Event::Info { .. } | Event::Error { .. } => {}
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    fn commit(&mut self, entry: &Entry, view: &CommitView<'_>, wrong: &mut Vec<String>) {
        self.commits += 1;
        let before = self.heads.get(&view.repo).copied();
        let (expected, said) = (
            before.map(|head| (head.rev, head.data)),
            view.since.zip(view.prev_data),
        );
        let is_told = before.is_some() || !self.gap;
        if is_told
            && (expected.map(|(rev, _)| rev) != view.since
                || expected.map(|(_, data)| data) != view.prev_data)
        {
            let show = |at: Option<(Tid, Cid)>| {
                at.map_or("nothing".to_owned(), |(rev, data)| format!("{rev} {data}"))
            };
            wrong.push(format!(
                "it continues {}, but {} is at {}",
                show(said),
                view.repo,
                show(expected)
            ));
        }
        if before.is_some_and(|head| view.rev <= head.rev) {
            wrong.push(format!("its rev {} is not after the one before", view.rev));
        }
        let blocks = self.hash_blocks(view.blocks, &entry.public, wrong);
        let Some(commit) = blocks.get(&view.commit) else {
            wrong.push(format!("its commit {} is not among its blocks", view.commit));
            return;
        };
        let commit = match Commit::decode(commit.clone()) {
            Ok(commit) => commit,
            Err(error) => {
                wrong.push(error.to_string());
                return;
            }
        };
        if commit.did() != &view.repo || commit.rev() != view.rev {
            wrong.push(format!(
                "the signed commit is of {} at {}",
                commit.did(),
                commit.rev()
            ));
        }
        if commit.sig().iter().all(|byte| *byte == 0) {
            wrong.push("the commit is not signed".to_owned());
        }
        for op in view.ops.clone() {
            if let Some(cid) = op.action.cid()
                && !blocks.contains_key(&cid)
            {
                wrong.push(format!("the record {cid} of {} is not among its blocks", op.path));
            }
        }
        let changes: Vec<TreeChange<'_>> = view.ops.clone().map(TreeChange::from).collect();
        let from = view.prev_data.unwrap_or_else(|| self.empty_root());
        match invert(&changes, commit.data(), &blocks) {
            Ok(root) if root == from => {}
            Ok(root) => wrong.push(format!(
                "its operations lead from tree {root}, not from {from}, to {}",
                commit.data()
            )),
            Err(error) => wrong.push(format!(
                "its operations do not lead to its tree {}: {error}",
                commit.data()
            )),
        }
        let head = Head {
            commit: view.commit,
            rev: view.rev,
            data: commit.data(),
        };
        self.heads.insert(view.repo.clone(), head);
    }

    fn sync(&mut self, view: &SyncView<'_>, wrong: &mut Vec<String>) {
        let roots = CarSlice::new(view.blocks, CarLimits::default()).map(|car| car.roots().to_vec());
        let blocks = self.hash_blocks(view.blocks, &Bytes::new(), wrong);
        let root = roots.ok().and_then(|roots| roots.first().copied());
        let commit = root
            .and_then(|root| blocks.get(&root))
            .cloned()
            .map(Commit::decode);
        match (commit, self.heads.get(&view.did)) {
            (Some(Ok(commit)), Some(head)) => {
                if commit.cid() != head.commit || view.rev != head.rev {
                    wrong.push(format!(
                        "it announces {} at {}, but the log has {}",
                        view.did, view.rev, head.rev
                    ));
                }
            }
            (Some(Ok(_)), None) if self.gap => {}
            (Some(Ok(_)), None) => wrong.push(format!(
                "it announces {}, which has no commit in the log",
                view.did
            )),
            (Some(Err(error)), _) => wrong.push(error.to_string()),
            (None, _) => wrong.push("its commit is not among its blocks".to_owned()),
        }
    }

    /// The blocks of an archive that match their CIDs. Those inside of `public` are not copied.
    fn hash_blocks(&mut self, car: &[u8], public: &Bytes, wrong: &mut Vec<String>) -> HashMap<Cid, Bytes> {
        let mut found = HashMap::new();
        let limits = CarLimits {
            verify_hashes: false,
            ..CarLimits::default()
        };
        let slice = match CarSlice::new(car, limits) {
            Ok(slice) => slice,
            Err(error) => {
                wrong.push(error.to_string());
                return found;
            }
        };
        for block in slice {
            match block {
                Ok(block) if block.cid.matches(block.bytes) => {
                    self.blocks += 1;
                    let bytes = if public.is_empty() {
                        Bytes::copy_from_slice(block.bytes)
                    } else {
                        public.slice_ref(block.bytes)
                    };
                    found.insert(block.cid, bytes);
                }
                Ok(block) => wrong.push(format!("block {} does not match its CID", block.cid)),
                Err(error) => wrong.push(error.to_string()),
            }
        }
        found
    }

    fn empty_root(&mut self) -> Cid {
        *self.empty_root.get_or_insert_with(|| Tree::empty().flush().root)
    }
}

/// The first block of a commit's message that is not what its CID says, in bytes whose checksum does not hold.
#[must_use]
pub fn damaged_block(public: &[u8]) -> Option<Cid> {
    let Ok(Event::Commit(view)) = event::decode(public) else {
        return None;
    };
    let limits = CarLimits {
        verify_hashes: false,
        ..CarLimits::default()
    };
    let blocks = CarSlice::new(view.blocks, limits).ok()?;
    let mut blocks = blocks.map_while(Result::ok);
    blocks
        .find(|block| !block.cid.matches(block.bytes))
        .map(|block| block.cid)
}
