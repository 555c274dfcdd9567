//! What stands in front of a server's revisions: one address, requests sent to whichever is the one in service.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode, header};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// An address that stays. Ends when it is dropped.
#[derive(Debug)]
pub struct Ingress {
    /// Its URL.
    pub url: String,
    target: Arc<Mutex<String>>,
    task: JoinHandle<()>,
}

impl Drop for Ingress {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Shared {
    target: Arc<Mutex<String>>,
    client: reqwest::Client,
}

impl Ingress {
    /// Begins to send requests to `target`.
    ///
    /// # Errors
    /// It cannot listen.
    pub async fn start(target: &str) -> Result<Ingress> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let target = Arc::new(Mutex::new(target.to_owned()));
        let shared = Shared {
            target: target.clone(),
            client: reqwest::Client::builder().no_proxy().build()?,
        };
        let router = Router::new().fallback(pass).with_state(shared);
        let task = tokio::spawn(async move {
            let _ended = axum::serve(listener, router).await;
        });
        Ok(Ingress { url, target, task })
    }

    /// Sends new requests to `target` from now on.
    pub fn switch(&self, target: &str) {
        target.clone_into(&mut self.target.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

async fn pass(State(shared): State<Shared>, request: Request) -> Response<Body> {
    let target = shared
        .target
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let (mut parts, body) = request.into_parts();
    parts.headers.remove(header::HOST);
    parts.headers.remove(header::CONNECTION);
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let sent = shared
        .client
        .request(parts.method, format!("{target}{path}"))
        .headers(parts.headers)
        .body(reqwest::Body::wrap_stream(body.into_data_stream()))
        .send()
        .await;
    match sent {
        Ok(answer) => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = answer.status();
            *response.headers_mut() = answer.headers().clone();
            response.headers_mut().remove(header::TRANSFER_ENCODING);
            *response.body_mut() = Body::from_stream(answer.bytes_stream());
            response
        }
        Err(error) => {
            let mut response = Response::new(Body::from(error.to_string()));
            // What an ingress answers where nobody listens. A connection that broke is another matter: that is no 503.
            *response.status_mut() = match error.is_connect() {
                true => StatusCode::SERVICE_UNAVAILABLE,
                false => StatusCode::BAD_GATEWAY,
            };
            response
        }
    }
}
