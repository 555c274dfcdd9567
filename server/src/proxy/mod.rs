//! The service proxy: what this server does not answer itself goes to the service that does, with a token in the name of the
//! account that calls.
//!
//! Order of checks: verb (in [`crate::xrpc`]) → methods that are never sent on → which service → credentials → what they allow →
//! where the service is → a free place. Unlike in the reference PDS the credentials are looked at before a DID is resolved, so that nobody
//! without an account makes this server fetch anything.
//!
//! | bound | at it |
//! |---|---|
//! | requests at once, in all and of one account (`PDS_PROXY_MAX_REQUESTS`, `PDS_PROXY_MAX_PER_ACCOUNT`) | 503 |
//! | the head of the answer (`PDS_PROXY_HEADERS_TIMEOUT`) after the last byte of the request | 502 |
//! | nothing of the answer's body for `PDS_PROXY_BODY_TIMEOUT` | it breaks off |
//! | bytes of the answer (`PDS_PROXY_MAX_RESPONSE_SIZE`) | 502 if it says so in advance, else it breaks off |
//! | a client that sends nothing of its body for 20 s | 408 |
//! | `EXCHANGE_LIMIT` for all of it | it breaks off |
//!
//! Bodies pass in both directions as they come.

mod answer;
mod client;
mod slots;
mod target;
mod upload;

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, header};
use reqwest::Url;
use tokio::time::Instant;

use crate::app::App;
use crate::auth::methods;
use crate::auth::permission::{Access, Denied, Rpc};
use crate::client::dns::Dns;
use crate::client::http::FetchError;
use crate::config::{Config, ProxySettings, Upstreams};
use crate::xrpc::auth::{Caller, caller};
use crate::xrpc::error::{XrpcError, XrpcResult};
use answer::Bounds;
use client::{Clients, Outgoing};
use slots::Slots;
use target::Target;

/// How long one exchange may take, upload and answer together.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(600);

/// Headers of a request that the service gets, whatever the verb.
const UP: [HeaderName; 4] = [
    header::ACCEPT_ENCODING,
    header::ACCEPT_LANGUAGE,
    HeaderName::from_static("atproto-accept-labelers"),
    HeaderName::from_static("x-bsky-topics"),
];
/// And those of a body.
const UP_WITH_BODY: [HeaderName; 3] = [
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
];

/// Sends requests on.
pub struct Proxy {
    upstreams: Upstreams,
    settings: ProxySettings,
    clients: Clients,
    slots: Slots,
}

/// A request that may be sent on.
pub struct Call<'a> {
    /// GET, HEAD or POST.
    pub method: Method,
    /// The method's name, as the client spells it.
    pub nsid: &'a str,
    /// The query string as it came.
    pub query: Option<&'a str>,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The body, not read yet.
    pub body: Body,
}

impl Proxy {
    /// As the settings want it; names of services that clients name are resolved by `dns`.
    ///
    /// # Errors
    /// [`FetchError::Setup`] if TLS is not to be had.
    pub fn new(config: &Config, dns: Arc<dyn Dns>) -> Result<Proxy, FetchError> {
        let settings = config.proxy;
        Ok(Proxy {
            upstreams: config.upstreams.clone(),
            settings,
            clients: Clients::new(&settings, config.allow_local, dns)?,
            slots: Slots::new(settings.max_requests, settings.max_per_account),
        })
    }

    /// Where the service is: as the settings or its DID document say.
    async fn locate(&self, app: &App, target: &Target) -> XrpcResult<Url> {
        if let Some(url) = &target.configured {
            return Ok(url.clone());
        }
        let document = app.names.document(&target.did, false).await.map_err(|error| {
            tracing::debug!(%error, "a service's DID does not resolve");
            XrpcError::invalid(format!(
                "Could not resolve the DID of the service: {}",
                target.did
            ))
        })?;
        let endpoint = document.service(&target.fragment).ok_or_else(|| {
            XrpcError::invalid(format!(
                "The DID document of {} has no service #{}",
                target.did, target.fragment
            ))
        })?;
        self.clients.check(endpoint).map_err(|error| {
            tracing::debug!(%error, "a service may not be asked");
            answer::unreachable()
        })
    }

    async fn forward(
        &self,
        app: &App,
        caller: &Caller,
        target: &Target,
        call: Call<'_>,
    ) -> XrpcResult<Response<Body>> {
        let rpc = Rpc {
            aud: &target.audience(),
            lxm: call.nsid,
        };
        caller.permission.call(rpc)?;
        let slot = self.slots.take(&caller.did).ok_or_else(|| {
            metrics::counter!("pds_proxy_refused_total").increment(1);
            XrpcError::unavailable("Too many requests to other services at once", 1)
        })?;
        let mut url = self.locate(app, target).await?;
        url.set_path(&format!("/xrpc/{}", call.nsid));
        url.set_query(call.query);
        let head = call.method == Method::HEAD;
        let deadline = Instant::now() + EXCHANGE_LIMIT;
        let posted = call.method == Method::POST;
        let body = (posted && !call.body.is_end_stream()).then_some(call.body);
        let outgoing = Outgoing {
            headers: headers_up(call.headers, posted),
            method: call.method,
            url,
            configured: target.configured.is_some(),
            deadline,
        };
        let token = || async {
            let token = app
                .service_auth
                .for_call(&caller.did, &target.did, call.nsid)
                .await;
            token.map_err(XrpcError::from)
        };
        let answer = self.clients.send(outgoing, body, token).await?;
        let bounds = Bounds {
            bytes: self.settings.max_response_bytes,
            idle: self.settings.body_timeout,
            deadline,
        };
        answer::pass(answer, head, bounds, slot).await
    }
}

/// What no method of this server is: for the service that the client or the settings name.
///
/// # Errors
/// 400 without a service or for what is never sent on, 401 or 400 for the credentials, 502 and 503 as above, and what the service says.
pub async fn catch_all(app: &App, call: Call<'_>) -> XrpcResult<Response<Body>> {
    if methods::is_protected(call.nsid) {
        return Err(Denied::Method.into());
    }
    let proxy = &app.proxy;
    let target = target::choose(&proxy.upstreams, call.nsid, call.headers)?;
    let caller = caller(app, call.headers, Access::Standard)?;
    proxy.forward(app, &caller, &target, call).await
}

/// A method of this server that is another service's to answer, for callers whom `access` lets in.
///
/// # Errors
/// As [`catch_all`], but the credentials come first.
pub async fn send_on(app: &App, access: Access, call: Call<'_>) -> XrpcResult<Response<Body>> {
    let caller = caller(app, call.headers, access)?;
    let proxy = &app.proxy;
    let target = target::choose(&proxy.upstreams, call.nsid, call.headers)?;
    proxy.forward(app, &caller, &target, call).await
}

/// Whether `nsid`, a method of the AppView's of which this server keeps the data, is asked of this server: not if the client names
/// another AppView than the configured one.
///
/// # Errors
/// 400 without an AppView, or for a header that names none.
pub fn is_here(app: &App, nsid: &str, headers: &HeaderMap) -> XrpcResult<bool> {
    let target = target::choose(&app.proxy.upstreams, nsid, headers)?;
    Ok(target.configured.is_some())
}

fn headers_up(given: &HeaderMap, with_body: bool) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let body: &[HeaderName] = if with_body { &UP_WITH_BODY } else { &[] };
    for name in UP.iter().chain(body) {
        for value in given.get_all(name) {
            headers.append(name.clone(), value.clone());
        }
    }
    headers
        .entry(header::ACCEPT_ENCODING)
        .or_insert(HeaderValue::from_static("identity"));
    headers
}
