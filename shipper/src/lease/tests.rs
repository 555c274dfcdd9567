use std::sync::atomic::{AtomicU64, Ordering};

use engine::clock::ScriptedClock;

use super::*;
use crate::store::faulty::{Answer, Fault, FaultyStore, Rule, Verb};
use crate::store::memory::MemoryStore;

const NOW: u64 = 1_767_225_600_000_000;
const HOLDS: Duration = Duration::from_secs(30);

fn store() -> Arc<FaultyStore<MemoryStore>> {
    Arc::new(FaultyStore::new(MemoryStore::new(), 1))
}

fn keeper(store: &Arc<FaultyStore<MemoryStore>>, epoch: u64) -> Keeper {
    Keeper::new(
        store.clone(),
        Arc::new(ScriptedClock::at(NOW)),
        Writer {
            id: format!("{epoch:032x}"),
            instance: "here:/data".to_owned(),
            epoch: Epoch(epoch),
            url: format!("http://writer-{epoch}"),
        },
        HOLDS,
    )
}

async fn there(store: &Arc<FaultyStore<MemoryStore>>) -> Option<Lease> {
    read(&**store, HOLDS).await.unwrap().and_then(|(lease, _)| lease)
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_while_it_is_kept_and_given_back_at_the_end() {
    let store = store();
    let keeper = keeper(&store, 3);
    let status = keeper.status();
    let (stop, beats) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
    assert!(!status.is_valid());
    let counted = beats.clone();
    let keeping = tokio::spawn(keeper.keep(stop.clone(), move || {
        counted.fetch_add(1, Ordering::Relaxed);
    }));
    let mut observed = Observed::default();
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(29)).await;
        assert!(status.is_valid());
        let lease = observed.look(&*store, HOLDS).await.unwrap().unwrap();
        assert_eq!((lease.epoch, lease.url.as_str()), (3, "http://writer-3"));
    }
    let renewals = there(&store).await.unwrap().renewals;
    assert!((27..=31).contains(&renewals), "{renewals} renewals in 290 s");
    assert!(beats.load(Ordering::Relaxed) >= 280);
    stop.cancel();
    assert_eq!(keeping.await.unwrap(), LeaseEnd::Released);
    assert!(there(&store).await.unwrap().is_gone(NOW));
    assert_eq!(observed.look(&*store, HOLDS).await.unwrap(), None);
    assert!(!status.is_valid());
}

#[tokio::test(start_paused = true)]
async fn a_lease_lapses_with_the_store_and_comes_back_with_it() {
    let store = store();
    let keeper = keeper(&store, 3);
    let status = keeper.status();
    let stop = CancellationToken::new();
    let keeping = tokio::spawn(keeper.keep(stop.clone(), || {}));
    let mut observed = Observed::default();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(status.is_valid());
    store.add(Rule::always(Fault::Before(Answer::Unavailable)).on(Verb::Swap));
    assert!(observed.look(&*store, HOLDS).await.unwrap().is_some());
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert!(!status.is_valid());
    assert_eq!(
        observed.look(&*store, HOLDS).await.unwrap(),
        None,
        "a lapsed lease is gone"
    );
    store.heal();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(status.is_valid());
    assert!(observed.look(&*store, HOLDS).await.unwrap().is_some());
    stop.cancel();
    keeping.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn lost_answers_do_not_make_a_writer_lose_its_own_lease() {
    let store = store();
    store.add(
        Rule::always(Fault::After(Answer::Unavailable))
            .on(Verb::Swap)
            .sometimes(500),
    );
    let keeper = keeper(&store, 3);
    let status = keeper.status();
    let stop = CancellationToken::new();
    let keeping = tokio::spawn(keeper.keep(stop.clone(), || {}));
    let mut invalid = 0;
    for _ in 0..300 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        invalid += u32::from(!status.is_valid());
    }
    assert!(invalid < 30, "invalid for {invalid} of 300 s");
    store.heal();
    stop.cancel();
    assert_eq!(keeping.await.unwrap(), LeaseEnd::Released);
}

#[tokio::test(start_paused = true)]
async fn a_later_reign_takes_the_lease_and_an_earlier_one_leaves_it_alone() {
    let store = store();
    let old = tokio::spawn(keeper(&store, 3).keep(CancellationToken::new(), || {}));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let stop = CancellationToken::new();
    let new = tokio::spawn(keeper(&store, 4).keep(stop.clone(), || {}));
    assert_eq!(old.await.unwrap(), LeaseEnd::Superseded { by: Epoch(4) });
    assert_eq!(there(&store).await.unwrap().epoch, 4);
    let late = keeper(&store, 2).keep(CancellationToken::new(), || {}).await;
    assert_eq!(late, LeaseEnd::Superseded { by: Epoch(4) });
    assert_eq!(there(&store).await.unwrap().epoch, 4);
    stop.cancel();
    new.await.unwrap();
}

#[tokio::test]
async fn an_old_lease_is_gone_and_a_future_one_is_not() {
    let store = store();
    let mut keeper = keeper(&store, 1);
    assert_eq!(keeper.renew().await.unwrap(), None);
    let lease = there(&store).await.unwrap();
    assert!(!lease.is_gone(NOW));
    assert!(!lease.is_gone(NOW + 80_000_000));
    assert!(lease.is_gone(NOW + 100_000_000));
    assert!(
        !lease.is_gone(NOW - 100_000_000),
        "a clock that is behind proves nothing"
    );
}
