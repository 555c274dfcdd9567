//! Read after write: an AppView that is behind, and an account that has written since.

use axum::body::Body;
use axum::http::Method;
use serde_json::{Value, json};

use super::app_view::{AppView, Reply};
use super::server_at;
use crate::testkit::{Answer, Server, User, bearer};

const TIMELINE: &str = "app.bsky.feed.getTimeline";
const AUTHOR: &str = "app.bsky.feed.getAuthorFeed";
const LIKES: &str = "app.bsky.feed.getActorLikes";
const THREAD: &str = "app.bsky.feed.getPostThread";
const POSTS: &str = "app.bsky.feed.getPosts";
const PROFILE: &str = "app.bsky.actor.getProfile";
const PROFILES: &str = "app.bsky.actor.getProfiles";
const PATTERN: (&str, &str) = (
    "PDS_BSKY_APP_VIEW_CDN_URL_PATTERN",
    "https://cdn.example.com/%s/%s/%s",
);
const OTHER: &str = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa";

/// An account that has a profile, and an AppView that knows it.
struct Scene {
    view: AppView,
    server: Server,
    alice: User,
    /// Up to here the AppView knows the account.
    rev: String,
}

impl Scene {
    async fn new(more: &[(&'static str, &str)]) -> Scene {
        let view = AppView::start().await;
        let (server, alice) = server_at(&view.url(), more).await;
        let mut scene = Scene {
            view,
            server,
            alice,
            rev: String::new(),
        };
        scene.rev = scene.put_profile("Alice").await;
        scene
    }

    /// Renames the account; the commit's rev.
    async fn put_profile(&self, name: &str) -> String {
        let record = json!({"$type": "app.bsky.actor.profile", "displayName": name, "description": "of me"});
        self.put("app.bsky.actor.profile", Some("self"), record).await["commit"]["rev"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    async fn put(&self, collection: &str, rkey: Option<&str>, record: Value) -> Value {
        let mut input = json!({"repo": self.alice.did, "collection": collection, "record": record});
        let method = match rkey {
            Some(rkey) => {
                input["rkey"] = rkey.into();
                "com.atproto.repo.putRecord"
            }
            None => "com.atproto.repo.createRecord",
        };
        self.server.call_as(&self.alice.access, method, &input).await.ok()
    }

    /// A new post; its URI.
    async fn post(&self, more: Value) -> String {
        let mut record =
            json!({"$type": "app.bsky.feed.post", "text": "new", "createdAt": "2026-01-01T00:00:00Z"});
        for (field, value) in more.as_object().unwrap() {
            record[field] = value.clone();
        }
        let receipt = self.put("app.bsky.feed.post", None, record).await;
        receipt["uri"].as_str().unwrap().to_owned()
    }

    /// A new reply to `parent` in the thread of `root`; its URI.
    async fn reply(&self, root: &str, parent: &str) -> String {
        let cid = "bafyreie5cvv4h45feadgeuwhbcutmh6t2ceseocckahdoe6uat64zmz454";
        let to = |uri: &str| json!({"uri": uri, "cid": cid});
        self.post(json!({"reply": {"root": to(root), "parent": to(parent)}}))
            .await
    }

    async fn ask(&self, nsid: &str, query: &str) -> Answer {
        self.server.query_as(&self.alice.access, nsid, query).await
    }

    /// The answer to `reply` is that very reply.
    async fn untouched(&self, nsid: &str, query: &str, reply: Reply) {
        let (body, rev) = (reply.body.clone(), reply.rev.clone());
        self.view.says(nsid, reply);
        let answer = self.ask(nsid, query).await;
        let text = || String::from_utf8_lossy(&answer.body[..answer.body.len().min(300)]).into_owned();
        assert_eq!(answer.status, 200, "{}", text());
        assert!(answer.body == body, "{}", text());
        assert_eq!(answer.header("atproto-upstream-lag"), None);
        assert_eq!(answer.header("atproto-repo-rev"), rev.as_deref());
    }

    /// The answer to `body` with something added.
    async fn completed(&self, nsid: &str, query: &str, body: &Value) -> Value {
        self.view.says(nsid, Reply::new(&self.rev, body));
        let answer = self.ask(nsid, query).await;
        let json = answer.ok();
        let lag = answer.header("atproto-upstream-lag");
        let lag = lag.unwrap_or_else(|| panic!("it is as it was: {json}"));
        assert!(lag.parse::<u64>().unwrap() < 600_000, "{lag} ms");
        assert_eq!(answer.header("atproto-repo-rev"), Some(self.rev.as_str()));
        assert_eq!(answer.header("atproto-content-labelers"), Some("did:plc:x"));
        assert_eq!(
            answer.header("content-type"),
            Some("application/json; charset=utf-8")
        );
        json
    }
}

/// An item of a feed.
fn item(did: &str, key: &str, indexed_at: &str) -> Value {
    json!({"post": {
        "uri": format!("at://{did}/app.bsky.feed.post/{key}"),
        "cid": "bafyreie5cvv4h45feadgeuwhbcutmh6t2ceseocckahdoe6uat64zmz454",
        "author": {"did": did, "handle": "somebody.test", "displayName": "Before", "avatar": "https://a.example"},
        "record": {"$type": "app.bsky.feed.post", "text": "old"},
        "likeCount": 7,
        "indexedAt": indexed_at,
    }})
}

fn uris(feed: &Value) -> Vec<&str> {
    let items = feed["feed"].as_array().unwrap();
    items
        .iter()
        .map(|item| item["post"]["uri"].as_str().unwrap())
        .collect()
}

const OLD: &str = "2024-01-02T00:00:00.000Z";
const OLDER: &str = "2024-01-01T00:00:00.000Z";
const LATER: &str = "2999-01-01T00:00:00.000Z";

#[tokio::test]
async fn a_new_post_is_in_the_timeline_at_once_where_it_belongs() {
    let scene = Scene::new(&[PATTERN]).await;
    let page =
        json!({"cursor": "c", "feed": [item(OTHER, "a", LATER), item(OTHER, "b", OLD)], "more": [1.5, null]});
    let [a, b] = ["a", "b"].map(|key| format!("at://{OTHER}/app.bsky.feed.post/{key}"));
    scene.untouched(TIMELINE, "", Reply::new(&scene.rev, &page)).await;
    let first = scene.post(json!({})).await;
    let second = scene.post(json!({"text": "newer"})).await;
    let answer = scene.completed(TIMELINE, "limit=2", &page).await;
    assert_eq!(uris(&answer), [&a, &second, &first, &b]);
    assert_eq!(
        (&answer["cursor"], &answer["more"]),
        (&json!("c"), &json!([1.5, null]))
    );
    let post = &answer["feed"][1]["post"];
    let author = json!({"did": scene.alice.did, "handle": "alice.test", "displayName": "Alice"});
    assert_eq!(
        (&post["author"], &post["record"]["text"]),
        (&author, &json!("newer"))
    );
    for count in ["likeCount", "replyCount", "repostCount", "quoteCount"] {
        assert_eq!(post[count], 0, "{count}");
    }
    assert_eq!(scene.view.last().headers["accept-encoding"], "identity");

    // What is there already comes once; what is older than the page is on another one.
    let known = json!({"feed": [item(OTHER, "a", LATER), item(scene.alice.did.as_str(), "x", OLD)]});
    let mut known = known;
    known["feed"][1]["post"]["uri"] = second.as_str().into();
    let answer = scene.completed(TIMELINE, "", &known).await;
    assert_eq!(uris(&answer), [&a, &first, &second]);
    let future = json!({"feed": [item(OTHER, "a", LATER)]});
    scene
        .untouched(TIMELINE, "", Reply::new(&scene.rev, &future))
        .await;
    // The page after has no place for what is newer than its first item.
    let old = json!({"feed": [item(OTHER, "a", OLD), item(OTHER, "b", OLDER)]});
    scene
        .untouched(TIMELINE, "cursor=c", Reply::new(&scene.rev, &old))
        .await;
    scene
        .untouched(TIMELINE, "cursor=c", Reply::new(&scene.rev, &json!({"feed": []})))
        .await;
    let answer = scene.completed(TIMELINE, "", &json!({"feed": []})).await;
    assert_eq!(uris(&answer), [&second, &first]);
    // The AppView catches up.
    let head = scene.put_profile("Alice too").await;
    scene.untouched(TIMELINE, "", Reply::new(&head, &old)).await;
}

#[tokio::test]
async fn at_most_ten_new_posts_are_added_the_oldest_and_none_that_is_hidden() {
    let scene = Scene::new(&[]).await;
    let mut posts = Vec::new();
    for n in 0..13 {
        posts.push(scene.post(json!({"text": n.to_string()})).await);
    }
    let subject = json!({"$type": "com.atproto.repo.strongRef", "uri": posts[0], "cid": "bafyreie5cvv4h45feadgeuwhbcutmh6t2ceseocckahdoe6uat64zmz454"});
    let takedown = json!({"subject": subject, "takedown": {"applied": true}});
    let basic = crate::testkit::basic();
    let headers = [
        ("authorization", basic.as_str()),
        ("content-type", "application/json"),
    ];
    let path = "/xrpc/com.atproto.admin.updateSubjectStatus";
    let done = scene
        .server
        .request(Method::POST, path, &headers, takedown.to_string())
        .await;
    assert_eq!(done.status, 200, "{}", String::from_utf8_lossy(&done.body));
    let answer = scene.completed(TIMELINE, "", &json!({"feed": []})).await;
    let expected: Vec<&str> = posts[1..11].iter().rev().map(String::as_str).collect();
    assert_eq!(uris(&answer), expected);
}

#[tokio::test]
async fn ones_own_feed_shows_new_posts_by_its_filter_and_the_changed_profile() {
    let scene = Scene::new(&[]).await;
    let did = scene.alice.did.as_str();
    let mut pinned = item(did, "pinned", OLDER);
    pinned["reason"] = json!({"$type": "app.bsky.feed.defs#reasonPin"});
    let page = json!({"feed": [pinned, item(did, "a", OLD), item(OTHER, "b", OLDER)]});
    let root = scene.post(json!({})).await;
    let own = scene.reply(&root, &root).await;
    let other = scene
        .reply(&format!("at://{OTHER}/app.bsky.feed.post/a"), &root)
        .await;
    let kept = page["feed"].as_array().unwrap().clone();
    for (query, new) in [
        ("actor=alice.test", vec![&other, &own, &root]),
        (
            "actor=ALICE.test&filter=posts_with_replies",
            vec![&other, &own, &root],
        ),
        ("actor=alice.test&filter=posts_no_replies", vec![&root]),
        (
            "actor=alice.test&filter=posts_and_author_threads",
            vec![&own, &root],
        ),
    ] {
        let answer = scene.completed(AUTHOR, query, &page).await;
        let mut expected = vec![kept[0]["post"]["uri"].as_str().unwrap()];
        expected.extend(new.into_iter().map(String::as_str));
        expected.extend(kept[1..].iter().map(|item| item["post"]["uri"].as_str().unwrap()));
        assert_eq!(uris(&answer), expected, "{query}");
    }
    let media = "actor=alice.test&filter=posts_with_media";
    scene
        .untouched(AUTHOR, media, Reply::new(&scene.rev, &page))
        .await;
    let strangers = json!({"feed": [item(OTHER, "b", OLD)]});
    scene
        .untouched(
            AUTHOR,
            &format!("actor={OTHER}"),
            Reply::new(&scene.rev, &strangers),
        )
        .await;
    let empty = format!("actor={did}");
    let answer = scene.completed(AUTHOR, &empty, &json!({"feed": []})).await;
    assert_eq!(answer["feed"].as_array().unwrap().len(), 3);

    scene.put_profile("Renamed").await;
    let answer = scene.completed(AUTHOR, media, &page).await;
    let authors: Vec<&Value> = (0..3).map(|at| &answer["feed"][at]["post"]["author"]).collect();
    assert_eq!(authors[1]["displayName"], "Renamed");
    assert_eq!(authors[1].get("avatar"), None, "it is removed");
    assert_eq!(authors[2], &kept[2]["post"]["author"]);
    let likes = json!({"feed": [item(did, "a", OLD), item(OTHER, "b", OLD)]});
    let answer = scene.completed(LIKES, "actor=alice.test", &likes).await;
    assert_eq!(answer["feed"][0]["post"]["author"]["displayName"], "Renamed");
    assert_eq!(answer["feed"][1], likes["feed"][1]);
    assert_eq!(answer["feed"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_changed_profile_is_seen_at_once_and_its_counts_stay() {
    let scene = Scene::new(&[PATTERN]).await;
    let did = scene.alice.did.as_str();
    let old = |did: &str| json!({"did": did, "handle": "alice.test", "displayName": "Before", "banner": "https://b.example", "followersCount": 5});
    scene
        .untouched(PROFILE, "actor=alice.test", Reply::new(&scene.rev, &old(did)))
        .await;
    scene.post(json!({})).await;
    scene
        .untouched(PROFILE, "actor=alice.test", Reply::new(&scene.rev, &old(did)))
        .await;
    let png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    let blob = scene.server.upload(&scene.alice, "image/png", png).await.ok()["blob"].clone();
    let record = json!({"$type": "app.bsky.actor.profile", "displayName": "After", "description": "words", "avatar": blob});
    scene.put("app.bsky.actor.profile", Some("self"), record).await;
    let cid = blob["ref"]["$link"].as_str().unwrap();
    let expected = json!({
        "did": did, "handle": "alice.test", "displayName": "After", "followersCount": 5, "description": "words",
        "avatar": format!("https://cdn.example.com/avatar/{did}/{cid}"),
    });
    let answer = scene.completed(PROFILE, "actor=alice.test", &old(did)).await;
    assert_eq!(answer, expected);
    let both = json!({"profiles": [old(OTHER), old(did)]});
    let answer = scene
        .completed(PROFILES, &format!("actors={OTHER}&actors={did}"), &both)
        .await;
    assert_eq!(
        (&answer["profiles"][0], &answer["profiles"][1]),
        (&old(OTHER), &expected)
    );
    scene
        .untouched(
            PROFILE,
            &format!("actor={OTHER}"),
            Reply::new(&scene.rev, &old(OTHER)),
        )
        .await;
}

#[tokio::test]
async fn new_posts_show_their_images_links_and_quotes() {
    let scene = Scene::new(&[]).await;
    let did = scene.alice.did.as_str();
    let png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    let blob = scene.server.upload(&scene.alice, "image/png", png).await.ok()["blob"].clone();
    let images = json!({"$type": "app.bsky.embed.images", "images": [{"image": blob, "alt": "a", "aspectRatio": {"width": 2, "height": 1}}]});
    let (a, gone) = (
        format!("at://{OTHER}/app.bsky.feed.post/a"),
        format!("at://{OTHER}/app.bsky.feed.post/gone"),
    );
    let cid = "bafyreie5cvv4h45feadgeuwhbcutmh6t2ceseocckahdoe6uat64zmz454";
    let quote = |uri: &str| json!({"$type": "app.bsky.embed.record", "record": {"uri": uri, "cid": cid}});
    let plain = scene.post(json!({"embed": images})).await;
    scene
        .post(json!({"embed": {"$type": "app.bsky.embed.external", "external":
        {"uri": "https://x.example", "title": "t", "description": "d", "thumb": blob}}}))
        .await;
    scene.post(json!({"embed": quote(&a)})).await;
    scene.post(json!({"embed": quote(&gone)})).await;
    scene.post(json!({"embed": quote(&plain)})).await;
    scene.post(json!({"embed": {"$type": "app.bsky.embed.recordWithMedia", "media": images, "record": quote(&a)}})).await;
    let mut quoted = item(OTHER, "a", OLD)["post"].clone();
    quoted["embed"] = json!({"$type": "app.bsky.embed.images#view", "images": []});
    scene
        .view
        .says(POSTS, Reply::new(&scene.rev, &json!({"posts": [quoted]})));
    let answer = scene.completed(TIMELINE, "", &json!({"feed": []})).await;
    let embeds: Vec<&Value> = (0..6)
        .rev()
        .map(|at| &answer["feed"][at]["post"]["embed"])
        .collect();
    let image = blob["ref"]["$link"].as_str().unwrap();
    let here = format!(
        "{}/xrpc/com.atproto.sync.getBlob?did={}&cid={image}",
        scene.server.app.config.public_url(),
        did.replace(':', "%3A")
    );
    let shown = json!({"$type": "app.bsky.embed.images#view", "images": [
        {"thumb": here, "fullsize": here, "alt": "a", "aspectRatio": {"width": 2, "height": 1}}]});
    assert_eq!(embeds[0], &shown);
    assert_eq!(
        embeds[1]["external"],
        json!({"uri": "https://x.example", "title": "t", "description": "d", "thumb": here})
    );
    let record = &embeds[2]["record"];
    assert_eq!(
        (&record["$type"], &record["uri"]),
        (&json!("app.bsky.embed.record#viewRecord"), &json!(a))
    );
    assert_eq!(
        (&record["value"]["text"], &record["embeds"]),
        (&json!("old"), &json!([quoted["embed"]]))
    );
    let missing = json!({"$type": "app.bsky.embed.record#viewNotFound", "uri": gone, "notFound": true});
    assert_eq!(embeds[3]["record"], missing);
    assert_eq!(
        (&embeds[4]["record"]["uri"], &embeds[4]["record"]["embeds"][0]),
        (&json!(plain), &shown)
    );
    assert_eq!(
        (&embeds[5]["media"], &embeds[5]["record"]["record"]),
        (&shown, record)
    );
    assert_eq!(scene.view.count(POSTS), 1, "all quotes are one question");
    let asked = scene.view.last();
    let claims = asked.claims();
    assert_eq!((&claims["lxm"], &claims["iss"]), (&json!(POSTS), &json!(did)));

    // What cannot be asked for is left out, and the posts come all the same.
    scene.view.says(
        POSTS,
        Reply {
            status: 500,
            ..Reply::new(&scene.rev, &json!({}))
        },
    );
    let answer = scene.completed(TIMELINE, "", &json!({"feed": []})).await;
    assert_eq!(answer["feed"][3]["post"].get("embed"), None);
    assert_eq!(answer["feed"][5]["post"]["embed"], shown);
}

fn thread(uri: &str, replies: Value) -> Value {
    let mut post = item(OTHER, "x", OLD)["post"].clone();
    post["uri"] = uri.into();
    json!({"$type": "app.bsky.feed.defs#threadViewPost", "post": post, "replies": replies})
}

#[tokio::test]
async fn new_replies_are_below_what_they_reply_to() {
    let scene = Scene::new(&[]).await;
    let [root, known] = ["root", "known"].map(|key| format!("at://{OTHER}/app.bsky.feed.post/{key}"));
    let page =
        json!({"thread": thread(&root, json!([thread(&known, json!([]))])), "threadgate": {"uri": "x"}});
    let query = format!("uri={root}");
    scene.post(json!({})).await;
    scene
        .untouched(THREAD, &query, Reply::new(&scene.rev, &page))
        .await;
    let to_root = scene.reply(&root, &root).await;
    let to_known = scene.reply(&root, &known).await;
    let to_own = scene.reply(&root, &to_root).await;
    scene
        .reply(&root, &format!("at://{OTHER}/app.bsky.feed.post/unseen"))
        .await;
    let answer = scene.completed(THREAD, &query, &page).await;
    let uri = |pointer: &str| {
        answer
            .pointer(pointer)
            .and_then(|thread| thread.pointer("/post/uri")?.as_str())
    };
    assert_eq!(uri("/thread/replies/0"), Some(to_root.as_str()));
    assert_eq!(uri("/thread/replies/0/replies/0"), Some(to_own.as_str()));
    assert_eq!(uri("/thread/replies/1"), Some(known.as_str()));
    assert_eq!(uri("/thread/replies/1/replies/0"), Some(to_known.as_str()));
    assert_eq!(answer["thread"]["replies"].as_array().unwrap().len(), 2);
    assert_eq!(answer["threadgate"], page["threadgate"]);
    // Only what is shown has replies.
    let bare = json!({"thread": thread(&root, json!(null))});
    scene
        .untouched(THREAD, &format!("{query}&depth=0"), Reply::new(&scene.rev, &bare))
        .await;
    let answer = scene.completed(THREAD, &format!("{query}&depth=1"), &page).await;
    assert_eq!(answer["thread"]["replies"].as_array().unwrap().len(), 2);
    assert_eq!(answer["thread"]["replies"][0].get("replies"), None);
    let blocked =
        json!({"thread": {"$type": "app.bsky.feed.defs#blockedPost", "uri": root, "blocked": true}});
    scene
        .untouched(THREAD, &query, Reply::new(&scene.rev, &blocked))
        .await;
}

#[tokio::test]
async fn a_post_that_the_app_view_does_not_know_has_a_thread_if_it_is_new() {
    let scene = Scene::new(&[]).await;
    let root = format!("at://{OTHER}/app.bsky.feed.post/root");
    let first = scene.reply(&root, &root).await;
    let second = scene.reply(&root, &first).await;
    let third = scene.reply(&root, &second).await;
    let unknown = Reply {
        status: 400,
        ..Reply::new(
            &scene.rev,
            &json!({"error": "NotFound", "message": "Post not found"}),
        )
    };
    scene.view.says(THREAD, unknown.clone());
    let by_handle = second.replace(scene.alice.did.as_str(), "alice.test");
    for asked in [&second, &by_handle] {
        let before = scene.view.count(THREAD);
        let answer = scene.ask(THREAD, &format!("uri={asked}&parentHeight=9")).await;
        let json = answer.ok();
        assert!(answer.header("atproto-upstream-lag").is_some());
        assert_eq!(json["thread"]["post"]["uri"], second.as_str());
        assert_eq!(json["thread"]["parent"]["post"]["uri"], first.as_str());
        assert_eq!(json["thread"]["replies"][0]["post"]["uri"], third.as_str());
        // What is above is asked for; that it is not known either takes nothing away.
        assert_eq!(json["thread"]["parent"].get("parent"), None);
        assert_eq!(scene.view.count(THREAD), before + 2);
        let above = scene.view.last().target;
        assert!(
            above.contains("parentHeight=7") && above.contains("depth=0") && above.contains("root"),
            "{above}"
        );
    }
    let alone = scene
        .ask(THREAD, &format!("uri={second}&parentHeight=1&depth=0"))
        .await
        .ok();
    assert_eq!(alone["thread"].get("replies"), None);
    // Posts of others, what is not new, and an AppView that says nothing of its rev.
    let strangers = scene.ask(THREAD, &format!("uri={root}")).await;
    assert_eq!(strangers.error(), (400, "NotFound".into()));
    let head = scene.put_profile("x").await;
    scene.view.says(
        THREAD,
        Reply {
            rev: Some(head),
            ..unknown.clone()
        },
    );
    assert_eq!(
        scene.ask(THREAD, &format!("uri={second}")).await.error(),
        (400, "NotFound".into())
    );
    scene.view.says(
        THREAD,
        Reply {
            rev: None,
            ..unknown.clone()
        },
    );
    assert_eq!(
        scene.ask(THREAD, &format!("uri={second}")).await.error(),
        (400, "NotFound".into())
    );
    let other = json!({"error": "Blocked", "message": "x"})
        .to_string()
        .into_bytes();
    scene.view.says(
        THREAD,
        Reply {
            body: other,
            ..unknown
        },
    );
    assert_eq!(
        scene.ask(THREAD, &format!("uri={second}")).await.error(),
        (400, "Blocked".into())
    );
}

#[tokio::test]
async fn statement_100_what_cannot_be_completed_passes_as_it_came() {
    let scene = Scene::new(&[]).await;
    scene.post(json!({})).await;
    let good = Reply::new(&scene.rev, &json!({"feed": []}));
    let raw = |body: &[u8]| Reply {
        body: body.to_vec(),
        ..good.clone()
    };
    for reply in [
        Reply {
            rev: None,
            ..good.clone()
        },
        Reply {
            rev: Some("no rev".to_owned()),
            ..good.clone()
        },
        // Before all that this server knows of the repo, as after a migration.
        Reply {
            rev: Some("2222222222222".to_owned()),
            ..good.clone()
        },
        Reply {
            kind: "text/plain",
            ..good.clone()
        },
        raw(b"{\"feed\": ["),
        raw(b"[]"),
        raw(b"{\"feed\": {}}"),
        raw(b""),
        raw(&[b"{\"feed\": []".as_slice(), &vec![b' '; 3 << 20], b"}"].concat()),
    ] {
        scene.untouched(TIMELINE, "", reply).await;
    }
    scene
        .untouched(THREAD, "uri=at://x.test/a.b.c/d", raw(b"{}"))
        .await;
    scene.view.says(TIMELINE, good);
    let authorization = bearer(&scene.alice.access);
    let headers = [("authorization", authorization.as_str())];
    let head = scene
        .server
        .request(
            Method::HEAD,
            &format!("/xrpc/{TIMELINE}"),
            &headers,
            Body::empty(),
        )
        .await;
    assert_eq!(
        (head.status.as_u16(), head.header("atproto-upstream-lag")),
        (200, None)
    );
    let posted = scene
        .server
        .call_as(&scene.alice.access, TIMELINE, &json!({}))
        .await;
    assert_eq!(posted.error(), (400, "InvalidRequest".into()));
    assert_eq!(
        scene.server.query(TIMELINE, "").await.error(),
        (401, "AuthMissing".into())
    );
}

#[tokio::test]
async fn a_packed_answer_is_unpacked_only_to_be_completed() {
    let scene = Scene::new(&[("PDS_PROXY_PREFER_COMPRESSED", "true")]).await;
    let authorization = bearer(&scene.alice.access);
    let ask = async |coding: &str| {
        let headers = [
            ("authorization", authorization.as_str()),
            ("accept-encoding", coding),
        ];
        let path = format!("/xrpc/{TIMELINE}");
        scene
            .server
            .request(Method::GET, &path, &headers, Body::empty())
            .await
    };
    let page = json!({"feed": [item(OTHER, "b", OLD)]});
    scene.view.says(TIMELINE, Reply::new(&scene.rev, &page));
    let packed = ask("gzip").await;
    assert_eq!(packed.header("content-encoding"), Some("gzip"));
    assert_eq!(packed.body, super::service::gzip(page.to_string().as_bytes()));
    let uri = scene.post(json!({})).await;
    let completed = ask("br;q=1.0, gzip;q=0.8").await;
    assert_eq!(scene.view.last().headers["accept-encoding"], "gzip");
    assert_eq!(completed.header("content-encoding"), None, "it is short");
    assert_eq!(uris(&completed.ok())[0], uri);
    let plain = ask("br").await;
    assert_eq!(scene.view.last().headers["accept-encoding"], "identity");
    assert_eq!(uris(&plain.ok())[0], uri);
}
