//! The directory that is restored into: its marker, and what an unfinished restore left.

use std::io;
use std::path::Path;

use engine::log::AWAY_NAME;

use super::{CHECKPOINT_DIR, LOG_DIR, MARKER, RestoreError, RestoreOptions};

/// Where objects are put before they are unpacked.
pub(super) const TEMP_DIR: &str = "restore-tmp";
/// How often a directory is emptied again into which something came while it was removed.
const REMOVE_TRIES: u32 = 100;

pub(super) fn local(path: &Path) -> impl FnOnce(io::Error) -> RestoreError {
    let path = path.to_owned();
    move |source| RestoreError::Local { path, source }
}

/// Makes sure that nothing is there yet, and leaves the marker.
pub(super) fn begin(dest: &Path, options: &RestoreOptions) -> Result<(), RestoreError> {
    std::fs::create_dir_all(dest).map_err(local(dest))?;
    let marker = dest.join(MARKER);
    if marker.exists() {
        return clean(dest, options);
    }
    let log_dir = dest.join(LOG_DIR);
    options
        .storage
        .create_dir_all(&log_dir)
        .map_err(local(&log_dir))?;
    let names = options.storage.list(&log_dir).map_err(local(&log_dir))?;
    if names
        .iter()
        .any(|name| name.ends_with(".seg") || name == AWAY_NAME)
    {
        return Err(RestoreError::NotEmpty(log_dir));
    }
    let checkpoints = dest.join(CHECKPOINT_DIR);
    match std::fs::read_dir(&checkpoints) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Err(RestoreError::NotEmpty(checkpoints));
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(local(&checkpoints)(error)),
    }
    let file = std::fs::File::create(&marker).map_err(local(&marker))?;
    file.sync_all().map_err(local(&marker))?;
    sync_dir(dest)
}

/// Removes what an unfinished restore left.
pub(super) fn clean(dest: &Path, options: &RestoreOptions) -> Result<(), RestoreError> {
    let log_dir = dest.join(LOG_DIR);
    options
        .storage
        .create_dir_all(&log_dir)
        .map_err(local(&log_dir))?;
    for name in options.storage.list(&log_dir).map_err(local(&log_dir))? {
        let is_of_the_log = [".seg", ".part", ".tmp"].iter().any(|end| name.ends_with(end));
        if is_of_the_log || name == AWAY_NAME {
            let path = log_dir.join(&name);
            options.storage.remove(&path).map_err(local(&path))?;
        }
    }
    remove_dir(&dest.join(CHECKPOINT_DIR))?;
    remove_dir(&dest.join(TEMP_DIR))
}

pub(super) fn remove_dir(path: &Path) -> Result<(), RestoreError> {
    // A fetch that was given up may still be making its file, in a thread that nobody waits for.
    for _ in 0..REMOVE_TRIES {
        match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => std::thread::yield_now(),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(local(path)(error)),
            _ => return Ok(()),
        }
    }
    std::fs::remove_dir_all(path).map_err(local(path))
}

pub(super) fn remove_marker(dest: &Path) -> Result<(), RestoreError> {
    let marker = dest.join(MARKER);
    sync_dir(dest)?;
    std::fs::remove_file(&marker).map_err(local(&marker))?;
    sync_dir(dest)
}

pub(super) fn sync_dir(dir: &Path) -> Result<(), RestoreError> {
    std::fs::File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(local(dir))
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RestoreError> + Send + 'static,
) -> Result<T, RestoreError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| RestoreError::Task(error.to_string()))?
}

pub(super) fn create_dir(path: &Path) -> Result<(), RestoreError> {
    std::fs::create_dir_all(path).map_err(local(path))
}
