//! Media: the bytes that records refer to, kept per account and named by their content.
//!
//! What holds for every [`BlobStore`], and what [`contract`] checks:
//!
//! - a blob is there whole or not at all; while it is uploaded nobody sees it;
//! - when [`BlobUpload::finish`] has answered, the bytes are durable, so a log entry may name them. A crash in between
//!   leaves bytes that nothing refers to, never a reference to missing bytes;
//! - finishing twice, or two uploads of the same content, end in one blob;
//! - bytes flow in both directions in pieces; no store holds a whole blob in memory.
//!
//! Whether a blob is temporary or referenced is a matter of the index, not of its place.

pub mod contract;
pub mod disk;

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::stream::BoxStream;

use crate::repo::{Cid, Did};

/// The bytes of a blob, in order, in pieces of at most [`PIECE_BYTES`]. Ends early only with an error.
pub type BlobStream = BoxStream<'static, Result<Bytes, BlobError>>;

/// The most bytes that come in one piece of a [`BlobStream`].
pub const PIECE_BYTES: u64 = 4 << 20;

/// A place for media.
#[async_trait]
pub trait BlobStore: Send + Sync + 'static {
    /// Begins an upload for `did` of at most `max_bytes` bytes. The caller hashes what it writes.
    ///
    /// # Errors
    /// The store cannot be written.
    async fn begin(&self, did: &Did, max_bytes: u64) -> Result<Box<dyn BlobUpload>, BlobError>;

    /// Opens a whole blob. Pieces are fetched as they are read.
    ///
    /// # Errors
    /// [`BlobError::NotFound`], or the store cannot be read; later errors come through the stream.
    async fn open(&self, did: &Did, cid: &Cid) -> Result<BlobReader, BlobError>;

    /// Opens exactly the bytes of `range`.
    ///
    /// # Errors
    /// [`BlobError::OutOfRange`] if the blob ends before the range does; otherwise as [`BlobStore::open`].
    async fn open_range(&self, did: &Did, cid: &Cid, range: Range<u64>) -> Result<BlobReader, BlobError>;

    /// The blob's size in bytes, or `None` if it is not there.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn size(&self, did: &Did, cid: &Cid) -> Result<Option<u64>, BlobError>;

    /// Whether the blob is there.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn exists(&self, did: &Did, cid: &Cid) -> Result<bool, BlobError> {
        Ok(self.size(did, cid).await?.is_some())
    }

    /// Removes the blob; success if there is none.
    ///
    /// # Errors
    /// The store cannot be written.
    async fn delete(&self, did: &Did, cid: &Cid) -> Result<(), BlobError>;

    /// The blobs of `did` after `after` in the order of their CIDs' text, at most `limit`; fewer mean that there are no more.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn list(&self, did: &Did, after: Option<&Cid>, limit: usize) -> Result<Vec<Cid>, BlobError>;

    /// Where this is, for logs and error messages; without secrets.
    fn describe(&self) -> String;
}

/// An upload under way. Dropping it abandons it.
#[async_trait]
pub trait BlobUpload: Send {
    /// Appends `bytes`.
    ///
    /// # Errors
    /// [`BlobError::TooLarge`] beyond the bound that was given; or the store cannot be written. The upload is of no use
    /// afterwards.
    async fn write(&mut self, bytes: Bytes) -> Result<(), BlobError>;

    /// Bytes written so far.
    fn written(&self) -> u64;

    /// Makes what was written the blob `cid`, durably. The caller vouches that this is its name. Gives its size in bytes.
    ///
    /// # Errors
    /// The store cannot be written; the blob may be there all the same.
    async fn finish(self: Box<Self>, cid: &Cid) -> Result<u64, BlobError>;
}

/// An open blob.
pub struct BlobReader {
    /// The whole blob's size in bytes, whatever part of it the stream holds.
    pub size: u64,
    /// The bytes asked for.
    pub stream: BlobStream,
}

impl BlobReader {
    /// Everything that is left, if it is at most `max_bytes` bytes. For small blobs and tests.
    ///
    /// # Errors
    /// [`BlobError::TooLarge`], or what the stream says.
    pub async fn read_all(mut self, max_bytes: u64) -> Result<Bytes, BlobError> {
        let mut all = Vec::new();
        while let Some(piece) = self.stream.try_next().await? {
            if all.len() as u64 + piece.len() as u64 > max_bytes {
                return Err(BlobError::TooLarge { max: max_bytes });
            }
            all.extend_from_slice(&piece);
        }
        Ok(all.into())
    }
}

impl std::fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobReader")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// Why a blob store did not do as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// There is no such blob.
    #[error("{did} has no blob {cid}")]
    NotFound {
        /// Whose.
        did: Did,
        /// Which.
        cid: Cid,
    },
    /// The blob is larger than allowed.
    #[error("the blob is larger than {max} bytes")]
    TooLarge {
        /// The bound in bytes.
        max: u64,
    },
    /// The blob ends before the range does.
    #[error("the blob has no bytes {start}..{end}")]
    OutOfRange {
        /// First byte asked for.
        start: u64,
        /// One past the last byte asked for.
        end: u64,
    },
    /// The store cannot be reached, or has no room, just now.
    #[error("the blob store is unavailable: {detail}")]
    Unavailable {
        /// What went wrong.
        detail: String,
    },
    /// The store does not work, and will not until somebody mends it.
    #[error("the blob store failed: {detail}")]
    Failed {
        /// What went wrong.
        detail: String,
    },
}

/// Checks and counts what is written to an upload.
#[derive(Debug)]
pub struct UploadMeter {
    written: u64,
    max: u64,
}

impl UploadMeter {
    /// Allows `max` bytes.
    #[must_use]
    pub fn new(max: u64) -> UploadMeter {
        UploadMeter { written: 0, max }
    }

    /// Counts `length` bytes more.
    ///
    /// # Errors
    /// [`BlobError::TooLarge`] if that is too many, and then they are not counted.
    pub fn count(&mut self, length: usize) -> Result<(), BlobError> {
        let written = self.written.saturating_add(length as u64);
        if written > self.max {
            return Err(BlobError::TooLarge { max: self.max });
        }
        self.written = written;
        Ok(())
    }

    /// Bytes counted so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }
}
