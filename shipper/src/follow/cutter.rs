//! Takes a segment's file as it is unpacked and tells its frames in pieces of whole groups.

use std::io::{self, Write};

use bytes::{Bytes, BytesMut};
use engine::log::{Flags, Lsn, SEGMENT_HEADER_BYTES, frames_in};
use tokio::sync::mpsc;

/// See the top of this file. Nothing may be believed of what it told before the whole file was checked, but the log that is
/// fed checks frames and their chain itself.
pub(super) struct Cutter {
    /// Frames up to here are not told.
    after: Lsn,
    /// The last frame of the segment; what follows it is the footer.
    last: Lsn,
    piece_bytes: usize,
    pieces: mpsc::Sender<Bytes>,
    /// Bytes of the header that have not come yet.
    header_left: usize,
    gathered: BytesMut,
    done: bool,
}

impl Cutter {
    pub(super) fn new(after: Lsn, last: Lsn, piece_bytes: usize, pieces: mpsc::Sender<Bytes>) -> Cutter {
        Cutter {
            after,
            last,
            piece_bytes,
            pieces,
            header_left: SEGMENT_HEADER_BYTES,
            gathered: BytesMut::new(),
            done: false,
        }
    }

    /// Tells what is left.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.cut()?;
        if self.done {
            return Ok(());
        }
        let what = format!("the segment ends before its last frame {}", self.last);
        Err(io::Error::new(io::ErrorKind::InvalidData, what))
    }

    /// Tells all whole groups that are here.
    fn cut(&mut self) -> io::Result<()> {
        if self.done {
            self.gathered.clear();
            return Ok(());
        }
        let (mut skip, mut whole) = (0, 0);
        for frame in frames_in(&self.gathered) {
            // Cut off here and whole with the next piece, or the footer.
            let Ok((at, frame)) = frame else { break };
            let end = at + frame.header.len();
            if !frame.header.flags.contains(Flags::MORE) {
                whole = end;
                if frame.header.lsn <= self.after {
                    skip = end;
                }
            }
            if frame.header.lsn >= self.last {
                self.done = true;
                break;
            }
        }
        let told = self.gathered.split_to(whole).freeze().split_off(skip);
        if !told.is_empty() && self.pieces.blocking_send(told).is_err() {
            return Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "nobody reads the frames any more",
            ));
        }
        Ok(())
    }
}

impl Write for Cutter {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let of_header = self.header_left.min(piece.len());
        self.header_left -= of_header;
        if !self.done {
            self.gathered
                .extend_from_slice(piece.get(of_header..).unwrap_or_default());
            if self.gathered.len() >= self.piece_bytes {
                self.cut()?;
            }
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The LSN of the last of whole frames.
pub(super) fn last_lsn(frames: &[u8]) -> Option<Lsn> {
    frames_in(frames)
        .filter_map(Result::ok)
        .last()
        .map(|(_, frame)| frame.header.lsn)
}

#[cfg(test)]
mod tests;
