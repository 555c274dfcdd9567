//! What a key of the tree is, and which layer it belongs to.

use sha2::{Digest, Sha256};

/// Longest key in bytes. Spec: <https://atproto.com/specs/repository#repo-paths>.
pub const MAX_KEY_BYTES: usize = 1024;

/// The layer of a key: leading zero bits of its sha-256, counted in pairs; 0 to 128. Three of four keys are on layer 0.
#[must_use]
pub fn key_layer(key: &str) -> u8 {
    let mut layer = 0;
    for byte in Sha256::digest(key.as_bytes()) {
        if byte != 0 {
            #[allow(
                clippy::cast_possible_truncation,
                reason = "a byte has at most four zero pairs"
            )]
            return layer + (byte.leading_zeros() / 2) as u8;
        }
        layer += 4;
    }
    layer
}

/// Whether the tree takes this key: `collection/rkey`, both parts not empty, of ASCII letters, digits and `_~-:.`, at
/// most [`MAX_KEY_BYTES`]. Looser than a repo path's own syntax, because a tree from elsewhere has to be readable.
#[must_use]
pub fn is_valid_key(key: &str) -> bool {
    is_valid_key_bytes(key.as_bytes())
}

pub(super) fn is_valid_key_bytes(key: &[u8]) -> bool {
    if key.len() > MAX_KEY_BYTES {
        return false;
    }
    let mut slash = None;
    for (at, byte) in key.iter().enumerate() {
        match byte {
            b'/' if slash.is_none() => slash = Some(at),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'~' | b'-' | b':' | b'.' => {}
            _ => return false,
        }
    }
    slash.is_some_and(|at| at > 0 && at + 1 < key.len())
}

/// How many leading bytes two keys share.
pub(super) fn shared_prefix(left: &[u8], right: &[u8]) -> usize {
    left.iter()
        .zip(right)
        .take_while(|(left, right)| left == right)
        .count()
}
