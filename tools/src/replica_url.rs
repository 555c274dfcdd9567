//! The replica that a command line names, opened with the server's own settings from the environment.

use std::sync::Arc;

use anyhow::{Context, bail};
use shipper::store::azure::{AzureAuth, AzureConfig, AzureStore, Secret};
use shipper::store::directory::DirectoryStore;
use shipper::store::s3::{S3Config, S3Store};
use shipper::store::{ReplicaStore, ReplicaUrl};

/// Reads settings; the environment, or a test's table.
type Setting<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Opens the replica at `url`. `PDS_REPLICA_AZURE_AUTH`, `…_CLIENT_ID`, `…_SAS`, `…_ACCOUNT_KEY`, `…_ACCOUNT` and
/// `…_API_VERSION`, or `PDS_REPLICA_S3_REGION`, `…_ENDPOINT`, `…_FORCE_PATH_STYLE`, `…_ALLOW_HTTP`, `…_ACCESS_KEY_ID` and
/// `…_SECRET_ACCESS_KEY` mean what they mean to the server.
///
/// # Errors
/// The URL or a setting is not sound, or the directory is not there.
pub fn open(url: &str) -> anyhow::Result<Arc<dyn ReplicaStore>> {
    open_with(url, &|name| {
        std::env::var(name).ok().filter(|value| !value.is_empty())
    })
}

/// What the destination's own variables start with.
const DESTINATION: &str = "TO_";

/// Opens the place at `url` as [`open`] does, to copy to it: a directory is made. If there is any variable `TO_PDS_REPLICA_…`,
/// only those count, so that no credential of the one store goes to the other.
///
/// # Errors
/// The URL or a setting is not sound, or the directory cannot be made.
pub fn open_destination(url: &str) -> anyhow::Result<Arc<dyn ReplicaStore>> {
    let own = std::env::vars_os().any(|(name, _)| {
        let name = name.to_string_lossy();
        name.strip_prefix(DESTINATION)
            .is_some_and(|name| name.starts_with("PDS_REPLICA_"))
    });
    if let Ok(ReplicaUrl::Directory(dir)) = url.parse() {
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    }
    let prefix = if own { DESTINATION } else { "" };
    open_with(url, &|name| {
        std::env::var(format!("{prefix}{name}"))
            .ok()
            .filter(|value| !value.is_empty())
    })
}

fn open_with(url: &str, setting: Setting<'_>) -> anyhow::Result<Arc<dyn ReplicaStore>> {
    match url.parse::<ReplicaUrl>()? {
        ReplicaUrl::Directory(dir) => {
            // Opening would make it, and an empty replica is not what was meant.
            if !dir.is_dir() {
                bail!("{} is no directory", dir.display());
            }
            Ok(Arc::new(DirectoryStore::open(dir)?))
        }
        ReplicaUrl::Azure {
            service_url,
            account,
            container,
            prefix,
        } => {
            // The process has one; that it may be there already is fine.
            drop(rustls::crypto::ring::default_provider().install_default());
            let auth = auth(&account, setting)?;
            let identity = matches!(
                auth,
                AzureAuth::ManagedIdentity { .. } | AzureAuth::WorkloadIdentity
            );
            if identity && !service_url.starts_with("https://") {
                bail!("identities are only sent over https");
            }
            let mut config = AzureConfig::new(service_url, container, auth).with_prefix(prefix);
            config.api_version = setting("PDS_REPLICA_AZURE_API_VERSION");
            Ok(Arc::new(AzureStore::new(&config)?))
        }
        ReplicaUrl::S3 { bucket, prefix } => {
            let config = S3Config::from_settings("PDS_REPLICA_S3", bucket, prefix, setting)?;
            Ok(Arc::new(S3Store::new(&config)?))
        }
    }
}

fn auth(account: &str, setting: Setting<'_>) -> anyhow::Result<AzureAuth> {
    let required = |name: &str| setting(name).with_context(|| format!("{name} is not set"));
    let name = setting("PDS_REPLICA_AZURE_AUTH").unwrap_or_else(|| "managed-identity".to_owned());
    Ok(match name.as_str() {
        "managed-identity" => AzureAuth::ManagedIdentity {
            client_id: setting("PDS_REPLICA_AZURE_CLIENT_ID"),
        },
        "workload-identity" => AzureAuth::WorkloadIdentity,
        "sas" => AzureAuth::Sas(Secret::new(required("PDS_REPLICA_AZURE_SAS")?)),
        "shared-key" => AzureAuth::SharedKey {
            account: setting("PDS_REPLICA_AZURE_ACCOUNT").unwrap_or_else(|| account.to_owned()),
            key: Secret::new(required("PDS_REPLICA_AZURE_ACCOUNT_KEY")?),
        },
        other => bail!(
            "PDS_REPLICA_AZURE_AUTH is managed-identity, workload-identity, sas or shared-key, not {other:?}"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(url: &str, settings: &[(&str, &str)]) -> Result<String, String> {
        let setting = |name: &str| {
            let found = settings.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        open_with(url, &setting)
            .map(|store| store.describe())
            .map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn the_servers_settings_open_the_servers_replica() {
        let url = "http://127.0.0.1:10000/devstoreaccount1/pds/one";
        let key = [
            ("PDS_REPLICA_AZURE_AUTH", "shared-key"),
            ("PDS_REPLICA_AZURE_ACCOUNT_KEY", "c2VjcmV0"),
        ];
        let described = opened(url, &key).unwrap();
        assert!(
            described.contains("pds/one") && !described.contains("c2VjcmV0"),
            "{described}"
        );
        assert!(opened("https://acc.blob.core.windows.net/pds", &[]).is_ok());
    }

    #[test]
    fn a_bucket_is_opened_by_the_servers_settings() {
        let settings = [
            ("PDS_REPLICA_S3_ENDPOINT", "http://127.0.0.1:9000"),
            ("PDS_REPLICA_S3_ACCESS_KEY_ID", "id"),
            ("PDS_REPLICA_S3_SECRET_ACCESS_KEY", "c2VjcmV0"),
        ];
        let described = opened("s3://bucket/one", &settings).unwrap();
        assert_eq!(described, "S3 bucket http://127.0.0.1:9000/bucket/one/");
        let missing = opened("s3://bucket/one", &[]).unwrap_err();
        assert!(missing.contains("PDS_REPLICA_S3_REGION"), "{missing}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let url = "http://127.0.0.1:10000/devstoreaccount1/pds";
        let missing = opened(url, &[("PDS_REPLICA_AZURE_AUTH", "sas")]).unwrap_err();
        assert!(missing.contains("PDS_REPLICA_AZURE_SAS"), "{missing}");
        assert!(opened(url, &[]).unwrap_err().contains("https"));
        assert!(
            opened("file:///nonexistent/replica", &[])
                .unwrap_err()
                .contains("no directory")
        );
        assert!(
            opened(url, &[("PDS_REPLICA_AZURE_AUTH", "magic")])
                .unwrap_err()
                .contains("magic")
        );
    }
}
