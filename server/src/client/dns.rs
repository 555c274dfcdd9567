//! Names: addresses for HTTP, TXT records for handles.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;

/// Most records of one answer that are looked at.
pub const MAX_RECORDS: usize = 64;
/// Most answers that are kept for as long as their records allow.
const CACHED_ANSWERS: u64 = 1024;
const ATTEMPTS: usize = 2;

/// Why a name gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// There is no such name, or no such record.
    #[error("no such name or record")]
    NotFound,
    /// No server answered in time, or not sensibly. Trying later may help.
    #[error("DNS failed: {0}")]
    Failed(String),
    /// The system's DNS settings could not be read.
    #[error("the system's DNS settings cannot be used: {0}")]
    Settings(String),
}

/// Looks names up. Real ones ask servers; tests script the answers.
#[async_trait]
pub trait Dns: Send + Sync {
    /// The addresses of `host`, at most [`MAX_RECORDS`].
    ///
    /// # Errors
    /// [`DnsError::NotFound`], or [`DnsError::Failed`] if that could not be found out.
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, DnsError>;

    /// The TXT records of the fully qualified `name`, each with its parts joined, at most [`MAX_RECORDS`].
    ///
    /// # Errors
    /// As [`Dns::addresses`].
    async fn txt(&self, name: &str) -> Result<Vec<String>, DnsError>;
}

/// Asks name servers.
pub struct NameServers(TokioResolver);

impl std::fmt::Debug for NameServers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NameServers")
    }
}

impl NameServers {
    /// The servers that the system is set up with. `timeout` is for one attempt; there are two.
    ///
    /// # Errors
    /// [`DnsError::Settings`].
    pub fn of_system(timeout: Duration) -> Result<NameServers, DnsError> {
        let settings = |error: NetError| DnsError::Settings(error.to_string());
        let mut builder = TokioResolver::builder_tokio().map_err(settings)?;
        limit(builder.options_mut(), timeout);
        builder.build().map(NameServers).map_err(settings)
    }

    /// These servers and no others. A port of 0 means 53.
    ///
    /// # Errors
    /// [`DnsError::Settings`].
    pub fn at(servers: &[SocketAddr], timeout: Duration) -> Result<NameServers, DnsError> {
        let servers = servers
            .iter()
            .map(|server| {
                let mut config = NameServerConfig::udp_and_tcp(server.ip());
                if server.port() != 0 {
                    for connection in &mut config.connections {
                        connection.port = server.port();
                    }
                }
                config
            })
            .collect();
        let config = ResolverConfig::from_name_servers(servers);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        limit(builder.options_mut(), timeout);
        builder
            .build()
            .map(NameServers)
            .map_err(|error| DnsError::Settings(error.to_string()))
    }
}

fn limit(options: &mut ResolverOpts, timeout: Duration) {
    options.timeout = timeout;
    options.attempts = ATTEMPTS;
    options.cache_size = CACHED_ANSWERS;
}

fn translate(error: NetError) -> DnsError {
    if error.is_nx_domain() || error.is_no_records_found() {
        DnsError::NotFound
    } else {
        DnsError::Failed(error.to_string())
    }
}

#[async_trait]
impl Dns for NameServers {
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, DnsError> {
        let found = self.0.lookup_ip(host).await.map_err(translate)?;
        Ok(found.iter().take(MAX_RECORDS).collect())
    }

    async fn txt(&self, name: &str) -> Result<Vec<String>, DnsError> {
        // With a dot at the end the search list of the system is left alone.
        let found = self
            .0
            .txt_lookup(format!("{}.", name.trim_end_matches('.')))
            .await
            .map_err(translate)?;
        let texts = found.answers().iter().filter_map(|record| match &record.data {
            RData::TXT(txt) => Some(String::from_utf8_lossy(&txt.txt_data.concat()).into_owned()),
            _ => None,
        });
        Ok(texts.take(MAX_RECORDS).collect())
    }
}

/// A machine without a network: no name is known.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoDns;

#[async_trait]
impl Dns for NoDns {
    async fn addresses(&self, _: &str) -> Result<Vec<IpAddr>, DnsError> {
        Err(DnsError::NotFound)
    }

    async fn txt(&self, _: &str) -> Result<Vec<String>, DnsError> {
        Err(DnsError::NotFound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UdpSocket;

    /// A name server on loopback: TXT in two parts, one address, and no name that has `missing` in it.
    async fn name_server() -> NameServers {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut query = [0; 1500];
            loop {
                let (length, from) = socket.recv_from(&mut query).await.unwrap();
                socket.send_to(&answer(&query[..length]), from).await.unwrap();
            }
        });
        NameServers::at(&[address], Duration::from_secs(5)).unwrap()
    }

    fn answer(query: &[u8]) -> Vec<u8> {
        let name_end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 1;
        let question = &query[12..name_end + 4];
        let missing = question
            .windows(7)
            .any(|window| window.eq_ignore_ascii_case(b"missing"));
        let data: Option<Vec<u8>> = match question[question.len() - 3] {
            16 => Some(b"\x04did=\x11did:web:a.example".to_vec()),
            1 => Some(vec![203, 0, 113, 7]),
            _ => None,
        };
        let data = data.filter(|_| !missing);
        let mut answer = query[..2].to_vec();
        answer.extend([
            0x81,
            if missing { 0x83 } else { 0x80 },
            0,
            1,
            0,
            u8::from(data.is_some()),
            0,
            0,
            0,
            0,
        ]);
        answer.extend(question);
        if let Some(data) = data {
            // The name of the question, its type and class, 60 seconds.
            answer.extend([0xc0, 12]);
            answer.extend(&question[question.len() - 4..]);
            answer.extend([0, 0, 0, 60, 0, u8::try_from(data.len()).unwrap()]);
            answer.extend(data);
        }
        answer
    }

    #[tokio::test]
    async fn txt_parts_are_joined_and_addresses_found() {
        let dns = name_server().await;
        assert_eq!(
            dns.txt("_atproto.alice.example").await.unwrap(),
            ["did=did:web:a.example"]
        );
        assert_eq!(
            dns.addresses("alice.example").await.unwrap(),
            ["203.0.113.7".parse::<IpAddr>().unwrap()]
        );
    }

    #[tokio::test]
    async fn a_name_that_does_not_exist_is_told_from_a_failure() {
        let dns = name_server().await;
        assert!(matches!(
            dns.txt("_atproto.missing.example").await,
            Err(DnsError::NotFound)
        ));
        assert!(matches!(
            dns.addresses("missing.example").await,
            Err(DnsError::NotFound)
        ));
    }
}
