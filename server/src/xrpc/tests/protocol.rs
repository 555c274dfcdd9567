//! What holds for every method: verbs, paths, parameters, credentials, bodies, in this order; and the pages beside them.

use axum::body::{Body, Bytes};
use axum::http::Method;
use futures_util::stream;
use serde_json::json;

use crate::testkit::{Options, Server, bearer};

const REFRESH: &str = "/xrpc/com.atproto.server.refreshSession";
const CREATE: &str = "com.atproto.repo.createRecord";

#[tokio::test]
async fn the_wrong_verb_is_a_bad_request_that_names_both() {
    let server = Server::start().await;
    let answer = server.get("/xrpc/com.atproto.server.createSession").await;
    assert_eq!(answer.error(), (400, "InvalidRequest".into()));
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("GET") && message.contains("POST"), "{message}");
    let answer = server.call("com.atproto.server.describeServer", &json!({})).await;
    assert_eq!(answer.error(), (400, "InvalidRequest".into()));
    for method in [Method::PUT, Method::DELETE, Method::PATCH] {
        let answer = server
            .request(
                method,
                "/xrpc/com.atproto.server.describeServer",
                &[],
                Body::empty(),
            )
            .await;
        assert_eq!(answer.error(), (400, "InvalidRequest".into()));
    }
    let subscribe = "/xrpc/com.atproto.sync.subscribeRepos";
    for method in [Method::GET, Method::POST, Method::HEAD, Method::PUT] {
        let answer = server
            .request(method.clone(), subscribe, &[], Body::empty())
            .await;
        assert_eq!(answer.status, 400, "{method}");
    }
}

#[tokio::test]
async fn head_is_answered_like_get_without_a_body() {
    let server = Server::start().await;
    let answer = server
        .request(
            Method::HEAD,
            "/xrpc/com.atproto.server.describeServer",
            &[],
            Body::empty(),
        )
        .await;
    assert_eq!(answer.status, 200);
    let answer = server.request(Method::HEAD, REFRESH, &[], Body::empty()).await;
    assert_eq!(answer.status, 400);
}

#[tokio::test]
async fn unknown_methods_and_malformed_paths_are_bad_requests() {
    let server = Server::start().await;
    for (path, part) in [
        ("/xrpc/com.example.unknown.method", "No service configured for"),
        ("/xrpc/", "invalid xrpc path"),
        ("/xrpc/nope", "invalid xrpc path"),
        ("/xrpc/a..b.c", "invalid xrpc path"),
        (
            "/xrpc/com.atproto.server.describeServer/more",
            "invalid xrpc path",
        ),
        ("/xrpc/%ff%fe", "invalid xrpc path"),
        ("/xrpc/com.example.%2e%2e", "invalid xrpc path"),
    ] {
        let answer = server.get(path).await;
        assert_eq!(answer.error(), (400, "InvalidRequest".into()), "{path}");
        assert!(
            answer.json()["message"].as_str().unwrap().contains(part),
            "{path}"
        );
    }
    assert_eq!(server.get("/nothing").await.status, 404);
}

#[tokio::test]
async fn parameters_win_over_credentials_and_those_over_bodies() {
    let server = Server::start().await;
    let bad_parameter = server.query("com.atproto.sync.getRepo", "did=nope").await;
    assert_eq!(bad_parameter.error(), (400, "InvalidRequest".into()));
    let headers = [
        ("authorization", "Bearer rubbish"),
        ("content-type", "application/json"),
    ];
    let answer = server
        .request(
            Method::GET,
            "/xrpc/com.atproto.sync.getRepo?did=nope",
            &headers,
            Body::empty(),
        )
        .await;
    assert_eq!(answer.error(), (400, "InvalidRequest".into()));
    let answer = server
        .request(
            Method::POST,
            &format!("/xrpc/{CREATE}"),
            &headers[1..],
            "not json",
        )
        .await;
    assert_eq!(answer.error(), (401, "AuthMissing".into()));
}

#[tokio::test]
async fn authorization_headers_are_told_apart() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    for (value, status, name) in [
        ("Bearer", 400, "InvalidToken"),
        ("Bearer a b", 400, "InvalidToken"),
        ("Digest abc", 400, "InvalidToken"),
        ("Basic YWRtaW46eA==", 400, "InvalidToken"),
        ("DPoP abc", 400, "InvalidToken"),
        ("Bearer abc", 400, "InvalidToken"),
        (&bearer(&alice.refresh), 400, "InvalidToken"),
    ] {
        let answer = server
            .request(
                Method::GET,
                "/xrpc/com.atproto.server.getSession",
                &[("authorization", value)],
                Body::empty(),
            )
            .await;
        assert_eq!(answer.error(), (status, name.to_owned()), "{value}");
    }
    let answer = server.get("/xrpc/com.atproto.server.getSession").await;
    assert_eq!(answer.error(), (401, "AuthMissing".into()));
    server.clock.advance(std::time::Duration::from_secs(121 * 60));
    let answer = server
        .query_as(&alice.access, "com.atproto.server.getSession", "")
        .await;
    assert_eq!(answer.error(), (400, "ExpiredToken".into()));
}

#[tokio::test]
async fn bodies_are_bounded_typed_and_only_where_they_belong() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let authorization = bearer(&alice.access);
    let path = format!("/xrpc/{CREATE}");
    let send = async |kind: Option<&str>, more: Option<(&str, &str)>, body: Body| {
        let mut headers = vec![("authorization", authorization.as_str())];
        headers.extend(kind.map(|kind| ("content-type", kind)));
        headers.extend(more);
        server.request(Method::POST, &path, &headers, body).await.error()
    };
    let invalid = || (400, "InvalidRequest".to_owned());
    let json_type = Some("application/json");
    assert_eq!(send(None, None, Body::empty()).await, invalid());
    assert_eq!(send(json_type, None, Body::empty()).await, invalid());
    assert_eq!(
        send(None, Some(("content-length", "2")), "{}".into()).await,
        invalid()
    );
    assert_eq!(send(Some("text/plain"), None, "{}".into()).await, invalid());
    assert_eq!(
        send(json_type, None, "{\"a\":".into()).await,
        (400, "SyntaxError".into())
    );
    assert_eq!(
        send(json_type, None, "nope".into()).await,
        (400, "SyntaxError".into())
    );
    assert_eq!(
        send(json_type, None, "{\"repo\":\"\\ud800\"}".into()).await.0,
        400
    );
    assert_eq!(send(json_type, None, "[]".into()).await, invalid());
    assert_eq!(send(json_type, None, "\"text\"".into()).await, invalid());
    assert_eq!(send(json_type, None, "{}".into()).await, invalid());
    assert_eq!(send(json_type, None, "[".repeat(100_000).into()).await.0, 400);
    assert_eq!(
        send(json_type, Some(("content-encoding", "br")), "{}".into()).await,
        (415, "UnsupportedMediaTypeError".into())
    );
    let large = "x".repeat(1_000_001);
    assert_eq!(
        send(json_type, None, large.clone().into()).await,
        (413, "PayloadTooLargeError".into())
    );
    let pieces = stream::iter((0..11).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 100_000]))));
    assert_eq!(
        send(json_type, None, Body::from_stream(pieces)).await,
        (413, "PayloadTooLargeError".into())
    );
    let answer = server
        .call(
            "com.atproto.server.createSession",
            &json!({"identifier": "x".repeat(160_000)}),
        )
        .await;
    assert_eq!(answer.error(), (413, "PayloadTooLargeError".into()));
    // Case and parameters of the content type do not matter, and unknown fields are ignored.
    let headers = [
        ("authorization", authorization.as_str()),
        ("content-type", "Application/JSON; charset=utf-8"),
    ];
    let input = json!({"repo": alice.did, "collection": "a.b.c", "record": {}, "else": [1.5]});
    server
        .request(Method::POST, &path, &headers, input.to_string())
        .await
        .ok();
}

#[tokio::test]
async fn methods_without_input_take_no_body_but_an_empty_one() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let authorization = bearer(&alice.refresh);
    let headers = [
        ("authorization", authorization.as_str()),
        ("content-type", "application/json"),
    ];
    let refused = server.request(Method::POST, REFRESH, &headers, "{}").await;
    assert_eq!(refused.error(), (400, "InvalidRequest".into()));
    let empty_chunks = Body::from_stream(stream::empty::<Result<Bytes, std::io::Error>>());
    server
        .request(Method::POST, REFRESH, &headers, empty_chunks)
        .await
        .ok();
    server
        .request(
            Method::POST,
            REFRESH,
            &[headers[0], headers[1], ("content-length", "0")],
            Body::empty(),
        )
        .await
        .ok();
    let answer = server
        .request(
            Method::GET,
            "/xrpc/com.atproto.server.describeServer",
            &[],
            "surprise",
        )
        .await;
    assert_eq!(answer.error(), (400, "InvalidRequest".into()));
}

#[tokio::test]
async fn answers_that_depend_on_the_caller_are_private() {
    let server = Server::start().await;
    let answer = server
        .get("/xrpc/com.atproto.sync.getRepo?did=did:plc:none")
        .await;
    assert_eq!(answer.header("cache-control"), Some("private"));
    let vary: Vec<_> = answer
        .headers
        .get_all("vary")
        .iter()
        .map(|v| v.to_str().unwrap())
        .collect();
    assert!(
        vary.iter().any(|value| value.contains("Authorization")),
        "{vary:?}"
    );
    let answer = server.get("/xrpc/com.atproto.server.describeServer").await;
    assert_eq!(answer.header("cache-control"), None);
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
}

#[tokio::test]
async fn a_preflight_is_answered_for_every_path() {
    let server = Server::start().await;
    let headers = [
        ("origin", "https://app.example"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,content-type"),
    ];
    let path = format!("/xrpc/{CREATE}");
    let answer = server
        .request(Method::OPTIONS, &path, &headers, Body::empty())
        .await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    assert_eq!(answer.header("access-control-max-age"), Some("86400"));
    assert_eq!(
        answer.header("access-control-allow-headers"),
        Some("authorization,content-type")
    );
}

#[tokio::test]
async fn every_answer_carries_a_request_id_and_a_harmless_one_is_kept() {
    let server = Server::start().await;
    let answer = server
        .request(Method::GET, "/", &[("x-request-id", "abc-1")], Body::empty())
        .await;
    assert_eq!(answer.header("x-request-id"), Some("abc-1"));
    let answer = server
        .request(Method::GET, "/", &[("x-request-id", "a b")], Body::empty())
        .await;
    assert_eq!(answer.header("x-request-id").unwrap().len(), 16);
}

#[tokio::test]
async fn the_pages_say_who_and_how_the_server_is() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    assert!(
        server
            .get("/")
            .await
            .header("content-type")
            .unwrap()
            .starts_with("text/plain")
    );
    assert!(server.get("/robots.txt").await.body.starts_with(b"#"));
    assert!(server.get("/xrpc/_health").await.ok()["version"].is_string());
    let answer = server
        .request(Method::POST, "/xrpc/_health", &[], Body::empty())
        .await;
    assert_eq!(answer.error(), (400, "InvalidRequest".into()));
    let document = server.get("/.well-known/did.json").await.ok();
    assert_eq!(document["id"], "did:web:localhost");
    assert_eq!(document["service"][0]["type"], "AtprotoPersonalDataServer");
    assert_eq!(server.get("/_health/live").await.status, 200);
    assert_eq!(server.get("/_health/ready").await.ok()["status"], "ready");
    let well_known = async |host: &str| {
        let headers = [("host", host)];
        let path = "/.well-known/atproto-did";
        let answer = server.request(Method::GET, path, &headers, Body::empty()).await;
        (
            answer.status.as_u16(),
            String::from_utf8(answer.body.to_vec()).unwrap(),
        )
    };
    for host in ["alice.test", "alice.test:2583", "ALICE.test"] {
        assert_eq!(well_known(host).await, (200, alice.did.to_string()), "{host}");
    }
    for host in [
        "bob.test",
        "alice.example.com",
        "localhost",
        "",
        "[::1]:80",
        "\"",
        "test",
    ] {
        assert_eq!(well_known(host).await.0, 404, "{host}");
    }
    server
        .sql("UPDATE actor SET deactivatedAt = 'x' WHERE did = ?1", &alice.did)
        .await;
    assert_eq!(well_known("alice.test").await.0, 404);
}

#[tokio::test]
async fn a_service_did_with_a_port_is_published_and_a_foreign_one_is_not() {
    for (did, status) in [("did:web:localhost%3A2583", 200), ("did:web:other.example", 404)] {
        let options = Options {
            vars: vec![("PDS_SERVICE_DID", did.to_owned())],
            ..Options::default()
        };
        let server = Server::with(options).await;
        let answer = server.get("/.well-known/did.json").await;
        assert_eq!(answer.status, status, "{did}");
        if status == 200 {
            assert_eq!(answer.json()["id"], did);
        }
    }
}
