//! Bounded repetition of requests that may be repeated freely: reads, listings, deletions, staged blocks.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::StoreError;

/// How long and how eagerly to repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The pause after the first failure; doubles with each further one.
    pub first_delay: Duration,
    /// The longest pause, unless the store itself asks for a longer one.
    pub max_delay: Duration,
    /// The time for all tries together; the last try is cut off when it is over.
    pub deadline: Duration,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy {
            first_delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(5),
            deadline: Duration::from_secs(60),
        }
    }
}

impl RetryPolicy {
    /// The same pauses with another deadline.
    #[must_use]
    pub fn within(deadline: Duration) -> RetryPolicy {
        RetryPolicy {
            deadline,
            ..RetryPolicy::default()
        }
    }
}

/// Runs `operation` until it succeeds, fails in a way that repeating cannot mend ([`StoreError::is_retryable`]), or the
/// policy's deadline has passed. Pauses are jittered between half and whole, so that many callers spread out.
///
/// # Errors
/// The last failure; [`StoreError::Timeout`] if no try came to an end.
pub async fn retry<T, F, Fut>(policy: &RetryPolicy, mut operation: F) -> Result<T, StoreError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, StoreError>>,
{
    let deadline = Instant::now() + policy.deadline;
    let mut delay = policy.first_delay;
    let mut last = StoreError::Timeout {
        after: policy.deadline,
    };
    loop {
        match timeout_at(deadline, operation()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) if !error.is_retryable() => return Err(error),
            Ok(Err(error)) => last = error,
            Err(_) => return Err(last),
        }
        let mut pause = jittered(delay);
        if let StoreError::Throttled {
            retry_after: Some(asked),
            ..
        } = &last
        {
            pause = pause.max(*asked);
        }
        if Instant::now() + pause >= deadline {
            return Err(last);
        }
        sleep(pause).await;
        delay = (delay * 2).min(policy.max_delay);
    }
}

/// Between half of `delay` and the whole of it.
fn jittered(delay: Duration) -> Duration {
    let mut random = [0; 4];
    // Without randomness callers merely do not spread out.
    if getrandom::fill(&mut random).is_err() {
        return delay;
    }
    let share = f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX);
    delay.mul_f64(0.5 + share / 2.0)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn unavailable() -> StoreError {
        StoreError::Unavailable {
            detail: "gone".into(),
            sent: true,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_passing_failure_is_repeated_until_success() {
        let tries = Cell::new(0);
        let policy = RetryPolicy::default();
        let result = retry(&policy, || {
            tries.set(tries.get() + 1);
            let outcome = if tries.get() < 4 {
                Err(unavailable())
            } else {
                Ok(tries.get())
            };
            async move { outcome }
        });
        assert_eq!(result.await, Ok(4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lasting_failure_is_not_repeated() {
        let tries = Cell::new(0);
        let denied = StoreError::Denied {
            object: "x".into(),
            detail: "no".into(),
        };
        let result: Result<(), _> = retry(&RetryPolicy::default(), || {
            tries.set(tries.get() + 1);
            let denied = denied.clone();
            async move { Err(denied) }
        })
        .await;
        assert_eq!(result, Err(denied));
        assert_eq!(tries.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_ends_pauses_and_hanging_tries_alike() {
        let start = Instant::now();
        let policy = RetryPolicy::within(Duration::from_secs(10));
        let failing: Result<(), _> = retry(&policy, || async { Err(unavailable()) }).await;
        assert_eq!(failing, Err(unavailable()));
        assert!(start.elapsed() <= policy.deadline);
        let start = Instant::now();
        let hanging: Result<(), _> = retry(&policy, std::future::pending).await;
        assert_eq!(
            hanging,
            Err(StoreError::Timeout {
                after: policy.deadline
            })
        );
        assert_eq!(start.elapsed(), policy.deadline);
    }

    #[tokio::test(start_paused = true)]
    async fn the_store_is_left_alone_for_as_long_as_it_asked() {
        let start = Instant::now();
        let first = Cell::new(true);
        let policy = RetryPolicy::default();
        let result = retry(&policy, || {
            let outcome = if first.replace(false) {
                Err(StoreError::Throttled {
                    retry_after: Some(Duration::from_secs(20)),
                    detail: "busy".into(),
                })
            } else {
                Ok(())
            };
            async move { outcome }
        });
        assert_eq!(result.await, Ok(()));
        assert!(start.elapsed() >= Duration::from_secs(20));
    }
}
