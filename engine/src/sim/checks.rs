//! What must hold, whatever happened: the views, the firehose and a rebuild against the model.

use std::collections::BTreeMap;

use super::Seen;
use super::imports::check_staged;
use super::model::{Account, ExpectedEvent, State, check_repo};
use super::world::{CACHE_BYTES, LOG_ID, Life, NAMES, World};
use crate::entry::EntryKind;
use crate::log::Lsn;
use crate::repo::Cid;
use crate::repo::event::{Event, decode};
use crate::views::View;
use crate::views::accounts::tests::{dump, dump_view};
use crate::views::accounts::{Accounts, AccountsError, AccountsView, queries};
use crate::views::driver::{DriverConfig, DriverError, Fold};
use crate::views::index::{self, IndexReader, IndexView};

/// Applies everything up to `limit`, to views that nobody opens again.
pub(super) fn fold_up_to(fold: &mut Fold<'_>, limit: Lsn) -> Result<(), DriverError> {
    while fold.step(limit)?.entries > 0 {}
    Ok(())
}

impl World {
    /// Batches for views that are made to be compared: mostly the whole log in a few.
    pub(super) fn batches_for_once(&self) -> DriverConfig {
        let most = if self.one_in(4) { 20_000 } else { 400_000 };
        DriverConfig {
            batch_bytes: 1 + usize::try_from(self.below(most)).unwrap(),
            ..DriverConfig::default()
        }
    }

    /// What the views answer is what the model says at the LSN up to which they are applied, of everything.
    pub(super) fn check(&self, life: &Life) {
        let state = self.check_heads(life);
        let reader = life.index.reader().unwrap();
        for repo in state.repos.values() {
            check_repo(repo, &reader, &life.log.reader, &self.judge);
        }
    }

    /// The same of accounts, heads and one repo.
    pub(super) fn check_one(&self, life: &Life) {
        let state = self.check_heads(life);
        if let Some(repo) = state.repos.get(&format!("did:plc:{}", self.pick(&NAMES))) {
            let reader = life.index.reader().unwrap();
            check_repo(repo, &reader, &life.log.reader, &self.judge);
        }
    }

    /// The same of accounts and heads only.
    pub(super) fn check_heads(&self, life: &Life) -> State {
        let applied = life.fold.applied();
        let reader = life.index.reader().unwrap();
        assert_eq!(reader.applied(), applied, "the index and the driver disagree");
        assert_eq!(
            life.accounts.applied(),
            applied,
            "the accounts and the driver disagree"
        );
        assert!(applied <= self.mark(), "I1: what is not durable is visible");
        let Some(state) = self.model.at(applied) else {
            panic!("I3: the views show a part of a group, up to {applied}");
        };
        self.check_views(&reader, &life.accounts, &state);
        state
    }

    /// Heads, staged generations and accounts of two views of one LSN are those of `state`.
    pub(super) fn check_views(&self, reader: &IndexReader, accounts: &Accounts, state: &State) {
        let repos = state.repos.values();
        let expected: BTreeMap<String, Cid> = repos
            .filter_map(|repo| Some((repo.did.to_string(), repo.head?.0)))
            .collect();
        let listed = reader.repos(None, 1_000).unwrap();
        let found = listed.into_iter().map(|head| (head.did.to_string(), head.commit));
        assert_eq!(found.collect::<BTreeMap<_, _>>(), expected, "heads");
        check_staged(reader, &state.staged);
        if state.migrated {
            let actors = accounts.read_blocking(|conn| queries::list_actors(conn, None, 1_000));
            let found = actors.unwrap().into_iter().map(|actor| {
                let account = Account {
                    handle: actor.handle.clone().unwrap(),
                    deactivated: actor.deactivated_at.is_some(),
                };
                (actor.did, account)
            });
            assert_eq!(found.collect::<BTreeMap<_, _>>(), state.accounts, "accounts");
        }
    }

    /// Subscribers see every event up to what is visible, once, in order, and each commit names the one before.
    pub(super) fn check_firehose(&self, life: &Life) {
        let visible = life.fold.applied();
        let floor = life.log.reader.floor();
        let mut tail = life.log.reader.tail(floor);
        let mut found = Vec::new();
        loop {
            let max = 1 + usize::try_from(self.below(4_000)).unwrap();
            let frames = match tail.next_public_batch(visible, max) {
                Ok(frames) => frames,
                Err(error) if self.judge.may_refuse(&error) => return,
                Err(error) => panic!("{error}"),
            };
            if frames.is_empty() {
                break;
            }
            for frame in frames {
                let kind = EntryKind::try_from(frame.kind()).unwrap();
                if !kind.is_event() {
                    continue;
                }
                let (seq, did, revs) = match decode(frame.public()).unwrap() {
                    Event::Commit(event) => {
                        (event.seq, event.repo.to_string(), Some((event.rev, event.since)))
                    }
                    Event::Sync(event) => (event.seq, event.did.to_string(), None),
                    Event::Identity(event) => (event.seq, event.did.to_string(), None),
                    Event::Account(event) => (event.seq, event.did.to_string(), None),
                    other => panic!("{other:?}"),
                };
                assert_eq!(seq, frame.lsn().get(), "I2: a seq that is not the LSN");
                found.push(ExpectedEvent {
                    lsn: frame.lsn(),
                    kind,
                    did,
                    revs,
                });
            }
        }
        assert_eq!(
            found,
            self.model.events_between(floor, visible),
            "the firehose from {floor} to {visible}"
        );
    }

    /// I4: views made anew from the log equal the live ones.
    pub(super) fn rebuild(&self, life: &Life, seen: &mut Seen) {
        let applied = life.fold.applied();
        let dir = tempfile::tempdir_in(self.dir.path()).unwrap();
        let mut index = IndexView::open(&dir.path().join(index::FILE_NAME), LOG_ID, CACHE_BYTES).unwrap();
        index.adopt(life.log.reader.compaction()).unwrap();
        let mut accounts = AccountsView::open_with(dir.path(), LOG_ID, life.config.accounts).unwrap();
        {
            let views: Vec<Box<dyn View + '_>> = vec![Box::new(&mut index), Box::new(&mut accounts)];
            let mut fold = Fold::new(views, |from| life.log.reader.tail(from), self.batches_for_once());
            match fold_up_to(&mut fold, applied) {
                Ok(()) => {}
                Err(DriverError::Read(error)) if self.judge.may_refuse(&error) => return,
                Err(error) => panic!("{}", error.reason()),
            }
            assert_eq!(fold.applied(), applied);
        }
        let live = life.index.reader().unwrap();
        let differences = live.differences(&index.reader().unwrap(), 10).unwrap();
        assert_eq!(differences, [], "I4: the live index is not what the log says");
        if self.account_rows {
            let live = life
                .accounts
                .read_blocking(|conn| Ok::<_, AccountsError>(dump(conn)));
            assert_eq!(
                live.unwrap(),
                dump_view(&accounts),
                "I4: the live accounts are not what the log says"
            );
        }
        seen.rebuilds += 1;
    }
}
