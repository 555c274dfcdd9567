//! The `Authorization` header: exactly a scheme and a credential with one space between.

/// The credential of one request, not yet verified.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Authorization<'a> {
    /// A session, service or (in migration) access token.
    Bearer(&'a str),
    /// An OAuth access token bound to a proof-of-possession key.
    Dpop(&'a str),
    /// Base64 of `user:password`; only the administrator uses it.
    Basic(&'a str),
}

impl std::fmt::Debug for Authorization<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Authorization::Bearer(_) => "Bearer(redacted)",
            Authorization::Dpop(_) => "DPoP(redacted)",
            Authorization::Basic(_) => "Basic(redacted)",
        })
    }
}

/// Why a header was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The method needs a credential and there is none.
    #[error("Authentication Required")]
    Missing,
    /// Not two parts separated by one space, or not text.
    #[error("Malformed authorization header")]
    Malformed,
    /// A scheme that nobody here understands.
    #[error("Unsupported authorization scheme")]
    UnknownScheme,
    /// A known scheme on a method that does not take it.
    #[error("Unexpected authorization type")]
    WrongScheme,
}

impl HeaderError {
    /// HTTP status of the answer.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            HeaderError::Missing => 401,
            HeaderError::Malformed | HeaderError::UnknownScheme | HeaderError::WrongScheme => 400,
        }
    }

    /// The `error` field of the answer.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            HeaderError::Missing => "AuthMissing",
            HeaderError::Malformed | HeaderError::UnknownScheme | HeaderError::WrongScheme => "InvalidToken",
        }
    }
}

/// Parses the header's value; `None` when the request has none.
///
/// # Errors
/// [`HeaderError::Malformed`] or [`HeaderError::UnknownScheme`].
pub fn parse(value: Option<&[u8]>) -> Result<Option<Authorization<'_>>, HeaderError> {
    let Some(value) = value else { return Ok(None) };
    let value = std::str::from_utf8(value).map_err(|_| HeaderError::Malformed)?;
    let (scheme, credential) = value.split_once(' ').ok_or(HeaderError::Malformed)?;
    if scheme.is_empty() || credential.is_empty() || credential.contains(' ') {
        return Err(HeaderError::Malformed);
    }
    if scheme.eq_ignore_ascii_case("bearer") {
        Ok(Some(Authorization::Bearer(credential)))
    } else if scheme.eq_ignore_ascii_case("dpop") {
        Ok(Some(Authorization::Dpop(credential)))
    } else if scheme.eq_ignore_ascii_case("basic") {
        Ok(Some(Authorization::Basic(credential)))
    } else {
        Err(HeaderError::UnknownScheme)
    }
}

/// The token of a method that takes `Bearer` only.
///
/// # Errors
/// As [`parse`]; [`HeaderError::Missing`] without a header, [`HeaderError::WrongScheme`] for another known scheme.
pub fn bearer(value: Option<&[u8]>) -> Result<&str, HeaderError> {
    match parse(value)? {
        Some(Authorization::Bearer(token)) => Ok(token),
        Some(Authorization::Dpop(_) | Authorization::Basic(_)) => Err(HeaderError::WrongScheme),
        None => Err(HeaderError::Missing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_are_recognised_in_any_case() {
        for (header, expected) in [
            ("Bearer abc", Authorization::Bearer("abc")),
            ("bEARER abc", Authorization::Bearer("abc")),
            ("DPoP abc", Authorization::Dpop("abc")),
            ("basic YTpi", Authorization::Basic("YTpi")),
        ] {
            assert_eq!(parse(Some(header.as_bytes())), Ok(Some(expected)));
        }
        assert_eq!(parse(None), Ok(None));
    }

    #[test]
    fn anything_but_two_parts_with_one_space_is_malformed() {
        for header in [
            "",
            "Bearer",
            "Bearer ",
            " abc",
            "Bearer  abc",
            "Bearer a b",
            "Bearer abc ",
        ] {
            assert_eq!(
                parse(Some(header.as_bytes())),
                Err(HeaderError::Malformed),
                "{header:?}"
            );
        }
        assert_eq!(parse(Some(b"Bearer \xff")), Err(HeaderError::Malformed));
        assert_eq!(parse(Some(b"Digest abc")), Err(HeaderError::UnknownScheme));
        assert_eq!(
            (HeaderError::Malformed.status(), HeaderError::Malformed.name()),
            (400, "InvalidToken")
        );
    }

    #[test]
    fn a_user_method_tells_a_missing_header_from_a_wrong_scheme() {
        assert_eq!(bearer(None), Err(HeaderError::Missing));
        assert_eq!(
            (HeaderError::Missing.status(), HeaderError::Missing.name()),
            (401, "AuthMissing")
        );
        assert_eq!(bearer(Some(b"Basic YTpi")), Err(HeaderError::WrongScheme));
        assert_eq!(bearer(Some(b"Bearer t")), Ok("t"));
    }

    #[test]
    fn a_credential_is_not_printed() {
        assert!(!format!("{:?}", Authorization::Bearer("topsecret")).contains("topsecret"));
    }
}
