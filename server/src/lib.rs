//! (under construction)
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        reason = "a failing test is meant to stop"
    )
)]

pub mod auth;
pub mod client;
pub mod identity;
pub mod plc;
pub mod secrets;
