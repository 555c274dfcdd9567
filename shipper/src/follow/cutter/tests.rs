use std::sync::Arc;

use engine::clock::SystemClock;
use engine::log::{Draft, Log, LogConfig};
use engine::storage::OsStorage;

use super::*;

/// A sealed segment's file, and the LSNs at which its groups end.
async fn segment() -> (Vec<u8>, Vec<Lsn>) {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(
        Arc::new(OsStorage),
        Arc::new(SystemClock),
        dir.path(),
        &LogConfig::default(),
    )
    .unwrap();
    let mut ends = Vec::new();
    for n in 0..40usize {
        let draft = |m: usize| Draft {
            kind: 1,
            public: vec![7; 100 + n * 13 % 700],
            stamps: vec![],
            private: vec![u8::try_from(m).unwrap(); 50],
        };
        let group = (0..1 + n % 3).map(draft).collect();
        ends.push(log.append(group).unwrap().await.unwrap().last);
    }
    let info = log.seal_now().await.unwrap().unwrap();
    let file = std::fs::read(dir.path().join(format!("{}.seg", info.base.hex()))).unwrap();
    (file, ends)
}

fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

fn cut(file: &[u8], after: Lsn, last: Lsn, piece: usize, write: usize) -> (io::Result<()>, Vec<Bytes>) {
    let (sender, mut receiver) = mpsc::channel(1);
    let reader = std::thread::spawn(move || {
        let mut told = Vec::new();
        while let Some(frames) = receiver.blocking_recv() {
            told.push(frames);
        }
        told
    });
    let mut cutter = Cutter::new(after, last, piece, sender);
    let mut outcome = Ok(());
    for part in file.chunks(write) {
        outcome = outcome.and_then(|()| cutter.write_all(part));
    }
    outcome = outcome.and_then(|()| cutter.finish());
    drop(cutter);
    (outcome, reader.join().unwrap())
}

#[test]
fn pieces_are_whole_groups_and_together_are_the_frames_after_the_place() {
    let (file, ends) = block(segment());
    let last = *ends.last().unwrap();
    let (_, whole) = cut(&file, Lsn::ZERO, last, usize::MAX, file.len());
    let whole: Vec<u8> = whole.concat();
    assert_eq!(last_lsn(&whole), Some(last));
    for (piece, write) in [(1, 97), (1000, 1), (5000, 4096), (1 << 20, 10_000)] {
        for after in [0, 1, 20, 39] {
            let place = if after == 0 { Lsn::ZERO } else { ends[after - 1] };
            let (outcome, told) = cut(&file, place, last, piece, write);
            outcome.unwrap();
            for frames in &told {
                assert!(
                    ends.contains(&last_lsn(frames).unwrap()),
                    "a piece ends within a group"
                );
            }
            let told: Vec<u8> = told.concat();
            assert!(whole.ends_with(&told));
            let first = frames_in(&told).next().unwrap().unwrap().1.header;
            assert_eq!(first.prev, place);
        }
    }
}

#[test]
fn a_segment_that_ends_early_is_an_error() {
    let (file, ends) = block(segment());
    let beyond = Lsn::saturating(ends.last().unwrap().get() + 5);
    let (outcome, _) = cut(&file, Lsn::ZERO, beyond, 1000, 1000);
    assert!(outcome.unwrap_err().to_string().contains("before its last frame"));
}
