//! Statements about the reference that belong to no group of methods, or to several.

use axum::body::Body;
use axum::http::Method;
use engine::repo::cbor::Value as Cbor;
use engine::repo::{SigningKey, car};
use serde_json::{Value, json};

use crate::client::plc::PlcClient;
use crate::testkit::{ExportedRepo, NOTE, Options, Server, User, account, basic, user};

async fn head(server: &Server, user: &User) -> Value {
    let query = format!("did={}", user.did);
    server
        .query("com.atproto.sync.getLatestCommit", &query)
        .await
        .ok()
}

#[tokio::test]
async fn statement_13_the_did_of_a_handle_is_text_on_its_host_and_of_active_accounts_only() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let ask = async || {
        let headers = [("host", "alice.test")];
        let path = "/.well-known/atproto-did";
        server.request(Method::GET, path, &headers, Body::empty()).await
    };
    let answer = ask().await;
    assert_eq!(
        (answer.status.as_u16(), &answer.body[..]),
        (200, alice.did.as_str().as_bytes())
    );
    assert!(answer.header("content-type").unwrap().starts_with("text/plain"));
    for sql in [
        "UPDATE actor SET deactivatedAt = 'x' WHERE did = ?1",
        "UPDATE actor SET deactivatedAt = NULL, takedownRef = 'x' WHERE did = ?1",
    ] {
        server.sql(sql, &alice.did).await;
        let answer = ask().await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body[..]),
            (404, &b"User not found"[..])
        );
    }
    server
        .sql("UPDATE actor SET takedownRef = NULL WHERE did = ?1", &alice.did)
        .await;
    assert_eq!(ask().await.status, 200);
}

/// Better than the reference: who is logged in when a takedown is taken back stays so.
#[tokio::test]
async fn statement_28_a_takedown_that_is_taken_back_ends_no_session() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let status = "com.atproto.admin.updateSubjectStatus";
    let subject = json!({"$type": "com.atproto.admin.defs#repoRef", "did": alice.did});
    let back = json!({"subject": subject, "takedown": {"applied": false}});
    server.as_admin(status, &back).await.ok();
    let refresh = "com.atproto.server.refreshSession";
    let alice = user(&server.poke_as(&alice.refresh, refresh).await.ok());
    let down = json!({"subject": subject, "takedown": {"applied": true}});
    server.as_admin(status, &down).await.ok();
    server.as_admin(status, &back).await.ok();
    assert_eq!(
        server.poke_as(&alice.refresh, refresh).await.error(),
        (400, "ExpiredToken".into()),
        "the takedown itself has ended it"
    );
}

#[tokio::test]
async fn statement_48_a_commit_says_that_it_has_no_predecessor() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    for _ in 0..2 {
        let commit = server.repo(&alice.did).await.commit;
        let decoded = Cbor::decode(commit.bytes()).unwrap();
        let fields = decoded.as_map().unwrap();
        let names: Vec<&str> = fields.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["did", "rev", "sig", "data", "prev", "version"]);
        assert!(matches!(fields.get("prev"), Some(Cbor::Null)));
        assert!(matches!(fields.get("version"), Some(Cbor::Int(3))));
        server.post(&alice, "another").await;
    }
}

#[tokio::test]
async fn statements_49_and_50_what_changes_nothing_is_no_commit_no_event_and_no_revision() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let put = json!({"repo": alice.did, "collection": NOTE, "rkey": "one", "record": {"text": "a"}});
    let nsid = "com.atproto.repo.putRecord";
    server.call_as(&alice.access, nsid, &put).await.ok();
    let before = (head(&server, &alice).await, server.told(&alice.did).await);
    let again = server.call_as(&alice.access, nsid, &put).await.ok();
    assert!(again.get("commit").is_none());
    let delete = json!({"repo": alice.did, "collection": NOTE, "rkey": "none"});
    let nsid = "com.atproto.repo.deleteRecord";
    assert_eq!(server.call_as(&alice.access, nsid, &delete).await.ok(), json!({}));
    let after = (head(&server, &alice).await, server.told(&alice.did).await);
    assert_eq!(after, before);
}

#[tokio::test]
async fn statement_86_the_owners_recovery_key_is_before_the_operators_and_that_before_the_servers() {
    let key = |n: u8| {
        SigningKey::from_bytes(&[n; 32])
            .unwrap()
            .public_key()
            .to_did_key()
    };
    let (owners, operators, own) = (key(2), key(3), key(0x11));
    let options = Options {
        vars: vec![("PDS_RECOVERY_DID_KEY", operators.clone())],
        ..Options::default()
    };
    let server = Server::with(options).await;
    let create = "com.atproto.server.createAccount";
    for (name, recovery, expected) in [
        ("alice", Some(&owners), vec![&owners, &operators, &own]),
        ("bobby", None, vec![&operators, &own]),
        // The directory takes no key twice.
        ("carla", Some(&operators), vec![&operators, &own]),
    ] {
        let mut input = account(name);
        if let Some(recovery) = recovery {
            input["recoveryKey"] = json!(recovery);
        }
        let who = user(&server.call(create, &input).await.ok());
        let state = server.plc.data(&who.did).await.unwrap();
        assert_eq!(state.rotation_keys.iter().collect::<Vec<_>>(), expected, "{name}");
    }
}

#[tokio::test]
async fn the_old_names_of_a_repos_head_and_export_are_answered() {
    const HEAD: &str = "com.atproto.sync.getHead";
    const CHECKOUT: &str = "com.atproto.sync.getCheckout";
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    server.post(&alice, "one").await;
    let query = format!("did={}", alice.did);
    let root = server.query(HEAD, &query).await.ok();
    assert_eq!(root, json!({"root": head(&server, &alice).await["cid"]}));
    let car = server.query(CHECKOUT, &query).await;
    assert_eq!(car.header("content-type"), Some("application/vnd.ipld.car"));
    let roots = car::CarSlice::new(&car.body, Default::default())
        .unwrap()
        .roots()
        .to_vec();
    assert_eq!(json!(roots[0].to_string()), root["root"]);
    assert_eq!(ExportedRepo::read(&car.body).records.len(), 1);
    server
        .sql("UPDATE actor SET takedownRef = 'x' WHERE did = ?1", &alice.did)
        .await;
    for nsid in [HEAD, CHECKOUT] {
        assert_eq!(
            server.query(nsid, &query).await.error(),
            (400, "RepoTakendown".into())
        );
        let unknown = "did=did:plc:ewvi7nxzyoun6zhxrhs64oiz";
        assert_eq!(
            server.query(nsid, unknown).await.error(),
            (400, "RepoNotFound".into())
        );
        assert_eq!(
            server.query(nsid, "did=x").await.error(),
            (400, "InvalidRequest".into())
        );
        let headers = [("authorization", basic())];
        let headers = [(headers[0].0, headers[0].1.as_str())];
        let path = format!("/xrpc/{nsid}?{query}");
        let answer = server.request(Method::GET, &path, &headers, Body::empty()).await;
        assert_eq!(answer.status, 200, "the administrator");
    }
}
