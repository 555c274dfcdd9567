//! A server with everything around it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::api::Api;
use crate::azurite::Azurite;
use crate::moto::Moto;
use crate::process::{Process, program};

/// Time for everything that is fast, generously, so that a hanging server fails a test instead of hanging it.
pub const SOON: Duration = Duration::from_secs(30);

/// Where a server's log is replicated to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaKind {
    /// Nowhere.
    None,
    /// A directory.
    Directory,
    /// The Azure emulator.
    Azure,
    /// The Azure emulator with its data on the disk, so that it can be stopped and started.
    AzureOnDisk,
    /// A service that speaks S3.
    S3,
}

/// A did:plc directory, perhaps an emulator, and a place for the data of servers.
#[derive(Debug)]
pub struct Stack {
    dir: TempDir,
    plc: Process,
    azurite: Option<Azurite>,
    moto: Option<Moto>,
    /// Base URL of the did:plc directory.
    pub plc_url: String,
}

impl Stack {
    /// Starts the directory, and the emulator if `kind` needs it; `None` when that is not installed.
    ///
    /// # Errors
    /// Something does not start.
    pub async fn start(kind: ReplicaKind) -> Result<Option<Stack>> {
        let dir = TempDir::with_prefix("pds-test-")?;
        let azurite = match kind {
            ReplicaKind::Azure | ReplicaKind::AzureOnDisk => {
                match Azurite::start(dir.path(), kind == ReplicaKind::AzureOnDisk).await? {
                    None => return Ok(None),
                    started => started,
                }
            }
            ReplicaKind::None | ReplicaKind::Directory | ReplicaKind::S3 => None,
        };
        let moto = match kind {
            ReplicaKind::S3 => match Moto::start(dir.path()).await? {
                None => return Ok(None),
                started => started,
            },
            ReplicaKind::None | ReplicaKind::Directory | ReplicaKind::Azure | ReplicaKind::AzureOnDisk => {
                None
            }
        };
        let (operations, port_file) = (dir.path().join("plc"), dir.path().join("plc.port"));
        let arguments = [
            OsStr::new("plc"),
            OsStr::new("--port"),
            OsStr::new("0"),
            OsStr::new("--dir"),
            operations.as_os_str(),
            OsStr::new("--port-file"),
            port_file.as_os_str(),
        ];
        let mut plc = Process::spawn(&program("pds")?, &arguments, &[], &dir.path().join("plc.log"))?;
        let port = plc.port(&port_file).await.context("the did:plc directory")?;
        Ok(Some(Stack {
            dir,
            plc,
            azurite,
            moto,
            plc_url: format!("http://127.0.0.1:{port}"),
        }))
    }

    /// Makes the emulator hang (`STOP`) or go on (`CONT`).
    ///
    /// # Errors
    /// There is none, or it has ended.
    pub async fn signal_emulator(&self, name: &str) -> Result<()> {
        self.azurite
            .as_ref()
            .context("this stack has no emulator")?
            .signal(name)
            .await
    }

    /// Stops the emulator, so that connections are refused. Its kind must be [`ReplicaKind::AzureOnDisk`].
    ///
    /// # Errors
    /// There is none, or it does not stop.
    pub async fn stop_emulator(&mut self) -> Result<()> {
        let azurite = self.azurite.as_mut().context("this stack has no emulator")?;
        azurite.stop().await
    }

    /// Starts it again, with what it had.
    ///
    /// # Errors
    /// There is none, or it does not start.
    pub async fn start_emulator(&mut self) -> Result<()> {
        let azurite = self.azurite.as_mut().context("this stack has no emulator")?;
        azurite.start_again().await
    }

    /// A fresh directory below the stack's own.
    #[must_use]
    pub fn place(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The settings of a replica called `name`.
    ///
    /// # Errors
    /// It cannot be made.
    pub async fn replica(&self, kind: ReplicaKind, name: &str) -> Result<Vec<(String, String)>> {
        match kind {
            ReplicaKind::None => Ok(Vec::new()),
            ReplicaKind::Directory => {
                let dir = self.place(name);
                std::fs::create_dir_all(&dir)?;
                Ok(vec![(
                    "PDS_REPLICA_URL".to_owned(),
                    format!("file://{}", dir.display()),
                )])
            }
            ReplicaKind::Azure | ReplicaKind::AzureOnDisk => {
                self.azurite
                    .as_ref()
                    .context("this stack has no emulator")?
                    .replica(name)
                    .await
            }
            ReplicaKind::S3 => {
                let moto = self.moto.as_ref().context("this stack has no S3")?;
                moto.replica(name).await
            }
        }
    }

    /// The settings of a server that keeps its data in `data`.
    #[must_use]
    pub fn settings(&self, data: &Path) -> Settings {
        let fixed = [
            ("PDS_HOSTNAME", "localhost"),
            ("PDS_PORT", "0"),
            ("PDS_SERVICE_HANDLE_DOMAINS", ".test"),
            ("PDS_DEV_MODE", "true"),
            ("PDS_INVITE_REQUIRED", "false"),
            ("PDS_JWT_SECRET", "a secret for tests that is long enough"),
            ("PDS_ADMIN_PASSWORD", ADMIN_PASSWORD),
            (
                "PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX",
                "4d0c9b0f5c1a2e3f4d0c9b0f5c1a2e3f4d0c9b0f5c1a2e3f4d0c9b0f5c1a2e3f",
            ),
            // A server that was killed cannot be asked to hand over; those that test hand-overs set it.
            ("PDS_HANDOVER_TIMEOUT_MS", "0"),
            ("PDS_LOG_FORMAT", "json"),
            ("LOG_LEVEL", "info"),
        ];
        let mut env: Vec<_> = fixed
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec();
        env.push(("PDS_DID_PLC_URL".to_owned(), self.plc_url.clone()));
        env.push(("PDS_DATA_DIRECTORY".to_owned(), data.display().to_string()));
        Settings {
            env,
            data: data.to_owned(),
        }
    }

    /// Checks that the emulator, if there is one, still runs.
    ///
    /// # Errors
    /// It has ended.
    pub fn check(&mut self) -> Result<()> {
        self.azurite.as_mut().map_or(Ok(()), Azurite::check)?;
        self.moto.as_mut().map_or(Ok(()), Moto::check)
    }

    /// Ends the directory; the rest ends when it is dropped.
    ///
    /// # Errors
    /// It does not end.
    pub async fn stop(mut self) -> Result<()> {
        self.plc.kill().await
    }
}

/// The administrator's password of every test server.
pub const ADMIN_PASSWORD: &str = "an admin password for tests";

/// The environment of one server.
#[derive(Clone, Debug)]
pub struct Settings {
    env: Vec<(String, String)>,
    data: PathBuf,
}

impl Settings {
    /// With one more variable, or another value for one.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Settings {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With some more.
    #[must_use]
    pub fn with_all(mut self, more: Vec<(String, String)>) -> Settings {
        for (name, value) in more {
            self = self.with(&name, &value);
        }
        self
    }
}

/// A running server.
#[derive(Debug)]
pub struct Pds {
    /// The process.
    pub process: Process,
    /// Base URL.
    pub url: String,
    /// Its data directory.
    pub data: PathBuf,
    /// A client of it.
    pub api: Api,
}

impl Pds {
    /// Starts a server and does not wait for anything.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn(settings: &Settings) -> Result<(Process, PathBuf)> {
        Pds::spawn_as(settings, &[])
    }

    fn spawn_as(settings: &Settings, arguments: &[&OsStr]) -> Result<(Process, PathBuf)> {
        std::fs::create_dir_all(&settings.data)?;
        let beside = |ending: &str| settings.data.with_extension(ending);
        let port_file = beside("port");
        let _absent = std::fs::remove_file(&port_file);
        let mut env = settings.env.clone();
        env.push(("PDS_PORT_FILE".to_owned(), port_file.display().to_string()));
        Ok((
            Process::spawn(&program("pds")?, arguments, &env, &beside("log"))?,
            port_file,
        ))
    }

    /// Starts a server and waits until it is ready.
    ///
    /// # Errors
    /// It ends, or is not ready in time; its last lines are in the message.
    pub async fn start(settings: &Settings) -> Result<Pds> {
        Pds::start_as(settings, &[]).await
    }

    /// Starts a standby and waits until it answers reads.
    ///
    /// # Errors
    /// As [`Pds::start`].
    pub async fn start_standby(settings: &Settings) -> Result<Pds> {
        Pds::start_as(settings, &[OsStr::new("standby")]).await
    }

    async fn start_as(settings: &Settings, arguments: &[&OsStr]) -> Result<Pds> {
        let (mut process, port_file) = Pds::spawn_as(settings, arguments)?;
        let port = process.port(&port_file).await?;
        let url = format!("http://127.0.0.1:{port}");
        let api = Api::new(&url)?;
        let started = Instant::now();
        while !api.ready().await {
            process.check_alive(started).await?;
        }
        Ok(Pds {
            process,
            url,
            data: settings.data.clone(),
            api,
        })
    }

    /// Stops it as an operator does, and checks that it ended well and soon.
    ///
    /// # Errors
    /// It did not.
    pub async fn stop(mut self) -> Result<Duration> {
        let (status, took) = self.process.terminate().await?;
        anyhow::ensure!(
            status.success(),
            "the server ended with {status}:\n{}",
            self.process.tail()
        );
        anyhow::ensure!(took < Duration::from_secs(10), "the server took {took:?} to stop");
        Ok(took)
    }
}
