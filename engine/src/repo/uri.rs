//! Generic URIs, as far as Lexicon's `uri` format asks.

/// Longest URI, in bytes.
pub const MAX_URI_BYTES: usize = 8192;

/// Whether `text` has the shape of a URI: a scheme that starts with a letter, a colon, and something after it without
/// white space and control characters; at most 8192 bytes.
#[must_use]
pub fn check_uri(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once(':') else {
        return false;
    };
    text.len() <= MAX_URI_BYTES
        && scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        && !rest.is_empty()
        && !rest.chars().any(|c| c.is_whitespace() || c.is_control())
}
