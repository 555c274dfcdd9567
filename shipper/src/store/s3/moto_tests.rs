//! The contract against moto, a service in Python that heeds the conditions, and small servers that misbehave. moto needs
//! Python and `tests/s3/install.sh`; without it the tests say so and pass, unless `PDS_TESTS_REQUIRE_ALL=1`.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Mutex;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use super::super::azure::Secret;
use super::super::contract;
use super::*;
use crate::blobs::ReplicaBlobs;

const START_LIMIT: Duration = Duration::from_secs(60);
const TEST_LIMIT: Duration = Duration::from_secs(120);
const SECRET: &str = "topsecret+/topsecret";

/// A running moto, which dies with this value.
struct Moto {
    child: Child,
    url: String,
    // Open, so that it may go on writing to it.
    _output: Lines<BufReader<ChildStdout>>,
}

impl Moto {
    /// Starts one on a free port of this machine; `None`, with a word, if it is not installed.
    async fn start() -> Option<Moto> {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
        let python = root.join("target/s3-server/bin/python3");
        if !python.exists() {
            assert!(
                std::env::var("PDS_TESTS_REQUIRE_ALL").as_deref() != Ok("1"),
                "moto is required: install Python, then run tests/s3/install.sh"
            );
            println!("skipped: no moto (install Python, then run tests/s3/install.sh)");
            return None;
        }
        let mut child = Command::new(python)
            .arg(root.join("tests/s3/serve.py"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("moto starts");
        let mut output = BufReader::new(child.stdout.take().expect("its output")).lines();
        let listening = timeout(START_LIMIT, async {
            while let Some(line) = output.next_line().await.expect("its output") {
                if let Some(url) = line.strip_prefix("listens on ") {
                    return url.trim().to_owned();
                }
            }
            panic!("moto ended before it listened");
        });
        let url = listening.await.expect("moto listens in time");
        Some(Moto {
            child,
            url,
            _output: output,
        })
    }

    /// A new bucket.
    async fn bucket(&self, bucket: &str) -> S3Config {
        let made = transport::client(true)
            .unwrap()
            .put(format!("{}/{bucket}", self.url))
            .send()
            .await
            .unwrap();
        assert!(made.status().is_success(), "{made:?}");
        config(&self.url, bucket)
    }

    async fn stop(mut self) {
        timeout(START_LIMIT, self.child.kill())
            .await
            .expect("moto ends in time")
            .expect("moto ends");
    }
}

fn config(endpoint: &str, bucket: &str) -> S3Config {
    S3Config {
        bucket: bucket.to_owned(),
        prefix: String::new(),
        region: "us-east-1".to_owned(),
        endpoint: Some(endpoint.to_owned()),
        path_style: false,
        allow_http: false,
        auth: S3Auth::Keys {
            id: "id".to_owned(),
            secret: Secret::new(SECRET),
        },
        request_timeout: Duration::from_secs(10),
    }
}

fn name(text: &str) -> ObjectName {
    text.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn moto_keeps_the_contract() {
    let Some(moto) = Moto::start().await else {
        return;
    };
    let work = async {
        let config = moto.bucket("plain").await;
        contract::all(Arc::new(S3Store::new(&config).unwrap())).await;
        let mut config = moto.bucket("prefixed").await;
        config.prefix = "one/log".to_owned();
        contract::all(Arc::new(S3Store::new(&config).unwrap())).await;
        // A neighbour's objects are none of ours.
        config.prefix = "one/lo".to_owned();
        let neighbour = S3Store::new(&config).unwrap();
        assert_eq!(neighbour.list("", None, 10).await, Ok(vec![]));
    };
    timeout(TEST_LIMIT, Box::pin(work)).await.expect("done in time");
    moto.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn moto_keeps_media_and_long_listings() {
    let Some(moto) = Moto::start().await else {
        return;
    };
    let store: Arc<dyn ReplicaStore> = Arc::new(S3Store::new(&moto.bucket("media").await).unwrap());
    let work = async {
        let scratch = tempfile::tempdir().unwrap();
        let blobs = ReplicaBlobs::open(store.clone(), scratch.path()).unwrap();
        engine::blobs::contract::all(&blobs).await;
        // More than a page.
        let names: Vec<_> = (0..PAGE + 5)
            .map(|index| name(&format!("many/{index:06}")))
            .collect();
        let creations = futures_util::stream::iter(&names).map(|name| store.create(name, Bytes::new()));
        let created: Vec<_> = creations.buffered(8).try_collect().await.unwrap();
        assert!(created.iter().all(|created| *created == Created::Created));
        let listed = store.list("many/", None, PAGE + 4).await.unwrap();
        assert!(listed.iter().map(|meta| &meta.name).eq(&names[..PAGE + 4]));
        let rest = store
            .list("many/", Some(names[2].as_str()), PAGE + 100)
            .await
            .unwrap();
        assert!(rest.iter().map(|meta| &meta.name).eq(&names[3..]));
    };
    timeout(TEST_LIMIT, Box::pin(work)).await.expect("done in time");
    moto.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_wrong_with_moto_is_told_apart_and_without_secrets() {
    let Some(moto) = Moto::start().await else {
        return;
    };
    let config = config(&moto.url, "absent");
    let store = S3Store::new(&config).unwrap();
    let a = name("a");
    for error in [
        store.create(&a, Bytes::new()).await.unwrap_err(),
        store.list("", None, 1).await.unwrap_err(),
        store.prove().await.unwrap_err(),
    ] {
        assert!(
            matches!(&error, StoreError::NotFound { object } if object.contains("bucket absent")),
            "{error}"
        );
    }
    // An object that was not written to be swapped.
    let store = S3Store::new(&moto.bucket("odd").await).unwrap();
    store.create(&a, Bytes::from_static(b"x")).await.unwrap();
    let odd = store.read_tagged(&a, 10).await.unwrap_err();
    assert!(matches!(odd, StoreError::Invalid { .. }), "{odd}");
    moto.stop().await;
    let error = store.create(&a, Bytes::new()).await.unwrap_err();
    assert!(
        matches!(error, StoreError::Unavailable { sent: false, .. }),
        "{error:?}"
    );
    for text in [
        format!("{error:?} {error}"),
        store.describe(),
        format!("{store:?}"),
        format!("{config:?}"),
    ] {
        assert!(!text.contains("topsecret"), "{text}");
    }
}

/// A server that gives each request the same answer, and what it was asked.
struct Stubborn {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Stubborn {
    /// `None` breaks the connection after the request was read.
    async fn start(answer: Option<&'static str>) -> Stubborn {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let log = log.clone();
                tokio::spawn(async move {
                    let mut connection = BufReader::new(connection);
                    let (mut head, mut length) = (String::new(), 0);
                    loop {
                        let mut line = String::new();
                        if connection.read_line(&mut line).await.unwrap_or(0) <= 2 {
                            break;
                        }
                        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                            length = value.trim().parse().unwrap();
                        }
                        head.push_str(&line);
                    }
                    let mut body = vec![0; length];
                    connection.read_exact(&mut body).await.unwrap();
                    log.lock().unwrap().push(head);
                    if let Some(answer) = answer {
                        connection.write_all(answer.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        Stubborn { url, asked }
    }

    fn store(&self) -> S3Store {
        S3Store::new(&config(&self.url, "pds")).unwrap()
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

const FAILS: &str = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
const OBEYS: &str = "HTTP/1.1 200 OK\r\netag: \"1\"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn a_write_is_sent_once_and_a_lost_answer_is_told() {
    for answer in [None, Some(FAILS)] {
        let server = Stubborn::start(answer).await;
        let store = server.store();
        let a = name("a:%");
        let tag = Tag::new(&a, "\"1\"").unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, b"content").unwrap();
        for (error, sent) in [
            (
                store.create(&a, Bytes::from_static(b"1")).await.unwrap_err(),
                "if-none-match: *",
            ),
            (
                store
                    .swap(&a, Bytes::from_static(b"1"), Some(&tag))
                    .await
                    .unwrap_err(),
                "if-match: \"1\"",
            ),
            (
                store.swap(&a, Bytes::from_static(b"1"), None).await.unwrap_err(),
                "if-none-match: *",
            ),
        ] {
            assert!(error.is_retryable() && error.outcome_unknown(), "{error:?}");
            let asked = server.asked();
            assert!(asked.iter().any(|head| head.contains(sent)), "{asked:?}");
        }
        let asked = server.asked();
        assert_eq!(asked.len(), 3, "{asked:?}");
        for head in &asked {
            assert!(head.starts_with("PUT /pds/a%3A%25 "), "{head}");
            assert!(
                head.to_ascii_lowercase()
                    .contains("authorization: aws4-hmac-sha256"),
                "{head}"
            );
        }
        assert!(
            store
                .create_from_file(&a, file.path())
                .await
                .unwrap_err()
                .is_retryable()
        );
        // Reads, too: repeating them is the caller's.
        assert_eq!(server.asked().len(), 4);
    }
}

#[tokio::test]
async fn a_service_that_overwrites_is_found_out() {
    let server = Stubborn::start(Some(OBEYS)).await;
    let error = server.store().prove().await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Invalid { detail } if detail.contains("If-None-Match")),
        "{error}"
    );
    // What was written to find out is removed.
    assert!(server.asked().last().unwrap().starts_with("DELETE /pds/probe/"));
}

#[tokio::test]
async fn a_service_that_never_answers_is_given_up_in_time() {
    // Takes connections into its queue and never reads.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = config(&format!("http://{}", silent.local_addr().unwrap()), "pds");
    config.request_timeout = Duration::from_millis(200);
    let store = S3Store::new(&config).unwrap();
    let outcome = timeout(TEST_LIMIT, store.create(&name("a"), Bytes::new()))
        .await
        .expect("given up");
    let error = outcome.unwrap_err();
    assert_eq!(
        error,
        StoreError::Timeout {
            after: config.request_timeout
        }
    );
    assert!(error.outcome_unknown());
}

#[tokio::test]
async fn what_no_put_takes_is_refused_unsent() {
    let server = Stubborn::start(Some(OBEYS)).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(MAX_OBJECT_BYTES + 1).unwrap();
    let error = server
        .store()
        .create_from_file(&name("a"), file.path())
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
    assert!(server.asked().is_empty());
}
