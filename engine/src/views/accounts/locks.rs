//! Who may prepare a transaction over which keys, until the last one over them is in the view.
//!
//! A prepared transaction has seen the view without the transactions that are on their way through the log. Two things
//! keep that from doing harm:
//!
//! - *Keys*, which callers declare (`did:…`, `handle:…`): a transaction waits until all of its keys are free, first
//!   come, first served. A transaction joins the queues of all its keys in one step and holds nothing while it waits
//!   for the rest, so there is one order for all and no deadlock.
//! - *Rows*, which the changeset itself names: whoever touches a row or a unique value that an unfinished transaction
//!   touches is turned away. This is the net under the keys. Without it, one forgotten key would put a changeset into
//!   the log that cannot be applied, and no start could get past it.
//!
//! Both are held by a [`LockGuard`], and go when its transaction is in the view or its guard is dropped.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::error::AccountsError;

/// The name of something that at most one unfinished transaction may concern.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockKey(String);

impl LockKey {
    /// Everything of one account.
    #[must_use]
    pub fn did(did: &str) -> LockKey {
        LockKey(format!("did:{did}"))
    }

    /// A handle, whoever has or wants it; case does not matter.
    #[must_use]
    pub fn handle(handle: &str) -> LockKey {
        LockKey(format!("handle:{}", handle.to_ascii_lowercase()))
    }

    /// An e-mail address, whoever has or wants it; case does not matter.
    #[must_use]
    pub fn email(email: &str) -> LockKey {
        LockKey(format!("email:{}", email.to_ascii_lowercase()))
    }

    /// A token that can be used up: the hash under which it is stored.
    #[must_use]
    pub fn token(id: &str) -> LockKey {
        LockKey(format!("token:{id}"))
    }

    /// An invite code.
    #[must_use]
    pub fn invite(code: &str) -> LockKey {
        LockKey(format!("invite:{code}"))
    }
}

/// A row or a unique value, by digest, and whether nobody else may touch it at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    /// Truncated SHA-256 of what is claimed.
    pub digest: [u8; 16],
    /// The table it belongs to, for the error.
    pub table: String,
    /// False for a row that is only referred to: many may do that at once.
    pub exclusive: bool,
}

/// All keys, rows and waiting transactions.
#[derive(Debug)]
pub(super) struct Locks {
    state: Mutex<State>,
    tickets_max: usize,
}

#[derive(Debug, Default)]
struct State {
    next_id: u64,
    tickets: HashMap<u64, Ticket>,
    /// Who holds a key (the front) and who waits for it.
    queues: HashMap<LockKey, VecDeque<u64>>,
    rows: HashMap<[u8; 16], Vec<(u64, bool)>>,
    changesets: HashMap<[u8; 32], u64>,
}

#[derive(Debug, Default)]
struct Ticket {
    keys: Vec<LockKey>,
    /// Of how many of its keys the ticket is not the front.
    behind: usize,
    wake: Option<oneshot::Sender<()>>,
    rows: Vec<[u8; 16]>,
    changeset: Option<[u8; 32]>,
}

impl Locks {
    /// No keys held; at most `tickets_max` transactions may hold or await keys.
    pub fn new(tickets_max: usize) -> Arc<Locks> {
        Arc::new(Locks {
            state: Mutex::default(),
            tickets_max,
        })
    }

    /// Waits until all of `keys` are free, at most for `wait`. Dropping the future leaves the queues.
    pub async fn acquire(
        self: &Arc<Locks>,
        mut keys: Vec<LockKey>,
        wait: Duration,
    ) -> Result<LockGuard, AccountsError> {
        keys.sort_unstable();
        keys.dedup();
        let (guard, granted) = self.enqueue(keys)?;
        if let Some(granted) = granted {
            // The sender lives in the ticket, which the guard keeps; it cannot vanish while we wait.
            if tokio::time::timeout(wait, granted).await.is_err() {
                return Err(AccountsError::LockTimeout { waited: wait });
            }
        }
        Ok(guard)
    }

    fn enqueue(
        self: &Arc<Locks>,
        keys: Vec<LockKey>,
    ) -> Result<(LockGuard, Option<oneshot::Receiver<()>>), AccountsError> {
        let mut state = self.state.lock();
        if state.tickets.len() >= self.tickets_max {
            return Err(AccountsError::Busy { what: "transactions" });
        }
        let id = state.next_id;
        state.next_id += 1;
        let mut behind = 0;
        for key in &keys {
            let queue = state.queues.entry(key.clone()).or_default();
            queue.push_back(id);
            behind += usize::from(queue.len() > 1);
        }
        let (wake, granted) = if behind > 0 {
            let (wake, granted) = oneshot::channel();
            (Some(wake), Some(granted))
        } else {
            (None, None)
        };
        state.tickets.insert(
            id,
            Ticket {
                keys,
                behind,
                wake,
                ..Ticket::default()
            },
        );
        Ok((
            LockGuard {
                locks: Arc::clone(self),
                id,
                logged: false,
            },
            granted,
        ))
    }

    /// Claims the rows of a prepared transaction, all or none.
    pub fn claim(
        &self,
        guard: &LockGuard,
        claims: &[Claim],
        changeset: [u8; 32],
    ) -> Result<(), AccountsError> {
        let mut state = self.state.lock();
        for claim in claims {
            let holders = state.rows.get(&claim.digest).map_or(&[][..], Vec::as_slice);
            if holders
                .iter()
                .any(|(id, exclusive)| *id != guard.id && (*exclusive || claim.exclusive))
            {
                return Err(AccountsError::Undeclared {
                    table: claim.table.clone(),
                });
            }
        }
        for claim in claims {
            state
                .rows
                .entry(claim.digest)
                .or_default()
                .push((guard.id, claim.exclusive));
        }
        state.changesets.insert(changeset, guard.id);
        if let Some(ticket) = state.tickets.get_mut(&guard.id) {
            ticket.rows = claims.iter().map(|claim| claim.digest).collect();
            ticket.changeset = Some(changeset);
        }
        Ok(())
    }

    /// Whether a changeset that is being applied may belong to a transaction prepared here. False throughout a replay,
    /// which saves it the digests.
    pub fn any_unfinished(&self) -> bool {
        !self.state.lock().changesets.is_empty()
    }

    /// Frees what the transactions with these changesets held: they are in the view now.
    pub fn applied(&self, changesets: &[[u8; 32]]) {
        let mut state = self.state.lock();
        for changeset in changesets {
            if let Some(id) = state.changesets.get(changeset).copied() {
                state.release(id);
            }
        }
    }

    /// How many transactions hold or await keys.
    #[cfg(test)]
    pub fn tickets(&self) -> usize {
        self.state.lock().tickets.len()
    }
}

impl State {
    fn release(&mut self, id: u64) {
        let Some(ticket) = self.tickets.remove(&id) else {
            return;
        };
        if let Some(changeset) = ticket.changeset {
            self.changesets.remove(&changeset);
        }
        for row in ticket.rows {
            if let Some(holders) = self.rows.get_mut(&row) {
                holders.retain(|(holder, _)| *holder != id);
                if holders.is_empty() {
                    self.rows.remove(&row);
                }
            }
        }
        for key in ticket.keys {
            let Some(queue) = self.queues.get_mut(&key) else {
                continue;
            };
            let was_front = queue.front() == Some(&id);
            queue.retain(|waiting| *waiting != id);
            let Some(front) = queue.front().copied() else {
                self.queues.remove(&key);
                continue;
            };
            if !was_front {
                continue;
            }
            if let Some(next) = self.tickets.get_mut(&front) {
                next.behind -= 1;
                if next.behind == 0
                    && let Some(wake) = next.wake.take()
                {
                    // A receiver that is gone has timed out; its guard is about to release the ticket.
                    let _ = wake.send(());
                }
            }
        }
    }
}

/// Holds a transaction's keys and rows. They become free when its changeset is applied, or when the guard is dropped.
///
/// Drop it without more ado if the changeset was *not* given to the log. Once the log has accepted it, call
/// [`LockGuard::logged`] before the next `await`: a caller that is cancelled while its entry is on the way must not
/// free keys whose change is still to come.
#[derive(Debug)]
#[must_use = "dropping the guard frees the keys"]
pub struct LockGuard {
    locks: Arc<Locks>,
    id: u64,
    logged: bool,
}

impl LockGuard {
    /// The log has accepted the changeset; from now on only its application frees the keys. If the log fails before
    /// that, they stay locked, which is right: nothing may be prepared on a state that may or may not be.
    ///
    /// A transaction that changed nothing has no changeset, whose application would free the keys: they are free at once.
    pub fn logged(mut self) {
        let to_be_applied = |state: &State| state.tickets.get(&self.id)?.changeset;
        let changeset = to_be_applied(&self.locks.state.lock());
        self.logged = changeset.is_some();
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        if !self.logged {
            self.locks.state.lock().release(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    const WAIT: Duration = Duration::from_secs(20);

    /// Whether a future is ready on one poll.
    fn ready<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn transactions_over_one_handle_wait_in_order_and_others_do_not() {
        let locks = Locks::new(10);
        let first = locks
            .acquire(vec![LockKey::handle("A.test")], WAIT)
            .await
            .unwrap();
        let mut second = pin!(locks.acquire(vec![LockKey::handle("a.test"), LockKey::did("did:x")], WAIT));
        assert!(ready(second.as_mut()).is_none());
        let mut third = pin!(locks.acquire(vec![LockKey::handle("a.test")], WAIT));
        assert!(ready(third.as_mut()).is_none());
        let other = locks
            .acquire(vec![LockKey::handle("b.test")], WAIT)
            .await
            .unwrap();
        drop(other);
        drop(first);
        assert!(ready(third.as_mut()).is_none(), "the second came first");
        let second = ready(second.as_mut()).unwrap().unwrap();
        drop(second);
        drop(ready(third.as_mut()).unwrap().unwrap());
        assert_eq!(locks.tickets(), 0);
    }

    #[tokio::test]
    async fn crossing_keys_do_not_deadlock() {
        let locks = Locks::new(100);
        let (a, b) = (LockKey::did("did:a"), LockKey::did("did:b"));
        let mut tasks = Vec::new();
        for turn in 0..40 {
            let keys = if turn % 2 == 0 {
                vec![a.clone(), b.clone()]
            } else {
                vec![b.clone(), a.clone(), b.clone()]
            };
            let locks = Arc::clone(&locks);
            tasks.push(tokio::spawn(async move {
                let guard = locks.acquire(keys, WAIT).await.unwrap();
                tokio::task::yield_now().await;
                drop(guard);
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(locks.tickets(), 0);
    }

    #[tokio::test]
    async fn a_wait_ends_with_its_time_and_a_cancelled_one_leaves_the_queue() {
        let locks = Locks::new(10);
        let held = locks.acquire(vec![LockKey::did("did:a")], WAIT).await.unwrap();
        let late = locks
            .acquire(vec![LockKey::did("did:a")], Duration::from_millis(5))
            .await;
        assert!(matches!(late, Err(AccountsError::LockTimeout { .. })));
        {
            let mut cancelled = pin!(locks.acquire(vec![LockKey::did("did:a")], WAIT));
            assert!(ready(cancelled.as_mut()).is_none());
            assert_eq!(locks.tickets(), 2);
        }
        assert_eq!(locks.tickets(), 1);
        drop(held);
    }

    #[tokio::test]
    async fn too_many_transactions_are_refused() {
        let locks = Locks::new(1);
        let _held = locks.acquire(vec![LockKey::did("did:a")], WAIT).await.unwrap();
        let refused = locks.acquire(vec![LockKey::did("did:b")], WAIT).await;
        assert!(matches!(refused, Err(AccountsError::Busy { .. })));
    }

    #[tokio::test]
    async fn a_logged_guard_frees_its_keys_only_when_its_changeset_is_applied() {
        let locks = Locks::new(10);
        let guard = locks.acquire(vec![LockKey::token("t")], WAIT).await.unwrap();
        locks.claim(&guard, &[], [7; 32]).unwrap();
        guard.logged();
        let mut next = pin!(locks.acquire(vec![LockKey::token("t")], WAIT));
        assert!(ready(next.as_mut()).is_none());
        locks.applied(&[[7; 32]]);
        assert!(ready(next.as_mut()).is_some());
    }

    #[tokio::test]
    async fn a_logged_guard_without_a_changeset_frees_its_keys_at_once() {
        let locks = Locks::new(10);
        let guard = locks.acquire(vec![LockKey::token("t")], WAIT).await.unwrap();
        let mut next = pin!(locks.acquire(vec![LockKey::token("t")], WAIT));
        assert!(ready(next.as_mut()).is_none());
        guard.logged();
        drop(ready(next.as_mut()).unwrap().unwrap());
        assert_eq!(locks.tickets(), 0);
    }
}
