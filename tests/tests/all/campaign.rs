//! Rounds of real processes under concurrent writes, each with something that goes wrong, over a store that answers badly: killed,
//! stopped, suspended and woken, a full disk, a deleted directory, a swap of revisions. Nothing acknowledged is lost, nothing is
//! told twice, and the store verifies clean after every round (I1, I2, I3, I5).
//!
//! `PDS_ROUNDS` = how many (3), `PDS_ROUND_SEED` = the first one's seed (1).

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::api::{Account, Api, Written, field};
use tests::events::{Follower, gapless};
use tests::fault_proxy::FaultProxy;
use tests::random::Random;
use tests::stack::{Pds, ReplicaKind, SOON, Settings, Stack};
use tests::tools::verified;
use tests::{Outcome, number, skip};
use tokio::task::JoinSet;

/// Accounts that write at the same time, two writers each.
const ACCOUNTS: usize = 3;

/// How long a platform may have to start a server anew before a round has failed.
const STARTED_WITHIN: Duration = Duration::from_secs(180);

/// What goes wrong in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Kill,
    KillAndLoseTheDisk,
    Terminate,
    Suspend,
    SuspendAndTakeOver,
    Swap,
    DeleteTheDirectory,
    FullDisk,
}

const KINDS: [Trouble; 8] = [
    Trouble::Kill,
    Trouble::KillAndLoseTheDisk,
    Trouble::Terminate,
    Trouble::Suspend,
    Trouble::SuspendAndTakeOver,
    Trouble::Swap,
    Trouble::DeleteTheDirectory,
    Trouble::FullDisk,
];

async fn write(api: Api, account: Account, number: usize, stop: Arc<AtomicBool>) -> Vec<Written> {
    let mut acknowledged = Vec::new();
    let mut refused = 0;
    for n in 0u64.. {
        if stop.load(Ordering::Acquire) || refused > 20 {
            break;
        }
        let text = format!(
            "writer {number}, number {n}, {}",
            "x".repeat(usize::try_from(n % 5).unwrap_or(0) * 300)
        );
        match api.post(&account, &text).await {
            Ok(written) => {
                acknowledged.push(written);
                refused = 0;
            }
            Err(_) => {
                refused += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    acknowledged
}

/// Posts, again while a request to the store that was struck before still hangs, and the server answers 503 for it.
async fn posted(api: &Api, account: &Account, text: &str) -> Result<Written> {
    let begun = Instant::now();
    loop {
        match api.post(account, text).await {
            Err(error) if begun.elapsed() < SOON * 2 && error.to_string().contains("503") => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            answered => return answered,
        }
    }
}

/// Removes a directory in which a server makes files meanwhile.
fn remove_under_a_writer(dir: &Path) -> std::io::Result<()> {
    let mut tries = 0;
    loop {
        match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty && tries < 1_000 => {
                tries += 1;
            }
            done => return done,
        }
    }
}

/// Starts a server, again if it ends: a store that refuses it for a moment (an expired token, say) ends a start with an error, and
/// a platform starts it anew.
async fn started(settings: &Settings) -> Result<Pds> {
    let (begun, mut tries) = (Instant::now(), 0);
    loop {
        match Pds::start(settings).await {
            Ok(pds) => return Ok(pds),
            Err(error) if begun.elapsed() > STARTED_WITHIN => {
                return Err(error.context(format!("start {}", tries + 1)));
            }
            Err(error) => {
                tries += 1;
                let text = format!("{error:#}");
                ensure!(!text.contains("panicked"), "{text}");
                let last: Vec<&str> = text
                    .lines()
                    .rev()
                    .take(if text.contains("panicked") { 40 } else { 12 })
                    .collect();
                println!(
                    "    a start failed: {}",
                    last.into_iter().rev().collect::<Vec<_>>().join("\n      ")
                );
                // As a platform does, before it tries again.
                tokio::time::sleep(Duration::from_millis(300 * tries.min(10))).await;
            }
        }
    }
}

/// How long an answer takes past the proxy and through it, to tell an emulator that hangs from a server that does.
async fn answers_in(urls: [&str; 2]) -> String {
    let mut told = Vec::new();
    for url in urls {
        let begun = Instant::now();
        let client = reqwest::Client::builder().no_proxy().build();
        let answer = match client {
            Ok(client) => client.get(url).timeout(SOON).send().await,
            Err(error) => Err(error),
        };
        let what = answer.map_or_else(|error| error.to_string(), |answer| answer.status().to_string());
        told.push(format!("{url}: {what} after {:?}", begun.elapsed()));
    }
    told.join("; ")
}

/// What holds over all rounds.
struct World<'a> {
    stack: &'a Stack,
    proxy: FaultProxy,
    /// Of the server: through the proxy.
    replica: Vec<(String, String)>,
    /// Of the checks: past the proxy.
    direct: Vec<(String, String)>,
    random: Random,
    lives: u64,
}

impl World<'_> {
    fn settings(&mut self) -> Settings {
        self.lives += 1;
        self.stack
            .settings(&self.stack.place(&format!("life-{}", self.lives)))
            .with_all(self.replica.clone())
            .with("PDS_DURABILITY", "remote")
            .with(
                "PDS_LOG_SEGMENT_BYTES",
                &self
                    .random
                    .choose(&[65_536, 65_536, 262_144, 4_194_304])
                    .to_string(),
            )
            .with("PDS_CHECKPOINT_BYTES", "1048576")
            .with(
                "PDS_REPLICA_IN_FLIGHT",
                &self.random.choose(&[1, 4, 8, 16]).to_string(),
            )
            .with("PDS_REPLICA_TIMEOUT_MS", "3000")
            .with("PDS_WRITE_TIMEOUT_MS", "10000")
            .with("PDS_HANDOVER_TIMEOUT_MS", "3000")
            .with("PDS_LEASE_SECONDS", "3")
    }

    /// One round: yields the server that is the writer after it.
    async fn round(&mut self, kind: Trouble, mut pds: Pds, settings: Settings) -> Result<(Pds, Settings)> {
        let next = self.settings();
        match kind {
            Trouble::Kill => {
                pds.process.kill().await?;
                drop(pds);
                Ok((started(&settings).await?, settings))
            }
            Trouble::KillAndLoseTheDisk => {
                pds.process.kill().await?;
                std::fs::remove_dir_all(&pds.data)?;
                drop(pds);
                Ok((started(&next).await?, next))
            }
            Trouble::Terminate => {
                let (status, _) = pds.process.terminate().await?;
                // With a store that does not answer it says so, and its next start ships the rest.
                ensure!(status.code().is_some(), "{status}: {}", pds.process.tail());
                drop(pds);
                Ok((started(&settings).await?, settings))
            }
            Trouble::Suspend => {
                pds.process.signal("STOP").await?;
                tokio::time::sleep(Duration::from_millis(self.random.between(200, 1500))).await;
                pds.process.signal("CONT").await?;
                Ok((pds, settings))
            }
            Trouble::SuspendAndTakeOver => {
                pds.process.signal("STOP").await?;
                let new = started(&next).await?;
                pds.process.signal("CONT").await?;
                let status = pds.process.wait(SOON * 2).await?;
                ensure!(
                    status.code() == Some(3),
                    "woken: {status}: {}",
                    pds.process.tail()
                );
                Ok((new, next))
            }
            Trouble::Swap => {
                let new = started(&next).await?;
                let (status, _) = pds.process.terminate().await?;
                ensure!(status.code().is_some(), "{status}: {}", pds.process.tail());
                Ok((new, next))
            }
            Trouble::DeleteTheDirectory => {
                // It runs on with open files until it notices, or is ended; what it acknowledged is in the replica.
                remove_under_a_writer(&pds.data)?;
                tokio::time::sleep(Duration::from_millis(self.random.between(100, 800))).await;
                pds.process.kill().await?;
                drop(pds);
                Ok((started(&next).await?, next))
            }
            Trouble::FullDisk => {
                // Whatever is written behind the first 70 kB of any file fails, as on a disk without room.
                let pid = pds.process.id().context("no process")?;
                let limited = tokio::process::Command::new("prlimit")
                    .args([format!("--pid={pid}"), "--fsize=70000".to_owned()])
                    .status()
                    .await?;
                ensure!(limited.success(), "prlimit: {limited}");
                tokio::time::sleep(Duration::from_millis(self.random.between(300, 1500))).await;
                pds.process.kill().await?;
                drop(pds);
                Ok((started(&settings).await?, settings))
            }
        }
    }
}

async fn rounds(count: u64) -> Outcome {
    let kind = ReplicaKind::Azure;
    let seed = number("PDS_ROUND_SEED", 1);
    let Some(stack) = Stack::start(kind).await? else {
        return skip("Azurite is not installed");
    };
    println!("PDS_ROUND_SEED={seed} PDS_ROUNDS={count}");
    let direct = stack.replica(kind, "campaign").await?;
    let url = direct
        .iter()
        .find(|(name, _)| name == "PDS_REPLICA_URL")
        .context("no replica")?
        .1
        .clone();
    let base = url
        .split("/devstoreaccount1")
        .next()
        .context("no base")?
        .to_owned();
    let proxy = FaultProxy::start(&base, seed).await?;
    let through = url.replacen(&base, &proxy.url, 1);
    let replica: Vec<_> = direct
        .iter()
        .map(|(name, value)| match name.as_str() {
            "PDS_REPLICA_URL" => (name.clone(), through.clone()),
            _ => (name.clone(), value.clone()),
        })
        .collect();
    let mut world = World {
        stack: &stack,
        proxy,
        replica,
        direct,
        random: Random::new(seed),
        lives: 0,
    };
    let mut settings = world.settings();
    let mut pds = started(&settings).await?;
    let mut accounts = Vec::new();
    for n in 0..ACCOUNTS {
        accounts.push(pds.api.create_account(&format!("writer{n}")).await?);
    }
    let follower = Follower::start(&pds.url);
    let mut all: Vec<Written> = Vec::new();
    let mut checked = 0;
    for round in 0..count {
        let kind = KINDS[usize::try_from(world.random.between(0, KINDS.len() as u64 - 1))?];
        world
            .proxy
            .strike([0, 20, 60, 120][usize::try_from(world.random.between(0, 3))?]);
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = JoinSet::new();
        for n in 0..ACCOUNTS * 2 {
            let account = accounts[n % ACCOUNTS].clone();
            writers.spawn(write(pds.api.clone(), account, n, stop.clone()));
        }
        tokio::time::sleep(Duration::from_millis(world.random.between(150, 1200))).await;
        println!("  round {round}: {kind:?}");
        let went = Box::pin(world.round(kind, pds, settings)).await;
        if went.is_err() {
            println!("  {}", answers_in([&base, &world.proxy.url]).await);
        }
        (pds, settings) = went.with_context(|| format!("round {round}, {kind:?}, seed {seed}"))?;
        follower.moved(&pds.url);
        stop.store(true, Ordering::Release);
        let acknowledged: Vec<Written> = writers.join_all().await.into_iter().flatten().collect();
        world.proxy.strike(0);
        // One more of each, so that the next check has an end that everybody knows.
        let mut last = None;
        for account in &accounts {
            let written = posted(&pds.api, account, &format!("after round {round}")).await;
            let written = written.with_context(|| format!("round {round}, {kind:?}, seed {seed}"))?;
            all.push(written.clone());
            last = Some(written);
        }
        let last = last.context("no account")?;
        for written in &acknowledged {
            let record = pds
                .api
                .record(&written.did, &written.collection, &written.rkey)
                .await;
            let record =
                record.with_context(|| format!("round {round}, {kind:?}, seed {seed}: lost {written:?}"))?;
            ensure!(field(&record, "/cid")? == written.cid);
        }
        let new = acknowledged.len();
        all.extend(acknowledged);
        follower
            .reached(&last.commit, SOON)
            .await
            .with_context(|| format!("round {round}, {kind:?}, seed {seed}"))?;
        verified(&["verify", "--replica", &url], &world.direct)
            .await
            .with_context(|| format!("round {round}, {kind:?}, seed {seed}"))?;
        // The whole history again and again would cost the square of the rounds.
        if round % 10 == 9 || round + 1 == count {
            checked = gapless(&follower.seen(), &pds.url, &all, &last, SOON * 2)
                .await
                .with_context(|| format!("after round {round}, {kind:?}, seed {seed}"))?;
        }
        println!("  round {round}: {kind:?}, {new} writes acknowledged");
        use std::io::Write;
        std::io::stdout().flush()?;
    }
    let unique: HashSet<&str> = all.iter().map(|written| written.cid.as_str()).collect();
    println!(
        "{count} rounds: {} writes acknowledged ({} different), {checked} events, faults {:?}",
        all.len(),
        unique.len(),
        world.proxy.struck()
    );
    let data = pds.data.clone();
    let replica = world.direct.clone();
    pds.stop().await?;
    verified(&["verify", &data.display().to_string()], &replica).await?;
    stack.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_goes_wrong_with_processes_and_store_nothing_is_lost() -> Outcome {
    rounds(number("PDS_ROUNDS", 3)).await
}
