use axum::Router;
use axum::body::to_bytes;
use axum::http::{HeaderMap, Method, header};
use axum::routing::any;

use super::*;
use crate::testkit::Server;

const LIMIT: Duration = Duration::from_secs(20);

async fn open_gate() -> (Gate, Server) {
    let server = Server::start().await;
    let gate = Gate::default();
    gate.open(server.app.clone());
    (gate, server)
}

fn request(method: Method, path: &str, body: &str) -> Request {
    axum::http::Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONNECTION, "keep-alive, x-hop")
        .header("x-hop", "1")
        .header("x-end", "2")
        .body(Body::from(body.to_owned()))
        .unwrap()
}

fn write() -> Request {
    request(Method::POST, "/xrpc/com.atproto.server.createSession", "{}")
}

fn read() -> Request {
    request(Method::GET, "/xrpc/com.atproto.server.describeServer", "")
}

async fn text(response: Response<Body>) -> (StatusCode, String) {
    let status = response.status();
    let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

/// A server that says what it was asked.
async fn echo() -> (String, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(any(
        async |method: Method, uri: axum::http::Uri, headers: HeaderMap, body: String| {
            let has = |name: &str| headers.contains_key(name);
            (
                StatusCode::CREATED,
                [("x-from", "new")],
                format!(
                    "{method} {uri} {body} end={} hop={} forwarded={:?}",
                    has("x-end"),
                    has("x-hop"),
                    headers.get("x-forwarded-for")
                ),
            )
        },
    ));
    let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, task)
}

#[tokio::test]
async fn writes_wait_while_a_reign_is_handed_over_and_are_sent_on_to_the_new_writer() {
    let (gate, _server) = open_gate().await;
    assert!(gate.hold(LIMIT).await);
    assert_eq!(text(gate.answer(read()).await).await.0, StatusCode::OK);
    let waiting: Vec<_> = (0..10)
        .map(|_| {
            let gate = gate.clone();
            tokio::spawn(async move { text(gate.answer(write()).await).await })
        })
        .collect();
    let (url, task) = echo().await;
    let mut asked = write();
    asked
        .extensions_mut()
        .insert(crate::listen::Peer("192.0.2.7".parse().unwrap()));
    gate.pass_on(Successor::new(&url).unwrap());
    for waited in waiting {
        let (status, said) = tokio::time::timeout(LIMIT, waited).await.unwrap().unwrap();
        assert_eq!(status, StatusCode::CREATED);
        assert!(
            said.starts_with("POST /xrpc/com.atproto.server.createSession {} end=true hop=false"),
            "{said}"
        );
    }
    let response = gate.answer(asked).await;
    assert_eq!(response.headers()["x-from"], "new");
    assert!(text(response).await.1.contains("192.0.2.7"));
    // Reads go there, too: they must see what was written there. Health is one's own.
    assert!(text(gate.answer(read()).await).await.1.starts_with("GET "));
    let health = gate.answer(request(Method::GET, "/_health/live", "")).await;
    assert!(text(health).await.1.contains("alive"));
    task.abort();
    let _ = task.await;
    assert_eq!(
        text(gate.answer(write()).await).await.0,
        StatusCode::SERVICE_UNAVAILABLE
    );
}

#[tokio::test]
async fn a_hand_over_waits_for_the_writes_that_were_let_in() {
    let (gate, _server) = open_gate().await;
    let inner = gate.inner.clone();
    let writing = Writing::begin(&inner);
    assert!(!gate.hold(Duration::from_millis(20)).await);
    let holding = tokio::spawn({
        let gate = gate.clone();
        async move { gate.hold(LIMIT).await }
    });
    tokio::task::yield_now().await;
    drop(writing);
    assert!(tokio::time::timeout(LIMIT, holding).await.unwrap().unwrap());
    gate.lead();
    assert_ne!(
        text(gate.answer(write()).await).await.0,
        StatusCode::SERVICE_UNAVAILABLE
    );
}

#[tokio::test(start_paused = true)]
async fn who_waits_too_long_is_told_to_come_again() {
    let (gate, _server) = open_gate().await;
    gate.hold(LIMIT).await;
    let response = gate.answer(write()).await;
    assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    gate.shut();
    assert_eq!(
        text(gate.answer(read()).await).await.0,
        StatusCode::SERVICE_UNAVAILABLE
    );
}

#[tokio::test]
async fn a_follower_answers_reads_with_its_lag_and_points_writes_to_the_writer() {
    let (gate, _server) = open_gate().await;
    let following = Following::default();
    following.writer_at("https://writer.example");
    gate.follow(following);
    let response = gate.answer(read()).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(
        response.headers()["x-pds-lag-seconds"]
            .to_str()
            .unwrap()
            .parse::<f64>()
            .unwrap()
            >= 0.0
    );
    let (status, said) = text(gate.answer(write()).await).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        said.contains("NotTheWriter") && said.contains("https://writer.example"),
        "{said}"
    );
}

#[tokio::test]
async fn what_is_only_passed_to_another_service_is_no_write() {
    let (gate, _server) = open_gate().await;
    assert!(gate.hold(LIMIT).await);
    for path in [
        "/xrpc/app.example.doThing",
        "/xrpc/com.atproto.moderation.createReport",
    ] {
        let answering = text(gate.answer(request(Method::POST, path, "{}")).await);
        let (status, _) = tokio::time::timeout(LIMIT, answering).await.unwrap();
        assert!(status.is_client_error(), "answered at once: {path}");
    }
    for (path, write) in [
        ("/xrpc/com.atproto.repo.createRecord", true),
        ("/xrpc/com.atproto.repo.create%52ecord", true),
        ("/xrpc/com.atproto.repo.createrecord", false),
        ("/elsewhere", true),
    ] {
        assert_eq!(is_write(&request(Method::POST, path, "")), write, "{path}");
        assert!(!is_write(&request(Method::GET, path, "")));
    }
}
