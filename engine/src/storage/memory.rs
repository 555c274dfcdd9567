//! A disk in memory that can crash. It keeps, for every file, what was synced and the writes since; and for names,
//! which were synced and the changes since. [`MemoryStorage::crash`] keeps the former and, by seed, any part of the
//! latter: none, all, a prefix that ends mid-write, or an arbitrary choice of sectors.
//!
//! Directories themselves are durable as soon as they are made; only the names of files in them are not.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{OpenMode, StableBytes, Storage, StorageFile, StorageLock};
use crate::clock::SeededEntropy;

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

/// A disk in memory. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemoryStorage {
    disk: Arc<Mutex<Disk>>,
}

#[derive(Debug, Default)]
struct Disk {
    /// Counts crashes; a handle from before one is dead.
    generation: u64,
    files: Vec<Content>,
    dirs: BTreeSet<PathBuf>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    pending_names: Vec<NameChange>,
    locks: BTreeSet<PathBuf>,
}

#[derive(Debug, Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Length(usize),
}

#[derive(Clone, Debug)]
enum NameChange {
    Add(PathBuf, usize),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf, usize),
}

impl NameChange {
    fn dir(&self) -> Option<&Path> {
        match self {
            NameChange::Add(path, _) | NameChange::Remove(path) | NameChange::Rename(_, path, _) => {
                path.parent()
            }
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            NameChange::Add(path, file) => {
                names.insert(path.clone(), *file);
            }
            NameChange::Remove(path) => {
                names.remove(path);
            }
            NameChange::Rename(from, to, file) => {
                if names.get(from) == Some(file) {
                    names.remove(from);
                }
                names.insert(to.clone(), *file);
            }
        }
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Change::Write { at, bytes } => {
                let end = at + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[*at..end].copy_from_slice(bytes);
            }
            Change::Length(len) => content.resize(*len, 0),
        }
    }
}

impl MemoryStorage {
    /// An empty disk.
    #[must_use]
    pub fn new() -> MemoryStorage {
        MemoryStorage::default()
    }

    /// Power is cut and comes back. Synced bytes and names stay; of the rest any part, as `seed` decides. Locks are
    /// free again; every file that was open answers with an error from now on.
    pub fn crash(&self, seed: u64) {
        let chance = SeededEntropy::new(seed);
        let mut disk = self.disk.lock();
        disk.generation += 1;
        disk.locks.clear();
        let mut names = disk.durable_names.clone();
        let keep_names = chance.next_u64() % 3;
        for change in std::mem::take(&mut disk.pending_names) {
            let keep = match keep_names {
                0 => false,
                1 => true,
                _ => chance.next_u64().is_multiple_of(2),
            };
            if keep {
                change.apply(&mut names);
            }
        }
        disk.names.clone_from(&names);
        disk.durable_names = names;
        for file in &mut disk.files {
            if !file.pending.is_empty() {
                file.crash(&chance);
            }
        }
    }

    /// Flips one bit of a file, as it is now and as it would be after a crash. For tests of corruption.
    ///
    /// # Errors
    /// `NotFound`, or `UnexpectedEof` if the file is shorter.
    pub fn flip_bit(&self, path: &Path, byte: u64, bit: u8) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let file = disk.names.get(path).copied().ok_or(io::ErrorKind::NotFound)?;
        let content = disk.files.get_mut(file).ok_or(io::ErrorKind::NotFound)?;
        let at = usize::try_from(byte).map_err(io::Error::other)?;
        *content.now.get_mut(at).ok_or(io::ErrorKind::UnexpectedEof)? ^= 1 << (bit % 8);
        if let Some(durable) = content.durable.get_mut(at) {
            *durable ^= 1 << (bit % 8);
        }
        Ok(())
    }

    /// How many bytes of a file a crash cannot take away, or `None` if not even its name would stay.
    #[must_use]
    pub fn synced_len(&self, path: &Path) -> Option<u64> {
        let disk = self.disk.lock();
        let file = disk.durable_names.get(path)?;
        Some(disk.files.get(*file)?.durable.len() as u64)
    }
}

impl Content {
    fn crash(&mut self, chance: &SeededEntropy) {
        let pending = std::mem::take(&mut self.pending);
        match chance.next_u64() % 5 {
            0 => {}
            1 => pending.iter().for_each(|change| change.apply(&mut self.durable)),
            2 => self.keep_a_prefix(&pending, chance),
            _ => self.keep_some_sectors(&pending, chance),
        }
        self.now.clone_from(&self.durable);
    }

    fn keep_a_prefix(&mut self, pending: &[Change], chance: &SeededEntropy) {
        let whole = below(chance, pending.len() + 1);
        pending[..whole]
            .iter()
            .for_each(|change| change.apply(&mut self.durable));
        if let Some(Change::Write { at, bytes }) = pending.get(whole) {
            let torn = bytes[..below(chance, bytes.len() + 1)].to_vec();
            Change::Write { at: *at, bytes: torn }.apply(&mut self.durable);
        }
    }

    fn keep_some_sectors(&mut self, pending: &[Change], chance: &SeededEntropy) {
        let garbage = chance.next_u64().is_multiple_of(4);
        for change in pending {
            let Change::Write { at, bytes } = change else {
                if chance.next_u64().is_multiple_of(2) {
                    change.apply(&mut self.durable);
                }
                continue;
            };
            let (mut at, mut rest) = (*at, bytes.as_slice());
            while !rest.is_empty() {
                let len = (SECTOR_BYTES - at % SECTOR_BYTES).min(rest.len());
                let (piece, after) = rest.split_at(len);
                let new = at >= self.durable.len();
                if chance.next_u64().is_multiple_of(2) {
                    Change::Write {
                        at,
                        bytes: piece.to_vec(),
                    }
                    .apply(&mut self.durable);
                } else if garbage && new {
                    let noise = (0..len).map(|_| chance.next_u64().to_le_bytes()[0]).collect();
                    Change::Write { at, bytes: noise }.apply(&mut self.durable);
                }
                (at, rest) = (at + len, after);
            }
        }
    }
}

fn below(chance: &SeededEntropy, limit: usize) -> usize {
    usize::try_from(chance.next_u64() % (limit.max(1) as u64)).unwrap_or(0)
}

impl Storage for MemoryStorage {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        for dir in dir.ancestors() {
            disk.dirs.insert(dir.to_owned());
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let disk = self.disk.lock();
        if !disk.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inside = disk.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside
            .filter_map(|path| path.file_name()?.to_str().map(str::to_owned))
            .collect())
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        let mut disk = self.disk.lock();
        let file = match (disk.names.get(path).copied(), mode) {
            (Some(_), OpenMode::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (None, OpenMode::Read | OpenMode::Write) => return Err(io::ErrorKind::NotFound.into()),
            (Some(file), _) => file,
            (None, OpenMode::CreateNew) => {
                if !path.parent().is_some_and(|dir| disk.dirs.contains(dir)) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                let file = disk.files.len();
                disk.files.push(Content::default());
                disk.names.insert(path.to_owned(), file);
                disk.pending_names.push(NameChange::Add(path.to_owned(), file));
                file
            }
        };
        Ok(Arc::new(MemoryFile {
            disk: Arc::clone(&self.disk),
            generation: disk.generation,
            file,
            writable: mode != OpenMode::Read,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let file = disk.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        disk.names.insert(to.to_owned(), file);
        disk.pending_names
            .push(NameChange::Rename(from.to_owned(), to.to_owned(), file));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        disk.pending_names.push(NameChange::Remove(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let (synced, pending): (Vec<_>, Vec<_>) = std::mem::take(&mut disk.pending_names)
            .into_iter()
            .partition(|change| change.dir() == Some(dir));
        for change in synced {
            change.apply(&mut disk.durable_names);
        }
        disk.pending_names = pending;
        Ok(())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let disk = self.disk.lock();
        Ok(disk.names.contains_key(path) || disk.dirs.contains(path))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn StorageLock>> {
        let mut disk = self.disk.lock();
        if !disk.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(MemoryLock {
            disk: Arc::clone(&self.disk),
            generation: disk.generation,
            path: path.to_owned(),
        }))
    }
}

#[derive(Debug)]
struct MemoryLock {
    disk: Arc<Mutex<Disk>>,
    generation: u64,
    path: PathBuf,
}

impl StorageLock for MemoryLock {}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        let mut disk = self.disk.lock();
        if disk.generation == self.generation {
            disk.locks.remove(&self.path);
        }
    }
}

#[derive(Debug)]
struct MemoryFile {
    disk: Arc<Mutex<Disk>>,
    generation: u64,
    file: usize,
    writable: bool,
}

impl MemoryFile {
    fn with<T>(&self, act: impl FnOnce(&mut Content) -> io::Result<T>) -> io::Result<T> {
        let mut disk = self.disk.lock();
        if disk.generation != self.generation {
            return Err(io::Error::other(
                "the machine has crashed since this file was opened",
            ));
        }
        act(disk.files.get_mut(self.file).ok_or(io::ErrorKind::NotFound)?)
    }

    fn change(&self, change: Change) -> io::Result<()> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.with(|content| {
            change.apply(&mut content.now);
            content.pending.push(change);
            Ok(())
        })
    }
}

impl StorageFile for MemoryFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        self.with(|content| {
            let end = start.checked_add(buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            buf.copy_from_slice(content.now.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        self.change(Change::Write {
            at,
            bytes: bytes.to_vec(),
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|content| Ok(content.now.len() as u64))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::Length(usize::try_from(len).map_err(io::Error::other)?))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|content| {
            for change in std::mem::take(&mut content.pending) {
                change.apply(&mut content.durable);
            }
            Ok(())
        })
    }

    fn stable_bytes(&self) -> io::Result<StableBytes> {
        self.with(|content| Ok(StableBytes::Copied(Bytes::copy_from_slice(&content.now))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> (MemoryStorage, PathBuf) {
        let disk = MemoryStorage::new();
        disk.create_dir_all(Path::new("/d")).unwrap();
        (disk, PathBuf::from("/d/x"))
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_some_part_of_the_rest() {
        let mut tails = BTreeSet::new();
        for seed in 0..200 {
            let (disk, path) = disk();
            let file = disk.open(&path, OpenMode::CreateNew).unwrap();
            file.write_at(0, b"kept").unwrap();
            file.sync_data().unwrap();
            disk.sync_dir(Path::new("/d")).unwrap();
            file.write_at(4, &[7; 1500]).unwrap();
            disk.crash(seed);
            assert!(file.len().is_err(), "a handle from before the crash is dead");
            let after = disk.open(&path, OpenMode::Read).unwrap().stable_bytes().unwrap();
            assert_eq!(&after[..4], b"kept", "seed {seed}");
            tails.insert(after[4..].to_vec());
        }
        assert!(tails.len() > 10, "crashes differ: {}", tails.len());
    }

    #[test]
    fn a_name_that_was_not_synced_may_vanish_and_a_synced_one_stays() {
        let mut seen = BTreeSet::new();
        for seed in 0..50 {
            let (disk, path) = disk();
            disk.open(&path, OpenMode::CreateNew).unwrap();
            disk.sync_dir(Path::new("/d")).unwrap();
            disk.open(Path::new("/d/y"), OpenMode::CreateNew).unwrap();
            disk.crash(seed);
            let names = disk.list(Path::new("/d")).unwrap();
            assert!(names.contains(&"x".to_owned()));
            seen.insert(names.len());
        }
        assert_eq!(seen, BTreeSet::from([1, 2]));
    }

    #[test]
    fn a_lock_is_exclusive_and_a_crash_frees_it() {
        let (disk, path) = disk();
        let held = disk.lock(&path).unwrap();
        assert_eq!(disk.lock(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        disk.crash(1);
        let next = disk.lock(&path).unwrap();
        drop(held);
        assert!(disk.lock(&path).is_err(), "the dead holder's drop frees nothing");
        drop(next);
        disk.lock(&path).unwrap();
    }
}
