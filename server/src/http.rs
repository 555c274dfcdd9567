//! The HTTP surface: routes, and what every request passes on its way (request id, log line, metrics, CORS,
//! compression, panic net).

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{Extensions, HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version, header};
use axum::middleware::{self, Next};
use axum::routing::{any, get};
use serde_json::json;
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{Predicate, SizeAbove};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};
use tracing::Instrument;

use crate::app::App;
use crate::xrpc::error::XrpcError;
use crate::{firehose, pages, telemetry, xrpc};

/// Answers of up to so many bytes fit a packet as they are.
const COMPRESS_ABOVE_BYTES: u16 = 1024;

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What answers before the engine is open, and hands over to the real routes afterwards.
///
/// Liveness is true from the first moment and readiness only after the hand-over, so that a platform neither kills a
/// server that replays nor sends it traffic.
#[derive(Clone, Default)]
pub struct Gate {
    inner: Arc<GateInner>,
}

#[derive(Default)]
struct GateInner {
    phase: parking_lot::Mutex<String>,
    routes: OnceLock<Router>,
}

impl Gate {
    /// Names what the start is busy with.
    pub fn phase(&self, phase: impl Into<String>) {
        let phase = phase.into();
        tracing::info!(%phase, "starting");
        *self.inner.phase.lock() = phase;
    }

    /// Names how far the replay is.
    pub fn replaying(&self, progress: &engine::views::driver::ReplayProgress) {
        *self.inner.phase.lock() = format!("replaying: {progress:?}");
    }

    /// Opens the real routes, once.
    pub fn open(&self, app: Arc<App>) {
        let _already_open = self.inner.routes.set(routes(app));
    }

    /// The service to listen with.
    pub fn router(&self) -> Router {
        Router::new().fallback(enter).with_state(self.clone())
    }
}

async fn enter(State(gate): State<Gate>, request: Request) -> Response<Body> {
    if let Some(routes) = gate.inner.routes.get() {
        return match routes.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
    }
    let phase = gate.inner.phase.lock().clone();
    match request.uri().path() {
        "/_health/live" => plain_json(StatusCode::OK, &json!({ "status": "alive", "phase": phase })),
        "/_health/ready" => plain_json(
            StatusCode::SERVICE_UNAVAILABLE,
            &json!({ "status": "starting", "phase": phase }),
        ),
        _ => XrpcError::unavailable(format!("The server is starting: {phase}"), 2).into_http(),
    }
}

/// All routes over an open engine.
pub(crate) fn routes(app: Arc<App>) -> Router {
    let cors = CorsLayer::new()
        .allow_origin(AllowOrigin::any())
        .allow_methods(AllowMethods::mirror_request())
        .allow_headers(AllowHeaders::mirror_request())
        .max_age(Duration::from_secs(86_400));
    Router::new()
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
        .route("/dev/mail", get(pages::mail))
        .route("/metrics", get(pages::metrics))
        .fallback(not_found)
        .with_state(app)
        // Every method bounds its own body.
        .layer(DefaultBodyLimit::disable())
        .layer(
            CompressionLayer::new()
                .gzip(true)
                .compress_when(SizeAbove::new(COMPRESS_ABOVE_BYTES).and(compressible)),
        )
        .layer(CatchPanicLayer::custom(|_| {
            XrpcError::internal("a request handler panicked").into_http()
        }))
        .layer(cors)
        .layer(middleware::from_fn(observe))
}

/// What is worth compressing: repos, and answers that are more than a few words. Media is not: most of it is compressed,
/// and its exact length is promised.
fn compressible(_: StatusCode, _: Version, headers: &HeaderMap, _: &Extensions) -> bool {
    let of = |name| headers.get(name).map(HeaderValue::as_bytes).unwrap_or_default();
    let kind = of(header::CONTENT_TYPE);
    !headers.contains_key(header::CONTENT_DISPOSITION)
        && [&b"application/json"[..], b"application/vnd.ipld.car", b"text/"]
            .iter()
            .any(|prefix| kind.starts_with(prefix))
}

async fn not_found(request: Request) -> Response<Body> {
    if request.uri().path().starts_with("/xrpc/") {
        return xrpc::invalid_path().into_http();
    }
    XrpcError::new(StatusCode::NOT_FOUND, "NotFound", "There is nothing here").into_http()
}

/// Gives the request an id, logs it once it is answered, and counts it.
async fn observe(request: Request, next: Next) -> Response<Body> {
    let id = request_id(request.headers());
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let label = xrpc::metric_label(&path);
    let span = tracing::info_span!("request", id = %id);
    let started = Instant::now();
    let mut response = next.run(request).instrument(span.clone()).await;
    let elapsed = started.elapsed();
    let status = response.status().as_u16();
    metrics::histogram!("pds_request_seconds", "method" => label, "status" => status_class(status))
        .record(elapsed.as_secs_f64());
    let _entered = span.enter();
    let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    if path.starts_with("/_health") || path == "/metrics" {
        tracing::debug!(%method, path, status, ms, "answered");
    } else {
        tracing::info!(%method, path, status, ms, "answered");
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID.clone(), value);
    }
    response
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
    let mut random = [0u8; 8];
    // Without randomness requests share an id, which only makes logs harder to read.
    let _no_randomness = getrandom::fill(&mut random);
    data_encoding::HEXLOWER.encode(&random)
}

fn status_class(status: u16) -> &'static str {
    match status {
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        500..=599 => "5xx",
        _ => "1xx",
    }
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
