//! Objects of a replica that its newest manifest does not name: what a crash or a failed deletion has left. Old manifests
//! apart, which name objects and hold none of their bytes, a replica without them has nothing but what it needs.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use engine::log::{Epoch, Lsn};

use crate::fence::{self, ReplicaError};
use crate::manifest::Manifest;
use crate::names::{
    self, CHECKPOINT_PREFIX, Generation, MANIFEST_PREFIX, Ordinal, SEGMENT_PREFIX, WAL_PREFIX,
};
use crate::plan;
use crate::requests::Requests;
use crate::store::{ReplicaStore, StoreError};

/// Manifests that stay before the newest.
pub(crate) const OLD_MANIFESTS: u64 = 3;
/// Most objects that are looked at per prefix.
const MAX_LOOKED_AT: usize = 1_000_000;

/// What a replica names, and what is there besides.
#[derive(Clone, Debug)]
pub struct Leftovers {
    /// The newest manifest.
    pub manifest: Manifest,
    /// Objects with data that it does not name. A server that is at work just now may be about to name some.
    pub objects: Vec<String>,
}

/// Looks at every object's name; `None` if there is no log. Changes nothing.
///
/// # Errors
/// The store failed, or what tells of the replica is damaged.
pub async fn leftovers(
    store: &Arc<dyn ReplicaStore>,
    request_timeout: Duration,
) -> Result<Option<Leftovers>, ReplicaError> {
    let Some(state) = fence::survey(store, request_timeout).await? else {
        return Ok(None);
    };
    let manifest = state.manifest;
    let requests = Requests::new(store.clone(), request_timeout);
    let mut objects = find(&requests, &manifest, Epoch(u64::MAX)).await?;
    objects.retain(|name| !name.starts_with(MANIFEST_PREFIX));
    Ok(Some(Leftovers { manifest, objects }))
}

/// Everything that the manifest, known to be the newest, does not name, and that nobody can name who reigned up to `epoch`.
pub(crate) async fn find(
    requests: &Requests,
    manifest: &Manifest,
    epoch: Epoch,
) -> Result<Vec<String>, StoreError> {
    let mut orphans = Vec::new();
    let named: HashSet<&str> = manifest.objects().collect();
    let listed = requests.list_all(WAL_PREFIX, None, MAX_LOOKED_AT).await?;
    let chunks: Vec<(Ordinal, u64)> = listed
        .iter()
        .filter_map(|object| Some((Ordinal::from_object_name(object.name.as_str())?, object.size)))
        .collect();
    orphans.extend(
        plan::deletable_chunks(manifest, &chunks)
            .into_iter()
            .map(Ordinal::object_name),
    );
    for object in requests.list_all(MANIFEST_PREFIX, None, MAX_LOOKED_AT).await? {
        let generation = Generation::from_object_name(object.name.as_str());
        if generation.is_some_and(|old| old.0 + OLD_MANIFESTS < manifest.generation) {
            orphans.push(object.name.as_str().to_owned());
        }
    }
    for object in requests.list_all(CHECKPOINT_PREFIX, None, MAX_LOOKED_AT).await? {
        let name = object.name.as_str();
        // A later reign's files may be on their way into a manifest that we have not seen yet.
        if !named.contains(name) && names::checkpoint_epoch(name).is_some_and(|by| by <= epoch) {
            orphans.push(name.to_owned());
        }
    }
    for object in requests.list_all(SEGMENT_PREFIX, None, MAX_LOOKED_AT).await? {
        let name = object.name.as_str();
        let base = name
            .get(SEGMENT_PREFIX.len()..)
            .and_then(|rest| rest.get(..16))
            .and_then(Lsn::from_hex);
        // A later reign's may be on their way into a manifest that we have not seen yet.
        let young = names::segment_epoch(name).is_some_and(|by| by > epoch);
        if !named.contains(name) && !young && base.is_some_and(|base| base <= manifest.covered_lsn()) {
            orphans.push(name.to_owned());
        }
    }
    Ok(orphans)
}
