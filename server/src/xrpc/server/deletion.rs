//! `com.atproto.server.requestAccountDelete` and `deleteAccount`.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Response;
use engine::repo::Did;
use serde::Deserialize;

use crate::app::App;
use crate::auth::permission::Access;
use crate::service::accounts::{DeletionError, MailPurpose};
use crate::xrpc::auth::account_in_standing;
use crate::xrpc::error::{XrpcError, XrpcResult};
use crate::xrpc::request::{JSON_LIMIT, Request, empty};

/// `requestAccountDelete`, with the account's own password only.
pub async fn request(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let account = account_in_standing(&app, &request.headers, Access::Full).await?;
    request.no_body().await?;
    app.accounts
        .mail_code(&account, MailPurpose::DeleteAccount)
        .await?;
    Ok(empty())
}

/// `deleteAccount`: no session is needed, but the account's own password and a code that was mailed.
pub async fn delete(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    struct Input {
        did: Did,
        password: String,
        token: String,
    }
    let input: Input = request.json(JSON_LIMIT).await?;
    app.accounts
        .delete_by_owner(&input.did, &input.password, &input.token)
        .await?;
    Ok(empty())
}

impl From<DeletionError> for XrpcError {
    fn from(error: DeletionError) -> XrpcError {
        match error {
            DeletionError::NoAccount | DeletionError::NotDue => XrpcError::invalid(error.to_string()),
            DeletionError::Wrong => XrpcError::unauthorized("AuthenticationRequired", error.to_string()),
            DeletionError::Code(code) => code.into(),
            DeletionError::Busy => XrpcError::unavailable(error.to_string(), 2),
            DeletionError::Change(change) => change.into(),
            DeletionError::Repo(repo) => repo.into(),
        }
    }
}
