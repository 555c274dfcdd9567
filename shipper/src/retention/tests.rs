use std::time::Duration;

use engine::log::Lsn;
use proptest::prelude::*;

use super::*;
use crate::manifest::{FileEntry, SegmentEntry};
use crate::{compacted, pit};

const SECOND: u64 = 1_000_000;
/// Later than every LSN that a compaction gives.
const BEGIN: u64 = 1_700_000_000 * SECOND;
const WINDOW: Duration = Duration::from_secs(80);

fn segment(base: u64, prev: u64, last: u64, compaction: u32) -> SegmentEntry {
    SegmentEntry {
        base,
        last,
        prev,
        raw_bytes: last - base,
        sha256: [0; 32],
        object: format!("seg/{base:016x}"),
        stored_bytes: 1,
        epoch: 1,
        frames: 1,
        compaction,
    }
}

fn checkpoint(lsn: u64, verified_at_micros: u64) -> CheckpointEntry {
    checkpoint_of(lsn, verified_at_micros, 0)
}

fn checkpoint_of(lsn: u64, verified_at_micros: u64, compaction: u32) -> CheckpointEntry {
    CheckpointEntry {
        lsn,
        files: vec![FileEntry {
            name: "index.redb".into(),
            object: format!("ckpt/{lsn:016x}/1-c{compaction}-index.redb"),
            raw_bytes: 1,
            stored_bytes: 1,
            sha256: [0; 32],
            packed: false,
        }],
        verified_at_micros,
    }
}

/// A replica whose objects are names only.
struct Replica {
    manifest: Manifest,
    now: u64,
    compactions: u32,
    protected: Option<Lsn>,
    /// States of before are not promised: they were given up already.
    promised: u64,
    /// LSNs of checkpoints that were ever verified.
    verified: Vec<u64>,
}

impl Replica {
    fn new() -> Replica {
        let mut manifest = Manifest::empty(engine::log::LogId([1; 16]));
        manifest.epoch = 1;
        let mut replica = Replica {
            manifest,
            now: BEGIN,
            compactions: 0,
            protected: None,
            promised: BEGIN,
            verified: Vec::new(),
        };
        replica.write();
        replica
    }

    fn rule(&self) -> Rule {
        Rule::at(self.now, WINDOW, self.protected)
    }

    fn publish(&mut self, change: impl FnOnce(&mut Manifest)) {
        let mut next = self.manifest.clone();
        change(&mut next);
        displace(&self.manifest, &mut next, self.now);
        next.displaced = kept(&next, &self.rule());
        self.manifest = next;
        assert!(!anything_ends(&self.manifest, &self.rule()), "one pass is enough");
        self.manifest.encode().unwrap();
    }

    fn write(&mut self) {
        self.now += SECOND;
        let (prev, now) = (self.manifest.covered_lsn().get(), self.now);
        let base = if prev == 0 { BEGIN } else { prev + 1 };
        self.publish(|manifest| manifest.segments.push(segment(base, prev, now, 0)));
    }

    fn compact(&mut self, share: usize) {
        let live = &self.manifest.segments;
        let through = live[share % live.len()].last;
        let done = live.iter().filter(|segment| segment.compaction > 0);
        if done.map(|segment| segment.last).max() >= Some(through) {
            return;
        }
        self.compactions += 1;
        let number = self.compactions;
        let first = u64::from(number) << 24;
        let outputs = [
            segment(first, 0, first + 5, number),
            segment(first + 6, first + 5, through, number),
        ];
        self.publish(|manifest| {
            assert!(compacted::replace(&mut manifest.segments, &outputs));
            manifest.checkpoints.clear();
        });
    }

    fn checkpoint(&mut self) {
        let lsn = self.manifest.covered_lsn().get();
        if self
            .manifest
            .checkpoints
            .first()
            .is_none_or(|newest| newest.lsn < lsn)
        {
            let compaction = self.compactions;
            self.publish(|manifest| {
                manifest.checkpoints.insert(0, checkpoint_of(lsn, 0, compaction));
                manifest.checkpoints.truncate(2);
            });
        }
    }

    fn verify(&mut self) {
        let now = self.now;
        if let Some(due) = to_verify(&self.manifest, now, WINDOW).map(|due| due.lsn) {
            self.verified.push(due);
            self.publish(|manifest| manifest.checkpoints[0].verified_at_micros = now);
        }
    }

    fn check(&mut self) {
        let rule = self.rule();
        self.promised = self.promised.max(rule.floor.get());
        let mut cut = self.promised;
        while cut <= self.now {
            let history = pit::history(&self.manifest, Lsn::saturating(cut));
            let history = history.unwrap_or_else(|| panic!("{cut} cannot be had of {:?}", self.manifest));
            let mut end = 0;
            for part in &history.segments {
                assert_eq!(part.prev, end);
                assert!(part.compaction == 0 || part.last <= cut, "a state of later");
                end = part.last;
            }
            assert!(end >= cut || history.goes_on);
            cut += SECOND / 2;
        }
        let oldest = pit::oldest(&self.manifest).unwrap();
        assert!(oldest.get() <= self.promised);
        for displaced in &self.manifest.displaced.segments {
            assert!(displaced.through > rule.floor.get() || !is_proven(displaced, &self.manifest));
        }
        let floor = rule.floor.get();
        let kept = &self.manifest.displaced.checkpoints;
        let good = |checkpoint: &&CheckpointEntry| checkpoint.verified_at_micros > 0;
        let live = self.manifest.checkpoints.iter().filter(good);
        let live = live.filter(|live| live.lsn <= floor).map(|live| live.lsn).max();
        assert!(
            kept.iter()
                .all(|kept| live.is_none_or(|live| kept.entry.lsn >= live)),
            "older than the one before the window"
        );
        let live = self.manifest.checkpoints.iter();
        let all = live.chain(kept.iter().map(|displaced| &displaced.entry));
        if self.verified.iter().any(|lsn| *lsn <= floor) {
            let mut good = all.filter(|checkpoint| checkpoint.verified_at_micros > 0);
            assert!(
                good.any(|checkpoint| checkpoint.lsn <= floor),
                "the one before the window"
            );
        }
        if self.protected.is_none() {
            assert!(kept.len() as u64 <= SPANS + 3, "{kept:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_moment_of_the_window_can_be_had_and_nothing_stays_longer(
        steps in proptest::collection::vec((0u8..9, any::<u16>()), 1..120),
    ) {
        let mut replica = Replica::new();
        for (step, number) in steps {
            match step {
                0..=2 => replica.write(),
                3 => replica.compact(usize::from(number)),
                4 | 5 => replica.checkpoint(),
                6 => replica.verify(),
                7 => {
                    replica.now += u64::from(number) % (WINDOW.as_secs() / 2) * SECOND;
                    replica.publish(|_| {});
                }
                _ => {
                    // Nobody begins to read what is given up already.
                    let at = replica.now - u64::from(number) % 20 * SECOND;
                    let position = Lsn::saturating(at.max(replica.promised));
                    replica.protected = (number % 3 > 0).then_some(position);
                    replica.publish(|_| {});
                }
            }
            replica.check();
        }
    }
}

/// Four segments that a compaction has replaced, at second 50; the clock shows second 60.
fn compacted_once() -> Replica {
    let mut replica = Replica::new();
    for _ in 0..5 {
        replica.write();
    }
    replica.now = BEGIN + 50 * SECOND;
    replica.compact(3);
    replica.now += 10 * SECOND;
    assert_eq!(replica.manifest.displaced.segments.len(), 4);
    replica
}

#[test]
fn what_is_displaced_goes_when_the_window_is_over_and_the_new_segments_are_proven() {
    let mut replica = compacted_once();
    let through = replica.manifest.displaced.segments[0].through;
    assert_eq!(through, BEGIN + 4 * SECOND);
    replica.now = through + 79 * SECOND;
    replica.checkpoint();
    replica.verify();
    assert_eq!(
        replica.manifest.displaced.segments.len(),
        4,
        "the window is not over"
    );
    replica.now = through + 80 * SECOND;
    replica.publish(|_| {});
    assert!(replica.manifest.displaced.segments.is_empty());

    let mut replica = compacted_once();
    replica.now = through + 200 * SECOND;
    replica.checkpoint();
    replica.publish(|_| {});
    assert_eq!(
        replica.manifest.displaced.segments.len(),
        4,
        "uploaded is not verified"
    );
    replica.verify();
    assert!(replica.manifest.displaced.segments.is_empty());
}

#[test]
fn a_checkpoint_of_before_the_compaction_proves_nothing_of_it() {
    let mut replica = Replica::new();
    replica.write();
    replica.checkpoint();
    replica.verify();
    replica.compact(1);
    let displaced = &replica.manifest.displaced;
    assert_eq!(displaced.checkpoints.len(), 1);
    assert!(displaced.checkpoints[0].entry.lsn >= displaced.segments[0].through);
    replica.now += 1_000 * SECOND;
    assert!(!anything_ends(&replica.manifest, &replica.rule()));
}

#[test]
fn somebody_who_still_reads_holds_what_he_reads_with_and_without_a_window() {
    let mut replica = compacted_once();
    let through = replica.manifest.displaced.segments[0].through;
    replica.checkpoint();
    replica.verify();
    let late = through + 500 * SECOND;
    for window in [WINDOW, Duration::ZERO] {
        for (position, goes) in [(None, true), (Some(through - 1), false), (Some(through), true)] {
            let rule = Rule::at(late, window, position.map(Lsn::saturating));
            let stays = kept(&replica.manifest, &rule).segments.len();
            assert_eq!(stays == 0, goes, "{window:?} {position:?}");
        }
    }
}

#[test]
fn without_a_window_nothing_is_kept_and_nothing_verified() {
    let replica = compacted_once();
    let rule = Rule::at(replica.now, Duration::ZERO, None);
    assert_eq!(kept(&replica.manifest, &rule), Displaced::default());
    let mut manifest = replica.manifest;
    manifest.checkpoints.push(checkpoint(BEGIN, 0));
    assert_eq!(to_verify(&manifest, replica.now, Duration::ZERO), None);
    assert_eq!(
        to_verify(&manifest, replica.now, WINDOW).map(|due| due.lsn),
        Some(BEGIN)
    );
}

#[test]
fn a_checkpoint_is_verified_once_a_span_and_after_each_compaction() {
    let mut replica = Replica::new();
    let mut times = Vec::new();
    for second in 0..40 {
        if second == 25 {
            replica.compact(0);
        }
        replica.write();
        replica.checkpoint();
        let before = replica.verified.len();
        replica.verify();
        if replica.verified.len() > before {
            times.push(second);
        }
    }
    assert_eq!(times, [0, 10, 20, 25, 35]);
}

#[test]
fn a_removed_repo_is_in_what_was_displaced_later_than_it_was_written() {
    let mut displaced = Displaced::default();
    assert_eq!(erased_through(&displaced), Lsn::MAX);
    let add = |displaced: &mut Displaced, entry: SegmentEntry, at_micros| {
        displaced.segments.push(DisplacedSegment {
            entry,
            through: BEGIN + 900,
            at_micros,
        });
    };
    // A compaction up to 500 knows of removals up to there, whatever LSNs its frames have.
    add(&mut displaced, segment(1 << 24, 0, (1 << 24) + 4, 1), 7);
    add(
        &mut displaced,
        segment((1 << 24) + 5, (1 << 24) + 4, BEGIN + 500, 1),
        7,
    );
    assert_eq!(erased_through(&displaced).get(), BEGIN + 500);
    add(
        &mut displaced,
        segment(BEGIN + 501, BEGIN + 500, BEGIN + 900, 0),
        7,
    );
    assert_eq!(erased_through(&displaced).get(), BEGIN + 500);
    // What a writer appended may have everything that was there since its first frame.
    add(
        &mut displaced,
        segment(BEGIN + 100, BEGIN + 90, BEGIN + 500, 0),
        3,
    );
    assert_eq!(erased_through(&displaced).get(), BEGIN + 99);
}
