//! The formats that text can have.

use data_encoding::BASE32_NOPAD;
use engine::repo::datetime::check_datetime;
use engine::repo::language::check_language;
use engine::repo::uri::check_uri;
use engine::repo::{AtIdentifier, AtUri, Cid, Did, Handle, Nsid, RecordKey, Tid};
use serde::{Deserialize, Deserializer};

/// Longest text of a CID that is looked at.
const MAX_CID_BYTES: usize = 256;
/// Length of a CID of version 0: sha2-256 in base58.
const CID_V0_BYTES: usize = 46;

/// A format. What is not written out says its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Format {
    AtIdentifier,
    AtUri,
    Cid,
    Datetime,
    Did,
    Handle,
    Language,
    Nsid,
    RecordKey,
    Tid,
    Uri,
}

impl Format {
    /// A field that is there has to name a format that is known: one that is passed over would make everything valid.
    pub(super) fn named<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Format>, D::Error> {
        Format::deserialize(deserializer).map(Some)
    }

    /// Whether `text` has the format.
    pub(super) fn accepts(self, text: &str) -> bool {
        match self {
            Format::AtIdentifier => AtIdentifier::check(text).is_ok(),
            Format::AtUri => AtUri::check(text).is_ok(),
            Format::Cid => is_canonical_cid(text),
            Format::Datetime => check_datetime(text),
            Format::Did => Did::check(text).is_ok(),
            Format::Handle => Handle::check(text).is_ok(),
            Format::Language => check_language(text),
            Format::Nsid => Nsid::check(text).is_ok(),
            Format::RecordKey => RecordKey::check(text).is_ok(),
            Format::Tid => text.parse::<Tid>().is_ok(),
            Format::Uri => check_uri(text),
        }
    }

    /// What text has to be, for people.
    pub(super) fn phrase(self) -> &'static str {
        match self {
            Format::AtIdentifier => "a valid did or a handle",
            Format::AtUri => "a valid at-uri",
            Format::Cid => "a cid string",
            Format::Datetime => "a valid atproto datetime",
            Format::Did => "a valid did",
            Format::Handle => "a valid handle",
            Format::Language => "a well-formed BCP 47 language tag",
            Format::Nsid => "a valid nsid",
            Format::RecordKey => "a valid record key",
            Format::Tid => "a valid tid",
            Format::Uri => "a uri",
        }
    }
}

/// Whether `text` is a CID in its one canonical spelling, of any codec and hash: records may point to what this server
/// would not make.
fn is_canonical_cid(text: &str) -> bool {
    text.parse::<Cid>().is_ok() || is_rare_cid(text)
}

fn is_rare_cid(text: &str) -> bool {
    if text.len() > MAX_CID_BYTES {
        return false;
    }
    if text.len() == CID_V0_BYTES && text.starts_with("Qm") {
        let is_base58 = |byte: u8| byte.is_ascii_alphanumeric() && !matches!(byte, b'0' | b'O' | b'I' | b'l');
        return text.bytes().all(is_base58);
    }
    let Some(digits) = text.strip_prefix('b') else {
        return false;
    };
    if digits.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return false;
    }
    let Ok(bytes) = BASE32_NOPAD.decode(digits.to_ascii_uppercase().as_bytes()) else {
        return false;
    };
    let mut rest = bytes.as_slice();
    let (version, _codec, _hash, length) = (
        varint(&mut rest),
        varint(&mut rest),
        varint(&mut rest),
        varint(&mut rest),
    );
    version == Some(1) && length.and_then(|length| usize::try_from(length).ok()) == Some(rest.len())
}

/// Takes a number off the front, seven bits a byte, lowest first.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_cid_has_one_spelling() {
        for good in [
            "bafyreiclp443lavogvhj3d2ob2cxbfuscni2k5jk7bebjzg7khl3esabwq",
            // dag-pb, and version 0 of the same.
            "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi",
            "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWKvwnr",
        ] {
            assert!(Format::Cid.accepts(good), "{good}");
        }
        for bad in [
            "",
            "b",
            "abcdefghijk",
            "baaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "BAFYREICLP443LAVOGVHJ3D2OB2CXBFUSCNI2K5JK7BEBJZG7KHL3ESABWQ",
            "bafyreiclp443lavogvhj3d2ob2cxbfuscni2k5jk7bebjzg7khl3esabw",
            "bafyreiclp443lavogvhj3d2ob2cxbfuscni2k5jk7bebjzg7khl3esabwqa",
            "zdj7WWeQ43G6JJvLWQWZpyHuAMq6uYWRjkBXFad11vE2LHhQ7",
            "Qm0wAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWKvwnr",
        ] {
            assert!(!Format::Cid.accepts(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "\\PC{0,80}", base32 in "b[a-z2-7]{0,120}") {
            for text in [text, base32] {
                let format = |name| serde_json::from_value::<Format>(serde_json::Value::from(name)).unwrap();
                for name in [
                    "at-identifier", "at-uri", "cid", "datetime", "did", "handle", "language", "nsid", "record-key", "tid",
                    "uri",
                ] {
                    let _ = format(name).accepts(&text);
                }
            }
        }

        #[test]
        fn every_cid_of_ours_is_one(digest in any::<[u8; 32]>(), raw in any::<bool>()) {
            let codec = if raw { engine::repo::Codec::Raw } else { engine::repo::Codec::DagCbor };
            let text = Cid::from_digest(codec, digest).to_string();
            prop_assert!(is_canonical_cid(&text) && is_rare_cid(&text));
        }
    }
}
