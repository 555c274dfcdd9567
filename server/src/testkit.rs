//! A whole server inside a test: the real engine in a temporary directory, a did:plc directory in memory whose moods are
//! scripted, a clock that can be moved, and requests straight into the router.

mod asking;
mod plc;
mod repo;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use engine::blobs::disk::DiskBlobs;
use engine::clock::{Clock, Entropy, SystemClock, SystemEntropy};
use engine::engine::{Durability, EngineError, Shutdown, StartOptions};
use engine::repo::Did;
use engine::storage::OsStorage;
use engine::{Engine, EngineConfig, EnginePrelude};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::App;
use crate::auth::admin::AdminAuth;
use crate::auth::password::Passwords;
use crate::auth::tokens::SessionTokens;
use crate::client::plc::SharedPlc;
use crate::config::Config;
use crate::firehose::{Firehose, FirehoseSettings};
use crate::http::Routes;
use crate::limits::RateLimits;
use crate::proxy::Proxy;
use crate::secrets::KeyWrap;
use crate::service::accounts::{Accounts, Parts};
use crate::service::blobs::Blobs;
use crate::service::core::Core;
use crate::service::identity::{self, Identities};
use crate::service::keys::SigningKeys;
use crate::service::mail::Mailer;
use crate::service::moderation::Moderation;
use crate::service::names::Names;
use crate::service::repos::export::Exports;
use crate::service::repos::import::Imports;
use crate::service::repos::{Limits, Repos};
use crate::service::service_auth::ServiceAuth;

pub use asking::{Answer, NOTE, User, account, basic, bearer, user};
pub use plc::{Mood, ScriptedPlc};
pub use repo::ExportedRepo;

/// How long a write may take in a test before it is answered as unconfirmed.
const WRITE_LIMIT: std::time::Duration = std::time::Duration::from_secs(30);

/// Longest that anything in a test may take.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Password of every account that [`Server::sign_up`] makes.
pub const PASSWORD: &str = "correct horse";
/// Password of the administrator.
pub const ADMIN_PASSWORD: &str = "hunter2hunter2";

/// The real time, shifted.
#[derive(Default)]
pub struct ShiftedClock(AtomicU64);

impl ShiftedClock {
    /// Moves on.
    pub fn advance(&self, by: Duration) {
        let micros = u64::try_from(by.as_micros()).unwrap();
        self.0.fetch_add(micros, Ordering::SeqCst);
    }
}

impl Clock for ShiftedClock {
    fn now_micros(&self) -> u64 {
        SystemClock.now_micros() + self.0.load(Ordering::SeqCst)
    }
}

/// What differs from a plain test server.
pub struct Options {
    /// Settings over the defaults.
    pub vars: Vec<(&'static str, String)>,
    /// How many repos stay in memory.
    pub max_actors: usize,
    /// Bytes that their trees may take.
    pub tree_bytes: usize,
    /// Bounds of the firehose.
    pub firehose: FirehoseSettings,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            vars: Vec::new(),
            max_actors: 1000,
            tree_bytes: 64 << 20,
            firehose: FirehoseSettings {
                max_lag_bytes: 1 << 20,
                stall: Duration::from_secs(10),
                max_subscribers: 1000,
                max_per_address: 1000,
                backfill: Duration::from_secs(24 * 3600),
            },
        }
    }
}

/// A running server.
pub struct Server {
    pub app: Arc<App>,
    pub plc: Arc<ScriptedPlc>,
    pub clock: Arc<ShiftedClock>,
    pub dir: Arc<tempfile::TempDir>,
    /// The accounts' signing keys.
    pub keys: SigningKeys,
    routes: Routes,
    stop: CancellationToken,
    firehose: tokio::task::JoinHandle<Result<(), engine::log::ReadError>>,
    options: Arc<Options>,
}

impl Server {
    /// A plain server.
    pub async fn start() -> Server {
        Server::with(Options::default()).await
    }

    /// A server of its own kind.
    pub async fn with(options: Options) -> Server {
        let clock = Arc::new(ShiftedClock::default());
        let plc = Arc::new(ScriptedPlc::new(clock.clone()));
        let dir = Arc::new(tempfile::tempdir().unwrap());
        Server::open(Arc::new(options), clock, plc, dir).await
    }

    /// Another server of the same network, at `https://<host>`, with its own accounts and handles below it.
    pub async fn beside(&self, host: &str) -> Server {
        let options = Options {
            vars: vec![("PDS_HOSTNAME", host.to_owned())],
            ..Options::default()
        };
        let dir = Arc::new(tempfile::tempdir().unwrap());
        Server::open(Arc::new(options), self.clock.clone(), self.plc.clone(), dir).await
    }

    /// Ends in order and starts on the same directory.
    pub async fn restart(self) -> Server {
        self.restart_after(|_| ()).await
    }

    /// As [`Server::restart`], with something done to the data directory in between.
    pub async fn restart_after(self, change: impl FnOnce(&std::path::Path)) -> Server {
        let engine = self.app.engine.clone();
        self.stop.cancel();
        self.firehose.await.unwrap().unwrap();
        let drain = Shutdown {
            drain: PATIENCE,
            checkpoint: false,
        };
        engine.shutdown(drain).await.unwrap();
        drop((engine, self.routes, self.app, self.keys));
        change(&self.dir.path().join("data"));
        Server::open(self.options, self.clock, self.plc, self.dir).await
    }

    async fn open(
        options: Arc<Options>,
        clock: Arc<ShiftedClock>,
        plc: Arc<ScriptedPlc>,
        dir: Arc<tempfile::TempDir>,
    ) -> Server {
        let config = Arc::new(config(&options, dir.path()));
        let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
        let (data, engine_clock) = (dir.path().join("data"), clock.clone());
        #[expect(
            clippy::disallowed_methods,
            reason = "nobody tells when a lock of the file system is free"
        )]
        let engine = tokio::task::spawn_blocking(move || {
            let deadline = Instant::now() + PATIENCE;
            loop {
                match open_engine(&data, engine_clock.clone()) {
                    Ok(engine) => return engine,
                    // Tasks of the server before still hold the directory for a moment.
                    Err(error) => assert!(Instant::now() < deadline, "{error}"),
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        })
        .await
        .unwrap();
        engine.ready().await.unwrap();
        let core = Core::new(engine, clock.clone(), entropy.clone(), WRITE_LIMIT);
        let shared: SharedPlc = plc.clone();
        let names = Names::new(&config, shared.clone(), clock.clone(), TaskTracker::new()).unwrap();
        let wrap = Arc::new(KeyWrap::from_config(None, Some(&config.plc_rotation_key)).unwrap());
        let keys = SigningKeys::new(core.clone(), wrap.clone());
        let service_auth = ServiceAuth::new(
            core.clone(),
            keys.clone(),
            &config.service_did,
            names.issuer_keys(),
        );
        let limits = Limits {
            tree_bytes: options.tree_bytes,
            actors: options.max_actors,
            waiting_bytes: 16 << 20,
        };
        let repos = Repos::new(core.clone(), keys.clone(), limits, 7);
        let peers = Arc::new(crate::service::succession::Peers::new(&config.jwt_secret));
        let tokens = Arc::new(SessionTokens::new(&config.jwt_secret, &config.service_did));
        let mailer = Arc::new(Mailer::new(&config).unwrap().or_page());
        let accounts = Accounts::new(Parts {
            mailer: mailer.clone(),
            engine: core.clone(),
            config: config.clone(),
            tokens: tokens.clone(),
            passwords: Passwords::new(entropy, 2),
            wrap: wrap.clone(),
            plc: shared.clone(),
            names: names.clone(),
            repos: repos.clone(),
        });
        let identities = Identities::new(identity::Parts {
            core: core.clone(),
            config: config.clone(),
            accounts: accounts.clone(),
            repos: repos.clone(),
            keys: keys.clone(),
            wrap,
            plc: shared,
            names: names.clone(),
        });
        let proxy = Proxy::new(&config, names.dns()).unwrap();
        let stop = CancellationToken::new();
        let store = Arc::new(DiskBlobs::open(dir.path().join("blobs")).unwrap());
        let app = Arc::new(App {
            moderation: Moderation::new(core.clone(), accounts.clone(), repos.clone()),
            mailer,
            limits: RateLimits::new(&config.rate_limits, clock.clone()).unwrap(),
            blobs: Blobs::new(core.clone(), repos.clone(), store, config.blob_upload_limit),
            firehose: Firehose::new(
                core.clone(),
                options.firehose,
                tokio::runtime::Handle::current(),
                stop.clone(),
            ),
            admin: AdminAuth::new(Some(&config.admin_password)),
            bodies: crate::xrpc::room::BodyRoom::new(16 << 20),
            exports: Exports::new(4),
            imports: Imports::new(
                repos.clone(),
                dir.path().to_owned(),
                config.repo_import_limit,
                config.import_disk,
            ),
            engine: core,
            config,
            tokens,
            accounts,
            identities,
            repos,
            names,
            service_auth,
            proxy,
            shipper: std::sync::OnceLock::new(),
            replication: std::sync::OnceLock::new(),
            peers,
            disk: crate::start::DiskUse::default(),
        });
        let firehose = tokio::spawn(app.firehose.clone().run());
        Server {
            routes: Routes::new(app.clone()),
            app,
            plc,
            clock,
            dir,
            keys,
            stop,
            firehose,
            options,
        }
    }

    /// Changes rows of the account database the way an operation of a later version would.
    pub async fn sql(&self, sql: &'static str, did: &Did) {
        let did = did.to_string();
        self.app
            .accounts
            .change(Vec::new(), move |tx| {
                Ok::<_, engine::views::accounts::AccountsError>(tx.execute(sql, [did])?)
            })
            .await
            .unwrap();
    }

    /// One number out of the account database.
    pub async fn count(&self, sql: &'static str) -> i64 {
        self.app
            .engine
            .accounts()
            .read(move |conn| {
                Ok::<_, engine::views::accounts::AccountsError>(conn.query_row(sql, [], |row| row.get(0))?)
            })
            .await
            .unwrap()
    }
}

fn open_engine(data: &std::path::Path, clock: Arc<dyn Clock>) -> Result<Engine, EngineError> {
    let config = EngineConfig::new(data, Durability::Local);
    let prelude = EnginePrelude::recover(config, Arc::new(OsStorage))?;
    let start = StartOptions::local(prelude.last_epoch().next());
    prelude.start(clock, &SystemEntropy, start)
}

fn config(options: &Options, dir: &std::path::Path) -> Config {
    let mut vars: BTreeMap<String, String> = [
        ("PDS_JWT_SECRET", "0123456789abcdef0123"),
        ("PDS_ADMIN_PASSWORD", ADMIN_PASSWORD),
        (
            "PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX",
            "1111111111111111111111111111111111111111111111111111111111111111",
        ),
        ("PDS_INVITE_REQUIRED", "false"),
        ("PDS_DEV_MODE", "true"),
        ("PDS_BLOB_UPLOAD_LIMIT", "100000"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    vars.insert(
        "PDS_DATA_DIRECTORY".to_owned(),
        dir.join("data").display().to_string(),
    );
    vars.extend(
        options
            .vars
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone())),
    );
    let (config, warnings) = Config::from_vars(vars).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    config
}

/// Every file below `dir`.
pub fn files(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}
