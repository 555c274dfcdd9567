//! A store in a bucket of a service that speaks S3: Amazon's own, Cloudflare R2, MinIO and their like. The crate
//! `object_store` finds credentials, signs, reads and lists; our own transport carries every request, and the writes are
//! put together here.
//!
//! What holds: a creation is a single PUT with `If-None-Match: *`, a swap one with that or with `If-Match`; both are sent once
//! (the library's retries are off), and a lost answer is reported as such. Every request has a time limit. No message, log line
//! or `Debug` holds a key or a signature.
//!
//! A large object goes up in one PUT too, streamed from its file, and not in parts: the library cannot make the request that
//! puts parts together conditional, and not every service heeds the condition there, so that a late writer could replace an
//! object. The price is the service's bound on one PUT ([`MAX_OBJECT_BYTES`]), and that a broken upload begins anew. The body's
//! SHA-256 is signed, so what arrives is what was read. Nothing is staged, so a crash leaves nothing to tidy.
//!
//! Of an object with plain encryption the ETag is a digest of the bytes alone. Hence what is swapped is stored with a random
//! line before it, so that a state has a tag of its own even if it has the bytes of an earlier one.
//!
//! Some services, and old versions of others, do not know these conditions and overwrite. That would let two writers go on
//! side by side; [`ReplicaStore::prove`] finds out and refuses.

mod config;
mod error;
#[cfg(test)]
mod moto_tests;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use data_encoding::HEXLOWER;
use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsAuthorizer};
use object_store::client::{HttpRequest, HttpRequestBody};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path as Key;
use object_store::{GetOptions, GetRange, GetResult, HeaderValue, ObjectStore, RetryConfig};
use reqwest::header::{CONTENT_LENGTH, ETAG, IF_MATCH, IF_NONE_MATCH};
use reqwest::{Method, Url};
use sha2::{Digest, Sha256};
use tokio_util::io::ReaderStream;

pub use self::config::{S3Auth, S3Config};
use self::error::{Refusal, Transport, classify, classify_sent, refusal};
use super::counted::{Class, Sending, sending};
use super::swap::{check_swap, no_tag};
use super::transport::{self, SILENCE_TIMEOUT};
use super::{
    Created, ObjectMeta, ObjectName, ReplicaStore, StoreError, Swap, Tag, check_limit, check_size,
    local_file, out_of_range,
};

/// The largest object, in bytes: what the services take in one PUT.
pub const MAX_OBJECT_BYTES: u64 = 5 << 30;

/// The most names in one page of a listing, set by the services.
const PAGE: usize = 1000;

/// The random line before what is swapped: as many hexadecimal digits of chance, and a line feed.
const NONCE_BYTES: usize = 16;
const NONCE_LINE: usize = NONCE_BYTES * 2 + 1;

/// The most that one request can download, in bytes; bounds what a caller of `get` may allow.
const MAX_GET_BYTES: u64 = 1 << 32;

/// What a file is read in, in bytes.
const READ_BYTES: usize = 256 << 10;

/// Objects in a bucket.
pub struct S3Store {
    client: AmazonS3,
    http: reqwest::Client,
    /// The bucket's URL, without a slash at its end.
    url: String,
    bucket: String,
    region: String,
    /// What all names start with: nothing, or segments and a slash.
    start: String,
    request_timeout: Duration,
}

/// What a write asks of what is there.
#[derive(Clone, Copy)]
enum Condition<'a> {
    Absent,
    State(&'a str),
}

/// What became of a conditional write that was answered.
enum Put {
    Written {
        etag: Option<String>,
    },
    /// The condition did not hold; or, if not `known`, somebody else's write was in the way.
    Refused {
        known: bool,
        refusal: Refusal,
    },
}

impl S3Store {
    /// Prepares the client; asks the service nothing yet.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] if the settings cannot work.
    pub fn new(config: &S3Config) -> Result<S3Store, StoreError> {
        let url = config.bucket_url()?;
        let start = super::name::name_start(&config.prefix)?;
        let http = transport::client(url.starts_with("http://"))?;
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&config.bucket)
            .with_region(&config.region)
            // The bucket is part of the URL already, whichever way it is addressed.
            .with_endpoint(&url)
            .with_virtual_hosted_style_request(true)
            .with_disable_bulk_delete(true)
            .with_retry(RetryConfig {
                max_retries: 0,
                ..Default::default()
            })
            .with_http_connector(Transport::new(http.clone(), &url));
        match &config.auth {
            S3Auth::Keys { id, secret } => {
                builder = builder
                    .with_access_key_id(id)
                    .with_secret_access_key(secret.secret());
            }
            S3Auth::Platform => {
                for name in config::PLATFORM {
                    let value = std::env::var(name).ok().filter(|value| !value.is_empty());
                    let key = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>();
                    if let (Some(value), Ok(key)) = (value, key) {
                        builder = builder.with_config(key, value);
                    }
                }
            }
        }
        let client = builder.build().map_err(|error| StoreError::Invalid {
            detail: format!("the S3 client cannot be built: {error}"),
        })?;
        Ok(S3Store {
            client,
            http,
            url,
            bucket: config.bucket.clone(),
            region: config.region.clone(),
            start,
            request_timeout: config.request_timeout,
        })
    }

    fn key(&self, name: &ObjectName) -> Result<Key, StoreError> {
        Key::parse(format!("{}{name}", self.start)).map_err(|error| StoreError::Invalid {
            detail: error.to_string(),
        })
    }

    /// Waits for `request`, which moves `bytes` bytes, as long as that may take.
    async fn within<T>(&self, bytes: u64, request: impl Future<Output = T>) -> Result<T, StoreError> {
        let after = self.request_timeout + transport::time_for(bytes);
        tokio::time::timeout(after, request)
            .await
            .map_err(|_| StoreError::Timeout { after })
    }

    fn failure(&self, error: &object_store::Error, name: &ObjectName) -> StoreError {
        classify(error, name.as_str(), &self.bucket)
    }

    /// One PUT of `size` bytes, sent once.
    async fn put(
        &self,
        name: &ObjectName,
        body: reqwest::Body,
        size: u64,
        digest: &[u8],
        condition: Condition<'_>,
    ) -> Result<Put, StoreError> {
        let invalid = |what: &str| StoreError::Invalid {
            detail: format!("{name}: {what}"),
        };
        // The only characters of names that a URL writes otherwise.
        let encoded = format!("{}{name}", self.start)
            .replace('%', "%25")
            .replace(':', "%3A");
        let url = format!("{}/{encoded}", self.url);
        let credential = self.client.credentials().get_credential().await;
        let credential = credential.map_err(|error| self.failure(&error, name))?;
        let mut signed = HttpRequest::new(HttpRequestBody::empty());
        *signed.method_mut() = Method::PUT;
        *signed.uri_mut() = url.parse().map_err(|_| invalid("its URL does not parse"))?;
        let (header, value) = match condition {
            Condition::Absent => (IF_NONE_MATCH, "*"),
            Condition::State(etag) => (IF_MATCH, etag),
        };
        let value = HeaderValue::from_str(value).map_err(|_| invalid("its tag is no header"))?;
        signed.headers_mut().insert(header, value);
        AwsAuthorizer::new(&credential, "s3", &self.region)
            .try_authorize(&mut signed, Some(digest))
            .map_err(|error| self.failure(&error, name))?;
        let url = Url::parse(&url).map_err(|_| invalid("its URL does not parse"))?;
        let mut request = reqwest::Request::new(Method::PUT, url);
        std::mem::swap(request.headers_mut(), signed.headers_mut());
        request.headers_mut().insert(CONTENT_LENGTH, size.into());
        *request.body_mut() = Some(body);
        let sending = sending(Class::Write, size);
        let answer = match self.http.execute(request).await {
            Ok(answer) => answer,
            Err(error) => {
                let error = classify_sent(&error);
                sending.failed(&error);
                return Err(error);
            }
        };
        if answer.status().is_success() {
            let etag = answer.headers().get(ETAG).and_then(|etag| etag.to_str().ok());
            return Ok(Put::Written {
                etag: etag.map(str::to_owned),
            });
        }
        let refusal = refusal(answer).await;
        match (refusal.status, refusal.code.as_str()) {
            (412 | 304, _) => Ok(Put::Refused { known: true, refusal }),
            (409, "ConditionalRequestConflict" | "OperationAborted") => Ok(Put::Refused {
                known: false,
                refusal,
            }),
            _ => Err(refusal.meaning(name.as_str(), &self.bucket)),
        }
    }

    async fn create_once(
        &self,
        name: &ObjectName,
        body: reqwest::Body,
        size: u64,
        digest: &[u8],
    ) -> Result<Created, StoreError> {
        let request = Box::pin(self.put(name, body, size, digest, Condition::Absent));
        match self.within(size, request).await?? {
            Put::Written { .. } => Ok(Created::Created),
            Put::Refused { known: true, .. } => Ok(Created::Exists),
            // Somebody else is at that name, and may yet fail.
            Put::Refused {
                known: false,
                refusal,
            } => Err(StoreError::Unavailable {
                detail: refusal.to_string(),
                sent: false,
            }),
        }
    }

    async fn open(
        &self,
        name: &ObjectName,
        range: Option<Range<u64>>,
        head: bool,
    ) -> Result<(GetResult, Sending), StoreError> {
        let options = GetOptions {
            range: range.clone().map(GetRange::Bounded),
            head,
            ..Default::default()
        };
        let key = self.key(name)?;
        let request = Box::pin(self.client.get_opts(&key, options));
        let sending = sending(Class::Read, 0);
        match self.within(0, request).await? {
            Ok(opened) => Ok((opened, sending)),
            Err(error) => {
                let meaning = self.failure(&error, name);
                sending.failed(&meaning);
                Err(match (&meaning, &range) {
                    (StoreError::OutOfRange { .. }, Some(range)) => out_of_range(name, range),
                    _ => meaning,
                })
            }
        }
    }

    /// The body of an answer that must have exactly `expected` bytes.
    async fn collect(
        &self,
        name: &ObjectName,
        (opened, mut sending): (GetResult, Sending),
        expected: u64,
    ) -> Result<Bytes, StoreError> {
        let collect = async {
            let mut bytes = BytesMut::with_capacity(usize::try_from(expected).unwrap_or_default());
            let mut body = opened.into_stream();
            while let Some(part) = tokio::time::timeout(SILENCE_TIMEOUT, body.try_next())
                .await
                .map_err(|_| StoreError::Timeout {
                    after: SILENCE_TIMEOUT,
                })?
                .map_err(|error| self.failure(&error, name))?
            {
                bytes.extend_from_slice(&part);
                sending.received(part.len() as u64);
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
            Ok(bytes.freeze())
        };
        self.within(expected, collect).await?
    }

    /// The whole object and its ETag, `None` if there is none.
    async fn fetch(
        &self,
        name: &ObjectName,
        max_bytes: u64,
    ) -> Result<Option<(Bytes, Option<String>)>, StoreError> {
        let opened = match self.open(name, None, false).await {
            Err(StoreError::NotFound { object }) if object == name.as_str() => return Ok(None),
            opened => opened?,
        };
        let (size, etag) = (opened.0.meta.size, opened.0.meta.e_tag.clone());
        check_size(name, size, max_bytes)?;
        let bytes = self.collect(name, opened, size).await?;
        Ok(Some((bytes, etag)))
    }
}

#[async_trait]
impl ReplicaStore for S3Store {
    async fn create(&self, name: &ObjectName, bytes: Bytes) -> Result<Created, StoreError> {
        let (size, digest) = (bytes.len() as u64, Sha256::digest(&bytes));
        self.create_once(name, bytes.into(), size, &digest).await
    }

    async fn create_from_file(&self, name: &ObjectName, path: &Path) -> Result<Created, StoreError> {
        let unreadable = |error| local_file(path, &error);
        let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
        let size = file.metadata().await.map_err(unreadable)?.len();
        check_size(name, size, MAX_OBJECT_BYTES)?;
        // Spares the bytes; the PUT decides.
        if self.size(name).await?.is_some() {
            return Ok(Created::Exists);
        }
        let digest = digest_of_file(path).await?;
        let body = ReaderStream::with_capacity(file, READ_BYTES);
        self.create_once(name, reqwest::Body::wrap_stream(body), size, &digest)
            .await
    }

    async fn get(&self, name: &ObjectName, max_bytes: u64) -> Result<Bytes, StoreError> {
        let fetched = self.fetch(name, max_bytes.min(MAX_GET_BYTES)).await?;
        fetched
            .map(|(bytes, _)| bytes)
            .ok_or_else(|| StoreError::NotFound {
                object: name.to_string(),
            })
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let length = range.end - range.start;
        if length > MAX_GET_BYTES {
            return Err(StoreError::TooLarge {
                object: format!("a range of {name}"),
                size: length,
                max: MAX_GET_BYTES,
            });
        }
        let opened = self.open(name, Some(range.clone()), false).await?;
        // At its end an object gives what it has.
        if opened.0.range != range {
            return Err(out_of_range(name, &range));
        }
        self.collect(name, opened, length).await
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>, StoreError> {
        match self.open(name, None, true).await {
            Ok((opened, _)) => Ok(Some(opened.meta.size)),
            // Without a body the service does not tell a missing bucket from a missing object.
            Err(StoreError::NotFound { object }) if object == name.as_str() => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError> {
        check_limit(limit)?;
        let start = Some(format!("{}{prefix}", self.start)).filter(|start| !start.is_empty());
        let offset = after.map(|after| format!("{}{after}", self.start));
        let mut listed = Vec::new();
        let mut page_token = None;
        loop {
            let options = PaginatedListOptions {
                offset: offset.clone(),
                max_keys: Some((limit - listed.len()).min(PAGE)),
                page_token,
                ..Default::default()
            };
            let request = Box::pin(self.client.list_paginated(start.as_deref(), options));
            let sending = sending(Class::List, 0);
            let page = match self.within(0, request).await? {
                Ok(page) => page,
                Err(error) => {
                    let error = classify(&error, "the listing", &self.bucket);
                    sending.failed(&error);
                    return Err(error);
                }
            };
            for object in page.result.objects {
                let Some(name) = object.location.as_ref().strip_prefix(&self.start) else {
                    continue;
                };
                if !name.starts_with(prefix) || after.is_some_and(|after| name <= after) {
                    continue;
                }
                // Anything else in the bucket was put there by somebody else.
                let Ok(name) = ObjectName::new(name) else { continue };
                listed.push(ObjectMeta {
                    name,
                    size: object.size,
                });
                if listed.len() == limit {
                    return Ok(listed);
                }
            }
            page_token = page.page_token;
            if page_token.is_none() {
                return Ok(listed);
            }
        }
    }

    async fn read_tagged(
        &self,
        name: &ObjectName,
        max_bytes: u64,
    ) -> Result<Option<(Bytes, Tag)>, StoreError> {
        let max_bytes = max_bytes.min(MAX_GET_BYTES) + NONCE_LINE as u64;
        let Some((mut bytes, etag)) = self.fetch(name, max_bytes).await? else {
            return Ok(None);
        };
        if bytes.get(NONCE_LINE - 1) != Some(&b'\n') {
            return Err(StoreError::Invalid {
                detail: format!("{name} was not written to be swapped"),
            });
        }
        let bytes = bytes.split_off(NONCE_LINE);
        Ok(Some((bytes, Tag::new(name, etag.ok_or_else(|| no_tag(name))?)?)))
    }

    async fn swap(
        &self,
        name: &ObjectName,
        bytes: Bytes,
        expected: Option<&Tag>,
    ) -> Result<Swap, StoreError> {
        check_swap(name, &bytes)?;
        let body = [format!("{}\n", chance()?).as_bytes(), &bytes].concat();
        let (size, digest) = (body.len() as u64, Sha256::digest(&body));
        let condition = match expected {
            None => Condition::Absent,
            Some(tag) => Condition::State(tag.as_str()),
        };
        let request = Box::pin(self.put(name, body.into(), size, &digest, condition));
        match self.within(size, request).await? {
            Ok(Put::Written { etag }) => {
                Ok(Swap::Swapped(Tag::new(name, etag.ok_or_else(|| no_tag(name))?)?))
            }
            Ok(Put::Refused { .. }) => Ok(Swap::Conflict),
            // What was expected is gone.
            Err(StoreError::NotFound { object }) if object == name.as_str() => Ok(Swap::Conflict),
            Err(failure) => Err(failure),
        }
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let key = self.key(name)?;
        let keys = futures_util::stream::iter([Ok(key)]).boxed();
        let deletion = async { self.client.delete_stream(keys).try_collect::<Vec<_>>().await };
        let sending = sending(Class::Delete, 0);
        match self.within(0, Box::pin(deletion)).await? {
            Ok(_) => Ok(()),
            Err(error) => match self.failure(&error, name) {
                StoreError::NotFound { object } if object == name.as_str() => Ok(()),
                failure => {
                    sending.failed(&failure);
                    Err(failure)
                }
            },
        }
    }

    /// Creates an object of a name that nobody else has, tries to create it again, and to replace it in a state it is not in.
    async fn prove(&self) -> Result<(), StoreError> {
        let name = ObjectName::new(format!("probe/{}", chance()?))?;
        let outcome = self.try_conditions(&name).await;
        let deleted = self.delete(&name).await;
        outcome.and(deleted)
    }

    fn reports_requests(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        format!("S3 bucket {}/{}", self.url, self.start)
    }
}

impl S3Store {
    async fn try_conditions(&self, name: &ObjectName) -> Result<(), StoreError> {
        const OTHER_STATE: &str = "\"00000000000000000000000000000000\"";
        let refused = |what: &str| StoreError::Invalid {
            detail: format!(
                "{} cannot hold a replica: it {what}, so it could not keep two servers apart",
                self.describe()
            ),
        };
        if self.create(name, Bytes::from_static(b"1")).await? != Created::Created {
            return Err(refused("says that an object is there which is not"));
        }
        if self.create(name, Bytes::from_static(b"2")).await? != Created::Exists {
            return Err(refused("overwrites an object in spite of If-None-Match: *"));
        }
        let tag = Tag::new(name, OTHER_STATE)?;
        if self.swap(name, Bytes::from_static(b"3"), Some(&tag)).await? != Swap::Conflict {
            return Err(refused("overwrites an object in spite of If-Match"));
        }
        match self.get(name, 1).await? {
            bytes if bytes == "1" => Ok(()),
            _ => Err(refused("changes an object although it says that it does not")),
        }
    }
}

impl std::fmt::Debug for S3Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Store")
            .field("at", &self.describe())
            .finish_non_exhaustive()
    }
}

fn chance() -> Result<String, StoreError> {
    let mut random = [0; NONCE_BYTES];
    getrandom::fill(&mut random).map_err(|error| StoreError::Other {
        detail: format!("no randomness: {error}"),
        sent: false,
    })?;
    Ok(HEXLOWER.encode(&random))
}

/// The SHA-256 of a file, read piece by piece.
async fn digest_of_file(path: &Path) -> Result<Vec<u8>, StoreError> {
    let path: Arc<Path> = path.into();
    let read = move || {
        let digest = || {
            let mut digest = Sha256::new();
            let mut file = std::fs::File::open(&path)?;
            let mut piece = vec![0; READ_BYTES];
            loop {
                match std::io::Read::read(&mut file, &mut piece)? {
                    0 => return Ok(digest.finalize().to_vec()),
                    read => digest.update(piece.get(..read).unwrap_or_default()),
                }
            }
        };
        digest().map_err(|error| local_file(&path, &error))
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(digest) => digest,
        Err(error) => Err(StoreError::Other {
            detail: error.to_string(),
            sent: false,
        }),
    }
}
