//! What comes back: a good answer as it comes, within bounds; an error read, checked and told anew.

use std::borrow::Cow;
use std::io::Read;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::response::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::slots::Slot;
use crate::xrpc::error::{XrpcError, default_name};
use crate::xrpc::room::BodyPlace;

/// Headers of an answer that the client gets.
const DOWN: [HeaderName; 7] = [
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    header::CONTENT_LANGUAGE,
    HeaderName::from_static("atproto-repo-rev"),
    HeaderName::from_static("atproto-content-labelers"),
    header::RETRY_AFTER,
];
/// The longest error that is read, packed and unpacked, in bytes.
const ERROR_BYTES: usize = 64 << 10;
/// The longest name and message of an error that are told on, in bytes.
const NAME_BYTES: usize = 256;
const MESSAGE_BYTES: usize = 8 << 10;

/// Bounds of an answer.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    /// Its bytes.
    pub(super) bytes: u64,
    /// How long nothing may come.
    pub(super) idle: Duration,
    /// When it must have ended.
    pub(super) deadline: Instant,
}

/// What is told of a service that gives no answer that could be passed on.
pub(super) fn unreachable() -> XrpcError {
    XrpcError::new(
        StatusCode::BAD_GATEWAY,
        "UpstreamFailure",
        "Upstream service unreachable",
    )
}

/// The answer to the client. `slot` is taken until the last byte has gone.
pub(super) async fn pass(
    answer: reqwest::Response,
    head: bool,
    bounds: Bounds,
    slot: Slot,
) -> Result<Response<Body>, XrpcError> {
    if is_error(&answer) {
        return Err(told(answer, bounds).await);
    }
    if head {
        let (parts, _) = begun(answer, bounds, slot, true)?;
        return Ok(Response::from_parts(parts, Body::empty()));
    }
    let (parts, download) = begun(answer, bounds, slot, false)?;
    Ok(Response::from_parts(parts, download.into_body(Vec::new())))
}

/// Whether an answer is one that [`told`] reads.
pub(super) fn is_error(answer: &reqwest::Response) -> bool {
    answer.status().is_client_error() || answer.status().is_server_error()
}

/// What the client gets of an answer's head, and the body to come.
fn begun(
    answer: reqwest::Response,
    bounds: Bounds,
    slot: Slot,
    head: bool,
) -> Result<(Parts, Download), XrpcError> {
    let declared = answer.headers().get(header::CONTENT_LENGTH);
    let declared = declared.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > bounds.bytes) && !head {
        tracing::warn!(declared, limit = bounds.bytes, "a service's answer is too large");
        return Err(unreachable());
    }
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.status = answer.status();
    for name in DOWN {
        for value in answer.headers().get_all(&name) {
            parts.headers.append(name.clone(), value.clone());
        }
    }
    let download = Download {
        answer,
        left: bounds.bytes,
        bounds,
        _slot: slot,
    };
    Ok((parts, download))
}

/// A good answer whose body is read here as long as it is short.
pub(super) struct Held {
    /// Its head, as the client gets it.
    pub(super) parts: Parts,
    /// What has been read.
    pub(super) bytes: Vec<u8>,
    /// The rest of it, and its slot.
    download: Download,
    /// Whether there is no rest.
    whole: bool,
}

/// Reads the body of a good answer, up to `limit` bytes and as far as there is room.
///
/// # Errors
/// 502 if it breaks off meanwhile, since nothing of it has gone to the client.
pub(super) async fn hold(
    answer: reqwest::Response,
    bounds: Bounds,
    slot: Slot,
    limit: usize,
    place: &mut BodyPlace,
) -> Result<Held, XrpcError> {
    let (parts, mut download) = begun(answer, bounds, slot, false)?;
    let mut bytes = Vec::new();
    loop {
        let chunk = download.next().await.map_err(|error| {
            tracing::warn!(%error, "a service's answer broke off");
            unreachable()
        })?;
        let Some(chunk) = chunk else {
            return Ok(Held {
                parts,
                bytes,
                download,
                whole: true,
            });
        };
        let length = bytes.len() + chunk.len();
        bytes.extend_from_slice(&chunk);
        if length > limit || place.grow_to(length).await.is_err() {
            return Ok(Held {
                parts,
                bytes,
                download,
                whole: false,
            });
        }
    }
}

impl Held {
    /// The body as it was before it was packed, if all of it is here and it has at most `limit` bytes.
    pub(super) fn unpacked(&self, limit: usize) -> Option<Cow<'_, [u8]>> {
        if !self.whole {
            return None;
        }
        let unpacked = match coding(&self.parts.headers)? {
            Coding::Identity => Cow::Borrowed(&*self.bytes),
            Coding::Gzip => Cow::Owned(unpack(flate2::read::GzDecoder::new(&*self.bytes), limit + 1)?),
            Coding::Deflate => Cow::Owned(unpack(flate2::read::ZlibDecoder::new(&*self.bytes), limit + 1)?),
        };
        (unpacked.len() <= limit).then_some(unpacked)
    }

    /// The answer as it came.
    pub(super) fn untouched(self) -> Response<Body> {
        let body = if self.whole {
            Body::from(self.bytes)
        } else {
            self.download.into_body(self.bytes)
        };
        Response::from_parts(self.parts, body)
    }
}

struct Download {
    answer: reqwest::Response,
    left: u64,
    bounds: Bounds,
    _slot: Slot,
}

impl Download {
    /// What has been read already, and all that comes.
    fn into_body(self, read: Vec<u8>) -> Body {
        let pieces = stream::unfold(Some(self), |download| async {
            let mut download = download?;
            match download.next().await {
                Ok(chunk) => Some((Ok(chunk?), Some(download))),
                // The client sees a body that breaks off; its status has gone already.
                Err(error) => {
                    tracing::warn!(%error, "a service's answer broke off");
                    Some((Err(error), None))
                }
            }
        });
        // Whoever packs a body asks again after its end.
        let pieces = pieces.fuse();
        if read.is_empty() {
            return Body::from_stream(pieces);
        }
        let read = stream::iter([Ok(Bytes::from(read))]);
        Body::from_stream(read.chain(pieces))
    }

    async fn next(&mut self) -> std::io::Result<Option<Bytes>> {
        let until = self.bounds.deadline.min(Instant::now() + self.bounds.idle);
        let chunk = tokio::time::timeout_at(until, self.answer.chunk())
            .await
            .map_err(|_| std::io::Error::other("it stalled"))?
            .map_err(|error| std::io::Error::other(error.without_url()))?;
        let bytes = chunk.as_ref().map_or(0, Bytes::len) as u64;
        match self.left.checked_sub(bytes) {
            Some(left) => self.left = left,
            None => return Err(std::io::Error::other("it is too large")),
        }
        Ok(chunk)
    }
}

/// The JSON of a good and short answer to a question of this server's own.
///
/// # Errors
/// What the service says, and 502 for what is no short JSON object or array.
pub(super) async fn value(answer: reqwest::Response, bounds: Bounds) -> Result<Value, XrpcError> {
    if is_error(&answer) {
        return Err(told(answer, bounds).await);
    }
    let body = collect(answer, bounds).await;
    body.and_then(|body| serde_json::from_slice(&body).ok())
        .ok_or_else(|| {
            tracing::warn!("a service's answer is not what was asked for");
            unreachable()
        })
}

/// An upstream error as our own: the same status, and name and message if they can be had. What is no error of XRPC is not told
/// on, and a mistake of theirs is not shown as one of ours.
pub(super) async fn told(mut answer: reqwest::Response, bounds: Bounds) -> XrpcError {
    let theirs = answer.status() == StatusCode::INTERNAL_SERVER_ERROR;
    let status = if theirs {
        StatusCode::BAD_GATEWAY
    } else {
        answer.status()
    };
    let headers = std::mem::take(answer.headers_mut());
    let short = Bounds {
        bytes: ERROR_BYTES as u64,
        ..bounds
    };
    let found = match collect(answer, short).await {
        Some(body) if is_json(&headers) => read_error(&headers, &body),
        Some(_) | None => Told::default(),
    };
    let name = found
        .error
        .filter(|name| !theirs && (1..=NAME_BYTES).contains(&name.len()));
    let message = found.message.filter(|message| message.len() <= MESSAGE_BYTES);
    let name = name.map_or(Cow::Borrowed(default_name(status)), Cow::Owned);
    let generic = status.canonical_reason().unwrap_or("Upstream error");
    let message = message.map_or(Cow::Borrowed(generic), Cow::Owned);
    let mut error = XrpcError::new(status, name, message);
    error.retry_after = headers
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    error
}

/// The whole of a short body, if it comes in time.
async fn collect(mut answer: reqwest::Response, bounds: Bounds) -> Option<Vec<u8>> {
    let until = bounds.deadline.min(Instant::now() + bounds.idle);
    let mut body = Vec::new();
    while let Some(chunk) = tokio::time::timeout_at(until, answer.chunk()).await.ok()?.ok()? {
        if (body.len() + chunk.len()) as u64 > bounds.bytes {
            return None;
        }
        body.extend_from_slice(&chunk);
    }
    Some(body)
}

#[derive(Default, Deserialize)]
struct Told {
    error: Option<String>,
    message: Option<String>,
}

pub(super) fn is_json(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .map(HeaderValue::as_bytes)
        .is_some_and(|kind| {
            let bare = kind.split(|byte| *byte == b';').next().unwrap_or_default();
            bare.trim_ascii().eq_ignore_ascii_case(b"application/json")
        })
}

fn read_error(headers: &HeaderMap, body: &[u8]) -> Told {
    let unpacked = match coding(headers) {
        Some(Coding::Identity) => Some(body.to_vec()),
        Some(Coding::Gzip) => unpack(flate2::read::GzDecoder::new(body), ERROR_BYTES),
        Some(Coding::Deflate) => unpack(flate2::read::ZlibDecoder::new(body), ERROR_BYTES),
        None => None,
    };
    unpacked
        .and_then(|json| serde_json::from_slice(&json).ok())
        .unwrap_or_default()
}

/// How a body is packed, if it can be unpacked here.
enum Coding {
    Identity,
    Gzip,
    Deflate,
}

fn coding(headers: &HeaderMap) -> Option<Coding> {
    let coding = headers
        .get(header::CONTENT_ENCODING)
        .map(|coding| coding.as_bytes().to_ascii_lowercase());
    match coding.as_deref() {
        None | Some(b"" | b"identity") => Some(Coding::Identity),
        Some(b"gzip" | b"x-gzip") => Some(Coding::Gzip),
        Some(b"deflate") => Some(Coding::Deflate),
        Some(_) => None,
    }
}

/// At most `limit` bytes of what is packed.
fn unpack(packed: impl Read, limit: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    packed.take(limit as u64).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}
