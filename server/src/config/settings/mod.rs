//! The table of every environment variable that the server knows: one row a setting, with default, unit and meaning.
//!
//! [`super::Config`] reads values only through this table, so a variable that is not listed here cannot have an
//! effect, and one that is listed is documented (`pds check-config --list` prints the table). The rows are in the files below, by
//! what they are about.

mod identity;
mod mail;
mod network;
mod services;
mod storage;
mod unused;

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
    /// A variable of the reference PDS without which something would be different from what was meant: the server does not start.
    Refused,
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

const fn later(name: &'static str, why: &'static str) -> Setting {
    Setting {
        name,
        kind: Kind::Text,
        default: "unset",
        meaning: why,
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

const fn refused(name: &'static str, why: &'static str) -> Setting {
    Setting {
        origin: Origin::Refused,
        ..meaningless(name, why)
    }
}

const fn secret(setting: Setting) -> Setting {
    Setting {
        secret: true,
        ..setting
    }
}

/// Every known variable, in the order in which `--list` prints them.
pub fn all() -> impl Iterator<Item = &'static Setting> {
    [
        identity::SETTINGS,
        storage::SETTINGS,
        network::SETTINGS,
        services::SETTINGS,
        mail::SETTINGS,
        unused::SETTINGS,
    ]
    .into_iter()
    .flatten()
}

/// The table for the documentation, `docs/settings.md`.
#[must_use]
pub fn markdown() -> String {
    let mut text = "# Settings\n\nEnvironment variables. `pds check-config` tells what is in force and what is wrong; this table is what `pds check-config --list --markdown`\n\
        prints. A secret `NAME` can also be in a file that `NAME_FILE` names. Flags are `true`/`1` or `false`/`0`, and unset otherwise; lists have commas; an empty value is an\n\
        unset one.\n"
        .to_owned();
    let section = |text: &mut String, title: &str, origins: &[Origin]| {
        text.push_str(&format!(
            "\n## {title}\n\n| name | default | meaning |\n|---|---|---|\n"
        ));
        for setting in all().filter(|setting| origins.contains(&setting.origin)) {
            let cell = |text: &str| text.replace('|', "\\|").replace('<', "&lt;");
            let marks = match (setting.origin == Origin::Ours, setting.secret) {
                (true, true) => " (ours, secret)",
                (true, false) => " (ours)",
                (false, true) => " (secret)",
                (false, false) => "",
            };
            let Setting {
                name,
                default,
                meaning,
                ..
            } = setting;
            text.push_str(&format!(
                "| `{name}`{marks} | {} | {} |\n",
                cell(default),
                cell(meaning)
            ));
        }
    };
    section(&mut text, "In force", &[Origin::Reference, Origin::Ours]);
    section(
        &mut text,
        "Of the reference PDS, without effect yet",
        &[Origin::NotYet],
    );
    section(
        &mut text,
        "Of the reference PDS, without a meaning here",
        &[Origin::Meaningless],
    );
    section(
        &mut text,
        "Of the reference PDS, refused at start",
        &[Origin::Refused],
    );
    text
}

/// The row of a variable.
#[must_use]
pub fn find(name: &str) -> Option<&'static Setting> {
    all().find(|setting| setting.name == name)
}

/// The known name that is nearest to a misspelt one, if any is near.
#[must_use]
pub fn nearest(name: &str) -> Option<&'static str> {
    all()
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
        let mut names: Vec<_> = all().map(|s| s.name).collect();
        names.sort_unstable();
        let before = names.len();
        names.dedup();
        assert_eq!(before, names.len());
        assert!(all().all(|s| !s.meaning.is_empty()));
    }

    #[test]
    fn the_documentation_has_this_table() {
        assert!(
            include_str!("../../../../docs/settings.md") == markdown(),
            "docs/settings.md is another one: run `pds check-config --list --markdown > docs/settings.md`"
        );
    }

    #[test]
    fn every_variable_of_the_reference_is_known() {
        for name in REFERENCE.split_whitespace() {
            assert!(
                find(name).is_some_and(|setting| setting.origin != Origin::Ours),
                "{name}"
            );
        }
    }

    /// Every `PDS_*` and `LOG_*` variable that the reference PDS reads.
    const REFERENCE: &str = "
        PDS_PORT PDS_HOSTNAME PDS_SERVICE_DID PDS_SERVICE_NAME PDS_VERSION PDS_HOME_URL PDS_LOGO_URL PDS_PRIVACY_POLICY_URL
        PDS_SUPPORT_URL PDS_TERMS_OF_SERVICE_URL PDS_CONTACT_EMAIL_ADDRESS PDS_ACCEPTING_REPO_IMPORTS PDS_MAX_REPO_IMPORT_SIZE
        PDS_BLOB_UPLOAD_LIMIT PDS_DEV_MODE PDS_HCAPTCHA_SITE_KEY PDS_HCAPTCHA_SECRET_KEY PDS_HCAPTCHA_TOKEN_SALT
        PDS_OAUTH_TRUSTED_CLIENTS PDS_PRIMARY_COLOR PDS_ERROR_COLOR PDS_WARNING_COLOR PDS_INFO_COLOR PDS_SUCCESS_COLOR
        PDS_BACKGROUND_LIGHT_URL PDS_BACKGROUND_DARK_URL PDS_DATA_DIRECTORY PDS_SQLITE_DISABLE_WAL_AUTO_CHECKPOINT
        PDS_ACCOUNT_DB_LOCATION PDS_SEQUENCER_DB_LOCATION PDS_DID_CACHE_DB_LOCATION PDS_ACTOR_STORE_DIRECTORY
        PDS_ACTOR_STORE_CACHE_SIZE PDS_BLOBSTORE_S3_BUCKET PDS_BLOBSTORE_S3_REGION PDS_BLOBSTORE_S3_ENDPOINT
        PDS_BLOBSTORE_S3_FORCE_PATH_STYLE PDS_BLOBSTORE_S3_ACCESS_KEY_ID PDS_BLOBSTORE_S3_SECRET_ACCESS_KEY
        PDS_BLOBSTORE_S3_UPLOAD_TIMEOUT_MS PDS_BLOBSTORE_S3_REQUEST_TIMEOUT_MS PDS_BLOBSTORE_DISK_LOCATION
        PDS_BLOBSTORE_DISK_TMP_LOCATION PDS_DID_PLC_URL PDS_DID_CACHE_STALE_TTL PDS_DID_CACHE_MAX_TTL PDS_ID_RESOLVER_TIMEOUT
        PDS_RECOVERY_DID_KEY PDS_SERVICE_HANDLE_DOMAINS PDS_HANDLE_BACKUP_NAMESERVERS PDS_ENABLE_DID_DOC_WITH_SESSION
        PDS_ENTRYWAY_URL PDS_ENTRYWAY_DID PDS_ENTRYWAY_JWT_VERIFY_KEY_K256_PUBLIC_KEY_HEX PDS_ENTRYWAY_PLC_ROTATION_KEY
        PDS_ENTRYWAY_ADMIN_TOKEN PDS_INVITE_REQUIRED PDS_INVITE_INTERVAL PDS_INVITE_EPOCH PDS_EMAIL_SMTP_URL PDS_EMAIL_FROM_ADDRESS
        PDS_EMAIL_DISABLE_CONFIRMATION_LINK PDS_MODERATION_EMAIL_SMTP_URL PDS_MODERATION_EMAIL_ADDRESS PDS_MAX_SUBSCRIPTION_BUFFER
        PDS_REPO_BACKFILL_LIMIT_MS PDS_BSKY_APP_VIEW_URL PDS_BSKY_APP_VIEW_DID PDS_BSKY_APP_VIEW_CDN_URL_PATTERN PDS_MOD_SERVICE_URL
        PDS_MOD_SERVICE_DID PDS_REPORT_SERVICE_URL PDS_REPORT_SERVICE_DID PDS_RATE_LIMITS_ENABLED PDS_RATE_LIMIT_BYPASS_KEY
        PDS_RATE_LIMIT_BYPASS_IPS PDS_REDIS_SCRATCH_ADDRESS PDS_REDIS_SCRATCH_PASSWORD PDS_CRAWLERS PDS_DPOP_SECRET
        PDS_DISABLE_SSRF_PROTECTION PDS_FETCH_MAX_RESPONSE_SIZE PDS_PROXY_ALLOW_HTTP2 PDS_PROXY_HEADERS_TIMEOUT
        PDS_PROXY_BODY_TIMEOUT PDS_PROXY_MAX_RESPONSE_SIZE PDS_PROXY_MAX_RETRIES PDS_PROXY_PREFER_COMPRESSED
        PDS_LEXICON_AUTHORITY_DID PDS_JWT_SECRET PDS_ADMIN_PASSWORD PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX
        PDS_PLC_ROTATION_KEY_KMS_KEY_ID LOG_ENABLED LOG_LEVEL LOG_SYSTEMS LOG_DESTINATION";

    #[test]
    fn a_misspelt_name_finds_its_neighbour_and_a_foreign_one_does_not() {
        assert_eq!(nearest("PDS_HOSTNAM"), Some("PDS_HOSTNAME"));
        assert_eq!(nearest("PDS_JWT_SECERT"), Some("PDS_JWT_SECRET"));
        assert_eq!(nearest("PDS_XYZ"), None);
    }
}
