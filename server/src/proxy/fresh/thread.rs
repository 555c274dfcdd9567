//! Threads: new replies below what they reply to, and threads of posts that the service does not know yet.

use std::collections::HashSet;

use engine::repo::AtUri;
use serde_json::{Value, json};

use super::super::query_of;
use super::Additions;
use super::local::Local;
use crate::xrpc::error::XrpcResult;
use crate::xrpc::params::Params;

/// What `getPostThread` shows unless it is told otherwise.
const DEPTH: usize = 6;
const HEIGHT: usize = 80;
/// And at most.
const MOST: usize = 1000;
/// The type of a post with what is around it.
const THREAD_POST: &str = "app.bsky.feed.defs#threadViewPost";

/// New posts that reply to something in the thread, or to each other there.
pub(super) fn replies(answer: &Value, params: &Params, local: &Local) -> Vec<usize> {
    let Some(thread) = answer.get("thread").filter(|thread| is_post(thread)) else {
        return Vec::new();
    };
    // A reply to what is not shown finds no place, and what it quotes would be fetched in vain.
    let mut shown = HashSet::new();
    collect(thread, depth(params), &mut shown);
    let mut places = Vec::new();
    for (at, post) in local.posts.iter().enumerate() {
        let parent = post.replied("parent");
        if parent.is_some_and(|parent| shown.contains(parent)) && !shown.contains(&post.uri) {
            shown.insert(post.uri.clone());
            places.push(at);
        }
    }
    places
}

/// The posts of a thread from its own post down.
fn collect(thread: &Value, depth: usize, shown: &mut HashSet<String>) {
    if let Some(uri) = uri(thread) {
        shown.insert(uri.to_owned());
    }
    let replies = thread.get("replies").and_then(Value::as_array);
    for reply in replies.into_iter().flatten().filter(|_| depth > 0) {
        collect(reply, depth - 1, shown);
    }
}

/// Puts new replies into a thread.
pub(super) fn insert(answer: &mut Value, params: &Params, additions: &Additions<'_>) -> bool {
    let Some(thread) = answer.get_mut("thread") else {
        return false;
    };
    attach(thread, depth(params), additions)
}

/// Puts each new reply below what it replies to. Each is newer than what it replies to, and they come in order.
fn attach(thread: &mut Value, depth: usize, additions: &Additions<'_>) -> bool {
    let mut done = false;
    for post in additions.posts() {
        let Some(parent) = post.replied("parent") else {
            continue;
        };
        let Some(place) = below(thread, parent, depth) else {
            continue;
        };
        let view = json!({ "$type": THREAD_POST, "post": additions.view(post) });
        match place.get_mut("replies").and_then(Value::as_array_mut) {
            Some(replies) => replies.insert(0, view),
            None => {
                if let Some(place) = place.as_object_mut() {
                    place.insert("replies".to_owned(), json!([view]));
                }
            }
        }
        done = true;
    }
    done
}

/// The post of a thread that has this URI, if its replies are shown.
fn below<'a>(thread: &'a mut Value, wanted: &str, depth: usize) -> Option<&'a mut Value> {
    if depth == 0 || !is_post(thread) {
        return None;
    }
    if uri(thread) == Some(wanted) {
        return Some(thread);
    }
    let replies = thread.get_mut("replies")?.as_array_mut()?;
    replies
        .iter_mut()
        .find_map(|reply| below(reply, wanted, depth - 1))
}

/// A thread around a new post.
pub(super) struct Own {
    /// The post, the new ones above it, and the new ones below, the oldest first.
    posts: Vec<usize>,
    /// How many of them are not below.
    upper: usize,
    /// What the topmost replies to.
    above: Option<String>,
}

impl Own {
    /// Around the post that is asked for, if it is new.
    ///
    /// # Errors
    /// 400 for a URI that is none.
    pub(super) fn find(params: &Params, local: &Local) -> XrpcResult<Option<Own>> {
        let asked: AtUri = params.parsed("uri")?;
        if !local.is(&asked.authority().to_string()) {
            return Ok(None);
        }
        let Some(path) = asked.path() else {
            return Ok(None);
        };
        let named = |uri: &str| local.posts.iter().position(|post| post.uri == uri);
        let uri = format!("at://{}/{path}", local.did);
        let Some(at) = named(&uri) else {
            return Ok(None);
        };
        let mut upper = vec![at];
        let mut above = local.posts.get(at).and_then(|post| post.replied("parent"));
        // A post that replies to itself by way of others is none that a client makes, and ends here.
        while let Some(at) = above.and_then(named).filter(|at| !upper.contains(at)) {
            if upper.len() > height(params) {
                break;
            }
            upper.push(at);
            above = local.posts.get(at).and_then(|post| post.replied("parent"));
        }
        let mut shown = HashSet::from([uri]);
        let mut posts = upper.clone();
        for (at, post) in local.posts.iter().enumerate() {
            if post
                .replied("parent")
                .is_some_and(|parent| shown.contains(parent))
                && !upper.contains(&at)
            {
                shown.insert(post.uri.clone());
                posts.push(at);
            }
        }
        Ok(Some(Own {
            posts,
            upper: upper.len(),
            above: above.map(str::to_owned),
        }))
    }

    /// Its posts.
    pub(super) fn posts(&self) -> &[usize] {
        &self.posts
    }

    /// What the service has to be asked for to show what is above, as parameters of `getPostThread`.
    ///
    /// # Errors
    /// 400 for a height that is none.
    pub(super) fn asks(&self, params: &Params) -> XrpcResult<Option<String>> {
        let height = params.integer("parentHeight", 0..=MOST, HEIGHT)?;
        let Some(uri) = self.above.as_deref().filter(|_| height >= self.upper) else {
            return Ok(None);
        };
        let left = (height - self.upper).to_string();
        Ok(Some(query_of([
            ("uri", uri),
            ("depth", "0"),
            ("parentHeight", left.as_str()),
        ])))
    }

    /// The thread, below what the service shows of `above`.
    pub(super) fn build(&self, params: &Params, additions: &Additions<'_>, above: Option<Value>) -> Value {
        let (upper, lower) = self.posts.split_at(self.upper);
        let mut parent = above;
        for at in upper.iter().rev() {
            let Some(post) = additions.local.posts.get(*at) else {
                continue;
            };
            let mut thread = json!({ "$type": THREAD_POST, "post": additions.view(post) });
            if let (Some(thread), Some(parent)) = (thread.as_object_mut(), parent.take()) {
                thread.insert("parent".to_owned(), parent);
            }
            parent = Some(thread);
        }
        let mut thread = parent.unwrap_or_default();
        let below = Additions {
            posts: lower,
            ..*additions
        };
        attach(&mut thread, depth(params), &below);
        thread
    }
}

fn depth(params: &Params) -> usize {
    params.integer("depth", 0..=MOST, DEPTH).unwrap_or(DEPTH)
}

fn height(params: &Params) -> usize {
    params.integer("parentHeight", 0..=MOST, HEIGHT).unwrap_or(HEIGHT)
}

fn is_post(thread: &Value) -> bool {
    thread
        .get("post")
        .and_then(|post| post.get("record"))
        .is_some_and(Value::is_object)
}

fn uri(thread: &Value) -> Option<&str> {
    thread.pointer("/post/uri")?.as_str()
}
