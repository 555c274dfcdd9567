//! `com.atproto.server.*` and `com.atproto.identity.*`.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Method;
use serde_json::{Value, json};

use crate::testkit::{ADMIN_PASSWORD, Options, PASSWORD, Server, account, basic, user};

const CREATE: &str = "com.atproto.server.createAccount";
const LOGIN: &str = "com.atproto.server.createSession";
const REFRESH: &str = "com.atproto.server.refreshSession";
const TAKE_DOWN: &str = "UPDATE actor SET takedownRef = 'x' WHERE did = ?1";
const DEACTIVATE: &str = "UPDATE actor SET deactivatedAt = 'x' WHERE did = ?1";

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn claims(token: &str) -> (Value, Value) {
    let mut parts = token.split('.').map(|part| {
        let json = data_encoding::BASE64URL_NOPAD
            .decode(part.as_bytes())
            .unwrap_or_default();
        serde_json::from_slice(&json).unwrap_or_default()
    });
    (parts.next().unwrap(), parts.next().unwrap())
}

fn with(name: &str, field: &str, value: Value) -> Value {
    let mut input = account(name);
    input[field] = value;
    input
}

#[tokio::test]
async fn the_server_describes_itself() {
    let server = Server::start().await;
    let answer = server.get("/xrpc/com.atproto.server.describeServer").await.ok();
    assert_eq!(
        keys(&answer),
        [
            "availableUserDomains",
            "blobUploadLimit",
            "contact",
            "did",
            "inviteCodeRequired",
            "links"
        ]
    );
    assert_eq!(answer["availableUserDomains"], json!([".test"]));
    assert_eq!(answer["inviteCodeRequired"], false);
}

#[tokio::test]
async fn signing_up_gives_an_identity_a_repo_and_a_session() {
    let server = Server::start().await;
    let answer = server
        .call(CREATE, &with("Alice", "handle", json!("Alice.Test")))
        .await
        .ok();
    assert_eq!(
        keys(&answer),
        ["accessJwt", "did", "didDoc", "handle", "refreshJwt"]
    );
    assert_eq!(answer["handle"], "alice.test");
    assert_eq!(answer["didDoc"]["alsoKnownAs"], json!(["at://alice.test"]));
    let alice = user(&answer);
    let (header, payload) = claims(&alice.access);
    assert_eq!(
        (&header["typ"], &payload["scope"]),
        (&json!("at+jwt"), &json!("com.atproto.access"))
    );
    assert_eq!(
        payload["exp"].as_u64().unwrap() - payload["iat"].as_u64().unwrap(),
        7200
    );
    let repo = server.repo(&alice.did).await;
    assert!(repo.records.is_empty());
    let session = server
        .query_as(&alice.access, "com.atproto.server.getSession", "")
        .await
        .ok();
    assert_eq!(
        keys(&session),
        ["active", "did", "email", "emailConfirmed", "handle"]
    );
    assert_eq!(session["email"], "alice@example.com");
}

#[tokio::test]
async fn a_sign_up_says_what_it_does_not_like() {
    let server = Server::start().await;
    server.sign_up("alice").await;
    let cases = [
        (with("bob", "handle", json!("b")), "InvalidHandle"),
        (with("bob", "handle", json!("bo.test")), "InvalidHandle"),
        (
            with("bob", "handle", json!("a-name-that-is-too-long.test")),
            "InvalidHandle",
        ),
        (with("bob", "handle", json!("b.ob.test")), "InvalidHandle"),
        (with("bob", "handle", json!("bob.onion")), "InvalidHandle"),
        (with("bob", "handle", json!("admin.test")), "HandleNotAvailable"),
        (with("bob", "handle", json!("ALICE.test")), "HandleNotAvailable"),
        (
            with("bob", "handle", json!("bob.example.com")),
            "UnsupportedDomain",
        ),
        (with("bob", "email", json!("Alice@Example.com")), "InvalidRequest"),
        (with("bob", "email", json!("nope")), "InvalidRequest"),
        (with("bob", "email", Value::Null), "InvalidRequest"),
        (with("bob", "password", json!("x".repeat(257))), "InvalidRequest"),
        (
            with("bob", "recoveryKey", json!("did:key:nope")),
            "InvalidRequest",
        ),
        (with("bob", "plcOp", json!({})), "InvalidRequest"),
        (json!({"email": "bob@example.com"}), "InvalidRequest"),
        (with("bob", "handle", json!(5)), "InvalidRequest"),
    ];
    for (input, name) in cases {
        let answer = server.call(CREATE, &input).await;
        assert_eq!(answer.error(), (400, name.to_owned()), "{input}");
    }
    let answer = server.call_as("token", CREATE, &account("bob")).await;
    assert_eq!(answer.error(), (401, "BadJwt".into()));
    let answer = server
        .call(
            CREATE,
            &with("bob", "did", json!("did:plc:ewvi7nxzyoun6zhxrhs64oiz")),
        )
        .await;
    assert_eq!(answer.error(), (401, "AuthenticationRequired".into()));
    assert_eq!(server.count("SELECT count(*) FROM actor").await, 1);
    assert_eq!(server.count("SELECT count(*) FROM signing_key").await, 1);
}

#[tokio::test]
async fn an_account_without_a_password_has_no_login() {
    let server = Server::start().await;
    let answer = server
        .call(
            CREATE,
            &json!({"handle": "marvin.test", "email": "r@example.com"}),
        )
        .await;
    let robot = user(&answer.ok());
    let session = server
        .query_as(&robot.access, "com.atproto.server.getSession", "")
        .await
        .ok();
    assert_eq!(keys(&session), ["active", "did", "emailConfirmed", "handle"]);
    let answer = server
        .call(LOGIN, &json!({"identifier": "marvin.test", "password": ""}))
        .await;
    assert_eq!(answer.error(), (401, "AuthenticationRequired".into()));
}

#[tokio::test]
async fn a_login_takes_handle_did_or_email_in_any_case_and_tells_nothing_else() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    for identifier in [
        "alice.test",
        "Alice.TEST",
        alice.did.as_str(),
        "ALICE@example.com",
    ] {
        let input = json!({"identifier": identifier, "password": PASSWORD});
        let session = server.call(LOGIN, &input).await.ok();
        assert_eq!(
            keys(&session),
            [
                "accessJwt",
                "active",
                "did",
                "email",
                "emailConfirmed",
                "handle",
                "refreshJwt"
            ]
        );
        assert_eq!(session["did"], alice.did.as_str());
    }
    let mut answers = Vec::new();
    for (identifier, password) in [
        ("alice.test", "wrong"),
        ("nobody.test", PASSWORD),
        ("not an identifier", PASSWORD),
        ("", PASSWORD),
        ("x@y@z", PASSWORD),
        ("alice.test", &"x".repeat(513)),
    ] {
        let started = Instant::now();
        let input = json!({"identifier": identifier, "password": password});
        let answer = server.call(LOGIN, &input).await;
        assert!(started.elapsed() >= Duration::from_millis(350), "{identifier}");
        assert_eq!(
            answer.error(),
            (401, "AuthenticationRequired".into()),
            "{identifier}"
        );
        answers.push(answer.body);
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "who asks learns which part was wrong");
}

#[tokio::test]
async fn sessions_with_did_documents_where_the_operator_wants_them() {
    let options = Options {
        vars: vec![("PDS_ENABLE_DID_DOC_WITH_SESSION", "true".to_owned())],
        ..Options::default()
    };
    let server = Server::with(options).await;
    let alice = server.sign_up("alice").await;
    let session = server.poke_as(&alice.refresh, REFRESH).await.ok();
    assert_eq!(session["didDoc"]["id"], alice.did.as_str());
}

#[tokio::test]
async fn deactivated_accounts_log_in_and_taken_down_ones_only_to_leave() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let mut input = json!({"identifier": "alice.test", "password": PASSWORD});
    server.sql(DEACTIVATE, &alice.did).await;
    let session = server.call(LOGIN, &input).await.ok();
    assert_eq!(
        (&session["active"], &session["status"]),
        (&json!(false), &json!("deactivated"))
    );
    server.sql(TAKE_DOWN, &alice.did).await;
    assert_eq!(
        server.call(LOGIN, &input).await.error(),
        (401, "AccountTakedown".into())
    );
    assert_eq!(
        server.poke_as(&alice.refresh, REFRESH).await.error(),
        (401, "AccountTakedown".into())
    );
    let answer = server
        .query_as(&alice.access, "com.atproto.server.getSession", "")
        .await;
    assert_eq!(answer.status, 400);
    input["allowTakendown"] = json!(true);
    let session = server.call(LOGIN, &input).await.ok();
    assert_eq!(session["status"], "takendown", "takedown wins over deactivation");
    let leaving = user(&session);
    assert_eq!(claims(&leaving.access).1["scope"], "com.atproto.takendown");
    let query = format!("did={}", alice.did);
    let answer = server
        .query_as(&leaving.access, "com.atproto.sync.getRepo", &query)
        .await;
    assert_eq!(answer.status, 200);
    let answer = server
        .query_as(&leaving.access, "com.atproto.sync.getLatestCommit", &query)
        .await;
    assert_eq!(answer.error(), (400, "InvalidToken".into()));
    server
        .sql("UPDATE actor SET takedownRef = NULL WHERE did = ?1", &alice.did)
        .await;
    let answer = server.poke_as(&leaving.refresh, REFRESH).await;
    assert_eq!(
        answer.error(),
        (400, "ExpiredToken".into()),
        "that refresh token was never stored"
    );
}

#[tokio::test]
async fn a_refresh_token_replayed_within_its_grace_gives_the_same_successor() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let first = user(&server.poke_as(&alice.refresh, REFRESH).await.ok());
    server.clock.advance(Duration::from_secs(7000));
    let second = user(&server.poke_as(&alice.refresh, REFRESH).await.ok());
    assert_eq!(claims(&first.refresh).1["jti"], claims(&second.refresh).1["jti"]);
    assert_ne!(claims(&first.refresh).1["jti"], claims(&alice.refresh).1["jti"]);
    // The first use began the grace; the second does not extend it.
    server.clock.advance(Duration::from_secs(300));
    let answer = server.poke_as(&alice.refresh, REFRESH).await;
    assert_eq!(answer.error(), (400, "ExpiredToken".into()));
    server.poke_as(&first.refresh, REFRESH).await.ok();
    server.clock.advance(Duration::from_secs(91 * 24 * 3600));
    let answer = server.poke_as(&second.refresh, REFRESH).await;
    assert_eq!(answer.error(), (400, "ExpiredToken".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_refreshes_with_one_token_agree_on_its_successor() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let refreshes = (0..8).map(|_| server.poke_as(&alice.refresh, REFRESH));
    let answers = futures_util::future::join_all(refreshes).await;
    let mut ids: Vec<_> = answers
        .iter()
        .map(|answer| claims(&user(&answer.ok()).refresh).1["jti"].to_string())
        .collect();
    ids.dedup();
    assert_eq!(ids.len(), 1);
    assert_eq!(server.count("SELECT count(*) FROM refresh_token").await, 2);
}

#[tokio::test]
async fn logging_out_needs_the_refresh_token_which_may_have_expired() {
    const LOGOUT: &str = "com.atproto.server.deleteSession";
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let answer = server.poke_as(&alice.access, LOGOUT).await;
    assert_eq!(answer.error(), (400, "InvalidToken".into()));
    let answer = server
        .request(Method::POST, &format!("/xrpc/{LOGOUT}"), &[], Body::empty())
        .await;
    assert_eq!(answer.error(), (401, "AuthMissing".into()));
    let input = json!({"identifier": "alice.test", "password": PASSWORD});
    let second = user(&server.call(LOGIN, &input).await.ok());
    let answer = server.poke_as(&alice.refresh, LOGOUT).await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 0));
    assert_eq!(answer.header("content-type"), None);
    assert_eq!(
        server.poke_as(&alice.refresh, LOGOUT).await.status,
        200,
        "again is no error"
    );
    assert_eq!(
        server.poke_as(&alice.refresh, REFRESH).await.error(),
        (400, "ExpiredToken".into())
    );
    server.clock.advance(Duration::from_secs(91 * 24 * 3600));
    assert_eq!(server.poke_as(&second.refresh, LOGOUT).await.status, 200);
    assert_eq!(server.count("SELECT count(*) FROM refresh_token").await, 0);
}

#[tokio::test]
async fn invite_codes_come_from_the_administrator_and_are_used_up() {
    const INVITE: &str = "/xrpc/com.atproto.server.createInviteCode";
    let options = Options {
        vars: vec![("PDS_INVITE_REQUIRED", "true".to_owned())],
        ..Options::default()
    };
    let server = Server::with(options).await;
    let basic = basic();
    let ask = async |authorization: &str, input: Value| {
        let headers = [
            ("authorization", authorization),
            ("content-type", "application/json"),
        ];
        server
            .request(Method::POST, INVITE, &headers, input.to_string())
            .await
    };
    for wrong in ["Basic YWRtaW46eA==", "Bearer abc"] {
        assert_eq!(ask(wrong, json!({"useCount": 1})).await.status, 401, "{wrong}");
    }
    assert_eq!(
        server
            .call("com.atproto.server.createInviteCode", &json!({}))
            .await
            .status,
        401
    );
    for input in [
        json!({}),
        json!({"useCount": -1}),
        json!({"useCount": "1"}),
        json!({"useCount": 1, "forAccount": "x"}),
    ] {
        assert_eq!(
            ask(&basic, input.clone()).await.error(),
            (400, "InvalidRequest".into()),
            "{input}"
        );
    }
    let code = ask(&basic, json!({"useCount": 2})).await.ok()["code"].clone();
    assert!(code.as_str().unwrap().starts_with("localhost-"), "{code}");
    for wrong in [Value::Null, json!("localhost-aaaaa-bbbbb")] {
        let answer = server.call(CREATE, &with("alice", "inviteCode", wrong)).await;
        assert_eq!(answer.error(), (400, "InvalidInviteCode".into()));
    }
    server
        .call(CREATE, &with("alice", "inviteCode", code.clone()))
        .await
        .ok();
    server
        .call(CREATE, &with("bob", "inviteCode", code.clone()))
        .await
        .ok();
    let answer = server.call(CREATE, &with("carol", "inviteCode", code)).await;
    assert_eq!(answer.error(), (400, "InvalidInviteCode".into()));
    assert!(!String::from_utf8_lossy(&answer.body).contains(ADMIN_PASSWORD));
}

#[tokio::test]
async fn handles_resolve_to_active_accounts() {
    const RESOLVE: &str = "com.atproto.identity.resolveHandle";
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    assert_eq!(
        server.query(RESOLVE, "handle=Alice.Test").await.ok(),
        json!({"did": alice.did})
    );
    for query in ["", "handle=", "handle=nope", "handle=a&handle=b"] {
        assert_eq!(
            server.query(RESOLVE, query).await.error(),
            (400, "InvalidRequest".into()),
            "{query}"
        );
    }
    assert_eq!(
        server.query(RESOLVE, "handle=bob.test").await.error(),
        (400, "HandleNotFound".into())
    );
    server.sql(DEACTIVATE, &alice.did).await;
    assert_eq!(
        server.query(RESOLVE, "handle=alice.test").await.error(),
        (400, "HandleNotFound".into())
    );
}

#[tokio::test]
async fn a_forgotten_password_is_reset_with_a_mailed_code_that_works_once() {
    const ASK: &str = "com.atproto.server.requestPasswordReset";
    const RESET: &str = "com.atproto.server.resetPassword";
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let mailed = async || {
        let answer = server.call(ASK, &json!({"email": "ALICE@example.com"})).await;
        assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 0));
        let mail = server.app.mailer.kept().unwrap().swap_remove(0);
        assert_eq!(mail.to, "alice@example.com");
        let code = mail.text.split("The code is ").nth(1).unwrap();
        code.split(' ').next().unwrap().to_owned()
    };
    let answer = server.call(ASK, &json!({"email": "nobody@example.com"})).await;
    assert_eq!(answer.error(), (400, "InvalidRequest".into()));
    let (old, code) = (mailed().await, mailed().await);
    let reset = async |token: &str, password: &str| {
        server
            .call(RESET, &json!({"token": token, "password": password}))
            .await
    };
    assert_eq!(
        reset(&old, "new").await.error(),
        (400, "InvalidToken".into()),
        "replaced"
    );
    assert_eq!(
        reset("AAAAA-BBBBB", "new").await.error(),
        (400, "InvalidToken".into())
    );
    assert_eq!(
        reset(&code, &"x".repeat(257)).await.error(),
        (400, "InvalidRequest".into())
    );
    let answer = reset(&code.to_lowercase(), "new").await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 0));
    assert_eq!(reset(&code, "newer").await.error(), (400, "InvalidToken".into()));
    assert_eq!(
        server.poke_as(&alice.refresh, REFRESH).await.error(),
        (400, "ExpiredToken".into())
    );
    let mut input = json!({"identifier": "alice.test", "password": PASSWORD});
    assert_eq!(server.call(LOGIN, &input).await.status, 401);
    input["password"] = json!("new");
    server.call(LOGIN, &input).await.ok();
    let late = mailed().await;
    server.clock.advance(Duration::from_secs(16 * 60));
    assert_eq!(reset(&late, "newest").await.error(), (400, "ExpiredToken".into()));
}
