//! Sign-ups that race, and sign-ups whose directory is not well: at most one account, and no identity without one.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::testkit::{Answer, Mood, Options, Server, User, account, user};

const CREATE: &str = "com.atproto.server.createAccount";
const INTENTS: &str = "SELECT count(*) FROM plc_intent";
const KEYS: &str = "SELECT count(*) FROM signing_key";
const ACTORS: &str = "SELECT count(*) FROM actor";

/// Sends all at once; the winner, and the names of the losers' errors.
async fn race(server: &Server, inputs: &[Value]) -> (User, Vec<String>) {
    let answers: Vec<Answer> = join_all(inputs.iter().map(|input| server.call(CREATE, input))).await;
    let (won, lost): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert_eq!(won.len(), 1, "exactly one wins");
    let names = lost.iter().map(|answer| {
        let (status, name) = answer.error();
        assert_eq!(status, 400);
        name
    });
    (user(&won[0].ok()), names.collect())
}

/// Nothing is left of the losers, here or in the directory.
async fn check_buried(server: &Server, winner: &User) {
    for did in server.plc.submitted() {
        assert_eq!(server.plc.is_buried(&did).await, did != winner.did, "{did}");
    }
    assert_eq!(server.count(INTENTS).await, 0);
    assert_eq!(server.count(KEYS).await, 1);
    assert_eq!(server.count(ACTORS).await, 1);
    server.post(winner, "hello").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_who_want_one_handle_one_gets_it() {
    let server = Server::start().await;
    let inputs: Vec<Value> = (0..6)
        .map(|n| {
            let mut input = account("alice");
            input["email"] = json!(format!("alice{n}@example.com"));
            input
        })
        .collect();
    let (winner, names) = race(&server, &inputs).await;
    assert!(names.iter().all(|name| name == "HandleNotAvailable"), "{names:?}");
    check_buried(&server, &winner).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_who_give_one_address_one_gets_in() {
    let server = Server::start().await;
    let inputs: Vec<Value> = (0..6)
        .map(|n| {
            let mut input = account("alice");
            input["handle"] = json!(format!("alice{n}.test"));
            input
        })
        .collect();
    let (winner, names) = race(&server, &inputs).await;
    assert!(names.iter().all(|name| name == "InvalidRequest"), "{names:?}");
    check_buried(&server, &winner).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_with_the_last_use_of_a_code_one_gets_in() {
    let options = Options {
        vars: vec![("PDS_INVITE_REQUIRED", "true".to_owned())],
        ..Options::default()
    };
    let server = Server::with(options).await;
    let code = server.app.accounts.create_invite(1, "admin").await.unwrap();
    let inputs: Vec<Value> = (0..6)
        .map(|n| {
            let mut input = account(&format!("alice{n}"));
            input["inviteCode"] = json!(code);
            input
        })
        .collect();
    let (winner, names) = race(&server, &inputs).await;
    assert!(names.iter().all(|name| name == "InvalidInviteCode"), "{names:?}");
    check_buried(&server, &winner).await;
}

#[tokio::test]
async fn a_directory_that_refuses_leaves_nothing() {
    let server = Server::start().await;
    server.plc.set(Mood::Refusing);
    let answer = server.call(CREATE, &account("alice")).await;
    assert_eq!(answer.error(), (400, "InvalidRequest".into()));
    assert_eq!(answer.json()["message"], "scripted refusal");
    for table in [INTENTS, KEYS, ACTORS] {
        assert_eq!(server.count(table).await, 0, "{table}");
    }
    server.plc.set(Mood::Well);
    server.sign_up("alice").await;
}

#[tokio::test]
async fn a_directory_out_of_reach_leaves_an_intent_that_a_later_start_clears() {
    let server = Server::start().await;
    server.plc.set(Mood::Down);
    let answer = server.call(CREATE, &account("alice")).await;
    assert_eq!(answer.error(), (502, "UpstreamFailure".into()));
    assert_eq!((server.count(ACTORS).await, server.count(INTENTS).await), (0, 1));
    let server = server.restart().await;
    assert_eq!(
        server.app.accounts.bury_abandoned().await.unwrap(),
        0,
        "still out of reach"
    );
    assert_eq!(server.count(INTENTS).await, 1);
    server.plc.set(Mood::Well);
    assert_eq!(server.app.accounts.bury_abandoned().await.unwrap(), 1);
    assert_eq!((server.count(INTENTS).await, server.count(KEYS).await), (0, 0));
    assert!(
        server.plc.submitted().is_empty(),
        "nothing was registered, so nothing is buried"
    );
    server.sign_up("alice").await;
}

#[tokio::test]
async fn an_identity_whose_registration_was_not_answered_is_buried_later() {
    let server = Server::start().await;
    server.plc.set(Mood::Mute);
    let answer = server.call(CREATE, &account("alice")).await;
    assert_eq!(answer.error(), (502, "UpstreamFailure".into()));
    let did = server.plc.submitted().remove(0);
    server.plc.set(Mood::Well);
    assert!(!server.plc.is_buried(&did).await);
    let server = server.restart().await;
    assert_eq!(server.app.accounts.bury_abandoned().await.unwrap(), 1);
    assert!(server.plc.is_buried(&did).await);
    assert_eq!((server.count(INTENTS).await, server.count(KEYS).await), (0, 0));
    assert_eq!(
        server.app.accounts.bury_abandoned().await.unwrap(),
        0,
        "once is enough"
    );
}

#[tokio::test]
async fn a_client_that_goes_away_while_signing_up_gets_a_whole_account_or_none() {
    let server = Server::start().await;
    let input = account("alice");
    let gone = server.call(CREATE, &input);
    let waited = tokio::time::timeout(std::time::Duration::from_millis(20), gone).await;
    assert!(waited.is_err(), "hashing the password alone takes longer");
    let deadline = std::time::Instant::now() + crate::testkit::PATIENCE;
    while server.count(ACTORS).await == 0 {
        assert!(
            std::time::Instant::now() < deadline,
            "the sign-up goes on without its client"
        );
    }
    assert_eq!((server.count(INTENTS).await, server.count(KEYS).await), (0, 1));
    let input = json!({"identifier": "alice.test", "password": crate::testkit::PASSWORD});
    let alice = user(&server.call("com.atproto.server.createSession", &input).await.ok());
    server.post(&alice, "here after all").await;
}

#[tokio::test]
async fn nothing_that_is_printed_holds_a_secret() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let account = server.app.accounts.by_did(&alice.did).await.unwrap().unwrap();
    let printed = format!("{account:?}");
    assert!(printed.contains(alice.did.as_str()));
    assert!(!printed.contains("example.com"));
    let hash = account.password_hash.clone().unwrap();
    assert!(!printed.contains(&hash));
    let session = server
        .app
        .accounts
        .login("alice.test", crate::testkit::PASSWORD, false)
        .await
        .unwrap();
    let printed = format!("{session:?}");
    assert!(!printed.contains(&session.access) && !printed.contains(&session.refresh));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_an_account_shows_at_once_in_the_account_that_was_remembered() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let accounts = &server.app.accounts;
    let revision = || server.app.engine.accounts().revision();
    let before = revision();
    let handle = "alice.test".parse().unwrap();
    for _ in 0..2 {
        assert!(accounts.by_did(&alice.did).await.unwrap().unwrap().is_active());
        assert_eq!(accounts.by_handle(&handle).await.unwrap().unwrap().did, alice.did);
    }
    // Sessions and sign-ups leave what is remembered alone.
    server.log_in("alice").await;
    server.sign_up("bobby").await;
    assert_eq!(revision(), before);

    server
        .sql("UPDATE actor SET takedownRef = 'x' WHERE did = ?1", &alice.did)
        .await;
    assert!(!accounts.by_did(&alice.did).await.unwrap().unwrap().is_active());
    assert!(!accounts.by_handle(&handle).await.unwrap().unwrap().is_active());
    server
        .sql(
            "UPDATE actor SET takedownRef = NULL, handle = 'alicia.test' WHERE did = ?1",
            &alice.did,
        )
        .await;
    assert!(accounts.by_handle(&handle).await.unwrap().is_none());
    let renamed = accounts
        .by_handle(&"alicia.test".parse().unwrap())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(renamed.did, alice.did);
    assert!(renamed.is_active());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_hash_of_the_reference_server_is_replaced_at_login() {
    const SCRYPT: &str = "UPDATE account SET passwordScrypt =
        '00112233445566778899aabbccddeeff:5699cfee2c5c280e66678242092f368ce88ff05305af2c75a9e629d473deb2165b3797e0e31ec3cda30414573befb697f928384c38b187e8c176107e5be20f01'
        WHERE did = ?1";
    const BETTER: &str = "SELECT count(*) FROM account WHERE passwordScrypt LIKE '$argon2id$%'";
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    assert_eq!(server.count(BETTER).await, 1);
    server.sql(SCRYPT, &alice.did).await;
    assert_eq!(server.count(BETTER).await, 0);
    let log_in = |password: &'static str| {
        let server = &server;
        async move {
            let input = json!({ "identifier": "alice.test", "password": password });
            server
                .call("com.atproto.server.createSession", &input)
                .await
                .status
        }
    };
    assert_eq!(log_in("wrong").await, 401);
    assert_eq!(server.count(BETTER).await, 0);
    for _ in 0..2 {
        assert_eq!(log_in("correct horse battery staple").await, 200);
        assert_eq!(server.count(BETTER).await, 1);
    }
}
