//! Why a server does not start, or stops.

use std::path::Path;

use engine::engine::EngineError;
use engine::log::Epoch;
use shipper::standby::StandbyError;
use shipper::store::StoreError;

use super::compaction;
use crate::config::ConfigError;

/// Why the server did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Wrong settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file, directory or socket.
    #[error("{what}: {source}")]
    Io {
        /// What it is about.
        what: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The replica and the local log could not be brought together.
    #[error("the replica: {}", compaction::with_causes(.0))]
    Replica(#[from] Box<shipper::start::StartError>),
    /// The replica's writer cannot be followed.
    #[error("following the writer: {}", compaction::with_causes(.0))]
    Standby(#[source] Box<StandbyError>),
    /// The replica store cannot be used at all.
    #[error("the replica store: {0}")]
    Store(#[from] StoreError),
    /// The log or the views could not be opened, or failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Another process took over the replica.
    #[error(
        "another server (epoch {}) has taken over the replica; this one stops and acknowledges nothing more. \
         Make sure that only one server runs on a replica", by.0
    )]
    Fenced {
        /// Its reign.
        by: Epoch,
    },
    /// Something else.
    #[error("{0}")]
    Other(String),
}

impl ServerError {
    pub(crate) fn io(what: impl AsRef<Path>, source: std::io::Error) -> ServerError {
        ServerError::Io {
            what: what.as_ref().display().to_string(),
            source,
        }
    }

    /// Whether another process took over, which is no fault of this one.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        matches!(self, ServerError::Fenced { .. })
    }
}
