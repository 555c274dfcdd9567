//! did:plc: its operations and their rules ([`op`], [`chain`]), and a directory of our own ([`directory`] with its HTTP
//! face in [`http`]) for development and tests, when the public one must not be written to.
//!
//! Spec: <https://web.plc.directory/spec/v0.1/did-plc>.

pub mod chain;
pub mod directory;
pub mod http;
pub mod op;
