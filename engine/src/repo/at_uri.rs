//! `at://` URIs, and the account names they start with.

use super::did::{Did, DidError};
use super::handle::{Handle, HandleError};
use super::nsid::{Nsid, NsidError};
use super::rkey::{RecordKey, RecordKeyError, RepoPath};
use super::text::serde_as_text;
use std::fmt;
use std::str::FromStr;

/// Longest `at://` URI, in bytes.
pub const MAX_AT_URI_BYTES: usize = 8192;

/// An account, named by its DID or its handle.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AtIdentifier {
    /// The permanent name.
    Did(Did),
    /// The changeable name.
    Handle(Handle),
}

/// Why text names no account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AtIdentifierError {
    /// It starts like a DID, but is none.
    #[error(transparent)]
    Did(#[from] DidError),
    /// It is neither.
    #[error(transparent)]
    Handle(#[from] HandleError),
}

impl AtIdentifier {
    /// The text, as it is stored and sent.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            AtIdentifier::Did(did) => did.as_str(),
            AtIdentifier::Handle(handle) => handle.as_str(),
        }
    }

    /// The DID, if it is one.
    #[must_use]
    pub fn as_did(&self) -> Option<&Did> {
        match self {
            AtIdentifier::Did(did) => Some(did),
            AtIdentifier::Handle(_) => None,
        }
    }

    /// Whether `raw` is one, without making one.
    ///
    /// # Errors
    /// Why it is none.
    pub fn check(raw: &str) -> Result<(), AtIdentifierError> {
        if is_did(raw) {
            Did::check(raw)?;
        } else {
            Handle::check(raw)?;
        }
        Ok(())
    }
}

/// Whether it can only be a DID.
fn is_did(raw: &str) -> bool {
    raw.starts_with("did:")
}

impl FromStr for AtIdentifier {
    type Err = AtIdentifierError;

    fn from_str(raw: &str) -> Result<AtIdentifier, AtIdentifierError> {
        Ok(if is_did(raw) {
            AtIdentifier::Did(raw.parse()?)
        } else {
            AtIdentifier::Handle(raw.parse()?)
        })
    }
}

impl fmt::Display for AtIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl From<Did> for AtIdentifier {
    fn from(did: Did) -> AtIdentifier {
        AtIdentifier::Did(did)
    }
}

impl From<Handle> for AtIdentifier {
    fn from(handle: Handle) -> AtIdentifier {
        AtIdentifier::Handle(handle)
    }
}

serde_as_text!(AtIdentifier, "a DID or a handle");

/// `at://authority[/collection[/rkey]]`, at most 8192 bytes, without query or fragment.
/// Spec: <https://atproto.com/specs/at-uri-scheme> (the restricted form that Lexicon's `at-uri` means).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AtUri {
    authority: AtIdentifier,
    collection: Option<Nsid>,
    /// Set only if `collection` is.
    rkey: Option<RecordKey>,
}

/// Why text is not an `at://` URI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AtUriError {
    /// Longer than [`MAX_AT_URI_BYTES`].
    #[error("an AT URI of more than {MAX_AT_URI_BYTES} bytes")]
    TooLong,
    /// Does not start with `at://`.
    #[error("an AT URI has to start with \"at://\"")]
    Scheme,
    /// More than collection and record key follow the authority, or a slash ends it.
    #[error("an AT URI has to be at://authority/collection/rkey")]
    Shape,
    /// The authority is not a DID or handle.
    #[error("the AT URI's authority: {0}")]
    Authority(#[from] AtIdentifierError),
    /// The collection is not an NSID.
    #[error("the AT URI's collection: {0}")]
    Collection(#[from] NsidError),
    /// The record key is not valid.
    #[error("the AT URI's record key: {0}")]
    RecordKey(#[from] RecordKeyError),
}

impl AtUri {
    /// The URI of a whole repository.
    pub fn repo(authority: impl Into<AtIdentifier>) -> AtUri {
        AtUri {
            authority: authority.into(),
            collection: None,
            rkey: None,
        }
    }

    /// The URI of a collection.
    pub fn collection_of(authority: impl Into<AtIdentifier>, collection: Nsid) -> AtUri {
        AtUri {
            authority: authority.into(),
            collection: Some(collection),
            rkey: None,
        }
    }

    /// The URI of a record.
    pub fn record(authority: impl Into<AtIdentifier>, path: RepoPath) -> AtUri {
        AtUri {
            authority: authority.into(),
            collection: Some(path.collection),
            rkey: Some(path.rkey),
        }
    }

    /// Whose repository.
    #[must_use]
    pub fn authority(&self) -> &AtIdentifier {
        &self.authority
    }

    /// Which collection, if the URI goes that far.
    #[must_use]
    pub fn collection(&self) -> Option<&Nsid> {
        self.collection.as_ref()
    }

    /// Which record, if the URI goes that far.
    #[must_use]
    pub fn rkey(&self) -> Option<&RecordKey> {
        self.rkey.as_ref()
    }

    /// Collection and record key, if the URI names a record.
    #[must_use]
    pub fn path(&self) -> Option<RepoPath> {
        Some(RepoPath {
            collection: self.collection.clone()?,
            rkey: self.rkey.clone()?,
        })
    }

    /// Whether `raw` is one, without making one.
    ///
    /// # Errors
    /// Why it is none.
    pub fn check(raw: &str) -> Result<(), AtUriError> {
        let (authority, collection, rkey) = parts(raw)?;
        AtIdentifier::check(authority)?;
        collection.map(Nsid::check).transpose()?;
        rkey.map(RecordKey::check).transpose()?;
        Ok(())
    }
}

/// Authority, collection and record key of text that has the shape of an `at://` URI.
fn parts(raw: &str) -> Result<(&str, Option<&str>, Option<&str>), AtUriError> {
    if raw.len() > MAX_AT_URI_BYTES {
        return Err(AtUriError::TooLong);
    }
    let mut parts = raw.strip_prefix("at://").ok_or(AtUriError::Scheme)?.split('/');
    let authority = parts.next().unwrap_or_default();
    let (collection, rkey) = (parts.next(), parts.next());
    if parts.next().is_some() || collection == Some("") || rkey == Some("") {
        return Err(AtUriError::Shape);
    }
    Ok((authority, collection, rkey))
}

impl FromStr for AtUri {
    type Err = AtUriError;

    fn from_str(raw: &str) -> Result<AtUri, AtUriError> {
        let (authority, collection, rkey) = parts(raw)?;
        Ok(AtUri {
            authority: authority.parse()?,
            collection: collection.map(str::parse).transpose()?,
            rkey: rkey.map(str::parse).transpose()?,
        })
    }
}

impl fmt::Display for AtUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at://{}", self.authority)?;
        if let Some(collection) = &self.collection {
            write!(f, "/{collection}")?;
        }
        if let Some(rkey) = &self.rkey {
            write!(f, "/{rkey}")?;
        }
        Ok(())
    }
}

serde_as_text!(AtUri, "an AT URI");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_at_uri_gives_its_parts_and_prints_itself() {
        let text = "at://did:plc:abc/app.bsky.feed.post/self";
        let uri: AtUri = text.parse().unwrap();
        assert_eq!(uri.authority().as_did().map(Did::as_str), Some("did:plc:abc"));
        assert_eq!(uri.path().unwrap().to_string(), "app.bsky.feed.post/self");
        assert_eq!(uri.to_string(), text);
        assert_eq!(
            AtUri::record("did:plc:abc".parse::<Did>().unwrap(), uri.path().unwrap()),
            uri
        );
        let repo: AtUri = "at://Alice.test".parse().unwrap();
        assert_eq!(repo.to_string(), "at://alice.test");
        assert_eq!((repo.collection(), repo.rkey(), repo.path()), (None, None, None));
    }

    #[test]
    fn faults_name_the_part() {
        assert_eq!("at://alice.test/".parse::<AtUri>(), Err(AtUriError::Shape));
        assert!(matches!(
            "at://alice.test/x".parse::<AtUri>(),
            Err(AtUriError::Collection(_))
        ));
        assert!(matches!(
            "at://did:plc:/x".parse::<AtUri>(),
            Err(AtUriError::Authority(AtIdentifierError::Did(_)))
        ));
        assert_eq!("http://alice.test".parse::<AtUri>(), Err(AtUriError::Scheme));
    }
}
