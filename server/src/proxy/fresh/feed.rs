//! Feeds: new posts where they belong by time, and the caller's changed profile beside his posts.

use serde_json::{Value, json};

use super::local::{Local, Post};
use super::{Additions, profile};
use crate::xrpc::params::Params;

/// New posts that belong into a page of the caller's timeline.
pub(super) fn timeline(answer: &Value, params: &Params, local: &Local) -> Vec<usize> {
    within(answer, params, local, |_| true)
}

/// New posts that belong into a page of somebody's feed, if it is the caller's.
pub(super) fn author_feed(answer: &Value, params: &Params, local: &Local) -> Vec<usize> {
    if !is_own(answer, params, local) {
        return Vec::new();
    }
    let filter = params.optional("filter").ok().flatten().unwrap_or_default();
    within(answer, params, local, |post| passes(filter, post, local))
}

/// Whether a feed is the caller's: by the name that is asked for, or else by what stands first.
pub(super) fn is_own(answer: &Value, params: &Params, local: &Local) -> bool {
    if let Ok(Some(actor)) = params.optional("actor")
        && local.is(actor)
    {
        return true;
    }
    let first = answer.get("feed").and_then(|feed| feed.get(0));
    let by = |pointer| {
        first
            .and_then(|item| item.pointer(pointer))
            .and_then(Value::as_str)
    };
    let author = match by("/reason/$type") {
        Some(_) => by("/reason/by/did"),
        None => by("/post/author/did"),
    };
    author == Some(local.did.as_str())
}

/// Whether a post is one of those that a filter of `getAuthorFeed` lets pass.
fn passes(filter: &str, post: &Post, local: &Local) -> bool {
    let embed = post.record.get("embed");
    let kind = |embed: Option<&Value>| match embed.and_then(|embed| embed.get("$type")) {
        Some(Value::String(kind)) => kind
            .strip_prefix("app.bsky.embed.")
            .unwrap_or_default()
            .to_owned(),
        Some(_) | None => String::new(),
    };
    let media = match &*kind(embed) {
        "recordWithMedia" => kind(embed.and_then(|embed| embed.get("media"))),
        other => other.to_owned(),
    };
    let own = format!("at://{}/", local.did);
    let to_own = |to| post.replied(to).is_some_and(|uri| uri.starts_with(&own));
    match filter {
        "posts_no_replies" => post.replied("parent").is_none(),
        "posts_with_media" => matches!(&*media, "images" | "gallery" | "video"),
        "posts_with_video" => media == "video",
        "posts_and_author_threads" => {
            post.replied("parent").is_none() || (to_own("parent") && to_own("root"))
        }
        _ => true,
    }
}

/// The posts that `wanted` names and that lie within the time of a page, which is not there yet. The first page reaches up to
/// now; a page that follows another has no place for what is newer than its first item, since that was on the page before.
fn within(answer: &Value, params: &Params, local: &Local, wanted: impl Fn(&Post) -> bool) -> Vec<usize> {
    let Some(feed) = answer.get("feed").and_then(Value::as_array) else {
        return Vec::new();
    };
    let follows = !matches!(params.optional("cursor"), Ok(None));
    let times: Vec<&str> = feed.iter().filter_map(time).collect();
    let (first, last) = (times.first().copied(), times.last().copied());
    let belongs = |post: &Post| {
        let at = post.indexed_at.as_str();
        last.is_none_or(|last| at > last)
            && (!follows || first.is_some_and(|first| at < first))
            && !feed.iter().any(|item| uri(item) == Some(post.uri.as_str()))
            && wanted(post)
    };
    let posts = local.posts.iter().enumerate();
    posts
        .filter(|(_, post)| belongs(post))
        .map(|(at, _)| at)
        .collect()
}

/// Puts new posts into a feed, before the first item that is older. Pinned items stay where they are.
pub(super) fn insert(answer: &mut Value, additions: &Additions<'_>) -> bool {
    let Some(feed) = answer.get_mut("feed").and_then(Value::as_array_mut) else {
        return false;
    };
    let posts: Vec<&Post> = additions.posts().collect();
    for post in &posts {
        let at = post.indexed_at.as_str();
        let place = feed
            .iter()
            .position(|item| time(item).is_some_and(|time| time < at));
        let item = json!({ "post": additions.view(post) });
        feed.insert(place.unwrap_or(feed.len()), item);
    }
    !posts.is_empty()
}

/// Renews the caller's profile beside the posts of a feed.
pub(super) fn authors(answer: &mut Value, local: &Local) -> bool {
    let feed = answer.get_mut("feed").and_then(Value::as_array_mut);
    let mut done = false;
    for item in feed.into_iter().flatten() {
        let author = item.pointer_mut("/post/author").and_then(Value::as_object_mut);
        done |= author.is_some_and(|author| profile::basic(author, local));
    }
    done
}

fn uri(item: &Value) -> Option<&str> {
    match item.get("reason") {
        // Of a post that stands there because somebody reposted it, the post itself may come, too.
        Some(_) => None,
        None => item.pointer("/post/uri")?.as_str(),
    }
}

/// When an item came into its feed; none for one that is pinned.
fn time(item: &Value) -> Option<&str> {
    match item.get("reason") {
        Some(reason) => reason.get("indexedAt")?.as_str(),
        None => item.pointer("/post/indexedAt")?.as_str(),
    }
}
