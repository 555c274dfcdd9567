//! Session tokens: JWTs under one shared secret (HS256), as the reference server issues them.
//!
//! |            | access                    | refresh                                  |
//! |------------|---------------------------|------------------------------------------|
//! | `typ`      | `at+jwt`                  | `refresh+jwt`                            |
//! | lifetime   | 120 minutes               | 90 days                                  |
//! | `jti`      | none                      | 32 bytes, base64; its hash is the row key |
//! | state      | none: valid until `exp`   | valid while its row lives                |
//!
//! A refresh token's successor has an id that is *computed* from its own, so a client that lost the answer and replays the
//! old token within the grace period gets the same successor again, and nothing that could log in is ever stored: rows
//! hold a hash of the id.

use std::fmt;
use std::str::FromStr;

use engine::clock::Entropy;
use engine::repo::Did;
use hmac::{Hmac, KeyInit, Mac};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::de::{Deserializer, IgnoredAny};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::secrets::Secret;

/// Lifetime of an access token, seconds.
pub const ACCESS_LIFETIME_SECS: u64 = 120 * 60;
/// Lifetime of a refresh token, seconds.
pub const REFRESH_LIFETIME_SECS: u64 = 90 * 24 * 60 * 60;
/// How long a refresh token may be used again after its first use, seconds.
pub const REFRESH_GRACE_SECS: u64 = 2 * 60 * 60;
/// Longest token that is looked at, in characters. Ours are about 300.
pub const MAX_TOKEN_CHARS: usize = 8 * 1024;

const ACCESS_TYPE: &str = "at+jwt";
const REFRESH_TYPE: &str = "refresh+jwt";
const REFRESH_ID_BYTES: usize = 32;
const NEXT_ID_LABEL: &[u8] = b"azure-pds/next-refresh-id/v1";

/// What an access token may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Logged in with the account password: everything.
    Access,
    /// A privileged app password: standard methods, chat and service auth for migration.
    AppPassPrivileged,
    /// An app password: standard methods.
    AppPass,
    /// Logged in to a taken-down account: only methods that say so.
    Takendown,
    /// Waiting in a sign-up queue; never issued here, understood for completeness.
    SignupQueued,
    /// A refresh token's only scope.
    Refresh,
}

impl Scope {
    /// The wire name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Scope::Access => "com.atproto.access",
            Scope::AppPassPrivileged => "com.atproto.appPassPrivileged",
            Scope::AppPass => "com.atproto.appPass",
            Scope::Takendown => "com.atproto.takendown",
            Scope::SignupQueued => "com.atproto.signupQueued",
            Scope::Refresh => "com.atproto.refresh",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = TokenError;

    fn from_str(name: &str) -> Result<Scope, TokenError> {
        [
            Scope::Access,
            Scope::AppPassPrivileged,
            Scope::AppPass,
            Scope::Takendown,
            Scope::SignupQueued,
            Scope::Refresh,
        ]
        .into_iter()
        .find(|scope| scope.as_str() == name)
        .ok_or(TokenError::Invalid("Bad token scope"))
    }
}

/// Why a token was refused. Both are status 400 on the wire; clients act on the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Ours, and once good.
    #[error("Token has expired")]
    Expired,
    /// Not ours, not of this kind, or not for this.
    #[error("{0}")]
    Invalid(&'static str),
    /// The token could not be made.
    #[error("a session token could not be signed")]
    NotIssued,
}

impl TokenError {
    /// HTTP status of the answer.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            TokenError::Expired | TokenError::Invalid(_) => 400,
            TokenError::NotIssued => 500,
        }
    }

    /// The `error` field of the answer.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            TokenError::Expired => "ExpiredToken",
            TokenError::Invalid(_) => "InvalidToken",
            TokenError::NotIssued => "InternalServerError",
        }
    }
}

/// A verified access token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessClaims {
    /// Whose session.
    pub did: Did,
    /// What it may do; never [`Scope::Refresh`].
    pub scope: Scope,
    /// End of validity, seconds since 1970, exclusive.
    pub expires_at: u64,
}

/// A verified refresh token. Its row decides whether it may still be used.
#[derive(Clone, PartialEq, Eq)]
pub struct RefreshClaims {
    /// Whose session.
    pub did: Did,
    /// The token's id; store [`hash_refresh_id`] of it only.
    pub id: String,
    /// End of validity, seconds since 1970, exclusive.
    pub expires_at: u64,
}

impl fmt::Debug for RefreshClaims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RefreshClaims")
            .field("did", &self.did)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

#[derive(Serialize)]
struct IssuedClaims<'a> {
    scope: &'a str,
    sub: &'a str,
    aud: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    jti: Option<&'a str>,
    iat: u64,
    exp: u64,
}

/// Claims as found. `aud` as an array, a fractional `exp` or a repeated claim do not parse.
#[derive(Deserialize)]
struct FoundClaims {
    scope: Option<String>,
    sub: Option<String>,
    aud: Option<String>,
    jti: Option<String>,
    exp: Option<u64>,
    #[serde(default, deserialize_with = "present")]
    lxm: bool,
    #[serde(default, deserialize_with = "present")]
    cnf: bool,
}

/// True for a claim that is there at all, `null` included.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

/// Issues and verifies session tokens for one service.
pub struct SessionTokens {
    service_did: String,
    encoding: EncodingKey,
    decoding: DecodingKey,
    next_id_key: Secret<[u8; 32]>,
    validation: Validation,
}

impl fmt::Debug for SessionTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionTokens")
            .field("service_did", &self.service_did)
            .finish_non_exhaustive()
    }
}

impl SessionTokens {
    /// Tokens for `service_did` under `secret`, whose UTF-8 bytes are the key as they are.
    #[must_use]
    pub fn new(secret: &Secret<String>, service_did: &Did) -> SessionTokens {
        let key = secret.expose().as_bytes();
        let next_id_key = hmac(&Sha256::digest(key).into(), NEXT_ID_LABEL);
        let mut validation = Validation::new(Algorithm::HS256);
        // Every claim is checked below against the time that the caller gives; the library checks the signature.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        SessionTokens {
            service_did: service_did.as_str().to_owned(),
            encoding: EncodingKey::from_secret(key),
            decoding: DecodingKey::from_secret(key),
            next_id_key: Secret::new(next_id_key),
            validation,
        }
    }

    /// An access token for `did`, valid for [`ACCESS_LIFETIME_SECS`] from `now` (seconds since 1970).
    ///
    /// # Errors
    /// [`TokenError::Invalid`] if `scope` is the refresh scope, [`TokenError::NotIssued`] if signing failed.
    pub fn issue_access(&self, did: &Did, scope: Scope, now: u64) -> Result<String, TokenError> {
        if scope == Scope::Refresh {
            return Err(TokenError::Invalid("Bad token scope"));
        }
        self.issue(
            ACCESS_TYPE,
            scope,
            did,
            None,
            now,
            now.saturating_add(ACCESS_LIFETIME_SECS),
        )
    }

    /// A refresh token for `did` with id `jti`, valid for [`REFRESH_LIFETIME_SECS`] from `now`.
    ///
    /// # Errors
    /// [`TokenError::NotIssued`] if signing failed.
    pub fn issue_refresh(&self, did: &Did, jti: &str, now: u64) -> Result<String, TokenError> {
        self.issue(
            REFRESH_TYPE,
            Scope::Refresh,
            did,
            Some(jti),
            now,
            now.saturating_add(REFRESH_LIFETIME_SECS),
        )
    }

    fn issue(
        &self,
        typ: &str,
        scope: Scope,
        did: &Did,
        jti: Option<&str>,
        iat: u64,
        exp: u64,
    ) -> Result<String, TokenError> {
        let mut header = Header::new(Algorithm::HS256);
        header.typ = Some(typ.to_owned());
        let claims = IssuedClaims {
            scope: scope.as_str(),
            sub: did.as_str(),
            aud: &self.service_did,
            jti,
            iat,
            exp,
        };
        jsonwebtoken::encode(&header, &claims, &self.encoding).map_err(|_| TokenError::NotIssued)
    }

    /// Verifies an access token at `now` (seconds since 1970).
    ///
    /// # Errors
    /// [`TokenError::Expired`] for a token that was good until `exp`; [`TokenError::Invalid`] for everything else.
    pub fn verify_access(&self, token: &str, now: u64) -> Result<AccessClaims, TokenError> {
        let (claims, did, scope, expires_at) = self.verify(token, ACCESS_TYPE)?;
        if scope == Scope::Refresh || claims.jti.is_some() {
            return Err(TokenError::Invalid("Bad token scope"));
        }
        if expires_at <= now {
            return Err(TokenError::Expired);
        }
        Ok(AccessClaims {
            did,
            scope,
            expires_at,
        })
    }

    /// Verifies a refresh token at `now`; with `allow_expired` (to end a session) its end does not matter.
    ///
    /// # Errors
    /// As [`SessionTokens::verify_access`].
    pub fn verify_refresh(
        &self,
        token: &str,
        now: u64,
        allow_expired: bool,
    ) -> Result<RefreshClaims, TokenError> {
        let (claims, did, scope, expires_at) = self.verify(token, REFRESH_TYPE)?;
        if scope != Scope::Refresh {
            return Err(TokenError::Invalid("Bad token scope"));
        }
        let id = claims
            .jti
            .filter(|id| !id.is_empty())
            .ok_or(TokenError::Invalid("Malformed token"))?;
        if expires_at <= now && !allow_expired {
            return Err(TokenError::Expired);
        }
        Ok(RefreshClaims { did, id, expires_at })
    }

    fn verify(&self, token: &str, typ: &str) -> Result<(FoundClaims, Did, Scope, u64), TokenError> {
        if token.len() > MAX_TOKEN_CHARS {
            return Err(TokenError::Invalid("Malformed token"));
        }
        let found = jsonwebtoken::decode::<FoundClaims>(token, &self.decoding, &self.validation)
            .map_err(|_| TokenError::Invalid("Token could not be verified"))?;
        if found.header.typ.as_deref() != Some(typ) {
            return Err(TokenError::Invalid("Invalid token type"));
        }
        let claims = found.claims;
        if claims.lxm || claims.cnf {
            return Err(TokenError::Invalid("Malformed token"));
        }
        if claims.aud.as_deref() != Some(self.service_did.as_str()) {
            return Err(TokenError::Invalid("Token is for another audience"));
        }
        let did = claims
            .sub
            .as_deref()
            .and_then(|sub| sub.parse::<Did>().ok())
            .ok_or(TokenError::Invalid("Malformed token"))?;
        let scope = claims
            .scope
            .as_deref()
            .ok_or(TokenError::Invalid("Malformed token"))?
            .parse()?;
        let expires_at = claims.exp.ok_or(TokenError::Invalid("Malformed token"))?;
        Ok((claims, did, scope, expires_at))
    }

    /// The id of the token that follows the one with `id`: always the same for the same id, and not to be guessed
    /// without the secret.
    #[must_use]
    pub fn next_refresh_id(&self, id: &str) -> String {
        data_encoding::BASE64_NOPAD.encode(&hmac(self.next_id_key.expose(), id.as_bytes()))
    }
}

/// A fresh refresh token id: 32 random bytes in unpadded base64.
///
/// # Errors
/// The source of randomness failed.
pub fn new_refresh_id(entropy: &dyn Entropy) -> std::io::Result<String> {
    let mut id = [0; REFRESH_ID_BYTES];
    entropy.fill(&mut id)?;
    Ok(data_encoding::BASE64_NOPAD.encode(&id))
}

/// What is stored of a refresh token id: its SHA-256 in lowercase hex. The id has 256 random bits, so no salt is needed.
#[must_use]
pub fn hash_refresh_id(id: &str) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(id.as_bytes()))
}

/// HMAC-SHA256 under a 32-byte key.
pub(crate) fn hmac(key: &[u8; 32], message: &[u8]) -> [u8; 32] {
    // Padded to the hash's block, as HMAC itself would do, so that making the key cannot fail.
    let mut block = Zeroizing::new([0; 64]);
    for (to, from) in block.iter_mut().zip(key) {
        *to = *from;
    }
    let mut mac = Hmac::<Sha256>::new(&(*block).into());
    mac.update(message);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests;
