//! How far apart uploads of chunks are: by a fixed interval, and by what a month may cost.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::cost::MONTH;
use crate::ledger::Ledger;
use crate::store::counted::Class;

/// The time without uploads that is saved up for later ones, see [`crate::ship::ShipConfig::min_interval`].
const SAVED_UP: Duration = Duration::from_millis(100);

/// The time whose share of a month's requests can be saved up, or overdrawn.
const RESERVE: Duration = Duration::from_secs(24 * 3_600);

/// Share of the reserve that a start begins with, and below which uploads are moved apart.
const AT_START: f64 = 0.5;
const ENOUGH: f64 = 0.4;

/// A change of state is logged at most this often.
const LOG_EVERY: Duration = Duration::from_secs(600);

/// How many requests a month may have that a store bills as writes or lists, and how far uploads are moved apart for it.
///
/// A reserve fills at the even rate, up to a day's share, and every such request is taken from it. While more than two fifths of a
/// day's share are there, nothing changes. Below that, uploads that follow closely are moved apart, the more the less there is,
/// up to `max_interval` when it is empty, and no further: a budget makes uploads larger and fewer, it never refuses any. One that
/// comes after a pause goes at once.
#[derive(Debug)]
pub struct RequestBudget {
    ledger: Arc<Ledger>,
    monthly: u64,
    max_interval: Duration,
    reserve: Mutex<Reserve>,
}

#[derive(Debug)]
struct Reserve {
    requests: f64,
    at: Instant,
    seen: u64,
    logged: (BudgetState, Option<Instant>),
}

/// What a budget does just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BudgetState {
    /// Nothing.
    Within,
    /// Uploads are moved apart.
    Widening,
    /// They are as far apart as they may be; if that is not enough, the month will have more requests than the budget.
    Exhausted,
}

impl BudgetState {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            BudgetState::Within => "within",
            BudgetState::Widening => "widening",
            BudgetState::Exhausted => "exhausted",
        }
    }
}

/// How a budget stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BudgetReport {
    /// What it does.
    pub state: BudgetState,
    /// Requests that a month may have.
    pub monthly: u64,
    /// What is saved up in requests; less than nothing is overdrawn.
    pub reserve: f64,
    /// How far uploads are moved apart.
    pub interval: Duration,
}

impl RequestBudget {
    /// `monthly` requests, with uploads up to `max_interval` apart.
    #[must_use]
    pub fn new(ledger: Arc<Ledger>, monthly: u64, max_interval: Duration) -> RequestBudget {
        let reserve = Reserve {
            requests: day_of(monthly) * AT_START,
            at: Instant::now(),
            seen: spent(&ledger),
            logged: (BudgetState::Within, None),
        };
        RequestBudget {
            ledger,
            monthly,
            max_interval,
            reserve: Mutex::new(reserve),
        }
    }

    /// How it stands now. Also sets the gauges, and logs a change.
    pub fn report(&self) -> BudgetReport {
        let day = day_of(self.monthly);
        let now = Instant::now();
        let mut reserve = self.reserve.lock();
        let seen = spent(&self.ledger);
        let filled = now.duration_since(reserve.at).as_secs_f64() / RESERVE.as_secs_f64() * day;
        let taken = real(seen.saturating_sub(reserve.seen));
        reserve.requests = (reserve.requests + filled - taken).clamp(-day, day);
        (reserve.at, reserve.seen) = (now, seen);
        let missing = (1.0 - reserve.requests / (day * ENOUGH)).clamp(0.0, 1.0);
        let report = BudgetReport {
            state: match missing {
                missing if missing >= 1.0 => BudgetState::Exhausted,
                missing if missing > 0.0 => BudgetState::Widening,
                _ => BudgetState::Within,
            },
            monthly: self.monthly,
            reserve: reserve.requests,
            interval: self.max_interval.mul_f64(missing),
        };
        metrics::gauge!("pds_replica_budget_reserve_requests").set(report.reserve);
        metrics::gauge!("pds_replica_budget_interval_seconds").set(report.interval.as_secs_f64());
        let (logged, at) = reserve.logged;
        if logged != report.state && at.is_none_or(|at| now.duration_since(at) >= LOG_EVERY) {
            reserve.logged = (report.state, Some(now));
            drop(reserve);
            log(&report);
        }
        report
    }
}

fn log(report: &BudgetReport) {
    let (monthly, interval_ms) = (report.monthly, report.interval.as_millis());
    match report.state {
        BudgetState::Within => tracing::info!(
            monthly,
            "requests to the replica are within their budget; uploads are not moved apart any more"
        ),
        BudgetState::Widening => tracing::info!(
            monthly,
            interval_ms,
            "requests to the replica are more than their budget has for this time; uploads that follow closely are moved apart"
        ),
        BudgetState::Exhausted => tracing::warn!(
            monthly,
            interval_ms,
            "the budget of requests to the replica is used up; uploads are as far apart as they may be, and the month may cost more"
        ),
    }
}

/// What a store bills as writes: creations and listings.
fn spent(ledger: &Ledger) -> u64 {
    ledger.of_class(Class::Write) + ledger.of_class(Class::List)
}

fn day_of(monthly: u64) -> f64 {
    real(monthly.max(1)) * RESERVE.as_secs_f64() / MONTH.as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "a count of requests is far below 2^53")]
fn real(number: u64) -> f64 {
    number as f64
}

/// Keeps uploads apart, see [`crate::ship::ShipConfig::min_interval`] and [`RequestBudget`].
pub(crate) struct Pace {
    interval: Option<Duration>,
    budget: Option<Arc<RequestBudget>>,
    /// When the next upload would be due if all were an interval apart.
    due: Instant,
}

impl Pace {
    pub(crate) fn new(interval: Option<Duration>, budget: Option<Arc<RequestBudget>>) -> Pace {
        Pace {
            interval,
            budget,
            due: Instant::now(),
        }
    }

    /// Until when the next upload has to wait, if it has to.
    pub(crate) fn pause(&self, now: Instant) -> Option<Instant> {
        let until = self.due.checked_sub(SAVED_UP).unwrap_or(self.due);
        (until > now).then_some(until)
    }

    /// Counts an upload.
    pub(crate) fn cut(&mut self, now: Instant) {
        let widened = self.budget.as_ref().map(|budget| budget.report().interval);
        if let Some(interval) = self.interval.max(widened) {
            // What is saved up is what `pause` takes off, and no more.
            self.due = self.due.max(now) + interval;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::counted::Purpose;

    fn every(millis: u64) -> Pace {
        Pace::new(Some(Duration::from_millis(millis)), None)
    }

    #[tokio::test(start_paused = true)]
    async fn uploads_are_an_interval_apart_on_average_and_a_pause_before_is_saved_up() {
        let mut pace = every(10);
        let start = pace.due;
        let at = |ms: u64| start + Duration::from_millis(ms);
        let cuts_within = |pace: &mut Pace, from: u64, to: u64| {
            (from..to)
                .filter(|ms| {
                    let free = pace.pause(at(*ms)).is_none();
                    if free {
                        pace.cut(at(*ms));
                    }
                    free
                })
                .count()
        };
        // Ten are saved up, and a further one comes every ten milliseconds.
        assert_eq!(cuts_within(&mut pace, 0, 1000), 110);
        assert_eq!(cuts_within(&mut pace, 1000, 2000), 100);
        // However long the pause: no more than a tenth of a second is saved up.
        assert_eq!(cuts_within(&mut pace, 60_000, 61_000), 110);
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_interval_is_kept_and_none_is_no_pause() {
        let mut pace = every(3_600_000);
        let start = pace.due;
        assert_eq!(pace.pause(start), None);
        pace.cut(start);
        assert_eq!(
            pace.pause(start),
            Some(start + Duration::from_secs(3600) - SAVED_UP)
        );
        let mut free = Pace::new(None, None);
        free.cut(start);
        assert_eq!(free.pause(start), None);
    }

    /// Uploads whenever it may, for so many seconds; how many it made.
    async fn upload_for(pace: &mut Pace, ledger: &Ledger, seconds: u64) -> u64 {
        let until = Instant::now() + Duration::from_secs(seconds);
        let mut uploads = 0;
        while Instant::now() < until {
            match pace.pause(Instant::now()) {
                Some(pause) => tokio::time::sleep_until(pause).await,
                None => {
                    ledger.count(Class::Write, Purpose::Chunk, 1, 0);
                    pace.cut(Instant::now());
                    uploads += 1;
                    tokio::time::advance(Duration::from_millis(50)).await;
                }
            }
        }
        uploads
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_moves_uploads_apart_up_to_its_bound_and_lets_go_when_there_is_room() {
        let ledger = Arc::new(Ledger::default());
        // A day's share is 86,400: one a second.
        let budget = RequestBudget::new(ledger.clone(), 730 * 3_600, Duration::from_millis(4_000));
        let budget = Arc::new(budget);
        let mut pace = Pace::new(None, Some(budget.clone()));
        assert_eq!(budget.report().state, BudgetState::Within);
        let day = 24 * 3_600;
        // Twenty a second are wanted. The first hours spend what there is to begin with.
        upload_for(&mut pace, &ledger, day).await;
        assert_eq!(budget.report().state, BudgetState::Widening);
        // Then the budget is kept, since its bound allows it.
        let uploads = upload_for(&mut pace, &ledger, day).await;
        assert!((day * 9 / 10..=day * 11 / 10).contains(&uploads), "{uploads}");
        // A quiet night gives it back, and no more than a day's share.
        tokio::time::advance(RESERVE * 3).await;
        let report = budget.report();
        assert_eq!(
            (report.state, report.interval),
            (BudgetState::Within, Duration::ZERO)
        );
        assert!((report.reserve - 86_400.0).abs() < 1.0, "{report:?}");

        // A bound that is too narrow is kept, too, and the budget is not.
        let tight = RequestBudget::new(ledger.clone(), 730 * 36, Duration::from_millis(1_000));
        let tight = Arc::new(tight);
        let mut pace = Pace::new(None, Some(tight.clone()));
        upload_for(&mut pace, &ledger, 7_200).await;
        assert_eq!(tight.report().state, BudgetState::Exhausted);
        assert_eq!(tight.report().interval, Duration::from_secs(1));
        let uploads = upload_for(&mut pace, &ledger, 1_000).await;
        assert!((990..=1_001).contains(&uploads), "{uploads}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_upload_after_a_pause_goes_at_once_even_with_nothing_left() {
        let ledger = Arc::new(Ledger::default());
        let budget = Arc::new(RequestBudget::new(ledger.clone(), 1, Duration::from_secs(1)));
        let mut pace = Pace::new(None, Some(budget));
        for _ in 0..5 {
            assert_eq!(pace.pause(Instant::now()), None);
            ledger.count(Class::Write, Purpose::Chunk, 1, 0);
            pace.cut(Instant::now());
            assert!(pace.pause(Instant::now()).is_some());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }
}
