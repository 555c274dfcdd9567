//! What one operation of the engine costs. See `benches/README.md` for how to read the numbers.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark that cannot be set up is meant to stop"
)]
#![allow(missing_docs, reason = "criterion's macros write public functions")]

mod log;
mod repo;
mod views;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};

fn settings() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
}

criterion_group! {
    name = engine;
    config = settings();
    targets = log::frames, log::append, log::recovery, log::verify, repo::tree, repo::commit, repo::transcode, views::lookups, views::export
}
criterion_main!(engine);
