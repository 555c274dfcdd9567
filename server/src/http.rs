//! The HTTP surface: routes, and what every request passes on its way (request id, log line, metrics, CORS,
//! compression, panic net).

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, header,
};
use axum::routing::{any, get, post};
use futures_util::FutureExt;
use metrics::Histogram;
use tower::{Layer, ServiceExt};
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tracing::Instrument;

use crate::app::App;
use crate::limits::{Meter, buckets};
use crate::xrpc::error::XrpcError;
use crate::{firehose, listen, pages, telemetry, xrpc};

/// Smaller answers fit a packet as they are.
const COMPRESS_FROM_BYTES: u64 = 1024;
/// Headers that a page of another origin may read.
const EXPOSED: &str = "RateLimit-Limit, RateLimit-Reset, RateLimit-Remaining, RateLimit-Policy, Retry-After, DPoP-Nonce, WWW-Authenticate";
/// How long a browser may remember what it was told in advance.
const PREFLIGHT_SECONDS: &str = "86400";

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// All routes over an open engine, with what every request passes on its way. Cheap to clone.
///
/// Methods of the table are called straight from here; everything else is matched by a router.
#[derive(Clone)]
pub(crate) struct Routes(Arc<RoutesInner>);

struct RoutesInner {
    app: Arc<App>,
    router: Router,
    latency: Latency,
}

impl Routes {
    /// The routes of `app`.
    pub(crate) fn new(app: Arc<App>) -> Routes {
        let router = Router::new()
            .route(
                "/xrpc/com.atproto.sync.subscribeRepos",
                get(firehose::subscribe).fallback(firehose::not_a_subscription),
            )
            .route("/xrpc/_health", get(pages::xrpc_health).fallback(not_found))
            .route("/xrpc/{nsid}", any(xrpc::dispatch))
            .route("/", get(pages::banner))
            .route("/robots.txt", get(pages::robots))
            .route("/.well-known/did.json", get(pages::did_document))
            .route("/.well-known/atproto-did", get(pages::atproto_did))
            .route("/_health/live", get(pages::live))
            .route("/_health/ready", get(pages::ready))
            .route("/_health/replication", get(pages::replication))
            .route("/_peers", get(pages::peers::list).post(pages::peers::announce))
            .route("/_peers/handover", post(pages::peers::poke))
            .route("/_peers/promote", post(pages::peers::promote))
            .route("/dev/mail", get(pages::mail))
            .route("/metrics", get(pages::metrics))
            .fallback(not_found)
            .with_state(app.clone())
            // Every method bounds its own body.
            .layer(DefaultBodyLimit::disable());
        Routes(Arc::new(RoutesInner {
            app,
            router,
            latency: Latency::default(),
        }))
    }

    /// Answers one request: gives it an id, logs it once it is answered, and counts it.
    pub(crate) async fn answer(&self, request: Request) -> Response<Body> {
        let id = request_id(request.headers());
        let method = request.method().clone();
        let uri = request.uri().clone();
        let span = tracing::info_span!("request", id = %id);
        let started = Instant::now();
        let packed = accepts_gzip(request.headers());
        let row = xrpc::find(uri.path());
        let mut request = request;
        let meter = self.meter(&request);
        let answering = AssertUnwindSafe(async {
            if let Some(meter) = &meter {
                if buckets::is_global(uri.path())
                    && let Err(refused) = meter.global().await
                {
                    return XrpcError::from(refused).into_http();
                }
                request.extensions_mut().insert(meter.clone());
            }
            self.pass(row, request).await
        })
        .catch_unwind();
        let mut response = answering
            .instrument(span.clone())
            .await
            .unwrap_or_else(|_| XrpcError::internal("a request handler panicked").into_http());
        if is_compressible(&response) {
            if packed {
                response = compress(response).await;
            } else {
                let vary = HeaderValue::from_static("accept-encoding");
                response.headers_mut().append(header::VARY, vary);
            }
        }
        if method == Method::HEAD {
            response = without_body(response);
        }
        let elapsed = started.elapsed();
        let status = response.status().as_u16();
        self.0.latency.of(row, status).record(elapsed.as_secs_f64());
        let headers = response.headers_mut();
        if !headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        }
        headers.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static(EXPOSED),
        );
        if let Some(meter) = meter {
            meter.tell(headers);
        }
        if let Ok(value) = HeaderValue::from_str(&id) {
            headers.insert(REQUEST_ID.clone(), value);
        }
        let _entered = span.enter();
        let (path, ms) = (uri.path(), u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
        if self
            .0
            .app
            .config
            .logging
            .slow
            .is_some_and(|limit| elapsed >= limit)
        {
            metrics::counter!("pds_slow_requests_total", "method" => row.map_or("other", xrpc::Row::nsid))
                .increment(1);
            tracing::warn!(%method, path, status, ms, "answered slowly");
        } else if path.starts_with("/_health") || path == "/metrics" {
            tracing::debug!(%method, path, status, ms, "answered");
        } else {
            tracing::info!(%method, path, status, ms, "answered");
        }
        response
    }

    /// How a request is counted, if it is.
    fn meter(&self, request: &Request) -> Option<Arc<Meter>> {
        let limits = self.0.app.limits.as_ref()?;
        let counted = request.uri().path().starts_with("/xrpc/") || buckets::is_global(request.uri().path());
        if !counted || request.method() == Method::OPTIONS {
            return None;
        }
        let peer = request.extensions().get::<listen::Peer>().copied();
        let address = listen::client_address(&self.0.app.config, peer, request.headers());
        limits.meter(address, request.headers())
    }

    async fn pass(&self, row: Option<&'static xrpc::Row>, request: Request) -> Response<Body> {
        if request.method() == Method::OPTIONS {
            return preflight(request.headers());
        }
        match row {
            Some(row) => xrpc::call(self.0.app.clone(), row, request).await,
            None => match self.0.router.clone().oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
        }
    }
}

/// What a browser asks before it lets a page of another origin call: everything is allowed.
fn preflight(asked: &HeaderMap) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(
        header::ACCESS_CONTROL_MAX_AGE,
        HeaderValue::from_static(PREFLIGHT_SECONDS),
    );
    headers.insert(
        header::VARY,
        HeaderValue::from_static("origin, access-control-request-method, access-control-request-headers"),
    );
    for (question, answer) in [
        (
            header::ACCESS_CONTROL_REQUEST_METHOD,
            header::ACCESS_CONTROL_ALLOW_METHODS,
        ),
        (
            header::ACCESS_CONTROL_REQUEST_HEADERS,
            header::ACCESS_CONTROL_ALLOW_HEADERS,
        ),
    ] {
        if let Some(wanted) = asked.get(question) {
            headers.insert(answer, wanted.clone());
        }
    }
    response
}

/// Whether an answer is worth compressing: repos, and answers that are more than a few words. Media is not: most of it is
/// compressed, and its exact length is promised.
fn is_compressible(response: &Response<Body>) -> bool {
    let headers = response.headers();
    let of = |name| headers.get(name).map(HeaderValue::as_bytes).unwrap_or_default();
    let kind = of(header::CONTENT_TYPE);
    response
        .body()
        .size_hint()
        .exact()
        .is_none_or(|bytes| bytes >= COMPRESS_FROM_BYTES)
        && !headers.contains_key(header::CONTENT_DISPOSITION)
        && [&b"application/json"[..], b"application/vnd.ipld.car", b"text/"]
            .iter()
            .any(|prefix| kind.starts_with(prefix))
}

/// Whether the client takes gzip, as far as must be known to leave the compressing layer out.
pub(crate) fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT_ENCODING).iter().any(|value| {
        value.to_str().is_ok_and(|codings| {
            codings.split(',').any(|coding| {
                let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
                let refused = weight
                    .trim()
                    .strip_prefix("q=")
                    .is_some_and(|q| q.parse::<f32>().is_ok_and(|q| q == 0.0));
                let name = name.trim();
                !refused && (name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip"))
            })
        })
    })
}

/// The same answer, packed as it is sent.
async fn compress(response: Response<Body>) -> Response<Body> {
    let mut asking = Request::new(Body::empty());
    asking
        .headers_mut()
        .insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
    let layer = CompressionLayer::new()
        .gzip(true)
        .quality(CompressionLevel::Fastest)
        .compress_when(|_: StatusCode, _: Version, _: &HeaderMap, _: &Extensions| true);
    let mut response = Some(response);
    let ready = tower::service_fn(move |_: Request| {
        std::future::ready(Ok::<_, Infallible>(response.take().unwrap_or_default()))
    });
    match layer.layer(ready).oneshot(asking).await {
        Ok(packed) => packed.map(Body::new),
        Err(never) => match never {},
    }
}

/// What HEAD gets: the headers that GET would get.
fn without_body(mut response: Response<Body>) -> Response<Body> {
    if let Some(bytes) = response.body().size_hint().exact()
        && !response.headers().contains_key(header::CONTENT_LENGTH)
    {
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
    }
    response.map(|_| Body::empty())
}

/// The histograms of `pds_request_seconds`, each found in the recorder once.
struct Latency(Box<[[OnceLock<Histogram>; STATUS_CLASSES.len()]]>);

const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

impl Default for Latency {
    fn default() -> Latency {
        Latency((0..=xrpc::methods()).map(|_| Default::default()).collect())
    }
}

impl Latency {
    /// Of a method, or of everything else, so that labels stay bounded.
    fn of(&self, row: Option<&'static xrpc::Row>, status: u16) -> Histogram {
        let class = usize::from(status / 100).clamp(1, STATUS_CLASSES.len()) - 1;
        let (at, method) = row.map_or((xrpc::methods(), "other"), |row| (row.at(), row.nsid()));
        let make = || metrics::histogram!("pds_request_seconds", "method" => method, "status" => STATUS_CLASSES[class]);
        self.0
            .get(at)
            .and_then(|classes| classes.get(class))
            .map_or_else(make, |slot| slot.get_or_init(make).clone())
    }
}

async fn not_found(request: Request) -> Response<Body> {
    if request.uri().path().starts_with("/xrpc/") {
        return xrpc::invalid_path().into_http();
    }
    XrpcError::new(StatusCode::NOT_FOUND, "NotFound", "There is nothing here").into_http()
}

/// The caller's request id if it is a harmless one, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(&REQUEST_ID).and_then(|value| value.to_str().ok());
    let harmless = |id: &&str| {
        (1..=64).contains(&id.len())
            && id
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    if let Some(id) = given.filter(harmless) {
        return id.to_owned();
    }
    format!("{:016x}", next_id())
}

/// Numbers that repeat in no process's life and look unalike: a counter from a random start, mixed.
fn next_id() -> u64 {
    static NEXT: OnceLock<AtomicU64> = OnceLock::new();
    let next = NEXT.get_or_init(|| {
        let mut random = [0u8; 8];
        // Without randomness two processes share ids, which only makes logs harder to read.
        let _no_randomness = getrandom::fill(&mut random);
        AtomicU64::new(u64::from_ne_bytes(random))
    });
    let mut id = next.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    id = (id ^ (id >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    id = (id ^ (id >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    id ^ (id >> 31)
}

/// A small JSON answer outside XRPC.
#[must_use]
pub fn plain_json(status: StatusCode, value: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json; charset=utf-8"),
    );
    response
}

/// Metrics in Prometheus' text format.
#[must_use]
pub fn render_metrics() -> Option<String> {
    telemetry::metrics::handle().map(metrics_exporter_prometheus::PrometheusHandle::render)
}
