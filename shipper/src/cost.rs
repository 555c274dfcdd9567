//! What a store will cost: requests of the last day and bytes that are there, times a table of prices.

use std::time::Duration;

use crate::ageing::Cooled;
use crate::ledger::Day;
use crate::manifest::{CheckpointEntry, Manifest};
use crate::store::counted::Class;

/// A month as bills have it: a twelfth of 8,760 hours.
pub const MONTH: Duration = Duration::from_secs(730 * 3_600);

/// The least time from which a month is projected; a shorter one says more about how a server starts.
pub const LEAST_MEASURED: Duration = Duration::from_secs(3_600);

/// What a store charges, in US dollars.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prices {
    /// A million requests of class write.
    pub write: f64,
    /// A million pages of listings.
    pub list: f64,
    /// A million reads.
    pub read: f64,
    /// A million deletions.
    pub delete: f64,
    /// A GiB for a month.
    pub stored: f64,
    /// A GiB for a month in a cool tier.
    pub cool_stored: f64,
    /// A GiB for a month in a cold tier.
    pub cold_stored: f64,
    /// A GiB that is read from a cool tier.
    pub cool_retrieved: f64,
    /// A GiB that is read from a cold tier.
    pub cold_retrieved: f64,
    /// A GiB that goes to the store.
    pub up: f64,
    /// A GiB that comes from the store.
    pub down: f64,
}

impl Prices {
    /// A store that costs nothing by use, such as a directory.
    pub const FREE: Prices = Prices {
        write: 0.0,
        list: 0.0,
        read: 0.0,
        delete: 0.0,
        stored: 0.0,
        cool_stored: 0.0,
        cold_stored: 0.0,
        cool_retrieved: 0.0,
        cold_retrieved: 0.0,
        up: 0.0,
        down: 0.0,
    };

    /// Azure Blob Storage, tier hot (and, where it says so, cool and cold), locally redundant, in the cheaper regions of the USA; list prices as of August 2026, rounded
    /// up. Transfer within the region is free.
    pub const AZURE_HOT_LRS: Prices = Prices {
        write: 5.5,
        list: 5.5,
        read: 0.44,
        delete: 0.0,
        stored: 0.018,
        cool_stored: 0.01,
        cold_stored: 0.0036,
        cool_retrieved: 0.01,
        cold_retrieved: 0.03,
        up: 0.0,
        down: 0.0,
    };

    /// Amazon S3, class Standard, in the cheaper regions of the USA; list prices, rounded up. Transfer within the region is free.
    /// Its likes have prices of their own.
    pub const S3_STANDARD: Prices = Prices {
        write: 5.0,
        list: 5.0,
        read: 0.4,
        delete: 0.0,
        stored: 0.025,
        // Nothing is moved there.
        cool_stored: 0.025,
        cold_stored: 0.025,
        cool_retrieved: 0.0,
        cold_retrieved: 0.0,
        up: 0.0,
        down: 0.0,
    };

    /// These prices with some replaced, each given as `name=dollars`.
    ///
    /// # Errors
    /// The first part that is no known name with a number of dollars.
    pub fn with<'a>(mut self, changes: impl IntoIterator<Item = &'a str>) -> Result<Prices, String> {
        for change in changes {
            let wrong = || format!("'{change}' is not a price such as write=5.5");
            let (name, dollars) = change.split_once('=').ok_or_else(wrong)?;
            let price = match name.trim() {
                "write" => &mut self.write,
                "list" => &mut self.list,
                "read" => &mut self.read,
                "delete" => &mut self.delete,
                "stored" => &mut self.stored,
                "cool_stored" => &mut self.cool_stored,
                "cold_stored" => &mut self.cold_stored,
                "cool_retrieved" => &mut self.cool_retrieved,
                "cold_retrieved" => &mut self.cold_retrieved,
                "up" => &mut self.up,
                "down" => &mut self.down,
                _ => return Err(wrong()),
            };
            let dollars: f64 = dollars.trim().parse().map_err(|_| wrong())?;
            if !(0.0..=1e6).contains(&dollars) {
                return Err(wrong());
            }
            *price = dollars;
        }
        Ok(self)
    }

    fn of(&self, class: Class) -> f64 {
        match class {
            Class::Write => self.write,
            Class::List => self.list,
            Class::Read => self.read,
            Class::Delete => self.delete,
        }
    }

    /// What a month of days like this one costs, with so many bytes stored, of which `cooled` in cheaper tiers. What reads segments
    /// (drills, scrubbing, reads of what is away) is taken to read of each tier alike. `None` if less than [`LEAST_MEASURED`] is known.
    #[must_use]
    pub fn project(&self, day: &Day, stored_bytes: u64, cooled: Cooled) -> Option<Projection> {
        (day.measured >= LEAST_MEASURED).then(|| {
            let days = MONTH.as_secs_f64() / day.measured.as_secs_f64();
            let mut requests = 0.0;
            for class in Class::ALL {
                requests += count(day.recurring(class)) * days / 1e6 * self.of(class);
            }
            let hot = stored_bytes
                .saturating_sub(cooled.cool)
                .saturating_sub(cooled.cold);
            let share = |bytes: u64| count(bytes) / count(stored_bytes.max(1));
            let retrieved =
                share(cooled.cool) * self.cool_retrieved + share(cooled.cold) * self.cold_retrieved;
            Projection {
                requests,
                stored: gib(hot) * self.stored
                    + gib(cooled.cool) * self.cool_stored
                    + gib(cooled.cold) * self.cold_stored,
                retrieved: gib(day.segments_down) * days * retrieved,
                transfer: (gib(day.up) * self.up + gib(day.down) * self.down) * days,
            }
        })
    }
}

/// US dollars a month.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Projection {
    /// For requests.
    pub requests: f64,
    /// For what is stored.
    pub stored: f64,
    /// For bytes read from cheaper tiers.
    pub retrieved: f64,
    /// For bytes moved.
    pub transfer: f64,
}

impl Projection {
    /// All together.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.requests + self.stored + self.retrieved + self.transfer
    }
}

/// The bytes of the objects that a manifest names, those that were displaced and are kept for a while included.
#[must_use]
pub fn stored_bytes(manifest: &Manifest) -> u64 {
    let displaced = &manifest.displaced;
    let kept = displaced.segments.iter().map(|segment| &segment.entry);
    let segments = manifest.segments.iter().chain(kept);
    let kept = displaced.checkpoints.iter().map(|checkpoint| &checkpoint.entry);
    let checkpoints = manifest.checkpoints.iter().chain(kept);
    segments.map(|segment| segment.stored_bytes).sum::<u64>()
        + checkpoints.map(CheckpointEntry::stored_bytes).sum::<u64>()
}

#[expect(clippy::cast_precision_loss, reason = "dollars need no 53 bits")]
fn count(number: u64) -> f64 {
    number as f64
}

fn gib(bytes: u64) -> f64 {
    count(bytes) / f64::from(1u32 << 30)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;
    use crate::store::counted::Purpose;

    #[tokio::test(start_paused = true)]
    async fn a_month_is_the_last_day_many_times() {
        let ledger = Ledger::default();
        for _ in 0..3_600 {
            ledger.count(Class::Write, Purpose::Chunk, 1 << 20, 0);
            ledger.count(Class::Read, Purpose::Start, 0, 0);
        }
        let prices = Prices::AZURE_HOT_LRS;
        tokio::time::advance(LEAST_MEASURED - Duration::from_secs(1)).await;
        assert_eq!(prices.project(&ledger.last_day(), 0, Cooled::default()), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        let month = prices
            .project(&ledger.last_day(), 10 << 30, Cooled::default())
            .unwrap();
        // One a second is 2.628 million a month.
        assert!((month.requests - 2.628 * 5.5).abs() < 1e-9, "{month:?}");
        assert!((month.stored - 0.18).abs() < 1e-9 && month.transfer.abs() < 1e-9);
        let moved = Prices { up: 0.01, ..prices };
        let month = moved.project(&ledger.last_day(), 0, Cooled::default()).unwrap();
        assert!(
            (month.transfer - 3_600.0 / 1_024.0 * 730.0 * 0.01).abs() < 1e-6,
            "{month:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_cooler_costs_less_to_keep_and_more_to_read() {
        let ledger = Ledger::default();
        // A round of drill and one of scrubbing a day read all of it twice.
        for purpose in [Purpose::Drill, Purpose::Scrub] {
            ledger.count(Class::Read, purpose, 0, 100 << 30);
        }
        ledger.count(Class::Read, Purpose::Blob, 0, 100 << 30);
        tokio::time::advance(Duration::from_secs(86_400)).await;
        let prices = Prices::AZURE_HOT_LRS;
        let project = |cool: u64, cold: u64| {
            let cooled = Cooled {
                cool: cool << 30,
                cold: cold << 30,
            };
            prices.project(&ledger.last_day(), 100 << 30, cooled).unwrap()
        };
        let hot = project(0, 0);
        assert!(
            (hot.stored - 1.8).abs() < 1e-9 && hot.retrieved.abs() < 1e-9,
            "{hot:?}"
        );
        let mixed = project(30, 50);
        assert!((mixed.stored - (20.0 * 0.018 + 30.0 * 0.01 + 50.0 * 0.0036)).abs() < 1e-9);
        let read = 2.0 * 730.0 / 24.0;
        assert!(
            (mixed.retrieved - read * (30.0 * 0.01 + 50.0 * 0.03)).abs() < 1e-6,
            "{mixed:?}"
        );
        assert!(
            mixed.total() > hot.total(),
            "daily drills cost more than the tiers save"
        );
    }

    #[test]
    fn prices_are_replaced_by_name_and_nonsense_is_refused() {
        let prices = Prices::FREE.with(["write=5", " stored = 0.02"]).unwrap();
        assert!((prices.write - 5.0).abs() < 1e-9 && (prices.stored - 0.02).abs() < 1e-9);
        for wrong in [
            "write",
            "cat=1",
            "write=-1",
            "write=NaN",
            "write=inf",
            "write=",
            "",
        ] {
            assert!(Prices::FREE.with([wrong]).is_err(), "{wrong}");
        }
    }
}
