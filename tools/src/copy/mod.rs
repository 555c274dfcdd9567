//! `pds-tools copy`: a replica, or its media, from one store to another.
//!
//! The copy is of one moment: of what the newest manifest names, and of the chain behind it. Data goes first, the manifest
//! after it, and `log.json`, without which nobody takes the objects for a replica, last. So a copy that was interrupted does
//! not look whole, and one that is brought up to date is whole at every moment: until the new manifest is there the old one
//! holds, and nothing that it names is touched. Every object is checked by its own digests and read back where it went; one that
//! is there and whole is passed over.
//!
//! | the source's server meanwhile | what happens |
//! |---|---|
//! | ships more | the copy ends where the source was; it is said |
//! | has what its manifest no longer names | keeps it until the copy has ended ([`shipper::readers`]) |
//! | removes it all the same, as it could not be told | the copy starts over from the new manifest, [`MAX_ROUNDS`] times |
//!
//! A destination with another log, or one that a server has gone on with, is refused before anything is written.

pub(crate) mod log;
mod media;
pub(crate) mod transfer;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use shipper::store::ReplicaStore;

use crate::restore::runtime;
use crate::{Outcome, progress, replica_url, summary};
use transfer::{Damaged, Transfer};

/// How often a copy starts over because the source's server removes what is being copied.
const MAX_ROUNDS: u32 = 5;

/// What to copy, and where to.
#[derive(Debug, Args)]
pub struct Copy {
    /// The replica: file:///dir, `https://ACCOUNT.blob.core.windows.net/CONTAINER[/PREFIX]` or `s3://BUCKET[/PREFIX]`, with
    /// the server's PDS_REPLICA_* variables.
    from: String,
    /// Where to, likewise. If there are variables TO_PDS_REPLICA_*, those and no others are for it. A directory is made.
    to: String,
    /// Copy media alone, not the log.
    #[arg(long, conflicts_with = "all")]
    blobs: bool,
    /// Copy media, then the log.
    #[arg(long)]
    all: bool,
    /// Where objects may be put for a while on their way.
    #[arg(long, value_name = "DIR")]
    temp_dir: Option<PathBuf>,
}

impl Copy {
    /// Copies.
    ///
    /// # Errors
    /// A store cannot be read or written, or the destination is not one that the source may be copied to.
    pub fn run(self, out: &mut dyn Write) -> anyhow::Result<Outcome> {
        let from = replica_url::open(&self.from)?;
        let to = replica_url::open_destination(&self.to)?;
        let temp = self.temp_dir.clone().unwrap_or_else(std::env::temp_dir);
        match runtime()?.block_on(self.copy(&from, &to, temp, out)) {
            Ok(()) => Ok(Outcome::Clean),
            Err(error) => match error.downcast_ref::<Damaged>() {
                Some(damaged) => {
                    writeln!(
                        out,
                        "damaged: {damaged}; nothing was made of it at the destination"
                    )?;
                    Ok(Outcome::Damaged)
                }
                None => Err(error),
            },
        }
    }

    async fn copy(
        &self,
        from: &Arc<dyn ReplicaStore>,
        to: &Arc<dyn ReplicaStore>,
        temp: PathBuf,
        out: &mut dyn Write,
    ) -> anyhow::Result<()> {
        if from.describe() == to.describe() {
            bail!("source and destination are the same");
        }
        to.prove().await.context("trying the destination")?;
        let temp = tempfile::Builder::new().prefix("pds-copy-").tempdir_in(temp);
        let temp = temp.context("making a temporary directory")?;
        let bar = progress::bar("copying", 0);
        let transfer = Transfer::new(from.clone(), to.clone(), temp.path(), bar);
        if self.blobs || self.all {
            let foreign = media::copy(&transfer).await?;
            if foreign > 0 {
                writeln!(
                    out,
                    "note: {foreign} objects below blobs/ are no media and were left out"
                )?;
            }
            writeln!(out, "media: {}", transfer.take_counts())?;
        }
        if !self.blobs {
            let copied = log::copy(&transfer).await?;
            writeln!(
                out,
                "log {} up to {} ({}): {}",
                copied.log_id,
                copied.last_lsn,
                summary::time(copied.last_lsn),
                transfer.take_counts()
            )?;
            if copied.source_went_on {
                writeln!(
                    out,
                    "note: the source has gone on meanwhile; to move there, stop its server and run this again"
                )?;
            }
        }
        transfer.finish();
        Ok(())
    }
}
