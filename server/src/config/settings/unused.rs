//! Settings: names of the reference PDS that this version only knows.

use super::{Setting, later, meaningless, secret};

/// See the top of this file.
pub(super) const SETTINGS: &[Setting] = &[
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
    secret(later("PDS_EMAIL_SMTP_URL")),
    later("PDS_EMAIL_FROM_ADDRESS"),
    later("PDS_EMAIL_DISABLE_CONFIRMATION_LINK"),
    secret(later("PDS_MODERATION_EMAIL_SMTP_URL")),
    later("PDS_MODERATION_EMAIL_ADDRESS"),
    later("PDS_BSKY_APP_VIEW_CDN_URL_PATTERN"),
    later("PDS_RATE_LIMITS_ENABLED"),
    secret(later("PDS_RATE_LIMIT_BYPASS_KEY")),
    later("PDS_RATE_LIMIT_BYPASS_IPS"),
    later("PDS_REDIS_SCRATCH_ADDRESS"),
    secret(later("PDS_REDIS_SCRATCH_PASSWORD")),
    later("PDS_CRAWLERS"),
    secret(later("PDS_DPOP_SECRET")),
    later("PDS_DISABLE_SSRF_PROTECTION"),
    later("PDS_FETCH_MAX_RESPONSE_SIZE"),
    later("PDS_PROXY_PREFER_COMPRESSED"),
    later("PDS_LEXICON_AUTHORITY_DID"),
    later("PDS_ENTRYWAY_URL"),
    later("PDS_ENTRYWAY_DID"),
    later("PDS_ENTRYWAY_JWT_VERIFY_KEY_K256_PUBLIC_KEY_HEX"),
    later("PDS_ENTRYWAY_PLC_ROTATION_KEY"),
    secret(later("PDS_ENTRYWAY_ADMIN_TOKEN")),
    // Known from the reference PDS, without a meaning here.
    meaningless(
        "PDS_BLOBSTORE_S3_UPLOAD_TIMEOUT_MS",
        "an upload to a bucket has 10 s and 16 s more for each MiB",
    ),
    meaningless(
        "PDS_BLOBSTORE_S3_REQUEST_TIMEOUT_MS",
        "a request to a bucket has 10 s and 16 s more for each MiB",
    ),
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
