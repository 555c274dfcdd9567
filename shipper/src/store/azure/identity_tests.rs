//! Managed identity against a fake of the platform's endpoint. The client reads the endpoint from the environment, so
//! what is tested runs in a child process: this test program itself, told to run one ignored test.

use std::process::Stdio;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::timeout;

use super::*;

const LIMIT: Duration = Duration::from_secs(60);
const CHILD: &str = "store::azure::identity_tests::child_asks_a_store_with_managed_identity";

/// Answers every request with `answer` and tells the first request's head.
async fn fake_endpoint(answer: String) -> (String, tokio::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/msi/token", listener.local_addr().unwrap());
    let (heads, seen) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match connection.read_u8().await {
                    Ok(byte) if head.len() < 10_000 => head.push(byte),
                    _ => break,
                }
            }
            drop(heads.try_send(String::from_utf8_lossy(&head).into_owned()));
            drop(connection.write_all(answer.as_bytes()).await);
        }
    });
    (url, seen)
}

fn http(status: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

/// Runs the child against `endpoint` and gives what it printed.
async fn run_child(endpoint: &str) -> String {
    let child = Command::new(std::env::current_exe().unwrap())
        .args([CHILD, "--exact", "--ignored", "--nocapture"])
        .env("IDENTITY_ENDPOINT", endpoint)
        .env("IDENTITY_HEADER", "header-secret")
        .env("NO_PROXY", "127.0.0.1")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(LIMIT, child)
        .await
        .expect("the child ends in time")
        .expect("the child runs");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{printed}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    printed
}

#[tokio::test]
#[ignore = "run as a child process by the tests beside it"]
async fn child_asks_a_store_with_managed_identity() {
    let auth = AzureAuth::ManagedIdentity {
        client_id: Some("the-client-id".to_owned()),
    };
    // Nothing listens there: the token is asked for, then the store turns out to be unreachable.
    let store = AzureStore::new(&AzureConfig::new("https://127.0.0.1:1", "pds", auth)).unwrap();
    let error = store.size(&"a".parse().unwrap()).await.unwrap_err();
    println!("outcome: {error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_asked_of_the_platform_for_the_chosen_identity() {
    let body = r#"{"access_token":"token-secret","expires_on":"4102444800","resource":"https://storage.azure.com","token_type":"Bearer"}"#;
    let (endpoint, mut seen) = fake_endpoint(http("200 OK", body)).await;
    let printed = run_child(&endpoint).await;
    let head = timeout(LIMIT, seen.recv())
        .await
        .unwrap()
        .expect("a request for a token")
        .to_ascii_lowercase();
    assert!(head.starts_with("get /msi/token?"), "{head}");
    assert!(
        head.contains("client_id=the-client-id") && head.contains("storage.azure.com"),
        "{head}"
    );
    assert!(head.contains("x-identity-header: header-secret"), "{head}");
    assert!(
        printed.contains("outcome: Unavailable") && printed.contains("sent: false"),
        "{printed}"
    );
    assert!(
        !printed.contains("token-secret") && !printed.contains("header-secret"),
        "{printed}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_that_the_platform_does_not_know_is_a_matter_for_the_operator() {
    let (endpoint, _seen) = fake_endpoint(http("400 Bad Request", r#"{"error":"invalid_request"}"#)).await;
    let printed = run_child(&endpoint).await;
    assert!(printed.contains("outcome: Denied"), "{printed}");
    assert!(printed.contains("Storage Blob Data Contributor"), "{printed}");
}
