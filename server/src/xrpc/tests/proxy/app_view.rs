//! An AppView on loopback that says what it is told to say.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Response, header};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::service::gzip;

/// What it says to a method.
#[derive(Clone)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) kind: &'static str,
    pub(super) rev: Option<String>,
    pub(super) body: Vec<u8>,
}

impl Reply {
    /// JSON that goes up to `rev` of the caller's repo.
    pub(super) fn new(rev: &str, body: &Value) -> Reply {
        Reply {
            status: 200,
            kind: "application/json; charset=utf-8",
            rev: Some(rev.to_owned()),
            body: body.to_string().into_bytes(),
        }
    }
}

/// A request that came.
#[derive(Clone)]
pub(super) struct Seen {
    pub(super) target: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Seen {
    /// The claims of the token that it carries, which is not verified.
    pub(super) fn claims(&self) -> Value {
        let token = self.headers["authorization"].to_str().unwrap();
        let payload = token.split('.').nth(1).unwrap();
        let json = data_encoding::BASE64URL_NOPAD.decode(payload.as_bytes()).unwrap();
        serde_json::from_slice(&json).unwrap()
    }
}

/// The AppView.
pub(super) struct AppView {
    pub(super) port: u16,
    inside: Arc<Inside>,
}

struct Inside {
    port: u16,
    replies: Mutex<HashMap<String, Reply>>,
    seen: Mutex<Vec<Seen>>,
}

impl AppView {
    pub(super) async fn start() -> AppView {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let inside = Arc::new(Inside {
            port,
            replies: Mutex::default(),
            seen: Mutex::default(),
        });
        let router = Router::new().fallback(answer).with_state(inside.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        AppView { port, inside }
    }

    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// From now on this is said to a method.
    pub(super) fn says(&self, nsid: &str, reply: Reply) {
        self.inside.replies.lock().insert(nsid.to_owned(), reply);
    }

    /// The last request.
    pub(super) fn last(&self) -> Seen {
        self.inside.seen.lock().last().unwrap().clone()
    }

    /// How many requests came for a method.
    pub(super) fn count(&self, nsid: &str) -> usize {
        let seen = self.inside.seen.lock();
        seen.iter().filter(|seen| seen.target.contains(nsid)).count()
    }
}

async fn answer(State(inside): State<Arc<Inside>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    if path == "/.well-known/did.json" {
        let endpoint = format!("http://localhost:{}", inside.port);
        let document = json!({"id": format!("did:web:localhost%3A{}", inside.port), "service": [
            {"id": "#bsky_notif", "type": "BskyNotificationService", "serviceEndpoint": endpoint},
        ]});
        return Response::new(Body::from(document.to_string()));
    }
    let nsid = path.strip_prefix("/xrpc/").unwrap_or_default().to_owned();
    let body = to_bytes(body, 1 << 20).await.unwrap().to_vec();
    inside.seen.lock().push(Seen {
        target: parts.uri.to_string(),
        headers: parts.headers.clone(),
        body,
    });
    let known = inside.replies.lock().get(&nsid).cloned();
    let reply = known.unwrap_or_else(|| Reply {
        status: 400,
        rev: None,
        ..Reply::new("", &json!({"error": "NotFound", "message": nsid}))
    });
    let mut response = Response::builder()
        .status(reply.status)
        .header(header::CONTENT_TYPE, reply.kind)
        .header("atproto-content-labelers", "did:plc:x");
    if let Some(rev) = reply.rev {
        response = response.header("atproto-repo-rev", rev);
    }
    let packed = parts
        .headers
        .get(header::ACCEPT_ENCODING)
        .is_some_and(|coding| coding == "gzip");
    let body = if packed {
        response = response.header(header::CONTENT_ENCODING, "gzip");
        gzip(&reply.body)
    } else {
        reply.body
    };
    response.body(Body::from(body)).unwrap()
}
