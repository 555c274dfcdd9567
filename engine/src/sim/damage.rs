//! Disks that lie: what was reported durable is not there, or not what was written. Nothing of it may come out as an
//! answer: either it is refused by name, or what is left is the state at the end of an earlier group, to the last bit.

use std::path::Path;
use std::sync::Arc;

use super::Seen;
use super::checks::fold_up_to;
use super::model::check_repo;
use super::world::{CACHE_BYTES, LOG_ID, World};
use crate::engine::LOG_DIR;
use crate::log::{Log, OpenError};
use crate::storage::{OpenMode, Storage};
use crate::views::View;
use crate::views::accounts::AccountsView;
use crate::views::driver::{DriverError, Fold};
use crate::views::index::{self, IndexView};

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;
/// Sectors that one write loses, at most.
const SECTORS_MAX: u64 = 6;

/// What a disk did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lie {
    /// A bit is read as what it was not.
    Flip,
    /// A write was acknowledged and never came to be.
    LostWrite,
    /// A write went to another place.
    Misdirected,
    /// Syncs were acknowledged and did nothing; then power was cut.
    LyingSync,
}

impl World {
    fn bytes_of(&self, path: &Path) -> Vec<u8> {
        let file = self.disk.open(path, OpenMode::Read).unwrap();
        file.stable_bytes().unwrap().to_vec()
    }

    /// A range of whole sectors of a file of `len` bytes, which is not empty.
    fn sectors(&self, len: usize) -> std::ops::Range<usize> {
        let sectors = len.div_ceil(SECTOR_BYTES) as u64;
        let from = usize::try_from(self.below(sectors)).unwrap() * SECTOR_BYTES;
        let many = usize::try_from(1 + self.below(SECTORS_MAX)).unwrap() * SECTOR_BYTES;
        from..len.min(from + many)
    }

    fn tell(&self, lie: Lie, bytes: &mut Vec<u8>, elsewhere: &[u8]) {
        match lie {
            Lie::Flip => {
                let at = usize::try_from(self.below(bytes.len() as u64)).unwrap();
                bytes[at] ^= 1 << self.below(8);
            }
            Lie::LostWrite => {
                let lost = self.sectors(bytes.len());
                bytes[lost].fill(0);
            }
            Lie::Misdirected => {
                let (to, from) = (self.sectors(bytes.len()), self.sectors(elsewhere.len()));
                let len = to.len().min(from.len());
                bytes[to.start..to.start + len].copy_from_slice(&elsewhere[from.start..from.start + len]);
            }
            Lie::LyingSync => {
                let len = usize::try_from(self.below(bytes.len() as u64)).unwrap();
                bytes.truncate(len);
            }
        }
    }

    /// The end of a run: the log's disk has lied about something, the views are gone, and the log is opened.
    pub(super) fn lie(&mut self, seen: &mut Seen) {
        // So that there is an open segment.
        self.live(false, None, seen);
        let log_dir = self.dir.path().join(LOG_DIR);
        let names = self.disk.list(&log_dir).unwrap();
        let files: Vec<_> = names
            .into_iter()
            .filter(|name| name.ends_with(".seg"))
            .map(|name| (log_dir.join(&name), self.bytes_of(&log_dir.join(&name))))
            .filter(|(_, bytes)| !bytes.is_empty())
            .collect();
        let Some((newest, _)) = files.last() else { return };
        let (path, before) = match self.one_in(2) {
            true => &files[files.len() - 1],
            false => self.pick(&files),
        };
        let lie = *self.pick(&[Lie::Flip, Lie::LostWrite, Lie::Misdirected, Lie::LyingSync]);
        let mut after = before.clone();
        self.tell(lie, &mut after, &self.pick(&files).1);
        if after == *before {
            return;
        }
        let file = self.disk.open(path, OpenMode::Write).unwrap();
        file.set_len(after.len() as u64).unwrap();
        file.write_at(0, &after).unwrap();
        file.sync_data().unwrap();
        seen.lies.insert(lie);
        self.say(|| format!("the disk lies about {}: {lie:?}", path.display()));

        let found = match Log::recover(Arc::new(self.disk.clone()), &log_dir) {
            Ok(found) => found,
            Err(error @ (OpenError::Io { .. } | OpenError::Locked { .. })) => panic!("{error}"),
            Err(error) => {
                self.say(|| format!("  refused: {error}"));
                seen.lies_refused += 1;
                return;
            }
        };
        let last = found.last_lsn();
        if last < self.durable {
            // As after a torn write. With a replica, whoever compares sees that it has more.
            assert_eq!(
                path, newest,
                "what was lost is not at the end, and nobody says so"
            );
            seen.lies_cost_the_tail += 1;
        }
        let Some(state) = self.model.at(last) else {
            panic!("I3: the log ends at {last}, within a group");
        };
        let log = found.reader();
        let dir = tempfile::tempdir_in(self.dir.path()).unwrap();
        let mut index = IndexView::open(&dir.path().join(index::FILE_NAME), LOG_ID, CACHE_BYTES).unwrap();
        index.adopt(log.compaction()).unwrap();
        let mut accounts = AccountsView::open_with(dir.path(), LOG_ID, self.config().accounts).unwrap();
        {
            let views: Vec<Box<dyn View + '_>> = vec![Box::new(&mut index), Box::new(&mut accounts)];
            let mut fold = Fold::new(views, |from| log.tail(from), self.batches_for_once());
            match fold_up_to(&mut fold, last) {
                Ok(()) => {}
                Err(DriverError::Read(error)) => {
                    self.say(|| format!("  refused when it is read: {error}"));
                    seen.lies_refused += 1;
                    return;
                }
                Err(error) => panic!("other bytes came out: {}", error.reason()),
            }
        }
        let reader = index.reader().unwrap();
        self.check_views(&reader, &accounts.handle(), &state);
        for repo in state.repos.values() {
            check_repo(repo, &reader, &log, &self.verified);
        }
        seen.lies_survived += 1;
    }
}
