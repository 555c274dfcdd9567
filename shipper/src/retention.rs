//! What a compaction or a newer checkpoint has displaced, and the one rule that says when it goes.
//!
//! A displaced segment S belongs to a history that ends at S.through, from where on others tell the same. It goes as soon as
//! all of these hold:
//! - nobody can ask for a state of before S.through: it is at or before the beginning of the point-in-time window, and at or
//!   before every position that the caller protects (standbys, readers of old segments);
//! - with a window, a checkpoint that was made of the segments in its place, at or behind S.through, has been *verified*: read
//!   back, opened, counted. One that was only uploaded proves nothing.
//!
//! The firehose's floor needs no term: a compaction never goes beyond it, so what is displaced lies below.
//!
//! A displaced checkpoint only saves work, since a fold over the segments gives the same. One a span (an eighth of the window)
//! stays, and the newest; verified ones only, and back to the newest of before the window, that one included.
//!
//! What went by this rule stays as an object for as long as somebody reads the replica by a manifest that names it, a restore
//! for instance: see [`readers`](crate::readers).
//!
//! Age alone decides nothing: what begins before the window stays while something inside the window needs it.

pub(crate) mod verify;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use engine::log::Lsn;

use crate::manifest::{CheckpointEntry, Displaced, DisplacedCheckpoint, DisplacedSegment, Manifest};

/// Into so many spans a window is divided; one displaced checkpoint stays of each, and one checkpoint a span is verified.
const SPANS: u64 = 8;

/// Says before which LSN nothing may be deleted, because somebody outside of the log still reads there; `None` while there is nobody.
/// Is asked whenever something might be deleted, so it must answer at once.
#[derive(Clone)]
pub struct Protect(Arc<dyn Fn() -> Option<Lsn> + Send + Sync>);

impl Protect {
    /// Protects what is not before the LSN that `position` gives.
    pub fn new(position: impl Fn() -> Option<Lsn> + Send + Sync + 'static) -> Protect {
        Protect(Arc::new(position))
    }

    pub(crate) fn position(&self) -> Option<Lsn> {
        (self.0)()
    }
}

impl Default for Protect {
    fn default() -> Protect {
        Protect::new(|| None)
    }
}

impl fmt::Debug for Protect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Protect({:?})", self.position())
    }
}

/// The rule at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The oldest state that anybody may ask for.
    floor: Lsn,
    /// Microseconds between two checkpoints that stay; zero without a window, and then nothing needs to be verified.
    span: u64,
}

impl Rule {
    /// The rule at `now_micros` for a point-in-time window (zero: none), and the oldest position that is in use.
    #[must_use]
    pub fn at(now_micros: u64, window: Duration, protected: Option<Lsn>) -> Rule {
        let window = u64::try_from(window.as_micros()).unwrap_or(u64::MAX);
        let begin = match window {
            0 => Lsn::MAX,
            _ => Lsn::saturating(now_micros.saturating_sub(window)),
        };
        Rule {
            floor: protected.map_or(begin, |protected| protected.min(begin)),
            span: window / SPANS,
        }
    }

    /// Whether a displaced segment is needed by nobody any more.
    fn ends(&self, segment: &DisplacedSegment, manifest: &Manifest) -> bool {
        segment.through <= self.floor.get() && (self.span == 0 || is_proven(segment, manifest))
    }

    /// Which of the displaced checkpoints stay, by their places in the list.
    fn checkpoints(&self, manifest: &Manifest) -> HashSet<usize> {
        let displaced = manifest.displaced.checkpoints.iter().enumerate();
        let mut verified: Vec<(u64, usize)> = displaced
            .filter(|(_, displaced)| self.span > 0 && displaced.entry.verified_at_micros > 0)
            .map(|(place, displaced)| (displaced.entry.lsn, place))
            .collect();
        verified.sort_unstable();
        let live = manifest
            .checkpoints
            .iter()
            .filter(|live| live.verified_at_micros > 0);
        let lsns = verified
            .iter()
            .map(|(lsn, _)| *lsn)
            .chain(live.map(|live| live.lsn));
        let before_the_window = lsns.filter(|lsn| *lsn <= self.floor.get()).max().unwrap_or(0);
        let (mut stay, mut last) = (HashSet::new(), None);
        verified.retain(|(lsn, _)| *lsn >= before_the_window);
        for (lsn, place) in &verified {
            if last.is_none_or(|last| lsn - last >= self.span) {
                last = Some(lsn);
                stay.insert(*place);
            }
        }
        // The newest may be the only one that proves something of the last compaction.
        stay.extend(verified.last().map(|(_, place)| place));
        stay
    }
}

/// Whether a checkpoint that was made of what took this segment's place is known to be good.
fn is_proven(segment: &DisplacedSegment, manifest: &Manifest) -> bool {
    let proves =
        |checkpoint: &CheckpointEntry| checkpoint.verified_at_micros > 0 && checkpoint.lsn >= segment.through;
    // The live ones were made after the last compaction; a displaced one was if it was displaced later than the segment.
    manifest.checkpoints.iter().any(proves)
        || manifest
            .displaced
            .checkpoints
            .iter()
            .any(|displaced| displaced.at_micros > segment.at_micros && proves(&displaced.entry))
}

/// Whether `rule` lets anything of what `manifest` keeps go.
#[must_use]
pub fn anything_ends(manifest: &Manifest, rule: &Rule) -> bool {
    let displaced = &manifest.displaced;
    displaced
        .segments
        .iter()
        .any(|segment| rule.ends(segment, manifest))
        || rule.checkpoints(manifest).len() < displaced.checkpoints.len()
}

/// What stays displaced in `manifest` by `rule`.
#[must_use]
pub fn kept(manifest: &Manifest, rule: &Rule) -> Displaced {
    let stay = rule.checkpoints(manifest);
    let displaced = &manifest.displaced;
    let segments = displaced.segments.iter();
    let checkpoints = displaced.checkpoints.iter().enumerate();
    Displaced {
        segments: segments
            .filter(|segment| !rule.ends(segment, manifest))
            .cloned()
            .collect(),
        checkpoints: checkpoints
            .filter(|(place, _)| stay.contains(place))
            .map(|(_, checkpoint)| checkpoint.clone())
            .collect(),
    }
}

/// Puts what `before` has in its live lists and `next` has not among what is displaced.
pub(crate) fn displace(before: &Manifest, next: &mut Manifest, at_micros: u64) {
    let live: HashSet<&str> = {
        let segments = next.segments.iter().map(|segment| segment.object.as_str());
        let files = next.checkpoints.iter().flat_map(|checkpoint| &checkpoint.files);
        segments.chain(files.map(|file| file.object.as_str())).collect()
    };
    let is_live = |checkpoint: &CheckpointEntry| {
        let mut files = checkpoint.files.iter();
        files.any(|file| live.contains(file.object.as_str()))
    };
    let gone: Vec<_> = before
        .segments
        .iter()
        .filter(|segment| !live.contains(segment.object.as_str()))
        .cloned()
        .collect();
    let mut displaced = next.displaced.clone();
    // What an operator brings back from another disk may be live again.
    displaced
        .segments
        .retain(|segment| !live.contains(segment.entry.object.as_str()));
    displaced
        .checkpoints
        .retain(|checkpoint| !is_live(&checkpoint.entry));
    let through = gone.last().map_or(0, |last| last.last);
    displaced
        .segments
        .extend(gone.into_iter().map(|entry| DisplacedSegment {
            entry,
            through,
            at_micros,
        }));
    let gone = before
        .checkpoints
        .iter()
        .filter(|checkpoint| !is_live(checkpoint));
    displaced.checkpoints.extend(
        gone.cloned()
            .map(|entry| DisplacedCheckpoint { entry, at_micros }),
    );
    next.displaced = displaced;
}

/// The greatest LSN such that no displaced segment has anything of a repo that was removed at or before it.
#[must_use]
pub fn erased_through(displaced: &Displaced) -> Lsn {
    let through = displaced
        .segments
        .iter()
        .map(|segment| match segment.entry.compaction {
            // Everything in it was written from its base on; a removal before that concerns nothing in it.
            0 => segment.entry.base.saturating_sub(1),
            // What the compaction that wrote it found removed is not in it.
            _ => end_of_group(displaced, segment),
        });
    Lsn::saturating(through.min().unwrap_or(Lsn::MAX.get()))
}

/// Where the compaction ended whose segments were displaced together with this one.
fn end_of_group(displaced: &Displaced, of: &DisplacedSegment) -> u64 {
    let group = displaced.segments.iter().filter(|segment| {
        (segment.at_micros, segment.entry.compaction) == (of.at_micros, of.entry.compaction)
    });
    group.map(|segment| segment.entry.last).max().unwrap_or(0)
}

/// Which checkpoint is to be verified now, if any: the newest, once after each compaction and once a span.
pub(crate) fn to_verify(manifest: &Manifest, now_micros: u64, window: Duration) -> Option<&CheckpointEntry> {
    let span = Rule::at(now_micros, window, None).span;
    let newest = manifest.checkpoints.first()?;
    if span == 0 || newest.verified_at_micros > 0 {
        return None;
    }
    let displaced = &manifest.displaced;
    let all = manifest.checkpoints.iter();
    let all = all.chain(displaced.checkpoints.iter().map(|displaced| &displaced.entry));
    let last = all
        .map(|checkpoint| checkpoint.verified_at_micros)
        .max()
        .unwrap_or(0);
    let unproven = displaced
        .segments
        .iter()
        .any(|segment| !is_proven(segment, manifest));
    (unproven || last.saturating_add(span) <= now_micros).then_some(newest)
}
