//! Removed repos, until their last copy is gone: what is left to do is done, and when nothing is left the log and whoever
//! reads the server's output are told.
//!
//! Which removals wait is in the index, hence in the log; where copies are is asked of the disk and of the replica at each
//! look. So a crash makes the report late, or makes it come twice, and never wrong. Only the times are of this process: *by when*
//! a copy was gone.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use engine::engine::{EraseError, Erased};
use engine::entry::{Change, EntryDraft, RepoRemoval};
use engine::log::Lsn;
use shipper::checkpoint::CheckpointError;
use shipper::ship::ShipHandle;
use shipper::start::SET_ASIDE_DIR;

use super::compaction::{newest_checkpoint, with_causes};
use crate::app::App;

/// Removals that are looked at together, the oldest first.
const LOOKED_AT: usize = 1_000;
/// How long the engine or the replica may take for one step of a look; what is left is for the next.
const STEP: Duration = Duration::from_secs(300);

/// What this process has seen of removals that wait.
#[derive(Debug, Default)]
pub(super) struct Removals {
    seen: BTreeMap<RepoRemoval, Seen>,
    aside_told: bool,
}

/// Of one removal.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// No blob of it is left in the blob store.
    blobs: bool,
    /// When nothing was left on the disk.
    local: Option<Lsn>,
    /// When nothing was left in the replica.
    replica: Option<Lsn>,
}

impl Removals {
    /// Does what can be done now, and tells what is gone.
    pub(super) async fn look(&mut self, app: &App) {
        if let Err(error) = self.try_look(app).await {
            tracing::warn!(%error, "whether removed repos are gone is not known; the next look is in a minute");
        }
    }

    async fn try_look(&mut self, app: &App) -> Result<(), String> {
        let (removals, all) = waiting(app).await?;
        self.seen
            .retain(|removal, _| removals.binary_search(removal).is_ok());
        if removals.is_empty() {
            gauges(0, 0);
            return Ok(());
        }
        let local = erase(app).await?;
        let aside = self.is_set_aside(app);
        if let Some(shipper) = app.shipper.get() {
            ship_clean_checkpoint(app, shipper, &removals, local).await?;
        }
        let now = Lsn::saturating(app.engine.now_micros());
        let mut gone = Vec::new();
        for removal in &removals {
            let seen = self.seen.entry(removal.clone()).or_default();
            if !seen.blobs {
                seen.blobs = erase_blobs(app, removal).await;
            }
            if seen.blobs && !aside && local.through >= removal.lsn {
                seen.local.get_or_insert(now);
            }
            let replica = app.shipper.get();
            if seen.blobs
                && replica.is_none_or(|shipper| shipper.erased().is_without(removal.lsn, local.views))
            {
                seen.replica.get_or_insert(now);
            }
            if let (Some(local), Some(replica)) = (seen.local, seen.replica) {
                tell(removal, local, app.shipper.get().is_some().then_some(replica));
                gone.push(removal.clone());
            }
        }
        let count = |of: fn(&Seen) -> bool| self.seen.values().filter(|seen| of(seen)).count() as u64;
        let (local, replica) = (
            count(|seen| seen.local.is_some()),
            count(|seen| seen.replica.is_some()),
        );
        gauges(all.saturating_sub(local), all.saturating_sub(replica));
        note_gone(app, gone).await
    }

    /// Whether a log is kept beside the data because the replica won over it: it has everything that it ever had.
    fn is_set_aside(&mut self, app: &App) -> bool {
        let dir = app.config.data_dir.join(SET_ASIDE_DIR);
        let there = std::fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_some());
        if there && !self.aside_told {
            tracing::warn!(
                dir = %dir.display(),
                "removed repos may be in a log that was set aside; they count as gone when it is deleted"
            );
        }
        self.aside_told = there;
        there
    }
}

/// The oldest removals that wait, and how many there are.
async fn waiting(app: &App) -> Result<(Vec<RepoRemoval>, u64), String> {
    let engine = app.engine.clone();
    let read = tokio::task::spawn_blocking(move || {
        let reader = engine.reader()?;
        Ok::<_, engine::views::index::IndexError>((
            reader.removals(None, LOOKED_AT)?,
            reader.removals_after(Lsn::ZERO)?,
        ))
    });
    let read = read.await.map_err(|error| error.to_string())?;
    read.map_err(|error| with_causes(&error))
}

/// Does what is left to do on the disk.
pub(super) async fn erase(app: &App) -> Result<Erased, String> {
    match tokio::time::timeout(STEP, app.engine.erase()).await {
        Ok(erased) => erased.map_err(|error: EraseError| with_causes(&error)),
        Err(_) => Err("it takes too long".to_owned()),
    }
}

/// Lets the replica have no checkpoint that may hold something of a removed repo which is gone otherwise.
async fn ship_clean_checkpoint(
    app: &App,
    shipper: &ShipHandle,
    removals: &[RepoRemoval],
    local: Erased,
) -> Result<(), String> {
    let there = shipper.erased();
    // What is displaced goes with its window; a clean checkpoint must be there long before, since it is kept as long.
    let waits = |removal: &RepoRemoval| {
        removal.lsn <= local.through && there.wants_checkpoint(removal.lsn, local.views)
    };
    if !removals.iter().any(waits) {
        return Ok(());
    }
    let ship = |lsn: Lsn| async move {
        let shipped = tokio::time::timeout(STEP, async {
            if let Some(remote) = app.engine.remote() {
                // Its failure is told by the shipping.
                let _ = remote.wait(lsn).await;
            }
            shipper
                .replace_checkpoints(app.engine.checkpoints().dir_of(lsn), lsn)
                .await
        });
        shipped.await.map_err(|_| "the replica takes too long".to_owned())
    };
    if let Some(newest) = newest_checkpoint(app).filter(|newest| *newest > local.views) {
        match ship(newest).await? {
            // The replica has this one, and an older one beside it.
            Err(CheckpointError::NotNewer { .. }) => {}
            shipped => return shipped.map_err(|error| with_causes(&error)),
        }
    }
    let taken = tokio::time::timeout(STEP, app.engine.checkpoint_anew()).await;
    let taken = taken.map_err(|_| "a checkpoint takes too long".to_owned())?;
    let taken = taken.map_err(|error| with_causes(&error))?;
    ship(taken.lsn()).await?.map_err(|error| with_causes(&error))
}

async fn erase_blobs(app: &App, removal: &RepoRemoval) -> bool {
    match app.blobs.erase(&removal.did).await {
        Ok(blobs) => {
            if blobs > 0 {
                tracing::info!(did = %removal.did, blobs, "the blobs of a removed repo are deleted");
            }
            true
        }
        Err(error) => {
            tracing::warn!(did = %removal.did, %error, "blobs of a removed repo are still there; it is tried again");
            false
        }
    }
}

fn time(lsn: Lsn) -> String {
    lsn.timestamp().into_iter().map(char::from).collect()
}

fn tell(removal: &RepoRemoval, local: Lsn, replica: Option<Lsn>) {
    tracing::info!(
        did = %removal.did,
        lsn = removal.lsn.get(),
        removed = time(removal.lsn),
        gone_from_disk = time(local),
        gone_from_replica = replica.map_or_else(|| "there is none".to_owned(), time),
        "the last copy of a removed repo is gone"
    );
}

/// Lets the log say that nothing waits for these any more.
async fn note_gone(app: &App, removals: Vec<RepoRemoval>) -> Result<(), String> {
    if removals.is_empty() {
        return Ok(());
    }
    let count = removals.len() as u64;
    let draft = EntryDraft::private(vec![Change::RemovalsGone { removals }]);
    let receipt = app
        .engine
        .append(vec![draft])
        .map_err(|error| error.to_string())?;
    let durable = app.engine.in_time(receipt.durable()).await;
    durable
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    metrics::counter!("pds_removed_repos_gone_total").increment(count);
    Ok(())
}

fn gauges(local: u64, replica: u64) {
    metrics::gauge!("pds_removed_repos_pending", "where" => "local").set(local as f64);
    metrics::gauge!("pds_removed_repos_pending", "where" => "replica").set(replica as f64);
}

/// The oldest removal that has waited for a compaction for as long as it may, if there is one. `before` is the LSN of so long ago.
/// Sees to it that its segment is sealed in time: an open one is not compacted.
pub(super) async fn due(app: &Arc<App>, before: &(dyn Fn(Duration) -> Lsn + Sync)) -> Option<Lsn> {
    let oldest = match app.engine.oldest_uncompacted_removal() {
        Ok(oldest) => oldest?.lsn,
        Err(error) => {
            tracing::warn!(error = %with_causes(&error), "removed repos that are in the log cannot be found");
            return None;
        }
    };
    let max_age = app.config.compaction.deletion_max_age;
    // What is sealed now can be compacted when the firehose needs it no more.
    let seal_after = max_age.saturating_sub(app.config.firehose_retention);
    let is_open = |segment: &engine::log::SegmentInfo| !segment.sealed && segment.prev < oldest;
    if oldest <= before(seal_after)
        && app.engine.segments().iter().any(is_open)
        && let Err(error) = app.engine.log().seal_now().await
    {
        tracing::warn!(%error, "the segment of a removal cannot be sealed");
    }
    (oldest <= before(max_age)).then_some(oldest)
}
