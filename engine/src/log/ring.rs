//! The most recent frames, in memory: those who follow the log closely, and those who ask for what was just written, read no
//! file.

use std::collections::VecDeque;

use bytes::Bytes;
use parking_lot::Mutex;

use super::frame::Frame;
use super::lsn::{Location, Lsn};

/// The newest frames, without a gap, up to a number of bytes.
///
/// Frames of one batch share a buffer, so up to one batch more than the bound stays alive.
#[derive(Debug)]
pub(super) struct Ring {
    capacity: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    frames: VecDeque<Frame>,
    bytes: usize,
}

impl Ring {
    /// A ring that holds `capacity` bytes of frames; with 0 it stays empty.
    pub(super) fn new(capacity: usize) -> Ring {
        Ring {
            capacity,
            state: Mutex::default(),
        }
    }

    /// Bytes of the frames in it.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.state.lock().bytes
    }

    pub(super) fn push(&self, frames: impl IntoIterator<Item = Frame>) {
        let mut state = self.state.lock();
        for frame in frames {
            state.bytes += frame.bytes().len();
            state.frames.push_back(frame);
        }
        while state.bytes > self.capacity {
            let Some(oldest) = state.frames.pop_front() else {
                break;
            };
            state.bytes -= oldest.bytes().len();
        }
    }

    /// Frames after `position` up to `limit`, at least one and then as many as fit `max_bytes`. `None` if the ring
    /// does not reach back that far.
    pub(super) fn after(&self, position: Lsn, limit: Lsn, max_bytes: usize) -> Option<Vec<Frame>> {
        let state = self.state.lock();
        if state.frames.front()?.prev() > position {
            return None;
        }
        let mut room = max_bytes;
        let mut found = Vec::new();
        let start = state.frames.partition_point(|frame| frame.lsn() <= position);
        for frame in state
            .frames
            .range(start..)
            .take_while(|frame| frame.lsn() <= limit)
        {
            if !found.is_empty() && frame.bytes().len() > room {
                break;
            }
            room = room.saturating_sub(frame.bytes().len());
            found.push(frame.clone());
        }
        Some(found)
    }

    /// A copy of the bytes at `at`, if they lie within one frame that is here.
    pub(super) fn read(&self, at: Location) -> Option<Bytes> {
        let state = self.state.lock();
        // Segments and offsets rise with the LSNs.
        let found = state.frames.partition_point(|frame| {
            let lies = frame.location();
            (lies.segment, lies.offset + u64::from(lies.len)) <= (at.segment, at.offset)
        });
        let frame = state.frames.get(found)?;
        let lies = frame.location();
        if lies.segment != at.segment {
            return None;
        }
        let from = usize::try_from(at.offset.checked_sub(lies.offset)?).ok()?;
        let bytes = frame.bytes().get(from..from.checked_add(at.len as usize)?)?;
        // Not a part of the batch's buffer, which it would keep.
        Some(Bytes::copy_from_slice(bytes))
    }
}
