//! The steps of a start: reach the replica, agree with it, open the engine, put the services together.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use engine::blobs::BlobStore;
use engine::blobs::disk::DiskBlobs;
use engine::engine::Durability as EngineDurability;
use engine::log::SegmentSource;
use engine::{Engine, EngineConfig, EnginePrelude};
use shipper::blobs::ReplicaBlobs;
use shipper::fence::Claim;
use shipper::follow::Tracker;
use shipper::lease::Lease;
use shipper::ledger::Ledger;
use shipper::pace::RequestBudget;
use shipper::retention::Protect;
use shipper::ship::{ShipConfig, ShipHandle, Shipper};
use shipper::start::{StartOptions, Started, begin};
use shipper::store::azure::{AzureAuth, AzureConfig, AzureStore};
use shipper::store::counted::{CountedStore, Purpose};
use shipper::store::delayed::DelayedStore;
use shipper::store::directory::DirectoryStore;
use shipper::store::s3::{S3Config, S3Store};
use shipper::store::{ReplicaStore, RetryPolicy, for_purpose, retry};
use shipper::tier::ReplicaSource;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::beginning::Beginning;
use super::{Doors, ServerError, millis};
use crate::app::App;
use crate::auth::admin::AdminAuth;
use crate::auth::password::Passwords;
use crate::auth::tokens::SessionTokens;
use crate::client::plc::{HttpPlc, SharedPlc};
use crate::config::{AzureAuthSettings, AzureSettings, BlobPlace, Config, Durability, Replica};
use crate::firehose::{Firehose, FirehoseSettings};
use crate::gate::Gate;
use crate::limits::RateLimits;
use crate::proxy::Proxy;
use crate::secrets::KeyWrap;
use crate::service::accounts::{Accounts, Parts};
use crate::service::blobs::Blobs;
use crate::service::core::Core;
use crate::service::identity::{self, Identities};
use crate::service::keys::SigningKeys;
use crate::service::moderation::Moderation;
use crate::service::names::Names;
use crate::service::repos::export::Exports;
use crate::service::repos::import::Imports;
use crate::service::repos::{Limits, Repos};
use crate::service::service_auth::ServiceAuth;
use crate::service::succession::Peers;
use crate::xrpc::room::BodyRoom;

/// In the data directory: what is on its way to or from the replica. Of no use after a crash.
pub(super) const SHIP_DIR: &str = "ship-tmp";

/// A size of the memory plan as the machine counts; what does not fit is as much as there is.
fn bytes(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

/// How far a budget of requests may move uploads apart, while a write waits for each, and while none does.
const WIDEST_REMOTE: Duration = Duration::from_secs(1);
const WIDEST_LOCAL: Duration = Duration::from_secs(10);

/// The budget of requests, if there is one.
pub(super) fn budget(config: &Config, ledger: &Arc<Ledger>) -> Option<Arc<RequestBudget>> {
    let widest = match config.durability {
        Durability::Local => WIDEST_LOCAL,
        Durability::Remote => WIDEST_REMOTE,
    };
    config
        .replica_monthly_requests
        .map(|monthly| Arc::new(RequestBudget::new(ledger.clone(), monthly, widest)))
}

/// How many times the limit of a request the replica may take to answer at a start.
const REACHING_TRIES: u32 = 3;

/// Opens the replica store and makes sure that its container is there. What it is asked from here on is counted in `ledger`.
pub(super) async fn open_store(
    replica: &Replica,
    config: &Config,
    ledger: &Arc<Ledger>,
) -> Result<Arc<dyn ReplicaStore>, ServerError> {
    let (timeout, latency) = (config.replica_timeout, config.replica_added_latency);
    // A store that is busy for a moment ends no start.
    let patience = RetryPolicy::within(timeout * REACHING_TRIES);
    let store: Arc<dyn ReplicaStore> = match replica {
        Replica::Directory(dir) => Arc::new(DirectoryStore::open(dir)?),
        Replica::Azure(settings) => {
            let store = AzureStore::new(&azure_config(settings, timeout))?;
            retry(&patience, || store.ensure_container()).await?;
            Arc::new(store)
        }
        Replica::S3(settings) => {
            let settings = S3Config {
                request_timeout: timeout,
                ..settings.clone()
            };
            Arc::new(S3Store::new(&settings)?)
        }
    };
    let store = if latency.is_zero() {
        store
    } else {
        Arc::new(DelayedStore::new(store, latency))
    };
    tracing::info!(store = store.describe(), "replica");
    let store: Arc<dyn ReplicaStore> = Arc::new(CountedStore::new(store, ledger.clone()));
    retry(&patience, || store.prove()).await?;
    Ok(store)
}

fn azure_config(settings: &AzureSettings, timeout: Duration) -> AzureConfig {
    let auth = match &settings.auth {
        AzureAuthSettings::ManagedIdentity(client_id) => AzureAuth::ManagedIdentity {
            client_id: client_id.clone(),
        },
        AzureAuthSettings::WorkloadIdentity => AzureAuth::WorkloadIdentity,
        AzureAuthSettings::Sas(sas) => AzureAuth::Sas(sas.expose().clone().into()),
        AzureAuthSettings::SharedKey { account, key } => AzureAuth::SharedKey {
            account: account.clone(),
            key: key.expose().clone().into(),
        },
    };
    let mut config =
        AzureConfig::new(&settings.service_url, &settings.container, auth).with_prefix(&settings.prefix);
    config.api_version.clone_from(&settings.api_version);
    config.request_timeout = timeout;
    config
}

/// Where segments are read from that are not on the disk. It has a store of its own, so that its connections are served by its
/// threads alone.
pub(super) async fn source(
    config: &Config,
    replica: &Replica,
    ledger: &Arc<Ledger>,
) -> Result<Arc<dyn SegmentSource>, ServerError> {
    let store = open_store(replica, config, ledger).await?;
    let source = ReplicaSource::new(for_purpose(&store, Purpose::Tier), config.replica_timeout)
        .map_err(|error| ServerError::io("the threads that read the replica", error))?;
    Ok(Arc::new(source))
}

/// What the shipper's part of a start needs.
pub(super) fn start_options(config: &Config, doors: &Doors, source: Arc<dyn SegmentSource>) -> StartOptions {
    let keep = match &config.blobs {
        BlobPlace::Disk(dir) => dir
            .strip_prefix(&config.data_dir)
            .ok()
            .and_then(|below| below.components().next())
            .map(|first| first.as_os_str().to_string_lossy().into_owned()),
        BlobPlace::Replica | BlobPlace::S3(_) => None,
    };
    StartOptions {
        data_dir: config.data_dir.clone(),
        storage: doors.storage.clone(),
        clock: doors.clock.clone(),
        entropy: doors.entropy.clone(),
        request_timeout: config.replica_timeout,
        keep: keep.into_iter().collect(),
        source: Some(source),
        on_progress: None,
    }
}

/// Looks at the replica and the local log, claims the chain and restores what is missing here.
pub(super) async fn agree(
    store: &Arc<dyn ReplicaStore>,
    options: &StartOptions,
) -> Result<Started, ServerError> {
    let started = Instant::now();
    let store = for_purpose(store, Purpose::Start);
    let agreed = Box::pin(begin(&store, options)).await.map_err(Box::new)?;
    if let Some(restored) = &agreed.restored {
        let timings = restored.timings;
        tracing::info!(
            manifest_ms = millis(timings.manifest),
            checkpoint_ms = millis(timings.checkpoint),
            segments_ms = millis(timings.segments),
            chunks_ms = millis(timings.chunks),
            away = restored.away,
            away_bytes = restored.away_bytes,
            checkpoint = restored.checkpoint.as_ref().map(|(_, lsn)| lsn.get()),
            "restored from the replica"
        );
    }
    tracing::info!(
        decision = ?agreed.decision,
        epoch = agreed.claim.epoch.0,
        remote = agreed.claim.before.last_lsn.get(),
        ms = millis(started.elapsed()),
        "the replica is ours"
    );
    Ok(agreed)
}

/// An open engine, and what belongs to it.
pub(super) struct Opened {
    pub(super) engine: Engine,
    /// Of the replica, if there is one and it is ours.
    pub(super) claim: Option<Claim>,
    /// Where the writer that is followed goes on, and what its lease says.
    pub(super) followed: Option<(Tracker, Option<Lease>)>,
}

/// Opens log and views: under the claim, for ourselves without a replica, or to follow.
pub(super) async fn open_engine(
    config: &Config,
    beginning: Beginning,
    doors: &Doors,
    gate: &Gate,
) -> Result<Opened, ServerError> {
    let durability = match config.durability {
        Durability::Local => EngineDurability::Local,
        Durability::Remote => EngineDurability::Remote,
    };
    let mut engine_config = EngineConfig::new(&config.data_dir, durability);
    engine_config.log.segment_bytes = config.log_segment_bytes;
    engine_config.log.queue_bytes = bytes(config.memory.log_queue);
    engine_config.log.ring_bytes = bytes(config.memory.log_ring);
    engine_config.log.mapped_bytes = config.memory.mapped_log;
    engine_config.index_cache_bytes = bytes(config.memory.index_cache);
    engine_config.backlog_bytes_max = config.unshipped_bytes;
    let (claim, recovered, followed, restored) = match beginning {
        Beginning::Alone => (None, None, None, None),
        Beginning::Claimed(started) => {
            let recovered = Some(started.recovered);
            (Some(started.claim), recovered, None, started.restored)
        }
        Beginning::Following(standby, lease) => {
            let recovered = Some(standby.recovered);
            (None, recovered, Some((standby.tracker, lease)), standby.restored)
        }
    };
    let fetched = restored.and_then(|restored| restored.sound);
    let (clock, entropy, storage) = (doors.clock.clone(), doors.entropy.clone(), doors.storage.clone());
    let options = claim.as_ref().map(|claim| {
        (
            claim.epoch,
            claim.lsn_floor,
            claim.log_id,
            claim.replica.end.last_lsn,
        )
    });
    let follow = followed.as_ref().map(|(tracker, _)| tracker.end().log_id);
    let progress = gate.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let prelude = match recovered {
            Some(recovered) => EnginePrelude::of(engine_config, recovered),
            None => {
                let prelude = EnginePrelude::recover(engine_config, storage)?;
                if let Some(away) = prelude.reader().away().first() {
                    return Err(ServerError::Other(format!(
                        "segment {} is not in the data directory but in its replica; name the replica in PDS_REPLICA_URL",
                        away.info.base.hex()
                    )));
                }
                prelude
            }
        };
        if let Some(cut) = prelude.cut() {
            tracing::warn!(?cut, "the log's tail was torn by a crash and is cut");
        }
        let mut start = engine::engine::StartOptions::local(prelude.last_epoch().next());
        if let Some((epoch, lsn_floor, log_id, remote)) = options {
            start.epoch = epoch;
            start.lsn_floor = lsn_floor;
            start.log_id = Some(log_id);
            start.remote = Some(remote);
        }
        if let Some(log_id) = follow {
            start.follow = true;
            start.log_id = Some(log_id);
            start.remote = Some(prelude.last_lsn());
        }
        start.fetched = fetched;
        start.on_replay = Box::new(move |replay| progress.replaying(&replay));
        Ok(prelude.start(clock, &*entropy, start)?)
    });
    let engine = opened
        .await
        .map_err(|error| ServerError::Other(error.to_string()))??;
    Ok(Opened {
        engine,
        claim,
        followed,
    })
}

/// Makes the shipper of a claimed replica.
pub(super) fn make_shipper(
    config: &Config,
    engine: &Engine,
    claim: Claim,
    store: Arc<dyn ReplicaStore>,
    budget: Option<Arc<RequestBudget>>,
    peers: Arc<Peers>,
    doors: &Doors,
) -> Result<(Shipper, ShipHandle), ServerError> {
    let Some(remote) = engine.remote().cloned() else {
        return Err(ServerError::Other(
            "the engine knows of no replica; this is a mistake in this program".to_owned(),
        ));
    };
    let ship_dir = config.data_dir.join(SHIP_DIR);
    empty_dir(&ship_dir).map_err(|error| ServerError::io(&ship_dir, error))?;
    let ship_config = ShipConfig {
        in_flight: config.replica_in_flight,
        chunk_bytes: config.memory.chunk_bytes(config.replica_in_flight),
        request_timeout: config.replica_timeout,
        min_interval: (config.durability == Durability::Local && !config.replica_min_interval.is_zero())
            .then_some(config.replica_min_interval),
        budget,
        temp_dir: ship_dir,
        pitr_window: config.pitr_window,
        ageing: config.replica_ageing,
        protect: Protect::new(move || peers.oldest_position()),
        ..ShipConfig::default()
    };
    Ok(Shipper::new(
        ship_config,
        store,
        engine.log().clone(),
        remote,
        claim,
        doors.clock.clone(),
    ))
}

/// Makes a directory, or removes what a crash has left in it.
pub(super) fn empty_dir(dir: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::create_dir_all(dir)
}

/// What runs beside the requests.
pub(super) struct Background {
    /// Tasks that the end of the server waits for.
    pub(super) tasks: TaskTracker,
    /// Tells them, and subscribers, to end.
    pub(super) stop: CancellationToken,
    /// The threads of the firehose.
    pub(super) firehose: Handle,
}

/// Puts the services together.
pub(super) async fn compose(
    config: Arc<Config>,
    core: Core,
    store: Option<Arc<dyn ReplicaStore>>,
    doors: &Doors,
    background: &Background,
) -> Result<Arc<App>, ServerError> {
    let other = |error: &dyn std::fmt::Display| ServerError::Other(error.to_string());
    let wrap = KeyWrap::from_config(config.key_encryption_key.as_ref(), Some(&config.plc_rotation_key))
        .map_err(|error| other(&error))?;
    let plc: SharedPlc = Arc::new(
        HttpPlc::new(
            &config.plc_url,
            config.resolver_timeout.max(Duration::from_secs(5)),
        )
        .map_err(|e| other(&e))?,
    );
    let names = Names::new(
        &config,
        plc.clone(),
        doors.clock.clone(),
        background.tasks.clone(),
    )
    .map_err(|e| other(&e))?;
    let proxy = Proxy::new(&config, names.dns()).map_err(|e| other(&e))?;
    let wrap = Arc::new(wrap);
    let keys = SigningKeys::new(core.clone(), wrap.clone());
    let service_auth = ServiceAuth::new(
        core.clone(),
        keys.clone(),
        &config.service_did,
        names.issuer_keys(),
    );
    let mut clock_id = [0u8; 1];
    doors
        .entropy
        .fill(&mut clock_id)
        .map_err(|error| ServerError::io("randomness", error))?;
    let repos = Repos::new(
        core.clone(),
        keys.clone(),
        Limits::new(bytes(config.memory.trees), bytes(config.memory.bodies)),
        u16::from(clock_id[0] % 32),
    );
    let peers = Arc::new(Peers::new(&config.jwt_secret));
    let tokens = Arc::new(SessionTokens::new(&config.jwt_secret, &config.service_did));
    let blob_store: Arc<dyn BlobStore> = match (&config.blobs, store) {
        (BlobPlace::S3(settings), _) => {
            let bucket = Arc::new(S3Store::new(settings)?);
            // What is wrong with it is better known now than at the first upload.
            bucket.list("blobs/", None, 1).await?;
            tracing::info!(store = bucket.describe(), "media blobs");
            let scratch = config.data_dir.join("uploads");
            Arc::new(ReplicaBlobs::open(bucket, scratch).map_err(|error| other(&error))?)
        }
        (BlobPlace::Replica, Some(store)) => {
            let scratch = config.data_dir.join("uploads");
            Arc::new(ReplicaBlobs::open(store, scratch).map_err(|error| other(&error))?)
        }
        (BlobPlace::Replica, None) => {
            return Err(ServerError::Other(
                "media blobs beside the log need a replica".to_owned(),
            ));
        }
        (BlobPlace::Disk(dir), _) => {
            let blobs = DiskBlobs::open(dir).map_err(|error| other(&error))?;
            // Nothing is being uploaded yet: these are what a crash has left.
            let swept = blobs.sweep_temporary(Duration::ZERO).await;
            if let Err(error) = swept {
                tracing::warn!(%error, "unfinished uploads of before are left");
            }
            Arc::new(blobs)
        }
    };
    let accounts = Accounts::new(Parts {
        engine: core.clone(),
        config: config.clone(),
        tokens: tokens.clone(),
        passwords: Passwords::new(doors.entropy.clone(), config.memory.hashes_at_once()),
        wrap: wrap.clone(),
        plc: plc.clone(),
        names: names.clone(),
        repos: repos.clone(),
        mailer: doors.mailer.clone(),
    });
    let identities = Identities::new(identity::Parts {
        core: core.clone(),
        config: config.clone(),
        accounts: accounts.clone(),
        repos: repos.clone(),
        keys,
        wrap,
        plc,
        names: names.clone(),
    });
    let firehose_settings = FirehoseSettings {
        max_lag_bytes: bytes(config.memory.firehose_ring),
        stall: config.firehose_stall,
        max_subscribers: config.firehose_max_subscribers,
        max_per_address: config.firehose_max_per_address,
        backfill: config.backfill_limit,
    };
    Ok(Arc::new(App {
        moderation: Moderation::new(core.clone(), accounts.clone(), repos.clone()),
        blobs: Blobs::new(core.clone(), repos.clone(), blob_store, config.blob_upload_limit),
        firehose: Firehose::new(
            core.clone(),
            firehose_settings,
            background.firehose.clone(),
            background.stop.clone(),
        ),
        admin: AdminAuth::new(Some(&config.admin_password)),
        bodies: BodyRoom::new(bytes(config.memory.bodies)),
        exports: Exports::new(config.memory.exports_at_once()),
        imports: Imports::new(
            repos.clone(),
            config.data_dir.clone(),
            config.repo_import_limit,
            config.import_disk,
        ),
        mailer: doors.mailer.clone(),
        limits: RateLimits::new(&config.rate_limits, doors.clock.clone()).map_err(|error| other(&error))?,
        engine: core,
        config,
        tokens,
        accounts,
        identities,
        repos,
        names,
        service_auth,
        proxy,
        shipper: OnceLock::new(),
        replication: OnceLock::new(),
        peers,
        disk: super::DiskUse::default(),
    }))
}
