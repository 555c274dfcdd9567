//! JSON that comes in: from a deserialiser straight to a value, without a tree of JSON between.

use std::fmt;
use std::sync::LazyLock;

use data_encoding::{BASE64_NOPAD, Encoding};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value as Json;

use crate::repo::cbor::{MAX_DEPTH, Map, Value};
use crate::repo::cid::{Cid, CidError};

/// Places that a list gets at once, whatever length a deserialiser announces.
const LIST_PLACES: usize = 64;

/// Why JSON is no value of the data model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} at {path}")]
pub struct DataModelError {
    /// Where, as keys and indices from the top, such as `/embed/images/0`; `/` is the top itself.
    pub path: String,
    /// What is wrong there.
    pub kind: DataModelErrorKind,
}

/// The fault itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DataModelErrorKind {
    /// A record that is not an object.
    #[error("a record has to be an object")]
    NotAnObject,
    /// A number with a fraction.
    #[error("a number that is not an integer")]
    Float,
    /// An integer outside of i64.
    #[error("an integer beyond 64 bits with sign")]
    IntegerRange,
    /// `$type` that is not text, or is empty.
    #[error("a $type that is not text or is empty")]
    Type,
    /// `$link` with other keys beside it, or not text.
    #[error("a $link that is not text alone")]
    LinkShape,
    /// `$link` with a CID the protocol does not allow.
    #[error("a $link with an unusable CID: {0}")]
    Link(CidError),
    /// `$bytes` with other keys beside it, or not text.
    #[error("a $bytes that is not text alone")]
    BytesShape,
    /// `$bytes` that is not base64.
    #[error("a $bytes that is not base64")]
    Base64,
    /// A blob without a link in `ref`, text in `mimeType` and a size that is an integer and not negative.
    #[error("a blob that lacks its ref, mimeType or size")]
    Blob,
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("nested too deep")]
    Depth,
}

/// The value that JSON stands for, or what is wrong with it. Deserialising it fails for broken JSON only, so that a fault of
/// the data model can be told from one.
///
/// A number written with a point or an exponent passes if it is whole and below 2^53, where every reader of JSON agrees
/// about it: to JavaScript `123.0` is 123.
#[derive(Clone, Debug, PartialEq)]
pub struct FromJson(pub Result<Value, DataModelError>);

impl FromJson {
    /// The value as a record, which has to be an object.
    ///
    /// # Errors
    /// The fault and where it is.
    pub fn into_record(self) -> Result<Map, DataModelError> {
        match self.0? {
            Value::Map(map) => Ok(map),
            _ => Err(DataModelError {
                path: "/".to_owned(),
                kind: DataModelErrorKind::NotAnObject,
            }),
        }
    }
}

impl From<&Json> for FromJson {
    fn from(json: &Json) -> FromJson {
        // A tree has no syntax that could be wrong.
        FromJson::deserialize(json).unwrap_or(FromJson(Err(DataModelError {
            path: "/".to_owned(),
            kind: DataModelErrorKind::Depth,
        })))
    }
}

impl From<Json> for FromJson {
    fn from(json: Json) -> FromJson {
        FromJson::from(&json)
    }
}

/// The value that a record's JSON stands for, which has to be an object.
///
/// # Errors
/// A fault and where it is.
pub fn json_to_record(json: &Json) -> Result<Map, DataModelError> {
    FromJson::from(json).into_record()
}

/// The value that JSON stands for, see [`FromJson`].
///
/// # Errors
/// A fault and where it is.
pub fn json_to_value(json: &Json) -> Result<Value, DataModelError> {
    FromJson::from(json).0
}

impl<'de> Deserialize<'de> for FromJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<FromJson, D::Error> {
        let read = deserializer.deserialize_any(Node { depth: 0 })?;
        Ok(FromJson(read.map_err(|fault| fault.into_error())))
    }
}

/// A fault on its way up.
struct Fault {
    kind: DataModelErrorKind,
    /// From the fault to the top.
    steps: Vec<Step>,
}

enum Step {
    Key(String),
    Index(usize),
}

/// Boxed, as it is rare and every value would have to carry its size.
type Read = Result<Value, Box<Fault>>;

impl Fault {
    fn here(kind: DataModelErrorKind) -> Box<Fault> {
        Box::new(Fault {
            kind,
            steps: Vec::new(),
        })
    }

    fn under(mut self: Box<Fault>, step: Step) -> Box<Fault> {
        self.steps.push(step);
        self
    }

    fn into_error(self) -> DataModelError {
        let mut path = String::new();
        for step in self.steps.iter().rev() {
            path.push('/');
            match step {
                Step::Key(key) => path.push_str(key),
                Step::Index(index) => path.push_str(&index.to_string()),
            }
        }
        if path.is_empty() {
            path.push('/');
        }
        DataModelError {
            path,
            kind: self.kind,
        }
    }
}

/// One value below `depth` lists and objects.
#[derive(Clone, Copy)]
struct Node {
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Node {
    type Value = Read;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Read, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node {
    type Value = Read;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Read, E> {
        Ok(Ok(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Read, E> {
        Ok(Ok(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Read, E> {
        Ok(Ok(Value::Int(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Read, E> {
        let value = i64::try_from(value).map(Value::Int);
        Ok(value.map_err(|_| Fault::here(DataModelErrorKind::IntegerRange)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Read, E> {
        Ok(whole(value).map(Value::Int).map_err(Fault::here))
    }

    fn visit_str<E>(self, text: &str) -> Result<Read, E> {
        Ok(Ok(Value::Text(text.to_owned())))
    }

    fn visit_string<E>(self, text: String) -> Result<Read, E> {
        Ok(Ok(Value::Text(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Read, A::Error> {
        let Some(below) = self.below() else {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(Err(Fault::here(DataModelErrorKind::Depth)));
        };
        let mut items = Vec::with_capacity(list.size_hint().unwrap_or_default().min(LIST_PLACES));
        while let Some(read) = list.next_element_seed(below)? {
            match read {
                Ok(item) => items.push(item),
                Err(fault) => {
                    let fault = fault.under(Step::Index(items.len()));
                    while list.next_element::<IgnoredAny>()?.is_some() {}
                    return Ok(Err(fault));
                }
            }
        }
        Ok(Ok(Value::Array(items)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Read, A::Error> {
        let Some(below) = self.below() else {
            while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(Err(Fault::here(DataModelErrorKind::Depth)));
        };
        let mut entries = Entries::default();
        while let Some(key) = object.next_key::<String>()? {
            let read = object.next_value_seed(below)?;
            entries.add(key, read);
        }
        Ok(entries.into_value())
    }
}

impl Node {
    /// What is in a list or an object here, if that may be.
    fn below(self) -> Option<Node> {
        let depth = self.depth + 1;
        (depth <= MAX_DEPTH).then_some(Node { depth })
    }
}

/// An object while it is read. Of entries with the same key the last one counts, and a fault of one before does not.
#[derive(Default)]
struct Entries {
    good: Vec<(String, Value)>,
    /// Each with the number of good ones before it.
    faults: Vec<(usize, String, Box<Fault>)>,
    has_link: bool,
    has_bytes: bool,
}

impl Entries {
    fn add(&mut self, key: String, read: Read) {
        self.has_link |= key == "$link";
        self.has_bytes |= key == "$bytes";
        match read {
            Ok(value) => self.good.push((key, value)),
            Err(fault) => self.faults.push((self.good.len(), key, fault)),
        }
    }

    fn into_value(mut self) -> Read {
        if self.has_link {
            let link = self.single_text("$link");
            let cid = link
                .ok_or(DataModelErrorKind::LinkShape)
                .and_then(|text| text.parse::<Cid>().map_err(DataModelErrorKind::Link));
            return cid.map(Value::Link).map_err(Fault::here);
        }
        if self.has_bytes {
            let bytes = self.single_text("$bytes");
            let bytes = bytes
                .ok_or(DataModelErrorKind::BytesShape)
                .and_then(|text| decode_base64(&text).ok_or(DataModelErrorKind::Base64));
            return bytes.map(Value::Bytes).map_err(Fault::here);
        }
        if let Some(fault) = self.first_fault() {
            return Err(fault);
        }
        let map: Map = self.good.into_iter().collect();
        match check_type(&map) {
            Ok(()) => Ok(Value::Map(map)),
            Err(kind) => Err(Fault::here(kind)),
        }
    }

    /// The text under `key`, if that is all that the object has.
    fn single_text(&mut self, key: &str) -> Option<String> {
        let is_single =
            self.good.iter().all(|(k, _)| k == key) && self.faults.iter().all(|(_, k, _)| k == key);
        let last_is_good = self
            .faults
            .last()
            .is_none_or(|(before, _, _)| *before < self.good.len());
        match self.good.pop() {
            Some((_, Value::Text(text))) if is_single && last_is_good => Some(text),
            _ => None,
        }
    }

    /// The first fault that no later entry takes the place of.
    fn first_fault(&mut self) -> Option<Box<Fault>> {
        let mut faults = std::mem::take(&mut self.faults).into_iter();
        while let Some((before, key, fault)) = faults.next() {
            let good_after = self.good.iter().skip(before).any(|(later, _)| *later == key);
            if !good_after && !faults.as_slice().iter().any(|(_, later, _)| *later == key) {
                return Some(fault.under(Step::Key(key)));
            }
        }
        None
    }
}

/// `$type` is text that is not empty, and what says to be a blob has what a blob has.
fn check_type(map: &Map) -> Result<(), DataModelErrorKind> {
    match map.get("$type") {
        None => Ok(()),
        Some(Value::Text(name)) if name == "blob" => {
            let is_whole = matches!(map.get("ref"), Some(Value::Link(_)))
                && matches!(map.get("mimeType"), Some(Value::Text(_)))
                && matches!(map.get("size"), Some(Value::Int(0..)));
            if is_whole {
                Ok(())
            } else {
                Err(DataModelErrorKind::Blob)
            }
        }
        Some(Value::Text(name)) if !name.is_empty() => Ok(()),
        Some(_) => Err(DataModelErrorKind::Type),
    }
}

/// The integer that a number with a point or an exponent stands for.
fn whole(value: f64) -> Result<i64, DataModelErrorKind> {
    /// 2^53: beyond, a double stands for more than one integer.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() != 0.0 {
        return Err(DataModelErrorKind::Float);
    }
    if value.abs() >= EXACT {
        return Err(DataModelErrorKind::IntegerRange);
    }
    #[expect(clippy::cast_possible_truncation, reason = "whole, and below 2^53")]
    Ok(value as i64)
}

/// The alphabet that byte strings are written in. Bits of the last digit that belong to no byte may be set: other
/// implementations take such text, and the published vectors have it.
static STANDARD: LazyLock<Encoding> = LazyLock::new(|| {
    let mut alphabet = BASE64_NOPAD.specification();
    alphabet.check_trailing_bits = false;
    alphabet.encoding().unwrap_or(BASE64_NOPAD)
});

/// Base64 in the standard alphabet, with or without padding.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let unpadded = if text.len().is_multiple_of(4) {
        text.strip_suffix("==")
            .or_else(|| text.strip_suffix('='))
            .unwrap_or(text)
    } else {
        text
    };
    STANDARD.decode(unpadded.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Value, DataModelErrorKind> {
        let read: FromJson = serde_json::from_str(text).unwrap();
        read.0.map_err(|error| error.kind)
    }

    #[test]
    fn of_entries_with_one_key_the_last_counts_whatever_those_before_are() {
        let one = |key: &str, value| Ok(Value::Map([(key.to_owned(), value)].into_iter().collect()));
        assert_eq!(of(r#"{"a": 0.5, "a": 1}"#), one("a", Value::Int(1)));
        assert_eq!(of(r#"{"a": 1, "a": 2}"#), one("a", Value::Int(2)));
        assert_eq!(of(r#"{"a": 1, "a": 0.5}"#), Err(DataModelErrorKind::Float));
        assert_eq!(
            of(r#"{"a": 0.5, "a": {"$link": 1}}"#),
            Err(DataModelErrorKind::LinkShape)
        );
        assert_eq!(of(r#"{"a": 0.5, "b": 1}"#), Err(DataModelErrorKind::Float));
        let cid = Cid::for_raw(b"x");
        assert_eq!(
            of(&format!(r#"{{"$link": 0.5, "$link": "{cid}"}}"#)),
            Ok(Value::Link(cid))
        );
        assert_eq!(
            of(&format!(r#"{{"$link": "{cid}", "$link": 0.5}}"#)),
            Err(DataModelErrorKind::LinkShape)
        );
    }

    #[test]
    fn a_link_or_bytes_with_something_beside_are_refused_whatever_that_is() {
        let cid = Cid::for_raw(b"x");
        for beside in ["1", "0.5"] {
            assert_eq!(
                of(&format!(r#"{{"$link": "{cid}", "x": {beside}}}"#)),
                Err(DataModelErrorKind::LinkShape)
            );
            assert_eq!(
                of(&format!(r#"{{"x": {beside}, "$bytes": ""}}"#)),
                Err(DataModelErrorKind::BytesShape)
            );
        }
        assert_eq!(of(r#"{"$bytes": 1}"#), Err(DataModelErrorKind::BytesShape));
    }

    #[test]
    fn bits_that_belong_to_no_byte_are_cut_off() {
        let bytes = |bytes: &[u8]| Ok(Value::Bytes(bytes.to_vec()));
        for text in ["12", "13", "1w", "12=="] {
            assert_eq!(
                of(&format!(r#"{{"$bytes": "{text}"}}"#)),
                bytes(&[0xd7]),
                "{text}"
            );
        }
        assert_eq!(of(r#"{"$bytes": "123"}"#), bytes(&[0xd7, 0x6d]));
        for text in ["1", "1==", "12=", "1-", "1 2"] {
            assert_eq!(
                of(&format!(r#"{{"$bytes": "{text}"}}"#)),
                Err(DataModelErrorKind::Base64),
                "{text}"
            );
        }
    }

    #[test]
    fn broken_json_is_no_fault_of_the_data_model() {
        for text in ["{", "[1,", r#"{"a": 0.5"#, "[0.5, nul]", r#""\ud800""#, "1e999"] {
            assert!(serde_json::from_str::<FromJson>(text).is_err(), "{text}");
        }
        // What follows a fault is still read.
        assert_eq!(of(r#"[0.5, {"a": [1]}, "x"]"#), Err(DataModelErrorKind::Float));
    }
}
