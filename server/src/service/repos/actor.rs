//! The actor of one repo: a task that takes its writes one after the other.
//!
//! It keeps the head and the touched paths of the tree in memory, ahead of what is durable (pipelining). Nothing it
//! holds is visible to anyone before the log says so, and if the log fails, all of it is thrown away with the process.
//! The state changes only after the log has taken the entry, so a refused append leaves it as it was.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use engine::engine::Receipt;
use engine::repo::mst::Tree;
use engine::repo::{Cid, Did, SigningKey};
use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot};

use super::build::{self, Head};
use super::{Shared, Write, WriteError, Written};

/// Size of a tree in memory above which the actor forgets what it can read again.
const TRIM_BYTES: usize = 1 << 20;

/// One request.
pub(super) struct Job {
    pub(super) writes: Vec<Write>,
    pub(super) swap_commit: Option<Cid>,
    /// Gets the outcome once it is durable.
    pub(super) reply: oneshot::Sender<Result<Written, WriteError>>,
}

/// The handle of an actor.
pub(super) struct Actor {
    mailbox: mpsc::Sender<Job>,
    /// When it was last asked for, microseconds since 1970.
    pub(super) used_at: AtomicU64,
    /// Requests that were sent and are not answered, the ones whose commit is on its way included.
    pending: Arc<AtomicUsize>,
}

impl Actor {
    /// Whether a new actor, loading from the index, would find what this one knows.
    pub(super) fn is_idle(&self) -> bool {
        self.pending.load(Ordering::Acquire) == 0
    }

    /// Hands a request over; false when too many wait already.
    pub(super) fn send(&self, job: Job) -> bool {
        self.pending.fetch_add(1, Ordering::AcqRel);
        let taken = self.mailbox.try_send(job).is_ok();
        if !taken {
            self.pending.fetch_sub(1, Ordering::AcqRel);
        }
        taken
    }
}

/// What the actor knows of its repo.
struct Repo {
    key: Arc<SigningKey>,
    head: Head,
    tree: Tree,
}

/// What the actor's task owns.
struct Task {
    did: Did,
    shared: Arc<Shared>,
    pending: Arc<AtomicUsize>,
    repo: Option<Repo>,
}

/// Starts an actor, which ends when its handle is dropped and its mailbox is empty.
pub(super) fn spawn(did: Did, shared: Arc<Shared>, mailbox: usize, now: u64) -> Actor {
    let (sender, mut receiver) = mpsc::channel::<Job>(mailbox);
    let pending = Arc::new(AtomicUsize::new(0));
    let mut task = Task {
        did,
        shared,
        pending: pending.clone(),
        repo: None,
    };
    tokio::spawn(async move {
        while let Some(job) = receiver.recv().await {
            task.take(job).await;
        }
    });
    Actor {
        mailbox: sender,
        used_at: AtomicU64::new(now),
        pending,
    }
}

impl Task {
    async fn take(&mut self, job: Job) {
        let Job {
            writes,
            swap_commit,
            reply,
        } = job;
        // The state changes in one step after the log has taken the entry, so it is sound even after a panic.
        let staged = AssertUnwindSafe(self.stage(writes, swap_commit))
            .catch_unwind()
            .await
            .unwrap_or_else(|_| Err(WriteError::Internal("building a commit panicked".to_owned())));
        match staged {
            Ok((written, Some(receipt))) => {
                let pending = self.pending.clone();
                // The next request need not wait for this one to become durable; the log keeps the order.
                tokio::spawn(async move {
                    let outcome = receipt.durable().await;
                    pending.fetch_sub(1, Ordering::AcqRel);
                    // The caller may have gone away; its write stands.
                    let _gone = reply.send(
                        outcome
                            .map(|_| written)
                            .map_err(|e| WriteError::Closed(e.to_string())),
                    );
                });
            }
            Ok((written, None)) => self.answer(reply, Ok(written)),
            Err(error) => self.answer(reply, Err(error)),
        }
    }

    fn answer(
        &self,
        reply: oneshot::Sender<Result<Written, WriteError>>,
        outcome: Result<Written, WriteError>,
    ) {
        self.pending.fetch_sub(1, Ordering::AcqRel);
        let _gone = reply.send(outcome);
    }

    /// Applies writes in memory and hands the commit to the log; no receipt when nothing had to change.
    async fn stage(
        &mut self,
        writes: Vec<Write>,
        swap_commit: Option<Cid>,
    ) -> Result<(Written, Option<Receipt>), WriteError> {
        let engine = &self.shared.engine;
        if self.repo.is_none() {
            self.repo = Some(load(&self.did, &self.shared).await?);
        }
        let Some(repo) = self.repo.as_mut() else {
            return Err(WriteError::Internal("the repo was not loaded".to_owned()));
        };
        // Only this request is under way, so everything that is forgotten can be read again from the index.
        if self.pending.load(Ordering::Acquire) == 1 && repo.tree.memory_bytes() > TRIM_BYTES {
            repo.tree.trim();
        }
        let reader = engine
            .reader()
            .map_err(|error| WriteError::Internal(error.to_string()))?;
        let source = reader
            .nodes(&self.did)
            .map_err(|error| WriteError::Internal(error.to_string()))?
            .ok_or_else(|| WriteError::RepoNotFound(self.did.clone()))?;
        let asked = writes.len();
        let mut tree = repo.tree.clone();
        let swap = match swap_commit {
            Some(swap) if swap != repo.head.commit => Err(WriteError::CommitSwap {
                head: repo.head.commit,
            }),
            _ => Ok(()),
        };
        let applied = build::apply(&mut tree, writes, swap, &source)?;
        if applied.ops.is_empty() && asked > 0 {
            return Ok((
                Written {
                    commit: None,
                    results: applied.results,
                },
                None,
            ));
        }
        let rev = self
            .shared
            .tids
            .next(engine.now_micros().max(repo.head.rev.micros() + 1));
        let started = Instant::now();
        let (built, results) = build::commit(&self.did, &repo.key, &repo.head, rev, tree, applied, &source)?;
        metrics::histogram!("pds_commit_build_seconds").record(started.elapsed().as_secs_f64());
        let receipt = engine.append(vec![built.draft])?;
        repo.tree = built.tree;
        repo.head = built.head;
        metrics::counter!("pds_commits_total").increment(1);
        Ok((
            Written {
                commit: Some(built.meta),
                results,
            },
            Some(receipt),
        ))
    }
}

async fn load(did: &Did, shared: &Shared) -> Result<Repo, WriteError> {
    let key = shared
        .keys
        .get(did)
        .await
        .map_err(|error| WriteError::Internal(error.to_string()))?;
    let key = key.ok_or_else(|| WriteError::RepoNotFound(did.clone()))?;
    let reader = shared
        .engine
        .reader()
        .map_err(|error| WriteError::Internal(error.to_string()))?;
    let head = reader
        .repo(did)
        .map_err(|error| WriteError::Internal(error.to_string()))?
        .ok_or_else(|| WriteError::RepoNotFound(did.clone()))?;
    let tree = Tree::open(head.data);
    Ok(Repo {
        key,
        tree,
        head: Head {
            commit: head.commit,
            rev: head.rev,
            data: head.data,
        },
    })
}
