//! A real mail server, on a free port, that tells what it takes.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::time::sleep;

use crate::process::Process;
use crate::root;

/// How often its output is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A running aiosmtpd.
#[derive(Debug)]
pub struct Smtp {
    process: Process,
    port: u16,
    place: PathBuf,
}

impl Smtp {
    /// Starts one in `place`, a new directory, with modes: see `tests/smtp/serve.py`. `None` when it is not installed.
    ///
    /// # Errors
    /// It is installed and does not start.
    pub async fn start(place: &Path, modes: &[&str]) -> Result<Option<Smtp>> {
        let python = root().join("target/smtp-server/bin/python3");
        if !python.exists() {
            return Ok(None);
        }
        std::fs::create_dir_all(place)?;
        let script = root().join("tests/smtp/serve.py");
        let mut arguments = vec![script.as_os_str(), place.as_os_str()];
        arguments.extend(modes.iter().map(OsStr::new));
        let env = vec![("HOME".to_owned(), place.display().to_string())];
        let mut process = Process::spawn(&python, &arguments, &env, &place.join("smtp.log"))?;
        let started = Instant::now();
        let port = loop {
            let output = process.output();
            if let Some(port) = output.lines().find_map(|line| line.strip_prefix("listens on ")) {
                break port.trim().parse().context("the mail server's port")?;
            }
            process.check_alive(started).await?;
        };
        Ok(Some(Smtp {
            process,
            port,
            place: place.to_owned(),
        }))
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The certificates that trust it, for the environment of a server.
    #[must_use]
    pub fn trust(&self) -> (String, String) {
        let file = self.place.join("ca.pem");
        ("SSL_CERT_FILE".to_owned(), file.display().to_string())
    }

    /// What it has told so far.
    #[must_use]
    pub fn told(&self) -> Vec<Value> {
        self.process
            .output()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// The first mail to `address`, once it is there.
    ///
    /// # Errors
    /// It does not come within `limit`.
    pub async fn mail_to(&self, address: &str, limit: Duration) -> Result<Value> {
        let started = Instant::now();
        loop {
            let told = self.told();
            if let Some(mail) = told.iter().find(|mail| mail["to"][0] == address) {
                return Ok(mail.clone());
            }
            if started.elapsed() > limit {
                bail!(
                    "no mail to {address} within {limit:?}; told: {}",
                    self.process.tail()
                );
            }
            sleep(LOOK_EVERY).await;
        }
    }
}
