//! The scenarios of small reads and of media, over the least of clients.

use std::sync::Arc;

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::accounts::Account;
use crate::api::{self, Api, ApiError};
use crate::args::{Blobs, GetRecord};
use crate::load::closed_loop_of;
use crate::raw::{Asked, Asking, Connection};
use crate::records::{self, COLLECTION, Numbers};
use crate::report::Outcome;
use crate::requests::{open, shared_accounts};

/// Records on a page of `list-records`, which is the most that the protocol allows.
const PAGE: u64 = 100;

/// `get-record`.
///
/// # Errors
/// The repos cannot be filled, or the load cannot run at all; refused requests are counted instead.
pub async fn get_record(args: &GetRecord) -> Result<Outcome> {
    random_reads("get-record", args, |did, numbers, records| {
        let key = records::key(numbers.below(records));
        format!("/xrpc/com.atproto.repo.getRecord?repo={did}&collection={COLLECTION}&rkey={key}")
    })
    .await
}

/// `list-records`.
///
/// # Errors
/// As [`get_record`].
pub async fn list_records(args: &GetRecord) -> Result<Outcome> {
    random_reads("list-records", args, |did, numbers, records| {
        // A page ends below its cursor, so that all pages are full.
        let from = PAGE.min(records - 1);
        let cursor = records::key(from + numbers.below(records - from));
        format!(
            "/xrpc/com.atproto.repo.listRecords?repo={did}&collection={COLLECTION}&limit={PAGE}&cursor={cursor}"
        )
    })
    .await
}

/// `sync-get-record`.
///
/// # Errors
/// As [`get_record`].
pub async fn sync_get_record(args: &GetRecord) -> Result<Outcome> {
    random_reads("sync-get-record", args, |did, numbers, records| {
        let key = records::key(numbers.below(records));
        format!("/xrpc/com.atproto.sync.getRecord?did={did}&collection={COLLECTION}&rkey={key}")
    })
    .await
}

async fn random_reads(
    scenario: &'static str,
    args: &GetRecord,
    target: fn(&str, &mut Numbers, u64) -> String,
) -> Result<Outcome> {
    let (api, mut sessions) = open(&args.common, args.pace.connections)?;
    let accounts = shared_accounts(&api, &args.common, &mut sessions, args.repos).await?;
    let parallel = usize::try_from(args.pace.connections.min(16)).unwrap_or(1);
    stream::iter(&accounts)
        .map(|account| records::fill(&api, account, args.records))
        .buffer_unordered(parallel)
        .try_for_each(|_had| std::future::ready(Ok(())))
        .await?;
    let dids: Arc<[String]> = accounts.iter().map(|account| account.did().to_owned()).collect();
    let count = args.records;
    let (tally, usage) = closed_loop_of(args.pace, args.common.server_pid, || {
        let dids = dids.clone();
        Asking::new(api.base(), move |n| {
            let mut numbers = Numbers::new(n);
            let at = usize::try_from(numbers.below(dids.len() as u64)).unwrap_or(0);
            let did = dids.get(at).map(String::as_str).unwrap_or_default();
            Asked {
                target: target(did, &mut numbers, count),
                ..Asked::default()
            }
        })
    })
    .await?;
    sessions.save(&accounts)?;
    Ok(Outcome {
        scenario,
        parameters: json!({
            "repos": args.repos,
            "records": args.records,
            "connections": args.pace.connections,
            "warmup_seconds": args.pace.warmup_seconds,
        }),
        elapsed: args.pace.measured(),
        tally,
        usage,
        extra: Map::new(),
    })
}

/// `upload-blob`: each upload is other media, as its first bytes differ.
///
/// # Errors
/// The account cannot be prepared, or the load cannot run at all; refused requests are counted instead.
pub async fn upload_blob(args: &Blobs) -> Result<Outcome> {
    let (api, mut sessions) = open(&args.common, args.pace.connections)?;
    let accounts = shared_accounts(&api, &args.common, &mut sessions, 1).await?;
    let account = accounts.first().context("no account")?.clone();
    let (headers, body) = (upload_headers(&account), media(args.bytes));
    let run = crate::now_micros();
    let (mut tally, usage) = closed_loop_of(args.pace, args.common.server_pid, || {
        let (headers, body) = (headers.clone(), body.clone());
        Asking::new(api.base(), move |n| upload(&headers, &body, run, n))
    })
    .await?;
    // What counts here is what went out, not the few words that came back.
    tally.bytes = tally.requests * args.bytes;
    sessions.save(&accounts)?;
    Ok(outcome("upload-blob", args, tally, usage))
}

/// `get-blob`.
///
/// # Errors
/// The account or its blob cannot be prepared, or the load cannot run at all; refused requests are counted instead.
pub async fn get_blob(args: &Blobs) -> Result<Outcome> {
    let (api, mut sessions) = open(&args.common, args.pace.connections)?;
    let accounts = shared_accounts(&api, &args.common, &mut sessions, 1).await?;
    let account = accounts.first().context("no account")?.clone();
    let cid = referenced_blob(&api, &account, args.bytes).await?;
    let asked = Asked {
        target: format!("/xrpc/com.atproto.sync.getBlob?did={}&cid={cid}", account.did()),
        ..Asked::default()
    };
    let (tally, usage) = closed_loop_of(args.pace, args.common.server_pid, || {
        let asked = asked.clone();
        Asking::new(api.base(), move |_| asked.clone())
    })
    .await?;
    sessions.save(&accounts)?;
    Ok(outcome("get-blob", args, tally, usage))
}

/// Uploads a blob of so many bytes, has a record reference it, and gives its CID.
async fn referenced_blob(api: &Api, account: &Account, bytes: u64) -> Result<String> {
    #[derive(Deserialize)]
    struct Uploaded {
        blob: Value,
    }
    // Through the plain client for the answer, after the raw one has shown that the upload works.
    let asked = upload(&upload_headers(account), &media(bytes), 0, 0);
    Connection::new(api.base())?.send(&asked).await?;
    let whole = [&asked.stamp[..], asked.body.as_deref().unwrap_or_default()].concat();
    let answer = api.upload(&whole, MEDIA_TYPE, &account.access()).await?;
    let uploaded: Uploaded = api::json(&answer)?;
    let cid = uploaded
        .blob
        .pointer("/ref/$link")
        .and_then(Value::as_str)
        .ok_or_else(|| ApiError::Unexpected("a blob without a link".to_owned()))?
        .to_owned();
    let mut record = records::post(0);
    if let Some(fields) = record.as_object_mut() {
        fields.insert("media".to_owned(), uploaded.blob);
    }
    let body = json!({
        "repo": account.did(),
        "collection": COLLECTION,
        "rkey": format!("media-{bytes}"),
        // Posts have other keys.
        "validate": false,
        "record": record,
    });
    account
        .procedure(api, "com.atproto.repo.putRecord", body.to_string().as_bytes())
        .await
        .context("a record that references the blob")?;
    Ok(cid)
}

/// A type that no server finds in the bytes, so that it keeps what is declared.
const MEDIA_TYPE: &str = "application/octet-stream";

fn upload_headers(account: &Account) -> String {
    format!(
        "authorization: Bearer {}\r\ncontent-type: {MEDIA_TYPE}\r\n",
        account.access()
    )
}

fn upload(headers: &str, body: &Arc<[u8]>, run: u64, n: u64) -> Asked {
    Asked {
        target: "/xrpc/com.atproto.repo.uploadBlob".to_owned(),
        headers: headers.to_owned(),
        body: Some(body.clone()),
        stamp: [run.to_be_bytes(), n.to_be_bytes()].concat(),
    }
}

/// Bytes that do not compress, less the sixteen that tell uploads apart.
fn media(bytes: u64) -> Arc<[u8]> {
    let mut numbers = Numbers::new(bytes);
    let length = usize::try_from(bytes.saturating_sub(16)).unwrap_or(0);
    let mut media = Vec::with_capacity(length + 8);
    while media.len() < length {
        media.extend_from_slice(&numbers.next().to_be_bytes());
    }
    media.truncate(length);
    media.into()
}

fn outcome(
    scenario: &'static str,
    args: &Blobs,
    tally: crate::report::Tally,
    usage: Option<crate::report::Usage>,
) -> Outcome {
    Outcome {
        scenario,
        parameters: json!({
            "bytes": args.bytes,
            "connections": args.pace.connections,
            "warmup_seconds": args.pace.warmup_seconds,
        }),
        elapsed: args.pace.measured(),
        tally,
        usage,
        extra: Map::new(),
    }
}
