//! A compacted log and its replica: what is restored gives the same answers, whenever the process ends.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::clock::{SystemClock, SystemEntropy};
use engine::compact::CompactOptions;
use engine::engine::{Durability, Removal, Shutdown};
use engine::entry::{Change, EntryDraft};
use engine::log::{LogConfig, Lsn, Watermark};
use engine::repo::{Cid, Did};
use engine::{Engine, EngineConfig, EnginePrelude};
use shipper::fence::{self, Claim};
use shipper::manifest::Manifest;
use shipper::ship::{ShipConfig, ShipHandle, Shipper};
use shipper::start::{Started, begin};
use shipper::store::ReplicaStore;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::common::*;

pub struct Server {
    pub engine: Engine,
    pub handle: ShipHandle,
    task: JoinHandle<()>,
    restored: bool,
}

/// The settings of a small engine.
pub fn small(dir: &Path) -> EngineConfig {
    EngineConfig {
        log: LogConfig {
            segment_bytes: 4_000,
            ..LogConfig::default()
        },
        index_cache_bytes: 4 << 20,
        ..EngineConfig::new(dir, Durability::Remote)
    }
}

impl Server {
    async fn start(store: &Arc<Faulty>, dir: &Path) -> Server {
        Server::start_on(as_store(store), dir).await
    }

    pub async fn start_on(store: Arc<dyn ReplicaStore>, dir: &Path) -> Server {
        Server::start_with(store, dir, quick()).await
    }

    pub async fn start_with(store: Arc<dyn ReplicaStore>, dir: &Path, shipping: ShipConfig) -> Server {
        let started = begin(&store, &start_options(dir)).await.unwrap();
        assert_eq!(started.set_aside, None);
        Server::open(store, dir, started, shipping).await
    }

    /// What comes after the agreement with the replica.
    pub async fn open(
        store: Arc<dyn ReplicaStore>,
        dir: &Path,
        started: Started,
        shipping: ShipConfig,
    ) -> Server {
        let Started {
            claim,
            recovered,
            restored,
            ..
        } = started;
        let config = small(dir);
        let options = engine::engine::StartOptions {
            epoch: claim.epoch,
            lsn_floor: claim.lsn_floor,
            log_id: Some(claim.log_id),
            remote: Some(claim.before.last_lsn),
            follow: false,
            fetched: restored.as_ref().and_then(|restored| restored.sound),
            on_replay: Box::new(|_| {}),
        };
        let engine = tokio::task::spawn_blocking(move || {
            EnginePrelude::of(config, recovered)
                .start(Arc::new(SystemClock), &SystemEntropy, options)
                .unwrap()
        })
        .await
        .unwrap();
        let restored = restored.is_some();
        Server::lead(store, engine, claim, shipping, restored).await
    }

    /// Ships what the engine has, under a claim.
    pub async fn lead(
        store: Arc<dyn ReplicaStore>,
        engine: Engine,
        claim: Claim,
        shipping: ShipConfig,
        restored: bool,
    ) -> Server {
        let remote: Watermark = engine.remote().unwrap().clone();
        let (shipper, handle) = Shipper::new(
            shipping,
            store,
            engine.log().clone(),
            remote,
            claim,
            Arc::new(SystemClock),
        );
        let task = tokio::spawn(async move {
            let _ = shipper.run(CancellationToken::new()).await;
        });
        tokio::time::timeout(SOON, engine.ready()).await.unwrap().unwrap();
        Server {
            engine,
            handle,
            task,
            restored,
        }
    }

    pub async fn upload(&self, n: u32) -> Lsn {
        let did: Did = format!("did:plc:r{}", n % 5).parse().unwrap();
        let mut changes = vec![Change::BlobStored {
            did: did.clone(),
            cid: Cid::for_raw(&n.to_be_bytes()),
            mime: "x".repeat(300),
            size: 4,
            created_at_micros: u64::from(n),
        }];
        if n % 40 == 17 {
            changes.push(Change::RepoRemoved { did });
        }
        self.write(changes).await
    }

    pub async fn write(&self, changes: Vec<Change>) -> Lsn {
        let receipt = self.engine.append(vec![EntryDraft::private(changes)]).unwrap();
        let lsns = tokio::time::timeout(SOON, receipt.durable())
            .await
            .unwrap()
            .unwrap();
        lsns.last
    }

    /// What the index answers.
    pub fn answers(&self) -> Vec<String> {
        answers(&self.engine)
    }

    pub async fn seal_and_cover(&self, store: &Arc<Faulty>) -> Lsn {
        self.engine.log().seal_now().await.unwrap();
        let last = self.engine.appended().get();
        covered(store, last).await;
        last
    }

    /// Ends the shipper alone.
    pub async fn stop_shipping(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    pub async fn kill(mut self) {
        if !self.task.is_finished() {
            self.stop_shipping().await;
        }
        drop(self.handle);
        let engine = self.engine;
        tokio::task::spawn_blocking(move || drop(engine)).await.unwrap();
    }
}

/// What the index answers.
pub fn answers(engine: &Engine) -> Vec<String> {
    let reader = engine.reader().unwrap();
    (0..5)
        .flat_map(|n| {
            let did: Did = format!("did:plc:r{n}").parse().unwrap();
            reader.stored_blobs(&did, None, 10_000).unwrap()
        })
        .map(|blob| format!("{blob:?}"))
        .collect()
}

pub async fn manifest(store: &Arc<Faulty>) -> Manifest {
    let state = fence::survey(&as_store(store), Duration::from_secs(5))
        .await
        .unwrap();
    state.unwrap().manifest
}

pub async fn until(store: &Arc<Faulty>, what: &str, is_it: impl Fn(&Manifest) -> bool) -> Manifest {
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let manifest = manifest(store).await;
        if is_it(&manifest) {
            return manifest;
        }
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn covered(store: &Arc<Faulty>, last: Lsn) {
    until(store, "covered", |manifest| manifest.covered_lsn() == last).await;
}

pub fn options() -> CompactOptions {
    CompactOptions {
        segment_bytes: 4_000,
        ..CompactOptions::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_follows_a_compaction_and_a_lost_disk_comes_back_from_it() {
    let store = faulty(7);
    let (dir, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let server = Server::start(&store, dir.path()).await;
    for n in 0..60 {
        server.upload(n).await;
    }
    let through = server.seal_and_cover(&store).await;
    server.upload(100).await;
    let checkpoint = server.engine.checkpoint().await.unwrap();
    let path = dir.path().join("ckpt").join(checkpoint.lsn().hex());
    server
        .handle
        .publish_checkpoint(path, checkpoint.lsn())
        .await
        .unwrap();
    let before = manifest(&store).await;
    assert!(before.segments.len() > 4 && before.checkpoints.len() == 1);

    let done = server.engine.compact(through, options()).await.unwrap();
    assert!(done.bytes_after < done.bytes_before);
    let segments: Vec<u64> = server
        .engine
        .segments()
        .iter()
        .map(|segment| segment.base.get())
        .collect();
    let after = until(&store, "the outputs named", |manifest| {
        manifest
            .segments
            .first()
            .is_some_and(|first| first.base == segments[0])
    })
    .await;
    assert_eq!(after.covered_lsn(), through);
    assert_eq!(after.checkpoints, []);
    let removed = server.engine.end_compaction(Duration::ZERO).await.unwrap();
    assert!(matches!(removed, Removal::Removed { .. }));
    let old: Vec<String> = before
        .segments
        .iter()
        .map(|segment| segment.object.clone())
        .collect();
    eventually("the old objects are deleted", || {
        let names = names(&store, "seg/");
        !names.iter().any(|name| old.contains(name))
    })
    .await;
    // A checkpoint of now names what is there now.
    server.upload(101).await;
    let checkpoint = server.engine.checkpoint().await.unwrap();
    let path = dir.path().join("ckpt").join(checkpoint.lsn().hex());
    server
        .handle
        .publish_checkpoint(path, checkpoint.lsn())
        .await
        .unwrap();
    server.upload(102).await;
    let answers = server.answers();
    server.kill().await;

    let server = Server::start(&store, other.path()).await;
    assert!(server.restored);
    assert_eq!(server.answers(), answers);
    assert_eq!(server.engine.oldest_lsn(), through);
    server.upload(103).await;
    server.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_ends_after_it_compacted_leaves_the_rest_to_the_next() {
    let store = faulty(8);
    let (dir, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let server = Server::start(&store, dir.path()).await;
    for n in 0..60 {
        server.upload(n).await;
    }
    let through = server.seal_and_cover(&store).await;
    let answers = server.answers();
    // The shipper is dead already when the log is compacted: everything shipped is in segments, nothing is in chunks.
    server.task.abort();
    server.engine.compact(through, options()).await.unwrap();
    server.kill().await;

    // The disk has the outputs, the replica names the inputs; both are the same log.
    let server = Server::start(&store, dir.path()).await;
    assert!(!server.restored, "the local log goes on");
    assert_eq!(server.answers(), answers);
    let first = server.engine.segments()[0].base.get();
    until(&store, "the outputs named", |manifest| {
        manifest.segments[0].base == first
    })
    .await;
    server.upload(200).await;
    let answers = server.answers();
    server.kill().await;
    let server = Server::start(&store, other.path()).await;
    assert_eq!(server.answers(), answers);
    server.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_was_not_compacted_goes_on_after_one_that_was() {
    let store = faulty(9);
    let (dir, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let server = Server::start(&store, dir.path()).await;
    for n in 0..60 {
        server.upload(n).await;
    }
    let through = server.seal_and_cover(&store).await;
    let answers = server.answers();
    server.kill().await;

    let server = Server::start(&store, other.path()).await;
    server.engine.compact(through, options()).await.unwrap();
    let first = server.engine.segments()[0].base.get();
    until(&store, "the outputs named", |manifest| {
        manifest.segments[0].base == first
    })
    .await;
    let how = Shutdown {
        drain: SOON,
        checkpoint: false,
    };
    server.engine.quiesce(how).await.unwrap();
    server.kill().await;

    let server = Server::start(&store, dir.path()).await;
    assert!(!server.restored, "nothing is in the replica that is not here");
    assert_eq!(server.answers(), answers);
    let first = server.engine.segments()[0].base.get();
    until(&store, "the segments that are here", |manifest| {
        manifest.segments[0].base == first
    })
    .await;
    // And then it compacts, too.
    server.engine.compact(through, options()).await.unwrap();
    let first = server.engine.segments()[0].base.get();
    until(&store, "its outputs", |manifest| {
        manifest.segments[0].base == first
    })
    .await;
    let last = server.upload(300).await;
    assert!(last > through);
    let answers = server.answers();
    server.kill().await;
    let third = TempDir::new().unwrap();
    let server = Server::start(&store, third.path()).await;
    assert_eq!(server.answers(), answers);
    server.kill().await;
}
