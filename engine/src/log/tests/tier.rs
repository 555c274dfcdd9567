//! Segments that are away are segments: every read gives what it gave before. Invariants I3, I6, I9.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::*;

/// A replica in memory.
#[derive(Debug, Default)]
struct Replica {
    files: Mutex<BTreeMap<Lsn, Bytes>>,
    fetches: Mutex<Vec<(Lsn, Range<u64>)>>,
    down: AtomicBool,
    short: AtomicBool,
    /// Offset of a byte that comes back wrong; zero for none.
    wrong: AtomicU64,
}

impl SegmentSource for Replica {
    fn fetch(&self, segment: &AwaySegment, range: Range<u64>) -> Result<Bytes, SourceError> {
        if self.down.load(Ordering::Relaxed) {
            return Err(SourceError("it is down".to_owned()));
        }
        assert_eq!(segment.object, segment.info.base.hex());
        self.fetches.lock().push((segment.info.base, range.clone()));
        let file = self.files.lock().get(&segment.info.base).cloned();
        let file = file.ok_or_else(|| SourceError("it has no such object".to_owned()))?;
        let bytes = file.slice(range.start as usize..range.end as usize);
        let wrong = self.wrong.load(Ordering::Relaxed);
        if wrong > 0 && range.contains(&wrong) {
            let mut bytes = bytes.to_vec();
            bytes[(wrong - range.start) as usize] ^= 1;
            return Ok(bytes.into());
        }
        if self.short.load(Ordering::Relaxed) {
            return Ok(bytes.slice(1..));
        }
        Ok(bytes)
    }
}

impl Replica {
    /// Takes every sealed segment, and what it is known by.
    fn take(&self, storage: &Arc<dyn Storage>, segments: &[SegmentInfo]) -> Vec<AwaySegment> {
        let sealed = segments.iter().filter(|info| info.sealed);
        sealed
            .map(|info| {
                let bytes = file_bytes(storage, info.base);
                let file_sha256 = Sha256::digest(&bytes).into();
                self.files.lock().insert(info.base, bytes.into());
                AwaySegment {
                    log_id: LogId([9; 16]),
                    info: SegmentInfo {
                        sha256: None,
                        ..info.clone()
                    },
                    file_sha256,
                    object: info.base.hex(),
                    object_bytes: 7,
                }
            })
            .collect()
    }
}

/// A log of several sealed segments and an open one, all frames of it, and a replica of the sealed ones.
fn shipped(storage: &Arc<dyn Storage>) -> (Log, Vec<Frame>, Arc<Replica>) {
    for epoch in 1..4 {
        let log = open(storage, epoch);
        for n in 0..60 {
            put(&log, &[&format!("{epoch}-{n}"), &"y".repeat(n)]);
        }
        log.close().unwrap();
    }
    let log = open_plain(storage, 4);
    let last = put(&log, &["open"]).last;
    until_local(&log, last);
    let frames = log.tail(Lsn::ZERO).next_batch(Lsn::MAX, usize::MAX).unwrap();
    let replica = Arc::new(Replica::default());
    log.reader().in_replica(replica.take(storage, &log.segments()));
    log.reader().attach_source(Arc::clone(&replica) as _);
    (log, frames, replica)
}

/// As good as no frames in memory: everything is read from files.
fn open_plain(storage: &Arc<dyn Storage>, epoch: u64) -> Log {
    let config = LogConfig {
        ring_bytes: 1,
        ..config(epoch)
    };
    Log::open(Arc::clone(storage), clock(), dir(), &config).unwrap().0
}

/// Reads everything in every way.
fn check(reader: &LogReader, frames: &[Frame]) {
    let mut tail = reader.tail(Lsn::ZERO);
    let mut blocks = reader.blocks();
    for frame in frames {
        let found = tail.next_batch(Lsn::MAX, 1).unwrap();
        assert_eq!(found.first().map(Frame::bytes), Some(frame.bytes()));
        assert_eq!(reader.read_at(frame.location()).unwrap(), frame.bytes());
        assert_eq!(
            reader.frame_at(frame.location()).unwrap().public(),
            frame.public()
        );
        assert_eq!(reader.public_at(frame.location()).unwrap().public, frame.public());
        blocks
            .with(frame.location(), |bytes| assert_eq!(bytes, frame.bytes()))
            .unwrap();
    }
}

fn segments_on_disk(storage: &Arc<dyn Storage>) -> usize {
    let names = storage.list(dir()).unwrap();
    names.iter().filter(|name| name.ends_with(".seg")).count()
}

fn hydrate_all(reader: &LogReader) {
    while reader.hydrate().unwrap() != Hydrated::Nothing {}
}

#[test]
fn evicted_segments_are_read_from_the_replica_and_come_back_to_the_last_byte() {
    let (_, storage) = memory();
    let (log, frames, replica) = shipped(&storage);
    let reader = &log.reader();
    let segments = log.segments();
    let bytes: u64 = segments
        .iter()
        .filter(|info| info.sealed)
        .map(|info| info.bytes)
        .sum();
    // Who has it mapped keeps it.
    let mapped = reader.sealed(segments[0].base).unwrap();
    assert_eq!(reader.evict(u64::MAX).unwrap(), bytes);
    assert_eq!(mapped.bytes(), file(&replica, segments[0].base));
    assert_eq!(segments_on_disk(&storage), 1, "the open one");
    assert_eq!(reader.tier_use().away, segments.len() - 1);
    assert_eq!(reader.tier_use().away_bytes, bytes);
    check(reader, &frames);
    let seen: Vec<_> = log
        .segments()
        .iter()
        .map(|info| (info.base, info.last, info.bytes))
        .collect();
    assert_eq!(
        seen,
        segments
            .iter()
            .map(|info| (info.base, info.last, info.bytes))
            .collect::<Vec<_>>()
    );
    // The segments are small: one piece each was fetched, once.
    assert_eq!(replica.fetches.lock().len(), segments.len() - 1);
    log.close().unwrap();
    drop((log, mapped));

    // A start that knows nothing of a replica opens the log and reads what is here.
    let log = open_plain(&storage, 5);
    let reader = &log.reader();
    reader.sweep_parts().unwrap();
    assert!(
        !storage
            .list(dir())
            .unwrap()
            .iter()
            .any(|name| name.ends_with(".part"))
    );
    let away = reader.away();
    assert_eq!(away.len(), segments.len() - 1);
    assert!(matches!(
        reader.read_at(frames[0].location()),
        Err(ReadError::Away { .. })
    ));
    assert_eq!(
        reader.read_at(frames[frames.len() - 1].location()).unwrap(),
        frames[frames.len() - 1].bytes()
    );
    put(&log, &["afterwards"]);
    replica.down.store(true, Ordering::Relaxed);
    reader.attach_source(Arc::clone(&replica) as _);
    assert!(matches!(reader.hydrate(), Err(ReadError::Away { .. })));
    assert!(matches!(
        reader.tail(Lsn::ZERO).next_batch(Lsn::MAX, 1),
        Err(ReadError::Away { .. })
    ));
    replica.down.store(false, Ordering::Relaxed);
    check(reader, &frames);
    hydrate_all(reader);
    assert_eq!(reader.tier_use().away, 0);
    assert_eq!(reader.tier_use().part_bytes, 0);
    for away in away {
        assert_eq!(
            file_bytes(&storage, away.info.base),
            file(&replica, away.info.base)
        );
    }
    let fetched = replica.fetches.lock().len();
    check(reader, &frames);
    assert_eq!(replica.fetches.lock().len(), fetched);
    log.close().unwrap();
    drop(log);
    // What is here counts, although it is still listed.
    let log = open_plain(&storage, 6);
    assert_eq!(log.reader().tier_use().away, 0);
    check(&log.reader(), &frames);
}

fn file(replica: &Replica, base: Lsn) -> Bytes {
    replica.files.lock().get(&base).cloned().unwrap()
}

#[test]
fn only_what_the_replica_has_to_the_last_byte_is_evicted() {
    let (_, storage) = memory();
    let (log, frames, replica) = shipped(&storage);
    let reader = &log.reader();
    let known = replica.take(&storage, &log.segments());
    let evicts = |offered: Vec<AwaySegment>| {
        reader.in_replica(offered);
        reader.evict(u64::MAX).unwrap()
    };
    assert_eq!(evicts(Vec::new()), 0, "nothing is shipped");
    let spoilt: [fn(&mut AwaySegment); 5] = [
        |away| away.info.last = Lsn::saturating(away.info.last.get() + 1),
        |away| away.info.bytes += 1,
        |away| away.info.frames += 1,
        |away| away.info.compaction = 1,
        |away| away.log_id = LogId([8; 16]),
    ];
    for spoil in spoilt {
        let mut other = known.clone();
        other.iter_mut().for_each(spoil);
        assert_eq!(evicts(other), 0);
    }
    // The open one, however it is described.
    let open = log.segments().pop().unwrap();
    let described = AwaySegment {
        info: SegmentInfo { sealed: true, ..open },
        ..known[0].clone()
    };
    assert_eq!(evicts(vec![described]), 0);
    // Another content: once is enough, nothing is ever evicted by its name again.
    let mut other = known.clone();
    other[1].file_sha256[0] ^= 1;
    let evicted = evicts(other);
    assert_eq!(
        evicted,
        known.iter().map(|away| away.info.bytes).sum::<u64>() - known[1].info.bytes
    );
    assert_eq!(evicts(known), 0);
    assert_eq!(segments_on_disk(&storage), 2);
    check(reader, &frames);
}

#[test]
fn what_was_read_last_stays_longest() {
    let (_, storage) = memory();
    let (log, frames, _) = shipped(&storage);
    let reader = &log.reader();
    let segments = log.segments();
    reader.evict(1).unwrap();
    assert_eq!(
        reader.away()[0].info.base,
        segments[0].base,
        "nobody read any: the oldest goes"
    );
    reader.read_at(frames[0].location()).unwrap(); // The tier's time goes on with each fetch.
    reader.sealed(segments[1].base).unwrap();
    reader.evict(1).unwrap();
    assert_eq!(reader.away()[1].info.base, segments[2].base);
    // Parts go by the same rule.
    assert!(reader.tier_use().part_bytes > 0);
    reader.evict(u64::MAX).unwrap();
    assert_eq!(
        reader.tier_use(),
        TierUse {
            away: segments.len() - 1,
            away_bytes: reader.tier_use().away_bytes,
            ..TierUse::default()
        }
    );
    check(reader, &frames);
}

#[test]
fn a_replica_with_other_bytes_gives_errors_and_nothing_else() {
    let (_, storage) = memory();
    let (log, frames, replica) = shipped(&storage);
    let reader = &log.reader();
    reader.evict(u64::MAX).unwrap();
    replica.short.store(true, Ordering::Relaxed);
    assert!(matches!(
        reader.frame_at(frames[0].location()),
        Err(ReadError::Away { .. })
    ));
    replica.short.store(false, Ordering::Relaxed);
    let at = frames[0].location();
    replica
        .wrong
        .store(at.offset + u64::from(at.len) - 1, Ordering::Relaxed);
    // The frame's own checksum; the footer is right.
    assert!(matches!(reader.frame_at(at), Err(ReadError::Corrupt { .. })));
    let (mut damaged, mut back) = (0, 0);
    loop {
        match reader.hydrate().unwrap() {
            Hydrated::Nothing => break,
            Hydrated::Piece { .. } => {}
            Hydrated::Segment { .. } => back += 1,
            Hydrated::Damaged { .. } => damaged += 1,
        }
    }
    // The offset is one of every segment that is long enough.
    assert!(damaged > 0 && back == 0, "{damaged} {back}");
    assert_eq!(segments_on_disk(&storage), 1);
    replica.wrong.store(0, Ordering::Relaxed);
    check(reader, &frames);
}

#[test]
fn what_is_missing_and_not_listed_is_damage() {
    let (_, storage) = memory();
    let (log, _, _) = shipped(&storage);
    let segments = log.segments();
    log.reader().evict(1).unwrap();
    log.close().unwrap();
    drop(log);
    storage.remove(&path(segments[2].base)).unwrap();
    let (base, _, what) = super::damage(&storage);
    assert_eq!(base, segments[3].base);
    assert!(what.contains("chain"), "{what}");
}

#[test]
fn a_damaged_list_is_refused() {
    let (disk, storage) = memory();
    let (log, _, _) = shipped(&storage);
    log.reader().evict(1).unwrap();
    log.close().unwrap();
    drop(log);
    disk.flip_bit(&dir().join("away"), 50, 3).unwrap();
    assert!(matches!(
        Log::recover(storage, dir()),
        Err(OpenError::Damaged { .. })
    ));
}

#[test]
fn power_may_be_cut_at_every_step_of_going_and_coming_back() {
    let mut away_after = std::collections::BTreeSet::new();
    for stop_at in 0.. {
        let mut finished = false;
        for seed in 0..4 {
            let (memory, plain) = memory();
            let (log, frames, replica) = shipped(&plain);
            let known = replica.take(&plain, &log.segments());
            log.close().unwrap();
            drop(log);
            let faulty = Arc::new(FaultyStorage::new(plain));
            let storage: Arc<dyn Storage> = Arc::clone(&faulty) as _;
            let log = open_plain(&storage, 5);
            let reader = &log.reader();
            reader.in_replica(known.clone());
            reader.attach_source(Arc::clone(&replica) as _);
            faulty.inject(Fault::Stop, stop_at);
            let went = reader.evict(known[0].info.bytes * 3).and_then(|_| {
                reader.read_at(frames[0].location())?;
                loop {
                    match reader.hydrate()? {
                        Hydrated::Segment { .. } => break,
                        step => assert!(matches!(step, Hydrated::Piece { .. })),
                    }
                }
                reader.evict(u64::MAX)
            });
            finished = faulty.struck().is_empty();
            assert!(went.is_ok() || !finished, "{went:?}");
            drop(log);
            memory.crash(seed);

            let storage: Arc<dyn Storage> = Arc::new(memory.clone());
            let log = open_plain(&storage, 6);
            let reader = &log.reader();
            away_after.insert(reader.away().len());
            reader.attach_source(Arc::clone(&replica) as _);
            reader.sweep_parts().unwrap();
            check(reader, &frames);
            hydrate_all(reader);
            for away in &known {
                assert_eq!(
                    file_bytes(&storage, away.info.base),
                    file(&replica, away.info.base)
                );
            }
            check(reader, &frames);
        }
        if finished {
            break;
        }
    }
    assert!(away_after.contains(&0) && away_after.len() > 4, "{away_after:?}");
}

/// A log with one sealed segment of many pieces.
fn long_segment(storage: &Arc<dyn Storage>) -> (Log, Vec<Frame>, Arc<Replica>) {
    let config = LogConfig {
        segment_bytes: 64 << 20,
        ring_bytes: 1,
        ..config(1)
    };
    let (log, _) = Log::open(Arc::clone(storage), clock(), dir(), &config).unwrap();
    for n in 0..600u32 {
        put(&log, &[&format!("{n}").repeat(5_000)]);
    }
    log.close().unwrap();
    drop(log);
    let (log, _) = Log::open(
        Arc::clone(storage),
        clock(),
        dir(),
        &LogConfig {
            epoch: Epoch(2),
            ..config
        },
    )
    .unwrap();
    let frames = log.tail(Lsn::ZERO).next_batch(Lsn::MAX, usize::MAX).unwrap();
    let replica = Arc::new(Replica::default());
    log.reader().in_replica(replica.take(storage, &log.segments()));
    log.reader().attach_source(Arc::clone(&replica) as _);
    log.reader().evict(1).unwrap();
    (log, frames, replica)
}

#[test]
fn a_read_fetches_its_pieces_and_reading_on_fetches_more_at_a_time() {
    let (_, storage) = memory();
    let (log, frames, replica) = long_segment(&storage);
    let reader = &log.reader();
    let middle = &frames[300];
    assert_eq!(reader.read_at(middle.location()).unwrap(), middle.bytes());
    {
        let fetches = replica.fetches.lock();
        let (_, range) = fetches.last().unwrap();
        assert_eq!(fetches.len(), 1);
        assert!(range.end - range.start <= 2 * PIECE_BYTES, "{range:?}");
        assert!(range.start <= middle.location().offset && middle.location().offset < range.end);
    }
    check(reader, &frames);
    let bytes = log.segments()[0].bytes;
    let fetches = replica.fetches.lock();
    let fetched: u64 = fetches.iter().map(|(_, range)| range.end - range.start).sum();
    assert_eq!(fetched, bytes, "each byte once");
    let alone = bytes.div_ceil(PIECE_BYTES) as usize;
    assert!(
        alone > 25 && fetches.len() < alone / 2,
        "{} of {alone}",
        fetches.len()
    );
    assert!(
        fetches
            .iter()
            .all(|(_, range)| range.end - range.start <= 16 * PIECE_BYTES)
    );
}

#[test]
fn many_who_want_one_piece_fetch_it_once() {
    let (_, storage) = memory();
    let (log, frames, replica) = long_segment(&storage);
    let at = frames[250].location();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| assert_eq!(log.read_at(at).unwrap(), frames[250].bytes()));
        }
    });
    assert_eq!(replica.fetches.lock().len(), 1);
    // A failure is told to all of them, and is not remembered.
    replica.down.store(true, Ordering::Relaxed);
    let other = frames[590].location();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| assert!(matches!(log.read_at(other), Err(ReadError::Away { .. }))));
        }
    });
    replica.down.store(false, Ordering::Relaxed);
    assert_eq!(log.read_at(other).unwrap(), frames[590].bytes());
}

#[test]
fn a_segment_that_is_asked_for_whole_comes_back() {
    let (_, storage) = memory();
    let (log, frames, replica) = long_segment(&storage);
    let base = log.segments()[0].base;
    assert_eq!(log.reader().sealed(base).unwrap().bytes(), file(&replica, base));
    assert_eq!(log.reader().tier_use().away, 0);
    check(&log.reader(), &frames);
}

#[test]
fn parts_keep_to_their_room() {
    let (_, storage) = memory();
    let config = LogConfig {
        segment_bytes: 3 << 20,
        ring_bytes: 1,
        ..config(1)
    };
    let (log, _) = Log::open(Arc::clone(&storage), clock(), dir(), &config).unwrap();
    for n in 0..1_200u32 {
        put(&log, &[&format!("{n:05}").repeat(8_000)]);
    }
    let frames = log.tail(Lsn::ZERO).next_batch(Lsn::MAX, usize::MAX).unwrap();
    let replica = Arc::new(Replica::default());
    let reader = &log.reader();
    reader.in_replica(replica.take(&storage, &log.segments()));
    reader.attach_source(Arc::clone(&replica) as _);
    reader.evict(u64::MAX).unwrap();
    assert!(reader.tier_use().away_bytes > 40 << 20);
    // Less than the least that is kept.
    reader.set_part_room(0);
    for frame in &frames {
        assert_eq!(reader.read_at(frame.location()).unwrap(), frame.bytes());
        assert!(reader.tier_use().part_bytes <= LEAST_PART_BYTES + (4 << 20));
    }
    check(reader, &frames[..100]);
}

#[test]
fn a_compaction_waits_for_its_segments_and_takes_them_off_the_list() {
    let (_, storage) = memory();
    let (log, _, replica) = shipped(&storage);
    let reader = &log.reader();
    let segments = log.segments();
    let through = segments[3].last;
    reader.evict(u64::MAX).unwrap();
    assert!(matches!(
        reader.begin_compaction(through, 4096),
        Err(CompactionError::Away { segment }) if segment == segments[0].base
    ));
    hydrate_all(reader);
    let mut writer = reader.begin_compaction(through, 4096).unwrap();
    // What it reads stays; what comes after may go.
    reader.evict(u64::MAX).unwrap();
    assert_eq!(reader.away()[0].info.base, segments[4].base);
    for n in 0..20 {
        writer.append(draft(&format!("row {n}"))).unwrap();
    }
    writer.finish(draft("end")).unwrap().commit().unwrap();
    let after = all(reader);
    // The replica has what was written, but it is still compared with the journal at a start.
    let written = replica.take(&storage, &log.segments()[..1]);
    reader.in_replica(written.clone());
    assert_eq!(reader.tier_use().evictable, 0);
    reader.end_compaction().unwrap();
    let listed = away_segments(storage.as_ref(), dir()).unwrap();
    assert!(listed.iter().all(|away| away.info.base > through), "{listed:?}");
    assert_eq!(reader.tier_use().evictable, 1);
    reader.evict(u64::MAX).unwrap();
    log.close().unwrap();
    drop(log);
    let log = open_plain(&storage, 5);
    log.reader().attach_source(replica);
    assert_eq!(log.reader().compaction(), 1);
    assert_eq!(all(&log.reader()), after);
}

#[test]
fn a_log_is_installed_with_its_beginning_away() {
    let (_, storage) = memory();
    let (log, frames, replica) = shipped(&storage);
    let segments = log.segments();
    let known = replica.take(&storage, &segments);
    log.close().unwrap();
    drop(log);
    for (whole, chunks) in [(0, true), (1, true), (2, false), (0, false)] {
        let (_, target) = memory();
        let mut install = SegmentInstaller::begin(Arc::clone(&target), dir(), LogId([9; 16])).unwrap();
        let away = known.len() - whole;
        install.away(&known[..away]).unwrap();
        for info in &known[away..] {
            let mut upload = install.sealed(info.info.base).unwrap();
            upload.write(&file(&replica, info.info.base)).unwrap();
            install.install(upload).unwrap();
        }
        let last = frames.last().unwrap();
        if chunks {
            install.append_frames(last.bytes()).unwrap();
        }
        let end = install.finish().unwrap();
        assert_eq!(
            end,
            if chunks {
                last.lsn()
            } else {
                known.last().unwrap().info.last
            }
        );
        let found = Log::recover(Arc::clone(&target), dir()).unwrap();
        assert_eq!((found.last_lsn(), found.log_id()), (end, Some(LogId([9; 16]))));
        let log = found
            .start(
                clock(),
                &LogConfig {
                    ring_bytes: 1,
                    ..config(6)
                },
            )
            .unwrap();
        log.reader().attach_source(Arc::clone(&replica) as _);
        check(&log.reader(), &frames[..frames.len() - usize::from(!chunks)]);
        put(&log, &["goes on"]);
        assert_eq!(all(&log.reader()).last().map(String::as_str), Some("goes on"));
        drop(log);
        assert!(matches!(
            SegmentInstaller::begin(target, dir(), LogId([9; 16])),
            Err(InstallError::NotEmpty { .. })
        ));
    }
    let (_, target) = memory();
    let mut install = SegmentInstaller::begin(target, dir(), LogId([9; 16])).unwrap();
    let gap = [known[0].clone(), known[2].clone()];
    assert!(matches!(install.away(&gap), Err(InstallError::Damaged { .. })));
}
