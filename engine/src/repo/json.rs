//! The data model as JSON: links as `{"$link": …}`, byte strings as `{"$bytes": …}`.
//! Spec: <https://atproto.com/specs/data-model#json-representation>.
//!
//! Coming in, JSON is checked for what the data model forbids: numbers that are no integers of i64, `$type` that is not
//! text, half a link, half a blob. Going out, encoded bytes are turned into JSON in one pass, without a tree.

mod read;

use super::cbor::{CborError, CborErrorKind, Kind, MAX_DEPTH, Reader, Value};
use data_encoding::BASE64_NOPAD;
use serde_json::Value as Json;
use std::io::Write;

pub use read::{DataModelError, DataModelErrorKind, FromJson, json_to_record, json_to_value};

/// The JSON that a value stands for, as a tree. Where encoded bytes are at hand, [`cbor_to_json`] is faster.
#[must_use]
pub fn value_to_json(value: &Value) -> Json {
    let single =
        |key: &str, text: String| Json::Object([(key.to_owned(), Json::String(text))].into_iter().collect());
    match value {
        Value::Null => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Int(value) => Json::from(*value),
        Value::Text(text) => Json::String(text.clone()),
        Value::Bytes(bytes) => single("$bytes", BASE64_NOPAD.encode(bytes)),
        Value::Link(cid) => single("$link", cid.to_string()),
        Value::Array(items) => Json::Array(items.iter().map(value_to_json).collect()),
        Value::Map(map) => Json::Object(
            map.iter()
                .map(|(key, value)| (key.to_owned(), value_to_json(value)))
                .collect(),
        ),
    }
}

/// Appends to `out` the JSON that one encoded value stands for, checking all of it. Maps keep their order.
///
/// # Errors
/// `bytes` are not exactly one DAG-CBOR value; `out` is then as it was.
pub fn cbor_to_json(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), CborError> {
    let before = out.len();
    let mut reader = Reader::new(bytes);
    let result = transcode(&mut reader, 0, out).and_then(|()| reader.end());
    if result.is_err() {
        out.truncate(before);
    }
    result
}

fn transcode(reader: &mut Reader<'_>, depth: usize, out: &mut Vec<u8>) -> Result<(), CborError> {
    let start = reader.position();
    match reader.peek()? {
        Kind::Null => {
            reader.null()?;
            out.extend_from_slice(b"null");
        }
        Kind::Bool => out.extend_from_slice(if reader.bool()? { b"true" } else { b"false" }),
        Kind::Int => {
            let value = reader.i64()?;
            // Writing to a Vec does not fail.
            let _ = write!(out, "{value}");
        }
        Kind::Text => write_json_text(reader.text()?, out),
        Kind::Bytes => {
            out.extend_from_slice(br#"{"$bytes":""#);
            let bytes = reader.bytes()?;
            let at = out.len();
            out.resize(at + BASE64_NOPAD.encode_len(bytes.len()), 0);
            BASE64_NOPAD.encode_mut(bytes, &mut out[at..]);
            out.extend_from_slice(br#""}"#);
        }
        Kind::Link => {
            out.extend_from_slice(br#"{"$link":""#);
            out.extend_from_slice(&reader.link()?.to_text());
            out.extend_from_slice(br#""}"#);
        }
        Kind::Array | Kind::Map if depth >= MAX_DEPTH => {
            return Err(CborError {
                at: start,
                kind: CborErrorKind::Depth,
            });
        }
        Kind::Array => {
            out.push(b'[');
            for index in 0..reader.array()? {
                if index > 0 {
                    out.push(b',');
                }
                transcode(reader, depth + 1, out)?;
            }
            out.push(b']');
        }
        Kind::Map => {
            out.push(b'{');
            let mut keys = reader.map()?;
            let mut is_first = true;
            while let Some(key) = keys.next(reader)? {
                if !is_first {
                    out.push(b',');
                }
                is_first = false;
                write_json_text(key, out);
                out.push(b':');
                transcode(reader, depth + 1, out)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

/// Appends `text` to `out` as a JSON string, quotes included.
pub fn write_json_text(text: &str, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    let mut rest = text.as_bytes();
    loop {
        let (plain, from_escape) = rest.split_at(plain_prefix(rest));
        out.extend_from_slice(plain);
        let Some((byte, after)) = from_escape.split_first() else {
            break;
        };
        match byte {
            b'"' => out.extend_from_slice(br#"\""#),
            b'\\' => out.extend_from_slice(br"\\"),
            b'\n' => out.extend_from_slice(br"\n"),
            b'\r' => out.extend_from_slice(br"\r"),
            b'\t' => out.extend_from_slice(br"\t"),
            0x08 => out.extend_from_slice(br"\b"),
            0x0c => out.extend_from_slice(br"\f"),
            control => {
                out.extend_from_slice(br"\u00");
                out.push(HEX[usize::from(control >> 4)]);
                out.push(HEX[usize::from(control & 15)]);
            }
        }
        rest = after;
    }
    out.push(b'"');
}

/// How many bytes go into a JSON string as they are, up to the first that needs an escape. Looks at blocks of 16 first,
/// a shape that compilers turn into vector instructions.
fn plain_prefix(bytes: &[u8]) -> usize {
    let needs_escape = |byte: &u8| *byte < 0x20 || *byte == b'"' || *byte == b'\\';
    let blocks = bytes.chunks_exact(16);
    let plain_blocks = blocks
        .take_while(|block| !block.iter().fold(false, |any, byte| any | needs_escape(byte)))
        .count();
    let at = plain_blocks * 16;
    let tail = bytes.get(at..).unwrap_or_default();
    at + tail.iter().position(needs_escape).unwrap_or(tail.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fault(json: Json) -> (DataModelErrorKind, String) {
        let error = json_to_value(&json).unwrap_err();
        (error.kind, error.path)
    }

    #[test]
    fn numbers_are_whole_and_fit_i64() {
        let number =
            |text: &str| json_to_value(&serde_json::from_str(text).unwrap()).map_err(|error| error.kind);
        assert_eq!(number("-9223372036854775808"), Ok(Value::Int(i64::MIN)));
        assert_eq!(number("9223372036854775807"), Ok(Value::Int(i64::MAX)));
        assert_eq!(
            number("9223372036854775808"),
            Err(DataModelErrorKind::IntegerRange)
        );
        assert_eq!(number("123.0"), Ok(Value::Int(123)));
        assert_eq!(number("1e3"), Ok(Value::Int(1000)));
        assert_eq!(number("-0"), Ok(Value::Int(0)));
        assert_eq!(number("0.5"), Err(DataModelErrorKind::Float));
        assert_eq!(number("1e-3"), Err(DataModelErrorKind::Float));
        assert_eq!(number("1e300"), Err(DataModelErrorKind::IntegerRange));
        assert_eq!(
            number("9007199254740992.0"),
            Err(DataModelErrorKind::IntegerRange)
        );
    }

    #[test]
    fn faults_tell_where_they_are() {
        assert_eq!(
            fault(json!({"a": [1, {"b": 0.5}]})),
            (DataModelErrorKind::Float, "/a/1/b".to_owned())
        );
        assert_eq!(
            fault(json!({"a": {"$type": ""}})),
            (DataModelErrorKind::Type, "/a".to_owned())
        );
        assert_eq!(fault(json!(0.5)), (DataModelErrorKind::Float, "/".to_owned()));
        assert_eq!(
            json_to_record(&json!([])).unwrap_err().kind,
            DataModelErrorKind::NotAnObject
        );
    }

    #[test]
    fn bytes_come_with_or_without_padding() {
        for (text, bytes) in [
            ("", &b""[..]),
            ("AQ", &[1]),
            ("AQ==", &[1]),
            ("AQI=", &[1, 2]),
            ("AQID", &[1, 2, 3]),
        ] {
            assert_eq!(
                json_to_value(&json!({"$bytes": text})),
                Ok(Value::Bytes(bytes.to_vec())),
                "{text}"
            );
        }
        for text in ["A", "AQ=", "=", "A-_A", "AQ==\n", "A\u{e4}"] {
            assert_eq!(
                fault(json!({"$bytes": text})).0,
                DataModelErrorKind::Base64,
                "{text}"
            );
        }
    }

    #[test]
    fn depth_is_bounded_in_both_directions() {
        let nested = |depth: usize| (0..depth).fold(Json::Null, |inner, _| Json::Array(vec![inner]));
        assert!(json_to_value(&nested(MAX_DEPTH)).is_ok());
        assert_eq!(fault(nested(MAX_DEPTH + 1)).0, DataModelErrorKind::Depth);
        let mut cbor = vec![0x81; MAX_DEPTH];
        cbor.push(0xf6);
        let mut out = Vec::new();
        cbor_to_json(&cbor, &mut out).unwrap();
        assert_eq!(out.len(), 2 * MAX_DEPTH + 4);
        // As listRecords wraps a record, for a client whose parser stops at 128 levels.
        let page = [&b"{\"records\":[{\"value\":"[..], &out, b"}]}"].concat();
        serde_json::from_slice::<Json>(&page).unwrap();
        cbor.insert(0, 0x81);
        assert_eq!(
            cbor_to_json(&cbor, &mut out).unwrap_err().kind,
            CborErrorKind::Depth
        );
    }

    #[test]
    fn a_failed_transcoding_leaves_the_buffer_as_it_was() {
        let mut out = b"kept".to_vec();
        assert!(cbor_to_json(&[0x82, 0x01], &mut out).is_err());
        assert!(cbor_to_json(&[0x01, 0x01], &mut out).is_err());
        assert!(cbor_to_json(&[0xfb, 0, 0, 0, 0, 0, 0, 0, 0], &mut out).is_err());
        assert_eq!(out, b"kept");
    }

    #[test]
    fn every_character_is_escaped_as_json_wants_it() {
        let text: String = (0..0x250)
            .filter_map(char::from_u32)
            .chain("\u{2028}😀".chars())
            .collect();
        let mut out = Vec::new();
        write_json_text(&text, &mut out);
        assert_eq!(out, serde_json::to_vec(&text).unwrap());
    }
}
