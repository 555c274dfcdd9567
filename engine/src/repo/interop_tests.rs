//! The protocol's own test vectors, run as they are.

use super::*;
use std::path::PathBuf;

/// The text of a vector file; `None` (and a line that says so) if the vectors are not at hand.
pub(crate) fn vector_file(name: &str) -> Option<String> {
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
    let file = folder.join(name);
    Some(std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())))
}

/// Checks that `accepts` takes every line of one file and none of the other.
fn syntax(valid: Option<&str>, invalid: &str, accepts: impl Fn(&str) -> bool) {
    let cases = |name: &str| {
        let text = vector_file(&format!("syntax/{name}.txt"))?;
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with("# ") && *line != "#");
        let lines: Vec<String> = lines.map(str::to_owned).collect();
        assert!(!lines.is_empty(), "{name} has no cases");
        Some(lines)
    };
    for line in valid.and_then(cases).unwrap_or_default() {
        assert!(accepts(&line), "refused although valid: {line:?}");
    }
    for line in cases(invalid).unwrap_or_default() {
        assert!(!accepts(&line), "accepted although invalid: {line:?}");
    }
}

#[test]
fn at_identifiers_follow_the_vectors() {
    syntax(
        Some("atidentifier_syntax_valid"),
        "atidentifier_syntax_invalid",
        |s| {
            let is_one = s.parse::<AtIdentifier>().is_ok();
            assert_eq!(AtIdentifier::check(s).is_ok(), is_one, "{s:?}");
            is_one
        },
    );
}

#[test]
fn at_uris_follow_the_vectors() {
    syntax(Some("aturi_syntax_valid"), "aturi_syntax_invalid", |s| {
        let is_one = s.parse::<AtUri>().is_ok();
        assert_eq!(AtUri::check(s).is_ok(), is_one, "{s:?}");
        is_one
    });
}

#[test]
fn the_loose_cid_syntax_follows_the_vectors() {
    syntax(
        Some("cid_syntax_valid"),
        "cid_syntax_invalid",
        cid::check_cid_syntax,
    );
    // The strict type is stricter: it refuses all of these, too.
    syntax(None, "cid_syntax_invalid", |s| s.parse::<Cid>().is_ok());
}

#[test]
fn datetimes_follow_the_vectors() {
    syntax(
        Some("datetime_syntax_valid"),
        "datetime_syntax_invalid",
        datetime::check_datetime_syntax,
    );
    syntax(Some("datetime_syntax_valid"), "datetime_parse_invalid", |s| {
        datetime::parse_datetime(s).is_ok()
    });
    syntax(None, "datetime_syntax_invalid", |s| {
        datetime::parse_datetime(s).is_ok()
    });
    for invalid in ["datetime_syntax_invalid", "datetime_parse_invalid"] {
        syntax(Some("datetime_syntax_valid"), invalid, datetime::check_datetime);
    }
}

#[test]
fn dids_follow_the_vectors() {
    syntax(Some("did_syntax_valid"), "did_syntax_invalid", |s| {
        s.parse::<Did>().is_ok()
    });
}

#[test]
fn handles_follow_the_vectors() {
    syntax(Some("handle_syntax_valid"), "handle_syntax_invalid", |s| {
        s.parse::<Handle>().is_ok()
    });
}

#[test]
fn languages_follow_the_vectors() {
    syntax(
        Some("language_syntax_valid"),
        "language_syntax_invalid",
        language::check_language_syntax,
    );
    syntax(
        Some("language_syntax_valid"),
        "language_parse_invalid",
        language::check_language,
    );
}

#[test]
fn nsids_follow_the_vectors() {
    syntax(Some("nsid_syntax_valid"), "nsid_syntax_invalid", |s| {
        s.parse::<Nsid>().is_ok()
    });
}

#[test]
fn record_keys_follow_the_vectors() {
    syntax(Some("recordkey_syntax_valid"), "recordkey_syntax_invalid", |s| {
        s.parse::<RecordKey>().is_ok()
    });
}

#[test]
fn tids_follow_the_vectors() {
    syntax(Some("tid_syntax_valid"), "tid_syntax_invalid", |s| {
        s.parse::<Tid>().is_ok()
    });
}

#[test]
fn uris_follow_the_vectors() {
    syntax(Some("uri_syntax_valid"), "uri_syntax_invalid", uri::check_uri);
}

fn vectors(name: &str) -> Vec<serde_json::Value> {
    let Some(text) = vector_file(name) else {
        return Vec::new();
    };
    serde_json::from_str(&text).unwrap()
}

#[test]
fn signatures_follow_the_vectors() {
    for case in vectors("crypto/signature-fixtures.json") {
        let text = |key: &str| case[key].as_str().unwrap();
        let base64 = |key: &str| {
            data_encoding::BASE64_NOPAD
                .decode(text(key).trim_end_matches('=').as_bytes())
                .unwrap()
        };
        let key = PublicKey::from_did_key(text("publicKeyDid")).unwrap();
        assert_eq!(key.to_did_key(), text("publicKeyDid"));
        assert_eq!(key.jose_algorithm(), text("algorithm"));
        let listed = PublicKey::from_verification_method(text("didDocSuite"), text("publicKeyMultibase"));
        assert_eq!(listed, Ok(key));
        let holds = key.verify(&base64("messageBase64"), &base64("signatureBase64"));
        assert_eq!(
            holds.is_ok(),
            case["validSignature"].as_bool().unwrap(),
            "{}: {holds:?}",
            text("comment")
        );
        if case["tags"].as_array().unwrap().iter().any(|tag| tag == "high-s") {
            assert_eq!(
                key.verify_allow_high_s(&base64("messageBase64"), &base64("signatureBase64")),
                Ok(())
            );
        }
    }
}

#[test]
fn did_keys_follow_the_vectors() {
    for case in vectors("crypto/w3c_didkey_K256.json") {
        let secret = data_encoding::HEXLOWER
            .decode(case["privateKeyBytesHex"].as_str().unwrap().as_bytes())
            .unwrap();
        let key = SigningKey::from_bytes(&secret).unwrap().public_key();
        assert_eq!(key.to_did_key(), case["publicDidKey"].as_str().unwrap());
    }
    for case in vectors("crypto/w3c_didkey_P256.json") {
        let secret = super::base58::decode(case["privateKeyBytesBase58"].as_str().unwrap()).unwrap();
        let secret = p256::ecdsa::SigningKey::from_slice(&secret).unwrap();
        let text = case["publicDidKey"].as_str().unwrap();
        let key: PublicKey = text.parse().unwrap();
        assert_eq!(key, PublicKey::P256(*secret.verifying_key()));
        assert_eq!(key.to_did_key(), text);
    }
}

#[test]
fn data_model_values_follow_the_vectors() {
    for case in vectors("data-model/data-model-fixtures.json") {
        let value = json::json_to_value(&case["json"]).unwrap();
        let encoded = value.encode();
        let expected = data_encoding::BASE64_NOPAD
            .decode(case["cbor_base64"].as_str().unwrap().as_bytes())
            .unwrap();
        assert_eq!(encoded, expected);
        assert_eq!(
            Cid::for_dag_cbor(&encoded).to_string(),
            case["cid"].as_str().unwrap()
        );
        assert_eq!(cbor::validate(&encoded), Ok(()));
        assert_eq!(cbor::Value::decode(&encoded), Ok(value.clone()));
        assert_eq!(json::value_to_json(&value), case["json"]);
        let mut transcoded = Vec::new();
        json::cbor_to_json(&encoded, &mut transcoded).unwrap();
        assert_eq!(
            serde_json::from_slice::<serde_json::Value>(&transcoded).unwrap(),
            case["json"]
        );
    }
}

#[test]
fn data_model_rules_follow_the_vectors() {
    for case in vectors("data-model/data-model-valid.json") {
        let record = json::json_to_record(&case["json"]);
        assert!(
            record.is_ok(),
            "refused although valid: {}: {record:?}",
            case["note"]
        );
    }
    for case in vectors("data-model/data-model-invalid.json") {
        assert!(
            json::json_to_record(&case["json"]).is_err(),
            "accepted although invalid: {}",
            case["note"]
        );
    }
}
