//! From a request's JSON to a checked record block: `$type`, data model, lexicon, blob references, CID.

use engine::repo::cbor::{BlobRef, Map, Value};
use engine::repo::json::FromJson;
use engine::repo::{Cid, RepoPath, Subject};

use super::WriteError;
use crate::lexicon;

/// A record ready to be written.
#[derive(Clone, Debug)]
pub struct PreparedRecord {
    /// CID of `block`.
    pub cid: Cid,
    /// The record as DAG-CBOR.
    pub block: bytes::Bytes,
    /// The media blobs that it references.
    pub blobs: Vec<BlobRef>,
    /// What it is about, where a repo should have one record about it.
    pub subject: Option<Subject>,
    /// Whether its lexicon was asked.
    pub validation: Validation,
}

/// What came of lexicon validation for a record that is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validation {
    /// It is what its schema says.
    Valid,
    /// No schema of its type is known.
    Unknown,
    /// It was not asked for.
    Skipped,
}

impl Validation {
    /// Value of `validationStatus` in the answer.
    #[must_use]
    pub fn status(self) -> Option<&'static str> {
        match self {
            Validation::Valid => Some("valid"),
            Validation::Unknown => Some("unknown"),
            Validation::Skipped => None,
        }
    }
}

/// What the caller asked of lexicon validation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validate {
    /// `validate: true`: a schema must be known.
    Required,
    /// Unset: validate what is known.
    IfKnown,
    /// `validate: false`.
    Off,
}

impl From<Option<bool>> for Validate {
    fn from(flag: Option<bool>) -> Validate {
        match flag {
            Some(true) => Validate::Required,
            Some(false) => Validate::Off,
            None => Validate::IfKnown,
        }
    }
}

/// Checks the record that is to be at `path`, and encodes it.
///
/// # Errors
/// [`WriteError::InvalidRecord`] with what is wrong with it.
pub fn prepare(
    path: &RepoPath,
    record: impl Into<FromJson>,
    validate: Validate,
) -> Result<PreparedRecord, WriteError> {
    finish(path, parse(record)?, validate)
}

/// As [`prepare`], for what takes the place of a profile: where its pictures have the form from before blobs had a type, as profiles
/// of then do, they get today's. `size_of` tells how large a blob of the account is.
///
/// # Errors
/// As [`prepare`]; also [`WriteError::Blob`] for a picture that is not here.
pub fn prepare_profile(
    path: &RepoPath,
    record: impl Into<FromJson>,
    validate: Validate,
    size_of: impl Fn(&Cid) -> Result<Option<u64>, WriteError>,
) -> Result<PreparedRecord, WriteError> {
    let mut record = parse(record)?;
    for field in ["avatar", "banner"] {
        let picture = match record.get(field) {
            Some(Value::Map(map)) => BlobRef::from_map(map),
            _ => None,
        };
        let Some(mut picture) = picture.filter(BlobRef::is_legacy) else {
            continue;
        };
        let Some(size) = size_of(&picture.cid)? else {
            return Err(WriteError::Blob {
                name: "BlobNotFound",
                message: format!("Could not find blob: {}", picture.cid),
            });
        };
        picture.size = Some(size);
        record.insert(field, picture.to_value());
    }
    finish(path, record, validate)
}

fn parse(record: impl Into<FromJson>) -> Result<Map, WriteError> {
    let record = record.into().into_record();
    record.map_err(|error| WriteError::InvalidRecord(format!("Invalid record: {error}")))
}

fn finish(path: &RepoPath, mut record: Map, validate: Validate) -> Result<PreparedRecord, WriteError> {
    let invalid = |message: String| WriteError::InvalidRecord(message);
    let collection = &path.collection;
    match record.get_text("$type") {
        // Whatever is no text was refused before.
        None => {
            record.insert("$type", Value::Text(collection.as_str().to_owned()));
        }
        Some(name) if name == collection.as_str() => {}
        Some(other) => {
            return Err(invalid(format!(
                "Invalid $type: expected {}, got {other:?}",
                collection.as_str()
            )));
        }
    }
    let value = Value::Map(record);
    let validation = check_lexicon(path, &value, validate)?;
    let blobs = blob_refs(&value)?;
    let block = value.encode();
    Ok(PreparedRecord {
        subject: Subject::of(&path.to_string(), &block),
        cid: Cid::for_dag_cbor(&block),
        block: block.into(),
        blobs,
        validation,
    })
}

/// Asks the lexicon of the record's type, key and all, unless that is off.
fn check_lexicon(path: &RepoPath, record: &Value, validate: Validate) -> Result<Validation, WriteError> {
    if validate == Validate::Off {
        return Ok(Validation::Skipped);
    }
    let collection = &path.collection;
    let invalid = |message: String| Err(WriteError::InvalidRecord(message));
    let Some(schema) = lexicon::known().record(collection) else {
        return match validate {
            Validate::Required => invalid(format!("Unknown lexicon type: {collection}")),
            Validate::IfKnown | Validate::Off => Ok(Validation::Unknown),
        };
    };
    if !schema.takes_key(&path.rkey) {
        return invalid(format!(
            "Invalid {collection} record: the record key must be {}",
            schema.key()
        ));
    }
    match schema.check(record) {
        Ok(()) => Ok(Validation::Valid),
        Err(fault) => invalid(format!("Invalid {collection} record: {fault}")),
    }
}

fn blob_refs(value: &Value) -> Result<Vec<BlobRef>, WriteError> {
    let found = value.blob_refs();
    if found.iter().any(BlobRef::is_legacy) {
        return Err(WriteError::InvalidRecord(
            "Legacy blobs are not allowed; use a typed blob reference".to_owned(),
        ));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const POST: &str = "app.bsky.feed.post/3kznmn7xqxl22";
    const THING: &str = "com.example.thing/one";

    fn prepare(path: &str, record: serde_json::Value, validate: Validate) -> Result<PreparedRecord, String> {
        super::prepare(&path.parse().unwrap(), record, validate).map_err(|error| error.to_string())
    }

    #[test]
    fn a_missing_type_is_filled_and_a_wrong_one_refused() {
        let prepared = prepare(THING, json!({"text": "hi"}), Validate::IfKnown).unwrap();
        let value = Value::decode(&prepared.block).unwrap();
        assert_eq!(
            value.as_map().unwrap().get_text("$type"),
            Some("com.example.thing")
        );
        assert!(prepare(THING, json!({"$type": "app.bsky.feed.like"}), Validate::IfKnown).is_err());
        assert!(prepare(THING, json!({"$type": 5}), Validate::Off).is_err());
    }

    #[test]
    fn floats_arrays_and_legacy_blobs_are_refused() {
        let cid = Cid::for_raw(b"x").to_string();
        for record in [
            json!([]),
            json!("text"),
            json!({"n": 1.5}),
            json!({"avatar": {"cid": cid, "mimeType": "image/png"}}),
            json!({"link": {"$link": "not-a-cid"}}),
        ] {
            for path in [POST, THING] {
                let prepared = prepare(path, record.clone(), Validate::Off);
                assert!(prepared.is_err(), "{record}");
            }
        }
    }

    #[test]
    fn blob_references_are_found_wherever_they_are() {
        let cid = Cid::for_raw(b"x");
        let blob =
            json!({"$type": "blob", "ref": {"$link": cid.to_string()}, "mimeType": "image/png", "size": 1});
        let record = json!({"embed": {"images": [{"image": blob}]}});
        let prepared = prepare(THING, record, Validate::IfKnown).unwrap();
        assert_eq!(prepared.blobs.len(), 1);
        assert_eq!(prepared.blobs[0].cid, cid);
    }

    #[test]
    fn what_validation_means_depends_on_what_is_asked_and_known() {
        let good = json!({"text": "hi", "createdAt": "2026-11-20T08:30:15.250Z"});
        let bad = json!({"text": "hi"});
        let validation = |path, record: &serde_json::Value, flag: Option<bool>| {
            prepare(path, record.clone(), Validate::from(flag)).map(|prepared| prepared.validation)
        };
        let missing = "Invalid app.bsky.feed.post record: Record must have the property \"createdAt\"";
        for flag in [None, Some(true)] {
            assert_eq!(validation(POST, &good, flag), Ok(Validation::Valid));
            assert_eq!(validation(POST, &bad, flag), Err(missing.to_owned()));
            assert_eq!(
                validation("app.bsky.feed.post/one", &good, flag),
                Err("Invalid app.bsky.feed.post record: the record key must be a TID".to_owned())
            );
        }
        assert_eq!(
            validation("app.bsky.feed.post/one", &bad, Some(false)),
            Ok(Validation::Skipped)
        );
        assert_eq!(validation(THING, &bad, None), Ok(Validation::Unknown));
        assert_eq!(validation(THING, &bad, Some(false)), Ok(Validation::Skipped));
        assert_eq!(
            validation(THING, &bad, Some(true)),
            Err("Unknown lexicon type: com.example.thing".to_owned())
        );
    }
}
