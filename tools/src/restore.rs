//! `pds-tools restore`: a data directory from its replica, as it is or as it was.

mod accounts;
mod at;
mod live;
pub mod past;
mod records;
mod transplant;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use engine::clock::SystemClock;
use engine::log::Lsn;
use engine::storage::OsStorage;
use indicatif::ProgressBar;
use shipper::readers::Announce;
use shipper::restore::{self, Progress, RestoreOptions, Restored};
use shipper::store::ReplicaStore;

use crate::{Outcome, progress, replica_url, summary};

/// The longest that one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// What to restore, and where to.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Restore {
    #[command(subcommand)]
    part: Option<Part>,
    /// The replica: file:///dir, `https://ACCOUNT.blob.core.windows.net/CONTAINER[/PREFIX]` or `s3://BUCKET[/PREFIX]`, with the
    /// server's PDS_REPLICA_* variables.
    #[arg(long, value_name = "URL", env = "PDS_REPLICA_URL", required = true)]
    replica: Option<String>,
    /// An empty directory, or one that is not there yet.
    #[arg(required_unless_present = "to")]
    dir: Option<PathBuf>,
    /// The same.
    #[arg(long, value_name = "DIR", conflicts_with = "dir")]
    to: Option<PathBuf>,
    /// Leave out the copies of the views; the first start then rebuilds them from the log.
    #[arg(long, conflicts_with = "at")]
    without_checkpoint: bool,
    /// Restore the store as it was then, as a new log: an LSN or a time such as 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "WHEN", value_parser = crate::inspect::when)]
    at: Option<Lsn>,
    /// Where a restore of an earlier moment works; needs room for the log twice and for the views.
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir(), requires = "at")]
    temp_dir: PathBuf,
}

/// A part of a server that is running.
#[derive(Debug, Subcommand)]
enum Part {
    /// Bring one record back to what it was. Shows the difference; --apply writes it, as an ordinary commit.
    Record(records::Record),
    /// Bring all records of an account back to what they were. Shows the difference; --apply writes it, as ordinary commits.
    Account(records::Account),
}

impl Restore {
    /// Restores.
    ///
    /// # Errors
    /// The directory is not empty, or the replica cannot be read or is damaged.
    pub fn run(self, out: &mut dyn Write) -> anyhow::Result<Outcome> {
        match self.part {
            Some(Part::Record(record)) => return record.run(out),
            Some(Part::Account(account)) => return account.run(out),
            None => {}
        }
        let replica = self.replica.context("a replica to restore from")?;
        let store = replica_url::open(&replica)?;
        let dir = self.to.or(self.dir).context("a directory to restore into")?;
        if let Some(cut) = self.at {
            if restore::is_unfinished(&dir) {
                bail!("a restore into {} did not end; empty it first", dir.display());
            }
            require_empty(&dir)?;
            return at::run(&store, cut, &dir, &self.temp_dir, out);
        }
        require_empty(&dir)?;
        let restored = blocking_restore(&store, &dir, !self.without_checkpoint)?;
        for warning in &restored.warnings {
            eprintln!("note: {warning}");
        }
        let views = match &restored.checkpoint {
            Some((_, lsn)) => format!("with views of {}", summary::time(*lsn)),
            None => "without views".to_owned(),
        };
        writeln!(
            out,
            "restored log {} up to {} ({}), {views}, into {}",
            restored.log_id,
            restored.last_lsn,
            summary::time(restored.last_lsn),
            dir.display()
        )?;
        Ok(Outcome::Clean)
    }
}

/// Refuses a directory with anything in it, but for what an unfinished restore left.
fn require_empty(dir: &Path) -> anyhow::Result<()> {
    if restore::is_unfinished(dir) {
        return Ok(());
    }
    match std::fs::read_dir(dir) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => bail!("{} is not empty; restore into an empty directory", dir.display()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("reading {}", dir.display())),
    }
}

/// Restores with a bar on the terminal.
///
/// # Errors
/// See [`restore::restore`].
pub fn blocking_restore(
    store: &Arc<dyn ReplicaStore>,
    dir: &Path,
    with_checkpoint: bool,
) -> anyhow::Result<Restored> {
    let bar: ProgressBar = progress::bar("restoring", 0);
    let shown = bar.clone();
    let options = RestoreOptions {
        storage: Arc::new(OsStorage),
        request_timeout: REQUEST_TIMEOUT,
        with_checkpoint,
        lazy: false,
        on_progress: Some(Arc::new(move |progress: Progress| {
            shown.set_length(progress.bytes_total);
            shown.set_position(progress.bytes_done);
        })),
        announce: Some(Announce::new(Arc::new(SystemClock))),
    };
    let restored = runtime()?.block_on(restore::restore(store, dir, &options));
    bar.finish_and_clear();
    Ok(restored?)
}

/// For those commands that talk to a replica.
///
/// # Errors
/// The system has no threads left.
pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")
}
