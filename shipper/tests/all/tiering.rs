//! A start that leaves the log's beginning in the replica gives what a full restore gives, and so does one whose segments were
//! evicted. Invariants I4 and I6.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::clock::{SystemClock, SystemEntropy};
use engine::log::{Epoch, Lsn};
use engine::{Engine, EnginePrelude};
use shipper::follow::{Look, Tracker};
use shipper::names::SEGMENT_PREFIX;
use shipper::plan::StartDecision;
use shipper::standby;
use shipper::start::{StartError, StartOptions, Started, begin};
use shipper::store::faulty::{Answer, Fault, Rule, Verb};
use shipper::tier::ReplicaSource;
use tempfile::TempDir;

use crate::common::*;
use crate::compaction::{Server, answers, options, small, until};

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
        .find(|name| name.contains("index.redb"))
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

/// A standby: it follows, and evicts what the replica has.
struct Standby {
    engine: Engine,
    tracker: Tracker,
    _temp: TempDir,
    restored: bool,
}

impl Standby {
    async fn begin(store: &Arc<Faulty>, dir: &Path) -> Standby {
        let temp = TempDir::new().unwrap();
        let begun = standby::begin(&as_store(store), &lazy(store, dir), temp.path())
            .await
            .unwrap();
        let (recovered, tracker) = (begun.recovered, begun.tracker);
        let options = engine::engine::StartOptions {
            epoch: Epoch::ZERO,
            lsn_floor: Lsn::ZERO,
            log_id: Some(tracker.end().log_id),
            remote: Some(recovered.last_lsn()),
            follow: true,
            fetched: begun.restored.as_ref().and_then(|restored| restored.sound),
            on_replay: Box::new(|_| {}),
        };
        let config = small(dir);
        let engine = tokio::task::spawn_blocking(move || {
            EnginePrelude::of(config, recovered)
                .start(Arc::new(SystemClock), &SystemEntropy, options)
                .unwrap()
        });
        Standby {
            engine: engine.await.unwrap(),
            tracker,
            _temp: temp,
            restored: begun.restored.is_some(),
        }
    }

    /// Takes what is there up to `last`; tells whether the log was compacted there.
    async fn catch_up(&mut self, last: Lsn) -> bool {
        let deadline = tokio::time::Instant::now() + SOON;
        while self.engine.local().get() < last {
            match self.tracker.look().await.unwrap() {
                Look::Frames(raw) => {
                    self.engine.feed(raw).await.unwrap();
                }
                Look::Mark => {}
                Look::Nothing => tokio::time::sleep(Duration::from_millis(2)).await,
            }
            assert!(tokio::time::Instant::now() < deadline, "it does not catch up");
        }
        tokio::time::timeout(SOON, self.engine.applied().wait(last))
            .await
            .unwrap()
            .unwrap();
        self.tracker.refresh().await.unwrap();
        standby::follow_manifest(&self.engine.log_reader(), self.tracker.manifest())
    }

    async fn end(self) {
        let engine = self.engine;
        tokio::task::spawn_blocking(move || drop(engine)).await.unwrap();
    }

    async fn take_over(self, store: &Arc<Faulty>, dir: &Path) -> Server {
        let Standby { engine, tracker, .. } = self;
        let options = lazy(store, dir);
        let claim = standby::claim(&as_store(store), &options, &tracker)
            .await
            .unwrap();
        assert_eq!(claim.before.last_lsn, engine.local().get());
        assert!(!standby::follow_manifest(
            &engine.log_reader(),
            &claim.replica.manifest
        ));
        engine.promote(claim.epoch, claim.lsn_floor).await.unwrap();
        standby::promoted(dir).unwrap();
        Server::lead(as_store(store), engine, claim, quick(), false).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_evicts_what_the_replica_has_and_takes_a_compaction_over() {
    let (store, dir, follower_dir) = (faulty(29), TempDir::new().unwrap(), TempDir::new().unwrap());
    let server = Server::start_on(as_store(&store), dir.path()).await;
    for n in 0..60 {
        server.upload(n).await;
    }
    let through = server.seal_and_cover(&store).await;
    let mut follower = Standby::begin(&store, follower_dir.path()).await;
    for n in 60..80 {
        server.upload(n).await;
    }
    let last = server.seal_and_cover(&store).await;
    assert!(!follower.catch_up(last).await);
    let reader = follower.engine.log_reader();
    let sealed = reader.tier_use();
    assert!(
        sealed.evictable > 5 && sealed.away == 0,
        "it was told what the replica has: {sealed:?}"
    );
    reader.evict(u64::MAX).unwrap();
    assert_eq!(reader.tier_use().away, sealed.evictable);
    let there = image(server.engine.log(), last);
    assert_eq!(image(follower.engine.log(), last), there);
    assert_eq!(answers(&follower.engine), server.answers());
    drop(reader);

    // It starts again with segments away, and goes on.
    follower.end().await;
    let mut follower = Standby::begin(&store, follower_dir.path()).await;
    assert!(!follower.restored);
    let last = server.upload(81).await;
    assert!(!follower.catch_up(last).await);
    assert_eq!(answers(&follower.engine), server.answers());

    // What the writer compacts is found. What is away is gone from the replica, and reading it says so.
    let before = image(server.engine.log(), last);
    server.engine.compact(through, options()).await.unwrap();
    let first = server.engine.segments()[0].base.get();
    until(&store, "the outputs named", |manifest| {
        manifest
            .segments
            .first()
            .is_some_and(|segment| segment.base == first)
    })
    .await;
    server.engine.end_compaction(Duration::ZERO).await.unwrap();
    assert!(follower.catch_up(last).await, "it has what was compacted");
    let reader = follower.engine.log_reader();
    for (lsn, bytes, (segment, offset, len)) in &before {
        let location = engine::log::Location {
            segment: *segment,
            offset: *offset,
            len: *len,
        };
        match reader.read_at(location) {
            Ok(read) => assert_eq!(read, bytes, "{lsn}"),
            Err(error) => assert!(
                matches!(error, engine::log::ReadError::Away { .. }),
                "{lsn}: {error}"
            ),
        }
    }
    drop(reader);

    // It begins anew, by the checkpoint behind the compaction, and can be promoted then.
    publish_checkpoint(&server).await;
    let last = server.upload(82).await;
    follower.end().await;
    let mut follower = Standby::begin(&store, follower_dir.path()).await;
    assert!(follower.restored);
    assert!(!follower.catch_up(last).await);
    assert!(follower.engine.log_reader().tier_use().away > 0);
    let (all, answered) = (image(server.engine.log(), last), server.answers());
    assert_eq!(answers(&follower.engine), answered);
    assert_eq!(image(follower.engine.log(), last), all);
    server.kill().await;
    let promoted = follower.take_over(&store, follower_dir.path()).await;
    assert_eq!(promoted.answers(), answered);
    let next = promoted.upload(83).await;
    assert!(next > last);
    promoted.kill().await;
}
