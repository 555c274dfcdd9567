//! Following a replica whose writer is at work: reads the chain as it grows, and never writes.
//!
//! ```text
//! next chunk there? ── yes ─► its frames
//!        └─ no ─► a newer manifest that covers it? ── yes ─► the frames of the sealed segments, then on behind them
//!                          └─ no ─► nothing new
//! ```
//! A look that finds nothing costs one GET, and now and then one more for the next manifest; where there is much, up to eight chunks are
//! fetched at a time. Old manifests are deleted, so that the next one may have
//! come and gone: after a long pause the manifests are listed, and after 8, 64, 512… looks in a row that found nothing. So an
//! idle replica is hardly ever listed.

mod cutter;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::log::{LogId, Lsn};
use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;

use crate::chunk::{self, ChunkKind, MAX_RAW_BYTES};
use crate::fence::{self, ReplicaError};
use crate::manifest::{Manifest, SegmentEntry};
use crate::names::{Generation, Ordinal};
use crate::plan::ChainEnd;
use crate::requests::Requests;
use crate::sealed::{self, SealedError};
use crate::store::{ObjectName, ReplicaStore, StoreError};
use cutter::Cutter;

/// The pieces in which a sealed segment's frames are told, in bytes (one group may be bigger).
const PIECE_BYTES: usize = 4 << 20;
/// Misses after which the next manifest is asked for: chunks vanish only when one covers them.
const MANIFEST_EVERY: u32 = 8;
/// Chunks that are fetched at a time, at most, where all that were asked for last were there.
const MOST_AHEAD: usize = 8;
/// One at a time after so many bytes at once: big chunks are fast enough, and memory is short.
const AHEAD_BYTES: usize = 1 << 20;
/// After so long without a look, the manifests are listed: the next one may be gone.
const LONG_PAUSE: Duration = Duration::from_secs(30);

/// How to follow.
#[derive(Clone, Debug)]
pub struct FollowOptions {
    /// The longest that one request may take.
    pub request_timeout: Duration,
    /// Where a sealed segment is put while it is read.
    pub temp_dir: PathBuf,
}

/// What one look found.
#[derive(Debug)]
pub enum Look {
    /// Frames that follow what was told before, whole groups of them.
    Frames(Bytes),
    /// The writer changed, or said that it is done: see [`Tracker::end`].
    Mark,
    /// Nothing that is not known already.
    Nothing,
}

/// Why following does not go on.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The store failed; look again later.
    #[error("replica store")]
    Store(#[from] StoreError),
    /// An object of the replica is damaged.
    #[error(transparent)]
    Replica(ReplicaError),
    /// A sealed segment of the replica is damaged.
    #[error("segment {object} of the replica is damaged")]
    Segment {
        /// The object.
        object: String,
        /// What is wrong.
        #[source]
        source: SealedError,
    },
    /// The replica holds no log, or another one.
    #[error("the replica does not hold log {0}")]
    ForeignLog(LogId),
    /// What follows what is here was compacted away. Take everything from the replica anew.
    #[error("what follows {have} in the replica was compacted; start over from the replica")]
    Compacted {
        /// Where the follower stands.
        have: Lsn,
    },
    /// A part of the work was lost.
    #[error("following the replica: {0}")]
    Task(String),
}

impl FollowError {
    /// Whether another look may succeed.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, FollowError::Store(_))
    }
}

impl From<ReplicaError> for FollowError {
    fn from(error: ReplicaError) -> FollowError {
        match error {
            ReplicaError::Store(error) => FollowError::Store(error),
            other => FollowError::Replica(other),
        }
    }
}

/// Whether `number` is `base` to the power of one or more.
fn is_power(number: u32, base: u32) -> bool {
    let mut power = base;
    while power < number {
        power = power.saturating_mul(base);
    }
    power == number
}

/// A place in a replica's chain.
pub struct Tracker {
    requests: Requests,
    options: FollowOptions,
    log_id: LogId,
    manifest: Manifest,
    end: ChainEnd,
    /// The last frame that was told.
    have: Lsn,
    /// Sealed segments that come before the chunks.
    segments: VecDeque<SegmentEntry>,
    /// What is being read of one of them.
    reading: Option<Reading>,
    misses: u32,
    looked: Instant,
    /// Chunks that were fetched with the one before them, from `end.next` on.
    fetched: VecDeque<Bytes>,
    /// How many are fetched at a time.
    window: usize,
}

/// A sealed segment whose frames are being told.
struct Reading {
    object: String,
    pieces: mpsc::Receiver<Bytes>,
    work: tokio::task::JoinHandle<Result<(), SealedError>>,
}

impl Tracker {
    /// Begins behind `have`, which must be the LSN of a frame of this log, or zero.
    ///
    /// # Errors
    /// [`FollowError`].
    pub async fn begin(
        store: &Arc<dyn ReplicaStore>,
        options: FollowOptions,
        log_id: LogId,
        have: Lsn,
    ) -> Result<Tracker, FollowError> {
        let requests = Requests::new(store.clone(), options.request_timeout);
        let there = fence::read_log_object(&requests).await?;
        if there.is_none_or(|log| log.log_id != log_id) {
            return Err(FollowError::ForeignLog(log_id));
        }
        let manifest = fence::newest_manifest(&requests, log_id).await?;
        let mut tracker = Tracker {
            requests,
            options,
            log_id,
            end: ChainEnd::after(&manifest),
            manifest: Manifest::empty(log_id),
            have,
            segments: VecDeque::new(),
            reading: None,
            misses: 0,
            looked: Instant::now(),
            fetched: VecDeque::new(),
            window: 1,
        };
        tracker.adopt(manifest)?;
        Ok(tracker)
    }

    /// How far the chain is known. Its last LSN may be ahead of the frames that were told.
    #[must_use]
    pub fn end(&self) -> &ChainEnd {
        &self.end
    }

    /// The newest manifest that was read.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The compaction that made the replica's first segments, as far as is known; zero for none.
    #[must_use]
    pub fn compaction(&self) -> u32 {
        self.manifest
            .segments
            .first()
            .map_or(0, |segment| segment.compaction)
    }

    /// The last frame that was told.
    #[must_use]
    pub fn have(&self) -> Lsn {
        self.have
    }

    /// Looks once.
    ///
    /// # Errors
    /// [`FollowError`]. After one that is [passing](FollowError::is_passing) nothing was missed.
    pub async fn look(&mut self) -> Result<Look, FollowError> {
        loop {
            if let Some(frames) = self.sealed_frames().await? {
                return Ok(Look::Frames(frames));
            }
            let name = ObjectName::new(self.end.next.object_name()).map_err(StoreError::from)?;
            let paused = self.looked.elapsed() > LONG_PAUSE;
            if self.fetched.is_empty() {
                self.fetch_chunks().await?;
            }
            self.looked = Instant::now();
            let Some(bytes) = self.fetched.pop_front() else {
                self.misses = self.misses.saturating_add(1);
                // Chunks are covered soon after they were written: the first miss asks, too.
                if !paused && self.misses != 1 && !self.misses.is_multiple_of(MANIFEST_EVERY) {
                    return Ok(Look::Nothing);
                }
                let list = paused || is_power(self.misses, MANIFEST_EVERY);
                if self.newer_manifest(list).await? {
                    self.misses = 0;
                    continue;
                }
                return Ok(Look::Nothing);
            };
            self.misses = 0;
            let object = name.to_string();
            let (header, raw) = chunk::decode(&bytes).map_err(|source| ReplicaError::Chunk {
                object: object.clone(),
                source,
            })?;
            // A claimant that came too late may have put its fence under a name that was free again because the chunk there
            // was covered and deleted. Such a fence is void and leads nowhere, which the newest manifest tells.
            if header.kind == ChunkKind::Fence {
                let newest = match fence::newest_manifest(&self.requests, self.log_id).await {
                    Ok(newest) => newest,
                    Err(error) => {
                        // It is looked at again.
                        self.fetched.clear();
                        return Err(error.into());
                    }
                };
                if newest.covered_through >= header.ordinal.0 && self.adopt(newest)? {
                    continue;
                }
            }
            self.end = self
                .end
                .follow(&header)
                .map_err(|source| ReplicaError::Chain { object, source })?;
            if self.end.next != Ordinal(header.ordinal.0 + 1) {
                // A fence leaves a gap behind it.
                self.fetched.clear();
            }
            if header.kind != ChunkKind::Data {
                return Ok(Look::Mark);
            }
            if header.last_lsn <= self.have {
                continue;
            }
            self.have = header.last_lsn;
            return Ok(Look::Frames(raw.into()));
        }
    }

    /// Fetches the next chunks, none if there are none: several at a time while there are, or a writer at work would never be overtaken.
    async fn fetch_chunks(&mut self) -> Result<(), FollowError> {
        let requests = &self.requests;
        let bound = (chunk::HEADER_BYTES + MAX_RAW_BYTES) as u64;
        let ordinals = (self.end.next.0..).take(self.window).map(Ordinal);
        let mut chunks = stream::iter(ordinals)
            .map(|ordinal| async move {
                let name = ObjectName::new(ordinal.object_name()).map_err(StoreError::from)?;
                match requests.get(&name, bound).await {
                    Ok(bytes) => Ok(Some(bytes)),
                    Err(StoreError::NotFound { .. }) => Ok(None),
                    Err(error) => Err(error),
                }
            })
            .buffered(self.window);
        let (mut bytes, mut failed) = (0, false);
        while let Some(chunk) = chunks.next().await {
            match chunk {
                Ok(Some(chunk)) => {
                    bytes += chunk.len();
                    self.fetched.push_back(chunk);
                }
                Ok(None) => break,
                // Those before it are good; it is asked for again as the first.
                Err(_) if !self.fetched.is_empty() => {
                    failed = true;
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        drop(chunks);
        self.window = match self.fetched.len() {
            _ if bytes > AHEAD_BYTES => 1,
            // A failure says nothing about how many there are.
            _ if failed => self.window,
            all if all == self.window => (all * 2).min(MOST_AHEAD),
            some => some.max(1),
        };
        Ok(())
    }

    /// Reads the newest manifest, also if there is no other reason to.
    ///
    /// # Errors
    /// [`FollowError`]. After one that is [passing](FollowError::is_passing) nothing was missed.
    pub async fn refresh(&mut self) -> Result<(), FollowError> {
        self.newer_manifest(true).await?;
        Ok(())
    }

    /// Reads the next manifest if there is one; true if it may have what was missed.
    async fn newer_manifest(&mut self, list: bool) -> Result<bool, FollowError> {
        let mut moved = false;
        if list
            && let Some(newest) = fence::newest_generation(&self.requests, self.manifest.generation()).await?
            && newest > self.manifest.generation()
        {
            // Gone since it was listed: there is a newer one, which the next look finds.
            if let Some(manifest) = fence::read_manifest(&self.requests, self.log_id, newest).await? {
                moved |= self.adopt(manifest)?;
            }
        }
        loop {
            let next = self.manifest.generation().next();
            match fence::read_manifest(&self.requests, self.log_id, next).await? {
                Some(manifest) => moved |= self.adopt(manifest)?,
                None => return Ok(moved),
            }
        }
    }

    /// Makes a manifest the one that is known. True if it covers chunks that were not seen.
    fn adopt(&mut self, manifest: Manifest) -> Result<bool, FollowError> {
        let covers_more =
            manifest.next_ordinal() > self.end.next || self.manifest.generation() == Generation::NONE;
        if covers_more {
            let missing = manifest.segments.iter().filter(|s| s.last > self.have.get());
            self.segments = missing.cloned().collect();
            self.reading = None;
            let gap = self
                .segments
                .front()
                .is_some_and(|first| first.prev > self.have.get());
            // What a compaction wrote has LSNs of its own and cannot follow anything.
            if gap || self.segments.iter().any(|segment| segment.compaction > 0) {
                return Err(FollowError::Compacted { have: self.have });
            }
            self.end = ChainEnd::after(&manifest);
            self.fetched.clear();
        }
        self.manifest = manifest;
        Ok(covers_more)
    }

    /// The next frames of the sealed segments that come first; `None` if there are no more.
    async fn sealed_frames(&mut self) -> Result<Option<Bytes>, FollowError> {
        loop {
            if let Some(reading) = &mut self.reading {
                if let Some(frames) = reading.pieces.recv().await {
                    if let Some(last) = cutter::last_lsn(&frames) {
                        self.have = self.have.max(last);
                    }
                    return Ok(Some(frames));
                }
                let object = std::mem::take(&mut reading.object);
                let ended = (&mut reading.work).await;
                self.reading = None;
                ended
                    .map_err(|error| FollowError::Task(error.to_string()))?
                    .map_err(|source| FollowError::Segment { object, source })?;
                let done = self.segments.pop_front();
                if done.is_some_and(|segment| segment.last != self.have.get()) {
                    return Err(FollowError::Compacted { have: self.have });
                }
            }
            let Some(segment) = self.segments.front() else {
                return Ok(None);
            };
            if segment.prev > self.have.get() {
                return Err(FollowError::Compacted { have: self.have });
            }
            self.reading = Some(self.fetch(segment.clone()).await?);
        }
    }

    async fn fetch(&self, segment: SegmentEntry) -> Result<Reading, FollowError> {
        let temp = tempfile::NamedTempFile::new_in(&self.options.temp_dir)
            .map_err(|error| FollowError::Task(format!("{}: {error}", self.options.temp_dir.display())))?;
        let name = ObjectName::new(segment.object.clone()).map_err(StoreError::from)?;
        let size = self.requests.get_to_file(&name, temp.path()).await?;
        let (sender, pieces) = mpsc::channel(1);
        let (after, last) = (self.have, Lsn::saturating(segment.last));
        let work = tokio::task::spawn_blocking(move || {
            let mut stored = std::fs::File::open(temp.path())?;
            let mut cutter = Cutter::new(after, last, PIECE_BYTES, sender);
            let summary = sealed::decode(&mut stored, size, &mut cutter)?;
            if summary.sha256 != segment.sha256 {
                return Err(SealedError::Checksum("segment"));
            }
            cutter.finish()?;
            Ok(())
        });
        Ok(Reading {
            object: segment.object,
            pieces,
            work,
        })
    }
}
