//! What can be wrong with DAG-CBOR bytes.

use crate::repo::cid::CidError;

/// Why bytes are not the DAG-CBOR that was asked for, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} at byte {at}")]
pub struct CborError {
    /// Offset of the item at fault.
    pub at: usize,
    /// What is wrong with it.
    pub kind: CborErrorKind,
}

/// The fault itself. All but [`WrongType`](CborErrorKind::WrongType), [`MissingKey`](CborErrorKind::MissingKey) and
/// [`UnexpectedKey`](CborErrorKind::UnexpectedKey) mean that the bytes are no DAG-CBOR at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CborErrorKind {
    /// The input ends inside an item, or declares more items than its bytes can hold.
    #[error("the input ends too early")]
    Truncated,
    /// Bytes follow the value.
    #[error("bytes after the end of the value")]
    Trailing,
    /// An integer, length or tag not in its shortest form.
    #[error("a number that is not in its shortest form")]
    NotMinimal,
    /// Indefinite length, or an additional-information value that is reserved.
    #[error("an indefinite length or a reserved form")]
    Indefinite,
    /// An integer outside of i64.
    #[error("an integer beyond 64 bits with sign")]
    IntegerRange,
    /// A float of any width.
    #[error("a float")]
    Float,
    /// A simple value other than true, false and null.
    #[error("a simple value other than true, false and null")]
    Simple,
    /// A tag other than 42, or what follows tag 42 is not a byte string that starts with zero.
    #[error("a tag that is not a link")]
    Tag,
    /// Tag 42 with a CID the protocol does not allow.
    #[error("a link with an unusable CID: {0}")]
    Link(CidError),
    /// Text that is not UTF-8.
    #[error("text that is not UTF-8")]
    Utf8,
    /// A map key that is not text.
    #[error("a map key that is not text")]
    KeyType,
    /// A map key out of order or given twice.
    #[error("a map key out of order or given twice")]
    KeyOrder,
    /// Nested deeper than [`MAX_DEPTH`](super::MAX_DEPTH).
    #[error("nested too deep")]
    Depth,
    /// Sound DAG-CBOR, but not the type that the caller needs here.
    #[error("expected {expected}")]
    WrongType {
        /// What the caller asked for.
        expected: &'static str,
    },
    /// A map lacks a key that the caller needs.
    #[error("the key {0:?} is missing")]
    MissingKey(&'static str),
    /// A map has a key that the caller's type does not know.
    #[error("an unknown key")]
    UnexpectedKey,
}
