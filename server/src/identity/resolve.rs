//! What DID a handle leads to: a TXT record `_atproto.<handle>` with `did=…`, or the text at
//! `https://<handle>/.well-known/atproto-did`. Both are asked at once and DNS wins. One direction only: whether the DID's
//! document names the handle in turn is for the caller to check. Nothing is cached beyond DNS itself.
//! Spec: <https://atproto.com/specs/handle#handle-resolution>.

use std::sync::Arc;
use std::time::Duration;

use engine::repo::{Did, Handle};

use crate::client::dns::{Dns, DnsError};
use crate::client::http::{FetchError, Fetcher};

/// Longest body of the well-known text, in bytes. A DID has 2048 at most.
pub const MAX_WELL_KNOWN_BYTES: usize = 4096;

/// Resolves handles. Cheap to clone.
#[derive(Clone)]
pub struct HandleResolver {
    dns: Arc<dyn Dns>,
    backup: Option<Arc<dyn Dns>>,
    fetcher: Fetcher,
    timeout: Duration,
}

impl std::fmt::Debug for HandleResolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HandleResolver")
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl HandleResolver {
    /// Asks `dns` and the handle's host, then `backup`; each of the two steps takes at most `timeout`.
    #[must_use]
    pub fn new(
        dns: Arc<dyn Dns>,
        backup: Option<Arc<dyn Dns>>,
        fetcher: Fetcher,
        timeout: Duration,
    ) -> HandleResolver {
        HandleResolver {
            dns,
            backup,
            fetcher,
            timeout,
        }
    }

    /// The DID that `handle` leads to; `None` if nothing usable was found in time, for whatever reason.
    pub async fn resolve(&self, handle: &Handle) -> Option<Did> {
        let both = async {
            // Both run from the start; the web's answer counts only once DNS has none.
            let web = by_web(&self.fetcher, handle);
            let dns = by_dns(&*self.dns, handle);
            tokio::pin!(web, dns);
            tokio::select! {
                biased;
                found = &mut dns => match found {
                    Some(did) => Some(did),
                    None => web.await,
                },
                found = &mut web => match dns.await {
                    Some(did) => Some(did),
                    None => found,
                },
            }
        };
        if let Ok(Some(did)) = tokio::time::timeout(self.timeout, both).await {
            return Some(did);
        }
        let backup = self.backup.as_ref()?;
        tokio::time::timeout(self.timeout, by_dns(&**backup, handle))
            .await
            .ok()
            .flatten()
    }
}

async fn by_dns(dns: &dyn Dns, handle: &Handle) -> Option<Did> {
    match dns.txt(&format!("_atproto.{handle}")).await {
        Ok(texts) => {
            let mut found = texts.iter().filter_map(|text| text.strip_prefix("did="));
            // Two of them contradict each other, even if they are equal.
            match (found.next(), found.next()) {
                (Some(did), None) => did.parse().ok(),
                _ => None,
            }
        }
        Err(DnsError::NotFound) => None,
        Err(error) => {
            tracing::debug!(%handle, %error, "a handle could not be looked up in DNS");
            None
        }
    }
}

async fn by_web(fetcher: &Fetcher, handle: &Handle) -> Option<Did> {
    let url = format!("https://{handle}/.well-known/atproto-did");
    match fetcher.get(&url, MAX_WELL_KNOWN_BYTES).await {
        Ok(body) => parse_well_known(&body),
        Err(FetchError::Status(_)) => None,
        Err(error) => {
            tracing::debug!(%handle, %error, "a handle could not be looked up on its host");
            None
        }
    }
}

/// The first line, trimmed, if it is a DID.
fn parse_well_known(body: &[u8]) -> Option<Did> {
    std::str::from_utf8(body)
        .ok()?
        .lines()
        .next()?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::dns::NoDns;
    use crate::client::http::FetchPolicy;
    use async_trait::async_trait;
    use std::net::IpAddr;

    const TIMEOUT: Duration = Duration::from_millis(300);
    const ALICE: &str = "did:plc:ewvi7nxzyoun6zhxrhs64oiz";

    enum Script {
        Says(Vec<&'static str>),
        Fails,
        Hangs,
    }

    struct Scripted(Script);

    #[async_trait]
    impl Dns for Scripted {
        async fn addresses(&self, _: &str) -> Result<Vec<IpAddr>, DnsError> {
            Err(DnsError::NotFound)
        }

        async fn txt(&self, name: &str) -> Result<Vec<String>, DnsError> {
            assert_eq!(name, "_atproto.alice.example.com");
            match &self.0 {
                Script::Says(texts) => Ok(texts.iter().map(|text| (*text).to_owned()).collect()),
                Script::Fails => Err(DnsError::Failed("down".to_owned())),
                Script::Hangs => std::future::pending().await,
            }
        }
    }

    async fn resolve(dns: Script, backup: Option<Script>) -> Option<String> {
        let fetcher = Fetcher::new(FetchPolicy::public(TIMEOUT), Arc::new(NoDns)).unwrap();
        let backup = backup.map(|script| Arc::new(Scripted(script)) as Arc<dyn Dns>);
        let resolver = HandleResolver::new(Arc::new(Scripted(dns)), backup, fetcher, TIMEOUT);
        resolver
            .resolve(&"Alice.example.com".parse().unwrap())
            .await
            .map(|did| did.to_string())
    }

    #[tokio::test]
    async fn exactly_one_did_record_counts_among_any_others() {
        let record = "did=did:plc:ewvi7nxzyoun6zhxrhs64oiz";
        assert_eq!(
            resolve(Script::Says(vec!["v=spf1", record]), None)
                .await
                .as_deref(),
            Some(ALICE)
        );
        for none in [
            vec![],
            vec![record, record],
            vec![record, "did=did:web:other.example"],
            vec!["did=alice"],
            vec!["DID=x"],
        ] {
            assert_eq!(resolve(Script::Says(none), None).await, None);
        }
    }

    #[tokio::test]
    async fn statement_88_records_that_contradict_each_other_leave_it_to_the_web() {
        /// Says two DIDs, and notes whose address is asked for.
        struct Two(parking_lot::Mutex<Vec<String>>);

        #[async_trait]
        impl Dns for Two {
            async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, DnsError> {
                self.0.lock().push(name.to_owned());
                Err(DnsError::NotFound)
            }

            async fn txt(&self, _: &str) -> Result<Vec<String>, DnsError> {
                let two = ["did=did:web:a.example", "did=did:web:b.example"];
                Ok(two.map(str::to_owned).to_vec())
            }
        }

        let two = Arc::new(Two(parking_lot::Mutex::default()));
        let fetcher = Fetcher::new(FetchPolicy::public(TIMEOUT), two.clone()).unwrap();
        let resolver = HandleResolver::new(two.clone(), None, fetcher, TIMEOUT);
        assert!(
            resolver
                .resolve(&"alice.example.com".parse().unwrap())
                .await
                .is_none()
        );
        assert_eq!(*two.0.lock(), ["alice.example.com"], "its host was asked");
    }

    #[tokio::test]
    async fn the_backup_servers_are_asked_when_the_others_fail_or_hang() {
        let record = || Script::Says(vec!["did=did:plc:ewvi7nxzyoun6zhxrhs64oiz"]);
        assert_eq!(
            resolve(Script::Fails, Some(record())).await.as_deref(),
            Some(ALICE)
        );
        assert_eq!(
            resolve(Script::Hangs, Some(record())).await.as_deref(),
            Some(ALICE)
        );
        assert_eq!(resolve(Script::Hangs, Some(Script::Hangs)).await, None);
    }

    #[test]
    fn the_well_known_text_is_its_first_line() {
        for good in [
            ALICE.to_owned(),
            format!("{ALICE}\n"),
            format!("  {ALICE} \r\nmore"),
        ] {
            assert_eq!(parse_well_known(good.as_bytes()).unwrap().as_str(), ALICE);
        }
        for bad in ["", "\n", "<html>", "alice", "did:"] {
            assert_eq!(parse_well_known(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(parse_well_known(b"did:plc:\xff"), None);
    }
}
