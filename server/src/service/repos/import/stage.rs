//! From a spool to staged rows: walks the tree, checks every record, and hands pieces to the log.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use engine::engine::{AppendError, Receipt};
use engine::entry::{Change, EntryDraft, RepoRow};
use engine::repo::cbor::blob_refs;
use engine::repo::mst::{BuildError, BuiltNode, Spine, Tree};
use engine::repo::{Cid, Codec, Did, RepoPath, Tid};

use super::spool::{Spool, io};
use super::{ImportError, LOOK, PATIENCE};
use crate::service::core::Core;
use crate::service::repos::closing::Closing;

/// Bytes of records in one entry.
const PIECE_BYTES: usize = 1 << 20;
/// Records in one entry.
const PIECE_ROWS: usize = 4096;
/// Entries on their way to the log: what the import may be ahead of it.
const PIECES_AHEAD: usize = 4;

/// What is to be staged, and where.
pub(super) struct Job {
    pub(super) engine: Core,
    pub(super) did: Did,
    pub(super) generation: u32,
    pub(super) rev: Tid,
    /// The root of the tree in the spool.
    pub(super) data: Cid,
    /// Tells when it is to end because the repo is to be removed.
    pub(super) closing: Arc<Closing>,
    pub(super) runtime: tokio::runtime::Handle,
}

impl Job {
    /// Stages all records, which are durable and applied when it returns, and answers how many. Blocks.
    ///
    /// No CAR can make it walk more than it holds: a node is believed only in the place that its parent gives it, so its
    /// keys are its own, no node below another is without keys of its own or of its children, and each is passed once.
    pub(super) fn run(&self, spool: &Spool) -> Result<u64, ImportError> {
        let mut pieces = Pieces {
            job: self,
            rows: Vec::new(),
            bytes: 0,
            sent: VecDeque::new(),
        };
        let mut spine = Spine::default();
        let mut nothing = |_: BuiltNode| Ok::<(), std::convert::Infallible>(());
        let mut records = 0;
        for entry in Tree::open(self.data).entries_from(None, spool)? {
            let (path, cid) = entry?;
            spine.push(&path, cid, &mut nothing).map_err(unsound)?;
            let row = self.row(spool, &path, cid)?;
            records += 1;
            pieces.push(row)?;
        }
        // The index builds the tree from the records. What it gets must be what was signed, before it is in the log.
        let root = spine.finish(&mut nothing).map_err(unsound)?;
        if root != self.data {
            let what = format!(
                "The repo's tree is not sound: its records give {root}, not {}",
                self.data
            );
            return Err(ImportError::Invalid(what));
        }
        pieces.finish()?;
        Ok(records)
    }

    fn row(&self, spool: &Spool, path: &str, cid: Cid) -> Result<RepoRow, ImportError> {
        let refused = |what: String| Err(ImportError::Invalid(format!("Record {path}: {what}")));
        if RepoPath::from_bytes(path.as_bytes()).is_err() {
            return refused("its path is not valid".to_owned());
        }
        if cid.codec() != Codec::DagCbor {
            return refused("it is not DAG-CBOR".to_owned());
        }
        let Some(block) = spool.block(&cid).map_err(io)? else {
            return refused(format!("its block {cid} is missing"));
        };
        if let Err(error) = blob_refs(&block) {
            return refused(error.to_string());
        }
        Ok(RepoRow {
            path: path.to_owned(),
            rev: self.rev,
            cid,
            block,
        })
    }
}

fn unsound(error: BuildError<std::convert::Infallible>) -> ImportError {
    ImportError::Invalid(format!("The repo's tree is not sound: {error}"))
}

/// Rows that gather to an entry, and entries on their way.
struct Pieces<'a> {
    job: &'a Job,
    rows: Vec<RepoRow>,
    bytes: usize,
    sent: VecDeque<Receipt>,
}

impl Pieces<'_> {
    fn push(&mut self, row: RepoRow) -> Result<(), ImportError> {
        self.bytes += row.encoded_len();
        self.rows.push(row);
        if self.bytes >= PIECE_BYTES || self.rows.len() >= PIECE_ROWS {
            self.send()?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), ImportError> {
        if !self.rows.is_empty() {
            self.send()?;
        }
        self.wait(0)
    }

    fn send(&mut self) -> Result<(), ImportError> {
        self.wait(PIECES_AHEAD - 1)?;
        if self.job.closing.is_unwanted() {
            return Err(ImportError::RepoNotFound(self.job.did.clone()));
        }
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        let draft = EntryDraft::private(vec![Change::RepoRows {
            did: self.job.did.clone(),
            generation: self.job.generation,
            rows,
        }]);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.job.engine.append(vec![draft.clone()]) {
                Ok(receipt) => {
                    self.sent.push_back(receipt);
                    return Ok(());
                }
                Err(AppendError::Busy) if Instant::now() < deadline => {
                    self.job.runtime.block_on(tokio::time::sleep(LOOK));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until at most `left` entries are on their way.
    fn wait(&mut self, left: usize) -> Result<(), ImportError> {
        while self.sent.len() > left {
            let Some(receipt) = self.sent.pop_front() else {
                break;
            };
            let durable = self.job.engine.in_time(receipt.durable());
            // Nothing of it is visible: when it is late, the import fails, and the repo is what it was.
            self.job
                .runtime
                .block_on(durable)
                .map_err(|_| ImportError::Busy)?
                .map_err(|error| ImportError::Closed(error.to_string()))?;
        }
        Ok(())
    }
}
