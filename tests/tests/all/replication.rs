//! How replication is and what it costs, as the server tells it: what anybody may know, what only the operator may, and that a
//! server which nobody writes to asks its store nothing.

use std::time::Duration;

use anyhow::{Context, ensure};
use tests::Outcome;
use tests::api::{Answer, field};
use tests::stack::{ADMIN_PASSWORD, Pds, ReplicaKind, Stack};

async fn health(pds: &Pds, password: Option<&str>) -> anyhow::Result<Answer> {
    let path = "/_health/replication";
    match password {
        None => pds.api.get(path).await,
        Some(password) => pds.api.get_as_admin(path, password).await,
    }
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
    let number = |at: &str| told.pointer(at).and_then(serde_json::Value::as_u64);
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
        told.pointer("/cost/monthlyUsd")
            .is_some_and(serde_json::Value::is_null),
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

    // Long enough for every loop of the server to look whether there is something to do.
    let before = told.get("sinceStart").context("no counts")?;
    tokio::time::sleep(Duration::from_secs(15)).await;
    let told = health(&pds, Some(ADMIN_PASSWORD)).await?.ok()?;
    ensure!(
        told.get("sinceStart") == Some(before),
        "an idle server asks its store: {before} became {told}"
    );
    pds.stop().await?;

    let alone = Pds::start(&stack.settings(&stack.place("alone"))).await?;
    let told = health(&alone, Some(ADMIN_PASSWORD)).await?.ok()?;
    ensure!(field(&told, "/state")? == "none", "{told}");
    alone.stop().await?;
    stack.stop().await
}
