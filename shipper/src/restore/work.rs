//! One round of a restore: what a manifest names is fetched.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use engine::log::{AwaySegment, LogId, Lsn, SegmentInstaller};
use engine::views::checkpoint::{CheckpointManifest, MANIFEST_BYTES_MAX, MANIFEST_NAME};
use futures_util::{StreamExt, TryStreamExt};

use super::install::{install_chunk, install_segment};
use super::place::{TEMP_DIR, blocking, clean, create_dir, local, remove_dir, sync_dir};
use super::{CHECKPOINT_DIR, LOG_DIR, Progress, RestoreError, RestoreOptions, RestoreTimings, Restored};
use crate::checkpoint::fetch::{FetchError, fetch};
use crate::checkpoint::object::Stored;
use crate::fence::ReplicaError;
use crate::handle::with_sources;
use crate::manifest::{CheckpointEntry, Manifest, SegmentEntry};
use crate::names::{Ordinal, WAL_PREFIX};
use crate::plan::ChainEnd;
use crate::readers::Reading;
use crate::requests::Requests;
use crate::store::{ObjectName, StoreError};
use crate::tier;

/// Chunks that are fetched at a time.
const CHUNKS_AT_A_TIME: usize = 8;
/// Files of a checkpoint that are fetched at a time, each by several ranges at once.
const FILES_AT_A_TIME: usize = 3;
/// Sealed segments that are fetched at a time.
const SEGMENTS_AT_A_TIME: usize = 2;
/// Most chunks that a restore lists.
const MAX_LISTED: usize = 1_000_000;

/// A round, from one manifest.
pub(super) struct Work<'a> {
    requests: &'a Requests,
    dest: &'a Path,
    options: &'a RestoreOptions,
    reading: &'a Reading,
    manifest: Manifest,
    /// Whether what lies behind the segments is wanted, too.
    pub(super) with_chunks: bool,
    done: AtomicU64,
    total: AtomicU64,
}

/// What the log's part of a restore found.
struct LogPart {
    last_lsn: Lsn,
    end: ChainEnd,
    segments: Duration,
    chunks: Duration,
}

/// A checkpoint that was fetched.
struct Views {
    dir: PathBuf,
    lsn: Lsn,
    sound: bool,
}

/// The newest usable checkpoint, what was wrong with newer ones, and how long it took.
type ViewsPart = (Option<Views>, Vec<String>, Duration);

/// Whether a checkpoint is damaged or not there, so that another one may do.
fn is_unusable(error: &RestoreError) -> bool {
    matches!(
        error,
        RestoreError::NotAsNamed { .. }
            | RestoreError::Unsound { .. }
            | RestoreError::Replica(ReplicaError::Store(StoreError::NotFound { .. }))
    )
}

/// Compares the files of a checkpoint with what it says of them itself; false if it says nothing.
fn is_sound(dir: &Path, log_id: LogId, lsn: Lsn, files: &[(String, Stored)]) -> Result<bool, RestoreError> {
    if files.iter().all(|(name, _)| name != MANIFEST_NAME) {
        return Ok(false);
    }
    let unsound = |what: String| RestoreError::Unsound { lsn, what };
    let path = dir.join(MANIFEST_NAME);
    let mut bytes = Vec::new();
    std::fs::File::open(&path)
        .and_then(|file| file.take(MANIFEST_BYTES_MAX as u64 + 1).read_to_end(&mut bytes))
        .map_err(local(&path))?;
    let said = CheckpointManifest::from_bytes(&bytes).map_err(|error| unsound(error.to_string()))?;
    if (said.lsn, said.log_id) != (lsn, log_id) {
        return Err(unsound("it is of another LSN or log".to_owned()));
    }
    for file in &said.files {
        let expected = Stored {
            bytes: file.size,
            sha256: file.sha256,
        };
        if !files.contains(&(file.name.clone(), expected)) {
            return Err(unsound(format!("{} is another", file.name)));
        }
    }
    Ok(true)
}

impl<'a> Work<'a> {
    pub(super) fn new(
        requests: &'a Requests,
        dest: &'a Path,
        options: &'a RestoreOptions,
        reading: &'a Reading,
        manifest: Manifest,
    ) -> Work<'a> {
        let mut total: u64 = manifest.segments.iter().map(|segment| segment.stored_bytes).sum();
        if let Some(newest) = manifest.checkpoints.first().filter(|_| options.with_checkpoint) {
            total += newest.stored_bytes();
        }
        Work {
            requests,
            dest,
            options,
            reading,
            manifest,
            with_chunks: true,
            done: AtomicU64::new(0),
            total: AtomicU64::new(total),
        }
    }

    /// Ends a try whose objects may be gone, before all the others are fetched.
    fn is_worth_it(&self) -> Result<(), RestoreError> {
        match self.reading.is_late() {
            true => Err(RestoreError::MovingTarget),
            false => Ok(()),
        }
    }

    fn progress(&self, bytes: u64) {
        let bytes_done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(on_progress) = &self.options.on_progress {
            let bytes_total = self.total.load(Ordering::Relaxed).max(bytes_done);
            on_progress(Progress {
                bytes_done,
                bytes_total,
            });
        }
    }

    pub(super) async fn run(self) -> Result<Restored, RestoreError> {
        let temp = self.dest.join(TEMP_DIR);
        let mut warnings = Vec::new();
        if self.options.lazy && self.options.with_checkpoint {
            for checkpoint in &self.manifest.checkpoints {
                let away = self.folded(checkpoint);
                if away.is_empty() {
                    break;
                }
                create_dir(&temp)?;
                let begun = Instant::now();
                let fetch = async {
                    let fetched = self.checkpoint(checkpoint).await;
                    let fetched = fetched.map_err(|error| (is_unusable(&error), error))?;
                    Ok((fetched, begun.elapsed()))
                };
                let log = async { self.log(&temp, &away).await.map_err(|error| (false, error)) };
                let left: u64 = away.iter().map(|away| away.object_bytes).sum();
                self.total.fetch_sub(left, Ordering::Relaxed);
                // Both to their ends: what is installed holds the log's lock.
                let (fetched, log) = tokio::join!(fetch, log);
                match fetched.and_then(|fetched| Ok((fetched, log?))) {
                    Ok(((views, time), log)) => {
                        return Ok(self.restored(log, (Some(views), warnings, time), &away));
                    }
                    Err((true, error)) => {
                        tracing::error!(
                            "a checkpoint in the replica is of no use: {}",
                            with_sources(&error)
                        );
                        warnings.push(with_sources(&error));
                        // Another checkpoint needs other segments.
                        self.total.fetch_add(left, Ordering::Relaxed);
                        clean(self.dest, self.options)?;
                    }
                    Err((false, error)) => return Err(error),
                }
            }
        }
        create_dir(&temp)?;
        let (mut views, log) = tokio::try_join!(self.newest_checkpoint(), self.log(&temp, &[]))?;
        // Those of the same checkpoint are the same.
        warnings.retain(|warning| !views.1.contains(warning));
        views.1.extend(warnings);
        Ok(self.restored(log, views, &[]))
    }

    /// The segments that need not be read because the checkpoint has what is in them.
    fn folded(&self, checkpoint: &CheckpointEntry) -> Vec<AwaySegment> {
        let log_id = self.manifest.log_id();
        let segments = self.manifest.segments.iter();
        let folded = segments.take_while(|segment| segment.last <= checkpoint.lsn);
        folded
            .map_while(|segment| tier::away_segment(log_id, segment))
            .collect()
    }

    fn restored(&self, log: LogPart, (views, warnings, time): ViewsPart, away: &[AwaySegment]) -> Restored {
        Restored {
            log_id: self.manifest.log_id(),
            last_lsn: log.last_lsn,
            last_epoch: log.end.epoch,
            sound: views.as_ref().filter(|views| views.sound).map(|views| views.lsn),
            checkpoint: views.map(|views| (views.dir, views.lsn)),
            away: away.len(),
            away_bytes: away.iter().map(|away| away.info.bytes).sum(),
            warnings,
            timings: RestoreTimings {
                manifest: Duration::ZERO,
                checkpoint: time,
                segments: log.segments,
                chunks: log.chunks,
            },
        }
    }

    /// The newest checkpoint that is whole. Views can be rebuilt from the log, so damage is a warning.
    async fn newest_checkpoint(&self) -> Result<ViewsPart, RestoreError> {
        let begun = Instant::now();
        let mut warnings = Vec::new();
        if self.options.with_checkpoint {
            for checkpoint in &self.manifest.checkpoints {
                match self.checkpoint(checkpoint).await {
                    Ok(views) => return Ok((Some(views), warnings, begun.elapsed())),
                    Err(error) if is_unusable(&error) => {
                        tracing::error!(
                            "a checkpoint in the replica is of no use: {}",
                            with_sources(&error)
                        );
                        warnings.push(with_sources(&error));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok((None, warnings, begun.elapsed()))
    }

    async fn checkpoint(&self, checkpoint: &CheckpointEntry) -> Result<Views, RestoreError> {
        let parent = self.dest.join(CHECKPOINT_DIR);
        let name = Lsn::saturating(checkpoint.lsn).hex();
        let (unfinished, finished) = (parent.join(format!("{name}.tmp")), parent.join(name));
        std::fs::create_dir_all(&unfinished).map_err(local(&unfinished))?;
        let files = futures_util::stream::iter(checkpoint.files.clone());
        let fetched = files.map(|file| {
            let path = unfinished.join(&file.name);
            async move {
                let raw = fetch(self.requests, &file, &path)
                    .await
                    .map_err(|error| match error {
                        FetchError::Store(error) => error.into(),
                        FetchError::NotAsNamed { object, what } => {
                            tracing::warn!(object, what, "a file of a checkpoint is damaged");
                            RestoreError::NotAsNamed { object }
                        }
                        FetchError::Local(error) => local(&path)(error),
                    })?;
                self.progress(file.stored_bytes);
                Ok((file.name, raw))
            }
        });
        // All of them end before anything is removed: a file that is being made would be in the way.
        let ended: Vec<Result<_, RestoreError>> = fetched.buffer_unordered(FILES_AT_A_TIME).collect().await;
        let lsn = Lsn::saturating(checkpoint.lsn);
        let ended = ended.into_iter().collect::<Result<Vec<_>, _>>();
        let sound = match ended.and_then(|files| is_sound(&unfinished, self.manifest.log_id(), lsn, &files)) {
            Ok(sound) => sound,
            Err(error) => {
                remove_dir(&unfinished)?;
                return Err(error);
            }
        };
        std::fs::rename(&unfinished, &finished).map_err(local(&finished))?;
        sync_dir(&parent)?;
        Ok(Views {
            dir: finished,
            lsn,
            sound,
        })
    }

    /// All segments but those that are away, and the chunks.
    async fn log(&self, temp: &Path, away: &[AwaySegment]) -> Result<LogPart, RestoreError> {
        let log_dir = self.dest.join(LOG_DIR);
        let (storage, log_id) = (self.options.storage.clone(), self.manifest.log_id());
        let left = away.to_vec();
        let mut installer = blocking(move || {
            let begun = SegmentInstaller::begin(storage, &log_dir, log_id).and_then(|mut installer| {
                installer.away(&left)?;
                Ok(installer)
            });
            begun.map_err(|source| RestoreError::Install {
                object: "the log".into(),
                source,
            })
        })
        .await?;
        let begun = Instant::now();
        let rest = self.manifest.segments.get(away.len()..).unwrap_or_default();
        let mut fetched = futures_util::stream::iter(rest.to_vec())
            .map(|segment| self.fetch_segment(segment, temp))
            .buffered(SEGMENTS_AT_A_TIME);
        while let Some((segment, path)) = fetched.try_next().await? {
            let stored_bytes = segment.stored_bytes;
            installer = blocking(move || install_segment(installer, &segment, &path)).await?;
            self.progress(stored_bytes);
            self.is_worth_it()?;
        }
        drop(fetched);
        let segments = begun.elapsed();
        let begun = Instant::now();
        let (installer, end) = self.chunks(installer).await?;
        let last_lsn = blocking(move || {
            let finished = installer.finish();
            finished.map_err(|source| RestoreError::Install {
                object: "the log".into(),
                source,
            })
        })
        .await?;
        Ok(LogPart {
            last_lsn,
            end,
            segments,
            chunks: begun.elapsed(),
        })
    }

    async fn fetch_segment(
        &self,
        segment: SegmentEntry,
        temp: &Path,
    ) -> Result<(SegmentEntry, PathBuf), RestoreError> {
        let name = ObjectName::new(segment.object.clone()).map_err(StoreError::from)?;
        let path = temp.join(Lsn::saturating(segment.base).hex());
        let size = self.requests.get_to_file(&name, &path).await?;
        if size != segment.stored_bytes {
            return Err(RestoreError::NotAsNamed {
                object: segment.object,
            });
        }
        Ok((segment, path))
    }

    /// The chunks behind the segments, up to the first hole.
    async fn chunks(
        &self,
        mut installer: SegmentInstaller,
    ) -> Result<(SegmentInstaller, ChainEnd), RestoreError> {
        let mut end = ChainEnd::after(&self.manifest);
        if !self.with_chunks {
            return Ok((installer, end));
        }
        let before = Ordinal(end.next.0.saturating_sub(1)).object_name();
        let listed = self
            .requests
            .list_all(WAL_PREFIX, Some(&before), MAX_LISTED)
            .await?;
        self.total
            .fetch_add(listed.iter().map(|object| object.size).sum(), Ordering::Relaxed);
        let requests = self.requests;
        let objects = listed
            .into_iter()
            .filter_map(|object| Some((Ordinal::from_object_name(object.name.as_str())?, object)));
        let mut fetched = futures_util::stream::iter(objects)
            .map(|(ordinal, object)| async move {
                let bytes = requests.get(&object.name, object.size).await;
                (ordinal, object.name.as_str().to_owned(), bytes)
            })
            .buffered(CHUNKS_AT_A_TIME);
        while let Some((ordinal, object, bytes)) = fetched.next().await {
            if ordinal < end.next {
                continue; // A stray in the gap behind a fence.
            }
            if ordinal > end.next {
                break;
            }
            let bytes = bytes?;
            let size = bytes.len() as u64;
            let from = end;
            (installer, end) = blocking(move || install_chunk(installer, from, object, &bytes)).await?;
            self.progress(size);
        }
        Ok((installer, end))
    }
}
