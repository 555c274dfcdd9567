//! Repos as CAR: whole, single blocks, proofs. All from one index snapshot, so an answer is one commit's state.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engine::repo::mst::{Tree, WalkItem};
use engine::repo::{Cid, Did, RepoPath, Tid, car};
use engine::views::index::{BlockPlace, IndexReader, RepoHead, RepoNodes};
use futures_util::StreamExt;
use tokio::sync::{Semaphore, mpsc};

use super::WriteError;
use crate::service::core::Core;

/// Bytes of CAR that are gathered before they go to the client.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks that may wait for a slow client.
const CHUNKS_AHEAD: usize = 4;
/// How long a client may refuse bytes before its export ends.
const STALL: Duration = Duration::from_secs(60);
/// How long an export waits for its turn.
const QUEUE: Duration = Duration::from_secs(10);

/// The bound of concurrent exports; each holds a thread and an index snapshot.
#[derive(Clone, Debug)]
pub struct Exports(Arc<Semaphore>);

impl Exports {
    /// At most `count` exports at once.
    #[must_use]
    pub fn new(count: usize) -> Exports {
        Exports(Arc::new(Semaphore::new(count)))
    }
}

/// The head of a repo, if there is one.
///
/// # Errors
/// The index cannot be read.
pub fn head(engine: &Core, did: &Did) -> Result<Option<RepoHead>, WriteError> {
    engine.reader().map_err(internal)?.repo(did).map_err(internal)
}

/// Streams a repo in the order of its tree: the commit, then every node before its children and records, which a reader
/// can check as it arrives. With `since`, records that are not newer are left out; the nodes are all there, which is a
/// superset of what changed.
///
/// # Errors
/// The repo is not there, or too many exports run.
pub async fn repo(
    engine: &Core,
    exports: &Exports,
    did: &Did,
    since: Option<Tid>,
) -> Result<impl futures_util::Stream<Item = Result<Bytes, std::io::Error>> + Send + use<>, WriteError> {
    let permit = tokio::time::timeout(QUEUE, exports.0.clone().acquire_owned())
        .await
        .ok()
        .and_then(Result::ok)
        .ok_or(WriteError::Busy)?;
    let reader = engine.reader().map_err(internal)?;
    let head = reader
        .repo(did)
        .map_err(internal)?
        .ok_or_else(|| WriteError::RepoNotFound(did.clone()))?;
    let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(CHUNKS_AHEAD);
    let (engine, did) = (engine.clone(), did.clone());
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let mut out = Sink {
            buffer: Vec::with_capacity(CHUNK_BYTES + 4096),
            sender,
        };
        if let Err(error) = walk(&engine, &reader, &head, &did, since, &mut out) {
            match error {
                WalkError::Gone => {}
                WalkError::Failed(message) => {
                    tracing::error!(%did, %message, "an export broke off");
                    let _gone = out
                        .sender
                        .blocking_send(Err(std::io::Error::other("the export broke off")));
                }
            }
        }
    });
    let chunks = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|chunk| (chunk, receiver))
    });
    // Compression polls once more after the end.
    Ok(chunks.fuse())
}

enum WalkError {
    /// The client went away or stalled.
    Gone,
    /// Our store failed.
    Failed(String),
}

struct Sink {
    buffer: Vec<u8>,
    sender: mpsc::Sender<Result<Bytes, std::io::Error>>,
}

impl Sink {
    fn flush(&mut self) -> Result<(), WalkError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::from(std::mem::replace(
            &mut self.buffer,
            Vec::with_capacity(CHUNK_BYTES + 4096),
        ));
        let handle = tokio::runtime::Handle::current();
        handle
            .block_on(self.sender.send_timeout(Ok(chunk), STALL))
            .map_err(|_| WalkError::Gone)
    }

    fn block(&mut self, cid: &Cid, bytes: &[u8]) -> Result<(), WalkError> {
        car::write_block(&mut self.buffer, cid, bytes);
        if self.buffer.len() >= CHUNK_BYTES {
            self.flush()
        } else {
            Ok(())
        }
    }
}

fn walk(
    engine: &Core,
    reader: &IndexReader,
    head: &RepoHead,
    did: &Did,
    since: Option<Tid>,
    out: &mut Sink,
) -> Result<(), WalkError> {
    let failed = |error: &dyn std::fmt::Display| WalkError::Failed(error.to_string());
    car::write_header(&mut out.buffer, &[head.commit]);
    let commit = engine.read_at(head.commit_location).map_err(|e| failed(&e))?;
    out.block(&head.commit, &commit)?;
    out.flush()?;
    let source = nodes(reader, did).map_err(|e| failed(&e))?;
    // The tree's records and the index's rows are in the same order, so one ordered scan runs beside the walk.
    let mut rows = reader.records_from(did, None).map_err(|e| failed(&e))?;
    for item in Tree::open(head.data).walk(&source).map_err(|e| failed(&e))? {
        match item.map_err(|e| failed(&e))? {
            WalkItem::Node { cid, bytes } => out.block(&cid, &bytes)?,
            WalkItem::Record { key, cid } => {
                let row = rows
                    .next()
                    .transpose()
                    .map_err(|e| failed(&e))?
                    .map(|(_, row)| row)
                    .filter(|row| row.cid == cid)
                    .ok_or_else(|| {
                        WalkError::Failed(format!("record {key} is not where the index has it"))
                    })?;
                if since.is_none_or(|since| row.rev > since) {
                    let block = engine.read_at(row.location).map_err(|e| failed(&e))?;
                    out.block(&cid, &block)?;
                }
            }
        }
    }
    out.flush()
}

/// Single blocks of a repo as CAR without a root.
///
/// # Errors
/// One of them is not a block of the repo's current state.
pub fn blocks(engine: &Core, did: &Did, cids: &[Cid]) -> Result<Vec<u8>, WriteError> {
    let reader = engine.reader().map_err(internal)?;
    let mut out = Vec::new();
    car::write_header(&mut out, &[]);
    let mut missing = Vec::new();
    for cid in cids {
        let block = match reader.find_block(did, cid).map_err(internal)? {
            Some(BlockPlace::Node(bytes)) => bytes,
            Some(BlockPlace::Record(location) | BlockPlace::Commit(location)) => {
                engine.read_at(location).map_err(internal)?
            }
            None => {
                missing.push(cid.to_string());
                continue;
            }
        };
        car::write_block(&mut out, cid, &block);
    }
    if missing.is_empty() {
        Ok(out)
    } else {
        Err(WriteError::InvalidRequest(format!(
            "Could not find cids: {}",
            missing.join(",")
        )))
    }
}

/// The commit, the path to a record (or to where it would be) and the record, as CAR.
///
/// # Errors
/// The repo is not there.
pub fn record_proof(engine: &Core, did: &Did, path: &RepoPath) -> Result<Vec<u8>, WriteError> {
    let reader = engine.reader().map_err(internal)?;
    let head = reader
        .repo(did)
        .map_err(internal)?
        .ok_or_else(|| WriteError::RepoNotFound(did.clone()))?;
    let source = nodes(&reader, did)?;
    let proof = Tree::open(head.data)
        .path_blocks(&path.to_string(), &source)
        .map_err(internal)?;
    let mut out = Vec::new();
    car::write_header(&mut out, &[head.commit]);
    car::write_block(
        &mut out,
        &head.commit,
        &engine.read_at(head.commit_location).map_err(internal)?,
    );
    for (cid, bytes) in &proof.nodes {
        car::write_block(&mut out, cid, bytes);
    }
    if let Some(cid) = proof.value {
        let row = reader.record(did, path).map_err(internal)?;
        let row = row.ok_or_else(|| WriteError::Internal(format!("record {path} is not in the index")))?;
        car::write_block(&mut out, &cid, &engine.read_at(row.location).map_err(internal)?);
    }
    Ok(out)
}

fn nodes(reader: &IndexReader, did: &Did) -> Result<RepoNodes, WriteError> {
    reader
        .nodes(did)
        .map_err(internal)?
        .ok_or_else(|| WriteError::RepoNotFound(did.clone()))
}

fn internal(error: impl std::fmt::Display) -> WriteError {
    WriteError::Internal(error.to_string())
}
