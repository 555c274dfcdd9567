//! An engine that follows another writer's log, and becomes a writer.
//!
//! [`Engine::feed`] takes what that writer has put into the replica; watermarks, views, readers and subscribers behave as they
//! do with a log of one's own. [`Engine::promote`] comes after the replica was claimed and all of it was fed.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::open::{append_steps, schema_steps};
use super::{Engine, EngineError, WriteError};
use crate::log::{Epoch, Failed, FeedError, Lsn, PromoteError};

/// Why an engine did not become a writer.
#[derive(Debug, thiserror::Error)]
pub enum PromotionError {
    /// The log did not.
    #[error(transparent)]
    Log(#[from] PromoteError),
    /// The views could not be brought up to the end of what was followed.
    #[error(transparent)]
    Views(#[from] WriteError),
    /// The account database could not be brought to this program's schema.
    #[error(transparent)]
    Schema(#[from] EngineError),
    /// A part of the work was lost.
    #[error("promoting: {0}")]
    Task(String),
}

impl Engine {
    /// Whether it follows another writer, and takes no groups.
    #[must_use]
    pub fn is_following(&self) -> bool {
        self.inner.log.is_following()
    }

    /// Takes frames of the writer that is followed, as they are in the replica: whole groups, in order; what is here already
    /// is passed over. They are durable there and here when this resolves with the log's last LSN, and applied and
    /// visible soon after.
    ///
    /// # Errors
    /// [`FeedError`].
    pub async fn feed(&self, raw: Bytes) -> Result<Lsn, FeedError> {
        let last = self.inner.log.feed(raw).await?;
        if let Some(remote) = &self.inner.remote {
            remote.advance(last);
        }
        Ok(last)
    }

    /// Makes a follower the writer of the reign `epoch`, whose LSNs are above `floor`. Everything that the replica has must have
    /// been fed. Brings the account database to this program's schema: wait for [`Engine::ready`] once the log is shipped.
    ///
    /// # Errors
    /// [`PromotionError`]; it is then of no use as a writer, and a start on the same directory is.
    pub async fn promote(&self, epoch: Epoch, floor: Lsn) -> Result<(), PromotionError> {
        let inner = &self.inner;
        let failed = |Failed { reason }| WriteError::OutcomeUnknown { reason };
        inner.applied.wait(self.appended().get()).await.map_err(failed)?;
        inner.log.promote(epoch, floor).await?;
        inner.epoch.store(epoch.0, Ordering::Release);
        let accounts = inner.accounts.clone();
        let steps = tokio::task::spawn_blocking(move || schema_steps(&accounts, &BTreeSet::new()));
        let steps = steps
            .await
            .map_err(|error| PromotionError::Task(error.to_string()))??;
        if let Some(pending) = append_steps(&inner.log, steps)? {
            let written = pending
                .await
                .map_err(|error| EngineError::Migrate(error.into()))?;
            inner.ready_at.store(written.last.get(), Ordering::Release);
        }
        Ok(())
    }
}
