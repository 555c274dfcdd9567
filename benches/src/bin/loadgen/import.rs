//! The scenario of importRepo: a CAR is made here, as another server would have exported it, and imported.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use engine::clock::SystemEntropy;
use engine::repo::car::{write_block, write_header};
use engine::repo::mst::{Tree, WalkItem, build_from_sorted};
use engine::repo::{Cid, Did, SigningKey, Tid, UnsignedCommit, json};
use serde_json::{Map, json};

use crate::accounts::prepare;
use crate::api::patiently;
use crate::args::ImportRepo;
use crate::records;
use crate::report::{Outcome, Tally, Usage, per_second, resident, sample, sample_after};
use crate::requests::open;

/// How often the server's memory is looked at while it imports.
const LOOK: Duration = Duration::from_millis(5);

/// `import-repo`.
///
/// # Errors
/// The account cannot be prepared, or the CAR cannot be made; refused imports are counted instead.
pub async fn import_repo(args: &ImportRepo) -> Result<Outcome> {
    let (api, mut sessions) = open(&args.common, 1)?;
    let handle = format!("load-import.{}", args.common.handle_domain);
    let accounts = prepare(&api, &args.common, &mut sessions, &[handle]).await?;
    let account = accounts.first().context("no account")?;
    sessions.save(&accounts)?;
    let did: Did = account.did().parse().context("the account's DID")?;
    let key = SigningKey::generate(&SystemEntropy).context("a key")?;

    let before = sample(args.common.server_pid)?;
    let (mut tally, mut spent) = (Tally::default(), Duration::ZERO);
    let (mut growth, mut anonymous, mut car_bytes) = (0, 0, 0);
    for turn in 0..u64::from(args.imports) {
        // Other records each time, under the same keys.
        let first = crate::now_micros() / 1_000_000 % 1_000_000_000 + turn * args.records;
        let car = car(&did, &key, args.records, args.scattered, |n| {
            let record = json::json_to_value(&records::post(first + n)).context("a record")?;
            Ok(record.encode())
        })?;
        car_bytes = car.len() as u64;
        let car = Bytes::from(car);
        let token = account.access();
        let looking = args.common.server_pid.map(Looking::begin);
        let started = Instant::now();
        let imported = patiently(|| api.import(car.clone(), &token)).await;
        let took = started.elapsed();
        if let Some(looking) = looking {
            let (most, most_anonymous) = looking.end().await?;
            growth = growth.max(most);
            anonymous = anonymous.max(most_anonymous);
        }
        spent += took;
        match imported {
            Ok(()) => tally.success(took, car_bytes),
            Err(error) => tally.failure(error),
        }
    }
    let usage = Usage::between(before, sample_after(args.common.server_pid));
    let mut extra = Map::new();
    extra.insert("car_bytes".into(), car_bytes.into());
    extra.insert(
        "records_per_second".into(),
        per_second(tally.requests * args.records, spent),
    );
    if args.common.server_pid.is_some() {
        extra.insert("server_rss_growth_bytes".into(), growth.into());
        extra.insert("server_rss_anonymous_growth_bytes".into(), anonymous.into());
    }
    Ok(Outcome {
        scenario: "import-repo",
        parameters: json!({ "records": args.records, "imports": args.imports, "scattered": args.scattered }),
        elapsed: spent,
        tally,
        usage,
        extra,
    })
}

/// A repo of `count` posts as another server exports it; `scattered` puts the blocks in the order of their CIDs.
fn car(
    did: &Did,
    key: &SigningKey,
    count: u64,
    scattered: bool,
    record: impl Fn(u64) -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    let mut blocks: HashMap<Cid, Bytes> = HashMap::new();
    let mut entries = Vec::new();
    for n in 0..count {
        let block = record(n)?;
        let cid = Cid::for_dag_cbor(&block);
        entries.push((format!("{}/{}", records::COLLECTION, records::key(n)), cid));
        blocks.insert(cid, block.into());
    }
    let mut nodes = Vec::new();
    let data = build_from_sorted(entries.iter().map(|(key, cid)| (key.as_str(), *cid)), |node| {
        nodes.push((node.cid, Bytes::from(node.bytes)));
        Ok::<(), std::convert::Infallible>(())
    })?;
    blocks.extend(nodes);
    let commit = UnsignedCommit {
        did: did.clone(),
        data,
        rev: Tid::from_micros(crate::now_micros(), 1),
    };
    let commit = commit.sign(key).context("the commit")?;
    let mut order = Vec::with_capacity(blocks.len());
    for item in Tree::open(data).walk(&blocks)? {
        let (WalkItem::Node { cid, .. } | WalkItem::Record { cid, .. }) = item?;
        order.push(cid);
    }
    if scattered {
        order.sort_unstable_by_key(|cid| *cid.digest());
    }
    let mut car = Vec::new();
    write_header(&mut car, &[commit.cid()]);
    write_block(&mut car, &commit.cid(), commit.bytes());
    for cid in order {
        let block = blocks.get(&cid).context("a block of the tree")?;
        write_block(&mut car, &cid, block);
    }
    Ok(car)
}

/// Looks at the server's memory again and again.
struct Looking {
    done: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Result<(u64, u64)>>,
}

impl Looking {
    fn begin(pid: u32) -> Looking {
        let done = Arc::new(AtomicBool::new(false));
        let until = done.clone();
        let task = tokio::spawn(async move {
            let before = resident(pid)?;
            let mut most = before;
            while !until.load(Ordering::Acquire) {
                tokio::time::sleep(LOOK).await;
                let now = resident(pid)?;
                most = (most.0.max(now.0), most.1.max(now.1));
            }
            Ok((most.0 - before.0, most.1 - before.1))
        });
        Looking { done, task }
    }

    /// By how much resident memory was higher than at the beginning: all of it, and what no file is behind.
    async fn end(self) -> Result<(u64, u64)> {
        self.done.store(true, Ordering::Release);
        self.task.await?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_car_is_a_whole_repo_in_either_order() {
        let did: Did = "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().unwrap();
        let key = SigningKey::generate(&SystemEntropy).unwrap();
        let record = |n| Ok(json::json_to_value(&records::post(n)).unwrap().encode());
        for scattered in [false, true] {
            let car = car(&did, &key, 500, scattered, record).unwrap();
            let slice =
                engine::repo::car::CarSlice::new(&car, engine::repo::car::CarLimits::default()).unwrap();
            let blocks: HashMap<Cid, Bytes> = slice
                .map(|block| block.map(|b| (b.cid, Bytes::copy_from_slice(b.bytes))).unwrap())
                .collect();
            let root =
                engine::repo::car::CarSlice::new(&car, engine::repo::car::CarLimits::default()).unwrap();
            let root = root.roots()[0];
            let commit = engine::repo::Commit::decode(blocks[&root].clone()).unwrap();
            let tree = Tree::open(commit.data());
            let records: Vec<_> = tree
                .entries_from(None, &blocks)
                .unwrap()
                .map(Result::unwrap)
                .collect();
            assert_eq!(records.len(), 500);
            assert!(records.iter().all(|(_, cid)| blocks.contains_key(cid)));
        }
    }
}
