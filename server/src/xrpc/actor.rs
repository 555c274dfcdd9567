//! `app.bsky.actor.*`: what apps keep here for an account, and profiles.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Method, Response};
use engine::repo::Did;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::auth::{caller, is_service, moderator};
use super::error::{XrpcError, XrpcResult};
use super::feed::view;
use super::request::{JSON_LIMIT, Request, empty, json as json_answer};
use crate::app::App;
use crate::auth::methods::GET_PREFERENCES;
use crate::auth::permission::Access;
use crate::proxy::fresh::View;
use crate::proxy::{Call, is_here, send_on};
use crate::service::accounts::PreferencesError;

/// Its name.
const PUT_PREFERENCES: &str = "app.bsky.actor.putPreferences";

/// `getPreferences`: of the account that asks; of any for the moderators. Those that another AppView keeps are its to tell.
pub async fn get_preferences(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    if is_service(&request.headers)? {
        let used = moderator(&app, &request.headers, GET_PREFERENCES).await?;
        let subject: Did = request.params.parsed("did")?;
        request.no_body().await?;
        let preferences = app.accounts.preferences(&subject, true).await?;
        if let Some(used) = used {
            used.keep();
        }
        return json_answer(&json!({ "preferences": preferences }));
    }
    if !is_here(&app, GET_PREFERENCES, &request.headers)? {
        let call = Call {
            method: Method::GET,
            nsid: GET_PREFERENCES,
            query: None,
            headers: &request.headers,
            body: Body::empty(),
        };
        return send_on(&app, Access::StandardOrTakendown, call).await;
    }
    let caller = caller(&app, &request.headers, Access::StandardOrTakendown)?;
    request.no_body().await?;
    let personal = caller.permission.sees_personal_details();
    let preferences = app.accounts.preferences(&caller.did, personal).await?;
    json_answer(&json!({ "preferences": preferences }))
}

/// `putPreferences`.
pub async fn put_preferences(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    struct Input {
        preferences: Vec<Map<String, Value>>,
    }
    if !is_here(&app, PUT_PREFERENCES, &request.headers)? {
        return Err(XrpcError::invalid(
            "Preferences for another AppView cannot be stored by way of this server",
        ));
    }
    let caller = caller(&app, &request.headers, Access::Standard)?;
    let account = app.accounts.by_did(&caller.did).await?;
    if let Some(account) = account {
        account.check_not_taken_down()?;
    }
    let input: Input = request.json(JSON_LIMIT).await?;
    let personal = caller.permission.sees_personal_details();
    app.accounts
        .put_preferences(&caller.did, input.preferences, personal)
        .await?;
    Ok(empty())
}

/// `getProfile`.
pub async fn get_profile(app: Arc<App>, request: Request) -> XrpcResult<Response<Body>> {
    view(&app, View::Profile, request).await
}

/// `getProfiles`.
pub async fn get_profiles(app: Arc<App>, request: Request) -> XrpcResult<Response<Body>> {
    view(&app, View::Profiles, request).await
}

impl From<PreferencesError> for XrpcError {
    fn from(error: PreferencesError) -> XrpcError {
        match error {
            PreferencesError::Change(error) => error.into(),
            PreferencesError::Namespace | PreferencesError::Untyped | PreferencesError::Personal => {
                XrpcError::invalid(error.to_string())
            }
        }
    }
}
