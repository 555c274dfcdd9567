//! `com.atproto.temp.*`.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Response;
use serde_json::json;

use super::auth::caller;
use super::error::XrpcResult;
use super::request::{Request, json as json_answer};
use crate::app::App;
use crate::auth::permission::Access;

/// `checkSignupQueue`: nobody waits here.
pub async fn check_signup_queue(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    caller(&app, &request.headers, Access::StandardOrQueued)?;
    request.no_body().await?;
    json_answer(&json!({ "activated": true }))
}
