//! Where the bucket is and who we are to it.

use std::net::IpAddr;
use std::time::Duration;

use reqwest::Url;

use super::super::StoreError;
pub use super::super::azure::Secret;

/// The variables that platforms set for those who run on them, as the AWS SDKs read them.
pub(super) const PLATFORM: [&str; 7] = [
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_ENDPOINT_URL_STS",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
];

/// How we prove who we are. `Debug` shows no secrets.
#[derive(Clone, Debug)]
pub enum S3Auth {
    /// An access key.
    Keys {
        /// Its id.
        id: String,
        /// Its secret.
        secret: Secret,
    },
    /// What the platform gives: a web identity (`AWS_WEB_IDENTITY_TOKEN_FILE`, `AWS_ROLE_ARN`), a container's or pod's
    /// credentials (`AWS_CONTAINER_…`), else those of the virtual machine.
    Platform,
}

/// Settings of an [`S3Store`](super::S3Store).
#[derive(Clone, Debug)]
pub struct S3Config {
    /// The bucket's name.
    pub bucket: String,
    /// What all names in the bucket start with: segments as in an object name, or nothing.
    pub prefix: String,
    /// The region that requests are signed for.
    pub region: String,
    /// The service's URL without the bucket; without one it is Amazon's, in the region.
    pub endpoint: Option<String>,
    /// Whether the bucket is the first segment of the path, and not part of the host's name.
    pub path_style: bool,
    /// Whether plain http is fine for a host that is not this machine.
    pub allow_http: bool,
    /// Who we are.
    pub auth: S3Auth,
    /// The time allowed for one request without its bytes, for which 16 s per MiB come on top. Default 10 s.
    pub request_timeout: Duration,
}

impl S3Config {
    /// The bucket `bucket` with the settings `<family>_REGION`, `…_ENDPOINT`, `…_FORCE_PATH_STYLE`, `…_ALLOW_HTTP`,
    /// `…_ACCESS_KEY_ID` and `…_SECRET_ACCESS_KEY`, as `setting` gives them.
    ///
    /// # Errors
    /// [`StoreError::Invalid`], which names the setting and quotes no secret.
    pub fn from_settings(
        family: &str,
        bucket: impl Into<String>,
        prefix: impl Into<String>,
        setting: &dyn Fn(&str) -> Option<String>,
    ) -> Result<S3Config, StoreError> {
        let name = |field: &str| format!("{family}_{field}");
        let invalid = |detail: String| StoreError::Invalid { detail };
        let text = |field: &str| setting(&name(field)).filter(|value| !value.is_empty());
        let flag = |field: &str| match text(field).as_deref() {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1") => Ok(true),
            Some(_) => Err(invalid(format!("{} must be true or false", name(field)))),
        };
        let endpoint = text("ENDPOINT");
        let region = match (text("REGION"), &endpoint) {
            (Some(region), _) => region,
            // Services other than Amazon's mostly do not care.
            (None, Some(_)) => "us-east-1".to_owned(),
            (None, None) => return Err(invalid(format!("{} is required but not set", name("REGION")))),
        };
        let auth = match (text("ACCESS_KEY_ID"), text("SECRET_ACCESS_KEY")) {
            (Some(id), Some(secret)) => S3Auth::Keys {
                id,
                secret: Secret::new(secret),
            },
            (None, None) => S3Auth::Platform,
            _ => {
                return Err(invalid(format!(
                    "{} and {} must be set both or neither",
                    name("ACCESS_KEY_ID"),
                    name("SECRET_ACCESS_KEY")
                )));
            }
        };
        let config = S3Config {
            bucket: bucket.into(),
            prefix: prefix.into(),
            region,
            endpoint,
            path_style: flag("FORCE_PATH_STYLE")?,
            allow_http: flag("ALLOW_HTTP")?,
            auth,
            request_timeout: Duration::from_secs(10),
        };
        config.bucket_url()?;
        Ok(config)
    }

    /// The bucket's URL, without a slash at its end.
    pub(super) fn bucket_url(&self) -> Result<String, StoreError> {
        let invalid = |detail: String| StoreError::Invalid { detail };
        let (bucket, region) = (&self.bucket, &self.region);
        let named = (3..=63).contains(&bucket.len())
            && bucket
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
            && !bucket.starts_with(['-', '.'])
            && !bucket.ends_with(['-', '.'])
            && !bucket.contains("..");
        if !named {
            return Err(invalid(format!(
                "{bucket:?} is not a bucket's name: 3 to 63 small letters, digits, hyphens and dots"
            )));
        }
        if bucket.ends_with("--x-s3") {
            return Err(invalid(format!(
                "{bucket} is a directory bucket, whose listings have no order"
            )));
        }
        if region.is_empty() || !region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(invalid(format!("{region:?} is not a region")));
        }
        let default = format!("https://s3.{region}.amazonaws.com");
        let endpoint = self.endpoint.as_ref().unwrap_or(&default);
        let url =
            Url::parse(endpoint).map_err(|error| invalid(format!("the endpoint does not parse: {error}")))?;
        let plain = matches!(url.scheme(), "http" | "https")
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none();
        let Some(host) = url.host_str().filter(|_| plain) else {
            let detail = "the endpoint must be http:// or https:// and a host, without user or query";
            return Err(invalid(detail.to_owned()));
        };
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>().ok();
        let here = address.map_or(host == "localhost", |address| address.is_loopback());
        if url.scheme() == "http" && !here && !self.allow_http {
            let detail = "the endpoint is plain http on another machine, where anybody on the way can read along; set \
                          …_ALLOW_HTTP if that is meant";
            return Err(invalid(detail.to_owned()));
        }
        let port = url.port().map_or(String::new(), |port| format!(":{port}"));
        let path = url.path().trim_end_matches('/');
        let scheme = url.scheme();
        // A certificate's asterisk covers no dots, and addresses have no names below them.
        let in_path = self.path_style || bucket.contains('.') || address.is_some() || !host.contains('.');
        Ok(match in_path {
            true => format!("{scheme}://{host}{port}{path}/{bucket}"),
            false => format!("{scheme}://{bucket}.{host}{port}{path}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(settings: &[(&str, &str)]) -> Result<S3Config, String> {
        let setting = |name: &str| {
            let found = settings
                .iter()
                .find(|(known, _)| format!("PDS_X_{known}") == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        S3Config::from_settings("PDS_X", "pds", "a/b", &setting).map_err(|error| error.to_string())
    }

    fn url(settings: &[(&str, &str)]) -> String {
        of(settings)
            .and_then(|config| config.bucket_url().map_err(|error| error.to_string()))
            .unwrap()
    }

    #[test]
    fn the_bucket_is_in_the_host_or_in_the_path() {
        let aws = [("REGION", "eu-central-1")];
        assert_eq!(url(&aws), "https://pds.s3.eu-central-1.amazonaws.com");
        let path = [("REGION", "eu-central-1"), ("FORCE_PATH_STYLE", "true")];
        assert_eq!(url(&path), "https://s3.eu-central-1.amazonaws.com/pds");
        for (endpoint, expected) in [
            (
                "https://x.r2.cloudflarestorage.com/",
                "https://pds.x.r2.cloudflarestorage.com",
            ),
            ("http://127.0.0.1:9000", "http://127.0.0.1:9000/pds"),
            ("http://localhost:9000", "http://localhost:9000/pds"),
            ("http://[::1]:9000", "http://[::1]:9000/pds"),
            (
                "https://storage.googleapis.com",
                "https://pds.storage.googleapis.com",
            ),
        ] {
            assert_eq!(url(&[("ENDPOINT", endpoint)]), expected);
        }
        assert!(of(&[]).unwrap_err().contains("PDS_X_REGION"));
    }

    #[test]
    fn settings_that_cannot_work_are_refused_and_secrets_not_repeated() {
        let secret = ("SECRET_ACCESS_KEY", "topsecret");
        let region = ("REGION", "auto");
        assert!(of(&[region, secret]).unwrap_err().contains("both or neither"));
        assert!(
            of(&[region, ("FORCE_PATH_STYLE", "maybe")])
                .unwrap_err()
                .contains("FORCE_PATH_STYLE")
        );
        for endpoint in [
            "x",
            "ftp://x.example",
            "https://u:p@x.example",
            "https://x.example?y",
            "http://minio.example:9000",
        ] {
            let error = of(&[("ENDPOINT", endpoint)]).unwrap_err();
            assert!(error.contains("endpoint"), "{endpoint}: {error}");
        }
        let allowed = [("ENDPOINT", "http://minio:9000"), ("ALLOW_HTTP", "true")];
        assert_eq!(url(&allowed), "http://minio:9000/pds");
        let config = of(&[region, ("ACCESS_KEY_ID", "id"), secret]).unwrap();
        assert!(!format!("{config:?}").contains("topsecret"), "{config:?}");
        for bucket in ["", "ab", "Pds", "a/b", "a..b", "-ab", "x--use1-az4--x-s3"] {
            let named = S3Config {
                bucket: bucket.to_owned(),
                ..config.clone()
            };
            assert!(named.bucket_url().is_err(), "{bucket}");
        }
    }
}
