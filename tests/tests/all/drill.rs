//! Loss drills (I1, I2, I3): under concurrent writes the server is killed at a random moment and its disk is gone; a new
//! one starts from the replica alone. Every acknowledged write must be there, positions only grow, and a consumer that
//! resumes at its cursor sees every event exactly once.
//!
//! `PDS_DRILLS` = how many (3), `PDS_DRILL_SEED` = the first one's seed (the clock); each seed is printed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::api::{Account, Api, Written, field};
use tests::events::{Follower, as_replayed, in_order};
use tests::random::Random;
use tests::stack::{Pds, ReplicaKind, SOON, Settings, Stack};
use tests::tools::verified;
use tests::{Outcome, number, skip};
use tokio::task::JoinSet;

/// Accounts that write at the same time.
const ACCOUNTS: usize = 4;
/// Writers of each account.
const WRITERS: usize = 2;
/// Most milliseconds until the server is killed.
const LONGEST_LIFE_MS: u64 = 3000;

/// What one writer was promised.
#[derive(Debug, Default)]
struct Promises {
    /// Records that were created once.
    created: Vec<Written>,
    /// A record that was replaced again and again: the last acknowledged and the last attempted number.
    counter: Option<(String, String, u64, u64)>,
    /// Commits of replacements.
    commits: Vec<String>,
    /// Accounts.
    accounts: Vec<Account>,
}

/// Writes until told to stop or until something is not acknowledged.
async fn write(api: Api, account: Account, writer: usize, stop: Arc<AtomicBool>) -> Promises {
    let mut promises = Promises::default();
    let rkey = format!("counter-{writer}");
    for n in 0u64.. {
        if stop.load(Ordering::Acquire) {
            break;
        }
        let acknowledged = if n % 4 == 3 {
            let acked = promises.counter.as_ref().map_or(0, |(_, _, acked, _)| *acked);
            let done = api
                .put(
                    &account,
                    "com.example.counter",
                    &rkey,
                    json!({ "$type": "com.example.counter", "n": n }),
                )
                .await;
            let acked = if done.is_ok() { n } else { acked };
            promises.counter = Some((account.did.clone(), rkey.clone(), acked, n));
            done.map(|written| promises.commits.push(written.commit))
        } else {
            let text = format!(
                "writer {writer}, number {n}, {}",
                "x".repeat(usize::try_from(n % 7).unwrap_or(0) * 200)
            );
            api.post(&account, &text)
                .await
                .map(|written| promises.created.push(written))
        };
        if acknowledged.is_err() {
            break;
        }
    }
    promises
}

/// Makes accounts until told to stop or until one is not acknowledged.
async fn join(api: Api, stop: Arc<AtomicBool>) -> Promises {
    let mut promises = Promises::default();
    for n in 0u64.. {
        if stop.load(Ordering::Acquire) {
            break;
        }
        match api.create_account(&format!("newcomer{n}")).await {
            Ok(account) => promises.accounts.push(account),
            Err(_) => break,
        }
    }
    promises
}

/// Checks that a server keeps every promise.
async fn keeps(api: &Api, promises: &[Promises]) -> Result<()> {
    for promise in promises {
        for written in &promise.created {
            let record = api.record(&written.did, &written.collection, &written.rkey).await;
            let record = record.with_context(|| format!("acknowledged and lost: {written:?}"))?;
            ensure!(
                field(&record, "/cid")? == written.cid,
                "{written:?} has become {record}"
            );
        }
        if let Some((did, rkey, acked, attempted)) = &promise.counter {
            let found = api.record(did, "com.example.counter", rkey).await;
            if *acked > 0 {
                let n = found?
                    .pointer("/value/n")
                    .and_then(serde_json::Value::as_u64)
                    .context("no number")?;
                ensure!(
                    (*acked..=*attempted).contains(&n),
                    "counter {rkey} of {did}: {acked} acknowledged, {n} found"
                );
            }
        }
        for account in &promise.accounts {
            let status = api
                .query("com.atproto.sync.getRepoStatus", &[("did", &account.did)], None)
                .await?
                .ok();
            status.with_context(|| format!("acknowledged and lost: account {}", account.handle))?;
        }
    }
    for account in promises.iter().filter_map(|promise| promise.accounts.last()) {
        api.login(&account.handle)
            .await
            .context("an acknowledged account cannot log in")?;
    }
    Ok(())
}

/// Lets `pds-tools` check a store, which must be clean.
pub(crate) async fn one_drill(stack: &Stack, seed: u64, kind: ReplicaKind) -> Result<String> {
    let mut random = Random::new(seed);
    let name = format!("drill-{seed}");
    let replica = stack.replica(kind, &name).await?;
    let settings = |data: &str| -> Settings {
        stack
            .settings(&stack.place(&format!("{name}-{data}")))
            .with_all(replica.clone())
            .with("PDS_DURABILITY", "remote")
    };
    // Small segments and checkpoints bring sealing, manifests and trimming into the window of a drill.
    let segment = random.choose(&[65_536, 65_536, 262_144, 67_108_864]).to_string();
    let checkpoint = random
        .choose(&[1_048_576, 1_048_576, 1_048_576, 268_435_456])
        .to_string();
    let in_flight = random.choose(&[1, 4, 8, 16]).to_string();
    let tuned = |settings: Settings| {
        settings
            .with("PDS_LOG_SEGMENT_BYTES", &segment)
            .with("PDS_CHECKPOINT_BYTES", &checkpoint)
            .with("PDS_REPLICA_IN_FLIGHT", &in_flight)
    };
    let mut pds = Pds::start(&tuned(settings("before"))).await?;
    let follower = Follower::start(&pds.url);
    let mut accounts = Vec::new();
    for n in 0..ACCOUNTS {
        accounts.push(pds.api.create_account(&format!("writer{n}")).await?);
    }

    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for account in &accounts {
        for writer in 0..WRITERS {
            writers.spawn(write(pds.api.clone(), account.clone(), writer, stop.clone()));
        }
    }
    writers.spawn(join(pds.api.clone(), stop.clone()));
    tokio::time::sleep(Duration::from_millis(random.between(150, LONGEST_LIFE_MS))).await;
    pds.process.kill().await?;
    stop.store(true, Ordering::Release);
    let promises = writers.join_all().await;
    std::fs::remove_dir_all(&pds.data)?;
    let old_cursor = follower.cursor();
    drop(pds);

    let reborn = Pds::start(&tuned(settings("after"))).await?;
    follower.moved(&reborn.url);
    keeps(&reborn.api, &promises)
        .await
        .with_context(|| reborn.process.tail())?;

    // The world goes on, above everything that was ever seen.
    let mut last = None;
    for account in &accounts {
        last = Some(reborn.api.post(account, "after the loss").await?);
    }
    let last = last.context("no account")?;
    let seen = follower.finish(&last.commit, SOON).await?;
    let commits = in_order(&seen)?;
    ensure!(
        seen.last().is_some_and(|event| event.seq > old_cursor),
        "positions went back"
    );
    as_replayed(&seen, &reborn.url, &last.commit, SOON).await?;
    let acknowledged: Vec<&str> = promises
        .iter()
        .flat_map(|promise| {
            promise
                .created
                .iter()
                .map(|written| written.commit.as_str())
                .chain(promise.commits.iter().map(String::as_str))
        })
        .collect();
    for commit in &acknowledged {
        // The event of one commit may carry several acknowledged writes; a sync event has no commit.
        ensure!(commits.contains(commit), "commit {commit} is in no event");
    }
    let data = reborn.data.clone();
    let took = reborn.stop().await?;
    verified(&["verify", &data.display().to_string()], &replica).await?;
    let url = replica
        .iter()
        .find(|(name, _)| name == "PDS_REPLICA_URL")
        .map(|(_, url)| url.as_str())
        .context("no replica")?;
    verified(&["verify", "--replica", url], &replica).await?;
    Ok(format!(
        "{} writes and {} accounts acknowledged, {} events, stopped in {took:?}",
        acknowledged.len(),
        promises
            .iter()
            .map(|promise| promise.accounts.len())
            .sum::<usize>(),
        seen.len(),
    ))
}

async fn drills(kind: ReplicaKind, count: u64) -> Outcome {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let first = number("PDS_DRILL_SEED", clock);
    for seed in first..first + count {
        // An emulator for each, as one that keeps the data of many drills in memory does not live long.
        let Some(mut stack) = Stack::start(kind).await? else {
            return skip("the stand-in for this store is not installed");
        };
        println!("drill on {kind:?}, PDS_DRILL_SEED={seed}");
        let told = Box::pin(one_drill(&stack, seed, kind)).await;
        let told = told.map_err(|error| match stack.check() {
            Ok(()) => error,
            Err(ended) => error.context(ended.to_string()),
        });
        println!(
            "  {}",
            told.with_context(|| format!("again with PDS_DRILLS=1 PDS_DRILL_SEED={seed}"))?
        );
        stack.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_with_the_disk_when_the_replica_is_in_azure() -> Outcome {
    drills(ReplicaKind::Azure, number("PDS_DRILLS", 3)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_with_the_disk_when_the_replica_is_a_directory() -> Outcome {
    drills(ReplicaKind::Directory, number("PDS_DRILLS", 3).min(3)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_with_the_disk_when_the_replica_is_a_bucket() -> Outcome {
    drills(ReplicaKind::S3, number("PDS_DRILLS", 1).min(1)).await
}
