//! Methods that are sent on with a part of this server's own: feeds, push messages, records of repos that are not here.

use axum::http::Method;
use serde_json::json;

use super::app_view::{AppView, Reply};
use super::{AUD, server_at};
use crate::auth::tokens::Scope;
use crate::testkit::Server;

const GENERATOR: &str = "app.bsky.feed.getFeedGenerator";
const FEED: &str = "app.bsky.feed.getFeed";
const PUSH: &str = "app.bsky.notification.registerPush";

#[tokio::test]
async fn a_feed_is_asked_for_with_a_token_for_its_generator() {
    let view = AppView::start().await;
    let (server, alice) = server_at(&view.url(), &[]).await;
    let ask = async || {
        let query = "feed=at://did:plc:aaaaaaaaaaaaaaaaaaaaaaaa/app.bsky.feed.generator/a&limit=3";
        server.query_as(&alice.access, FEED, query).await
    };
    view.says(FEED, Reply::new("", &json!({"feed": []})));
    assert_eq!(ask().await.error(), (400, "UnknownFeed".into()));
    for did in [json!("nobody"), json!("did:web:feeds.example.com#x"), json!(7)] {
        view.says(GENERATOR, Reply::new("", &json!({"view": {"did": did}})));
        assert_eq!(ask().await.error(), (400, "UnknownFeed".into()), "{did}");
    }
    assert_eq!(view.count("getFeed?"), 0);
    view.says(
        GENERATOR,
        Reply::new("", &json!({"view": {"did": "did:web:feeds.example.com"}})),
    );
    assert_eq!(ask().await.ok(), json!({"feed": []}));
    let asked = view.last();
    assert!(
        asked
            .target
            .starts_with("/xrpc/app.bsky.feed.getFeed?feed=at://did:plc:a"),
        "{}",
        asked.target
    );
    assert!(asked.target.ends_with("&limit=3"), "{}", asked.target);
    let claims = asked.claims();
    assert_eq!(
        (&claims["aud"], &claims["lxm"], &claims["iss"]),
        (
            &json!("did:web:feeds.example.com"),
            &json!("app.bsky.feed.getFeedSkeleton"),
            &json!(alice.did)
        )
    );
    view.says(
        GENERATOR,
        Reply {
            status: 500,
            ..Reply::new("", &json!({}))
        },
    );
    assert_eq!(ask().await.error(), (502, "UpstreamFailure".into()));
    let bad = server.query_as(&alice.access, FEED, "feed=nothing").await;
    assert_eq!(bad.error(), (400, "InvalidRequest".into()));
    assert_eq!(
        server.query(FEED, "feed=at://a.test").await.error(),
        (401, "AuthMissing".into())
    );
}

#[tokio::test]
async fn push_messages_are_registered_with_the_service_that_is_named() {
    let view = AppView::start().await;
    let (server, alice) = server_at(&view.url(), &[]).await;
    let input = |did: &str| json!({"serviceDid": did, "token": "t", "platform": "ios", "appId": "x", "ageRestricted": true});
    let elsewhere = format!("did:web:localhost%3A{}", view.port);
    for nsid in [PUSH, "app.bsky.notification.unregisterPush"] {
        view.says(nsid, Reply::new("", &json!({})));
        for did in [AUD, &elsewhere] {
            let queued = server.of_scope(&alice, Scope::SignupQueued);
            for token in [&alice.access, &queued] {
                let answer = server.call_as(token, nsid, &input(did)).await;
                assert_eq!(
                    (answer.status.as_u16(), answer.body.len()),
                    (200, 0),
                    "{nsid} {did}"
                );
            }
            let asked = view.last();
            assert_eq!(asked.target, format!("/xrpc/{nsid}"));
            assert_eq!(
                serde_json::from_slice::<serde_json::Value>(&asked.body).unwrap(),
                input(did)
            );
            assert_eq!(
                (&asked.claims()["aud"], &asked.claims()["lxm"]),
                (&json!(did), &json!(nsid))
            );
        }
    }
    let before = view.count(PUSH);
    for did in [
        "did:web:api.example.com#bsky_notif",
        "nobody",
        "",
        alice.did.as_str(),
    ] {
        let answer = server.call_as(&alice.access, PUSH, &input(did)).await;
        assert_eq!(answer.error(), (400, "InvalidRequest".into()), "{did}");
    }
    let answer = server
        .call_as(&alice.access, PUSH, &json!({"serviceDid": AUD}))
        .await;
    assert_eq!(answer.error(), (400, "InvalidRequest".into()));
    let takendown = server.of_scope(&alice, Scope::Takendown);
    assert_eq!(
        server.call_as(&takendown, PUSH, &input(AUD)).await.error(),
        (400, "InvalidToken".into())
    );
    assert_eq!(view.count(PUSH), before);
    view.says(
        PUSH,
        Reply {
            status: 400,
            ..Reply::new("", &json!({"error": "BadToken", "message": "x"}))
        },
    );
    assert_eq!(
        server.call_as(&alice.access, PUSH, &input(AUD)).await.error(),
        (400, "BadToken".into())
    );
    // Without an AppView it is like any method that is not here.
    let plain = Server::start().await;
    let bob = plain.sign_up("bob").await;
    let answer = plain.call_as(&bob.access, PUSH, &input(AUD)).await;
    assert_eq!(
        answer.json()["message"],
        format!("No service configured for {PUSH}")
    );
    assert!(!crate::xrpc::is_write(&Method::POST, &format!("/xrpc/{PUSH}")));
}

#[tokio::test]
async fn records_of_repos_that_are_not_here_come_from_the_app_view_without_credentials() {
    const GET: &str = "com.atproto.repo.getRecord";
    let view = AppView::start().await;
    let (server, alice) = server_at(&view.url(), &[]).await;
    let query = "repo=bob.elsewhere.example&collection=com.example.note&rkey=a&x=1";
    let found = json!({"uri": "at://x", "value": {}});
    view.says(GET, Reply::new("", &found));
    for token in [None, Some(alice.access.as_str())] {
        let answer = match token {
            Some(token) => server.query_as(token, GET, query).await,
            None => server.query(GET, query).await,
        };
        assert_eq!(answer.ok(), found);
        let asked = view.last();
        assert_eq!(
            asked.target,
            format!("/xrpc/{GET}?repo=bob.elsewhere.example&collection=com.example.note&rkey=a")
        );
        assert!(!asked.headers.contains_key("authorization"));
    }
    // What is here is answered here, also that it is not.
    let here = format!("repo={}&collection=com.example.note&rkey=a", alice.did);
    assert_eq!(
        server.query(GET, &here).await.error(),
        (400, "RecordNotFound".into())
    );
    assert_eq!(view.count(GET), 2);
    server
        .sql("UPDATE actor SET deactivatedAt = 'x' WHERE did = ?1", &alice.did)
        .await;
    assert_eq!(server.query(GET, &here).await.ok(), found);
    view.says(
        GET,
        Reply {
            status: 400,
            ..Reply::new("", &json!({"error": "RecordNotFound", "message": "x"}))
        },
    );
    assert_eq!(
        server.query(GET, query).await.error(),
        (400, "RecordNotFound".into())
    );
    let plain = Server::start().await;
    assert_eq!(
        plain.query(GET, query).await.error(),
        (400, "RecordNotFound".into())
    );
}
