//! What a record is about, for the kinds of records of which a repo should have one about each subject: whom it follows or blocks,
//! what it likes or reposts.

use sha2::{Digest, Sha256};

use super::cbor::{CborError, Kind, Reader};

/// Bytes of a [`Subject`]'s digest.
pub const DIGEST_BYTES: usize = 16;

/// The collections whose records have a subject, with their numbers, which the index stores.
const KINDS: [(&str, SubjectKind); 4] = [
    ("app.bsky.feed.like", SubjectKind::Like),
    ("app.bsky.feed.repost", SubjectKind::Repost),
    ("app.bsky.graph.follow", SubjectKind::Follow),
    ("app.bsky.graph.block", SubjectKind::Block),
];

/// A kind of records that have a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum SubjectKind {
    /// `app.bsky.feed.like`, by `subject.uri`.
    Like = 1,
    /// `app.bsky.feed.repost`, by `subject.uri`.
    Repost = 2,
    /// `app.bsky.graph.follow`, by `subject`.
    Follow = 3,
    /// `app.bsky.graph.block`, by `subject`.
    Block = 4,
}

impl SubjectKind {
    /// The kind of the records of a collection.
    #[must_use]
    pub fn of(collection: &str) -> Option<SubjectKind> {
        let found = KINDS.iter().find(|(name, _)| *name == collection);
        found.map(|(_, kind)| *kind)
    }

    /// The collection of its records.
    #[must_use]
    pub fn collection(self) -> &'static str {
        let found = KINDS.iter().find(|(_, kind)| *kind == self);
        found.map_or("", |(name, _)| name)
    }
}

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject {
    /// What kind of record.
    pub kind: SubjectKind,
    /// The beginning of the SHA-256 of the subject's text.
    pub digest: [u8; DIGEST_BYTES],
}

impl Subject {
    /// The subject whose text is `text`.
    #[must_use]
    pub fn new(kind: SubjectKind, text: &str) -> Subject {
        let full: [u8; 32] = Sha256::digest(text.as_bytes()).into();
        let mut digest = [0; DIGEST_BYTES];
        digest.copy_from_slice(&full[..DIGEST_BYTES]);
        Subject { kind, digest }
    }

    /// The subject of the record at `path` whose DAG-CBOR is `record`. `None` for records of other collections, and for those
    /// in which it is missing or no text.
    #[must_use]
    pub fn of(path: &str, record: &[u8]) -> Option<Subject> {
        let (collection, _) = path.split_once('/')?;
        let kind = SubjectKind::of(collection)?;
        let text = match kind {
            SubjectKind::Like | SubjectKind::Repost => text_at(record, &["subject", "uri"]),
            SubjectKind::Follow | SubjectKind::Block => text_at(record, &["subject"]),
        };
        Some(Subject::new(kind, text.ok().flatten()?))
    }
}

/// The text at a path of keys.
fn text_at<'a>(record: &'a [u8], path: &[&str]) -> Result<Option<&'a str>, CborError> {
    let mut reader = Reader::new(record);
    for wanted in path {
        if reader.peek()? != Kind::Map {
            return Ok(None);
        }
        let mut keys = reader.map()?;
        loop {
            match keys.next(&mut reader)? {
                None => return Ok(None),
                Some(key) if key == *wanted => break,
                Some(_) => {
                    reader.skip()?;
                }
            }
        }
    }
    match reader.peek()? {
        Kind::Text => reader.text().map(Some),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::repo::json::FromJson;

    fn of(path: &str, record: serde_json::Value) -> Option<Subject> {
        let record = FromJson::from(record).into_record().unwrap();
        Subject::of(path, &crate::repo::cbor::Value::Map(record).encode())
    }

    #[test]
    fn a_subject_is_text_where_its_kind_has_it() {
        let like = json!({"$type": "app.bsky.feed.like", "createdAt": "x", "subject": {"cid": "b", "uri": "at://a/b/c"}});
        let follow = json!({"createdAt": "x", "subject": "did:plc:bob", "via": {"uri": "x"}});
        assert_eq!(
            of("app.bsky.feed.like/one", like.clone()),
            Some(Subject::new(SubjectKind::Like, "at://a/b/c"))
        );
        let repost = of("app.bsky.feed.repost/one", like.clone());
        assert_eq!(repost, Some(Subject::new(SubjectKind::Repost, "at://a/b/c")));
        assert_ne!(repost, of("app.bsky.feed.like/one", like.clone()));
        for collection in ["app.bsky.graph.follow", "app.bsky.graph.block"] {
            let found = of(&format!("{collection}/one"), follow.clone()).unwrap();
            assert_eq!(found, Subject::new(found.kind, "did:plc:bob"));
            assert_eq!(found.kind.collection(), collection);
        }
        assert_eq!(of("app.bsky.feed.post/one", like.clone()), None);
        assert_eq!(of("app.bsky.graph.follow/one", like), None);
        assert_eq!(of("app.bsky.feed.like/one", follow), None);
        assert_eq!(of("app.bsky.feed.like/one", json!({"subject": {"uri": 1}})), None);
        assert_eq!(of("app.bsky.feed.like/one", json!({})), None);
        assert_eq!(Subject::of("app.bsky.feed.like/one", b"\xa1"), None);
        assert_eq!(Subject::of("app.bsky.feed.like/one", b""), None);
    }
}
