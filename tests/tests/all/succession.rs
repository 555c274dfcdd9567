//! One server after another on one replica: hand-overs under load without errors, standbys, promotions (I1, I2, I5).
//!
//! `PDS_SWAPS` = how many hand-overs in a row (2). The gaps that were seen are printed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::api::{Account, Api, Written, field, post};
use tests::events::{Follower, gapless};
use tests::ingress::Ingress;
use tests::stack::{ADMIN_PASSWORD, Pds, ReplicaKind, SOON, Settings, Stack};
use tests::tools::verified;
use tests::{Outcome, number, skip};
use tokio::task::JoinSet;

/// Accounts that write at the same time.
const ACCOUNTS: usize = 4;
/// Writers of each.
const WRITERS: usize = 4;
/// Writes a second in all.
const RATE: u64 = 200;

/// What the writers saw.
#[derive(Debug, Default)]
struct Seen {
    acknowledged: Vec<Written>,
    /// When each was acknowledged.
    at: Vec<Instant>,
    /// Answers that were no success at the first try.
    errors: Vec<String>,
    /// Writes that failed at the second try, too.
    failed: Vec<String>,
}

/// Writes at an even rate, and tries once more what is answered 503, as a careful client does.
async fn write(api: Api, account: Account, number: usize, every: Duration, stop: Arc<AtomicBool>) -> Seen {
    let mut seen = Seen::default();
    let mut turn = tokio::time::interval(every);
    turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for n in 0u64.. {
        turn.tick().await;
        if stop.load(Ordering::Acquire) {
            break;
        }
        let input = json!({
            "repo": account.did,
            "collection": "app.bsky.feed.post",
            "record": post(&format!("writer {number}, number {n}")),
        });
        for again in [true, false] {
            let answer = api
                .procedure("com.atproto.repo.createRecord", &input, Some(&account.access))
                .await;
            let wrong = match answer {
                Ok(answer) if answer.status == 200 => match tests::api::created(&account.did, &answer) {
                    Ok(written) => {
                        seen.acknowledged.push(written);
                        seen.at.push(Instant::now());
                        break;
                    }
                    Err(error) => format!("{error:#}"),
                },
                Ok(answer) if answer.status == 503 && again => {
                    seen.errors.push(answer.text());
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
                Ok(answer) => format!("{} {}", answer.status, answer.text()),
                Err(error) => format!("{error:#}"),
            };
            seen.errors.push(wrong.clone());
            seen.failed.push(wrong);
            break;
        }
    }
    seen
}

fn replica_url(replica: &[(String, String)]) -> Result<&str> {
    let found = replica.iter().find(|(name, _)| name == "PDS_REPLICA_URL");
    Ok(found.context("no replica")?.1.as_str())
}

/// Swaps under load: `held` servers know each other's address, so that waiting writes are sent on.
async fn swaps(kind: ReplicaKind, count: u64, held: bool) -> Outcome {
    let Some(stack) = Stack::start(kind).await? else {
        return skip("Azurite is not installed");
    };
    let replica = stack.replica(kind, "swapped").await?;
    let settings = |n: u64| -> Settings {
        let settings = stack
            .settings(&stack.place(&format!("revision-{n}")))
            .with_all(replica.clone())
            .with("PDS_DURABILITY", "remote")
            .with("PDS_LOG_SEGMENT_BYTES", "262144")
            .with("PDS_HANDOVER_TIMEOUT_MS", "15000")
            .with("PDS_HANDOVER_POLL_MS", "200");
        // An address that nobody can use: the old server can send nothing on.
        if held {
            settings
        } else {
            settings.with("PDS_BIND_ADDRESS", "0.0.0.0")
        }
    };
    let mut current = Pds::start(&settings(0)).await?;
    let ingress = Ingress::start(&current.url).await?;
    let api = Api::new(&ingress.url)?;
    let mut accounts = Vec::new();
    for n in 0..ACCOUNTS {
        accounts.push(api.create_account(&format!("writer{n}")).await?);
    }
    let follower = Follower::start(&current.url);
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    let every = Duration::from_micros(1_000_000 * (ACCOUNTS * WRITERS) as u64 / RATE);
    for n in 0..ACCOUNTS * WRITERS {
        let account = accounts[n % ACCOUNTS].clone();
        writers.spawn(write(api.clone(), account, n, every, stop.clone()));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut swapped = Vec::new();
    for n in 1..=count {
        let begun = Instant::now();
        let next = Pds::start(&settings(n))
            .await
            .with_context(|| format!("revision {n}"))?;
        ingress.switch(&next.url);
        follower.moved(&next.url);
        swapped.push((begun, Instant::now()));
        let old = std::mem::replace(&mut current, next);
        old.stop().await.with_context(|| format!("revision {}", n - 1))?;
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    stop.store(true, Ordering::Release);
    let seen = writers.join_all().await;
    let mut at: Vec<Instant> = seen.iter().flat_map(|seen| seen.at.clone()).collect();
    at.sort_unstable();
    let gaps: Vec<u128> = swapped
        .iter()
        .map(|(from, to)| {
            let during: Vec<_> = at
                .windows(2)
                .filter(|pair| pair[1] >= *from && pair[0] <= *to)
                .collect();
            during
                .iter()
                .map(|pair| (pair[1] - pair[0]).as_millis())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let errors: Vec<&String> = seen.iter().flat_map(|seen| &seen.errors).collect();
    let failed: Vec<&String> = seen.iter().flat_map(|seen| &seen.failed).collect();
    let acknowledged: Vec<Written> = seen.iter().flat_map(|seen| seen.acknowledged.clone()).collect();
    println!(
        "{kind:?}, held={held}: {} writes over {count} hand-overs, longest gaps {gaps:?} ms, {} answered 503 first, {} failed",
        acknowledged.len(),
        errors.len(),
        failed.len(),
    );
    ensure!(failed.is_empty(), "writes failed: {failed:?}");
    ensure!(!held || errors.is_empty(), "writes were not held: {errors:?}");
    for written in &acknowledged {
        let record = current
            .api
            .record(&written.did, &written.collection, &written.rkey)
            .await;
        let record = record.with_context(|| format!("acknowledged and lost: {written:?}"))?;
        ensure!(field(&record, "/cid")? == written.cid);
    }
    let mut last = None;
    for account in &accounts {
        last = Some(current.api.post(account, "after the swaps").await?);
    }
    let last = last.context("no account")?;
    let seen = follower.finish(&last.commit, SOON).await?;
    let events = gapless(&seen, &current.url, &acknowledged, &last, SOON).await?;
    println!("  {events} events, none missing, none twice");
    let data = current.data.clone();
    current.stop().await?;
    verified(&["verify", &data.display().to_string()], &replica).await?;
    verified(&["verify", "--replica", replica_url(&replica)?], &replica).await?;
    stack.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn revisions_are_swapped_under_load_without_an_error_on_a_directory() -> Outcome {
    swaps(ReplicaKind::Directory, number("PDS_SWAPS", 2), true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn revisions_are_swapped_under_load_without_an_error_on_azure() -> Outcome {
    swaps(ReplicaKind::Azure, number("PDS_SWAPS", 2), true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn revisions_that_cannot_reach_each_other_answer_503_and_lose_nothing() -> Outcome {
    swaps(ReplicaKind::Azure, number("PDS_SWAPS", 2), false).await
}

/// Waits until a standby has a record.
async fn has(api: &Api, written: &Written) -> Result<()> {
    let begun = Instant::now();
    while api
        .record(&written.did, &written.collection, &written.rkey)
        .await
        .is_err()
    {
        ensure!(begun.elapsed() < SOON, "{written:?} does not arrive");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn standbys(kind: ReplicaKind) -> Outcome {
    let Some(stack) = Stack::start(kind).await? else {
        return skip("Azurite is not installed");
    };
    let replica = stack.replica(kind, "followed").await?;
    let settings = |name: &str| -> Settings {
        stack
            .settings(&stack.place(name))
            .with_all(replica.clone())
            .with("PDS_LOG_SEGMENT_BYTES", "65536")
            .with("PDS_HANDOVER_TIMEOUT_MS", "15000")
            .with("PDS_STANDBY_POLL_MS", "50")
            .with("PDS_LEASE_SECONDS", "3")
    };
    let mut writer = Pds::start(&settings("writer")).await?;
    let alice = writer.api.create_account("alice").await?;
    let first = writer.api.post(&alice, "before the standbys").await?;
    let one = Pds::start_standby(&settings("one")).await?;
    let two = Pds::start_standby(&settings("two").with("PDS_STANDBY_TAKE_OVER_SECONDS", "2")).await?;
    let follower = Follower::start(&two.url);
    has(&one.api, &first).await?;
    let posted = AtomicU64::new(0);
    let mut written = vec![first];
    for _ in 0..60 {
        let n = posted.fetch_add(1, Ordering::Relaxed);
        written.push(
            writer
                .api
                .post(&alice, &format!("number {n} {}", "x".repeat(2000)))
                .await?,
        );
    }
    let newest = written.last().context("none")?.clone();
    for standby in [&one, &two] {
        has(&standby.api, &newest).await?;
        let refused = standby.api.post(&alice, "to a standby").await;
        let said = refused.err().context("a standby took a write")?.to_string();
        ensure!(
            said.contains("NotTheWriter") && said.contains(&writer.url),
            "{said}"
        );
    }
    // New accounts arrive there, too, and the writer knows who follows.
    let bob = writer.api.create_account("bob").await?;
    let of_bob = writer.api.post(&bob, "I am here").await?;
    has(&one.api, &of_bob).await?;
    let peers = writer.api.get_as_admin("/_peers", ADMIN_PASSWORD).await?.ok()?;
    let known = peers["standbys"].as_array().map_or(0, Vec::len);
    ensure!(known == 2 && peers["role"] == "writer", "{peers}");
    ensure!(writer.api.get("/_peers").await?.status == 401);

    // By command: the writer hands over to the one that is told to take it.
    let answer = one.api.post_as_admin("/_peers/promote", ADMIN_PASSWORD).await?;
    ensure!(answer.status == 202, "{}", answer.text());
    let begun = Instant::now();
    let after = loop {
        match one.api.post(&alice, "to the new writer").await {
            Ok(written) => break written,
            Err(_) => ensure!(begun.elapsed() < SOON, "the promoted standby takes no writes"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    // The old one sends on what still comes to it.
    let through = writer.api.post(&alice, "to the old writer").await?;
    has(&two.api, &through).await?;
    has(&two.api, &after).await?;
    writer.process.terminate().await?;
    written.extend([after, through]);

    // By loss: the other one takes over once the lease is gone.
    let mut one = one;
    one.process.kill().await?;
    let begun = Instant::now();
    let last = loop {
        match two.api.post(&alice, "after the loss").await {
            Ok(written) => break written,
            Err(_) => ensure!(begun.elapsed() < SOON, "nobody took over"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    println!(
        "took over {} ms after the writer was killed",
        begun.elapsed().as_millis()
    );
    for written in &written {
        let record = two
            .api
            .record(&written.did, &written.collection, &written.rkey)
            .await;
        record.with_context(|| format!("acknowledged and lost: {written:?}"))?;
    }
    let seen = follower.finish(&last.commit, SOON).await?;
    gapless(&seen, &two.url, &written, &last, SOON).await?;
    let data = two.data.clone();
    two.stop().await?;
    verified(&["verify", &data.display().to_string()], &replica).await?;
    verified(&["verify", "--replica", replica_url(&replica)?], &replica).await?;
    stack.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn standbys_follow_serve_reads_and_take_over_on_a_directory() -> Outcome {
    standbys(ReplicaKind::Directory).await
}

#[tokio::test(flavor = "multi_thread")]
async fn standbys_follow_serve_reads_and_take_over_on_azure() -> Outcome {
    standbys(ReplicaKind::Azure).await
}

/// A writer that hangs neither hands over nor answers; it is taken over from, and can do nothing when it wakes.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_was_suspended_wakes_up_fenced() -> Outcome {
    let kind = ReplicaKind::Directory;
    let Some(stack) = Stack::start(kind).await? else {
        return skip("the did:plc directory does not start");
    };
    let replica = stack.replica(kind, "woken").await?;
    let settings = |name: &str| {
        stack
            .settings(&stack.place(name))
            .with_all(replica.clone())
            .with("PDS_HANDOVER_TIMEOUT_MS", "1500")
    };
    let mut old = Pds::start(&settings("old")).await?;
    let alice = old.api.create_account("alice").await?;
    let kept = old.api.post(&alice, "before").await?;
    old.process.signal("STOP").await?;
    let new = Pds::start(&settings("new")).await?;
    let mine = new.api.post(&alice, "by the new one").await?;
    old.process.signal("CONT").await?;
    let late = old.api.post(&alice, "too late").await;
    ensure!(late.is_err(), "a fenced server acknowledged {late:?}");
    let status = old.process.wait(SOON).await?;
    ensure!(
        status.code() == Some(3),
        "the fenced server ended with {status}: {}",
        old.process.tail()
    );
    has(&new.api, &kept).await?;
    has(&new.api, &mine).await?;
    new.stop().await?;
    verified(&["verify", "--replica", replica_url(&replica)?], &replica).await?;
    stack.stop().await
}

/// A server that is started again on its own disk waits for nobody, whatever its lease says.
#[tokio::test(flavor = "multi_thread")]
async fn a_lone_server_does_not_wait_for_its_own_lease() -> Outcome {
    let kind = ReplicaKind::Directory;
    let Some(stack) = Stack::start(kind).await? else {
        return skip("the did:plc directory does not start");
    };
    let replica = stack.replica(kind, "alone").await?;
    let settings = stack
        .settings(&stack.place("alone"))
        .with_all(replica)
        .with("PDS_HANDOVER_TIMEOUT_MS", "60000")
        .with("PDS_LEASE_SECONDS", "3600");
    for lose_disk in [false, true] {
        let mut pds = Pds::start(&settings).await?;
        pds.process.kill().await?;
        if lose_disk {
            std::fs::remove_dir_all(&pds.data)?;
        }
        let begun = Instant::now();
        let again = Pds::start(&settings).await?;
        ensure!(
            begun.elapsed() < Duration::from_secs(20),
            "it took {:?}",
            begun.elapsed()
        );
        again.stop().await?;
    }
    stack.stop().await
}
