//! The log: checking a frame, group commit on a real disk, recovery.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use engine::clock::SystemClock;
use engine::log::{Draft, Epoch, FrameRef, Log, LogConfig};
use engine::storage::{MemoryStorage, OsStorage, Storage};

/// Bytes of a typical commit: one record, its proof, the envelope.
const ENTRY_BYTES: usize = 2_000;
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

fn open(storage: Arc<dyn Storage>, dir: &Path) -> Log {
    let config = LogConfig {
        epoch: Epoch(1),
        ..LogConfig::default()
    };
    Log::open(storage, Arc::new(SystemClock), dir, &config)
        .expect("a fresh directory")
        .0
}

/// Reading a frame with all its checksums; making one, through the writer, on a disk that costs nothing.
pub fn frames(c: &mut Criterion) {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::default());
    let log = open(storage, Path::new("/log"));
    let lsns = log
        .append(vec![draft(ENTRY_BYTES)])
        .expect("room")
        .wait_blocking()
        .expect("memory");
    let location = lsns.locations.first().copied().expect("one frame");
    let frame = log.read_at(location).expect("just written");
    let mut group = c.benchmark_group("log/frame");
    group.throughput(Throughput::Bytes(frame.len() as u64));
    group.bench_function("parse", |b| b.iter(|| FrameRef::parse(black_box(&frame)).is_ok()));
    group.throughput(Throughput::Elements(100));
    group.bench_function("encode and append, 100 groups, in memory", |b| {
        b.iter(|| {
            let mut last = None;
            for _ in 0..100 {
                last = Some(log.append(vec![draft(ENTRY_BYTES)]).expect("room"));
            }
            last.map(engine::log::Pending::wait_blocking)
        });
    });
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
        let log = open(Arc::new(OsStorage), dir.path());
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

/// A start's look at a log after a crash: every checksum and every link.
pub fn recovery(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let storage: Arc<dyn Storage> = Arc::new(OsStorage);
    let log = open(Arc::clone(&storage), dir.path());
    let mut last = None;
    for _ in 0..RECOVERY_BYTES / ENTRY_BYTES as u64 {
        // What is queued is bounded, and a full queue is refused: wait for what went before.
        match log.append(vec![draft(ENTRY_BYTES)]) {
            Ok(pending) => last = Some(pending),
            Err(_) => {
                let done = last.take().map(engine::log::Pending::wait_blocking);
                done.transpose().expect("written");
            }
        }
    }
    last.map(engine::log::Pending::wait_blocking)
        .transpose()
        .expect("written");
    log.close().expect("closed");
    drop(log);
    let mut group = c.benchmark_group("log/recovery");
    group
        .throughput(Throughput::Bytes(RECOVERY_BYTES))
        .sample_size(10);
    group.bench_function("scan of 64 MiB", |b| {
        b.iter(|| {
            Log::recover(Arc::clone(&storage), dir.path())
                .expect("whole")
                .last_lsn()
        });
    });
    group.finish();
}
