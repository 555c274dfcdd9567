//! Service tokens: made for accounts with their repo keys, and verified when another service calls with one.

use std::sync::Arc;

use engine::repo::Did;

use crate::auth::methods;
use crate::auth::permission::{Denied, Permission};
use crate::auth::replay::{ReplayCache, Use};
use crate::auth::service_jwt::{
    DEFAULT_LIFETIME_SECS, IssuerKeys, MAX_LIFETIME_SECS, MAX_LIFETIME_WITHOUT_METHOD_SECS, ServiceClaims,
    ServiceJwt, ServiceJwtError, ServiceJwtVerifier, issue,
};
use crate::identity::service_ref::{ServiceRef, ServiceRefError};
use crate::service::core::Core;
use crate::service::keys::SigningKeys;

/// A token that an account asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The service that it is for, as the account wrote it.
    pub aud: &'a str,
    /// The only method that it is for.
    pub lxm: Option<&'a str>,
    /// End of validity, seconds since 1970.
    pub exp: Option<i64>,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The audience is no service.
    #[error("aud must be an atproto DID, or one with a service id: {0}")]
    Audience(#[from] ServiceRefError),
    /// The session may not have it.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// It would end too early or too late.
    #[error("{0}")]
    Expiration(&'static str),
    /// The account is not here, or not any more.
    #[error("Account not found")]
    NoAccount,
    /// Anything else. The cause is for the log.
    #[error("{0}")]
    Internal(String),
}

/// Makes and verifies service tokens.
pub struct ServiceAuth {
    core: Core,
    keys: SigningKeys,
    verifier: ServiceJwtVerifier<Arc<dyn IssuerKeys>>,
    used: ReplayCache,
}

impl ServiceAuth {
    /// For the server `service_did`, whose accounts have `keys`; others' keys come from `issuers`.
    #[must_use]
    pub fn new(
        core: Core,
        keys: SigningKeys,
        service_did: &Did,
        issuers: Arc<dyn IssuerKeys>,
    ) -> ServiceAuth {
        ServiceAuth {
            core,
            keys,
            verifier: ServiceJwtVerifier::new(vec![service_did.as_str().to_owned()], issuers),
            used: ReplayCache::default(),
        }
    }

    fn now(&self) -> u64 {
        self.core.now_micros() / 1_000_000
    }

    /// The token that an account takes away.
    ///
    /// # Errors
    /// The first rule that is broken: audience, session, end of validity, method; see [`TokenError`].
    pub async fn take(
        &self,
        account: &Did,
        permission: &Permission,
        wanted: Wanted<'_>,
    ) -> Result<String, TokenError> {
        let _: ServiceRef = wanted.aud.parse()?;
        permission.take_token(wanted.aud, wanted.lxm)?;
        let now = self.now();
        let expires_at = check_expiration(wanted.exp, wanted.lxm.is_some(), now)?;
        if let Some(lxm) = wanted.lxm.filter(|lxm| methods::is_protected(lxm)) {
            return Err(Denied::Protected(lxm.to_owned()).into());
        }
        let token = ServiceJwt {
            iss: account,
            aud: wanted.aud,
            lxm: wanted.lxm,
            issued_at: now,
            expires_at,
        };
        self.sign(&token).await
    }

    /// The token with which this server calls `lxm` of `aud` for an account.
    ///
    /// # Errors
    /// [`TokenError::NoAccount`] or [`TokenError::Internal`].
    pub async fn for_call(&self, account: &Did, aud: &Did, lxm: &str) -> Result<String, TokenError> {
        let now = self.now();
        let token = ServiceJwt {
            iss: account,
            aud: aud.as_str(),
            lxm: Some(lxm),
            issued_at: now,
            expires_at: now.saturating_add(DEFAULT_LIFETIME_SECS),
        };
        self.sign(&token).await
    }

    async fn sign(&self, token: &ServiceJwt<'_>) -> Result<String, TokenError> {
        let internal = |error: &dyn std::fmt::Display| TokenError::Internal(error.to_string());
        let key = self.keys.get(token.iss).await.map_err(|error| internal(&error))?;
        let key = key.ok_or(TokenError::NoAccount)?;
        issue(&key, token, self.core.entropy()).map_err(|error| internal(&error))
    }

    /// Verifies a token with which somebody calls `method` here. A token that names itself is used up when the [`Use`] is
    /// kept.
    ///
    /// # Errors
    /// See [`ServiceJwtError`].
    pub async fn verify(
        &self,
        token: &str,
        method: &str,
    ) -> Result<(ServiceClaims, Option<Use>), ServiceJwtError> {
        let now = self.now();
        let claims = self.verifier.verify(token, method, now).await?;
        let used = match &claims.id {
            Some(id) => Some(
                self.used
                    .take(claims.issuer.as_str(), id, claims.expires_at, now)
                    .ok_or(ServiceJwtError::Replayed)?,
            ),
            None => None,
        };
        Ok((claims, used))
    }
}

fn check_expiration(exp: Option<i64>, for_one_method: bool, now: u64) -> Result<u64, TokenError> {
    let Some(exp) = exp else {
        return Ok(now.saturating_add(DEFAULT_LIFETIME_SECS));
    };
    let Some(exp) = u64::try_from(exp).ok().filter(|exp| *exp > now) else {
        return Err(TokenError::Expiration("expiration is in past"));
    };
    if exp - now > MAX_LIFETIME_SECS {
        return Err(TokenError::Expiration(
            "cannot request a token with an expiration more than an hour in the future",
        ));
    }
    if !for_one_method && exp - now > MAX_LIFETIME_WITHOUT_METHOD_SECS {
        return Err(TokenError::Expiration(
            "cannot request a method-less token with an expiration more than a minute in the future",
        ));
    }
    Ok(exp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_ends_within_the_minute_or_with_a_method_within_the_hour() {
        let check = |exp, method| check_expiration(exp, method, 1_000).ok();
        assert_eq!(check(None, false), Some(1_060));
        assert_eq!(check(None, true), Some(1_060));
        assert_eq!(check(Some(1_060), false), Some(1_060));
        assert_eq!(check(Some(1_061), false), None);
        assert_eq!(check(Some(4_600), true), Some(4_600));
        for refused in [4_601, 1_000, 0, -1, i64::MIN, i64::MAX] {
            assert_eq!(check(Some(refused), true), None, "{refused}");
        }
    }
}
