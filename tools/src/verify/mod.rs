//! `pds-tools verify`: every byte against its checksum, every block against its CID, every commit against the one
//! before, and the views against the log (I4, I7).
//!
//! Nothing that is checked is changed: views are copied before they are opened, and a replica is only read.

mod events;
mod log;
mod replica;
mod report;
mod views;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use engine::log::{LogId, Lsn};

use crate::data_dir::DataDir;
use crate::{Outcome, progress};

pub use report::Report;

/// What to check.
#[derive(Debug, Args)]
pub struct Verify {
    /// The data directory of a stopped server. Of a running one, only the log is checked.
    #[arg(required_unless_present = "replica", conflicts_with = "replica")]
    dir: Option<PathBuf>,
    /// A replica instead: file:///dir, `https://ACCOUNT.blob.core.windows.net/CONTAINER[/PREFIX]` or `s3://BUCKET[/PREFIX]`, with
    /// the server's PDS_REPLICA_* variables. It is restored into a temporary directory and checked there, too.
    #[arg(long, value_name = "URL")]
    replica: Option<String>,
    /// Where copies of the views, and a restored replica, may be put for a while.
    #[arg(long, value_name = "DIR")]
    temp_dir: Option<PathBuf>,
}

impl Verify {
    /// Checks.
    ///
    /// # Errors
    /// The check could not be run to its end; that is no statement about the data.
    pub fn run(self, out: &mut dyn Write) -> anyhow::Result<Outcome> {
        let temp = self.temp_dir.unwrap_or_else(std::env::temp_dir);
        let mut report = Report::new(out);
        match (&self.dir, &self.replica) {
            (Some(dir), _) => directory(dir, &temp, &mut report)?,
            (None, Some(url)) => replica::check(url, &temp, &mut report)?,
            (None, None) => anyhow::bail!("neither a directory nor a replica"),
        }
        report.finish()
    }
}

/// What a log was found to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogFacts {
    /// Its name; none if it has no segment.
    pub log_id: Option<LogId>,
    /// Its last whole entry.
    pub last: Lsn,
    /// Whole entries.
    pub entries: u64,
    /// Whether entries are missing or damaged, so that nothing can be folded from it.
    pub holes: bool,
}

/// Checks a data directory.
pub fn directory(root: &Path, temp: &Path, report: &mut Report<'_>) -> anyhow::Result<()> {
    let dir = DataDir::open(root)?;
    if dir.running {
        report.note(
            "a server is running here: its views are in use and not compared; stop it to check them, too",
        );
    }
    let mut bytes = 0;
    for base in &dir.segments {
        bytes += std::fs::metadata(dir.segment_path(*base)).map_or(0, |file| file.len());
    }
    let bar = progress::bar("checking", bytes);
    report.over(&bar);
    let mut events = events::Events::default();
    let mut views = views::Views::begin(&dir, temp, report)?;
    let facts = log::check(&dir, &bar, report, &mut |entry, holes, report| {
        events.check(entry, holes, report);
        // What is folded from a part of a log is no view.
        if holes { Ok(()) } else { views.fold(entry, report) }
    })?;
    bar.finish_and_clear();
    if dir.segments.is_empty() {
        report.note("the log is empty");
    }
    views.finish(&facts, report)?;
    report.note(format!(
        "checked {} entries in {} segments, {} blocks, {} commits of {} repos, up to {}",
        facts.entries,
        dir.segments.len(),
        events.blocks,
        events.commits,
        events.repos(),
        facts.last
    ));
    Ok(())
}
