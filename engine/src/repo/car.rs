//! CAR v1: blocks with their addresses, one after the other.
//!
//! ```text
//! varint header length  | header: DAG-CBOR {roots: [link], version: 1}
//! varint section length | CID, 36 bytes | block                         and so on to the end
//! ```
//!
//! Spec: <https://ipld.io/specs/transport/car/carv1/>. Lengths are bounded before they are believed, and memory grows only
//! with bytes that really came.

#[cfg(test)]
mod tests;

use super::cbor::{CborError, Reader, Writer, head_len};
use super::cid::{CID_BYTES, Cid, CidError};
use std::io::{self, Read};

/// Bytes of the longest varint: ten of seven bits for a u64.
const MAX_VARINT_BYTES: usize = 10;
/// Encoded length of a link: five bytes of head, then the CID.
const LINK_BYTES: usize = 5 + CID_BYTES;

/// What a reader of a CAR accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CarLimits {
    /// Longest header, in bytes; 16 KiB hold some 390 roots.
    pub max_header_bytes: usize,
    /// Longest block, in bytes.
    pub max_block_bytes: usize,
    /// Whether each block is hashed and compared with its CID.
    pub verify_hashes: bool,
}

impl Default for CarLimits {
    /// A header of 16 KiB, blocks of 2 MiB (as much as a firehose commit carries), hashes verified.
    fn default() -> CarLimits {
        CarLimits {
            max_header_bytes: 16 << 10,
            max_block_bytes: 2 << 20,
            verify_hashes: true,
        }
    }
}

/// Why bytes are not a CAR. Offsets count from its first byte.
#[derive(Debug, thiserror::Error)]
pub enum CarError {
    /// It ends inside the header or a section.
    #[error("the CAR ends inside of what starts at byte {at}")]
    Truncated {
        /// Where the header or section starts.
        at: u64,
    },
    /// A length that is not a varint in its shortest form, or beyond 64 bits.
    #[error("an unsound length at byte {at}")]
    Varint {
        /// Where the length starts.
        at: u64,
    },
    /// A header or block longer than the limit, or a section that cannot hold a CID.
    #[error("a section of {length} bytes at byte {at}, where {least} to {most} are allowed")]
    Length {
        /// Where the section starts.
        at: u64,
        /// The declared length.
        length: u64,
        /// The least that is allowed.
        least: usize,
        /// The most that is allowed.
        most: usize,
    },
    /// The header is not DAG-CBOR of the expected shape.
    #[error("the CAR's header: {0}")]
    Header(#[source] CborError),
    /// Another version of the format.
    #[error("CAR version {0} is not supported")]
    Version(u64),
    /// A block with an address that the protocol does not allow.
    #[error("the section at byte {at}: {source}")]
    Cid {
        /// Where the section starts.
        at: u64,
        /// What is wrong with the CID.
        source: CidError,
    },
    /// A block that does not hash to its address.
    #[error("the block at byte {at} does not hash to {cid}")]
    Hash {
        /// Where the section starts.
        at: u64,
        /// The address it claims.
        cid: Cid,
    },
    /// The source failed.
    #[error("reading the CAR failed")]
    Io(#[from] io::Error),
}

/// Bytes that `value` takes as a varint.
const fn varint_len(value: u64) -> usize {
    let bits = 64 - value.leading_zeros() as usize;
    if bits == 0 { 1 } else { bits.div_ceil(7) }
}

fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Puts a varint together byte by byte.
#[derive(Default)]
struct Varint {
    value: u64,
    bytes: usize,
}

impl Varint {
    /// Takes the next byte; gives the value with the last one, and `Err` for what is no varint in its shortest form.
    fn push(&mut self, byte: u8) -> Result<Option<u64>, ()> {
        let bits = u64::from(byte & 0x7f);
        let shift = 7 * self.bytes;
        let is_last = byte & 0x80 == 0;
        // The tenth byte has room for one bit; a last byte of zero says nothing and so is one too many.
        if self.bytes >= MAX_VARINT_BYTES
            || (shift == 63 && bits > 1)
            || (is_last && bits == 0 && self.bytes > 0)
        {
            return Err(());
        }
        self.value |= bits << shift;
        self.bytes += 1;
        Ok(is_last.then_some(self.value))
    }
}

fn parse_header(header: &[u8]) -> Result<Vec<Cid>, CarError> {
    let parse = || {
        let mut reader = Reader::new(header);
        let mut keys = reader.map()?;
        keys.expect(&mut reader, "roots")?;
        let mut roots = Vec::new();
        for _ in 0..reader.array()? {
            roots.push(reader.link()?);
        }
        keys.expect(&mut reader, "version")?;
        let version = reader.u64()?;
        keys.end(&reader)?;
        reader.end()?;
        Ok((roots, version))
    };
    match parse().map_err(CarError::Header)? {
        (roots, 1) => Ok(roots),
        (_, version) => Err(CarError::Version(version)),
    }
}

fn checked_length(at: u64, length: u64, least: usize, most: usize) -> Result<usize, CarError> {
    match usize::try_from(length) {
        Ok(length) if (least..=most).contains(&length) => Ok(length),
        _ => Err(CarError::Length {
            at,
            length,
            least,
            most,
        }),
    }
}

impl CarLimits {
    fn header_length(&self, length: u64) -> Result<usize, CarError> {
        checked_length(0, length, 1, self.max_header_bytes)
    }

    fn section_length(&self, at: u64, length: u64) -> Result<usize, CarError> {
        checked_length(
            at,
            length,
            CID_BYTES,
            self.max_block_bytes.saturating_add(CID_BYTES),
        )
    }

    fn check_block(&self, at: u64, cid: &[u8], block: &[u8]) -> Result<Cid, CarError> {
        let cid = Cid::from_bytes(cid).map_err(|source| CarError::Cid { at, source })?;
        if self.verify_hashes && !cid.matches(block) {
            return Err(CarError::Hash { at, cid });
        }
        Ok(cid)
    }
}

/// A block of a CAR that is read as a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedBlock {
    /// Its address.
    pub cid: Cid,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// Reads a CAR from a stream, block by block; never more than one block is in memory. Iterates over the blocks; after an
/// error it ends. Reads in small steps, so give it a buffered source.
#[derive(Debug)]
pub struct CarReader<R> {
    source: R,
    limits: CarLimits,
    roots: Vec<Cid>,
    at: u64,
    is_done: bool,
}

impl<R: Read> CarReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// The header is unsound or too long, or the source fails.
    pub fn new(source: R, limits: CarLimits) -> Result<CarReader<R>, CarError> {
        let mut reader = CarReader {
            source,
            limits,
            roots: Vec::new(),
            at: 0,
            is_done: false,
        };
        let Some(length) = reader.varint()? else {
            return Err(CarError::Truncated { at: 0 });
        };
        let length = limits.header_length(length)?;
        let mut header = Vec::new();
        reader.fill(0, length, &mut header)?;
        reader.roots = parse_header(&header)?;
        Ok(reader)
    }

    /// The roots; none is allowed.
    #[must_use]
    pub fn roots(&self) -> &[Cid] {
        &self.roots
    }

    /// How many bytes were read so far.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.at
    }

    /// The next block, or `None` at the end.
    ///
    /// # Errors
    /// The section is unsound or too long, or the source fails; there are no further blocks then.
    pub fn next_block(&mut self) -> Result<Option<OwnedBlock>, CarError> {
        if self.is_done {
            return Ok(None);
        }
        let block = self.read_block();
        self.is_done = !matches!(block, Ok(Some(_)));
        block
    }

    fn read_block(&mut self) -> Result<Option<OwnedBlock>, CarError> {
        let start = self.at;
        let Some(length) = self.varint()? else {
            return Ok(None);
        };
        let length = self.limits.section_length(start, length)?;
        let mut cid = Vec::with_capacity(CID_BYTES);
        self.fill(start, CID_BYTES, &mut cid)?;
        let mut bytes = Vec::new();
        self.fill(start, length - CID_BYTES, &mut bytes)?;
        let cid = self.limits.check_block(start, &cid, &bytes)?;
        Ok(Some(OwnedBlock { cid, bytes }))
    }

    /// A varint, or `None` if the source ends before it.
    fn varint(&mut self) -> Result<Option<u64>, CarError> {
        let start = self.at;
        let mut varint = Varint::default();
        loop {
            let mut byte = [0];
            match self.source.read(&mut byte) {
                Ok(0) if self.at == start => return Ok(None),
                Ok(0) => return Err(CarError::Truncated { at: start }),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            }
            self.at += 1;
            match varint.push(byte[0]) {
                Ok(Some(value)) => return Ok(Some(value)),
                Ok(None) => {}
                Err(()) => return Err(CarError::Varint { at: start }),
            }
        }
    }

    /// Reads `length` bytes into `out`, which grows as they come.
    fn fill(&mut self, start: u64, length: usize, out: &mut Vec<u8>) -> Result<(), CarError> {
        let read = self.source.by_ref().take(length as u64).read_to_end(out)?;
        self.at += read as u64;
        if read < length {
            Err(CarError::Truncated { at: start })
        } else {
            Ok(())
        }
    }
}

impl<R: Read> Iterator for CarReader<R> {
    type Item = Result<OwnedBlock, CarError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_block().transpose()
    }
}

/// A block of a CAR that is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CarBlock<'a> {
    /// Its address.
    pub cid: Cid,
    /// Its content.
    pub bytes: &'a [u8],
    /// Where its content starts in the CAR.
    pub offset: usize,
}

/// Reads a CAR in memory and tells where the blocks are. Iterates over the blocks; after an error it ends.
#[derive(Clone, Debug)]
pub struct CarSlice<'a> {
    car: &'a [u8],
    limits: CarLimits,
    roots: Vec<Cid>,
    at: usize,
}

impl<'a> CarSlice<'a> {
    /// Reads the header.
    ///
    /// # Errors
    /// The header is unsound or too long.
    pub fn new(car: &'a [u8], limits: CarLimits) -> Result<CarSlice<'a>, CarError> {
        let mut slice = CarSlice {
            car,
            limits,
            roots: Vec::new(),
            at: 0,
        };
        let length = slice.varint()?;
        let length = limits.header_length(length)?;
        slice.roots = parse_header(slice.take_bytes(0, length)?)?;
        Ok(slice)
    }

    /// The roots; none is allowed.
    #[must_use]
    pub fn roots(&self) -> &[Cid] {
        &self.roots
    }

    fn read_block(&mut self) -> Result<CarBlock<'a>, CarError> {
        let start = self.at as u64;
        let length = self.varint()?;
        let length = self.limits.section_length(start, length)?;
        let cid = self.take_bytes(start, CID_BYTES)?;
        let offset = self.at;
        let bytes = self.take_bytes(start, length - CID_BYTES)?;
        let cid = self.limits.check_block(start, cid, bytes)?;
        Ok(CarBlock { cid, bytes, offset })
    }

    fn varint(&mut self) -> Result<u64, CarError> {
        let start = self.at as u64;
        let mut varint = Varint::default();
        loop {
            let Some(byte) = self.car.get(self.at) else {
                return Err(CarError::Truncated { at: start });
            };
            self.at += 1;
            match varint.push(*byte) {
                Ok(Some(value)) => return Ok(value),
                Ok(None) => {}
                Err(()) => return Err(CarError::Varint { at: start }),
            }
        }
    }

    fn take_bytes(&mut self, start: u64, length: usize) -> Result<&'a [u8], CarError> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.car.len());
        let Some((end, taken)) = end.and_then(|end| Some((end, self.car.get(self.at..end)?))) else {
            return Err(CarError::Truncated { at: start });
        };
        self.at = end;
        Ok(taken)
    }
}

impl<'a> Iterator for CarSlice<'a> {
    type Item = Result<CarBlock<'a>, CarError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.car.len() {
            return None;
        }
        let block = self.read_block();
        if block.is_err() {
            self.at = self.car.len();
        }
        Some(block)
    }
}

/// Appends a header with these roots, of which there may be none.
pub fn write_header(out: &mut Vec<u8>, roots: &[Cid]) {
    write_varint(out, header_body_len(roots.len()) as u64);
    let mut writer = Writer::new(out);
    writer.map(2).text("roots").array(roots.len());
    for root in roots {
        writer.link(root);
    }
    writer.text("version").uint(1);
}

/// Appends a block. That it hashes to `cid` is the caller's part.
pub fn write_block(out: &mut Vec<u8>, cid: &Cid, block: &[u8]) {
    write_varint(out, (CID_BYTES + block.len()) as u64);
    out.extend_from_slice(cid.as_bytes());
    out.extend_from_slice(block);
}

/// Bytes that stand before a block of `len` bytes: its section's length and its CID.
#[must_use]
pub const fn block_overhead(len: usize) -> usize {
    varint_len((CID_BYTES + len) as u64) + CID_BYTES
}

/// Bytes that [`write_header`] appends for this number of roots.
#[must_use]
pub const fn header_len(roots: usize) -> usize {
    let body = header_body_len(roots);
    varint_len(body as u64) + body
}

const fn header_body_len(roots: usize) -> usize {
    // Map head, "roots" with its array, "version" with its number.
    1 + 6 + head_len(roots as u64) + roots * LINK_BYTES + 8 + 1
}
