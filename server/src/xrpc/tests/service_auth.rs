//! Service tokens out (`getServiceAuth`) and in (`uploadBlob`), and what sessions may.

use axum::body::Body;
use axum::http::Method;
use engine::repo::Did;
use engine::repo::keys::SigningKey;
use serde_json::{Value, json};
use std::time::Duration;

use crate::auth::methods::UPLOAD_BLOB;
use crate::auth::service_jwt::{ServiceClaims, ServiceJwt, ServiceJwtError, ServiceJwtVerifier, issue};
use crate::auth::tokens::Scope;
use crate::testkit::{Answer, Options, Server, User, bearer};

const TAKE: &str = "com.atproto.server.getServiceAuth";
const AUD: &str = "did:web:api.example.com";
const LXM: &str = "app.example.getThing";
const CREATE: &str = "com.atproto.server.createAccount";

impl Server {
    fn session(&self, user: &User, scope: Scope) -> String {
        let now = self.app.now_seconds();
        self.app.tokens.issue_access(&user.did, scope, now).unwrap()
    }

    async fn take(&self, session: &str, query: &str) -> Answer {
        self.query_as(session, TAKE, query).await
    }

    async fn verify(&self, aud: &str, token: &str, method: &str) -> Result<ServiceClaims, ServiceJwtError> {
        ServiceJwtVerifier::new(vec![aud.to_owned()], self.app.names.issuer_keys())
            .verify(token, method, self.app.now_seconds())
            .await
    }

    async fn upload_with(&self, token: &str) -> Answer {
        let authorization = bearer(token);
        let headers = [
            ("content-type", "text/plain"),
            ("authorization", authorization.as_str()),
        ];
        self.request(
            Method::POST,
            &format!("/xrpc/{UPLOAD_BLOB}"),
            &headers,
            "some text",
        )
        .await
    }

    fn service_did(&self) -> String {
        self.app.config.service_did.to_string()
    }
}

fn payload(token: &str) -> Value {
    let part = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&data_encoding::BASE64URL_NOPAD.decode(part.as_bytes()).unwrap()).unwrap()
}

#[tokio::test]
async fn statement_24_a_service_token_lives_a_minute_or_with_a_method_an_hour() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let answer = server
        .take(&alice.access, &format!("aud={AUD}&lxm={LXM}"))
        .await
        .ok();
    let token = answer["token"].as_str().unwrap();
    let claims = server.verify(AUD, token, LXM).await.unwrap();
    assert_eq!(claims.issuer, alice.did);
    let claims = payload(token);
    assert_eq!(
        claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(),
        60
    );

    let open = server
        .take(&alice.access, &format!("aud={AUD}%23bsky_appview"))
        .await
        .ok();
    let open = payload(open["token"].as_str().unwrap());
    assert_eq!(
        (open.get("lxm"), &open["aud"]),
        (None, &json!(format!("{AUD}#bsky_appview")))
    );

    let now = server.app.now_seconds();
    for (exp, lxm, name) in [
        (now + 30, "", None),
        (now + 90, "", Some("BadExpiration")),
        (now + 3_500, LXM, None),
        (now + 3_700, LXM, Some("BadExpiration")),
        (now - 5, LXM, Some("BadExpiration")),
    ] {
        let answer = server
            .take(&alice.access, &format!("aud={AUD}&exp={exp}&lxm={lxm}"))
            .await;
        match name {
            Some(name) => assert_eq!(answer.error(), (400, name.into()), "{exp} {lxm}"),
            None => assert_eq!(payload(answer.ok()["token"].as_str().unwrap())["exp"], exp),
        }
    }
}

#[tokio::test]
async fn parameters_of_service_tokens_are_checked_before_credentials_and_audiences_after() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    for query in [
        "",
        "aud=",
        "aud=x&exp=soon",
        "aud=x&exp=1.5",
        "aud=x&lxm=nope",
        &format!("aud={}", "x".repeat(2049)),
    ] {
        assert_eq!(
            server.query(TAKE, query).await.error(),
            (400, "InvalidRequest".into()),
            "{query}"
        );
    }
    assert_eq!(
        server.query(TAKE, "aud=x").await.error(),
        (401, "AuthMissing".into())
    );
    for aud in [
        "x",
        "did:web:api.example.com%23",
        "did:key:zQ3abc",
        "did:web:a.example.com%23a%23b",
    ] {
        let answer = server.take(&alice.access, &format!("aud={aud}")).await;
        assert_eq!(answer.error(), (400, "InvalidRequest".into()), "{aud}");
    }
}

#[tokio::test]
async fn statement_22_only_full_and_privileged_sessions_get_tokens_for_chat_and_migration() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    for (scope, allowed) in [
        (Scope::Access, true),
        (Scope::AppPassPrivileged, true),
        (Scope::AppPass, false),
    ] {
        let session = server.session(&alice, scope);
        for lxm in [
            "chat.bsky.convo.sendMessage",
            "chat.bsky.convo.SENDMESSAGE",
            CREATE,
        ] {
            let answer = server.take(&session, &format!("aud={AUD}&lxm={lxm}")).await;
            let expected = if allowed { 200 } else { 400 };
            assert_eq!(answer.status, expected, "{scope} {lxm}");
        }
        assert_eq!(
            server
                .take(&session, &format!("aud={AUD}&lxm={LXM}"))
                .await
                .status,
            200
        );
        let protected = format!("aud={AUD}&lxm=com.atproto.server.DELETESession");
        assert_eq!(server.take(&session, &protected).await.status, 200);
        let protected = format!("aud={AUD}&lxm=com.atproto.server.Getsession");
        assert_eq!(
            server.take(&session, &protected).await.error(),
            (400, "InvalidRequest".into())
        );
    }
    let leaving = server.session(&alice, Scope::Takendown);
    assert_eq!(
        server
            .take(&leaving, &format!("aud={AUD}&lxm={CREATE}"))
            .await
            .status,
        200
    );
    for query in [format!("aud={AUD}"), format!("aud={AUD}&lxm={LXM}")] {
        assert_eq!(
            server.take(&leaving, &query).await.error(),
            (400, "InvalidToken".into())
        );
    }
    let waiting = server.session(&alice, Scope::SignupQueued);
    assert_eq!(
        server.take(&waiting, &format!("aud={AUD}")).await.error(),
        (400, "InvalidToken".into())
    );
}

#[tokio::test]
async fn statement_25_a_service_uploads_with_a_token_for_that_method_and_no_other() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let here = server.service_did();
    let take = async |aud: &str, lxm: &str| {
        let answer = server
            .take(&alice.access, &format!("aud={aud}&lxm={lxm}"))
            .await
            .ok();
        answer["token"].as_str().unwrap().to_owned()
    };
    let token = take(&here, UPLOAD_BLOB).await;
    let answer = server.upload_with(&token).await.ok();
    assert_eq!(answer["blob"]["size"], 9);
    // Once only, which the reference does not check.
    assert_eq!(
        server.upload_with(&token).await.error(),
        (401, "JwtReplayed".into())
    );

    let other = take(&here, LXM).await;
    assert_eq!(
        server.upload_with(&other).await.error(),
        (401, "BadJwtLexiconMethod".into())
    );
    let elsewhere = take(AUD, UPLOAD_BLOB).await;
    assert_eq!(
        server.upload_with(&elsewhere).await.error(),
        (401, "BadJwtAudience".into())
    );
    // Without a method it does not look like a service token, and is no session either.
    let open = server.take(&alice.access, &format!("aud={here}")).await.ok();
    let open = open["token"].as_str().unwrap();
    assert_eq!(
        server.upload_with(open).await.error(),
        (400, "InvalidToken".into())
    );
    let late = take(&here, UPLOAD_BLOB).await;
    server.clock.advance(Duration::from_secs(61));
    assert_eq!(
        server.upload_with(&late).await.error(),
        (401, "JwtExpired".into())
    );
}

#[tokio::test]
async fn an_upload_that_fails_does_not_use_its_token_up() {
    let options = Options {
        vars: vec![("PDS_BLOB_UPLOAD_LIMIT", "5".to_owned())],
        ..Options::default()
    };
    let server = Server::with(options).await;
    let alice = server.sign_up("alice").await;
    let query = format!("aud={}&lxm={UPLOAD_BLOB}", server.service_did());
    let answer = server.take(&alice.access, &query).await.ok();
    let token = answer["token"].as_str().unwrap();
    assert_eq!(server.upload_with(token).await.status, 413);
    let authorization = bearer(token);
    let headers = [
        ("content-type", "text/plain"),
        ("authorization", authorization.as_str()),
    ];
    let path = format!("/xrpc/{UPLOAD_BLOB}");
    let answer = server.request(Method::POST, &path, &headers, "text").await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn statement_26_the_type_of_a_service_token_may_be_missing_but_not_a_sessions() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    // An account of elsewhere with a key that its document does not name.
    let stranger = SigningKey::generate(&engine::clock::SystemEntropy).unwrap();
    let now = server.app.now_seconds();
    let here = server.service_did();
    let forged = ServiceJwt {
        iss: &alice.did,
        aud: &here,
        lxm: Some(UPLOAD_BLOB),
        issued_at: now,
        expires_at: now + 60,
    };
    let forged = issue(&stranger, &forged, &engine::clock::SystemEntropy).unwrap();
    assert_eq!(
        server.upload_with(&forged).await.error(),
        (401, "BadJwtSignature".into())
    );

    let key = server.keys.get(&alice.did).await.unwrap().unwrap();
    let sign = |header: Value, jti: &str, iss: &str| {
        let encode = |json: &Value| data_encoding::BASE64URL_NOPAD.encode(json.to_string().as_bytes());
        let claims = json!({"iss": iss, "aud": here, "exp": now + 60, "lxm": UPLOAD_BLOB, "jti": jti});
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let signature = data_encoding::BASE64URL_NOPAD.encode(&key.sign(signed.as_bytes()).unwrap());
        format!("{signed}.{signature}")
    };
    let alice_did = alice.did.as_str();
    for header in [json!({"alg": "ES256K"}), json!({"alg": "ES256K", "typ": "JWT"})] {
        let token = sign(header.clone(), &header.to_string(), alice_did);
        assert_eq!(server.upload_with(&token).await.status, 200, "{header}");
    }
    for typ in ["at+jwt", "refresh+jwt", "dpop+jwt"] {
        let token = sign(json!({"alg": "ES256K", "typ": typ}), typ, alice_did);
        assert_eq!(
            server.upload_with(&token).await.error(),
            (401, "BadJwtType".into()),
            "{typ}"
        );
    }
    let fragment = sign(json!({"alg": "ES256K"}), "f", &format!("{alice_did}#other"));
    assert_eq!(
        server.upload_with(&fragment).await.error(),
        (401, "UntrustedIss".into())
    );
    server
        .sql("UPDATE actor SET takedownRef = 'x' WHERE did = ?1", &alice.did)
        .await;
    let late = sign(json!({"alg": "ES256K"}), "late", alice_did);
    assert_eq!(
        server.upload_with(&late).await.error(),
        (401, "AccountTakedown".into())
    );
}

#[tokio::test]
async fn nobody_waits_for_sign_up_here() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let check = "com.atproto.temp.checkSignupQueue";
    for scope in [Scope::Access, Scope::AppPass, Scope::SignupQueued] {
        let answer = server.query_as(&server.session(&alice, scope), check, "").await;
        assert_eq!(answer.ok(), json!({"activated": true}));
    }
    assert_eq!(server.query(check, "").await.error(), (401, "AuthMissing".into()));
    let leaving = server.session(&alice, Scope::Takendown);
    assert_eq!(
        server.query_as(&leaving, check, "").await.error(),
        (400, "InvalidToken".into())
    );
}

#[tokio::test]
async fn sessions_of_an_account_that_is_gone_get_no_token() {
    let server = Server::start().await;
    let nobody: Did = "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().unwrap();
    let now = server.app.now_seconds();
    let session = server
        .app
        .tokens
        .issue_access(&nobody, Scope::Access, now)
        .unwrap();
    let answer = server.take(&session, &format!("aud={AUD}")).await;
    assert_eq!(answer.error(), (403, "AccountNotFound".into()));
    let head = server
        .request(
            Method::HEAD,
            &format!("/xrpc/{TAKE}?aud={AUD}"),
            &[],
            Body::empty(),
        )
        .await;
    assert_eq!(head.status, 401);
}
