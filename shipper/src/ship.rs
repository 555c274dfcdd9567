//! The shipper: follows the log, uploads what is locally durable, and says what is remotely durable.
//!
//! ```text
//! log ─► cut at group and segment boundaries ─► window of uploads ─► acknowledged in order ─► remote watermark
//!                                                     └─► housekeeping: sealed segments, manifests, deletions
//! ```
//! - The first dirty bytes ship at once; while the window is full, the next gather into one chunk.
//! - A chunk has one ordinal and one content for ever. Whatever goes wrong in passing, the same bytes are tried again at
//!   the same ordinal, without end: an outage makes the watermark stand still, and the log's own bounds refuse writes.
//! - `Exists`, or an unknown outcome, is settled by reading what is there. Ours: acknowledged. Anybody else's: fenced;
//!   the remote watermark fails, so that every waiter gets an error, and the shipper stops for good.
//!
//! | crash after | the replica has | the next start |
//! |---|---|---|
//! | some uploads of the window | perhaps chunks behind a hole | claims at the hole; strays are never read |
//! | an upload, before its acknowledgement | a chunk more than anybody was told | finds it in the chain: it counts |

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::clock::Clock;
use engine::log::{Epoch, Log, Lsn, SEGMENT_HEADER_BYTES, SegmentInfo, Watermark};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::checkpoint::{CheckpointError, CheckpointRequest};
use crate::chunk::{self, ChunkDraft, ChunkError, ChunkHeader, ChunkKind, MAX_IN_FLIGHT, RawFrames};
use crate::feed::{Cut, Feed, FeedError};
use crate::fence::{self, Claim, ReplicaError};
use crate::housekeeping::{Housekeeper, Link};
use crate::names::{Generation, Ordinal, WAL_PREFIX};
use crate::plan::{self, ExistsVerdict};
use crate::requests::Requests;
use crate::store::{Created, ObjectName, ReplicaStore, StoreError};

/// How a shipper works.
#[derive(Clone, Debug)]
pub struct ShipConfig {
    /// Uploads at a time, 1 to 16; default 4.
    pub in_flight: usize,
    /// Raw bytes at which a chunk is cut (one group may exceed it); default 8 MiB.
    pub chunk_bytes: usize,
    /// The longest that one request may take; default 10 s.
    pub request_timeout: Duration,
    /// The pause after the first failed try of an upload; doubles up to `retry_max`. Default 100 ms.
    pub retry_first: Duration,
    /// The longest pause between tries; default 5 s.
    pub retry_max: Duration,
    /// The shortest time between two uploads; for `local` durability only: longer costs fewer requests, shorter loses
    /// less. Default none.
    pub min_interval: Option<Duration>,
    /// If more time than this passed since a request was sent, by whichever clock, the machine may have been suspended:
    /// the chain is read again before anything is acknowledged. Default 60 s.
    pub suspended_after: Duration,
    /// Where segments are packed before upload; default the system's temporary directory.
    pub temp_dir: std::path::PathBuf,
    /// How often local segments are looked at; makes no requests. Default 2 s.
    pub housekeeping_interval: Duration,
    /// Chunks that no sealed segment covers at which the log's open segment is sealed early; default 1,000. Bounds what
    /// a restore has to fetch piece by piece.
    pub seal_after_chunks: usize,
    /// Checkpoints that stay in the replica; default 2.
    pub keep_checkpoints: usize,
}

impl Default for ShipConfig {
    fn default() -> ShipConfig {
        ShipConfig {
            in_flight: 4,
            chunk_bytes: 8 << 20,
            request_timeout: Duration::from_secs(10),
            retry_first: Duration::from_millis(100),
            retry_max: Duration::from_secs(5),
            min_interval: None,
            suspended_after: Duration::from_secs(60),
            temp_dir: std::env::temp_dir(),
            housekeeping_interval: Duration::from_secs(2),
            seal_after_chunks: 1_000,
            keep_checkpoints: 2,
        }
    }
}

/// How the shipper is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShipState {
    /// Everything works.
    Shipping,
    /// An upload has failed at least once and is being tried again. Nothing is lost; writes wait.
    Retrying {
        /// Tries so far of the upload that fails.
        tries: u32,
        /// The last failure, for an operator.
        error: String,
    },
    /// Another writer has the chain. Nothing more will be acknowledged; the process must stop or start over.
    Fenced {
        /// Its reign.
        by: Epoch,
    },
    /// Stopped for good for another reason, for an operator.
    Failed {
        /// What happened.
        reason: String,
    },
    /// Stopped as asked.
    Stopped,
}

/// How far the replica is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Lag {
    /// Bytes of frames that are locally durable and not acknowledged.
    pub bytes: u64,
    /// Their number; what is not yet cut into chunks is estimated from its bytes.
    pub entries: u64,
    /// Age of the oldest of them, in seconds.
    pub seconds: f64,
    /// Where it is: the first LSN that is not acknowledged, or the one before it where only that is known.
    pub oldest_unshipped: Option<Lsn>,
}

/// Why [`Shipper::run`] came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShipEnd {
    /// Asked to.
    Stopped,
    /// Everything was shipped and a hand-over written.
    HandedOver,
    /// See [`ShipState::Fenced`].
    Fenced {
        /// The other's reign.
        by: Epoch,
    },
    /// See [`ShipState::Failed`].
    Failed {
        /// What happened.
        reason: String,
    },
}

/// What a [`ShipHandle::drain`] achieved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainReport {
    /// Everything that was locally durable when the drain began is in the replica.
    pub complete: bool,
    /// How far the replica is.
    pub remote: Lsn,
    /// How far the local log was.
    pub local: Lsn,
    /// A hand-over was written: the next writer knows that nothing is missing.
    pub handed_over: bool,
    /// What stood in the way.
    pub error: Option<String>,
}

pub(crate) enum Command {
    HandOver(oneshot::Sender<()>),
}

/// What the shipper and its handles share.
pub(crate) struct Shared {
    pub(crate) config: ShipConfig,
    pub(crate) requests: Requests,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) claim: Claim,
    pub(crate) remote: Watermark,
    pub(crate) log: Log,
    pub(crate) links: Mutex<VecDeque<Link>>,
    status: Mutex<Status>,
    hurry: Notify,
}

struct Status {
    state: ShipState,
    last_error: Option<String>,
    hurry: bool,
    cut_to: Lsn,
    in_flight_bytes: u64,
    in_flight_entries: u64,
    oldest_in_flight: Option<Lsn>,
    cut_end: Option<(Lsn, u64)>,
}

impl Shared {
    pub(crate) fn note_error(&self, error: &dyn std::error::Error) -> String {
        let text = with_sources(error);
        self.status.lock().last_error = Some(text.clone());
        text
    }
}

/// An error and what caused it, on one line.
pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Bytes and (estimated) entries of the segments behind the place up to which chunks were cut.
fn waiting(segments: &[SegmentInfo], cut_to: Lsn, cut_end: Option<(Lsn, u64)>) -> (u64, u64) {
    let (mut bytes, mut entries) = (0, 0);
    for segment in segments.iter().filter(|segment| segment.last > cut_to) {
        let cut = match cut_end {
            Some((base, offset)) if base == segment.base => offset,
            _ => SEGMENT_HEADER_BYTES as u64,
        };
        let frames_bytes = segment.bytes.saturating_sub(SEGMENT_HEADER_BYTES as u64).max(1);
        let left = segment.bytes.saturating_sub(cut);
        bytes += left;
        entries += (segment.frames * left).div_ceil(frames_bytes);
    }
    (bytes, entries)
}

/// A cheap handle on a running shipper.
#[derive(Clone)]
pub struct ShipHandle {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    checkpoints: mpsc::Sender<CheckpointRequest>,
}

impl ShipHandle {
    /// How the shipper is.
    #[must_use]
    pub fn state(&self) -> ShipState {
        self.shared.status.lock().state.clone()
    }

    /// The last failure of any request, even if it was overcome; for an operator.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.shared.status.lock().last_error.clone()
    }

    /// What is remotely durable. Fails when the shipper is fenced or fails.
    #[must_use]
    pub fn remote(&self) -> &Watermark {
        &self.shared.remote
    }

    /// Our reign.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.shared.claim.epoch
    }

    /// How far the replica is behind. Makes no requests; also sets the lag gauges.
    #[must_use]
    pub fn lag(&self) -> Lag {
        let local = self.shared.log.local().get();
        let remote = self.shared.remote.get();
        let segments = if local > remote {
            self.shared.log.segments()
        } else {
            Vec::new()
        };
        let status = self.shared.status.lock();
        let (gathered_bytes, gathered_entries) = waiting(&segments, status.cut_to, status.cut_end);
        let oldest = status
            .oldest_in_flight
            .or_else(|| (local > remote).then_some(remote.max(status.cut_to)));
        let lag = match oldest {
            None => Lag::default(),
            Some(oldest) => {
                let age = self.shared.clock.now_micros().saturating_sub(oldest.get());
                Lag {
                    bytes: status.in_flight_bytes + gathered_bytes,
                    entries: status.in_flight_entries + gathered_entries,
                    // What only the predecessor's age is known of is young: it has not been offered to the window.
                    seconds: if status.oldest_in_flight.is_some() {
                        age as f64 / 1e6
                    } else {
                        0.0
                    },
                    oldest_unshipped: Some(oldest),
                }
            }
        };
        metrics::gauge!("pds_ship_lag_bytes").set(lag.bytes as f64);
        metrics::gauge!("pds_ship_lag_entries").set(lag.entries as f64);
        metrics::gauge!("pds_ship_lag_seconds").set(lag.seconds);
        lag
    }

    /// Waits until everything that is locally durable now is in the replica, at most until `deadline` from now; then,
    /// if asked and complete, ends the reign with a hand-over, after which the shipper stops and nothing more may be
    /// appended. Ignores the minimum interval. A hand-over that is out when the time is up may still be written.
    pub async fn drain(&self, deadline: Duration, hand_over: bool) -> DrainReport {
        let until = tokio::time::Instant::now() + deadline;
        let local = self.shared.log.local().get();
        self.shared.status.lock().hurry = true;
        self.shared.hurry.notify_one();
        let report = |complete, handed_over, error: Option<String>| DrainReport {
            complete,
            remote: self.shared.remote.get(),
            local,
            handed_over,
            error,
        };
        match tokio::time::timeout_at(until, self.shared.remote.wait(local)).await {
            Ok(Ok(_)) => {}
            Ok(Err(failed)) => return report(false, false, Some(failed.to_string())),
            Err(_) => return report(false, false, self.last_error().or(Some("out of time".into()))),
        }
        if !hand_over {
            self.shared.status.lock().hurry = false;
            return report(true, false, None);
        }
        let (done, wait) = oneshot::channel();
        if self.commands.send(Command::HandOver(done)).await.is_err() {
            return report(true, false, Some("the shipper has stopped already".into()));
        }
        match tokio::time::timeout_at(until, wait).await {
            Ok(Ok(())) => report(true, true, None),
            Ok(Err(_)) => report(true, false, Some("the shipper stopped first".into())),
            Err(_) => report(true, false, self.last_error().or(Some("out of time".into()))),
        }
    }

    /// Ships the files of a checkpoint and publishes a manifest that names it. The directory must not change meanwhile.
    ///
    /// # Errors
    /// [`CheckpointError`]; nothing is published then, and a later checkpoint may be tried.
    pub async fn publish_checkpoint(&self, dir: std::path::PathBuf, lsn: Lsn) -> Result<(), CheckpointError> {
        if lsn > self.shared.remote.get() {
            return Err(CheckpointError::NotDurable {
                lsn,
                remote: self.shared.remote.get(),
            });
        }
        let (reply, wait) = oneshot::channel();
        let request = CheckpointRequest { dir, lsn, reply };
        self.checkpoints
            .send(request)
            .await
            .map_err(|_| CheckpointError::Stopped)?;
        wait.await.map_err(|_| CheckpointError::Stopped)?
    }
}

/// The service. Make it with a claim, spawn [`Shipper::run`], keep the handle.
pub struct Shipper {
    shared: Arc<Shared>,
    feed: Feed,
    commands: mpsc::Receiver<Command>,
    checkpoints: mpsc::Receiver<CheckpointRequest>,
    next: Ordinal,
    chain_lsn: Lsn,
}

struct Flight {
    header: ChunkHeader,
    done: bool,
}

enum UploadEnd {
    Done(Ordinal),
    End(ShipEnd),
}

impl Shipper {
    /// A shipper for `log`, which must hold everything that the replica has (`claim.replica.end.last_lsn` is its
    /// position) and be written in the claim's epoch. `remote` is advanced as chunks are acknowledged; it starts at
    /// what the replica has.
    #[must_use]
    pub fn new(
        mut config: ShipConfig,
        store: Arc<dyn ReplicaStore>,
        log: Log,
        remote: Watermark,
        claim: Claim,
        clock: Arc<dyn Clock>,
    ) -> (Shipper, ShipHandle) {
        config.in_flight = config
            .in_flight
            .clamp(1, usize::try_from(MAX_IN_FLIGHT).unwrap_or(1));
        config.chunk_bytes = config.chunk_bytes.clamp(1, chunk::MAX_RAW_BYTES / 2);
        let from = claim.replica.end.last_lsn;
        remote.advance(from);
        let links = claim.replica.chain.iter().map(Link::of).collect();
        let (commands, command_receiver) = mpsc::channel(4);
        let (checkpoints, checkpoint_receiver) = mpsc::channel(1);
        let next = claim.next_ordinal;
        let shared = Arc::new(Shared {
            requests: Requests::new(store, config.request_timeout),
            config,
            clock,
            claim,
            remote,
            log: log.clone(),
            links: Mutex::new(links),
            status: Mutex::new(Status {
                state: ShipState::Shipping,
                last_error: None,
                hurry: false,
                cut_to: from,
                in_flight_bytes: 0,
                in_flight_entries: 0,
                oldest_in_flight: None,
                cut_end: None,
            }),
            hurry: Notify::new(),
        });
        let handle = ShipHandle {
            shared: shared.clone(),
            commands,
            checkpoints,
        };
        let shipper = Shipper {
            shared,
            feed: Feed::new(&log.reader(), from),
            commands: command_receiver,
            checkpoints: checkpoint_receiver,
            next,
            chain_lsn: from,
        };
        (shipper, handle)
    }

    /// Ships until `shutdown`, a hand-over, or the end of all hope. Uploads that are out when `shutdown` comes are
    /// abandoned; use [`ShipHandle::drain`] first. However it ends, the remote watermark is failed, so nobody waits for ever.
    pub async fn run(self, shutdown: CancellationToken) -> ShipEnd {
        let Shipper {
            shared,
            feed,
            commands,
            checkpoints,
            next,
            chain_lsn,
        } = self;
        let mut follower = Follower {
            shared: shared.clone(),
            feed: Some(feed),
            commands,
            next,
            chain_lsn,
            cut_end: None,
        };
        let mut housekeeper = Housekeeper::new(shared.clone(), checkpoints);
        let end = tokio::select! {
            () = shutdown.cancelled() => ShipEnd::Stopped,
            end = Box::pin(follower.run()) => end,
            end = Box::pin(housekeeper.run()) => end,
        };
        let (state, reason) = match &end {
            ShipEnd::Stopped => (ShipState::Stopped, "the shipper was stopped".to_owned()),
            ShipEnd::HandedOver => (ShipState::Stopped, "the reign was handed over".to_owned()),
            ShipEnd::Fenced { by } => {
                let reason = format!(
                    "fenced: another server (epoch {}) has taken over the replica {}; this one (epoch {}) must not \
                     acknowledge anything more",
                    by.0,
                    shared.requests.store().describe(),
                    shared.claim.epoch.0
                );
                tracing::error!("{reason}");
                (ShipState::Fenced { by: *by }, reason)
            }
            ShipEnd::Failed { reason } => {
                tracing::error!("shipping stopped: {reason}");
                (
                    ShipState::Failed {
                        reason: reason.clone(),
                    },
                    reason.clone(),
                )
            }
        };
        shared.status.lock().state = state;
        shared.remote.fail(reason);
        end
    }
}

/// The part of the shipper that follows the log.
struct Follower {
    shared: Arc<Shared>,
    feed: Option<Feed>,
    commands: mpsc::Receiver<Command>,
    next: Ordinal,
    chain_lsn: Lsn,
    cut_end: Option<(Lsn, u64)>,
}

impl Follower {
    async fn run(&mut self) -> ShipEnd {
        let local = self.shared.log.local().clone();
        let mut flights: VecDeque<Flight> = VecDeque::new();
        let mut uploads = FuturesUnordered::new();
        let mut hand_over: Option<oneshot::Sender<()>> = None;
        let mut log_failed = None;
        let mut not_before: Option<tokio::time::Instant> = None;
        loop {
            let seen = local.get();
            let room = flights.len() < self.shared.config.in_flight;
            let dirty = seen > self.chain_lsn;
            let hurry = self.shared.status.lock().hurry;
            let pause = not_before.filter(|at| !hurry && *at > tokio::time::Instant::now());
            if room && dirty && pause.is_none() {
                match self.cut(seen).await {
                    Ok(Some((header, object))) => {
                        not_before = self
                            .shared
                            .config
                            .min_interval
                            .map(|i| tokio::time::Instant::now() + i);
                        flights.push_back(Flight { header, done: false });
                        uploads.push(upload(self.shared.clone(), header, object));
                        self.publish_status(&flights);
                        continue;
                    }
                    Ok(None) => {}
                    Err(reason) => return ShipEnd::Failed { reason },
                }
            }
            if flights.is_empty() && !dirty {
                if let Some(reason) = log_failed {
                    return ShipEnd::Failed { reason };
                }
                if let Some(done) = hand_over.take() {
                    return match self.hand_over().await {
                        UploadEnd::Done(_) => {
                            // Whoever asked may have gone; the hand-over stands all the same.
                            let _ = done.send(());
                            ShipEnd::HandedOver
                        }
                        UploadEnd::End(end) => end,
                    };
                }
            }
            self.publish_status(&flights);
            tokio::select! {
                Some(end) = uploads.next(), if !uploads.is_empty() => match end {
                    UploadEnd::Done(ordinal) => self.acknowledge(&mut flights, ordinal),
                    UploadEnd::End(end) => return end,
                },
                moved = local.changed_since(seen),
                    if log_failed.is_none() && !(dirty && room && pause.is_none()) => {
                    if let Err(failed) = moved {
                        log_failed = Some(format!("the log has failed: {failed}"));
                    }
                }
                Some(command) = self.commands.recv(), if hand_over.is_none() => {
                    let Command::HandOver(done) = command;
                    hand_over = Some(done);
                }
                () = self.shared.hurry.notified() => {}
                () = tokio::time::sleep_until(pause.unwrap_or_else(tokio::time::Instant::now)),
                    if room && dirty && pause.is_some() => {}
                else => return ShipEnd::Stopped,
            }
        }
    }

    /// Cuts the next chunk from what is locally durable. `None` if there is no whole group yet.
    async fn cut(&mut self, limit: Lsn) -> Result<Option<(ChunkHeader, Bytes)>, String> {
        let Some(mut feed) = self.feed.take() else {
            return Err("the feed is lost".into());
        };
        let draft = ChunkDraft {
            log_id: self.shared.claim.log_id,
            writer_id: self.shared.claim.writer_id,
            epoch: self.shared.claim.epoch,
            ordinal: self.next,
            prev_lsn: self.chain_lsn,
            lsn_floor: self.shared.claim.lsn_floor,
            created_at_micros: self.shared.clock.now_micros(),
        };
        let cap = self.shared.config.chunk_bytes;
        // Reading, compressing and hashing are work for a thread that may block.
        let work = tokio::task::spawn_blocking(move || {
            let cut = feed.cut(limit, cap);
            let built = cut.and_then(|cut| {
                cut.map(|cut| build(&draft, &cut).map(|built| (built, cut.end)))
                    .transpose()
            });
            (feed, built)
        });
        let (feed, built) = work.await.map_err(|error| format!("cutting a chunk: {error}"))?;
        self.feed = Some(feed);
        let built = built.map_err(|error| with_sources(&error))?;
        Ok(built.map(|(built, end)| {
            self.next = built.0.next_ordinal;
            self.chain_lsn = built.0.last_lsn;
            self.cut_end = Some(end);
            built
        }))
    }

    fn acknowledge(&self, flights: &mut VecDeque<Flight>, ordinal: Ordinal) {
        for flight in flights
            .iter_mut()
            .filter(|flight| flight.header.ordinal == ordinal)
        {
            flight.done = true;
        }
        let mut reached = None;
        while let Some(flight) = flights.pop_front() {
            if !flight.done {
                flights.push_front(flight);
                break;
            }
            self.shared.links.lock().push_back(Link::of(&flight.header));
            reached = Some(flight.header.last_lsn);
        }
        if let Some(lsn) = reached {
            self.publish_status(flights);
            self.shared.status.lock().state = ShipState::Shipping;
            self.shared.remote.advance(lsn);
        }
    }

    fn publish_status(&self, flights: &VecDeque<Flight>) {
        let mut status = self.shared.status.lock();
        status.cut_to = self.chain_lsn;
        status.in_flight_bytes = flights.iter().map(|f| u64::from(f.header.raw_len)).sum();
        status.in_flight_entries = flights.iter().map(|f| u64::from(f.header.frame_count)).sum();
        status.oldest_in_flight = flights.front().map(|f| f.header.first_lsn);
        status.cut_end = self.cut_end;
    }

    async fn hand_over(&self) -> UploadEnd {
        let draft = ChunkDraft {
            log_id: self.shared.claim.log_id,
            writer_id: self.shared.claim.writer_id,
            epoch: self.shared.claim.epoch,
            ordinal: self.next,
            prev_lsn: self.chain_lsn,
            lsn_floor: self.shared.claim.lsn_floor,
            created_at_micros: self.shared.clock.now_micros(),
        };
        match chunk::encode_mark(ChunkKind::HandOver, &draft) {
            Ok((header, object)) => upload(self.shared.clone(), header, object).await,
            Err(error) => UploadEnd::End(ShipEnd::Failed {
                reason: error.to_string(),
            }),
        }
    }
}

fn build(draft: &ChunkDraft, cut: &Cut) -> Result<(ChunkHeader, Bytes), FeedError> {
    if cut.prev != draft.prev_lsn {
        return Err(FeedError::Gap {
            expected: draft.prev_lsn,
            found: cut.prev,
        });
    }
    let frames = RawFrames {
        first: cut.first,
        last: cut.last,
        count: cut.count,
        bytes: &cut.bytes,
    };
    chunk::encode_data(draft, frames).map_err(FeedError::Chunk)
}

/// Uploads one chunk, however long it takes.
async fn upload(shared: Arc<Shared>, header: ChunkHeader, object: Bytes) -> UploadEnd {
    let name = match ObjectName::new(header.ordinal.object_name()) {
        Ok(name) => name,
        Err(error) => {
            return UploadEnd::End(ShipEnd::Failed {
                reason: error.to_string(),
            });
        }
    };
    let begun = Instant::now();
    let mut tries = 0u32;
    let mut delay = shared.config.retry_first;
    loop {
        let sent = Sent::now(&*shared.clock);
        tries = tries.saturating_add(1);
        let outcome = attempt(&shared, &header, &name, object.clone()).await;
        let outcome = match outcome {
            Ok(Settled::Ours) if sent.is_older_than(shared.config.suspended_after, &*shared.clock) => {
                still_ours(&shared, &header).await
            }
            other => other,
        };
        let error = match outcome {
            Ok(Settled::Ours) => {
                metrics::histogram!("pds_ship_upload_seconds").record(begun.elapsed().as_secs_f64());
                metrics::counter!("pds_ship_bytes_total").increment(object.len() as u64);
                return UploadEnd::Done(header.ordinal);
            }
            Ok(Settled::Fenced { by }) => return UploadEnd::End(ShipEnd::Fenced { by }),
            Ok(Settled::Unreadable(error)) => {
                let reason =
                    format!("object {name} of the replica, where our chunk belongs, cannot be read: {error}");
                return UploadEnd::End(ShipEnd::Failed { reason });
            }
            Ok(Settled::Gone) => continue_after("the object that was in the way is gone"),
            Err(error) => error,
        };
        let text = shared.note_error(&error);
        let futile = matches!(
            &error,
            StoreError::Denied { .. } | StoreError::Precondition { .. } | StoreError::Invalid { .. }
        );
        if tries == 1 || futile {
            tracing::warn!(object = %name, tries, "upload failed and is tried again: {text}");
        }
        shared.status.lock().state = ShipState::Retrying { tries, error: text };
        let asked = match &error {
            StoreError::Throttled { retry_after, .. } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        // However long a store asks us to stay away: look again now and then, somebody may have mended it.
        tokio::time::sleep(delay.max(asked).min(Duration::from_secs(60))).await;
        delay = (delay * 2).min(shared.config.retry_max);
    }
}

fn continue_after(what: &str) -> StoreError {
    StoreError::Other {
        detail: what.to_owned(),
        sent: false,
    }
}

enum Settled {
    Ours,
    Fenced {
        by: Epoch,
    },
    Unreadable(ChunkError),
    /// Something was there, and then was not.
    Gone,
}

/// One try, settled if it was answered.
async fn attempt(
    shared: &Shared,
    header: &ChunkHeader,
    name: &ObjectName,
    object: Bytes,
) -> Result<Settled, StoreError> {
    let outcome = shared
        .requests
        .once(shared.requests.store().create(name, object))
        .await;
    let result = match &outcome {
        Ok(Created::Created) => "created",
        Ok(Created::Exists) => "exists",
        Err(StoreError::Timeout { .. }) => "timeout",
        Err(StoreError::Denied { .. }) => "denied",
        Err(StoreError::NotFound { .. }) => "not_found",
        Err(StoreError::Throttled { .. }) => "throttled",
        Err(StoreError::Unavailable { .. }) => "unavailable",
        Err(StoreError::Precondition { .. }) => "precondition",
        Err(_) => "other",
    };
    metrics::counter!("pds_ship_requests_total", "result" => result).increment(1);
    match outcome? {
        Created::Created => Ok(Settled::Ours),
        Created::Exists => compare(shared, header).await,
    }
}

async fn compare(shared: &Shared, header: &ChunkHeader) -> Result<Settled, StoreError> {
    Ok(
        match fence::read_header(&shared.requests, header.ordinal).await? {
            None => Settled::Gone,
            Some(there) => match plan::on_chunk_exists(header, there) {
                ExistsVerdict::Ours => Settled::Ours,
                ExistsVerdict::Fenced { by } => Settled::Fenced { by },
                ExistsVerdict::Unreadable(error) => Settled::Unreadable(error),
            },
        },
    )
}

/// After a gap in time: is the chain still ours? Looks for our own object, for a later reign's manifest, and for another
/// writer's object behind ours.
async fn still_ours(shared: &Shared, header: &ChunkHeader) -> Result<Settled, StoreError> {
    tracing::warn!(ordinal = %header.ordinal, "much time has passed since an upload began; reading the chain again");
    let as_store_error = |error: ReplicaError| match error {
        ReplicaError::Store(error) => error,
        other => StoreError::Other {
            detail: with_sources(&other),
            sent: false,
        },
    };
    let newest = fence::newest_manifest(&shared.requests, shared.claim.log_id)
        .await
        .map_err(as_store_error)?;
    if newest.generation() > Generation::NONE && newest.epoch() > shared.claim.epoch {
        return Ok(Settled::Fenced { by: newest.epoch() });
    }
    let after = header.ordinal.object_name();
    let window = usize::try_from(2 * MAX_IN_FLIGHT).unwrap_or(32);
    for object in shared.requests.list(WAL_PREFIX, Some(&after), window).await? {
        let Some(ordinal) = Ordinal::from_object_name(object.name.as_str()) else {
            continue;
        };
        match fence::read_header(&shared.requests, ordinal).await? {
            Some(Ok(there)) if there.epoch > shared.claim.epoch => {
                return Ok(Settled::Fenced { by: there.epoch });
            }
            _ => {}
        }
    }
    compare(shared, header).await
}

/// When a request was sent, by both clocks: the monotonic one stands still while the machine is suspended, the wall
/// clock may jump.
struct Sent {
    monotonic: Instant,
    wall_micros: u64,
}

impl Sent {
    fn now(clock: &dyn Clock) -> Sent {
        Sent {
            monotonic: Instant::now(),
            wall_micros: clock.now_micros(),
        }
    }

    fn is_older_than(&self, bound: Duration, clock: &dyn Clock) -> bool {
        let wall = Duration::from_micros(clock.now_micros().saturating_sub(self.wall_micros));
        self.monotonic.elapsed() > bound || wall > bound
    }
}
