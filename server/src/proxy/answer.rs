//! What comes back: a good answer as it comes, within bounds; an error read, checked and told anew.

use std::borrow::Cow;
use std::io::Read;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use tokio::time::Instant;

use super::slots::Slot;
use crate::xrpc::error::{XrpcError, default_name};

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
    if answer.status().is_client_error() || answer.status().is_server_error() {
        return Err(told(answer, bounds).await);
    }
    let declared = answer.headers().get(header::CONTENT_LENGTH);
    let declared = declared.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > bounds.bytes) && !head {
        tracing::warn!(declared, limit = bounds.bytes, "a service's answer is too large");
        return Err(unreachable());
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = answer.status();
    for name in DOWN {
        for value in answer.headers().get_all(&name) {
            response.headers_mut().append(name.clone(), value.clone());
        }
    }
    if !head {
        let download = Download {
            answer,
            left: bounds.bytes,
            bounds,
            _slot: slot,
        };
        let pieces = stream::unfold(Some(download), |download| async {
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
        *response.body_mut() = Body::from_stream(pieces.fuse());
    }
    Ok(response)
}

struct Download {
    answer: reqwest::Response,
    left: u64,
    bounds: Bounds,
    _slot: Slot,
}

impl Download {
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

/// An upstream error as our own: the same status, and name and message if they can be had. What is no error of XRPC is not told
/// on, and a mistake of theirs is not shown as one of ours.
async fn told(mut answer: reqwest::Response, bounds: Bounds) -> XrpcError {
    let theirs = answer.status() == StatusCode::INTERNAL_SERVER_ERROR;
    let status = if theirs {
        StatusCode::BAD_GATEWAY
    } else {
        answer.status()
    };
    let headers = std::mem::take(answer.headers_mut());
    let found = match collect(answer, bounds).await {
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

/// The body of an error, if it is short and comes in time.
async fn collect(mut answer: reqwest::Response, bounds: Bounds) -> Option<Vec<u8>> {
    let until = bounds.deadline.min(Instant::now() + bounds.idle);
    let mut body = Vec::new();
    while let Some(chunk) = tokio::time::timeout_at(until, answer.chunk()).await.ok()?.ok()? {
        if body.len() + chunk.len() > ERROR_BYTES {
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

fn is_json(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .map(HeaderValue::as_bytes)
        .is_some_and(|kind| {
            let bare = kind.split(|byte| *byte == b';').next().unwrap_or_default();
            bare.trim_ascii().eq_ignore_ascii_case(b"application/json")
        })
}

fn read_error(headers: &HeaderMap, body: &[u8]) -> Told {
    let coding = headers
        .get(header::CONTENT_ENCODING)
        .map(|coding| coding.as_bytes().to_ascii_lowercase());
    let unpacked = match coding.as_deref() {
        None | Some(b"" | b"identity") => Some(body.to_vec()),
        Some(b"gzip" | b"x-gzip") => unpack(flate2::read::GzDecoder::new(body)),
        Some(b"deflate") => unpack(flate2::read::ZlibDecoder::new(body)),
        Some(_) => None,
    };
    unpacked
        .and_then(|json| serde_json::from_slice(&json).ok())
        .unwrap_or_default()
}

fn unpack(packed: impl Read) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    packed.take(ERROR_BYTES as u64).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}
