//! A replica: every live object by its own checksums, the chain of chunks, and then all of it restored and checked as a
//! data directory. Only reads.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use engine::log::{LogId, Lsn};
use engine::views::checkpoint::Checkpoints;
use indicatif::ProgressBar;
use sha2::{Digest, Sha256};
use shipper::chunk::{self, ChunkHeader, ChunkKind, HEADER_BYTES, MAX_IN_FLIGHT, MAX_RAW_BYTES};
use shipper::fence::ReplicaError;
use shipper::log_object::LogObject;
use shipper::manifest::{MAX_MANIFEST_BYTES, Manifest};
use shipper::names::{Generation, LOG_OBJECT, MANIFEST_PREFIX, Ordinal, WAL_PREFIX};
use shipper::plan::ChainEnd;
use shipper::restore::{CHECKPOINT_DIR, RestoreError};
use shipper::sealed;
use shipper::store::{ObjectMeta, ObjectName, ReplicaStore, RetryPolicy, StoreError, list_all, retry};

use super::Report;
use crate::restore::{blocking_restore, runtime};
use crate::{progress, replica_url};

/// Most objects of one kind that are listed.
const MAX_LISTED: usize = 1_000_000;
/// Most bytes of a chunk's object: frames that do not shrink grow a little.
const MAX_CHUNK_BYTES: u64 = (HEADER_BYTES + MAX_RAW_BYTES + (1 << 20)) as u64;
/// How often the check starts over because a running server moved things along.
const MAX_ROUNDS: u32 = 5;
/// The time for one object, all tries together.
const OBJECT_TIME: Duration = Duration::from_secs(300);
/// What to do about an object of the log.
const RESHIP: &str =
    "if the server still has its disk, make a new replica from there; else restore what is before it";
/// What to do about a checkpoint.
const DISPENSABLE: &str = "a restore does without it; the server's next checkpoint replaces it";
/// What to do about a segment that has been displaced.
const ONLY_THE_PAST: &str =
    "nothing of today is missing, but points in time before the last compaction may not be restorable";

/// Checks the replica at `url`.
pub fn check(url: &str, temp: &Path, report: &mut Report<'_>) -> anyhow::Result<()> {
    let store = replica_url::open(url)?;
    let temp = tempfile::Builder::new().prefix("pds-verify-").tempdir_in(temp);
    let temp = temp.context("making a temporary directory")?;
    let log_id = runtime()?.block_on(objects(&store, temp.path(), report))?;
    let Some(log_id) = log_id else { return Ok(()) };
    let restored = temp.path().join("restored");
    match blocking_restore(&store, &restored, true) {
        Ok(found) => {
            for warning in found.warnings {
                report.note(warning);
            }
        }
        Err(error) => match error.downcast_ref::<RestoreError>() {
            Some(RestoreError::Replica(ReplicaError::Store(StoreError::NotFound { .. }))) => {
                report.finding("replica", format!("it cannot be restored: {error:#}"), RESHIP);
                return Ok(());
            }
            Some(
                RestoreError::Replica(ReplicaError::Store(_))
                | RestoreError::Local { .. }
                | RestoreError::Task(_),
            )
            | None => return Err(error).context("restoring into a temporary directory"),
            Some(_) => {
                report.finding("replica", format!("it cannot be restored: {error:#}"), RESHIP);
                return Ok(());
            }
        },
    }
    let checkpoints = Checkpoints::new(restored.join(CHECKPOINT_DIR), log_id);
    match checkpoints.newest_valid(Lsn::MAX)?.checkpoint {
        Some(checkpoint) => checkpoint
            .install(&restored)
            .context("installing the views of the checkpoint")?,
        None => report.note("there is no checkpoint: a restore rebuilds the views from the log"),
    }
    super::directory(&restored, temp.path(), report)
}

struct Walk<'a, 'o> {
    store: &'a Arc<dyn ReplicaStore>,
    temp: &'a Path,
    bar: ProgressBar,
    report: &'a mut Report<'o>,
    /// The newest manifest when the check began, whole or not.
    newest: Generation,
}

/// Checks all live objects. `None` if there is no log to go on with.
async fn objects(
    store: &Arc<dyn ReplicaStore>,
    temp: &Path,
    report: &mut Report<'_>,
) -> anyhow::Result<Option<LogId>> {
    let bar = progress::bar("objects", 0);
    report.over(&bar);
    let mut walk = Walk {
        store,
        temp,
        bar: bar.clone(),
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
    bar.finish_and_clear();
    Ok(Some(log_id))
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
        if let Ok(bytes) = &got {
            self.bar.inc(bytes.len() as u64);
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
        for (segment, advice) in live.chain(displaced) {
            let path = self.temp.join("segment");
            let Some(size) = self.fetch(&segment.object, &path, advice).await? else {
                continue;
            };
            let unpack = path.clone();
            let unpacked = tokio::task::spawn_blocking(move || {
                let mut file = std::fs::File::open(&unpack)?;
                sealed::decode(&mut file, size, &mut std::io::sink())
            });
            match unpacked.await? {
                Ok(summary) => {
                    let as_named = summary.base.get() == segment.base
                        && summary.sha256 == segment.sha256
                        && summary.raw_bytes == segment.raw_bytes
                        && summary.log_id == manifest.log_id()
                        && size == segment.stored_bytes;
                    if !as_named {
                        self.report
                            .finding(&segment.object, "it is not what the manifest says", advice);
                    }
                }
                Err(sealed::SealedError::Io(error)) => return Err(error).context("unpacking a segment"),
                Err(error) => self.report.finding(&segment.object, error, advice),
            }
            std::fs::remove_file(&path).context("removing a temporary file")?;
        }
        Ok(())
    }

    /// Fetches an object. `None` if it is not there, which is a finding.
    async fn fetch(&mut self, object: &str, path: &Path, advice: &str) -> anyhow::Result<Option<u64>> {
        let name = ObjectName::new(object)?;
        match self.store.get_to_file(&name, path).await {
            Ok(size) => {
                self.bar.inc(size);
                Ok(Some(size))
            }
            Err(StoreError::NotFound { .. }) => {
                self.check_still_newest().await?;
                self.report
                    .finding(object, "the manifest names it, but it is missing", advice);
                Ok(None)
            }
            Err(error) => Err(error).with_context(|| format!("fetching {object}")),
        }
    }

    async fn chain(&mut self, manifest: &Manifest) -> anyhow::Result<()> {
        let mut end = ChainEnd::after(manifest);
        let listed = self.list(WAL_PREFIX).await?;
        let mut listed = listed
            .iter()
            .filter_map(|object| Some((Ordinal::from_object_name(object.name.as_str())?, object)));
        // What is below is covered by segments, or a stray in the gap behind a fence.
        while let Some((ordinal, object)) = listed.by_ref().find(|(ordinal, _)| *ordinal >= end.next) {
            if ordinal > end.next {
                let behind = std::iter::once((ordinal, object)).chain(listed);
                let behind: Vec<_> = behind
                    .map(|(ordinal, object)| (ordinal, object.clone()))
                    .collect();
                return self.hole(&end, &behind).await;
            }
            let bytes = match self.get(&object.name, MAX_CHUNK_BYTES).await {
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
        for file in manifest
            .checkpoints
            .iter()
            .chain(displaced)
            .flat_map(|checkpoint| &checkpoint.files)
        {
            let path = self.temp.join("checkpoint-file");
            let Some(size) = self.fetch(&file.object, &path, DISPENSABLE).await? else {
                continue;
            };
            let hash = path.clone();
            let digest = tokio::task::spawn_blocking(move || sha256_of(&hash)).await?;
            if (size, digest.context("reading a temporary file")?) != (file.size, file.sha256) {
                self.report
                    .finding(&file.object, "its SHA-256 is not the manifest's", DISPENSABLE);
            }
            std::fs::remove_file(&path).context("removing a temporary file")?;
        }
        Ok(())
    }
}

fn newest(listed: &[ObjectMeta]) -> Generation {
    let generations = listed
        .iter()
        .filter_map(|object| Generation::from_object_name(object.name.as_str()));
    generations.max().unwrap_or(Generation::NONE)
}

fn sha256_of(path: &Path) -> std::io::Result<[u8; 32]> {
    let (mut file, mut sha256) = (std::fs::File::open(path)?, Sha256::new());
    let mut piece = vec![0; 1 << 20];
    loop {
        let len = file.read(&mut piece)?;
        if len == 0 {
            return Ok(sha256.finalize().into());
        }
        sha256.update(piece.get(..len).unwrap_or_default());
    }
}
