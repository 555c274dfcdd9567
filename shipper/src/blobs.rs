//! Media in a replica store, as `blobs/<did>/<cid>`: beside the log, in the same container.
//!
//! An upload gathers in memory up to [`MEMORY_BYTES`], beyond that in a local file; only when its CID is known does it
//! go to the store, in one conditional creation. So nothing half done is ever to be found there. What a crash leaves in
//! the local directory is removed when it is opened again.

use std::io::{ErrorKind, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use engine::blobs::{BlobError, BlobReader, BlobStore, BlobStream, BlobUpload, PIECE_BYTES, UploadMeter};
use engine::repo::{Cid, Did};
use futures_util::{StreamExt, stream};
use tempfile::NamedTempFile;

use crate::store::{MAX_LIST, ObjectName, ReplicaStore, RetryPolicy, StoreError, retry};

/// What an upload keeps in memory before it turns to a file, in bytes.
pub const MEMORY_BYTES: usize = 1 << 20;

/// What the names of scratch files start with.
const SCRATCH_PREFIX: &str = "upload-";

/// Media as objects of a replica store. Cheap to clone.
#[derive(Clone)]
pub struct ReplicaBlobs {
    store: Arc<dyn ReplicaStore>,
    scratch: Arc<Path>,
}

impl ReplicaBlobs {
    /// Keeps media in `store`. Larger uploads pass through files in the local directory `scratch`, which is made if it is
    /// missing, must not be used by another process, and is cleared of what uploads left there.
    ///
    /// # Errors
    /// The directory cannot be made or cleared.
    pub fn open(
        store: Arc<dyn ReplicaStore>,
        scratch: impl Into<PathBuf>,
    ) -> Result<ReplicaBlobs, BlobError> {
        let scratch: PathBuf = scratch.into();
        let clear = || -> std::io::Result<()> {
            std::fs::create_dir_all(&scratch)?;
            for entry in std::fs::read_dir(&scratch)? {
                let entry = entry?;
                if entry
                    .file_name()
                    .as_encoded_bytes()
                    .starts_with(SCRATCH_PREFIX.as_bytes())
                {
                    std::fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        };
        clear().map_err(|error| scratch_failed(&scratch, &error))?;
        Ok(ReplicaBlobs {
            store,
            scratch: scratch.into(),
        })
    }

    async fn find_size(&self, name: &ObjectName) -> Result<Option<u64>, BlobError> {
        retry(&RetryPolicy::default(), || self.store.size(name))
            .await
            .map_err(|error| failed(&error))
    }
}

fn object_name(did: &Did, cid: &Cid) -> Result<ObjectName, BlobError> {
    ObjectName::new(format!("blobs/{did}/{cid}")).map_err(|error| BlobError::Failed {
        detail: error.to_string(),
    })
}

fn scratch_failed(scratch: &Path, error: &std::io::Error) -> BlobError {
    let detail = format!("{}: {error}", scratch.display());
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => BlobError::Unavailable { detail },
        _ => BlobError::Failed { detail },
    }
}

fn failed(error: &StoreError) -> BlobError {
    let detail = error.to_string();
    match error {
        StoreError::OutOfRange { start, end, .. } => BlobError::OutOfRange {
            start: *start,
            end: *end,
        },
        error if error.is_retryable() => BlobError::Unavailable { detail },
        _ => BlobError::Failed { detail },
    }
}

#[async_trait]
impl BlobStore for ReplicaBlobs {
    async fn begin(&self, did: &Did, max_bytes: u64) -> Result<Box<dyn BlobUpload>, BlobError> {
        Ok(Box::new(Upload {
            blobs: self.clone(),
            did: did.clone(),
            meter: UploadMeter::new(max_bytes),
            memory: Vec::new(),
            file: None,
        }))
    }

    async fn open(&self, did: &Did, cid: &Cid) -> Result<BlobReader, BlobError> {
        let name = object_name(did, cid)?;
        let size = self.find_size(&name).await?;
        let size = size.ok_or_else(|| BlobError::NotFound {
            did: did.clone(),
            cid: *cid,
        })?;
        Ok(BlobReader {
            size,
            stream: pieces(self.store.clone(), name, 0..size),
        })
    }

    async fn open_range(&self, did: &Did, cid: &Cid, range: Range<u64>) -> Result<BlobReader, BlobError> {
        let name = object_name(did, cid)?;
        let size = self.find_size(&name).await?;
        let size = size.ok_or_else(|| BlobError::NotFound {
            did: did.clone(),
            cid: *cid,
        })?;
        if range.end > size {
            return Err(BlobError::OutOfRange {
                start: range.start,
                end: range.end,
            });
        }
        Ok(BlobReader {
            size,
            stream: pieces(self.store.clone(), name, range),
        })
    }

    async fn size(&self, did: &Did, cid: &Cid) -> Result<Option<u64>, BlobError> {
        self.find_size(&object_name(did, cid)?).await
    }

    async fn delete(&self, did: &Did, cid: &Cid) -> Result<(), BlobError> {
        let name = object_name(did, cid)?;
        retry(&RetryPolicy::default(), || self.store.delete(&name))
            .await
            .map_err(|error| failed(&error))
    }

    async fn list(&self, did: &Did, after: Option<&Cid>, limit: usize) -> Result<Vec<Cid>, BlobError> {
        let prefix = format!("blobs/{did}/");
        let after = after.map(|cid| format!("{prefix}{cid}"));
        let limit = limit.clamp(1, MAX_LIST);
        let policy = RetryPolicy::default();
        let listed = retry(&policy, || self.store.list(&prefix, after.as_deref(), limit)).await;
        let listed = listed.map_err(|error| failed(&error))?;
        let cids = listed
            .iter()
            .map(|object| object.name.as_str().get(prefix.len()..)?.parse().ok());
        // One that is no CID would end the list early if it were left out.
        cids.collect::<Option<_>>().ok_or_else(|| BlobError::Failed {
            detail: format!("below {prefix} is an object that is no blob"),
        })
    }

    fn describe(&self) -> String {
        format!("{}, below blobs/", self.store.describe())
    }
}

impl std::fmt::Debug for ReplicaBlobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplicaBlobs")
            .field("at", &self.describe())
            .finish()
    }
}

struct Upload {
    blobs: ReplicaBlobs,
    did: Did,
    meter: UploadMeter,
    memory: Vec<u8>,
    file: Option<NamedTempFile>,
}

impl Upload {
    /// Moves what is in memory to the file, which is made if need be.
    async fn spill(&mut self) -> Result<(), BlobError> {
        let memory = std::mem::take(&mut self.memory);
        let file = self.file.take();
        let scratch = self.blobs.scratch.clone();
        let spilled = tokio::task::spawn_blocking(move || -> std::io::Result<NamedTempFile> {
            let mut file = match file {
                Some(file) => file,
                None => tempfile::Builder::new()
                    .prefix(SCRATCH_PREFIX)
                    .tempfile_in(&scratch)?,
            };
            file.write_all(&memory)?;
            Ok(file)
        });
        match spilled.await {
            Ok(Ok(file)) => {
                self.file = Some(file);
                Ok(())
            }
            Ok(Err(error)) => Err(scratch_failed(&self.blobs.scratch, &error)),
            Err(error) => Err(BlobError::Failed {
                detail: error.to_string(),
            }),
        }
    }
}

#[async_trait]
impl BlobUpload for Upload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), BlobError> {
        self.meter.count(bytes.len())?;
        for piece in bytes.chunks(MEMORY_BYTES) {
            if self.memory.len() + piece.len() > MEMORY_BYTES {
                self.spill().await?;
            }
            self.memory.extend_from_slice(piece);
        }
        Ok(())
    }

    fn written(&self) -> u64 {
        self.meter.written()
    }

    async fn finish(mut self: Box<Self>, cid: &Cid) -> Result<u64, BlobError> {
        let name = object_name(&self.did, cid)?;
        if self.file.is_some() {
            self.spill().await?;
        }
        let store = &self.blobs.store;
        let policy = RetryPolicy::default();
        // Repeating is safe here, as a name stands for its content: whoever created the object, it is this one.
        let created = match &self.file {
            Some(file) => retry(&policy, || store.create_from_file(&name, file.path())).await,
            None => {
                let bytes = Bytes::from(std::mem::take(&mut self.memory));
                retry(&policy, || store.create(&name, bytes.clone())).await
            }
        };
        created.map_err(|error| failed(&error))?;
        Ok(self.meter.written())
    }
}

/// Fetches `range` piece by piece, each when it is wanted, repeating those that fail.
fn pieces(store: Arc<dyn ReplicaStore>, name: ObjectName, range: Range<u64>) -> BlobStream {
    stream::try_unfold((store, name, range), |(store, name, range)| async move {
        if range.is_empty() {
            return Ok(None);
        }
        let end = range.end.min(range.start + PIECE_BYTES);
        let piece = retry(&RetryPolicy::default(), || {
            store.get_range(&name, range.start..end)
        })
        .await;
        let piece = piece.map_err(|error| failed(&error))?;
        Ok(Some((piece, (store, name, end..range.end))))
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::faulty::{Answer, Fault, FaultyStore, Rule, Verb};
    use crate::store::memory::MemoryStore;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn media_in_a_replica_store_keep_the_contract() {
        let scratch = tempfile::tempdir().unwrap();
        let blobs = ReplicaBlobs::open(Arc::new(MemoryStore::new()), scratch.path()).unwrap();
        engine::blobs::contract::all(&blobs).await;
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_crash_left_is_cleared_and_nothing_else() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("upload-x"), b"half").unwrap();
        std::fs::write(scratch.path().join("keep"), b"not ours").unwrap();
        ReplicaBlobs::open(Arc::new(MemoryStore::new()), scratch.path()).unwrap();
        assert!(!scratch.path().join("upload-x").exists() && scratch.path().join("keep").exists());
    }

    #[tokio::test]
    async fn lost_answers_and_broken_reads_do_not_reach_the_caller() {
        let scratch = tempfile::tempdir().unwrap();
        let store = FaultyStore::new(MemoryStore::new(), 1);
        store.add(Rule::once(Fault::After(Answer::Unavailable)).on(Verb::CreateFromFile));
        store.add(
            Rule::once(Fault::Before(Answer::Timeout))
                .on(Verb::GetRange)
                .after(1),
        );
        let blobs = ReplicaBlobs::open(Arc::new(store), scratch.path()).unwrap();
        engine::blobs::contract::what_was_finished_can_be_read(&blobs).await;
    }
}
