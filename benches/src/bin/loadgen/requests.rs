//! The scenarios of plain requests: createRecord, getRecord, getRepo, and filling repos.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Map, json};

use crate::accounts::{Account, Sessions, prepare};
use crate::api::{Api, ApiError, patiently};
use crate::args::{ApplyWrites, Common, CreateAccount, CreateRecord, Fill, GetRepo};
use crate::histogram::Histogram;
use crate::load::closed_loop;
use crate::records;
use crate::report::{Outcome, Tally, Usage, millis, per_second, sample, sample_after};

/// `create-record`.
///
/// # Errors
/// The accounts cannot be prepared, or the load cannot run at all; refused requests are counted instead.
pub async fn create_record(args: &CreateRecord) -> Result<Outcome> {
    let (api, mut sessions) = open(&args.common, args.pace.connections)?;
    let accounts = shared_accounts(&api, &args.common, &mut sessions, args.repos()).await?;
    // Where the posts start, so that two runs seldom write the same one to the same repo.
    let first = (crate::now_micros() / 1_000_000).saturating_sub(1_700_000_000);
    let (load_api, load_accounts) = (api.clone(), Arc::new(accounts.clone()));
    let (tally, usage) = closed_loop(args.pace, args.common.server_pid, move |n| {
        let (api, accounts) = (load_api.clone(), load_accounts.clone());
        async move {
            let account = turn(&accounts, n)?;
            let body = records::create_body(account.did(), first + n, None);
            let answer = account
                .procedure(&api, "com.atproto.repo.createRecord", &body)
                .await?;
            Ok(answer.len() as u64)
        }
    })
    .await?;
    sessions.save(&accounts)?;
    Ok(Outcome {
        scenario: "create-record",
        parameters: json!({
            "repos": args.repos(),
            "connections": args.pace.connections,
            "warmup_seconds": args.pace.warmup_seconds,
        }),
        elapsed: args.pace.measured(),
        tally,
        usage,
        extra: Map::new(),
    })
}

/// `apply-writes`. A request counts once; the records are told apart.
///
/// # Errors
/// As [`create_record`].
pub async fn apply_writes(args: &ApplyWrites) -> Result<Outcome> {
    let (api, mut sessions) = open(&args.common, args.pace.connections)?;
    let accounts = shared_accounts(&api, &args.common, &mut sessions, args.repos).await?;
    let first = (crate::now_micros() / 1_000_000).saturating_sub(1_700_000_000);
    let batch = u64::from(args.batch);
    let (load_api, load_accounts) = (api.clone(), Arc::new(accounts.clone()));
    let (tally, usage) = closed_loop(args.pace, args.common.server_pid, move |n| {
        let (api, accounts) = (load_api.clone(), load_accounts.clone());
        async move {
            let account = turn(&accounts, n)?;
            let from = first + n * batch;
            let body = records::new_posts_body(account.did(), from..from + batch);
            let answer = account
                .procedure(&api, "com.atproto.repo.applyWrites", &body)
                .await?;
            Ok(answer.len() as u64)
        }
    })
    .await?;
    sessions.save(&accounts)?;
    let mut extra = Map::new();
    let records = tally.requests * batch;
    extra.insert(
        "records_per_second".into(),
        per_second(records, args.pace.measured()),
    );
    Ok(Outcome {
        scenario: "apply-writes",
        parameters: json!({
            "repos": args.repos,
            "batch": args.batch,
            "connections": args.pace.connections,
            "warmup_seconds": args.pace.warmup_seconds,
        }),
        elapsed: args.pace.measured(),
        tally,
        usage,
        extra,
    })
}

/// `create-account`. The accounts are new in every run and their sessions are not kept.
///
/// # Errors
/// The load cannot run at all; refused requests are counted instead.
pub async fn create_account(args: &CreateAccount) -> Result<Outcome> {
    let api = Api::new(&args.common.url, args.pace.connections)?;
    // Different in every run: milliseconds, in base 36 so that the label stays short.
    let run = base36(crate::now_micros() / 1000);
    let (domain, password) = (args.common.handle_domain.clone(), args.common.password.clone());
    let (invite, load_api) = (args.common.invite_code.clone(), api.clone());
    let (tally, usage) = closed_loop(args.pace, args.common.server_pid, move |n| {
        let label = format!("n{run}-{}", base36(n));
        let mut create = json!({
            "handle": format!("{label}.{domain}"),
            "password": password,
            "email": format!("{label}@example.com"),
        });
        if let (Some(code), Some(fields)) = (&invite, create.as_object_mut()) {
            fields.insert("inviteCode".to_owned(), code.as_str().into());
        }
        let (api, body) = (load_api.clone(), create.to_string());
        async move {
            let answer = api
                .procedure("com.atproto.server.createAccount", Some(body.as_bytes()), None)
                .await?;
            Ok(answer.len() as u64)
        }
    })
    .await?;
    Ok(Outcome {
        scenario: "create-account",
        parameters: json!({
            "connections": args.pace.connections,
            "warmup_seconds": args.pace.warmup_seconds,
        }),
        elapsed: args.pace.measured(),
        tally,
        usage,
        extra: Map::new(),
    })
}

/// A number in letters and digits.
fn base36(mut n: u64) -> String {
    let mut digits = Vec::new();
    loop {
        let digit = u32::try_from(n % 36).unwrap_or(0);
        digits.push(char::from_digit(digit, 36).unwrap_or('0'));
        n /= 36;
        if n == 0 {
            return digits.into_iter().rev().collect();
        }
    }
}

/// `get-repo`.
///
/// # Errors
/// The repo cannot be filled; failed downloads are counted instead.
pub async fn get_repo(args: &GetRepo) -> Result<Outcome> {
    let (api, mut sessions) = open(&args.common, args.connections)?;
    let handle = args.common.repo_handle(args.records);
    let accounts = prepare(&api, &args.common, &mut sessions, &[handle]).await?;
    let account = accounts.first().context("no account")?;
    let filling = Instant::now();
    let had = records::fill(&api, account, args.records).await?;
    let fill_seconds = filling.elapsed().as_secs();
    sessions.save(&accounts)?;

    let before = sample(args.common.server_pid)?;
    let started = Instant::now();
    let mut downloads = stream::iter(0..args.downloads)
        .map(|_| download(&api, account.did()))
        .buffer_unordered(usize::try_from(args.connections).unwrap_or(1));
    let mut tally = Tally::default();
    let mut first_byte = Histogram::default();
    let mut size = None;
    while let Some(outcome) = downloads.next().await {
        match outcome {
            Ok(download) if size.is_some_and(|size| size != download.bytes) => tally.failure(format!(
                "a download of {} bytes after one of {}",
                download.bytes,
                size.unwrap_or_default()
            )),
            Ok(download) => {
                size = Some(download.bytes);
                first_byte.record(download.first_byte);
                tally.success(download.took, download.bytes);
            }
            Err(error) => tally.failure(error),
        }
    }
    let elapsed = started.elapsed();
    let usage = Usage::between(before, sample_after(args.common.server_pid));
    let mut extra = Map::new();
    extra.insert("repo_bytes".into(), size.into());
    extra.insert("first_byte_p50_ms".into(), millis(first_byte.quantile(0.5)));
    extra.insert("first_byte_max_ms".into(), millis(first_byte.max()));
    extra.insert("records_filled".into(), (args.records - had).into());
    extra.insert("fill_seconds".into(), fill_seconds.into());
    Ok(Outcome {
        scenario: "get-repo",
        parameters: json!({ "records": args.records, "downloads": args.downloads, "connections": args.connections }),
        elapsed,
        tally,
        usage,
        extra,
    })
}

struct Download {
    took: Duration,
    first_byte: Duration,
    bytes: u64,
}

async fn download(api: &Api, did: &str) -> Result<Download, ApiError> {
    let started = Instant::now();
    let mut response = api.stream("com.atproto.sync.getRepo", &[("did", did)]).await?;
    let mut first_byte = None;
    let mut bytes = 0;
    while let Some(chunk) = response.chunk().await? {
        first_byte.get_or_insert_with(|| started.elapsed());
        bytes += chunk.len() as u64;
    }
    Ok(Download {
        took: started.elapsed(),
        first_byte: first_byte.ok_or_else(|| ApiError::Unexpected("an empty repo".to_owned()))?,
        bytes,
    })
}

/// `fill`.
///
/// # Errors
/// The accounts cannot be prepared, or the server does not say what their repos hold; refused batches are counted
/// instead, and end their repo's turn.
pub async fn fill(args: &Fill) -> Result<Outcome> {
    let (api, mut sessions) = open(&args.common, args.connections)?;
    let accounts = shared_accounts(&api, &args.common, &mut sessions, args.repos).await?;
    let parallel = usize::try_from(args.connections).unwrap_or(1);
    let had: Vec<u64> = stream::iter(&accounts)
        .map(|account| records::filled(&api, account.did(), args.records))
        .buffered(parallel)
        .try_collect()
        .await
        .context("what the repos hold")?;

    let before = sample(args.common.server_pid)?;
    let started = Instant::now();
    let mut turns = stream::iter(accounts.iter().zip(&had))
        .map(|(account, had)| fill_one(&api, account, *had, args.records))
        .buffer_unordered(parallel);
    let (mut tally, mut written) = (Tally::default(), 0);
    while let Some((batches, records)) = turns.next().await {
        tally.merge(batches);
        written += records;
    }
    drop(turns);
    let elapsed = started.elapsed();
    let usage = Usage::between(before, sample_after(args.common.server_pid));
    sessions.save(&accounts)?;
    let mut extra = Map::new();
    extra.insert("records_filled".into(), written.into());
    extra.insert("records_found".into(), had.iter().sum::<u64>().into());
    extra.insert("records_per_second".into(), per_second(written, elapsed));
    Ok(Outcome {
        scenario: "fill",
        parameters: json!({ "repos": args.repos, "records": args.records, "connections": args.connections }),
        elapsed,
        tally,
        usage,
        extra,
    })
}

/// Fills one repo, counting batches; the second part is how many records were written.
async fn fill_one(api: &Api, account: &Account, had: u64, wanted: u64) -> (Tally, u64) {
    let (mut tally, mut written) = (Tally::default(), 0);
    for range in records::batches(had, wanted) {
        let count = range.end - range.start;
        let body = records::batch_body(account.did(), range);
        let started = Instant::now();
        match patiently(|| account.procedure(api, "com.atproto.repo.applyWrites", &body)).await {
            Ok(answer) => {
                tally.success(started.elapsed(), answer.len() as u64);
                written += count;
            }
            Err(error) => {
                tally.failure(format!("{}: {error}", account.handle()));
                break;
            }
        }
    }
    (tally, written)
}

/// The client and the sessions' file.
pub fn open(common: &Common, connections: u32) -> Result<(Api, Sessions)> {
    let api = Api::new(&common.url, connections.max(common.setup_connections))?;
    Ok((api, Sessions::load(&common.sessions)?))
}

/// The first accounts of those that all scenarios share.
pub async fn shared_accounts(
    api: &Api,
    common: &Common,
    sessions: &mut Sessions,
    count: u32,
) -> Result<Vec<Arc<Account>>> {
    let handles: Vec<String> = (0..count).map(|n| common.handle(n)).collect();
    prepare(api, common, sessions, &handles).await
}

/// The account whose turn it is.
pub fn turn(accounts: &[Arc<Account>], n: u64) -> Result<&Account, ApiError> {
    let index = n
        .checked_rem(accounts.len() as u64)
        .and_then(|n| usize::try_from(n).ok());
    index
        .and_then(|index| accounts.get(index))
        .map(Arc::as_ref)
        .ok_or_else(|| ApiError::Unexpected("no accounts".to_owned()))
}
