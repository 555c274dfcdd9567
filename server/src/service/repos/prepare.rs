//! From a request's JSON to a checked record block: `$type`, data model, blob references, CID.

use engine::repo::Cid;
use engine::repo::Nsid;
use engine::repo::cbor::{BlobRef, Value};
use engine::repo::json::FromJson;

use super::WriteError;

/// A record ready to be written.
#[derive(Clone, Debug)]
pub struct PreparedRecord {
    /// CID of `block`.
    pub cid: Cid,
    /// The record as DAG-CBOR.
    pub block: bytes::Bytes,
    /// The media blobs that it references.
    pub blobs: Vec<BlobRef>,
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

impl Validate {
    /// Value of `validationStatus` in the answer. No schema is compiled into this version, so a record that passes is
    /// honestly `unknown`.
    #[must_use]
    pub fn status(self) -> Option<&'static str> {
        match self {
            Validate::Required | Validate::IfKnown => Some("unknown"),
            Validate::Off => None,
        }
    }
}

/// Checks a record and encodes it.
///
/// # Errors
/// [`WriteError::InvalidRecord`] with what is wrong with it.
pub fn prepare(
    collection: &Nsid,
    record: impl Into<FromJson>,
    validate: Validate,
) -> Result<PreparedRecord, WriteError> {
    let invalid = |message: String| WriteError::InvalidRecord(message);
    let mut record = record
        .into()
        .into_record()
        .map_err(|error| invalid(format!("Invalid record: {error}")))?;
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
    if validate == Validate::Required {
        return Err(invalid(format!("Unknown lexicon type: {}", collection.as_str())));
    }
    let value = Value::Map(record);
    let blobs = blob_refs(&value)?;
    let block = value.encode();
    Ok(PreparedRecord {
        cid: Cid::for_dag_cbor(&block),
        block: block.into(),
        blobs,
    })
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

    fn post() -> Nsid {
        "app.bsky.feed.post".parse().unwrap()
    }

    #[test]
    fn a_missing_type_is_filled_and_a_wrong_one_refused() {
        let prepared = prepare(&post(), json!({"text": "hi"}), Validate::IfKnown).unwrap();
        let value = Value::decode(&prepared.block).unwrap();
        assert_eq!(
            value.as_map().unwrap().get_text("$type"),
            Some("app.bsky.feed.post")
        );
        assert!(prepare(&post(), json!({"$type": "app.bsky.feed.like"}), Validate::IfKnown).is_err());
        assert!(prepare(&post(), json!({"$type": 5}), Validate::Off).is_err());
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
            assert!(
                prepare(&post(), record.clone(), Validate::Off).is_err(),
                "{record}"
            );
        }
    }

    #[test]
    fn blob_references_are_found_wherever_they_are() {
        let cid = Cid::for_raw(b"x");
        let blob =
            json!({"$type": "blob", "ref": {"$link": cid.to_string()}, "mimeType": "image/png", "size": 1});
        let prepared = prepare(
            &post(),
            json!({"embed": {"images": [{"image": blob}]}}),
            Validate::IfKnown,
        )
        .unwrap();
        assert_eq!(prepared.blobs.len(), 1);
        assert_eq!(prepared.blobs[0].cid, cid);
    }

    #[test]
    fn required_validation_is_refused_as_no_schema_is_known() {
        assert!(prepare(&post(), json!({"text": "hi"}), Validate::Required).is_err());
    }
}
