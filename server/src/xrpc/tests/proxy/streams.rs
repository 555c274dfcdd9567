//! Bodies on their way through, and what bounds them; connections that fail.

use std::sync::Arc;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{Method, StatusCode};
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::service::{Service, gzip};
use super::{TIMELINE, server_at, with_app_view};
use crate::testkit::{PATIENCE, bearer};

#[tokio::test]
async fn bodies_pass_in_pieces_in_both_directions() {
    let (mut service, server, alice) = with_app_view().await;
    let (send, pieces) = mpsc::unbounded_channel::<Bytes>();
    let body = stream::unfold(pieces, |mut pieces| async {
        let piece = pieces.recv().await?;
        Some((Ok::<_, std::io::Error>(piece), pieces))
    });
    let request = axum::http::Request::post("/xrpc/app.example.slow")
        .header("authorization", bearer(&alice.access))
        .header("content-type", "application/octet-stream")
        .body(Body::from_stream(body))
        .unwrap();
    let asking = server.raw(request);
    let driving = async {
        let mut sent = 0;
        for _ in 0..3 {
            send.send(Bytes::from(vec![7; 100_000])).unwrap();
            sent += 100_000;
            // Each piece arrives there before the next one is sent.
            while service.arrived.recv().await.unwrap() < sent {}
        }
        drop(send);
        service.release.send(()).unwrap();
    };
    let (response, ()) = tokio::time::timeout(PATIENCE, async { tokio::join!(asking, driving) })
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(service.last()["headers"]["transfer-encoding"], "chunked");
    let mut answer = response.into_body().into_data_stream();
    let reading = async {
        for _ in 0..3 {
            // And each piece of the answer before the next one leaves.
            assert_eq!(answer.next().await.unwrap().unwrap(), "piece");
            service.release.send(()).unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.unwrap();
}

#[tokio::test]
async fn compressed_answers_pass_untouched() {
    let (_service, server, alice) = with_app_view().await;
    let given = [("accept-encoding", "gzip")];
    let answer = server
        .ask(Method::GET, "/xrpc/app.example.squeezed", &alice.access, &given)
        .await;
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    assert_eq!(
        answer.body,
        gzip(json!({"a": "b".repeat(5000)}).to_string().as_bytes())
    );
}

#[tokio::test]
async fn answers_that_are_too_large_or_stall_break_off_and_places_are_bounded() {
    let service = Service::start().await;
    let more = [
        ("PDS_PROXY_MAX_RESPONSE_SIZE", "10000"),
        ("PDS_PROXY_BODY_TIMEOUT", "2000"),
        ("PDS_PROXY_MAX_PER_ACCOUNT", "1"),
    ];
    let (server, alice) = server_at(&service.url(), &more).await;
    let answer = server
        .ask(Method::GET, "/xrpc/app.example.declared", &alice.access, &[])
        .await;
    assert_eq!(answer.error(), (502, "UpstreamFailure".into()));
    let open = async |method: &str| {
        let request = axum::http::Request::get(format!("/xrpc/app.example.{method}"))
            .header("authorization", bearer(&alice.access))
            .body(Body::empty())
            .unwrap();
        server.raw(request).await
    };
    let endless = open("endless").await;
    assert_eq!(endless.status(), 200);
    // The only place of this account is taken as long as the answer is not read to its end.
    let refused = server.ask(Method::GET, TIMELINE, &alice.access, &[]).await;
    assert_eq!(refused.error(), (503, "NotEnoughResources".into()));
    assert_eq!(refused.header("retry-after"), Some("1"));
    let bob = server.sign_up("bob").await;
    assert_eq!(
        server.ask(Method::GET, TIMELINE, &bob.access, &[]).await.status,
        200
    );
    assert!(to_bytes(endless.into_body(), 1 << 20).await.is_err());
    service.release.send(()).unwrap();
    let slow = open("slow").await;
    assert_eq!(slow.status(), 200);
    let read = tokio::time::timeout(PATIENCE, to_bytes(slow.into_body(), 1 << 20))
        .await
        .unwrap();
    assert!(read.is_err(), "one piece, and then nothing");
    assert_eq!(
        server.ask(Method::GET, TIMELINE, &alice.access, &[]).await.status,
        200
    );
}

/// Reads the head of a request.
async fn read_head(stream: &mut TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
}

/// A service that does what `act` says with each connection, and counts them.
async fn raw_service<F: Future<Output = ()> + Send + 'static>(
    act: impl Fn(TcpStream) -> F + Send + 'static,
) -> (String, Arc<Mutex<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::<Mutex<usize>>::default();
    let counted = count.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            *counted.lock() += 1;
            act(stream).await;
        }
    });
    (url, count)
}

#[tokio::test]
async fn only_reads_are_tried_again_and_only_if_the_connection_fails() {
    let (url, count) = raw_service(|mut stream| async move {
        read_head(&mut stream).await;
    })
    .await;
    let (server, alice) = server_at(&url, &[("PDS_PROXY_MAX_RETRIES", "2")]).await;
    for (method, tries) in [(Method::GET, 3), (Method::HEAD, 3), (Method::POST, 1)] {
        *count.lock() = 0;
        let any = "/xrpc/app.example.any";
        let answer = server.ask(method.clone(), any, &alice.access, &[]).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
        assert_eq!(*count.lock(), tries, "{method}");
    }
    let (url, count) = raw_service(|mut stream| async move {
        let answer = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        read_head(&mut stream).await;
        stream.write_all(answer).await.unwrap();
        // Until the other side has closed.
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.ok();
    })
    .await;
    let (server, alice) = server_at(&url, &[("PDS_PROXY_MAX_RETRIES", "2")]).await;
    let answer = server.ask(Method::GET, TIMELINE, &alice.access, &[]).await;
    assert_eq!(answer.error(), (503, "NotEnoughResources".into()));
    assert_eq!(*count.lock(), 1);
}

#[tokio::test]
async fn a_service_that_does_not_begin_its_answer_is_given_up_and_redirects_are_not_followed() {
    let held = Arc::new(Mutex::new(Vec::new()));
    let keep = held.clone();
    let (url, _) = raw_service(move |stream| {
        keep.lock().push(stream);
        std::future::ready(())
    })
    .await;
    let (server, alice) = server_at(&url, &[("PDS_PROXY_HEADERS_TIMEOUT", "200")]).await;
    let answer = server.ask(Method::GET, TIMELINE, &alice.access, &[]).await;
    assert_eq!(answer.error(), (502, "UpstreamFailure".into()));
    assert_eq!(answer.json()["message"], "Upstream service unreachable");

    let (service, ..) = with_app_view().await;
    let location = format!("{}/elsewhere", service.url());
    let (url, _) = raw_service(move |mut stream| {
        let head = format!(
            "HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
        async move {
            read_head(&mut stream).await;
            stream.write_all(head.as_bytes()).await.unwrap();
        }
    })
    .await;
    let (server, alice) = server_at(&url, &[]).await;
    let answer = server.ask(Method::GET, TIMELINE, &alice.access, &[]).await;
    assert_eq!((answer.status.as_u16(), answer.header("location")), (302, None));
    assert_eq!(service.seen(), 0);
}
