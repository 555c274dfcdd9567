//! The log: making and checking a frame, group commit on a real disk, recovery.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use benches::synthetic::SyntheticRepo;
use bytes::{Bytes, BytesMut};
use criterion::{BenchmarkId, Criterion, Throughput};
use engine::clock::SystemClock;
use engine::log::{Draft, Epoch, Flags, FrameRef, Log, LogConfig, Lsn, Place, Stamp};
use engine::repo::car::{CarLimits, CarSlice};
use engine::repo::event::{self, Event};
use engine::storage::{MemoryStorage, OsStorage, Storage};

/// Bytes of a typical commit: one record, its proof, the envelope.
const ENTRY_BYTES: usize = 2_000;
/// Commits that are checked in one go.
const VERIFIED_COMMITS: u32 = 500;
/// Bytes of log that recovery reads.
const RECOVERY_BYTES: u64 = 64 << 20;

fn draft(bytes: usize) -> Draft {
    let public = (0..bytes).map(|at| (at * 31 % 251) as u8).collect();
    Draft {
        kind: 1,
        public,
        stamps: Vec::new(),
        private: Vec::new(),
    }
}

fn open(storage: Arc<dyn Storage>, dir: &Path, segment_bytes: u64) -> Log {
    let config = LogConfig {
        epoch: Epoch(1),
        segment_bytes,
        ..LogConfig::default()
    };
    Log::open(storage, Arc::new(SystemClock), dir, &config)
        .expect("a fresh directory")
        .0
}

/// Making a frame (stamps, checksums, copy) and reading one with all its checksums.
pub fn frames(c: &mut Criterion) {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::default());
    let log = open(storage, Path::new("/log"), 64 << 20);
    let pending = log.append(vec![draft(ENTRY_BYTES)]).expect("room");
    let lsns = pending.wait_blocking().expect("memory");
    let location = lsns.locations.first().copied().expect("one frame");
    let frame = log.read_at(location).expect("just written");
    let mut group = c.benchmark_group("log/frame");
    group.throughput(Throughput::Bytes(frame.len() as u64));
    let mut stamped = draft(ENTRY_BYTES);
    stamped.stamps = vec![Stamp::Lsn { at: 100 }, Stamp::Time { at: 200 }];
    let place = Place {
        lsn: Lsn::saturating(1_767_225_600_123_456),
        prev: Lsn::saturating(1_767_225_600_123_455),
        epoch: Epoch(1),
        flags: Flags::default(),
    };
    let mut out = BytesMut::with_capacity(stamped.frame_len());
    group.bench_function("encode", |b| {
        b.iter(|| {
            out.clear();
            black_box(stamped.encode(black_box(place), &mut out));
        });
    });
    group.bench_function("parse", |b| b.iter(|| FrameRef::parse(black_box(&frame)).is_ok()));
    group.finish();
}

/// Durable entries a second on this disk, by the number of writers that wait for one each.
pub fn append(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    let mut group = c.benchmark_group("log/group commit on disk");
    group.throughput(Throughput::Elements(1)).sample_size(10);
    for writers in [1u64, 16, 64] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let log = open(Arc::new(OsStorage), dir.path(), 64 << 20);
        group.bench_function(BenchmarkId::from_parameter(format!("{writers} writers")), |b| {
            b.iter_custom(|iterations| runtime.block_on(durable_appends(&log, writers, iterations)));
        });
    }
    group.finish();
}

async fn durable_appends(log: &Log, writers: u64, iterations: u64) -> Duration {
    let each = iterations.div_ceil(writers);
    let begun = Instant::now();
    let tasks: Vec<_> = (0..writers.min(iterations))
        .map(|_| {
            let log = log.clone();
            tokio::spawn(async move {
                for _ in 0..each {
                    let pending = log.append(vec![draft(ENTRY_BYTES)]).expect("room");
                    let lsns = pending.await.expect("written");
                    log.local().wait(lsns.last).await.expect("synced");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    // A few more may have been written than were asked for.
    let written = each * writers.min(iterations);
    begun.elapsed().mul_f64(iterations as f64 / written as f64)
}

/// A start's look at the segment that the last writer left open: every checksum, every link, the digest. Of sealed
/// segments it reads the ends only, so everything here is in one that is still open.
pub fn recovery(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let storage: Arc<dyn Storage> = Arc::new(OsStorage);
    let log = open(Arc::clone(&storage), dir.path(), 1 << 30);
    let entries = RECOVERY_BYTES / ENTRY_BYTES as u64;
    let mut written = 0;
    while written < entries {
        // Some at a time: a full queue refuses, and an entry that is left out would make the log smaller.
        let some = (entries - written).min(1_000);
        let mut last = None;
        for _ in 0..some {
            last = Some(log.append(vec![draft(ENTRY_BYTES)]).expect("room"));
        }
        let last = last.map(engine::log::Pending::wait_blocking);
        last.transpose().expect("written");
        written += some;
    }
    log.close().expect("closed");
    let segments = log.segments();
    drop(log);
    let [segment] = segments.as_slice() else {
        panic!("{} segments, so not all of it is scanned", segments.len());
    };
    assert!(
        !segment.sealed && segment.frames == entries,
        "what is measured is what was meant: {segment:?}"
    );
    let mut group = c.benchmark_group("log/recovery");
    group.throughput(Throughput::Bytes(segment.bytes)).sample_size(10);
    group.bench_function("scan of 64 MiB", |b| {
        b.iter(|| {
            let found = Log::recover(Arc::clone(&storage), dir.path()).expect("whole");
            assert_eq!(found.last_lsn(), segment.last);
        });
    });
    group.finish();
}

/// What `pds-tools verify` does with the log at the least: every checksum of a frame, every message decoded, and every block
/// hashed and compared with its CID.
pub fn verify(c: &mut Criterion) {
    let mut repo = SyntheticRepo::new(7).expect("a repo");
    for _ in 0..5 {
        let posts = repo.posts(200);
        repo.commit(&posts).expect("a commit");
    }
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::default());
    let log = open(storage, Path::new("/log"), 64 << 20);
    let mut frames = Vec::new();
    for _ in 0..VERIFIED_COMMITS {
        let post = repo.posts(1);
        let draft = repo
            .commit(&post)
            .expect("a commit")
            .into_draft()
            .expect("an entry");
        let lsns = log
            .append(vec![draft])
            .expect("room")
            .wait_blocking()
            .expect("memory");
        let location = lsns.locations.first().copied().expect("one frame");
        frames.extend_from_slice(&log.read_at(location).expect("just written"));
    }
    let frames = Bytes::from(frames);
    let mut group = c.benchmark_group("log/verify");
    group.throughput(Throughput::Bytes(frames.len() as u64));
    group.bench_function("every block against its CID", |b| {
        b.iter(|| {
            let mut blocks = 0u32;
            let mut at = 0;
            while at < frames.len() {
                let frame = FrameRef::parse(&frames[at..]).expect("whole");
                let Event::Commit(view) = event::decode(frame.public()).expect("a message") else {
                    panic!("only commits were written");
                };
                for block in CarSlice::new(view.blocks, CarLimits::default()).expect("an archive") {
                    black_box(block.expect("its CID fits"));
                    blocks += 1;
                }
                at += frame.header.len();
            }
            assert!(blocks > 3 * VERIFIED_COMMITS);
        });
    });
    group.finish();
}
