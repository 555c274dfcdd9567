//! A repo that takes no writes for a while, and one that is removed for good.
//!
//! Whoever replaces or removes a repo first *closes* it: its actor does what it was asked and ends, and no other comes.
//! What the actor has handed to the log comes before what the closer hands to it, and nothing comes between. So no
//! commit of a repo is ever logged behind its removal, and an actor ends with its repo.
//!
//! An import that is under way when its repo is removed is told to end; exports keep their snapshot, and end by themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use engine::engine::Receipt;
use engine::entry::{Change, EntryDraft};
use engine::log::Lsn;
use engine::repo::Did;
use engine::views::accounts::LockGuard;
use tokio::sync::oneshot;

use super::{Repos, WriteError, internal};

/// How long a repo's writes, or an import into it, are waited for.
const CLOSE_WAIT: Duration = Duration::from_secs(30);
/// How often it is looked whether they have ended.
const LOOK: Duration = Duration::from_millis(5);

/// Why a repo takes no writes.
#[derive(Debug, Default)]
pub(super) struct Closing {
    /// It is being removed.
    removal: bool,
    /// Whoever has closed it is to give it up, because it is to be removed.
    unwanted: AtomicBool,
}

impl Closing {
    /// Whether the repo is to be removed, so that there is no use in going on.
    pub(super) fn is_unwanted(&self) -> bool {
        self.unwanted.load(Ordering::Acquire)
    }
}

/// A repo that takes no writes. It takes them again when this is dropped.
pub(crate) struct Closed {
    repos: Repos,
    did: Did,
    closing: Arc<Closing>,
}

impl Closed {
    /// Whose repo it is.
    pub(super) fn did(&self) -> &Did {
        &self.did
    }

    /// For whoever works while it is closed.
    pub(super) fn closing(&self) -> Arc<Closing> {
        self.closing.clone()
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        let _actors = self.repos.inner.actors.lock();
        self.repos.inner.closed.lock().remove(&self.did);
    }
}

impl Repos {
    /// Sends the repo's actor away when it has done what it was asked, and lets no other come until the answer is dropped.
    ///
    /// # Errors
    /// [`WriteError::Busy`]: somebody else has closed it, or its writes do not end in time.
    pub(crate) async fn close_to_writes(&self, did: &Did) -> Result<Closed, WriteError> {
        self.close(did, false).await
    }

    /// A removal tells another who has closed the repo to end, and waits for that one.
    async fn close(&self, did: &Did, removal: bool) -> Result<Closed, WriteError> {
        let deadline = Instant::now() + CLOSE_WAIT;
        let closing = Arc::new(Closing {
            removal,
            unwanted: AtomicBool::new(false),
        });
        let actor = loop {
            {
                let mut actors = self.inner.actors.lock();
                let mut closed = self.inner.closed.lock();
                match closed.get(did) {
                    None => {
                        closed.insert(did.clone(), closing.clone());
                        break actors.remove(did);
                    }
                    Some(other) if removal && Instant::now() < deadline => {
                        other.unwanted.store(true, Ordering::Release);
                    }
                    Some(_) => return Err(WriteError::Busy),
                }
            }
            tokio::time::sleep(LOOK).await;
        };
        let closed = Closed {
            repos: self.clone(),
            did: did.clone(),
            closing,
        };
        if let Some(actor) = actor {
            // Whoever still holds it may send to it.
            while Arc::strong_count(&actor) > 1 || !actor.is_idle() {
                if Instant::now() > deadline {
                    self.inner.actors.lock().insert(did.clone(), actor);
                    return Err(WriteError::Busy);
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(closed)
    }

    /// Removes a repo with all that it has: records, blob rows, staged generations. `beside` goes into the same group of the log,
    /// behind the removal: the account's rows, the event that tells of it. Returns the removal's LSN when it is durable and
    /// applied. From then on the repo is in no answer, and the same DID may get a new one.
    ///
    /// Writes that came before it are made first; those that come meanwhile are refused as [`WriteError::Busy`], those
    /// that come later as [`WriteError::RepoNotFound`].
    ///
    /// # Errors
    /// [`WriteError::RepoNotFound`]; [`WriteError::Busy`] when its writes do not end in time or the log is full: nothing was
    /// done; [`WriteError::Closed`] and [`WriteError::Unconfirmed`]: recovery decides.
    pub async fn remove(&self, did: &Did, beside: Vec<EntryDraft>) -> Result<Lsn, WriteError> {
        self.remove_and(did, beside, None).await
    }

    /// As [`Repos::remove`], for an account that goes with its repo, if it ever had one: `beside` holds the changeset whose rows
    /// `locks` keeps.
    pub(crate) async fn remove_with_account(
        &self,
        did: &Did,
        beside: Vec<EntryDraft>,
        locks: LockGuard,
    ) -> Result<Lsn, WriteError> {
        self.remove_and(did, beside, Some(locks)).await
    }

    async fn remove_and(
        &self,
        did: &Did,
        beside: Vec<EntryDraft>,
        locks: Option<LockGuard>,
    ) -> Result<Lsn, WriteError> {
        let (repos, of) = (self.clone(), did.clone());
        let (reply, answer) = oneshot::channel();
        // A task of its own: a caller that goes away must not open the repo to writes before its removal is applied.
        tokio::spawn(async move {
            let _late = reply.send(Box::pin(repos.remove_now(&of, beside, locks)).await);
        });
        let removed = self.inner.shared.engine.in_time(answer).await?;
        removed.map_err(|_| internal("the removal's task ended"))?
    }

    async fn remove_now(
        &self,
        did: &Did,
        beside: Vec<EntryDraft>,
        locks: Option<LockGuard>,
    ) -> Result<Lsn, WriteError> {
        let shared = &self.inner.shared;
        let closed = self.close(did, true).await?;
        if locks.is_none() {
            self.must_exist(did)?;
        }
        let removal = EntryDraft::private(vec![Change::RepoRemoved { did: did.clone() }]);
        let group = std::iter::once(removal).chain(beside).collect();
        let receipt = shared.engine.append(group)?;
        if let Some(locks) = locks {
            locks.logged();
        }
        let lsns = receipt.durable().await;
        let lsns = lsns.map_err(|error| WriteError::Closed(error.to_string()))?;
        self.inner.removals.fetch_add(1, Ordering::AcqRel);
        drop(closed);
        tracing::info!(%did, lsn = lsns.first.get(), "a repo was removed");
        metrics::counter!("pds_repos_removed_total").increment(1);
        Ok(lsns.first)
    }

    /// Hands the log an entry that belongs to a repo and is not made by its actor, such as a blob's: never behind the
    /// removal of the repo that it was meant for.
    ///
    /// # Errors
    /// [`WriteError::RepoNotFound`], [`WriteError::Busy`]: nothing was done. [`WriteError::Closed`].
    pub fn append_for(&self, did: &Did, draft: EntryDraft) -> Result<Receipt, WriteError> {
        let before = self.inner.removals.load(Ordering::Acquire);
        self.must_exist(did)?;
        // A removal closes the repo first and appends later, so what is appended under this lock comes before it.
        let closed = self.inner.closed.lock();
        let leaving = closed.get(did).is_some_and(|closing| closing.removal);
        if leaving || self.inner.removals.load(Ordering::Acquire) != before {
            return Err(WriteError::Busy);
        }
        Ok(self.inner.shared.engine.append(vec![draft])?)
    }

    fn must_exist(&self, did: &Did) -> Result<(), WriteError> {
        let reader = self.inner.shared.engine.reader().map_err(internal)?;
        match reader.repo(did).map_err(internal)? {
            Some(_) => Ok(()),
            None => Err(WriteError::RepoNotFound(did.clone())),
        }
    }
}
