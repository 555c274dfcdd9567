//! NSIDs: the names of schemas, and so of collections and methods.

use super::text::{checked_text, is_domain_label};

/// Longest NSID, in bytes.
pub const MAX_NSID_BYTES: usize = 317;
const MAX_NAME_BYTES: usize = 63;

checked_text! {
    /// A syntactically valid NSID, such as `app.bsky.feed.post`: a domain in reverse and a name, at most 317 ASCII
    /// bytes. Compared as it is written, case included. Spec: <https://atproto.com/specs/nsid>.
    Nsid, NsidError, check, |raw| raw.into(), "an NSID"
}

/// Why text is not an NSID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NsidError {
    /// Longer than [`MAX_NSID_BYTES`].
    #[error("an NSID of more than {MAX_NSID_BYTES} bytes")]
    TooLong,
    /// Fewer than three segments.
    #[error("an NSID needs at least three segments")]
    TooFewSegments,
    /// The authority is not domain labels, or starts with a digit.
    #[error("an NSID's authority has to be a domain in reverse")]
    Authority,
    /// The name is not 1 to 63 letters and digits with a letter first.
    #[error("an NSID's name has to be 1 to 63 letters and digits with a letter first")]
    Name,
}

fn check(raw: &str) -> Result<(), NsidError> {
    if raw.len() > MAX_NSID_BYTES {
        return Err(NsidError::TooLong);
    }
    let (authority, name) = raw.rsplit_once('.').ok_or(NsidError::TooFewSegments)?;
    if !authority.contains('.') {
        return Err(NsidError::TooFewSegments);
    }
    let letter_first = |text: &str| text.starts_with(|first: char| first.is_ascii_alphabetic());
    if !letter_first(authority) || !authority.split('.').all(is_domain_label) {
        return Err(NsidError::Authority);
    }
    let sound_name = name.len() <= MAX_NAME_BYTES
        && letter_first(name)
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if sound_name { Ok(()) } else { Err(NsidError::Name) }
}

impl Nsid {
    /// The domain in reverse: everything before the name.
    #[must_use]
    pub fn authority(&self) -> &str {
        self.0.rsplit_once('.').map_or("", |(authority, _)| authority)
    }

    /// The last segment.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.rsplit_once('.').map_or("", |(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_nsid_gives_its_parts() {
        let nsid: Nsid = "app.bsky.feed.post".parse().unwrap();
        assert_eq!((nsid.authority(), nsid.name()), ("app.bsky.feed", "post"));
    }
}
