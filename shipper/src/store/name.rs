//! Names of objects.

use std::fmt;
use std::str::FromStr;

/// The longest object name, in bytes. Azure and S3 allow 1,024, the store's own prefix included.
pub const MAX_NAME_BYTES: usize = 768;

/// The longest segment, in bytes: a file name on the usual file systems.
const MAX_SEGMENT_BYTES: usize = 255;

/// The name of an object: segments of `[A-Za-z0-9._:%-]` separated by `/`, at most [`MAX_NAME_BYTES`] long. A segment is
/// not empty and does not end in a dot, which some stores drop, so `.` and `..` are out. Names order as their bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(Box<str>);

/// Why a text is not an [`ObjectName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not an object name: {reason}")]
pub struct NameError {
    name: String,
    reason: &'static str,
}

impl ObjectName {
    /// Checks `name`.
    ///
    /// # Errors
    /// It is not in the form that [`ObjectName`] describes.
    pub fn new(name: impl Into<String>) -> Result<ObjectName, NameError> {
        let name = name.into();
        match check(&name) {
            Ok(()) => Ok(ObjectName(name.into_boxed_str())),
            Err(reason) => Err(NameError {
                name: name.chars().take(MAX_NAME_BYTES).collect(),
                reason,
            }),
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check(name: &str) -> Result<(), &'static str> {
    if name.len() > MAX_NAME_BYTES {
        return Err("it is too long");
    }
    for segment in name.split('/') {
        if segment.is_empty() {
            return Err("a segment is empty");
        }
        if segment.len() > MAX_SEGMENT_BYTES {
            return Err("a segment is too long");
        }
        if segment.ends_with('.') {
            return Err("a segment ends in a dot");
        }
        if !segment
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._:%-".contains(&b))
        {
            return Err("only letters, digits and ._:%- are allowed");
        }
    }
    Ok(())
}

impl FromStr for ObjectName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<ObjectName, NameError> {
        ObjectName::new(name)
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What all names of a store start with in its container: nothing, or the segments of `prefix` and a slash.
pub(super) fn name_start(prefix: &str) -> Result<String, super::StoreError> {
    match prefix.trim_end_matches('/') {
        "" => Ok(String::new()),
        prefix if prefix.len() <= 200 => Ok(format!("{}/", ObjectName::new(prefix)?)),
        _ => Err(super::StoreError::Invalid {
            detail: "the prefix is longer than 200 bytes".to_owned(),
        }),
    }
}

impl From<NameError> for super::StoreError {
    fn from(error: NameError) -> super::StoreError {
        super::StoreError::Invalid {
            detail: error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_store_or_change_on_the_way_are_refused() {
        for good in [
            "log.json",
            "wal/00000000000000ff",
            "blobs/did:web:localhost%3A2583/bafy-_.x",
            ".hidden/a..b",
        ] {
            assert_eq!(ObjectName::new(good).unwrap().as_str(), good);
        }
        let long = "a".repeat(256);
        for bad in [
            "", "/", "a/", "/a", "a//b", ".", "..", "a/../b", "a.", "a b", "a\\b", "é", "a?b", "~x", "a\0",
            &long,
        ] {
            assert!(ObjectName::new(bad).is_err(), "{bad:?}");
        }
        assert!(ObjectName::new(vec!["abc"; 300].join("/")).is_err());
    }
}
