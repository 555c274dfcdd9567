//! What can be asked of a running shipper, and what it shares with those who ask.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use engine::clock::Clock;
use engine::log::{Epoch, Log, Lsn, SEGMENT_HEADER_BYTES, SegmentInfo, Watermark};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::ageing::{Cooled, Placed};
use crate::checkpoint::{CheckpointError, CheckpointRequest};
use crate::cost::stored_bytes;
use crate::fence::Claim;
use crate::housekeeping::Link;
use crate::manifest::Manifest;
use crate::requests::Requests;
use crate::ship::ShipConfig;
use crate::store::ReplicaStore;

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
    pub(crate) status: Mutex<Status>,
    /// What was moved to cheaper tiers.
    pub(crate) placed: Mutex<Placed>,
    pub(crate) hurry: Notify,
    /// The last LSN in the segments of the newest manifest.
    pub(crate) covered: AtomicU64,
    /// What was being written to the replica before is of no use: this reign began after it.
    pub(crate) begun: SystemTime,
    /// What is known to be gone.
    pub(crate) erased: Mutex<Erased>,
    /// The newest manifest.
    pub(crate) manifest: Mutex<Arc<Manifest>>,
}

/// What the newest manifest of the replica names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// The newest checkpoint.
    pub checkpoint: Option<Lsn>,
    /// Segments.
    pub segments: usize,
    /// Bytes of segments and checkpoints.
    pub bytes: u64,
    /// What of that is in cheaper tiers of the store, as far as this process knows.
    pub cooled: Cooled,
}

impl Named {
    fn by(manifest: &Manifest, placed: &Placed) -> Named {
        let newest = manifest.checkpoints.first();
        Named {
            checkpoint: newest.map(|newest| Lsn::saturating(newest.lsn)),
            segments: manifest.segments.len(),
            bytes: stored_bytes(manifest),
            cooled: placed.cooled(manifest),
        }
    }
}

/// What of before is known to be gone from the replica, because a look at all of its objects found nothing that its
/// newest manifest does not name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// No object has anything of a repo that was removed at or before this LSN, checkpoints apart.
    pub through: Lsn,
    /// The oldest checkpoint that is there or on its way; `None` if there is none.
    pub oldest_checkpoint: Option<Lsn>,
    /// As `through`, of the segments that are live; others are kept for points in time.
    pub live_through: Lsn,
    /// As `oldest_checkpoint`, of the checkpoints that are live.
    pub live_checkpoint: Option<Lsn>,
}

impl Erased {
    /// Whether nothing is left of what was removed by the entry `removal`, given that checkpoints after `views` have nothing of it.
    #[must_use]
    pub fn is_without(&self, removal: Lsn, views: Lsn) -> bool {
        self.through >= removal && self.oldest_checkpoint.is_none_or(|oldest| oldest > views)
    }

    /// Whether a checkpoint of after `views` is missing for that: live segments have nothing of the removal any more, and the
    /// live checkpoints have, or there are none and nothing proves that what is displaced may go.
    #[must_use]
    pub fn wants_checkpoint(&self, removal: Lsn, views: Lsn) -> bool {
        self.live_through >= removal
            && !self.is_without(removal, views)
            && self.live_checkpoint.is_none_or(|oldest| oldest <= views)
    }
}

/// What the follower tells.
pub(crate) struct Status {
    pub(crate) state: ShipState,
    pub(crate) last_error: Option<String>,
    /// What housekeeping cannot do just now.
    pub(crate) trouble: Option<String>,
    pub(crate) hurry: bool,
    /// Since when, in microseconds since 1970, there is something that is in no chunk.
    pub(crate) waiting_since: Option<u64>,
    pub(crate) cut_to: Lsn,
    pub(crate) in_flight_bytes: u64,
    pub(crate) in_flight_entries: u64,
    pub(crate) oldest_in_flight: Option<Lsn>,
    pub(crate) cut_end: Option<(Lsn, u64)>,
}

impl Shared {
    pub(crate) fn new(
        config: ShipConfig,
        store: Arc<dyn ReplicaStore>,
        log: Log,
        remote: Watermark,
        claim: Claim,
        clock: Arc<dyn Clock>,
    ) -> Shared {
        let status = Status {
            state: ShipState::Shipping,
            last_error: None,
            trouble: None,
            hurry: false,
            waiting_since: None,
            cut_to: claim.replica.end.last_lsn,
            in_flight_bytes: 0,
            in_flight_entries: 0,
            oldest_in_flight: None,
            cut_end: None,
        };
        Shared {
            covered: AtomicU64::new(claim.replica.manifest.covered_lsn().get()),
            erased: Mutex::default(),
            manifest: Mutex::new(Arc::new(claim.replica.manifest.clone())),
            begun: SystemTime::UNIX_EPOCH + Duration::from_micros(clock.now_micros()),
            requests: Requests::new(store, config.request_timeout),
            config,
            clock,
            claim,
            remote,
            log,
            links: Mutex::new(VecDeque::new()),
            status: Mutex::new(status),
            placed: Mutex::default(),
            hurry: Notify::new(),
        }
    }

    /// Bytes that are locally durable and in no chunk yet.
    pub(crate) fn uncut_bytes(&self) -> u64 {
        let segments = self.log.segments();
        let status = self.status.lock();
        waiting(&segments, status.cut_to, status.cut_end).0
    }

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
    pub(crate) fn new(
        shared: Arc<Shared>,
        commands: mpsc::Sender<Command>,
        checkpoints: mpsc::Sender<CheckpointRequest>,
    ) -> ShipHandle {
        ShipHandle {
            shared,
            commands,
            checkpoints,
        }
    }

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

    /// What stands in the way of segments, checkpoints and deletions just now. Chunks, and so durability, may go on.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.shared.status.lock().trouble.clone()
    }

    /// What the replica has besides chunks.
    #[must_use]
    pub fn named(&self) -> Named {
        Named::by(&self.manifest(), &self.shared.placed.lock())
    }

    /// The newest manifest that is known here. Makes no requests.
    #[must_use]
    pub fn manifest(&self) -> Arc<Manifest> {
        self.shared.manifest.lock().clone()
    }

    /// What is remotely durable. Fails when the shipper is fenced or fails.
    #[must_use]
    pub fn remote(&self) -> &Watermark {
        &self.shared.remote
    }

    /// How far the replica has the log in whole segments that a manifest names. Compaction may go that far.
    #[must_use]
    pub fn covered(&self) -> Lsn {
        Lsn::saturating(self.shared.covered.load(Ordering::Acquire))
    }

    /// What is known to be gone from the replica. It may be more.
    #[must_use]
    pub fn erased(&self) -> Erased {
        *self.shared.erased.lock()
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
                // Of what is in no chunk only the predecessor's age is known, and when it was seen.
                let since = match status.oldest_in_flight {
                    Some(oldest) => Some(oldest.get()),
                    None => status.waiting_since,
                };
                let now = self.shared.clock.now_micros();
                let age = since.map_or(0, |since| now.saturating_sub(since));
                Lag {
                    bytes: status.in_flight_bytes + gathered_bytes,
                    entries: status.in_flight_entries + gathered_entries,
                    seconds: age as f64 / 1e6,
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
        self.publish(dir, lsn, false).await
    }

    /// As [`ShipHandle::publish_checkpoint`], and no older one stays: they may hold what was deleted since.
    ///
    /// # Errors
    /// [`CheckpointError`]; nothing is published then.
    pub async fn replace_checkpoints(
        &self,
        dir: std::path::PathBuf,
        lsn: Lsn,
    ) -> Result<(), CheckpointError> {
        self.publish(dir, lsn, true).await
    }

    async fn publish(&self, dir: std::path::PathBuf, lsn: Lsn, alone: bool) -> Result<(), CheckpointError> {
        if lsn > self.shared.remote.get() {
            return Err(CheckpointError::NotDurable {
                lsn,
                remote: self.shared.remote.get(),
            });
        }
        let (reply, wait) = oneshot::channel();
        let request = CheckpointRequest {
            dir,
            lsn,
            alone,
            reply,
        };
        self.checkpoints
            .send(request)
            .await
            .map_err(|_| CheckpointError::Stopped)?;
        wait.await.map_err(|_| CheckpointError::Stopped)?
    }
}
