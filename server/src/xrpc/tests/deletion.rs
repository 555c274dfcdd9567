//! The end of an account.

use engine::entry::{Change, Entry, EntryKind};
use engine::log::Lsn;
use engine::repo::event::{self, AccountStatus, Event};
use serde_json::json;

use super::email::{done, mailed};
use crate::testkit::{Answer, PASSWORD, Server, User, account, user};

const ASK: &str = "com.atproto.server.requestAccountDelete";
const DELETE: &str = "com.atproto.server.deleteAccount";
const LOGIN: &str = "com.atproto.server.createSession";

async fn ask(server: &Server, user: &User, email: &str) -> String {
    done(&server.poke_as(&user.access, ASK).await);
    mailed(server, email, "Account Deletion Requested")
}

async fn delete(server: &Server, user: &User, password: &str, token: &str) -> Answer {
    let input = json!({"did": user.did, "password": password, "token": token});
    server.call(DELETE, &input).await
}

/// The `#account` events of an account: its status, none where it is active.
pub(super) fn account_events(server: &Server, user: &User) -> Vec<Option<AccountStatus>> {
    let mut tail = server.app.engine.tail(Lsn::ZERO);
    let mut told = Vec::new();
    loop {
        let frames = tail.next_batch(Lsn::MAX, 16 << 20).unwrap();
        if frames.is_empty() {
            return told;
        }
        for frame in &frames {
            if Entry::decode(frame).unwrap().kind == EntryKind::Account
                && let Event::Account(view) = event::decode(&frame.public()).unwrap()
                && view.did == user.did
            {
                told.push(view.inactive);
            }
        }
    }
}

#[tokio::test]
async fn statement_93_an_account_is_deleted_with_its_password_and_a_mailed_code_and_no_session() {
    let server = Server::start().await;
    let (alice, bobby) = (server.sign_up("alice").await, server.sign_up("bobby").await);
    server.post(&alice, "soon gone").await;
    let code = ask(&server, &alice, "alice@example.com").await;
    let of_bobby = ask(&server, &bobby, "bobby@example.com").await;
    let made = server
        .call_as(
            &alice.access,
            "com.atproto.server.createAppPassword",
            &json!({"name": "x"}),
        )
        .await
        .ok();
    let app_password = made["password"].as_str().unwrap();
    let wrong = (401, "AuthenticationRequired".to_owned());
    for (password, token, error) in [
        ("wrong", code.as_str(), wrong.clone()),
        (app_password, code.as_str(), wrong.clone()),
        (&"x".repeat(513), code.as_str(), wrong),
        (PASSWORD, of_bobby.as_str(), (400, "InvalidToken".into())),
        (PASSWORD, "AAAAA-AAAAA", (400, "InvalidToken".into())),
    ] {
        assert_eq!(
            delete(&server, &alice, password, token).await.error(),
            error,
            "{token}"
        );
    }
    let unknown = json!({"did": "did:plc:ewvi7nxzyoun6zhxrhs64oiz", "password": PASSWORD, "token": code});
    assert_eq!(
        server.call(DELETE, &unknown).await.error(),
        (400, "InvalidRequest".into())
    );
    server.post(&alice, "still here").await;

    done(&delete(&server, &alice, PASSWORD, &code.to_lowercase()).await);
    assert_eq!(
        account_events(&server, &alice),
        [None, Some(AccountStatus::Deleted)]
    );
    let query = format!("did={}", alice.did);
    for method in ["com.atproto.sync.getRepo", "com.atproto.sync.getRepoStatus"] {
        assert_eq!(
            server.query(method, &query).await.error(),
            (400, "RepoNotFound".into()),
            "{method}"
        );
    }
    let input = json!({"identifier": alice.did, "password": PASSWORD});
    assert_eq!(server.call(LOGIN, &input).await.status, 401);
    assert_eq!(
        server
            .query_as(&alice.access, "com.atproto.server.getSession", "")
            .await
            .status,
        400
    );
    let write = json!({"repo": alice.did, "collection": "com.example.note", "record": {"text": "late"}});
    let late = server
        .call_as(&alice.access, "com.atproto.repo.createRecord", &write)
        .await;
    assert_eq!(late.error(), (403, "AccountNotFound".into()));
    for table in ["actor", "account", "signing_key"] {
        let sql = match table {
            "actor" => "SELECT count(*) FROM actor",
            "account" => "SELECT count(*) FROM account",
            _ => "SELECT count(*) FROM signing_key",
        };
        assert_eq!(server.count(sql).await, 1, "{table}: Bobby's");
    }
    assert_eq!(server.count("SELECT count(*) FROM app_password").await, 0);
    server.post(&bobby, "not concerned").await;
    assert!(
        !server.plc.is_buried(&alice.did).await,
        "the identity is its owner's"
    );
    assert_eq!(
        delete(&server, &alice, PASSWORD, &code).await.error(),
        (400, "InvalidRequest".into())
    );

    // Handle and address are free at once, and it holds over a restart.
    let server = server.restart().await;
    let again = user(
        &server
            .call("com.atproto.server.createAccount", &account("alice"))
            .await
            .ok(),
    );
    assert_ne!(again.did, alice.did);
    assert!(server.repo(&again.did).await.records.is_empty());
    assert_eq!(
        server.query("com.atproto.sync.getRepo", &query).await.error(),
        (400, "RepoNotFound".into())
    );
}

#[tokio::test]
async fn rows_event_and_removal_are_one_group_of_the_log() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let code = ask(&server, &alice, "alice@example.com").await;
    done(&delete(&server, &alice, PASSWORD, &code).await);
    let mut tail = server.app.engine.tail(Lsn::ZERO);
    let (mut removed, mut told) = (None, None);
    loop {
        let frames = tail.next_batch(Lsn::MAX, 16 << 20).unwrap();
        if frames.is_empty() {
            break;
        }
        for (at, frame) in frames.iter().enumerate() {
            let entry = Entry::decode(frame).unwrap();
            if entry
                .changes
                .iter()
                .any(|change| matches!(change, Change::RepoRemoved { .. }))
            {
                removed = Some(at);
            }
            if entry.kind == EntryKind::Account && entry.changes.len() == 1 {
                told = Some(at);
            }
        }
    }
    assert_eq!(told, removed.map(|at| at + 1));
}

#[tokio::test]
async fn deletion_works_in_every_state_and_codes_end() {
    let server = Server::start().await;
    for (name, state) in [
        ("alice", "UPDATE actor SET takedownRef = 'x' WHERE did = ?1"),
        ("bobby", "UPDATE actor SET deactivatedAt = 'x' WHERE did = ?1"),
    ] {
        let owner = server.sign_up(name).await;
        let code = ask(&server, &owner, &format!("{name}@example.com")).await;
        server.sql(state, &owner.did).await;
        server
            .sql(
                "INSERT INTO identity_intent (did, operation, handle, createdAt) VALUES (?1, '{}', ?1 || '.test', 'x')",
                &owner.did,
            )
            .await;
        done(&delete(&server, &owner, PASSWORD, &code).await);
    }
    assert_eq!(server.count("SELECT count(*) FROM actor").await, 0);
    assert_eq!(server.count("SELECT count(*) FROM identity_intent").await, 0);
    let carol = server.sign_up("carol").await;
    let code = ask(&server, &carol, "carol@example.com").await;
    server.clock.advance(std::time::Duration::from_secs(15 * 60 + 1));
    let late = delete(&server, &carol, PASSWORD, &code).await;
    assert_eq!(late.error(), (400, "ExpiredToken".into()));
    let input = json!({"handle": "marvin.test", "email": "r@example.com"});
    let robot = user(&server.call("com.atproto.server.createAccount", &input).await.ok());
    let answer = server.poke_as(&robot.access, ASK).await;
    assert_eq!(
        answer.error(),
        (400, "InvalidRequest".into()),
        "without an address no code"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_is_deleted_while_it_writes_ends_once() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let code = ask(&server, &alice, "alice@example.com").await;
    let input = json!({"repo": alice.did, "collection": "com.example.note", "record": {"text": "x"}});
    let writes = futures_util::future::join_all(
        (0..20).map(|_| server.call_as(&alice.access, "com.atproto.repo.createRecord", &input)),
    );
    let deletions = futures_util::future::join_all((0..3).map(|_| delete(&server, &alice, PASSWORD, &code)));
    let (written, deleted) = tokio::join!(writes, deletions);
    assert_eq!(deleted.iter().filter(|answer| answer.status == 200).count(), 1);
    for answer in &deleted {
        assert!([200, 400].contains(&answer.status.as_u16()), "{}", answer.status);
    }
    for answer in written {
        assert!(
            [200, 400, 403, 503].contains(&answer.status.as_u16()),
            "{}",
            answer.status
        );
    }
    assert_eq!(account_events(&server, &alice).len(), 2);
}
