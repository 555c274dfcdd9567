use axum::body::Body;
use axum::http::{Method, Request};
use engine::clock::SystemClock;
use serde_json::json;

use super::*;
use crate::config::RedisSettings;
use crate::listen::Peer;
use crate::testkit::{Answer, Options, Server};

const RESET: &str = "com.atproto.server.resetPassword";
const DESCRIBE: &str = "/xrpc/com.atproto.server.describeServer";

async fn server(extra: &[(&'static str, &str)]) -> Server {
    let mut vars = vec![("PDS_RATE_LIMITS_ENABLED", "true".to_owned())];
    vars.extend(extra.iter().map(|(name, value)| (*name, (*value).to_owned())));
    Server::with(Options {
        vars,
        ..Options::default()
    })
    .await
}

fn meter(server: &Server) -> Arc<Meter> {
    let limits = server.app.limits.as_ref().unwrap();
    limits.meter(None, &HeaderMap::new()).unwrap()
}

async fn get_from(server: &Server, path: &str, peer: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder().method(Method::GET).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut request = request.body(Body::empty()).unwrap();
    request.extensions_mut().insert(Peer(peer.parse().unwrap()));
    server.send(request).await
}

fn number(answer: &Answer, header: &str) -> Option<u64> {
    answer.header(header).map(|text| text.parse().unwrap())
}

#[tokio::test]
async fn statement_9_headers_have_no_prefix_and_the_reset_is_a_time() {
    let server = server(&[]).await;
    let answer = server.get(DESCRIBE).await;
    assert_eq!(answer.status, 200);
    assert_eq!(number(&answer, "ratelimit-limit"), Some(3000));
    assert_eq!(number(&answer, "ratelimit-remaining"), Some(2999));
    assert_eq!(answer.header("ratelimit-policy"), Some("3000;w=300"));
    let reset = number(&answer, "ratelimit-reset").unwrap();
    let now = server.app.now_seconds();
    assert!(reset > now && reset <= now + 301, "{reset} {now}");
    let refused = server.get("/xrpc/com.atproto.server.getSession").await;
    assert_eq!(refused.status, 401);
    assert_eq!(
        number(&refused, "ratelimit-remaining"),
        Some(2998),
        "errors tell it, too"
    );
}

#[tokio::test]
async fn statement_10_pages_of_other_origins_may_read_the_headers() {
    for limited in [true, false] {
        let server = if limited {
            server(&[]).await
        } else {
            Server::start().await
        };
        let answer = server.get(DESCRIBE).await;
        let exposed = answer.header("access-control-expose-headers").unwrap().to_owned();
        for name in [
            "RateLimit-Limit",
            "RateLimit-Reset",
            "RateLimit-Remaining",
            "RateLimit-Policy",
            "DPoP-Nonce",
            "WWW-Authenticate",
        ] {
            assert!(exposed.contains(name), "{exposed}");
        }
        assert_eq!(answer.header("ratelimit-limit").is_some(), limited);
    }
}

#[tokio::test]
async fn a_methods_bucket_counts_good_requests_and_refuses_with_429_until_its_window_ends() {
    let server = server(&[]).await;
    for _ in 0..3 {
        let bad = server.call(RESET, &json!({ "token": 7 })).await;
        assert_eq!(
            (bad.status.as_u16(), number(&bad, "ratelimit-limit")),
            (400, Some(3000))
        );
    }
    let input = json!({ "token": "AAAAA-BBBBB", "password": "new horse" });
    for left in (0..50).rev() {
        let answer = server.call(RESET, &input).await;
        assert_eq!(answer.error(), (400, "InvalidToken".to_owned()));
        assert_eq!(
            number(&answer, "ratelimit-limit"),
            Some(50),
            "the tightest bucket is told"
        );
        assert_eq!(number(&answer, "ratelimit-remaining"), Some(left));
    }
    let refused = server.call(RESET, &input).await;
    assert_eq!(refused.error(), (429, "RateLimitExceeded".to_owned()));
    assert_eq!(refused.json()["message"], "Rate Limit Exceeded");
    assert_eq!(number(&refused, "ratelimit-remaining"), Some(0));
    assert_eq!(refused.header("ratelimit-policy"), Some("50;w=300"));
    let after = number(&refused, "retry-after").unwrap();
    assert!((1..=300).contains(&after), "{after}");
    assert_eq!(server.get(DESCRIBE).await.status, 200, "other methods go on");
    server.clock.advance(Duration::from_secs(after + 1));
    assert_eq!(server.call(RESET, &input).await.status, 400);
}

#[tokio::test]
async fn attempts_to_log_in_are_counted_by_identifier_and_address() {
    let server = server(&[]).await;
    server.sign_up("alice").await;
    server.sign_up("bob").await;
    for _ in 0..30 {
        meter(&server).login("alice.test").await.unwrap();
    }
    let log_in = async |name: &str| {
        let input = json!({ "identifier": name, "password": crate::testkit::PASSWORD });
        server.call("com.atproto.server.createSession", &input).await
    };
    let refused = log_in("alice.test").await;
    assert_eq!(refused.error(), (429, "RateLimitExceeded".to_owned()));
    assert_eq!(refused.header("ratelimit-policy"), Some("30;w=300"));
    assert_eq!(log_in("bob.test").await.status, 200);
    let limits = server.app.limits.as_ref().unwrap();
    let elsewhere = limits
        .meter(Some("192.0.2.7".parse().unwrap()), &HeaderMap::new())
        .unwrap();
    elsewhere.login("alice.test").await.unwrap();
}

#[tokio::test]
async fn writes_cost_points_of_their_account_in_two_windows() {
    let server = server(&[]).await;
    let (alice, bob) = (server.sign_up("alice").await, server.sign_up("bob").await);
    let create = async |user: &crate::testkit::User| {
        let input = json!({"repo": user.did, "collection": crate::testkit::NOTE, "record": {"text": "x"}});
        server
            .call_as(&user.access, "com.atproto.repo.createRecord", &input)
            .await
    };
    let answer = create(&alice).await;
    assert_eq!(answer.status, 200);
    // 3000 of the global bucket, of which a few are used, are fewer than what is left of 5000.
    assert_eq!(number(&answer, "ratelimit-limit"), Some(3000));
    let meter = meter(&server);
    meter
        .by_account(&buckets::WRITES, alice.did.as_str(), 4990)
        .await
        .unwrap();
    let batch = |kinds: &[&str]| {
        let writes: Vec<_> = kinds
            .iter()
            .map(|kind| {
                json!({
                    "$type": format!("com.atproto.repo.applyWrites#{kind}"),
                    "collection": crate::testkit::NOTE,
                    "rkey": "same",
                    "value": {"text": "x"},
                })
            })
            .collect();
        json!({ "repo": alice.did, "writes": writes })
    };
    let one = server
        .call_as(&alice.access, "com.atproto.repo.applyWrites", &batch(&["create"]))
        .await;
    assert_eq!(
        (one.status.as_u16(), number(&one, "ratelimit-remaining")),
        (200, Some(4))
    );
    let two = server
        .call_as(
            &alice.access,
            "com.atproto.repo.applyWrites",
            &batch(&["update", "delete"]),
        )
        .await;
    assert_eq!(number(&two, "ratelimit-remaining"), Some(1));
    let refused = create(&alice).await;
    assert_eq!(refused.error(), (429, "RateLimitExceeded".to_owned()));
    assert_eq!(refused.header("ratelimit-policy"), Some("5000;w=3600"));
    assert_eq!(create(&bob).await.status, 200);
    let read = format!("repo={}&collection={}", alice.did, crate::testkit::NOTE);
    assert_eq!(
        server.query("com.atproto.repo.listRecords", &read).await.status,
        200
    );
    server.clock.advance(Duration::from_secs(3601));
    let meter = self::meter(&server);
    assert_eq!(create(&alice).await.status, 200);
    let day = meter
        .by_account(&buckets::WRITES[1..], alice.did.as_str(), 35_000)
        .await;
    assert!(day.unwrap_err().retry_after > 3600);
}

#[tokio::test]
async fn the_global_bucket_counts_what_a_client_asks_before_anything_of_it_is_read() {
    let server = server(&[]).await;
    for _ in 0..3000 {
        meter(&server).global().await.unwrap();
    }
    for path in [
        DESCRIBE,
        "/xrpc/app.bsky.feed.getTimeline",
        "/xrpc/no%20method",
        "/.well-known/atproto-did",
        "/xrpc/com.atproto.repo.getRecord?repo=&bad",
    ] {
        assert_eq!(server.get(path).await.error().0, 429, "{path}");
    }
    for path in [
        "/_health/live",
        "/",
        "/xrpc/com.atproto.sync.getRepo?did=did:plc:none",
    ] {
        assert_ne!(server.get(path).await.status, 429, "{path}");
    }
    let export = server
        .get("/xrpc/com.atproto.sync.getRepo?did=did:plc:none")
        .await;
    assert_eq!(number(&export, "ratelimit-limit"), Some(6000));
    assert_eq!(get_from(&server, DESCRIBE, "192.0.2.7", &[]).await.status, 200);
}

#[tokio::test]
async fn a_key_or_a_range_lets_pass_and_nothing_else_does() {
    let server = server(&[
        ("PDS_RATE_LIMIT_BYPASS_KEY", "open sesame"),
        ("PDS_RATE_LIMIT_BYPASS_IPS", "192.0.2.0/24,2001:db8::1"),
    ])
    .await;
    let key = ("x-ratelimit-bypass", "open sesame");
    for (peer, headers, limited) in [
        ("203.0.113.1", vec![], true),
        ("203.0.113.1", vec![("x-ratelimit-bypass", "open sesam")], true),
        ("203.0.113.1", vec![key], false),
        ("192.0.2.200", vec![], false),
        ("192.0.3.1", vec![], true),
        ("2001:db8::1", vec![], false),
        ("2001:db8::2", vec![], true),
        // Its word is not taken by a stranger.
        ("203.0.113.1", vec![("x-forwarded-for", "192.0.2.1")], true),
        ("127.0.0.1", vec![("x-forwarded-for", "192.0.2.1")], false),
    ] {
        let answer = get_from(&server, DESCRIBE, peer, &headers).await;
        assert_eq!(
            answer.header("ratelimit-limit").is_some(),
            limited,
            "{peer} {headers:?}"
        );
    }
}

#[tokio::test]
async fn a_client_is_an_ipv4_address_or_an_ipv6_network() {
    let limits = RateLimits::new(
        &RateLimitSettings {
            enabled: true,
            ..RateLimitSettings::default()
        },
        Arc::new(SystemClock),
    );
    let limits = limits.unwrap().unwrap();
    let used = async |address: &str| {
        let meter = limits
            .meter(Some(address.parse().unwrap()), &HeaderMap::new())
            .unwrap();
        meter.global().await.unwrap();
        let count = meter.tightest.lock().unwrap();
        count.used
    };
    assert_eq!(used("192.0.2.1").await, 1);
    assert_eq!(used("::ffff:192.0.2.1").await, 2);
    assert_eq!(used("192.0.2.2").await, 1);
    assert_eq!(used("2001:db8::1").await, 1);
    assert_eq!(used("2001:db8::ffff:1").await, 2);
    assert_eq!(used("2001:db8:0:1::1").await, 1);
}

#[tokio::test]
async fn memory_counts_while_redis_is_away() {
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = gone.local_addr().unwrap().port();
    drop(gone);
    let settings = RateLimitSettings {
        enabled: true,
        redis: Some(RedisSettings {
            host: "127.0.0.1".to_owned(),
            port,
            password: None,
        }),
        ..RateLimitSettings::default()
    };
    let limits = RateLimits::new(&settings, Arc::new(SystemClock))
        .unwrap()
        .unwrap();
    let meter = limits.meter(None, &HeaderMap::new()).unwrap();
    for _ in 0..30 {
        meter.login("alice.test").await.unwrap();
    }
    assert!(meter.login("alice.test").await.is_err());
}

#[tokio::test]
async fn a_redis_that_hangs_costs_a_bounded_wait_and_then_none() {
    // It accepts, and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings = RateLimitSettings {
        enabled: true,
        redis: Some(RedisSettings {
            host: "127.0.0.1".to_owned(),
            port: silent.local_addr().unwrap().port(),
            password: Some(Secret::new("x".to_owned())),
        }),
        ..RateLimitSettings::default()
    };
    let limits = RateLimits::new(&settings, Arc::new(SystemClock))
        .unwrap()
        .unwrap();
    let meter = limits.meter(None, &HeaderMap::new()).unwrap();
    meter.global().await.unwrap();
    let began = std::time::Instant::now();
    for _ in 0..100 {
        meter.global().await.unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(10), "each request waits");
    assert_eq!(meter.tightest.lock().unwrap().used, 101);
}
