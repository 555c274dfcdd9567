//! The protocol's own test vectors for lexicons, run as they are.

use std::path::PathBuf;

use engine::repo::json::json_to_record;
use serde_json::Value as Json;

use super::bundle::{compile, definitions};

/// A vector file; `None` (and a line that says so) if the vectors are not at hand.
fn vectors(name: &str) -> Option<Json> {
    let folder = std::env::var_os("ATPROTO_INTEROP_DIR").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/interop"),
        PathBuf::from,
    );
    if !folder.is_dir() {
        eprintln!(
            "skipped: no interoperability vectors in {} (set ATPROTO_INTEROP_DIR)",
            folder.display()
        );
        return None;
    }
    let file = folder.join("lexicon").join(name);
    let text = std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    Some(serde_json::from_slice(&text).unwrap())
}

fn cases(name: &str) -> Vec<Json> {
    let Some(Json::Array(cases)) = vectors(name) else {
        return Vec::new();
    };
    assert!(!cases.is_empty(), "{name} has no cases");
    cases
}

/// Whether a case's data is a valid record of the catalog's example.
fn verdict(case: &Json) -> Option<Result<(), String>> {
    let lexicons = compile(&definitions(&vectors("catalog/record.json")?).unwrap()).unwrap();
    let schema = lexicons
        .record(&"example.lexicon.record".parse().unwrap())
        .unwrap();
    assert!(schema.takes_key(&case["rkey"].as_str().unwrap().parse().unwrap()));
    assert!(!schema.takes_key(&"other".parse().unwrap()));
    let record = json_to_record(&case["data"]).map_err(|error| error.to_string());
    let record = record.map(engine::repo::cbor::Value::Map);
    Some(record.and_then(|record| schema.check(&record).map_err(|fault| fault.to_string())))
}

#[test]
fn valid_records_follow_the_vectors() {
    for case in cases("record-data-valid.json") {
        assert_eq!(verdict(&case), Some(Ok(())), "{}", case["name"]);
    }
}

#[test]
fn invalid_records_follow_the_vectors() {
    for mut case in cases("record-data-invalid.json") {
        let refused = |case: &Json| verdict(case).unwrap().is_err();
        assert!(refused(&case), "{}", case["name"]);
        // Some cases leave a required field out besides; the fault that they are named for has to be seen as well.
        if case["name"] != "missing required field" {
            case["data"]["integer"] = case["data"].get("integer").cloned().unwrap_or(1.into());
            assert!(refused(&case), "{} with all that is required", case["name"]);
        }
    }
}

#[test]
fn documents_follow_the_vectors() {
    let accepts = |case: &Json| definitions(case).and_then(|found| compile(&found).map(|_| ()));
    for case in cases("lexicon-valid.json") {
        assert_eq!(accepts(&case["lexicon"]), Ok(()), "{}", case["name"]);
    }
    for case in cases("lexicon-invalid.json") {
        assert!(accepts(&case["lexicon"]).is_err(), "{}", case["name"]);
    }
    for name in ["permission-set", "procedure", "query", "record", "subscription"] {
        if let Some(document) = vectors(&format!("catalog/{name}.json")) {
            assert_eq!(accepts(&document), Ok(()), "{name}");
        }
    }
}
