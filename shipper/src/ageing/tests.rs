use engine::log::LogId;

use super::*;

const DAY: u64 = 86_400_000_000;
const NOW: u64 = 1_000 * DAY;
const MIB: u64 = 1 << 20;

/// A segment that ended so many days before [`NOW`].
fn segment(days_ago: u64, compaction: u32, stored_bytes: u64) -> SegmentEntry {
    let last = NOW - days_ago * DAY;
    SegmentEntry {
        base: last - 10,
        last,
        prev: 0,
        raw_bytes: stored_bytes * 3,
        sha256: [0; 32],
        object: format!("seg/{last}"),
        stored_bytes,
        epoch: 1,
        frames: 1,
        compaction,
    }
}

fn manifest(segments: Vec<SegmentEntry>) -> Manifest {
    Manifest {
        segments,
        ..Manifest::empty(LogId([1; 16]))
    }
}

fn appended(days_ago: &[u64]) -> Manifest {
    manifest(days_ago.iter().map(|days| segment(*days, 0, MIB)).collect())
}

fn days(days: u64) -> Option<Duration> {
    Some(Duration::from_micros(days * DAY))
}

fn ageing(cool: Option<Duration>, cold: Option<Duration>) -> Ageing {
    Ageing {
        cool_after: cool,
        cold_after: cold,
        ..Ageing::default()
    }
}

/// Makes all that is due, and says what it was: days of age and tier.
fn made(placed: &mut Placed, manifest: &Manifest, ageing: &Ageing, now: u64) -> Vec<(u64, Tier)> {
    let steps = placed.due(manifest, ageing, now);
    steps.iter().for_each(|step| placed.made(step));
    let moves = steps.iter().filter(|step| step.moves());
    moves
        .map(|step| ((NOW - step.segment.last) / DAY, step.tier))
        .collect()
}

#[test]
fn segments_go_by_age_once_each_and_the_newest_never() {
    let all = appended(&[200, 91, 40, 29, 0]);
    let both = ageing(days(30), days(90));
    let mut placed = Placed::default();
    let first = made(&mut placed, &all, &both, NOW);
    assert_eq!(first, [(200, Tier::Cold), (91, Tier::Cold), (40, Tier::Cool)]);
    assert_eq!(made(&mut placed, &all, &both, NOW), []);
    assert_eq!(
        placed.cooled(&all),
        Cooled {
            cool: MIB,
            cold: 2 * MIB
        }
    );
    assert_eq!(made(&mut placed, &all, &both, NOW + DAY), [(29, Tier::Cool)]);
    let later = made(&mut placed, &all, &both, NOW + 500 * DAY);
    assert_eq!(later, [(40, Tier::Cold), (29, Tier::Cold)], "not the newest");
    assert_eq!(made(&mut placed, &all, &both, NOW + 900 * DAY), []);

    let text = serde_json::to_vec(&placed).unwrap();
    assert_eq!(serde_json::from_slice::<Placed>(&text).unwrap(), placed);
}

#[test]
fn nothing_goes_by_default_nor_before_its_tiers_minimum() {
    let all = appended(&[200, 91, 40, 0]);
    let mut placed = Placed::default();
    assert!(!Ageing::default().is_on());
    assert_eq!(made(&mut placed, &all, &Ageing::default(), NOW), []);
    let eager = ageing(days(1), days(1));
    let moved = made(&mut placed, &all, &eager, NOW);
    assert_eq!(moved, [(200, Tier::Cold), (91, Tier::Cold), (40, Tier::Cool)]);
    let all = appended(&[29, 0]);
    assert_eq!(made(&mut Placed::default(), &all, &eager, NOW), []);
}

#[test]
fn a_setting_that_is_taken_back_moves_nothing_back() {
    let all = appended(&[200, 0]);
    let mut placed = Placed::default();
    assert_eq!(
        made(&mut placed, &all, &ageing(None, days(90)), NOW),
        [(200, Tier::Cold)]
    );
    assert_eq!(made(&mut placed, &all, &ageing(days(30), None), NOW), []);
    assert_eq!(placed.cooled(&all).cold, MIB);
}

#[test]
fn what_was_compacted_is_new_and_counts_from_its_publication() {
    let cool = ageing(days(30), None);
    let mut placed = Placed::default();
    assert_eq!(made(&mut placed, &appended(&[100, 90, 0]), &cool, NOW).len(), 2);

    // The compaction's segments keep the LSNs, and what was appended behind waits for them.
    let compacted = manifest(vec![
        segment(100, 1, MIB),
        segment(60, 0, MIB),
        segment(0, 0, MIB),
    ]);
    assert_eq!(placed.cooled(&compacted), Cooled::default());
    let mut placed = placed.of(&compacted, NOW);
    assert_eq!(made(&mut placed, &compacted, &cool, NOW + 29 * DAY), []);
    let same = placed.of(&compacted, NOW + 30 * DAY);
    assert_eq!(same, placed, "seen again, it is as old as it was");
    assert_eq!(made(&mut placed, &compacted, &cool, NOW + 30 * DAY).len(), 2);
    assert_eq!(placed.cooled(&compacted).cool, 2 * MIB);
}

#[test]
fn small_ones_are_passed_over_and_a_look_moves_so_many() {
    let cool = ageing(days(30), None);
    let small = manifest(vec![
        segment(60, 0, MIB - 1),
        segment(50, 0, MIB),
        segment(0, 0, MIB),
    ]);
    let mut placed = Placed::default();
    assert_eq!(made(&mut placed, &small, &cool, NOW), [(50, Tier::Cool)]);
    assert_eq!(placed.cooled(&small).cool, MIB);

    let many: Vec<u64> = (0..100).rev().map(|n| n + 40).chain([0]).collect();
    let many = appended(&many);
    let mut placed = Placed::default();
    let looks: Vec<usize> = (0..5)
        .map(|_| made(&mut placed, &many, &cool, NOW).len())
        .collect();
    assert_eq!(looks, [32, 32, 32, 4, 0]);
}

#[test]
fn nothing_is_due_in_an_empty_log() {
    let cool = ageing(days(30), days(90));
    assert_eq!(made(&mut Placed::default(), &appended(&[]), &cool, NOW), []);
}
