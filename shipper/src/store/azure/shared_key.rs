//! Signing requests with the account's key, which the official client leaves out. For the emulator and tests.
//! Spec: <https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key>.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use azure_core::credentials::Secret;
use azure_core::hmac::hmac_sha256;
use azure_core::http::policies::{Policy, PolicyResult};
use azure_core::http::{Context, Request};
use azure_core::time::{OffsetDateTime, to_rfc7231};

/// Signs each try anew, as its date is part of what is signed.
#[derive(Debug)]
pub(super) struct SharedKey {
    pub(super) account: String,
    pub(super) key: Secret,
}

/// The standard headers that are signed by value, in order; `date` stays empty because `x-ms-date` takes its place.
const SIGNED_HEADERS: [&str; 11] = [
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
];

impl SharedKey {
    fn string_to_sign(&self, request: &Request) -> String {
        let headers: BTreeMap<String, &str> = request
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str().to_ascii_lowercase(), value.as_str().trim()))
            .collect();
        let mut text = request.method().as_ref().to_owned();
        for name in SIGNED_HEADERS {
            text.push('\n');
            match (name, headers.get(name).copied()) {
                ("date", _) | ("content-length", Some("0")) => {}
                (_, Some(value)) => text.push_str(value),
                // The transport will add it.
                ("content-length", None) => {
                    let length = request.body().len().filter(|length| *length > 0);
                    text.push_str(&length.map(|length| length.to_string()).unwrap_or_default());
                }
                (_, None) => {}
            }
        }
        text.push('\n');
        for (name, value) in headers.iter().filter(|(name, _)| name.starts_with("x-ms-")) {
            text.push_str(&format!("{name}:{value}\n"));
        }
        text.push_str(&format!("/{}{}", self.account, request.url().path()));
        let mut query: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in request.url().query_pairs() {
            query
                .entry(name.to_lowercase())
                .or_default()
                .push(value.into_owned());
        }
        for (name, mut values) in query {
            values.sort_unstable();
            text.push_str(&format!("\n{name}:{}", values.join(",")));
        }
        text
    }
}

#[async_trait]
impl Policy for SharedKey {
    async fn send(&self, context: &Context, request: &mut Request, next: &[Arc<dyn Policy>]) -> PolicyResult {
        request.insert_header("x-ms-date", to_rfc7231(&OffsetDateTime::now_utc()));
        let signature = hmac_sha256(&self.string_to_sign(request), &self.key)?;
        request.insert_header("authorization", format!("SharedKey {}:{signature}", self.account));
        match next.split_first() {
            Some((following, rest)) => following.send(context, request, rest).await,
            None => Err(azure_core::Error::with_message(
                azure_core::error::ErrorKind::Other,
                "no transport behind the signing",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use azure_core::http::{Method, Url};

    use super::*;

    #[test]
    fn the_text_to_sign_has_every_part_in_its_place() {
        let url =
            Url::parse("http://127.0.0.1:1/acc/con/a%2Fb?timeout=5&comp=block&BlockId=eA%3D%3D").unwrap();
        let mut request = Request::new(url, Method::Put);
        request.insert_header("x-ms-version", "2025-11-05");
        request.insert_header("x-ms-date", "now");
        request.insert_header("if-none-match", "*");
        request.set_body(vec![0; 12]);
        let key = SharedKey {
            account: "acc".into(),
            key: Secret::new("a2V5"),
        };
        let expected = "PUT\n\n\n12\n\n\n\n\n\n*\n\n\nx-ms-date:now\nx-ms-version:2025-11-05\n\
                        /acc/acc/con/a%2Fb\nblockid:eA==\ncomp:block\ntimeout:5";
        assert_eq!(key.string_to_sign(&request), expected);
        assert!(!format!("{key:?}").contains("a2V5"));
    }
}
