//! A whole server inside a test: the real engine in a temporary directory, a did:plc directory in memory whose moods are
//! scripted, a clock that can be moved, and requests straight into the router.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use engine::blobs::disk::DiskBlobs;
use engine::clock::{Clock, Entropy, SystemClock, SystemEntropy};
use engine::engine::{Durability, EngineError, Shutdown, StartOptions};
use engine::repo::car::{CarLimits, CarSlice};
use engine::repo::commit::Commit;
use engine::repo::mst::{Tree, WalkItem};
use engine::repo::{Cid, Did};
use engine::storage::OsStorage;
use engine::{Engine, EngineConfig, EnginePrelude};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::App;
use crate::auth::admin::AdminAuth;
use crate::auth::password::Passwords;
use crate::auth::tokens::SessionTokens;
use crate::client::plc::{PlcClient, PlcError, SharedPlc};
use crate::config::Config;
use crate::firehose::{Firehose, FirehoseSettings};
use crate::http::Routes;
use crate::limits::RateLimits;
use crate::plc::directory::PlcDirectory;
use crate::plc::op::{Operation, PlcState};
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

/// How the did:plc directory behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// As it should.
    Well,
    /// Out of reach.
    Down,
    /// Takes nothing.
    Refusing,
    /// Takes operations, but its answers are lost.
    Mute,
    /// Takes one operation, and is out of reach from then on.
    Dying,
}

/// A directory in memory, in some mood.
pub struct ScriptedPlc {
    directory: PlcDirectory,
    mood: Mutex<Mood>,
    submitted: Mutex<Vec<Did>>,
}

impl ScriptedPlc {
    /// Changes its mood.
    pub fn set(&self, mood: Mood) {
        *self.mood.lock() = mood;
    }

    /// Whose operations it has taken, in order.
    pub fn submitted(&self) -> Vec<Did> {
        self.submitted.lock().clone()
    }

    /// How a DID stands.
    pub async fn is_buried(&self, did: &Did) -> bool {
        matches!(self.directory.data(did).await, Err(PlcError::Tombstoned(_)))
    }

    fn mood(&self) -> Mood {
        *self.mood.lock()
    }

    fn reach(&self) -> Result<(), PlcError> {
        match self.mood() {
            Mood::Down | Mood::Mute => Err(PlcError::Unavailable("scripted".to_owned())),
            Mood::Well | Mood::Refusing | Mood::Dying => Ok(()),
        }
    }
}

#[async_trait]
impl PlcClient for ScriptedPlc {
    async fn submit(&self, did: &Did, operation: &Operation) -> Result<(), PlcError> {
        match self.mood() {
            Mood::Down => return self.reach(),
            Mood::Refusing => {
                return Err(PlcError::Rejected {
                    status: 400,
                    message: "scripted refusal".to_owned(),
                });
            }
            Mood::Well | Mood::Mute | Mood::Dying => {}
        }
        PlcClient::submit(&self.directory, did, operation).await?;
        self.submitted.lock().push(did.clone());
        if self.mood() == Mood::Dying {
            self.set(Mood::Down);
        }
        self.reach()
    }

    async fn document(&self, did: &Did) -> Result<Value, PlcError> {
        self.reach()?;
        self.directory.document(did).await
    }

    async fn data(&self, did: &Did) -> Result<PlcState, PlcError> {
        self.reach()?;
        self.directory.data(did).await
    }

    async fn last_op(&self, did: &Did) -> Result<Operation, PlcError> {
        self.reach()?;
        self.directory.last_op(did).await
    }

    async fn log(&self, did: &Did) -> Result<Vec<Operation>, PlcError> {
        self.reach()?;
        self.directory.log(did).await
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

/// Somebody with an account.
#[derive(Clone)]
pub struct User {
    pub did: Did,
    pub handle: String,
    pub access: String,
    pub refresh: String,
}

/// An answer, whole.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The JSON of a 200.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        self.json()
    }

    /// Status and name of an error.
    pub fn error(&self) -> (u16, String) {
        let json = self.json();
        assert!(json["message"].is_string(), "{json}");
        (
            self.status.as_u16(),
            json["error"].as_str().unwrap_or_default().to_owned(),
        )
    }

    /// One header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

impl Server {
    /// A plain server.
    pub async fn start() -> Server {
        Server::with(Options::default()).await
    }

    /// A server of its own kind.
    pub async fn with(options: Options) -> Server {
        let clock = Arc::new(ShiftedClock::default());
        let plc = Arc::new(ScriptedPlc {
            directory: PlcDirectory::in_memory(clock.clone()),
            mood: Mutex::new(Mood::Well),
            submitted: Mutex::default(),
        });
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

    /// Sends any request and does not read the answer's body.
    pub async fn raw(&self, request: Request<Body>) -> axum::http::Response<Body> {
        self.routes.answer(request).await
    }

    /// Sends any request.
    pub async fn send(&self, request: Request<Body>) -> Answer {
        let answering = async {
            let response = self.routes.answer(request).await;
            let (parts, body) = response.into_parts();
            let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
            Answer {
                status: parts.status,
                headers: parts.headers,
                body,
            }
        };
        tokio::time::timeout(PATIENCE, answering)
            .await
            .expect("no answer in time")
    }

    /// A request with headers and a body.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(body.into()).unwrap()).await
    }

    /// `GET` of any path.
    pub async fn get(&self, path: &str) -> Answer {
        self.request(Method::GET, path, &[], Body::empty()).await
    }

    /// A query without credentials; `query` as in a URL.
    pub async fn query(&self, nsid: &str, query: &str) -> Answer {
        self.get(&format!("/xrpc/{nsid}?{query}")).await
    }

    /// A query with credentials.
    pub async fn query_as(&self, token: &str, nsid: &str, query: &str) -> Answer {
        let headers = [("authorization", bearer(token))];
        let headers = [(headers[0].0, headers[0].1.as_str())];
        self.request(
            Method::GET,
            &format!("/xrpc/{nsid}?{query}"),
            &headers,
            Body::empty(),
        )
        .await
    }

    /// A procedure without credentials.
    pub async fn call(&self, nsid: &str, input: &Value) -> Answer {
        self.post_json(nsid, input, None).await
    }

    /// A procedure with a bearer token.
    pub async fn call_as(&self, token: &str, nsid: &str, input: &Value) -> Answer {
        self.post_json(nsid, input, Some(token)).await
    }

    async fn post_json(&self, nsid: &str, input: &Value, token: Option<&str>) -> Answer {
        let authorization = token.map(bearer);
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(authorization.as_deref().map(|bearer| ("authorization", bearer)));
        let path = format!("/xrpc/{nsid}");
        self.request(Method::POST, &path, &headers, input.to_string())
            .await
    }

    /// A procedure without input, with a bearer token.
    pub async fn poke_as(&self, token: &str, nsid: &str) -> Answer {
        let authorization = bearer(token);
        let headers = [("authorization", authorization.as_str())];
        self.request(Method::POST, &format!("/xrpc/{nsid}"), &headers, Body::empty())
            .await
    }

    /// Uploads a blob.
    pub async fn upload(&self, user: &User, mime: &str, bytes: impl Into<Body>) -> Answer {
        let authorization = bearer(&user.access);
        let headers = [("content-type", mime), ("authorization", authorization.as_str())];
        self.request(Method::POST, "/xrpc/com.atproto.repo.uploadBlob", &headers, bytes)
            .await
    }

    /// A new account `<name>.test`.
    pub async fn sign_up(&self, name: &str) -> User {
        let answer = self
            .call("com.atproto.server.createAccount", &account(name))
            .await;
        user(&answer.ok())
    }

    /// A new session of `<name>.test`.
    pub async fn log_in(&self, name: &str) -> User {
        let input = json!({"identifier": format!("{name}.test"), "password": PASSWORD});
        let answer = self.call("com.atproto.server.createSession", &input).await;
        user(&answer.ok())
    }

    /// A new post; its URI, CID and commit.
    pub async fn post(&self, user: &User, text: &str) -> Value {
        let input = json!({"repo": user.did, "collection": NOTE, "record": {"text": text}});
        self.call_as(&user.access, "com.atproto.repo.createRecord", &input)
            .await
            .ok()
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

    /// The repo as its export shows it, checked: blocks against CIDs, tree against commit, commit against the key that
    /// the directory names.
    pub async fn repo(&self, did: &Did) -> ExportedRepo {
        let answer = self
            .query("com.atproto.sync.getRepo", &format!("did={did}"))
            .await;
        assert_eq!(answer.status, 200);
        let repo = ExportedRepo::read(&answer.body);
        let state = self.plc.directory.data(did).await.unwrap();
        let key = state.verification_methods.get("atproto").unwrap();
        let key = engine::repo::PublicKey::from_did_key(key).unwrap();
        repo.commit.verify(&key).unwrap();
        assert_eq!(repo.commit.did(), did);
        repo
    }
}

/// Collection of [`Server::post`]. No lexicon says what its records are.
pub const NOTE: &str = "com.example.note";

/// A repo out of a CAR.
pub struct ExportedRepo {
    pub commit: Commit,
    /// Path to CID.
    pub records: BTreeMap<String, Cid>,
    pub blocks: HashMap<Cid, Bytes>,
}

impl ExportedRepo {
    /// Reads a whole repo; every block must be there.
    pub fn read(car: &[u8]) -> ExportedRepo {
        let slice = CarSlice::new(car, CarLimits::default()).unwrap();
        let root = *slice.roots().first().unwrap();
        let mut blocks = HashMap::new();
        for block in slice {
            let block = block.unwrap();
            blocks.insert(block.cid, Bytes::copy_from_slice(block.bytes));
        }
        let commit = Commit::decode(blocks.get(&root).unwrap().clone()).unwrap();
        let mut records = BTreeMap::new();
        for item in Tree::open(commit.data()).walk(&blocks).unwrap() {
            if let WalkItem::Record { key, cid } = item.unwrap() {
                assert!(blocks.contains_key(&cid), "{key} is missing");
                records.insert(key.to_string(), cid);
            }
        }
        ExportedRepo {
            commit,
            records,
            blocks,
        }
    }
}

/// Input of `createAccount` for `<name>.test`.
pub fn account(name: &str) -> Value {
    json!({
        "handle": format!("{name}.test"),
        "email": format!("{name}@example.com"),
        "password": PASSWORD,
    })
}

/// The user of a session's JSON.
pub fn user(session: &Value) -> User {
    let text = |field: &str| session[field].as_str().unwrap().to_owned();
    User {
        did: text("did").parse().unwrap(),
        handle: text("handle"),
        access: text("accessJwt"),
        refresh: text("refreshJwt"),
    }
}

/// The value of an `Authorization` header.
pub fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// The administrator's `Authorization` header.
pub fn basic() -> String {
    let credential = format!("admin:{ADMIN_PASSWORD}");
    format!("Basic {}", data_encoding::BASE64.encode(credential.as_bytes()))
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
