//! From the client's errors to ours: by status and code, and without secrets.

use std::time::Duration;

use azure_core::error::ErrorKind;
use azure_core::http::StatusCode;
use azure_core::http::headers::{HeaderName, Headers};

use super::super::StoreError;
use super::super::transport::{DETAIL_CHARS, words as transport_words};

const ROLE_HINT: &str = "check the credentials, and that the identity has the role Storage Blob Data Contributor on \
                         the container; being its owner is not enough";

/// The service's error code, if it answered at all.
pub(super) fn code(error: &azure_core::Error) -> Option<&str> {
    match error.kind() {
        ErrorKind::HttpResponse { error_code, .. } => error_code.as_deref(),
        _ => None,
    }
}

/// What `error` means for a request that concerned `object` in `container`.
pub(super) fn classify(error: &azure_core::Error, object: &str, container: &str) -> StoreError {
    match error.kind() {
        ErrorKind::HttpResponse {
            status, raw_response, ..
        } => {
            let headers = raw_response.as_ref().map(|response| response.headers());
            by_status(u16::from(*status), code(error), headers, object, container)
        }
        ErrorKind::Connection => StoreError::Unavailable {
            detail: detail(error),
            sent: false,
        },
        ErrorKind::Io => StoreError::Unavailable {
            detail: detail(error),
            sent: true,
        },
        ErrorKind::Credential => {
            let detail = format!("no token: {}", detail(error));
            match refused_by_identity_provider(error) {
                true => StoreError::Denied {
                    object: container.to_owned(),
                    detail: format!("{detail}; {ROLE_HINT}"),
                },
                false => StoreError::Unavailable { detail, sent: false },
            }
        }
        ErrorKind::DataConversion | ErrorKind::Other => StoreError::Other {
            detail: detail(error),
            sent: true,
        },
    }
}

fn by_status(
    status: u16,
    code: Option<&str>,
    headers: Option<&Headers>,
    object: &str,
    container: &str,
) -> StoreError {
    let header =
        |name: &'static str| headers.and_then(|all| all.get_optional_string(&HeaderName::from_static(name)));
    let code = code.unwrap_or("no error code");
    let request = header("x-ms-request-id").unwrap_or_else(|| "unknown".to_owned());
    let detail = redacted(&format!("{status} {code}, request {request}"));
    let object = object.to_owned();
    match (status, code) {
        (404, "ContainerNotFound") => StoreError::NotFound {
            object: format!("the container {container}"),
        },
        (404, _) => StoreError::NotFound { object },
        (401 | 403, _) => StoreError::Denied {
            object,
            detail: format!("{detail}; {ROLE_HINT}"),
        },
        (429, _) | (503, "ServerBusy") => StoreError::Throttled {
            retry_after: header("retry-after")
                .and_then(|text| text.parse().ok())
                .map(Duration::from_secs),
            detail,
        },
        (408 | 500..=599, _) => StoreError::Unavailable { detail, sent: true },
        // Refused as a whole; it passes.
        (409, "ContainerBeingDeleted") => StoreError::Unavailable { detail, sent: false },
        (409 | 412, _) => StoreError::Precondition { object, detail },
        (400..=499, _) => StoreError::Invalid {
            detail: format!("{object}: {detail}"),
        },
        _ => StoreError::Other {
            detail: format!("{object}: {detail}"),
            sent: true,
        },
    }
}

/// Whether whoever issues tokens answered, and said no.
fn refused_by_identity_provider(error: &azure_core::Error) -> bool {
    let mut cause = Some(error as &(dyn std::error::Error + 'static));
    while let Some(error) = cause {
        if let Some(status) = error
            .downcast_ref::<azure_core::Error>()
            .and_then(azure_core::Error::http_status)
        {
            let passing = matches!(status, StatusCode::TooManyRequests | StatusCode::RequestTimeout);
            return (400..500).contains(&u16::from(status)) && !passing;
        }
        cause = error.source();
    }
    false
}

/// The chain of causes in words. The transport's own words quote the URL, which may hold a signature, so they are
/// replaced by ours.
fn detail(error: &azure_core::Error) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut cause = Some(error as &(dyn std::error::Error + 'static));
    while let Some(error) = cause {
        let next = match error.downcast_ref::<reqwest::Error>() {
            Some(transport) => transport_words(transport).to_owned(),
            None => error.to_string(),
        };
        if words.last() != Some(&next) {
            words.push(next);
        }
        cause = error.source();
    }
    redacted(&words.join(": "))
}

/// `text`, shortened, and without the value of a signature should one have got in all the same.
fn redacted(text: &str) -> String {
    let mut words = String::new();
    for (index, part) in text.split("sig=").enumerate() {
        if index == 0 {
            words.push_str(part);
            continue;
        }
        let end = part
            .find(|c: char| c == '&' || c == '"' || c == ')' || c.is_whitespace())
            .unwrap_or(part.len());
        words.push_str("sig=…");
        words.push_str(part.get(end..).unwrap_or_default());
    }
    words
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(DETAIL_CHARS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, code: &str) -> StoreError {
        by_status(status, Some(code), None, "wal/1", "pds")
    }

    #[test]
    fn every_status_says_what_can_be_done_about_it() {
        assert!(matches!(of(404, "BlobNotFound"), StoreError::NotFound { object } if object == "wal/1"));
        assert!(
            matches!(of(404, "ContainerNotFound"), StoreError::NotFound { object } if object.contains("pds"))
        );
        for status in [401, 403] {
            let denied = of(status, "AuthorizationPermissionMismatch");
            assert!(
                denied.to_string().contains("Storage Blob Data Contributor"),
                "{denied}"
            );
            assert!(!denied.is_retryable() && !denied.outcome_unknown());
        }
        for error in [of(429, "x"), of(503, "ServerBusy")] {
            assert!(matches!(error, StoreError::Throttled { .. }), "{error}");
        }
        for error in [
            of(500, "OperationTimedOut"),
            of(503, "x"),
            of(502, ""),
            of(504, ""),
            of(408, ""),
        ] {
            assert!(error.is_retryable() && error.outcome_unknown(), "{error}");
        }
        assert!(matches!(
            of(412, "ConditionNotMet"),
            StoreError::Precondition { .. }
        ));
        assert!(matches!(
            of(400, "InvalidHeaderValue"),
            StoreError::Invalid { .. }
        ));
        assert!(of(409, "ContainerBeingDeleted").is_retryable());
    }

    #[test]
    fn the_store_says_how_long_to_stay_away() {
        let mut headers = Headers::new();
        headers.insert("retry-after", "7");
        let error = by_status(503, Some("ServerBusy"), Some(&headers), "x", "pds");
        assert!(
            matches!(error, StoreError::Throttled { retry_after: Some(wait), .. } if wait.as_secs() == 7)
        );
    }

    #[test]
    fn signatures_do_not_reach_messages() {
        let text = redacted("error for url (https://a/b?sv=1&sig=topsecret%3D) and sig=topsecret&x");
        assert_eq!(text, "error for url (https://a/b?sv=1&sig=…) and sig=…&x");
    }
}
