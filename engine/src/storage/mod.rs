//! The door to the disk. Everything that the engine keeps in files of its own goes through [`Storage`], so that the
//! same code runs on the machine's disk ([`OsStorage`]), on a disk that forgets what was not synced
//! ([`MemoryStorage`]) and on one that fails on request ([`FaultyStorage`]).
//!
//! What a crash leaves: bytes that [`StorageFile::sync_data`] vouched for, and names that [`Storage::sync_dir`] vouched
//! for. Of anything else, any part.

mod faulty;
mod memory;
mod os;

pub use faulty::{Fault, FaultyStorage};
pub use memory::MemoryStorage;
pub use os::OsStorage;

use std::fmt;
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::log::mmap::Mapping;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// To read; it must exist.
    Read,
    /// To read and write; it must exist.
    Write,
    /// To read and write; it must not exist yet.
    CreateNew,
}

/// A disk: names in directories, and files.
pub trait Storage: fmt::Debug + Send + Sync + 'static {
    /// Makes `dir` and what lies above it, where missing, and sees to it that the names survive a crash.
    ///
    /// # Errors
    /// As the disk says.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// The names of the plain files in `dir`, ascending. Names that are not UTF-8 are left out.
    ///
    /// # Errors
    /// As the disk says; `NotFound` if there is no such directory.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Opens one file. The name of a new one is durable after [`Storage::sync_dir`] only.
    ///
    /// # Errors
    /// `NotFound`, `AlreadyExists`, or as the disk says.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>>;

    /// Gives a file another name, replacing what had that name. Durable after [`Storage::sync_dir`].
    ///
    /// # Errors
    /// As the disk says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file's name. Durable after [`Storage::sync_dir`].
    ///
    /// # Errors
    /// As the disk says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in `dir` as they are now survive a crash.
    ///
    /// # Errors
    /// As the disk says. What is durable afterwards is then unknown.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Whether a file or directory has this name.
    ///
    /// # Errors
    /// As the disk says.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Takes the exclusive lock that `path` stands for, creating that file if need be. Held until dropped; gone when
    /// the process is.
    ///
    /// # Errors
    /// `WouldBlock` if somebody else holds it, or as the disk says.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn StorageLock>>;
}

/// A held lock; dropping it lets go.
pub trait StorageLock: fmt::Debug + Send + Sync {}

/// An open file. All offsets are bytes from its start.
#[allow(
    clippy::len_without_is_empty,
    reason = "asks the disk and may fail, unlike a collection's"
)]
pub trait StorageFile: fmt::Debug + Send + Sync + 'static {
    /// Fills `buf` wholly from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before; or as the disk says.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`, growing the file if need be.
    ///
    /// # Errors
    /// As the disk says; any part of `bytes` may have been written then.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Length in bytes.
    ///
    /// # Errors
    /// As the disk says.
    fn len(&self) -> io::Result<u64>;

    /// Cuts or grows (with zeros) to `len` bytes.
    ///
    /// # Errors
    /// As the disk says.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes the content and the length as they are now survive a crash.
    ///
    /// # Errors
    /// As the disk says. What was written since the last sync is in doubt then, and syncing again proves nothing.
    fn sync_data(&self) -> io::Result<()>;

    /// The whole content, of a file that nobody writes any more, without copying where that is possible.
    ///
    /// # Errors
    /// As the disk says.
    fn stable_bytes(&self) -> io::Result<StableBytes>;
}

/// The content of a file that no longer changes.
#[derive(Debug)]
pub enum StableBytes {
    /// Mapped from the disk.
    Mapped(Mapping),
    /// Held in memory.
    Copied(Bytes),
}

impl StableBytes {
    /// Takes pages that were read out of this process's resident size, where they are the kernel's cache.
    pub(crate) fn release(&self) {
        if let StableBytes::Mapped(mapping) = self {
            mapping.release();
        }
    }
}

impl Deref for StableBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            StableBytes::Mapped(mapping) => mapping,
            StableBytes::Copied(bytes) => bytes,
        }
    }
}
