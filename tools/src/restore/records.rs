//! `pds-tools restore record` and `restore account`: what a repo on a live server had at an earlier moment comes back as ordinary
//! commits. The account itself, its sessions and secrets, is left alone.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use clap::Args;
use engine::engine::{Engine, Shutdown};
use engine::log::Lsn;
use engine::repo::car::{CarLimits, CarSlice};
use engine::repo::json::cbor_to_json;
use engine::repo::mst::{Tree, WalkItem};
use engine::repo::{AtUri, Cid, Commit, Did, RepoPath};
use serde_json::{Value, json};

use super::live::Live;
use super::{past, runtime};
use crate::{Outcome, history, replica_url, summary};

/// Writes of one commit at most, as the protocol has it.
const WRITES: usize = 200;
/// Bytes of JSON of one request at most, about.
const REQUEST_BYTES: usize = 500_000;
/// Records that are shown one by one; more are counted.
const SHOWN: usize = 1_000;

/// Where the past and the present are.
#[derive(Debug, Args)]
pub struct From {
    /// The moment: an LSN or a time such as 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "WHEN", value_parser = crate::inspect::when)]
    at: Lsn,
    /// The server's replica, where the past is.
    #[arg(long, value_name = "URL", env = "PDS_REPLICA_URL")]
    replica: String,
    /// The server, which is running. The administrator's password is in PDS_ADMIN_PASSWORD.
    #[arg(long, value_name = "URL")]
    server: String,
    /// Do it. Without this it is only shown.
    #[arg(long)]
    apply: bool,
    /// Where the past is folded; needs room for the log twice and for the views.
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    temp_dir: PathBuf,
}

/// One record as it was.
#[derive(Debug, Args)]
pub struct Record {
    /// The record: at://DID/collection/rkey.
    uri: AtUri,
    #[command(flatten)]
    from: From,
}

/// All records of an account as they were.
#[derive(Debug, Args)]
pub struct Account {
    /// The account's DID.
    did: Did,
    #[command(flatten)]
    from: From,
}

impl Record {
    /// Shows the difference, and applies it if asked to.
    pub fn run(self, out: &mut dyn Write) -> anyhow::Result<Outcome> {
        let (did, path) = history::record_of(&self.uri)?;
        self.from.run(&did, Some(&path), out)
    }
}

impl Account {
    /// Shows the difference, and applies it if asked to.
    pub fn run(self, out: &mut dyn Write) -> anyhow::Result<Outcome> {
        self.from.run(&self.did, None, out)
    }
}

/// One record that is to change.
struct Step {
    path: String,
    /// What is there now, and what was there then.
    now: Option<Cid>,
    then: Option<(Cid, Bytes)>,
}

impl Step {
    fn action(&self) -> &'static str {
        match (&self.now, &self.then) {
            (None, _) => "create",
            (Some(_), Some(_)) => "update",
            (Some(_), None) => "delete",
        }
    }

    fn write(&self) -> anyhow::Result<Value> {
        let (collection, rkey) = self.path.split_once('/').context("a record's path")?;
        let mut write = json!({
            "$type": format!("com.atproto.repo.applyWrites#{}", self.action()),
            "collection": collection,
            "rkey": rkey,
        });
        if let (Some((_, block)), Some(fields)) = (&self.then, write.as_object_mut()) {
            let mut text = Vec::new();
            cbor_to_json(block, &mut text)?;
            fields.insert("value".to_owned(), serde_json::from_slice(&text)?);
        }
        Ok(write)
    }
}

impl From {
    fn run(self, did: &Did, only: Option<&str>, out: &mut dyn Write) -> anyhow::Result<Outcome> {
        let store = replica_url::open(&self.replica)?;
        let runtime = runtime()?;
        let live = Live::new(&self.server)?;
        let temp = past::temporary(&self.temp_dir)?;
        let engine = past::fold(&store, &runtime, temp.path(), self.at)?;
        let (head, now) = runtime.block_on(present(&live, did))?;
        let steps = difference(&engine, did, only, &now);
        let how = Shutdown {
            drain: Duration::from_secs(60),
            checkpoint: false,
        };
        let closed = runtime.block_on(engine.shutdown(how));
        let steps = steps?;
        closed.context("closing the past")?;

        let at = format!("{} ({})", self.at, summary::time(self.at));
        for step in steps.iter().take(SHOWN) {
            let cid = |cid: Option<Cid>| cid.map_or_else(|| "-".to_owned(), |cid| cid.to_string());
            let then = step.then.as_ref().map(|(cid, _)| *cid);
            let (now, then) = (cid(step.now), cid(then));
            writeln!(out, "{:<6}  {}  {now} -> {then}", step.action(), step.path)?;
        }
        if steps.len() > SHOWN {
            writeln!(out, "… and {} more", steps.len() - SHOWN)?;
        }
        if steps.is_empty() {
            writeln!(out, "nothing differs from {at}")?;
            return Ok(Outcome::Clean);
        }
        if !self.apply {
            writeln!(
                out,
                "{} records of {did} differ from {at}; --apply brings them back",
                steps.len()
            )?;
            return Ok(Outcome::Clean);
        }
        let commits = runtime.block_on(apply(&live, did, head, &steps))?;
        writeln!(
            out,
            "{} records of {did} are as of {at} again, by {commits} commits",
            steps.len()
        )?;
        Ok(Outcome::Clean)
    }
}

/// The head and the records of the repo on the live server, checked block by block.
async fn present(live: &Live, did: &Did) -> anyhow::Result<(Cid, BTreeMap<String, Cid>)> {
    let car = live.repo(did).await?;
    let slice = CarSlice::new(&car, CarLimits::default())?;
    let root = *slice.roots().first().context("the server's export has no root")?;
    let mut blocks = std::collections::HashMap::new();
    for block in slice {
        let block = block?;
        blocks.insert(block.cid, Bytes::copy_from_slice(block.bytes));
    }
    let commit = blocks.get(&root).context("the server's export has no commit")?;
    let commit = Commit::decode(commit.clone())?;
    ensure!(commit.did() == did, "the server's export is of another repo");
    let mut records = BTreeMap::new();
    for item in Tree::open(commit.data()).walk(&blocks)? {
        if let WalkItem::Record { key, cid } = item? {
            records.insert(key.to_string(), cid);
        }
    }
    Ok((root, records))
}

/// What is to be done so that the repo has what it had.
fn difference(
    then: &Engine,
    did: &Did,
    only: Option<&str>,
    now: &BTreeMap<String, Cid>,
) -> anyhow::Result<Vec<Step>> {
    let reader = then.reader()?;
    if reader.repo(did)?.is_none() {
        bail!("the store did not have {did} then");
    }
    let mut steps = Vec::new();
    let mut left: BTreeMap<&str, Cid> = now.iter().map(|(path, cid)| (path.as_str(), *cid)).collect();
    left.retain(|path, _| only.is_none_or(|only| only == *path));
    let mut compare = |path: String, cid: Cid, location| {
        let there = left.remove(path.as_str());
        if there != Some(cid) {
            let block: Bytes = then.read_at(location)?;
            ensure!(
                Cid::for_dag_cbor(&block) == cid,
                "record {path} of then is damaged"
            );
            steps.push(Step {
                path,
                now: there,
                then: Some((cid, block)),
            });
        }
        Ok(())
    };
    match only {
        Some(path) => {
            let parsed = RepoPath::from_bytes(path.as_bytes())?;
            if let Some(row) = reader.record(did, &parsed)? {
                compare(path.to_owned(), row.cid, row.location)?;
            }
        }
        None => {
            for record in reader.records_from(did, None)? {
                let (path, row) = record?;
                compare(path.to_string(), row.cid, row.location)?;
            }
        }
    }
    steps.extend(left.into_iter().map(|(path, cid)| Step {
        path: path.to_owned(),
        now: Some(cid),
        then: None,
    }));
    Ok(steps)
}

/// Applies the steps in commits that each follow the one before, so that nothing that happens meanwhile is overwritten.
async fn apply(live: &Live, did: &Did, mut head: Cid, steps: &[Step]) -> anyhow::Result<u64> {
    let (mut commits, mut done) = (0, 0);
    while done < steps.len() {
        let (mut writes, mut bytes, mut expected) = (Vec::new(), 0, Vec::new());
        for step in steps.iter().skip(done).take(WRITES) {
            let write = step.write()?;
            let len = write.to_string().len();
            if !writes.is_empty() && bytes + len > REQUEST_BYTES {
                break;
            }
            bytes += len;
            writes.push(write);
            expected.push(step.then.as_ref().map(|(cid, _)| cid.to_string()));
        }
        done += writes.len();
        let input = json!({
            "repo": did.as_str(),
            "validate": false,
            "swapCommit": head.to_string(),
            "writes": writes,
        });
        let answer = live.apply_writes(&input).await.with_context(|| {
            format!(
                "{} of {} records are restored; the next could not be",
                done - expected.len(),
                steps.len()
            )
        })?;
        let results = answer["results"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let same = results.len() == expected.len()
            && results
                .iter()
                .zip(&expected)
                .all(|(result, cid)| result["cid"].as_str() == cid.as_deref());
        ensure!(same, "the server wrote other records than those of then");
        head = answer["commit"]["cid"]
            .as_str()
            .context("the server made no commit")?
            .parse()?;
        commits += 1;
    }
    Ok(commits)
}
