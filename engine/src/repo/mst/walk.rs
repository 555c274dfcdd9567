//! Passing through a tree in order, with the nodes of one path in memory at a time.

use super::node::{Bounds, Node};
use super::{NodeSource, Tree, TreeError};
use crate::repo::cid::Cid;
use bytes::Bytes;
use std::sync::Arc;

/// The records of a tree in key order. See [`Tree::entries_from`]. After an error it ends.
pub struct Entries<'s>(Cursor<'s>);

/// The blocks of a tree in streaming order. See [`Tree::walk`]. After an error it ends.
pub struct Walk<'s>(Cursor<'s>);

/// One block of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalkItem {
    /// A node of the tree.
    Node {
        /// Its address.
        cid: Cid,
        /// Its bytes.
        bytes: Bytes,
    },
    /// A record, whose bytes somebody else has.
    Record {
        /// `collection/rkey`.
        key: Arc<str>,
        /// The record's address.
        cid: Cid,
    },
}

impl Tree {
    /// The records with keys from `start` on (all if it is `None`), in key order. The iterator is a snapshot: later
    /// changes of the tree do not show. Nodes that have to be read are not kept.
    ///
    /// # Errors
    /// A node on the path to `start` cannot be had; later nodes give their errors as items.
    pub fn entries_from<'s>(
        &self,
        start: Option<&str>,
        source: &'s dyn NodeSource,
    ) -> Result<Entries<'s>, TreeError> {
        let root = self.root_node(source)?;
        let mut cursor = Cursor {
            source,
            path: vec![Step::whole(root)],
            enter: None,
        };
        if let Some(start) = start {
            cursor.seek(start)?;
        }
        Ok(Entries(cursor))
    }

    /// All nodes and records in preorder: a node, then its subtrees and records in key order. That is the order in
    /// which a reader can check a repository as it streams in. A snapshot, like [`entries_from`](Tree::entries_from).
    ///
    /// # Errors
    /// [`TreeError::Unflushed`], or the root cannot be had; later nodes give their errors as items.
    pub fn walk<'s>(&self, source: &'s dyn NodeSource) -> Result<Walk<'s>, TreeError> {
        if self.root().is_none() {
            return Err(TreeError::Unflushed);
        }
        let root = self.root_node(source)?;
        Ok(Walk(Cursor {
            source,
            path: vec![Step::whole(Arc::clone(&root))],
            enter: Some(root),
        }))
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<(Arc<str>, Cid), TreeError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.0.next()? {
                Ok(Passed::Node(_)) => {}
                Ok(Passed::Entry(key, cid)) => return Some(Ok((key, cid))),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<WalkItem, TreeError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.0.next()?.and_then(|passed| match passed {
            Passed::Node(node) => {
                let cid = node.cid.ok_or(TreeError::Unflushed)?;
                Ok(WalkItem::Node {
                    cid,
                    bytes: node.encode().into(),
                })
            }
            Passed::Entry(key, cid) => Ok(WalkItem::Record { key, cid }),
        }))
    }
}

struct Cursor<'s> {
    source: &'s dyn NodeSource,
    /// From the root to the node that is being passed through.
    path: Vec<Step>,
    /// A node that was just entered and is not yet reported.
    enter: Option<Arc<Node>>,
}

/// A node and how far it is passed: gap 0, entry 0, gap 1, entry 1 and so on count as 0, 1, 2, 3.
struct Step {
    node: Arc<Node>,
    at: usize,
    low: Option<Arc<str>>,
    high: Option<Arc<str>>,
}

enum Passed {
    Node(Arc<Node>),
    Entry(Arc<str>, Cid),
}

impl Step {
    fn whole(root: Arc<Node>) -> Step {
        Step {
            node: root,
            at: 0,
            low: None,
            high: None,
        }
    }

    /// The child in a gap, not yet passed.
    fn child(&self, gap: usize, source: &dyn NodeSource) -> Result<Option<Step>, TreeError> {
        let key = |at: usize| self.node.entries.get(at).map(|entry| Arc::clone(&entry.key));
        let low = gap.checked_sub(1).and_then(key).or_else(|| self.low.clone());
        let high = key(gap).or_else(|| self.high.clone());
        let bounds = Bounds {
            low: low.as_deref(),
            high: high.as_deref(),
        };
        let Some(link) = self.node.links.get(gap) else {
            return Ok(None);
        };
        let child = link.node(self.node.layer_below(), bounds, source)?;
        Ok(child.map(|node| Step {
            node,
            at: 0,
            low,
            high,
        }))
    }
}

impl Cursor<'_> {
    /// Skips to the first key that is not before `start`. Only from the fresh state, with the root alone on the path.
    fn seek(&mut self, start: &str) -> Result<(), TreeError> {
        while let Some(step) = self.path.last_mut() {
            match step.node.find(start) {
                Ok(entry) => {
                    step.at = 2 * entry + 1;
                    return Ok(());
                }
                Err(gap) => {
                    step.at = 2 * gap + 1;
                    match step.child(gap, self.source)? {
                        Some(child) => self.path.push(child),
                        None => return Ok(()),
                    }
                }
            }
        }
        Ok(())
    }

    fn next(&mut self) -> Option<Result<Passed, TreeError>> {
        if let Some(node) = self.enter.take() {
            return Some(Ok(Passed::Node(node)));
        }
        loop {
            let step = self.path.last_mut()?;
            let (index, is_entry) = (step.at / 2, step.at % 2 == 1);
            step.at += 1;
            if is_entry {
                match step.node.entries.get(index) {
                    Some(entry) => return Some(Ok(Passed::Entry(Arc::clone(&entry.key), entry.value))),
                    None => {
                        self.path.pop();
                    }
                }
                continue;
            }
            match step.child(index, self.source) {
                Ok(Some(child)) => {
                    let node = Arc::clone(&child.node);
                    self.path.push(child);
                    return Some(Ok(Passed::Node(node)));
                }
                Ok(None) => {}
                Err(error) => {
                    self.path.clear();
                    return Some(Err(error));
                }
            }
        }
    }
}
