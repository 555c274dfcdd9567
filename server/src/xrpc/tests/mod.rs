//! Every method through the router, good and bad.

mod accounts;
mod protocol;
mod records;
mod sync;
