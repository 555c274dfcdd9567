//! `build-store`: writes a data directory of any size, as the server would have written it: signed commits in a log,
//! views that were folded from it, accounts that can log in. `pds` serves it, `pds-tools verify` passes it.
//!
//! Everything goes through [`Engine::append`]. Memory does not grow with the store: of each tree only what was touched
//! since it was last applied is kept, and a bounded number of commits is on its way at a time.

#[cfg(feature = "accounts")]
mod accounts;
#[cfg(not(feature = "accounts"))]
#[path = "no_accounts.rs"]
mod accounts;

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use benches::growing::GrowingRepo;
use benches::process;
use bytes::Bytes;
use clap::Parser;
use engine::clock::{ScriptedClock, SeededEntropy};
use engine::engine::{Durability, Engine, EngineConfig, EnginePrelude, Receipt, Shutdown, StartOptions};
use engine::entry::EntryDraft;
use engine::log::Epoch;
use engine::repo::Cid;
use engine::repo::mst::NodeSource;
use engine::storage::OsStorage;

use accounts::Accounts;

/// Repos that grow at the same time.
const OPEN_REPOS: usize = 1_000;
/// Bytes that all open trees together may take before they are trimmed.
const TREES_BYTES: usize = 64 << 20;
/// Least bytes of one tree that are worth trimming.
const TREE_BYTES_MIN: usize = 16 << 10;
/// Groups on their way to the log and the views.
const IN_FLIGHT: usize = 64;
/// When the store's first entry was written, microseconds since 1970: the clock stands still there, so that the same
/// command writes the same entries.
const BEGINNING_MICROS: u64 = 1_735_689_600_000_000;

/// Builds a data directory with repos of a given size.
#[derive(Debug, Parser)]
struct Arguments {
    /// The directory; it must not have a log yet.
    dir: PathBuf,
    /// How many repos with how many records each, such as 1x10000000 or 1000x10000; may be given several times.
    #[arg(long = "repos", required = true, value_parser = parse_mix)]
    mix: Vec<Mix>,
    /// Records of a commit.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=200))]
    batch: u64,
    /// Other records for another seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The server's PLC rotation key, 64 hex digits: the accounts' signing keys are wrapped under what is derived from it.
    #[arg(
        long,
        default_value = "1111111111111111111111111111111111111111111111111111111111111111"
    )]
    rotation_key: String,
    /// Domain of the handles load-0, load-1, …
    #[arg(long, default_value = "test")]
    handle_domain: String,
    /// Password of every account; one hash for all.
    #[arg(long, default_value = "load-generator")]
    password: String,
    /// Memory for pages of the index, MiB.
    #[arg(long, default_value_t = 256)]
    index_cache: usize,
}

/// `repos` repositories of `records` records.
#[derive(Clone, Copy, Debug)]
struct Mix {
    repos: u64,
    records: u64,
}

fn parse_mix(text: &str) -> Result<Mix, String> {
    let (repos, records) = text.split_once('x').ok_or("not of the form REPOSxRECORDS")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
    Ok(Mix {
        repos: number(repos)?,
        records: number(records)?,
    })
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("build-store: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let started = Instant::now();
    let mut config = EngineConfig::new(&arguments.dir, Durability::Local);
    config.index_cache_bytes = arguments.index_cache << 20;
    let prelude = EnginePrelude::recover(config, Arc::new(OsStorage)).context("opening the directory")?;
    ensure!(prelude.log_id().is_none(), "there is a log already");
    let entropy = Arc::new(SeededEntropy::new(arguments.seed));
    let clock = Arc::new(ScriptedClock::at(BEGINNING_MICROS));
    let engine = prelude.start(clock, &*entropy, StartOptions::local(Epoch(1)))?;
    let (repos, records) = runtime.block_on(async {
        engine.ready().await?;
        let accounts = Accounts::new(
            engine.clone(),
            entropy,
            &arguments.rotation_key,
            &arguments.handle_domain,
            &arguments.password,
        )
        .await?;
        let mut builder = Builder {
            engine: engine.clone(),
            arguments,
            accounts,
            flight: VecDeque::new(),
            records: 0,
            told: Instant::now(),
            started,
        };
        let repos = builder.all().await?;
        Ok::<_, anyhow::Error>((repos, builder.records))
    })?;
    let log_bytes = engine.log_bytes();
    runtime.block_on(engine.shutdown(Shutdown {
        drain: Duration::from_secs(600),
        checkpoint: false,
    }))?;
    let seconds = started.elapsed().as_secs_f64();
    let index_bytes = std::fs::metadata(arguments.dir.join("index.redb"))?.len();
    let usage = process::usage()?;
    Ok(serde_json::json!({
        "repos": repos,
        "records": records,
        "seconds": seconds,
        "cpu_seconds": usage.cpu_seconds,
        "records_per_second": records as f64 / seconds,
        "log_bytes": log_bytes,
        "index_bytes": index_bytes,
        "written_bytes": usage.written_bytes,
        "rss_peak_bytes": usage.rss_peak_bytes,
    })
    .to_string())
}

/// A repo that is growing.
struct Open {
    repo: GrowingRepo,
    left: u64,
    /// Commits on their way.
    pending: usize,
}

struct Builder<'a> {
    engine: Engine,
    arguments: &'a Arguments,
    accounts: Accounts,
    /// What is on its way, oldest first, and which open repo's it is.
    flight: VecDeque<(usize, Receipt)>,
    records: u64,
    told: Instant,
    started: Instant,
}

impl Builder<'_> {
    /// Builds all repos, and gives their number.
    async fn all(&mut self) -> Result<u64> {
        let mut number = 0;
        for mix in &self.arguments.mix {
            let mut left = mix.repos;
            while left > 0 {
                let count = left.min(OPEN_REPOS as u64);
                let mut open = Vec::new();
                for _ in 0..count {
                    open.push(Open {
                        repo: GrowingRepo::new(number, self.arguments.seed)?,
                        left: mix.records,
                        pending: 0,
                    });
                    number += 1;
                }
                self.wave(number - count, open).await?;
                left -= count;
            }
        }
        Ok(number)
    }

    /// Grows these repos in turns to their end.
    async fn wave(&mut self, first: u64, mut open: Vec<Open>) -> Result<()> {
        let repos = open.iter_mut().map(|open| &mut open.repo);
        self.accounts.create(first, repos).await?;
        let tree_bytes = (TREES_BYTES / open.len().max(1)).max(TREE_BYTES_MIN);
        while open.iter().any(|open| open.left > 0) {
            for at in 0..open.len() {
                let Some(this) = open.get_mut(at).filter(|this| this.left > 0) else {
                    continue;
                };
                let count = this.left.min(self.arguments.batch);
                let draft = commit(&self.engine, &mut this.repo, count)?;
                this.left -= count;
                this.pending += 1;
                self.records += count;
                let receipt = self.engine.append(vec![draft])?;
                self.flight.push_back((at, receipt));
                if self.flight.len() >= IN_FLIGHT {
                    self.land(&mut open).await?;
                }
                if open
                    .get(at)
                    .is_some_and(|this| this.repo.tree_bytes() > tree_bytes)
                {
                    self.trim(&mut open, at).await?;
                }
            }
            self.tell();
        }
        while !self.flight.is_empty() {
            self.land(&mut open).await?;
        }
        Ok(())
    }

    /// Waits for the oldest that is on its way.
    async fn land(&mut self, open: &mut [Open]) -> Result<()> {
        if let Some((at, receipt)) = self.flight.pop_front() {
            receipt.durable().await?;
            if let Some(this) = open.get_mut(at) {
                this.pending -= 1;
            }
        }
        Ok(())
    }

    /// Forgets the tree of one repo, which has to be in the index for that.
    async fn trim(&mut self, open: &mut [Open], at: usize) -> Result<()> {
        while open.get(at).is_some_and(|this| this.pending > 0) {
            self.land(open).await?;
        }
        if let Some(this) = open.get_mut(at) {
            this.repo.trim();
        }
        Ok(())
    }

    fn tell(&mut self) {
        if self.told.elapsed() > Duration::from_secs(10) {
            self.told = Instant::now();
            let seconds = self.started.elapsed().as_secs_f64();
            eprintln!("{} records, {:.0}/s", self.records, self.records as f64 / seconds);
        }
    }
}

/// The repo's next `count` records as an entry. Nodes that were forgotten come from the index.
fn commit(engine: &Engine, repo: &mut GrowingRepo, count: u64) -> Result<EntryDraft> {
    let nodes = engine.reader()?.nodes(&repo.did)?;
    let nothing = HashMap::<Cid, Bytes>::new();
    let source: &dyn NodeSource = match &nodes {
        Some(nodes) => nodes,
        None => &nothing,
    };
    match repo.commit(count, source) {
        Ok(draft) => Ok(draft),
        Err(error) => bail!("{}: {error:#}", repo.did),
    }
}
