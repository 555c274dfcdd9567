//! Every setting of the server, read once at start from the environment, checked as a whole.
//!
//! The names are the reference PDS's `PDS_*` variables plus our own; [`settings`] lists them all. Nothing else in the
//! program reads the environment.

mod limits;
mod mail;
pub mod memory;
mod reader;
pub mod settings;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use axum::http::HeaderName;
use engine::repo::Did;
pub use limits::{RateLimitSettings, RedisSettings, TrustedProxies};
pub use mail::{Brand, MailServer, MailSettings, SmtpTls};
use memory::MemoryPlan;
use reader::Reader;
use reqwest::Url;
use shipper::ageing::Ageing;
use shipper::cost::Prices;
use shipper::store::s3::{S3Auth, S3Config};

use crate::listen::Limits;
use crate::secrets::Secret;
use crate::service::repos::import::room::RoomLimits;

/// Where the log is replicated to.
#[derive(Clone, Debug)]
pub enum Replica {
    /// A directory, on another disk if it is to be of use.
    Directory(PathBuf),
    /// A container of Azure Blob Storage.
    Azure(AzureSettings),
    /// A bucket of a service that speaks S3.
    S3(S3Config),
}

/// How to reach a container of Azure Blob Storage.
#[derive(Clone, Debug)]
pub struct AzureSettings {
    /// Account part of the URL, such as `https://account.blob.core.windows.net`, or the emulator's with its account path.
    pub service_url: String,
    /// The container's name.
    pub container: String,
    /// Prefix of every object name, without slashes at its ends; may be empty.
    pub prefix: String,
    /// Who we are to the service.
    pub auth: AzureAuthSettings,
    /// Service version to ask for instead of the client's own.
    pub api_version: Option<String>,
}

/// How we authenticate to Azure.
#[derive(Clone, Debug)]
pub enum AzureAuthSettings {
    /// The platform's managed identity; a client id chooses a user-assigned one.
    ManagedIdentity(Option<String>),
    /// A federated token of a Kubernetes workload.
    WorkloadIdentity,
    /// A shared access signature.
    Sas(Secret<String>),
    /// The account's key: for the emulator and for tests.
    SharedKey {
        /// The account's name.
        account: String,
        /// Its key in base64.
        key: Secret<String>,
    },
}

/// What an acknowledged write has survived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Synced to the local disk.
    Local,
    /// Accepted by the replica store.
    Remote,
}

/// Where media blobs live.
#[derive(Clone, Debug)]
pub enum BlobPlace {
    /// Below this directory.
    Disk(PathBuf),
    /// Beside the log, in the replica's container or bucket.
    Replica,
    /// In a bucket of their own.
    S3(S3Config),
}

/// The whole configuration. Field comments name the variable; units are in the types or names.
#[derive(Clone, Debug)]
pub struct Config {
    /// `PDS_HOSTNAME`.
    pub hostname: String,
    /// `PDS_PORT`; 0 takes a free port.
    pub port: u16,
    /// `PDS_BIND_ADDRESS`.
    pub bind: IpAddr,
    /// `PDS_SERVICE_DID`.
    pub service_did: Did,
    /// `PDS_SERVICE_HANDLE_DOMAINS`, each with its leading dot, lower-case.
    pub handle_domains: Vec<String>,
    /// `PDS_VERSION`.
    pub version: String,
    /// `PDS_PRIVACY_POLICY_URL`.
    pub privacy_policy: Option<String>,
    /// `PDS_TERMS_OF_SERVICE_URL`.
    pub terms_of_service: Option<String>,
    /// `PDS_CONTACT_EMAIL_ADDRESS`.
    pub contact_email: Option<String>,
    /// `PDS_DEV_MODE`.
    pub dev_mode: bool,
    /// Whether strangers may name http and private addresses: `PDS_DISABLE_SSRF_PROTECTION`.
    pub allow_local: bool,
    /// `PDS_JWT_SECRET`.
    pub jwt_secret: Secret<String>,
    /// `PDS_ADMIN_PASSWORD`.
    pub admin_password: Secret<String>,
    /// `PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX`, decoded.
    pub plc_rotation_key: Secret<[u8; 32]>,
    /// `PDS_KEY_ENCRYPTION_KEY_HEX`, checked; derived from the rotation key when absent.
    pub key_encryption_key: Option<Secret<String>>,
    /// `PDS_INVITE_REQUIRED`.
    pub invite_required: bool,
    /// `PDS_INVITE_INTERVAL`: how often an account may make an invite code of its own, if at all.
    pub invite_interval: Option<Duration>,
    /// `PDS_INVITE_EPOCH`, since 1970.
    pub invite_epoch: Duration,
    /// `PDS_RECOVERY_DID_KEY`.
    pub recovery_did_key: Option<String>,
    /// `PDS_ENABLE_DID_DOC_WITH_SESSION`.
    pub did_doc_with_session: bool,
    /// `PDS_DID_PLC_URL`, without a slash at its end.
    pub plc_url: String,
    /// `PDS_DID_CACHE_STALE_TTL`.
    pub did_cache_stale: Duration,
    /// `PDS_DID_CACHE_MAX_TTL`.
    pub did_cache_max: Duration,
    /// `PDS_ID_RESOLVER_TIMEOUT`.
    pub resolver_timeout: Duration,
    /// `PDS_DATA_DIRECTORY`.
    pub data_dir: PathBuf,
    /// `PDS_BLOBSTORE`, `PDS_BLOBSTORE_DISK_LOCATION`, `PDS_BLOBSTORE_S3_BUCKET` and its companions.
    pub blobs: BlobPlace,
    /// `PDS_BLOB_UPLOAD_LIMIT`, bytes.
    pub blob_upload_limit: u64,
    /// `PDS_MAX_REPO_IMPORT_SIZE`, bytes; `None` if `PDS_ACCEPTING_REPO_IMPORTS` is false.
    pub repo_import_limit: Option<u64>,
    /// `PDS_IMPORT_DISK_BYTES`, `PDS_DISK_RESERVE_BYTES`.
    pub import_disk: RoomLimits,
    /// `PDS_DISK_BUDGET`, bytes; `None` for what the disk has.
    pub disk_budget: Option<u64>,
    /// `PDS_HYDRATION_BYTES_PER_SECOND`; zero for none.
    pub hydration_bytes_per_second: u64,
    /// `PDS_REPLICA_URL` and its companions.
    pub replica: Option<Replica>,
    /// `PDS_DURABILITY`.
    pub durability: Durability,
    /// `PDS_REPLICA_TIMEOUT_MS`.
    pub replica_timeout: Duration,
    /// `PDS_WRITE_TIMEOUT_MS`.
    pub write_timeout: Duration,
    /// `PDS_REPLICA_IN_FLIGHT`, 1 to 16.
    pub replica_in_flight: usize,
    /// `PDS_REPLICA_MIN_INTERVAL_MS`.
    pub replica_min_interval: Duration,
    /// `PDS_REPLICA_MONTHLY_REQUESTS`.
    pub replica_monthly_requests: Option<u64>,
    /// `PDS_REPLICA_PRICES` over the list prices of the kind of store.
    pub replica_prices: Prices,
    /// How one server follows another: `PDS_ADVERTISE_URL`, `PDS_LEASE_SECONDS`, `PDS_HANDOVER_*`, `PDS_STANDBY_*`.
    pub succession: Succession,
    /// `PDS_DRILL_*`, `PDS_SCRUB_INTERVAL_HOURS`.
    pub drills: DrillSettings,
    /// `PDS_REPLICA_ADDED_LATENCY_MS`; zero outside development mode.
    pub replica_added_latency: Duration,
    /// `PDS_LOG_SEGMENT_BYTES`.
    pub log_segment_bytes: u64,
    /// `PDS_MEMORY_BUDGET` and the settings that name a part of it.
    pub memory: MemoryPlan,
    /// `PDS_UNSHIPPED_BYTES`.
    pub unshipped_bytes: u64,
    /// `PDS_CHECKPOINT_BYTES`.
    pub checkpoint_bytes: u64,
    /// `PDS_CHECKPOINT_INTERVAL_MS`.
    pub checkpoint_interval: Duration,
    /// `PDS_COMPACTION_*`.
    pub compaction: Compaction,
    /// `PDS_FIREHOSE_RETENTION_HOURS`, at least [`Config::backfill_limit`].
    pub firehose_retention: Duration,
    /// `PDS_REPLICA_COOL_AFTER_DAYS`, `PDS_REPLICA_COLD_AFTER_DAYS`.
    pub replica_ageing: Ageing,
    /// `PDS_PITR_WINDOW_DAYS`; zero: what is replaced in the replica is deleted at once.
    pub pitr_window: Duration,
    /// `PDS_SHUTDOWN_TIMEOUT_MS`.
    pub shutdown_timeout: Duration,
    /// `PDS_REPO_BACKFILL_LIMIT_MS`.
    pub backfill_limit: Duration,
    /// `PDS_FIREHOSE_STALL_MS`.
    pub firehose_stall: Duration,
    /// `PDS_FIREHOSE_MAX_SUBSCRIBERS`.
    pub firehose_max_subscribers: usize,
    /// `PDS_FIREHOSE_MAX_PER_ADDRESS`.
    pub firehose_max_per_address: usize,
    /// The services that answer what this server does not.
    pub upstreams: Upstreams,
    /// Who the operator is to people: `PDS_SERVICE_NAME`, `PDS_HOME_URL` and others.
    pub brand: Brand,
    /// `PDS_EMAIL_*`, `PDS_MODERATION_EMAIL_*`.
    pub mail: MailSettings,
    /// `PDS_CRAWLERS`.
    pub crawlers: Vec<Url>,
    /// `PDS_PROXY_*`.
    pub proxy: ProxySettings,
    /// `PDS_HTTP_MAX_CONNECTIONS` and the other settings of the listener.
    pub http: Limits,
    /// `PDS_CLIENT_ADDRESS_HEADER`, lower-case.
    pub client_address_header: Option<HeaderName>,
    /// `PDS_TRUSTED_PROXIES`.
    pub trusted_proxies: TrustedProxies,
    /// `PDS_RATE_LIMIT*`, `PDS_REDIS_SCRATCH_*`.
    pub rate_limits: RateLimitSettings,
    /// `PDS_PORT_FILE`.
    pub port_file: Option<PathBuf>,
    /// `LOG_ENABLED`, `LOG_LEVEL`, `LOG_DESTINATION`, `PDS_LOG_FORMAT`.
    pub logging: Logging,
}

/// Another service that answers methods which this server does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Where it is; the path does not count.
    pub url: Url,
    /// Who it is.
    pub did: Did,
}

/// The services to which methods go unless a client names another.
#[derive(Clone, Debug, Default)]
pub struct Upstreams {
    /// `PDS_BSKY_APP_VIEW_URL`, `PDS_BSKY_APP_VIEW_DID`.
    pub app_view: Option<Upstream>,
    /// `PDS_MOD_SERVICE_URL`, `PDS_MOD_SERVICE_DID`.
    pub moderation: Option<Upstream>,
    /// `PDS_REPORT_SERVICE_URL`, `PDS_REPORT_SERVICE_DID`; else the moderation service.
    pub reports: Option<Upstream>,
    /// `PDS_BSKY_APP_VIEW_CDN_URL_PATTERN`: has `%s` three times.
    pub images: Option<String>,
}

/// How requests for other services are bounded: `PDS_PROXY_*`.
#[derive(Clone, Copy, Debug)]
pub struct ProxySettings {
    /// `PDS_PROXY_ALLOW_HTTP2`.
    pub allow_http2: bool,
    /// `PDS_PROXY_HEADERS_TIMEOUT`.
    pub headers_timeout: Duration,
    /// `PDS_PROXY_BODY_TIMEOUT`.
    pub body_timeout: Duration,
    /// `PDS_PROXY_PREFER_COMPRESSED`.
    pub prefer_compressed: bool,
    /// `PDS_PROXY_MAX_RESPONSE_SIZE`, bytes.
    pub max_response_bytes: u64,
    /// `PDS_PROXY_MAX_RETRIES`.
    pub max_retries: u32,
    /// `PDS_PROXY_MAX_REQUESTS`.
    pub max_requests: usize,
    /// `PDS_PROXY_MAX_PER_ACCOUNT`.
    pub max_per_account: usize,
}

/// How the servers on one replica come after each other.
#[derive(Clone, Debug)]
pub struct Succession {
    /// Whether this one stays a standby until it is told otherwise: `pds standby`.
    pub standby: bool,
    /// `PDS_ADVERTISE_URL`: where other servers on the replica reach this one; empty if they cannot.
    pub advertise_url: String,
    /// `PDS_LEASE_SECONDS`.
    pub lease: Duration,
    /// `PDS_HANDOVER_TIMEOUT_MS`; zero takes over at once.
    pub handover_timeout: Duration,
    /// `PDS_HANDOVER_POLL_MS`.
    pub handover_poll: Duration,
    /// `PDS_STANDBY_POLL_MS`.
    pub standby_poll: Duration,
    /// `PDS_STANDBY_TAKE_OVER_SECONDS`; zero only by command.
    pub take_over_after: Duration,
}

/// When and how fast the log is compacted.
#[derive(Clone, Copy, Debug)]
pub struct Compaction {
    /// `PDS_COMPACTION_ENABLED`.
    pub enabled: bool,
    /// `PDS_COMPACTION_BYTES_PER_SECOND`.
    pub bytes_per_second: u64,
    /// `PDS_COMPACTION_MIN_DEAD_PERCENT`, as a share from 0 to 1.
    pub min_dead_share: f64,
    /// `PDS_COMPACTION_FORCE_AFTER_DAYS`.
    pub force_after: Duration,
    /// `PDS_DELETION_MAX_AGE_DAYS`.
    pub deletion_max_age: Duration,
}

/// How often and how fast it is tried whether the replica restores, and whether its objects are whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrillSettings {
    /// `PDS_DRILL_INTERVAL_HOURS`; zero is never.
    pub interval: Duration,
    /// `PDS_DRILL_DISK_BYTES`.
    pub disk_bytes: u64,
    /// `PDS_DRILL_BYTES_PER_SECOND`.
    pub bytes_per_second: u64,
    /// `PDS_SCRUB_INTERVAL_HOURS`; zero is never.
    pub scrub_interval: Duration,
}

/// What goes to the log output and how.
#[derive(Clone, Debug)]
pub struct Logging {
    /// Whether anything does.
    pub enabled: bool,
    /// Filter directives.
    pub level: String,
    /// `None` = text on a terminal, JSON otherwise.
    pub format: Option<LogFormat>,
    /// `PDS_SLOW_REQUEST_MS`: how long an answer may take before it is logged as slow.
    pub slow: Option<Duration>,
    /// `LOG_DESTINATION`: a file; `None` = standard output.
    pub destination: Option<PathBuf>,
}

/// Form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Everything that is wrong with the configuration, one line each.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The problems, each naming its variable.
    pub problems: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration has {} problem(s):", self.problems.len())?;
        for problem in &self.problems {
            write!(f, "\n  - {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads the configuration from name/value pairs, normally the process's environment.
    ///
    /// Returns it with warnings for people: unknown `PDS_*` names with the nearest known one, and known names that
    /// have no effect.
    ///
    /// # Errors
    /// All problems at once, so that an operator need not start the server once per mistake.
    pub fn from_vars(
        vars: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(Config, Vec<String>), ConfigError> {
        let mut reader = Reader::new(vars);
        let config = reader.config();
        match config {
            Some(config) if reader.problems.is_empty() => Ok((config, reader.warnings)),
            _ => Err(ConfigError {
                problems: reader.problems,
            }),
        }
    }

    /// The URL under which the world reaches this server, without a slash at its end.
    #[must_use]
    pub fn public_url(&self) -> String {
        if self.hostname == "localhost" {
            format!("http://localhost:{}", self.port)
        } else {
            format!("https://{}", self.hostname)
        }
    }

    /// Where other servers on the same replica reach this one: `PDS_ADVERTISE_URL`, or, where only this machine can connect, the
    /// address that is listened on. Empty if that is not known.
    #[must_use]
    pub fn peer_url(&self) -> String {
        if self.succession.advertise_url.is_empty() && self.bind.is_loopback() {
            return format!("http://{}", std::net::SocketAddr::new(self.bind, self.port));
        }
        self.succession.advertise_url.clone()
    }

    /// Reads the configuration from the process's environment; the only place that does.
    ///
    /// # Errors
    /// As [`Config::from_vars`]; a variable that is not Unicode is a problem only if its name is ours.
    pub fn from_env() -> Result<(Config, Vec<String>), ConfigError> {
        let vars = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
        });
        Config::from_vars(vars)
    }

    /// As [`Config::from_env`], with values for what the environment does not set.
    ///
    /// # Errors
    /// As [`Config::from_vars`].
    pub fn from_env_over(defaults: &[(&str, String)]) -> Result<(Config, Vec<String>), ConfigError> {
        let mut vars: BTreeMap<String, String> = defaults
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect();
        vars.extend(std::env::vars_os().filter_map(|(name, value)| {
            let value = value.to_string_lossy().into_owned();
            Some((name.into_string().ok()?, value)).filter(|(_, value)| !value.is_empty())
        }));
        Config::from_vars(vars)
    }

    /// The settings in force, one `name = value` line each, without secrets.
    #[must_use]
    pub fn summary(&self) -> Vec<String> {
        let mut lines = vec![
            format!("public url         = {}", self.public_url()),
            format!("listen             = {}:{}", self.bind, self.port),
            format!("service did        = {}", self.service_did),
            format!("handle domains     = {}", self.handle_domains.join(", ")),
            format!("data directory     = {}", self.data_dir.display()),
            format!("invites required   = {}", self.invite_required),
            format!("plc directory      = {}", self.plc_url),
        ];
        lines.push(match &self.replica {
            None => "replica            = none: data lives on this disk alone".to_owned(),
            Some(Replica::Directory(dir)) => format!("replica            = directory {}", dir.display()),
            Some(Replica::Azure(azure)) => format!(
                "replica            = {}/{} prefix '{}' by {}",
                azure.service_url,
                azure.container,
                azure.prefix,
                match azure.auth {
                    AzureAuthSettings::ManagedIdentity(_) => "managed identity",
                    AzureAuthSettings::WorkloadIdentity => "workload identity",
                    AzureAuthSettings::Sas(_) => "shared access signature",
                    AzureAuthSettings::SharedKey { .. } => "shared key",
                }
            ),
            Some(Replica::S3(s3)) => format!(
                "replica            = bucket {} prefix '{}' by {}",
                s3.bucket,
                s3.prefix,
                who(&s3.auth)
            ),
        });
        lines.push(format!("durability         = {:?}", self.durability).to_lowercase());
        lines.push(match &self.blobs {
            BlobPlace::Disk(dir) => format!("media blobs        = directory {}", dir.display()),
            BlobPlace::Replica => "media blobs        = beside the log in the replica".to_owned(),
            BlobPlace::S3(s3) => format!("media blobs        = bucket {} by {}", s3.bucket, who(&s3.auth)),
        });
        lines.push(format!("memory             = {}", self.memory.summary()));
        lines.push(match self.disk_budget {
            Some(bytes) => format!("disk               = {bytes} bytes, media blobs aside"),
            None => format!(
                "disk               = what there is, less {} bytes",
                self.import_disk.keep_free
            ),
        });
        for (what, upstream) in [
            ("appview            ", &self.upstreams.app_view),
            ("moderation service ", &self.upstreams.moderation),
            ("report service     ", &self.upstreams.reports),
        ] {
            if let Some(Upstream { url, did }) = upstream {
                lines.push(format!("{what}= {did} at {url}"));
            }
        }
        for (what, server) in [
            ("mail               ", &self.mail.ordinary),
            ("moderators' mail   ", &self.mail.moderation),
        ] {
            if let Some(MailServer {
                host,
                port,
                tls,
                from,
                ..
            }) = server
            {
                lines.push(format!("{what}= from {from} by {host}:{port}, {tls}"));
            }
        }
        for url in &self.crawlers {
            lines.push(format!("relay              = {url}"));
        }
        lines.push(format!(
            "key encryption key = {}",
            if self.key_encryption_key.is_some() {
                "set"
            } else {
                "derived from the rotation key"
            }
        ));
        lines
    }
}

fn who(auth: &S3Auth) -> &'static str {
    match auth {
        S3Auth::Keys { .. } => "access key",
        S3Auth::Platform => "the platform's credentials",
    }
}

#[cfg(test)]
mod tests;
