//! The did:plc directory as its clients see it.
//!
//! The directory's address is the operator's setting, so it may be local. A success of `submit` is known by its status
//! alone: the body is plain text, and whoever reads it as JSON believes that applied operations failed.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use engine::repo::Did;
use reqwest::{Client, RequestBuilder, Response, redirect};
use serde::Deserialize;
use serde_json::Value;

use super::http::{FetchError, read_body, unreachable};
use crate::plc::directory::{PlcDirectory, Standing, SubmitError};
use crate::plc::http::did_document;
use crate::plc::op::{Operation, PlcState};

/// Longest answer about one DID, in bytes.
pub const MAX_ANSWER_BYTES: usize = 256 * 1024;
/// Longest log of one DID, in bytes.
pub const MAX_LOG_BYTES: usize = 8 * 1024 * 1024;
/// Most characters of a directory's message that are passed on.
const MAX_MESSAGE_CHARS: usize = 500;

/// Why the directory did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum PlcError {
    /// The DID is not registered.
    #[error("DID not registered: {0}")]
    NotFound(Did),
    /// The DID was ended.
    #[error("DID not available: {0}")]
    Tombstoned(Did),
    /// The directory refused, and says why. For the client: 400 `InvalidRequest` with this message.
    #[error("{message}")]
    Rejected {
        /// Its status.
        status: u16,
        /// Its message, shortened.
        message: String,
    },
    /// The directory failed or was not reached. For the client: 502 `UpstreamFailure`. A submitted operation may or may
    /// not have been accepted: compare with [`PlcClient::last_op`].
    #[error("the did:plc directory failed: {0}")]
    Unavailable(String),
    /// The directory answered something else than the protocol says. For the client: 502 `UpstreamFailure`.
    #[error("the did:plc directory gave a malformed answer: {0}")]
    Malformed(String),
}

impl PlcError {
    /// HTTP status of the answer to our own client.
    #[must_use]
    pub const fn status(&self) -> u16 {
        match self {
            PlcError::NotFound(_) | PlcError::Tombstoned(_) | PlcError::Rejected { .. } => 400,
            PlcError::Unavailable(_) | PlcError::Malformed(_) => 502,
        }
    }

    /// The `error` field of the answer to our own client.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            PlcError::NotFound(_) | PlcError::Tombstoned(_) | PlcError::Rejected { .. } => "InvalidRequest",
            PlcError::Unavailable(_) | PlcError::Malformed(_) => "UpstreamFailure",
        }
    }
}

/// A did:plc directory.
#[async_trait]
pub trait PlcClient: Send + Sync {
    /// Submits an operation for `did`.
    ///
    /// # Errors
    /// [`PlcError::Rejected`] if it was refused; [`PlcError::Unavailable`] leaves open whether it was accepted.
    async fn submit(&self, did: &Did, operation: &Operation) -> Result<(), PlcError>;

    /// The DID document of `did`.
    ///
    /// # Errors
    /// [`PlcError::NotFound`], [`PlcError::Tombstoned`], or the directory failed.
    async fn document(&self, did: &Did) -> Result<Value, PlcError>;

    /// The state of `did`, straight from the directory.
    ///
    /// # Errors
    /// As [`PlcClient::document`].
    async fn data(&self, did: &Did) -> Result<PlcState, PlcError>;

    /// The newest valid operation of `did`, which the next one must follow. May be a tombstone.
    ///
    /// # Errors
    /// [`PlcError::NotFound`], or the directory failed.
    async fn last_op(&self, did: &Did) -> Result<Operation, PlcError>;

    /// The valid operations of `did`, oldest first.
    ///
    /// # Errors
    /// As [`PlcClient::last_op`].
    async fn log(&self, did: &Did) -> Result<Vec<Operation>, PlcError>;
}

/// A directory over HTTP.
#[derive(Clone, Debug)]
pub struct HttpPlc {
    client: Client,
    base: String,
}

impl HttpPlc {
    /// The directory at `base`, such as `https://plc.directory`, with `timeout` for each exchange.
    ///
    /// # Errors
    /// [`PlcError::Unavailable`] if no HTTP client can be built.
    pub fn new(base: &str, timeout: Duration) -> Result<HttpPlc, PlcError> {
        super::ensure_tls_provider();
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .connect_timeout(timeout)
            .timeout(timeout)
            .user_agent(concat!("azure-pds/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| PlcError::Unavailable(error.to_string()))?;
        Ok(HttpPlc {
            client,
            base: base.trim_end_matches('/').to_owned(),
        })
    }

    /// Sends `request`; gives an answer whose status is a success, its body unread.
    async fn send(&self, did: &Did, request: RequestBuilder) -> Result<Response, PlcError> {
        let response = request.send().await.map_err(|error| failed(unreachable(error)))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        if !status.is_client_error() {
            return Err(PlcError::Unavailable(format!("status {}", status.as_u16())));
        }
        let body = read_body(response, MAX_ANSWER_BYTES).await.unwrap_or_default();
        Err(match status.as_u16() {
            404 => PlcError::NotFound(did.clone()),
            410 => PlcError::Tombstoned(did.clone()),
            status => PlcError::Rejected {
                status,
                message: message_of(&body, status),
            },
        })
    }

    async fn get<T: for<'de> Deserialize<'de>>(
        &self,
        did: &Did,
        path: &str,
        limit: usize,
    ) -> Result<T, PlcError> {
        let response = self
            .send(did, self.client.get(format!("{}/{did}{path}", self.base)))
            .await?;
        let body = read_body(response, limit).await.map_err(failed)?;
        serde_json::from_slice(&body).map_err(|error| PlcError::Malformed(error.to_string()))
    }
}

fn failed(error: FetchError) -> PlcError {
    PlcError::Unavailable(error.to_string())
}

fn message_of(body: &[u8], status: u16) -> String {
    #[derive(Deserialize)]
    struct Refusal {
        message: String,
    }
    match serde_json::from_slice::<Refusal>(body) {
        Ok(refusal) => refusal.message.chars().take(MAX_MESSAGE_CHARS).collect(),
        Err(_) => format!("the did:plc directory answered {status}"),
    }
}

fn read_operation(json: &Value) -> Result<Operation, PlcError> {
    Operation::from_json(json).map_err(|error| PlcError::Malformed(error.to_string()))
}

#[async_trait]
impl PlcClient for HttpPlc {
    async fn submit(&self, did: &Did, operation: &Operation) -> Result<(), PlcError> {
        let request = self
            .client
            .post(format!("{}/{did}", self.base))
            .json(&operation.to_json());
        // The status says it all; the operation is in, whatever becomes of the body.
        self.send(did, request).await.map(drop)
    }

    async fn document(&self, did: &Did) -> Result<Value, PlcError> {
        self.get(did, "", MAX_ANSWER_BYTES).await
    }

    async fn data(&self, did: &Did) -> Result<PlcState, PlcError> {
        self.get(did, "/data", MAX_ANSWER_BYTES).await
    }

    async fn last_op(&self, did: &Did) -> Result<Operation, PlcError> {
        read_operation(&self.get::<Value>(did, "/log/last", MAX_ANSWER_BYTES).await?)
    }

    async fn log(&self, did: &Did) -> Result<Vec<Operation>, PlcError> {
        self.get::<Vec<Value>>(did, "/log", MAX_LOG_BYTES)
            .await?
            .iter()
            .map(read_operation)
            .collect()
    }
}

/// A directory in this very process.
#[async_trait]
impl PlcClient for PlcDirectory {
    async fn submit(&self, did: &Did, operation: &Operation) -> Result<(), PlcError> {
        let (directory, did, operation) = (self.clone(), did.clone(), operation.clone());
        let submitted =
            tokio::task::spawn_blocking(move || PlcDirectory::submit(&directory, &did, operation)).await;
        match submitted {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error @ (SubmitError::Storage(_) | SubmitError::Full))) => {
                Err(PlcError::Unavailable(error.to_string()))
            }
            Ok(Err(error)) => Err(PlcError::Rejected {
                status: 400,
                message: error.to_string(),
            }),
            Err(error) => Err(PlcError::Unavailable(error.to_string())),
        }
    }

    async fn document(&self, did: &Did) -> Result<Value, PlcError> {
        PlcClient::data(self, did)
            .await
            .map(|state| did_document(did, &state))
    }

    async fn data(&self, did: &Did) -> Result<PlcState, PlcError> {
        match self.standing(did) {
            Standing::Active(state) => Ok(state),
            Standing::Tombstoned => Err(PlcError::Tombstoned(did.clone())),
            Standing::Unknown => Err(PlcError::NotFound(did.clone())),
        }
    }

    async fn last_op(&self, did: &Did) -> Result<Operation, PlcError> {
        PlcClient::log(self, did)
            .await?
            .pop()
            .ok_or_else(|| PlcError::NotFound(did.clone()))
    }

    async fn log(&self, did: &Did) -> Result<Vec<Operation>, PlcError> {
        let entries = self.audit_log(did);
        if entries.is_empty() {
            return Err(PlcError::NotFound(did.clone()));
        }
        Ok(entries
            .into_iter()
            .filter(|entry| !entry.nullified)
            .map(|entry| entry.operation)
            .collect())
    }
}

/// Shared by everything that asks the directory.
pub type SharedPlc = Arc<dyn PlcClient>;

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::http::StatusCode;
    use axum::routing::get;
    use engine::clock::{ScriptedClock, SeededEntropy};
    use engine::repo::keys::SigningKey;

    const TIMEOUT: Duration = Duration::from_secs(5);

    async fn serve(router: Router) -> HttpPlc {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        HttpPlc::new(&base, TIMEOUT).unwrap()
    }

    fn key(seed: u64) -> SigningKey {
        SigningKey::generate(&SeededEntropy::new(seed)).unwrap()
    }

    fn state(handle: &str) -> PlcState {
        PlcState::account(
            &[key(1).public_key()],
            &key(9).public_key(),
            &handle.parse().unwrap(),
            "https://pds.example",
        )
    }

    #[tokio::test]
    async fn the_client_and_the_directory_understand_each_other() {
        let directory = PlcDirectory::in_memory(Arc::new(ScriptedClock::at(1_700_000_000_000_000)));
        let over_http = serve(directory.router()).await;
        for (client, handle) in [(&over_http as &dyn PlcClient, "a.test"), (&directory, "b.test")] {
            let genesis = Operation::genesis(state(handle), &key(1)).unwrap();
            let did = genesis.did().unwrap();
            assert!(matches!(client.document(&did).await, Err(PlcError::NotFound(_))));
            client.submit(&did, &genesis).await.unwrap();
            let refused = client.submit(&did, &genesis).await.unwrap_err();
            assert_eq!((refused.status(), refused.name()), (400, "InvalidRequest"));
            assert!(refused.to_string().contains("ordered"), "{refused}");
            assert_eq!(client.last_op(&did).await.unwrap(), genesis);
            assert_eq!(client.data(&did).await.unwrap(), state(handle));
            assert_eq!(
                client.document(&did).await.unwrap()["alsoKnownAs"][0],
                format!("at://{handle}")
            );
            let end = Operation::tombstone(genesis.cid(), &key(1)).unwrap();
            client.submit(&did, &end).await.unwrap();
            assert!(matches!(client.data(&did).await, Err(PlcError::Tombstoned(_))));
            assert_eq!(client.log(&did).await.unwrap(), [genesis, end]);
        }
    }

    #[tokio::test]
    async fn failures_of_the_directory_are_told_from_refusals() {
        let did: Did = "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().unwrap();
        let broken =
            serve(Router::new().route("/{did}", get(|| async { StatusCode::INTERNAL_SERVER_ERROR }))).await;
        let error = broken.document(&did).await.unwrap_err();
        assert_eq!((error.status(), error.name()), (502, "UpstreamFailure"));
        let odd = serve(Router::new().route("/{did}", get(|| async { "not json" }))).await;
        assert!(matches!(odd.document(&did).await, Err(PlcError::Malformed(_))));
        let long =
            serve(Router::new().route("/{did}", get(|| async { "x".repeat(MAX_ANSWER_BYTES + 1) }))).await;
        assert!(matches!(long.document(&did).await, Err(PlcError::Unavailable(_))));
        let gone = HttpPlc::new("http://127.0.0.1:9", TIMEOUT).unwrap();
        assert_eq!(gone.document(&did).await.unwrap_err().status(), 502);
    }
}
