//! A store five times the disk budget: every record, every repo and the whole firehose are served, before and after the disk is
//! lost, and by a standby, also when its writer has compacted the log; and the disk keeps to its budget (I6, I9).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use engine::repo::car::{CarLimits, CarSlice};
use serde_json::{Value, json};
use tests::Outcome;
use tests::api::{Account, field};
use tests::events::replay;
use tests::stack::{ADMIN_PASSWORD, Pds, ReplicaKind, Settings, Stack};
use tests::tools::verified;
use tokio::task::JoinHandle;

const BUDGET: u64 = 32 << 20;
/// The server looks at the disk once a second. What comes in between may go beyond the budget, and on a busy machine a look is late.
const BETWEEN_LOOKS: u64 = BUDGET / 4;
const SEGMENT_BYTES: u64 = 1 << 20;
/// Records of one applyWrites, and bytes of text in each: a bit less than a request may have.
const RECORDS: usize = 20;
const TEXT_BYTES: usize = 40_000;
const ACCOUNTS: usize = 3;
/// Together more than five budgets.
const WRITES: usize = 225;
const LIMIT: Duration = Duration::from_secs(120);

/// Text that does not pack well, the same for the same seed.
fn text(seed: u64) -> String {
    const LETTERS: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..TEXT_BYTES)
        .map(|_| char::from(LETTERS[(next() >> 40) as usize % LETTERS.len()]))
        .collect()
}

/// What was written: for each record its account, key, CID and the seed of its text.
struct Written {
    accounts: Vec<Account>,
    records: Vec<(usize, String, String, u64)>,
    commits: Vec<String>,
}

async fn write(pds: &Pds) -> Result<Written> {
    let mut written = Written {
        accounts: Vec::new(),
        records: Vec::new(),
        commits: Vec::new(),
    };
    for n in 0..ACCOUNTS {
        written
            .accounts
            .push(pds.api.create_account(&format!("writer{n}")).await?);
    }
    write_more(pds, &mut written, WRITES).await?;
    Ok(written)
}

async fn write_more(pds: &Pds, written: &mut Written, writes: usize) -> Outcome {
    let Written {
        accounts,
        records,
        commits,
    } = written;
    for n in 0..writes {
        let account = &accounts[n % ACCOUNTS];
        let seed = records.len() as u64;
        let seeds: Vec<u64> = (seed..seed + RECORDS as u64).collect();
        let writes: Vec<Value> = seeds
            .iter()
            .map(|seed| {
                json!({
                    "$type": "com.atproto.repo.applyWrites#create", "collection": "com.example.thing",
                    "rkey": format!("{seed:08}"), "value": { "$type": "com.example.thing", "text": text(*seed) },
                })
            })
            .collect();
        let input = json!({ "repo": account.did, "writes": writes, "validate": false });
        let answer = pds
            .api
            .procedure("com.atproto.repo.applyWrites", &input, Some(&account.access))
            .await?
            .ok()?;
        commits.push(field(&answer, "/commit/cid")?);
        for (at, seed) in seeds.into_iter().enumerate() {
            let cid = field(&answer, &format!("/results/{at}/cid"))?;
            records.push((n % ACCOUNTS, format!("{seed:08}"), cid, seed));
        }
    }
    Ok(())
}

/// Reads everything in every way.
async fn check(pds: &Pds, written: &Written) -> Outcome {
    check_records(pds, written).await?;
    check_exports(pds, written).await?;
    check_events(pds, written).await
}

async fn check_events(pds: &Pds, written: &Written) -> Outcome {
    let last = written.commits.last().context("nothing written")?;
    let events = replay(&pds.url, 0, last, LIMIT).await?;
    let commits: Vec<&str> = events
        .iter()
        .filter_map(|event| event.commit.as_deref())
        .collect();
    let ours: Vec<&str> = commits
        .into_iter()
        .filter(|commit| written.commits.iter().any(|ours| ours == commit))
        .collect();
    ensure!(
        ours == written.commits,
        "the firehose has {} of {} commits",
        ours.len(),
        written.commits.len()
    );
    Ok(())
}

async fn check_records(pds: &Pds, written: &Written) -> Outcome {
    for (account, rkey, cid, seed) in &written.records {
        let record = pds
            .api
            .record(&written.accounts[*account].did, "com.example.thing", rkey)
            .await?;
        ensure!(field(&record, "/cid")? == *cid, "record {rkey} has another CID");
        ensure!(
            field(&record, "/value/text")? == text(*seed),
            "record {rkey} has another text"
        );
    }
    Ok(())
}

async fn check_exports(pds: &Pds, written: &Written) -> Outcome {
    for (at, account) in written.accounts.iter().enumerate() {
        let path = format!("/xrpc/com.atproto.sync.getRepo?did={}", account.did);
        let answer = pds.api.get(&path).await?;
        ensure!(
            answer.status == 200,
            "getRepo answered {}: {}",
            answer.status,
            answer.text()
        );
        let limits = CarLimits {
            verify_hashes: true,
            ..CarLimits::default()
        };
        let mut found = HashMap::new();
        for block in CarSlice::new(&answer.body, limits)? {
            let block = block?;
            found.insert(block.cid.to_string(), block.bytes.len());
        }
        let missing = written
            .records
            .iter()
            .find(|(of, _, cid, _)| *of == at && !found.contains_key(cid));
        ensure!(missing.is_none(), "getRepo lacks {missing:?}");
    }
    Ok(())
}

fn used(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    let entries = entries.filter_map(Result::ok);
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => used(&entry.path()),
            Ok(meta) => meta.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

/// What takes how much of the disk, by directory and ending.
fn kinds(dir: &Path) -> BTreeMap<String, u64> {
    let mut kinds = BTreeMap::new();
    let Ok(entries) = std::fs::read_dir(dir) else {
        return kinds;
    };
    for entry in entries.filter_map(Result::ok) {
        let Ok(meta) = entry.metadata() else { continue };
        let name = entry.file_name().to_string_lossy().into_owned();
        if meta.is_dir() {
            for (kind, bytes) in self::kinds(&entry.path()) {
                *kinds.entry(format!("{name}/{kind}")).or_default() += bytes;
            }
        } else {
            use std::os::unix::fs::MetadataExt;
            let kind = name.rsplit('.').next().unwrap_or_default().to_owned();
            *kinds.entry(kind).or_default() += meta.blocks() * 512;
        }
    }
    kinds
}

/// Looks at the disk until it is told to stop.
struct Watch {
    most: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Watch {
    fn begin(dir: &Path) -> Watch {
        let (most, stop, dir) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
            dir.to_owned(),
        );
        let (seen, told) = (Arc::clone(&most), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            while !told.load(Ordering::Acquire) {
                let now = used(&dir);
                if seen.fetch_max(now, Ordering::AcqRel) < now && now > BUDGET {
                    println!("{now} bytes: {:?}", kinds(&dir));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        Watch { most, stop, task }
    }

    async fn end(self) -> Result<u64> {
        self.stop.store(true, Ordering::Release);
        self.task.await?;
        Ok(self.most.load(Ordering::Acquire))
    }
}

async fn metric(pds: &Pds, name: &str) -> Result<f64> {
    let text = pds.api.get("/metrics").await?.text();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(Ok(0.0), |value| Ok(value.trim().parse()?))
}

async fn until(what: &str, pds: &Pds, is_it: impl Fn(&Path) -> bool) -> Outcome {
    let begun = Instant::now();
    while !is_it(&pds.data) {
        ensure!(begun.elapsed() < LIMIT, "never: {what}\n{}", pds.process.tail());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// What the replica is said to hold.
async fn replicated(pds: &Pds) -> Result<Value> {
    pds.api
        .get_as_admin("/_health/replication", ADMIN_PASSWORD)
        .await?
        .ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_five_disk_budgets_serves_everything_before_and_after_the_disk_is_lost() -> Outcome {
    five_budgets(ReplicaKind::Directory).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_five_disk_budgets_serves_everything_on_azure() -> Outcome {
    five_budgets(ReplicaKind::Azure).await
}

async fn five_budgets(kind: ReplicaKind) -> Outcome {
    let Some(stack) = Stack::start(kind).await? else {
        return tests::skip("no stack without an emulator");
    };
    let replica = stack.replica(kind, "tiered-replica").await?;
    let url = replica.first().context("no replica")?.1.clone();
    let settings = |data: &str| -> Settings {
        stack
            .settings(&stack.place(data))
            .with_all(replica.clone())
            .with("PDS_LOG_SEGMENT_BYTES", &SEGMENT_BYTES.to_string())
            .with("PDS_CHECKPOINT_BYTES", "8388608")
            .with("PDS_DISK_BUDGET", &BUDGET.to_string())
    };
    let pds = Pds::start(&settings("tiered")).await?;
    let written = write(&pds).await?;
    until("the disk is within its budget", &pds, |data| used(data) <= BUDGET).await?;
    // The manifest names segments a while after they are there. Packed they have three budgets and more, unpacked five.
    let begun = Instant::now();
    let told = loop {
        let told = replicated(&pds).await?;
        let stored = told.pointer("/stored/bytes").and_then(Value::as_u64);
        if stored > Some(3 * BUDGET) && !told["checkpoint"].is_null() {
            break told;
        }
        ensure!(begun.elapsed() < LIMIT, "the replica: {told}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    println!("in the replica: {}", told["stored"]);
    let watch = Watch::begin(&pds.data);
    check(&pds, &written).await.with_context(|| pds.process.tail())?;
    let most = watch.end().await?;
    ensure!(
        most <= BUDGET + BETWEEN_LOOKS,
        "while everything was read, the disk had {most} bytes"
    );
    let (fetches, bytes) = (
        metric(&pds, "pds_tier_fetches_total").await?,
        metric(&pds, "pds_tier_fetched_bytes_total").await?,
    );
    println!(
        "evicted: at most {most} bytes of {BUDGET}; {fetches} fetches of {bytes} bytes to read everything"
    );
    ensure!(metric(&pds, "pds_tier_away_bytes").await? > 4.0 * BUDGET as f64);

    // The disk is lost.
    let mut pds = pds;
    pds.process.kill().await?;
    std::fs::remove_dir_all(&pds.data)?;
    drop(pds);
    let begun = Instant::now();
    let pds = Pds::start(&settings("tiered-again")).await?;
    println!(
        "cold start in {:?}, {} bytes on the disk",
        begun.elapsed(),
        used(&pds.data)
    );
    let restored = pds.process.output();
    let restored = restored
        .lines()
        .find(|line| line.contains("restored from the replica"));
    println!("{}", restored.context("nothing was restored")?);
    let watch = Watch::begin(&pds.data);
    check(&pds, &written).await.with_context(|| pds.process.tail())?;
    let more = pds.api.post(&written.accounts[0], "after the loss").await?;
    ensure!(!more.cid.is_empty());
    let most = watch.end().await?;
    ensure!(
        most <= BUDGET + BETWEEN_LOOKS,
        "after a cold start the disk had {most} bytes"
    );

    // A restart on the same disk knows what is away.
    pds.stop().await?;
    let data = stack.place("tiered-again");
    verified(&["verify", &data.display().to_string()], &replica).await?;
    let pds = Pds::start(&settings("tiered-again")).await?;
    // The output of both is in one file.
    let restores = pds.process.output().matches("restored from the replica").count();
    ensure!(restores <= 1, "the second start restored what was there");
    for (account, rkey, cid, _) in written.records.iter().step_by(37) {
        let did = &written.accounts[*account].did;
        let record = pds.api.record(did, "com.example.thing", rkey).await?;
        ensure!(field(&record, "/cid")? == *cid, "record {rkey} has another CID");
    }
    pds.stop().await?;
    verified(&["verify", "--replica", &url], &replica).await?;
    stack.stop().await
}

/// Waits until a server has the newest record.
async fn arrived(pds: &Pds, written: &Written) -> Outcome {
    let begun = Instant::now();
    let (account, rkey, cid, _) = written.records.last().context("nothing written")?;
    let did = &written.accounts[*account].did;
    loop {
        match pds.api.record(did, "com.example.thing", rkey).await {
            Ok(record) if field(&record, "/cid")? == *cid => return Ok(()),
            _ => ensure!(
                begun.elapsed() < LIMIT,
                "it does not arrive\n{}",
                pds.process.tail()
            ),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_with_a_fifth_of_the_store_serves_it_over_a_compaction_and_is_promoted() -> Outcome {
    let Some(stack) = Stack::start(ReplicaKind::Directory).await? else {
        return tests::skip("no stack without an emulator");
    };
    let replica = stack.replica(ReplicaKind::Directory, "followed-replica").await?;
    let url = replica.first().context("no replica")?.1.clone();
    let settings = |data: &str| -> Settings {
        stack
            .settings(&stack.place(data))
            .with_all(replica.clone())
            .with("PDS_LOG_SEGMENT_BYTES", &SEGMENT_BYTES.to_string())
            .with("PDS_CHECKPOINT_BYTES", "8388608")
            .with("PDS_PITR_WINDOW_DAYS", "0")
            .with("PDS_HANDOVER_TIMEOUT_MS", "15000")
            .with("PDS_STANDBY_POLL_MS", "50")
    };
    let writer = Pds::start(&settings("wide")).await?;
    let narrow = settings("narrow").with("PDS_DISK_BUDGET", &BUDGET.to_string());
    let standby = Pds::start_standby(&narrow).await?;
    let mut written = write(&writer).await?;
    let remote = stack.place("followed-replica");
    ensure!(
        used(&remote) > 4 * BUDGET,
        "the replica has {} bytes, packed",
        used(&remote)
    );
    arrived(&standby, &written).await?;
    until("the standby is within its budget", &standby, |data| {
        used(data) <= BUDGET
    })
    .await?;
    let watch = Watch::begin(&standby.data);
    check_records(&standby, &written).await?;
    check_events(&standby, &written).await?;
    let most = watch.end().await?;
    ensure!(most <= BUDGET + BETWEEN_LOOKS, "the standby had {most} bytes");
    ensure!(metric(&standby, "pds_tier_away_bytes").await? > 4.0 * BUDGET as f64);

    // The writer's log is compacted. What the standby has left in the replica goes from there.
    let data = writer.data.display().to_string();
    writer.stop().await?;
    let compact = ["compact", &data, "--keep-hours", "0", "--min-dead-share", "0"];
    verified(&[&compact[..], &["--replica", &url]].concat(), &replica).await?;
    let writer = Pds::start(&settings("wide")).await?;
    write_more(&writer, &mut written, 15).await?;
    until("the standby takes the compacted log", &standby, |_| {
        standby
            .process
            .output()
            .contains("it is taken from the replica anew")
    })
    .await?;
    arrived(&standby, &written).await?;
    let watch = Watch::begin(&standby.data);
    check_records(&standby, &written).await?;
    let most = watch.end().await?;
    ensure!(
        most <= BUDGET + BETWEEN_LOOKS,
        "behind the compaction the standby had {most} bytes"
    );

    let answer = standby
        .api
        .post_as_admin("/_peers/promote", ADMIN_PASSWORD)
        .await?;
    ensure!(answer.status == 202, "{}", answer.text());
    let begun = Instant::now();
    while let Err(error) = standby.api.post(&written.accounts[0], "promoted").await {
        ensure!(begun.elapsed() < LIMIT, "{error:#}\n{}", standby.process.tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut writer = writer;
    writer.process.terminate().await?;
    for (account, rkey, cid, seed) in written.records.iter().step_by(37) {
        let did = &written.accounts[*account].did;
        let record = standby.api.record(did, "com.example.thing", rkey).await?;
        ensure!(field(&record, "/cid")? == *cid, "record {rkey} has another CID");
        ensure!(field(&record, "/value/text")? == text(*seed));
    }
    let data = standby.data.display().to_string();
    standby.stop().await?;
    verified(&["verify", &data], &replica).await?;
    verified(&["verify", "--replica", &url], &replica).await?;
    stack.stop().await
}
