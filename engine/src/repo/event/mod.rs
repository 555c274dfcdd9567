//! The messages of `com.atproto.sync.subscribeRepos`, as they are in the log and on the wire.
//!
//! A message is two DAG-CBOR items on end: a header `{t: "#commit", op: 1}` and the body. An error is the header
//! `{op: -1}` and a body `{error, message}`. Whoever encodes does not know yet which place in the log the event gets,
//! so `seq` and `time` are written at full width and stamped later; see [`Unstamped`].
//! Spec: <https://atproto.com/specs/event-stream>, <https://atproto.com/specs/sync>.

mod decode;
mod encode;
#[cfg(test)]
mod tests;

pub use decode::{AccountView, CommitView, Event, EventError, IdentityView, Ops, SyncView, decode};
pub use encode::{
    CommitEvent, EncodeError, encode_account, encode_commit, encode_error, encode_identity, encode_info,
    encode_sync,
};

use super::cid::Cid;
use super::mst::Change;

/// Most operations in one commit.
pub const MAX_OPS: usize = 200;
/// Longest `blocks` of a commit: the finished CAR, headers and all.
pub const MAX_COMMIT_CAR_BYTES: usize = 2_000_000;
/// Longest `blocks` of a sync event.
pub const MAX_SYNC_CAR_BYTES: usize = 10_000;
/// Longest message. Consumers may drop a connection that sends more.
pub const MAX_MESSAGE_BYTES: usize = 5_000_000;
/// Length of `time`: `YYYY-MM-DDTHH:MM:SS.mmmZ`.
pub const TIME_BYTES: usize = 24;
/// What `seq` is until it is stamped: the least number whose shortest CBOR form has eight argument bytes. A real seq, in
/// microseconds since 1970, is greater.
pub const LEAST_SEQ: u64 = 1 << 32;

/// A message that lacks its place in the log: `seq` and `time` hold valid, but made-up values, so it decodes already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unstamped {
    /// The message.
    pub bytes: Vec<u8>,
    /// Where the eight big-endian bytes of `seq` start. Only numbers from [`LEAST_SEQ`] on are sound there.
    pub seq_at: usize,
    /// Where the [`TIME_BYTES`] ASCII bytes of `time` start.
    pub time_at: usize,
}

/// One operation of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepoOp<'a> {
    /// `collection/rkey`.
    pub path: &'a str,
    /// What it does there.
    pub action: OpAction,
}

/// What an operation does to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpAction {
    /// There was none, now there is.
    Create {
        /// The record.
        cid: Cid,
    },
    /// There is another.
    Update {
        /// The record there now.
        cid: Cid,
        /// The record that was there.
        prev: Cid,
    },
    /// There is none any more.
    Delete {
        /// The record that was there.
        prev: Cid,
    },
}

impl OpAction {
    /// The word for it on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            OpAction::Create { .. } => "create",
            OpAction::Update { .. } => "update",
            OpAction::Delete { .. } => "delete",
        }
    }

    /// The record there now.
    #[must_use]
    pub fn cid(self) -> Option<Cid> {
        match self {
            OpAction::Create { cid } | OpAction::Update { cid, .. } => Some(cid),
            OpAction::Delete { .. } => None,
        }
    }

    /// The record that was there.
    #[must_use]
    pub fn prev(self) -> Option<Cid> {
        match self {
            OpAction::Update { prev, .. } | OpAction::Delete { prev } => Some(prev),
            OpAction::Create { .. } => None,
        }
    }
}

impl<'a> From<RepoOp<'a>> for Change<'a> {
    fn from(op: RepoOp<'a>) -> Change<'a> {
        Change {
            key: op.path,
            value: op.action.cid(),
            previous: op.action.prev(),
        }
    }
}

/// Why an account is not active here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccountStatus {
    /// By a moderator of this server.
    Takendown,
    /// By a moderator of this server, for a time.
    Suspended,
    /// For good, by its owner.
    Deleted,
    /// Until its owner comes back.
    Deactivated,
}

impl AccountStatus {
    const ALL: [AccountStatus; 4] = [
        AccountStatus::Takendown,
        AccountStatus::Suspended,
        AccountStatus::Deleted,
        AccountStatus::Deactivated,
    ];

    /// The word for it on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            AccountStatus::Takendown => "takendown",
            AccountStatus::Suspended => "suspended",
            AccountStatus::Deleted => "deleted",
            AccountStatus::Deactivated => "deactivated",
        }
    }

    /// The status with this word.
    #[must_use]
    pub fn from_name(name: &str) -> Option<AccountStatus> {
        AccountStatus::ALL
            .into_iter()
            .find(|status| status.name() == name)
    }
}
