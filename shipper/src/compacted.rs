//! Following a compaction of the local log: the manifest comes to name the segments that are there now.
//!
//! Nothing is remembered of a compaction. The segments that the manifest names and the local ones are compared; where
//! their beginnings differ and end at the same LSN, the local ones take the place of the others in one manifest. It
//! names no checkpoint of before, since those point into segments that it does not name. So it does not matter when a
//! crash comes, nor which process compacted: the next look finds what is still to do.
//!
//! | crash after                     | leaves                                          | and the next look                |
//! |---------------------------------|-------------------------------------------------|----------------------------------|
//! | some segments are created       | objects that no manifest names                  | finds them, compares, uses them  |
//! | the manifest is created         | the old objects, named by older manifests only  | sweeps them                      |

use engine::log::{Lsn, SegmentInfo};

use crate::manifest::SegmentEntry;

/// The local segments that are to take the place of those that the manifest names up to the same LSN; `None` if nothing
/// differs, or if no such LSN is shared. Both lists ascend.
pub(crate) fn replacement(local: &[SegmentInfo], named: &[SegmentEntry]) -> Option<Vec<SegmentInfo>> {
    let end = named.last()?.last;
    let covered = local.iter().position(|segment| segment.last.get() == end)?;
    let local = local.get(..=covered)?;
    if !local.iter().all(|segment| segment.sealed) {
        return None;
    }
    let shared = local
        .iter()
        .rev()
        .zip(named.iter().rev())
        .take_while(is_same)
        .count();
    let (here, there) = (local.len() - shared, named.len().checked_sub(shared)?);
    if (here, there) == (0, 0) {
        return None;
    }
    Some(local.get(..here)?.to_vec())
}

/// Puts `entries` in the place of everything in `named` up to their end; `false` if `named` has no end there.
pub(crate) fn replace(named: &mut Vec<SegmentEntry>, entries: &[SegmentEntry]) -> bool {
    let Some(end) = entries.last().map(|entry| entry.last) else {
        return false;
    };
    let Some(at) = named.iter().position(|segment| segment.last == end) else {
        return false;
    };
    named.splice(..=at, entries.iter().cloned());
    true
}

/// The last LSN of the compacted part of the log, if the manifest names the very segments of it that are here; else zero.
pub(crate) fn named(local: &[SegmentInfo], named: &[SegmentEntry]) -> Lsn {
    let compacted = local.partition_point(|segment| segment.compaction > 0);
    let local = local.get(..compacted).unwrap_or_default();
    let all_named = local.len() <= named.len() && local.iter().zip(named).all(|pair| is_same(&pair));
    if all_named { end(local) } else { Lsn::ZERO }
}

/// Says of the segments in a manifest of format 1 what that did not say and the local ones do.
pub(crate) fn complete(named: &mut [SegmentEntry], local: &[SegmentInfo]) {
    for entry in named.iter_mut().filter(|entry| entry.frames == 0) {
        if let Some(here) = local.iter().find(|here| is_same(&(*here, &*entry))) {
            (entry.epoch, entry.frames, entry.compaction) = (here.epoch.0, here.frames, here.compaction);
        }
    }
}

/// Whether the manifest's segment is the local one.
fn is_same((here, there): &(&SegmentInfo, &SegmentEntry)) -> bool {
    (here.base.get(), here.last.get(), here.prev.get(), here.bytes)
        == (there.base, there.last, there.prev, there.raw_bytes)
}

/// The LSN at which the replacement ends.
pub(crate) fn end(segments: &[SegmentInfo]) -> Lsn {
    segments.last().map_or(Lsn::ZERO, |segment| segment.last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::log::Epoch;

    fn local(base: u64, prev: u64, last: u64, bytes: u64) -> SegmentInfo {
        SegmentInfo {
            base: Lsn::saturating(base),
            first: Lsn::saturating(base),
            last: Lsn::saturating(last),
            prev: Lsn::saturating(prev),
            epoch: Epoch(1),
            sealed: true,
            bytes,
            frames: 1,
            sha256: None,
            compaction: 0,
        }
    }

    fn named(segment: &SegmentInfo) -> SegmentEntry {
        SegmentEntry {
            base: segment.base.get(),
            last: segment.last.get(),
            prev: segment.prev.get(),
            raw_bytes: segment.bytes,
            sha256: [0; 32],
            object: format!("seg/{}", segment.base.hex()),
            stored_bytes: 1,
            epoch: segment.epoch.0,
            frames: segment.frames,
            compaction: segment.compaction,
        }
    }

    #[test]
    fn what_differs_at_the_beginning_is_replaced_and_nothing_else() {
        let old = [
            local(100, 0, 199, 10),
            local(200, 199, 299, 10),
            local(300, 299, 399, 10),
            local(400, 399, 499, 10),
        ];
        let all: Vec<SegmentEntry> = old.iter().map(named).collect();
        assert_eq!(replacement(&old, &all), None);
        assert_eq!(
            replacement(&old, &all[..2]),
            None,
            "more local ones are for shipping"
        );
        assert_eq!(replacement(&old, &[]), None);

        let new = [
            local(5, 0, 6, 7),
            local(7, 6, 299, 8),
            old[2].clone(),
            old[3].clone(),
        ];
        let wanted = replacement(&new, &all[..3]).unwrap();
        assert_eq!(wanted, new[..2]);
        assert_eq!(end(&wanted).get(), 299);
        let mut after = all[..3].to_vec();
        let entries: Vec<SegmentEntry> = wanted.iter().map(named).collect();
        assert!(replace(&mut after, &entries));
        assert_eq!(replacement(&new, &after), None);
        assert_eq!(
            after.iter().map(|entry| entry.base).collect::<Vec<_>>(),
            [5, 7, 300]
        );

        // The other way round: a disk that was not compacted continues after one that was.
        assert_eq!(replacement(&old, &after).unwrap(), old[..2]);
        // The same base, other content.
        let again = [local(5, 0, 299, 15), old[2].clone()];
        assert_eq!(replacement(&again, &after).unwrap(), again[..1]);
        // What a manifest of format 1 left out is found in the segments that are here, and in no others.
        let mut unknown = all.clone();
        for entry in &mut unknown {
            (entry.epoch, entry.frames) = (0, 0);
        }
        complete(&mut unknown, &old[1..]);
        assert_eq!(unknown[1..], all[1..]);
        assert_eq!(unknown[0].frames, 0);
        // No end in common: nothing can be said.
        assert_eq!(replacement(&[local(5, 0, 350, 15)], &all[..2]), None);
        assert!(!replace(&mut after, &[named(&local(9, 0, 250, 1))]));
    }
}
