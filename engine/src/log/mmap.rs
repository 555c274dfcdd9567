//! The one file with `unsafe`: read-only mappings of files that no longer change.
#![allow(
    unsafe_code,
    reason = "mapping a file cannot be expressed in safe Rust; this file is the only place"
)]

use std::fs::File;
use std::io;
use std::ops::Deref;

/// A whole file, mapped to read.
#[derive(Debug)]
pub struct Mapping(Option<memmap2::Mmap>);

impl Mapping {
    /// Maps `file` as long as it is now. An empty file gives an empty mapping.
    ///
    /// The caller promises that nobody writes to or shortens the file while the mapping lives.
    ///
    /// # Errors
    /// The operating system refuses: no memory, too many mappings, a file system without mappings.
    pub(crate) fn of(file: &File) -> io::Result<Mapping> {
        if file.metadata()?.len() == 0 {
            return Ok(Mapping(None));
        }
        // SAFETY: the bytes must not change and the file must not shrink while the slice lives. Inside this process
        // that holds: only sealed segments are mapped, and the tail of a log that is not yet started (whose mapping is
        // dropped before the tail is cut); sealed files are never written again, only unlinked, which leaves the
        // mapping valid. Against other processes it rests on the exclusive lock of the log directory, which a program
        // that does not know us is free to ignore: it could at worst kill us with SIGBUS by shortening a file, or show
        // us other bytes, which checksums notice.
        let map = unsafe { memmap2::Mmap::map(file)? };
        Ok(Mapping(Some(map)))
    }

    /// Takes the pages that were read out of this process's resident size; the kernel's cache keeps them, and who reads on
    /// gets them from there again.
    pub(crate) fn release(&self) {
        let Some(map) = &self.0 else { return };
        // SAFETY: dropping pages is unsound where it takes back writes, as of a private mapping that was written to. This one
        // is shared and only read, so a page that was dropped comes back with the file's bytes, also for a slice that is held.
        let released = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        if let Err(error) = released {
            tracing::debug!(%error, "pages of a mapped segment were not given back");
        }
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}
