//! Takes the log to a replica store, one writer at a time, and brings it back on an empty disk.
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        reason = "a failing test is meant to stop"
    )
)]

pub mod blobs;
pub mod store;
