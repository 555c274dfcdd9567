//! Two writers on one replica: exactly one acknowledges (I5).

use std::sync::Arc;
use std::time::Duration;

use engine::clock::SystemClock;
use engine::log::Lsn;
use shipper::ship::{ShipConfig, ShipEnd, ShipState};
use shipper::store::faulty::{Fault, Rule, Verb};
use tempfile::TempDir;
use tokio::sync::Semaphore;

use crate::common::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_writers_the_later_acknowledges_and_the_earlier_says_it_is_fenced() {
    let (store, a, b) = (faulty(1), TempDir::new().unwrap(), TempDir::new().unwrap());
    let mut old = Machine::start(as_store(&store), a.path()).await.unwrap();
    let shared = old.append(group(1, 1, 10)).await;
    old.acknowledged(shared).await;
    let new = Machine::start(as_store(&store), b.path()).await.unwrap();
    let lost = old.append(group(2, 1, 10)).await;
    assert_eq!(
        old.ended().await,
        ShipEnd::Fenced {
            by: new.started.claim.epoch
        }
    );
    assert_eq!(
        old.handle.state(),
        ShipState::Fenced {
            by: new.started.claim.epoch
        }
    );
    let error = old.handle.remote().wait(lost).await.unwrap_err();
    assert!(error.to_string().contains("fenced"), "{error}");
    let kept = new.append(group(3, 1, 10)).await;
    new.acknowledged(kept).await;
    let truth = image(&new.log, Lsn::MAX);
    new.kill().await;
    let c = TempDir::new().unwrap();
    let third = Machine::start(as_store(&store), c.path()).await.unwrap();
    assert_eq!(image(&third.log, Lsn::MAX), truth);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strays_beyond_the_hole_are_neither_read_nor_in_the_way() {
    let (store, a, b) = (faulty(2), TempDir::new().unwrap(), TempDir::new().unwrap());
    let config = ShipConfig {
        in_flight: 16,
        request_timeout: Duration::from_secs(60),
        ..quick()
    };
    let mut old = Machine::start_with(
        as_store(&store),
        a.path(),
        config,
        64 << 20,
        Arc::new(SystemClock),
    )
    .await
    .unwrap();
    let gate = Arc::new(Semaphore::new(0));
    // The first upload is on its way for long; fifteen behind it arrive: a hole with strays.
    store.add(
        Rule::once(Fault::Hold(gate.clone()))
            .on(Verb::Create)
            .under("wal/"),
    );
    let before = store.calls().len();
    let first = old.append(group(0, 1, 10)).await;
    eventually("the first is out", || store.calls().len() > before).await;
    for n in 1..16 {
        old.append(group(n, 1, 10)).await;
        eventually("a stray", || names(&store, "wal/").len() == 1 + n as usize).await;
    }
    let new = Machine::start(as_store(&store), b.path()).await.unwrap();
    assert_eq!(
        new.started.claim.replica.end.last_lsn,
        Lsn::ZERO,
        "nothing before the hole"
    );
    let mut last = Lsn::ZERO;
    for n in 100..120 {
        last = new.append(group(n, 1, 10)).await;
        new.acknowledged(last).await;
    }
    gate.add_permits(1);
    assert!(matches!(old.ended().await, ShipEnd::Fenced { .. }));
    assert!(old.handle.remote().get() < first);
    let truth = image(&new.log, Lsn::MAX);
    assert_eq!(truth.last().unwrap().0, last);
    new.kill().await;
    let c = TempDir::new().unwrap();
    let third = Machine::start(as_store(&store), c.path()).await.unwrap();
    assert_eq!(image(&third.log, Lsn::MAX), truth);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_claimants_at_once_each_get_a_reign_of_their_own() {
    let store = faulty(3);
    let dir = TempDir::new().unwrap();
    let machine = Machine::start(as_store(&store), dir.path()).await.unwrap();
    let lsn = machine.append(group(1, 1, 10)).await;
    machine.acknowledged(lsn).await;
    machine.kill().await;
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let store = as_store(&store);
        tasks.push(tokio::spawn(async move {
            let dir = TempDir::new().unwrap();
            let started = shipper::start::begin(&store, &start_options(dir.path()))
                .await
                .unwrap();
            (started.claim.epoch, started.claim.ordinal)
        }));
    }
    let mut claims = Vec::new();
    for task in tasks {
        claims.push(task.await.unwrap());
    }
    claims.sort();
    claims.dedup();
    assert_eq!(claims.len(), 8);
    assert!(
        claims
            .windows(2)
            .all(|pair| pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_that_the_old_writer_published_late_is_adopted() {
    let (store, a, b) = (faulty(4), TempDir::new().unwrap(), TempDir::new().unwrap());
    let old = Machine::start(as_store(&store), a.path()).await.unwrap();
    let gate = Arc::new(Semaphore::new(0));
    store.add(
        Rule::once(Fault::Hold(gate.clone()))
            .on(Verb::Create)
            .under("manifest/"),
    );
    let last = old.append(group(1, 3, 1_000)).await;
    old.acknowledged(last).await;
    old.log.seal_now().await.unwrap();
    eventually("its manifest is out", || {
        store
            .calls()
            .iter()
            .any(|(v, n)| *v == Verb::Create && n.starts_with("manifest/"))
    })
    .await;
    let config = ShipConfig {
        housekeeping_interval: Duration::from_secs(3_600),
        ..quick()
    };
    let new = Machine::start_with(
        as_store(&store),
        b.path(),
        config,
        64 << 20,
        Arc::new(SystemClock),
    )
    .await
    .unwrap();
    gate.add_permits(1);
    eventually("it is published", || names(&store, "manifest/").len() == 1).await;
    let lsn = new.append(group(2, 1, 10)).await;
    new.acknowledged(lsn).await;
    // A checkpoint makes the new one publish, too.
    let views = TempDir::new().unwrap();
    std::fs::write(views.path().join("index.redb"), b"x").unwrap();
    new.handle
        .publish_checkpoint(views.path().to_owned(), lsn)
        .await
        .unwrap();
    assert!(names(&store, "manifest/").len() == 2);
    let truth = image(&new.log, Lsn::MAX);
    old.kill().await;
    new.kill().await;
    let c = TempDir::new().unwrap();
    let third = Machine::start(as_store(&store), c.path()).await.unwrap();
    assert_eq!(image(&third.log, Lsn::MAX), truth);
    assert!(third.started.restored.as_ref().unwrap().checkpoint.is_some());
}
