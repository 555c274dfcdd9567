//! What the stores behind HTTP have in common: one way to make a client, time limits by size, and words for what fails
//! that hold no URL.

use std::time::Duration;

use super::StoreError;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a connection may be silent in the middle of an answer's body.
pub(super) const SILENCE_TIMEOUT: Duration = Duration::from_secs(15);

/// What the bytes of a request add to its time limit: enough for 2 Mbit/s shared by all requests in flight.
const SECONDS_PER_MIB: u64 = 16;

/// Connections kept open without work. Idle for a minute they are closed: the services' balancers drop them unannounced
/// after a few.
const IDLE_CONNECTIONS: usize = 32;
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest part of a service's own words that we pass on, in characters.
pub(super) const DETAIL_CHARS: usize = 300;

/// A client that follows no redirects; with `plain` for a server on this machine or beside it, which no proxy leads to.
pub(super) fn client(plain: bool) -> Result<reqwest::Client, StoreError> {
    // An error means that a provider is installed already, which is as good.
    drop(rustls::crypto::ring::default_provider().install_default());
    let mut builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .pool_idle_timeout(IDLE_TIMEOUT);
    if plain {
        builder = builder.no_proxy();
    }
    builder.build().map_err(|error| StoreError::Invalid {
        detail: format!("the HTTP client cannot be built: {error}"),
    })
}

/// The time that `bytes` bytes may take.
pub(super) fn time_for(bytes: u64) -> Duration {
    Duration::from_millis(bytes.saturating_mul(SECONDS_PER_MIB * 1000) >> 20)
}

/// What is wrong with the connection. The transport's own words quote the URL, which may hold a signature.
pub(super) fn words(error: &reqwest::Error) -> &'static str {
    match error {
        error if error.is_connect() => "no connection",
        error if error.is_timeout() => "the connection fell silent",
        error if error.is_body() || error.is_decode() => "the connection broke in the middle of a body",
        _ => "the connection failed",
    }
}
