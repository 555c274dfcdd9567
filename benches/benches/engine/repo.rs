//! The protocol: trees of three sizes, whole commits, records as JSON.

use std::collections::HashMap;
use std::hint::black_box;

use benches::synthetic::{SyntheticRepo, Write, post};
use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use engine::repo::json::cbor_to_json;
use engine::repo::mst::{Tree, build_from_sorted};
use engine::repo::{Cid, Tid};

/// A record's path; they ascend with the number.
fn path(number: u64) -> String {
    let rkey = Tid::next_after(None, 1_700_000_000_000_000 + number * 1_000_000, 0);
    format!("app.bsky.feed.post/{rkey}")
}

/// One insert into a stored tree: loading the path, changing it, giving the new nodes their CIDs, the covering proof.
pub fn tree(c: &mut Criterion) {
    let value = Cid::for_dag_cbor(b"a record");
    let mut group = c.benchmark_group("repo/tree insert");
    group.throughput(Throughput::Elements(1));
    for records in [1_000u64, 100_000, 1_000_000] {
        let mut nodes: HashMap<Cid, Bytes> = HashMap::new();
        let paths: Vec<String> = (0..records).map(path).collect();
        let entries = paths.iter().map(|path| (path.as_str(), value));
        let root = build_from_sorted(entries, |node| {
            nodes.insert(node.cid, node.bytes.into());
            Ok::<_, std::convert::Infallible>(())
        });
        let root = root.expect("ascending paths");
        drop(paths);
        let stored = Tree::open(root);
        // Between two records, somewhere else each time.
        let mut number = 0u64;
        group.bench_function(BenchmarkId::from_parameter(format!("{records} records")), |b| {
            b.iter_batched(
                || {
                    number = (number + 7_919) % records;
                    let rkey = Tid::next_after(None, 1_700_000_000_500_000 + number * 1_000_000, 0);
                    (stored.clone(), format!("app.bsky.feed.post/{rkey}"))
                },
                |(mut tree, key)| {
                    tree.insert(&key, value, &nodes).expect("a new key");
                    let flushed = tree.flush();
                    let proof = tree.covering_proof([key.as_str()], &nodes).expect("all nodes");
                    (flushed.root, proof.len())
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// A whole commit of one post in a repo that grows from 10,000 records on: tree, proof, signature, archive, event.
pub fn commit(c: &mut Criterion) {
    let mut repo = SyntheticRepo::new(1).expect("a repo");
    for _ in 0..50 {
        let writes = repo.posts(200);
        repo.commit(&writes).expect("sound writes");
    }
    let mut group = c.benchmark_group("repo/commit");
    group.throughput(Throughput::Elements(1));
    group.bench_function("one post, from 10000 records on", |b| {
        b.iter(|| {
            let write = [Write::Put {
                path: repo.next_path(),
                record: post("something short to say"),
            }];
            repo.commit(&write).expect("a sound write")
        });
    });
    let key = SyntheticRepo::new(2).expect("a repo").key().clone();
    group.bench_function("signature alone", |b| {
        b.iter(|| key.sign(black_box(b"the bytes of a commit")));
    });
    group.finish();
}

/// A stored record as JSON.
pub fn transcode(c: &mut Criterion) {
    let mut group = c.benchmark_group("repo/record to JSON");
    let texts = [
        ("short", "words".to_owned()),
        ("long", "Words of a longer post, \"quoted\" – ".repeat(60)),
    ];
    for (name, text) in texts {
        let record = post(&text);
        let mut out = Vec::with_capacity(8192);
        group.throughput(Throughput::Bytes(record.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                out.clear();
                cbor_to_json(black_box(&record), &mut out).expect("canonical");
                out.len()
            });
        });
    }
    group.finish();
}
