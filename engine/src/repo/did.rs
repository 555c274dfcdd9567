//! DIDs: the permanent names of accounts and services.

use super::text::checked_text;

/// Longest DID, in bytes.
pub const MAX_DID_BYTES: usize = 2048;

checked_text! {
    /// A syntactically valid DID of any method, at most 2048 ASCII bytes. That it can be resolved is not said.
    /// Spec: <https://atproto.com/specs/did>.
    Did, DidError, check, |raw| raw.into(), "a DID"
}

/// Why text is not a DID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DidError {
    /// Longer than [`MAX_DID_BYTES`].
    #[error("a DID of more than {MAX_DID_BYTES} bytes")]
    TooLong,
    /// Does not start with `did:`.
    #[error("a DID has to start with \"did:\"")]
    Prefix,
    /// The method is empty or not lower-case letters.
    #[error("a DID's method has to be lower-case letters")]
    Method,
    /// The part after the method is empty, has a character that is not allowed, or ends in `:` or `%`.
    #[error("a DID's identifier has an invalid form")]
    Identifier,
}

fn split(raw: &str) -> Option<(&str, &str)> {
    raw.strip_prefix("did:")?.split_once(':')
}

fn check(raw: &str) -> Result<(), DidError> {
    if raw.len() > MAX_DID_BYTES {
        return Err(DidError::TooLong);
    }
    if !raw.starts_with("did:") {
        return Err(DidError::Prefix);
    }
    let (method, identifier) = split(raw).ok_or(DidError::Method)?;
    if method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_lowercase()) {
        return Err(DidError::Method);
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:%-".contains(&byte);
    let sound_end = identifier
        .bytes()
        .last()
        .is_some_and(|last| last != b':' && last != b'%');
    if sound_end && identifier.bytes().all(allowed) {
        Ok(())
    } else {
        Err(DidError::Identifier)
    }
}

impl Did {
    /// The method, such as `plc` or `web`.
    #[must_use]
    pub fn method(&self) -> &str {
        split(&self.0).map_or("", |(method, _)| method)
    }

    /// What follows `did:<method>:`.
    #[must_use]
    pub fn identifier(&self) -> &str {
        split(&self.0).map_or("", |(_, identifier)| identifier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_did_gives_its_parts() {
        let did: Did = "did:web:example.com%3A8080".parse().unwrap();
        assert_eq!((did.method(), did.identifier()), ("web", "example.com%3A8080"));
    }

    #[test]
    fn a_did_may_have_2048_bytes_and_no_more() {
        let longest = format!("did:x:{}", "a".repeat(MAX_DID_BYTES - 6));
        assert!(longest.parse::<Did>().is_ok());
        assert_eq!(format!("{longest}a").parse::<Did>(), Err(DidError::TooLong));
    }

    #[test]
    fn json_is_checked_on_the_way_in() {
        assert!(serde_json::from_str::<Did>("\"did:plc:abc\"").is_ok());
        assert!(serde_json::from_str::<Did>("\"did:plc:\"").is_err());
        assert!(serde_json::from_str::<Did>("7").is_err());
    }
}
