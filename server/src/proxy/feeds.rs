//! Feeds that somebody's feed generator makes. The AppView fetches the posts for it and asks the generator itself, so the token is
//! for the generator: its DID, and the method by which it is asked.

use axum::body::Body;
use axum::http::{Response, StatusCode};
use engine::repo::{AtUri, Did};
use serde_json::Value;

use super::{Admitted, Call, Token, query_of};
use crate::app::App;
use crate::auth::permission::Rpc;
use crate::identity::service_ref::ServiceRef;
use crate::xrpc::error::{XrpcError, XrpcResult};

/// The method.
pub const GET_FEED: &str = "app.bsky.feed.getFeed";
/// By which the generator is asked.
const GET_SKELETON: &str = "app.bsky.feed.getFeedSkeleton";
/// By which the AppView is asked who the generator is.
const GET_GENERATOR: &str = "app.bsky.feed.getFeedGenerator";

/// The answer to `getFeed`.
///
/// # Errors
/// 400 `UnknownFeed`, 502 and 503 as for everything that is sent on, and what the service says.
pub async fn answer(
    app: &App,
    admitted: &Admitted,
    feed: &AtUri,
    call: Call<'_>,
) -> XrpcResult<Response<Body>> {
    let Admitted { caller, target } = admitted;
    for lxm in [GET_FEED, GET_SKELETON] {
        let aud = &target.audience();
        caller.permission.call(Rpc { aud, lxm })?;
    }
    let proxy = &app.proxy;
    let slot = proxy.slot(Some(&caller.did))?;
    let query = query_of([("feed", &*feed.to_string())]);
    let view = proxy
        .question(app, &caller.did, target, GET_GENERATOR, &query)
        .await;
    let view = view.map_err(|error| match error.status {
        StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND => error.named("UnknownFeed"),
        _ => error,
    })?;
    let audience = generator(&view)
        .ok_or_else(|| XrpcError::bad("UnknownFeed", "The feed generator has no DID of a service"))?;
    let token = Token {
        account: &caller.did,
        audience: &audience,
        lxm: GET_SKELETON,
    };
    proxy.carry(app, target, call, token, slot).await
}

/// The generator's DID in a view of it.
fn generator(answer: &Value) -> Option<Did> {
    let named: ServiceRef = answer.pointer("/view/did")?.as_str()?.parse().ok()?;
    named.fragment.is_none().then_some(named.did)
}
