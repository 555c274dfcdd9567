//! Settings: where data is, the replica, memory and the engine.

use super::Kind::{Flag, List, Number, Text};
use super::{Setting, ours, reference, secret};

/// See the top of this file.
pub(super) const SETTINGS: &[Setting] = &[
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
        "PDS_IMPORT_DISK_BYTES",
        Number,
        "",
        "bytes of disk that all imports under way may take together, five thirds of each one's CAR (default: two of the largest size)",
    ),
    ours(
        "PDS_DISK_RESERVE_BYTES",
        Number,
        "134217728",
        "bytes of the data directory's disk that imports leave free for the log; one that would not is answered 503",
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
    ours(
        "PDS_REPLICA_MONTHLY_REQUESTS",
        Number,
        "0",
        "requests that a month may have which the store bills as writes or lists; near it, uploads that follow closely are moved apart, up to 1 s with durability `remote` and 10 s with `local`, and nothing is refused; 0 is no budget",
    ),
    ours(
        "PDS_REPLICA_PRICES",
        List,
        "list prices of Azure hot LRS; nothing for a directory",
        "US dollars for the projected cost: `write=`, `list=`, `read=`, `delete=` a million requests, `stored=` a GiB and month, `up=`, `down=` a GiB; what is not named keeps its default",
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
        "bytes of log that may be written and not yet in the views and the replica before writers get 503; with durability `local` this is what an outage of the store lets gather on the disk",
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
        "PDS_DELETION_MAX_AGE_DAYS",
        Number,
        "7",
        "days after which a removed repo makes the log be compacted, so that its bytes are gone; not before the firehose's retention has passed",
    ),
    ours(
        "PDS_PITR_WINDOW_DAYS",
        Number,
        "7",
        "days back to any moment of which the replica can be restored: so long it keeps what compactions replace; 0 keeps nothing",
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
];
