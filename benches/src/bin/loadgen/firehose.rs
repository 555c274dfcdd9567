//! The scenarios of `subscribeRepos`: replay from a cursor, and live events to many subscribers.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Map, json};
use tokio::net::TcpStream;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

use crate::accounts::Account;
use crate::api::{Api, ApiError};
use crate::args::{FanOut, FirehoseReplay};
use crate::frame::{self, Frame};
use crate::load::{PAUSE_AFTER_ERROR, joined};
use crate::records;
use crate::report::{Outcome, Tally, Usage, millis, per_second, sample, sample_after};
use crate::requests::{open, shared_accounts, turn};

/// Largest message taken; the protocol allows five million bytes.
const MAX_MESSAGE_BYTES: usize = 8 << 20;
/// Bytes that a socket reads at once: replay is about throughput, fan-out about many sockets.
const REPLAY_BUFFER: usize = 128 << 10;
const FAN_OUT_BUFFER: usize = 16 << 10;
/// How long a stream may be silent although something is to come.
const SILENCE: Duration = Duration::from_secs(30);
/// How long to wait for a written marker to come by before another is written.
const MARKER_WAIT: Duration = Duration::from_millis(500);
/// How many markers are written at most.
const MARKERS: u32 = 60;
/// How many subscribers connect at once.
const CONNECTING: usize = 32;
/// How far subscribers stand back behind those that write.
const SUBSCRIBERS_NICENESS: i32 = 10;
/// Before this, a `seq` is not a time in microseconds (2001).
const LEAST_TIME_SEQ: u64 = 1_000_000_000_000_000;

/// One connection to the firehose.
struct Subscription {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Subscription {
    async fn open(base: &str, cursor: Option<u64>, buffer: usize) -> Result<Subscription> {
        let Some(rest) = base.strip_prefix("http://") else {
            bail!("the firehose is read without TLS: give the server's http:// URL");
        };
        let mut url = format!("ws://{rest}/xrpc/com.atproto.sync.subscribeRepos");
        if let Some(cursor) = cursor {
            url = format!("{url}?cursor={cursor}");
        }
        let config = WebSocketConfig::default()
            .read_buffer_size(buffer)
            .write_buffer_size(0)
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        let connecting = Box::pin(connect_async_with_config(&url, Some(config), true));
        let (socket, _) = timeout(SILENCE, connecting)
            .await
            .with_context(|| format!("{url} does not answer"))?
            .map_err(|error| anyhow!("{url}: {}", refusal(error)))?;
        Ok(Subscription { socket })
    }

    /// The next message. Nothing is lost if the future is dropped.
    async fn next(&mut self) -> Result<tokio_tungstenite::tungstenite::Bytes> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Binary(bytes))) => return Ok(bytes),
                Some(Ok(Message::Close(Some(close)))) => {
                    bail!("the server closed the stream: {} {}", close.code, close.reason)
                }
                Some(Ok(Message::Close(None))) | None => bail!("the server closed the stream"),
                Some(Ok(Message::Text(_))) => bail!("a text message in a binary stream"),
                // Pings are answered by the library.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error).context("the stream broke"),
            }
        }
    }

    /// The next event: its place in the stream and its size in bytes. Words about the stream go to `info`.
    async fn next_event(&mut self, info: &mut Option<String>) -> Result<(u64, u64)> {
        loop {
            let message = self.next().await?;
            match frame::look(&message).map_err(|error| anyhow!("a message that is none: {error}"))? {
                Frame::Event(seq) => return Ok((seq, message.len() as u64)),
                Frame::Info(name) => *info = Some(name),
                Frame::Error(error) => bail!("the stream ended with {error}"),
            }
        }
    }
}

/// What a failed handshake says; the library's own words leave out the server's.
fn refusal(error: tokio_tungstenite::tungstenite::Error) -> String {
    match error {
        tokio_tungstenite::tungstenite::Error::Http(response) => {
            let body = response.body().as_deref().unwrap_or_default();
            let words: String = String::from_utf8_lossy(body).chars().take(200).collect();
            format!("{} {words}", response.status())
        }
        error => error.to_string(),
    }
}

/// The `seq` of an event that was written after this was called: nothing older is newer.
///
/// A live subscription starts some time after it was opened, so markers are written until one comes by.
async fn newest_seq(api: &Api, account: &Account) -> Result<u64> {
    let mut live = Subscription::open(api.base(), None, FAN_OUT_BUFFER).await?;
    let marker = format!("mark{}", crate::now_micros());
    for attempt in 0..MARKERS {
        write_marker(api, account, &format!("{marker}-{attempt}")).await?;
        match timeout(MARKER_WAIT, seq_of(&mut live, marker.as_bytes())).await {
            Ok(seq) => return seq,
            Err(_elapsed) => {}
        }
    }
    bail!("{MARKERS} records were written and none came by on the firehose")
}

async fn write_marker(api: &Api, account: &Account, key: &str) -> Result<()> {
    let body = records::create_body(account.did(), 0, Some(key));
    account
        .procedure(api, "com.atproto.repo.createRecord", &body)
        .await
        .context("writing a marker")?;
    Ok(())
}

async fn seq_of(live: &mut Subscription, needle: &[u8]) -> Result<u64> {
    loop {
        let message = live.next().await?;
        let found = frame::look(&message).map_err(|error| anyhow!("a message that is none: {error}"))?;
        match found {
            Frame::Event(seq) if frame::find(&message, needle).is_some() => return Ok(seq),
            Frame::Error(error) => bail!("the stream ended with {error}"),
            Frame::Event(_) | Frame::Info(_) => {}
        }
    }
}

/// `firehose-replay`.
///
/// # Errors
/// The account cannot be prepared or its marker does not come by; a stream that ends early is counted as an error.
pub async fn replay(args: &FirehoseReplay) -> Result<Outcome> {
    let (api, mut sessions) = open(&args.common, 1)?;
    let accounts = shared_accounts(&api, &args.common, &mut sessions, 1).await?;
    let account = accounts.first().context("no account")?;
    let target = newest_seq(&api, account).await?;
    sessions.save(&accounts)?;

    let before = sample(args.common.server_pid)?;
    let started = Instant::now();
    let mut stream = Subscription::open(api.base(), Some(args.cursor), REPLAY_BUFFER).await?;
    let (mut tally, mut info, mut first, mut last) = (Tally::default(), None, None, 0);
    while last < target {
        match timeout(SILENCE, stream.next_event(&mut info)).await {
            Ok(Ok((seq, bytes))) => {
                first.get_or_insert_with(|| started.elapsed());
                tally.requests += 1;
                tally.bytes += bytes;
                if seq <= last {
                    tally.failure(format!("event {seq} after event {last}"));
                }
                last = seq;
            }
            Ok(Err(error)) => {
                tally.failure(format!("{error:#}"));
                break;
            }
            Err(_elapsed) => {
                tally.failure(format!("nothing for {SILENCE:?}, {last} being the last event"));
                break;
            }
        }
    }
    let elapsed = started.elapsed();
    let usage = Usage::between(before, sample_after(args.common.server_pid));
    let mut extra = Map::new();
    let first = first.and_then(|first: Duration| u64::try_from(first.as_micros()).ok());
    extra.insert("first_event_ms".into(), millis(first));
    extra.insert("bytes".into(), tally.bytes.into());
    extra.insert("info".into(), info.into());
    Ok(Outcome {
        scenario: "firehose-replay",
        parameters: json!({ "cursor": args.cursor }),
        elapsed,
        tally,
        usage,
        extra,
    })
}

/// What subscribers are told: events after `from` count, and the one at `until` is the last.
struct Span {
    from: AtomicU64,
    until: watch::Sender<u64>,
}

/// What one subscriber saw.
struct Seen {
    tally: Tally,
    last: u64,
}

/// A thread for subscribers, which stands back behind those that write: they stand for other people's machines, and what
/// they cost this one must not be taken for what the server makes writers wait.
struct Apart(Option<Runtime>);

impl Apart {
    fn new() -> Result<Apart> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("subscribers")
            .on_thread_start(|| {
                // A system that does not allow it shares evenly.
                let _evenly = rustix::process::setpriority_process(None, SUBSCRIBERS_NICENESS);
            })
            .enable_all()
            .build()
            .context("the subscribers' runtime cannot start")?;
        Ok(Apart(Some(runtime)))
    }

    fn handle(&self) -> Result<&Handle> {
        Ok(self
            .0
            .as_ref()
            .context("the subscribers' runtime has ended")?
            .handle())
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        // It is dropped inside of another runtime, which must not be made to wait.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// `fan-out`.
///
/// # Errors
/// Not all subscribers can be connected, or no account can be prepared; streams that end early are counted as errors.
pub async fn fan_out(args: &FanOut) -> Result<Outcome> {
    let (api, mut sessions) = open(&args.common, args.writers)?;
    let accounts = shared_accounts(&api, &args.common, &mut sessions, args.writers).await?;
    let account = accounts.first().context("no account")?.clone();

    let span = Arc::new(Span {
        from: AtomicU64::new(u64::MAX),
        until: watch::Sender::new(u64::MAX),
    });
    let apart = Apart::new()?;
    let (mut subscribers, from) = subscribe_all(&api, args, &account, &span, apart.handle()?).await?;
    if from < LEAST_TIME_SEQ {
        bail!("this server's seq ({from}) is not a time, so there is no lag to measure");
    }

    let before = sample(args.common.server_pid)?;
    let started = Instant::now();
    let writes = write_all(&api, args, Arc::new(accounts.clone())).await?;
    let wrote_for = started.elapsed();
    let until = newest_seq(&api, &account).await?;
    span.until.send_replace(until);
    let (mut tally, mut most, mut counts) = (Tally::default(), 0, Vec::new());
    while let Some(seen) = subscribers.join_next().await {
        let seen: Seen = seen.context("a subscriber's task ended badly")?;
        most = most.max(seen.tally.requests);
        counts.push(seen.tally.requests);
        if seen.last < until && seen.tally.errors == 0 {
            tally.failure("a subscriber ended early");
        }
        tally.merge(seen.tally);
    }
    let elapsed = started.elapsed();
    let usage = Usage::between(before, sample_after(args.common.server_pid));
    sessions.save(&accounts)?;

    let mut extra = Map::new();
    extra.insert(
        "missing_events".into(),
        counts.iter().map(|count| most - count).sum::<u64>().into(),
    );
    extra.insert("writes".into(), writes.requests.into());
    extra.insert("writes_per_second".into(), per_second(writes.requests, wrote_for));
    extra.insert("write_p50_ms".into(), millis(writes.latency.quantile(0.5)));
    extra.insert("write_p99_ms".into(), millis(writes.latency.quantile(0.99)));
    extra.insert("write_errors".into(), writes.errors.into());
    extra.insert("first_write_error".into(), writes.first_error().into());
    Ok(Outcome {
        scenario: "fan-out",
        parameters: json!({ "subscribers": args.subscribers, "writers": args.writers, "rate": args.rate }),
        elapsed,
        tally,
        usage,
        extra,
    })
}

/// Connects all subscribers and waits until each has seen an event, so that none misses what is written from then on.
/// Gives the `seq` after which events count.
async fn subscribe_all(
    api: &Api,
    args: &FanOut,
    account: &Account,
    span: &Arc<Span>,
    apart: &Handle,
) -> Result<(JoinSet<Seen>, u64)> {
    let sockets: Vec<Subscription> = stream::iter(0..args.subscribers)
        .map(|_| {
            let base = api.base().to_owned();
            // Where it is opened is where its socket is watched.
            apart.spawn(async move { Subscription::open(&base, None, FAN_OUT_BUFFER).await })
        })
        .map(async |opened| opened.await.context("a subscriber's task ended badly")?)
        .buffer_unordered(CONNECTING)
        .try_collect()
        .await?;
    let mut subscribers = JoinSet::new();
    let (live, mut first_events) = mpsc::channel(sockets.len().max(1));
    for socket in sockets {
        subscribers.spawn_on(subscriber(socket, span.clone(), live.clone()), apart);
    }
    drop(live);
    let mut waiting = args.subscribers;
    for attempt in 0..MARKERS {
        write_marker(api, account, &format!("live{}-{attempt}", crate::now_micros())).await?;
        let all = async {
            while waiting > 0 && first_events.recv().await.is_some() {
                waiting -= 1;
            }
        };
        if timeout(MARKER_WAIT, all).await.is_ok() {
            break;
        }
    }
    if waiting > 0 {
        bail!("{waiting} subscribers saw nothing of the records that were written");
    }
    let from = newest_seq(api, account).await?;
    span.from.store(from, Ordering::Release);
    Ok((subscribers, from))
}

/// Takes events until the last one that counts.
async fn subscriber(mut stream: Subscription, span: Arc<Span>, live: mpsc::Sender<()>) -> Seen {
    let mut until = span.until.subscribe();
    let mut live = Some(live);
    let (mut tally, mut info, mut last) = (Tally::default(), None, 0);
    loop {
        let end = *until.borrow_and_update();
        if last >= end {
            break;
        }
        let event = tokio::select! {
            event = stream.next_event(&mut info) => event,
            _ = until.changed() => continue,
            // With a known end, silence means that it will not come.
            () = tokio::time::sleep(SILENCE), if end != u64::MAX => Err(anyhow!("nothing for {SILENCE:?}")),
        };
        match event {
            Ok((seq, bytes)) => {
                if let Some(live) = live.take() {
                    // Nobody counts any more once all are live.
                    let _all_live = live.try_send(());
                }
                if seq <= last {
                    tally.failure(format!("event {seq} after event {last}"));
                }
                last = seq;
                if seq > span.from.load(Ordering::Acquire) {
                    let lag = crate::now_micros().saturating_sub(seq);
                    tally.success(Duration::from_micros(lag), bytes);
                }
                give_way();
            }
            Err(error) => {
                tally.failure(format!("{error:#}"));
                break;
            }
        }
    }
    Seen { tally, last }
}

/// After so many events others may run.
const EVENTS_IN_A_ROW: u32 = 8;

thread_local! {
    static TAKEN: Cell<u32> = const { Cell::new(0) };
}

/// Lets the server and the writers have the processor now and then, as if the subscribers were on other machines.
fn give_way() {
    let taken = TAKEN.get().wrapping_add(1);
    TAKEN.set(taken);
    if taken.is_multiple_of(EVENTS_IN_A_ROW) {
        std::thread::yield_now();
    }
}

/// Writes for as long as was asked.
async fn write_all(api: &Api, args: &FanOut, accounts: Arc<Vec<Arc<Account>>>) -> Result<Tally> {
    let until = Instant::now() + Duration::from_secs(args.seconds.into());
    let period = args
        .rate
        .map(|rate| Duration::from_secs_f64(f64::from(args.writers) / f64::from(rate)));
    let counter = Arc::new(AtomicU64::new(0));
    let mut writers = JoinSet::new();
    for _ in 0..args.writers {
        let (api, accounts, counter) = (api.clone(), accounts.clone(), counter.clone());
        writers.spawn(async move {
            let mut tally = Tally::default();
            let mut ticks = period.map(tokio::time::interval);
            if let Some(ticks) = &mut ticks {
                // A server that cannot keep up is not owed what it missed.
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            }
            while Instant::now() < until {
                if let Some(ticks) = &mut ticks {
                    ticks.tick().await;
                }
                let started = Instant::now();
                match write_one(&api, &accounts, counter.fetch_add(1, Ordering::Relaxed)).await {
                    Ok(bytes) => tally.success(started.elapsed(), bytes),
                    Err(error) => {
                        tally.failure(error);
                        tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                    }
                }
            }
            tally
        });
    }
    joined(writers).await
}

async fn write_one(api: &Api, accounts: &[Arc<Account>], n: u64) -> Result<u64, ApiError> {
    let account = turn(accounts, n)?;
    let body = records::create_body(account.did(), n, None);
    let answer = account
        .procedure(api, "com.atproto.repo.createRecord", &body)
        .await?;
    Ok(answer.len() as u64)
}
