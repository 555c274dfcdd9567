//! How replication is and what it costs, as the server tells it: what anybody may know, what only the operator may, and that a
//! server which nobody writes to asks its store nothing. And drills: whether the replica restores, which damage in it shows.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tests::Outcome;
use tests::api::{Answer, field};
use tests::stack::{ADMIN_PASSWORD, Pds, ReplicaKind, SOON, Settings, Stack};

async fn health(pds: &Pds, password: Option<&str>) -> anyhow::Result<Answer> {
    let path = "/_health/replication";
    match password {
        None => pds.api.get(path).await,
        Some(password) => pds.api.get_as_admin(path, password).await,
    }
}

/// A replica that a store is given later has a checkpoint soon, also if nobody writes: a cold start would replay everything.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_replica_of_an_old_store_gets_a_checkpoint() -> Outcome {
    let stack = Stack::start(ReplicaKind::Directory).await?.context("a stack")?;
    let data = stack.place("data");
    let alone = Pds::start(&stack.settings(&data)).await?;
    let account = alone.api.create_account("alice").await?;
    let written = alone.api.post(&account, "before there was a replica").await?;
    alone.stop().await?;

    let replica = stack.replica(ReplicaKind::Directory, "replica").await?;
    let settings = stack.settings(&data).with_all(replica);
    let pds = Pds::start(&settings).await?;
    let begun = Instant::now();
    while health(&pds, None).await?.ok()?["checkpoint"].is_null() {
        ensure!(begun.elapsed() < 2 * SOON, "no checkpoint comes");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    pds.stop().await?;
    std::fs::remove_dir_all(&data)?;
    let cold = Pds::start(&settings).await?;
    let record = cold
        .api
        .record(&written.did, &written.collection, &written.rkey)
        .await?;
    ensure!(
        record.pointer("/value/text").and_then(Value::as_str) == Some("before there was a replica"),
        "{record}"
    );
    cold.stop().await?;
    stack.stop().await
}

/// What was asked since the start, but for the lease and the hand-over.
fn without_signs_of_life(told: &Value) -> anyhow::Result<Value> {
    let mut asked = told.get("sinceStart").context("no counts")?.clone();
    for counts in asked.as_object_mut().context("no counts by class")?.values_mut() {
        if let Some(counts) = counts.as_object_mut() {
            counts.remove("lease");
        }
    }
    Ok(asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn replication_tells_everybody_how_it_is_and_the_operator_what_it_costs() -> Outcome {
    let stack = Stack::start(ReplicaKind::Directory).await?.context("a stack")?;
    let replica = stack.replica(ReplicaKind::Directory, "replica").await?;
    let settings = stack
        .settings(&stack.place("data"))
        .with_all(replica)
        .with("PDS_REPLICA_MONTHLY_REQUESTS", "100000")
        .with("PDS_REPLICA_PRICES", "write=5.5,read=0.44");
    let pds = Pds::start(&settings).await?;
    let account = pds.api.create_account("alice").await?;
    pds.api.post(&account, "hello").await?;

    let public = health(&pds, None).await?.ok()?;
    ensure!(field(&public, "/state")? == "ok", "{public}");
    ensure!(field(&public, "/durability")? == "remote", "{public}");
    ensure!(
        public.pointer("/watermarks/remote") == public.pointer("/watermarks/local"),
        "{public}"
    );
    let place = stack.place("replica").display().to_string();
    ensure!(!public.to_string().contains(&place), "{public}");
    for secret in ["replica", "lastError", "cost", "sinceStart", "budget"] {
        ensure!(public.get(secret).is_none(), "{secret} is public");
    }
    ensure!(
        health(&pds, Some("wrong")).await?.status == 401,
        "a wrong password passes"
    );

    let told = health(&pds, Some(ADMIN_PASSWORD)).await?.ok()?;
    ensure!(told.to_string().contains(&place), "{told}");
    let number = |at: &str| told.pointer(at).and_then(Value::as_u64);
    ensure!(
        number("/sinceStart/write/chunk").is_some_and(|chunks| chunks >= 2),
        "{told}"
    );
    ensure!(number("/sinceStart/read/start").is_some(), "{told}");
    ensure!(
        number("/lastDay/bytes/up").is_some_and(|bytes| bytes > 1_000),
        "{told}"
    );
    ensure!(field(&told, "/budget/state")? == "within", "{told}");
    ensure!(
        told.pointer("/cost/monthlyUsd").is_some_and(Value::is_null),
        "a month is projected from a few seconds: {told}"
    );
    let metrics = pds.api.get("/metrics").await?.text();
    for line in [
        "pds_replica_requests_total{class=\"write\",purpose=\"chunk\"}",
        "pds_replica_bytes_total{direction=\"up\",purpose=\"chunk\"}",
        "pds_replica_state{state=\"ok\"} 1",
        "pds_replica_state{state=\"degraded\"} 0",
        "pds_replica_budget_reserve_requests",
    ] {
        ensure!(metrics.contains(line), "no {line} in the metrics");
    }

    // Long enough for every loop of the server to look whether there is something to do. Signs of life apart, which come
    // every 30 s, and looks for a request to hand over, every 5 s, there is nothing.
    let before = without_signs_of_life(&told)?;
    let signs = |told: &Value, class: &str| {
        let at = format!("/sinceStart/{class}/lease");
        told.pointer(&at).and_then(Value::as_u64).unwrap_or_default()
    };
    tokio::time::sleep(Duration::from_secs(15)).await;
    let later = health(&pds, Some(ADMIN_PASSWORD)).await?.ok()?;
    let after = without_signs_of_life(&later)?;
    ensure!(
        after == before,
        "an idle server asks its store: {before} became {after}"
    );
    let more = |class| signs(&later, class) - signs(&told, class);
    ensure!(more("write") <= 1 && more("list") == 0, "{later}");
    ensure!(more("read") <= 4, "{later}");
    pds.stop().await?;

    let alone = Pds::start(&stack.settings(&stack.place("alone"))).await?;
    let told = health(&alone, Some(ADMIN_PASSWORD)).await?.ok()?;
    ensure!(field(&told, "/state")? == "none", "{told}");
    alone.stop().await?;
    stack.stop().await
}

/// Starts a server whose last drill was long ago, and waits until it has made another; what health says then.
async fn drilled(settings: &Settings, data: &Path) -> anyhow::Result<(Pds, Value)> {
    std::fs::write(data.join("drills.json"), br#"{"lastRun": 1}"#)?;
    let pds = Pds::start(settings).await?;
    let began = Instant::now();
    loop {
        let told = health(&pds, Some(ADMIN_PASSWORD)).await?.ok()?;
        let run = field(&told, "/drill/lastRun")?;
        if !run.starts_with("1970") {
            return Ok((pds, told));
        }
        ensure!(
            began.elapsed() < Duration::from_secs(60),
            "no drill was made: {told}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_tells_whether_the_replica_restores() -> Outcome {
    let stack = Stack::start(ReplicaKind::Directory).await?.context("a stack")?;
    let (replica, data) = (stack.place("replica"), stack.place("data"));
    let settings = stack
        .settings(&data)
        .with_all(stack.replica(ReplicaKind::Directory, "replica").await?)
        .with("PDS_LOG_SEGMENT_BYTES", "65536")
        .with("PDS_DRILL_INTERVAL_HOURS", "24")
        .with("PDS_SCRUB_INTERVAL_HOURS", "24");
    let pds = Pds::start(&settings).await?;
    let account = pds.api.create_account("alice").await?;
    let segments = || -> anyhow::Result<Vec<PathBuf>> {
        let Ok(listed) = std::fs::read_dir(replica.join("seg")) else {
            return Ok(Vec::new());
        };
        Ok(listed
            .map(|entry| Ok(entry?.path()))
            .collect::<std::io::Result<_>>()?)
    };
    let began = Instant::now();
    while segments()?.is_empty() {
        ensure!(began.elapsed() < Duration::from_secs(60), "no segment is sealed");
        pds.api.post(&account, &"x".repeat(2_000)).await?;
    }
    pds.stop().await?;

    let (pds, told) = drilled(&settings, &data).await?;
    ensure!(field(&told, "/state")? == "ok", "{told}");
    ensure!(told.pointer("/drill/whole") == Some(&json!(true)), "{told}");
    ensure!(told.pointer("/drill/failed") == Some(&json!(false)), "{told}");
    ensure!(told.pointer("/sinceStart/read/drill").is_some(), "{told}");
    ensure!(!data.join("drill-tmp").exists(), "a scratch directory is left");
    let metrics = pds.api.get("/metrics").await?.text();
    ensure!(
        metrics.contains("pds_drills_total{outcome=\"clean\"} 1"),
        "no count of drills"
    );
    pds.stop().await?;
    // It is remembered.
    let pds = Pds::start(&settings).await?;
    let again = health(&pds, None).await?.ok()?;
    ensure!(
        again.pointer("/drill/lastSuccess") == told.pointer("/drill/lastSuccess"),
        "{again}"
    );
    pds.stop().await?;

    // All of them: one may be there that the manifest does not name any more.
    let all = segments()?;
    ensure!(!all.is_empty(), "no segment");
    for segment in all {
        let mut bytes = std::fs::read(&segment)?;
        *bytes.get_mut(100).context("a short segment")? ^= 1;
        std::fs::write(&segment, bytes)?;
    }
    let (pds, told) = drilled(&settings, &data).await?;
    ensure!(field(&told, "/state")? == "degraded", "{told}");
    ensure!(
        field(&told, "/drillDetails/failure")?.contains("DAMAGE"),
        "{told}"
    );
    let public = health(&pds, None).await?.ok()?;
    ensure!(
        public.to_string().contains("the last restore drill has failed"),
        "{public}"
    );
    ensure!(!public.to_string().contains("DAMAGE"), "{public}");
    ensure!(pds.api.ready().await, "writes are taken all the same");
    pds.stop().await?;
    stack.stop().await
}
