//! The protocol of an AT Protocol repository, pure: no I/O, no clock, no async.
//!
//! A value of one of these types has been checked; parsing is the only way to get one. Everything that reads bytes
//! or text from outside answers with a typed error, allocates no more than in proportion to what it was really given,
//! and never panics.

pub mod cbor;
pub mod cid;

pub use cid::Cid;
