//! The recent events of the firehose in memory, shared by all subscribers.
//!
//! A subscriber is a position, not a queue: one event is one reference-counted buffer however many read it, and a
//! subscriber that stops reading costs nothing but its place. The ring holds the newest events up to a number of
//! bytes; who falls out of it while live is too slow.

use std::collections::VecDeque;

use axum::body::Bytes;
use engine::log::Lsn;
use parking_lot::RwLock;
use tokio::sync::watch;

/// One event as it goes over the wire.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its place in the log, which is its `seq`.
    pub lsn: Lsn,
    /// The WebSocket message.
    pub message: Bytes,
}

/// What a subscriber finds behind its position.
#[derive(Debug)]
pub enum Found {
    /// Events in order, at least one.
    Events(Vec<Event>),
    /// Nothing newer yet.
    CaughtUp,
    /// The position is older than what the ring holds: read the log.
    Behind,
}

/// The ring.
#[derive(Debug)]
pub struct Ring {
    state: RwLock<State>,
    newest: watch::Sender<Lsn>,
    capacity_bytes: usize,
}

#[derive(Debug)]
struct State {
    events: VecDeque<Event>,
    bytes: usize,
    /// Every event after this LSN is in `events`.
    floor: Lsn,
}

impl Ring {
    /// An empty ring that follows on the events up to `floor`, holding at most `capacity_bytes` (and always at least
    /// the newest event).
    #[must_use]
    pub fn new(floor: Lsn, capacity_bytes: usize) -> Ring {
        Ring {
            state: RwLock::new(State {
                events: VecDeque::new(),
                bytes: 0,
                floor,
            }),
            newest: watch::Sender::new(floor),
            capacity_bytes,
        }
    }

    /// Adds events that are newer than all before, and says that everything up to `through` was seen.
    pub fn push(&self, events: Vec<Event>, through: Lsn) {
        {
            let mut state = self.state.write();
            for event in events {
                state.bytes += event.message.len();
                state.events.push_back(event);
            }
            while state.bytes > self.capacity_bytes && state.events.len() > 1 {
                if let Some(oldest) = state.events.pop_front() {
                    state.bytes -= oldest.message.len();
                    state.floor = oldest.lsn;
                }
            }
        }
        self.newest.send_replace(through);
    }

    /// The LSN up to which everything was pushed.
    #[must_use]
    pub fn newest(&self) -> Lsn {
        *self.newest.borrow()
    }

    /// Tells when [`Ring::newest`] moves.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Lsn> {
        self.newest.subscribe()
    }

    /// Up to `max_bytes` (but at least one) of the events after `position`.
    #[must_use]
    pub fn after(&self, position: Lsn, max_bytes: usize) -> Found {
        let state = self.state.read();
        if position < state.floor {
            return Found::Behind;
        }
        let start = state.events.partition_point(|event| event.lsn <= position);
        let mut bytes = 0;
        let mut found = Vec::new();
        for event in state.events.range(start..) {
            if !found.is_empty() && bytes + event.message.len() > max_bytes {
                break;
            }
            bytes += event.message.len();
            found.push(event.clone());
        }
        if found.is_empty() {
            Found::CaughtUp
        } else {
            Found::Events(found)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(lsn: u64, len: usize) -> Event {
        Event {
            lsn: Lsn::new(lsn).unwrap(),
            message: Bytes::from(vec![0; len]),
        }
    }

    fn at(lsn: u64) -> Lsn {
        Lsn::new(lsn).unwrap()
    }

    #[test]
    fn a_position_inside_the_ring_reads_on_and_one_before_it_is_behind() {
        let ring = Ring::new(at(100), 250);
        assert!(matches!(ring.after(at(100), 1000), Found::CaughtUp));
        assert!(matches!(ring.after(at(99), 1000), Found::Behind));
        ring.push(vec![event(101, 100), event(103, 100), event(107, 100)], at(110));
        assert!(
            matches!(ring.after(at(100), 1000), Found::Behind),
            "101 was pushed out"
        );
        let Found::Events(found) = ring.after(at(101), 1000) else {
            panic!("nothing found")
        };
        assert_eq!(found.iter().map(|e| e.lsn.get()).collect::<Vec<_>>(), [103, 107]);
        assert!(matches!(ring.after(at(107), 1000), Found::CaughtUp));
        assert_eq!(ring.newest(), at(110));
    }

    #[test]
    fn at_least_one_event_is_given_and_kept_however_large() {
        let ring = Ring::new(at(1), 10);
        ring.push(vec![event(2, 100)], at(2));
        let Found::Events(found) = ring.after(at(1), 1) else {
            panic!("nothing found")
        };
        assert_eq!(found.len(), 1);
    }
}
