//! One subscriber: cursor rules, backfill, live, and the rules by which it is dropped.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use axum::http::{HeaderMap, Response, Uri};
use axum::response::IntoResponse;
use engine::log::{Lsn, ReadError};
use futures_util::stream::SplitStream;
use futures_util::{Sink, SinkExt, StreamExt};

use tokio::time::{Instant, interval_at};

use super::places::{Full, Place};
use super::removed::Removed;
use super::ring::{Event, Found};
use super::{BACKFILL_BYTES, Inner, READ_BYTES, error_message, read, to_event};
use crate::app::App;
use crate::listen::Peer;
use crate::xrpc::error::XrpcError;
use crate::xrpc::params::Params;

/// How often a silent connection is pinged.
const PING_EVERY: Duration = Duration::from_secs(30);
/// Bytes handed to a socket between two looks at the ring.
const SEND_BYTES: usize = 256 << 10;
/// How long a subscriber may take to answer that we close.
const CLOSE_WAIT: Duration = Duration::from_secs(2);
/// Largest message that a subscriber may send us; all are ignored.
const MAX_INCOMING_BYTES: usize = 4096;

/// `GET /xrpc/com.atproto.sync.subscribeRepos`.
pub async fn subscribe(
    State(app): State<Arc<App>>,
    peer: Option<Extension<Peer>>,
    uri: Uri,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Response<axum::body::Body> {
    let cursor = match Params::parse(uri.query()).and_then(|params| params.parsed_optional::<u64>("cursor")) {
        Ok(cursor) => cursor,
        Err(error) => return error.into_http(),
    };
    let Ok(upgrade) = upgrade else {
        return not_a_subscription().await;
    };
    let inner = app.firehose.inner.clone();
    let address = crate::listen::client_address(&app.config, peer.map(|Extension(peer)| peer), &headers);
    let place = match inner.places.take(address) {
        Ok(place) => place,
        Err(Full::All) => return XrpcError::unavailable("Too many firehose subscribers", 30).into_http(),
        Err(Full::Address) => {
            return XrpcError::unavailable("Too many firehose subscribers from this address", 30).into_http();
        }
    };
    upgrade
        .max_message_size(MAX_INCOMING_BYTES)
        // Subscribers say next to nothing; the default of 128 KiB each would be most of what they cost.
        .read_buffer_size(MAX_INCOMING_BYTES)
        .max_frame_size(MAX_INCOMING_BYTES)
        .write_buffer_size(64 << 10)
        .on_upgrade(move |socket| async move {
            inner
                .runtime
                .clone()
                .spawn(async move { serve(&inner, &place, socket, cursor).await });
        })
        .into_response()
}

/// The path with another verb, or without an upgrade.
pub async fn not_a_subscription() -> Response<axum::body::Body> {
    XrpcError::invalid("com.atproto.sync.subscribeRepos is a WebSocket").into_http()
}

/// Where a subscriber's messages go: its socket, or a test's channel.
pub(super) trait EventSink: Sink<Message> + Unpin + Send {}
impl<S: Sink<Message> + Unpin + Send> EventSink for S {}

/// Why a subscriber is let go.
#[derive(Debug)]
pub(super) enum End {
    /// It left, or its connection broke.
    Gone,
    /// We stop.
    Stopping,
    /// It gets an error message first.
    Error(&'static str, &'static str),
}

async fn serve(inner: &Inner, place: &Place, socket: WebSocket, cursor: Option<u64>) {
    let (mut sink, mut stream) = socket.split();
    let end = tokio::select! {
        end = feed(inner, place, &mut sink, cursor) => end,
        end = listen(&mut stream) => end,
        () = inner.stop.cancelled() => End::Stopping,
    };
    let close = match end {
        End::Gone => None,
        End::Stopping => Some(CloseFrame {
            code: close_code::AWAY,
            reason: Utf8Bytes::from_static("stopping"),
        }),
        End::Error(name, message) => {
            let _gone = send(inner, &mut sink, Message::Binary(error_message(name, message))).await;
            Some(CloseFrame {
                code: close_code::POLICY,
                reason: Utf8Bytes::from_static(name),
            })
        }
    };
    if let Some(close) = close
        && send(inner, &mut sink, Message::Close(Some(close))).await.is_ok()
    {
        // Its answer ends the connection in order; an abrupt end could overtake what was just sent.
        let _late = tokio::time::timeout(CLOSE_WAIT, listen(&mut stream)).await;
    }
}

/// Reads and ignores what the subscriber says; pings are answered by the library.
async fn listen(stream: &mut SplitStream<WebSocket>) -> End {
    while let Some(Ok(message)) = stream.next().await {
        if matches!(message, Message::Close(_)) {
            break;
        }
    }
    End::Gone
}

/// Sends events from the cursor on, until something ends it.
pub(super) async fn feed<S: EventSink>(
    inner: &Inner,
    place: &Place,
    sink: &mut S,
    cursor: Option<u64>,
) -> End {
    let newest = inner.ring.newest();
    let mut position = match start(inner, cursor, newest).await {
        Start::At(position) => position,
        Start::Outdated(position) => {
            if outdated(inner, sink).await.is_err() {
                return End::Gone;
            }
            position
        }
        Start::Future => return End::Error("FutureCursor", "Cursor in the future."),
    };
    // Until it has caught up; what is removed later is told after what came before.
    let mut removed = match cursor {
        Some(_) => Removed::since(&inner.engine, position).await,
        None => Removed::default(),
    };
    let mut watch = inner.ring.watch();
    let mut pings = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    let mut live = false;
    let mut sent = false;
    let mut tail = None;
    loop {
        let newest = *watch.borrow_and_update();
        place.at(position);
        match inner.ring.after(position, SEND_BYTES) {
            Found::Events(events) => {
                tail = None;
                live = true;
                let through = events.last().map_or(position, |event| event.lsn);
                let events = removed.without(events);
                if let Err(end) = send_all(inner, sink, events, &mut position).await {
                    return end;
                }
                position = position.max(through);
            }
            Found::CaughtUp => {
                tail = None;
                live = true;
                removed = Removed::default();
                place.at(newest);
                tokio::select! {
                    changed = watch.changed() => if changed.is_err() { return End::Stopping },
                    _ = pings.tick() => {
                        if send(inner, sink, Message::Ping(axum::body::Bytes::new())).await.is_err() {
                            return End::Gone;
                        }
                    }
                }
            }
            Found::Behind if live => {
                metrics::counter!("pds_firehose_dropped_total", "reason" => "behind").increment(1);
                return End::Error("ConsumerTooSlow", "Stream consumer too slow");
            }
            Found::Behind => {
                // Held until what was read is sent, so that it bounds the memory too. It is never closed.
                let _turn = inner.backfills.acquire().await;
                let reader = tail.take().unwrap_or_else(|| inner.engine.tail(position));
                let limit = inner.ring.newest();
                match read(reader, limit, BACKFILL_BYTES).await {
                    Ok((reader, batch)) => {
                        let through = if batch.is_empty() {
                            limit
                        } else {
                            reader.position()
                        };
                        tail = Some(reader);
                        let events = removed.without(batch.iter().filter_map(to_event).collect());
                        if let Err(end) = send_all(inner, sink, events, &mut position).await {
                            return end;
                        }
                        sent = true;
                        position = position.max(through);
                    }
                    // What was the oldest when the cursor was looked at has gone meanwhile.
                    Err(ReadError::Trimmed { oldest }) if !sent => {
                        if outdated(inner, sink).await.is_err() {
                            return End::Gone;
                        }
                        sent = true;
                        position = position.max(Lsn::saturating(oldest.get().saturating_sub(1)));
                    }
                    Err(ReadError::Trimmed { .. }) => {
                        return End::Error("ConsumerTooSlow", "The cursor fell out of what is retained");
                    }
                    // The subscriber comes back with its cursor.
                    Err(error @ ReadError::Away { .. }) => {
                        tracing::warn!(%error, "a subscriber's old events cannot be fetched from the replica now");
                        return End::Error("InternalServerError", "Old events cannot be read now; try again");
                    }
                    Err(error) => {
                        tracing::error!(%error, "the firehose cannot read the log");
                        return End::Error("InternalServerError", "The event log could not be read");
                    }
                }
            }
        }
    }
}

/// Tells a subscriber that it missed something.
async fn outdated<S: EventSink>(inner: &Inner, sink: &mut S) -> Result<(), ()> {
    let info = engine::repo::event::encode_info(
        "OutdatedCursor",
        Some("Requested cursor exceeded limit. Possibly missing events"),
    );
    send(inner, sink, Message::Binary(info.into())).await
}

/// Where a subscriber begins.
enum Start {
    At(Lsn),
    Outdated(Lsn),
    Future,
}

async fn start(inner: &Inner, cursor: Option<u64>, newest: Lsn) -> Start {
    let Some(cursor) = cursor else {
        return Start::At(newest);
    };
    let Some(cursor) = Lsn::new(cursor).filter(|cursor| *cursor <= newest) else {
        return Start::Future;
    };
    let window = u64::try_from(inner.settings.backfill.as_micros()).unwrap_or(u64::MAX);
    let cutoff = Lsn::saturating(inner.engine.now_micros().saturating_sub(window));
    let floor = inner.engine.oldest_lsn().max(cutoff).min(newest);
    // A cursor below the floor missed something only if an event lies between the two.
    if cursor >= floor {
        Start::At(cursor)
    } else if inner.engine.oldest_lsn() <= cursor && !event_between(inner, cursor, floor).await {
        Start::At(floor)
    } else {
        Start::Outdated(floor)
    }
}

/// Whether an event lies after `from`, up to `to`; in doubt yes.
async fn event_between(inner: &Inner, from: Lsn, to: Lsn) -> bool {
    let mut tail = inner.engine.tail(from);
    loop {
        let Ok((back, batch)) = read(tail, to, READ_BYTES).await else {
            return true;
        };
        if batch.is_empty() {
            return false;
        }
        if batch.iter().any(|frame| to_event(frame).is_some()) {
            return true;
        }
        tail = back;
    }
}

async fn send_all<S: EventSink>(
    inner: &Inner,
    sink: &mut S,
    events: Vec<Event>,
    position: &mut Lsn,
) -> Result<(), End> {
    for event in events {
        let feeding =
            tokio::time::timeout(inner.settings.stall, sink.feed(Message::Binary(event.message))).await;
        stalled_or_gone(feeding)?;
        *position = event.lsn;
    }
    let flushed = stalled_or_gone(tokio::time::timeout(inner.settings.stall, sink.flush()).await);
    give_way();
    flushed
}

/// After so many sends others may run.
const SENDS_IN_A_ROW: u32 = 4;

thread_local! {
    static SENT: Cell<u32> = const { Cell::new(0) };
}

/// Now and then lets other threads have the processor. One event goes to a thousand subscribers in a few milliseconds, and that is how
/// long a scheduler may let somebody wait who has work for a tenth of one: a commit.
fn give_way() {
    let sent = SENT.get().wrapping_add(1);
    SENT.set(sent);
    if sent.is_multiple_of(SENDS_IN_A_ROW) {
        std::thread::yield_now();
    }
}

fn stalled_or_gone<E>(outcome: Result<Result<(), E>, tokio::time::error::Elapsed>) -> Result<(), End> {
    match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(End::Gone),
        Err(_) => {
            metrics::counter!("pds_firehose_dropped_total", "reason" => "stalled").increment(1);
            Err(End::Gone)
        }
    }
}

async fn send<S: EventSink>(inner: &Inner, sink: &mut S, message: Message) -> Result<(), ()> {
    match tokio::time::timeout(
        inner.settings.stall.min(Duration::from_secs(5)),
        sink.send(message),
    )
    .await
    {
        Ok(Ok(())) => Ok(()),
        _ => Err(()),
    }
}
