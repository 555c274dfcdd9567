//! Lexicon validation of what is written: what is refused, and what answers say of the rest.

use serde_json::{Value, json};

use crate::testkit::{NOTE, Server, User};

const CREATE: &str = "com.atproto.repo.createRecord";
const PUT: &str = "com.atproto.repo.putRecord";
const APPLY: &str = "com.atproto.repo.applyWrites";
const POST: &str = "app.bsky.feed.post";
const PROFILE: &str = "app.bsky.actor.profile";
const TID: &str = "3kznmn7xqxl22";

fn post() -> Value {
    json!({"text": "hi", "createdAt": "2026-11-20T08:30:15.250Z"})
}

/// The status that an answer tells, or the message of a refusal.
async fn outcome(server: &Server, user: &User, method: &str, input: &Value) -> Result<Value, String> {
    let answer = server.call_as(&user.access, method, input).await;
    if answer.status == 200 {
        return Ok(answer.ok()["validationStatus"].clone());
    }
    assert_eq!(answer.error(), (400, "InvalidRequest".into()));
    Err(answer.json()["message"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn what_is_known_is_validated_unless_that_is_off() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let with = |collection: &str, record: &Value, validate: Option<bool>| {
        let mut input = json!({"repo": alice.did, "collection": collection, "record": record});
        if let Some(validate) = validate {
            input["validate"] = validate.into();
        }
        input
    };
    let missing = "Invalid app.bsky.feed.post record: Record must have the property \"createdAt\"";
    for (collection, record, validate, expected) in [
        (POST, post(), None, Ok("valid")),
        (POST, post(), Some(true), Ok("valid")),
        (POST, json!({"text": "hi"}), None, Err(missing)),
        (POST, json!({"text": "hi"}), Some(true), Err(missing)),
        (NOTE, json!({}), None, Ok("unknown")),
        (
            NOTE,
            json!({}),
            Some(true),
            Err("Unknown lexicon type: com.example.note"),
        ),
        (
            PROFILE,
            json!({}),
            None,
            Err("Invalid app.bsky.actor.profile record: the record key must be \"self\""),
        ),
    ] {
        let input = with(collection, &record, validate);
        let found = outcome(&server, &alice, CREATE, &input).await;
        assert_eq!(found, expected.map(Value::from).map_err(str::to_owned), "{input}");
    }
    for (collection, record) in [
        (POST, json!({"text": 5})),
        (NOTE, json!({})),
        (PROFILE, json!({})),
    ] {
        let input = with(collection, &record, Some(false));
        assert_eq!(
            outcome(&server, &alice, CREATE, &input).await,
            Ok(Value::Null),
            "{input}"
        );
    }
}

#[tokio::test]
async fn a_put_is_validated_with_its_key_and_tells_so_even_when_nothing_changes() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let with = |rkey: &str, record: Value| json!({"repo": alice.did, "collection": POST, "rkey": rkey, "record": record});
    let input = with(TID, post());
    for _ in 0..2 {
        assert_eq!(outcome(&server, &alice, PUT, &input).await, Ok("valid".into()));
    }
    let wrong_key = with("one", post());
    assert_eq!(
        outcome(&server, &alice, PUT, &wrong_key).await,
        Err("Invalid app.bsky.feed.post record: the record key must be a TID".to_owned())
    );
    let wrong = with(
        TID,
        json!({"text": "x".repeat(301), "createdAt": "2026-11-20T08:30:15.250Z"}),
    );
    assert_eq!(
        outcome(&server, &alice, PUT, &wrong).await,
        Err(
            "Invalid app.bsky.feed.post record: Record/text must not be longer than 300 graphemes".to_owned()
        )
    );
}

#[tokio::test]
async fn each_result_of_a_batch_tells_its_own_status_and_one_fault_refuses_all() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let write = |kind: &str, collection: &str, rkey: &str, value: Value| json!({"$type": format!("{APPLY}#{kind}"), "collection": collection, "rkey": rkey, "value": value});
    let apply = async |writes: Value, validate: Option<bool>| {
        let mut input = json!({"repo": alice.did, "writes": writes});
        if let Some(validate) = validate {
            input["validate"] = validate.into();
        }
        server.call_as(&alice.access, APPLY, &input).await
    };
    let statuses = |answer: &Value| -> Vec<Value> {
        let results = answer["results"].as_array().unwrap();
        results
            .iter()
            .map(|result| result["validationStatus"].clone())
            .collect()
    };
    let first = json!([
        write("create", POST, TID, post()),
        write("create", NOTE, "one", json!({})),
    ]);
    let made = apply(first, None).await.ok();
    assert_eq!(statuses(&made), ["valid", "unknown"]);
    let mut changed = post();
    changed["text"] = "changed".into();
    let second = json!([
        write("update", POST, TID, changed),
        {"$type": format!("{APPLY}#delete"), "collection": NOTE, "rkey": "one"},
    ]);
    let made = apply(second, Some(true)).await.ok();
    assert_eq!(statuses(&made), [json!("valid"), Value::Null]);
    let before = server.repo(&alice.did).await.records;
    for validate in [None, Some(true)] {
        let mixed = json!([
            write("create", NOTE, "two", json!({})),
            write("create", POST, "3kznmn7xqxl23", json!({"text": 5})),
        ]);
        assert_eq!(
            apply(mixed, validate).await.error(),
            (400, "InvalidRequest".into())
        );
    }
    assert_eq!(server.repo(&alice.did).await.records, before);
    let off = json!([write("create", POST, "any", json!({"text": 5}))]);
    assert_eq!(statuses(&apply(off, Some(false)).await.ok()), [Value::Null]);
}

#[tokio::test]
async fn a_profile_from_before_blobs_had_a_type_gets_todays_form_when_it_is_put() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let blob = server.upload(&alice, "image/png", "a picture").await.ok()["blob"].clone();
    let mime = blob["mimeType"].clone();
    let legacy = json!({"cid": blob["ref"]["$link"], "mimeType": mime});
    let put = async |collection: &str, record: Value| {
        let input = json!({"repo": alice.did, "collection": collection, "rkey": "self", "record": record});
        server.call_as(&alice.access, PUT, &input).await
    };
    let refused = (400, "InvalidRequest".to_owned());
    let record = json!({"displayName": "Alice", "avatar": legacy, "banner": legacy});
    assert_eq!(
        put(PROFILE, record.clone()).await.error(),
        refused,
        "there is no profile yet"
    );
    put(PROFILE, json!({"displayName": "Alice"})).await.ok();
    let answer = put(PROFILE, record.clone()).await.ok();
    assert_eq!(answer["validationStatus"], "valid");
    let query = format!("repo={}&collection={PROFILE}&rkey=self", alice.did);
    let found = server.query("com.atproto.repo.getRecord", &query).await.ok();
    assert_eq!(
        (&found["value"]["avatar"], &found["value"]["banner"]),
        (&blob, &blob)
    );
    let again = put(PROFILE, record.clone()).await.ok();
    assert!(again.get("commit").is_none(), "it is the same");
    // Nowhere else, and only what is here.
    let mut elsewhere = record.clone();
    elsewhere["pinned"] = legacy.clone();
    assert_eq!(put(PROFILE, elsewhere).await.error(), refused);
    put(NOTE, json!({"text": "x"})).await.ok();
    assert_eq!(put(NOTE, json!({"avatar": legacy})).await.error(), refused);
    let mut missing = legacy.clone();
    missing["cid"] = json!(engine::repo::Cid::for_raw(b"not here").to_string());
    let answer = put(PROFILE, json!({"avatar": missing})).await;
    assert_eq!(answer.error(), (400, "BlobNotFound".into()));
}
