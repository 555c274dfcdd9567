//! A log that is shipped to a replica in a directory, as a server does it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::clock::{SeededEntropy, SystemClock};
use engine::engine::{Durability, Engine, EnginePrelude, StartOptions};
use engine::storage::OsStorage;
use shipper::ship::{ShipConfig, ShipEnd, ShipHandle, Shipper};
use shipper::start::{self, begin};
use shipper::store::ReplicaStore;
use shipper::store::directory::DirectoryStore;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::fixture::*;

pub struct Running {
    pub dir: tempfile::TempDir,
    pub remote: PathBuf,
    pub store: Arc<dyn ReplicaStore>,
    pub engine: Engine,
    pub handle: ShipHandle,
    pub runtime: Runtime,
    task: JoinHandle<ShipEnd>,
}

/// Waits, but not for ever.
pub fn until(what: &str, is_it: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_it() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}

impl Running {
    /// On an empty replica that keeps what is displaced for `window`.
    pub fn start(window: Duration) -> Running {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        Running::on(dir, data, window).unwrap()
    }

    /// Of the log in `data`, on the replica in `dir`.
    pub fn on(dir: tempfile::TempDir, data: PathBuf, window: Duration) -> Result<Running, start::StartError> {
        let remote = dir.path().join("replica");
        let store: Arc<dyn ReplicaStore> = Arc::new(DirectoryStore::open(&remote).unwrap());
        let options = start::StartOptions {
            data_dir: data.clone(),
            storage: Arc::new(OsStorage),
            clock: Arc::new(SystemClock),
            entropy: Arc::new(SeededEntropy::new(2)),
            request_timeout: Duration::from_secs(10),
            keep: Vec::new(),
            source: None,
            on_progress: None,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let agreed = runtime.block_on(begin(&store, &options))?;
        let claim = agreed.claim;
        let prelude = EnginePrelude::of(config(&data, Durability::Remote), agreed.recovered);
        let mut how = StartOptions::local(claim.epoch);
        how.lsn_floor = claim.lsn_floor;
        how.log_id = Some(claim.log_id);
        how.remote = Some(claim.replica.end.last_lsn);
        how.fetched = agreed.restored.and_then(|restored| restored.sound);
        let engine = prelude
            .start(Arc::new(SystemClock), &SeededEntropy::new(1), how)
            .unwrap();
        let ship_config = ShipConfig {
            housekeeping_interval: Duration::from_millis(20),
            temp_dir: dir.path().to_owned(),
            pitr_window: window,
            ..ShipConfig::default()
        };
        let watermark = engine.remote().unwrap().clone();
        let (log, clock) = (engine.log().clone(), Arc::new(SystemClock));
        let (shipper, handle) = Shipper::new(ship_config, store.clone(), log, watermark, claim, clock);
        let task = runtime.spawn(shipper.run(CancellationToken::new()));
        wait(engine.ready()).unwrap();
        Ok(Running {
            dir,
            remote,
            store,
            engine,
            handle,
            runtime,
            task,
        })
    }

    pub fn url(&self) -> String {
        format!("file://{}", self.remote.display())
    }

    /// Ships a checkpoint of now.
    pub fn checkpoint(&self) {
        self.runtime.block_on(async {
            let checkpoint = self.engine.checkpoint().await.unwrap();
            self.handle
                .publish_checkpoint(checkpoint.dir.clone(), checkpoint.lsn())
                .await
                .unwrap();
        });
    }

    /// Compacts all that there is, and waits until the replica has followed.
    pub fn compact(&self) {
        wait(self.engine.log().seal_now()).unwrap();
        let end = self.engine.appended().get();
        until("covered", || self.handle.covered() >= end);
        let options = engine::compact::CompactOptions {
            segment_bytes: 24 << 10,
            ..engine::compact::CompactOptions::default()
        };
        self.runtime.block_on(self.engine.compact(end, options)).unwrap();
        let first = self.engine.segments()[0].base.get();
        until("the replica follows", || {
            let state = shipper::fence::survey(&self.store, DEADLINE);
            let state = self.runtime.block_on(state).unwrap().unwrap();
            state.manifest.segments[0].base == first
        });
        wait(self.engine.end_compaction(Duration::ZERO)).unwrap();
    }

    /// Ends it as a server that is asked to: everything is shipped, and handed over.
    pub fn stop(self) -> (tempfile::TempDir, PathBuf) {
        let report = self.runtime.block_on(self.handle.drain(DEADLINE, true));
        assert!(report.complete, "{report:?}");
        self.runtime.block_on(self.task).unwrap();
        drop(self.engine);
        (self.dir, self.remote)
    }
}
