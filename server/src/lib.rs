//! The server: an AT Protocol Personal Data Server over HTTP, on top of the engine and its replication.
//!
//! Data flows one way: a request enters in [`xrpc`], a [`service`] decides what it means, the engine's log makes it
//! durable, and the answer and the [`firehose`] follow the log. [`start`] composes all of it.
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        reason = "a failing test is meant to stop"
    )
)]

pub mod app;
pub mod auth;
pub mod client;
pub mod config;
pub mod dev;
pub mod firehose;
pub mod gate;
pub mod http;
pub mod identity;
pub mod lexicon;
pub mod limits;
pub mod listen;
pub mod pages;
pub mod plc;
pub mod proxy;
pub mod relays;
pub mod secrets;
pub mod service;
pub mod start;
pub mod telemetry;
#[cfg(test)]
mod testkit;
pub mod xrpc;
