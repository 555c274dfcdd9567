//! What benchmarks and tools' tests share: repositories that commit as the real writer does, without a server.
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        reason = "a failing test is meant to stop"
    )
)]

pub mod growing;
pub mod process;
pub mod synthetic;
