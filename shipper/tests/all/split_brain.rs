//! Two writers on one replica: exactly one acknowledges (I5).

use std::sync::Arc;
use std::time::Duration;

use engine::clock::SystemClock;
use engine::log::Lsn;
use shipper::ship::{ShipConfig, ShipEnd, ShipState};
use shipper::start::StartOptions;
use shipper::store::faulty::{Answer, Fault, Rule, Verb};
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

/// A start of which every request may take as long as it likes.
fn patient(dir: &std::path::Path) -> StartOptions {
    StartOptions {
        request_timeout: Duration::from_secs(60),
        ..start_options(dir)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fence_under_the_name_of_a_chunk_that_was_deleted_is_void() {
    let (store, a, b) = (faulty(5), TempDir::new().unwrap(), TempDir::new().unwrap());
    let mut old = Machine::start(as_store(&store), a.path()).await.unwrap();
    let first = old.append(group(1, 1, 10)).await;
    old.acknowledged(first).await;
    let gate = Arc::new(Semaphore::new(0));
    store.add(
        Rule::once(Fault::Hold(gate.clone()))
            .on(Verb::Create)
            .under("wal/"),
    );
    let before = store.calls().len();
    let claiming = tokio::spawn({
        let (store, options) = (as_store(&store), patient(b.path()));
        async move { shipper::start::begin(&store, &options).await }
    });
    let is_fence = |(verb, name): &(Verb, String)| *verb == Verb::Create && name.starts_with("wal/");
    eventually("the fence is on its way", || {
        store.calls().iter().skip(before).any(is_fence)
    })
    .await;
    let (_, place) = store.calls().into_iter().skip(before).find(is_fence).unwrap();
    // The writer ships its next chunk under that name, covers it and deletes it.
    let second = old.append(group(2, 1, 10)).await;
    old.acknowledged(second).await;
    assert!(names(&store, "wal/").contains(&place));
    old.log.seal_now().await.unwrap();
    eventually("the chunk is covered", || !names(&store, "wal/").contains(&place)).await;
    gate.add_permits(1);
    let started = claiming.await.unwrap().unwrap();
    assert!(started.claim.ordinal.object_name() > place);
    assert_eq!(started.claim.before.last_lsn, second);
    assert_eq!(started.recovered.last_lsn(), second);
    let lost = old.append(group(3, 1, 10)).await;
    assert!(matches!(old.ended().await, ShipEnd::Fenced { .. }));
    assert!(old.handle.remote().get() < lost);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claimant_does_not_follow_anothers_void_fence() {
    let (store, a) = (faulty(9), TempDir::new().unwrap());
    let old = Machine::start(as_store(&store), a.path()).await.unwrap();
    let first = old.append(group(1, 1, 10)).await;
    old.acknowledged(first).await;
    let is_fence = |(verb, name): &(Verb, String)| *verb == Verb::Create && name.starts_with("wal/");
    let fences = |before: usize| {
        let calls = store.calls().into_iter().skip(before);
        calls.filter(is_fence).map(|(_, name)| name).collect::<Vec<_>>()
    };
    let before = store.calls().len();
    let mut claimants = Vec::new();
    for n in 1..=2 {
        let (gate, dir) = (Arc::new(Semaphore::new(0)), TempDir::new().unwrap());
        store.add(
            Rule::once(Fault::Hold(gate.clone()))
                .on(Verb::Create)
                .under("wal/"),
        );
        let (door, options) = (as_store(&store), patient(dir.path()));
        let claiming = tokio::spawn(async move { shipper::start::begin(&door, &options).await });
        eventually("a fence is on its way", || fences(before).len() == n).await;
        claimants.push((gate, dir, claiming));
    }
    let place = fences(before)[0].clone();
    assert_eq!(fences(before)[1], place);
    let second = old.append(group(2, 1, 10)).await;
    old.acknowledged(second).await;
    old.log.seal_now().await.unwrap();
    eventually("the chunk is covered", || !names(&store, "wal/").contains(&place)).await;
    let mut reigns = Vec::new();
    for (gate, _dir, claiming) in claimants {
        gate.add_permits(1);
        let started = claiming.await.unwrap().unwrap();
        assert!(started.claim.ordinal.object_name() > place);
        assert_eq!(started.recovered.last_lsn(), second);
        reigns.push((started.claim.epoch, started.claim.ordinal));
    }
    assert!(reigns[0] < reigns[1], "{reigns:?}");
    let state = shipper::fence::survey(&as_store(&store), SOON)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(state.end.epoch, reigns[1].0);
    // Nor does anything of theirs stand where the chain may come by.
    let chain: Vec<String> = state
        .chain
        .iter()
        .map(|chunk| chunk.ordinal.object_name())
        .collect();
    let covered = shipper::names::Ordinal(state.manifest.covered_through).object_name();
    for name in names(&store, "wal/") {
        assert!(
            name <= covered || chain.contains(&name),
            "{name} is not of {chain:?}, covered {covered}"
        );
    }
    old.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_under_the_name_of_one_that_was_deleted_deletes_nothing() {
    let (store, a, b) = (faulty(6), TempDir::new().unwrap(), TempDir::new().unwrap());
    let config = ShipConfig {
        request_timeout: Duration::from_secs(60),
        keep_checkpoints: 1,
        ..quick()
    };
    let clock = Arc::new(SystemClock);
    let mut old = Machine::start_with(as_store(&store), a.path(), config, 64 << 20, clock)
        .await
        .unwrap();
    let views = TempDir::new().unwrap();
    std::fs::write(views.path().join("index.redb"), b"x").unwrap();
    let lsn = old.append(group(1, 1, 10)).await;
    old.acknowledged(lsn).await;
    old.handle
        .publish_checkpoint(views.path().to_owned(), lsn)
        .await
        .unwrap();
    let kept = names(&store, "ckpt/");
    // The manifest of the next checkpoint, which takes the place of the first, is on its way for long.
    let gate = Arc::new(Semaphore::new(0));
    store.add(
        Rule::once(Fault::Hold(gate.clone()))
            .on(Verb::Create)
            .under("manifest/"),
    );
    let next = old.append(group(2, 1, 10)).await;
    old.acknowledged(next).await;
    let before = store.calls().len();
    let publishing = tokio::spawn({
        let (handle, views) = (old.handle.clone(), views.path().to_owned());
        async move { handle.publish_checkpoint(views, next).await }
    });
    let is_manifest = |(verb, name): &(Verb, String)| *verb == Verb::Create && name.starts_with("manifest/");
    eventually("the manifest is on its way", || {
        store.calls().iter().skip(before).any(is_manifest)
    })
    .await;
    let (_, place) = store.calls().into_iter().skip(before).find(is_manifest).unwrap();
    // Another writer publishes that generation and so many more that it is deleted; all of them name the first checkpoint.
    let new = Machine::start(as_store(&store), b.path()).await.unwrap();
    let mut published = 0;
    while published == 0 || names(&store, "manifest/").contains(&place) {
        let lsn = new.append(group(10 + published, 1, 10)).await;
        new.acknowledged(lsn).await;
        let newest = names(&store, "manifest/").last().cloned();
        new.log.seal_now().await.unwrap();
        eventually("the segment is named", || {
            names(&store, "manifest/").last().cloned() > newest
        })
        .await;
        published += 1;
        assert!(published < 20, "old manifests stay");
    }
    gate.add_permits(1);
    assert!(publishing.await.unwrap().is_err());
    assert!(matches!(old.ended().await, ShipEnd::Fenced { .. }));
    let there = names(&store, "ckpt/");
    assert!(
        kept.iter().all(|object| there.contains(object)),
        "{kept:?} {there:?}"
    );
    let truth = image(&new.log, Lsn::MAX);
    new.kill().await;
    let c = TempDir::new().unwrap();
    let third = Machine::start(as_store(&store), c.path()).await.unwrap();
    assert_eq!(image(&third.log, Lsn::MAX), truth);
    let restored = third.started.restored.as_ref().unwrap();
    assert!(restored.checkpoint.is_some() && restored.warnings.is_empty());
}

/// One frame that is not shipped, and then a reign of another that ships nothing.
async fn void_tail(store: &Arc<Faulty>, dir: &std::path::Path) -> Lsn {
    let old = Machine::start(as_store(store), dir).await.unwrap();
    let kept = old.append(group(1, 1, 10)).await;
    old.acknowledged(kept).await;
    store.add(Rule::always(Fault::Before(Answer::Unreachable)).on(Verb::Create));
    old.append(group(2, 1, 10)).await;
    old.kill().await;
    store.heal();
    let other = TempDir::new().unwrap();
    let other = Machine::start(as_store(store), other.path()).await.unwrap();
    other.kill().await;
    kept
}

/// A start that ends between its claim and all that comes after it.
async fn claim_and_crash(store: &Arc<Faulty>, dir: &std::path::Path) {
    // The fence is made, and its start hears of nothing any more.
    store.add(Rule::once(Fault::HangAfter).on(Verb::Create).under("wal/"));
    let before = names(store, "wal/").len();
    let crashing = tokio::spawn({
        let (store, options) = (as_store(store), patient(dir));
        async move { shipper::start::begin(&store, &options).await.is_ok() }
    });
    eventually("it has claimed", || names(store, "wal/").len() > before).await;
    crashing.abort();
    assert!(crashing.await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_behind_anothers_reign_is_void_also_if_that_shipped_nothing() {
    let (store, a) = (faulty(7), TempDir::new().unwrap());
    let kept = void_tail(&store, a.path()).await;
    let again = Machine::start(as_store(&store), a.path()).await.unwrap();
    assert!(again.started.set_aside.is_some());
    assert_eq!(again.log.local().get(), kept);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_void_tail_stays_void_if_its_start_claims_and_crashes() {
    let (store, a) = (faulty(8), TempDir::new().unwrap());
    let kept = void_tail(&store, a.path()).await;
    for _ in 0..2 {
        claim_and_crash(&store, a.path()).await;
    }
    let again = Machine::start(as_store(&store), a.path()).await.unwrap();
    assert!(again.started.set_aside.is_some());
    assert_eq!(again.log.local().get(), kept);
    // A tail that nobody came after is shipped, however often its start crashed.
    store.add(Rule::always(Fault::Before(Answer::Unreachable)).on(Verb::Create));
    let tail = again.append(group(3, 1, 10)).await;
    again.kill().await;
    store.heal();
    for _ in 0..2 {
        claim_and_crash(&store, a.path()).await;
    }
    let again = Machine::start(as_store(&store), a.path()).await.unwrap();
    assert!(again.started.set_aside.is_none());
    again.acknowledged(tail).await;
}
