//! Media on a local disk: `<root>/<did>/<cid>`, and uploads under way as `<root>/tempt/<did>/<random>`, the layout of
//! the reference implementation.
//!
//! | crash after                 | what is left                                                        |
//! |-----------------------------|---------------------------------------------------------------------|
//! | writing                     | a temporary file, which [`DiskBlobs::sweep_temporary`] removes later  |
//! | syncing the file, renaming  | the blob, perhaps; nothing refers to it                             |
//! | syncing the directories     | the blob for good                                                   |
//!
//! The root is synced before the first blob of an account that this process takes, not for each: its directory is there from then on.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, IoSlice, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;

use super::{BlobError, BlobReader, BlobStore, BlobStream, BlobUpload, UploadMeter};
use crate::repo::{Cid, Did};

/// The directory of uploads under way. No DID has this name.
const TEMPORARY: &str = "tempt";

/// The piece in which a blob is read, in bytes.
const READ_BYTES: u64 = 256 << 10;

/// The piece in which an upload is written, in bytes; a little more where chunks do not fit evenly.
const WRITE_BYTES: usize = 256 << 10;

/// Accounts whose directories are remembered to be there for good; all are forgotten when there are more.
const SETTLED_MAX: usize = 16 << 10;

/// Media in files below one directory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DiskBlobs {
    root: Arc<Path>,
    settled: Arc<Settled>,
}

/// Accounts whose directory a crash does not take away any more.
#[derive(Debug, Default)]
struct Settled(Mutex<HashSet<PathBuf>>);

impl Settled {
    /// Makes the directory if it is not there, for good.
    fn settle(&self, root: &Path, directory: &Path) -> io::Result<()> {
        match fs::create_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if self.0.lock().contains(directory) {
                    return Ok(());
                }
            }
            // Also one that was known, and was removed by hand.
            made => made?,
        }
        sync_directory(root)?;
        let mut settled = self.0.lock();
        if settled.len() >= SETTLED_MAX {
            settled.clear();
        }
        settled.insert(directory.to_owned());
        Ok(())
    }
}

impl DiskBlobs {
    /// Opens the store at `root`, which is made if it is missing.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(root: impl Into<PathBuf>) -> Result<DiskBlobs, BlobError> {
        let root: PathBuf = root.into();
        let temporary = root.join(TEMPORARY);
        fs::create_dir_all(&temporary).map_err(|error| failed(&temporary, &error))?;
        sync_directory(&root).map_err(|error| failed(&root, &error))?;
        Ok(DiskBlobs {
            root: root.into(),
            settled: Arc::default(),
        })
    }

    /// Removes what uploads left that were not written to for `older_than` and never finished. Gives the number of files.
    ///
    /// # Errors
    /// The directory cannot be read or written.
    pub async fn sweep_temporary(&self, older_than: Duration) -> Result<usize, BlobError> {
        let temporary = self.root.join(TEMPORARY);
        blocking(move || sweep(&temporary, older_than).map_err(|error| failed(&temporary, &error))).await
    }

    fn path(&self, did: &Did, cid: &Cid) -> PathBuf {
        self.root.join(did.as_str()).join(cid.to_string())
    }

    async fn open_file(&self, did: &Did, cid: &Cid) -> Result<(File, u64), BlobError> {
        let path = self.path(did, cid);
        let absent = BlobError::NotFound {
            did: did.clone(),
            cid: *cid,
        };
        blocking(move || {
            let open = || -> io::Result<(File, u64)> {
                let file = File::open(&path)?;
                let size = file.metadata()?.len();
                Ok((file, size))
            };
            open().map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => absent,
                _ => failed(&path, &error),
            })
        })
        .await
    }
}

#[async_trait]
impl BlobStore for DiskBlobs {
    async fn begin(&self, did: &Did, max_bytes: u64) -> Result<Box<dyn BlobUpload>, BlobError> {
        let directory = self.root.join(TEMPORARY).join(did.as_str());
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| BlobError::Failed {
            detail: format!("no randomness: {error}"),
        })?;
        let path = directory.join(data_encoding::HEXLOWER.encode(&random));
        let create = {
            let path = path.clone();
            move || {
                // A sweep may remove the directory before the file is in it.
                fs::create_dir_all(&directory)
                    .and_then(|()| File::create_new(&path))
                    .or_else(|error| match error.kind() {
                        io::ErrorKind::NotFound => {
                            fs::create_dir_all(&directory)?;
                            File::create_new(&path)
                        }
                        _ => Err(error),
                    })
                    .map_err(|error| failed(&path, &error))
            }
        };
        let file = blocking(create).await?;
        Ok(Box::new(DiskUpload {
            file: Some(file),
            pending: Vec::new(),
            pending_bytes: 0,
            temporary: Temporary(path),
            meter: UploadMeter::new(max_bytes),
            directory: self.root.join(did.as_str()),
            store: self.clone(),
        }))
    }

    async fn open(&self, did: &Did, cid: &Cid) -> Result<BlobReader, BlobError> {
        let (file, size) = self.open_file(did, cid).await?;
        Ok(BlobReader {
            size,
            stream: pieces(file, 0..size),
        })
    }

    async fn open_range(&self, did: &Did, cid: &Cid, range: Range<u64>) -> Result<BlobReader, BlobError> {
        let (file, size) = self.open_file(did, cid).await?;
        if range.end > size {
            return Err(BlobError::OutOfRange {
                start: range.start,
                end: range.end,
            });
        }
        Ok(BlobReader {
            size,
            stream: pieces(file, range),
        })
    }

    async fn size(&self, did: &Did, cid: &Cid) -> Result<Option<u64>, BlobError> {
        match self.open_file(did, cid).await {
            Ok((_, size)) => Ok(Some(size)),
            Err(BlobError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn delete(&self, did: &Did, cid: &Cid) -> Result<(), BlobError> {
        let path = self.path(did, cid);
        blocking(move || match fs::remove_file(&path) {
            Ok(()) => {
                let directory = path.parent().unwrap_or(&path);
                sync_directory(directory).map_err(|error| failed(directory, &error))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed(&path, &error)),
        })
        .await
    }

    async fn list(&self, did: &Did, after: Option<&Cid>, limit: usize) -> Result<Vec<Cid>, BlobError> {
        let directory = self.root.join(did.as_str());
        let after = after.map(ToString::to_string).unwrap_or_default();
        blocking(move || {
            let list = || -> io::Result<Vec<Cid>> {
                let entries = match fs::read_dir(&directory) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                    entries => entries?,
                };
                // The first ones by name, in the memory of as many.
                let mut first = BTreeMap::new();
                for entry in entries {
                    let name = entry?.file_name();
                    // What else is there is not ours.
                    let Some((name, cid)) = name
                        .to_str()
                        .filter(|name| **name > *after)
                        .and_then(|name| Some((name.to_owned(), name.parse().ok()?)))
                    else {
                        continue;
                    };
                    first.insert(name, cid);
                    if first.len() > limit {
                        first.pop_last();
                    }
                }
                Ok(first.into_values().collect())
            };
            list().map_err(|error| failed(&directory, &error))
        })
        .await
    }

    fn describe(&self) -> String {
        format!("directory {}", self.root.display())
    }
}

struct DiskUpload {
    /// Away while it is written to.
    file: Option<File>,
    /// What waits to be written in one piece.
    pending: Vec<Bytes>,
    pending_bytes: usize,
    temporary: Temporary,
    meter: UploadMeter,
    directory: PathBuf,
    store: DiskBlobs,
}

impl DiskUpload {
    /// The file and what it still lacks; an upload that failed has none.
    fn take(&mut self) -> Result<(File, Vec<Bytes>), BlobError> {
        self.pending_bytes = 0;
        let file = self.file.take().ok_or_else(|| BlobError::Failed {
            detail: "the upload has failed before".to_owned(),
        })?;
        Ok((file, std::mem::take(&mut self.pending)))
    }
}

#[async_trait]
impl BlobUpload for DiskUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), BlobError> {
        self.meter.count(bytes.len())?;
        self.pending_bytes += bytes.len();
        self.pending.push(bytes);
        if self.pending_bytes < WRITE_BYTES {
            return Ok(());
        }
        let (file, pending) = self.take()?;
        let path = self.temporary.0.clone();
        let written = blocking(move || {
            write_all(&file, &pending).map_err(|error| failed(&path, &error))?;
            Ok(file)
        });
        self.file = Some(written.await?);
        Ok(())
    }

    fn written(&self) -> u64 {
        self.meter.written()
    }

    async fn finish(mut self: Box<Self>, cid: &Cid) -> Result<u64, BlobError> {
        let (file, pending) = self.take()?;
        let upload = *self;
        let DiskUpload {
            temporary,
            meter,
            directory,
            store,
            ..
        } = upload;
        let target = directory.join(cid.to_string());
        blocking(move || {
            let settle = || -> io::Result<()> {
                write_all(&file, &pending)?;
                file.sync_data()?;
                store.settled.settle(&store.root, &directory)?;
                // Replaces a blob of the same name by the same bytes.
                fs::rename(&temporary.0, &target)?;
                sync_directory(&directory)
            };
            settle().map_err(|error| failed(&target, &error))
        })
        .await?;
        Ok(meter.written())
    }
}

fn write_all(mut file: &File, pieces: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    let mut left = &mut slices[..];
    while !left.is_empty() {
        let written = match file.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        IoSlice::advance_slices(&mut left, written);
    }
    Ok(())
}

/// The file of an upload under way, removed unless it got another name.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Best effort: the sweep finds what stays.
        drop(fs::remove_file(&self.0));
    }
}

fn pieces(file: File, range: Range<u64>) -> BlobStream {
    let file = Arc::new(file);
    stream::try_unfold(range, move |range| {
        let file = file.clone();
        async move {
            if range.is_empty() {
                return Ok(None);
            }
            let end = range.end.min(range.start + READ_BYTES);
            let start = range.start;
            let piece = blocking(move || {
                let read = read_piece(&file, start..end);
                read.map(Bytes::from).map_err(|error| BlobError::Failed {
                    detail: error.to_string(),
                })
            })
            .await?;
            Ok(Some((piece, end..range.end)))
        }
    })
    .boxed()
}

/// Reads into memory that was not cleared first, which would cost as much as the copy itself.
fn read_piece(file: &File, range: Range<u64>) -> io::Result<Vec<u8>> {
    let len = usize::try_from(range.end - range.start).unwrap_or_default();
    let mut piece = Vec::with_capacity(len);
    while piece.len() < len {
        let at = range.start + piece.len() as u64;
        let read = match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut piece), at) {
            Err(rustix::io::Errno::INTR) => continue,
            read => read?,
        };
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    // The allocator may have given more room than was asked for.
    piece.truncate(len);
    Ok(piece)
}

fn sweep(temporary: &Path, older_than: Duration) -> io::Result<usize> {
    let mut removed = 0;
    for account in fs::read_dir(temporary)? {
        let account = account?.path();
        for upload in fs::read_dir(&account)? {
            let upload = upload?;
            let modified = match upload.metadata() {
                Ok(metadata) => metadata.modified()?,
                // Finished meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if SystemTime::now()
                .duration_since(modified)
                .is_ok_and(|age| age >= older_than)
            {
                match fs::remove_file(upload.path()) {
                    Ok(()) => removed += 1,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        // Fails, as it should, where an upload is under way.
        drop(fs::remove_dir(&account));
    }
    Ok(removed)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
) -> Result<T, BlobError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(BlobError::Failed {
            detail: error.to_string(),
        }),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn failed(path: &Path, error: &io::Error) -> BlobError {
    let detail = format!("{}: {error}", path.display());
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => BlobError::Unavailable { detail },
        _ => BlobError::Failed { detail },
    }
}

#[cfg(test)]
mod tests {
    use super::super::contract;
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_disk_keeps_the_contract() {
        let directory = tempfile::tempdir().unwrap();
        contract::all(&DiskBlobs::open(directory.path()).unwrap()).await;
    }

    #[tokio::test]
    async fn an_abandoned_upload_is_removed_at_once_and_a_crashed_one_is_swept_by_age() {
        let directory = tempfile::tempdir().unwrap();
        let blobs = DiskBlobs::open(directory.path()).unwrap();
        let did: Did = "did:web:example.com".parse().unwrap();
        let mut upload = blobs.begin(&did, 10).await.unwrap();
        upload.write(Bytes::from_static(b"half")).await.unwrap();
        let account = directory.path().join("tempt/did:web:example.com");
        assert_eq!(fs::read_dir(&account).unwrap().count(), 1);
        drop(upload);
        assert_eq!(fs::read_dir(&account).unwrap().count(), 0);
        fs::write(account.join("left"), b"by a crash").unwrap();
        assert_eq!(blobs.sweep_temporary(Duration::from_secs(3600)).await, Ok(0));
        assert_eq!(blobs.sweep_temporary(Duration::ZERO).await, Ok(1));
        assert!(!account.exists());
        assert_eq!(blobs.sweep_temporary(Duration::ZERO).await, Ok(0));
    }

    #[tokio::test]
    async fn a_blob_lies_where_the_reference_implementation_keeps_it() {
        let directory = tempfile::tempdir().unwrap();
        let blobs = DiskBlobs::open(directory.path()).unwrap();
        let did: Did = "did:web:example.com".parse().unwrap();
        let cid = Cid::for_raw(b"whole");
        let mut upload = blobs.begin(&did, 10).await.unwrap();
        upload.write(Bytes::from_static(b"whole")).await.unwrap();
        assert_eq!(upload.finish(&cid).await, Ok(5));
        let path = directory.path().join("did:web:example.com").join(cid.to_string());
        assert_eq!(fs::read(path).unwrap(), b"whole");
    }
}
