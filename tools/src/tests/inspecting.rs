//! Inspection tells what is there, and no secrets.

use super::fixture::*;
use crate::Outcome;

#[test]
fn segments_and_entries_are_listed_filtered_and_shown() {
    let (dir, repos) = stopped();
    let path = dir.path().to_str().unwrap();
    let (outcome, text) = tool(&["inspect", path]);
    assert_eq!(outcome, Ok(Outcome::Clean));
    assert_eq!(text.lines().count(), segments(dir.path()).len() + 2, "{text}");
    has_line(&text, &["sealed"]);

    let (_, text) = tool(&["inspect", path, "--json"]);
    let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(first["sealed"], true);
    assert_eq!(first["prevLsn"], 0);

    let (_, all) = tool(&["inspect", path, "--entries", "--json"]);
    let entries: Vec<serde_json::Value> = all
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(entries.len() > 60);
    let commits = entries.iter().filter(|entry| entry["kind"] == "commit").count();
    assert_eq!(commits, 60);
    let did = repos[1].did.as_str();
    let (_, some) = tool(&["inspect", path, "--did", did, "--kind", "commit", "--json"]);
    assert_eq!(some.lines().count(), 20);
    let (_, few) = tool(&["inspect", path, "--kind", "commit", "--limit", "3", "--json"]);
    assert_eq!(few.lines().count(), 3);

    let middle = &entries[40];
    let lsn = middle["lsn"].to_string();
    let (_, from) = tool(&["inspect", path, "--since", &lsn, "--json"]);
    assert_eq!(from.lines().count(), entries.len() - 40);
    let (_, to) = tool(&["inspect", path, "--until", &lsn, "--json"]);
    assert_eq!(to.lines().count(), 41);
    let (_, none) = tool(&["inspect", path, "--since", "2100-01-01T00:00:00Z", "--json"]);
    assert_eq!(none, "");

    let last = entries.last().unwrap()["lsn"].to_string();
    let (_, one) = tool(&["inspect", path, "--lsn", &last, "--json"]);
    let one: serde_json::Value = serde_json::from_str(&one).unwrap();
    assert_eq!(one["event"]["seq"].to_string(), last);
    let blocks = one["event"]["blocks"].as_array().unwrap();
    assert!(blocks.iter().all(|block| block["sound"] == true));
    assert!(
        blocks
            .iter()
            .any(|block| block["value"]["$type"] == "app.bsky.feed.post")
    );
    let (_, plain) = tool(&["inspect", path, "--lsn", &last]);
    has_line(&plain, &["role: record"]);
    assert!(
        tool(&["inspect", path, "--lsn", "5"])
            .0
            .unwrap_err()
            .contains("no entry 5")
    );
}

#[test]
fn account_data_is_told_by_table_and_number_of_rows_only() {
    let (dir, _) = stopped();
    let path = dir.path().to_str().unwrap();
    let (_, text) = tool(&["inspect", path, "--kind", "private"]);
    has_line(&text, &["accounts: account +1, actor +1, signing_key +1"]);
    let (_, json) = tool(&["inspect", path, "--kind", "private", "--json"]);
    let mut all = format!("{text}{json}");
    for line in json.lines() {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap();
        all += &tool(&["inspect", path, "--lsn", &entry["lsn"].to_string()]).1;
    }
    for secret in [SECRET, "example.test", "user0.test"] {
        assert!(!all.contains(secret), "{secret} is shown");
    }
}

#[test]
fn a_log_that_is_being_written_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path());
    fill(&engine);
    let (outcome, text) = tool(&["inspect", dir.path().to_str().unwrap()]);
    assert_eq!(outcome, Ok(Outcome::Clean));
    has_line(&text, &["open"]);
    stop(engine, false);
}
