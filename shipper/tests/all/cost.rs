//! What a store is asked: nothing while nothing happens, and as little as a budget of requests allows.

use std::time::Duration;

use shipper::ledger::Ledger;
use shipper::pace::{BudgetState, RequestBudget};
use shipper::ship::ShipConfig;
use shipper::store::ReplicaStore;
use shipper::store::counted::{Class, CountedStore, Purpose};
use shipper::store::memory::MemoryStore;

use super::common::*;
use std::sync::Arc;

fn counted() -> (Arc<dyn ReplicaStore>, Arc<Ledger>) {
    let ledger = Arc::new(Ledger::default());
    let store = CountedStore::new(Arc::new(MemoryStore::new()), ledger.clone());
    (Arc::new(store), ledger)
}

fn all(ledger: &Ledger) -> [u64; 4] {
    Class::ALL.map(|class| ledger.of_class(class))
}

/// A file that can be a checkpoint.
fn checkpoint(dir: &std::path::Path) -> std::path::PathBuf {
    let dir = dir.join("a-checkpoint");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("index"), b"views").unwrap();
    dir
}

/// Lets simulated time pass, and everything do what it wants to do at each of its seconds.
async fn pass(seconds: u64) {
    tokio::time::pause();
    for _ in 0..seconds {
        tokio::time::advance(Duration::from_secs(1)).await;
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }
    tokio::time::resume();
}

#[tokio::test]
async fn an_idle_log_asks_nothing_and_a_write_asks_once() {
    let dir = tempfile::tempdir().unwrap();
    let (store, ledger) = counted();
    let config = ShipConfig {
        housekeeping_interval: Duration::from_millis(50),
        ..ShipConfig::default()
    };
    let machine = Machine::start_with(
        store,
        dir.path(),
        config,
        64 << 10,
        Arc::new(engine::clock::SystemClock),
    );
    let machine = machine.await.unwrap();
    // Sealed segments, manifests, a checkpoint and the sweeps after them: all that housekeeping ever does.
    let mut last = machine.log.local().get();
    for tag in 0..40 {
        last = machine.append(group(tag, 4, 1_000)).await;
    }
    machine.acknowledged(last).await;
    machine
        .handle
        .publish_checkpoint(checkpoint(dir.path()), last)
        .await
        .unwrap();
    let segments = machine.log.segments();
    let sealed = segments.iter().rfind(|segment| segment.sealed).unwrap().last;
    eventually("all segments are shipped", || machine.handle.covered() >= sealed).await;
    assert!(ledger.requests(Class::Write, Purpose::Segment) > 0);
    assert_eq!(ledger.requests(Class::Write, Purpose::Checkpoint), 1);
    assert_eq!(machine.handle.named().checkpoint, Some(last));
    assert!(machine.handle.named().bytes > 64 << 10);
    // The looks for what was left over end when one finds nothing.
    eventually("the sweeps end", || {
        machine.handle.erased().oldest_checkpoint.is_some()
    })
    .await;

    let before = all(&ledger);
    pass(600).await;
    assert_eq!(all(&ledger), before, "an idle log asks its store for something");

    let lsn = machine.append(group(100, 1, 100)).await;
    machine.acknowledged(lsn).await;
    pass(600).await;
    let [write, list, read, delete] = before;
    assert_eq!(
        all(&ledger),
        [write + 1, list, read, delete],
        "one chunk and nothing else"
    );
    machine.stop().await;
}

#[tokio::test]
async fn a_budget_that_is_used_up_makes_fewer_larger_chunks_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, ledger) = counted();
    let budget = Arc::new(RequestBudget::new(ledger.clone(), 1, Duration::from_millis(400)));
    let config = ShipConfig {
        budget: Some(budget.clone()),
        chunk_bytes: 64 << 10,
        ..ShipConfig::default()
    };
    let clock = Arc::new(engine::clock::SystemClock);
    let machine = Machine::start_with(store.clone(), dir.path(), config, 64 << 20, clock);
    let machine = machine.await.unwrap();
    let chunks = || ledger.requests(Class::Write, Purpose::Chunk);
    let (first, began) = (chunks(), tokio::time::Instant::now());
    let mut last = machine.append(group(0, 1, 10)).await;
    machine.acknowledged(last).await;
    assert_eq!(budget.report().state, BudgetState::Exhausted);
    for tag in 1..60 {
        last = machine.append(group(tag, 1, 100)).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    machine.acknowledged(last).await;
    // What was saved up lets one more go early.
    let may = 2 + began.elapsed().as_millis() / 400;
    let made = chunks() - first;
    assert!(u128::from(made) <= may, "{made} chunks where {may} may be");

    // What fills chunks is not held back.
    let (first, began) = (chunks(), tokio::time::Instant::now());
    for tag in 100..140 {
        last = machine.append(group(tag, 1, 64 << 10)).await;
    }
    machine.acknowledged(last).await;
    let may = 2 + began.elapsed().as_millis() / 400;
    assert!(
        u128::from(chunks() - first) > may.min(20),
        "full chunks wait for the budget"
    );
    let elsewhere = tempfile::tempdir().unwrap();
    machine.stop().await;
    assert_eq!(restore_to(&store, elsewhere.path()).await.unwrap().last_lsn, last);
}
