//! Fetches of what strangers name: did:web documents, handle proofs. A stranger must not make the server speak to its own
//! neighbourhood (loopback, private networks, a cloud's metadata service), so:
//!
//! - only `https`, except in development; no credentials in the URL; no redirects; no proxy from the environment;
//! - an address is judged where it is used: the connector asks *our* resolver, which hands out public addresses only, so
//!   a name cannot pass the check and then resolve to something else; a literal address is judged in the URL;
//! - bodies are bounded while they are read, and everything has a deadline.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, ClientBuilder, Url, redirect};

use super::dns::Dns;

/// What may be fetched, and how long and large it may be.
#[derive(Clone, Copy, Debug)]
pub struct FetchPolicy {
    /// Development only: `http` and addresses that are not public.
    pub allow_local: bool,
    /// For making a connection.
    pub connect_timeout: Duration,
    /// For the whole exchange.
    pub timeout: Duration,
}

impl FetchPolicy {
    /// Public addresses over `https`, with `timeout` for the whole exchange.
    #[must_use]
    pub const fn public(timeout: Duration) -> FetchPolicy {
        FetchPolicy {
            allow_local: false,
            connect_timeout: timeout,
            timeout,
        }
    }

    /// Everything, for development and tests.
    #[must_use]
    pub const fn local(timeout: Duration) -> FetchPolicy {
        FetchPolicy {
            allow_local: true,
            connect_timeout: timeout,
            timeout,
        }
    }
}

/// Why nothing was fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The URL may not be fetched, whatever is there.
    #[error("{url} may not be fetched: {reason}")]
    Refused {
        /// Which.
        url: String,
        /// Why.
        reason: &'static str,
    },
    /// No answer in time, or no connection; also a name that has no public address.
    #[error("no answer: {0}")]
    Unreachable(String),
    /// An answer other than 200, redirects included.
    #[error("answered {0}")]
    Status(u16),
    /// A body beyond the limit.
    #[error("the answer has more than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// The client could not be built.
    #[error("no HTTP client: {0}")]
    Setup(String),
}

/// Fetches what strangers name. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fetcher {
    client: Client,
    allow_local: bool,
}

impl Fetcher {
    /// A fetcher whose names are resolved by `dns`.
    ///
    /// # Errors
    /// [`FetchError::Setup`] if TLS is not to be had.
    pub fn new(policy: FetchPolicy, dns: Arc<dyn Dns>) -> Result<Fetcher, FetchError> {
        let client = guarded(policy.allow_local, dns)
            .connect_timeout(policy.connect_timeout)
            .timeout(policy.timeout)
            .pool_max_idle_per_host(1)
            .user_agent(concat!("azure-pds/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| FetchError::Setup(error.to_string()))?;
        Ok(Fetcher {
            client,
            allow_local: policy.allow_local,
        })
    }

    /// The body at `url`, of at most `limit` bytes.
    ///
    /// # Errors
    /// [`FetchError`]; anything but status 200 is an error.
    pub async fn get(&self, url: &str, limit: usize) -> Result<Bytes, FetchError> {
        let parsed = check_url(url, self.allow_local)?;
        let response = self.client.get(parsed).send().await.map_err(unreachable)?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(FetchError::Status(response.status().as_u16()));
        }
        read_body(response, limit).await
    }
}

/// The beginning of every client: it goes where it is sent and nowhere else.
pub(crate) fn closed() -> ClientBuilder {
    super::ensure_tls_provider();
    Client::builder()
        .no_proxy()
        .redirect(redirect::Policy::none())
        .referer(false)
}

/// The beginning of a client for what strangers name, whose URLs [`check_url`] must have seen.
pub(crate) fn guarded(allow_local: bool, dns: Arc<dyn Dns>) -> ClientBuilder {
    closed()
        .https_only(!allow_local)
        .dns_resolver(Arc::new(PublicOnly { dns, allow_local }))
}

/// An error without the URL, which may hold what a stranger wrote; with its cause, which tells a refusal from a timeout.
pub(crate) fn unreachable(error: reqwest::Error) -> FetchError {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    FetchError::Unreachable(text)
}

/// Reads a body that must not exceed `limit`, and stops as soon as it does.
pub(crate) async fn read_body(mut response: reqwest::Response, limit: usize) -> Result<Bytes, FetchError> {
    if response
        .content_length()
        .is_some_and(|length| length > limit as u64)
    {
        return Err(FetchError::TooLarge { limit });
    }
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if body.len() + chunk.len() > limit {
            return Err(FetchError::TooLarge { limit });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Whether a stranger's URL may be asked at all, as far as can be told before its name is resolved.
pub(crate) fn check_url(url: &str, allow_local: bool) -> Result<Url, FetchError> {
    let refused = |reason| FetchError::Refused {
        url: url.chars().take(200).collect(),
        reason,
    };
    let parsed = Url::parse(url).map_err(|_| refused("it is not a URL"))?;
    match parsed.scheme() {
        "https" => {}
        "http" if allow_local => {}
        _ => return Err(refused("only https is allowed")),
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(refused("it holds credentials"));
    }
    let host = parsed.host_str().ok_or_else(|| refused("it has no host"))?;
    // The connector does not ask the resolver about literal addresses. The parser has already brought every spelling of
    // an IPv4 address (octal, one number, …) into the dotted one.
    let literal = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>();
    if literal.is_ok_and(|address| !allow_local && !is_public(address)) {
        return Err(refused("its address is not public"));
    }
    Ok(parsed)
}

/// Resolves names to public addresses only.
struct PublicOnly {
    dns: Arc<dyn Dns>,
    allow_local: bool,
}

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        let (dns, allow_local) = (Arc::clone(&self.dns), self.allow_local);
        Box::pin(async move {
            let host = name.as_str();
            let mut addresses = match dns.addresses(host).await {
                Ok(addresses) => addresses,
                // Without a network there is still a loopback.
                Err(_) if allow_local && host == "localhost" => vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
                Err(error) => return Err(error.into()),
            };
            addresses.retain(|address| allow_local || is_public(*address));
            if addresses.is_empty() {
                return Err("the name has no public address".into());
            }
            let addresses: Addrs = Box::new(addresses.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addresses)
        })
    }
}

/// Whether `address` belongs to the public internet. In doubt it does not: IPv6 must be global unicast and no way of
/// writing an IPv4 address.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    /// Azure's virtual host address: it lies in public space, and answers virtual machines with their secrets.
    const AZURE_HOST: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
    let [a, b, c, _] = address.octets();
    let special = match (a, b, c) {
        // This network, private, loopback.
        (0 | 10 | 127, _, _) => true,
        // Carrier-grade NAT, link-local with most clouds' metadata, private.
        (100, 64..=127, _) | (169, 254, _) | (172, 16..=31, _) | (192, 168, _) => true,
        // IETF assignments, documentation, 6to4 relays, benchmarks, documentation twice.
        (192, 0, 0 | 2) | (192, 88, 99) | (198, 18 | 19, _) | (198, 51, 100) | (203, 0, 113) => true,
        // Multicast, reserved, broadcast.
        (224.., _, _) => true,
        _ => address == AZURE_HOST,
    };
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, ..] = address.segments();
    let special = match (a, b) {
        // IETF protocol assignments (Teredo among them), documentation.
        (0x2001, 0..=0x01ff | 0x0db8) => true,
        // 6to4, which carries an IPv4 address; documentation.
        (0x2002, _) | (0x3fff, 0..=0x0fff) => true,
        _ => false,
    };
    a & 0xe000 == 0x2000 && !special
}

#[cfg(test)]
mod tests;
