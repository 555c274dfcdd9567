//! The store of a replica as it was, in a temporary directory, for those who only look.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use engine::clock::{SystemClock, SystemEntropy};
use engine::engine::{Durability, Engine, EngineConfig, EnginePrelude, StartOptions};
use engine::log::{Epoch, LogId, Lsn};
use engine::storage::OsStorage;
use shipper::readers::Announce;
use shipper::restore::{RestoreOptions, restore_history};
use shipper::store::ReplicaStore;
use tokio::runtime::Runtime;

use super::transplant::transplant;
use super::{REQUEST_TIMEOUT, runtime};

/// Memory for pages of each index.
const INDEX_CACHE_BYTES: usize = 64 << 20;

/// A temporary directory below `dir`.
pub fn temporary(dir: &Path) -> anyhow::Result<tempfile::TempDir> {
    let temp = tempfile::Builder::new().prefix("pds-past-").tempdir_in(dir);
    temp.with_context(|| format!("making a temporary directory in {}", dir.display()))
}

/// Fetches the log that tells the state at `cut` into `to`; without one, all history that there is.
pub fn fetch(store: &Arc<dyn ReplicaStore>, to: &Path, cut: Option<Lsn>) -> anyhow::Result<()> {
    let options = RestoreOptions {
        storage: Arc::new(OsStorage),
        request_timeout: REQUEST_TIMEOUT,
        with_checkpoint: false,
        lazy: false,
        on_progress: None,
        announce: Some(Announce::new(Arc::new(SystemClock))),
    };
    let restored = runtime()?.block_on(restore_history(store, to, cut, &options))?;
    for warning in restored.warnings {
        eprintln!("note: {warning}");
    }
    Ok(())
}

/// The store as of `cut`, folded below `temp`.
pub fn fold(
    store: &Arc<dyn ReplicaStore>,
    runtime: &Runtime,
    temp: &Path,
    cut: Lsn,
) -> anyhow::Result<Engine> {
    let (whole, to) = (temp.join("whole"), temp.join("cut"));
    fetch(store, &whole, Some(cut))?;
    let log_id = LogId::random(&SystemEntropy).context("choosing a log's id")?;
    transplant(&whole, &to, cut, log_id)?;
    std::fs::remove_dir_all(&whole).context("removing a temporary directory")?;
    open(runtime, &to, Epoch::ZERO, Lsn::ZERO)
}

/// Opens the log in `dir` and folds it. New entries are of a reign above `epoch` and lie above `floor`.
pub fn open(runtime: &Runtime, dir: &Path, epoch: Epoch, floor: Lsn) -> anyhow::Result<Engine> {
    let config = EngineConfig {
        index_cache_bytes: INDEX_CACHE_BYTES,
        ..EngineConfig::new(dir, Durability::Local)
    };
    let prelude = EnginePrelude::recover(config, Arc::new(OsStorage))?;
    let mut options = StartOptions::local(prelude.last_epoch().max(epoch).next());
    options.lsn_floor = floor;
    let _inside = runtime.enter();
    let engine = prelude.start(Arc::new(SystemClock), &SystemEntropy, options)?;
    runtime.block_on(engine.ready())?;
    Ok(engine)
}
