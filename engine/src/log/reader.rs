//! Reading the log: by location, and frame after frame behind a moving position.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::frame::{FRAME_HEADER_BYTES, Frame, FrameError, FrameHeader, MAX_FRAME_BYTES, PublicFrame};
use super::lsn::{Location, Lsn};
use super::resident::SealedSegment;
use super::ring::Ring;
use super::segment::SegmentInfo;
use super::set::{SegmentEntry, SegmentSet};
use super::watermark::Watermark;

/// What one read of a segment file asks for, at least.
const WINDOW_BYTES: usize = 256 << 10;

/// Why frames could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// What was asked for lies before what is kept here.
    #[error("the log begins at {oldest} here; what lies before is no longer kept")]
    Trimmed {
        /// LSN of the oldest frame that is here.
        oldest: Lsn,
    },
    /// There is no such segment here.
    #[error("there is no segment {} here", segment.hex())]
    NoSuchSegment {
        /// Its base LSN.
        segment: Lsn,
    },
    /// The segment is still written to.
    #[error("segment {segment} is not sealed yet")]
    NotSealed {
        /// Its base LSN.
        segment: Lsn,
    },
    /// The bytes are not what was written.
    #[error("segment {} is damaged at offset {offset}: {what}", segment.hex())]
    Corrupt {
        /// Base LSN of the segment.
        segment: Lsn,
        /// Bytes from the start of its file.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// The segment is in the replica only, and could not be had from there in time. Trying again is right.
    #[error("segment {} is not on this disk, and fetching it from the replica failed: {what}", segment.hex())]
    Away {
        /// Its base LSN.
        segment: Lsn,
        /// What the replica said.
        what: String,
    },
    /// The disk failed.
    #[error("reading segment {} failed: {source}", segment.hex())]
    Io {
        /// Base LSN of the segment.
        segment: Lsn,
        /// What the disk said.
        source: io::Error,
    },
}

/// A door to a log for those who only read. Cheap to clone; holds no lock of the directory.
#[derive(Clone, Debug)]
pub struct LogReader {
    pub(super) set: Arc<SegmentSet>,
    pub(super) ring: Arc<Ring>,
    pub(super) appended: Watermark,
}

impl LogReader {
    /// How far the log is written (not: durable).
    #[must_use]
    pub fn appended(&self) -> &Watermark {
        &self.appended
    }

    /// Reads the frames after `from`, which need not be a frame's LSN.
    #[must_use]
    pub fn tail(&self, from: Lsn) -> TailReader {
        TailReader {
            log: self.clone(),
            position: from,
            aligned: false,
            cursor: None,
        }
    }

    /// A copy of the bytes at `location`: a whole frame, or a part of one. The log checks only that they lie within the
    /// segment; whoever knows what they are (a block by its CID) can check that.
    ///
    /// # Errors
    /// [`ReadError::NoSuchSegment`], [`ReadError::Corrupt`] if the location reaches beyond the segment, or the disk's.
    pub fn read_at(&self, location: Location) -> Result<Bytes, ReadError> {
        let segment = self.segment(location.segment)?;
        // A sealed one is mapped, and needs no call to the system either.
        if segment.is_open()
            && let Some(recent) = self.ring.read(location)
        {
            return Ok(recent);
        }
        segment.read(location.offset, location.len as usize)
    }

    /// The frame at `location`, checked.
    ///
    /// # Errors
    /// As [`LogReader::read_at`]; [`ReadError::Corrupt`] if no valid frame lies there.
    pub fn frame_at(&self, location: Location) -> Result<Frame, ReadError> {
        let bytes = self.read_at(location)?;
        let (segment, offset) = (location.segment, location.offset);
        Frame::parse(&bytes, segment, offset).map_err(|error| corrupt(segment, offset, &error))
    }

    /// Header and public part of the frame at `location` (the whole frame's), checked; its private part is not read.
    ///
    /// # Errors
    /// As [`LogReader::frame_at`].
    pub fn public_at(&self, location: Location) -> Result<PublicFrame, ReadError> {
        let entry = self.segment(location.segment)?;
        let (segment, offset) = (location.segment, location.offset);
        let head = entry.read(offset, FRAME_HEADER_BYTES)?;
        let header = FrameHeader::parse(&head).map_err(|error| corrupt(segment, offset, &error))?;
        let public = entry.read(offset + FRAME_HEADER_BYTES as u64, header.public_len())?;
        header
            .check_public(&public)
            .map_err(|error| corrupt(segment, offset, &error))?;
        Ok(PublicFrame { header, public })
    }

    /// All segments, ascending; the last may still be open.
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentInfo> {
        self.set.infos()
    }

    /// The mapped file of a segment that is sealed and here; of others, [`LogReader::read_at`] copies.
    pub(super) fn mapped(&self, base: Lsn) -> Result<Option<Arc<SealedSegment>>, ReadError> {
        self.segment(base)?.mapped()
    }

    /// The file of a sealed segment, whole, mapped: for shipping and for checking. One that is away is fetched first.
    ///
    /// # Errors
    /// [`ReadError::NoSuchSegment`], [`ReadError::NotSealed`], or the disk's.
    pub fn sealed(&self, base: Lsn) -> Result<Arc<SealedSegment>, ReadError> {
        self.segment(base)?.load()
    }

    fn segment(&self, base: Lsn) -> Result<Arc<SegmentEntry>, ReadError> {
        self.set
            .get(base)
            .ok_or(ReadError::NoSuchSegment { segment: base })
    }
}

fn corrupt(segment: Lsn, offset: u64, what: &dyn ToString) -> ReadError {
    ReadError::Corrupt {
        segment,
        offset,
        what: what.to_string(),
    }
}

/// Follows the log: from the ring of recent frames where that reaches back far enough, else from the files. Checks that
/// each frame follows the one before.
#[derive(Debug)]
pub struct TailReader {
    log: LogReader,
    position: Lsn,
    /// Whether `position` is the LSN of a frame that was read, so that the next must name it as its predecessor.
    aligned: bool,
    /// Segment and offset where the next frame begins, if known.
    cursor: Option<(Lsn, u64)>,
}

/// What a tail reader yields.
trait Yield: Sized {
    /// From the bytes of a file, which begin with the frame.
    fn parse(bytes: &Bytes, segment: Lsn, offset: u64) -> Result<Self, FrameError>;
    fn from_frame(frame: Frame) -> Self;
}

impl Yield for Frame {
    fn parse(bytes: &Bytes, segment: Lsn, offset: u64) -> Result<Frame, FrameError> {
        Frame::parse(bytes, segment, offset)
    }

    fn from_frame(frame: Frame) -> Frame {
        frame
    }
}

impl Yield for PublicFrame {
    fn parse(bytes: &Bytes, _segment: Lsn, _offset: u64) -> Result<PublicFrame, FrameError> {
        let header = FrameHeader::parse(bytes)?;
        if bytes.len() < header.len() {
            return Err(FrameError::Short {
                needed: header.len(),
                found: bytes.len(),
            });
        }
        let public = bytes.slice(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + header.public_len());
        header.check_public(&public)?;
        // A copy, so that the buffer behind what subscribers get holds nothing private.
        Ok(PublicFrame {
            header,
            public: Bytes::copy_from_slice(&public),
        })
    }

    fn from_frame(frame: Frame) -> PublicFrame {
        frame.to_public()
    }
}

impl TailReader {
    /// LSN of the last frame that was read, or where reading began.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// The next frames up to and including `limit` (and no further than what is written), in order: at least one if
    /// there is one, then as many as fit `max_bytes`. Empty if there is none. Reads files on the calling thread.
    ///
    /// # Errors
    /// [`ReadError`]; the position stays where it was.
    pub fn next_batch(&mut self, limit: Lsn, max_bytes: usize) -> Result<Vec<Frame>, ReadError> {
        self.next(limit, max_bytes)
    }

    /// As [`TailReader::next_batch`], for those who may see the public parts only: private parts are neither checked
    /// nor reachable from what is returned. `max_bytes` counts whole frames.
    ///
    /// # Errors
    /// [`ReadError`]; the position stays where it was.
    pub fn next_public_batch(&mut self, limit: Lsn, max_bytes: usize) -> Result<Vec<PublicFrame>, ReadError> {
        self.next(limit, max_bytes)
    }

    fn next<T: Yield>(&mut self, limit: Lsn, max_bytes: usize) -> Result<Vec<T>, ReadError> {
        let limit = limit.min(self.log.appended.get());
        if limit <= self.position {
            return Ok(Vec::new());
        }
        // The ring may still hold what was compacted since; who stands before that reads what took its place.
        let kept = self.position >= self.log.set.floor();
        let recent = || self.log.ring.after(self.position, limit, max_bytes);
        if let Some(frames) = kept.then(recent).flatten() {
            if let Some(first) = frames.first() {
                self.check_link(first.header(), first.location().segment, first.location().offset)?;
            }
            if let Some(last) = frames.last() {
                let location = last.location();
                self.position = last.lsn();
                self.cursor = Some((location.segment, location.offset + u64::from(location.len)));
                self.aligned = true;
            }
            return Ok(frames.into_iter().map(T::from_frame).collect());
        }
        let before = (self.position, self.aligned, self.cursor);
        let frames = self.read_files(limit, max_bytes);
        if frames.is_err() {
            (self.position, self.aligned, self.cursor) = before;
        }
        frames
    }

    /// Each frame must name the one before; the first one, only where reading began.
    fn check_link(&self, header: &FrameHeader, segment: Lsn, offset: u64) -> Result<(), ReadError> {
        let linked = if self.aligned {
            header.prev == self.position
        } else {
            header.prev <= self.position
        };
        if linked {
            return Ok(());
        }
        let what = format!(
            "the chain is broken: frame {} says it follows {}, but the frame before it is {}",
            header.lsn, header.prev, self.position
        );
        Err(ReadError::Corrupt {
            segment,
            offset,
            what,
        })
    }

    fn read_files<T: Yield>(&mut self, limit: Lsn, max_bytes: usize) -> Result<Vec<T>, ReadError> {
        let mut found = Vec::new();
        let mut room = max_bytes;
        loop {
            let (entry, offset) = match self.cursor {
                Some((segment, offset)) => match self.log.set.get(segment) {
                    Some(entry) => (entry, offset),
                    // A compaction has replaced it since, perhaps while we stood at its very end: look again.
                    None => {
                        (self.cursor, self.aligned) = (None, false);
                        continue;
                    }
                },
                None => match self.log.set.holding(self.position)? {
                    Some(entry) => {
                        let offset = entry.seek(self.position)?;
                        (entry, offset)
                    }
                    None => return Ok(found),
                },
            };
            if offset >= entry.frames_end()? {
                let Some(next) = self.log.set.after(&entry) else {
                    return Ok(found);
                };
                self.cursor = Some((next.header.base, super::segment::SEGMENT_HEADER_BYTES as u64));
                continue;
            }
            if self.read_window(&entry, offset, limit, &mut room, &mut found)? {
                return Ok(found);
            }
        }
    }

    /// Takes the frames of one read. `true` when there is no more to take: the limit or the room is reached.
    fn read_window<T: Yield>(
        &mut self,
        entry: &SegmentEntry,
        offset: u64,
        limit: Lsn,
        room: &mut usize,
        found: &mut Vec<T>,
    ) -> Result<bool, ReadError> {
        let segment = entry.header.base;
        let rest = usize::try_from(entry.frames_end()?.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut window = entry.read(offset, rest.min(WINDOW_BYTES))?;
        let mut at = 0;
        while at < window.len() {
            let here = offset + at as u64;
            let bytes = window.slice(at..);
            let header = match FrameHeader::parse(&bytes) {
                Ok(header) => header,
                Err(FrameError::Short { .. }) if at > 0 => break,
                Err(error) => return Err(corrupt(segment, here, &error)),
            };
            if bytes.len() < header.len() {
                if at > 0 {
                    break;
                }
                if header.len() > rest || header.len() > MAX_FRAME_BYTES {
                    return Err(corrupt(
                        segment,
                        here,
                        &"the frame reaches beyond the end of the segment",
                    ));
                }
                window = entry.read(offset, header.len())?;
                continue;
            }
            if header.lsn <= self.position && !self.aligned {
                // Between the indexed frame where the search began and the position.
                at += header.len();
                self.cursor = Some((segment, offset + at as u64));
                continue;
            }
            if header.lsn > limit || (!found.is_empty() && header.len() > *room) {
                return Ok(true);
            }
            self.check_link(&header, segment, here)?;
            found.push(T::parse(&bytes, segment, here).map_err(|error| corrupt(segment, here, &error))?);
            *room = room.saturating_sub(header.len());
            at += header.len();
            (self.position, self.aligned) = (header.lsn, true);
            self.cursor = Some((segment, offset + at as u64));
        }
        Ok(false)
    }
}
