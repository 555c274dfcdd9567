//! Following another writer: the log grows by that writer's frames, byte for byte, until it is promoted.
//!
//! A follower's segments become the writer's own, because the frames say themselves where a segment began (as in
//! [`install`](super::install)), so every place in them stays true and a promoted follower goes on as if it had written
//! all of it. Readers, watermarks and views do not notice who wrote.
//!
//! | crash of the machine after | leaves | and the next start |
//! |---|---|---|
//! | writing frames, before their sync | any part of them, perhaps later ones without earlier ones | must not trust the directory: see [`FOLLOWING_MARKER`] |
//! | the sync | the frames | follows on from there |
//! | a promotion | a sealed last segment | starts like any writer |
//!
//! The first row differs from a writer's: one sync of a follower covers several batches of the writer, whose frames claim
//! that what is before them was durable. That is why whoever opens a follower leaves a marker beside the log until it is
//! promoted, and takes everything from the replica again where a marked log does not open.

use std::sync::Arc;

use super::append::LogCore;
use super::frame::{Flags, frames_in};
use super::lsn::{Epoch, Lsn};
use super::recovery::Damage;
use super::segment::link_error;
use super::watermark::Failed;

/// The name of the file beside the log's directory that says: this log follows, and is worth no more than its replica.
pub const FOLLOWING_MARKER: &str = "following";

/// A follower writes what it has gathered at this many bytes.
const RUN_BYTES: usize = 8 << 20;

/// Why frames of another writer were not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FeedError {
    /// They do not continue this log, or are damaged. Nothing was written.
    #[error("frames of the writer that is followed do not fit: {0}")]
    Damaged(Damage),
    /// This log has a writer of its own.
    #[error("the log does not follow another writer")]
    NotFollowing,
    /// A write or sync failed, or the log was poisoned or closed.
    #[error("{reason}")]
    Failed {
        /// What happened, for an operator.
        reason: Arc<str>,
    },
}

/// Why a follower did not become a writer. It still follows, unless the log failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PromoteError {
    /// This log has a writer of its own already.
    #[error("the log does not follow another writer")]
    NotFollowing,
    /// The new reign is not above that of the newest frame.
    #[error("epoch {asked} is not above {found}, which has already written here")]
    StaleEpoch {
        /// What was asked for.
        asked: Epoch,
        /// What was found.
        found: Epoch,
    },
    /// The clock is far before the newest entry.
    #[error(
        "the clock says {now} but the log has already reached {floor} (microseconds since 1970); set the clock"
    )]
    ClockBehind {
        /// The clock's reading.
        now: u64,
        /// What was reached already.
        floor: Lsn,
    },
    /// A write or sync failed, or the log was poisoned or closed.
    #[error("{reason}")]
    Failed {
        /// What happened, for an operator.
        reason: Arc<str>,
    },
}

impl LogCore {
    /// Takes whole groups of the writer's frames; those that are here already are passed over. The caller writes and syncs
    /// what is gathered. Whatever does not fit is found before anything is written.
    pub(super) fn feed(&mut self, raw: &[u8]) -> Result<Result<Lsn, Damage>, Failed> {
        self.still_open()?;
        if let Err(damage) = self.fits(raw) {
            return Ok(Err(damage));
        }
        for frame in frames_in(raw).flatten().map(|(_, frame)| frame) {
            let header = frame.header;
            if header.lsn <= self.last() {
                continue;
            }
            if header.flags.contains(Flags::SEGMENT_START) {
                self.seal()?;
                self.begin_as(header.epoch, header.lsn)?;
            }
            self.gather(header, frame.bytes);
            if self.gathered() >= RUN_BYTES {
                self.write()?;
            }
        }
        Ok(Ok(self.last()))
    }

    /// Whether every frame is whole and continues this log, and no group is cut off at the end.
    fn fits(&self, raw: &[u8]) -> Result<(), Damage> {
        let damage = |at: usize, what: String| Damage {
            offset: at as u64,
            what,
        };
        let (mut last, mut epoch) = (self.last(), self.epoch());
        let mut in_segment = self.has_open_segment();
        let mut open_group = None;
        for frame in frames_in(raw) {
            let (at, frame) = frame.map_err(|(at, error)| damage(at, error.to_string()))?;
            let header = frame.header;
            open_group = header.flags.contains(Flags::MORE).then_some(at);
            if header.lsn <= last {
                continue;
            }
            let starts = header.flags.contains(Flags::SEGMENT_START);
            if starts && header.epoch < epoch {
                return Err(damage(at, format!("epoch {} comes after {epoch}", header.epoch)));
            }
            if starts {
                (epoch, in_segment) = (header.epoch, true);
            }
            if !in_segment {
                let what = format!("frame {} continues a segment that is sealed here", header.lsn);
                return Err(damage(at, what));
            }
            if let Some(what) = link_error(&header, last, epoch, starts) {
                return Err(damage(at, what));
            }
            last = header.lsn;
        }
        match open_group {
            Some(at) => Err(damage(at, "the last group is not whole".to_owned())),
            None => Ok(()),
        }
    }
}
