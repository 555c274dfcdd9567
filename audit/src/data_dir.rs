//! A server's data directory, looked at from outside: nothing in it is changed or locked.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use engine::log::{AwaySegment, Lsn, segment_file_name};
use engine::storage::OsStorage;
use shipper::restore;

/// Why a directory cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// It is not there.
    #[error("{0} does not exist")]
    Missing(PathBuf),
    /// It is a file, or another program's.
    #[error("{dir} is not a data directory of this server: {why}")]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// What tells so.
        why: String,
    },
    /// What is in it is only a part.
    #[error("a restore into {0} began and did not end; run `pds-tools restore` into it again")]
    Unfinished(PathBuf),
    /// The disk failed, or permissions are missing.
    #[error("reading {path}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A data directory with a log in it.
#[derive(Clone, Debug)]
pub struct DataDir {
    /// The directory.
    pub root: PathBuf,
    /// Base LSNs of its segments by their names, ascending; without those that a compaction writes or has replaced.
    pub segments: Vec<Lsn>,
    /// Segments of the log that are not here but in the replica, ascending.
    pub away: Vec<AwaySegment>,
    /// Whether a server has the log's lock now: then the newest segment may grow, and views are in use.
    pub running: bool,
}

impl DataDir {
    /// Looks at `root`.
    ///
    /// # Errors
    /// [`DirError`].
    pub fn open(root: &Path) -> Result<DataDir, DirError> {
        let foreign = |why: String| DirError::Foreign {
            dir: root.to_owned(),
            why,
        };
        match std::fs::metadata(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(DirError::Missing(root.to_owned()));
            }
            Err(source) => {
                return Err(DirError::Io {
                    path: root.to_owned(),
                    source,
                });
            }
            Ok(found) if !found.is_dir() => return Err(foreign("it is a file".to_owned())),
            Ok(_) => {}
        }
        if restore::is_unfinished(root) {
            return Err(DirError::Unfinished(root.to_owned()));
        }
        let log = root.join(restore::LOG_DIR);
        let listed = match std::fs::read_dir(&log) {
            Ok(listed) => listed,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Err(foreign("it has no directory log/".to_owned()));
            }
            Err(source) => return Err(DirError::Io { path: log, source }),
        };
        let mut segments = Vec::new();
        for entry in listed {
            let name = entry
                .map_err(|source| DirError::Io {
                    path: log.clone(),
                    source,
                })?
                .file_name();
            let name = name.to_string_lossy();
            if let Some(stem) = name.strip_suffix(".seg") {
                let base = Lsn::from_hex(stem);
                segments.push(base.ok_or_else(|| foreign(format!("log/{name} is not a segment's name")))?);
            }
        }
        segments.sort_unstable();
        let io = |source| DirError::Io {
            path: log.clone(),
            source,
        };
        let mut away = engine::log::away_segments(&OsStorage, &log).map_err(io)?;
        // What is here counts, listed or not.
        away.retain(|away| segments.binary_search(&away.info.base).is_err());
        let mut all: Vec<Lsn> = segments
            .iter()
            .copied()
            .chain(away.iter().map(|away| away.info.base))
            .collect();
        all.sort_unstable();
        let mut live = engine::log::live_segments(&OsStorage, &log, all).map_err(io)?;
        away.retain(|away| live.binary_search(&away.info.base).is_ok());
        live.retain(|base| !away.iter().any(|away| away.info.base == *base));
        Ok(DataDir {
            root: root.to_owned(),
            segments: live,
            away,
            running: is_locked(&log.join("lock"))?,
        })
    }

    /// A line for people about segments that are away, if any are.
    #[must_use]
    pub fn say_away(&self) -> Option<String> {
        let bytes: u64 = self.away.iter().map(|away| away.info.bytes).sum();
        (!self.away.is_empty()).then(|| {
            format!(
                "{} segments with {bytes} bytes are away: they are in the replica, not in this directory, and were not looked at; \
                 --replica looks at all of them",
                self.away.len()
            )
        })
    }

    /// What is known of a segment that the running server has evicted since we looked.
    #[must_use]
    pub fn went_away(&self, base: Lsn) -> Option<AwaySegment> {
        let log = self.root.join(restore::LOG_DIR);
        if self.segment_path(base).exists() {
            return None;
        }
        let away = engine::log::away_segments(&OsStorage, &log).ok()?;
        away.into_iter().find(|away| away.info.base == base)
    }

    /// The file of a segment.
    #[must_use]
    pub fn segment_path(&self, base: Lsn) -> PathBuf {
        self.root.join(restore::LOG_DIR).join(segment_file_name(base))
    }
}

/// Whether a server holds the lock. Asks for a moment for a shared lock, which a server's is not.
fn is_locked(path: &Path) -> Result<bool, DirError> {
    let io = |source| DirError::Io {
        path: path.to_owned(),
        source,
    };
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io(error)),
        Ok(file) => match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(io(error)),
        },
    }
}
