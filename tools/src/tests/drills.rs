//! Drills and scrubbing: whole replicas pass, damage is named however little is looked at, and nothing is left behind.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use audit::{NoMeter, Report};
use shipper::store::ReplicaStore;
use shipper::store::directory::DirectoryStore;

use super::fixture::*;
use super::replicas::{flip, objects, replica};
use crate::Outcome;

/// A drill that may take so many bytes of disk; its scratch directory must be empty afterwards.
fn drill(remote: &Path, disk_bytes: u64) -> (Result<Outcome, String>, String) {
    let scratch = tempfile::tempdir().unwrap();
    let told = tool(&[
        "drill",
        "--replica",
        &format!("file://{}", remote.display()),
        "--temp-dir",
        scratch.path().to_str().unwrap(),
        "--disk-bytes",
        &disk_bytes.to_string(),
    ]);
    assert_eq!(content(scratch.path()), [], "a drill leaves something");
    told
}

const ALL: u64 = u64::MAX;
const LITTLE: u64 = 1;

#[test]
fn a_whole_replica_passes_restored_or_sampled_and_stays_as_it_is() {
    let (_dir, remote) = replica();
    let before = content(&remote);
    let (outcome, text) = drill(&remote, ALL);
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    has_line(&text, &["restored up to"]);
    has_line(&text, &["3 repos"]);
    let (outcome, text) = drill(&remote, LITTLE);
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    has_line(&text, &["sampled up to"]);
    has_line(&text, &["1 of ", "segments are looked at"]);
    assert_eq!(content(&remote), before);
}

#[test]
fn damage_is_found_restored_or_sampled() {
    let (_dir, remote) = replica();
    let newest = objects(&remote, "seg").pop().unwrap();
    let checkpoint = objects(&remote, "ckpt").pop().unwrap();
    let chunk = objects(&remote, "wal").pop().unwrap();
    for damaged in [&newest, &checkpoint, &chunk] {
        let whole = std::fs::read(damaged).unwrap();
        flip(damaged, 60);
        for disk in [ALL, LITTLE] {
            // A restore does without a checkpoint, and says so.
            let dispensable = damaged == &checkpoint && disk == ALL;
            let (outcome, text) = drill(&remote, disk);
            if dispensable {
                has_line(&text, &["checkpoint"]);
            } else {
                assert_eq!(outcome, Ok(Outcome::Damaged), "{}: {text}", damaged.display());
                has_line(&text, &["DAMAGE"]);
            }
        }
        std::fs::write(damaged, whole).unwrap();
    }
    std::fs::remove_file(&newest).unwrap();
    let (outcome, text) = drill(&remote, ALL);
    assert_eq!(outcome, Ok(Outcome::Damaged), "{text}");
    let nothing = tempfile::tempdir().unwrap();
    assert!(drill(nothing.path(), ALL).0.unwrap_err().contains("no log"));
}

#[test]
fn scrubbing_comes_by_every_object_once_and_names_the_damaged_one() {
    let (_dir, remote) = replica();
    let store: Arc<dyn ReplicaStore> = Arc::new(DirectoryStore::open(&remote).unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let survey = shipper::fence::survey(&store, Duration::from_secs(10));
    let manifest = runtime.block_on(survey).unwrap().unwrap().manifest;
    let scratch = tempfile::tempdir().unwrap();
    let round = || {
        let (mut told, mut after, mut visited) = (Vec::new(), String::new(), Vec::new());
        let mut report = Report::new(&mut told, &NoMeter);
        loop {
            let next = audit::replica::next_object(&store, scratch.path(), &manifest, &after, &mut report);
            let Some((object, bytes)) = runtime.block_on(next).unwrap() else {
                break;
            };
            let found = std::fs::metadata(remote.join(&object)).unwrap().len();
            assert_eq!(bytes, found, "{object}");
            visited.push(object.clone());
            after = object;
        }
        let findings = report.findings();
        drop(report);
        (visited, findings, String::from_utf8(told).unwrap())
    };
    let (visited, findings, text) = round();
    assert_eq!(findings, 0, "{text}");
    let files: usize = manifest.checkpoints.iter().map(|c| c.files.len()).sum();
    assert_eq!(visited.len(), manifest.segments.len() + files);
    for prefix in ["seg/", "ckpt/"] {
        let object = visited.iter().rfind(|object| object.starts_with(prefix)).unwrap();
        let path = remote.join(object);
        flip(&path, 60);
        let (again, findings, text) = round();
        assert_eq!((again.len(), findings), (visited.len(), 1), "{text}");
        has_line(&text, &["DAMAGE", object]);
        flip(&path, 60);
    }
    assert_eq!(content(scratch.path()), []);
}
