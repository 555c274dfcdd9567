//! The body of a request on its way through, never held as a whole; and who is to blame while nothing moves.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{BodyDataStream, Bytes};
use futures_util::Stream;
use parking_lot::Mutex;
use tokio::time::Instant;

/// How far a request's body is.
#[derive(Clone)]
pub(super) struct Progress(Arc<Mutex<State>>);

struct State {
    /// When it last moved.
    moved: Instant,
    /// Whether the service has taken all that the client has sent so far.
    starved: bool,
    /// Whether the client broke off.
    broken: bool,
}

/// What to think of a request that is not answered yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// Wait until then.
    Until(Instant),
    /// The client sends nothing.
    ClientStalls,
    /// The service does not answer.
    ServiceStalls,
}

impl Progress {
    pub(super) fn new() -> Progress {
        Progress(Arc::new(Mutex::new(State {
            moved: Instant::now(),
            starved: false,
            broken: false,
        })))
    }

    /// Judges by how long a client may send nothing and how long a service may say nothing.
    pub(super) fn judge(&self, client: Duration, service: Duration) -> Patience {
        let state = self.0.lock();
        let until = state.moved + if state.starved { client } else { service };
        if Instant::now() < until {
            Patience::Until(until)
        } else if state.starved {
            Patience::ClientStalls
        } else {
            Patience::ServiceStalls
        }
    }

    /// Whether the client broke off in the middle.
    pub(super) fn is_broken(&self) -> bool {
        self.0.lock().broken
    }
}

/// A client's body as it comes.
pub(super) struct Upload {
    body: BodyDataStream,
    progress: Progress,
}

impl Upload {
    pub(super) fn new(body: BodyDataStream, progress: Progress) -> Upload {
        Upload { body, progress }
    }
}

impl Stream for Upload {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = Pin::new(&mut self.body).poll_next(cx);
        let mut state = self.progress.0.lock();
        if polled.is_ready() || !state.starved {
            state.moved = Instant::now();
        }
        state.starved = polled.is_pending();
        let item = ready!(polled);
        state.broken |= matches!(item, Some(Err(_)));
        Poll::Ready(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use futures_util::{FutureExt, StreamExt, stream};

    const CLIENT: Duration = Duration::from_secs(20);
    const SERVICE: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn whoever_lets_the_other_wait_is_to_blame() {
        let progress = Progress::new();
        let piece = Ok::<_, std::io::Error>(Bytes::from_static(b"x"));
        let body = Body::from_stream(stream::iter([piece]).chain(stream::pending()));
        let mut upload = Upload::new(body.into_data_stream(), progress.clone());
        let judge = || progress.judge(CLIENT, SERVICE);
        assert_eq!(judge(), Patience::Until(Instant::now() + SERVICE));
        tokio::time::advance(SERVICE).await;
        assert_eq!(judge(), Patience::ServiceStalls);
        upload.next().await.unwrap().unwrap();
        assert_eq!(judge(), Patience::Until(Instant::now() + SERVICE));
        assert!(upload.next().now_or_never().is_none());
        tokio::time::advance(SERVICE).await;
        assert!(
            upload.next().now_or_never().is_none(),
            "asking again is no progress"
        );
        assert_eq!(judge(), Patience::Until(Instant::now() + CLIENT - SERVICE));
        tokio::time::advance(CLIENT).await;
        assert_eq!(judge(), Patience::ClientStalls);
        assert!(!progress.is_broken());
    }

    #[tokio::test]
    async fn a_client_that_breaks_off_is_remembered() {
        let progress = Progress::new();
        let error = Err::<Bytes, _>(std::io::Error::other("gone"));
        let body = Body::from_stream(stream::iter([error]));
        let mut upload = Upload::new(body.into_data_stream(), progress.clone());
        assert!(upload.next().await.unwrap().is_err());
        assert!(progress.is_broken());
    }
}
