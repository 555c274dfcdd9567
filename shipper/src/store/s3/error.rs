//! Our transport below the library, and from errors to ours: by status and code, and without secrets.

use std::error::Error;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use reqwest::Response;

use super::super::StoreError;
use super::super::transport::{DETAIL_CHARS, words};

/// The most of a refusal's body that is read, in bytes: it is a few lines that have a code.
const MAX_BODY: usize = 16 << 10;

/// How long to wait for that body.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

const ACCESS_HINT: &str =
    "check the credentials, and that they may put, get, list and delete objects of the bucket";

/// An answer that is no success.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{status} {code}, request {request}")]
pub(super) struct Refusal {
    pub(super) status: u16,
    /// The service's code; empty where it gave none.
    pub(super) code: String,
    request: String,
    retry_after: Option<Duration>,
    /// It came from whoever gives credentials, not from the bucket.
    elsewhere: bool,
}

/// Reads the answer's code.
pub(super) async fn refusal(answer: Response) -> Refusal {
    let header = |name: &str| {
        let value = answer.headers().get(name)?.to_str().ok()?;
        Some(value.chars().take(DETAIL_CHARS).collect::<String>())
    };
    let status = answer.status().as_u16();
    let request = header("x-amz-request-id").unwrap_or_else(|| "unknown".to_owned());
    let retry_after = header("retry-after")
        .and_then(|text| text.parse().ok())
        .map(Duration::from_secs);
    let mut body = Vec::new();
    let read = async {
        let mut parts = answer.bytes_stream();
        while let Some(Ok(part)) = parts.next().await {
            body.extend_from_slice(&part);
            if body.len() > MAX_BODY {
                break;
            }
        }
    };
    // Without it the status has to do.
    drop(tokio::time::timeout(BODY_TIMEOUT, read).await);
    Refusal {
        status,
        code: code(&String::from_utf8_lossy(&body)),
        request,
        retry_after,
        elsewhere: false,
    }
}

/// What `<Code>` of an error's XML says.
fn code(body: &str) -> String {
    let code = body
        .split_once("<Code>")
        .and_then(|(_, rest)| rest.split_once("</Code>"))
        .map_or("", |(code, _)| code.trim());
    let sound = code.len() <= 64 && code.bytes().all(|b| b.is_ascii_alphanumeric());
    if sound { code } else { "" }.to_owned()
}

impl Refusal {
    /// What it means for a request that concerned `object` in `bucket`.
    pub(super) fn meaning(&self, object: &str, bucket: &str) -> StoreError {
        let detail = self.to_string();
        if self.elsewhere {
            let detail = format!("no credentials: {detail}");
            return match self.status {
                408 | 429 | 500..=599 => StoreError::Unavailable { detail, sent: false },
                _ => StoreError::Denied {
                    object: format!("the bucket {bucket}"),
                    detail: format!("{detail}; {ACCESS_HINT}"),
                },
            };
        }
        let object = object.to_owned();
        match (self.status, self.code.as_str()) {
            (404, "NoSuchBucket") => StoreError::NotFound {
                object: format!("the bucket {bucket}"),
            },
            (404, _) => StoreError::NotFound { object },
            (301 | 307 | 308, _)
            | (400, "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException") => {
                StoreError::Invalid {
                    detail: format!(
                        "{detail}: the bucket {bucket} is in another region, or at another endpoint"
                    ),
                }
            }
            (400, "InvalidAccessKeyId" | "InvalidToken" | "ExpiredToken" | "InvalidSecurity")
            | (401 | 403, _) => StoreError::Denied {
                object,
                detail: format!("{detail}; {ACCESS_HINT}"),
            },
            (429, _) | (503, "SlowDown" | "ServiceUnavailable" | "ServerBusy") => StoreError::Throttled {
                retry_after: self.retry_after,
                detail,
            },
            // The body did not come in time, or not as it was signed: nothing was done.
            (400, "RequestTimeout" | "XAmzContentSHA256Mismatch" | "BadDigest" | "IncompleteBody") => {
                StoreError::Unavailable { detail, sent: false }
            }
            (408 | 500..=599, _) => StoreError::Unavailable { detail, sent: true },
            (409 | 412, _) => StoreError::Precondition { object, detail },
            (416, _) => StoreError::OutOfRange {
                object,
                start: 0,
                end: 0,
            },
            (400, "EntityTooLarge") | (413, _) => StoreError::TooLarge {
                object,
                size: super::MAX_OBJECT_BYTES,
                max: super::MAX_OBJECT_BYTES,
            },
            (400..=499, _) => StoreError::Invalid {
                detail: format!("{object}: {detail}"),
            },
            _ => StoreError::Other {
                detail: format!("{object}: {detail}"),
                sent: true,
            },
        }
    }
}

/// What a request that got no answer means.
pub(super) fn classify_sent(error: &reqwest::Error) -> StoreError {
    StoreError::Unavailable {
        detail: words(error).to_owned(),
        sent: !error.is_connect(),
    }
}

/// What the library's `error` means for a request that concerned `object` in `bucket`.
pub(super) fn classify(error: &object_store::Error, object: &str, bucket: &str) -> StoreError {
    let mut cause = Some(error as &(dyn Error + 'static));
    while let Some(error) = cause {
        if let Some(refusal) = error.downcast_ref::<Refusal>() {
            return refusal.meaning(object, bucket);
        }
        if let Some(transport) = error.downcast_ref::<reqwest::Error>() {
            return classify_sent(transport);
        }
        cause = error.source();
    }
    let detail = error
        .to_string()
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(DETAIL_CHARS)
        .collect();
    StoreError::Other { detail, sent: true }
}

/// Carries the library's requests, and turns answers that are no success into [`Refusal`]s, which the library passes on as
/// they are.
#[derive(Clone, Debug)]
pub(super) struct Transport {
    client: reqwest::Client,
    /// The bucket's host, and its port if it has one.
    bucket_at: String,
}

impl Transport {
    pub(super) fn new(client: reqwest::Client, bucket_url: &str) -> Transport {
        let (_, rest) = bucket_url.split_once("://").unwrap_or_default();
        let bucket_at = rest.split('/').next().unwrap_or_default().to_owned();
        Transport { client, bucket_at }
    }
}

impl HttpConnector for Transport {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Transport {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let at = request.uri().authority().map(|at| at.as_str().to_owned());
        let answer = self.client.call(request).await?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let mut refusal = refusal(Response::from(answer.map(reqwest::Body::wrap))).await;
        refusal.elsewhere = at.is_none_or(|at| !at.eq_ignore_ascii_case(&self.bucket_at));
        Err(HttpError::new(HttpErrorKind::Unknown, refusal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, code: &str) -> StoreError {
        refused(status, code, false)
    }

    fn refused(status: u16, code: &str, elsewhere: bool) -> StoreError {
        let refusal = Refusal {
            status,
            code: code.to_owned(),
            request: "r".to_owned(),
            retry_after: Some(Duration::from_secs(7)),
            elsewhere,
        };
        refusal.meaning("wal/1", "pds")
    }

    #[test]
    fn every_status_says_what_can_be_done_about_it() {
        assert!(matches!(of(404, "NoSuchKey"), StoreError::NotFound { object } if object == "wal/1"));
        assert!(matches!(of(404, "NoSuchBucket"), StoreError::NotFound { object } if object.contains("pds")));
        for error in [of(401, ""), of(403, "AccessDenied"), of(400, "ExpiredToken")] {
            assert!(error.to_string().contains("check the credentials"), "{error}");
            assert!(!error.is_retryable() && !error.outcome_unknown());
        }
        for error in [of(429, ""), of(503, "SlowDown")] {
            let StoreError::Throttled { retry_after, .. } = &error else {
                panic!("{error}")
            };
            assert_eq!(*retry_after, Some(Duration::from_secs(7)));
        }
        for status in [408, 500, 502, 503, 504] {
            let error = of(status, "InternalError");
            assert!(error.is_retryable() && error.outcome_unknown(), "{error}");
        }
        let late = of(400, "RequestTimeout");
        assert!(late.is_retryable() && !late.outcome_unknown());
        assert!(
            of(301, "PermanentRedirect")
                .to_string()
                .contains("another region")
        );
        assert!(matches!(
            of(412, "PreconditionFailed"),
            StoreError::Precondition { .. }
        ));
        assert!(matches!(of(416, "InvalidRange"), StoreError::OutOfRange { .. }));
        assert!(matches!(of(400, "EntityTooLarge"), StoreError::TooLarge { .. }));
        assert!(matches!(of(400, "InvalidArgument"), StoreError::Invalid { .. }));
    }

    #[test]
    fn who_gives_credentials_is_not_taken_for_the_bucket() {
        // A machine without a role: no object is missing because of it.
        assert!(matches!(refused(404, "", true), StoreError::Denied { .. }));
        assert!(refused(500, "", true).is_retryable());
    }

    #[test]
    fn the_code_is_a_word_or_nothing() {
        assert_eq!(
            code("<Error><Code>NoSuchKey</Code><Message>x</Message></Error>"),
            "NoSuchKey"
        );
        for odd in [
            "",
            "<Code>",
            "<Code>a b</Code>",
            &format!("<Code>{}</Code>", "x".repeat(65)),
        ] {
            assert_eq!(code(odd), "", "{odd}");
        }
    }
}
