//! `pds-tools`, as the tests use it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::program;

/// How long it may take.
const LIMIT: Duration = Duration::from_secs(180);

/// How often a store is checked again that a running server has not brought to rest yet.
const TRIES: u32 = 15;

/// Lets `pds-tools` check a store, which must be clean.
///
/// # Errors
/// It found something, or took too long; what it said is in the message.
pub async fn verified(arguments: &[&str], env: &[(String, String)]) -> Result<()> {
    for again in (0..TRIES).rev() {
        let run = tokio::process::Command::new(program("pds-tools")?)
            .args(arguments)
            .envs(env.iter().map(|(name, value)| (name, value)))
            .kill_on_drop(true)
            .output();
        let done = tokio::time::timeout(LIMIT, run)
            .await
            .context("pds-tools verify takes too long")??;
        let (said, wrong) = (
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr),
        );
        if again > 0 && wrong.contains("a running server keeps replacing what is being checked") {
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        }
        ensure!(
            done.status.success(),
            "pds-tools {}: {}\n{said}{wrong}",
            arguments.join(" "),
            done.status,
        );
        break;
    }
    Ok(())
}
