//! Whether a checkpoint in the replica is one: its files are fetched again, compared with their digests, opened and counted.

use std::io;
use std::path::Path;

use engine::log::{LogId, Lsn};
use engine::views::View;
use engine::views::accounts::{AccountsView, queries};
use engine::views::checkpoint::Checkpoints;
use engine::views::index::{FILE_NAME, IndexView};

use crate::checkpoint::fetch::{FetchError, fetch};
use crate::manifest::CheckpointEntry;
use crate::requests::Requests;
use crate::store::StoreError;

/// Memory for pages of the index while repos are counted.
const INDEX_CACHE_BYTES: usize = 4 << 20;
/// Repos that are read at once.
const PAGE: usize = 1_000;

/// What a checkpoint that is good holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) repos: u64,
    pub(crate) accounts: u64,
}

/// Why nothing is known, or what is wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerifyError {
    /// It could not be fetched; another try may help.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The local disk failed or has no room; another try may help.
    #[error("a local file of a checkpoint that is verified")]
    Local(#[source] io::Error),
    /// The checkpoint is of no use.
    #[error("the checkpoint {lsn} in the replica is damaged: {what}")]
    Damaged { lsn: Lsn, what: String },
}

/// Fetches a checkpoint into a directory below `temp_dir`, and looks into it.
pub(crate) async fn verify(
    requests: &Requests,
    checkpoint: &CheckpointEntry,
    log_id: LogId,
    temp_dir: &Path,
) -> Result<Counted, VerifyError> {
    let lsn = Lsn::saturating(checkpoint.lsn);
    let bytes = checkpoint.raw_bytes();
    let disk = rustix::fs::statvfs(temp_dir).map_err(|error| VerifyError::Local(error.into()))?;
    // As much again stays free for the log, which goes on meanwhile.
    if disk.f_bavail.saturating_mul(disk.f_frsize) < bytes.saturating_mul(2) {
        return Err(VerifyError::Local(io::ErrorKind::StorageFull.into()));
    }
    let temp = tempfile::tempdir_in(temp_dir).map_err(VerifyError::Local)?;
    let dir = temp.path().join(lsn.hex());
    std::fs::create_dir(&dir).map_err(VerifyError::Local)?;
    for file in &checkpoint.files {
        match fetch(requests, file, &dir.join(&file.name)).await {
            Ok(_) => {}
            Err(FetchError::Store(StoreError::NotFound { object })) => {
                let what = format!("{object} is missing");
                return Err(VerifyError::Damaged { lsn, what });
            }
            Err(error @ FetchError::NotAsNamed { .. }) => {
                let what = error.to_string();
                return Err(VerifyError::Damaged { lsn, what });
            }
            Err(FetchError::Store(error)) => return Err(error.into()),
            Err(FetchError::Local(error)) => return Err(VerifyError::Local(error)),
        }
    }
    let look = tokio::task::spawn_blocking(move || count(temp.path(), lsn, log_id));
    match look.await {
        Ok(counted) => counted.map_err(|what| VerifyError::Damaged { lsn, what }),
        Err(error) => Err(VerifyError::Local(io::Error::other(error))),
    }
}

/// Opens what is in `root` and counts it. Blocks. The error says what is wrong.
fn count(root: &Path, lsn: Lsn, log_id: LogId) -> Result<Counted, String> {
    let text = |error: &dyn std::error::Error| crate::handle::with_sources(error);
    let checkpoint = Checkpoints::new(root, log_id)
        .open(lsn)
        .and_then(|checkpoint| checkpoint.verify().map(|()| checkpoint))
        .map_err(|error| text(&error))?;
    let index = IndexView::open(&checkpoint.dir.join(FILE_NAME), log_id, INDEX_CACHE_BYTES)
        .map_err(|error| text(&error))?;
    let reader = index.reader().map_err(|error| text(&error))?;
    let accounts = AccountsView::open(&checkpoint.dir, log_id).map_err(|error| text(&error))?;
    for (view, applied) in [("index", reader.applied()), ("accounts", accounts.applied())] {
        if applied != lsn {
            return Err(format!("the {view} is at {applied}"));
        }
    }
    let (mut repos, mut after) = (0, None);
    loop {
        let page = reader.repos(after, PAGE).map_err(|error| text(&error))?;
        let Some(last) = page.last() else { break };
        repos += page.len() as u64;
        after = Some(last.number);
    }
    let counts = accounts.handle().read_blocking(queries::count_actors);
    let counts = counts.map_err(|error| text(&error))?;
    Ok(Counted {
        repos,
        accounts: counts.active + counts.deactivated + counts.takendown,
    })
}
