//! Replacing the oldest segments by compacted ones, so that a crash at any moment leaves one or the other.
//!
//! A compaction takes the log's segments from the first up to one whose last LSN is *through*, and writes others that
//! cover the same span. Their frames have LSNs of their own: the compaction's number in the upper bits and a count in
//! the lower [`LSN_BITS`], far below every LSN that a clock gave, so no base LSN is ever used twice; the last frame alone
//! has the LSN *through*, which the next segment names as its predecessor. To all who walk a log a compacted segment is
//! a segment.
//!
//! | step                                                   | a crash leaves                     | and the next start          |
//! |--------------------------------------------------------|------------------------------------|-----------------------------|
//! | journal: writing                                       | nothing, or the journal            | removes the journal         |
//! | outputs: create, write, seal, sync; sync the directory | some outputs, whole or not         | removes them, then it       |
//! | journal: prepared, with the digest of each output      | outputs and inputs                 | takes the outputs           |
//! | *whoever points into inputs is moved, durably*         | the same                           | takes the outputs           |
//! | inputs: remove; sync the directory                     | outputs, some inputs               | takes the outputs           |
//! | journal: remove; sync the directory                    | outputs, perhaps the journal       | takes the outputs           |
//!
//! The journal is one small file, written under another name and renamed. While it says *prepared*, the inputs that are
//! still there are readable beside the log, for those who were not moved yet.

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use bytes::BytesMut;

use super::append::seal_file;
use super::draft::{Draft, Place};
use super::frame::{Flags, MAX_FRAME_BYTES};
use super::journal::{JOURNAL_NAME, Journal, Output, remove_then_journal};
use super::lsn::{Epoch, LogId, Lsn};
use super::reader::{LogReader, ReadError};
use super::ring::Ring;
use super::segment::{SegmentHeader, SegmentInfo, Tally, segment_file_name};
use super::set::{PendingCompaction, SegmentEntry, SegmentSet};
use super::tier::Pinned;
use super::watermark::Watermark;
use crate::storage::{OpenMode, StorageFile};

/// Lower bits of a compacted frame's LSN, which count the frames.
const LSN_BITS: u32 = 24;

/// Why a compaction could not go on. The log is as it was, unless it says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum CompactionError {
    /// The last compaction has not ended: readers still use what it replaced, or it failed. A start ends it.
    #[error("the last compaction has not ended yet")]
    Unfinished,
    /// A segment that would be read is away: compacting needs all of them here, as what they hold is read in no order.
    #[error("segment {} is not on this disk", segment.hex())]
    Away {
        /// Its base LSN.
        segment: Lsn,
    },
    /// No sealed segment ends there.
    #[error("no sealed segment of the log ends at {through}")]
    NoSuchEnd {
        /// Where the compacted part was to end.
        through: Lsn,
    },
    /// The log's own LSNs begin too early: there is no room for those of compacted frames before them.
    #[error("the log's LSNs begin at {first}, which leaves no room before them")]
    NoRoom {
        /// The first LSN that a clock gave.
        first: Lsn,
    },
    /// Nothing was written before the closing frame: a defect.
    #[error("a compaction must write at least one frame")]
    Empty,
    /// A frame is over the format's bound.
    #[error("a compacted frame of {bytes} bytes is too long")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// A segment could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The disk failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the disk said.
        #[source]
        source: io::Error,
    },
}

fn at(what: impl Into<String>) -> impl FnOnce(io::Error) -> CompactionError {
    move |source| CompactionError::Io {
        what: what.into(),
        source,
    }
}

/// The number of the compaction that gave this LSN, or zero if a clock did. `first` is the first that a clock gave.
#[must_use]
pub fn compaction_of(lsn: Lsn) -> u64 {
    lsn.get() >> LSN_BITS
}

fn lsn_of(compaction: u32, count: u64) -> Option<Lsn> {
    if count >> LSN_BITS != 0 {
        return None;
    }
    Lsn::new((u64::from(compaction) << LSN_BITS) + count)
}

/// Writes the segments of a compaction. Dropping it takes everything back.
#[derive(Debug)]
pub(crate) struct CompactionWriter {
    set: Arc<SegmentSet>,
    compaction: u32,
    through: Lsn,
    log_id: LogId,
    epoch: Epoch,
    segment_bytes: u64,
    last: Lsn,
    frames: u64,
    open: Option<Growing>,
    done: Vec<(SegmentHeader, SegmentInfo)>,
    /// Every file that was created.
    names: Vec<String>,
    /// Whether the journal speaks for what was written, so that it stays.
    kept: bool,
    /// What is read stays here.
    _pinned: Pinned,
}

#[derive(Debug)]
struct Growing {
    header: SegmentHeader,
    file: Arc<dyn StorageFile>,
    tally: Tally,
}

impl LogReader {
    /// The number of the compaction that made the log's first segments; zero if none did.
    #[must_use]
    pub fn compaction(&self) -> u32 {
        self.set.compaction()
    }

    /// The last LSN of the log's compacted part, or the predecessor of the first entry: what lies at or before it cannot
    /// be read entry by entry.
    #[must_use]
    pub fn floor(&self) -> Lsn {
        self.set.floor()
    }

    /// A compaction whose segments are the log already, while those that it replaced are still there.
    #[must_use]
    pub fn pending_compaction(&self) -> Option<PendingCompaction> {
        self.set.pending()
    }

    /// Whether reading can go on after this LSN: it is not one that a compaction took away.
    #[must_use]
    pub fn is_place(&self, lsn: Lsn) -> bool {
        self.set.is_place(lsn)
    }

    /// What the pending compaction has replaced and is still there.
    #[must_use]
    pub fn replaced(&self) -> Vec<SegmentInfo> {
        self.set.retired().iter().map(|entry| entry.info()).collect()
    }

    /// Begins to replace everything up to `through`, which is the last LSN of a sealed segment.
    ///
    /// # Errors
    /// [`CompactionError`].
    pub(crate) fn begin_compaction(
        &self,
        through: Lsn,
        segment_bytes: u64,
    ) -> Result<CompactionWriter, CompactionError> {
        let set = Arc::clone(&self.set);
        if set.pending().is_some()
            || set
                .storage
                .exists(&set.dir.join(JOURNAL_NAME))
                .map_err(at("looking for the compaction's journal"))?
        {
            return Err(CompactionError::Unfinished);
        }
        let segments = set.infos();
        let end = segments
            .iter()
            .find(|segment| segment.last == through && segment.sealed)
            .ok_or(CompactionError::NoSuchEnd { through })?;
        let pinned = set.tier.pin(through);
        if let Some(away) = self.away().iter().find(|away| away.info.last <= through) {
            let segment = away.info.base;
            return Err(CompactionError::Away { segment });
        }
        let log_id = set
            .get(end.base)
            .map(|entry| entry.header.log_id)
            .ok_or(CompactionError::NoSuchEnd { through })?;
        let compaction = self.compaction().saturating_add(1);
        let room = lsn_of(compaction.saturating_add(1), 0).unwrap_or(Lsn::MAX);
        // What a clock gave: the first segment that is not compacted, and the end of those that are.
        let first = segments
            .iter()
            .find(|segment| segment.compaction == 0)
            .map_or(through, |segment| segment.base)
            .min(through);
        if first <= room {
            return Err(CompactionError::NoRoom { first });
        }
        Journal::Writing { compaction }
            .write(set.storage.as_ref(), &set.dir)
            .map_err(at("writing the compaction's journal"))?;
        Ok(CompactionWriter {
            compaction,
            through,
            log_id,
            epoch: end.epoch,
            segment_bytes,
            last: Lsn::ZERO,
            frames: 0,
            open: None,
            done: Vec::new(),
            names: Vec::new(),
            kept: false,
            _pinned: pinned,
            set,
        })
    }

    /// Ends a compaction: nobody points into its inputs any more, durably, and nobody reads them. Removes their files.
    /// Returns how many bytes that freed. Nothing to do is no error.
    ///
    /// # Errors
    /// The disk's. The next start does the rest.
    pub(crate) fn end_compaction(&self) -> Result<u64, CompactionError> {
        let Some(pending) = self.set.pending() else {
            return Ok(0);
        };
        let inputs = self.set.retired();
        let names: Vec<String> = inputs
            .iter()
            .map(|entry| segment_file_name(entry.header.base))
            .collect();
        // While there is the journal, it is known what they were.
        self.set
            .tier
            .forget_replaced(pending.through, pending.compaction)
            .map_err(at("writing the list of away segments"))?;
        remove_then_journal(self.set.storage.as_ref(), &self.set.dir, &names)
            .map_err(at("removing what a compaction replaced"))?;
        self.set.forget_retired();
        Ok(inputs.iter().map(|entry| entry.info().bytes).sum())
    }
}

impl CompactionWriter {
    /// Its number.
    pub(crate) fn compaction(&self) -> u32 {
        self.compaction
    }

    /// Writes the next frame.
    pub(crate) fn append(&mut self, draft: Draft) -> Result<(), CompactionError> {
        let lsn = lsn_of(self.compaction, self.frames + 1)
            .ok_or(CompactionError::NoRoom { first: self.through })?;
        self.put(lsn, draft)
    }

    fn put(&mut self, lsn: Lsn, mut draft: Draft) -> Result<(), CompactionError> {
        let bytes = draft.frame_len();
        if bytes > MAX_FRAME_BYTES {
            return Err(CompactionError::TooLarge { bytes });
        }
        // The closing frame never begins a segment: its LSN, unlike all others, may have been a base before.
        let closes = lsn == self.through;
        let full = self
            .open
            .as_ref()
            .is_some_and(|open| !closes && open.tally.end + bytes as u64 > self.segment_bytes);
        if full {
            self.seal()?;
        }
        let mut flags = Flags::default();
        if closes && self.open.is_none() {
            return Err(CompactionError::Empty);
        }
        if self.open.is_none() {
            flags = Flags::SEGMENT_START.with(Flags::AFTER_SYNC);
            self.create(lsn)?;
        }
        let Some(open) = &mut self.open else {
            return Err(CompactionError::Unfinished);
        };
        let place = Place {
            lsn,
            prev: self.last,
            epoch: self.epoch,
            flags,
        };
        let mut raw = BytesMut::with_capacity(bytes);
        let header = draft.encode(place, &mut raw);
        open.file.write_at(open.tally.end, &raw).map_err(at(format!(
            "writing compacted segment {}",
            open.header.base.hex()
        )))?;
        open.tally.add(&header, &raw);
        self.last = lsn;
        self.frames += 1;
        Ok(())
    }

    fn create(&mut self, base: Lsn) -> Result<(), CompactionError> {
        let header = SegmentHeader {
            log_id: self.log_id,
            epoch: self.epoch,
            base,
            prev: self.last,
            compaction: self.compaction,
        };
        let name = segment_file_name(base);
        let failed = |source| at(format!("creating compacted segment {name}"))(source);
        self.names.push(name.clone());
        let path = self.set.dir.join(&name);
        let file = self
            .set
            .storage
            .open(&path, OpenMode::CreateNew)
            .map_err(failed)?;
        file.write_at(0, &header.encode()).map_err(failed)?;
        let tally = Tally::start(&header);
        self.open = Some(Growing { header, file, tally });
        Ok(())
    }

    fn seal(&mut self) -> Result<(), CompactionError> {
        if let Some(open) = self.open.take() {
            let failed = at(format!("sealing compacted segment {}", open.header.base.hex()));
            let sealed = open
                .file
                .sync_data()
                .and_then(|()| seal_file(&open.header, open.file.as_ref(), &open.tally));
            self.done.push((open.header, sealed.map_err(failed)?));
        }
        Ok(())
    }

    /// Writes the last frame and makes everything durable. Nothing counts yet.
    pub(crate) fn finish(mut self, closing: Draft) -> Result<WrittenCompaction, CompactionError> {
        self.put(self.through, closing)?;
        self.seal()?;
        self.set
            .storage
            .sync_dir(&self.set.dir)
            .map_err(at("syncing the log's directory"))?;
        let outputs = self.set.beside();
        for (header, info) in &self.done {
            outputs.push(SegmentEntry::sealed(&outputs, *header, info.clone()));
        }
        Ok(WrittenCompaction {
            reader: LogReader {
                set: Arc::new(outputs),
                ring: Arc::new(Ring::new(0)),
                appended: Watermark::at(self.through),
            },
            writer: self,
        })
    }
}

impl Drop for CompactionWriter {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        self.open = None;
        if let Err(error) = remove_then_journal(self.set.storage.as_ref(), &self.set.dir, &self.names) {
            tracing::warn!(%error, "what an abandoned compaction wrote could not be removed; the next start does it");
        }
    }
}

/// The segments of a compaction, whole and durable, that count for nothing yet. Dropping it removes them.
#[derive(Debug)]
pub(crate) struct WrittenCompaction {
    writer: CompactionWriter,
    reader: LogReader,
}

impl WrittenCompaction {
    /// Reads what was written as if it were a log.
    pub(crate) fn reader(&self) -> &LogReader {
        &self.reader
    }

    /// Makes the segments the log's. What they replace stays readable by location until
    /// [`LogReader::end_compaction`].
    ///
    /// # Errors
    /// The disk's: then only the next start knows whether it happened. Both are whole, and both stay.
    pub(crate) fn commit(mut self) -> Result<(), CompactionError> {
        let outputs = self.writer.done.iter().map(|(header, info)| Output {
            base: header.base,
            last: info.last,
            sha256: info.sha256.unwrap_or_default(),
        });
        let journal = Journal::Prepared {
            compaction: self.writer.compaction,
            through: self.writer.through,
            outputs: outputs.collect(),
        };
        self.writer.kept = true;
        let set = &self.writer.set;
        journal
            .write(set.storage.as_ref(), &set.dir)
            .map_err(at("writing the compaction's journal"))?;
        set.replace(
            self.reader.set.entries(),
            self.writer.through,
            self.writer.compaction,
        );
        Ok(())
    }
}
