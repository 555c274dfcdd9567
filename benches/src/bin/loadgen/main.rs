//! `loadgen`: puts load on a running PDS over HTTP and WebSocket and prints what it did with it.
//!
//! One run is one scenario and prints one line of JSON. Memory is bounded whatever the run's length: durations are
//! counted in a [`histogram`], bodies are dropped once they were counted, and only accounts and sessions are kept.
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        reason = "a failing test is meant to stop"
    )
)]

mod accounts;
mod api;
mod args;
mod firehose;
mod frame;
mod histogram;
mod import;
mod load;
mod raw;
mod reads;
mod records;
mod report;
mod requests;
mod trivial;

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Parser;

use args::{Arguments, Scenario};
use report::Outcome;

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(outcome)) => {
            println!("{}", outcome.to_json());
            if outcome.tally.errors == 0 {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("loadgen: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<Option<Outcome>> {
    // The HTTP client wants a TLS provider even where no TLS is spoken; one that is there already will do.
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime cannot start")?;
    runtime.block_on(async {
        let outcome = match &arguments.scenario {
            Scenario::CreateRecord(args) => Box::pin(requests::create_record(args)).await,
            Scenario::ApplyWrites(args) => Box::pin(requests::apply_writes(args)).await,
            Scenario::CreateAccount(args) => Box::pin(requests::create_account(args)).await,
            Scenario::GetRecord(args) => Box::pin(reads::get_record(args)).await,
            Scenario::ListRecords(args) => Box::pin(reads::list_records(args)).await,
            Scenario::SyncGetRecord(args) => Box::pin(reads::sync_get_record(args)).await,
            Scenario::UploadBlob(args) => Box::pin(reads::upload_blob(args)).await,
            Scenario::GetBlob(args) => Box::pin(reads::get_blob(args)).await,
            Scenario::Trivial(args) => Box::pin(trivial::measure(args)).await,
            Scenario::ServeTrivial => {
                trivial::serve().await?;
                return Ok(None);
            }
            Scenario::GetRepo(args) => Box::pin(requests::get_repo(args)).await,
            Scenario::ImportRepo(args) => Box::pin(import::import_repo(args)).await,
            Scenario::Fill(args) => Box::pin(requests::fill(args)).await,
            Scenario::FirehoseReplay(args) => Box::pin(firehose::replay(args)).await,
            Scenario::FanOut(args) => Box::pin(firehose::fan_out(args)).await,
        };
        outcome.map(Some)
    })
}

/// Now, in microseconds since 1970; zero on a clock before that.
fn now_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
