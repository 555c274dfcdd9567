//! Old segments go to cheaper tiers of the store: once, by the writer alone, and are read as before.

use std::sync::Arc;
use std::time::Duration;

use engine::clock::ScriptedClock;
use shipper::ageing::{Ageing, Cooled, TIERS_OBJECT};
use shipper::manifest::Manifest;
use shipper::ship::ShipConfig;
use shipper::store::directory::DirectoryStore;
use shipper::store::faulty::{Answer, Fault, FaultyStore, Rule, Verb};
use shipper::store::{ObjectName, ReplicaStore, Tier};
use tempfile::TempDir;

use crate::common::*;
use crate::compaction::manifest;

const DAY: u64 = 86_400_000_000;
/// 2026-01-01, in microseconds since 1970.
const BEGINNING: u64 = 1_767_225_600_000_000;

fn config() -> ShipConfig {
    let days = |days: u64| Some(Duration::from_micros(days * DAY));
    ShipConfig {
        ageing: Ageing {
            cool_after: days(30),
            cold_after: days(90),
            look_every: Duration::from_millis(5),
        },
        ..quick()
    }
}

async fn start(store: Arc<dyn ReplicaStore>, dir: &TempDir, clock: &Arc<ScriptedClock>) -> Machine {
    let machine = Machine::start_with(store, dir.path(), config(), 64 << 20, clock.clone());
    machine.await.unwrap()
}

/// Segments of more than a MiB when they are packed.
async fn write(machine: &Machine, segments: u64) {
    for tag in 0..segments {
        let mut last = machine.log.local().get();
        for n in 0..3 {
            last = machine.append(group(tag * 3 + n, 2, 200_000)).await;
        }
        machine.log.seal_now().await.unwrap();
        eventually("it is covered", || machine.handle.covered() >= last).await;
    }
}

fn tiers(store: &Arc<Faulty>, manifest: &Manifest) -> Vec<Tier> {
    let object = |object: &str| store.inner().tier(&ObjectName::new(object).unwrap());
    manifest
        .segments
        .iter()
        .map(|segment| object(&segment.object))
        .collect()
}

fn asked(store: &Arc<Faulty>, verb: Verb) -> usize {
    store.calls().iter().filter(|(asked, _)| *asked == verb).count()
}

/// Time for many looks.
async fn looks() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_segments_are_moved_once_over_restarts_and_read_as_before() {
    use Tier::{Cold, Cool, Hot};
    let (store, dir) = (faulty(61), TempDir::new().unwrap());
    let clock = Arc::new(ScriptedClock::at(BEGINNING));
    let machine = start(as_store(&store), &dir, &clock).await;
    write(&machine, 2).await;
    clock.advance(70 * DAY);
    write(&machine, 2).await;
    let now = manifest(&store).await;
    assert_eq!(now.segments.len(), 4);
    assert!(now.segments.iter().all(|segment| segment.stored_bytes > 1 << 20));
    eventually("the old ones are cool", || {
        tiers(&store, &now) == [Cool, Cool, Hot, Hot]
    })
    .await;
    let bytes = |of: std::ops::Range<usize>| now.segments[of].iter().map(|s| s.stored_bytes).sum::<u64>();
    eventually("it is told", || {
        machine.handle.named().cooled
            == Cooled {
                cool: bytes(0..2),
                cold: 0,
            }
    })
    .await;
    looks().await;
    assert_eq!(asked(&store, Verb::SetTier), 2);

    clock.advance(25 * DAY);
    eventually("then cold", || tiers(&store, &now) == [Cold, Cold, Hot, Hot]).await;
    eventually("it is told", || machine.handle.named().cooled.cold == bytes(0..2)).await;
    assert_eq!(asked(&store, Verb::SetTier), 4);
    let calls = store.calls().len();
    looks().await;
    assert_eq!(
        store.calls()[calls..],
        [],
        "while nothing is due nothing is asked"
    );
    machine.kill().await;

    let machine = start(as_store(&store), &dir, &clock).await;
    eventually("what was moved is read", || {
        machine.handle.named().cooled.cold == bytes(0..2)
    })
    .await;
    looks().await;
    assert_eq!(asked(&store, Verb::SetTier), 4, "a restart moves nothing again");
    let last = machine.log.local().get();
    machine.kill().await;
    let elsewhere = TempDir::new().unwrap();
    let restored = restore_to(&as_store(&store), elsewhere.path()).await.unwrap();
    assert_eq!(restored.last_lsn, last);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_is_tried_again_and_no_trouble() {
    let (store, dir) = (faulty(62), TempDir::new().unwrap());
    let clock = Arc::new(ScriptedClock::at(BEGINNING));
    let machine = start(as_store(&store), &dir, &clock).await;
    write(&machine, 3).await;
    store.add(Rule {
        times: Some(3),
        ..Rule::always(Fault::Before(Answer::Denied))
            .on(Verb::SetTier)
            .after(1)
    });
    // The note of what was done is lost, or lost on its way back.
    store.add(
        Rule::once(Fault::Before(Answer::Conflict))
            .on(Verb::Swap)
            .under(TIERS_OBJECT),
    );
    store.add(
        Rule::once(Fault::After(Answer::Timeout))
            .on(Verb::Swap)
            .under(TIERS_OBJECT),
    );
    clock.advance(40 * DAY);
    let now = manifest(&store).await;
    let cool = |there: Vec<Tier>| there == [Tier::Cool, Tier::Cool, Tier::Hot];
    eventually("they are cool", || cool(tiers(&store, &now))).await;
    eventually("it is told", || machine.handle.named().cooled.cool > 0).await;
    assert_eq!(machine.handle.trouble(), None);
    looks().await;
    let calls = store.calls().len();
    looks().await;
    assert_eq!(store.calls()[calls..], []);
    assert!(cool(tiers(&store, &now)));
    machine.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_was_replaced_moves_nothing() {
    let (store, dir, other) = (faulty(63), TempDir::new().unwrap(), TempDir::new().unwrap());
    let clock = Arc::new(ScriptedClock::at(BEGINNING));
    let old = start(as_store(&store), &dir, &clock).await;
    write(&old, 2).await;
    // The next one, with tiers off, publishes a manifest that the old one has not seen.
    let next = Machine::start(as_store(&store), other.path()).await.unwrap();
    write(&next, 1).await;
    clock.advance(40 * DAY);
    looks().await;
    assert_eq!(asked(&store, Verb::SetTier), 0);
    old.kill().await;
    next.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_tiers_is_asked_once_and_goes_on() {
    let (at, dir) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store = Arc::new(FaultyStore::new(DirectoryStore::open(at.path()).unwrap(), 64));
    let clock = Arc::new(ScriptedClock::at(BEGINNING));
    let machine = start(store.clone(), &dir, &clock).await;
    write(&machine, 2).await;
    clock.advance(100 * DAY);
    looks().await;
    assert_eq!(machine.handle.named().cooled, Cooled::default());
    assert_eq!(machine.handle.trouble(), None);
    assert!(!at.path().join(TIERS_OBJECT).exists(), "nothing was moved");
    write(&machine, 1).await;
    looks().await;
    let asked = store
        .calls()
        .into_iter()
        .filter(|(verb, _)| *verb == Verb::SetTier);
    assert_eq!(asked.count(), 1);
    machine.stop().await;
}
