//! What changed in a repo since a rev, without a look at what did not.

use std::ops::Bound;

use redb::ReadOnlyTable;

use super::nodes::{FoundKind, RepoNodes, records_in};
use super::reader::IndexReader;
use super::rows::{RecordRow, RepoKey};
use super::{Bytes, IndexError, RecordBytes};
use crate::log::Location;
use crate::repo::mst::{NodeData, NodePlace};
use crate::repo::{Cid, Did, Tid};

/// A block of [`IndexReader::changed_since`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangedBlock<'a> {
    /// A node of the tree.
    Node {
        /// Its address.
        cid: &'a Cid,
        /// Its bytes.
        bytes: &'a [u8],
    },
    /// A record.
    Record {
        /// Its address.
        cid: &'a Cid,
        /// Its bytes in the log.
        location: Location,
    },
}

/// Why a pass over blocks broke off.
#[derive(Debug, thiserror::Error)]
pub enum Stop<E> {
    /// The database failed or is damaged.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A node of the tree cannot be had.
    #[error("node {0} of the tree is missing or damaged")]
    Node(Cid),
    /// Whoever took the blocks wants no more.
    #[error("{0}")]
    Taker(E),
}

impl<E> From<redb::StorageError> for Stop<E> {
    fn from(error: redb::StorageError) -> Stop<E> {
        Stop::Index(error.into())
    }
}

impl IndexReader {
    /// Gives `take` the nodes and records of the current tree that commits after `since` made, each node before what is
    /// below it. A node of layer 0, or without keys, comes along when the node above it is new. Answers false, and gives
    /// nothing, if the index does not know what changed since then: everything may have. Cost: the changed paths.
    ///
    /// # Errors
    /// See [`Stop`].
    pub fn changed_since<E>(
        &self,
        did: &Did,
        since: Tid,
        take: impl FnMut(ChangedBlock<'_>) -> Result<(), E>,
    ) -> Result<bool, Stop<E>> {
        let Some((number, head)) = self.head(did)? else {
            return Ok(false);
        };
        let Some(at) = head.commit.filter(|_| head.base <= since.to_u64()) else {
            return Ok(false);
        };
        if at.rev <= since {
            return Ok(true);
        }
        let repo = RepoKey {
            number,
            generation: head.generation,
        };
        let mut pass = Pass {
            nodes: RepoNodes::new(self.clone(), repo),
            records: self.records(),
            repo,
            since: since.to_u64(),
            take,
        };
        pass.subtree(&at.data, &NodePlace::ROOT)?;
        Ok(true)
    }
}

struct Pass<'r, T> {
    nodes: RepoNodes,
    records: &'r ReadOnlyTable<Bytes, RecordBytes>,
    repo: RepoKey,
    since: u64,
    take: T,
}

impl<E, T: FnMut(ChangedBlock<'_>) -> Result<(), E>> Pass<'_, T> {
    fn give(&mut self, block: ChangedBlock<'_>) -> Result<(), Stop<E>> {
        (self.take)(block).map_err(Stop::Taker)
    }

    fn subtree(&mut self, cid: &Cid, place: &NodePlace<'_>) -> Result<(), Stop<E>> {
        let found = self.nodes.find(cid, place)?.map_err(|_| Stop::Node(*cid))?;
        if matches!(found.kind, FoundKind::Stored { rev } if rev <= self.since) {
            return Ok(());
        }
        let bytes = &found.block;
        self.give(ChangedBlock::Node { cid, bytes })?;
        if found.kind == FoundKind::Leaf {
            return self.leaf(place);
        }
        let data = NodeData::decode_checked_before(bytes).map_err(|_| Stop::Node(*cid))?;
        // Of a root that has keys, these tell the layer; any other node without a layer is damaged.
        let layer = data.layer().or(place.layer).filter(|layer| *layer > 0);
        let below = layer.ok_or(Stop::Node(*cid))? - 1;
        let (mut child, mut low) = (data.left, place.low);
        for entry in &data.entries {
            if let Some(child) = child {
                let place = NodePlace {
                    layer: Some(below),
                    low,
                    high: Some(&entry.key),
                };
                self.subtree(&child, &place)?;
            }
            self.record(&entry.key, &entry.value)?;
            (child, low) = (entry.right, Some(&*entry.key));
        }
        match child {
            Some(child) => {
                let place = NodePlace {
                    layer: Some(below),
                    low,
                    high: place.high,
                };
                self.subtree(&child, &place)
            }
            None => Ok(()),
        }
    }

    /// The record of a node's entry.
    fn record(&mut self, path: &str, cid: &Cid) -> Result<(), Stop<E>> {
        let damaged = || IndexError::Row { table: "records" };
        let key = self.repo.key(&[path.as_bytes()]);
        let row = match self.records.get(key.as_slice())? {
            Some(row) => RecordRow::decode(row.value())?,
            None => return Err(damaged().into()),
        };
        if row.cid != *cid {
            return Err(damaged().into());
        }
        self.give_new(&row)
    }

    /// The records in the place of a leaf.
    fn leaf(&mut self, place: &NodePlace<'_>) -> Result<(), Stop<E>> {
        let (low, high) = records_in(self.repo, place);
        let range = (low.as_ref().map(Vec::as_slice), Bound::Excluded(high.as_slice()));
        for row in self.records.range::<&[u8]>(range)? {
            let row = RecordRow::decode(row?.1.value())?;
            self.give_new(&row)?;
        }
        Ok(())
    }

    fn give_new(&mut self, row: &RecordRow) -> Result<(), Stop<E>> {
        if row.rev.to_u64() <= self.since {
            return Ok(());
        }
        self.give(ChangedBlock::Record {
            cid: &row.cid,
            location: row.location,
        })
    }
}
