//! What a start finds out from the replica before it opens anything.

use std::sync::Arc;
use std::time::Duration;

use shipper::lease::Lease;
use shipper::standby::{self, Holder, Standby};
use shipper::start::{StartOptions, Started};
use shipper::store::counted::Purpose;
use shipper::store::{ReplicaStore, StoreError, for_purpose};

use super::compose::{SHIP_DIR, agree, empty_dir};
use super::{ServerError, lease, pursuit};
use crate::config::Config;
use crate::gate::Gate;

/// How often what a start asks of the replica is tried again, and the first pause; each further one is twice as long. About fifteen
/// seconds in all: an expired token is renewed in that time, and whoever set a wrong key is told soon.
const START_TRIES: u32 = 5;
const START_PAUSE: Duration = Duration::from_millis(500);

/// Runs a step of the start again when the store refused it in a way that may pass. Every step is safe to repeat.
pub(super) async fn patiently<T, F>(mut step: impl FnMut() -> F) -> Result<T, ServerError>
where
    F: Future<Output = Result<T, ServerError>>,
{
    let mut pause = START_PAUSE;
    for _ in 0..START_TRIES {
        match step().await {
            Err(error) if may_pass(&error) => {
                tracing::warn!(%error, "the replica's store refused; trying again");
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            outcome => return outcome,
        }
    }
    step().await
}

/// Whether the store is the reason, and may answer otherwise in a moment.
fn may_pass(error: &ServerError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(store) = error.downcast_ref::<StoreError>() {
            return store.is_retryable()
                || matches!(
                    store,
                    StoreError::Denied { .. } | StoreError::Precondition { .. } | StoreError::Other { .. }
                );
        }
        cause = error.source();
    }
    false
}

/// What a start finds out before it opens anything.
pub(super) enum Beginning {
    /// There is no replica.
    Alone,
    /// The replica is ours.
    Claimed(Box<Started>),
    /// Another server's log is followed.
    Following(Box<Standby>, Option<Lease>),
}

/// Claims the replica, or prepares to follow its writer.
pub(super) async fn begin(
    config: &Config,
    replica: Option<&(Arc<dyn ReplicaStore>, StartOptions)>,
    gate: &Gate,
) -> Result<Beginning, ServerError> {
    let Some((store, options)) = replica else {
        if config.succession.standby {
            return Err(ServerError::Other(
                "a standby follows a replica: set PDS_REPLICA_URL".to_owned(),
            ));
        }
        return Ok(Beginning::Alone);
    };
    gate.phase("agreeing with the replica");
    let store = &for_purpose(store, Purpose::Start);
    let temp = config.data_dir.join(SHIP_DIR);
    let follow = async |lease| {
        gate.phase("following the writer");
        empty_dir(&temp).map_err(|error| ServerError::io(&temp, error))?;
        let standby = Box::pin(standby::begin(store, options, &temp)).await;
        let standby = standby.map_err(|error| ServerError::Standby(Box::new(error)))?;
        Ok(Beginning::Following(Box::new(standby), lease))
    };
    if config.succession.standby {
        return follow(None).await;
    }
    if !config.succession.handover_timeout.is_zero()
        && let Holder::Another { epoch, .. } = standby::holder(store, options).await.map_err(Box::new)?
        && let Some(lease) = pursuit::writer_of(store, options, epoch, &lease::instance(config)).await?
    {
        tracing::info!(
            epoch = epoch.0,
            at = lease.url,
            "there is a writer, which is asked to hand over"
        );
        return follow(Some(lease)).await;
    }
    Ok(Beginning::Claimed(Box::new(agree(store, options).await?)))
}
