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

/// Takes a checkpoint whenever enough log has gathered or enough time has passed, and ships it.
pub(super) async fn checkpoints(app: Arc<App>, stop: CancellationToken) {
    let mut last = (Instant::now(), app.engine.applied().get(), app.engine.log_bytes());
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(CHECKPOINT_LOOK) => {}
        }
        let (applied, bytes) = (app.engine.applied().get(), app.engine.log_bytes());
        // A compaction makes the log shorter.
        last.2 = last.2.min(bytes);
        let grown = bytes.saturating_sub(last.2) >= app.config.checkpoint_bytes;
        let aged = last.0.elapsed() >= app.config.checkpoint_interval && applied > last.1;
        if !grown && !aged {
            continue;
        }
        last = (Instant::now(), applied, bytes);
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
