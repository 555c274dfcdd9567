//! One XRPC request: its parameters, headers and bounded body, and the helpers that shape an answer.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, header};
use engine::repo::Did;
use futures_util::StreamExt;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{XrpcError, XrpcResult};
use super::params::Params;
use super::room::BodyPlace;
use crate::limits::buckets::{CountedBy, MethodLimit, WRITES};
use crate::limits::{Meter, Write, write_points};

/// Limit of a JSON body in bytes, unless the method has a larger one.
pub const JSON_LIMIT: usize = 153_600;
/// Limit of a JSON body in bytes for the methods that carry records.
pub const RECORD_JSON_LIMIT: usize = 1_000_000;

/// Bytes that a byte of JSON takes while it is parsed and turned into blocks, in all.
const PARSED_FACTOR: usize = 4;

/// How much of a refused body is read and thrown away.
const DRAIN_BYTES: usize = 4 << 20;
/// And for how long.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// How long a client may take with a body.
struct Patience {
    /// Between two pieces.
    stall: Duration,
    /// For all of it.
    total: Duration,
}

const PATIENCE: Patience = Patience {
    stall: Duration::from_secs(20),
    total: Duration::from_secs(120),
};

/// A request to a method that this server implements. Not to be printed: its headers hold credentials.
pub struct Request {
    /// GET, HEAD or POST, as the method wants it.
    pub method: Method,
    /// Where it went, as it came.
    pub uri: Uri,
    /// The query parameters.
    pub params: Params,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, not read yet.
    pub body: Body,
    /// The memory that the body takes, until the request is dropped.
    pub place: BodyPlace,
    /// How it is counted.
    pub metered: Metered,
}

/// How a request is counted by rate limits other than the global one. Nothing is, where nothing is limited.
#[derive(Default)]
pub struct Metered {
    meter: Option<Arc<Meter>>,
    limit: Option<&'static MethodLimit>,
    account: Option<Did>,
}

impl Metered {
    /// By a meter, for a method with a limit of its own, called by an account.
    #[must_use]
    pub fn new(meter: Arc<Meter>, limit: Option<&'static MethodLimit>, account: Option<Did>) -> Metered {
        Metered {
            meter: Some(meter),
            limit,
            account,
        }
    }

    /// Counts a call of the method. Asked once the body is good, so that a bad one costs nothing.
    async fn call(&self) -> XrpcResult<()> {
        let (Some(meter), Some(limit)) = (&self.meter, self.limit) else {
            return Ok(());
        };
        match (limit.by, &self.account) {
            (CountedBy::Address, _) => meter.by_address(limit.buckets).await?,
            (CountedBy::Account, Some(did)) => meter.by_account(limit.buckets, did.as_str(), 1).await?,
            (CountedBy::Account, None) => {}
        }
        Ok(())
    }

    /// Counts an attempt to log in.
    ///
    /// # Errors
    /// 429.
    pub async fn login(&self, identifier: &str) -> XrpcResult<()> {
        match &self.meter {
            Some(meter) => Ok(meter.login(identifier).await?),
            None => Ok(()),
        }
    }

    /// Counts writes to a repo.
    ///
    /// # Errors
    /// 429.
    pub async fn writes(&self, did: &Did, writes: impl IntoIterator<Item = Write>) -> XrpcResult<()> {
        match &self.meter {
            Some(meter) => {
                let points = write_points(writes);
                Ok(meter.by_account(&WRITES, did.as_str(), points).await?)
            }
            None => Ok(()),
        }
    }
}

impl Request {
    /// Takes the body as JSON.
    ///
    /// # Errors
    /// 400, 413 or 415 with the names that clients of the reference PDS know.
    pub async fn json<T: DeserializeOwned>(&mut self, limit: usize) -> XrpcResult<T> {
        let body = std::mem::replace(&mut self.body, Body::empty());
        self.identity_encoding("UnsupportedMediaTypeError")?;
        let content_type = self.content_type();
        if !self.has_body() && content_type.is_none() {
            return Err(XrpcError::invalid(
                "A request body is expected but none was provided",
            ));
        }
        if content_type.as_deref() != Some("application/json") {
            return Err(XrpcError::invalid(match content_type {
                Some(other) => format!("Wrong request encoding (Content-Type): {other}"),
                None => "Request encoding (Content-Type) required but not provided".to_owned(),
            }));
        }
        let bytes = collect(body, &self.headers, limit, &PATIENCE, &mut self.place).await?;
        if bytes.is_empty() {
            return Err(XrpcError::invalid(
                "A request body is expected but none was provided",
            ));
        }
        let malformed = |error: serde_json::Error| match error.classify() {
            serde_json::error::Category::Data => XrpcError::invalid(format!("Invalid request body: {error}")),
            _ => XrpcError::bad("SyntaxError", format!("Malformed JSON: {error}")),
        };
        // A list would pass as an input, its items taken for the fields in order.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err(match serde_json::from_slice::<serde::de::IgnoredAny>(&bytes) {
                Ok(_) => XrpcError::invalid("Invalid request body: Input must be an object"),
                Err(error) => malformed(error),
            });
        }
        let input = serde_json::from_slice(&bytes).map_err(malformed)?;
        self.metered.call().await?;
        Ok(input)
    }

    /// Refuses a body where the method takes none.
    ///
    /// # Errors
    /// 400 when there is one.
    pub async fn no_body(&mut self) -> XrpcResult<()> {
        let body = std::mem::replace(&mut self.body, Body::empty());
        match collect(body, &self.headers, 0, &PATIENCE, &mut self.place).await {
            Ok(_) => self.metered.call().await,
            Err(error) if error.status == StatusCode::PAYLOAD_TOO_LARGE => Err(XrpcError::invalid(
                "A request body was provided when none was expected",
            )),
            Err(error) => Err(error),
        }
    }

    /// The media type of the body without its parameters, lower-case.
    #[must_use]
    pub fn content_type(&self) -> Option<String> {
        let raw = self.headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
        let bare = raw
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase();
        (!bare.is_empty()).then_some(bare)
    }

    /// The declared length of the body in bytes.
    #[must_use]
    pub fn content_length(&self) -> Option<u64> {
        content_length(&self.headers)
    }

    /// Refuses compressed bodies, which no method here accepts.
    ///
    /// # Errors
    /// 415 under `name`.
    pub fn identity_encoding(&self, name: &'static str) -> XrpcResult<()> {
        match self
            .headers
            .get(header::CONTENT_ENCODING)
            .map(HeaderValue::as_bytes)
        {
            None | Some(b"") => Ok(()),
            Some(coding) if coding.eq_ignore_ascii_case(b"identity") => Ok(()),
            Some(_) => Err(XrpcError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                name,
                "Content-Encoding is not supported: send the body as it is",
            )),
        }
    }

    fn has_body(&self) -> bool {
        self.content_length().is_some_and(|length| length > 0)
            || self.headers.contains_key(header::TRANSFER_ENCODING)
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads a whole body of at most `limit` bytes, from a client that keeps sending.
async fn collect(
    body: Body,
    headers: &HeaderMap,
    limit: usize,
    patience: &Patience,
    place: &mut BodyPlace,
) -> XrpcResult<Bytes> {
    let too_large = || {
        XrpcError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "PayloadTooLargeError",
            "request entity too large",
        )
    };
    let mut stream = body.into_data_stream();
    if content_length(headers).is_some_and(|length| length > limit as u64) {
        drain(&mut stream).await;
        return Err(too_large());
    }
    let too_slow = || {
        XrpcError::new(
            StatusCode::REQUEST_TIMEOUT,
            "RequestTimeout",
            "The request body did not arrive in time",
        )
    };
    let deadline = tokio::time::Instant::now() + patience.total;
    let mut bytes = Vec::new();
    loop {
        let until = deadline.min(tokio::time::Instant::now() + patience.stall);
        let next = tokio::time::timeout_at(until, stream.next()).await;
        let Some(chunk) = next.map_err(|_| too_slow())? else {
            break;
        };
        let chunk =
            chunk.map_err(|error| XrpcError::invalid(format!("The request body broke off: {error}")))?;
        if bytes.len() + chunk.len() > limit {
            drop(bytes);
            drain(&mut stream).await;
            return Err(too_large());
        }
        if let Err(full) = place.grow_to(bytes.len() + chunk.len()).await {
            drop(bytes);
            drain(&mut stream).await;
            return Err(full);
        }
        bytes.extend_from_slice(&chunk);
    }
    place.grow_to(bytes.len().saturating_mul(PARSED_FACTOR)).await?;
    Ok(Bytes::from(bytes))
}

/// Reads on for a while without keeping anything: a client that is still sending when the connection closes sees it broken
/// instead of the answer.
async fn drain(stream: &mut BodyDataStream) {
    let reading = async {
        let mut read = 0;
        while let Some(Ok(chunk)) = stream.next().await {
            read += chunk.len();
            if read > DRAIN_BYTES {
                break;
            }
        }
    };
    // Whoever is slower than this has the connection closed.
    let _elapsed = tokio::time::timeout(DRAIN_TIME, reading).await;
}

/// Runs what reads many places of index or log on a thread that may block.
///
/// # Errors
/// What `read` says.
pub async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> XrpcResult<T> + Send + 'static,
) -> XrpcResult<T> {
    tokio::task::spawn_blocking(read)
        .await
        .map_err(XrpcError::internal)?
}

/// A JSON answer.
///
/// # Errors
/// 500 when the value cannot be serialised, which is our mistake.
pub fn json<T: Serialize>(value: &T) -> XrpcResult<Response<Body>> {
    let bytes = serde_json::to_vec(value).map_err(XrpcError::internal)?;
    Ok(json_bytes(bytes))
}

/// A JSON answer from finished bytes.
#[must_use]
pub fn json_bytes(bytes: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::from(bytes));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json; charset=utf-8"),
    );
    response
}

/// 200 without a body, for methods without output.
#[must_use]
pub fn empty() -> Response<Body> {
    Response::new(Body::empty())
}

/// An answer in CAR format.
#[must_use]
pub fn car(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/vnd.ipld.car"),
    );
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RateLimitSettings;
    use crate::limits::{RateLimits, buckets};
    use crate::xrpc::room::BodyRoom;
    use futures_util::stream;

    #[tokio::test]
    async fn what_is_counted_for_an_account_is_counted_once_the_body_is_good() {
        let settings = RateLimitSettings {
            enabled: true,
            ..RateLimitSettings::default()
        };
        let clock = std::sync::Arc::new(engine::clock::SystemClock);
        let limits = RateLimits::new(&settings, clock).unwrap().unwrap();
        let limit = buckets::of("com.atproto.identity.updateHandle");
        let call = async |did: &str, body: &'static str| {
            let meter = limits.meter(None, &HeaderMap::new()).unwrap();
            let mut request = Request {
                method: Method::POST,
                uri: Uri::default(),
                params: Params::parse(None).unwrap(),
                headers: [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]
                    .into_iter()
                    .collect(),
                body: Body::from(body),
                place: BodyRoom::new(1 << 20).place(),
                metered: Metered::new(meter, limit, Some(did.parse().unwrap())),
            };
            let parsed = request.json::<serde_json::Value>(JSON_LIMIT).await;
            parsed.map(|_| 200).unwrap_or_else(|error| error.status.as_u16())
        };
        for _ in 0..5 {
            assert_eq!(call("did:plc:alice", "not JSON").await, 400);
        }
        for _ in 0..10 {
            assert_eq!(call("did:plc:alice", "{}").await, 200);
        }
        assert_eq!(call("did:plc:alice", "{}").await, 429);
        assert_eq!(call("did:plc:bob", "{}").await, 200);
    }

    #[tokio::test]
    async fn a_client_that_stops_in_the_middle_of_a_body_or_drips_is_not_waited_for_forever() {
        let patience = Patience {
            stall: Duration::from_millis(100),
            total: Duration::from_millis(300),
        };
        let piece = || Ok::<_, std::io::Error>(Bytes::from_static(b" "));
        let stalled = stream::iter([piece()]).chain(stream::pending());
        let dripping = stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Some((Ok::<_, std::io::Error>(Bytes::from_static(b" ")), ()))
        });
        for body in [Body::from_stream(stalled), Body::from_stream(dripping)] {
            let mut place = BodyRoom::new(1 << 20).place();
            let error = collect(body, &HeaderMap::new(), 1000, &patience, &mut place)
                .await
                .unwrap_err();
            assert_eq!(error.status, StatusCode::REQUEST_TIMEOUT);
        }
    }
}
