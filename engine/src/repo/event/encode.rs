//! Writing messages. Map keys come shorter first, then bytewise, as DAG-CBOR orders them.

use super::{
    AccountStatus, LEAST_SEQ, MAX_COMMIT_CAR_BYTES, MAX_MESSAGE_BYTES, MAX_OPS, MAX_SYNC_CAR_BYTES, RepoOp,
    TIME_BYTES, Unstamped,
};
use crate::repo::cbor::Writer;
use crate::repo::cid::Cid;
use crate::repo::did::Did;
use crate::repo::handle::Handle;
use crate::repo::tid::Tid;

/// What a `#commit` tells.
#[derive(Clone, Copy, Debug)]
pub struct CommitEvent<'a> {
    /// Whose repository.
    pub repo: &'a Did,
    /// The commit block's address; also the root of `blocks`.
    pub commit: Cid,
    /// The commit's revision.
    pub rev: Tid,
    /// The revision before; none for a repository's first commit.
    pub since: Option<Tid>,
    /// The tree's root before; none for a repository's first commit.
    pub prev_data: Option<Cid>,
    /// One for each record that changed.
    pub ops: &'a [RepoOp<'a>],
    /// A whole CAR with the commit, the new records and the covering proof.
    pub blocks: &'a [u8],
}

/// Why a message would break the stream's limits. Refuse the write that would cause it: nothing was encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// More than [`MAX_OPS`].
    #[error("{0} operations in one commit, at most {MAX_OPS} are allowed")]
    TooManyOps(usize),
    /// The CAR is longer than the kind of event allows.
    #[error("blocks of {found} bytes, at most {limit} are allowed")]
    BlocksTooLarge {
        /// Length of the finished CAR.
        found: usize,
        /// What is allowed.
        limit: usize,
    },
    /// More than [`MAX_MESSAGE_BYTES`].
    #[error("a message of {0} bytes, at most {MAX_MESSAGE_BYTES} are allowed")]
    MessageTooLarge(usize),
}

const UNSTAMPED_TIME: &str = "1970-01-01T00:00:00.000Z";
const _: () = assert!(UNSTAMPED_TIME.len() == TIME_BYTES);
/// A CBOR head: unsigned integer, eight argument bytes.
const UINT64_HEAD: u8 = 0x1b;

/// A message under construction, and where its stamps go.
struct Message {
    bytes: Vec<u8>,
    seq_at: usize,
    time_at: usize,
}

impl Message {
    fn new(kind: &str, body_bytes: usize) -> Message {
        let mut bytes = Vec::with_capacity(32 + body_bytes);
        Writer::new(&mut bytes)
            .map(2)
            .text("t")
            .text(kind)
            .text("op")
            .uint(1);
        Message {
            bytes,
            seq_at: 0,
            time_at: 0,
        }
    }

    fn write(&mut self) -> Writer<'_> {
        Writer::new(&mut self.bytes)
    }

    fn seq(&mut self) {
        self.write().text("seq");
        self.bytes.push(UINT64_HEAD);
        self.seq_at = self.bytes.len();
        self.bytes.extend_from_slice(&LEAST_SEQ.to_be_bytes());
    }

    fn time(&mut self) {
        self.write().text("time").text(UNSTAMPED_TIME);
        self.time_at = self.bytes.len() - TIME_BYTES;
    }

    fn unstamped(self) -> Unstamped {
        Unstamped {
            bytes: self.bytes,
            seq_at: self.seq_at,
            time_at: self.time_at,
        }
    }
}

fn check_blocks(blocks: &[u8], limit: usize) -> Result<(), EncodeError> {
    if blocks.len() > limit {
        return Err(EncodeError::BlocksTooLarge {
            found: blocks.len(),
            limit,
        });
    }
    Ok(())
}

/// A `#commit`.
///
/// # Errors
/// It would break a limit of the stream; see [`EncodeError`].
pub fn encode_commit(event: &CommitEvent<'_>) -> Result<Unstamped, EncodeError> {
    if event.ops.len() > MAX_OPS {
        return Err(EncodeError::TooManyOps(event.ops.len()));
    }
    check_blocks(event.blocks, MAX_COMMIT_CAR_BYTES)?;
    let ops_bytes: usize = event.ops.iter().map(|op| 128 + op.path.len()).sum();
    let mut message = Message::new("#commit", 384 + ops_bytes + event.blocks.len());
    let mut write = message.write();
    write.map(if event.prev_data.is_some() { 12 } else { 11 });
    write.text("ops").array(event.ops.len());
    for op in event.ops {
        write_op(&mut write, op);
    }
    write.text("rev").text(&event.rev.to_string());
    message.seq();
    message.write().text("repo").text(event.repo.as_str());
    message.time();
    let mut write = message.write();
    write.text("blobs").array(0).text("since");
    match event.since {
        Some(since) => write.text(&since.to_string()),
        None => write.null(),
    };
    write
        .text("blocks")
        .bytes(event.blocks)
        .text("commit")
        .link(&event.commit);
    write.text("rebase").bool(false).text("tooBig").bool(false);
    if let Some(prev_data) = &event.prev_data {
        write.text("prevData").link(prev_data);
    }
    if message.bytes.len() > MAX_MESSAGE_BYTES {
        return Err(EncodeError::MessageTooLarge(message.bytes.len()));
    }
    Ok(message.unstamped())
}

fn write_op(write: &mut Writer<'_>, op: &RepoOp<'_>) {
    let prev = op.action.prev();
    write.map(if prev.is_some() { 4 } else { 3 });
    write
        .text("cid")
        .link_or_null(op.action.cid().as_ref())
        .text("path")
        .text(op.path);
    if let Some(prev) = &prev {
        write.text("prev").link(prev);
    }
    write.text("action").text(op.action.name());
}

/// A `#sync`: the repository is at this commit now, whatever was before. `blocks` is a CAR with the commit block alone.
///
/// # Errors
/// [`EncodeError::BlocksTooLarge`].
pub fn encode_sync(repo: &Did, rev: Tid, blocks: &[u8]) -> Result<Unstamped, EncodeError> {
    check_blocks(blocks, MAX_SYNC_CAR_BYTES)?;
    let mut message = Message::new("#sync", 128 + repo.as_str().len() + blocks.len());
    let mut write = message.write();
    write
        .map(5)
        .text("did")
        .text(repo.as_str())
        .text("rev")
        .text(&rev.to_string());
    message.seq();
    message.time();
    message.write().text("blocks").bytes(blocks);
    Ok(message.unstamped())
}

/// An `#identity`: look up the account's DID document again. `handle` is the current handle if it is to be told;
/// `handle.invalid` is one too.
#[must_use]
pub fn encode_identity(did: &Did, handle: Option<&Handle>) -> Unstamped {
    let mut message = Message::new("#identity", 384 + did.as_str().len());
    let mut write = message.write();
    write
        .map(if handle.is_some() { 4 } else { 3 })
        .text("did")
        .text(did.as_str());
    message.seq();
    message.time();
    if let Some(handle) = handle {
        message.write().text("handle").text(handle.as_str());
    }
    message.unstamped()
}

/// An `#account`: it is active here, or why not.
#[must_use]
pub fn encode_account(did: &Did, inactive: Option<AccountStatus>) -> Unstamped {
    let mut message = Message::new("#account", 128 + did.as_str().len());
    let mut write = message.write();
    write
        .map(if inactive.is_some() { 5 } else { 4 })
        .text("did")
        .text(did.as_str());
    message.seq();
    message.time();
    let mut write = message.write();
    write.text("active").bool(inactive.is_none());
    if let Some(status) = inactive {
        write.text("status").text(status.name());
    }
    message.unstamped()
}

/// An `#info`, which has neither `seq` nor `time`: it belongs to one connection and is in no log.
#[must_use]
pub fn encode_info(name: &str, text: Option<&str>) -> Vec<u8> {
    let mut message = Message::new("#info", 64 + name.len() + text.map_or(0, str::len));
    let mut write = message.write();
    write
        .map(if text.is_some() { 2 } else { 1 })
        .text("name")
        .text(name);
    if let Some(text) = text {
        write.text("message").text(text);
    }
    message.bytes
}

/// An error, after which the connection is closed.
#[must_use]
pub fn encode_error(error: &str, text: Option<&str>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64 + error.len() + text.map_or(0, str::len));
    let mut write = Writer::new(&mut bytes);
    write.map(1).text("op").int(-1);
    write
        .map(if text.is_some() { 2 } else { 1 })
        .text("error")
        .text(error);
    if let Some(text) = text {
        write.text("message").text(text);
    }
    bytes
}
