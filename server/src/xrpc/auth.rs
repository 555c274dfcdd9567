//! Who calls: from an `Authorization` header to a DID, with the names and status codes that clients know.

use axum::http::{HeaderMap, StatusCode};
use engine::repo::Did;

use super::error::{XrpcError, XrpcResult};
use crate::app::App;
use crate::auth::header::{self, Authorization, HeaderError};
use crate::auth::methods::CREATE_ACCOUNT;
use crate::auth::permission::{Access, Denied, Permission};
use crate::auth::replay::Use;
use crate::auth::service_jwt::{ServiceJwtError, looks_like_service_jwt};
use crate::auth::tokens::{RefreshClaims, TokenError};
use crate::service::accounts::Account;

/// The other name under which a moderation service signs.
const LABELER: &str = "atproto_labeler";

/// An account that calls, and what it may do.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who.
    pub did: Did,
    /// What.
    pub permission: Permission,
}

/// The caller of a method that needs an access token.
///
/// # Errors
/// 401 `AuthMissing` without a header, 400 `InvalidToken` or `ExpiredToken` with a bad one.
pub fn caller(app: &App, headers: &HeaderMap, access: Access) -> XrpcResult<Caller> {
    let token = header::bearer(value(headers)).map_err(header_error)?;
    let claims = app
        .tokens
        .verify_access(token, app.now_seconds())
        .map_err(token_error)?;
    let permission = Permission::of_session(claims.scope);
    permission.admit(access)?;
    Ok(Caller {
        did: claims.did,
        permission,
    })
}

/// The account that calls a method which is not for accounts that are taken down.
///
/// # Errors
/// As [`caller`]; 403 `AccountNotFound`, 401 `AccountTakedown`.
pub async fn account_in_standing(app: &App, headers: &HeaderMap, access: Access) -> XrpcResult<Account> {
    let account = calling_account(app, headers, access).await?;
    account.check_not_taken_down()?;
    Ok(account)
}

/// The account that calls, whatever its state.
///
/// # Errors
/// As [`caller`]; 403 `AccountNotFound`.
pub async fn calling_account(app: &App, headers: &HeaderMap, access: Access) -> XrpcResult<Account> {
    let did = caller(app, headers, access)?.did;
    let account = app.accounts.by_did(&did).await?;
    account.ok_or_else(|| XrpcError::new(StatusCode::FORBIDDEN, "AccountNotFound", "Account not found"))
}

/// The account of a request's access token, whatever it allows; none without a good one.
#[must_use]
pub fn session_did(app: &App, headers: &HeaderMap) -> Option<Did> {
    let token = header::bearer(value(headers)).ok()?;
    let claims = app.tokens.verify_access(token, app.now_seconds()).ok()?;
    Some(claims.did)
}

/// The account that calls `method` with an access token, or in whose name a service does. A service's token is used up when
/// the [`Use`] is kept.
///
/// # Errors
/// As [`caller`]; 401 for a service token that is not good.
pub async fn caller_or_service(
    app: &App,
    headers: &HeaderMap,
    access: Access,
    method: &str,
) -> XrpcResult<(Did, Option<Use>)> {
    match header::parse(value(headers)).map_err(header_error)? {
        Some(Authorization::Bearer(token)) if looks_like_service_jwt(token) => {
            let (claims, used) = app.service_auth.verify(token, method).await?;
            if claims.issuer_fragment.is_some() {
                return Err(ServiceJwtError::Untrusted.into());
            }
            Ok((claims.issuer, used))
        }
        Some(_) | None => Ok((caller(app, headers, access)?.did, None)),
    }
}

/// Whether a service calls, with a token of its own, and not an account with a session's.
///
/// # Errors
/// As [`caller`].
pub fn is_service(headers: &HeaderMap) -> XrpcResult<bool> {
    let credentials = header::parse(value(headers)).map_err(header_error)?;
    Ok(matches!(credentials, Some(Authorization::Bearer(token)) if looks_like_service_jwt(token)))
}

/// The refresh token of a request, whose row is not looked up yet.
///
/// # Errors
/// As [`caller`].
pub fn refresh(app: &App, headers: &HeaderMap, allow_expired: bool) -> XrpcResult<RefreshClaims> {
    let token = header::bearer(value(headers)).map_err(header_error)?;
    app.tokens
        .verify_refresh(token, app.now_seconds(), allow_expired)
        .map_err(token_error)
}

/// Who reads a repo: nobody in particular, somebody, or the administrator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reader {
    /// No credentials.
    Anonymous,
    /// An account of this server.
    Account(Did),
    /// The administrator.
    Admin,
}

impl Reader {
    /// Whether takedown and deactivation of `did` do not matter to this reader.
    #[must_use]
    pub fn sees_inactive(&self, did: &Did) -> bool {
        match self {
            Reader::Anonymous => false,
            Reader::Account(account) => account == did,
            Reader::Admin => true,
        }
    }
}

/// Optional authentication of the sync methods.
///
/// # Errors
/// A header that is there must be good: 400 or 401 otherwise.
pub fn reader(app: &App, headers: &HeaderMap, access: Access) -> XrpcResult<Reader> {
    match header::parse(value(headers)).map_err(header_error)? {
        None => Ok(Reader::Anonymous),
        Some(Authorization::Basic(credential)) if app.admin.accepts(credential) => Ok(Reader::Admin),
        Some(Authorization::Basic(_)) => Err(denied()),
        Some(_) => Ok(Reader::Account(caller(app, headers, access)?.did)),
    }
}

/// Who writes to a repo: its account, or the administrator (`None`), who brings back what was there at an earlier moment.
///
/// # Errors
/// As [`caller`], and 401 for a wrong password.
pub fn writer(app: &App, headers: &HeaderMap, access: Access) -> XrpcResult<Option<Did>> {
    match header::parse(value(headers)).map_err(header_error)? {
        Some(Authorization::Basic(_)) => admin(app, headers).map(|()| None),
        Some(_) | None => caller(app, headers, access).map(|claims| Some(claims.did)),
    }
}

/// Only the administrator may go on.
///
/// # Errors
/// 401 otherwise.
pub fn admin(app: &App, headers: &HeaderMap) -> XrpcResult<()> {
    match header::parse(value(headers)).map_err(header_error)? {
        Some(Authorization::Basic(credential)) if app.admin.accepts(credential) => Ok(()),
        Some(_) | None => Err(denied()),
    }
}

/// The administrator, or the moderation service of the settings with a token for `method`, which is used up when the [`Use`] is
/// kept.
///
/// # Errors
/// 401 for a wrong password, a token that is not good or of another issuer, and without any credentials.
pub async fn moderator(app: &App, headers: &HeaderMap, method: &str) -> XrpcResult<Option<Use>> {
    acting_moderator(app, headers, method).await.map(|(_, used)| used)
}

/// As [`moderator`], with the name under which the audit log knows who acts.
///
/// # Errors
/// As [`moderator`].
pub async fn acting_moderator(
    app: &App,
    headers: &HeaderMap,
    method: &str,
) -> XrpcResult<(String, Option<Use>)> {
    match header::parse(value(headers)).map_err(header_error)? {
        Some(Authorization::Basic(credential)) if app.admin.accepts(credential) => {
            Ok(("admin".to_owned(), None))
        }
        Some(Authorization::Basic(_)) => Err(denied()),
        Some(Authorization::Bearer(token)) => {
            let (claims, used) = app.service_auth.verify(token, method).await?;
            let service = app.config.upstreams.moderation.as_ref();
            let fragment = claims.issuer_fragment.as_deref();
            if service.is_some_and(|service| service.did == claims.issuer)
                && matches!(fragment, None | Some(LABELER))
            {
                Ok((claims.issuer.to_string(), used))
            } else {
                Err(ServiceJwtError::Untrusted.into())
            }
        }
        Some(Authorization::Dpop(_)) | None => Err(ServiceJwtError::Missing.into()),
    }
}

/// Whose identity somebody brings to `createAccount`: nobody's without credentials, else that of a service token's issuer.
///
/// # Errors
/// 401 for a token that is not good, and for any other credentials.
pub async fn arriving(app: &App, headers: &HeaderMap) -> XrpcResult<(Option<Did>, Option<Use>)> {
    match header::parse(value(headers)).map_err(header_error)? {
        None => Ok((None, None)),
        Some(Authorization::Bearer(token)) => {
            let (claims, used) = app.service_auth.verify(token, CREATE_ACCOUNT).await?;
            if claims.issuer_fragment.is_some() {
                return Err(ServiceJwtError::Untrusted.into());
            }
            Ok((Some(claims.issuer), used))
        }
        Some(_) => Err(denied()),
    }
}

fn value(headers: &HeaderMap) -> Option<&[u8]> {
    headers
        .get(axum::http::header::AUTHORIZATION)
        .map(axum::http::HeaderValue::as_bytes)
}

fn denied() -> XrpcError {
    XrpcError::unauthorized("AuthenticationRequired", "Authentication Required")
}

fn header_error(error: HeaderError) -> XrpcError {
    let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::BAD_REQUEST);
    XrpcError::new(status, error.name(), error.to_string())
}

fn token_error(error: TokenError) -> XrpcError {
    match error {
        TokenError::NotIssued => XrpcError::internal(error),
        TokenError::Expired | TokenError::Invalid(_) => XrpcError::bad(error.name(), error.to_string()),
    }
}

impl From<Denied> for XrpcError {
    fn from(error: Denied) -> XrpcError {
        XrpcError::bad(error.name(), error.to_string())
    }
}

impl From<ServiceJwtError> for XrpcError {
    fn from(error: ServiceJwtError) -> XrpcError {
        let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::UNAUTHORIZED);
        XrpcError::new(status, error.name(), error.to_string())
    }
}
