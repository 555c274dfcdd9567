//! Keys and values of the index's tables, byte by byte.
//!
//! Keys are big-endian, so that the byte order redb sorts by is the order of the thing named. Everything owned by a repo
//! starts with its *prefix*, so a generation of a repo is one contiguous range of each table, and all of a repo is too.
//!
//! ```text
//! prefix          0 repo number u32 | 4 generation u16                                              6 bytes
//! location        0 segment's base LSN, low 7 bytes | 7 offset, low 5 bytes | 12 length u32        16 bytes
//! cid             0 codec u8 (0x55 raw, 0x71 dag-cbor) | 1 SHA-256 digest                          33 bytes
//!
//! meta            name → bytes: format u32, log id 16 bytes, applied LSN u64, next repo number u32, erased LSN u64
//! repos           DID → repo number
//! heads           repo number → 0 live generation u16 | 2 flags u8 (bit 0: has a commit) | 3 rev u64
//!                   | 11 commit digest | 43 data digest | 75 commit location | 91 records u64
//!                   | 99 blobs referenced u64 | 107 blobs stored u64 | 115 greatest generation ever u16 | 117 base rev u64
//!                   | 125 DID
//! generations     prefix → 0 records u64 | 8 blobs referenced u64, of a generation that is staged
//! dead            prefix, or repo number u32 → nothing: rows that are in no answer any more and wait to be swept
//! records         prefix | path → 0 digest | 32 rev u64 | 40 location                              56 bytes
//! nodes           prefix | 255 − layer u8 | the node's first key → 0 rev u64 | 8 the node's bytes
//! blobs           repo number u32 | cid → 0 size u64 | 8 created-at u64 | 16 media type
//! blob_refs       prefix | cid | path → rev u64
//! record_blobs    prefix | path | 0x00 | cid → nothing
//! subjects        prefix | kind u8 (1 like, 2 repost, 3 follow, 4 block) | the first 16 bytes of the SHA-256 of the subject's text
//!                   | record key → nothing
//! record_subjects prefix | kind u8 | record key → these 16 bytes
//! collections     collection | 0x00 | prefix → number of records u64
//! removed         LSN of a removal u64 | DID → nothing: a repo that was removed and of which copies may be left
//! segments        segment's base LSN u64 → 0 records u64 | 8 their bytes u64 | 16 head commits u64 | 24 their bytes u64
//! ```
//!
//! A rev is its TID's 64-bit number. Of a tree, `nodes` has the nodes of layer 1 and above that have keys of their own. All others
//! are made when they are asked for: a leaf out of the records in its place, a node without keys out of what is below it.
//! Where a node's row lies is told by its own bytes, so a node that stays what it is stays where it is; and neighbours in a
//! tree are neighbours in the table, so that a commit touches few pages however big the repo is. A node's rev is that of the
//! commit that made it, or 0 for one that came with the generation. The *base rev* is that of the commit with which the
//! live generation became so, or from which its nodes were built last: from there on revs tell what changed.

use crate::log::{Location, Lsn};
use crate::repo::{Cid, Codec, Did, Tid};

use super::IndexError;

/// Bytes of a repo's prefix.
pub(super) const PREFIX_BYTES: usize = 6;
/// Bytes of a repo's number, with which its prefixes begin.
pub(super) const NUMBER_BYTES: usize = 4;
/// Bytes of a packed location.
pub(super) const LOCATION_BYTES: usize = 16;
/// Bytes of a packed CID.
pub(super) const CID_BYTES: usize = 33;
/// Bytes of a row of `records`.
pub(super) const RECORD_ROW_BYTES: usize = 32 + 8 + LOCATION_BYTES;
/// Bytes of a node's row before the node's.
pub(super) const NODE_REV_BYTES: usize = 8;

const HEAD_FIXED_BYTES: usize = 125;
const HAS_COMMIT: u8 = 1;
const CODEC_RAW: u8 = 0x55;
const CODEC_DAG_CBOR: u8 = 0x71;

const _: () = assert!(RECORD_ROW_BYTES == 56);

/// A repo inside the index: its number and which build of its rows is the live one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RepoKey {
    pub(super) number: u32,
    pub(super) generation: u16,
}

impl RepoKey {
    pub(super) fn prefix(self) -> [u8; PREFIX_BYTES] {
        let [a, b, c, d] = self.number.to_be_bytes();
        let [e, f] = self.generation.to_be_bytes();
        [a, b, c, d, e, f]
    }

    /// Reads a prefix, which must be all of `bytes`.
    pub(super) fn read(bytes: &[u8], table: &'static str) -> Result<RepoKey, IndexError> {
        match *bytes {
            [a, b, c, d, e, f] => Ok(RepoKey {
                number: u32::from_be_bytes([a, b, c, d]),
                generation: u16::from_be_bytes([e, f]),
            }),
            _ => Err(IndexError::Row { table }),
        }
    }

    /// The prefix followed by `parts`.
    pub(super) fn key(self, parts: &[&[u8]]) -> Vec<u8> {
        let mut key = Vec::with_capacity(PREFIX_BYTES + parts.iter().map(|part| part.len()).sum::<usize>());
        key.extend_from_slice(&self.prefix());
        for part in parts {
            key.extend_from_slice(part);
        }
        key
    }

    /// The repo's number followed by `parts`: for what all generations share.
    pub(super) fn number_key(self, parts: &[&[u8]]) -> Vec<u8> {
        let mut key = self.number.to_be_bytes().to_vec();
        parts.iter().for_each(|part| key.extend_from_slice(part));
        key
    }

    /// The key of a node of `layer` whose first key is `first`.
    pub(super) fn node_key(self, layer: u8, first: &str) -> Vec<u8> {
        self.key(&[&[u8::MAX - layer], first.as_bytes()])
    }

    /// The first key after everything of this generation.
    pub(super) fn end(self) -> Vec<u8> {
        after_prefix(&self.prefix())
    }
}

/// The first key after every key that starts with `prefix`. All keys of the index that this is used with start with a
/// byte that can be raised; a prefix of only 0xff bytes would have no successor and answers itself with 0xff appended.
pub(super) fn after_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    [prefix, &[0xff; 16]].concat()
}

/// Cuts `N` bytes off the front of a row.
fn take<const N: usize>(row: &mut &[u8], table: &'static str) -> Result<[u8; N], IndexError> {
    let (head, rest) = row.split_first_chunk::<N>().ok_or(IndexError::Row { table })?;
    *row = rest;
    Ok(*head)
}

pub(super) fn put_location(out: &mut Vec<u8>, location: Location) -> Result<(), IndexError> {
    let segment = location.segment.get().to_be_bytes();
    let offset = location.offset.to_be_bytes();
    if segment[0] != 0 || offset[..3] != [0; 3] {
        return Err(IndexError::Unrepresentable { what: "location" });
    }
    out.extend_from_slice(&segment[1..]);
    out.extend_from_slice(&offset[3..]);
    out.extend_from_slice(&location.len.to_be_bytes());
    Ok(())
}

fn take_location(row: &mut &[u8], table: &'static str) -> Result<Location, IndexError> {
    let [a, b, c, d, e, f, g] = take::<7>(row, table)?;
    let [h, i, j, k, l] = take::<5>(row, table)?;
    let segment = Lsn::new(u64::from_be_bytes([0, a, b, c, d, e, f, g])).ok_or(IndexError::Row { table })?;
    Ok(Location {
        segment,
        offset: u64::from_be_bytes([0, 0, 0, h, i, j, k, l]),
        len: u32::from_be_bytes(take::<4>(row, table)?),
    })
}

pub(super) fn pack_cid(cid: &Cid) -> [u8; CID_BYTES] {
    let mut out = [0; CID_BYTES];
    let (codec, digest) = out.split_at_mut(1);
    codec[0] = match cid.codec() {
        Codec::Raw => CODEC_RAW,
        Codec::DagCbor => CODEC_DAG_CBOR,
    };
    digest.copy_from_slice(cid.digest());
    out
}

pub(super) fn unpack_cid(packed: [u8; CID_BYTES], table: &'static str) -> Result<Cid, IndexError> {
    let [codec, digest @ ..] = packed;
    let codec = match codec {
        CODEC_RAW => Codec::Raw,
        CODEC_DAG_CBOR => Codec::DagCbor,
        _ => return Err(IndexError::Row { table }),
    };
    Ok(Cid::from_digest(codec, digest))
}

/// A row of `heads`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HeadRow {
    pub(super) generation: u16,
    pub(super) commit: Option<CommitRow>,
    /// Of the live generation.
    pub(super) counts: Counts,
    pub(super) blobs_stored: u64,
    /// The greatest generation that there ever was.
    pub(super) newest: u16,
    /// Answers to "what changed since" go no further back than this rev; 0 before the first commit.
    pub(super) base: u64,
    pub(super) did: Did,
}

/// How much a generation holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) records: u64,
    pub(super) blobs_referenced: u64,
}

impl Counts {
    pub(super) fn encode(&self) -> Vec<u8> {
        [self.records.to_be_bytes(), self.blobs_referenced.to_be_bytes()].concat()
    }

    pub(super) fn decode(mut row: &[u8], table: &'static str) -> Result<Counts, IndexError> {
        Counts::take(&mut row, table)
    }

    fn take(row: &mut &[u8], table: &'static str) -> Result<Counts, IndexError> {
        Ok(Counts {
            records: u64::from_be_bytes(take(row, table)?),
            blobs_referenced: u64::from_be_bytes(take(row, table)?),
        })
    }
}

/// The commit a repo stands at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CommitRow {
    pub(super) rev: Tid,
    pub(super) commit: Cid,
    pub(super) data: Cid,
    pub(super) location: Location,
}

impl HeadRow {
    pub(super) fn new(did: Did) -> HeadRow {
        HeadRow {
            generation: 0,
            commit: None,
            counts: Counts::default(),
            blobs_stored: 0,
            newest: 0,
            base: 0,
            did,
        }
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, IndexError> {
        let mut out = Vec::with_capacity(HEAD_FIXED_BYTES + self.did.as_str().len());
        out.extend_from_slice(&self.generation.to_be_bytes());
        match &self.commit {
            Some(at) => {
                out.push(HAS_COMMIT);
                out.extend_from_slice(&at.rev.to_u64().to_be_bytes());
                out.extend_from_slice(at.commit.digest());
                out.extend_from_slice(at.data.digest());
                put_location(&mut out, at.location)?;
            }
            None => out.resize(91, 0),
        }
        out.extend_from_slice(&self.counts.encode());
        out.extend_from_slice(&self.blobs_stored.to_be_bytes());
        out.extend_from_slice(&self.newest.to_be_bytes());
        out.extend_from_slice(&self.base.to_be_bytes());
        out.extend_from_slice(self.did.as_str().as_bytes());
        Ok(out)
    }

    /// The live generation, of a row whose rest is not needed.
    pub(super) fn generation(row: &[u8]) -> Option<u16> {
        row.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
    }

    pub(super) fn decode(mut row: &[u8]) -> Result<HeadRow, IndexError> {
        const TABLE: &str = "heads";
        let row = &mut row;
        let generation = u16::from_be_bytes(take(row, TABLE)?);
        let [flags] = take(row, TABLE)?;
        let rev = u64::from_be_bytes(take(row, TABLE)?);
        let commit = Cid::from_digest(Codec::DagCbor, take(row, TABLE)?);
        let data = Cid::from_digest(Codec::DagCbor, take(row, TABLE)?);
        let location = take_location(row, TABLE)?;
        let commit = match flags {
            0 => None,
            HAS_COMMIT => Some(CommitRow {
                rev: Tid::from_u64(rev),
                commit,
                data,
                location,
            }),
            _ => return Err(IndexError::Row { table: TABLE }),
        };
        Ok(HeadRow {
            generation,
            commit,
            counts: Counts::take(row, TABLE)?,
            blobs_stored: u64::from_be_bytes(take(row, TABLE)?),
            newest: u16::from_be_bytes(take(row, TABLE)?),
            base: u64::from_be_bytes(take(row, TABLE)?),
            did: text(row, TABLE)?
                .parse()
                .map_err(|_| IndexError::Row { table: TABLE })?,
        })
    }
}

/// Where a record is and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordRow {
    /// The record's CID.
    pub cid: Cid,
    /// The rev of the commit that last wrote it.
    pub rev: Tid,
    /// The record's DAG-CBOR bytes in the log.
    pub location: Location,
}

impl RecordRow {
    pub(super) fn encode(&self) -> Result<[u8; RECORD_ROW_BYTES], IndexError> {
        if self.cid.codec() != Codec::DagCbor {
            return Err(IndexError::Unrepresentable { what: "record's CID" });
        }
        let mut out = Vec::with_capacity(RECORD_ROW_BYTES);
        out.extend_from_slice(self.cid.digest());
        out.extend_from_slice(&self.rev.to_u64().to_be_bytes());
        put_location(&mut out, self.location)?;
        out.try_into()
            .map_err(|_| IndexError::Unrepresentable { what: "record's row" })
    }

    pub(super) fn decode(mut row: &[u8]) -> Result<RecordRow, IndexError> {
        const TABLE: &str = "records";
        let row = &mut row;
        let cid = Cid::from_digest(Codec::DagCbor, take(row, TABLE)?);
        let rev = Tid::from_u64(u64::from_be_bytes(take(row, TABLE)?));
        Ok(RecordRow {
            cid,
            rev,
            location: take_location(row, TABLE)?,
        })
    }
}

/// A row of `nodes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeRow<'a> {
    /// Of the commit that made the node; 0 if it came with its generation.
    pub(super) rev: u64,
    /// The node's bytes.
    pub(super) block: &'a [u8],
}

impl<'a> NodeRow<'a> {
    pub(super) fn encode(&self) -> Vec<u8> {
        [&self.rev.to_be_bytes()[..], self.block].concat()
    }

    pub(super) fn decode(row: &'a [u8]) -> Result<NodeRow<'a>, IndexError> {
        let (rev, block) = row
            .split_first_chunk::<NODE_REV_BYTES>()
            .ok_or(IndexError::Row { table: "nodes" })?;
        Ok(NodeRow {
            rev: u64::from_be_bytes(*rev),
            block,
        })
    }
}

/// An uploaded blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobRow {
    /// Its size in bytes.
    pub size: u64,
    /// When it was uploaded, microseconds since 1970.
    pub created_at_micros: u64,
    /// Its media type.
    pub mime: String,
}

impl BlobRow {
    pub(super) fn encode(&self) -> Vec<u8> {
        [
            &self.size.to_be_bytes()[..],
            &self.created_at_micros.to_be_bytes(),
            self.mime.as_bytes(),
        ]
        .concat()
    }

    pub(super) fn decode(mut row: &[u8]) -> Result<BlobRow, IndexError> {
        const TABLE: &str = "blobs";
        let row = &mut row;
        Ok(BlobRow {
            size: u64::from_be_bytes(take(row, TABLE)?),
            created_at_micros: u64::from_be_bytes(take(row, TABLE)?),
            mime: text(row, TABLE)?.to_owned(),
        })
    }
}

/// A packed CID at the end of a key, or at `at` inside it.
pub(super) fn cid_in_key(key: &[u8], at: usize, table: &'static str) -> Result<Cid, IndexError> {
    let mut rest = key.get(at..).ok_or(IndexError::Row { table })?;
    unpack_cid(take(&mut rest, table)?, table)
}

/// What a key holds from `at` on, which must be text.
pub(super) fn text_in_key<'a>(key: &'a [u8], at: usize, table: &'static str) -> Result<&'a str, IndexError> {
    text(key.get(at..).ok_or(IndexError::Row { table })?, table)
}

pub(super) fn text<'a>(bytes: &'a [u8], table: &'static str) -> Result<&'a str, IndexError> {
    std::str::from_utf8(bytes).map_err(|_| IndexError::Row { table })
}

/// The key of `collections`.
pub(super) fn collection_key(collection: &[u8], repo: RepoKey) -> Vec<u8> {
    [collection, &[0], &repo.prefix()].concat()
}

/// The collection of a path: what stands before its slash.
pub(super) fn collection_of(path: &[u8]) -> &[u8] {
    path.split(|byte| *byte == b'/').next().unwrap_or(path)
}
