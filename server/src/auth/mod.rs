//! Who calls: credentials are issued, parsed and verified here. What a caller may do is asked of [`permission`]; how
//! a refusal looks on the wire is decided by `xrpc`, though every error here knows its status and wire name.
//!
//! Nothing in this module reads a clock: the time is a parameter everywhere, in whole seconds since 1970.

pub mod admin;
mod hashing;
pub mod header;
pub mod methods;
pub mod password;
pub mod permission;
pub mod replay;
pub mod service_jwt;
pub mod tokens;
