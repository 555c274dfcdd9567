//! Threads that compute password hashes: a bounded number, behind those of commits where both want the processor.
//!
//! Each keeps the memory of its hash from one to the next, instead of getting 19 MiB from the system page by page each time. A thread that had nothing to do for [`IDLE`] clears that memory, gives it back and ends, so that a server
//! where nobody logs in holds none.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use argon2::Block;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;
use zeroize::Zeroize;

/// How long a thread waits for the next hash before it ends.
const IDLE: Duration = Duration::from_secs(2);
/// How far the threads stand back behind those of commits, as a Unix niceness.
const NICENESS: i32 = 10;

/// The memory that a thread hashes in.
#[derive(Default)]
pub(super) struct Memory(Vec<Block>);

impl Memory {
    /// `count` blocks, with whatever the hash before left in them.
    pub(super) fn blocks(&mut self, count: usize) -> &mut [Block] {
        if self.0.len() < count {
            self.0.resize(count, Block::default());
        }
        self.0.get_mut(..count).unwrap_or_default()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(Zeroize::zeroize);
    }
}

type Job = Box<dyn FnOnce(&mut Memory) + Send>;

/// The threads. Whoever uses them bounds how many hashes wait.
pub(super) struct Hashers(Arc<Shared>);

struct Shared {
    most: usize,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Threads that wait for a job.
    idle: usize,
    threads: usize,
}

impl Hashers {
    /// At most `most` threads, each with the memory of one hash.
    pub(super) fn new(most: usize) -> Hashers {
        Hashers(Arc::new(Shared {
            most: most.max(1),
            state: Mutex::default(),
            work: Condvar::new(),
        }))
    }

    /// Computes `hash` on one of the threads; `None` if there can be no thread, or it panicked.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        hash: impl FnOnce(&mut Memory) -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        self.submit(Box::new(move |memory| {
            // The caller may have gone away.
            let _gone = sender.send(hash(memory));
        }));
        receiver.await.ok()
    }

    fn submit(&self, job: Job) {
        let mut state = self.0.state.lock();
        state.jobs.push_back(job);
        if state.idle >= state.jobs.len() {
            self.0.work.notify_one();
            return;
        }
        // One of them may have given its result already and be about to look for more.
        if state.threads >= self.0.most {
            return;
        }
        let shared = self.0.clone();
        let spawned = std::thread::Builder::new()
            .name("hashing".to_owned())
            .spawn(move || work(&shared));
        match spawned {
            Ok(_) => state.threads += 1,
            // Those that there are come to it.
            Err(error) if state.threads > 0 => {
                tracing::warn!(%error, "no further thread for password hashes");
            }
            Err(error) => {
                tracing::error!(%error, "no thread for password hashes");
                state.jobs.clear();
            }
        }
    }
}

fn work(shared: &Shared) {
    // A system that does not allow it shares evenly.
    let _evenly = rustix::process::setpriority_process(None, NICENESS);
    let mut memory = Memory::default();
    let mut state = shared.state.lock();
    loop {
        if let Some(job) = state.jobs.pop_front() {
            drop(state);
            // What a hash leaves in the memory is no state: the next one writes before it reads.
            if catch_unwind(AssertUnwindSafe(|| job(&mut memory))).is_err() {
                tracing::error!("a password hash panicked");
            }
            state = shared.state.lock();
            continue;
        }
        state.idle += 1;
        let late = shared.work.wait_for(&mut state, IDLE).timed_out();
        state.idle -= 1;
        if late && state.jobs.is_empty() {
            state.threads -= 1;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn threads(hashers: &Hashers) -> usize {
        hashers.0.state.lock().threads
    }

    #[tokio::test]
    async fn memory_is_kept_from_one_hash_to_the_next_and_a_panic_ends_nothing() {
        let hashers = Hashers::new(1);
        let mark = |memory: &mut Memory| {
            let block = &mut memory.blocks(4)[3];
            let found = block.as_ref()[0];
            block.as_mut()[0] = found + 1;
            found
        };
        assert_eq!(hashers.run(mark).await, Some(0));
        assert_eq!(hashers.run(|_| -> u64 { panic!("on purpose") }).await, None);
        assert_eq!(hashers.run(mark).await, Some(1));
        assert_eq!(threads(&hashers), 1);
    }

    #[tokio::test]
    async fn there_are_no_more_threads_than_allowed_and_every_hash_is_computed() {
        let hashers = Hashers::new(2);
        let all = (0..200).map(|n| hashers.run(move |_| n));
        let found = tokio::time::timeout(PATIENCE, futures_util::future::join_all(all)).await;
        assert!(found.unwrap().into_iter().eq((0..200).map(Some)));
        assert!(threads(&hashers) <= 2);
    }

    #[tokio::test]
    async fn two_at_once_get_two_threads_which_end_when_idle() {
        let hashers = Hashers::new(3);
        let barrier = Arc::new(std::sync::Barrier::new(2));
        let meet = |barrier: Arc<std::sync::Barrier>| move |_: &mut Memory| barrier.wait().is_leader();
        let both = tokio::time::timeout(PATIENCE, async {
            tokio::join!(
                hashers.run(meet(barrier.clone())),
                hashers.run(meet(barrier.clone()))
            )
        });
        let (first, second) = both.await.unwrap();
        assert_ne!(first.unwrap(), second.unwrap());
        assert_eq!(threads(&hashers), 2);
        let deadline = Instant::now() + PATIENCE;
        while threads(&hashers) > 0 {
            assert!(Instant::now() < deadline, "the threads stay");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(hashers.run(|_| 1).await, Some(1), "another one comes");
    }
}
