//! `pds-tools compact`: rewrites the old part of a log without what is dead in it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use engine::EngineConfig;
use engine::clock::{Clock, SystemClock};
use engine::compact::{CompactOptions, OfflineReport, Pace, Policy, compact_offline};
use engine::engine::Durability;
use engine::log::Lsn;
use engine::storage::OsStorage;
use serde_json::json;
use shipper::start::WRITERS_FILE;

use crate::{Outcome, progress, replica_url, restore, summary};
use audit::data_dir::DataDir;

/// The longest that one request to the replica may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Memory for pages of each index that is open meanwhile.
const INDEX_CACHE_BYTES: usize = 64 << 20;

/// What to compact.
#[derive(Debug, Args)]
pub struct Compact {
    /// The data directory of a server that is stopped.
    dir: PathBuf,
    /// Tell what would be freed, and change nothing. (A compaction that a crash interrupted is ended all the same.)
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Entries of the last so many hours stay as they are: subscribers of the firehose may still ask for them.
    #[arg(
        long,
        value_name = "HOURS",
        env = "PDS_FIREHOSE_RETENTION_HOURS",
        default_value_t = 72
    )]
    keep_hours: u64,
    /// Compact only if at least this share of the bytes is freed, 0 to 1.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    min_dead_share: f64,
    /// The server's replica, if it has one: only what is in it as whole segments is compacted.
    #[arg(long, value_name = "URL", env = "PDS_REPLICA_URL")]
    replica: Option<String>,
}

impl Compact {
    /// Compacts.
    ///
    /// # Errors
    /// A server has the directory, the log is damaged, or the disk failed. Doing it again is always safe.
    pub fn run(self, out: &mut dyn Write) -> anyhow::Result<Outcome> {
        if !(0.0..=1.0).contains(&self.min_dead_share) {
            bail!("--min-dead-share is a number from 0 to 1");
        }
        let dir = DataDir::open(&self.dir)?;
        if dir.running {
            bail!("a server has {} open; it compacts by itself", self.dir.display());
        }
        if !dir.away.is_empty() {
            bail!(
                "{} segments are not in {} but in the replica; restore it into an empty directory, and compact that",
                dir.away.len(),
                self.dir.display()
            );
        }
        let keep = self.keep_hours.saturating_mul(3_600 * 1_000_000);
        let old = Lsn::saturating(SystemClock.now_micros().saturating_sub(keep));
        let policy = Policy {
            limit: old.min(shipped(&self.dir, self.replica.as_deref())?),
            min_dead_share: self.min_dead_share,
            min_dead_bytes: 1,
            force_before: Lsn::ZERO,
            erase: None,
        };
        let bar = progress::bar("compacting", 0);
        let shown = bar.clone();
        let pace: Pace = Arc::new(move |bytes| {
            shown.inc(bytes);
            Ok(())
        });
        let options = CompactOptions {
            pace,
            index_cache_bytes: INDEX_CACHE_BYTES,
            ..CompactOptions::default()
        };
        let config = EngineConfig {
            index_cache_bytes: INDEX_CACHE_BYTES,
            ..EngineConfig::new(&self.dir, Durability::Local)
        };
        let report = compact_offline(&config, Arc::new(OsStorage), &policy, &options, self.dry_run);
        bar.finish_and_clear();
        let report = report.with_context(|| format!("compacting {}", self.dir.display()))?;
        if self.json {
            writeln!(out, "{}", as_json(&report))?;
        } else {
            print(&report, self.dry_run, out)?;
        }
        Ok(Outcome::Clean)
    }
}

/// How far the log may be compacted for its replica's sake: what is not in it as whole segments is still to be shipped.
fn shipped(dir: &Path, replica: Option<&str>) -> anyhow::Result<Lsn> {
    let Some(url) = replica else {
        if dir.join(WRITERS_FILE).exists() {
            bail!(
                "{} has a replica: name it with --replica, so that nothing is compacted that is not in it yet",
                dir.display()
            );
        }
        return Ok(Lsn::MAX);
    };
    let store = replica_url::open(url)?;
    let found = restore::runtime()?.block_on(shipper::fence::survey(&store, REQUEST_TIMEOUT))?;
    Ok(found.map_or(Lsn::ZERO, |replica| replica.manifest.covered_lsn()))
}

fn as_json(report: &OfflineReport) -> serde_json::Value {
    json!({
        "plan": report.plan.map(|plan| json!({
            "through": plan.through.get(),
            "segments": plan.segments,
            "bytes": plan.bytes,
            "bytesAfterEstimated": plan.bytes_after,
            "deadShareEstimated": plan.dead_share(),
            "due": plan.due,
        })),
        "done": report.done.map(|done| json!({
            "compaction": done.compaction,
            "through": done.through.get(),
            "segmentsBefore": done.segments_before,
            "segmentsAfter": done.segments_after,
            "bytesBefore": done.bytes_before,
            "bytesAfter": done.bytes_after,
            "repos": done.repos,
            "records": done.records,
            "recordBytes": done.record_bytes,
        })),
    })
}

fn print(report: &OfflineReport, dry_run: bool, out: &mut dyn Write) -> std::io::Result<()> {
    let Some(plan) = report.plan else {
        return writeln!(
            out,
            "nothing may be compacted: no sealed segment is old enough and shipped"
        );
    };
    writeln!(
        out,
        "{} segments up to {} with {} bytes, of which about {} ({:.0} %) are dead",
        plan.segments,
        summary::time(plan.through),
        plan.bytes,
        plan.freed(),
        plan.dead_share() * 100.0
    )?;
    match report.done {
        Some(done) => writeln!(
            out,
            "replaced by {} segments with {} bytes: {} records of {} repos with {} bytes, and the accounts",
            done.segments_after, done.bytes_after, done.records, done.repos, done.record_bytes
        ),
        None if plan.due && dry_run => writeln!(out, "a compaction would free them; nothing was changed"),
        None => writeln!(
            out,
            "that is less than --min-dead-share asks for; nothing was changed"
        ),
    }
}
