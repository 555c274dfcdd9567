//! A log that follows another's frames is the same log, and a promoted one goes on with it. Invariants I2, I3, I5.

use super::*;
use crate::log::{FeedError, PromoteError};

/// A writer's log of several segments in two reigns, and all its frames.
fn writer() -> (Arc<dyn Storage>, Vec<Frame>, Vec<SegmentInfo>) {
    let (_, storage) = memory();
    for epoch in 1..3 {
        let log = open(&storage, epoch);
        for n in 0..60 {
            put(&log, &[&format!("{epoch}-{n}"), &"y".repeat(n)]);
        }
        log.close().unwrap();
    }
    let found = Log::recover(Arc::clone(&storage), dir()).unwrap();
    let frames = found
        .reader()
        .tail(Lsn::ZERO)
        .next_batch(Lsn::MAX, usize::MAX)
        .unwrap();
    let segments = found.segments();
    (storage, frames, segments)
}

fn raw(frames: &[Frame]) -> bytes::Bytes {
    let bytes: Vec<u8> = frames.iter().flat_map(|frame| frame.bytes().to_vec()).collect();
    bytes.into()
}

fn follow(storage: &Arc<dyn Storage>) -> Log {
    let found = Log::recover(Arc::clone(storage), dir()).unwrap();
    found.follow(clock(), &config(0)).unwrap()
}

fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

#[test]
fn a_fed_log_is_the_writers_to_the_last_byte_however_the_frames_come_and_however_often_it_restarts() {
    let (storage, frames, segments) = writer();
    for (pieces, restart_every) in [(2, 7), (14, 3), (56, 1), (frames.len(), 1)] {
        let (_, target) = memory();
        let mut log = follow(&target);
        for (at, piece) in frames.chunks(pieces).enumerate() {
            let last = block(log.feed(raw(piece))).unwrap();
            assert_eq!(last, piece.last().unwrap().lsn());
            assert_eq!((log.local().get(), log.appended().get()), (last, last));
            // What is here already is passed over.
            assert_eq!(block(log.feed(raw(piece))).unwrap(), last);
            if at % restart_every == 0 {
                log.close().unwrap();
                drop(log);
                log = follow(&target);
                assert_eq!(log.local().get(), last);
            }
        }
        for frame in &frames {
            assert_eq!(log.read_at(frame.location()).unwrap(), frame.bytes());
        }
        // The newest of the writer's segments is still open there, too.
        for info in segments.iter().filter(|info| info.sealed) {
            assert_eq!(file_bytes(&target, info.base), file_bytes(&storage, info.base));
        }
        assert_eq!(log.segments().len(), segments.len());
    }
}

#[test]
fn a_promoted_log_takes_groups_of_its_own_reign_and_survives_a_restart() {
    let (_, frames, _) = writer();
    let (_, target) = memory();
    let log = follow(&target);
    assert_eq!(
        log.append(vec![draft("mine")]).unwrap_err(),
        AppendError::Following
    );
    block(log.feed(raw(&frames))).unwrap();
    let last = log.local().get();
    assert!(matches!(
        block(log.promote(Epoch(2), last)),
        Err(PromoteError::StaleEpoch { .. })
    ));
    assert!(log.is_following());
    let floor = Lsn::new(last.get() + 1_000_000).unwrap();
    block(log.promote(Epoch(7), floor)).unwrap();
    assert_eq!(
        block(log.promote(Epoch(8), floor)),
        Err(PromoteError::NotFollowing)
    );
    assert_eq!(block(log.feed(raw(&frames[..2]))), Err(FeedError::NotFollowing));
    let mine = put(&log, &["mine"]);
    assert!(mine.first > floor);
    until_local(&log, mine.last);
    let mut texts = all(&log.reader());
    assert_eq!(texts.pop().unwrap(), "mine");
    assert_eq!(texts.len(), frames.len());
    log.close().unwrap();
    drop(log);
    let log = open(&target, 8);
    assert_eq!(all(&log.reader()).len(), frames.len() + 1);
    assert_eq!(log.segments().last().unwrap().epoch, Epoch(7));
}

#[test]
fn a_clock_far_behind_what_was_followed_does_not_promote() {
    let (_, frames, _) = writer();
    let (_, target) = memory();
    let found = Log::recover(Arc::clone(&target), dir()).unwrap();
    let behind = Arc::new(ScriptedClock::at(NOW - 3 * 24 * 3_600 * 1_000_000));
    let log = found.follow(behind, &config(0)).unwrap();
    block(log.feed(raw(&frames))).unwrap();
    assert!(matches!(
        block(log.promote(Epoch(9), Lsn::ZERO)),
        Err(PromoteError::ClockBehind { .. })
    ));
    assert!(log.is_following());
}

#[test]
fn frames_that_do_not_fit_are_refused_whole_and_the_log_goes_on() {
    let (_, frames, _) = writer();
    let (_, target) = memory();
    let log = follow(&target);
    block(log.feed(raw(&frames[..20]))).unwrap();
    let before = (log.local().get(), log.segments());
    let refuse = |bytes: Vec<u8>, why: &str| {
        let refused = block(log.feed(bytes.into()));
        assert!(
            matches!(refused, Err(FeedError::Damaged(_))),
            "{why}: {refused:?}"
        );
        assert_eq!((log.local().get(), log.segments()), before, "{why}");
    };
    refuse(raw(&frames[22..40]).to_vec(), "a gap");
    refuse(raw(&frames[20..21]).to_vec(), "half a group");
    let whole = raw(&frames[20..60]).to_vec();
    for byte in (0..whole.len()).step_by(41) {
        let mut bad = whole.clone();
        bad[byte] ^= 16;
        refuse(bad, "a flipped bit");
    }
    refuse(whole[..whole.len() - 1].to_vec(), "cut short");
    block(log.feed(whole.into())).unwrap();
    assert_eq!(log.local().get(), frames[59].lsn());
}

#[test]
fn a_disk_that_fails_closes_a_follower_and_what_it_had_is_there_after_a_restart() {
    let (_, frames, _) = writer();
    let mut hit = 0;
    for fault in [Fault::ShortWrite, Fault::SyncFails, Fault::DirSyncFails] {
        for spared in 0..8 {
            let (_, target) = memory();
            let faulty = FaultyStorage::new(Arc::clone(&target));
            let storage: Arc<dyn Storage> = Arc::new(faulty.clone());
            let log = follow(&storage);
            faulty.inject(fault, spared);
            let mut fed = Lsn::ZERO;
            for piece in frames.chunks(10) {
                match block(log.feed(raw(piece))) {
                    Ok(last) => fed = last,
                    Err(error) => {
                        assert!(matches!(error, FeedError::Failed { .. }), "{error}");
                        assert!(log.append(vec![draft("no")]).is_err());
                        hit += 1;
                        break;
                    }
                }
            }
            drop((log, storage, faulty));
            let log = follow(&target);
            assert!(log.local().get() >= fed, "{fault:?} {spared}");
            block(log.feed(raw(&frames))).unwrap();
            assert_eq!(all(&log.reader()).len(), frames.len());
        }
    }
    assert!(hit >= 20, "only {hit} faults struck");
}
