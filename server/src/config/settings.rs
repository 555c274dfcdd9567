//! The table of every environment variable that the server knows: one row a setting, with default, unit and meaning.
//!
//! [`super::Config`] reads values only through this table, so a variable that is not listed here cannot have an
//! effect, and one that is listed is documented (`pds check-config --list` prints the table).

/// What a setting's text must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// `true`/`1` or `false`/`0`; anything else counts as unset, as in the reference PDS.
    Flag,
    /// A non-negative whole number.
    Number,
    /// Comma-separated values.
    List,
}

/// Whose name a setting is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A variable of the reference PDS with the same meaning here.
    Reference,
    /// A variable of the reference PDS that this version reads and does not act on yet.
    NotYet,
    /// A variable of the reference PDS that has no meaning here, whatever it says.
    Meaningless,
    /// Our own.
    Ours,
}

/// One environment variable.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The variable's name.
    pub name: &'static str,
    /// The shape of its value.
    pub kind: Kind,
    /// The value when it is unset, as text for people.
    pub default: &'static str,
    /// What it does, with its unit.
    pub meaning: &'static str,
    /// Whether its value must never be printed. Secrets can also be given as a file by `<name>_FILE`.
    pub secret: bool,
    /// Whose name it is.
    pub origin: Origin,
}

const fn reference(name: &'static str, kind: Kind, default: &'static str, meaning: &'static str) -> Setting {
    Setting {
        name,
        kind,
        default,
        meaning,
        secret: false,
        origin: Origin::Reference,
    }
}

const fn ours(name: &'static str, kind: Kind, default: &'static str, meaning: &'static str) -> Setting {
    Setting {
        name,
        kind,
        default,
        meaning,
        secret: false,
        origin: Origin::Ours,
    }
}

const fn later(name: &'static str) -> Setting {
    Setting {
        name,
        kind: Kind::Text,
        default: "unset",
        meaning: "known from the reference PDS; no effect in this version",
        secret: false,
        origin: Origin::NotYet,
    }
}

const fn meaningless(name: &'static str, why: &'static str) -> Setting {
    Setting {
        name,
        kind: Kind::Text,
        default: "unset",
        meaning: why,
        secret: false,
        origin: Origin::Meaningless,
    }
}

const fn secret(setting: Setting) -> Setting {
    Setting {
        secret: true,
        ..setting
    }
}

use Kind::{Flag, List, Number, Text};

/// Every known variable, in the order in which `--list` prints them.
pub const SETTINGS: &[Setting] = &[
    // Who we are.
    reference(
        "PDS_HOSTNAME",
        Text,
        "localhost",
        "public host name; the public URL is https://<hostname>, or http://localhost:<port> for localhost",
    ),
    reference(
        "PDS_PORT",
        Number,
        "2583",
        "TCP port to listen on; 0 takes a free one",
    ),
    ours(
        "PDS_BIND_ADDRESS",
        Text,
        "0.0.0.0 (127.0.0.1 for localhost)",
        "address to listen on",
    ),
    ours(
        "PDS_PORT_FILE",
        Text,
        "unset",
        "file that gets the port number once the server listens",
    ),
    reference(
        "PDS_SERVICE_DID",
        Text,
        "did:web:<hostname>",
        "DID of this service, the audience of its tokens",
    ),
    reference(
        "PDS_SERVICE_HANDLE_DOMAINS",
        List,
        ".<hostname> (.test on localhost)",
        "domains under which accounts get handles; each starts with a dot",
    ),
    reference(
        "PDS_VERSION",
        Text,
        "the program's version",
        "version that /xrpc/_health reports",
    ),
    reference("PDS_PRIVACY_POLICY_URL", Text, "unset", "link in describeServer"),
    reference(
        "PDS_TERMS_OF_SERVICE_URL",
        Text,
        "unset",
        "link in describeServer",
    ),
    reference(
        "PDS_CONTACT_EMAIL_ADDRESS",
        Text,
        "unset",
        "contact in describeServer",
    ),
    reference(
        "PDS_DEV_MODE",
        Flag,
        "false",
        "allows http and private addresses in outbound requests",
    ),
    // Secrets.
    secret(reference(
        "PDS_JWT_SECRET",
        Text,
        "required",
        "key of the session tokens, any text; at least 16 bytes",
    )),
    secret(reference(
        "PDS_ADMIN_PASSWORD",
        Text,
        "required",
        "password of the user `admin` in Basic authentication",
    )),
    secret(reference(
        "PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX",
        Text,
        "required",
        "secp256k1 private key, 64 hex digits, that signs did:plc operations",
    )),
    meaningless(
        "PDS_PLC_ROTATION_KEY_KMS_KEY_ID",
        "a key service for the rotation key is not supported: use PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX",
    ),
    secret(ours(
        "PDS_KEY_ENCRYPTION_KEY_HEX",
        Text,
        "derived from the rotation key",
        "32 bytes in hex that wrap the signing keys kept in the log; losing it loses every signing key",
    )),
    // Accounts.
    reference(
        "PDS_INVITE_REQUIRED",
        Flag,
        "true",
        "whether createAccount needs an invite code",
    ),
    reference(
        "PDS_RECOVERY_DID_KEY",
        Text,
        "unset",
        "did:key that is put above ours in the rotation keys of new accounts",
    ),
    reference(
        "PDS_ENABLE_DID_DOC_WITH_SESSION",
        Flag,
        "false",
        "whether session answers carry the DID document",
    ),
    // Identity.
    reference(
        "PDS_DID_PLC_URL",
        Text,
        "https://plc.directory",
        "did:plc directory",
    ),
    reference(
        "PDS_DID_CACHE_STALE_TTL",
        Number,
        "3600000",
        "ms after which a cached DID document is refreshed in the background",
    ),
    reference(
        "PDS_DID_CACHE_MAX_TTL",
        Number,
        "86400000",
        "ms after which a cached DID document is no longer used",
    ),
    reference(
        "PDS_ID_RESOLVER_TIMEOUT",
        Number,
        "3000",
        "ms for one identity look-up",
    ),
    // Data.
    reference(
        "PDS_DATA_DIRECTORY",
        Text,
        "./data",
        "directory of the log, its views and checkpoints",
    ),
    reference(
        "PDS_BLOBSTORE_DISK_LOCATION",
        Text,
        "<data>/blocks",
        "directory of media blobs, when they are kept on a disk",
    ),
    reference(
        "PDS_BLOB_UPLOAD_LIMIT",
        Number,
        "5242880",
        "largest blob in bytes",
    ),
    reference(
        "PDS_ACCEPTING_REPO_IMPORTS",
        Flag,
        "true",
        "whether importRepo is served",
    ),
    reference(
        "PDS_MAX_REPO_IMPORT_SIZE",
        Number,
        "PDS_BLOB_UPLOAD_LIMIT",
        "largest repo that importRepo takes, bytes of CAR",
    ),
    ours(
        "PDS_BLOBSTORE",
        Text,
        "azure if the replica is in Azure, else disk",
        "where media blobs live: `disk` or `azure` (the replica's container)",
    ),
    ours(
        "PDS_DURABILITY",
        Text,
        "remote if a replica is set, else local",
        "what an answer waits for: `local` (synced to this disk) or `remote` (accepted by the replica store)",
    ),
    ours(
        "PDS_REPLICA_URL",
        Text,
        "unset",
        "replica store: `file:///absolute/dir` or `https://<account>.blob.core.windows.net/<container>[/<prefix>]`",
    ),
    ours(
        "PDS_REPLICA_AZURE_AUTH",
        Text,
        "managed-identity",
        "`managed-identity`, `workload-identity`, `sas` or `shared-key`",
    ),
    ours(
        "PDS_REPLICA_AZURE_CLIENT_ID",
        Text,
        "unset",
        "client id of a user-assigned managed identity",
    ),
    secret(ours(
        "PDS_REPLICA_AZURE_SAS",
        Text,
        "unset",
        "shared access signature (the query string), for auth `sas`",
    )),
    secret(ours(
        "PDS_REPLICA_AZURE_ACCOUNT_KEY",
        Text,
        "unset",
        "account key in base64, for auth `shared-key` (the emulator)",
    )),
    ours(
        "PDS_REPLICA_AZURE_ACCOUNT",
        Text,
        "first label of the URL's host",
        "account name, for auth `shared-key`",
    ),
    ours(
        "PDS_REPLICA_AZURE_API_VERSION",
        Text,
        "the client's own",
        "service version to ask for; the emulator may need an older one",
    ),
    ours(
        "PDS_REPLICA_TIMEOUT_MS",
        Number,
        "10000",
        "ms for one upload before it is tried again",
    ),
    ours(
        "PDS_WRITE_TIMEOUT_MS",
        Number,
        "30000",
        "ms that a write waits to become durable before it is answered 503; it may still happen",
    ),
    ours(
        "PDS_REPLICA_IN_FLIGHT",
        Number,
        "4",
        "log chunks uploaded at once, 1 to 16",
    ),
    ours(
        "PDS_REPLICA_ADDED_LATENCY_MS",
        Number,
        "0",
        "ms by which every request to the replica is delayed, to measure on one machine what a distant store costs; development mode only",
    ),
    ours(
        "PDS_REPLICA_MIN_INTERVAL_MS",
        Number,
        "10",
        "with durability `local`: ms between two uploads under load, on average; more mean fewer requests and a larger loss window",
    ),
    // Memory.
    ours(
        "PDS_MEMORY_BUDGET",
        Number,
        "",
        "bytes that this process may use, divided over caches and buffers (default: three quarters of the container's limit, else 268435456)",
    ),
    ours(
        "PDS_INDEX_CACHE_BYTES",
        Number,
        "",
        "pages of the index kept in memory (default: a share of the memory budget)",
    ),
    // The engine.
    ours(
        "PDS_LOG_SEGMENT_BYTES",
        Number,
        "67108864",
        "size at which a log segment is sealed",
    ),
    ours(
        "PDS_LOG_QUEUE_BYTES",
        Number,
        "",
        "bytes of writes that may wait for the log before writers get 503 (default: a share of the memory budget)",
    ),
    ours(
        "PDS_LOG_RING_BYTES",
        Number,
        "",
        "bytes of recent log kept in memory for the shipper, the views and the firehose (default: a share of the memory budget)",
    ),
    ours(
        "PDS_UNSHIPPED_BYTES",
        Number,
        "268435456",
        "bytes of log that may be written and not yet durable before writers get 503",
    ),
    ours(
        "PDS_CHECKPOINT_BYTES",
        Number,
        "268435456",
        "bytes of log after which the views are checkpointed",
    ),
    ours(
        "PDS_CHECKPOINT_INTERVAL_MS",
        Number,
        "3600000",
        "ms after which the views are checkpointed, if the log moved",
    ),
    ours(
        "PDS_COMPACTION_ENABLED",
        Flag,
        "true",
        "rewrite the old part of the log without what is dead in it, in the background",
    ),
    ours(
        "PDS_COMPACTION_BYTES_PER_SECOND",
        Number,
        "8388608",
        "bytes a second that a compaction reads and writes at most",
    ),
    ours(
        "PDS_COMPACTION_MIN_DEAD_PERCENT",
        Number,
        "50",
        "share of the bytes behind the firehose's retention that must be dead for a compaction, in percent",
    ),
    ours(
        "PDS_COMPACTION_FORCE_AFTER_DAYS",
        Number,
        "30",
        "days behind the retention after which the log is compacted in any case, so that what was deleted is gone",
    ),
    ours(
        "PDS_REPO_CACHE_BYTES",
        Number,
        "",
        "memory for the trees of recently written repos (default: a share of the memory budget)",
    ),
    ours(
        "PDS_SHUTDOWN_TIMEOUT_MS",
        Number,
        "10000",
        "ms for draining, flushing and shipping on SIGTERM",
    ),
    // Firehose.
    reference(
        "PDS_REPO_BACKFILL_LIMIT_MS",
        Number,
        "259200000",
        "how far back in ms a firehose cursor reaches (the reference: 24 h)",
    ),
    ours(
        "PDS_FIREHOSE_RETENTION_HOURS",
        Number,
        "72",
        "hours of events that compaction leaves in the log; never less than PDS_REPO_BACKFILL_LIMIT_MS",
    ),
    ours(
        "PDS_FIREHOSE_MAX_LAG_BYTES",
        Number,
        "",
        "bytes that a live firehose consumer may fall behind in memory before it is read from the log instead (default: a share of the memory budget)",
    ),
    ours(
        "PDS_FIREHOSE_STALL_MS",
        Number,
        "30000",
        "ms for which a consumer may refuse bytes before it is dropped as too slow",
    ),
    ours(
        "PDS_FIREHOSE_MAX_SUBSCRIBERS",
        Number,
        "1000",
        "firehose connections at once",
    ),
    ours(
        "PDS_FIREHOSE_MAX_PER_ADDRESS",
        Number,
        "PDS_FIREHOSE_MAX_SUBSCRIBERS",
        "firehose connections of one client address at once; behind a proxy set PDS_CLIENT_ADDRESS_HEADER first",
    ),
    // Connections.
    ours(
        "PDS_HTTP_MAX_CONNECTIONS",
        Number,
        "10000",
        "connections at once; more are closed",
    ),
    ours(
        "PDS_HTTP_MAX_CONNECTIONS_PER_ADDRESS",
        Number,
        "10000",
        "connections at once of one address, which behind a proxy is the proxy's",
    ),
    ours(
        "PDS_HTTP_IDLE_MS",
        Number,
        "75000",
        "ms that a connection may wait for the whole head of a request; longer than a proxy in front keeps connections",
    ),
    ours(
        "PDS_HTTP_WRITE_STALL_MS",
        Number,
        "60000",
        "ms for which a client may take nothing of an answer before its connection is broken",
    ),
    ours(
        "PDS_CLIENT_ADDRESS_HEADER",
        Text,
        "unset: the connection's",
        "header in which a trusted proxy names the client's address, such as x-forwarded-for; its last entry counts",
    ),
    meaningless(
        "PDS_MAX_SUBSCRIPTION_BUFFER",
        "consumers are bounded by bytes: PDS_FIREHOSE_MAX_LAG_BYTES",
    ),
    // Logging.
    reference("LOG_ENABLED", Flag, "true", "whether to log at all"),
    reference(
        "LOG_LEVEL",
        Text,
        "info",
        "error, warn, info, debug or trace, or a list of target=level",
    ),
    ours(
        "PDS_LOG_FORMAT",
        Text,
        "text on a terminal, else json",
        "`text` or `json`",
    ),
    later("LOG_SYSTEMS"),
    later("LOG_DESTINATION"),
    // Known from the reference PDS, for later versions.
    later("PDS_SERVICE_NAME"),
    later("PDS_HOME_URL"),
    later("PDS_LOGO_URL"),
    later("PDS_SUPPORT_URL"),
    later("PDS_HCAPTCHA_SITE_KEY"),
    secret(later("PDS_HCAPTCHA_SECRET_KEY")),
    secret(later("PDS_HCAPTCHA_TOKEN_SALT")),
    later("PDS_OAUTH_TRUSTED_CLIENTS"),
    later("PDS_PRIMARY_COLOR"),
    later("PDS_ERROR_COLOR"),
    later("PDS_WARNING_COLOR"),
    later("PDS_INFO_COLOR"),
    later("PDS_SUCCESS_COLOR"),
    later("PDS_BACKGROUND_LIGHT_URL"),
    later("PDS_BACKGROUND_DARK_URL"),
    later("PDS_HANDLE_BACKUP_NAMESERVERS"),
    later("PDS_INVITE_INTERVAL"),
    later("PDS_INVITE_EPOCH"),
    secret(later("PDS_EMAIL_SMTP_URL")),
    later("PDS_EMAIL_FROM_ADDRESS"),
    later("PDS_EMAIL_DISABLE_CONFIRMATION_LINK"),
    secret(later("PDS_MODERATION_EMAIL_SMTP_URL")),
    later("PDS_MODERATION_EMAIL_ADDRESS"),
    later("PDS_BSKY_APP_VIEW_URL"),
    later("PDS_BSKY_APP_VIEW_DID"),
    later("PDS_BSKY_APP_VIEW_CDN_URL_PATTERN"),
    later("PDS_MOD_SERVICE_URL"),
    later("PDS_MOD_SERVICE_DID"),
    later("PDS_REPORT_SERVICE_URL"),
    later("PDS_REPORT_SERVICE_DID"),
    later("PDS_RATE_LIMITS_ENABLED"),
    secret(later("PDS_RATE_LIMIT_BYPASS_KEY")),
    later("PDS_RATE_LIMIT_BYPASS_IPS"),
    later("PDS_REDIS_SCRATCH_ADDRESS"),
    secret(later("PDS_REDIS_SCRATCH_PASSWORD")),
    later("PDS_CRAWLERS"),
    secret(later("PDS_DPOP_SECRET")),
    later("PDS_DISABLE_SSRF_PROTECTION"),
    later("PDS_FETCH_MAX_RESPONSE_SIZE"),
    later("PDS_PROXY_ALLOW_HTTP2"),
    later("PDS_PROXY_HEADERS_TIMEOUT"),
    later("PDS_PROXY_BODY_TIMEOUT"),
    later("PDS_PROXY_MAX_RESPONSE_SIZE"),
    later("PDS_PROXY_MAX_RETRIES"),
    later("PDS_PROXY_PREFER_COMPRESSED"),
    later("PDS_LEXICON_AUTHORITY_DID"),
    later("PDS_ENTRYWAY_URL"),
    later("PDS_ENTRYWAY_DID"),
    later("PDS_ENTRYWAY_JWT_VERIFY_KEY_K256_PUBLIC_KEY_HEX"),
    later("PDS_ENTRYWAY_PLC_ROTATION_KEY"),
    secret(later("PDS_ENTRYWAY_ADMIN_TOKEN")),
    later("PDS_BLOBSTORE_S3_BUCKET"),
    later("PDS_BLOBSTORE_S3_REGION"),
    later("PDS_BLOBSTORE_S3_ENDPOINT"),
    later("PDS_BLOBSTORE_S3_FORCE_PATH_STYLE"),
    later("PDS_BLOBSTORE_S3_ACCESS_KEY_ID"),
    secret(later("PDS_BLOBSTORE_S3_SECRET_ACCESS_KEY")),
    later("PDS_BLOBSTORE_S3_UPLOAD_TIMEOUT_MS"),
    later("PDS_BLOBSTORE_S3_REQUEST_TIMEOUT_MS"),
    // Known from the reference PDS, without a meaning here.
    meaningless(
        "PDS_BLOBSTORE_DISK_TMP_LOCATION",
        "unfinished uploads live in `tempt` below the blob directory",
    ),
    meaningless(
        "PDS_SQLITE_DISABLE_WAL_AUTO_CHECKPOINT",
        "the log is what is replicated, not SQLite files",
    ),
    meaningless(
        "PDS_ACCOUNT_DB_LOCATION",
        "account.sqlite is a view, kept below the data directory",
    ),
    meaningless("PDS_SEQUENCER_DB_LOCATION", "the log is the sequencer"),
    meaningless("PDS_DID_CACHE_DB_LOCATION", "DID documents are cached in memory"),
    meaningless("PDS_ACTOR_STORE_DIRECTORY", "repos live in the log"),
    meaningless(
        "PDS_ACTOR_STORE_CACHE_SIZE",
        "repos live in the log: see PDS_REPO_CACHE_BYTES",
    ),
];

/// The row of a variable.
#[must_use]
pub fn find(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

/// The known name that is nearest to a misspelt one, if any is near.
#[must_use]
pub fn nearest(name: &str) -> Option<&'static str> {
    SETTINGS
        .iter()
        .map(|setting| (distance(name, setting.name), setting.name))
        .min()
        .filter(|(steps, known)| *steps <= known.len() / 3)
        .map(|(_, known)| known)
}

/// Levenshtein distance of two short ASCII texts.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<u8> = b.bytes().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_listed_once_and_has_a_meaning() {
        let mut names: Vec<_> = SETTINGS.iter().map(|s| s.name).collect();
        names.sort_unstable();
        let before = names.len();
        names.dedup();
        assert_eq!(before, names.len());
        assert!(SETTINGS.iter().all(|s| !s.meaning.is_empty()));
    }

    #[test]
    fn a_misspelt_name_finds_its_neighbour_and_a_foreign_one_does_not() {
        assert_eq!(nearest("PDS_HOSTNAM"), Some("PDS_HOSTNAME"));
        assert_eq!(nearest("PDS_JWT_SECERT"), Some("PDS_JWT_SECRET"));
        assert_eq!(nearest("PDS_XYZ"), None);
    }
}
