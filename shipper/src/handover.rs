//! The request of one server to take a reign over from the server that has it.
//!
//! `handover/<epoch, 16 hex>` is created if absent, so a reign has one asker at most; who asks second waits for the first. It
//! decides nothing: the writer that sees it ends its reign with a hand-over chunk, and the asker claims as anybody would. A
//! writer that does not answer is fenced by that claim.
//!
//! ```json
//! {"asker":"<32 hex>","url":"http://10.0.0.7:2583","format":2,"askedAtMicros":1767225600000000}
//! ```

use std::sync::Arc;
use std::time::Duration;

use engine::log::Epoch;
use serde::{Deserialize, Serialize};

use crate::names::WriterId;
use crate::requests::Requests;
use crate::store::{Created, ObjectName, ReplicaStore, StoreError};

/// Prefix of all requests.
pub const HANDOVER_PREFIX: &str = "handover/";
/// Grows whenever any format in a replica does: a server asks only a writer whose number is not above its own. 2 since manifests of
/// format 2.
pub const REPLICA_FORMAT: u32 = 2;
/// Most bytes of a request that a reader accepts.
const MAX_BYTES: u64 = 4_096;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HandOverRequest {
    /// The asking process, 32 hex digits.
    pub asker: String,
    /// Where it answers, for requests that the old writer holds; empty if they cannot be sent on.
    pub url: String,
    /// The newest format that it knows.
    pub format: u32,
    /// When it asked, microseconds since 1970.
    pub asked_at_micros: u64,
}

/// What became of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// We are the one who asks.
    Ours,
    /// Another server asked first.
    Another,
}

fn name(epoch: Epoch) -> Result<ObjectName, StoreError> {
    Ok(ObjectName::new(format!("{HANDOVER_PREFIX}{:016x}", epoch.0))?)
}

/// Asks for the reign `epoch`.
///
/// # Errors
/// The store failed; the request may be there or not, and asking again is safe.
pub async fn ask(
    store: &Arc<dyn ReplicaStore>,
    request_timeout: Duration,
    epoch: Epoch,
    asker: WriterId,
    request: &HandOverRequest,
) -> Result<Asked, StoreError> {
    let requests = Requests::new(store.clone(), request_timeout);
    let object = serde_json::to_vec(request).map_err(|error| StoreError::Invalid {
        detail: error.to_string(),
    })?;
    if requests.create(&name(epoch)?, object.into()).await? == Created::Created {
        return Ok(Asked::Ours);
    }
    let there = look(store, request_timeout, epoch).await?;
    let ours = there.is_some_and(|there| there.asker == asker.to_string());
    Ok(if ours { Asked::Ours } else { Asked::Another })
}

/// The request for the reign `epoch`, if there is one. What cannot be read as one counts as none. One GET.
///
/// # Errors
/// The store failed.
pub async fn look(
    store: &Arc<dyn ReplicaStore>,
    request_timeout: Duration,
    epoch: Epoch,
) -> Result<Option<HandOverRequest>, StoreError> {
    let requests = Requests::new(store.clone(), request_timeout);
    match requests.get(&name(epoch)?, MAX_BYTES).await {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes the request for a reign that is over.
///
/// # Errors
/// The store failed; it costs nothing but an object that is left.
pub async fn forget(
    store: &Arc<dyn ReplicaStore>,
    request_timeout: Duration,
    epoch: Epoch,
) -> Result<(), StoreError> {
    Requests::new(store.clone(), request_timeout)
        .delete(&name(epoch)?)
        .await
}

#[cfg(test)]
mod tests;
