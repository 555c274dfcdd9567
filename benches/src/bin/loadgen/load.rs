//! The closed loop: each connection sends its next request when the last was answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use crate::api::ApiError;
use crate::args::Pace;
use crate::report::{Tally, Usage, sample, sample_after};

/// Pause of a connection after a failed request, so that a server that refuses everything is not drowned by it.
pub const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(20);

/// One connection of a closed loop.
pub trait Caller: Send + 'static {
    /// Sends the nth request, counted over all connections, and gives the bytes of its answer.
    fn call(&mut self, n: u64) -> impl Future<Output = Result<u64, ApiError>> + Send;
}

/// A connection that is a function, whose client finds the connections itself.
struct Function<C>(C);

impl<C, F> Caller for Function<C>
where
    C: Fn(u64) -> F + Send + Sync + 'static,
    F: Future<Output = Result<u64, ApiError>> + Send,
{
    async fn call(&mut self, n: u64) -> Result<u64, ApiError> {
        (self.0)(n).await
    }
}

/// Runs `call` in a closed loop. It gets the number of the request, counted over all connections, and gives the bytes of
/// the answer. Only what is answered inside the measured window counts.
///
/// # Errors
/// A connection's task panicked, or there is no such process as the server's.
pub async fn closed_loop<C, F>(pace: Pace, server_pid: Option<u32>, call: C) -> Result<(Tally, Option<Usage>)>
where
    C: Fn(u64) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<u64, ApiError>> + Send,
{
    closed_loop_of(pace, server_pid, || Ok(Function(call.clone()))).await
}

/// As [`closed_loop`], with a connection of its own for each.
///
/// # Errors
/// As [`closed_loop`], or a connection cannot be made.
pub async fn closed_loop_of<C: Caller>(
    pace: Pace,
    server_pid: Option<u32>,
    connection: impl Fn() -> Result<C, ApiError>,
) -> Result<(Tally, Option<Usage>)> {
    let from = Instant::now() + pace.warmup();
    let until = from + pace.measured();
    let counter = Arc::new(AtomicU64::new(0));
    let mut connections = JoinSet::new();
    for _ in 0..pace.connections {
        let (counter, mut caller) = (counter.clone(), connection()?);
        connections.spawn(async move {
            let mut tally = Tally::default();
            while Instant::now() < until {
                let started = Instant::now();
                let outcome = caller.call(counter.fetch_add(1, Ordering::Relaxed)).await;
                let answered = Instant::now();
                let failed = outcome.is_err();
                if (from..until).contains(&answered) {
                    match outcome {
                        Ok(bytes) => tally.success(answered - started, bytes),
                        Err(error) => tally.failure(error),
                    }
                }
                if failed {
                    tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                }
            }
            tally
        });
    }
    tokio::time::sleep_until(from.into()).await;
    let before = sample(server_pid)?;
    tokio::time::sleep_until(until.into()).await;
    let after = sample_after(server_pid);
    let tally = joined(connections).await?;
    Ok((tally, Usage::between(before, after)))
}

/// Waits for all tasks and adds up what they counted.
///
/// # Errors
/// One of them panicked.
pub async fn joined(mut tasks: JoinSet<Tally>) -> Result<Tally> {
    let mut all = Tally::default();
    while let Some(tally) = tasks.join_next().await {
        all.merge(tally.context("a connection's task ended badly")?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn successes_and_failures_inside_the_window_are_counted() {
        let pace = Pace {
            connections: 3,
            seconds: 1,
            warmup_seconds: 0,
        };
        let (tally, usage) = closed_loop(pace, Some(std::process::id()), |n| async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            if n % 10 == 3 {
                return Err(ApiError::Transport("every tenth".to_owned()));
            }
            Ok(7)
        })
        .await
        .unwrap();
        assert!(tally.requests > 0 && tally.errors > 0);
        assert_eq!(tally.bytes, tally.requests * 7);
        assert_eq!(tally.first_error(), Some("no answer: every tenth"));
        assert!(usage.is_some());
    }
}
