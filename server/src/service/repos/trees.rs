//! What the repos in memory may take together: one count of bytes, which every actor keeps up to date for its own tree.
//!
//! Below the budget a tree keeps what it has touched. Near it, trees that are written to keep no more than
//! [`SLIM_BYTES`]; beyond it, the repos that were not written to for longest are forgotten. A repo whose commits are on their
//! way cannot be forgotten, so the budget may be passed by what the writes that are admitted at once touch.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What an actor takes without its tree: its task, its mailbox, its place in the map.
pub(super) const ACTOR_BYTES: usize = 8 << 10;
/// Size of one tree above which it forgets what it can read again, however much room there is.
const TRIM_BYTES: usize = 1 << 20;
/// The same while the budget is nearly used up.
const SLIM_BYTES: usize = 12 << 10;

/// The shared count.
#[derive(Debug)]
pub(super) struct Trees {
    used: AtomicUsize,
    most: usize,
}

impl Trees {
    pub(super) fn new(most: usize) -> Arc<Trees> {
        Arc::new(Trees {
            used: AtomicUsize::new(0),
            most,
        })
    }

    /// Bytes of all trees in memory, and of their actors.
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// How many bytes should go, so that there is some room again; 0 while there is enough.
    pub(super) fn excess(&self) -> usize {
        let used = self.used();
        if used <= self.most {
            return 0;
        }
        used - self.most / 16 * 15
    }

    /// Whether a tree of `bytes` should forget what it can.
    pub(super) fn should_trim(&self, bytes: usize) -> bool {
        let tight = self.used() > self.most / 8 * 7;
        bytes > if tight { SLIM_BYTES } else { TRIM_BYTES }
    }
}

/// The part of one actor; given back when dropped.
#[derive(Debug)]
pub(super) struct Charge {
    trees: Arc<Trees>,
    bytes: AtomicUsize,
}

impl Charge {
    /// The part of an actor that has no tree yet.
    pub(super) fn new(trees: &Arc<Trees>) -> Arc<Charge> {
        let charge = Charge {
            trees: trees.clone(),
            bytes: AtomicUsize::new(0),
        };
        charge.set(ACTOR_BYTES);
        Arc::new(charge)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The tree takes so much now.
    pub(super) fn tree(&self, bytes: usize) {
        self.set(ACTOR_BYTES + bytes);
    }

    /// Its memory is about to go.
    pub(super) fn release(&self) {
        self.set(0);
    }

    fn set(&self, bytes: usize) {
        let before = self.bytes.swap(bytes, Ordering::Relaxed);
        if bytes >= before {
            self.trees.used.fetch_add(bytes - before, Ordering::Relaxed);
        } else {
            self.trees.used.fetch_sub(before - bytes, Ordering::Relaxed);
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_charged_is_given_back_once() {
        let trees = Trees::new(4 * ACTOR_BYTES);
        let (first, second) = (Charge::new(&trees), Charge::new(&trees));
        first.tree(3 * ACTOR_BYTES);
        assert_eq!((first.bytes(), trees.used()), (4 * ACTOR_BYTES, 5 * ACTOR_BYTES));
        assert!(trees.excess() > ACTOR_BYTES && trees.should_trim(SLIM_BYTES + 1));
        first.release();
        drop(first);
        assert_eq!((trees.used(), trees.excess()), (ACTOR_BYTES, 0));
        assert!(!trees.should_trim(TRIM_BYTES) && trees.should_trim(TRIM_BYTES + 1));
        drop(second);
        assert_eq!(trees.used(), 0);
    }
}
