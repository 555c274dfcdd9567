//! Registrations for push messages: for the service that the input names, which is the AppView or one that its own DID document
//! has under `#bsky_notif`.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use engine::repo::Did;
use serde_json::{Map, Value};

use super::target::Target;
use super::{Errand, Token, answer};
use crate::app::App;
use crate::auth::permission::Rpc;
use crate::identity::service_ref::ServiceRef;
use crate::xrpc::auth::Caller;
use crate::xrpc::error::{XrpcError, XrpcResult};

/// Which of a service's entries takes registrations.
const NOTIFIER: &str = "bsky_notif";

/// Whether this server has an AppView, without which it takes no part in this.
#[must_use]
pub fn is_here(app: &App) -> bool {
    app.proxy.upstreams.app_view.is_some()
}

/// Sends a registration, or the end of one, to the service that `input` names.
///
/// # Errors
/// 400 for a service that is none, 502 and 503 as for everything that is sent on, and what the service says.
pub async fn send(app: &App, caller: &Caller, nsid: &str, input: Map<String, Value>) -> XrpcResult<()> {
    let named = input
        .get("serviceDid")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let service: Did = match named.parse() {
        Ok(ServiceRef { did, fragment: None }) => did,
        Ok(_) | Err(_) => {
            return Err(XrpcError::invalid(
                "Invalid request body: Input/serviceDid must be the DID of a service",
            ));
        }
    };
    let proxy = &app.proxy;
    let app_view = proxy.upstreams.app_view.as_ref();
    let target = Target {
        configured: app_view
            .filter(|app_view| app_view.did == service)
            .map(|app_view| app_view.url.clone()),
        did: service,
        fragment: NOTIFIER.to_owned(),
    };
    caller.permission.call(Rpc {
        aud: &target.audience(),
        lxm: nsid,
    })?;
    let _slot = proxy.slot(Some(&caller.did))?;
    let body = Value::Object(input).to_string();
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    let errand = Errand {
        method: Method::POST,
        nsid,
        query: None,
        headers,
        body: Some(Body::from(body)),
        token: Some(Token {
            account: &caller.did,
            audience: &target.did,
            lxm: nsid,
        }),
    };
    let (answer, bounds) = proxy.exchange(app, &target, errand).await?;
    if answer::is_error(&answer) {
        return Err(answer::told(answer, bounds).await);
    }
    Ok(())
}
