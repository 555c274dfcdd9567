//! Undo a commit's operations, with nothing but the nodes that the commit came with.

use super::{NodeSource, Tree, TreeError};
use crate::repo::cid::Cid;
use std::collections::HashSet;

/// One operation of a commit: `value` is the record after it, `previous` the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change<'a> {
    /// `collection/rkey`.
    pub key: &'a str,
    /// The record there now; none if the operation deleted it.
    pub value: Option<Cid>,
    /// The record that was there; none if the operation created it.
    pub previous: Option<Cid>,
}

/// Why operations cannot be undone. All but a source that could not read mean that the commit is not sound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvertError {
    /// The tree does not let it: a node is missing from the proof or unsound, or a key is there that should not be,
    /// or the other way round.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The tree has another record at the key than the operation says.
    #[error("{key} is {found} in the tree, not what the operation says")]
    Mismatch {
        /// The operation's key.
        key: String,
        /// The record that the tree has there.
        found: Cid,
    },
    /// Two operations on one key.
    #[error("two operations on {0}")]
    Duplicate(String),
    /// An operation with neither a record before nor one after.
    #[error("the operation on {0} says nothing")]
    Nothing(String),
}

/// Undoes `changes` in the tree with this root, and gives the root before them. `source` needs to hold no more than
/// the covering proof. The commit is sound if the result is its `prevData`.
///
/// # Errors
/// See [`InvertError`].
pub fn invert(changes: &[Change<'_>], root: Cid, source: &dyn NodeSource) -> Result<Cid, InvertError> {
    let mut keys = HashSet::with_capacity(changes.len());
    if let Some(twice) = changes.iter().find(|change| !keys.insert(change.key)) {
        return Err(InvertError::Duplicate(twice.key.to_owned()));
    }
    let mut tree = Tree::open(root);
    // Deletions come back first, so that what is then removed has its old neighbours.
    let (deletes, others): (Vec<&Change<'_>>, Vec<&Change<'_>>) =
        changes.iter().partition(|change| change.value.is_none());
    for change in deletes.into_iter().chain(others) {
        let undone = match (change.previous, change.value) {
            (Some(previous), Some(_)) => Some(tree.update(change.key, previous, source)?),
            (None, Some(_)) => Some(tree.remove(change.key, source)?),
            (Some(previous), None) => {
                tree.insert(change.key, previous, source)?;
                None
            }
            (None, None) => return Err(InvertError::Nothing(change.key.to_owned())),
        };
        if let Some(found) = undone
            && undone != change.value
        {
            return Err(InvertError::Mismatch {
                key: change.key.to_owned(),
                found,
            });
        }
    }
    Ok(tree.flush().root)
}
