//! Where the container is and who we are to it.

use std::time::Duration;

use azure_core::http::Url;

pub use azure_core::credentials::Secret;

use super::super::StoreError;
use super::super::name::name_start;

/// The account that every emulator knows, and its published key: no secret.
const EMULATOR_ACCOUNT: &str = "devstoreaccount1";
const EMULATOR_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
const EMULATOR_URL: &str = "http://127.0.0.1:10000/devstoreaccount1";

/// How we prove who we are. `Debug` shows no secrets.
#[derive(Clone, Debug)]
pub enum AzureAuth {
    /// The identity that the platform (Container Apps, App Service, a virtual machine) gives this process.
    ManagedIdentity {
        /// The client id of a user-assigned identity; without it the system-assigned one.
        client_id: Option<String>,
    },
    /// A Kubernetes service account, by `AZURE_CLIENT_ID`, `AZURE_TENANT_ID` and `AZURE_FEDERATED_TOKEN_FILE`.
    WorkloadIdentity,
    /// A shared access signature: the query part of a URL, with or without its question mark.
    Sas(Secret),
    /// The account's key, in base64. For the emulator and tests: it opens the whole account.
    SharedKey {
        /// The account's name.
        account: String,
        /// The key.
        key: Secret,
    },
}

/// Settings of an [`AzureStore`](super::AzureStore).
#[derive(Clone, Debug)]
pub struct AzureConfig {
    /// The blob service, `https://<account>.blob.core.windows.net` or the emulator's `http://…/<account>`.
    pub service_url: String,
    /// The container's name.
    pub container: String,
    /// What all names in the container start with: segments as in an object name, or nothing.
    pub prefix: String,
    /// Who we are.
    pub auth: AzureAuth,
    /// The version of the service's interface to speak, such as `2025-11-05`, if the service (an old emulator) does not
    /// know the client's own.
    pub api_version: Option<String>,
    /// The time allowed for one request without its bytes, for which 16 s per MiB come on top. Default 10 s.
    pub request_timeout: Duration,
}

impl AzureConfig {
    /// The container `container` of the service at `service_url`, from its top, with the default time limits.
    #[must_use]
    pub fn new(service_url: impl Into<String>, container: impl Into<String>, auth: AzureAuth) -> AzureConfig {
        AzureConfig {
            service_url: service_url.into(),
            container: container.into(),
            prefix: String::new(),
            auth,
            api_version: None,
            request_timeout: Duration::from_secs(10),
        }
    }

    /// The container `container` of the public cloud's storage account `account`.
    #[must_use]
    pub fn for_account(account: &str, container: impl Into<String>, auth: AzureAuth) -> AzureConfig {
        AzureConfig::new(
            format!("https://{account}.blob.core.windows.net"),
            container,
            auth,
        )
    }

    /// Reads a connection string: `UseDevelopmentStorage=true`, or
    /// `DefaultEndpointsProtocol=…;AccountName=…;AccountKey=…;BlobEndpoint=…;EndpointSuffix=…` (protocol, endpoint and
    /// suffix may be left out), or one with `SharedAccessSignature` in the place of the key.
    ///
    /// # Errors
    /// [`StoreError::Invalid`], which does not quote the string.
    pub fn from_connection_string(
        text: &str,
        container: impl Into<String>,
    ) -> Result<AzureConfig, StoreError> {
        let field = |wanted: &str| {
            let mut pairs = text.split(';').filter_map(|pair| pair.trim().split_once('='));
            pairs
                .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
                .map(|(_, value)| value.trim())
        };
        let missing = |what: &str| StoreError::Invalid {
            detail: format!("the connection string has no {what}"),
        };
        if field("UseDevelopmentStorage").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            let auth = AzureAuth::SharedKey {
                account: EMULATOR_ACCOUNT.to_owned(),
                key: Secret::new(EMULATOR_KEY),
            };
            return Ok(AzureConfig::new(EMULATOR_URL, container, auth));
        }
        let account = field("AccountName");
        let url = match (field("BlobEndpoint"), account) {
            (Some(url), _) => url.trim_end_matches('/').to_owned(),
            (None, Some(account)) => {
                let protocol = field("DefaultEndpointsProtocol").unwrap_or("https");
                let suffix = field("EndpointSuffix").unwrap_or("core.windows.net");
                format!("{protocol}://{account}.blob.{suffix}")
            }
            (None, None) => return Err(missing("AccountName and no BlobEndpoint")),
        };
        let auth = match (field("AccountKey"), field("SharedAccessSignature")) {
            (Some(key), _) => AzureAuth::SharedKey {
                account: account.ok_or_else(|| missing("AccountName"))?.to_owned(),
                key: Secret::new(key.to_owned()),
            },
            (None, Some(signature)) => AzureAuth::Sas(Secret::new(signature.to_owned())),
            (None, None) => return Err(missing("AccountKey and no SharedAccessSignature")),
        };
        Ok(AzureConfig::new(url, container, auth))
    }

    /// The same with other names' common start.
    #[must_use]
    pub fn with_prefix(self, prefix: impl Into<String>) -> AzureConfig {
        AzureConfig {
            prefix: prefix.into(),
            ..self
        }
    }

    /// The container's URL, without a signature.
    pub(super) fn container_url(&self) -> Result<Url, StoreError> {
        let invalid = |detail: String| StoreError::Invalid { detail };
        let mut url = Url::parse(&self.service_url)
            .map_err(|error| invalid(format!("the blob service's URL does not parse: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") || url.query().is_some() || !url.username().is_empty() {
            let detail = "the blob service's URL must be http or https, without user or query (a signature is a setting of its own)";
            return Err(invalid(detail.to_owned()));
        }
        let named = (3..=63).contains(&self.container.len())
            && self
                .container
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !named {
            return Err(invalid(format!(
                "{:?} is not a container's name: 3 to 63 small letters, digits and hyphens",
                self.container
            )));
        }
        match url.path_segments_mut() {
            Ok(mut segments) => segments.pop_if_empty().push(&self.container),
            Err(()) => return Err(invalid("the blob service's URL cannot have a path".to_owned())),
        };
        Ok(url)
    }

    /// What all names start with: nothing, or segments and a slash.
    pub(super) fn name_start(&self) -> Result<String, StoreError> {
        name_start(&self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_strings_of_emulator_and_cloud_are_understood() {
        let emulator = AzureConfig::from_connection_string("UseDevelopmentStorage=true", "pds").unwrap();
        assert_eq!(
            emulator.container_url().unwrap().as_str(),
            "http://127.0.0.1:10000/devstoreaccount1/pds"
        );
        let text = "DefaultEndpointsProtocol=http;AccountName=a1;AccountKey=c2VjcmV0==;BlobEndpoint=http://127.0.0.1:9/a1/;";
        let explicit = AzureConfig::from_connection_string(text, "pds").unwrap();
        assert_eq!(
            explicit.container_url().unwrap().as_str(),
            "http://127.0.0.1:9/a1/pds"
        );
        let AzureAuth::SharedKey { account, key } = &explicit.auth else {
            panic!("{explicit:?}")
        };
        assert_eq!((account.as_str(), key.secret()), ("a1", "c2VjcmV0=="));
        let cloud = AzureConfig::from_connection_string("AccountName=a1;AccountKey=c2VjcmV0", "pds").unwrap();
        assert_eq!(
            cloud.container_url().unwrap().as_str(),
            "https://a1.blob.core.windows.net/pds"
        );
        let signed = "BlobEndpoint=https://x.test;SharedAccessSignature=sv=1&sig=c2VjcmV0%3D";
        let signed = AzureConfig::from_connection_string(signed, "pds").unwrap();
        assert!(matches!(&signed.auth, AzureAuth::Sas(sas) if sas.secret() == "sv=1&sig=c2VjcmV0%3D"));
        for config in [&explicit, &cloud, &signed] {
            assert!(!format!("{config:?}").contains("c2VjcmV0"), "{config:?}");
        }
        for bad in [
            "",
            "AccountName=a",
            "AccountKey=c2VjcmV0",
            "BlobEndpoint=http://x;AccountKey=c2VjcmV0",
        ] {
            let error = AzureConfig::from_connection_string(bad, "pds")
                .unwrap_err()
                .to_string();
            assert!(!error.contains("c2VjcmV0"), "{error}");
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused_before_any_request() {
        let auth = AzureAuth::WorkloadIdentity;
        for url in [
            "",
            "x",
            "ftp://a",
            "https://a?sv=1&sig=s",
            "https://u@a",
            "data:x",
        ] {
            assert!(
                AzureConfig::new(url, "pds", auth.clone())
                    .container_url()
                    .is_err(),
                "{url}"
            );
        }
        for container in ["", "ab", "Pds", "a/b", "a_b"] {
            assert!(
                AzureConfig::new("https://a", container, auth.clone())
                    .container_url()
                    .is_err(),
                "{container}"
            );
        }
        let config = AzureConfig::new("https://a", "pds", auth);
        assert_eq!(
            config.clone().with_prefix("a/b/").name_start(),
            Ok("a/b/".to_owned())
        );
        assert_eq!(config.clone().name_start(), Ok(String::new()));
        assert!(config.with_prefix("/a").name_start().is_err());
    }
}
