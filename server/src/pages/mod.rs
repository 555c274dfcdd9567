//! Routes outside XRPC: health, metrics, the well-known files, and a banner for people.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use engine::repo::Handle;
use serde_json::json;

use crate::app::App;
use crate::http::{plain_json, render_metrics};

/// `GET /`.
pub async fn banner(State(app): State<Arc<App>>) -> Response<Body> {
    text(
        StatusCode::OK,
        format!(
            "\n  Azure PDS\n  an AT Protocol Personal Data Server (https://atproto.com)\n\n  \
             Most API routes are under /xrpc/\n  This is {}\n",
            app.config.public_url()
        ),
    )
}

/// `GET /robots.txt`.
pub async fn robots() -> Response<Body> {
    text(
        StatusCode::OK,
        "# Hello!\n# Crawling the public API is allowed\nUser-agent: *\nAllow: /\n".to_owned(),
    )
}

/// `GET /xrpc/_health`: whether the account database answers.
pub async fn xrpc_health(State(app): State<Arc<App>>) -> Response<Body> {
    let version = &app.config.version;
    if app.accounts.is_healthy().await {
        plain_json(StatusCode::OK, &json!({ "version": version }))
    } else {
        plain_json(
            StatusCode::SERVICE_UNAVAILABLE,
            &json!({ "version": version, "error": "Service Unavailable" }),
        )
    }
}

/// `GET /.well-known/did.json`: the document of this service, if its DID is the `did:web` of its host.
pub async fn did_document(State(app): State<Arc<App>>) -> Response<Body> {
    let did = &app.config.service_did;
    if did.as_str() != format!("did:web:{}", app.config.hostname) {
        return text(
            StatusCode::NOT_FOUND,
            "This server's DID is not published here\n".to_owned(),
        );
    }
    plain_json(
        StatusCode::OK,
        &json!({
            "@context": ["https://www.w3.org/ns/did/v1"],
            "id": did,
            "service": [{
                "id": "#atproto_pds",
                "type": "AtprotoPersonalDataServer",
                "serviceEndpoint": app.config.public_url(),
            }],
        }),
    )
}

/// `GET /.well-known/atproto-did`: the DID behind the handle that is this request's host.
pub async fn atproto_did(State(app): State<Arc<App>>, headers: HeaderMap) -> Response<Body> {
    let missing = || text(StatusCode::NOT_FOUND, "User not found".to_owned());
    let host = headers
        .get(header::HOST)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let host = host.split(':').next().unwrap_or_default();
    let Ok(handle) = host.parse::<Handle>() else {
        return missing();
    };
    if !app.names.is_service_handle(&handle) {
        return missing();
    }
    match app.accounts.by_handle(&handle).await {
        Ok(Some(account)) if account.is_active() => text(StatusCode::OK, account.did.to_string()),
        Ok(_) => missing(),
        Err(error) => {
            tracing::error!(%error, "cannot look up a handle");
            text(StatusCode::SERVICE_UNAVAILABLE, "Try again".to_owned())
        }
    }
}

/// `GET /_health/live`: the process runs; a server that is fenced or whose log failed is about to stop on its own.
pub async fn live() -> Response<Body> {
    plain_json(StatusCode::OK, &json!({ "status": "alive", "phase": "serving" }))
}

/// `GET /_health/ready`: whether writes are taken, with everything that speaks for or against it.
pub async fn ready(State(app): State<Arc<App>>) -> Response<Body> {
    let health = app.health();
    let status = if health.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    plain_json(status, &health.json)
}

/// `GET /metrics`.
pub async fn metrics(State(app): State<Arc<App>>) -> Response<Body> {
    app.observe_gauges();
    match render_metrics() {
        Some(metrics) => {
            let mut response = text(StatusCode::OK, metrics);
            response.headers_mut().insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
            );
            response
        }
        None => text(
            StatusCode::SERVICE_UNAVAILABLE,
            "metrics are not installed\n".to_owned(),
        ),
    }
}

fn text(status: StatusCode, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}
