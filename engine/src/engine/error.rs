//! What the engine's callers can run into, by what they can do about it.

use std::sync::Arc;

use crate::entry::EntryError;
use crate::log::{self, Epoch, Lsn, OpenError};
use crate::views::accounts::AccountsError;
use crate::views::checkpoint::CheckpointError;
use crate::views::driver::DriverError;
use crate::views::index::IndexError;

/// Why an engine did not start. Nothing of the log is lost by it; the message tells the operator what to do.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The log could not be opened.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// The index could not be opened or rebuilt.
    #[error("opening the index")]
    Index(#[source] IndexError),
    /// The account database could not be opened or rebuilt.
    #[error("opening the account database")]
    Accounts(#[source] AccountsError),
    /// Checkpoints could not be looked at or installed.
    #[error("looking for a checkpoint")]
    Checkpoint(#[source] CheckpointError),
    /// The log begins after what the views know, and no checkpoint fills the gap. Restore the directory from the replica.
    #[error(
        "the views stand at {views}, the log here begins after {log}, and no checkpoint lies between; restore from the replica"
    )]
    Gap {
        /// Where the views stand.
        views: Lsn,
        /// The predecessor of the oldest entry.
        log: Lsn,
    },
    /// The views could not be brought up to the log.
    #[error("replaying the log")]
    Replay(#[source] DriverError),
    /// The views could not be followed by the log's tail: an entry there does not decode.
    #[error("entry {lsn} of the log does not decode")]
    Entry {
        /// The entry.
        lsn: Lsn,
        /// What is wrong with it.
        #[source]
        source: EntryError,
    },
    /// A view's file could not be removed, or a directory not be made.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// What the file system said.
        #[source]
        source: std::io::Error,
    },
    /// The schema of the account database could not be brought up to date.
    #[error("appending schema steps")]
    Migrate(#[source] AppendError),
}

/// Why a group was refused. Nothing of it was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Too much is on its way already; try again shortly. Answer 503.
    #[error("too many writes are on their way already")]
    Busy,
    /// The group can never be written: too large, or malformed. A defect, or a limit the caller should have checked.
    #[error("the entry cannot be written: {reason}")]
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
    /// Another writer has taken over. This process must not answer writes any more.
    #[error("another writer has taken over with epoch {by}")]
    Fenced {
        /// The other's reign.
        by: Epoch,
    },
    /// This engine follows another writer's log. Answer 503 and point to the writer.
    #[error("this server follows another one, which takes the writes")]
    Following,
    /// The log has failed and takes nothing until a restart.
    #[error("the log is closed to writes: {reason}")]
    Poisoned {
        /// What happened, for an operator.
        reason: Arc<str>,
    },
    /// The engine is shut down.
    #[error("the engine is shut down")]
    Closed,
}

/// Why a group that was accepted is not known to be durable. It may be, or not: a client may only be told that the
/// outcome is unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// A write, a sync, an upload or a view failed. A restart decides what became of the group.
    #[error("whether the write survives is unknown: {reason}")]
    OutcomeUnknown {
        /// What happened, for an operator.
        reason: Arc<str>,
    },
    /// Another writer has taken over; the group is most likely lost.
    #[error("another writer has taken over with epoch {by}")]
    Fenced {
        /// The other's reign.
        by: Epoch,
    },
    /// The engine was shut down before the group was durable.
    #[error("the engine was shut down before the write was durable")]
    Closed,
}

impl From<log::AppendError> for AppendError {
    fn from(error: log::AppendError) -> AppendError {
        match error {
            log::AppendError::Busy => AppendError::Busy,
            log::AppendError::Following => AppendError::Following,
            log::AppendError::Poisoned { reason } => AppendError::Poisoned { reason },
            log::AppendError::Closed => AppendError::Closed,
            error @ (log::AppendError::TooLarge { .. } | log::AppendError::Invalid { .. }) => {
                AppendError::Invalid {
                    reason: error.to_string(),
                }
            }
        }
    }
}
