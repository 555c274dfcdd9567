//! Copies: whole ones restore to the same log; broken ones are none, and go on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::log::LogId;
use engine::repo::Cid;
use shipper::fence::{ReplicaError, survey};
use shipper::log_object::LogObject;
use shipper::store::ReplicaStore;
use shipper::store::directory::DirectoryStore;
use shipper::store::faulty::{Answer, Fault, FaultyStore, Rule, Verb};

use super::fixture::*;
use super::replicas::{flip, objects, replica};
use crate::Outcome;
use crate::copy::{self, transfer::Transfer};

fn url(path: &Path) -> String {
    format!("file://{}", path.display())
}

fn copied(from: &Path, to: &Path, how: &[&str]) -> (Result<Outcome, String>, String) {
    let (from, to) = (url(from), url(to));
    let mut args = vec!["copy", &from, &to];
    args.extend(how);
    tool(&args)
}

/// The files of the log that a replica restores to.
fn restored_log(remote: &Path, into: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let (outcome, text) = tool(&["restore", "--replica", &url(remote), into.to_str().unwrap()]);
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    let log = into.join("log");
    let files = content(&log).into_iter();
    files
        .map(|(path, bytes)| (path.strip_prefix(&log).unwrap().to_owned(), bytes))
        .collect()
}

/// The relative names of all objects.
fn names(remote: &Path) -> Vec<PathBuf> {
    let files = content(remote).into_iter();
    files
        .map(|(path, _)| path.strip_prefix(remote).unwrap().to_owned())
        .collect()
}

#[test]
fn a_copy_is_a_replica_of_the_same_log_and_a_second_run_copies_nothing() {
    let (dir, remote) = replica();
    let to = dir.path().join("copies/one");
    let before = content(&remote);
    let (outcome, text) = copied(&remote, &to, &[]);
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    has_line(&text, &["log", "objects copied", " 0 were there"]);
    assert!(!text.contains("gone on"), "{text}");
    assert_eq!(content(&remote), before);

    let (outcome, text) = tool(&["verify", "--replica", &url(&to)]);
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    has_line(&text, &["3 repos"]);
    let logs = [(&remote, "a"), (&to, "b")].map(|(from, name)| restored_log(from, &dir.path().join(name)));
    assert!(!logs[0].is_empty() && logs[0] == logs[1]);

    let whole = content(&to);
    let (outcome, text) = copied(&remote, &to, &["--all"]);
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    has_line(&text, &["log", " 0 objects copied"]);
    assert_eq!(content(&to), whole);
}

#[test]
fn an_interrupted_copy_is_no_replica_and_goes_on() {
    let (dir, remote) = replica();
    let to = dir.path().join("copy");
    let wal = objects(&remote, "wal").len() as u64;
    let least = objects(&remote, "seg").len() as u64 + wal;
    // After a few objects; after all of them, at the manifest; and at log.json.
    for (verb, prefix, spared) in [
        (Verb::CreateFromFile, "", 3),
        (Verb::Create, "manifest/", 0),
        (Verb::Create, "log.json", 0),
    ] {
        let from: Arc<dyn ReplicaStore> = Arc::new(DirectoryStore::open(&remote).unwrap());
        let broken = FaultyStore::new(DirectoryStore::open(&to).unwrap(), 1);
        let fault = Rule::always(Fault::Before(Answer::Denied));
        broken.add(fault.on(verb).under(prefix).after(spared));
        let broken: Arc<dyn ReplicaStore> = Arc::new(broken);
        let scratch = tempfile::tempdir().unwrap();
        let bar = indicatif::ProgressBar::hidden();
        let transfer = Transfer::new(from, broken.clone(), scratch.path(), bar);
        let error = wait(copy::log::copy(&transfer)).map(|_| ()).unwrap_err();
        assert!(format!("{error:#}").contains("denied"), "{error:#}");
        assert!(!to.join("log.json").exists());
        let state = wait(survey(&broken, DEADLINE));
        assert!(
            matches!(state, Err(ReplicaError::NoLogObject { .. })),
            "{state:?}"
        );
    }
    let (outcome, text) = copied(&remote, &to, &[]);
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    has_line(&text, &[" 0 objects copied"]);
    let there: u64 = text
        .split(", ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .and_then(|count| count.parse().ok())
        .unwrap();
    assert!(there >= least, "{text}");
    let logs = [(&remote, "a"), (&to, "b")].map(|(from, name)| restored_log(from, &dir.path().join(name)));
    assert_eq!(logs[0], logs[1]);
}

#[test]
fn a_damaged_or_missing_object_of_the_source_is_named_and_not_copied() {
    let (dir, remote) = replica();
    let whole = dir.path().join("whole");
    assert_eq!(copied(&remote, &whole, &[]).0, Ok(Outcome::Clean));
    // Those that segments do not cover. The last one has no frames, but says that its writer stopped.
    let wal = objects(&whole, "wal");
    let chunks = [&wal[0], &wal[wal.len() - 1]].map(|chunk| remote.join(chunk.strip_prefix(&whole).unwrap()));
    let others = ["seg", "ckpt"].map(|prefix| objects(&remote, prefix).remove(0));
    for (number, object) in others.into_iter().chain(chunks).enumerate() {
        let name = object.strip_prefix(&remote).unwrap().to_owned();
        let sound = std::fs::read(&object).unwrap();
        let to = dir.path().join(format!("copy-{number}"));
        for missing in [false, true] {
            if missing {
                // A chunk that is missing is one that was never shipped, as far as can be told.
                if name.starts_with("wal") {
                    continue;
                }
                std::fs::remove_file(&object).unwrap();
            } else {
                flip(&object, sound.len() - 5);
            }
            let (outcome, text) = copied(&remote, &to, &[]);
            assert_eq!(outcome, Ok(Outcome::Damaged), "{text}");
            has_line(&text, &["damaged", name.to_str().unwrap()]);
            assert!(!to.join(&name).exists() && !to.join("log.json").exists());
            std::fs::write(&object, &sound).unwrap();
        }
        let (outcome, text) = copied(&remote, &to, &[]);
        assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    }
}

#[test]
fn a_destination_that_is_another_or_further_is_left_alone() {
    let (dir, remote) = replica();
    let refused = |to: &Path, words: &str| {
        let before = content(to);
        let (outcome, text) = copied(&remote, to, &[]);
        let error = outcome.unwrap_err();
        assert!(error.contains(words), "{error} {text}");
        assert_eq!(content(to), before);
    };
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let log = LogObject {
        log_id: LogId([1; 16]),
        created_at_micros: 1,
    };
    std::fs::write(other.join("log.json"), log.encode()).unwrap();
    refused(&other, "holds another log");

    let to = dir.path().join("copy");
    assert_eq!(copied(&remote, &to, &[]).0, Ok(Outcome::Clean));
    let last = objects(&to, "wal").pop().unwrap();
    for further in ["wal/00000000ffffffff", "manifest/00000000ffffffff"] {
        std::fs::write(to.join(further), b"x").unwrap();
        refused(&to, "further than the source");
        std::fs::remove_file(to.join(further)).unwrap();
    }
    // What the other replica consists of is not replaced; what lies about is.
    let segment = objects(&to, "seg").remove(0);
    flip(&segment, 100);
    refused(&to, "part of the replica");
    std::fs::remove_file(to.join("log.json")).unwrap();
    assert_eq!(copied(&remote, &to, &[]).0, Ok(Outcome::Clean));
    assert!(last.exists());
    let (outcome, text) = tool(&["verify", "--replica", &url(&to)]);
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    refused(&remote, "the same");
}

#[test]
fn a_copy_is_brought_up_to_date() {
    let (dir, remote) = replica();
    let (older, to) = (dir.path().join("older"), dir.path().join("copy"));
    // The source as it was before its last chunk.
    assert_eq!(copied(&remote, &older, &[]).0, Ok(Outcome::Clean));
    std::fs::remove_file(objects(&older, "wal").pop().unwrap()).unwrap();
    assert_eq!(copied(&older, &to, &[]).0, Ok(Outcome::Clean));
    assert_ne!(names(&to), names(&remote));
    let (outcome, text) = copied(&remote, &to, &[]);
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    has_line(&text, &[" 1 objects copied"]);
    // And not back.
    let back = copied(&older, &to, &[]).0.unwrap_err();
    assert!(back.contains("further than the source"), "{back}");
}

#[test]
fn media_are_copied_by_what_their_names_say() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let place = |bytes: &[u8]| format!("blobs/did:plc:abc/{}", Cid::for_raw(bytes));
    std::fs::create_dir_all(from.join("blobs/did:plc:abc")).unwrap();
    for bytes in [&b"one"[..], b"two", b"three"] {
        std::fs::write(from.join(place(bytes)), bytes).unwrap();
    }
    std::fs::write(from.join("blobs/notes.txt"), b"x").unwrap();
    // One is there, whole; one is there, damaged.
    std::fs::create_dir_all(to.join("blobs/did:plc:abc")).unwrap();
    std::fs::write(to.join(place(b"one")), b"one").unwrap();
    std::fs::write(to.join(place(b"two")), b"tw_").unwrap();
    let (outcome, text) = copied(&from, &to, &["--blobs"]);
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    has_line(&text, &["media: 2 objects copied (8 bytes), 1 were there"]);
    has_line(&text, &["1 objects below blobs/"]);
    for bytes in [&b"one"[..], b"two", b"three"] {
        assert_eq!(std::fs::read(to.join(place(bytes))).unwrap(), bytes);
    }
    assert!(!to.join("blobs/notes.txt").exists());

    std::fs::write(from.join(place(b"four")), b"fo_r").unwrap();
    let (outcome, text) = copied(&from, &to, &["--blobs"]);
    assert_eq!(outcome, Ok(Outcome::Damaged), "{text}");
    has_line(&text, &["damaged", &place(b"four")]);
    assert!(!to.join(place(b"four")).exists());
    // There is no log to copy.
    let none = copied(&from, &to, &[]).0.unwrap_err();
    assert!(none.contains("there is no log"), "{none}");
}
