//! The shipper over a real log and stores that misbehave: what would break is that an acknowledged entry is missing
//! after a disk is lost, that two writers acknowledge, or that a failure goes unsaid. Invariants I1, I2, I5 and I7.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failing test is meant to stop"
)]

mod ageing;
mod checkpoints;
mod common;
mod compaction;
mod cost;
mod damage;
mod erase;
mod faults;
mod follow;
mod month;
mod readers;
mod retention;
mod round_trip;
mod schedules;
mod simulation;
mod split_brain;
mod tiering;
