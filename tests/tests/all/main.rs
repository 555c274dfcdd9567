//! End to end: real processes, real clients, real damage. Each module's header tells what would break.

mod bad_input;
mod campaign;
mod corpus;
mod damage;
mod decoders;
mod dev;
mod drill;
mod e2e;
mod fuzz;
mod limits;
mod logs;
mod mail;
mod memory;
mod migration;
mod outage;
mod past;
mod proxy;
mod replication;
mod restart;
mod split_brain;
mod succession;
mod tiering;
