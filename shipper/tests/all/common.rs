//! A machine: a data directory, a log, a shipper. Killing it loses what a kill loses.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine::clock::{Clock, SeededEntropy, SystemClock, SystemEntropy};
use engine::log::{Draft, Frame, Log, LogConfig, Lsn, Stamp, Watermark};
use engine::storage::{OsStorage, Storage};
use shipper::fence::Claim;
use shipper::restore::{RestoreError, RestoreOptions, Restored, restore};
use shipper::ship::{ShipConfig, ShipEnd, ShipHandle, ShipState, Shipper};
use shipper::start::{StartError, StartOptions, Started, begin};
use shipper::store::ReplicaStore;
use shipper::store::faulty::FaultyStore;
use shipper::store::memory::MemoryStore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const SOON: Duration = Duration::from_secs(30);

pub type Faulty = FaultyStore<MemoryStore>;

pub fn faulty(seed: u64) -> Arc<Faulty> {
    Arc::new(FaultyStore::new(MemoryStore::new(), seed))
}

pub fn as_store(store: &Arc<Faulty>) -> Arc<dyn ReplicaStore> {
    store.clone()
}

pub fn storage() -> Arc<dyn Storage> {
    Arc::new(OsStorage)
}

pub fn start_options(dir: &Path) -> StartOptions {
    StartOptions {
        data_dir: dir.to_owned(),
        storage: storage(),
        clock: Arc::new(SystemClock),
        entropy: Arc::new(SystemEntropy),
        request_timeout: Duration::from_millis(500),
        keep: Vec::new(),
        source: None,
        on_progress: None,
    }
}

pub fn quick() -> ShipConfig {
    ShipConfig {
        request_timeout: Duration::from_millis(200),
        retry_first: Duration::from_millis(1),
        retry_max: Duration::from_millis(20),
        housekeeping_interval: Duration::from_millis(5),
        ..ShipConfig::default()
    }
}

pub struct Machine {
    pub log: Log,
    pub handle: ShipHandle,
    pub started: Facts,
    pub dir: PathBuf,
    task: JoinHandle<ShipEnd>,
    stop: CancellationToken,
}

pub struct Facts {
    pub restored: Option<Restored>,
    pub set_aside: Option<PathBuf>,
    pub claim: shipper::fence::Claim,
}

impl Machine {
    pub async fn start(store: Arc<dyn ReplicaStore>, dir: &Path) -> Result<Machine, StartError> {
        Machine::start_with(store, dir, quick(), 64 << 20, Arc::new(SystemClock)).await
    }

    pub async fn start_with(
        store: Arc<dyn ReplicaStore>,
        dir: &Path,
        config: ShipConfig,
        segment_bytes: u64,
        clock: Arc<dyn Clock>,
    ) -> Result<Machine, StartError> {
        let options = StartOptions {
            clock: clock.clone(),
            ..start_options(dir)
        };
        let Started {
            claim,
            recovered,
            restored,
            set_aside,
            ..
        } = begin(&store, &options).await?;
        let log_config = LogConfig {
            segment_bytes,
            epoch: claim.epoch,
            log_id: Some(claim.log_id),
            lsn_floor: claim.lsn_floor,
            ..LogConfig::default()
        };
        let log = recovered.start(clock.clone(), &log_config)?;
        let started = Facts {
            restored,
            set_aside,
            claim: claim.clone(),
        };
        let machine = Machine::ship_with(store, log, claim, config, dir, clock);
        Ok(Machine { started, ..machine })
    }

    /// Ships a log under a claim.
    pub fn ship(
        store: Arc<dyn ReplicaStore>,
        log: Log,
        claim: Claim,
        config: ShipConfig,
        dir: &Path,
    ) -> Machine {
        Machine::ship_with(store, log, claim, config, dir, Arc::new(SystemClock))
    }

    fn ship_with(
        store: Arc<dyn ReplicaStore>,
        log: Log,
        claim: Claim,
        config: ShipConfig,
        dir: &Path,
        clock: Arc<dyn Clock>,
    ) -> Machine {
        let started = Facts {
            restored: None,
            set_aside: None,
            claim: claim.clone(),
        };
        let (shipper, handle) = Shipper::new(config, store, log.clone(), Watermark::default(), claim, clock);
        let stop = CancellationToken::new();
        let task = tokio::spawn(shipper.run(stop.clone()));
        Machine {
            log,
            handle,
            started,
            dir: dir.to_owned(),
            task,
            stop,
        }
    }

    /// Appends one group; yields its last LSN. Says nothing about durability.
    pub async fn append(&self, group: Vec<Draft>) -> Lsn {
        self.log.append(group).unwrap().await.unwrap().last
    }

    pub async fn acknowledged(&self, lsn: Lsn) {
        tokio::time::timeout(SOON, self.handle.remote().wait(lsn))
            .await
            .expect("in time")
            .expect("acknowledged");
    }

    pub async fn wait_state(&self, what: &str, is_it: impl Fn(&ShipState) -> bool) {
        let deadline = tokio::time::Instant::now() + SOON;
        while !is_it(&self.handle.state()) {
            assert!(
                tokio::time::Instant::now() < deadline,
                "not {what}: {:?}",
                self.handle.state()
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// As `kill -9`: what is in flight may or may not arrive.
    pub async fn kill(self) -> PathBuf {
        if !self.task.is_finished() {
            self.task.abort();
            let _ = self.task.await;
        }
        let log = self.log;
        drop(self.handle);
        tokio::task::spawn_blocking(move || drop(log)).await.unwrap();
        self.dir
    }

    /// How the shipper ended by itself.
    pub async fn ended(&mut self) -> ShipEnd {
        tokio::time::timeout(SOON, &mut self.task)
            .await
            .expect("ends in time")
            .unwrap()
    }

    pub async fn stop(self) -> ShipEnd {
        self.stop.cancel();
        self.task.await.unwrap()
    }
}

/// A group of `frames` frames with recognisable content of about `bytes` each.
pub fn group(tag: u64, frames: usize, bytes: usize) -> Vec<Draft> {
    let random = SeededEntropy::new(tag);
    (0..frames)
        .map(|n| {
            let mut private = vec![0; bytes];
            engine::clock::Entropy::fill(&random, &mut private).unwrap();
            let mut public = format!("{tag}/{n}: ").into_bytes();
            let at = u32::try_from(public.len()).unwrap();
            public.extend([0; 8]);
            Draft {
                kind: 5,
                public,
                stamps: vec![Stamp::Lsn { at: at as _ }],
                private,
            }
        })
        .collect()
}

pub fn frames(log: &Log) -> Vec<Frame> {
    let mut tail = log.tail(Lsn::ZERO);
    let mut all = Vec::new();
    loop {
        let batch = tail.next_batch(Lsn::MAX, 1 << 20).unwrap();
        if batch.is_empty() {
            return all;
        }
        all.extend(batch);
    }
}

/// A frame's LSN, bytes, and place (segment, offset, length).
pub type Seen = (Lsn, Vec<u8>, (Lsn, u64, u32));

/// Content and places of all frames up to `last`.
pub fn image(log: &Log, last: Lsn) -> Vec<Seen> {
    let place = |frame: &Frame| {
        let at = frame.location();
        (at.segment, at.offset, at.len)
    };
    let upto = frames(log).into_iter().filter(|frame| frame.lsn() <= last);
    upto.map(|frame| (frame.lsn(), frame.bytes().to_vec(), place(&frame)))
        .collect()
}

pub async fn restore_to(store: &Arc<dyn ReplicaStore>, dir: &Path) -> Result<Restored, RestoreError> {
    let options = RestoreOptions {
        storage: storage(),
        request_timeout: Duration::from_millis(500),
        with_checkpoint: true,
        lazy: false,
        on_progress: None,
        announce: None,
    };
    restore(store, dir, &options).await
}

pub fn names(store: &Arc<Faulty>, prefix: &str) -> Vec<String> {
    let names = store.inner().names().into_iter().map(|name| name.to_string());
    names.filter(|name| name.starts_with(prefix)).collect()
}

pub async fn eventually(what: &str, is_it: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + SOON;
    while !is_it() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
