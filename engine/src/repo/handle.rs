//! Handles: the changeable domain names that resolve to a DID.

use super::text::{checked_text, is_domain_label};

/// Longest handle, in bytes.
pub const MAX_HANDLE_BYTES: usize = 253;

checked_text! {
    /// A syntactically valid handle in lower case, at most 253 ASCII bytes. Whether its top-level domain is allowed and
    /// whether it resolves is not said. Spec: <https://atproto.com/specs/handle>.
    Handle, HandleError, check, |raw| raw.to_ascii_lowercase().into(), "a handle"
}

/// Why text is not a handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandleError {
    /// Longer than [`MAX_HANDLE_BYTES`].
    #[error("a handle of more than {MAX_HANDLE_BYTES} bytes")]
    TooLong,
    /// A single label.
    #[error("a handle needs at least two labels")]
    TooFewLabels,
    /// A label is not 1 to 63 letters, digits and inner hyphens.
    #[error("a handle's labels have to be 1 to 63 letters, digits and inner hyphens")]
    Label,
    /// The last label does not start with a letter.
    #[error("a handle's last label has to start with a letter")]
    TopLevel,
}

fn check(raw: &str) -> Result<(), HandleError> {
    if raw.len() > MAX_HANDLE_BYTES {
        return Err(HandleError::TooLong);
    }
    if !raw.split('.').all(is_domain_label) {
        return Err(HandleError::Label);
    }
    let (_, top_level) = raw.rsplit_once('.').ok_or(HandleError::TooFewLabels)?;
    if top_level.starts_with(|first: char| first.is_ascii_alphabetic()) {
        Ok(())
    } else {
        Err(HandleError::TopLevel)
    }
}

/// The handle that stands in for one which does not resolve to its DID (any more).
pub const INVALID_HANDLE: &str = "handle.invalid";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_kept_in_lower_case() {
        let handle: Handle = "Alice.Example.COM".parse().unwrap();
        assert_eq!(handle.as_str(), "alice.example.com");
        assert_eq!(handle, "alice.example.com".parse().unwrap());
        assert_eq!(
            serde_json::from_str::<Handle>("\"A.Example\"").unwrap().as_str(),
            "a.example"
        );
    }

    #[test]
    fn the_stand_in_is_itself_a_handle() {
        assert!(INVALID_HANDLE.parse::<Handle>().is_ok());
    }
}
