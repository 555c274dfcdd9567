//! Every method through the router, good and bad.

mod accounts;
mod protocol;
mod proxy;
mod records;
mod service_auth;
mod sync;
mod validation;
