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
fn a_replica_that_is_not_named_stops_it() {
    let (dir, _) = stopped();
    std::fs::write(dir.path().join("replica-writers"), "").unwrap();
    let path = dir.path().to_str().unwrap();
    let (outcome, _) = tool(&["compact", path, "--keep-hours", "0"]);
    assert!(outcome.unwrap_err().contains("name it with --replica"));
}
