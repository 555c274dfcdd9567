//! The programs under test as child processes.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// How long a program may take until it serves; a debug build on a busy machine is slow.
pub const START_LIMIT: Duration = Duration::from_secs(90);
/// How long a program may take to end after it was told to.
pub const STOP_LIMIT: Duration = Duration::from_secs(30);
/// How often a file or a port is looked at while something starts.
const LOOK_EVERY: Duration = Duration::from_millis(15);
/// What a program may have allocated when it is told to end: the default of `PDS_MEMORY_BUDGET`.
const MEMORY_LIMIT_BYTES: u64 = 256 << 20;
/// Lines of a program's output that a failure shows.
const TAIL_LINES: usize = 40;

/// The path of one of our programs: `PDS_BIN` or `PDS_TOOLS_BIN`, else the build directory of this test.
///
/// # Errors
/// It has not been built.
pub fn program(name: &str) -> Result<PathBuf> {
    let variable = format!("{}_BIN", name.replace('-', "_").to_uppercase());
    if let Ok(path) = std::env::var(&variable) {
        return Ok(PathBuf::from(path));
    }
    let test = std::env::current_exe().context("the path of this test")?;
    // target/<profile>/deps/<this test>
    let built = test
        .parent()
        .and_then(Path::parent)
        .context("the build directory")?
        .join(name);
    if !built.exists() {
        bail!(
            "{} is not built: run `cargo build --bin pds --bin pds-tools`, or set {variable}",
            built.display()
        );
    }
    Ok(built)
}

/// A running program whose output goes to a file.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    output: PathBuf,
}

impl Process {
    /// Starts a program with nothing but `env` in its environment; its output is appended to `output`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(
        program: &Path,
        arguments: &[&OsStr],
        env: &[(String, String)],
        output: &Path,
    ) -> Result<Process> {
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(output)
            .context("output file")?;
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("output file")?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let name = program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Ok(Process {
            child,
            name,
            output: output.to_owned(),
        })
    }

    /// Everything that it has printed.
    #[must_use]
    pub fn output(&self) -> String {
        std::fs::read(&self.output)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Its last lines, for messages.
    #[must_use]
    pub fn tail(&self) -> String {
        let output = self.output();
        let lines: Vec<&str> = output.lines().collect();
        lines
            .get(lines.len().saturating_sub(TAIL_LINES)..)
            .unwrap_or_default()
            .join("\n")
    }

    /// Whether it has ended, and how.
    ///
    /// # Errors
    /// The operating system does not tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Its id, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// It does not within the limit.
    pub async fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        match timeout(limit, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!(
                "{} still runs after {limit:?}; its last lines:\n{}",
                self.name,
                self.tail()
            ),
        }
    }

    /// Asks it to stop (SIGTERM) and waits; how it ended and how long that took.
    ///
    /// # Errors
    /// It does not stop.
    pub async fn terminate(&mut self) -> Result<(ExitStatus, Duration)> {
        let allocated = self.allocated_bytes()?;
        anyhow::ensure!(
            allocated <= MEMORY_LIMIT_BYTES,
            "{} has {} MiB allocated, more than the budget it started with",
            self.name,
            allocated >> 20
        );
        let started = Instant::now();
        self.signal("TERM").await?;
        let status = self.wait(STOP_LIMIT).await?;
        Ok((status, started.elapsed()))
    }

    /// Memory that it has allocated and touched, without the files that it has mapped.
    ///
    /// # Errors
    /// It has ended already.
    pub fn allocated_bytes(&self) -> Result<u64> {
        let id = self.child.id().context("it has ended already")?;
        let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        let kib: u64 = kib.context("no RssAnon in its status")?.parse()?;
        Ok(kib * 1024)
    }

    /// Sends a signal by its name without `SIG`: `STOP` makes it hang, `CONT` go on.
    ///
    /// # Errors
    /// It has ended already.
    pub async fn signal(&self, name: &str) -> Result<()> {
        let id = self
            .child
            .id()
            .with_context(|| format!("{} has ended already:\n{}", self.name, self.tail()))?;
        let told = Command::new("sh")
            .args(["-c", &format!("kill -{name} {id}")])
            .status()
            .await?;
        anyhow::ensure!(told.success(), "cannot signal process {id}");
        Ok(())
    }

    /// Ends it at once (SIGKILL), as a power cut would.
    ///
    /// # Errors
    /// It does not die.
    pub async fn kill(&mut self) -> Result<()> {
        self.child.start_kill()?;
        self.wait(STOP_LIMIT).await?;
        Ok(())
    }

    /// Waits until it has written its port into `file`.
    ///
    /// # Errors
    /// It ends instead, or the limit passes.
    pub async fn port(&mut self, file: &Path) -> Result<u16> {
        let started = Instant::now();
        loop {
            if let Some(port) = std::fs::read_to_string(file)
                .ok()
                .and_then(|text| text.trim().parse().ok())
            {
                return Ok(port);
            }
            self.check_alive(started).await?;
        }
    }

    /// A short pause in a start, which ends the wait if the program ended or takes too long.
    ///
    /// # Errors
    /// Either of them.
    pub async fn check_alive(&mut self, started: Instant) -> Result<()> {
        if let Some(status) = self.ended()? {
            bail!(
                "{} ended while it started ({status}); its last lines:\n{}",
                self.name,
                self.tail()
            );
        }
        if started.elapsed() > START_LIMIT {
            bail!(
                "{} does not serve after {START_LIMIT:?}; its last lines:\n{}",
                self.name,
                self.tail()
            );
        }
        sleep(LOOK_EVERY).await;
        Ok(())
    }
}
