//! What of the log is on the disk and what only in the replica, within the disk budget.
//!
//! Every second the bytes below the data directory are counted. Near the budget what was read longest ago goes: pieces of segments
//! that are away, and segments that the replica has. *Near* is 95 %, or less where a copy of the views, which every checkpoint
//! makes, would not fit above it; 5 % below that is enough. 15 % below, segments that are away come back, one at a time and not faster
//! than the settings say, as long as the next one fits. Parts of segments may take what is left up to there. What cannot go (the views, checkpoints, what is not shipped)
//! may be more than the budget: then it is said once and counted, and writes go on as long as the disk takes them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use engine::log::{Hydrated, LEAST_PART_BYTES, LogReader, ReadError, TierUse};
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::config::BlobPlace;

/// How often the disk is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long segments are not brought back after the replica could not be read.
const AFTER_FAILURE: Duration = Duration::from_secs(30);

/// How full the disk is, for those who plan something big. Zero where nobody has looked yet.
#[derive(Debug, Default)]
pub struct DiskUse {
    /// Where eviction begins, in bytes.
    near: AtomicU64,
    /// What cannot go, in bytes.
    fixed: AtomicU64,
}

impl DiskUse {
    /// Whether `bytes` more that cannot go fit into the budget. Yes while nobody has looked.
    #[must_use]
    pub fn fits(&self, bytes: u64) -> bool {
        let near = self.near.load(Ordering::Relaxed);
        near == 0 || self.fixed.load(Ordering::Relaxed).saturating_add(bytes) <= near
    }
}

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    used: u64,
    budget: u64,
    /// What a checkpoint takes while it is made.
    views: u64,
    log: TierUse,
}

impl Look {
    /// What cannot go.
    fn fixed(&self) -> u64 {
        self.used
            .saturating_sub(self.log.evictable_bytes)
            .saturating_sub(self.log.part_bytes)
    }

    /// What is used, and what reads of segments that are away are promised in any case.
    fn taken(&self) -> u64 {
        let promised = if self.log.away > 0 { LEAST_PART_BYTES } else { 0 };
        self.used + promised.saturating_sub(self.log.part_bytes)
    }

    /// Where eviction begins.
    fn near(&self) -> u64 {
        self.budget.saturating_sub(self.views.max(self.budget / 20))
    }

    /// Where eviction ends.
    fn enough(&self) -> u64 {
        self.near().saturating_sub(self.budget / 20)
    }

    /// How far segments are brought back.
    fn comfortable(&self) -> u64 {
        self.near().saturating_sub(self.budget / 20 * 3)
    }

    /// What should go now.
    fn excess(&self) -> u64 {
        if self.taken() > self.near() {
            self.taken() - self.enough()
        } else {
            0
        }
    }

    /// How many bytes parts may have.
    fn part_room(&self) -> u64 {
        self.log.part_bytes + self.near().saturating_sub(self.used)
    }

    /// Whether the largest segment that is away may come back.
    fn may_hydrate(&self, largest: u64) -> bool {
        self.log.away > 0 && self.taken().saturating_add(largest) <= self.comfortable()
    }
}

struct Keeper {
    reader: LogReader,
    data_dir: PathBuf,
    /// Media blobs, which have no bound here.
    spared: Option<PathBuf>,
    configured: Option<u64>,
    reserve: u64,
}

impl Keeper {
    fn look(&self) -> std::io::Result<Look> {
        let used = bytes_below(&self.data_dir, self.spared.as_deref())?;
        let disk = rustix::fs::statvfs(&self.data_dir)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let there = used.saturating_add(free).saturating_sub(self.reserve);
        Ok(Look {
            used,
            budget: self.configured.unwrap_or(u64::MAX).min(there),
            // The copy, and what it shrinks to, which is shipped: mostly a quarter.
            views: bytes_of_files(&self.data_dir)? / 4 * 5,
            log: self.reader.tier_use(),
        })
    }

    /// A look, and what follows from it at once.
    fn keep(&self) -> std::io::Result<Look> {
        let mut look = self.look()?;
        if look.excess() > 0 {
            match self.reader.evict(look.excess()) {
                Ok(0) => {}
                Ok(bytes) => {
                    tracing::info!(
                        bytes,
                        used = look.used,
                        budget = look.budget,
                        "evicted what the replica has"
                    );
                    look = self.look()?;
                }
                Err(error) => tracing::warn!(%error, "evicting segments failed"),
            }
        }
        self.reader.set_part_room(look.part_room());
        Ok(look)
    }

    fn largest_away(&self) -> u64 {
        let away = self.reader.away();
        away.iter().map(|away| away.info.bytes).max().unwrap_or_default()
    }
}

/// Bytes of the files in `dir` itself: the views.
fn bytes_of_files(dir: &Path) -> std::io::Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir)? {
        if let Ok(meta) = entry?.metadata()
            && meta.is_file()
        {
            sum += meta.len();
        }
    }
    Ok(sum)
}

/// Bytes that the files below `dir` take on the disk. Files that go meanwhile do not count.
fn bytes_below(dir: &Path, spared: Option<&Path>) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let gone = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    let mut sum = 0;
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if gone(&error) => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                Err(error) if gone(&error) => continue,
                Err(error) => return Err(error),
            };
            if meta.is_dir() {
                if Some(entry.path().as_path()) != spared {
                    dirs.push(entry.path());
                }
            } else {
                sum += meta.blocks() * 512;
            }
        }
    }
    Ok(sum)
}

/// Keeps the disk within its budget until `stop`.
pub(super) async fn tiering(app: Arc<App>, stop: CancellationToken) {
    let keeper = Arc::new(Keeper {
        reader: app.engine.log_reader(),
        data_dir: app.config.data_dir.clone(),
        spared: match &app.config.blobs {
            BlobPlace::Disk(dir) => Some(dir.clone()),
            BlobPlace::Replica | BlobPlace::S3(_) => None,
        },
        configured: app.config.disk_budget,
        reserve: app.config.import_disk.keep_free,
    });
    let rate = app.config.hydration_bytes_per_second;
    if let Err(error) = keeper.reader.sweep_parts() {
        tracing::warn!(%error, "parts of segments that a crash has left are still there");
    }
    let mut look = None;
    let (mut looked, mut quiet_until, mut over) = (Instant::now(), Instant::now(), false);
    let mut pause = Duration::ZERO;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = LOOK;
        if look.is_none() || looked.elapsed() >= LOOK {
            let at_work = Arc::clone(&keeper);
            looked = Instant::now();
            look = match tokio::task::spawn_blocking(move || at_work.keep()).await {
                Ok(Ok(found)) => {
                    tell(&app.disk, &found, &mut over);
                    Some(found)
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the data directory cannot be counted");
                    None
                }
                Err(_) => return,
            };
        }
        let may = look.is_some_and(|look| look.may_hydrate(keeper.largest_away()));
        if !may || rate == 0 || Instant::now() < quiet_until {
            continue;
        }
        let reader = keeper.reader.clone();
        match tokio::task::spawn_blocking(move || reader.hydrate()).await {
            Ok(Ok(Hydrated::Piece { bytes })) => {
                pause = Duration::from_secs_f64(bytes as f64 / rate as f64);
                if let Some(look) = &mut look {
                    // What comes back is not there for reads.
                    look.used += bytes;
                    look.log = keeper.reader.tier_use();
                    keeper.reader.set_part_room(look.part_room());
                }
            }
            Ok(Ok(Hydrated::Segment { base })) => {
                tracing::debug!(segment = %base.hex(), "a segment is here again");
                pause = Duration::ZERO;
            }
            Ok(Ok(Hydrated::Damaged { .. } | Hydrated::Nothing)) => {}
            Ok(Err(error)) => {
                let away = matches!(error, ReadError::Away { .. });
                tracing::warn!(%error, away, "a segment could not be brought back; it is tried again");
                quiet_until = Instant::now() + AFTER_FAILURE;
            }
            Err(_) => return,
        }
    }
}

fn tell(disk: &DiskUse, look: &Look, over: &mut bool) {
    disk.fixed.store(look.fixed(), Ordering::Relaxed);
    disk.near.store(look.near().max(1), Ordering::Relaxed);
    metrics::gauge!("pds_disk_used_bytes").set(look.used as f64);
    metrics::gauge!("pds_disk_budget_bytes").set(look.budget as f64);
    metrics::gauge!("pds_disk_fixed_bytes").set(look.fixed() as f64);
    metrics::gauge!("pds_tier_away_segments").set(look.log.away as f64);
    metrics::gauge!("pds_tier_away_bytes").set(look.log.away_bytes as f64);
    metrics::gauge!("pds_tier_part_bytes").set(look.log.part_bytes as f64);
    metrics::gauge!("pds_tier_evictable_bytes").set(look.log.evictable_bytes as f64);
    let is_over = look.fixed() > look.budget;
    if is_over && !*over {
        tracing::warn!(
            fixed = look.fixed(),
            budget = look.budget,
            "what must stay on the disk is more than its budget: give it more, or see why the replica is behind"
        );
    }
    *over = is_over;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In millions of bytes.
    fn look(used: u64, evictable: u64, parts: u64) -> Look {
        Look {
            used: used * M,
            budget: 1_000 * M,
            views: 10 * M,
            log: TierUse {
                away: 1,
                away_bytes: 5_000 * M,
                part_bytes: parts * M,
                evictable: 1,
                evictable_bytes: evictable * M,
            },
        }
    }

    const M: u64 = 1_000_000;

    #[test]
    fn it_evicts_near_the_budget_and_brings_back_far_from_it() {
        for (used, excess, hydrates) in [
            (100, 0, true),
            (700, 0, true),
            (701, 0, false),
            (950, 0, false),
            (951, 51, false),
            (2_000, 1_100, false),
        ] {
            let there = look(used, 0, 50);
            assert_eq!(
                (there.excess(), there.may_hydrate(100 * M)),
                (excess * M, hydrates),
                "{used}"
            );
            // With larger views all happens that much earlier.
            let earlier = Look {
                views: 100 * M,
                used: there.used - 50 * M,
                ..there
            };
            assert_eq!(
                (earlier.excess(), earlier.may_hydrate(100 * M)),
                (excess * M, hydrates),
                "{used}"
            );
        }
        assert_eq!(look(900, 300, 100).fixed(), 500 * M);
        assert_eq!(look(900, 300, 100).part_room(), 150 * M);
        assert_eq!(look(1_200, 300, 100).part_room(), 100 * M);
        // What reads are promised counts before they have it.
        assert_eq!(look(900, 0, 0).taken(), 900 * M + LEAST_PART_BYTES);
        let mut none_away = look(900, 0, 0);
        none_away.log.away = 0;
        assert_eq!(none_away.taken(), 900 * M);
    }

    #[test]
    fn something_big_fits_if_what_cannot_go_leaves_room() {
        let disk = DiskUse::default();
        assert!(disk.fits(u64::MAX), "nobody has looked");
        let mut over = false;
        tell(&disk, &look(900, 300, 100), &mut over);
        assert!(disk.fits(450 * M) && !disk.fits(450 * M + 1) && !over);
        tell(&disk, &look(1_900, 300, 100), &mut over);
        assert!(over && !disk.fits(0));
    }

    #[test]
    fn everything_is_counted_but_the_blobs() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("log");
        std::fs::create_dir_all(&sub).unwrap();
        std::fs::write(sub.join("a"), vec![1; 100_000]).unwrap();
        let without = bytes_below(dir.path(), None).unwrap();
        assert!((100_000..200_000).contains(&without), "{without}");
        let blobs = dir.path().join("blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join("b"), vec![1; 1_000_000]).unwrap();
        assert_eq!(bytes_below(dir.path(), Some(&blobs)).unwrap(), without);
        assert!(bytes_below(dir.path(), None).unwrap() >= without + 1_000_000);
        // A file with holes counts what it takes.
        let sparse = std::fs::File::create(sub.join("c")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        assert!(bytes_below(dir.path(), Some(&blobs)).unwrap() < without + 100_000);
    }
}
