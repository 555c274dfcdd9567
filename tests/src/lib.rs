//! What the end-to-end tests stand on: real processes (the server, its did:plc directory, the Azure emulator, a
//! stand-in for S3, Node scripts), a plain HTTP client and a firehose reader of its own.
//!
//! Every process gets an explicit environment and port 0, lives in a temporary directory, and is ended by its own process
//! id when its value is dropped. Every wait has a deadline.

pub mod api;
pub mod azurite;
pub mod events;
pub mod fault_proxy;
pub mod ingress;
pub mod moto;
pub mod node;
pub mod process;
pub mod random;
pub mod redis;
pub mod reference;
pub mod smtp;
pub mod stack;
pub mod tools;

use std::path::PathBuf;

/// What a test returns.
pub type Outcome = anyhow::Result<()>;

/// Says that a test cannot run here and why; an error when everything is required (`PDS_TESTS_REQUIRE_ALL=1`).
///
/// # Errors
/// Everything is required.
pub fn skip(why: &str) -> Outcome {
    anyhow::ensure!(
        std::env::var("PDS_TESTS_REQUIRE_ALL").as_deref() != Ok("1"),
        "cannot run, and must: {why}"
    );
    println!("skipped: {why}");
    Ok(())
}

/// The number in an environment variable that steers a test, or a default.
#[must_use]
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// The root of the repository.
#[must_use]
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}
