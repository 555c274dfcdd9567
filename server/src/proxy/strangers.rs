//! Records of repos that are not here, for whoever asks: the AppView has them.

use axum::body::Body;
use axum::http::{Method, Response};

use super::target::Target;
use super::{Errand, answer, as_it_is, query_of};
use crate::app::App;
use crate::xrpc::error::XrpcResult;
use crate::xrpc::params::Params;

const GET_RECORD: &str = "com.atproto.repo.getRecord";

/// The AppView's answer to `getRecord` with these parameters, asked without credentials; `None` without an AppView.
///
/// # Errors
/// 502 and 503 as for everything that is sent on, and what the AppView says.
pub async fn record(app: &App, params: &Params) -> XrpcResult<Option<Response<Body>>> {
    let proxy = &app.proxy;
    let Some(target) = Target::app_view(&proxy.upstreams) else {
        return Ok(None);
    };
    let slot = proxy.slot(None)?;
    let mut asked = Vec::new();
    for name in ["repo", "collection", "rkey", "cid"] {
        asked.extend(params.optional(name)?.map(|value| (name, value)));
    }
    let errand = Errand {
        method: Method::GET,
        nsid: GET_RECORD,
        query: Some(&query_of(asked)),
        headers: as_it_is(),
        body: None,
        token: None,
    };
    let (answer, bounds) = proxy.exchange(app, &target, errand).await?;
    answer::pass(answer, false, bounds, slot).await.map(Some)
}
