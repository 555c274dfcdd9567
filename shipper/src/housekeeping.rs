//! Beside the shipping of chunks: sealed segments, manifests, checkpoints, deletions. May lag for days without harm.
//!
//! | step | crash after it leaves | and the next start |
//! |---|---|---|
//! | pack a segment into a temporary file | nothing in the replica | packs it again |
//! | create `seg/…` | an object that no manifest names | finds it (`Exists`), compares, uses it; if it differs, names its own by epoch |
//! | create `manifest/<g + 1>` | everything covered is named | derives g + 2 from it |
//! | check that g + 1 is the newest | the same | the same |
//! | delete covered chunks, what `retention` lets go, old manifests, unless somebody reads them (`doomed`) | some are left | sweeps them after its first manifest |
//! | sweep: list all, delete what is not named, until nothing is found | some are left | the same |
//!
//! The check before the deletions matters because create-if-absent forgets the names of deleted objects: a writer that
//! slept long enough could create a generation that was deleted meanwhile. It then sees a higher one and deletes nothing.
//! The deletions may come however late after it: a manifest that was the newest once has only descendants behind it.

mod ageing;
mod doomed;
mod retain;
mod trouble;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use engine::log::{Epoch, LogId, Lsn, SegmentInfo};
use tokio::sync::mpsc;

use crate::checkpoint::object::{PACKED_SUFFIX, digest_file};
use crate::checkpoint::{self, CheckpointError, CheckpointRequest, LocalFile};
use crate::chunk::{ChunkHeader, ChunkKind};
use crate::compacted;
use crate::fence;
use crate::handle::{Erased, Shared};
use crate::manifest::{CheckpointEntry, FileEntry, Manifest, SegmentEntry};
use crate::names::{self, Ordinal};
use crate::plan::{self, ManifestVerdict};
use crate::retention;
use crate::sealed::{self, FOOTER_BYTES, Footer, SealedSummary};
use crate::ship::ShipEnd;
use crate::store::{Created, ObjectName, StoreError};
use crate::tier;
use trouble::{Refused, Trouble};

/// What housekeeping remembers of a chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    ordinal: Ordinal,
    next: Ordinal,
    kind: ChunkKind,
    epoch: Epoch,
    prev_lsn: Lsn,
    last_lsn: Lsn,
}

impl Link {
    pub(crate) fn of(header: &ChunkHeader) -> Link {
        Link {
            ordinal: header.ordinal,
            next: header.next_ordinal,
            kind: header.kind,
            epoch: header.epoch,
            prev_lsn: header.prev_lsn,
            last_lsn: header.last_lsn,
        }
    }
}

/// The longest pause after failures, in intervals: of what makes segments of chunks, and of what only tidies.
const MOST_PAUSE: u32 = 5;
const MOST_TIDY_PAUSE: u32 = 30;

pub(crate) struct Housekeeper {
    shared: Arc<Shared>,
    checkpoints: mpsc::Receiver<CheckpointRequest>,
    manifest: Manifest,
    /// Whether `manifest` was published by this process: then an earlier reign can publish nothing any more.
    published: bool,
    /// Whether nothing can be in the replica that `manifest` does not name.
    swept: bool,
    /// The last checkpoint that was found to be damaged, which is told once.
    damaged: Option<Lsn>,
    /// When the next checkpoint may be verified: a try that failed in passing is repeated, but not at once.
    verify_from: Option<tokio::time::Instant>,
    /// What is deleted when nobody reads it any more.
    waiting: doomed::Waiting,
    /// What is known of the store's tiers.
    tiers: ageing::Tiers,
}

impl Housekeeper {
    pub(crate) fn new(shared: Arc<Shared>, checkpoints: mpsc::Receiver<CheckpointRequest>) -> Housekeeper {
        let manifest = shared.claim.replica.manifest.clone();
        shared.log.reader().in_replica(tier::named(&manifest));
        if let Err(trouble) = has_all_away(&shared, &manifest) {
            tracing::error!(%trouble, "the log cannot go on");
        }
        Housekeeper {
            shared,
            checkpoints,
            manifest,
            published: false,
            swept: false,
            damaged: None,
            verify_from: None,
            waiting: doomed::Waiting::default(),
            tiers: ageing::Tiers::default(),
        }
    }

    /// Runs until fenced.
    pub(crate) async fn run(&mut self) -> ShipEnd {
        let mut open = true;
        let interval = self.shared.config.housekeeping_interval;
        let (mut pause, mut tidy_pause) = (interval, interval);
        let mut tidy_from = tokio::time::Instant::now();
        loop {
            let request = tokio::select! {
                () = tokio::time::sleep(pause) => None,
                request = self.checkpoints.recv(), if open => {
                    open = request.is_some();
                    request
                }
            };
            let outcome = match request {
                Some(CheckpointRequest {
                    dir,
                    lsn,
                    alone,
                    reply,
                }) => {
                    let result = self.checkpoint(&dir, lsn, alone).await;
                    // Files of one that was not published are named by nobody.
                    self.swept &= result.is_ok();
                    let fenced = match &result {
                        Err(Refused::Trouble(Trouble::Fenced(by))) => Some(*by),
                        _ => None,
                    };
                    // The asker may have given up; what is published stays published.
                    let _ = reply.send(result.map_err(Refused::into_error));
                    fenced.map_or(Ok(()), |by| Err(Trouble::Fenced(by)))
                }
                None => self.segments().await,
            };
            match outcome {
                Ok(()) => pause = interval,
                Err(Trouble::Fenced(by)) => return ShipEnd::Fenced { by },
                Err(trouble) => {
                    self.note(&trouble);
                    pause = (pause * 2).min(interval * MOST_PAUSE);
                    continue;
                }
            }
            // What only tidies waits for itself: chunks become a segment meanwhile, or a start has ever more of them to read.
            if tokio::time::Instant::now() < tidy_from {
                continue;
            }
            match self.tidy().await {
                Ok(()) => {
                    tidy_pause = interval;
                    self.shared.status.lock().trouble = None;
                }
                Err(Trouble::Fenced(by)) => return ShipEnd::Fenced { by },
                Err(trouble) => {
                    self.note(&trouble);
                    tidy_from = tokio::time::Instant::now() + tidy_pause;
                    tidy_pause = (tidy_pause * 2).min(interval * MOST_TIDY_PAUSE);
                }
            }
        }
    }

    /// What the replica does not need any more goes, and what it seldom needs goes where it costs less.
    async fn tidy(&mut self) -> Result<(), Trouble> {
        self.retain().await?;
        self.release().await?;
        self.sweep().await?;
        self.age().await;
        Ok(())
    }

    fn note(&self, trouble: &Trouble) {
        let text = self.shared.note_error(trouble);
        self.shared.status.lock().trouble = Some(text.clone());
        tracing::warn!("housekeeping of the replica failed and is tried again: {text}");
    }

    /// Ships every segment that is sealed and wholly in the replica's chain.
    async fn segments(&mut self) -> Result<(), Trouble> {
        self.seal_if_many_chunks().await;
        self.follow_compaction().await?;
        let remote = self.shared.remote.get();
        for segment in self.shared.log.segments() {
            let covered = self.manifest.covered_lsn();
            if !segment.sealed || segment.last > remote {
                break;
            }
            if segment.last <= covered {
                continue;
            }
            if segment.prev != covered {
                let what = format!(
                    "it follows {}, but the replica's segments end at {covered}",
                    segment.prev
                );
                return Err(Trouble::Segment {
                    segment: segment.base,
                    what,
                });
            }
            let entry = self.ship_segment(&segment, false).await?;
            self.publish(|manifest| {
                if manifest.covered_lsn() == Lsn::saturating(entry.prev) {
                    manifest.segments.push(entry.clone());
                }
            })
            .await?;
        }
        Ok(())
    }

    /// Names the local segments where the manifest names others that they have replaced.
    async fn follow_compaction(&mut self) -> Result<(), Trouble> {
        let local = self.shared.log.segments();
        let Some(segments) = compacted::replacement(&local, &self.manifest.segments) else {
            return Ok(());
        };
        tracing::info!(
            through = %compacted::end(&segments),
            "the log was compacted; its replica follows"
        );
        let mut entries = Vec::with_capacity(segments.len());
        for segment in &segments {
            entries.push(self.ship_segment(segment, true).await?);
        }
        self.publish(|manifest| {
            if compacted::replace(&mut manifest.segments, &entries) {
                // They point into segments that are named no more.
                manifest.checkpoints.clear();
            }
        })
        .await?;
        // The names of what was tried before are not known.
        self.swept = false;
        Ok(())
    }

    /// Seals the open segment early if many chunks wait for one that covers them: neither a restore's requests nor our
    /// memory may grow without bound.
    async fn seal_if_many_chunks(&self) {
        let links = self.shared.links.lock().len();
        if links >= self.shared.config.seal_after_chunks
            && let Err(error) = self.shared.log.seal_now().await
        {
            self.shared.note_error(&error);
        }
    }

    /// `again`: what it tells is covered already.
    async fn ship_segment(&self, segment: &SegmentInfo, again: bool) -> Result<SegmentEntry, Trouble> {
        let packed = self.pack(segment).await?;
        let mut object = match again || segment.compaction > 0 {
            false => names::segment_object(segment.base),
            // Its base is below what the manifest covers already: the epoch tells whoever sweeps that it is young. And an earlier
            // writer that has compacted it may still be deleting its first object.
            true => names::segment_object_of_epoch(segment.base, self.shared.claim.epoch),
        };
        let mut there = self
            .create_segment(&object, packed.file.path(), &packed.summary)
            .await?;
        if there.is_none() {
            // An earlier reign packed other bytes for the same base. Ours is verified; that one may be anything.
            object = names::segment_object_of_epoch(segment.base, self.shared.claim.epoch);
            there = self
                .create_segment(&object, packed.file.path(), &packed.summary)
                .await?;
        }
        let Some(stored_bytes) = there else {
            let what = format!("{object} exists with other content");
            return Err(Trouble::Segment {
                segment: segment.base,
                what,
            });
        };
        metrics::counter!("pds_ship_bytes_total").increment(stored_bytes);
        Ok(SegmentEntry {
            base: segment.base.get(),
            last: segment.last.get(),
            prev: segment.prev.get(),
            raw_bytes: packed.summary.raw_bytes,
            sha256: packed.summary.sha256,
            object,
            stored_bytes,
            epoch: segment.epoch.0,
            frames: segment.frames,
            compaction: segment.compaction,
        })
    }

    async fn pack(&self, segment: &SegmentInfo) -> Result<Packed, Trouble> {
        let base = segment.base;
        let log = self.shared.log.reader();
        let log_id = self.shared.claim.log_id;
        let temp_dir = self.shared.config.temp_dir.clone();
        let work = tokio::task::spawn_blocking(move || pack(&log, base, log_id, &temp_dir));
        work.await.map_err(|error| Trouble::Task(error.to_string()))?
    }

    /// The stored bytes if the object is there now with our content; `None` if it is there with other content.
    async fn create_segment(
        &self,
        object: &str,
        file: &Path,
        ours: &SealedSummary,
    ) -> Result<Option<u64>, Trouble> {
        let requests = &self.shared.requests;
        let name = ObjectName::new(object).map_err(StoreError::from)?;
        if requests.create_from_file(&name, file).await? == Created::Created {
            return Ok(Some(ours.stored_bytes));
        }
        let Some(size) = requests.once(requests.store().size(&name)).await? else {
            return Err(StoreError::NotFound {
                object: object.to_owned(),
            }
            .into());
        };
        if size < FOOTER_BYTES as u64 {
            return Ok(None);
        }
        let footer = requests
            .get_range(&name, size - FOOTER_BYTES as u64..size)
            .await?;
        match Footer::decode(&footer, size) {
            // Same length, same digest of the raw bytes, same format: the compressor is the same, so are the bytes. To
            // be sure of those that matter, read it back.
            Ok(footer) if footer.summary == *ours => {
                let temp =
                    tempfile::NamedTempFile::new_in(&self.shared.config.temp_dir).map_err(|source| {
                        Trouble::Sealed {
                            object: object.to_owned(),
                            source: source.into(),
                        }
                    })?;
                requests.get_to_file(&name, temp.path()).await?;
                let work = tokio::task::spawn_blocking(move || {
                    let mut stored = std::fs::File::open(temp.path())?;
                    sealed::decode(&mut stored, size, std::io::sink())
                });
                let decoded = work.await.map_err(|error| Trouble::Task(error.to_string()))?;
                Ok((matches!(decoded, Ok(summary) if summary == *ours)).then_some(size))
            }
            _ => Ok(None),
        }
    }

    async fn checkpoint(&mut self, dir: &Path, lsn: Lsn, alone: bool) -> Result<(), Refused> {
        // Its places are those of the local segments.
        self.follow_compaction().await?;
        if let Some(newest) = self.manifest.checkpoints.first()
            && newest.lsn >= lsn.get()
        {
            return Err(CheckpointError::NotNewer {
                newest: Lsn::saturating(newest.lsn),
            }
            .into());
        }
        let owned = dir.to_owned();
        let read = tokio::task::spawn_blocking(move || checkpoint::read_dir(&owned)).await;
        let files = read.map_err(|error| Trouble::Task(error.to_string()))??;
        {
            let mut erased = self.shared.erased.lock();
            erased.oldest_checkpoint = Some(erased.oldest_checkpoint.map_or(lsn, |oldest| oldest.min(lsn)));
            erased.live_checkpoint = Some(erased.live_checkpoint.map_or(lsn, |oldest| oldest.min(lsn)));
        }
        let mut entries = Vec::with_capacity(files.len());
        for file in files {
            entries.push(self.ship_file(lsn, file).await?);
        }
        let entry = CheckpointEntry {
            lsn: lsn.get(),
            files: entries,
            verified_at_micros: 0,
        };
        let keep = match alone {
            true => 1,
            false => self.shared.config.keep_checkpoints.max(1),
        };
        self.publish(|manifest| {
            manifest.checkpoints.retain(|other| other.lsn < entry.lsn);
            manifest.checkpoints.insert(0, entry.clone());
            manifest.checkpoints.truncate(keep);
        })
        .await?;
        Ok(())
    }

    async fn ship_file(&self, lsn: Lsn, file: LocalFile) -> Result<FileEntry, CheckpointError> {
        let (path, temp_dir) = (file.path.clone(), self.shared.config.temp_dir.clone());
        let prepared = tokio::task::spawn_blocking(move || checkpoint::prepare(&path, &temp_dir)).await;
        let prepared = prepared.map_err(|_| CheckpointError::Stopped)??;
        let suffix = prepared.packed.as_ref().map_or("", |_| PACKED_SUFFIX);
        let object = names::checkpoint_object(
            lsn,
            self.shared.claim.epoch,
            self.shared.log.reader().compaction(),
            &format!("{}{suffix}", file.name),
        );
        let failed = |source| CheckpointError::Store {
            object: object.clone(),
            source,
        };
        let requests = &self.shared.requests;
        let name = ObjectName::new(object.clone()).map_err(|error| failed(error.into()))?;
        let from = prepared
            .packed
            .as_ref()
            .map_or(file.path.as_path(), |temp| temp.path());
        if requests.create_from_file(&name, from).await.map_err(failed)? == Created::Exists {
            // Ours from an earlier try of this process, since the epoch is in the name; but is it the same file?
            let (path, dir) = (file.path.clone(), self.shared.config.temp_dir.clone());
            let local = |source| CheckpointError::Local { path, source };
            let temp = tempfile::NamedTempFile::new_in(dir).map_err(local.clone())?;
            requests.get_to_file(&name, temp.path()).await.map_err(failed)?;
            let there = tokio::task::spawn_blocking(move || digest_file(temp.path())).await;
            let there = there.map_err(|_| CheckpointError::Stopped)?.map_err(local)?;
            if there != prepared.stored {
                let what = "the replica has another file of this name and LSN; take a newer checkpoint";
                return Err(CheckpointError::Unsuitable {
                    path: file.path,
                    what,
                });
            }
        }
        metrics::counter!("pds_ship_bytes_total").increment(prepared.stored.bytes);
        Ok(FileEntry {
            name: file.name,
            object,
            raw_bytes: prepared.raw_bytes,
            stored_bytes: prepared.stored.bytes,
            sha256: prepared.stored.sha256,
            packed: prepared.packed.is_some(),
        })
    }

    /// Publishes the manifest that follows from the newest one by `change`, then deletes what it no longer names.
    async fn publish(&mut self, change: impl Fn(&mut Manifest)) -> Result<(), Trouble> {
        let shared = self.shared.clone();
        let requests = &shared.requests;
        let log_id = self.shared.claim.log_id;
        let epoch = self.shared.claim.epoch;
        loop {
            let mut next = self.manifest.clone();
            next.generation = self.manifest.generation().next().0;
            next.writer_id = self.shared.claim.writer_id.0;
            next.epoch = epoch.0;
            next.created_at_micros = self.shared.clock.now_micros();
            next.lsn_floor = next
                .lsn_floor
                .max(self.shared.claim.lsn_floor.get())
                .max(self.shared.remote.get().get());
            compacted::complete(&mut next.segments, &self.shared.log.segments());
            change(&mut next);
            retention::displace(&self.manifest, &mut next, self.shared.clock.now_micros());
            next.displaced = retention::kept(&next, &self.rule());
            let covered = self.cover(&mut next)?;
            let name = ObjectName::new(next.generation().object_name()).map_err(StoreError::from)?;
            if requests.create(&name, next.encode()?.into()).await? == Created::Exists {
                let Some(there) = fence::read_manifest(requests, log_id, next.generation()).await? else {
                    let newest = fence::newest_manifest(requests, log_id).await?;
                    self.adopt(newest)?;
                    continue;
                };
                match plan::on_manifest_exists(&next, &there) {
                    ManifestVerdict::Ours => {}
                    ManifestVerdict::Adopt => {
                        self.adopt(there)?;
                        continue;
                    }
                    ManifestVerdict::Fenced { by } => return Err(Trouble::Fenced(by)),
                }
            }
            if fence::newest_generation(requests, next.generation())
                .await?
                .is_some()
            {
                // Ours came to life under a name that had been used and deleted, so it is not the truth. An earlier
                // reign may have got that far before it noticed ours: go on from there. A later one fences us.
                let newest = fence::newest_manifest(requests, log_id).await?;
                if newest.epoch() == epoch {
                    return Err(Trouble::Fenced(epoch));
                }
                self.adopt(newest)?;
                continue;
            }
            let displaced = std::mem::replace(&mut self.manifest, next);
            self.published = true;
            self.shared.log.reader().in_replica(tier::named(&self.manifest));
            let covered_lsn = self.manifest.covered_lsn().get();
            self.shared.covered.store(covered_lsn, Ordering::Release);
            *self.shared.manifest.lock() = Arc::new(self.manifest.clone());
            self.delete_covered(covered, &displaced).await;
            return Ok(());
        }
    }

    fn adopt(&mut self, there: Manifest) -> Result<(), Trouble> {
        if there.epoch() > self.shared.claim.epoch {
            return Err(Trouble::Fenced(there.epoch()));
        }
        tracing::info!(
            generation = there.generation,
            "a manifest was published that was not known here; going on from it"
        );
        let log = self.shared.log.reader();
        has_all_away(&self.shared, &there)?;
        log.in_replica(tier::named(&there));
        let from = there.next_ordinal();
        self.shared.links.lock().retain(|link| link.ordinal >= from);
        (self.manifest, self.published, self.swept) = (there, false, false);
        *self.shared.erased.lock() = Erased::default();
        Ok(())
    }

    /// Says in `next` which chunks its segments cover; yields those with data.
    fn cover(&self, next: &mut Manifest) -> Result<Vec<Ordinal>, Trouble> {
        let covered = next.covered_lsn();
        let links = self.shared.links.lock();
        let kinds: Vec<(ChunkKind, Lsn)> = links.iter().map(|link| (link.kind, link.last_lsn)).collect();
        let count = plan::covered_links(&kinds, covered);
        if let Some(after) = links.iter().skip(count).find(|link| link.kind == ChunkKind::Data)
            && after.prev_lsn < covered
        {
            return Err(Trouble::Misaligned(after.ordinal));
        }
        if let Some(last) = count.checked_sub(1).and_then(|at| links.get(at)) {
            next.covered_through = last.ordinal.0;
            next.next_ordinal = last.next.0;
            next.covered_epoch = last.epoch.0;
        }
        let data = links
            .iter()
            .take(count)
            .filter(|link| link.kind == ChunkKind::Data);
        Ok(data.map(|link| link.ordinal).collect())
    }
}

/// Whether the manifest names all segments that are away; if not, the log is closed. Another writer has compacted them, before it
/// noticed this reign or while this log followed it, and what was left in the replica is about to be deleted there. All of it is there
/// in another form, and the next start takes that.
fn has_all_away(shared: &Shared, manifest: &Manifest) -> Result<(), Trouble> {
    let away = shared.log.reader().away();
    let Some(lost) = away.iter().find(|away| !tier::is_named(manifest, away)) else {
        return Ok(());
    };
    let reason = format!(
        "segment {} was compacted in the replica by another writer; a start takes what is there now",
        lost.info.base.hex()
    );
    shared.log.poison(reason.clone());
    Err(Trouble::Task(reason))
}

struct Packed {
    file: tempfile::NamedTempFile,
    summary: SealedSummary,
}

/// Packs a sealed segment into a temporary file, after checking every byte of it. Blocks.
fn pack(log: &engine::log::LogReader, base: Lsn, log_id: LogId, temp_dir: &Path) -> Result<Packed, Trouble> {
    let wrong = |what: String| Trouble::Segment { segment: base, what };
    let segment = log.sealed(base).map_err(|error| wrong(error.to_string()))?;
    let bytes = segment.bytes();
    // What goes into the replica replaces chunks, so it must be known to be whole.
    engine::log::verify_segment(bytes).map_err(|damage| wrong(damage.to_string()))?;
    let object = names::segment_object(base);
    let failed = |source| Trouble::Sealed {
        object: object.clone(),
        source,
    };
    let mut file = tempfile::NamedTempFile::new_in(temp_dir).map_err(|error| failed(error.into()))?;
    let out = std::io::BufWriter::new(file.as_file_mut());
    let summary = sealed::encode(bytes, out, log_id, base).map_err(failed)?;
    Ok(Packed { file, summary })
}
