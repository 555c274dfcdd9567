//! Every decision of the shipper, as pure functions over what is listed and known: tables to read and to test.
//!
//! Why they are safe together:
//! - The *chain* begins where the manifest says and follows `next ordinal` to the first missing object. What lies behind
//!   a missing object was never acknowledged, because a writer acknowledges in order.
//! - A new writer creates its fence exactly at the first missing ordinal N. The old writer has at most
//!   [`MAX_IN_FLIGHT`](crate::chunk::MAX_IN_FLIGHT) uploads out, all at N + 15 or below, and N's is not acknowledged; it
//!   can never be, since the fence is there and is never deleted. The chain goes on behind all of them.
//! - Frames and covered ordinals that an old, unsuspecting writer puts in a manifest are true nevertheless: they were
//!   acknowledged, so they are before the fence. A newer reign therefore adopts such a manifest instead of fighting it.

#[cfg(test)]
mod tests;

use engine::log::{Epoch, LogId, Lsn};

use crate::chunk::{ChunkError, ChunkHeader, ChunkKind, HEADER_BYTES};
use crate::manifest::Manifest;
use crate::names::{Ordinal, WriterId};

/// How far the chain is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainEnd {
    /// The log.
    pub log_id: LogId,
    /// The first ordinal that is not known to exist: where the next chunk belongs.
    pub next: Ordinal,
    /// The last LSN in the chain.
    pub last_lsn: Lsn,
    /// The reign that wrote the last chunk; zero before any.
    pub epoch: Epoch,
    /// The process that wrote it, if a chunk was seen.
    pub writer: Option<WriterId>,
    /// No later LSN may be at or below this.
    pub lsn_floor: Lsn,
    /// The last chunk was a hand-over: its writer stopped with everything shipped.
    pub handed_over: bool,
}

/// A chunk that does not continue the chain. The replica is damaged, or a program broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The chunk belongs to another log.
    #[error("it belongs to another log")]
    ForeignLog,
    /// Header and name disagree.
    #[error("its header says ordinal {0}")]
    Ordinal(Ordinal),
    /// The chunk's predecessor is not the chain's end.
    #[error("it follows LSN {prev:?}, but the chain ends at {end:?}")]
    Gap {
        /// What the chunk follows.
        prev: Lsn,
        /// Where the chain ends.
        end: Lsn,
    },
    /// A fence that does not raise the epoch, or a chunk of a reign that has no fence or has ended.
    #[error("its epoch {epoch:?} does not fit after {before:?}")]
    Epoch {
        /// The chunk's.
        epoch: Epoch,
        /// The chain's.
        before: Epoch,
    },
    /// A chunk by another process in a reign that is not its own.
    #[error("its writer {0} is not the one whose fence opened the reign")]
    Writer(WriterId),
}

impl ChainEnd {
    /// True if nobody has written to the chain yet.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        self.epoch == Epoch::ZERO
    }

    /// Where the chain continues after what `manifest` covers.
    #[must_use]
    pub fn after(manifest: &Manifest) -> ChainEnd {
        ChainEnd {
            log_id: manifest.log_id(),
            next: manifest.next_ordinal(),
            last_lsn: manifest.covered_lsn(),
            epoch: Epoch(manifest.covered_epoch),
            // A manifest of the same reign was written by the process whose chunks it covers.
            writer: (manifest.epoch > 0 && manifest.epoch == manifest.covered_epoch)
                .then(|| manifest.writer_id()),
            lsn_floor: manifest.lsn_floor(),
            handed_over: false,
        }
    }

    /// The end after `chunk`, which was found at `self.next`.
    ///
    /// # Errors
    /// [`ChainError`]: see there.
    pub fn follow(&self, chunk: &ChunkHeader) -> Result<ChainEnd, ChainError> {
        if chunk.log_id != self.log_id {
            return Err(ChainError::ForeignLog);
        }
        if chunk.ordinal != self.next {
            return Err(ChainError::Ordinal(chunk.ordinal));
        }
        if chunk.prev_lsn != self.last_lsn {
            return Err(ChainError::Gap {
                prev: chunk.prev_lsn,
                end: self.last_lsn,
            });
        }
        let epoch_fits = match chunk.kind {
            ChunkKind::Fence => chunk.epoch > self.epoch,
            ChunkKind::Data | ChunkKind::HandOver => {
                chunk.epoch == self.epoch && !self.handed_over && self.epoch > Epoch(0)
            }
        };
        if !epoch_fits {
            return Err(ChainError::Epoch {
                epoch: chunk.epoch,
                before: self.epoch,
            });
        }
        if chunk.kind != ChunkKind::Fence && self.writer.is_some_and(|writer| writer != chunk.writer_id) {
            return Err(ChainError::Writer(chunk.writer_id));
        }
        Ok(ChainEnd {
            log_id: self.log_id,
            next: chunk.next_ordinal,
            last_lsn: chunk.last_lsn,
            epoch: chunk.epoch,
            writer: Some(chunk.writer_id),
            lsn_floor: self.lsn_floor.max(chunk.lsn_floor),
            handed_over: chunk.kind == ChunkKind::HandOver,
        })
    }
}

/// What is known of the local log at a start. A log without a frame counts as none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalFacts {
    /// Its identity.
    pub log_id: LogId,
    /// The last whole frame's LSN.
    pub last_lsn: Lsn,
    /// The last frame's epoch.
    pub last_epoch: Epoch,
}

/// What is known of the replica at a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaFacts {
    /// The log that it holds.
    pub log_id: LogId,
    /// The last LSN in its chain.
    pub last_lsn: Lsn,
    /// The newest reign.
    pub epoch: Epoch,
    /// Every reign since that of the local log's last frame began on this very data directory.
    pub nobody_since: bool,
}

/// How the replica's newest frames compare with the local log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// The local log has the replica's last frame, at that LSN and of that epoch; or the replica has none.
    Prefix,
    /// It has not: the local log is behind, or went another way.
    Diverged,
}

/// What to do at a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartDecision {
    /// Nothing anywhere: begin a new log.
    Fresh,
    /// Keep the local log and ship what the replica lacks.
    ContinueLocal {
        /// The last LSN that the replica has.
        ship_from: Lsn,
    },
    /// The replica wins. A local log, if there is one, is set aside first.
    RestoreReplica {
        /// There is a local log with frames.
        set_aside_local: bool,
    },
    /// Do not start.
    Refuse(Refusal),
}

/// Why a start is refused: an operator must look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The data directory and the replica belong to different logs.
    #[error(
        "the data directory holds log {local}, the replica holds log {replica}; one of the two settings points to the \
         wrong place (to begin from the replica, empty the data directory; to begin anew, name an empty replica)"
    )]
    ForeignLog {
        /// The local log.
        local: LogId,
        /// The replica's.
        replica: LogId,
    },
}

/// What a start does with what it finds.
///
/// | local | replica | tail | more here | reigns since | decision |
/// |---|---|---|---|---|---|
/// | – | – | | | | fresh |
/// | yes | – | | | | continue, ship all |
/// | – | yes | | | | restore |
/// | yes | other log | | | | refuse |
/// | yes | yes, no frames | | | any | continue, ship all: nothing of another's was ever acknowledged |
/// | yes | yes | prefix | no | any | continue |
/// | yes | yes | prefix | yes | ours | continue, ship the rest |
/// | yes | yes | prefix | yes | another's | restore: what was not shipped before the fence is void |
/// | yes | yes | prefix | yes | another's, then ours | the same: that start crashed before it set the tail aside |
/// | yes | yes | diverged | | | restore |
#[must_use]
pub fn decide_start(
    local: Option<&LocalFacts>,
    replica: Option<&ReplicaFacts>,
    overlap: Overlap,
) -> StartDecision {
    let local = local.filter(|local| local.last_lsn > Lsn::ZERO);
    match (local, replica) {
        (None, None) => StartDecision::Fresh,
        (Some(_), None) => StartDecision::ContinueLocal { ship_from: Lsn::ZERO },
        (None, Some(_)) => StartDecision::RestoreReplica {
            set_aside_local: false,
        },
        (Some(local), Some(replica)) if local.log_id != replica.log_id => {
            StartDecision::Refuse(Refusal::ForeignLog {
                local: local.log_id,
                replica: replica.log_id,
            })
        }
        (Some(local), Some(replica)) => {
            let has_more = local.last_lsn > replica.last_lsn;
            let nobody_since =
                replica.last_lsn == Lsn::ZERO || replica.nobody_since || replica.epoch <= local.last_epoch;
            match overlap {
                Overlap::Prefix if !has_more || nobody_since => StartDecision::ContinueLocal {
                    ship_from: replica.last_lsn,
                },
                Overlap::Prefix | Overlap::Diverged => StartDecision::RestoreReplica {
                    set_aside_local: true,
                },
            }
        }
    }
}

/// What an object means that is already where we wanted to create ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExistsVerdict {
    /// It is ours: an earlier try succeeded and its answer was lost.
    Ours,
    /// It is another writer's: we are fenced.
    Fenced {
        /// That writer's reign.
        by: Epoch,
    },
    /// It cannot be read. Nothing tells whose it is, so we stop as if fenced.
    Unreadable(ChunkError),
}

/// Compares the object that is there with the one that we wanted to create.
#[must_use]
pub fn on_chunk_exists(ours: &ChunkHeader, there: Result<ChunkHeader, ChunkError>) -> ExistsVerdict {
    match there {
        Ok(there) if there.is_same_object(ours) => ExistsVerdict::Ours,
        Ok(there) => ExistsVerdict::Fenced { by: there.epoch },
        Err(error) => ExistsVerdict::Unreadable(error),
    }
}

/// What a manifest means that is already where we wanted to publish ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManifestVerdict {
    /// It is ours.
    Ours,
    /// An earlier reign published before it noticed ours, or we did and never heard of it. What it says is true: derive the next
    /// one from it.
    Adopt,
    /// A later reign published: we are fenced.
    Fenced {
        /// That reign.
        by: Epoch,
    },
}

/// Compares the manifest that is there with the one that we wanted to publish.
#[must_use]
pub fn on_manifest_exists(ours: &Manifest, there: &Manifest) -> ManifestVerdict {
    if there == ours {
        ManifestVerdict::Ours
    } else if there.log_id == ours.log_id
        && (there.epoch < ours.epoch || (there.epoch, there.writer_id) == (ours.epoch, ours.writer_id))
    {
        ManifestVerdict::Adopt
    } else {
        ManifestVerdict::Fenced { by: there.epoch() }
    }
}

/// Which of the listed chunks may be deleted once `manifest` is durable and known to be the newest: those whose frames
/// are in its segments. Marks (which are exactly a header long) stay for ever: an old writer that wakes up must find the
/// fence in its way.
#[must_use]
pub fn deletable_chunks(manifest: &Manifest, listed: &[(Ordinal, u64)]) -> Vec<Ordinal> {
    let is_data = |size: u64| size > HEADER_BYTES as u64;
    listed
        .iter()
        .filter(|(ordinal, size)| ordinal.0 <= manifest.covered_through && is_data(*size))
        .map(|(ordinal, _)| *ordinal)
        .collect()
}

/// Which of the chunks of a chain are covered by segments up to `covered`: the number of leading links, marks between
/// and behind covered data included, but never a mark that no covered data surrounds.
#[must_use]
pub fn covered_links(chain: &[(ChunkKind, Lsn)], covered: Lsn) -> usize {
    let within = chain.iter().take_while(|(_, last)| *last <= covered).count();
    // A trailing mark repeats its predecessor's LSN. Leaving it uncovered costs nothing and keeps the newest fence, with
    // its writer, readable in the chain.
    let marks = chain.get(..within).unwrap_or_default().iter().rev();
    within - marks.take_while(|(kind, _)| *kind != ChunkKind::Data).count()
}
