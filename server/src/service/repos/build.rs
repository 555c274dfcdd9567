//! Pure part of a write: from a tree and a list of writes to a signed commit and its event.

use std::collections::HashSet;

use bytes::Bytes;
use engine::entry::{Change, EntryDraft};
use engine::repo::Cid;
use engine::repo::Did;
use engine::repo::SigningKey;
use engine::repo::SubjectKind;
use engine::repo::Tid;
use engine::repo::car;
use engine::repo::commit::{Commit, UnsignedCommit};
use engine::repo::event::{self, CommitEvent, EncodeError, OpAction, RepoOp};
use engine::repo::mst::{NodeSource, Tree, TreeError};

use super::prepare::PreparedRecord;
use super::subjects::Touched;
use super::{CommitMeta, RecordSwap, Write, WriteError, WriteResult};

/// The state that the next commit of a repo chains on.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) commit: Cid,
    pub(super) rev: Tid,
    pub(super) data: Cid,
}

/// What the requests of one commit make of a repo.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) tree: Tree,
    pub(super) head: Head,
    pub(super) draft: EntryDraft,
    pub(super) meta: CommitMeta,
}

/// What the requests of one commit have done to its tree so far.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// Path and action of every operation of the event.
    pub(super) ops: Vec<(String, OpAction)>,
    /// Record blocks that the event carries.
    pub(super) records: Vec<(Cid, Bytes)>,
    /// The touched records of collections that have subjects.
    pub(super) subjects: Vec<Touched>,
}

impl Applied {
    /// How far it is, to go back to.
    pub(super) fn mark(&self) -> (usize, usize, usize) {
        (self.ops.len(), self.records.len(), self.subjects.len())
    }

    /// Forgets what came after `mark`.
    pub(super) fn back_to(&mut self, (ops, records, subjects): (usize, usize, usize)) {
        self.ops.truncate(ops);
        self.records.truncate(records);
        self.subjects.truncate(subjects);
    }

    fn push(&mut self, path: String, action: OpAction, record: Option<&PreparedRecord>) {
        if let Some(record) = record {
            self.records.push((record.cid, record.block.clone()));
        }
        if path
            .split('/')
            .next()
            .is_some_and(|collection| SubjectKind::of(collection).is_some())
        {
            let subject = record.and_then(|record| record.subject);
            self.subjects.push((path.clone(), subject));
        }
        self.ops.push((path, action));
    }
}

/// Applies the `writes` of one request to `tree` and adds them to `applied`; both are useless after an error. `doubles` are the
/// paths of records that are there and about the same as one that is created and should be the only one. `swap` is what
/// `swapCommit` says of the head; it is asked before anything else about a write, unless that write has nothing to do.
pub(super) fn apply(
    tree: &mut Tree,
    applied: &mut Applied,
    writes: &[Write],
    doubles: &[String],
    swap: Result<(), WriteError>,
    source: &dyn NodeSource,
) -> Result<Vec<WriteResult>, WriteError> {
    let mut results = Vec::with_capacity(writes.len());
    let mut touched = HashSet::with_capacity(writes.len());
    for write in writes {
        let key = write.path().to_string();
        if touched.contains(&key) {
            return Err(WriteError::InvalidRequest(format!(
                "{key} is written more than once in one request"
            )));
        }
        // Creating says by itself whether the record is there.
        let current = match write {
            Write::Create(..) | Write::CreateOnly(..) | Write::Delete(_) => None,
            _ => tree.get(&key, source).map_err(tree_error)?,
        };
        let nothing_to_do = match write {
            Write::Put(_, record, _) => current == Some(record.cid),
            Write::DeleteIfPresent(..) => current.is_none(),
            _ => false,
        };
        if nothing_to_do {
            results.push(WriteResult::Unchanged);
        } else {
            swap.as_ref().map_err(WriteError::clone)?;
            if matches!(write, Write::CreateOnly(..)) {
                for double in doubles {
                    let prev = tree.remove(double, source).map_err(tree_error)?;
                    applied.push(double.clone(), OpAction::Delete { prev }, None);
                }
            }
            results.push(apply_one(tree, &key, write, current, source, applied)?);
        }
        touched.insert(key);
    }
    if touched.is_empty() {
        swap?;
    }
    Ok(results)
}

/// What is to be done with a record.
enum Step<'w> {
    Create(&'w PreparedRecord),
    Update(&'w PreparedRecord),
    Delete,
}

fn apply_one(
    tree: &mut Tree,
    key: &str,
    write: &Write,
    current: Option<Cid>,
    source: &dyn NodeSource,
    applied: &mut Applied,
) -> Result<WriteResult, WriteError> {
    let step = match write {
        Write::Create(_, record) | Write::CreateOnly(_, record) => Step::Create(record),
        Write::Update(_, record) => Step::Update(record),
        Write::Delete(_) => Step::Delete,
        Write::Put(_, record, swap) => {
            check_swap(*swap, current)?;
            if current.is_some() {
                Step::Update(record)
            } else {
                Step::Create(record)
            }
        }
        Write::DeleteIfPresent(_, swap) => {
            check_swap(*swap, current)?;
            Step::Delete
        }
    };
    let (action, record, result) = match step {
        Step::Create(record) => {
            let cid = record.cid;
            tree.insert(key, cid, source).map_err(tree_error)?;
            (OpAction::Create { cid }, Some(record), WriteResult::Created(cid))
        }
        Step::Update(record) => {
            let cid = record.cid;
            if current == Some(cid) {
                // An update to what is there already is no operation of the event, but it is a success.
                return Ok(WriteResult::Updated(cid));
            }
            let prev = tree.update(key, cid, source).map_err(tree_error)?;
            (
                OpAction::Update { cid, prev },
                Some(record),
                WriteResult::Updated(cid),
            )
        }
        Step::Delete => {
            let prev = tree.remove(key, source).map_err(tree_error)?;
            (OpAction::Delete { prev }, None, WriteResult::Deleted)
        }
    };
    applied.push(key.to_owned(), action, record);
    Ok(result)
}

fn check_swap(swap: RecordSwap, current: Option<Cid>) -> Result<(), WriteError> {
    let fits = match swap {
        RecordSwap::Any => true,
        RecordSwap::Is(cid) => current == Some(cid),
        RecordSwap::Absent => current.is_none(),
    };
    if fits {
        Ok(())
    } else {
        Err(WriteError::RecordSwap { current })
    }
}

/// Closes the applied writes with a signed commit and its event.
pub(super) fn commit(
    did: &Did,
    key: &SigningKey,
    previous: &Head,
    rev: Tid,
    mut tree: Tree,
    applied: &Applied,
    source: &dyn NodeSource,
) -> Result<Built, WriteError> {
    let flushed = tree.flush();
    let proof = tree
        .covering_proof(applied.ops.iter().map(|(path, _)| path.as_str()), source)
        .map_err(tree_error)?;
    let commit = sign(did, key, flushed.root, rev)?;
    let mut blocks = CarBuilder::new(&commit);
    for (cid, bytes) in proof.iter().chain(&flushed.added) {
        blocks.add(cid, bytes);
    }
    for (cid, bytes) in &applied.records {
        blocks.add(cid, bytes);
    }
    let ops: Vec<RepoOp<'_>> = applied
        .ops
        .iter()
        .map(|(path, action)| RepoOp {
            path,
            action: *action,
        })
        .collect();
    let unstamped = event::encode_commit(&CommitEvent {
        repo: did,
        commit: commit.cid(),
        rev,
        since: Some(previous.rev),
        prev_data: Some(previous.data),
        ops: &ops,
        blocks: &blocks.bytes,
    })
    .map_err(|error| event_error(&error))?;
    let draft = EntryDraft::commit(unstamped, Vec::new());
    let meta = CommitMeta {
        cid: commit.cid(),
        rev,
    };
    let head = Head {
        commit: commit.cid(),
        rev,
        data: flushed.root,
    };
    Ok(Built {
        tree,
        head,
        draft,
        meta,
    })
}

/// The first commit of a new repo, over an empty tree.
#[derive(Debug)]
pub struct Genesis {
    /// The `#commit` entry.
    pub commit: EntryDraft,
    /// The `#sync` entry that follows it.
    pub sync: EntryDraft,
    /// The commit's name.
    pub meta: CommitMeta,
}

/// Builds the first commit of `did`.
///
/// # Errors
/// The signature could not be made.
pub fn genesis(did: &Did, key: &SigningKey, rev: Tid) -> Result<Genesis, WriteError> {
    let mut tree = Tree::empty();
    let flushed = tree.flush();
    let commit = sign(did, key, flushed.root, rev)?;
    let mut blocks = CarBuilder::new(&commit);
    let announcement = blocks.bytes.clone();
    for (cid, bytes) in &flushed.added {
        blocks.add(cid, bytes);
    }
    let unstamped = event::encode_commit(&CommitEvent {
        repo: did,
        commit: commit.cid(),
        rev,
        since: None,
        prev_data: None,
        ops: &[],
        blocks: &blocks.bytes,
    })
    .map_err(|error| event_error(&error))?;
    let sync = event::encode_sync(did, rev, &announcement).map_err(|error| event_error(&error))?;
    Ok(Genesis {
        commit: EntryDraft::commit(unstamped, Vec::new()),
        sync: EntryDraft::sync(sync, Vec::new()),
        meta: CommitMeta {
            cid: commit.cid(),
            rev,
        },
    })
}

/// The first commit of a repo that nobody is told of yet: its account arrives from elsewhere.
///
/// # Errors
/// Signing failed.
pub fn silent_genesis(did: &Did, key: &SigningKey, rev: Tid) -> Result<Change, WriteError> {
    let commit = sign(did, key, Tree::empty().flush().root, rev)?;
    Ok(Change::RepoHead {
        did: did.clone(),
        generation: 0,
        commit: commit.bytes().clone(),
    })
}

/// A CAR whose root is a commit, each block once.
struct CarBuilder {
    bytes: Vec<u8>,
    seen: HashSet<Cid>,
}

impl CarBuilder {
    fn new(commit: &Commit) -> CarBuilder {
        let mut car = CarBuilder {
            bytes: Vec::new(),
            seen: HashSet::new(),
        };
        car::write_header(&mut car.bytes, &[commit.cid()]);
        car.add(&commit.cid(), commit.bytes());
        car
    }

    fn add(&mut self, cid: &Cid, bytes: &[u8]) {
        if self.seen.insert(*cid) {
            car::write_block(&mut self.bytes, cid, bytes);
        }
    }
}

fn sign(did: &Did, key: &SigningKey, data: Cid, rev: Tid) -> Result<Commit, WriteError> {
    UnsignedCommit {
        did: did.clone(),
        data,
        rev,
    }
    .sign(key)
    .map_err(|error| WriteError::Internal(format!("cannot sign a commit of {did}: {error}")))
}

pub(super) fn tree_error(error: TreeError) -> WriteError {
    match error {
        TreeError::InvalidKey(_) => WriteError::InvalidRequest(error.to_string()),
        TreeError::Exists(_) => WriteError::InvalidRequest(format!("Record already exists: {error}")),
        TreeError::NotFound(_) => WriteError::InvalidRequest(format!("Could not find record: {error}")),
        other => WriteError::Internal(other.to_string()),
    }
}

fn event_error(error: &EncodeError) -> WriteError {
    match error {
        EncodeError::TooManyOps(_) => {
            WriteError::InvalidRequest(format!("Too many writes. Max: {}", event::MAX_OPS))
        }
        EncodeError::BlocksTooLarge { .. } | EncodeError::MessageTooLarge(_) => {
            WriteError::InvalidRequest(format!("Too many writes. Max event size: 2MB ({error})"))
        }
    }
}
