//! XRPC calls, with errors that tell what the server said.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use serde::Deserialize;
use serde_json::Value;

/// Largest answer that is kept in memory, in bytes; repos are counted, not kept.
const MAX_ANSWER_BYTES: usize = 8 << 20;
/// How long one connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the server may be silent.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a request is sent at most when the server asks for patience.
const MAX_TRIES: u32 = 10;
/// The longest pause between two of them.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Why a call failed.
#[derive(Clone, Debug)]
pub enum ApiError {
    /// No answer, or only part of one.
    Transport(String),
    /// The server said no.
    Refused {
        /// The HTTP status.
        status: u16,
        /// The machine-readable name, empty if there was none.
        name: String,
        /// The server's words.
        message: String,
        /// When to come back, if it said so.
        retry_after: Option<Duration>,
    },
    /// An answer that is not what the method promises.
    Unexpected(String),
}

impl ApiError {
    /// Whether the server refused with this name.
    #[must_use]
    pub fn is_named(&self, wanted: &str) -> bool {
        matches!(self, ApiError::Refused { name, .. } if name == wanted)
    }

    /// Whether the request itself was refused, so that repeating it would change nothing.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, ApiError::Refused { status, .. } if (400..500).contains(status) && *status != 429)
    }

    /// How long to wait before the next try, if the server asked for patience; the request then had no effect.
    fn pause(&self, tries: u32) -> Option<Duration> {
        match self {
            ApiError::Refused {
                status: 429 | 503,
                retry_after,
                ..
            } => {
                let growing = Duration::from_millis(100 << tries.min(6));
                Some(retry_after.unwrap_or(growing).min(MAX_PAUSE))
            }
            _ => None,
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApiError::Transport(cause) => write!(f, "no answer: {cause}"),
            ApiError::Refused {
                status,
                name,
                message,
                ..
            } => write!(f, "{status} {name}: {message}"),
            ApiError::Unexpected(what) => write!(f, "unexpected answer: {what}"),
        }
    }
}

impl std::error::Error for ApiError {}

impl From<reqwest::Error> for ApiError {
    fn from(error: reqwest::Error) -> ApiError {
        // reqwest's own words leave out the cause, which is what tells a refused connection from a broken one.
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            text = format!("{text}: {inner}");
            cause = inner.source();
        }
        ApiError::Transport(text)
    }
}

/// A server; cheap to clone.
#[derive(Clone, Debug)]
pub struct Api {
    http: reqwest::Client,
    base: String,
}

impl Api {
    /// A client of the server at `base` (without a slash at its end) that keeps up to `connections` open between requests.
    ///
    /// # Errors
    /// The HTTP client cannot be built.
    pub fn new(base: &str, connections: u32) -> Result<Api> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .tcp_nodelay(true)
            .pool_max_idle_per_host(usize::try_from(connections).unwrap_or(usize::MAX))
            .build()
            .context("the HTTP client cannot be built")?;
        Ok(Api {
            http,
            base: base.to_owned(),
        })
    }

    /// The server's URL, without a slash at its end.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Sends a query and takes the whole answer.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn query(
        &self,
        nsid: &str,
        params: &[(&str, &str)],
        access: Option<&str>,
    ) -> Result<Vec<u8>, ApiError> {
        let request = self.http.get(self.url(nsid)).query(params);
        body(accepted(authorized(request, access).send().await?).await?).await
    }

    /// Sends a query and gives the answer's chunks to come.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn stream(&self, nsid: &str, params: &[(&str, &str)]) -> Result<reqwest::Response, ApiError> {
        accepted(self.http.get(self.url(nsid)).query(params).send().await?).await
    }

    /// Sends a procedure with a JSON body, or with none, and takes the whole answer.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn procedure(
        &self,
        nsid: &str,
        json: Option<&[u8]>,
        bearer: Option<&str>,
    ) -> Result<Vec<u8>, ApiError> {
        let mut request = self.http.post(self.url(nsid));
        if let Some(json) = json {
            request = request
                .header(CONTENT_TYPE, "application/json")
                .body(json.to_vec());
        }
        body(accepted(authorized(request, bearer).send().await?).await?).await
    }

    /// Uploads a blob and takes the whole answer.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn upload(&self, bytes: &[u8], media_type: &str, bearer: &str) -> Result<Vec<u8>, ApiError> {
        let request = self
            .http
            .post(self.url("com.atproto.repo.uploadBlob"))
            .header(CONTENT_TYPE, media_type)
            .body(bytes.to_vec());
        body(accepted(authorized(request, Some(bearer)).send().await?).await?).await
    }

    /// Imports a repo.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn import(&self, car: bytes::Bytes, bearer: &str) -> Result<(), ApiError> {
        let request = self
            .http
            .post(self.url("com.atproto.repo.importRepo"))
            .header(CONTENT_TYPE, "application/vnd.ipld.car")
            .body(car);
        body(accepted(authorized(request, Some(bearer)).send().await?).await?)
            .await
            .map(drop)
    }

    fn url(&self, nsid: &str) -> String {
        format!("{}/xrpc/{nsid}", self.base)
    }
}

/// Repeats a call while the server asks for patience.
///
/// # Errors
/// The call's error, if it is another or the server asked too often.
pub async fn patiently<T, F>(mut call: impl FnMut() -> F) -> Result<T, ApiError>
where
    F: Future<Output = Result<T, ApiError>>,
{
    let mut tries = 1;
    loop {
        match call().await {
            Err(error) if tries < MAX_TRIES => match error.pause(tries) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(error),
            },
            outcome => return outcome,
        }
        tries += 1;
    }
}

/// An answer as JSON.
///
/// # Errors
/// [`ApiError::Unexpected`] if it is none.
pub fn json<'a, T: Deserialize<'a>>(answer: &'a [u8]) -> Result<T, ApiError> {
    serde_json::from_slice(answer).map_err(|error| ApiError::Unexpected(error.to_string()))
}

fn authorized(request: reqwest::RequestBuilder, bearer: Option<&str>) -> reqwest::RequestBuilder {
    match bearer {
        Some(token) => request.header(AUTHORIZATION, format!("Bearer {token}")),
        None => request,
    }
}

async fn accepted(response: reqwest::Response) -> Result<reqwest::Response, ApiError> {
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status().as_u16();
    let retry_after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(Duration::from_secs);
    let bytes = body(response).await?;
    let answer: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let field = |name: &str| answer.get(name).and_then(Value::as_str).map(str::to_owned);
    Err(ApiError::Refused {
        status,
        name: field("error").unwrap_or_default(),
        message: field("message")
            .unwrap_or_else(|| String::from_utf8_lossy(&bytes).chars().take(200).collect()),
        retry_after,
    })
}

async fn body(mut response: reqwest::Response) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if bytes.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(ApiError::Unexpected(format!(
                "more than {MAX_ANSWER_BYTES} bytes"
            )));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, retry_after: Option<Duration>) -> ApiError {
        ApiError::Refused {
            status,
            name: "Name".to_owned(),
            message: "words".to_owned(),
            retry_after,
        }
    }

    #[test]
    fn only_answers_that_ask_for_patience_get_it() {
        assert_eq!(
            refused(503, Some(Duration::from_secs(1))).pause(1),
            Some(Duration::from_secs(1))
        );
        assert_eq!(
            refused(503, Some(Duration::from_secs(600))).pause(1),
            Some(MAX_PAUSE)
        );
        assert_eq!(refused(429, None).pause(1), Some(Duration::from_millis(200)));
        assert_eq!(refused(429, None).pause(99), Some(MAX_PAUSE));
        assert_eq!(refused(400, None).pause(1), None);
        assert_eq!(ApiError::Transport("reset".to_owned()).pause(1), None);
    }

    #[test]
    fn a_refusal_is_final_unless_it_is_about_load() {
        assert!(refused(400, None).is_final() && refused(401, None).is_final());
        assert!(!refused(429, None).is_final() && !refused(503, None).is_final());
        assert!(!ApiError::Transport("reset".to_owned()).is_final());
    }
}
