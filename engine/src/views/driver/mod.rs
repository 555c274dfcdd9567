//! The driver: one thread that folds the durable part of the log into the views, in log order, each entry once.
//!
//! It follows a watermark (what is durable at the configured level), decodes each batch once, applies it to every view
//! in their order and then advances `applied`: an answer that waits for `applied` speaks of what is durable and visible
//! (I1). Replay at start is [`Fold::replay`], the same code with nobody waiting. Whatever goes wrong in a view, a panic
//! included, closes the log to writes: an entry that cannot be applied must not be acknowledged.

mod fold;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use fold::panic_text;
pub use fold::{Fold, ReplayProgress};

use super::ViewError;
use crate::log::{Log, Lsn, ReadError, Watermark};

/// How many requests of [`DriverHandle::between`] may wait.
const REQUESTS_MAX: usize = 16;

/// How the driver batches.
#[derive(Clone, Copy, Debug)]
pub struct DriverConfig {
    /// Bytes of log that one transaction of a view takes in at most (one entry may be bigger).
    pub batch_bytes: usize,
    /// Bytes of log after which the views are made durable. A start replays about as much at most.
    pub persist_bytes: u64,
    /// How long applied entries may wait until the views are made durable.
    pub persist_after: Duration,
}

impl Default for DriverConfig {
    fn default() -> DriverConfig {
        DriverConfig {
            batch_bytes: 4 << 20,
            persist_bytes: 16 << 20,
            persist_after: Duration::from_secs(60),
        }
    }
}

/// Why views could not follow the log.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The log could not be read.
    #[error("the views cannot read the log")]
    Read(#[from] ReadError),
    /// A view could not take an entry, or not be made durable.
    #[error(transparent)]
    View(#[from] ViewError),
    /// A view panicked: a defect.
    #[error("view code panicked: {what}")]
    Panicked {
        /// The panic's message.
        what: String,
    },
    /// The driver's thread has ended.
    #[error("the views have stopped")]
    Stopped,
}

impl DriverError {
    /// The error with all its causes, in one line.
    #[must_use]
    pub fn reason(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

/// What the driver moves and what moves it.
#[derive(Clone, Debug)]
pub struct Marks {
    /// What may be applied: the log's `local`, or `remote` under durability remote.
    pub durable: Watermark,
    /// What is applied; the driver advances it.
    pub applied: Watermark,
    /// What the replica store has, if there is one.
    pub remote: Option<Watermark>,
    /// What the firehose may show: applied, and in the replica store if there is one. The driver advances it.
    pub visible: Watermark,
    /// Bytes of log that are not applied yet, or not in the replica store; the driver takes away what is both.
    pub backlog: Arc<AtomicU64>,
}

type Job = Box<dyn FnOnce() + Send>;

enum Request {
    /// Runs between two batches, when all views stand at the same LSN.
    Between(Job),
    /// Applies what is durable, makes the views durable, ends the thread.
    Stop(oneshot::Sender<Result<(), DriverError>>),
}

/// The running driver. Dropping it ends the thread without making the views durable; they catch up from the log.
#[derive(Debug)]
pub struct DriverHandle {
    /// `None` only while it is dropped.
    requests: Option<mpsc::Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for DriverHandle {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // It ends with its last batch, and lets go of the views' files. A panic was caught and reported.
            let _ = thread.join();
        }
    }
}

impl DriverHandle {
    /// Starts the thread. On any failure it poisons `log` and fails `applied` and `visible`.
    ///
    /// # Errors
    /// The thread or its runtime could not be made.
    pub fn spawn(fold: Fold<'static>, marks: Marks, log: Log) -> std::io::Result<DriverHandle> {
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()?;
        let thread = std::thread::Builder::new()
            .name("views".to_owned())
            .spawn(move || {
                let local = log.local().clone();
                let ended = catch_unwind(AssertUnwindSafe(|| {
                    runtime.block_on(run(fold, &marks, &local, receiver))
                }));
                let ended = ended.unwrap_or_else(|panic| {
                    Err(DriverError::Panicked {
                        what: panic_text(panic.as_ref()),
                    }
                    .reason())
                });
                let reason: Arc<str> = match ended {
                    Ok(()) => "the views were shut down".into(),
                    Err(reason) => {
                        tracing::error!(%reason, "the views stopped; the log is closed to writes");
                        let reason: Arc<str> = reason.into();
                        log.poison(Arc::clone(&reason));
                        reason
                    }
                };
                marks.applied.fail(Arc::clone(&reason));
                marks.visible.fail(reason);
            })?;
        Ok(DriverHandle {
            requests: Some(requests),
            thread: Some(thread),
        })
    }

    /// Runs `work` on the driver's thread between two batches, when all views stand at the same LSN. It holds up every
    /// answer: take snapshots in it, copy them elsewhere.
    ///
    /// # Errors
    /// [`DriverError::Stopped`].
    pub fn between<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = Result<T, DriverError>> + Send + 'static {
        let requests = self.requests.clone();
        let (answer, outcome) = oneshot::channel();
        let job: Job = Box::new(move || {
            // Nobody waits any more: the work was for nothing, which harms nobody.
            let _ = answer.send(work());
        });
        async move {
            let requests = requests.ok_or(DriverError::Stopped)?;
            requests
                .send(Request::Between(job))
                .await
                .map_err(|_| DriverError::Stopped)?;
            outcome.await.map_err(|_| DriverError::Stopped)
        }
    }

    /// Applies what is durable now, makes the views durable and ends the thread.
    ///
    /// # Errors
    /// The views failed before or now; what they hold is then behind, and the log has the rest.
    pub async fn stop(self) -> Result<(), DriverError> {
        let (answer, outcome) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or(DriverError::Stopped)?;
        requests
            .send(Request::Stop(answer))
            .await
            .map_err(|_| DriverError::Stopped)?;
        outcome.await.unwrap_or(Err(DriverError::Stopped))
    }
}

/// The thread's work, until it is told to stop or something fails.
async fn run(
    mut fold: Fold<'static>,
    marks: &Marks,
    local: &Watermark,
    mut requests: mpsc::Receiver<Request>,
) -> Result<(), String> {
    // Resolves only when the log fails: everything that waits for `applied` must then be told, whatever level it needs.
    let mut unshipped = Unshipped::default();
    let mut log_failed = std::pin::pin!(local.wait(Lsn::MAX));
    loop {
        catch_up(&mut fold, &mut unshipped, marks).map_err(|error| error.reason())?;
        let persist_due = fold.persist_due().map(tokio::time::Instant::from_std);
        let remote_moves = marks
            .remote
            .as_ref()
            .map(|remote| remote.changed_since(marks.visible.get()));
        tokio::select! {
            biased;
            failed = &mut log_failed => return Err(failed.err().map_or_else(String::new, |failed| failed.reason.to_string())),
            request = requests.recv() => match request {
                Some(Request::Between(job)) => {
                    job();
                    // It may have put another file in a view's place, with rows that wait to be swept.
                    fold.untidy = true;
                }
                Some(Request::Stop(answer)) => {
                    let done = catch_up(&mut fold, &mut unshipped, marks).and_then(|()| fold.persist());
                    let reason = done.as_ref().err().map(DriverError::reason);
                    // Views close their files before anybody is told that they have.
                    drop(fold);
                    let _ = answer.send(done);
                    return reason.map_or(Ok(()), Err);
                }
                None => return Ok(()),
            },
            moved = marks.durable.changed_since(fold.applied()) => {
                moved.map_err(|failed| failed.reason.to_string())?;
            }
            moved = async { match remote_moves {
                Some(moves) => moves.await,
                None => std::future::pending().await,
            } }, if marks.visible.get() < marks.applied.get() => {
                moved.map_err(|failed| failed.reason.to_string())?;
                unshipped.follow(marks);
            }
            () = async { match persist_due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            } } => fold.persist().map_err(|error| error.reason())?,
            // Comes last: only when nobody waits.
            () = std::future::ready(()), if fold.untidy => fold.tidy().map_err(|error| error.reason())?,
        }
    }
}

/// Bytes that are counted as one piece until they are in the replica: bounds how many pieces are remembered.
const PIECE_BYTES: u64 = 64 << 10;

/// What is applied and still counts as backlog, because the replica does not have it: under durability local the disk fills
/// otherwise without bound while the replica is away.
#[derive(Debug, Default)]
struct Unshipped {
    /// The last LSN of each piece, and its bytes.
    pieces: VecDeque<(Lsn, u64)>,
}

impl Unshipped {
    /// Applied up to `last`, which took so many bytes.
    fn add(&mut self, last: Lsn, bytes: u64) {
        match self.pieces.back_mut() {
            Some((end, sum)) if *sum < PIECE_BYTES => (*end, *sum) = (last, *sum + bytes),
            _ => self.pieces.push_back((last, bytes)),
        }
    }

    /// Lets the firehose show what is applied and in the replica, or all that is applied if there is none, and takes it off the
    /// backlog. Both go by one look at the replica: what is not visible yet is what the driver waits for.
    fn follow(&mut self, marks: &Marks) {
        let applied = marks.applied.get();
        let shown = marks
            .remote
            .as_ref()
            .map_or(applied, |remote| remote.get().min(applied));
        let mut freed = 0;
        while let Some((last, bytes)) = self.pieces.front().copied() {
            if shown < last {
                break;
            }
            freed += bytes;
            self.pieces.pop_front();
        }
        if freed > 0 {
            let _ = marks
                .backlog
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |bytes| {
                    Some(bytes.saturating_sub(freed))
                });
        }
        marks.visible.advance(shown);
    }
}

/// Applies what is durable, batch by batch, and tells those who wait after each.
fn catch_up(fold: &mut Fold<'_>, unshipped: &mut Unshipped, marks: &Marks) -> Result<(), DriverError> {
    loop {
        let batch = fold.step(marks.durable.get())?;
        if batch.entries == 0 {
            unshipped.follow(marks);
            return Ok(());
        }
        metrics::histogram!("pds_views_batch_entries").record(batch.entries as f64);
        unshipped.add(fold.applied(), batch.bytes);
        marks.applied.advance(fold.applied());
        unshipped.follow(marks);
        if fold.untidy {
            // Under a load that never ends, too.
            fold.tidy()?;
        }
        fold.persist_if_due(Instant::now())?;
    }
}
