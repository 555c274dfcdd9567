//! A disk of the log that lies while a process runs: it flips a bit of what is read, loses a write or puts it somewhere else, or
//! acknowledges syncs that it does not do. It lies about one segment.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::damage::{Lie, SECTOR_BYTES, SECTORS_MAX};
use crate::clock::SeededEntropy;
use crate::storage::{OpenMode, StableBytes, Storage, StorageFile, StorageLock};

/// A disk over another one. Clones share what is asked for.
#[derive(Clone, Debug)]
pub(super) struct LyingStorage {
    inner: Arc<dyn Storage>,
    script: Arc<Mutex<Script>>,
}

#[derive(Debug)]
struct Script {
    chance: SeededEntropy,
    /// What is to be told, after so many more occasions.
    asked: Option<(Lie, u64)>,
    /// What was told, and about which file.
    told: Option<(Lie, PathBuf)>,
}

impl Script {
    /// The lie about `path` whose time has come.
    fn strike(&mut self, path: &Path, kinds: &[Lie]) -> Option<Lie> {
        if path.extension().is_none_or(|extension| extension != "seg") {
            return None;
        }
        let (lie, spared) = self.asked.filter(|(lie, _)| kinds.contains(lie))?;
        if spared > 0 {
            self.asked = Some((lie, spared - 1));
            return None;
        }
        self.asked = None;
        self.told = Some((lie, path.to_owned()));
        Some(lie)
    }
}

impl LyingStorage {
    /// Nothing but the truth until [`LyingStorage::ask`].
    pub(super) fn new(inner: Arc<dyn Storage>, seed: u64) -> LyingStorage {
        let script = Script {
            chance: SeededEntropy::new(seed),
            asked: None,
            told: None,
        };
        LyingStorage {
            inner,
            script: Arc::new(Mutex::new(script)),
        }
    }

    /// Asks for one lie, after `spared` more occasions for it.
    pub(super) fn ask(&self, lie: Lie, spared: u64) {
        self.script.lock().asked = Some((lie, spared));
    }

    /// The lie that was told, and the file.
    pub(super) fn told(&self) -> Option<(Lie, PathBuf)> {
        self.script.lock().told.clone()
    }
}

impl Storage for LyingStorage {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.inner.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.inner.list(dir)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        Ok(Arc::new(LyingFile {
            inner: self.inner.open(path, mode)?,
            path: path.to_owned(),
            script: Arc::clone(&self.script),
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.inner.sync_dir(dir)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.inner.exists(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn StorageLock>> {
        self.inner.lock(path)
    }
}

#[derive(Debug)]
struct LyingFile {
    inner: Arc<dyn StorageFile>,
    path: PathBuf,
    script: Arc<Mutex<Script>>,
}

impl LyingFile {
    /// Flips a bit of what was read, if it is time.
    fn flip(&self, bytes: &mut [u8]) {
        let mut script = self.script.lock();
        if !bytes.is_empty() && script.strike(&self.path, &[Lie::Flip]).is_some() {
            let at = script.chance.next_u64() % bytes.len() as u64;
            let bit = script.chance.next_u64() % 8;
            bytes[usize::try_from(at).unwrap()] ^= 1 << bit;
        }
    }
}

impl StorageFile for LyingFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset, buf)?;
        self.flip(buf);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut script = self.script.lock();
        match script.strike(&self.path, &[Lie::LostWrite, Lie::Misdirected]) {
            None => self.inner.write_at(offset, bytes),
            Some(Lie::Misdirected) => {
                let by = SECTOR_BYTES as u64 * (1 + script.chance.next_u64() % SECTORS_MAX);
                let before = offset
                    .checked_sub(by)
                    .filter(|_| script.chance.next_u64().is_multiple_of(2));
                self.inner.write_at(before.unwrap_or(offset + by), bytes)
            }
            Some(_) => Ok(()),
        }
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut script = self.script.lock();
        script.strike(&self.path, &[Lie::LyingSync]);
        match &script.told {
            // Neither this one nor any after it.
            Some((Lie::LyingSync, path)) if *path == self.path => Ok(()),
            _ => self.inner.sync_data(),
        }
    }

    fn stable_bytes(&self) -> io::Result<StableBytes> {
        let mut bytes = self.inner.stable_bytes()?.to_vec();
        self.flip(&mut bytes);
        Ok(StableBytes::Copied(bytes.into()))
    }
}
