//! Build a tree from its records in key order: each node is encoded once, as soon as it is complete.

use super::key::{is_valid_key, key_layer};
use super::wire::encode_node;
use crate::repo::cid::Cid;
use std::sync::Arc;

/// A complete node of a tree under construction. Children come before their parents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltNode {
    /// Its address.
    pub cid: Cid,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// 0 for a leaf.
    pub layer: u8,
    /// The first key in the node itself; none in a node that only passes on, and in an empty root.
    pub first_key: Option<Arc<str>>,
}

/// Why a tree could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError<E> {
    /// [`is_valid_key`](super::is_valid_key) refuses the key.
    #[error("not a key of a repository tree: {0:?}")]
    InvalidKey(String),
    /// The key is not after the one before.
    #[error("{0} is out of order")]
    Order(String),
    /// What the receiver of the nodes answered.
    #[error(transparent)]
    Sink(E),
}

/// Takes records in key order and gives nodes to whom each call names. Holds the incomplete nodes of one path.
#[derive(Default)]
pub struct Spine {
    last: Option<Arc<str>>,
    /// The incomplete node of each layer, lowest first.
    open: Vec<Open>,
}

impl std::fmt::Debug for Spine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spine")
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

/// A [`Spine`] whose nodes all go to one place.
pub struct Builder<F> {
    sink: F,
    spine: Spine,
}

#[derive(Default)]
struct Open {
    entries: Vec<(Arc<str>, Cid)>,
    /// `links[i]` hangs before `entries[i]`; what comes after the last entry is known when the node is complete.
    links: Vec<Option<Cid>>,
}

/// Builds the tree of these records, gives every node to `sink`, and answers the root.
///
/// # Errors
/// See [`BuildError`].
pub fn build_from_sorted<'k, E>(
    entries: impl IntoIterator<Item = (&'k str, Cid)>,
    sink: impl FnMut(BuiltNode) -> Result<(), E>,
) -> Result<Cid, BuildError<E>> {
    let mut builder = Builder::new(sink);
    for (key, value) in entries {
        builder.push(key, value)?;
    }
    builder.finish()
}

impl<E, F: FnMut(BuiltNode) -> Result<(), E>> Builder<F> {
    /// Starts a tree whose nodes go to `sink`.
    pub fn new(sink: F) -> Builder<F> {
        Builder {
            sink,
            spine: Spine::default(),
        }
    }

    /// Adds the next record.
    ///
    /// # Errors
    /// See [`BuildError`]. After an error the builder is of no more use.
    pub fn push(&mut self, key: &str, value: Cid) -> Result<(), BuildError<E>> {
        self.spine.push(key, value, &mut self.sink)
    }

    /// Completes the tree and gives its root.
    ///
    /// # Errors
    /// [`BuildError::Sink`].
    pub fn finish(mut self) -> Result<Cid, BuildError<E>> {
        self.spine.finish(&mut self.sink)
    }
}

impl Spine {
    /// Adds the next record; nodes that it completes go to `sink`.
    ///
    /// # Errors
    /// See [`BuildError`]. After an error the spine is of no more use.
    pub fn push<E>(
        &mut self,
        key: &str,
        value: Cid,
        sink: &mut impl FnMut(BuiltNode) -> Result<(), E>,
    ) -> Result<(), BuildError<E>> {
        if !is_valid_key(key) {
            return Err(BuildError::InvalidKey(key.to_owned()));
        }
        if self.last.as_deref().is_some_and(|last| last >= key) {
            return Err(BuildError::Order(key.to_owned()));
        }
        let layer = key_layer(key);
        let before = self.close_below(layer, sink)?;
        let key: Arc<str> = key.into();
        self.last = Some(Arc::clone(&key));
        if self.open.len() <= usize::from(layer) {
            self.open.resize_with(usize::from(layer) + 1, Open::default);
        }
        if let Some(open) = self.open.get_mut(usize::from(layer)) {
            open.links.push(before);
            open.entries.push((key, value));
        }
        Ok(())
    }

    /// Completes the tree and gives its root; the spine is empty again then.
    ///
    /// # Errors
    /// [`BuildError::Sink`].
    pub fn finish<E>(
        &mut self,
        sink: &mut impl FnMut(BuiltNode) -> Result<(), E>,
    ) -> Result<Cid, BuildError<E>> {
        // The highest layer that was ever opened has entries, so its node is the root.
        let layers = u8::try_from(self.open.len()).unwrap_or(u8::MAX);
        let root = self.close_below(layers, sink)?;
        *self = Spine::default();
        match root {
            Some(root) => Ok(root),
            None => emit(0, Open::default(), None, sink),
        }
    }

    /// Completes the open nodes below a layer; the topmost of them is what hangs in that layer.
    fn close_below<E>(
        &mut self,
        layer: u8,
        sink: &mut impl FnMut(BuiltNode) -> Result<(), E>,
    ) -> Result<Option<Cid>, BuildError<E>> {
        let mut after = None;
        for below in 0..layer {
            let open = self
                .open
                .get_mut(usize::from(below))
                .map(std::mem::take)
                .unwrap_or_default();
            if !open.entries.is_empty() || after.is_some() {
                after = Some(emit(below, open, after, sink)?);
            }
        }
        Ok(after)
    }
}

fn emit<E>(
    layer: u8,
    open: Open,
    after: Option<Cid>,
    sink: &mut impl FnMut(BuiltNode) -> Result<(), E>,
) -> Result<Cid, BuildError<E>> {
    let mut links = open.links.into_iter().chain(std::iter::once(after));
    let left = links.next().flatten();
    let rest: Vec<Option<Cid>> = links.collect();
    let entries = open.entries.iter().zip(rest);
    let bytes = encode_node(left, entries.map(|((key, value), right)| (&**key, value, right)));
    let cid = Cid::for_dag_cbor(&bytes);
    let first_key = open.entries.first().map(|(key, _)| Arc::clone(key));
    sink(BuiltNode {
        cid,
        bytes,
        layer,
        first_key,
    })
    .map_err(BuildError::Sink)?;
    Ok(cid)
}
