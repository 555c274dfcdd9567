//! Rate limits, and how a client's address is found.

use axum::http::HeaderName;

use super::Reader;
use crate::config::{RateLimitSettings, RedisSettings, TrustedProxies};
use crate::listen::Network;
use crate::secrets::Secret;

/// Redis' own port.
const REDIS_PORT: u16 = 6379;

impl Reader {
    pub(super) fn rate_limits(&mut self) -> RateLimitSettings {
        let enabled = self.flag("PDS_RATE_LIMITS_ENABLED", false);
        let bypass = self.networks("PDS_RATE_LIMIT_BYPASS_IPS").unwrap_or_default();
        let settings = RateLimitSettings {
            enabled,
            bypass_key: self.text("PDS_RATE_LIMIT_BYPASS_KEY").map(Secret::new),
            bypass,
            redis: self.redis(),
        };
        let idle = [
            ("PDS_RATE_LIMIT_BYPASS_KEY", settings.bypass_key.is_some()),
            ("PDS_RATE_LIMIT_BYPASS_IPS", !settings.bypass.is_empty()),
            ("PDS_REDIS_SCRATCH_ADDRESS", settings.redis.is_some()),
        ];
        for (name, is_set) in idle {
            if is_set && !enabled {
                self.warnings
                    .push(format!("{name} has no effect without PDS_RATE_LIMITS_ENABLED"));
            }
        }
        settings
    }

    fn redis(&mut self) -> Option<RedisSettings> {
        let password = self.text("PDS_REDIS_SCRATCH_PASSWORD").map(Secret::new);
        let Some(address) = self.text("PDS_REDIS_SCRATCH_ADDRESS") else {
            if password.is_some() {
                self.warnings.push(
                    "PDS_REDIS_SCRATCH_PASSWORD has no effect without PDS_REDIS_SCRATCH_ADDRESS".to_owned(),
                );
            }
            return None;
        };
        let bare = address.strip_prefix("redis://").unwrap_or(&address);
        let bare = bare.trim_end_matches('/');
        let (host, port) = match bare.rsplit_once(':') {
            Some((host, port)) if !host.ends_with(':') => (host, port.parse().ok()),
            _ => (bare, Some(REDIS_PORT)),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        match port {
            Some(port) if !host.is_empty() && !host.contains(['/', '@', '?', ' ']) => Some(RedisSettings {
                host: host.to_owned(),
                port,
                password,
            }),
            _ => {
                // It may hold a password, as other programs' URLs do.
                self.problems.push(
                    "PDS_REDIS_SCRATCH_ADDRESS must be host:port; the password is PDS_REDIS_SCRATCH_PASSWORD, and TLS is not supported"
                        .to_owned(),
                );
                None
            }
        }
    }

    pub(super) fn trusted_proxies(
        &mut self,
        header: Option<&HeaderName>,
        bypass: &[Network],
    ) -> TrustedProxies {
        let is_none = self.text("PDS_TRUSTED_PROXIES").as_deref() == Some("none");
        if is_none {
            return TrustedProxies::These(Vec::new());
        }
        match (self.networks("PDS_TRUSTED_PROXIES"), header) {
            (Some(networks), _) => TrustedProxies::These(networks),
            (None, Some(_)) => TrustedProxies::Anyone,
            // The reference takes those whose rates are not limited for proxies, too.
            (None, None) => TrustedProxies::Private(bypass.to_vec()),
        }
    }

    fn networks(&mut self, name: &'static str) -> Option<Vec<Network>> {
        let list = self.list(name)?;
        let mut networks = Vec::with_capacity(list.len());
        for text in list.into_iter().filter(|text| !text.is_empty()) {
            match text.parse() {
                Ok(network) => networks.push(network),
                Err(()) => self.problems.push(format!(
                    "{name}: '{text}' is neither an address nor a range such as 10.0.0.0/8"
                )),
            }
        }
        Some(networks)
    }
}
