//! `com.atproto.server.*AppPassword*`.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::App;
use crate::auth::permission::Access;
use crate::service::accounts::AppPasswordError;
use crate::xrpc::auth::{account_in_standing, caller};
use crate::xrpc::error::{XrpcError, XrpcResult};
use crate::xrpc::request::{JSON_LIMIT, Request, empty, json as json_answer};

/// `createAppPassword`, with the account's own password only.
pub async fn create(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    struct Input {
        name: String,
        privileged: Option<bool>,
    }
    let account = account_in_standing(&app, &request.headers, Access::Full).await?;
    let input: Input = request.json(JSON_LIMIT).await?;
    let made = app
        .accounts
        .create_app_password(&account.did, input.name, input.privileged.unwrap_or_default())
        .await?;
    json_answer(&json!({
        "name": made.app.name,
        "password": made.password.as_str(),
        "createdAt": made.app.created_at,
        "privileged": made.app.privileged,
    }))
}

/// `listAppPasswords`.
pub async fn list(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let caller = caller(&app, &request.headers, Access::Standard)?;
    request.no_body().await?;
    let listed = app.accounts.app_passwords(&caller.did).await?;
    let passwords = listed.iter().map(|app| {
        json!({
            "name": app.name,
            "createdAt": app.created_at,
            "privileged": app.privileged,
        })
    });
    json_answer(&json!({ "passwords": passwords.collect::<Vec<Value>>() }))
}

/// `revokeAppPassword`: app passwords may revoke each other.
pub async fn revoke(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    struct Input {
        name: String,
    }
    let caller = caller(&app, &request.headers, Access::Standard)?;
    let input: Input = request.json(JSON_LIMIT).await?;
    app.accounts.revoke_app_password(&caller.did, input.name).await?;
    Ok(empty())
}

impl From<AppPasswordError> for XrpcError {
    fn from(error: AppPasswordError) -> XrpcError {
        match error {
            AppPasswordError::NameTaken | AppPasswordError::NameTooLong | AppPasswordError::TooMany => {
                XrpcError::invalid(error.to_string())
            }
            AppPasswordError::Busy => XrpcError::unavailable(error.to_string(), 2),
            AppPasswordError::Change(change) => change.into(),
        }
    }
}
