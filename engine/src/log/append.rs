//! The writer's core, without a thread: it gives entries their place, lays out frames, writes, syncs, rotates, seals.
//!
//! A new segment: create the file → write its header → sync it → sync the directory → first batch.
//! Ahead of need: write zeros behind the last frame → sync. Appends then overwrite blocks that the file has already, and their
//! sync changes nothing but data.
//! Sealing: write what is gathered → sync → cut off the zeros → write the footer → sync.
//!
//! | crash after            | recovery finds                              | and                          |
//! |------------------------|---------------------------------------------|------------------------------|
//! | create                 | nothing, or a file without a header         | removes it                   |
//! | sync of the header     | a header without frames, or nothing         | removes it                   |
//! | writing zeros          | zeros or anything behind the last frame     | cuts it off                  |
//! | writing a batch        | any part of the batch                       | cuts at the last whole group |
//! | sync of a batch        | the batch                                   | keeps it, seals              |
//! | writing the footer     | any part of the footer, zeros behind it     | cuts it off, seals           |
//! | sync of the footer     | a sealed segment                            | keeps it                     |
//!
//! Any failure to write or sync closes the core for good: what the disk holds is in doubt, and trying again could
//! report success for pages that the kernel has already dropped.

use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;

use super::draft::{Draft, Place};
use super::frame::{Flags, Frame, FrameHeader};
use super::lsn::{Epoch, Location, LogId, Lsn};
use super::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentInfo, Tally};
use super::set::{SegmentEntry, SegmentSet};
use super::watermark::Failed;
use crate::clock::Clock;
use crate::storage::{OpenMode, StorageFile};

/// Zeros that are written and synced in one go. It is the longest that a group can have to wait because of them: some tenths
/// of a millisecond.
const AHEAD_STEP_BYTES: u64 = 256 << 10;
/// What the steps write.
static ZEROS: [u8; ZEROS_BYTES as usize] = [0; ZEROS_BYTES as usize];
/// Zeros in one write. A kernel keeps the pages of one write together, and takes them all for written when an append later
/// changes one of them.
const ZEROS_BYTES: u64 = 4 << 10;

/// Where a group came to lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupLsns {
    /// LSN of its first frame.
    pub first: Lsn,
    /// LSN of its last frame: when a watermark reaches this, the group is done.
    pub last: Lsn,
    /// Where each frame lies, in the order of the drafts.
    pub locations: Vec<Location>,
}

/// What a new writer starts from.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) log_id: LogId,
    pub(super) epoch: Epoch,
    /// LSN of the last frame there is.
    pub(super) last: Lsn,
    /// No LSN at or below this is given out.
    pub(super) spent: Lsn,
    pub(super) segment_bytes: u64,
    /// Bytes that are written ahead of the last frame, at most.
    pub(super) ahead_bytes: u64,
}

/// See the top of this file.
pub(super) struct LogCore {
    set: Arc<SegmentSet>,
    clock: Arc<dyn Clock>,
    origin: Origin,
    open: Option<OpenSegment>,
    batch: BytesMut,
    headers: Vec<FrameHeader>,
    /// Something is written that is not synced.
    dirty: bool,
    written: Vec<Frame>,
    failed: Option<Failed>,
}

#[derive(Debug)]
struct OpenSegment {
    entry: Arc<SegmentEntry>,
    file: Arc<dyn StorageFile>,
    tally: Tally,
    /// How long the file is: frames, then zeros.
    written_to: u64,
    /// Zeros could not be written, so no more are tried in this segment.
    no_ahead: bool,
}

fn write_zeros(file: &dyn StorageFile, at: u64, len: u64) -> std::io::Result<()> {
    let (mut at, end) = (at, at + len);
    while at < end {
        let piece = (ZEROS_BYTES - at % ZEROS_BYTES).min(end - at);
        let zeros = usize::try_from(piece).ok().and_then(|len| ZEROS.get(..len));
        file.write_at(at, zeros.unwrap_or_default())?;
        at += piece;
    }
    Ok(())
}

impl LogCore {
    pub(super) fn new(set: Arc<SegmentSet>, clock: Arc<dyn Clock>, origin: Origin) -> LogCore {
        LogCore {
            set,
            clock,
            origin,
            open: None,
            batch: BytesMut::new(),
            headers: Vec::new(),
            dirty: false,
            written: Vec::new(),
            failed: None,
        }
    }

    /// LSN of the last frame that has its place.
    pub(super) fn last(&self) -> Lsn {
        self.origin.last
    }

    /// The reign of the last frame, or of the frames to come.
    pub(super) fn epoch(&self) -> Epoch {
        self.origin.epoch
    }

    /// Whether there is a segment to which frames can be added.
    pub(super) fn has_open_segment(&self) -> bool {
        self.open.is_some()
    }

    /// Bytes of frames that have their place and are not written.
    pub(super) fn gathered(&self) -> usize {
        self.batch.len()
    }

    /// Goes on in a segment that another process left open, whose file ends with what `tally` counts.
    pub(super) fn resume(&mut self, entry: Arc<SegmentEntry>, file: Arc<dyn StorageFile>, tally: Tally) {
        let written_to = tally.end;
        self.open = Some(OpenSegment {
            entry,
            file,
            tally,
            written_to,
            no_ahead: false,
        });
    }

    /// Begins a segment as another writer did, of that one's reign.
    pub(super) fn begin_as(&mut self, epoch: Epoch, base: Lsn) -> Result<(), Failed> {
        self.origin.epoch = epoch;
        self.create(base).map(|_| ())
    }

    /// Gives a frame of another writer, which was checked, its place in the open segment.
    pub(super) fn gather(&mut self, header: FrameHeader, bytes: &[u8]) {
        self.batch.extend_from_slice(bytes);
        self.headers.push(header);
        self.origin.last = header.lsn;
        self.origin.spent = header.lsn;
    }

    /// Ends the segments of the writer that was followed: what comes next is of this reign and above `spent`.
    pub(super) fn reign(&mut self, epoch: Epoch, spent: Lsn) -> Result<(), Failed> {
        self.seal()?;
        self.origin.epoch = epoch;
        self.origin.spent = self.origin.spent.max(spent);
        Ok(())
    }

    /// What the clock says, in microseconds since 1970.
    pub(super) fn now_micros(&self) -> u64 {
        self.clock.now_micros()
    }

    /// Gives a group (checked before: not empty, within bounds) its place and gathers its frames. Rotates first if the
    /// open segment has no room for it.
    pub(super) fn append(&mut self, mut group: Vec<Draft>) -> Result<GroupLsns, Failed> {
        self.still_open()?;
        let size: usize = group.iter().map(Draft::frame_len).sum();
        if let Some(open) = &self.open
            && open.tally.end + (self.batch.len() + size) as u64 > self.origin.segment_bytes
        {
            self.seal()?;
        }
        let first = self.next_lsn(group.len())?;
        let mut segment_flags = Flags::default();
        let (base, mut offset) = match &self.open {
            Some(open) => (open.entry.header.base, open.tally.end + self.batch.len() as u64),
            None => {
                segment_flags = Flags::SEGMENT_START;
                self.create(first)?
            }
        };
        self.batch.reserve(size);
        let mut locations = Vec::with_capacity(group.len());
        let mut lsn = first;
        let count = group.len();
        for (at, draft) in group.iter_mut().enumerate() {
            let mut flags = segment_flags;
            if at == 0 && self.batch.is_empty() && !self.dirty {
                flags = flags.with(Flags::AFTER_SYNC);
            }
            if at + 1 < count {
                flags = flags.with(Flags::MORE);
            }
            segment_flags = Flags::default();
            let place = Place {
                lsn,
                prev: self.origin.last,
                epoch: self.origin.epoch,
                flags,
            };
            let header = draft.encode(place, &mut self.batch);
            locations.push(Location {
                segment: base,
                offset,
                len: header.frame_len,
            });
            offset += u64::from(header.frame_len);
            self.headers.push(header);
            self.origin.last = lsn;
            lsn = lsn.next().unwrap_or(Lsn::MAX);
        }
        self.origin.spent = self.origin.last;
        Ok(GroupLsns {
            first,
            last: self.origin.last,
            locations,
        })
    }

    /// The LSN of the next group's first frame, with room for all of it below the bound.
    fn next_lsn(&mut self, count: usize) -> Result<Lsn, Failed> {
        let next = self.clock.now_micros().max(self.origin.spent.get() + 1);
        match Lsn::new(next.saturating_add(count as u64)).and(Lsn::new(next)) {
            Some(lsn) => Ok(lsn),
            None => Err(self.fail("the clock is beyond the year 2255, where LSNs end; set the clock")),
        }
    }

    fn create(&mut self, base: Lsn) -> Result<(Lsn, u64), Failed> {
        let Origin {
            log_id, epoch, last, ..
        } = self.origin;
        let header = SegmentHeader {
            log_id,
            epoch,
            base,
            prev: last,
            compaction: 0,
        };
        let path = self.set.path(base);
        let created = (|| {
            let file = self.set.storage.open(&path, OpenMode::CreateNew)?;
            file.write_at(0, &header.encode())?;
            file.sync_data()?;
            self.set.storage.sync_dir(&self.set.dir)?;
            Ok::<_, std::io::Error>(file)
        })();
        let file =
            created.map_err(|error| self.fail(format!("creating {} failed: {error}", path.display())))?;
        let tally = Tally::start(&header);
        let entry = SegmentEntry::open(&self.set, header, Arc::clone(&file), &tally);
        self.set.push(Arc::clone(&entry));
        let end = tally.end;
        self.open = Some(OpenSegment {
            entry,
            file,
            tally,
            written_to: SEGMENT_HEADER_BYTES as u64,
            no_ahead: false,
        });
        Ok((base, end))
    }

    /// Writes what is gathered; readers see it from now on, but a crash may still take it.
    pub(super) fn write(&mut self) -> Result<(), Failed> {
        self.still_open()?;
        if self.batch.is_empty() {
            return Ok(());
        }
        let bytes = self.batch.split().freeze();
        let Some(open) = &mut self.open else {
            return Err(self.fail("frames were gathered without a segment; this is a bug"));
        };
        let at = open.tally.end;
        let base = open.entry.header.base;
        self.dirty = true;
        if let Err(error) = open.file.write_at(at, &bytes) {
            let what = format!(
                "writing {} bytes at offset {at} of segment {base} failed: {error}",
                bytes.len()
            );
            return Err(self.fail(what));
        }
        let mut from = 0;
        for header in self.headers.drain(..) {
            let frame = bytes.slice(from..from + header.len());
            self.written
                .push(Frame::trusted(header, frame.clone(), base, open.tally.end));
            open.tally.add(&header, &frame);
            from += header.len();
        }
        open.written_to = open.written_to.max(open.tally.end);
        open.entry.publish(&open.tally);
        metrics::histogram!("pds_log_batch_bytes").record(bytes.len() as f64);
        metrics::counter!("pds_log_appended_bytes_total").increment(bytes.len() as u64);
        Ok(())
    }

    /// The frames that were written since this was last asked.
    pub(super) fn take_written(&mut self) -> Vec<Frame> {
        std::mem::take(&mut self.written)
    }

    /// Makes what is written survive a crash, and tells up to where that is.
    pub(super) fn sync(&mut self) -> Result<Lsn, Failed> {
        self.still_open()?;
        if let Some(open) = &self.open
            && self.dirty
        {
            let start = Instant::now();
            if let Err(error) = open.file.sync_data() {
                let what = format!("sync of segment {} failed: {error}", open.entry.header.base);
                return Err(self.fail(what));
            }
            metrics::histogram!("pds_log_fsync_seconds").record(start.elapsed().as_secs_f64());
        }
        self.dirty = false;
        // What is gathered but not written has its place already, and is not meant here.
        Ok(self
            .open
            .as_ref()
            .map_or(self.origin.last, |open| open.tally.last))
    }

    /// Where zeros are missing and how many bytes of them one step writes. A step is only worth its sync when it is a whole
    /// one, or the last one of the segment.
    fn ahead_wanted(&self) -> Option<(u64, u64)> {
        let open = self.open.as_ref().filter(|open| !open.no_ahead)?;
        let until = open.tally.end.saturating_add(self.origin.ahead_bytes);
        let missing = until
            .min(self.origin.segment_bytes)
            .saturating_sub(open.written_to);
        let step = AHEAD_STEP_BYTES.min(self.origin.ahead_bytes);
        let worth = missing >= step || until >= self.origin.segment_bytes;
        let len = missing.min(step);
        (worth && len > 0).then_some((open.written_to, len))
    }

    /// One bounded step of writing zeros behind the frames of the open segment, and of syncing them: for when nobody waits.
    /// `true` if another one would be of use.
    ///
    /// Zeros that cannot be written (the disk is full) fail nothing: appends grow the file themselves then, or fail
    /// themselves. A failed sync closes the core like any other, because it may have been about frames as well.
    pub(super) fn write_ahead(&mut self) -> Result<bool, Failed> {
        self.still_open()?;
        if self.dirty || !self.batch.is_empty() {
            return Ok(false);
        }
        let Some((at, len)) = self.ahead_wanted() else {
            return Ok(false);
        };
        let Some(open) = &mut self.open else {
            return Ok(false);
        };
        // Also when it fails, as a part may have been written.
        open.written_to = at + len;
        if let Err(error) = write_zeros(&*open.file, at, len) {
            open.no_ahead = true;
            tracing::warn!(%error, segment = %open.entry.header.base.hex(), "writing ahead failed; appends are slower until the next segment");
            return Ok(false);
        }
        if let Err(error) = open.file.sync_data() {
            let what = format!("sync of segment {} failed: {error}", open.entry.header.base);
            return Err(self.fail(what));
        }
        metrics::counter!("pds_log_ahead_bytes_total").increment(len);
        Ok(self.ahead_wanted().is_some())
    }

    /// Writes and syncs what is gathered, and closes the open segment with its footer. `None` if none is open.
    pub(super) fn seal(&mut self) -> Result<Option<SegmentInfo>, Failed> {
        self.write()?;
        self.sync()?;
        let Some(open) = self.open.take() else {
            return Ok(None);
        };
        let cut = if open.written_to > open.tally.end {
            open.file.set_len(open.tally.end)
        } else {
            Ok(())
        };
        match cut.and_then(|()| seal_file(&open.entry.header, open.file.as_ref(), &open.tally)) {
            Ok(info) => {
                open.entry.seal(info.clone());
                Ok(Some(info))
            }
            Err(error) => {
                let what = format!("sealing segment {} failed: {error}", open.entry.header.base);
                Err(self.fail(what))
            }
        }
    }

    pub(super) fn still_open(&self) -> Result<(), Failed> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    fn fail(&mut self, what: impl std::fmt::Display) -> Failed {
        let reason = format!("{what}; the log takes no more writes until it is opened again");
        self.failed
            .get_or_insert_with(|| Failed {
                reason: reason.into(),
            })
            .clone()
    }
}

/// Writes the footer behind the last frame and syncs.
pub(super) fn seal_file(
    header: &SegmentHeader,
    file: &dyn StorageFile,
    tally: &Tally,
) -> std::io::Result<SegmentInfo> {
    let footer = tally.footer();
    let bytes = footer.encode();
    file.write_at(footer.frames_end, &bytes)?;
    file.sync_data()?;
    Ok(SegmentInfo::sealed(
        header,
        &footer,
        footer.frames_end + bytes.len() as u64,
    ))
}
