//! The actor of one repo: a task that takes its writes one after the other.
//!
//! Requests that wait at the same time become one commit, as if they had been made one after the other: each is applied to
//! what those before it leave, one that fails is answered alone, all others get the same commit and revision. A request
//! begins another commit when it names the commit that it follows (`swapCommit`), touches a record that is in this one, or
//! does not fit into one event any more.
//!
//! It keeps the head and the touched paths of the tree in memory, ahead of what is durable (pipelining). Nothing it
//! holds is visible to anyone before the log says so, and if the log fails, all of it is thrown away with the process.
//! The state changes only after the log has taken the entry, so a refused append leaves it as it was.

use std::collections::{HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use engine::repo::mst::{NodeSourceError, Tree};
use engine::repo::{Cid, Did, SigningKey};
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::build::{self, Applied, Head};
use super::heal::{Nodes, heal};
use super::subjects::{DOUBLES_MAX, Underway};
use super::trees::Charge;
use super::{MAX_WRITES, Shared, Write, WriteError, WriteResult, Written};

/// Bytes of records that requests are put together up to; the rest of an event's 2 MB is for the nodes of the tree.
const TOGETHER_BYTES: usize = 1_000_000;

/// Who waits for the outcome of a request.
type Reply = oneshot::Sender<Result<Written, WriteError>>;

/// One request.
pub(super) struct Job {
    pub(super) writes: Vec<Write>,
    pub(super) swap_commit: Option<Cid>,
    /// Gets the outcome once it is durable.
    pub(super) reply: Reply,
    /// Its share of what all repos together may have waiting.
    pub(super) _room: Room,
    /// It goes into a commit of its own.
    pub(super) alone: bool,
}

impl Job {
    fn record_bytes(&self) -> usize {
        self.writes.iter().map(Write::record_bytes).sum()
    }
}

/// The handle of an actor.
pub(super) struct Actor {
    mailbox: mpsc::Sender<Job>,
    /// When it was last asked for, microseconds since 1970.
    pub(super) used_at: AtomicU64,
    /// Requests that were sent and are not answered, the ones whose commit is on its way included.
    pending: Arc<AtomicUsize>,
    /// Its memory.
    pub(super) charge: Arc<Charge>,
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
    charge: Arc<Charge>,
    repo: Option<Repo>,
    /// The newest commit that was handed to the log.
    last: Option<Arc<Mutex<Fate>>>,
    /// What those that are on their way have touched.
    underway: Underway,
}

/// What becomes of a commit that the log has taken.
pub(super) enum Fate {
    /// It is on its way; these are told.
    Waiting(Vec<Answer>),
    /// It is durable and applied, or nobody knows.
    Decided(Result<(), WriteError>),
}

impl Fate {
    /// Whether it is applied, or nobody will know.
    pub(super) fn is_decided(&self) -> bool {
        matches!(self, Fate::Decided(_))
    }

    #[cfg(test)]
    pub(super) fn waiting() -> Fate {
        Fate::Waiting(Vec::new())
    }

    #[cfg(test)]
    pub(super) fn decided_for_test(&mut self) {
        *self = Fate::Decided(Ok(()));
    }
}

/// What a request is told when its commit is durable.
pub(super) struct Answer {
    reply: Reply,
    written: Written,
}

/// A request that is in the commit being built.
struct Member {
    job: Job,
    results: Vec<WriteResult>,
}

/// Starts an actor, which ends when its handle is dropped and its mailbox is empty.
pub(super) fn spawn(did: Did, shared: Arc<Shared>, mailbox: usize, now: u64) -> Actor {
    let (sender, mut receiver) = mpsc::channel::<Job>(mailbox);
    let pending = Arc::new(AtomicUsize::new(0));
    let charge = Charge::new(&shared.trees);
    let mut task = Task {
        did,
        shared,
        pending: pending.clone(),
        charge: charge.clone(),
        repo: None,
        last: None,
        underway: Underway::default(),
    };
    tokio::spawn(async move {
        let mut waiting = VecDeque::new();
        while let Some(job) = receiver.recv().await {
            waiting.push_back(job);
            // Others write to this repo, too. What has arrived at this moment goes first through its handlers, so that it
            // can be in the same commit; nothing is waited for.
            if task.pending.load(Ordering::Acquire) > 1 {
                tokio::task::yield_now().await;
            }
            while waiting.len() < mailbox
                && let Ok(job) = receiver.try_recv()
            {
                waiting.push_back(job);
            }
            task.take(&mut waiting).await;
        }
    });
    Actor {
        mailbox: sender,
        used_at: AtomicU64::new(now),
        pending,
        charge,
    }
}

/// Tells those who wait for a commit, and everybody who asks later.
fn decide(fate: &Mutex<Fate>, pending: &AtomicUsize, outcome: Result<(), WriteError>) {
    let before = std::mem::replace(&mut *fate.lock(), Fate::Decided(outcome.clone()));
    let Fate::Waiting(answers) = before else { return };
    for answer in answers {
        tell(pending, answer.reply, outcome.clone().map(|()| answer.written));
    }
}

/// The caller may have gone away; its write stands.
fn tell(pending: &AtomicUsize, reply: Reply, outcome: Result<Written, WriteError>) {
    pending.fetch_sub(1, Ordering::AcqRel);
    let _gone = reply.send(outcome);
}

impl Task {
    /// Makes commits of all that waits.
    async fn take(&mut self, waiting: &mut VecDeque<Job>) {
        if self.repo.is_none() {
            // Nothing is half done after a panic.
            let loaded = AssertUnwindSafe(load(&self.did, &self.shared))
                .catch_unwind()
                .await;
            match loaded.unwrap_or_else(|_| Err(panicked())) {
                Ok(repo) => self.repo = Some(repo),
                Err(error) => {
                    for job in waiting.drain(..) {
                        tell(&self.pending, job.reply, Err(error.clone()));
                    }
                }
            }
        }
        let mut may_heal = true;
        while !waiting.is_empty() {
            if let Some(damage) = self.commit_next(waiting, may_heal) {
                may_heal = heal(&self.shared, &self.did, &damage).await;
            }
            if !waiting.is_empty() {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Makes one commit of the requests at the front that fit into one, and hands it to the log. Where a node is damaged and
    /// that `may_heal`, nothing is done, and the damage is the answer.
    fn commit_next(&mut self, waiting: &mut VecDeque<Job>, may_heal: bool) -> Option<NodeSourceError> {
        let mut members = Vec::new();
        // The state changes in one step after the log has taken the entry, so it is sound even after a panic.
        let staged = catch_unwind(AssertUnwindSafe(|| self.stage(waiting, &mut members, may_heal)));
        match staged.unwrap_or_else(|_| Err(panicked().into())) {
            Ok(()) => None,
            Err(Unstaged::Damage(damage)) => {
                back_to_front(waiting, members, false);
                Some(damage)
            }
            Err(Unstaged::Error(_)) if members.len() > 1 => {
                back_to_front(waiting, members, true);
                None
            }
            Err(Unstaged::Error(error)) => {
                for member in members {
                    tell(&self.pending, member.job.reply, Err(error.clone()));
                }
                None
            }
        }
    }

    /// Takes requests out of `waiting` into `members` and applies them, each to the tree that those before it leave. One that
    /// fails is answered, and leaves no trace.
    fn gather(
        &self,
        repo: &Repo,
        source: &Nodes<'_>,
        waiting: &mut VecDeque<Job>,
        members: &mut Vec<Member>,
        may_heal: bool,
    ) -> Result<(Tree, Applied), Unstaged> {
        let (mut tree, mut applied) = (repo.tree.clone(), Applied::default());
        let mut together = Together::default();
        while let Some(next) = waiting.front() {
            if !members.is_empty() && !together.admits(next, &applied) {
                break;
            }
            let Some(job) = waiting.pop_front() else { break };
            let swap = match job.swap_commit {
                Some(swap) if swap != repo.head.commit => Err(WriteError::CommitSwap {
                    head: repo.head.commit,
                }),
                _ => Ok(()),
            };
            let (tree_before, before) = (tree.clone(), applied.mark());
            // Among the members before anything is done with it, so that it is answered whatever happens.
            members.push(Member {
                job,
                results: Vec::new(),
            });
            let Some(member) = members.last_mut() else { break };
            let writes = &member.job.writes;
            let doubles = self.doubles(writes, &mut tree, &applied, source);
            let outcome = doubles
                .and_then(|doubles| build::apply(&mut tree, &mut applied, writes, &doubles, swap, source));
            let outcome = self.damaged(outcome, source, may_heal)?;
            let nothing_done = applied.mark() == before && !member.job.writes.is_empty();
            match outcome {
                Ok(results) if !nothing_done => {
                    together.count(&member.job);
                    member.results = results;
                }
                outcome => {
                    tree = tree_before;
                    applied.back_to(before);
                    let Some(Member { job, .. }) = members.pop() else {
                        break;
                    };
                    match outcome {
                        Ok(results) => self.after_last(job.reply, results),
                        Err(error) => tell(&self.pending, job.reply, Err(error)),
                    }
                }
            }
        }
        Ok((tree, applied))
    }

    /// The records that are about the same as one of `writes` which is to be the only one: those of the index, but for what
    /// commits on their way and `applied` have made of them. The tree has the last word.
    fn doubles(
        &self,
        writes: &[Write],
        tree: &mut Tree,
        applied: &Applied,
        source: &Nodes<'_>,
    ) -> Result<Vec<String>, WriteError> {
        let mut found = Vec::new();
        for write in writes {
            let Write::CreateOnly(path, record) = write else {
                continue;
            };
            let Some(subject) = record.subject else { continue };
            let own = path.to_string();
            let mut candidates: Vec<String> = self.underway.about(&subject).cloned().collect();
            for rkey in source.about(&subject, DOUBLES_MAX)? {
                let path = format!("{}/{rkey}", subject.kind.collection());
                if !self.underway.knows(&path) {
                    candidates.push(path);
                }
            }
            candidates.sort_unstable();
            candidates.dedup();
            for path in candidates {
                // What this commit has touched is not about this subject: another commit was begun otherwise.
                let touched = || applied.subjects.iter().any(|(there, _)| *there == path);
                if found.len() < DOUBLES_MAX
                    && path != own
                    && !touched()
                    && tree.get(&path, source).map_err(build::tree_error)?.is_some()
                {
                    found.push(path);
                }
            }
        }
        Ok(found)
    }

    /// The outcome of what has read nodes, when one of them may have been damaged.
    fn damaged<T>(
        &self,
        outcome: Result<T, WriteError>,
        source: &Nodes<'_>,
        may_heal: bool,
    ) -> Result<Result<T, WriteError>, Unstaged> {
        match (outcome, source.take_damage()) {
            (Err(_), Some(damage)) if may_heal => Err(Unstaged::Damage(damage)),
            (Err(_), Some(_)) => Ok(Err(WriteError::Damaged(self.did.clone()))),
            (outcome, _) => Ok(outcome),
        }
    }

    /// Answers a request that had nothing to do, when all that it saw is durable.
    fn after_last(&self, reply: Reply, results: Vec<WriteResult>) {
        let written = Written {
            commit: None,
            results,
        };
        let decided = match &self.last {
            None => Ok(()),
            Some(last) => match &mut *last.lock() {
                Fate::Waiting(answers) => {
                    answers.push(Answer { reply, written });
                    return;
                }
                Fate::Decided(outcome) => outcome.clone(),
            },
        };
        tell(&self.pending, reply, decided.map(|()| written));
    }

    fn stage(
        &mut self,
        waiting: &mut VecDeque<Job>,
        members: &mut Vec<Member>,
        may_heal: bool,
    ) -> Result<(), Unstaged> {
        let Some(repo) = self.repo.as_mut() else {
            return Err(WriteError::Internal("the repo was not loaded".to_owned()).into());
        };
        // All that is pending is in our hands, so everything that is forgotten can be read again from the index.
        let quiet = self.pending.load(Ordering::Acquire) == waiting.len();
        if quiet && self.shared.trees.should_trim(repo.tree.memory_bytes()) {
            repo.tree.trim();
            self.charge.tree(repo.tree.memory_bytes());
        }
        let Some(repo) = self.repo.as_ref() else {
            return Ok(());
        };
        let engine = &self.shared.engine;
        self.underway.settle();
        let source = Nodes::new(&self.shared, &self.did);
        let (tree, applied) = self.gather(repo, &source, waiting, members, may_heal)?;
        if members.is_empty() {
            return Ok(());
        }
        let rev = self
            .shared
            .tids
            .next(engine.now_micros().max(repo.head.rev.micros() + 1));
        let started = Instant::now();
        let built = build::commit(&self.did, &repo.key, &repo.head, rev, tree, &applied, &source);
        let built = self.damaged(built, &source, may_heal)??;
        let touched = applied.subjects;
        metrics::histogram!("pds_commit_build_seconds").record(started.elapsed().as_secs_f64());
        let answers = members.drain(..).map(|member| Answer {
            reply: member.job.reply,
            written: Written {
                commit: Some(built.meta.clone()),
                results: member.results,
            },
        });
        let requests = answers.len();
        let fate = Arc::new(Mutex::new(Fate::Waiting(answers.collect())));
        let (told, pending) = (fate.clone(), self.pending.clone());
        // The next commit need not wait for this one to become durable; the log keeps the order.
        let appended = engine.append_then(vec![built.draft], move |outcome| {
            let outcome = outcome.map(|_| ()).map_err(|e| WriteError::Closed(e.to_string()));
            decide(&told, &pending, outcome);
        });
        if let Err(error) = appended {
            decide(&fate, &self.pending, Err(error.into()));
            return Ok(());
        }
        self.underway.push(&fate, touched);
        self.last = Some(fate);
        if let Some(repo) = self.repo.as_mut() {
            self.charge.tree(built.tree.memory_bytes());
            repo.tree = built.tree;
            repo.head = built.head;
        }
        metrics::counter!("pds_commits_total").increment(1);
        metrics::counter!("pds_commit_requests_total").increment(requests as u64);
        Ok(())
    }
}

/// Why no commit was made.
enum Unstaged {
    /// A node is damaged that may be healed: nothing was decided.
    Damage(NodeSourceError),
    Error(WriteError),
}

impl From<WriteError> for Unstaged {
    fn from(error: WriteError) -> Unstaged {
        Unstaged::Error(error)
    }
}

fn back_to_front(waiting: &mut VecDeque<Job>, members: Vec<Member>, alone: bool) {
    for mut member in members.into_iter().rev() {
        member.job.alone |= alone;
        waiting.push_front(member.job);
    }
}

fn panicked() -> WriteError {
    WriteError::Internal("building a commit panicked".to_owned())
}

/// What bounds a commit of several requests.
#[derive(Default)]
struct Together {
    writes: usize,
    bytes: usize,
    /// Requests that are alone, or name the commit that they follow.
    closed: bool,
    touched: HashSet<String>,
    /// How many of the operations are in `touched`.
    seen: usize,
}

impl Together {
    /// Whether a further request fits: within the bounds, and about other records.
    fn admits(&mut self, job: &Job, applied: &Applied) -> bool {
        let writes = self.writes + job.writes.len();
        let bytes = self.bytes + job.record_bytes();
        if self.closed
            || job.alone
            || job.swap_commit.is_some()
            || writes > MAX_WRITES
            || bytes > TOGETHER_BYTES
        {
            return false;
        }
        for (path, _) in applied.ops.iter().skip(self.seen) {
            self.touched.insert(path.clone());
        }
        self.seen = applied.ops.len();
        // A commit cannot delete what it has made.
        let is_double = |write: &Write| match write {
            Write::CreateOnly(_, record) => record.subject.is_some_and(|subject| {
                let mut made = applied.subjects.iter();
                made.any(|(_, about)| *about == Some(subject))
            }),
            _ => false,
        };
        !job.writes
            .iter()
            .any(|write| self.touched.contains(&write.path().to_string()) || is_double(write))
    }

    fn count(&mut self, job: &Job) {
        self.writes += job.writes.len();
        self.bytes += job.record_bytes();
        self.closed |= job.alone;
    }
}

/// A part of what all repos together may have waiting, given back when dropped.
pub(super) struct Room {
    bytes: usize,
    taken: Arc<AtomicUsize>,
}

impl Room {
    /// Takes `bytes` of `most`; `None` when there is not enough. Something always fits into nothing.
    pub(super) fn take(taken: &Arc<AtomicUsize>, bytes: usize, most: usize) -> Option<Room> {
        let room = Room {
            bytes,
            taken: taken.clone(),
        };
        let before = taken.fetch_add(bytes, Ordering::AcqRel);
        (before == 0 || before.saturating_add(bytes) <= most).then_some(room)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.bytes, Ordering::AcqRel);
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
