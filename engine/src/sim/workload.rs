//! What a process does: commits, uploads, changes of accounts, checkpoints.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Seen;
use super::model::{Account, State};
use super::world::{End, Life, NAMES, World};
use crate::entry::{Change, EntryDraft, EntryKind};
use crate::log::{Epoch, Lsn};
use crate::repo::event::{AccountStatus, encode_account, encode_identity};
use crate::repo::mst::{NodePlace, NodeSource, NodeSourceError, Tree};
use crate::repo::{Cid, Did, Tid};
use crate::views::accounts::tests::{actor, login};
use crate::views::accounts::{self, AccountsError, LockKey, Prepared, queries};
use crate::views::checkpoint::{MANIFEST_NAME, ViewSnapshot};
use crate::views::index::{self, RepoNodes};
use crate::views::testkit::{TestRepo, Writes, record};

const COLLECTIONS: [&str; 3] = ["app.test.like", "app.test.post", "com.example.thing"];

/// The index's nodes as they are applied, for a tree that loads what it touches.
struct Nodes(Option<RepoNodes>);

impl NodeSource for Nodes {
    fn node(&self, cid: &Cid, place: &NodePlace<'_>) -> Result<bytes::Bytes, NodeSourceError> {
        self.0
            .as_ref()
            .map_or(Err(NodeSourceError::Missing), |nodes| nodes.node(cid, place))
    }
}

/// Which entry of the group it is, what it is, whose, and of a commit the rev and the one before.
pub(super) type PlannedEvent = (usize, EntryKind, String, Option<(Tid, Option<Tid>)>);

/// A group under construction, what subscribers see of it, and what it makes of everything.
pub(super) struct Planned {
    pub(super) drafts: Vec<EntryDraft>,
    pub(super) events: Vec<PlannedEvent>,
    pub(super) state: State,
}

impl Planned {
    pub(super) fn add(&mut self, draft: EntryDraft, did: &str) {
        if draft.kind().is_event() {
            let (at, kind) = (self.drafts.len(), draft.kind());
            self.events.push((at, kind, did.to_owned(), None));
        }
        self.drafts.push(draft);
    }
}

impl World {
    pub(super) fn path(&self) -> String {
        format!("{}/{:03}", self.pick(&COLLECTIONS), self.below(24))
    }

    fn blob(&self) -> Vec<u8> {
        format!("blob {}", self.below(6)).into_bytes()
    }

    /// A record, and the blobs that it references.
    pub(super) fn a_record(&self) -> (Vec<u8>, BTreeSet<Cid>) {
        let blobs: Vec<Cid> = (0..self.below(3).saturating_sub(1))
            .map(|_| Cid::for_raw(&self.blob()))
            .collect();
        let width = if self.one_in(10) { 2_000 } else { 1 };
        let text = format!("{:width$}", self.below(9));
        (record(&text, &blobs), blobs.into_iter().collect())
    }

    fn writes(&self) -> Writes {
        let many = if self.one_in(12) { 40 } else { 5 };
        (0..=self.below(many))
            .map(|_| {
                let write = (!self.one_in(3)).then(|| self.a_record());
                (self.path(), write)
            })
            .collect()
    }

    /// Commits of one repo or two, in one group.
    pub(super) fn commit(&mut self, life: &mut Life, seen: &mut Seen) -> Result<(), End> {
        let mut planned = self.plan();
        for _ in 0..=self.below(6) / 5 {
            let name = *self.pick(&NAMES);
            // Nobody writes to a repo that is being imported.
            if !life.importing.contains_key(name) {
                self.commit_to(life, name, &mut planned);
                seen.commits += 1;
            }
        }
        if planned.drafts.is_empty() {
            return Ok(());
        }
        self.append(life, planned, seen).map(drop)
    }

    fn commit_to(&self, life: &Life, name: &str, planned: &mut Planned) {
        let did = format!("did:plc:{name}");
        let repo = planned
            .state
            .repos
            .entry(did.clone())
            .or_insert_with(|| Arc::new(TestRepo::new(name)));
        let repo = Arc::make_mut(repo);
        let nodes = Nodes(life.index.reader().unwrap().nodes(&repo.did).unwrap());
        let since = repo.head.map(|(_, rev, _)| rev);
        if self.one_in(8) {
            // The cache of trees has let go of this one, and of all nodes that are in the views already.
            if life.fold.applied() == self.model.last()
                && planned.drafts.is_empty()
                && let Some((_, _, data)) = repo.head
            {
                repo.tree = Tree::open(data);
            }
        }
        let draft = repo.commit(&self.writes(), &nodes);
        let rev = repo.head.map(|(_, rev, _)| rev).unwrap();
        planned
            .events
            .push((planned.drafts.len(), EntryKind::Commit, did, Some((rev, since))));
        planned.drafts.push(draft);
    }

    pub(super) fn upload(&mut self, life: &mut Life, seen: &mut Seen) -> Result<(), End> {
        let name = *self.pick(&NAMES);
        let mut planned = self.plan();
        let repo = planned
            .state
            .repos
            .entry(format!("did:plc:{name}"))
            .or_insert_with(|| Arc::new(TestRepo::new(name)));
        let change = Arc::make_mut(repo).store(&self.blob());
        planned.drafts.push(EntryDraft::private(vec![change]));
        self.append(life, planned, seen).map(drop)
    }

    /// Signs up, renames, deactivates or deletes an account; what its transaction changed is part of the event's entry.
    pub(super) fn change_account(&mut self, life: &mut Life, seen: &mut Seen) -> Result<(), End> {
        let name = *self.pick(&NAMES);
        let did = format!("did:plc:{name}");
        if life.changing.contains_key(&did) {
            // Its keys are locked until the change before is applied.
            return Ok(());
        }
        let parsed: Did = did.parse().unwrap();
        let mut planned = self.plan();
        let known = planned.state.accounts.get(&did).cloned();
        if known.is_none() && life.importing.contains_key(name) {
            return Ok(());
        }
        let what = self.below(4);
        let handle = format!("{name}{}.test", self.below(1_000));
        let (mut rows, mut locks) = (Vec::new(), None);
        if self.account_rows {
            let prepared = self.prepare_account(life, (&did, &handle), known, what);
            if prepared.changeset.is_empty() {
                // The handle that it has already: there is nothing to log, and its keys are free again.
                return Ok(());
            }
            rows.push(Change::AccountsChangeset {
                bytes: prepared.changeset,
            });
            locks = Some(prepared.locks);
        }
        match (planned.state.accounts.get_mut(&did), what) {
            (None, _) => {
                let account = Account {
                    handle,
                    deactivated: false,
                };
                planned.state.accounts.insert(did.clone(), account);
                planned.add(EntryDraft::identity(encode_identity(&parsed, None), rows), &did);
                planned.add(
                    EntryDraft::account(encode_account(&parsed, None), Vec::new()),
                    &did,
                );
                if planned
                    .state
                    .repos
                    .get(&did)
                    .is_none_or(|repo| repo.head.is_none())
                {
                    self.commit_to(life, name, &mut planned);
                }
            }
            (Some(_), 0) => {
                planned.state.accounts.remove(&did);
                planned
                    .state
                    .repos
                    .insert(did.clone(), Arc::new(TestRepo::new(name)));
                let event = encode_account(&parsed, Some(AccountStatus::Deleted));
                rows.push(Change::RepoRemoved { did: parsed });
                planned.add(EntryDraft::account(event, rows), &did);
                planned.state.staged.retain(|(staged, _)| *staged != did);
                life.importing.remove(name);
                seen.deleted += 1;
            }
            (Some(account), 1) => {
                account.deactivated = !account.deactivated;
                let status = account.deactivated.then_some(AccountStatus::Deactivated);
                planned.add(EntryDraft::account(encode_account(&parsed, status), rows), &did);
            }
            (Some(account), _) => {
                account.handle = handle;
                planned.add(EntryDraft::identity(encode_identity(&parsed, None), rows), &did);
            }
        }
        let last = self.append(life, planned, seen)?;
        if let Some(locks) = locks {
            locks.logged();
            seen.changesets += 1;
        }
        life.changing.insert(did, last);
        seen.accounts += 1;
        Ok(())
    }

    /// The transaction of such a change, prepared by the account database as it is applied.
    fn prepare_account(
        &self,
        life: &Life,
        (did, handle): (&str, &str),
        known: Option<Account>,
        what: u64,
    ) -> Prepared<()> {
        let keys = [LockKey::did(did), LockKey::handle(handle)];
        let (did, handle) = (did.to_owned(), handle.to_owned());
        let outcome = self.runtime.block_on(life.accounts.prepare(keys, move |tx| {
            match (&known, what) {
                (None, _) => {
                    queries::insert_actor(tx, &actor(&did, &handle))?;
                    queries::insert_login(tx, &did, &login(&format!("{handle}@x")))?;
                }
                (Some(_), 0) => drop(queries::delete_account(tx, &did)?),
                (Some(known), 1) if known.deactivated => drop(queries::activate(tx, &did)?),
                (Some(_), 1) => drop(queries::deactivate(tx, &did, "2026-01-01T00:00:00.000Z", None)?),
                (Some(_), _) => drop(queries::set_handle(tx, &did, &handle)?),
            }
            Ok::<_, AccountsError>(())
        }));
        outcome.expect("a transaction on an account that nothing else changes")
    }

    pub(super) fn checkpoint(&mut self, life: &Life, seen: &mut Seen) {
        if life.fold.applied() == Lsn::ZERO {
            return;
        }
        let (index, accounts) = (life.index.reader().unwrap(), life.accounts.snapshot().unwrap());
        let snapshots: [&dyn ViewSnapshot; 2] = [&index, &accounts];
        let taken = life.checkpoints.take(&snapshots, Epoch(self.epoch)).unwrap();
        life.checkpoints.prune(life.config.checkpoints_kept).unwrap();
        self.say(|| format!("  checkpoint at {}", taken.manifest.lsn));
        seen.checkpoints += 1;
        match self.below(6) {
            // As if power had gone before it was whole.
            0 => std::fs::remove_file(taken.dir.join(MANIFEST_NAME)).unwrap(),
            1 => {
                let file =
                    taken
                        .dir
                        .join(*self.pick(&[index::FILE_NAME, accounts::FILE_NAME, MANIFEST_NAME]));
                let len = std::fs::metadata(&file).unwrap().len();
                let file = std::fs::File::options().write(true).open(file).unwrap();
                file.set_len(self.below(len)).unwrap();
            }
            _ => {}
        }
    }
}
