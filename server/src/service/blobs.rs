//! Media blobs: streamed in, hashed and sniffed on the way, owned by a log entry, served once a record references them.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use engine::blobs::{BlobError as StoreError, BlobStore, BlobUpload};
use engine::entry::{Change, EntryDraft};
use engine::repo::cid::{CidHasher, Codec};
use engine::repo::{Cid, Did, Tid};
use engine::views::index::MissingBlob;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use tokio::sync::RwLock;
use tokio::time::Instant;

use crate::service::core::{Core, Unconfirmed};
use crate::service::repos::{Repos, WriteError};
use crate::xrpc::error::XrpcError;

/// Bytes from a blob's beginning that are enough to tell its type.
const SNIFF_BYTES: usize = 4096;
/// Bytes that are hashed in one go on a thread that serves requests: some 40 µs with the processor's own instructions.
const HASH_BYTES: usize = 64 << 10;
/// Longest media type that is kept, in bytes.
const MIME_MAX: usize = 255;
/// How long an uploader may send nothing.
const UPLOAD_STALL: Duration = Duration::from_secs(60);
/// How long an upload may take in all.
const UPLOAD_TOTAL: Duration = Duration::from_secs(1800);
/// Blobs of a removed repo that are deleted while no upload is put in place, and how many at once.
const ERASED_AT_A_TIME: usize = 64;
const DELETES_AT_ONCE: usize = 8;
/// How long such a deletion waits for uploads that are being put in place, and for the log.
const ERASE_WAIT: Duration = Duration::from_secs(10);
/// How long a whole upload waits for room in the log before it is refused.
const LOG_WAIT: Duration = Duration::from_secs(5);

/// Why a blob was not taken or given.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// Larger than the limit.
    #[error("request entity too large")]
    TooLarge,
    /// The client's bytes broke off or stalled.
    #[error("The upload broke off: {0}")]
    Broken(String),
    /// The request is not acceptable.
    #[error("{0}")]
    Invalid(String),
    /// Its repo is not here any more.
    #[error("Could not find repo: {0}")]
    RepoNotFound(Did),
    /// It is not here, or no record references it.
    #[error("Blob not found")]
    NotFound,
    /// The blob store cannot be reached now.
    #[error("the blob store cannot be reached: {0}")]
    Unavailable(String),
    /// The log takes no more now.
    #[error("the server is busy; try again")]
    Busy,
    /// The log is closed to writes.
    #[error("the log is closed to writes: {0}")]
    Closed(String),
    /// It is in the log and not known to be durable yet.
    #[error(transparent)]
    Unconfirmed(#[from] Unconfirmed),
    /// Our mistake or a damaged store.
    #[error("{0}")]
    Internal(String),
}

/// A blob that was taken.
#[derive(Clone, Debug)]
pub struct Uploaded {
    /// Its CID.
    pub cid: Cid,
    /// Its media type, as it will be served.
    pub mime: String,
    /// Its size in bytes.
    pub size: u64,
}

/// A blob to serve.
pub struct Opened {
    /// Its media type.
    pub mime: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its bytes.
    pub stream: engine::blobs::BlobStream,
}

/// Hashes what came where it came, without a change of threads, and lets others run after each piece.
async fn hash(hasher: &mut CidHasher, bytes: &[u8]) {
    for piece in bytes.chunks(HASH_BYTES) {
        hasher.update(piece);
        if piece.len() == HASH_BYTES {
            tokio::task::yield_now().await;
        }
    }
}

/// The blobs of this server; cheap to clone.
#[derive(Clone)]
pub struct Blobs {
    engine: Core,
    repos: Repos,
    store: Arc<dyn BlobStore>,
    limit: u64,
    /// Held together by those who put bytes in place until the log says whose they are, and alone by who deletes bytes of which
    /// the log says nothing.
    placing: Arc<RwLock<()>>,
}

impl Blobs {
    /// Blobs in `store`, of at most `limit` bytes each.
    #[must_use]
    pub fn new(engine: Core, repos: Repos, store: Arc<dyn BlobStore>, limit: u64) -> Blobs {
        Blobs {
            engine,
            repos,
            store,
            limit,
            placing: Arc::default(),
        }
    }

    /// Takes a blob. It stays temporary until a record references it.
    ///
    /// # Errors
    /// See [`BlobError`]. Bytes of a refused upload do not stay.
    pub async fn upload<E: std::fmt::Display>(
        &self,
        did: &Did,
        declared: &str,
        length: Option<u64>,
        body: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<Uploaded, BlobError> {
        if length.is_some_and(|length| length > self.limit) {
            return Err(BlobError::TooLarge);
        }
        if declared.len() > MIME_MAX {
            return Err(BlobError::Invalid("The Content-Type is too long".to_owned()));
        }
        let mut upload = self.store.begin(did, self.limit).await?;
        let mut hasher = CidHasher::new(Codec::Raw);
        let mut head = Vec::new();
        let mut size: u64 = 0;
        let mut body = std::pin::pin!(body);
        let deadline = Instant::now() + UPLOAD_TOTAL;
        loop {
            let until = deadline.min(Instant::now() + UPLOAD_STALL);
            let chunk = match tokio::time::timeout_at(until, body.next()).await {
                Err(_) => return Err(BlobError::Broken("the bytes do not come in time".to_owned())),
                Ok(None) => break,
                Ok(Some(Err(error))) => return Err(BlobError::Broken(error.to_string())),
                Ok(Some(Ok(chunk))) => chunk,
            };
            size += chunk.len() as u64;
            if size > self.limit {
                return Err(BlobError::TooLarge);
            }
            if head.len() < SNIFF_BYTES {
                head.extend_from_slice(chunk.get(..SNIFF_BYTES - head.len()).unwrap_or(&chunk));
            }
            hash(&mut hasher, &chunk).await;
            upload.write(chunk).await?;
        }
        if length.is_some_and(|length| length != size) {
            return Err(BlobError::Broken(format!(
                "{size} bytes came of the {} announced",
                length.unwrap_or_default()
            )));
        }
        if size == 0 {
            return Err(BlobError::Invalid(
                "A request body is expected but none was provided".to_owned(),
            ));
        }
        let cid = hasher.finish();
        let mime = infer::get(&head).map_or_else(|| declared.to_owned(), |kind| kind.mime_type().to_owned());
        let (blobs, did) = (self.clone(), did.clone());
        // A task of its own: a client that goes away now must not leave bytes without the entry that owns them.
        let keeping = tokio::spawn(async move { blobs.keep(did, cid, mime, size, upload).await });
        keeping
            .await
            .map_err(|error| BlobError::Internal(error.to_string()))?
    }

    /// Puts a whole upload in its place and logs whose it is.
    async fn keep(
        &self,
        did: Did,
        cid: Cid,
        mime: String,
        size: u64,
        upload: Box<dyn BlobUpload>,
    ) -> Result<Uploaded, BlobError> {
        let kept = {
            let _placing = self.placing.read().await;
            self.place(&did, cid, mime, size, upload).await
        };
        if matches!(kept, Err(BlobError::RepoNotFound(_)))
            && let Err(error) = self.discard(&did, &[cid]).await
        {
            tracing::warn!(%did, %cid, %error, "an upload to a repo that was removed meanwhile is left in the blob store");
        }
        kept
    }

    async fn place(
        &self,
        did: &Did,
        cid: Cid,
        mime: String,
        size: u64,
        upload: Box<dyn BlobUpload>,
    ) -> Result<Uploaded, BlobError> {
        upload.finish(&cid).await?;
        // The bytes are in place before the entry that owns them: a crash in between leaves an orphan, never a
        // reference to nothing.
        if let Some(row) = self.row(did, &cid)? {
            let mime = row.mime;
            return Ok(Uploaded { cid, mime, size });
        }
        let change = Change::BlobStored {
            did: did.clone(),
            cid,
            mime: mime.clone(),
            size,
            created_at_micros: self.engine.now_micros(),
        };
        let deadline = Instant::now() + LOG_WAIT;
        // The bytes cannot be taken back if the log is full: another upload of the same content may own them by now.
        let receipt = loop {
            let draft = EntryDraft::private(vec![change.clone()]);
            match self.repos.append_for(did, draft) {
                Ok(receipt) => break receipt,
                Err(WriteError::Busy) if Instant::now() < deadline => {
                    tokio::time::sleep(LOG_WAIT / 50).await;
                }
                Err(error) => return Err(error.into()),
            }
        };
        let durable = self.engine.in_time(receipt.durable()).await?;
        durable.map_err(|error| BlobError::Closed(error.to_string()))?;
        metrics::counter!("pds_blob_upload_bytes_total").increment(size);
        Ok(Uploaded { cid, mime, size })
    }

    /// Deletes the bytes of blobs of `did` of which the log says nothing: all of them once its repo is removed. If the DID has
    /// another repo by now, that one's blobs stay. How many went.
    ///
    /// # Errors
    /// [`BlobError`]; what was not deleted yet is still there, and it may be done again.
    pub async fn erase(&self, did: &Did) -> Result<u64, BlobError> {
        let (mut gone, mut after) = (0, None);
        loop {
            let page = self.store.list(did, after.as_ref(), ERASED_AT_A_TIME).await?;
            after = page.last().copied();
            if !page.is_empty() {
                gone += self.discard(did, &page).await?;
            }
            if page.len() < ERASED_AT_A_TIME {
                return Ok(gone);
            }
        }
    }

    /// Deletes those of which the log says nothing.
    async fn discard(&self, did: &Did, cids: &[Cid]) -> Result<u64, BlobError> {
        let alone = tokio::time::timeout(ERASE_WAIT, self.placing.write()).await;
        let _alone = alone.map_err(|_| BlobError::Busy)?;
        // Whatever was handed to the log before this is in the index when this is.
        let receipt = self.engine.append(vec![EntryDraft::marker()]);
        let receipt = receipt.map_err(WriteError::from)?;
        let durable = tokio::time::timeout(ERASE_WAIT, receipt.durable()).await;
        durable
            .map_err(|_| BlobError::Busy)?
            .map_err(|error| BlobError::Closed(error.to_string()))?;
        let mut deletes = Vec::new();
        for cid in cids {
            if self.row(did, cid)?.is_none() {
                deletes.push(self.store.delete(did, cid));
            }
        }
        let gone = deletes.len() as u64;
        let deletes = stream::iter(deletes).buffer_unordered(DELETES_AT_ONCE);
        deletes.try_collect::<Vec<()>>().await?;
        Ok(gone)
    }

    /// Opens a blob that a record references.
    ///
    /// # Errors
    /// [`BlobError::NotFound`] also for uploads that nothing references yet.
    pub async fn open(&self, did: &Did, cid: &Cid) -> Result<Opened, BlobError> {
        let reader = self
            .engine
            .reader()
            .map_err(|error| BlobError::Internal(error.to_string()))?;
        let referenced = reader
            .is_referenced(did, cid)
            .map_err(|error| BlobError::Internal(error.to_string()))?;
        // Of the same snapshot, so that reference and row belong together.
        let row = reader
            .blob(did, cid)
            .map_err(|error| BlobError::Internal(error.to_string()))?
            .filter(|_| referenced)
            .ok_or(BlobError::NotFound)?;
        let blob = self.store.open(did, cid).await.inspect_err(|error| {
            if matches!(error, StoreError::NotFound { .. }) {
                tracing::error!(%did, %cid, "the bytes of a blob that the log knows are not in the blob store");
            }
        })?;
        Ok(Opened {
            mime: row.mime,
            size: blob.size,
            stream: blob.stream,
        })
    }

    /// CIDs that records of `did` reference, ascending, after `cursor`; with `since` only of records newer than that.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn list(
        &self,
        did: &Did,
        since: Option<Tid>,
        cursor: Option<Cid>,
        limit: usize,
    ) -> Result<Vec<Cid>, BlobError> {
        let reader = self
            .engine
            .reader()
            .map_err(|error| BlobError::Internal(error.to_string()))?;
        let found = reader
            .list_blobs(did, since, cursor.as_ref(), limit)
            .map_err(|error| BlobError::Internal(error.to_string()))?;
        Ok(found.into_iter().map(|item| item.cid).collect())
    }

    /// Blobs that records of `did` reference and that are not here, ascending, after `cursor`; each with one of the records.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn missing(
        &self,
        did: &Did,
        cursor: Option<Cid>,
        limit: usize,
    ) -> Result<Vec<MissingBlob>, BlobError> {
        let reader = self
            .engine
            .reader()
            .map_err(|error| BlobError::Internal(error.to_string()))?;
        reader
            .missing_blobs(did, cursor.as_ref(), limit)
            .map_err(|error| BlobError::Internal(error.to_string()))
    }

    fn row(&self, did: &Did, cid: &Cid) -> Result<Option<engine::views::index::BlobRow>, BlobError> {
        let reader = self
            .engine
            .reader()
            .map_err(|error| BlobError::Internal(error.to_string()))?;
        reader
            .blob(did, cid)
            .map_err(|error| BlobError::Internal(error.to_string()))
    }
}

impl From<StoreError> for BlobError {
    fn from(error: StoreError) -> BlobError {
        match error {
            StoreError::NotFound { .. } => BlobError::NotFound,
            StoreError::TooLarge { .. } => BlobError::TooLarge,
            StoreError::Unavailable { .. } => BlobError::Unavailable(error.to_string()),
            other => BlobError::Internal(other.to_string()),
        }
    }
}

impl From<WriteError> for BlobError {
    fn from(error: WriteError) -> BlobError {
        match error {
            WriteError::RepoNotFound(did) => BlobError::RepoNotFound(did),
            WriteError::Busy => BlobError::Busy,
            WriteError::Closed(cause) => BlobError::Closed(cause),
            other => BlobError::Internal(other.to_string()),
        }
    }
}

impl From<BlobError> for XrpcError {
    fn from(error: BlobError) -> XrpcError {
        match error {
            BlobError::TooLarge => XrpcError::new(
                axum::http::StatusCode::PAYLOAD_TOO_LARGE,
                "PayloadTooLarge",
                error.to_string(),
            ),
            BlobError::Broken(_) | BlobError::Invalid(_) | BlobError::NotFound => {
                XrpcError::invalid(error.to_string())
            }
            BlobError::RepoNotFound(_) => XrpcError::bad("RepoNotFound", error.to_string()),
            BlobError::Unavailable(_) => {
                tracing::warn!(%error, "blob store");
                XrpcError::unavailable("The blob store cannot be reached now", 5)
            }
            BlobError::Busy => XrpcError::unavailable(error.to_string(), 1),
            BlobError::Closed(_) | BlobError::Unconfirmed(_) => XrpcError::unavailable(error.to_string(), 5),
            BlobError::Internal(cause) => XrpcError::internal(cause),
        }
    }
}
