//! What new posts show beside their text: images and links as they say themselves, quotes as the service has them.

use std::collections::HashMap;

use engine::repo::AtUri;
use serde_json::{Map, Value, json};

use super::super::query_of;
use super::local::{Local, Post};
use super::{Additions, Admitted};
use crate::app::App;

/// Kinds of records of which the service shows many at once: collection, method, its parameter, the list in its answer, type of a view.
const KINDS: [(&str, &str, &str, &str, &str); 3] = [
    (
        "app.bsky.feed.post",
        "app.bsky.feed.getPosts",
        "uris",
        "posts",
        "",
    ),
    (
        "app.bsky.feed.generator",
        "app.bsky.feed.getFeedGenerators",
        "feeds",
        "feeds",
        "app.bsky.feed.defs#generatorView",
    ),
    (
        "app.bsky.graph.starterpack",
        "app.bsky.graph.getStarterPacks",
        "uris",
        "starterPacks",
        "app.bsky.graph.defs#starterPackViewBasic",
    ),
];
/// Lists are shown one by one.
const LIST: &str = "app.bsky.graph.list";
const GET_LIST: &str = "app.bsky.graph.getList";
const LIST_VIEW: &str = "app.bsky.graph.defs#listView";
/// Most lists that are asked for.
const LISTS_MAX: usize = 2;
/// How long all questions for one answer may take.
const QUOTES_LIMIT: std::time::Duration = std::time::Duration::from_secs(5);

/// What new posts quote, by URI. What is not here could not be had; `None` is what the service does not know.
#[derive(Default)]
pub(super) struct Quotes(HashMap<String, Option<Value>>);

impl Quotes {
    /// Asks the service for what `posts` quote. What is new itself is known here.
    pub(super) async fn fetch<'a>(
        app: &App,
        admitted: &Admitted,
        local: &Local,
        posts: impl Iterator<Item = &'a Post>,
    ) -> Quotes {
        let mut wanted: Vec<AtUri> = posts
            .filter_map(quoted)
            .filter_map(|uri| uri.parse().ok())
            .collect();
        wanted.sort_unstable();
        wanted.dedup();
        wanted.retain(|uri| !is_new(local, &uri.to_string()));
        let mut quotes = Quotes::default();
        if !wanted.is_empty() {
            let asking = quotes.ask(app, admitted, &wanted);
            if tokio::time::timeout(QUOTES_LIMIT, asking).await.is_err() {
                tracing::warn!("what a new post quotes is not told in time");
            }
        }
        quotes
    }

    async fn ask(&mut self, app: &App, admitted: &Admitted, wanted: &[AtUri]) {
        let Admitted { caller, target } = admitted;
        let of = |kind: &str| {
            let kind = kind.to_owned();
            let of_kind = move |uri: &&AtUri| uri.collection().is_some_and(|name| name.as_str() == kind);
            wanted.iter().filter(of_kind).map(AtUri::to_string)
        };
        let ask = async |nsid: &str, query: String| {
            let answer = app.proxy.question(app, &caller.did, target, nsid, &query);
            match answer.await {
                Ok(answer) => Some(answer),
                Err(error) => {
                    tracing::warn!(nsid, error = %error.message, "what a new post quotes cannot be had");
                    None
                }
            }
        };
        for (collection, nsid, parameter, list, kind) in KINDS {
            let uris: Vec<String> = of(collection).collect();
            if uris.is_empty() {
                continue;
            }
            let query = query_of(uris.iter().map(|uri| (parameter, uri.as_str())));
            let Some(mut answer) = ask(nsid, query).await else {
                continue;
            };
            let views = answer.get_mut(list).and_then(Value::as_array_mut);
            let mut views: Vec<Value> = views.map(std::mem::take).unwrap_or_default();
            for uri in uris {
                let at = views
                    .iter()
                    .position(|view| view.get("uri").and_then(Value::as_str) == Some(&uri));
                let view = at.map(|at| views.swap_remove(at));
                let view = match collection {
                    "app.bsky.feed.post" => view.and_then(record_of_post),
                    _ => view.and_then(|view| typed(kind, view)),
                };
                self.0.insert(uri, view);
            }
        }
        for uri in of(LIST).take(LISTS_MAX) {
            let query = query_of([("list", uri.as_str()), ("limit", "1")]);
            if let Some(mut answer) = ask(GET_LIST, query).await {
                let view = answer.get_mut("list").map(Value::take);
                self.0.insert(uri, view.and_then(|view| typed(LIST_VIEW, view)));
            }
        }
    }
}

/// The URI that a post quotes.
fn quoted(post: &Post) -> Option<&str> {
    let embed = post.record.get("embed")?;
    match kind(embed)? {
        "record" => embed.pointer("/record/uri")?.as_str(),
        "recordWithMedia" => embed.pointer("/record/record/uri")?.as_str(),
        _ => None,
    }
}

fn is_new(local: &Local, uri: &str) -> bool {
    local.posts.iter().any(|post| post.uri == uri)
}

/// The last part of an embed's type.
fn kind(embed: &Value) -> Option<&str> {
    embed.get("$type")?.as_str()?.strip_prefix("app.bsky.embed.")
}

fn typed(kind: &str, view: Value) -> Option<Value> {
    let Value::Object(mut view) = view else {
        return None;
    };
    view.insert("$type".to_owned(), kind.into());
    Some(Value::Object(view))
}

/// A post's view as the one of a quoted record.
fn record_of_post(view: Value) -> Option<Value> {
    let Value::Object(mut view) = view else {
        return None;
    };
    let mut record = Map::new();
    record.insert("$type".to_owned(), "app.bsky.embed.record#viewRecord".into());
    for field in [
        "uri",
        "cid",
        "author",
        "labels",
        "replyCount",
        "repostCount",
        "likeCount",
        "quoteCount",
        "indexedAt",
    ] {
        if let Some(value) = view.remove(field) {
            record.insert(field.to_owned(), value);
        }
    }
    record.insert("value".to_owned(), view.remove("record")?);
    if let Some(embed) = view.remove("embed") {
        record.insert("embeds".to_owned(), json!([embed]));
    }
    Some(Value::Object(record))
}

impl Additions<'_> {
    /// The new posts that are added, the oldest first.
    pub(super) fn posts(&self) -> impl Iterator<Item = &Post> {
        self.posts.iter().filter_map(|at| self.local.posts.get(*at))
    }

    /// A new post as the service would show it: nobody has answered or liked it yet.
    pub(super) fn view(&self, post: &Post) -> Value {
        let mut view = json!({
            "uri": post.uri,
            "cid": post.cid,
            "author": self.local.author(),
            "record": post.record,
            "bookmarkCount": 0,
            "replyCount": 0,
            "repostCount": 0,
            "likeCount": 0,
            "quoteCount": 0,
            "indexedAt": post.indexed_at,
        });
        if let (Some(embed), Some(view)) = (self.embed(post), view.as_object_mut()) {
            view.insert("embed".to_owned(), embed);
        }
        view
    }

    fn embed(&self, post: &Post) -> Option<Value> {
        let embed = post.record.get("embed")?;
        match kind(embed)? {
            "record" => {
                let record = self.quote(embed.get("record")?)?;
                Some(json!({ "$type": "app.bsky.embed.record#view", "record": record }))
            }
            "recordWithMedia" => {
                let media = self.local.media(embed.get("media")?)?;
                let record = self.quote(embed.pointer("/record/record")?)?;
                Some(json!({
                    "$type": "app.bsky.embed.recordWithMedia#view",
                    "media": media,
                    "record": { "record": record },
                }))
            }
            _ => self.local.media(embed),
        }
    }

    /// What a post quotes. Nothing, rather than that it is gone, if that could not be found out.
    fn quote(&self, reference: &Value) -> Option<Value> {
        let uri = reference.get("uri")?.as_str()?;
        if let Some(post) = self.local.posts.iter().find(|post| post.uri == uri) {
            let media = post.record.get("embed").and_then(|embed| self.local.media(embed));
            let mut record = json!({
                "$type": "app.bsky.embed.record#viewRecord",
                "uri": post.uri,
                "cid": post.cid,
                "author": self.local.author(),
                "value": post.record,
                "indexedAt": post.indexed_at,
            });
            if let (Some(media), Some(record)) = (media, record.as_object_mut()) {
                record.insert("embeds".to_owned(), json!([media]));
            }
            return Some(record);
        }
        let gone = || {
            json!({
                "$type": "app.bsky.embed.record#viewNotFound",
                "uri": uri,
                "notFound": true,
            })
        };
        let found = self.quotes.0.get(uri)?;
        Some(found.clone().unwrap_or_else(gone))
    }
}

impl Local {
    /// Images and links of a post. Films are shown by the service alone, which makes them.
    fn media(&self, embed: &Value) -> Option<Value> {
        match kind(embed)? {
            "images" => {
                let images = self.images_of(embed.get("images")?, "thumb")?;
                Some(json!({ "$type": "app.bsky.embed.images#view", "images": images }))
            }
            "gallery" => {
                let mut items = self.images_of(embed.get("items")?, "thumbnail")?;
                for item in items.iter_mut().filter_map(Value::as_object_mut) {
                    item.insert("$type".to_owned(), "app.bsky.embed.gallery#viewImage".into());
                }
                Some(json!({ "$type": "app.bsky.embed.gallery#view", "items": items }))
            }
            "external" => {
                let mut external = embed.get("external")?.as_object()?.clone();
                let thumb = external.remove("thumb");
                let thumb = thumb.and_then(|thumb| self.image("feed_thumbnail", &thumb));
                if let Some(thumb) = thumb {
                    external.insert("thumb".to_owned(), thumb.into());
                }
                Some(json!({ "$type": "app.bsky.embed.external#view", "external": external }))
            }
            _ => None,
        }
    }

    fn images_of(&self, images: &Value, small: &str) -> Option<Vec<Value>> {
        let view = |image: &Value| {
            let blob = image.get("image")?;
            let mut view = Map::new();
            view.insert(small.to_owned(), self.image("feed_thumbnail", blob)?.into());
            view.insert("fullsize".to_owned(), self.image("feed_fullsize", blob)?.into());
            view.insert(
                "alt".to_owned(),
                image.get("alt").cloned().unwrap_or_else(|| "".into()),
            );
            if let Some(ratio) = image.get("aspectRatio") {
                view.insert("aspectRatio".to_owned(), ratio.clone());
            }
            Some(Value::Object(view))
        };
        images.as_array()?.iter().map(view).collect()
    }
}
