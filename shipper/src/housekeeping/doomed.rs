//! Deleting what the newest manifest, ours, no longer names, unless somebody reads by an older one that names it.
//!
//! | step | crash after it leaves | and the next start |
//! |---|---|---|
//! | publish a manifest | objects that it no longer names | finds them by its sweep |
//! | look who reads | the same | the same |
//! | delete, or note what has to wait | what waited | finds it by its sweep, and looks again who reads |
//!
//! The look comes after the publication: see [`readers`].

use std::collections::HashSet;

use engine::log::Lsn;
use futures_util::StreamExt;
use tokio::time::Instant;

use super::Housekeeper;
use super::trouble::Trouble;
use crate::compacted;
use crate::fence;
use crate::handle::Erased;
use crate::manifest::Manifest;
use crate::names::{Generation, MANIFEST_PREFIX, Ordinal};
use crate::orphans::{self, OLD_MANIFESTS};
use crate::readers;
use crate::retention;
use crate::store::ObjectName;

/// Deletions at a time.
const DELETES_AT_A_TIME: usize = 8;
/// Most objects whose deletion waits; what is more is found again by a sweep.
const MAX_WAITING: usize = 100_000;
/// So many housekeeping intervals pass between two looks whether somebody still reads what waits.
const LOOK_AGAIN: u32 = 30;

/// Objects that are to be deleted when nobody reads them any more.
#[derive(Default)]
pub(super) struct Waiting {
    /// Each with the generation that ceased to name it.
    objects: Vec<(Generation, String)>,
    /// Whether there was one too many.
    overflowed: bool,
    /// When to look again.
    from: Option<Instant>,
}

impl Waiting {
    fn push(&mut self, since: Generation, objects: Vec<String>) {
        let room = MAX_WAITING.saturating_sub(self.objects.len());
        self.overflowed |= objects.len() > room;
        let taken = objects.into_iter().take(room);
        self.objects.extend(taken.map(|object| (since, object)));
    }
}

impl Housekeeper {
    /// Deletes what the manifest no longer names. What is left by a failure is swept later.
    pub(super) async fn delete_covered(&mut self, covered: Vec<Ordinal>, displaced: &Manifest) {
        let from = self.manifest.next_ordinal();
        self.shared.links.lock().retain(|link| link.ordinal >= from);
        let mut doomed: Vec<String> = covered.into_iter().map(Ordinal::object_name).collect();
        let named: HashSet<&str> = self.manifest.objects().collect();
        let gone = displaced.objects().filter(|object| !named.contains(object));
        doomed.extend(gone.map(str::to_owned));
        if let Some(old) = self
            .manifest
            .generation
            .checked_sub(OLD_MANIFESTS + 1)
            .filter(|old| *old > 0)
        {
            doomed.push(Generation(old).object_name());
        }
        self.swept &= self.delete_unread(doomed).await;
        self.note_erased();
    }

    /// Deletes what the newest manifest, ours, does not name, until a look finds nothing.
    pub(super) async fn sweep(&mut self) -> Result<(), Trouble> {
        if self.swept || !self.published || self.waiting.overflowed {
            return Ok(());
        }
        let requests = &self.shared.requests;
        let newest = fence::newest_generation(requests, self.manifest.generation()).await?;
        if newest.is_some() {
            // This only spares requests: the sweep would do no harm. Ours was the newest once, so every later one descends from
            // it, and nothing that a descendant names anew is found: its segments begin behind what ours covers or bear a later
            // epoch, as its checkpoints do, and its chunks lie behind those that ours covers. A look could not make the deletions
            // safe that come after it anyway. The next publication finds out whose it is.
            self.published = false;
            return Ok(());
        }
        requests.tidy(self.shared.begun).await?;
        let mut orphans = orphans::find(requests, &self.manifest, self.shared.claim.epoch).await?;
        let waiting: HashSet<&str> = self
            .waiting
            .objects
            .iter()
            .map(|(_, object)| object.as_str())
            .collect();
        orphans.retain(|object| !waiting.contains(object.as_str()));
        if orphans.is_empty() {
            self.swept = true;
            self.note_erased();
        } else {
            // Whether it worked is seen by the next look.
            self.delete_unread(orphans).await;
        }
        Ok(())
    }

    /// Deletes what the newest manifest ceased to name, or earlier ones. What somebody may still read waits. Whether nothing is
    /// left but what waits.
    async fn delete_unread(&mut self, mut doomed: Vec<String>) -> bool {
        let since = self.manifest.generation();
        // Whoever goes by a manifest has read it.
        let manifests = doomed
            .extract_if(.., |object| object.starts_with(MANIFEST_PREFIX))
            .collect();
        let manifests_gone = self.delete(manifests).await;
        if doomed.is_empty() {
            return manifests_gone;
        }
        if self.is_read_before(since).await {
            tracing::info!(
                objects = doomed.len(),
                "somebody reads the replica; what he may need is deleted later"
            );
            self.waiting.push(since, doomed);
            self.look_again_later();
            return manifests_gone;
        }
        self.delete(doomed).await && manifests_gone
    }

    /// Whether somebody goes by a manifest older than `generation`, or may do so.
    async fn is_read_before(&self, generation: Generation) -> bool {
        self.oldest_read().await.is_some_and(|oldest| oldest < generation)
    }

    /// The oldest manifest that somebody goes by. Where that cannot be known, somebody may go by any.
    async fn oldest_read(&self) -> Option<Generation> {
        let shared = &self.shared;
        match readers::oldest(&shared.requests, shared.clock.now_micros()).await {
            Ok(oldest) => oldest,
            Err(error) => {
                let text = shared.note_error(&error);
                tracing::warn!("who reads the replica is not known, so nothing is deleted: {text}");
                Some(Generation::NONE)
            }
        }
    }

    fn look_again_later(&mut self) {
        self.waiting.from = Some(Instant::now() + self.shared.config.housekeeping_interval * LOOK_AGAIN);
    }

    /// Deletes what waited, if nobody reads it any more. Asks nothing while nothing waits, and little while something does.
    pub(super) async fn release(&mut self) -> Result<(), Trouble> {
        let early = self.waiting.from.is_some_and(|from| Instant::now() < from);
        if self.waiting.objects.is_empty() || early || !self.published {
            return Ok(());
        }
        self.look_again_later();
        let oldest = self.oldest_read().await.unwrap_or(Generation(u64::MAX));
        if self.waiting.objects.iter().all(|(since, _)| *since > oldest) {
            return Ok(());
        }
        // They were given up by a manifest of ours. A later reign may have named them again since.
        let requests = &self.shared.requests;
        if fence::newest_generation(requests, self.manifest.generation())
            .await?
            .is_some()
        {
            // The next publication finds out whose it is.
            self.published = false;
            return Ok(());
        }
        let (free, wait) = std::mem::take(&mut self.waiting.objects)
            .into_iter()
            .partition(|(since, _)| *since <= oldest);
        self.waiting.objects = wait;
        let free: Vec<(Generation, String)> = free;
        let named: HashSet<&str> = self.manifest.objects().collect();
        let free = free.into_iter().map(|(_, object)| object);
        let free = free.filter(|object| !named.contains(object.as_str())).collect();
        self.swept &= self.delete(free).await;
        if self.waiting.objects.is_empty() && std::mem::take(&mut self.waiting.overflowed) {
            self.swept = false;
        }
        self.note_erased();
        Ok(())
    }

    /// Notes up to where nothing of before can be left. What is noted stays true whatever comes after: compacted segments give
    /// way to compacted ones, checkpoints to newer ones.
    fn note_erased(&self) {
        if self.swept && self.waiting.objects.is_empty() {
            let mut erased = self.shared.erased.lock();
            let live_through = compacted::named(&self.shared.log.segments(), &self.manifest.segments);
            let displaced = &self.manifest.displaced;
            let through = live_through.min(retention::erased_through(displaced));
            let live_checkpoint = self.manifest.checkpoints.last().map(|oldest| oldest.lsn);
            let checkpoints = displaced.checkpoints.iter().map(|displaced| displaced.entry.lsn);
            *erased = Erased {
                through: erased.through.max(through),
                oldest_checkpoint: checkpoints.chain(live_checkpoint).min().map(Lsn::saturating),
                live_through: erased.live_through.max(live_through),
                live_checkpoint: live_checkpoint.map(Lsn::saturating),
            };
        }
    }

    /// Deletes objects; whether all of them are gone. Failures are noted.
    async fn delete(&self, mut doomed: Vec<String>) -> bool {
        doomed.sort();
        doomed.dedup();
        let shared = &self.shared;
        let deletes = futures_util::stream::iter(doomed).map(|object| async move {
            let deleted = match ObjectName::new(object.clone()) {
                Ok(name) => shared.requests.delete(&name).await,
                Err(error) => Err(error.into()),
            };
            if let Err(error) = &deleted {
                let text = shared.note_error(error);
                tracing::warn!("deleting {object} failed and is tried again: {text}");
            }
            deleted.is_ok()
        });
        let deletes = deletes.buffer_unordered(DELETES_AT_A_TIME);
        let deleted: Vec<bool> = deletes.collect().await;
        deleted.into_iter().all(|deleted| deleted)
    }
}
