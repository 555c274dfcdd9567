//! A node's bytes: DAG-CBOR `{e: [{k, p, t, v}], l}`.
//!
//! `l` links the subtree before the first entry, or is null. In an entry, `p` bytes of the key are shared with the key
//! before, `k` is the rest of it, `v` links the record and `t` the subtree after the entry, or is null. Decoding takes
//! the one canonical form only, so encoding what was decoded gives the same bytes, hence the same CID.
//!
//! Spec: <https://atproto.com/specs/repository#mst-structure>.

use super::key::{is_valid_key_bytes, key_layer, shared_prefix};
use crate::repo::cbor::{CborError, Reader, Writer};
use crate::repo::cid::{Cid, Codec};
use std::sync::Arc;

/// One node as it is in its bytes, children as links. What it says about itself has been checked; whether it fits its
/// place in a tree is for who reads it there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeData {
    /// The subtree before the first entry.
    pub left: Option<Cid>,
    /// In key order, all of one layer.
    pub entries: Vec<EntryData>,
    layer: Option<u8>,
}

/// One record in a [`NodeData`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryData {
    /// The whole key.
    pub key: Arc<str>,
    /// The record.
    pub value: Cid,
    /// The subtree between this entry and the next.
    pub right: Option<Cid>,
}

/// Why bytes are not a node, or a node does not belong where it was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// Not the DAG-CBOR that a node is made of.
    #[error("node bytes: {0}")]
    Cbor(#[from] CborError),
    /// The bytes do not hash to the CID by which they were found, or that CID is not a DAG-CBOR one.
    #[error("node bytes do not hash to their CID")]
    Hash,
    /// A key that [`is_valid_key`](super::is_valid_key) refuses.
    #[error("entry {entry} has an unusable key")]
    Key {
        /// Index in the node.
        entry: usize,
    },
    /// A prefix length that is not exactly what the key shares with the one before.
    #[error("entry {entry} does not have the shortest key suffix")]
    Prefix {
        /// Index in the node.
        entry: usize,
    },
    /// Keys not strictly increasing.
    #[error("entry {entry} is out of order")]
    Order {
        /// Index in the node.
        entry: usize,
    },
    /// A key of another layer than the node.
    #[error("entry {entry} belongs to another layer")]
    Layer {
        /// Index in the node.
        entry: usize,
    },
    /// A subtree below the lowest layer, or a link to one that is no DAG-CBOR block.
    #[error("a link to a subtree where none can be")]
    Child,
    /// A key outside of what the parents' keys leave room for.
    #[error("keys outside of the node's place")]
    Bounds,
    /// No entries where some have to be: nothing at all below the root, or a root that only passes on.
    #[error("a node without entries where the canonical tree has none")]
    Hollow,
}

impl NodeData {
    /// Reads a node's bytes.
    ///
    /// # Errors
    /// Anything but the canonical encoding of a possible node. Never [`NodeError::Hash`], [`NodeError::Bounds`] or
    /// [`NodeError::Hollow`], which need the place of the node.
    pub fn decode(bytes: &[u8]) -> Result<NodeData, NodeError> {
        NodeData::read(bytes, true)
    }

    /// Reads bytes of a node that somebody has checked before: that all keys are of the first one's layer, which takes a
    /// hash for each, is believed.
    ///
    /// # Errors
    /// As [`NodeData::decode`].
    pub fn decode_checked_before(bytes: &[u8]) -> Result<NodeData, NodeError> {
        NodeData::read(bytes, false)
    }

    fn read(bytes: &[u8], every_layer: bool) -> Result<NodeData, NodeError> {
        let mut reader = Reader::new(bytes);
        let mut keys = reader.map()?;
        keys.expect(&mut reader, "e")?;
        let count = reader.array()?;
        // The smallest entry takes 50 bytes: reserve for what the input can really hold.
        let mut entries: Vec<EntryData> = Vec::with_capacity(count.min(bytes.len() / 50));
        let mut key: Vec<u8> = Vec::new();
        let mut layer = None;
        for entry in 0..count {
            let mut fields = reader.map()?;
            fields.expect(&mut reader, "k")?;
            let suffix = reader.bytes()?;
            fields.expect(&mut reader, "p")?;
            let prefix = usize::try_from(reader.u64()?).map_err(|_| NodeError::Prefix { entry })?;
            fields.expect(&mut reader, "t")?;
            let right = child(&mut reader)?;
            fields.expect(&mut reader, "v")?;
            let value = reader.link()?;
            fields.end(&reader)?;

            let shared_with_before = key.get(prefix..).ok_or(NodeError::Prefix { entry })?;
            if shared_prefix(shared_with_before, suffix) != 0 {
                return Err(NodeError::Prefix { entry });
            }
            if entry > 0 && shared_with_before >= suffix {
                return Err(NodeError::Order { entry });
            }
            key.truncate(prefix);
            key.extend_from_slice(suffix);
            if !is_valid_key_bytes(&key) {
                return Err(NodeError::Key { entry });
            }
            let key = std::str::from_utf8(&key).map_err(|_| NodeError::Key { entry })?;
            if every_layer || layer.is_none() {
                let at = key_layer(key);
                if *layer.get_or_insert(at) != at {
                    return Err(NodeError::Layer { entry });
                }
            }
            entries.push(EntryData {
                key: key.into(),
                value,
                right,
            });
        }
        keys.expect(&mut reader, "l")?;
        let left = child(&mut reader)?;
        keys.end(&reader)?;
        reader.end()?;
        if layer == Some(0) && (left.is_some() || entries.iter().any(|entry| entry.right.is_some())) {
            return Err(NodeError::Child);
        }
        Ok(NodeData { left, entries, layer })
    }

    /// The layer of the node's keys. A node without entries does not know: it lies one below its parent, or is the
    /// root of an empty tree.
    #[must_use]
    pub fn layer(&self) -> Option<u8> {
        self.layer
    }

    /// The canonical bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let entries = self
            .entries
            .iter()
            .map(|entry| (&*entry.key, &entry.value, entry.right));
        encode_node(self.left, entries)
    }
}

fn child(reader: &mut Reader<'_>) -> Result<Option<Cid>, NodeError> {
    if reader.null_if_present()? {
        return Ok(None);
    }
    match reader.link()? {
        cid if cid.codec() == Codec::DagCbor => Ok(Some(cid)),
        _ => Err(NodeError::Child),
    }
}

/// The bytes of a node without entries, which only passes on to the one below it. With them an index need not store such
/// nodes.
#[must_use]
pub fn encode_passing_on(below: &Cid) -> Vec<u8> {
    encode_node(Some(*below), std::iter::empty())
}

/// The bytes of a node of layer 0 with these records, which have to be in key order. With them an index need not store
/// leaves: it reads the records in the leaf's place.
pub fn encode_leaf<'a, I>(entries: I) -> Vec<u8>
where
    I: IntoIterator<Item = (&'a str, &'a Cid)>,
    I::IntoIter: ExactSizeIterator,
{
    encode_node(None, entries.into_iter().map(|(key, value)| (key, value, None)))
}

pub(super) fn encode_node<'a>(
    left: Option<Cid>,
    entries: impl ExactSizeIterator<Item = (&'a str, &'a Cid, Option<Cid>)>,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + entries.len() * 128);
    let mut writer = Writer::new(&mut out);
    writer.map(2).text("e").array(entries.len());
    let mut before: &[u8] = b"";
    for (key, value, right) in entries {
        let key = key.as_bytes();
        let prefix = shared_prefix(before, key);
        writer
            .map(4)
            .text("k")
            .bytes(&key[prefix..])
            .text("p")
            .uint(prefix as u64);
        writer
            .text("t")
            .link_or_null(right.as_ref())
            .text("v")
            .link(value);
        before = key;
    }
    writer.text("l").link_or_null(left.as_ref());
    out
}
