//! Objects that may change. Beside each lies a *state file*, `~swaps/<name>`, with 16 random bytes, new for each change; the
//! object's tag is a digest of both, so that a state is told from an earlier one with the same bytes. Who changes the object
//! holds the lock (`flock`) of its state file, which a crash lets go.
//!
//! | crash after            | what is left                                                        |
//! |------------------------|---------------------------------------------------------------------|
//! | the new random bytes   | the old object under a new tag: who had read it finds a conflict, and reads again |
//! | the rename             | the new object, perhaps; unacknowledged                              |
//!
//! Reading takes no lock: bytes and random bytes of different states make a tag that nothing ever has. A process that is
//! stopped while it holds the lock keeps the others waiting, for as long as they are ready to ([`LOCK_DEADLINE`]). On a
//! network file system all this is worth what its locks are.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};

use super::super::swap::check_swap;
use super::super::{ObjectName, StoreError, Swap, Tag, check_size};
use super::{DirectoryStore, LINK_TRIES, failed};

/// Where the state files are.
const SWAPS: &str = "~swaps";

/// The length of a state.
const STATE_BYTES: usize = 16;

/// How long to wait for a lock, and how often to look.
const LOCK_DEADLINE: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// What a state file holds: nothing before the first change.
type State = Option<[u8; STATE_BYTES]>;

impl DirectoryStore {
    pub(super) fn read_tagged_blocking(
        &self,
        name: &ObjectName,
        max_bytes: u64,
    ) -> Result<Option<(Bytes, Tag)>, StoreError> {
        let (file, size) = match self.open_object(name) {
            Err(StoreError::NotFound { .. }) => return Ok(None),
            opened => opened?,
        };
        check_size(name, size, max_bytes)?;
        let bytes = self.read(name, file, 0..size)?;
        let path = self.root.join(SWAPS).join(name.as_str());
        let state = match File::open(&path) {
            Ok(file) => read_state(&file),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        };
        let state = state.map_err(|error| failed(&path, &error))?;
        let tag = tag(name, &state, &bytes)?;
        Ok(Some((bytes, tag)))
    }

    pub(super) async fn swap_locked(
        &self,
        name: &ObjectName,
        bytes: Bytes,
        expected: Option<&Tag>,
    ) -> Result<Swap, StoreError> {
        check_swap(name, &bytes)?;
        let (name, expected) = (name.clone(), expected.cloned());
        self.exclusively(&name.clone(), true, move |store, state| {
            store.swap_blocking(&name, &bytes, expected.as_ref(), state)
        })
        .await
    }

    pub(super) async fn delete_locked(&self, name: &ObjectName) -> Result<(), StoreError> {
        let name = name.clone();
        self.exclusively(&name.clone(), false, move |store, state| {
            // The same bytes may come again, and must not be taken for these.
            if let Some(state) = state {
                renew(state).map_err(|error| failed(&store.path(&name), &error))?;
            }
            store.delete_blocking(&name)
        })
        .await
    }

    /// Does `work` while nobody else changes `name`. Without `make` and a state file there is nothing to lock, since the
    /// object is none that changes.
    async fn exclusively<T: Send + 'static>(
        &self,
        name: &ObjectName,
        make: bool,
        work: impl Fn(&DirectoryStore, Option<&File>) -> Result<T, StoreError> + Clone + Send + 'static,
    ) -> Result<T, StoreError> {
        let path = self.root.join(SWAPS).join(name.as_str());
        let deadline = Instant::now() + LOCK_DEADLINE;
        loop {
            let (path, work) = (path.clone(), work.clone());
            let attempt = move |store: &DirectoryStore| {
                let opened = match make {
                    true => path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| {
                        let mut options = OpenOptions::new();
                        options
                            .read(true)
                            .write(true)
                            .create(true)
                            .truncate(false)
                            .open(&path)
                    }),
                    false => OpenOptions::new().read(true).write(true).open(&path),
                };
                let state = match opened {
                    Ok(state) => state,
                    Err(error) if !make && is_absent(&error) => return work(store, None).map(Some),
                    Err(error) => return Err(failed(&path, &error)),
                };
                match state.try_lock() {
                    Ok(()) => work(store, Some(&state)).map(Some),
                    Err(TryLockError::WouldBlock) => Ok(None),
                    Err(TryLockError::Error(error)) => Err(failed(&path, &error)),
                }
            };
            if let Some(done) = self.blocking(attempt).await? {
                return Ok(done);
            }
            if Instant::now() >= deadline {
                return Err(StoreError::Unavailable {
                    detail: format!("{name} is locked by another process"),
                    sent: false,
                });
            }
            sleep(LOCK_PAUSE).await;
        }
    }

    fn swap_blocking(
        &self,
        name: &ObjectName,
        bytes: &Bytes,
        expected: Option<&Tag>,
        state: Option<&File>,
    ) -> Result<Swap, StoreError> {
        let target = self.path(name);
        let failed = |error: io::Error| failed(&target, &error);
        let Some(state) = state else {
            return Err(failed(io::ErrorKind::NotFound.into()));
        };
        let now = match self.open_object(name) {
            Err(StoreError::NotFound { .. }) => None,
            opened => {
                let (file, size) = opened?;
                let state = read_state(state).map_err(failed)?;
                Some(tag(name, &state, &self.read(name, file, 0..size)?)?)
            }
        };
        if now.as_ref() != expected {
            return Ok(Swap::Conflict);
        }
        let staged = self.stage(&target, &mut &bytes[..])?;
        let renewed = renew(state).map_err(failed)?;
        let tag = tag(name, &Some(renewed), bytes)?;
        if now.is_some() {
            staged.persist(&target).map_err(|error| failed(error.error))?;
        } else {
            let parent = target.parent().unwrap_or(&self.root);
            let mut tries = 1;
            // Linked, so that what somebody creates without a look at the lock is not replaced.
            while let Err(error) =
                fs::create_dir_all(parent).and_then(|()| fs::hard_link(staged.path(), &target))
            {
                match error.kind() {
                    io::ErrorKind::AlreadyExists => return Ok(Swap::Conflict),
                    // A deletion has just removed the directory for being empty.
                    io::ErrorKind::NotFound if tries < LINK_TRIES => tries += 1,
                    _ => return Err(failed(error)),
                }
            }
        }
        self.settle(&target, Swap::Swapped(tag))
    }
}

/// Whether the error says that there is no such file: a directory is one of the state files of names below.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory
    )
}

fn read_state(file: &File) -> io::Result<State> {
    let mut state = [0; STATE_BYTES];
    match file.read_exact_at(&mut state, 0) {
        Ok(()) => Ok(Some(state)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes every tag of before a thing of the past.
fn renew(file: &File) -> io::Result<[u8; STATE_BYTES]> {
    let mut state = [0; STATE_BYTES];
    getrandom::fill(&mut state).map_err(|error| io::Error::other(error.to_string()))?;
    file.write_all_at(&state, 0)?;
    file.sync_all()?;
    Ok(state)
}

fn tag(name: &ObjectName, state: &State, bytes: &[u8]) -> Result<Tag, StoreError> {
    let mut digest = Sha256::new();
    digest.update(state.as_ref().map_or(&[][..], |state| state));
    digest.update(bytes);
    let written = if state.is_some() { "w" } else { "c" };
    Tag::new(name, format!("{written}{}", HEXLOWER.encode(&digest.finalize())))
}

#[cfg(test)]
mod tests {
    use super::super::super::ReplicaStore;
    use super::*;

    fn lease() -> ObjectName {
        "live/lease".parse().unwrap()
    }

    async fn swapped(store: &DirectoryStore, bytes: &'static [u8], expected: Option<&Tag>) -> Tag {
        match store.swap(&lease(), Bytes::from_static(bytes), expected).await {
            Ok(Swap::Swapped(tag)) => tag,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn two_openings_of_one_directory_exclude_each_other() {
        let directory = tempfile::tempdir().unwrap();
        let stores = [(), ()].map(|()| DirectoryStore::open(directory.path()).unwrap());
        swapped(&stores[0], b"0", None).await;
        let adders = stores.clone().map(|store| {
            tokio::spawn(async move {
                let mut added = 0;
                while added < 20 {
                    let (bytes, tag) = store.read_tagged(&lease(), 100).await.unwrap().unwrap();
                    let value: u64 = std::str::from_utf8(&bytes).unwrap().parse().unwrap();
                    let next = Bytes::from((value + 1).to_string());
                    if store.swap(&lease(), next, Some(&tag)).await.unwrap() != Swap::Conflict {
                        added += 1;
                    }
                }
            })
        });
        for adder in adders {
            adder.await.unwrap();
        }
        let sum = stores[0].read_tagged(&lease(), 100).await.unwrap().unwrap().0;
        assert_eq!(&sum[..], b"40");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_lock_that_is_held_is_waited_for_and_one_that_is_let_go_is_free() {
        let directory = tempfile::tempdir().unwrap();
        let store = DirectoryStore::open(directory.path()).unwrap();
        let tag = swapped(&store, b"1", None).await;
        let held = File::open(directory.path().join(SWAPS).join("live/lease")).unwrap();
        held.try_lock().unwrap();
        let lease = lease();
        let mut waiting = Box::pin(store.swap(&lease, Bytes::from_static(b"2"), Some(&tag)));
        let early = tokio::time::timeout(LOCK_PAUSE * 4, &mut waiting).await;
        assert!(early.is_err(), "{early:?}");
        // Reading does not wait.
        let read = store.read_tagged(&lease, 10).await.unwrap();
        assert_eq!(read, Some((Bytes::from_static(b"1"), tag.clone())));
        drop(held);
        assert!(matches!(waiting.await, Ok(Swap::Swapped(_))));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_crash_between_state_and_object_leaves_the_object_and_a_conflict() {
        let directory = tempfile::tempdir().unwrap();
        let store = DirectoryStore::open(directory.path()).unwrap();
        let tag = swapped(&store, b"1", None).await;
        let path = directory.path().join(SWAPS).join("live/lease");
        renew(&OpenOptions::new().write(true).open(path).unwrap()).unwrap();
        let late = store.swap(&lease(), Bytes::from_static(b"2"), Some(&tag)).await;
        assert_eq!(late, Ok(Swap::Conflict));
        let (bytes, now) = store.read_tagged(&lease(), 10).await.unwrap().unwrap();
        assert_eq!(&bytes[..], b"1");
        swapped(&store, b"2", Some(&now)).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn state_files_are_no_objects() {
        let directory = tempfile::tempdir().unwrap();
        let store = DirectoryStore::open(directory.path()).unwrap();
        swapped(&store, b"1", None).await;
        let listed = store.list("", None, 10).await.unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].name, lease());
        // A name below one that changes is not concerned.
        let below: ObjectName = "live/lease/x".parse().unwrap();
        assert_eq!(store.delete(&below).await, Ok(()));
    }
}
