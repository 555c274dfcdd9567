//! Repos as CAR: whole, single blocks, proofs. All from one index snapshot, so an answer is one commit's state.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::log::{BlockReader, Location, Lsn, ReadError, Watermark};
use engine::repo::mst::{StreamError, StreamItem, StreamRecord, Tree, stream as stream_tree};
use engine::repo::{Cid, Did, RepoPath, Tid, car};
use engine::views::index::{BlockPlace, ChangedBlock, FindError, IndexReader, RepoHead, RepoNodes, Stop};
use futures_util::StreamExt;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{WriteError, unread};
use crate::service::core::Core;

/// Bytes of CAR that are gathered before they go to the client.
const CHUNK_BYTES: usize = 128 << 10;
/// Chunks that may wait for a slow client.
const CHUNKS_AHEAD: usize = 3;
/// How much an export's thread stands back behind those of commits, as a Unix niceness.
const NICENESS: i32 = 19;
/// After so many bytes an export lets others run, some 30 µs of work: however little a thread counts, a scheduler may let it go on for
/// milliseconds while a commit waits.
const BYTES_IN_A_ROW: usize = 16 << 10;
/// How long an export stands still after a chunk while which commits were made. Its bytes pass the threads that serve everybody; so
/// an export beside commits without a pause gives some 20 MB/s, and one that is alone twenty times that.
const STAND_BACK: Duration = Duration::from_millis(6);
/// How long a client may refuse bytes before its export ends.
const STALL: Duration = Duration::from_secs(60);
/// How long an export may take in all: it holds a snapshot, which keeps the index from reusing its pages.
const TOTAL: Duration = Duration::from_secs(3600);
/// How often a block that is in the replica only is asked for; each time the replica itself is tried for many seconds.
const TRIES_AWAY: u32 = 3;
/// How long to wait in between.
const PAUSE_AWAY: Duration = Duration::from_secs(1);
/// How long blocks are looked for by their CIDs, which takes a pass over the repo.
const SEARCH: Duration = Duration::from_secs(20);
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

    async fn turn(&self) -> Result<OwnedSemaphorePermit, WriteError> {
        tokio::time::timeout(QUEUE, self.0.clone().acquire_owned())
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or(WriteError::Busy)
    }
}

/// The head of a repo, if there is one.
///
/// # Errors
/// The index cannot be read.
pub fn head(engine: &Core, did: &Did) -> Result<Option<RepoHead>, WriteError> {
    engine.reader().map_err(internal)?.repo(did).map_err(internal)
}

/// The heads of several repos as of one moment, in the order of `dids`.
///
/// # Errors
/// The index cannot be read.
pub fn heads(engine: &Core, dids: &[&Did]) -> Result<Vec<Option<RepoHead>>, WriteError> {
    let reader = engine.reader().map_err(internal)?;
    dids.iter()
        .map(|did| reader.repo(did).map_err(internal))
        .collect()
}

/// Streams a repo in the order of its tree: the commit, then every node before its children and records, which a reader
/// can check as it arrives. With `since`, the commit and what was made after that rev; everything, if that is not known.
///
/// # Errors
/// The repo is not there, or too many exports run.
pub async fn repo(
    engine: &Core,
    exports: &Exports,
    did: &Did,
    since: Option<Tid>,
) -> Result<CarStream, WriteError> {
    let permit = exports.turn().await?;
    let reader = engine.reader().map_err(internal)?;
    let head = reader
        .repo(did)
        .map_err(internal)?
        .ok_or_else(|| WriteError::RepoNotFound(did.clone()))?;
    // Before the answer begins, so that a replica that cannot be read is told by its status.
    let commit = engine.read_at(head.commit_location).map_err(unread)?;
    let (engine, did, appended) = (engine.clone(), did.clone(), engine.appended().clone());
    stream(permit, appended, move |out| {
        walk(&engine, &reader, (&head, &commit), &did, since, out)
    })
}

/// CAR bytes on their way to a client.
pub type CarStream = futures_util::stream::BoxStream<'static, Result<Bytes, std::io::Error>>;

/// Runs `export` on a thread of its own, as fast as its client reads and commits allow. There are no more of them than permits.
fn stream(
    permit: OwnedSemaphorePermit,
    appended: Watermark,
    export: impl FnOnce(&mut Sink) -> Result<(), WalkError> + Send + 'static,
) -> Result<CarStream, WriteError> {
    let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(CHUNKS_AHEAD);
    let runtime = tokio::runtime::Handle::current();
    let work = move || {
        let _permit = permit;
        // Commits go first where both want the processor; a system that does not allow it shares evenly.
        let _evenly = rustix::process::setpriority_process(None, NICENESS);
        let mut out = Sink {
            buffer: Vec::with_capacity(CHUNK_BYTES + 4096),
            in_a_row: 0,
            sender,
            runtime,
            until: Instant::now() + TOTAL,
            seen: appended.get(),
            appended,
        };
        if let Err(WalkError::Failed(message)) = export(&mut out) {
            tracing::error!(%message, "an export broke off");
            // Without it the client would take what came for the whole.
            let _gone = out.send(Err(std::io::Error::other("the export broke off")));
        }
    };
    std::thread::Builder::new()
        .name("export".to_owned())
        .spawn(work)
        .map_err(|error| WriteError::Internal(format!("no thread for an export: {error}")))?;
    let chunks = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|chunk| (chunk, receiver))
    });
    // Compression polls once more after the end.
    Ok(chunks.fuse().boxed())
}

#[allow(
    clippy::disallowed_methods,
    reason = "a pace: nothing is waited for, and the thread is the export's own"
)]
fn pause() {
    std::thread::sleep(STAND_BACK);
}

#[derive(Debug, thiserror::Error)]
enum WalkError {
    /// The client went away or stalled.
    #[error("the client went away")]
    Gone,
    /// Our store failed.
    #[error("{0}")]
    Failed(String),
}

struct Sink {
    buffer: Vec<u8>,
    /// Bytes since others were let run.
    in_a_row: usize,
    sender: mpsc::Sender<Result<Bytes, std::io::Error>>,
    runtime: tokio::runtime::Handle,
    until: Instant,
    /// Moves with every commit.
    appended: Watermark,
    /// Where it was at the last chunk.
    seen: Lsn,
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
        if Instant::now() >= self.until {
            return Err(WalkError::Failed("the client took too long".to_owned()));
        }
        self.send(Ok(chunk))?;
        let appended = self.appended.get();
        if appended != self.seen {
            self.seen = appended;
            pause();
        }
        Ok(())
    }

    fn send(&self, chunk: Result<Bytes, std::io::Error>) -> Result<(), WalkError> {
        match self.sender.try_send(chunk) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(chunk)) => self
                .runtime
                .block_on(self.sender.send_timeout(chunk, STALL))
                .map_err(|_| WalkError::Gone),
            Err(TrySendError::Closed(_)) => Err(WalkError::Gone),
        }
    }

    fn block_at(&mut self, from: &mut BlockReader, cid: &Cid, at: Location) -> Result<(), WalkError> {
        let mut tries = 1;
        loop {
            match from.with(at, |bytes| self.block(cid, bytes)) {
                Ok(written) => return written,
                // What went out already would be sent for nothing.
                Err(ReadError::Away { .. }) if tries < TRIES_AWAY && Instant::now() < self.until => {
                    tries += 1;
                    self.runtime.block_on(tokio::time::sleep(PAUSE_AWAY));
                }
                Err(error) => return Err(WalkError::Failed(error.to_string())),
            }
        }
    }

    fn block(&mut self, cid: &Cid, bytes: &[u8]) -> Result<(), WalkError> {
        car::write_block(&mut self.buffer, cid, bytes);
        self.in_a_row += bytes.len();
        if self.in_a_row >= BYTES_IN_A_ROW {
            self.in_a_row = 0;
            std::thread::yield_now();
        }
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
    (head, commit): (&RepoHead, &[u8]),
    did: &Did,
    since: Option<Tid>,
    out: &mut Sink,
) -> Result<(), WalkError> {
    let failed = |error: &dyn std::fmt::Display| WalkError::Failed(error.to_string());
    car::write_header(&mut out.buffer, &[head.commit]);
    out.block(&head.commit, commit)?;
    out.flush()?;
    let mut blocks = engine.log_reader().blocks();
    if let Some(since) = since {
        let known = reader.changed_since(did, since, |block| match block {
            ChangedBlock::Node { cid, bytes } => out.block(cid, bytes),
            ChangedBlock::Record { cid, location, .. } => out.block_at(&mut blocks, cid, location),
        });
        let known = known.map_err(|stop| match stop {
            Stop::Taker(error) => error,
            stop => failed(&stop),
        })?;
        if known {
            return out.flush();
        }
    }
    let source = nodes(reader, did).map_err(|e| failed(&e))?;
    let rows = reader.record_rows(did).map_err(|e| failed(&e))?;
    let records = rows.map(|row| {
        let (key, row) = row.map_err(|e| failed(&e))?;
        Ok(StreamRecord {
            key,
            value: row.cid,
            place: row.location,
        })
    });
    stream_tree(&head.data, &source, records, |item| match item {
        StreamItem::Node { cid, bytes } => out.block(cid, bytes),
        StreamItem::Record(record) => out.block_at(&mut blocks, &record.value, record.place),
    })
    .map_err(|error| match error {
        StreamError::Other(error) => error,
        error => WalkError::Failed(error.to_string()),
    })?;
    out.flush()
}

/// Streams single blocks of a repo as CAR without a root, each once.
///
/// # Errors
/// One of them is not a block of the repo's current state.
pub async fn blocks(
    engine: &Core,
    exports: &Exports,
    did: &Did,
    cids: Vec<Cid>,
) -> Result<CarStream, WriteError> {
    let permit = exports.turn().await?;
    let (engine, did) = (engine.clone(), did.clone());
    let reader = engine.reader().map_err(internal)?;
    let (found, places) = tokio::sync::oneshot::channel();
    let search = move || {
        // Commits go first where both want the processor.
        let _evenly = rustix::process::setpriority_process(None, NICENESS);
        let _gone = found.send(find_blocks(&reader, &did, &cids));
    };
    std::thread::Builder::new()
        .name("find blocks".to_owned())
        .spawn(search)
        .map_err(internal)?;
    let places = places.await.map_err(internal)??;
    stream(permit, engine.appended().clone(), move |out| {
        car::write_header(&mut out.buffer, &[]);
        let mut blocks = engine.log_reader().blocks();
        for (cid, place) in places {
            match place {
                BlockPlace::Node(bytes) => out.block(&cid, &bytes)?,
                BlockPlace::Record(location) | BlockPlace::Commit(location) => {
                    out.block_at(&mut blocks, &cid, location)?;
                }
            }
        }
        out.flush()
    })
}

/// Where each of `cids` is; all must be there before the first byte is sent.
fn find_blocks(reader: &IndexReader, did: &Did, cids: &[Cid]) -> Result<Vec<(Cid, BlockPlace)>, WriteError> {
    let places = match reader.find_blocks(did, cids, Instant::now() + SEARCH) {
        Ok(places) => places,
        Err(FindError::TimeUp) => return Err(WriteError::Busy),
        Err(error) => return Err(internal(error)),
    };
    let found: HashSet<Cid> = places.iter().map(|(cid, _)| *cid).collect();
    let missing: Vec<String> = cids
        .iter()
        .filter(|cid| !found.contains(cid))
        .map(ToString::to_string)
        .collect();
    if missing.is_empty() {
        Ok(places)
    } else {
        Err(WriteError::InvalidRequest(format!(
            "Could not find cids: {}",
            missing.join(",")
        )))
    }
}

/// The commit, the path to a record (or to where it would be) and the record, as CAR. Reads many places: not for async
/// threads.
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
        &engine.read_at(head.commit_location).map_err(unread)?,
    );
    for (cid, bytes) in &proof.nodes {
        car::write_block(&mut out, cid, bytes);
    }
    if let Some(cid) = proof.value {
        let row = reader.record(did, path).map_err(internal)?;
        let row = row.ok_or_else(|| WriteError::Internal(format!("record {path} is not in the index")))?;
        car::write_block(&mut out, &cid, &engine.read_at(row.location).map_err(unread)?);
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
