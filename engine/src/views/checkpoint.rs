//! Checkpoints: copies of the views at one LSN, so that a start replays a tail and not a history.
//!
//! A checkpoint is a directory `<lsn, 16 hex>` with one file per view and `checkpoint.bin`, which names them with size
//! and SHA-256 and is written last. It is never changed, only deleted, and it is an optimisation: whatever is wrong with
//! one, an older one or the whole log will do.
//!
//! | crash while             | leaves                              | which is                                          |
//! |-------------------------|-------------------------------------|---------------------------------------------------|
//! | copying views           | a directory without `checkpoint.bin` | no checkpoint; the next `take` or `prune` removes it |
//! | writing `checkpoint.bin` | perhaps a `.tmp` beside the copies   | the same                                          |
//! | deleting                | a directory without `checkpoint.bin` | the same: it goes first                            |
//! | installing              | some view files of this checkpoint   | views behind the log, to be installed or replayed  |
//! | becoming the views, before the largest file is moved | the checkpoint, and some views of it | the same |
//! | becoming the views, after that | the views, and a directory that lacks a file | a start with these views; no use as a checkpoint, which whoever reads it finds, until `prune` |

mod format;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

pub use format::{CheckpointFile, CheckpointManifest, MANIFEST_BYTES_MAX, ManifestError};

use super::ViewError;
use super::index::{self, IndexReader};
use crate::log::{Epoch, LogId, Lsn};

/// The name of the file that makes a directory a checkpoint.
pub const MANIFEST_NAME: &str = "checkpoint.bin";

/// Bytes read at once when a file is hashed or copied.
const BUFFER_BYTES: usize = 256 << 10;

/// A view as it stood at one LSN, which does not move while the view does.
pub trait ViewSnapshot {
    /// The file's name, in the checkpoint as among the live views.
    fn file_name(&self) -> &'static str;

    /// The applied LSN.
    fn lsn(&self) -> Lsn;

    /// Writes the state to a new file, synced when this returns.
    ///
    /// # Errors
    /// The snapshot could not be read or the file not be written; what it holds is then undefined.
    fn copy_to(&self, path: &Path) -> Result<(), ViewError>;
}

impl ViewSnapshot for IndexReader {
    fn file_name(&self) -> &'static str {
        index::FILE_NAME
    }

    fn lsn(&self) -> Lsn {
        self.applied()
    }

    fn copy_to(&self, path: &Path) -> Result<(), ViewError> {
        // The inherent method of the same name.
        IndexReader::copy_to(self, path).map_err(|error| ViewError::store(index::NAME, error))
    }
}

/// A failed use of checkpoints.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The snapshots are not of one LSN. Take them again, between two batches of the driver.
    #[error("snapshots of different LSNs: {first} and {second}")]
    Disagree {
        /// One's LSN.
        first: Lsn,
        /// Another's LSN.
        second: Lsn,
    },
    /// There is nothing to copy: no snapshots, or of empty views.
    #[error("nothing to take a checkpoint of")]
    Empty,
    /// `checkpoint.bin` is missing or damaged: this is no checkpoint.
    #[error("{}: {source}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// The checkpoint is of another LSN than its directory says, or of another log.
    #[error("{} holds a checkpoint of {what}", path.display())]
    Foreign {
        /// The checkpoint's directory.
        path: PathBuf,
        /// What it is of.
        what: String,
    },
    /// A file differs from what `checkpoint.bin` says of it. Use an older checkpoint, or replay.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How it differs.
        what: &'static str,
    },
    /// A view could not be copied.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The file system.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// A checkpoint with a sound `checkpoint.bin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its directory.
    pub dir: PathBuf,
    /// What it consists of.
    pub manifest: CheckpointManifest,
}

/// What [`Checkpoints::newest_valid`] found.
#[derive(Debug)]
pub struct Newest {
    /// The newest whole checkpoint of the log, if there is one.
    pub checkpoint: Option<Checkpoint>,
    /// Newer ones that are of no use, newest first. Worth a warning each.
    pub rejected: Vec<(Lsn, CheckpointError)>,
}

/// The directory of checkpoints of one log.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    root: PathBuf,
    log_id: LogId,
}

impl Checkpoints {
    /// Checkpoints of the log `log_id` in `root`, which is created when one is taken.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>, log_id: LogId) -> Checkpoints {
        Checkpoints {
            root: root.into(),
            log_id,
        }
    }

    /// Where the checkpoint of an LSN is or would be.
    #[must_use]
    pub fn dir_of(&self, lsn: Lsn) -> PathBuf {
        self.root.join(lsn.hex())
    }

    /// The LSNs of all directories that could be checkpoints, newest first. Says nothing of what is in them.
    ///
    /// # Errors
    /// The directory cannot be read. That it is not there is no error.
    pub fn list(&self) -> Result<Vec<Lsn>, CheckpointError> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => {
                return Err(CheckpointError::Io {
                    path: self.root.clone(),
                    source,
                });
            }
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| CheckpointError::Io {
                path: self.root.clone(),
                source,
            })?;
            found.extend(entry.file_name().to_str().and_then(Lsn::from_hex));
        }
        found.sort_unstable_by(|a, b| b.cmp(a));
        Ok(found)
    }

    /// Reads a checkpoint's `checkpoint.bin`. The copies themselves are not looked at.
    ///
    /// # Errors
    /// It is missing, damaged, or of another LSN or log.
    pub fn open(&self, lsn: Lsn) -> Result<Checkpoint, CheckpointError> {
        let dir = self.dir_of(lsn);
        let path = dir.join(MANIFEST_NAME);
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(MANIFEST_BYTES_MAX as u64 + 1).read_to_end(&mut bytes))
            .map_err(|source| CheckpointError::Io {
                path: path.clone(),
                source,
            })?;
        let manifest = CheckpointManifest::from_bytes(&bytes)
            .map_err(|source| CheckpointError::Manifest { path, source })?;
        if manifest.lsn != lsn {
            return Err(CheckpointError::Foreign {
                path: dir,
                what: format!("LSN {}", manifest.lsn),
            });
        }
        if manifest.log_id != self.log_id {
            return Err(CheckpointError::Foreign {
                path: dir,
                what: format!("log {}", manifest.log_id),
            });
        }
        Ok(Checkpoint { dir, manifest })
    }

    /// The newest checkpoint at or below `limit` whose copies all have the digests that it claims. Reads every byte of
    /// the copies; the caller replays the log from there, or from its beginning if there is none.
    ///
    /// # Errors
    /// The directory cannot be read. Damaged checkpoints are no error but listed.
    pub fn newest_valid(&self, limit: Lsn) -> Result<Newest, CheckpointError> {
        let mut rejected = Vec::new();
        for lsn in self.list()?.into_iter().filter(|lsn| *lsn <= limit) {
            match self
                .open(lsn)
                .and_then(|checkpoint| checkpoint.verify().map(|()| checkpoint))
            {
                Ok(checkpoint) => {
                    return Ok(Newest {
                        checkpoint: Some(checkpoint),
                        rejected,
                    });
                }
                Err(error) => rejected.push((lsn, error)),
            }
        }
        Ok(Newest {
            checkpoint: None,
            rejected,
        })
    }

    /// Takes a checkpoint from snapshots of one LSN. Blocks for as long as the copies take; the views go on meanwhile.
    /// If there is a whole one of this LSN already, that is the result.
    ///
    /// # Errors
    /// The snapshots disagree, or copies cannot be written. What was begun is removed, or by the next `prune`.
    pub fn take(&self, snapshots: &[&dyn ViewSnapshot], epoch: Epoch) -> Result<Checkpoint, CheckpointError> {
        let lsn = snapshots
            .first()
            .map(|snapshot| snapshot.lsn())
            .ok_or(CheckpointError::Empty)?;
        if lsn == Lsn::ZERO {
            return Err(CheckpointError::Empty);
        }
        if let Some(other) = snapshots.iter().find(|snapshot| snapshot.lsn() != lsn) {
            return Err(CheckpointError::Disagree {
                first: lsn,
                second: other.lsn(),
            });
        }
        if let Ok(present) = self
            .open(lsn)
            .and_then(|present| present.verify().map(|()| present))
        {
            return Ok(present);
        }
        let dir = self.dir_of(lsn);
        remove(&dir)?;
        fs::create_dir_all(&dir).map_err(at(&dir))?;
        let taken = self.fill(&dir, lsn, epoch, snapshots);
        if taken.is_err() {
            // The error that matters is the first; a directory without `checkpoint.bin` is no checkpoint anyway.
            let _ = remove(&dir);
        }
        taken
    }

    fn fill(
        &self,
        dir: &Path,
        lsn: Lsn,
        epoch: Epoch,
        snapshots: &[&dyn ViewSnapshot],
    ) -> Result<Checkpoint, CheckpointError> {
        let mut files = Vec::with_capacity(snapshots.len());
        for snapshot in snapshots {
            let path = dir.join(snapshot.file_name());
            snapshot.copy_to(&path)?;
            let (size, sha256) = digest(&path, &mut io::sink())?;
            files.push(CheckpointFile {
                name: snapshot.file_name().to_owned(),
                size,
                sha256,
            });
        }
        files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let manifest = CheckpointManifest {
            lsn,
            epoch,
            log_id: self.log_id,
            files,
        };
        let path = dir.join(MANIFEST_NAME);
        let bytes = manifest.to_bytes().map_err(|source| CheckpointError::Manifest {
            path: path.clone(),
            source,
        })?;
        // The copies' names are durable before the name that vouches for them.
        sync_dir(dir)?;
        write_whole(&path, &bytes)?;
        sync_dir(&self.root)?;
        Ok(Checkpoint {
            dir: dir.to_owned(),
            manifest,
        })
    }

    /// Deletes all but the newest `keep` checkpoints with a sound `checkpoint.bin`, and every other directory that is
    /// named like one but is none; how many went. Not while one is being taken.
    ///
    /// # Errors
    /// Something could not be read or deleted.
    pub fn prune(&self, keep: usize) -> Result<usize, CheckpointError> {
        let mut kept = 0;
        let mut removed = 0;
        for lsn in self.list()? {
            if kept < keep && self.open(lsn).is_ok() {
                kept += 1;
            } else {
                remove(&self.dir_of(lsn))?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

impl Checkpoint {
    /// The LSN that the copies are of.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        self.manifest.lsn
    }

    /// Reads every byte of the copies and compares sizes and digests.
    ///
    /// # Errors
    /// A file is missing or differs.
    pub fn verify(&self) -> Result<(), CheckpointError> {
        self.manifest
            .files
            .iter()
            .try_for_each(|file| file.check(&self.dir, &mut io::sink()))
    }

    /// Puts the copies in place of the views in `views_dir`, which nobody has open. Each is compared with its digest
    /// while it is copied, and takes its name only when it is whole and synced. The old views' write-ahead files go.
    ///
    /// # Errors
    /// A copy is damaged or the disk fails. Views that were installed before that stay; they are whole, and behind.
    pub fn install(&self, views_dir: &Path) -> Result<(), CheckpointError> {
        fs::create_dir_all(views_dir).map_err(at(views_dir))?;
        let mut files = self.manifest.files.iter();
        files.try_for_each(|file| self.copy(file, views_dir))
    }

    /// Puts the files themselves in place of the views in `views_dir`, which nobody has open: the largest is moved there, the others
    /// are copied first, and then this is no checkpoint any more. For one of which others have a copy, and whose files were compared with
    /// their digests: the one that is moved is not read.
    ///
    /// # Errors
    /// A file is missing or damaged, or the disk fails. This is still a checkpoint then, unless the move was made.
    pub fn become_views(self, views_dir: &Path) -> Result<(), CheckpointError> {
        fs::create_dir_all(views_dir).map_err(at(views_dir))?;
        let files = &self.manifest.files;
        let largest = files
            .iter()
            .max_by_key(|file| file.size)
            .ok_or(CheckpointError::Empty)?;
        for file in files.iter().filter(|file| file.name != largest.name) {
            self.copy(file, views_dir)?;
        }
        largest.has_its_size(&self.dir)?;
        replace(&self.dir.join(&largest.name), views_dir, &largest.name)?;
        // Without it `checkpoint.bin` promises too much, which is found by whoever believes it.
        remove(&self.dir)
    }

    fn copy(&self, file: &CheckpointFile, views_dir: &Path) -> Result<(), CheckpointError> {
        let staged = views_dir.join(format!("{}.tmp", file.name));
        let mut out = File::create(&staged).map_err(at(&staged))?;
        let copied = file
            .check(&self.dir, &mut out)
            .and_then(|()| out.sync_all().map_err(at(&staged)));
        if let Err(error) = copied {
            // Best effort: the next install overwrites it.
            let _ = fs::remove_file(&staged);
            return Err(error);
        }
        replace(&staged, views_dir, &file.name)
    }
}

/// Makes `from`, which is synced, the view `name`.
fn replace(from: &Path, views_dir: &Path, name: &str) -> Result<(), CheckpointError> {
    // An old write-ahead file must never meet the new database: it goes first, durably.
    for suffix in ["-wal", "-shm", "-journal", ""] {
        let path = views_dir.join(format!("{name}{suffix}"));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&path)(error)),
            _ => {}
        }
    }
    sync_dir(views_dir)?;
    let to = views_dir.join(name);
    fs::rename(from, &to).map_err(at(&to))?;
    sync_dir(views_dir)
}

impl CheckpointFile {
    /// Where it is in `dir`, if it has the size that is said of it.
    fn has_its_size(&self, dir: &Path) -> Result<PathBuf, CheckpointError> {
        let path = dir.join(&self.name);
        if fs::metadata(&path).map_err(at(&path))?.len() == self.size {
            return Ok(path);
        }
        Err(CheckpointError::Damaged {
            path,
            what: "its size is not the recorded one",
        })
    }

    /// Compares this file in `dir` with what is said of it, writing what it reads to `out`.
    fn check(&self, dir: &Path, out: &mut dyn Write) -> Result<(), CheckpointError> {
        let path = self.has_its_size(dir)?;
        let (_, sha256) = digest(&path, out)?;
        if sha256 != self.sha256 {
            return Err(CheckpointError::Damaged {
                path,
                what: "its SHA-256 is not the recorded one",
            });
        }
        Ok(())
    }
}

/// Size and SHA-256 of a file, which is also written to `out`.
fn digest(path: &Path, out: &mut dyn Write) -> Result<(u64, [u8; 32]), CheckpointError> {
    let mut file = File::open(path).map_err(at(path))?;
    let mut hash = Sha256::new();
    let mut size = 0;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = match file.read(&mut buffer) {
            Ok(0) => return Ok((size, hash.finalize().into())),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(at(path)(error)),
        };
        let read = buffer.get(..count).unwrap_or_default();
        hash.update(read);
        out.write_all(read).map_err(at(path))?;
        size += count as u64;
    }
}

/// Writes a file that either is there wholly or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let staged = path.with_extension("tmp");
    let mut file = File::create(&staged).map_err(at(&staged))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(at(&staged))?;
    fs::rename(&staged, path).map_err(at(path))?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Removes a checkpoint so that at no time it looks whole and is not.
fn remove(dir: &Path) -> Result<(), CheckpointError> {
    let gone = |outcome: io::Result<()>, path: &Path| match outcome {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    };
    let manifest = dir.join(MANIFEST_NAME);
    if manifest.exists() {
        gone(fs::remove_file(&manifest), &manifest)?;
        sync_dir(dir)?;
    }
    gone(fs::remove_dir_all(dir), dir)
}

fn sync_dir(dir: &Path) -> Result<(), CheckpointError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(at(dir))
}

fn at(path: &Path) -> impl Fn(io::Error) -> CheckpointError {
    let path = path.to_owned();
    move |source| CheckpointError::Io {
        path: path.clone(),
        source,
    }
}
