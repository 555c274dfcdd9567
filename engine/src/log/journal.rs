//! The journal of a compaction: one small file that says which segments of the directory are the log, written under another
//! name and renamed. See [`compaction`](super::compaction) for when it says what.

use std::io;
use std::path::Path;

use super::compaction::compaction_of;
use super::lsn::Lsn;
use crate::storage::{OpenMode, Storage};

/// The journal's name in the log's directory.
pub(super) const JOURNAL_NAME: &str = "compaction";
const JOURNAL_TEMP_NAME: &str = "compaction.tmp";
const JOURNAL_BYTES_MAX: u64 = 64 << 20;
const MAGIC: &[u8; 8] = b"AzPdsCmp";
const VERSION: u16 = 1;
const HEAD_BYTES: usize = 32;
const OUTPUT_BYTES: usize = 48;

/// A segment that a compaction wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Output {
    pub(super) base: Lsn,
    pub(super) last: Lsn,
    /// The digest in its footer.
    pub(super) sha256: [u8; 32],
}

/// What the journal says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Journal {
    /// Segments of this compaction are being written and count for nothing.
    Writing { compaction: u32 },
    /// These segments are whole, and are the log up to `through`.
    Prepared {
        compaction: u32,
        through: Lsn,
        outputs: Vec<Output>,
    },
}

impl Journal {
    pub(super) fn encode(&self) -> Vec<u8> {
        let (state, compaction, through, outputs): (u16, _, _, &[Output]) = match self {
            Journal::Writing { compaction } => (1, *compaction, Lsn::ZERO, &[]),
            Journal::Prepared {
                compaction,
                through,
                outputs,
            } => (2, *compaction, *through, outputs),
        };
        let mut raw = Vec::with_capacity(HEAD_BYTES + outputs.len() * OUTPUT_BYTES + 4);
        raw.extend_from_slice(MAGIC);
        raw.extend_from_slice(&VERSION.to_le_bytes());
        raw.extend_from_slice(&state.to_le_bytes());
        raw.extend_from_slice(&compaction.to_le_bytes());
        raw.extend_from_slice(&through.get().to_le_bytes());
        raw.extend_from_slice(&(outputs.len() as u64).to_le_bytes());
        for output in outputs {
            raw.extend_from_slice(&output.base.get().to_le_bytes());
            raw.extend_from_slice(&output.last.get().to_le_bytes());
            raw.extend_from_slice(&output.sha256);
        }
        raw.extend_from_slice(&crc32fast::hash(&raw).to_le_bytes());
        raw
    }

    /// What `raw` says, or what is wrong with it. The journal takes its name only when it is whole and synced, so
    /// anything wrong is damage.
    pub(super) fn decode(raw: &[u8]) -> Result<Journal, &'static str> {
        let (head, rest) = raw
            .split_first_chunk::<HEAD_BYTES>()
            .ok_or("the compaction's journal is too short")?;
        let (rows, crc) = rest
            .split_last_chunk::<4>()
            .ok_or("the compaction's journal is too short")?;
        let number = |from: usize| -> u64 {
            let bytes = head.get(from..).and_then(|rest| rest.first_chunk::<8>());
            u64::from_le_bytes(bytes.copied().unwrap_or_default())
        };
        let checked = raw.get(..raw.len() - 4).unwrap_or_default();
        if !raw.starts_with(MAGIC) || crc32fast::hash(checked) != u32::from_le_bytes(*crc) {
            return Err("the compaction's journal is damaged");
        }
        let word = number(8);
        if word & 0xffff != u64::from(VERSION) {
            return Err("the compaction's journal is of a newer program");
        }
        let compaction = u32::try_from(word >> 32).unwrap_or(0);
        let through = Lsn::new(number(16)).ok_or("the compaction's journal names an LSN out of range")?;
        let (entries, []) = rows.as_chunks::<OUTPUT_BYTES>() else {
            return Err("the compaction's journal has half an entry");
        };
        if entries.len() as u64 != number(24) || compaction == 0 {
            return Err("the compaction's journal contradicts itself");
        }
        match (word >> 16) & 0xffff {
            1 if entries.is_empty() => Ok(Journal::Writing { compaction }),
            2 if !entries.is_empty() => {
                let mut outputs = Vec::with_capacity(entries.len());
                for entry in entries {
                    let (base, rest) = entry.split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
                    let (last, digest) = rest.split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
                    let lsn = |raw: &[u8; 8]| {
                        Lsn::new(u64::from_le_bytes(*raw))
                            .ok_or("the compaction's journal names an LSN out of range")
                    };
                    outputs.push(Output {
                        base: lsn(base)?,
                        last: lsn(last)?,
                        sha256: digest.try_into().unwrap_or_default(),
                    });
                }
                Ok(Journal::Prepared {
                    compaction,
                    through,
                    outputs,
                })
            }
            _ => Err("the compaction's journal is in a state that is not known"),
        }
    }

    /// The journal in `dir`, if there is one.
    pub(super) fn read(
        storage: &dyn Storage,
        dir: &Path,
    ) -> io::Result<Option<Result<Journal, &'static str>>> {
        let path = dir.join(JOURNAL_NAME);
        if !storage.exists(&path)? {
            return Ok(None);
        }
        let file = storage.open(&path, OpenMode::Read)?;
        let len = file.len()?.min(JOURNAL_BYTES_MAX);
        let mut raw = vec![0; usize::try_from(len).unwrap_or(0)];
        file.read_at(0, &mut raw)?;
        Ok(Some(Journal::decode(&raw)))
    }

    pub(super) fn write(&self, storage: &dyn Storage, dir: &Path) -> io::Result<()> {
        let temp = dir.join(JOURNAL_TEMP_NAME);
        if storage.exists(&temp)? {
            storage.remove(&temp)?;
        }
        let file = storage.open(&temp, OpenMode::CreateNew)?;
        file.write_at(0, &self.encode())?;
        file.sync_data()?;
        storage.rename(&temp, &dir.join(JOURNAL_NAME))?;
        storage.sync_dir(dir)
    }

    /// Divides the segments that are there, which ascend.
    pub(super) fn split(&self, bases: Vec<Lsn>) -> Split {
        let mut split = Split::default();
        match self {
            Journal::Writing { compaction } => {
                let of_it = |base: &Lsn| compaction_of(*base) == u64::from(*compaction);
                (split.disowned, split.live) = bases.into_iter().partition(of_it);
            }
            Journal::Prepared { through, outputs, .. } => {
                split.live.extend(outputs.iter().map(|output| output.base));
                for base in bases {
                    if base > *through {
                        split.live.push(base);
                    } else if !outputs.iter().any(|output| output.base == base) {
                        split.replaced.push(base);
                    }
                }
            }
        }
        split
    }
}

/// Those of the segments in `dir`, by their base LSNs, that are its log: not what an unfinished compaction is writing, nor
/// what one has replaced. Ascending, as `bases` must be. For those who look at a directory without its lock.
///
/// # Errors
/// The journal is damaged or cannot be read.
pub fn live_segments(storage: &dyn Storage, dir: &Path, bases: Vec<Lsn>) -> io::Result<Vec<Lsn>> {
    let journal = Journal::read(storage, dir)?.transpose();
    let journal = journal.map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what))?;
    Ok(match journal {
        None => bases,
        Some(journal) => journal.split(bases).live,
    })
}

/// The segments of a directory as a journal divides them, each list ascending.
#[derive(Debug, Default)]
pub(super) struct Split {
    pub(super) live: Vec<Lsn>,
    /// Written by a compaction that does not count.
    pub(super) disowned: Vec<Lsn>,
    /// Replaced by one that does.
    pub(super) replaced: Vec<Lsn>,
}

/// Removes files and makes that durable, and only then the journal that speaks of them.
pub(super) fn remove_then_journal(storage: &dyn Storage, dir: &Path, files: &[String]) -> io::Result<()> {
    for name in files {
        match storage.remove(&dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    storage.sync_dir(dir)?;
    match storage.remove(&dir.join(JOURNAL_NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    storage.sync_dir(dir)
}
