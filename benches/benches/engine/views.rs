//! The index over a real log: finding records and blocks, and exporting a repo as a server does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use benches::synthetic::SyntheticRepo;
use criterion::{Criterion, Throughput};
use engine::clock::SystemClock;
use engine::entry::{Entry, EntryDraft};
use engine::log::{Log, LogConfig, LogId, Lsn};
use engine::repo::car::{write_block, write_header};
use engine::repo::mst::{Tree, WalkItem};
use engine::repo::{Cid, RepoPath};
use engine::storage::OsStorage;
use engine::views::View;
use engine::views::index::IndexView;

/// Records of the repo.
const RECORDS: usize = 20_000;

struct Fixture {
    _dir: tempfile::TempDir,
    log: Log,
    index: IndexView,
    repo: SyntheticRepo,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log_id = LogId([7; 16]);
    let config = LogConfig {
        log_id: Some(log_id),
        ..LogConfig::default()
    };
    let log_dir = dir.path().join("log");
    let opened = Log::open(Arc::new(OsStorage), Arc::new(SystemClock), &log_dir, &config);
    let (log, _) = opened.expect("a fresh directory");
    let mut repo = SyntheticRepo::new(1).expect("a repo");
    for _ in 0..RECORDS / 200 {
        let writes = repo.posts(200);
        let draft = repo
            .commit(&writes)
            .and_then(|entry| Ok(EntryDraft::into_draft(entry)?));
        let pending = log.append(vec![draft.expect("a sound commit")]).expect("room");
        pending.wait_blocking().expect("written");
    }
    let path = dir.path().join("index.redb");
    let mut index = IndexView::open(&path, log_id, 64 << 20).expect("a fresh index");
    let mut tail = log.tail(Lsn::ZERO);
    loop {
        let frames = tail.next_batch(Lsn::MAX, 4 << 20).expect("a sound log");
        if frames.is_empty() {
            break;
        }
        let entries: Result<Vec<Entry>, _> = frames.iter().map(Entry::decode).collect();
        index.apply(&entries.expect("sound entries")).expect("they fit");
    }
    Fixture {
        _dir: dir,
        log,
        index,
        repo,
    }
}

/// One question to the index, with the snapshot that a request takes.
pub fn lookups(c: &mut Criterion) {
    let fixture = fixture();
    let records: Vec<(RepoPath, Cid)> = fixture
        .repo
        .records()
        .iter()
        .map(|(path, cid)| (path.parse().expect("a path"), *cid))
        .collect();
    let did = &fixture.repo.did;
    let mut at = 0;
    let mut next = || {
        at = (at + 7_919) % records.len();
        &records[at]
    };
    let mut group = c.benchmark_group("index/lookup");
    group.throughput(Throughput::Elements(1));
    group.bench_function("record by path", |b| {
        b.iter(|| {
            let reader = fixture.index.reader().expect("open");
            reader.record(did, &next().0).expect("sound").expect("there")
        });
    });
    group.bench_function("record by path, and its bytes", |b| {
        b.iter(|| {
            let reader = fixture.index.reader().expect("open");
            let row = reader.record(did, &next().0).expect("sound").expect("there");
            fixture.log.read_at(row.location).expect("there")
        });
    });
    group.sample_size(20);
    group.bench_function("50 blocks by CID, a pass over the repo", |b| {
        b.iter(|| {
            let reader = fixture.index.reader().expect("open");
            let wanted: Vec<Cid> = (0..50).map(|_| next().1).collect();
            let until = Instant::now() + Duration::from_secs(60);
            reader.find_blocks(did, &wanted, until).expect("sound").len()
        });
    });
    group.finish();
}

/// A whole repo as an archive: commit, tree, records from the log.
pub fn export(c: &mut Criterion) {
    let fixture = fixture();
    let bytes = archive(&fixture).len() as u64;
    let mut group = c.benchmark_group("repo/export");
    group.throughput(Throughput::Bytes(bytes)).sample_size(10);
    group.bench_function(format!("{RECORDS} records"), |b| {
        b.iter(|| archive(&fixture).len());
    });
    group.finish();
}

fn archive(fixture: &Fixture) -> Vec<u8> {
    let reader = fixture.index.reader().expect("open");
    let did = &fixture.repo.did;
    let head = reader.repo(did).expect("sound").expect("there");
    let mut car = Vec::new();
    write_header(&mut car, &[head.commit]);
    write_block(
        &mut car,
        &head.commit,
        &fixture.log.read_at(head.commit_location).expect("there"),
    );
    let nodes = reader.nodes(did).expect("sound").expect("there");
    for item in Tree::open(head.data).walk(&nodes).expect("a root") {
        if let WalkItem::Node { cid, bytes } = item.expect("a sound tree") {
            write_block(&mut car, &cid, &bytes);
        }
    }
    for row in reader.records_from(did, None).expect("sound") {
        let (_, row) = row.expect("sound");
        write_block(
            &mut car,
            &row.cid,
            &fixture.log.read_at(row.location).expect("there"),
        );
    }
    car
}
