//! Up to which removal nothing is left on this disk, and what is still to be done for that.
//!
//! A compaction leaves a removed repo out of the log. What else may hold something of it:
//!
//! | what                         | until                                                                              |
//! |------------------------------|------------------------------------------------------------------------------------|
//! | the segments of before       | [`Engine::end_compaction`] has removed them                                        |
//! | free pages of the index      | it has a new file, copied when nothing waited to be swept                          |
//! | local checkpoints            | there are only such as were taken after that                                       |
//! | the write-ahead file of the account database | it was emptied                                                     |
//!
//! All of it is asked of the disk, except for the last, which is done again after a start. So a crash can make the answer
//! late, never wrong. Which removals wait for it is in the index, hence in the log.

use std::sync::atomic::Ordering;

use super::{CheckpointFailure, Engine, WriteError};
use crate::compact::CompactError;
use crate::entry::{EntryDraft, RepoRemoval};
use crate::log::Lsn;
use crate::views::accounts::AccountsError;
use crate::views::checkpoint::{Checkpoint, CheckpointError};
use crate::views::index::IndexError;

/// Up to which removal nothing is left on this disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// Of repos that were removed at or before this LSN nothing is left here.
    pub through: Lsn,
    /// Checkpoints after this LSN have nothing of them either.
    pub views: Lsn,
}

/// Why nothing is known of what is left.
#[derive(Debug, thiserror::Error)]
pub enum EraseError {
    /// The index could not be read.
    #[error("the index")]
    Index(#[from] IndexError),
    /// The local checkpoints could not be listed or pruned.
    #[error("the local checkpoints")]
    Checkpoints(#[from] CheckpointError),
    /// No new checkpoint could be taken.
    #[error("a new checkpoint")]
    Checkpoint(#[from] CheckpointFailure),
    /// The account database could not be cleared.
    #[error("the account database")]
    Accounts(#[from] AccountsError),
    /// The index could not get a new file.
    #[error("a new file for the index")]
    Renewal(#[source] Box<CompactError>),
    /// The log takes no more, or does not become durable.
    #[error("the log: {0}")]
    Log(String),
}

impl From<WriteError> for EraseError {
    fn from(error: WriteError) -> EraseError {
        EraseError::Log(error.to_string())
    }
}

impl Engine {
    /// Removed repos of which copies may be left somewhere, the oldest removal first, at most `limit`.
    ///
    /// # Errors
    /// The index could not be read.
    pub fn removals(&self, limit: usize) -> Result<Vec<RepoRemoval>, IndexError> {
        self.reader()?.removals(None, limit)
    }

    /// The oldest removed repo that is still in the log because no compaction came by since.
    ///
    /// # Errors
    /// The index could not be read.
    pub fn oldest_uncompacted_removal(&self) -> Result<Option<RepoRemoval>, IndexError> {
        self.reader()?.oldest_removal(self.compacted_through())
    }

    /// Up to which removal nothing is left on this disk, as far as is known.
    ///
    /// # Errors
    /// The index or the local checkpoints could not be read.
    pub fn erased(&self) -> Result<Erased, EraseError> {
        let log = self.log_reader();
        // In this order: a compaction that takes effect in between is pending until its inputs are gone.
        let compacted = self.compacted_through();
        let views = self.reader()?.erased()?;
        let old_checkpoint = self.inner.checkpoints.list()?.iter().any(|lsn| *lsn <= views);
        let through = if log.pending_compaction().is_some() || old_checkpoint {
            Lsn::ZERO
        } else {
            let accounts = Lsn::saturating(self.inner.accounts_erased.load(Ordering::Acquire));
            compacted.min(views).min(accounts)
        };
        Ok(Erased { through, views })
    }

    /// The last LSN of the compacted part of the log; zero if there is none.
    #[must_use]
    pub fn compacted_through(&self) -> Lsn {
        let log = self.log_reader();
        if log.compaction() == 0 {
            Lsn::ZERO
        } else {
            log.floor()
        }
    }

    /// Does what is left to do for removals that a compaction has left out of the log, as far as it can be done now. Costs
    /// a copy of the index at most once after a compaction, and nothing when nothing waits. With a replica, the shipper must be
    /// running.
    ///
    /// # Errors
    /// [`EraseError`]; it may be done again.
    pub async fn erase(&self) -> Result<Erased, EraseError> {
        let inner = &self.inner;
        let Some(newest) = self.newest_compacted_removal()? else {
            return self.erased();
        };
        {
            let _no_compaction = inner.compacting.lock().await;
            let reader = self.reader()?;
            if reader.erased()? < newest && !reader.is_unswept()? {
                drop(reader);
                let _no_checkpoint = inner.checkpointing.lock().await;
                self.renew_index()
                    .await
                    .map_err(|error| EraseError::Renewal(Box::new(error)))?;
            }
        }
        if inner.accounts_erased.load(Ordering::Acquire) < newest.get() {
            let (accounts, applied) = (inner.accounts.clone(), self.applied().get());
            let emptied = tokio::task::spawn_blocking(move || accounts.empty_wal_blocking());
            if emptied.await.unwrap_or(Err(AccountsError::Panicked))? {
                inner.accounts_erased.fetch_max(applied.get(), Ordering::AcqRel);
            }
        }
        let views = self.reader()?.erased()?;
        if views >= newest && inner.checkpoints.list()?.iter().any(|lsn| *lsn <= views) {
            self.checkpoint_anew().await?;
        }
        self.erased()
    }

    /// The newest removal that the compacted part of the log has left out, if one waits.
    fn newest_compacted_removal(&self) -> Result<Option<Lsn>, IndexError> {
        let compacted = self.compacted_through();
        self.reader()?.newest_removal(compacted)
    }

    /// Takes a checkpoint of a later LSN than all that there are, and removes the others. With a replica, the shipper must be
    /// running.
    ///
    /// # Errors
    /// [`EraseError`].
    pub async fn checkpoint_anew(&self) -> Result<Checkpoint, EraseError> {
        // One of the same LSN may have been taken before rows were swept: sweeping moves no LSN.
        let receipt = self.append(vec![EntryDraft::marker()]);
        let receipt = receipt.map_err(|error| EraseError::Log(error.to_string()))?;
        receipt.durable().await?;
        let _one_at_a_time = self.inner.checkpointing.lock().await;
        let taken = self.checkpoint_alone().await?;
        let checkpoints = self.inner.checkpoints.clone();
        let pruned = tokio::task::spawn_blocking(move || checkpoints.prune(1)).await;
        pruned.map_err(|error| EraseError::Log(error.to_string()))??;
        Ok(taken)
    }
}
