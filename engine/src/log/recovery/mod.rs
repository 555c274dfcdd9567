//! What a start finds in the directory, and what it does about it.
//!
//! | the end of a segment                                          | the newest          | an older one |
//! |---------------------------------------------------------------|---------------------|--------------|
//! | sealed: the footer is whole and true                          | keep                | keep         |
//! | open: ends with a whole group, maybe zeros behind it          | seal                | refuse       |
//! | torn: damage or half a group, and nothing proves a later sync | cut there, then seal | refuse      |
//! | headless: no header, and no frame behind it                   | remove              | refuse       |
//! | damaged: what was durable is not what was written             | refuse              | refuse       |
//!
//! A writer writes one batch, syncs, and only then writes the next; the first frame of each batch carries
//! [`Flags::AFTER_SYNC`]. So a crash can harm only what follows the last such frame, and damage with such a frame
//! behind it is damage to what was durable. A valid footer proves the same of the whole segment; so does any frame of
//! its header.
//!
//! A segment that the list of the [`tier`](super::tier) names and that is not here is away, and taken for what the list says.
//!
//! Finding out changes nothing on disk; starting does: it cuts or removes, seals, and syncs. A crash in the midst of
//! that leaves one of the rows above.

mod scan;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::journal::{Journal, Output};
use super::lsn::{Epoch, LogId, Lsn};
use super::segment::{SegmentHeader, SegmentHeaderError, SegmentInfo, Tally, segment_file_name};
use super::set::{PendingCompaction, SegmentEntry, SegmentSet};
use super::tier::{self, AwaySegment};
use crate::storage::{OpenMode, Storage, StorageFile, StorageLock};
use scan::{Action, decide, ends_of_sealed, scan};
pub use scan::{Damage, verify_segment};

/// Why a directory could not be opened as a log.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{dir} is locked by another process; only one may write a log")]
    Locked {
        /// The directory.
        dir: String,
    },
    /// The directory holds another log.
    #[error("{dir} holds log {found}, not {expected}")]
    ForeignLog {
        /// The directory.
        dir: String,
        /// Whose segments were found.
        found: LogId,
        /// Whose were expected.
        expected: LogId,
    },
    /// A file is of a later format.
    #[error(
        "segment {}: format version {found} is not known to this program; use the one that wrote it",
        segment.hex()
    )]
    UnknownVersion {
        /// Base LSN by the file's name.
        segment: Lsn,
        /// The version found.
        found: u16,
    },
    /// What was durable is not what was written. Restore this directory from the replica.
    #[error(
        "segment {} is damaged at offset {offset}: {what}; nothing was changed, restore it from the replica",
        segment.hex()
    )]
    Damaged {
        /// Base LSN of the segment.
        segment: Lsn,
        /// Bytes from the start of its file.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// A file in the directory looks like a segment and is none.
    #[error("{name} in {dir} is no segment's name; remove it if it does not belong there")]
    StrangeFile {
        /// The directory.
        dir: String,
        /// The file.
        name: String,
    },
    /// The clock is far before the newest entry.
    #[error(
        "the clock says {now} but the log has already reached {floor} (microseconds since 1970); set the clock"
    )]
    ClockBehind {
        /// The clock's reading.
        now: u64,
        /// What was reached already.
        floor: Lsn,
    },
    /// The new epoch is not above that of the newest segment.
    #[error("epoch {asked} is not above {found}, which has already written here")]
    StaleEpoch {
        /// What was asked for.
        asked: Epoch,
        /// What was found.
        found: Epoch,
    },
    /// The disk failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the disk said.
        source: io::Error,
    },
}

pub(super) fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io {
        what: what.into(),
        source,
    }
}

/// What recovery cut off, or will when the log is started: frames that were never vouched for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Base LSN of the segment, by its name.
    pub segment: Lsn,
    /// Where its last whole group ends.
    pub offset: u64,
    /// How many bytes follow there.
    pub bytes: u64,
    /// What was found there.
    pub what: String,
}

/// What a start has still to do on disk.
#[derive(Debug)]
pub(super) enum Repair {
    Nothing,
    /// Cut the newest segment to what the tally counts, and seal it; remove it if that is no frame at all.
    Seal {
        entry: Arc<SegmentEntry>,
        file: Arc<dyn StorageFile>,
        tally: Box<Tally>,
    },
    /// Remove the file.
    Remove {
        base: Lsn,
    },
}

/// What was found.
#[derive(Debug)]
pub(super) struct Findings {
    pub(super) lock: Box<dyn StorageLock>,
    pub(super) set: Arc<SegmentSet>,
    pub(super) log_id: Option<LogId>,
    pub(super) last_lsn: Lsn,
    pub(super) last_epoch: Epoch,
    pub(super) cut: Option<Cut>,
    pub(super) repair: Repair,
    /// Left by an installation that did not finish.
    pub(super) leftovers: Vec<String>,
    /// Left by a compaction that did not come to count: its segments. `Some` if there is its journal.
    pub(super) disowned: Option<Vec<String>>,
    /// The compaction of the segment looked at last.
    last_compaction: u32,
}

/// Takes the lock of the directory, making the directory if need be.
pub(super) fn lock_dir(storage: &Arc<dyn Storage>, dir: &Path) -> Result<Box<dyn StorageLock>, OpenError> {
    storage
        .create_dir_all(dir)
        .map_err(io_error(format!("making directory {}", dir.display())))?;
    match storage.lock(&dir.join("lock")) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(OpenError::Locked {
            dir: dir.display().to_string(),
        }),
        other => other.map_err(io_error(format!("locking {}", dir.display()))),
    }
}

/// The base LSNs of the segments in a directory, ascending, and the names of unfinished files.
pub(super) fn list_segments(storage: &dyn Storage, dir: &Path) -> Result<(Vec<Lsn>, Vec<String>), OpenError> {
    let (mut bases, mut leftovers) = (Vec::new(), Vec::new());
    for name in storage
        .list(dir)
        .map_err(io_error(format!("listing {}", dir.display())))?
    {
        if let Some(stem) = name.strip_suffix(".seg") {
            let strange = || OpenError::StrangeFile {
                dir: dir.display().to_string(),
                name: name.clone(),
            };
            bases.push(Lsn::from_hex(stem).ok_or_else(strange)?);
        } else if name.ends_with(".tmp") {
            leftovers.push(name);
        }
    }
    bases.sort_unstable();
    Ok((bases, leftovers))
}

/// Looks at a directory under its lock; changes nothing in it.
pub(super) fn find(storage: Arc<dyn Storage>, dir: &Path) -> Result<Findings, OpenError> {
    let lock = lock_dir(&storage, dir)?;
    let (mut bases, leftovers) = list_segments(storage.as_ref(), dir)?;
    let journal =
        Journal::read(storage.as_ref(), dir).map_err(io_error("reading the compaction's journal"))?;
    let journal = journal.transpose().map_err(|what| {
        let what = what.to_owned();
        refuse(Lsn::ZERO, Damage { offset: 0, what })
    })?;
    let away =
        tier::read_list(storage.as_ref(), dir).map_err(io_error("reading the list of away segments"))?;
    let away = away.map_err(|what| {
        let what = what.to_owned();
        refuse(Lsn::ZERO, Damage { offset: 0, what })
    })?;
    let here: BTreeSet<Lsn> = bases.iter().copied().collect();
    let mut away: BTreeMap<Lsn, AwaySegment> = away.into_iter().map(|away| (away.info.base, away)).collect();
    let set = Arc::new(SegmentSet::new(storage, dir));
    set.tier.know(away.values().cloned());
    // What is here counts, listed or not.
    away.retain(|base, _| !here.contains(base));
    bases.extend(away.keys());
    bases.sort_unstable();
    let (mut disowned, mut inputs) = (None, Vec::new());
    if let Some(journal) = &journal {
        let split = journal.split(bases);
        (bases, inputs) = (split.live, split.replaced);
        if matches!(journal, Journal::Writing { .. }) {
            disowned = Some(split.disowned.into_iter().map(segment_file_name).collect());
        }
    }
    let mut findings = Findings {
        lock,
        set,
        log_id: None,
        last_lsn: Lsn::ZERO,
        last_epoch: Epoch::ZERO,
        cut: None,
        repair: Repair::Nothing,
        leftovers,
        disowned,
        last_compaction: 0,
    };
    for (at, base) in bases.iter().enumerate() {
        match away.get(base) {
            Some(away) => findings.miss(away, at == 0)?,
            None => findings.look_at(*base, at == 0, at + 1 == bases.len())?,
        }
    }
    if let Some(Journal::Prepared {
        compaction,
        through,
        outputs,
    }) = journal
    {
        findings.confirm(&outputs)?;
        // Nobody needs those that are away: a compaction begins only when all that it reads is here.
        inputs.retain(|base| !away.contains_key(base));
        findings.set_aside(&inputs, PendingCompaction { compaction, through })?;
    }
    Ok(findings)
}

impl Findings {
    /// Takes a segment that is away for what the list says of it.
    fn miss(&mut self, away: &AwaySegment, oldest: bool) -> Result<(), OpenError> {
        self.link(away.info.base, &away.header(), oldest)?;
        (self.last_lsn, self.last_epoch) = (away.info.last, away.info.epoch);
        self.set.push(SegmentEntry::absent(&self.set, away.clone()));
        Ok(())
    }

    fn look_at(&mut self, base: Lsn, oldest: bool, newest: bool) -> Result<(), OpenError> {
        let path = self.set.path(base);
        let io = |source| io_error(format!("reading {}", path.display()))(source);
        let mode = if newest { OpenMode::Write } else { OpenMode::Read };
        let file = self.set.storage.open(&path, mode).map_err(io)?;
        if !newest && let Some((header, footer, len)) = ends_of_sealed(file.as_ref()).map_err(io)? {
            self.link(base, &header, oldest)?;
            if header.base != base {
                return Err(refuse(
                    base,
                    Damage {
                        offset: 0,
                        what: format!("it is segment {}", header.base),
                    },
                ));
            }
            let info = SegmentInfo::sealed(&header, &footer, len);
            self.set.push(SegmentEntry::sealed(&self.set, header, info));
            (self.last_lsn, self.last_epoch) = (footer.last, header.epoch);
            return Ok(());
        }
        let bytes = file.stable_bytes().map_err(io)?;
        let scan = match scan(&bytes, base) {
            Ok(scan) => scan,
            Err(SegmentHeaderError::UnknownVersion { found }) => {
                return Err(OpenError::UnknownVersion { segment: base, found });
            }
            Err(error) => {
                return Err(refuse(
                    base,
                    Damage {
                        offset: 0,
                        what: error.to_string(),
                    },
                ));
            }
        };
        let len = bytes.len() as u64;
        drop(bytes);
        let action = decide(scan.end, newest);
        if let Action::Refuse(damage) = action {
            return Err(refuse(base, damage));
        }
        let (Some(header), Some(tally)) = (scan.header, scan.tally) else {
            self.repair = Repair::Remove { base };
            if let Action::Remove(damage) = action {
                self.cut = Some(Cut {
                    segment: base,
                    offset: 0,
                    bytes: len,
                    what: damage.what,
                });
            }
            return Ok(());
        };
        self.link(base, &header, oldest)?;
        (self.last_lsn, self.last_epoch) = (tally.last, header.epoch);
        if let Some(footer) = scan.footer {
            let info = SegmentInfo::sealed(&header, &footer, len);
            self.set.push(SegmentEntry::sealed(&self.set, header, info));
            return Ok(());
        }
        if let Action::Cut(damage) = action {
            let bytes = len.saturating_sub(tally.end);
            self.cut = Some(Cut {
                segment: base,
                offset: tally.end,
                bytes,
                what: damage.what,
            });
        }
        let entry = SegmentEntry::open(&self.set, header, Arc::clone(&file), &tally);
        self.set.push(Arc::clone(&entry));
        self.repair = Repair::Seal {
            entry,
            file,
            tally: Box::new(tally),
        };
        Ok(())
    }

    /// Whether the segments that a compaction's journal vouches for are those that are there.
    fn confirm(&self, outputs: &[Output]) -> Result<(), OpenError> {
        for output in outputs {
            let info = self.set.get(output.base).map(|entry| entry.info());
            let same =
                info.is_some_and(|info| (info.last, info.sha256) == (output.last, Some(output.sha256)));
            if !same {
                let what = "it is not what the compaction's journal vouches for".to_owned();
                return Err(refuse(output.base, Damage { offset: 0, what }));
            }
        }
        Ok(())
    }

    /// Keeps what a compaction has replaced readable. Some of it may be gone already, and then nobody needs any of it.
    fn set_aside(&mut self, inputs: &[Lsn], pending: PendingCompaction) -> Result<(), OpenError> {
        let mut retired = Vec::with_capacity(inputs.len());
        for base in inputs {
            let path = self.set.path(*base);
            let io = |source| io_error(format!("reading {}", path.display()))(source);
            let file = self.set.storage.open(&path, OpenMode::Read).map_err(io)?;
            let Some((header, footer, len)) = ends_of_sealed(file.as_ref()).map_err(io)? else {
                let what = "it is damaged, and a compaction that needs it has not ended".to_owned();
                return Err(refuse(*base, Damage { offset: 0, what }));
            };
            let info = SegmentInfo::sealed(&header, &footer, len);
            retired.push(SegmentEntry::sealed(&self.set, header, info));
        }
        self.set.retire(retired, pending);
        Ok(())
    }

    /// Whether a segment continues the one before it.
    fn link(&mut self, base: Lsn, header: &SegmentHeader, oldest: bool) -> Result<(), OpenError> {
        let expected = *self.log_id.get_or_insert(header.log_id);
        if header.log_id != expected {
            let dir = self.set.dir.display().to_string();
            return Err(OpenError::ForeignLog {
                dir,
                found: header.log_id,
                expected,
            });
        }
        let before = std::mem::replace(&mut self.last_compaction, header.compaction);
        if header.compaction > 0
            && (oldest && header.prev > Lsn::ZERO || !oldest && before != header.compaction)
        {
            let what = "it is compacted, and does not follow a segment of its compaction".to_owned();
            return Err(refuse(base, Damage { offset: 0, what }));
        }
        if oldest {
            return Ok(());
        }
        if header.prev != self.last_lsn {
            let what = format!(
                "the chain is broken: it says it follows {}, but the segment before it ends with {}",
                header.prev, self.last_lsn
            );
            return Err(refuse(base, Damage { offset: 0, what }));
        }
        if header.epoch < self.last_epoch {
            let what = format!(
                "its epoch {} is below {} before it",
                header.epoch, self.last_epoch
            );
            return Err(refuse(base, Damage { offset: 0, what }));
        }
        Ok(())
    }
}

fn refuse(segment: Lsn, damage: Damage) -> OpenError {
    OpenError::Damaged {
        segment,
        offset: damage.offset,
        what: damage.what,
    }
}
