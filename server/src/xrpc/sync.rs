//! `com.atproto.sync.*`: repos as relays and mirrors read them.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderValue, Response, header};
use engine::repo::{Cid, Did, Nsid, RecordKey, RepoPath, Tid, datetime};
use serde_json::{Map, Value, json};

use super::auth::{Reader, reader};
use super::error::{XrpcError, XrpcResult};
use super::request::{Request, blocking, car, json as json_answer};
use crate::app::App;
use crate::auth::permission::Access;
use crate::service::accounts::{Account, Status};
use crate::service::blobs::BlobError;
use crate::service::repos::export;

/// Blocks that one `getBlocks` may ask for.
const MAX_BLOCKS: usize = 500;

/// `getRepo`: the whole repo as CAR, streamed; with `since` only records newer than that revision.
pub async fn get_repo(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let did: Did = request.params.parsed("did")?;
    let since: Option<Tid> = request.params.parsed_optional("since")?;
    let reader = reader(&app, &request.headers, Access::StandardOrTakendown)?;
    request.no_body().await?;
    available(&app, &did, &reader).await?;
    let stream = export::repo(&app.engine, &app.exports, &did, since).await?;
    Ok(car(Body::from_stream(stream)))
}

/// `getBlocks`: single blocks of a repo, as CAR without a root.
pub async fn get_blocks(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let did: Did = request.params.parsed("did")?;
    let cids: Vec<Cid> = request.params.all("cids")?;
    if cids.is_empty() {
        return Err(XrpcError::invalid(
            "Error: Params must have the property \"cids\"",
        ));
    }
    if cids.len() > MAX_BLOCKS {
        return Err(XrpcError::invalid(format!(
            "Error: cids must not have more than {MAX_BLOCKS} elements"
        )));
    }
    let reader = reader(&app, &request.headers, Access::Standard)?;
    request.no_body().await?;
    available(&app, &did, &reader).await?;
    let stream = export::blocks(&app.engine, &app.exports, &did, cids).await?;
    Ok(car(Body::from_stream(stream)))
}

/// `getRecord`: commit and proof of a record, or of its absence, as CAR.
pub async fn get_record(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let did: Did = request.params.parsed("did")?;
    let collection: Nsid = request.params.parsed("collection")?;
    let rkey: RecordKey = request.params.parsed("rkey")?;
    let reader = reader(&app, &request.headers, Access::Standard)?;
    request.no_body().await?;
    available(&app, &did, &reader).await?;
    let path = RepoPath::new(collection, rkey);
    let proof = blocking(move || Ok(export::record_proof(&app.engine, &did, &path)?)).await?;
    Ok(car(Body::from(proof)))
}

/// `getLatestCommit`.
pub async fn get_latest_commit(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let did: Did = request.params.parsed("did")?;
    let reader = reader(&app, &request.headers, Access::Standard)?;
    request.no_body().await?;
    available(&app, &did, &reader).await?;
    let head = export::head(&app.engine, &did)?.ok_or_else(|| repo_not_found(&did))?;
    json_answer(&json!({ "cid": head.commit, "rev": head.rev.to_string() }))
}

/// `getHead`, which is what `getLatestCommit` was once.
pub async fn get_head(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let did: Did = request.params.parsed("did")?;
    let reader = reader(&app, &request.headers, Access::Standard)?;
    request.no_body().await?;
    available(&app, &did, &reader).await?;
    let head = export::head(&app.engine, &did)?
        .ok_or_else(|| XrpcError::bad("HeadNotFound", format!("Could not find root for DID: {did}")))?;
    json_answer(&json!({ "root": head.commit }))
}

/// `getCheckout`, which is what `getRepo` was once: always the whole repo.
pub async fn get_checkout(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let did: Did = request.params.parsed("did")?;
    let reader = reader(&app, &request.headers, Access::Standard)?;
    request.no_body().await?;
    available(&app, &did, &reader).await?;
    let stream = export::repo(&app.engine, &app.exports, &did, None).await?;
    Ok(car(Body::from_stream(stream)))
}

/// `getRepoStatus`.
pub async fn get_repo_status(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let did: Did = request.params.parsed("did")?;
    request.no_body().await?;
    let account = app
        .accounts
        .by_did(&did)
        .await?
        .ok_or_else(|| repo_not_found(&did))?;
    let mut answer = status_json(&account);
    if account.is_active()
        && let Some(head) = export::head(&app.engine, &did)?
    {
        answer.insert("rev".into(), head.rev.to_string().into());
    }
    json_answer(&Value::Object(answer))
}

/// `listRepos`: every account, in order of creation.
pub async fn list_repos(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let limit = request.params.integer("limit", 1..=1000, 500)?;
    let cursor = request.params.optional("cursor")?.map(parse_cursor).transpose()?;
    request.no_body().await?;
    let accounts = app.accounts.list(cursor, limit).await?;
    let mut answer = Map::new();
    if let Some((created_at, account)) = accounts.last() {
        let millis = datetime::parse_datetime(created_at)
            .map_err(|error| XrpcError::internal(format!("account time {created_at}: {error}")))?
            / 1000;
        answer.insert("cursor".into(), format!("{millis}::{}", account.did).into());
    }
    let repos = blocking(move || {
        let dids: Vec<&Did> = accounts.iter().map(|(_, account)| &account.did).collect();
        let heads = export::heads(&app.engine, &dids)?;
        let rows = accounts.iter().zip(heads).filter_map(|((_, account), head)| {
            // An account whose repo is not in the index yet has nothing to list.
            let head = head?;
            let mut row = status_json(account);
            row.insert("head".into(), head.commit.to_string().into());
            row.insert("rev".into(), head.rev.to_string().into());
            Some(Value::Object(row))
        });
        Ok(rows.collect::<Vec<_>>())
    })
    .await?;
    answer.insert("repos".into(), repos.into());
    json_answer(&Value::Object(answer))
}

/// `getBlob`: the bytes of a blob that some record references.
pub async fn get_blob(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let did: Did = request.params.parsed("did")?;
    let cid: Cid = request.params.parsed("cid")?;
    let reader = reader(&app, &request.headers, Access::StandardOrTakendown)?;
    request.no_body().await?;
    let account = available(&app, &did, &reader).await?;
    if account.hides_some && app.moderation.hidden_blob(&did, vec![cid]).await?.is_some() {
        return Err(BlobError::NotFound.into());
    }
    let blob = app.blobs.open(&did, &cid).await?;
    let mut response = Response::new(Body::from_stream(blob.stream));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(blob.size));
    let mime =
        HeaderValue::from_str(&blob.mime).unwrap_or(HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_TYPE, mime);
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; sandbox"),
    );
    if let Ok(disposition) = HeaderValue::from_str(&format!("attachment; filename=\"{cid}\"")) {
        headers.insert(header::CONTENT_DISPOSITION, disposition);
    }
    Ok(response)
}

/// `listBlobs`: CIDs of blobs that records reference, ascending.
pub async fn list_blobs(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let did: Did = request.params.parsed("did")?;
    let since: Option<Tid> = request.params.parsed_optional("since")?;
    let limit = request.params.integer("limit", 1..=1000, 500)?;
    let cursor: Option<Cid> = request.params.parsed_optional("cursor")?;
    let reader = reader(&app, &request.headers, Access::StandardOrTakendown)?;
    request.no_body().await?;
    available(&app, &did, &reader).await?;
    let blobs = app.blobs.clone();
    let cids = blocking(move || Ok(blobs.list(&did, since, cursor, limit)?)).await?;
    let mut answer = Map::new();
    if let Some(last) = cids.last() {
        answer.insert("cursor".into(), last.to_string().into());
    }
    answer.insert(
        "cids".into(),
        cids.iter().map(|cid| Value::from(cid.to_string())).collect(),
    );
    json_answer(&Value::Object(answer))
}

/// The account, if this reader may read its repo.
async fn available(app: &App, did: &Did, reader: &Reader) -> XrpcResult<Account> {
    let account = app
        .accounts
        .by_did(did)
        .await?
        .ok_or_else(|| repo_not_found(did))?;
    if !reader.sees_inactive(did) {
        account.check_available()?;
    }
    Ok(account)
}

fn repo_not_found(did: &Did) -> XrpcError {
    XrpcError::bad("RepoNotFound", format!("Could not find repo for DID: {did}"))
}

fn status_json(account: &Account) -> Map<String, Value> {
    let mut row = Map::new();
    row.insert("did".into(), account.did.as_str().into());
    row.insert("active".into(), account.is_active().into());
    if let Some(word) = account.status.word() {
        row.insert("status".into(), word.into());
    }
    row
}

/// `<creation time in ms>::<did>` as the creation time's text and the DID.
fn parse_cursor(cursor: &str) -> XrpcResult<(String, String)> {
    let malformed = || XrpcError::invalid("Malformed cursor");
    let (millis, did) = cursor.split_once("::").ok_or_else(malformed)?;
    let millis: u64 = millis.parse().map_err(|_| malformed())?;
    let did: Did = did.parse().map_err(|_| malformed())?;
    let micros = millis
        .checked_mul(1000)
        .filter(|micros| *micros < 1 << 53)
        .ok_or_else(malformed)?;
    Ok((datetime::format_datetime(micros), did.as_str().to_owned()))
}

impl Account {
    /// Whether anybody may read its repo.
    ///
    /// # Errors
    /// 400 `RepoTakendown` or `RepoDeactivated`.
    pub fn check_available(&self) -> XrpcResult<()> {
        let did = &self.did;
        match self.status {
            Status::Active => Ok(()),
            Status::TakenDown => Err(XrpcError::bad(
                "RepoTakendown",
                format!("Repo has been takendown: {did}"),
            )),
            Status::Deactivated => Err(XrpcError::bad(
                "RepoDeactivated",
                format!("Repo has been deactivated: {did}"),
            )),
        }
    }
}
