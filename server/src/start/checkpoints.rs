//! Checkpoints of the views, whenever they are due.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::log::Lsn;
use tokio_util::sync::CancellationToken;

use super::millis;
use crate::app::App;

/// How often it is looked whether a checkpoint is due.
const CHECKPOINT_LOOK: Duration = Duration::from_secs(10);

/// How long a replica may be without a checkpoint.
const MISSING_LONGEST: Duration = Duration::from_secs(30);

/// When the next checkpoint is due.
struct Due {
    /// Of the last try.
    tried: Instant,
    /// What the last try covered.
    covered: Lsn,
    /// The log's bytes then.
    bytes: u64,
    /// Since when the replica names none.
    missing: Option<Instant>,
}

impl Due {
    /// What the replica has counts, not when this process began: servers that never live long enough would leave a tail that grows.
    fn from_now(app: &App) -> Due {
        let newest = app.shipper.get().and_then(|shipper| shipper.named().checkpoint);
        Due {
            tried: Instant::now(),
            covered: newest.unwrap_or_else(|| app.engine.applied().get()),
            bytes: app.engine.log_bytes(),
            missing: None,
        }
    }

    /// Whether it is now; then this is the last try.
    fn now(&mut self, app: &App) -> bool {
        let (applied, bytes) = (app.engine.applied().get(), app.engine.log_bytes());
        // A compaction makes the log shorter.
        self.bytes = self.bytes.min(bytes);
        let grown = bytes.saturating_sub(self.bytes) >= app.config.checkpoint_bytes;
        // An LSN is a time in microseconds.
        let behind = Duration::from_micros(app.engine.now_micros().saturating_sub(self.covered.get()));
        let aged =
            applied > self.covered && behind.max(self.tried.elapsed()) >= app.config.checkpoint_interval;
        // A new replica, or one whose checkpoint a compaction has made worthless; whoever compacts publishes one by itself, if it can.
        let none = app
            .shipper
            .get()
            .is_some_and(|shipper| shipper.named().checkpoint.is_none())
            && applied.get() > 0;
        self.missing = none.then(|| self.missing.unwrap_or_else(Instant::now));
        let missing = self
            .missing
            .is_some_and(|since| since.elapsed() >= MISSING_LONGEST);
        let due = grown || aged || missing;
        if due {
            *self = Due {
                tried: Instant::now(),
                covered: applied,
                bytes,
                missing: None,
            };
        }
        due
    }
}

/// Takes a checkpoint whenever enough log has gathered or enough time has passed, and ships it.
pub(super) async fn checkpoints(app: Arc<App>, stop: CancellationToken) {
    let mut due = Due::from_now(&app);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(CHECKPOINT_LOOK) => {}
        }
        if !due.now(&app) {
            continue;
        }
        let started = Instant::now();
        match app.engine.checkpoint().await {
            Ok(taken) => {
                tracing::info!(
                    lsn = taken.lsn().get(),
                    ms = millis(started.elapsed()),
                    "checkpoint"
                );
                if let Err(error) = ship_checkpoint(&app, &taken.dir, taken.lsn()).await {
                    tracing::warn!(%error, "the checkpoint was not shipped");
                }
            }
            Err(error) => tracing::warn!(%error, "no checkpoint was taken"),
        }
    }
}

/// Waits until the replica has everything up to the checkpoint, and ships it.
pub(super) async fn ship_checkpoint(app: &App, dir: &Path, lsn: Lsn) -> Result<(), String> {
    let (Some(shipper), Some(remote)) = (app.shipper.get(), app.engine.remote()) else {
        return Ok(());
    };
    remote.wait(lsn).await.map_err(|error| error.to_string())?;
    shipper
        .publish_checkpoint(dir.to_owned(), lsn)
        .await
        .map_err(|error| error.to_string())
}
