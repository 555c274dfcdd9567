//! What mapped segments add to this process's resident size, and a bound for it.
//!
//! A page that is read through a mapping counts as resident from then on, with those around it that the kernel maps in the same
//! turn, although it is only the kernel's cache seen from here. So each mapped segment notes which windows of 64 KiB were read.
//! When all together pass a bound, and every few seconds besides, the pages are given back. Where the kernel keeps a file in larger
//! pieces (what was written in one go can be up to 2 MiB) it maps a whole one at a time; so now and then the process's own figure is
//! looked at, too. Reading them again costs a minor
//! fault for each window, about a microsecond: no mapping goes, and nothing is read from the disk that is still cached.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::segment::SegmentFooter;
use crate::storage::StableBytes;

/// Bytes that the kernel maps around a page that is read, and their alignment.
const WINDOW_BYTES: usize = 64 << 10;
/// New windows after which the process's own figure is looked at.
const LOOK_EVERY_WINDOWS: u64 = 16;
/// Bound where no log was started and nobody said otherwise.
const DEFAULT_BOUND: u64 = 64 << 20;

/// The mapped segments of one log.
#[derive(Debug)]
pub(super) struct Residence {
    /// Bytes.
    bound: AtomicU64,
    /// Windows that were read and not given back.
    windows: AtomicU64,
    /// Bytes of files of any kind that were resident after the last time: the program itself, mostly.
    base: AtomicU64,
    mapped: Mutex<Vec<Weak<SealedSegment>>>,
}

impl Default for Residence {
    fn default() -> Residence {
        Residence {
            bound: AtomicU64::new(DEFAULT_BOUND),
            windows: AtomicU64::new(0),
            base: AtomicU64::new(0),
            mapped: Mutex::default(),
        }
    }
}

impl Residence {
    pub(super) fn set_bound(&self, bytes: u64) {
        self.bound.store(bytes, Ordering::Relaxed);
    }

    /// Bytes that were read through mappings and not given back, rounded up; without whole files.
    fn bytes(&self) -> u64 {
        self.windows.load(Ordering::Relaxed) * WINDOW_BYTES as u64
    }

    /// Counts a segment that was mapped just now.
    pub(super) fn map(
        self: &Arc<Residence>,
        bytes: StableBytes,
        footer: SegmentFooter,
    ) -> Arc<SealedSegment> {
        let words = bytes.len().div_ceil(WINDOW_BYTES).div_ceil(64);
        let segment = Arc::new(SealedSegment {
            bytes,
            footer,
            read: (0..words).map(|_| AtomicU64::new(0)).collect(),
            read_whole: AtomicBool::new(false),
            residence: Arc::clone(self),
        });
        let mut mapped = self.mapped.lock();
        mapped.retain(|segment| segment.strong_count() > 0);
        mapped.push(Arc::downgrade(&segment));
        segment
    }

    /// Gives back the pages of all segments.
    pub(super) fn release(&self) {
        // Who finds somebody else at it need not wait for that.
        let Some(mapped) = self.mapped.try_lock() else {
            return;
        };
        for segment in mapped.iter().filter_map(Weak::upgrade) {
            segment.release();
        }
        if let Some(bytes) = resident_file_bytes() {
            self.base.store(bytes, Ordering::Relaxed);
        }
    }

    fn read(&self, windows: u64) {
        let before = self.windows.fetch_add(windows, Ordering::Relaxed);
        let bound = self.bound.load(Ordering::Relaxed);
        let look = before / LOOK_EVERY_WINDOWS != (before + windows) / LOOK_EVERY_WINDOWS;
        let more_than_noted = || {
            let base = self.base.load(Ordering::Relaxed);
            resident_file_bytes().is_some_and(|bytes| bytes > base.saturating_add(bound))
        };
        if self.bytes() > bound || look && more_than_noted() {
            self.release();
        }
    }
}

/// Bytes of mapped files that are resident in this process, where the system tells. Takes some tens of microseconds.
fn resident_file_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssFile:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

/// A sealed segment's whole file.
#[derive(Debug)]
pub struct SealedSegment {
    bytes: StableBytes,
    footer: SegmentFooter,
    /// A bit for each window that was read.
    read: Box<[AtomicU64]>,
    /// The whole file was asked for.
    read_whole: AtomicBool,
    residence: Arc<Residence>,
}

impl SealedSegment {
    /// The file, byte for byte: header, frames, footer. For those who read all of it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.read_whole.store(true, Ordering::Relaxed);
        &self.bytes
    }

    /// `len` bytes from `offset`; `None` if the file ends before.
    #[must_use]
    pub fn slice(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let start = usize::try_from(offset).ok()?;
        let slice = self.bytes.get(start..)?.get(..len)?;
        if len > 0 {
            self.note(start / WINDOW_BYTES, (start + len - 1) / WINDOW_BYTES);
        }
        Some(slice)
    }

    /// What it says at its end.
    #[must_use]
    pub fn footer(&self) -> &SegmentFooter {
        &self.footer
    }

    /// Notes that these windows are read.
    fn note(&self, first: usize, last: usize) {
        let mut new = 0;
        for window in first..=last {
            let (Some(word), bit) = (self.read.get(window / 64), 1 << (window % 64)) else {
                continue;
            };
            // Most reads find it set, and then write nothing that other threads would wait for.
            if word.load(Ordering::Relaxed) & bit == 0 && word.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
                new += 1;
            }
        }
        if new > 0 {
            self.residence.read(new);
        }
    }

    /// Gives back its pages. A read that goes on meanwhile only has to fetch them again.
    fn release(self: &Arc<SealedSegment>) {
        let windows = self.forget();
        // Somebody besides the log and the caller holds it, and may be in the midst of it.
        let in_use = Arc::strong_count(self) > 2;
        let whole = self.read_whole.fetch_and(in_use, Ordering::Relaxed);
        if windows > 0 || whole {
            self.bytes.release();
        }
    }

    fn forget(&self) -> u64 {
        let words = self.read.iter();
        let windows = words
            .map(|word| u64::from(word.swap(0, Ordering::Relaxed).count_ones()))
            .sum();
        self.residence.windows.fetch_sub(windows, Ordering::Relaxed);
        windows
    }
}

impl Drop for SealedSegment {
    fn drop(&mut self) {
        self.forget();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::lsn::Lsn;
    use crate::storage::{OpenMode, OsStorage, Storage};

    const FILE_BYTES: usize = 1 << 20;

    fn footer() -> SegmentFooter {
        SegmentFooter {
            first: Lsn::ZERO,
            last: Lsn::ZERO,
            frames: 0,
            frames_end: 0,
            sha256: [0; 32],
            index: Vec::new(),
        }
    }

    fn mapped(dir: &std::path::Path, name: &str, residence: &Arc<Residence>) -> Arc<SealedSegment> {
        let file = OsStorage.open(&dir.join(name), OpenMode::CreateNew).unwrap();
        file.write_at(0, &vec![7; FILE_BYTES]).unwrap();
        residence.map(file.stable_bytes().unwrap(), footer())
    }

    /// What the kernel says of the mapping of this file, KiB.
    fn resident_kib(name: &str) -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let of_file = maps.lines().skip_while(|line| !line.ends_with(name));
        let rss = of_file
            .skip(1)
            .find_map(|line| line.strip_prefix("Rss:"))
            .unwrap();
        rss.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn pages_that_were_read_are_given_back_and_read_the_same_again() {
        let dir = tempfile::tempdir().unwrap();
        let residence = Arc::<Residence>::default();
        let name = "pages-that-were-read";
        let segment = mapped(dir.path(), name, &residence);
        let sum = |bytes: &[u8]| bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        assert_eq!(sum(segment.slice(10, 100).unwrap()), 700);
        assert_eq!(sum(segment.slice(60 << 10, 8 << 10).unwrap()), 7 * (8 << 10));
        assert_eq!(residence.bytes(), 2 * WINDOW_BYTES as u64);
        assert!(resident_kib(name) > 0);
        residence.release();
        assert_eq!((residence.bytes(), resident_kib(name)), (0, 0));
        // Also who holds a slice of it sees the same bytes.
        let slice = segment.slice(0, FILE_BYTES).unwrap();
        residence.release();
        assert_eq!(sum(slice), 7 * FILE_BYTES as u64);
        assert_eq!(segment.slice(FILE_BYTES as u64 - 1, 2), None);
        assert_eq!(segment.slice(u64::MAX, 1), None);
    }

    #[test]
    fn the_system_tells_what_is_resident() {
        // The test program itself is a mapped file.
        assert!(resident_file_bytes().is_some_and(|bytes| bytes > 100 << 10));
    }

    #[test]
    fn what_the_kernel_maps_in_larger_pieces_is_noticed() {
        const BYTES: usize = 4 * FILE_BYTES;
        let dir = tempfile::tempdir().unwrap();
        let residence = Arc::<Residence>::default();
        let name = "larger-pieces";
        let file = OsStorage
            .open(&dir.path().join(name), OpenMode::CreateNew)
            .unwrap();
        file.write_at(0, &vec![7; BYTES]).unwrap();
        let segment = residence.map(file.stable_bytes().unwrap(), footer());
        // All of it becomes resident; what is noted stays below the bound.
        assert_eq!(segment.bytes.iter().filter(|byte| **byte == 7).count(), BYTES);
        residence.set_bound(BYTES as u64 / 2);
        assert_eq!(resident_kib(name), BYTES as u64 >> 10);
        for at in 0..LOOK_EVERY_WINDOWS {
            segment.slice(at * WINDOW_BYTES as u64, 1).unwrap();
        }
        assert!(resident_kib(name) < BYTES as u64 >> 10);
        assert!(residence.base.load(Ordering::Relaxed) > 0);
    }

    #[test]
    fn beyond_the_bound_they_go_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let residence = Arc::<Residence>::default();
        residence.set_bound(4 * WINDOW_BYTES as u64);
        let (one, two) = (
            mapped(dir.path(), "beyond-one", &residence),
            mapped(dir.path(), "beyond-two", &residence),
        );
        for segment in [&one, &two].into_iter().cycle().take(40) {
            for at in 0..FILE_BYTES / WINDOW_BYTES {
                segment.slice((at * WINDOW_BYTES) as u64, 1).unwrap();
                assert!(residence.bytes() <= 4 * WINDOW_BYTES as u64);
            }
        }
        drop((one, two));
        assert_eq!(residence.bytes(), 0, "what is unmapped does not count");
    }

    #[test]
    fn a_file_that_is_read_whole_goes_when_nobody_reads_it_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let residence = Arc::<Residence>::default();
        let name = "read-whole";
        let kept = mapped(dir.path(), name, &residence);
        let reader = Arc::clone(&kept);
        assert_eq!(
            reader.bytes().iter().filter(|byte| **byte == 7).count(),
            FILE_BYTES
        );
        assert!(resident_kib(name) > 0);
        residence.release();
        assert_eq!(
            reader.bytes().iter().filter(|byte| **byte == 7).count(),
            FILE_BYTES
        );
        drop(reader);
        residence.release();
        assert_eq!(resident_kib(name), 0);
    }
}
