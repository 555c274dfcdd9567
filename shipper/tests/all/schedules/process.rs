//! One process of the simulation: the real start, following, hand-over and shipping, and how it is frozen.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use engine::clock::{Clock, ScriptedClock, SeededEntropy};
use engine::log::{Frame, Log, LogConfig, Lsn, Recovered, Watermark};
use parking_lot::Mutex;
use shipper::fence::{Claim, ClaimError};
use shipper::follow::{FollowError, Look, Tracker};
use shipper::handover::{self, Asked, HandOverRequest, REPLICA_FORMAT};
use shipper::lease::{Keeper, Writer};
use shipper::names::WriterId;
use shipper::restore::RestoreError;
use shipper::ship::{ShipConfig, ShipEnd, ShipHandle, Shipper};
use shipper::standby::{self, StandbyError};
use shipper::start::{self, StartError, StartOptions};
use shipper::store::ReplicaStore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::net::{Door, Net};
use crate::common::storage;

/// So long a request may take: only the scheduler gives up.
pub const FOR_EVER: Duration = Duration::from_secs(10_000_000);
/// Between two looks at the chain that found nothing: less than a turn.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Holds all tasks of a process while it is suspended.
#[derive(Default)]
pub struct Gate {
    shut: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
}

impl Gate {
    pub fn is_shut(&self) -> bool {
        self.shut.load(Ordering::SeqCst)
    }

    pub fn set(&self, shut: bool) {
        self.shut.store(shut, Ordering::SeqCst);
        if !shut {
            self.waiting.lock().drain(..).for_each(Waker::wake);
        }
    }
}

struct Frozen<F> {
    task: Pin<Box<F>>,
    gate: Arc<Gate>,
}

impl<F: Future> Future for Frozen<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        if self.gate.is_shut() {
            self.gate.waiting.lock().push(cx.waker().clone());
            return Poll::Pending;
        }
        self.task.as_mut().poll(cx)
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a thread of a log and stops everything else meanwhile: what such a thread does takes no time.
pub fn at_once<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(tokio::task::unconstrained(future));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Returns when the log's thread has told everybody what it has done so far.
pub fn settle(log: &Log) {
    // It refuses this in its turn; a follower takes nothing from it.
    let _ = at_once(log.feed(bytes::Bytes::new()));
}

/// All frames up to `last`, from behind `first`.
pub fn frames(log: &Log, first: Lsn, last: Lsn) -> Vec<Frame> {
    let mut tail = log.tail(first);
    let mut all = Vec::new();
    loop {
        let batch = tail.next_batch(last, 1 << 20).expect("the log can be read");
        if batch.is_empty() {
            return all;
        }
        all.extend(batch);
    }
}

/// How a process is set up.
#[derive(Clone)]
pub struct Setup {
    pub ship: ShipConfig,
    pub segment_bytes: u64,
    /// Whether it keeps a lease.
    pub lease: bool,
}

/// How far a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Starting,
    Following,
    Claiming,
    Writing,
    Ended,
}

/// What the driver knows of a process and tells it.
pub struct Board {
    pub stage: Stage,
    pub log: Option<Log>,
    pub handle: Option<ShipHandle>,
    pub claim: Option<Claim>,
    pub end: Option<ShipEnd>,
    /// Claim without asking.
    pub take_over: bool,
    /// Ask for a hand-over, then claim.
    pub ask: bool,
    /// The writer lets no more groups in.
    pub draining: bool,
    pub handed_over: bool,
}

/// Everything that the tasks of one life have.
pub struct Life {
    pub who: (usize, u32),
    pub net: Arc<Net>,
    pub store: Arc<dyn ReplicaStore>,
    pub board: Mutex<Board>,
    pub gate: Arc<Gate>,
    pub clock: Arc<ScriptedClock>,
    pub dir: PathBuf,
    pub setup: Setup,
    /// Dies with the process.
    pub tasks: Mutex<Vec<JoinHandle<()>>>,
    entropy: Arc<SeededEntropy>,
    stop: CancellationToken,
}

impl Life {
    pub fn new(
        net: &Arc<Net>,
        who: (usize, u32),
        clock: &Arc<ScriptedClock>,
        dir: &Path,
        setup: Setup,
        seed: u64,
    ) -> Arc<Life> {
        Arc::new(Life {
            who,
            net: net.clone(),
            store: Arc::new(Door {
                net: net.clone(),
                who,
            }),
            board: Mutex::new(Board {
                stage: Stage::Starting,
                log: None,
                handle: None,
                claim: None,
                end: None,
                take_over: false,
                ask: false,
                draining: false,
                handed_over: false,
            }),
            gate: Arc::default(),
            clock: clock.clone(),
            dir: dir.to_owned(),
            setup,
            tasks: Mutex::default(),
            entropy: Arc::new(SeededEntropy::new(seed)),
            stop: CancellationToken::new(),
        })
    }

    /// Spawns a task of the process.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let frozen = Frozen {
            task: Box::pin(task),
            gate: self.gate.clone(),
        };
        self.tasks.lock().push(tokio::spawn(frozen));
    }

    fn count(&self, what: &'static str) {
        self.net.model.lock().count(what);
    }

    fn violation(&self, what: &str) {
        let who = self.who;
        self.net.model.lock().violation(format!("{who:?}: {what}"));
    }

    fn start_options(&self) -> StartOptions {
        StartOptions {
            data_dir: self.dir.clone(),
            storage: storage(),
            clock: self.clock.clone(),
            entropy: self.entropy.clone(),
            request_timeout: FOR_EVER,
            keep: Vec::new(),
            source: None,
            on_progress: None,
        }
    }

    fn log_config(&self, claim: Option<&Claim>) -> LogConfig {
        let config = LogConfig {
            segment_bytes: self.setup.segment_bytes,
            ahead_bytes: 0,
            ..LogConfig::default()
        };
        match claim {
            None => config,
            Some(claim) => LogConfig {
                epoch: claim.epoch,
                log_id: Some(claim.log_id),
                lsn_floor: claim.lsn_floor,
                ..config
            },
        }
    }

    /// Runs until the process has nothing more to do. What only failed because another one moved on counts as an end, too.
    pub async fn run(self: Arc<Self>, follow: bool) {
        let outcome = match follow {
            true => self.follow().await,
            false => self.claim_at_once().await,
        };
        if let Err(stopped) = outcome {
            self.count(stopped);
        }
        let mut board = self.board.lock();
        board.stage = Stage::Ended;
    }

    async fn claim_at_once(self: &Arc<Self>) -> Result<(), &'static str> {
        let started = Box::pin(start::begin(&self.store, &self.start_options())).await;
        let started = started.map_err(|error| self.start_failed(&error))?;
        self.claimed(&started.claim);
        if started.set_aside.is_some() {
            self.count("logs set aside");
        }
        if let Some(restored) = &started.restored {
            self.count("restores at a start");
            if !restored.warnings.is_empty() {
                self.violation(&format!("restored with warnings: {:?}", restored.warnings));
            }
        }
        let recovered: Recovered = started.recovered;
        let clock: Arc<dyn Clock> = self.clock.clone();
        let log = recovered.start(clock, &self.log_config(Some(&started.claim)));
        match log {
            Ok(log) => self.write(log, started.claim).await,
            Err(error) => {
                self.violation(&format!("the log does not open: {error}"));
                return Err("opens failed");
            }
        }
        Ok(())
    }

    /// What a start may fail with although nothing is damaged: others got ahead.
    fn start_failed(&self, error: &StartError) -> &'static str {
        match error {
            StartError::Claim(ClaimError::ForeignLog { .. }) => "starts that lost the first log",
            StartError::Claim(ClaimError::Contended) => "starts that were overtaken",
            StartError::Incomplete { .. } => {
                self.net.model.lock().overtaken(self.who);
                "starts that were fenced meanwhile"
            }
            StartError::Restore(RestoreError::MovingTarget) => "restores of a moving target",
            other => {
                self.violation(&format!("a start failed: {other:?}"));
                "starts that failed"
            }
        }
    }

    async fn follow(self: &Arc<Self>) -> Result<(), &'static str> {
        let begun = Box::pin(standby::begin(&self.store, &self.start_options(), &self.dir)).await;
        let begun = match begun {
            Ok(begun) => begun,
            Err(StandbyError::Empty(_)) => return Err("standbys of nothing"),
            Err(StandbyError::Start(error)) => return Err(self.start_failed(&error)),
            Err(StandbyError::Follow(error)) => {
                self.violation(&format!("following failed: {error:?}"));
                return Err("standbys that failed");
            }
        };
        let clock: Arc<dyn Clock> = self.clock.clone();
        let config = LogConfig {
            log_id: Some(begun.tracker.end().log_id),
            ..self.log_config(None)
        };
        let log = match begun.recovered.follow(clock, &config) {
            Ok(log) => log,
            Err(error) => {
                self.violation(&format!("the log does not open: {error}"));
                return Err("opens failed");
            }
        };
        self.count("standbys");
        let mut tracker = begun.tracker;
        {
            let mut board = self.board.lock();
            board.log = Some(log.clone());
            board.stage = Stage::Following;
        }
        let mut patience = None;
        loop {
            let (take_over, ask) = {
                let board = self.board.lock();
                (board.take_over, board.ask)
            };
            if take_over {
                break;
            }
            match patience {
                None if ask => patience = self.ask(&tracker).await,
                Some(_) if tracker.end().handed_over => {
                    self.count("hand-overs that were followed");
                    break;
                }
                Some(0) => {
                    self.count("hand-overs of the deaf");
                    break;
                }
                _ => patience = patience.map(|left| left - 1),
            }
            self.look(&log, &mut tracker).await?;
        }
        self.board.lock().stage = Stage::Claiming;
        let claim = Box::pin(standby::claim(&self.store, &self.start_options(), &tracker)).await;
        let claim = claim.map_err(|error| self.start_failed(&error))?;
        self.claimed(&claim);
        while log.local().get() < claim.before.last_lsn {
            self.look(&log, &mut tracker).await?;
        }
        if let Err(error) = at_once(log.promote(claim.epoch, claim.lsn_floor)) {
            self.violation(&format!("was not promoted: {error}"));
            return Err("promotions failed");
        }
        standby::promoted(&self.dir).expect("the marker can be removed");
        self.count("promotions");
        if let Some(before) = claim.before.epoch.0.checked_sub(1).map(|_| claim.before.epoch) {
            // It costs nothing if it stays.
            let _ = handover::forget(&self.store, FOR_EVER, before).await;
        }
        self.write(log, claim).await;
        Ok(())
    }

    /// For how many looks the hand-over is waited for; `None` if somebody else asked first.
    async fn ask(&self, tracker: &Tracker) -> Option<u32> {
        let asker = WriterId::random(&*self.entropy).expect("a seed never ends");
        let request = HandOverRequest {
            asker: asker.to_string(),
            url: String::new(),
            format: REPLICA_FORMAT,
            asked_at_micros: self.clock.now_micros(),
        };
        let asked = handover::ask(&self.store, FOR_EVER, tracker.end().epoch, asker, &request).await;
        match asked {
            Ok(Asked::Ours) => {
                self.count("hand-overs asked for");
                Some(25)
            }
            Ok(Asked::Another) => {
                self.count("hand-overs that another asked for");
                self.board.lock().ask = false;
                None
            }
            Err(_) => None,
        }
    }

    async fn look(&self, log: &Log, tracker: &mut Tracker) -> Result<(), &'static str> {
        match tracker.look().await {
            Ok(Look::Frames(raw)) => {
                self.count("looks that found frames");
                match at_once(log.feed(raw)) {
                    Ok(last) if last == tracker.have() => {}
                    other => self.violation(&format!("fed up to {}: {other:?}", tracker.have())),
                }
            }
            Ok(Look::Mark) => self.count("looks that found a mark"),
            Ok(Look::Nothing) => tokio::time::sleep(LOOK_AGAIN).await,
            Err(FollowError::Store(_)) => {
                self.count("looks that failed");
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            Err(error) => {
                self.violation(&format!("following failed: {error:?}"));
                return Err("standbys that failed");
            }
        }
        Ok(())
    }

    fn claimed(&self, claim: &Claim) {
        self.net.model.lock().claimed(self.who, claim);
        let mut board = self.board.lock();
        board.claim = Some(claim.clone());
        board.stage = Stage::Claiming;
    }

    /// Ships until the reign ends.
    async fn write(self: &Arc<Self>, log: Log, claim: Claim) {
        settle(&log);
        let all = frames(&log, Lsn::ZERO, claim.before.last_lsn);
        self.net.model.lock().opened(self.who, &claim, &all);
        let clock: Arc<dyn Clock> = self.clock.clone();
        let (shipper, handle) = Shipper::new(
            self.setup.ship.clone(),
            self.store.clone(),
            log.clone(),
            Watermark::default(),
            claim.clone(),
            clock.clone(),
        );
        if self.setup.lease {
            let writer = Writer {
                id: claim.writer_id.to_string(),
                instance: format!("p{}", self.who.0),
                epoch: claim.epoch,
                url: String::new(),
            };
            let keeper = Keeper::new(self.store.clone(), clock, writer, Duration::from_secs(90));
            let stop = self.stop.clone();
            self.spawn(async move {
                keeper.keep(stop, || {}).await;
            });
        }
        {
            let mut board = self.board.lock();
            board.log = Some(log);
            board.handle = Some(handle);
            board.stage = Stage::Writing;
        }
        let end = shipper.run(CancellationToken::new()).await;
        self.count(match end {
            ShipEnd::Fenced { .. } => "writers fenced",
            ShipEnd::HandedOver => "writers that handed over",
            ShipEnd::Stopped | ShipEnd::Failed { .. } => "writers that failed",
        });
        if let ShipEnd::Failed { reason } = &end {
            self.violation(&format!("shipping failed: {reason}"));
        }
        self.stop.cancel();
        self.board.lock().end = Some(end);
    }

    /// The writer looks whether somebody asks for its reign, and hands it over if so.
    pub async fn answer_asker(self: Arc<Self>) {
        let (handle, claim) = {
            let board = self.board.lock();
            match (&board.handle, &board.claim) {
                (Some(handle), Some(claim)) if !board.draining => (handle.clone(), claim.clone()),
                _ => return,
            }
        };
        let Ok(Some(_)) = handover::look(&self.store, FOR_EVER, claim.epoch).await else {
            return;
        };
        let local = {
            let mut board = self.board.lock();
            board.draining = true;
            board.log.as_ref().map_or(Lsn::ZERO, |log| log.local().get())
        };
        let report = handle.drain(FOR_EVER, true).await;
        if report.handed_over {
            self.net.model.lock().handed_over(self.who, &claim, local);
            self.board.lock().handed_over = true;
        }
    }

    /// Ships a copy of views that only has a number in it.
    pub async fn checkpoint(self: Arc<Self>) {
        let (handle, log) = {
            let board = self.board.lock();
            match (&board.handle, &board.log) {
                (Some(handle), Some(log)) => (handle.clone(), log.clone()),
                _ => return,
            }
        };
        let lsn = handle.remote().get();
        if lsn == Lsn::ZERO || log.local().get() < lsn {
            return;
        }
        let dir = self.dir.join(format!("views-{}", lsn.hex()));
        std::fs::create_dir_all(&dir).expect("a directory");
        std::fs::write(dir.join("index.redb"), lsn.hex()).expect("a file");
        if handle.publish_checkpoint(dir, lsn).await.is_ok() {
            self.count("checkpoints");
        }
    }

    /// As `kill -9`: what is in flight may or may not arrive.
    pub async fn kill(&self) {
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in &tasks {
            task.abort();
        }
        for task in tasks {
            if let Err(error) = task.await
                && error.is_panic()
            {
                self.violation("a task panicked");
            }
        }
        let mut board = self.board.lock();
        (board.handle, board.log) = (None, None);
    }
}
