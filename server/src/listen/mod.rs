//! The HTTP listener: accepts connections, bounds them, and ends them in order.
//!
//! | bound | what happens at it |
//! |---|---|
//! | connections in all, and of one address | the new one is closed before a byte is read |
//! | [`Limits::idle`] between requests, and for the headers of one | the connection is closed |
//! | [`Limits::write_stall`] without a byte taken by the peer | the connection is broken |
//! | streams of one HTTP/2 connection, header bytes | as the protocol has it |
//!
//! How long a request's body may take is its method's part (`xrpc::request`, `service::blobs`).

mod network;
mod stall;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, TrustedProxies};
use crate::gate::Gate;
pub use network::{Network, is_private};
use stall::StallGuard;

/// Pause after the system refused a connection (no file descriptors left, say), so that it is not asked in a tight loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of headers that one request may have.
const HEADER_BYTES: usize = 64 << 10;
/// Bytes that one HTTP/1 connection reads at a time, at most: large uploads come in such pieces.
const READ_BYTES: usize = 256 << 10;
/// Requests at once on one HTTP/2 connection.
const H2_STREAMS: u32 = 256;
/// How long an HTTP/2 peer may leave a ping without an answer.
const H2_PING_TIMEOUT: Duration = Duration::from_secs(20);

/// What bounds the listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Connections of one address at once.
    pub per_address: usize,
    /// How long a connection may wait for a whole request head.
    pub idle: Duration,
    /// How long a peer may take nothing of what we send.
    pub write_stall: Duration,
}

/// Where proxies name the client's address.
static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Proxies in a row that are looked behind.
const HOPS_MAX: usize = 16;

/// Who is on the other end of a request's connection, as an extension of the request. A proxy in front is what is seen here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub IpAddr);

/// The address of a request's client: what trusted proxies say, if there are some in between, else the peer's. Proxies in a row are
/// followed from the nearest on as long as each is trusted itself.
#[must_use]
pub fn client_address(config: &Config, peer: Option<Peer>, headers: &HeaderMap) -> Option<IpAddr> {
    let mut client = peer?.0;
    let trusted = |address: IpAddr| match &config.trusted_proxies {
        TrustedProxies::Private(more) => {
            is_private(address) || more.iter().any(|network| network.contains(address))
        }
        TrustedProxies::These(networks) => networks.iter().any(|network| network.contains(address)),
        TrustedProxies::Anyone => true,
    };
    if !trusted(client) {
        return Some(client);
    }
    let name = config.client_address_header.as_ref().unwrap_or(&FORWARDED_FOR);
    // Whoever stands nearest appends; what somebody names who is not trusted may be an invention.
    let named = headers
        .get_all(name)
        .iter()
        .rev()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.rsplit(','))
        .map(|text| parse_address(text.trim()));
    for address in named.take(HOPS_MAX) {
        let Some(address) = address else { break };
        client = address;
        if config.trusted_proxies == TrustedProxies::Anyone || !trusted(client) {
            break;
        }
    }
    Some(client)
}

/// An address, with or without a port.
fn parse_address(text: &str) -> Option<IpAddr> {
    let parsed = text.parse::<IpAddr>().ok();
    let parsed = parsed.or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()));
    parsed.map(|address| address.to_canonical())
}

/// Serves `gate` until `stop`, then lets running requests end.
pub async fn serve(listener: TcpListener, gate: Gate, limits: Limits, stop: CancellationToken) {
    let places = Places::new(limits);
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                let Some(place) = places.take(address.ip().to_canonical()) else {
                    metrics::counter!("pds_http_connections_refused_total").increment(1);
                    continue;
                };
                connections.spawn(connection(
                    stream,
                    address,
                    gate.clone(),
                    limits,
                    stop.clone(),
                    place,
                ));
            }
            // The peer was gone before we looked; the next one is there.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    gate: Gate,
    limits: Limits,
    stop: CancellationToken,
    place: Place,
) {
    let _place = place;
    // Small answers and events must not wait for each other's acknowledgements; without it they only come later.
    let _slower = stream.set_nodelay(true);
    let peer = Peer(address.ip().to_canonical());
    let asked = Arc::new(AtomicBool::new(false));
    let asking = asked.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let gate = gate.clone();
        asking.store(true, Ordering::Relaxed);
        async move {
            let mut request: Request = request.map(Body::new);
            request.extensions_mut().insert(peer);
            Ok::<_, Infallible>(gate.answer(request).await)
        }
    });
    let builder = protocol(limits);
    let io = TokioIo::new(StallGuard::new(stream, limits.write_stall));
    let mut serving = std::pin::pin!(builder.serve_connection_with_upgrades(io, service));
    // While it is not known which protocol the peer speaks, nothing else bounds the wait for its first request.
    let mut first = std::pin::pin!(tokio::time::sleep(limits.idle));
    let mut waiting = true;
    // Errors are the peer's: it went away, spoke nonsense or kept us waiting.
    loop {
        tokio::select! {
            _ended = serving.as_mut() => return,
            () = stop.cancelled() => break,
            () = first.as_mut(), if waiting => {
                if !asked.load(Ordering::Relaxed) {
                    return;
                }
                waiting = false;
            }
        }
    }
    serving.as_mut().graceful_shutdown();
    let _ended = serving.await;
}

fn protocol(limits: Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle)
        .max_buf_size(READ_BYTES)
        .pipeline_flush(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS)
        .max_header_list_size(u32::try_from(HEADER_BYTES).unwrap_or(u32::MAX))
        .keep_alive_interval(limits.idle)
        .keep_alive_timeout(H2_PING_TIMEOUT);
    builder
}

/// Who is connected.
#[derive(Clone)]
struct Places(Arc<PlacesInner>);

struct PlacesInner {
    limits: Limits,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    of: HashMap<IpAddr, usize>,
}

/// One connection's place; dropping it gives it back.
struct Place {
    places: Places,
    address: IpAddr,
}

impl Places {
    fn new(limits: Limits) -> Places {
        Places(Arc::new(PlacesInner {
            limits,
            taken: Mutex::default(),
        }))
    }

    fn take(&self, address: IpAddr) -> Option<Place> {
        let mut taken = self.0.taken.lock();
        let of_address = taken.of.get(&address).copied().unwrap_or(0);
        if taken.all >= self.0.limits.connections || of_address >= self.0.limits.per_address {
            return None;
        }
        taken.all += 1;
        taken.of.insert(address, of_address + 1);
        Some(Place {
            places: self.clone(),
            address,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.taken.lock();
        taken.all = taken.all.saturating_sub(1);
        if let Some(count) = taken.of.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.of.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests;
