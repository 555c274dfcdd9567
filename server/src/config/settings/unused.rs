//! Settings: names of the reference PDS that this version only knows.

use super::{Setting, later, meaningless, refused, secret};

/// Why the settings of an entryway are refused.
const ENTRYWAY: &str = "this server issues its own sessions and is nobody's resource server: without the entryway, accounts could not log in";

/// See the top of this file.
pub(super) const SETTINGS: &[Setting] = &[
    // Known from the reference PDS, for later versions.
    later("PDS_HCAPTCHA_SITE_KEY", "OAuth and its pages are not served yet"),
    secret(later(
        "PDS_HCAPTCHA_SECRET_KEY",
        "OAuth and its pages are not served yet",
    )),
    secret(later(
        "PDS_HCAPTCHA_TOKEN_SALT",
        "OAuth and its pages are not served yet",
    )),
    later(
        "PDS_OAUTH_TRUSTED_CLIENTS",
        "OAuth and its pages are not served yet",
    ),
    later("PDS_ERROR_COLOR", "OAuth and its pages are not served yet"),
    later("PDS_WARNING_COLOR", "OAuth and its pages are not served yet"),
    later("PDS_INFO_COLOR", "OAuth and its pages are not served yet"),
    later("PDS_SUCCESS_COLOR", "OAuth and its pages are not served yet"),
    later(
        "PDS_BACKGROUND_LIGHT_URL",
        "OAuth and its pages are not served yet",
    ),
    later(
        "PDS_BACKGROUND_DARK_URL",
        "OAuth and its pages are not served yet",
    ),
    later(
        "PDS_HANDLE_BACKUP_NAMESERVERS",
        "handles are asked of the system's name servers only",
    ),
    secret(later("PDS_DPOP_SECRET", "OAuth and its pages are not served yet")),
    later(
        "PDS_LEXICON_AUTHORITY_DID",
        "OAuth and its pages are not served yet",
    ),
    refused("PDS_ENTRYWAY_URL", ENTRYWAY),
    refused("PDS_ENTRYWAY_DID", ENTRYWAY),
    refused("PDS_ENTRYWAY_JWT_VERIFY_KEY_K256_PUBLIC_KEY_HEX", ENTRYWAY),
    refused("PDS_ENTRYWAY_PLC_ROTATION_KEY", ENTRYWAY),
    secret(refused("PDS_ENTRYWAY_ADMIN_TOKEN", ENTRYWAY)),
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
        "PDS_FETCH_MAX_RESPONSE_SIZE",
        "what strangers name is bounded by its kind: DID documents to 256 KiB, the files of handles to 4 KiB",
    ),
    meaningless(
        "PDS_REPO_SIGNING_KEY_K256_PRIVATE_KEY_HEX",
        "each account has a signing key of its own; the reference ignores it, too",
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
