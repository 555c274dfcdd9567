//! The disk that spools of imports share: a budget of bytes for all of them, and what they leave free for the log, which is
//! worth more than any import.
//!
//! An import takes its share before it writes: all at once if it says how long it is, else piece by piece as it comes. What is
//! taken and not written yet counts as gone from the disk, so imports that come at once do not promise themselves the same
//! room. A share goes back when its import ends, however it ends.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::ImportError;

/// Bytes of disk that a CAR takes while it is imported, at most, in thirds of its size: itself, heads, and places of blocks
/// before and after they are sorted.
const DISK_THIRDS: u64 = 5;

/// Bytes of disk for a CAR of so many bytes.
pub fn disk_bytes(car: u64) -> u64 {
    car.saturating_mul(DISK_THIRDS).div_ceil(3)
}

/// The largest CAR that fits into so many bytes of disk.
fn car_bytes(disk: u64) -> u64 {
    disk.saturating_mul(3) / DISK_THIRDS
}

/// What spools may take of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomLimits {
    /// Bytes of all of them together.
    pub budget: u64,
    /// Bytes of the disk that stay free.
    pub keep_free: u64,
}

type FreeBytes = Box<dyn Fn(&Path) -> std::io::Result<u64> + Send + Sync>;

/// The room for all spools. Cheap to clone.
#[derive(Clone)]
pub(super) struct Room {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    limits: RoomLimits,
    free: FreeBytes,
    taken: Mutex<Taken>,
}

/// By all spools together, in bytes of disk.
#[derive(Clone, Copy, Default)]
struct Taken {
    /// For them.
    all: u64,
    /// Of that, what is on the disk already, at least.
    written: u64,
}

/// A part of the room. It goes back when this is dropped.
pub(super) struct Share {
    room: Room,
    taken: u64,
    written: u64,
}

impl Room {
    /// Room in the directory `dir`.
    pub(super) fn new(dir: PathBuf, limits: RoomLimits) -> Room {
        Room::measured(dir, limits, Box::new(free_bytes))
    }

    /// As [`Room::new`], with another way to tell how many bytes are free.
    pub(super) fn measured(dir: PathBuf, limits: RoomLimits, free: FreeBytes) -> Room {
        Room {
            inner: Arc::new(Inner {
                dir,
                limits,
                free,
                taken: Mutex::default(),
            }),
        }
    }

    /// Where spools are.
    pub(super) fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// The largest CAR that there can ever be room for.
    pub(super) fn largest(&self) -> u64 {
        car_bytes(self.inner.limits.budget)
    }

    /// Takes room for a CAR of `length` bytes.
    ///
    /// # Errors
    /// [`ImportError::NoRoom`]; nothing is taken then.
    pub(super) fn share(&self, length: u64) -> Result<Share, ImportError> {
        let mut share = Share {
            room: self.clone(),
            taken: 0,
            written: 0,
        };
        share.take_for(length)?;
        Ok(share)
    }
}

impl Share {
    /// Takes what is missing for a CAR of `length` bytes.
    ///
    /// # Errors
    /// [`ImportError::NoRoom`]; the share stays what it is.
    pub(super) fn take_for(&mut self, length: u64) -> Result<(), ImportError> {
        let inner = &self.room.inner;
        let more = disk_bytes(length).saturating_sub(self.taken);
        let free = (inner.free)(&inner.dir).map_err(super::spool::io)?;
        let mut taken = inner.taken.lock();
        let promised = taken.all.saturating_sub(taken.written).saturating_add(more);
        let fits = taken.all.saturating_add(more) <= inner.limits.budget
            && free >= inner.limits.keep_free.saturating_add(promised);
        if !fits {
            metrics::counter!("pds_imports_without_room_total").increment(1);
            return Err(ImportError::NoRoom);
        }
        taken.all += more;
        self.taken += more;
        metrics::gauge!("pds_import_disk_bytes").set(taken.all as f64);
        Ok(())
    }

    /// Notes that so many bytes are on the disk by now.
    pub(super) fn wrote(&mut self, bytes: u64) {
        let bytes = bytes.min(self.taken);
        self.room.inner.taken.lock().written += bytes.saturating_sub(self.written);
        self.written = self.written.max(bytes);
    }

    pub(super) fn dir(&self) -> &Path {
        self.room.dir()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.room.inner.taken.lock();
        taken.all = taken.all.saturating_sub(self.taken);
        taken.written = taken.written.saturating_sub(self.written);
        metrics::gauge!("pds_import_disk_bytes").set(taken.all as f64);
    }
}

fn free_bytes(dir: &Path) -> std::io::Result<u64> {
    let disk = rustix::fs::statvfs(dir)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn room(budget: u64, keep_free: u64, free: &Arc<AtomicU64>) -> Room {
        let free = free.clone();
        Room::measured(
            PathBuf::from("/"),
            RoomLimits { budget, keep_free },
            Box::new(move |_| Ok(free.load(Ordering::SeqCst))),
        )
    }

    fn refused(outcome: Result<impl Sized, ImportError>) -> bool {
        matches!(outcome, Err(ImportError::NoRoom))
    }

    #[test]
    fn all_spools_together_stay_inside_the_budget() {
        let room = room(1_000, 0, &Arc::new(AtomicU64::new(u64::MAX)));
        assert_eq!(room.largest(), 600);
        let first = room.share(300).unwrap();
        let mut second = room.share(0).unwrap();
        second.take_for(300).unwrap();
        assert!(refused(second.take_for(301)));
        assert!(refused(room.share(1)));
        drop(first);
        second.take_for(600).unwrap();
        assert!(refused(second.take_for(601)));
        drop(second);
        assert!(room.share(600).is_ok(), "everything was given back");
        assert!(refused(room.share(601)));
    }

    #[test]
    fn what_is_promised_and_not_written_is_not_promised_again() {
        let free = Arc::new(AtomicU64::new(1_500));
        let room = room(u64::MAX, 1_000, &free);
        let mut first = room.share(150).unwrap();
        assert!(refused(room.share(151)), "250 are promised, 250 are left");
        let second = room.share(150).unwrap();
        assert!(refused(room.share(1)));
        // What is written is gone from the disk, and promised no more.
        free.store(1_250, Ordering::SeqCst);
        first.wrote(250);
        assert!(refused(room.share(1)));
        drop(second);
        assert!(room.share(150).is_ok());
        // The log has grown meanwhile.
        free.store(900, Ordering::SeqCst);
        assert!(refused(first.take_for(151)));
        assert!(refused(room.share(0)), "what is to stay free is used already");
    }
}
