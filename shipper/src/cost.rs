//! What a store will cost: requests of the last day and bytes that are there, times a table of prices.

use std::time::Duration;

use crate::ledger::Day;
use crate::manifest::Manifest;
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
        up: 0.0,
        down: 0.0,
    };

    /// Azure Blob Storage, tier hot, locally redundant, in the cheaper regions of the USA; list prices as of August 2026, rounded
    /// up. Transfer within the region is free.
    pub const AZURE_HOT_LRS: Prices = Prices {
        write: 5.5,
        list: 5.5,
        read: 0.44,
        delete: 0.0,
        stored: 0.018,
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

    /// What a month of days like this one costs, with so many bytes stored. `None` if less than [`LEAST_MEASURED`] is known.
    #[must_use]
    pub fn project(&self, day: &Day, stored_bytes: u64) -> Option<Projection> {
        (day.measured >= LEAST_MEASURED).then(|| {
            let days = MONTH.as_secs_f64() / day.measured.as_secs_f64();
            let mut requests = 0.0;
            for class in Class::ALL {
                requests += count(day.recurring(class)) * days / 1e6 * self.of(class);
            }
            Projection {
                requests,
                stored: gib(stored_bytes) * self.stored,
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
    /// For bytes moved.
    pub transfer: f64,
}

impl Projection {
    /// All together.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.requests + self.stored + self.transfer
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
    let files = checkpoints.flat_map(|checkpoint| &checkpoint.files);
    segments.map(|segment| segment.stored_bytes).sum::<u64>() + files.map(|file| file.size).sum::<u64>()
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
        assert_eq!(prices.project(&ledger.last_day(), 0), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        let month = prices.project(&ledger.last_day(), 10 << 30).unwrap();
        // One a second is 2.628 million a month.
        assert!((month.requests - 2.628 * 5.5).abs() < 1e-9, "{month:?}");
        assert!((month.stored - 0.18).abs() < 1e-9 && month.transfer.abs() < 1e-9);
        let moved = Prices { up: 0.01, ..prices };
        let month = moved.project(&ledger.last_day(), 0).unwrap();
        assert!(
            (month.transfer - 3_600.0 / 1_024.0 * 730.0 * 0.01).abs() < 1e-6,
            "{month:?}"
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
