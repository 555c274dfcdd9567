//! Which handles an account may take. The checks run in this order, and the first that fails answers:
//!
//! 1. syntax, in lower case;
//! 2. top-level domains that can never resolve;
//! 3. under one of this server's own domains: one more label, 3 to 18 characters, not reserved;
//! 4. elsewhere: not for a new DID; for an existing one the handle must lead to it, which the caller finds out.
//!
//! There is no list of offensive words: what offends is a matter of moderation, which sees more than a name.

use engine::repo::Handle;

use super::reserved::is_reserved;

/// Top-level domains that no handle may have. `test` is allowed, for tests.
pub const DISALLOWED_TOP_LEVEL: [&str; 8] = [
    "local",
    "arpa",
    "invalid",
    "localhost",
    "internal",
    "example",
    "alt",
    "onion",
];
/// Shortest label under a domain of this server.
pub const MIN_LABEL_CHARS: usize = 3;
/// Longest label under a domain of this server.
pub const MAX_LABEL_CHARS: usize = 18;

/// Why a handle may not be taken. All are 400 on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandleError {
    /// Not a handle.
    #[error("Input/handle must be a valid handle")]
    Syntax,
    /// One of [`DISALLOWED_TOP_LEVEL`].
    #[error("Handle TLD is invalid or disallowed")]
    TopLevel,
    /// More than one label before this server's domain.
    #[error("Invalid characters in handle")]
    Nested,
    /// A label of fewer than [`MIN_LABEL_CHARS`].
    #[error("Handle too short")]
    TooShort,
    /// A label of more than [`MAX_LABEL_CHARS`].
    #[error("Handle too long")]
    TooLong,
    /// A name kept back.
    #[error("Reserved handle")]
    Reserved,
    /// A domain of somebody else, for an account that has no DID yet.
    #[error("Not a supported handle domain")]
    UnsupportedDomain,
    /// A domain of somebody else that does not lead to the account's DID.
    #[error("External handle did not resolve to DID")]
    Unresolved,
}

impl HandleError {
    /// The `error` field of the answer.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            HandleError::Reserved => "HandleNotAvailable",
            HandleError::UnsupportedDomain => "UnsupportedDomain",
            HandleError::Unresolved => "InvalidRequest",
            _ => "InvalidHandle",
        }
    }
}

/// Whose domain an allowed handle is under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandleDomain {
    /// This server's: whoever is first has it.
    Service,
    /// Somebody else's: it must lead to the account's DID.
    External,
}

/// The rules, with this server's own domains.
#[derive(Clone, Debug)]
pub struct HandlePolicy {
    /// Each with a leading dot, in lower case.
    service_domains: Vec<String>,
}

impl HandlePolicy {
    /// Rules for a server whose accounts live under `service_domains` (`PDS_SERVICE_HANDLE_DOMAINS`; the leading dot may
    /// be missing).
    #[must_use]
    pub fn new<S: AsRef<str>>(service_domains: &[S]) -> HandlePolicy {
        let service_domains = service_domains
            .iter()
            .map(|domain| {
                domain
                    .as_ref()
                    .trim()
                    .trim_start_matches('.')
                    .to_ascii_lowercase()
            })
            .filter(|domain| !domain.is_empty())
            .map(|domain| format!(".{domain}"))
            .collect();
        HandlePolicy { service_domains }
    }

    /// This server's domains, each with a leading dot.
    #[must_use]
    pub fn service_domains(&self) -> &[String] {
        &self.service_domains
    }

    /// Whether `handle` lies under a domain of this server.
    #[must_use]
    pub fn is_service_handle(&self, handle: &Handle) -> bool {
        self.label(handle).is_some()
    }

    /// Checks what somebody asks for; an administrator may have reserved names.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self, raw: &str, by_admin: bool) -> Result<(Handle, HandleDomain), HandleError> {
        let handle: Handle = raw.parse().map_err(|_| HandleError::Syntax)?;
        let top_level = handle.as_str().rsplit('.').next().unwrap_or_default();
        if DISALLOWED_TOP_LEVEL.contains(&top_level) {
            return Err(HandleError::TopLevel);
        }
        let Some(label) = self.label(&handle) else {
            return Ok((handle, HandleDomain::External));
        };
        if label.contains('.') {
            return Err(HandleError::Nested);
        }
        if label.len() < MIN_LABEL_CHARS {
            return Err(HandleError::TooShort);
        }
        if label.len() > MAX_LABEL_CHARS {
            return Err(HandleError::TooLong);
        }
        if !by_admin && is_reserved(label) {
            return Err(HandleError::Reserved);
        }
        Ok((handle, HandleDomain::Service))
    }

    /// Checks the handle of an account whose DID is about to be made, which cannot be anywhere else yet.
    ///
    /// # Errors
    /// As [`HandlePolicy::check`]; [`HandleError::UnsupportedDomain`] for a domain that is not this server's.
    pub fn check_for_new_did(&self, raw: &str, by_admin: bool) -> Result<Handle, HandleError> {
        match self.check(raw, by_admin)? {
            (handle, HandleDomain::Service) => Ok(handle),
            (_, HandleDomain::External) => Err(HandleError::UnsupportedDomain),
        }
    }

    /// What stands before the longest of this server's domains that `handle` ends in.
    fn label<'a>(&self, handle: &'a Handle) -> Option<&'a str> {
        self.service_domains
            .iter()
            .filter_map(|domain| handle.as_str().strip_suffix(domain.as_str()))
            .min_by_key(|label| label.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> HandlePolicy {
        HandlePolicy::new(&[".pds.test", "Other.Test"])
    }

    #[test]
    fn the_first_broken_rule_answers() {
        for (raw, error, name) in [
            ("alice", HandleError::Syntax, "InvalidHandle"),
            ("al_ice.pds.test", HandleError::Syntax, "InvalidHandle"),
            ("-alice.pds.test", HandleError::Syntax, "InvalidHandle"),
            ("", HandleError::Syntax, "InvalidHandle"),
            ("alice.pds.local", HandleError::TopLevel, "InvalidHandle"),
            ("alice.onion", HandleError::TopLevel, "InvalidHandle"),
            ("alice.EXAMPLE", HandleError::TopLevel, "InvalidHandle"),
            ("a.b.pds.test", HandleError::Nested, "InvalidHandle"),
            ("al.pds.test", HandleError::TooShort, "InvalidHandle"),
            (
                "nineteencharacterss.pds.test",
                HandleError::TooLong,
                "InvalidHandle",
            ),
            ("admin.pds.test", HandleError::Reserved, "HandleNotAvailable"),
            ("ADMIN.other.test", HandleError::Reserved, "HandleNotAvailable"),
        ] {
            let refused = policy().check(raw, false).unwrap_err();
            assert_eq!((refused, refused.name()), (error, name), "{raw}");
        }
    }

    #[test]
    fn allowed_handles_are_told_apart_by_whose_domain_they_are_under() {
        for (raw, expected, domain) in [
            ("Alice.PDS.test", "alice.pds.test", HandleDomain::Service),
            (
                "eighteencharacters.other.test",
                "eighteencharacters.other.test",
                HandleDomain::Service,
            ),
            ("admin.alice.com", "admin.alice.com", HandleDomain::External),
            ("pds.test", "pds.test", HandleDomain::External),
            ("xpds.test", "xpds.test", HandleDomain::External),
        ] {
            let (handle, found) = policy().check(raw, false).unwrap();
            assert_eq!((handle.as_str(), found), (expected, domain));
        }
        assert_eq!(policy().service_domains(), [".pds.test", ".other.test"]);
    }

    #[test]
    fn an_administrator_may_have_a_reserved_name() {
        assert_eq!(
            policy().check("admin.pds.test", true).unwrap().1,
            HandleDomain::Service
        );
        assert_eq!(policy().check("al.pds.test", true), Err(HandleError::TooShort));
    }

    #[test]
    fn a_new_did_needs_a_handle_under_this_servers_domain() {
        assert!(policy().check_for_new_did("alice.pds.test", false).is_ok());
        let refused = policy().check_for_new_did("alice.com", false).unwrap_err();
        assert_eq!(
            (refused, refused.name()),
            (HandleError::UnsupportedDomain, "UnsupportedDomain")
        );
    }
}
