//! Accounts that were switched off to be deleted go when their time has come.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::app::App;

/// How often it is looked whether there are any.
const LOOK: Duration = Duration::from_secs(600);

/// Looks now and then, and deletes a bounded number each time.
pub(super) async fn deletions(app: Arc<App>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        match app.accounts.delete_overdue().await {
            Ok(0) => {}
            Ok(deleted) => tracing::info!(deleted, "deactivated accounts were deleted"),
            Err(error) => tracing::warn!(%error, "accounts that are to be deleted cannot be found"),
        }
    }
}
