//! `com.atproto.server.getServiceAuth`: tokens with which an account, or whom it trusts, calls other services.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Response, StatusCode};
use engine::repo::Nsid;
use serde_json::json;

use super::auth::caller;
use super::error::{XrpcError, XrpcResult};
use super::request::{Request, json as json_answer};
use crate::app::App;
use crate::auth::permission::Access;
use crate::service::service_auth::{TokenError, Wanted};

/// Longest audience, in bytes.
const AUDIENCE_BYTES: usize = 2048;

/// `getServiceAuth`.
pub async fn get_service_auth(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let aud = request.params.required("aud")?.to_owned();
    if aud.len() > AUDIENCE_BYTES {
        return Err(XrpcError::invalid(format!(
            "Error: aud must not be longer than {AUDIENCE_BYTES} characters"
        )));
    }
    let exp = request.params.parsed_optional::<i64>("exp")?;
    let lxm = request.params.parsed_optional::<Nsid>("lxm")?;
    let caller = caller(&app, &request.headers, Access::StandardOrTakendown)?;
    request.no_body().await?;
    let wanted = Wanted {
        aud: &aud,
        lxm: lxm.as_ref().map(Nsid::as_str),
        exp,
    };
    let token = app
        .service_auth
        .take(&caller.did, &caller.permission, wanted)
        .await?;
    json_answer(&json!({ "token": token }))
}

impl From<TokenError> for XrpcError {
    fn from(error: TokenError) -> XrpcError {
        match error {
            TokenError::Denied(denied) => denied.into(),
            TokenError::Audience(_) => XrpcError::invalid(error.to_string()),
            TokenError::Expiration(_) => XrpcError::bad("BadExpiration", error.to_string()),
            TokenError::NoAccount => {
                XrpcError::new(StatusCode::FORBIDDEN, "AccountNotFound", error.to_string())
            }
            TokenError::Internal(cause) => XrpcError::internal(cause),
        }
    }
}
