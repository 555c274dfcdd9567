//! A service on loopback that takes what is sent on to it.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Response, header};
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// A service that notes what it is asked and answers by the method's name.
pub(super) struct Service {
    pub(super) port: u16,
    seen: Arc<Mutex<Vec<Value>>>,
    /// Says when a piece of a body has arrived, and lets the next piece of an answer go.
    pub(super) arrived: mpsc::UnboundedReceiver<usize>,
    pub(super) release: mpsc::UnboundedSender<()>,
}

struct Inside {
    port: u16,
    seen: Arc<Mutex<Vec<Value>>>,
    arrived: mpsc::UnboundedSender<usize>,
    released: Mutex<Option<mpsc::UnboundedReceiver<()>>>,
}

impl Service {
    pub(super) async fn start() -> Service {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::<Mutex<Vec<Value>>>::default();
        let (arrived_in, arrived) = mpsc::unbounded_channel();
        let (release, released) = mpsc::unbounded_channel();
        let inside = Arc::new(Inside {
            port,
            seen: seen.clone(),
            arrived: arrived_in,
            released: Mutex::new(Some(released)),
        });
        let router = Router::new().fallback(answer).with_state(inside);
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Service {
            port,
            seen,
            arrived,
            release,
        }
    }

    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(super) fn seen(&self) -> usize {
        self.seen.lock().len()
    }

    pub(super) fn last(&self) -> Value {
        self.seen.lock().last().unwrap().clone()
    }
}

async fn answer(State(inside): State<Arc<Inside>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    if parts.uri.path() == "/.well-known/did.json" {
        let did = format!("did:web:localhost%3A{}", inside.port);
        let endpoint = format!("http://localhost:{}/a/path", inside.port);
        return json_answer(&json!({"id": did, "service": [
            {"id": "#svc", "type": "Any", "serviceEndpoint": endpoint},
        ]}));
    }
    let mut stream = body.into_data_stream();
    let mut bytes = 0;
    while let Some(Ok(chunk)) = stream.next().await {
        bytes += chunk.len();
        inside.arrived.send(bytes).ok();
    }
    let headers: serde_json::Map<String, Value> = parts
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().into()))
        .collect();
    let seen = json!({
        "method": parts.method.as_str(),
        "target": parts.uri.to_string(),
        "headers": headers,
        "bytes": bytes,
    });
    inside.seen.lock().push(seen.clone());
    let failing = |status: u16, kind: &str, body: Vec<u8>| {
        let response = Response::builder()
            .status(status)
            .header(header::CONTENT_TYPE, kind);
        response
            .header(header::RETRY_AFTER, "7")
            .body(Body::from(body))
            .unwrap()
    };
    let error = |name: &str| {
        json!({"error": name, "message": "as they say"})
            .to_string()
            .into_bytes()
    };
    let mut response = match parts.uri.path().rsplit('.').next().unwrap_or_default() {
        "broken" => failing(500, "application/json", error("TheirMistake")),
        "missing" => failing(404, "application/json; charset=utf-8", error("NoSuchThing")),
        "packed" => {
            let mut response = failing(429, "application/json", gzip(&error("SlowDown")));
            response
                .headers_mut()
                .insert(header::CONTENT_ENCODING, "gzip".parse().unwrap());
            response
        }
        "page" => failing(503, "text/html", b"<h1>secret</h1>".to_vec()),
        "odd" => failing(401, "application/json", b"[1,2]".to_vec()),
        "squeezed" => {
            let mut response = json_answer(&json!({"a": "b".repeat(5000)}));
            let packed = gzip(json!({"a": "b".repeat(5000)}).to_string().as_bytes());
            response
                .headers_mut()
                .insert(header::CONTENT_ENCODING, "gzip".parse().unwrap());
            *response.body_mut() = Body::from(packed);
            response
        }
        "declared" => {
            let mut response = Response::new(Body::from(vec![b' '; 20_000]));
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, "text/plain".parse().unwrap());
            response
        }
        "endless" => Response::new(Body::from_stream(stream::repeat_with(|| {
            Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 1000]))
        }))),
        "slow" => {
            let released = inside.released.lock().take().unwrap();
            let pieces = stream::unfold(released, |mut released| async {
                released.recv().await?;
                Some((Ok::<_, std::io::Error>(Bytes::from_static(b"piece")), released))
            });
            Response::new(Body::from_stream(pieces))
        }
        _ => json_answer(&seen),
    };
    for (name, value) in [
        ("atproto-repo-rev", "3k2a"),
        ("atproto-content-labelers", "did:plc:x"),
        ("content-language", "de"),
        ("set-cookie", "a=b"),
        ("x-powered-by", "them"),
        ("server", "them"),
        ("access-control-allow-origin", "https://them.example"),
    ] {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}

fn json_answer(value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
    response
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}
