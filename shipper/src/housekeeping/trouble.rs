//! What goes wrong in housekeeping, and what of it whoever asked for a checkpoint is told.

use engine::log::{Epoch, Lsn};

use crate::checkpoint::CheckpointError;
use crate::fence::ReplicaError;
use crate::handle::with_sources;
use crate::manifest::ManifestError;
use crate::names::Ordinal;
use crate::sealed::SealedError;
use crate::store::StoreError;

/// Why a step of housekeeping was not done. All but a fence is tried again.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("fenced by epoch {0}")]
    Fenced(Epoch),
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    #[error("segment object {object}")]
    Sealed {
        object: String,
        #[source]
        source: SealedError,
    },
    #[error("local segment {segment}: {what}")]
    Segment { segment: Lsn, what: String },
    #[error("building a manifest")]
    Manifest(#[from] ManifestError),
    #[error("a chunk at ordinal {0} crosses the end of a sealed segment")]
    Misaligned(Ordinal),
    #[error("a task of housekeeping was lost: {0}")]
    Task(String),
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Trouble {
        Trouble::Replica(ReplicaError::Store(error))
    }
}

/// Why a checkpoint was refused, still knowing whether it was a fence.
pub(super) enum Refused {
    Error(CheckpointError),
    Trouble(Trouble),
}

impl Refused {
    pub(super) fn into_error(self) -> CheckpointError {
        match self {
            Refused::Error(error) => error,
            Refused::Trouble(trouble) => CheckpointError::Manifest(with_sources(&trouble)),
        }
    }
}

impl From<CheckpointError> for Refused {
    fn from(error: CheckpointError) -> Refused {
        Refused::Error(error)
    }
}

impl From<Trouble> for Refused {
    fn from(trouble: Trouble) -> Refused {
        Refused::Trouble(trouble)
    }
}
