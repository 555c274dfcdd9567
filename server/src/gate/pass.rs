//! Sending a request on to the server that has taken over.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use crate::client::ensure_tls_provider;
use crate::listen::Peer;
use crate::xrpc::error::XrpcError;

/// How long the new writer may take to begin its answer: a little more than its own bound of a write.
const ANSWER_LIMIT: Duration = Duration::from_secs(40);
/// How long a connection to it may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// The server that took over. Cheap to clone.
#[derive(Clone)]
pub struct Successor {
    client: reqwest::Client,
    url: Arc<str>,
}

impl Successor {
    /// The server at `url`, without a slash at its end.
    ///
    /// # Errors
    /// No HTTP client could be made.
    pub fn new(url: &str) -> Result<Successor, reqwest::Error> {
        ensure_tls_provider();
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_LIMIT)
            .build()?;
        Ok(Successor {
            client,
            url: url.trim_end_matches('/').into(),
        })
    }

    /// Whether it says that it takes requests.
    pub async fn is_ready(&self) -> bool {
        let asked = self
            .client
            .get(format!("{}/_health/ready", self.url))
            .timeout(Duration::from_secs(2))
            .send()
            .await;
        asked.is_ok_and(|answer| answer.status().is_success())
    }

    /// Sends a request on and its answer back, both as they come.
    pub(super) async fn pass(&self, request: Request) -> Response<Body> {
        if request.headers().contains_key(header::UPGRADE) {
            // A subscription begins anew at its cursor, at whoever is found under the public name by then.
            return super::moving();
        }
        let (parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut headers = end_to_end(parts.headers);
        if let Some(host) = headers.remove(header::HOST) {
            // The name in the request's target is the new server's own, which an ingress in between goes by.
            headers.insert(HeaderName::from_static("x-forwarded-host"), host);
        }
        if let Some(Peer(address)) = parts.extensions.get::<Peer>()
            && let Ok(address) = HeaderValue::from_str(&address.to_string())
        {
            headers.append(HeaderName::from_static("x-forwarded-for"), address);
        }
        let sending = self
            .client
            .request(parts.method, format!("{}{path}", self.url))
            .headers(headers)
            .body(reqwest::Body::wrap_stream(body.into_data_stream()))
            .send();
        match tokio::time::timeout(ANSWER_LIMIT, sending).await {
            Ok(Ok(answer)) => {
                let (status, headers) = (answer.status(), end_to_end(answer.headers().clone()));
                let mut response = Response::new(Body::from_stream(answer.bytes_stream()));
                *response.status_mut() = status;
                *response.headers_mut() = headers;
                response
            }
            Ok(Err(error)) if error.is_connect() => super::moving(),
            Ok(Err(error)) => {
                tracing::warn!(%error, "a request that was sent on to the new writer broke off");
                unknown()
            }
            Err(_) => unknown(),
        }
    }
}

/// The new writer may or may not have carried it out.
fn unknown() -> Response<Body> {
    XrpcError::new(
        StatusCode::BAD_GATEWAY,
        "UpstreamFailure",
        "The server that took over did not answer; the request may have been carried out",
    )
    .into_http()
}

/// Headers without those that are about one connection.
fn end_to_end(mut headers: HeaderMap) -> HeaderMap {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::TE,
        header::TRAILER,
        header::UPGRADE,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        HeaderName::from_static("keep-alive"),
    ] {
        headers.remove(name);
    }
    headers
}
