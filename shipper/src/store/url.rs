//! Where a replica is, in one line of text: what settings and command lines have.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// A replica's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaUrl {
    /// `file:///absolute/dir`.
    Directory(PathBuf),
    /// `https://<account>.blob.core.windows.net/<container>[/<prefix>]`, or the emulator's
    /// `http://127.0.0.1:10000/<account>/<container>[/<prefix>]`.
    Azure {
        /// The blob service, without a slash at its end.
        service_url: String,
        /// The storage account's name, as the URL has it.
        account: String,
        /// The container.
        container: String,
        /// What all names in the container start with; empty for nothing.
        prefix: String,
    },
    /// `s3://<bucket>[/<prefix>]`; where that bucket is, settings say.
    S3 {
        /// The bucket.
        bucket: String,
        /// What all names in the bucket start with; empty for nothing.
        prefix: String,
    },
}

/// The text names no place for a replica. The text is not quoted, since it may hold a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a replica is file:///dir, https://<account>.blob.core.windows.net/<container>[/<prefix>] or s3://<bucket>[/<prefix>]"
)]
pub struct ReplicaUrlError;

impl FromStr for ReplicaUrl {
    type Err = ReplicaUrlError;

    fn from_str(text: &str) -> Result<ReplicaUrl, ReplicaUrlError> {
        if let Some(path) = text.strip_prefix("file://") {
            let absolute = path.starts_with('/') && path.len() > 1;
            return absolute
                .then(|| ReplicaUrl::Directory(path.into()))
                .ok_or(ReplicaUrlError);
        }
        if let Some(rest) = text.strip_prefix("s3://") {
            return s3(rest).ok_or(ReplicaUrlError);
        }
        azure(text).ok_or(ReplicaUrlError)
    }
}

fn s3(rest: &str) -> Option<ReplicaUrl> {
    if rest.contains(['?', '#', '@', ' ']) {
        return None;
    }
    let rest = rest.trim_end_matches('/');
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    (!bucket.is_empty()).then(|| ReplicaUrl::S3 {
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
    })
}

fn azure(text: &str) -> Option<ReplicaUrl> {
    let (scheme, rest) = text
        .split_once("://")
        .filter(|(scheme, _)| matches!(*scheme, "https" | "http"))?;
    if text.contains(['?', '#', '@', ' ']) {
        return None;
    }
    let mut parts = rest.trim_end_matches('/').split('/');
    let host = parts.next().filter(|host| !host.is_empty())?;
    let bare = host.rsplit_once(':').map_or(host, |(name, _)| name);
    // Whatever has no account in its host name has it as the first segment of the path.
    let path_style = bare.parse::<IpAddr>().is_ok() || !bare.contains('.');
    let (service_url, account) = if path_style {
        let account = parts.next().filter(|name| !name.is_empty())?;
        (format!("{scheme}://{host}/{account}"), account.to_owned())
    } else {
        (format!("{scheme}://{host}"), host.split('.').next()?.to_owned())
    };
    let container = parts.next().filter(|name| !name.is_empty())?.to_owned();
    let prefix = parts.collect::<Vec<_>>().join("/");
    Some(ReplicaUrl::Azure {
        service_url,
        account,
        container,
        prefix,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(service_url: &str, account: &str, container: &str, prefix: &str) -> ReplicaUrl {
        ReplicaUrl::Azure {
            service_url: service_url.to_owned(),
            account: account.to_owned(),
            container: container.to_owned(),
            prefix: prefix.to_owned(),
        }
    }

    #[test]
    fn directories_the_cloud_and_the_emulator_are_told_apart() {
        assert_eq!(
            "file:///var/replica".parse(),
            Ok(ReplicaUrl::Directory("/var/replica".into()))
        );
        assert_eq!(
            "https://acc.blob.core.windows.net/pds/a/b/".parse(),
            Ok(place("https://acc.blob.core.windows.net", "acc", "pds", "a/b"))
        );
        assert_eq!(
            "http://127.0.0.1:10000/devstoreaccount1/pds".parse(),
            Ok(place(
                "http://127.0.0.1:10000/devstoreaccount1",
                "devstoreaccount1",
                "pds",
                ""
            ))
        );
        assert_eq!(
            "http://azurite:10000/devstoreaccount1/pds".parse(),
            Ok(place(
                "http://azurite:10000/devstoreaccount1",
                "devstoreaccount1",
                "pds",
                ""
            ))
        );
    }

    #[test]
    fn buckets_have_a_scheme_of_their_own() {
        for (text, bucket, prefix) in [
            ("s3://pds", "pds", ""),
            ("s3://pds/", "pds", ""),
            ("s3://pds.example/a/b/", "pds.example", "a/b"),
        ] {
            let (bucket, prefix) = (bucket.to_owned(), prefix.to_owned());
            assert_eq!(text.parse(), Ok(ReplicaUrl::S3 { bucket, prefix }), "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused_and_not_repeated() {
        for bad in [
            "",
            "file://relative",
            "file:///",
            "/dir",
            "s3://",
            "s3://user:secret@bucket",
            "https://acc.blob.core.windows.net",
            "https://acc.blob.core.windows.net/pds?sig=secret",
            "https://user@acc.blob.core.windows.net/pds",
            "http://127.0.0.1:10000/devstoreaccount1",
        ] {
            let error = bad.parse::<ReplicaUrl>().unwrap_err().to_string();
            assert!(!error.contains("secret"), "{bad}");
        }
    }
}
