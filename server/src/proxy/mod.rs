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
//! Bodies pass in both directions as they come, but for answers to which [`fresh`] adds something.

mod answer;
mod client;
pub mod feeds;
pub mod fresh;
pub mod push;
mod slots;
pub mod strangers;
mod target;
mod upload;

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, header};
use engine::repo::Did;
use reqwest::Url;
use serde_json::Value;
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
use slots::{Slot, Slots};
use target::Target;

/// How long one exchange may take, upload and answer together.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(600);

/// How long a question of this server's own may take, and how long its answer may be.
const QUESTION_LIMIT: Duration = Duration::from_secs(5);
const QUESTION_BYTES: u64 = 1 << 20;

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

    /// A place for a request of `account`, or of nobody.
    fn slot(&self, account: Option<&Did>) -> XrpcResult<Slot> {
        self.slots.take(account).ok_or_else(|| {
            metrics::counter!("pds_proxy_refused_total").increment(1);
            XrpcError::unavailable("Too many requests to other services at once", 1)
        })
    }

    /// Sends `errand` to the service and waits for the head of its answer.
    async fn exchange(
        &self,
        app: &App,
        target: &Target,
        errand: Errand<'_>,
    ) -> XrpcResult<(reqwest::Response, Bounds)> {
        let mut url = self.locate(app, target).await?;
        url.set_path(&format!("/xrpc/{}", errand.nsid));
        url.set_query(errand.query);
        let deadline = Instant::now() + EXCHANGE_LIMIT;
        let outgoing = Outgoing {
            headers: errand.headers,
            method: errand.method,
            url,
            configured: target.configured.is_some(),
            deadline,
        };
        let token = || async {
            let Some(token) = errand.token else {
                return Ok(None);
            };
            let token = app
                .service_auth
                .for_call(token.account, token.audience, token.lxm)
                .await;
            token.map(Some).map_err(XrpcError::from)
        };
        let answer = self.clients.send(outgoing, errand.body, token).await?;
        let bounds = Bounds {
            bytes: self.settings.max_response_bytes,
            idle: self.settings.body_timeout,
            deadline,
        };
        Ok((answer, bounds))
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
        let slot = self.slot(Some(&caller.did))?;
        let token = Token {
            account: &caller.did,
            audience: &target.did,
            lxm: call.nsid,
        };
        self.carry(app, target, call, token, slot).await
    }

    /// What the service says to a question of this server's own, asked for `account`, which has a slot already.
    async fn question(
        &self,
        app: &App,
        account: &Did,
        target: &Target,
        nsid: &str,
        query: &str,
    ) -> XrpcResult<Value> {
        let errand = Errand {
            method: Method::GET,
            nsid,
            query: Some(query),
            headers: as_it_is(),
            body: None,
            token: Some(Token {
                account,
                audience: &target.did,
                lxm: nsid,
            }),
        };
        let asking = async {
            let (answer, bounds) = self.exchange(app, target, errand).await?;
            let short = Bounds {
                bytes: bounds.bytes.min(QUESTION_BYTES),
                ..bounds
            };
            answer::value(answer, short).await
        };
        tokio::time::timeout(QUESTION_LIMIT, asking).await.map_err(|_| {
            tracing::warn!(nsid, "a service does not answer a question in time");
            answer::unreachable()
        })?
    }

    /// A client's request and its answer, as they are.
    async fn carry(
        &self,
        app: &App,
        target: &Target,
        call: Call<'_>,
        token: Token<'_>,
        slot: Slot,
    ) -> XrpcResult<Response<Body>> {
        let head = call.method == Method::HEAD;
        let posted = call.method == Method::POST;
        let errand = Errand {
            body: (posted && !call.body.is_end_stream()).then_some(call.body),
            headers: headers_up(call.headers, posted),
            method: call.method,
            nsid: call.nsid,
            query: call.query,
            token: Some(token),
        };
        let (answer, bounds) = self.exchange(app, target, errand).await?;
        answer::pass(answer, head, bounds, slot).await
    }
}

/// One request to a service.
struct Errand<'a> {
    method: Method,
    nsid: &'a str,
    query: Option<&'a str>,
    headers: HeaderMap,
    body: Option<Body>,
    token: Option<Token<'a>>,
}

/// The token that goes with it.
#[derive(Clone, Copy)]
struct Token<'a> {
    account: &'a Did,
    audience: &'a Did,
    lxm: &'a str,
}

/// A caller of a method of the AppView's that has a part of its own here, and the service that answers it.
pub struct Admitted {
    caller: Caller,
    target: Target,
}

/// Lets an account in, or not, that calls such a method.
///
/// # Errors
/// 400 without a service, 401 or 400 for the credentials.
pub fn admit(app: &App, nsid: &str, headers: &HeaderMap) -> XrpcResult<Admitted> {
    let target = target::choose(&app.proxy.upstreams, nsid, headers)?;
    let caller = caller(app, headers, Access::Standard)?;
    Ok(Admitted { caller, target })
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

/// Headers of a request of this server's own: the answer is to come as it is.
fn as_it_is() -> HeaderMap {
    [(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"))]
        .into_iter()
        .collect()
}

/// Parameters as a query string.
fn query_of<'a>(params: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    // The place is of no matter, and a sound one.
    let url = Url::parse_with_params("http://localhost/", params).ok();
    url.and_then(|url| url.query().map(str::to_owned))
        .unwrap_or_default()
}
