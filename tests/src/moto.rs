//! A service that speaks S3, in memory, on a free port.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::process::Process;
use crate::root;

/// A running moto.
#[derive(Debug)]
pub struct Moto {
    process: Process,
    url: String,
}

impl Moto {
    /// Starts one; `None` when it is not installed.
    ///
    /// # Errors
    /// It is installed and does not start.
    pub async fn start(dir: &Path) -> Result<Option<Moto>> {
        let python = root().join("target/s3-server/bin/python3");
        if !python.exists() {
            return Ok(None);
        }
        let script = root().join("tests/s3/serve.py");
        let env = vec![("HOME".to_owned(), dir.display().to_string())];
        let mut process = Process::spawn(&python, &[script.as_os_str()], &env, &dir.join("moto.log"))?;
        let started = Instant::now();
        let url = loop {
            let output = process.output();
            if let Some(url) = output.lines().find_map(|line| line.strip_prefix("listens on ")) {
                break url.trim().to_owned();
            }
            process.check_alive(started).await?;
        };
        Ok(Some(Moto { process, url }))
    }

    /// The settings that make a server replicate to `bucket`, which is created.
    ///
    /// # Errors
    /// The bucket cannot be created.
    pub async fn replica(&self, bucket: &str) -> Result<Vec<(String, String)>> {
        // An error means that there is one already.
        drop(rustls::crypto::ring::default_provider().install_default());
        let made = reqwest::Client::builder()
            .no_proxy()
            .build()?
            .put(format!("{}/{bucket}", self.url))
            .send()
            .await
            .with_context(|| self.process.tail())?;
        ensure!(made.status().is_success(), "the bucket was not made: {made:?}");
        let url = format!("s3://{bucket}/cell");
        Ok([
            ("PDS_REPLICA_URL", url.as_str()),
            ("PDS_REPLICA_S3_ENDPOINT", &self.url),
            ("PDS_REPLICA_S3_ACCESS_KEY_ID", "id"),
            ("PDS_REPLICA_S3_SECRET_ACCESS_KEY", "a secret for tests"),
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
            Some(status) => anyhow::bail!("moto ended with {status}: {}", self.process.tail()),
        }
    }
}
