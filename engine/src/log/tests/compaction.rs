//! A compaction of the log's files: what it leaves is the log before it or the log after it, whenever power is cut.

use super::*;
use crate::log::compaction::CompactionWriter;

/// A log of several sealed segments, and its frames.
fn written(storage: &Arc<dyn Storage>) -> (Log, Vec<SegmentInfo>, Vec<Frame>) {
    for epoch in 1..3 {
        let log = open(storage, epoch);
        for n in 0..60 {
            put(&log, &[&format!("{epoch}-{n}"), &"y".repeat(n)]);
        }
        log.close().unwrap();
    }
    let log = open(storage, 3);
    put(&log, &["newest"]);
    let frames = log.tail(Lsn::ZERO).next_batch(Lsn::MAX, usize::MAX).unwrap();
    let segments = log.segments();
    assert!(segments.len() > 5);
    (log, segments, frames)
}

fn fill(writer: &mut CompactionWriter, texts: std::ops::Range<u32>) -> Result<(), CompactionError> {
    for n in texts {
        writer.append(draft(&format!("row {n} {}", "z".repeat(300))))?;
    }
    Ok(())
}

fn compact(log: &LogReader, through: Lsn) -> Result<u64, CompactionError> {
    let mut writer = log.begin_compaction(through, 4096)?;
    fill(&mut writer, 0..20)?;
    writer.finish(draft("end"))?.commit()?;
    log.end_compaction()
}

/// Public parts of everything that the log holds now.
fn texts(log: &LogReader) -> Vec<String> {
    let mut tail = log.tail(Lsn::ZERO);
    let mut found = Vec::new();
    loop {
        let frames = tail.next_batch(Lsn::MAX, 10_000).unwrap();
        if frames.is_empty() {
            return found;
        }
        found.extend(
            frames
                .iter()
                .map(|frame| String::from_utf8(frame.public().to_vec()).unwrap()),
        );
    }
}

fn expected(frames: &[Frame], through: Lsn, compacted: bool) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    if compacted {
        found.extend((0..20).map(|n| format!("row {n} {}", "z".repeat(300))));
        found.push("end".to_owned());
    }
    let rest = frames.iter().filter(|frame| !compacted || frame.lsn() > through);
    found.extend(rest.map(|frame| String::from_utf8(frame.public().to_vec()).unwrap()));
    found
}

#[test]
fn a_compacted_log_is_walked_extended_and_compacted_again() {
    let (_, storage) = memory();
    let (log, segments, frames) = written(&storage);
    let through = segments[3].last;
    let reader = log.reader();
    let mut slow = reader.tail(Lsn::ZERO);
    let first = slow.next_batch(segments[0].last, usize::MAX).unwrap();

    let mut writer = reader.begin_compaction(through, 4096).unwrap();
    assert!(matches!(
        reader.begin_compaction(through, 4096),
        Err(CompactionError::Unfinished)
    ));
    fill(&mut writer, 0..20).unwrap();
    writer.finish(draft("end")).unwrap().commit().unwrap();
    // What was replaced can be read by location, and by who was in the midst of it, until the end.
    for frame in &frames {
        assert_eq!(log.read_at(frame.location()).unwrap(), frame.bytes());
    }
    let mut seen = first;
    loop {
        let more = slow.next_batch(Lsn::MAX, 5_000).unwrap();
        if more.is_empty() {
            break;
        }
        seen.extend(more);
    }
    let lsns = |frames: &[Frame]| frames.iter().map(Frame::lsn).collect::<Vec<_>>();
    assert_eq!(lsns(&seen), lsns(&frames));
    assert_eq!(texts(&reader), expected(&frames, through, true));
    assert!(reader.end_compaction().unwrap() > 0);
    assert_eq!(reader.end_compaction().unwrap(), 0);

    assert_eq!((reader.compaction(), reader.floor()), (1, through));
    assert!(log.read_at(frames[0].location()).is_err());
    assert!(matches!(
        reader.tail(frames[3].lsn()).next_batch(Lsn::MAX, 1),
        Err(ReadError::Trimmed { oldest }) if oldest > through
    ));
    for info in log.segments().iter().filter(|info| info.sealed) {
        let (header, found) = verify_segment(log.reader().sealed(info.base).unwrap().bytes()).unwrap();
        assert_eq!((&found, header.compaction), (info, info.compaction));
    }
    put(&log, &["later"]);
    log.close().unwrap();
    drop((log, reader, slow));

    let log = open(&storage, 4);
    let mut all = expected(&frames, through, true);
    all.push("later".to_owned());
    assert_eq!(texts(&log.reader()), all);
    let end = log.segments().iter().rev().find(|info| info.sealed).unwrap().last;
    compact(&log.reader(), end).unwrap();
    assert_eq!(log.reader().compaction(), 2);
    assert_eq!(texts(&log.reader()).len(), 21);
}

#[test]
fn a_reader_that_stands_at_the_end_of_what_is_replaced_goes_on_behind_it() {
    let (_, storage) = memory();
    let (log, segments, frames) = written(&storage);
    // A log without frames in memory: everything is read from files.
    log.close().unwrap();
    drop(log);
    let log = open(&storage, 4);
    let through = segments[3].last;
    let reader = log.reader();
    let mut idle = reader.tail(Lsn::ZERO);
    let before = idle.next_batch(through, usize::MAX).unwrap();
    assert_eq!(idle.position(), through);
    let mut behind = reader.tail(Lsn::ZERO);
    behind.next_batch(segments[1].last, usize::MAX).unwrap();
    assert!(compact(&reader, through).unwrap() > 0);
    let after = idle.next_batch(Lsn::MAX, usize::MAX).unwrap();
    let lsns: Vec<Lsn> = before.iter().chain(&after).map(Frame::lsn).collect();
    assert_eq!(lsns, frames.iter().map(Frame::lsn).collect::<Vec<_>>());
    assert!(matches!(
        behind.next_batch(Lsn::MAX, usize::MAX),
        Err(ReadError::Trimmed { .. })
    ));
}

#[test]
fn a_reader_at_the_end_of_compacted_segments_goes_on_behind_them_when_they_are_compacted_again() {
    let (_, storage) = memory();
    let (log, _, _) = written(&storage);
    log.close().unwrap();
    drop(log);
    // As good as no frames in memory: everything is read from files.
    let config = LogConfig {
        ring_bytes: 1,
        ..config(4)
    };
    let (log, _) = Log::open(Arc::clone(&storage), clock(), dir(), &config).unwrap();
    let reader = log.reader();
    let through = reader.segments().last().unwrap().last;
    assert!(compact(&reader, through).unwrap() > 0);
    let mut idle = reader.tail(Lsn::ZERO);
    idle.next_batch(Lsn::MAX, usize::MAX).unwrap();
    assert_eq!(idle.position(), through);
    // What is replaced is still there, and its bases are below those of what takes its place.
    let mut writer = reader.begin_compaction(through, 4096).unwrap();
    fill(&mut writer, 0..20).unwrap();
    writer.finish(draft("end")).unwrap().commit().unwrap();
    let behind = [put(&log, &["one"]).last, put(&log, &["two"]).last];
    let after = idle.next_batch(Lsn::MAX, usize::MAX).unwrap();
    assert_eq!(after.iter().map(Frame::lsn).collect::<Vec<_>>(), behind);
    assert!(reader.end_compaction().unwrap() > 0);
}

#[test]
fn what_is_not_finished_is_taken_back() {
    let (_, storage) = memory();
    let (log, segments, frames) = written(&storage);
    let reader = log.reader();
    let before = storage.list(dir()).unwrap();
    let mut writer = reader.begin_compaction(segments[2].last, 4096).unwrap();
    fill(&mut writer, 0..30).unwrap();
    drop(writer);
    let mut writer = reader.begin_compaction(segments[2].last, 4096).unwrap();
    fill(&mut writer, 0..3).unwrap();
    drop(writer.finish(draft("end")).unwrap());
    assert_eq!(storage.list(dir()).unwrap(), before);
    assert_eq!(texts(&reader), expected(&frames, Lsn::ZERO, false));
    // The closing frame's LSN must not become a base, however full the segment is.
    let through = segments[2].last;
    let empty = reader.begin_compaction(through, 4096).unwrap();
    assert!(matches!(empty.finish(draft("end")), Err(CompactionError::Empty)));
    let mut writer = reader.begin_compaction(through, 300).unwrap();
    fill(&mut writer, 0..3).unwrap();
    let written = writer.finish(draft("end")).unwrap();
    assert!(
        written
            .reader()
            .segments()
            .iter()
            .all(|info| compaction_of(info.base) == 1)
    );
    drop(written);
    assert_eq!(storage.list(dir()).unwrap(), before);
    for wrong in [Lsn::ZERO, segments[2].first, log.segments().last().unwrap().last] {
        assert!(matches!(
            reader.begin_compaction(wrong, 4096),
            Err(CompactionError::NoSuchEnd { .. })
        ));
    }
}

#[test]
fn power_may_be_cut_at_every_step_of_a_compaction() {
    let mut outcomes = std::collections::BTreeSet::new();
    for stop_at in 0.. {
        let mut finished = false;
        for seed in 0..4 {
            let (memory, plain) = memory();
            let (log, segments, frames) = written(&plain);
            let through = segments[4].last;
            log.close().unwrap();
            drop(log);
            let faulty = Arc::new(FaultyStorage::new(plain));
            let storage: Arc<dyn Storage> = Arc::clone(&faulty) as _;
            let log = open(&storage, 4);
            put(&log, &["written meanwhile"]);
            until_local(&log, log.appended().get());
            let reader = log.reader();
            faulty.inject(Fault::Stop, stop_at);
            let done = compact(&reader, through);
            finished = faulty.struck().is_empty();
            assert_eq!(done.is_ok(), finished, "step {stop_at}: {done:?}");
            drop((log, reader));
            memory.crash(seed);

            let storage: Arc<dyn Storage> = Arc::new(memory.clone());
            let recovered = Log::recover(Arc::clone(&storage), dir()).unwrap();
            let compacted = recovered.reader().compaction() == 1;
            outcomes.insert((compacted, recovered.reader().pending_compaction().is_some()));
            let mut all = expected(&frames, through, compacted);
            all.push("written meanwhile".to_owned());
            assert_eq!(texts(&recovered.reader()), all, "step {stop_at}, seed {seed}");
            let log = recovered.start(clock(), &config(5)).unwrap();
            log.reader().end_compaction().unwrap();
            put(&log, &["afterwards"]);
            log.close().unwrap();
            drop(log);
            memory.crash(seed);
            // Nothing of the attempt is left: what is there is the log, and a compaction can begin.
            let log = open(&storage, 6);
            all.push("afterwards".to_owned());
            assert_eq!(texts(&log.reader()), all);
            let names = storage.list(dir()).unwrap();
            assert_eq!(names.len(), log.segments().len(), "{names:?}");
            compact(&log.reader(), through).unwrap();
        }
        if finished {
            break;
        }
    }
    assert_eq!(
        outcomes,
        [(false, false), (true, false), (true, true)]
            .into_iter()
            .collect()
    );
}

#[test]
fn a_compacted_segment_keeps_its_bytes() {
    let (_, storage) = memory();
    let log = open(&storage, 1);
    put(&log, &["first", "second"]);
    log.close().unwrap();
    drop(log);
    let log = open(&storage, 2);
    let reader = log.reader();
    let mut writer = reader.begin_compaction(log.segments()[0].last, 4096).unwrap();
    writer.append(draft("row")).unwrap();
    writer.finish(draft("end")).unwrap().commit().unwrap();
    let bytes = file_bytes(&storage, log.segments()[0].base);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/segment-v2.bin");
    if std::env::var_os("PDS_WRITE_GOLDEN").is_some() {
        std::fs::write(&golden, &bytes).unwrap();
    }
    assert_eq!(bytes, std::fs::read(&golden).unwrap(), "the format changed");
    let journal = file_bytes_of(&storage, "compaction");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/compaction-v1.bin");
    if std::env::var_os("PDS_WRITE_GOLDEN").is_some() {
        std::fs::write(&golden, &journal).unwrap();
    }
    assert_eq!(journal, std::fs::read(&golden).unwrap(), "the format changed");
}
