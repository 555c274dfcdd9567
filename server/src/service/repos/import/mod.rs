//! Import of a whole repo: a CAR in any order of blocks replaces what the account has, wholly or not at all.
//!
//! Body → spool file (blocks hashed as they come) → walk of the tree from its signed root → records in pieces into the
//! log, staged under a new generation that nobody sees → one entry that makes it the live one, signed anew with the
//! account's key. Memory is a part of the spool's index and a few pieces, 3 MiB or so, whatever the size. Disk: a [share](room)
//! of what all spools may take.
//!
//! | crash or failure            | leaves                                                            |
//! |-----------------------------|-------------------------------------------------------------------|
//! | while the body comes        | nothing: the spool has no name                                    |
//! | while records are staged    | a staged generation; a failure or the next start gives it up      |
//! | after the flip was appended | the new repo, if the entry survives; the old one if it does not   |
//!
//! While records are staged nobody writes to the repo: its actor is sent away first, and comes back when the flip is
//! applied or the import has failed.

mod blocks;
pub mod room;
mod spool;
mod stage;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engine::engine::{AppendError, Receipt};
use engine::entry::{Change, EntryDraft};
use engine::repo::car::CarError;
use engine::repo::event;
use engine::repo::mst::TreeError;
use engine::repo::{Commit, Did, Tid, UnsignedCommit, car};
use futures_util::{Stream, StreamExt};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use super::{Repos, WriteError, internal};
use crate::service::core::{Core, Unconfirmed};
use crate::xrpc::error::XrpcError;
use room::{Room, RoomLimits, Share};

/// Imports that run at once; each holds a spool's index and a thread.
const AT_ONCE: usize = 2;
/// How long an import waits for its turn.
const QUEUE: Duration = Duration::from_secs(10);
/// How long a client may send nothing.
const STALL: Duration = Duration::from_secs(60);
/// How long the body may take in all.
const TOTAL: Duration = Duration::from_secs(3600);
/// Pieces of a body that may wait for the disk.
const CHUNKS_AHEAD: usize = 8;
/// How long an import waits for the repo's last writes, and for room in the log.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(10);
/// A rev that lies further in the future than this is not continued: relays would drop what follows it.
const FUTURE_MAX_MICROS: u64 = 300_000_000;
/// Generations given up in one entry.
const SWEPT_AT_ONCE: usize = 100;

/// Why an import was refused or failed. Unless it says otherwise, the repo is what it was.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The operator has switched imports off.
    #[error("Service is not accepting repo imports")]
    NotAccepting,
    /// Larger than the limit.
    #[error("request entity too large")]
    TooLarge,
    /// The bytes broke off or stalled, or are no repo of this account.
    #[error("{0}")]
    Invalid(String),
    /// There is no such repo here.
    #[error("Could not find repo: {0}")]
    RepoNotFound(Did),
    /// Too much goes on; nothing was done.
    #[error("the server is busy; try again")]
    Busy,
    /// The disk has no room for it now; nothing was done.
    #[error("there is no room for an import of this size now; try again later")]
    NoRoom,
    /// The log is closed to writes: recovery decides.
    #[error("the log is closed to writes: {0}")]
    Closed(String),
    /// The flip is in the log and not known to be durable yet.
    #[error(transparent)]
    Unconfirmed(#[from] Unconfirmed),
    /// Our mistake or a damaged store.
    #[error("{0}")]
    Internal(String),
}

impl From<CarError> for ImportError {
    fn from(error: CarError) -> ImportError {
        match error {
            CarError::Io(error) if error.kind() == std::io::ErrorKind::FileTooLarge => ImportError::TooLarge,
            error => ImportError::Invalid(format!("The CAR cannot be read: {error}")),
        }
    }
}

impl From<TreeError> for ImportError {
    fn from(error: TreeError) -> ImportError {
        match error {
            TreeError::Io { .. } => ImportError::Internal(error.to_string()),
            error => ImportError::Invalid(format!("The repo's tree is not sound: {error}")),
        }
    }
}

impl From<AppendError> for ImportError {
    fn from(error: AppendError) -> ImportError {
        match error {
            AppendError::Busy => ImportError::Busy,
            AppendError::Invalid { .. } => ImportError::Internal(error.to_string()),
            other => ImportError::Closed(other.to_string()),
        }
    }
}

impl From<WriteError> for ImportError {
    fn from(error: WriteError) -> ImportError {
        match error {
            WriteError::RepoNotFound(did) => ImportError::RepoNotFound(did),
            WriteError::Busy => ImportError::Busy,
            other => ImportError::Internal(other.to_string()),
        }
    }
}

impl From<ImportError> for XrpcError {
    fn from(error: ImportError) -> XrpcError {
        match error {
            ImportError::TooLarge => XrpcError::new(
                axum::http::StatusCode::PAYLOAD_TOO_LARGE,
                "PayloadTooLarge",
                error.to_string(),
            ),
            ImportError::NotAccepting | ImportError::Invalid(_) => XrpcError::invalid(error.to_string()),
            ImportError::RepoNotFound(_) => XrpcError::bad("RepoNotFound", error.to_string()),
            ImportError::Busy => XrpcError::unavailable(error.to_string(), 1),
            ImportError::NoRoom => XrpcError::unavailable(error.to_string(), 60),
            ImportError::Closed(_) | ImportError::Unconfirmed(_) => {
                XrpcError::unavailable(error.to_string(), 5)
            }
            ImportError::Internal(cause) => XrpcError::internal(cause),
        }
    }
}

/// What was imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Imported {
    /// How many records the repo has now.
    pub records: u64,
    /// The rev of its new commit.
    pub rev: Tid,
}

/// Imports of this server; cheap to clone.
#[derive(Clone)]
pub struct Imports {
    repos: Repos,
    turns: Arc<Semaphore>,
    /// Where spools are, and how much of the disk is for them.
    room: Room,
    /// Bytes of the largest CAR; `None` takes no imports.
    limit: Option<u64>,
}

impl Imports {
    /// Imports into `repos` of at most `limit` bytes, with spool files in `dir` that take what `disk` allows. No limit refuses all.
    #[must_use]
    pub fn new(repos: Repos, dir: PathBuf, limit: Option<u64>, disk: RoomLimits) -> Imports {
        let room = Room::new(dir, disk);
        Imports {
            repos,
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            limit: limit.map(|limit| limit.min(room.largest())),
            room,
        }
    }

    /// Replaces the repo of `did` by the one in `body`. `is_active`: subscribers know the account, so they are told.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub async fn import<E: std::fmt::Display>(
        &self,
        did: &Did,
        is_active: bool,
        length: Option<u64>,
        body: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<Imported, ImportError> {
        let limit = self.limit.ok_or(ImportError::NotAccepting)?;
        if length.is_some_and(|length| length > limit) {
            return Err(ImportError::TooLarge);
        }
        let turn = tokio::time::timeout(QUEUE, self.turns.clone().acquire_owned()).await;
        let turn = turn.ok().and_then(Result::ok).ok_or(ImportError::Busy)?;
        let share = self.room.share(length.unwrap_or_default())?;
        let spool = self.receive(length.unwrap_or(limit), share, body).await?;
        let (repos, did) = (self.repos.clone(), did.clone());
        let (reply, answer) = oneshot::channel();
        // A task of its own: a client that goes away now must not leave the repo closed to writes.
        tokio::spawn(async move {
            let _turn = turn;
            let outcome = Box::pin(replace(&repos, &did, is_active, spool)).await;
            if let Err(error) = &outcome {
                tracing::warn!(%did, %error, "an import failed");
            }
            let _gone = reply.send(outcome);
        });
        answer
            .await
            .map_err(|_| ImportError::Internal("the import's task ended".to_owned()))?
    }

    /// Takes the body into a spool file.
    async fn receive<E: std::fmt::Display>(
        &self,
        limit: u64,
        share: Share,
        body: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<spool::Spool, ImportError> {
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        let reading = tokio::task::spawn_blocking(move || spool::Spool::read(receiver, share, limit));
        let mut body = std::pin::pin!(body);
        let deadline = Instant::now() + TOTAL;
        loop {
            let until = deadline.min(Instant::now() + STALL);
            let piece = match tokio::time::timeout_at(until, body.next()).await {
                Err(_) => Err("the bytes do not come in time".to_owned()),
                Ok(None) => break,
                Ok(Some(Err(error))) => Err(error.to_string()),
                Ok(Some(Ok(chunk))) => Ok(chunk),
            };
            let is_last = piece.is_err();
            // The reader ends early when what came is no CAR; it says so below.
            if sender.send(piece).await.is_err() || is_last {
                break;
            }
        }
        drop(sender);
        reading
            .await
            .map_err(|error| ImportError::Internal(error.to_string()))?
    }

    /// Gives up what imports of an earlier run have left staged. For the start, before anybody can import.
    ///
    /// # Errors
    /// The index cannot be read, or the log takes nothing.
    pub fn give_up_unfinished(&self) -> Result<(), ImportError> {
        let engine = &self.repos.inner.shared.engine;
        let left = engine
            .reader()
            .and_then(|reader| reader.staged_generations(SWEPT_AT_ONCE))
            .map_err(internal)?;
        if left.is_empty() {
            return Ok(());
        }
        tracing::warn!(
            count = left.len(),
            "imports did not come to their end; they are given up"
        );
        let changes = left
            .into_iter()
            .map(|(did, generation)| Change::GenerationSwept { did, generation })
            .collect();
        // Nobody waits for it: what is not durable is found again.
        drop(engine.append(vec![EntryDraft::private(changes)])?);
        Ok(())
    }
}

/// Stages what is in the spool and makes it the live repo.
async fn replace(
    repos: &Repos,
    did: &Did,
    is_active: bool,
    spool: spool::Spool,
) -> Result<Imported, ImportError> {
    let shared = &repos.inner.shared;
    let engine = &shared.engine;
    let imported = spool.commit(did)?;
    let closed = repos.close_to_writes(did).await?;
    let key = shared.keys.get(did).await.map_err(internal)?;
    let key = key.ok_or_else(|| ImportError::RepoNotFound(did.clone()))?;
    let reader = engine.reader().map_err(internal)?;
    let head = reader.repo(did).map_err(internal)?;
    let head = head.ok_or_else(|| ImportError::RepoNotFound(did.clone()))?;
    let generation = reader.next_generation(did).map_err(internal)?;
    let generation = generation
        .filter(|generation| u16::try_from(*generation).is_ok())
        .ok_or_else(|| ImportError::Invalid("This repo was imported too often".to_owned()))?;
    drop(reader);

    let now = engine.now_micros();
    let before = Some(imported.rev().micros()).filter(|at| *at < now.saturating_add(FUTURE_MAX_MICROS));
    let rev = shared
        .tids
        .next(now.max(head.rev.micros() + 1).max(before.map_or(0, |at| at + 1)));
    let job = stage::Job {
        engine: engine.clone(),
        did: did.clone(),
        generation,
        rev,
        data: imported.data(),
        closing: closed.closing(),
        runtime: tokio::runtime::Handle::current(),
    };
    let staged = tokio::task::spawn_blocking(move || job.run(&spool)).await;
    let staged = staged.map_err(|error| ImportError::Internal(error.to_string()));
    let flipped = staged.and_then(|staged| staged).and_then(|records| {
        let commit = UnsignedCommit {
            did: did.clone(),
            data: imported.data(),
            rev,
        };
        let commit = commit.sign(&key).map_err(internal)?;
        Ok((records, flip(engine, did, generation, &commit, is_active)?))
    });
    let (records, receipt) = match flipped {
        Ok(flipped) => flipped,
        Err(error) => {
            give_up(engine, did, generation);
            return Err(error);
        }
    };
    // The repo stays closed until the flip is applied: whoever writes must find the new head in the index.
    let (reply, answer) = oneshot::channel();
    tokio::spawn(async move {
        let outcome = receipt.durable().await;
        drop(closed);
        let _late = reply.send(outcome);
    });
    let durable = engine.in_time(answer).await?;
    durable
        .map_err(|_| ImportError::Internal("the import's task ended".to_owned()))?
        .map_err(|error| ImportError::Closed(error.to_string()))?;
    metrics::counter!("pds_imports_total").increment(1);
    metrics::counter!("pds_imported_records_total").increment(records);
    Ok(Imported { records, rev })
}

/// One group: the head, and for those who know the account an announcement of it.
fn flip(
    engine: &Core,
    did: &Did,
    generation: u32,
    commit: &Commit,
    is_active: bool,
) -> Result<Receipt, ImportError> {
    let mut group = vec![EntryDraft::private(vec![Change::RepoHead {
        did: did.clone(),
        generation,
        commit: commit.bytes().clone(),
    }])];
    if is_active {
        let mut blocks = Vec::new();
        car::write_header(&mut blocks, &[commit.cid()]);
        car::write_block(&mut blocks, &commit.cid(), commit.bytes());
        let message = event::encode_sync(did, commit.rev(), &blocks).map_err(internal)?;
        group.push(EntryDraft::sync(message, Vec::new()));
    }
    Ok(engine.append(group)?)
}

/// Lets go of what is staged. If the log does not take it now, the next start finds it.
fn give_up(engine: &Core, did: &Did, generation: u32) {
    let swept = Change::GenerationSwept {
        did: did.clone(),
        generation,
    };
    match engine.append(vec![EntryDraft::private(vec![swept])]) {
        Ok(receipt) => drop(receipt),
        Err(error) => {
            tracing::warn!(%did, %error, "what a failed import has staged stays until the next start");
        }
    }
}
