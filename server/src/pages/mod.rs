//! Routes outside XRPC: health, metrics, the well-known files, and a banner for people.

pub mod peers;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, Uri, header};
use engine::repo::Handle;
use serde_json::json;

use crate::app::App;
use crate::auth::header::{self as authorization, Authorization};
use crate::http::{plain_json, render_metrics};
use crate::service::mail::escape;

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
    if web_host(did.as_str()) != Some(app.config.hostname.as_str()) {
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
pub async fn atproto_did(State(app): State<Arc<App>>, uri: Uri, headers: HeaderMap) -> Response<Body> {
    let missing = || text(StatusCode::NOT_FOUND, "User not found".to_owned());
    // HTTP/2 names the host in the request's target.
    let host = headers
        .get(header::HOST)
        .and_then(|value| value.to_str().ok())
        .or(uri.host())
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

/// `GET /_health/replication`: how replication is. With the administrator's password also where to, what it costs, and what
/// went wrong in words, which name hosts.
pub async fn replication(State(app): State<Arc<App>>, headers: HeaderMap) -> Response<Body> {
    let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let details = match authorization::parse(given) {
        Ok(None) => false,
        Ok(Some(Authorization::Basic(credential))) if app.admin.accepts(credential) => true,
        // Somebody who means to be the operator and is not should not take the short answer for the long one.
        Ok(Some(_)) | Err(_) => {
            let body =
                json!({ "error": "AuthRequired", "message": "The administrator's password is needed" });
            return plain_json(StatusCode::UNAUTHORIZED, &body);
        }
    };
    let health = app.replication_health(details);
    let status = if health.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut response = plain_json(status, &health.json);
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// `GET /dev/mail`: what the development server would have mailed.
pub async fn mail(State(app): State<Arc<App>>) -> Response<Body> {
    let Some(mails) = app.mailer.kept() else {
        return text(StatusCode::NOT_FOUND, "There is nothing here\n".to_owned());
    };
    let mut page = String::from(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Mail</title><h1>Mail</h1>\
         <p>Mail of the development server, newest first. Nothing leaves this machine.</p>",
    );
    if mails.is_empty() {
        page.push_str("<p>None yet.</p>");
    }
    for mail in mails {
        page.push_str(&format!(
            "<article><h2>{}</h2><p>To {} at {}</p><pre>{}</pre></article>",
            escape(&mail.subject),
            escape(&mail.to),
            escape(&mail.sent_at),
            escape(&mail.text)
        ));
    }
    let mut response = text(StatusCode::OK, page);
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    );
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        ),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
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

/// The host, without its port, of a `did:web` that is published at a host's root.
fn web_host(did: &str) -> Option<&str> {
    let name = did.strip_prefix("did:web:").filter(|name| !name.contains(':'))?;
    let host = name.split_once("%3A").or_else(|| name.split_once("%3a"));
    Some(host.map_or(name, |(host, _)| host))
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

#[cfg(test)]
mod tests {
    use super::web_host;

    #[test]
    fn only_a_did_web_at_a_hosts_root_has_a_host() {
        for (did, host) in [
            ("did:web:pds.example.com", Some("pds.example.com")),
            ("did:web:localhost%3A2583", Some("localhost")),
            ("did:web:example.com:user:alice", None),
            ("did:plc:ewvi7nxzyoun6zhxrhs64oiz", None),
        ] {
            assert_eq!(web_host(did), host, "{did}");
        }
    }
}
