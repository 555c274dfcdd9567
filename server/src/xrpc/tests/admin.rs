//! `com.atproto.admin.*`: what administrators and moderators see and do, and what becomes of what they hide.

use axum::body::Body;
use axum::http::Method;
use engine::repo::keys::SigningKey;
use serde_json::{Value, json};

use crate::auth::service_jwt::{ServiceJwt, issue};
use crate::client::plc::PlcClient;
use crate::plc::op::{Operation, PlcState};
use crate::service::mail::stub::Stub;
use crate::testkit::{Answer, Mood, NOTE, Options, PASSWORD, Server, User, basic, bearer};

const UPDATE: &str = "com.atproto.admin.updateSubjectStatus";
const STATUS: &str = "com.atproto.admin.getSubjectStatus";
const INFO: &str = "com.atproto.admin.getAccountInfo";
const LOGIN: &str = "com.atproto.server.createSession";
const REFRESH: &str = "com.atproto.server.refreshSession";

impl Server {
    async fn ask_as_admin(&self, nsid: &str, query: &str) -> Answer {
        let authorization = basic();
        let headers = [("authorization", authorization.as_str())];
        self.request(
            Method::GET,
            &format!("/xrpc/{nsid}?{query}"),
            &headers,
            Body::empty(),
        )
        .await
    }

    async fn set_status(&self, subject: &Value, more: &Value) -> Answer {
        let mut input = more.clone();
        input["subject"] = subject.clone();
        self.as_admin(UPDATE, &input).await
    }

    /// Whose action on what came to what, in order.
    pub(super) async fn audited(&self) -> Vec<[String; 4]> {
        let read = self.app.engine.accounts().read(|conn| {
            let sql = "SELECT actor, action, subject, detail FROM admin_audit ORDER BY id";
            let mut rows = conn.prepare(sql)?;
            let rows = rows.query_map([], |row| {
                let detail: Value = serde_json::from_str(&row.get::<_, String>(3)?).unwrap();
                let outcome = detail["outcome"].as_str().unwrap_or("unknown").to_owned();
                Ok([row.get(0)?, row.get(1)?, row.get(2)?, outcome])
            })?;
            Ok::<_, engine::views::accounts::AccountsError>(rows.collect::<rusqlite::Result<_>>()?)
        });
        read.await.unwrap()
    }

    async fn noted(&self) -> Vec<(String, String)> {
        let read = self.app.engine.accounts().read(|conn| {
            let mut rows = conn.prepare("SELECT actor, action FROM admin_audit ORDER BY id")?;
            let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok::<_, engine::views::accounts::AccountsError>(rows.collect::<rusqlite::Result<_>>()?)
        });
        read.await.unwrap()
    }
}

fn account(user: &User) -> Value {
    json!({ "$type": "com.atproto.admin.defs#repoRef", "did": user.did })
}

fn hidden(applied: bool) -> Value {
    json!({ "takedown": { "applied": applied, "ref": "case-7" } })
}

#[tokio::test]
async fn an_account_that_is_taken_down_is_out_of_all_answers_and_its_sessions_end() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    server.post(&alice, "hello").await;
    let before = server.told(&alice.did).await.len();
    let answer = server.set_status(&account(&alice), &hidden(true)).await.ok();
    assert_eq!(
        answer,
        json!({"subject": account(&alice), "takedown": {"applied": true, "ref": "case-7"}})
    );
    assert_eq!(server.told(&alice.did).await[before..], ["account takendown"]);
    assert_eq!(
        server.poke_as(&alice.refresh, REFRESH).await.error(),
        (401, "AccountTakedown".into())
    );
    let input = json!({"identifier": "alice.test", "password": PASSWORD});
    assert_eq!(
        server.call(LOGIN, &input).await.error(),
        (401, "AccountTakedown".into())
    );
    let query = format!("did={}", alice.did);
    let head = "com.atproto.sync.getLatestCommit";
    assert_eq!(
        server.query(head, &query).await.error(),
        (400, "RepoTakendown".into())
    );
    let status = server.query("com.atproto.sync.getRepoStatus", &query).await.ok();
    assert_eq!(
        (&status["active"], &status["status"]),
        (&json!(false), &json!("takendown"))
    );
    let resolve = server
        .query("com.atproto.identity.resolveHandle", "handle=alice.test")
        .await;
    assert_eq!(resolve.error(), (400, "HandleNotFound".into()));
    let status = server.ask_as_admin(STATUS, &query).await.ok();
    assert_eq!(
        status,
        json!({"subject": account(&alice), "takedown": {"applied": true, "ref": "case-7"}, "deactivated": {"applied": false}})
    );
    // It survives a restart, and ends.
    let server = server.restart().await;
    assert_eq!(
        server.query(head, &query).await.error(),
        (400, "RepoTakendown".into())
    );
    server.set_status(&account(&alice), &hidden(false)).await.ok();
    assert_eq!(
        server.told(&alice.did).await[before..],
        ["account takendown", "account active"]
    );
    server.query(head, &query).await.ok();
    server.log_in("alice").await;
    assert_eq!(
        server.noted().await,
        vec![("admin".to_owned(), UPDATE.to_owned()); 2]
    );
}

#[tokio::test]
async fn an_account_is_deactivated_and_activated_in_its_owners_place() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let before = server.told(&alice.did).await.len();
    let off = |applied: bool| json!({ "deactivated": { "applied": applied } });
    server.set_status(&account(&alice), &off(true)).await.ok();
    let status = server
        .ask_as_admin(STATUS, &format!("did={}", alice.did))
        .await
        .ok();
    assert_eq!(status["deactivated"], json!({ "applied": true }));
    let view = server
        .ask_as_admin(INFO, &format!("did={}", alice.did))
        .await
        .ok();
    assert!(view["deactivatedAt"].is_string());
    server.set_status(&account(&alice), &off(false)).await.ok();
    assert_eq!(
        server.told(&alice.did).await[before..],
        [
            "account deactivated",
            "account active",
            "identity alice.test",
            "sync"
        ]
    );
    let both = json!({"takedown": {"applied": true}, "deactivated": {"applied": false}});
    assert_eq!(
        server.set_status(&account(&alice), &both).await.error(),
        (400, "InvalidRequest".into())
    );
    // Without either the state is told again.
    server.set_status(&account(&alice), &json!({})).await.ok();
    assert_eq!(server.told(&alice.did).await.last().unwrap(), "account active");
    // Better than the reference: nobody is told about an account that is not here.
    let unknown =
        json!({ "$type": "com.atproto.admin.defs#repoRef", "did": "did:plc:ewvi7nxzyoun6zhxrhs64oiz" });
    assert_eq!(
        server.set_status(&unknown, &hidden(true)).await.error(),
        (400, "NotFound".into())
    );
    let odd = json!({ "$type": "com.example.thing", "did": alice.did });
    assert_eq!(
        server.set_status(&odd, &hidden(true)).await.error(),
        (400, "InvalidRequest".into())
    );
}

#[tokio::test]
async fn a_hidden_record_is_in_no_answer_about_records_and_stays_in_the_repo() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let mut uris = Vec::new();
    for text in ["one", "two", "three"] {
        let made = server.post(&alice, text).await;
        uris.push((made["uri"].as_str().unwrap().to_owned(), made["cid"].clone()));
    }
    let (uri, cid) = &uris[1];
    let subject = json!({ "$type": "com.atproto.repo.strongRef", "uri": uri, "cid": cid });
    let head = server.repo(&alice.did).await;
    server.set_status(&subject, &hidden(true)).await.ok();
    let rkey = uri.rsplit('/').next().unwrap();
    let get = format!("repo={}&collection={NOTE}&rkey={rkey}", alice.did);
    assert_eq!(
        server.query("com.atproto.repo.getRecord", &get).await.error(),
        (400, "RecordNotFound".into())
    );
    let list = format!("repo={}&collection={NOTE}&limit=2", alice.did);
    let listed = server.query("com.atproto.repo.listRecords", &list).await.ok();
    let found: Vec<_> = listed["records"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["uri"])
        .collect();
    assert_eq!(found, [&json!(uris[2].0), &json!(uris[0].0)], "the page is full");
    let status = server.ask_as_admin(STATUS, &format!("uri={uri}")).await.ok();
    assert_eq!(
        status,
        json!({"subject": subject, "takedown": {"applied": true, "ref": "case-7"}})
    );
    let after = server.repo(&alice.did).await;
    assert_eq!(
        (after.commit.cid(), after.records),
        (head.commit.cid(), head.records)
    );
    let server = server.restart().await;
    assert_eq!(
        server.query("com.atproto.repo.getRecord", &get).await.error(),
        (400, "RecordNotFound".into())
    );
    server.set_status(&subject, &hidden(false)).await.ok();
    server.query("com.atproto.repo.getRecord", &get).await.ok();
    let status = server.ask_as_admin(STATUS, &format!("uri={uri}")).await.ok();
    assert_eq!(status["takedown"], json!({ "applied": false }));
}

#[tokio::test]
async fn a_hidden_blob_is_not_served_uploaded_or_referenced_again() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let blob = server.upload(&alice, "text/plain", "a picture").await.ok()["blob"].clone();
    let record = json!({"repo": alice.did, "collection": NOTE, "rkey": "one", "record": {"picture": blob}});
    let put = "com.atproto.repo.putRecord";
    server.call_as(&alice.access, put, &record).await.ok();
    let cid = blob["ref"]["$link"].as_str().unwrap();
    let query = format!("did={}&cid={cid}", alice.did);
    assert_eq!(server.query("com.atproto.sync.getBlob", &query).await.status, 200);
    let subject = json!({ "$type": "com.atproto.admin.defs#repoBlobRef", "did": alice.did, "cid": cid });
    server.set_status(&subject, &hidden(true)).await.ok();
    let gone = server.query("com.atproto.sync.getBlob", &query).await;
    assert_eq!(gone.error(), (400, "InvalidRequest".into()));
    assert_eq!(gone.json()["message"], "Blob not found");
    let again = server.upload(&alice, "text/plain", "a picture").await;
    assert_eq!(again.error(), (400, "InvalidRequest".into()));
    let mut other = record.clone();
    other["rkey"] = json!("two");
    assert_eq!(
        server.call_as(&alice.access, put, &other).await.error(),
        (400, "BlobNotFound".into())
    );
    let writes = json!({"repo": alice.did, "writes": [{"$type": "com.atproto.repo.applyWrites#create",
        "collection": NOTE, "rkey": "two", "value": {"picture": blob}}]});
    assert_eq!(
        server
            .call_as(&alice.access, "com.atproto.repo.applyWrites", &writes)
            .await
            .error(),
        (400, "BlobNotFound".into())
    );
    let status = server
        .ask_as_admin(STATUS, &format!("did={}&blob={cid}", alice.did))
        .await
        .ok();
    assert_eq!(
        status,
        json!({"subject": subject, "takedown": {"applied": true, "ref": "case-7"}})
    );
    server.set_status(&subject, &hidden(false)).await.ok();
    assert_eq!(server.query("com.atproto.sync.getBlob", &query).await.status, 200);
    server.call_as(&alice.access, put, &other).await.ok();
    assert_eq!(
        server.ask_as_admin(STATUS, &format!("blob={cid}")).await.error(),
        (400, "InvalidRequest".into())
    );
    assert_eq!(
        server
            .ask_as_admin(STATUS, &format!("uri=at://{}/{NOTE}/none", alice.did))
            .await
            .error(),
        (400, "NotFound".into())
    );
}

#[tokio::test]
async fn accounts_are_shown_alone_together_and_by_their_address() {
    let server = Server::start().await;
    let mut users = Vec::new();
    for name in ["alice", "bob", "carla"] {
        users.push(server.sign_up(name).await);
    }
    let view = server
        .ask_as_admin(INFO, &format!("did={}", users[0].did))
        .await
        .ok();
    assert_eq!(view["email"], "alice@example.com");
    assert_eq!(view["handle"], "alice.test");
    assert_eq!(
        (&view["invites"], &view["invitesDisabled"]),
        (&json!([]), &json!(false))
    );
    assert!(view["indexedAt"].is_string() && view.get("deactivatedAt").is_none());
    let unknown = "did:plc:ewvi7nxzyoun6zhxrhs64oiz";
    assert_eq!(
        server.ask_as_admin(INFO, &format!("did={unknown}")).await.error(),
        (400, "NotFound".into())
    );
    let infos = server
        .ask_as_admin(
            "com.atproto.admin.getAccountInfos",
            &format!("dids={}&dids={unknown}&dids={}", users[2].did, users[0].did),
        )
        .await
        .ok();
    let dids = |found: &Value| -> Vec<String> {
        let rows = found.as_array().unwrap().iter();
        rows.map(|row| row["did"].as_str().unwrap().to_owned()).collect()
    };
    let all: Vec<String> = users.iter().map(|user| user.did.to_string()).collect();
    assert_eq!(dids(&infos["infos"]), [all[2].clone(), all[0].clone()]);
    let search = "com.atproto.admin.searchAccounts";
    let found = server.ask_as_admin(search, "email=BOB%40").await.ok();
    assert_eq!(dids(&found["accounts"]), [all[1].clone()]);
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = server
            .ask_as_admin(search, &format!("limit=2&cursor={cursor}"))
            .await
            .ok();
        seen.extend(dids(&page["accounts"]));
        match page["cursor"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(seen, all);
    assert_eq!(
        server.ask_as_admin(search, "cursor=x").await.error(),
        (400, "InvalidRequest".into())
    );
}

#[tokio::test]
async fn the_administrator_sets_address_handle_and_password_and_deletes() {
    let server = Server::start().await;
    let (alice, bob) = (server.sign_up("alice").await, server.sign_up("bob").await);
    let email = "com.atproto.admin.updateAccountEmail";
    let input = json!({"account": "alice.test", "email": "New@example.com"});
    assert_eq!(server.as_admin(email, &input).await.status, 200);
    let view = server
        .ask_as_admin(INFO, &format!("did={}", alice.did))
        .await
        .ok();
    assert_eq!(view["email"], "new@example.com");
    let taken = json!({"account": alice.did, "email": "bob@example.com"});
    assert_eq!(
        server.as_admin(email, &taken).await.error(),
        (400, "InvalidRequest".into())
    );

    let handle = "com.atproto.admin.updateAccountHandle";
    let reserved = json!({"did": alice.did, "handle": "admin.test"});
    assert_eq!(server.as_admin(handle, &reserved).await.status, 200);
    let state = server.plc.data(&alice.did).await.unwrap();
    assert_eq!(state.also_known_as, ["at://admin.test"]);
    let taken = json!({"did": alice.did, "handle": "bob.test"});
    assert_eq!(
        server.as_admin(handle, &taken).await.error(),
        (400, "HandleNotAvailable".into())
    );

    let password = "com.atproto.admin.updateAccountPassword";
    let input = json!({"did": alice.did, "password": "another horse"});
    assert_eq!(server.as_admin(password, &input).await.status, 200);
    assert_eq!(
        server.poke_as(&alice.refresh, REFRESH).await.error(),
        (400, "ExpiredToken".into())
    );
    let old = json!({"identifier": "admin.test", "password": PASSWORD});
    assert_eq!(
        server.call(LOGIN, &old).await.error(),
        (401, "AuthenticationRequired".into())
    );
    let new = json!({"identifier": "admin.test", "password": "another horse"});
    server.call(LOGIN, &new).await.ok();

    let delete = "com.atproto.admin.deleteAccount";
    assert_eq!(
        server.as_admin(delete, &json!({"did": alice.did})).await.status,
        200
    );
    assert_eq!(server.told(&alice.did).await.last().unwrap(), "account deleted");
    assert_eq!(server.count("SELECT count(*) FROM actor").await, 1);
    assert_eq!(
        server.as_admin(delete, &json!({"did": alice.did})).await.error(),
        (400, "InvalidRequest".into())
    );
    for nsid in [email, handle, password, delete] {
        let input = json!({"account": bob.did, "did": bob.did, "email": "x@y.co", "handle": "x.test", "password": "x"});
        let answer = server.call_as(&bob.access, nsid, &input).await;
        assert_eq!(answer.error(), (401, "AuthenticationRequired".into()), "{nsid}");
        assert!(
            server
                .noted()
                .await
                .iter()
                .any(|(who, what)| who == "admin" && what == nsid),
            "{nsid}"
        );
    }
}

#[tokio::test]
async fn the_moderation_service_acts_with_its_tokens_and_nobody_else_does() {
    let first = Server::start().await;
    let key = SigningKey::generate(first.app.engine.entropy()).unwrap();
    let state = PlcState::account(
        &[key.public_key()],
        &key.public_key(),
        &"mod.example.com".parse().unwrap(),
        "https://elsewhere.example.com",
    );
    let genesis = Operation::genesis(state, &key).unwrap();
    let moderator = genesis.did().unwrap();
    let options = Options {
        vars: vec![
            ("PDS_MOD_SERVICE_URL", "https://mod.example.com".to_owned()),
            ("PDS_MOD_SERVICE_DID", moderator.to_string()),
        ],
        ..Options::default()
    };
    let server = Server::with(options).await;
    server.plc.submit(&moderator, &genesis).await.unwrap();
    let alice = server.sign_up("alice").await;
    let signed = |iss, key: &SigningKey, lxm| {
        let now = server.app.now_seconds();
        let jwt = ServiceJwt {
            iss,
            aud: server.app.config.service_did.as_str(),
            lxm: Some(lxm),
            issued_at: now,
            expires_at: now + 60,
        };
        issue(key, &jwt, server.app.engine.entropy()).unwrap()
    };
    let mut input = hidden(true);
    input["subject"] = account(&alice);
    let token = signed(&moderator, &key, UPDATE);
    server.call_as(&token, UPDATE, &input).await.ok();
    assert_eq!(server.noted().await, [(moderator.to_string(), UPDATE.to_owned())]);
    assert_eq!(
        server.call_as(&token, UPDATE, &input).await.error(),
        (401, "JwtReplayed".into())
    );
    let token = signed(&moderator, &key, INFO);
    server
        .query_as(&token, INFO, &format!("did={}", alice.did))
        .await
        .ok();
    let other = signed(&moderator, &key, STATUS);
    assert_eq!(
        server.call_as(&other, UPDATE, &input).await.error(),
        (401, "BadJwtLexiconMethod".into())
    );
    let own = server.keys.get(&alice.did).await.unwrap().unwrap();
    let untrusted = signed(&alice.did, &own, UPDATE);
    assert_eq!(
        server.call_as(&untrusted, UPDATE, &input).await.error(),
        (401, "UntrustedIss".into())
    );
    assert_eq!(server.call(UPDATE, &input).await.status, 401);
    // What is for the administrator alone.
    let delete = "com.atproto.admin.deleteAccount";
    let token = bearer(&signed(&moderator, &key, delete));
    let headers = [
        ("content-type", "application/json"),
        ("authorization", token.as_str()),
    ];
    let path = format!("/xrpc/{delete}");
    let answer = server
        .request(
            Method::POST,
            &path,
            &headers,
            json!({"did": alice.did}).to_string(),
        )
        .await;
    assert_eq!(answer.error(), (401, "AuthenticationRequired".into()));
}

#[tokio::test]
async fn what_a_moderator_writes_goes_by_the_moderators_server_as_it_is_also_to_who_is_taken_down() {
    const SEND: &str = "com.atproto.admin.sendEmail";
    let (ordinary, moderation) = (Stub::start(&[]).await, Stub::start(&[]).await);
    let options = Options {
        vars: vec![
            ("PDS_EMAIL_SMTP_URL", ordinary.url("", "")),
            ("PDS_EMAIL_FROM_ADDRESS", "noreply@pds.example.com".to_owned()),
            ("PDS_MODERATION_EMAIL_SMTP_URL", moderation.url("", "")),
            ("PDS_MODERATION_EMAIL_ADDRESS", "mods@pds.example.com".to_owned()),
        ],
        ..Options::default()
    };
    let server = Server::with(options).await;
    let alice = server.sign_up("alice").await;
    server
        .sql("UPDATE actor SET takedownRef = 'x' WHERE did = ?1", &alice.did)
        .await;
    let input = json!({"recipientDid": alice.did, "senderDid": "did:web:mod.example.com",
        "content": "<p>Please <b>stop</b></p>", "comment": "the third time"});
    let answer = server.as_admin(SEND, &input).await.ok();
    assert_eq!(answer, json!({"sent": true}));
    let mut with_subject = input.clone();
    with_subject["subject"] = json!("About your post");
    server.as_admin(SEND, &with_subject).await.ok();
    server.app.accounts.deliver_mail().await.unwrap();
    assert!(ordinary.messages().is_empty());
    let mut sent = moderation.messages();
    sent.sort_by_key(|message| message.contains("About your post"));
    assert_eq!(sent.len(), 2);
    assert!(sent[0].contains("Subject: Message via your PDS"), "{}", sent[0]);
    assert!(sent[1].contains("Subject: About your post"));
    for message in &sent {
        assert!(message.contains("<mods@pds.example.com>"), "{message}");
        assert!(message.contains("<p>Please <b>stop</b></p>") && message.contains("Please stop"));
        assert!(!message.contains("third time"), "a comment is for moderators");
    }
    // Nobody to send to.
    let mut nobody = input.clone();
    nobody["recipientDid"] = json!("did:plc:ewvi7nxzyoun6zhxrhs64oiz");
    let answer = server.as_admin(SEND, &nobody).await;
    assert_eq!(answer.error(), (400, "InvalidRequest".into()));
    assert_eq!(answer.json()["message"], "Recipient not found");
    let bare = json!({"handle": "bobby.test"});
    let bobby = server.call("com.atproto.server.createAccount", &bare).await.ok();
    let mut no_address = input.clone();
    no_address["recipientDid"] = bobby["did"].clone();
    let answer = server.as_admin(SEND, &no_address).await;
    assert_eq!(answer.json()["message"], "account does not have an email address");
    let mut long = input.clone();
    long["content"] = json!("x".repeat(100_000));
    let answer = server.as_admin(SEND, &long).await;
    assert_eq!(answer.error(), (400, "InvalidRequest".into()), "too long");
    for broken in [
        json!({"recipientDid": alice.did}),
        json!({"recipientDid": "x", "content": ""}),
    ] {
        assert_eq!(
            server.as_admin(SEND, &broken).await.error(),
            (400, "InvalidRequest".into())
        );
    }
    assert_eq!(server.call(SEND, &input).await.status, 401);
    let row = |outcome: &str| ["admin", SEND, alice.did.as_str(), outcome].map(str::to_owned);
    assert_eq!(
        server.audited().await,
        [row("done"), row("done"), row("InvalidRequest")],
        "what was queued, and what was too long"
    );
}

#[tokio::test]
async fn the_audit_log_says_what_came_of_an_action() {
    let server = Server::start().await;
    let (alice, _bob) = (server.sign_up("alice").await, server.sign_up("bob").await);
    let handle = "com.atproto.admin.updateAccountHandle";
    let taken = json!({"did": alice.did, "handle": "bob.test"});
    server.as_admin(handle, &taken).await.error();
    server.set_status(&account(&alice), &hidden(true)).await.ok();
    // The directory says that the account is elsewhere, so that it cannot be activated.
    server.plc.set(Mood::Down);
    let on = json!({"deactivated": {"applied": false}});
    server.set_status(&account(&alice), &on).await.error();
    server.plc.set(Mood::Well);
    for (nsid, input) in [
        (
            "com.atproto.admin.disableAccountInvites",
            json!({"account": alice.did, "note": "spam"}),
        ),
        (
            "com.atproto.admin.enableAccountInvites",
            json!({"account": alice.did}),
        ),
        (
            "com.atproto.admin.disableInviteCodes",
            json!({"accounts": ["admin"]}),
        ),
        ("com.atproto.admin.disableInviteCodes", json!({"codes": ["x"]})),
        ("com.atproto.server.createInviteCode", json!({"useCount": 1})),
        (
            "com.atproto.server.createInviteCodes",
            json!({"codeCount": 1, "useCount": 1}),
        ),
    ] {
        server.as_admin(nsid, &input).await;
    }
    let did = alice.did.as_str();
    let row =
        |action: &str, subject: &str, outcome: &str| ["admin", action, subject, outcome].map(str::to_owned);
    assert_eq!(
        server.audited().await,
        [
            row(handle, did, "HandleNotAvailable"),
            row(UPDATE, did, "done"),
            row(UPDATE, did, "UpstreamFailure"),
            row("com.atproto.admin.disableAccountInvites", did, "done"),
            row("com.atproto.admin.enableAccountInvites", did, "done"),
            row(
                "com.atproto.admin.disableInviteCodes",
                "invite codes",
                "InvalidRequest"
            ),
            row("com.atproto.admin.disableInviteCodes", "invite codes", "done"),
            row("com.atproto.server.createInviteCode", "admin", "done"),
            row("com.atproto.server.createInviteCodes", "invite codes", "done"),
        ]
    );
}
