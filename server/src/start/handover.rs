//! The writer's side of a hand-over: it sees the request, lets writes wait, ships everything, ends its reign, and sends what
//! waited on to the new writer.
//!
//! | goes wrong | what happens |
//! |---|---|
//! | some writes do not end in time | they are answered that their outcome is unknown, like at any stop |
//! | not everything can be shipped | the process ends with an error; its next start ships the rest, as after a crash |
//! | the new writer does not come | the process ends with an error; its next start finds the reign ended and claims anew |
//! | the new writer cannot be reached | requests are answered 503 with Retry-After, and find it under the public name |

use std::sync::Arc;
use std::time::Duration;

use engine::log::Epoch;
use shipper::handover::{self, HandOverRequest, REPLICA_FORMAT};
use shipper::standby::{self, Holder};
use shipper::store::ReplicaStore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::running::Running;
use super::{ServerError, millis};
use crate::app::App;
use crate::gate::{Gate, Successor};

/// How long writes that were let in may take to be answered before the reign ends without them.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// How long everything may take to be shipped.
const SHIP_LIMIT: Duration = Duration::from_secs(30);
/// How long requests wait for the new writer; after that they are told to come again.
const HOLD_LIMIT: Duration = Duration::from_secs(15);
/// How long the new writer may take to claim before this server gives up waiting for it.
const CLAIM_LIMIT: Duration = Duration::from_secs(60);
/// How long a server that is told to stop still waits for the new one.
const STOP_LIMIT: Duration = Duration::from_secs(3);
/// The pause between two looks whether the new writer takes requests.
const READY_LOOK: Duration = Duration::from_millis(20);

/// Resolves when somebody asks for our reign. Looks now and then, and when it is told to.
pub(super) async fn request(app: Arc<App>, store: Arc<dyn ReplicaStore>, epoch: Epoch) -> HandOverRequest {
    let (poll, limit) = (app.config.succession.handover_poll, app.config.replica_timeout);
    let mut refused: Option<String> = None;
    loop {
        tokio::select! {
            () = tokio::time::sleep(poll) => {}
            () = app.peers.poked.notified() => {}
        }
        match handover::look(&store, limit, epoch).await {
            Ok(Some(request)) if request.format < REPLICA_FORMAT => {
                if refused.as_ref() != Some(&request.asker) {
                    tracing::warn!(
                        asker = request.asker,
                        format = request.format,
                        "a server of an older format asks for the hand-over; it could not read what this one wrote"
                    );
                    refused = Some(request.asker);
                }
            }
            Ok(Some(request)) => return request,
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "looking for a request to hand over"),
        }
    }
}

impl Running {
    /// Hands the reign over and sends requests on until `stop`.
    pub(super) async fn hand_over(
        &mut self,
        request: &HandOverRequest,
        gate: &Gate,
        stop: &CancellationToken,
    ) -> Result<(), ServerError> {
        let started = Instant::now();
        tracing::info!(to = request.url, "another server takes over; writes wait");
        if !gate.hold(DRAIN_LIMIT).await {
            tracing::warn!("some writes take too long and are not waited for");
        }
        self.work.cancel();
        let ended = self.end_reign(SHIP_LIMIT).await;
        self.release_lease().await;
        if let Err(error) = ended {
            gate.shut();
            return Err(error);
        }
        tracing::info!(ms = millis(started.elapsed()), "the reign is handed over");
        let passed = self.pass_on(request, gate, stop).await;
        // Subscribers begin anew at their cursor, at the new writer.
        self.background.cancel();
        passed?;
        stop.cancelled().await;
        Ok(())
    }

    /// Waits until the new writer takes requests, and sends ours there; or until it is clear that nobody comes.
    async fn pass_on(
        &self,
        request: &HandOverRequest,
        gate: &Gate,
        stop: &CancellationToken,
    ) -> Result<(), ServerError> {
        let begun = Instant::now();
        let successor = match request.url.as_str() {
            "" => None,
            url => match Successor::new(url) {
                Ok(successor) => Some(successor),
                Err(error) => {
                    tracing::warn!(%error, "requests cannot be sent on");
                    None
                }
            },
        };
        if successor.is_none() {
            gate.shut();
        }
        let mut told = false;
        let mut until = begun + CLAIM_LIMIT;
        let mut stopping = false;
        while Instant::now() < until {
            match &successor {
                Some(successor) if successor.is_ready().await => {
                    tracing::info!(
                        ms = millis(begun.elapsed()),
                        "the new writer answers; requests are sent on"
                    );
                    gate.pass_on(successor.clone());
                    return Ok(());
                }
                Some(_) => {}
                None if self.is_claimed().await => return Ok(()),
                None => {}
            }
            if !told && begun.elapsed() >= HOLD_LIMIT {
                told = true;
                gate.shut();
            }
            let pause = if told || successor.is_none() {
                READY_LOOK * 25
            } else {
                READY_LOOK
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // A platform ends us as soon as the new one is ready, which may be before we have seen that it is: what waits is
                // sent on first.
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    until = until.min(Instant::now() + STOP_LIMIT);
                }
            }
        }
        gate.shut();
        if stopping {
            return Ok(());
        }
        if self.is_claimed().await {
            return Ok(());
        }
        Err(ServerError::Other(
            "the server that asked for the hand-over did not take over; start again to go on as the writer"
                .to_owned(),
        ))
    }

    /// Whether somebody has begun a reign after ours. A store that does not answer counts as yes: nothing is lost by waiting.
    async fn is_claimed(&self) -> bool {
        let Some((store, options)) = &self.replica else {
            return false;
        };
        match standby::holder(store, options).await {
            Ok(Holder::Nobody) => false,
            Ok(Holder::Another { .. }) => true,
            Err(error) => {
                tracing::debug!(%error, "looking for the new writer's claim");
                true
            }
        }
    }
}
