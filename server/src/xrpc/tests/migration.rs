//! Accounts that come from elsewhere, and go there.

use axum::body::Body;
use axum::http::Method;
use engine::repo::Did;
use engine::repo::keys::SigningKey;
use serde_json::{Value, json};

use crate::auth::methods::CREATE_ACCOUNT;
use crate::auth::service_jwt::{ServiceJwt, issue};
use crate::client::plc::PlcClient;
use crate::plc::op::{Operation, PlcState};
use crate::testkit::{Answer, PASSWORD, Server, User, bearer, user};

const TAKE: &str = "com.atproto.server.getServiceAuth";
const SESSION: &str = "com.atproto.server.getSession";
const MISSING: &str = "com.atproto.repo.listMissingBlobs";
const REQUEST: &str = "com.atproto.identity.requestPlcOperationSignature";
const SIGN: &str = "com.atproto.identity.signPlcOperation";
const SUBMIT: &str = "com.atproto.identity.submitPlcOperation";
const RECOMMENDED: &str = "com.atproto.identity.getRecommendedDidCredentials";

/// An identity of somebody who has no account anywhere.
async fn stranger(server: &Server, handle: &str) -> (Did, SigningKey) {
    let key = SigningKey::generate(server.app.engine.entropy()).unwrap();
    let state = PlcState::account(
        &[key.public_key()],
        &key.public_key(),
        &handle.parse().unwrap(),
        "https://elsewhere.example.com",
    );
    let genesis = Operation::genesis(state, &key).unwrap();
    let did = genesis.did().unwrap();
    server.plc.submit(&did, &genesis).await.unwrap();
    (did, key)
}

/// A service token of `did` for a method of `server`.
fn token(server: &Server, did: &Did, key: &SigningKey, lxm: &str) -> String {
    let now = server.app.now_seconds();
    let jwt = ServiceJwt {
        iss: did,
        aud: server.app.config.service_did.as_str(),
        lxm: Some(lxm),
        issued_at: now,
        expires_at: now + 60,
    };
    issue(key, &jwt, server.app.engine.entropy()).unwrap()
}

fn input(did: &Did, handle: &str) -> Value {
    json!({
        "did": did,
        "handle": handle,
        "email": "mover@example.com",
        "password": PASSWORD,
    })
}

async fn arrive(server: &Server, token: &str, input: &Value) -> Answer {
    server.call_as(token, CREATE_ACCOUNT, input).await
}

#[tokio::test]
async fn statement_70_an_account_with_an_existing_identity_begins_deactivated_and_untold() {
    let server = Server::start().await;
    let (did, key) = stranger(&server, "mover.example.com").await;
    let sent = server.plc.submitted().len();
    let answer = arrive(
        &server,
        &token(&server, &did, &key, CREATE_ACCOUNT),
        &input(&did, "mover.test"),
    )
    .await
    .ok();
    assert_eq!(
        (&answer["did"], &answer["handle"]),
        (&json!(did), &json!("mover.test"))
    );
    assert_eq!(
        server.plc.submitted().len(),
        sent,
        "its owner tells the directory"
    );
    let mover = user(&answer);
    let session = server.query_as(&mover.access, SESSION, "").await.ok();
    assert_eq!(
        (&session["active"], &session["status"]),
        (&json!(false), &json!("deactivated"))
    );
    let login = server.log_in("mover").await;
    assert_eq!(login.did, did);
    assert!(server.told(&did).await.is_empty());
    let head = "com.atproto.sync.getLatestCommit";
    let query = format!("did={did}");
    assert_eq!(
        server.query(head, &query).await.error(),
        (400, "RepoDeactivated".into())
    );
    let before = server.query_as(&mover.access, head, &query).await.ok();
    let write = json!({"repo": did, "collection": "com.example.note", "record": {"text": "x"}});
    let refused = server
        .call_as(&mover.access, "com.atproto.repo.createRecord", &write)
        .await;
    assert_eq!(refused.error(), (401, "AccountDeactivated".into()));
    assert_eq!(
        server
            .count("SELECT count(*) FROM actor WHERE julianday(deleteAfter) - julianday(deactivatedAt) BETWEEN 2.99 AND 3.01")
            .await,
        1
    );
    // All of it is in the log.
    let server = server.restart().await;
    assert_eq!(server.query_as(&mover.access, head, &query).await.ok(), before);
    assert!(server.told(&did).await.is_empty());
}

#[tokio::test]
async fn only_the_owner_of_an_identity_brings_it_and_only_once() {
    let server = Server::start().await;
    let (did, key) = stranger(&server, "mover.example.com").await;
    let (other, others_key) = stranger(&server, "other.example.com").await;
    let good = || token(&server, &did, &key, CREATE_ACCOUNT);
    let mover = input(&did, "mover.test");
    let denied = (401, "AuthenticationRequired".to_owned());
    assert_eq!(server.call(CREATE_ACCOUNT, &mover).await.error(), denied);
    let theirs = token(&server, &other, &others_key, CREATE_ACCOUNT);
    assert_eq!(arrive(&server, &theirs, &mover).await.error(), denied);
    let forged = token(&server, &did, &others_key, CREATE_ACCOUNT);
    assert_eq!(
        arrive(&server, &forged, &mover).await.error(),
        (401, "BadJwtSignature".into())
    );
    let upload = token(&server, &did, &key, "com.atproto.repo.uploadBlob");
    assert_eq!(
        arrive(&server, &upload, &mover).await.error(),
        (401, "BadJwtLexiconMethod".into())
    );
    for scheme in ["Basic YWRtaW46eA==", "DPoP x"] {
        let headers = [("content-type", "application/json"), ("authorization", scheme)];
        let path = format!("/xrpc/{CREATE_ACCOUNT}");
        let answer = server
            .request(Method::POST, &path, &headers, mover.to_string())
            .await;
        assert_eq!(answer.error(), denied, "{scheme}");
    }
    for (handle, name) in [
        ("admin.test", "HandleNotAvailable"),
        ("elsewhere.invalid-host.com", "InvalidRequest"),
        ("x", "InvalidHandle"),
    ] {
        let answer = arrive(&server, &good(), &input(&did, handle)).await;
        assert_eq!(answer.error(), (400, name.into()), "{handle}");
    }
    let used = good();
    arrive(&server, &used, &mover).await.ok();
    assert_eq!(
        arrive(&server, &used, &mover).await.error(),
        (401, "JwtReplayed".into())
    );
    let again = input(&did, "again.test");
    assert_eq!(
        arrive(&server, &good(), &again).await.error(),
        (400, "AlreadyExists".into())
    );
    assert_eq!(server.count("SELECT count(*) FROM actor").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_arrivals_of_one_identity_one_gets_in() {
    let server = Server::start().await;
    let (did, key) = stranger(&server, "mover.example.com").await;
    let inputs: Vec<(String, Value)> = (0..4)
        .map(|n| {
            let mut input = input(&did, &format!("mover{n}.test"));
            input["email"] = json!(format!("mover{n}@example.com"));
            (token(&server, &did, &key, CREATE_ACCOUNT), input)
        })
        .collect();
    let all = inputs.iter().map(|(token, input)| arrive(&server, token, input));
    let answers = futures_util::future::join_all(all).await;
    let (won, lost): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert_eq!(won.len(), 1);
    for answer in lost {
        assert_eq!(answer.error(), (400, "AlreadyExists".into()));
    }
    assert_eq!(server.count("SELECT count(*) FROM signing_key").await, 1);
}

async fn upload(server: &Server, user: &User, bytes: &'static [u8]) -> Value {
    server.upload(user, "text/plain", bytes).await.ok()["blob"].clone()
}

/// The code in the newest mail.
fn mailed_code(server: &Server) -> String {
    let mail = server.app.mailer.kept().unwrap().remove(0);
    let (_, rest) = mail.text.split_once("code is ").unwrap();
    rest.chars().take(11).collect()
}

#[tokio::test]
async fn an_account_moves_from_one_server_to_another_with_all_that_it_has() {
    let old = Server::start().await;
    let new = old.beside("new.test").await;
    let alice = old.sign_up("alice").await;
    let picture = upload(&old, &alice, b"a picture").await;
    let note = json!({"repo": alice.did, "collection": "com.example.note", "rkey": "one",
        "record": {"text": "hello", "picture": picture}});
    old.call_as(&alice.access, "com.atproto.repo.putRecord", &note)
        .await
        .ok();
    old.post(&alice, "more").await;
    let before = old.repo(&alice.did).await;

    // A token of the old server opens an account at the new one.
    let aud = &new.app.config.service_did;
    let taken = old
        .query_as(&alice.access, TAKE, &format!("aud={aud}&lxm={CREATE_ACCOUNT}"))
        .await
        .ok();
    let answer = arrive(
        &new,
        taken["token"].as_str().unwrap(),
        &input(&alice.did, "alice.new.test"),
    )
    .await
    .ok();
    let moved = user(&answer);

    let car = old
        .query("com.atproto.sync.getRepo", &format!("did={}", alice.did))
        .await;
    let authorization = bearer(&moved.access);
    let headers = [
        ("content-type", "application/vnd.ipld.car"),
        ("authorization", authorization.as_str()),
    ];
    let path = "/xrpc/com.atproto.repo.importRepo";
    let imported = new
        .request(Method::POST, path, &headers, Body::from(car.body))
        .await;
    assert_eq!(
        imported.status,
        200,
        "{}",
        String::from_utf8_lossy(&imported.body)
    );

    let missing = new.query_as(&moved.access, MISSING, "").await.ok();
    let cid = picture["ref"]["$link"].as_str().unwrap();
    let uri = format!("at://{}/com.example.note/one", alice.did);
    assert_eq!(
        missing,
        json!({"cursor": cid, "blobs": [{"cid": cid, "recordUri": uri}]})
    );
    let further = new
        .query_as(&moved.access, MISSING, &format!("cursor={cid}&limit=1"))
        .await
        .ok();
    assert_eq!(further, json!({"blobs": []}));
    let query = format!("did={}&cid={cid}", alice.did);
    let blob = old.query("com.atproto.sync.getBlob", &query).await;
    assert_eq!(&blob.body[..], b"a picture");
    upload(&new, &moved, b"a picture").await;
    assert_eq!(
        new.query_as(&moved.access, MISSING, "").await.ok(),
        json!({"blobs": []})
    );

    // The identity: recommended by the new one, signed by the old one for a mailed code, submitted by the new one.
    let mut wanted = new.query_as(&moved.access, RECOMMENDED, "").await.ok();
    assert_eq!(wanted["services"]["atproto_pds"]["endpoint"], "https://new.test");
    assert_eq!(wanted["alsoKnownAs"], json!(["at://alice.new.test"]));
    assert_eq!(old.poke_as(&alice.access, REQUEST).await.status, 200);
    let code = mailed_code(&old);
    wanted["token"] = json!("AAAAA-AAAAA");
    assert_eq!(
        old.call_as(&alice.access, SIGN, &wanted).await.error(),
        (400, "InvalidToken".into())
    );
    wanted["token"] = json!(code.to_lowercase());
    let signed = old.call_as(&alice.access, SIGN, &wanted).await.ok();
    assert_eq!(
        old.call_as(&alice.access, SIGN, &wanted).await.error(),
        (400, "InvalidToken".into()),
        "a code works once"
    );
    let submitted = new.call_as(&moved.access, SUBMIT, &signed).await;
    assert_eq!(
        submitted.status,
        200,
        "{}",
        String::from_utf8_lossy(&submitted.body)
    );
    assert_eq!(new.told(&alice.did).await, ["identity -"]);

    // What is here is what was there, signed with the key that the directory names now.
    let exported = new
        .query_as(
            &moved.access,
            "com.atproto.sync.getRepo",
            &format!("did={}", alice.did),
        )
        .await;
    let after = crate::testkit::ExportedRepo::read(&exported.body);
    assert_eq!(after.records, before.records);
    let state = new.plc.data(&alice.did).await.unwrap();
    let key = engine::repo::PublicKey::from_did_key(&state.verification_methods["atproto"]).unwrap();
    after.commit.verify(&key).unwrap();

    // Here it is switched on, there off. Its old tokens are good for nothing here.
    let activate = "com.atproto.server.activateAccount";
    assert_eq!(new.poke_as(&moved.access, activate).await.status, 200);
    assert_eq!(
        new.told(&alice.did).await[1..],
        ["account active", "identity alice.new.test", "sync"]
    );
    let off = old
        .call_as(&alice.access, "com.atproto.server.deactivateAccount", &json!({}))
        .await;
    assert_eq!(off.status, 200);
    assert_eq!(old.told(&alice.did).await.last().unwrap(), "account deactivated");
    new.post(&moved, "from here on").await;
    assert_eq!(new.repo(&alice.did).await.records.len(), 3);
    assert_eq!(
        new.query_as(&alice.access, SESSION, "").await.error(),
        (400, "InvalidToken".into())
    );
}

#[tokio::test]
async fn a_key_that_was_reserved_for_an_identity_signs_its_repo() {
    let server = Server::start().await;
    let (did, key) = stranger(&server, "mover.example.com").await;
    let reserved = server
        .call("com.atproto.server.reserveSigningKey", &json!({ "did": did }))
        .await
        .ok();
    let token = token(&server, &did, &key, CREATE_ACCOUNT);
    let mover = user(&arrive(&server, &token, &input(&did, "mover.test")).await.ok());
    let wanted = server.query_as(&mover.access, RECOMMENDED, "").await.ok();
    assert_eq!(wanted["verificationMethods"]["atproto"], reserved["signingKey"]);
    assert_eq!(server.count("SELECT count(*) FROM reserved_key").await, 0);
    let query = format!("did={did}");
    let car = server
        .query_as(&mover.access, "com.atproto.sync.getRepo", &query)
        .await;
    let signer = reserved["signingKey"].as_str().unwrap();
    let signer = engine::repo::PublicKey::from_did_key(signer).unwrap();
    crate::testkit::ExportedRepo::read(&car.body)
        .commit
        .verify(&signer)
        .unwrap();
}

#[tokio::test]
async fn signatures_need_a_mailed_code_and_the_accounts_own_password() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let now = server.app.now_seconds();
    let scope = crate::auth::tokens::Scope::AppPass;
    let app_password = server.app.tokens.issue_access(&alice.did, scope, now).unwrap();
    assert_eq!(
        server.poke_as(&app_password, REQUEST).await.error(),
        (400, "InvalidToken".into())
    );
    let answer = server.call_as(&alice.access, SIGN, &json!({})).await;
    assert_eq!(answer.error(), (400, "InvalidRequest".into()));
    assert_eq!(
        answer.json()["message"],
        "email confirmation token required to sign PLC operations"
    );
    assert_eq!(server.poke_as(&alice.access, REQUEST).await.status, 200);
    let code = mailed_code(&server);
    server.clock.advance(std::time::Duration::from_secs(16 * 60));
    let late = server
        .call_as(&alice.access, SIGN, &json!({ "token": code }))
        .await;
    assert_eq!(late.error(), (400, "ExpiredToken".into()));
    assert_eq!(server.poke_as(&alice.access, REQUEST).await.status, 200);
    // Without anything else it is the state of now, once more.
    let input = json!({ "token": mailed_code(&server) });
    let signed = server.call_as(&alice.access, SIGN, &input).await.ok();
    let operation = Operation::from_json(&signed["operation"]).unwrap();
    assert_eq!(
        operation.state(),
        server.plc.last_op(&alice.did).await.unwrap().state()
    );
    let submitted = server.call_as(&alice.access, SUBMIT, &signed).await;
    assert_eq!(submitted.status, 200);
}
