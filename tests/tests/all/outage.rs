//! A replica store that hangs: reads go on, a write is answered 503 in bounded time instead of never or falsely (I1), health
//! tells of it, and when the store is back everything that was taken becomes durable, once and in order.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;
use tests::api::{field, post};
use tests::events::replay;
use tests::stack::{Pds, ReplicaKind, SOON, Stack};
use tests::{Outcome, skip};

/// How long a write may wait, in milliseconds.
const WRITE_LIMIT_MS: u64 = 1500;

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
    let body = json!({ "repo": account.did, "collection": "app.bsky.feed.post", "rkey": "during", "record": post("during the outage") });
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
        ("rkey", "during"),
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
    let found = pds
        .api
        .record(&account.did, "app.bsky.feed.post", "during")
        .await?;
    ensure!(field(&found, "/value/text")? == "during the outage", "{found}");
    let events = replay(&pds.url, 0, &after.commit, SOON).await?;
    for pair in events.windows(2) {
        if let [earlier, later] = pair {
            ensure!(
                earlier.seq < later.seq,
                "event {} came after {}",
                later.seq,
                earlier.seq
            );
        }
    }
    let mut commits: Vec<_> = events
        .iter()
        .filter_map(|event| event.commit.as_deref())
        .collect();
    let all = commits.len();
    commits.sort_unstable();
    commits.dedup();
    ensure!(commits.len() == all, "an event came twice");
    pds.stop().await?;
    Ok(())
}
