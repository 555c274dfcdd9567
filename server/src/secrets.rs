//! Secrets at rest and in memory.
//!
//! - [`Secret`] holds a secret in memory: it prints as nothing, is compared by nobody, and is wiped when dropped.
//! - [`KeyWrap`] seals a secret before it enters the log, under a *key-encryption key* (KEK) that never does. Whoever
//!   copies the log, a view or the replica container holds envelopes only, and an envelope opens for one purpose and
//!   one DID: moved to another account, or to another use, it is refused.
//!
//! Envelope, version 1:
//!
//! ```text
//!  0  "KW"            magic
//!  2  u8  version     1
//!  3  [u8; 8]  key id which KEK sealed it
//! 11  [u8; 24] nonce  random
//! 35  ciphertext, then 16 bytes of Poly1305 tag
//! ```
//!
//! The cipher is XChaCha20-Poly1305; its nonce is long enough to be drawn at random for ever. Associated data: bytes
//! 0..11, the purpose with its length, the DID with its length.

use std::fmt;

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use engine::clock::Entropy;
use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

/// Length of a key-encryption key in bytes.
pub const KEY_BYTES: usize = 32;

const MAGIC: &[u8; 2] = b"KW";
const VERSION: u8 = 1;
const KEY_ID_AT: usize = MAGIC.len() + 1;
const NONCE_AT: usize = KEY_ID_AT + KEY_ID_BYTES;
const CIPHERTEXT_AT: usize = NONCE_AT + NONCE_BYTES;
const KEY_ID_BYTES: usize = 8;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;
const _: () = assert!(CIPHERTEXT_AT == 35);

/// Longest plaintext that [`KeyWrap::wrap`] takes, in bytes. Keys and tokens are far shorter.
pub const MAX_PLAINTEXT_BYTES: usize = 64 * 1024;

/// HKDF label of the key that is derived from the PLC rotation key.
const DERIVE_LABEL: &[u8] = b"azure-pds/key-encryption-key/v1";
/// Hashed before a key to name it; distinct from every other use of that key.
const KEY_ID_LABEL: &[u8] = b"azure-pds/key-id/v1";

/// A secret value: redacted in `Debug`, wiped on drop, reached only through [`Secret::expose`].
#[derive(Clone)]
pub struct Secret<T: Zeroize>(T);

impl<T: Zeroize> Secret<T> {
    /// Takes `value` into custody. Copies that were made before are not wiped.
    pub fn new(value: T) -> Secret<T> {
        Secret(value)
    }

    /// The value itself. Whoever calls this answers for where it goes.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

impl<T: Zeroize> From<T> for Secret<T> {
    fn from(value: T) -> Secret<T> {
        Secret::new(value)
    }
}

/// Which KEK sealed an envelope: a hash of the key, so it tells nothing about it. Prints as 16 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId([u8; KEY_ID_BYTES]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// What a sealed secret is for. Part of the associated data, so an envelope cannot change its use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purpose(&'static str);

impl Purpose {
    /// The secp256k1 key that signs an account's commits and service tokens.
    pub const REPO_SIGNING_KEY: Purpose = Purpose("repo-signing-key");

    /// Another purpose; `name` must be unique in the code base and never change.
    #[must_use]
    pub const fn new(name: &'static str) -> Purpose {
        Purpose(name)
    }
}

/// Why a key or an envelope was refused.
#[derive(Debug, thiserror::Error)]
pub enum KeyWrapError {
    /// The configuration names no key at all.
    #[error(
        "no key-encryption key: set one explicitly (64 hex digits) or configure the PLC rotation key to derive it from"
    )]
    NoKey,
    /// An explicit key that is not 64 hex digits. The value is not repeated here.
    #[error("the key-encryption key must be 64 hex digits (32 bytes)")]
    MalformedKey,
    /// The secret is longer than [`MAX_PLAINTEXT_BYTES`].
    #[error("a secret of {bytes} bytes is too long to seal (limit {MAX_PLAINTEXT_BYTES})")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// No randomness for the nonce.
    #[error("no randomness for sealing a secret")]
    Entropy(#[source] std::io::Error),
    /// Not an envelope, or one from a newer program.
    #[error("a sealed secret is malformed: {0}")]
    MalformedEnvelope(&'static str),
    /// Sealed under a key that this process does not hold.
    #[error(
        "a secret was sealed under key-encryption key {sealed_under}, but this server runs with {ours}; \
         restore the key (or the PLC rotation key it was derived from) that was configured when the data was written"
    )]
    ForeignKey {
        /// The key named in the envelope.
        sealed_under: KeyId,
        /// The key that this process seals with.
        ours: KeyId,
    },
    /// The right key, but the bytes were altered or belong to another purpose or DID.
    #[error("a sealed secret does not open: it is damaged, or was sealed for another account or purpose")]
    DoesNotOpen,
    /// The cipher refused to seal; it does so for absurd lengths only.
    #[error("the cipher refused to seal a secret")]
    DoesNotSeal,
}

struct Kek {
    id: KeyId,
    cipher: XChaCha20Poly1305,
}

impl Kek {
    fn new(key: &[u8; KEY_BYTES]) -> Kek {
        let digest = Sha256::new()
            .chain_update(KEY_ID_LABEL)
            .chain_update(key)
            .finalize();
        let mut id = [0; KEY_ID_BYTES];
        for (to, from) in id.iter_mut().zip(digest.iter()) {
            *to = *from;
        }
        Kek {
            id: KeyId(id),
            cipher: XChaCha20Poly1305::new(&(*key).into()),
        }
    }
}

/// Seals and opens secrets. Seals under one key; opens under every key it was given.
pub struct KeyWrap {
    current: Kek,
    previous: Vec<Kek>,
}

impl fmt::Debug for KeyWrap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyWrap")
            .field("key", &self.current.id)
            .finish_non_exhaustive()
    }
}

impl KeyWrap {
    /// Seals under `key`.
    #[must_use]
    pub fn from_key(key: &Secret<[u8; KEY_BYTES]>) -> KeyWrap {
        KeyWrap {
            current: Kek::new(key.expose()),
            previous: Vec::new(),
        }
    }

    /// The keys that the configuration gives: `explicit_hex` if set, else one derived (HKDF-SHA256) from the 32 bytes
    /// of the PLC rotation key. With both, the derived key still opens what it sealed before the explicit one came.
    ///
    /// # Errors
    /// [`KeyWrapError::NoKey`] with neither, [`KeyWrapError::MalformedKey`] if the explicit key is not 64 hex digits.
    pub fn from_config(
        explicit_hex: Option<&Secret<String>>,
        rotation_key: Option<&Secret<[u8; KEY_BYTES]>>,
    ) -> Result<KeyWrap, KeyWrapError> {
        let derived = match rotation_key {
            Some(rotation) => Some(Kek::new(&*derive(rotation)?)),
            None => None,
        };
        let Some(hex) = explicit_hex else {
            return Ok(KeyWrap {
                current: derived.ok_or(KeyWrapError::NoKey)?,
                previous: Vec::new(),
            });
        };
        let bytes = data_encoding::HEXLOWER_PERMISSIVE
            .decode(hex.expose().trim().as_bytes())
            .map(Zeroizing::new)
            .map_err(|_| KeyWrapError::MalformedKey)?;
        let key: Zeroizing<[u8; KEY_BYTES]> = Zeroizing::new(
            bytes
                .as_slice()
                .try_into()
                .map_err(|_| KeyWrapError::MalformedKey)?,
        );
        Ok(KeyWrap {
            current: Kek::new(&key),
            previous: derived.into_iter().collect(),
        })
    }

    /// The key that new envelopes are sealed under.
    #[must_use]
    pub fn key_id(&self) -> KeyId {
        self.current.id
    }

    /// Seals `plaintext` for `purpose` and `did`. Adds 51 bytes.
    ///
    /// # Errors
    /// [`KeyWrapError::TooLong`], or [`KeyWrapError::Entropy`] when the nonce could not be drawn.
    pub fn wrap(
        &self,
        purpose: Purpose,
        did: &str,
        plaintext: &[u8],
        entropy: &dyn Entropy,
    ) -> Result<Vec<u8>, KeyWrapError> {
        if plaintext.len() > MAX_PLAINTEXT_BYTES {
            return Err(KeyWrapError::TooLong {
                bytes: plaintext.len(),
            });
        }
        let mut nonce = [0; NONCE_BYTES];
        entropy.fill(&mut nonce).map_err(KeyWrapError::Entropy)?;
        let mut envelope = Vec::with_capacity(CIPHERTEXT_AT + plaintext.len() + TAG_BYTES);
        envelope.extend_from_slice(MAGIC);
        envelope.push(VERSION);
        envelope.extend_from_slice(&self.current.id.0);
        let aad = associated_data(&envelope, purpose, did);
        envelope.extend_from_slice(&nonce);
        let sealed = self
            .current
            .cipher
            .encrypt(
                &XNonce::from(nonce),
                Payload {
                    msg: plaintext,
                    aad: &aad,
                },
            )
            .map_err(|_| KeyWrapError::DoesNotSeal)?;
        envelope.extend_from_slice(&sealed);
        Ok(envelope)
    }

    /// Opens an envelope that was sealed for `purpose` and `did`.
    ///
    /// # Errors
    /// [`KeyWrapError::ForeignKey`] tells the operator which key is missing; [`KeyWrapError::DoesNotOpen`] means
    /// damage or an envelope in the wrong place; [`KeyWrapError::MalformedEnvelope`] that it is none.
    pub fn unwrap(
        &self,
        purpose: Purpose,
        did: &str,
        envelope: &[u8],
    ) -> Result<Secret<Vec<u8>>, KeyWrapError> {
        let (Some(head), Some(nonce), Some(sealed)) = (
            envelope.get(..NONCE_AT),
            envelope.get(NONCE_AT..CIPHERTEXT_AT),
            envelope.get(CIPHERTEXT_AT..),
        ) else {
            return Err(KeyWrapError::MalformedEnvelope("too short"));
        };
        if !head.starts_with(MAGIC) {
            return Err(KeyWrapError::MalformedEnvelope("unknown magic"));
        }
        if head.get(MAGIC.len()) != Some(&VERSION) {
            return Err(KeyWrapError::MalformedEnvelope("unknown version"));
        }
        let id = head
            .get(KEY_ID_AT..)
            .and_then(|id| id.try_into().ok())
            .map(KeyId)
            .ok_or(KeyWrapError::MalformedEnvelope("too short"))?;
        let kek = std::iter::once(&self.current)
            .chain(&self.previous)
            .find(|kek| kek.id == id)
            .ok_or(KeyWrapError::ForeignKey {
                sealed_under: id,
                ours: self.current.id,
            })?;
        let nonce: [u8; NONCE_BYTES] = nonce
            .try_into()
            .map_err(|_| KeyWrapError::MalformedEnvelope("too short"))?;
        let aad = associated_data(head, purpose, did);
        kek.cipher
            .decrypt(
                &XNonce::from(nonce),
                Payload {
                    msg: sealed,
                    aad: &aad,
                },
            )
            .map(Secret::new)
            .map_err(|_| KeyWrapError::DoesNotOpen)
    }
}

fn derive(rotation_key: &Secret<[u8; KEY_BYTES]>) -> Result<Zeroizing<[u8; KEY_BYTES]>, KeyWrapError> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    Hkdf::<Sha256>::new(None, rotation_key.expose())
        .expand(DERIVE_LABEL, &mut *key)
        .map_err(|_| KeyWrapError::MalformedKey)?;
    Ok(key)
}

fn associated_data(head: &[u8], purpose: Purpose, did: &str) -> Vec<u8> {
    let mut aad = Vec::with_capacity(head.len() + purpose.0.len() + did.len() + 16);
    aad.extend_from_slice(head);
    for part in [purpose.0, did] {
        aad.extend_from_slice(&(part.len() as u64).to_le_bytes());
        aad.extend_from_slice(part.as_bytes());
    }
    aad
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::clock::SeededEntropy;

    const DID: &str = "did:plc:ewvi7nxzyoun6zhxrhs64oiz";
    const PURPOSE: Purpose = Purpose::REPO_SIGNING_KEY;

    fn wrap_with(fill: u8) -> KeyWrap {
        KeyWrap::from_key(&Secret::new([fill; KEY_BYTES]))
    }

    #[test]
    fn what_was_sealed_opens_for_the_same_purpose_and_did_only() {
        let kek = wrap_with(1);
        let envelope = kek
            .wrap(
                PURPOSE,
                DID,
                b"thirty-two bytes of key material",
                &SeededEntropy::new(1),
            )
            .unwrap();
        assert_eq!(
            kek.unwrap(PURPOSE, DID, &envelope).unwrap().expose(),
            b"thirty-two bytes of key material"
        );
        assert!(matches!(
            kek.unwrap(PURPOSE, "did:plc:other", &envelope),
            Err(KeyWrapError::DoesNotOpen)
        ));
        assert!(matches!(
            kek.unwrap(Purpose::new("other"), DID, &envelope),
            Err(KeyWrapError::DoesNotOpen)
        ));
    }

    #[test]
    fn another_key_is_named_in_the_error() {
        let envelope = wrap_with(1)
            .wrap(PURPOSE, DID, b"secret", &SeededEntropy::new(1))
            .unwrap();
        let error = wrap_with(2).unwrap(PURPOSE, DID, &envelope).unwrap_err();
        assert!(matches!(error, KeyWrapError::ForeignKey { .. }));
        let text = error.to_string();
        assert!(text.contains(&wrap_with(1).key_id().to_string()), "{text}");
        assert!(text.contains(&wrap_with(2).key_id().to_string()), "{text}");
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_refused() {
        let kek = wrap_with(1);
        let envelope = kek.wrap(PURPOSE, DID, b"secret", &SeededEntropy::new(1)).unwrap();
        for at in 0..envelope.len() {
            for bit in 0..8 {
                let mut bent = envelope.clone();
                bent[at] ^= 1 << bit;
                assert!(kek.unwrap(PURPOSE, DID, &bent).is_err(), "byte {at} bit {bit}");
            }
            assert!(kek.unwrap(PURPOSE, DID, &envelope[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn an_explicit_key_still_opens_what_the_derived_one_sealed() {
        let rotation = Secret::new([7; KEY_BYTES]);
        let derived = KeyWrap::from_config(None, Some(&rotation)).unwrap();
        let envelope = derived
            .wrap(PURPOSE, DID, b"secret", &SeededEntropy::new(1))
            .unwrap();
        let explicit = Secret::new("ab".repeat(32));
        let both = KeyWrap::from_config(Some(&explicit), Some(&rotation)).unwrap();
        assert_ne!(both.key_id(), derived.key_id());
        assert_eq!(both.unwrap(PURPOSE, DID, &envelope).unwrap().expose(), b"secret");
        let alone = KeyWrap::from_config(Some(&explicit), None).unwrap();
        assert!(matches!(
            alone.unwrap(PURPOSE, DID, &envelope),
            Err(KeyWrapError::ForeignKey { .. })
        ));
    }

    #[test]
    fn a_missing_or_malformed_key_is_refused_without_being_repeated() {
        assert!(matches!(
            KeyWrap::from_config(None, None),
            Err(KeyWrapError::NoKey)
        ));
        for bad in ["", "abcd", "zz", &"ab".repeat(31), &"ab".repeat(33)] {
            let error = KeyWrap::from_config(Some(&Secret::new(bad.to_owned())), None).unwrap_err();
            assert!(matches!(error, KeyWrapError::MalformedKey), "{bad}");
        }
    }

    #[test]
    fn a_secret_prints_nothing_of_itself() {
        assert_eq!(
            format!("{:?}", Secret::new("hunter2".to_owned())),
            "Secret(redacted)"
        );
        let shown = format!("{:?}", wrap_with(1));
        assert!(shown.contains("KeyWrap") && !shown.contains("0101"), "{shown}");
    }
}
