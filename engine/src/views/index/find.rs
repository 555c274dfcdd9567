//! Blocks of a repo by nothing but their CIDs.
//!
//! The index is not keyed by CID: such keys scatter over the whole table, so that every commit would touch pages of its own,
//! for a question that hardly anybody asks. It is answered by a pass over the repo.

use std::collections::HashSet;
use std::time::Instant;

use bytes::Bytes;

use super::IndexError;
use super::nodes::RepoNodes;
use super::reader::IndexReader;
use super::rows::{RecordRow, RepoKey};
use crate::log::Location;
use crate::repo::mst::{StreamError, StreamItem, StreamRecord, stream};
use crate::repo::{Cid, Did};

/// Rows between two looks at the clock.
const ROWS_PER_LOOK: usize = 4096;

/// Where a block's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockPlace {
    /// A record, in the log.
    Record(Location),
    /// A node of the tree, whole.
    Node(Bytes),
    /// The current commit, in the log.
    Commit(Location),
}

/// Why blocks were not looked for to the end.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The database failed or is damaged.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A node of the tree is missing or damaged.
    #[error("the repo's tree: {0}")]
    Tree(String),
    /// The time was up.
    #[error("the repo is too big to be searched in the time that is given")]
    TimeUp,
}

impl IndexReader {
    /// Where those of the blocks `wanted` are that this repo has now, in no order: superseded nodes and commits and deleted
    /// records are gone. One pass over the repo's records, and one over its tree if some are left then; it gives up at
    /// `until`. Memory: the answer.
    ///
    /// # Errors
    /// See [`FindError`].
    pub fn find_blocks(
        &self,
        did: &Did,
        wanted: &[Cid],
        until: Instant,
    ) -> Result<Vec<(Cid, BlockPlace)>, FindError> {
        let Some((number, head)) = self.head(did)? else {
            return Ok(Vec::new());
        };
        let Some(at) = head.commit else {
            return Ok(Vec::new());
        };
        let mut left: HashSet<Cid> = wanted.iter().copied().collect();
        let mut found = Vec::new();
        if left.remove(&at.commit) {
            found.push((at.commit, BlockPlace::Commit(at.location)));
        }
        let repo = RepoKey {
            number,
            generation: head.generation,
        };
        self.find_records(repo, &mut left, &mut found, until)?;
        if left.is_empty() {
            return Ok(found);
        }
        self.find_nodes(did, repo, &at.data, &mut left, &mut found, until)?;
        Ok(found)
    }

    fn find_records(
        &self,
        repo: RepoKey,
        left: &mut HashSet<Cid>,
        found: &mut Vec<(Cid, BlockPlace)>,
        until: Instant,
    ) -> Result<(), FindError> {
        let records = self.records();
        let (from, to) = (repo.prefix(), repo.end());
        let rows = records
            .range(from.as_slice()..to.as_slice())
            .map_err(IndexError::from)?;
        for (at, row) in rows.enumerate() {
            if left.is_empty() {
                break;
            }
            look(at, until)?;
            let row = RecordRow::decode(row.map_err(IndexError::from)?.1.value())?;
            if left.remove(&row.cid) {
                found.push((row.cid, BlockPlace::Record(row.location)));
            }
        }
        Ok(())
    }

    fn find_nodes(
        &self,
        did: &Did,
        repo: RepoKey,
        root: &Cid,
        left: &mut HashSet<Cid>,
        found: &mut Vec<(Cid, BlockPlace)>,
        until: Instant,
    ) -> Result<(), FindError> {
        let rows = self.record_rows(did)?.map(|row| {
            let (key, row) = row.map_err(FindError::from).map_err(Some)?;
            Ok(StreamRecord {
                key,
                value: row.cid,
                place: (),
            })
        });
        let mut passed = 0;
        let nodes = RepoNodes::new(self.clone(), repo);
        let outcome = stream(root, &nodes, rows, |item| {
            passed += 1;
            look(passed, until).map_err(Some)?;
            if let StreamItem::Node { cid, bytes } = item
                && left.remove(cid)
            {
                found.push((*cid, BlockPlace::Node(Bytes::copy_from_slice(bytes))));
            }
            // All are found: that is no error, but the end.
            if left.is_empty() { Err(None) } else { Ok(()) }
        });
        match outcome {
            Ok(()) | Err(StreamError::Other(None)) => Ok(()),
            Err(StreamError::Other(Some(error))) => Err(error),
            Err(StreamError::Tree(error)) => Err(FindError::Tree(error.to_string())),
            Err(StreamError::Records(from)) => Err(FindError::Tree(format!(
                "the records are not its own from {from} on"
            ))),
        }
    }
}

fn look(at: usize, until: Instant) -> Result<(), FindError> {
    if at.is_multiple_of(ROWS_PER_LOOK) && Instant::now() >= until {
        return Err(FindError::TimeUp);
    }
    Ok(())
}
