//! Who is subscribed, how many of one address, and where each of them is.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use engine::log::Lsn;
use parking_lot::Mutex;

/// All places.
#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    most_per_address: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    positions: HashMap<u64, Arc<AtomicU64>>,
    of: HashMap<IpAddr, usize>,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// For nobody.
    All,
    /// For this address.
    Address,
}

/// One subscriber's place; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    number: u64,
    address: Option<IpAddr>,
    position: Arc<AtomicU64>,
}

impl Places {
    pub(super) fn new(most: usize, most_per_address: usize) -> Arc<Places> {
        Arc::new(Places {
            most,
            most_per_address,
            taken: Mutex::default(),
        })
    }

    /// A place for a subscriber of `address`, if that is known.
    pub(super) fn take(self: &Arc<Places>, address: Option<IpAddr>) -> Result<Place, Full> {
        let mut taken = self.taken.lock();
        if taken.positions.len() >= self.most {
            return Err(Full::All);
        }
        if let Some(address) = address {
            let count = taken.of.entry(address).or_default();
            if *count >= self.most_per_address {
                return Err(Full::Address);
            }
            *count += 1;
        }
        let number = taken.next;
        taken.next += 1;
        // Nobody is behind before it has said where it begins.
        let position = Arc::new(AtomicU64::new(u64::MAX));
        taken.positions.insert(number, position.clone());
        Ok(Place {
            places: self.clone(),
            number,
            address,
            position,
        })
    }

    pub(super) fn count(&self) -> usize {
        self.taken.lock().positions.len()
    }

    /// Where those are that have begun.
    pub(super) fn positions(&self) -> impl Iterator<Item = Lsn> {
        let taken = self.taken.lock();
        let all: Vec<u64> = taken
            .positions
            .values()
            .map(|at| at.load(Ordering::Relaxed))
            .collect();
        all.into_iter().filter_map(Lsn::new)
    }
}

impl Place {
    /// Tells how far this subscriber is.
    pub(super) fn at(&self, position: Lsn) {
        self.position.store(position.get(), Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        taken.positions.remove(&self.number);
        if let Some(address) = self.address
            && let Some(count) = taken.of.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                taken.of.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_by_address_and_given_back() {
        let places = Places::new(3, 2);
        let address = |last| Some(IpAddr::from([10, 0, 0, last]));
        let first = places.take(address(1)).unwrap();
        let _second = places.take(address(1)).unwrap();
        assert_eq!(places.take(address(1)).unwrap_err(), Full::Address);
        let third = places.take(None).unwrap();
        assert_eq!(places.take(address(2)).unwrap_err(), Full::All);
        assert_eq!(places.positions().count(), 0);
        third.at(Lsn::new(7).unwrap());
        assert_eq!(places.positions().map(Lsn::get).collect::<Vec<_>>(), [7]);
        drop((first, third));
        assert_eq!(places.count(), 1);
        places.take(address(1)).unwrap();
    }
}
