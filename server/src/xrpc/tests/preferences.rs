//! What apps keep for an account, and who sees what of it.

use axum::Router;
use axum::http::Method;
use axum::routing::get;
use engine::clock::SystemEntropy;
use engine::repo::Did;
use engine::repo::keys::SigningKey;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::auth::service_jwt::{ServiceJwt, issue};
use crate::auth::tokens::Scope;
use crate::testkit::{Answer, Options, Server, User, bearer};

const GET: &str = "app.bsky.actor.getPreferences";
const PUT: &str = "app.bsky.actor.putPreferences";
const APP_VIEW: &str = "did:web:api.example.com";

async fn server_with(more: &[(&'static str, &str)]) -> (Server, User) {
    let mut vars = vec![
        ("PDS_BSKY_APP_VIEW_URL", "https://api.example.com".to_owned()),
        ("PDS_BSKY_APP_VIEW_DID", APP_VIEW.to_owned()),
    ];
    vars.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
    let server = Server::with(Options {
        vars,
        ..Options::default()
    })
    .await;
    let alice = server.sign_up("alice").await;
    (server, alice)
}

fn age(year: &str) -> Value {
    json!({"$type": "app.bsky.actor.defs#personalDetailsPref", "birthDate": format!("{year}-01-01T00:00:00.000Z")})
}

fn adult() -> Value {
    json!({"$type": "app.bsky.actor.defs#declaredAgePref", "isOverAge13": true, "isOverAge16": true, "isOverAge18": true})
}

fn adult_content(enabled: bool) -> Value {
    json!({"$type": "app.bsky.actor.defs#adultContentPref", "enabled": enabled})
}

fn tags(tags: &[&str]) -> Value {
    json!({"$type": "app.bsky.actor.defs#interestsPref", "tags": tags})
}

impl Server {
    async fn preferences(&self, token: &str) -> Value {
        self.query_as(token, GET, "").await.ok()["preferences"].clone()
    }

    async fn put(&self, token: &str, preferences: Value) -> Answer {
        self.call_as(token, PUT, &json!({ "preferences": preferences }))
            .await
    }

    fn app_password(&self, user: &User) -> String {
        let now = self.app.now_seconds();
        self.app
            .tokens
            .issue_access(&user.did, Scope::AppPassPrivileged, now)
            .unwrap()
    }
}

#[tokio::test]
async fn preferences_are_kept_in_order_and_replaced_as_a_whole_also_over_a_restart() {
    let (server, alice) = server_with(&[]).await;
    let bob = server.sign_up("bob").await;
    assert_eq!(server.preferences(&alice.access).await, json!([]));
    let first = json!([tags(&["a"]), adult_content(true), tags(&["b", "ü"])]);
    let answer = server.put(&alice.access, first.clone()).await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 0));
    assert_eq!(server.preferences(&alice.access).await, first);
    assert_eq!(server.preferences(&bob.access).await, json!([]), "another's");
    let second = json!([
        tags(&["a"]),
        adult_content(false),
        tags(&["b", "ü"]),
        tags(&["c"])
    ]);
    assert_eq!(server.put(&alice.access, second.clone()).await.status, 200);
    assert_eq!(server.preferences(&alice.access).await, second);
    let server = server.restart().await;
    assert_eq!(server.preferences(&alice.access).await, second);
    assert_eq!(server.put(&alice.access, json!([])).await.status, 200);
    assert_eq!(server.preferences(&alice.access).await, json!([]));
    assert_eq!(server.count("SELECT count(*) FROM account_pref").await, 0);
}

#[tokio::test]
async fn what_is_no_preference_of_these_apps_is_refused_and_changes_nothing() {
    let (server, alice) = server_with(&[]).await;
    let kept = json!([adult_content(true)]);
    server.put(&alice.access, kept.clone()).await;
    for odd in [
        json!([adult_content(false), {"$type": "com.example.pref"}]),
        json!([{"$type": "app.bskyx.pref"}]),
        json!([{"enabled": true}]),
        json!([{"$type": 7}]),
        json!(["app.bsky.actor.defs#adultContentPref"]),
        json!({}),
    ] {
        let answer = server.put(&alice.access, odd.clone()).await;
        assert_eq!(answer.error(), (400, "InvalidRequest".into()), "{odd}");
    }
    assert_eq!(server.query(GET, "").await.error().0, 401);
    assert_eq!(server.preferences(&alice.access).await, kept);
    let taken = "UPDATE actor SET takedownRef = 'x' WHERE did = ?1";
    server.sql(taken, &alice.did).await;
    let answer = server.put(&alice.access, json!([])).await;
    assert_eq!(answer.error(), (401, "AccountTakedown".into()));
}

#[tokio::test]
async fn the_date_of_birth_is_for_the_own_password_and_everybody_sees_what_follows_from_it() {
    let (server, alice) = server_with(&[]).await;
    let app = server.app_password(&alice);
    let all = json!([age("1990"), adult_content(true)]);
    assert_eq!(
        server.put(&app, all.clone()).await.error(),
        (400, "InvalidRequest".into())
    );
    assert_eq!(server.put(&alice.access, all).await.status, 200);
    assert_eq!(
        server.preferences(&alice.access).await,
        json!([age("1990"), adult_content(true), adult()])
    );
    assert_eq!(
        server.preferences(&app).await,
        json!([adult_content(true), adult()])
    );
    // An app that writes back what it sees changes neither the date nor what is said of it.
    let back = json!([{"$type": "app.bsky.actor.defs#declaredAgePref", "isOverAge13": false}, tags(&["x"])]);
    assert_eq!(server.put(&app, back).await.status, 200);
    assert_eq!(
        server.preferences(&alice.access).await,
        json!([age("1990"), tags(&["x"]), adult()])
    );
    let child = json!([age("2100")]);
    assert_eq!(server.put(&alice.access, child).await.status, 200);
    let seen = server.preferences(&app).await;
    assert_eq!(
        seen[0]["isOverAge13"], false,
        "nobody is of age before they are born: {seen}"
    );
}

#[tokio::test]
async fn another_app_views_preferences_are_not_here_and_without_one_there_are_none() {
    let (server, alice) = server_with(&[]).await;
    let authorization = bearer(&alice.access);
    let named = |header| {
        [
            ("authorization", authorization.as_str()),
            ("atproto-proxy", header),
            ("content-type", "application/json"),
        ]
    };
    let own = format!("{APP_VIEW}#bsky_appview");
    let path = format!("/xrpc/{GET}");
    let answer = server.request(Method::GET, &path, &named(&own), "").await;
    assert_eq!(answer.ok()["preferences"], json!([]));
    let other = "did:web:127.0.0.1%3A1#bsky_appview";
    let answer = server.request(Method::GET, &path, &named(other), "").await;
    assert_ne!(answer.status, 200, "it is asked of the other");
    let input = json!({"preferences": []}).to_string();
    let put = format!("/xrpc/{PUT}");
    let answer = server.request(Method::POST, &put, &named(other), input).await;
    assert_eq!(answer.error(), (400, "InvalidRequest".into()));

    let plain = Server::start().await;
    let bob = plain.sign_up("bob").await;
    let answer = plain.query_as(&bob.access, GET, "").await;
    assert_eq!(answer.error(), (400, "InvalidRequest".into()));
}

#[tokio::test]
async fn the_moderators_see_them_with_their_own_token() {
    let key = SigningKey::generate(&SystemEntropy).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let did: Did = format!("did:web:localhost%3A{port}").parse().unwrap();
    let document = json!({"id": did, "verificationMethod": [{
        "id": format!("{did}#atproto"), "type": "Multikey", "controller": did,
        "publicKeyMultibase": key.public_key().to_multibase(),
    }]});
    let router = Router::new().route(
        "/.well-known/did.json",
        get(move || async move { axum::Json(document) }),
    );
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let url = format!("http://localhost:{port}");
    let more = [
        ("PDS_MOD_SERVICE_URL", url.as_str()),
        ("PDS_MOD_SERVICE_DID", did.as_str()),
    ];
    let (server, alice) = server_with(&more).await;
    server
        .put(&alice.access, json!([age("1990"), adult_content(true)]))
        .await;
    let now = server.app.now_seconds();
    let token = |lxm| {
        let aud = server.app.config.service_did.to_string();
        let claims = ServiceJwt {
            iss: &did,
            aud: &aud,
            lxm: Some(lxm),
            issued_at: now,
            expires_at: now + 60,
        };
        issue(&key, &claims, &SystemEntropy).unwrap()
    };
    let query = format!("did={}", alice.did);
    let seen = server.query_as(&token(GET), GET, &query).await.ok();
    assert_eq!(
        seen["preferences"],
        json!([age("1990"), adult_content(true), adult()])
    );
    assert_eq!(
        server
            .query_as(&token("com.example.other"), GET, &query)
            .await
            .error(),
        (401, "BadJwtLexiconMethod".into())
    );
    assert_eq!(server.query_as(&token(GET), GET, "").await.error().0, 400);
    // A token of the account for this server is not the moderators'.
    let own = server
        .query_as(
            &alice.access,
            "com.atproto.server.getServiceAuth",
            &format!("aud={}&lxm={GET}", server.app.config.service_did),
        )
        .await
        .ok();
    let answer = server.query_as(own["token"].as_str().unwrap(), GET, &query).await;
    assert_eq!(answer.error(), (401, "UntrustedIss".into()));
}
