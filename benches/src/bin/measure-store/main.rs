//! `measure-store`: what a store that `build-store` made costs to open, to write to and to ask, without a server around
//! it. Prints one line of JSON. It writes to the store: what is measured is the real thing.

mod kinds;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use benches::growing::{GrowingRepo, mixed};
use benches::process::{self, Usage};
use benches::synthetic::Head;
use clap::{Parser, Subcommand};
use engine::clock::{SystemClock, SystemEntropy};
use engine::engine::{Durability, Engine, EngineConfig, EnginePrelude, Shutdown, StartOptions};
use engine::log::Epoch;
use engine::storage::OsStorage;
use redb::{ReadableDatabase, ReadableTableMetadata, TableHandle};
use serde_json::{Value, json};

/// Measures one thing of a store.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
    /// The store's seed.
    #[arg(long, global = true, default_value_t = 1)]
    seed: u64,
    /// Memory for pages of the index, MiB.
    #[arg(long, global = true, default_value_t = 64)]
    index_cache: usize,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Opens the store, and commits single records to one repo, one after the other, each awaited until it is durable.
    Write {
        /// The data directory.
        dir: PathBuf,
        /// Which repo, as `build-store` numbers them.
        #[arg(long, default_value_t = 0)]
        repo: u64,
        /// How many commits.
        #[arg(long, default_value_t = 500)]
        count: u64,
        /// Records of a commit.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=200))]
        batch: u64,
        /// Forgets the tree before each: all nodes come from the index.
        #[arg(long)]
        cold: bool,
        /// Ends without closing anything, as a kill does.
        #[arg(long)]
        abort: bool,
    },
    /// Looks up records of one repo at random, and reads their bytes.
    Lookup {
        /// The data directory.
        dir: PathBuf,
        /// Which repo.
        #[arg(long, default_value_t = 0)]
        repo: u64,
        /// How many.
        #[arg(long, default_value_t = 100_000)]
        count: u64,
    },
    /// Rows and bytes of every table of the index.
    Tables {
        /// The data directory.
        dir: PathBuf,
    },
    /// The records table as redb keeps it, against immutable sorted files: an experiment, not what the engine does.
    Kinds {
        /// An empty directory for the files.
        dir: PathBuf,
        /// Records.
        #[arg(long, default_value_t = 1_000_000)]
        records: u64,
        /// Repos that they belong to, in turns.
        #[arg(long, default_value_t = 1_000)]
        repos: u32,
    },
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("measure-store: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<Value> {
    match &arguments.what {
        What::Write {
            dir,
            repo,
            count,
            batch,
            cold,
            abort,
        } => {
            let mut opened = Opened::open(dir, arguments, *repo)?;
            let line = opened.write(*count, *batch, *cold)?;
            if *abort {
                println!("{line}");
                die();
            }
            opened.close()?;
            Ok(line)
        }
        What::Lookup { dir, repo, count } => {
            let opened = Opened::open(dir, arguments, *repo)?;
            let line = opened.lookup(*count)?;
            opened.close()?;
            Ok(line)
        }
        What::Tables { dir } => tables(&dir.join("index.redb")),
        What::Kinds { dir, records, repos } => kinds::compare(dir, *records, *repos),
    }
}

/// Ends the process as a kill does.
#[expect(
    clippy::disallowed_methods,
    reason = "that nothing is closed is what is measured"
)]
fn die() -> ! {
    std::process::abort()
}

/// A store that was opened, and one of its repos.
struct Opened {
    engine: Engine,
    runtime: tokio::runtime::Runtime,
    repo: GrowingRepo,
    started: Instant,
    recover_ms: f64,
    start_ms: f64,
    replayed_bytes: u64,
}

impl Opened {
    fn open(dir: &Path, arguments: &Arguments, number: u64) -> Result<Opened> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let started = Instant::now();
        let mut config = EngineConfig::new(dir, Durability::Local);
        config.index_cache_bytes = arguments.index_cache << 20;
        let prelude = EnginePrelude::recover(config, Arc::new(OsStorage))?;
        let recover_ms = millis(started.elapsed());
        let epoch = Epoch(prelude.last_epoch().0 + 1);
        let mut options = StartOptions::local(epoch);
        let replayed = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let told = Arc::clone(&replayed);
        options.on_replay =
            Box::new(move |progress| told.store(progress.bytes, std::sync::atomic::Ordering::Relaxed));
        let engine = prelude.start(Arc::new(SystemClock), &SystemEntropy, options)?;
        runtime.block_on(engine.ready())?;
        let start_ms = millis(started.elapsed()) - recover_ms;
        let mut repo = GrowingRepo::new(number, arguments.seed)?;
        let head = engine
            .reader()?
            .repo(&repo.did)?
            .context("the store has no such repo")?;
        let at = Head {
            commit: head.commit,
            rev: head.rev,
            data: head.data,
        };
        repo.stands_at(at, head.counts.records);
        Ok(Opened {
            engine,
            runtime,
            repo,
            started,
            recover_ms,
            start_ms,
            replayed_bytes: replayed.load(std::sync::atomic::Ordering::Relaxed),
        })
    }

    fn write(&mut self, count: u64, batch: u64, cold: bool) -> Result<Value> {
        let before_records = self.repo.records();
        let mut first_ms = None;
        let (mut took, mut building) = (Vec::new(), Vec::new());
        let mut before: Option<Usage> = None;
        for _ in 0..count {
            if cold {
                self.repo.forget();
            }
            let at = Instant::now();
            let nodes = self
                .engine
                .reader()?
                .nodes(&self.repo.did)?
                .context("no such repo")?;
            let draft = self.repo.commit(batch, &nodes)?;
            building.push(micros(at.elapsed()));
            let receipt = self.engine.append(vec![draft])?;
            self.runtime.block_on(receipt.durable())?;
            took.push(micros(at.elapsed()));
            if first_ms.is_none() {
                first_ms = Some(millis(self.started.elapsed()));
                // The first one warms up; what it costs is in the time to it.
                (took, building) = (Vec::new(), Vec::new());
                before = Some(process::usage()?);
            }
        }
        let (before, after) = (before.unwrap_or_default(), process::usage()?);
        let each = |from: f64, to: f64| (to - from) / (count.max(2) - 1) as f64;
        Ok(json!({
            "records_before": before_records,
            "cold": cold,
            "recover_ms": self.recover_ms,
            "start_ms": self.start_ms,
            "replayed_bytes": self.replayed_bytes,
            "first_write_ms": first_ms,
            "build_us": quantiles(&mut building),
            "durable_us": quantiles(&mut took),
            "cpu_us_each": each(before.cpu_seconds, after.cpu_seconds) * 1e6,
            "written_bytes_each": each(before.written_bytes as f64, after.written_bytes as f64),
            "rss_bytes": after.rss_bytes,
        }))
    }

    fn lookup(&self, count: u64) -> Result<Value> {
        let records = self.repo.records().max(1);
        let (began, before) = (Instant::now(), process::usage()?);
        let (mut took, mut bytes) = (Vec::new(), 0);
        for number in 0..count {
            let path = self.repo.path(mixed(number) % records)?;
            let at = Instant::now();
            let reader = self.engine.reader()?;
            let row = reader.record(&self.repo.did, &path)?;
            let row = row.with_context(|| format!("{path} is not there"))?;
            bytes += self.engine.read_at(row.location)?.len() as u64;
            took.push(micros(at.elapsed()));
        }
        let (seconds, after) = (began.elapsed().as_secs_f64(), process::usage()?);
        Ok(json!({
            "records": records,
            "lookups_per_second": count as f64 / seconds,
            "cpu_us_each": (after.cpu_seconds - before.cpu_seconds) * 1e6 / count as f64,
            "us": quantiles(&mut took),
            "bytes_each": bytes as f64 / count as f64,
            "recover_ms": self.recover_ms,
            "start_ms": self.start_ms,
            "rss_bytes": after.rss_bytes,
        }))
    }

    fn close(self) -> Result<()> {
        self.runtime.block_on(self.engine.shutdown(Shutdown {
            drain: Duration::from_secs(60),
            checkpoint: false,
        }))?;
        Ok(())
    }
}

fn tables(path: &Path) -> Result<Value> {
    let database = redb::ReadOnlyDatabase::open(path).context("stop whoever has it open, in order")?;
    let transaction = database.begin_read()?;
    let mut found = serde_json::Map::new();
    for handle in transaction.list_tables()? {
        let name = handle.name().to_owned();
        let table = transaction.open_untyped_table(handle)?;
        let stats = table.stats()?;
        found.insert(
            name,
            json!({
                "rows": table.len()?,
                "height": stats.tree_height(),
                "stored_bytes": stats.stored_bytes(),
                "metadata_bytes": stats.metadata_bytes(),
                "fragmented_bytes": stats.fragmented_bytes(),
            }),
        );
    }
    Ok(json!({ "file_bytes": std::fs::metadata(path)?.len(), "tables": found }))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Least, median and 99th percentile.
fn quantiles(values: &mut [u64]) -> Value {
    values.sort_unstable();
    let at = |part: usize| values.get((values.len() * part / 100).min(values.len().saturating_sub(1)));
    json!({ "min": values.first(), "p50": at(50), "p99": at(99) })
}
