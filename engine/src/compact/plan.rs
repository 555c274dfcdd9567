//! Whether it pays to compact, and up to where: a pure function of what is known about each segment.
//!
//! A compaction always begins at the log's first segment. So whatever was written and deleted again within its span is
//! gone for good, no deletion has to be remembered, and what it writes needs nothing before it. It goes as far as it
//! may. It costs about what is left; it frees the rest. Begun only when the rest is a good part of the whole, it costs a
//! bounded number of bytes per byte freed, however large the store is.

use crate::log::{Lsn, SegmentInfo};
use crate::views::index::SegmentUse;

/// Bytes that a record takes in a compacted segment besides its block: its row, its path, its share of framing.
const RECORD_OVERHEAD_BYTES: u64 = 90;
/// Bytes that a repo takes besides its commit.
const REPO_OVERHEAD_BYTES: u64 = 120;

/// When a compaction is worth it.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// The last LSN that may be compacted: everything up to there is applied, shipped if there is a replica, and older
    /// than what the firehose keeps.
    pub limit: Lsn,
    /// Share of the bytes up to there that must be dead, 0 to 1.
    pub min_dead_share: f64,
    /// Bytes that must be dead, so that small logs are left alone.
    pub min_dead_bytes: u64,
    /// Compacts for the sake of deletions whatever the share is, if there is an entry that was never compacted at or
    /// before this LSN.
    pub force_before: Lsn,
    /// Compacts whatever the share is if it can reach the entry of this LSN, and that was never compacted: the removal of a
    /// repo whose bytes have stayed for long enough.
    pub erase: Option<Lsn>,
}

/// What a compaction would do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Up to which LSN: the last of a sealed segment.
    pub through: Lsn,
    /// How many segments it would replace.
    pub segments: usize,
    /// Their bytes.
    pub bytes: u64,
    /// About how many bytes would take their place.
    pub bytes_after: u64,
    /// Whether it should be done now.
    pub due: bool,
}

impl Plan {
    /// About how many bytes it would free.
    #[must_use]
    pub fn freed(&self) -> u64 {
        self.bytes.saturating_sub(self.bytes_after)
    }

    /// Share of the bytes that it would free, 0 to 1.
    #[must_use]
    pub fn dead_share(&self) -> f64 {
        if self.bytes == 0 {
            0.0
        } else {
            self.freed() as f64 / self.bytes as f64
        }
    }
}

/// What is best to do now; `None` if there is nothing that may be compacted. `segments` and `uses` ascend.
#[must_use]
pub fn plan(segments: &[SegmentInfo], uses: &[SegmentUse], policy: &Policy) -> Option<Plan> {
    let may = |segment: &&SegmentInfo| segment.sealed && segment.last <= policy.limit;
    let run: Vec<&SegmentInfo> = segments.iter().take_while(may).collect();
    let last = run.last()?;
    let (mut bytes, mut bytes_after) = (0, 0);
    for segment in &run {
        bytes += segment.bytes;
        if let Ok(at) = uses.binary_search_by_key(&segment.base, |used| used.segment)
            && let Some(used) = uses.get(at)
        {
            bytes_after +=
                used.bytes() + used.records * RECORD_OVERHEAD_BYTES + used.commits * REPO_OVERHEAD_BYTES;
        }
    }
    let mut plan = Plan {
        through: last.last,
        segments: run.len(),
        bytes,
        bytes_after: bytes_after.min(bytes),
        due: false,
    };
    let pays = plan.freed() >= policy.min_dead_bytes && plan.dead_share() >= policy.min_dead_share;
    let mut fresh = run.iter().filter(|segment| segment.compaction == 0);
    plan.due = pays
        || fresh.any(|segment| {
            let has = |lsn: Lsn| segment.prev < lsn && lsn <= segment.last;
            segment.last <= policy.force_before || policy.erase.is_some_and(has)
        });
    Some(plan)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Epoch;

    fn segment(n: u64, bytes: u64, compaction: u32) -> SegmentInfo {
        let lsn = |n| Lsn::saturating(n * 100);
        SegmentInfo {
            base: Lsn::saturating(n * 100 + 1),
            first: Lsn::saturating(n * 100 + 1),
            last: lsn(n + 1),
            prev: lsn(n),
            epoch: Epoch(1),
            sealed: n < 9,
            bytes,
            frames: 1,
            sha256: None,
            compaction,
        }
    }

    fn used(n: u64, records: u64, bytes: u64) -> SegmentUse {
        SegmentUse {
            segment: Lsn::saturating(n * 100 + 1),
            records,
            record_bytes: bytes,
            commits: 0,
            commit_bytes: 0,
        }
    }

    fn policy(limit: u64) -> Policy {
        Policy {
            limit: Lsn::saturating(limit),
            min_dead_share: 0.5,
            min_dead_bytes: 1_000,
            force_before: Lsn::ZERO,
            erase: None,
        }
    }

    #[test]
    fn it_goes_as_far_as_it_may_and_only_when_it_pays() {
        let segments: Vec<_> = (0..10).map(|n| segment(n, 10_000, u32::from(n < 2))).collect();
        let uses: Vec<_> = (0..10)
            .map(|n| used(n, 10, if n < 2 { 8_000 } else { 1_000 }))
            .collect();
        assert_eq!(
            plan(&segments, &uses, &policy(99)),
            None,
            "the first segment is too young"
        );
        let first = plan(&segments, &uses, &policy(299)).unwrap();
        assert_eq!(
            (first.through.get(), first.segments, first.bytes),
            (200, 2, 20_000)
        );
        assert_eq!(first.bytes_after, 2 * (8_000 + 900));
        assert!(!first.due, "compacted segments that are in use stay");
        let all = plan(&segments, &uses, &policy(10_000)).unwrap();
        assert_eq!(
            (all.through.get(), all.segments, all.due),
            (900, 9, true),
            "the open one stays"
        );
        assert_eq!(all.freed(), 90_000 - 2 * 8_900 - 7 * 1_900);
    }

    #[test]
    fn small_gains_are_left_unless_deletions_wait() {
        let segments = [segment(0, 900, 0), segment(1, 10_000, 0)];
        let uses = [used(1, 10, 9_000)];
        let tiny = Policy {
            min_dead_share: 0.9,
            ..policy(200)
        };
        assert!(!plan(&segments, &uses, &tiny).unwrap().due);
        let waits = Policy {
            force_before: Lsn::saturating(100),
            ..tiny
        };
        assert!(plan(&segments, &uses, &waits).unwrap().due);
        let removed = |lsn| Policy {
            erase: Some(Lsn::saturating(lsn)),
            ..tiny
        };
        assert!(plan(&segments, &uses, &removed(200)).unwrap().due);
        assert!(
            !plan(&segments, &uses, &removed(201)).unwrap().due,
            "the removal is in the segment behind"
        );
        let compacted = [segment(0, 900, 3), segment(1, 10_000, 0)];
        assert!(
            !plan(&compacted, &uses, &removed(50)).unwrap().due,
            "the removal was compacted away"
        );
        let compacted = [segment(0, 900, 3), segment(1, 10_000, 3)];
        assert!(
            !plan(&compacted, &uses, &waits).unwrap().due,
            "it was done already"
        );
        assert!(!plan(&compacted, &uses, &removed(150)).unwrap().due);
    }
}
