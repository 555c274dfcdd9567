//! A disk that fails on request: wraps another one, and strikes by script (the nth operation of a kind) or by seed.

use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{OpenMode, StableBytes, Storage, StorageFile, StorageLock};
use crate::clock::SeededEntropy;

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A write brings out part of its bytes and fails.
    ShortWrite,
    /// A write brings out part of its bytes and fails with "no space left on device"; so does every later write.
    NoSpace,
    /// A file's sync fails, having synced nothing.
    SyncFails,
    /// A directory's sync fails, having synced nothing.
    DirSyncFails,
    /// A read answers with one bit flipped.
    BitFlip,
    /// This operation and every later one fail: the process is as good as dead.
    Stop,
}

/// A disk over another disk. Clones share the script.
#[derive(Clone, Debug)]
pub struct FaultyStorage {
    inner: Arc<dyn Storage>,
    script: Arc<Mutex<Script>>,
}

#[derive(Debug)]
struct Script {
    operations: u64,
    planned: Vec<(Fault, u64)>,
    chance: Option<(SeededEntropy, u64)>,
    full: bool,
    stopped: bool,
    struck: Vec<Fault>,
}

impl FaultyStorage {
    /// No faults until some are asked for.
    #[must_use]
    pub fn new(inner: Arc<dyn Storage>) -> FaultyStorage {
        let script = Script {
            operations: 0,
            planned: Vec::new(),
            chance: None,
            full: false,
            stopped: false,
            struck: Vec::new(),
        };
        FaultyStorage {
            inner,
            script: Arc::new(Mutex::new(script)),
        }
    }

    /// Faults of all kinds that hit writers, about one operation in `one_in` of those that each can hit.
    #[must_use]
    pub fn seeded(inner: Arc<dyn Storage>, seed: u64, one_in: u64) -> FaultyStorage {
        let faulty = FaultyStorage::new(inner);
        faulty.script.lock().chance = Some((SeededEntropy::new(seed), one_in.max(1)));
        faulty
    }

    /// Lets `fault` strike once, after `spared` more operations that it could have hit.
    pub fn inject(&self, fault: Fault, spared: u64) {
        self.script.lock().planned.push((fault, spared));
    }

    /// How many operations were asked for so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.script.lock().operations
    }

    /// Which faults have struck so far, oldest first.
    #[must_use]
    pub fn struck(&self) -> Vec<Fault> {
        self.script.lock().struck.clone()
    }
}

impl Script {
    /// Counts one operation that any of `kinds` could hit, and says which does.
    fn step(&mut self, kinds: &[Fault]) -> io::Result<Option<Fault>> {
        self.operations += 1;
        let mut hit = None;
        self.planned.retain_mut(|(fault, spared)| {
            let can = *fault == Fault::Stop || kinds.contains(fault);
            if !can || hit.is_some() {
                return true;
            }
            if *spared == 0 {
                hit = Some(*fault);
                return false;
            }
            *spared -= 1;
            true
        });
        if hit.is_none()
            && let Some((chance, one_in)) = &self.chance
        {
            let kinds: Vec<Fault> = kinds
                .iter()
                .copied()
                .filter(|kind| *kind != Fault::BitFlip)
                .collect();
            if !kinds.is_empty() && chance.next_u64().is_multiple_of(*one_in) {
                let pick = usize::try_from(chance.next_u64() % kinds.len() as u64).unwrap_or(0);
                hit = kinds.get(pick).copied();
            }
        }
        if self.full && hit.is_none() && kinds.contains(&Fault::NoSpace) {
            hit = Some(Fault::NoSpace);
        }
        self.struck.extend(hit);
        self.full |= hit == Some(Fault::NoSpace);
        self.stopped |= hit == Some(Fault::Stop);
        if self.stopped {
            return Err(io::Error::other("injected: the disk stopped"));
        }
        Ok(hit)
    }
}

impl Storage for FaultyStorage {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.script.lock().step(&[])?;
        self.inner.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.script.lock().step(&[])?;
        self.inner.list(dir)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        self.script.lock().step(&[])?;
        let inner = self.inner.open(path, mode)?;
        Ok(Arc::new(FaultyFile {
            inner,
            script: Arc::clone(&self.script),
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.script.lock().step(&[])?;
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.script.lock().step(&[])?;
        self.inner.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        match self.script.lock().step(&[Fault::DirSyncFails])? {
            Some(_) => Err(io::Error::other("injected: sync of the directory failed")),
            None => self.inner.sync_dir(dir),
        }
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.script.lock().step(&[])?;
        self.inner.exists(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn StorageLock>> {
        self.inner.lock(path)
    }
}

#[derive(Debug)]
struct FaultyFile {
    inner: Arc<dyn StorageFile>,
    script: Arc<Mutex<Script>>,
}

impl FaultyFile {
    fn flips(&self) -> io::Result<bool> {
        Ok(self.script.lock().step(&[Fault::BitFlip])?.is_some())
    }
}

impl StorageFile for FaultyFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let flip = self.flips()?;
        self.inner.read_at(offset, buf)?;
        if flip && let Some(byte) = buf.get_mut(buf.len() / 2) {
            *byte ^= 0x10;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let hit = self.script.lock().step(&[Fault::ShortWrite, Fault::NoSpace])?;
        let Some(fault) = hit else {
            return self.inner.write_at(offset, bytes);
        };
        let half = bytes.get(..bytes.len() / 2).unwrap_or_default();
        self.inner.write_at(offset, half)?;
        if fault == Fault::NoSpace {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Err(io::Error::other(format!(
            "injected: only {} of {} bytes written",
            half.len(),
            bytes.len()
        )))
    }

    fn len(&self) -> io::Result<u64> {
        self.script.lock().step(&[])?;
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.script.lock().step(&[])?;
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        match self.script.lock().step(&[Fault::SyncFails])? {
            Some(_) => Err(io::Error::other("injected: sync failed")),
            None => self.inner.sync_data(),
        }
    }

    fn stable_bytes(&self) -> io::Result<StableBytes> {
        let flip = self.flips()?;
        let bytes = self.inner.stable_bytes()?;
        if !flip {
            return Ok(bytes);
        }
        let mut copy = bytes.to_vec();
        let middle = copy.len() / 2;
        if let Some(byte) = copy.get_mut(middle) {
            *byte ^= 0x10;
        }
        Ok(StableBytes::Copied(copy.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::MemoryStorage;
    use super::*;

    #[test]
    fn faults_strike_where_the_script_says_and_once() {
        let disk = FaultyStorage::new(Arc::new(MemoryStorage::new()));
        disk.create_dir_all(Path::new("/d")).unwrap();
        let file = disk.open(Path::new("/d/x"), OpenMode::CreateNew).unwrap();
        disk.inject(Fault::ShortWrite, 1);
        disk.inject(Fault::SyncFails, 0);
        file.write_at(0, b"abcd").unwrap();
        assert!(file.write_at(4, b"efgh").is_err());
        assert_eq!(file.len().unwrap(), 6);
        assert!(file.sync_data().is_err());
        file.sync_data().unwrap();
        disk.inject(Fault::NoSpace, 0);
        for _ in 0..2 {
            assert_eq!(
                file.write_at(0, b"zz").unwrap_err().kind(),
                io::ErrorKind::StorageFull
            );
        }
        disk.inject(Fault::Stop, 1);
        file.len().unwrap();
        assert!(file.len().is_err() && disk.list(Path::new("/d")).is_err());
    }
}
