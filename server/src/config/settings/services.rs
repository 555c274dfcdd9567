//! Settings: the services that answer what this server does not, and how requests to them are bounded.

use super::Kind::{Flag, Number, Text};
use super::{Setting, ours, reference};

/// See the top of this file.
pub(super) const SETTINGS: &[Setting] = &[
    reference(
        "PDS_BSKY_APP_VIEW_URL",
        Text,
        "unset",
        "where methods go that neither this server nor a service that the client names answers; may be in the operator's own network",
    ),
    reference(
        "PDS_BSKY_APP_VIEW_DID",
        Text,
        "unset",
        "the AppView's DID; required with its URL",
    ),
    reference(
        "PDS_BSKY_APP_VIEW_CDN_URL_PATTERN",
        Text,
        "unset: this server's getBlob",
        "where the AppView has images, for what is added to its answers: a URL with %s three times, for the size, the account's DID and the image's CID",
    ),
    reference(
        "PDS_MOD_SERVICE_URL",
        Text,
        "unset",
        "where the moderators' methods (tools.ozone) go",
    ),
    reference(
        "PDS_MOD_SERVICE_DID",
        Text,
        "unset",
        "the moderation service's DID; required with its URL",
    ),
    reference(
        "PDS_REPORT_SERVICE_URL",
        Text,
        "PDS_MOD_SERVICE_URL",
        "where reports go",
    ),
    reference(
        "PDS_REPORT_SERVICE_DID",
        Text,
        "PDS_MOD_SERVICE_DID",
        "the report service's DID; required with its URL",
    ),
    reference(
        "PDS_PROXY_ALLOW_HTTP2",
        Flag,
        "false",
        "whether other services may be asked over HTTP/2",
    ),
    reference(
        "PDS_PROXY_HEADERS_TIMEOUT",
        Number,
        "10000",
        "ms that another service may take until its answer begins",
    ),
    reference(
        "PDS_PROXY_BODY_TIMEOUT",
        Number,
        "30000",
        "ms for which nothing may come of an answer that has begun",
    ),
    reference(
        "PDS_PROXY_MAX_RESPONSE_SIZE",
        Number,
        "10485760",
        "bytes that the answer of another service may have",
    ),
    reference(
        "PDS_PROXY_MAX_RETRIES",
        Number,
        "0",
        "how often a read is tried again if the connection to another service fails",
    ),
    reference(
        "PDS_PROXY_PREFER_COMPRESSED",
        Flag,
        "false",
        "whether an answer to which this server may add something is asked for packed (gzip) where the client takes that; else as it is",
    ),
    reference(
        "PDS_CRAWLERS",
        Text,
        "none",
        "base URLs of relays, separated by commas, which are asked to read the event stream: when there is something new, at most every 20 minutes",
    ),
    ours(
        "PDS_PROXY_MAX_REQUESTS",
        Number,
        "256",
        "requests to other services at once; more are answered 503",
    ),
    ours(
        "PDS_PROXY_MAX_PER_ACCOUNT",
        Number,
        "64",
        "requests to other services at once of one account",
    ),
];
