//! A replica: every live object by its own checksums, the chain of chunks, and then all of it restored and checked as a
//! data directory. Only reads.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use engine::clock::SystemClock;
use engine::log::{LogId, Lsn};
use engine::storage::OsStorage;
use engine::views::checkpoint::Checkpoints;
use futures_util::future;
use shipper::checkpoint::{UnpackError, check_object};
use shipper::chunk::{self, ChunkHeader, ChunkKind, HEADER_BYTES, MAX_IN_FLIGHT, MAX_RAW_BYTES};
use shipper::fence::ReplicaError;
use shipper::log_object::LogObject;
use shipper::manifest::{FileEntry, MAX_MANIFEST_BYTES, Manifest, SegmentEntry};
use shipper::names::{Generation, LOG_OBJECT, MANIFEST_PREFIX, Ordinal, WAL_PREFIX};
use shipper::plan::ChainEnd;
use shipper::readers::Announce;
use shipper::restore::{self, CHECKPOINT_DIR, Progress, RestoreError, RestoreOptions};
use shipper::sealed;
use shipper::store::{ObjectMeta, ObjectName, ReplicaStore, RetryPolicy, StoreError, list_all, retry};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::{LogFacts, Report, Room};

/// Most objects of one kind that are listed.
const MAX_LISTED: usize = 1_000_000;
/// Most bytes of a chunk's object: frames that do not shrink grow a little.
const MAX_CHUNK_BYTES: u64 = (HEADER_BYTES + MAX_RAW_BYTES + (1 << 20)) as u64;
/// How often the check starts over because a running server moved things along.
const MAX_ROUNDS: u32 = 5;
/// The time for one object, all tries together.
const OBJECT_TIME: Duration = Duration::from_secs(300);
/// Small objects that are fetched at a time: the time of each is that of the way there and back.
const AT_ONCE: usize = 8;
/// Bytes of segments or files of checkpoints that are fetched at a time; one may have more.
const BYTES_AT_ONCE: u64 = 8 << 20;
/// The longest that one request of a restore may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// What to do about an object of the log.
const RESHIP: &str =
    "if the server still has its disk, make a new replica from there; else restore what is before it";
/// What to do about a checkpoint.
const DISPENSABLE: &str = "a restore does without it; the server's next checkpoint replaces it";
/// What to do about a segment that has been displaced.
const ONLY_THE_PAST: &str =
    "nothing of today is missing, but points in time before the last compaction may not be restorable";

/// Which objects of a replica are looked at. The manifest and the chain always are.
#[derive(Clone, Copy, Debug)]
pub enum Scope {
    /// All that are named.
    Everything,
    /// The newest checkpoint, the newest segment, and others by chance, about so many bytes of them.
    Sample {
        /// Bytes of objects.
        bytes: u64,
        /// The chance.
        seed: u64,
    },
}

/// Checks a replica: its objects, then all of it restored. `None` if it is so damaged that nothing was restored.
///
/// # Errors
/// The check could not be run to its end; that is no statement about the data.
pub fn check(
    runtime: &Handle,
    store: &Arc<dyn ReplicaStore>,
    room: Room<'_>,
    report: &mut Report<'_>,
) -> anyhow::Result<Option<LogFacts>> {
    let temp = tempfile::Builder::new()
        .prefix("pds-verify-")
        .tempdir_in(room.temp);
    let temp = temp.context("making a temporary directory")?;
    let room = Room {
        temp: temp.path(),
        ..room
    };
    let looked = runtime.block_on(objects(store, room.temp, Scope::Everything, report))?;
    let Some(log_id) = looked else { return Ok(None) };
    restored(runtime, store, room, log_id, report)
}

/// Restores a replica and checks what comes of it.
///
/// # Errors
/// As [`check`].
pub(crate) fn restored(
    runtime: &Handle,
    store: &Arc<dyn ReplicaStore>,
    room: Room<'_>,
    log_id: LogId,
    report: &mut Report<'_>,
) -> anyhow::Result<Option<LogFacts>> {
    let dir = room.temp.join("restored");
    match blocking_restore(runtime, store, &dir, report) {
        Ok(found) => {
            for warning in found.warnings {
                report.note(warning);
            }
        }
        Err(error) => match error.downcast_ref::<RestoreError>() {
            Some(RestoreError::Replica(ReplicaError::Store(StoreError::NotFound { .. }))) => {
                report.finding("replica", format!("it cannot be restored: {error:#}"), RESHIP);
                return Ok(None);
            }
            Some(
                RestoreError::Replica(ReplicaError::Store(_))
                | RestoreError::Local { .. }
                | RestoreError::Task(_),
            )
            | None => return Err(error).context("restoring into a temporary directory"),
            Some(_) => {
                report.finding("replica", format!("it cannot be restored: {error:#}"), RESHIP);
                return Ok(None);
            }
        },
    }
    let checkpoints = Checkpoints::new(dir.join(CHECKPOINT_DIR), log_id);
    match checkpoints.newest_valid(Lsn::MAX)?.checkpoint {
        Some(checkpoint) => checkpoint
            .install(&dir)
            .context("installing the views of the checkpoint")?,
        None => report.note("there is no checkpoint: a restore rebuilds the views from the log"),
    }
    crate::directory(&dir, room, report).map(Some)
}

/// Restores all of a replica while the meter is told; it may end that.
fn blocking_restore(
    runtime: &Handle,
    store: &Arc<dyn ReplicaStore>,
    dir: &Path,
    report: &Report<'_>,
) -> anyhow::Result<restore::Restored> {
    let (tell, mut told) = watch::channel(Progress {
        bytes_done: 0,
        bytes_total: 0,
    });
    let options = RestoreOptions {
        storage: Arc::new(OsStorage),
        request_timeout: REQUEST_TIMEOUT,
        with_checkpoint: true,
        lazy: false,
        on_progress: Some(Arc::new(move |progress: Progress| {
            tell.send_replace(progress);
        })),
        announce: Some(Announce::new(Arc::new(SystemClock))),
    };
    let meter = report.meter();
    meter.begin("restoring", 0);
    let restored = runtime.block_on(async {
        let mut work = std::pin::pin!(restore::restore(store, dir, &options));
        let mut done = 0;
        loop {
            tokio::select! {
                restored = &mut work => return Ok::<_, anyhow::Error>(restored?),
                changed = told.changed() => {
                    let now = told.borrow_and_update().bytes_done;
                    meter.advance(now.saturating_sub(done))?;
                    done = now.max(done);
                    if changed.is_err() {
                        return Ok((&mut work).await?);
                    }
                }
            }
        }
    });
    meter.end();
    restored
}

struct Walk<'a, 'o> {
    store: &'a Arc<dyn ReplicaStore>,
    temp: &'a Path,
    scope: Scope,
    report: &'a mut Report<'o>,
    /// The newest manifest when the check began, whole or not.
    newest: Generation,
}

/// Checks objects. `None` if there is no log to go on with.
pub(crate) async fn objects(
    store: &Arc<dyn ReplicaStore>,
    temp: &Path,
    scope: Scope,
    report: &mut Report<'_>,
) -> anyhow::Result<Option<LogId>> {
    report.meter().begin("objects", 0);
    let mut walk = Walk {
        store,
        temp,
        scope,
        report,
        newest: Generation::NONE,
    };
    let Some(log_id) = walk.log_object().await? else {
        return Ok(None);
    };
    for round in 1.. {
        match walk.live(log_id).await {
            Err(error) if error.is::<MovedOn>() && round < MAX_ROUNDS => {
                walk.report
                    .note("the server moved on meanwhile; starting over from its newer manifest");
            }
            outcome => {
                outcome?;
                break;
            }
        }
    }
    walk.report.meter().end();
    Ok(Some(log_id))
}

/// What is wrong with an object.
struct Finding {
    object: String,
    what: String,
    advice: &'static str,
}

impl Finding {
    fn new(object: &str, what: impl std::fmt::Display, advice: &'static str) -> Finding {
        Finding {
            object: object.to_owned(),
            what: what.to_string(),
            advice,
        }
    }
}

/// Parts of `all` that are looked at together.
fn batches<'a, T>(all: &'a [T], bytes: impl Fn(&T) -> u64 + 'a) -> impl Iterator<Item = &'a [T]> {
    let mut rest = all;
    std::iter::from_fn(move || {
        let mut together = 0u64;
        let fit = rest.iter().take(AT_ONCE).take_while(|one| {
            together = together.saturating_add(bytes(one));
            together <= BYTES_AT_ONCE
        });
        let (batch, behind) = rest.split_at_checked(fit.count().max(1))?;
        rest = behind;
        Some(batch)
    })
}

/// What a manifest names has been replaced since: nothing is wrong, begin again with the newer manifest.
#[derive(Debug, thiserror::Error)]
#[error("a running server keeps replacing what is being checked; try again, or stop it")]
struct MovedOn;

impl Walk<'_, '_> {
    /// Everything that the newest manifest names, and the chain behind it.
    async fn live(&mut self, log_id: LogId) -> anyhow::Result<()> {
        let manifest = self.manifest(log_id).await?;
        self.segments(&manifest).await?;
        self.chain(&manifest).await?;
        self.checkpoints(&manifest).await
    }

    /// Something is not where it should be: damage, unless there is a newer manifest than when we began.
    async fn check_still_newest(&self) -> anyhow::Result<()> {
        let listed = self.list(MANIFEST_PREFIX).await?;
        if newest(&listed) > self.newest {
            Err(MovedOn.into())
        } else {
            Ok(())
        }
    }

    async fn get(&self, name: &ObjectName, max_bytes: u64) -> Result<bytes::Bytes, StoreError> {
        let got = retry(&RetryPolicy::within(OBJECT_TIME), || {
            self.store.get(name, max_bytes)
        })
        .await;
        if let Ok(bytes) = &got
            && let Err(ended) = self.report.meter().advance(bytes.len() as u64)
        {
            return Err(StoreError::Other {
                detail: ended.to_string(),
                sent: false,
            });
        }
        got
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        list_all(self.store.as_ref(), prefix, MAX_LISTED).await
    }

    /// `None` if it is damaged.
    async fn log_object(&mut self) -> anyhow::Result<Option<LogId>> {
        match self.get(&ObjectName::new(LOG_OBJECT)?, 4_096).await {
            Ok(bytes) => match LogObject::decode(&bytes) {
                Ok(log) => Ok(Some(log.log_id)),
                Err(error) => {
                    self.report.finding(LOG_OBJECT, error, RESHIP);
                    Ok(None)
                }
            },
            Err(StoreError::NotFound { .. }) => {
                bail!("there is no log in the replica {}", self.store.describe())
            }
            Err(error) => Err(error).context("reading log.json"),
        }
    }

    /// The newest manifest that is whole.
    async fn manifest(&mut self, log_id: LogId) -> anyhow::Result<Manifest> {
        let listed = self.list(MANIFEST_PREFIX).await?;
        self.newest = newest(&listed);
        for object in listed.iter().rev() {
            let Some(generation) = Generation::from_object_name(object.name.as_str()) else {
                continue;
            };
            let bytes = match self.get(&object.name, MAX_MANIFEST_BYTES as u64).await {
                Err(StoreError::NotFound { .. }) => return Err(MovedOn.into()),
                other => other.with_context(|| object.name.to_string())?,
            };
            match Manifest::decode(&bytes) {
                Ok(manifest) if manifest.log_id() != log_id || manifest.generation() != generation => {
                    self.report
                        .finding(&object.name, "it is of another log or generation", RESHIP);
                }
                Ok(manifest) => return Ok(manifest),
                Err(error) => self.report.finding(&object.name, error, RESHIP),
            }
        }
        Ok(Manifest::empty(log_id))
    }

    async fn segments(&mut self, manifest: &Manifest) -> anyhow::Result<()> {
        let live = manifest.segments.iter().map(|segment| (segment, RESHIP));
        let displaced = manifest.displaced.segments.iter();
        let displaced = displaced.map(|displaced| (&displaced.entry, ONLY_THE_PAST));
        let mut chosen: Vec<(&SegmentEntry, &'static str)> = live.chain(displaced).collect();
        let all = chosen.len();
        if let Scope::Sample { bytes, seed } = self.scope {
            let newest = manifest.segments.last().map(|segment| segment.base);
            chosen.sort_by_key(|(segment, _)| (Some(segment.base) != newest, mix(seed ^ segment.base)));
            let mut left = bytes;
            chosen.retain(|(segment, _)| {
                let fits = Some(segment.base) == newest || segment.stored_bytes <= left;
                left = left.saturating_sub(if fits { segment.stored_bytes } else { 0 });
                fits
            });
            self.report
                .note(format!("{} of {all} segments are looked at", chosen.len()));
        }
        for batch in batches(&chosen, |(segment, _)| segment.stored_bytes) {
            let looks = batch.iter().enumerate();
            let looks =
                looks.map(|(at, (segment, advice))| self.segment(at, manifest.log_id(), segment, advice));
            let found = future::try_join_all(looks).await?;
            self.tell(found);
        }
        Ok(())
    }

    fn tell(&mut self, found: Vec<Option<Finding>>) {
        for finding in found.into_iter().flatten() {
            self.report.finding(finding.object, finding.what, finding.advice);
        }
    }

    /// Compares a segment with what the manifest says of it; `at` is its place among those that are looked at together.
    async fn segment(
        &self,
        at: usize,
        log_id: LogId,
        segment: &SegmentEntry,
        advice: &'static str,
    ) -> anyhow::Result<Option<Finding>> {
        let path = self.temp.join(format!("segment-{at}"));
        let size = match self.fetch(&segment.object, &path, advice).await? {
            Ok(size) => size,
            Err(missing) => return Ok(Some(missing)),
        };
        let unpack = path.clone();
        let unpacked = tokio::task::spawn_blocking(move || {
            let mut file = std::fs::File::open(&unpack)?;
            sealed::decode(&mut file, size, &mut std::io::sink())
        });
        let finding = match unpacked.await? {
            Ok(summary) => {
                let as_named = summary.base.get() == segment.base
                    && summary.sha256 == segment.sha256
                    && summary.raw_bytes == segment.raw_bytes
                    && summary.log_id == log_id
                    && size == segment.stored_bytes;
                (!as_named).then(|| Finding::new(&segment.object, "it is not what the manifest says", advice))
            }
            Err(sealed::SealedError::Io(error)) => return Err(error).context("unpacking a segment"),
            Err(error) => Some(Finding::new(&segment.object, error, advice)),
        };
        std::fs::remove_file(&path).context("removing a temporary file")?;
        Ok(finding)
    }

    /// Fetches an object; yields its size, or the finding that it is not there.
    async fn fetch(
        &self,
        object: &str,
        path: &Path,
        advice: &'static str,
    ) -> anyhow::Result<Result<u64, Finding>> {
        let name = ObjectName::new(object)?;
        match self.store.get_to_file(&name, path).await {
            Ok(size) => {
                self.report.meter().advance(size)?;
                Ok(Ok(size))
            }
            Err(StoreError::NotFound { .. }) => {
                self.check_still_newest().await?;
                let missing = "the manifest names it, but it is missing";
                Ok(Err(Finding::new(object, missing, advice)))
            }
            Err(error) => Err(error).with_context(|| format!("fetching {object}")),
        }
    }

    async fn chain(&mut self, manifest: &Manifest) -> anyhow::Result<()> {
        let mut end = ChainEnd::after(manifest);
        let listed = self.list(WAL_PREFIX).await?;
        // What is below is covered by segments.
        let listed: Vec<(Ordinal, ObjectMeta)> = listed
            .into_iter()
            .filter_map(|object| Some((Ordinal::from_object_name(object.name.as_str())?, object)))
            .filter(|(ordinal, _)| *ordinal >= end.next)
            .collect();
        let (mut fetched, mut fetched_up_to) = (VecDeque::new(), 0usize);
        for (at, (ordinal, object)) in listed.iter().enumerate() {
            if at >= fetched_up_to {
                let next = listed.get(at..).unwrap_or_default();
                fetched_up_to = at + next.len().min(AT_ONCE);
                let walk = &*self;
                let gets = next.iter().take(AT_ONCE);
                let gets = gets.map(|(_, object)| walk.get(&object.name, MAX_CHUNK_BYTES));
                let some: Vec<Result<bytes::Bytes, StoreError>> = future::join_all(gets).await;
                fetched = some.into();
            }
            let Some(bytes) = fetched.pop_front() else { break };
            // A stray in the gap behind a fence.
            if *ordinal < end.next {
                continue;
            }
            if *ordinal > end.next {
                return self.hole(&end, listed.get(at..).unwrap_or_default()).await;
            }
            let bytes = match bytes {
                Err(StoreError::NotFound { .. }) => return Err(MovedOn.into()),
                other => other.with_context(|| object.name.to_string())?,
            };
            let decoded = tokio::task::spawn_blocking(move || chunk::decode(&bytes)).await?;
            let header = match decoded {
                Ok((header, _)) => header,
                Err(error) => {
                    self.report.finding(&object.name, error, RESHIP);
                    return Ok(());
                }
            };
            match end.follow(&header) {
                Ok(next) => end = next,
                Err(error) => {
                    self.report.finding(&object.name, error, RESHIP);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The chain ends where there are chunks behind. Those that a writer had in flight when it stopped are no damage;
    /// but nobody opens or ends a reign behind a hole, and nobody gets further than [`MAX_IN_FLIGHT`].
    async fn hole(&mut self, end: &ChainEnd, behind: &[(Ordinal, ObjectMeta)]) -> anyhow::Result<()> {
        self.check_still_newest().await?;
        let last = behind.last().map_or(end.next, |(ordinal, _)| *ordinal);
        let mut in_flight = last.0 < end.next.0.saturating_add(MAX_IN_FLIGHT);
        for (_, object) in behind.iter().take(MAX_IN_FLIGHT as usize) {
            if !in_flight {
                break;
            }
            let bytes = self.get(&object.name, MAX_CHUNK_BYTES).await;
            let bytes = bytes.with_context(|| object.name.to_string())?;
            // One that does not decode was perhaps never whole.
            in_flight = ChunkHeader::decode(&bytes).map_or(true, |header| header.kind == ChunkKind::Data);
        }
        let (missing, last) = (end.next.object_name(), last.object_name());
        if in_flight {
            self.report.note(format!(
                "the chain ends before {missing}; objects up to {last} were never acknowledged"
            ));
        } else {
            self.report.finding(
                missing,
                format!("it is missing, although the chain goes on to {last}"),
                RESHIP,
            );
        }
        Ok(())
    }

    async fn checkpoints(&mut self, manifest: &Manifest) -> anyhow::Result<()> {
        let displaced = manifest.displaced.checkpoints.iter();
        let displaced = displaced.map(|displaced| &displaced.entry);
        let most = match self.scope {
            Scope::Everything => usize::MAX,
            Scope::Sample { .. } => 1,
        };
        let checkpoints = manifest.checkpoints.iter().chain(displaced).take(most);
        let files: Vec<&FileEntry> = checkpoints.flat_map(|checkpoint| &checkpoint.files).collect();
        for batch in batches(&files, |file| file.stored_bytes) {
            let looks = batch.iter().enumerate();
            let found = future::try_join_all(looks.map(|(at, file)| self.checkpoint_file(at, file))).await?;
            self.tell(found);
        }
        Ok(())
    }

    /// As [`Walk::segment`].
    async fn checkpoint_file(&self, at: usize, file: &FileEntry) -> anyhow::Result<Option<Finding>> {
        let path = self.temp.join(format!("checkpoint-file-{at}"));
        if let Err(missing) = self.fetch(&file.object, &path, DISPENSABLE).await? {
            return Ok(Some(missing));
        }
        let (unpack, entry) = (path.clone(), file.clone());
        let checked = tokio::task::spawn_blocking(move || {
            let mut object = std::fs::File::open(&unpack)?;
            check_object(&entry, &mut object)
        });
        let finding = match checked.await? {
            Ok(()) => None,
            Err(UnpackError::Io(error)) => return Err(error).context("unpacking a file of a checkpoint"),
            Err(error) => Some(Finding::new(&file.object, error, DISPENSABLE)),
        };
        std::fs::remove_file(&path).context("removing a temporary file")?;
        Ok(finding)
    }
}

/// Compares the first object whose name comes after `after` with what `manifest` says of it; its name and size, or `None` if there
/// is none. An object that is gone because a newer manifest does not name it is no finding. Lists nothing.
///
/// # Errors
/// As [`check`].
pub async fn next_object(
    store: &Arc<dyn ReplicaStore>,
    temp: &Path,
    manifest: &Manifest,
    after: &str,
    report: &mut Report<'_>,
) -> anyhow::Result<Option<(String, u64)>> {
    let segments = manifest.segments.iter();
    let segments = segments.map(|segment| (segment.object.as_str(), segment.stored_bytes));
    let files = manifest.checkpoints.iter().flat_map(|c| &c.files);
    let files = files.map(|file| (file.object.as_str(), file.stored_bytes));
    let next = segments.chain(files).filter(|(object, _)| *object > after).min();
    let Some((object, size)) = next else {
        return Ok(None);
    };
    let mut walk = Walk {
        store,
        temp,
        scope: Scope::Everything,
        report,
        newest: manifest.generation(),
    };
    let looked = match manifest.segments.iter().find(|segment| segment.object == object) {
        Some(segment) => walk.segment(0, manifest.log_id(), segment, RESHIP).await,
        None => {
            let mut files = manifest.checkpoints.iter().flat_map(|c| &c.files);
            match files.find(|file| file.object == object) {
                Some(file) => walk.checkpoint_file(0, file).await,
                None => Ok(None),
            }
        }
    };
    match looked {
        Err(error) if error.is::<MovedOn>() => {}
        looked => walk.tell(vec![looked?]),
    }
    Ok(Some((object.to_owned(), size)))
}

/// Scatters a number (SplitMix64's last step).
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn newest(listed: &[ObjectMeta]) -> Generation {
    let generations = listed
        .iter()
        .filter_map(|object| Generation::from_object_name(object.name.as_str()));
    generations.max().unwrap_or(Generation::NONE)
}
