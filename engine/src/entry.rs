//! What a frame of the log means: the kind of its public part and the changes of its private part.
//!
//! The log moves bytes; this page gives them their meaning. A frame's *public* part is, for the kinds that subscribers
//! see, the exact WebSocket message of `com.atproto.sync.subscribeRepos` (two CBOR items). Its *private* part is a
//! version byte and a list of [`Change`]s, and does not depend on the kind: a commit may carry a changeset of the
//! account database, an account event may carry the removal of a repo. Whatever can be derived from the public part
//! (records, nodes, head, rev, blob references) is not in the private part.
//!
//! An unknown kind, version or change is an error, never skipped: applying only what an old program understands would
//! make two views out of one log.

use bytes::Bytes;
use wincode::{SchemaRead, SchemaWrite};

use crate::log::{Draft, Epoch, Frame, Location, Lsn, Stamp};
use crate::repo::cid::CidError;
use crate::repo::did::DidError;
use crate::repo::event::Unstamped;
use crate::repo::{Cid, Did};

/// The only version of the private part that exists.
pub const PRIVATE_VERSION: u8 = 1;

/// Upper bound of what one list or text inside a private part may make the decoder allocate, bytes.
const ALLOCATION_BYTES_MAX: usize = 16 << 20;

/// What the public part of an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// A `#commit` message: a repo moved on.
    Commit = 1,
    /// A `#sync` message: a repo's current commit, announced without a diff.
    Sync = 2,
    /// An `#identity` message.
    Identity = 3,
    /// An `#account` message.
    Account = 4,
    /// No public part: only private changes.
    Private = 5,
    /// No public part: the start of an epoch, a hand-over.
    Marker = 6,
}

impl EntryKind {
    /// Every kind, in the order of its number.
    pub const ALL: [EntryKind; 6] = [
        EntryKind::Commit,
        EntryKind::Sync,
        EntryKind::Identity,
        EntryKind::Account,
        EntryKind::Private,
        EntryKind::Marker,
    ];

    /// Whether subscribers of the firehose see the public part.
    #[must_use]
    pub fn is_event(self) -> bool {
        matches!(
            self,
            EntryKind::Commit | EntryKind::Sync | EntryKind::Identity | EntryKind::Account
        )
    }

    /// The short name that tools and logs print.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            EntryKind::Commit => "commit",
            EntryKind::Sync => "sync",
            EntryKind::Identity => "identity",
            EntryKind::Account => "account",
            EntryKind::Private => "private",
            EntryKind::Marker => "marker",
        }
    }
}

impl TryFrom<u8> for EntryKind {
    type Error = EntryError;

    fn try_from(kind: u8) -> Result<EntryKind, EntryError> {
        EntryKind::ALL
            .into_iter()
            .find(|known| *known as u8 == kind)
            .ok_or(EntryError::UnknownKind { kind })
    }
}

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
    /// MST nodes that this entry's commit superseded.
    NodesDropped {
        /// The repo.
        did: Did,
        /// SHA-256 digests of the nodes (their codec is always dag-cbor).
        cids: Vec<[u8; 32]>,
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
}

/// Why a frame's bytes are not an entry. All are corruption, or data of a newer program: nothing may be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The frame's kind is not one that this program knows.
    #[error("unknown entry kind {kind}; the log was written by a newer program")]
    UnknownKind {
        /// The number found.
        kind: u8,
    },
    /// The private part's version is not one that this program knows.
    #[error("unknown version {version} of an entry's private part; the log was written by a newer program")]
    UnknownVersion {
        /// The number found.
        version: u8,
    },
    /// The private part does not decode.
    #[error("malformed private part: {reason}")]
    MalformedPrivate {
        /// What the decoder said.
        reason: String,
    },
    /// A DID inside the private part is not one.
    #[error("private part names an invalid DID")]
    Did(#[from] DidError),
    /// A CID inside the private part is not one.
    #[error("private part names an invalid CID")]
    Cid(#[from] CidError),
    /// A private or marker entry has a public part, or an event has none.
    #[error("a {} entry with {public_len} public bytes", kind.name())]
    PublicPart {
        /// The entry's kind.
        kind: EntryKind,
        /// Length of its public part, bytes.
        public_len: usize,
    },
}

/// Private part, after the version byte: the bincode-1 shape (little-endian, u64 lengths) with one-byte tags.
#[derive(Debug, SchemaRead, SchemaWrite)]
#[wincode(tag_encoding = "u8")]
enum WireChange<'a> {
    #[wincode(tag = 1)]
    AccountsMigration { name: &'a str, sql: &'a str },
    #[wincode(tag = 2)]
    AccountsChangeset { bytes: &'a [u8] },
    #[wincode(tag = 3)]
    NodesDropped { did: &'a str, cids: Vec<[u8; 32]> },
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
}

impl<'a> WireChange<'a> {
    fn of(change: &'a Change) -> WireChange<'a> {
        match change {
            Change::AccountsMigration { name, sql } => WireChange::AccountsMigration { name, sql },
            Change::AccountsChangeset { bytes } => WireChange::AccountsChangeset { bytes },
            Change::NodesDropped { did, cids } => WireChange::NodesDropped {
                did: did.as_str(),
                cids: cids.clone(),
            },
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
        }
    }

    fn check(self) -> Result<Change, EntryError> {
        Ok(match self {
            WireChange::AccountsMigration { name, sql } => Change::AccountsMigration {
                name: name.to_owned(),
                sql: sql.to_owned(),
            },
            WireChange::AccountsChangeset { bytes } => Change::AccountsChangeset {
                bytes: bytes.to_vec(),
            },
            WireChange::NodesDropped { did, cids } => Change::NodesDropped {
                did: did.parse()?,
                cids,
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
    let wire: Vec<WireChange<'_>> = changes.iter().map(WireChange::of).collect();
    let config = wincode::config::Configuration::default().disable_preallocation_size_limit();
    let mut bytes = vec![PRIVATE_VERSION];
    wincode::config::serialize_into(&mut bytes, &wire, config).map_err(|error| {
        EntryError::MalformedPrivate {
            reason: error.to_string(),
        }
    })?;
    Ok(bytes)
}

/// The changes that a private part lists.
///
/// # Errors
/// An unknown version or change, truncated or trailing bytes, or an invalid DID or CID. Lengths are bounded before
/// anything is allocated for them.
pub fn decode_private(bytes: &[u8]) -> Result<Vec<Change>, EntryError> {
    let Some((&version, list)) = bytes.split_first() else {
        return Ok(Vec::new());
    };
    if version != PRIVATE_VERSION {
        return Err(EntryError::UnknownVersion { version });
    }
    let config =
        wincode::config::Configuration::default().with_preallocation_size_limit::<ALLOCATION_BYTES_MAX>();
    let wire: Vec<WireChange<'_>> =
        wincode::config::deserialize_exact(list, config).map_err(|error| EntryError::MalformedPrivate {
            reason: error.to_string(),
        })?;
    wire.into_iter().map(WireChange::check).collect()
}

/// An entry that has no place in the log yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryDraft {
    kind: EntryKind,
    public: Vec<u8>,
    stamps: Vec<Stamp>,
    changes: Vec<Change>,
}

impl EntryDraft {
    /// A `#commit` message, whose `seq` and `time` the log writes when it assigns the LSN.
    #[must_use]
    pub fn commit(event: Unstamped, changes: Vec<Change>) -> EntryDraft {
        EntryDraft::event(EntryKind::Commit, event, changes)
    }

    /// A `#sync` message; see [`EntryDraft::commit`].
    #[must_use]
    pub fn sync(event: Unstamped, changes: Vec<Change>) -> EntryDraft {
        EntryDraft::event(EntryKind::Sync, event, changes)
    }

    /// An `#identity` message; see [`EntryDraft::commit`].
    #[must_use]
    pub fn identity(event: Unstamped, changes: Vec<Change>) -> EntryDraft {
        EntryDraft::event(EntryKind::Identity, event, changes)
    }

    /// An `#account` message; see [`EntryDraft::commit`].
    #[must_use]
    pub fn account(event: Unstamped, changes: Vec<Change>) -> EntryDraft {
        EntryDraft::event(EntryKind::Account, event, changes)
    }

    /// Private changes that no subscriber sees.
    #[must_use]
    pub fn private(changes: Vec<Change>) -> EntryDraft {
        EntryDraft {
            kind: EntryKind::Private,
            public: Vec::new(),
            stamps: Vec::new(),
            changes,
        }
    }

    /// A mark in the log that changes nothing.
    #[must_use]
    pub fn marker() -> EntryDraft {
        EntryDraft {
            kind: EntryKind::Marker,
            public: Vec::new(),
            stamps: Vec::new(),
            changes: Vec::new(),
        }
    }

    fn event(kind: EntryKind, event: Unstamped, changes: Vec<Change>) -> EntryDraft {
        let stamps = vec![Stamp::Lsn { at: event.seq_at }, Stamp::Time { at: event.time_at }];
        EntryDraft {
            kind,
            public: event.bytes,
            stamps,
            changes,
        }
    }

    /// What the entry will be.
    #[must_use]
    pub fn kind(&self) -> EntryKind {
        self.kind
    }

    /// The private changes, in the order in which they apply.
    #[must_use]
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Adds private changes after those that are there.
    #[must_use]
    pub fn with_changes(mut self, more: impl IntoIterator<Item = Change>) -> EntryDraft {
        self.changes.extend(more);
        self
    }

    /// The bytes that the log takes.
    ///
    /// # Errors
    /// The private part cannot be written; see [`encode_private`].
    pub fn into_draft(self) -> Result<Draft, EntryError> {
        Ok(Draft {
            kind: self.kind as u8,
            private: encode_private(&self.changes)?,
            public: self.public,
            stamps: self.stamps,
        })
    }
}

/// An entry as the log holds it. Its public bytes are shared with the frame, not copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the one order, and its `seq` on the firehose.
    pub lsn: Lsn,
    /// The reign in which it was written.
    pub epoch: Epoch,
    /// What the public part is.
    pub kind: EntryKind,
    /// The public part: the exact WebSocket message, or nothing.
    pub public: Bytes,
    /// Where the public part lies in the log; an offset inside [`Entry::public`] is an offset from here.
    pub public_at: Location,
    /// The private changes, in the order in which they apply.
    pub changes: Vec<Change>,
}

impl Entry {
    /// The meaning of a frame whose checksums hold.
    ///
    /// # Errors
    /// See [`EntryError`]; nothing of the frame may be applied.
    pub fn decode(frame: &Frame) -> Result<Entry, EntryError> {
        let kind = EntryKind::try_from(frame.kind())?;
        let public = frame.public();
        if kind.is_event() == public.is_empty() {
            return Err(EntryError::PublicPart {
                kind,
                public_len: public.len(),
            });
        }
        Ok(Entry {
            lsn: frame.lsn(),
            epoch: frame.epoch(),
            kind,
            public_at: frame.public_location(),
            changes: decode_private(&frame.private())?,
            public,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn did() -> Did {
        "did:plc:abc".parse().unwrap()
    }

    fn samples() -> Vec<Change> {
        vec![
            Change::AccountsMigration {
                name: "001".to_owned(),
                sql: "SELECT 1".to_owned(),
            },
            Change::AccountsChangeset {
                bytes: vec![0x54, 0x01],
            },
            Change::NodesDropped {
                did: did(),
                cids: vec![[7; 32], [9; 32]],
            },
            Change::BlobStored {
                did: did(),
                cid: Cid::for_raw(b"blob"),
                mime: "image/png".to_owned(),
                size: 4,
                created_at_micros: 1_767_225_600_000_000,
            },
            Change::RepoRemoved { did: did() },
        ]
    }

    /// A changed byte here is a change of the format on disk: raise [`PRIVATE_VERSION`] and keep reading the old one.
    #[test]
    fn each_change_has_the_bytes_it_always_had() {
        let did_hex = "0b000000000000006469643a706c633a616263";
        let digest = data_encoding::HEXLOWER.encode(Cid::for_raw(b"blob").digest());
        let golden = [
            "0101000000000000000103000000000000003030310800000000000000".to_owned() + "53454c4543542031",
            "01010000000000000002020000000000000054".to_owned() + "01",
            format!(
                "01010000000000000003{did_hex}0200000000000000{}{}",
                "07".repeat(32),
                "09".repeat(32)
            ),
            format!(
                "01010000000000000004{did_hex}01551220{digest}0900000000000000696d6167652f706e67{}{}",
                "0400000000000000", "0040204648470600"
            ),
            format!("01010000000000000005{did_hex}"),
        ];
        for (change, golden) in samples().into_iter().zip(golden) {
            let bytes = encode_private(std::slice::from_ref(&change)).unwrap();
            assert_eq!(data_encoding::HEXLOWER.encode(&bytes), golden, "{change:?}");
            assert_eq!(decode_private(&bytes).unwrap(), [change]);
        }
    }

    #[test]
    fn no_changes_are_no_bytes() {
        assert!(encode_private(&[]).unwrap().is_empty());
        assert_eq!(decode_private(&[]).unwrap(), []);
    }

    #[test]
    fn unknown_versions_changes_and_kinds_are_errors() {
        let bytes = encode_private(&samples()).unwrap();
        let with = |at: usize, value: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            decode_private(&bytes)
        };
        assert_eq!(with(0, 2), Err(EntryError::UnknownVersion { version: 2 }));
        assert!(
            matches!(with(9, 6), Err(EntryError::MalformedPrivate { .. })),
            "tag 6 is no change"
        );
        assert_eq!(EntryKind::try_from(0), Err(EntryError::UnknownKind { kind: 0 }));
        assert_eq!(EntryKind::try_from(7), Err(EntryError::UnknownKind { kind: 7 }));
        for kind in EntryKind::ALL {
            assert_eq!(EntryKind::try_from(kind as u8), Ok(kind));
        }
    }

    #[test]
    fn truncated_and_trailing_bytes_are_errors() {
        let bytes = encode_private(&samples()).unwrap();
        for len in 1..bytes.len() {
            assert!(decode_private(&bytes[..len]).is_err(), "{len} bytes");
        }
        assert!(decode_private(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn a_promised_length_allocates_nothing() {
        for tag in [1u8, 2, 3] {
            let mut bytes = vec![PRIVATE_VERSION];
            bytes.extend_from_slice(&1u64.to_le_bytes());
            bytes.push(tag);
            bytes.extend_from_slice(&u64::MAX.to_le_bytes());
            assert!(decode_private(&bytes).is_err());
        }
        let mut bytes = vec![PRIVATE_VERSION];
        bytes.extend_from_slice(&u64::MAX.to_le_bytes());
        assert!(decode_private(&bytes).is_err());
    }

    fn any_change() -> impl Strategy<Value = Change> {
        let did = prop_oneof![Just(did()), Just("did:web:example.com".parse::<Did>().unwrap())];
        prop_oneof![
            (".{0,20}", ".{0,200}").prop_map(|(name, sql)| Change::AccountsMigration { name, sql }),
            proptest::collection::vec(any::<u8>(), 0..500)
                .prop_map(|bytes| Change::AccountsChangeset { bytes }),
            (did.clone(), proptest::collection::vec(any::<[u8; 32]>(), 0..20))
                .prop_map(|(did, cids)| Change::NodesDropped { did, cids }),
            (
                did.clone(),
                any::<[u8; 8]>(),
                ".{0,40}",
                any::<u64>(),
                any::<u64>()
            )
                .prop_map(|(did, seed, mime, size, created_at_micros)| Change::BlobStored {
                    did,
                    cid: Cid::for_raw(&seed),
                    mime,
                    size,
                    created_at_micros
                }),
            did.prop_map(|did| Change::RepoRemoved { did }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(changes in proptest::collection::vec(any_change(), 0..8)) {
            prop_assert_eq!(decode_private(&encode_private(&changes).unwrap()).unwrap(), changes);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_private(&bytes);
            let _ = decode_private(&[&[PRIVATE_VERSION], &bytes[..]].concat());
        }
    }
}
