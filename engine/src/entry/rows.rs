//! The rows of a [`Change::RepoRows`](super::Change::RepoRows): records with all that the index says of them.
//!
//! ```text
//! each row, one after the other, little-endian:
//!  0 u16 bytes of the path before this one with which its path begins (0 in the first row)
//!  2 u16 bytes of the rest of its path
//!  4 u32 bytes of its block
//!  8 u64 rev: the TID's number
//! 16 [32] SHA-256 of the block (its codec is always dag-cbor)
//! 48 the rest of the path, then the block
//! ```

use bytes::Bytes;

use super::EntryError;
use crate::repo::{Cid, Codec, RepoPath, Tid};

/// Bytes of a row before its path.
const FIXED_BYTES: usize = 48;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoRow {
    /// `collection/rkey`, a valid [`RepoPath`].
    pub path: String,
    /// The rev of the commit that last wrote it.
    pub rev: Tid,
    /// The record's address, a DAG-CBOR one.
    pub cid: Cid,
    /// The record: DAG-CBOR that hashes to `cid`. Whoever takes it from outside checks that; the log's readers do not.
    pub block: Bytes,
}

impl RepoRow {
    /// Bytes that the row takes at most in an entry.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        FIXED_BYTES + self.path.len() + self.block.len()
    }
}

pub(super) fn checked_path(path: &str) -> Result<String, EntryError> {
    match RepoPath::from_bytes(path.as_bytes()) {
        Ok(_) => Ok(path.to_owned()),
        Err(_) => Err(malformed("a path that is none")),
    }
}

pub(super) fn encode(rows: &[RepoRow]) -> Result<Vec<u8>, EntryError> {
    let mut out = Vec::with_capacity(rows.iter().map(RepoRow::encoded_len).sum());
    let mut before: &[u8] = &[];
    for row in rows {
        let path = row.path.as_bytes();
        let shared = before.iter().zip(path).take_while(|(a, b)| a == b).count();
        let rest = path.get(shared..).unwrap_or_default();
        let (Ok(shared), Ok(rest_len), Ok(block_len)) = (
            u16::try_from(shared),
            u16::try_from(rest.len()),
            u32::try_from(row.block.len()),
        ) else {
            return Err(malformed("a row that is too long"));
        };
        if row.cid.codec() != Codec::DagCbor {
            return Err(malformed("a record that is not DAG-CBOR"));
        }
        out.extend_from_slice(&shared.to_le_bytes());
        out.extend_from_slice(&rest_len.to_le_bytes());
        out.extend_from_slice(&block_len.to_le_bytes());
        out.extend_from_slice(&row.rev.to_u64().to_le_bytes());
        out.extend_from_slice(row.cid.digest());
        out.extend_from_slice(rest);
        out.extend_from_slice(&row.block);
        before = path;
    }
    Ok(out)
}

/// Memory grows with rows that are really there; blocks stay where they are.
pub(super) fn decode(bytes: &Bytes) -> Result<Vec<RepoRow>, EntryError> {
    let mut rows: Vec<RepoRow> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let row = decode_row(bytes, &mut at, rows.last().map_or("", |row| row.path.as_str()));
        rows.push(row.ok_or_else(|| malformed("a row that is cut short, or whose path is none"))?);
    }
    Ok(rows)
}

fn decode_row(bytes: &Bytes, at: &mut usize, before: &str) -> Option<RepoRow> {
    let fixed: &[u8; FIXED_BYTES] = bytes.get(*at..)?.first_chunk()?;
    let (shared, fixed) = fixed.split_first_chunk::<2>()?;
    let (rest_len, fixed) = fixed.split_first_chunk::<2>()?;
    let (block_len, fixed) = fixed.split_first_chunk::<4>()?;
    let (rev, digest) = fixed.split_first_chunk::<8>()?;
    let path_at = *at + FIXED_BYTES;
    let block_at = path_at + usize::from(u16::from_le_bytes(*rest_len));
    let end = block_at.checked_add(usize::try_from(u32::from_le_bytes(*block_len)).ok()?)?;
    let shared = before
        .as_bytes()
        .get(..usize::from(u16::from_le_bytes(*shared)))?;
    let path = [shared, bytes.get(path_at..block_at)?].concat();
    RepoPath::from_bytes(&path).ok()?;
    bytes.get(block_at..end)?;
    *at = end;
    Some(RepoRow {
        path: String::from_utf8(path).ok()?,
        rev: Tid::from_u64(u64::from_le_bytes(*rev)),
        cid: Cid::from_digest(Codec::DagCbor, digest.try_into().ok()?),
        block: bytes.slice(block_at..end),
    })
}

fn malformed(reason: &str) -> EntryError {
    EntryError::MalformedPrivate {
        reason: reason.to_owned(),
    }
}
