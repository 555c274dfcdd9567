//! What would break if these failed: a handle or a DID makes the server read its cloud's secrets.

use super::*;
use crate::client::dns::DnsError;
use async_trait::async_trait;
use axum::Router;
use axum::response::Redirect;
use axum::routing::get;

const TIMEOUT: Duration = Duration::from_secs(5);

/// Every name resolves to these.
struct Fixed(Vec<IpAddr>);

#[async_trait]
impl Dns for Fixed {
    async fn addresses(&self, _: &str) -> Result<Vec<IpAddr>, DnsError> {
        Ok(self.0.clone())
    }

    async fn txt(&self, _: &str) -> Result<Vec<String>, DnsError> {
        Err(DnsError::NotFound)
    }
}

const NOT_PUBLIC: [&str; 36] = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.255",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "ff02::1",
    "2001:db8::1",
    "2001::1",
    "2002:7f00:1::",
    "3fff:123::1",
];

#[test]
fn addresses_off_the_public_internet_are_known() {
    for text in NOT_PUBLIC {
        assert!(!is_public(text.parse().unwrap()), "{text}");
    }
    for text in [
        "1.1.1.1",
        "8.8.8.8",
        "100.63.255.255",
        "100.128.0.1",
        "172.15.0.1",
        "172.32.0.1",
        "192.0.1.1",
        "198.17.0.1",
        "223.255.255.255",
        "168.63.129.17",
        "2606:4700::1111",
        "2001:4860:4860::8888",
        "2a00::1",
    ] {
        assert!(is_public(text.parse().unwrap()), "{text}");
    }
}

#[tokio::test]
async fn literal_addresses_and_other_schemes_are_refused_before_anything_is_sent() {
    let fetcher = Fetcher::new(FetchPolicy::public(TIMEOUT), Arc::new(Fixed(Vec::new()))).unwrap();
    for address in NOT_PUBLIC {
        let host = if address.contains(':') {
            format!("[{address}]")
        } else {
            address.to_owned()
        };
        let refused = fetcher.get(&format!("https://{host}/"), 10).await;
        assert!(
            matches!(refused, Err(FetchError::Refused { .. })),
            "{address}: {refused:?}"
        );
    }
    for url in [
        "http://example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "https://user:pw@example.com/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://0177.0.0.1/",
        "https://127.1/",
        "https://%31%32%37.0.0.1/",
        "https://①②⑦.0.0.1/",
        "not a url",
        "https://",
    ] {
        let refused = fetcher.get(url, 10).await;
        assert!(
            matches!(refused, Err(FetchError::Refused { .. })),
            "{url}: {refused:?}"
        );
    }
}

#[tokio::test]
async fn a_name_that_resolves_to_a_private_address_is_not_connected_to() {
    for address in NOT_PUBLIC {
        let dns = Arc::new(Fixed(vec![address.parse().unwrap()]));
        let fetcher = Fetcher::new(FetchPolicy::public(TIMEOUT), dns).unwrap();
        match fetcher.get("https://innocent.example/", 10).await {
            Err(FetchError::Unreachable(reason)) => {
                assert!(reason.contains("no public address"), "{address}: {reason}");
            }
            other => panic!("{address}: {other:?}"),
        }
    }
}

/// A server on loopback; gives its port.
async fn serve(router: Router) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, router).await });
    port
}

#[tokio::test]
async fn in_development_a_local_server_answers_but_redirects_and_long_bodies_are_still_refused() {
    let router = Router::new()
        .route("/good", get(|| async { "0123456789" }))
        .route("/away", get(|| async { Redirect::temporary("/good") }))
        .route("/missing", get(|| async { axum::http::StatusCode::NOT_FOUND }))
        .route(
            "/endless",
            get(|| async {
                let chunk = futures_util::stream::repeat_with(|| {
                    Ok::<_, std::io::Error>(Bytes::from_static(b"more"))
                });
                axum::body::Body::from_stream(chunk)
            }),
        );
    let port = serve(router).await;
    let dns = Arc::new(Fixed(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]));
    let fetcher = Fetcher::new(FetchPolicy::local(TIMEOUT), dns).unwrap();
    let url = |path: &str| format!("http://any.name:{port}{path}");
    assert_eq!(fetcher.get(&url("/good"), 10).await.unwrap(), "0123456789");
    assert!(matches!(
        fetcher.get(&url("/good"), 9).await,
        Err(FetchError::TooLarge { limit: 9 })
    ));
    assert!(matches!(
        fetcher.get(&url("/endless"), 1000).await,
        Err(FetchError::TooLarge { .. })
    ));
    assert!(matches!(
        fetcher.get(&url("/away"), 10).await,
        Err(FetchError::Status(307))
    ));
    assert!(matches!(
        fetcher.get(&url("/missing"), 10).await,
        Err(FetchError::Status(404))
    ));
}
