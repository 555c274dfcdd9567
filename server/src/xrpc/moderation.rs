//! `com.atproto.moderation.*`.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Method, Response};

use super::error::XrpcResult;
use super::request::Request;
use crate::app::App;
use crate::auth::methods::CREATE_REPORT;
use crate::auth::permission::Access;
use crate::proxy::{Call, send_on};

/// `createReport`: passed to the moderators, whose answer it is. Taken-down accounts may appeal.
pub async fn create_report(app: Arc<App>, request: Request) -> XrpcResult<Response<Body>> {
    let call = Call {
        method: Method::POST,
        nsid: CREATE_REPORT,
        query: None,
        headers: &request.headers,
        body: request.body,
    };
    send_on(&app, Access::StandardOrTakendown, call).await
}
