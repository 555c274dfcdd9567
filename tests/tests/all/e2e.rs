//! The official libraries look at the server: an app (`@atproto/api`), a relay (`@atproto/sync`), a mirror
//! (`@atproto/repo`). What breaks here breaks for everybody outside.

use anyhow::{Context, Result};
use tests::api::field;
use tests::stack::{Pds, ReplicaKind, SOON, Stack};
use tests::{Outcome, events, node, skip};

async fn through_official_eyes(kind: ReplicaKind) -> Outcome {
    if node::program().is_none() {
        return skip("Node or the packages of tests/node are missing (`npm ci` there)");
    }
    let Some(stack) = Stack::start(kind).await? else {
        return skip("Azurite is not installed");
    };
    let replica = stack.replica(kind, "official").await?;
    let settings = stack
        .settings(&stack.place("data"))
        .with_all(replica)
        .with("PDS_DURABILITY", "remote");
    let pds = Pds::start(&settings).await?;

    let told = node::run("client.mjs", &[&pds.url])
        .await
        .with_context(|| pds.process.tail())?;
    let commit = field(told.last().context("the client said nothing")?, "/lastCommit")?;
    let verified = node::run("verify-repo.mjs", &[&pds.url, &stack.plc_url]).await?;
    assert_eq!(verified.len(), 2, "{verified:?}");
    // A sleeping process of Node is slow to wake on a busy machine.
    let seen = node::run(
        "firehose.mjs",
        &[&pds.url, &stack.plc_url, "--until", &commit, "--timeout", "60000"],
    )
    .await?;
    assert!(seen.len() > 20, "{seen:?}");

    // The same repos and the same events from what the replica holds.
    let before = events::replay(&pds.url, 0, &commit, SOON).await?;
    pds.stop().await?;
    let elsewhere = stack
        .settings(&stack.place("elsewhere"))
        .with_all(stack.replica(kind, "official").await?);
    let pds = Pds::start(&elsewhere).await?;
    assert_eq!(before, events::replay(&pds.url, 0, &commit, SOON).await?);
    let again = node::run("verify-repo.mjs", &[&pds.url, &stack.plc_url]).await?;
    assert_eq!(verified, again);
    pds.stop().await?;
    stack.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn official_clients_accept_everything_with_a_replica_in_a_directory() -> Result<()> {
    through_official_eyes(ReplicaKind::Directory).await
}

#[tokio::test(flavor = "multi_thread")]
async fn official_clients_accept_everything_with_a_replica_in_azure() -> Result<()> {
    through_official_eyes(ReplicaKind::Azure).await
}
