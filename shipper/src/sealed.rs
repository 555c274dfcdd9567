//! A sealed segment's object: the segment file, byte for byte, in blocks that can be unpacked alone.
//!
//! ```text
//! little-endian
//!   block 0 … block n-1     each one zstd frame of BLOCK_BYTES raw bytes (the last one of the rest)
//!   seek table, 8 bytes per block:
//!     0  u32      stored bytes of the block
//!     4  u32      crc32 of the stored bytes
//!   footer, the last 96 bytes:
//!     0  [u8; 8]  magic "PDSSEALD"
//!     8  u16      format version, 1
//!    10  u16      zero
//!    12  u32      raw bytes per block
//!    16  u64      raw bytes in all
//!    24  u32      number of blocks
//!    28  u32      crc32 of the seek table
//!    32  [u8;16]  log id
//!    48  u64      base LSN of the segment
//!    56  [u8;32]  sha-256 of the raw bytes
//!    88  u32      zero
//!    92  u32      crc32 of bytes 0..92 of the footer
//! ```
//! A reader that wants a range fetches the footer, the table, and then the blocks that hold the range.

use std::io::{self, Read, Write};
use std::ops::Range;

use engine::log::{LogId, Lsn};
use sha2::{Digest, Sha256};

use crate::wire::{self, FieldReader, FieldWriter};

/// Raw bytes per block.
pub const BLOCK_BYTES: u32 = 256 << 10;
/// Bytes of the footer.
pub const FOOTER_BYTES: usize = 96;
/// Most blocks that a reader accepts: 16 GiB raw.
pub const MAX_BLOCKS: u32 = 1 << 16;

const MAGIC: [u8; 8] = *b"PDSSEALD";
const VERSION: u16 = 1;
const TABLE_ENTRY_BYTES: usize = 8;
const ZSTD_LEVEL: i32 = 3;

/// What an object holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedSummary {
    /// The log.
    pub log_id: LogId,
    /// The segment's base LSN.
    pub base: Lsn,
    /// Bytes of the segment file.
    pub raw_bytes: u64,
    /// Bytes of the object.
    pub stored_bytes: u64,
    /// sha-256 of the segment file.
    pub sha256: [u8; 32],
}

/// A sealed segment's object that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SealedError {
    /// Fewer bytes than announced.
    #[error("truncated")]
    Truncated,
    /// Not a sealed segment.
    #[error("not a sealed segment: the magic bytes are missing at its end")]
    NotSealed,
    /// A format that this program does not know.
    #[error(
        "sealed-segment format version {0} is not known to this program (it knows {VERSION}); use a newer one"
    )]
    UnknownVersion(u16),
    /// A checksum does not match.
    #[error("the checksum of the {0} does not match")]
    Checksum(&'static str),
    /// A field has a value that no writer writes.
    #[error("field {0} is out of range")]
    Field(&'static str),
    /// A block does not unpack to its raw bytes.
    #[error("block {0} does not unpack to its announced length")]
    Block(u32),
    /// The unpacked bytes are not those that were packed.
    #[error("the sha-256 of the segment does not match")]
    Digest,
    /// A local file could not be read or written; trying again may help.
    #[error("local file")]
    Io(#[from] io::Error),
}

/// Packs a segment file from `raw` into `out`. Memory: one block. CPU: sha-256 and zstd-3 over the file.
///
/// # Errors
/// [`SealedError::Io`], or [`SealedError::Field`] for a file over the format's bound.
pub fn encode(
    mut raw: impl Read,
    mut out: impl Write,
    log_id: LogId,
    base: Lsn,
) -> Result<SealedSummary, SealedError> {
    let mut digest = Sha256::new();
    let mut table = FieldWriter::with_capacity(4_096);
    let (mut blocks, mut raw_bytes, mut stored_bytes) = (0u32, 0u64, 0u64);
    let mut block = vec![0; BLOCK_BYTES as usize];
    loop {
        let len = read_full(&mut raw, &mut block)?;
        if len == 0 {
            break;
        }
        if blocks == MAX_BLOCKS {
            return Err(SealedError::Field("number of blocks"));
        }
        let bytes = block.get(..len).unwrap_or_default();
        digest.update(bytes);
        let stored = zstd::bulk::compress(bytes, ZSTD_LEVEL)?;
        table.u32(u32::try_from(stored.len()).map_err(|_| SealedError::Field("block length"))?);
        table.u32(crc32fast::hash(&stored));
        out.write_all(&stored)?;
        blocks += 1;
        raw_bytes += len as u64;
        stored_bytes += stored.len() as u64;
    }
    let table = table.finish();
    let sha256: [u8; 32] = digest.finalize().into();
    let mut footer = FieldWriter::with_capacity(FOOTER_BYTES);
    footer.bytes(&MAGIC);
    footer.u16(VERSION);
    footer.u16(0);
    footer.u32(BLOCK_BYTES);
    footer.u64(raw_bytes);
    footer.u32(blocks);
    footer.u32(crc32fast::hash(&table));
    footer.bytes(&log_id.0);
    footer.u64(base.get());
    footer.bytes(&sha256);
    footer.u32(0);
    footer.crc_of_all();
    out.write_all(&table)?;
    out.write_all(&footer.finish())?;
    out.flush()?;
    stored_bytes += (table.len() + FOOTER_BYTES) as u64;
    Ok(SealedSummary {
        log_id,
        base,
        raw_bytes,
        stored_bytes,
        sha256,
    })
}

fn read_full(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = into.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// The footer of an object.
#[derive(Clone, Copy, Debug)]
pub struct Footer {
    /// What the object holds.
    pub summary: SealedSummary,
    block_bytes: u32,
    blocks: u32,
    table_crc: u32,
}

impl Footer {
    /// Reads the last [`FOOTER_BYTES`] bytes of an object of `stored_bytes` bytes.
    ///
    /// # Errors
    /// [`SealedError`]: see there.
    pub fn decode(bytes: &[u8], stored_bytes: u64) -> Result<Footer, SealedError> {
        if bytes.len() != FOOTER_BYTES || stored_bytes < FOOTER_BYTES as u64 {
            return Err(SealedError::Truncated);
        }
        let mut fields = FieldReader::new(bytes);
        if fields.array::<8>() != MAGIC {
            return Err(SealedError::NotSealed);
        }
        let version = fields.u16();
        if version != VERSION {
            return Err(SealedError::UnknownVersion(version));
        }
        if !wire::crc_matches(bytes, FOOTER_BYTES - 4) {
            return Err(SealedError::Checksum("footer"));
        }
        fields.u16();
        let block_bytes = fields.u32();
        let raw_bytes = fields.u64();
        let blocks = fields.u32();
        let table_crc = fields.u32();
        let log_id = LogId(fields.array());
        let base = wire::lsn(fields.u64()).ok_or(SealedError::Field("base LSN"))?;
        let sha256 = fields.array();
        if block_bytes == 0 || block_bytes > 16 << 20 {
            return Err(SealedError::Field("block bytes"));
        }
        if blocks > MAX_BLOCKS || raw_bytes.div_ceil(u64::from(block_bytes)) != u64::from(blocks) {
            return Err(SealedError::Field("number of blocks"));
        }
        let footer = Footer {
            summary: SealedSummary {
                log_id,
                base,
                raw_bytes,
                stored_bytes,
                sha256,
            },
            block_bytes,
            blocks,
            table_crc,
        };
        if footer.table_bytes() + FOOTER_BYTES as u64 > stored_bytes {
            return Err(SealedError::Truncated);
        }
        Ok(footer)
    }

    fn table_bytes(&self) -> u64 {
        u64::from(self.blocks) * TABLE_ENTRY_BYTES as u64
    }

    /// Where the seek table is in the object.
    #[must_use]
    pub fn table_range(&self) -> Range<u64> {
        let end = self.summary.stored_bytes - FOOTER_BYTES as u64;
        end - self.table_bytes()..end
    }

    /// Checks the seek table.
    ///
    /// # Errors
    /// [`SealedError`]: see there.
    pub fn index(self, table: &[u8]) -> Result<SealedIndex, SealedError> {
        if table.len() as u64 != self.table_bytes() {
            return Err(SealedError::Truncated);
        }
        if crc32fast::hash(table) != self.table_crc {
            return Err(SealedError::Checksum("seek table"));
        }
        let mut fields = FieldReader::new(table);
        let mut at = 0u64;
        let mut blocks = Vec::with_capacity(self.blocks as usize);
        for _ in 0..self.blocks {
            let (len, crc) = (fields.u32(), fields.u32());
            blocks.push(Block { at, len, crc });
            at += u64::from(len);
        }
        if at != self.table_range().start {
            return Err(SealedError::Truncated);
        }
        Ok(SealedIndex { footer: self, blocks })
    }
}

#[derive(Clone, Copy, Debug)]
struct Block {
    at: u64,
    len: u32,
    crc: u32,
}

/// Where each block of an object is: what a reader of ranges keeps.
#[derive(Clone, Debug)]
pub struct SealedIndex {
    footer: Footer,
    blocks: Vec<Block>,
}

impl SealedIndex {
    /// What the object holds.
    #[must_use]
    pub fn summary(&self) -> &SealedSummary {
        &self.footer.summary
    }

    /// Number of blocks.
    #[must_use]
    pub fn block_count(&self) -> u32 {
        self.footer.blocks
    }

    /// Raw bytes of each block but the last.
    #[must_use]
    pub fn block_bytes(&self) -> u32 {
        self.footer.block_bytes
    }

    /// The blocks that hold the raw range; empty if it is empty or past the end.
    #[must_use]
    pub fn blocks_of(&self, raw: Range<u64>) -> Range<u32> {
        let size = u64::from(self.footer.block_bytes);
        let end = raw.end.min(self.footer.summary.raw_bytes);
        if raw.start >= end {
            return 0..0;
        }
        let to_block = |n: u64| u32::try_from(n).unwrap_or(self.footer.blocks);
        to_block(raw.start / size)..to_block(end.div_ceil(size))
    }

    /// Where a block's stored bytes are in the object, or `None` past the last.
    #[must_use]
    pub fn stored_range(&self, block: u32) -> Option<Range<u64>> {
        let block = self.blocks.get(block as usize)?;
        Some(block.at..block.at + u64::from(block.len))
    }

    /// Unpacks one block.
    ///
    /// # Errors
    /// [`SealedError`]: see there.
    pub fn unpack(&self, block: u32, stored: &[u8]) -> Result<Vec<u8>, SealedError> {
        let entry = self
            .blocks
            .get(block as usize)
            .ok_or(SealedError::Field("block number"))?;
        if stored.len() != entry.len as usize {
            return Err(SealedError::Truncated);
        }
        if crc32fast::hash(stored) != entry.crc {
            return Err(SealedError::Checksum("block"));
        }
        let start = u64::from(block) * u64::from(self.footer.block_bytes);
        let want = (self.footer.summary.raw_bytes - start).min(u64::from(self.footer.block_bytes));
        let want = usize::try_from(want).map_err(|_| SealedError::Block(block))?;
        let raw = zstd::bulk::decompress(stored, want).map_err(|_| SealedError::Block(block))?;
        if raw.len() == want {
            Ok(raw)
        } else {
            Err(SealedError::Block(block))
        }
    }
}

/// Unpacks a whole object that lies in a local file of `stored_bytes` bytes into `out`, checking everything.
/// Memory: one block and the seek table.
///
/// # Errors
/// [`SealedError`]: see there.
pub fn decode(
    stored: &mut (impl Read + io::Seek),
    stored_bytes: u64,
    mut out: impl Write,
) -> Result<SealedSummary, SealedError> {
    if stored_bytes < FOOTER_BYTES as u64 {
        return Err(SealedError::Truncated);
    }
    let mut footer = [0; FOOTER_BYTES];
    stored.seek(io::SeekFrom::Start(stored_bytes - FOOTER_BYTES as u64))?;
    stored.read_exact(&mut footer)?;
    let footer = Footer::decode(&footer, stored_bytes)?;
    let range = footer.table_range();
    let mut table = vec![0; usize::try_from(range.end - range.start).map_err(|_| SealedError::Truncated)?];
    stored.seek(io::SeekFrom::Start(range.start))?;
    stored.read_exact(&mut table)?;
    let index = footer.index(&table)?;
    stored.seek(io::SeekFrom::Start(0))?;
    let mut digest = Sha256::new();
    let mut buffer = Vec::new();
    for number in 0..index.block_count() {
        let range = index.stored_range(number).unwrap_or_default();
        // The table's sum was checked against the object's length, so a length here is never more than the file has.
        buffer.resize(
            usize::try_from(range.end - range.start).map_err(|_| SealedError::Truncated)?,
            0,
        );
        stored.read_exact(&mut buffer)?;
        let raw = index.unpack(number, &buffer)?;
        digest.update(&raw);
        out.write_all(&raw)?;
    }
    out.flush()?;
    let digest: [u8; 32] = digest.finalize().into();
    if digest == index.summary().sha256 {
        Ok(*index.summary())
    } else {
        Err(SealedError::Digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::{golden, lsn};
    use proptest::prelude::*;
    use std::io::Cursor;

    fn pack(raw: &[u8]) -> (SealedSummary, Vec<u8>) {
        let mut out = Vec::new();
        let summary = encode(raw, &mut out, LogId([0x11; 16]), lsn(77)).unwrap();
        (summary, out)
    }

    fn unpack(stored: &[u8]) -> Result<Vec<u8>, SealedError> {
        let mut out = Vec::new();
        decode(&mut Cursor::new(stored), stored.len() as u64, &mut out)?;
        Ok(out)
    }

    fn noise(len: usize) -> Vec<u8> {
        (0..len).map(|i| ((i * i) >> 7) as u8 ^ (i as u8)).collect()
    }

    #[test]
    fn an_object_has_the_bytes_of_the_golden_file() {
        golden(
            "sealed.bin",
            &pack(b"a very small segment, a very small segment").1,
        );
    }

    #[test]
    fn any_range_can_be_read_from_its_blocks_alone() {
        let raw = noise(BLOCK_BYTES as usize * 2 + 1_000);
        let (summary, object) = pack(&raw);
        assert_eq!(summary.stored_bytes, object.len() as u64);
        let footer = Footer::decode(&object[object.len() - FOOTER_BYTES..], object.len() as u64).unwrap();
        let table = footer.table_range();
        let index = footer
            .index(&object[table.start as usize..table.end as usize])
            .unwrap();
        for range in [0..10, 262_140..262_150, 524_000..525_000, 0..raw.len() as u64] {
            let blocks = index.blocks_of(range.clone());
            let first = blocks.start;
            let mut got = Vec::new();
            for block in blocks {
                let stored = index.stored_range(block).unwrap();
                got.extend(
                    index
                        .unpack(block, &object[stored.start as usize..stored.end as usize])
                        .unwrap(),
                );
            }
            let skip = range.start as usize - first as usize * BLOCK_BYTES as usize;
            assert_eq!(
                got[skip..][..(range.end - range.start) as usize],
                raw[range.start as usize..range.end as usize]
            );
        }
        assert_eq!(index.blocks_of(raw.len() as u64..u64::MAX), 0..0);
    }

    #[test]
    fn an_empty_file_and_whole_blocks_come_back() {
        for len in [0, 1, BLOCK_BYTES as usize, BLOCK_BYTES as usize + 1] {
            let raw = noise(len);
            assert_eq!(unpack(&pack(&raw).1).unwrap(), raw, "{len}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_truncated_object_is_an_error(len in 1usize..2_000, cut in any::<prop::sample::Index>()) {
            let object = pack(&noise(len)).1;
            prop_assert!(unpack(&object[..cut.index(object.len())]).is_err());
        }

        #[test]
        fn a_flipped_bit_is_an_error(len in 1usize..2_000, at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut object = pack(&noise(len)).1;
            let at = at.index(object.len());
            object[at] ^= 1 << bit;
            prop_assert!(unpack(&object).is_err());
        }
    }
}
