//! Proofs: the nodes that somebody needs who has nothing but a root.
//!
//! A *path proof* shows what is at one key, or that nothing is. A *covering proof* lets the operations of a commit be
//! undone in the tree after it: for each key the path to it and the paths to its left and right neighbour. Undoing a
//! create merges what hangs on both sides of the key; undoing a delete splits what hangs where the key was. Both
//! happen along these paths. Spec: <https://atproto.com/specs/sync#commit-validation>.

use super::node::{Bounds, Link, Node};
use super::{NodeSource, Root, Tree, TreeError};
use crate::repo::cid::Cid;
use bytes::Bytes;
use std::collections::HashSet;
use std::sync::Arc;

/// What is at a key, and the nodes that prove it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathProof {
    /// The record at the key, if there is one.
    pub value: Option<Cid>,
    /// From the root down to the node that holds the key, or has the gap where it would be.
    pub nodes: Vec<(Cid, Bytes)>,
}

/// Which way a path goes on.
#[derive(Clone, Copy)]
enum Aim<'k> {
    /// To the key, and from there to both neighbours.
    Key(&'k str),
    /// To the first key below.
    First,
    /// To the last key below.
    Last,
}

impl Aim<'_> {
    /// The gaps to go down from `node`: one, or two where the key itself is found.
    fn gaps(self, node: &Node) -> [Option<(usize, Self)>; 2] {
        match self {
            Aim::First => [Some((0, Aim::First)), None],
            Aim::Last => [Some((node.entries.len(), Aim::Last)), None],
            Aim::Key(key) => match node.find(key) {
                Ok(at) => [Some((at, Aim::Last)), Some((at + 1, Aim::First))],
                Err(gap) => [Some((gap, self)), None],
            },
        }
    }
}

impl Tree {
    /// The record at `key` and the nodes that prove it. Nodes that have to be read are not kept.
    ///
    /// # Errors
    /// [`TreeError::Unflushed`], or a node on the path cannot be had.
    pub fn path_blocks(&self, key: &str, source: &dyn NodeSource) -> Result<PathProof, TreeError> {
        if self.root().is_none() {
            return Err(TreeError::Unflushed);
        }
        let mut proof = PathProof {
            value: None,
            nodes: Vec::new(),
        };
        self.descend(key, source, |node| {
            proof.nodes.extend(block(node));
            proof.value = node
                .find(key)
                .ok()
                .and_then(|at| node.entries.get(at))
                .map(|entry| entry.value);
        })?;
        Ok(proof)
    }

    /// The nodes from which the operations on `keys` can be undone: of the flushed tree after all of them, the paths
    /// to each key and to its neighbours. Each node once, parents before children. Nodes that have to be read stay in
    /// the tree, since the next commit will likely need them.
    ///
    /// # Errors
    /// [`TreeError::Unflushed`], or a node on one of the paths cannot be had.
    pub fn covering_proof<'k>(
        &mut self,
        keys: impl IntoIterator<Item = &'k str>,
        source: &dyn NodeSource,
    ) -> Result<Vec<(Cid, Bytes)>, TreeError> {
        if self.root().is_none() {
            return Err(TreeError::Unflushed);
        }
        let mut root = self.root_node(source)?;
        let mut proof = Proof {
            seen: HashSet::new(),
            nodes: Vec::new(),
        };
        proof.nodes.extend(block(&root));
        for key in keys {
            if !is_loaded(&root, Aim::Key(key)) {
                load(&mut root, Aim::Key(key), Bounds::ALL, source)?;
            }
            proof.collect(&root, Aim::Key(key));
        }
        self.root = Root::Node(root);
        Ok(proof.nodes)
    }
}

/// A clean node's block; none for a changed one.
fn block(node: &Node) -> Option<(Cid, Bytes)> {
    node.cid.map(|cid| (cid, node.encode().into()))
}

/// Whether nothing along the way is a stub.
fn is_loaded(node: &Node, aim: Aim<'_>) -> bool {
    aim.gaps(node)
        .into_iter()
        .flatten()
        .all(|(gap, aim)| match node.links.get(gap) {
            Some(Link::Node(child)) => is_loaded(child, aim),
            Some(Link::Stub(_)) => false,
            Some(Link::Empty) | None => true,
        })
}

/// Reads the stubs along the way. The nodes stay clean: they are the same nodes.
fn load(
    node: &mut Arc<Node>,
    aim: Aim<'_>,
    bounds: Bounds<'_>,
    source: &dyn NodeSource,
) -> Result<(), TreeError> {
    for (gap, aim) in aim.gaps(node).into_iter().flatten() {
        let child = match node.links.get(gap) {
            Some(link) => link.node(node.layer_below(), node.gap(gap, bounds), source)?,
            None => None,
        };
        let Some(mut child) = child else {
            continue;
        };
        load(&mut child, aim, node.gap(gap, bounds), source)?;
        let node = Arc::make_mut(node);
        if let Some(link) = node.links.get_mut(gap) {
            *link = Link::Node(child);
        }
        node.reweigh();
    }
    Ok(())
}

struct Proof {
    seen: HashSet<Cid>,
    nodes: Vec<(Cid, Bytes)>,
}

impl Proof {
    /// Takes the nodes below `node` along the way, which is loaded.
    fn collect(&mut self, node: &Node, aim: Aim<'_>) {
        for (gap, aim) in aim.gaps(node).into_iter().flatten() {
            if let Some(Link::Node(child)) = node.links.get(gap) {
                if child.cid.is_some_and(|cid| self.seen.insert(cid)) {
                    self.nodes.extend(block(child));
                }
                self.collect(child, aim);
            }
        }
    }
}
