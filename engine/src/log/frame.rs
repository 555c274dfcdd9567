//! A frame: the checksummed bytes that hold one entry.
//!
//! ```text
//!  0  u32 header_crc    crc32 of bytes 4..48 (which hold both part checksums, so it vouches for the whole frame)
//!  4  u32 frame_len     whole frame in bytes, header included
//!  8  u64 lsn           16 u64 prev_lsn
//! 24  u64 epoch
//! 32  u8 kind           33 u8 flags
//! 34  u16 zero
//! 36  u32 public_len    40 u32 public_crc    44 u32 private_crc
//! 48  public bytes, then private bytes
//! ```
//!
//! All numbers little-endian. The two parts are checked apart, so that whoever serves the public part need not touch
//! the private one.

#[cfg(test)]
mod tests;

use bytes::Bytes;

use super::lsn::{Epoch, Location, Lsn};

/// Bytes before the public part.
pub const FRAME_HEADER_BYTES: usize = 48;
/// No frame is longer. A greater length is corruption and never a reason to allocate.
pub const MAX_FRAME_BYTES: usize = 16 << 20;
/// The frames of one group are no longer than this together.
pub const MAX_GROUP_BYTES: usize = 32 << 20;

const LEN_AT: usize = 4;
const LSN_AT: usize = 8;
const PREV_AT: usize = 16;
const EPOCH_AT: usize = 24;
const KIND_AT: usize = 32;
const FLAGS_AT: usize = 33;
const ZERO_AT: usize = 34;
const PUBLIC_LEN_AT: usize = 36;
const PUBLIC_CRC_AT: usize = 40;
const PRIVATE_CRC_AT: usize = 44;
const _: () = assert!(PRIVATE_CRC_AT + 4 == FRAME_HEADER_BYTES);
const _: () = assert!(MAX_FRAME_BYTES <= MAX_GROUP_BYTES && MAX_FRAME_BYTES <= u32::MAX as usize);

/// What a frame says about its neighbours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u8);

impl Flags {
    /// The next frame belongs to the same group.
    pub const MORE: Flags = Flags(1);
    /// The first frame of a segment.
    pub const SEGMENT_START: Flags = Flags(2);
    /// Everything before this frame was synced to the disk when this frame was written. Tells recovery a torn tail
    /// (no such frame follows the damage) from damage to what was durable (one does).
    pub const AFTER_SYNC: Flags = Flags(4);

    const ALL: u8 = 7;

    /// Whether all of `other`'s bits are set.
    #[must_use]
    pub const fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both.
    #[must_use]
    pub const fn with(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }

    /// As in the frame.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }
}

/// Why bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// They end before the frame does.
    #[error("the frame needs {needed} bytes, there are {found}")]
    Short {
        /// What the frame needs at least.
        needed: usize,
        /// What is there.
        found: usize,
    },
    /// A part does not match its checksum.
    #[error("checksum of the {part} does not match")]
    Checksum {
        /// Which part.
        part: FramePart,
    },
    /// The checksum is right, and yet a field holds what no writer writes.
    #[error("{field} holds {value}, which is not valid")]
    Field {
        /// Its name.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
}

/// The parts of a frame that have a checksum of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FramePart {
    /// The first 48 bytes.
    Header,
    /// What subscribers may see.
    Public,
    /// What only we may see.
    Private,
}

impl std::fmt::Display for FramePart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            FramePart::Header => "frame header",
            FramePart::Public => "public part",
            FramePart::Private => "private part",
        })
    }
}

/// A frame's first 48 bytes, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Length of the whole frame in bytes.
    pub frame_len: u32,
    /// Its place in the order.
    pub lsn: Lsn,
    /// The place of the frame before it, in this segment or the one before; [`Lsn::ZERO`] if it is the first of all.
    pub prev: Lsn,
    /// Who wrote it.
    pub epoch: Epoch,
    /// What the public part is; the log does not look at it.
    pub kind: u8,
    /// About its neighbours.
    pub flags: Flags,
    /// Length of the public part in bytes.
    pub public_len: u32,
    /// crc32 of the public part.
    pub public_crc: u32,
    /// crc32 of the private part.
    pub private_crc: u32,
}

fn u32_at(bytes: &[u8; FRAME_HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; FRAME_HEADER_BYTES], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

impl FrameHeader {
    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// [`FrameError`]; never `Short` once 48 bytes are there.
    pub fn parse(bytes: &[u8]) -> Result<FrameHeader, FrameError> {
        let short = FrameError::Short {
            needed: FRAME_HEADER_BYTES,
            found: bytes.len(),
        };
        let raw: &[u8; FRAME_HEADER_BYTES] = bytes.first_chunk().ok_or(short)?;
        if crc32fast::hash(&raw[LEN_AT..]) != u32_at(raw, 0) {
            return Err(FrameError::Checksum {
                part: FramePart::Header,
            });
        }
        let field = |field, value| FrameError::Field { field, value };
        let lsn_at = |at, name| {
            let value = u64_at(raw, at);
            Lsn::new(value).ok_or(field(name, value))
        };
        let header = FrameHeader {
            frame_len: u32_at(raw, LEN_AT),
            lsn: lsn_at(LSN_AT, "lsn")?,
            prev: lsn_at(PREV_AT, "predecessor")?,
            epoch: Epoch(u64_at(raw, EPOCH_AT)),
            kind: raw[KIND_AT],
            flags: Flags(raw[FLAGS_AT]),
            public_len: u32_at(raw, PUBLIC_LEN_AT),
            public_crc: u32_at(raw, PUBLIC_CRC_AT),
            private_crc: u32_at(raw, PRIVATE_CRC_AT),
        };
        if !(FRAME_HEADER_BYTES..=MAX_FRAME_BYTES).contains(&header.len()) {
            return Err(field("frame length", header.frame_len.into()));
        }
        if header.public_len() > header.len() - FRAME_HEADER_BYTES {
            return Err(field("public length", header.public_len.into()));
        }
        if header.prev >= header.lsn {
            return Err(field("predecessor", header.prev.get()));
        }
        if raw[FLAGS_AT] & !Flags::ALL != 0 {
            return Err(field("flags", raw[FLAGS_AT].into()));
        }
        if raw[ZERO_AT] != 0 || raw[ZERO_AT + 1] != 0 {
            return Err(field(
                "reserved bytes",
                u64::from(raw[ZERO_AT]) | u64::from(raw[ZERO_AT + 1]) << 8,
            ));
        }
        Ok(header)
    }

    /// Length of the whole frame in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.frame_len as usize
    }

    /// Never: a frame has at least its header.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Length of the public part in bytes.
    #[must_use]
    pub const fn public_len(&self) -> usize {
        self.public_len as usize
    }

    /// Length of the private part in bytes.
    #[must_use]
    pub const fn private_len(&self) -> usize {
        self.len().saturating_sub(FRAME_HEADER_BYTES + self.public_len())
    }

    /// Checks the public part, found elsewhere, against its checksum and length.
    ///
    /// # Errors
    /// [`FrameError::Checksum`].
    pub fn check_public(&self, public: &[u8]) -> Result<(), FrameError> {
        let same = public.len() == self.public_len() && crc32fast::hash(public) == self.public_crc;
        same.then_some(()).ok_or(FrameError::Checksum {
            part: FramePart::Public,
        })
    }

    /// Checks the private part, found elsewhere, against its checksum and length.
    ///
    /// # Errors
    /// [`FrameError::Checksum`].
    pub fn check_private(&self, private: &[u8]) -> Result<(), FrameError> {
        let same = private.len() == self.private_len() && crc32fast::hash(private) == self.private_crc;
        same.then_some(()).ok_or(FrameError::Checksum {
            part: FramePart::Private,
        })
    }
}

/// A frame in borrowed bytes, all checksums verified.
#[derive(Clone, Copy, Debug)]
pub struct FrameRef<'a> {
    /// Its header.
    pub header: FrameHeader,
    /// The whole frame.
    pub bytes: &'a [u8],
}

impl<'a> FrameRef<'a> {
    /// The frame at the start of `bytes`, which may go on after it.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn parse(bytes: &'a [u8]) -> Result<FrameRef<'a>, FrameError> {
        let header = FrameHeader::parse(bytes)?;
        let short = FrameError::Short {
            needed: header.len(),
            found: bytes.len(),
        };
        let frame = FrameRef {
            header,
            bytes: bytes.get(..header.len()).ok_or(short)?,
        };
        header.check_public(frame.public())?;
        header.check_private(frame.private())?;
        Ok(frame)
    }

    /// What subscribers may see.
    #[must_use]
    pub fn public(&self) -> &'a [u8] {
        self.bytes
            .get(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + self.header.public_len())
            .unwrap_or_default()
    }

    /// What only we may see.
    #[must_use]
    pub fn private(&self) -> &'a [u8] {
        self.bytes
            .get(FRAME_HEADER_BYTES + self.header.public_len()..)
            .unwrap_or_default()
    }
}

/// The frames that lie one after the other in `raw`, with each one's offset. Ends after the first error.
pub fn frames_in(raw: &[u8]) -> impl Iterator<Item = Result<(usize, FrameRef<'_>), (usize, FrameError)>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = raw.get(at..).filter(|rest| !rest.is_empty())?;
        let found = at;
        match FrameRef::parse(rest) {
            Ok(frame) => {
                at += frame.header.len();
                Some(Ok((found, frame)))
            }
            Err(error) => {
                at = raw.len();
                Some(Err((found, error)))
            }
        }
    })
}

/// One entry's frame, checked, in shared bytes. Cheap to clone.
///
/// The bytes may be part of a bigger buffer (a batch, or one read's worth), which they keep alive: copy out what is to
/// be kept for long.
#[derive(Clone, Debug)]
pub struct Frame {
    header: FrameHeader,
    bytes: Bytes,
    location: Location,
}

impl Frame {
    /// Checks the frame that `bytes` begin with, all of it, and takes its part of them. It lies at `offset` of
    /// `segment`.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn parse(bytes: &Bytes, segment: Lsn, offset: u64) -> Result<Frame, FrameError> {
        let header = FrameRef::parse(bytes)?.header;
        Ok(Frame::trusted(
            header,
            bytes.slice(..header.len()),
            segment,
            offset,
        ))
    }

    /// A frame that was just made or just checked.
    pub(super) fn trusted(header: FrameHeader, bytes: Bytes, segment: Lsn, offset: u64) -> Frame {
        Frame {
            header,
            bytes,
            location: Location {
                segment,
                offset,
                len: header.frame_len,
            },
        }
    }

    /// Its place in the order.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        self.header.lsn
    }

    /// The place of the frame before it.
    #[must_use]
    pub fn prev(&self) -> Lsn {
        self.header.prev
    }

    /// Who wrote it.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.header.epoch
    }

    /// What the public part is; the log does not look at it.
    #[must_use]
    pub fn kind(&self) -> u8 {
        self.header.kind
    }

    /// About its neighbours.
    #[must_use]
    pub fn flags(&self) -> Flags {
        self.header.flags
    }

    /// Its header.
    #[must_use]
    pub fn header(&self) -> &FrameHeader {
        &self.header
    }

    /// The whole frame as it is on disk.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Where the whole frame lies.
    #[must_use]
    pub fn location(&self) -> Location {
        self.location
    }

    /// Where the public part lies.
    #[must_use]
    pub fn public_location(&self) -> Location {
        let offset = self.location.offset + FRAME_HEADER_BYTES as u64;
        Location {
            offset,
            len: self.header.public_len,
            ..self.location
        }
    }

    /// What subscribers may see.
    #[must_use]
    pub fn public(&self) -> Bytes {
        self.bytes
            .slice(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + self.header.public_len())
    }

    /// What only we may see.
    #[must_use]
    pub fn private(&self) -> Bytes {
        self.bytes.slice(FRAME_HEADER_BYTES + self.header.public_len()..)
    }

    /// Where [`Frame::private`] lies.
    #[must_use]
    pub fn private_location(&self) -> Location {
        let before = FRAME_HEADER_BYTES + self.header.public_len();
        Location {
            offset: self.location.offset + before as u64,
            len: self.header.frame_len - before as u32,
            ..self.location
        }
    }

    /// This frame for those who may see its public part only.
    #[must_use]
    pub fn to_public(&self) -> PublicFrame {
        PublicFrame {
            header: self.header,
            public: self.public(),
        }
    }
}

/// A frame without its private part: all that the firehose can reach. Header and public part are checked.
#[derive(Clone, Debug)]
pub struct PublicFrame {
    pub(super) header: FrameHeader,
    pub(super) public: Bytes,
}

impl PublicFrame {
    /// Its place in the order.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        self.header.lsn
    }

    /// The place of the frame before it.
    #[must_use]
    pub fn prev(&self) -> Lsn {
        self.header.prev
    }

    /// Who wrote it.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.header.epoch
    }

    /// What the public part is.
    #[must_use]
    pub fn kind(&self) -> u8 {
        self.header.kind
    }

    /// About its neighbours.
    #[must_use]
    pub fn flags(&self) -> Flags {
        self.header.flags
    }

    /// What subscribers may see.
    #[must_use]
    pub fn public(&self) -> &Bytes {
        &self.public
    }
}

pub(super) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..).and_then(|rest| rest.get_mut(..value.len())) {
        place.copy_from_slice(value);
    }
}

impl FrameHeader {
    /// The 48 bytes as they go on disk.
    pub(super) fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut raw = [0; FRAME_HEADER_BYTES];
        put(&mut raw, LEN_AT, &self.frame_len.to_le_bytes());
        put(&mut raw, LSN_AT, &self.lsn.get().to_le_bytes());
        put(&mut raw, PREV_AT, &self.prev.get().to_le_bytes());
        put(&mut raw, EPOCH_AT, &self.epoch.0.to_le_bytes());
        put(&mut raw, KIND_AT, &[self.kind, self.flags.bits()]);
        put(&mut raw, PUBLIC_LEN_AT, &self.public_len.to_le_bytes());
        put(&mut raw, PUBLIC_CRC_AT, &self.public_crc.to_le_bytes());
        put(&mut raw, PRIVATE_CRC_AT, &self.private_crc.to_le_bytes());
        let crc = crc32fast::hash(&raw[LEN_AT..]);
        put(&mut raw, 0, &crc.to_le_bytes());
        raw
    }
}
