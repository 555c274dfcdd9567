//! Names of accounts: DID documents ([`document`]), which handles are allowed ([`handle`]), and what DID a handle leads
//! to ([`resolve`]); services, as tokens and proxy headers name them ([`service_ref`]).

pub mod document;
pub mod handle;
mod reserved;
pub mod resolve;
pub mod service_ref;
