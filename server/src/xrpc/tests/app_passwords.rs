//! App passwords, and what the sessions that begin with them may do.

use axum::body::Body;
use axum::http::Method;
use serde_json::{Value, json};

use crate::testkit::{PASSWORD, Server, User, user};

const CREATE: &str = "com.atproto.server.createAppPassword";
const LIST: &str = "com.atproto.server.listAppPasswords";
const REVOKE: &str = "com.atproto.server.revokeAppPassword";
const LOGIN: &str = "com.atproto.server.createSession";
const REFRESH: &str = "com.atproto.server.refreshSession";

fn scope(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap();
    let payload = data_encoding::BASE64URL_NOPAD.decode(payload.as_bytes()).unwrap();
    serde_json::from_slice::<Value>(&payload).unwrap()["scope"].clone()
}

/// Makes an app password; its text.
async fn make(server: &Server, user: &User, name: &str, privileged: bool) -> String {
    let input = json!({"name": name, "privileged": privileged});
    let made = server.call_as(&user.access, CREATE, &input).await.ok();
    assert_eq!(made["name"], name);
    assert_eq!(made["privileged"], privileged);
    assert!(made["createdAt"].as_str().unwrap().ends_with('Z'));
    made["password"].as_str().unwrap().to_owned()
}

async fn log_in(server: &Server, identifier: &str, password: &str) -> crate::testkit::Answer {
    let input = json!({"identifier": identifier, "password": password});
    server.call(LOGIN, &input).await
}

#[tokio::test]
async fn an_app_password_is_made_listed_and_logs_in() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let bobby = server.sign_up("bobby").await;
    let (plain, privileged) = (
        make(&server, &alice, "phone", false).await,
        make(&server, &alice, "desk", true).await,
    );
    let form = plain.split('-').map(str::len).collect::<Vec<_>>();
    assert_eq!(form, [4, 4, 4, 4], "{plain}");
    for identifier in ["alice.test", "ALICE@example.com", alice.did.as_str()] {
        let session = user(&log_in(&server, identifier, &plain).await.ok());
        assert_eq!(scope(&session.access), "com.atproto.appPass");
    }
    let session = user(&log_in(&server, "alice.test", &privileged).await.ok());
    assert_eq!(scope(&session.access), "com.atproto.appPassPrivileged");
    let refreshed = user(&server.poke_as(&session.refresh, REFRESH).await.ok());
    assert_eq!(
        scope(&refreshed.access),
        "com.atproto.appPassPrivileged",
        "a refresh gives no more than the session had"
    );
    // It is the password of one account, as it is written.
    for (who, wrong) in [
        ("bobby.test", plain.clone()),
        ("nobody.test", plain.clone()),
        ("alice.test", plain.to_uppercase()),
        ("alice.test", "abcd-efgh-ijkl-mnop".to_owned()),
    ] {
        let answer = log_in(&server, who, &wrong).await;
        assert_eq!(
            answer.error(),
            (401, "AuthenticationRequired".into()),
            "{who} {wrong}"
        );
    }
    let listed = server.query_as(&session.access, LIST, "").await.ok();
    let names = |listed: &Value| {
        let names = listed["passwords"].as_array().unwrap().iter();
        names.map(|app| app["name"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&listed).len(), 2);
    for app in listed["passwords"].as_array().unwrap() {
        let fields: Vec<_> = app.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["name", "createdAt", "privileged"]);
        assert_eq!(app["privileged"], app["name"] == "desk");
    }
    let of_bobby = server.query_as(&bobby.access, LIST, "").await.ok();
    assert!(names(&of_bobby).is_empty());
    server.clock.advance(std::time::Duration::from_secs(5));
    make(&server, &alice, "newest", false).await;
    let listed = server.query_as(&alice.access, LIST, "").await.ok();
    assert_eq!(names(&listed)[0], "newest");
}

#[tokio::test]
async fn names_are_one_of_a_kind_and_bounded() {
    let server = Server::start().await;
    let (alice, bobby) = (server.sign_up("alice").await, server.sign_up("bobby").await);
    make(&server, &alice, "phone", false).await;
    make(&server, &bobby, "phone", false).await;
    make(&server, &alice, &"ü".repeat(256), false).await;
    for input in [
        json!({"name": "phone"}),
        json!({"name": "x".repeat(257)}),
        json!({}),
        json!({"name": 1}),
    ] {
        let answer = server.call_as(&alice.access, CREATE, &input).await;
        assert_eq!(answer.error(), (400, "InvalidRequest".into()), "{input}");
    }
    assert_eq!(server.count("SELECT count(*) FROM app_password").await, 3);
    server
        .sql(
            "WITH RECURSIVE n(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM n WHERE n < 248)
             INSERT INTO app_password (did, name, passwordScrypt, createdAt) SELECT ?1, n, n, 'x' FROM n",
            &alice.did,
        )
        .await;
    let answer = server
        .call_as(&alice.access, CREATE, &json!({"name": "more"}))
        .await;
    assert_eq!(answer.error(), (400, "InvalidRequest".into()), "250 are the most");
    make(&server, &bobby, "more", false).await;
}

#[tokio::test]
async fn statement_21_an_app_password_does_not_manage_the_account_but_app_passwords() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    for privileged in [false, true] {
        let name = format!("phone {privileged}");
        let password = make(&server, &alice, &name, privileged).await;
        let session = user(&log_in(&server, "alice.test", &password).await.ok());
        let refused = server
            .call_as(&session.access, CREATE, &json!({"name": "x"}))
            .await;
        assert_eq!(refused.error(), (400, "InvalidToken".into()));
        let answer = server
            .request(
                Method::POST,
                "/xrpc/com.atproto.repo.importRepo",
                &[
                    ("authorization", &crate::testkit::bearer(&session.access)),
                    ("content-type", "application/vnd.ipld.car"),
                ],
                Body::from("x"),
            )
            .await;
        assert_eq!(answer.error(), (400, "InvalidToken".into()));
        server.query_as(&session.access, LIST, "").await.ok();
        server.post(&session, "an app may write").await;
        let answer = server
            .call_as(&session.access, REVOKE, &json!({"name": name}))
            .await;
        assert_eq!(
            (answer.status.as_u16(), answer.body.len()),
            (200, 0),
            "it may end itself"
        );
    }
}

#[tokio::test]
async fn revoking_an_app_password_ends_its_sessions_and_no_others() {
    let server = Server::start().await;
    let (alice, bobby) = (server.sign_up("alice").await, server.sign_up("bobby").await);
    let (one, two) = (
        make(&server, &alice, "one", false).await,
        make(&server, &alice, "two", false).await,
    );
    let (first, second) = (
        user(&log_in(&server, "alice.test", &one).await.ok()),
        user(&log_in(&server, "alice.test", &two).await.ok()),
    );
    let of_bobby = make(&server, &bobby, "one", false).await;
    let revoked = server
        .call_as(&alice.access, REVOKE, &json!({"name": "one"}))
        .await;
    assert_eq!((revoked.status.as_u16(), revoked.body.len()), (200, 0));
    let again = server
        .call_as(&alice.access, REVOKE, &json!({"name": "one"}))
        .await;
    assert_eq!(again.status, 200, "again is no error");
    assert_eq!(log_in(&server, "alice.test", &one).await.error().0, 401);
    assert_eq!(
        server.poke_as(&first.refresh, REFRESH).await.error(),
        (400, "ExpiredToken".into())
    );
    server.query_as(&first.access, LIST, "").await.ok();
    server.poke_as(&second.refresh, REFRESH).await.ok();
    server.poke_as(&alice.refresh, REFRESH).await.ok();
    log_in(&server, "bobby.test", &of_bobby).await.ok();
    let session = log_in(&server, "alice.test", PASSWORD).await.ok();
    assert_eq!(
        scope(session["accessJwt"].as_str().unwrap()),
        "com.atproto.access"
    );
}

#[tokio::test]
async fn a_session_whose_app_password_is_gone_is_not_refreshed() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let password = make(&server, &alice, "phone", false).await;
    let session = user(&log_in(&server, "alice.test", &password).await.ok());
    // As if the rows came from somewhere that has lost the password.
    server
        .sql("DELETE FROM app_password WHERE did = ?1", &alice.did)
        .await;
    assert_eq!(
        server.poke_as(&session.refresh, REFRESH).await.error(),
        (400, "ExpiredToken".into())
    );
}

#[tokio::test]
async fn a_taken_down_account_makes_no_app_passwords_and_leaves_with_one_only_if_asked() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let password = make(&server, &alice, "phone", true).await;
    server
        .sql("UPDATE actor SET takedownRef = 'x' WHERE did = ?1", &alice.did)
        .await;
    let answer = server.call_as(&alice.access, CREATE, &json!({"name": "x"})).await;
    assert_eq!(answer.error(), (401, "AccountTakedown".into()));
    assert_eq!(
        log_in(&server, "alice.test", &password).await.error(),
        (401, "AccountTakedown".into())
    );
    let input = json!({"identifier": "alice.test", "password": password, "allowTakendown": true});
    let session = user(&server.call(LOGIN, &input).await.ok());
    assert_eq!(scope(&session.access), "com.atproto.takendown");
    let answer = server.query_as(&session.access, LIST, "").await;
    assert_eq!(answer.error(), (400, "InvalidToken".into()));
}
