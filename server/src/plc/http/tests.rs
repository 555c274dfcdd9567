//! The directory as a client sees it.

use super::*;
use std::sync::Arc;

use axum::http::Request;
use engine::clock::{Clock, ScriptedClock, SeededEntropy};
use engine::repo::keys::SigningKey;
use tower::ServiceExt;

const NOW_MICROS: u64 = 1_700_000_000_123_456;

fn key(seed: u64) -> SigningKey {
    SigningKey::generate(&SeededEntropy::new(seed)).unwrap()
}

fn state(handle: &str) -> PlcState {
    let keys = [1, 2].map(|seed| key(seed).public_key());
    PlcState::account(
        &keys,
        &key(9).public_key(),
        &handle.parse().unwrap(),
        "https://pds.example",
    )
}

async fn call(directory: &PlcDirectory, method: &str, path: &str, body: impl Into<Body>) -> (u16, String) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .body(body.into())
        .unwrap();
    let response = directory.router().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn get_json(directory: &PlcDirectory, path: &str) -> (u16, Value) {
    let (status, body) = call(directory, "GET", path, Body::empty()).await;
    (status, serde_json::from_str(&body).unwrap())
}

async fn post(directory: &PlcDirectory, did: &Did, operation: &Operation) -> (u16, String) {
    call(
        directory,
        "POST",
        &format!("/{did}"),
        operation.to_json().to_string(),
    )
    .await
}

#[tokio::test]
async fn an_account_is_registered_updated_recovered_and_ended() {
    let clock = Arc::new(ScriptedClock::at(NOW_MICROS));
    let directory = PlcDirectory::in_memory(clock.clone());
    let genesis = Operation::genesis(state("a.test"), &key(2)).unwrap();
    let did = genesis.did().unwrap();
    assert_eq!(get_json(&directory, &format!("/{did}")).await.0, 404);
    assert_eq!(post(&directory, &did, &genesis).await, (200, "OK".to_owned()));

    let (status, document) = get_json(&directory, &format!("/{did}")).await;
    let multibase = key(9).public_key().to_multibase();
    assert_eq!(status, 200);
    assert_eq!(
        document,
        json!({
            "@context": [
                "https://www.w3.org/ns/did/v1",
                "https://w3id.org/security/multikey/v1",
                "https://w3id.org/security/suites/secp256k1-2019/v1",
            ],
            "id": did,
            "alsoKnownAs": ["at://a.test"],
            "verificationMethod": [{
                "id": format!("{did}#atproto"), "type": "Multikey", "controller": did, "publicKeyMultibase": multibase,
            }],
            "service": [{
                "id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": "https://pds.example",
            }],
        })
    );

    let update = Operation::update(state("b.test"), genesis.cid(), &key(2)).unwrap();
    assert_eq!(post(&directory, &did, &update).await.0, 200);
    clock.advance(71 * 3600 * 1_000_000);
    let fork = Operation::update(state("c.test"), genesis.cid(), &key(1)).unwrap();
    assert_eq!(post(&directory, &did, &fork).await.0, 200);
    assert_eq!(
        get_json(&directory, &format!("/{did}/data")).await.1["alsoKnownAs"],
        json!(["at://c.test"])
    );
    assert_eq!(
        get_json(&directory, &format!("/{did}/log/last")).await.1,
        fork.to_json()
    );
    assert_eq!(
        get_json(&directory, &format!("/{did}/log")).await.1,
        json!([genesis.to_json(), fork.to_json()])
    );
    let (_, audit) = get_json(&directory, &format!("/{did}/log/audit")).await;
    let seen: Vec<(&str, bool)> = audit
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            (
                entry["cid"].as_str().unwrap(),
                entry["nullified"].as_bool().unwrap(),
            )
        })
        .collect();
    let cids = [&genesis, &update, &fork].map(|operation| operation.cid().to_string());
    assert_eq!(
        seen,
        [
            (cids[0].as_str(), false),
            (cids[1].as_str(), true),
            (cids[2].as_str(), false)
        ]
    );
    assert_eq!(audit[0]["createdAt"], "2023-11-14T22:13:20.123Z");

    let end = Operation::tombstone(fork.cid(), &key(2)).unwrap();
    assert_eq!(post(&directory, &did, &end).await.0, 200);
    assert_eq!(get_json(&directory, &format!("/{did}")).await.0, 410);
    assert_eq!(get_json(&directory, &format!("/{did}/data")).await.0, 410);
    clock.advance(73 * 3600 * 1_000_000);
    let late = Operation::update(state("d.test"), fork.cid(), &key(1)).unwrap();
    let (status, body) = post(&directory, &did, &late).await;
    assert!(status == 400 && body.contains("72 hour"), "{body}");
}

#[tokio::test]
async fn refusals_carry_a_message_and_the_right_status() {
    let directory = PlcDirectory::in_memory(Arc::new(ScriptedClock::at(NOW_MICROS)));
    let genesis = Operation::genesis(state("a.test"), &key(2)).unwrap();
    let did = genesis.did().unwrap();
    let path = format!("/{did}");
    let mut forged = genesis.to_json();
    forged["alsoKnownAs"][0] = json!("at://mallory.test");
    for (status, method, path, body) in [
        (400, "POST", path.as_str(), "{".to_owned()),
        (400, "POST", path.as_str(), "{}".to_owned()),
        (400, "POST", path.as_str(), forged.to_string()),
        (413, "POST", path.as_str(), " ".repeat(MAX_BODY_BYTES + 1)),
        (400, "GET", "/did:plc:short", String::new()),
        (400, "GET", "/did:web:example.com", String::new()),
        (404, "GET", path.as_str(), String::new()),
        (404, "GET", &format!("{path}/data"), String::new()),
        (404, "GET", &format!("{path}/log"), String::new()),
        (404, "GET", &format!("{path}/log/audit"), String::new()),
        (404, "GET", &format!("{path}/log/last"), String::new()),
        (400, "GET", "/export?count=1001", String::new()),
        (400, "GET", "/export?after=yesterday", String::new()),
    ] {
        let (found, answer) = call(&directory, method, path, body).await;
        assert_eq!(found, status, "{method} {path}: {answer}");
        if status != 413 {
            let answer: Value = serde_json::from_str(&answer).unwrap();
            assert!(answer["message"].is_string(), "{answer}");
        }
    }
    let (status, body) = call(&directory, "GET", "/_health", Body::empty()).await;
    assert!(status == 200 && body.contains("version"));
}

#[tokio::test]
async fn an_export_is_lines_of_json_from_a_time_on() {
    let directory = PlcDirectory::in_memory(Arc::new(ScriptedClock::at(NOW_MICROS)));
    for handle in ["a.test", "b.test", "c.test"] {
        let genesis = Operation::genesis(state(handle), &key(2)).unwrap();
        post(&directory, &genesis.did().unwrap(), &genesis).await;
    }
    let (mut after, mut seen) = (String::new(), Vec::new());
    loop {
        let (status, body) = call(
            &directory,
            "GET",
            &format!("/export?count=2&after={after}"),
            Body::empty(),
        )
        .await;
        assert_eq!(status, 200);
        let page: Vec<Value> = body
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let Some(last) = page.last() else { break };
        after = last["createdAt"].as_str().unwrap().to_owned();
        seen.extend(
            page.iter()
                .map(|entry| entry["operation"]["alsoKnownAs"][0].clone()),
        );
    }
    assert_eq!(seen, ["at://a.test", "at://b.test", "at://c.test"]);
}

#[test]
fn times_survive_their_text() {
    let millis = ScriptedClock::at(NOW_MICROS).now_micros() / 1000;
    let leap_day = 1_709_164_800_000;
    assert_eq!(format_time(leap_day), "2024-02-29T00:00:00.000Z");
    assert_eq!(format_time(0), "1970-01-01T00:00:00.000Z");
    for time in [
        0,
        1,
        millis,
        leap_day,
        leap_day - 1,
        leap_day + DAY_MILLIS,
        4_102_444_799_999,
    ] {
        assert_eq!(parse_time(&format_time(time)), Some(time));
    }
    assert_eq!(parse_time("2023-11-14T22:13:20Z"), Some(1_700_000_000_000));
    for bad in [
        "",
        "Z",
        "2023-11-14",
        "2023-13-14T00:00:00Z",
        "2023-11-14T24:00:00Z",
        "+023-11-14T00:00:00Z",
    ] {
        assert_eq!(parse_time(bad), None, "{bad}");
    }
}
