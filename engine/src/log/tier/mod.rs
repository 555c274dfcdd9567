//! Segments that are not here: sealed ones whose bytes are in the replica only.
//!
//! ```text
//! open ─► sealed ─► evicted: away ─► pieces fetched into `<base>.part` ─► all there, digest right: sealed
//!            ▲                                                                        │
//!            └────────────────────────────────────────────────────────────────────────┘
//! ```
//! To all who read, a segment that is away is a segment. A read fetches the pieces that it touches from the [`SegmentSource`]
//! into a sparse file beside the others and answers from there; who reads on gets more at a time. A piece is fetched once however
//! many wait for it. A fetch that fails, or takes too long, is [`ReadError::Away`]: nothing is wrong with the log, and trying
//! again is right.
//!
//! The file `away` lists every segment that may be missing, with all that a start must know of it. It is written under another
//! name, synced and renamed. A segment that is neither here nor listed is damage.
//!
//! | step                                                        | a crash leaves                  | and the next start           |
//! |-------------------------------------------------------------|---------------------------------|------------------------------|
//! | evict: compare the file with what the replica has           | the file                        | has it                       |
//! | list: write, sync, rename, sync the directory               | the file, perhaps listed        | has it: a file that is here counts |
//! | remove the file                                             | the file or not, listed         | has it, or it is away        |
//! | read: create `<base>.part`, write pieces                    | a part                          | removes the part, it is away |
//! | finish: sync the part, compare its digest, rename, sync dir | a part, or the whole file       | it is away, or here          |
//! | a compaction ends: list without what it replaced            | the journal, which knows better | ends the compaction          |
//!
//! The list is written before a file goes and never shortened while a file that it speaks of may be missing and needed.

mod list;
mod manage;
mod part;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

pub use list::{AWAY_NAME, away_segments};
pub(super) use list::{read as read_list, write as write_list};
pub use manage::{Hydrated, TierUse};
pub(super) use part::Part;

use super::lsn::{LogId, Lsn};
use super::reader::ReadError;
use super::segment::{SegmentHeader, SegmentInfo};
use crate::storage::Storage;

/// Bytes of a segment file that are fetched in one piece, at least.
pub const PIECE_BYTES: u64 = 256 << 10;
/// Bytes of parts that are kept whatever the disk budget says: without any, each read of an old record would be a request.
pub const LEAST_PART_BYTES: u64 = 8 << 20;

/// What the log knows of a segment without having its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AwaySegment {
    /// The log that it belongs to.
    pub log_id: LogId,
    /// What one would see of it if it were here. `sha256`, which is of the part before the footer, is not known.
    pub info: SegmentInfo,
    /// SHA-256 of the whole file.
    pub file_sha256: [u8; 32],
    /// What the source calls it.
    pub object: String,
    /// How many bytes the source's object has.
    pub object_bytes: u64,
}

impl AwaySegment {
    pub(super) fn header(&self) -> SegmentHeader {
        SegmentHeader {
            log_id: self.log_id,
            epoch: self.info.epoch,
            base: self.info.base,
            prev: self.info.prev,
            compaction: self.info.compaction,
        }
    }
}

/// Why a source has no bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SourceError(pub String);

/// Where the bytes of segments are that are not here: the replica.
pub trait SegmentSource: fmt::Debug + Send + Sync + 'static {
    /// Exactly the bytes of `range` of the segment's file. Blocks, but no longer than a bound of the source's own. Checks what it
    /// can of what it hands out.
    ///
    /// # Errors
    /// [`SourceError`], in words for an operator. Trying again may help.
    fn fetch(&self, segment: &AwaySegment, range: Range<u64>) -> Result<Bytes, SourceError>;
}

/// What all segments of a log share about being away.
#[derive(Debug)]
pub(super) struct Tier {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    source: RwLock<Option<Arc<dyn SegmentSource>>>,
    /// What the list on the disk says. Held while it is written.
    list: Mutex<BTreeMap<Lsn, AwaySegment>>,
    /// What the replica is known to have.
    shipped: RwLock<HashMap<Lsn, AwaySegment>>,
    parts: Mutex<HashMap<Lsn, Arc<Part>>>,
    /// Bytes of all parts, also of those that only a reader still holds.
    part_bytes: Arc<AtomicU64>,
    /// How many bytes parts may have.
    part_room: AtomicU64,
    /// Counts on with each fetch; a segment's last use is what it was then.
    now: AtomicU64,
    /// Held while a segment changes between here and away.
    changing: Mutex<()>,
    /// What a compaction reads stays here: everything up to this LSN.
    pinned: AtomicU64,
    /// Segments whose bytes in the replica turned out not to be theirs.
    distrusted: Mutex<BTreeSet<Lsn>>,
}

impl Tier {
    pub(super) fn new(storage: Arc<dyn Storage>, dir: &Path) -> Tier {
        Tier {
            storage,
            dir: dir.to_owned(),
            source: RwLock::default(),
            list: Mutex::default(),
            shipped: RwLock::default(),
            parts: Mutex::default(),
            part_bytes: Arc::default(),
            part_room: AtomicU64::new(u64::MAX),
            now: AtomicU64::new(1),
            changing: Mutex::default(),
            pinned: AtomicU64::new(0),
            distrusted: Mutex::default(),
        }
    }

    pub(super) fn attach(&self, source: Arc<dyn SegmentSource>) {
        *self.source.write() = Some(source);
    }

    /// Takes over what a start has read.
    pub(super) fn know(&self, listed: impl IntoIterator<Item = AwaySegment>) {
        let listed = listed.into_iter().map(|away| (away.info.base, away));
        self.list.lock().extend(listed);
    }

    /// A time for "used last".
    pub(super) fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    fn fetch(&self, away: &AwaySegment, range: Range<u64>) -> Result<Bytes, SourceError> {
        let source = self.source.read().clone();
        let source =
            source.ok_or_else(|| SourceError("no replica is attached that could have it".to_owned()))?;
        let wanted = range.end.saturating_sub(range.start);
        let bytes = source.fetch(away, range)?;
        if bytes.len() as u64 != wanted {
            return Err(SourceError(format!(
                "{} has {} bytes where {wanted} were asked for",
                away.object,
                bytes.len()
            )));
        }
        self.now.fetch_add(1, Ordering::Relaxed);
        metrics::counter!("pds_tier_fetches_total").increment(1);
        metrics::counter!("pds_tier_fetched_bytes_total").increment(wanted);
        Ok(bytes)
    }

    fn part_path(&self, base: Lsn) -> PathBuf {
        self.dir.join(format!("{}.part", base.hex()))
    }

    /// What there is of a segment that is away; an empty file if there was nothing.
    pub(super) fn part(self: &Arc<Tier>, away: &Arc<AwaySegment>) -> Result<Arc<Part>, ReadError> {
        let base = away.info.base;
        let mut parts = self.parts.lock();
        if let Some(part) = parts.get(&base) {
            part.used(self.now());
            return Ok(Arc::clone(part));
        }
        let io = |source| ReadError::Io {
            segment: base,
            source,
        };
        let part = Part::create(self, Arc::clone(away), &self.part_path(base)).map_err(io)?;
        let part = Arc::new(part);
        parts.insert(base, Arc::clone(&part));
        Ok(part)
    }

    /// Takes parts away, least used first, while all together have more bytes than they may; `spared` is being read.
    fn shed_parts(&self, spared: Lsn) {
        let room = self.part_room.load(Ordering::Relaxed).max(LEAST_PART_BYTES);
        if self.part_bytes.load(Ordering::Relaxed) <= room {
            return;
        }
        let mut parts = self.parts.lock();
        let mut held: u64 = parts.values().map(|part| part.bytes()).sum();
        while held > room {
            let least = parts
                .iter()
                .filter(|(base, part)| **base != spared && !part.is_finishing())
                .min_by_key(|(base, part)| (part.last_used(), **base))
                .map(|(base, _)| *base);
            let Some(base) = least else { return };
            match self.drop_part(&mut parts, base) {
                Ok(bytes) => held = held.saturating_sub(bytes.max(1)),
                Err(error) => {
                    tracing::warn!(%error, segment = %base.hex(), "a part of a segment could not be removed");
                    return;
                }
            }
        }
    }

    fn drop_part(&self, parts: &mut HashMap<Lsn, Arc<Part>>, base: Lsn) -> io::Result<u64> {
        let Some(part) = parts.get(&base) else {
            return Ok(0);
        };
        let bytes = part.bytes();
        match self.storage.remove(&self.part_path(base)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        parts.remove(&base);
        metrics::counter!("pds_tier_evictions_total", "what" => "part").increment(1);
        Ok(bytes)
    }

    /// Takes what `compaction` has replaced off the list, durably: everything up to `through` that it did not write.
    pub(super) fn forget_replaced(&self, through: Lsn, compaction: u32) -> io::Result<()> {
        let mut list = self.list.lock();
        let stays = |away: &AwaySegment| away.info.last > through || away.info.compaction == compaction;
        if list.values().all(stays) {
            return Ok(());
        }
        let mut shorter = list.clone();
        shorter.retain(|_, away| stays(away));
        write_list(self.storage.as_ref(), &self.dir, shorter.values())?;
        *list = shorter;
        Ok(())
    }

    /// Keeps everything up to `through` here while the guard lives.
    pub(super) fn pin(self: &Arc<Tier>, through: Lsn) -> Pinned {
        let _no_change = self.changing.lock();
        self.pinned.store(through.get(), Ordering::Release);
        Pinned(Arc::clone(self))
    }
}

/// While it lives, nothing of what a compaction reads is evicted.
#[derive(Debug)]
pub(super) struct Pinned(Arc<Tier>);

impl Drop for Pinned {
    fn drop(&mut self) {
        self.0.pinned.store(0, Ordering::Release);
    }
}

/// Runs what may wait for the network. A thread that serves tasks hands them over to another meanwhile.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}
