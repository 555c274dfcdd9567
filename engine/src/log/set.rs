//! The segments of a log as readers see them: a list of files, the last of which may still grow.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use parking_lot::RwLock;

use super::compaction::compaction_of;
use super::lsn::Lsn;
use super::reader::ReadError;
use super::resident::{Residence, SealedSegment};
use super::segment::{
    SEGMENT_TRAILER_BYTES, SegmentFooter, SegmentHeader, SegmentInfo, Tally, seek, segment_file_name,
};
use super::tier::{AwaySegment, Hydrated, Part, Tier};
use crate::storage::{OpenMode, Storage, StorageFile};

/// All segments, ascending.
#[derive(Debug)]
pub(super) struct SegmentSet {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) dir: PathBuf,
    /// What of sealed segments is mapped and was read.
    pub(super) residence: Arc<Residence>,
    /// What they share about being away.
    pub(super) tier: Arc<Tier>,
    segments: RwLock<Segments>,
}

#[derive(Debug, Default)]
struct Segments {
    /// The log, ascending.
    live: Vec<Arc<SegmentEntry>>,
    /// What a compaction has replaced, ascending: readable by location only.
    retired: Vec<Arc<SegmentEntry>>,
    pending: Option<PendingCompaction>,
}

/// A compaction that took effect and has not ended: what it replaced is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingCompaction {
    /// Its number.
    pub compaction: u32,
    /// The last LSN of what it replaced, and of what it wrote.
    pub through: Lsn,
}

impl SegmentSet {
    pub(super) fn new(storage: Arc<dyn Storage>, dir: &Path) -> SegmentSet {
        SegmentSet {
            tier: Arc::new(Tier::new(Arc::clone(&storage), dir)),
            storage,
            dir: dir.to_owned(),
            residence: Arc::default(),
            segments: RwLock::default(),
        }
    }

    /// An empty one for segments that are to take their place in this one.
    pub(super) fn beside(&self) -> SegmentSet {
        SegmentSet {
            storage: Arc::clone(&self.storage),
            dir: self.dir.clone(),
            residence: Arc::clone(&self.residence),
            tier: Arc::clone(&self.tier),
            segments: RwLock::default(),
        }
    }

    pub(super) fn path(&self, base: Lsn) -> PathBuf {
        self.dir.join(segment_file_name(base))
    }

    pub(super) fn push(&self, entry: Arc<SegmentEntry>) {
        self.segments.write().live.push(entry);
    }

    pub(super) fn pop(&self) -> Option<Arc<SegmentEntry>> {
        self.segments.write().live.pop()
    }

    pub(super) fn entries(&self) -> Vec<Arc<SegmentEntry>> {
        self.segments.read().live.clone()
    }

    pub(super) fn infos(&self) -> Vec<SegmentInfo> {
        self.segments
            .read()
            .live
            .iter()
            .map(|entry| entry.info())
            .collect()
    }

    /// Which compaction made the log's first segments; zero for none.
    pub(super) fn compaction(&self) -> u32 {
        let segments = self.segments.read();
        segments.live.first().map_or(0, |entry| entry.header.compaction)
    }

    /// The last LSN of what is compacted, or the predecessor of the first frame.
    pub(super) fn floor(&self) -> Lsn {
        let segments = self.segments.read();
        let compacted = segments.live.partition_point(|entry| entry.header.compaction > 0);
        match compacted.checked_sub(1).and_then(|at| segments.live.get(at)) {
            Some(last) => last.info().last,
            None => segments.live.first().map_or(Lsn::ZERO, |entry| entry.header.prev),
        }
    }

    pub(super) fn pending(&self) -> Option<PendingCompaction> {
        self.segments.read().pending
    }

    /// What a compaction has replaced and is still there.
    pub(super) fn retired(&self) -> Vec<Arc<SegmentEntry>> {
        self.segments.read().retired.clone()
    }

    /// Notes what a start found of a compaction that has not ended.
    pub(super) fn retire(&self, inputs: Vec<Arc<SegmentEntry>>, pending: PendingCompaction) {
        let mut segments = self.segments.write();
        segments.retired = inputs;
        segments.pending = Some(pending);
    }

    /// Lets `outputs` take the place of everything up to `through`.
    pub(super) fn replace(&self, outputs: Vec<Arc<SegmentEntry>>, through: Lsn, compaction: u32) {
        let mut segments = self.segments.write();
        let after = segments.live.partition_point(|entry| entry.header.prev < through);
        let rest = segments.live.split_off(after);
        segments.retired = std::mem::replace(&mut segments.live, outputs);
        segments.live.extend(rest);
        segments.pending = Some(PendingCompaction { compaction, through });
    }

    pub(super) fn forget_retired(&self) {
        let mut segments = self.segments.write();
        segments.retired.clear();
        segments.pending = None;
    }

    /// The segment with this base LSN.
    pub(super) fn get(&self, base: Lsn) -> Option<Arc<SegmentEntry>> {
        let segments = self.segments.read();
        let find = |among: &[Arc<SegmentEntry>]| {
            let at = among
                .binary_search_by_key(&base, |entry| entry.header.base)
                .ok()?;
            among.get(at).cloned()
        };
        find(&segments.live).or_else(|| find(&segments.retired))
    }

    /// The segment that follows `entry`, also where a compaction has replaced it while it was read.
    pub(super) fn after(&self, entry: &SegmentEntry) -> Option<Arc<SegmentEntry>> {
        let segments = self.segments.read();
        let base = entry.header.base;
        let next = |among: &[Arc<SegmentEntry>]| {
            among
                .get(among.partition_point(|other| other.header.base <= base))
                .cloned()
        };
        let is_retired = segments
            .retired
            .binary_search_by_key(&base, |other| other.header.base)
            .is_ok();
        if !is_retired {
            return next(&segments.live);
        }
        next(&segments.retired).or_else(|| {
            // What a compaction wrote has taken the place of all of them, and has bases of its own: what comes after them comes
            // after it.
            let after = segments.live.partition_point(|other| other.header.compaction > 0);
            segments.live.get(after).cloned()
        })
    }

    /// Whether reading can go on after this LSN. Within a compacted part, only the places between its own frames are
    /// places of this log.
    pub(super) fn is_place(&self, lsn: Lsn) -> bool {
        let compaction = u64::from(self.compaction());
        compaction == 0 || lsn == Lsn::ZERO || lsn >= self.floor() || compaction_of(lsn) == compaction
    }

    /// The segment that holds the first frame after `position`, given that there is one.
    ///
    /// # Errors
    /// [`ReadError::Trimmed`] if frames after `position` lay before the oldest segment, or were compacted.
    pub(super) fn holding(&self, position: Lsn) -> Result<Option<Arc<SegmentEntry>>, ReadError> {
        let (floor, inside) = (self.floor(), !self.is_place(position));
        let segments = self.segments.read();
        let Some(oldest) = segments.live.first() else {
            return Ok(None);
        };
        if position < oldest.header.prev || inside {
            let oldest = if inside {
                floor.next().unwrap_or(floor)
            } else {
                oldest.header.base
            };
            return Err(ReadError::Trimmed { oldest });
        }
        // The last segment whose predecessor is at or before the position: frames after it begin there.
        let after = segments
            .live
            .partition_point(|entry| entry.header.prev <= position);
        Ok(after.checked_sub(1).and_then(|at| segments.live.get(at)).cloned())
    }
}

/// One segment.
#[derive(Debug)]
pub(super) struct SegmentEntry {
    pub(super) header: SegmentHeader,
    path: PathBuf,
    storage: Arc<dyn Storage>,
    residence: Arc<Residence>,
    tier: Arc<Tier>,
    /// When it was read last, as the tier counts.
    used: AtomicU64,
    /// SHA-256 of the whole file, once somebody had to know.
    digest: OnceLock<[u8; 32]>,
    state: RwLock<State>,
}

#[derive(Debug)]
enum State {
    Open {
        file: Arc<dyn StorageFile>,
        end: u64,
        last: Lsn,
        frames: u64,
        index: Vec<(Lsn, u64)>,
    },
    Sealed {
        info: SegmentInfo,
        loaded: Option<Arc<SealedSegment>>,
    },
    Away(Arc<AwaySegment>),
}

/// Where the bytes of a sealed segment are.
enum Whereabouts {
    Mapped(Arc<SealedSegment>),
    Part(Arc<Part>),
}

impl SegmentEntry {
    fn new(set: &SegmentSet, header: SegmentHeader, state: State) -> Arc<SegmentEntry> {
        let storage = Arc::clone(&set.storage);
        Arc::new(SegmentEntry {
            header,
            path: set.path(header.base),
            storage,
            residence: Arc::clone(&set.residence),
            used: AtomicU64::new(set.tier.now()),
            tier: Arc::clone(&set.tier),
            digest: OnceLock::new(),
            state: RwLock::new(state),
        })
    }

    pub(super) fn absent(set: &SegmentSet, away: AwaySegment) -> Arc<SegmentEntry> {
        let header = away.header();
        SegmentEntry::new(set, header, State::Away(Arc::new(away)))
    }

    pub(super) fn open(
        set: &SegmentSet,
        header: SegmentHeader,
        file: Arc<dyn StorageFile>,
        tally: &Tally,
    ) -> Arc<SegmentEntry> {
        let index = tally.index.clone();
        let state = State::Open {
            file,
            end: tally.end,
            last: tally.last,
            frames: tally.frames,
            index,
        };
        SegmentEntry::new(set, header, state)
    }

    pub(super) fn sealed(set: &SegmentSet, header: SegmentHeader, info: SegmentInfo) -> Arc<SegmentEntry> {
        SegmentEntry::new(set, header, State::Sealed { info, loaded: None })
    }

    pub(super) fn info(&self) -> SegmentInfo {
        match &*self.state.read() {
            State::Sealed { info, .. } => info.clone(),
            State::Away(away) => away.info.clone(),
            State::Open {
                end, last, frames, ..
            } => SegmentInfo {
                base: self.header.base,
                first: self.header.base,
                last: *last,
                prev: self.header.prev,
                epoch: self.header.epoch,
                sealed: false,
                bytes: *end,
                frames: *frames,
                sha256: None,
                compaction: self.header.compaction,
            },
        }
    }

    /// Lets readers see what was written up to now.
    pub(super) fn publish(&self, tally: &Tally) {
        if let State::Open {
            end,
            last,
            frames,
            index,
            ..
        } = &mut *self.state.write()
        {
            (*end, *last, *frames) = (tally.end, tally.last, tally.frames);
            index.extend_from_slice(tally.index.get(index.len()..).unwrap_or_default());
        }
    }

    /// The file has its footer now.
    pub(super) fn seal(&self, info: SegmentInfo) {
        *self.state.write() = State::Sealed { info, loaded: None };
    }

    /// Offset of the end of the last frame that readers may see.
    pub(super) fn frames_end(&self) -> Result<u64, ReadError> {
        if let State::Open { end, .. } = &*self.state.read() {
            return Ok(*end);
        }
        Ok(match self.find()? {
            Whereabouts::Mapped(sealed) => sealed.footer().frames_end,
            Whereabouts::Part(part) => part.footer()?.frames_end,
        })
    }

    /// Where to begin to look for the first frame after `position`.
    pub(super) fn seek(&self, position: Lsn) -> Result<u64, ReadError> {
        if let State::Open { index, .. } = &*self.state.read() {
            return Ok(seek(index, position));
        }
        Ok(match self.find()? {
            Whereabouts::Mapped(sealed) => sealed.footer().seek(position),
            Whereabouts::Part(part) => part.footer()?.seek(position),
        })
    }

    /// A copy of `len` bytes from `offset`: it keeps no mapping alive.
    pub(super) fn read(&self, offset: u64, len: usize) -> Result<Bytes, ReadError> {
        let outside = || {
            let what = format!("{len} bytes from there reach beyond the end of the segment");
            ReadError::Corrupt {
                segment: self.header.base,
                offset,
                what,
            }
        };
        let end = offset.checked_add(len as u64).ok_or_else(outside)?;
        let file = match &*self.state.read() {
            State::Open {
                file, end: written, ..
            } if end <= *written => Some(Arc::clone(file)),
            State::Open { .. } => return Err(outside()),
            State::Sealed { .. } | State::Away(_) => None,
        };
        if let Some(file) = file {
            let mut bytes = BytesMut::zeroed(len);
            file.read_at(offset, &mut bytes)
                .map_err(|source| self.io(source))?;
            return Ok(bytes.freeze());
        }
        match self.find()? {
            Whereabouts::Mapped(sealed) => {
                let bytes = sealed.slice(offset, len).ok_or_else(outside)?;
                Ok(Bytes::copy_from_slice(bytes))
            }
            Whereabouts::Part(part) => part.read(offset, len),
        }
    }

    /// What is known of it, if it is away.
    pub(super) fn away(&self) -> Option<Arc<AwaySegment>> {
        match &*self.state.read() {
            State::Away(away) => Some(Arc::clone(away)),
            State::Open { .. } | State::Sealed { .. } => None,
        }
    }

    /// When it was read last, as the tier counts.
    pub(super) fn last_used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn use_now(&self) {
        self.used.store(self.tier.now(), Ordering::Relaxed);
    }

    pub(super) fn known_digest(&self) -> Option<[u8; 32]> {
        self.digest.get().copied()
    }

    pub(super) fn set_digest(&self, digest: [u8; 32]) {
        // It never changes, so whoever came first was right.
        let _known = self.digest.set(digest);
    }

    /// Its file is about to go. Returns what it was.
    pub(super) fn go_away(&self, away: Arc<AwaySegment>) -> SegmentInfo {
        let before = self.info();
        *self.state.write() = State::Away(away);
        before
    }

    /// Its file is here again.
    pub(super) fn come_back(&self, info: SegmentInfo) {
        *self.state.write() = State::Sealed { info, loaded: None };
    }

    /// The mapped file if it is sealed and here.
    pub(super) fn mapped(&self) -> Result<Option<Arc<SealedSegment>>, ReadError> {
        if self.is_open() {
            return Ok(None);
        }
        Ok(match self.find()? {
            Whereabouts::Mapped(sealed) => Some(sealed),
            Whereabouts::Part(_) => None,
        })
    }

    /// The whole file of a sealed segment. One that is away is brought back first.
    ///
    /// # Errors
    /// [`ReadError::NotSealed`], or what reading it met.
    pub(super) fn load(&self) -> Result<Arc<SealedSegment>, ReadError> {
        loop {
            if let Whereabouts::Mapped(sealed) = self.find()? {
                return Ok(sealed);
            }
            if let Hydrated::Damaged { base } = self.tier.bring_back(self)? {
                return Err(ReadError::Away {
                    segment: base,
                    what: "what the replica has is not this segment".to_owned(),
                });
            }
        }
    }

    /// Whether it is still written to.
    pub(super) fn is_open(&self) -> bool {
        matches!(*self.state.read(), State::Open { .. })
    }

    /// Where the bytes of a sealed segment are; the file is opened and mapped at the first use.
    fn find(&self) -> Result<Whereabouts, ReadError> {
        if self.last_used() != self.tier.now() {
            self.use_now();
        }
        match &*self.state.read() {
            State::Sealed {
                loaded: Some(loaded), ..
            } => return Ok(Whereabouts::Mapped(Arc::clone(loaded))),
            State::Sealed { loaded: None, .. } => {}
            State::Away(away) => return Ok(Whereabouts::Part(self.tier.part(away)?)),
            State::Open { .. } => {
                return Err(ReadError::NotSealed {
                    segment: self.header.base,
                });
            }
        }
        let file = match self.storage.open(&self.path, OpenMode::Read) {
            Ok(file) => file,
            Err(source) => {
                // It may have been evicted since we looked.
                return match self.away() {
                    Some(away) => Ok(Whereabouts::Part(self.tier.part(&away)?)),
                    None => Err(self.io(source)),
                };
            }
        };
        let bytes = file.stable_bytes().map_err(|source| self.io(source))?;
        let footer = SegmentFooter::of_file(&bytes).ok_or_else(|| ReadError::Corrupt {
            segment: self.header.base,
            offset: (bytes.len().saturating_sub(SEGMENT_TRAILER_BYTES)) as u64,
            what: "the footer of a sealed segment is missing or damaged".to_owned(),
        })?;
        let fresh = self.residence.map(bytes, footer);
        if let State::Sealed { loaded, .. } = &mut *self.state.write() {
            // Whoever came first stays; two mappings of one file would only cost.
            return Ok(Whereabouts::Mapped(Arc::clone(loaded.get_or_insert(fresh))));
        }
        Ok(Whereabouts::Mapped(fresh))
    }

    fn io(&self, source: io::Error) -> ReadError {
        ReadError::Io {
            segment: self.header.base,
            source,
        }
    }
}
