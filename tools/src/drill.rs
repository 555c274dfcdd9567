//! `pds-tools drill`: tries by hand what the server tries once a week.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use audit::Room;
use audit::drill::{DrillOptions, run};
use clap::Args;
use engine::clock::{Clock, SystemClock};

use crate::progress::Bar;
use crate::restore::runtime;
use crate::verify::INDEX_CACHE_BYTES;
use crate::{Outcome, replica_url};

/// The longest that one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// What to try, and what it may take.
#[derive(Debug, Args)]
pub struct Drill {
    /// The replica: file:///dir, `https://ACCOUNT.blob.core.windows.net/CONTAINER[/PREFIX]` or `s3://BUCKET[/PREFIX]`, with
    /// the server's PDS_REPLICA_* variables.
    #[arg(long, value_name = "URL", env = "PDS_REPLICA_URL")]
    replica: String,
    /// Where it may be restored for a while; by default the system's temporary directory.
    #[arg(long, value_name = "DIR")]
    temp_dir: Option<PathBuf>,
    /// Bytes of disk that it may take; a replica that needs more is sampled.
    #[arg(long, value_name = "BYTES", default_value_t = u64::MAX)]
    disk_bytes: u64,
}

impl Drill {
    /// Tries it.
    ///
    /// # Errors
    /// It could not be run to its end, which is no statement about the replica.
    pub fn run(self, out: &mut dyn Write) -> anyhow::Result<Outcome> {
        let temp = self.temp_dir.unwrap_or_else(std::env::temp_dir);
        let (store, runtime) = (replica_url::open(&self.replica)?, runtime()?);
        let options = DrillOptions {
            room: Room {
                temp: &temp,
                index_cache_bytes: INDEX_CACHE_BYTES,
                live: None,
            },
            whole: true,
            disk_bytes: self.disk_bytes,
            keep_free: 0,
            request_timeout: REQUEST_TIMEOUT,
            seed: SystemClock.now_micros(),
        };
        let drill = run(runtime.handle(), &store, options, &Bar::default(), out)?;
        let how = if drill.whole { "restored" } else { "sampled" };
        writeln!(out, "{how} up to {} ({})", drill.last, audit::time(drill.last))?;
        Ok(drill.outcome())
    }
}
