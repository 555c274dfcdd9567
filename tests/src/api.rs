//! A plain client of the server's HTTP interface, independent of the server's own code.

use std::sync::Once;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// The password of every account that tests make.
pub const PASSWORD: &str = "correct horse battery staple";
/// How long a server may say nothing during a request.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);
/// How long one request may take: a large repo, on a machine that does other things.
const REQUEST_LIMIT: Duration = Duration::from_secs(180);

static PROVIDER: Once = Once::new();

/// A client of one server.
#[derive(Clone, Debug)]
pub struct Api {
    http: reqwest::Client,
    url: String,
}

/// What the server answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Seconds after which it may be tried again, if it said so.
    pub retry_after: Option<u64>,
    /// The body.
    pub body: Vec<u8>,
}

/// An account and its tokens.
#[derive(Clone, Debug)]
pub struct Account {
    /// Its DID.
    pub did: String,
    /// Its handle.
    pub handle: String,
    /// The access token.
    pub access: String,
    /// The refresh token.
    pub refresh: String,
}

/// An acknowledged write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The repo.
    pub did: String,
    /// The record's collection.
    pub collection: String,
    /// The record's key.
    pub rkey: String,
    /// The record's CID.
    pub cid: String,
    /// The CID of the commit that holds it.
    pub commit: String,
    /// That commit's revision.
    pub rev: String,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// It is none.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("{} {}", self.status, self.text()))
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body of a success.
    ///
    /// # Errors
    /// It was none; the message shows what was answered.
    pub fn ok(self) -> Result<Value> {
        ensure!(
            self.status == 200,
            "the server answered {}: {}",
            self.status,
            self.text()
        );
        self.json()
    }
}

impl Api {
    /// A client of the server at `url`.
    ///
    /// # Errors
    /// The HTTP client cannot be built.
    pub fn new(url: &str) -> Result<Api> {
        PROVIDER.call_once(|| {
            // Fails only when another thread was first, which is as good.
            let _installed = rustls::crypto::ring::default_provider().install_default();
        });
        let http = reqwest::Client::builder()
            .read_timeout(SILENCE_LIMIT)
            .timeout(REQUEST_LIMIT)
            .no_proxy()
            .build()?;
        Ok(Api {
            http,
            url: url.to_owned(),
        })
    }

    /// Whether the server says that it takes writes.
    pub async fn ready(&self) -> bool {
        self.get("/_health/ready")
            .await
            .is_ok_and(|answer| answer.status == 200)
    }

    /// `GET` of a path.
    ///
    /// # Errors
    /// The connection fails.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        answer(self.http.get(format!("{}{path}", self.url))).await
    }

    /// `GET` of a path as the administrator.
    ///
    /// # Errors
    /// The connection fails.
    pub async fn get_as_admin(&self, path: &str, password: &str) -> Result<Answer> {
        let request = self.http.get(format!("{}{path}", self.url));
        answer(request.basic_auth("admin", Some(password))).await
    }

    /// `POST` of nothing to a path as the administrator.
    ///
    /// # Errors
    /// The connection fails.
    pub async fn post_as_admin(&self, path: &str, password: &str) -> Result<Answer> {
        let request = self.http.post(format!("{}{path}", self.url));
        answer(request.basic_auth("admin", Some(password))).await
    }

    /// An XRPC query.
    ///
    /// # Errors
    /// The connection fails.
    pub async fn query(&self, method: &str, params: &[(&str, &str)], token: Option<&str>) -> Result<Answer> {
        let request = self.http.get(format!("{}/xrpc/{method}", self.url)).query(params);
        answer(with(request, token)).await
    }

    /// An XRPC procedure with a JSON body.
    ///
    /// # Errors
    /// The connection fails.
    pub async fn procedure(&self, method: &str, body: &Value, token: Option<&str>) -> Result<Answer> {
        let request = self.http.post(format!("{}/xrpc/{method}", self.url)).json(body);
        answer(with(request, token)).await
    }

    /// An XRPC procedure without a body.
    ///
    /// # Errors
    /// The connection fails.
    pub async fn call(&self, method: &str, token: Option<&str>) -> Result<Answer> {
        answer(with(self.http.post(format!("{}/xrpc/{method}", self.url)), token)).await
    }

    /// Uploads a blob and gives the reference for a record.
    ///
    /// # Errors
    /// The server refuses it.
    pub async fn upload(&self, account: &Account, mime: &str, bytes: Vec<u8>) -> Result<Value> {
        let request = self
            .http
            .post(format!("{}/xrpc/com.atproto.repo.uploadBlob", self.url));
        let request = request.header("content-type", mime).body(bytes);
        let body = answer(with(request, Some(&account.access))).await?.ok()?;
        Ok(body.get("blob").cloned().unwrap_or_default())
    }

    /// Makes the account `<name>.test`.
    ///
    /// # Errors
    /// The server refuses it.
    pub async fn create_account(&self, name: &str) -> Result<Account> {
        let input = json!({
            "handle": format!("{name}.test"),
            "email": format!("{name}@example.com"),
            "password": PASSWORD,
        });
        session(
            &self
                .procedure("com.atproto.server.createAccount", &input, None)
                .await?
                .ok()?,
        )
    }

    /// Logs in.
    ///
    /// # Errors
    /// The server refuses it.
    pub async fn login(&self, identifier: &str) -> Result<Account> {
        let input = json!({ "identifier": identifier, "password": PASSWORD });
        session(
            &self
                .procedure("com.atproto.server.createSession", &input, None)
                .await?
                .ok()?,
        )
    }

    /// Creates a record under a key of the server's choice.
    ///
    /// # Errors
    /// It is not acknowledged.
    pub async fn create(&self, account: &Account, collection: &str, record: Value) -> Result<Written> {
        let input = json!({ "repo": account.did, "collection": collection, "record": record });
        let answer = self
            .procedure("com.atproto.repo.createRecord", &input, Some(&account.access))
            .await?;
        written(&account.did, &answer.ok()?)
    }

    /// Creates or replaces a record.
    ///
    /// # Errors
    /// It is not acknowledged, or changed nothing.
    pub async fn put(
        &self,
        account: &Account,
        collection: &str,
        rkey: &str,
        record: Value,
    ) -> Result<Written> {
        let input = json!({ "repo": account.did, "collection": collection, "rkey": rkey, "record": record });
        let answer = self
            .procedure("com.atproto.repo.putRecord", &input, Some(&account.access))
            .await?;
        written(&account.did, &answer.ok()?)
    }

    /// Creates a post.
    ///
    /// # Errors
    /// It is not acknowledged.
    pub async fn post(&self, account: &Account, text: &str) -> Result<Written> {
        self.create(account, "app.bsky.feed.post", post(text)).await
    }

    /// A record as the server gives it.
    ///
    /// # Errors
    /// There is none.
    pub async fn record(&self, did: &str, collection: &str, rkey: &str) -> Result<Value> {
        let params = [("repo", did), ("collection", collection), ("rkey", rkey)];
        self.query("com.atproto.repo.getRecord", &params, None)
            .await?
            .ok()
    }
}

/// A post. What is longer than a post's text may be is in a field that posts do not have.
#[must_use]
pub fn post(text: &str) -> Value {
    const MAX_GRAPHEMES: usize = 300;
    let end = text
        .char_indices()
        .nth(MAX_GRAPHEMES)
        .map_or(text.len(), |(at, _)| at);
    let (text, rest) = text.split_at(end);
    let mut post =
        json!({ "$type": "app.bsky.feed.post", "text": text, "createdAt": "2024-05-06T07:08:09.000Z" });
    if !rest.is_empty() {
        post["rest"] = rest.into();
    }
    post
}

/// The text of a field.
///
/// # Errors
/// There is none.
pub fn field(value: &Value, path: &str) -> Result<String> {
    let text = value.pointer(path).and_then(Value::as_str);
    Ok(text
        .with_context(|| format!("no text at {path} in {value}"))?
        .to_owned())
}

fn session(body: &Value) -> Result<Account> {
    Ok(Account {
        did: field(body, "/did")?,
        handle: field(body, "/handle")?,
        access: field(body, "/accessJwt")?,
        refresh: field(body, "/refreshJwt")?,
    })
}

/// What a success of a procedure that writes a record says.
///
/// # Errors
/// It was none.
pub fn created(did: &str, answer: &Answer) -> Result<Written> {
    written(did, &answer.clone().ok()?)
}

fn written(did: &str, body: &Value) -> Result<Written> {
    let uri = field(body, "/uri")?;
    let parts: Vec<&str> = uri.split('/').collect();
    let [.., collection, rkey] = parts.as_slice() else {
        bail!("{uri} is no URI of a record")
    };
    Ok(Written {
        did: did.to_owned(),
        collection: (*collection).to_owned(),
        rkey: (*rkey).to_owned(),
        cid: field(body, "/cid")?,
        commit: field(body, "/commit/cid")?,
        rev: field(body, "/commit/rev")?,
    })
}

fn with(request: reqwest::RequestBuilder, token: Option<&str>) -> reqwest::RequestBuilder {
    match token {
        Some(token) => request.bearer_auth(token),
        None => request,
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Result<Answer> {
    let response = request.send().await?;
    let status = response.status().as_u16();
    let retry_after = response.headers().get("retry-after");
    let retry_after = retry_after.and_then(|seconds| seconds.to_str().ok()?.parse().ok());
    Ok(Answer {
        status,
        retry_after,
        body: response.bytes().await?.to_vec(),
    })
}
