//! `com.atproto.server.activateAccount`, `deactivateAccount`, `checkAccountStatus`, `reserveSigningKey`.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Response, StatusCode};
use engine::repo::Did;
use engine::repo::datetime::parse_datetime;
use serde::Deserialize;
use serde_json::json;

use crate::app::App;
use crate::auth::permission::Access;
use crate::service::accounts::LifeError;
use crate::service::repos::blocks::extent;
use crate::xrpc::auth::{caller, calling_account};
use crate::xrpc::error::{XrpcError, XrpcResult};
use crate::xrpc::request::{JSON_LIMIT, Request, blocking, empty, json as json_answer};

/// `activateAccount`, with the account's own password only.
pub async fn activate(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let caller = caller(&app, &request.headers, Access::Full)?;
    request.no_body().await?;
    app.accounts.activate(&caller.did).await?;
    Ok(empty())
}

/// `deactivateAccount`, with the account's own password only; also for one that is taken down.
pub async fn deactivate(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Input {
        delete_after: Option<String>,
    }
    let account = calling_account(&app, &request.headers, Access::FullOrTakendown).await?;
    let input: Input = request.json(JSON_LIMIT).await?;
    let delete_after = match input.delete_after.as_deref().map(parse_datetime) {
        None => None,
        Some(Ok(micros)) => Some(u64::try_from(micros).unwrap_or_default()),
        Some(Err(error)) => return Err(XrpcError::invalid(format!("deleteAfter: {error}"))),
    };
    app.accounts.deactivate(&account, delete_after).await?;
    Ok(empty())
}

/// `checkAccountStatus`: how far an account has come that moves here. Asks the directory whether its identity leads here.
pub async fn check_status(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let account = calling_account(&app, &request.headers, Access::Standard).await?;
    request.no_body().await?;
    let valid_did = app.accounts.check_identity(&account.did).await.is_ok();
    let (engine, did) = (app.engine.clone(), account.did.clone());
    let extent = blocking(move || Ok(extent(&engine, &did)?)).await?;
    let extent = extent.ok_or_else(|| {
        XrpcError::bad(
            "RepoNotFound",
            format!("Could not find repo for DID: {}", account.did),
        )
    })?;
    let counts = extent.head.counts;
    json_answer(&json!({
        "activated": account.is_active(),
        "validDid": valid_did,
        "repoCommit": extent.head.commit,
        "repoRev": extent.head.rev.to_string(),
        "repoBlocks": extent.blocks,
        "indexedRecords": counts.records,
        "privateStateValues": 0,
        "expectedBlobs": counts.blobs_referenced,
        "importedBlobs": counts.blobs_stored,
    }))
}

/// `reserveSigningKey`, for anybody.
pub async fn reserve_key(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    struct Input {
        did: Option<Did>,
    }
    let input: Input = request.json(JSON_LIMIT).await?;
    let key = app.accounts.reserve_signing_key(input.did.as_ref()).await?;
    json_answer(&json!({ "signingKey": key }))
}

impl From<LifeError> for XrpcError {
    fn from(error: LifeError) -> XrpcError {
        match error {
            LifeError::NoAccount => XrpcError::bad("AccountNotFound", error.to_string()),
            LifeError::Identity(message) => XrpcError::invalid(message),
            LifeError::Upstream(message) => {
                XrpcError::new(StatusCode::BAD_GATEWAY, "UpstreamFailure", message)
            }
            LifeError::Change(change) => change.into(),
            LifeError::Repo(repo) => repo.into(),
        }
    }
}
