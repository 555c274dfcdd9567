//! Zeros that are written ahead of the frames: they are never taken for part of the log, and never a reason to fail.

use super::*;
use crate::log::append::LogCore;

/// A writer without its thread, so that each step is taken when a test says so.
struct Stepped {
    core: LogCore,
    reader: LogReader,
    _lock: Box<dyn crate::storage::StorageLock>,
}

fn stepped(storage: &Arc<dyn Storage>, epoch: u64, ahead_bytes: u64) -> Stepped {
    let config = LogConfig {
        ahead_bytes,
        ..config(epoch)
    };
    let (core, lock, reader) = Log::recover(Arc::clone(storage), dir())
        .unwrap()
        .into_core(clock(), &config)
        .unwrap();
    Stepped {
        core,
        reader,
        _lock: lock,
    }
}

impl Stepped {
    /// Appends and syncs, so that nothing waits.
    fn put(&mut self, text: &str) -> Location {
        let lsns = self.core.append(vec![draft(text)]).unwrap();
        self.core.write().unwrap();
        self.reader.appended.advance(self.core.sync().unwrap());
        *lsns.locations.first().unwrap()
    }
}

fn end(at: Location) -> u64 {
    at.offset + u64::from(at.len)
}

fn newest(storage: &Arc<dyn Storage>) -> (Lsn, Vec<u8>) {
    let names = storage.list(dir()).unwrap();
    let name = names.iter().rfind(|name| name.ends_with(".seg")).unwrap();
    let base = Lsn::from_hex(name.strip_suffix(".seg").unwrap()).unwrap();
    (base, file_bytes(storage, base))
}

#[test]
fn appends_overwrite_the_zeros_and_a_seal_cuts_off_the_rest() {
    let (disk, storage) = memory();
    let mut log = stepped(&storage, 1, 1_000);
    assert!(!log.core.write_ahead().unwrap(), "no segment is open");
    let first = log.put("a");
    assert!(!log.core.write_ahead().unwrap(), "one step is all there is to do");
    let (base, bytes) = newest(&storage);
    assert_eq!(bytes.len() as u64, end(first) + 1_000);
    assert_eq!(disk.synced_len(&path(base)), Some(bytes.len() as u64));
    assert!(
        bytes[usize::try_from(end(first)).unwrap()..]
            .iter()
            .all(|byte| *byte == 0)
    );
    // There is room, so the file stays as long as it is.
    let second = log.put("b");
    assert_eq!(second.offset, end(first));
    assert!(!log.core.write_ahead().unwrap());
    assert_eq!(newest(&storage).1.len(), bytes.len());
    // Readers know nothing of it.
    let info = log.reader.segments().pop().unwrap();
    assert_eq!((info.sealed, info.bytes), (false, end(second)));
    let beyond = Location {
        len: second.len + 1,
        ..second
    };
    log.reader.read_at(beyond).unwrap_err();
    let sealed = log.core.seal().unwrap().unwrap();
    let (_, bytes) = newest(&storage);
    assert_eq!(bytes.len() as u64, sealed.bytes);
    let (header, verified) = verify_segment(&bytes).unwrap();
    assert_eq!((header.base, verified), (base, sealed));
}

#[test]
fn it_goes_as_far_as_asked_in_steps_and_not_beyond_the_segment() {
    let (_, storage) = memory();
    let config = LogConfig {
        ahead_bytes: 600 << 10,
        segment_bytes: 1 << 20,
        ..config(1)
    };
    let (mut core, _held, _) = Log::recover(Arc::clone(&storage), dir())
        .unwrap()
        .into_core(clock(), &config)
        .unwrap();
    let put = |core: &mut LogCore, bytes: usize| {
        let draft = Draft {
            public: vec![1; bytes],
            ..draft("")
        };
        let lsns = core.append(vec![draft]).unwrap();
        core.write().unwrap();
        assert!(
            !core.write_ahead().unwrap(),
            "frames that are not synced come first"
        );
        core.sync().unwrap();
        end(*lsns.locations.first().unwrap())
    };
    let mut at = put(&mut core, 10);
    while core.write_ahead().unwrap() {}
    let ahead = newest(&storage).1.len() as u64 - at;
    assert!(ahead > 600 << 9 && ahead <= 600 << 10, "{ahead}");
    // A group that is longer than what is ahead grows the file itself.
    at = put(&mut core, 900 << 10);
    assert_eq!(newest(&storage).1.len() as u64, at);
    while core.write_ahead().unwrap() {}
    assert!(newest(&storage).1.len() as u64 <= 1 << 20);
}

#[test]
fn a_start_finds_the_end_before_zeros_and_calls_nothing_damaged() {
    let (_, storage) = memory();
    let mut log = stepped(&storage, 1, 1_000);
    let last = log.put("a");
    log.core.write_ahead().unwrap();
    drop(log);
    let found = Log::recover(Arc::clone(&storage), dir()).unwrap();
    assert_eq!(found.cut(), None);
    assert_eq!(found.segments().first().unwrap().bytes, end(last));
    assert_eq!(all(&found.reader()), ["a"]);
    drop(found);
    let mut log = stepped(&storage, 2, 1_000);
    verify_segment(&file_bytes(&storage, last.segment)).unwrap();
    log.put("b");
    assert_eq!(all(&log.reader), ["a", "b"]);
}

#[test]
fn a_frame_that_is_half_written_over_zeros_is_cut() {
    let (_, storage) = memory();
    let mut log = stepped(&storage, 1, 1_000);
    let kept = log.put("kept");
    let lost = log.put("lost");
    log.core.write_ahead().unwrap();
    drop(log);
    let (base, whole) = newest(&storage);
    for keep in [1, 30, 47, 48, 50, lost.len - 1] {
        let mut torn = whole.clone();
        torn[usize::try_from(lost.offset + u64::from(keep)).unwrap()..].fill(0);
        replace(&storage, base, &torn);
        let found = Log::recover(Arc::clone(&storage), dir()).unwrap();
        assert_eq!(found.last_lsn(), base, "{keep} bytes");
        assert_eq!(found.cut().unwrap().offset, end(kept));
    }
    // Half a group is no end, even if zeros follow a whole frame.
    let (_, storage) = memory();
    let mut log = stepped(&storage, 1, 1_000);
    log.put("kept");
    let lsns = log.core.append(vec![draft("x"), draft("y")]).unwrap();
    log.core.write().unwrap();
    log.core.sync().unwrap();
    log.core.write_ahead().unwrap();
    drop(log);
    let (base, mut torn) = newest(&storage);
    torn[usize::try_from(lsns.locations[1].offset).unwrap()..].fill(0);
    replace(&storage, base, &torn);
    let found = Log::recover(Arc::clone(&storage), dir()).unwrap();
    assert_eq!(found.cut().unwrap().offset, lsns.locations[0].offset);
    assert_eq!(all(&found.reader()), ["kept"]);
}

#[test]
fn zeros_in_front_of_a_synced_frame_are_damage() {
    let (_, storage) = memory();
    let mut log = stepped(&storage, 1, 1_000);
    log.put("a");
    let gone = log.put("b");
    log.put("c");
    log.core.write_ahead().unwrap();
    drop(log);
    let (base, mut bytes) = newest(&storage);
    let from = usize::try_from(gone.offset).unwrap();
    bytes[from..from + gone.len as usize].fill(0);
    replace(&storage, base, &bytes);
    let error = Log::recover(storage, dir()).unwrap_err();
    assert!(
        matches!(&error, OpenError::Damaged { segment, offset, .. } if (*segment, *offset) == (base, gone.offset)),
        "{error}"
    );
}

#[test]
fn a_disk_that_is_too_full_for_zeros_fails_no_append() {
    for fault in [Fault::NoSpace, Fault::ShortWrite] {
        let (_, inner) = memory();
        let faulty = FaultyStorage::new(inner);
        let storage: Arc<dyn Storage> = Arc::new(faulty.clone());
        let mut log = stepped(&storage, 1, 1_000);
        log.put("a");
        faulty.inject(fault, 0);
        assert!(!log.core.write_ahead().unwrap());
        assert_eq!(faulty.struck(), [fault]);
        assert!(
            !log.core.write_ahead().unwrap(),
            "not tried again in this segment"
        );
        if fault == Fault::ShortWrite {
            log.put("b");
            let sealed = log.core.seal().unwrap().unwrap();
            assert_eq!(newest(&storage).1.len() as u64, sealed.bytes);
            assert_eq!(all(&log.reader), ["a", "b"]);
        } else {
            // The disk stays full: now an append fails, for its own reason.
            log.core.append(vec![draft("b")]).unwrap();
            log.core.write().unwrap_err();
        }
    }
}

#[test]
fn a_failed_sync_of_zeros_closes_the_log() {
    let (_, inner) = memory();
    let faulty = FaultyStorage::new(inner);
    let storage: Arc<dyn Storage> = Arc::new(faulty.clone());
    let mut log = stepped(&storage, 1, 1_000);
    log.put("a");
    faulty.inject(Fault::SyncFails, 0);
    log.core.write_ahead().unwrap_err();
    log.core.append(vec![draft("b")]).unwrap_err();
}

#[test]
fn the_writer_does_it_while_nothing_is_queued() {
    let (_, storage) = memory();
    let log = open(&storage, 1);
    let first = put(&log, &["a"]);
    let at = *first.locations.first().unwrap();
    // It goes on until it is asked for something, so this waits for the thread, not for time to pass.
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while file_bytes(&storage, at.segment).len() < 4_096 {
        assert!(std::time::Instant::now() < deadline, "nothing is written ahead");
        std::thread::yield_now();
    }
    put(&log, &["b"]);
    log.close().unwrap();
    drop(log);
    assert_eq!(all(&Log::recover(storage, dir()).unwrap().reader()), ["a", "b"]);
}
