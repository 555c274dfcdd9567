//! From settings to a serving process, and from a signal to a stopped one.
//!
//! Start: listen (health answers at once) → agree with the replica (look; beside a living writer follow it and ask for the
//! hand-over; claim, restore) → open log and views (replay) → ship → finish interrupted sign-ups → serve. Stop: take no more requests → drain → ship everything and hand over →
//! persist the views → end. Whoever fences us, or a failing log, ends the process: it answers errors until it is gone.

mod checkpoints;
mod compaction;
mod compose;
mod drills;
mod follow;
mod handover;
mod lease;
mod pursuit;
mod removals;
mod tiering;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::clock::{Clock, Entropy, SystemClock, SystemEntropy};
use engine::engine::{EngineError, Shutdown};
use engine::log::{Epoch, Lsn};
use engine::storage::{OsStorage, Storage};
use shipper::fence::Claim;
use shipper::lease::Lease;
use shipper::ledger::Ledger;
use shipper::ship::{ShipEnd, ShipHandle, ShipState};
use shipper::standby::{self, Holder, Standby, StandbyError};
use shipper::start::{StartOptions, Started};
use shipper::store::counted::Purpose;
use shipper::store::{ReplicaStore, StoreError, for_purpose};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::App;
use crate::config::{Config, ConfigError};
use crate::gate::Gate;
use crate::listen;
use crate::service::core::Core;
use crate::service::drills::Drills;
use crate::service::mail::Mailer;
use crate::service::replication::Replication;
use crate::telemetry;
use checkpoints::checkpoints;
use compaction::compaction;
use compose::{
    Background, SHIP_DIR, agree, budget, compose, empty_dir, make_shipper, open_engine, open_store, source,
    start_options,
};
use lease::LeaseTask;
use pursuit::Pursuit;
pub use tiering::DiskUse;
use tiering::tiering;

/// Why the server did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Wrong settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file, directory or socket.
    #[error("{what}: {source}")]
    Io {
        /// What it is about.
        what: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The replica and the local log could not be brought together.
    #[error("the replica: {}", compaction::with_causes(.0))]
    Replica(#[from] Box<shipper::start::StartError>),
    /// The replica's writer cannot be followed.
    #[error("following the writer: {}", compaction::with_causes(.0))]
    Standby(#[source] Box<StandbyError>),
    /// The replica store cannot be used at all.
    #[error("the replica store: {0}")]
    Store(#[from] StoreError),
    /// The log or the views could not be opened, or failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Another process took over the replica.
    #[error(
        "another server (epoch {}) has taken over the replica; this one stops and acknowledges nothing more. \
         Make sure that only one server runs on a replica", by.0
    )]
    Fenced {
        /// Its reign.
        by: Epoch,
    },
    /// Something else.
    #[error("{0}")]
    Other(String),
}

impl ServerError {
    pub(crate) fn io(what: impl AsRef<Path>, source: std::io::Error) -> ServerError {
        ServerError::Io {
            what: what.as_ref().display().to_string(),
            source,
        }
    }

    /// Whether another process took over, which is no fault of this one.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        matches!(self, ServerError::Fenced { .. })
    }
}

/// Serves until a signal or a failure.
///
/// # Errors
/// See [`ServerError`].
pub async fn run(config: Config, warnings: Vec<String>) -> Result<(), ServerError> {
    run_with(config, warnings, Mailer::none(), |_| async { Ok(()) }).await
}

/// As [`run`]; `ready` runs once requests are served.
///
/// # Errors
/// See [`ServerError`].
pub async fn run_with<F, R>(
    mut config: Config,
    warnings: Vec<String>,
    mailer: Mailer,
    ready: F,
) -> Result<(), ServerError>
where
    F: FnOnce(Arc<App>) -> R,
    R: Future<Output = Result<(), ServerError>>,
{
    telemetry::logging::start(&config.logging).map_err(ServerError::Other)?;
    let _recorder = telemetry::metrics::handle();
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let stop = CancellationToken::new();
    let signal = stop.clone();
    tokio::spawn(async move {
        stop_signal().await;
        tracing::info!("asked to stop");
        signal.cancel();
    });

    allow_many_connections();
    // A file that may not grow is an error like a full disk, and not the end of the process.
    let _file_size = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::from_raw(
        rustix::process::Signal::XFSZ.as_raw(),
    ));
    let address = SocketAddr::new(config.bind, config.port);
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| ServerError::io(format!("listen on {address}"), error))?;
    let port = listener
        .local_addr()
        .map_err(|error| ServerError::io("listen", error))?
        .port();
    config.port = port;
    let gate = Gate::default();
    let http_stop = CancellationToken::new();
    let http = tokio::spawn({
        let (gate, limits, http_stop) = (gate.clone(), config.http, http_stop.clone());
        async move { listen::serve(listener, gate, limits, http_stop).await }
    });
    if let Some(file) = config.port_file.clone() {
        write_port_file(&file, port)?;
    }
    tracing::info!(%address, port, url = config.public_url(), "listening");

    let started = Instant::now();
    let mut running = tokio::select! {
        running = Running::start(Arc::new(config), mailer, &gate) => running?,
        () = stop.cancelled() => return Ok(()),
    };
    tracing::info!(ms = millis(started.elapsed()), "serving");
    ready(running.app.clone()).await?;

    let failure = running.serve(&gate, &stop).await;
    running.stop(failure, http_stop, http).await
}

/// Lets this process have as many files and sockets as the system allows it; the usual default is a thousand.
fn allow_many_connections() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// The doors to time, chance, the disk and people's mail.
struct Doors {
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    storage: Arc<dyn Storage>,
    mailer: Arc<Mailer>,
}

/// A server that serves, with everything that must be ended.
struct Running {
    app: Arc<App>,
    doors: Doors,
    tasks: TaskTracker,
    /// Ends subscriptions and everything else that runs beside the requests.
    background: CancellationToken,
    /// Ends what only a writer does.
    work: CancellationToken,
    replica: Option<(Arc<dyn ReplicaStore>, StartOptions)>,
    /// What the replica's store was asked.
    ledger: Arc<Ledger>,
    /// What a standby follows, until it is promoted.
    pursuit: Option<Pursuit>,
    lease: Option<LeaseTask>,
    shipping: Option<tokio::task::JoinHandle<ShipEnd>>,
    shipping_stop: CancellationToken,
    /// Everything is shipped, and the reign was ended.
    reign_ended: bool,
    firehose: tokio::task::JoinHandle<Result<(), engine::log::ReadError>>,
    _threads: FirehoseThreads,
}

/// What is sent to a thousand subscribers stands back behind the commit that they will hear of next.
const FIREHOSE_NICENESS: i32 = 5;

/// The threads of the firehose. They end with this, without being waited for: their work is all in the log.
struct FirehoseThreads(Option<tokio::runtime::Runtime>, tokio::runtime::Handle);

impl FirehoseThreads {
    fn new() -> Result<FirehoseThreads, ServerError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads((cores / 2).clamp(1, 8))
            .max_blocking_threads(8)
            .thread_name("firehose")
            .on_thread_start(|| {
                // A system that does not allow it shares evenly.
                let _evenly = rustix::process::setpriority_process(None, FIREHOSE_NICENESS);
            })
            .enable_all()
            .build()
            .map_err(|error| ServerError::io("the firehose's threads", error))?;
        let handle = runtime.handle().clone();
        Ok(FirehoseThreads(Some(runtime), handle))
    }

    fn handle(&self) -> tokio::runtime::Handle {
        self.1.clone()
    }
}

impl Drop for FirehoseThreads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Running {
    async fn start(config: Arc<Config>, mailer: Mailer, gate: &Gate) -> Result<Running, ServerError> {
        let doors = Doors {
            clock: Arc::new(SystemClock),
            entropy: Arc::new(SystemEntropy),
            storage: Arc::new(OsStorage),
            mailer: Arc::new(mailer),
        };
        std::fs::create_dir_all(&config.data_dir)
            .map_err(|error| ServerError::io(&config.data_dir, error))?;
        let ledger = Arc::new(Ledger::default());
        let replica = match &config.replica {
            None => None,
            Some(replica) => {
                gate.phase("reaching the replica");
                let store = patiently(|| open_store(replica, &config, &ledger)).await?;
                let source = source(&config, replica, &ledger).await?;
                Some((store, start_options(&config, &doors, source)))
            }
        };
        let beginning = patiently(|| begin(&config, replica.as_ref(), gate)).await?;
        gate.phase("opening the log and replaying");
        let opened = open_engine(&config, beginning, &doors, gate).await?;
        let mut claim = opened.claim;
        let mut pursuit = match (opened.followed, &replica) {
            (Some((tracker, lease)), Some((store, options))) => {
                let (store, options) = (for_purpose(store, Purpose::Follow), options.clone());
                let engine = opened.engine.clone();
                let pursuit = Pursuit::new(config.clone(), store, options, tracker, engine)?;
                if let Some(lease) = lease {
                    pursuit.following.writer_at(&lease.url);
                }
                Some(pursuit)
            }
            _ => None,
        };
        if let Some(mut taking) = pursuit.take_if(|_| !config.succession.standby) {
            gate.phase("taking over from the writer");
            claim = Some(taking.take_over().await?);
        }
        let core = Core::new(
            opened.engine,
            doors.clock.clone(),
            doors.entropy.clone(),
            config.write_timeout,
        );
        let tasks = TaskTracker::new();
        let background = CancellationToken::new();
        let threads = FirehoseThreads::new()?;
        let beside = Background {
            tasks: tasks.clone(),
            stop: background.clone(),
            firehose: threads.handle(),
        };
        let store = replica.as_ref().map(|(store, _)| store.clone());
        let app = compose(config, core, store, &doors, &beside).await?;
        let mut running = Running {
            firehose: threads.handle().spawn(app.firehose.clone().run()),
            app: app.clone(),
            doors,
            tasks,
            work: background.child_token(),
            background: background.clone(),
            replica,
            ledger,
            pursuit,
            lease: None,
            shipping: None,
            shipping_stop: CancellationToken::new(),
            reign_ended: false,
            _threads: threads,
        };
        match &running.pursuit {
            Some(pursuit) => {
                *app.peers.following.lock() = Some(pursuit.following.clone());
                gate.follow(pursuit.following.clone());
            }
            None => running.lead(claim, gate).await?,
        }
        running
            .tasks
            .spawn(telemetry::metrics::upkeep(background.clone()));
        running.tasks.spawn(tiering(app.clone(), background.clone()));
        gate.open(app);
        Ok(running)
    }

    /// Begins to do what a writer does.
    async fn lead(&mut self, claim: Option<Claim>, gate: &Gate) -> Result<(), ServerError> {
        let app = &self.app;
        let other = |error: &dyn std::fmt::Display| ServerError::Other(error.to_string());
        if let (Some(claim), Some((store, _))) = (claim, &self.replica) {
            let lease = match &app.config.replica {
                Some(replica) => {
                    let clock = self.doors.clock.clone();
                    Some(LeaseTask::start(&app.config, replica, &self.ledger, &claim, clock).await?)
                }
                None => None,
            };
            self.lease = lease;
            let engine = app.engine.clone();
            let budget = budget(&app.config, &self.ledger);
            let place = store.describe();
            let (shipper, handle) = make_shipper(
                &app.config,
                &engine,
                claim,
                store.clone(),
                budget.clone(),
                app.peers.clone(),
                &self.doors,
            )?;
            let replication = Replication {
                ship: handle.clone(),
                place,
                ledger: self.ledger.clone(),
                prices: app.config.replica_prices,
                budget,
                clock: self.doors.clock.clone(),
                drills: Drills::open(&app.config.data_dir),
            };
            let stop = self.shipping_stop.clone();
            self.shipping = Some(tokio::spawn(async move {
                let end = shipper.run(stop).await;
                if let ShipEnd::Fenced { by } = &end {
                    engine.fence(*by);
                }
                end
            }));
            if app.shipper.set(handle).is_err() || app.replication.set(replication).is_err() {
                return Err(ServerError::Other("the log is shipped already".to_owned()));
            }
        }
        gate.phase("bringing the views up to date");
        app.engine.ready().await.map_err(|error| other(&error))?;
        let buried = app
            .accounts
            .bury_abandoned()
            .await
            .map_err(|error| other(&error))?;
        if buried > 0 {
            tracing::warn!(buried, "interrupted sign-ups were cleaned up");
        }
        let set_right = app
            .accounts
            .set_restored_right()
            .await
            .map_err(|error| other(&error))?;
        if set_right > 0 {
            tracing::warn!(
                repos = set_right,
                "the store was restored to an earlier moment; the repos that this has set back are announced"
            );
        }
        app.imports.give_up_unfinished().map_err(|error| other(&error))?;
        self.tasks.spawn(checkpoints(app.clone(), self.work.clone()));
        self.tasks.spawn(compaction(app.clone(), self.work.clone()));
        if let Some((store, _)) = &self.replica {
            self.tasks
                .spawn(drills::drills(app.clone(), store.clone(), self.work.clone()));
        }
        *app.peers.following.lock() = None;
        gate.lead();
        Ok(())
    }

    /// Returns when the server should stop: with an error if something failed.
    async fn serve(&mut self, gate: &Gate, stop: &CancellationToken) -> Option<ServerError> {
        if let Some(mut pursuit) = self.pursuit.take() {
            let promoted = tokio::select! {
                promoted = follow::until_promoted(&mut pursuit, &self.app, stop) => promoted,
                failure = self.failure() => Err(failure),
            };
            match promoted {
                Ok(None) => return None,
                Err(error) => return Some(error),
                Ok(claim) => {
                    if let Err(error) = self.lead(claim, gate).await {
                        return Some(error);
                    }
                }
            }
        }
        let (app, replica, epoch) = (self.app.clone(), self.replica.clone(), self.app.engine.epoch());
        let asked = async move {
            match replica {
                Some((store, _)) => handover::request(app, store, epoch).await,
                None => std::future::pending().await,
            }
        };
        let request = tokio::select! {
            () = stop.cancelled() => return None,
            failure = self.failure() => return Some(failure),
            request = asked => request,
        };
        self.hand_over(&request, gate, stop).await.err()
    }

    /// Resolves when the log, the views or the shipping has failed.
    async fn failure(&self) -> ServerError {
        let engine = &self.app.engine;
        // Whatever the durability, a server that no longer replicates must not go on as if it did.
        let shipped = async {
            match engine.remote() {
                Some(remote) => remote.wait(Lsn::MAX).await,
                None => std::future::pending().await,
            }
        };
        let failed = tokio::select! {
            failed = engine.applied().wait(Lsn::MAX) => failed,
            failed = engine.local().wait(Lsn::MAX) => failed,
            failed = shipped => failed,
        };
        self.why(failed.err().map(|failed| failed.reason.to_string()))
    }

    /// The failure behind a failed engine, which may be the shipper's.
    fn why(&self, reason: Option<String>) -> ServerError {
        match (
            self.app.engine.health().fenced,
            self.app.shipper.get().map(ShipHandle::state),
        ) {
            (Some(by), _) | (None, Some(ShipState::Fenced { by })) => ServerError::Fenced { by },
            _ => ServerError::Other(format!(
                "the log is closed to writes: {}",
                reason.unwrap_or_default()
            )),
        }
    }

    async fn release_lease(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.release().await;
        }
    }

    async fn stop(
        mut self,
        failure: Option<ServerError>,
        http_stop: CancellationToken,
        http: tokio::task::JoinHandle<()>,
    ) -> Result<(), ServerError> {
        let started = Instant::now();
        let limit = self.app.config.shutdown_timeout;
        let left = || limit.saturating_sub(started.elapsed());
        // Subscribers and background work first: they would hold the listener open.
        self.background.cancel();
        http_stop.cancel();
        if tokio::time::timeout(left().mul_f32(0.4), http).await.is_err() {
            tracing::warn!("some requests were still running and are cut off");
        }
        let mut outcome = failure.map_or(Ok(()), Err);
        if outcome.is_ok() && !self.reign_ended {
            outcome = self.end_in_order(left().mul_f32(0.8)).await;
        }
        // Others need not wait for a writer that says it is gone, whatever the reason.
        self.release_lease().await;
        self.shipping_stop.cancel();
        if let Some(shipping) = self.shipping {
            let _aborted = tokio::time::timeout(Duration::from_secs(1), shipping).await;
        }
        self.firehose.abort();
        self.tasks.close();
        let _late = tokio::time::timeout(left().max(Duration::from_millis(200)), self.tasks.wait()).await;
        tracing::info!(ms = millis(started.elapsed()), "stopped");
        outcome
    }
}

impl Running {
    /// Seals and applies everything, ships the rest and hands the replica over, then closes the log.
    async fn end_in_order(&self, limit: Duration) -> Result<(), ServerError> {
        let started = Instant::now();
        let engine = &self.app.engine;
        // What waits for the replica is applied through the shipper, which therefore still runs.
        let quiet = engine
            .quiesce(Shutdown {
                drain: limit,
                checkpoint: false,
            })
            .await;
        let mut outcome = quiet.map_err(|error| ServerError::Other(error.to_string()));
        outcome = self
            .ship_the_rest(limit.saturating_sub(started.elapsed()))
            .await
            .and(outcome);
        let closed = engine.close().await;
        outcome.and(closed.map_err(|error| ServerError::Other(error.to_string())))
    }

    /// Ends the reign while reads go on: what was appended is applied and shipped, and a hand-over written.
    async fn end_reign(&mut self, limit: Duration) -> Result<(), ServerError> {
        let started = Instant::now();
        let engine = &self.app.engine;
        let applied = tokio::time::timeout(limit, engine.applied().wait(engine.appended().get())).await;
        match applied {
            Ok(Ok(_)) => {}
            Ok(Err(failed)) => return Err(self.why(Some(failed.reason.to_string()))),
            Err(_) => {
                return Err(ServerError::Other(
                    "writes are not durable in time to hand over".to_owned(),
                ));
            }
        }
        self.ship_the_rest(limit.saturating_sub(started.elapsed()))
            .await?;
        self.reign_ended = true;
        Ok(())
    }

    /// Ships everything and ends the reign, if there is a replica.
    async fn ship_the_rest(&self, limit: Duration) -> Result<(), ServerError> {
        let Some(shipper) = self.app.shipper.get() else {
            return Ok(());
        };
        let report = shipper.drain(limit, true).await;
        tracing::info!(
            complete = report.complete,
            handed_over = report.handed_over,
            remote = report.remote.get(),
            "shipped"
        );
        if report.complete {
            return Ok(());
        }
        let error = report.error.unwrap_or_default();
        Err(ServerError::Other(format!(
            "stopped before everything was in the replica ({error}); start again on the same disk to ship the rest"
        )))
    }
}

/// How often what a start asks of the replica is tried again, and the first pause; each further one is twice as long. About fifteen
/// seconds in all: an expired token is renewed in that time, and whoever set a wrong key is told soon.
const START_TRIES: u32 = 5;
const START_PAUSE: Duration = Duration::from_millis(500);

/// Runs a step of the start again when the store refused it in a way that may pass. Every step is safe to repeat.
async fn patiently<T, F>(mut step: impl FnMut() -> F) -> Result<T, ServerError>
where
    F: Future<Output = Result<T, ServerError>>,
{
    let mut pause = START_PAUSE;
    for _ in 0..START_TRIES {
        match step().await {
            Err(error) if may_pass(&error) => {
                tracing::warn!(%error, "the replica's store refused; trying again");
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            outcome => return outcome,
        }
    }
    step().await
}

/// Whether the store is the reason, and may answer otherwise in a moment.
fn may_pass(error: &ServerError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(store) = error.downcast_ref::<StoreError>() {
            return store.is_retryable()
                || matches!(
                    store,
                    StoreError::Denied { .. } | StoreError::Precondition { .. } | StoreError::Other { .. }
                );
        }
        cause = error.source();
    }
    false
}

/// What a start finds out before it opens anything.
enum Beginning {
    /// There is no replica.
    Alone,
    /// The replica is ours.
    Claimed(Box<Started>),
    /// Another server's log is followed.
    Following(Box<Standby>, Option<Lease>),
}

/// Claims the replica, or prepares to follow its writer.
async fn begin(
    config: &Config,
    replica: Option<&(Arc<dyn ReplicaStore>, StartOptions)>,
    gate: &Gate,
) -> Result<Beginning, ServerError> {
    let Some((store, options)) = replica else {
        if config.succession.standby {
            return Err(ServerError::Other(
                "a standby follows a replica: set PDS_REPLICA_URL".to_owned(),
            ));
        }
        return Ok(Beginning::Alone);
    };
    gate.phase("agreeing with the replica");
    let store = &for_purpose(store, Purpose::Start);
    let temp = config.data_dir.join(SHIP_DIR);
    let follow = async |lease| {
        gate.phase("following the writer");
        empty_dir(&temp).map_err(|error| ServerError::io(&temp, error))?;
        let standby = Box::pin(standby::begin(store, options, &temp)).await;
        let standby = standby.map_err(|error| ServerError::Standby(Box::new(error)))?;
        Ok(Beginning::Following(Box::new(standby), lease))
    };
    if config.succession.standby {
        return follow(None).await;
    }
    if !config.succession.handover_timeout.is_zero()
        && let Holder::Another { epoch, .. } = standby::holder(store, options).await.map_err(Box::new)?
        && let Some(lease) = pursuit::writer_of(store, options, epoch, &lease::instance(config)).await?
    {
        tracing::info!(
            epoch = epoch.0,
            at = lease.url,
            "there is a writer, which is asked to hand over"
        );
        return follow(Some(lease)).await;
    }
    Ok(Beginning::Claimed(Box::new(agree(store, options).await?)))
}

/// Resolves on SIGTERM or SIGINT.
pub async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (terminate, interrupt) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    match (terminate, interrupt) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        // Without handlers the signals end the process at once, which the log survives.
        _ => std::future::pending::<()>().await,
    }
}

/// Asks the server on this machine whether it lives.
///
/// # Errors
/// It does not answer 200 within a few seconds.
pub async fn healthcheck() -> Result<(), ServerError> {
    let (config, _) = Config::from_env()?;
    crate::client::ensure_tls_provider();
    let host = if config.bind.is_unspecified() {
        "127.0.0.1".to_owned()
    } else {
        config.bind.to_string()
    };
    let url = format!("http://{host}:{}/_health/live", config.port);
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(4))
        .no_proxy()
        .build()
        .map_err(|error| ServerError::Other(error.to_string()))?;
    let answer = client
        .get(&url)
        .send()
        .await
        .map_err(|error| ServerError::Other(error.to_string()))?;
    if answer.status().is_success() {
        Ok(())
    } else {
        Err(ServerError::Other(format!("{url} answered {}", answer.status())))
    }
}

/// Writes the port in one step, so that whoever waits for the file never reads half a number.
pub(crate) fn write_port_file(path: &Path, port: u16) -> Result<(), ServerError> {
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, port.to_string()).map_err(|error| ServerError::io(&temporary, error))?;
    std::fs::rename(&temporary, path).map_err(|error| ServerError::io(path, error))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
