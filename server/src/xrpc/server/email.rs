//! `com.atproto.server.*Email*` and `*PasswordReset`: what goes by way of codes that are mailed.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Response;
use serde::Deserialize;
use serde_json::json;

use crate::app::App;
use crate::auth::permission::Access;
use crate::service::accounts::{CodeError, EmailError, MailPurpose, NotMailed, RecoveryError};
use crate::xrpc::auth::account_in_standing;
use crate::xrpc::error::{XrpcError, XrpcResult};
use crate::xrpc::request::{JSON_LIMIT, Request, empty, json as json_answer};

/// `requestPasswordReset`. An unknown address is told, as the reference does: clients show it to whoever mistypes theirs.
pub async fn request_password_reset(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    struct Input {
        email: String,
    }
    let input: Input = request.json(JSON_LIMIT).await?;
    app.accounts.request_password_reset(&input.email).await?;
    Ok(empty())
}

/// `resetPassword`.
pub async fn reset_password(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    struct Input {
        token: String,
        password: String,
    }
    let input: Input = request.json(JSON_LIMIT).await?;
    app.accounts.reset_password(&input.token, &input.password).await?;
    Ok(empty())
}

/// `requestEmailConfirmation`.
pub async fn request_confirmation(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let account = account_in_standing(&app, &request.headers, Access::Standard).await?;
    request.no_body().await?;
    app.accounts
        .mail_code(&account, MailPurpose::ConfirmEmail)
        .await?;
    Ok(empty())
}

/// `confirmEmail`.
pub async fn confirm(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    struct Input {
        email: String,
        token: String,
    }
    let account = account_in_standing(&app, &request.headers, Access::Standard).await?;
    let input: Input = request.json(JSON_LIMIT).await?;
    let confirmed = app
        .accounts
        .confirm_email(&account, &input.email, &input.token)
        .await;
    match confirmed {
        Err(error @ EmailError::Other) => Err(XrpcError::bad("InvalidEmail", error.to_string())),
        confirmed => Ok(confirmed.map(|()| empty())?),
    }
}

/// `requestEmailUpdate`, with the account's own password only.
pub async fn request_update(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let account = account_in_standing(&app, &request.headers, Access::Full).await?;
    request.no_body().await?;
    let required = app.accounts.request_email_update(&account).await?;
    json_answer(&json!({ "tokenRequired": required }))
}

/// `updateEmail`, with the account's own password only.
pub async fn update(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    struct Input {
        email: String,
        token: Option<String>,
    }
    let account = account_in_standing(&app, &request.headers, Access::Full).await?;
    let input: Input = request.json(JSON_LIMIT).await?;
    app.accounts
        .update_email(&account, &input.email, input.token.as_deref())
        .await?;
    Ok(empty())
}

impl From<NotMailed> for XrpcError {
    fn from(error: NotMailed) -> XrpcError {
        match error {
            NotMailed::NoAddress => XrpcError::invalid(error.to_string()),
            NotMailed::Mail(mail) => mail.into(),
            NotMailed::Change(change) => change.into(),
        }
    }
}

impl From<CodeError> for XrpcError {
    fn from(error: CodeError) -> XrpcError {
        match error {
            CodeError::Invalid => XrpcError::bad("InvalidToken", error.to_string()),
            CodeError::Expired => XrpcError::bad("ExpiredToken", error.to_string()),
            CodeError::Change(change) => change.into(),
        }
    }
}

impl From<EmailError> for XrpcError {
    fn from(error: EmailError) -> XrpcError {
        match error {
            EmailError::Other | EmailError::Unsupported | EmailError::Taken | EmailError::NoAddress => {
                XrpcError::invalid(error.to_string())
            }
            EmailError::CodeRequired => XrpcError::bad("TokenRequired", error.to_string()),
            EmailError::Code(code) => code.into(),
            EmailError::Change(change) => change.into(),
        }
    }
}

impl From<RecoveryError> for XrpcError {
    fn from(error: RecoveryError) -> XrpcError {
        match error {
            RecoveryError::Code(code) => code.into(),
            RecoveryError::TooLong => XrpcError::invalid(error.to_string()),
            RecoveryError::Busy => XrpcError::unavailable(error.to_string(), 2),
            RecoveryError::Change(change) => change.into(),
        }
    }
}
