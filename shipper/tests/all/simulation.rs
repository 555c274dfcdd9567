//! Random runs: appends, faults, crashes, takeovers, lost disks. What was acknowledged is restored, LSNs only rise, no
//! entry comes twice. `SHIP_SEEDS` says how many seeds; `SHIP_SEED` runs one alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use engine::clock::{SeededEntropy, SystemClock};
use engine::log::Lsn;
use shipper::ship::ShipConfig;
use shipper::store::faulty::{Answer, Fault, Rule, Verb};
use tempfile::TempDir;

use crate::common::*;

struct Dice(SeededEntropy);

impl Dice {
    fn below(&self, bound: u64) -> u64 {
        self.0.next_u64() % bound
    }

    fn chance(&self, per_cent: u64) -> bool {
        self.below(100) < per_cent
    }
}

fn add_faults(store: &Faulty, dice: &Dice) {
    let per_mille = [0, 50, 200][dice.below(3) as usize];
    for (verb, prefix) in [
        (Verb::Create, "wal/"),
        (Verb::Create, "manifest/"),
        (Verb::CreateFromFile, "seg/"),
        (Verb::Delete, ""),
    ] {
        for answer in [Answer::Unavailable, Answer::Throttled(None), Answer::Timeout] {
            let fault = if dice.chance(50) {
                Fault::Before(answer)
            } else {
                Fault::After(answer)
            };
            store.add(Rule::always(fault).on(verb).under(prefix).sometimes(per_mille));
        }
    }
    let slow = Duration::from_millis(1 + dice.below(5));
    store.add(
        Rule::always(Fault::Delay(slow))
            .on(Verb::Create)
            .under("wal/")
            .sometimes(300),
    );
    if dice.chance(30) {
        store.add(
            Rule::once(Fault::HangAfter)
                .on(Verb::Create)
                .under("wal/")
                .after(dice.below(6)),
        );
    }
}

async fn run(seed: u64) {
    let dice = Dice(SeededEntropy::new(seed));
    let store = faulty(seed);
    let mut dir = TempDir::new().unwrap();
    // What anybody was told is durable: LSN and content.
    let mut told: BTreeMap<Lsn, Vec<u8>> = BTreeMap::new();
    let mut tag = seed << 20;
    for _ in 0..3 + dice.below(4) {
        let config = ShipConfig {
            in_flight: 1 + dice.below(16) as usize,
            chunk_bytes: [1, 3_000, 8 << 20][dice.below(3) as usize],
            request_timeout: Duration::from_millis(60),
            housekeeping_interval: Duration::from_millis(2),
            ..quick()
        };
        let segment_bytes = [4_000, 20_000, 64 << 20][dice.below(3) as usize];
        store.heal();
        let clock = Arc::new(SystemClock);
        let machine = Machine::start_with(as_store(&store), dir.path(), config, segment_bytes, clock).await;
        let machine = machine.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let found = image(&machine.log, Lsn::MAX);
        assert!(
            found.windows(2).all(|pair| pair[0].0 < pair[1].0),
            "seed {seed}: LSNs rise"
        );
        let found: BTreeMap<Lsn, Vec<u8>> = found.into_iter().map(|(lsn, bytes, _)| (lsn, bytes)).collect();
        for (lsn, bytes) in &told {
            assert_eq!(found.get(lsn), Some(bytes), "seed {seed}: {lsn} was acknowledged");
        }
        add_faults(&store, &dice);
        let highest = told.keys().last().copied().unwrap_or(Lsn::ZERO);
        for _ in 0..dice.below(25) {
            tag += 1;
            let lsn = machine
                .append(group(tag, 1 + dice.below(3) as usize, dice.below(1_500) as usize))
                .await;
            assert!(lsn > highest, "seed {seed}: LSNs never go back");
            if dice.chance(30) {
                machine.acknowledged(lsn).await;
            }
        }
        let remote = machine.handle.remote().get();
        told.extend(
            image(&machine.log, remote)
                .into_iter()
                .map(|(lsn, bytes, _)| (lsn, bytes)),
        );
        if dice.chance(30) {
            // Somebody takes over while this one still works; both go on for a moment.
            let other = TempDir::new().unwrap();
            let heir = Machine::start(as_store(&store), other.path()).await;
            let heir = heir.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            let end = heir.started.claim.before.last_lsn;
            let refused = machine.append(group(tag + (1 << 19), 1, 10)).await;
            let remote = machine.handle.remote().get();
            told.extend(
                image(&machine.log, remote)
                    .into_iter()
                    .map(|(lsn, bytes, _)| (lsn, bytes)),
            );
            assert!(
                remote <= end,
                "seed {seed}: nothing is acknowledged behind the fence"
            );
            let kept = heir.append(group(tag + (1 << 18), 1, 10)).await;
            heir.acknowledged(kept).await;
            let waited = tokio::time::timeout(SOON, machine.handle.remote().wait(refused)).await;
            assert!(
                waited.expect("told in time").is_err(),
                "seed {seed}: the old one acknowledged"
            );
            told.extend(
                image(&heir.log, kept)
                    .into_iter()
                    .map(|(lsn, bytes, _)| (lsn, bytes)),
            );
            heir.kill().await;
        }
        machine.kill().await;
        if dice.chance(50) {
            dir = TempDir::new().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_whatever_happens() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("SHIP_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SHIP_SEEDS").unwrap_or(30),
    };
    for seed in seeds {
        println!("seed {seed}");
        run(seed).await;
    }
}
