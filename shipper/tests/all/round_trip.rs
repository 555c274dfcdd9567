//! Ship, lose the disk, restore: byte for byte.

use std::sync::Arc;
use std::time::Duration;

use engine::clock::SystemClock;
use engine::log::{Log, LogConfig, Lsn, Watermark};
use shipper::chunk::HEADER_BYTES;
use shipper::names::Ordinal;
use shipper::plan::StartDecision;
use shipper::restore::{MARKER, RestoreError};
use shipper::ship::{ShipConfig, ShipEnd, Shipper};
use shipper::start::{StartError, begin};
use shipper::store::ReplicaStore;
use shipper::store::directory::DirectoryStore;
use shipper::store::faulty::{Fault, Rule, Verb};
use tempfile::TempDir;
use tokio::sync::Semaphore;

use crate::common::*;

async fn ship_lose_restore(store: Arc<dyn ReplicaStore>, segment_bytes: u64, config: ShipConfig) {
    let dir = TempDir::new().unwrap();
    let machine = Machine::start_with(
        store.clone(),
        dir.path(),
        config,
        segment_bytes,
        Arc::new(SystemClock),
    )
    .await
    .unwrap();
    let mut last = Lsn::ZERO;
    for n in 0..60 {
        last = machine
            .append(group(n, 1 + n as usize % 4, 100 + (n as usize * 997) % 9_000))
            .await;
        if n % 7 == 0 {
            machine.acknowledged(last).await;
        }
    }
    machine.acknowledged(last).await;
    let before = image(&machine.log, Lsn::MAX);
    machine.kill().await;

    let other = TempDir::new().unwrap();
    let machine = Machine::start(store, other.path()).await.unwrap();
    let restored = machine.started.restored.as_ref().unwrap();
    assert_eq!(restored.last_lsn, last);
    assert_eq!(image(&machine.log, Lsn::MAX), before);
    let next = machine.append(group(1_000, 1, 10)).await;
    assert!(next > last);
    machine.acknowledged(next).await;
    assert_eq!(machine.stop().await, ShipEnd::Stopped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_disk_comes_back_byte_for_byte_from_chunks() {
    ship_lose_restore(as_store(&faulty(1)), 64 << 20, quick()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_disk_comes_back_byte_for_byte_from_segments_and_chunks() {
    ship_lose_restore(
        as_store(&faulty(2)),
        50_000,
        ShipConfig {
            in_flight: 1,
            ..quick()
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_disk_comes_back_from_a_directory() {
    let root = TempDir::new().unwrap();
    let store: Arc<dyn ReplicaStore> = Arc::new(DirectoryStore::open(root.path()).unwrap());
    ship_lose_restore(
        store,
        50_000,
        ShipConfig {
            in_flight: 16,
            chunk_bytes: 10_000,
            ..quick()
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn covered_chunks_go_and_fences_stay() {
    let (store, dir) = (faulty(3), TempDir::new().unwrap());
    let config = ShipConfig {
        chunk_bytes: 5_000,
        ..quick()
    };
    let machine = Machine::start_with(
        as_store(&store),
        dir.path(),
        config,
        30_000,
        Arc::new(SystemClock),
    )
    .await
    .unwrap();
    for n in 0..40 {
        let last = machine.append(group(n, 2, 2_000)).await;
        machine.acknowledged(last).await;
    }
    let sealed = machine.log.seal_now().await.unwrap().unwrap();
    machine.acknowledged(sealed.last).await;
    eventually("all data chunks are covered and deleted", || {
        names(&store, "wal/").len() == 1
    })
    .await;
    assert_eq!(names(&store, "wal/"), [Ordinal::FIRST.object_name()]);
    assert!(names(&store, "manifest/").len() <= 4);
    let segments = machine.log.segments().len();
    eventually("all segments are there", || {
        names(&store, "seg/").len() == segments
    })
    .await;
    let before = image(&machine.log, Lsn::MAX);
    machine.kill().await;
    let other = TempDir::new().unwrap();
    let machine = Machine::start(as_store(&store), other.path()).await.unwrap();
    assert_eq!(image(&machine.log, Lsn::MAX), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_on_the_same_disk_ships_only_the_rest() {
    let (store, dir) = (faulty(4), TempDir::new().unwrap());
    let machine = Machine::start(as_store(&store), dir.path()).await.unwrap();
    let first = machine.append(group(1, 1, 100)).await;
    machine.acknowledged(first).await;
    store.add(Rule::always(Fault::Hang).on(Verb::Create));
    let second = machine.append(group(2, 3, 100)).await;
    machine.log.local().wait(second).await.unwrap();
    machine.kill().await;
    store.heal();
    // Twice, so that the newest reign in the replica is one that has not written a frame.
    let machine = Machine::start(as_store(&store), dir.path()).await.unwrap();
    store.add(Rule::always(Fault::Hang).on(Verb::Create));
    machine.kill().await;
    store.heal();
    let machine = Machine::start(as_store(&store), dir.path()).await.unwrap();
    assert!(machine.started.restored.is_none() && machine.started.set_aside.is_none());
    machine.acknowledged(second).await;
    let before = image(&machine.log, Lsn::MAX);
    let other = TempDir::new().unwrap();
    machine.kill().await;
    let machine = Machine::start(as_store(&store), other.path()).await.unwrap();
    assert_eq!(image(&machine.log, Lsn::MAX), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_log_without_a_replica_is_shipped_whole_to_a_new_one() {
    let (store, dir) = (faulty(5), TempDir::new().unwrap());
    let log_config = LogConfig {
        epoch: engine::log::Epoch(9),
        segment_bytes: 20_000,
        ..LogConfig::default()
    };
    let clock = Arc::new(SystemClock);
    let (log, _) = Log::open(storage(), clock, &dir.path().join("log"), &log_config).unwrap();
    let mut last = Lsn::ZERO;
    for n in 0..20 {
        last = log.append(group(n, 2, 3_000)).unwrap().await.unwrap().last;
    }
    let before = image(&log, Lsn::MAX);
    drop(log);
    let machine = Machine::start(as_store(&store), dir.path()).await.unwrap();
    assert!(machine.started.claim.epoch.0 > 9);
    machine.acknowledged(last).await;
    machine.kill().await;
    let other = TempDir::new().unwrap();
    let machine = Machine::start(as_store(&store), other.path()).await.unwrap();
    assert_eq!(image(&machine.log, Lsn::MAX), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_log_that_another_machine_overtook_is_set_aside() {
    let (store, old, new) = (faulty(6), TempDir::new().unwrap(), TempDir::new().unwrap());
    let machine = Machine::start(as_store(&store), old.path()).await.unwrap();
    let shared = machine.append(group(1, 1, 100)).await;
    machine.acknowledged(shared).await;
    store.add(Rule::always(Fault::Hang).on(Verb::Create));
    let lost = machine.append(group(2, 1, 100)).await;
    machine.log.local().wait(lost).await.unwrap();
    machine.kill().await;
    store.heal();
    let machine = Machine::start(as_store(&store), new.path()).await.unwrap();
    let kept = machine.append(group(3, 1, 100)).await;
    machine.acknowledged(kept).await;
    let truth = image(&machine.log, Lsn::MAX);
    machine.kill().await;
    std::fs::write(old.path().join("index.redb"), b"a view of what was lost").unwrap();
    let machine = Machine::start(as_store(&store), old.path()).await.unwrap();
    assert_eq!(image(&machine.log, Lsn::MAX), truth);
    let aside = machine.started.set_aside.as_ref().unwrap();
    assert!(aside.join("log").is_dir() && aside.join("index.redb").is_file());
    assert!(!old.path().join("index.redb").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_replica_is_refused_and_not_fenced() {
    let (store, a, b) = (faulty(7), TempDir::new().unwrap(), TempDir::new().unwrap());
    let machine = Machine::start(as_store(&store), a.path()).await.unwrap();
    let elsewhere = Machine::start(as_store(&faulty(8)), b.path()).await.unwrap();
    let lsn = elsewhere.append(group(1, 1, 10)).await;
    elsewhere.acknowledged(lsn).await;
    elsewhere.kill().await;
    let refused = begin(&as_store(&store), &start_options(b.path())).await;
    assert!(matches!(refused, Err(StartError::Refused(_))), "{refused:?}");
    let lsn = machine.append(group(2, 1, 10)).await;
    machine.acknowledged(lsn).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ships_everything_and_hands_over() {
    let (store, dir) = (faulty(9), TempDir::new().unwrap());
    let config = ShipConfig {
        min_interval: Some(Duration::from_secs(3_600)),
        ..quick()
    };
    let mut machine = Machine::start_with(
        as_store(&store),
        dir.path(),
        config,
        64 << 20,
        Arc::new(SystemClock),
    )
    .await
    .unwrap();
    let first = machine.append(group(1, 1, 10)).await;
    machine.acknowledged(first).await;
    let second = machine.append(group(2, 1, 10)).await;
    machine.log.local().wait(second).await.unwrap();
    eventually("the lag shows", || machine.handle.lag().bytes > 0).await;
    assert!(machine.handle.lag().entries >= 1);
    let report = machine.handle.drain(SOON, true).await;
    assert!(
        report.complete && report.handed_over && report.remote == second,
        "{report:?}"
    );
    assert_eq!(machine.ended().await, ShipEnd::HandedOver);
    assert_eq!(machine.handle.lag().bytes, 0);
    machine.kill().await;
    let machine = Machine::start(as_store(&store), dir.path()).await.unwrap();
    assert!(machine.started.claim.before.handed_over);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_in_an_outage_says_what_is_missing() {
    let (store, dir) = (faulty(10), TempDir::new().unwrap());
    let machine = Machine::start(as_store(&store), dir.path()).await.unwrap();
    store.add(Rule::always(Fault::Before(
        shipper::store::faulty::Answer::Unavailable,
    )));
    let lsn = machine.append(group(1, 1, 10)).await;
    machine.log.local().wait(lsn).await.unwrap();
    let report = machine.handle.drain(Duration::from_millis(100), true).await;
    assert!(
        !report.complete && !report.handed_over && report.local == lsn,
        "{report:?}"
    );
    assert!(report.error.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkpoints_travel_and_only_the_newest_stay() {
    let (store, dir) = (faulty(11), TempDir::new().unwrap());
    let machine = Machine::start(as_store(&store), dir.path()).await.unwrap();
    let mut newest = Lsn::ZERO;
    for n in 0..4u64 {
        newest = machine.append(group(n, 1, 10)).await;
        let views = TempDir::new().unwrap();
        std::fs::write(views.path().join("index.redb"), format!("index at {newest}")).unwrap();
        std::fs::write(views.path().join("account.sqlite"), vec![n as u8; 5 << 20]).unwrap();
        machine.acknowledged(newest).await;
        machine
            .handle
            .publish_checkpoint(views.path().to_owned(), newest)
            .await
            .unwrap();
        let again = machine
            .handle
            .publish_checkpoint(views.path().to_owned(), newest)
            .await;
        assert!(again.is_err());
        let ahead = machine
            .handle
            .publish_checkpoint(views.path().to_owned(), newest.next().unwrap())
            .await;
        assert!(ahead.is_err());
    }
    eventually("two checkpoints of two files stay", || {
        names(&store, "ckpt/").len() == 4
    })
    .await;
    machine.kill().await;
    let other = TempDir::new().unwrap();
    let restored = restore_to(&as_store(&store), other.path()).await.unwrap();
    let (path, lsn) = restored.checkpoint.unwrap();
    assert_eq!(lsn, newest);
    assert_eq!(
        std::fs::read_to_string(path.join("index.redb")).unwrap(),
        format!("index at {newest}")
    );
    assert_eq!(
        std::fs::read(path.join("account.sqlite")).unwrap(),
        vec![3; 5 << 20]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_refuses_a_log_and_cleans_up_after_a_crashed_one() {
    let (store, dir) = (faulty(12), TempDir::new().unwrap());
    let machine = Machine::start(as_store(&store), dir.path()).await.unwrap();
    let last = machine.append(group(1, 1, 10)).await;
    machine.acknowledged(last).await;
    machine.kill().await;
    let refused = restore_to(&as_store(&store), dir.path()).await;
    assert!(matches!(refused, Err(RestoreError::NotEmpty(_))));
    // A crash in the middle: the marker, and some of the files.
    std::fs::write(dir.path().join(MARKER), b"").unwrap();
    let machine = Machine::start(as_store(&store), dir.path()).await.unwrap();
    assert_eq!(machine.started.restored.as_ref().unwrap().last_lsn, last);
    assert!(!dir.path().join(MARKER).exists());
    assert_eq!(frames(&machine.log).len(), 1);
    let empty = restore_to(&as_store(&faulty(13)), TempDir::new().unwrap().path()).await;
    assert!(matches!(empty, Err(RestoreError::Empty(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_start_on_nothing_is_fresh_and_an_idle_shipper_asks_nothing() {
    let (store, dir) = (faulty(14), TempDir::new().unwrap());
    let started = begin(&as_store(&store), &start_options(dir.path()))
        .await
        .unwrap();
    assert_eq!(started.decision, StartDecision::Fresh);
    assert_eq!(store.inner().names().len(), 2);
    assert!(names(&store, "wal/").len() == 1);
    let config = LogConfig {
        epoch: started.claim.epoch,
        log_id: Some(started.claim.log_id),
        lsn_floor: started.claim.lsn_floor,
        ..LogConfig::default()
    };
    let clock = Arc::new(SystemClock);
    let log = started.recovered.start(clock.clone(), &config).unwrap();
    let (shipper, handle) = Shipper::new(
        quick(),
        as_store(&store),
        log.clone(),
        Watermark::default(),
        started.claim,
        clock,
    );
    let task = tokio::spawn(shipper.run(tokio_util::sync::CancellationToken::new()));
    let lsn = log.append(group(1, 1, 10)).unwrap().await.unwrap().last;
    handle.remote().wait(lsn).await.unwrap();
    let calls = store.calls().len();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(store.calls().len(), calls, "{:?}", store.calls());
    let chunk = store
        .inner()
        .names()
        .into_iter()
        .rfind(|name| name.as_str().starts_with("wal/"))
        .unwrap();
    assert!(store.inner().size(&chunk).await.unwrap().unwrap() > HEADER_BYTES as u64);
    task.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_that_are_covered_and_deleted_while_a_restore_reads_are_not_missed() {
    let (store, dir) = (faulty(15), TempDir::new().unwrap());
    let machine = Machine::start(as_store(&store), dir.path()).await.unwrap();
    let mut last = Lsn::ZERO;
    for n in 0..5 {
        last = machine.append(group(n, 2, 500)).await;
        machine.acknowledged(last).await;
    }
    let before = image(&machine.log, last);
    // The restore has read that there is no manifest when it comes to list the chunks.
    let gate = Arc::new(Semaphore::new(0));
    store.add(Rule::once(Fault::Hold(gate.clone())).on(Verb::List).under("wal/"));
    let other = TempDir::new().unwrap();
    let calls = store.calls().len();
    let restoring = tokio::spawn({
        let (store, dir) = (as_store(&store), other.path().to_owned());
        async move { restore_to(&store, &dir).await }
    });
    let listing = (Verb::List, "wal/".to_owned());
    eventually("it lists the chunks", || {
        store.calls().iter().skip(calls).any(|call| *call == listing)
    })
    .await;
    machine.log.seal_now().await.unwrap();
    eventually("all data chunks are gone", || names(&store, "wal/").len() == 1).await;
    gate.add_permits(1);
    assert_eq!(restoring.await.unwrap().unwrap().last_lsn, last);
    machine.kill().await;
    let machine = Machine::start(as_store(&store), other.path()).await.unwrap();
    assert_eq!(image(&machine.log, Lsn::MAX), before);
}
