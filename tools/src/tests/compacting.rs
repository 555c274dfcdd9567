//! A stopped server's log is compacted, found clean, and goes on.

use serde_json::Value;

use super::fixture::*;
use crate::Outcome;

fn json(args: &[&str]) -> Value {
    let (outcome, text) = tool(args);
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn what_is_dead_is_counted_told_and_removed() {
    let (dir, repos) = stopped();
    let path = dir.path().to_str().unwrap();
    let before = json(&["stats", path, "--json", "--top", "2"]);
    let total = |stats: &Value, field: &str| -> u64 {
        let segments = stats["segments"].as_array().unwrap();
        segments
            .iter()
            .map(|segment| segment[field].as_u64().unwrap())
            .sum()
    };
    assert_eq!(before["topRepos"].as_array().unwrap().len(), 2);
    assert_eq!(before["kinds"]["commit"]["entries"], 60);
    assert!(total(&before, "deadBytes") > total(&before, "liveBytes"));

    let young = json(&["compact", path, "--json"]);
    assert_eq!(young["plan"], Value::Null, "nothing is 72 hours old");
    let names = segments(dir.path());
    let dry = json(&["compact", path, "--keep-hours", "0", "--dry-run", "--json"]);
    assert_eq!(
        (&dry["plan"]["due"], &dry["done"]),
        (&Value::Bool(true), &Value::Null)
    );
    assert_eq!(segments(dir.path()), names);
    let (_, text) = tool(&["compact", path, "--keep-hours", "0", "--min-dead-share", "1"]);
    has_line(&text, &["less than --min-dead-share"]);

    let done = json(&["compact", path, "--keep-hours", "0", "--json"]);
    let (bytes, left) = (
        done["done"]["bytesBefore"].as_u64().unwrap(),
        done["done"]["bytesAfter"].as_u64().unwrap(),
    );
    assert!(left * 2 < bytes, "{done}");
    let after = json(&["stats", path, "--json"]);
    assert_eq!(total(&after, "bytes"), left);
    assert_eq!(total(&after, "records"), total(&before, "records"));
    assert_eq!(total(&after, "liveBytes"), total(&before, "liveBytes"));
    let (outcome, text) = tool(&["verify", path]);
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    let (_, text) = tool(&["inspect", path, "--entries"]);
    has_line(&text, &["repos numbered"]);
    assert!(!text.contains(SECRET));

    let engine = start(dir.path());
    let reader = engine.reader().unwrap();
    for repo in &repos {
        let head = reader.repo(&repo.did).unwrap().unwrap();
        assert_eq!(Some(head.commit), repo.head().map(|head| head.commit));
    }
    drop(reader);
    stop(engine, true);
    let (outcome, text) = tool(&["verify", path]);
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
}

#[test]
fn a_removed_repo_is_told_until_its_last_copy_has_left_the_log() {
    let (dir, repos) = stopped();
    let path = dir.path().to_str().unwrap();
    let none = json(&["stats", path, "--json"]);
    assert_eq!(none["removedRepos"]["count"], 0);

    let engine = start(dir.path());
    let did = repos[0].did.clone();
    // Of its newest commit, which says nothing of the account.
    let digest = *repos[0].head().unwrap().commit.digest();
    let is_there = || {
        let mut files = segments(dir.path()).into_iter();
        files.any(|file| {
            std::fs::read(file)
                .unwrap()
                .windows(32)
                .any(|bytes| bytes == digest)
        })
    };
    let change = engine::entry::Change::RepoRemoved { did: did.clone() };
    let removal = engine::entry::EntryDraft::private(vec![change]);
    let lsn = append(&engine, removal).first;
    wait(engine.log().seal_now()).unwrap();
    stop(engine, true);

    let told = json(&["stats", path, "--json", "--keep-hours", "2"]);
    let told = &told["removedRepos"];
    assert_eq!(
        (&told["count"], &told["oldest"][0]["did"]),
        (&1.into(), &did.as_str().into())
    );
    assert_eq!(told["oldest"][0]["lsn"], lsn.get());
    let until = engine::log::Lsn::saturating(lsn.get() + 2 * 3_600_000_000);
    assert_eq!(told["oldest"][0]["inLogUntilAfter"], crate::summary::time(until));
    let (_, text) = tool(&["stats", path]);
    has_line(&text, &["removed repo", did.as_str(), "still in the log"]);

    assert!(is_there());
    json(&["compact", path, "--keep-hours", "0", "--json"]);
    let after = json(&["stats", path, "--json"]);
    let after = &after["removedRepos"];
    assert_eq!(after["count"], 0);
    assert!(!is_there());
    assert_eq!(after["compacted"]["oldest"][0]["did"], did.as_str());
    // The checkpoint of the compaction has the LSN at which rows may still have waited to be swept. The server takes another.
    assert_eq!(
        (&after["compacted"]["count"], &after["left"]["count"]),
        (&1.into(), &1.into())
    );
    assert!(after["left"]["names"][0].as_str().unwrap().starts_with("ckpt/"));
    let engine = start(dir.path());
    assert!(wait(engine.erase()).unwrap().through >= lsn);
    stop(engine, true);
    let (_, text) = tool(&["stats", path]);
    has_line(&text, &[did.as_str(), "no server has told yet"]);
    has_line(&text, &["nothing is left here of removed repos"]);
    // What is beside the log is seen, too.
    std::fs::create_dir_all(dir.path().join("set-aside/1")).unwrap();
    let (_, text) = tool(&["stats", path]);
    has_line(&text, &["may be left in 1 more", "set-aside/1"]);

    let engine = start(dir.path());
    let removals = engine.removals(10).unwrap();
    let gone = engine::entry::Change::RemovalsGone { removals };
    append(&engine, engine::entry::EntryDraft::private(vec![gone]));
    stop(engine, true);
    let after = json(&["stats", path, "--json"]);
    let after = &after["removedRepos"];
    assert_eq!(
        (&after["count"], &after["compacted"]["count"]),
        (&0.into(), &0.into())
    );
    assert_eq!(
        (&after["gone"]["count"], &after["gone"]["newest"][0]["lsn"]),
        (&1.into(), &lsn.get().into())
    );
    let (_, text) = tool(&["stats", path]);
    has_line(&text, &[did.as_str(), "its last copy was gone by"]);
    let (outcome, text) = tool(&["verify", path]);
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
}

#[test]
fn a_replica_that_is_not_named_stops_it() {
    let (dir, _) = stopped();
    std::fs::write(dir.path().join("replica-writers"), "").unwrap();
    let path = dir.path().to_str().unwrap();
    let (outcome, _) = tool(&["compact", path, "--keep-hours", "0"]);
    assert!(outcome.unwrap_err().contains("name it with --replica"));
}
