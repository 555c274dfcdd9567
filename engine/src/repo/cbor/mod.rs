//! DAG-CBOR, strict: the one byte sequence that may stand for a value.
//!
//! Accepted are integers of i64 in their shortest form, byte strings, UTF-8 text, arrays, maps with text keys in
//! order (shorter first, then bytewise) and none twice, links (tag 42 with a [`Cid`](super::Cid)), booleans and null. Refused is
//! everything else, floats and undefined included, and nesting deeper than [`MAX_DEPTH`]. So a value has one encoding
//! and its hash is stable. Spec: <https://atproto.com/specs/data-model>, <https://ipld.io/specs/codecs/dag-cbor/spec/>.
//!
//! Nothing is ever allocated by a length that the input merely declares.

mod error;
mod reader;
#[cfg(test)]
mod tests;
mod value;
mod writer;

pub use error::{CborError, CborErrorKind};
pub use reader::{Kind, MapKeys, Reader, validate};
pub use value::{BlobRef, Map, Value, blob_refs, for_each_link};
pub use writer::{Writer, head_len};

/// How deep arrays and maps may nest. Real records stay below 20; the bound keeps recursion off the stack's end. Some JSON parsers
/// stop at 128 levels, and answers put a few around a record.
pub const MAX_DEPTH: usize = 120;

const MAJOR_UINT: u8 = 0;
const MAJOR_NEGATIVE: u8 = 1;
const MAJOR_BYTES: u8 = 2;
const MAJOR_TEXT: u8 = 3;
const MAJOR_ARRAY: u8 = 4;
const MAJOR_MAP: u8 = 5;
const MAJOR_TAG: u8 = 6;
const MAJOR_SIMPLE: u8 = 7;

const FALSE: u8 = 0xf4;
const TRUE: u8 = 0xf5;
const NULL: u8 = 0xf6;

/// How a link starts: tag 42, a byte string of 37 bytes, and the zero byte that stands before every CID.
const LINK_HEAD: [u8; 5] = [0xd8, 0x2a, 0x58, 0x25, 0x00];

/// The order of map keys: shorter first, then bytewise.
fn key_order(a: &str, b: &str) -> std::cmp::Ordering {
    a.len().cmp(&b.len()).then_with(|| a.as_bytes().cmp(b.as_bytes()))
}
