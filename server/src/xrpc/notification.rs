//! `app.bsky.notification.*`: which service tells an account's devices of what happens.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Method, Response};
use serde_json::{Map, Value};

use super::auth::caller;
use super::error::{XrpcError, XrpcResult};
use super::request::{JSON_LIMIT, Request, empty};
use crate::app::App;
use crate::auth::methods::{REGISTER_PUSH, UNREGISTER_PUSH};
use crate::auth::permission::Access;
use crate::proxy::{Call, catch_all, push};

/// `registerPush`.
pub async fn register_push(app: Arc<App>, request: Request) -> XrpcResult<Response<Body>> {
    push(&app, REGISTER_PUSH, request).await
}

/// `unregisterPush`.
pub async fn unregister_push(app: Arc<App>, request: Request) -> XrpcResult<Response<Body>> {
    push(&app, UNREGISTER_PUSH, request).await
}

/// For the service that the input names; without an AppView here, for the one that the client names.
async fn push(app: &App, nsid: &str, mut request: Request) -> XrpcResult<Response<Body>> {
    if !push::is_here(app) {
        let call = Call {
            method: Method::POST,
            nsid,
            query: request.uri.query(),
            headers: &request.headers,
            body: request.body,
        };
        return catch_all(app, call).await;
    }
    let caller = caller(app, &request.headers, Access::StandardOrQueued)?;
    let input: Map<String, Value> = request.json(JSON_LIMIT).await?;
    for field in ["serviceDid", "token", "platform", "appId"] {
        if !input.get(field).is_some_and(Value::is_string) {
            return Err(XrpcError::invalid(format!(
                "Invalid request body: Input/{field} must be a string"
            )));
        }
    }
    push::send(app, &caller, nsid, input).await?;
    Ok(empty())
}
