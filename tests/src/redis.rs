//! A real Redis on a free port.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use tokio::net::TcpStream;

use crate::process::Process;

/// Its password.
pub const PASSWORD: &str = "a password for tests";

/// A running Redis.
#[derive(Debug)]
pub struct Redis {
    process: Process,
    port: u16,
}

impl Redis {
    /// Starts one; `None` when it is not installed.
    ///
    /// # Errors
    /// It is installed and does not start.
    pub async fn start(dir: &Path) -> Result<Option<Redis>> {
        let found = ["/usr/bin", "/usr/local/bin", "/opt/homebrew/bin"]
            .iter()
            .map(|dir| PathBuf::from(dir).join("redis-server"))
            .find(|path| path.exists());
        let Some(program) = found else {
            return Ok(None);
        };
        // It cannot choose one itself.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let arguments = [
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--requirepass",
            PASSWORD,
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        .map(std::ffi::OsString::from);
        let arguments: Vec<&std::ffi::OsStr> = arguments.iter().map(AsRef::as_ref).collect();
        let mut process = Process::spawn(&program, &arguments, &[], &dir.join("redis.log"))?;
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            process.check_alive(started).await?;
        }
        Ok(Some(Redis { process, port }))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> (&'static str, u16) {
        ("127.0.0.1", self.port)
    }

    /// The settings of a server that counts in it.
    #[must_use]
    pub fn settings(&self) -> Vec<(String, String)> {
        let address = format!("127.0.0.1:{}", self.port);
        [
            ("PDS_RATE_LIMITS_ENABLED", "true"),
            ("PDS_REDIS_SCRATCH_ADDRESS", address.as_str()),
            ("PDS_REDIS_SCRATCH_PASSWORD", PASSWORD),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    /// Ends it.
    ///
    /// # Errors
    /// It does not end.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.kill().await.context("Redis")
    }
}
