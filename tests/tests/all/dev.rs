//! `pds dev`: the first thing that anybody runs. It works without a network, prints an account and a command that posts,
//! and keeps its data.

use std::ffi::OsStr;
use std::time::Instant;

use anyhow::{Context, ensure};
use tests::Outcome;
use tests::process::{Process, program};

#[tokio::test(flavor = "multi_thread")]
async fn the_printed_command_posts() -> Outcome {
    let dir = tempfile::TempDir::with_prefix("pds-dev-")?;
    let data = dir.path().join("data");
    for round in 0..2 {
        let arguments = [
            OsStr::new("dev"),
            OsStr::new("--port"),
            OsStr::new("0"),
            OsStr::new("--data"),
            data.as_os_str(),
        ];
        let output = dir.path().join(format!("output-{round}"));
        let mut process = Process::spawn(&program("pds")?, &arguments, &[], &output)?;
        let started = Instant::now();
        let command = loop {
            let said = process.output();
            if let Some(command) = curl(&said) {
                break command;
            }
            process.check_alive(started).await?;
        };
        let posted = tokio::process::Command::new("sh")
            .args(["-c", &command])
            .output()
            .await?;
        let said = String::from_utf8_lossy(&posted.stdout).into_owned();
        if !posted.status.success()
            && std::process::Command::new("curl")
                .arg("--version")
                .output()
                .is_err()
        {
            return tests::skip("curl is not installed");
        }
        ensure!(
            said.contains("at://did:plc:"),
            "`{command}` answered {said}\n{}",
            process.tail()
        );
        let (status, _) = process.terminate().await?;
        ensure!(status.success(), "it ended with {status}:\n{}", process.tail());
    }
    Ok(())
}

/// The `curl` command in what was printed, with its continuation lines.
fn curl(said: &str) -> Option<String> {
    let mut command = String::new();
    for line in said
        .lines()
        .skip_while(|line| !line.trim_start().starts_with("curl "))
    {
        let line = line.trim();
        match line.strip_suffix('\\') {
            Some(part) => command.push_str(part),
            None => {
                command.push_str(line);
                return Some(command);
            }
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_settings_are_all_named_at_once() -> Outcome {
    let output = tokio::process::Command::new(program("pds")?)
        .arg("check-config")
        .env_clear()
        .env("PDS_PORT", "many")
        .env("PDS_JWT_SECERT", "misspelt")
        .output()
        .await
        .context("check-config")?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(!output.status.success(), "it accepts that:\n{said}");
    for name in [
        "PDS_PORT",
        "PDS_JWT_SECRET",
        "PDS_ADMIN_PASSWORD",
        "PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX",
    ] {
        ensure!(said.contains(name), "no word of {name}:\n{said}");
    }
    ensure!(!said.contains("misspelt"), "a secret was printed:\n{said}");
    Ok(())
}
