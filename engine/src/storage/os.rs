//! The machine's disk.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::FlockOperation;

use super::{OpenMode, StableBytes, Storage, StorageFile, StorageLock};
use crate::log::mmap::Mapping;

/// The file system of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsStorage;

impl Storage for OsStorage {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent {
            self.create_dir_all(parent)?;
        }
        match fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            other => other?,
        }
        self.sync_dir(parent.unwrap_or(Path::new(".")))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        let mut options = OpenOptions::new();
        options.read(true);
        match mode {
            OpenMode::Read => {}
            OpenMode::Write => {
                options.write(true);
            }
            OpenMode::CreateNew => {
                options.write(true).create_new(true);
            }
        }
        Ok(Arc::new(OsFile(options.open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn StorageLock>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Box::new(OsLock { _file: file }))
    }
}

/// The lock goes with the file descriptor.
#[derive(Debug)]
struct OsLock {
    _file: File,
}

impl StorageLock for OsLock {}

#[derive(Debug)]
struct OsFile(File);

impl StorageFile for OsFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        // Also brings out the length, when that changed: fdatasync(2) leaves out only what reading does not need.
        Ok(rustix::fs::fdatasync(&self.0)?)
    }

    fn stable_bytes(&self) -> io::Result<StableBytes> {
        Ok(StableBytes::Mapped(Mapping::of(&self.0)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_back_copied_and_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        OsStorage.create_dir_all(&deep).unwrap();
        OsStorage.create_dir_all(&deep).unwrap();
        let path = deep.join("x");
        let file = OsStorage.open(&path, OpenMode::CreateNew).unwrap();
        file.write_at(3, b"hello").unwrap();
        file.sync_data().unwrap();
        OsStorage.sync_dir(&deep).unwrap();
        let mut back = [0u8; 5];
        file.read_at(3, &mut back).unwrap();
        assert_eq!(&back, b"hello");
        assert_eq!(&*file.stable_bytes().unwrap(), b"\0\0\0hello");
        assert_eq!(OsStorage.list(&deep).unwrap(), ["x"]);
        let again = OsStorage.open(&path, OpenMode::CreateNew).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn a_second_lock_is_refused_until_the_first_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = OsStorage.lock(&path).unwrap();
        assert_eq!(
            OsStorage.lock(&path).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        drop(held);
        OsStorage.lock(&path).unwrap();
    }

    #[test]
    fn an_empty_file_has_no_stable_bytes_but_no_error_either() {
        let dir = tempfile::tempdir().unwrap();
        let file = OsStorage
            .open(&dir.path().join("x"), OpenMode::CreateNew)
            .unwrap();
        assert!(file.stable_bytes().unwrap().is_empty());
    }
}
