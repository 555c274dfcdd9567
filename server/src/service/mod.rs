//! Use cases: what the methods of the outside mean inside. No HTTP types here.

pub mod accounts;
pub mod blobs;
pub mod core;
pub mod drills;
pub mod identity;
pub mod keys;
pub mod mail;
pub mod moderation;
pub mod names;
pub mod replication;
pub mod repos;
pub mod service_auth;
pub mod succession;
