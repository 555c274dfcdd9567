//! Flush: give the changed nodes their CIDs. Trim: forget what can be read again.

use super::node::{Link, Node};
use super::{Root, Tree};
use crate::repo::cid::Cid;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What a [`Tree::flush`] found, against the flush before (or the stored tree that was opened). A store that puts
/// `added` and deletes `dropped` holds exactly the nodes of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flushed {
    /// The root of the tree as it is now.
    pub root: Cid,
    /// Nodes that are new, each once, every node before its children and these in key order.
    pub added: Vec<(Cid, Bytes)>,
    /// Nodes that are gone, each once, in no useful order. None of them is in `added`.
    pub dropped: Vec<Cid>,
}

impl Tree {
    /// Encodes the changed nodes and computes their CIDs; unchanged ones cost nothing. Changes that undo each other
    /// leave no trace.
    pub fn flush(&mut self) -> Flushed {
        let dropped = std::mem::take(&mut self.dropped);
        let node = match &mut self.root {
            Root::Stub(cid) => {
                return Flushed {
                    root: *cid,
                    added: Vec::new(),
                    dropped,
                };
            }
            Root::Node(node) => node,
        };
        let mut added = Vec::new();
        let root = seal(node, &mut added);
        added.reverse();
        if dropped.is_empty() {
            return Flushed { root, added, dropped };
        }
        // A node that changed and changed back is in both. No node is twice in a tree, since its keys are not.
        let mut dropped: BTreeSet<Cid> = dropped.into_iter().collect();
        added.retain(|(cid, _)| !dropped.remove(cid));
        Flushed {
            root,
            added,
            dropped: dropped.into_iter().collect(),
        }
    }

    /// Forgets loaded nodes that are unchanged, except for the root: they come from the source again when needed.
    pub fn trim(&mut self) {
        if let Root::Node(root) = &mut self.root {
            trim_below(root);
        }
    }
}

/// Last child first and parents after children, so that the caller gets the order it wants by reversing.
fn seal(node: &mut Arc<Node>, added: &mut Vec<(Cid, Bytes)>) -> Cid {
    if let Some(cid) = node.cid {
        return cid;
    }
    let node = Arc::make_mut(node);
    for link in node.links.iter_mut().rev() {
        if let Link::Node(child) = link {
            seal(child, added);
        }
    }
    let bytes = node.encode();
    let cid = Cid::for_dag_cbor(&bytes);
    node.cid = Some(cid);
    added.push((cid, bytes.into()));
    cid
}

fn trim_below(node: &mut Arc<Node>) {
    if !node.links.iter().any(|link| matches!(link, Link::Node(_))) {
        return;
    }
    let node = Arc::make_mut(node);
    for link in &mut node.links {
        if let Link::Node(child) = link {
            match child.cid {
                Some(cid) => *link = Link::Stub(cid),
                None => trim_below(child),
            }
        }
    }
    node.reweigh();
}
