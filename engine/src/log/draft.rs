//! What becomes a frame, and how.

use bytes::{BufMut, BytesMut};

use super::frame::{FRAME_HEADER_BYTES, Flags, FrameHeader, MAX_FRAME_BYTES, put};
use super::lsn::{Epoch, Lsn};

/// What is to become a frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Draft {
    /// What the public part is.
    pub kind: u8,
    /// What subscribers may see, with room for what the writer stamps.
    pub public: Vec<u8>,
    /// Where the writer puts what is known only when the frame gets its place.
    pub stamps: Vec<Stamp>,
    /// What only we may see.
    pub private: Vec<u8>,
}

/// Something that the writer puts into a draft's public part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// The LSN as 8 bytes big-endian (the argument of a CBOR uint64).
    Lsn {
        /// Offset in the public part.
        at: usize,
    },
    /// The LSN's time as 24 ASCII bytes, `YYYY-MM-DDTHH:MM:SS.mmmZ`.
    Time {
        /// Offset in the public part.
        at: usize,
    },
}

impl Draft {
    /// Length of the frame that this becomes, in bytes.
    #[must_use]
    pub fn frame_len(&self) -> usize {
        FRAME_HEADER_BYTES
            .saturating_add(self.public.len())
            .saturating_add(self.private.len())
    }

    /// Whether every stamp lies within the public part.
    #[must_use]
    pub fn stamps_fit(&self) -> bool {
        self.stamps.iter().all(|stamp| {
            let (at, len) = match *stamp {
                Stamp::Lsn { at } => (at, 8),
                Stamp::Time { at } => (at, 24),
            };
            at.checked_add(len).is_some_and(|end| end <= self.public.len())
        })
    }

    /// Puts in what is known now. Stamps that do not fit are the caller's mistake and were refused before.
    fn stamp(&mut self, lsn: Lsn) {
        for stamp in &self.stamps {
            match *stamp {
                Stamp::Lsn { at } => put(&mut self.public, at, &lsn.get().to_be_bytes()),
                Stamp::Time { at } => put(&mut self.public, at, &lsn.timestamp()),
            }
        }
    }

    /// Stamps this draft and appends its frame to `out`: what the log's writer does with every entry. It has checked
    /// [`Draft::frame_len`] against [`MAX_FRAME_BYTES`] and [`Draft::stamps_fit`] before.
    pub fn encode(&mut self, place: Place, out: &mut BytesMut) -> FrameHeader {
        debug_assert!(self.frame_len() <= MAX_FRAME_BYTES && self.stamps_fit() && place.prev < place.lsn);
        self.stamp(place.lsn);
        let header = FrameHeader {
            frame_len: u32::try_from(self.frame_len()).unwrap_or(u32::MAX),
            lsn: place.lsn,
            prev: place.prev,
            epoch: place.epoch,
            kind: self.kind,
            flags: place.flags,
            public_len: u32::try_from(self.public.len()).unwrap_or(u32::MAX),
            public_crc: crc32fast::hash(&self.public),
            private_crc: crc32fast::hash(&self.private),
        };
        out.reserve(header.len());
        out.put_slice(&header.encode());
        out.put_slice(&self.public);
        out.put_slice(&self.private);
        header
    }
}

/// What the writer decides about a frame.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its place in the order.
    pub lsn: Lsn,
    /// The place of the frame before it, which is lower.
    pub prev: Lsn,
    /// Whose reign it is.
    pub epoch: Epoch,
    /// About its neighbours.
    pub flags: Flags,
}

#[cfg(test)]
mod tests {
    use super::super::frame::FrameRef;
    use super::*;

    #[test]
    fn stamps_hold_the_lsn_and_its_time() {
        let place = Place {
            lsn: Lsn::saturating(1_767_225_600_123_456),
            prev: Lsn::ZERO,
            epoch: Epoch(1),
            flags: Flags::default(),
        };
        let stamps = vec![Stamp::Lsn { at: 1 }, Stamp::Time { at: 10 }];
        let draft = Draft {
            kind: 1,
            public: vec![b'-'; 35],
            stamps,
            private: vec![],
        };
        assert!(draft.stamps_fit());
        let mut bytes = BytesMut::new();
        let mut draft = draft;
        draft.encode(place, &mut bytes);
        let frame = FrameRef::parse(&bytes).unwrap();
        let mut want = vec![b'-'];
        want.extend_from_slice(&1_767_225_600_123_456u64.to_be_bytes());
        want.extend_from_slice(b"-2026-01-01T00:00:00.123Z-");
        assert_eq!(frame.public(), want);
        let outside = Draft {
            public: vec![0; 23],
            stamps: vec![Stamp::Time { at: 0 }],
            ..Draft::default()
        };
        assert!(!outside.stamps_fit());
    }
}
