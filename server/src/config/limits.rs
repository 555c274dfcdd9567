//! Settings of rate limits.

use crate::listen::Network;
use crate::secrets::Secret;

/// Who may ask how often.
#[derive(Clone, Debug, Default)]
pub struct RateLimitSettings {
    /// `PDS_RATE_LIMITS_ENABLED`.
    pub enabled: bool,
    /// `PDS_RATE_LIMIT_BYPASS_KEY`.
    pub bypass_key: Option<Secret<String>>,
    /// `PDS_RATE_LIMIT_BYPASS_IPS`.
    pub bypass: Vec<Network>,
    /// `PDS_REDIS_SCRATCH_ADDRESS`, `PDS_REDIS_SCRATCH_PASSWORD`.
    pub redis: Option<RedisSettings>,
}

/// A Redis.
#[derive(Clone, Debug)]
pub struct RedisSettings {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Its password.
    pub password: Option<Secret<String>>,
}

/// Whose word about a client's address is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrustedProxies {
    /// That of private networks: `PDS_TRUSTED_PROXIES` and `PDS_CLIENT_ADDRESS_HEADER` are not set. The reference's rule.
    Private(Vec<Network>),
    /// That of these: `PDS_TRUSTED_PROXIES`.
    These(Vec<Network>),
    /// That of whoever connects, for one step: only `PDS_CLIENT_ADDRESS_HEADER` is set.
    Anyone,
}
