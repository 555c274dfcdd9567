//! Changes of identities whose outcome is not known are looked at until it is.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::service::identity::Identities;

/// How often is looked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// After a change was left open.
    first: Duration,
    /// Each further look waits twice as long, at most this.
    longest: Duration,
}

/// What a server does: whoever asked sees the outcome soon, and a directory that is away for a day is asked some hundred times.
pub(super) const PACE: Pace = Pace {
    first: Duration::from_secs(5),
    longest: Duration::from_secs(600),
};

/// Looks while something is open, until `stop`; else waits until something is. A look is bounded by itself.
pub(super) async fn identities(identities: Identities, pace: Pace, stop: CancellationToken) {
    let looking = async {
        loop {
            identities.left_open().await;
            settle(&identities, pace).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = looking => {}
    }
}

/// Returns when nothing is open.
async fn settle(identities: &Identities, pace: Pace) {
    let mut pause = pace.first;
    loop {
        tokio::time::sleep(pause).await;
        match identities.resume().await {
            Ok(looked) if looked.left == 0 => return,
            Ok(looked) => tracing::warn!(left = looked.left, "changes of identities are open"),
            Err(error) => tracing::warn!(%error, "open changes of identities cannot be found"),
        }
        pause = (pause * 2).min(pace.longest);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::*;
    use crate::testkit::{Mood, PATIENCE, Server};

    #[tokio::test]
    async fn a_change_that_was_left_open_is_settled_when_the_directory_is_back() {
        let server = Server::start().await;
        let alice = server.sign_up("alice").await;
        let pace = Pace {
            first: Duration::from_millis(5),
            longest: Duration::from_millis(20),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(identities(server.app.identities.clone(), pace, stop.clone()));
        server.plc.set(Mood::Dying);
        let rename = "com.atproto.identity.updateHandle";
        let input = json!({"handle": "alicia.test"});
        let answer = server.call_as(&alice.access, rename, &input).await;
        assert_eq!(answer.error(), (502, "UpstreamFailure".into()));
        assert_eq!(server.count("SELECT count(*) FROM identity_intent").await, 1);
        server.plc.set(Mood::Well);
        let deadline = Instant::now() + PATIENCE;
        while server.count("SELECT count(*) FROM identity_intent").await > 0 {
            assert!(Instant::now() < deadline, "the change is still open");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(server.log_in("alicia").await.did, alice.did);
        stop.cancel();
        tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
    }
}
