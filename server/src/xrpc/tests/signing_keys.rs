//! `com.atproto.admin.updateAccountSigningKey`, and what becomes of it when the directory or this server is not well.

use engine::repo::PublicKey;
use serde_json::{Value, json};

use crate::client::plc::PlcClient;
use crate::testkit::{Mood, Server, User};

const UPDATE: &str = "com.atproto.admin.updateAccountSigningKey";
const INTENTS: &str = "SELECT count(*) FROM identity_intent";

async fn reserve(server: &Server, input: &Value) -> String {
    let nsid = "com.atproto.server.reserveSigningKey";
    let answer = server.call(nsid, input).await.ok();
    answer["signingKey"].as_str().unwrap().to_owned()
}

fn input(user: &User, key: &str) -> Value {
    json!({"did": user.did, "signingKey": key})
}

/// The key that the directory names.
async fn named(server: &Server, user: &User) -> String {
    let state = server.plc.data(&user.did).await.unwrap();
    state.verification_methods["atproto"].clone()
}

/// The key that signs here.
async fn own(server: &Server, user: &User) -> String {
    let key = server.keys.get(&user.did).await.unwrap().unwrap();
    key.public_key().to_did_key()
}

#[tokio::test]
async fn a_reserved_key_takes_over_in_the_directory_and_the_repo_and_is_told() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    server.post(&alice, "one").await;
    for reserved in [json!({}), json!({"did": alice.did})] {
        let key = reserve(&server, &reserved).await;
        let (told, repo) = (server.told(&alice.did).await.len(), server.repo(&alice.did).await);
        let answer = server.as_admin(UPDATE, &input(&alice, &key)).await;
        assert_eq!(
            (answer.status.as_u16(), answer.body.len()),
            (200, 0),
            "{}",
            String::from_utf8_lossy(&answer.body)
        );
        assert_eq!(named(&server, &alice).await, key);
        assert_eq!(own(&server, &alice).await, key);
        assert_eq!(
            server.told(&alice.did).await[told..],
            ["identity alice.test", "sync"]
        );
        // What is exported is signed with the key that the directory names, and holds the same.
        let after = server.repo(&alice.did).await;
        assert_eq!(after.records, repo.records);
        assert!(after.commit.rev() > repo.commit.rev());
        server.post(&alice, "signed with the new key").await;
        assert_eq!(
            server.repo(&alice.did).await.records.len(),
            repo.records.len() + 1
        );
        // Once more it is so already.
        let told = server.told(&alice.did).await.len();
        assert_eq!(server.as_admin(UPDATE, &input(&alice, &key)).await.status, 200);
        assert_eq!(server.told(&alice.did).await.len(), told);
    }
    assert_eq!(server.count("SELECT count(*) FROM reserved_key").await, 0);
    assert_eq!(server.count(INTENTS).await, 0);
    let key = own(&server, &alice).await;
    let server = server.restart().await;
    assert_eq!(own(&server, &alice).await, key);
    server.post(&alice, "after a restart").await;
    server.repo(&alice.did).await;
}

#[tokio::test]
async fn only_the_administrator_sets_a_key_and_only_one_that_is_here() {
    let server = Server::start().await;
    let (alice, bob) = (server.sign_up("alice").await, server.sign_up("bob").await);
    let (before, told) = (named(&server, &alice).await, server.told(&alice.did).await);
    let foreign = "did:key:zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme";
    let of_bob = reserve(&server, &json!({"did": bob.did})).await;
    for key in [foreign, of_bob.as_str(), "did:key:nope", "x"] {
        let answer = server.as_admin(UPDATE, &input(&alice, key)).await;
        assert_eq!(answer.error(), (400, "InvalidRequest".into()), "{key}");
    }
    let key = reserve(&server, &json!({})).await;
    let unknown = json!({"did": "did:plc:ewvi7nxzyoun6zhxrhs64oiz", "signingKey": key});
    assert_eq!(
        server.as_admin(UPDATE, &unknown).await.error(),
        (400, "InvalidRequest".into())
    );
    for answer in [
        server.call(UPDATE, &input(&alice, &key)).await,
        server.call_as(&alice.access, UPDATE, &input(&alice, &key)).await,
    ] {
        assert_eq!(answer.error(), (401, "AuthenticationRequired".into()));
    }
    server.plc.set(Mood::Refusing);
    let refused = server.as_admin(UPDATE, &input(&alice, &key)).await;
    assert_eq!(refused.error(), (400, "InvalidRequest".into()));
    server.plc.set(Mood::Well);
    assert_eq!(server.count(INTENTS).await, 0);
    assert_eq!(named(&server, &alice).await, before);
    assert_eq!(own(&server, &alice).await, before);
    assert_eq!(server.told(&alice.did).await, told);
    server.post(&alice, "goes on").await;
}

#[tokio::test]
async fn a_lost_answer_of_the_directory_is_made_good_and_the_repo_is_signed_with_what_it_names() {
    for restart in [false, true] {
        let mut server = Server::start().await;
        let alice = server.sign_up("alice").await;
        let key = reserve(&server, &json!({})).await;
        server.plc.set(Mood::Dying);
        let answer = server.as_admin(UPDATE, &input(&alice, &key)).await;
        assert_eq!(answer.error(), (502, "UpstreamFailure".into()));
        assert_eq!(server.count(INTENTS).await, 1);
        server.post(&alice, "with the old key, since nobody knows").await;
        assert_ne!(own(&server, &alice).await, key);
        server.plc.set(Mood::Well);
        assert_eq!(named(&server, &alice).await, key, "the directory has it");
        if restart {
            server = server.restart().await;
            let looked = server.app.identities.resume().await.unwrap();
            assert_eq!((looked.settled, looked.left), (1, 0));
        } else {
            let answer = server.as_admin(UPDATE, &input(&alice, &key)).await;
            assert_eq!(answer.status, 200);
        }
        assert_eq!(server.count(INTENTS).await, 0);
        assert_eq!(own(&server, &alice).await, key);
        let told = server.told(&alice.did).await;
        assert_eq!(told[told.len() - 2..], ["identity alice.test", "sync"]);
        assert_eq!(server.repo(&alice.did).await.records.len(), 1);
        server.post(&alice, "with the new one").await;
        server.repo(&alice.did).await;
    }
}

#[tokio::test]
async fn a_key_that_the_directory_never_saw_is_given_up() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let before = own(&server, &alice).await;
    let sql = "INSERT INTO identity_intent (did, operation, publicKey, wrapped, createdAt) VALUES (?1, '{}', 'did:key:x', x'00', 'x')";
    server.sql(sql, &alice.did).await;
    let server = server.restart().await;
    let looked = server.app.identities.resume().await.unwrap();
    assert_eq!((looked.settled, looked.left), (1, 0));
    assert_eq!(server.count(INTENTS).await, 0);
    assert_eq!(own(&server, &alice).await, before);
    server.post(&alice, "as before").await;
    server.repo(&alice.did).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_commit_with_the_old_key_comes_behind_the_new_one() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let key = reserve(&server, &json!({})).await;
    let write = json!({"repo": alice.did, "collection": crate::testkit::NOTE, "record": {"text": "x"}});
    let writing = async {
        let mut made = 0;
        for _ in 0..40 {
            let nsid = "com.atproto.repo.createRecord";
            let answer = server.call_as(&alice.access, nsid, &write).await;
            match answer.status.as_u16() {
                200 => made += 1,
                503 => tokio::task::yield_now().await,
                _ => panic!("{}", String::from_utf8_lossy(&answer.body)),
            }
        }
        made
    };
    let update = input(&alice, &key);
    let (made, updated) = futures_util::join!(writing, server.as_admin(UPDATE, &update));
    assert_eq!(updated.status, 200);
    let repo = server.repo(&alice.did).await;
    assert_eq!(repo.records.len(), made);
    // Of all commits and syncs, those from the first one of the new key on are its.
    let new = PublicKey::from_did_key(&key).unwrap();
    let mut by_new = Vec::new();
    for commit in server.commits(&alice.did) {
        by_new.push(commit.verify(&new).is_ok());
    }
    assert!(by_new.contains(&true) && by_new.is_sorted(), "{by_new:?}");
}

#[tokio::test]
async fn an_account_that_is_off_gets_its_key_and_its_repo_is_not_announced() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let off = "com.atproto.server.deactivateAccount";
    assert_eq!(server.call_as(&alice.access, off, &json!({})).await.status, 200);
    let told = server.told(&alice.did).await.len();
    let key = reserve(&server, &json!({})).await;
    assert_eq!(server.as_admin(UPDATE, &input(&alice, &key)).await.status, 200);
    assert_eq!(server.told(&alice.did).await[told..], ["identity alice.test"]);
    let on = "com.atproto.server.activateAccount";
    assert_eq!(server.poke_as(&alice.access, on).await.status, 200);
    assert_eq!(server.told(&alice.did).await.last().unwrap(), "sync");
    server.repo(&alice.did).await;
}
