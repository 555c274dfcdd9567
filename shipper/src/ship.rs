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
use std::time::Duration;

use bytes::Bytes;
use engine::clock::Clock;
use engine::log::{Epoch, Log, Lsn, Watermark};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub use crate::handle::{DrainReport, Erased, Lag, Named, ShipHandle, ShipState};

use crate::ageing::Ageing;
use crate::checkpoint::CheckpointRequest;
use crate::chunk::{self, ChunkDraft, ChunkHeader, ChunkKind, MAX_IN_FLIGHT, RawFrames};
use crate::feed::{Cut, Feed, FeedError};
use crate::fence::Claim;
use crate::handle::{Command, Shared, with_sources};
use crate::housekeeping::{Housekeeper, Link};
use crate::names::Ordinal;
use crate::pace::{Pace, RequestBudget};
use crate::retention::Protect;
use crate::store::ReplicaStore;
use crate::upload::{UploadEnd, upload};

/// How often it is looked whether uploads that are held back have gathered a chunk's worth.
const MEASURE_EVERY: Duration = Duration::from_millis(50);

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
    /// The time between two uploads on average, where many are wanted: what became durable meanwhile goes into one. For
    /// `local` durability only, where nobody but the firehose waits: longer costs fewer requests, shorter loses less. A pause
    /// before is saved up, to a tenth of a second, so that a few writes after it leave at once. Default none.
    pub min_interval: Option<Duration>,
    /// What a month's requests may be, which moves uploads apart; default none. Neither this nor the interval holds back what
    /// fills a chunk.
    pub budget: Option<Arc<RequestBudget>>,
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
    /// How far back the log can be restored to any moment: so long stays what a compaction displaces. Default none.
    pub pitr_window: Duration,
    /// What others still read of the replica; default nothing.
    pub protect: Protect,
    /// When old segments go to a cheaper tier of the store; default never.
    pub ageing: Ageing,
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
            budget: None,
            suspended_after: Duration::from_secs(60),
            temp_dir: std::env::temp_dir(),
            housekeeping_interval: Duration::from_secs(2),
            seal_after_chunks: 1_000,
            keep_checkpoints: 2,
            pitr_window: Duration::ZERO,
            protect: Protect::default(),
            ageing: Ageing::default(),
        }
    }
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
        let links: Vec<Link> = claim.replica.chain.iter().map(Link::of).collect();
        let (commands, command_receiver) = mpsc::channel(4);
        let (checkpoints, checkpoint_receiver) = mpsc::channel(1);
        let next = claim.next_ordinal;
        let shared = Arc::new(Shared::new(config, store, log.clone(), remote, claim, clock));
        shared.links.lock().extend(links);
        let handle = ShipHandle::new(shared.clone(), commands, checkpoints);
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
        let config = self.shared.config.clone();
        let mut pace = Pace::new(config.min_interval, config.budget.clone());
        let mut measured = tokio::time::Instant::now();
        let mut plenty = false;
        loop {
            let seen = local.get();
            let room = flights.len() < self.shared.config.in_flight;
            let dirty = seen > self.chain_lsn;
            let hurry = self.note_waiting(dirty);
            let now = tokio::time::Instant::now();
            let mut pause = pace.pause(now).filter(|_| !hurry);
            if pause.is_some() && now >= measured + MEASURE_EVERY {
                // A chunk's worth does not get cheaper by waiting.
                (measured, plenty) = (now, self.shared.uncut_bytes() >= config.chunk_bytes as u64);
            }
            pause = pause
                .filter(|_| !plenty)
                .map(|until| until.min(measured + MEASURE_EVERY));
            if room && dirty && pause.is_none() {
                match self.cut(seen).await {
                    Ok(Some((header, object))) => {
                        pace.cut(tokio::time::Instant::now());
                        plenty = false;
                        self.shared.status.lock().waiting_since = None;
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

    /// Notes since when something waits to be cut. Whether all of it is to go at once.
    fn note_waiting(&self, dirty: bool) -> bool {
        let mut status = self.shared.status.lock();
        match (dirty, status.waiting_since) {
            (false, _) => status.waiting_since = None,
            (true, None) => status.waiting_since = Some(self.shared.clock.now_micros()),
            (true, Some(_)) => {}
        }
        status.hurry
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
