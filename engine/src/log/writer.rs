//! The writer's thread: group commit.
//!
//! It takes everything that is queued (up to 8 MiB), writes it at once, syncs once, and moves the watermarks; what is
//! queued meanwhile is the next batch. There is no timer; it only lets others run once before it looks. While nothing is queued it writes zeros ahead of the last frame, in
//! small steps, and gives back the pages of segments that were read. When a write or sync fails, when the thread panics, or when
//! somebody poisons the log, every waiter is told at once and nothing is accepted any more.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::append::{GroupLsns, LogCore};
use super::draft::Draft;
use super::follow::{FeedError, PromoteError};
use super::lsn::{Epoch, Lsn};
use super::reader::LogReader;
use super::segment::SegmentInfo;
use super::watermark::{Failed, Watermark};
use super::{AppendError, CLOCK_TOLERANCE_MICROS, Outcome};
use crate::storage::StorageLock;

/// A batch takes no further group once it has this many bytes.
const BATCH_BYTES: usize = 8 << 20;

/// How often pages of mapped segments are given back. It costs a millisecond where all that may be resident was read.
const RELEASE_EVERY: Duration = Duration::from_secs(3);

/// What the handles and the thread share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) queue: Queue,
    pub(super) reader: LogReader,
    pub(super) local: Watermark,
    /// Whether the frames are another writer's, and nobody may append.
    pub(super) following: AtomicBool,
    /// Let go when the last handle and the thread are gone.
    pub(super) _lock: Box<dyn StorageLock>,
}

impl Shared {
    /// Stops the log for good: everybody who waits fails with this reason.
    pub(super) fn poison(&self, failed: &Failed) {
        self.queue.poison(failed);
        self.reader.appended.fail(Arc::clone(&failed.reason));
        self.local.fail(Arc::clone(&failed.reason));
    }
}

/// Who is told what became of a group. Always told once: dropping it says that the log is closed.
pub(super) struct Reply(Option<Box<dyn FnOnce(Outcome<GroupLsns>) + Send>>);

impl Reply {
    pub(super) fn new(tell: impl FnOnce(Outcome<GroupLsns>) + Send + 'static) -> Reply {
        Reply(Some(Box::new(tell)))
    }

    fn send(mut self, outcome: Outcome<GroupLsns>) {
        if let Some(tell) = self.0.take() {
            tell(outcome);
        }
    }

    /// Forgets whom to tell: the group was refused, and its caller knows.
    fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(tell) = self.0.take() {
            tell(Err(AppendError::Closed));
        }
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reply")
    }
}

/// What the thread is asked to do.
#[derive(Debug)]
enum Request {
    Append {
        group: Vec<Draft>,
        bytes: usize,
        reply: Reply,
    },
    Seal {
        reply: oneshot::Sender<Outcome<Option<SegmentInfo>>>,
    },
    /// Frames of the writer that is followed.
    Feed {
        raw: Bytes,
        reply: oneshot::Sender<Result<Lsn, FeedError>>,
    },
    Promote {
        epoch: Epoch,
        floor: Lsn,
        reply: oneshot::Sender<Result<(), PromoteError>>,
    },
}

/// Requests on their way to the thread, bounded.
#[derive(Debug)]
pub(super) struct Queue {
    max_bytes: usize,
    max_count: usize,
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    requests: VecDeque<Request>,
    bytes: usize,
    /// Why nothing more is accepted, if so.
    closed: Option<AppendError>,
}

impl Queue {
    pub(super) fn new(max_bytes: usize, max_count: usize) -> Queue {
        Queue {
            max_bytes,
            max_count: max_count.max(1),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// On an error `reply` is told nothing.
    pub(super) fn append(&self, group: Vec<Draft>, bytes: usize, reply: Reply) -> Result<(), AppendError> {
        self.push(Request::Append { group, bytes, reply }, bytes)
    }

    pub(super) fn seal(&self) -> Result<oneshot::Receiver<Outcome<Option<SegmentInfo>>>, AppendError> {
        let (reply, receiver) = oneshot::channel();
        self.push(Request::Seal { reply }, 0)?;
        Ok(receiver)
    }

    pub(super) fn feed(&self, raw: Bytes) -> Result<oneshot::Receiver<Result<Lsn, FeedError>>, AppendError> {
        let (reply, receiver) = oneshot::channel();
        let bytes = raw.len();
        self.push(Request::Feed { raw, reply }, bytes)?;
        Ok(receiver)
    }

    pub(super) fn promote(
        &self,
        epoch: Epoch,
        floor: Lsn,
    ) -> Result<oneshot::Receiver<Result<(), PromoteError>>, AppendError> {
        let (reply, receiver) = oneshot::channel();
        self.push(Request::Promote { epoch, floor, reply }, 0)?;
        Ok(receiver)
    }

    fn push(&self, request: Request, bytes: usize) -> Result<(), AppendError> {
        let mut state = self.state.lock();
        if let Some(closed) = state.closed.clone() {
            drop(state);
            request.forget();
            return Err(closed);
        }
        // An empty queue takes whatever is within the bound of a group, so that no configuration locks it out.
        let full =
            state.requests.len() >= self.max_count || state.bytes.saturating_add(bytes) > self.max_bytes;
        if full && !state.requests.is_empty() {
            drop(state);
            request.forget();
            return Err(AppendError::Busy);
        }
        state.bytes += bytes;
        state.requests.push_back(request);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// Accepts nothing more; what is queued is still done.
    pub(super) fn close(&self) {
        self.state.lock().closed.get_or_insert(AppendError::Closed);
        self.changed.notify_all();
    }

    fn poison(&self, failed: &Failed) {
        let error = AppendError::Poisoned {
            reason: Arc::clone(&failed.reason),
        };
        let dropped = {
            let mut state = self.state.lock();
            state.closed = Some(error.clone());
            state.bytes = 0;
            std::mem::take(&mut state.requests)
        };
        self.changed.notify_all();
        for request in dropped {
            request.refuse(&error);
        }
    }

    /// Why nothing is accepted, if a failure is the reason.
    pub(super) fn poisoned(&self) -> Option<AppendError> {
        self.state
            .lock()
            .closed
            .clone()
            .filter(|error| *error != AppendError::Closed)
    }

    /// Nothing is asked for at this moment, and something may still be.
    fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.requests.is_empty() && state.closed.is_none()
    }

    /// Waits for requests and takes as many as make a batch: none at `until`. `None` when it is closed and empty.
    fn next(&self, until: Instant) -> Option<Vec<Request>> {
        let mut state = self.state.lock();
        while state.requests.is_empty() {
            if state.closed.is_some() {
                return None;
            }
            if self.changed.wait_until(&mut state, until).timed_out() && state.requests.is_empty() {
                return Some(Vec::new()).filter(|_| state.closed.is_none());
            }
        }
        // Where the processors are busy, those who are about to ask run first, and their groups are in this batch, which saves
        // syncs. Where they are not, it costs nothing.
        MutexGuard::unlocked(&mut state, std::thread::yield_now);
        let mut taken = Vec::new();
        let mut size = 0;
        while let Some(request) = state.requests.front() {
            let bytes = request.bytes();
            if !taken.is_empty() && size + bytes > BATCH_BYTES {
                break;
            }
            size += bytes;
            state.bytes = state.bytes.saturating_sub(bytes);
            taken.extend(state.requests.pop_front());
        }
        Some(taken)
    }
}

impl Request {
    fn bytes(&self) -> usize {
        match self {
            Request::Append { bytes, .. } => *bytes,
            Request::Feed { raw, .. } => raw.len(),
            Request::Seal { .. } | Request::Promote { .. } => 0,
        }
    }

    /// It was not taken; whoever asked hears of it from the call.
    fn forget(self) {
        if let Request::Append { reply, .. } = self {
            reply.forget();
        }
    }

    /// Whoever has stopped waiting is not told.
    fn refuse(self, error: &AppendError) {
        match self {
            Request::Append { reply, .. } => reply.send(Err(error.clone())),
            Request::Seal { reply } => drop(reply.send(Err(error.clone()))),
            Request::Feed { reply, .. } => drop(reply.send(Err(FeedError::Failed {
                reason: error.to_string().into(),
            }))),
            Request::Promote { reply, .. } => drop(reply.send(Err(PromoteError::Failed {
                reason: error.to_string().into(),
            }))),
        }
    }
}

/// Poisons the log unless the thread ended as it should.
struct OnPanic<'a>(&'a Shared, bool);

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        if !self.1 {
            self.0.poison(&Failed {
                reason: "the log's writer panicked; see the log output".into(),
            });
        }
    }
}

/// What the thread does until the log is closed or poisoned.
pub(super) fn run(shared: &Shared, mut core: LogCore) {
    let mut guard = OnPanic(shared, false);
    let mut release_at = Instant::now() + RELEASE_EVERY;
    while let Some(requests) = shared.queue.next(release_at) {
        if Instant::now() >= release_at && (requests.is_empty() || shared.queue.is_idle()) {
            shared.reader.set.residence.release();
            release_at = Instant::now() + RELEASE_EVERY;
        }
        if requests.is_empty() {
            continue;
        }
        if let Err(failed) = batch(shared, &mut core, requests).and_then(|()| ahead(shared, &mut core)) {
            shared.poison(&failed);
            tracing::error!(reason = %failed.reason, "the log is closed to writes");
        }
    }
    // Who poisons closes the queue before the watermarks, so this thread may be the first that fails those.
    let reason: Arc<str> = match shared.queue.poisoned() {
        Some(error) => error.to_string().into(),
        None => "the log is closed".into(),
    };
    shared.reader.appended.fail(Arc::clone(&reason));
    shared.local.fail(reason);
    guard.1 = true;
}

/// One turn. On failure every request of it has been answered.
fn batch(shared: &Shared, core: &mut LogCore, requests: Vec<Request>) -> Result<(), Failed> {
    let mut appended = Vec::with_capacity(requests.len());
    let mut fed = Vec::new();
    let mut failure = None;
    for request in requests {
        if let Some(failed) = &failure {
            request.refuse(&poisoned(failed));
            continue;
        }
        failure = match request {
            Request::Append { reply, .. } if shared.following.load(Ordering::Acquire) => {
                reply.send(Err(AppendError::Following));
                None
            }
            Request::Feed { raw, reply } => match feed(shared, core, &raw) {
                Ok(Ok(lsn)) => {
                    fed.push((reply, lsn));
                    None
                }
                Ok(Err(error)) => {
                    let _ = reply.send(Err(error));
                    None
                }
                Err(failed) => {
                    shared.poison(&failed);
                    let _ = reply.send(Err(FeedError::Failed {
                        reason: Arc::clone(&failed.reason),
                    }));
                    Some(failed)
                }
            },
            Request::Promote { epoch, floor, reply } => match promote(shared, core, epoch, floor) {
                Ok(outcome) => {
                    publish(shared, core, &mut appended);
                    shared.local.advance(core.last());
                    let _ = reply.send(outcome);
                    None
                }
                Err(failed) => {
                    shared.poison(&failed);
                    let _ = reply.send(Err(PromoteError::Failed {
                        reason: Arc::clone(&failed.reason),
                    }));
                    Some(failed)
                }
            },
            Request::Append { group, reply, .. } => match core.append(group) {
                Ok(lsns) => {
                    appended.push((reply, lsns));
                    None
                }
                Err(failed) => {
                    shared.poison(&failed);
                    reply.send(Err(poisoned(&failed)));
                    Some(failed)
                }
            },
            Request::Seal { reply } => match core.seal() {
                Ok(info) => {
                    publish(shared, core, &mut appended);
                    shared.local.advance(core.last());
                    let _ = reply.send(Ok(info));
                    None
                }
                Err(failed) => {
                    shared.poison(&failed);
                    let _ = reply.send(Err(poisoned(&failed)));
                    Some(failed)
                }
            },
        };
    }
    let written = failure.map_or_else(|| core.write(), Err);
    if let Err(failed) = written {
        // First nothing more is accepted, then those who waited hear of it.
        shared.poison(&failed);
        for (reply, _) in appended {
            reply.send(Err(poisoned(&failed)));
        }
        return Err(failed);
    }
    publish(shared, core, &mut appended);
    // Who fed frames hears of a failure by its reply going away.
    shared.local.advance(core.sync()?);
    for (reply, lsn) in fed {
        let _ = reply.send(Ok(lsn));
    }
    Ok(())
}

/// Frames of another writer, where one is followed.
fn feed(shared: &Shared, core: &mut LogCore, raw: &[u8]) -> Result<Result<Lsn, FeedError>, Failed> {
    if !shared.following.load(Ordering::Acquire) {
        return Ok(Err(FeedError::NotFollowing));
    }
    Ok(core.feed(raw)?.map_err(FeedError::Damaged))
}

/// Makes a follower a writer: what it has is sealed, and what comes next is its own.
fn promote(
    shared: &Shared,
    core: &mut LogCore,
    epoch: Epoch,
    floor: Lsn,
) -> Result<Result<(), PromoteError>, Failed> {
    if !shared.following.load(Ordering::Acquire) {
        return Ok(Err(PromoteError::NotFollowing));
    }
    if epoch <= core.epoch() {
        let found = core.epoch();
        return Ok(Err(PromoteError::StaleEpoch { asked: epoch, found }));
    }
    let (now, floor) = (core.now_micros(), floor.max(core.last()));
    if now.saturating_add(CLOCK_TOLERANCE_MICROS) < floor.get() {
        return Ok(Err(PromoteError::ClockBehind { now, floor }));
    }
    core.reign(epoch, floor)?;
    shared.following.store(false, Ordering::Release);
    Ok(Ok(()))
}

/// Writes ahead as long as nobody waits.
fn ahead(shared: &Shared, core: &mut LogCore) -> Result<(), Failed> {
    while shared.queue.is_idle() && core.write_ahead()? {}
    Ok(())
}

/// Shows readers what is written, and tells those who appended it.
fn publish(shared: &Shared, core: &mut LogCore, appended: &mut Vec<(Reply, GroupLsns)>) {
    let frames = core.take_written();
    if !frames.is_empty() {
        metrics::histogram!("pds_log_batch_frames").record(frames.len() as f64);
    }
    shared.reader.ring.push(frames);
    shared.reader.appended.advance(core.last());
    for (reply, lsns) in appended.drain(..) {
        reply.send(Ok(lsns));
    }
}

fn poisoned(failed: &Failed) -> AppendError {
    AppendError::Poisoned {
        reason: Arc::clone(&failed.reason),
    }
}
