//! Sending: connections, deadlines, second tries.
//!
//! Two clients. One for the services in the settings, which the operator may have in his own network; one for those that a
//! client names, which reaches public addresses over https only, as `client::http` has it. Neither follows redirects, keeps
//! cookies, asks a proxy of the environment or unpacks what it gets.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Method, StatusCode};
use futures_util::future::Either;
use reqwest::{Client, ClientBuilder, Url};
use tokio::time::Instant;

use super::answer::unreachable;
use super::upload::{Patience, Progress, Upload};
use crate::client::dns::Dns;
use crate::client::http::{self, FetchError};
use crate::config::ProxySettings;
use crate::xrpc::error::XrpcError;

/// How long a client may send nothing of the body that it has begun.
const CLIENT_STALL: Duration = Duration::from_secs(20);
/// Idle connections kept to one host.
const IDLE_CONNECTIONS: usize = 32;
/// What one HTTP/2 stream, and one connection, may have on its way to us unread.
const H2_STREAM_BYTES: u32 = 256 << 10;
const H2_CONNECTION_BYTES: u32 = 2 << 20;

/// A request as it goes out, but for its token.
pub(super) struct Outgoing {
    pub(super) method: Method,
    pub(super) url: Url,
    /// Whether the settings name the service.
    pub(super) configured: bool,
    pub(super) headers: HeaderMap,
    /// When all of it must have ended, with the answer.
    pub(super) deadline: Instant,
}

/// Both clients.
pub(super) struct Clients {
    configured: Client,
    public: Client,
    allow_local: bool,
    headers_timeout: Duration,
    retries: u32,
}

impl Clients {
    pub(super) fn new(
        settings: &ProxySettings,
        allow_local: bool,
        dns: Arc<dyn Dns>,
    ) -> Result<Clients, FetchError> {
        let build = |builder: ClientBuilder| {
            let builder = builder
                .connect_timeout(settings.headers_timeout)
                .pool_max_idle_per_host(IDLE_CONNECTIONS)
                .retry(reqwest::retry::never())
                .no_gzip()
                .no_brotli()
                .no_zstd()
                .no_deflate();
            let builder = if settings.allow_http2 {
                builder
                    .http2_initial_stream_window_size(H2_STREAM_BYTES)
                    .http2_initial_connection_window_size(H2_CONNECTION_BYTES)
            } else {
                builder.http1_only()
            };
            builder
                .build()
                .map_err(|error| FetchError::Setup(error.to_string()))
        };
        Ok(Clients {
            configured: build(http::closed())?,
            public: build(http::guarded(allow_local, dns))?,
            allow_local,
            headers_timeout: settings.headers_timeout,
            retries: settings.max_retries,
        })
    }

    /// Whether this server may go where a stranger's service says it is.
    pub(super) fn check(&self, endpoint: &str) -> Result<Url, FetchError> {
        http::check_url(endpoint, self.allow_local)
    }

    /// Sends a request, with what the client sends if it does, and with a new token from `token` for each try, or without one, until the head of an answer is here. Only what changes nothing
    /// is tried again, and only if the connection failed.
    pub(super) async fn send<T: Future<Output = Result<Option<String>, XrpcError>>>(
        &self,
        outgoing: Outgoing,
        mut body: Option<Body>,
        token: impl Fn() -> T,
    ) -> Result<reqwest::Response, XrpcError> {
        let repeatable = matches!(outgoing.method, Method::GET | Method::HEAD);
        let mut tries_left = if repeatable { self.retries } else { 0 };
        loop {
            let token = token().await?;
            match self.attempt(&outgoing, token.as_deref(), body.take()).await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Connection(error)) if tries_left > 0 => {
                    tries_left -= 1;
                    tracing::debug!(%error, "a service is asked again");
                }
                Err(failure) => return Err(failure.into_error(&outgoing.url)),
            }
        }
    }

    async fn attempt(
        &self,
        outgoing: &Outgoing,
        token: Option<&str>,
        body: Option<Body>,
    ) -> Result<reqwest::Response, Failure> {
        let client = if outgoing.configured {
            &self.configured
        } else {
            &self.public
        };
        let mut request = client
            .request(outgoing.method.clone(), outgoing.url.clone())
            .headers(outgoing.headers.clone());
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let progress = Progress::new();
        if let Some(body) = body {
            let upload = Upload::new(body.into_data_stream(), progress.clone());
            request = request.body(reqwest::Body::wrap_stream(upload));
        }
        let mut sending = std::pin::pin!(request.send());
        loop {
            let until = match progress.judge(CLIENT_STALL, self.headers_timeout) {
                _ if Instant::now() >= outgoing.deadline => return Err(Failure::Timeout),
                Patience::Until(until) => until.min(outgoing.deadline),
                Patience::ClientStalls => return Err(Failure::ClientStalls),
                Patience::ServiceStalls => return Err(Failure::Timeout),
            };
            let waiting = std::pin::pin!(tokio::time::sleep_until(until));
            match futures_util::future::select(sending.as_mut(), waiting).await {
                Either::Left((Ok(answer), _)) => return Ok(answer),
                Either::Left((Err(_), _)) if progress.is_broken() => return Err(Failure::ClientBroke),
                Either::Left((Err(error), _)) if error.is_timeout() => return Err(Failure::Timeout),
                Either::Left((Err(error), _)) => {
                    return Err(Failure::Connection(http::unreachable(error).to_string()));
                }
                Either::Right(_) => {}
            }
        }
    }
}

/// Why there is no answer.
enum Failure {
    /// No connection, or it broke. The text has no URL.
    Connection(String),
    Timeout,
    ClientStalls,
    ClientBroke,
}

impl Failure {
    fn into_error(self, url: &Url) -> XrpcError {
        let host = url.host_str().unwrap_or_default();
        match self {
            Failure::Connection(error) => {
                tracing::warn!(host, error, "a service cannot be reached");
                unreachable()
            }
            Failure::Timeout => {
                tracing::warn!(host, "a service does not answer in time");
                unreachable()
            }
            Failure::ClientStalls => XrpcError::new(
                StatusCode::REQUEST_TIMEOUT,
                "RequestTimeout",
                "The request body did not arrive in time",
            ),
            Failure::ClientBroke => XrpcError::invalid("The request body broke off"),
        }
    }
}
