//! What a month costs: the real log and the real shipper over simulated hours, on a store in memory that is 30 ms away and counts.
//!
//! Commits come at random, nine a user and day, along a day that is quietest at 3 and busiest at 15 o'clock (a sine from 0.2 to 1.8 of the
//! mean). Every third hour is simulated, which has the mean of all, and counts three times (with a budget: the second
//! of two whole days); a month is 365 / 12 such days. Each hour with
//! commits ends with a checkpoint, as the server takes them. Its files are small here: what the views of a year take
//! is added by arithmetic, in blocks as Azure is sent them. `docs/cost.md` has the table and says what is not in it.
//!
//! `PDS_COST_MONTH=1` prints the table (minutes); without it two hours are tried and the bounds checked.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::clock::{ScriptedClock, SeededEntropy, SystemEntropy};
use engine::log::{LogConfig, Lsn, Watermark};
use engine::storage::MemoryStorage;
use shipper::cost::Prices;
use shipper::ledger::Ledger;
use shipper::pace::RequestBudget;
use shipper::ship::{ShipConfig, Shipper};
use shipper::start::{StartOptions, begin};
use shipper::store::ReplicaStore;
use shipper::store::counted::{Class, CountedStore, Purpose};
use shipper::store::delayed::DelayedStore;
use shipper::store::memory::MemoryStore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::common::group;

const COMMITS_PER_DAY: f64 = 9.0;
/// What a commit of one record takes in the log.
const COMMIT_BYTES: usize = 3_000;
/// One upload.
const LATENCY: Duration = Duration::from_millis(30);
const DAYS: f64 = 365.0 / 12.0;
/// Of a store of a year: bytes a record in the compacted log and in the index (`docs/measurements.md`).
const LOG_BYTES: f64 = 249.0;
const INDEX_BYTES: f64 = 138.0;
/// What is left of an index when it is packed: of 539 MB, 128.
const PACKED: f64 = 0.24;
const CHECKPOINTS: f64 = 2.0;
const BLOCK_BYTES: f64 = 4_194_304.0;
/// 2026-01-01, in microseconds since 1970.
const BEGINNING: u64 = 1_767_225_600_000_000;
const HOUR: Duration = Duration::from_secs(3_600);

#[derive(Clone, Copy)]
struct Scenario {
    what: &'static str,
    users: f64,
    interval: Option<Duration>,
    /// Requests a month, and how far uploads may be moved apart for it.
    budget: Option<(u64, Duration)>,
    /// Hours at the beginning that do not count.
    warm_up: usize,
}

#[derive(Debug)]
struct Month {
    commits: f64,
    chunks: f64,
    checkpoint_blocks: f64,
    write: f64,
    list: f64,
    read: f64,
    requests_usd: f64,
    stored_gib: f64,
    total_usd: f64,
}

/// Commits of a user in this hour of the day.
fn per_hour(hour: u32) -> f64 {
    let angle = std::f64::consts::TAU * (f64::from(hour) - 9.0) / 24.0;
    COMMITS_PER_DAY / 24.0 * (1.0 + 0.8 * angle.sin())
}

/// Above 0, up to 1.
fn chance(random: &SeededEntropy) -> f64 {
    let bits = u32::try_from(random.next_u64() >> 32).unwrap_or(u32::MAX);
    (f64::from(bits) + 1.0) / 4_294_967_296.0
}

#[expect(clippy::cast_precision_loss, reason = "counts of a month")]
fn real(count: u64) -> f64 {
    count as f64
}

async fn month(scenario: Scenario, hours: &[u32]) -> Month {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Arc::new(Ledger::default());
    let far = DelayedStore::new(MemoryStore::new(), LATENCY);
    let store: Arc<dyn ReplicaStore> = Arc::new(CountedStore::new(Arc::new(far), ledger.clone()));
    let clock = Arc::new(ScriptedClock::at(BEGINNING));
    let options = StartOptions {
        data_dir: dir.path().to_owned(),
        storage: Arc::new(MemoryStorage::new()),
        clock: clock.clone(),
        entropy: Arc::new(SystemEntropy),
        request_timeout: Duration::from_secs(10),
        keep: Vec::new(),
        source: None,
        on_progress: None,
    };
    let started = begin(&store, &options).await.unwrap();
    let claim = started.claim;
    let log_config = LogConfig {
        epoch: claim.epoch,
        log_id: Some(claim.log_id),
        lsn_floor: claim.lsn_floor,
        ..LogConfig::default()
    };
    let log = started.recovered.start(clock.clone(), &log_config).unwrap();
    let budget = scenario
        .budget
        .map(|(monthly, widest)| Arc::new(RequestBudget::new(ledger.clone(), monthly, widest)));
    let config = ShipConfig {
        min_interval: scenario.interval,
        budget,
        temp_dir: dir.path().to_owned(),
        ..ShipConfig::default()
    };
    let (shipper, handle) = Shipper::new(
        config,
        store,
        log.clone(),
        Watermark::default(),
        claim,
        clock.clone(),
    );
    let stop = CancellationToken::new();
    let shipping = tokio::spawn(shipper.run(stop.clone()));
    let mut before = Class::ALL.map(|class| ledger.of_class(class));
    let mut chunks_before = ledger.requests(Class::Write, Purpose::Chunk);

    let random = SeededEntropy::new(7);
    let began = Instant::now();
    let mut commits = 0u64;
    let mut commits_before = 0;
    let mut checkpoints = 0u64;
    for (n, hour) in hours.iter().enumerate() {
        if n == scenario.warm_up {
            before = Class::ALL.map(|class| ledger.of_class(class));
            chunks_before = ledger.requests(Class::Write, Purpose::Chunk);
            (commits_before, checkpoints) = (commits, 0);
        }
        let rate = scenario.users * per_hour(*hour) / HOUR.as_secs_f64();
        let end = began + HOUR * u32::try_from(n + 1).unwrap();
        let mut at = began + HOUR * u32::try_from(n).unwrap();
        let mut last = Lsn::ZERO;
        loop {
            // Without users it is never.
            let wait = -chance(&random).ln() / rate;
            at += Duration::from_secs_f64(wait.min(HOUR.as_secs_f64()));
            if at >= end {
                break;
            }
            tokio::time::sleep_until(at).await;
            clock.set(BEGINNING + u64::try_from(began.elapsed().as_micros()).unwrap());
            let pending = log.append(group(commits, 1, COMMIT_BYTES)).unwrap();
            // Simulated time stands still while a thread works.
            let local = log.local().clone();
            let synced = tokio::task::spawn_blocking(move || {
                let last = pending.wait_blocking().unwrap().last;
                while local.get() < last {
                    local
                        .wait_past_blocking(local.get(), Duration::from_secs(1))
                        .unwrap();
                }
                last
            });
            last = synced.await.unwrap();
            commits += 1;
        }
        tokio::time::sleep_until(end).await;
        clock.set(BEGINNING + u64::try_from(began.elapsed().as_micros()).unwrap());
        if last > Lsn::ZERO {
            handle.remote().wait(last).await.unwrap();
            checkpoint(dir.path(), &handle, last).await;
            checkpoints += 1;
        }
    }
    stop.cancel();
    shipping.await.unwrap();

    let counted = u32::try_from(hours.len() - scenario.warm_up).unwrap();
    let times = 24.0 / f64::from(counted) * DAYS;
    let after = Class::ALL.map(|class| ledger.of_class(class));
    let [write, list, read, _] =
        std::array::from_fn(|class| real(after[class].saturating_sub(before[class])) * times);
    let records = scenario.users * COMMITS_PER_DAY * 365.0;
    // The file of the index counts as one request already.
    let blocks = (records * INDEX_BYTES * PACKED / BLOCK_BYTES).ceil();
    let checkpoint_blocks = real(checkpoints) * times * blocks;
    let write = write + checkpoint_blocks;
    let prices = Prices::AZURE_HOT_LRS;
    let requests_usd = (write * prices.write + list * prices.list + read * prices.read) / 1e6;
    let stored_gib = records * (LOG_BYTES + CHECKPOINTS * INDEX_BYTES * PACKED) / f64::from(1 << 30);
    Month {
        commits: real(commits - commits_before) * times,
        chunks: real(ledger.requests(Class::Write, Purpose::Chunk) - chunks_before) * times,
        checkpoint_blocks,
        write,
        list,
        read,
        requests_usd,
        stored_gib,
        total_usd: requests_usd + stored_gib * prices.stored,
    }
}

async fn checkpoint(dir: &Path, handle: &shipper::ship::ShipHandle, lsn: Lsn) {
    let dir = dir.join(lsn.hex());
    std::fs::create_dir_all(&dir).unwrap();
    for file in ["index", "accounts", "checkpoint"] {
        std::fs::write(dir.join(file), b"views").unwrap();
    }
    handle.publish_checkpoint(dir, lsn).await.unwrap();
}

const IDLE: Scenario = Scenario {
    what: "idle",
    users: 0.0,
    interval: None,
    budget: None,
    warm_up: 0,
};

#[tokio::test(start_paused = true)]
async fn an_idle_month_costs_nothing_and_a_busy_one_less_with_an_interval() {
    let idle = month(IDLE, &[3, 15]).await;
    assert!(
        idle.write + idle.list + idle.read < 1.0,
        "an idle server asks: {idle:?}"
    );
    let busy = Scenario {
        what: "busy",
        users: 4_000.0,
        ..IDLE
    };
    let free = month(busy, &[15]).await;
    // Nobody waits for anybody: a chunk for nearly each commit.
    assert!(free.chunks > free.commits * 0.9, "{free:?}");
    let apart = Scenario {
        interval: Some(Duration::from_secs(5)),
        ..busy
    };
    let apart = month(apart, &[15]).await;
    assert!((apart.commits - free.commits).abs() < 1.0, "{apart:?}");
    let most = 730.0 * 720.0;
    assert!(
        apart.chunks < most * 1.05 && apart.chunks > most * 0.8,
        "{apart:?}"
    );
    assert!(apart.total_usd < free.total_usd);
    if std::env::var("PDS_COST_MONTH").is_ok() {
        table().await;
    }
}

async fn table() {
    let second = Duration::from_secs(1);
    let thousand = Scenario {
        what: "1,000 users",
        users: 1_000.0,
        ..IDLE
    };
    let ten = Scenario {
        what: "10,000 users",
        users: 10_000.0,
        ..IDLE
    };
    let apart = |what, scenario: Scenario, interval| Scenario {
        what,
        interval: Some(interval),
        ..scenario
    };
    let scenarios = [
        IDLE,
        thousand,
        apart("1,000 users, 1 s apart", thousand, second),
        apart("1,000 users, 10 s apart", thousand, second * 10),
        ten,
        apart("10,000 users, 1 s apart", ten, second),
        apart("10,000 users, 10 s apart", ten, second * 10),
        Scenario {
            what: "10,000 users, budget of 2,000,000, up to 1 s apart",
            budget: Some((2_000_000, second)),
            warm_up: 24,
            ..ten
        },
        Scenario {
            what: "10,000 users, budget of 500,000, up to 10 s apart",
            budget: Some((500_000, second * 10)),
            warm_up: 24,
            ..ten
        },
    ];
    let third: Vec<u32> = (0..24).step_by(3).collect();
    // What is saved up at night is spent by day, so these need whole days.
    let days: Vec<u32> = (0..48).map(|hour| hour % 24).collect();
    println!(
        "| a month | commits | chunks | blocks of checkpoints | writes | lists | reads | requests USD | GiB | total USD |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for scenario in scenarios {
        let hours = if scenario.budget.is_some() { &days } else { &third };
        let month = month(scenario, hours).await;
        println!(
            "| {} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.2} | {:.2} | {:.2} |",
            scenario.what,
            month.commits,
            month.chunks,
            month.checkpoint_blocks,
            month.write,
            month.list,
            month.read,
            month.requests_usd,
            month.stored_gib,
            month.total_usd
        );
    }
}
