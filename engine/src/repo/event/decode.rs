//! Reading messages, without copying: what is found borrows from the message. Strict: a message that
//! [`encode`](super::encode_commit) could not have written is refused, except that `blobs` may list some, as older
//! servers do.

use super::{AccountStatus, MAX_COMMIT_CAR_BYTES, MAX_MESSAGE_BYTES, MAX_OPS, OpAction, RepoOp, TIME_BYTES};
use crate::repo::cbor::{CborError, MapKeys, Reader};
use crate::repo::cid::Cid;
use crate::repo::did::{Did, DidError};
use crate::repo::handle::{Handle, HandleError};
use crate::repo::mst::is_valid_key;
use crate::repo::tid::{Tid, TidError};

/// A message.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A repository changed.
    Commit(CommitView<'a>),
    /// A repository is at a commit, without the way there.
    Sync(SyncView<'a>),
    /// Something about an identity changed.
    Identity(IdentityView<'a>),
    /// An account became active or inactive.
    Account(AccountView<'a>),
    /// A word about the stream.
    Info {
        /// Such as `OutdatedCursor`.
        name: &'a str,
        /// For humans.
        message: Option<&'a str>,
    },
    /// The last message of a stream that failed.
    Error {
        /// Such as `ConsumerTooSlow`.
        error: &'a str,
        /// For humans.
        message: Option<&'a str>,
    },
}

/// A `#commit`.
#[derive(Clone, Debug)]
pub struct CommitView<'a> {
    /// The event's place in the stream.
    pub seq: u64,
    /// When it was published.
    pub time: &'a str,
    /// Whose repository.
    pub repo: Did,
    /// The commit block's address.
    pub commit: Cid,
    /// The commit's revision.
    pub rev: Tid,
    /// The revision before, if any.
    pub since: Option<Tid>,
    /// The tree's root before, if any.
    pub prev_data: Option<Cid>,
    /// At most [`MAX_OPS`](super::MAX_OPS); they were checked when the message was.
    pub ops: Ops<'a>,
    /// A CAR, which is not checked.
    pub blocks: &'a [u8],
    /// Where `blocks` starts in the message.
    pub blocks_at: usize,
}

/// A `#sync`.
#[derive(Clone, Debug)]
pub struct SyncView<'a> {
    /// The event's place in the stream.
    pub seq: u64,
    /// When it was published.
    pub time: &'a str,
    /// Whose repository.
    pub did: Did,
    /// The commit's revision.
    pub rev: Tid,
    /// A CAR, which is not checked.
    pub blocks: &'a [u8],
    /// Where `blocks` starts in the message.
    pub blocks_at: usize,
}

/// An `#identity`.
#[derive(Clone, Debug)]
pub struct IdentityView<'a> {
    /// The event's place in the stream.
    pub seq: u64,
    /// When it was published.
    pub time: &'a str,
    /// Whose identity.
    pub did: Did,
    /// The current handle, if the event tells it.
    pub handle: Option<Handle>,
}

/// An `#account`.
#[derive(Clone, Debug)]
pub struct AccountView<'a> {
    /// The event's place in the stream.
    pub seq: u64,
    /// When it was published.
    pub time: &'a str,
    /// Whose account.
    pub did: Did,
    /// Why it is not active; none if it is.
    pub inactive: Option<AccountStatus>,
}

/// Why bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// Not DAG-CBOR, or not the map that the kind of message is.
    #[error("event bytes: {0}")]
    Cbor(#[from] CborError),
    /// A header with an `op` other than 1 and -1.
    #[error("an event header with op {0}")]
    Op(i64),
    /// A kind that is not known.
    #[error("an event of the unknown kind {0:?}")]
    Kind(String),
    /// A field with a value that it cannot have.
    #[error("the event's {0} has an impossible value")]
    Field(&'static str),
    /// Beyond a limit of the stream.
    #[error("the event has too many or too large {0}")]
    Limit(&'static str),
    /// Whose event it is cannot be told.
    #[error("the event's did: {0}")]
    Did(#[from] DidError),
    /// A revision that is none.
    #[error("the event's rev: {0}")]
    Rev(#[from] TidError),
    /// A handle that is none.
    #[error("the event's handle: {0}")]
    Handle(#[from] HandleError),
}

/// Reads a message.
///
/// # Errors
/// See [`EventError`]. Nothing is left unread or unknown.
pub fn decode(message: &[u8]) -> Result<Event<'_>, EventError> {
    if message.len() > MAX_MESSAGE_BYTES {
        return Err(EventError::Limit("bytes"));
    }
    let mut reader = Reader::new(message);
    let mut header = reader.map()?;
    let kind = match header.next(&mut reader)? {
        Some("t") => {
            let kind = reader.text()?;
            header.expect(&mut reader, "op")?;
            Some(kind)
        }
        Some("op") => None,
        _ => return Err(EventError::Field("header")),
    };
    let op = reader.i64()?;
    header.end(&reader)?;
    let event = match (op, kind) {
        (1, Some("#commit")) => Event::Commit(commit(&mut reader)?),
        (1, Some("#sync")) => Event::Sync(sync(&mut reader)?),
        (1, Some("#identity")) => Event::Identity(identity(&mut reader)?),
        (1, Some("#account")) => Event::Account(account(&mut reader)?),
        (1, Some("#info")) => {
            let (name, message) = words(&mut reader, "name")?;
            Event::Info { name, message }
        }
        (-1, None) => {
            let (error, message) = words(&mut reader, "error")?;
            Event::Error { error, message }
        }
        (1, kind) => return Err(EventError::Kind(kind.unwrap_or_default().to_owned())),
        (op, _) => return Err(EventError::Op(op)),
    };
    reader.end()?;
    Ok(event)
}

fn commit<'a>(reader: &mut Reader<'a>) -> Result<CommitView<'a>, EventError> {
    let mut keys = reader.map()?;
    keys.expect(reader, "ops")?;
    let ops = ops(reader)?;
    keys.expect(reader, "rev")?;
    let rev = reader.text()?.parse()?;
    let seq = seq(&mut keys, reader)?;
    keys.expect(reader, "repo")?;
    let repo = reader.text()?.parse()?;
    let time = time(&mut keys, reader)?;
    keys.expect(reader, "blobs")?;
    for _ in 0..reader.array()? {
        reader.link()?;
    }
    keys.expect(reader, "since")?;
    let since = if reader.null_if_present()? {
        None
    } else {
        Some(reader.text()?.parse()?)
    };
    let (blocks, blocks_at) = blocks(&mut keys, reader)?;
    keys.expect(reader, "commit")?;
    let commit = reader.link()?;
    for name in ["rebase", "tooBig"] {
        keys.expect(reader, name)?;
        if reader.bool()? {
            return Err(EventError::Field(name));
        }
    }
    let prev_data = match keys.left() {
        0 => None,
        _ => {
            keys.expect(reader, "prevData")?;
            Some(reader.link()?)
        }
    };
    keys.end(reader)?;
    Ok(CommitView {
        seq,
        time,
        repo,
        commit,
        rev,
        since,
        prev_data,
        ops,
        blocks,
        blocks_at,
    })
}

fn sync<'a>(reader: &mut Reader<'a>) -> Result<SyncView<'a>, EventError> {
    let mut keys = reader.map()?;
    keys.expect(reader, "did")?;
    let did = reader.text()?.parse()?;
    keys.expect(reader, "rev")?;
    let rev = reader.text()?.parse()?;
    let seq = seq(&mut keys, reader)?;
    let time = time(&mut keys, reader)?;
    let (blocks, blocks_at) = blocks(&mut keys, reader)?;
    keys.end(reader)?;
    Ok(SyncView {
        seq,
        time,
        did,
        rev,
        blocks,
        blocks_at,
    })
}

fn identity<'a>(reader: &mut Reader<'a>) -> Result<IdentityView<'a>, EventError> {
    let mut keys = reader.map()?;
    keys.expect(reader, "did")?;
    let did = reader.text()?.parse()?;
    let seq = seq(&mut keys, reader)?;
    let time = time(&mut keys, reader)?;
    let handle = match keys.left() {
        0 => None,
        _ => {
            keys.expect(reader, "handle")?;
            Some(reader.text()?.parse()?)
        }
    };
    keys.end(reader)?;
    Ok(IdentityView {
        seq,
        time,
        did,
        handle,
    })
}

fn account<'a>(reader: &mut Reader<'a>) -> Result<AccountView<'a>, EventError> {
    let mut keys = reader.map()?;
    keys.expect(reader, "did")?;
    let did = reader.text()?.parse()?;
    let seq = seq(&mut keys, reader)?;
    let time = time(&mut keys, reader)?;
    keys.expect(reader, "active")?;
    let inactive = if reader.bool()? {
        None
    } else {
        keys.expect(reader, "status")?;
        let status = AccountStatus::from_name(reader.text()?);
        Some(status.ok_or(EventError::Field("status"))?)
    };
    keys.end(reader)?;
    Ok(AccountView {
        seq,
        time,
        did,
        inactive,
    })
}

fn words<'a>(reader: &mut Reader<'a>, first: &'static str) -> Result<(&'a str, Option<&'a str>), EventError> {
    let mut keys = reader.map()?;
    keys.expect(reader, first)?;
    let word = reader.text()?;
    let message = match keys.left() {
        0 => None,
        _ => {
            keys.expect(reader, "message")?;
            Some(reader.text()?)
        }
    };
    keys.end(reader)?;
    Ok((word, message))
}

fn seq<'a>(keys: &mut MapKeys<'a>, reader: &mut Reader<'a>) -> Result<u64, EventError> {
    keys.expect(reader, "seq")?;
    Ok(reader.u64()?)
}

fn time<'a>(keys: &mut MapKeys<'a>, reader: &mut Reader<'a>) -> Result<&'a str, EventError> {
    keys.expect(reader, "time")?;
    match reader.text()? {
        time if time.len() == TIME_BYTES => Ok(time),
        _ => Err(EventError::Field("time")),
    }
}

fn blocks<'a>(keys: &mut MapKeys<'a>, reader: &mut Reader<'a>) -> Result<(&'a [u8], usize), EventError> {
    keys.expect(reader, "blocks")?;
    let blocks = reader.bytes()?;
    if blocks.len() > MAX_COMMIT_CAR_BYTES {
        return Err(EventError::Limit("blocks"));
    }
    Ok((blocks, reader.position() - blocks.len()))
}

/// The operations of a commit, in the order of the message.
#[derive(Clone, Debug)]
pub struct Ops<'a> {
    left: usize,
    reader: Reader<'a>,
}

fn ops<'a>(reader: &mut Reader<'a>) -> Result<Ops<'a>, EventError> {
    let count = reader.array()?;
    if count > MAX_OPS {
        return Err(EventError::Limit("ops"));
    }
    let ops = Ops {
        left: count,
        reader: reader.clone(),
    };
    for _ in 0..count {
        op(reader)?;
    }
    Ok(ops)
}

fn op<'a>(reader: &mut Reader<'a>) -> Result<RepoOp<'a>, EventError> {
    let mut keys = reader.map()?;
    keys.expect(reader, "cid")?;
    let cid = if reader.null_if_present()? {
        None
    } else {
        Some(reader.link()?)
    };
    keys.expect(reader, "path")?;
    let path = reader.text()?;
    if !is_valid_key(path) {
        return Err(EventError::Field("path"));
    }
    let prev = match keys.left() {
        0 | 1 => None,
        _ => {
            keys.expect(reader, "prev")?;
            Some(reader.link()?)
        }
    };
    keys.expect(reader, "action")?;
    let action = match (reader.text()?, cid, prev) {
        ("create", Some(cid), None) => OpAction::Create { cid },
        ("update", Some(cid), Some(prev)) => OpAction::Update { cid, prev },
        ("delete", None, Some(prev)) => OpAction::Delete { prev },
        _ => return Err(EventError::Field("action")),
    };
    keys.end(reader)?;
    Ok(RepoOp { path, action })
}

impl<'a> Iterator for Ops<'a> {
    type Item = RepoOp<'a>;

    fn next(&mut self) -> Option<RepoOp<'a>> {
        self.left = self.left.checked_sub(1)?;
        // Decoding the message has read these bytes once, so the answer is known to be sound.
        op(&mut self.reader).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Ops<'_> {}
