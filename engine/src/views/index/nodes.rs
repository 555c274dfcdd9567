//! The nodes of one repo's tree, out of one snapshot of the index.

use std::ops::Bound;

use bytes::Bytes;

use super::IndexError;
use super::reader::IndexReader;
use super::rows::{NodeRow, PREFIX_BYTES, RecordRow, RepoKey, after_prefix, text_in_key};
use crate::repo::Cid;
use crate::repo::mst::{NodePlace, NodeSource, NodeSourceError, encode_leaf, encode_passing_on, key_layer};

/// Rows of one layer that are looked at for one node. One is enough as long as the asker's tree is the snapshot's; a
/// tree that is some commits ahead may have lost keys that part the place in the snapshot.
const CANDIDATES_MAX: usize = 32;
/// Records in one leaf at most: a limit for damaged tables.
const LEAF_MAX: usize = 1 << 20;

/// A [`NodeSource`] for one repo. Stored are nodes of layer 1 and above that have keys; a leaf is made of the records in its
/// place, and a node without keys of the node below it. Every block is compared with its CID before it is given out, so
/// that a damaged row shows as such.
#[derive(Clone, Debug)]
pub struct RepoNodes {
    reader: IndexReader,
    repo: RepoKey,
}

/// A node, and how the index has it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) block: Vec<u8>,
    pub(super) kind: FoundKind,
}

/// How the index has a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FoundKind {
    /// As a row with this rev.
    Stored { rev: u64 },
    /// As what is below it.
    PassingOn,
    /// As records.
    Leaf,
}

/// Why there is no such node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Absent {
    /// Nothing is at its place.
    Missing,
    /// Something else is.
    Other,
}

impl RepoNodes {
    pub(super) fn new(reader: IndexReader, repo: RepoKey) -> RepoNodes {
        RepoNodes { reader, repo }
    }

    /// The snapshot that the nodes come from.
    #[must_use]
    pub fn reader(&self) -> &IndexReader {
        &self.reader
    }

    pub(super) fn find(&self, cid: &Cid, place: &NodePlace<'_>) -> Result<Result<Found, Absent>, IndexError> {
        let nodes = self.reader.node_rows();
        let top = match place.layer {
            Some(layer) => layer,
            None => {
                let (from, to) = (self.repo.prefix(), self.repo.end());
                match nodes.range(from.as_slice()..to.as_slice())?.next().transpose()? {
                    Some((key, _)) => layer_in_key(key.value())?,
                    None => 0,
                }
            }
        };
        let mut absent = Absent::Missing;
        for layer in (1..=top).rev() {
            let low = match place.low {
                Some(low) => Bound::Excluded(self.repo.node_key(layer, low)),
                None => Bound::Included(self.repo.node_key(layer, "")),
            };
            let high = match place.high {
                Some(high) => self.repo.node_key(layer, high),
                None => after_prefix(&self.repo.node_key(layer, "")),
            };
            let range = (low.as_ref().map(Vec::as_slice), Bound::Excluded(high.as_slice()));
            for row in nodes.range::<&[u8]>(range)?.take(CANDIDATES_MAX) {
                let (_, row) = row?;
                let row = NodeRow::decode(row.value())?;
                absent = Absent::Other;
                if layer == top && cid.matches(row.block) {
                    return Ok(Ok(Found {
                        block: row.block.to_vec(),
                        kind: FoundKind::Stored { rev: row.rev },
                    }));
                }
                if let Some(block) = passing_on(cid, row.block, top - layer) {
                    return Ok(Ok(Found {
                        block,
                        kind: FoundKind::PassingOn,
                    }));
                }
            }
        }
        self.leaf(cid, place, top, absent)
    }

    /// A leaf, or a node above one that only passes on to it. Records of higher layers part leaves.
    fn leaf(
        &self,
        cid: &Cid,
        place: &NodePlace<'_>,
        top: u8,
        mut absent: Absent,
    ) -> Result<Result<Found, Absent>, IndexError> {
        let records = self.reader.records();
        let (low, high) = records_in(self.repo, place);
        let range = (low.as_ref().map(Vec::as_slice), Bound::Excluded(high.as_slice()));
        let mut leaf: Vec<(String, Cid)> = Vec::new();
        let is_it = |leaf: &[(String, Cid)]| {
            let block = encode_leaf(leaf.iter().map(|(path, cid)| (path.as_str(), cid)));
            if top == 0 && cid.matches(&block) {
                return Some(Found {
                    block,
                    kind: FoundKind::Leaf,
                });
            }
            let block = passing_on(cid, &block, top)?;
            Some(Found {
                block,
                kind: FoundKind::PassingOn,
            })
        };
        let mut leaves = 0;
        for row in records.range::<&[u8]>(range)? {
            let (key, row) = row?;
            let path = text_in_key(key.value(), PREFIX_BYTES, "records")?;
            absent = Absent::Other;
            if key_layer(path) == 0 {
                leaf.push((path.to_owned(), RecordRow::decode(row.value())?.cid));
            } else if !leaf.is_empty() {
                if let Some(found) = is_it(&leaf) {
                    return Ok(Ok(found));
                }
                leaf.clear();
                leaves += 1;
            }
            if leaf.len() > LEAF_MAX || leaves > CANDIDATES_MAX {
                return Ok(Err(absent));
            }
        }
        // The root of an empty tree is the one leaf without records.
        if leaf.is_empty() && place.layer.is_some() {
            return Ok(Err(absent));
        }
        Ok(is_it(&leaf).ok_or(absent))
    }
}

impl NodeSource for RepoNodes {
    fn node(&self, cid: &Cid, place: &NodePlace<'_>) -> Result<Bytes, NodeSourceError> {
        match self.find(cid, place) {
            Ok(Ok(found)) => Ok(found.block.into()),
            Ok(Err(Absent::Other)) => Err(NodeSourceError::Corrupt(
                "the index's rows give another node".to_owned(),
            )),
            Ok(Err(Absent::Missing)) => Err(NodeSourceError::Missing),
            Err(error @ (IndexError::Row { .. } | IndexError::Unusable { .. })) => {
                Err(NodeSourceError::Corrupt(error.to_string()))
            }
            Err(error) => Err(NodeSourceError::Io(error.to_string())),
        }
    }
}

/// The node with this CID, if it is `layers` above `block` with nothing in between.
fn passing_on(cid: &Cid, block: &[u8], layers: u8) -> Option<Vec<u8>> {
    let mut below = Cid::for_dag_cbor(block);
    let mut above = None;
    for _ in 0..layers {
        let block = encode_passing_on(&below);
        below = Cid::for_dag_cbor(&block);
        above = Some(block);
    }
    above.filter(|_| below == *cid)
}

/// The keys between which the records of a place lie: the first with its bound, the other excluded.
pub(super) fn records_in(repo: RepoKey, place: &NodePlace<'_>) -> (Bound<Vec<u8>>, Vec<u8>) {
    let low = match place.low {
        Some(low) => Bound::Excluded(repo.key(&[low.as_bytes()])),
        None => Bound::Included(repo.prefix().to_vec()),
    };
    let high = match place.high {
        Some(high) => repo.key(&[high.as_bytes()]),
        None => repo.end(),
    };
    (low, high)
}

/// The layer in a key of `nodes`.
fn layer_in_key(key: &[u8]) -> Result<u8, IndexError> {
    let layer = key.get(PREFIX_BYTES).map(|inverse| u8::MAX - inverse);
    layer.ok_or(IndexError::Row { table: "nodes" })
}
