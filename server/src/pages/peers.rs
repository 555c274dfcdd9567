//! `/_peers`: what servers on one replica tell each other, and what an operator asks of them.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Response, StatusCode};
use serde_json::json;

use crate::app::App;
use crate::http::plain_json;
use crate::service::succession::{Announcement, NotTaken};
use crate::xrpc::auth::admin;
use crate::xrpc::error::XrpcError;

/// The header with a message's code.
pub const CODE_HEADER: &str = "x-pds-peer-code";
/// Most bytes of a message.
const MESSAGE_MAX: usize = 4096;

/// `GET /_peers`, for the administrator: this server's part and the standbys that it heard of.
pub async fn list(State(app): State<Arc<App>>, headers: HeaderMap) -> Response<Body> {
    if let Err(denied) = admin(&app, &headers) {
        return denied.into_http();
    }
    let following = app.peers.following.lock().clone();
    let end = app.engine.visible().get().get();
    let standbys: Vec<_> = app
        .peers
        .standbys()
        .into_iter()
        .map(|(said, seconds)| {
            json!({
                "id": said.id,
                "url": said.url,
                "lsn": said.have,
                "behindMicros": end.saturating_sub(said.have),
                "lagSeconds": said.lag_seconds,
                "heardSecondsAgo": seconds,
            })
        })
        .collect();
    let role = if following.is_some() { "standby" } else { "writer" };
    let value = json!({
        "role": role,
        "epoch": app.engine.epoch().0,
        "lsn": end,
        "writer": following.as_ref().map(|following| following.writer()),
        "lagSeconds": following.as_ref().map(|following| following.lag_seconds()),
        "standbys": standbys,
    });
    plain_json(StatusCode::OK, &value)
}

/// `POST /_peers`: a standby says that it is there, and how far.
pub async fn announce(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Response<Body> {
    let Some(message) = authentic(&app, &headers, body).await else {
        return not_a_peer();
    };
    let Ok(said) = serde_json::from_slice::<Announcement>(&message) else {
        return XrpcError::invalid("this is no announcement").into_http();
    };
    match app.peers.announce(said, app.engine.now_micros()) {
        Ok(()) => plain_json(StatusCode::OK, &json!({})),
        Err(NotTaken::Stale) => {
            XrpcError::invalid("the clocks of the two servers are too far apart").into_http()
        }
        Err(NotTaken::Malformed) => XrpcError::invalid("a text is too long or missing").into_http(),
        Err(NotTaken::Full) => XrpcError::unavailable("too many standbys are known already", 60).into_http(),
    }
}

/// `POST /_peers/handover`: somebody says that the replica has a request for this server's reign. It is looked for there, so
/// that saying so costs one request and nothing else.
pub async fn poke(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Response<Body> {
    if authentic(&app, &headers, body).await.is_none() {
        return not_a_peer();
    }
    app.peers.poked.notify_one();
    plain_json(StatusCode::ACCEPTED, &json!({}))
}

/// `POST /_peers/promote`, for the administrator: a server that follows takes over.
pub async fn promote(State(app): State<Arc<App>>, headers: HeaderMap) -> Response<Body> {
    if let Err(denied) = admin(&app, &headers) {
        return denied.into_http();
    }
    if app.peers.promote() {
        plain_json(StatusCode::ACCEPTED, &json!({ "status": "taking over" }))
    } else {
        XrpcError::bad(
            "NotAStandby",
            "This server does not follow another one, or is taking over already",
        )
        .into_http()
    }
}

fn not_a_peer() -> Response<Body> {
    XrpcError::unauthorized("AuthMissing", "The message has no valid code").into_http()
}

/// The message, if it has a valid code.
async fn authentic(app: &App, headers: &HeaderMap, body: Body) -> Option<Bytes> {
    let code = headers.get(CODE_HEADER)?.to_str().ok()?.to_owned();
    let message = axum::body::to_bytes(body, MESSAGE_MAX).await.ok()?;
    app.peers.key.accepts(&message, &code).then_some(message)
}
