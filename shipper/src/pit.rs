//! Points in time: which of a replica's segments, live or displaced, tell the state at an LSN.

use std::collections::BTreeMap;

use engine::log::Lsn;

use crate::manifest::{Manifest, SegmentEntry};

/// The segments that a log up to a cut is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// Ascending and chained from the beginning of the log. The last one may go beyond the cut.
    pub segments: Vec<SegmentEntry>,
    /// Up to here a compaction tells the state only, not how it came about; zero if the whole history is there.
    pub compacted: Lsn,
    /// Whether the cut lies behind all segments: what is missing is in the chunks behind them.
    pub goes_on: bool,
}

/// The oldest state that can be had, and then any later one; zero if the whole history is there, `None` if the manifest's own lists
/// are not whole.
#[must_use]
pub fn oldest(manifest: &Manifest) -> Option<Lsn> {
    longest(manifest).map(|history| history.compacted)
}

/// All history that there is: from the oldest state that can be had to the end, which is in the chunks.
#[must_use]
pub fn longest(manifest: &Manifest) -> Option<History> {
    let originals = originals(manifest);
    let mut bases = bases(manifest);
    bases.sort_by_key(|base| end_of(base));
    // Behind the last segment of all.
    let mut whole = bases.into_iter().map(|base| follow(base, &originals, u64::MAX));
    whole.find(|history| end_of(&history.segments) == manifest.covered_lsn().get())
}

/// The segments that tell the state at `cut`; `None` if some of them are gone. Of several histories it is the one with the
/// latest beginning, which is the shortest.
#[must_use]
pub fn history(manifest: &Manifest, cut: Lsn) -> Option<History> {
    let originals = originals(manifest);
    let mut bases = bases(manifest);
    bases.retain(|base| end_of(base) <= cut.get());
    bases.sort_by_key(|base| std::cmp::Reverse(end_of(base)));
    let mut told = bases.into_iter().map(|base| follow(base, &originals, cut.get()));
    // Beyond the end of the live segments only chunks can tell more.
    told.find(|history| !history.goes_on || end_of(&history.segments) == manifest.covered_lsn().get())
}

fn end_of(segments: &[SegmentEntry]) -> u64 {
    segments.last().map_or(0, |last| last.last)
}

/// What a writer appended behind `base`, as far as `cut`.
fn follow(base: Vec<SegmentEntry>, originals: &BTreeMap<u64, &SegmentEntry>, cut: u64) -> History {
    let compacted = end_of(&base);
    let (mut segments, mut end) = (base, compacted);
    while end < cut {
        let Some(next) = originals.get(&end) else { break };
        end = next.last;
        segments.push((*next).clone());
    }
    History {
        segments,
        compacted: Lsn::saturating(compacted),
        goes_on: end < cut,
    }
}

/// What a writer appended, by the LSN that it goes on from.
fn originals(manifest: &Manifest) -> BTreeMap<u64, &SegmentEntry> {
    let displaced = manifest.displaced.segments.iter();
    let all = manifest
        .segments
        .iter()
        .chain(displaced.map(|displaced| &displaced.entry));
    let mut originals = BTreeMap::new();
    for segment in all.filter(|segment| segment.compaction == 0) {
        originals.entry(segment.prev).or_insert(segment);
    }
    originals
}

/// What a history can begin with: nothing, or all segments that one compaction wrote.
fn bases(manifest: &Manifest) -> Vec<Vec<SegmentEntry>> {
    let mut groups: BTreeMap<(u64, u32), Vec<SegmentEntry>> = BTreeMap::new();
    // Those that are live have not been displaced at any time.
    let live = manifest.segments.iter().map(|segment| (u64::MAX, segment));
    let displaced = manifest.displaced.segments.iter();
    let displaced = displaced.map(|displaced| (displaced.at_micros, &displaced.entry));
    for (at, segment) in live
        .chain(displaced)
        .filter(|(_, segment)| segment.compaction > 0)
    {
        groups
            .entry((at, segment.compaction))
            .or_default()
            .push(segment.clone());
    }
    let mut bases = vec![Vec::new()];
    for mut group in groups.into_values() {
        group.sort_by_key(|segment| segment.base);
        let begins = group.first().is_some_and(|first| first.prev == 0);
        let chained = group.windows(2).all(|pair| match pair {
            [before, after] => before.last == after.prev,
            _ => true,
        });
        if begins && chained {
            bases.push(group);
        }
    }
    bases
}
