//! The repo actors over a real engine: commits chain without a fork whatever runs at once, fails, or is forgotten.

use std::collections::HashMap;

use engine::log::Lsn;
use engine::repo::event::{self, Event};
use engine::repo::mst::{self, Tree};
use engine::repo::{Cid, Did, Nsid, RecordKey, RepoPath, Tid};
use futures_util::future::join_all;
use serde_json::json;

use super::prepare::{Validate, prepare};
use super::{RecordSwap, Write, WriteError};
use crate::testkit::{NOTE, Options, Server};

fn path(rkey: &str) -> RepoPath {
    let collection: Nsid = NOTE.parse().unwrap();
    RepoPath::new(collection, rkey.parse::<RecordKey>().unwrap())
}

fn record(n: usize) -> super::PreparedRecord {
    prepare(&path("any"), json!({"n": n}), Validate::Off).unwrap()
}

fn create(rkey: &str, n: usize) -> Vec<Write> {
    vec![Write::Create(path(rkey), record(n))]
}

/// One commit of a repo, as the log has it.
struct Link {
    commit: Cid,
    rev: Tid,
    since: Option<Tid>,
    prev_data: Option<Cid>,
    data: Cid,
}

/// The commits of a repo in the order of the log; each must follow on the one before.
fn chain(server: &Server, did: &Did) -> Vec<Link> {
    let engine = &server.app.engine;
    let mut tail = engine.tail(Lsn::ZERO);
    let mut links: Vec<Link> = Vec::new();
    loop {
        let batch = tail.next_public_batch(engine.applied().get(), 1 << 20).unwrap();
        if batch.is_empty() {
            return links;
        }
        for frame in &batch {
            let Some(Event::Commit(view)) = (!frame.public().is_empty())
                .then(|| event::decode(frame.public()).unwrap())
                .filter(|event| matches!(event, Event::Commit(view) if view.repo == *did))
            else {
                continue;
            };
            let limits = engine::repo::car::CarLimits::default();
            let blocks: HashMap<_, _> = engine::repo::car::CarSlice::new(view.blocks, limits)
                .unwrap()
                .map(|block| {
                    block
                        .map(|b| (b.cid, bytes::Bytes::copy_from_slice(b.bytes)))
                        .unwrap()
                })
                .collect();
            let commit = engine::repo::commit::Commit::decode(blocks[&view.commit].clone()).unwrap();
            let link = Link {
                commit: view.commit,
                rev: view.rev,
                since: view.since,
                prev_data: view.prev_data,
                data: commit.data(),
            };
            if let Some(prev_data) = link.prev_data {
                let changes: Vec<mst::Change<'_>> = view
                    .ops
                    .clone()
                    .map(|op| mst::Change {
                        key: op.path,
                        value: op.action.cid(),
                        previous: op.action.prev(),
                    })
                    .collect();
                assert!(changes.len() <= event::MAX_OPS);
                assert_eq!(mst::invert(&changes, link.data, &blocks).unwrap(), prev_data);
            }
            if let Some(before) = links.last() {
                assert_eq!(link.since, Some(before.rev));
                assert_eq!(link.prev_data, Some(before.data));
                assert!(link.rev > before.rev);
            } else {
                assert_eq!((link.since, link.prev_data), (None, None));
            }
            links.push(link);
        }
    }
}

/// The tree that has exactly these records, built from nothing.
fn root_of<'a>(records: impl IntoIterator<Item = (&'a String, &'a Cid)>) -> Cid {
    let none: HashMap<Cid, bytes::Bytes> = HashMap::new();
    let mut tree = Tree::empty();
    for (key, cid) in records {
        tree.insert(key, *cid, &none).unwrap();
    }
    tree.flush().root
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_writes_to_one_repo_make_one_chain_and_all_are_acknowledged() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let repos = &server.app.repos;
    let keys: Vec<String> = (0..200).map(|n| format!("key{n:03}")).collect();
    let writes = keys
        .iter()
        .enumerate()
        .map(|(n, key)| repos.write(&alice.did, create(key, n), None));
    let outcomes = join_all(writes).await;
    let links = chain(&server, &alice.did);
    assert!(links.len() <= 201);
    let logged: std::collections::HashSet<_> = links.iter().map(|link| link.commit).collect();
    for outcome in outcomes {
        assert!(logged.contains(&outcome.unwrap().commit.unwrap().cid));
    }
    let repo = server.repo(&alice.did).await;
    assert_eq!(repo.records.len(), 200);
    assert_eq!(repo.commit.data(), root_of(&repo.records));
    assert_eq!(repo.commit.cid(), links.last().unwrap().commit);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_failing_request_among_others_leaves_the_state_as_it_was() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let repos = &server.app.repos;
    repos.write(&alice.did, create("taken", 0), None).await.unwrap();
    let keys: Vec<String> = (0..100).map(|n| format!("key{n:03}")).collect();
    let writes = keys.iter().enumerate().map(|(n, key)| {
        let mut writes = create(key, n);
        if n % 2 == 1 {
            // The first write of the batch is fine and must not stay.
            writes.extend(create("taken", n));
        }
        repos.write(&alice.did, writes, None)
    });
    for (n, outcome) in join_all(writes).await.into_iter().enumerate() {
        match outcome {
            Ok(_) => assert_eq!(n % 2, 0),
            Err(error) => assert!(matches!(error, WriteError::InvalidRequest(_)), "{error}"),
        }
    }
    assert!(chain(&server, &alice.did).len() <= 52);
    let repo = server.repo(&alice.did).await;
    assert_eq!(repo.records.len(), 51);
    assert_eq!(repo.commit.data(), root_of(&repo.records));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_who_swap_the_same_commit_one_wins() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let repos = &server.app.repos;
    for round in 0..5 {
        let head = server.repo(&alice.did).await.commit.cid();
        let keys: Vec<String> = (0..20).map(|n| format!("key{round}-{n}")).collect();
        let writes = keys
            .iter()
            .enumerate()
            .map(|(n, key)| repos.write(&alice.did, create(key, n), Some(head)));
        let outcomes = join_all(writes).await;
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
        let swapped = |error: &WriteError| matches!(error, WriteError::CommitSwap { .. });
        assert!(
            outcomes
                .iter()
                .flat_map(|outcome| outcome.as_ref().err())
                .all(swapped)
        );
    }
    assert_eq!(chain(&server, &alice.did).len(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_who_swap_the_same_record_one_wins() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let repos = &server.app.repos;
    let put = |n, swap| vec![Write::Put(path("counter"), record(n), swap)];
    let first = join_all((1..20).map(|n| repos.write(&alice.did, put(n, RecordSwap::Absent), None))).await;
    assert_eq!(first.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    let current = server.repo(&alice.did).await.records[&format!("{NOTE}/counter")];
    let second =
        join_all((20..40).map(|n| repos.write(&alice.did, put(n, RecordSwap::Is(current)), None))).await;
    assert_eq!(second.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    assert_eq!(chain(&server, &alice.did).len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn forgetting_idle_repos_never_forks_one() {
    let options = Options {
        max_actors: 2,
        ..Options::default()
    };
    let server = Server::with(options).await;
    let mut users = Vec::new();
    for name in ["alice", "bobby", "carol", "david", "emily", "frank"] {
        users.push(server.sign_up(name).await);
    }
    let repos = &server.app.repos;
    let keys: Vec<String> = (0..40).map(|n| format!("key{n:03}")).collect();
    // Some requests of a user in a row, some at once, among those of all others.
    let everybody = users.iter().map(|user| {
        let keys = &keys;
        async move {
            for pair in keys.chunks(2) {
                let writes = pair
                    .iter()
                    .map(|key| repos.write(&user.did, create(key, 1), None));
                for outcome in join_all(writes).await {
                    outcome.unwrap();
                }
            }
        }
    });
    join_all(everybody).await;
    assert!(repos.inner.actors.lock().len() <= users.len());
    for user in &users {
        assert!(chain(&server, &user.did).len() <= 41);
        let repo = server.repo(&user.did).await;
        assert_eq!(repo.records.len(), 40);
        assert_eq!(repo.commit.data(), root_of(&repo.records));
    }
}

#[tokio::test]
async fn idle_repos_beyond_the_bound_are_forgotten() {
    let options = Options {
        max_actors: 2,
        ..Options::default()
    };
    let server = Server::with(options).await;
    let repos = &server.app.repos;
    for name in ["alice", "bobby", "carol", "david"] {
        let user = server.sign_up(name).await;
        repos.write(&user.did, create("one", 1), None).await.unwrap();
        assert!(repos.inner.actors.lock().len() <= 2, "{name}");
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_a_whole_write() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let repos = &server.app.repos;
    for n in 0..20 {
        let key = format!("key{n}");
        let write = repos.write(&alice.did, create(&key, n), None);
        // Polled once, then dropped: the request is in the mailbox, and nobody waits.
        assert!(futures_util::FutureExt::now_or_never(write).is_none());
    }
    repos.write(&alice.did, create("last", 0), None).await.unwrap();
    chain(&server, &alice.did);
    assert_eq!(server.repo(&alice.did).await.records.len(), 21);
}

#[tokio::test]
async fn more_than_a_mailbox_holds_is_refused_as_busy() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let repos = &server.app.repos;
    let keys: Vec<String> = (0..super::MAILBOX + 50).map(|n| format!("key{n}")).collect();
    let writes = keys
        .iter()
        .map(|key| repos.write(&alice.did, create(key, 1), None));
    let outcomes = join_all(writes).await;
    let busy = outcomes
        .iter()
        .filter(|o| matches!(o, Err(WriteError::Busy)))
        .count();
    assert_eq!(busy, 50, "on one thread the actor runs only after all have sent");
    // All that waited is one creation each, so it fits into as many commits as there are 200 operations.
    assert_eq!(
        chain(&server, &alice.did).len(),
        1 + super::MAILBOX.div_ceil(super::MAX_WRITES)
    );
    assert_eq!(server.repo(&alice.did).await.records.len(), super::MAILBOX);
}

#[tokio::test]
async fn a_restart_goes_on_with_the_same_chain() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    server.post(&alice, "before").await;
    let server = server.restart().await;
    server.post(&alice, "after").await;
    assert_eq!(chain(&server, &alice.did).len(), 3);
    let repo = server.repo(&alice.did).await;
    assert_eq!(repo.commit.data(), root_of(&repo.records));
}

#[tokio::test]
async fn a_repo_that_is_not_here_is_not_written() {
    let server = Server::start().await;
    let did: Did = "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().unwrap();
    let error = server
        .app
        .repos
        .write(&did, create("one", 1), None)
        .await
        .unwrap_err();
    assert!(matches!(error, WriteError::RepoNotFound(_)));
}

/// One random request, of up to three writes to few records so that many collide.
fn any_request(random: &mut Random, n: usize) -> (Vec<Write>, bool) {
    let writes = (0..1 + random.below(3))
        .map(|_| {
            let path = path(&format!("key{:02}", random.below(40)));
            // Few values, so that some writes change nothing.
            let record = record(random.below(3) * 1000 + if random.below(2) == 0 { n } else { 0 });
            match random.below(7) {
                0 | 1 => Write::Create(path, record),
                2 => Write::Update(path, record),
                3 => Write::Delete(path),
                4 => Write::DeleteIfPresent(path, RecordSwap::Any),
                5 => Write::Put(path, record, RecordSwap::Absent),
                _ => Write::Put(path, record, RecordSwap::Any),
            }
        })
        .collect();
    (writes, random.below(8) == 0)
}

/// A record that should be the only one about its subject.
fn any_like(random: &mut Random, n: usize) -> (Vec<Write>, bool) {
    let path: RepoPath = format!("app.bsky.feed.like/key{:02}", random.below(13))
        .parse()
        .unwrap();
    let value = json!({"subject": {"uri": format!("at://{}", random.below(5))}, "n": n});
    let record = prepare(&path, value, Validate::Off).unwrap();
    assert!(record.subject.is_some());
    let write = match random.below(8) {
        0 => Write::Delete(path),
        1 => Write::Put(path, record, RecordSwap::Any),
        2 => Write::Create(path, record),
        _ => Write::CreateOnly(path, record),
    };
    (vec![write], false)
}

/// The outcome without what depends on how many commits were made.
fn outcome_of(
    outcome: &Result<super::Written, WriteError>,
) -> Result<(bool, Vec<super::WriteResult>), String> {
    match outcome {
        Ok(written) => Ok((written.commit.is_some(), written.results.clone())),
        Err(WriteError::CommitSwap { .. }) => Err("CommitSwap".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Requests that wait at the same time have the outcome that they have one after the other; a caller that names the head
/// wins only if nobody was before.
#[tokio::test]
async fn requests_in_one_commit_do_what_they_do_one_after_the_other() {
    let server = Server::start().await;
    let (alice, bobby) = (server.sign_up("alice").await, server.sign_up("bobby").await);
    let repos = &server.app.repos;
    let mut random = Random(0x1_5eed);
    let (mut requests, mut merged) = (0, 0);
    for round in 0..60 {
        let heads = [
            server.repo(&alice.did).await.commit.cid(),
            server.repo(&bobby.did).await.commit.cid(),
        ];
        let batch: Vec<(Vec<Write>, bool)> = (0..1 + random.below(24))
            .map(|n| match random.below(3) {
                0 => any_like(&mut random, round * 100 + n),
                _ => any_request(&mut random, round * 100 + n),
            })
            .collect();
        requests += batch.len();
        // On one thread all of these are sent before the actor runs.
        let together = join_all(
            batch
                .iter()
                .map(|(writes, swap)| repos.write(&alice.did, writes.clone(), swap.then_some(heads[0]))),
        )
        .await;
        let mut commits = std::collections::HashSet::new();
        for ((writes, swap), together) in batch.into_iter().zip(together) {
            let alone = repos
                .write(&bobby.did, writes.clone(), swap.then_some(heads[1]))
                .await;
            assert_eq!(outcome_of(&together), outcome_of(&alone), "{writes:?}");
            if let Ok(Some(commit)) = together.map(|written| written.commit) {
                merged += usize::from(!commits.insert(commit.cid));
            }
        }
        let (left, right) = (server.repo(&alice.did).await, server.repo(&bobby.did).await);
        assert_eq!(left.records, right.records);
        assert_eq!(left.commit.data(), right.commit.data());
    }
    assert!(
        merged * 8 > requests,
        "{merged} of {requests} requests shared a commit"
    );
    assert!(chain(&server, &alice.did).len() < chain(&server, &bobby.did).len());
}

#[tokio::test]
async fn requests_that_do_not_fit_into_one_event_together_are_made_one_after_the_other() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let repos = &server.app.repos;
    let text = "x".repeat(300_000);
    let big = |n: usize| {
        let value = json!({ "text": text, "n": n });
        prepare(&path("any"), value, Validate::Off).unwrap()
    };
    let keys: Vec<String> = (0..8).map(|n| format!("key{n}")).collect();
    let outcomes = join_all(keys.iter().enumerate().map(|(n, key)| {
        let writes = vec![Write::Create(path(key), big(n))];
        repos.write(&alice.did, writes, None)
    }))
    .await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert_eq!(chain(&server, &alice.did).len(), 1 + 3, "three, three and two");

    // Each alone is more than an event can be; the one among them that fits is not taken down with them.
    let whole: Vec<Vec<Write>> = (0..3)
        .map(|n| {
            let records = if n == 1 { 1 } else { 7 };
            (0..records)
                .map(|m| Write::Create(path(&format!("more{n}-{m}")), big(100 * n + m)))
                .collect()
        })
        .collect();
    let outcomes = join_all(
        whole
            .into_iter()
            .map(|writes| repos.write(&alice.did, writes, None)),
    )
    .await;
    let sizes: Vec<bool> = outcomes.iter().map(Result::is_ok).collect();
    assert_eq!(sizes, [false, true, false]);
    assert_eq!(server.repo(&alice.did).await.records.len(), 9);
}

#[tokio::test]
async fn all_repos_together_hold_no_more_than_their_room() {
    let taken = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let first = super::Room::take(&taken, 150, 100).expect("something always fits");
    assert!(super::Room::take(&taken, 1, 100).is_none());
    drop(first);
    let second = super::Room::take(&taken, 60, 100);
    assert!(second.is_some() && super::Room::take(&taken, 60, 100).is_none());
    drop(second);
    assert_eq!(taken.load(std::sync::atomic::Ordering::SeqCst), 0);
}

/// A small generator of numbers (xorshift), so that a failure repeats.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % bound
    }
}
