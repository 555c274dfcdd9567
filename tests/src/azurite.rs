//! The emulator of Azure Blob Storage, in memory, on a free port.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::node;
use crate::process::Process;

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
}

impl Azurite {
    /// Starts one that keeps everything in memory; `None` when it is not installed.
    ///
    /// # Errors
    /// It is installed and does not start.
    pub async fn start(dir: &Path) -> Result<Option<Azurite>> {
        let script = node::folder().join("node_modules/azurite/dist/src/blob/main.js");
        let Some(node) = node::program().filter(|_| script.exists()) else {
            return Ok(None);
        };
        let arguments = [
            "--blobHost",
            "127.0.0.1",
            "--blobPort",
            "0",
            "--inMemoryPersistence",
            "--silent",
        ];
        let more = ["--skipApiVersionCheck", "--disableTelemetry"];
        let mut all = vec![script.as_os_str()];
        all.extend(arguments.iter().chain(&more).map(std::ffi::OsStr::new));
        let env = vec![("HOME".to_owned(), dir.display().to_string())];
        let mut process = Process::spawn(&node, &all, &env, &dir.join("azurite.log"))?;
        let started = Instant::now();
        let url = loop {
            let output = process.output();
            if let Some(url) = output
                .lines()
                .find_map(|line| line.split_once("successfully listens on "))
            {
                break url.1.trim().to_owned();
            }
            process.check_alive(started).await?;
        };
        Ok(Some(Azurite { process, url }))
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
