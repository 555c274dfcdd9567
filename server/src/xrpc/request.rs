//! One XRPC request: its parameters, headers and bounded body, and the helpers that shape an answer.

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use futures_util::StreamExt;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{XrpcError, XrpcResult};
use super::params::Params;

/// Limit of a JSON body in bytes, unless the method has a larger one.
pub const JSON_LIMIT: usize = 153_600;
/// Limit of a JSON body in bytes for the methods that carry records.
pub const RECORD_JSON_LIMIT: usize = 1_000_000;

/// A request to a method that this server implements.
#[derive(Debug)]
pub struct Request {
    /// The query parameters.
    pub params: Params,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, not read yet.
    pub body: Body,
}

impl Request {
    /// Takes the body as JSON.
    ///
    /// # Errors
    /// 400, 413 or 415 with the names that clients of the reference PDS know.
    pub async fn json<T: DeserializeOwned>(&mut self, limit: usize) -> XrpcResult<T> {
        let body = std::mem::replace(&mut self.body, Body::empty());
        self.identity_encoding("UnsupportedMediaTypeError")?;
        let content_type = self.content_type();
        if !self.has_body() && content_type.is_none() {
            return Err(XrpcError::invalid(
                "A request body is expected but none was provided",
            ));
        }
        if content_type.as_deref() != Some("application/json") {
            return Err(XrpcError::invalid(match content_type {
                Some(other) => format!("Wrong request encoding (Content-Type): {other}"),
                None => "Request encoding (Content-Type) required but not provided".to_owned(),
            }));
        }
        let bytes = collect(body, &self.headers, limit).await?;
        if bytes.is_empty() {
            return Err(XrpcError::invalid(
                "A request body is expected but none was provided",
            ));
        }
        serde_json::from_slice(&bytes).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => XrpcError::invalid(format!("Invalid request body: {error}")),
            _ => XrpcError::new(
                StatusCode::BAD_REQUEST,
                "SyntaxError",
                format!("Malformed JSON: {error}"),
            ),
        })
    }

    /// Refuses a body where the method takes none.
    ///
    /// # Errors
    /// 400 when there is one.
    pub async fn no_body(&mut self) -> XrpcResult<()> {
        let body = std::mem::replace(&mut self.body, Body::empty());
        match collect(body, &self.headers, 0).await {
            Ok(_) => Ok(()),
            Err(_) => Err(XrpcError::invalid(
                "A request body was provided when none was expected",
            )),
        }
    }

    /// The media type of the body without its parameters, lower-case.
    #[must_use]
    pub fn content_type(&self) -> Option<String> {
        let raw = self.headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
        let bare = raw
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase();
        (!bare.is_empty()).then_some(bare)
    }

    /// The declared length of the body in bytes.
    #[must_use]
    pub fn content_length(&self) -> Option<u64> {
        content_length(&self.headers)
    }

    /// Refuses compressed bodies, which no method here accepts.
    ///
    /// # Errors
    /// 415 under `name`.
    pub fn identity_encoding(&self, name: &'static str) -> XrpcResult<()> {
        match self
            .headers
            .get(header::CONTENT_ENCODING)
            .map(HeaderValue::as_bytes)
        {
            None | Some(b"identity" | b"") => Ok(()),
            Some(_) => Err(XrpcError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                name,
                "Content-Encoding is not supported: send the body as it is",
            )),
        }
    }

    fn has_body(&self) -> bool {
        self.content_length().is_some_and(|length| length > 0)
            || self.headers.contains_key(header::TRANSFER_ENCODING)
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads a whole body of at most `limit` bytes.
async fn collect(body: Body, headers: &HeaderMap, limit: usize) -> XrpcResult<Bytes> {
    let too_large = || {
        XrpcError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "PayloadTooLargeError",
            "request entity too large",
        )
    };
    if content_length(headers).is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let mut stream = body.into_data_stream();
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        let chunk =
            chunk.map_err(|error| XrpcError::invalid(format!("The request body broke off: {error}")))?;
        if bytes.len() + chunk.len() > limit {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Bytes::from(bytes))
}

/// A JSON answer.
///
/// # Errors
/// 500 when the value cannot be serialised, which is our mistake.
pub fn json<T: Serialize>(value: &T) -> XrpcResult<Response<Body>> {
    let bytes = serde_json::to_vec(value).map_err(XrpcError::internal)?;
    Ok(json_bytes(bytes))
}

/// A JSON answer from finished bytes.
#[must_use]
pub fn json_bytes(bytes: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::from(bytes));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json; charset=utf-8"),
    );
    response
}

/// 200 without a body, for methods without output.
#[must_use]
pub fn empty() -> Response<Body> {
    Response::new(Body::empty())
}

/// An answer in CAR format.
#[must_use]
pub fn car(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/vnd.ipld.car"),
    );
    response
}
