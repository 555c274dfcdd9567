//! The memory budget (I9): while everything that buffers is pressed at once, what the server has allocated stays inside the
//! budget, and it still answers. A cache without a bound, a queue per subscriber or a body that is buffered whole breaks it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::Outcome;
use tests::api::{Account, Api};
use tests::stack::{Pds, ReplicaKind, SOON, Stack};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

const BUDGET: u64 = 160 << 20;
/// How long the pressure lasts.
const PRESSURE: Duration = Duration::from_secs(8);
/// Records of one applyWrites: a body of a good half megabyte.
const RECORDS: usize = 100;
const RECORD_TEXT_BYTES: usize = 5_000;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_allocated_stays_inside_the_budget_under_pressure_from_all_sides() -> Outcome {
    let Some(stack) = Stack::start(ReplicaKind::Directory).await? else {
        return tests::skip("no stack without an emulator");
    };
    let settings = stack
        .settings(&stack.place("memory"))
        .with_all(stack.replica(ReplicaKind::Directory, "memory-replica").await?)
        .with("PDS_MEMORY_BUDGET", &BUDGET.to_string());
    let pds = Pds::start(&settings).await?;
    let mut accounts = Vec::new();
    for name in ["alice", "bob", "carol", "dora"] {
        accounts.push(pds.api.create_account(name).await?);
    }
    let address = pds.url.trim_start_matches("http://").to_owned();
    let until = Instant::now() + PRESSURE;
    let mut work = JoinSet::new();
    for writer in 0..8 {
        let (url, account) = (pds.url.clone(), accounts[writer % accounts.len()].clone());
        work.spawn(async move { write_until(&url, &account, writer, until).await });
    }
    // Subscribers that never read, downloads that stop reading, and bodies that never end.
    let mut stalled = Vec::new();
    for _ in 0..16 {
        stalled.push(
            request(
                &address,
                "GET",
                "com.atproto.sync.subscribeRepos?cursor=0",
                UPGRADE,
                "",
            )
            .await?,
        );
    }
    for account in &accounts {
        let query = format!("com.atproto.sync.getRepo?did={}", account.did);
        for _ in 0..4 {
            stalled.push(request(&address, "GET", &query, "", "").await?);
        }
    }
    for account in &accounts {
        let headers = format!(
            "Content-Type: application/json\r\nContent-Length: 900000\r\nAuthorization: Bearer {}\r\n",
            account.access
        );
        for _ in 0..2 {
            let body = "{\"repo\":\"".to_owned() + &"x".repeat(500_000);
            stalled.push(request(&address, "POST", "com.atproto.repo.createRecord", &headers, &body).await?);
        }
    }
    let mut peak = 0;
    while Instant::now() < until {
        peak = peak.max(pds.process.allocated_bytes()?);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut written = 0;
    while let Some(done) = work.join_next().await {
        written += done??;
    }
    println!(
        "{written} batches written; at most {} of {} MiB allocated",
        peak >> 20,
        BUDGET >> 20
    );
    ensure!(peak <= BUDGET, "{} MiB are allocated", peak >> 20);
    ensure!(written >= 8, "only {written} batches were written: no pressure");
    drop(stalled);
    pds.api.post(&accounts[0], "and it still answers").await?;
    pds.stop().await?;
    stack.stop().await
}

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";

/// Sends a request whose answer nobody reads, or only its beginning.
async fn request(address: &str, verb: &str, path: &str, headers: &str, body: &str) -> Result<TcpStream> {
    let mut stream = timeout(SOON, TcpStream::connect(address)).await??;
    let head = format!("{verb} /xrpc/{path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).await?;
    // A server that has no room for the body answers before all of it was sent; that is as good.
    if timeout(Duration::from_secs(1), stream.write_all(body.as_bytes()))
        .await
        .is_err()
    {
        return Ok(stream);
    }
    if body.is_empty() {
        let mut beginning = [0; 12];
        timeout(SOON, stream.read_exact(&mut beginning))
            .await
            .context("an answer")??;
    }
    Ok(stream)
}

/// Writes batches, in rounds over the same keys so that the tree stays small, until the time is over; how many were taken.
async fn write_until(url: &str, account: &Account, writer: usize, until: Instant) -> Result<usize> {
    let api = Api::new(url)?;
    let mut taken = 0;
    for round in 0usize.. {
        if Instant::now() >= until {
            break;
        }
        let writes: Vec<Value> = (0..RECORDS)
            .map(|at| {
                let verb = if round == 0 { "create" } else { "update" };
                let text = format!("{round} {}", "y".repeat(RECORD_TEXT_BYTES));
                json!({
                    "$type": format!("com.atproto.repo.applyWrites#{verb}"),
                    "collection": "com.example.load",
                    "rkey": format!("w{writer}-{at}"),
                    "value": { "$type": "com.example.load", "text": text },
                })
            })
            .collect();
        let body = json!({ "repo": account.did, "writes": writes });
        let answer = api
            .procedure("com.atproto.repo.applyWrites", &body, Some(&account.access))
            .await?;
        // Refusing is what a bound is for; anything else than 200 and 503 is not.
        ensure!(
            [200, 503].contains(&answer.status),
            "answered {}: {}",
            answer.status,
            answer.text()
        );
        taken += usize::from(answer.status == 200);
        if answer.status == 503 && round == 0 {
            return Box::pin(write_until(url, account, writer, until)).await;
        }
    }
    Ok(taken)
}
