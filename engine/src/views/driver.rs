//! The driver: one thread that folds the durable part of the log into the views, in log order, each entry once.
//!
//! It follows a watermark (what is durable at the configured level), decodes each batch once, applies it to every view
//! in their order and then advances `applied`: an answer that waits for `applied` speaks of what is durable and visible
//! (I1). Replay at start is [`Fold::replay`], the same code with nobody waiting. Whatever goes wrong in a view, a panic
//! included, closes the log to writes: an entry that cannot be applied must not be acknowledged.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::{View, ViewError};
use crate::entry::Entry;
use crate::log::{Flags, Frame, Log, Lsn, ReadError, TailReader, Watermark};

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

/// How far a replay has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayProgress {
    /// The last entry applied.
    pub applied: Lsn,
    /// The last entry to apply.
    pub target: Lsn,
    /// Entries applied by this replay.
    pub entries: u64,
    /// Bytes of log that they take.
    pub bytes: u64,
}

/// The views and their place in the log.
pub struct Fold<'v> {
    views: Vec<Box<dyn View + 'v>>,
    tail: TailReader,
    /// The beginning of a group whose end may not be applied yet. Not more than one group, which the log bounds.
    held: Vec<Frame>,
    config: DriverConfig,
    unpersisted: u64,
    unpersisted_since: Option<Instant>,
    /// Whether a view has work that changes no answer.
    untidy: bool,
}

impl std::fmt::Debug for Fold<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fold")
            .field("applied", &self.applied())
            .finish_non_exhaustive()
    }
}

impl<'v> Fold<'v> {
    /// Puts `views` behind the reader that `tail` makes for their least applied LSN.
    pub fn new(
        views: Vec<Box<dyn View + 'v>>,
        tail: impl FnOnce(Lsn) -> TailReader,
        config: DriverConfig,
    ) -> Fold<'v> {
        let from = least_applied(&views);
        Fold {
            views,
            tail: tail(from),
            held: Vec::new(),
            config,
            unpersisted: 0,
            unpersisted_since: None,
            untidy: true,
        }
    }

    /// What every view has.
    #[must_use]
    pub fn applied(&self) -> Lsn {
        least_applied(&self.views)
    }

    /// Applies everything up to `target` and makes it durable; tells `progress` after each batch.
    ///
    /// # Errors
    /// The views stand at a whole entry; see [`DriverError`].
    pub fn replay(
        &mut self,
        target: Lsn,
        progress: &mut dyn FnMut(ReplayProgress),
    ) -> Result<ReplayProgress, DriverError> {
        let mut so_far = ReplayProgress {
            applied: self.applied(),
            target,
            entries: 0,
            bytes: 0,
        };
        loop {
            let batch = self.step(target)?;
            if batch.entries == 0 {
                break;
            }
            so_far.applied = self.applied();
            so_far.entries += batch.entries;
            so_far.bytes += batch.bytes;
            progress(so_far);
            self.persist_if_due(Instant::now())?;
        }
        self.persist()?;
        Ok(so_far)
    }

    /// Applies one batch of what lies at or below `limit`. It ends with a whole group, even if that takes it beyond
    /// its bytes: nobody sees a part of one, and no durable point or checkpoint lies within (I3).
    pub(crate) fn step(&mut self, limit: Lsn) -> Result<Batch, DriverError> {
        let mut frames = std::mem::take(&mut self.held);
        frames.extend(self.tail.next_batch(limit, self.config.batch_bytes)?);
        while frames.last().is_some_and(goes_on) {
            let more = self.tail.next_batch(limit, 1)?;
            if more.is_empty() {
                let whole = frames
                    .iter()
                    .rposition(|frame| !goes_on(frame))
                    .map_or(0, |at| at + 1);
                self.held = frames.split_off(whole);
                break;
            }
            frames.extend(more);
        }
        let bytes = frames.iter().map(|frame| u64::from(frame.location().len)).sum();
        let entries = frames.iter().map(decode).collect::<Result<Vec<_>, _>>()?;
        if !entries.is_empty() {
            for view in &mut self.views {
                guarded(|| view.apply(&entries))?;
            }
            self.unpersisted += bytes;
            self.unpersisted_since.get_or_insert_with(Instant::now);
            self.untidy = true;
        }
        Ok(Batch {
            entries: entries.len() as u64,
            bytes,
        })
    }

    /// One bounded piece of each view's work that changes no answer.
    pub(crate) fn tidy(&mut self) -> Result<(), DriverError> {
        let mut more = false;
        for view in &mut self.views {
            guarded(|| {
                more |= view.tidy()?;
                Ok::<_, ViewError>(())
            })?;
        }
        if more {
            self.unpersisted_since.get_or_insert_with(Instant::now);
        }
        self.untidy = more;
        Ok(())
    }

    fn persist_if_due(&mut self, now: Instant) -> Result<(), DriverError> {
        let due = self.persist_due().is_some_and(|due| due <= now);
        if due || self.unpersisted >= self.config.persist_bytes {
            self.persist()
        } else {
            Ok(())
        }
    }

    fn persist_due(&self) -> Option<Instant> {
        self.unpersisted_since
            .map(|since| since + self.config.persist_after)
    }

    pub(crate) fn persist(&mut self) -> Result<(), DriverError> {
        if self.unpersisted_since.is_some() {
            for view in &mut self.views {
                guarded(|| view.persist())?;
            }
            self.unpersisted = 0;
            self.unpersisted_since = None;
        }
        Ok(())
    }
}

/// Whether the next frame is of the same group.
fn goes_on(frame: &Frame) -> bool {
    frame.flags().contains(Flags::MORE)
}

/// What one step applied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

fn least_applied(views: &[Box<dyn View + '_>]) -> Lsn {
    views.iter().map(|view| view.applied()).min().unwrap_or(Lsn::ZERO)
}

fn decode(frame: &Frame) -> Result<Entry, ViewError> {
    Entry::decode(frame).map_err(|source| ViewError::Entry {
        lsn: frame.lsn(),
        source,
    })
}

/// Runs view code; a panic becomes an error, and the views are not used again.
fn guarded<E: Into<DriverError>>(work: impl FnOnce() -> Result<(), E>) -> Result<(), DriverError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(Into::into),
        Err(panic) => Err(DriverError::Panicked {
            what: panic_text(panic.as_ref()),
        }),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
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
    /// Bytes of log that are not applied yet; the driver takes away what it applies.
    pub backlog: Arc<AtomicU64>,
}

impl Marks {
    fn advance_visible(&self) {
        let applied = self.applied.get();
        self.visible.advance(
            self.remote
                .as_ref()
                .map_or(applied, |remote| remote.get().min(applied)),
        );
    }
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
    let mut log_failed = std::pin::pin!(local.wait(Lsn::MAX));
    loop {
        catch_up(&mut fold, marks).map_err(|error| error.reason())?;
        let persist_due = fold.persist_due().map(tokio::time::Instant::from_std);
        let remote_moves = marks
            .remote
            .as_ref()
            .map(|remote| remote.changed_since(marks.visible.get()));
        tokio::select! {
            biased;
            failed = &mut log_failed => return Err(failed.err().map_or_else(String::new, |failed| failed.reason.to_string())),
            request = requests.recv() => match request {
                Some(Request::Between(job)) => job(),
                Some(Request::Stop(answer)) => {
                    let done = catch_up(&mut fold, marks).and_then(|()| fold.persist());
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
                marks.advance_visible();
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

/// Applies what is durable, batch by batch, and tells those who wait after each.
fn catch_up(fold: &mut Fold<'_>, marks: &Marks) -> Result<(), DriverError> {
    loop {
        let batch = fold.step(marks.durable.get())?;
        if batch.entries == 0 {
            marks.advance_visible();
            return Ok(());
        }
        let _ = marks
            .backlog
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |bytes| {
                Some(bytes.saturating_sub(batch.bytes))
            });
        marks.applied.advance(fold.applied());
        marks.advance_visible();
        if fold.untidy {
            // Under a load that never ends, too.
            fold.tidy()?;
        }
        fold.persist_if_due(Instant::now())?;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::clock::SystemClock;
    use crate::entry::EntryDraft;
    use crate::log::{GroupLsns, LogConfig};
    use crate::storage::MemoryStorage;
    use crate::views::testkit::lsn;

    /// Counts what it is given; panics at a chosen entry.
    #[derive(Default)]
    struct Counting {
        applied: Lsn,
        entries: Arc<AtomicUsize>,
        persisted: Arc<AtomicUsize>,
        panics_at: Option<usize>,
    }

    impl View for Counting {
        fn name(&self) -> &'static str {
            "counting"
        }

        fn applied(&self) -> Lsn {
            self.applied
        }

        fn apply(&mut self, entries: &[Entry]) -> Result<(), ViewError> {
            let before = self.applied;
            for entry in entries.iter().filter(|entry| entry.lsn > before) {
                let count = self.entries.fetch_add(1, Ordering::SeqCst);
                assert!(self.panics_at != Some(count), "the view's own defect");
                self.applied = entry.lsn;
            }
            Ok(())
        }

        fn persist(&mut self) -> Result<(), ViewError> {
            self.persisted.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }

    fn log() -> Log {
        let storage = Arc::new(MemoryStorage::new());
        Log::open(
            storage,
            Arc::new(SystemClock),
            Path::new("/log"),
            &LogConfig::default(),
        )
        .unwrap()
        .0
    }

    fn marks(log: &Log) -> Marks {
        Marks {
            durable: log.local().clone(),
            applied: Watermark::default(),
            remote: None,
            visible: Watermark::default(),
            backlog: Arc::default(),
        }
    }

    fn append(log: &Log) -> GroupLsns {
        let draft = EntryDraft::marker().into_draft().unwrap();
        log.append(vec![draft]).unwrap().wait_blocking().unwrap()
    }

    fn wait(mark: &Watermark, at: Lsn) -> Result<Option<Lsn>, crate::log::Failed> {
        mark.wait_past_blocking(lsn(at.get() - 1), Duration::from_secs(30))
    }

    fn block<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(future)
    }

    #[test]
    fn a_panic_in_a_view_fails_those_who_wait_and_closes_the_log() {
        let (log, view) = (
            log(),
            Counting {
                panics_at: Some(2),
                ..Counting::default()
            },
        );
        let marks = marks(&log);
        let fold = Fold::new(
            vec![Box::new(view)],
            |from| log.tail(from),
            DriverConfig::default(),
        );
        let driver = DriverHandle::spawn(fold, marks.clone(), log.clone()).unwrap();
        let good = append(&log).last;
        assert_eq!(wait(&marks.applied, good).unwrap(), Some(good));
        let second = append(&log).last;
        wait(&marks.applied, second).unwrap();
        let third = append(&log).last;
        let failed = wait(&marks.applied, third).unwrap_err();
        assert_eq!(&*failed.reason, "view code panicked: the view's own defect");
        assert_eq!(marks.applied.get(), second);
        drop(driver);
        assert!(marks.visible.failed().is_some() && log.local().failed().is_some());
    }

    #[test]
    fn views_are_made_durable_at_intervals_of_bytes_and_at_the_end() {
        let (log, view) = (log(), Counting::default());
        let (entries, persisted) = (Arc::clone(&view.entries), Arc::clone(&view.persisted));
        let config = DriverConfig {
            persist_bytes: 1,
            ..DriverConfig::default()
        };
        let marks = marks(&log);
        let driver = DriverHandle::spawn(
            Fold::new(vec![Box::new(view)], |from| log.tail(from), config),
            marks.clone(),
            log.clone(),
        )
        .unwrap();
        for count in 1..=3 {
            let last = append(&log).last;
            wait(&marks.applied, last).unwrap();
            // Between two batches, so after the batch was made durable.
            block(driver.between(|| ())).unwrap();
            assert_eq!(
                (entries.load(Ordering::SeqCst), persisted.load(Ordering::SeqCst)),
                (count, count)
            );
        }
        block(driver.stop()).unwrap();
        assert_eq!(
            persisted.load(Ordering::SeqCst),
            3,
            "nothing is new, nothing is written"
        );
        assert!(
            log.local().failed().is_none(),
            "an orderly end is no failure of the log"
        );
        assert_eq!(
            &*marks.applied.failed().unwrap().reason,
            "the views were shut down"
        );
    }

    #[test]
    fn no_batch_ends_within_a_group_however_small_it_is_and_wherever_the_limit_lies() {
        let log = log();
        let marker = || EntryDraft::marker().into_draft().unwrap();
        append(&log);
        let group = log.append(vec![marker(); 3]).unwrap().wait_blocking().unwrap();
        let after = append(&log);
        let config = DriverConfig {
            batch_bytes: 1,
            ..DriverConfig::default()
        };
        let mut fold = Fold::new(vec![Box::new(Counting::default())], |from| log.tail(from), config);
        assert_eq!(fold.step(Lsn::MAX).unwrap().entries, 1);
        let within = lsn(group.first.get() + 1);
        assert_eq!(
            fold.step(within).unwrap().entries,
            0,
            "the group's end may not be applied yet"
        );
        assert!(fold.applied() < group.first);
        assert_eq!(fold.step(group.last).unwrap().entries, 3);
        assert_eq!(fold.applied(), group.last);
        assert_eq!(fold.step(Lsn::MAX).unwrap().entries, 1);
        assert_eq!(fold.applied(), after.last);
    }

    #[test]
    fn a_view_that_is_ahead_of_another_waits_for_it() {
        let log = log();
        let (first, last) = (append(&log).last, append(&log).last);
        let (behind, ahead) = (
            Counting::default(),
            Counting {
                applied: first,
                ..Counting::default()
            },
        );
        let counts = (Arc::clone(&behind.entries), Arc::clone(&ahead.entries));
        let mut fold = Fold::new(
            vec![Box::new(behind), Box::new(ahead)],
            |from| log.tail(from),
            DriverConfig::default(),
        );
        let replayed = fold.replay(last, &mut |_| {}).unwrap();
        assert_eq!((replayed.applied, replayed.entries), (last, 2));
        assert_eq!(
            (counts.0.load(Ordering::SeqCst), counts.1.load(Ordering::SeqCst)),
            (2, 1)
        );
    }
}
