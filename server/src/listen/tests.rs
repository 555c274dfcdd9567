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
fn the_last_address_that_a_trusted_proxy_names_is_the_clients() {
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
    let peer = Some(Peer(IpAddr::from([10, 0, 0, 1])));
    let mut headers = HeaderMap::new();
    headers.insert("x-forwarded-for", "1.1.1.1, 2.2.2.2:4711".parse().unwrap());
    assert_eq!(
        client_address(&vars(&[]), peer, &headers),
        Some(IpAddr::from([10, 0, 0, 1]))
    );
    let trusting = vars(&[("PDS_CLIENT_ADDRESS_HEADER", "X-Forwarded-For")]);
    assert_eq!(
        client_address(&trusting, peer, &headers),
        Some(IpAddr::from([2, 2, 2, 2]))
    );
    headers.append("x-forwarded-for", "::ffff:3.3.3.3".parse().unwrap());
    assert_eq!(
        client_address(&trusting, peer, &headers),
        Some(IpAddr::from([3, 3, 3, 3]))
    );
    headers.append("x-forwarded-for", "nonsense".parse().unwrap());
    assert_eq!(
        client_address(&trusting, peer, &headers),
        Some(IpAddr::from([10, 0, 0, 1]))
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
