//! A log that follows a replica has what its writer acknowledged, and takes over without losing any of it. Invariants I2, I5.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::clock::{Clock, SystemClock, SystemEntropy};
use engine::log::{FeedError, Log, LogConfig, Lsn};
use shipper::chunk::{self, ChunkDraft, ChunkKind};
use shipper::fence::{ClaimOptions, claim};
use shipper::follow::{FollowError, Look, Tracker};
use shipper::names::WriterId;
use shipper::ship::{ShipConfig, ShipEnd};
use shipper::standby::{self, Holder, StandbyError, promoted};
use shipper::store::faulty::{Answer, Fault, Rule, Verb};
use shipper::store::{Created, ObjectName, ReplicaStore};
use tempfile::TempDir;

use crate::common::*;

/// A log that follows.
struct Pursuit {
    log: Log,
    tracker: Tracker,
    _temp: TempDir,
}

impl Pursuit {
    async fn begin(store: &Arc<dyn ReplicaStore>, dir: &Path) -> Pursuit {
        let temp = TempDir::new().unwrap();
        let begun = standby::begin(store, &start_options(dir), temp.path())
            .await
            .unwrap();
        let log = begun
            .recovered
            .follow(Arc::new(SystemClock), &LogConfig::default())
            .unwrap();
        Pursuit {
            log,
            tracker: begun.tracker,
            _temp: temp,
        }
    }

    /// Looks once; false if there was nothing.
    async fn step(&mut self) -> bool {
        match self.tracker.look().await {
            Ok(Look::Frames(raw)) => {
                let last = self.log.feed(raw).await.unwrap();
                assert_eq!(last, self.tracker.have());
                true
            }
            Ok(Look::Mark) => true,
            Ok(Look::Nothing) => false,
            Err(error) if error.is_passing() => true,
            Err(error) => panic!("{error}"),
        }
    }

    async fn until(&mut self, lsn: Lsn) {
        let deadline = tokio::time::Instant::now() + SOON;
        while self.log.local().get() < lsn {
            assert!(tokio::time::Instant::now() < deadline, "not at {lsn}");
            if !self.step().await {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    /// Claims, catches up and goes on as the writer.
    async fn take_over(mut self, store: &Arc<dyn ReplicaStore>, dir: &Path) -> Machine {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let options = ClaimOptions {
            log_id: self.tracker.end().log_id,
            writer_id: WriterId::random(&SystemEntropy).unwrap(),
            above_epoch: self.tracker.end().epoch,
            lsn_floor: self.log.local().get(),
            clock: clock.clone(),
            request_timeout: Duration::from_secs(5),
        };
        let claim = claim(store, &options).await.unwrap();
        self.until(claim.before.last_lsn).await;
        assert_eq!(self.log.local().get(), claim.before.last_lsn);
        self.log.promote(claim.epoch, claim.lsn_floor).await.unwrap();
        promoted(dir).unwrap();
        Machine::ship(store.clone(), self.log, claim, quick(), dir)
    }
}

/// Small segments, so that chunks are covered and deleted while they are followed.
async fn writer(store: &Arc<dyn ReplicaStore>, dir: &Path) -> Machine {
    let config = ShipConfig {
        in_flight: 4,
        ..quick()
    };
    Machine::start_with(store.clone(), dir, config, 60_000, Arc::new(SystemClock))
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_has_every_byte_at_its_place_whether_it_keeps_up_or_falls_behind() {
    let store = faulty(11);
    let as_dyn = as_store(&store);
    let (a, b) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let old = writer(&as_dyn, a.path()).await;
    let first = old.append(group(1, 2, 500)).await;
    old.acknowledged(first).await;
    let mut pursuit = Pursuit::begin(&as_dyn, b.path()).await;
    let mut last = first;
    for n in 0..200 {
        last = old
            .append(group(n, 1 + n as usize % 3, 100 + (n as usize * 997) % 5_000))
            .await;
        // Three phases: step by step; far behind, so that what it wants next is covered and gone; one store failure in ten.
        match n {
            0..60 => pursuit.until(last).await,
            60..120 => {}
            120 => store.add(
                Rule::always(Fault::Before(Answer::Unavailable))
                    .on(Verb::Get)
                    .sometimes(100),
            ),
            _ => {
                pursuit.step().await;
            }
        }
    }
    store.heal();
    old.acknowledged(last).await;
    pursuit.until(last).await;
    assert_eq!(image(&pursuit.log, Lsn::MAX), image(&old.log, Lsn::MAX));
    assert!(names(&store, "seg/").len() > 3);

    let mut old = old;
    let truth = image(&old.log, Lsn::MAX);
    let new = pursuit.take_over(&as_dyn, b.path()).await;
    let lost = old.append(group(900, 1, 10)).await;
    assert!(matches!(old.ended().await, ShipEnd::Fenced { .. }));
    assert!(old.handle.remote().wait(lost).await.is_err());
    let mine = new.append(group(901, 2, 700)).await;
    new.acknowledged(mine).await;
    assert_eq!(&image(&new.log, Lsn::MAX)[..truth.len()], truth);
    let truth = image(&new.log, Lsn::MAX);
    new.kill().await;
    let c = TempDir::new().unwrap();
    let third = Machine::start(as_dyn, c.path()).await.unwrap();
    assert_eq!(image(&third.log, Lsn::MAX), truth);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_restarts_goes_on_and_one_whose_log_is_torn_begins_anew() {
    let store = faulty(12);
    let as_dyn = as_store(&store);
    let (a, b) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let old = writer(&as_dyn, a.path()).await;
    let mut last = Lsn::ZERO;
    for n in 0..30 {
        last = old.append(group(n, 1, 3_000)).await;
    }
    old.acknowledged(last).await;
    let mut pursuit = Pursuit::begin(&as_dyn, b.path()).await;
    pursuit.until(last).await;
    drop(pursuit);
    for n in 30..60 {
        last = old.append(group(n, 1, 3_000)).await;
    }
    old.acknowledged(last).await;
    let mut pursuit = Pursuit::begin(&as_dyn, b.path()).await;
    pursuit.until(last).await;
    let segments = pursuit.log.segments();
    drop(pursuit);
    // One bit in the midst of the newest segment: whoever writes would have to be asked, who follows has the replica.
    let newest = segments
        .iter()
        .rev()
        .find(|segment| segment.bytes > 5_000)
        .unwrap();
    let path = b.path().join("log").join(format!("{}.seg", newest.base.hex()));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[1_000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let mut pursuit = Pursuit::begin(&as_dyn, b.path()).await;
    pursuit.until(last).await;
    assert_eq!(image(&pursuit.log, Lsn::MAX), image(&old.log, Lsn::MAX));
    assert!(!b.path().join("set-aside").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_the_chain_is_told_by_its_end() {
    let store = faulty(13);
    let as_dyn = as_store(&store);
    let (a, b) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let holder = async |dir: &Path| standby::holder(&as_dyn, &start_options(dir)).await.unwrap();
    assert!(matches!(holder(a.path()).await, Holder::Nobody));
    let empty = standby::begin(&as_dyn, &start_options(b.path()), b.path()).await;
    assert!(matches!(empty, Err(StandbyError::Empty(_))));
    let old = writer(&as_dyn, a.path()).await;
    let last = old.append(group(1, 1, 100)).await;
    old.acknowledged(last).await;
    assert!(matches!(holder(b.path()).await, Holder::Another { .. }));
    // Its own directory need not wait for anybody.
    assert!(matches!(holder(a.path()).await, Holder::Nobody));
    assert!(old.handle.drain(SOON, true).await.handed_over);
    assert!(matches!(holder(b.path()).await, Holder::Nobody));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_begun_while_somebody_looks_is_no_damage() {
    let store = faulty(15);
    let as_dyn = as_store(&store);
    let a = TempDir::new().unwrap();
    let old = writer(&as_dyn, a.path()).await;
    let epoch = old.started.claim.epoch;
    // Its first answer is from before the writer's beginning, what it lists from after it.
    store.add(
        Rule::once(Fault::Before(Answer::NotFound))
            .on(Verb::Get)
            .under("log.json"),
    );
    let seen = shipper::fence::survey(&as_dyn, SOON).await.unwrap().unwrap();
    assert_eq!(seen.end.epoch, epoch);
    store.add(
        Rule::always(Fault::Before(Answer::NotFound))
            .on(Verb::Get)
            .under("log.json"),
    );
    let lost = shipper::fence::survey(&as_dyn, SOON).await.unwrap_err();
    assert!(
        matches!(lost, shipper::fence::ReplicaError::NoLogObject { .. }),
        "{lost}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_void_fence_where_a_covered_chunk_was_leads_nobody_astray() {
    let store = faulty(16);
    let as_dyn = as_store(&store);
    let (a, b) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let old = writer(&as_dyn, a.path()).await;
    let first = old.append(group(1, 1, 100)).await;
    old.acknowledged(first).await;
    let mut pursuit = Pursuit::begin(&as_dyn, b.path()).await;
    while pursuit.step().await {}
    let end = *pursuit.tracker.end();
    let mut last = first;
    for n in 2..20 {
        last = old.append(group(n, 1, 30_000)).await;
        old.acknowledged(last).await;
    }
    let next = end.next.object_name();
    eventually("the next chunk is covered and gone", || {
        !names(&store, "manifest/").is_empty() && !names(&store, "wal/").contains(&next)
    })
    .await;

    // A claimant that saw the chain's end there has been asleep since.
    let draft = ChunkDraft {
        log_id: end.log_id,
        writer_id: WriterId([7; 16]),
        epoch: end.epoch.next(),
        ordinal: end.next,
        prev_lsn: end.last_lsn,
        lsn_floor: end.lsn_floor,
        created_at_micros: 1,
    };
    let (_, fence) = chunk::encode_mark(ChunkKind::Fence, &draft).unwrap();
    let name = ObjectName::new(next).unwrap();
    assert_eq!(as_dyn.create(&name, fence).await.unwrap(), Created::Created);
    pursuit.until(last).await;
    assert_eq!(image(&pursuit.log, Lsn::MAX), image(&old.log, Lsn::MAX));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_neither_takes_groups_nor_ships() {
    let store = faulty(14);
    let as_dyn = as_store(&store);
    let (a, b) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let old = writer(&as_dyn, a.path()).await;
    let last = old.append(group(1, 1, 100)).await;
    old.acknowledged(last).await;
    let before = store.inner().names();
    let mut pursuit = Pursuit::begin(&as_dyn, b.path()).await;
    pursuit.until(last).await;
    assert!(pursuit.log.append(group(2, 1, 10)).is_err());
    for _ in 0..20 {
        pursuit.step().await;
    }
    assert_eq!(store.inner().names(), before);
    assert!(matches!(
        old.log.feed(bytes::Bytes::new()).await,
        Err(FeedError::NotFollowing)
    ));
    let elsewhere = Tracker::begin(
        &as_dyn,
        shipper::follow::FollowOptions {
            request_timeout: SOON,
            temp_dir: b.path().to_owned(),
        },
        engine::log::LogId([3; 16]),
        last,
    )
    .await;
    assert!(matches!(elsewhere, Err(FollowError::ForeignLog(_))));
}
