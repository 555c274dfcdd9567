//! The data model as a tree, for what is not on a hot path, and the search for links and blobs.

use super::{CborError, CborErrorKind, Kind, MAX_DEPTH, Reader, Writer, key_order};
use crate::repo::cid::Cid;

/// A value of the data model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Null.
    Null,
    /// True or false.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// Text.
    Text(String),
    /// A byte string; `$bytes` in JSON.
    Bytes(Vec<u8>),
    /// A link; `$link` in JSON.
    Link(Cid),
    /// An array.
    Array(Vec<Value>),
    /// A map.
    Map(Map),
}

/// A map of the data model: no key twice, entries in encoding order (shorter keys first, then bytewise).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map(Vec<(String, Value)>);

impl Map {
    /// A map without entries.
    #[must_use]
    pub fn new() -> Map {
        Map::default()
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn find(&self, key: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(other, _)| key_order(other, key))
    }

    /// The value at `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.find(key)
            .ok()
            .and_then(|at| self.0.get(at))
            .map(|(_, value)| value)
    }

    /// The text at `key`, if there is text.
    #[must_use]
    pub fn get_text(&self, key: &str) -> Option<&str> {
        match self.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Sets `key` and gives the value that was there. Cheapest when keys come in order.
    pub fn insert(&mut self, key: impl Into<String>, value: Value) -> Option<Value> {
        let key = key.into();
        match self.find(&key) {
            Ok(at) => self.0.get_mut(at).map(|(_, old)| std::mem::replace(old, value)),
            Err(at) => {
                self.0.insert(at, (key, value));
                None
            }
        }
    }

    /// Takes `key` out.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        self.find(key).ok().map(|at| self.0.remove(at).1)
    }

    /// All entries, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }
}

impl FromIterator<(String, Value)> for Map {
    /// Of entries with the same key the last one stays.
    fn from_iter<I: IntoIterator<Item = (String, Value)>>(entries: I) -> Map {
        let mut entries: Vec<_> = entries.into_iter().collect();
        // The sort is stable, so among equal keys the last given comes last; dedup keeps the first, hence the swap.
        entries.sort_by(|(a, _), (b, _)| key_order(a, b));
        entries.dedup_by(|later, kept| {
            let same = later.0 == kept.0;
            if same {
                std::mem::swap(later, kept);
            }
            same
        });
        Map(entries)
    }
}

impl Value {
    /// Reads exactly one value.
    ///
    /// # Errors
    /// The first fault and where it is.
    pub fn decode(bytes: &[u8]) -> Result<Value, CborError> {
        let mut reader = Reader::new(bytes);
        let value = Value::read(&mut reader)?;
        reader.end()?;
        Ok(value)
    }

    /// Takes the next value off `reader`.
    ///
    /// # Errors
    /// The first fault and where it is.
    pub fn read(reader: &mut Reader<'_>) -> Result<Value, CborError> {
        Value::read_nested(reader, 0)
    }

    fn read_nested(reader: &mut Reader<'_>, depth: usize) -> Result<Value, CborError> {
        Ok(match reader.peek()? {
            Kind::Null => {
                reader.null()?;
                Value::Null
            }
            Kind::Bool => Value::Bool(reader.bool()?),
            Kind::Int => Value::Int(reader.i64()?),
            Kind::Text => Value::Text(reader.text()?.to_owned()),
            Kind::Bytes => Value::Bytes(reader.bytes()?.to_vec()),
            Kind::Link => Value::Link(reader.link()?),
            Kind::Array => {
                let depth = deeper(reader, depth)?;
                let mut items = Vec::new();
                for _ in 0..reader.array()? {
                    items.push(Value::read_nested(reader, depth)?);
                }
                Value::Array(items)
            }
            Kind::Map => {
                let depth = deeper(reader, depth)?;
                let mut entries = Vec::new();
                let mut keys = reader.map()?;
                while let Some(key) = keys.next(reader)? {
                    entries.push((key.to_owned(), Value::read_nested(reader, depth)?));
                }
                // The walker has checked the order.
                Value::Map(Map(entries))
            }
        })
    }

    /// The value's one encoding.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode_into(&mut out);
        out
    }

    /// Appends the value's encoding to `out`.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        self.write(&mut Writer::new(out));
    }

    fn write(&self, writer: &mut Writer<'_>) {
        match self {
            Value::Null => {
                writer.null();
            }
            Value::Bool(value) => {
                writer.bool(*value);
            }
            Value::Int(value) => {
                writer.int(*value);
            }
            Value::Text(text) => {
                writer.text(text);
            }
            Value::Bytes(bytes) => {
                writer.bytes(bytes);
            }
            Value::Link(cid) => {
                writer.link(cid);
            }
            Value::Array(items) => {
                writer.array(items.len());
                for item in items {
                    item.write(writer);
                }
            }
            Value::Map(map) => {
                writer.map(map.len());
                for (key, value) in map.iter() {
                    writer.text(key);
                    value.write(writer);
                }
            }
        }
    }

    /// The map, if it is one.
    #[must_use]
    pub fn as_map(&self) -> Option<&Map> {
        match self {
            Value::Map(map) => Some(map),
            _ => None,
        }
    }

    /// The text, if it is text.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Calls `found` with every link, depth first, in encoding order.
    pub fn for_each_link(&self, found: &mut impl FnMut(&Cid)) {
        match self {
            Value::Link(cid) => found(cid),
            Value::Array(items) => items.iter().for_each(|item| item.for_each_link(found)),
            Value::Map(map) => map.iter().for_each(|(_, value)| value.for_each_link(found)),
            _ => {}
        }
    }

    /// Every blob in the value, depth first, in encoding order; a blob referenced twice comes twice.
    #[must_use]
    pub fn blob_refs(&self) -> Vec<BlobRef> {
        let mut blobs = Vec::new();
        self.find_blobs(&mut blobs);
        blobs
    }

    fn find_blobs(&self, blobs: &mut Vec<BlobRef>) {
        match self {
            Value::Array(items) => items.iter().for_each(|item| item.find_blobs(blobs)),
            Value::Map(map) => match BlobRef::from_map(map) {
                Some(blob) => blobs.push(blob),
                None => map.iter().for_each(|(_, value)| value.find_blobs(blobs)),
            },
            _ => {}
        }
    }
}

fn deeper(reader: &Reader<'_>, depth: usize) -> Result<usize, CborError> {
    if depth >= MAX_DEPTH {
        return Err(CborError {
            at: reader.position(),
            kind: CborErrorKind::Depth,
        });
    }
    Ok(depth + 1)
}

/// A record's reference to a media blob. Spec: <https://atproto.com/specs/data-model#blob-type>.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobRef {
    /// Address of the blob's bytes.
    pub cid: Cid,
    /// The MIME type that the record claims.
    pub mime_type: String,
    /// The size in bytes that the record claims; `None` for the legacy shape `{cid, mimeType}`, which old records
    /// still contain and new ones must not.
    pub size: Option<u64>,
}

impl BlobRef {
    /// Whether it has the shape `{cid, mimeType}` from before the blob type existed.
    #[must_use]
    pub fn is_legacy(&self) -> bool {
        self.size.is_none()
    }

    /// The blob that a map stands for: `{$type: "blob", ref, mimeType, size}` or the legacy `{cid, mimeType}`, with
    /// sound values and in the legacy shape no further key.
    #[must_use]
    pub fn from_map(map: &Map) -> Option<BlobRef> {
        let mime_type = map.get_text("mimeType")?;
        if map.get_text("$type") == Some("blob") {
            let (Some(Value::Link(cid)), Some(Value::Int(size))) = (map.get("ref"), map.get("size")) else {
                return None;
            };
            let size = u64::try_from(*size).ok()?;
            return Some(BlobRef {
                cid: *cid,
                mime_type: mime_type.to_owned(),
                size: Some(size),
            });
        }
        if map.len() != 2 {
            return None;
        }
        let cid = map.get_text("cid")?.parse().ok()?;
        Some(BlobRef {
            cid,
            mime_type: mime_type.to_owned(),
            size: None,
        })
    }

    /// The typed shape as a value; the legacy shape if there is no size.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let mut map = Map::new();
        match self.size {
            Some(size) => {
                map.insert("ref", Value::Link(self.cid));
                map.insert("size", Value::Int(i64::try_from(size).unwrap_or(i64::MAX)));
                map.insert("$type", Value::Text("blob".to_owned()));
            }
            None => {
                map.insert("cid", Value::Text(self.cid.to_string()));
            }
        }
        map.insert("mimeType", Value::Text(self.mime_type.clone()));
        Value::Map(map)
    }
}

/// Every blob in an encoded record, depth first, in encoding order. Checks the whole record and builds no tree.
///
/// # Errors
/// The bytes are not exactly one DAG-CBOR value.
pub fn blob_refs(record: &[u8]) -> Result<Vec<BlobRef>, CborError> {
    let mut blobs = Vec::new();
    let mut reader = Reader::new(record);
    scan_blobs(&mut reader, 0, &mut blobs)?;
    reader.end()?;
    Ok(blobs)
}

/// What a scan has seen of a map that may turn out to be a blob.
#[derive(Default)]
struct Candidate<'a> {
    entries: usize,
    is_typed: bool,
    link: Option<Cid>,
    cid_text: Option<&'a str>,
    mime_type: Option<&'a str>,
    size: Option<u64>,
}

impl Candidate<'_> {
    fn into_blob(self) -> Option<BlobRef> {
        let mime_type = self.mime_type?.to_owned();
        if self.is_typed {
            return Some(BlobRef {
                cid: self.link?,
                mime_type,
                size: Some(self.size?),
            });
        }
        if self.entries != 2 {
            return None;
        }
        Some(BlobRef {
            cid: self.cid_text?.parse().ok()?,
            mime_type,
            size: None,
        })
    }
}

fn scan_blobs(reader: &mut Reader<'_>, depth: usize, blobs: &mut Vec<BlobRef>) -> Result<(), CborError> {
    match reader.peek()? {
        Kind::Array => {
            let depth = deeper(reader, depth)?;
            for _ in 0..reader.array()? {
                scan_blobs(reader, depth, blobs)?;
            }
        }
        Kind::Map => {
            let depth = deeper(reader, depth)?;
            let first_inside = blobs.len();
            let mut seen = Candidate::default();
            let mut keys = reader.map()?;
            while let Some(key) = keys.next(reader)? {
                seen.entries += 1;
                match (key, reader.peek()?) {
                    ("$type", Kind::Text) => seen.is_typed = reader.text()? == "blob",
                    ("ref", Kind::Link) => seen.link = Some(reader.link()?),
                    ("cid", Kind::Text) => seen.cid_text = Some(reader.text()?),
                    ("mimeType", Kind::Text) => seen.mime_type = Some(reader.text()?),
                    ("size", Kind::Int) => seen.size = u64::try_from(reader.i64()?).ok(),
                    _ => scan_blobs(reader, depth, blobs)?,
                }
            }
            if let Some(blob) = seen.into_blob() {
                // A blob is one thing: what its extra fields hold are not blobs of the record.
                blobs.truncate(first_inside);
                blobs.push(blob);
            }
        }
        _ => {
            reader.skip()?;
        }
    }
    Ok(())
}

/// Calls `found` with every link in an encoded block, depth first, in encoding order. Checks the whole block and builds
/// no tree.
///
/// # Errors
/// The bytes are not exactly one DAG-CBOR value; links before the fault were already given.
pub fn for_each_link(block: &[u8], found: &mut impl FnMut(Cid)) -> Result<(), CborError> {
    let mut reader = Reader::new(block);
    scan_links(&mut reader, 0, found)?;
    reader.end()
}

fn scan_links(reader: &mut Reader<'_>, depth: usize, found: &mut impl FnMut(Cid)) -> Result<(), CborError> {
    match reader.peek()? {
        Kind::Link => found(reader.link()?),
        Kind::Array => {
            let depth = deeper(reader, depth)?;
            for _ in 0..reader.array()? {
                scan_links(reader, depth, found)?;
            }
        }
        Kind::Map => {
            let depth = deeper(reader, depth)?;
            let mut keys = reader.map()?;
            while keys.next(reader)?.is_some() {
                scan_links(reader, depth, found)?;
            }
        }
        _ => {
            reader.skip()?;
        }
    }
    Ok(())
}
