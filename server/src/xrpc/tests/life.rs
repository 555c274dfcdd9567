//! Accounts are switched off and on, and how they stand.

use std::time::Duration;

use engine::entry::{Entry, EntryKind};
use engine::log::Lsn;
use engine::repo::event::{self, AccountStatus, Event};
use engine::repo::{Cid, SigningKey};
use serde_json::{Value, json};

use super::deletion::account_events;
use super::email::done;
use crate::client::plc::PlcClient;
use crate::plc::op::{Operation, PlcState};
use crate::testkit::{Mood, PASSWORD, Server, User, user};

const ACTIVATE: &str = "com.atproto.server.activateAccount";
const DEACTIVATE: &str = "com.atproto.server.deactivateAccount";
const STATUS: &str = "com.atproto.server.checkAccountStatus";
const TAKE_DOWN: &str = "UPDATE actor SET takedownRef = 'x' WHERE did = ?1";

/// The kinds of the events of an account, in order, with what an identity's says of the handle.
fn events(server: &Server, user: &User) -> Vec<String> {
    let mut tail = server.app.engine.tail(Lsn::ZERO);
    let mut told = Vec::new();
    loop {
        let frames = tail.next_batch(Lsn::MAX, 16 << 20).unwrap();
        if frames.is_empty() {
            return told;
        }
        for frame in &frames {
            if !Entry::decode(frame).unwrap().kind.is_event() {
                continue;
            }
            let (did, text) = match event::decode(&frame.public()).unwrap() {
                Event::Account(view) => (
                    view.did,
                    format!("account {}", view.inactive.map_or("active", AccountStatus::name)),
                ),
                Event::Identity(view) => (
                    view.did,
                    format!(
                        "identity {}",
                        view.handle.map_or("-".to_owned(), |handle| handle.to_string())
                    ),
                ),
                Event::Sync(view) => (view.did, "sync".to_owned()),
                Event::Commit(view) => (view.repo, "commit".to_owned()),
                Event::Info { .. } | Event::Error { .. } => continue,
            };
            if did == user.did {
                told.push(text);
            }
        }
    }
}

/// Changes what the directory says of an account, with the key of the server.
async fn change_identity(server: &Server, user: &User, state: PlcState) {
    let last = server.plc.last_op(&user.did).await.unwrap();
    let key = SigningKey::from_bytes(&[0x11; 32]).unwrap();
    let operation = Operation::update(state, last.cid(), &key).unwrap();
    server.plc.submit(&user.did, &operation).await.unwrap();
}

async fn deactivate(server: &Server, user: &User, input: Value) {
    done(&server.call_as(&user.access, DEACTIVATE, &input).await);
}

async fn status(server: &Server, user: &User) -> Value {
    server.query_as(&user.access, STATUS, "").await.ok()
}

#[tokio::test]
async fn statement_91_an_account_is_switched_off_and_on_and_its_sessions_go_on() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    server.post(&alice, "one").await;
    let made = server
        .call_as(
            &alice.access,
            "com.atproto.server.createAppPassword",
            &json!({"name": "x"}),
        )
        .await
        .ok();
    let before = events(&server, &alice).len();
    deactivate(&server, &alice, json!({})).await;
    deactivate(&server, &alice, json!({})).await;
    let told = events(&server, &alice);
    assert_eq!(
        told[before..],
        ["account deactivated", "account deactivated"],
        "repeatable"
    );

    let write = json!({"repo": alice.did, "collection": "com.example.note", "record": {"text": "x"}});
    let answer = server
        .call_as(&alice.access, "com.atproto.repo.createRecord", &write)
        .await;
    assert_eq!(answer.error(), (401, "AccountDeactivated".into()));
    let query = format!("did={}", alice.did);
    let answer = server.query("com.atproto.sync.getRepo", &query).await;
    assert_eq!(answer.error(), (400, "RepoDeactivated".into()));
    let resolved = server
        .query("com.atproto.identity.resolveHandle", "handle=alice.test")
        .await;
    assert_eq!(resolved.status, 400);
    let session = server
        .query_as(&alice.access, "com.atproto.server.getSession", "")
        .await
        .ok();
    assert_eq!(
        (&session["active"], &session["status"]),
        (&json!(false), &json!("deactivated"))
    );
    let alice = user(
        &server
            .poke_as(&alice.refresh, "com.atproto.server.refreshSession")
            .await
            .ok(),
    );
    let input = json!({"identifier": "alice.test", "password": made["password"]});
    let app = user(&server.call("com.atproto.server.createSession", &input).await.ok());
    for answer in [
        server.poke_as(&app.access, ACTIVATE).await,
        server.call_as(&app.access, DEACTIVATE, &json!({})).await,
    ] {
        assert_eq!(answer.error(), (400, "InvalidToken".into()));
    }
    let mut taken = crate::testkit::account("alice");
    taken["email"] = json!("other@example.com");
    let answer = server.call("com.atproto.server.createAccount", &taken).await;
    assert_eq!(
        answer.error(),
        (400, "HandleNotAvailable".into()),
        "the handle stays its own"
    );

    let before = events(&server, &alice).len();
    done(&server.poke_as(&alice.access, ACTIVATE).await);
    done(&server.poke_as(&alice.access, ACTIVATE).await);
    let again = ["account active", "identity alice.test", "sync"];
    assert_eq!(events(&server, &alice)[before..], [again, again].concat());
    server.post(&alice, "two").await;
    assert_eq!(server.repo(&alice.did).await.records.len(), 2);
    let server = server.restart().await;
    server.post(&alice, "three").await;
}

#[tokio::test]
async fn an_announced_repo_is_at_the_commit_that_is_told() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    server.post(&alice, "one").await;
    done(&server.poke_as(&alice.access, ACTIVATE).await);
    let mut tail = server.app.engine.tail(Lsn::ZERO);
    let mut synced = None;
    loop {
        let frames = tail.next_batch(Lsn::MAX, 16 << 20).unwrap();
        if frames.is_empty() {
            break;
        }
        for frame in &frames {
            if Entry::decode(frame).unwrap().kind == EntryKind::Sync
                && let Event::Sync(view) = event::decode(&frame.public()).unwrap()
            {
                let car = engine::repo::car::CarSlice::new(view.blocks, Default::default()).unwrap();
                let root: Cid = *car.roots().first().unwrap();
                synced = Some((root.to_string(), view.rev.to_string()));
            }
        }
    }
    let head = server
        .query("com.atproto.sync.getLatestCommit", &format!("did={}", alice.did))
        .await
        .ok();
    let text = |field: &str| head[field].as_str().unwrap().to_owned();
    assert_eq!(synced, Some((text("cid"), text("rev"))));
}

#[tokio::test]
async fn statement_90_an_account_is_switched_on_only_if_its_identity_leads_here() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    deactivate(&server, &alice, json!({})).await;
    let good = server.plc.data(&alice.did).await.unwrap();
    let key = "did:key:zQ3shunBKsXixLxKtC5qeSG9E4J5RkGN57im31pcTzbNQnm5w";
    let told = events(&server, &alice);
    for (what, message) in [
        (
            "key",
            "DID document verification method does not match expected signing key",
        ),
        (
            "slash",
            "DID document atproto_pds service endpoint does not match PDS public url",
        ),
        (
            "endpoint",
            "DID document atproto_pds service endpoint does not match PDS public url",
        ),
    ] {
        let mut state = good.clone();
        match what {
            "key" => {
                state
                    .verification_methods
                    .insert("atproto".to_owned(), key.to_owned());
            }
            "slash" => {
                let service = state.services.get_mut("atproto_pds").unwrap();
                service.endpoint.push('/');
            }
            _ => {
                state.services.remove("atproto_pds");
            }
        }
        change_identity(&server, &alice, state).await;
        let answer = server.poke_as(&alice.access, ACTIVATE).await;
        assert_eq!(answer.error(), (400, "InvalidRequest".into()), "{what}");
        assert_eq!(answer.json()["message"], message, "{what}");
        assert_eq!(status(&server, &alice).await["validDid"], false, "{what}");
    }
    change_identity(&server, &alice, good.clone()).await;
    server.plc.set(Mood::Down);
    let answer = server.poke_as(&alice.access, ACTIVATE).await;
    assert_eq!(answer.error(), (502, "UpstreamFailure".into()));
    assert_eq!(
        status(&server, &alice).await["validDid"],
        false,
        "it cannot be known"
    );
    server.plc.set(Mood::Well);
    assert_eq!(events(&server, &alice), told, "nothing was told");
    done(&server.poke_as(&alice.access, ACTIVATE).await);
    let mut state = good;
    state.rotation_keys = vec![key.to_owned()];
    change_identity(&server, &alice, state).await;
    let answer = server.poke_as(&alice.access, ACTIVATE).await;
    assert_eq!(
        answer.json()["message"],
        "Server rotation key not included in PLC DID data"
    );
}

#[tokio::test]
async fn a_takedown_wins_over_being_switched_off_and_on() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    server.sql(TAKE_DOWN, &alice.did).await;
    let answer = server.poke_as(&alice.access, ACTIVATE).await;
    assert_eq!(answer.error(), (400, "AccountNotFound".into()));
    let input = json!({"identifier": "alice.test", "password": PASSWORD, "allowTakendown": true});
    let leaving = user(&server.call("com.atproto.server.createSession", &input).await.ok());
    deactivate(&server, &leaving, json!({})).await;
    assert_eq!(
        account_events(&server, &alice),
        [None, Some(AccountStatus::Takendown)]
    );
    let answer = server.poke_as(&leaving.access, ACTIVATE).await;
    assert_eq!(answer.error(), (400, "InvalidToken".into()));
}

#[tokio::test]
async fn statement_92_the_status_of_an_account_is_counted() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let empty = status(&server, &alice).await;
    assert_eq!(
        (&empty["repoBlocks"], &empty["indexedRecords"]),
        (&json!(2), &json!(0)),
        "a commit and an empty node"
    );
    let mut blobs = Vec::new();
    for n in 0..3 {
        let uploaded = server
            .upload(&alice, "text/plain", format!("blob {n}"))
            .await
            .ok();
        blobs.push(uploaded["blob"].clone());
    }
    for n in 0..40 {
        let mut record = json!({"text": format!("record {n}")});
        if n < 2 {
            record["attached"] = blobs[0].clone();
        }
        let input = json!({"repo": alice.did, "collection": "com.example.note", "record": record});
        server
            .call_as(&alice.access, "com.atproto.repo.createRecord", &input)
            .await
            .ok();
    }
    let repo = server.repo(&alice.did).await;
    let now = status(&server, &alice).await;
    for (field, value) in [
        ("activated", json!(true)),
        ("validDid", json!(true)),
        ("repoCommit", json!(repo.commit.cid().to_string())),
        ("repoRev", json!(repo.commit.rev().to_string())),
        ("repoBlocks", json!(repo.blocks.len())),
        ("indexedRecords", json!(40)),
        ("privateStateValues", json!(0)),
        ("expectedBlobs", json!(1)),
        ("importedBlobs", json!(3)),
    ] {
        assert_eq!(now[field], value, "{field}");
    }
    assert_eq!(now.as_object().unwrap().len(), 9);
    deactivate(&server, &alice, json!({})).await;
    assert_eq!(status(&server, &alice).await["activated"], false);
}

#[tokio::test]
async fn an_account_that_is_switched_off_to_be_deleted_goes_when_its_time_has_come_and_not_before() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let server = Server::start().await;
    let mut users = Vec::new();
    for name in ["alice", "bobby", "carol", "david", "erika"] {
        users.push(server.sign_up(name).await);
    }
    let [alice, bobby, carol, david, erika] = &users[..] else {
        panic!("five users")
    };
    for input in [
        json!({"deleteAfter": "soon"}),
        json!({"deleteAfter": 5}),
        json!({"deleteAfter": "2026-13-01T00:00:00Z"}),
    ] {
        let answer = server.call_as(&alice.access, DEACTIVATE, &input).await;
        assert_eq!(answer.error(), (400, "InvalidRequest".into()), "{input}");
    }
    let in_days = |days: u64| {
        let at = server.app.engine.now_micros() + days * 24 * 3600 * 1_000_000;
        json!({"deleteAfter": engine::repo::datetime::format_datetime(at)})
    };
    deactivate(&server, alice, in_days(0)).await;
    deactivate(&server, bobby, in_days(10)).await;
    deactivate(&server, carol, json!({})).await;
    deactivate(&server, david, in_days(0)).await;
    deactivate(&server, erika, in_days(0)).await;
    let deleted = async || server.app.accounts.delete_overdue().await.unwrap();
    assert_eq!(deleted().await, 0, "not before it was off for three days");
    server.sql(TAKE_DOWN, &erika.did).await;
    server.clock.advance(DAY * 2);
    let david = server.log_in("david").await;
    done(&server.poke_as(&david.access, ACTIVATE).await);
    assert_eq!(deleted().await, 0);
    server.clock.advance(DAY + Duration::from_secs(1));
    assert_eq!((deleted().await, deleted().await), (1, 0));
    let kind = account_events(&server, alice).pop();
    assert_eq!(kind, Some(Some(AccountStatus::Deleted)));
    server.clock.advance(DAY * 8);
    assert_eq!((deleted().await, deleted().await), (1, 0));
    assert_eq!(
        account_events(&server, bobby).pop(),
        Some(Some(AccountStatus::Deleted))
    );
    server.clock.advance(DAY * 1000);
    assert_eq!(deleted().await, 0);
    assert_eq!(
        server.count("SELECT count(*) FROM actor").await,
        3,
        "who named no time, came back, or is taken down"
    );
}

#[tokio::test]
async fn a_signing_key_is_reserved_under_a_did_or_for_whoever_asks() {
    const RESERVE: &str = "com.atproto.server.reserveSigningKey";
    const KEPT: &str = "SELECT count(*) FROM reserved_key";
    let server = Server::start().await;
    let key = async |input: Value| {
        let answer = server.call(RESERVE, &input).await.ok();
        let key = answer["signingKey"].as_str().unwrap().to_owned();
        engine::repo::PublicKey::from_did_key(&key).unwrap();
        key
    };
    let did = json!({"did": "did:web:moving.example"});
    let first = key(did.clone()).await;
    assert_eq!(key(did.clone()).await, first);
    let others = [key(json!({})).await, key(json!({})).await];
    assert!(others[0] != others[1] && !others.contains(&first));
    assert_eq!(server.count(KEPT).await, 3);
    let answer = server.call(RESERVE, &json!({"did": "nobody"})).await;
    assert_eq!(answer.error(), (400, "InvalidRequest".into()));
    let again =
        futures_util::future::join_all((0..6).map(|_| key(json!({"did": "did:web:b.example"})))).await;
    assert!(again.iter().all(|key| *key == again[0]));
    let server = server.restart().await;
    let answer = server.call(RESERVE, &did).await.ok();
    assert_eq!(answer["signingKey"], json!(first));
    // What is kept is bounded, and the oldest goes.
    server
        .sql(
            "WITH RECURSIVE n(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM n WHERE n < 9996)
             INSERT INTO reserved_key (name, publicKey, wrapped, createdAt) SELECT n, ?1, x'00', '9999' FROM n",
            &"did:web:many.example".parse().unwrap(),
        )
        .await;
    assert_eq!(server.count(KEPT).await, 10_000);
    server.call(RESERVE, &json!({})).await.ok();
    assert_eq!(server.count(KEPT).await, 10_000);
    let gone = server
        .count("SELECT count(*) FROM reserved_key WHERE createdAt < '9999'")
        .await;
    assert_eq!(gone, 4, "the oldest of four is gone, and the new one is there");
}
