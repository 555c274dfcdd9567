//! The service proxy against a service on loopback.

mod app_view;
mod fresh;
mod own_part;
mod service;
mod streams;

use axum::body::Body;
use axum::http::Method;
use serde_json::json;

use crate::auth::service_jwt::ServiceJwtVerifier;
use crate::auth::tokens::Scope;
use crate::testkit::{Answer, Options, Server, User, bearer};
use service::Service;

const AUD: &str = "did:web:api.example.com";
const TIMELINE: &str = "/xrpc/app.bsky.feed.getTimeline";
const REPORT: &str = "/xrpc/com.atproto.moderation.createReport";

/// A server whose AppView is at `url`, with more settings, and an account.
async fn server_at(url: &str, more: &[(&'static str, &str)]) -> (Server, User) {
    let mut vars = vec![
        ("PDS_BSKY_APP_VIEW_URL", url.to_owned()),
        ("PDS_BSKY_APP_VIEW_DID", AUD.to_owned()),
    ];
    vars.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
    let options = Options {
        vars,
        ..Options::default()
    };
    let server = Server::with(options).await;
    let alice = server.sign_up("alice").await;
    (server, alice)
}

async fn with_app_view() -> (Service, Server, User) {
    let service = Service::start().await;
    let (server, alice) = server_at(&service.url(), &[]).await;
    (service, server, alice)
}

impl Server {
    async fn ask(&self, method: Method, path: &str, token: &str, more: &[(&str, &str)]) -> Answer {
        let authorization = bearer(token);
        let headers = [&[("authorization", authorization.as_str())], more].concat();
        self.request(method, path, &headers, Body::empty()).await
    }

    fn of_scope(&self, user: &User, scope: Scope) -> String {
        let now = self.app.now_seconds();
        self.app.tokens.issue_access(&user.did, scope, now).unwrap()
    }

    async fn named(&self, user: &User, header: &str) -> Answer {
        self.ask(Method::GET, TIMELINE, &user.access, &[("atproto-proxy", header)])
            .await
    }
}

#[tokio::test]
async fn statement_95_a_service_is_called_with_a_token_for_its_bare_did_and_one_method() {
    let (service, server, alice) = with_app_view().await;
    let answer = server
        .ask(
            Method::GET,
            &format!("{TIMELINE}?limit=5&x=%20a"),
            &alice.access,
            &[],
        )
        .await
        .ok();
    assert_eq!(answer["method"], "GET");
    assert_eq!(answer["target"], format!("{TIMELINE}?limit=5&x=%20a"));
    let token = answer["headers"]["authorization"]
        .as_str()
        .unwrap()
        .strip_prefix("Bearer ")
        .unwrap();
    let now = server.app.now_seconds();
    let verifier = ServiceJwtVerifier::new(vec![AUD.to_owned()], server.app.names.issuer_keys());
    let claims = verifier
        .verify(token, "app.bsky.feed.getTimeline", now)
        .await
        .unwrap();
    assert_eq!(claims.issuer, alice.did);
    assert!((now + 50..=now + 60).contains(&claims.expires_at));
    let other = verifier.verify(token, "app.bsky.feed.getFeed", now).await;
    assert_eq!(other.unwrap_err().name(), "BadJwtLexiconMethod");
    // With a service id in the header it is the same, and so is the place.
    let named = server.named(&alice, &format!("{AUD}#bsky_appview")).await.ok();
    let token = named["headers"]["authorization"]
        .as_str()
        .unwrap()
        .strip_prefix("Bearer ")
        .unwrap();
    assert_eq!(
        verifier
            .verify(token, "app.bsky.feed.getTimeline", now)
            .await
            .unwrap()
            .audience,
        AUD
    );
    assert_eq!(service.seen(), 2);
}

#[tokio::test]
async fn statement_98_labelers_go_up_and_revisions_come_down_but_nothing_private() {
    let (service, server, alice) = with_app_view().await;
    let given = [
        ("accept-language", "de"),
        ("atproto-accept-labelers", "did:plc:l;redact"),
        ("x-bsky-topics", "a,b"),
        ("cookie", "a=b"),
        ("user-agent", "an app"),
        ("x-forwarded-for", "192.0.2.1"),
        ("content-type", "text/odd"),
        ("x-other", "1"),
    ];
    let answer = server.ask(Method::GET, TIMELINE, &alice.access, &given).await;
    assert_eq!(answer.header("atproto-repo-rev"), Some("3k2a"));
    assert_eq!(answer.header("atproto-content-labelers"), Some("did:plc:x"));
    assert_eq!(answer.header("content-language"), Some("de"));
    assert_eq!(answer.header("cache-control"), Some("private"));
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    for name in ["set-cookie", "x-powered-by", "server"] {
        assert_eq!(answer.header(name), None, "{name}");
    }
    let up = service.last();
    let mut names: Vec<&str> = up["headers"]
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    names.sort_unstable();
    let expected = [
        "accept",
        "accept-encoding",
        "accept-language",
        "atproto-accept-labelers",
        "authorization",
        "host",
        "x-bsky-topics",
    ];
    assert_eq!(names, expected);
    assert_eq!(
        (&up["headers"]["accept"], &up["headers"]["accept-encoding"]),
        (&json!("*/*"), &json!("identity"))
    );
    assert_eq!(up["headers"]["atproto-accept-labelers"], "did:plc:l;redact");

    let authorization = bearer(&alice.access);
    let headers = [
        ("authorization", authorization.as_str()),
        ("content-type", "application/json"),
        ("content-length", "7"),
        ("accept-encoding", "br;q=1, gzip"),
    ];
    let posted = server
        .request(Method::POST, "/xrpc/app.example.put", &headers, "{\"a\":1}")
        .await;
    assert_eq!(posted.status, 200);
    // What came as it is may be packed for the client.
    assert_eq!(posted.header("content-encoding"), Some("gzip"));
    let posted = service.last();
    assert_eq!(
        (&posted["bytes"], &posted["headers"]["content-length"]),
        (&json!(7), &json!("7"))
    );
    assert_eq!(posted["headers"]["content-type"], "application/json");
    assert_eq!(posted["headers"]["accept-encoding"], "br;q=1, gzip");
}

#[tokio::test]
async fn statement_97_a_500_becomes_a_502_and_other_errors_are_told_as_they_are() {
    let (_service, server, alice) = with_app_view().await;
    for (method, status, name, message) in [
        ("broken", 502, "UpstreamFailure", "as they say"),
        ("missing", 404, "NoSuchThing", "as they say"),
        ("packed", 429, "SlowDown", "as they say"),
        ("page", 503, "NotEnoughResources", "Service Unavailable"),
        ("odd", 401, "AuthenticationRequired", "Unauthorized"),
    ] {
        let path = format!("/xrpc/app.example.{method}");
        let answer = server.ask(Method::GET, &path, &alice.access, &[]).await;
        assert_eq!(answer.error(), (status, name.into()), "{method}");
        assert_eq!(answer.json()["message"], message, "{method}");
        assert_eq!(answer.header("retry-after"), Some("7"));
        assert_eq!(answer.header("set-cookie"), None);
        assert_eq!(answer.header("content-encoding"), None);
    }
}

#[tokio::test]
async fn statement_99_head_is_sent_on_and_put_and_delete_are_not() {
    let (service, server, alice) = with_app_view().await;
    let answer = server.ask(Method::HEAD, TIMELINE, &alice.access, &[]).await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 0));
    assert_eq!(service.last()["method"], "HEAD");
    assert!(
        answer
            .header("content-length")
            .is_some_and(|length| length != "0")
    );
    let missing = server
        .ask(Method::HEAD, "/xrpc/app.example.missing", &alice.access, &[])
        .await;
    assert_eq!((missing.status.as_u16(), missing.body.len()), (404, 0));
    for method in [Method::PUT, Method::DELETE, Method::PATCH] {
        let answer = server.ask(method, TIMELINE, &alice.access, &[]).await;
        assert_eq!(answer.error(), (400, "InvalidRequest".into()));
    }
    assert_eq!(service.seen(), 2);
}

#[tokio::test]
async fn statement_5_an_unknown_method_needs_a_service_and_then_credentials() {
    let plain = Server::start().await;
    let answer = plain.get("/xrpc/com.example.thing").await;
    assert_eq!(answer.error(), (400, "InvalidRequest".into()));
    assert_eq!(
        answer.json()["message"],
        "No service configured for com.example.thing"
    );
    let (service, server, alice) = with_app_view().await;
    let answer = server.get("/xrpc/com.example.thing").await;
    assert_eq!(answer.error(), (401, "AuthMissing".into()));
    // Nobody makes us look a DID up without an account.
    let headers = [("atproto-proxy", "did:web:nothing.example.com#svc")];
    let answer = server
        .request(Method::GET, TIMELINE, &headers, Body::empty())
        .await;
    assert_eq!(answer.error(), (401, "AuthMissing".into()));
    assert_eq!(service.seen(), 0);
    assert_eq!(
        server
            .ask(Method::GET, "/xrpc/com.example.thing", &alice.access, &[])
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn statement_22_methods_that_are_the_accounts_own_or_privileged_are_not_sent_on_for_everybody() {
    let (service, server, alice) = with_app_view().await;
    for path in [
        "/xrpc/com.atproto.server.GETSESSION",
        "/xrpc/com.atproto.admin.SENDEMAIL",
    ] {
        assert_eq!(
            server.get(path).await.error(),
            (400, "InvalidToken".into()),
            "{path}"
        );
        let answer = server.ask(Method::POST, path, &alice.access, &[]).await;
        assert_eq!(answer.error(), (400, "InvalidToken".into()), "{path}");
    }
    let chat = "/xrpc/chat.bsky.convo.listConvos";
    let app = server.of_scope(&alice, Scope::AppPass);
    for path in [chat, "/xrpc/CHAT.bsky.convo.LISTconvos"] {
        assert_eq!(
            server.ask(Method::GET, path, &app, &[]).await.error(),
            (400, "InvalidToken".into())
        );
    }
    assert_eq!(
        server
            .ask(
                Method::GET,
                TIMELINE,
                &server.of_scope(&alice, Scope::Takendown),
                &[]
            )
            .await
            .status,
        400
    );
    assert_eq!(service.seen(), 0);
    let privileged = server.of_scope(&alice, Scope::AppPassPrivileged);
    assert_eq!(server.ask(Method::GET, chat, &privileged, &[]).await.status, 200);
    assert_eq!(server.ask(Method::GET, TIMELINE, &app, &[]).await.status, 200);
    server
        .sql("UPDATE actor SET deactivatedAt = 'x' WHERE did = ?1", &alice.did)
        .await;
    assert_eq!(server.ask(Method::GET, TIMELINE, &app, &[]).await.status, 200);
}

#[tokio::test]
async fn statement_96_the_header_names_a_service_by_did_and_id() {
    let (service, server, alice) = with_app_view().await;
    let did = format!("did:web:localhost%3A{}", service.port);
    let answer = server.named(&alice, &format!("{did}#svc")).await.ok();
    assert_eq!(
        answer["target"], TIMELINE,
        "the endpoint's own path does not count"
    );
    let token = answer["headers"]["authorization"]
        .as_str()
        .unwrap()
        .strip_prefix("Bearer ")
        .unwrap();
    let verifier = ServiceJwtVerifier::new(vec![did.clone()], server.app.names.issuer_keys());
    let now = server.app.now_seconds();
    verifier
        .verify(token, "app.bsky.feed.getTimeline", now)
        .await
        .unwrap();
    for header in [
        did.clone(),
        format!("{did}#"),
        format!("{did}#other"),
        format!("{did}#svc#svc"),
        format!("{did} #svc"),
        "#svc".to_owned(),
        "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa#svc".to_owned(),
        "did:key:zabc#svc".to_owned(),
    ] {
        let answer = server.named(&alice, &header).await;
        assert_eq!(answer.error(), (400, "InvalidRequest".into()), "{header}");
    }
    assert_eq!(service.seen(), 1);
}

#[tokio::test]
async fn reports_go_to_their_service_also_from_an_account_that_is_taken_down() {
    let (service, server, alice) = with_app_view().await;
    let report = async |server: &Server, token: &str, more: &[(&str, &str)]| {
        let authorization = bearer(token);
        let fixed = [
            ("authorization", authorization.as_str()),
            ("content-type", "application/json"),
        ];
        let headers = [&fixed[..], more].concat();
        server.request(Method::POST, REPORT, &headers, "{}").await
    };
    assert_eq!(
        report(&server, &alice.access, &[]).await.error(),
        (400, "InvalidRequest".into())
    );
    assert_eq!(
        server.request(Method::POST, REPORT, &[], "{}").await.error(),
        (401, "AuthMissing".into())
    );
    let did = format!("did:web:localhost%3A{}#svc", service.port);
    let named = report(&server, &alice.access, &[("atproto-proxy", &did)]).await;
    assert_eq!(named.ok()["target"], REPORT);

    let moderators = Service::start().await;
    let more = [
        ("PDS_MOD_SERVICE_URL", moderators.url()),
        ("PDS_MOD_SERVICE_DID", "did:web:mod.example.com".to_owned()),
    ];
    let more = more.each_ref().map(|(name, value)| (*name, value.as_str()));
    let (server, alice) = server_at(&service.url(), &more).await;
    for scope in [Scope::Access, Scope::Takendown, Scope::AppPass] {
        let answer = report(&server, &server.of_scope(&alice, scope), &[]).await;
        assert_eq!(answer.ok()["bytes"], 2, "{scope}");
    }
    let ozone = "/xrpc/tools.ozone.moderation.queryEvents";
    assert_eq!(
        server.ask(Method::GET, ozone, &alice.access, &[]).await.status,
        200
    );
    assert_eq!((service.seen(), moderators.seen()), (1, 4));
}

#[tokio::test]
async fn strangers_services_must_be_public_and_those_in_the_settings_need_not() {
    let service = Service::start().await;
    for host in ["localhost", "127.0.0.1"] {
        let more = [
            ("PDS_DEV_MODE", "false"),
            ("PDS_HOSTNAME", host),
            ("PDS_SERVICE_HANDLE_DOMAINS", ".test"),
            ("PDS_SERVICE_DID", "did:web:localhost"),
        ];
        let (server, alice) = server_at(&service.url(), &more).await;
        assert_eq!(
            server.ask(Method::GET, TIMELINE, &alice.access, &[]).await.status,
            200
        );
        // The account's own document names this very host: http once, and a literal address over https.
        let answer = server.named(&alice, &format!("{}#atproto_pds", alice.did)).await;
        assert_eq!(answer.error(), (502, "UpstreamFailure".into()), "{host}");
    }
    assert_eq!(service.seen(), 2);
}
