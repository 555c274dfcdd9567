//! How a process ends, and what a crash makes of the files of the views.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Seen;
use super::disk::CrashDisk;
use super::world::{Files, Life, World, read_accounts};
use crate::views::accounts::{self, AccountsView};
use crate::views::index;

impl World {
    /// The process is gone, perhaps the machine too; the views' files are what a crash makes of them.
    pub(super) fn die(&mut self, life: Option<Life>, under: &CrashDisk, seen: &mut Seen) {
        under.kill();
        let dir = self.dir.path().to_owned();
        let now = read_accounts(&dir);
        drop(life);
        let power = !self.one_in(3);
        self.say(|| format!("  dies; power {}", if power { "goes" } else { "stays" }));
        let index_path = dir.join(index::FILE_NAME);
        self.settle_names(power, seen);
        if power {
            under.cut_power(&index_path, &self.chance).unwrap();
        }
        AccountsView::delete(&dir).unwrap();
        let after = if power { self.torn_accounts(now) } else { now };
        for (name, bytes) in &after {
            std::fs::write(dir.join(name), bytes).unwrap();
        }
        *self.accounts_saved.lock() = after;
        match self.below(14) {
            0 => drop(std::fs::remove_file(&index_path)),
            1 => AccountsView::delete(&dir).unwrap(),
            2 => self.spoil(&index_path),
            3 => self.spoil(&dir.join(accounts::FILE_NAME)),
            _ => return,
        }
        *self.accounts_saved.lock() = read_accounts(&dir);
        seen.spoiled += 1;
    }

    /// The index's file may soon be another one: what it was stays where a cut of power can put it back.
    pub(super) fn keep_old_name(&self) {
        let (live, old) = self.names();
        match std::fs::hard_link(live, old) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
            _ => {}
        }
    }

    /// Which file the index's name stands for is durable, or a cut of power decides it.
    pub(super) fn settle_names(&self, power: bool, seen: &mut Seen) {
        let (live, old) = self.names();
        let inode = |path: &Path| std::fs::metadata(path).map(|file| file.ino()).ok();
        let Some(before) = inode(&old) else { return };
        if power && inode(&live).is_some_and(|now| now != before) && self.one_in(2) {
            self.say(|| "  the index's old file is back".to_owned());
            std::fs::rename(&old, &live).unwrap();
            seen.renewals_lost += 1;
        } else {
            std::fs::remove_file(&old).unwrap();
        }
    }

    fn names(&self) -> (PathBuf, PathBuf) {
        let dir = self.dir.path();
        (dir.join(index::FILE_NAME), dir.join("index-before"))
    }

    /// What was durable, and of the write-ahead file any beginning.
    pub(super) fn torn_accounts(&self, mut now: Files) -> Files {
        let mut saved = self.accounts_saved.lock().clone();
        let wal = format!("{}-wal", accounts::FILE_NAME);
        if saved.get(accounts::FILE_NAME) == now.get(accounts::FILE_NAME)
            && let Some(longer) = now.get_mut(&wal)
        {
            let synced = saved.get(&wal).map_or(0, Vec::len);
            if longer.len() > synced && longer.starts_with(saved.get(&wal).map_or(&[][..], Vec::as_slice)) {
                let kept = synced as u64 + self.below((longer.len() - synced) as u64 + 1);
                longer.truncate(usize::try_from(kept).unwrap());
                saved.insert(wal, std::mem::take(longer));
            }
        }
        saved
    }

    /// A file that nobody can take for a database any more.
    pub(super) fn spoil(&self, path: &Path) {
        if let Ok(mut bytes) = std::fs::read(path) {
            let len = bytes.len().min(200);
            bytes[..len].fill(0xa5);
            std::fs::write(path, bytes).unwrap();
        }
    }
}
