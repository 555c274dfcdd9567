//! Keys and signatures: secp256k1 for what we sign, P-256 as well for what others signed.
//!
//! A signature is 64 bytes, r then s, over the SHA-256 of the message, with the lower of the two possible values of s.
//! Spec: <https://atproto.com/specs/cryptography>.

mod check;

use super::base58;
use crate::clock::Entropy;
use check::Checker;
use k256::ecdsa::signature::hazmat::{PrehashSigner, PrehashVerifier};
use k256::elliptic_curve::zeroize::Zeroizing;
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

/// Length of a signature.
pub const SIGNATURE_BYTES: usize = 64;
/// Length of a secret key.
pub const SECRET_KEY_BYTES: usize = 32;
/// Length of a compressed public key.
pub const COMPRESSED_POINT_BYTES: usize = 33;

const UNCOMPRESSED_POINT_BYTES: usize = 65;

/// Multicodec `secp256k1-pub`, as a varint.
const K256_CODEC: [u8; 2] = [0xe7, 0x01];
/// Multicodec `p256-pub`, as a varint.
const P256_CODEC: [u8; 2] = [0x80, 0x24];

/// Why bytes or text are not a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not `did:key:` and a multibase.
    #[error("not a did:key")]
    DidKey,
    /// Not multibase `z` (base58btc), or too long.
    #[error("not a base58btc multibase")]
    Multibase,
    /// A key of a kind that is neither secp256k1 nor P-256.
    #[error("a key that is neither secp256k1 nor P-256")]
    Curve,
    /// Not a point of the curve, or not in the encoding that is asked for.
    #[error("not a public key of its curve")]
    Point,
    /// Not a secret key of secp256k1: not 32 bytes, zero, or beyond the group order.
    #[error("not a secp256k1 secret key")]
    Secret,
}

/// Why a signature does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Not 64 bytes: DER, or cut short.
    #[error("a signature of {found} bytes, expected 64")]
    Length {
        /// How many bytes there were.
        found: usize,
    },
    /// r or s is zero or beyond the group order.
    #[error("a signature with numbers out of range")]
    Range,
    /// The higher of the two values of s, which the protocol forbids.
    #[error("a signature with a high s")]
    HighS,
    /// Sound in form, but not of this message by this key.
    #[error("the signature does not match")]
    Mismatch,
}

/// Why nothing was signed or generated.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// The signature that was made does not hold. The machine computes wrongly: do not go on with this key.
    #[error("a signature just made does not verify")]
    DoesNotVerify,
    /// There was no randomness for a new key.
    #[error("no entropy for a new key")]
    Entropy(#[source] std::io::Error),
}

/// A secp256k1 secret key. Wiped from memory when dropped; neither printed nor serialised.
#[derive(Clone)]
pub struct SigningKey {
    secret: k256::ecdsa::SigningKey,
    /// Of the public half, made once: every signature is checked before it is handed out.
    checker: Checker,
}

impl SigningKey {
    /// The key with these 32 big-endian bytes.
    ///
    /// # Errors
    /// [`KeyError::Secret`] if they are no key.
    pub fn from_bytes(secret: &[u8]) -> Result<SigningKey, KeyError> {
        if secret.len() != SECRET_KEY_BYTES {
            return Err(KeyError::Secret);
        }
        let secret = k256::ecdsa::SigningKey::from_slice(secret).map_err(|_| KeyError::Secret)?;
        let checker = Checker::new(secret.verifying_key());
        Ok(SigningKey { secret, checker })
    }

    /// A new key.
    ///
    /// # Errors
    /// [`SigningError::Entropy`] if the source fails, or keeps giving bytes that are no key (for a sound source a chance
    /// of 2^-128 each).
    pub fn generate(entropy: &dyn Entropy) -> Result<SigningKey, SigningError> {
        const ATTEMPTS: usize = 16;
        let mut bytes = Zeroizing::new([0u8; SECRET_KEY_BYTES]);
        for _ in 0..ATTEMPTS {
            entropy
                .fill(bytes.as_mut_slice())
                .map_err(SigningError::Entropy)?;
            if let Ok(key) = SigningKey::from_bytes(bytes.as_slice()) {
                return Ok(key);
            }
        }
        Err(SigningError::Entropy(std::io::Error::other(
            "the source of randomness gives no usable bytes",
        )))
    }

    /// The 32 bytes, to be stored under protection. The copy wipes itself.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<[u8; SECRET_KEY_BYTES]> {
        let field = Zeroizing::new(self.secret.to_bytes());
        let mut bytes = Zeroizing::new([0; SECRET_KEY_BYTES]);
        bytes.copy_from_slice(&field);
        bytes
    }

    /// The public half.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        PublicKey::K256(*self.secret.verifying_key())
    }

    /// Signs `message` (not its hash): RFC 6979, low s. The signature is verified before it is handed out, because a
    /// faulty one could give the key away and would be refused by everyone else. Two implementations take part where
    /// both are compiled in: one signs, the other checks. Costs about 0.06 ms, and twice that without the second one.
    ///
    /// # Errors
    /// [`SigningError::DoesNotVerify`], which no sound machine gives.
    pub fn sign(&self, message: &[u8]) -> Result<[u8; SIGNATURE_BYTES], SigningError> {
        let hash: [u8; 32] = Sha256::digest(message).into();
        let signature = self.sign_hash(&hash)?;
        if self.checker.accepts(&hash, &signature) {
            Ok(signature.to_bytes().into())
        } else {
            Err(SigningError::DoesNotVerify)
        }
    }

    /// The same signature, which nobody has looked at.
    #[cfg(test)]
    pub(crate) fn sign_unverified(&self, message: &[u8]) -> Result<[u8; SIGNATURE_BYTES], SigningError> {
        let signature = self.sign_hash(&Sha256::digest(message).into())?;
        Ok(signature.to_bytes().into())
    }

    fn sign_hash(&self, hash: &[u8; 32]) -> Result<k256::ecdsa::Signature, SigningError> {
        let signature: k256::ecdsa::Signature = self
            .secret
            .sign_prehash(hash)
            .map_err(|_| SigningError::DoesNotVerify)?;
        Ok(signature.normalize_s())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(of {})", self.public_key())
    }
}

/// A public key. Prints and parses as `did:key:z…`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum PublicKey {
    /// secp256k1, `ES256K` in JOSE.
    K256(k256::ecdsa::VerifyingKey),
    /// NIST P-256, `ES256` in JOSE.
    P256(p256::ecdsa::VerifyingKey),
}

impl PublicKey {
    /// Reads `did:key:z…`.
    ///
    /// # Errors
    /// Another form, another kind of key, or no point of the curve.
    pub fn from_did_key(text: &str) -> Result<PublicKey, KeyError> {
        PublicKey::from_multibase(text.strip_prefix("did:key:").ok_or(KeyError::DidKey)?)
    }

    /// Writes `did:key:z…`.
    #[must_use]
    pub fn to_did_key(&self) -> String {
        format!("did:key:{}", self.to_multibase())
    }

    /// Reads a `Multikey`: `z…` of a multicodec prefix and the compressed point.
    ///
    /// # Errors
    /// Another form, another kind of key, or no point of the curve.
    pub fn from_multibase(text: &str) -> Result<PublicKey, KeyError> {
        let bytes = decode_multibase(text)?;
        match bytes.split_first_chunk::<2>() {
            Some((&K256_CODEC, point)) => PublicKey::k256_compressed(point),
            Some((&P256_CODEC, point)) => PublicKey::p256_compressed(point),
            _ => Err(KeyError::Curve),
        }
    }

    /// Writes the `Multikey` form.
    #[must_use]
    pub fn to_multibase(&self) -> String {
        let codec = match self {
            PublicKey::K256(_) => K256_CODEC,
            PublicKey::P256(_) => P256_CODEC,
        };
        let mut bytes = Vec::with_capacity(codec.len() + COMPRESSED_POINT_BYTES);
        bytes.extend_from_slice(&codec);
        bytes.extend_from_slice(&self.to_compressed());
        format!("z{}", base58::encode(&bytes))
    }

    /// Reads a verification method of a DID document: its `type` and its `publicKeyMultibase`. Besides `Multikey` that is
    /// the form from before it, where the type names the curve and the multibase holds the bare point.
    ///
    /// # Errors
    /// Another type, or a key that is none.
    pub fn from_verification_method(kind: &str, multibase: &str) -> Result<PublicKey, KeyError> {
        match kind {
            "Multikey" => PublicKey::from_multibase(multibase),
            "EcdsaSecp256k1VerificationKey2019" => {
                let point = decode_multibase(multibase)?;
                check_point(&point, true)?;
                let key = k256::ecdsa::VerifyingKey::from_sec1_bytes(&point);
                key.map(PublicKey::K256).map_err(|_| KeyError::Point)
            }
            "EcdsaSecp256r1VerificationKey2019" => {
                let point = decode_multibase(multibase)?;
                check_point(&point, true)?;
                let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(&point);
                key.map(PublicKey::P256).map_err(|_| KeyError::Point)
            }
            _ => Err(KeyError::Curve),
        }
    }

    /// Reads a compressed point of secp256k1, 33 bytes.
    ///
    /// # Errors
    /// [`KeyError::Point`].
    pub fn k256_compressed(point: &[u8]) -> Result<PublicKey, KeyError> {
        if point.len() != COMPRESSED_POINT_BYTES {
            return Err(KeyError::Point);
        }
        k256::ecdsa::VerifyingKey::from_sec1_bytes(point)
            .map(PublicKey::K256)
            .map_err(|_| KeyError::Point)
    }

    /// Reads a compressed point of P-256, 33 bytes.
    ///
    /// # Errors
    /// [`KeyError::Point`].
    pub fn p256_compressed(point: &[u8]) -> Result<PublicKey, KeyError> {
        check_point(point, false)?;
        p256::ecdsa::VerifyingKey::from_sec1_bytes(point)
            .map(PublicKey::P256)
            .map_err(|_| KeyError::Point)
    }

    /// The compressed point.
    #[must_use]
    pub fn to_compressed(&self) -> [u8; COMPRESSED_POINT_BYTES] {
        let mut bytes = [0; COMPRESSED_POINT_BYTES];
        match self {
            PublicKey::K256(key) => bytes.copy_from_slice(key.to_sec1_point(true).as_bytes()),
            PublicKey::P256(key) => bytes.copy_from_slice(key.to_sec1_point(true).as_bytes()),
        }
        bytes
    }

    /// The name of the signature algorithm in JOSE headers.
    #[must_use]
    pub fn jose_algorithm(&self) -> &'static str {
        match self {
            PublicKey::K256(_) => "ES256K",
            PublicKey::P256(_) => "ES256",
        }
    }

    /// Checks that `signature` is this key's over `message` (not its hash), in the one form the protocol allows:
    /// 64 bytes, low s.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), SignatureError> {
        self.verify_with(message, signature, false)
    }

    /// Like [`verify`](PublicKey::verify), but a high s will do: JWTs of other services carry them.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn verify_allow_high_s(&self, message: &[u8], signature: &[u8]) -> Result<(), SignatureError> {
        self.verify_with(message, signature, true)
    }

    fn verify_with(
        &self,
        message: &[u8],
        signature: &[u8],
        allow_high_s: bool,
    ) -> Result<(), SignatureError> {
        if signature.len() != SIGNATURE_BYTES {
            return Err(SignatureError::Length {
                found: signature.len(),
            });
        }
        let hash: [u8; 32] = Sha256::digest(message).into();
        match self {
            PublicKey::K256(key) => {
                let signature =
                    k256::ecdsa::Signature::from_slice(signature).map_err(|_| SignatureError::Range)?;
                // No crate can be left to decide about s: for secp256k1 they refuse the high one always, p256 never.
                let low = signature.normalize_s();
                if low != signature && !allow_high_s {
                    return Err(SignatureError::HighS);
                }
                if Checker::new(key).accepts(&hash, &low) {
                    Ok(())
                } else {
                    Err(SignatureError::Mismatch)
                }
            }
            PublicKey::P256(key) => {
                let signature =
                    p256::ecdsa::Signature::from_slice(signature).map_err(|_| SignatureError::Range)?;
                let low = signature.normalize_s();
                if low != signature && !allow_high_s {
                    return Err(SignatureError::HighS);
                }
                key.verify_prehash(&hash, &low)
                    .map_err(|_| SignatureError::Mismatch)
            }
        }
    }
}

/// Lets through the two encodings of a point that the protocol knows: compressed (33 bytes), and where documents from
/// before `Multikey` are read also uncompressed (65 bytes).
fn check_point(point: &[u8], allow_uncompressed: bool) -> Result<(), KeyError> {
    match (point.first(), point.len()) {
        (Some(2 | 3), COMPRESSED_POINT_BYTES) => Ok(()),
        (Some(4), UNCOMPRESSED_POINT_BYTES) if allow_uncompressed => Ok(()),
        _ => Err(KeyError::Point),
    }
}

fn decode_multibase(text: &str) -> Result<Vec<u8>, KeyError> {
    text.strip_prefix('z')
        .and_then(base58::decode)
        .ok_or(KeyError::Multibase)
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<PublicKey, KeyError> {
        PublicKey::from_did_key(text)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.to_did_key())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

super::text::serde_as_text!(PublicKey, "a did:key");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SeededEntropy;
    use proptest::prelude::*;

    fn key(seed: u64) -> SigningKey {
        SigningKey::generate(&SeededEntropy::new(seed)).unwrap()
    }

    #[test]
    fn what_is_signed_verifies_and_anything_changed_does_not() {
        let key = key(1);
        let signature = key.sign(b"message").unwrap();
        let public = key.public_key();
        assert_eq!(public.verify(b"message", &signature), Ok(()));
        assert_eq!(
            public.verify(b"massage", &signature),
            Err(SignatureError::Mismatch)
        );
        assert_eq!(
            self::key(2).public_key().verify(b"message", &signature),
            Err(SignatureError::Mismatch)
        );
        assert_eq!(
            public.verify(b"message", &signature[1..]),
            Err(SignatureError::Length { found: 63 })
        );
        assert_eq!(public.verify(b"message", &[0; 64]), Err(SignatureError::Range));
        assert_eq!(public.verify(b"message", &[0xff; 64]), Err(SignatureError::Range));
    }

    #[test]
    fn signing_twice_gives_the_same_bytes() {
        assert_eq!(key(3).sign(b"x").unwrap(), key(3).sign(b"x").unwrap());
    }

    #[test]
    fn a_key_survives_its_bytes() {
        let key = key(4);
        let copy = SigningKey::from_bytes(key.to_bytes().as_slice()).unwrap();
        assert_eq!(copy.public_key(), key.public_key());
        for bytes in [&[0u8; 32][..], &[0xff; 32], &[1; 31], &[1; 33], &[]] {
            assert_eq!(SigningKey::from_bytes(bytes).err(), Some(KeyError::Secret));
        }
    }

    #[test]
    fn a_source_that_gives_only_zeros_makes_no_key() {
        struct Zeros;
        impl Entropy for Zeros {
            fn fill(&self, _: &mut [u8]) -> std::io::Result<()> {
                Ok(())
            }
        }
        assert!(matches!(
            SigningKey::generate(&Zeros),
            Err(SigningError::Entropy(_))
        ));
    }

    #[test]
    fn printing_a_secret_key_shows_the_public_one_only() {
        let key = key(5);
        let printed = format!("{key:?}");
        let secret = data_encoding::HEXLOWER.encode(key.to_bytes().as_slice());
        assert!(printed.contains("did:key:z") && !printed.contains(&secret));
    }

    #[test]
    fn keys_that_are_none_are_refused() {
        let good = key(6).public_key().to_did_key();
        for (text, error) in [
            ("", KeyError::DidKey),
            ("did:plc:abc", KeyError::DidKey),
            ("did:key:", KeyError::Multibase),
            ("did:key:mAAAA", KeyError::Multibase),
            ("did:key:z", KeyError::Curve),
            // Ed25519.
            (
                "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK",
                KeyError::Curve,
            ),
            (&good[..good.len() - 1], KeyError::Curve),
        ] {
            assert!(
                PublicKey::from_did_key(text).is_err_and(|found| found == error || text.len() > 50),
                "{text}"
            );
        }
        assert!(PublicKey::k256_compressed(&[0xff; 33]).is_err());
        assert!(PublicKey::p256_compressed(&[2; 32]).is_err());
        assert!(PublicKey::from_verification_method("Ed25519VerificationKey2020", "z6Mk").is_err());
    }

    #[test]
    fn a_high_s_is_for_those_who_ask_for_it() {
        let key = key(7);
        let low = key.sign(b"m").unwrap();
        let signature = k256::ecdsa::Signature::from_slice(&low).unwrap();
        let (r, s) = signature.split_scalars();
        let high = k256::ecdsa::Signature::from_scalars(r, -s).unwrap().to_bytes();
        assert_eq!(key.public_key().verify(b"m", &high), Err(SignatureError::HighS));
        assert_eq!(key.public_key().verify_allow_high_s(b"m", &high), Ok(()));
        assert_eq!(
            key.public_key().verify_allow_high_s(b"n", &high),
            Err(SignatureError::Mismatch)
        );
    }

    #[test]
    fn json_carries_a_public_key_as_did_key() {
        let public = key(8).public_key();
        let json = serde_json::to_string(&public).unwrap();
        assert_eq!(serde_json::from_str::<PublicKey>(&json).unwrap(), public);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn signatures_and_keys_agree_with_another_implementation(
            secret in any::<[u8; 32]>(),
            message in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            use shrike::crypto::{K256SigningKey, SigningKey as _};
            let Ok(ours) = SigningKey::from_bytes(&secret) else { return Ok(()) };
            let theirs = K256SigningKey::from_bytes(&secret).unwrap();
            prop_assert_eq!(ours.public_key().to_did_key(), theirs.public_key().did_key());
            let signature = theirs.sign(&message).unwrap();
            prop_assert_eq!(&ours.sign(&message).unwrap()[..], &signature.as_bytes()[..]);
            prop_assert_eq!(ours.public_key().to_did_key().parse::<PublicKey>(), Ok(ours.public_key()));
        }
    }
}
