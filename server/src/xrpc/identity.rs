//! `com.atproto.identity.*`: names.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Response;
use engine::repo::Handle;
use serde_json::json;

use super::error::{XrpcError, XrpcResult};
use super::request::{Request, json as json_answer};
use crate::app::App;

/// `resolveHandle`: our own accounts first, then the network; an unknown name below our domains is nobody's.
pub async fn resolve_handle(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let handle: Handle = request.params.parsed("handle")?;
    request.no_body().await?;
    let local = app
        .accounts
        .by_handle(&handle)
        .await?
        .filter(|account| account.is_active());
    let did = match local {
        Some(account) => account.did,
        None if app.names.is_service_handle(&handle) => {
            return Err(XrpcError::bad("HandleNotFound", "Unable to resolve handle"));
        }
        None => app
            .names
            .resolve_handle(&handle)
            .await
            .ok_or_else(|| XrpcError::invalid("Unable to resolve handle"))?,
    };
    json_answer(&json!({ "did": did }))
}
