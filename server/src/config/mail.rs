//! Settings of mail: by which servers it leaves, how much of it, and what it looks like.

use crate::secrets::Secret;

/// Who the operator is to people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Brand {
    /// `PDS_SERVICE_NAME`.
    pub name: String,
    /// `PDS_HOME_URL`.
    pub home_url: Option<String>,
    /// `PDS_LOGO_URL`.
    pub logo_url: Option<String>,
    /// `PDS_SUPPORT_URL`.
    pub support_url: Option<String>,
    /// `PDS_PRIMARY_COLOR`.
    pub color: String,
    /// Whether the mail that confirms an address has a link: not `PDS_EMAIL_DISABLE_CONFIRMATION_LINK`.
    pub confirmation_link: bool,
}

impl Default for Brand {
    fn default() -> Brand {
        Brand {
            name: "PDS".to_owned(),
            home_url: None,
            logo_url: None,
            support_url: None,
            color: "#0a58ca".to_owned(),
            confirmation_link: true,
        }
    }
}

/// By which servers mail leaves, and how much of it.
#[derive(Clone, Debug, Default)]
pub struct MailSettings {
    /// `PDS_EMAIL_SMTP_URL`, `PDS_EMAIL_FROM_ADDRESS`.
    pub ordinary: Option<MailServer>,
    /// `PDS_MODERATION_EMAIL_SMTP_URL`, `PDS_MODERATION_EMAIL_ADDRESS`: for what moderators write.
    pub moderation: Option<MailServer>,
    /// `PDS_EMAIL_DAILY_PER_ADDRESS`.
    pub daily_per_address: i64,
    /// `PDS_EMAIL_DAILY_TOTAL`.
    pub daily_total: i64,
}

/// A server that takes mail, and from whom.
#[derive(Clone, Debug)]
pub struct MailServer {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// How the connection is protected.
    pub tls: SmtpTls,
    /// User and password.
    pub credentials: Option<(String, Secret<String>)>,
    /// The sender: an address, or a name and an address.
    pub from: String,
}

impl std::fmt::Display for SmtpTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            SmtpTls::FromTheStart => "TLS",
            SmtpTls::Required => "STARTTLS",
            SmtpTls::IfOffered => "STARTTLS if offered",
            SmtpTls::Never => "not encrypted",
        })
    }
}

/// How a connection to a mail server is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmtpTls {
    /// TLS before SMTP.
    FromTheStart,
    /// STARTTLS, or nothing is sent.
    Required,
    /// STARTTLS if the server has it.
    IfOffered,
    /// Not at all.
    Never,
}
