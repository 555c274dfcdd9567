//! A replica store that hangs or is away: reads go on, a write is answered 503 in bounded time instead of never or falsely (I1),
//! health tells of it and calls nothing dead, and when the store is back everything that was taken becomes durable, once and in
//! order. The ones below are under load, with bounds of memory and disk (I9); `PDS_OUTAGE_SECONDS` = how long the store is away (8).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use engine::repo::Tid;
use serde_json::{Value, json};
use tests::api::{Account, Api, field, post};
use tests::events::{Follower, as_replayed, in_order, replay};
use tests::stack::{ADMIN_PASSWORD, Pds, ReplicaKind, SOON, Stack};
use tests::tools::verified;
use tests::{Outcome, number, skip};
use tokio::task::JoinSet;

/// How long a write may wait, in milliseconds.
const WRITE_LIMIT_MS: u64 = 1500;
/// Record key of the post that is written while the store is away.
const DURING: &str = "3kznmn7xqxl22";

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_store_costs_writers_a_bounded_wait_and_nothing_is_lost_or_doubled() -> Outcome {
    let Some(stack) = Stack::start(ReplicaKind::Azure).await? else {
        return skip("Azurite is not installed");
    };
    let replica = stack.replica(ReplicaKind::Azure, "outage").await?;
    let settings = stack
        .settings(&stack.place("outage"))
        .with_all(replica)
        .with("PDS_REPLICA_TIMEOUT_MS", "1000")
        .with("PDS_WRITE_TIMEOUT_MS", &WRITE_LIMIT_MS.to_string());
    let pds = Pds::start(&settings).await?;
    let account = pds.api.create_account("alice").await?;
    let before = pds.api.post(&account, "before the outage").await?;

    stack.signal_emulator("STOP").await?;
    let began = Instant::now();
    let body = json!({ "repo": account.did, "collection": "app.bsky.feed.post", "rkey": DURING, "record": post("during the outage") });
    let refused = pds
        .api
        .procedure("com.atproto.repo.createRecord", &body, Some(&account.access))
        .await?;
    let waited = began.elapsed();
    let told = refused.json()?;
    ensure!(refused.status == 503, "answered {}: {told}", refused.status);
    ensure!(
        waited < Duration::from_millis(WRITE_LIMIT_MS) + Duration::from_secs(5),
        "the answer took {waited:?}"
    );
    ensure!(field(&told, "/message")?.contains("not confirmed"), "{told}");
    // Nobody sees what is not durable, and what is durable can be read.
    let params = [
        ("repo", account.did.as_str()),
        ("collection", "app.bsky.feed.post"),
        ("rkey", DURING),
    ];
    let unseen = pds.api.query("com.atproto.repo.getRecord", &params, None).await?;
    ensure!(unseen.status == 400, "a write that is not durable is visible");
    let listed = pds
        .api
        .query("com.atproto.repo.listRecords", &params[..2], None)
        .await?
        .ok()?;
    ensure!(
        listed.to_string().contains(&before.cid),
        "reads do not go on: {listed}"
    );

    stack.signal_emulator("CONT").await?;
    let after = pds.api.post(&account, "after the outage").await;
    let after = match after {
        Ok(written) => written,
        // The store may need a moment more than one write may wait.
        Err(_) => pds
            .api
            .post(&account, "after the outage")
            .await
            .context("the outage does not end")?,
    };
    let found = pds.api.record(&account.did, "app.bsky.feed.post", DURING).await?;
    ensure!(field(&found, "/value/text")? == "during the outage", "{found}");
    let events = replay(&pds.url, 0, &after.commit, SOON).await?;
    in_order(&events)?;
    pds.stop().await?;
    Ok(())
}

/// The budget of memory under load, in bytes.
const MEMORY: u64 = 160 << 20;
/// What may wait for the store, in bytes.
const UNSHIPPED: u64 = 2 << 20;
/// What the data directory may grow by while the store is away, beyond what waits for it: what an index takes of the same
/// bytes, and zeros that the log writes ahead.
const DISK_BESIDE: u64 = 24 << 20;
/// How long the server has for everything to be well again.
const RECOVERY: Duration = Duration::from_secs(90);

/// How a store is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Away {
    /// It takes connections and never answers.
    Hangs,
    /// It is not there.
    Refuses,
}

/// What writers count.
#[derive(Debug, Default)]
struct Counts {
    acknowledged: AtomicU64,
    refused: AtomicU64,
    reads: AtomicU64,
}

/// Writes until told to stop; the keys and CIDs of what was acknowledged. Anything but 200 or a 503 that says when to come again is
/// an error.
async fn write(
    api: Api,
    account: Account,
    writer: usize,
    counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
) -> Result<Vec<(String, String, String)>> {
    let mut kept = Vec::new();
    for n in 0u64.. {
        if stop.load(Ordering::Acquire) {
            break;
        }
        let rkey = Tid::from_micros(n, u16::try_from(writer)?).to_string();
        let record = post(&format!("{rkey} {}", "x".repeat(2_500)));
        let body = json!({ "repo": account.did, "collection": "app.bsky.feed.post", "rkey": rkey, "record": record });
        let began = Instant::now();
        let answer = api
            .procedure("com.atproto.repo.createRecord", &body, Some(&account.access))
            .await?;
        let waited = began.elapsed();
        ensure!(
            waited < Duration::from_millis(WRITE_LIMIT_MS) + Duration::from_secs(10),
            "a write waited {waited:?}"
        );
        match answer.status {
            200 => {
                let cid = field(&answer.json()?, "/cid")?;
                kept.push((account.did.clone(), rkey, cid));
                counts.acknowledged.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            503 => {
                let seconds = answer.retry_after.context("a 503 without Retry-After")?;
                counts.refused.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_secs(seconds.min(1))).await;
            }
            other => anyhow::bail!("a write was answered {other}: {}", answer.text()),
        }
    }
    Ok(kept)
}

/// Reads a record until told to stop. Each must be answered.
async fn read(api: Api, did: String, rkey: String, counts: Arc<Counts>, stop: Arc<AtomicBool>) -> Result<()> {
    while !stop.load(Ordering::Acquire) {
        let began = Instant::now();
        api.record(&did, "app.bsky.feed.post", &rkey)
            .await
            .context("reads do not go on")?;
        ensure!(
            began.elapsed() < Duration::from_secs(10),
            "a read took {:?}",
            began.elapsed()
        );
        counts.reads.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Bytes that a directory takes on the disk.
fn disk_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    // Files come and go meanwhile.
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(file) if file.is_dir() => disk_bytes(&entry.path()),
        Ok(file) => file.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}

async fn replication(pds: &Pds) -> Result<Value> {
    pds.api
        .get_as_admin("/_health/replication", ADMIN_PASSWORD)
        .await?
        .ok()
}

/// Waits until replication is as wanted.
async fn until(pds: &Pds, what: &str, limit: Duration, is_it: impl Fn(&Value) -> bool) -> Result<Duration> {
    let began = Instant::now();
    loop {
        let told = replication(pds).await?;
        if is_it(&told) {
            return Ok(began.elapsed());
        }
        ensure!(began.elapsed() < limit, "not {what} after {limit:?}: {told}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn outage_under_load(durability: &str, away: Away) -> Outcome {
    let Some(mut stack) = Stack::start(ReplicaKind::AzureOnDisk).await? else {
        return skip("Azurite is not installed");
    };
    let replica = stack.replica(ReplicaKind::AzureOnDisk, "outage").await?;
    let settings = stack
        .settings(&stack.place("outage"))
        .with_all(replica.clone())
        .with("PDS_DURABILITY", durability)
        .with("PDS_REPLICA_TIMEOUT_MS", "1000")
        .with("PDS_WRITE_TIMEOUT_MS", &WRITE_LIMIT_MS.to_string())
        .with("PDS_MEMORY_BUDGET", &MEMORY.to_string())
        .with("PDS_UNSHIPPED_BYTES", &UNSHIPPED.to_string());
    let pds = Pds::start(&settings).await?;
    let follower = Follower::start(&pds.url);
    let (counts, stop) = (Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
    let mut accounts = Vec::new();
    for name in ["alice", "bob", "carol", "dora"] {
        accounts.push(pds.api.create_account(name).await?);
    }
    let first = accounts.first().context("no account")?.clone();
    let known = pds.api.post(&first, "before the outage").await?;
    let mut writers = JoinSet::new();
    for (writer, account) in accounts.iter().enumerate() {
        let (api, counts, stop) = (pds.api.clone(), counts.clone(), stop.clone());
        writers.spawn(write(api, account.clone(), writer, counts, stop));
    }
    let mut readers = JoinSet::new();
    let (api, did, rkey) = (pds.api.clone(), known.did.clone(), known.rkey.clone());
    readers.spawn(read(api, did, rkey, counts.clone(), stop.clone()));

    let seen = |count: &AtomicU64| count.load(Ordering::Relaxed);
    until(&pds, "written to", SOON, |_| seen(&counts.acknowledged) > 50).await?;
    match away {
        Away::Hangs => stack.signal_emulator("STOP").await?,
        Away::Refuses => stack.stop_emulator().await?,
    }
    let disk_before = disk_bytes(&pds.data);
    let (acknowledged, refused, reads) = (
        seen(&counts.acknowledged),
        seen(&counts.refused),
        seen(&counts.reads),
    );
    let seconds = number("PDS_OUTAGE_SECONDS", 8);
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut most_memory, mut most_disk) = (0, 0);
    let mut degraded = false;
    while Instant::now() < end {
        for path in ["/_health/live", "/_health/ready"] {
            let answer = pds.api.get(path).await?;
            ensure!(
                answer.status == 200,
                "{path} answers {}: {}",
                answer.status,
                answer.text()
            );
        }
        let told = replication(&pds).await?;
        degraded |=
            field(&told, "/state")? == "degraded" && told.get("lastError").is_some_and(Value::is_string);
        most_memory = most_memory.max(pds.process.allocated_bytes()?);
        most_disk = most_disk.max(disk_bytes(&pds.data));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let grown = most_disk.saturating_sub(disk_before);
    let during = seen(&counts.acknowledged) - acknowledged;
    println!(
        "{durability}, {away:?} for {seconds} s: {during} writes acknowledged and {} refused meanwhile, {} reads; \
         at most {} MiB allocated, disk grew by {} KiB",
        seen(&counts.refused) - refused,
        seen(&counts.reads) - reads,
        most_memory >> 20,
        grown >> 10
    );
    ensure!(degraded, "health never says that replication is degraded");
    ensure!(
        seen(&counts.refused) > refused,
        "nothing was refused: there is no bound"
    );
    ensure!(seen(&counts.reads) > reads, "reads do not go on");
    ensure!(most_memory <= MEMORY, "{} MiB allocated", most_memory >> 20);
    ensure!(
        grown <= UNSHIPPED + DISK_BESIDE,
        "the disk grew by {} KiB",
        grown >> 10
    );
    if durability == "local" {
        ensure!(during > 100, "only {during} writes went on");
    }

    match away {
        Away::Hangs => stack.signal_emulator("CONT").await?,
        Away::Refuses => stack.start_emulator().await?,
    }
    let acknowledged = seen(&counts.acknowledged);
    let well = until(&pds, "well again", RECOVERY, |told| {
        told.get("state") == Some(&json!("ok")) && seen(&counts.acknowledged) > acknowledged + 20
    });
    println!("well again after {:?}", well.await?);
    stop.store(true, Ordering::Release);
    while let Some(reader) = readers.join_next().await {
        reader??;
    }
    let mut kept = Vec::new();
    while let Some(writer) = writers.join_next().await {
        kept.extend(writer??);
    }
    let last = pds.api.post(&first, "after the outage").await?;
    let nothing_waits = until(&pds, "caught up", RECOVERY, |told| {
        told.pointer("/lag/bytes").and_then(Value::as_u64) == Some(0)
    });
    nothing_waits.await?;

    for (did, rkey, cid) in &kept {
        let found = pds.api.record(did, "app.bsky.feed.post", rkey).await;
        let found = found.with_context(|| format!("acknowledged and lost: {rkey} of {did}"))?;
        ensure!(field(&found, "/cid")? == *cid, "{rkey} has become {found}");
    }
    let seen = follower.finish(&last.commit, SOON).await?;
    in_order(&seen)?;
    as_replayed(&seen, &pds.url, &last.commit, SOON).await?;
    let data = pds.data.clone();
    pds.stop().await?;
    verified(&["verify", &data.display().to_string()], &replica).await?;
    let url = replica.iter().find(|(name, _)| name == "PDS_REPLICA_URL");
    let (_, url) = url.context("no replica")?;
    verified(&["verify", "--replica", url], &replica).await?;
    stack.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn with_remote_durability_a_store_that_refuses_under_load_costs_503s_and_nothing_else() -> Outcome {
    outage_under_load("remote", Away::Refuses).await
}

#[tokio::test(flavor = "multi_thread")]
async fn with_remote_durability_a_store_that_hangs_under_load_costs_503s_and_nothing_else() -> Outcome {
    outage_under_load("remote", Away::Hangs).await
}

#[tokio::test(flavor = "multi_thread")]
async fn with_local_durability_writes_go_on_up_to_a_bound_while_a_store_refuses() -> Outcome {
    outage_under_load("local", Away::Refuses).await
}

#[tokio::test(flavor = "multi_thread")]
async fn with_local_durability_writes_go_on_up_to_a_bound_while_a_store_hangs() -> Outcome {
    outage_under_load("local", Away::Hangs).await
}
