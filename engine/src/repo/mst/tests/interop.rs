//! The vectors that all implementations share.

use super::*;
use crate::repo::interop_tests::vector_file;
use serde_json::Value;

fn json(path: &str) -> Vec<Value> {
    vector_file(path)
        .map(|text| serde_json::from_str(&text).unwrap())
        .unwrap_or_default()
}

fn strings(value: &Value) -> Vec<&str> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item.as_str().unwrap())
        .collect()
}

fn cid(value: &Value) -> Cid {
    value.as_str().unwrap().parse().unwrap()
}

#[test]
fn shared_prefixes_are_counted_in_bytes() {
    for case in json("mst/common_prefix.json") {
        let (left, right) = (case["left"].as_str().unwrap(), case["right"].as_str().unwrap());
        let found = key::shared_prefix(left.as_bytes(), right.as_bytes());
        assert_eq!(
            found as u64,
            case["len"].as_u64().unwrap(),
            "{left:?} and {right:?}"
        );
    }
}

#[test]
fn keys_have_the_layers_that_all_agree_on() {
    for case in json("mst/key_heights.json") {
        let key = case["key"].as_str().unwrap();
        assert_eq!(
            u64::from(key_layer(key)),
            case["height"].as_u64().unwrap(),
            "{key:?}"
        );
    }
}

#[test]
fn example_keys_are_on_the_layers_that_their_names_tell() {
    for key in vector_file("mst/example_keys.txt").unwrap_or_default().lines() {
        let layer: u8 = key.get(1..2).unwrap().parse().unwrap();
        assert_eq!(key_layer(key), layer, "{key}");
    }
}

#[test]
fn commit_proofs_hold_the_required_blocks_and_no_others_are_needed_to_invert() {
    for case in json("firehose/commit-proof-fixtures.json") {
        let name = case["comment"].as_str().unwrap();
        let value = cid(&case["leafValue"]);
        let (mut tree, mut store) = inserted(strings(&case["keys"]), value);
        let before = cid(&case["rootBeforeCommit"]);
        assert_eq!(tree.root(), Some(before), "{name}");

        let mut changes = Vec::new();
        for key in strings(&case["adds"]) {
            tree.insert(key, value, &store).unwrap();
            changes.push(Change {
                key,
                value: Some(value),
                previous: None,
            });
        }
        for key in strings(&case["dels"]) {
            let previous = Some(tree.remove(key, &store).unwrap());
            changes.push(Change {
                key,
                value: None,
                previous,
            });
        }
        let flushed = tree.flush();
        apply(&mut store, &flushed);
        assert_eq!(flushed.root, cid(&case["rootAfterCommit"]), "{name}");

        let proof: Store = tree
            .covering_proof(changes.iter().map(|change| change.key), &store)
            .unwrap()
            .into_iter()
            .collect();
        for required in strings(&case["blocksInProof"]) {
            assert!(
                proof.contains_key(&required.parse::<Cid>().unwrap()),
                "{name}: {required}"
            );
        }
        assert_eq!(invert(&changes, flushed.root, &proof).unwrap(), before, "{name}");
    }
}
