//! What is away and what is here: decided by whoever knows the disk budget and the replica, done here.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::lsn::Lsn;
use super::super::reader::{LogReader, ReadError};
use super::super::segment::segment_file_name;
use super::super::set::{SegmentEntry, SegmentSet};
use super::part::file_digest;
use super::{AwaySegment, SegmentSource, Tier, write_list};
use crate::storage::OpenMode;

/// How the log's bytes are divided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierUse {
    /// Segments that are away.
    pub away: usize,
    /// Their bytes.
    pub away_bytes: u64,
    /// What is here of them.
    pub part_bytes: u64,
    /// Segments that are here and could be evicted now.
    pub evictable: usize,
    /// Their bytes.
    pub evictable_bytes: u64,
}

/// What one step of bringing segments back did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hydrated {
    /// Nothing is away, or only what the replica has not got right.
    Nothing,
    /// A piece came.
    Piece {
        /// Its bytes.
        bytes: u64,
    },
    /// A segment is here again.
    Segment {
        /// Its base LSN.
        base: Lsn,
    },
    /// What came is not the segment: the replica's object is damaged. It was thrown away.
    Damaged {
        /// The segment's base LSN.
        base: Lsn,
    },
}

impl LogReader {
    /// Says where the bytes of segments are that are away.
    pub fn attach_source(&self, source: Arc<dyn SegmentSource>) {
        self.set.tier.attach(source);
    }

    /// Says what the replica has: only that can be evicted. Replaces what was said before.
    pub fn in_replica(&self, segments: impl IntoIterator<Item = AwaySegment>) {
        let segments = segments.into_iter().map(|away| (away.info.base, away));
        *self.set.tier.shipped.write() = segments.collect();
    }

    /// The segments whose bytes are not here, or not all, ascending.
    #[must_use]
    pub fn away(&self) -> Vec<Arc<AwaySegment>> {
        let entries = self.set.entries().into_iter();
        entries.filter_map(|entry| entry.away()).collect()
    }

    /// How the log's bytes are divided.
    #[must_use]
    pub fn tier_use(&self) -> TierUse {
        let mut sum = TierUse {
            part_bytes: self.set.tier.part_bytes.load(Ordering::Relaxed),
            ..TierUse::default()
        };
        for entry in self.set.entries() {
            if let Some(away) = entry.away() {
                sum.away += 1;
                sum.away_bytes += away.info.bytes;
            } else if let Some(shipped) = self.set.evictable(&entry) {
                sum.evictable += 1;
                sum.evictable_bytes += shipped.info.bytes;
            }
        }
        sum
    }

    /// Bounds the bytes that parts of away segments may have, from now on.
    pub fn set_part_room(&self, bytes: u64) {
        self.set.tier.part_room.store(bytes, Ordering::Relaxed);
        self.set.tier.shed_parts(Lsn::MAX);
    }

    /// Removes parts that a crash has left.
    ///
    /// # Errors
    /// The disk's.
    pub fn sweep_parts(&self) -> std::io::Result<()> {
        let tier = &self.set.tier;
        let parts = tier.parts.lock();
        for name in tier.storage.list(&tier.dir)? {
            let base = name.strip_suffix(".part").and_then(Lsn::from_hex);
            if base.is_some_and(|base| !parts.contains_key(&base)) {
                tier.storage.remove(&tier.dir.join(&name))?;
            }
        }
        Ok(())
    }

    /// Frees at least `wanted` bytes if it can: parts and segments that the replica has go, least used first. Returns how many
    /// bytes went. Reads each segment once to compare it with what the replica says that it has.
    ///
    /// # Errors
    /// The disk's; what was evicted before stays so.
    pub fn evict(&self, wanted: u64) -> Result<u64, ReadError> {
        let tier = &self.set.tier;
        let mut freed = 0;
        while freed < wanted {
            let segment = self
                .set
                .entries()
                .into_iter()
                .filter(|entry| self.set.evictable(entry).is_some())
                .min_by_key(|entry| (entry.last_used(), entry.header.base));
            let part = {
                let parts = tier.parts.lock();
                let free = parts.iter().filter(|(_, part)| !part.is_finishing());
                free.map(|(base, part)| (part.last_used(), *base)).min()
            };
            match (segment, part) {
                (Some(segment), part) if part.is_none_or(|(used, _)| segment.last_used() <= used) => {
                    freed += self.set.evict(&segment)?;
                }
                (_, Some((_, base))) => {
                    let dropped = tier.drop_part(&mut tier.parts.lock(), base);
                    freed += dropped.map_err(|source| ReadError::Io {
                        segment: base,
                        source,
                    })?;
                }
                (Some(_), None) | (None, None) => break,
            }
        }
        Ok(freed)
    }

    /// One step of bringing a segment back: what was read last comes first, then the newest. Waits for the source.
    ///
    /// # Errors
    /// [`ReadError::Away`] if the source has nothing now, or the disk's. Trying again later is right.
    pub fn hydrate(&self) -> Result<Hydrated, ReadError> {
        self.hydrate_through(Lsn::MAX)
    }

    /// As [`LogReader::hydrate`], of segments that end at or before `through`: for who needs all of these.
    ///
    /// # Errors
    /// As [`LogReader::hydrate`].
    pub fn hydrate_through(&self, through: Lsn) -> Result<Hydrated, ReadError> {
        let tier = &self.set.tier;
        let next = {
            let (parts, distrusted) = (tier.parts.lock(), tier.distrusted.lock());
            let used = |base: &Lsn| parts.get(base).map_or(0, |part| part.last_used());
            let entries = self.set.entries().into_iter();
            let away = entries.filter(|entry| {
                let ends = entry.away().map(|away| away.info.last);
                ends.is_some_and(|last| last <= through) && !distrusted.contains(&entry.header.base)
            });
            away.max_by_key(|entry| (used(&entry.header.base), entry.header.base))
        };
        match next {
            Some(entry) => {
                if through < Lsn::MAX {
                    entry.use_now();
                }
                tier.bring_back(&entry)
            }
            None => Ok(Hydrated::Nothing),
        }
    }
}

impl SegmentSet {
    /// What the replica has of a segment that may be evicted now.
    fn evictable(&self, entry: &SegmentEntry) -> Option<AwaySegment> {
        let info = entry.info();
        if !info.sealed
            || entry.away().is_some()
            || info.base.get() <= self.tier.pinned.load(Ordering::Acquire)
        {
            return None;
        }
        // Until it has ended, a start compares what it wrote with its journal.
        if self.pending().is_some_and(|pending| info.last <= pending.through) {
            return None;
        }
        if self.tier.distrusted.lock().contains(&info.base) {
            return None;
        }
        let shipped = self.tier.shipped.read().get(&info.base).cloned()?;
        let seen = super::SegmentInfo { sha256: None, ..info };
        (shipped.info == seen && shipped.header() == entry.header).then_some(shipped)
    }

    /// See the table at the top of [`tier`](super). Returns how many bytes went.
    fn evict(&self, entry: &SegmentEntry) -> Result<u64, ReadError> {
        let tier = &self.tier;
        let base = entry.header.base;
        let io = |source| ReadError::Io {
            segment: base,
            source,
        };
        let _one_at_a_time = tier.changing.lock();
        let Some(shipped) = self.evictable(entry) else {
            return Ok(0);
        };
        let path = self.path(base);
        if entry.known_digest() != Some(shipped.file_sha256) {
            let file = tier.storage.open(&path, OpenMode::Read).map_err(io)?;
            let same = file.len().map_err(io)? == shipped.info.bytes
                && file_digest(file.as_ref(), shipped.info.bytes).map_err(io)? == shipped.file_sha256;
            if !same {
                tracing::error!(
                    segment = %base.hex(),
                    "the segment on the disk is not what the replica says it has; it is kept, run pds-tools verify"
                );
                tier.distrusted.lock().insert(base);
                return Ok(0);
            }
            entry.set_digest(shipped.file_sha256);
        }
        {
            let mut list = tier.list.lock();
            if list.get(&base) != Some(&shipped) {
                let mut longer = list.clone();
                longer.insert(base, shipped.clone());
                write_list(tier.storage.as_ref(), &tier.dir, longer.values()).map_err(io)?;
                *list = longer;
            }
        }
        let bytes = shipped.info.bytes;
        // First, so that nobody looks for the file; who has it mapped keeps it until it is let go.
        let here = entry.go_away(Arc::new(shipped));
        if let Err(error) = tier.storage.remove(&path) {
            entry.come_back(here);
            return Err(io(error));
        }
        metrics::counter!("pds_tier_evictions_total", "what" => "segment").increment(1);
        Ok(bytes)
    }
}

impl Tier {
    /// The next piece of a segment that is away, or the segment if all pieces are here.
    pub(in super::super) fn bring_back(
        self: &Arc<Tier>,
        entry: &SegmentEntry,
    ) -> Result<Hydrated, ReadError> {
        let base = entry.header.base;
        let Some(away) = entry.away() else {
            return Ok(Hydrated::Segment { base });
        };
        let part = self.part(&away)?;
        if let Some(bytes) = part.bring_more()? {
            return Ok(Hydrated::Piece { bytes });
        }
        let io = |source| ReadError::Io {
            segment: base,
            source,
        };
        let _one_at_a_time = self.changing.lock();
        {
            // From here on it is not taken away; if it was meanwhile, the next step begins again.
            let parts = self.parts.lock();
            if !parts.get(&base).is_some_and(|known| Arc::ptr_eq(known, &part)) {
                return Ok(Hydrated::Piece { bytes: 0 });
            }
            part.set_finishing(true);
        }
        let finished = part.is_whole_and_right().and_then(|right| {
            if right {
                let (from, to) = (self.part_path(base), self.dir.join(segment_file_name(base)));
                self.storage.rename(&from, &to)?;
                self.storage.sync_dir(&self.dir)?;
            }
            Ok(right)
        });
        part.set_finishing(false);
        if finished.map_err(io)? {
            entry.set_digest(away.file_sha256);
            entry.come_back(away.info.clone());
            self.parts.lock().remove(&base);
            metrics::counter!("pds_tier_hydrated_bytes_total").increment(away.info.bytes);
            return Ok(Hydrated::Segment { base });
        }
        tracing::error!(
            segment = %base.hex(), object = away.object,
            "the replica's object is not the segment that it should be; run pds-tools verify on the replica"
        );
        self.distrusted.lock().insert(base);
        self.drop_part(&mut self.parts.lock(), base).map_err(io)?;
        Ok(Hydrated::Damaged { base })
    }
}
