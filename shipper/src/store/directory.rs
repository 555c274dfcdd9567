//! A store in a local directory: for one machine, for tests, and for disks that someone else replicates.
//!
//! An object is a file of the same name below the root. It is written whole under another name (`~staging/…`, which no
//! object can have), synced, and linked into place: linking fails if the name is taken, also across processes, and a
//! file that has its name has all its bytes.
//!
//! | crash after       | what is left                                                    |
//! |-------------------|-----------------------------------------------------------------|
//! | writing, syncing  | a staged file, which [`DirectoryStore::sweep_staged`] removes later |
//! | linking           | the object, perhaps (its directory is not synced); unacknowledged |
//! | syncing the directories | the object for good, and a second name of it under `~staging` |
//!
//! The small objects that may change (`swap`) are replaced by renaming, under a lock: see `directory/swaps.rs`.
//!
//! Directories that were seen durable are remembered by inode and time of birth, so that an object costs one sync of its own
//! directory and none of those above it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::{
    Created, ObjectMeta, ObjectName, ReplicaStore, StoreError, Swap, Tag, check_limit, check_size,
    local_file, out_of_range,
};

mod swaps;

/// What names of directories that hold no objects start with; no object's name can.
const HIDDEN: char = '~';

/// Where files are written before they get their name.
const STAGING: &str = "~staging";

/// How often a creation starts over because a deletion removed the directory that it had just made.
const LINK_TRIES: u32 = 8;

/// Directories that are remembered as durable.
const DURABLE_MAX: usize = 64;

/// Objects as files below one directory. Several processes may use the same one. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DirectoryStore {
    root: Arc<Path>,
    durable: Arc<Mutex<HashSet<Identity>>>,
}

/// One directory, told from another one that had its name or number before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Identity {
    device: u64,
    inode: u64,
    born: SystemTime,
}

impl Identity {
    /// `None` where the file system does not say when a directory was made.
    fn of(directory: &Path) -> Option<Identity> {
        let metadata = fs::metadata(directory).ok()?;
        Some(Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            born: metadata.created().ok()?,
        })
    }
}

impl DirectoryStore {
    /// Opens the store at `root`, which is made if it is missing.
    ///
    /// # Errors
    /// The directory cannot be made or written.
    pub fn open(root: impl Into<PathBuf>) -> Result<DirectoryStore, StoreError> {
        let root: PathBuf = root.into();
        let staging = root.join(STAGING);
        fs::create_dir_all(&staging).map_err(|error| failed(&staging, &error))?;
        sync_directory(&root).map_err(|error| failed(&root, &error))?;
        Ok(DirectoryStore {
            root: root.into(),
            durable: Arc::default(),
        })
    }

    /// Removes files that were staged and last written to before `before` and never became, or are no longer needed as, the
    /// source of an object: what crashes leave. Gives their number. An upload that is still running must be younger.
    ///
    /// # Errors
    /// The staging directory cannot be read or written.
    pub fn sweep_staged(&self, before: SystemTime) -> Result<usize, StoreError> {
        let staging = self.root.join(STAGING);
        let sweep = || -> io::Result<usize> {
            let mut removed = 0;
            for entry in fs::read_dir(&staging)? {
                let entry = entry?;
                let modified = match entry.metadata() {
                    Ok(metadata) => metadata.modified()?,
                    // It became an object meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                };
                if modified < before {
                    match fs::remove_file(entry.path()) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                        _ => removed += 1,
                    }
                }
            }
            Ok(removed)
        };
        sweep().map_err(|error| failed(&staging, &error))
    }

    fn path(&self, name: &ObjectName) -> PathBuf {
        self.root.join(name.as_str())
    }

    fn create_blocking(&self, name: &ObjectName, content: &mut dyn Read) -> Result<Created, StoreError> {
        let target = self.path(name);
        // Spares the writing; linking decides.
        if fs::symlink_metadata(&target).is_ok() {
            return self.settle(&target, Created::Exists);
        }
        let staged = self.stage(&target, content)?;
        let parent = target.parent().unwrap_or(&self.root);
        let mut tries = 1;
        loop {
            match fs::create_dir_all(parent).and_then(|()| fs::hard_link(staged.path(), &target)) {
                Ok(()) => return self.settle(&target, Created::Created),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return self.settle(&target, Created::Exists);
                }
                // A deletion has just removed the directory for being empty.
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < LINK_TRIES => tries += 1,
                Err(error) => return Err(failed(&target, &error)),
            }
        }
    }

    /// Writes `content`, which is meant for `target`, to a file of its own and syncs it.
    fn stage(&self, target: &Path, content: &mut dyn Read) -> Result<tempfile::NamedTempFile, StoreError> {
        let staging = self.root.join(STAGING);
        let staged = tempfile::NamedTempFile::new_in(&staging).map_err(|error| failed(&staging, &error))?;
        let mut write = || -> io::Result<()> {
            let mut file = staged.as_file();
            io::copy(content, &mut file)?;
            file.flush()?;
            file.sync_all()
        };
        write().map_err(|error| failed(target, &error))?;
        Ok(staged)
    }

    /// Makes the name of the object at `target` durable, whoever created it, before anybody hears of the outcome.
    fn settle<T>(&self, target: &Path, outcome: T) -> Result<T, StoreError> {
        // Asked for after the object was in it, and before its names are synced: what is remembered is what was synced.
        let parent = target.parent().and_then(Identity::of);
        let known = parent.is_some_and(|parent| self.durable.lock().contains(&parent));
        for directory in target.ancestors().skip(1) {
            match sync_directory(directory) {
                Ok(()) => {}
                // Somebody has deleted the object meanwhile, and its directory with it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let detail = format!("sync of {}: {error}", directory.display());
                    return Err(StoreError::Other { detail, sent: true });
                }
            }
            if known || directory == &*self.root {
                break;
            }
        }
        if let Some(parent) = parent.filter(|_| !known) {
            let mut durable = self.durable.lock();
            if durable.len() >= DURABLE_MAX {
                durable.clear();
            }
            durable.insert(parent);
        }
        Ok(outcome)
    }

    fn open_object(&self, name: &ObjectName) -> Result<(File, u64), StoreError> {
        let open = || -> io::Result<(File, u64)> {
            let file = File::open(self.path(name))?;
            let metadata = file.metadata()?;
            if !metadata.is_file() {
                return Err(io::ErrorKind::NotFound.into());
            }
            Ok((file, metadata.len()))
        };
        open().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => StoreError::NotFound {
                object: name.to_string(),
            },
            _ => failed(&self.path(name), &error),
        })
    }

    fn read(&self, name: &ObjectName, mut file: File, range: Range<u64>) -> Result<Bytes, StoreError> {
        let length =
            usize::try_from(range.end.saturating_sub(range.start)).map_err(|_| out_of_range(name, &range))?;
        let mut bytes = vec![0; length];
        let read = file
            .seek(SeekFrom::Start(range.start))
            .and_then(|_| file.read_exact(&mut bytes));
        read.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => out_of_range(name, &range),
            _ => failed(&self.path(name), &error),
        })?;
        Ok(bytes.into())
    }

    fn delete_blocking(&self, name: &ObjectName) -> Result<(), StoreError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(());
            }
            Err(error) => return Err(failed(&path, &error)),
        }
        for directory in path
            .ancestors()
            .skip(1)
            .take_while(|directory| *directory != &*self.root)
        {
            // Fails, as it should, where something is left.
            if fs::remove_dir(directory).is_err() {
                match sync_directory(directory) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(failed(directory, &error));
                    }
                    _ => return Ok(()),
                }
            }
        }
        sync_directory(&self.root).map_err(|error| failed(&self.root, &error))
    }

    fn list_blocking(&self, listing: &mut Listing<'_>) -> Result<(), StoreError> {
        self.walk(&self.root, "", listing)
            .map_err(|(path, error)| failed(&path, &error))
    }

    /// Visits what lies in `directory`, whose objects' names start with `above`, in order of the names.
    fn walk(
        &self,
        directory: &Path,
        above: &str,
        listing: &mut Listing<'_>,
    ) -> Result<(), (PathBuf, io::Error)> {
        let mut entries = Vec::new();
        let mut read = || -> io::Result<()> {
            for entry in fs::read_dir(directory)? {
                let entry = entry?;
                let Ok(file_name) = entry.file_name().into_string() else {
                    continue;
                };
                // A directory sorts as its slash does, between `.` and the digits.
                let name = match entry.file_type()?.is_dir() {
                    true => format!("{above}{file_name}/"),
                    false => format!("{above}{file_name}"),
                };
                if listing.may_hold(&name) {
                    entries.push(name);
                }
            }
            Ok(())
        };
        match read() {
            Ok(()) => {}
            // Removed for being empty, after we saw it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !above.is_empty() => return Ok(()),
            Err(error) => return Err((directory.to_owned(), error)),
        }
        entries.sort_unstable();
        for name in entries {
            if listing.found.len() == listing.limit {
                return Ok(());
            }
            let path = self.root.join(&name);
            if name.ends_with('/') {
                self.walk(&path, &name, listing)?;
                continue;
            }
            let Ok(name) = ObjectName::new(name) else { continue };
            match fs::metadata(&path) {
                Ok(metadata) => listing.found.push(ObjectMeta {
                    name,
                    size: metadata.len(),
                }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err((path, error)),
            }
        }
        Ok(())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&DirectoryStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.clone();
        match tokio::task::spawn_blocking(move || work(&store)).await {
            Ok(result) => result,
            Err(error) => Err(StoreError::Other {
                detail: error.to_string(),
                sent: true,
            }),
        }
    }
}

struct Listing<'a> {
    prefix: &'a str,
    after: Option<&'a str>,
    limit: usize,
    found: Vec<ObjectMeta>,
}

impl Listing<'_> {
    /// Whether the object `name`, or for a name that ends in a slash an object below it, can be part of the listing.
    fn may_hold(&self, name: &str) -> bool {
        let below = name.ends_with('/');
        let prefixed = name.starts_with(self.prefix) || (below && self.prefix.starts_with(name));
        let later = self
            .after
            .is_none_or(|after| name > after || (below && after.starts_with(name)));
        prefixed && later && !name.starts_with(HIDDEN)
    }
}

#[async_trait]
impl ReplicaStore for DirectoryStore {
    async fn create(&self, name: &ObjectName, bytes: Bytes) -> Result<Created, StoreError> {
        let name = name.clone();
        self.blocking(move |store| store.create_blocking(&name, &mut &bytes[..]))
            .await
    }

    async fn create_from_file(&self, name: &ObjectName, path: &Path) -> Result<Created, StoreError> {
        let (name, path) = (name.clone(), path.to_owned());
        self.blocking(move |store| {
            let mut file = File::open(&path).map_err(|error| local_file(&path, &error))?;
            store.create_blocking(&name, &mut file)
        })
        .await
    }

    async fn get(&self, name: &ObjectName, max_bytes: u64) -> Result<Bytes, StoreError> {
        let name = name.clone();
        self.blocking(move |store| {
            let (file, size) = store.open_object(&name)?;
            check_size(&name, size, max_bytes)?;
            store.read(&name, file, 0..size)
        })
        .await
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let name = name.clone();
        self.blocking(move |store| {
            let (file, size) = store.open_object(&name)?;
            if range.end > size {
                return Err(out_of_range(&name, &range));
            }
            store.read(&name, file, range)
        })
        .await
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>, StoreError> {
        let name = name.clone();
        self.blocking(move |store| match store.open_object(&name) {
            Ok((_, size)) => Ok(Some(size)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        })
        .await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError> {
        check_limit(limit)?;
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        self.blocking(move |store| {
            let mut listing = Listing {
                prefix: &prefix,
                after: after.as_deref(),
                limit,
                found: Vec::new(),
            };
            store.list_blocking(&mut listing)?;
            Ok(listing.found)
        })
        .await
    }

    async fn read_tagged(
        &self,
        name: &ObjectName,
        max_bytes: u64,
    ) -> Result<Option<(Bytes, Tag)>, StoreError> {
        let name = name.clone();
        self.blocking(move |store| store.read_tagged_blocking(&name, max_bytes))
            .await
    }

    async fn swap(
        &self,
        name: &ObjectName,
        bytes: Bytes,
        expected: Option<&Tag>,
    ) -> Result<Swap, StoreError> {
        self.swap_locked(name, bytes, expected).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.delete_locked(name).await
    }

    async fn tidy(&self, before: SystemTime) -> Result<(), StoreError> {
        let swept = self.blocking(move |store| store.sweep_staged(before)).await?;
        if swept > 0 {
            tracing::info!(swept, "removed what crashed writers had left in the replica");
        }
        Ok(())
    }

    fn describe(&self) -> String {
        format!("directory {}", self.root.display())
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn failed(path: &Path, error: &io::Error) -> StoreError {
    let detail = format!("{}: {error}", path.display());
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => StoreError::Denied {
            object: path.display().to_string(),
            detail: error.to_string(),
        },
        // Somebody may make room.
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            StoreError::Unavailable { detail, sent: false }
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory | io::ErrorKind::InvalidFilename => {
            StoreError::Invalid { detail }
        }
        _ => StoreError::Other { detail, sent: true },
    }
}

#[cfg(test)]
mod tests {
    use super::super::contract;
    use std::time::Duration;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_directory_keeps_the_contract() {
        let directory = tempfile::tempdir().unwrap();
        let store = DirectoryStore::open(directory.path()).unwrap();
        contract::all(Arc::new(store)).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_crash_left_staged_is_invisible_and_swept_by_age() {
        let directory = tempfile::tempdir().unwrap();
        let store = DirectoryStore::open(directory.path()).unwrap();
        fs::write(directory.path().join(STAGING).join("half"), b"ha").unwrap();
        assert_eq!(store.list("", None, 10).await, Ok(vec![]));
        assert_eq!(
            store.sweep_staged(SystemTime::now() - Duration::from_secs(3600)),
            Ok(0)
        );
        assert_eq!(
            store.sweep_staged(SystemTime::now() + Duration::from_secs(1)),
            Ok(1)
        );
        assert_eq!(
            store.sweep_staged(SystemTime::now() + Duration::from_secs(1)),
            Ok(0)
        );
    }

    #[tokio::test]
    async fn a_directory_that_was_made_anew_is_not_taken_for_the_durable_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let store = DirectoryStore::open(directory.path()).unwrap();
        let (first, second): (ObjectName, ObjectName) = ("a/1".parse().unwrap(), "a/2".parse().unwrap());
        let a = directory.path().join("a");
        for name in [&first, &second] {
            store.create(name, Bytes::new()).await.unwrap();
        }
        let before = Identity::of(&a).unwrap();
        assert_eq!(*store.durable.lock(), HashSet::from([before]));
        for name in [&first, &second] {
            store.delete(name).await.unwrap();
        }
        store.create(&first, Bytes::new()).await.unwrap();
        let after = Identity::of(&a).unwrap();
        assert_ne!(before, after);
        assert!(store.durable.lock().contains(&after));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn deleting_the_last_object_of_a_directory_removes_it_and_a_racing_creation_survives() {
        let directory = tempfile::tempdir().unwrap();
        let store = DirectoryStore::open(directory.path()).unwrap();
        let (keep, drop): (ObjectName, ObjectName) =
            ("a/b/keep".parse().unwrap(), "a/b/drop".parse().unwrap());
        for _ in 0..50 {
            store.create(&drop, Bytes::new()).await.unwrap();
            let (deleted, created) = tokio::join!(store.delete(&drop), store.create(&keep, Bytes::new()));
            assert_eq!((deleted, created), (Ok(()), Ok(Created::Created)));
            assert_eq!(store.size(&keep).await, Ok(Some(0)));
            store.delete(&keep).await.unwrap();
            assert!(!directory.path().join("a").exists());
        }
    }
}
