//! Settings: mail, and who the operator is to people.

use super::Kind::{Flag, Number, Text};
use super::{Setting, ours, reference, secret};

/// See the top of this file.
pub(super) const SETTINGS: &[Setting] = &[
    secret(reference(
        "PDS_EMAIL_SMTP_URL",
        Text,
        "unset: no mail",
        "mail server, smtps://user:password@host:port or smtp://…, the latter with STARTTLS (see docs/mail.md)",
    )),
    reference(
        "PDS_EMAIL_FROM_ADDRESS",
        Text,
        "unset",
        "sender of mail, an address or `Name <address>`; required with PDS_EMAIL_SMTP_URL",
    ),
    reference(
        "PDS_EMAIL_DISABLE_CONFIRMATION_LINK",
        Flag,
        "false",
        "whether the mail that confirms an address has only the code and no link to bsky.app",
    ),
    ours(
        "PDS_EMAIL_DAILY_PER_ADDRESS",
        Number,
        "20",
        "mails to one address in 24 hours; more are refused with 429",
    ),
    ours(
        "PDS_EMAIL_DAILY_TOTAL",
        Number,
        "10000",
        "mails in 24 hours; more are refused with 429",
    ),
    secret(reference(
        "PDS_MODERATION_EMAIL_SMTP_URL",
        Text,
        "PDS_EMAIL_SMTP_URL",
        "mail server for what moderators write",
    )),
    reference(
        "PDS_MODERATION_EMAIL_ADDRESS",
        Text,
        "PDS_EMAIL_FROM_ADDRESS",
        "sender of what moderators write; required with PDS_MODERATION_EMAIL_SMTP_URL",
    ),
    reference(
        "PDS_SERVICE_NAME",
        Text,
        "<hostname> PDS",
        "what the service is called in mail",
    ),
    reference(
        "PDS_HOME_URL",
        Text,
        "unset",
        "link to the operator's site in mail",
    ),
    reference("PDS_LOGO_URL", Text, "unset", "image at the top of mail"),
    reference("PDS_SUPPORT_URL", Text, "unset", "link to help in mail"),
    reference("PDS_PRIMARY_COLOR", Text, "#0a58ca", "colour of codes in mail"),
];
