//! The file of the index on a disk that can lose power: redb writes through [`CrashFile`] into a real file, which is
//! always as the process sees it, and a journal of what was not synced lets a cut of power take any part of that back. The file
//! that is to take its place lies on the same disk, and may fail alone.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use crate::clock::SeededEntropy;
use crate::views::index::NEW_NAME;

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

thread_local! {
    /// The disk under the index that this thread's simulation opens, if one runs.
    static UNDER: RefCell<Option<(PathBuf, Arc<CrashDisk>)>> = const { RefCell::new(None) };
}

/// From now on the index at `path`, opened on this thread, lies on `disk`; until the guard is dropped.
pub fn put_under(path: &Path, disk: &Arc<CrashDisk>) -> Under {
    UNDER.set(Some((path.to_owned(), Arc::clone(disk))));
    Under
}

/// See [`put_under`].
pub struct Under;

impl Drop for Under {
    fn drop(&mut self) {
        UNDER.set(None);
    }
}

/// The file to open for the index at `path`, if a simulation has put a disk under it.
///
/// # Errors
/// The file cannot be opened.
pub fn backend(path: &Path) -> io::Result<Option<CrashFile>> {
    UNDER.with_borrow(|under| match under {
        Some((at, disk)) if at == path => CrashFile::open(path, disk, false).map(Some),
        Some((at, disk)) if at.with_file_name(NEW_NAME) == path => {
            CrashFile::open(path, disk, true).map(Some)
        }
        _ => Ok(None),
    })
}

/// What one life of a process did to the index's file and did not sync.
#[derive(Debug, Default)]
pub struct CrashDisk(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By file: another one may have been put in the place of the first.
    unsynced: BTreeMap<u64, Vec<Change>>,
    /// The file that is to take the place of the live one.
    new: Option<u64>,
    /// Writes to it until there is no room for more.
    room: Option<u64>,
    full: bool,
    /// Writes until one fails; the disk fails for good then.
    spared: Option<u64>,
    struck: bool,
    dead: bool,
}

#[derive(Debug)]
enum Change {
    Write { at: u64, old: Vec<u8>, new: Vec<u8> },
    Length { old: u64, cut: Vec<u8>, new: u64 },
}

impl CrashDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the write after `spared` more fail, and all after it.
    pub fn fail_after(&self, spared: u64) {
        self.state().spared = Some(spared);
    }

    /// Lets the write to the next new file after `spared` more fail, and all after it.
    pub fn no_room_after(&self, spared: u64) {
        self.state().room = Some(spared);
    }

    /// The new file is the live one now, or will never be.
    pub fn new_is_over(&self) {
        let mut state = self.state();
        (state.new, state.room) = (None, None);
    }

    /// Whether there was no room for a new file.
    pub fn was_full(&self) -> bool {
        self.state().full
    }

    /// Whether the asked-for failure has happened.
    pub fn struck(&self) -> bool {
        self.state().struck
    }

    /// The process is gone: nothing it still does (such as tidying up while it is dropped) reaches the file.
    pub fn kill(&self) {
        self.state().dead = true;
    }

    /// Power was cut: of what was not synced, a part stays that `chance` picks.
    pub fn cut_power(&self, path: &Path, chance: &SeededEntropy) -> io::Result<()> {
        let mut unsynced = std::mem::take(&mut self.state().unsynced);
        let file = match File::options().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened?,
        };
        let Some(unsynced) = unsynced.remove(&file.metadata()?.ino()) else {
            return Ok(());
        };
        for change in unsynced.iter().rev() {
            change.undo(&file)?;
        }
        let (how, until) = (chance.next_u64() % 5, chance.next_u64());
        let until = usize::try_from(until % (unsynced.len() as u64 + 1)).map_err(io::Error::other)?;
        match how {
            0 => {}
            1 => unsynced.iter().try_for_each(|change| change.redo(&file))?,
            2 => unsynced[..until]
                .iter()
                .try_for_each(|change| change.redo(&file))?,
            _ => unsynced
                .iter()
                .try_for_each(|change| change.redo_some(&file, chance))?,
        }
        Ok(())
    }
}

impl Change {
    fn undo(&self, file: &File) -> io::Result<()> {
        match self {
            Change::Write { at, old, .. } => file.write_all_at(old, *at),
            Change::Length { old, cut, new } => {
                file.set_len(*old)?;
                file.write_all_at(cut, *new.min(old))
            }
        }
    }

    fn redo(&self, file: &File) -> io::Result<()> {
        match self {
            Change::Write { at, new, .. } => file.write_all_at(new, *at),
            Change::Length { new, .. } => file.set_len(*new),
        }
    }

    fn redo_some(&self, file: &File, chance: &SeededEntropy) -> io::Result<()> {
        let coin = || chance.next_u64().is_multiple_of(2);
        match self {
            Change::Length { .. } if coin() => self.redo(file),
            Change::Length { .. } => Ok(()),
            Change::Write { at, new, .. } => {
                for (sector, piece) in new.chunks(SECTOR_BYTES).enumerate() {
                    if coin() {
                        file.write_all_at(piece, at + (sector * SECTOR_BYTES) as u64)?;
                    }
                }
                Ok(())
            }
        }
    }
}

/// The index's file, as redb sees it.
#[derive(Debug)]
pub struct CrashFile {
    file: File,
    inode: u64,
    disk: Arc<CrashDisk>,
}

impl CrashFile {
    fn open(path: &Path, disk: &Arc<CrashDisk>, new: bool) -> io::Result<CrashFile> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let inode = file.metadata()?.ino();
        // Who had it open before has closed it, or it is another file by now.
        let mut state = disk.state();
        state.note_synced(inode);
        if new {
            state.new = Some(inode);
        }
        drop(state);
        Ok(CrashFile {
            file,
            inode,
            disk: Arc::clone(disk),
        })
    }

    /// The bytes there now; what lies beyond the end is missing from the answer.
    fn before(&self, at: u64, len: usize) -> io::Result<Vec<u8>> {
        let end = self.file.metadata()?.len().min(at + len as u64);
        let mut old = vec![0; usize::try_from(end.saturating_sub(at)).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut old, at)?;
        Ok(old)
    }

    fn writable(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.disk.state();
        match &mut state.spared {
            Some(0) => (state.struck, state.dead) = (true, true),
            Some(spared) => *spared -= 1,
            None => {}
        }
        if state.new == Some(self.inode) {
            match &mut state.room {
                Some(0) => {
                    state.full = true;
                    return Err(io::ErrorKind::StorageFull.into());
                }
                Some(spared) => *spared -= 1,
                None => {}
            }
        }
        if state.dead {
            return Err(io::Error::other("simulated: the index's disk has stopped"));
        }
        Ok(state)
    }
}

impl State {
    fn note(&mut self, inode: u64, change: Change) {
        self.unsynced.entry(inode).or_default().push(change);
    }

    fn note_synced(&mut self, inode: u64) {
        self.unsynced.insert(inode, Vec::new());
    }
}

impl StorageBackend for CrashFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.writable()?;
        let old = self.file.metadata()?.len();
        let cut = self.before(
            len,
            usize::try_from(old.saturating_sub(len)).map_err(io::Error::other)?,
        )?;
        state.note(self.inode, Change::Length { old, cut, new: len });
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.writable()?;
        state.note_synced(self.inode);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.writable()?;
        let old = self.before(offset, data.len())?;
        let new = data.to_vec();
        state.note(self.inode, Change::Write { at: offset, old, new });
        self.file.write_all_at(data, offset)
    }
}
