//! Another file in the place of the live one, with the same rows and without the room that years of inserts have left between
//! them: a tree whose pages were split one by one is half empty, one that was written in key order is full.
//!
//! ```text
//! snapshot ─► copy in key order ─► folds the log up to what is applied ─► durable ─► between two batches: the rest, rename, swap
//! ```
//!
//! A crash before the rename leaves a file that the next start removes; after it, one that is behind by what was not made
//! durable, which the log has. Snapshots of the file before stay good: they keep it open.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::Database;

use super::{FILE_NAME, IndexError, IndexSource, IndexView};
use crate::log::{LogId, LogReader, Lsn};
use crate::views::driver::{DriverConfig, DriverError, Fold};
use crate::views::{View, ViewError};

/// The new file's name until it is the live one.
pub(crate) const NEW_NAME: &str = "index.redb.new";
/// Batches after which the rest is left to the moment in which nothing else is applied.
const ROUNDS_MAX: usize = 1000;

/// A file that is to take the live one's place.
#[derive(Debug)]
pub(crate) struct Renewal {
    view: IndexView,
    new: PathBuf,
    live: PathBuf,
    log: LogReader,
    config: DriverConfig,
}

/// The file of before, which nobody finds any more. Closing it takes a moment: do it where nobody waits.
#[derive(Debug)]
pub(crate) struct Retired {
    _file: Arc<Database>,
}

/// Removes what a renewal left that did not come to its end.
pub(crate) fn remove_leftovers(dir: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(dir.join(NEW_NAME)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn view_error(error: IndexError) -> DriverError {
    DriverError::View(ViewError::store(super::NAME, error))
}

fn io_error(error: std::io::Error) -> DriverError {
    view_error(redb::StorageError::Io(error).into())
}

impl Renewal {
    /// Copies what `source` shows, in the directory `dir` of the live file, and lets it follow the log up to what `applied`
    /// answers. Takes as long as reading and writing all rows; writes go on meanwhile.
    ///
    /// # Errors
    /// A file or the log cannot be read or written. Nothing has changed.
    pub(crate) fn prepare(
        source: &IndexSource,
        dir: &Path,
        log_id: LogId,
        cache_bytes: usize,
        log: LogReader,
        config: DriverConfig,
        applied: impl Fn() -> Lsn,
    ) -> Result<Renewal, DriverError> {
        remove_leftovers(dir).map_err(io_error)?;
        let (new, live) = (dir.join(NEW_NAME), dir.join(FILE_NAME));
        source
            .reader()
            .and_then(|reader| reader.copy_to(&new))
            .map_err(view_error)?;
        let view = IndexView::open(&new, log_id, cache_bytes).map_err(view_error)?;
        let mut renewal = Renewal {
            view,
            new,
            live,
            log,
            config,
        };
        for _ in 0..ROUNDS_MAX {
            let before = renewal.view.applied();
            renewal.follow(applied())?;
            if renewal.view.applied() == before {
                break;
            }
        }
        renewal.view.persist()?;
        Ok(renewal)
    }

    fn follow(&mut self, limit: Lsn) -> Result<(), DriverError> {
        let log = self.log.clone();
        let mut fold = Fold::new(vec![Box::new(&mut self.view)], |from| log.tail(from), self.config);
        while fold.step(limit)?.entries > 0 {}
        Ok(())
    }

    /// Puts the new file in the place of the one that `source` shows. To be called when nothing is applied meanwhile.
    ///
    /// # Errors
    /// The new file could not follow or not be renamed: the live one stays.
    pub(crate) fn finish(mut self, source: &IndexSource) -> Result<Retired, DriverError> {
        let applied = source.reader().map_err(view_error)?.applied();
        self.follow(applied)?;
        let reached = self.view.applied();
        if reached != applied {
            return Err(view_error(IndexError::Unusable {
                reason: format!("the renewed file is at {reached}, the live one at {applied}"),
            }));
        }
        std::fs::rename(&self.new, &self.live).map_err(io_error)?;
        let new = self.view.slot.database();
        let retired = source.slot.replace(new);
        Ok(Retired { _file: retired })
    }
}
