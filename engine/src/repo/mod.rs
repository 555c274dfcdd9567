//! The protocol of an AT Protocol repository, pure: no I/O, no clock, no async.
//!
//! A value of one of these types has been checked; parsing is the only way to get one. Everything that reads bytes
//! or text from outside answers with a typed error, allocates no more than in proportion to what it was really given,
//! and never panics.

pub mod at_uri;
mod base58;
pub mod car;
pub mod cbor;
pub mod cid;
pub mod commit;
pub mod datetime;
pub mod did;
pub mod event;
pub mod handle;
pub mod json;
pub mod keys;
pub mod language;
pub mod mst;
pub mod nsid;
pub mod rkey;
pub mod subject;
mod text;
pub mod tid;
pub mod uri;

#[cfg(test)]
mod interop_tests;

pub use at_uri::{AtIdentifier, AtUri};
pub use cid::{Cid, CidHasher, Codec};
pub use commit::{Commit, UnsignedCommit};
pub use did::Did;
pub use handle::Handle;
pub use keys::{PublicKey, SigningKey};
pub use nsid::Nsid;
pub use rkey::{RecordKey, RepoPath};
pub use subject::{Subject, SubjectKind};
pub use tid::Tid;
