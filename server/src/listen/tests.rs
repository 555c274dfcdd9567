use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PATIENCE: Duration = Duration::from_secs(20);

fn limits() -> Limits {
    Limits {
        connections: 3,
        per_address: 2,
        idle: Duration::from_secs(10),
        write_stall: Duration::from_secs(10),
    }
}

struct Listening {
    address: SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

async fn listening(limits: Limits) -> Listening {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(serve(listener, Gate::default(), limits, stop.clone()));
    Listening { address, stop, task }
}

/// What comes until the server closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let reading = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut text)).await;
    // A reset is an end, too.
    let _end = reading.expect("the server does not close");
    String::from_utf8(text).unwrap()
}

async fn live(stream: &mut TcpStream) -> bool {
    stream
        .write_all(b"GET /_health/live HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    // The body is an object, and no header holds a brace.
    while answer.last() != Some(&b'}') {
        let read = tokio::time::timeout(PATIENCE, stream.read_buf(&mut answer)).await;
        if read.expect("the server does not answer").unwrap_or(0) == 0 {
            return false;
        }
    }
    answer.starts_with(b"HTTP/1.1 200")
}

#[test]
fn the_address_that_the_outermost_trusted_proxy_names_is_the_clients() {
    let vars = |more: &[(&str, &str)]| {
        let hex = "1".repeat(64);
        let secrets = [
            ("PDS_JWT_SECRET", "a secret of many letters"),
            ("PDS_ADMIN_PASSWORD", "another one entirely"),
            ("PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX", &hex),
            ("PDS_DATA_DIRECTORY", "/nowhere"),
        ];
        let all = secrets
            .iter()
            .chain(more)
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::from_vars(all).unwrap().0
    };
    let client = |vars: &Config, peer: &str, lines: &[&str]| {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("x-forwarded-for", line.parse().unwrap());
        }
        let peer = Some(Peer(peer.parse().unwrap()));
        client_address(vars, peer, &headers).unwrap().to_string()
    };
    let default = vars(&[]);
    let header = vars(&[("PDS_CLIENT_ADDRESS_HEADER", "X-Forwarded-For")]);
    let these = vars(&[("PDS_TRUSTED_PROXIES", "198.51.100.0/24,100.64.0.0/10")]);
    let none = vars(&[("PDS_TRUSTED_PROXIES", "none")]);
    let both = vars(&[
        ("PDS_CLIENT_ADDRESS_HEADER", "x-forwarded-for"),
        ("PDS_TRUSTED_PROXIES", "198.51.100.0/24"),
    ]);
    for (config, peer, lines, wanted) in [
        // Private networks by default, as many in a row as there are.
        (&default, "10.0.0.1", &["1.1.1.1, 2.2.2.2:4711"][..], "2.2.2.2"),
        (
            &default,
            "127.0.0.1",
            &["1.1.1.1", "2.2.2.2, 10.0.0.7, 192.168.1.1"],
            "2.2.2.2",
        ),
        (&default, "fd00::1", &["2001:db8::1"], "2001:db8::1"),
        (&default, "203.0.113.9", &["1.1.1.1"], "203.0.113.9"),
        (&default, "10.0.0.1", &["1.1.1.1, nonsense"], "10.0.0.1"),
        (&default, "10.0.0.1", &["1.1.1.1, nonsense, 10.0.0.2"], "10.0.0.2"),
        (&default, "10.0.0.1", &[], "10.0.0.1"),
        // The header alone: the last entry, whoever connects.
        (&header, "203.0.113.9", &["1.1.1.1, 2.2.2.2"], "2.2.2.2"),
        (&header, "10.0.0.1", &["1.1.1.1, 10.0.0.2"], "10.0.0.2"),
        (&header, "10.0.0.1", &["1.1.1.1", "::ffff:3.3.3.3"], "3.3.3.3"),
        (&header, "10.0.0.1", &["1.1.1.1", "nonsense"], "10.0.0.1"),
        // Exactly these.
        (&these, "100.100.0.1", &["1.1.1.1, 198.51.100.7"], "1.1.1.1"),
        (&these, "10.0.0.1", &["1.1.1.1"], "10.0.0.1"),
        (&these, "198.51.100.7", &["1.1.1.1, 2.2.2.2"], "2.2.2.2"),
        (&none, "127.0.0.1", &["1.1.1.1"], "127.0.0.1"),
        (&both, "203.0.113.9", &["1.1.1.1"], "203.0.113.9"),
        (&both, "198.51.100.7", &["1.1.1.1"], "1.1.1.1"),
    ] {
        assert_eq!(client(config, peer, lines), wanted, "{peer} {lines:?}");
    }
    let long = vec!["10.0.0.2"; 50].join(",");
    assert_eq!(
        client(&default, "10.0.0.1", &["1.1.1.1", &long]),
        "10.0.0.2",
        "not for ever"
    );
}

#[test]
fn places_are_counted_in_all_and_by_address_and_given_back() {
    let places = Places::new(limits());
    let address = |last| IpAddr::from([127, 0, 0, last]);
    let first = places.take(address(1)).unwrap();
    let _second = places.take(address(1)).unwrap();
    assert!(places.take(address(1)).is_none());
    let _third = places.take(address(2)).unwrap();
    assert!(places.take(address(3)).is_none());
    drop(first);
    let _fourth = places.take(address(3)).unwrap();
    assert!(places.take(address(1)).is_none());
    assert_eq!(places.0.taken.lock().of.len(), 3);
}

#[tokio::test]
async fn one_connection_too_many_is_closed_and_those_that_are_there_go_on() {
    let server = listening(limits()).await;
    let mut first = TcpStream::connect(server.address).await.unwrap();
    let mut second = TcpStream::connect(server.address).await.unwrap();
    assert!(live(&mut first).await && live(&mut second).await);
    let mut third = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(rest(&mut third).await, "");
    assert!(live(&mut first).await);
}

#[tokio::test]
async fn who_does_not_finish_a_head_is_closed() {
    let quick = Limits {
        idle: Duration::from_millis(200),
        ..limits()
    };
    let server = listening(quick).await;
    for start in ["", "P", "GET / HTTP/1.1\r\nhost:"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(start.as_bytes()).await.unwrap();
        rest(&mut stream).await;
    }
}

#[tokio::test]
async fn stopping_closes_idle_connections_and_ends() {
    let server = listening(limits()).await;
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    assert!(live(&mut idle).await);
    server.stop.cancel();
    rest(&mut idle).await;
    tokio::time::timeout(PATIENCE, server.task)
        .await
        .unwrap()
        .unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}
