//! Query parameters of an XRPC method, checked one by one by name.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::error::{XrpcError, XrpcResult};

/// Most parameters one request may carry; `getBlocks` needs the most.
const MAX_PARAMS: usize = 1000;

/// The decoded query string. Empty values count as absent, as in the reference.
#[derive(Clone, Debug, Default)]
pub struct Params(Vec<(String, String)>);

impl Params {
    /// Decodes a raw query string.
    ///
    /// # Errors
    /// 400 `InvalidRequest` when it is not valid percent-encoded UTF-8 or has too many parts.
    pub fn parse(query: Option<&str>) -> XrpcResult<Params> {
        let mut pairs = Vec::new();
        for part in query
            .unwrap_or_default()
            .split('&')
            .filter(|part| !part.is_empty())
        {
            if pairs.len() == MAX_PARAMS {
                return Err(XrpcError::invalid("Too many query parameters"));
            }
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let (Some(name), Some(value)) = (decode(name), decode(value)) else {
                return Err(XrpcError::invalid(
                    "The query string is not valid percent-encoded UTF-8",
                ));
            };
            if !value.is_empty() {
                pairs.push((name, value));
            }
        }
        Ok(Params(pairs))
    }

    /// A parameter that may be absent; the first of a repeated one is refused as ambiguous.
    ///
    /// # Errors
    /// 400 when it is given more than once.
    pub fn optional(&self, name: &str) -> XrpcResult<Option<&str>> {
        let mut found = self
            .0
            .iter()
            .filter(|(key, _)| key == name)
            .map(|(_, value)| value.as_str());
        let first = found.next();
        if found.next().is_some() {
            return Err(XrpcError::invalid(format!(
                "Error: Params must have the property \"{name}\" at most once"
            )));
        }
        Ok(first)
    }

    /// A parameter that must be there.
    ///
    /// # Errors
    /// 400 when it is absent or repeated.
    pub fn required(&self, name: &str) -> XrpcResult<&str> {
        self.optional(name)?
            .ok_or_else(|| XrpcError::invalid(format!("Error: Params must have the property \"{name}\"")))
    }

    /// A required parameter of a checked type.
    ///
    /// # Errors
    /// 400 when it is absent or not of that type.
    pub fn parsed<T: FromStr<Err: Display>>(&self, name: &str) -> XrpcResult<T> {
        parse_as(name, self.required(name)?)
    }

    /// An optional parameter of a checked type.
    ///
    /// # Errors
    /// 400 when it is not of that type.
    pub fn parsed_optional<T: FromStr<Err: Display>>(&self, name: &str) -> XrpcResult<Option<T>> {
        self.optional(name)?.map(|text| parse_as(name, text)).transpose()
    }

    /// A whole number within `range`, or `default` when absent.
    ///
    /// # Errors
    /// 400 when it is not such a number.
    pub fn integer(&self, name: &str, range: RangeInclusive<usize>, default: usize) -> XrpcResult<usize> {
        let Some(text) = self.optional(name)? else {
            return Ok(default);
        };
        let number = text.parse::<usize>().ok().filter(|n| range.contains(n));
        number.ok_or_else(|| {
            XrpcError::invalid(format!(
                "Error: {name} must be an integer from {} to {}",
                range.start(),
                range.end()
            ))
        })
    }

    /// A flag, false when absent.
    ///
    /// # Errors
    /// As [`Params::flag_or`].
    pub fn flag(&self, name: &str) -> XrpcResult<bool> {
        self.flag_or(name, false)
    }

    /// A flag, or `default` when absent.
    ///
    /// # Errors
    /// 400 when it is neither `true` nor `false`.
    pub fn flag_or(&self, name: &str, default: bool) -> XrpcResult<bool> {
        match self.optional(name)? {
            None => Ok(default),
            Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(XrpcError::invalid(format!("Error: {name} must be a boolean"))),
        }
    }

    /// All values of a repeatable parameter, each of a checked type.
    ///
    /// # Errors
    /// 400 when one is not of that type.
    pub fn all<T: FromStr<Err: Display>>(&self, name: &str) -> XrpcResult<Vec<T>> {
        self.0
            .iter()
            .filter(|(key, _)| key == name)
            .map(|(_, value)| parse_as(name, value))
            .collect()
    }
}

fn parse_as<T: FromStr<Err: Display>>(name: &str, text: &str) -> XrpcResult<T> {
    text.parse::<T>()
        .map_err(|error| XrpcError::invalid(format!("Error: {name}: {error}")))
}

/// Percent-decoding of `application/x-www-form-urlencoded` text.
fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                out.push(u8::try_from(high * 16 + low).ok()?);
            }
            other => out.push(other),
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_decoded_and_empty_ones_are_absent() {
        let params = Params::parse(Some("did=did%3Aweb%3Aa.com&cursor=&x=1+2&c=1&c=2")).unwrap();
        assert_eq!(params.required("did").unwrap(), "did:web:a.com");
        assert_eq!(params.optional("cursor").unwrap(), None);
        assert_eq!(params.required("x").unwrap(), "1 2");
        assert_eq!(params.all::<u32>("c").unwrap(), [1, 2]);
        assert!(params.optional("c").is_err());
        assert!(params.required("missing").is_err());
    }

    #[test]
    fn damaged_encodings_and_numbers_out_of_range_are_refused() {
        for query in ["a=%zz", "a=%", "a=%f", "a=%ff"] {
            assert!(Params::parse(Some(query)).is_err(), "{query}");
        }
        let params = Params::parse(Some("limit=0&flag=yes&big=99999999999999999999")).unwrap();
        assert!(params.integer("limit", 1..=100, 50).is_err());
        assert!(params.integer("big", 1..=100, 50).is_err());
        assert_eq!(params.integer("other", 1..=100, 50).unwrap(), 50);
        assert!(params.flag("flag").is_err());
    }
}
