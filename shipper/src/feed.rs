//! What the shipper takes from the log: runs of whole groups, none crossing a segment's start.

use std::collections::VecDeque;

use engine::log::{Flags, Frame, LogReader, Lsn, ReadError, TailReader};

use crate::chunk::ChunkError;

/// What one read of the log asks for.
const READ_BYTES: usize = 1 << 20;

/// Why nothing more can be cut. All are final for this shipper: the log is not what it must be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FeedError {
    #[error("reading the log to ship it")]
    Read(#[from] ReadError),
    #[error("the log goes on after {found}, but the replica ends at {expected}")]
    Gap { expected: Lsn, found: Lsn },
    #[error("building a chunk")]
    Chunk(#[source] ChunkError),
}

/// Frames that become one chunk.
#[derive(Debug)]
pub(crate) struct Cut {
    pub(crate) first: Lsn,
    pub(crate) last: Lsn,
    pub(crate) prev: Lsn,
    pub(crate) count: u32,
    pub(crate) bytes: Vec<u8>,
    /// Where they end: a segment's base and an offset in it.
    pub(crate) end: (Lsn, u64),
}

/// Follows the log behind the shipper's position.
pub(crate) struct Feed {
    tail: TailReader,
    /// Read and not cut yet; bounded by one read plus one group.
    ahead: VecDeque<Frame>,
}

impl Feed {
    pub(crate) fn new(log: &LogReader, from: Lsn) -> Feed {
        Feed {
            tail: log.tail(from),
            ahead: VecDeque::new(),
        }
    }

    /// The next whole groups up to `limit`, which must be the end of one; about `max_bytes`, at least one group if there is one.
    /// Blocks on files.
    pub(crate) fn cut(&mut self, limit: Lsn, max_bytes: usize) -> Result<Option<Cut>, FeedError> {
        let mut taken: Vec<Frame> = Vec::new();
        let (mut bytes, mut whole) = (0, 0);
        while let Some(frame) = self.peek(limit)? {
            let starts_group = whole == taken.len();
            let starts_segment = frame.flags().contains(Flags::SEGMENT_START) && !taken.is_empty();
            if starts_group && (starts_segment || bytes >= max_bytes) {
                break;
            }
            let Some(frame) = self.ahead.pop_front() else {
                break;
            };
            bytes += frame.bytes().len();
            let more = frame.flags().contains(Flags::MORE);
            taken.push(frame);
            if !more {
                whole = taken.len();
            }
        }
        for frame in taken.drain(whole..).rev() {
            self.ahead.push_front(frame);
        }
        let (Some(first), Some(last)) = (taken.first(), taken.last()) else {
            return Ok(None);
        };
        let mut raw = Vec::with_capacity(bytes);
        for frame in &taken {
            raw.extend_from_slice(frame.bytes());
        }
        let location = last.location();
        Ok(Some(Cut {
            first: first.lsn(),
            last: last.lsn(),
            prev: first.prev(),
            count: u32::try_from(taken.len()).unwrap_or(u32::MAX),
            bytes: raw,
            end: (location.segment, location.offset + u64::from(location.len)),
        }))
    }

    fn peek(&mut self, limit: Lsn) -> Result<Option<&Frame>, FeedError> {
        if self.ahead.is_empty() {
            self.ahead.extend(self.tail.next_batch(limit, READ_BYTES)?);
        }
        Ok(self.ahead.front())
    }
}
