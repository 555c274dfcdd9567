//! A chunk: the shipped form of the live tail, one immutable object of `wal/`.
//!
//! ```text
//! little-endian
//!   0  [u8; 8]  magic "PDSCHUNK"
//!   8  u16      format version, 1
//!  10  u8       kind: 1 data, 2 fence, 3 hand-over
//!  11  u8       zero
//!  12  u32      bytes of body after this header
//!  16  [u8;16]  log id
//!  32  [u8;16]  writer id
//!  48  u64      epoch of the writer (frames inside may be of an earlier one)
//!  56  u64      ordinal, equal to the one in the object's name
//!  64  u64      next ordinal: data and hand-over + 1, fence + MAX_IN_FLIGHT + 1
//!  72  u64      prev LSN: the chain's last LSN before this chunk
//!  80  u64      first LSN (zero without frames)
//!  88  u64      last LSN: the chain's last LSN with this chunk (= prev LSN without frames)
//!  96  u64      LSN floor: no later LSN may be at or below it
//! 104  u32      raw length: bytes of frames before compression
//! 108  u32      frame count
//! 112  [u8;32]  sha-256 of the raw bytes
//! 144  u64      created at, microseconds since 1970
//! 152  u32      zero
//! 156  u32      crc32 of bytes 0..156
//! 160  body     one zstd frame of the raw bytes: whole groups of log frames, all of one segment; empty without frames
//! ```
//! The object is atomic in the store, so a chunk is never torn: any mismatch is damage and an error that names the
//! object. A chunk never crosses a segment's start, so that a sealed segment covers whole chunks.

use bytes::Bytes;
use engine::log::{Epoch, LogId, Lsn};
use sha2::{Digest, Sha256};

use crate::names::{Ordinal, WriterId};
use crate::wire::{self, FieldReader, FieldWriter};

/// Uploads that may be unacknowledged at any time; what a fence must skip. Part of the protocol: changing it means a
/// new format version.
pub const MAX_IN_FLIGHT: u64 = 16;
/// Bytes before the body.
pub const HEADER_BYTES: usize = 160;
/// Most raw bytes that a chunk may hold; what a reader accepts. A shipper cuts far below it unless one group is bigger.
pub const MAX_RAW_BYTES: usize = 64 << 20;

const MAGIC: [u8; 8] = *b"PDSCHUNK";
const VERSION: u16 = 1;
const CRC_AT: usize = HEADER_BYTES - 4;
const ZSTD_LEVEL: i32 = 1;

/// What a chunk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkKind {
    /// Carries frames.
    Data,
    /// The first object of a reign: after it, the writer before cannot extend the chain.
    Fence,
    /// The last object of a reign that ended on purpose with everything shipped.
    HandOver,
}

impl ChunkKind {
    fn code(self) -> u8 {
        match self {
            ChunkKind::Data => 1,
            ChunkKind::Fence => 2,
            ChunkKind::HandOver => 3,
        }
    }

    fn from_code(code: u8) -> Option<ChunkKind> {
        match code {
            1 => Some(ChunkKind::Data),
            2 => Some(ChunkKind::Fence),
            3 => Some(ChunkKind::HandOver),
            _ => None,
        }
    }
}

/// Everything about a chunk but its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// What the chunk is for.
    pub kind: ChunkKind,
    /// Bytes of the object after the header.
    pub body_len: u32,
    /// The log that the chunk belongs to.
    pub log_id: LogId,
    /// The process that wrote it.
    pub writer_id: WriterId,
    /// The writer's reign.
    pub epoch: Epoch,
    /// The chunk's place in the chain.
    pub ordinal: Ordinal,
    /// The place of its successor.
    pub next_ordinal: Ordinal,
    /// The chain's last LSN before this chunk.
    pub prev_lsn: Lsn,
    /// The first frame's LSN; zero without frames.
    pub first_lsn: Lsn,
    /// The chain's last LSN with this chunk.
    pub last_lsn: Lsn,
    /// No later LSN may be at or below this.
    pub lsn_floor: Lsn,
    /// Bytes of frames.
    pub raw_len: u32,
    /// Number of frames.
    pub frame_count: u32,
    /// sha-256 of the frames' bytes.
    pub raw_sha256: [u8; 32],
    /// When the chunk was made, microseconds since 1970.
    pub created_at_micros: u64,
}

/// A chunk that cannot be read. All mean damage or a foreign object; none goes away by trying again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// Fewer bytes than announced.
    #[error("truncated: {have} bytes where {need} are announced")]
    Truncated {
        /// Bytes needed.
        need: usize,
        /// Bytes there.
        have: usize,
    },
    /// More bytes than announced.
    #[error("{extra} bytes too many")]
    TooLong {
        /// Bytes after the announced end.
        extra: usize,
    },
    /// Not a chunk.
    #[error("not a chunk: the magic bytes are missing")]
    NotAChunk,
    /// A chunk of a format that this program does not know.
    #[error("chunk format version {0} is not known to this program (it knows {VERSION}); use a newer one")]
    UnknownVersion(u16),
    /// The header's checksum does not match.
    #[error("the header's checksum does not match")]
    HeaderChecksum,
    /// A field has a value that no writer writes.
    #[error("field {0} is out of range")]
    Field(&'static str),
    /// The body does not decompress to the announced bytes.
    #[error("the body does not decompress to the announced {raw_len} bytes")]
    Body {
        /// Announced raw length.
        raw_len: u32,
    },
    /// The frames are not those that were shipped.
    #[error("the sha-256 of the frames does not match")]
    Digest,
}

/// What the writer decides about a chunk; the rest of the header follows from it.
#[derive(Clone, Debug)]
pub struct ChunkDraft {
    /// The log.
    pub log_id: LogId,
    /// The process.
    pub writer_id: WriterId,
    /// The reign.
    pub epoch: Epoch,
    /// The chunk's place.
    pub ordinal: Ordinal,
    /// The chain's last LSN before.
    pub prev_lsn: Lsn,
    /// Floor to publish; raised to the chunk's last LSN if lower.
    pub lsn_floor: Lsn,
    /// Microseconds since 1970.
    pub created_at_micros: u64,
}

/// The frames of a data chunk.
#[derive(Clone, Copy, Debug)]
pub struct RawFrames<'a> {
    /// LSN of the first frame.
    pub first: Lsn,
    /// LSN of the last frame.
    pub last: Lsn,
    /// Number of frames.
    pub count: u32,
    /// Their bytes, back to back.
    pub bytes: &'a [u8],
}

/// Builds a data chunk. CPU: one sha-256 and one zstd-1 pass over the frames.
///
/// # Errors
/// [`ChunkError::Field`] if the frames are empty, over [`MAX_RAW_BYTES`] or not after `prev_lsn`.
pub fn encode_data(draft: &ChunkDraft, frames: RawFrames<'_>) -> Result<(ChunkHeader, Bytes), ChunkError> {
    if frames.bytes.is_empty() || frames.bytes.len() > MAX_RAW_BYTES {
        return Err(ChunkError::Field("raw length"));
    }
    let raw_len = u32::try_from(frames.bytes.len()).map_err(|_| ChunkError::Field("raw length"))?;
    let body = zstd::bulk::compress(frames.bytes, ZSTD_LEVEL).map_err(|_| ChunkError::Body { raw_len })?;
    let header = ChunkHeader {
        kind: ChunkKind::Data,
        body_len: u32::try_from(body.len()).map_err(|_| ChunkError::Field("body length"))?,
        log_id: draft.log_id,
        writer_id: draft.writer_id,
        epoch: draft.epoch,
        ordinal: draft.ordinal,
        next_ordinal: draft.ordinal.plus(1),
        prev_lsn: draft.prev_lsn,
        first_lsn: frames.first,
        last_lsn: frames.last,
        lsn_floor: draft.lsn_floor.max(frames.last),
        raw_len,
        frame_count: frames.count,
        raw_sha256: Sha256::digest(frames.bytes).into(),
        created_at_micros: draft.created_at_micros,
    };
    header.check()?;
    Ok((header, assemble(&header, &body)))
}

/// Builds a chunk without frames.
///
/// # Errors
/// [`ChunkError::Field`] if asked for a data chunk.
pub fn encode_mark(kind: ChunkKind, draft: &ChunkDraft) -> Result<(ChunkHeader, Bytes), ChunkError> {
    let step = match kind {
        ChunkKind::Data => return Err(ChunkError::Field("kind")),
        ChunkKind::Fence => MAX_IN_FLIGHT + 1,
        ChunkKind::HandOver => 1,
    };
    let header = ChunkHeader {
        kind,
        body_len: 0,
        log_id: draft.log_id,
        writer_id: draft.writer_id,
        epoch: draft.epoch,
        ordinal: draft.ordinal,
        next_ordinal: draft.ordinal.plus(step),
        prev_lsn: draft.prev_lsn,
        first_lsn: Lsn::ZERO,
        last_lsn: draft.prev_lsn,
        lsn_floor: draft.lsn_floor.max(draft.prev_lsn),
        raw_len: 0,
        frame_count: 0,
        raw_sha256: Sha256::digest([]).into(),
        created_at_micros: draft.created_at_micros,
    };
    header.check()?;
    Ok((header, assemble(&header, &[])))
}

fn assemble(header: &ChunkHeader, body: &[u8]) -> Bytes {
    let mut out = FieldWriter::with_capacity(HEADER_BYTES + body.len());
    out.bytes(&MAGIC);
    out.u16(VERSION);
    out.u8(header.kind.code());
    out.u8(0);
    out.u32(header.body_len);
    out.bytes(&header.log_id.0);
    out.bytes(&header.writer_id.0);
    out.u64(header.epoch.0);
    out.u64(header.ordinal.0);
    out.u64(header.next_ordinal.0);
    out.u64(header.prev_lsn.get());
    out.u64(header.first_lsn.get());
    out.u64(header.last_lsn.get());
    out.u64(header.lsn_floor.get());
    out.u32(header.raw_len);
    out.u32(header.frame_count);
    out.bytes(&header.raw_sha256);
    out.u64(header.created_at_micros);
    out.u32(0);
    out.crc_of_all();
    out.bytes(body);
    Bytes::from(out.finish())
}

impl ChunkHeader {
    /// Reads the header at the start of `object`, which may be the whole object or only its first
    /// [`HEADER_BYTES`] bytes.
    ///
    /// # Errors
    /// [`ChunkError`]: see there.
    pub fn decode(object: &[u8]) -> Result<ChunkHeader, ChunkError> {
        let Some(bytes) = object.get(..HEADER_BYTES) else {
            return Err(ChunkError::Truncated {
                need: HEADER_BYTES,
                have: object.len(),
            });
        };
        let mut fields = FieldReader::new(bytes);
        if fields.array::<8>() != MAGIC {
            return Err(ChunkError::NotAChunk);
        }
        let version = fields.u16();
        if version != VERSION {
            return Err(ChunkError::UnknownVersion(version));
        }
        if !wire::crc_matches(bytes, CRC_AT) {
            return Err(ChunkError::HeaderChecksum);
        }
        let kind = ChunkKind::from_code(fields.u8()).ok_or(ChunkError::Field("kind"))?;
        let zero = fields.u8();
        let header = ChunkHeader {
            kind,
            body_len: fields.u32(),
            log_id: LogId(fields.array()),
            writer_id: WriterId(fields.array()),
            epoch: Epoch(fields.u64()),
            ordinal: Ordinal(fields.u64()),
            next_ordinal: Ordinal(fields.u64()),
            prev_lsn: wire::lsn(fields.u64()).ok_or(ChunkError::Field("prev LSN"))?,
            first_lsn: wire::lsn(fields.u64()).ok_or(ChunkError::Field("first LSN"))?,
            last_lsn: wire::lsn(fields.u64()).ok_or(ChunkError::Field("last LSN"))?,
            lsn_floor: wire::lsn(fields.u64()).ok_or(ChunkError::Field("LSN floor"))?,
            raw_len: fields.u32(),
            frame_count: fields.u32(),
            raw_sha256: fields.array(),
            created_at_micros: fields.u64(),
        };
        if zero != 0 || fields.u32() != 0 {
            return Err(ChunkError::Field("zero bytes"));
        }
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), ChunkError> {
        let field = |ok: bool, name| if ok { Ok(()) } else { Err(ChunkError::Field(name)) };
        let step = if self.kind == ChunkKind::Fence {
            MAX_IN_FLIGHT + 1
        } else {
            1
        };
        field(
            self.ordinal.0.checked_add(step) == Some(self.next_ordinal.0),
            "next ordinal",
        )?;
        field(self.lsn_floor >= self.last_lsn, "LSN floor")?;
        field(self.raw_len as usize <= MAX_RAW_BYTES, "raw length")?;
        if self.kind == ChunkKind::Data {
            field(self.first_lsn > self.prev_lsn, "first LSN")?;
            field(self.last_lsn >= self.first_lsn, "last LSN")?;
            field(
                self.raw_len > 0 && self.frame_count > 0 && self.body_len > 0,
                "raw length",
            )
        } else {
            field(self.first_lsn == Lsn::ZERO, "first LSN")?;
            field(self.last_lsn == self.prev_lsn, "last LSN")?;
            field(
                self.raw_len == 0 && self.frame_count == 0 && self.body_len == 0,
                "raw length",
            )
        }
    }

    /// True if `other` is the same object as this: same writer, place and frames. What decides whether an object that
    /// "already exists" is our own.
    #[must_use]
    pub fn is_same_object(&self, other: &ChunkHeader) -> bool {
        self == other
    }
}

/// Checks a whole object and gives back its frames' bytes.
///
/// Memory: bounded by the header's raw length, which is bounded by [`MAX_RAW_BYTES`] before anything is allocated.
///
/// # Errors
/// [`ChunkError`]: see there.
pub fn decode(object: &[u8]) -> Result<(ChunkHeader, Vec<u8>), ChunkError> {
    let header = ChunkHeader::decode(object)?;
    let need = HEADER_BYTES + header.body_len as usize;
    let body = object.get(HEADER_BYTES..need).ok_or(ChunkError::Truncated {
        need,
        have: object.len(),
    })?;
    if object.len() > need {
        return Err(ChunkError::TooLong {
            extra: object.len() - need,
        });
    }
    let raw = if header.kind == ChunkKind::Data {
        let damaged = ChunkError::Body {
            raw_len: header.raw_len,
        };
        let raw = zstd::bulk::decompress(body, header.raw_len as usize).map_err(|_| damaged)?;
        if raw.len() != header.raw_len as usize {
            return Err(damaged);
        }
        raw
    } else {
        Vec::new()
    };
    let digest: [u8; 32] = Sha256::digest(&raw).into();
    if digest == header.raw_sha256 {
        Ok((header, raw))
    } else {
        Err(ChunkError::Digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::{golden, lsn};
    use proptest::prelude::*;

    fn draft(ordinal: u64) -> ChunkDraft {
        ChunkDraft {
            log_id: LogId([0x11; 16]),
            writer_id: WriterId([0x22; 16]),
            epoch: Epoch(3),
            ordinal: Ordinal(ordinal),
            prev_lsn: lsn(1_000),
            lsn_floor: lsn(1_500),
            created_at_micros: 1_700_000_000_000_000,
        }
    }

    fn data(raw: &[u8]) -> (ChunkHeader, Bytes) {
        encode_data(
            &draft(7),
            RawFrames {
                first: lsn(1_001),
                last: lsn(2_000),
                count: 2,
                bytes: raw,
            },
        )
        .unwrap()
    }

    #[test]
    fn a_data_chunk_has_the_bytes_of_the_golden_file() {
        golden("chunk-data.bin", &data(b"two frames, two frames, two frames").1);
    }

    #[test]
    fn a_fence_has_the_bytes_of_the_golden_file_and_skips_the_window() {
        let (header, object) = encode_mark(ChunkKind::Fence, &draft(9)).unwrap();
        golden("chunk-fence.bin", &object);
        assert_eq!(header.next_ordinal, Ordinal(9 + MAX_IN_FLIGHT + 1));
        assert_eq!(object.len(), HEADER_BYTES);
        assert_eq!(decode(&object).unwrap(), (header, Vec::new()));
    }

    #[test]
    fn a_newer_version_and_a_foreign_object_are_told_apart_from_damage() {
        let mut object = data(b"x").1.to_vec();
        object[8] = 2;
        assert_eq!(decode(&object), Err(ChunkError::UnknownVersion(2)));
        object[0] = b'X';
        assert_eq!(decode(&object), Err(ChunkError::NotAChunk));
        assert_eq!(
            decode(b""),
            Err(ChunkError::Truncated {
                need: HEADER_BYTES,
                have: 0
            })
        );
    }

    #[test]
    fn a_body_that_unpacks_to_more_than_announced_is_refused() {
        let (mut header, _) = data(&[7; 100]);
        let bomb = zstd::bulk::compress(&vec![0; 1 << 20], 1).unwrap();
        header.body_len = u32::try_from(bomb.len()).unwrap();
        assert_eq!(
            decode(&assemble(&header, &bomb)),
            Err(ChunkError::Body { raw_len: 100 })
        );
    }

    proptest! {
        #[test]
        fn what_was_packed_comes_back(raw in proptest::collection::vec(any::<u8>(), 1..4_000)) {
            let (header, object) = data(&raw);
            prop_assert_eq!(decode(&object), Ok((header, raw)));
        }

        #[test]
        fn a_truncated_chunk_is_an_error(raw in proptest::collection::vec(any::<u8>(), 1..500), cut in any::<prop::sample::Index>()) {
            let object = data(&raw).1;
            let at = cut.index(object.len());
            prop_assert!(decode(&object[..at]).is_err());
        }

        #[test]
        fn a_flipped_bit_is_an_error(raw in proptest::collection::vec(any::<u8>(), 1..500), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut object = data(&raw).1.to_vec();
            let at = at.index(object.len());
            object[at] ^= 1 << bit;
            // A flip in the body may leave the frames intact (zstd has don't-care bits); it must never change them.
            match decode(&object) {
                Err(_) => {}
                Ok((_, got)) => prop_assert!(at >= HEADER_BYTES && got == raw),
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode(&bytes);
        }
    }
}
