//! The emulator of Azure Blob Storage, in memory, on a free port.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::node;
use crate::process::{Process, STOP_LIMIT};

/// The emulator's published account.
pub const ACCOUNT: &str = "devstoreaccount1";
/// Its published key: no secret.
pub const KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A running emulator.
#[derive(Debug)]
pub struct Azurite {
    process: Process,
    url: String,
    /// Where it keeps its data, if it does.
    kept: Option<PathBuf>,
    dir: PathBuf,
}

impl Azurite {
    /// Starts one that keeps everything in memory, or in `dir` if it is to be stopped and started; `None` when it is not
    /// installed.
    ///
    /// # Errors
    /// It is installed and does not start.
    pub async fn start(dir: &Path, keep: bool) -> Result<Option<Azurite>> {
        let kept = keep.then(|| dir.join("azurite"));
        let Some((process, url)) = run(dir, kept.as_deref(), "0").await? else {
            return Ok(None);
        };
        Ok(Some(Azurite {
            process,
            url,
            kept,
            dir: dir.to_owned(),
        }))
    }

    /// Stops it in order: connections are refused from now on.
    ///
    /// # Errors
    /// It does not end, or would forget its data.
    pub async fn stop(&mut self) -> Result<()> {
        anyhow::ensure!(self.kept.is_some(), "this emulator keeps its data in memory");
        self.process.signal("TERM").await?;
        self.process.wait(STOP_LIMIT).await?;
        Ok(())
    }

    /// Starts it again where it was, after [`Azurite::stop`].
    ///
    /// # Errors
    /// It does not start.
    pub async fn start_again(&mut self) -> Result<()> {
        let port = self.url.rsplit(':').next().unwrap_or_default().to_owned();
        let started = run(&self.dir, self.kept.as_deref(), &port).await?;
        let (process, url) = started.context("the emulator is not installed any more")?;
        anyhow::ensure!(
            url == self.url,
            "the emulator is at {url} and was at {}",
            self.url
        );
        self.process = process;
        Ok(())
    }

    /// The settings that make a server replicate to `container`, which is created.
    ///
    /// # Errors
    /// The container cannot be created.
    pub async fn replica(&self, container: &str) -> Result<Vec<(String, String)>> {
        self.create_container(container)
            .await
            .with_context(|| self.process.tail())?;
        let url = format!("{}/{ACCOUNT}/{container}/cell", self.url);
        Ok([
            ("PDS_REPLICA_URL", url.as_str()),
            ("PDS_REPLICA_AZURE_AUTH", "shared-key"),
            ("PDS_REPLICA_AZURE_ACCOUNT_KEY", KEY),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec())
    }

    /// Checks that it still runs: a test that fails for its end should say so.
    ///
    /// # Errors
    /// It has ended; its last lines are in the message.
    pub fn check(&mut self) -> Result<()> {
        match self.process.ended()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("the emulator ended with {status}: {}", self.process.tail()),
        }
    }

    /// Makes it hang (`STOP`) or go on (`CONT`).
    ///
    /// # Errors
    /// It has ended.
    pub async fn signal(&self, name: &str) -> Result<()> {
        self.process.signal(name).await
    }

    async fn create_container(&self, container: &str) -> Result<()> {
        use shipper::store::azure::{AzureConfig, AzureStore};
        let mut config = AzureConfig::from_connection_string("UseDevelopmentStorage=true", container)?;
        config.service_url = format!("{}/{ACCOUNT}", self.url);
        AzureStore::new(&config)?.ensure_container().await?;
        Ok(())
    }
}

/// Starts the program; it and its URL.
async fn run(dir: &Path, keep: Option<&Path>, port: &str) -> Result<Option<(Process, String)>> {
    let script = node::folder().join("azurite.cjs");
    let installed = node::folder().join("node_modules/azurite").exists();
    let Some(node) = node::program().filter(|_| installed) else {
        return Ok(None);
    };
    let fixed = [
        "--blobHost",
        "127.0.0.1",
        "--silent",
        "--skipApiVersionCheck",
        "--disableTelemetry",
        "--blobPort",
        port,
    ];
    let mut all = vec![script.as_os_str()];
    all.extend(fixed.iter().map(OsStr::new));
    match keep {
        None => all.push(OsStr::new("--inMemoryPersistence")),
        Some(kept) => all.extend([OsStr::new("--location"), kept.as_os_str()]),
    }
    let env = vec![("HOME".to_owned(), dir.display().to_string())];
    let output = dir.join("azurite.log");
    // It may have run before, and written where it was.
    let before = std::fs::metadata(&output).map_or(0, |file| file.len());
    let mut process = Process::spawn(&node, &all, &env, &output)?;
    let started = Instant::now();
    loop {
        let output = process.output();
        let new = output.get(usize::try_from(before)?..).unwrap_or_default();
        let url = new
            .lines()
            .find_map(|line| line.split_once("successfully listens on "));
        if let Some((_, url)) = url {
            return Ok(Some((process, url.trim().to_owned())));
        }
        process.check_alive(started).await?;
    }
}
