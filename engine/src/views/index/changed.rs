//! What changed in a repo since a rev, without a look at what did not.

use std::ops::Bound;

use redb::ReadOnlyTable;

use super::nodes::{FoundKind, RepoNodes, records_in};
use super::reader::IndexReader;
use super::rows::{PREFIX_BYTES, RecordRow, RepoKey, text_in_key};
use super::{Bytes, IndexError, RecordBytes};
use crate::log::Location;
use crate::repo::mst::{NodeData, NodePlace};
use crate::repo::{Cid, Did, Nsid, Tid};

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
        /// Where it is in the repo.
        path: &'a str,
        /// The commit that made it what it is.
        rev: Tid,
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
        self.changed_in(did, since, None, take)
    }

    /// The same for one collection: its records, and nodes in whose place some of its records may be. Nodes that only others lie
    /// below are not looked at.
    ///
    /// # Errors
    /// See [`Stop`].
    pub fn changed_in<E>(
        &self,
        did: &Did,
        since: Tid,
        collection: Option<&Nsid>,
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
            // `0` follows `/`.
            within: collection.map(|name| (format!("{name}/"), format!("{name}0"))),
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
    /// The first path that is of interest and the first after them, if not all are.
    within: Option<(String, String)>,
    take: T,
}

impl<E, T: FnMut(ChangedBlock<'_>) -> Result<(), E>> Pass<'_, T> {
    fn give(&mut self, block: ChangedBlock<'_>) -> Result<(), Stop<E>> {
        (self.take)(block).map_err(Stop::Taker)
    }

    /// Whether something of interest may lie in a place.
    fn may_hold(&self, place: &NodePlace<'_>) -> bool {
        self.within.as_ref().is_none_or(|(first, end)| {
            place.high.is_none_or(|high| high > first.as_str())
                && place.low.is_none_or(|low| low < end.as_str())
        })
    }

    fn is_wanted(&self, path: &str) -> bool {
        let within = self.within.as_ref();
        within.is_none_or(|(first, end)| (first.as_str()..end.as_str()).contains(&path))
    }

    fn subtree(&mut self, cid: &Cid, place: &NodePlace<'_>) -> Result<(), Stop<E>> {
        if !self.may_hold(place) {
            return Ok(());
        }
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
        if !self.is_wanted(path) {
            return Ok(());
        }
        let damaged = || IndexError::Row { table: "records" };
        let key = self.repo.key(&[path.as_bytes()]);
        let row = match self.records.get(key.as_slice())? {
            Some(row) => RecordRow::decode(row.value())?,
            None => return Err(damaged().into()),
        };
        if row.cid != *cid {
            return Err(damaged().into());
        }
        self.give_new(path, &row)
    }

    /// The records in the place of a leaf.
    fn leaf(&mut self, place: &NodePlace<'_>) -> Result<(), Stop<E>> {
        let (low, high) = records_in(self.repo, place);
        let range = (low.as_ref().map(Vec::as_slice), Bound::Excluded(high.as_slice()));
        for row in self.records.range::<&[u8]>(range)? {
            let (key, row) = row?;
            let path = text_in_key(key.value(), PREFIX_BYTES, "records")?;
            if self.is_wanted(path) {
                self.give_new(path, &RecordRow::decode(row.value())?)?;
            }
        }
        Ok(())
    }

    fn give_new(&mut self, path: &str, row: &RecordRow) -> Result<(), Stop<E>> {
        if row.rev.to_u64() <= self.since {
            return Ok(());
        }
        self.give(ChangedBlock::Record {
            path,
            rev: row.rev,
            cid: &row.cid,
            location: row.location,
        })
    }
}
