//! Settings: who the server is, its secrets, accounts and identities.

use super::Kind::{Flag, List, Number, Text};
use super::{Setting, ours, reference, refused, secret};

/// See the top of this file.
pub(super) const SETTINGS: &[Setting] = &[
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
        "for development: no drills by default, http and private addresses in outbound requests",
    ),
    reference(
        "PDS_DISABLE_SSRF_PROTECTION",
        Flag,
        "PDS_DEV_MODE",
        "allows http and private addresses in requests to what strangers name",
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
    refused(
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
        "PDS_INVITE_INTERVAL",
        Number,
        "0 (never)",
        "milliseconds of an account's life for each invite code of its own",
    ),
    reference(
        "PDS_INVITE_EPOCH",
        Number,
        "0",
        "milliseconds since 1970 before which an account's life does not count for invite codes",
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
];
