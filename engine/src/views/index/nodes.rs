//! The nodes of one repo's tree, out of one snapshot of the index.

use bytes::Bytes;

use super::reader::IndexReader;
use super::rows::{NodeRow, PREFIX_BYTES, RecordRow, RepoKey, node_digest, text_in_key};
use super::{IndexError, NODES, RECORDS};
use crate::repo::Cid;
use crate::repo::mst::{NodeSource, NodeSourceError, encode_leaf, key_layer};

/// A [`NodeSource`] for one repo. Nodes of layer 1 and above are stored; a leaf is rebuilt from the records that start
/// at its first key and end before the next key of a higher layer. Every block is compared with its CID before it is
/// given out, so that a truncated digest or a damaged row shows as such.
#[derive(Clone, Debug)]
pub struct RepoNodes {
    reader: IndexReader,
    repo: RepoKey,
}

impl RepoNodes {
    pub(super) fn new(reader: IndexReader, repo: RepoKey) -> RepoNodes {
        RepoNodes { reader, repo }
    }

    /// The snapshot that the nodes come from.
    #[must_use]
    pub fn reader(&self) -> &IndexReader {
        &self.reader
    }

    fn block(&self, cid: &Cid) -> Result<Option<Vec<u8>>, IndexError> {
        let nodes = self.reader.transaction().open_table(NODES)?;
        let Some(row) = nodes.get(self.repo.key(&[&node_digest(cid)]).as_slice())? else {
            return Ok(None);
        };
        match NodeRow::decode(row.value())? {
            NodeRow::Interior(block) => Ok(Some(block.to_vec())),
            NodeRow::Leaf([]) => Ok(Some(encode_leaf([]))),
            NodeRow::Leaf(first_key) => self.leaf(first_key).map(Some),
        }
    }

    fn leaf(&self, first_key: &[u8]) -> Result<Vec<u8>, IndexError> {
        let records = self.reader.transaction().open_table(RECORDS)?;
        let from = self.repo.key(&[first_key]);
        let mut entries: Vec<(String, Cid)> = Vec::new();
        for row in records.range(from.as_slice()..self.repo.end().as_slice())? {
            let (key, row) = row?;
            let path = text_in_key(key.value(), PREFIX_BYTES, "records")?;
            if key_layer(path) > 0 {
                break;
            }
            entries.push((path.to_owned(), RecordRow::decode(row.value())?.cid));
        }
        Ok(encode_leaf(
            entries.iter().map(|(path, cid)| (path.as_str(), cid)),
        ))
    }
}

impl NodeSource for RepoNodes {
    fn node(&self, cid: &Cid) -> Result<Bytes, NodeSourceError> {
        match self.block(cid) {
            Ok(Some(block)) if cid.matches(&block) => Ok(block.into()),
            Ok(Some(_)) => Err(NodeSourceError::Corrupt(
                "the index's rows give another node".to_owned(),
            )),
            Ok(None) => Err(NodeSourceError::Missing),
            Err(error @ (IndexError::Row { .. } | IndexError::Unusable { .. })) => {
                Err(NodeSourceError::Corrupt(error.to_string()))
            }
            Err(error) => Err(NodeSourceError::Io(error.to_string())),
        }
    }
}
