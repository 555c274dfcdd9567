//! `pds-tools`: looks at, checks, copies and restores a server's data without the server.
//!
//! Exit codes: 0 = done, nothing wrong; 1 = damage was found; 2 = could not run.
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        reason = "a failing test is meant to stop"
    )
)]

mod compact;
mod copy;
mod drill;
mod history;
mod inspect;
mod progress;
mod removed;
mod replica_url;
mod restore;
mod stats;
mod summary;
#[cfg(test)]
mod tests;
mod verify;

use std::io::{self, Write};
use std::process::ExitCode;

use audit::Outcome;
use clap::{Parser, Subcommand};

/// Looks at, checks and restores the data of an Azure PDS, without the server.
#[derive(Debug, Parser)]
#[command(name = "pds-tools", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the segments of a log, or its entries. Changes nothing, and shows no secrets.
    Inspect(inspect::Inspect),
    /// Check every byte of a data directory or a replica, and the views against the log. Changes nothing.
    Verify(verify::Verify),
    /// Try whether a replica restores, as the server does once a week: into a scratch directory, checked and removed. Changes nothing.
    Drill(drill::Drill),
    /// Bring back a data directory from its replica.
    Restore(restore::Restore),
    /// List the versions of a record that the log still has.
    History(history::History),
    /// Copy a replica, or its media, from one store to another. Goes on where it was interrupted.
    Copy(copy::Copy),
    /// Rewrite the old part of a log without what is dead in it. The server must be stopped.
    Compact(compact::Compact),
    /// Count what the bytes of a log are used for, by segment, kind and repo. The server must be stopped.
    Stats(stats::Stats),
}

fn run(cli: Cli, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    match cli.command {
        Command::Inspect(command) => command.run(out),
        Command::Verify(command) => command.run(out),
        Command::Drill(command) => command.run(out),
        Command::Restore(command) => command.run(out),
        Command::History(command) => command.run(out),
        Command::Copy(command) => command.run(out),
        Command::Compact(command) => command.run(out),
        Command::Stats(command) => command.run(out),
    }
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PDS_TOOLS_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .init();
    // Not locked for long: a progress bar and the findings take turns.
    let mut out = io::stdout();
    match run(Cli::parse(), &mut out) {
        Ok(Outcome::Clean) => ExitCode::SUCCESS,
        Ok(Outcome::Damaged) => ExitCode::from(1),
        // Whoever reads us has seen enough, as `head` does.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pds-tools: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
