//! Service tokens that have been used: one that names itself (`jti`) is good once.
//!
//! What is remembered is bounded. When it is full, what would expire next goes first: it is of the least use to a thief. It is
//! memory only, so a restart forgets; a token lives for a minute, and never longer than its `exp`.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

/// Tokens that are remembered at once; about 100 bytes each.
pub const REMEMBERED: usize = 65_536;

type Key = [u8; 16];

#[derive(Default)]
struct Used {
    until: HashMap<Key, u64>,
    order: BTreeSet<(u64, Key)>,
}

impl Used {
    fn forget(&mut self, key: &Key) {
        if let Some(until) = self.until.remove(key) {
            self.order.remove(&(until, *key));
        }
    }
}

/// The tokens that were used. Cheap to clone; clones share what they remember.
#[derive(Clone)]
pub struct ReplayCache {
    used: Arc<Mutex<Used>>,
    capacity: usize,
}

/// A token that was used now. Dropped without [`Use::keep`], it may be used again: what it was for did not happen.
#[must_use = "a use that is dropped did not happen"]
pub struct Use {
    cache: ReplayCache,
    key: Option<Key>,
}

impl Use {
    /// The token is used up.
    pub fn keep(mut self) {
        self.key = None;
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        if let Some(key) = &self.key {
            self.cache.used.lock().forget(key);
        }
    }
}

impl Default for ReplayCache {
    fn default() -> ReplayCache {
        ReplayCache::new(REMEMBERED)
    }
}

impl ReplayCache {
    /// Remembers at most `capacity` tokens.
    #[must_use]
    pub fn new(capacity: usize) -> ReplayCache {
        ReplayCache {
            used: Arc::default(),
            capacity: capacity.max(1),
        }
    }

    /// Uses the token that `issuer` calls `id` and that is good until `until`; `None` if that happened before. All times are
    /// seconds since 1970.
    pub fn take(&self, issuer: &str, id: &str, until: u64, now: u64) -> Option<Use> {
        // No DID has a line break, so the two cannot run into each other.
        let digest = Sha256::new()
            .chain_update(issuer)
            .chain_update("\n")
            .chain_update(id)
            .finalize();
        let mut key = Key::default();
        for (to, from) in key.iter_mut().zip(digest) {
            *to = from;
        }
        let mut used = self.used.lock();
        while let Some((_, expired)) = used.order.first().copied().filter(|(end, _)| *end <= now) {
            used.forget(&expired);
        }
        if used.until.contains_key(&key) {
            return None;
        }
        if used.order.len() >= self.capacity
            && let Some((_, next)) = used.order.first().copied()
        {
            used.forget(&next);
        }
        used.until.insert(key, until);
        used.order.insert((until, key));
        Some(Use {
            cache: self.clone(),
            key: Some(key),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: &str = "did:plc:alice";

    #[test]
    fn a_token_is_good_once_and_again_if_nothing_came_of_it() {
        let cache = ReplayCache::default();
        cache.take(ALICE, "a", 60, 0).unwrap().keep();
        assert!(cache.take(ALICE, "a", 60, 1).is_none());
        cache.take("did:plc:bob", "a", 60, 1).unwrap().keep();
        let failed = cache.take(ALICE, "b", 60, 1).unwrap();
        assert!(cache.take(ALICE, "b", 60, 1).is_none(), "while it is being used");
        drop(failed);
        assert!(cache.take(ALICE, "b", 60, 1).is_some());
    }

    #[test]
    fn the_expired_are_forgotten_and_at_the_bound_the_next_to_expire() {
        let cache = ReplayCache::new(2);
        for (id, until) in [("late", 90), ("soon", 30), ("third", 60)] {
            cache.take(ALICE, id, until, 0).unwrap().keep();
        }
        for id in ["late", "third"] {
            assert!(cache.take(ALICE, id, 90, 0).is_none(), "{id}");
        }
        assert!(cache.take(ALICE, "soon", 30, 0).is_some());
        assert!(cache.used.lock().until.len() <= 2);
        cache.take(ALICE, "fourth", 200, 100).unwrap().keep();
        assert_eq!(cache.used.lock().until.len(), 1, "all others have expired");
    }
}
