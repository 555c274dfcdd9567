//! A start that leaves the log's beginning in the replica gives what a full restore gives, and so does one whose segments were
//! evicted. Invariants I4 and I6.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::log::Lsn;
use shipper::names::SEGMENT_PREFIX;
use shipper::plan::StartDecision;
use shipper::start::{StartError, StartOptions, Started, begin};
use shipper::store::faulty::{Answer, Fault, Rule, Verb};
use shipper::tier::ReplicaSource;
use tempfile::TempDir;

use crate::common::*;
use crate::compaction::{Server, options};

/// Options of a start that is lazy.
fn lazy(store: &Arc<Faulty>, dir: &Path) -> StartOptions {
    let source = ReplicaSource::new(as_store(store), Duration::from_secs(5)).unwrap();
    StartOptions {
        source: Some(Arc::new(source)),
        ..start_options(dir)
    }
}

async fn agree(store: &Arc<Faulty>, dir: &Path) -> Started {
    begin(&as_store(store), &lazy(store, dir)).await.unwrap()
}

async fn start_lazily(store: &Arc<Faulty>, dir: &Path) -> (Server, usize) {
    let started = agree(store, dir).await;
    assert_eq!(started.set_aside, None);
    let away = started.restored.as_ref().map_or(0, |restored| restored.away);
    (Server::open(as_store(store), dir, started, quick()).await, away)
}

async fn publish_checkpoint(server: &Server) -> Lsn {
    let checkpoint = server.engine.checkpoint().await.unwrap();
    let lsn = checkpoint.lsn();
    server
        .handle
        .publish_checkpoint(checkpoint.dir, lsn)
        .await
        .unwrap();
    lsn
}

/// A replica with segments before the checkpoint, segments after it, and chunks.
async fn replica(seed: u64) -> Arc<Faulty> {
    let (store, dir) = (faulty(seed), TempDir::new().unwrap());
    let server = Server::start_on(as_store(&store), dir.path()).await;
    for n in 0..60 {
        server.upload(n).await;
    }
    server.seal_and_cover(&store).await;
    publish_checkpoint(&server).await;
    for n in 60..80 {
        server.upload(n).await;
    }
    server.seal_and_cover(&store).await;
    for n in 80..83 {
        server.upload(n).await;
    }
    server.kill().await;
    store
}

fn segment_files(dir: &Path) -> usize {
    let names = std::fs::read_dir(dir.join("log")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".seg")).count()
}

fn segment_requests(store: &Arc<Faulty>, since: usize) -> Vec<String> {
    let calls = store.calls().into_iter().skip(since);
    let of_segments =
        calls.filter(|(verb, name)| *verb == Verb::GetRange && name.starts_with(SEGMENT_PREFIX));
    of_segments.map(|(_, name)| name).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lazy_start_gives_what_a_full_one_gives_and_fetches_only_what_it_must() {
    let store = replica(21).await;
    let full_dir = TempDir::new().unwrap();
    let server = Server::start_on(as_store(&store), full_dir.path()).await;
    let (full, answers) = (image(server.engine.log(), Lsn::MAX), server.answers());
    server.kill().await;

    let dir = TempDir::new().unwrap();
    let before = store.calls().len();
    let (server, away) = start_lazily(&store, dir.path()).await;
    let segments = segment_files(full_dir.path());
    assert!(away > 4, "{away} of {segments}");
    let behind = segments - away;
    let requests = segment_requests(&store, before);
    assert_eq!(
        requests.len(),
        behind - 1,
        "one for each segment behind the checkpoint: {requests:?}"
    );
    assert_eq!(server.answers(), answers, "the index came with the checkpoint");
    assert_eq!(segment_requests(&store, before).len(), requests.len());
    let reader = server.engine.log_reader();
    assert_eq!(reader.tier_use().away, away);
    assert_eq!(image(server.engine.log(), full.last().unwrap().0), full);
    for (_, bytes, (segment, offset, len)) in &full {
        let location = engine::log::Location {
            segment: *segment,
            offset: *offset,
            len: *len,
        };
        assert_eq!(reader.read_at(location).unwrap(), bytes);
    }

    // It goes on: writes, seals, ships, evicts what is shipped, and starts again on the same disk.
    for n in 100..130 {
        server.upload(n).await;
    }
    let last = server.seal_and_cover(&store).await;
    eventually("all that is sealed is known to be shipped", || {
        reader.tier_use().evictable + reader.tier_use().away == server.engine.segments().len()
    })
    .await;
    reader.evict(u64::MAX).unwrap();
    assert_eq!(segment_files(dir.path()), 0);
    let (all, answers) = (image(server.engine.log(), Lsn::MAX), server.answers());
    assert_eq!(all.last().unwrap().0, last);
    server.kill().await;
    drop(reader);
    let started = agree(&store, dir.path()).await;
    assert!(matches!(started.decision, StartDecision::ContinueLocal { .. }));
    assert!(started.set_aside.is_none() && started.restored.is_none());
    let server = Server::open(as_store(&store), dir.path(), started, quick()).await;
    assert_eq!(server.answers(), answers);
    assert_eq!(image(server.engine.log(), last), all);
    let next = server.upload(200).await;
    assert!(next > last);
    server.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_usable_checkpoint_everything_is_fetched() {
    let store = replica(22).await;
    let full_dir = TempDir::new().unwrap();
    let server = Server::start_on(as_store(&store), full_dir.path()).await;
    let answers = server.answers();
    // A newer checkpoint that turns out to be damaged: the older one needs other segments.
    publish_checkpoint(&server).await;
    server.kill().await;
    let checkpoints = names(&store, "ckpt/");
    let newest = checkpoints
        .iter()
        .rev()
        .find(|name| name.ends_with("redb"))
        .unwrap();
    store.add(Rule::always(Fault::Before(Answer::NotFound)).under(newest.clone()));
    let dir = TempDir::new().unwrap();
    let started = agree(&store, dir.path()).await;
    let restored = started.restored.as_ref().unwrap();
    assert!(restored.away > 4 && restored.warnings.len() == 1, "{restored:?}");
    let server = Server::open(as_store(&store), dir.path(), started, quick()).await;
    assert_eq!(server.answers(), answers);
    server.kill().await;

    store.add(Rule::always(Fault::Before(Answer::NotFound)).under("ckpt/"));
    let dir = TempDir::new().unwrap();
    let started = agree(&store, dir.path()).await;
    let restored = started.restored.as_ref().unwrap();
    assert_eq!((restored.away, restored.checkpoint.clone()), (0, None));
    let server = Server::open(as_store(&store), dir.path(), started, quick()).await;
    assert_eq!(server.answers(), answers);
    assert_eq!(server.engine.log_reader().tier_use().away, 0);
    server.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_whose_segments_are_in_another_replica_is_refused() {
    let store = replica(23).await;
    let dir = TempDir::new().unwrap();
    let (server, away) = start_lazily(&store, dir.path()).await;
    assert!(away > 0);
    server.kill().await;
    let other = faulty(24);
    let refused = begin(&as_store(&other), &lazy(&other, dir.path())).await;
    assert!(matches!(refused, Err(StartError::OtherReplica { .. })));
    assert!(other.inner().names().is_empty(), "nothing was claimed");
    let (server, _) = start_lazily(&store, dir.path()).await;
    server.upload(1).await;
    server.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_whose_segments_were_compacted_in_the_replica_is_restored_anew() {
    let store = replica(25).await;
    let (dir, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (server, _) = start_lazily(&store, dir.path()).await;
    let answers = server.answers();
    server.kill().await;

    let server = Server::start_on(as_store(&store), other.path()).await;
    let through = server.seal_and_cover(&store).await;
    let before = names(&store, SEGMENT_PREFIX);
    server.engine.compact(through, options()).await.unwrap();
    eventually("the objects from before are deleted", || {
        let after = names(&store, SEGMENT_PREFIX);
        before.iter().all(|object| !after.contains(object))
    })
    .await;
    server.kill().await;

    let started = agree(&store, dir.path()).await;
    assert!(matches!(
        started.decision,
        StartDecision::RestoreReplica {
            set_aside_local: true
        }
    ));
    assert!(started.restored.is_some());
    let server = Server::open(as_store(&store), dir.path(), started, quick()).await;
    assert_eq!(server.answers(), answers);
    server.upload(1).await;
    server.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_replica_is_out_of_reach_reads_fail_in_time_and_work_afterwards() {
    let store = replica(26).await;
    let dir = TempDir::new().unwrap();
    let (server, _) = start_lazily(&store, dir.path()).await;
    let reader = server.engine.log_reader();
    store.add(Rule::always(Fault::Before(Answer::Unavailable)).under(SEGMENT_PREFIX));
    let mut tail = reader.tail(Lsn::ZERO);
    let begun = std::time::Instant::now();
    let failed = tail.next_batch(Lsn::MAX, 1).unwrap_err();
    assert!(matches!(failed, engine::log::ReadError::Away { .. }), "{failed}");
    assert!(begun.elapsed() < SOON);
    store.heal();
    assert_eq!(tail.next_batch(Lsn::MAX, 1).unwrap().len(), 1);
    server.kill().await;
}
