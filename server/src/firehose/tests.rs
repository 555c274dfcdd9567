//! The feed of a subscriber over a real log: cursors, the hand-over from log to ring, and who is dropped.

use std::time::Duration;

use axum::extract::ws::Message;
use engine::log::Lsn;
use engine::repo::cbor::Value as Cbor;
use engine::repo::event::{self, Event};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

use super::socket::{End, feed};
use super::{FirehoseSettings, to_event};
use crate::testkit::{Options, PATIENCE, Server, User};

/// A subscriber whose socket is a channel.
struct Subscriber {
    messages: mpsc::Receiver<Message>,
    feed: tokio::task::JoinHandle<End>,
}

impl Subscriber {
    /// Connects; `room` is how many messages fit between server and client.
    fn connect(server: &Server, cursor: Option<u64>, room: usize) -> Subscriber {
        let (sender, messages) = mpsc::channel(room);
        let inner = server.app.firehose.inner.clone();
        let place = inner.places.take(None).unwrap();
        let feed =
            tokio::spawn(async move { feed(&inner, &place, &mut PollSender::new(sender), cursor).await });
        Subscriber { messages, feed }
    }

    /// The next event or word.
    async fn next(&mut self) -> bytes::Bytes {
        match tokio::time::timeout(PATIENCE, self.messages.recv()).await {
            Ok(Some(Message::Binary(message))) => message,
            other => panic!("no message: {other:?}"),
        }
    }

    /// Sequence numbers up to `last`.
    async fn until(&mut self, last: u64) -> Vec<u64> {
        let mut seen = Vec::new();
        while seen.last() != Some(&last) {
            seen.push(seq(&self.next().await));
        }
        seen
    }

    /// How the server let it go.
    async fn end(mut self) -> End {
        let draining = async { while self.messages.recv().await.is_some() {} };
        tokio::time::timeout(PATIENCE, draining).await.unwrap();
        tokio::time::timeout(PATIENCE, &mut self.feed)
            .await
            .unwrap()
            .unwrap()
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.feed.abort();
    }
}

fn seq(message: &[u8]) -> u64 {
    match event::decode(message).unwrap() {
        Event::Commit(event) => event.seq,
        Event::Sync(event) => event.seq,
        Event::Identity(event) => event.seq,
        Event::Account(event) => event.seq,
        other => panic!("{other:?} has no seq"),
    }
}

/// The names of the fields of a message's header and body.
fn fields(message: &[u8]) -> (Vec<String>, Vec<String>) {
    let (header, body) = parts(message);
    let names = |value: &Cbor| {
        let fields = value.as_map().unwrap().iter();
        fields.map(|(name, _)| name.to_owned()).collect()
    };
    (names(&header), names(&body))
}

/// Header and body: two values, one behind the other.
fn parts(message: &[u8]) -> (Cbor, Cbor) {
    let mut cuts = (1..message.len()).map(|at| message.split_at(at));
    cuts.find_map(|(header, body)| Some((Cbor::decode(header).ok()?, Cbor::decode(body).ok()?)))
        .unwrap()
}

/// Sequence numbers of all events in the log.
async fn logged(server: &Server) -> Vec<u64> {
    let engine = &server.app.engine;
    let applied = engine.applied().get();
    tokio::time::timeout(PATIENCE, engine.visible().wait(applied))
        .await
        .unwrap()
        .unwrap();
    let mut tail = engine.tail(Lsn::ZERO);
    let mut found = Vec::new();
    loop {
        let batch = tail.next_public_batch(applied, 1 << 20).unwrap();
        if batch.is_empty() {
            return found;
        }
        found.extend(batch.iter().filter_map(to_event).map(|event| event.lsn.get()));
    }
}

/// Waits until the pump has seen everything.
async fn pumped(server: &Server) -> u64 {
    let applied = server.app.engine.applied().get();
    let mut newest = server.app.firehose.inner.ring.watch();
    let waiting = newest.wait_for(|newest| *newest >= applied);
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap()
        .unwrap()
        .get()
}

fn small(max_lag_bytes: usize) -> Options {
    let mut options = Options::default();
    options.firehose = FirehoseSettings {
        max_lag_bytes,
        ..options.firehose
    };
    options
}

async fn posts(server: &Server, user: &User, count: usize, bytes: usize) {
    for n in 0..count {
        server.post(user, &format!("{n} {}", "x".repeat(bytes))).await;
    }
}

#[tokio::test]
async fn a_sign_up_and_a_post_are_announced_in_order() {
    let server = Server::start().await;
    let mut live = Subscriber::connect(&server, None, 100);
    pumped(&server).await;
    tokio::task::yield_now().await;
    let alice = server.sign_up("alice").await;
    let post = server.post(&alice, "hi").await;
    let mut seqs = Vec::new();
    for expected in ["identity", "account", "commit", "sync", "commit"] {
        let message = live.next().await;
        let kind = match event::decode(&message).unwrap() {
            Event::Identity(event) => {
                assert_eq!(
                    (event.did, event.handle.unwrap().as_str()),
                    (alice.did.clone(), "alice.test")
                );
                "identity"
            }
            Event::Account(event) => {
                assert_eq!((event.did, event.inactive), (alice.did.clone(), None));
                "account"
            }
            Event::Sync(event) => {
                assert_eq!(event.did, alice.did);
                "sync"
            }
            Event::Commit(event) => {
                assert_eq!(event.since.is_none(), seqs.len() == 2);
                if seqs.len() == 4 {
                    assert_eq!(event.commit.to_string(), post["commit"]["cid"]);
                }
                "commit"
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(kind, expected);
        seqs.push(seq(&message));
    }
    assert_eq!(seqs, logged(&server).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn between_the_log_and_the_ring_there_is_no_gap_and_nothing_comes_twice() {
    // A ring of a few events, so that those who begin in the log must catch up with a moving ring.
    let server = Server::with(small(24_000)).await;
    let alice = server.sign_up("alice").await;
    posts(&server, &alice, 30, 500).await;
    let before = logged(&server).await;
    let mut subscribers = Vec::new();
    let (server, alice) = (&server, &alice);
    let writing = posts(server, alice, 150, 500);
    let subscribing = async {
        for n in 0..30 {
            let cursor = before[n % before.len()];
            subscribers.push((cursor, Subscriber::connect(server, Some(cursor), 10_000)));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    futures_util::join!(writing, subscribing);
    let all = logged(server).await;
    for (cursor, mut subscriber) in subscribers {
        let expected: Vec<u64> = all.iter().copied().filter(|seq| *seq > cursor).collect();
        assert_eq!(
            subscriber.until(*all.last().unwrap()).await,
            expected,
            "from {cursor}"
        );
    }
}

#[tokio::test]
async fn a_cursor_resumes_behind_the_event_it_names() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    posts(&server, &alice, 5, 10).await;
    let all = logged(&server).await;
    pumped(&server).await;
    for (at, cursor) in all.iter().enumerate().take(all.len() - 1) {
        let mut subscriber = Subscriber::connect(&server, Some(*cursor), 100);
        assert_eq!(subscriber.until(*all.last().unwrap()).await, all[at + 1..]);
    }
    let mut from_the_beginning = Subscriber::connect(&server, Some(0), 100);
    assert_eq!(
        from_the_beginning.until(*all.last().unwrap()).await,
        all,
        "nothing was missed, so no info"
    );
    drop(from_the_beginning);
    let restarted = server.restart().await;
    let mut subscriber = Subscriber::connect(&restarted, Some(all[2]), 100);
    assert_eq!(
        subscriber.until(*all.last().unwrap()).await,
        all[3..],
        "from before the ring's floor"
    );
}

#[tokio::test]
async fn a_cursor_beyond_the_newest_entry_is_in_the_future() {
    let server = Server::start().await;
    server.sign_up("alice").await;
    let newest = pumped(&server).await;
    for cursor in [newest + 1, 1 << 53, u64::MAX] {
        let end = Subscriber::connect(&server, Some(cursor), 10).end().await;
        assert!(matches!(end, End::Error("FutureCursor", _)), "{cursor}: {end:?}");
    }
    let mut at_the_end = Subscriber::connect(&server, Some(newest), 10);
    tokio::task::yield_now().await;
    let bob = server.sign_up("bob").await;
    let Event::Identity(first) = event::decode(&at_the_end.next().await).map(drop_borrow).unwrap() else {
        panic!("not the identity")
    };
    assert_eq!(first.did, bob.did);
}

fn drop_borrow(event: Event<'_>) -> Event<'static> {
    match event {
        Event::Identity(view) => Event::Identity(event::IdentityView {
            seq: view.seq,
            time: "",
            did: view.did,
            handle: view.handle,
        }),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_cursor_out_of_the_window_is_told_only_if_something_was_missed() {
    let server = Server::start().await;
    server.sign_up("alice").await;
    let all = logged(&server).await;
    let last = *all.last().unwrap();
    server.clock.advance(Duration::from_secs(25 * 3600));
    // A session is an entry, and no event.
    server.log_in("alice").await;
    server.clock.advance(Duration::from_secs(25 * 3600));
    let alice = server.log_in("alice").await;
    server.post(&alice, "new").await;
    pumped(&server).await;
    let all_now = logged(&server).await;
    let newest = *all_now.last().unwrap();
    let mut in_time = Subscriber::connect(&server, Some(last), 10);
    assert_eq!(in_time.until(newest).await, [newest]);
    for cursor in [0, all[0], all[2]] {
        let mut late = Subscriber::connect(&server, Some(cursor), 10);
        let first = late.next().await;
        assert!(
            matches!(
                event::decode(&first).unwrap(),
                Event::Info {
                    name: "OutdatedCursor",
                    ..
                }
            ),
            "{cursor}"
        );
        let (header, body) = fields(&first);
        assert_eq!(header, ["t", "op"]);
        assert_eq!(body, ["name", "message"], "statement 79: no seq");
        assert_eq!(late.until(newest).await, [newest]);
    }
}

#[tokio::test]
async fn who_was_live_and_falls_behind_the_ring_is_too_slow() {
    let server = Server::with(small(20_000)).await;
    let alice = server.sign_up("alice").await;
    pumped(&server).await;
    let slow = Subscriber::connect(&server, None, 1);
    tokio::task::yield_now().await;
    // The first fits the channel, the second waits in front of it, and the ring moves on.
    posts(&server, &alice, 40, 2000).await;
    pumped(&server).await;
    let end = slow.end().await;
    assert!(matches!(end, End::Error("ConsumerTooSlow", _)), "{end:?}");
    let mut quick = Subscriber::connect(&server, None, 100);
    tokio::task::yield_now().await;
    server.post(&alice, "one more").await;
    quick.next().await;
}

#[tokio::test]
async fn who_takes_nothing_is_dropped() {
    let mut options = Options::default();
    options.firehose.stall = Duration::from_millis(200);
    let server = Server::with(options).await;
    let alice = server.sign_up("alice").await;
    posts(&server, &alice, 5, 10).await;
    let mut stalled = Subscriber::connect(&server, Some(0), 1);
    let end = tokio::time::timeout(PATIENCE, &mut stalled.feed)
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(end, End::Gone), "{end:?}");
}

#[tokio::test]
async fn a_cursor_that_is_no_number_is_refused_before_the_upgrade() {
    let server = Server::start().await;
    let headers = [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    for cursor in ["-1", "x", "1.5", "18446744073709551616", "1&cursor=2"] {
        let path = format!("/xrpc/com.atproto.sync.subscribeRepos?cursor={cursor}");
        let answer = server
            .request(
                axum::http::Method::GET,
                &path,
                &headers,
                axum::body::Body::empty(),
            )
            .await;
        assert_eq!(answer.error(), (400, "InvalidRequest".into()), "{cursor}");
        assert!(answer.json()["message"].as_str().unwrap().contains("cursor"));
    }
    assert_eq!(server.app.firehose.subscribers(), 0);
}

#[tokio::test]
async fn only_events_leave_and_nothing_private_with_them() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    server.upload(&alice, "text/plain", "a secret upload").await.ok();
    let input = json!({"identifier": "alice.test", "password": crate::testkit::PASSWORD});
    server.call("com.atproto.server.createSession", &input).await.ok();
    server.post(&alice, "public").await;
    let mut subscriber = Subscriber::connect(&server, Some(0), 100);
    for _ in 0..5 {
        let message = subscriber.next().await;
        let text = String::from_utf8_lossy(&message);
        for private in ["alice@example.com", "text/plain", "plc_intent", "refresh"] {
            assert!(!text.contains(private), "{private}");
        }
    }
    assert_eq!(logged(&server).await.len(), 5);
}

#[tokio::test]
async fn statements_73_74_and_75_events_have_the_fields_that_they_must_and_no_others() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let record = |text: &str| json!({"repo": alice.did, "collection": crate::testkit::NOTE, "rkey": "a", "record": {"text": text}});
    let put = "com.atproto.repo.putRecord";
    for text in ["one", "two"] {
        server.call_as(&alice.access, put, &record(text)).await.ok();
    }
    let delete = "com.atproto.repo.deleteRecord";
    server.call_as(&alice.access, delete, &record("")).await.ok();
    let off = "com.atproto.server.deactivateAccount";
    server.call_as(&alice.access, off, &json!({})).await;
    let mut subscriber = Subscriber::connect(&server, Some(0), 100);
    let identity = subscriber.next().await;
    assert_eq!(fields(&identity).1, ["did", "seq", "time", "handle"]);
    let account = subscriber.next().await;
    assert_eq!(fields(&account).1, ["did", "seq", "time", "active"], "no status");
    let mut actions = Vec::new();
    for nth in 0..5 {
        let message = subscriber.next().await;
        if nth == 1 {
            assert_eq!(fields(&message).1, ["did", "rev", "seq", "time", "blocks"]);
            continue;
        }
        let (_, body) = parts(&message);
        let body = body.as_map().unwrap();
        for flag in ["tooBig", "rebase"] {
            assert_eq!(body.get(flag), Some(&Cbor::Bool(false)), "{flag}");
        }
        assert_eq!(body.get("blobs"), Some(&Cbor::Array(Vec::new())));
        let Some(Cbor::Array(ops)) = body.get("ops") else {
            panic!("no operations")
        };
        for op in ops {
            let op = op.as_map().unwrap();
            let action = op.get_text("action").unwrap().to_owned();
            assert_eq!(op.get("prev").is_some(), action != "create", "{action}");
            assert_eq!(op.get("cid") == Some(&Cbor::Null), action == "delete", "{action}");
            actions.push(action);
        }
    }
    assert_eq!(actions, ["create", "update", "delete"]);
    let account = subscriber.next().await;
    assert_eq!(fields(&account).1, ["did", "seq", "time", "active", "status"]);
}

#[tokio::test]
async fn statement_71_of_a_deleted_account_a_cursor_brings_back_nothing_but_its_end() {
    let server = Server::start().await;
    let (alice, bob) = (server.sign_up("alice").await, server.sign_up("bob").await);
    posts(&server, &alice, 3, 10).await;
    posts(&server, &bob, 2, 10).await;
    let delete = "com.atproto.admin.deleteAccount";
    let answer = server.as_admin(delete, &json!({"did": alice.did})).await;
    assert_eq!(answer.status, 200);
    posts(&server, &bob, 1, 10).await;
    let newest = pumped(&server).await;
    let last = *logged(&server).await.last().unwrap();
    assert!(last <= newest);
    let told = async |server: &Server| {
        let mut subscriber = Subscriber::connect(server, Some(0), 100);
        let (mut of_alice, mut others) = (Vec::new(), 0);
        loop {
            let message = subscriber.next().await;
            let (did, word) = match event::decode(&message).unwrap() {
                Event::Commit(view) => (view.repo, "commit"),
                Event::Sync(view) => (view.did, "sync"),
                Event::Identity(view) => (view.did, "identity"),
                Event::Account(view) => (view.did, view.inactive.map_or("active", |status| status.name())),
                other => panic!("{other:?}"),
            };
            if did == alice.did {
                of_alice.push(word);
            } else {
                others += 1;
            }
            if seq(&message) == last {
                return (of_alice, others);
            }
        }
    };
    // Out of memory, and out of the log.
    assert_eq!(told(&server).await, (vec!["deleted"], 7));
    let server = server.restart().await;
    pumped(&server).await;
    assert_eq!(told(&server).await, (vec!["deleted"], 7));
}
