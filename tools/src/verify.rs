//! `pds-tools verify`: every byte against its checksum, every block against its CID, every commit against the one
//! before, and the views against the log (I4, I7).
//!
//! Nothing that is checked is changed: views are copied before they are opened, and a replica is only read.

use std::io::Write;
use std::path::PathBuf;

use audit::{Report, Room};
use clap::Args;

use crate::progress::Bar;
use crate::restore::runtime;
use crate::{Outcome, replica_url};

/// Memory for pages of an index.
pub const INDEX_CACHE_BYTES: usize = 64 << 20;

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
        let bar = Bar::default();
        let mut report = Report::new(out, &bar);
        let room = Room {
            temp: &temp,
            index_cache_bytes: INDEX_CACHE_BYTES,
            live: None,
        };
        match (&self.dir, &self.replica) {
            (Some(dir), _) => {
                audit::directory(dir, room, &mut report)?;
            }
            (None, Some(url)) => {
                let (store, runtime) = (replica_url::open(url)?, runtime()?);
                audit::replica::check(runtime.handle(), &store, room, &mut report)?;
            }
            (None, None) => anyhow::bail!("neither a directory nor a replica"),
        }
        report.finish()
    }
}
