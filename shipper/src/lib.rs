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

pub mod ageing;
pub mod blobs;
pub mod checkpoint;
pub mod chunk;
mod compacted;
pub mod cost;
mod feed;
pub mod fence;
pub mod follow;
mod handle;
pub mod handover;
mod housekeeping;
pub mod lease;
pub mod ledger;
pub mod log_object;
pub mod manifest;
pub mod names;
pub mod orphans;
pub mod pace;
pub mod pit;
pub mod plan;
pub mod readers;
mod requests;
pub mod restore;
pub mod retention;
pub mod sealed;
pub mod ship;
pub mod standby;
pub mod start;
pub mod store;
pub mod tier;
mod upload;
mod wire;
