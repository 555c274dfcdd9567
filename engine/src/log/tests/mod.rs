//! The log as a whole: what goes in comes out, what is damaged is named, what fails stops. Invariants I2, I3.

mod ahead;
mod compaction;
mod follow;
mod install;
mod recent;
mod tier;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::clock::ScriptedClock;
use crate::storage::{Fault, FaultyStorage, MemoryStorage, OpenMode, OsStorage};

const NOW: u64 = 1_767_225_600_000_000;
const DIR: &str = "/log";

fn dir() -> &'static Path {
    Path::new(DIR)
}

fn clock() -> Arc<ScriptedClock> {
    Arc::new(ScriptedClock::at(NOW))
}

fn config(epoch: u64) -> LogConfig {
    LogConfig {
        epoch: Epoch(epoch),
        log_id: Some(LogId([9; 16])),
        segment_bytes: 4096,
        ..LogConfig::default()
    }
}

fn draft(text: &str) -> Draft {
    Draft {
        kind: 1,
        public: text.as_bytes().to_vec(),
        stamps: vec![],
        private: format!("p-{text}").into_bytes(),
    }
}

fn open(storage: &Arc<dyn Storage>, epoch: u64) -> Log {
    Log::open(Arc::clone(storage), clock(), dir(), &config(epoch))
        .unwrap()
        .0
}

fn put(log: &Log, texts: &[&str]) -> GroupLsns {
    log.append(texts.iter().map(|text| draft(text)).collect())
        .unwrap()
        .wait_blocking()
        .unwrap()
}

fn until_local(log: &Log, lsn: Lsn) {
    let past = Lsn::new(lsn.get() - 1).unwrap();
    log.local()
        .wait_past_blocking(past, Duration::from_secs(30))
        .unwrap()
        .unwrap();
}

fn all(log: &LogReader) -> Vec<String> {
    let mut tail = log.tail(Lsn::ZERO);
    let mut texts = Vec::new();
    loop {
        let batch = tail.next_batch(Lsn::MAX, 1000).unwrap();
        if batch.is_empty() {
            return texts;
        }
        texts.extend(
            batch
                .iter()
                .map(|frame| String::from_utf8(frame.public().to_vec()).unwrap()),
        );
    }
}

fn memory() -> (MemoryStorage, Arc<dyn Storage>) {
    let disk = MemoryStorage::new();
    (disk.clone(), Arc::new(disk))
}

/// A log of one sealed and one open segment: `a`…, then `z`.
fn two_segments() -> (MemoryStorage, Arc<dyn Storage>, Vec<SegmentInfo>) {
    let (disk, storage) = memory();
    let log = open(&storage, 1);
    put(&log, &["a", "b"]);
    put(&log, &["c"]);
    log.close().unwrap();
    drop(log);
    let log = open(&storage, 2);
    put(&log, &["x"]);
    let last = put(&log, &["y", "z"]).last;
    until_local(&log, last);
    let segments = log.segments();
    log.close().unwrap();
    (disk, storage, segments)
}

fn path(base: Lsn) -> PathBuf {
    dir().join(segment_file_name(base))
}

fn file_bytes(storage: &Arc<dyn Storage>, base: Lsn) -> Vec<u8> {
    file_bytes_of(storage, &segment_file_name(base))
}

fn file_bytes_of(storage: &Arc<dyn Storage>, name: &str) -> Vec<u8> {
    storage
        .open(&dir().join(name), OpenMode::Read)
        .unwrap()
        .stable_bytes()
        .unwrap()
        .to_vec()
}

fn replace(storage: &Arc<dyn Storage>, base: Lsn, bytes: &[u8]) {
    let file = storage.open(&path(base), OpenMode::Write).unwrap();
    file.set_len(0).unwrap();
    file.write_at(0, bytes).unwrap();
}

fn damage(storage: &Arc<dyn Storage>) -> (Lsn, u64, String) {
    match Log::recover(Arc::clone(storage), dir()).unwrap_err() {
        OpenError::Damaged {
            segment,
            offset,
            what,
        } => (segment, offset, what),
        other => panic!("{other}"),
    }
}

#[test]
fn what_goes_in_comes_out_in_order_from_memory_and_from_files_and_after_a_restart() {
    let (_, storage) = memory();
    let mut want = Vec::new();
    let mut last = Lsn::ZERO;
    for epoch in 1..4 {
        let log = open(&storage, epoch);
        for n in 0..200 {
            let texts = [format!("{epoch}-{n}"), format!("{epoch}-{n}-more")];
            let group = put(&log, &[&texts[0], &texts[1]]);
            assert!(group.first > last && group.last > group.first);
            last = group.last;
            for (location, text) in group.locations.iter().zip(&texts) {
                let frame = log.reader().frame_at(*location).unwrap();
                assert_eq!(frame.public(), text.as_bytes());
                assert_eq!(
                    log.reader().public_at(*location).unwrap().public(),
                    text.as_bytes()
                );
                assert_eq!(log.read_at(frame.public_location()).unwrap(), text.as_bytes());
            }
            want.extend(texts);
        }
        assert_eq!(all(&log.reader()), want);
        until_local(&log, last);
        log.close().unwrap();
    }
    let found = Log::recover(Arc::clone(&storage), dir()).unwrap();
    assert_eq!(all(&found.reader()), want);
    assert!(found.segments().len() > 6 && found.cut().is_none());
    assert_eq!((found.last_lsn(), found.last_epoch()), (last, Epoch(3)));
    let log = found.start(clock(), &config(4)).unwrap();
    for info in log.segments() {
        assert!(info.sealed);
        let sealed = log.reader().sealed(info.base).unwrap();
        let (header, verified) = verify_segment(sealed.bytes()).unwrap();
        assert_eq!((header.base, verified), (info.base, info));
    }
}

#[test]
fn a_tail_from_anywhere_yields_what_follows_up_to_the_limit() {
    let (_, storage) = memory();
    let log = Log::open(
        storage,
        clock(),
        dir(),
        &LogConfig {
            ring_bytes: 0,
            ..config(1)
        },
    )
    .unwrap()
    .0;
    let lsns: Vec<Lsn> = (0..300).map(|n| put(&log, &[&"x".repeat(n)]).last).collect();
    assert!(log.segments().len() > 3);
    for (from, to) in [(0usize, 299usize), (7, 8), (100, 250), (298, 299)] {
        let mut tail = log.tail(lsns[from]);
        let mut got = Vec::new();
        loop {
            let batch = tail.next_public_batch(lsns[to], 500).unwrap();
            if batch.is_empty() {
                break;
            }
            got.extend(batch.iter().map(PublicFrame::lsn));
        }
        assert_eq!(got, lsns[from + 1..=to]);
        assert_eq!(tail.position(), lsns[to]);
    }
}

#[tokio::test]
async fn sealing_on_request_begins_a_new_segment_and_an_empty_one_is_not_sealed() {
    let (_, storage) = memory();
    let log = open(&storage, 1);
    assert_eq!(log.seal_now().await.unwrap(), None);
    let group = log.append(vec![draft("a")]).unwrap().await.unwrap();
    let info = log.seal_now().await.unwrap().unwrap();
    assert_eq!((info.first, info.last, info.frames), (group.first, group.last, 1));
    assert_eq!(log.local().get(), group.last);
    log.append(vec![draft("b")]).unwrap().await.unwrap();
    assert_eq!(log.segments().len(), 2);
    assert_eq!(all(&log.reader()), ["a", "b"]);
}

#[test]
fn lsns_follow_the_clock_never_go_back_and_respect_the_floor() {
    let (_, storage) = memory();
    let time = clock();
    let floor = Lsn::new(NOW + 50).unwrap();
    let config = LogConfig {
        lsn_floor: floor,
        ..config(1)
    };
    let log = Log::open(storage, Arc::clone(&time) as Arc<dyn Clock>, dir(), &config)
        .unwrap()
        .0;
    assert_eq!(put(&log, &["a"]).first.get(), NOW + 51);
    time.set(NOW - 1_000_000);
    assert_eq!(put(&log, &["b", "c"]).last.get(), NOW + 53);
    time.set(NOW + 1_000);
    assert_eq!(put(&log, &["d"]).first.get(), NOW + 1_000);
}

#[test]
fn a_clock_far_behind_refuses_and_a_little_behind_does_not() {
    let (_, storage, _) = two_segments();
    let start = |now| {
        Log::open(
            Arc::clone(&storage),
            Arc::new(ScriptedClock::at(now)),
            dir(),
            &config(3),
        )
    };
    let error = start(NOW - 2 * 86_400_000_000).unwrap_err();
    assert!(matches!(error, OpenError::ClockBehind { .. }), "{error}");
    start(NOW - 3_600_000_000).unwrap();
}

#[test]
fn an_epoch_that_has_written_cannot_write_again() {
    let (_, storage, _) = two_segments();
    let error = Log::open(storage, clock(), dir(), &config(2)).unwrap_err();
    assert!(matches!(error, OpenError::StaleEpoch { .. }), "{error}");
}

#[test]
fn a_locked_directory_and_a_foreign_log_are_refused() {
    let held = tempfile::tempdir().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(OsStorage);
    let (log, _) = Log::open(Arc::clone(&storage), clock(), held.path(), &config(1)).unwrap();
    put(&log, &["a"]);
    let error = Log::recover(Arc::clone(&storage), held.path()).unwrap_err();
    assert!(error.to_string().contains("locked by another process"), "{error}");
    drop(log);
    let other = LogConfig {
        log_id: Some(LogId([8; 16])),
        ..config(2)
    };
    let error = Log::open(Arc::clone(&storage), clock(), held.path(), &other).unwrap_err();
    assert!(matches!(error, OpenError::ForeignLog { .. }), "{error}");
    assert_eq!(all(&Log::recover(storage, held.path()).unwrap().reader()), ["a"]);
}

#[test]
fn a_segment_of_another_log_among_ours_is_refused() {
    let (_, storage, segments) = two_segments();
    let mut bytes = file_bytes(&storage, segments[1].base);
    bytes[16] ^= 1;
    let crc = crc32fast::hash(&bytes[..60]).to_le_bytes();
    bytes[60..64].copy_from_slice(&crc);
    replace(&storage, segments[1].base, &bytes);
    let error = Log::recover(storage, dir()).unwrap_err();
    assert!(matches!(error, OpenError::ForeignLog { .. }), "{error}");
}

#[test]
fn a_later_version_is_refused_by_name() {
    let (_, storage, segments) = two_segments();
    let mut bytes = file_bytes(&storage, segments[1].base);
    bytes[8] = 7;
    let crc = crc32fast::hash(&bytes[..60]).to_le_bytes();
    bytes[60..64].copy_from_slice(&crc);
    replace(&storage, segments[1].base, &bytes);
    let error = Log::recover(storage, dir()).unwrap_err();
    assert!(error.to_string().contains("format version 7"), "{error}");
}

#[test]
fn a_newest_segment_without_a_header_is_removed() {
    for content in [&b""[..], &[0; 64], &[0; 5000]] {
        let (_, storage, segments) = two_segments();
        open(&storage, 3).close().unwrap();
        let base = Lsn::new(segments[1].last.get() + 5).unwrap();
        let file = storage.open(&path(base), OpenMode::CreateNew).unwrap();
        file.write_at(0, content).unwrap();
        let (log, cut) = Log::open(Arc::clone(&storage), clock(), dir(), &config(3)).unwrap();
        assert_eq!(cut.unwrap().segment, base);
        assert_eq!(all(&log.reader()), ["a", "b", "c", "x", "y", "z"]);
        assert!(!storage.exists(&path(base)).unwrap());
    }
}

#[test]
fn a_header_damaged_in_front_of_frames_is_refused() {
    let (disk, storage, segments) = two_segments();
    disk.flip_bit(&path(segments[1].base), 20, 1).unwrap();
    assert_eq!(damage(&storage).0, segments[1].base);
    assert_eq!(damage(&storage).1, 0);
}

#[test]
fn the_newest_segment_truncated_anywhere_keeps_whole_groups() {
    let (_, storage, segments) = two_segments();
    let base = segments[1].base;
    // Without what was written ahead.
    let whole = file_bytes(&storage, base);
    for len in 0..usize::try_from(segments[1].bytes).unwrap() {
        replace(&storage, base, &whole[..len]);
        let found = Log::recover(Arc::clone(&storage), dir()).unwrap();
        let texts = all(&found.reader());
        let ends: [&[&str]; 3] = [
            &["a", "b", "c"],
            &["a", "b", "c", "x"],
            &["a", "b", "c", "x", "y", "z"],
        ];
        assert!(
            ends.contains(&&texts.iter().map(String::as_str).collect::<Vec<_>>()[..]),
            "{len}: {texts:?}"
        );
        assert!(texts.len() < 6, "{len}");
    }
}

#[test]
fn a_bit_flipped_before_the_last_batch_is_named_and_nothing_is_cut() {
    let (disk, storage, segments) = two_segments();
    let base = segments[1].base;
    let frames: Vec<u64> = {
        let found = Log::recover(Arc::clone(&storage), dir()).unwrap();
        let frames = found
            .reader()
            .tail(segments[0].last)
            .next_batch(Lsn::MAX, 1 << 20)
            .unwrap();
        frames.iter().map(|frame| frame.location().offset).collect()
    };
    for byte in frames[0]..frames[1] {
        disk.flip_bit(&path(base), byte, 3).unwrap();
        let (segment, offset, what) = damage(&storage);
        assert_eq!((segment, offset), (base, frames[0]), "{byte}: {what}");
        disk.flip_bit(&path(base), byte, 3).unwrap();
    }
    Log::recover(storage, dir()).unwrap();
}

#[test]
fn a_bit_flipped_in_a_sealed_segment_is_named_by_whoever_reads_or_verifies_it() {
    let (disk, storage, segments) = two_segments();
    let base = segments[0].base;
    let len = file_bytes(&storage, base).len();
    for byte in 0..len as u64 {
        disk.flip_bit(&path(base), byte, 6).unwrap();
        verify_segment(&file_bytes(&storage, base)).unwrap_err();
        match Log::recover(Arc::clone(&storage), dir()) {
            Err(OpenError::Damaged { segment, .. }) => assert_eq!(segment, base),
            Err(other) => panic!("{other}"),
            Ok(found) => {
                let mut tail = found.reader().tail(Lsn::ZERO);
                match tail.next_batch(Lsn::MAX, 1 << 20) {
                    Err(ReadError::Corrupt { segment, offset, .. }) => {
                        assert_eq!(segment, base);
                        assert!(offset <= byte, "{offset} {byte}");
                    }
                    other => panic!("byte {byte}: {other:?}"),
                }
                assert_eq!(tail.position(), Lsn::ZERO, "an error moves nothing");
            }
        }
        disk.flip_bit(&path(base), byte, 6).unwrap();
    }
}

#[test]
fn a_dropped_frame_and_a_missing_segment_break_the_chain() {
    let (_, storage, segments) = two_segments();
    let base = segments[1].base;
    let whole = file_bytes(&storage, base);
    let first = FrameHeader::parse(&whole[64..]).unwrap().len();
    let second = FrameHeader::parse(&whole[64 + first..]).unwrap().len();
    let mut without = whole[..64 + first].to_vec();
    without.extend_from_slice(&whole[64 + first + second..]);
    replace(&storage, base, &without);
    let (segment, offset, what) = damage(&storage);
    assert_eq!((segment, offset), (base, 64 + first as u64));
    assert!(what.contains("chain is broken"), "{what}");
    replace(&storage, base, &whole);

    let (log, _) = Log::open(Arc::clone(&storage), clock(), dir(), &config(3)).unwrap();
    put(&log, &["3"]);
    drop(log);
    storage.remove(&path(base)).unwrap();
    assert!(damage(&storage).2.contains("chain is broken"));
}

#[test]
fn a_log_that_begins_later_says_what_was_trimmed() {
    let (_, storage, segments) = two_segments();
    storage.remove(&path(segments[0].base)).unwrap();
    let found = Log::recover(storage, dir()).unwrap();
    let error = found
        .reader()
        .tail(Lsn::ZERO)
        .next_batch(Lsn::MAX, 1)
        .unwrap_err();
    assert!(
        matches!(error, ReadError::Trimmed { oldest } if oldest == segments[1].base),
        "{error}"
    );
    assert_eq!(
        found
            .reader()
            .tail(segments[0].last)
            .next_batch(Lsn::MAX, 1 << 20)
            .unwrap()
            .len(),
        3
    );
}

fn faulty() -> (FaultyStorage, Arc<dyn Storage>) {
    let disk = FaultyStorage::new(Arc::new(MemoryStorage::new()));
    (disk.clone(), Arc::new(disk))
}

#[test]
fn a_full_disk_a_short_write_and_a_failed_sync_close_the_log_and_tell_everybody() {
    for (fault, says) in [
        (Fault::NoSpace, "no storage space"),
        (Fault::ShortWrite, "bytes written"),
        (Fault::SyncFails, "sync failed"),
        (Fault::Stop, "disk stopped"),
    ] {
        let (disk, storage) = faulty();
        let log = open(&storage, 1);
        let good = put(&log, &["a"]);
        until_local(&log, good.last);
        disk.inject(fault, 0);
        let pending = log.append(vec![draft("b")]).unwrap().wait_blocking();
        let failed = match pending {
            Err(error) => error.to_string(),
            Ok(lsns) => {
                assert_eq!(fault, Fault::SyncFails, "written, but never durable");
                let past = Lsn::new(lsns.last.get() - 1).unwrap();
                log.local()
                    .wait_past_blocking(past, Duration::from_secs(30))
                    .unwrap_err()
                    .to_string()
            }
        };
        assert!(
            failed.contains(says) && failed.contains("takes no more writes"),
            "{fault:?}: {failed}"
        );
        assert_eq!(log.local().get(), good.last);
        let after = log.append(vec![draft("c")]).unwrap_err();
        assert!(matches!(after, AppendError::Poisoned { .. }), "{after}");
        assert!(log.close().is_err());
    }
}

#[test]
fn a_failed_directory_sync_closes_the_log_before_anything_is_accepted() {
    let (disk, storage) = faulty();
    let log = open(&storage, 1);
    disk.inject(Fault::DirSyncFails, 0);
    let error = log.append(vec![draft("a")]).unwrap().wait_blocking().unwrap_err();
    assert!(
        error.to_string().contains("sync of the directory failed"),
        "{error}"
    );
    assert_eq!(log.appended().get(), Lsn::ZERO);
}

#[test]
fn a_full_queue_says_busy_and_what_never_fits_says_so() {
    let (_, storage) = memory();
    let log = open(&storage, 1);
    let huge = Draft {
        private: vec![0; MAX_FRAME_BYTES],
        ..Draft::default()
    };
    assert!(matches!(
        log.append(vec![huge]),
        Err(AppendError::TooLarge { what: "frame", .. })
    ));
    let big = Draft {
        private: vec![0; MAX_FRAME_BYTES / 2],
        ..Draft::default()
    };
    assert!(matches!(
        log.append(vec![big; 4]),
        Err(AppendError::TooLarge { what: "group", .. })
    ));
    assert!(matches!(log.append(vec![]), Err(AppendError::Invalid { .. })));
    let stray = Draft {
        stamps: vec![Stamp::Lsn { at: 0 }],
        ..Draft::default()
    };
    assert!(matches!(
        log.append(vec![stray]),
        Err(AppendError::Invalid { .. })
    ));

    let queue = Queue::new(100, 2);
    let group = || vec![draft("a")];
    let first = queue.append(group(), 500, Reply::new(drop));
    assert!(
        first.is_ok(),
        "an empty queue takes a group of any permitted size"
    );
    assert_eq!(
        queue.append(group(), 1, Reply::new(drop)).unwrap_err(),
        AppendError::Busy
    );
}

#[test]
fn whoever_waits_when_the_log_is_poisoned_or_closed_is_told() {
    let (_, storage) = memory();
    let log = open(&storage, 1);
    log.poison("the index failed");
    let error = log.append(vec![draft("a")]).unwrap_err();
    assert_eq!(error.to_string(), "the index failed");
    let wait = log.local().wait_past_blocking(Lsn::ZERO, Duration::from_secs(30));
    assert_eq!(wait.unwrap_err().to_string(), "the index failed");
    drop(log);
    let log = open(&storage, 1);
    log.close().unwrap();
    assert_eq!(log.append(vec![draft("a")]).unwrap_err(), AppendError::Closed);
    assert!(
        log.local()
            .wait_past_blocking(Lsn::ZERO, Duration::from_secs(30))
            .is_err()
    );
}

#[test]
fn many_threads_append_in_groups_and_every_one_is_durable_once() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig {
        segment_bytes: 1 << 20,
        epoch: Epoch(1),
        ..LogConfig::default()
    };
    let clock = Arc::new(crate::clock::SystemClock);
    let (log, _) = Log::open(Arc::new(OsStorage), clock, dir.path(), &config).unwrap();
    let threads: Vec<_> = (0..8)
        .map(|thread| {
            let log = log.clone();
            std::thread::spawn(move || {
                let text = "x".repeat(400);
                (0..200)
                    .map(|n| put(&log, &[&format!("{thread}-{n}-{text}")]).last)
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    let mut lsns: Vec<Lsn> = threads
        .into_iter()
        .flat_map(|thread| thread.join().unwrap())
        .collect();
    lsns.sort_unstable();
    log.close().unwrap();
    drop(log);
    let found = Log::recover(Arc::new(OsStorage), dir.path()).unwrap();
    let frames = found
        .reader()
        .tail(Lsn::ZERO)
        .next_batch(Lsn::MAX, usize::MAX)
        .unwrap();
    assert_eq!(frames.iter().map(Frame::lsn).collect::<Vec<_>>(), lsns);
}

/// The bytes on disk are a contract. Set `PDS_WRITE_GOLDEN=1` to write the file anew, after a change on purpose.
#[test]
fn a_fixed_log_gives_the_golden_segment() {
    let (_, storage) = memory();
    let log = open(&storage, 1);
    let stamped = Draft {
        kind: 1,
        public: [&[0x1b; 1][..], &[0; 8], &[0x78, 24], &[b'?'; 24]].concat(),
        stamps: vec![Stamp::Lsn { at: 1 }, Stamp::Time { at: 11 }],
        private: b"private".to_vec(),
    };
    let marker = Draft {
        kind: 6,
        ..Draft::default()
    };
    log.append(vec![stamped, marker])
        .unwrap()
        .wait_blocking()
        .unwrap();
    log.close().unwrap();
    drop(log);
    let log = open(&storage, 2);
    let base = log.segments()[0].base;
    let bytes = file_bytes(&storage, base);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/segment-v1.bin");
    if std::env::var_os("PDS_WRITE_GOLDEN").is_some() {
        std::fs::create_dir_all(golden.parent().unwrap()).unwrap();
        std::fs::write(&golden, &bytes).unwrap();
    }
    assert_eq!(bytes, std::fs::read(&golden).unwrap(), "the format changed");
    verify_segment(&bytes).unwrap();
}
