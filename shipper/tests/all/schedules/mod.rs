//! Two and three processes on one replica, from one seed: pauses, wake-ups, splits, lost and late answers, clock steps, crashes,
//! hand-overs and take-overs, with the real code of start, shipper, follower and housekeeping. Invariants I1, I2, I5.
//!
//! One thread decides everything. A turn: perhaps an event; the fate of some requests; then everybody runs until nobody can
//! go on without an answer. `docs/simulation.md` says what is simulated and what is not.
//!
//! `SCHEDULE_SEEDS` says how many seeds, `SCHEDULE_FROM` from which on; `SCHEDULE_SEED` runs one and prints what happens.

mod fates;
mod model;
mod net;
mod process;
mod world;

use std::collections::BTreeMap;

use net::Lie;

/// Seeds of a run without settings.
const SEEDS: u64 = 300;
/// Runs of this many seeds or more must have had everything.
const ENOUGH: u64 = 300;

/// What must have happened in a run of [`ENOUGH`] seeds: otherwise it tests less than it says.
const MUST_HAPPEN: &[&str] = &[
    "acknowledged late, rightly",
    "answers delayed",
    "answers lost",
    "answers to changes lost",
    "checkpoints",
    "chunks",
    "chunks behind a hole",
    "claims",
    "clocks back",
    "clocks forward",
    "crashes",
    "crashes that lose the disk",
    "deletes after a change of reign",
    "deletes of checkpoints",
    "deletes of chunks",
    "effects behind a split",
    "effects while paused",
    "fences",
    "fences long on their way",
    "fences under a name of before",
    "given up",
    "hand-overs",
    "hand-overs asked for",
    "hand-overs of the deaf",
    "hand-overs that another asked for",
    "hand-overs that were followed",
    "heals",
    "late effects",
    "logs set aside",
    "looks that found a mark",
    "looks that found frames",
    "manifests",
    "manifests long on their way",
    "manifests under a name of before",
    "pauses",
    "promotions",
    "refused",
    "refused by a split",
    "reigns",
    "restores at a start",
    "restores at the end",
    "splits",
    "starts beside a writer",
    "told to take over",
    "wakes",
    "writers fenced",
    "writers that handed over",
    "writers that wake behind a fence",
];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Seeds in which a store that lies must be found.
const MOST_FOR_A_LIE: u64 = 1_000;

/// Seeds that are looked for once one was found.
const FOUND: usize = 10;

fn check(found: &[(u64, String)]) {
    if let Some((seed, _)) = found.first() {
        let trace = world::run(*seed, true, None).trace;
        let tail = trace.iter().skip(trace.len().saturating_sub(60));
        let tail: Vec<&str> = tail.map(String::as_str).collect();
        let all: Vec<String> = found
            .iter()
            .map(|(seed, what)| format!("seed {seed}: {what}"))
            .collect();
        panic!("{}\nbefore the first:\n{}", all.join("\n"), tail.join("\n"));
    }
}

#[test]
fn no_schedule_loses_doubles_or_forks_anything() {
    if let Some(seed) = number("SCHEDULE_SEED") {
        let outcome = world::run(seed, true, None);
        outcome.trace.iter().for_each(|line| println!("{line}"));
        println!("{:#?}", outcome.counts);
        let found: Vec<_> = outcome.violations.into_iter().map(|what| (seed, what)).collect();
        return check(&found);
    }
    let seeds = number("SCHEDULE_SEEDS").unwrap_or(SEEDS);
    let from = number("SCHEDULE_FROM").unwrap_or(0);
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut found = Vec::new();
    for seed in from..from + seeds {
        let outcome = world::run(seed, false, None);
        found.extend(outcome.violations.into_iter().take(1).map(|what| (seed, what)));
        if found.len() >= FOUND {
            break;
        }
        for (what, times) in outcome.counts {
            *counts.entry(what).or_default() += times;
        }
    }
    println!("{seeds} seeds from {from}: {counts:#?}");
    check(&found);
    if seeds >= ENOUGH {
        let never = MUST_HAPPEN.iter().filter(|what| !counts.contains_key(*what));
        let never: Vec<_> = never.collect();
        assert!(never.is_empty(), "never happened: {never:?}");
    }
}

#[test]
fn a_seed_replays_exactly() {
    let seeds = number("SCHEDULE_SEEDS").unwrap_or(SEEDS).min(4_000) / 10;
    let from = number("SCHEDULE_FROM").unwrap_or(0);
    for seed in from..from + seeds.max(1) {
        let (one, two) = (world::run(seed, true, None), world::run(seed, true, None));
        let differs = one.trace.iter().zip(&two.trace).position(|(a, b)| a != b);
        if let Some(at) = differs {
            let (a, b) = (&one.trace[at], &two.trace[at]);
            let before = one.trace[at.saturating_sub(20)..at].join("\n");
            panic!("seed {seed}, line {at}:\n{a}\n{b}\nbefore it:\n{before}");
        }
        assert_eq!(one.trace.len(), two.trace.len(), "seed {seed}");
        assert_eq!(one.counts, two.counts, "seed {seed}");
    }
}

#[test]
fn a_store_that_breaks_a_promise_is_found() {
    let lies = [
        Lie::TwoWinners,
        Lie::Overwrites,
        Lie::LosesChunks,
        Lie::LosesSegments,
        Lie::HidesManifests,
    ];
    for lie in lies {
        let found = (0..MOST_FOR_A_LIE).find_map(|seed| {
            let violations = world::run(seed, false, Some(lie)).violations;
            violations.into_iter().next().map(|what| (seed, what))
        });
        let (seed, what) = found.unwrap_or_else(|| panic!("{lie:?} was not found"));
        println!("{lie:?}: seed {seed}: {what}");
    }
}
