//! The log is the database: an append-only log as the only source of truth, the protocol structures of an AT Protocol
//! repository, and the views that are folded from the log.
//!
//! Nothing in this crate knows HTTP, a cloud or account policy. See `ARCHITECTURE.md` for the map and
//! `engine/FORMAT.md` for every byte on disk.
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
pub mod clock;
pub mod compact;
pub mod engine;
pub mod entry;
pub mod log;
pub mod repo;
#[cfg(test)]
mod sim;
pub mod storage;
pub mod views;

pub use engine::{Engine, EngineConfig, EnginePrelude};
