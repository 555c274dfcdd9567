//! Appends DAG-CBOR to a buffer, head by head.

use super::{
    FALSE, LINK_HEAD, MAJOR_ARRAY, MAJOR_BYTES, MAJOR_MAP, MAJOR_NEGATIVE, MAJOR_TEXT, MAJOR_UINT, NULL, TRUE,
};
use crate::repo::cid::Cid;

/// Appends DAG-CBOR items to a `Vec<u8>`. Numbers come out in their shortest form; that maps have as many entries as
/// their head says, in key order (shorter first, then bytewise), is the caller's part.
///
/// ```
/// let mut out = Vec::new();
/// engine::repo::cbor::Writer::new(&mut out).map(2).text("a").int(-1).text("b").null();
/// assert_eq!(out, [0xa2, 0x61, b'a', 0x20, 0x61, b'b', 0xf6]);
/// ```
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

/// Bytes that a head with this argument (an integer's value, a string's or container's length) takes: 1, 2, 3, 5 or 9.
#[must_use]
pub const fn head_len(argument: u64) -> usize {
    match argument {
        0..=23 => 1,
        24..=0xff => 2,
        0x100..=0xffff => 3,
        0x1_0000..=0xffff_ffff => 5,
        _ => 9,
    }
}

impl<'a> Writer<'a> {
    /// Appends to `out`.
    pub fn new(out: &'a mut Vec<u8>) -> Writer<'a> {
        Writer { out }
    }

    /// Where in the buffer the next item starts.
    #[must_use]
    pub fn position(&self) -> usize {
        self.out.len()
    }

    #[allow(
        clippy::cast_possible_truncation,
        reason = "each arm has just bounded the value"
    )]
    fn head(&mut self, major: u8, argument: u64) -> &mut Self {
        let major = major << 5;
        match argument {
            0..=23 => self.out.push(major | argument as u8),
            24..=0xff => self.out.extend_from_slice(&[major | 24, argument as u8]),
            0x100..=0xffff => {
                self.out.push(major | 25);
                self.out.extend_from_slice(&(argument as u16).to_be_bytes());
            }
            0x1_0000..=0xffff_ffff => {
                self.out.push(major | 26);
                self.out.extend_from_slice(&(argument as u32).to_be_bytes());
            }
            _ => {
                self.out.push(major | 27);
                self.out.extend_from_slice(&argument.to_be_bytes());
            }
        }
        self
    }

    /// An integer that is not negative. Above `i64::MAX` no reader of ours takes it back.
    pub fn uint(&mut self, value: u64) -> &mut Self {
        debug_assert!(i64::try_from(value).is_ok(), "the data model ends at i64::MAX");
        self.head(MAJOR_UINT, value)
    }

    /// An integer.
    pub fn int(&mut self, value: i64) -> &mut Self {
        match u64::try_from(value) {
            Ok(value) => self.head(MAJOR_UINT, value),
            // -1 - value, which is !value in two's complement.
            Err(_) => self.head(MAJOR_NEGATIVE, !value as u64),
        }
    }

    /// A byte string.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.head(MAJOR_BYTES, value.len() as u64);
        self.out.extend_from_slice(value);
        self
    }

    /// The head of a byte string of `len` bytes, which the caller appends with [`raw`](Writer::raw).
    pub fn bytes_head(&mut self, len: usize) -> &mut Self {
        self.head(MAJOR_BYTES, len as u64)
    }

    /// Text.
    pub fn text(&mut self, value: &str) -> &mut Self {
        self.head(MAJOR_TEXT, value.len() as u64);
        self.out.extend_from_slice(value.as_bytes());
        self
    }

    /// The head of an array; `len` items follow.
    pub fn array(&mut self, len: usize) -> &mut Self {
        self.head(MAJOR_ARRAY, len as u64)
    }

    /// The head of a map; `len` pairs of text key and value follow, in key order.
    pub fn map(&mut self, len: usize) -> &mut Self {
        self.head(MAJOR_MAP, len as u64)
    }

    /// A link.
    pub fn link(&mut self, cid: &Cid) -> &mut Self {
        self.out.extend_from_slice(&LINK_HEAD);
        self.out.extend_from_slice(cid.as_bytes());
        self
    }

    /// A link, or null.
    pub fn link_or_null(&mut self, cid: Option<&Cid>) -> &mut Self {
        match cid {
            Some(cid) => self.link(cid),
            None => self.null(),
        }
    }

    /// True or false.
    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.out.push(if value { TRUE } else { FALSE });
        self
    }

    /// Null.
    pub fn null(&mut self) -> &mut Self {
        self.out.push(NULL);
        self
    }

    /// Bytes that are encoded already, or the content after [`bytes_head`](Writer::bytes_head).
    pub fn raw(&mut self, encoded: &[u8]) -> &mut Self {
        self.out.extend_from_slice(encoded);
        self
    }
}
