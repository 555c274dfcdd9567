//! A running server, asked through its public methods with the administrator's password.

use std::time::Duration;

use anyhow::{Context, bail};
use bytes::{Bytes, BytesMut};
use engine::repo::Did;
use serde_json::Value;

/// Time for one request.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Time for an export.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(1_800);
/// Most bytes of an export.
const EXPORT_BYTES: usize = 2 << 30;

/// A server.
pub struct Live {
    client: reqwest::Client,
    base: String,
    password: String,
}

impl Live {
    /// The server at `base`. The password is in the environment, where no list of processes shows it.
    pub fn new(base: &str) -> anyhow::Result<Live> {
        // The process has one; that it may be there already is fine.
        drop(rustls::crypto::ring::default_provider().install_default());
        let password = std::env::var("PDS_ADMIN_PASSWORD")
            .ok()
            .filter(|text| !text.is_empty());
        Ok(Live {
            client: reqwest::Client::builder().timeout(TIMEOUT).build()?,
            base: base.trim_end_matches('/').to_owned(),
            password: password.context("PDS_ADMIN_PASSWORD is not set")?,
        })
    }

    /// The export of a repo, whatever the account's state.
    pub async fn repo(&self, did: &Did) -> anyhow::Result<Bytes> {
        let url = format!("{}/xrpc/com.atproto.sync.getRepo", self.base);
        let request = self
            .client
            .get(url)
            .query(&[("did", did.as_str())])
            .timeout(EXPORT_TIMEOUT)
            .basic_auth("admin", Some(&self.password));
        let mut answer = request.send().await.context("asking the server for the repo")?;
        if !answer.status().is_success() {
            bail!("asking the server for the repo: {}", told(answer).await);
        }
        let mut car = BytesMut::new();
        while let Some(piece) = answer.chunk().await.context("reading the server's export")? {
            if car.len() + piece.len() > EXPORT_BYTES {
                bail!("the repo has more than {EXPORT_BYTES} bytes");
            }
            car.extend_from_slice(&piece);
        }
        Ok(car.freeze())
    }

    /// `com.atproto.repo.applyWrites`.
    pub async fn apply_writes(&self, input: &Value) -> anyhow::Result<Value> {
        let url = format!("{}/xrpc/com.atproto.repo.applyWrites", self.base);
        let request = self
            .client
            .post(url)
            .json(input)
            .basic_auth("admin", Some(&self.password));
        let answer = request.send().await.context("writing to the server")?;
        if !answer.status().is_success() {
            bail!("the server refused: {}", told(answer).await);
        }
        answer.json().await.context("reading the server's answer")
    }
}

/// What a refusal says, in one line.
async fn told(answer: reqwest::Response) -> String {
    let status = answer.status();
    let json: Value = answer.json().await.unwrap_or_default();
    let (error, message) = (json["error"].as_str(), json["message"].as_str());
    format!(
        "{status} {} {}",
        error.unwrap_or_default(),
        message.unwrap_or_default()
    )
}
