//! The writer's lease, kept by a task and a connection of its own, and the watchdog over that task.
//!
//! A process whose tasks do not run any more (a deadlock, a runtime that is stuck) neither answers nor hands over, and a platform
//! may not notice. The watchdog is a thread that counts seconds in which the task did not come round; it counts them itself, so
//! that a machine that was suspended is not taken for one that is stuck.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use engine::clock::Clock;
use shipper::fence::Claim;
use shipper::lease::{Keeper, LeaseEnd, Writer};
use shipper::ledger::Ledger;
use tokio_util::sync::CancellationToken;

use super::ServerError;
use super::compose::open_store;
use crate::config::{Config, Replica};

/// Seconds without a turn of the task after which the process ends.
const STUCK_SECONDS: u32 = 60;
/// The exit code of a process that was stuck.
const EXIT_STUCK: i32 = 4;
/// How long giving the lease back may take.
const RELEASE_LIMIT: Duration = Duration::from_secs(3);

/// The machine's name and the data directory, which two processes cannot have at the same time.
pub(super) fn instance(config: &Config) -> String {
    let machine = rustix::system::uname();
    let machine = machine.nodename().to_string_lossy();
    let dir = config
        .data_dir
        .canonicalize()
        .unwrap_or_else(|_| config.data_dir.clone());
    format!("{machine}:{}", dir.display())
}

/// A lease that is kept.
pub(super) struct LeaseTask {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl LeaseTask {
    /// Begins to keep the lease of a claim.
    pub(super) async fn start(
        config: &Config,
        replica: &Replica,
        ledger: &Arc<Ledger>,
        claim: &Claim,
        clock: Arc<dyn Clock>,
    ) -> Result<LeaseTask, ServerError> {
        let store = open_store(replica, config, ledger).await?;
        let settings = &config.succession;
        let keeper = Keeper::new(
            store,
            clock,
            Writer {
                id: claim.writer_id.to_string(),
                instance: instance(config),
                epoch: claim.epoch,
                url: config.peer_url(),
            },
            settings.lease,
        );
        let beats = Arc::new(AtomicU64::new(0));
        let watched = beats.clone();
        let (alive, ended) = channel::<()>();
        std::thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || {
                let mut before = (watched.load(Ordering::Relaxed), 0);
                while ended.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                    let beat = watched.load(Ordering::Relaxed);
                    before = if beat == before.0 {
                        (beat, before.1 + 1)
                    } else {
                        (beat, 0)
                    };
                    if before.1 >= STUCK_SECONDS {
                        tracing::error!(
                            "this process has not run its tasks for {STUCK_SECONDS} s and ends itself"
                        );
                        #[expect(
                            clippy::disallowed_methods,
                            reason = "what would drain and ship does not run any more"
                        )]
                        std::process::exit(EXIT_STUCK);
                    }
                }
            })
            .map_err(|error| ServerError::io("the watchdog's thread", error))?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let beat = move || {
                beats.fetch_add(1, Ordering::Relaxed);
            };
            if let LeaseEnd::Superseded { by } = keeper.keep(stopped, beat).await {
                tracing::warn!(epoch = by.0, "another server has the lease");
            }
            // The watchdog watches this task and no other.
            drop(alive);
        });
        Ok(LeaseTask { stop, task })
    }

    /// Gives the lease back.
    pub(super) async fn release(self) {
        self.stop.cancel();
        if tokio::time::timeout(RELEASE_LIMIT, self.task).await.is_err() {
            tracing::debug!("the lease is not given back; it runs out by itself");
        }
    }
}
