//! A segment file: header, frames, and once it is sealed a footer.
//!
//! ```text
//! header, 64 bytes               footer: index                    footer: trailer, the last 88 bytes of the file
//!  0 magic "AzPdsSeg"             0 magic "AzPdsIdx"               0 u64 first lsn     8 u64 last lsn
//!  8 u16 version   10 u16 64      8 u32 entries   12 u32 zero     16 u64 frames       24 u64 where the footer begins
//! 12 u32 compaction 16 log id    16 entries: u64 lsn, u64 offset  32 sha-256 of everything before the footer
//! 32 u64 epoch     40 u64 base                                    64 u32 footer length, magic to magic
//! 48 u64 prev      56 u32 zero                                    68 u16 version   70 u16 zero   72 u32 zero
//! 60 u32 crc32 of 0..60                                           76 u32 crc32 of the footer up to here
//!                                                                 80 magic "AzPdsEnd"
//! ```
//!
//! The base LSN is the first frame's, which makes it the time of creation and the floor as well: nothing at or below
//! the one before it may ever be assigned again. All bytes follow from the frames, so a segment that is rebuilt from
//! shipped frames equals the original to the last byte.

use sha2::{Digest, Sha256};

use super::frame::{Flags, FrameHeader, FrameRef};
use super::lsn::{Epoch, LogId, Lsn};

/// The version of a segment that a writer filled, and of every footer.
pub const SEGMENT_VERSION: u16 = 1;
/// The version of a compacted segment's header, which differs in naming its compaction.
pub const COMPACTED_VERSION: u16 = 2;
/// Bytes before the first frame.
pub const SEGMENT_HEADER_BYTES: usize = 64;
/// Bytes of the footer's fixed last part.
pub const SEGMENT_TRAILER_BYTES: usize = 88;
/// The index has an entry for the first frame and then one about this often.
pub const INDEX_EVERY_BYTES: u64 = 64 << 10;

const HEADER_MAGIC: &[u8; 8] = b"AzPdsSeg";
const INDEX_MAGIC: &[u8; 8] = b"AzPdsIdx";
const END_MAGIC: &[u8; 8] = b"AzPdsEnd";
const INDEX_HEADER_BYTES: usize = 16;
const INDEX_ENTRY_BYTES: usize = 16;
const FOOTER_VERSION_AT: usize = 68;
const FOOTER_CRC_AT: usize = 76;
const _: () = assert!(FOOTER_CRC_AT + 4 + 8 == SEGMENT_TRAILER_BYTES);

/// The file's name of the segment with this base LSN.
#[must_use]
pub fn segment_file_name(base: Lsn) -> String {
    format!("{}.seg", base.hex())
}

/// Reads numbers and byte strings one after the other; running out gives zeros, lengths are checked before.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk::<N>() {
            Some((value, rest)) => {
                self.0 = rest;
                *value
            }
            None => [0; N],
        }
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

/// Why the first 64 bytes are not a segment's header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentHeaderError {
    /// A program that came after this one wrote the file.
    #[error(
        "segment format version {found} is not known to this program (it knows {SEGMENT_VERSION} and {COMPACTED_VERSION})"
    )]
    UnknownVersion {
        /// The version in the file.
        found: u16,
    },
    /// Too short, all zero, or other bytes than a writer writes.
    #[error("the segment header is damaged: {what}")]
    Damaged {
        /// What is wrong with it.
        what: &'static str,
    },
}

/// A segment file's first 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Which log it belongs to.
    pub log_id: LogId,
    /// Who wrote it; all its frames have the same.
    pub epoch: Epoch,
    /// LSN of its first frame.
    pub base: Lsn,
    /// LSN of the last frame of the segment before it.
    pub prev: Lsn,
    /// Zero for what a writer appended; else the number of the compaction that made it.
    pub compaction: u32,
}

impl SegmentHeader {
    fn version(&self) -> u16 {
        if self.compaction == 0 {
            SEGMENT_VERSION
        } else {
            COMPACTED_VERSION
        }
    }

    /// The bytes as they go on disk.
    #[must_use]
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut raw = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        raw.extend_from_slice(HEADER_MAGIC);
        raw.extend_from_slice(&self.version().to_le_bytes());
        raw.extend_from_slice(&(SEGMENT_HEADER_BYTES as u16).to_le_bytes());
        raw.extend_from_slice(&self.compaction.to_le_bytes());
        raw.extend_from_slice(&self.log_id.0);
        raw.extend_from_slice(&self.epoch.0.to_le_bytes());
        raw.extend_from_slice(&self.base.get().to_le_bytes());
        raw.extend_from_slice(&self.prev.get().to_le_bytes());
        raw.extend_from_slice(&[0; 4]);
        raw.extend_from_slice(&crc32fast::hash(&raw).to_le_bytes());
        let mut header = [0; SEGMENT_HEADER_BYTES];
        header.copy_from_slice(&raw);
        header
    }

    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// [`SegmentHeaderError`]. A version is called unknown only if the checksum over the header (as long as it says it
    /// is) is right: otherwise it is damage.
    pub fn parse(bytes: &[u8]) -> Result<SegmentHeader, SegmentHeaderError> {
        let damaged = |what| SegmentHeaderError::Damaged { what };
        let mut fields = Fields(
            bytes
                .get(..SEGMENT_HEADER_BYTES)
                .ok_or(damaged("the file is too short"))?,
        );
        if fields.0.iter().all(|byte| *byte == 0) {
            return Err(damaged("it is all zero"));
        }
        if &fields.take::<8>() != HEADER_MAGIC {
            return Err(damaged("it does not begin as a segment does"));
        }
        let (version, len) = (fields.u16(), usize::from(fields.u16()));
        let said = bytes.get(..len).and_then(<[u8]>::split_last_chunk::<4>);
        let Some((before, crc)) = said.filter(|_| len >= 16) else {
            return Err(damaged("its length is out of range"));
        };
        if crc32fast::hash(before) != u32::from_le_bytes(*crc) {
            return Err(damaged("its checksum does not match"));
        }
        if ![SEGMENT_VERSION, COMPACTED_VERSION].contains(&version) {
            return Err(SegmentHeaderError::UnknownVersion { found: version });
        }
        if len != SEGMENT_HEADER_BYTES {
            return Err(damaged("its length is not that of its version"));
        }
        let compaction = fields.u32();
        let log_id = LogId(fields.take());
        let epoch = Epoch(fields.u64());
        let (base, prev) = (fields.u64(), fields.u64());
        let (Some(base), Some(prev)) = (Lsn::new(base), Lsn::new(prev)) else {
            return Err(damaged("an LSN is out of range"));
        };
        let header = SegmentHeader {
            log_id,
            epoch,
            base,
            prev,
            compaction,
        };
        if header.version() != version || fields.u32() != 0 || prev >= base {
            return Err(damaged("its checksum matches but its fields make no sense"));
        }
        Ok(header)
    }
}

/// What a sealed segment says at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentFooter {
    /// LSN of the first frame.
    pub first: Lsn,
    /// LSN of the last frame.
    pub last: Lsn,
    /// How many frames there are.
    pub frames: u64,
    /// Offset of the end of the last frame, where the footer begins.
    pub frames_end: u64,
    /// SHA-256 of everything before the footer.
    pub sha256: [u8; 32],
    /// LSN and offset of some frames, ascending: the first, and then one about every 64 KiB.
    pub index: Vec<(Lsn, u64)>,
}

impl SegmentFooter {
    /// The bytes as they go on disk.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let len = INDEX_HEADER_BYTES + self.index.len() * INDEX_ENTRY_BYTES + SEGMENT_TRAILER_BYTES;
        let mut raw = Vec::with_capacity(len);
        raw.extend_from_slice(INDEX_MAGIC);
        raw.extend_from_slice(&u32::try_from(self.index.len()).unwrap_or(u32::MAX).to_le_bytes());
        raw.extend_from_slice(&[0; 4]);
        for (lsn, offset) in &self.index {
            raw.extend_from_slice(&lsn.get().to_le_bytes());
            raw.extend_from_slice(&offset.to_le_bytes());
        }
        for value in [self.first.get(), self.last.get(), self.frames, self.frames_end] {
            raw.extend_from_slice(&value.to_le_bytes());
        }
        raw.extend_from_slice(&self.sha256);
        raw.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
        raw.extend_from_slice(&SEGMENT_VERSION.to_le_bytes());
        raw.extend_from_slice(&[0; 6]);
        raw.extend_from_slice(&crc32fast::hash(&raw).to_le_bytes());
        raw.extend_from_slice(END_MAGIC);
        raw
    }

    /// How long the footer is that ends with `trailer` (the last 88 bytes of a file of `file_len` bytes), or `None` if
    /// that is not the end of a sealed segment.
    #[must_use]
    pub fn len_by_trailer(trailer: &[u8], file_len: u64) -> Option<usize> {
        if trailer.len() != SEGMENT_TRAILER_BYTES || !trailer.ends_with(END_MAGIC) {
            return None;
        }
        let len = Fields(trailer.get(64..)?).u32();
        let least = INDEX_HEADER_BYTES + INDEX_ENTRY_BYTES + SEGMENT_TRAILER_BYTES;
        let most = file_len.checked_sub(SEGMENT_HEADER_BYTES as u64)?;
        (len as usize >= least && u64::from(len) <= most).then_some(len as usize)
    }

    /// Reads a whole footer, which ends a file of `file_len` bytes. `None` if it is not one, or damaged.
    #[must_use]
    pub fn parse(footer: &[u8], file_len: u64) -> Option<SegmentFooter> {
        let trailer_at = footer.len().checked_sub(SEGMENT_TRAILER_BYTES)?;
        let (head, trailer) = footer.split_at_checked(trailer_at)?;
        if SegmentFooter::len_by_trailer(trailer, file_len)? != footer.len() {
            return None;
        }
        let checked = footer.get(..trailer_at + FOOTER_CRC_AT)?;
        if crc32fast::hash(checked) != Fields(trailer.get(FOOTER_CRC_AT..)?).u32() {
            return None;
        }
        if Fields(trailer.get(FOOTER_VERSION_AT..)?).u16() != SEGMENT_VERSION {
            return None;
        }
        let mut fields = Fields(head);
        if &fields.take::<8>() != INDEX_MAGIC {
            return None;
        }
        let entries = fields.u32() as usize;
        let expected = entries
            .checked_mul(INDEX_ENTRY_BYTES)?
            .checked_add(INDEX_HEADER_BYTES)?;
        if fields.u32() != 0 || expected != head.len() {
            return None;
        }
        let mut index = Vec::with_capacity(entries);
        for _ in 0..entries {
            index.push((Lsn::new(fields.u64())?, fields.u64()));
        }
        let mut fields = Fields(trailer);
        let footer = SegmentFooter {
            first: Lsn::new(fields.u64())?,
            last: Lsn::new(fields.u64())?,
            frames: fields.u64(),
            frames_end: fields.u64(),
            sha256: fields.take(),
            index,
        };
        (footer.frames_end == file_len.checked_sub(expected as u64 + SEGMENT_TRAILER_BYTES as u64)?)
            .then_some(footer)
    }

    /// The footer at the end of a whole file. `None` if the file is not sealed, or its footer is damaged.
    #[must_use]
    pub fn of_file(file: &[u8]) -> Option<SegmentFooter> {
        let trailer = file.last_chunk::<SEGMENT_TRAILER_BYTES>()?;
        let len = SegmentFooter::len_by_trailer(trailer, file.len() as u64)?;
        SegmentFooter::parse(file.get(file.len().checked_sub(len)?..)?, file.len() as u64)
    }

    /// Offset of an indexed frame at or before `lsn`, or of the first frame.
    #[must_use]
    pub fn seek(&self, lsn: Lsn) -> u64 {
        seek(&self.index, lsn)
    }
}

/// As [`SegmentFooter::seek`], in an index that is still growing.
pub(super) fn seek(index: &[(Lsn, u64)], lsn: Lsn) -> u64 {
    let after = index.partition_point(|(at, _)| *at <= lsn);
    after
        .checked_sub(1)
        .and_then(|at| index.get(at))
        .map_or(SEGMENT_HEADER_BYTES as u64, |(_, offset)| *offset)
}

/// What is counted along while a segment is written or scanned, so that it can be sealed at any time.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    sha256: Sha256,
    pub(super) first: Lsn,
    pub(super) last: Lsn,
    pub(super) frames: u64,
    /// Offset of the end of the last frame counted.
    pub(super) end: u64,
    pub(super) index: Vec<(Lsn, u64)>,
}

impl Tally {
    pub(super) fn start(header: &SegmentHeader) -> Tally {
        Tally {
            sha256: Sha256::new_with_prefix(header.encode()),
            first: header.base,
            last: header.prev,
            frames: 0,
            end: SEGMENT_HEADER_BYTES as u64,
            index: Vec::new(),
        }
    }

    /// Counts the next frame.
    pub(super) fn add(&mut self, header: &FrameHeader, bytes: &[u8]) {
        if self
            .index
            .last()
            .is_none_or(|(_, offset)| self.end - offset >= INDEX_EVERY_BYTES)
        {
            self.index.push((header.lsn, self.end));
        }
        self.sha256.update(bytes);
        self.last = header.lsn;
        self.frames += 1;
        self.end += bytes.len() as u64;
    }

    pub(super) fn footer(&self) -> SegmentFooter {
        SegmentFooter {
            first: self.first,
            last: self.last,
            frames: self.frames,
            frames_end: self.end,
            sha256: self.sha256.clone().finalize().into(),
            index: self.index.clone(),
        }
    }
}

/// What one segment is, for those who list or ship it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its name: LSN of the first frame.
    pub base: Lsn,
    /// LSN of the first frame.
    pub first: Lsn,
    /// LSN of the last frame so far.
    pub last: Lsn,
    /// LSN of the last frame of the segment before.
    pub prev: Lsn,
    /// Who wrote it.
    pub epoch: Epoch,
    /// Whether it has its footer and will not change any more.
    pub sealed: bool,
    /// Length of the file in bytes; of an open one, up to the last frame written.
    pub bytes: u64,
    /// How many frames there are.
    pub frames: u64,
    /// SHA-256 of everything before the footer, if it is sealed.
    pub sha256: Option<[u8; 32]>,
    /// Zero for what a writer appended; else the number of the compaction that made it.
    pub compaction: u32,
}

impl SegmentInfo {
    pub(super) fn sealed(header: &SegmentHeader, footer: &SegmentFooter, bytes: u64) -> SegmentInfo {
        SegmentInfo {
            base: header.base,
            first: footer.first,
            last: footer.last,
            prev: header.prev,
            epoch: header.epoch,
            sealed: true,
            bytes,
            frames: footer.frames,
            sha256: Some(footer.sha256),
            compaction: header.compaction,
        }
    }
}

/// How a frame fails to continue the chain, or `None` if it does. `first` tells whether it begins its segment.
pub(super) fn link_error(header: &FrameHeader, last: Lsn, epoch: Epoch, first: bool) -> Option<String> {
    if header.prev != last {
        return Some(format!(
            "the chain is broken: frame {} says it follows {}, but the frame before it is {last}",
            header.lsn, header.prev
        ));
    }
    if header.epoch != epoch {
        return Some(format!(
            "frame {} has epoch {} in a segment of epoch {epoch}",
            header.lsn, header.epoch
        ));
    }
    if header.flags.contains(Flags::SEGMENT_START) != first {
        return Some(format!(
            "frame {} is in the wrong place: its segment-start flag says so",
            header.lsn
        ));
    }
    None
}

/// Offset of the first whole, valid frame in `bytes[from..]` that lies after `last` in the order, if there is one.
/// With `after_sync` only such that prove that what is before them was durable.
///
/// Bytes that a user supplied could look like a frame. That matters only behind damage, and would at worst make
/// recovery refuse a torn tail; a damaged frame whose header is whole is stepped over for that reason.
pub(super) fn find_frame(bytes: &[u8], from: usize, last: Lsn, after_sync: bool) -> Option<usize> {
    let mut at = from;
    if let Some(Ok(header)) = bytes.get(at..).map(FrameHeader::parse)
        && FrameRef::parse(bytes.get(at..).unwrap_or_default()).is_err()
    {
        at += header.len();
    }
    while at < bytes.len() {
        let rest = bytes.get(at..)?;
        // Most offsets fail here, before any checksum is computed: reserved bytes and unused flags are zero.
        let plausible = matches!(rest.get(33..36), Some([flags, 0, 0]) if *flags < 8)
            && rest.first_chunk::<4>() != Some(&[0; 4]);
        if !plausible {
            at += 1;
            continue;
        }
        match FrameRef::parse(rest) {
            Ok(frame) if frame.header.lsn > last => {
                if !after_sync || frame.header.flags.contains(Flags::AFTER_SYNC) {
                    return Some(at);
                }
                at += frame.header.len();
            }
            _ => at += 1,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            log_id: LogId([7; 16]),
            epoch: Epoch(3),
            base: Lsn::saturating(1_000),
            prev: Lsn::saturating(900),
            compaction: 0,
        }
    }

    proptest! {
        #[test]
        fn a_header_round_trips_and_every_flipped_bit_is_noticed(
            bit in 0usize..SEGMENT_HEADER_BYTES * 8, compaction in prop_oneof![Just(0), 1..9u32],
        ) {
            let header = SegmentHeader { compaction, ..header() };
            let mut raw = header.encode();
            prop_assert_eq!(SegmentHeader::parse(&raw), Ok(header));
            raw[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(SegmentHeader::parse(&raw).is_err());
        }

        #[test]
        fn a_footer_round_trips_and_every_flipped_bit_is_noticed(
            count in 1u64..40, frames: u64, sha256: [u8; 32], bit: usize,
        ) {
            let index = (0..count).map(|n| (Lsn::saturating(1_000 + n), 64 + n * 70_000)).collect();
            let (first, last) = (Lsn::saturating(1_000), Lsn::saturating(9_000));
            let footer = SegmentFooter { first, last, frames, frames_end: 3_000_000, sha256, index };
            let mut raw = footer.encode();
            let file_len = 3_000_000 + raw.len() as u64;
            prop_assert_eq!(SegmentFooter::parse(&raw, file_len), Some(footer));
            let bit = bit % (raw.len() * 8);
            raw[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(SegmentFooter::parse(&raw, file_len), None);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = SegmentHeader::parse(&bytes);
            let _ = SegmentFooter::of_file(&bytes);
            let _ = find_frame(&bytes, 0, Lsn::ZERO, false);
        }
    }

    #[test]
    fn another_version_is_told_from_damage() {
        let mut raw = header().encode();
        raw[8] = 3;
        assert!(matches!(
            SegmentHeader::parse(&raw),
            Err(SegmentHeaderError::Damaged { .. })
        ));
        let crc = crc32fast::hash(&raw[..60]).to_le_bytes();
        raw[60..].copy_from_slice(&crc);
        assert_eq!(
            SegmentHeader::parse(&raw),
            Err(SegmentHeaderError::UnknownVersion { found: 3 })
        );
        // A writer's segment names no compaction, and a compacted one does.
        let mut raw = header().encode();
        raw[8] = 2;
        let crc = crc32fast::hash(&raw[..60]).to_le_bytes();
        raw[60..].copy_from_slice(&crc);
        assert!(matches!(
            SegmentHeader::parse(&raw),
            Err(SegmentHeaderError::Damaged { .. })
        ));
    }

    #[test]
    fn seeking_finds_the_indexed_frame_at_or_before() {
        let lsn = Lsn::saturating;
        let index = [(lsn(10), 64), (lsn(20), 70_000)];
        assert_eq!(
            [5, 10, 19, 20, 99].map(|at| seek(&index, lsn(at))),
            [64, 64, 64, 70_000, 70_000]
        );
    }
}
