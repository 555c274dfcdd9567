//! Bringing a log back on an empty disk.
//!
//! ```text
//! marker file ─► newest manifest ─► checkpoint files ─┐
//!                       └─► sealed segments, in order ─► chunks behind them, in order ─► finish ─► remove the marker
//! ```
//! Everything is checked on the way: digests of objects, checksums and chain of every frame, epochs of the chain. A crash
//! at any point leaves the marker, and the next restore begins anew in a cleaned directory; without the marker the
//! directory is whole.
//!
//! A *lazy* restore leaves those segments in the replica that the checkpoint has folded already: the log is told of them and
//! fetches what is read. Without a usable checkpoint everything is fetched.
//!
//! A writer that is still at work may cover and delete chunks while we read; then there is a newer manifest, and the
//! restore starts over from that.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use engine::log::{AWAY_NAME, AwaySegment, Epoch, InstallError, LogId, Lsn, SealedUpload, SegmentInstaller};
use engine::storage::Storage;
use futures_util::{StreamExt, TryStreamExt};

use crate::checkpoint::digest_file;
use crate::chunk;
use crate::fence::{self, ReplicaError};
use crate::manifest::{CheckpointEntry, Manifest, SegmentEntry};
use crate::names::{Ordinal, WAL_PREFIX};
use crate::pit;
use crate::plan::ChainEnd;
use crate::requests::Requests;
use crate::sealed::{self, SealedError};
use crate::store::{ObjectName, ReplicaStore, StoreError};
use crate::tier;

/// The log's directory below a data directory.
pub const LOG_DIR: &str = "log";
/// The checkpoints' directory below a data directory.
pub const CHECKPOINT_DIR: &str = "ckpt";
/// Says that a restore has begun and has not ended.
pub const MARKER: &str = "restore-in-progress";
/// Where objects are put before they are unpacked.
const TEMP_DIR: &str = "restore-tmp";

/// How often a directory is emptied again into which something came while it was removed.
const REMOVE_TRIES: u32 = 100;
/// Chunks that are fetched at a time.
const CHUNKS_AT_A_TIME: usize = 8;
/// Files of a checkpoint that are fetched at a time, each by several ranges at once.
const FILES_AT_A_TIME: usize = 3;
/// Sealed segments that are fetched at a time.
const SEGMENTS_AT_A_TIME: usize = 2;
/// Most chunks that a restore lists.
const MAX_LISTED: usize = 1_000_000;
/// How often a restore starts over because a writer moved things along.
const MAX_ROUNDS: u32 = 5;

/// How far a restore is, in bytes of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Fetched and unpacked.
    pub bytes_done: u64,
    /// In all, as far as is known.
    pub bytes_total: u64,
}

/// Told about [`Progress`] after each object.
pub type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;

/// How to restore.
#[derive(Clone)]
pub struct RestoreOptions {
    /// The disk for the log's segments; checkpoints and temporary files go to the real one.
    pub storage: Arc<dyn Storage>,
    /// The longest that one request may take.
    pub request_timeout: Duration,
    /// Fetch a checkpoint of the views, if there is one.
    pub with_checkpoint: bool,
    /// Leave the segments in the replica that the checkpoint has folded. Whoever opens the log must attach a source.
    pub lazy: bool,
    /// Told about the progress.
    pub on_progress: Option<OnProgress>,
}

/// How long the parts took. Checkpoint and log are fetched at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreTimings {
    /// Finding and reading the manifest.
    pub manifest: Duration,
    /// The checkpoint's files.
    pub checkpoint: Duration,
    /// The sealed segments.
    pub segments: Duration,
    /// The chunks.
    pub chunks: Duration,
}

/// What was restored.
#[derive(Clone, Debug)]
pub struct Restored {
    /// The log.
    pub log_id: LogId,
    /// Its last LSN; zero if it has no frames.
    pub last_lsn: Lsn,
    /// The newest reign in the chain.
    pub last_epoch: Epoch,
    /// The directory of the newest usable checkpoint, and its LSN.
    pub checkpoint: Option<(PathBuf, Lsn)>,
    /// Segments that were left in the replica.
    pub away: usize,
    /// Their bytes.
    pub away_bytes: u64,
    /// What was wrong and could be done without: damaged checkpoints.
    pub warnings: Vec<String>,
    /// How long it took.
    pub timings: RestoreTimings,
}

/// Why nothing was restored. The destination is cleaned by the next try.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The replica cannot be read, or an object in it is damaged.
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    /// There is nothing to restore.
    #[error("there is no log in the replica {0}")]
    Empty(String),
    /// A sealed segment is damaged.
    #[error("segment {object} of the replica is damaged")]
    Segment {
        /// The object.
        object: String,
        /// What is wrong.
        #[source]
        source: SealedError,
    },
    /// An object's content is whole but is not what the manifest says.
    #[error("{object} of the replica is not what the manifest says")]
    NotAsNamed {
        /// The object.
        object: String,
    },
    /// The frames in an object do not fit.
    #[error("{object} of the replica cannot be installed")]
    Install {
        /// The object.
        object: String,
        /// What is wrong.
        #[source]
        source: InstallError,
    },
    /// What the wanted moment needs is not in the replica any more.
    #[error(
        "the replica has no history of that moment; the oldest that can be had is {} ({})",
        oldest.get(), String::from_utf8_lossy(&oldest.timestamp())
    )]
    NoHistory {
        /// The oldest state that can be had.
        oldest: Lsn,
    },
    /// There is a log already.
    #[error("{0} is not empty; restore into an empty directory")]
    NotEmpty(PathBuf),
    /// The local disk failed.
    #[error("{path}")]
    Local {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A writer kept covering chunks faster than they were read. Try again, or stop that writer.
    #[error("the replica kept changing while it was read; try again")]
    MovingTarget,
    /// A part of the work was lost.
    #[error("restoring: {0}")]
    Task(String),
}

impl From<StoreError> for RestoreError {
    fn from(error: StoreError) -> RestoreError {
        RestoreError::Replica(ReplicaError::Store(error))
    }
}

fn local(path: &Path) -> impl FnOnce(io::Error) -> RestoreError {
    let path = path.to_owned();
    move |source| RestoreError::Local { path, source }
}

/// Restores everything that the replica has into `dest`, as `log/` and `ckpt/<LSN, 16 hex>/`. Other files in `dest` are
/// left alone. Writes nothing to the replica. Requests that fail in passing are repeated for about a minute each.
///
/// # Errors
/// [`RestoreError`], naming the object at fault.
pub async fn restore(
    store: &Arc<dyn ReplicaStore>,
    dest: &Path,
    options: &RestoreOptions,
) -> Result<Restored, RestoreError> {
    let requests = Requests::new(store.clone(), options.request_timeout);
    begin(dest, options)?;
    for _ in 0..MAX_ROUNDS {
        let begun = Instant::now();
        let log_id = match fence::read_log_object(&requests).await? {
            Some(log) => log.log_id,
            None => {
                clean(dest, options)?;
                remove_marker(dest)?;
                return Err(RestoreError::Empty(store.describe()));
            }
        };
        let manifest = fence::newest_manifest(&requests, log_id).await?;
        let generation = manifest.generation();
        let work = Work::new(&requests, dest, options, manifest);
        let manifest_time = begun.elapsed();
        let outcome = Box::pin(work.run()).await;
        // A chunk that was deleted because a newer manifest covers it looks like damage, or like the end of the chain.
        let newer = fence::newest_generation(&requests, generation).await?;
        let newest = match newer.filter(|newer| *newer > generation) {
            None => None,
            Some(_) => Some(fence::newest_manifest(&requests, log_id).await?),
        };
        match (outcome, newest) {
            (Ok(restored), newest)
                if newest
                    .as_ref()
                    .is_none_or(|n| n.covered_lsn() <= restored.last_lsn) =>
            {
                remove_dir(&dest.join(TEMP_DIR))?;
                remove_marker(dest)?;
                let timings = RestoreTimings {
                    manifest: manifest_time,
                    ..restored.timings
                };
                return Ok(Restored { timings, ..restored });
            }
            (Err(error), None) => return Err(error),
            (outcome, _) => {
                let why = outcome
                    .err()
                    .map_or_else(|| "chunks were covered meanwhile".into(), |e| e.to_string());
                tracing::info!("the replica moved on while it was read; starting over: {why}");
                clean(dest, options)?;
            }
        }
    }
    Err(RestoreError::MovingTarget)
}

/// Restores as much of the log as is needed to tell the state at `cut`, and no checkpoint: live and displaced segments from
/// the beginning to the one that holds it, and the chunks behind them if it lies there. Without a `cut` it is all history that
/// there is. `dest` is otherwise as after [`restore`].
///
/// # Errors
/// [`RestoreError`], naming the object at fault; an object that is missing may have been deleted by a writer meanwhile.
pub async fn restore_history(
    store: &Arc<dyn ReplicaStore>,
    dest: &Path,
    cut: Option<Lsn>,
    options: &RestoreOptions,
) -> Result<Restored, RestoreError> {
    let options = RestoreOptions {
        with_checkpoint: false,
        ..options.clone()
    };
    let requests = Requests::new(store.clone(), options.request_timeout);
    begin(dest, &options)?;
    let Some(log) = fence::read_log_object(&requests).await? else {
        return Err(RestoreError::Empty(store.describe()));
    };
    let mut manifest = fence::newest_manifest(&requests, log.log_id).await?;
    let history = match cut {
        Some(cut) => pit::history(&manifest, cut),
        None => pit::longest(&manifest),
    };
    let history = history.ok_or_else(|| RestoreError::NoHistory {
        oldest: pit::oldest(&manifest).unwrap_or(Lsn::MAX),
    })?;
    manifest.segments = history.segments;
    let mut work = Work::new(&requests, dest, &options, manifest);
    work.with_chunks = history.goes_on;
    let restored = Box::pin(work.run()).await?;
    remove_dir(&dest.join(TEMP_DIR))?;
    remove_marker(dest)?;
    Ok(restored)
}

/// True if a restore into `dest` began and did not end; its content is then of no use.
#[must_use]
pub fn is_unfinished(dest: &Path) -> bool {
    dest.join(MARKER).exists()
}

fn begin(dest: &Path, options: &RestoreOptions) -> Result<(), RestoreError> {
    std::fs::create_dir_all(dest).map_err(local(dest))?;
    let marker = dest.join(MARKER);
    if marker.exists() {
        return clean(dest, options);
    }
    let log_dir = dest.join(LOG_DIR);
    options
        .storage
        .create_dir_all(&log_dir)
        .map_err(local(&log_dir))?;
    let names = options.storage.list(&log_dir).map_err(local(&log_dir))?;
    if names
        .iter()
        .any(|name| name.ends_with(".seg") || name == AWAY_NAME)
    {
        return Err(RestoreError::NotEmpty(log_dir));
    }
    let checkpoints = dest.join(CHECKPOINT_DIR);
    match std::fs::read_dir(&checkpoints) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Err(RestoreError::NotEmpty(checkpoints));
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(local(&checkpoints)(error)),
    }
    let file = std::fs::File::create(&marker).map_err(local(&marker))?;
    file.sync_all().map_err(local(&marker))?;
    sync_dir(dest)
}

/// Removes what an unfinished restore left.
fn clean(dest: &Path, options: &RestoreOptions) -> Result<(), RestoreError> {
    let log_dir = dest.join(LOG_DIR);
    options
        .storage
        .create_dir_all(&log_dir)
        .map_err(local(&log_dir))?;
    for name in options.storage.list(&log_dir).map_err(local(&log_dir))? {
        let is_of_the_log = [".seg", ".part", ".tmp"].iter().any(|end| name.ends_with(end));
        if is_of_the_log || name == AWAY_NAME {
            let path = log_dir.join(&name);
            options.storage.remove(&path).map_err(local(&path))?;
        }
    }
    remove_dir(&dest.join(CHECKPOINT_DIR))?;
    remove_dir(&dest.join(TEMP_DIR))
}

fn remove_dir(path: &Path) -> Result<(), RestoreError> {
    // A fetch that was given up may still be making its file, in a thread that nobody waits for.
    for _ in 0..REMOVE_TRIES {
        match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => std::thread::yield_now(),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(local(path)(error)),
            _ => return Ok(()),
        }
    }
    std::fs::remove_dir_all(path).map_err(local(path))
}

fn remove_marker(dest: &Path) -> Result<(), RestoreError> {
    let marker = dest.join(MARKER);
    sync_dir(dest)?;
    std::fs::remove_file(&marker).map_err(local(&marker))?;
    sync_dir(dest)
}

fn sync_dir(dir: &Path) -> Result<(), RestoreError> {
    std::fs::File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(local(dir))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RestoreError> + Send + 'static,
) -> Result<T, RestoreError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| RestoreError::Task(error.to_string()))?
}

struct Work<'a> {
    requests: &'a Requests,
    dest: &'a Path,
    options: &'a RestoreOptions,
    manifest: Manifest,
    /// Whether what lies behind the segments is wanted, too.
    with_chunks: bool,
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

/// The newest usable checkpoint, what was wrong with newer ones, and how long it took.
type ViewsPart = (Option<(PathBuf, Lsn)>, Vec<String>, Duration);

/// Whether a checkpoint is damaged or not there, so that another one may do.
fn is_unusable(error: &RestoreError) -> bool {
    matches!(
        error,
        RestoreError::NotAsNamed { .. }
            | RestoreError::Replica(ReplicaError::Store(StoreError::NotFound { .. }))
    )
}

fn create_dir(path: &Path) -> Result<(), RestoreError> {
    std::fs::create_dir_all(path).map_err(local(path))
}

impl<'a> Work<'a> {
    fn new(
        requests: &'a Requests,
        dest: &'a Path,
        options: &'a RestoreOptions,
        manifest: Manifest,
    ) -> Work<'a> {
        let mut total: u64 = manifest.segments.iter().map(|segment| segment.stored_bytes).sum();
        if let Some(newest) = manifest.checkpoints.first().filter(|_| options.with_checkpoint) {
            total += newest.files.iter().map(|file| file.size).sum::<u64>();
        }
        Work {
            requests,
            dest,
            options,
            manifest,
            with_chunks: true,
            done: AtomicU64::new(0),
            total: AtomicU64::new(total),
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

    async fn run(self) -> Result<Restored, RestoreError> {
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
                    Ok(((dir, time), log)) => {
                        let found = Some((dir, Lsn::saturating(checkpoint.lsn)));
                        return Ok(self.restored(log, (found, warnings, time), &away));
                    }
                    Err((true, error)) => {
                        tracing::error!("a checkpoint in the replica is of no use: {error}");
                        warnings.push(error.to_string());
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

    fn restored(
        &self,
        log: LogPart,
        (checkpoint, warnings, time): ViewsPart,
        away: &[AwaySegment],
    ) -> Restored {
        Restored {
            log_id: self.manifest.log_id(),
            last_lsn: log.last_lsn,
            last_epoch: log.end.epoch,
            checkpoint,
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
                    Ok(dir) => {
                        let found = Some((dir, Lsn::saturating(checkpoint.lsn)));
                        return Ok((found, warnings, begun.elapsed()));
                    }
                    Err(error) if is_unusable(&error) => {
                        tracing::error!("a checkpoint in the replica is of no use: {error}");
                        warnings.push(error.to_string());
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok((None, warnings, begun.elapsed()))
    }

    async fn checkpoint(&self, checkpoint: &CheckpointEntry) -> Result<PathBuf, RestoreError> {
        let parent = self.dest.join(CHECKPOINT_DIR);
        let name = Lsn::saturating(checkpoint.lsn).hex();
        let (unfinished, finished) = (parent.join(format!("{name}.tmp")), parent.join(name));
        std::fs::create_dir_all(&unfinished).map_err(local(&unfinished))?;
        let files = futures_util::stream::iter(checkpoint.files.clone());
        let fetched = files.map(|file| {
            let path = unfinished.join(&file.name);
            async move {
                let object = ObjectName::new(file.object.clone()).map_err(StoreError::from)?;
                self.requests.get_to_file(&object, &path).await?;
                let digest = blocking(move || digest_file(&path).map_err(local(&path))).await?;
                if digest != (file.size, file.sha256) {
                    return Err(RestoreError::NotAsNamed {
                        object: file.object.clone(),
                    });
                }
                self.progress(file.size);
                Ok(())
            }
        });
        // All of them end before anything is removed: a file that is being made would be in the way.
        let ended: Vec<Result<(), RestoreError>> = fetched.buffer_unordered(FILES_AT_A_TIME).collect().await;
        if let Err(error) = ended.into_iter().collect::<Result<(), _>>() {
            remove_dir(&unfinished)?;
            return Err(error);
        }
        std::fs::rename(&unfinished, &finished).map_err(local(&finished))?;
        sync_dir(&parent)?;
        Ok(finished)
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

struct UploadWriter(SealedUpload);

impl Write for UploadWriter {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.0.write(piece)?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn install_segment(
    mut installer: SegmentInstaller,
    segment: &SegmentEntry,
    path: &Path,
) -> Result<SegmentInstaller, RestoreError> {
    let object = || segment.object.clone();
    let install = |source| RestoreError::Install {
        object: object(),
        source,
    };
    let base = Lsn::saturating(segment.base);
    let mut stored = std::fs::File::open(path).map_err(local(path))?;
    let mut upload = UploadWriter(installer.sealed(base).map_err(install)?);
    let summary = sealed::decode(&mut stored, segment.stored_bytes, &mut upload).map_err(|source| {
        RestoreError::Segment {
            object: object(),
            source,
        }
    })?;
    let info = installer.install(upload.0).map_err(install)?;
    let as_named = summary.base == base
        && summary.sha256 == segment.sha256
        && summary.raw_bytes == segment.raw_bytes
        && (info.last.get(), info.prev.get()) == (segment.last, segment.prev);
    if !as_named {
        return Err(RestoreError::NotAsNamed { object: object() });
    }
    std::fs::remove_file(path).map_err(local(path))?;
    Ok(installer)
}

fn install_chunk(
    mut installer: SegmentInstaller,
    end: ChainEnd,
    object: String,
    bytes: &[u8],
) -> Result<(SegmentInstaller, ChainEnd), RestoreError> {
    let (header, raw) = chunk::decode(bytes).map_err(|source| ReplicaError::Chunk {
        object: object.clone(),
        source,
    })?;
    let end = end.follow(&header).map_err(|source| ReplicaError::Chain {
        object: object.clone(),
        source,
    })?;
    if !raw.is_empty() {
        let last = installer
            .append_frames(&raw)
            .map_err(|source| RestoreError::Install {
                object: object.clone(),
                source,
            })?;
        if last != header.last_lsn {
            return Err(RestoreError::NotAsNamed { object });
        }
    }
    Ok((installer, end))
}
