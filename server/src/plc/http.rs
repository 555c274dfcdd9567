//! The directory's HTTP face: the paths, statuses and bodies of the public one. Errors are `{"message": …}`; a success
//! of `POST` is the text `OK`, not JSON.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use engine::repo::Did;
use engine::repo::keys::PublicKey;
use serde::Deserialize;
use serde_json::{Value, json};

use super::directory::{LogEntry, MAX_EXPORT, PlcDirectory, Standing, SubmitError};
use super::op::{Operation, PlcState};

/// Longest body that is read, in bytes of JSON; an operation's DAG-CBOR is bounded more tightly.
pub const MAX_BODY_BYTES: usize = 32 * 1024;
const DEFAULT_EXPORT: usize = 10;

impl PlcDirectory {
    /// The routes of the directory, to be served at the root of its own address.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/_health", get(health))
            .route("/export", get(export))
            .route("/{did}", get(document).post(submit))
            .route("/{did}/data", get(data))
            .route("/{did}/log", get(log))
            .route("/{did}/log/audit", get(audit))
            .route("/{did}/log/last", get(last))
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
            .with_state(self.clone())
    }
}

struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        json_response(self.0, "application/json", &json!({"message": self.1}))
    }
}

fn json_response(status: StatusCode, content_type: &'static str, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, content_type)], body.to_string()).into_response()
}

fn ok(body: &Value) -> Response {
    json_response(StatusCode::OK, "application/json", body)
}

fn parse_did(text: &str) -> Result<Did, Refusal> {
    let base32 = |byte: u8| matches!(byte, b'a'..=b'z' | b'2'..=b'7');
    let sound = text
        .strip_prefix("did:plc:")
        .is_some_and(|name| name.len() == 24 && name.bytes().all(base32));
    let did = if sound { text.parse().ok() } else { None };
    did.ok_or_else(|| Refusal(StatusCode::BAD_REQUEST, "Not a did:plc identifier".to_owned()))
}

fn unknown(did: &Did) -> Refusal {
    Refusal(StatusCode::NOT_FOUND, format!("DID not registered: {did}"))
}

fn active(directory: &PlcDirectory, did: &Did) -> Result<PlcState, Refusal> {
    match directory.standing(did) {
        Standing::Active(state) => Ok(state),
        Standing::Tombstoned => Err(Refusal(StatusCode::GONE, format!("DID not available: {did}"))),
        Standing::Unknown => Err(unknown(did)),
    }
}

fn registered(directory: &PlcDirectory, did: &Did) -> Result<Vec<LogEntry>, Refusal> {
    let log = directory.audit_log(did);
    if log.is_empty() {
        Err(unknown(did))
    } else {
        Ok(log)
    }
}

async fn health() -> Response {
    ok(&json!({"version": env!("CARGO_PKG_VERSION")}))
}

async fn document(
    State(directory): State<PlcDirectory>,
    Path(did): Path<String>,
) -> Result<Response, Refusal> {
    let did = parse_did(&did)?;
    let document = did_document(&did, &active(&directory, &did)?);
    Ok(json_response(
        StatusCode::OK,
        "application/did+ld+json; charset=utf-8",
        &document,
    ))
}

async fn data(State(directory): State<PlcDirectory>, Path(did): Path<String>) -> Result<Response, Refusal> {
    let did = parse_did(&did)?;
    let state = active(&directory, &did)?;
    Ok(ok(&json!({
        "did": did,
        "rotationKeys": state.rotation_keys,
        "verificationMethods": state.verification_methods,
        "alsoKnownAs": state.also_known_as,
        "services": state.services,
    })))
}

async fn log(State(directory): State<PlcDirectory>, Path(did): Path<String>) -> Result<Response, Refusal> {
    let entries = registered(&directory, &parse_did(&did)?)?;
    Ok(ok(&entries
        .iter()
        .filter(|entry| !entry.nullified)
        .map(|entry| entry.operation.to_json())
        .collect()))
}

async fn audit(State(directory): State<PlcDirectory>, Path(did): Path<String>) -> Result<Response, Refusal> {
    let entries = registered(&directory, &parse_did(&did)?)?;
    Ok(ok(&entries.iter().map(entry_json).collect()))
}

async fn last(State(directory): State<PlcDirectory>, Path(did): Path<String>) -> Result<Response, Refusal> {
    let did = parse_did(&did)?;
    let entries = registered(&directory, &did)?;
    let last = entries
        .iter()
        .rev()
        .find(|entry| !entry.nullified)
        .ok_or_else(|| unknown(&did))?;
    Ok(ok(&last.operation.to_json()))
}

#[derive(Deserialize)]
struct ExportParams {
    after: Option<String>,
    count: Option<usize>,
}

async fn export(
    State(directory): State<PlcDirectory>,
    Query(params): Query<ExportParams>,
) -> Result<Response, Refusal> {
    let bad = |message: &str| Refusal(StatusCode::BAD_REQUEST, message.to_owned());
    let count = params.count.unwrap_or(DEFAULT_EXPORT);
    if !(1..=MAX_EXPORT).contains(&count) {
        return Err(bad("count must be 1 to 1000"));
    }
    let after = match params.after.as_deref() {
        None | Some("") => None,
        Some(text) => Some(parse_time(text).ok_or_else(|| bad("after must be a time"))?),
    };
    let mut lines = String::new();
    for entry in directory.export(after, count) {
        if !lines.is_empty() {
            lines.push('\n');
        }
        lines.push_str(&entry_json(&entry).to_string());
    }
    Ok((
        [(header::CONTENT_TYPE, "application/jsonlines")],
        Body::from(lines),
    )
        .into_response())
}

async fn submit(
    State(directory): State<PlcDirectory>,
    Path(did): Path<String>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let did = parse_did(&did)?;
    let bad = |message: String| Refusal(StatusCode::BAD_REQUEST, message);
    let json: Value = serde_json::from_slice(&body).map_err(|error| bad(format!("Not JSON: {error}")))?;
    let operation = Operation::from_json(&json).map_err(|error| bad(error.to_string()))?;
    let submitted = tokio::task::spawn_blocking(move || directory.submit(&did, operation)).await;
    match submitted {
        Ok(Ok(())) => Ok("OK".into_response()),
        Ok(Err(error)) => Err(refusal(error)),
        Err(_) => Err(Refusal(
            StatusCode::INTERNAL_SERVER_ERROR,
            "Internal Server Error".to_owned(),
        )),
    }
}

fn refusal(error: SubmitError) -> Refusal {
    let status = match &error {
        SubmitError::Chain(_) | SubmitError::Legacy => StatusCode::BAD_REQUEST,
        SubmitError::TooMany => StatusCode::TOO_MANY_REQUESTS,
        SubmitError::Full => StatusCode::INSUFFICIENT_STORAGE,
        SubmitError::Storage(source) => {
            tracing::error!(%source, "the did:plc directory cannot write");
            StatusCode::SERVICE_UNAVAILABLE
        }
    };
    Refusal(status, error.to_string())
}

fn entry_json(entry: &LogEntry) -> Value {
    json!({
        "did": entry.did,
        "operation": entry.operation.to_json(),
        "cid": entry.operation.cid().to_string(),
        "nullified": entry.nullified,
        "createdAt": format_time(entry.created_at),
    })
}

/// The DID document of `did` in `state`, as the public directory gives it.
#[must_use]
pub fn did_document(did: &Did, state: &PlcState) -> Value {
    let mut context = vec![
        "https://www.w3.org/ns/did/v1",
        "https://w3id.org/security/multikey/v1",
    ];
    let mut methods = Vec::new();
    for (name, key) in &state.verification_methods {
        let suite = match PublicKey::from_did_key(key) {
            Ok(PublicKey::K256(_)) => Some("https://w3id.org/security/suites/secp256k1-2019/v1"),
            Ok(PublicKey::P256(_)) => Some("https://w3id.org/security/suites/ecdsa-2019/v1"),
            Err(_) => None,
        };
        context.extend(suite.filter(|suite| !context.contains(suite)));
        methods.push(json!({
            "id": format!("{did}#{name}"),
            "type": "Multikey",
            "controller": did,
            "publicKeyMultibase": key.strip_prefix("did:key:").unwrap_or(key),
        }));
    }
    let services: Vec<Value> = state
        .services
        .iter()
        .map(|(name, service)| {
            json!({"id": format!("#{name}"), "type": service.kind, "serviceEndpoint": service.endpoint})
        })
        .collect();
    json!({
        "@context": context,
        "id": did,
        "alsoKnownAs": state.also_known_as,
        "verificationMethod": methods,
        "service": services,
    })
}

const DAY_MILLIS: u64 = 24 * 60 * 60 * 1000;

/// `YYYY-MM-DDTHH:MM:SS.mmmZ` of milliseconds since 1970.
fn format_time(millis: u64) -> String {
    let (days, in_day) = (millis / DAY_MILLIS, millis % DAY_MILLIS);
    // Civil date from a day count, in years that begin in March, so that the leap day comes last.
    let days = days + 719_468;
    let (era, in_era) = (days / 146_097, days % 146_097);
    let year_in_era = (in_era - in_era / 1460 + in_era / 36_524 - in_era / 146_096) / 365;
    let in_year = in_era - (365 * year_in_era + year_in_era / 4 - year_in_era / 100);
    let shifted = (5 * in_year + 2) / 153;
    let day = in_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_in_era + u64::from(month <= 2);
    let (hour, minute) = (in_day / 3_600_000, in_day / 60_000 % 60);
    let (second, milli) = (in_day / 1000 % 60, in_day % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

/// The inverse of [`format_time`], with zero to three digits after the second.
fn parse_time(text: &str) -> Option<u64> {
    let text = text.strip_suffix('Z')?;
    let (date, time) = text.split_once('T')?;
    let mut date = date.splitn(3, '-').map(digits);
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut time = time.splitn(3, ':').map(digits);
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    let sound = (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !sound || hour > 23 || minute > 59 || second > 60 || fraction.len() > 9 {
        return None;
    }
    let milli = digits(format!("{fraction:0<3}").get(..3)?)?;
    let (year, shifted) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let in_year = (153 * shifted + 2) / 5 + day - 1;
    let days = (365 * year + year / 4 - year / 100 + year / 400 + in_year).checked_sub(719_468)?;
    Some(days * DAY_MILLIS + ((hour * 60 + minute) * 60 + second) * 1000 + milli)
}

fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        None
    } else {
        text.parse().ok()
    }
}

#[cfg(test)]
mod tests;
