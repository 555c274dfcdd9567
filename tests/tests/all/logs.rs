//! The log tells what an operator has to know, slow answers among it, and nothing that belongs to members or opens a door.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::api::{PASSWORD, field};
use tests::stack::{ADMIN_PASSWORD, Pds, ReplicaKind, Stack};
use tests::{Outcome, skip};

/// The secret that the stack gives its servers.
const JWT_SECRET: &str = "a secret for tests that is long enough";
const TEXT: &str = "what nobody but followers should read";
const WRONG: &str = "a wrong password that was meant for elsewhere";

#[tokio::test(flavor = "multi_thread")]
async fn the_log_names_slow_answers_and_holds_nothing_private() -> Outcome {
    let Some(stack) = Stack::start(ReplicaKind::None).await? else {
        return skip("the stack does not start");
    };
    // A login takes longer than this, by design.
    let settings = stack
        .settings(&stack.place("data"))
        .with("LOG_LEVEL", "info,server=trace,engine=trace,shipper=trace")
        .with("PDS_SLOW_REQUEST_MS", "340");
    let pds = Pds::start(&settings).await?;
    let alice = pds.api.create_account("alice").await?;
    let again = pds.api.login("alice.test").await?;
    let with_mail = json!({ "identifier": "alice@example.com", "password": WRONG });
    let refused = pds
        .api
        .procedure("com.atproto.server.createSession", &with_mail, None)
        .await?;
    ensure!(refused.status == 401, "{}", refused.text());
    let made = pds
        .api
        .procedure(
            "com.atproto.server.createAppPassword",
            &json!({ "name": "a phone" }),
            Some(&alice.access),
        )
        .await?
        .ok()?;
    let app_password = field(&made, "/password")?;
    let params = [("aud", "did:web:example.com"), ("lxm", "com.example.method")];
    let token = pds
        .api
        .query("com.atproto.server.getServiceAuth", &params, Some(&alice.access))
        .await?
        .ok()?;
    let token = field(&token, "/token")?;
    pds.api.post(&alice, TEXT).await?;
    pds.api
        .get_as_admin(
            &format!("/xrpc/com.atproto.admin.getAccountInfo?did={}", alice.did),
            ADMIN_PASSWORD,
        )
        .await?
        .ok()?;
    // A body that is no JSON, with what somebody typed.
    let broken = json!([PASSWORD, TEXT]);
    pds.api
        .procedure("com.atproto.repo.createRecord", &broken, Some(&alice.access))
        .await?;
    let metrics = pds.api.get("/metrics").await?.text();
    let log = pds.process.output();
    pds.stop().await?;

    let slow = "pds_slow_requests_total{method=\"com.atproto.server.createSession\"}";
    ensure!(metrics.contains(slow), "no {slow}");
    let told: Result<&str> = log
        .lines()
        .find(|line| line.contains("answered slowly") && line.contains("createSession"))
        .context("no slow answer in the log");
    ensure!(told?.contains("WARN"), "{log}");
    for (what, secret) in [
        ("a password", PASSWORD),
        ("a wrong password", WRONG),
        ("the administrator's password", ADMIN_PASSWORD),
        ("the secret of tokens", JWT_SECRET),
        ("an access token", &alice.access),
        ("a refresh token", &alice.refresh),
        ("an access token", &again.access),
        ("an app password", &app_password),
        ("a service token", &token),
        ("what a post says", TEXT),
        ("an address", "alice@example.com"),
    ] {
        ensure!(!log.contains(secret), "{what} is in the log:\n{log}");
    }
    stack.stop().await
}
