//! A proxy between a server and the Azure emulator that does to requests what networks and services do, driven by a seed.
//!
//! | fault | what the server sees | what the store did |
//! |---|---|---|
//! | delay, slow first byte | a late answer | the request |
//! | drop before | a broken connection | nothing |
//! | drop after | a broken connection | the request |
//! | reset in the answer | half an answer | the request |
//! | 403, 404, 409, 412, 429, 500, 503 | that answer | nothing |
//! | expired token | 403 to everything for a moment | nothing |
//! | stale listing | what the same listing said a moment ago | the listing |
//! | twice | the second answer | the request, two times |
//!
//! A false 404 or 409 is told only where no true one could mean something else to who asks: a service that lies about what
//! exists cannot be fenced by.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use axum::body::{Body, Bytes};
use axum::http::{Method, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::random::Random;

/// Largest request that is passed on.
const BODY_MAX: usize = 64 << 20;
/// How far behind a listing may be.
const STALE_FOR: Duration = Duration::from_millis(250);
/// How long a token stays expired.
const EXPIRED_FOR: Duration = Duration::from_millis(400);

/// What can happen to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Strike {
    /// It waits first.
    Delay,
    /// Its answer waits.
    SlowFirstByte,
    /// The connection breaks before it is carried out.
    DropBefore,
    /// The connection breaks after it was carried out.
    DropAfter,
    /// The answer ends in the middle.
    Reset,
    /// It is answered so, and not carried out.
    Answer(u16),
    /// Everything is refused for a moment.
    TokenExpired,
    /// A listing is answered as it was a moment ago.
    StaleList,
    /// It is carried out twice.
    Twice,
}

const STRIKES: [Strike; 14] = [
    Strike::Delay,
    Strike::SlowFirstByte,
    Strike::DropBefore,
    Strike::DropAfter,
    Strike::Reset,
    Strike::Answer(403),
    Strike::Answer(409),
    Strike::Answer(412),
    Strike::Answer(429),
    Strike::Answer(500),
    Strike::Answer(503),
    Strike::TokenExpired,
    Strike::StaleList,
    Strike::Twice,
];

/// The proxy. Ends when it is dropped.
#[derive(Debug)]
pub struct FaultProxy {
    /// Its URL, to be used instead of the emulator's.
    pub url: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    target: String,
    client: reqwest::Client,
    random: Mutex<Random>,
    /// Requests of a thousand that are struck.
    per_mille: AtomicU64,
    expired_until: Mutex<Option<Instant>>,
    listings: Mutex<HashMap<String, (Instant, StatusCode, Bytes)>>,
    struck: Mutex<HashMap<Strike, u64>>,
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FaultProxy {
    /// Begins to pass requests on to `target`; strikes none until it is told to.
    ///
    /// # Errors
    /// It cannot listen.
    pub async fn start(target: &str, seed: u64) -> Result<FaultProxy> {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let shared = Arc::new(Shared {
            target: target.trim_end_matches('/').to_owned(),
            client: reqwest::Client::builder().no_proxy().build()?,
            random: Mutex::new(Random::new(seed)),
            per_mille: AtomicU64::new(0),
            expired_until: Mutex::default(),
            listings: Mutex::default(),
            struck: Mutex::default(),
        });
        let serving = shared.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = serving.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request: hyper::Request<Incoming>| {
                        let shared = shared.clone();
                        async move { answer(&shared, request.map(Body::new)).await }
                    });
                    let connection = auto::Builder::new(TokioExecutor::new());
                    // It ends in whatever way the faults have it.
                    let _ended = connection.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Ok(FaultProxy { url, shared, task })
    }

    /// Strikes so many requests of a thousand from now on.
    pub fn strike(&self, per_mille: u64) {
        self.shared.per_mille.store(per_mille, Ordering::Relaxed);
    }

    /// How often each fault struck.
    #[must_use]
    pub fn struck(&self) -> HashMap<Strike, u64> {
        lock(&self.shared.struck).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Which fault strikes this request, if one does.
    fn choose(&self, method: &Method, is_list: bool) -> Option<(Strike, Duration)> {
        let mut random = lock(&self.random);
        if random.between(1, 1000) > self.per_mille.load(Ordering::Relaxed) {
            return None;
        }
        let at = random.between(0, STRIKES.len() as u64 - 1);
        let strike = usize::try_from(at).ok().and_then(|at| STRIKES.get(at)).copied()?;
        let pause = Duration::from_millis(random.between(1, 400));
        let applies = match strike {
            Strike::StaleList => is_list,
            Strike::Twice => *method == Method::PUT || *method == Method::DELETE,
            // Each refuses everything that is asked meanwhile, or ends what is not asked again: rarer than the rest.
            Strike::TokenExpired | Strike::Answer(403) => random.between(1, 10) == 1,
            // Where an object is created, 409 and 412 say that it is there already, which who asks then reads.
            Strike::Answer(409 | 412) => *method == Method::PUT,
            _ => true,
        };
        applies.then_some((strike, pause))
    }

    fn note(&self, strike: Strike) {
        *lock(&self.struck).entry(strike).or_default() += 1;
    }

    async fn forward(
        &self,
        parts: &axum::http::request::Parts,
        body: Bytes,
    ) -> Result<(StatusCode, axum::http::HeaderMap, Bytes)> {
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut headers = parts.headers.clone();
        headers.remove(header::HOST);
        headers.remove(header::CONNECTION);
        headers.remove(header::CONTENT_LENGTH);
        let answer = self
            .client
            .request(parts.method.clone(), format!("{}{path}", self.target))
            .headers(headers)
            .body(body)
            .send()
            .await?;
        let (status, mut headers) = (answer.status(), answer.headers().clone());
        headers.remove(header::TRANSFER_ENCODING);
        headers.remove(header::CONNECTION);
        Ok((status, headers, answer.bytes().await?))
    }
}

/// A body that breaks off, and the connection with it.
fn broken(first: Bytes) -> Body {
    let pieces = [
        Ok(first),
        Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset)),
    ];
    Body::from_stream(futures_util::stream::iter(pieces))
}

/// What makes the connection break without an answer.
fn dropped() -> std::io::Error {
    std::io::Error::from(std::io::ErrorKind::ConnectionReset)
}

fn refusal(status: u16, code: &'static str) -> Response<Body> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>{code}</Code><Message>struck</Message></Error>"
    );
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/xml"),
    );
    headers.insert("x-ms-error-code", header::HeaderValue::from_static(code));
    response
}

fn code(status: u16, method: &Method) -> &'static str {
    match status {
        403 => "AuthorizationFailure",
        409 if *method == Method::PUT => "BlobAlreadyExists",
        409 => "LeaseAlreadyPresent",
        412 => "ConditionNotMet",
        429 => "TooManyRequests",
        500 => "InternalError",
        _ => "ServerBusy",
    }
}

async fn answer(shared: &Shared, request: hyper::Request<Body>) -> std::io::Result<Response<Body>> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, BODY_MAX)
        .await
        .map_err(std::io::Error::other)?;
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let is_list = parts.method == Method::GET && query.contains("comp=list");
    let expired = lock(&shared.expired_until).is_some_and(|until| Instant::now() < until);
    if expired {
        return Ok(refusal(403, "AuthenticationFailed"));
    }
    let struck = shared.choose(&parts.method, is_list);
    let (strike, pause) = match struck {
        Some((strike, pause)) => (Some(strike), pause),
        None => (None, Duration::ZERO),
    };
    if let Some(strike) = strike {
        shared.note(strike);
    }
    match strike {
        Some(Strike::Delay) => tokio::time::sleep(pause).await,
        Some(Strike::DropBefore) => return Err(dropped()),
        Some(Strike::Answer(status)) => return Ok(refusal(status, code(status, &parts.method))),
        Some(Strike::TokenExpired) => {
            *lock(&shared.expired_until) = Some(Instant::now() + EXPIRED_FOR);
            return Ok(refusal(403, "AuthenticationFailed"));
        }
        Some(Strike::StaleList) => {
            let known = lock(&shared.listings).get(&query).cloned();
            if let Some((at, status, bytes)) = known
                && at.elapsed() <= STALE_FOR
            {
                let mut response = Response::new(Body::from(bytes));
                *response.status_mut() = status;
                response.headers_mut().insert(
                    header::CONTENT_TYPE,
                    header::HeaderValue::from_static("application/xml"),
                );
                return Ok(response);
            }
        }
        Some(Strike::Twice) => {
            let _first = shared
                .forward(&parts, body.clone())
                .await
                .map_err(std::io::Error::other)?;
        }
        _ => {}
    }
    let (status, headers, bytes) = shared
        .forward(&parts, body)
        .await
        .map_err(std::io::Error::other)?;
    if is_list {
        let mut listings = lock(&shared.listings);
        if listings.len() > 256 {
            listings.clear();
        }
        listings.insert(query, (Instant::now(), status, bytes.clone()));
    }
    match strike {
        Some(Strike::DropAfter) => return Err(dropped()),
        Some(Strike::SlowFirstByte) => tokio::time::sleep(pause).await,
        _ => {}
    }
    let half = strike == Some(Strike::Reset) && bytes.len() > 1;
    let body = if half {
        broken(bytes.slice(..bytes.len() / 2))
    } else {
        Body::from(bytes)
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}
