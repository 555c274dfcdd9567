//! Simulation of the whole engine. One seed drives the disks, the clock, the faults and a workload of commits, uploads
//! and accounts; a model in plain maps runs beside it, and what the views and the firehose answer is compared with it.
//!
//! The cores run on one thread: the log's writer without its thread, the fold of the views without the driver, and
//! the same code that opens, throws away and restores views at a start. See `docs/simulation.md` for what is real here
//! and what is not.
//!
//! `PDS_SIM_SEEDS` sets how many seeds run, `PDS_SIM_FROM` the first, `PDS_SIM_SEED` replays one and prints every step.

mod checks;
mod compaction;
mod damage;
mod death;
pub mod disk;
mod imports;
mod liar;
mod model;
mod workload;
mod world;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::storage::Fault;
use world::World;

/// Seeds that run where nothing else is asked for.
const SEEDS: u64 = 60;
/// Seeds of which at least one must see what is rare.
const MANY_SEEDS: usize = 1_000;

/// What happened over a run, so that a test can tell that it tested something.
#[derive(Debug, Default)]
struct Seen {
    faults: BTreeSet<Fault>,
    index_faults: u64,
    lives: u64,
    cuts: u64,
    lost: u64,
    groups: u64,
    commits: u64,
    accounts: u64,
    changesets: u64,
    deleted: u64,
    seals: u64,
    batches: u64,
    checkpoints: u64,
    rebuilds: u64,
    rebuilt_views: u64,
    spoiled: u64,
    imports: u64,
    imports_given_up: u64,
    imports_abandoned: u64,
    compactions: u64,
    compactions_ended: u64,
    compactions_offline: u64,
    compactions_stopped: u64,
    compactions_rolled_forward: u64,
    renewals: u64,
    renewals_failed: u64,
    renewals_lost: u64,
    full: u64,
    lies: BTreeSet<damage::Lie>,
    lies_running: BTreeSet<damage::Lie>,
    lies_refused: u64,
    lies_refused_running: u64,
    lies_cost_the_tail: u64,
    lies_survived: u64,
    lies_survived_by_views: u64,
}

impl Seen {
    /// How often each kind of thing happened that must not silently stop happening.
    fn counts(&self) -> [(&'static str, u64); 30] {
        [
            ("failure of the index's disk", self.index_faults),
            ("life", self.lives),
            ("cut", self.cuts),
            ("lost group", self.lost),
            ("group", self.groups),
            ("commit", self.commits),
            ("account", self.accounts),
            ("changeset of accounts", self.changesets),
            ("deletion", self.deleted),
            ("seal", self.seals),
            ("batch", self.batches),
            ("checkpoint", self.checkpoints),
            ("rebuild", self.rebuilds),
            ("view that was rebuilt at a start", self.rebuilt_views),
            ("spoiled view", self.spoiled),
            ("import", self.imports),
            ("import that was given up", self.imports_given_up),
            ("import that a crash left", self.imports_abandoned),
            ("compaction", self.compactions),
            ("compaction that ended", self.compactions_ended),
            ("compaction between lives", self.compactions_offline),
            ("compaction that was stopped", self.compactions_stopped),
            ("compaction that a start ended", self.compactions_rolled_forward),
            ("new file of the index", self.renewals),
            ("new file of the index that failed", self.renewals_failed),
            ("new file of the index that lost its name", self.renewals_lost),
            ("full backlog", self.full),
            ("lie that was refused", self.lies_refused),
            ("lie that the views survived", self.lies_survived_by_views),
            (
                "lie that was refused while it was told",
                self.lies_refused_running,
            ),
        ]
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|value| value.parse::<u64>().expect(name))
}

fn run(seed: u64, verbose: bool, seen: &mut Seen) {
    let mut world = World::new(seed, None, verbose);
    for _ in 0..2 + world.below(4) {
        world.live(true, None, seen);
        if world.one_in(6) {
            world.compact_between_lives(seen);
        }
    }
    world.conclude(seen);
    if world.one_in(2) {
        world.lie(seen);
    }
}

#[test]
fn whatever_fails_and_wherever_it_crashes_the_engine_keeps_what_it_promised() {
    let replay = number("PDS_SIM_SEED");
    let first = number("PDS_SIM_FROM").unwrap_or(0);
    let mut seeds: Vec<u64> = match replay {
        Some(seed) => vec![seed],
        None => (first..first + number("PDS_SIM_SEEDS").unwrap_or(SEEDS)).collect(),
    };
    if replay.is_none() {
        // One that nobody has run before.
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        seeds.push(now.as_micros() as u64);
    }
    let mut seen = Seen::default();
    for seed in &seeds {
        if catch_unwind(AssertUnwindSafe(|| run(*seed, replay.is_some(), &mut seen))).is_err() {
            panic!("seed {seed} failed; replay it with PDS_SIM_SEED={seed}");
        }
    }
    println!(
        "{} seeds, the last of them {:?}: {seen:?}",
        seeds.len(),
        seeds.last()
    );
    if seeds.len() as u64 > SEEDS {
        assert_eq!(
            seen.faults.len(),
            5,
            "every kind of fault has struck: {:?}",
            seen.faults
        );
        assert_eq!(seen.lies.len(), 4, "every kind of lie was told: {:?}", seen.lies);
        for (what, times) in seen.counts() {
            assert!(times > 0, "no {what} in {} seeds: {seen:?}", seeds.len());
        }
        if seeds.len() >= MANY_SEEDS {
            assert!(seen.lies_cost_the_tail > 0, "no lie cost the tail: {seen:?}");
            assert_eq!(
                seen.lies_running.len(),
                4,
                "every kind of lie was told to a process: {seen:?}"
            );
        }
    }
}

/// Power is cut at every operation of the log's disk in turn, from the first to the last of one life.
#[test]
fn power_can_go_at_every_write_of_a_run() {
    let mut seen = Seen::default();
    for seed in 0..number("PDS_SIM_CUTS").unwrap_or(1) {
        for spared in 0.. {
            let mut world = World::new(seed, Some(true), false);
            let struck = world.live(false, Some(spared), &mut seen);
            world.conclude(&mut seen);
            if !struck {
                assert!(spared > 0, "nothing was cut");
                break;
            }
        }
    }
}
