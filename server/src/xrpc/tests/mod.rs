//! Every method through the router, good and bad.

mod accounts;
mod admin;
mod app_passwords;
mod coverage;
mod deletion;
mod email;
mod identity;
mod invites;
mod life;
mod migration;
mod preferences;
mod protocol;
mod proxy;
mod records;
mod service_auth;
mod signing_keys;
mod statements;
mod sync;
mod validation;
