//! A removed repo leaves the disk and the replica: what was there before is in no file at the moment when it is told to be
//! gone, whatever a crash had left.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use engine::clock::{Entropy, SeededEntropy};
use engine::entry::{Change, RepoRow};
use engine::log::Lsn;
use engine::repo::{Cid, Did, Tid};
use shipper::ship::ShipConfig;
use shipper::store::ReplicaStore;
use shipper::store::directory::DirectoryStore;
use tempfile::TempDir;

use crate::common::*;
use crate::compaction::{Server, options};

/// Names a record, in the index and its copies, which are packed in the replica.
const PATH: &str = "app.test.post/the-secret-path";

fn goes() -> Did {
    "did:plc:goes".parse().unwrap()
}

/// Bytes that no compressor makes shorter, so that they are seen in compressed objects, too.
fn secret() -> Vec<u8> {
    let mut secret = vec![0; 16 << 10];
    SeededEntropy::new(11).fill(&mut secret).unwrap();
    secret
}

/// A record that holds the secret: `{"x": bytes}`.
fn record() -> Vec<u8> {
    let mut record = vec![0xa1, 0x61, b'x', 0x59, 0x40, 0x00];
    record.extend_from_slice(&secret());
    record
}

fn rows() -> Change {
    let block = record();
    Change::RepoRows {
        did: goes(),
        generation: 1,
        rows: vec![RepoRow {
            path: PATH.to_owned(),
            rev: Tid::from_u64(1 << 40),
            cid: Cid::for_dag_cbor(&block),
            block: block.into(),
        }],
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(dir) else {
        return found;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// Files below `dir` that hold something of the removed repo. One that goes meanwhile holds nothing.
fn traces(dir: &Path) -> Vec<PathBuf> {
    let secret = secret();
    let needles = [&secret[8_000..8_064], PATH.as_bytes()];
    let holds = |path: &PathBuf| {
        let mut bytes = std::fs::read(path).unwrap_or_default();
        if path.extension().is_some_and(|extension| extension == "zst") && !bytes.is_empty() {
            bytes = zstd::decode_all(&*bytes).unwrap();
        }
        needles
            .iter()
            .any(|needle| bytes.windows(needle.len()).any(|window| window == *needle))
    };
    files(dir).into_iter().filter(holds).collect()
}

fn in_some(traces: &[PathBuf], part: &str) -> bool {
    traces.iter().any(|path| path.to_string_lossy().contains(part))
}

async fn publish(server: &Server, dir: &Path) {
    let checkpoint = server.engine.checkpoint().await.unwrap();
    let path = dir.join("ckpt").join(checkpoint.lsn().hex());
    server
        .handle
        .publish_checkpoint(path, checkpoint.lsn())
        .await
        .unwrap();
}

async fn seal_and_cover(server: &Server) -> Lsn {
    server.engine.log().seal_now().await.unwrap();
    let last = server.engine.appended().get();
    eventually("covered", || server.handle.covered() == last).await;
    last
}

/// Writes the repo and removes it; yields its removal and the end of the sealed log.
async fn written_and_removed(server: &Server, dir: &Path, replica: &Path) -> (Lsn, Lsn) {
    for n in 20..40 {
        server.upload(n).await;
    }
    server.write(vec![rows()]).await;
    assert!(in_some(&traces(replica), "/wal/"));
    seal_and_cover(server).await;
    publish(server, dir).await;
    let removal = server.write(vec![Change::RepoRemoved { did: goes() }]).await;
    for n in 40..50 {
        server.upload(n).await;
    }
    let through = seal_and_cover(server).await;
    let (here, there) = (traces(dir), traces(replica));
    assert!(in_some(&here, "/log/") && in_some(&here, "/ckpt/") && in_some(&here, "/index.redb"));
    assert!(in_some(&there, "/seg/") && in_some(&there, "/ckpt/"));
    assert_eq!(server.engine.removals(1).unwrap()[0].lsn, removal);
    (removal, through)
}

/// What the server does when it looks; whether the last copy is gone, and then there is none.
async fn look(server: &Server, dir: &Path, replica: &Path, removal: Lsn) -> bool {
    server.engine.end_compaction(Duration::ZERO).await.unwrap();
    let local = tokio::time::timeout(SOON, server.engine.erase())
        .await
        .unwrap()
        .unwrap();
    if local.through < removal {
        return false;
    }
    assert_eq!(traces(dir), Vec::<PathBuf>::new());
    if server.handle.erased().is_without(removal, local.views) {
        assert_eq!(traces(replica), Vec::<PathBuf>::new());
        return true;
    }
    if server.handle.erased().wants_checkpoint(removal, local.views) {
        let taken = tokio::time::timeout(SOON, server.engine.checkpoint_anew()).await;
        let taken = taken.unwrap().unwrap();
        server
            .handle
            .replace_checkpoints(taken.dir.clone(), taken.lsn())
            .await
            .unwrap();
    }
    false
}

async fn gone(server: &Server, dir: &Path, replica: &Path, removal: Lsn) {
    let deadline = tokio::time::Instant::now() + SOON;
    while !look(server, dir, replica, removal).await {
        assert!(
            tokio::time::Instant::now() < deadline,
            "never gone: {:?}, {:?}, {:?}",
            server.handle.erased(),
            traces(dir),
            traces(replica)
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_repo_is_in_no_object_when_it_is_told_to_be_gone() {
    let (dir, replica) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store: Arc<dyn ReplicaStore> = Arc::new(DirectoryStore::open(replica.path()).unwrap());
    let server = Server::start_on(store, dir.path()).await;
    let (removal, through) = written_and_removed(&server, dir.path(), replica.path()).await;
    let erased = server.engine.erased().unwrap();
    assert!(erased.through < removal && !server.handle.erased().is_without(removal, erased.views));

    server.engine.compact(through, options()).await.unwrap();
    gone(&server, dir.path(), replica.path(), removal).await;
    let removals = server.engine.removals(10).unwrap();
    server.write(vec![Change::RemovalsGone { removals }]).await;
    assert_eq!(server.engine.removals(10).unwrap(), []);
    server.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_repo_is_told_to_be_gone_when_the_point_in_time_window_is_over_too() {
    let (dir, replica) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store: Arc<dyn ReplicaStore> = Arc::new(DirectoryStore::open(replica.path()).unwrap());
    let window = Duration::from_secs(1);
    let config = ShipConfig {
        pitr_window: window,
        ..quick()
    };
    let server = Server::start_with(store, dir.path(), config).await;
    let (removal, through) = written_and_removed(&server, dir.path(), replica.path()).await;
    server.engine.compact(through, options()).await.unwrap();
    gone(&server, dir.path(), replica.path(), removal).await;
    let now = engine::clock::Clock::now_micros(&engine::clock::SystemClock);
    assert!(
        now >= through.get() + 1_000_000,
        "the window of what was displaced is over"
    );
    server.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_crash_has_left_in_the_replica_is_gone_before_it_is_told() {
    let (dir, replica) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store: Arc<dyn ReplicaStore> = Arc::new(DirectoryStore::open(replica.path()).unwrap());
    let mut server = Server::start_on(store.clone(), dir.path()).await;
    let (removal, through) = written_and_removed(&server, dir.path(), replica.path()).await;
    server.stop_shipping().await;
    // The compaction needs no replica, and then the process ends.
    server.engine.compact(through, options()).await.unwrap();
    server.kill().await;
    // Left by a crash: a segment and a checkpoint that nobody names, and a file that did not become an object.
    let copy_of = |prefix: &str| {
        let from = traces(replica.path());
        let from = from.iter().find(|path| path.to_string_lossy().contains(prefix));
        std::fs::read(from.unwrap()).unwrap()
    };
    let (segment, view) = (copy_of("/seg/"), copy_of("/ckpt/"));
    let plant = |name: &str, bytes: &[u8]| {
        let path = replica.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let first = Lsn::saturating(77);
    let planted = [
        plant(&format!("seg/{}-0000000000000001", first.hex()), &segment),
        plant(
            &format!("ckpt/{}/0000000000000001-index.redb", removal.hex()),
            &view,
        ),
        plant("~staging/left", &segment),
    ];
    let staged = std::fs::File::options().write(true).open(&planted[2]).unwrap();
    staged
        .set_modified(SystemTime::now() - Duration::from_secs(60))
        .unwrap();

    let server = Server::start_on(store, dir.path()).await;
    assert_eq!(server.engine.removals(1).unwrap()[0].lsn, removal);
    gone(&server, dir.path(), replica.path(), removal).await;
    assert!(planted.iter().all(|path| !path.exists()));
    server.kill().await;
}
