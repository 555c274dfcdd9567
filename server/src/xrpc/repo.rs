//! `com.atproto.repo.*`: records and blobs of one repo.

use std::collections::HashSet;
use std::sync::Arc;

use axum::body::Body;
use axum::http::Response;
use engine::repo::json::FromJson;
use engine::repo::{AtIdentifier, Cid, Did, Nsid, RecordKey, RepoPath};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use super::auth::{caller, caller_or_service, writer};
use super::error::{XrpcError, XrpcResult};
use super::request::{
    JSON_LIMIT, RECORD_JSON_LIMIT, Request, blocking, empty, json as json_answer, json_bytes,
};
use crate::app::App;
use crate::auth::methods::UPLOAD_BLOB;
use crate::auth::permission::Access;
use crate::limits::Write as Counted;
use crate::proxy::strangers;
use crate::service::accounts::Account;
use crate::service::moderation::Subject;
use crate::service::repos::prepare::{PreparedRecord, Validate, Validation, prepare, prepare_profile};
use crate::service::repos::{
    CommitMeta, MAX_WRITES, RecordSwap, Write, WriteError, WriteResult, Written, read,
};

/// Where pictures may be of a form that elsewhere is not taken any more.
const PROFILE: &str = "app.bsky.actor.profile";

/// `createRecord`.
pub async fn create_record(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Input {
        repo: AtIdentifier,
        collection: Nsid,
        rkey: Option<RecordKey>,
        validate: Option<bool>,
        record: FromJson,
        swap_commit: Option<Cid>,
    }
    let claims = caller(&app, &request.headers, Access::Standard)?;
    let input: Input = request.json(RECORD_JSON_LIMIT).await?;
    let did = own_repo(&app, &input.repo, &claims.did).await?;
    request.metered.writes(&did, [Counted::Create]).await?;
    let path = new_path(&app, input.collection, input.rkey);
    let record = prepare(&path, input.record, Validate::from(input.validate))?;
    let (cid, validation) = (record.cid, record.validation);
    // As with the reference, whoever wants no validation gets no tidying either.
    let only = record.subject.is_some() && validation != Validation::Skipped;
    let write = if only { Write::CreateOnly } else { Write::Create };
    let writes = vec![write(path.clone(), record)];
    refuse_hidden(&app, &did, &writes).await?;
    let written = app.repos.write(&did, writes, input.swap_commit).await?;
    json_answer(&receipt(&did, &path, cid, written.commit.as_ref(), validation))
}

/// `putRecord`.
pub async fn put_record(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Input {
        repo: AtIdentifier,
        collection: Nsid,
        rkey: RecordKey,
        validate: Option<bool>,
        record: FromJson,
        #[serde(default, deserialize_with = "given")]
        swap_record: Option<Option<Cid>>,
        swap_commit: Option<Cid>,
    }
    let claims = caller(&app, &request.headers, Access::Standard)?;
    let input: Input = request.json(RECORD_JSON_LIMIT).await?;
    let did = own_repo(&app, &input.repo, &claims.did).await?;
    request.metered.writes(&did, [Counted::Update]).await?;
    let path = RepoPath::new(input.collection, input.rkey);
    let validate = Validate::from(input.validate);
    let record = if path.collection.as_str() == PROFILE {
        replace_profile(&app, &did, &path, input.record, validate)?
    } else {
        prepare(&path, input.record, validate)?
    };
    let swap = match input.swap_record {
        None => RecordSwap::Any,
        Some(None) => RecordSwap::Absent,
        Some(Some(cid)) => RecordSwap::Is(cid),
    };
    let (cid, validation) = (record.cid, record.validation);
    let writes = vec![Write::Put(path.clone(), record, swap)];
    refuse_hidden(&app, &did, &writes).await?;
    let written = app.repos.write(&did, writes, input.swap_commit).await?;
    json_answer(&receipt(&did, &path, cid, written.commit.as_ref(), validation))
}

/// A profile, which may take the place of one from before blobs had a type.
fn replace_profile(
    app: &App,
    did: &Did,
    path: &RepoPath,
    record: FromJson,
    validate: Validate,
) -> XrpcResult<PreparedRecord> {
    let reader = app.engine.reader().map_err(XrpcError::internal)?;
    if reader.record(did, path).map_err(XrpcError::internal)?.is_none() {
        return Ok(prepare(path, record, validate)?);
    }
    let size_of = |cid: &Cid| {
        let row = reader.blob(did, cid);
        let row = row.map_err(|error| WriteError::Internal(error.to_string()))?;
        Ok(row.map(|row| row.size))
    };
    Ok(prepare_profile(path, record, validate, size_of)?)
}

/// `deleteRecord`.
pub async fn delete_record(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Input {
        repo: AtIdentifier,
        collection: Nsid,
        rkey: RecordKey,
        swap_record: Option<Cid>,
        swap_commit: Option<Cid>,
    }
    let claims = caller(&app, &request.headers, Access::Standard)?;
    let input: Input = request.json(JSON_LIMIT).await?;
    let did = own_repo(&app, &input.repo, &claims.did).await?;
    request.metered.writes(&did, [Counted::Delete]).await?;
    let path = RepoPath::new(input.collection, input.rkey);
    let swap = input.swap_record.map_or(RecordSwap::Any, RecordSwap::Is);
    let written = app
        .repos
        .write(&did, vec![Write::DeleteIfPresent(path, swap)], input.swap_commit)
        .await?;
    json_answer(
        &written
            .commit
            .map_or_else(|| json!({}), |commit| json!({ "commit": commit_json(&commit) })),
    )
}

/// `applyWrites`; also for the administrator, who brings back what was there at an earlier moment.
pub async fn apply_writes(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Input {
        repo: AtIdentifier,
        validate: Option<bool>,
        writes: Vec<InputWrite>,
        swap_commit: Option<Cid>,
    }
    /// Not an enum by `$type`: that would hold every record twice.
    #[derive(Deserialize)]
    struct InputWrite {
        #[serde(rename = "$type")]
        action: Action,
        collection: Nsid,
        rkey: Option<RecordKey>,
        value: Option<FromJson>,
    }
    #[derive(Deserialize)]
    enum Action {
        #[serde(rename = "com.atproto.repo.applyWrites#create")]
        Create,
        #[serde(rename = "com.atproto.repo.applyWrites#update")]
        Update,
        #[serde(rename = "com.atproto.repo.applyWrites#delete")]
        Delete,
    }
    let caller = writer(&app, &request.headers, Access::Standard)?;
    let input: Input = request.json(RECORD_JSON_LIMIT).await?;
    let did = repo_of(&app, &input.repo, caller.as_ref()).await?;
    if input.writes.len() > MAX_WRITES {
        return Err(XrpcError::invalid(format!("Too many writes. Max: {MAX_WRITES}")));
    }
    let counted = input.writes.iter().map(|write| match write.action {
        Action::Create => Counted::Create,
        Action::Update => Counted::Update,
        Action::Delete => Counted::Delete,
    });
    // What the administrator brings back is not the account's doing.
    if caller.is_some() {
        request.metered.writes(&did, counted).await?;
    }
    let validate = Validate::from(input.validate);
    let mut writes = Vec::with_capacity(input.writes.len());
    let mut asked = Vec::with_capacity(input.writes.len());
    for write in input.writes {
        let InputWrite {
            action,
            collection,
            rkey,
            value,
        } = write;
        let missing =
            |field: &str| XrpcError::invalid(format!("Invalid request body: missing field `{field}`"));
        if rkey.is_none() && !matches!(action, Action::Create) {
            return Err(missing("rkey"));
        }
        let path = new_path(&app, collection, rkey);
        let record =
            || prepare(&path, value.ok_or_else(|| missing("value"))?, validate).map_err(XrpcError::from);
        let (write, validation) = match action {
            Action::Create => {
                let record = record()?;
                let validation = record.validation;
                (Write::Create(path.clone(), record), validation)
            }
            Action::Update => {
                let record = record()?;
                let validation = record.validation;
                (Write::Update(path.clone(), record), validation)
            }
            Action::Delete => (Write::Delete(path.clone()), Validation::Skipped),
        };
        asked.push((path, validation));
        writes.push(write);
    }
    refuse_hidden(&app, &did, &writes).await?;
    let written = app.repos.write(&did, writes, input.swap_commit).await?;
    json_answer(&apply_writes_answer(&did, &asked, &written))
}

fn apply_writes_answer(did: &Did, asked: &[(RepoPath, Validation)], written: &Written) -> Value {
    let results: Vec<Value> = asked
        .iter()
        .zip(&written.results)
        .map(|((path, validation), result)| {
            let (kind, cid) = match result {
                WriteResult::Created(cid) => ("createResult", Some(cid)),
                WriteResult::Updated(cid) => ("updateResult", Some(cid)),
                WriteResult::Deleted | WriteResult::Unchanged => ("deleteResult", None),
            };
            let mut object = Map::new();
            object.insert(
                "$type".into(),
                format!("com.atproto.repo.applyWrites#{kind}").into(),
            );
            if let Some(cid) = cid {
                object.insert("uri".into(), uri(did, path).into());
                object.insert("cid".into(), cid.to_string().into());
                if let Some(status) = validation.status() {
                    object.insert("validationStatus".into(), status.into());
                }
            }
            Value::Object(object)
        })
        .collect();
    let mut answer = Map::new();
    if let Some(commit) = &written.commit {
        answer.insert("commit".into(), commit_json(commit));
    }
    answer.insert("results".into(), results.into());
    Value::Object(answer)
}

/// `getRecord`. Those of repos that are not here, or no longer, the AppView has.
pub async fn get_record(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let params = &request.params;
    let repo: AtIdentifier = params.parsed("repo")?;
    let collection: Nsid = params.parsed("collection")?;
    let rkey: RecordKey = params.parsed("rkey")?;
    let cid: Option<Cid> = params.parsed_optional("cid")?;
    request.no_body().await?;
    let path = RepoPath::new(collection, rkey);
    let missing = || {
        XrpcError::bad(
            "RecordNotFound",
            format!("Could not locate record: at://{repo}/{path}"),
        )
    };
    let account = app.accounts.find(&repo).await?;
    let Some(account) = account.filter(Account::is_active) else {
        return strangers::record(&app, &request.params)
            .await?
            .ok_or_else(missing);
    };
    if account.hides_some {
        let subject = Subject::Record(path.clone());
        if app
            .moderation
            .takedown_of(&account.did, &subject)
            .await?
            .is_some()
        {
            return Err(missing());
        }
    }
    let found = read::record(&app.engine, &account.did, &path)?;
    let record = found
        .filter(|record| cid.is_none_or(|wanted| wanted == record.cid))
        .ok_or_else(missing)?;
    let mut out = Vec::with_capacity(record.block.len() + record.block.len() / 4 + 256);
    let (collection, rkey) = (&path.collection, &path.rkey);
    write_record_json(
        &account.did,
        collection,
        rkey,
        record.cid,
        &record.block,
        &mut out,
    )?;
    Ok(json_bytes(out))
}

/// `listRecords`.
pub async fn list_records(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let params = &request.params;
    let repo: AtIdentifier = params.parsed("repo")?;
    let collection: Nsid = params.parsed("collection")?;
    let limit = params.integer("limit", 1..=100, 50)?;
    let cursor: Option<RecordKey> = params.parsed_optional("cursor")?;
    let reverse = params.flag("reverse")?;
    request.no_body().await?;
    let account = app
        .accounts
        .find(&repo)
        .await?
        .filter(|account| account.is_active())
        .ok_or_else(|| XrpcError::invalid(format!("Could not find repo: {repo}")))?;
    let hidden = if account.hides_some {
        app.moderation.hidden_records(&account.did, &collection).await?
    } else {
        HashSet::new()
    };
    let did = account.did;
    blocking(move || {
        let page = read::Page {
            cursor: cursor.as_ref(),
            reverse,
            limit,
            hidden: &hidden,
        };
        let records = read::list(&app.engine, &did, &collection, &page)?;
        let blocks: usize = records.iter().map(|(_, record)| record.block.len() + 192).sum();
        let mut out = Vec::with_capacity(64 + blocks + blocks / 4);
        out.extend_from_slice(br#"{"records":["#);
        for (at, (rkey, record)) in records.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            write_record_json(&did, &collection, rkey, record.cid, &record.block, &mut out)?;
        }
        out.push(b']');
        if let Some((rkey, _)) = records.last() {
            out.extend_from_slice(br#","cursor":"#);
            out.extend(serde_json::to_vec(rkey.as_str()).map_err(XrpcError::internal)?);
        }
        out.push(b'}');
        Ok(json_bytes(out))
    })
    .await
}

/// `describeRepo`.
pub async fn describe_repo(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let repo: AtIdentifier = request.params.parsed("repo")?;
    request.no_body().await?;
    let account = app
        .accounts
        .find(&repo)
        .await?
        .ok_or_else(|| XrpcError::bad("RepoNotFound", format!("Could not find repo: {repo}")))?;
    account.check_available()?;
    let document = app
        .names
        .document(&account.did, false)
        .await
        .map_err(|_| XrpcError::invalid(format!("Could not resolve DID: {}", account.did)))?;
    let handle = account.handle_text();
    let handle_is_correct = document.handle().is_some_and(|named| named.as_str() == handle);
    let (engine, did) = (app.engine.clone(), account.did.clone());
    let collections = blocking(move || Ok(read::collections(&engine, &did)?)).await?;
    json_answer(&json!({
        "handle": handle,
        "did": account.did,
        "didDoc": document.json(),
        "collections": collections,
        "handleIsCorrect": handle_is_correct,
    }))
}

/// `uploadBlob`: by the account, or by a service that has a token of the account's for it.
pub async fn upload_blob(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let (did, used) = caller_or_service(&app, &request.headers, Access::Standard, UPLOAD_BLOB).await?;
    let account = app.accounts.by_did(&did).await?.ok_or_else(|| {
        XrpcError::new(
            axum::http::StatusCode::FORBIDDEN,
            "AccountNotFound",
            "Account not found",
        )
    })?;
    account.check_not_taken_down()?;
    request.identity_encoding("UnsupportedMediaType")?;
    let declared = request
        .content_type()
        .ok_or_else(|| XrpcError::invalid("Request encoding (Content-Type) required but not provided"))?;
    let length = request.content_length();
    let body = std::mem::replace(&mut request.body, Body::empty());
    let blob = app
        .blobs
        .upload(&account.did, &declared, length, body.into_data_stream())
        .await?;
    // What it is, is known only now. Nothing of it is new: a hidden blob was here before.
    if account.hides_some
        && app
            .moderation
            .hidden_blob(&account.did, vec![blob.cid])
            .await?
            .is_some()
    {
        return Err(XrpcError::invalid("Blob has been takendown, cannot re-upload"));
    }
    if let Some(used) = used {
        used.keep();
    }
    json_answer(&json!({ "blob": {
        "$type": "blob",
        "ref": { "$link": blob.cid },
        "mimeType": blob.mime,
        "size": blob.size,
    }}))
}

/// `listMissingBlobs`: what records reference and nobody has uploaded yet.
pub async fn list_missing_blobs(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let limit = request.params.integer("limit", 1..=1000, 500)?;
    let cursor: Option<Cid> = request.params.parsed_optional("cursor")?;
    let did = caller(&app, &request.headers, Access::Standard)?.did;
    request.no_body().await?;
    let (blobs, of) = (app.blobs.clone(), did.clone());
    let missing = blocking(move || Ok(blobs.missing(&of, cursor, limit)?)).await?;
    let mut answer = Map::new();
    if let Some(last) = missing.last() {
        answer.insert("cursor".into(), last.cid.to_string().into());
    }
    let rows = missing
        .iter()
        .map(|blob| json!({ "cid": blob.cid.to_string(), "recordUri": uri(&did, &blob.path) }));
    answer.insert("blobs".into(), rows.collect());
    json_answer(&Value::Object(answer))
}

/// `importRepo`: active and deactivated accounts alike, as in the reference PDS.
pub async fn import_repo(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let claims = caller(&app, &request.headers, Access::FullOrTakendown)?;
    let account = app.accounts.by_did(&claims.did).await?.ok_or_else(|| {
        XrpcError::new(
            axum::http::StatusCode::FORBIDDEN,
            "AccountNotFound",
            "Account not found",
        )
    })?;
    request.identity_encoding("UnsupportedMediaType")?;
    match request.content_type().as_deref() {
        Some("application/vnd.ipld.car") => {}
        Some(other) => {
            return Err(XrpcError::invalid(format!(
                "Wrong request encoding (Content-Type): {other}"
            )));
        }
        None => {
            return Err(XrpcError::invalid(
                "Request encoding (Content-Type) required but not provided",
            ));
        }
    }
    let length = request.content_length();
    let body = std::mem::replace(&mut request.body, Body::empty());
    app.imports
        .import(&account.did, account.is_active(), length, body.into_data_stream())
        .await?;
    Ok(empty())
}

/// The repo that the caller named, which must be its own and active.
async fn own_repo(app: &App, repo: &AtIdentifier, caller: &Did) -> XrpcResult<Did> {
    repo_of(app, repo, Some(caller)).await
}

/// The repo, which is the caller's own; without a caller, anybody's. Nobody writes to one that is not active.
async fn repo_of(app: &App, repo: &AtIdentifier, caller: Option<&Did>) -> XrpcResult<Did> {
    let account = app.accounts.find(repo).await?.ok_or_else(|| {
        XrpcError::new(
            axum::http::StatusCode::FORBIDDEN,
            "AccountNotFound",
            "Account not found",
        )
    })?;
    account.check_may_write()?;
    if caller.is_some_and(|caller| account.did != *caller) {
        return Err(XrpcError::unauthorized(
            "AuthenticationRequired",
            "Authentication Required",
        ));
    }
    Ok(account.did)
}

/// Refuses references to blobs that moderators have hidden: to a writer they are not there.
async fn refuse_hidden(app: &App, did: &Did, writes: &[Write]) -> XrpcResult<()> {
    let blobs: Vec<Cid> = writes.iter().flat_map(Write::blobs).collect();
    if blobs.is_empty() || !hides_some(app, did).await? {
        return Ok(());
    }
    match app.moderation.hidden_blob(did, blobs).await? {
        Some(cid) => Err(XrpcError::bad(
            "BlobNotFound",
            format!("Could not find blob: {cid}"),
        )),
        None => Ok(()),
    }
}

async fn hides_some(app: &App, did: &Did) -> XrpcResult<bool> {
    let account = app.accounts.by_did(did).await?;
    Ok(account.is_some_and(|account| account.hides_some))
}

fn new_path(app: &App, collection: Nsid, rkey: Option<RecordKey>) -> RepoPath {
    RepoPath::new(
        collection,
        rkey.unwrap_or_else(|| app.repos.next_tid().to_record_key()),
    )
}

fn uri(did: &Did, path: &RepoPath) -> String {
    format!("at://{did}/{path}")
}

fn commit_json(commit: &CommitMeta) -> Value {
    json!({ "cid": commit.cid, "rev": commit.rev.to_string() })
}

fn receipt(
    did: &Did,
    path: &RepoPath,
    cid: Cid,
    commit: Option<&CommitMeta>,
    validation: Validation,
) -> Value {
    let mut answer = Map::new();
    answer.insert("uri".into(), uri(did, path).into());
    answer.insert("cid".into(), cid.to_string().into());
    if let Some(commit) = commit {
        answer.insert("commit".into(), commit_json(commit));
    }
    if let Some(status) = validation.status() {
        answer.insert("validationStatus".into(), status.into());
    }
    Value::Object(answer)
}

/// Appends `{uri, cid, value}` with the record transcoded in one pass.
fn write_record_json(
    did: &Did,
    collection: &Nsid,
    rkey: &RecordKey,
    cid: Cid,
    block: &[u8],
    out: &mut Vec<u8>,
) -> XrpcResult<()> {
    // No character of a DID, an NSID, a record key or a CID needs an escape in JSON.
    out.extend_from_slice(br#"{"uri":"at://"#);
    for (part, end) in [
        (did.as_str(), b"/"),
        (collection.as_str(), b"/"),
        (rkey.as_str(), b"\""),
    ] {
        out.extend_from_slice(part.as_bytes());
        out.extend_from_slice(end);
    }
    out.extend_from_slice(br#","cid":""#);
    out.extend_from_slice(&cid.to_text());
    out.extend_from_slice(br#"","value":"#);
    engine::repo::json::cbor_to_json(block, out).map_err(XrpcError::internal)?;
    out.push(b'}');
    Ok(())
}

/// Tells an explicit `null` from an absent field.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<Cid>>, D::Error> {
    Option::<Cid>::deserialize(deserializer).map(Some)
}

impl From<WriteError> for XrpcError {
    fn from(error: WriteError) -> XrpcError {
        match error {
            WriteError::RepoNotFound(_) => XrpcError::bad("RepoNotFound", error.to_string()),
            WriteError::InvalidRecord(message) | WriteError::InvalidRequest(message) => {
                XrpcError::invalid(message)
            }
            WriteError::CommitSwap { .. } | WriteError::RecordSwap { .. } => {
                XrpcError::bad("InvalidSwap", error.to_string())
            }
            WriteError::Blob { name, message } => XrpcError::bad(name, message),
            WriteError::Busy => XrpcError::unavailable(error.to_string(), 1),
            WriteError::Elsewhere => XrpcError::unavailable(error.to_string(), 5),
            WriteError::Closed(_) | WriteError::Unconfirmed(_) => {
                XrpcError::unavailable(error.to_string(), 5)
            }
            // The cause is in the log already, with what the operator can do.
            WriteError::Damaged(_) => XrpcError::new(
                axum::http::StatusCode::INTERNAL_SERVER_ERROR,
                "RepoDamaged",
                error.to_string(),
            ),
            WriteError::Internal(cause) => XrpcError::internal(cause),
        }
    }
}
