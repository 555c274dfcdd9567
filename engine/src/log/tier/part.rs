//! What is here of a segment that is away: a sparse file and a map of its pieces.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use parking_lot::{Condvar, Mutex};
use sha2::{Digest, Sha256};

use super::super::lsn::Lsn;
use super::super::reader::ReadError;
use super::super::segment::{SEGMENT_TRAILER_BYTES, SegmentFooter};
use super::{AwaySegment, PIECE_BYTES, SourceError, Tier, blocking};
use crate::storage::{OpenMode, StorageFile};

/// The longest that a read waits for a piece that somebody else is fetching.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most pieces that one fetch brings because they will probably be read next: 4 MiB.
const MOST_AHEAD: usize = 16;
/// Bytes hashed at once.
const HASH_BYTES: usize = 1 << 20;

/// See the top of this file.
#[derive(Debug)]
pub(in super::super) struct Part {
    tier: Arc<Tier>,
    away: Arc<AwaySegment>,
    file: Arc<dyn StorageFile>,
    pieces: Mutex<Pieces>,
    changed: Condvar,
    footer: OnceLock<Arc<SegmentFooter>>,
    used: AtomicU64,
    /// It is about to become the segment's file and must not be taken away.
    finishing: AtomicBool,
    counted: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Pieces {
    /// Whether it is in the file.
    here: Vec<bool>,
    count: usize,
    /// Being fetched now.
    coming: Vec<Range<usize>>,
    /// Where the last fetch ended, and how many pieces it brought: whoever goes on there reads in order.
    next: usize,
    ahead: usize,
    /// How often a fetch failed, and why the last one did.
    failures: u64,
    failure: String,
}

impl Pieces {
    fn is_coming(&self, piece: usize) -> bool {
        self.coming.iter().any(|run| run.contains(&piece))
    }

    fn first_missing(&self, wanted: &Range<usize>) -> Option<usize> {
        wanted
            .clone()
            .find(|at| !self.here.get(*at).copied().unwrap_or(true))
    }

    /// What to fetch because of `missing`, of which nothing is here or coming.
    fn run(&mut self, missing: usize, wanted_end: usize) -> Range<usize> {
        self.ahead = if missing == self.next {
            (self.ahead * 2).clamp(1, MOST_AHEAD)
        } else {
            1
        };
        let end = wanted_end.max(missing + self.ahead).min(self.here.len());
        let free = |at: &usize| !self.here.get(*at).copied().unwrap_or(true) && !self.is_coming(*at);
        let run = missing..missing + (missing..end).take_while(free).count();
        self.next = run.end;
        run
    }
}

impl Part {
    pub(super) fn create(tier: &Arc<Tier>, away: Arc<AwaySegment>, path: &Path) -> io::Result<Part> {
        // Of a crash.
        if tier.storage.exists(path)? {
            tier.storage.remove(path)?;
        }
        let file = tier.storage.open(path, OpenMode::CreateNew)?;
        let pieces = usize::try_from(away.info.bytes.div_ceil(PIECE_BYTES));
        let pieces = pieces.map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        Ok(Part {
            tier: Arc::clone(tier),
            away,
            file,
            pieces: Mutex::new(Pieces {
                here: vec![false; pieces],
                count: 0,
                coming: Vec::new(),
                next: 0,
                ahead: 0,
                failures: 0,
                failure: String::new(),
            }),
            changed: Condvar::new(),
            footer: OnceLock::new(),
            used: AtomicU64::new(tier.now()),
            finishing: AtomicBool::new(false),
            counted: Arc::clone(&tier.part_bytes),
        })
    }

    fn base(&self) -> Lsn {
        self.away.info.base
    }

    pub(super) fn used(&self, now: u64) {
        self.used.store(now, Ordering::Relaxed);
    }

    pub(super) fn last_used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn set_finishing(&self, finishing: bool) {
        self.finishing.store(finishing, Ordering::Release);
    }

    pub(super) fn is_finishing(&self) -> bool {
        self.finishing.load(Ordering::Acquire)
    }

    /// Bytes that it takes on the disk.
    pub(super) fn bytes(&self) -> u64 {
        self.pieces.lock().count as u64 * PIECE_BYTES
    }

    /// A copy of `len` bytes from `offset`.
    pub(in super::super) fn read(&self, offset: u64, len: usize) -> Result<Bytes, ReadError> {
        let end = offset
            .checked_add(len as u64)
            .filter(|end| *end <= self.away.info.bytes);
        let Some(end) = end else {
            return Err(ReadError::Corrupt {
                segment: self.base(),
                offset,
                what: format!("{len} bytes from there reach beyond the end of the segment"),
            });
        };
        self.ensure(piece_of(offset)..piece_of(end.saturating_sub(1).max(offset)) + 1)?;
        let mut bytes = BytesMut::zeroed(len);
        self.file
            .read_at(offset, &mut bytes)
            .map_err(|source| ReadError::Io {
                segment: self.base(),
                source,
            })?;
        Ok(bytes.freeze())
    }

    /// The segment's footer, as it would be if the segment were here.
    pub(in super::super) fn footer(&self) -> Result<Arc<SegmentFooter>, ReadError> {
        if let Some(footer) = self.footer.get() {
            return Ok(Arc::clone(footer));
        }
        let info = &self.away.info;
        let damaged = |offset| ReadError::Corrupt {
            segment: self.base(),
            offset,
            what: "the footer of a segment in the replica is missing or damaged".to_owned(),
        };
        let trailer_at = info.bytes.saturating_sub(SEGMENT_TRAILER_BYTES as u64);
        let trailer = self.read(trailer_at, SEGMENT_TRAILER_BYTES)?;
        let len = SegmentFooter::len_by_trailer(&trailer, info.bytes).ok_or_else(|| damaged(trailer_at))?;
        let at = info.bytes.saturating_sub(len as u64);
        let footer = SegmentFooter::parse(&self.read(at, len)?, info.bytes);
        let is_its = |footer: &SegmentFooter| (footer.first, footer.last) == (info.first, info.last);
        let footer = footer.filter(is_its).ok_or_else(|| damaged(at))?;
        Ok(Arc::clone(self.footer.get_or_init(|| Arc::new(footer))))
    }

    /// Sees to it that these pieces are in the file.
    fn ensure(&self, wanted: Range<usize>) -> Result<(), ReadError> {
        if self.pieces.lock().first_missing(&wanted).is_none() {
            metrics::counter!("pds_tier_hits_total").increment(1);
            return Ok(());
        }
        blocking(|| self.bring(&wanted)).map_err(|SourceError(what)| {
            metrics::counter!("pds_tier_fetch_errors_total").increment(1);
            ReadError::Away {
                segment: self.base(),
                what,
            }
        })
    }

    fn bring(&self, wanted: &Range<usize>) -> Result<(), SourceError> {
        let until = Instant::now() + PATIENCE;
        let mut pieces = self.pieces.lock();
        loop {
            let Some(missing) = pieces.first_missing(wanted) else {
                return Ok(());
            };
            if pieces.is_coming(missing) {
                let failures = pieces.failures;
                let late = self.changed.wait_until(&mut pieces, until).timed_out();
                let settled = pieces.first_missing(&(missing..missing + 1)).is_none();
                if !settled && late {
                    return Err(SourceError("another read's fetch takes too long".to_owned()));
                }
                if !settled && !pieces.is_coming(missing) && pieces.failures > failures {
                    return Err(SourceError(pieces.failure.clone()));
                }
                continue;
            }
            let run = pieces.run(missing, wanted.end);
            pieces.coming.push(run.clone());
            drop(pieces);
            let coming = Coming { part: self, run };
            let fetched = self.fetch(&coming.run);
            pieces = self.pieces.lock();
            match &fetched {
                Ok(()) => {
                    for here in pieces.here.get_mut(coming.run.clone()).unwrap_or_default() {
                        *here = true;
                    }
                    pieces.count += coming.run.len();
                    self.counted
                        .fetch_add(coming.run.len() as u64 * PIECE_BYTES, Ordering::Relaxed);
                }
                Err(SourceError(what)) => {
                    pieces.failures += 1;
                    pieces.failure.clone_from(what);
                }
            }
            drop(pieces);
            drop(coming);
            fetched?;
            self.tier.shed_parts(self.base());
            pieces = self.pieces.lock();
        }
    }

    fn fetch(&self, run: &Range<usize>) -> Result<(), SourceError> {
        let start = run.start as u64 * PIECE_BYTES;
        let end = (run.end as u64 * PIECE_BYTES).min(self.away.info.bytes);
        let bytes = self.tier.fetch(&self.away, start..end)?;
        let written = self.file.write_at(start, &bytes);
        written.map_err(|error| SourceError(format!("it could not be put on the disk: {error}")))
    }

    /// Brings the next pieces that are missing, a few at a time; how many bytes these were. `None` when all are here.
    pub(super) fn bring_more(&self) -> Result<Option<u64>, ReadError> {
        let (from, to) = {
            let pieces = self.pieces.lock();
            let Some(from) = pieces.first_missing(&(0..pieces.here.len())) else {
                return Ok(None);
            };
            let missing = |at: &usize| !pieces.here.get(*at).copied().unwrap_or(true);
            (
                from,
                from + (from..pieces.here.len())
                    .take(MOST_AHEAD)
                    .take_while(missing)
                    .count(),
            )
        };
        self.ensure(from..to)?;
        Ok(Some((to - from) as u64 * PIECE_BYTES))
    }

    /// Makes what is in the file durable, and compares all of it with what the segment is known to be.
    pub(super) fn is_whole_and_right(&self) -> io::Result<bool> {
        self.file.sync_data()?;
        if self.file.len()? != self.away.info.bytes {
            return Ok(false);
        }
        Ok(file_digest(self.file.as_ref(), self.away.info.bytes)? == self.away.file_sha256)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let bytes = self.pieces.get_mut().count as u64 * PIECE_BYTES;
        self.counted.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Says that these pieces are not coming any more, also if the source panics.
struct Coming<'a> {
    part: &'a Part,
    run: Range<usize>,
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        let mut pieces = self.part.pieces.lock();
        pieces.coming.retain(|run| *run != self.run);
        self.part.changed.notify_all();
    }
}

fn piece_of(offset: u64) -> usize {
    usize::try_from(offset / PIECE_BYTES).unwrap_or(usize::MAX)
}

/// SHA-256 of a file of `len` bytes, read without mapping it.
pub(super) fn file_digest(file: &dyn StorageFile, len: u64) -> io::Result<[u8; 32]> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; HASH_BYTES];
    let mut at = 0;
    while at < len {
        let piece = usize::try_from(len - at).unwrap_or(HASH_BYTES).min(HASH_BYTES);
        let piece = buffer.get_mut(..piece).unwrap_or_default();
        file.read_at(at, piece)?;
        digest.update(&*piece);
        at += piece.len() as u64;
    }
    Ok(digest.finalize().into())
}
