//! Record keys, and the path of a record in its repository.

use super::nsid::{Nsid, NsidError};
use super::text::{checked_text, serde_as_text};
use std::fmt;
use std::str::FromStr;

/// Longest record key, in bytes.
pub const MAX_RECORD_KEY_BYTES: usize = 512;
/// Longest key of the repository's tree, in bytes.
pub const MAX_REPO_PATH_BYTES: usize = 1024;

checked_text! {
    /// A record's name in its collection: 1 to 512 letters, digits and `_~.:-`, but not `.` or `..`.
    /// Spec: <https://atproto.com/specs/record-key>.
    RecordKey, RecordKeyError, check, |raw| raw.into(), "a record key"
}

/// Why text is not a record key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordKeyError {
    /// Empty, or longer than [`MAX_RECORD_KEY_BYTES`].
    #[error("a record key has to have 1 to {MAX_RECORD_KEY_BYTES} bytes")]
    Length,
    /// A character outside of letters, digits and `_~.:-`.
    #[error("a record key may have letters, digits and _~.:- only")]
    Character,
    /// `.` or `..`.
    #[error("\".\" and \"..\" are not record keys")]
    Dots,
}

fn check(raw: &str) -> Result<(), RecordKeyError> {
    if raw.is_empty() || raw.len() > MAX_RECORD_KEY_BYTES {
        return Err(RecordKeyError::Length);
    }
    if !raw
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"_~.:-".contains(&byte))
    {
        return Err(RecordKeyError::Character);
    }
    if raw == "." || raw == ".." {
        Err(RecordKeyError::Dots)
    } else {
        Ok(())
    }
}

/// Where a record is in its repository: `collection/rkey`, the key of the tree. Ordered by collection, then by record
/// key; for the tree's own order compare the printed text.
/// Spec: <https://atproto.com/specs/repository#repo-data-structure-v3>.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepoPath {
    /// The record's type.
    pub collection: Nsid,
    /// Its name among records of this type.
    pub rkey: RecordKey,
}

/// Why text is not the path of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RepoPathError {
    /// Longer than [`MAX_REPO_PATH_BYTES`].
    #[error("a record path of more than {MAX_REPO_PATH_BYTES} bytes")]
    TooLong,
    /// Not exactly one slash with something on both sides.
    #[error("a record path has to be collection/rkey")]
    Shape,
    /// The collection is not an NSID.
    #[error("the record path's collection: {0}")]
    Collection(#[from] NsidError),
    /// The record key is not valid.
    #[error("the record path's key: {0}")]
    RecordKey(#[from] RecordKeyError),
}

impl RepoPath {
    /// The path of `rkey` in `collection`.
    #[must_use]
    pub fn new(collection: Nsid, rkey: RecordKey) -> RepoPath {
        RepoPath { collection, rkey }
    }

    /// Reads the tree's key.
    ///
    /// # Errors
    /// Not ASCII, or not a path.
    pub fn from_bytes(key: &[u8]) -> Result<RepoPath, RepoPathError> {
        std::str::from_utf8(key)
            .map_err(|_| RepoPathError::Shape)?
            .parse()
    }
}

impl FromStr for RepoPath {
    type Err = RepoPathError;

    fn from_str(raw: &str) -> Result<RepoPath, RepoPathError> {
        if raw.len() > MAX_REPO_PATH_BYTES {
            return Err(RepoPathError::TooLong);
        }
        match raw.split_once('/') {
            Some((collection, rkey)) if !collection.is_empty() && !rkey.is_empty() && !rkey.contains('/') => {
                Ok(RepoPath {
                    collection: collection.parse()?,
                    rkey: rkey.parse()?,
                })
            }
            _ => Err(RepoPathError::Shape),
        }
    }
}

impl fmt::Display for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.collection, self.rkey)
    }
}

serde_as_text!(RepoPath, "a record path (collection/rkey)");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_collection_a_slash_and_a_key() {
        let path: RepoPath = "app.bsky.feed.post/3jzfcijpj2z2a".parse().unwrap();
        assert_eq!(
            (path.collection.name(), path.rkey.as_str()),
            ("post", "3jzfcijpj2z2a")
        );
        assert_eq!(path.to_string(), "app.bsky.feed.post/3jzfcijpj2z2a");
        assert_eq!(RepoPath::from_bytes(path.to_string().as_bytes()), Ok(path));
    }

    #[test]
    fn anything_else_is_refused() {
        for (raw, error) in [
            ("", RepoPathError::Shape),
            ("app.bsky.feed.post", RepoPathError::Shape),
            ("app.bsky.feed.post/", RepoPathError::Shape),
            ("/self", RepoPathError::Shape),
            ("app.bsky.feed.post/a/b", RepoPathError::Shape),
            (
                "app.bsky.feed.post/a b",
                RepoPathError::RecordKey(RecordKeyError::Character),
            ),
            ("nope/self", RepoPathError::Collection(NsidError::TooFewSegments)),
        ] {
            assert_eq!(raw.parse::<RepoPath>(), Err(error), "{raw}");
        }
        assert_eq!("a".repeat(1025).parse::<RepoPath>(), Err(RepoPathError::TooLong));
        assert_eq!(RepoPath::from_bytes(&[0xff, b'/']), Err(RepoPathError::Shape));
    }
}
