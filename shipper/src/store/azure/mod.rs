//! A store in a container of Azure Blob Storage, through the official client and our own transport.
//!
//! What holds: a creation is a single request with `If-None-Match: *`, a swap one with that or with `If-Match`, never
//! repeated here, and the client's own retries are off. Large objects are staged in blocks, which are invisible until one conditional request commits them; what a
//! crash leaves staged, the service drops after a week. Every request has a time limit. No message, log line or `Debug`
//! holds a key, a signature or a token.

#[cfg(test)]
mod azurite_tests;
mod config;
mod error;
#[cfg(test)]
mod identity_tests;
mod shared_key;

use std::fs::File;
use std::num::NonZero;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use azure_core::credentials::TokenCredential;
use azure_core::http::headers::{HeaderName, Headers};
use azure_core::http::{
    ClientOptions, Etag, NoFormat, RequestContent, RetryOptions, StatusCode, Transport, Url,
};
use azure_identity::{
    ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId, WorkloadIdentityCredential,
};
use azure_storage_blob::models::{
    AccessTier, BlobClientDownloadOptions, BlobClientGetPropertiesResultHeaders,
    BlobContainerClientListBlobsOptions, BlockBlobClientCommitBlockListOptions, BlockBlobClientUploadOptions,
    BlockLookupList,
};
use azure_storage_blob::{BlobClient, BlobContainerClient, BlobContainerClientOptions};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt};

pub use self::config::{AzureAuth, AzureConfig, Secret};
use self::error::{classify, code};
use super::counted::{Class, sending};
use super::swap::{check_swap, no_tag};
use super::transport::{self, SILENCE_TIMEOUT};
use super::{
    Created, ObjectMeta, ObjectName, ReplicaStore, RetryPolicy, StoreError, Swap, Tag, Tier, TierSet,
    check_limit, check_size, local_file, out_of_range, retry,
};

/// The time for all tries of one staged block.
const BLOCK_DEADLINE: Duration = Duration::from_secs(300);

/// The least size of a staged block, in bytes; files up to it go up in one request.
const BLOCK_BYTES: u64 = 4 << 20;

/// The most blocks in one object, set by the service.
const MAX_BLOCKS: u64 = 50_000;

/// Staged blocks in flight: with [`BLOCK_BYTES`] the bound on an upload's memory.
const BLOCKS_IN_FLIGHT: usize = 4;

/// The most that one request can download, in bytes; bounds what a caller of `get` may allow.
const MAX_GET_BYTES: u64 = 1 << 32;

/// Objects in a container of Azure Blob Storage.
pub struct AzureStore {
    container: BlobContainerClient,
    /// The container's URL without a signature.
    url: Url,
    container_name: String,
    /// What all names start with: nothing, or segments and a slash.
    start: String,
    request_timeout: Duration,
    /// Whether the service's version knows where to start a listing.
    starts_listings: bool,
}

impl AzureStore {
    /// Prepares the client; asks the service nothing yet.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] if the settings cannot work, among them a token over plain http.
    pub fn new(config: &AzureConfig) -> Result<AzureStore, StoreError> {
        let url = config.container_url()?;
        let start = config.name_start()?;
        let options = client_options(&url)?;
        let invalid = |error: azure_core::Error| StoreError::Invalid {
            detail: format!("the credentials cannot be used: {error}"),
        };
        let mut signed_url = url.clone();
        let mut client_options = options.clone();
        let mut credential: Option<Arc<dyn TokenCredential>> = None;
        match &config.auth {
            AzureAuth::ManagedIdentity { client_id } => {
                let identity = ManagedIdentityCredentialOptions {
                    user_assigned_id: client_id.clone().map(UserAssignedId::ClientId),
                    client_options: ClientOptions {
                        retry: RetryOptions::default(),
                        ..options
                    },
                };
                credential = Some(ManagedIdentityCredential::new(Some(identity)).map_err(invalid)?);
            }
            AzureAuth::WorkloadIdentity => {
                credential = Some(WorkloadIdentityCredential::new(None).map_err(invalid)?);
            }
            AzureAuth::Sas(signature) => {
                signed_url.set_query(Some(signature.secret().trim_start_matches('?')));
            }
            AzureAuth::SharedKey { account, key } => {
                let policy = shared_key::SharedKey {
                    account: account.clone(),
                    key: key.clone(),
                };
                client_options.per_try_policies.push(Arc::new(policy));
            }
        }
        let mut options = BlobContainerClientOptions {
            client_options,
            ..Default::default()
        };
        if let Some(version) = &config.api_version {
            options.version.clone_from(version);
        }
        let container = BlobContainerClient::new(signed_url, credential, Some(options)).map_err(invalid)?;
        Ok(AzureStore {
            container,
            url,
            container_name: config.container.clone(),
            start,
            request_timeout: config.request_timeout,
            starts_listings: config.api_version.is_none(),
        })
    }

    /// Makes the container, private, unless it exists.
    ///
    /// # Errors
    /// The service cannot be reached, or does not allow it: an identity that may only use the container need not ask.
    pub async fn ensure_container(&self) -> Result<Created, StoreError> {
        let answer = self.billed(Class::List, 0, self.container.create(None)).await?;
        match answer {
            Ok(_) => Ok(Created::Created),
            Err(error) if code(&error) == Some("ContainerAlreadyExists") => Ok(Created::Exists),
            Err(error) => Err(classify(&error, &self.container_name, &self.container_name)),
        }
    }

    fn blob(&self, name: &ObjectName) -> BlobClient {
        self.container.blob_client(&format!("{}{name}", self.start))
    }

    /// Waits for `request`, which moves `bytes` bytes, as long as that may take.
    async fn within<T>(&self, bytes: u64, request: impl Future<Output = T>) -> Result<T, StoreError> {
        let after = self.request_timeout + transport::time_for(bytes);
        tokio::time::timeout(after, request)
            .await
            .map_err(|_| StoreError::Timeout { after })
    }

    /// As [`AzureStore::within`], and counts the request, which carries `up` bytes of an object.
    async fn billed<T>(
        &self,
        class: Class,
        up: u64,
        request: impl Future<Output = azure_core::Result<T>>,
    ) -> Result<azure_core::Result<T>, StoreError> {
        let sending = sending(class, up);
        let answer = self.within(up, request).await?;
        if let Err(error) = &answer {
            sending.failed(&classify(error, &self.container_name, &self.container_name));
        }
        Ok(answer)
    }

    fn failure(&self, error: &azure_core::Error, name: &ObjectName) -> StoreError {
        classify(error, name.as_str(), &self.container_name)
    }

    /// The outcome of a conditional creation that was answered with `error`.
    fn refused(&self, error: &azure_core::Error, name: &ObjectName) -> Result<Created, StoreError> {
        match code(error) {
            Some("BlobAlreadyExists" | "ConditionNotMet" | "TargetConditionNotMet") => Ok(Created::Exists),
            _ => Err(self.failure(error, name)),
        }
    }

    /// One request for `range` of the object, or without one for its first `max_bytes`; gives the bytes, the object's
    /// whole size and its tag. Fewer bytes than that come only if the object has no more.
    async fn fetch(
        &self,
        name: &ObjectName,
        range: Option<Range<u64>>,
        max_bytes: u64,
    ) -> Result<Fetched, StoreError> {
        let start = range.as_ref().map_or(0, |range| range.start);
        let options = BlobClientDownloadOptions {
            // Without a range the client copes with an empty object, and still asks for one piece at first.
            range: range.clone().map(Into::into),
            partition_size: usize::try_from(max_bytes)
                .ok()
                .and_then(NonZero::new)
                .or(NonZero::new(1)),
            parallel: NonZero::new(1),
            ..Default::default()
        };
        let client = self.blob(name);
        let request = async {
            let mut sending = sending(Class::Read, 0);
            let answer = match self.within(0, client.download(Some(options))).await? {
                Ok(answer) => answer,
                Err(error) => {
                    let failure = match (&range, error.http_status()) {
                        (Some(range), Some(StatusCode::RequestedRangeNotSatisfiable)) => {
                            out_of_range(name, range)
                        }
                        _ => self.failure(&error, name),
                    };
                    sending.failed(&failure);
                    return Err(failure);
                }
            };
            let size = total_size(&answer.headers).ok_or_else(|| StoreError::Other {
                detail: format!("{name}: the answer does not tell its size"),
                sent: true,
            })?;
            let etag = answer.properties.etag;
            if range.is_none() && size > max_bytes {
                let bytes = Bytes::new();
                return Ok(Fetched { bytes, size, etag });
            }
            let expected = size.saturating_sub(start).min(max_bytes);
            let mut bytes = BytesMut::with_capacity(usize::try_from(expected).unwrap_or_default());
            let mut body = answer.body;
            loop {
                let part = tokio::time::timeout(SILENCE_TIMEOUT, body.try_next()).await;
                let part = part.map_err(|_| StoreError::Timeout {
                    after: SILENCE_TIMEOUT,
                })?;
                let Some(part) = part.map_err(|error| self.failure(&error, name))? else {
                    break;
                };
                sending.received(part.len() as u64);
                bytes.extend_from_slice(&part);
                if bytes.len() as u64 > expected {
                    break;
                }
            }
            if bytes.len() as u64 != expected {
                let detail = format!(
                    "{name}: {} bytes came where {expected} were announced",
                    bytes.len()
                );
                return Err(StoreError::Unavailable { detail, sent: true });
            }
            let bytes = bytes.freeze();
            Ok(Fetched { bytes, size, etag })
        };
        // Boxed, as the client's futures are large.
        self.within(max_bytes, Box::pin(request)).await?
    }

    /// Stages the file's blocks under `name`, invisibly, and gives their ids in order.
    async fn stage(
        &self,
        name: &ObjectName,
        file: Arc<File>,
        path: &Path,
        size: u64,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let block_bytes = BLOCK_BYTES.max(size.div_ceil(MAX_BLOCKS));
        // Blocks of a rival's upload to the same name must not pass for ours.
        let mut upload = [0; 8];
        getrandom::fill(&mut upload).map_err(|error| StoreError::Other {
            detail: format!("no randomness: {error}"),
            sent: false,
        })?;
        let policy = RetryPolicy::within(BLOCK_DEADLINE);
        let client = self.blob(name).block_blob_client();
        let blocks = (0..size.div_ceil(block_bytes)).map(|index| {
            let id = [upload, index.to_be_bytes()].concat();
            let start = index * block_bytes;
            let length = block_bytes.min(size - start);
            let (file, client, policy) = (file.clone(), &client, &policy);
            async move {
                let bytes = read_block(file, path, start, length).await?;
                let stage = || async {
                    let content: RequestContent<Bytes, NoFormat> = bytes.clone().into();
                    let request = Box::pin(client.stage_block(&id, length, content, None));
                    self.billed(Class::Write, length, request)
                        .await?
                        .map_err(|error| self.failure(&error, name))
                };
                retry(policy, stage).await?;
                Ok::<_, StoreError>(id)
            }
        });
        futures_util::stream::iter(blocks)
            .buffered(BLOCKS_IN_FLIGHT)
            .try_collect()
            .await
    }
}

#[async_trait]
impl ReplicaStore for AzureStore {
    async fn create(&self, name: &ObjectName, bytes: Bytes) -> Result<Created, StoreError> {
        let size = bytes.len() as u64;
        let options = BlockBlobClientUploadOptions {
            // One piece is one request.
            partition_size: NonZero::new(size.max(1)),
            ..Default::default()
        }
        .if_not_exists();
        let client = self.blob(name);
        let request = Box::pin(client.upload(bytes.into(), Some(options)));
        match self.billed(Class::Write, size, request).await? {
            Ok(_) => Ok(Created::Created),
            Err(error) => self.refused(&error, name),
        }
    }

    async fn create_from_file(&self, name: &ObjectName, path: &Path) -> Result<Created, StoreError> {
        let unreadable = |error| local_file(path, &error);
        let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
        let size = file.metadata().await.map_err(unreadable)?.len();
        let file = Arc::new(file.into_std().await);
        if size <= BLOCK_BYTES {
            return self.create(name, read_block(file, path, 0, size).await?).await;
        }
        // Spares the staging; the commit decides.
        if self.size(name).await?.is_some() {
            return Ok(Created::Exists);
        }
        let blocks = BlockLookupList {
            latest: Some(self.stage(name, file, path, size).await?),
            ..Default::default()
        };
        let blocks = blocks
            .try_into()
            .map_err(|error: azure_core::Error| self.failure(&error, name))?;
        let options = BlockBlobClientCommitBlockListOptions {
            if_none_match: Some("*".into()),
            ..Default::default()
        };
        let client = self.blob(name).block_blob_client();
        let request = Box::pin(client.commit_block_list(blocks, Some(options)));
        match self.billed(Class::Write, 0, request).await? {
            Ok(_) => Ok(Created::Created),
            // Somebody else's commit to this name has dropped our blocks.
            Err(error) if code(&error) == Some("InvalidBlockList") => match self.size(name).await? {
                Some(_) => Ok(Created::Exists),
                None => Err(StoreError::Unavailable {
                    detail: format!("{name}: its blocks are gone"),
                    sent: false,
                }),
            },
            Err(error) => self.refused(&error, name),
        }
    }

    async fn get(&self, name: &ObjectName, max_bytes: u64) -> Result<Bytes, StoreError> {
        let max_bytes = max_bytes.min(MAX_GET_BYTES);
        let fetched = match self.fetch(name, None, max_bytes).await {
            // The emulator describes a part of an empty object in a way that the client does not understand.
            Err(StoreError::Other { .. }) if self.size(name).await? == Some(0) => return Ok(Bytes::new()),
            fetched => fetched?,
        };
        check_size(name, fetched.size, max_bytes)?;
        Ok(fetched.bytes)
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let length = range.end - range.start;
        if length > MAX_GET_BYTES {
            let object = format!("a range of {name}");
            return Err(StoreError::TooLarge {
                object,
                size: length,
                max: MAX_GET_BYTES,
            });
        }
        let Fetched { bytes, .. } = self.fetch(name, Some(range.clone()), length).await?;
        if bytes.len() as u64 != length {
            return Err(out_of_range(name, &range));
        }
        Ok(bytes)
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>, StoreError> {
        let client = self.blob(name);
        let request = Box::pin(client.get_properties(None));
        let answer = self.billed(Class::Read, 0, request).await?;
        let properties = match answer {
            Ok(properties) => properties,
            Err(error) => match self.failure(&error, name) {
                // Without a body the service does not tell a missing container from a missing object.
                StoreError::NotFound { object } if object == name.as_str() => return Ok(None),
                failure => return Err(failure),
            },
        };
        match properties.content_length() {
            Ok(Some(size)) => Ok(Some(size)),
            Ok(None) | Err(_) => Err(StoreError::Other {
                detail: format!("{name}: the answer has no size"),
                sent: true,
            }),
        }
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError> {
        check_limit(limit)?;
        // The start is included in the listing, and an emulator may not know the parameter: hence one more, and the
        // comparison below.
        let start_from = after
            .filter(|_| self.starts_listings)
            .map(|after| format!("{}{after}", self.start));
        let options = BlobContainerClientListBlobsOptions {
            prefix: Some(format!("{}{prefix}", self.start)).filter(|prefix| !prefix.is_empty()),
            start_from,
            maxresults: i32::try_from(limit + usize::from(after.is_some())).ok(),
            ..Default::default()
        };
        let failure = |error: azure_core::Error| classify(&error, "the listing", &self.container_name);
        let mut pages = self
            .container
            .list_blobs(Some(options))
            .map_err(failure)?
            .into_pages();
        let mut listed = Vec::new();
        loop {
            let sending = sending(Class::List, 0);
            let page = match self.within(0, Box::pin(pages.try_next())).await? {
                Ok(Some(page)) => page,
                Ok(None) => {
                    // The page before said that it is the last.
                    sending.not_made();
                    break;
                }
                Err(error) => {
                    let error = failure(error);
                    sending.failed(&error);
                    return Err(error);
                }
            };
            drop(sending);
            for blob in page.into_model().map_err(failure)?.blob_items {
                let name = blob.name.unwrap_or_default();
                let Some(name) = name.strip_prefix(&self.start) else {
                    continue;
                };
                if !name.starts_with(prefix) || after.is_some_and(|after| name <= after) {
                    continue;
                }
                // Anything else in the container was put there by somebody else.
                let Ok(name) = ObjectName::new(name) else { continue };
                let size = blob
                    .properties
                    .and_then(|properties| properties.content_length)
                    .ok_or_else(|| StoreError::Other {
                        detail: format!("{name} is listed without a size"),
                        sent: true,
                    })?;
                listed.push(ObjectMeta { name, size });
                if listed.len() == limit {
                    return Ok(listed);
                }
            }
        }
        Ok(listed)
    }

    async fn read_tagged(
        &self,
        name: &ObjectName,
        max_bytes: u64,
    ) -> Result<Option<(Bytes, Tag)>, StoreError> {
        let max_bytes = max_bytes.min(MAX_GET_BYTES);
        // One piece, which is one answer: bytes and tag are of one state.
        let fetched = match self.fetch(name, None, max_bytes).await {
            Err(StoreError::NotFound { object }) if object == name.as_str() => return Ok(None),
            fetched => fetched?,
        };
        check_size(name, fetched.size, max_bytes)?;
        Ok(Some((fetched.bytes, tag(name, fetched.etag)?)))
    }

    async fn swap(
        &self,
        name: &ObjectName,
        bytes: Bytes,
        expected: Option<&Tag>,
    ) -> Result<Swap, StoreError> {
        check_swap(name, &bytes)?;
        let size = bytes.len() as u64;
        let options = BlockBlobClientUploadOptions {
            partition_size: NonZero::new(size.max(1)),
            if_match: expected.map(|tag| tag.as_str().into()),
            if_none_match: expected.is_none().then(|| "*".into()),
            ..Default::default()
        };
        let client = self.blob(name);
        let request = Box::pin(client.upload(bytes.into(), Some(options)));
        match self.billed(Class::Write, size, request).await? {
            Ok(answer) => Ok(Swap::Swapped(tag(name, answer.etag)?)),
            Err(error) => match self.refused(&error, name) {
                Ok(_) => Ok(Swap::Conflict),
                // What was expected is gone.
                Err(StoreError::NotFound { object }) if object == name.as_str() => Ok(Swap::Conflict),
                Err(failure) => Err(failure),
            },
        }
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let client = self.blob(name);
        let request = Box::pin(client.delete(None));
        match self.billed(Class::Delete, 0, request).await? {
            Ok(_) => Ok(()),
            Err(error) => match self.failure(&error, name) {
                StoreError::NotFound { object } if object == name.as_str() => Ok(()),
                failure => Err(failure),
            },
        }
    }

    async fn set_tier(&self, name: &ObjectName, tier: Tier) -> Result<TierSet, StoreError> {
        let access_tier = match tier {
            Tier::Hot => AccessTier::Hot,
            Tier::Cool => AccessTier::Cool,
            Tier::Cold => AccessTier::Cold,
        };
        let client = self.blob(name);
        let request = Box::pin(client.set_tier(access_tier, None));
        match self.billed(Class::Write, 0, request).await? {
            Ok(_) => Ok(TierSet::Set),
            // Premium accounts have none.
            Err(error) if code(&error) == Some("BlobAccessTierNotSupportedForAccountType") => {
                Ok(TierSet::Unsupported)
            }
            Err(error) => Err(self.failure(&error, name)),
        }
    }

    fn reports_requests(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        format!("Azure container {}/{}", self.url, self.start)
    }
}

/// What one request for an object's bytes gave.
struct Fetched {
    bytes: Bytes,
    /// The whole object's, of which `bytes` may be a part.
    size: u64,
    etag: Option<Etag>,
}

fn tag(name: &ObjectName, etag: Option<Etag>) -> Result<Tag, StoreError> {
    Tag::new(name, etag.ok_or_else(|| no_tag(name))?)
}

impl std::fmt::Debug for AzureStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AzureStore")
            .field("at", &self.describe())
            .finish_non_exhaustive()
    }
}

/// Our transport, without retries of the client's own.
fn client_options(url: &Url) -> Result<ClientOptions, StoreError> {
    let client = transport::client(url.scheme() == "http")?;
    Ok(ClientOptions {
        retry: RetryOptions::none(),
        transport: Some(Transport::new(Arc::new(client))),
        ..Default::default()
    })
}

async fn read_block(file: Arc<File>, path: &Path, start: u64, length: u64) -> Result<Bytes, StoreError> {
    let read = move || {
        let length = usize::try_from(length).map_err(std::io::Error::other)?;
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, start)?;
        Ok::<_, std::io::Error>(Bytes::from(bytes))
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(read) => read.map_err(|error| local_file(path, &error)),
        Err(error) => Err(StoreError::Other {
            detail: error.to_string(),
            sent: false,
        }),
    }
}

/// The object's whole size, from an answer that holds it or a part of it.
fn total_size(headers: &Headers) -> Option<u64> {
    let header = |name| headers.get_optional_string(&HeaderName::from_static(name));
    match header("content-range") {
        Some(range) => range.rsplit_once('/').and_then(|(_, total)| total.parse().ok()),
        None => header("content-length").and_then(|length| length.parse().ok()),
    }
}
