//! `app.bsky.feed.*`: what the AppView answers, with what it cannot know yet.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Response;

use super::error::XrpcResult;
use super::request::Request;
use crate::app::App;
use crate::proxy::fresh::View;
use crate::proxy::{Call, admit, feeds, fresh};

/// `getTimeline`.
pub async fn get_timeline(app: Arc<App>, request: Request) -> XrpcResult<Response<Body>> {
    view(&app, View::Timeline, request).await
}

/// `getAuthorFeed`.
pub async fn get_author_feed(app: Arc<App>, request: Request) -> XrpcResult<Response<Body>> {
    view(&app, View::AuthorFeed, request).await
}

/// `getActorLikes`.
pub async fn get_actor_likes(app: Arc<App>, request: Request) -> XrpcResult<Response<Body>> {
    view(&app, View::ActorLikes, request).await
}

/// `getPostThread`.
pub async fn get_post_thread(app: Arc<App>, request: Request) -> XrpcResult<Response<Body>> {
    view(&app, View::PostThread, request).await
}

/// `getFeed`: of a feed generator, who is told for whom it is.
pub async fn get_feed(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let feed = request.params.parsed("feed")?;
    let admitted = admit(&app, feeds::GET_FEED, &request.headers)?;
    request.no_body().await?;
    feeds::answer(&app, &admitted, &feed, call(feeds::GET_FEED, &request)).await
}

/// A view that the AppView has, with what it cannot know yet.
pub(super) async fn view(app: &App, view: View, mut request: Request) -> XrpcResult<Response<Body>> {
    let admitted = admit(app, view.nsid(), &request.headers)?;
    request.no_body().await?;
    fresh::answer(app, &admitted, view, &request.params, call(view.nsid(), &request)).await
}

fn call<'a>(nsid: &'a str, request: &'a Request) -> Call<'a> {
    Call {
        method: request.method.clone(),
        nsid,
        query: request.uri.query(),
        headers: &request.headers,
        body: Body::empty(),
    }
}
