//! `com.atproto.identity.*`, and what becomes of a change when the directory or this server is not well.

use axum::http::Method;
use engine::log::Lsn;
use engine::repo::car::{CarLimits, CarSlice};
use engine::repo::commit::Commit;
use engine::repo::event::{self, Event};
use engine::repo::keys::SigningKey;
use serde_json::{Value, json};

use crate::client::plc::PlcClient;
use crate::plc::op::Operation;
use crate::testkit::{Mood, PATIENCE, Server, User};

const UPDATE: &str = "com.atproto.identity.updateHandle";
const SUBMIT: &str = "com.atproto.identity.submitPlcOperation";
const RECOMMENDED: &str = "com.atproto.identity.getRecommendedDidCredentials";
const INTENTS: &str = "SELECT count(*) FROM identity_intent";

impl Server {
    /// Every event of the stream about one DID, in words.
    pub(super) async fn told(&self, did: &engine::repo::Did) -> Vec<String> {
        let engine = &self.app.engine;
        let applied = engine.applied().get();
        tokio::time::timeout(PATIENCE, engine.visible().wait(applied))
            .await
            .unwrap()
            .unwrap();
        let (mut tail, mut words) = (engine.tail(Lsn::ZERO), Vec::new());
        loop {
            let batch = tail.next_public_batch(applied, 1 << 20).unwrap();
            if batch.is_empty() {
                return words;
            }
            for message in batch.iter().filter_map(crate::firehose::to_event) {
                let (whose, word) = match event::decode(&message.message).unwrap() {
                    Event::Commit(event) => (event.repo, "commit".to_owned()),
                    Event::Sync(event) => (event.did, "sync".to_owned()),
                    Event::Identity(event) => {
                        let handle = event.handle.map_or("-".to_owned(), |handle| handle.to_string());
                        (event.did, format!("identity {handle}"))
                    }
                    Event::Account(event) => {
                        let status = event.inactive.map_or("active", |status| status.name());
                        (event.did, format!("account {status}"))
                    }
                    _ => continue,
                };
                if whose == *did {
                    words.push(word);
                }
            }
        }
    }

    /// The commits of a repo that the stream tells of, in its order.
    pub(super) fn commits(&self, did: &engine::repo::Did) -> Vec<Commit> {
        let engine = &self.app.engine;
        let (mut tail, mut commits) = (engine.tail(Lsn::ZERO), Vec::new());
        loop {
            let batch = tail.next_public_batch(engine.applied().get(), 1 << 20).unwrap();
            if batch.is_empty() {
                return commits;
            }
            for message in batch.iter().filter_map(crate::firehose::to_event) {
                let car = match event::decode(&message.message).unwrap() {
                    Event::Commit(event) if event.repo == *did => event.blocks,
                    Event::Sync(event) if event.did == *did => event.blocks,
                    _ => continue,
                };
                let car = CarSlice::new(car, CarLimits::default()).unwrap();
                let root = car.roots()[0];
                let mut blocks = car.map(Result::unwrap);
                let commit = blocks.find(|block| block.cid == root).unwrap();
                let bytes = axum::body::Bytes::copy_from_slice(commit.bytes);
                commits.push(Commit::decode(bytes).unwrap());
            }
        }
    }

    async fn rename(&self, user: &User, handle: &str) -> crate::testkit::Answer {
        self.call_as(&user.access, UPDATE, &json!({ "handle": handle }))
            .await
    }

    async fn aliases(&self, user: &User) -> Vec<String> {
        self.plc.data(&user.did).await.unwrap().also_known_as
    }
}

/// How many open changes a look has settled and left.
async fn looked(server: &Server) -> (usize, usize) {
    let resumed = server.app.identities.resume().await.unwrap();
    (resumed.settled, resumed.left)
}

#[tokio::test]
async fn a_new_handle_is_in_the_directory_here_and_told_to_subscribers() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let before = server.told(&alice.did).await.len();
    let answer = server.rename(&alice, "Alicia.Test").await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 0));
    assert_eq!(server.aliases(&alice).await, ["at://alicia.test"]);
    assert_eq!(server.told(&alice.did).await[before..], ["identity alicia.test"]);
    let resolve = "com.atproto.identity.resolveHandle";
    assert_eq!(
        server.query(resolve, "handle=alicia.test").await.ok()["did"],
        alice.did.as_str()
    );
    assert_eq!(
        server.query(resolve, "handle=alice.test").await.error(),
        (400, "HandleNotFound".into())
    );
    assert_eq!(server.log_in("alicia").await.did, alice.did);
    let path = "/.well-known/atproto-did";
    for (host, status) in [("alicia.test", 200), ("alice.test", 404)] {
        let answer = server
            .request(Method::GET, path, &[("host", host)], axum::body::Body::empty())
            .await;
        assert_eq!(answer.status, status, "{host}");
    }
    assert_eq!(server.count(INTENTS).await, 0);
    // What was let go is free.
    server
        .call(
            "com.atproto.server.createAccount",
            &json!({"handle": "alice.test", "email": "other@example.com", "password": "x"}),
        )
        .await
        .ok();
}

#[tokio::test]
async fn statement_87_the_same_handle_is_allowed_and_told_again() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let (before, sent) = (server.told(&alice.did).await.len(), server.plc.submitted().len());
    assert_eq!(server.rename(&alice, "alice.test").await.status, 200);
    assert_eq!(server.told(&alice.did).await[before..], ["identity alice.test"]);
    assert_eq!(server.plc.submitted().len(), sent, "the directory has it already");
}

#[tokio::test]
async fn statement_84_and_others_a_handle_is_checked_in_the_order_of_the_reference() {
    let server = Server::start().await;
    let (alice, bob) = (server.sign_up("alice").await, server.sign_up("bob").await);
    for (handle, name) in [
        ("nope", "InvalidHandle"),
        ("a.onion", "InvalidHandle"),
        ("a.b.test", "InvalidHandle"),
        ("ab.test", "InvalidHandle"),
        ("a23456789012345678901.test", "InvalidHandle"),
        ("admin.test", "HandleNotAvailable"),
        ("BOB.test", "HandleNotAvailable"),
        ("elsewhere.invalid-host.com", "InvalidRequest"),
    ] {
        let answer = server.rename(&alice, handle).await;
        assert_eq!(answer.error(), (400, name.into()), "{handle}");
    }
    // A handle is taken whatever the state of its account.
    for sql in [
        "UPDATE actor SET deactivatedAt = 'x' WHERE did = ?1",
        "UPDATE actor SET takedownRef = 'x' WHERE did = ?1",
    ] {
        server.sql(sql, &bob.did).await;
        let answer = server.rename(&alice, "bob.test").await;
        assert_eq!(answer.error(), (400, "HandleNotAvailable".into()));
    }
    assert_eq!(
        server.rename(&bob, "bobby.test").await.error(),
        (401, "AccountTakedown".into())
    );
    let answer = server.call(UPDATE, &json!({"handle": "x.test"})).await;
    assert_eq!(answer.error(), (401, "AuthMissing".into()));
    assert_eq!(server.aliases(&alice).await, ["at://alice.test"]);
}

#[tokio::test]
async fn a_refusal_of_the_directory_changes_nothing_and_is_passed_on() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let before = server.told(&alice.did).await.len();
    server.plc.set(Mood::Refusing);
    let answer = server.rename(&alice, "alicia.test").await;
    assert_eq!(answer.error(), (400, "InvalidRequest".into()));
    assert_eq!(answer.json()["message"], "scripted refusal");
    assert_eq!(server.count(INTENTS).await, 0);
    server.plc.set(Mood::Down);
    assert_eq!(
        server.rename(&alice, "alicia.test").await.error(),
        (502, "UpstreamFailure".into())
    );
    assert_eq!(server.told(&alice.did).await.len(), before);
    server.plc.set(Mood::Well);
    assert_eq!(server.rename(&alice, "alicia.test").await.status, 200);
}

#[tokio::test]
async fn a_lost_answer_of_the_directory_is_made_good_at_the_next_look() {
    for restart in [false, true] {
        let mut server = Server::start().await;
        let alice = server.sign_up("alice").await;
        let bob = server.sign_up("bob").await;
        let last = server.plc.last_op(&alice.did).await.unwrap();
        server.plc.set(Mood::Dying);
        assert_eq!(
            server.rename(&alice, "alicia.test").await.error(),
            (502, "UpstreamFailure".into())
        );
        server.plc.set(Mood::Well);
        assert_ne!(
            server.plc.last_op(&alice.did).await.unwrap(),
            last,
            "the directory has it"
        );
        assert_eq!(server.count(INTENTS).await, 1);
        // Nobody else gets it in between.
        assert_eq!(
            server.rename(&bob, "alicia.test").await.error(),
            (400, "HandleNotAvailable".into())
        );
        let input = json!({"handle": "alicia.test", "email": "eve@example.com", "password": "x"});
        assert_eq!(
            server
                .call("com.atproto.server.createAccount", &input)
                .await
                .error(),
            (400, "HandleNotAvailable".into())
        );
        if restart {
            server = server.restart().await;
            assert_eq!(looked(&server).await, (1, 0));
        } else {
            // Another change of the same identity looks back first.
            assert_eq!(server.rename(&alice, "alicia.test").await.status, 200);
        }
        assert_eq!(server.count(INTENTS).await, 0);
        assert_eq!(server.log_in("alicia").await.did, alice.did);
        assert_eq!(
            server.told(&alice.did).await.last().unwrap(),
            "identity alicia.test"
        );
    }
}

#[tokio::test]
async fn an_interrupted_change_that_the_directory_never_saw_is_dropped_at_the_next_start() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let sql = "INSERT INTO identity_intent (did, operation, handle, createdAt) VALUES (?1, '{}', 'alicia.test', 'x')";
    server.sql(sql, &alice.did).await;
    let server = server.restart().await;
    server.plc.set(Mood::Down);
    assert_eq!(looked(&server).await, (0, 1));
    assert_eq!(server.count(INTENTS).await, 1, "nobody knows yet");
    server.plc.set(Mood::Well);
    assert_eq!(looked(&server).await, (1, 0));
    assert_eq!(server.count(INTENTS).await, 0);
    assert_eq!(server.log_in("alice").await.did, alice.did);
}

#[tokio::test]
async fn a_refreshed_identity_settles_what_was_left_open() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    server.plc.set(Mood::Dying);
    server.rename(&alice, "alicia.test").await.error();
    server.plc.set(Mood::Well);
    let input = json!({ "identifier": alice.did });
    let refreshed = server
        .call_as(&alice.access, "com.atproto.identity.refreshIdentity", &input)
        .await
        .ok();
    assert_eq!(refreshed["handle"], "alicia.test");
    assert_eq!(server.count(INTENTS).await, 0);
}

#[tokio::test]
async fn the_recommended_credentials_are_what_a_new_identity_has() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let answer = server.query_as(&alice.access, RECOMMENDED, "").await.ok();
    let state = server.plc.data(&alice.did).await.unwrap();
    assert_eq!(answer, serde_json::to_value(&state).unwrap());
}

/// An operation over the state of now, signed with the server's own key.
async fn operation(server: &Server, alice: &User, change: impl FnOnce(&mut Value)) -> Value {
    let last = server.plc.last_op(&alice.did).await.unwrap();
    let mut state = serde_json::to_value(last.state().unwrap()).unwrap();
    change(&mut state);
    let state = serde_json::from_value(state).unwrap();
    let key = SigningKey::from_bytes(server.app.config.plc_rotation_key.expose()).unwrap();
    Operation::update(state, last.cid(), &key).unwrap().to_json()
}

#[tokio::test]
async fn statements_72_and_89_a_submitted_operation_leaves_the_account_usable_and_is_told_without_a_handle() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let other = "did:key:zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme";
    let before = server.told(&alice.did).await.len();
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 5] = [
        (
            |state| {
                state["rotationKeys"] = json!(["did:key:zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme"]);
            },
            "Rotation keys do not include server's rotation key",
        ),
        (
            |state| state["services"]["atproto_pds"]["type"] = json!("Other"),
            "Incorrect type on atproto_pds service",
        ),
        (
            |state| state["services"]["atproto_pds"]["endpoint"] = json!("https://elsewhere.example.com"),
            "Incorrect endpoint on atproto_pds service",
        ),
        (
            |state| {
                state["verificationMethods"]["atproto"] =
                    json!("did:key:zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme");
            },
            "Incorrect signing key",
        ),
        (
            |state| state["alsoKnownAs"] = json!(["at://other.example.com", "at://alice.test"]),
            "Incorrect handle in alsoKnownAs",
        ),
    ];
    for (change, message) in cases {
        let operation = operation(&server, &alice, change).await;
        let answer = server
            .call_as(&alice.access, SUBMIT, &json!({ "operation": operation }))
            .await;
        assert_eq!(answer.error(), (400, "InvalidRequest".into()), "{message}");
        assert_eq!(answer.json()["message"], message);
    }
    for odd in [
        json!({}),
        json!(5),
        json!({"type": "plc_tombstone", "prev": "x", "sig": "x"}),
    ] {
        let answer = server
            .call_as(&alice.access, SUBMIT, &json!({ "operation": odd }))
            .await;
        assert_eq!(answer.error(), (400, "InvalidRequest".into()), "{odd}");
    }
    assert_eq!(server.told(&alice.did).await.len(), before);
    let good = operation(&server, &alice, |state| {
        let own = state["rotationKeys"][0].clone();
        state["rotationKeys"] = json!([other, own]);
    })
    .await;
    let answer = server
        .call_as(&alice.access, SUBMIT, &json!({ "operation": good }))
        .await;
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    assert_eq!(server.told(&alice.did).await[before..], ["identity -"]);
    assert_eq!(server.plc.data(&alice.did).await.unwrap().rotation_keys[0], other);
    // The same once more does not follow the last one: the directory's refusal is passed on.
    let again = server
        .call_as(&alice.access, SUBMIT, &json!({ "operation": good }))
        .await;
    assert_eq!(again.error(), (400, "InvalidRequest".into()));
}

#[tokio::test]
async fn identities_are_resolved_both_ways_and_refreshed_on_demand() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let identity = "com.atproto.identity.resolveIdentity";
    for identifier in ["alice.test", alice.did.as_str()] {
        let answer = server
            .query(identity, &format!("identifier={identifier}"))
            .await
            .ok();
        assert_eq!(answer["did"], alice.did.as_str());
        assert_eq!(answer["handle"], "alice.test");
        assert_eq!(answer["didDoc"]["id"], alice.did.as_str());
    }
    let answer = server
        .query("com.atproto.identity.resolveDid", &format!("did={}", alice.did))
        .await
        .ok();
    assert_eq!(answer["didDoc"]["alsoKnownAs"], json!(["at://alice.test"]));
    let unknown = "did=did:plc:ewvi7nxzyoun6zhxrhs64oiz";
    assert_eq!(
        server
            .query("com.atproto.identity.resolveDid", unknown)
            .await
            .error(),
        (400, "DidNotFound".into())
    );
    assert_eq!(
        server.query(identity, "identifier=nobody.test").await.error(),
        (400, "HandleNotFound".into())
    );
    // A handle that its document does not claim any more is none.
    let operation = operation(&server, &alice, |state| {
        state["alsoKnownAs"] = json!(["at://alice.example.com"]);
    })
    .await;
    let operation = Operation::from_json(&operation).unwrap();
    server.plc.submit(&alice.did, &operation).await.unwrap();
    let query = format!("identifier={}", alice.did);
    assert_eq!(
        server.query(identity, &query).await.ok()["handle"],
        "alice.test",
        "from the cache"
    );
    let refresh = "com.atproto.identity.refreshIdentity";
    let input = json!({ "identifier": alice.did });
    assert_eq!(
        server.call(refresh, &input).await.error(),
        (401, "AuthMissing".into())
    );
    assert_eq!(
        server.call_as(&alice.access, refresh, &input).await.ok()["handle"],
        "handle.invalid"
    );
    assert_eq!(
        server.query(identity, &query).await.ok()["handle"],
        "handle.invalid"
    );
}
