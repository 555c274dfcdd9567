//! Replicas: whole ones are clean and restore; damaged objects are named.

use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::engine::Engine;
use engine::entry::{Change, EntryDraft};
use shipper::ship::ShipHandle;

use super::fixture::*;
use super::running::{Running, until};
use crate::Outcome;

/// A replica of three accounts: sealed segments, chunks, a checkpoint, a hand-over.
pub(super) fn replica() -> (tempfile::TempDir, PathBuf) {
    replica_after(|_, _, _| ())
}

/// The same, with something done before the checkpoint.
fn replica_after(
    then: impl FnOnce(&Engine, &ShipHandle, &tokio::runtime::Runtime),
) -> (tempfile::TempDir, PathBuf) {
    let running = Running::start(Duration::ZERO);
    fill(&running.engine);
    then(&running.engine, &running.handle, &running.runtime);
    running.checkpoint();
    // Until sealed segments are there, as housekeeping has its own pace.
    let least = if running.engine.log_reader().compaction() > 0 {
        1
    } else {
        2
    };
    let segments = running.remote.join("seg");
    until("sealed segments in the replica", || {
        std::fs::read_dir(&segments).map_or(0, Iterator::count) >= least
    });
    running.stop()
}

fn verify_replica(remote: &Path) -> (Result<Outcome, String>, String) {
    tool(&["verify", "--replica", &format!("file://{}", remote.display())])
}

pub(super) fn objects(remote: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = content(&remote.join(prefix))
        .into_iter()
        .map(|(path, _)| path)
        .collect();
    found.sort();
    found
}

pub(super) fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

fn expect_damage(remote: &Path, words: &[&str]) {
    let (outcome, text) = verify_replica(remote);
    assert_eq!(outcome, Ok(Outcome::Damaged), "{text}");
    has_line(&text, words);
}

#[test]
fn a_whole_replica_is_clean_and_restores_to_a_clean_directory() {
    let (dir, remote) = replica();
    let before = content(&remote);
    let (outcome, text) = verify_replica(&remote);
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    has_line(&text, &["3 repos"]);
    assert_eq!(content(&remote), before);

    let (restored, url) = (
        dir.path().join("restored"),
        format!("file://{}", remote.display()),
    );
    let (outcome, text) = tool(&["restore", "--replica", &url, restored.to_str().unwrap()]);
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    has_line(&text, &["restored log", "with views"]);
    let (outcome, text) = verify(&restored);
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    let engine = start(&restored);
    assert_eq!(engine.reader().unwrap().repos(None, 10).unwrap().len(), 3);
    stop(engine, false);

    let (again, _) = tool(&["restore", "--replica", &url, restored.to_str().unwrap()]);
    assert!(again.unwrap_err().contains("not empty"));
}

#[test]
fn damaged_and_missing_objects_are_named() {
    let (_dir, remote) = replica();
    let (segments, chunks) = (objects(&remote, "seg"), objects(&remote, "wal"));
    let (segment, chunk) = (&segments[0], chunks.last().unwrap());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();

    let whole = std::fs::read(segment).unwrap();
    flip(segment, 100);
    expect_damage(&remote, &["DAMAGE seg/", &name(segment)]);
    std::fs::remove_file(segment).unwrap();
    expect_damage(&remote, &[&name(segment), "missing"]);
    std::fs::write(segment, whole).unwrap();

    let whole = std::fs::read(chunk).unwrap();
    flip(chunk, 60);
    expect_damage(&remote, &["DAMAGE wal/", &name(chunk)]);
    std::fs::write(chunk, whole).unwrap();

    let checkpoint = objects(&remote, "ckpt").pop().unwrap();
    let whole = std::fs::read(&checkpoint).unwrap();
    flip(&checkpoint, 50);
    expect_damage(&remote, &["DAMAGE ckpt/", "not what the manifest says"]);
    std::fs::write(&checkpoint, whole).unwrap();

    // Behind a hole there may be what was in flight, but no end of a reign.
    assert!(chunks.len() >= 2, "a fence, chunks and a hand-over");
    let before_last = &chunks[chunks.len() - 2];
    let before = std::fs::read(before_last).unwrap();
    let header = shipper::chunk::ChunkHeader::decode(&before).unwrap();
    assert_eq!(header.kind, shipper::chunk::ChunkKind::Data);
    std::fs::remove_file(before_last).unwrap();
    expect_damage(&remote, &["DAMAGE wal/", &name(before_last), "missing"]);
    // Even if the whole end is gone, the checkpoint remembers it.
    let hand_over = std::fs::read(chunk).unwrap();
    std::fs::remove_file(chunk).unwrap();
    expect_damage(&remote, &["index.redb", "ahead of the log's end"]);
    std::fs::write(chunk, hand_over).unwrap();
    std::fs::write(before_last, before).unwrap();

    let manifest = objects(&remote, "manifest").pop().unwrap();
    flip(&manifest, 30);
    expect_damage(&remote, &["DAMAGE manifest/", &name(&manifest)]);
}

#[test]
fn what_is_no_replica_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(
        verify_replica(dir.path())
            .0
            .unwrap_err()
            .contains("no log in the replica")
    );
    assert!(
        tool(&["verify", "--replica", "nonsense"])
            .0
            .unwrap_err()
            .contains("file:///")
    );
}

fn removed_of(remote: &Path) -> serde_json::Value {
    let url = format!("file://{}", remote.display());
    let (outcome, text) = tool(&["stats", "--replica", &url, "--json"]);
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["removedRepos"].clone()
}

/// Removes the first repo, which is in the log of a replica from then on.
fn remove_one(engine: &Engine) -> engine::log::Lsn {
    let did = engine.reader().unwrap().repos(None, 1).unwrap()[0].did.clone();
    let lsn = append(engine, EntryDraft::private(vec![Change::RepoRemoved { did }])).first;
    wait(engine.log().seal_now()).unwrap();
    lsn
}

#[test]
fn a_replica_tells_which_removed_repos_are_still_in_it() {
    let (_dir, remote) = replica();
    let none = removed_of(&remote);
    assert_eq!(
        (&none["count"], &none["compacted"]["count"]),
        (&0.into(), &0.into())
    );

    let (_dir, remote) = replica_after(|engine, _, _| {
        remove_one(engine);
    });
    let told = removed_of(&remote);
    assert_eq!(
        (&told["count"], &told["compacted"]["count"]),
        (&1.into(), &0.into())
    );

    let (_dir, remote) = replica_after(|engine, handle, runtime| {
        let lsn = remove_one(engine);
        let deadline = std::time::Instant::now() + DEADLINE;
        let until = |what: &dyn Fn() -> bool| {
            while !what() {
                assert!(std::time::Instant::now() < deadline, "{:?}", handle.erased());
                std::thread::yield_now();
            }
        };
        until(&|| handle.covered() >= lsn);
        let options = engine::compact::CompactOptions::default();
        let done = runtime
            .block_on(engine.compact(handle.covered(), options))
            .unwrap();
        assert!(done.through >= lsn);
        until(&|| handle.erased().through >= lsn);
    });
    let told = removed_of(&remote);
    assert_eq!(
        (&told["count"], &told["compacted"]["count"]),
        (&0.into(), &1.into())
    );
    assert_eq!(told["left"]["count"], 0, "{told}");
    std::fs::write(remote.join("seg/0000000000000001"), "left by a crash").unwrap();
    let told = removed_of(&remote);
    assert_eq!(told["left"]["names"][0], "seg/0000000000000001");
}
