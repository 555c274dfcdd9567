//! Every way in which a store can fail: a clear state, nothing acknowledged wrongly, and recovery without help.

use std::sync::Arc;
use std::time::Duration;

use engine::clock::{ScriptedClock, SystemClock};
use engine::log::Lsn;
use shipper::ship::{ShipConfig, ShipEnd, ShipState};
use shipper::store::faulty::{Answer, Fault, Rule, Verb};
use tempfile::TempDir;
use tokio::sync::Semaphore;

use crate::common::*;

async fn outage(fault: Fault, executed: bool) {
    let (store, dir) = (faulty(1), TempDir::new().unwrap());
    let machine = Machine::start(as_store(&store), dir.path()).await.unwrap();
    let first = machine.append(group(1, 1, 100)).await;
    machine.acknowledged(first).await;
    store.add(Rule::always(fault.clone()).on(Verb::Create));
    if executed {
        // The answers get lost, and reading what is there fails, too: nothing may be acknowledged on a guess.
        store.add(Rule::always(fault.clone()).on(Verb::GetRange));
    }
    let second = machine.append(group(2, 1, 100)).await;
    machine
        .wait_state("retrying", |state| matches!(state, ShipState::Retrying { .. }))
        .await;
    assert!(machine.handle.last_error().is_some());
    assert_eq!(machine.handle.remote().get(), first, "{fault:?}");
    let lag = machine.handle.lag();
    assert!(
        lag.bytes > 0 && lag.entries == 1 && lag.oldest_unshipped == Some(second),
        "{lag:?}"
    );
    store.heal();
    machine.acknowledged(second).await;
    machine
        .wait_state("shipping", |state| *state == ShipState::Shipping)
        .await;
    let third = machine.append(group(3, 1, 100)).await;
    machine.acknowledged(third).await;
    let before = image(&machine.log, Lsn::MAX);
    machine.kill().await;
    let other = TempDir::new().unwrap();
    let machine = Machine::start(as_store(&store), other.path()).await.unwrap();
    assert_eq!(image(&machine.log, Lsn::MAX), before, "{fault:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_and_failures_are_said_and_overcome() {
    for answer in [
        Answer::Denied,
        Answer::NotFound,
        Answer::Precondition,
        Answer::Conflict,
        Answer::Throttled(None),
        Answer::Throttled(Some(Duration::from_millis(20))),
        Answer::Unavailable,
        Answer::Unreachable,
        Answer::Timeout,
    ] {
        outage(Fault::Before(answer), false).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_hangs_is_said_and_overcome() {
    outage(Fault::Hang, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_answers_are_settled_by_reading_what_is_there() {
    for answer in [Answer::Unavailable, Answer::Timeout] {
        outage(Fault::After(answer), true).await;
    }
    outage(Fault::HangAfter, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_is_not_taken_for_a_fence() {
    let (store, dir) = (faulty(2), TempDir::new().unwrap());
    let machine = Machine::start(as_store(&store), dir.path()).await.unwrap();
    for n in 0..20 {
        store.add(
            Rule::once(Fault::After(Answer::Unavailable))
                .on(Verb::Create)
                .under("wal/"),
        );
        let lsn = machine.append(group(n, 1, 10)).await;
        machine.acknowledged(lsn).await;
    }
    assert_eq!(machine.handle.state(), ShipState::Shipping);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledgements_come_in_order_whatever_the_order_of_the_answers() {
    let (store, dir) = (faulty(3), TempDir::new().unwrap());
    let machine = Machine::start(as_store(&store), dir.path()).await.unwrap();
    let gate = Arc::new(Semaphore::new(0));
    store.add(
        Rule::once(Fault::Hold(gate.clone()))
            .on(Verb::Create)
            .under("wal/"),
    );
    let first = machine.append(group(1, 1, 10)).await;
    eventually("the first is out", || {
        names(&store, "wal/").len() == 1 && store.calls().last().unwrap().0 == Verb::Create
    })
    .await;
    let second = machine.append(group(2, 1, 10)).await;
    eventually("the second has arrived", || names(&store, "wal/").len() == 2).await;
    assert!(machine.handle.remote().get() < first);
    gate.add_permits(1);
    machine.acknowledged(second).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_gather_while_the_window_is_full() {
    let (store, dir) = (faulty(4), TempDir::new().unwrap());
    let config = ShipConfig {
        in_flight: 2,
        request_timeout: Duration::from_secs(60),
        ..quick()
    };
    let machine = Machine::start_with(
        as_store(&store),
        dir.path(),
        config,
        64 << 20,
        Arc::new(SystemClock),
    )
    .await
    .unwrap();
    let gate = Arc::new(Semaphore::new(0));
    store.add(Rule {
        times: Some(2),
        ..Rule::always(Fault::Hold(gate.clone()))
            .on(Verb::Create)
            .under("wal/")
    });
    let before = store.calls().len();
    let mut last = Lsn::ZERO;
    for n in 0..50 {
        last = machine.append(group(n, 1, 10)).await;
        if n < 2 {
            eventually("one more is out", || {
                store.calls().len() == before + 1 + n as usize
            })
            .await;
        }
    }
    machine.log.local().wait(last).await.unwrap();
    assert_eq!(store.calls().len(), before + 2);
    gate.add_permits(2);
    machine.acknowledged(last).await;
    assert!(
        store.calls().len() <= before + 4,
        "what gathered went in one or two chunks"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_suspension_the_chain_is_read_before_anything_is_acknowledged() {
    let (store, dir, other) = (faulty(5), TempDir::new().unwrap(), TempDir::new().unwrap());
    let clock = Arc::new(ScriptedClock::at(1_800_000_000_000_000));
    let config = ShipConfig {
        request_timeout: Duration::from_secs(60),
        ..quick()
    };
    let mut machine = Machine::start_with(as_store(&store), dir.path(), config, 64 << 20, clock.clone())
        .await
        .unwrap();
    let gate = Arc::new(Semaphore::new(0));
    store.add(
        Rule::once(Fault::Hold(gate.clone()))
            .on(Verb::Create)
            .under("wal/"),
    );
    let before = store.calls().len();
    let lsn = machine.append(group(1, 1, 10)).await;
    eventually("it is out", || store.calls().len() > before).await;
    // The machine sleeps for an hour; the request arrives, and then somebody else takes over.
    clock.advance(3_600_000_000);
    let usurper = tokio::spawn({
        let (store, dir) = (as_store(&store), other.path().to_owned());
        async move { Machine::start(store, &dir).await.unwrap() }
    });
    let usurper = usurper.await.unwrap();
    gate.add_permits(1);
    assert!(matches!(machine.ended().await, ShipEnd::Fenced { .. }));
    assert!(machine.handle.remote().get() < lsn);
    assert!(machine.handle.remote().wait(lsn).await.is_err());
    drop(usurper);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspension_without_a_rival_is_harmless() {
    let (store, dir) = (faulty(6), TempDir::new().unwrap());
    let clock = Arc::new(ScriptedClock::at(1_800_000_000_000_000));
    let config = ShipConfig {
        request_timeout: Duration::from_secs(60),
        ..quick()
    };
    let machine = Machine::start_with(as_store(&store), dir.path(), config, 64 << 20, clock.clone())
        .await
        .unwrap();
    let gate = Arc::new(Semaphore::new(0));
    store.add(
        Rule::once(Fault::Hold(gate.clone()))
            .on(Verb::Create)
            .under("wal/"),
    );
    let before = store.calls().len();
    let lsn = machine.append(group(1, 1, 10)).await;
    eventually("it is out", || store.calls().len() > before).await;
    clock.advance(3_600_000_000);
    gate.add_permits(1);
    machine.acknowledged(lsn).await;
    assert!(
        store
            .calls()
            .iter()
            .skip(before)
            .any(|(verb, _)| *verb == Verb::List)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn housekeeping_that_fails_half_way_is_finished_later() {
    for (verb, prefix) in [
        (Verb::CreateFromFile, "seg/"),
        (Verb::Create, "manifest/"),
        (Verb::List, "manifest/"),
        (Verb::Delete, "wal/"),
    ] {
        for fault in [Fault::Before(Answer::Denied), Fault::After(Answer::Denied)] {
            let (store, dir) = (faulty(7), TempDir::new().unwrap());
            let machine = Machine::start(as_store(&store), dir.path()).await.unwrap();
            store.add(Rule::once(fault.clone()).on(verb).under(prefix));
            let last = machine.append(group(1, 3, 1_000)).await;
            machine.acknowledged(last).await;
            machine.log.seal_now().await.unwrap();
            eventually("a manifest", || !names(&store, "manifest/").is_empty()).await;
            let last = machine.append(group(2, 3, 1_000)).await;
            machine.acknowledged(last).await;
            let before = image(&machine.log, Lsn::MAX);
            machine.kill().await;
            let other = TempDir::new().unwrap();
            let machine = Machine::start(as_store(&store), other.path()).await.unwrap();
            assert_eq!(
                image(&machine.log, Lsn::MAX),
                before,
                "{verb:?} {prefix} {fault:?}"
            );
        }
    }
}
