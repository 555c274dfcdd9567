//! Travel in time with real processes: a record, an account and a whole server come back as they were.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::Outcome;
use tests::api::{Account, Api, field};
use tests::events::replay;
use tests::process::program;
use tests::stack::{ADMIN_PASSWORD, Pds, ReplicaKind, SOON, Stack};

const NOTE: &str = "com.example.note";
const THING: &str = "com.example.thing";

/// Runs `pds-tools`; what it printed, and whether it went well.
async fn tools(password: &str, arguments: &[&str]) -> Result<(bool, String)> {
    let mut command = tokio::process::Command::new(program("pds-tools")?);
    command.args(arguments).env("PDS_ADMIN_PASSWORD", password);
    let output = tokio::time::timeout(SOON * 4, command.kill_on_drop(true).output()).await??;
    let text = [output.stdout, output.stderr].concat();
    Ok((
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    ))
}

async fn done(arguments: &[&str]) -> Result<String> {
    let (good, text) = tools(ADMIN_PASSWORD, arguments).await?;
    ensure!(good, "pds-tools {arguments:?}: {text}");
    Ok(text)
}

async fn put(api: &Api, who: &Account, collection: &str, rkey: &str, text: &str) -> Outcome {
    let record = json!({ "$type": collection, "text": text });
    api.put(who, collection, rkey, record).await?;
    Ok(())
}

/// Path and CID of every record.
async fn records(api: &Api, did: &str) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for collection in [NOTE, THING] {
        let path = format!("/xrpc/com.atproto.repo.listRecords?repo={did}&collection={collection}&limit=100");
        let answer = api.get(&path).await?.ok()?;
        for record in answer["records"].as_array().context("no list")? {
            found.insert(field(record, "/uri")?, field(record, "/cid")?);
        }
    }
    Ok(found)
}

async fn versions(uri: &str, replica: &str) -> Result<Vec<Value>> {
    let text = done(&["history", uri, "--replica", replica, "--json"]).await?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

async fn rev(api: &Api, did: &str) -> Result<String> {
    let path = format!("/xrpc/com.atproto.sync.getLatestCommit?did={did}");
    field(&api.get(&path).await?.ok()?, "/rev")
}

/// The directory's URL in the settings of a replica.
fn url_of(settings: &[(String, String)]) -> Result<String> {
    let (_, url) = settings.first().context("no replica")?;
    Ok(url.clone())
}

async fn server(stack: &Stack, data: &Path, replica: &str) -> Result<(Pds, String)> {
    let replica = stack.replica(ReplicaKind::Directory, replica).await?;
    let url = url_of(&replica)?;
    let settings = stack.settings(data).with_all(replica);
    Ok((Pds::start(&settings).await?, url))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_an_account_and_a_server_come_back_as_they_were() -> Outcome {
    let stack = Stack::start(ReplicaKind::Directory).await?.context("a stack")?;
    let (pds, replica) = server(&stack, &stack.place("data"), "replica").await?;
    let (alice, bob) = (
        pds.api.create_account("alice").await?,
        pds.api.create_account("bob").await?,
    );
    for n in 0..5 {
        put(&pds.api, &alice, NOTE, &format!("post{n}"), "then").await?;
        put(&pds.api, &bob, NOTE, &format!("post{n}"), "then").await?;
    }
    put(&pds.api, &alice, THING, "one", "as it was then").await?;
    let then = records(&pds.api, &alice.did).await?;
    let uri = format!("at://{}/{THING}/one", alice.did);
    let created = versions(&uri, &replica).await?;
    ensure!(
        created.len() == 1 && created[0]["action"] == "create",
        "{created:?}"
    );
    let cut = created[0]["lsn"].to_string();

    put(&pds.api, &alice, THING, "one", "changed").await?;
    put(&pds.api, &alice, NOTE, "post5", "came later").await?;
    let gone = json!({ "repo": alice.did, "collection": NOTE, "rkey": "post1" });
    pds.api
        .procedure("com.atproto.repo.deleteRecord", &gone, Some(&alice.access))
        .await?
        .ok()?;
    let now = records(&pds.api, &alice.did).await?;
    let actions: Vec<Value> = versions(&uri, &replica)
        .await?
        .iter()
        .map(|version| version["action"].clone())
        .collect();
    ensure!(actions == ["create", "update"], "{actions:?}");

    // One record: shown first, refused without the password, then done.
    let record = [
        "restore",
        "record",
        &uri,
        "--at",
        &cut,
        "--replica",
        &replica,
        "--server",
        &pds.url,
    ];
    let text = done(&record).await?;
    ensure!(text.contains("update") && text.contains("--apply"), "{text}");
    ensure!(
        records(&pds.api, &alice.did).await? == now,
        "a dry run changed something"
    );
    let apply: Vec<&str> = record.iter().copied().chain(["--apply"]).collect();
    let (good, text) = tools("a wrong password", &apply).await?;
    ensure!(!good && text.contains("401"), "{text}");
    done(&apply).await?;
    let mut expected = now.clone();
    expected.insert(uri.clone(), then[&uri].clone());
    ensure!(
        records(&pds.api, &alice.did).await? == expected,
        "the record is not what it was"
    );
    ensure!(
        done(&record).await?.contains("nothing differs"),
        "it is what it was"
    );

    // The whole account.
    let account = [
        "restore",
        "account",
        &alice.did,
        "--at",
        &cut,
        "--replica",
        &replica,
        "--server",
        &pds.url,
        "--apply",
    ];
    let text = done(&account).await?;
    ensure!(text.contains("create") && text.contains("delete"), "{text}");
    ensure!(
        records(&pds.api, &alice.did).await? == then,
        "the account is not what it was"
    );
    put(&pds.api, &alice, NOTE, "post6", "goes on").await?;

    // The whole server, elsewhere.
    let last = rev(&pds.api, &alice.did).await?;
    let commit = format!("/xrpc/com.atproto.sync.getLatestCommit?did={}", alice.did);
    let commit = field(&pds.api.get(&commit).await?.ok()?, "/cid")?;
    let seen = replay(&pds.url, 0, &commit, SOON).await?;
    let cursor = seen.last().context("no event")?.seq;
    pds.stop().await?;
    let data = stack.place("restored");
    let to = data.display().to_string();
    let text = done(&["restore", "--replica", &replica, "--at", &cut, "--to", &to]).await?;
    ensure!(text.contains("1 as now") && text.contains("1 set back"), "{text}");
    done(&["verify", &to]).await?;
    let (pds, replica) = server(&stack, &data, "new-replica").await?;
    ensure!(
        records(&pds.api, &alice.did).await? == then,
        "the server is not what it was"
    );
    let announced = rev(&pds.api, &alice.did).await?;
    ensure!(
        announced > last,
        "{announced} is not above {last}, which consumers have seen"
    );
    let alice = pds.api.login(&alice.handle).await?;
    put(&pds.api, &alice, NOTE, "post7", "goes on here").await?;
    let commit = format!("/xrpc/com.atproto.sync.getLatestCommit?did={}", alice.did);
    let commit = field(&pds.api.get(&commit).await?.ok()?, "/cid")?;
    // A consumer that was connected to the old server goes on with its cursor, and hears of the repo first that it is elsewhere.
    let heard = replay(&pds.url, cursor, &commit, SOON).await?;
    let first = heard
        .iter()
        .find(|event| event.did == alice.did)
        .context("nothing")?;
    ensure!(first.kind == "#sync" && first.seq > cursor, "{}", first.kind);
    ensure!(
        heard
            .iter()
            .all(|event| event.did != bob.did || event.kind != "#sync"),
        "bob is where he was"
    );
    pds.stop().await?;
    done(&["verify", &to]).await?;
    done(&["verify", "--replica", &replica]).await?;
    stack.stop().await
}
