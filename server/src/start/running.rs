//! A server that serves: how it comes to that, and how it ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::clock::{SystemClock, SystemEntropy};
use engine::engine::Shutdown;
use engine::log::Lsn;
use engine::storage::OsStorage;
use shipper::fence::Claim;
use shipper::ledger::Ledger;
use shipper::ship::{ShipEnd, ShipHandle, ShipState};
use shipper::start::StartOptions;
use shipper::store::counted::Purpose;
use shipper::store::{ReplicaStore, for_purpose};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::beginning::{begin, patiently};
use super::checkpoints::checkpoints;
use super::compaction::compaction;
use super::compose::{
    Background, budget, compose, make_shipper, open_engine, open_store, source, start_options,
};
use super::deletions::deletions;
use super::follow::Followed;
use super::identities::{PACE, identities};
use super::lease::LeaseTask;
use super::pursuit::Pursuit;
use super::threads::FirehoseThreads;
use super::tiering::tiering;
use super::{Doors, ServerError, drills, follow, handover, mail, millis};
use crate::app::App;
use crate::config::Config;
use crate::gate::Gate;
use crate::relays;
use crate::service::core::Core;
use crate::service::drills::Drills;
use crate::service::mail::Mailer;
use crate::service::replication::Replication;
use crate::telemetry;

/// A server that serves, with everything that must be ended.
pub(super) struct Running {
    pub(super) app: Arc<App>,
    doors: Doors,
    tasks: TaskTracker,
    /// Ends subscriptions and everything else that runs beside the requests.
    pub(super) background: CancellationToken,
    /// Ends what only a writer does.
    pub(super) work: CancellationToken,
    pub(super) replica: Option<(Arc<dyn ReplicaStore>, StartOptions)>,
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

/// How serving ended.
pub(super) enum Served {
    /// As it should, or with an error if something failed.
    Ended(Option<ServerError>),
    /// This server should begin anew from the replica, as its writer or as what it was.
    Anew { lead: bool },
}

impl Running {
    /// Comes to serve: follows if the settings say so, unless it is to `lead`.
    pub(super) async fn start(
        config: Arc<Config>,
        mailer: Arc<Mailer>,
        gate: &Gate,
        lead: bool,
    ) -> Result<Running, ServerError> {
        let doors = Doors {
            clock: Arc::new(SystemClock),
            entropy: Arc::new(SystemEntropy),
            storage: Arc::new(OsStorage),
            mailer,
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
        if let Some(mut taking) = pursuit.take_if(|_| lead || !config.succession.standby) {
            gate.phase("taking over from the writer");
            claim = taking.take_over().await?;
            if claim.is_none() {
                return Err(ServerError::Other(
                    "the writer compacted the log while this server took it from the replica; start again"
                        .to_owned(),
                ));
            }
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
        let resumed = app.identities.resume().await.map_err(|error| other(&error))?;
        if resumed.settled > 0 {
            tracing::warn!(
                settled = resumed.settled,
                "interrupted changes of identities were looked at"
            );
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
        self.tasks.spawn(deletions(app.clone(), self.work.clone()));
        self.tasks
            .spawn(identities(app.identities.clone(), PACE, self.work.clone()));
        self.tasks.spawn(mail::mail(app.clone(), self.work.clone()));
        self.tasks
            .spawn(relays::ask_to_crawl(app.clone(), self.work.clone()));
        if let Some((store, _)) = &self.replica {
            self.tasks
                .spawn(drills::drills(app.clone(), store.clone(), self.work.clone()));
        }
        *app.peers.following.lock() = None;
        gate.lead();
        Ok(())
    }

    /// Returns when the server should stop, or begin anew.
    pub(super) async fn serve(&mut self, gate: &Gate, stop: &CancellationToken) -> Served {
        if let Some(mut pursuit) = self.pursuit.take() {
            let promoted = tokio::select! {
                promoted = follow::until_promoted(&mut pursuit, &self.app, stop) => promoted,
                failure = self.failure() => Err(failure),
            };
            match promoted {
                Ok(Followed::Stopped) => return Served::Ended(None),
                Ok(Followed::Anew { promote }) => return Served::Anew { lead: promote },
                Err(error) => return Served::Ended(Some(error)),
                Ok(Followed::Promoted(claim)) => {
                    if let Err(error) = self.lead(Some(*claim), gate).await {
                        return Served::Ended(Some(error));
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
            () = stop.cancelled() => return Served::Ended(None),
            failure = self.failure() => return Served::Ended(Some(failure)),
            request = asked => request,
        };
        Served::Ended(self.hand_over(&request, gate, stop).await.err())
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

    pub(super) async fn release_lease(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.release().await;
        }
    }

    pub(super) async fn stop(
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
    pub(super) async fn end_reign(&mut self, limit: Duration) -> Result<(), ServerError> {
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
