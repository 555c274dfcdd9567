//! Stored nodes of a repo's tree, and what is done when one of them is damaged.
//!
//! A node that is missing or wrong is no reason to refuse the write: the records are the truth, and the nodes are built
//! from them anew, once in a while at most. That passes over the whole repo, so it has a thread of its own kind; one repo is
//! healed at a time, and nobody else waits for it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::repo::mst::{NodePlace, NodeSource, NodeSourceError};
use engine::repo::{Cid, Did, Subject};
use engine::views::index::{IndexError, IndexReader, Rebuilt, RepoNodes};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::{Shared, WriteError};

/// How long after a repo's nodes were built anew they are not built again.
const HEAL_AGAIN: Duration = Duration::from_secs(60);
/// Repos that are healed within [`HEAL_AGAIN`] at most: where there are more, the index as a whole is damaged.
const HEALED_MAX: usize = 1024;

/// The stored nodes of one repo, out of a snapshot that is taken when the first one is asked for: a repo that was written to
/// lately has what it needs in memory.
pub(super) struct Nodes<'a> {
    shared: &'a Shared,
    did: &'a Did,
    reader: RefCell<Option<IndexReader>>,
    snapshot: RefCell<Option<RepoNodes>>,
    damage: RefCell<Option<NodeSourceError>>,
}

impl<'a> Nodes<'a> {
    pub(super) fn new(shared: &'a Shared, did: &'a Did) -> Nodes<'a> {
        Nodes {
            shared,
            did,
            reader: RefCell::default(),
            snapshot: RefCell::default(),
            damage: RefCell::default(),
        }
    }

    /// What was found damaged since this was last asked.
    pub(super) fn take_damage(&self) -> Option<NodeSourceError> {
        self.damage.borrow_mut().take()
    }

    fn reader(&self) -> Result<IndexReader, IndexError> {
        let mut reader = self.reader.borrow_mut();
        if let Some(reader) = &*reader {
            return Ok(reader.clone());
        }
        Ok(reader.insert(self.shared.engine.reader()?).clone())
    }

    /// The keys of the records about `subject` in the snapshot, at most `limit`.
    pub(super) fn about(&self, subject: &Subject, limit: usize) -> Result<Vec<String>, WriteError> {
        self.reader()
            .and_then(|reader| reader.about(self.did, subject, limit))
            .map_err(|error| WriteError::Internal(error.to_string()))
    }

    fn stored(&self, cid: &Cid, place: &NodePlace<'_>) -> Result<bytes::Bytes, NodeSourceError> {
        let mut snapshot = self.snapshot.borrow_mut();
        if let Some(nodes) = &*snapshot {
            return nodes.node(cid, place);
        }
        let io = |error: IndexError| NodeSourceError::Io(error.to_string());
        let reader = self.reader().map_err(io)?;
        let nodes = reader.nodes(self.did).map_err(io)?;
        snapshot
            .insert(nodes.ok_or(NodeSourceError::Missing)?)
            .node(cid, place)
    }
}

impl NodeSource for Nodes<'_> {
    fn node(&self, cid: &Cid, place: &NodePlace<'_>) -> Result<bytes::Bytes, NodeSourceError> {
        let outcome = self.stored(cid, place);
        if let Err(damage @ (NodeSourceError::Missing | NodeSourceError::Corrupt(_))) = &outcome {
            *self.damage.borrow_mut() = Some(damage.clone());
        }
        outcome
    }
}

/// Which repos had their nodes built anew lately, so that a repo that cannot be healed does not cost a pass over its
/// records with each request.
pub(super) struct Healing {
    tried: Mutex<HashMap<Did, Instant>>,
    turn: Semaphore,
}

impl Default for Healing {
    fn default() -> Healing {
        Healing {
            tried: Mutex::default(),
            turn: Semaphore::new(1),
        }
    }
}

impl Healing {
    fn may(&self, did: &Did) -> bool {
        let mut tried = self.tried.lock();
        tried.retain(|_, at| at.elapsed() < HEAL_AGAIN);
        if tried.contains_key(did) || tried.len() >= HEALED_MAX {
            return false;
        }
        tried.insert(did.clone(), Instant::now());
        true
    }
}

/// Builds the nodes of a repo anew, unless that was tried lately; answers whether they are there again.
pub(super) async fn heal(shared: &Arc<Shared>, did: &Did, damage: &NodeSourceError) -> bool {
    if !shared.healing.may(did) {
        return false;
    }
    tracing::error!(%did, %damage, "a node of a repo's tree is damaged; its nodes are built anew");
    metrics::counter!("pds_trees_rebuilt_total").increment(1);
    let Ok(_turn) = shared.healing.turn.acquire().await else {
        return false;
    };
    let (work, of) = (shared.clone(), did.clone());
    match tokio::task::spawn_blocking(move || work.engine.rebuild_nodes(&of)).await {
        Ok(Ok(Rebuilt::Sound)) => true,
        Ok(Ok(found)) => {
            metrics::counter!("pds_trees_beyond_repair_total").increment(1);
            tracing::error!(
                %did, ?found,
                "the records of a repo do not give the tree that was signed, so it takes no writes: stop the server, delete \
                 index.redb and start again, which builds the index from the log; if this is said again, restore the log \
                 from the replica (`pds-tools restore`)"
            );
            false
        }
        Ok(Err(error)) => {
            tracing::error!(%did, %error, "the nodes of a repo cannot be built anew");
            false
        }
        Err(error) => {
            tracing::error!(%did, %error, "the nodes of a repo were not built anew");
            false
        }
    }
}
