//! A repository in streaming order, from a store that keeps records in key order and no leaves.
//!
//! [`Tree::walk`](super::Tree::walk) asks for every node. Three quarters of them are leaves, which such a store builds from
//! its records; and the records are passed once more for themselves. Here one pass over the records gives both.

use super::{NodeData, NodeError, NodePlace, NodeSource, TreeError, encode_leaf};
use crate::repo::cid::Cid;

/// A record as a store has it; `place` is what it knows beyond the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamRecord<P> {
    /// `collection/rkey`.
    pub key: String,
    /// The record's address.
    pub value: Cid,
    /// Where it is.
    pub place: P,
}

/// One block of a tree.
#[derive(Debug)]
pub enum StreamItem<'a, P> {
    /// A node of the tree.
    Node {
        /// Its address.
        cid: &'a Cid,
        /// Its bytes.
        bytes: &'a [u8],
    },
    /// A record.
    Record(&'a StreamRecord<P>),
}

/// Why a stream broke off.
#[derive(Debug, thiserror::Error)]
pub enum StreamError<E> {
    /// A node cannot be had or is wrong; the same holds for a leaf that the records do not make.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The records are not those of the tree.
    #[error("the records are not those of the tree, from {0} on")]
    Records(String),
    /// The store's or the taker's own.
    #[error("{0}")]
    Other(E),
}

/// Passes the tree with this root in the order of [`Tree::walk`](super::Tree::walk), which is checked against `records` as
/// it goes: all of the tree's, in key order. Inner nodes come from `nodes`. Memory: one path of nodes, and one leaf.
///
/// # Errors
/// See [`StreamError`]; `take`'s error ends it.
pub fn stream<P, E>(
    root: &Cid,
    nodes: &dyn NodeSource,
    records: impl Iterator<Item = Result<StreamRecord<P>, E>>,
    take: impl FnMut(StreamItem<'_, P>) -> Result<(), E>,
) -> Result<(), StreamError<E>> {
    let mut streamer = Streamer {
        nodes,
        records,
        next: None,
        leaf: Vec::new(),
        take,
    };
    streamer.advance()?;
    let bytes = streamer.fetch(root, &NodePlace::ROOT)?;
    let data = decode(root, &bytes)?;
    match data.layer() {
        None | Some(0) => streamer.leaf(root, None)?,
        Some(layer) => streamer.inner(root, &bytes, &data, layer, (None, None))?,
    }
    match streamer.next {
        None => Ok(()),
        Some(extra) => Err(StreamError::Records(extra.key)),
    }
}

struct Streamer<'n, P, R, T> {
    nodes: &'n dyn NodeSource,
    records: R,
    next: Option<StreamRecord<P>>,
    /// Of the leaf that is being made; kept for its memory.
    leaf: Vec<StreamRecord<P>>,
    take: T,
}

fn decode(cid: &Cid, bytes: &[u8]) -> Result<NodeData, TreeError> {
    NodeData::decode(bytes).map_err(|reason| TreeError::corrupt(cid, reason))
}

impl<P, E, R, T> Streamer<'_, P, R, T>
where
    R: Iterator<Item = Result<StreamRecord<P>, E>>,
    T: FnMut(StreamItem<'_, P>) -> Result<(), E>,
{
    fn advance(&mut self) -> Result<Option<StreamRecord<P>>, StreamError<E>> {
        let next = self.records.next().transpose().map_err(StreamError::Other)?;
        Ok(std::mem::replace(&mut self.next, next))
    }

    fn fetch(&self, cid: &Cid, place: &NodePlace<'_>) -> Result<bytes::Bytes, TreeError> {
        let bytes = self
            .nodes
            .node(cid, place)
            .map_err(|error| TreeError::from_source(cid, error))?;
        if cid.matches(&bytes) {
            Ok(bytes)
        } else {
            Err(TreeError::corrupt(cid, NodeError::Hash))
        }
    }

    fn give(&mut self, item: StreamItem<'_, P>) -> Result<(), StreamError<E>> {
        (self.take)(item).map_err(StreamError::Other)
    }

    /// The subtree at `cid`, whose node is of `layer` and whose keys all lie between `low` and `high`.
    fn subtree(
        &mut self,
        cid: &Cid,
        layer: u8,
        (low, high): (Option<&str>, Option<&str>),
    ) -> Result<(), StreamError<E>> {
        if layer == 0 {
            return self.leaf(cid, high);
        }
        let place = NodePlace {
            layer: Some(layer),
            low,
            high,
        };
        let bytes = self.fetch(cid, &place)?;
        let data = decode(cid, &bytes)?;
        if data.layer().is_some_and(|found| found != layer) {
            return Err(TreeError::corrupt(cid, NodeError::Layer { entry: 0 }).into());
        }
        if data.entries.is_empty() && data.left.is_none() {
            return Err(TreeError::corrupt(cid, NodeError::Hollow).into());
        }
        self.inner(cid, &bytes, &data, layer, (low, high))
    }

    fn inner(
        &mut self,
        cid: &Cid,
        bytes: &[u8],
        data: &NodeData,
        layer: u8,
        (low, high): (Option<&str>, Option<&str>),
    ) -> Result<(), StreamError<E>> {
        self.give(StreamItem::Node { cid, bytes })?;
        let (mut child, mut low) = (data.left, low);
        for entry in &data.entries {
            if let Some(child) = child {
                self.subtree(&child, layer - 1, (low, Some(&entry.key)))?;
            }
            let wrong = || StreamError::Records(entry.key.to_string());
            let record = self.advance()?.ok_or_else(wrong)?;
            if *record.key != *entry.key || record.value != entry.value {
                return Err(wrong());
            }
            self.give(StreamItem::Record(&record))?;
            (child, low) = (entry.right, Some(&*entry.key));
        }
        match child {
            Some(child) => self.subtree(&child, layer - 1, (low, high)),
            None => Ok(()),
        }
    }

    /// The leaf at `cid`: the records before `high` must make it.
    fn leaf(&mut self, cid: &Cid, high: Option<&str>) -> Result<(), StreamError<E>> {
        let mut leaf = std::mem::take(&mut self.leaf);
        leaf.clear();
        while self
            .next
            .as_ref()
            .is_some_and(|record| high.is_none_or(|high| record.key.as_str() < high))
        {
            leaf.extend(self.advance()?);
            // A leaf of more would have to have been made on purpose; the limit keeps a damaged index from filling the memory.
            if leaf.len() > MAX_LEAF {
                return Err(TreeError::corrupt(cid, NodeError::Bounds).into());
            }
        }
        let bytes = encode_leaf(leaf.iter().map(|record| (record.key.as_str(), &record.value)));
        if !cid.matches(&bytes) {
            return Err(TreeError::corrupt(cid, NodeError::Hash).into());
        }
        self.give(StreamItem::Node { cid, bytes: &bytes })?;
        for record in &leaf {
            self.give(StreamItem::Record(record))?;
        }
        self.leaf = leaf;
        Ok(())
    }
}

/// Records in one leaf at most.
const MAX_LEAF: usize = 1 << 20;
