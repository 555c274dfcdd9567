//! The append-only log: bytes in, bytes out.

mod frame;
mod lsn;
pub mod mmap;
mod watermark;

pub use frame::{
    Draft, FRAME_HEADER_BYTES, Flags, Frame, FrameError, FrameHeader, FramePart, FrameRef, MAX_FRAME_BYTES,
    MAX_GROUP_BYTES, PublicFrame, Stamp, frames_in,
};
pub use lsn::{Epoch, Location, LogId, LogIdError, Lsn, LsnOutOfRange};
pub use watermark::{Failed, Wait, Watermark};
