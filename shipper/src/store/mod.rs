//! The narrow waist to any remote store: a handful of verbs over named, immutable objects.
//!
//! What holds, for every store behind [`ReplicaStore`], and what the tests in [`contract`] check:
//!
//! - an object is created whole or not at all, never changed, and a name has exactly one winner however many
//!   processes try at once: this is what fencing (one writer per log) stands on;
//! - when `create` has answered, the object survives the loss of the machine that asked, as far as the store can
//!   promise it (the directory store promises what its disk promises);
//! - a listing is in byte order of the names and shows every object whose creation was answered before it began;
//! - nothing in here retries a creation or a swap. A lost answer must reach the caller, who alone can tell its own object
//!   from a rival's ([`StoreError::outcome_unknown`]). Reads may be repeated freely: see [`retry()`];
//! - a name whose object is written by `swap` is written by nothing else, and read by `read_tagged`, since a store may keep
//!   something of its own beside the bytes. Such an object may change, and of all who replace the same state of it at most
//!   one succeeds.
//!
//! Only the files under `azure/` and `s3/` know a cloud.

pub mod azure;
pub mod contract;
pub mod counted;
pub mod delayed;
pub mod directory;
pub mod faulty;
pub mod memory;
mod name;
mod retry;
pub mod s3;
mod swap;
mod transport;
mod url;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use tokio::io::AsyncWriteExt;

use self::counted::Purpose;
pub use self::name::{MAX_NAME_BYTES, NameError, ObjectName};
pub use self::retry::{RetryPolicy, retry};
pub use self::swap::{MAX_SWAP_BYTES, Swap, Tag};
pub use self::url::{ReplicaUrl, ReplicaUrlError};

/// The most objects that one [`ReplicaStore::list`] may ask for.
pub const MAX_LIST: usize = 5_000;

/// The piece in which [`ReplicaStore::get_to_file`] fetches, in bytes.
pub const DOWNLOAD_PIECE_BYTES: u64 = 4 << 20;

/// How many pieces [`ReplicaStore::get_to_file`] has in flight: with [`DOWNLOAD_PIECE_BYTES`] its bound on memory.
pub const DOWNLOAD_PIECES_IN_FLIGHT: usize = 4;

/// What became of a creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// The object is there now, with our bytes, and was not before.
    Created,
    /// An object of that name was there already; its bytes may be ours from an earlier try, or a rival's.
    Exists,
}

/// How an object is kept and charged for. In all of them it is read at once, from the first on for ever less storage and ever more reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// As it is created.
    Hot,
    /// Read seldom, kept for a month at least.
    Cool,
    /// Read hardly ever, kept for three months at least.
    Cold,
}

impl Tier {
    /// The word for it in metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Tier::Hot => "hot",
            Tier::Cool => "cool",
            Tier::Cold => "cold",
        }
    }
}

/// What became of a change of tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TierSet {
    /// The object is in that tier.
    Set,
    /// The store has no tiers that could be set; nothing was done.
    Unsupported,
}

/// An object as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Its whole name below the store's root.
    pub name: ObjectName,
    /// Its size in bytes.
    pub size: u64,
}

/// A place for immutable objects, and for a small mutable one: a directory, a container in the cloud, a map in memory.
///
/// Every call is one logical request and is bounded in time. Dropping the future abandons the request, whose outcome is
/// then unknown.
#[async_trait]
pub trait ReplicaStore: Send + Sync + 'static {
    /// Creates `name` with `bytes` unless it exists. Tries exactly once and never overwrites.
    ///
    /// # Errors
    /// After an error with [`StoreError::outcome_unknown`] the object may or may not exist, now or soon.
    async fn create(&self, name: &ObjectName, bytes: Bytes) -> Result<Created, StoreError>;

    /// Creates `name` with the content of the file at `path` unless it exists; memory stays bounded whatever the size.
    /// The file must not change meanwhile. Preparations (staged blocks) may be repeated, the creation itself is tried once.
    ///
    /// # Errors
    /// As [`ReplicaStore::create`], and [`StoreError::Invalid`] if the file cannot be read.
    async fn create_from_file(&self, name: &ObjectName, path: &Path) -> Result<Created, StoreError>;

    /// The whole object, which must not be larger than `max_bytes`.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::TooLarge`], or the store cannot be read.
    async fn get(&self, name: &ObjectName, max_bytes: u64) -> Result<Bytes, StoreError>;

    /// Exactly the bytes of `range`.
    ///
    /// # Errors
    /// [`StoreError::OutOfRange`] if the object ends before the range does; [`StoreError::NotFound`]; or the store
    /// cannot be read. An empty range yields no bytes without asking the store.
    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError>;

    /// The object's size in bytes, or `None` if there is no such object.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn size(&self, name: &ObjectName) -> Result<Option<u64>, StoreError>;

    /// The first `limit` objects, by byte order of their names, whose name starts with `prefix` and is greater than
    /// `after`. Fewer than `limit` means that there are no more. An empty prefix lists everything.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] if `limit` is 0 or above [`MAX_LIST`]; or the store cannot be read.
    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError>;

    /// The whole object, written by [`ReplicaStore::swap`], which must not be larger than `max_bytes`, and the tag of the state
    /// it is in; `None` if there is no such object.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`], or the store cannot be read.
    async fn read_tagged(
        &self,
        name: &ObjectName,
        max_bytes: u64,
    ) -> Result<Option<(Bytes, Tag)>, StoreError>;

    /// Gives `name` the content `bytes` (1 to [`MAX_SWAP_BYTES`]) if it is still in the state `expected`, or, without one, if
    /// there is no such object. Tries exactly once. Where a rival has just been at it, a store may answer
    /// [`Swap::Conflict`] although the state is as expected; it never answers [`Swap::Swapped`] for any other state.
    ///
    /// # Errors
    /// After an error with [`StoreError::outcome_unknown`] the object may or may not have been replaced, now or soon, and
    /// somebody else may have replaced it since. Who must know reads it again, and recognises its own bytes only if there is
    /// something in them that nobody else writes. [`StoreError::Invalid`] if the size is not allowed.
    async fn swap(&self, name: &ObjectName, bytes: Bytes, expected: Option<&Tag>)
    -> Result<Swap, StoreError>;

    /// Removes the object; success if there is none.
    ///
    /// # Errors
    /// The store cannot be written.
    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError>;

    /// Keeps the object in `tier` from now on. Its bytes and the ways to read them stay the same. May be repeated freely.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or the store cannot be written.
    async fn set_tier(&self, _name: &ObjectName, _tier: Tier) -> Result<TierSet, StoreError> {
        Ok(TierSet::Unsupported)
    }

    /// Removes what crashed writers have left that is no object, if it was written to last before `before`.
    ///
    /// # Errors
    /// The store cannot be written.
    async fn tidy(&self, _before: SystemTime) -> Result<(), StoreError> {
        Ok(())
    }

    /// Makes sure that the store keeps its promises, as far as that depends on who runs it. To be asked before a log is begun or
    /// taken over; writes and removes a small object at most.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] if it does not keep them; or it cannot be read or written.
    async fn prove(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Where this is, for logs and error messages; without secrets.
    fn describe(&self) -> String;

    /// Whether it tells each billed request itself, see [`counted`].
    fn reports_requests(&self) -> bool {
        false
    }

    /// This store, counting what it is asked as made for `purpose`; `None` if nothing is counted. See [`for_purpose`].
    fn for_purpose(&self, _purpose: Purpose) -> Option<Arc<dyn ReplicaStore>> {
        None
    }

    /// Writes the object to a file at `path`, replacing it, and syncs the file; yields the size in bytes. Fetches by
    /// ranges, several at once, and repeats a range that fails, so that a broken connection costs one range.
    /// After an error the file holds a part and is of no use.
    ///
    /// # Errors
    /// As [`ReplicaStore::get_range`], and [`StoreError::Invalid`] if the file cannot be written.
    async fn get_to_file(&self, name: &ObjectName, path: &Path) -> Result<u64, StoreError> {
        download(self, name, path).await
    }

    /// How many pieces of [`DOWNLOAD_PIECE_BYTES`] are fetched at a time of an object that is fetched whole.
    fn pieces_in_flight(&self) -> usize {
        DOWNLOAD_PIECES_IN_FLIGHT
    }
}

/// A handle on the same store whose requests count as made for `purpose`, where requests are counted.
#[must_use]
pub fn for_purpose(store: &Arc<dyn ReplicaStore>, purpose: Purpose) -> Arc<dyn ReplicaStore> {
    store.for_purpose(purpose).unwrap_or_else(|| store.clone())
}

async fn download<S: ReplicaStore + ?Sized>(
    store: &S,
    name: &ObjectName,
    path: &Path,
) -> Result<u64, StoreError> {
    let policy = RetryPolicy::default();
    let size = retry(&policy, || store.size(name)).await?;
    let size = size.ok_or_else(|| StoreError::NotFound {
        object: name.to_string(),
    })?;
    let mut file = tokio::fs::File::create(path)
        .await
        .map_err(|error| local_file(path, &error))?;
    let mut pieces = std::pin::pin!(pieces(store, name, size, &policy));
    while let Some(bytes) = pieces.try_next().await? {
        file.write_all(&bytes)
            .await
            .map_err(|error| local_file(path, &error))?;
    }
    file.flush().await.map_err(|error| local_file(path, &error))?;
    file.sync_all().await.map_err(|error| local_file(path, &error))?;
    Ok(size)
}

/// The first `size` bytes of an object in order, fetched by ranges, several at a time. A range that fails is asked for again.
pub(crate) fn pieces<'a, S: ReplicaStore + ?Sized>(
    store: &'a S,
    name: &'a ObjectName,
    size: u64,
    policy: &'a RetryPolicy,
) -> impl Stream<Item = Result<Bytes, StoreError>> + 'a {
    let pieces = (0..size.div_ceil(DOWNLOAD_PIECE_BYTES)).map(move |piece| {
        let start = piece * DOWNLOAD_PIECE_BYTES;
        let range = start..size.min(start + DOWNLOAD_PIECE_BYTES);
        async move { retry(policy, || store.get_range(name, range.clone())).await }
    });
    futures_util::stream::iter(pieces).buffered(store.pieces_in_flight())
}

/// A file on our side that cannot be read or written.
pub(crate) fn local_file(path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Invalid {
        detail: format!("file {}: {error}", path.display()),
    }
}

/// Every object whose name starts with `prefix`, page by page, each page with the default retries.
///
/// # Errors
/// [`StoreError::TooLarge`] if there are more than `max_objects`; or the store cannot be read.
pub async fn list_all(
    store: &dyn ReplicaStore,
    prefix: &str,
    max_objects: usize,
) -> Result<Vec<ObjectMeta>, StoreError> {
    let policy = RetryPolicy::default();
    let mut all: Vec<ObjectMeta> = Vec::new();
    loop {
        let after = all.last().map(|last| last.name.as_str().to_owned());
        let page = retry(&policy, || store.list(prefix, after.as_deref(), MAX_LIST)).await?;
        let last = page.len() < MAX_LIST;
        all.extend(page);
        if all.len() > max_objects {
            return Err(StoreError::TooLarge {
                object: format!("the listing of {prefix:?}"),
                size: all.len() as u64,
                max: max_objects as u64,
            });
        }
        if last {
            return Ok(all);
        }
    }
}

#[async_trait]
impl<S: ReplicaStore + ?Sized> ReplicaStore for Arc<S> {
    async fn create(&self, name: &ObjectName, bytes: Bytes) -> Result<Created, StoreError> {
        (**self).create(name, bytes).await
    }

    async fn create_from_file(&self, name: &ObjectName, path: &Path) -> Result<Created, StoreError> {
        (**self).create_from_file(name, path).await
    }

    async fn get(&self, name: &ObjectName, max_bytes: u64) -> Result<Bytes, StoreError> {
        (**self).get(name, max_bytes).await
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        (**self).get_range(name, range).await
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>, StoreError> {
        (**self).size(name).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError> {
        (**self).list(prefix, after, limit).await
    }

    async fn read_tagged(
        &self,
        name: &ObjectName,
        max_bytes: u64,
    ) -> Result<Option<(Bytes, Tag)>, StoreError> {
        (**self).read_tagged(name, max_bytes).await
    }

    async fn swap(
        &self,
        name: &ObjectName,
        bytes: Bytes,
        expected: Option<&Tag>,
    ) -> Result<Swap, StoreError> {
        (**self).swap(name, bytes, expected).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        (**self).delete(name).await
    }

    async fn set_tier(&self, name: &ObjectName, tier: Tier) -> Result<TierSet, StoreError> {
        (**self).set_tier(name, tier).await
    }

    async fn tidy(&self, before: SystemTime) -> Result<(), StoreError> {
        (**self).tidy(before).await
    }

    async fn prove(&self) -> Result<(), StoreError> {
        (**self).prove().await
    }

    fn describe(&self) -> String {
        (**self).describe()
    }

    fn reports_requests(&self) -> bool {
        (**self).reports_requests()
    }

    fn for_purpose(&self, purpose: Purpose) -> Option<Arc<dyn ReplicaStore>> {
        (**self).for_purpose(purpose)
    }

    async fn get_to_file(&self, name: &ObjectName, path: &Path) -> Result<u64, StoreError> {
        (**self).get_to_file(name, path).await
    }

    fn pieces_in_flight(&self) -> usize {
        (**self).pieces_in_flight()
    }
}

/// Why a store did not do as asked, told by what can be done about it. Holds no secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// There is no such object (or no such container).
    #[error("{object} does not exist")]
    NotFound {
        /// The object, or the container if that is what is missing.
        object: String,
    },
    /// The store knows us not, or not as one who may do this. An operator must change a setting; asking again is futile.
    #[error("access to {object} was denied: {detail}")]
    Denied {
        /// What we tried to reach.
        object: String,
        /// The store's own words, and what to check.
        detail: String,
    },
    /// The store refused for now because it is asked too much; nothing was done.
    #[error("the store is asked too much ({detail})")]
    Throttled {
        /// How long to stay away, if it said so.
        retry_after: Option<Duration>,
        /// The store's own words.
        detail: String,
    },
    /// The store could not be reached, or failed by its own account.
    #[error("the store is unavailable ({detail})")]
    Unavailable {
        /// What went wrong.
        detail: String,
        /// The request had (perhaps) been sent, so that it may have been executed.
        sent: bool,
    },
    /// No answer within the time allowed; the request may have been executed, or may yet be.
    #[error("no answer from the store within {after:?}")]
    Timeout {
        /// The time allowed.
        after: Duration,
    },
    /// A condition of the request did not hold, for instance because the object is locked by a policy.
    #[error("{object}: a condition did not hold ({detail})")]
    Precondition {
        /// The object.
        object: String,
        /// The store's own words.
        detail: String,
    },
    /// More than the caller is ready to take, or than the store is.
    #[error("{object} is too large: {size} where at most {max} are taken")]
    TooLarge {
        /// The object.
        object: String,
        /// Its size, in bytes (for a listing: in objects).
        size: u64,
        /// The bound, likewise.
        max: u64,
    },
    /// A range that reaches beyond the end of the object.
    #[error("{object} has no bytes {start}..{end}")]
    OutOfRange {
        /// The object.
        object: String,
        /// First byte asked for.
        start: u64,
        /// One past the last byte asked for.
        end: u64,
    },
    /// The request makes no sense, here or to the store: a mistake in our code or in the settings.
    #[error("invalid request: {detail}")]
    Invalid {
        /// What is wrong with it.
        detail: String,
    },
    /// Anything else.
    #[error("the store failed: {detail}")]
    Other {
        /// What went wrong.
        detail: String,
        /// The request may have been executed.
        sent: bool,
    },
}

impl StoreError {
    /// Whether the same request may well succeed later without anybody changing anything. For a creation it says only
    /// that trying again is not futile, and the next answer may then be [`Created::Exists`] for our own object.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            StoreError::Throttled { .. } | StoreError::Unavailable { .. } | StoreError::Timeout { .. } => {
                true
            }
            StoreError::NotFound { .. }
            | StoreError::Denied { .. }
            | StoreError::Precondition { .. }
            | StoreError::TooLarge { .. }
            | StoreError::OutOfRange { .. }
            | StoreError::Invalid { .. }
            | StoreError::Other { .. } => false,
        }
    }

    /// Whether the request may have been executed all the same, now or a little later.
    #[must_use]
    pub fn outcome_unknown(&self) -> bool {
        match self {
            StoreError::Timeout { .. } => true,
            StoreError::Unavailable { sent, .. } | StoreError::Other { sent, .. } => *sent,
            StoreError::NotFound { .. }
            | StoreError::Denied { .. }
            | StoreError::Throttled { .. }
            | StoreError::Precondition { .. }
            | StoreError::TooLarge { .. }
            | StoreError::OutOfRange { .. }
            | StoreError::Invalid { .. } => false,
        }
    }
}

/// Checks what every store requires of a listing's limit.
pub(crate) fn check_limit(limit: usize) -> Result<(), StoreError> {
    if limit == 0 || limit > MAX_LIST {
        return Err(StoreError::Invalid {
            detail: format!("a listing of {limit} objects, 1 to {MAX_LIST} allowed"),
        });
    }
    Ok(())
}

/// Checks that the object of `size` bytes is within what the caller takes.
pub(crate) fn check_size(object: &ObjectName, size: u64, max: u64) -> Result<(), StoreError> {
    if size > max {
        return Err(StoreError::TooLarge {
            object: object.to_string(),
            size,
            max,
        });
    }
    Ok(())
}

/// The bytes of `range` in `whole`.
pub(crate) fn slice(object: &ObjectName, whole: &Bytes, range: Range<u64>) -> Result<Bytes, StoreError> {
    let beyond = || out_of_range(object, &range);
    let start = usize::try_from(range.start).map_err(|_| beyond())?;
    let end = usize::try_from(range.end).map_err(|_| beyond())?;
    if start > end || end > whole.len() {
        return Err(beyond());
    }
    Ok(whole.slice(start..end))
}

pub(crate) fn out_of_range(object: &ObjectName, range: &Range<u64>) -> StoreError {
    StoreError::OutOfRange {
        object: object.to_string(),
        start: range.start,
        end: range.end,
    }
}
