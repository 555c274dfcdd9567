//! Invite codes beyond what a sign-up needs (for that see `accounts`): of accounts, and for moderators.

use std::time::Duration;

use axum::body::Body;
use axum::http::Method;
use serde_json::{Value, json};

use crate::testkit::{Answer, Options, Server, User, account, basic, user};

const MAKE: &str = "com.atproto.server.createInviteCodes";
const MINE: &str = "com.atproto.server.getAccountInviteCodes";
const ALL: &str = "com.atproto.admin.getInviteCodes";
const DISABLE: &str = "com.atproto.admin.disableInviteCodes";
const DAY: Duration = Duration::from_secs(24 * 3600);

async fn inviting(vars: &[(&'static str, &str)]) -> Server {
    let mut all = vec![("PDS_INVITE_REQUIRED", "true".to_owned())];
    all.extend(vars.iter().map(|(name, value)| (*name, (*value).to_owned())));
    Server::with(Options {
        vars: all,
        ..Options::default()
    })
    .await
}

async fn call(server: &Server, nsid: &str, input: Value) -> Answer {
    let authorization = basic();
    let headers = [
        ("authorization", authorization.as_str()),
        ("content-type", "application/json"),
    ];
    server
        .request(
            Method::POST,
            &format!("/xrpc/{nsid}"),
            &headers,
            input.to_string(),
        )
        .await
}

async fn list(server: &Server, query: &str) -> Answer {
    let authorization = basic();
    let headers = [("authorization", authorization.as_str())];
    server
        .request(
            Method::GET,
            &format!("/xrpc/{ALL}?{query}"),
            &headers,
            Body::empty(),
        )
        .await
}

async fn make(server: &Server, uses: u32) -> String {
    let made = call(server, MAKE, json!({"codeCount": 1, "useCount": uses}))
        .await
        .ok();
    made["codes"][0]["codes"][0].as_str().unwrap().to_owned()
}

async fn join(server: &Server, name: &str, code: &str) -> Answer {
    let mut input = account(name);
    input["inviteCode"] = json!(code);
    server.call("com.atproto.server.createAccount", &input).await
}

async fn joined(server: &Server, name: &str) -> User {
    let code = make(server, 1).await;
    user(&join(server, name, &code).await.ok())
}

async fn mine(server: &Server, user: &User, query: &str) -> Vec<Value> {
    let listed = server.query_as(&user.access, MINE, query).await.ok();
    listed["codes"].as_array().unwrap().clone()
}

fn codes(listed: &Value) -> Vec<String> {
    let codes = listed["codes"].as_array().unwrap().iter();
    codes
        .map(|code| code["code"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn the_administrator_makes_codes_for_many_and_accounts_see_theirs() {
    let server = inviting(&[]).await;
    let (alice, bobby) = (joined(&server, "alice").await, joined(&server, "bobby").await);
    let input = json!({"codeCount": 2, "useCount": 3, "forAccounts": [alice.did, bobby.did]});
    let made = call(&server, MAKE, input).await.ok();
    assert_eq!(made["codes"][0]["account"], json!(alice.did));
    assert_eq!(made["codes"][1]["codes"].as_array().unwrap().len(), 2);
    let codes = mine(&server, &alice, "").await;
    assert_eq!(codes.len(), 2, "an interval is not set, so none are made");
    let first = &codes[0];
    assert!(
        made["codes"][0]["codes"]
            .as_array()
            .unwrap()
            .contains(&first["code"])
    );
    for (field, value) in [
        ("available", json!(3)),
        ("disabled", json!(false)),
        ("forAccount", json!(alice.did)),
        ("createdBy", json!("admin")),
        ("uses", json!([])),
    ] {
        assert_eq!(first[field], value, "{field}");
    }
    let carol = user(&join(&server, "carol", first["code"].as_str().unwrap()).await.ok());
    let codes = mine(&server, &alice, "").await;
    let used: Vec<_> = codes.iter().filter(|code| code["uses"] != json!([])).collect();
    assert_eq!(used.len(), 1);
    assert_eq!(used[0]["uses"][0]["usedBy"], json!(carol.did));
    for input in [
        json!({"codeCount": 5001, "useCount": 1}),
        json!({"codeCount": 1, "useCount": 1, "forAccounts": ["nobody"]}),
        json!({"codeCount": 1}),
    ] {
        assert_eq!(
            call(&server, MAKE, input).await.error(),
            (400, "InvalidRequest".into())
        );
    }
    let answer = server.call(MAKE, &json!({"codeCount": 1, "useCount": 1})).await;
    assert_eq!(answer.error(), (401, "AuthenticationRequired".into()));
}

#[tokio::test]
async fn an_account_makes_codes_of_its_own_as_time_goes_by() {
    let server = inviting(&[("PDS_INVITE_INTERVAL", "604800000")]).await;
    let alice = joined(&server, "alice").await;
    // Each day has a session of its own.
    let later = async |days: u32| {
        server.clock.advance(DAY * days);
        server.log_in("alice").await
    };
    assert!(mine(&server, &alice, "").await.is_empty());
    let alice = later(7).await;
    let answer = mine(&server, &alice, "createAvailable=false").await;
    assert!(answer.is_empty(), "only if it is asked to");
    let first = mine(&server, &alice, "").await;
    assert_eq!(first.len(), 1);
    assert_eq!(
        (&first[0]["createdBy"], &first[0]["available"]),
        (&json!(alice.did), &json!(1))
    );
    assert_eq!(mine(&server, &alice, "").await, first, "once an interval");
    join(&server, "bobby", first[0]["code"].as_str().unwrap())
        .await
        .ok();
    assert_eq!(mine(&server, &alice, "").await.len(), 1);
    assert!(mine(&server, &alice, "includeUsed=false").await.is_empty());
    // What the administrator gives does not count.
    let input = json!({"codeCount": 3, "useCount": 1, "forAccounts": [alice.did]});
    call(&server, MAKE, input).await.ok();
    let alice = later(70).await;
    let all = mine(&server, &alice, "").await;
    assert_eq!(all.len(), 1 + 3 + 5, "five at most that nobody has used");
    assert_eq!(mine(&server, &alice, "").await.len(), 9);
    // Requests at once make no more than one after the other.
    let alice = later(7).await;
    let own = all
        .iter()
        .find(|code| code["createdBy"] == json!(alice.did) && code["uses"] == json!([]))
        .unwrap();
    join(&server, "carol", own["code"].as_str().unwrap()).await.ok();
    futures_util::future::join_all((0..6).map(|_| mine(&server, &alice, ""))).await;
    assert_eq!(mine(&server, &alice, "").await.len(), 10);
}

#[tokio::test]
async fn the_epoch_takes_an_accounts_earlier_life_away() {
    let now = engine::clock::Clock::now_micros(&engine::clock::SystemClock) / 1000;
    let epoch = (now + 14 * 24 * 3600 * 1000).to_string();
    let server = inviting(&[("PDS_INVITE_INTERVAL", "604800000"), ("PDS_INVITE_EPOCH", &epoch)]).await;
    joined(&server, "alice").await;
    server.clock.advance(DAY * 15);
    let alice = server.log_in("alice").await;
    let before = mine(&server, &alice, "").await.len();
    server.clock.advance(DAY * 7);
    let alice = server.log_in("alice").await;
    // The epoch lies a moment before two whole intervals, so the second one counts.
    assert_eq!((before, mine(&server, &alice, "").await.len()), (1, 2));
}

#[tokio::test]
async fn accounts_that_may_not_invite_make_codes_that_nobody_can_use() {
    let server = inviting(&[("PDS_INVITE_INTERVAL", "604800000")]).await;
    let alice = joined(&server, "alice").await;
    let switch = async |what: &str, did: &str| {
        let input = json!({"account": did, "note": "as a test"});
        let answer = call(&server, &format!("com.atproto.admin.{what}AccountInvites"), input).await;
        answer.status.as_u16()
    };
    assert_eq!(switch("disable", alice.did.as_str()).await, 200);
    assert_eq!(switch("disable", "did:plc:ewvi7nxzyoun6zhxrhs64oiz").await, 200);
    assert_eq!(switch("disable", "nobody").await, 400);
    server.clock.advance(DAY * 8);
    let alice = server.log_in("alice").await;
    assert!(mine(&server, &alice, "").await.is_empty());
    assert_eq!(
        server
            .count("SELECT count(*) FROM invite_code WHERE createdBy <> 'admin' AND disabled = 1")
            .await,
        1,
        "it was made, and disabled at once"
    );
    assert_eq!(switch("enable", alice.did.as_str()).await, 200);
    server.clock.advance(DAY * 7);
    let alice = server.log_in("alice").await;
    assert_eq!(mine(&server, &alice, "").await.len(), 1);
    let answer = server
        .call_as(
            &alice.access,
            "com.atproto.admin.disableAccountInvites",
            &json!({"account": alice.did}),
        )
        .await;
    assert_eq!(answer.status, 401, "{}", String::from_utf8_lossy(&answer.body));
}

#[tokio::test]
async fn only_an_active_account_with_its_own_password_sees_its_codes() {
    let server = inviting(&[]).await;
    let alice = joined(&server, "alice").await;
    let made = server
        .call_as(
            &alice.access,
            "com.atproto.server.createAppPassword",
            &json!({"name": "x"}),
        )
        .await
        .ok();
    let input = json!({"identifier": "alice.test", "password": made["password"]});
    let app = user(&server.call("com.atproto.server.createSession", &input).await.ok());
    let answer = server.query_as(&app.access, MINE, "").await;
    assert_eq!(answer.error(), (400, "InvalidToken".into()));
    let answer = server.query_as(&alice.access, MINE, "includeUsed=maybe").await;
    assert_eq!(answer.error(), (400, "InvalidRequest".into()));
    for (sql, error) in [
        (
            "UPDATE actor SET deactivatedAt = 'x' WHERE did = ?1",
            (400, "NotFound".to_owned()),
        ),
        (
            "UPDATE actor SET takedownRef = 'x' WHERE did = ?1",
            (401, "AccountTakedown".to_owned()),
        ),
    ] {
        server.sql(sql, &alice.did).await;
        assert_eq!(server.query_as(&alice.access, MINE, "").await.error(), error);
    }
}

#[tokio::test]
async fn all_codes_are_listed_in_pages_by_time_or_by_use() {
    let server = inviting(&[]).await;
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(make(&server, 3).await);
        server.clock.advance(Duration::from_millis(20));
    }
    for (name, code) in [("alice", &made[1]), ("bobby", &made[1]), ("carol", &made[3])] {
        join(&server, name, code).await.ok();
    }
    let mut newest = made.clone();
    newest.reverse();
    let whole = list(&server, "").await.ok();
    assert_eq!(codes(&whole), newest);
    for (sort, expected) in [("recent", Some(&newest)), ("usage", None)] {
        let (mut seen, mut cursor, mut used) = (Vec::new(), String::new(), Vec::new());
        loop {
            let page = list(&server, &format!("sort={sort}&limit=2&cursor={cursor}"))
                .await
                .ok();
            let Some(next) = page["cursor"].as_str() else {
                assert!(codes(&page).is_empty(), "the page behind the last is empty");
                break;
            };
            cursor = next.replace(':', "%3A");
            used.extend(
                page["codes"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|code| code["uses"].as_array().unwrap().len()),
            );
            seen.extend(codes(&page));
        }
        if let Some(expected) = expected {
            assert_eq!(&seen, expected);
        } else {
            assert_eq!(used, [2, 1, 0, 0, 0]);
            assert_eq!((&seen[0], &seen[1]), (&made[1], &made[3]));
        }
        seen.sort_unstable();
        let mut all = made.clone();
        all.sort_unstable();
        assert_eq!(seen, all, "{sort}: each code once");
    }
    for query in [
        "sort=name",
        "limit=0",
        "limit=501",
        "cursor=x",
        "cursor=1",
        "cursor=99999999999999::a",
    ] {
        let answer = list(&server, query).await;
        assert_eq!(answer.error(), (400, "InvalidRequest".into()), "{query}");
    }
    assert_eq!(server.query(ALL, "").await.error(), (401, "MissingJwt".into()));
    assert_eq!(
        server
            .request(
                Method::GET,
                &format!("/xrpc/{ALL}"),
                &[("authorization", "Basic YWRtaW46eA==")],
                Body::empty()
            )
            .await
            .status,
        401
    );
}

#[tokio::test]
async fn disabled_codes_let_nobody_in() {
    let server = inviting(&[]).await;
    let alice = joined(&server, "alice").await;
    let (one, two) = (make(&server, 1).await, make(&server, 1).await);
    let input = json!({"codeCount": 2, "useCount": 1, "forAccounts": [alice.did]});
    let of_alice = call(&server, MAKE, input).await.ok();
    let of_alice = of_alice["codes"][0]["codes"][0].as_str().unwrap().to_owned();
    assert_eq!(
        call(&server, DISABLE, json!({"accounts": [alice.did, "admin"]}))
            .await
            .error(),
        (400, "InvalidRequest".into())
    );
    assert_eq!(mine(&server, &alice, "").await.len(), 2);
    let answer = call(
        &server,
        DISABLE,
        json!({"codes": [one, "no-such-code"], "accounts": [alice.did]}),
    )
    .await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 0));
    assert_eq!(call(&server, DISABLE, json!({})).await.status, 200);
    assert!(mine(&server, &alice, "").await.is_empty());
    for code in [&one, &of_alice] {
        assert_eq!(
            join(&server, "bobby", code).await.error(),
            (400, "InvalidInviteCode".into())
        );
    }
    join(&server, "bobby", &two).await.ok();
    let all = list(&server, "").await.ok();
    let disabled = all["codes"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|code| code["disabled"] == true);
    assert_eq!(disabled.count(), 3, "moderators see them");
}
