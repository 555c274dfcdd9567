//! Many small reads of the log by one reader: blocks of an export, records of a page.

use std::sync::Arc;

use super::lsn::{Location, Lsn};
use super::reader::{LogReader, ReadError};
use super::resident::SealedSegment;

/// Bytes read ahead from a segment that is not mapped, because it is still written to or away.
const WINDOW_BYTES: usize = 64 << 10;
/// How far ahead of the last block the next one may lie for reading ahead to pay.
const NEAR_BYTES: u64 = 16 << 10;

/// Copies blocks out of the log, keeping what the next one probably needs: the mapping of a sealed segment, or a piece of
/// the open one or of one that is away. Not cheap to keep: it holds a segment's mapping.
#[derive(Debug)]
pub struct BlockReader {
    log: LogReader,
    sealed: Option<(Lsn, Arc<SealedSegment>)>,
    window: Window,
}

/// Bytes of a segment that is not mapped.
#[derive(Debug)]
struct Window {
    segment: Lsn,
    offset: u64,
    bytes: bytes::Bytes,
    /// Where the last block ended.
    end: u64,
}

impl LogReader {
    /// A reader for many blocks.
    #[must_use]
    pub fn blocks(&self) -> BlockReader {
        BlockReader {
            log: self.clone(),
            sealed: None,
            window: Window {
                segment: Lsn::ZERO,
                offset: 0,
                bytes: bytes::Bytes::new(),
                end: 0,
            },
        }
    }
}

impl BlockReader {
    /// Calls `take` with the bytes at `location`, as [`LogReader::read_at`] gives them.
    ///
    /// # Errors
    /// As [`LogReader::read_at`].
    pub fn with<T>(&mut self, location: Location, take: impl FnOnce(&[u8]) -> T) -> Result<T, ReadError> {
        let len = location.len as usize;
        let known = self
            .sealed
            .as_ref()
            .filter(|(segment, _)| *segment == location.segment);
        if known.is_none() && self.window.segment != location.segment {
            // One that is written to, or away, is read in windows.
            if let Some(sealed) = self.log.mapped(location.segment)? {
                self.sealed = Some((location.segment, sealed));
            }
        }
        if let Some((segment, sealed)) = &self.sealed
            && *segment == location.segment
        {
            return match sealed.slice(location.offset, len) {
                Some(bytes) => Ok(take(bytes)),
                // For its words about what is wrong.
                None => Ok(take(&self.log.read_at(location)?)),
            };
        }
        self.with_open(location, len, take)
    }

    fn with_open<T>(
        &mut self,
        location: Location,
        len: usize,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, ReadError> {
        let window = &mut self.window;
        let inside = |window: &Window| {
            let start = location.offset.checked_sub(window.offset)?;
            let start = usize::try_from(start).ok()?;
            window.bytes.get(start..)?.get(..len)?;
            Some(start)
        };
        let same = window.segment == location.segment;
        let near = same && location.offset.wrapping_sub(window.end) <= NEAR_BYTES;
        let start = match inside(window).filter(|_| same) {
            Some(start) => start,
            None => {
                // A block alone first; reading ahead begins with the second of two that lie close together.
                let ahead = u32::try_from(WINDOW_BYTES).unwrap_or(u32::MAX).max(location.len);
                let longer = Location {
                    len: ahead,
                    ..location
                };
                let bytes = match near.then(|| self.log.read_at(longer)) {
                    Some(Ok(bytes)) => bytes,
                    // The segment may end before that.
                    _ => self.log.read_at(location)?,
                };
                (window.segment, window.offset, window.bytes) = (location.segment, location.offset, bytes);
                0
            }
        };
        window.end = location.offset + len as u64;
        let bytes = window.bytes.get(start..).and_then(|rest| rest.get(..len));
        Ok(take(bytes.unwrap_or_default()))
    }
}
