//! Letting go of what is kept for points in time, and verifying the checkpoints on which that depends. While nothing is due, no
//! request is made.

use std::time::Duration;

use engine::log::Lsn;

use super::Housekeeper;
use super::trouble::Trouble;
use crate::fence::ReplicaError;
use crate::manifest::CheckpointEntry;
use crate::requests::Requests;
use crate::retention::verify::{VerifyError, verify};
use crate::retention::{self, Rule};
use crate::store::counted::Purpose;
use crate::store::for_purpose;

/// The pause after a verification that could not be done.
const VERIFY_AGAIN: Duration = Duration::from_secs(600);

impl Housekeeper {
    /// The rule of retention at this moment.
    pub(super) fn rule(&self) -> Rule {
        let config = &self.shared.config;
        Rule::at(
            self.shared.clock.now_micros(),
            config.pitr_window,
            config.protect.position(),
        )
    }

    /// Publishes a manifest without what nobody needs any more, if there is such a thing, and verifies a checkpoint if one is due.
    pub(super) async fn retain(&mut self) -> Result<(), Trouble> {
        if retention::anything_ends(&self.manifest, &self.rule()) {
            self.publish(|_| {}).await?;
        }
        let now = self.shared.clock.now_micros();
        let window = self.shared.config.pitr_window;
        let early = |from: tokio::time::Instant| tokio::time::Instant::now() < from;
        match retention::to_verify(&self.manifest, now, window).cloned() {
            Some(due)
                if self.damaged != Some(Lsn::saturating(due.lsn)) && !self.verify_from.is_some_and(early) =>
            {
                self.verify(due).await
            }
            _ => Ok(()),
        }
    }

    async fn verify(&mut self, checkpoint: CheckpointEntry) -> Result<(), Trouble> {
        let shared = &self.shared;
        let temp_dir = &shared.config.temp_dir;
        let lsn = checkpoint.lsn;
        let store = for_purpose(shared.requests.store(), Purpose::Scrub);
        let requests = Requests::new(store, shared.config.request_timeout);
        match verify(&requests, &checkpoint, shared.claim.log_id, temp_dir).await {
            Ok(counted) => {
                metrics::counter!("pds_checkpoints_verified_total", "outcome" => "good").increment(1);
                tracing::info!(
                    lsn,
                    repos = counted.repos,
                    accounts = counted.accounts,
                    "a checkpoint was read back from the replica"
                );
                let now = shared.clock.now_micros();
                self.publish(|manifest| {
                    let verified = manifest.checkpoints.iter_mut().find(|there| there.lsn == lsn);
                    if let Some(verified) = verified.filter(|there| there.files == checkpoint.files) {
                        verified.verified_at_micros = now;
                    }
                })
                .await
            }
            Err(error @ VerifyError::Damaged { .. }) => {
                metrics::counter!("pds_checkpoints_verified_total", "outcome" => "damaged").increment(1);
                let text = shared.note_error(&error);
                tracing::error!(
                    "{text}; a restore does without it, and nothing that it would replace is deleted"
                );
                self.damaged = Some(Lsn::saturating(lsn));
                Ok(())
            }
            Err(VerifyError::Store(error)) => {
                self.verify_from = Some(tokio::time::Instant::now() + VERIFY_AGAIN);
                Err(Trouble::Replica(ReplicaError::Store(error)))
            }
            Err(error @ VerifyError::Local(_)) => {
                self.verify_from = Some(tokio::time::Instant::now() + VERIFY_AGAIN);
                let text = shared.note_error(&error);
                tracing::warn!(
                    "a checkpoint in the replica was not verified and is tried again later: {text}"
                );
                Ok(())
            }
        }
    }
}
