//! Read after write: an AppView knows of a write some time after it was answered, so what an account reads of it meanwhile is
//! completed with the account's own newest records.
//!
//! A service tells by `atproto-repo-rev` up to which rev of the caller's repo its answer goes. What the repo has beyond that is
//! looked up in the index, by what changed and not by what there is (`local`). Mostly there is nothing, and the
//! answer passes as it comes; else it is held, completed by its view, and told anew with `Atproto-Upstream-Lag`.
//!
//! | method | what is added |
//! |---|---|
//! | `getProfile`, `getProfiles` | the caller's changed profile (`profile`) |
//! | `getTimeline`, `getAuthorFeed` | new posts, and in the caller's own feed the changed profile (`feed`) |
//! | `getActorLikes` | the changed profile (`feed`) |
//! | `getPostThread` | new replies; the whole thread if the service does not know the post (`thread`) |
//!
//! Nothing here can fail a read: what cannot be completed passes untouched, and why is logged.
//!
//! | bound | at it |
//! |---|---|
//! | `BODY_BYTES` of an answer, unpacked | it passes as it came |
//! | memory for bodies ([`crate::xrpc::room`]), eight times an answer's bytes | it passes as it came |
//! | ten new posts, the oldest | the others are left out |
//! | changes that are looked at (`local::LOOKED_AT`) | it passes as it came |
//! | five seconds for what new posts quote | they come without it |

mod embeds;
mod feed;
mod local;
mod profile;
mod thread;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use engine::repo::Tid;
use serde_json::Value;

use super::answer::{self, Held};
use super::{Admitted, Call, Errand, Token, headers_up};
use crate::app::App;
use crate::auth::permission::Rpc;
use crate::xrpc::error::{XrpcError, XrpcResult};
use crate::xrpc::params::Params;
use crate::xrpc::request::{blocking, json_bytes};
use embeds::Quotes;
use local::{Local, Wanted};

/// The longest answer that is completed, unpacked.
const BODY_BYTES: usize = 2 << 20;
/// Bytes that a byte of an answer takes while it is completed.
const PARSED_FACTOR: usize = 8;
/// Up to which rev of the caller's repo an answer goes.
const REV: HeaderName = HeaderName::from_static("atproto-repo-rev");
/// How many milliseconds the service is behind.
const LAG: HeaderName = HeaderName::from_static("atproto-upstream-lag");
/// The name of an error by which a service says that it does not know a post.
const NOT_FOUND: &str = "NotFound";

/// A method whose answer is completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// `getProfile`.
    Profile,
    /// `getProfiles`.
    Profiles,
    /// `getTimeline`.
    Timeline,
    /// `getAuthorFeed`.
    AuthorFeed,
    /// `getActorLikes`.
    ActorLikes,
    /// `getPostThread`.
    PostThread,
}

impl View {
    /// Its name.
    #[must_use]
    pub const fn nsid(self) -> &'static str {
        match self {
            View::Profile => "app.bsky.actor.getProfile",
            View::Profiles => "app.bsky.actor.getProfiles",
            View::Timeline => "app.bsky.feed.getTimeline",
            View::AuthorFeed => "app.bsky.feed.getAuthorFeed",
            View::ActorLikes => "app.bsky.feed.getActorLikes",
            View::PostThread => "app.bsky.feed.getPostThread",
        }
    }

    /// What of a repo may be added.
    const fn wanted(self) -> Wanted {
        match self {
            View::Profile | View::Profiles | View::ActorLikes => Wanted::Profile,
            View::Timeline | View::PostThread => Wanted::Posts,
            View::AuthorFeed => Wanted::ProfileAndPosts,
        }
    }

    /// The new posts that belong into an answer, by their place in `local`.
    fn places(self, answer: &Value, params: &Params, local: &Local) -> Vec<usize> {
        match self {
            View::Profile | View::Profiles | View::ActorLikes => Vec::new(),
            View::Timeline => feed::timeline(answer, params, local),
            View::AuthorFeed => feed::author_feed(answer, params, local),
            View::PostThread => thread::replies(answer, params, local),
        }
    }

    /// Completes an answer. Tells whether anything was to be done.
    fn complete(self, answer: &mut Value, params: &Params, additions: &Additions<'_>) -> bool {
        match self {
            View::Profile => profile::one(answer, additions.local),
            View::Profiles => profile::all(answer, additions.local),
            View::ActorLikes => feed::authors(answer, additions.local),
            View::Timeline => feed::insert(answer, additions),
            View::AuthorFeed => {
                let authors =
                    feed::is_own(answer, params, additions.local) && feed::authors(answer, additions.local);
                feed::insert(answer, additions) || authors
            }
            View::PostThread => thread::insert(answer, params, additions),
        }
    }
}

/// What is added to an answer.
struct Additions<'a> {
    local: &'a Local,
    /// Which of its posts.
    posts: &'a [usize],
    /// What they quote.
    quotes: &'a Quotes,
}

/// The service's answer to a view, completed.
///
/// # Errors
/// As for everything that is sent on.
pub async fn answer(
    app: &App,
    admitted: &Admitted,
    view: View,
    params: &Params,
    call: Call<'_>,
) -> XrpcResult<Response<Body>> {
    let Admitted { caller, target } = admitted;
    let proxy = &app.proxy;
    if call.method == Method::HEAD {
        return proxy.forward(app, caller, target, call).await;
    }
    let rpc = Rpc {
        aud: &target.audience(),
        lxm: call.nsid,
    };
    caller.permission.call(rpc)?;
    let slot = proxy.slot(Some(&caller.did))?;
    let mut headers = headers_up(call.headers, false);
    let coding = coding(call.headers, proxy.settings.prefer_compressed);
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(coding));
    let errand = Errand {
        method: Method::GET,
        nsid: call.nsid,
        query: call.query,
        headers,
        body: None,
        token: Some(Token {
            account: &caller.did,
            audience: &target.did,
            lxm: call.nsid,
        }),
    };
    let (answer, bounds) = proxy.exchange(app, target, errand).await?;
    let rev = rev_of(answer.headers());
    if view == View::PostThread && answer::is_error(&answer) {
        let error = answer::told(answer, bounds).await;
        let known = match rev {
            Some(rev) if error.name == NOT_FOUND => own_thread(app, admitted, params, rev).await,
            Some(_) | None => Ok(None),
        };
        return match known {
            Ok(Some(thread)) => Ok(thread),
            Ok(None) => Err(error),
            Err(cause) => {
                untouched(view, &cause.message);
                Err(error)
            }
        };
    }
    let readable = answer.status() == StatusCode::OK && answer::is_json(answer.headers());
    let Some(rev) = rev.filter(|_| readable) else {
        return answer::pass(answer, false, bounds, slot).await;
    };
    let local = local::since(app, &caller.did, rev, view.wanted()).await;
    let local = local.unwrap_or_else(|cause| {
        untouched(view, &cause.message);
        None
    });
    let Some(local) = local else {
        return answer::pass(answer, false, bounds, slot).await;
    };
    let mut place = app.bodies.place();
    let held = answer::hold(answer, bounds, slot, BODY_BYTES, &mut place).await?;
    let Some(body) = held.unpacked(BODY_BYTES) else {
        untouched(view, "the answer is too long, or cannot be unpacked");
        return Ok(held.untouched());
    };
    if place
        .grow_to(body.len().saturating_mul(PARSED_FACTOR))
        .await
        .is_err()
    {
        untouched(view, "there is no memory for it at the moment");
        return Ok(held.untouched());
    }
    let body = body.into_owned();
    match completed(app, admitted, view, params, local, body).await {
        Ok(Some((body, local))) => Ok(told_anew(app, Some(&held), body, &local)),
        Ok(None) => Ok(held.untouched()),
        Err(cause) => {
            untouched(view, &cause.message);
            Ok(held.untouched())
        }
    }
}

/// An answer's body, completed; `None` if there is nothing to add to it.
async fn completed(
    app: &App,
    admitted: &Admitted,
    view: View,
    params: &Params,
    local: Local,
    body: Vec<u8>,
) -> XrpcResult<Option<(Vec<u8>, Local)>> {
    let asked = params.clone();
    let read = blocking(move || {
        let answer: Value = serde_json::from_slice(&body).map_err(unfit)?;
        let places = view.places(&answer, &asked, &local);
        Ok((answer, places, local))
    });
    let (mut answer, places, local) = read.await?;
    let quotes = quotes(app, admitted, &local, &places).await;
    let params = params.clone();
    blocking(move || {
        let additions = Additions {
            local: &local,
            posts: &places,
            quotes: &quotes,
        };
        if !view.complete(&mut answer, &params, &additions) {
            return Ok(None);
        }
        let body = serde_json::to_vec(&answer).map_err(unfit)?;
        Ok(Some((body, local)))
    })
    .await
}

/// The thread of a post of the caller's that the service does not know, if it is new.
async fn own_thread(
    app: &App,
    admitted: &Admitted,
    params: &Params,
    rev: Tid,
) -> XrpcResult<Option<Response<Body>>> {
    let Admitted { caller, target } = admitted;
    let Some(local) = local::since(app, &caller.did, rev, Wanted::Posts).await? else {
        return Ok(None);
    };
    let Some(own) = thread::Own::find(params, &local)? else {
        return Ok(None);
    };
    let quotes = quotes(app, admitted, &local, own.posts()).await;
    let above = match own.asks(params)? {
        Some(query) => {
            let nsid = View::PostThread.nsid();
            let found = app.proxy.question(app, &caller.did, target, nsid, &query).await;
            found
                .ok()
                .and_then(|mut found| Some(found.get_mut("thread")?.take()))
        }
        None => None,
    };
    let additions = Additions {
        local: &local,
        posts: own.posts(),
        quotes: &quotes,
    };
    let thread = own.build(params, &additions, above);
    let body = serde_json::to_vec(&serde_json::json!({ "thread": thread })).map_err(unfit)?;
    Ok(Some(told_anew(app, None, body, &local)))
}

/// What the posts at `places` quote.
async fn quotes(app: &App, admitted: &Admitted, local: &Local, places: &[usize]) -> Quotes {
    let posts = places.iter().filter_map(|at| local.posts.get(*at));
    Quotes::fetch(app, admitted, local, posts).await
}

/// A completed answer. What its head says of bytes is no longer so; what it says of labels and language is.
fn told_anew(app: &App, held: Option<&Held>, body: Vec<u8>, local: &Local) -> Response<Body> {
    let mut response = json_bytes(body);
    let headers = response.headers_mut();
    if let Some(held) = held {
        for (name, value) in &held.parts.headers {
            let of_bytes = [
                header::CONTENT_LENGTH,
                header::CONTENT_ENCODING,
                header::CONTENT_TYPE,
            ];
            if !of_bytes.contains(name) {
                headers.append(name.clone(), value.clone());
            }
        }
    }
    let lag = app.engine.now_micros().saturating_sub(local.oldest_micros()) / 1000;
    headers.insert(LAG, HeaderValue::from(lag));
    metrics::counter!("pds_proxy_completed_total").increment(1);
    response
}

fn rev_of(headers: &HeaderMap) -> Option<Tid> {
    headers.get(REV)?.to_str().ok()?.parse().ok()
}

/// What the service is asked for, so that this server can read its answer.
fn coding(given: &HeaderMap, prefer_compressed: bool) -> &'static str {
    if prefer_compressed && crate::http::accepts_gzip(given) {
        "gzip"
    } else {
        "identity"
    }
}

fn unfit(error: serde_json::Error) -> XrpcError {
    XrpcError::new(StatusCode::BAD_GATEWAY, "UpstreamFailure", error.to_string())
}

fn untouched(view: View, why: &str) {
    tracing::warn!(method = view.nsid(), why, "an answer is not completed");
}
