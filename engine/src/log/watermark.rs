//! How far a stage is done: the highest LSN that is, inclusive. Only ever rises, until it fails for good.
//!
//! Waiters are kept in order of what they wait for, so that an advance wakes exactly those it satisfies, in log order.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::lsn::Lsn;

/// The stage stopped for good; what was waited for may or may not have happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Failed {
    /// What happened, for an operator.
    pub reason: Arc<str>,
}

/// How far a stage is done. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Watermark {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Copy of `state.value` that is read without the lock.
    value: AtomicU64,
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    value: Lsn,
    failed: Option<Failed>,
    next_waiter: u64,
    waiters: BTreeMap<(Lsn, u64), Waiter>,
}

/// Who is told.
enum Waiter {
    Task(Waker),
    Call(Box<dyn FnOnce(Result<Lsn, Failed>) + Send>),
}

impl Waiter {
    fn tell(self, outcome: &Result<Lsn, Failed>) {
        match self {
            Waiter::Task(waker) => waker.wake(),
            Waiter::Call(call) => call(outcome.clone()),
        }
    }
}

impl std::fmt::Debug for Waiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Waiter::Task(_) => "Task",
            Waiter::Call(_) => "Call",
        })
    }
}

impl State {
    /// `Some` when a wait for `lsn` is over. What was reached stays reached, whatever failed later.
    fn outcome(&self, lsn: Lsn) -> Option<Result<Lsn, Failed>> {
        if self.value >= lsn {
            return Some(Ok(self.value));
        }
        self.failed.clone().map(Err)
    }
}

impl Watermark {
    /// A stage that is done up to and including `lsn`.
    #[must_use]
    pub fn at(lsn: Lsn) -> Watermark {
        let watermark = Watermark::default();
        watermark.advance(lsn);
        watermark
    }

    /// The highest LSN that is done.
    #[must_use]
    pub fn get(&self) -> Lsn {
        Lsn::saturating(self.shared.value.load(Ordering::Acquire))
    }

    /// Why the stage stopped, if it did.
    #[must_use]
    pub fn failed(&self) -> Option<Failed> {
        self.shared.state.lock().failed.clone()
    }

    /// Everything up to and including `lsn` is done. Does nothing if that was known, or after a failure.
    pub fn advance(&self, lsn: Lsn) {
        let reached = {
            let mut state = self.shared.state.lock();
            if lsn <= state.value || state.failed.is_some() {
                return;
            }
            state.value = lsn;
            self.shared.value.store(lsn.get(), Ordering::Release);
            let waiting = state.waiters.split_off(&(lsn, u64::MAX));
            std::mem::replace(&mut state.waiters, waiting)
        };
        self.shared.moved.notify_all();
        reached.into_values().for_each(|waiter| waiter.tell(&Ok(lsn)));
    }

    /// The stage stops for good. Everybody who still waits is told why; the first reason stays.
    pub fn fail(&self, reason: impl Into<Arc<str>>) {
        let failed = Failed {
            reason: reason.into(),
        };
        let waiting = {
            let mut state = self.shared.state.lock();
            if state.failed.is_some() {
                return;
            }
            state.failed = Some(failed.clone());
            std::mem::take(&mut state.waiters)
        };
        self.shared.moved.notify_all();
        let outcome = Err(failed);
        waiting.into_values().for_each(|waiter| waiter.tell(&outcome));
    }

    /// Resolves when everything up to and including `lsn` is done, with how far it is then.
    ///
    /// The future fails with [`Failed`] if the stage stopped before. Dropping it forgets the wait.
    pub fn wait(&self, lsn: Lsn) -> Wait {
        Wait {
            shared: Arc::clone(&self.shared),
            lsn,
            waiter: None,
        }
    }

    /// Calls `call` when everything up to and including `lsn` is done, or the stage has stopped before: once, on the thread
    /// that moves the watermark, or on this one if it is so already. It must be quick, and must not touch this watermark.
    pub fn on_reached(&self, lsn: Lsn, call: impl FnOnce(Result<Lsn, Failed>) + Send + 'static) {
        let mut state = self.shared.state.lock();
        if let Some(outcome) = state.outcome(lsn) {
            drop(state);
            call(outcome);
            return;
        }
        state.next_waiter += 1;
        let id = state.next_waiter;
        state.waiters.insert((lsn, id), Waiter::Call(Box::new(call)));
    }

    /// Resolves when the watermark is past `lsn`, with what it is then. At [`Lsn::MAX`] that is at once.
    pub fn changed_since(&self, lsn: Lsn) -> Wait {
        self.wait(lsn.next().unwrap_or(Lsn::MAX))
    }

    /// For threads: blocks until the watermark is past `lsn`, and tells what it is then; `None` after `timeout`.
    ///
    /// # Errors
    /// [`Failed`] if the stage stopped before.
    pub fn wait_past_blocking(&self, lsn: Lsn, timeout: Duration) -> Result<Option<Lsn>, Failed> {
        let deadline = Instant::now() + timeout;
        let wanted = lsn.next().unwrap_or(Lsn::MAX);
        let mut state = self.shared.state.lock();
        loop {
            if let Some(outcome) = state.outcome(wanted) {
                return outcome.map(Some);
            }
            if self.shared.moved.wait_until(&mut state, deadline).timed_out() {
                return state.outcome(wanted).transpose();
            }
        }
    }
}

/// A wait for a watermark; see [`Watermark::wait`].
#[derive(Debug)]
#[must_use = "a future waits only while it is polled"]
pub struct Wait {
    shared: Arc<Shared>,
    lsn: Lsn,
    waiter: Option<u64>,
}

impl Future for Wait {
    type Output = Result<Lsn, Failed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let mut state = this.shared.state.lock();
        if let Some(outcome) = state.outcome(this.lsn) {
            return Poll::Ready(outcome);
        }
        let id = *this.waiter.get_or_insert_with(|| {
            state.next_waiter += 1;
            state.next_waiter
        });
        state
            .waiters
            .insert((this.lsn, id), Waiter::Task(cx.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some(id) = self.waiter {
            self.shared.state.lock().waiters.remove(&(self.lsn, id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    fn lsn(n: u64) -> Lsn {
        Lsn::new(n).unwrap()
    }

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn poll(wait: &mut Wait, count: &Arc<Count>) -> Poll<Result<Lsn, Failed>> {
        let waker = Waker::from(Arc::clone(count));
        Pin::new(wait).poll(&mut Context::from_waker(&waker))
    }

    #[test]
    fn an_advance_wakes_exactly_those_it_satisfies() {
        let mark = Watermark::at(lsn(1));
        let counts: Vec<Arc<Count>> = (0..5).map(|_| Arc::default()).collect();
        let mut waits: Vec<Wait> = (0..5).map(|n| mark.wait(lsn(n + 1))).collect();
        assert!(poll(&mut waits[0], &counts[0]).is_ready());
        for n in 1..5 {
            assert!(poll(&mut waits[n], &counts[n]).is_pending());
            assert!(
                poll(&mut waits[n], &counts[n]).is_pending(),
                "polling twice registers once"
            );
        }
        mark.advance(lsn(3));
        let woken: Vec<usize> = counts
            .iter()
            .map(|count| count.0.load(Ordering::SeqCst))
            .collect();
        assert_eq!(woken, [0, 1, 1, 0, 0]);
        assert_eq!(poll(&mut waits[2], &counts[2]), Poll::Ready(Ok(lsn(3))));
        drop(waits);
        assert!(
            mark.shared.state.lock().waiters.is_empty(),
            "a dropped wait leaves nothing behind"
        );
    }

    #[test]
    fn it_never_goes_back_and_a_failure_is_final() {
        let mark = Watermark::at(lsn(5));
        mark.advance(lsn(3));
        assert_eq!(mark.get(), lsn(5));
        let count = Arc::default();
        let mut wait = mark.wait(lsn(6));
        assert!(poll(&mut wait, &count).is_pending());
        mark.fail("disk gone");
        mark.fail("later reason");
        mark.advance(lsn(9));
        assert_eq!(mark.get(), lsn(5));
        assert_eq!(
            poll(&mut wait, &count),
            Poll::Ready(Err(Failed {
                reason: "disk gone".into()
            }))
        );
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        let mut reached = mark.wait(lsn(5));
        assert!(
            matches!(poll(&mut reached, &count), Poll::Ready(Ok(_))),
            "what was reached stays reached"
        );
    }

    #[test]
    fn a_thread_waits_with_a_deadline() {
        let mark = Watermark::default();
        assert_eq!(mark.wait_past_blocking(lsn(0), Duration::ZERO), Ok(None));
        let other = mark.clone();
        let thread = std::thread::spawn(move || other.wait_past_blocking(lsn(6), Duration::from_secs(30)));
        mark.advance(lsn(6));
        mark.advance(lsn(7));
        assert_eq!(thread.join().unwrap(), Ok(Some(lsn(7))));
    }
}
