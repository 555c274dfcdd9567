//! Service auth: short-lived JWTs by which one service, or an account through its PDS, calls another. Signed with an
//! account's repo key (ES256K); verified against the key in the issuer's DID document. Exactly two algorithms are known,
//! and each only with a key of its own curve. Spec: <https://atproto.com/specs/xrpc#inter-service-authentication-jwt>.

use std::fmt;

use async_trait::async_trait;
use data_encoding::BASE64URL_NOPAD;
use engine::clock::Entropy;
use engine::repo::Did;
use engine::repo::keys::{PublicKey, SigningKey};
use serde::{Deserialize, Serialize};

/// Default lifetime, seconds.
pub const DEFAULT_LIFETIME_SECS: u64 = 60;
/// Longest lifetime of a token that names a method, seconds.
pub const MAX_LIFETIME_SECS: u64 = 60 * 60;
/// Longest lifetime of a token that is good for every method, seconds.
pub const MAX_LIFETIME_WITHOUT_METHOD_SECS: u64 = 60;
/// Longest token that is looked at, in characters.
pub const MAX_TOKEN_CHARS: usize = 8 * 1024;

/// The fragment of an account's signing key in its DID document.
pub const ACCOUNT_KEY: &str = "atproto";
/// The fragment of a labeler's key.
pub const LABELER_KEY: &str = "atproto_label";
const LABELER_ISSUER: &str = "atproto_labeler";

/// What a new token says.
#[derive(Clone, Copy, Debug)]
pub struct ServiceJwt<'a> {
    /// The account that calls.
    pub iss: &'a Did,
    /// The service that is called: a DID, or one with a fragment.
    pub aud: &'a str,
    /// The only method it is good for; `None` for every method.
    pub lxm: Option<&'a str>,
    /// Seconds since 1970.
    pub issued_at: u64,
    /// Seconds since 1970.
    pub expires_at: u64,
}

/// Why no token was made.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// No randomness for the token's id.
    #[error("no randomness for a token id")]
    Entropy(#[source] std::io::Error),
    /// The key did not sign.
    #[error("a service token could not be signed")]
    Signing(#[source] engine::repo::keys::SigningError),
    /// The claims did not encode.
    #[error("a service token could not be encoded")]
    Encoding(#[source] serde_json::Error),
}

#[derive(Serialize)]
struct IssuedClaims<'a> {
    iat: u64,
    iss: &'a str,
    aud: &'a str,
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    lxm: Option<&'a str>,
    jti: String,
}

/// Makes a token. The rules for what may be asked for are the caller's.
///
/// # Errors
/// Chance, signing or encoding failed; none depends on input.
pub fn issue(key: &SigningKey, token: &ServiceJwt<'_>, entropy: &dyn Entropy) -> Result<String, IssueError> {
    let mut id = [0; 16];
    entropy.fill(&mut id).map_err(IssueError::Entropy)?;
    let claims = IssuedClaims {
        iat: token.issued_at,
        iss: token.iss.as_str(),
        aud: token.aud,
        exp: token.expires_at,
        lxm: token.lxm,
        jti: data_encoding::HEXLOWER.encode(&id),
    };
    let claims = serde_json::to_vec(&claims).map_err(IssueError::Encoding)?;
    let mut jwt = BASE64URL_NOPAD.encode(br#"{"typ":"JWT","alg":"ES256K"}"#);
    jwt.push('.');
    jwt.push_str(&BASE64URL_NOPAD.encode(&claims));
    let signature = key.sign(jwt.as_bytes()).map_err(IssueError::Signing)?;
    jwt.push('.');
    jwt.push_str(&BASE64URL_NOPAD.encode(&signature));
    Ok(jwt)
}

/// Where the public keys of issuers come from: their DID documents.
#[async_trait]
pub trait IssuerKeys: Send + Sync {
    /// The key that `did`'s document has under `#fragment`; with `refresh`, past every cache.
    ///
    /// # Errors
    /// Text for the log when there is no document or no such key.
    async fn issuer_key(&self, did: &Did, fragment: &str, refresh: bool) -> Result<PublicKey, String>;
}

/// A verified token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceClaims {
    /// The issuer, without fragment.
    pub issuer: Did,
    /// The issuer's fragment, if any: `atproto_labeler` for a labeler's own calls.
    pub issuer_fragment: Option<String>,
    /// The audience as given; one of those that the verifier was told to accept.
    pub audience: String,
    /// The method that the token is good for.
    pub method: String,
    /// End of validity, seconds since 1970, exclusive.
    pub expires_at: u64,
    /// The token's own name, by which a second use is found out.
    pub id: Option<String>,
}

/// Why a token was refused. All are 401 on the wire.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceJwtError {
    /// No token where one is needed.
    #[error("missing jwt")]
    Missing,
    /// Not a JWT with the claims that are needed.
    #[error("poorly formatted jwt")]
    Malformed,
    /// A session or OAuth token.
    #[error("Invalid jwt type")]
    Type,
    /// No longer good.
    #[error("jwt expired")]
    Expired,
    /// Made for another method, or for none.
    #[error("bad jwt lexicon method (\"lxm\"): must match {expected}")]
    Method {
        /// The method that was called.
        expected: String,
    },
    /// The issuer is no DID, or one with an empty or second fragment.
    #[error("jwt issuer is not a DID")]
    Issuer,
    /// Not signed by the issuer as far as can be told now.
    #[error("jwt signature does not match jwt issuer")]
    Signature,
    /// Made for another service.
    #[error("jwt audience does not match service did")]
    Audience,
    /// A good token of somebody whom the method does not trust.
    #[error("Untrusted issuer")]
    Untrusted,
    /// Used before. The reference PDS does not look; see [`super::replay`].
    #[error("jwt was used before")]
    Replayed,
}

impl ServiceJwtError {
    /// HTTP status of the answer.
    #[must_use]
    pub const fn status(&self) -> u16 {
        401
    }

    /// The `error` field of the answer.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            ServiceJwtError::Missing => "MissingJwt",
            ServiceJwtError::Malformed => "BadJwt",
            ServiceJwtError::Type => "BadJwtType",
            ServiceJwtError::Expired => "JwtExpired",
            ServiceJwtError::Method { .. } => "BadJwtLexiconMethod",
            ServiceJwtError::Issuer => "BadJwtIss",
            ServiceJwtError::Signature => "BadJwtSignature",
            ServiceJwtError::Audience => "BadJwtAudience",
            ServiceJwtError::Untrusted => "UntrustedIss",
            ServiceJwtError::Replayed => "JwtReplayed",
        }
    }
}

#[derive(Deserialize)]
struct FoundHeader {
    alg: String,
    typ: Option<String>,
}

#[derive(Deserialize)]
struct FoundClaims {
    iss: String,
    aud: String,
    exp: f64,
    lxm: Option<String>,
    /// A text by the specification; whatever else it is names the token as well.
    jti: Option<serde_json::Value>,
}

/// Whether `token` looks like a service token rather than a session token: its unverified claims hold a method. Says
/// nothing about whether it is good.
#[must_use]
pub fn looks_like_service_jwt(token: &str) -> bool {
    #[derive(Deserialize)]
    struct Peek {
        lxm: Option<serde::de::IgnoredAny>,
    }
    token.len() <= MAX_TOKEN_CHARS
        && token
            .split('.')
            .nth(1)
            .and_then(decode_part::<Peek>)
            .is_some_and(|claims| claims.lxm.is_some())
}

/// Verifies tokens made for one service.
pub struct ServiceJwtVerifier<K> {
    audiences: Vec<String>,
    keys: K,
}

impl<K> fmt::Debug for ServiceJwtVerifier<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceJwtVerifier")
            .field("audiences", &self.audiences)
            .finish_non_exhaustive()
    }
}

impl<K: std::ops::Deref<Target: IssuerKeys> + Sync> ServiceJwtVerifier<K> {
    /// Accepts tokens whose audience is exactly one of `audiences`, usually the service DID alone.
    #[must_use]
    pub fn new(audiences: Vec<String>, keys: K) -> ServiceJwtVerifier<K> {
        ServiceJwtVerifier { audiences, keys }
    }

    /// Verifies `token` for a call of `method` (an NSID) at `now`, seconds since 1970. The issuer's key may come from a
    /// cache; a signature that does not match it is checked once more against the key as it is now.
    ///
    /// # Errors
    /// The first check that fails, in the order of [`ServiceJwtError`]'s variants from `Malformed` to `Audience`.
    pub async fn verify(
        &self,
        token: &str,
        method: &str,
        now: u64,
    ) -> Result<ServiceClaims, ServiceJwtError> {
        if token.len() > MAX_TOKEN_CHARS {
            return Err(ServiceJwtError::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(ServiceJwtError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(ServiceJwtError::Malformed)?;
        let signature = BASE64URL_NOPAD
            .decode(signature.as_bytes())
            .map_err(|_| ServiceJwtError::Malformed)?;
        let header: FoundHeader = decode_part(header).ok_or(ServiceJwtError::Malformed)?;
        let claims: FoundClaims = decode_part(claims).ok_or(ServiceJwtError::Malformed)?;
        if matches!(header.typ.as_deref(), Some("at+jwt" | "refresh+jwt" | "dpop+jwt")) {
            return Err(ServiceJwtError::Type);
        }
        // Seconds stay exact in an f64 for longer than anyone will ask.
        #[expect(clippy::cast_precision_loss, reason = "a time of this era is far below 2^53")]
        if claims.exp.is_nan() || (now as f64) >= claims.exp {
            return Err(ServiceJwtError::Expired);
        }
        let lxm = claims.lxm.filter(|lxm| lxm == method);
        let method = lxm.ok_or_else(|| ServiceJwtError::Method {
            expected: method.to_owned(),
        })?;
        let (issuer, issuer_fragment) = parse_issuer(&claims.iss)?;
        let fragment = match issuer_fragment.as_deref() {
            Some(LABELER_ISSUER) => LABELER_KEY,
            _ => ACCOUNT_KEY,
        };
        if !self
            .signed_by(&issuer, fragment, &header.alg, signed.as_bytes(), &signature)
            .await
        {
            return Err(ServiceJwtError::Signature);
        }
        if !self.audiences.contains(&claims.aud) {
            return Err(ServiceJwtError::Audience);
        }
        Ok(ServiceClaims {
            issuer,
            issuer_fragment,
            audience: claims.aud,
            method,
            // A fraction of a second counts as a whole one; what is beyond the range is its end.
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "the conversion saturates, and it is after now"
            )]
            expires_at: claims.exp.ceil() as u64,
            id: claims.jti.map(|id| id.to_string()),
        })
    }

    async fn signed_by(
        &self,
        issuer: &Did,
        fragment: &str,
        alg: &str,
        signed: &[u8],
        signature: &[u8],
    ) -> bool {
        if !matches!(alg, "ES256K" | "ES256") {
            return false;
        }
        for refresh in [false, true] {
            match self.keys.issuer_key(issuer, fragment, refresh).await {
                Ok(key)
                    if key.jose_algorithm() == alg && key.verify_allow_high_s(signed, signature).is_ok() =>
                {
                    return true;
                }
                Ok(_) => {}
                Err(reason) => {
                    tracing::debug!(%issuer, fragment, reason, "no key for a service token's issuer");
                }
            }
        }
        false
    }
}

fn decode_part<T: for<'de> Deserialize<'de>>(part: &str) -> Option<T> {
    let bytes = BASE64URL_NOPAD.decode(part.as_bytes()).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn parse_issuer(iss: &str) -> Result<(Did, Option<String>), ServiceJwtError> {
    let (did, fragment) = match iss.split_once('#') {
        Some((_, fragment)) if fragment.is_empty() || fragment.contains('#') => {
            return Err(ServiceJwtError::Issuer);
        }
        Some((did, fragment)) => (did, Some(fragment.to_owned())),
        None => (iss, None),
    };
    Ok((did.parse().map_err(|_| ServiceJwtError::Issuer)?, fragment))
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::clock::SeededEntropy;
    use parking_lot::Mutex;
    use serde_json::{Value, json};

    const NOW: u64 = 1_700_000_000;
    const METHOD: &str = "com.atproto.server.createAccount";
    const SERVICE: &str = "did:web:pds.example";

    fn alice() -> Did {
        "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().unwrap()
    }

    fn key(seed: u64) -> SigningKey {
        SigningKey::generate(&SeededEntropy::new(seed)).unwrap()
    }

    /// Answers `cached` until it is asked to refresh, then `fresh`; notes what it was asked.
    struct Keys {
        cached: Option<PublicKey>,
        fresh: Option<PublicKey>,
        asked: Mutex<Vec<(String, bool)>>,
    }

    impl Keys {
        fn of(cached: u64, fresh: u64) -> Keys {
            Keys {
                cached: Some(key(cached).public_key()),
                fresh: Some(key(fresh).public_key()),
                asked: Mutex::default(),
            }
        }
    }

    #[async_trait]
    impl IssuerKeys for Keys {
        async fn issuer_key(&self, _: &Did, fragment: &str, refresh: bool) -> Result<PublicKey, String> {
            self.asked.lock().push((fragment.to_owned(), refresh));
            if refresh { self.fresh } else { self.cached }.ok_or_else(|| "none".to_owned())
        }
    }

    fn forge(header: &Value, claims: &Value, key: &SigningKey) -> String {
        let signed = format!(
            "{}.{}",
            BASE64URL_NOPAD.encode(header.to_string().as_bytes()),
            BASE64URL_NOPAD.encode(claims.to_string().as_bytes())
        );
        let signature = key.sign(signed.as_bytes()).unwrap();
        format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature))
    }

    fn header() -> Value {
        json!({"typ": "JWT", "alg": "ES256K"})
    }

    fn claims() -> Value {
        json!({"iss": alice().as_str(), "aud": SERVICE, "exp": NOW + 60, "lxm": METHOD})
    }

    fn with(mut value: Value, key: &str, new: Value) -> Value {
        value[key] = new;
        value
    }

    async fn verify(keys: &Keys, token: &str) -> Result<ServiceClaims, ServiceJwtError> {
        ServiceJwtVerifier::new(vec![SERVICE.to_owned()], keys)
            .verify(token, METHOD, NOW)
            .await
    }

    #[tokio::test]
    async fn an_issued_token_has_the_reference_shape_and_verifies() {
        let wanted = ServiceJwt {
            iss: &alice(),
            aud: SERVICE,
            lxm: Some(METHOD),
            issued_at: NOW,
            expires_at: NOW + 60,
        };
        let token = issue(&key(1), &wanted, &SeededEntropy::new(9)).unwrap();
        let keys = Keys::of(1, 1);
        let found = verify(&keys, &token).await.unwrap();
        assert_eq!(
            (found.issuer, found.issuer_fragment, found.method.as_str()),
            (alice(), None, METHOD)
        );
        assert_eq!(found.expires_at, NOW + 60);
        assert!(found.id.is_some_and(|id| id.len() == 34), "32 digits, quoted");
        assert_eq!(*keys.asked.lock(), [("atproto".to_owned(), false)]);
        let payload: Value = decode_part(token.split('.').nth(1).unwrap()).unwrap();
        let fields: Vec<&str> = payload.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields, ["iat", "iss", "aud", "exp", "lxm", "jti"]);
        assert_eq!(payload["jti"].as_str().unwrap().len(), 32);
        assert!(looks_like_service_jwt(&token));
        let open = issue(
            &key(1),
            &ServiceJwt { lxm: None, ..wanted },
            &SeededEntropy::new(9),
        )
        .unwrap();
        assert!(!looks_like_service_jwt(&open));
        assert_eq!(
            verify(&Keys::of(1, 1), &open).await.unwrap_err().name(),
            "BadJwtLexiconMethod"
        );
    }

    #[tokio::test]
    async fn bad_tokens_are_refused_with_the_reference_names() {
        let k = key(1);
        let table = [
            ("BadJwt", "x".to_owned()),
            ("BadJwt", "a.b.c".to_owned()),
            ("BadJwt", "x".repeat(MAX_TOKEN_CHARS + 1)),
            ("BadJwt", forge(&json!({"typ": "JWT"}), &claims(), &k)),
            (
                "BadJwt",
                forge(&header(), &with(claims(), "exp", json!("soon")), &k),
            ),
            ("BadJwt", forge(&header(), &with(claims(), "iss", json!(7)), &k)),
            ("BadJwt", format!("{}.x", forge(&header(), &claims(), &k))),
            (
                "BadJwtType",
                forge(&with(header(), "typ", json!("at+jwt")), &claims(), &k),
            ),
            (
                "BadJwtType",
                forge(&with(header(), "typ", json!("dpop+jwt")), &claims(), &k),
            ),
            (
                "JwtExpired",
                forge(&header(), &with(claims(), "exp", json!(NOW)), &k),
            ),
            (
                "BadJwtLexiconMethod",
                forge(&header(), &with(claims(), "lxm", json!("com.example.other")), &k),
            ),
            (
                "BadJwtLexiconMethod",
                forge(&header(), &with(claims(), "lxm", Value::Null), &k),
            ),
            (
                "BadJwtIss",
                forge(&header(), &with(claims(), "iss", json!("alice")), &k),
            ),
            (
                "BadJwtIss",
                forge(&header(), &with(claims(), "iss", json!("did:plc:abc#")), &k),
            ),
            (
                "BadJwtIss",
                forge(&header(), &with(claims(), "iss", json!("did:plc:abc#a#b")), &k),
            ),
            ("BadJwtSignature", forge(&header(), &claims(), &key(2))),
            (
                "BadJwtSignature",
                forge(&with(header(), "alg", json!("none")), &claims(), &k),
            ),
            (
                "BadJwtSignature",
                forge(&with(header(), "alg", json!("HS256")), &claims(), &k),
            ),
            (
                "BadJwtSignature",
                forge(&with(header(), "alg", json!("ES256")), &claims(), &k),
            ),
            (
                "BadJwtAudience",
                forge(
                    &header(),
                    &with(claims(), "aud", json!("did:web:other.example")),
                    &k,
                ),
            ),
        ];
        for (name, token) in table {
            let error = verify(&Keys::of(1, 1), &token).await.unwrap_err();
            assert_eq!((error.name(), error.status()), (name, 401), "{token}");
        }
    }

    #[tokio::test]
    async fn a_rotated_key_is_found_by_one_refresh() {
        let token = forge(&header(), &claims(), &key(2));
        let keys = Keys::of(1, 2);
        assert!(verify(&keys, &token).await.is_ok());
        assert_eq!(
            keys.asked
                .lock()
                .iter()
                .map(|(_, refresh)| *refresh)
                .collect::<Vec<_>>(),
            [false, true]
        );
        let unknown = Keys {
            cached: None,
            fresh: None,
            asked: Mutex::default(),
        };
        assert_eq!(verify(&unknown, &token).await, Err(ServiceJwtError::Signature));
    }

    #[tokio::test]
    async fn a_labeler_signs_with_its_label_key_and_the_type_may_be_missing() {
        let claims = with(claims(), "iss", json!(format!("{}#atproto_labeler", alice())));
        let token = forge(&json!({"alg": "ES256K"}), &claims, &key(1));
        let keys = Keys::of(1, 1);
        assert_eq!(
            verify(&keys, &token).await.unwrap().issuer_fragment.as_deref(),
            Some("atproto_labeler")
        );
        assert_eq!(keys.asked.lock()[0].0, "atproto_label");
    }
}
