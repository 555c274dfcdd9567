//! `com.atproto.server.*`: what this server is, accounts and sessions.

pub mod app_passwords;
pub mod deletion;
pub mod email;
pub mod life;

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Response, StatusCode};
use engine::repo::Did;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::auth::{arriving, caller, refresh};
use super::error::{XrpcError, XrpcResult};
use super::request::{JSON_LIMIT, Request, empty, json as json_answer};
use crate::app::App;
use crate::auth::permission::Access;
use crate::service::accounts::{
    Account, AccountsUnavailable, ChangeError, CreateAccount, CreateError, LoginError, MailError,
    RefreshError, Session, StatusError,
};

/// `describeServer`.
pub async fn describe_server(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    request.no_body().await?;
    let config = &app.config;
    let mut links = Map::new();
    if let Some(url) = &config.privacy_policy {
        links.insert("privacyPolicy".into(), url.as_str().into());
    }
    if let Some(url) = &config.terms_of_service {
        links.insert("termsOfService".into(), url.as_str().into());
    }
    let mut contact = Map::new();
    if let Some(email) = &config.contact_email {
        contact.insert("email".into(), email.as_str().into());
    }
    json_answer(&json!({
        "did": config.service_did,
        "availableUserDomains": config.handle_domains,
        "inviteCodeRequired": config.invite_required,
        "blobUploadLimit": config.blob_upload_limit,
        "links": links,
        "contact": contact,
    }))
}

/// `createAccount`, with a new identity or one that there is, whose owner proves it with a service token.
pub async fn create_account(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Input {
        handle: String,
        email: Option<String>,
        password: Option<String>,
        invite_code: Option<String>,
        did: Option<Did>,
        recovery_key: Option<String>,
        plc_op: Option<Value>,
    }
    let (requester, used) = arriving(&app, &request.headers).await?;
    let input: Input = request.json(JSON_LIMIT).await?;
    if input.plc_op.is_some() {
        return Err(XrpcError::invalid("Unsupported input: \"plcOp\""));
    }
    if let Some(did) = input.did.as_ref().filter(|did| requester.as_ref() != Some(did)) {
        return Err(XrpcError::unauthorized(
            "AuthenticationRequired",
            format!("Missing auth to create account with did: {did}"),
        ));
    }
    let session = app
        .accounts
        .create(CreateAccount {
            handle: input.handle,
            email: input.email,
            password: input.password,
            invite_code: input.invite_code,
            recovery_key: input.recovery_key,
            did: input.did,
        })
        .await?;
    if let Some(used) = used {
        used.keep();
    }
    let mut answer = Map::new();
    answer.insert("handle".into(), session.account.handle_text().into());
    answer.insert("did".into(), session.account.did.as_str().into());
    if let Ok(document) = app.names.document(&session.account.did, true).await {
        answer.insert("didDoc".into(), document.json().clone());
    }
    answer.insert("accessJwt".into(), session.access.into());
    answer.insert("refreshJwt".into(), session.refresh.into());
    json_answer(&Value::Object(answer))
}

/// `createSession`.
pub async fn create_session(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Input {
        identifier: String,
        password: String,
        #[serde(default)]
        allow_takendown: bool,
    }
    let input: Input = request.json(JSON_LIMIT).await?;
    request.metered.login(&input.identifier).await?;
    let session = app
        .accounts
        .login(&input.identifier, &input.password, input.allow_takendown)
        .await?;
    json_answer(&session_json(&app, session).await)
}

/// `refreshSession`.
pub async fn refresh_session(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let claims = refresh(&app, &request.headers, false)?;
    request.no_body().await?;
    let session = app.accounts.refresh(&claims).await?;
    json_answer(&session_json(&app, session).await)
}

/// `getSession`.
pub async fn get_session(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let claims = caller(&app, &request.headers, Access::StandardOrQueued)?;
    request.no_body().await?;
    let account =
        app.accounts.by_did(&claims.did).await?.ok_or_else(|| {
            XrpcError::invalid(format!("Could not find user info for account: {}", claims.did))
        })?;
    if account.check_not_taken_down().is_err() {
        return Err(XrpcError::bad(
            "AccountTakedown",
            StatusError::TakenDown.to_string(),
        ));
    }
    json_answer(&Value::Object(account_json(&app, &account).await))
}

/// `deleteSession`.
pub async fn delete_session(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let claims = refresh(&app, &request.headers, true)?;
    request.no_body().await?;
    app.accounts.logout(&claims).await?;
    Ok(empty())
}

async fn session_json(app: &App, session: Session) -> Value {
    let mut answer = Map::new();
    answer.insert("accessJwt".into(), session.access.into());
    answer.insert("refreshJwt".into(), session.refresh.into());
    answer.extend(account_json(app, &session.account).await);
    Value::Object(answer)
}

async fn account_json(app: &App, account: &Account) -> Map<String, Value> {
    let mut answer = Map::new();
    answer.insert("did".into(), account.did.as_str().into());
    if app.config.did_doc_with_session
        && let Ok(document) = app.names.document(&account.did, false).await
    {
        answer.insert("didDoc".into(), document.json().clone());
    }
    answer.insert("handle".into(), account.handle_text().into());
    if let Some(email) = &account.email {
        answer.insert("email".into(), email.as_str().into());
    }
    answer.insert("emailConfirmed".into(), account.email_confirmed.into());
    answer.insert("active".into(), account.is_active().into());
    if let Some(word) = account.status.word() {
        answer.insert("status".into(), word.into());
    }
    answer
}

impl From<AccountsUnavailable> for XrpcError {
    fn from(error: AccountsUnavailable) -> XrpcError {
        match error {
            AccountsUnavailable::Busy(_) => XrpcError::unavailable("The server is busy; try again", 1),
            AccountsUnavailable::Failed(cause) => XrpcError::internal(cause),
        }
    }
}

impl From<StatusError> for XrpcError {
    fn from(error: StatusError) -> XrpcError {
        let name = match error {
            StatusError::TakenDown => "AccountTakedown",
            StatusError::Deactivated => "AccountDeactivated",
        };
        XrpcError::unauthorized(name, error.to_string())
    }
}

impl From<ChangeError> for XrpcError {
    fn from(error: ChangeError) -> XrpcError {
        match error {
            ChangeError::Conflict { .. } => XrpcError::invalid(error.to_string()),
            ChangeError::Busy => XrpcError::unavailable(error.to_string(), 1),
            ChangeError::Closed(_) | ChangeError::Unconfirmed(_) => {
                XrpcError::unavailable(error.to_string(), 5)
            }
            ChangeError::Internal(cause) => XrpcError::internal(cause),
        }
    }
}

impl From<MailError> for XrpcError {
    fn from(error: MailError) -> XrpcError {
        match error {
            MailError::NoMail(_) | MailError::TooLong => XrpcError::invalid(error.to_string()),
            MailError::TooMany => XrpcError::new(
                StatusCode::TOO_MANY_REQUESTS,
                "RateLimitExceeded",
                error.to_string(),
            ),
            MailError::Change(change) => change.into(),
        }
    }
}

impl From<LoginError> for XrpcError {
    fn from(error: LoginError) -> XrpcError {
        match error {
            LoginError::Wrong => XrpcError::unauthorized("AuthenticationRequired", error.to_string()),
            LoginError::TakenDown => XrpcError::unauthorized("AccountTakedown", error.to_string()),
            LoginError::Busy => XrpcError::unavailable(error.to_string(), 2),
            LoginError::Change(change) => change.into(),
        }
    }
}

impl From<RefreshError> for XrpcError {
    fn from(error: RefreshError) -> XrpcError {
        match error {
            RefreshError::Revoked => XrpcError::bad("ExpiredToken", error.to_string()),
            RefreshError::NoAccount(_) => XrpcError::invalid(error.to_string()),
            RefreshError::TakenDown => XrpcError::unauthorized("AccountTakedown", error.to_string()),
            RefreshError::Change(change) => change.into(),
        }
    }
}

impl From<CreateError> for XrpcError {
    fn from(error: CreateError) -> XrpcError {
        match error {
            CreateError::Invalid(message) => XrpcError::invalid(message),
            CreateError::Handle { name, message } => XrpcError::bad(name, message),
            CreateError::Exists(_) => XrpcError::bad("AlreadyExists", error.to_string()),
            CreateError::InviteCode => XrpcError::bad("InvalidInviteCode", error.to_string()),
            CreateError::Busy => XrpcError::unavailable(error.to_string(), 2),
            CreateError::Plc {
                upstream: true,
                message,
            } => XrpcError::new(StatusCode::BAD_GATEWAY, "UpstreamFailure", message),
            CreateError::Plc {
                upstream: false,
                message,
            } => XrpcError::invalid(message),
            CreateError::Change(change) => change.into(),
        }
    }
}
