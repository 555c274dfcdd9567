//! Stopping and starting: an orderly stop loses nothing and is quick, a power cut loses nothing that was acknowledged, and
//! the views can be deleted at any time (I4).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::Outcome;
use tests::api::{Account, field, post};
use tests::events::{Event, replay};
use tests::stack::{Pds, ReplicaKind, SOON, Settings, Stack};

/// Every read that an account's data answers, with the bytes of the answer.
#[derive(PartialEq, Eq)]
struct Answers {
    read: Vec<(String, u16, Vec<u8>)>,
    events: Vec<Event>,
}

impl Answers {
    /// Asks for everything that there is about the accounts.
    async fn of(pds: &Pds, accounts: &[Account], blob: &str, last_commit: &str) -> Result<Answers> {
        let mut paths = vec![
            "/xrpc/com.atproto.sync.listRepos".to_owned(),
            "/xrpc/com.atproto.server.describeServer".to_owned(),
            format!(
                "/xrpc/com.atproto.identity.resolveHandle?handle={}",
                accounts.first().context("no account")?.handle
            ),
        ];
        for Account { did, .. } in accounts {
            paths.extend([
                format!("/xrpc/com.atproto.repo.describeRepo?repo={did}"),
                format!(
                    "/xrpc/com.atproto.repo.listRecords?repo={did}&collection=app.bsky.feed.post&limit=100"
                ),
                format!(
                    "/xrpc/com.atproto.repo.listRecords?repo={did}&collection=app.bsky.feed.post&reverse=true"
                ),
                format!("/xrpc/com.atproto.repo.getRecord?repo={did}&collection=com.example.thing&rkey=one"),
                format!("/xrpc/com.atproto.repo.getRecord?repo={did}&collection=com.example.thing&rkey=gone"),
                format!("/xrpc/com.atproto.sync.getRepo?did={did}"),
                format!("/xrpc/com.atproto.sync.getRecord?did={did}&collection=com.example.thing&rkey=one"),
                format!("/xrpc/com.atproto.sync.getRecord?did={did}&collection=com.example.thing&rkey=gone"),
                format!("/xrpc/com.atproto.sync.getLatestCommit?did={did}"),
                format!("/xrpc/com.atproto.sync.getRepoStatus?did={did}"),
                format!("/xrpc/com.atproto.sync.listBlobs?did={did}"),
                format!("/xrpc/com.atproto.sync.getBlob?did={did}&cid={blob}"),
            ]);
        }
        let mut read = Vec::new();
        for path in paths {
            let answer = pds.api.get(&path).await?;
            read.push((path, answer.status, answer.body));
        }
        Ok(Answers {
            read,
            events: replay(&pds.url, 0, last_commit, SOON).await?,
        })
    }

    /// Says what differs.
    fn same_as(&self, before: &Answers) -> Outcome {
        for (now, then) in self.read.iter().zip(&before.read) {
            ensure!(
                now == then,
                "{} answered {} {} and now {} {}",
                then.0,
                then.1,
                String::from_utf8_lossy(&then.2),
                now.1,
                String::from_utf8_lossy(&now.2)
            );
        }
        ensure!(self.events == before.events, "the firehose replays other events");
        ensure!(self.read.len() == before.read.len(), "other questions were asked");
        Ok(())
    }
}

/// Two accounts with posts, a blob, an updated and a deleted record; the blob's CID and the last commit.
async fn fill(pds: &Pds) -> Result<(Vec<Account>, String, String)> {
    let accounts = vec![
        pds.api.create_account("alice").await?,
        pds.api.create_account("bob").await?,
    ];
    let (mut blob_cid, mut last) = (String::new(), String::new());
    for account in &accounts {
        for n in 0..30 {
            pds.api.post(account, &format!("post {n}")).await?;
        }
        let blob = pds
            .api
            .upload(account, "text/plain", b"not much of a picture".to_vec())
            .await?;
        blob_cid = field(&blob, "/ref/$link")?;
        let mut with_blob = post("with a file");
        with_blob["file"] = blob;
        pds.api.create(account, "app.bsky.feed.post", with_blob).await?;
        for n in 0..3 {
            pds.api
                .put(
                    account,
                    "com.example.thing",
                    "one",
                    json!({ "$type": "com.example.thing", "n": n }),
                )
                .await?;
        }
        pds.api
            .put(
                account,
                "com.example.thing",
                "gone",
                json!({ "$type": "com.example.thing" }),
            )
            .await?;
        let input = json!({ "repo": account.did, "collection": "com.example.thing", "rkey": "gone" });
        let answer = pds
            .api
            .procedure("com.atproto.repo.deleteRecord", &input, Some(&account.access))
            .await?
            .ok()?;
        last = field(&answer, "/commit/cid")?;
    }
    Ok((accounts, blob_cid, last))
}

/// Files below `dir`.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Deletes the views' files, and the checkpoints too if asked; how many files that were.
fn delete_views(data: &Path, checkpoints: bool) -> Result<usize> {
    let mut deleted = 0;
    for file in files(data)? {
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let in_checkpoint = file.components().any(|part| part.as_os_str() == "ckpt");
        let is_view = name.starts_with("index.redb") || name.starts_with("account.sqlite");
        if (in_checkpoint && checkpoints) || (is_view && !in_checkpoint) {
            std::fs::remove_file(&file)?;
            deleted += 1;
        }
    }
    Ok(deleted)
}

/// Fills a server, lets `happen` happen to its disk while it is down, and compares every answer.
async fn nothing_changes_over(
    tune: impl Fn(Settings) -> Settings,
    orderly: bool,
    happen: impl Fn(&Path) -> Result<()>,
) -> Outcome {
    let stack = Stack::start(ReplicaKind::None)
        .await?
        .context("a stack without an emulator")?;
    let settings = tune(stack.settings(&stack.place("data")));
    let mut pds = Pds::start(&settings).await?;
    let (accounts, blob, last) = fill(&pds).await?;
    // A tail that no checkpoint covers, if there is one.
    let before = Answers::of(&pds, &accounts, &blob, &last).await?;
    ensure!(
        before.read.iter().filter(|(_, status, _)| *status == 200).count() > 20,
        "too few answers to compare"
    );
    if orderly {
        pds.stop().await?;
    } else {
        pds.process.kill().await?;
    }
    happen(&stack.place("data"))?;
    let pds = Pds::start(&settings).await?;
    Answers::of(&pds, &accounts, &blob, &last)
        .await?
        .same_as(&before)?;
    // The views are good for writing too.
    for account in &accounts {
        let back = pds.api.login(&account.handle).await?;
        pds.api.post(&back, "after the restart").await?;
    }
    pds.stop().await?;
    stack.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_restart_changes_no_answer() -> Outcome {
    nothing_changes_over(|settings| settings, true, |_| Ok(())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_changes_no_answer() -> Outcome {
    nothing_changes_over(
        |settings| settings.with("PDS_LOG_SEGMENT_BYTES", "65536"),
        false,
        |_| Ok(()),
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_views_come_back_byte_for_byte() -> Outcome {
    nothing_changes_over(
        |settings| settings,
        true,
        |data| {
            let deleted = delete_views(data, false)?;
            ensure!(deleted >= 2, "{deleted} view files were there to delete");
            Ok(())
        },
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_views_and_checkpoints_the_log_alone_is_enough() -> Outcome {
    nothing_changes_over(
        |settings| settings.with("PDS_LOG_SEGMENT_BYTES", "65536"),
        false,
        |data| {
            let deleted = delete_views(data, true)?;
            ensure!(deleted >= 2, "{deleted} view files were there to delete");
            Ok(())
        },
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_stop_ships_everything_even_with_local_durability() -> Outcome {
    let stack = Stack::start(ReplicaKind::Directory)
        .await?
        .context("a stack without an emulator")?;
    let replica = stack.replica(ReplicaKind::Directory, "replica").await?;
    let settings = |data: &str| {
        let settings = stack.settings(&stack.place(data)).with_all(replica.clone());
        // Blobs belong to no log: they stay where they are.
        let settings = settings.with(
            "PDS_BLOBSTORE_DISK_LOCATION",
            &stack.place("blobs").display().to_string(),
        );
        settings
            .with("PDS_DURABILITY", "local")
            .with("PDS_REPLICA_MIN_INTERVAL_MS", "3000")
    };
    let pds = Pds::start(&settings("here")).await?;
    let (accounts, blob, last) = fill(&pds).await?;
    let unshipped = pds
        .api
        .post(accounts.first().context("no account")?, "just before the stop")
        .await?;
    let took = pds.stop().await?;
    println!("stopped in {took:?}");
    let pds = Pds::start(&settings("there")).await?;
    let record = pds
        .api
        .record(&unshipped.did, &unshipped.collection, &unshipped.rkey)
        .await?;
    assert_eq!(field(&record, "/cid")?, unshipped.cid);
    let answers = Answers::of(&pds, &accounts, &blob, &last).await?;
    ensure!(
        answers
            .read
            .iter()
            .filter(|(_, status, _)| *status == 200)
            .count()
            > 20,
        "answers are missing"
    );
    pds.stop().await?;
    stack.stop().await
}
