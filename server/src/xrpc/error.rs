//! The one place that knows wire names and status codes of errors.
//!
//! Shape: `{"error": <name>, "message": <text>}` (<https://atproto.com/specs/xrpc#error-responses>). What is hidden
//! from the client is logged here, once.

use std::borrow::Cow;

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};

use crate::limits::TooMany;

/// The name of an error that has none of its own.
#[must_use]
pub fn default_name(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "AuthenticationRequired",
        403 => "Forbidden",
        404 => "XRPCNotSupported",
        406 => "NotAcceptable",
        413 => "PayloadTooLarge",
        415 => "UnsupportedMediaType",
        429 => "RateLimitExceeded",
        501 => "MethodNotImplemented",
        502 => "UpstreamFailure",
        503 => "NotEnoughResources",
        504 => "UpstreamTimeout",
        500.. => "InternalServerError",
        _ => "InvalidRequest",
    }
}

/// An error answer of an XRPC method.
#[derive(Debug)]
pub struct XrpcError {
    /// HTTP status.
    pub status: StatusCode,
    /// The machine-readable name.
    pub name: Cow<'static, str>,
    /// For people.
    pub message: Cow<'static, str>,
    /// Seconds after which a retry makes sense.
    pub retry_after: Option<u32>,
}

impl From<TooMany> for XrpcError {
    fn from(error: TooMany) -> XrpcError {
        let status = StatusCode::TOO_MANY_REQUESTS;
        XrpcError::new(status, default_name(status), error.to_string()).after(error.retry_after)
    }
}

/// What a handler returns.
pub type XrpcResult<T> = Result<T, XrpcError>;

impl XrpcError {
    /// Any status with a name and a message.
    pub fn new(
        status: StatusCode,
        name: impl Into<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
    ) -> XrpcError {
        XrpcError {
            status,
            name: name.into(),
            message: message.into(),
            retry_after: None,
        }
    }

    /// 400 `InvalidRequest`.
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> XrpcError {
        XrpcError::new(StatusCode::BAD_REQUEST, "InvalidRequest", message)
    }

    /// 400 with a name of the method's lexicon.
    pub fn bad(name: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> XrpcError {
        XrpcError::new(StatusCode::BAD_REQUEST, name, message)
    }

    /// 401 with a name.
    pub fn unauthorized(
        name: impl Into<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
    ) -> XrpcError {
        XrpcError::new(StatusCode::UNAUTHORIZED, name, message)
    }

    /// 500; the cause is logged, the client learns nothing of it.
    pub fn internal(cause: impl std::fmt::Display) -> XrpcError {
        tracing::error!(%cause, "internal error");
        XrpcError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalServerError",
            "Internal Server Error",
        )
    }

    /// 503 with a hint when to come back. Used for everything that is full, busy, stopping or waiting for the replica.
    pub fn unavailable(message: impl Into<Cow<'static, str>>, retry_after: u32) -> XrpcError {
        XrpcError {
            status: StatusCode::SERVICE_UNAVAILABLE,
            name: "NotEnoughResources".into(),
            message: message.into(),
            retry_after: Some(retry_after),
        }
    }

    /// The same, to be tried again after so many seconds.
    #[must_use]
    pub fn after(mut self, seconds: u32) -> XrpcError {
        self.retry_after = Some(seconds);
        self
    }

    /// The same under another name.
    #[must_use]
    pub fn named(mut self, name: &'static str) -> XrpcError {
        self.name = name.into();
        self
    }

    /// The HTTP answer.
    #[must_use]
    pub fn into_http(self) -> Response<Body> {
        let body = serde_json::json!({ "error": self.name, "message": self.message }).to_string();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json; charset=utf-8"),
        );
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
