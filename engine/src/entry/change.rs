//! The changes of a private part, and their bytes.

use std::borrow::Cow;

use bytes::Bytes;
use wincode::{SchemaRead, SchemaWrite};

use super::EntryError;
use super::rows::{self, RepoRow};
use crate::log::Lsn;
use crate::repo::{Cid, Did};

/// The only version of the private part that exists.
pub const PRIVATE_VERSION: u8 = 1;

/// Upper bound of what one list or text inside a private part may make the decoder allocate, bytes.
const ALLOCATION_BYTES_MAX: usize = 16 << 20;

/// One private change: what an entry does beyond what its public part says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A step of the account database's schema, applied before any later changeset.
    AccountsMigration {
        /// The step's name, unique and never reused.
        name: String,
        /// The statements to run.
        sql: String,
    },
    /// Row changes of the account database, as SQLite's session extension wrote them.
    AccountsChangeset {
        /// The changeset, verbatim.
        bytes: Vec<u8>,
    },
    /// A blob was uploaded. It is temporary until a record references it.
    BlobStored {
        /// The repo that owns the blob.
        did: Did,
        /// The blob's CID.
        cid: Cid,
        /// Its media type, as it will be served.
        mime: String,
        /// Its size in bytes.
        size: u64,
        /// When it was uploaded, microseconds since 1970.
        created_at_micros: u64,
    },
    /// Everything of a repo leaves the index.
    RepoRemoved {
        /// The repo.
        did: Did,
    },
    /// Records of one generation of a repo, without the commit that made them: an import, or a compacted segment. Each
    /// takes the place of what that generation has at its path. A generation that is not there yet begins, and its repo if
    /// there is none; it is *staged*: nobody sees it before a [`Change::RepoHead`] of the same generation. Rows of the live
    /// generation come only between [`Change::ReposNumbered`] and its head.
    RepoRows {
        /// The repo.
        did: Did,
        /// Which build of the repo's rows; below 65,536.
        generation: u32,
        /// The records. In path order they let the tree be built as they come.
        rows: Vec<RepoRow>,
    },
    /// Records leave a generation of a repo. One that is not there is no error.
    RowsGone {
        /// The repo.
        did: Did,
        /// Which build of the repo's rows.
        generation: u32,
        /// Paths of the records.
        paths: Vec<String>,
    },
    /// From here on this generation is what everybody sees, and this is its head. The tree's root is that of the
    /// generation's records. The one that was live before leaves the index.
    RepoHead {
        /// The repo.
        did: Did,
        /// Which build of the repo's rows.
        generation: u32,
        /// The signed commit, DAG-CBOR. What was decoded lies in the entry's private part.
        commit: Bytes,
    },
    /// A staged generation is given up, and leaves the index.
    GenerationSwept {
        /// The repo.
        did: Did,
        /// Which build of the repo's rows.
        generation: u32,
    },
    /// The numbers that repos have in the index, which follow from a history that is not told any more: a compacted
    /// segment says them before the repos' rows.
    ReposNumbered {
        /// The number of the next repo that is new; greater than all that were ever given.
        next: u32,
        /// Repos that are not known yet.
        repos: Vec<RepoNumber>,
    },
    /// Repos that were removed in a history that is not told any more, and that copies of may still be somewhere. A compacted
    /// segment says them, so that they are not forgotten before the last copy is known to be gone.
    RemovalsPending {
        /// The removals.
        removals: Vec<RepoRemoval>,
    },
    /// Of these removed repos no copy is left, neither on this disk nor in the replica.
    RemovalsGone {
        /// The removals.
        removals: Vec<RepoRemoval>,
    },
}

/// A repo that was removed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RepoRemoval {
    /// The entry that removed it.
    pub lsn: Lsn,
    /// The repo.
    pub did: Did,
}

/// What the index says of a repo that its rows do not show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoNumber {
    /// The repo.
    pub did: Did,
    /// Its number.
    pub number: u32,
    /// The generation that is live, whether it has a head or not.
    pub generation: u32,
    /// The greatest generation that there ever was.
    pub newest: u32,
    /// Generations that are staged.
    pub staged: Vec<u32>,
}

/// Private part, after the version byte: the bincode-1 shape (little-endian, u64 lengths) with one-byte tags.
#[derive(Debug, SchemaRead, SchemaWrite)]
#[wincode(tag_encoding = "u8")]
enum WireChange<'a> {
    #[wincode(tag = 1)]
    AccountsMigration { name: &'a str, sql: &'a str },
    #[wincode(tag = 2)]
    AccountsChangeset { bytes: &'a [u8] },
    #[wincode(tag = 4)]
    BlobStored {
        did: &'a str,
        cid: [u8; 36],
        mime: &'a str,
        size: u64,
        created_at_micros: u64,
    },
    #[wincode(tag = 5)]
    RepoRemoved { did: &'a str },
    #[wincode(tag = 6)]
    RepoRows {
        did: &'a str,
        generation: u32,
        rows: Cow<'a, [u8]>,
    },
    #[wincode(tag = 7)]
    RowsGone {
        did: &'a str,
        generation: u32,
        paths: Vec<&'a str>,
    },
    #[wincode(tag = 8)]
    RepoHead {
        did: &'a str,
        generation: u32,
        commit: &'a [u8],
    },
    #[wincode(tag = 9)]
    GenerationSwept { did: &'a str, generation: u32 },
    #[wincode(tag = 10)]
    ReposNumbered { next: u32, repos: Vec<WireNumber<'a>> },
    #[wincode(tag = 11)]
    RemovalsPending { removals: Vec<WireRemoval<'a>> },
    #[wincode(tag = 12)]
    RemovalsGone { removals: Vec<WireRemoval<'a>> },
}

#[derive(Debug, SchemaRead, SchemaWrite)]
struct WireRemoval<'a> {
    lsn: u64,
    did: &'a str,
}

#[derive(Debug, SchemaRead, SchemaWrite)]
struct WireNumber<'a> {
    did: &'a str,
    number: u32,
    generation: u32,
    newest: u32,
    staged: Vec<u32>,
}

impl<'a> WireChange<'a> {
    fn of(change: &'a Change) -> Result<WireChange<'a>, EntryError> {
        Ok(match change {
            Change::AccountsMigration { name, sql } => WireChange::AccountsMigration { name, sql },
            Change::AccountsChangeset { bytes } => WireChange::AccountsChangeset { bytes },
            Change::BlobStored {
                did,
                cid,
                mime,
                size,
                created_at_micros,
            } => WireChange::BlobStored {
                did: did.as_str(),
                cid: cid.to_bytes(),
                mime,
                size: *size,
                created_at_micros: *created_at_micros,
            },
            Change::RepoRemoved { did } => WireChange::RepoRemoved { did: did.as_str() },
            Change::RepoRows {
                did,
                generation,
                rows,
            } => WireChange::RepoRows {
                did: did.as_str(),
                generation: *generation,
                rows: Cow::Owned(rows::encode(rows)?),
            },
            Change::RowsGone {
                did,
                generation,
                paths,
            } => WireChange::RowsGone {
                did: did.as_str(),
                generation: *generation,
                paths: paths.iter().map(String::as_str).collect(),
            },
            Change::RepoHead {
                did,
                generation,
                commit,
            } => WireChange::RepoHead {
                did: did.as_str(),
                generation: *generation,
                commit,
            },
            Change::GenerationSwept { did, generation } => WireChange::GenerationSwept {
                did: did.as_str(),
                generation: *generation,
            },
            Change::ReposNumbered { next, repos } => WireChange::ReposNumbered {
                next: *next,
                repos: repos
                    .iter()
                    .map(|repo| WireNumber {
                        did: repo.did.as_str(),
                        number: repo.number,
                        generation: repo.generation,
                        newest: repo.newest,
                        staged: repo.staged.clone(),
                    })
                    .collect(),
            },
            Change::RemovalsPending { removals } => WireChange::RemovalsPending {
                removals: removals.iter().map(WireRemoval::of).collect(),
            },
            Change::RemovalsGone { removals } => WireChange::RemovalsGone {
                removals: removals.iter().map(WireRemoval::of).collect(),
            },
        })
    }

    /// `private` is what the change was decoded from: blocks are parts of it.
    fn check(self, private: &Bytes) -> Result<Change, EntryError> {
        Ok(match self {
            WireChange::AccountsMigration { name, sql } => Change::AccountsMigration {
                name: name.to_owned(),
                sql: sql.to_owned(),
            },
            WireChange::AccountsChangeset { bytes } => Change::AccountsChangeset {
                bytes: bytes.to_vec(),
            },
            WireChange::BlobStored {
                did,
                cid,
                mime,
                size,
                created_at_micros,
            } => Change::BlobStored {
                did: did.parse()?,
                cid: Cid::from_bytes(&cid)?,
                mime: mime.to_owned(),
                size,
                created_at_micros,
            },
            WireChange::RepoRemoved { did } => Change::RepoRemoved { did: did.parse()? },
            WireChange::RepoRows {
                did,
                generation,
                rows,
            } => {
                let Cow::Borrowed(rows) = rows else {
                    return Err(malformed("rows that are not part of it"));
                };
                Change::RepoRows {
                    did: did.parse()?,
                    generation,
                    rows: rows::decode(&private.slice_ref(rows))?,
                }
            }
            WireChange::RowsGone {
                did,
                generation,
                paths,
            } => Change::RowsGone {
                did: did.parse()?,
                generation,
                paths: paths
                    .into_iter()
                    .map(rows::checked_path)
                    .collect::<Result<_, _>>()?,
            },
            WireChange::RepoHead {
                did,
                generation,
                commit,
            } => Change::RepoHead {
                did: did.parse()?,
                generation,
                commit: private.slice_ref(commit),
            },
            WireChange::GenerationSwept { did, generation } => Change::GenerationSwept {
                did: did.parse()?,
                generation,
            },
            WireChange::ReposNumbered { next, repos } => Change::ReposNumbered {
                next,
                repos: repos
                    .into_iter()
                    .map(WireNumber::check)
                    .collect::<Result<_, _>>()?,
            },
            WireChange::RemovalsPending { removals } => Change::RemovalsPending {
                removals: check_removals(removals)?,
            },
            WireChange::RemovalsGone { removals } => Change::RemovalsGone {
                removals: check_removals(removals)?,
            },
        })
    }
}

fn check_removals(removals: Vec<WireRemoval<'_>>) -> Result<Vec<RepoRemoval>, EntryError> {
    removals.into_iter().map(WireRemoval::check).collect()
}

impl<'a> WireRemoval<'a> {
    fn of(removal: &'a RepoRemoval) -> WireRemoval<'a> {
        WireRemoval {
            lsn: removal.lsn.get(),
            did: removal.did.as_str(),
        }
    }

    fn check(self) -> Result<RepoRemoval, EntryError> {
        Ok(RepoRemoval {
            lsn: Lsn::new(self.lsn).ok_or_else(|| malformed("an LSN out of range"))?,
            did: self.did.parse()?,
        })
    }
}

impl WireNumber<'_> {
    fn check(self) -> Result<RepoNumber, EntryError> {
        Ok(RepoNumber {
            did: self.did.parse()?,
            number: self.number,
            generation: self.generation,
            newest: self.newest,
            staged: self.staged,
        })
    }
}

/// The bytes of a private part. No changes at all are no bytes at all.
///
/// # Errors
/// [`EntryError::MalformedPrivate`] if the list cannot be written, which needs more than a frame can hold.
pub fn encode_private(changes: &[Change]) -> Result<Vec<u8>, EntryError> {
    if changes.is_empty() {
        return Ok(Vec::new());
    }
    let wire = changes
        .iter()
        .map(WireChange::of)
        .collect::<Result<Vec<_>, _>>()?;
    let config = wincode::config::Configuration::default().disable_preallocation_size_limit();
    let mut bytes = vec![PRIVATE_VERSION];
    wincode::config::serialize_into(&mut bytes, &wire, config).map_err(malformed)?;
    Ok(bytes)
}

/// The changes that a private part lists. Blocks in them are parts of `private`, not copies, and are not compared with
/// their CIDs: the frame's checksum vouches for them, and `verify` compares.
///
/// # Errors
/// An unknown version or change, truncated or trailing bytes, or an invalid DID or CID. Lengths are bounded before
/// anything is allocated for them.
pub fn decode_private(private: &Bytes) -> Result<Vec<Change>, EntryError> {
    let Some((&version, list)) = private.split_first() else {
        return Ok(Vec::new());
    };
    if version != PRIVATE_VERSION {
        return Err(EntryError::UnknownVersion { version });
    }
    let config =
        wincode::config::Configuration::default().with_preallocation_size_limit::<ALLOCATION_BYTES_MAX>();
    let wire: Vec<WireChange<'_>> = wincode::config::deserialize_exact(list, config).map_err(malformed)?;
    wire.into_iter().map(|change| change.check(private)).collect()
}

fn malformed(reason: impl ToString) -> EntryError {
    EntryError::MalformedPrivate {
        reason: reason.to_string(),
    }
}
