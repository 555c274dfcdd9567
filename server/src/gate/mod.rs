//! Who answers a request: nobody yet, this server, or the one that takes over from it.
//!
//! | mode | reads | writes |
//! |---|---|---|
//! | starting | 503 with what it is busy with | the same |
//! | open | answered | answered |
//! | following | answered, with the lag in a header | 503 with where the writer is |
//! | holding, while a reign is handed over | answered | wait, up to `HOLD_MAX` |
//! | passing on | sent on to the new writer | sent on, those that waited first |
//! | shut | 503 | 503 |
//!
//! A write is any request but GET, HEAD and OPTIONS, and but those that are only passed to another service: these need nothing that
//! moves with a reign, so they are answered like reads, by a standby too. Paths below `/_` are always this server's own. A hand-over begins when the
//! writes that were let in have been answered, so that none is cut off in the middle.

mod pass;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, Response, StatusCode};
use serde_json::json;
use tokio::sync::{Notify, watch};

use crate::app::App;
use crate::http::{Routes, plain_json};
use crate::service::succession::Following;
use crate::xrpc;
use crate::xrpc::error::XrpcError;
pub use pass::Successor;

/// How long a request waits for the new writer.
const HOLD_MAX: Duration = Duration::from_secs(20);
/// What a client is told to wait, in seconds, where the next try is likely to succeed.
const SOON_SECONDS: u32 = 1;

/// Who answers. Cheap to clone; clones are the same gate.
///
/// Liveness is true from the first moment and readiness only once requests are answered, so that a platform neither kills a
/// server that replays nor sends it traffic.
#[derive(Clone)]
pub struct Gate {
    inner: Arc<Inner>,
}

struct Inner {
    phase: parking_lot::Mutex<String>,
    routes: OnceLock<Routes>,
    mode: watch::Sender<Mode>,
    /// Whether the mode is [`Mode::Open`], for the many requests that need to know no more.
    open: AtomicBool,
    /// Writes that were let in and are not answered.
    writing: AtomicUsize,
    none_writing: Notify,
}

#[derive(Clone)]
enum Mode {
    Open,
    Following(Following),
    Holding,
    Passing(Successor),
    Shut,
}

impl Default for Gate {
    fn default() -> Gate {
        Gate {
            inner: Arc::new(Inner {
                phase: parking_lot::Mutex::default(),
                routes: OnceLock::new(),
                mode: watch::Sender::new(Mode::Open),
                open: AtomicBool::new(true),
                writing: AtomicUsize::new(0),
                none_writing: Notify::new(),
            }),
        }
    }
}

/// A write that was let in.
struct Writing<'a>(&'a Inner);

impl<'a> Writing<'a> {
    fn begin(inner: &'a Inner) -> Writing<'a> {
        inner.writing.fetch_add(1, Ordering::SeqCst);
        Writing(inner)
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if self.0.writing.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.none_writing.notify_waiters();
        }
    }
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
        let _already_open = self.inner.routes.set(Routes::new(app));
    }

    /// Answers reads only, of a server that follows another.
    pub fn follow(&self, following: Following) {
        self.set(Mode::Following(following));
    }

    /// Answers everything: from now on this server is the writer.
    pub fn lead(&self) {
        self.set(Mode::Open);
    }

    /// Lets writes wait from now on, and waits at most `limit` until those that were let in are answered. False if some are not.
    pub async fn hold(&self, limit: Duration) -> bool {
        self.set(Mode::Holding);
        let inner = &*self.inner;
        let idle = async {
            loop {
                let mut none = std::pin::pin!(inner.none_writing.notified());
                none.as_mut().enable();
                if inner.writing.load(Ordering::SeqCst) == 0 {
                    return;
                }
                none.await;
            }
        };
        tokio::time::timeout(limit, idle).await.is_ok()
    }

    /// Sends requests on to the new writer, those that wait first.
    pub fn pass_on(&self, to: Successor) {
        self.set(Mode::Passing(to));
    }

    /// Answers nothing but health.
    pub fn shut(&self) {
        self.set(Mode::Shut);
    }

    fn set(&self, mode: Mode) {
        let open = matches!(mode, Mode::Open);
        self.inner.open.store(open, Ordering::SeqCst);
        self.inner.mode.send_replace(mode);
    }

    /// Answers one request.
    pub async fn answer(&self, request: Request) -> Response<Body> {
        let inner = &*self.inner;
        let Some(routes) = inner.routes.get() else {
            return self.starting(&request);
        };
        if is_write(&request) {
            // Counted before the mode is looked at: whoever closes the gate looks the other way round.
            let writing = Writing::begin(inner);
            if inner.open.load(Ordering::SeqCst) || is_own(&request) {
                return routes.answer(request).await;
            }
            drop(writing);
        } else if inner.open.load(Ordering::Acquire) || is_own(&request) {
            return routes.answer(request).await;
        }
        self.otherwise(routes, request).await
    }

    /// Whatever the mode is, if it is not open.
    async fn otherwise(&self, routes: &Routes, request: Request) -> Response<Body> {
        let inner = &*self.inner;
        let until = tokio::time::Instant::now() + HOLD_MAX;
        let mut modes = inner.mode.subscribe();
        loop {
            let mode = modes.borrow_and_update().clone();
            let write = is_write(&request);
            match mode {
                Mode::Open => {
                    let writing = Writing::begin(inner);
                    if inner.open.load(Ordering::SeqCst) {
                        return routes.answer(request).await;
                    }
                    drop(writing);
                    continue;
                }
                Mode::Following(following) if write => return not_the_writer(&following),
                Mode::Following(following) => {
                    let mut response = routes.answer(request).await;
                    let seconds = format!("{:.1}", following.lag_seconds());
                    if let Ok(value) = HeaderValue::from_str(&seconds) {
                        response.headers_mut().insert("x-pds-lag-seconds", value);
                    }
                    return response;
                }
                Mode::Holding if !write => return routes.answer(request).await,
                Mode::Holding => {}
                Mode::Passing(to) => return to.pass(request).await,
                Mode::Shut => return moving(),
            }
            match tokio::time::timeout_at(until, modes.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return moving(),
            }
        }
    }

    fn starting(&self, request: &Request) -> Response<Body> {
        let phase = self.inner.phase.lock().clone();
        match request.uri().path() {
            "/_health/live" => plain_json(StatusCode::OK, &json!({ "status": "alive", "phase": phase })),
            "/_health/ready" => plain_json(
                StatusCode::SERVICE_UNAVAILABLE,
                &json!({ "status": "starting", "phase": phase }),
            ),
            _ => XrpcError::unavailable(format!("The server is starting: {phase}"), 2).into_http(),
        }
    }

    /// Whether requests are answered by this server.
    #[must_use]
    pub fn is_answering(&self) -> bool {
        matches!(*self.inner.mode.borrow(), Mode::Open | Mode::Following(_))
    }
}

/// What a request gets that could not wait until the new writer answers. It was not carried out.
fn moving() -> Response<Body> {
    XrpcError::unavailable("Another server is taking over; try again", SOON_SECONDS).into_http()
}

/// The answer to a write where another server is the writer.
fn not_the_writer(following: &Following) -> Response<Body> {
    let writer = following.writer();
    let at = if writer.is_empty() {
        String::new()
    } else {
        format!(", which is {writer}")
    };
    let message = format!("This server follows another one and takes no writes; ask the writer{at}");
    XrpcError::unavailable(message, 5)
        .named("NotTheWriter")
        .into_http()
}

fn is_write(request: &Request) -> bool {
    xrpc::is_write(request.method(), request.uri().path())
}

/// Health and the like are about this very process.
fn is_own(request: &Request) -> bool {
    let path = request.uri().path();
    path.starts_with("/_") || path == "/metrics"
}
