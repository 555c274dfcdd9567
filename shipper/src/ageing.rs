//! Which segments are old enough for a cheaper tier of the store, and where they have been put.
//!
//! A cool tier takes less for a GiB and more for whatever is done with it, and it takes a minimum: an object that is deleted or
//! moved on sooner costs as if it had stayed so long. A compaction rewrites the log from its beginning, so what is young may
//! soon be gone, and what has stayed long is likely to stay. Hence nothing is moved before it is as old as its new tier's
//! minimum, nor what is displaced, nor checkpoints and chunks, which all go soon. `docs/cost.md` does the sums.
//!
//! Segments are moved from the beginning of the log on, so two LSNs say where each of them is. A small object of the store keeps
//! them, for the next process; nothing is asked of the store to find out.
//!
//! ```json
//! {"compaction":3,"sinceMicros":1767225600000000,"coolThrough":1767300000000000,"coldThrough":0}
//! ```
//! `compaction` is that of the live segments, and `sinceMicros` is when this was first seen: after a compaction all segments are new
//! objects. If the object is lost, or two writers differ about it, the same moves are made once more, which costs their requests.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::manifest::{Manifest, SegmentEntry};
use crate::store::Tier;

/// The object that says what was moved.
pub const TIERS_OBJECT: &str = "tiers";
/// The least age of what goes to [`Tier::Cool`], which is also how long Azure charges it at least.
pub const LEAST_COOL: Duration = Duration::from_secs(30 * 86_400);
/// The least age of what goes to [`Tier::Cold`], likewise.
pub const LEAST_COLD: Duration = Duration::from_secs(90 * 86_400);
/// Smaller objects stay where they are: the request that moves one costs what it saves in months.
const LEAST_BYTES: u64 = 1 << 20;
/// Most objects that are moved at a look.
pub(crate) const MOVES_AT_A_LOOK: usize = 32;

/// When segments are moved; by default never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ageing {
    /// The age at which they go to [`Tier::Cool`], at least [`LEAST_COOL`]. `None`: never.
    pub cool_after: Option<Duration>,
    /// The age at which they go to [`Tier::Cold`], at least [`LEAST_COLD`]. `None`: never.
    pub cold_after: Option<Duration>,
    /// How often it is looked what is due; default an hour. A look at which nothing is due asks nothing of the store.
    pub look_every: Duration,
}

impl Default for Ageing {
    fn default() -> Ageing {
        Ageing {
            cool_after: None,
            cold_after: None,
            look_every: Duration::from_secs(3_600),
        }
    }
}

impl Ageing {
    /// Whether anything is ever moved.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.cool_after.is_some() || self.cold_after.is_some()
    }

    fn tier(&self, age: Duration) -> Tier {
        let is_due =
            |after: Option<Duration>, least: Duration| after.is_some_and(|after| age >= after.max(least));
        if is_due(self.cold_after, LEAST_COLD) {
            Tier::Cold
        } else if is_due(self.cool_after, LEAST_COOL) {
            Tier::Cool
        } else {
            Tier::Hot
        }
    }
}

/// What was moved, as the object tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Placed {
    /// The compaction of which the live segments are.
    compaction: u32,
    /// When that was first seen, in microseconds since 1970.
    since_micros: u64,
    /// Up to this LSN they are in the cool tier, or were too small for it.
    cool_through: u64,
    /// Up to this LSN they are in the cold tier, likewise.
    cold_through: u64,
}

/// A segment that is to be moved, or passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step<'a> {
    pub(crate) segment: &'a SegmentEntry,
    pub(crate) tier: Tier,
}

impl Step<'_> {
    /// Whether the object is worth a request.
    pub(crate) fn moves(&self) -> bool {
        self.segment.stored_bytes >= LEAST_BYTES
    }
}

/// Bytes of live segments in the cheaper tiers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cooled {
    /// In [`Tier::Cool`].
    pub cool: u64,
    /// In [`Tier::Cold`].
    pub cold: u64,
}

fn compaction(manifest: &Manifest) -> u32 {
    manifest.segments.first().map_or(0, |first| first.compaction)
}

impl Placed {
    /// What holds of the live segments of `manifest` at `now_micros`: this, or, if they have been compacted since, that they are new.
    pub(crate) fn of(self, manifest: &Manifest, now_micros: u64) -> Placed {
        let compaction = compaction(manifest);
        match self.compaction == compaction {
            true => self,
            false => Placed {
                compaction,
                since_micros: now_micros,
                ..Placed::default()
            },
        }
    }

    fn tier(&self, segment: &SegmentEntry) -> Tier {
        if segment.last <= self.cold_through {
            Tier::Cold
        } else if segment.last <= self.cool_through {
            Tier::Cool
        } else {
            Tier::Hot
        }
    }

    /// What is due at `now_micros`, from the beginning of the log on; the newest segment never is.
    pub(crate) fn due<'a>(&self, manifest: &'a Manifest, ageing: &Ageing, now_micros: u64) -> Vec<Step<'a>> {
        let segments = manifest.segments.split_last().map_or(&[][..], |(_, older)| older);
        let mut steps = Vec::new();
        let mut moves = 0;
        for segment in segments {
            // What was compacted is as old as its publication, what was appended as old as its last entry.
            let since = match segment.compaction {
                0 => segment.last,
                _ => self.since_micros,
            };
            let tier = ageing.tier(Duration::from_micros(now_micros.saturating_sub(since)));
            if tier == Tier::Hot {
                break;
            }
            if tier <= self.tier(segment) {
                continue;
            }
            let step = Step { segment, tier };
            moves += usize::from(step.moves());
            if moves > MOVES_AT_A_LOOK {
                break;
            }
            steps.push(step);
        }
        steps
    }

    /// The step was made.
    pub(crate) fn made(&mut self, step: &Step<'_>) {
        self.cool_through = self.cool_through.max(step.segment.last);
        if step.tier == Tier::Cold {
            self.cold_through = self.cold_through.max(step.segment.last);
        }
    }

    /// The bytes that are in the cheaper tiers.
    pub(crate) fn cooled(&self, manifest: &Manifest) -> Cooled {
        let mut cooled = Cooled::default();
        if self.compaction != compaction(manifest) {
            return cooled;
        }
        for segment in manifest
            .segments
            .iter()
            .filter(|segment| segment.stored_bytes >= LEAST_BYTES)
        {
            match self.tier(segment) {
                Tier::Hot => {}
                Tier::Cool => cooled.cool += segment.stored_bytes,
                Tier::Cold => cooled.cold += segment.stored_bytes,
            }
        }
        cooled
    }
}

#[cfg(test)]
mod tests;
