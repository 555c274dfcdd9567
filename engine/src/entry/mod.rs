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

mod change;
mod rows;
#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use change::{Change, PRIVATE_VERSION, RepoNumber, RepoRemoval, decode_private, encode_private};
pub use rows::RepoRow;

use crate::log::{Draft, Epoch, Frame, Location, Lsn, Stamp};
use crate::repo::cid::CidError;
use crate::repo::did::DidError;
use crate::repo::event::Unstamped;

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
    /// The private changes, in the order in which they apply. Blocks in them are parts of [`Entry::private`].
    pub changes: Vec<Change>,
    /// The private part.
    pub private: Bytes,
    /// Where the private part lies in the log.
    pub private_at: Location,
}

impl Entry {
    /// The meaning of a frame whose checksums hold.
    ///
    /// # Errors
    /// See [`EntryError`]; nothing of the frame may be applied.
    pub fn decode(frame: &Frame) -> Result<Entry, EntryError> {
        let kind = EntryKind::try_from(frame.kind())?;
        let (public, private) = (frame.public(), frame.private());
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
            changes: decode_private(&private)?,
            private_at: frame.private_location(),
            private,
            public,
        })
    }

    /// Where in the log a block of a private change lies; `None` for bytes that are not part of [`Entry::private`].
    #[must_use]
    pub fn private_location(&self, block: &[u8]) -> Option<Location> {
        let at = (block.as_ptr() as usize).checked_sub(self.private.as_ptr() as usize)?;
        self.private_at
            .part(u32::try_from(at).ok()?, u32::try_from(block.len()).ok()?)
    }
}
