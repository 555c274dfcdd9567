//! `com.atproto.repo.*`: records and blobs.

use axum::body::Body;
use axum::http::Method;
use engine::repo::Cid;
use serde_json::{Value, json};

use crate::testkit::{NOTE, Server, User, basic};

const CREATE: &str = "com.atproto.repo.createRecord";
const PUT: &str = "com.atproto.repo.putRecord";
const DELETE: &str = "com.atproto.repo.deleteRecord";
const APPLY: &str = "com.atproto.repo.applyWrites";
const GET: &str = "com.atproto.repo.getRecord";
const LIST: &str = "com.atproto.repo.listRecords";

fn invalid() -> (u16, String) {
    (400, "InvalidRequest".to_owned())
}

async fn head(server: &Server, user: &User) -> Value {
    let query = format!("did={}", user.did);
    server
        .query("com.atproto.sync.getLatestCommit", &query)
        .await
        .ok()
}

fn rkey(uri: &Value) -> &str {
    uri.as_str().unwrap().rsplit('/').next().unwrap()
}

#[tokio::test]
async fn a_created_record_can_be_read_as_soon_as_it_is_answered() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let input = json!({"repo": "Alice.test", "collection": NOTE, "record": {"text": "hi", "n": 1.0, "big": -9007199254740991i64}});
    let created = server.call_as(&alice.access, CREATE, &input).await.ok();
    assert_eq!(created["validationStatus"], "unknown");
    let uri = created["uri"].as_str().unwrap();
    assert!(uri.starts_with(&format!("at://{}/{NOTE}/", alice.did)), "{uri}");
    assert_eq!(head(&server, &alice).await, created["commit"]);
    for repo in ["alice.test", alice.did.as_str()] {
        let query = format!("repo={repo}&collection={NOTE}&rkey={}", rkey(&created["uri"]));
        let found = server.query(GET, &query).await.ok();
        assert_eq!((&found["uri"], &found["cid"]), (&created["uri"], &created["cid"]));
        assert_eq!(
            found["value"],
            json!({"$type": NOTE, "text": "hi", "n": 1, "big": -9007199254740991i64})
        );
        let with_cid = format!("{query}&cid={}", created["cid"].as_str().unwrap());
        server.query(GET, &with_cid).await.ok();
        let other = format!("{query}&cid={}", created["commit"]["cid"].as_str().unwrap());
        assert_eq!(
            server.query(GET, &other).await.error(),
            (400, "RecordNotFound".into())
        );
    }
    let repo = server.repo(&alice.did).await;
    assert_eq!(repo.records.len(), 1);
}

#[tokio::test]
async fn records_and_names_that_cannot_be_are_refused_and_change_nothing() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let before = head(&server, &alice).await;
    let with = |field: &str, value: Value| {
        let mut input = json!({"repo": alice.did, "collection": NOTE, "record": {"text": "hi"}});
        input[field] = value;
        input
    };
    let deep = (0..200).fold(json!(1), |inner, _| json!([inner]));
    for input in [
        with("record", json!("text")),
        with("record", json!([])),
        with("record", Value::Null),
        with("record", json!({"n": 1.5})),
        with("record", json!({"n": 1e300})),
        with("record", json!({"$type": "app.bsky.feed.like"})),
        with("record", json!({"link": {"$link": "nope"}})),
        with("record", json!({"bytes": {"$bytes": "%%%"}})),
        with(
            "record",
            json!({"avatar": {"cid": "bafkreieq5jui4j25lacwomsqgjeswwl3y5zcdrresptwgmfylxo2depppq", "mimeType": "image/png"}}),
        ),
        with("validate", json!(true)),
        with("validate", json!("yes")),
        with("collection", json!("nope")),
        with("rkey", json!("a/b")),
        with("rkey", json!("..")),
        with("rkey", json!("x".repeat(513))),
        with("rkey", json!("")),
        with("swapCommit", json!("nope")),
        with("repo", json!("not a name")),
        json!({"repo": alice.did, "collection": NOTE}),
    ] {
        let answer = server.call_as(&alice.access, CREATE, &input).await;
        assert_eq!(answer.error(), invalid(), "{input}");
    }
    let answer = server
        .call_as(&alice.access, CREATE, &with("record", json!({"a": deep})))
        .await;
    assert_eq!(answer.status, 400, "too deep");
    assert_eq!(head(&server, &alice).await, before);
}

#[tokio::test]
async fn the_deepest_record_that_is_taken_can_be_read_and_exported() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let mut taken = 0;
    for depth in 50..130 {
        let deep = (0..depth).fold(json!(1), |inner, _| json!({"a": inner}));
        let input = json!({"repo": alice.did, "collection": NOTE, "rkey": "deep", "record": {"a": deep}});
        let answer = server.call_as(&alice.access, PUT, &input).await;
        if answer.status == 400 {
            break;
        }
        answer.ok();
        let query = format!("repo={}&collection={NOTE}&rkey=deep", alice.did);
        assert_eq!(server.query(GET, &query).await.ok()["value"]["a"], deep);
        taken = depth;
    }
    assert!(taken >= 50);
    server.repo(&alice.did).await;
}

#[tokio::test]
async fn only_the_owner_of_an_active_account_writes() {
    let server = Server::start().await;
    let (alice, bob) = (server.sign_up("alice").await, server.sign_up("bob").await);
    let input =
        |repo: &str| json!({"repo": repo, "collection": NOTE, "rkey": "x", "record": {}, "writes": []});
    for nsid in [CREATE, PUT, DELETE, APPLY] {
        let answer = server
            .call_as(&alice.access, nsid, &input(bob.did.as_str()))
            .await;
        assert_eq!(answer.error(), (401, "AuthenticationRequired".into()), "{nsid}");
        let answer = server.call_as(&alice.access, nsid, &input("nobody.test")).await;
        assert_eq!(answer.error(), (403, "AccountNotFound".into()), "{nsid}");
        let answer = server.call_as(&alice.refresh, nsid, &input("alice.test")).await;
        assert_eq!(answer.error(), (400, "InvalidToken".into()), "{nsid}");
    }
    server
        .sql("UPDATE actor SET deactivatedAt = 'x' WHERE did = ?1", &alice.did)
        .await;
    for nsid in [CREATE, PUT, DELETE, APPLY] {
        let answer = server.call_as(&alice.access, nsid, &input("alice.test")).await;
        assert_eq!(answer.error(), (401, "AccountDeactivated".into()), "{nsid}");
    }
    assert_eq!(
        server.upload(&alice, "text/plain", "hi").await.status,
        200,
        "a migration may upload"
    );
    server
        .sql("UPDATE actor SET takedownRef = 'x' WHERE did = ?1", &alice.did)
        .await;
    for nsid in [CREATE, PUT, DELETE, APPLY] {
        let answer = server.call_as(&alice.access, nsid, &input("alice.test")).await;
        assert_eq!(answer.error(), (401, "AccountTakedown".into()), "{nsid}");
    }
    assert_eq!(
        server.upload(&alice, "text/plain", "hi").await.error(),
        (401, "AccountTakedown".into())
    );
}

#[tokio::test]
async fn a_put_that_changes_nothing_is_no_commit_whatever_the_swaps_say() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let mut input = json!({"repo": alice.did, "collection": NOTE, "rkey": "one", "record": {"text": "a"}});
    let first = server.call_as(&alice.access, PUT, &input).await.ok();
    let again = server.call_as(&alice.access, PUT, &input).await.ok();
    assert_eq!((&again["uri"], &again["cid"]), (&first["uri"], &first["cid"]));
    assert!(again.get("commit").is_none());
    let other = first["commit"]["cid"].clone();
    input["swapRecord"] = Value::Null;
    server.call_as(&alice.access, PUT, &input).await.ok();
    input["swapRecord"] = other;
    server.call_as(&alice.access, PUT, &input).await.ok();
    input["swapCommit"] = first["cid"].clone();
    server.call_as(&alice.access, PUT, &input).await.ok();
    assert_eq!(head(&server, &alice).await, first["commit"]);
    input["validate"] = json!(false);
    let unchecked = server.call_as(&alice.access, PUT, &input).await.ok();
    assert!(unchecked.get("validationStatus").is_none());
}

#[tokio::test]
async fn swaps_are_kept_and_say_what_is_there() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let first = server.post(&alice, "one").await;
    let put = |text: &str, more: Value| {
        let mut input = json!({"repo": alice.did, "collection": NOTE, "rkey": "k", "record": {"text": text}});
        input
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        input
    };
    let swap = || (400, "InvalidSwap".to_owned());
    let (record, commit) = (first["cid"].clone(), first["commit"]["cid"].clone());
    // A CID where nothing is.
    let answer = server
        .call_as(&alice.access, PUT, &put("a", json!({"swapRecord": record})))
        .await;
    assert_eq!(answer.error(), swap());
    assert!(answer.json()["message"].as_str().unwrap().ends_with("null"));
    // The wrong and the right head.
    let answer = server
        .call_as(&alice.access, PUT, &put("a", json!({"swapCommit": record})))
        .await;
    assert_eq!(answer.error(), swap());
    assert!(
        answer.json()["message"]
            .as_str()
            .unwrap()
            .contains(commit.as_str().unwrap())
    );
    let made = server
        .call_as(
            &alice.access,
            PUT,
            &put("a", json!({"swapCommit": commit, "swapRecord": null})),
        )
        .await
        .ok();
    // `null` where something is.
    let answer = server
        .call_as(&alice.access, PUT, &put("b", json!({"swapRecord": null})))
        .await;
    assert_eq!(answer.error(), swap());
    assert!(
        answer.json()["message"]
            .as_str()
            .unwrap()
            .contains(made["cid"].as_str().unwrap())
    );
    server
        .call_as(&alice.access, PUT, &put("b", json!({"swapRecord": made["cid"]})))
        .await
        .ok();
    // The head is asked before the record, on every method.
    let stale =
        json!({"repo": alice.did, "collection": NOTE, "rkey": "k", "record": {}, "swapCommit": commit});
    assert_eq!(
        server.call_as(&alice.access, CREATE, &stale).await.error(),
        swap()
    );
    assert_eq!(
        server.call_as(&alice.access, DELETE, &stale).await.error(),
        swap()
    );
    let writes = json!({"repo": alice.did, "writes": [], "swapCommit": commit});
    assert_eq!(
        server.call_as(&alice.access, APPLY, &writes).await.error(),
        swap()
    );
    let input = json!({"repo": alice.did, "collection": NOTE, "rkey": "k", "swapRecord": made["cid"]});
    assert_eq!(
        server.call_as(&alice.access, DELETE, &input).await.error(),
        swap()
    );
}

#[tokio::test]
async fn deleting_what_is_not_there_is_no_commit() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let post = server.post(&alice, "one").await;
    let mut input = json!({"repo": alice.did, "collection": NOTE, "rkey": rkey(&post["uri"])});
    let deleted = server.call_as(&alice.access, DELETE, &input).await.ok();
    assert_eq!(head(&server, &alice).await, deleted["commit"]);
    let again = server.call_as(&alice.access, DELETE, &input).await.ok();
    assert_eq!(again, json!({}));
    input["swapCommit"] = post["cid"].clone();
    input["swapRecord"] = post["cid"].clone();
    assert_eq!(
        server.call_as(&alice.access, DELETE, &input).await.ok(),
        json!({})
    );
    let query = format!("repo={}&collection={NOTE}&rkey={}", alice.did, rkey(&post["uri"]));
    assert_eq!(
        server.query(GET, &query).await.error(),
        (400, "RecordNotFound".into())
    );
}

#[tokio::test]
async fn creating_over_a_record_is_refused_by_name() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let input = json!({"repo": alice.did, "collection": NOTE, "rkey": "one", "record": {"text": "a"}});
    server.call_as(&alice.access, CREATE, &input).await.ok();
    let before = head(&server, &alice).await;
    assert_eq!(
        server.call_as(&alice.access, CREATE, &input).await.error(),
        invalid()
    );
    assert_eq!(head(&server, &alice).await, before);
}

#[tokio::test]
async fn a_batch_is_one_commit_or_nothing() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let write = |kind: &str, rkey: &str, text: &str| json!({"$type": format!("{APPLY}#{kind}"), "collection": NOTE, "rkey": rkey, "value": {"text": text}});
    let apply = |writes: Vec<Value>| json!({"repo": alice.did, "writes": writes});
    let made = server
        .call_as(
            &alice.access,
            APPLY,
            &apply(vec![write("create", "a", "1"), write("create", "b", "2")]),
        )
        .await
        .ok();
    assert_eq!(
        made["results"][0]["$type"],
        "com.atproto.repo.applyWrites#createResult"
    );
    assert_eq!(made["results"][1]["uri"], format!("at://{}/{NOTE}/b", alice.did));
    assert_eq!(head(&server, &alice).await, made["commit"]);
    let mixed = server
        .call_as(
            &alice.access,
            APPLY,
            &apply(vec![
                write("delete", "b", ""),
                write("update", "a", "3"),
                write("create", "c", "4"),
            ]),
        )
        .await
        .ok();
    let kinds: Vec<_> = mixed["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| rkey_of(&r["$type"]))
        .collect();
    assert_eq!(kinds, ["deleteResult", "updateResult", "createResult"]);
    assert_eq!(
        mixed["results"][0],
        json!({"$type": "com.atproto.repo.applyWrites#deleteResult"})
    );
    let before = head(&server, &alice).await;
    for writes in [
        vec![write("create", "d", "5"), write("create", "a", "6")],
        vec![write("create", "d", "5"), write("update", "nope", "6")],
        vec![write("create", "d", "5"), write("delete", "nope", "")],
        vec![write("create", "d", "5"), write("update", "d", "6")],
        vec![write("create", "d", "5"), json!({"$type": "x#y"})],
        vec![write("create", "d", "5"), json!({"collection": NOTE})],
        (0..201).map(|n| write("create", &format!("n{n}"), "x")).collect(),
    ] {
        let answer = server.call_as(&alice.access, APPLY, &apply(writes)).await;
        assert_eq!(answer.error(), invalid());
    }
    assert_eq!(head(&server, &alice).await, before);
    let unchanged = server
        .call_as(&alice.access, APPLY, &apply(vec![write("update", "a", "3")]))
        .await
        .ok();
    assert!(unchanged.get("commit").is_none());
    let empty = server.call_as(&alice.access, APPLY, &apply(vec![])).await.ok();
    assert_eq!(empty["results"], json!([]));
    assert_ne!(
        empty["commit"], before,
        "an empty batch is a commit without operations"
    );
    let most = (0..200).map(|n| write("create", &format!("n{n}"), "x")).collect();
    server.call_as(&alice.access, APPLY, &apply(most)).await.ok();
    assert_eq!(server.repo(&alice.did).await.records.len(), 202);
}

fn rkey_of(kind: &Value) -> String {
    kind.as_str().unwrap().rsplit('#').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_commit_larger_than_an_event_may_be_is_refused_and_the_repo_goes_on() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    // The body is bounded below an event's size, so only pieces of it can be tried: two halves fit.
    let text = "x".repeat(900_000);
    let input = json!({"repo": alice.did, "collection": NOTE, "record": {"text": text}});
    server.call_as(&alice.access, CREATE, &input).await.ok();
    server.post(&alice, "after").await;
    server.repo(&alice.did).await;
}

#[tokio::test]
async fn records_are_listed_page_by_page_in_both_directions() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    for rkey in ["b", "a", "d", "c", "e"] {
        let input = json!({"repo": alice.did, "collection": NOTE, "rkey": rkey, "record": {}});
        server.call_as(&alice.access, CREATE, &input).await.ok();
    }
    let input = json!({"repo": alice.did, "collection": "com.example.notebook", "record": {}});
    server.call_as(&alice.access, CREATE, &input).await.ok();
    let all = async |more: &str| {
        let (mut found, mut cursor) = (Vec::new(), String::new());
        loop {
            let query = format!(
                "repo={}&collection={NOTE}&limit=2&cursor={cursor}{more}",
                alice.did
            );
            let page = server.query(LIST, &query).await.ok();
            let records = page["records"].as_array().unwrap();
            if records.is_empty() {
                assert!(page.get("cursor").is_none());
                return found.join("");
            }
            found.extend(records.iter().map(|record| rkey(&record["uri"]).to_owned()));
            cursor = page["cursor"].as_str().unwrap().to_owned();
            assert_eq!(Some(&cursor), found.last());
        }
    };
    assert_eq!(all("").await, "edcba");
    assert_eq!(all("&reverse=true").await, "abcde");
    assert_eq!(all("&reverse=").await, "edcba");
    let query = format!("repo=alice.test&collection={NOTE}");
    assert_eq!(
        server.query(LIST, &query).await.ok()["records"]
            .as_array()
            .unwrap()
            .len(),
        5
    );
    for more in [
        "&limit=0",
        "&limit=101",
        "&limit=x",
        "&limit=1&limit=2",
        "&reverse=1",
        "&cursor=a%2Fb",
    ] {
        assert_eq!(
            server.query(LIST, &format!("{query}{more}")).await.error(),
            invalid(),
            "{more}"
        );
    }
    let answer = server
        .query(LIST, &format!("repo=nobody.test&collection={NOTE}"))
        .await;
    assert_eq!(answer.error(), invalid());
    server
        .sql("UPDATE actor SET deactivatedAt = 'x' WHERE did = ?1", &alice.did)
        .await;
    assert_eq!(server.query(LIST, &query).await.error(), invalid());
}

#[tokio::test]
async fn a_page_of_large_records_ends_early_and_the_cursor_goes_on() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    for n in 0..12 {
        let text = format!("{n}{}", "x".repeat(900_000));
        let input = json!({"repo": alice.did, "collection": NOTE, "record": {"text": text}});
        server.call_as(&alice.access, CREATE, &input).await.ok();
    }
    let query = format!("repo={}&collection={NOTE}&limit=100", alice.did);
    let first = server.query(LIST, &query).await.ok();
    let count = first["records"].as_array().unwrap().len();
    assert_eq!(count, 9);
    let second = server
        .query(
            LIST,
            &format!("{query}&cursor={}", first["cursor"].as_str().unwrap()),
        )
        .await
        .ok();
    assert_eq!(second["records"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn a_repo_is_described_unless_its_identity_cannot_be_resolved() {
    const DESCRIBE: &str = "com.atproto.repo.describeRepo";
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    server.post(&alice, "one").await;
    let described = server.query(DESCRIBE, "repo=alice.test").await.ok();
    assert_eq!(described["did"], alice.did.as_str());
    assert_eq!(described["handle"], alice.handle);
    assert_eq!(described["handleIsCorrect"], true);
    assert_eq!(described["collections"], json!([NOTE]));
    assert_eq!(described["didDoc"]["id"], alice.did.as_str());
    assert_eq!(
        server.query(DESCRIBE, "repo=bob.test").await.error(),
        (400, "RepoNotFound".into())
    );
    assert_eq!(server.query(DESCRIBE, "").await.error(), invalid());
    server
        .sql(
            "UPDATE actor SET handle = 'other.test' WHERE did = ?1",
            &alice.did,
        )
        .await;
    let described = server.query(DESCRIBE, &format!("repo={}", alice.did)).await.ok();
    assert_eq!(described["handleIsCorrect"], false);
    server.plc.set(crate::testkit::Mood::Down);
    let server = server.restart().await;
    let answer = server.query(DESCRIBE, &format!("repo={}", alice.did)).await;
    assert_eq!(answer.error(), invalid());
    server
        .sql("UPDATE actor SET deactivatedAt = 'x' WHERE did = ?1", &alice.did)
        .await;
    let answer = server.query(DESCRIBE, &format!("repo={}", alice.did)).await;
    assert_eq!(answer.error(), (400, "RepoDeactivated".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_administrator_writes_to_any_active_repo_and_nobody_else_does() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let input = json!({
        "repo": alice.did,
        "validate": false,
        "writes": [{
            "$type": "com.atproto.repo.applyWrites#create",
            "collection": NOTE,
            "rkey": "back",
            "value": {"text": "was there before"},
        }],
    });
    let send = |password: String| {
        let body = Body::from(input.to_string());
        let headers = [
            ("authorization", password),
            ("content-type", "application/json".to_owned()),
        ];
        let server = &server;
        async move {
            let headers: Vec<(&str, &str)> = headers
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            server
                .request(Method::POST, &format!("/xrpc/{APPLY}"), &headers, body)
                .await
        }
    };
    // "admin:wrong"
    assert_eq!(send("Basic YWRtaW46d3Jvbmc=".to_owned()).await.status, 401);
    assert!(server.repo(&alice.did).await.records.is_empty());
    let answer = send(basic()).await.ok();
    assert_eq!(answer["results"].as_array().unwrap().len(), 1);
    assert_eq!(server.repo(&alice.did).await.records.len(), 1);
    server
        .sql("UPDATE actor SET takedownRef = 'x' WHERE did = ?1", &alice.did)
        .await;
    assert_ne!(send(basic()).await.status, 200);
}

/// A like of the same post, a follow of the same account and so on takes the place of the one before, in one commit.
#[tokio::test]
async fn statement_51_a_second_record_about_the_same_replaces_the_first_unless_validation_is_off() {
    let server = Server::start().await;
    let (alice, bob) = (server.sign_up("alice").await, server.sign_up("bob").await);
    let now = "2026-11-20T08:30:15.250Z";
    let cid = Cid::for_dag_cbor(&[0xa0]).to_string();
    let of = |rkey: &str| json!({"uri": format!("at://{}/app.bsky.feed.post/{rkey}", bob.did), "cid": cid});
    let (post, other) = (of("3kznmn7xqxl22"), of("3kznmn7xqxl23"));
    for (collection, same, different) in [
        ("app.bsky.feed.like", &post, &other),
        ("app.bsky.feed.repost", &post, &other),
        ("app.bsky.graph.follow", &json!(bob.did), &json!(alice.did)),
        ("app.bsky.graph.block", &json!(bob.did), &json!(alice.did)),
    ] {
        let create = async |subject: &Value, validate: Option<bool>| {
            let record = json!({"$type": collection, "subject": subject, "createdAt": now});
            let mut body = json!({"repo": alice.did, "collection": collection, "record": record});
            if let Some(validate) = validate {
                body["validate"] = json!(validate);
            }
            let made = server.call_as(&alice.access, CREATE, &body).await.ok();
            made["uri"].as_str().unwrap().to_owned()
        };
        let listed = async || -> Vec<String> {
            let query = format!("repo={}&collection={collection}", alice.did);
            let answer = server.query(LIST, &query).await.ok();
            let records = answer["records"].as_array().unwrap().clone();
            let mut uris: Vec<String> = records
                .iter()
                .map(|r| r["uri"].as_str().unwrap().to_owned())
                .collect();
            uris.sort();
            uris
        };
        let first = create(same, None).await;
        let kept = create(different, None).await;
        assert_eq!(listed().await, [first.clone(), kept.clone()]);
        let second = create(same, Some(true)).await;
        assert_eq!(listed().await, [kept.clone(), second.clone()], "{collection}");
        let unasked = create(same, Some(false)).await;
        assert_eq!(listed().await, [kept.clone(), second, unasked], "{collection}");
        // Both go.
        let third = create(same, None).await;
        assert_eq!(listed().await, [kept, third], "{collection}");
    }
}
