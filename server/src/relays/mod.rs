//! Relays: who reads the event stream is asked to do so.
//!
//! `com.atproto.sync.requestCrawl` at each relay of `PDS_CRAWLERS` when the stream has something new, at most every 20 minutes; events
//! of meanwhile are told of at the end of that time. A relay that does not answer is asked again, first after a minute. The stream
//! has only what is as durable as the settings want it, so nothing is announced that could be lost.

use std::sync::Arc;
use std::time::Duration;

use engine::log::Lsn;
use futures_util::future::join_all;
use reqwest::{Client, Url};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::client::http;

/// What a relay is asked.
const REQUEST_CRAWL: &str = "/xrpc/com.atproto.sync.requestCrawl";
/// How long a relay may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How often relays are asked.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Between two requests to a relay that answers.
    pause: Duration,
    /// After a request that failed; twice as long after each further one, at most `pause`.
    retry: Duration,
}

const PACE: Pace = Pace {
    pause: Duration::from_secs(20 * 60),
    retry: Duration::from_secs(60),
};

/// Asks the relays of the settings until the server stops or is no writer any more.
pub async fn ask_to_crawl(app: Arc<App>, stop: CancellationToken) {
    let client = match http::closed().timeout(ANSWER_LIMIT).build() {
        Ok(client) => client,
        Err(error) => {
            tracing::error!(%error, "relays cannot be asked to read the event stream");
            return;
        }
    };
    let each = app.config.crawlers.iter().map(|relay| {
        let relay = Relay {
            client: client.clone(),
            url: relay.clone(),
            hostname: app.config.hostname.clone(),
        };
        relay.keep_asking(app.firehose.last_event(), PACE)
    });
    tokio::select! {
        () = stop.cancelled() => {}
        _ = join_all(each) => {}
    }
}

/// One relay.
struct Relay {
    client: Client,
    url: Url,
    hostname: String,
}

impl Relay {
    /// Ends when the event stream does.
    async fn keep_asking(self, mut events: watch::Receiver<Lsn>, pace: Pace) {
        let mut told = Lsn::ZERO;
        let mut retry = pace.retry;
        loop {
            let Ok(newest) = events
                .wait_for(|newest| *newest > told)
                .await
                .map(|newest| *newest)
            else {
                return;
            };
            let begun = Instant::now();
            let pause = match self.ask().await {
                Ok(()) => {
                    metrics::counter!("pds_crawl_requests_total", "outcome" => "answered").increment(1);
                    told = newest;
                    retry = pace.retry;
                    pace.pause
                }
                Err(error) => {
                    metrics::counter!("pds_crawl_requests_total", "outcome" => "failed").increment(1);
                    tracing::warn!(relay = %self.url, error, "a relay was not asked to read the event stream");
                    let pause = retry;
                    retry = (retry * 2).min(pace.pause);
                    pause
                }
            };
            tokio::time::sleep_until(begun + pause).await;
        }
    }

    async fn ask(&self) -> Result<(), String> {
        let mut url = self.url.clone();
        url.set_path(REQUEST_CRAWL);
        url.set_query(None);
        let answer = self
            .client
            .post(url)
            .json(&json!({ "hostname": self.hostname }))
            .send()
            .await
            .map_err(|error| http::unreachable(error).to_string())?;
        if answer.status().is_success() {
            Ok(())
        } else {
            Err(format!("it answered {}", answer.status()))
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::StatusCode;
    use axum::routing::post;
    use serde_json::Value;
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    /// A relay that answers so, and tells of each request when it came and what it said.
    async fn relay(answers: Vec<u16>) -> (Relay, mpsc::UnboundedReceiver<(Instant, Value)>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, asked) = mpsc::unbounded_channel();
        let answers = Arc::new(parking_lot::Mutex::new(answers));
        let handler = move |axum::Json(body): axum::Json<Value>| {
            let mut answers = answers.lock();
            let status = if answers.is_empty() {
                200
            } else {
                answers.remove(0)
            };
            sender.send((Instant::now(), body)).ok();
            async move { StatusCode::from_u16(status).unwrap() }
        };
        let router = Router::new().route(REQUEST_CRAWL, post(handler));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let relay = Relay {
            client: http::closed().timeout(ANSWER_LIMIT).build().unwrap(),
            url: format!("http://127.0.0.1:{port}/").parse().unwrap(),
            hostname: "pds.example.com".to_owned(),
        };
        (relay, asked)
    }

    #[tokio::test]
    async fn a_relay_is_asked_when_there_is_something_new_and_not_too_often() {
        assert_eq!(PACE.pause, Duration::from_secs(20 * 60), "as the reference");
        let (relay, mut asked) = relay(Vec::new()).await;
        let events = watch::Sender::new(Lsn::ZERO);
        let pace = Pace {
            pause: Duration::from_millis(300),
            retry: Duration::from_millis(50),
        };
        let asking = tokio::spawn(relay.keep_asking(events.subscribe(), pace));
        for lsn in 1..=5 {
            events.send_replace(Lsn::saturating(lsn));
        }
        let (first, body) = tokio::time::timeout(SOON, asked.recv()).await.unwrap().unwrap();
        assert_eq!(body, json!({"hostname": "pds.example.com"}));
        events.send_replace(Lsn::saturating(6));
        events.send_replace(Lsn::saturating(7));
        let (second, _) = tokio::time::timeout(SOON, asked.recv()).await.unwrap().unwrap();
        assert!(
            second - first >= Duration::from_millis(250),
            "{:?}",
            second - first
        );
        let third = tokio::time::timeout(Duration::from_millis(900), asked.recv()).await;
        assert!(third.is_err(), "asked again though nothing is new");
        drop(events);
        tokio::time::timeout(SOON, asking).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_relay_that_fails_is_asked_again_until_it_answers() {
        let (relay, mut asked) = relay(vec![500, 429]).await;
        let events = watch::Sender::new(Lsn::saturating(1));
        let pace = Pace {
            pause: Duration::from_secs(3_600),
            retry: Duration::from_millis(20),
        };
        tokio::spawn(relay.keep_asking(events.subscribe(), pace));
        for _ in 0..3 {
            tokio::time::timeout(SOON, asked.recv()).await.unwrap().unwrap();
        }
        let fourth = tokio::time::timeout(Duration::from_millis(300), asked.recv()).await;
        assert!(fourth.is_err(), "it has answered");
    }
}
