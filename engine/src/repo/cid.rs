//! Hash addresses of blocks and blobs.
//!
//! A [`Cid`] is 36 bytes: `01` (version 1), the codec (`71` dag-cbor or `55` raw), `12 20` (sha2-256, 32 bytes), digest.
//! Those are the only CIDs the protocol blesses, so all else is refused. Spec: <https://atproto.com/specs/data-model#link-and-cid-formats>.

use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

/// Length of a CID as bytes.
pub const CID_BYTES: usize = 36;
/// Length of a CID as text: the multibase prefix `b` and 58 base32 digits.
pub const CID_TEXT_BYTES: usize = 59;

const VERSION_1: u8 = 0x01;
const SHA2_256: u8 = 0x12;
const DIGEST_BYTES: usize = 32;
const DIGEST_AT: usize = CID_BYTES - DIGEST_BYTES;
const BASE32_LOWER: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const _: () = assert!(CID_TEXT_BYTES == 1 + (CID_BYTES * 8).div_ceil(5));

/// What the bytes behind a [`Cid`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Codec {
    /// Any bytes: media blobs.
    Raw = 0x55,
    /// A DAG-CBOR block: records, MST nodes, commits.
    DagCbor = 0x71,
}

/// A hash address: CIDv1, sha2-256, codec dag-cbor or raw. Ordered by its bytes, so by codec, then by digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cid([u8; CID_BYTES]);

/// Why bytes or text are not a [`Cid`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidError {
    /// Binary form: not 36 bytes. Text form: not 59 characters.
    #[error("a CID of {found} bytes, expected {expected}")]
    Length {
        /// How many bytes there were.
        found: usize,
        /// How many there have to be.
        expected: usize,
    },
    /// The first byte is not 1.
    #[error("CID version {0} is not supported")]
    Version(u8),
    /// Neither dag-cbor nor raw.
    #[error("CID codec {0:#04x} is neither dag-cbor nor raw")]
    Codec(u8),
    /// Not sha2-256 with 32 bytes.
    #[error("CID hash {code:#04x} of {length} bytes is not sha2-256")]
    Hash {
        /// The multihash code found.
        code: u8,
        /// The digest length found.
        length: u8,
    },
    /// Text that does not start with `b`, has a character outside of lower-case base32, or ends in stray bits.
    #[error("not a lower-case base32 CID")]
    Base32,
}

impl Cid {
    /// The address of a DAG-CBOR block.
    #[must_use]
    pub fn for_dag_cbor(block: &[u8]) -> Cid {
        Cid::from_digest(Codec::DagCbor, Sha256::digest(block).into())
    }

    /// The address of arbitrary bytes.
    #[must_use]
    pub fn for_raw(bytes: &[u8]) -> Cid {
        Cid::from_digest(Codec::Raw, Sha256::digest(bytes).into())
    }

    /// The CID with this codec and sha2-256 digest.
    #[must_use]
    pub const fn from_digest(codec: Codec, digest: [u8; DIGEST_BYTES]) -> Cid {
        let mut bytes = [0; CID_BYTES];
        bytes[0] = VERSION_1;
        bytes[1] = codec as u8;
        bytes[2] = SHA2_256;
        bytes[3] = DIGEST_BYTES as u8;
        let mut at = 0;
        while at < DIGEST_BYTES {
            bytes[DIGEST_AT + at] = digest[at];
            at += 1;
        }
        Cid(bytes)
    }

    /// Reads the binary form, which has to be exactly 36 bytes.
    ///
    /// # Errors
    /// Any other length, version, codec or hash.
    pub fn from_bytes(bytes: &[u8]) -> Result<Cid, CidError> {
        let bytes: [u8; CID_BYTES] = bytes.try_into().map_err(|_| CidError::Length {
            found: bytes.len(),
            expected: CID_BYTES,
        })?;
        if bytes[0] != VERSION_1 {
            return Err(CidError::Version(bytes[0]));
        }
        if bytes[1] != Codec::DagCbor as u8 && bytes[1] != Codec::Raw as u8 {
            return Err(CidError::Codec(bytes[1]));
        }
        if bytes[2] != SHA2_256 || usize::from(bytes[3]) != DIGEST_BYTES {
            return Err(CidError::Hash {
                code: bytes[2],
                length: bytes[3],
            });
        }
        Ok(Cid(bytes))
    }

    /// The binary form.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; CID_BYTES] {
        self.0
    }

    /// The binary form, borrowed.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; CID_BYTES] {
        &self.0
    }

    /// The sha2-256 digest alone.
    #[must_use]
    pub fn digest(&self) -> &[u8; DIGEST_BYTES] {
        match self.0.last_chunk() {
            Some(digest) => digest,
            None => unreachable!("36 bytes end in 32"),
        }
    }

    /// What the bytes behind the address are.
    #[must_use]
    pub const fn codec(&self) -> Codec {
        if self.0[1] == Codec::Raw as u8 {
            Codec::Raw
        } else {
            Codec::DagCbor
        }
    }

    /// Whether `bytes` hash to this address.
    #[must_use]
    pub fn matches(&self, bytes: &[u8]) -> bool {
        *self.digest() == <[u8; DIGEST_BYTES]>::from(Sha256::digest(bytes))
    }

    /// The text form as ASCII bytes, without allocating.
    #[must_use]
    pub fn to_text(&self) -> [u8; CID_TEXT_BYTES] {
        let mut text = [b'b'; CID_TEXT_BYTES];
        for (group, digits) in self.0.chunks(5).zip(text[1..].chunks_mut(8)) {
            let mut padded = [0u8; 8];
            padded[3..3 + group.len()].copy_from_slice(group);
            let bits = u64::from_be_bytes(padded);
            for (at, digit) in digits.iter_mut().enumerate() {
                *digit = BASE32_LOWER[(bits >> (35 - 5 * at)) as usize & 31];
            }
        }
        text
    }
}

const fn digit_values() -> [u8; 256] {
    let mut values = [0xff; 256];
    let mut value = 0;
    while value < BASE32_LOWER.len() {
        values[BASE32_LOWER[value] as usize] = value as u8;
        value += 1;
    }
    values
}
static DIGIT_VALUES: [u8; 256] = digit_values();

impl FromStr for Cid {
    type Err = CidError;

    fn from_str(text: &str) -> Result<Cid, CidError> {
        let text: &[u8; CID_TEXT_BYTES] = text.as_bytes().try_into().map_err(|_| CidError::Length {
            found: text.len(),
            expected: CID_TEXT_BYTES,
        })?;
        if text[0] != b'b' {
            return Err(CidError::Base32);
        }
        let mut bytes = [0u8; CID_BYTES];
        for (digits, group) in text[1..].chunks(8).zip(bytes.chunks_mut(5)) {
            let mut bits = 0u64;
            for (at, digit) in digits.iter().enumerate() {
                let value = DIGIT_VALUES[usize::from(*digit)];
                if value > 31 {
                    return Err(CidError::Base32);
                }
                bits |= u64::from(value) << (35 - 5 * at);
            }
            let padded = bits.to_be_bytes();
            let (wanted, stray) = padded[3..].split_at(group.len());
            group.copy_from_slice(wanted);
            if stray.iter().any(|byte| *byte != 0) {
                return Err(CidError::Base32);
            }
        }
        Cid::from_bytes(&bytes)
    }
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(std::str::from_utf8(&self.to_text()).unwrap_or_default())
    }
}

impl fmt::Debug for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cid({self})")
    }
}

impl serde::Serialize for Cid {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Cid {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Cid, D::Error> {
        struct TextVisitor;
        impl serde::de::Visitor<'_> for TextVisitor {
            type Value = Cid;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a CID as text")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Cid, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// Hashes bytes as they stream by, for blobs that are never whole in memory.
#[derive(Clone)]
pub struct CidHasher {
    codec: Codec,
    state: Sha256,
}

impl CidHasher {
    /// Starts with no bytes seen.
    #[must_use]
    pub fn new(codec: Codec) -> CidHasher {
        CidHasher {
            codec,
            state: Sha256::new(),
        }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
    }

    /// The address of all bytes seen.
    #[must_use]
    pub fn finish(self) -> Cid {
        Cid::from_digest(self.codec, self.state.finalize().into())
    }
}

impl fmt::Debug for CidHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CidHasher")
            .field("codec", &self.codec)
            .finish_non_exhaustive()
    }
}

/// Whether `text` has the syntax of a CID string, by the loose rule of Lexicon's `cid-link` and `cid` format: any
/// multibase, codec and hash, 8 to 256 ASCII letters, digits, `+` and `=`, but no CIDv0. It says nothing about whether
/// the text decodes; for a CID to be used, parse a [`Cid`].
#[must_use]
pub fn check_cid_syntax(text: &str) -> bool {
    (8..=256).contains(&text.len())
        && !text.starts_with("Qmb")
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'=')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_empty_map_has_its_well_known_address() {
        let cid = Cid::for_dag_cbor(&[0xa0]);
        assert_eq!(
            cid.to_string(),
            "bafyreigbtj4x7ip5legnfznufuopl4sg4knzc2cof6duas4b3q2fy6swua"
        );
        assert_eq!(cid.codec(), Codec::DagCbor);
        assert!(cid.matches(&[0xa0]));
        assert!(!cid.matches(&[0x80]));
    }

    #[test]
    fn streaming_gives_the_same_address_as_hashing_at_once() {
        let mut hasher = CidHasher::new(Codec::Raw);
        hasher.update(b"hello ");
        hasher.update(b"world");
        assert_eq!(hasher.finish(), Cid::for_raw(b"hello world"));
    }

    #[test]
    fn everything_but_the_two_blessed_forms_is_refused() {
        let good = Cid::for_raw(b"x").to_bytes();
        let with = |at: usize, byte: u8| {
            let mut bytes = good;
            bytes[at] = byte;
            Cid::from_bytes(&bytes)
        };
        assert_eq!(with(0, 0), Err(CidError::Version(0)));
        assert_eq!(with(1, 0x70), Err(CidError::Codec(0x70)));
        assert_eq!(
            with(2, 0x13),
            Err(CidError::Hash {
                code: 0x13,
                length: 32
            })
        );
        assert_eq!(
            with(3, 31),
            Err(CidError::Hash {
                code: 0x12,
                length: 31
            })
        );
        assert!(matches!(
            Cid::from_bytes(&good[1..]),
            Err(CidError::Length { found: 35, .. })
        ));
    }

    #[test]
    fn text_with_other_alphabets_case_or_stray_bits_is_refused() {
        let text = Cid::for_raw(b"x").to_string();
        assert!(text.to_uppercase().parse::<Cid>().is_err());
        assert!(format!("z{}", &text[1..]).parse::<Cid>().is_err());
        assert!(format!("{}1", &text[..58]).parse::<Cid>().is_err());
        assert!(format!("{text}a").parse::<Cid>().is_err());
        // The last digit carries two unused bits; setting one of them would give the CID a second spelling.
        let last = BASE32_LOWER
            .iter()
            .position(|digit| *digit == text.as_bytes()[58])
            .unwrap();
        let alias = char::from(BASE32_LOWER[last | 1]);
        assert_eq!(
            format!("{}{alias}", &text[..58]).parse::<Cid>(),
            Err(CidError::Base32)
        );
    }

    #[test]
    fn json_carries_it_as_text() {
        let cid = Cid::for_raw(b"x");
        let json = serde_json::to_string(&cid).unwrap();
        assert_eq!(json, format!("\"{cid}\""));
        assert_eq!(serde_json::from_str::<Cid>(&json).unwrap(), cid);
        assert!(serde_json::from_str::<Cid>("\"nope\"").is_err());
    }

    proptest! {
        #[test]
        fn text_and_bytes_agree_with_the_cid_crate(digest in any::<[u8; 32]>(), raw in any::<bool>()) {
            let ours = Cid::from_digest(if raw { Codec::Raw } else { Codec::DagCbor }, digest);
            let hash = cid::multihash::Multihash::<64>::wrap(0x12, &digest).unwrap();
            let theirs = cid::Cid::new_v1(if raw { 0x55 } else { 0x71 }, hash);
            prop_assert_eq!(ours.to_string(), theirs.to_string());
            prop_assert_eq!(ours.to_bytes().to_vec(), theirs.to_bytes());
            prop_assert_eq!(ours.to_string().parse::<Cid>(), Ok(ours));
            prop_assert_eq!(Cid::from_bytes(&ours.to_bytes()), Ok(ours));
        }

        #[test]
        fn whatever_parses_prints_the_same_text(text in "b[a-z2-7]{58}") {
            if let Ok(cid) = text.parse::<Cid>() {
                prop_assert_eq!(cid.to_string(), text);
            }
        }
    }
}
