//! Points in Redis, for several servers that share them. One round trip a request; if it fails, nothing is limited.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, timeout};

use super::{Charge, Count, Key};
use crate::config::RedisSettings;

/// How long an answer may take: limits must not cost more than what they limit.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(2);
/// How long a Redis that failed is left alone.
const REST: Duration = Duration::from_secs(1);

/// Adds to each key its points, lets it end with its window, and tells for each how many there are and how long it lasts.
const SCRIPT: &str = "\
local told = {} \
for at, key in ipairs(KEYS) do \
  local used = redis.call('INCRBY', key, ARGV[2 * at - 1]) \
  local left = redis.call('PTTL', key) \
  if left < 0 then left = tonumber(ARGV[2 * at]) redis.call('PEXPIRE', key, left) end \
  told[2 * at - 1] = used told[2 * at] = left \
end \
return told";

/// A Redis that keeps points.
pub(super) struct Redis(Arc<Inner>);

struct Inner {
    client: Client,
    connection: Mutex<Connection>,
}

struct Connection {
    open: Option<MultiplexedConnection>,
    /// Not tried before.
    rest_until: Instant,
}

impl Redis {
    /// Nothing is connected yet.
    pub(super) fn new(settings: &RedisSettings) -> Result<Redis, String> {
        let address = ConnectionAddr::Tcp(settings.host.clone(), settings.port);
        let mut info = RedisConnectionInfo::default().set_skip_set_lib_name();
        if let Some(password) = &settings.password {
            info = info.set_password(password.expose());
        }
        let info: ConnectionInfo = address
            .into_connection_info()
            .map_err(|error| error.to_string())?
            .set_redis_settings(info);
        Ok(Redis(Arc::new(Inner {
            client: Client::open(info).map_err(|error| error.to_string())?,
            connection: Mutex::new(Connection {
                open: None,
                rest_until: Instant::now(),
            }),
        })))
    }

    /// Adds the points of all charges and tells how many there are; `None` if Redis does not answer in time.
    pub(super) async fn add(&self, charges: &[Charge<'_>], now: u64) -> Option<Vec<Count>> {
        let mut connection = self.connection().await?;
        let mut command = redis::cmd("EVAL");
        command.arg(SCRIPT).arg(charges.len());
        for charge in charges {
            command.arg(name(charge));
        }
        for charge in charges {
            command
                .arg(charge.points)
                .arg(charge.bucket.window.as_secs() * 1000);
        }
        let told = timeout(PATIENCE, command.query_async::<Vec<i64>>(&mut connection)).await;
        let problem = match told {
            Ok(Ok(told)) if told.len() == 2 * charges.len() => {
                let counts = charges.iter().zip(told.chunks_exact(2));
                return Some(counts.map(|(charge, told)| count(charge, told, now)).collect());
            }
            Ok(Ok(_)) => "it answers something else".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it does not answer in time".to_owned(),
        };
        self.0.rest(&problem);
        None
    }

    async fn connection(&self) -> Option<MultiplexedConnection> {
        {
            let mut connection = self.0.connection.lock();
            if let Some(open) = &connection.open {
                return Some(open.clone());
            }
            if Instant::now() < connection.rest_until {
                return None;
            }
            // Whoever comes meanwhile is not to wait for a Redis that is away.
            connection.rest_until = Instant::now() + CONNECT + REST;
        }
        // A slow connection is there for later requests.
        let inner = self.0.clone();
        let connecting = tokio::spawn(async move { inner.connect().await });
        timeout(PATIENCE, connecting).await.ok()?.ok()?
    }
}

impl Inner {
    async fn connect(&self) -> Option<MultiplexedConnection> {
        let made = timeout(CONNECT, self.client.get_multiplexed_async_connection()).await;
        let problem = match made {
            Ok(Ok(open)) => {
                self.connection.lock().open = Some(open.clone());
                return Some(open);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no connection in time".to_owned(),
        };
        self.rest(&problem);
        None
    }

    fn rest(&self, problem: &str) {
        let mut connection = self.connection.lock();
        connection.open = None;
        connection.rest_until = Instant::now() + REST;
        metrics::counter!("pds_rate_limit_store_failures_total").increment(1);
        tracing::warn!(
            problem,
            "Redis cannot be used; for a moment rates are limited by this server's memory"
        );
    }
}

/// Addresses and identifiers are nobody's business in a shared Redis.
fn name(charge: &Charge<'_>) -> String {
    let mut hash = Sha256::new();
    match charge.key {
        Key::Address(address) => hash.update(address.to_string()),
        Key::Text(text) => hash.update(text),
    }
    let hash = data_encoding::HEXLOWER.encode(hash.finalize().get(..16).unwrap_or_default());
    format!("azure-pds:limit:{}:{hash}", charge.bucket.name)
}

fn count(charge: &Charge<'_>, told: &[i64], now: u64) -> Count {
    let of = |at: usize| told.get(at).copied().unwrap_or_default().max(0).unsigned_abs();
    let used = u32::try_from(of(0)).unwrap_or(u32::MAX);
    Count::new(charge, used, now.saturating_add(of(1).saturating_mul(1000)))
}
