//! `pds standby`: follows the writer, serves reads and the firehose, and becomes the writer by command or when there is none.
//!
//! When the writer has compacted the log in the replica and has put a checkpoint behind that, the standby begins anew in the same
//! process: it takes what is there now, most of it by name only. Until then it answers from what it has; what is away and gone from the
//! replica is answered 503.

use std::sync::Arc;
use std::time::Duration;

use shipper::fence::Claim;
use shipper::lease::Observed;
use shipper::store::ReplicaStore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::pursuit::Pursuit;
use super::{ServerError, millis};
use crate::app::App;

/// How often a standby says that it is there.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(20);
/// How often it looks whether there is a writer, at most.
const LEASE_LOOK: Duration = Duration::from_secs(15);

/// Why a standby follows no more.
pub(super) enum Followed {
    /// It was told to stop.
    Stopped,
    /// It is the writer now.
    Promoted(Box<Claim>),
    /// Its log must be taken from the replica anew, and then promoted at once or not.
    Anew { promote: bool },
}

/// Follows until it is promoted. Ends with an error if the replica cannot be followed any more.
pub(super) async fn until_promoted(
    pursuit: &mut Pursuit,
    app: &Arc<App>,
    stop: &CancellationToken,
) -> Result<Followed, ServerError> {
    let settings = app.config.succession.clone();
    let store: Arc<dyn ReplicaStore> = pursuit.store.clone();
    let mut command = app.peers.promotion();
    let mut observed = Observed::default();
    let mut missing_since: Option<Instant> = None;
    let (mut lease_due, mut announce_due) = (Instant::now(), Instant::now());
    let id = standby_id(app);
    let why = loop {
        let more = pursuit.step().await?;
        if !more && pursuit.should_begin_anew() {
            tracing::info!("the writer has compacted the log; it is taken from the replica anew");
            return Ok(Followed::Anew { promote: false });
        }
        let now = Instant::now();
        if now >= lease_due {
            lease_due = now + LEASE_LOOK.min(settings.lease / 6);
            match observed.look(&*store, app.config.replica_timeout).await {
                Ok(Some(lease)) => {
                    missing_since = None;
                    pursuit.following.writer_at(&lease.url);
                }
                Ok(None) => {
                    let since = *missing_since.get_or_insert(now);
                    let after = settings.take_over_after;
                    if !after.is_zero() && now.duration_since(since) >= after {
                        break "there is no writer";
                    }
                }
                // Nothing is known of the writer while the store cannot be asked.
                Err(error) => {
                    missing_since = None;
                    tracing::debug!(%error, "the writer's lease cannot be read");
                }
            }
        }
        if now >= announce_due {
            announce_due = now + ANNOUNCE_EVERY;
            pursuit.announce(&id).await;
        }
        metrics::gauge!("pds_standby_lag_seconds").set(pursuit.following.lag_seconds());
        // Also behind a writer that never rests, somebody may want something.
        let pause = if more {
            Duration::ZERO
        } else {
            settings.standby_poll
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            promoted = &mut command => {
                if promoted.is_ok() {
                    break "by command";
                }
                command = app.peers.promotion();
            }
            () = stop.cancelled() => return Ok(Followed::Stopped),
        }
    };
    let begun = Instant::now();
    tracing::info!(why, "taking over from the writer");
    let Some(claim) = pursuit.take_over().await? else {
        tracing::info!("the writer has compacted the log; it is taken from the replica anew and then led");
        return Ok(Followed::Anew { promote: true });
    };
    tracing::info!(ms = millis(begun.elapsed()), "took over");
    Ok(Followed::Promoted(Box::new(claim)))
}

/// A name for this process that tells it from others on the replica.
fn standby_id(app: &App) -> String {
    let mut bytes = [0u8; 8];
    // Without randomness two standbys may look like one, which is all.
    let _no_randomness = app.engine.entropy().fill(&mut bytes);
    format!("standby-{}", data_encoding::HEXLOWER.encode(&bytes))
}
