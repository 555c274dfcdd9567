//! Rebuilding a log directory from a replica: sealed segments come as whole files, the tail as raw frames.
//!
//! The frames say themselves where the writer began a new segment, and everything else in a segment follows from its
//! frames, so the files become the writer's own, byte for byte, and every [`Location`](super::Location) stays true.
//! Until [`SegmentInstaller::finish`] returns, the directory is no log: a crash before means to begin again in an
//! empty one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::append::seal_file;
use super::frame::{Flags, frames_in};
use super::journal::remove_then_journal;
use super::lsn::{Epoch, LogId, Lsn};
use super::recovery::{Damage, OpenError, list_segments, lock_dir, verify_segment};
use super::segment::{SegmentHeader, SegmentInfo, Tally, link_error, segment_file_name};
use super::tier::{AWAY_NAME, AwaySegment, write_list};
use crate::storage::{OpenMode, Storage, StorageFile, StorageLock};

/// Why something could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The directory could not be taken.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is a log already.
    #[error("{dir} already holds segments; a log is installed into an empty directory only")]
    NotEmpty {
        /// The directory.
        dir: String,
    },
    /// What came from the replica is not what a writer wrote.
    #[error("what came from the replica as {what} is {damage}")]
    Damaged {
        /// A segment, or frames.
        what: String,
        /// What is wrong, and where in what came.
        damage: Damage,
    },
    /// What came belongs to another log.
    #[error("what came from the replica belongs to log {found}, not {expected}")]
    ForeignLog {
        /// Whose it is.
        found: LogId,
        /// Whose it should be.
        expected: LogId,
    },
    /// The disk failed.
    #[error("installing a log failed: {0}")]
    Io(#[from] io::Error),
}

/// Builds a log directory. Holds its lock.
#[derive(Debug)]
pub struct SegmentInstaller {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    log_id: LogId,
    /// What was installed last, if anything.
    last: Option<(Lsn, Epoch)>,
    open: Option<Growing>,
    /// The compaction whose frames come, or zero.
    compaction: u32,
    _lock: Box<dyn StorageLock>,
}

#[derive(Debug)]
struct Growing {
    header: SegmentHeader,
    file: Arc<dyn StorageFile>,
    tally: Tally,
}

/// A sealed segment that arrives piece by piece.
#[derive(Debug)]
pub struct SealedUpload {
    file: Arc<dyn StorageFile>,
    temp: PathBuf,
    base: Lsn,
    len: u64,
}

impl SealedUpload {
    /// Takes the next piece of the file.
    ///
    /// # Errors
    /// As the disk says.
    pub fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        self.file.write_at(self.len, piece)?;
        self.len += piece.len() as u64;
        Ok(())
    }
}

impl SegmentInstaller {
    /// Begins in `dir`, which is made if missing and must hold no segments.
    ///
    /// # Errors
    /// [`InstallError::NotEmpty`], [`OpenError::Locked`], or the disk's.
    pub fn begin(
        storage: Arc<dyn Storage>,
        dir: &Path,
        log_id: LogId,
    ) -> Result<SegmentInstaller, InstallError> {
        let lock = lock_dir(&storage, dir)?;
        let (bases, leftovers) = list_segments(storage.as_ref(), dir)?;
        if !bases.is_empty() || storage.exists(&dir.join(AWAY_NAME))? {
            return Err(InstallError::NotEmpty {
                dir: dir.display().to_string(),
            });
        }
        for name in leftovers {
            storage.remove(&dir.join(name))?;
        }
        // Of a compaction whose segments are gone.
        remove_then_journal(storage.as_ref(), dir, &[])?;
        let dir = dir.to_owned();
        Ok(SegmentInstaller {
            storage,
            dir,
            log_id,
            last: None,
            open: None,
            compaction: 0,
            _lock: lock,
        })
    }

    /// LSN of the last frame installed.
    #[must_use]
    pub fn last(&self) -> Lsn {
        self.last.map_or(Lsn::ZERO, |(lsn, _)| lsn)
    }

    /// Begins the log with segments that stay where they are, in the replica; they ascend, and nothing is installed yet.
    /// What is said of them is believed: their bytes are checked when they come.
    ///
    /// # Errors
    /// [`InstallError::Damaged`] if they do not chain, [`InstallError::ForeignLog`], or the disk's.
    pub fn away(&mut self, segments: &[AwaySegment]) -> Result<(), InstallError> {
        for away in segments {
            self.check_header(&away.header(), &format!("segment {}", away.info.base))?;
            self.last = Some((away.info.last, away.info.epoch));
        }
        if segments.is_empty() {
            return Ok(());
        }
        Ok(write_list(self.storage.as_ref(), &self.dir, segments.iter())?)
    }

    /// Begins to take the sealed segment with this base LSN; give its bytes to [`SealedUpload::write`], then call
    /// [`SegmentInstaller::install`].
    ///
    /// # Errors
    /// As the disk says.
    pub fn sealed(&self, base: Lsn) -> Result<SealedUpload, InstallError> {
        let temp = self.dir.join(format!("{}.tmp", base.hex()));
        if self.storage.exists(&temp)? {
            self.storage.remove(&temp)?;
        }
        let file = self.storage.open(&temp, OpenMode::CreateNew)?;
        Ok(SealedUpload {
            file,
            temp,
            base,
            len: 0,
        })
    }

    /// Checks every byte of a sealed segment that has arrived, and makes it part of the log. Segments come in order.
    ///
    /// # Errors
    /// [`InstallError::Damaged`], [`InstallError::ForeignLog`], or the disk's.
    pub fn install(&mut self, upload: SealedUpload) -> Result<SegmentInfo, InstallError> {
        let what = || format!("segment {}", upload.base);
        let damaged = |damage| InstallError::Damaged { what: what(), damage };
        upload.file.sync_data()?;
        let (header, info) = verify_segment(&upload.file.stable_bytes()?).map_err(damaged)?;
        if header.base != upload.base {
            let what = format!("the file of segment {}", header.base);
            return Err(damaged(Damage { offset: 0, what }));
        }
        self.seal_open()?;
        self.check_header(&header, &what())?;
        self.storage
            .rename(&upload.temp, &self.dir.join(segment_file_name(header.base)))?;
        self.storage.sync_dir(&self.dir)?;
        self.last = Some((info.last, info.epoch));
        Ok(info)
    }

    /// Says that the frames which begin segments from now on are those of this compaction; zero: of a writer, as at first.
    pub fn frames_of_compaction(&mut self, number: u32) {
        self.compaction = number;
    }

    /// Appends the frames in `raw`, which are whole groups. Frames that are installed already are checked and passed
    /// over. Returns the LSN of the last frame installed so far.
    ///
    /// # Errors
    /// [`InstallError::Damaged`] with the offset in `raw`, or the disk's.
    pub fn append_frames(&mut self, raw: &[u8]) -> Result<Lsn, InstallError> {
        let damaged = |at: usize, what: String| InstallError::Damaged {
            what: "frames".to_owned(),
            damage: Damage {
                offset: at as u64,
                what,
            },
        };
        let mut run_from = None;
        let mut open_group = None;
        for frame in frames_in(raw) {
            let (at, frame) = frame.map_err(|(at, error)| damaged(at, error.to_string()))?;
            let header = frame.header;
            open_group = header.flags.contains(Flags::MORE).then_some(at);
            if self.last.is_some_and(|(last, _)| header.lsn <= last) {
                continue;
            }
            let starts = header.flags.contains(Flags::SEGMENT_START);
            if starts {
                self.write_run(raw, &mut run_from, at)?;
                self.seal_open()?;
                let SegmentInstaller {
                    log_id, compaction, ..
                } = *self;
                let new = SegmentHeader {
                    log_id,
                    epoch: header.epoch,
                    base: header.lsn,
                    prev: header.prev,
                    compaction,
                };
                self.check_header(&new, &format!("frames, at offset {at}"))?;
                self.create(new)?;
            }
            let Some(open) = &mut self.open else {
                return Err(damaged(
                    at,
                    format!("frame {} continues a segment that is not there", header.lsn),
                ));
            };
            if let Some(what) = link_error(&header, open.tally.last, open.header.epoch, starts) {
                return Err(damaged(at, what));
            }
            run_from.get_or_insert((at, open.tally.end));
            open.tally.add(&header, frame.bytes);
            self.last = Some((header.lsn, header.epoch));
        }
        if let Some(at) = open_group {
            return Err(damaged(at, "the last group is not whole".to_owned()));
        }
        self.write_run(raw, &mut run_from, raw.len())?;
        Ok(self.last())
    }

    /// Makes everything durable. The directory is a log from now on.
    ///
    /// # Errors
    /// As the disk says.
    pub fn finish(self) -> Result<Lsn, InstallError> {
        if let Some(open) = &self.open {
            open.file.sync_data()?;
        }
        self.storage.sync_dir(&self.dir)?;
        Ok(self.last())
    }

    /// Writes the frames that were counted since the last time, which end at `to` in `raw`.
    fn write_run(&self, raw: &[u8], from: &mut Option<(usize, u64)>, to: usize) -> io::Result<()> {
        let (Some(open), Some((start, offset))) = (&self.open, from.take()) else {
            return Ok(());
        };
        open.file.write_at(offset, raw.get(start..to).unwrap_or_default())
    }

    fn create(&mut self, header: SegmentHeader) -> io::Result<()> {
        let path = self.dir.join(segment_file_name(header.base));
        let file = self.storage.open(&path, OpenMode::CreateNew)?;
        file.write_at(0, &header.encode())?;
        self.open = Some(Growing {
            header,
            file,
            tally: Tally::start(&header),
        });
        Ok(())
    }

    fn seal_open(&mut self) -> io::Result<()> {
        if let Some(open) = self.open.take() {
            open.file.sync_data()?;
            seal_file(&open.header, open.file.as_ref(), &open.tally)?;
        }
        Ok(())
    }

    /// Whether a segment continues what is installed.
    fn check_header(&self, header: &SegmentHeader, what: &str) -> Result<(), InstallError> {
        if header.log_id != self.log_id {
            return Err(InstallError::ForeignLog {
                found: header.log_id,
                expected: self.log_id,
            });
        }
        let Some((last, epoch)) = self.last else {
            return Ok(());
        };
        if header.prev != last || header.epoch < epoch {
            let wrong = format!(
                "out of order: it follows {} in epoch {}, but {last} in epoch {epoch} was installed before it",
                header.prev, header.epoch
            );
            let damage = Damage {
                offset: 0,
                what: wrong,
            };
            return Err(InstallError::Damaged {
                what: what.to_owned(),
                damage,
            });
        }
        Ok(())
    }
}
