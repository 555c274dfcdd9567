use bytes::Bytes;
use engine::clock::ScriptedClock;

use super::*;
use crate::store::faulty::{Answer, Fault, FaultyStore, Rule, Verb};
use crate::store::memory::MemoryStore;

const LIMIT: Duration = Duration::from_secs(5);
const NOON: u64 = 1_800_000_000_000_000;

type Faulty = FaultyStore<MemoryStore>;

fn store() -> (Arc<Faulty>, Arc<dyn ReplicaStore>, Requests) {
    let faulty = Arc::new(FaultyStore::new(MemoryStore::new(), 1));
    let store: Arc<dyn ReplicaStore> = faulty.clone();
    let requests = Requests::new(store.clone(), LIMIT);
    (faulty, store, requests)
}

fn clock() -> (Arc<ScriptedClock>, Arc<dyn Clock>) {
    let clock = Arc::new(ScriptedClock::at(NOON));
    (clock.clone(), clock)
}

/// One who has been heard, or who may not be.
async fn enter(store: &Arc<dyn ReplicaStore>, clock: &Arc<dyn Clock>) -> Reading {
    let announce = Announce {
        clock: clock.clone(),
        after: Duration::ZERO,
    };
    let reading = Reading::new(store, Some(&announce), LIMIT);
    assert_eq!(reading.enter(&announce).await.err(), None);
    reading
}

async fn renewed(reading: &Reading) {
    let announce = reading.announce.as_ref().unwrap();
    assert_eq!(reading.change(announce, true).await, Ok(()));
}

/// What becomes of one who tries.
async fn refusal(store: &Arc<dyn ReplicaStore>, clock: &Arc<dyn Clock>) -> Option<String> {
    let reading = Reading::new(store, Some(&Announce::new(clock.clone())), LIMIT);
    reading.during(tokio::time::sleep(ENTER_AFTER + LIMIT)).await;
    let refused = reading.refused();
    reading.end().await;
    refused
}

#[tokio::test(start_paused = true)]
async fn a_reader_is_heard_until_he_leaves_and_the_oldest_counts() {
    let (_, store, requests) = store();
    let (_, clock) = clock();
    assert_eq!(oldest(&requests, NOON).await, Ok(None));
    let first = enter(&store, &clock).await;
    assert_eq!(oldest(&requests, NOON).await, Ok(Some(Generation(0))));
    first.goes_by(Generation(7));
    renewed(&first).await;
    assert_eq!(oldest(&requests, NOON).await, Ok(Some(Generation(7))));
    let second = enter(&store, &clock).await;
    second.goes_by(Generation(9));
    renewed(&second).await;
    first.end().await;
    assert_eq!(oldest(&requests, NOON).await, Ok(Some(Generation(9))));
    second.end().await;
    assert_eq!(oldest(&requests, NOON).await, Ok(None));
}

#[tokio::test(start_paused = true)]
async fn who_does_not_renew_is_forgotten_and_who_always_does_as_well_in_the_end() {
    let (_, store, requests) = store();
    let (time, clock) = clock();
    drop(enter(&store, &clock).await);
    time.advance(micros(HOLDS));
    assert!(oldest(&requests, time.now_micros()).await.unwrap().is_some());
    time.advance(micros(CLOCK_MARGIN) + 1);
    assert_eq!(oldest(&requests, time.now_micros()).await, Ok(None));

    let endless = enter(&store, &clock).await;
    let mut passed = Duration::ZERO;
    while passed <= LONGEST {
        assert!(
            oldest(&requests, time.now_micros()).await.unwrap().is_some(),
            "{passed:?}"
        );
        time.advance(micros(RENEW_EVERY));
        renewed(&endless).await;
        passed += RENEW_EVERY;
    }
    assert_eq!(oldest(&requests, time.now_micros()).await, Ok(None));
}

#[tokio::test]
async fn a_clock_that_is_far_off_and_what_is_no_list_hold_nothing() {
    let (_, store, requests) = store();
    let (_, clock) = clock();
    let _reading = enter(&store, &clock).await;
    let before = NOON - micros(CLOCK_MARGIN);
    assert!(oldest(&requests, before).await.unwrap().is_some());
    assert_eq!(oldest(&requests, before - 1).await, Ok(None));

    let name = ObjectName::new(READERS_OBJECT).unwrap();
    for nonsense in ["{", "[]", "{\"readers\":[{}]}", &"x".repeat(40 << 10)] {
        let (_, tag) = store.read_tagged(&name, 1 << 20).await.unwrap().unwrap();
        let swapped = store.swap(&name, Bytes::copy_from_slice(nonsense.as_bytes()), Some(&tag));
        assert!(matches!(swapped.await, Ok(Swap::Swapped(_))));
        assert_eq!(oldest(&requests, NOON).await, Ok(None));
    }
}

#[tokio::test(start_paused = true)]
async fn there_is_room_for_so_many_and_the_forgotten_give_way() {
    let (_, store, requests) = store();
    let (time, clock) = clock();
    let mut readings = Vec::new();
    for _ in 0..MAX_READERS {
        readings.push(enter(&store, &clock).await);
    }
    let name = ObjectName::new(READERS_OBJECT).unwrap();
    let size = store.size(&name).await.unwrap().unwrap();
    assert!(size * 2 <= MAX_BYTES, "{size}");
    assert!(refusal(&store, &clock).await.unwrap().contains("64 others"));
    time.advance(micros(HOLDS + CLOCK_MARGIN) + 1);
    let _heard = enter(&store, &clock).await;
    assert!(oldest(&requests, time.now_micros()).await.unwrap().is_some());
    assert_eq!(refusal(&store, &clock).await, None);
}

#[tokio::test]
async fn two_who_enter_at_once_are_both_heard() {
    let (_, store, requests) = store();
    let (_, clock) = clock();
    let all = (0..6).map(|_| enter(&store, &clock));
    let mut all = futures_util::future::join_all(all).await;
    let last = all.pop().unwrap();
    for reading in all {
        reading.end().await;
    }
    assert!(oldest(&requests, NOON).await.unwrap().is_some());
    last.end().await;
    assert_eq!(oldest(&requests, NOON).await, Ok(None));
}

#[tokio::test(start_paused = true)]
async fn who_may_not_write_reads_all_the_same_and_a_lost_answer_does_no_harm() {
    let (faulty, store, requests) = store();
    let (_, clock) = clock();
    faulty.add(Rule::always(Fault::Before(Answer::Denied)).on(Verb::Swap));
    assert!(refusal(&store, &clock).await.unwrap().contains("denied"));
    assert_eq!(oldest(&requests, NOON).await, Ok(None));

    faulty.heal();
    faulty.add(Rule::once(Fault::After(Answer::Timeout)).on(Verb::Swap));
    let reading = enter(&store, &clock).await;
    assert!(oldest(&requests, NOON).await.unwrap().is_some());
    reading.end().await;
    assert_eq!(oldest(&requests, NOON).await, Ok(None));
}

#[tokio::test(start_paused = true)]
async fn who_is_soon_done_asks_nothing_and_who_is_not_is_heard_and_renews() {
    let (faulty, store, requests) = store();
    let (time, clock) = clock();
    let announce = Announce::new(clock.clone());
    let reading = Reading::new(&store, Some(&announce), LIMIT);
    let done = reading.during(async {
        tokio::time::sleep(ENTER_AFTER / 2).await;
        5
    });
    assert_eq!(done.await, 5);
    reading.end().await;
    let reading = Reading::new(&store, None, LIMIT);
    reading.during(tokio::time::sleep(LONGEST)).await;
    reading.end().await;
    assert_eq!(faulty.calls(), []);

    let reading = Reading::new(&store, Some(&announce), LIMIT);
    let hours = async {
        tokio::time::sleep(ENTER_AFTER * 2).await;
        for _ in 0..60 {
            assert_eq!(
                oldest(&requests, time.now_micros()).await,
                Ok(Some(Generation(3)))
            );
            time.advance(micros(RENEW_EVERY));
            tokio::time::sleep(RENEW_EVERY).await;
        }
    };
    reading.goes_by(Generation(3));
    reading.during(hours).await;
    assert!(!reading.is_late());
    reading.end().await;
    assert_eq!(oldest(&requests, time.now_micros()).await, Ok(None));
}

#[tokio::test(start_paused = true)]
async fn who_enters_behind_a_newer_manifest_knows_that_he_is_late() {
    let (_, store, _) = store();
    let (_, clock) = clock();
    let manifest = ObjectName::new(Generation(4).object_name()).unwrap();
    store.create(&manifest, Bytes::from_static(b"any")).await.unwrap();
    for (by, late) in [(3, true), (4, false)] {
        let reading = Reading::new(&store, Some(&Announce::new(clock.clone())), LIMIT);
        reading.looks();
        reading.goes_by(Generation(by));
        reading.during(tokio::time::sleep(ENTER_AFTER + LIMIT)).await;
        assert_eq!(reading.is_late(), late);
        reading.looks();
        assert!(!reading.is_late(), "he will see what is there now");
        reading.end().await;
    }
}
