//! One writer (I5): a second process takes over the replica while the first still runs and takes writes. Every write that
//! either of them ever acknowledged is in the log that survives, and the first ends on its own, saying why.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use tests::api::{Account, Api, Written, field};
use tests::stack::{Pds, ReplicaKind, SOON, Stack};
use tests::{Outcome, skip};
use tokio::sync::Notify;

/// The exit code of a fenced server, by which a platform can tell it from a crash.
const EXIT_FENCED: i32 = 3;

/// Between two posts. Without a hand-over (the servers here neither ask nor answer) a claimant overtakes a writer only in a pause
/// that is longer than a look at the store; how long that takes a writer without pauses is chance, and not what this is about.
const PACE: Duration = Duration::from_millis(25);

/// Posts until the server refuses or is gone; what was acknowledged. Tells of the first.
async fn post_on(api: Api, account: Account, stop: Arc<AtomicBool>, begun: Arc<Notify>) -> Vec<Written> {
    let mut acknowledged = Vec::new();
    for n in 0u64.. {
        if stop.load(Ordering::Acquire) {
            break;
        }
        match api.post(&account, &format!("post {n}")).await {
            Ok(written) => {
                acknowledged.push(written);
                begun.notify_one();
            }
            Err(_) => break,
        }
        tokio::time::sleep(PACE).await;
    }
    acknowledged
}

async fn only_one_acknowledges(kind: ReplicaKind) -> Outcome {
    let Some(stack) = Stack::start(kind).await? else {
        return skip("the stand-in for this store is not installed");
    };
    let replica = stack.replica(kind, "contested").await?;
    let settings = |data: &str| stack.settings(&stack.place(data)).with_all(replica.clone());
    let mut first = Pds::start(&settings("first")).await?;
    let account = first.api.create_account("alice").await?;
    let stop = Arc::new(AtomicBool::new(false));
    let begun = Arc::new(Notify::new());
    let posts = post_on(first.api.clone(), account.clone(), stop.clone(), begun.clone());
    let writing = tokio::spawn(posts);
    let begun = tokio::time::timeout(SOON, begun.notified()).await;
    begun.context("nothing is written")?;

    let second = Pds::start(&settings("second"))
        .await
        .context("the second server")?;
    // The first may have been idle since: one more write makes it find out, and must not be acknowledged.
    let late = first.api.post(&account, "too late").await;
    ensure!(late.is_err(), "a fenced server acknowledged {late:?}");
    let status = first
        .process
        .wait(SOON)
        .await
        .context("the first server goes on after a take-over")?;
    ensure!(
        status.code() == Some(EXIT_FENCED),
        "the fenced server ended with {status}:\n{}",
        first.process.tail()
    );
    let said = first.process.output().to_lowercase();
    ensure!(
        said.contains("fenced") || said.contains("took over"),
        "no word of it:\n{}",
        first.process.tail()
    );

    stop.store(true, Ordering::Release);
    let acknowledged = writing.await?;
    ensure!(!acknowledged.is_empty(), "nothing was written meanwhile");
    for written in acknowledged {
        let record = second
            .api
            .record(&written.did, &written.collection, &written.rkey)
            .await;
        let record = record
            .with_context(|| format!("acknowledged by the first, unknown to the second: {written:?}"))?;
        assert_eq!(field(&record, "/cid")?, written.cid);
    }
    second.api.post(&account, "from the second").await?;

    // The first one's disk is not the truth any more: started again it takes over in turn, with what the second wrote.
    let mut third = Pds::start(&settings("first"))
        .await
        .context("the first, started again")?;
    let head = |pds: &Pds| {
        let (api, did) = (pds.api.clone(), account.did.clone());
        async move {
            api.query("com.atproto.sync.getLatestCommit", &[("did", &did)], None)
                .await?
                .ok()
        }
    };
    assert_eq!(head(&second).await?, head(&third).await?);
    third.api.post(&account, "from the third").await?;
    third.process.kill().await?;
    drop(second);
    stack.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_on_one_directory_do_not_both_acknowledge() -> Outcome {
    only_one_acknowledges(ReplicaKind::Directory).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_on_one_azure_container_do_not_both_acknowledge() -> Outcome {
    only_one_acknowledges(ReplicaKind::Azure).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_on_one_bucket_do_not_both_acknowledge() -> Outcome {
    only_one_acknowledges(ReplicaKind::S3).await
}
