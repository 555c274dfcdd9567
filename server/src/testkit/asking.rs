//! Requests to a server, answers, and who asks.

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use engine::repo::Did;
use serde_json::{Value, json};

use super::{ADMIN_PASSWORD, PASSWORD, PATIENCE, Server};

/// Collection of [`Server::post`]. No lexicon says what its records are.
pub const NOTE: &str = "com.example.note";

/// Somebody with an account.
#[derive(Clone)]
pub struct User {
    pub did: Did,
    pub handle: String,
    pub access: String,
    pub refresh: String,
}

/// An answer, whole.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The JSON of a 200.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        self.json()
    }

    /// Status and name of an error.
    pub fn error(&self) -> (u16, String) {
        let json = self.json();
        assert!(json["message"].is_string(), "{json}");
        (
            self.status.as_u16(),
            json["error"].as_str().unwrap_or_default().to_owned(),
        )
    }

    /// One header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

impl Server {
    /// Sends any request and does not read the answer's body.
    pub async fn raw(&self, request: Request<Body>) -> axum::http::Response<Body> {
        self.routes.answer(request).await
    }

    /// Sends any request.
    pub async fn send(&self, request: Request<Body>) -> Answer {
        let answering = async {
            let response = self.routes.answer(request).await;
            let (parts, body) = response.into_parts();
            let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
            Answer {
                status: parts.status,
                headers: parts.headers,
                body,
            }
        };
        tokio::time::timeout(PATIENCE, answering)
            .await
            .expect("no answer in time")
    }

    /// A request with headers and a body.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(body.into()).unwrap()).await
    }

    /// `GET` of any path.
    pub async fn get(&self, path: &str) -> Answer {
        self.request(Method::GET, path, &[], Body::empty()).await
    }

    /// A query without credentials; `query` as in a URL.
    pub async fn query(&self, nsid: &str, query: &str) -> Answer {
        self.get(&format!("/xrpc/{nsid}?{query}")).await
    }

    /// A query with credentials.
    pub async fn query_as(&self, token: &str, nsid: &str, query: &str) -> Answer {
        let headers = [("authorization", bearer(token))];
        let headers = [(headers[0].0, headers[0].1.as_str())];
        self.request(
            Method::GET,
            &format!("/xrpc/{nsid}?{query}"),
            &headers,
            Body::empty(),
        )
        .await
    }

    /// A procedure without credentials.
    pub async fn call(&self, nsid: &str, input: &Value) -> Answer {
        self.post_json(nsid, input, None).await
    }

    /// A procedure with a bearer token.
    pub async fn call_as(&self, token: &str, nsid: &str, input: &Value) -> Answer {
        self.post_json(nsid, input, Some(token)).await
    }

    async fn post_json(&self, nsid: &str, input: &Value, token: Option<&str>) -> Answer {
        let authorization = token.map(bearer);
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(authorization.as_deref().map(|bearer| ("authorization", bearer)));
        let path = format!("/xrpc/{nsid}");
        self.request(Method::POST, &path, &headers, input.to_string())
            .await
    }

    /// A procedure with the administrator's password.
    pub async fn as_admin(&self, nsid: &str, input: &Value) -> Answer {
        let authorization = basic();
        let headers = [
            ("content-type", "application/json"),
            ("authorization", authorization.as_str()),
        ];
        self.request(
            Method::POST,
            &format!("/xrpc/{nsid}"),
            &headers,
            input.to_string(),
        )
        .await
    }

    /// A procedure without input, with a bearer token.
    pub async fn poke_as(&self, token: &str, nsid: &str) -> Answer {
        let authorization = bearer(token);
        let headers = [("authorization", authorization.as_str())];
        self.request(Method::POST, &format!("/xrpc/{nsid}"), &headers, Body::empty())
            .await
    }

    /// Uploads a blob.
    pub async fn upload(&self, user: &User, mime: &str, bytes: impl Into<Body>) -> Answer {
        let authorization = bearer(&user.access);
        let headers = [("content-type", mime), ("authorization", authorization.as_str())];
        self.request(Method::POST, "/xrpc/com.atproto.repo.uploadBlob", &headers, bytes)
            .await
    }

    /// A new account `<name>.test`.
    pub async fn sign_up(&self, name: &str) -> User {
        let answer = self
            .call("com.atproto.server.createAccount", &account(name))
            .await;
        user(&answer.ok())
    }

    /// A new session of `<name>.test`.
    pub async fn log_in(&self, name: &str) -> User {
        let input = json!({"identifier": format!("{name}.test"), "password": PASSWORD});
        let answer = self.call("com.atproto.server.createSession", &input).await;
        user(&answer.ok())
    }

    /// A new post; its URI, CID and commit.
    pub async fn post(&self, user: &User, text: &str) -> Value {
        let input = json!({"repo": user.did, "collection": NOTE, "record": {"text": text}});
        self.call_as(&user.access, "com.atproto.repo.createRecord", &input)
            .await
            .ok()
    }
}

/// Input of `createAccount` for `<name>.test`.
pub fn account(name: &str) -> Value {
    json!({
        "handle": format!("{name}.test"),
        "email": format!("{name}@example.com"),
        "password": PASSWORD,
    })
}

/// The user of a session's JSON.
pub fn user(session: &Value) -> User {
    let text = |field: &str| session[field].as_str().unwrap().to_owned();
    User {
        did: text("did").parse().unwrap(),
        handle: text("handle"),
        access: text("accessJwt"),
        refresh: text("refreshJwt"),
    }
}

/// The value of an `Authorization` header.
pub fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// The administrator's `Authorization` header.
pub fn basic() -> String {
    let credential = format!("admin:{ADMIN_PASSWORD}");
    format!("Basic {}", data_encoding::BASE64.encode(credential.as_bytes()))
}
