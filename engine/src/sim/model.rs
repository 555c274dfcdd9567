//! What the engine should know: plain maps, one copy for every group of the log.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::liar::LyingStorage;
use crate::entry::EntryKind;
use crate::log::{Location, LogReader, Lsn, ReadError};
use crate::repo::mst::{BuiltNode, Tree, build_from_sorted};
use crate::repo::{Cid, Commit, Tid};
use crate::views::index::IndexReader;
use crate::views::testkit::TestRepo;

/// An account as its row should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub handle: String,
    pub deactivated: bool,
}

/// Everything at one LSN.
#[derive(Clone, Default)]
pub struct State {
    pub repos: BTreeMap<String, Arc<TestRepo>>,
    pub accounts: BTreeMap<String, Account>,
    /// Generations that imports have begun and not ended, by DID.
    pub staged: BTreeSet<(String, u32)>,
    /// Whether the account database has its schema.
    pub migrated: bool,
}

/// An event that subscribers should see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedEvent {
    pub lsn: Lsn,
    pub kind: EntryKind,
    pub did: String,
    /// A commit's rev, and the one before.
    pub revs: Option<(Tid, Option<Tid>)>,
}

/// One group of the log.
pub struct Group {
    pub last: Lsn,
    pub state: State,
    pub events: Vec<ExpectedEvent>,
}

/// The groups that are not known to be lost, and what came of each.
#[derive(Default)]
pub struct Model {
    pub groups: Vec<Group>,
}

impl Model {
    /// As of the last group.
    pub fn now(&self) -> State {
        self.groups
            .last()
            .map(|group| group.state.clone())
            .unwrap_or_default()
    }

    /// As of `lsn`; `None` if no group ends there.
    pub fn at(&self, lsn: Lsn) -> Option<State> {
        if lsn == Lsn::ZERO {
            return Some(State::default());
        }
        let at = self.groups.binary_search_by_key(&lsn, |group| group.last).ok()?;
        Some(self.groups[at].state.clone())
    }

    pub fn last(&self) -> Lsn {
        self.groups.last().map_or(Lsn::ZERO, |group| group.last)
    }

    /// A crash has left the groups up to `last`; those that were durable must be among them. How many are lost.
    pub fn survive(&mut self, last: Lsn, durable: Lsn) -> usize {
        assert!(last >= durable, "I1: durable up to {durable}, there up to {last}");
        assert!(
            self.at(last).is_some(),
            "I3: the log ends at {last}, within a group"
        );
        let kept = self.groups.partition_point(|group| group.last <= last);
        let lost = self.groups.len() - kept;
        self.groups.truncate(kept);
        // A new process has no tree in memory.
        if let Some(group) = self.groups.last_mut() {
            for repo in group.state.repos.values_mut() {
                if let Some((_, _, data)) = repo.head {
                    Arc::make_mut(repo).tree = Tree::open(data);
                }
            }
        }
        lost
    }

    /// The events of the groups after `floor` and up to `lsn`.
    pub fn events_between(&self, floor: Lsn, lsn: Lsn) -> Vec<ExpectedEvent> {
        let groups = self.groups.iter().skip_while(|group| group.last <= floor);
        let groups = groups.take_while(|group| group.last <= lsn);
        groups.flat_map(|group| group.events.iter().cloned()).collect()
    }
}

/// What is known about answers: whose signatures were verified before, and whether the log's disk may have lied.
#[derive(Default)]
pub struct Judge {
    verified: RefCell<BTreeSet<Cid>>,
    /// The disk of this life, if it is one that lies.
    pub(super) liar: Option<LyingStorage>,
    /// Whether a disk of before has.
    pub(super) lied_before: bool,
    /// Answers that were refused because of a lie.
    pub refused: Cell<u64>,
}

impl Judge {
    /// Whether the disk has lied.
    pub fn lied(&self) -> bool {
        self.lied_before || self.liar.as_ref().is_some_and(|liar| liar.told().is_some())
    }

    /// A refusal is right where the disk fails for good in this life, and where it has lied.
    pub fn may_refuse(&self, error: &ReadError) -> bool {
        match error {
            ReadError::Io { .. } => true,
            ReadError::Corrupt { .. } if self.lied() => {
                self.refused.set(self.refused.get() + 1);
                true
            }
            _ => false,
        }
    }

    /// Bytes of the log, unless they are refused: by the log, or by who compares them with their CID.
    fn read(&self, log: &LogReader, at: Location, cid: Cid) -> Option<Bytes> {
        match log.read_at(at) {
            Ok(bytes) if cid.matches(&bytes) => Some(bytes),
            Ok(_) => {
                assert!(self.lied(), "other bytes at {at:?} than those of {cid}");
                self.refused.set(self.refused.get() + 1);
                None
            }
            Err(error) if self.may_refuse(&error) => None,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Every answer about one repo, its signed commit, and the tree that its records make.
pub fn check_repo(repo: &TestRepo, reader: &IndexReader, log: &LogReader, judge: &Judge) {
    repo.check(reader);
    let Some((commit_cid, rev, data)) = repo.head else {
        return;
    };
    let head = reader.repo(&repo.did).unwrap().unwrap();
    let Some(bytes) = judge.read(log, head.commit_location, commit_cid) else {
        return;
    };
    let commit = Commit::decode(bytes).unwrap();
    if judge.verified.borrow_mut().insert(commit.cid()) {
        commit.verify(&repo.public_key()).unwrap();
    }
    assert_eq!(
        (commit.cid(), commit.rev(), commit.data()),
        (commit_cid, rev, data)
    );
    for (path, model) in &repo.records {
        let row = reader.record(&repo.did, &path.parse().unwrap()).unwrap().unwrap();
        let Some(bytes) = judge.read(log, row.location, model.cid) else {
            return;
        };
        assert_eq!(*bytes, *model.bytes, "the record at {path}");
    }
    let entries = repo
        .records
        .iter()
        .map(|(path, model)| (path.as_str(), model.cid));
    let built = build_from_sorted(entries, |_: BuiltNode| Ok::<_, std::convert::Infallible>(())).unwrap();
    assert_eq!(
        built, data,
        "the records of {} make another tree than its commit says",
        repo.did
    );
}
