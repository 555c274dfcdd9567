//! The count of what a store was asked: since the start, and of the last day.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::store::counted::{Class, Purpose};

const CLASSES: usize = Class::ALL.len();
const PURPOSES: usize = Purpose::ALL.len();
const HOUR: Duration = Duration::from_secs(3_600);
/// Hours that are remembered, the present one included.
const HOURS: u64 = 25;

/// Requests and bytes, in total and by the hour. Survives nothing: [`Day::measured`] says how long it has been counting.
#[derive(Debug)]
pub struct Ledger {
    began: Instant,
    requests: [[AtomicU64; PURPOSES]; CLASSES],
    up: [AtomicU64; PURPOSES],
    down: [AtomicU64; PURPOSES],
    hours: Mutex<VecDeque<Hour>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Hour {
    number: u64,
    requests: [u64; CLASSES],
    started: [u64; CLASSES],
    up: u64,
    down: u64,
    segments_down: u64,
}

/// What was asked in the last day, or since the start if that is less.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Day {
    /// How long it was counted.
    pub measured: Duration,
    requests: [u64; CLASSES],
    started: [u64; CLASSES],
    /// Bytes that went to the store.
    pub up: u64,
    /// Bytes that came from the store.
    pub down: u64,
    /// What of that was read of segments, by drills, scrubbing and reads of what is away.
    pub segments_down: u64,
}

impl Day {
    /// Requests of a class.
    #[must_use]
    pub fn requests(&self, class: Class) -> u64 {
        self.requests.get(class as usize).copied().unwrap_or_default()
    }

    /// Requests of a class but those of the start, which do not come again every day.
    #[must_use]
    pub fn recurring(&self, class: Class) -> u64 {
        let started = self.started.get(class as usize).copied().unwrap_or_default();
        self.requests(class).saturating_sub(started)
    }
}

impl Default for Ledger {
    fn default() -> Ledger {
        Ledger {
            began: Instant::now(),
            requests: Default::default(),
            up: Default::default(),
            down: Default::default(),
            hours: Mutex::default(),
        }
    }
}

impl Ledger {
    /// Counts a request.
    pub fn count(&self, class: Class, purpose: Purpose, up: u64, down: u64) {
        let counters = [
            (self.cell(class, purpose), 1),
            (self.up.get(purpose as usize), up),
            (self.down.get(purpose as usize), down),
        ];
        for (counter, more) in counters {
            if let Some(counter) = counter {
                counter.fetch_add(more, Ordering::Relaxed);
            }
        }
        let (class_word, purpose_word) = (class.word(), purpose.word());
        metrics::counter!("pds_replica_requests_total", "class" => class_word, "purpose" => purpose_word)
            .increment(1);
        for (direction, bytes) in [("up", up), ("down", down)] {
            if bytes > 0 {
                metrics::counter!("pds_replica_bytes_total", "direction" => direction, "purpose" => purpose_word)
                    .increment(bytes);
            }
        }
        let number = self.hour();
        let mut hours = self.hours.lock();
        if hours.back().is_none_or(|last| last.number < number) {
            hours.push_back(Hour {
                number,
                ..Hour::default()
            });
            while hours.front().is_some_and(|first| first.number + HOURS <= number) {
                hours.pop_front();
            }
        }
        if let Some(hour) = hours.back_mut() {
            if let Some(count) = hour.requests.get_mut(class as usize) {
                *count += 1;
            }
            if purpose == Purpose::Start
                && let Some(count) = hour.started.get_mut(class as usize)
            {
                *count += 1;
            }
            hour.up += up;
            hour.down += down;
            if matches!(
                purpose,
                Purpose::Segment | Purpose::Tier | Purpose::Drill | Purpose::Scrub
            ) {
                hour.segments_down += down;
            }
        }
    }

    fn cell(&self, class: Class, purpose: Purpose) -> Option<&AtomicU64> {
        self.requests.get(class as usize)?.get(purpose as usize)
    }

    fn hour(&self) -> u64 {
        self.began.elapsed().as_secs() / HOUR.as_secs()
    }

    /// Requests since the start, of a class and for a purpose.
    #[must_use]
    pub fn requests(&self, class: Class, purpose: Purpose) -> u64 {
        self.cell(class, purpose)
            .map_or(0, |cell| cell.load(Ordering::Relaxed))
    }

    /// Requests of a class since the start.
    #[must_use]
    pub fn of_class(&self, class: Class) -> u64 {
        Purpose::ALL
            .iter()
            .map(|purpose| self.requests(class, *purpose))
            .sum()
    }

    /// Bytes that went to the store for a purpose, since the start.
    #[must_use]
    pub fn up(&self, purpose: Purpose) -> u64 {
        self.up
            .get(purpose as usize)
            .map_or(0, |bytes| bytes.load(Ordering::Relaxed))
    }

    /// Bytes that came from the store for a purpose, since the start.
    #[must_use]
    pub fn down(&self, purpose: Purpose) -> u64 {
        self.down
            .get(purpose as usize)
            .map_or(0, |bytes| bytes.load(Ordering::Relaxed))
    }

    /// The last 24 to 25 hours, or what there is of them.
    #[must_use]
    pub fn last_day(&self) -> Day {
        let elapsed = self.began.elapsed();
        let number = self.hour();
        let first = (number + 1).saturating_sub(HOURS);
        let since = HOUR * u32::try_from(first).unwrap_or(u32::MAX);
        let mut day = Day {
            measured: elapsed.saturating_sub(since),
            ..Day::default()
        };
        for hour in self.hours.lock().iter().filter(|hour| hour.number >= first) {
            for (sum, more) in day.requests.iter_mut().zip(hour.requests) {
                *sum += more;
            }
            for (sum, more) in day.started.iter_mut().zip(hour.started) {
                *sum += more;
            }
            day.up += hour.up;
            day.down += hour.down;
            day.segments_down += hour.segments_down;
        }
        day
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_last_day_forgets_what_is_older_and_tells_how_long_it_counts() {
        let ledger = Ledger::default();
        ledger.count(Class::Read, Purpose::Start, 0, 1_000);
        ledger.count(Class::Write, Purpose::Chunk, 10, 0);
        tokio::time::advance(HOUR / 2).await;
        let day = ledger.last_day();
        assert_eq!(day.measured, HOUR / 2);
        assert_eq!((day.requests(Class::Read), day.recurring(Class::Read)), (1, 0));
        assert_eq!((day.requests(Class::Write), day.recurring(Class::Write)), (1, 1));
        assert_eq!((day.up, day.down), (10, 1_000));

        for _ in 0..60 {
            tokio::time::advance(HOUR).await;
            ledger.count(Class::Write, Purpose::Chunk, 10, 0);
        }
        let day = ledger.last_day();
        assert_eq!(day.measured, HOUR * 24 + HOUR / 2);
        assert_eq!(day.requests(Class::Write), 25);
        assert_eq!((day.up, day.requests(Class::Read)), (250, 0));
        assert!(ledger.hours.lock().len() <= 25);

        tokio::time::advance(HOUR * 100).await;
        let day = ledger.last_day();
        assert_eq!(day.requests(Class::Write), 0, "nothing counts as nothing");
        assert_eq!(ledger.of_class(Class::Write), 61, "the total forgets nothing");
    }
}
