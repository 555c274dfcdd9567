//! Checking of secp256k1 signatures, by libsecp256k1 where it is compiled in (feature `libsecp256k1`, on by default): it
//! takes a quarter of the time that `k256` takes. `k256` signs, and is what remains without the feature.
//!
//! Form (length, range, low s) is judged by the caller before; here is only the equation.

use k256::ecdsa::{Signature, VerifyingKey};

#[cfg(not(feature = "libsecp256k1"))]
pub(super) use self::pure::Checker;
#[cfg(feature = "libsecp256k1")]
pub(super) use self::second::Checker;

#[cfg(feature = "libsecp256k1")]
mod second {
    use super::{Signature, VerifyingKey, pure};

    /// A public key, ready to check signatures.
    #[derive(Clone)]
    pub(in super::super) enum Checker {
        /// As libsecp256k1 wants it.
        Ready(secp256k1::PublicKey),
        /// A point that it does not take. There is none: both know the same curve.
        Odd(pure::Checker),
    }

    impl Checker {
        pub(in super::super) fn new(key: &VerifyingKey) -> Checker {
            // Uncompressed, because finding y again costs more than all the rest of this.
            let point = key.to_sec1_point(false);
            let key_bytes = point.as_bytes().try_into().ok();
            key_bytes
                .and_then(|bytes| secp256k1::PublicKey::from_byte_array_uncompressed(bytes).ok())
                .map_or_else(|| Checker::Odd(pure::Checker::new(key)), Checker::Ready)
        }

        /// Whether `signature`, with the lower s, is this key's over `hash`.
        pub(in super::super) fn accepts(&self, hash: &[u8; 32], signature: &Signature) -> bool {
            match self {
                Checker::Ready(key) => {
                    let message = secp256k1::Message::from_digest(*hash);
                    secp256k1::ecdsa::Signature::from_compact(&signature.to_bytes())
                        .is_ok_and(|signature| secp256k1::ecdsa::verify(&signature, message, key).is_ok())
                }
                Checker::Odd(checker) => checker.accepts(hash, signature),
            }
        }
    }
}

#[cfg_attr(
    all(feature = "libsecp256k1", not(test)),
    allow(
        dead_code,
        reason = "the other implementation is used; this one is its fallback and its test"
    )
)]
mod pure {
    use super::{Signature, VerifyingKey};
    use k256::ecdsa::signature::hazmat::PrehashVerifier;

    /// A public key, ready to check signatures.
    #[derive(Clone)]
    pub(in super::super) struct Checker(VerifyingKey);

    impl Checker {
        pub(in super::super) fn new(key: &VerifyingKey) -> Checker {
            Checker(*key)
        }

        /// Whether `signature`, with the lower s, is this key's over `hash`.
        pub(in super::super) fn accepts(&self, hash: &[u8; 32], signature: &Signature) -> bool {
            self.0.verify_prehash(hash, signature).is_ok()
        }
    }
}

#[cfg(all(test, feature = "libsecp256k1"))]
mod tests {
    use super::*;
    use k256::ecdsa::signature::hazmat::PrehashSigner;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn both_implementations_judge_alike(
            secret in prop::array::uniform32(1u8..),
            hash in prop::array::uniform32(any::<u8>()),
            other in prop::array::uniform32(any::<u8>()),
            flip in 0usize..64,
            bit in 0u8..8,
        ) {
            // Some draws are beyond the group order.
            prop_assume!(k256::ecdsa::SigningKey::from_slice(&secret).is_ok());
            let key = k256::ecdsa::SigningKey::from_slice(&secret).unwrap();
            let (fast, slow) = (second::Checker::new(key.verifying_key()), pure::Checker::new(key.verifying_key()));
            prop_assert!(matches!(fast, second::Checker::Ready(_)));
            let good: Signature = key.sign_prehash(&hash).unwrap();
            prop_assert!(fast.accepts(&hash, &good) && slow.accepts(&hash, &good));
            prop_assert_eq!(fast.accepts(&other, &good), slow.accepts(&other, &good));
            let mut bytes: [u8; 64] = good.to_bytes().into();
            bytes[flip] ^= 1 << bit;
            if let Ok(bad) = Signature::from_slice(&bytes) {
                prop_assert!(!fast.accepts(&hash, &bad) && !slow.accepts(&hash, &bad));
            }
            // The library's own signature is the same, by the same rule for the nonce.
            let message = secp256k1::Message::from_digest(hash);
            let theirs = secp256k1::ecdsa::sign(message, &secp256k1::SecretKey::from_secret_bytes(secret).unwrap());
            let ours: [u8; 64] = good.normalize_s().to_bytes().into();
            prop_assert_eq!(theirs.serialize_compact(), ours);
        }
    }
}
