//! Reads every setting out of name/value pairs, and collects all that is wrong with them.

mod ageing;
mod limits;
mod mail;
mod services;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use axum::http::HeaderName;
use engine::repo::Did;
use shipper::cost::Prices;
use shipper::store::s3::S3Config;
use shipper::store::{ReplicaUrl, StoreError};

use super::memory::{self, BudgetSource, MemoryPlan};
use super::settings::{self, Kind, Origin};
use super::{
    AzureAuthSettings, AzureSettings, BlobPlace, Compaction, Config, DrillSettings, Durability, LogFormat,
    Logging, Replica, Succession,
};
use crate::listen::Limits;
use crate::secrets::Secret;
use crate::service::repos::import::room::{RoomLimits, disk_bytes};

/// The largest repo that can be imported, bytes: places in a spool have 40 bits.
const IMPORT_BYTES_MAX: u64 = (1 << 40) - 1;

/// Takes values out of the environment and collects what is wrong with them.
pub(super) struct Reader {
    values: BTreeMap<&'static str, String>,
    pub(super) problems: Vec<String>,
    pub(super) warnings: Vec<String>,
}

impl Reader {
    pub(super) fn new(vars: impl IntoIterator<Item = (String, String)>) -> Reader {
        let mut reader = Reader {
            values: BTreeMap::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
        };
        let mut files = Vec::new();
        for (name, value) in vars {
            let value = value.trim_end_matches(['\r', '\n']).to_owned();
            if value.is_empty() {
                continue;
            }
            if let Some(setting) = settings::find(&name) {
                match setting.origin {
                    Origin::NotYet => {
                        reader.warnings.push(format!(
                            "{name} has no effect in this version: {}",
                            setting.meaning
                        ));
                    }
                    Origin::Refused => reader
                        .problems
                        .push(format!("{name} is refused: {}", setting.meaning)),
                    Origin::Meaningless => reader
                        .warnings
                        .push(format!("{name} has no effect: {}", setting.meaning)),
                    Origin::Reference | Origin::Ours => {
                        reader.values.insert(setting.name, value);
                    }
                }
            } else if let Some(setting) = name
                .strip_suffix("_FILE")
                .and_then(settings::find)
                .filter(|setting| setting.secret)
            {
                files.push((setting.name, value));
            } else if name.starts_with("PDS_") {
                reader.warnings.push(match settings::nearest(&name) {
                    Some(near) => format!("{name} is not a known setting; did you mean {near}?"),
                    None => format!("{name} is not a known setting"),
                });
            }
        }
        for (name, path) in files {
            if reader.values.contains_key(name) {
                reader
                    .problems
                    .push(format!("{name} and {name}_FILE are both set; keep one"));
                continue;
            }
            match std::fs::read_to_string(&path) {
                Ok(text) => {
                    reader
                        .values
                        .insert(name, text.trim_end_matches(['\r', '\n']).to_owned());
                }
                Err(error) => reader
                    .problems
                    .push(format!("{name}_FILE: cannot read {path}: {error}")),
            }
        }
        reader.warnings.sort();
        reader
    }

    fn text(&mut self, name: &'static str) -> Option<String> {
        debug_assert!(settings::find(name).is_some(), "{name} is not in the table");
        self.values.get(name).cloned()
    }

    fn required(&mut self, name: &'static str) -> String {
        self.text(name).unwrap_or_else(|| {
            self.problems.push(format!("{name} is required"));
            String::new()
        })
    }

    fn flag(&mut self, name: &'static str, default: bool) -> bool {
        debug_assert!(settings::find(name).is_some_and(|s| s.kind == Kind::Flag));
        match self.text(name).as_deref() {
            Some("true" | "1") => true,
            Some("false" | "0") => false,
            Some(_) => {
                self.warnings
                    .push(format!("{name} is neither true nor false and counts as unset"));
                default
            }
            None => default,
        }
    }

    fn number<T: TryFrom<u64>>(
        &mut self,
        name: &'static str,
        default: T,
        range: std::ops::RangeInclusive<u64>,
    ) -> T {
        debug_assert!(settings::find(name).is_some_and(|s| s.kind == Kind::Number));
        let Some(text) = self.text(name) else {
            return default;
        };
        let parsed = text
            .trim()
            .parse::<u64>()
            .ok()
            .filter(|n| range.contains(n))
            .and_then(|n| T::try_from(n).ok());
        parsed.unwrap_or_else(|| {
            self.problems.push(format!(
                "{name} must be a whole number from {} to {}, not '{text}'",
                range.start(),
                range.end()
            ));
            default
        })
    }

    fn repo_import_limit(&mut self, blob_limit: u64) -> Option<u64> {
        let limit = self.number("PDS_MAX_REPO_IMPORT_SIZE", blob_limit, 1..=IMPORT_BYTES_MAX);
        self.flag("PDS_ACCEPTING_REPO_IMPORTS", true).then_some(limit)
    }

    /// By default two of the largest imports fit, which is how many run at once.
    fn import_disk(&mut self, limit: Option<u64>) -> RoomLimits {
        let two = disk_bytes(limit.unwrap_or_default()).saturating_mul(2);
        RoomLimits {
            budget: self.number("PDS_IMPORT_DISK_BYTES", two, 1..=4 * IMPORT_BYTES_MAX),
            keep_free: self.number("PDS_DISK_RESERVE_BYTES", 128 << 20, 0..=4 * IMPORT_BYTES_MAX),
        }
    }

    fn millis(&mut self, name: &'static str, default: u64) -> Duration {
        Duration::from_millis(self.number(name, default, 0..=31_536_000_000))
    }

    fn list(&mut self, name: &'static str) -> Option<Vec<String>> {
        debug_assert!(settings::find(name).is_some_and(|s| s.kind == Kind::List));
        self.text(name)
            .map(|text| text.split(',').map(|part| part.trim().to_owned()).collect())
    }

    fn key_hex(&mut self, name: &'static str, text: &str) -> Option<[u8; 32]> {
        let key = data_encoding::HEXLOWER_PERMISSIVE
            .decode(text.trim().as_bytes())
            .ok()
            .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        if key.is_none() {
            self.problems
                .push(format!("{name} must be 64 hex digits (its value is not shown)"));
        }
        key
    }

    #[expect(
        clippy::too_many_lines,
        reason = "one setting after the other, in the order of the table"
    )]
    pub(super) fn config(&mut self) -> Option<Config> {
        let hostname = self
            .text("PDS_HOSTNAME")
            .unwrap_or_else(|| "localhost".to_owned())
            .to_ascii_lowercase();
        let local = hostname == "localhost";
        if !local && (hostname.contains(['/', ':', '@', ' ']) || hostname.is_empty()) {
            self.problems
                .push(format!("PDS_HOSTNAME must be a bare host name, not '{hostname}'"));
        }
        let port = self.number("PDS_PORT", 2583, 0..=65535);
        let bind_default = if local { "127.0.0.1" } else { "0.0.0.0" };
        let bind_text = self
            .text("PDS_BIND_ADDRESS")
            .unwrap_or_else(|| bind_default.to_owned());
        let bind = bind_text.parse::<IpAddr>().unwrap_or_else(|_| {
            self.problems.push(format!(
                "PDS_BIND_ADDRESS must be an IP address, not '{bind_text}'"
            ));
            IpAddr::from([127, 0, 0, 1])
        });
        let did_text = self
            .text("PDS_SERVICE_DID")
            .unwrap_or_else(|| format!("did:web:{hostname}"));
        let service_did = did_text.parse::<Did>();
        if let Err(error) = &service_did {
            self.problems
                .push(format!("PDS_SERVICE_DID: '{did_text}' is not a DID: {error}"));
        }
        let handle_domains: Vec<String> = self
            .list("PDS_SERVICE_HANDLE_DOMAINS")
            .unwrap_or_else(|| {
                vec![if local {
                    ".test".to_owned()
                } else {
                    format!(".{hostname}")
                }]
            })
            .into_iter()
            .map(|domain| domain.to_ascii_lowercase())
            .collect();
        for domain in &handle_domains {
            if !domain.starts_with('.') || domain.len() < 2 {
                self.problems.push(format!(
                    "PDS_SERVICE_HANDLE_DOMAINS: '{domain}' must start with a dot"
                ));
            }
        }
        let jwt_secret = self.required("PDS_JWT_SECRET");
        if !jwt_secret.is_empty() && jwt_secret.len() < 16 {
            self.problems
                .push("PDS_JWT_SECRET must have at least 16 bytes".to_owned());
        }
        let admin_password = self.required("PDS_ADMIN_PASSWORD");
        let rotation_name = "PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX";
        let rotation_text = self.required(rotation_name);
        let plc_rotation_key = if rotation_text.is_empty() {
            None
        } else {
            let key = self.key_hex(rotation_name, &rotation_text);
            if key.is_some_and(|key| engine::repo::SigningKey::from_bytes(&key).is_err()) {
                self.problems
                    .push(format!("{rotation_name} is not a valid secp256k1 private key"));
            }
            key
        };
        let key_encryption_key = self
            .text("PDS_KEY_ENCRYPTION_KEY_HEX")
            .filter(|text| self.key_hex("PDS_KEY_ENCRYPTION_KEY_HEX", text).is_some())
            .map(Secret::new);
        let data_dir = PathBuf::from(
            self.text("PDS_DATA_DIRECTORY")
                .unwrap_or_else(|| "./data".to_owned()),
        );
        let replica = self.replica();
        let durability = match (self.text("PDS_DURABILITY").as_deref(), &replica) {
            (None, None) | (Some("local"), _) => Durability::Local,
            (None, Some(_)) | (Some("remote"), Some(_)) => Durability::Remote,
            (Some("remote"), None) => {
                self.problems
                    .push("PDS_DURABILITY=remote needs PDS_REPLICA_URL".to_owned());
                Durability::Remote
            }
            (Some(other), _) => {
                self.problems
                    .push(format!("PDS_DURABILITY must be local or remote, not '{other}'"));
                Durability::Remote
            }
        };
        let blobs = self.blobs(&data_dir, replica.as_ref());
        let replica_prices = self.prices(replica.as_ref());
        let replica_in_flight = self.number("PDS_REPLICA_IN_FLIGHT", 4, 1..=16);
        let replica_added_latency = self.millis("PDS_REPLICA_ADDED_LATENCY_MS", 0);
        let dev_mode = self.flag("PDS_DEV_MODE", false);
        if !replica_added_latency.is_zero() && !dev_mode {
            self.problems.push(
                "PDS_REPLICA_ADDED_LATENCY_MS is for measurements and needs PDS_DEV_MODE=true".to_owned(),
            );
        }
        let drills = self.drills(dev_mode);
        let drilled = replica.is_some() && !drills.interval.is_zero();
        let memory = self.memory(replica.as_ref().map_or(0, |_| replica_in_flight as u64), drilled)?;
        let firehose_max_subscribers = self.number("PDS_FIREHOSE_MAX_SUBSCRIBERS", 1000, 1..=1_000_000);
        let client_address_header = self.text("PDS_CLIENT_ADDRESS_HEADER").and_then(|name| {
            let parsed = name.parse::<HeaderName>();
            if parsed.is_err() {
                self.problems
                    .push(format!("PDS_CLIENT_ADDRESS_HEADER: {name:?} is no header's name"));
            }
            parsed.ok()
        });
        let format = match self.text("PDS_LOG_FORMAT").as_deref() {
            None => None,
            Some("text") => Some(LogFormat::Text),
            Some("json") => Some(LogFormat::Json),
            Some(other) => {
                self.problems
                    .push(format!("PDS_LOG_FORMAT must be text or json, not '{other}'"));
                None
            }
        };
        let blob_upload_limit = self.number("PDS_BLOB_UPLOAD_LIMIT", 5_242_880, 1..=10_737_418_240);
        let backfill_limit = self.millis("PDS_REPO_BACKFILL_LIMIT_MS", 259_200_000);
        let retention =
            Duration::from_secs(self.number("PDS_FIREHOSE_RETENTION_HOURS", 72, 0..=876_000) * 3_600);
        let repo_import_limit = self.repo_import_limit(blob_upload_limit);
        let deletion_max_age =
            Duration::from_secs(self.number("PDS_DELETION_MAX_AGE_DAYS", 7, 0..=36_500) * 86_400);
        let pitr_window = Duration::from_secs(self.number("PDS_PITR_WINDOW_DAYS", 7, 0..=3_650) * 86_400);
        if pitr_window > deletion_max_age && self.text("PDS_REPLICA_URL").is_some() {
            self.warnings.push(
                "PDS_PITR_WINDOW_DAYS is greater than PDS_DELETION_MAX_AGE_DAYS: what was removed can be restored, and is in the \
                 replica, for that much longer"
                    .to_owned(),
            );
        }
        let force_after =
            Duration::from_secs(self.number("PDS_COMPACTION_FORCE_AFTER_DAYS", 30, 1..=36_500) * 86_400);
        let firehose_retention = backfill_limit.max(retention);
        let compacted = firehose_retention.saturating_add(force_after);
        let replica_ageing = self.ageing(replica.as_ref(), &replica_prices, compacted, &drills);
        let rate_limits = self.rate_limits();
        Some(Config {
            port,
            bind,
            handle_domains,
            version: self
                .text("PDS_VERSION")
                .unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned()),
            privacy_policy: self.text("PDS_PRIVACY_POLICY_URL"),
            terms_of_service: self.text("PDS_TERMS_OF_SERVICE_URL"),
            contact_email: self.text("PDS_CONTACT_EMAIL_ADDRESS"),
            dev_mode,
            allow_local: self.flag("PDS_DISABLE_SSRF_PROTECTION", dev_mode),
            invite_required: self.flag("PDS_INVITE_REQUIRED", true),
            invite_interval: Some(self.millis("PDS_INVITE_INTERVAL", 0))
                .filter(|interval| !interval.is_zero()),
            invite_epoch: Duration::from_millis(self.number("PDS_INVITE_EPOCH", 0, 0..=8_640_000_000_000)),
            recovery_did_key: self.text("PDS_RECOVERY_DID_KEY"),
            did_doc_with_session: self.flag("PDS_ENABLE_DID_DOC_WITH_SESSION", false),
            plc_url: self.url("PDS_DID_PLC_URL", "https://plc.directory"),
            did_cache_stale: self.millis("PDS_DID_CACHE_STALE_TTL", 3_600_000),
            did_cache_max: self.millis("PDS_DID_CACHE_MAX_TTL", 86_400_000),
            resolver_timeout: self.millis("PDS_ID_RESOLVER_TIMEOUT", 3_000),
            blob_upload_limit,
            repo_import_limit,
            import_disk: self.import_disk(repo_import_limit),
            disk_budget: Some(self.number("PDS_DISK_BUDGET", 0, 16_777_216..=1 << 50))
                .filter(|bytes| *bytes > 0),
            hydration_bytes_per_second: self.number("PDS_HYDRATION_BYTES_PER_SECOND", 32 << 20, 0..=1 << 40),
            replica_timeout: self.millis("PDS_REPLICA_TIMEOUT_MS", 10_000),
            write_timeout: self.millis("PDS_WRITE_TIMEOUT_MS", 30_000),
            replica_in_flight,
            replica_min_interval: self.millis("PDS_REPLICA_MIN_INTERVAL_MS", 10),
            replica_monthly_requests: self.monthly_requests(),
            replica_prices,
            succession: self.succession(),
            drills,
            replica_added_latency,
            log_segment_bytes: self.number("PDS_LOG_SEGMENT_BYTES", 64 << 20, 65_536..=4_294_967_296),
            memory,
            unshipped_bytes: self.number("PDS_UNSHIPPED_BYTES", 256 << 20, 1_048_576..=1_099_511_627_776),
            checkpoint_bytes: self.number("PDS_CHECKPOINT_BYTES", 256 << 20, 1_048_576..=1_099_511_627_776),
            checkpoint_interval: self.millis("PDS_CHECKPOINT_INTERVAL_MS", 3_600_000),
            compaction: Compaction {
                enabled: self.flag("PDS_COMPACTION_ENABLED", true),
                bytes_per_second: self.number(
                    "PDS_COMPACTION_BYTES_PER_SECOND",
                    8 << 20,
                    65_536..=1_099_511_627_776,
                ),
                min_dead_share: f64::from(self.number::<u8>("PDS_COMPACTION_MIN_DEAD_PERCENT", 50, 1..=100))
                    / 100.0,
                force_after,
                deletion_max_age,
            },
            firehose_retention,
            replica_ageing,
            pitr_window,
            shutdown_timeout: self.millis("PDS_SHUTDOWN_TIMEOUT_MS", 10_000),
            backfill_limit,
            firehose_stall: self.millis("PDS_FIREHOSE_STALL_MS", 30_000),
            firehose_max_subscribers,
            firehose_max_per_address: self.number(
                "PDS_FIREHOSE_MAX_PER_ADDRESS",
                firehose_max_subscribers,
                1..=1_000_000,
            ),
            upstreams: self.upstreams(),
            brand: self.brand(&hostname),
            mail: self.mail(),
            crawlers: self.crawlers(),
            proxy: self.proxy(),
            http: Limits {
                connections: self.number("PDS_HTTP_MAX_CONNECTIONS", 10_000, 1..=1_000_000),
                per_address: self.number("PDS_HTTP_MAX_CONNECTIONS_PER_ADDRESS", 10_000, 1..=1_000_000),
                idle: self.millis("PDS_HTTP_IDLE_MS", 75_000),
                write_stall: self.millis("PDS_HTTP_WRITE_STALL_MS", 60_000),
            },
            trusted_proxies: self.trusted_proxies(client_address_header.as_ref(), &rate_limits.bypass),
            rate_limits,
            client_address_header,
            port_file: self.text("PDS_PORT_FILE").map(PathBuf::from),
            logging: Logging {
                enabled: self.flag("LOG_ENABLED", true),
                level: self.text("LOG_LEVEL").unwrap_or_else(|| "info".to_owned()),
                format,
                slow: Some(Duration::from_millis(self.number(
                    "PDS_SLOW_REQUEST_MS",
                    2_000,
                    0..=3_600_000,
                )))
                .filter(|limit| !limit.is_zero()),
                destination: self.text("LOG_DESTINATION").map(PathBuf::from),
            },
            service_did: service_did.ok()?,
            jwt_secret: Secret::new(jwt_secret),
            admin_password: Secret::new(admin_password),
            plc_rotation_key: Secret::new(plc_rotation_key?),
            key_encryption_key,
            hostname,
            data_dir,
            replica,
            durability,
            blobs,
        })
    }

    /// A size that is set, or `None` for the plan to decide.
    fn part(&mut self, name: &'static str, least: u64) -> Option<u64> {
        self.text(name)?;
        Some(self.number(name, least, least..=1_099_511_627_776))
    }

    fn memory(&mut self, uploads: u64, drills: bool) -> Option<MemoryPlan> {
        let (budget, source) = match self.part("PDS_MEMORY_BUDGET", memory::MIN_BUDGET) {
            Some(budget) => (budget, BudgetSource::Setting),
            None => memory::default_budget(),
        };
        let fixed = memory::Fixed {
            index_cache: self.part("PDS_INDEX_CACHE_BYTES", 1 << 20),
            trees: self.part("PDS_REPO_CACHE_BYTES", 1 << 20),
            log_ring: self.part("PDS_LOG_RING_BYTES", 1 << 20),
            firehose_ring: self.part("PDS_FIREHOSE_MAX_LAG_BYTES", 1 << 20),
            log_queue: self.part("PDS_LOG_QUEUE_BYTES", 16 << 20),
            cores: std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64),
            uploads,
            drills,
        };
        MemoryPlan::divide(budget, source, &fixed)
            .map_err(|problem| self.problems.push(format!("PDS_MEMORY_BUDGET: {problem}")))
            .ok()
    }

    fn succession(&mut self) -> Succession {
        Succession {
            standby: false,
            advertise_url: self.advertise_url(),
            lease: Duration::from_secs(self.number("PDS_LEASE_SECONDS", 90, 3..=3_600)),
            handover_timeout: self.millis("PDS_HANDOVER_TIMEOUT_MS", 15_000),
            handover_poll: Duration::from_millis(self.number("PDS_HANDOVER_POLL_MS", 5_000, 10..=3_600_000)),
            standby_poll: Duration::from_millis(self.number("PDS_STANDBY_POLL_MS", 1_000, 10..=3_600_000)),
            take_over_after: Duration::from_secs(self.number(
                "PDS_STANDBY_TAKE_OVER_SECONDS",
                0,
                0..=31_536_000,
            )),
        }
    }

    /// Where other servers on the replica reach this one: as set, or by the name that Azure Container Apps gives a revision.
    fn advertise_url(&mut self) -> String {
        let of_revision = match (
            self.text("CONTAINER_APP_REVISION"),
            self.text("CONTAINER_APP_ENV_DNS_SUFFIX"),
        ) {
            (Some(revision), Some(suffix)) => format!("https://{revision}.{suffix}"),
            _ => String::new(),
        };
        if self.text("PDS_ADVERTISE_URL").is_none() {
            return of_revision;
        }
        self.url("PDS_ADVERTISE_URL", "")
    }

    fn url(&mut self, name: &'static str, default: &str) -> String {
        let text = self.text(name).unwrap_or_else(|| default.to_owned());
        if !text.starts_with("https://") && !text.starts_with("http://") {
            self.problems
                .push(format!("{name} must be an http or https URL, not '{text}'"));
        }
        text.trim_end_matches('/').to_owned()
    }

    /// Weekly, and never in development mode unless it is asked for.
    fn drills(&mut self, dev_mode: bool) -> DrillSettings {
        let weekly = if dev_mode { 0 } else { 168 };
        let mut hours = |name| Duration::from_secs(self.number(name, weekly, 0..=87_600) * 3_600);
        DrillSettings {
            interval: hours("PDS_DRILL_INTERVAL_HOURS"),
            scrub_interval: hours("PDS_SCRUB_INTERVAL_HOURS"),
            disk_bytes: self.number("PDS_DRILL_DISK_BYTES", 1 << 30, 0..=1_099_511_627_776),
            bytes_per_second: self.number(
                "PDS_DRILL_BYTES_PER_SECOND",
                8 << 20,
                1_048_576..=1_099_511_627_776,
            ),
        }
    }

    /// Zero, like nothing, is no budget.
    fn monthly_requests(&mut self) -> Option<u64> {
        let monthly = self.number("PDS_REPLICA_MONTHLY_REQUESTS", 0, 0..=1_000_000_000_000);
        (monthly > 0).then_some(monthly)
    }

    /// The list prices of the kind of store, and what the operator knows better.
    fn prices(&mut self, replica: Option<&Replica>) -> Prices {
        let list = match replica {
            Some(Replica::Azure(_)) => Prices::AZURE_HOT_LRS,
            Some(Replica::S3(_)) => Prices::S3_STANDARD,
            Some(Replica::Directory(_)) | None => Prices::FREE,
        };
        let changes = self.list("PDS_REPLICA_PRICES").unwrap_or_default();
        list.with(changes.iter().map(String::as_str))
            .unwrap_or_else(|problem| {
                self.problems.push(format!("PDS_REPLICA_PRICES: {problem}"));
                list
            })
    }

    fn replica(&mut self) -> Option<Replica> {
        let text = self.text("PDS_REPLICA_URL")?;
        let (service_url, account, container, prefix) = match text.parse::<ReplicaUrl>() {
            Ok(ReplicaUrl::Directory(dir)) => return Some(Replica::Directory(dir)),
            Ok(ReplicaUrl::Azure {
                service_url,
                account,
                container,
                prefix,
            }) => (service_url, account, container, prefix),
            Ok(ReplicaUrl::S3 { bucket, prefix }) => {
                return self.s3("PDS_REPLICA_S3", bucket, prefix).map(Replica::S3);
            }
            Err(error) => {
                self.problems.push(format!("PDS_REPLICA_URL: {error}"));
                return None;
            }
        };
        let auth_name = self
            .text("PDS_REPLICA_AZURE_AUTH")
            .unwrap_or_else(|| "managed-identity".to_owned());
        let auth = match auth_name.as_str() {
            "managed-identity" => {
                AzureAuthSettings::ManagedIdentity(self.text("PDS_REPLICA_AZURE_CLIENT_ID"))
            }
            "workload-identity" => AzureAuthSettings::WorkloadIdentity,
            "sas" => AzureAuthSettings::Sas(Secret::new(self.required("PDS_REPLICA_AZURE_SAS"))),
            "shared-key" => AzureAuthSettings::SharedKey {
                account: self.text("PDS_REPLICA_AZURE_ACCOUNT").unwrap_or(account),
                key: Secret::new(self.required("PDS_REPLICA_AZURE_ACCOUNT_KEY")),
            },
            other => {
                self.problems.push(format!(
                    "PDS_REPLICA_AZURE_AUTH must be managed-identity, workload-identity, sas or shared-key, not '{other}'"
                ));
                return None;
            }
        };
        if service_url.starts_with("http://")
            && !matches!(
                auth,
                AzureAuthSettings::SharedKey { .. } | AzureAuthSettings::Sas(_)
            )
        {
            self.problems
                .push("PDS_REPLICA_URL: identities are only sent over https".to_owned());
        }
        let api_version = self.text("PDS_REPLICA_AZURE_API_VERSION");
        Some(Replica::Azure(AzureSettings {
            service_url,
            container,
            prefix,
            auth,
            api_version,
        }))
    }

    /// The bucket with the settings of one family.
    fn s3(&mut self, family: &str, bucket: String, prefix: String) -> Option<S3Config> {
        let setting = |name: &str| {
            debug_assert!(settings::find(name).is_some(), "{name} is not in the table");
            self.values.get(name).cloned()
        };
        match S3Config::from_settings(family, bucket, prefix, &setting) {
            Ok(config) => Some(config),
            Err(StoreError::Invalid { detail }) => {
                self.problems.push(detail);
                None
            }
            Err(error) => {
                self.problems.push(format!("{family}: {error}"));
                None
            }
        }
    }

    fn blobs(&mut self, data_dir: &std::path::Path, replica: Option<&Replica>) -> BlobPlace {
        let location = self.text("PDS_BLOBSTORE_DISK_LOCATION").map(PathBuf::from);
        let bucket = self.text("PDS_BLOBSTORE_S3_BUCKET");
        let remote = matches!(replica, Some(Replica::Azure(_) | Replica::S3(_)));
        let chosen = self.text("PDS_BLOBSTORE");
        match (chosen.as_deref(), location, bucket) {
            (_, Some(_), Some(_)) => {
                self.problems.push(
                    "PDS_BLOBSTORE_DISK_LOCATION and PDS_BLOBSTORE_S3_BUCKET exclude each other".to_owned(),
                );
                BlobPlace::Replica
            }
            (None | Some("s3"), None, Some(bucket)) => self
                .s3("PDS_BLOBSTORE_S3", bucket, String::new())
                .map_or(BlobPlace::Replica, BlobPlace::S3),
            (Some("replica"), ..) if remote => BlobPlace::Replica,
            (None, None, None) if remote => BlobPlace::Replica,
            (None | Some("disk"), Some(dir), None) => {
                if remote {
                    self.warnings.push(
                        "media blobs go to a local disk although the replica is elsewhere: they are lost with this disk"
                            .to_owned(),
                    );
                }
                BlobPlace::Disk(dir)
            }
            (None | Some("disk"), None, _) => BlobPlace::Disk(data_dir.join("blocks")),
            (Some("replica"), ..) => {
                self.problems
                    .push("PDS_BLOBSTORE=replica needs a PDS_REPLICA_URL in Azure or S3".to_owned());
                BlobPlace::Replica
            }
            (Some("s3"), ..) => {
                self.problems
                    .push("PDS_BLOBSTORE=s3 needs PDS_BLOBSTORE_S3_BUCKET".to_owned());
                BlobPlace::Replica
            }
            (Some(other), ..) => {
                self.problems.push(format!(
                    "PDS_BLOBSTORE must be disk, replica or s3, not '{other}'"
                ));
                BlobPlace::Replica
            }
        }
    }
}
