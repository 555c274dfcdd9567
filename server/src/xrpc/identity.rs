//! `com.atproto.identity.*`: handles, DIDs, and operations of the did:plc directory.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Response, StatusCode};
use engine::repo::{AtIdentifier, Did, Handle};
use serde::Deserialize;
use serde_json::{Value, json};

use super::auth::{account_in_standing, caller};
use super::error::{XrpcError, XrpcResult};
use super::request::{JSON_LIMIT, Request, empty, json as json_answer};
use crate::app::App;
use crate::auth::permission::Access;
use crate::client::did::DidError;
use crate::client::plc::PlcError;
use crate::service::accounts::MailPurpose;
use crate::service::identity::{By, IdentityError, Overlay};

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

/// `resolveDid`: the document as this server sees it.
pub async fn resolve_did(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let did: Did = request.params.parsed("did")?;
    request.no_body().await?;
    let document = app.names.document(&did, false).await?;
    json_answer(&json!({ "didDoc": document.json() }))
}

/// `resolveIdentity`: DID, document, and the handle if both directions agree.
pub async fn resolve_identity(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let identifier: AtIdentifier = request.params.parsed("identifier")?;
    request.no_body().await?;
    identity(&app, &identifier, false).await
}

/// `refreshIdentity`: as `resolveIdentity`, past the cache. For callers with an account here, since it makes this server ask others.
pub async fn refresh_identity(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    struct Input {
        identifier: AtIdentifier,
    }
    caller(&app, &request.headers, Access::Standard)?;
    let input: Input = request.json(JSON_LIMIT).await?;
    if let AtIdentifier::Did(did) = &input.identifier {
        app.identities.settle_open(did).await;
    }
    identity(&app, &input.identifier, true).await
}

async fn identity(app: &App, identifier: &AtIdentifier, fresh: bool) -> XrpcResult<Response<Body>> {
    let did = match identifier {
        AtIdentifier::Did(did) => did.clone(),
        AtIdentifier::Handle(handle) => {
            let found = app.identities.did_of(handle).await;
            found.ok_or_else(|| XrpcError::bad("HandleNotFound", "Unable to resolve handle"))?
        }
    };
    let resolved = app.identities.resolve(&did, fresh).await?;
    let handle = resolved.handle.as_ref().map_or("handle.invalid", Handle::as_str);
    json_answer(&json!({ "did": did, "handle": handle, "didDoc": resolved.document.json() }))
}

/// `updateHandle`; app passwords may, too.
pub async fn update_handle(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    struct Input {
        handle: String,
    }
    let account = account_in_standing(&app, &request.headers, Access::Standard).await?;
    let input: Input = request.json(JSON_LIMIT).await?;
    app.identities
        .update_handle(&account.did, &input.handle, By::Owner)
        .await?;
    Ok(empty())
}

/// `getRecommendedDidCredentials`.
pub async fn get_recommended_did_credentials(
    app: Arc<App>,
    mut request: Request,
) -> XrpcResult<Response<Body>> {
    let caller = caller(&app, &request.headers, Access::Standard)?;
    request.no_body().await?;
    let wanted = app.identities.recommended(&caller.did).await?;
    json_answer(&json!({
        "rotationKeys": wanted.rotation_keys,
        "alsoKnownAs": wanted.also_known_as,
        "verificationMethods": { "atproto": wanted.signing_key },
        "services": {
            "atproto_pds": { "type": "AtprotoPersonalDataServer", "endpoint": wanted.endpoint },
        },
    }))
}

/// `requestPlcOperationSignature`: a token by mail. Accounts that are taken down may leave.
pub async fn request_plc_operation_signature(
    app: Arc<App>,
    mut request: Request,
) -> XrpcResult<Response<Body>> {
    let caller = caller(&app, &request.headers, Access::FullOrTakendown)?;
    request.no_body().await?;
    let account = app.accounts.by_did(&caller.did).await?;
    let account = account.ok_or(IdentityError::NoAccount)?;
    app.accounts
        .mail_code(&account, MailPurpose::PlcOperation)
        .await?;
    Ok(empty())
}

/// `signPlcOperation`: signs with this server's key, for the token; submits nothing.
pub async fn sign_plc_operation(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    struct Input {
        token: Option<String>,
        #[serde(flatten)]
        overlay: Overlay,
    }
    let caller = caller(&app, &request.headers, Access::FullOrTakendown)?;
    let input: Input = request.json(JSON_LIMIT).await?;
    let token = input
        .token
        .ok_or_else(|| XrpcError::invalid("email confirmation token required to sign PLC operations"))?;
    app.accounts
        .use_code(MailPurpose::PlcOperation, &caller.did, &token)
        .await?;
    let operation = app.identities.sign_operation(&caller.did, input.overlay).await?;
    json_answer(&json!({ "operation": operation.to_json() }))
}

/// `submitPlcOperation`: passes an operation on that leaves the account usable here.
pub async fn submit_plc_operation(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    struct Input {
        operation: Value,
    }
    let caller = caller(&app, &request.headers, Access::Standard)?;
    let input: Input = request.json(JSON_LIMIT).await?;
    app.identities
        .submit_operation(&caller.did, &input.operation)
        .await?;
    Ok(empty())
}

impl From<PlcError> for XrpcError {
    fn from(error: PlcError) -> XrpcError {
        let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::BAD_GATEWAY);
        XrpcError::new(status, error.name(), error.to_string())
    }
}

impl From<DidError> for XrpcError {
    fn from(error: DidError) -> XrpcError {
        match error {
            DidError::NotFound(_) => XrpcError::bad("DidNotFound", error.to_string()),
            DidError::Unsupported(_) | DidError::Malformed { .. } => XrpcError::invalid(error.to_string()),
            DidError::Unavailable { .. } => {
                XrpcError::new(StatusCode::BAD_GATEWAY, "UpstreamFailure", error.to_string())
            }
        }
    }
}

impl From<IdentityError> for XrpcError {
    fn from(error: IdentityError) -> XrpcError {
        match error {
            IdentityError::Handle(handle) => XrpcError::bad(handle.name(), handle.to_string()),
            IdentityError::Taken(_) => XrpcError::bad("HandleNotAvailable", error.to_string()),
            IdentityError::NoAccount | IdentityError::Invalid(_) => XrpcError::invalid(error.to_string()),
            IdentityError::Busy => XrpcError::unavailable(error.to_string(), 2),
            IdentityError::Plc(plc) => plc.into(),
            IdentityError::Change(change) => change.into(),
            IdentityError::Repo(repo) => repo.into(),
        }
    }
}
