//! DAG-CBOR against tables of hostile bytes, against itself, and against two other implementations.

use super::*;
use crate::repo::cid::{Cid, CidError, Codec};
use crate::repo::json::{cbor_to_json, json_to_value, value_to_json};
use proptest::prelude::*;

fn hex(text: &str) -> Vec<u8> {
    data_encoding::HEXLOWER_PERMISSIVE
        .decode(text.replace(' ', "").as_bytes())
        .unwrap()
}

fn any_link() -> impl Strategy<Value = Cid> {
    (any::<bool>(), any::<[u8; 32]>())
        .prop_map(|(raw, digest)| Cid::from_digest(if raw { Codec::Raw } else { Codec::DagCbor }, digest))
}

/// Any value of the data model, some four levels deep. Keys never start with `$`, which JSON gives a meaning of its own.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        (-70_000i64..70_000).prop_map(Value::Int),
        "\\PC{0,30}".prop_map(Value::Text),
        proptest::collection::vec(any::<u8>(), 0..300).prop_map(Value::Bytes),
        any_link().prop_map(Value::Link),
    ];
    leaf.prop_recursive(4, 60, 8, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..8).prop_map(Value::Array),
            proptest::collection::vec(("[^$\\p{C}]\\PC{0,6}", inner), 0..8)
                .prop_map(|entries| Value::Map(entries.into_iter().collect())),
        ]
    })
}

/// Bytes that are nearly, but mostly not quite, sound: an encoding with some bytes changed and perhaps cut.
fn nearly_sound() -> impl Strategy<Value = Vec<u8>> {
    let edits = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (any_value(), edits, any::<Option<prop::sample::Index>>()).prop_map(|(value, edits, cut)| {
        let mut bytes = value.encode();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        bytes
    })
}

/// Every way through the bytes has to come to the same verdict.
fn verdict(bytes: &[u8]) -> Result<Value, CborErrorKind> {
    let decoded = Value::decode(bytes);
    let expected = decoded.as_ref().map(|_| ()).map_err(|error| *error);
    assert_eq!(
        validate(bytes).map_err(|error| error.kind),
        expected.map_err(|error| error.kind)
    );
    let mut links = Vec::new();
    assert_eq!(for_each_link(bytes, &mut |cid| links.push(cid)), expected);
    let blobs = blob_refs(bytes);
    assert_eq!(blobs.as_ref().map(|_| ()).map_err(|error| *error), expected);
    let mut json = Vec::new();
    assert_eq!(cbor_to_json(bytes, &mut json), expected);
    if let Ok(value) = &decoded {
        assert_eq!(value.encode(), bytes, "whatever is accepted is its own encoding");
        let mut in_tree = Vec::new();
        value.for_each_link(&mut |cid| in_tree.push(*cid));
        assert_eq!(in_tree, links);
        assert_eq!(blobs, Ok(value.blob_refs()));
        let tree = serde_json::to_vec(&value_to_json(value)).unwrap();
        assert_eq!(
            json,
            tree,
            "{} / {}",
            String::from_utf8_lossy(&json),
            String::from_utf8_lossy(&tree)
        );
    }
    decoded.map_err(|error| error.kind)
}

#[test]
fn hostile_bytes_are_refused_for_what_they_are() {
    use CborErrorKind as K;
    let link = |cid: &str| format!("d82a5825{cid}");
    let digest = "00".repeat(32);
    for (bytes, kind) in [
        ("", K::Truncated),
        ("18 17", K::NotMinimal),
        ("19 00ff", K::NotMinimal),
        ("1a 0000ffff", K::NotMinimal),
        ("1b 00000000ffffffff", K::NotMinimal),
        ("38 17", K::NotMinimal),
        ("58 01 00", K::NotMinimal),
        ("78 01 61", K::NotMinimal),
        ("98 01 00", K::NotMinimal),
        ("b8 00", K::NotMinimal),
        ("19 01", K::Truncated),
        ("1b ffffffffffffffff", K::IntegerRange),
        ("1b 8000000000000000", K::IntegerRange),
        ("3b 8000000000000000", K::IntegerRange),
        ("3b ffffffffffffffff", K::IntegerRange),
        ("5b 7fffffffffffffff", K::Truncated),
        ("7b ffffffffffffffff", K::Truncated),
        ("9b 000000ffffffffff", K::Truncated),
        ("9b ffffffffffffffff", K::Truncated),
        ("bb 000000ffffffffff", K::Truncated),
        ("82 01", K::Truncated),
        ("a1 6161", K::Truncated),
        ("43 0102", K::Truncated),
        ("9f ff", K::Indefinite),
        ("bf ff", K::Indefinite),
        ("5f 40 ff", K::Indefinite),
        ("7f ff", K::Indefinite),
        ("ff", K::Indefinite),
        ("1c", K::Indefinite),
        ("fe", K::Indefinite),
        ("f9 3c00", K::Float),
        ("fa 3f800000", K::Float),
        ("fb 3ff0000000000000", K::Float),
        ("fb 7ff8000000000000", K::Float),
        ("f7", K::Simple),
        ("e0", K::Simple),
        ("f8 ff", K::Simple),
        ("f8 14", K::Simple),
        ("61 ff", K::Utf8),
        ("63 eda080", K::Utf8),
        ("a1 00 00", K::KeyType),
        ("a1 4161 00", K::KeyType),
        ("a2 6161 00 6161 00", K::KeyOrder),
        ("a2 6162 00 6161 00", K::KeyOrder),
        ("a2 626161 00 6162 00", K::KeyOrder),
        ("00 00", K::Trailing),
        ("a0 a0", K::Trailing),
        ("c0 00", K::Tag),
        ("d82b 00", K::Tag),
        ("d82a 00", K::Tag),
        ("d82a 40", K::Tag),
        ("d82a 41 01", K::Tag),
        (
            "d82a 41 00",
            K::Link(CidError::Length {
                found: 0,
                expected: 36,
            }),
        ),
        ("d82a", K::Truncated),
        ("d82a5825 00 0171", K::Truncated),
        ("d9002a 00", K::NotMinimal),
        (&link(&format!("0101551220{digest}")), K::Tag),
        (
            &link(&format!("0002551220{digest}")),
            K::Link(CidError::Version(2)),
        ),
        (
            &link(&format!("0001701220{digest}")),
            K::Link(CidError::Codec(0x70)),
        ),
        (
            &link(&format!("0001551320{digest}")),
            K::Link(CidError::Hash {
                code: 0x13,
                length: 32,
            }),
        ),
    ] {
        let bytes = hex(bytes);
        assert_eq!(verdict(&bytes), Err(kind), "{bytes:02x?}");
    }
    assert!(matches!(
        verdict(&hex(&link(&format!("0001551220{digest}")))),
        Ok(Value::Link(_))
    ));
}

#[test]
fn nesting_is_bounded() {
    for (open, close) in [(hex("81"), hex("f6")), (hex("a16161"), hex("f6"))] {
        let nested = |depth: usize| [open.repeat(depth), close.clone()].concat();
        assert!(verdict(&nested(MAX_DEPTH)).is_ok());
        assert_eq!(verdict(&nested(MAX_DEPTH + 1)), Err(CborErrorKind::Depth));
        assert_eq!(verdict(&nested(1_000_000)), Err(CborErrorKind::Depth));
    }
}

#[test]
fn the_edges_of_every_length_of_integer_round_trip() {
    for edge in [
        0i64,
        23,
        24,
        0xff,
        0x100,
        0xffff,
        0x1_0000,
        0xffff_ffff,
        0x1_0000_0000,
        i64::MAX,
    ] {
        for value in [edge, edge.saturating_sub(1), edge.saturating_add(1), !edge, -edge] {
            let bytes = Value::Int(value).encode();
            assert_eq!(verdict(&bytes), Ok(Value::Int(value)));
            assert_eq!(Reader::new(&bytes).i64(), Ok(value));
            assert_eq!(Reader::new(&bytes).u64().ok(), u64::try_from(value).ok());
            assert_eq!(
                bytes.len(),
                head_len(u64::try_from(value).unwrap_or(!value as u64))
            );
        }
    }
}

#[test]
fn a_typed_reader_takes_what_a_writer_wrote() {
    let cid = Cid::for_raw(b"x");
    let mut bytes = Vec::new();
    Writer::new(&mut bytes)
        .map(3)
        .text("a")
        .array(2)
        .bytes(b"bytes")
        .link_or_null(Some(&cid));
    Writer::new(&mut bytes)
        .text("b")
        .link_or_null(None)
        .text("cc")
        .bool(true);
    let mut reader = Reader::new(&bytes);
    let mut keys = reader.map().unwrap();
    assert_eq!(keys.next(&mut reader), Ok(Some("a")));
    assert_eq!(reader.array(), Ok(2));
    assert_eq!(reader.bytes(), Ok(&b"bytes"[..]));
    assert_eq!(reader.null_if_present(), Ok(false));
    assert_eq!(reader.link(), Ok(cid));
    keys.expect(&mut reader, "b").unwrap();
    assert_eq!(reader.null_if_present(), Ok(true));
    assert_eq!(keys.left(), 1);
    assert_eq!(keys.end(&reader).unwrap_err().kind, CborErrorKind::UnexpectedKey);
    assert_eq!(
        keys.clone().expect(&mut reader.clone(), "dd").unwrap_err().kind,
        CborErrorKind::MissingKey("dd")
    );
    assert_eq!(keys.next(&mut reader), Ok(Some("cc")));
    let wrong = reader.clone().text().unwrap_err();
    assert_eq!(
        (wrong.at, wrong.kind),
        (reader.position(), CborErrorKind::WrongType { expected: "text" })
    );
    assert_eq!(reader.bool(), Ok(true));
    assert_eq!(keys.next(&mut reader), Ok(None));
    assert_eq!(
        (keys.end(&reader), reader.end(), reader.is_at_end()),
        (Ok(()), Ok(()), true)
    );
}

#[test]
fn an_item_that_is_skipped_is_given_as_it_stands() {
    let bytes = hex("a1 6161 82 01 02 f6");
    let mut reader = Reader::new(&bytes);
    assert_eq!(reader.skip(), Ok(&bytes[..6]));
    assert_eq!(reader.null(), Ok(()));
}

#[test]
fn a_map_keeps_its_order_and_the_last_of_equal_keys() {
    let int = |value| Value::Int(value);
    let map: Map = [("bb", 1), ("c", 2), ("a", 3), ("c", 4)]
        .map(|(k, v)| (k.to_owned(), int(v)))
        .into_iter()
        .collect();
    let entries: Vec<_> = map
        .iter()
        .map(|(key, value)| (key.to_owned(), value.clone()))
        .collect();
    assert_eq!(
        entries,
        [
            ("a".to_owned(), int(3)),
            ("c".to_owned(), int(4)),
            ("bb".to_owned(), int(1))
        ]
    );
    let mut other = Map::new();
    assert_eq!(other.insert("bb", int(1)), None);
    assert_eq!(other.insert("a", int(0)), None);
    assert_eq!(other.insert("a", int(3)), Some(int(0)));
    assert_eq!(other.insert("c", int(4)), None);
    assert_eq!(other, map);
    assert_eq!((other.get("c"), other.get("d")), (Some(&int(4)), None));
    assert_eq!(
        (other.remove("a"), other.len(), other.is_empty()),
        (Some(int(3)), 2, false)
    );
}

#[test]
fn blobs_are_found_in_both_shapes_and_nothing_else_is_taken_for_one() {
    let cid = Cid::for_raw(b"image");
    let typed = BlobRef {
        cid,
        mime_type: "image/png".to_owned(),
        size: Some(7),
    };
    let legacy = BlobRef {
        cid,
        mime_type: "image/jpeg".to_owned(),
        size: None,
    };
    let mut extra = typed.to_value();
    let Value::Map(map) = &mut extra else {
        unreachable!()
    };
    map.insert("inner", typed.to_value());
    let mut untyped = legacy.to_value();
    let Value::Map(map) = &mut untyped else {
        unreachable!()
    };
    map.insert("third", Value::Null);
    let negative = {
        let mut value = typed.to_value();
        let Value::Map(map) = &mut value else {
            unreachable!()
        };
        map.insert("size", Value::Int(-1));
        value
    };
    let record = Value::Array(vec![
        typed.to_value(),
        legacy.to_value(),
        extra,
        untyped,
        negative,
        Value::Link(cid),
    ]);
    let found = verdict(&record.encode()).unwrap().blob_refs();
    assert_eq!(found, [typed.clone(), legacy.clone(), typed.clone()]);
    assert!(legacy.is_legacy() && !typed.is_legacy());
}

proptest! {
    #[test]
    fn values_survive_encoding(value in any_value()) {
        prop_assert_eq!(verdict(&value.encode()), Ok(value));
    }

    #[test]
    fn values_survive_json(value in any_value()) {
        let json = serde_json::to_string(&value_to_json(&value)).unwrap();
        let parsed: serde_json::Value = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(json_to_value(&parsed), Ok(value));
    }

    #[test]
    fn noise_is_answered_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = verdict(&bytes);
    }

    #[test]
    fn two_other_implementations_agree_about_nearly_sound_bytes(bytes in nearly_sound()) {
        use CborErrorKind as K;
        let ours = verdict(&bytes);
        let shrike = shrike::cbor::decode(&bytes);
        match (&ours, &shrike) {
            (Ok(value), Ok(theirs)) => {
                prop_assert_eq!(shrike::cbor::encode_value(theirs).unwrap(), value.encode());
                let (mut our_json, mut their_json) = (Vec::new(), Vec::new());
                cbor_to_json(&bytes, &mut our_json).unwrap();
                shrike::cbor::json::drisl_to_json_into(&bytes, &mut their_json).unwrap();
                // It sorts keys in another way, so the trees are compared.
                let tree = |json: &[u8]| serde_json::from_slice::<serde_json::Value>(json).unwrap();
                prop_assert_eq!(tree(&our_json), tree(&their_json));
            }
            (Ok(_), Err(error)) => prop_assert!(false, "only we accept it: {error}"),
            // What it is known to let through.
            (Err(kind), Ok(_)) => prop_assert!(matches!(kind, K::Float | K::IntegerRange), "only we refuse it: {kind}"),
            (Err(_), Err(_)) => {}
        }
        let ipld = serde_ipld_dagcbor::from_slice::<Mirror>(&bytes);
        match (&ours, &ipld) {
            (Ok(value), Ok(Mirror(theirs))) => {
                prop_assert_eq!(value, theirs);
                prop_assert_eq!(serde_ipld_dagcbor::to_vec(&Mirror(value.clone())).unwrap(), bytes);
            }
            (Ok(_), Err(error)) => prop_assert!(false, "only we accept it: {error}"),
            (Err(kind), Ok(_)) => {
                prop_assert!(matches!(kind, K::Float | K::IntegerRange | K::Link(_)), "only we refuse it: {kind}");
            }
            (Err(_), Err(_)) => {}
        }
    }
}

/// A [`Value`] that goes through serde, for comparison with `serde_ipld_dagcbor`. What the data model lacks becomes null.
struct Mirror(Value);

impl serde::Serialize for Mirror {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Value::Null => serializer.serialize_unit(),
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::Int(value) => serializer.serialize_i64(*value),
            Value::Text(text) => serializer.serialize_str(text),
            Value::Bytes(bytes) => serializer.serialize_bytes(bytes),
            Value::Link(link) => cid::Cid::try_from(&link.to_bytes()[..])
                .unwrap()
                .serialize(serializer),
            Value::Array(items) => serializer.collect_seq(items.iter().cloned().map(Mirror)),
            Value::Map(map) => {
                serializer.collect_map(map.iter().map(|(key, value)| (key, Mirror(value.clone()))))
            }
        }
    }
}

impl<'de> serde::Deserialize<'de> for Mirror {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Mirror, D::Error> {
        deserializer.deserialize_any(MirrorVisitor)
    }
}

struct MirrorVisitor;

impl<'de> serde::de::Visitor<'de> for MirrorVisitor {
    type Value = Mirror;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Mirror, E> {
        Ok(Mirror(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Mirror, E> {
        Ok(Mirror(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Mirror, E> {
        Ok(Mirror(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Mirror, E> {
        Ok(Mirror(Value::Int(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Mirror, E> {
        Ok(Mirror(i64::try_from(value).map_or(Value::Null, Value::Int)))
    }

    fn visit_i128<E>(self, _: i128) -> Result<Mirror, E> {
        Ok(Mirror(Value::Null))
    }

    fn visit_u128<E>(self, _: u128) -> Result<Mirror, E> {
        Ok(Mirror(Value::Null))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Mirror, E> {
        Ok(Mirror(Value::Null))
    }

    fn visit_str<E>(self, text: &str) -> Result<Mirror, E> {
        Ok(Mirror(Value::Text(text.to_owned())))
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Mirror, E> {
        Ok(Mirror(Value::Bytes(bytes.to_vec())))
    }

    fn visit_newtype_struct<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Mirror, D::Error> {
        let link = deserializer.deserialize_bytes(cid::serde::BytesToCidVisitor::<64>)?;
        Ok(Mirror(
            Cid::from_bytes(&link.to_bytes()).map_or(Value::Null, Value::Link),
        ))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut items: A) -> Result<Mirror, A::Error> {
        let mut array = Vec::new();
        while let Some(Mirror(item)) = items.next_element()? {
            array.push(item);
        }
        Ok(Mirror(Value::Array(array)))
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut entries: A) -> Result<Mirror, A::Error> {
        let mut map = Map::new();
        while let Some((key, Mirror(value))) = entries.next_entry::<String, Mirror>()? {
            map.insert(key, value);
        }
        Ok(Mirror(Value::Map(map)))
    }
}
