//! Points in this process's memory: a map in so many parts, each under a lock of its own that is held for a look-up.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use parking_lot::Mutex;

use super::{Charge, Count};

/// Parts of the map.
const SHARDS: usize = 64;
/// Counters of one part: 16 MiB for all parts together. Beyond them, small ones are forgotten.
const SHARD_MAX: usize = 4096;
/// Counters below which nothing is looked through.
const SWEEP_FROM: usize = 256;
/// Counters that are compared to find one to forget.
const SAMPLE: usize = 16;

/// Counters by bucket and key. Keys are kept as 128 bits of keyed hashes, so nobody can aim at another's counter.
pub(super) struct Memory {
    hashers: [RandomState; 2],
    shards: Box<[Mutex<Shard>]>,
}

#[derive(Default)]
struct Shard {
    counters: HashMap<u128, Counter>,
    /// At this many counters those that have ended are removed.
    sweep_at: usize,
}

#[derive(Clone, Copy)]
struct Counter {
    used: u32,
    /// When it ends, microseconds since 1970.
    ends: u64,
    window: u64,
}

impl Counter {
    /// A clock that was set back must not make it last.
    fn is_over(&self, now: u64) -> bool {
        self.ends <= now || self.ends > now.saturating_add(self.window)
    }
}

impl Memory {
    pub(super) fn new() -> Memory {
        Memory {
            hashers: [RandomState::new(), RandomState::new()],
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    /// Adds points and tells how many there are.
    pub(super) fn add(&self, charge: &Charge<'_>, now: u64) -> Count {
        let [first, second] = &self.hashers;
        let named = (charge.bucket.name, charge.key);
        let (high, low) = (first.hash_one(named), second.hash_one(named));
        let id = (u128::from(high) << 64) | u128::from(low);
        let window = super::micros(charge.bucket.window);
        let at = usize::try_from(high).unwrap_or_default() % self.shards.len().max(1);
        let Some(shard) = self.shards.get(at) else {
            return Count::new(charge, charge.points, now.saturating_add(window));
        };
        let mut shard = shard.lock();
        if let Some(counter) = shard.counters.get_mut(&id)
            && !counter.is_over(now)
        {
            counter.used = counter.used.saturating_add(charge.points);
            return Count::new(charge, counter.used, counter.ends);
        }
        shard.make_room(now);
        let counter = Counter {
            used: charge.points,
            ends: now.saturating_add(window),
            window,
        };
        shard.counters.insert(id, counter);
        Count::new(charge, counter.used, counter.ends)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().counters.len()).sum()
    }
}

impl Shard {
    fn make_room(&mut self, now: u64) {
        let counters = &mut self.counters;
        if counters.len() >= self.sweep_at.max(SWEEP_FROM) {
            counters.retain(|_, counter| !counter.is_over(now));
            // Twice as many before the next look: each counter is looked at so often on average.
            self.sweep_at = (2 * counters.len()).min(SHARD_MAX);
        }
        if counters.len() >= SHARD_MAX {
            // Whoever floods with ever new keys has the small counters.
            let smallest = counters
                .iter()
                .take(SAMPLE)
                .min_by_key(|(_, counter)| counter.used);
            if let Some(id) = smallest.map(|(id, _)| *id) {
                counters.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Bucket, Key};
    use super::*;

    static BUCKET: Bucket = Bucket {
        name: "test",
        points: 3,
        window: Duration::from_secs(60),
    };
    const SECOND: u64 = 1_000_000;

    fn charge(key: &str, points: u32) -> Charge<'_> {
        Charge {
            bucket: &BUCKET,
            key: Key::Text(key),
            points,
        }
    }

    #[test]
    fn points_add_up_until_the_window_ends_and_belong_to_one_key_and_bucket() {
        static OTHER: Bucket = Bucket {
            name: "other",
            points: 3,
            window: Duration::from_secs(60),
        };
        let memory = Memory::new();
        let start = 1_000 * SECOND;
        for (key, at, used, ends) in [
            ("a", 0, 2, 60),
            ("a", 30, 4, 60),
            ("b", 30, 2, 90),
            ("a", 59, 6, 60),
            ("a", 60, 2, 120),
        ] {
            let count = memory.add(&charge(key, 2), start + at * SECOND);
            assert_eq!(
                (count.used, count.ends),
                (used, start + ends * SECOND),
                "{key} {at}"
            );
        }
        let elsewhere = Charge {
            bucket: &OTHER,
            ..charge("a", 1)
        };
        assert_eq!(memory.add(&elsewhere, start).used, 1);
        assert_eq!(
            memory.add(&charge("a", u32::MAX), start + 61 * SECOND).used,
            u32::MAX
        );
    }

    #[test]
    fn a_clock_that_is_set_back_lets_nobody_wait_for_long() {
        let memory = Memory::new();
        let late = 1_000_000 * SECOND;
        assert_eq!(memory.add(&charge("a", 3), late).used, 3);
        let count = memory.add(&charge("a", 1), 1_000 * SECOND);
        assert_eq!((count.used, count.ends), (1, 1_060 * SECOND));
    }

    #[test]
    fn a_flood_of_keys_takes_bounded_memory_and_leaves_those_that_are_used_up() {
        let memory = Memory::new();
        let keys: Vec<String> = (0..600_000).map(|n| n.to_string()).collect();
        for _ in 0..50 {
            memory.add(&charge("culprit", 1), SECOND);
        }
        for key in &keys {
            memory.add(&charge(key, 1), SECOND);
        }
        assert!(memory.len() <= SHARDS * SHARD_MAX, "{}", memory.len());
        assert_eq!(memory.add(&charge("culprit", 1), SECOND).used, 51);
        // Later nobody's are in the way, and they go when others come.
        for key in keys.iter().take(SHARDS * SHARD_MAX) {
            memory.add(&charge(key, 1), 100 * SECOND);
        }
        assert!(memory.len() <= SHARDS * SHARD_MAX, "{}", memory.len());
    }
}
