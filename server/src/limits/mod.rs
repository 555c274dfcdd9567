//! Rate limits: who may ask how often. On only where the settings say so, as in the reference PDS.
//!
//! Order: the global bucket counts a request before anything of it is read (better than the reference, where bad requests are free); a
//! method's own buckets count it when its parameters, credentials and body are good. All of a request's buckets are told in
//! `RateLimit-*` headers, by the one that has the fewest points left.
//!
//! Points are in memory, or in Redis if the settings name one; if that fails, memory counts meanwhile.

pub mod buckets;
mod memory;
mod redis;

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use engine::clock::Clock;
use parking_lot::Mutex;
use subtle::ConstantTimeEq;

use crate::config::RateLimitSettings;
use crate::listen::Network;
use crate::secrets::Secret;
pub use buckets::{Bucket, Write, write_points};
use memory::Memory;
use redis::Redis;

/// Requests with the right key in it are not limited.
static BYPASS: HeaderName = HeaderName::from_static("x-ratelimit-bypass");
static LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
static RESET: HeaderName = HeaderName::from_static("ratelimit-reset");
static REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
static POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Bits of an IPv6 address that one client has: whoever has a network has more addresses than there is memory.
const CLIENT_BITS_V6: u32 = 64;

/// For whom points are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key<'a> {
    /// A client's address.
    Address(IpAddr),
    /// A DID, or an identifier with an address.
    Text(&'a str),
}

/// Points for one bucket.
#[derive(Clone, Copy, Debug)]
struct Charge<'a> {
    bucket: &'static Bucket,
    key: Key<'a>,
    points: u32,
}

/// How a bucket stands after a charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Count {
    bucket: &'static Bucket,
    used: u32,
    /// When the window ends, microseconds since 1970.
    ends: u64,
}

impl Count {
    fn new(charge: &Charge<'_>, used: u32, ends: u64) -> Count {
        Count {
            bucket: charge.bucket,
            used,
            ends,
        }
    }

    fn remaining(&self) -> u32 {
        self.bucket.points.saturating_sub(self.used)
    }

    fn is_over(&self) -> bool {
        self.used > self.bucket.points
    }
}

/// A client has asked too often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Rate Limit Exceeded")]
pub struct TooMany {
    /// After so many seconds the next request may be answered.
    pub retry_after: u32,
}

/// The limits that are in force.
pub struct RateLimits {
    memory: Memory,
    redis: Option<Redis>,
    bypass_key: Option<Secret<String>>,
    bypass: Vec<Network>,
    clock: Arc<dyn Clock>,
}

impl RateLimits {
    /// As the settings say; `None` where nothing is limited.
    ///
    /// # Errors
    /// Redis' address is none.
    pub fn new(
        settings: &RateLimitSettings,
        clock: Arc<dyn Clock>,
    ) -> Result<Option<Arc<RateLimits>>, String> {
        if !settings.enabled {
            return Ok(None);
        }
        Ok(Some(Arc::new(RateLimits {
            memory: Memory::new(),
            redis: settings.redis.as_ref().map(Redis::new).transpose()?,
            bypass_key: settings.bypass_key.clone(),
            bypass: settings.bypass.clone(),
            clock,
        })))
    }

    /// Begins to count a request; `None` if it is not limited.
    #[must_use]
    pub fn meter(self: &Arc<RateLimits>, address: Option<IpAddr>, headers: &HeaderMap) -> Option<Arc<Meter>> {
        let address = address.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
        let is_exempt = self.bypass.iter().any(|network| network.contains(address));
        let has_key = match (&self.bypass_key, headers.get(&BYPASS)) {
            (Some(key), Some(given)) => bool::from(key.expose().as_bytes().ct_eq(given.as_bytes())),
            _ => false,
        };
        if is_exempt || has_key {
            return None;
        }
        Some(Arc::new(Meter {
            limits: self.clone(),
            address: client(address),
            tightest: Mutex::new(None),
        }))
    }

    async fn add(&self, charges: &[Charge<'_>]) -> Vec<Count> {
        let now = self.clock.now_micros();
        if let Some(redis) = &self.redis
            && let Some(counts) = redis.add(charges, now).await
        {
            return counts;
        }
        charges
            .iter()
            .map(|charge| self.memory.add(charge, now))
            .collect()
    }
}

/// One request as it is counted.
pub struct Meter {
    limits: Arc<RateLimits>,
    address: IpAddr,
    /// The bucket with the fewest points left.
    tightest: Mutex<Option<Count>>,
}

impl Meter {
    /// Counts it in the global bucket.
    ///
    /// # Errors
    /// [`TooMany`].
    pub async fn global(&self) -> Result<(), TooMany> {
        let buckets = std::slice::from_ref(&buckets::GLOBAL);
        self.charge(buckets, Key::Address(self.address), 1).await
    }

    /// Counts it for its client in some buckets.
    ///
    /// # Errors
    /// [`TooMany`].
    pub async fn by_address(&self, buckets: &'static [Bucket]) -> Result<(), TooMany> {
        self.charge(buckets, Key::Address(self.address), 1).await
    }

    /// Counts it for an account in some buckets.
    ///
    /// # Errors
    /// [`TooMany`].
    pub async fn by_account(
        &self,
        buckets: &'static [Bucket],
        did: &str,
        points: u32,
    ) -> Result<(), TooMany> {
        self.charge(buckets, Key::Text(did), points).await
    }

    /// Counts an attempt to log in, by what was typed and from where.
    ///
    /// # Errors
    /// [`TooMany`].
    pub async fn login(&self, identifier: &str) -> Result<(), TooMany> {
        let key = format!("{identifier}-{}", self.address);
        self.charge(&buckets::LOGIN, Key::Text(&key), 1).await
    }

    async fn charge(&self, buckets: &'static [Bucket], key: Key<'_>, points: u32) -> Result<(), TooMany> {
        let charges: Vec<Charge<'_>> = buckets
            .iter()
            .map(|bucket| Charge { bucket, key, points })
            .collect();
        let counts = self.limits.add(&charges).await;
        let Some(least) = counts
            .into_iter()
            .min_by_key(|count| (!count.is_over(), count.remaining()))
        else {
            return Ok(());
        };
        let mut tightest = self.tightest.lock();
        if tightest
            .is_none_or(|other| (!least.is_over(), least.remaining()) < (!other.is_over(), other.remaining()))
        {
            *tightest = Some(least);
        }
        if !least.is_over() {
            return Ok(());
        }
        metrics::counter!("pds_rate_limited_total", "bucket" => least.bucket.name).increment(1);
        let left = least.ends.saturating_sub(self.limits.clock.now_micros());
        Err(TooMany {
            retry_after: u32::try_from(left.div_ceil(1_000_000)).unwrap_or(u32::MAX).max(1),
        })
    }

    /// Tells the client how it stands.
    pub fn tell(&self, headers: &mut HeaderMap) {
        let Some(count) = *self.tightest.lock() else {
            return;
        };
        let Bucket { points, window, .. } = count.bucket;
        headers.insert(&LIMIT, HeaderValue::from(*points));
        headers.insert(&REMAINING, HeaderValue::from(count.remaining()));
        headers.insert(&RESET, HeaderValue::from(count.ends.div_ceil(1_000_000)));
        if let Ok(policy) = HeaderValue::from_str(&format!("{points};w={}", window.as_secs())) {
            headers.insert(&POLICY, policy);
        }
    }
}

/// What counts as one client.
fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let network = v6.to_bits() >> (128 - CLIENT_BITS_V6) << (128 - CLIENT_BITS_V6);
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
