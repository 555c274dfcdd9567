//! The Merkle search tree of a repository: keys `collection/rkey` in order, each on the layer that its hash gives it,
//! so the same set of keys and records has one tree, and one root, whatever came first.
//!
//! A [`Tree`] holds in memory what was touched; the rest are stubs that know their CID and come from a [`NodeSource`]
//! when needed. A node that comes from there is believed only if its bytes hash to the CID, are canonical, and fit
//! the place in the tree, so hostile bytes give errors, never a wrong tree.
//!
//! Nodes are shared and copied on change: `clone` is cheap, a clone is a snapshot, and an operation that fails leaves
//! its tree as it was. To make a batch all or nothing, apply it to a clone and keep the one that you want.
//!
//! Nothing here does I/O, so nothing here is torn by a crash.
//!
//! Spec: <https://atproto.com/specs/repository#mst-structure>.
//!
//! | verb | where | cost, loaded tree |
//! |---|---|---|
//! | get, insert, update, remove | `edit` | the path to the key: O(log n) |
//! | flush | `flush` | the changed nodes |
//! | covering proof, inversion | `proof`, `invert` | the paths to the keys and their neighbours |
//! | walk, entries | `walk` | the nodes passed; memory of one path |
//! | stream from a store's records | `stream` | inner nodes, one pass over the records; memory of one path and one leaf |
//! | build from sorted records | `build` | all nodes; memory of one path |

mod build;
mod edit;
mod flush;
mod invert;
mod key;
mod node;
mod proof;
mod stream;
#[cfg(test)]
mod tests;
mod walk;
mod wire;

pub use build::{BuildError, Builder, BuiltNode, Spine, build_from_sorted};
pub use flush::Flushed;
pub use invert::{Change, InvertError, invert};
pub use key::{MAX_KEY_BYTES, is_valid_key, key_layer};
pub use proof::PathProof;
pub use stream::{StreamError, StreamItem, StreamRecord, stream};
pub use walk::{Entries, Walk, WalkItem};
pub use wire::{EntryData, NodeData, NodeError, encode_leaf, encode_passing_on};

use crate::repo::cid::Cid;
use bytes::Bytes;
use node::{Bounds, Node};
use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::sync::Arc;

/// Where nodes that are not in memory come from. What it gives is checked, so it may be a peer's archive.
pub trait NodeSource {
    /// The bytes of the node with this CID, which hangs at `place`. A store by CID need not look at the place.
    ///
    /// # Errors
    /// See [`NodeSourceError`].
    fn node(&self, cid: &Cid, place: &NodePlace<'_>) -> Result<Bytes, NodeSourceError>;
}

/// Where in its tree a node hangs, as far as its parents tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodePlace<'a> {
    /// Its layer, 0 for a leaf; `None` for the root, which has no parent to tell.
    pub layer: Option<u8>,
    /// All keys in and below the node are greater.
    pub low: Option<&'a str>,
    /// All keys in and below the node are smaller.
    pub high: Option<&'a str>,
}

impl NodePlace<'_> {
    /// The root's place.
    pub const ROOT: NodePlace<'static> = NodePlace {
        layer: None,
        low: None,
        high: None,
    };
}

/// Why a [`NodeSource`] gave no bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeSourceError {
    /// It has no such node.
    #[error("there is no such node")]
    Missing,
    /// It has the node, but what it holds is damaged: rebuild it from the records.
    #[error("the stored node is damaged: {0}")]
    Corrupt(String),
    /// It could not read. Nothing is known about the node; trying again may help.
    #[error("the node could not be read: {0}")]
    Io(String),
}

impl<S: BuildHasher> NodeSource for HashMap<Cid, Bytes, S> {
    fn node(&self, cid: &Cid, _: &NodePlace<'_>) -> Result<Bytes, NodeSourceError> {
        self.get(cid).cloned().ok_or(NodeSourceError::Missing)
    }
}

impl NodeSource for BTreeMap<Cid, Bytes> {
    fn node(&self, cid: &Cid, _: &NodePlace<'_>) -> Result<Bytes, NodeSourceError> {
        self.get(cid).cloned().ok_or(NodeSourceError::Missing)
    }
}

/// Why an operation on a [`Tree`] failed. The tree is as it was before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// [`is_valid_key`] refuses the key.
    #[error("not a key of a repository tree: {0:?}")]
    InvalidKey(String),
    /// An insert of a key that is there.
    #[error("{0} exists")]
    Exists(String),
    /// An update or removal of a key that is not there.
    #[error("{0} does not exist")]
    NotFound(String),
    /// The source lacks a node that the tree links.
    #[error("node {0} is missing")]
    Missing(Cid),
    /// The source gave bytes that are not the node, or a node that does not fit its place.
    #[error("node {cid}: {reason}")]
    Corrupt {
        /// The node.
        cid: Cid,
        /// What is wrong with it.
        reason: NodeError,
    },
    /// The source found its own copy of a node damaged.
    #[error("node {cid} is damaged in its store: {message}")]
    Damaged {
        /// The node.
        cid: Cid,
        /// The source's words.
        message: String,
    },
    /// The source could not read a node.
    #[error("node {cid} could not be read: {message}")]
    Io {
        /// The node.
        cid: Cid,
        /// The source's words.
        message: String,
    },
    /// The operation needs CIDs of nodes that changed since the last [`Tree::flush`].
    #[error("the tree has changes that are not flushed")]
    Unflushed,
}

impl TreeError {
    fn corrupt(cid: &Cid, reason: NodeError) -> TreeError {
        TreeError::Corrupt { cid: *cid, reason }
    }

    fn from_source(cid: &Cid, error: NodeSourceError) -> TreeError {
        match error {
            NodeSourceError::Missing => TreeError::Missing(*cid),
            NodeSourceError::Corrupt(message) => TreeError::Damaged { cid: *cid, message },
            NodeSourceError::Io(message) => TreeError::Io { cid: *cid, message },
        }
    }
}

/// A repository's tree, loaded as far as it was needed. See the [module](self).
#[derive(Clone, Debug)]
pub struct Tree {
    root: Root,
    /// Nodes of the last flushed tree that changed or went away since.
    dropped: Vec<Cid>,
}

#[derive(Clone, Debug)]
enum Root {
    Stub(Cid),
    Node(Arc<Node>),
}

impl Tree {
    /// A tree without records. Its root node does not exist anywhere yet, so the first flush adds it (or whatever the
    /// root has become by then).
    #[must_use]
    pub fn empty() -> Tree {
        Tree {
            root: Root::Node(Arc::new(Node::empty())),
            dropped: Vec::new(),
        }
    }

    /// The stored tree with this root. Nothing is read yet.
    #[must_use]
    pub fn open(root: Cid) -> Tree {
        Tree {
            root: Root::Stub(root),
            dropped: Vec::new(),
        }
    }

    /// The root's CID, or `None` if there are changes since the last flush.
    #[must_use]
    pub fn root(&self) -> Option<Cid> {
        match &self.root {
            Root::Stub(cid) => Some(*cid),
            Root::Node(node) => node.cid,
        }
    }

    /// Estimated bytes that the loaded nodes take. Clones that share nodes each count them.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let nodes = match &self.root {
            Root::Stub(_) => 0,
            Root::Node(node) => node.weight,
        };
        size_of::<Tree>() + nodes + self.dropped.capacity() * size_of::<Cid>()
    }

    /// The record at `key`. Nodes that have to be read are not kept.
    ///
    /// # Errors
    /// A node on the path cannot be had.
    pub fn get(&self, key: &str, source: &dyn NodeSource) -> Result<Option<Cid>, TreeError> {
        let mut found = None;
        self.descend(key, source, |node| {
            found = node
                .find(key)
                .ok()
                .and_then(|at| node.entries.get(at))
                .map(|entry| entry.value);
        })?;
        Ok(found)
    }

    /// Visits the nodes from the root to the one that holds `key`, or to the one that has the gap where it would be.
    fn descend(
        &self,
        key: &str,
        source: &dyn NodeSource,
        mut visit: impl FnMut(&Arc<Node>),
    ) -> Result<(), TreeError> {
        let mut node = self.root_node(source)?;
        // Each step down narrows the bounds; the keys are shared, not copied.
        let (mut low, mut high): (Option<Arc<str>>, Option<Arc<str>>) = (None, None);
        loop {
            visit(&node);
            let Err(gap) = node.find(key) else {
                return Ok(());
            };
            let before = gap.checked_sub(1).and_then(|before| node.entries.get(before));
            low = before.map(|entry| Arc::clone(&entry.key)).or(low);
            high = node.entries.get(gap).map(|entry| Arc::clone(&entry.key)).or(high);
            let bounds = Bounds {
                low: low.as_deref(),
                high: high.as_deref(),
            };
            let child = match node.links.get(gap) {
                Some(link) => link.node(node.layer_below(), bounds, source)?,
                None => None,
            };
            match child {
                Some(child) => node = child,
                None => return Ok(()),
            }
        }
    }

    fn root_node(&self, source: &dyn NodeSource) -> Result<Arc<Node>, TreeError> {
        match &self.root {
            Root::Stub(cid) => Node::load_root(cid, source).map(Arc::new),
            Root::Node(node) => Ok(Arc::clone(node)),
        }
    }
}
