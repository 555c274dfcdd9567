//! A node in memory: children are there, or are stubs that know their CID.

use super::wire::{NodeData, NodeError, encode_node};
use super::{NodePlace, NodeSource, TreeError};
use crate::repo::cid::{Cid, Codec};
use std::sync::Arc;

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: Arc<str>,
    pub(super) value: Cid,
}

/// What hangs in one of a node's gaps.
#[derive(Clone, Debug)]
pub(super) enum Link {
    Empty,
    Stub(Cid),
    Node(Arc<Node>),
}

/// `links[i]` hangs before `entries[i]`, the last one after the last entry: always one link more than entries.
///
/// `cid` is there while the node is *clean*: unchanged since it was loaded or flushed. All below a clean node is clean.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) cid: Option<Cid>,
    pub(super) layer: u8,
    pub(super) entries: Vec<Entry>,
    pub(super) links: Vec<Link>,
    /// Estimated bytes in memory of this node and all that is loaded below.
    pub(super) weight: usize,
}

/// The open interval in which the keys of a subtree have to lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds<'a> {
    pub(super) low: Option<&'a str>,
    pub(super) high: Option<&'a str>,
}

impl Bounds<'_> {
    pub(super) const ALL: Bounds<'static> = Bounds {
        low: None,
        high: None,
    };

    fn admit(&self, key: &str) -> bool {
        self.low.is_none_or(|low| low < key) && self.high.is_none_or(|high| key < high)
    }
}

impl Node {
    /// A changed node, which has no CID yet.
    pub(super) fn new(layer: u8, entries: Vec<Entry>, links: Vec<Link>) -> Node {
        debug_assert_eq!(
            links.len(),
            entries.len() + 1,
            "a link before each entry and one after the last"
        );
        let mut node = Node {
            cid: None,
            layer,
            entries,
            links,
            weight: 0,
        };
        node.reweigh();
        node
    }

    /// The root of a tree without records.
    pub(super) fn empty() -> Node {
        Node::new(0, Vec::new(), vec![Link::Empty])
    }

    /// Reads the root, which alone may be empty and alone defines its own layer.
    pub(super) fn load_root(cid: &Cid, source: &dyn NodeSource) -> Result<Node, TreeError> {
        let data = fetch(cid, &NodePlace::ROOT, source)?;
        if data.entries.is_empty() && data.left.is_some() {
            return Err(TreeError::corrupt(cid, NodeError::Hollow));
        }
        let layer = data.layer().unwrap_or(0);
        Ok(Node::from_data(*cid, layer, data))
    }

    /// Reads a node below the root, and checks that it fits there.
    fn load(cid: &Cid, layer: u8, bounds: Bounds<'_>, source: &dyn NodeSource) -> Result<Node, TreeError> {
        let place = NodePlace {
            layer: Some(layer),
            low: bounds.low,
            high: bounds.high,
        };
        let data = fetch(cid, &place, source)?;
        match data.layer() {
            Some(found) if found != layer => {
                return Err(TreeError::corrupt(cid, NodeError::Layer { entry: 0 }));
            }
            None if data.left.is_none() => return Err(TreeError::corrupt(cid, NodeError::Hollow)),
            None if layer == 0 => return Err(TreeError::corrupt(cid, NodeError::Child)),
            _ => {}
        }
        if let (Some(first), Some(last)) = (data.entries.first(), data.entries.last())
            && !(bounds.admit(&first.key) && bounds.admit(&last.key))
        {
            return Err(TreeError::corrupt(cid, NodeError::Bounds));
        }
        Ok(Node::from_data(*cid, layer, data))
    }

    fn from_data(cid: Cid, layer: u8, data: NodeData) -> Node {
        let link = |cid: Option<Cid>| cid.map_or(Link::Empty, Link::Stub);
        let mut links = Vec::with_capacity(data.entries.len() + 1);
        let mut entries = Vec::with_capacity(data.entries.len());
        links.push(link(data.left));
        for entry in data.entries {
            entries.push(Entry {
                key: entry.key,
                value: entry.value,
            });
            links.push(link(entry.right));
        }
        Node {
            cid: Some(cid),
            ..Node::new(layer, entries, links)
        }
    }

    /// Where `key` is, or the gap in which it would be.
    pub(super) fn find(&self, key: &str) -> Result<usize, usize> {
        self.entries.binary_search_by(|entry| Ord::cmp(&*entry.key, key))
    }

    /// Neither entries nor children: below the root such a node does not exist.
    pub(super) fn is_vacant(&self) -> bool {
        self.entries.is_empty() && self.links.iter().all(Link::is_empty)
    }

    /// The layer of the children. Those of layer 0 have none, so there the number does not matter.
    pub(super) fn layer_below(&self) -> u8 {
        self.layer.saturating_sub(1)
    }

    /// The room for keys in gap `at`, if the node itself has `bounds`.
    pub(super) fn gap<'a>(&'a self, at: usize, bounds: Bounds<'a>) -> Bounds<'a> {
        let before = at.checked_sub(1).and_then(|before| self.entries.get(before));
        Bounds {
            low: before.map_or(bounds.low, |entry| Some(&entry.key)),
            high: self.entries.get(at).map_or(bounds.high, |entry| Some(&entry.key)),
        }
    }

    /// The node's bytes. All children have to be clean.
    pub(super) fn encode(&self) -> Vec<u8> {
        let (first, rest) = match self.links.split_first() {
            Some((first, rest)) => (first.cid(), rest),
            None => (None, [].as_slice()),
        };
        let entries = self.entries.iter().zip(rest);
        encode_node(
            first,
            entries.map(|(entry, link)| (&*entry.key, &entry.value, link.cid())),
        )
    }

    /// Brings `weight` up to date after a change in this node or directly below.
    pub(super) fn reweigh(&mut self) {
        const ARC_BYTES: usize = 2 * size_of::<usize>();
        let keys: usize = self.entries.iter().map(|entry| entry.key.len() + ARC_BYTES).sum();
        let below: usize = self.links.iter().map(Link::weight).sum();
        self.weight = ARC_BYTES
            + size_of::<Node>()
            + self.entries.len() * size_of::<Entry>()
            + self.links.len() * size_of::<Link>()
            + keys
            + below;
    }
}

impl Link {
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Link::Empty)
    }

    fn weight(&self) -> usize {
        match self {
            Link::Node(node) => node.weight,
            Link::Empty | Link::Stub(_) => 0,
        }
    }

    /// The subtree's CID, if there is a subtree and it is clean.
    fn cid(&self) -> Option<Cid> {
        match self {
            Link::Empty => None,
            Link::Stub(cid) => Some(*cid),
            Link::Node(node) => {
                debug_assert!(node.cid.is_some(), "encoding a node above a changed one");
                node.cid
            }
        }
    }

    /// The node that hangs here; read from `source` if it is not loaded.
    pub(super) fn node(
        &self,
        layer: u8,
        bounds: Bounds<'_>,
        source: &dyn NodeSource,
    ) -> Result<Option<Arc<Node>>, TreeError> {
        match self {
            Link::Empty => Ok(None),
            Link::Stub(cid) => Node::load(cid, layer, bounds, source).map(|node| Some(Arc::new(node))),
            Link::Node(node) => Ok(Some(Arc::clone(node))),
        }
    }
}

fn fetch(cid: &Cid, place: &NodePlace<'_>, source: &dyn NodeSource) -> Result<NodeData, TreeError> {
    let bytes = source
        .node(cid, place)
        .map_err(|error| TreeError::from_source(cid, error))?;
    if cid.codec() != Codec::DagCbor || !cid.matches(&bytes) {
        return Err(TreeError::corrupt(cid, NodeError::Hash));
    }
    NodeData::decode(&bytes).map_err(|reason| TreeError::corrupt(cid, reason))
}
