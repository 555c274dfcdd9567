//! Compaction: the oldest part of the log is replaced by the shortest history that gives the same state.
//!
//! ```text
//! log up to `through` ─► fold into scratch views ─► what they hold ─► compacted segments ─► checks ─► journal: prepared
//!                                                                                                        │
//!        files of the replaced segments removed ◄─ nobody reads them ◄─ new checkpoint ◄─ the index's rows follow
//! ```
//!
//! What is written is what the same code that always folds the log made of it, at exactly `through`: whoever replays the
//! compacted segments stands where whoever replayed the original ones stood there, and everything after them is replayed
//! as ever (I4). Superseded nodes and commits, deleted records and accounts, sweeps and events are not in that state, so
//! they are not in the segments (I8). `rewrite` does this; memory is bounded by the caches of the scratch views.
//!
//! No record is lost by it, because before anything counts
//! - each block is compared with its CID, and each repo's records are built into a tree whose root is compared with the
//!   signed commit;
//! - each segment is read back and checked byte by byte;
//! - every row of the live index that points into the replaced segments is found in the new ones (`check`).
//!
//! And before anything is removed, the index says that nothing points there any more (`follow`), durably.

mod offline;
mod plan;
mod rewrite;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

pub use offline::{OfflineError, OfflineReport, compact_offline};
pub use plan::{Plan, Policy, plan};
pub(crate) use rewrite::{remove_scratch, rewrite};

use crate::entry::Entry;
use crate::log::{CompactionError, Location, LogReader, Lsn, SegmentInfo};
use crate::repo::Did;
use crate::views::accounts::AccountsError;
use crate::views::driver::DriverError;
use crate::views::index::{IndexError, IndexReader, IndexSource, Moved, Places, RelocateError, Walk};

/// Bytes of log that are followed in one transaction: it holds up answers for as long as it takes.
const FOLLOW_BYTES: usize = 1 << 20;

/// Is told how many bytes of log were read or written, and holds up the work as long as it likes. With `Err` it ends
/// the work, which is then taken back.
pub type Pace = Arc<dyn Fn(u64) -> Result<(), Stopped> + Send + Sync>;

/// The work was to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("compaction was stopped")]
pub struct Stopped;

/// No pace at all.
#[must_use]
pub fn unpaced() -> Pace {
    Arc::new(|_| Ok(()))
}

/// Bounds of a compaction.
#[derive(Clone)]
pub struct CompactOptions {
    /// A compacted segment is ended before it grows beyond this many bytes.
    pub segment_bytes: u64,
    /// Memory for pages of the scratch index, bytes.
    pub index_cache_bytes: usize,
    /// Holds up the work.
    pub pace: Pace,
}

impl std::fmt::Debug for CompactOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CompactOptions")
            .field("segment_bytes", &self.segment_bytes)
            .field("index_cache_bytes", &self.index_cache_bytes)
            .finish_non_exhaustive()
    }
}

impl Default for CompactOptions {
    fn default() -> CompactOptions {
        CompactOptions {
            segment_bytes: 64 << 20,
            index_cache_bytes: 32 << 20,
            pace: unpaced(),
        }
    }
}

/// What a compaction did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Its number.
    pub compaction: u32,
    /// The last LSN of what it replaced.
    pub through: Lsn,
    /// Segments that were replaced.
    pub segments_before: usize,
    /// Their bytes.
    pub bytes_before: u64,
    /// Segments that took their place.
    pub segments_after: usize,
    /// Their bytes.
    pub bytes_after: u64,
    /// Repos in them.
    pub repos: u64,
    /// Records in them, staged ones included.
    pub records: u64,
    /// Bytes of these records' blocks.
    pub record_bytes: u64,
}

/// Why nothing was compacted. Unless it says otherwise, the log is as it was.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    /// The segments could not be written or put in place.
    #[error("the segments")]
    Log(#[from] CompactionError),
    /// A block of the log is not what its CID says. Restore the log from the replica.
    #[error(
        "the block at {location:?} is not that of {cid}: the log is damaged, restore it from the replica"
    )]
    Damaged {
        /// Where it lies.
        location: Location,
        /// What it should be.
        cid: crate::repo::Cid,
    },
    /// A repo's records do not give the tree that its commit is signed for.
    #[error("the records of {did} do not make the tree of its commit: {reason}")]
    Tree {
        /// The repo.
        did: Did,
        /// How not.
        reason: String,
    },
    /// The new segments do not hold what the index has of the old ones. A defect, or a damaged index.
    #[error("the compacted segments do not fit the index: {0}")]
    Unfit(String),
    /// Rows of repos that were removed before still wait to be swept from the index. Try again shortly.
    #[error("rows that are gone still wait to be swept from the index; try again shortly")]
    Unswept,
    /// The index could not be read or written.
    #[error("the index")]
    Index(#[from] IndexError),
    /// The account database could not be read.
    #[error("the account database")]
    Accounts(#[from] AccountsError),
    /// The log could not be folded into the scratch views.
    #[error("folding the log")]
    Fold(#[from] DriverError),
    /// A directory or file could not be used.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// No checkpoint could be taken of the moved index; what was replaced stays until there is one.
    #[error("the checkpoint after it")]
    Checkpoint(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It was told to stop.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl From<RelocateError> for CompactError {
    fn from(error: RelocateError) -> CompactError {
        match error {
            RelocateError::Index(error) => CompactError::Index(error),
            RelocateError::Contradiction(reason) => CompactError::Unfit(reason),
        }
    }
}

impl CompactError {
    fn read(error: crate::log::ReadError) -> CompactError {
        CompactError::Log(CompactionError::Read(error))
    }
}

/// The segments that a compaction through `through` replaces. The one that is written to is not among them, also while it
/// holds nothing and its last LSN is that of the segment before.
pub(crate) fn inputs(log: &LogReader, through: Lsn) -> impl Iterator<Item = SegmentInfo> {
    let segments = log.segments().into_iter();
    segments.filter(move |segment| segment.sealed && segment.last <= through)
}

/// The entries of the compacted part of `log`, in pieces.
fn compacted_entries(
    log: &LogReader,
    through: Lsn,
    mut each: impl FnMut(&[Entry]) -> Result<(), CompactError>,
) -> Result<(), CompactError> {
    let mut tail = log.tail(Lsn::ZERO);
    loop {
        let frames = tail
            .next_batch(through, FOLLOW_BYTES)
            .map_err(CompactError::read)?;
        if frames.is_empty() {
            return Ok(());
        }
        let mut entries = Vec::with_capacity(frames.len());
        for frame in &frames {
            let entry = Entry::decode(frame);
            entries
                .push(entry.map_err(|error| CompactError::Unfit(format!("entry {}: {error}", frame.lsn())))?);
        }
        each(&entries)?;
    }
}

/// Whether everything that `index` has in the segments `inputs` is found in the compacted segments of `written`.
pub(crate) fn check(
    written: &LogReader,
    through: Lsn,
    index: &IndexReader,
    inputs: &BTreeSet<Lsn>,
) -> Result<Moved, CompactError> {
    let used = index.used_of(inputs)?;
    let (mut found, mut walk) = (Moved::default(), Walk::default());
    compacted_entries(written, through, |entries| {
        found.add(index.would_move(&mut walk, entries, inputs)?);
        Ok(())
    })?;
    if found == used {
        Ok(found)
    } else if index.is_unswept()? {
        Err(CompactError::Unswept)
    } else {
        Err(CompactError::Unfit(format!(
            "it has {} records and {} commits in what is replaced, of which {} and {} were found",
            used.records, used.commits, found.records, found.commits
        )))
    }
}

/// Lets the rows of the index follow the compaction that `log` has, if they have not yet, and makes that durable. May be
/// repeated after a crash.
pub(crate) fn follow(log: &LogReader, index: &IndexSource) -> Result<(), CompactError> {
    let target = log.compaction();
    let places = index.reader()?.places()?;
    if places != Places::of(target) {
        let inputs: BTreeSet<Lsn> = log.replaced().iter().map(|segment| segment.base).collect();
        index.set_places(Places { target, ..places })?;
        let mut walk = Walk::default();
        compacted_entries(log, log.floor(), |entries| {
            index.relocate(&mut walk, entries, &inputs)?;
            Ok(())
        })?;
        let live: BTreeSet<Lsn> = log.segments().iter().map(|segment| segment.base).collect();
        let used = index.reader()?.segments()?;
        if let Some(left) = used.iter().find(|used| !live.contains(&used.segment)) {
            return Err(CompactError::Unfit(format!(
                "{} records and {} commits still point into segment {}",
                left.records,
                left.commits,
                left.segment.hex()
            )));
        }
        index.set_places(Places::of(target))?;
    }
    index.persist()?;
    Ok(())
}

/// Whether an index with these places can be used with `log`, at once or after [`follow`].
pub(crate) fn admits(log: &LogReader, places: Places) -> bool {
    let now = log.compaction();
    let before = log.replaced().first().map(|segment| segment.compaction);
    let on_its_way = log.pending_compaction().is_some()
        && before == Some(places.settled)
        && [places.settled, now].contains(&places.target);
    places == Places::of(now) || on_its_way
}
