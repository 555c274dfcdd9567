//! Settings: the firehose, connections and logging.

use super::Kind::{Flag, List, Number, Text};
use super::{Setting, meaningless, ours, reference, secret};

/// See the top of this file.
pub(super) const SETTINGS: &[Setting] = &[
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
        "header in which the proxy in front names the client's address, such as x-forwarded-for; its last entry counts, whoever sends it, unless PDS_TRUSTED_PROXIES is set",
    ),
    ours(
        "PDS_TRUSTED_PROXIES",
        List,
        "private networks, or whoever connects with PDS_CLIENT_ADDRESS_HEADER",
        "addresses and ranges of proxies whose word about the client's address is taken, or `none` (see docs/rate-limits.md)",
    ),
    // Rate limits.
    reference(
        "PDS_RATE_LIMITS_ENABLED",
        Flag,
        "false",
        "whether it is limited how often clients may ask (see docs/rate-limits.md)",
    ),
    secret(reference(
        "PDS_RATE_LIMIT_BYPASS_KEY",
        Text,
        "unset",
        "requests with it in the header x-ratelimit-bypass are not limited",
    )),
    reference(
        "PDS_RATE_LIMIT_BYPASS_IPS",
        List,
        "none",
        "addresses and ranges of clients that are not limited (the reference takes a range for its one address)",
    ),
    reference(
        "PDS_REDIS_SCRATCH_ADDRESS",
        Text,
        "unset: this server's memory",
        "host:port of the Redis in which requests are counted",
    ),
    secret(reference(
        "PDS_REDIS_SCRATCH_PASSWORD",
        Text,
        "unset",
        "its password",
    )),
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
    ours(
        "PDS_SLOW_REQUEST_MS",
        Number,
        "2000",
        "ms from which on an answer is logged as slow, as a warning, and counted (`pds_slow_requests_total`); 0: never",
    ),
    meaningless(
        "LOG_SYSTEMS",
        "LOG_LEVEL chooses parts of the program, by target=level",
    ),
    reference(
        "LOG_DESTINATION",
        Text,
        "unset: standard output",
        "file to which the log is appended; nothing rotates it",
    ),
];
