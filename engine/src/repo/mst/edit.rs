//! Insert, update, remove.
//!
//! An operation copies the path it changes and puts the new root into the tree only when all went well. A key of layer
//! L lives in a node of layer L. Inserting it splits what hangs in its gap into what is before and what is after;
//! removing it merges the two again. Nodes without entries stay as long as something hangs below and entries are above.

use super::key::{is_valid_key, key_layer};
use super::node::{Bounds, Entry, Link, Node};
use super::{NodeSource, Root, Tree, TreeError};
use crate::repo::cid::Cid;
use std::sync::Arc;

impl Tree {
    /// Adds a record.
    ///
    /// # Errors
    /// [`TreeError::InvalidKey`], [`TreeError::Exists`], or a node on the path cannot be had.
    pub fn insert(&mut self, key: &str, value: Cid, source: &dyn NodeSource) -> Result<(), TreeError> {
        if !is_valid_key(key) {
            return Err(TreeError::InvalidKey(key.to_owned()));
        }
        let mut edit = Edit {
            source,
            dropped: Vec::new(),
        };
        let root = edit.insert(
            self.root_node(source)?,
            Entry {
                key: key.into(),
                value,
            },
            key_layer(key),
        )?;
        self.keep(root, edit);
        Ok(())
    }

    /// Puts another record at a key, and gives the one that was there.
    ///
    /// # Errors
    /// [`TreeError::NotFound`], or a node on the path cannot be had.
    pub fn update(&mut self, key: &str, value: Cid, source: &dyn NodeSource) -> Result<Cid, TreeError> {
        let mut edit = Edit {
            source,
            dropped: Vec::new(),
        };
        let mut root = self.root_node(source)?;
        let previous = edit.update_in(&mut root, key, value, Bounds::ALL)?;
        if previous != value {
            self.keep(root, edit);
        }
        Ok(previous)
    }

    /// Takes a record out, and gives it.
    ///
    /// # Errors
    /// [`TreeError::NotFound`], or a node on the path, or beside the gap that closes, cannot be had.
    pub fn remove(&mut self, key: &str, source: &dyn NodeSource) -> Result<Cid, TreeError> {
        let mut edit = Edit {
            source,
            dropped: Vec::new(),
        };
        let (root, previous) = edit.remove(self.root_node(source)?, key)?;
        self.keep(root, edit);
        Ok(previous)
    }

    fn keep(&mut self, root: Arc<Node>, edit: Edit<'_>) {
        self.root = Root::Node(root);
        self.dropped.extend(edit.dropped);
    }
}

/// One operation under way.
struct Edit<'s> {
    source: &'s dyn NodeSource,
    /// Clean nodes that the operation changed or let go of.
    dropped: Vec<Cid>,
}

fn not_found(key: &str) -> TreeError {
    TreeError::NotFound(key.to_owned())
}

fn exists(key: &str) -> TreeError {
    TreeError::Exists(key.to_owned())
}

fn link_at(node: &Node, gap: usize) -> &Link {
    node.links.get(gap).unwrap_or(&Link::Empty)
}

fn set_link(node: &mut Node, gap: usize, link: Link) {
    if let Some(slot) = node.links.get_mut(gap) {
        *slot = link;
    }
    node.reweigh();
}

/// A changed node as a link, or no link if nothing is in it.
fn hang(node: Arc<Node>) -> Link {
    if node.is_vacant() {
        Link::Empty
    } else {
        Link::Node(node)
    }
}

impl Edit<'_> {
    /// The node for changing: a copy of its own, without a CID.
    fn change<'n>(&mut self, node: &'n mut Arc<Node>) -> &'n mut Node {
        let node = Arc::make_mut(node);
        self.dropped.extend(node.cid.take());
        node
    }

    fn child(&self, node: &Node, gap: usize, bounds: Bounds<'_>) -> Result<Option<Arc<Node>>, TreeError> {
        link_at(node, gap).node(node.layer_below(), node.gap(gap, bounds), self.source)
    }

    fn insert(&mut self, mut root: Arc<Node>, entry: Entry, layer: u8) -> Result<Arc<Node>, TreeError> {
        if root.is_vacant() {
            self.dropped.extend(root.cid);
            return Ok(Arc::new(Node::new(
                layer,
                vec![entry],
                vec![Link::Empty, Link::Empty],
            )));
        }
        if layer <= root.layer {
            self.insert_in(&mut root, entry, layer, Bounds::ALL)?;
            return Ok(root);
        }
        let below = root.layer;
        let (left, right) = self.split(root, &entry.key, Bounds::ALL)?;
        let links = vec![raise(left, below, layer - 1), raise(right, below, layer - 1)];
        Ok(Arc::new(Node::new(layer, vec![entry], links)))
    }

    fn insert_in(
        &mut self,
        node: &mut Arc<Node>,
        entry: Entry,
        layer: u8,
        bounds: Bounds<'_>,
    ) -> Result<(), TreeError> {
        let Err(gap) = node.find(&entry.key) else {
            return Err(exists(&entry.key));
        };
        let child = self.child(node, gap, bounds)?;
        if node.layer == layer {
            let (left, right) = match child {
                Some(child) => self.split(child, &entry.key, node.gap(gap, bounds))?,
                None => (Link::Empty, Link::Empty),
            };
            let node = self.change(node);
            node.entries.insert(gap, entry);
            node.links.insert(gap + 1, right);
            set_link(node, gap, left);
            return Ok(());
        }
        let child = match child {
            Some(mut child) => {
                self.insert_in(&mut child, entry, layer, node.gap(gap, bounds))?;
                Link::Node(child)
            }
            None => {
                let bottom = Node::new(layer, vec![entry], vec![Link::Empty, Link::Empty]);
                raise(Link::Node(Arc::new(bottom)), layer, node.layer_below())
            }
        };
        set_link(self.change(node), gap, child);
        Ok(())
    }

    /// Takes a subtree apart at a key that is not in it. A side that gets everything gets the subtree unchanged.
    fn split(
        &mut self,
        mut node: Arc<Node>,
        key: &str,
        bounds: Bounds<'_>,
    ) -> Result<(Link, Link), TreeError> {
        let Err(gap) = node.find(key) else {
            return Err(exists(key));
        };
        let (left, right) = match self.child(&node, gap, bounds)? {
            Some(child) => self.split(child, key, node.gap(gap, bounds))?,
            None => (Link::Empty, Link::Empty),
        };
        let all_left = gap == node.entries.len() && right.is_empty();
        let all_right = gap == 0 && left.is_empty();
        if all_left || all_right {
            let child = if all_left { left } else { right };
            if matches!(link_at(&node, gap), Link::Stub(_)) {
                // The same child, loaded by now.
                set_link(Arc::make_mut(&mut node), gap, child);
            }
            let whole = Link::Node(node);
            return Ok(if all_left {
                (whole, Link::Empty)
            } else {
                (Link::Empty, whole)
            });
        }
        let before = self.change(&mut node);
        let after_entries = before.entries.split_off(gap);
        let mut after_links = before.links.split_off(gap + 1);
        after_links.insert(0, right);
        set_link(before, gap, left);
        let after = Arc::new(Node::new(before.layer, after_entries, after_links));
        Ok((hang(node), hang(after)))
    }

    fn update_in(
        &mut self,
        node: &mut Arc<Node>,
        key: &str,
        value: Cid,
        bounds: Bounds<'_>,
    ) -> Result<Cid, TreeError> {
        match node.find(key) {
            Ok(at) => match self.change(node).entries.get_mut(at) {
                Some(entry) => Ok(std::mem::replace(&mut entry.value, value)),
                None => Err(not_found(key)),
            },
            Err(gap) => {
                let mut child = self.child(node, gap, bounds)?.ok_or_else(|| not_found(key))?;
                let previous = self.update_in(&mut child, key, value, node.gap(gap, bounds))?;
                set_link(self.change(node), gap, Link::Node(child));
                Ok(previous)
            }
        }
    }

    fn remove(&mut self, mut root: Arc<Node>, key: &str) -> Result<(Arc<Node>, Cid), TreeError> {
        let previous = self.remove_in(&mut root, key, Bounds::ALL)?;
        // The root is the highest node that has entries.
        while root.entries.is_empty() {
            self.dropped.extend(root.cid);
            match self.child(&root, 0, Bounds::ALL)? {
                Some(child) => root = child,
                None => return Ok((Arc::new(Node::empty()), previous)),
            }
        }
        Ok((root, previous))
    }

    fn remove_in(&mut self, node: &mut Arc<Node>, key: &str, bounds: Bounds<'_>) -> Result<Cid, TreeError> {
        match node.find(key) {
            Ok(at) => {
                let around = Bounds {
                    low: node.gap(at, bounds).low,
                    high: node.gap(at + 1, bounds).high,
                };
                let (left, right) = (link_at(node, at).clone(), link_at(node, at + 1).clone());
                let merged = self.merge(left, right, node.layer_below(), key, around)?;
                let node = self.change(node);
                let removed = node.entries.remove(at);
                node.links.remove(at + 1);
                set_link(node, at, merged);
                Ok(removed.value)
            }
            Err(gap) => {
                let mut child = self.child(node, gap, bounds)?.ok_or_else(|| not_found(key))?;
                let previous = self.remove_in(&mut child, key, node.gap(gap, bounds))?;
                set_link(self.change(node), gap, hang(child));
                Ok(previous)
            }
        }
    }

    /// Joins two neighbours on one layer, between which the key `gone` was. One without a neighbour stays as it is.
    fn merge(
        &mut self,
        left: Link,
        right: Link,
        layer: u8,
        gone: &str,
        bounds: Bounds<'_>,
    ) -> Result<Link, TreeError> {
        if right.is_empty() {
            return Ok(left);
        }
        let Some(mut joined) = left.node(
            layer,
            Bounds {
                high: Some(gone),
                ..bounds
            },
            self.source,
        )?
        else {
            return Ok(right);
        };
        let Some(right) = right.node(
            layer,
            Bounds {
                low: Some(gone),
                ..bounds
            },
            self.source,
        )?
        else {
            return Ok(left);
        };
        let seam = joined.entries.len();
        let around = Bounds {
            low: joined.gap(seam, bounds).low,
            high: right.gap(0, bounds).high,
        };
        let (before, after) = (link_at(&joined, seam).clone(), link_at(&right, 0).clone());
        let middle = self.merge(before, after, right.layer_below(), gone, around)?;
        self.dropped.extend(right.cid);
        let node = self.change(&mut joined);
        node.entries.extend(right.entries.iter().cloned());
        node.links.extend(right.links.iter().skip(1).cloned());
        set_link(node, seam, middle);
        Ok(Link::Node(joined))
    }
}

/// Puts nodes that only pass on above a subtree, so that it hangs in the right layer.
fn raise(mut link: Link, from: u8, to: u8) -> Link {
    if link.is_empty() {
        return link;
    }
    for layer in from + 1..=to {
        link = Link::Node(Arc::new(Node::new(layer, Vec::new(), vec![link])));
    }
    link
}
