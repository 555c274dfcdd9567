//! Credentials that are missing, forged, expired, revoked or for something else.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use tests::Outcome;
use tests::api::Account;
use tests::stack::ADMIN_PASSWORD;

use super::{Cases, Error, JWT_SECRET, NOBODY, Refusal};

/// A signed session token with these claims.
fn token(secret: &str, typ: &str, claims: &Value) -> Result<String> {
    let head = json!({ "typ": typ, "alg": "HS256" }).to_string();
    let mut text = format!(
        "{}.{}",
        BASE64URL_NOPAD.encode(head.as_bytes()),
        BASE64URL_NOPAD.encode(claims.to_string().as_bytes())
    );
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes())?;
    mac.update(text.as_bytes());
    let signature = BASE64URL_NOPAD.encode(&mac.finalize().into_bytes());
    let _infallible = write!(text, ".{signature}");
    Ok(text)
}

pub(super) fn all(cases: &mut Cases, account: &Account, revoked: &str) -> Outcome {
    let claims = part(&account.access, 1)?;
    let audience = claims.get("aud").cloned().context("a token without audience")?;
    let good = |change: Value| {
        let mut claims = claims.clone();
        if let (Some(claims), Some(change)) = (claims.as_object_mut(), change.as_object()) {
            claims.extend(change.clone());
        }
        claims
    };
    // A token made here is as good as the server's own, so the bad ones below fail for what is bad about them.
    ensure!(
        part(&token(JWT_SECRET, "at+jwt", &claims)?, 1)? == claims,
        "the test's tokens are wrong"
    );
    cases.send(
        "no credentials",
        "GET",
        "/xrpc/com.atproto.server.getSession",
        &[],
        b"",
        Error(401, "AuthMissing"),
    );
    for header in [
        "Bearer",
        "Bearer a b",
        "Nonsense",
        "Digest abc",
        "Basic YWRtaW46eA==",
        "Bearer ..",
        "Bearer a.b.c",
    ] {
        cases.auth("a bad header", header, Error(400, "InvalidToken"));
    }
    let unsigned = BASE64URL_NOPAD.encode(br#"{"typ":"at+jwt","alg":"none"}"#);
    let body = BASE64URL_NOPAD.encode(claims.to_string().as_bytes());
    cases.auth(
        "a token without a signature",
        &format!("Bearer {unsigned}.{body}."),
        Error(400, "InvalidToken"),
    );
    for (what, secret, typ, claims, name) in [
        (
            "a token that has expired",
            JWT_SECRET,
            "at+jwt",
            good(json!({ "iat": 1_000_000, "exp": 1_007_200 })),
            "ExpiredToken",
        ),
        (
            "a forged token",
            "another secret of some length",
            "at+jwt",
            good(json!({})),
            "InvalidToken",
        ),
        (
            "a token of another type",
            JWT_SECRET,
            "JWT",
            good(json!({})),
            "InvalidToken",
        ),
        (
            "a token for another server",
            JWT_SECRET,
            "at+jwt",
            good(json!({ "aud": "did:web:example.com" })),
            "InvalidToken",
        ),
        (
            "a token with a foreign scope",
            JWT_SECRET,
            "at+jwt",
            good(json!({ "scope": "com.example.all" })),
            "InvalidToken",
        ),
        (
            "a token about no DID",
            JWT_SECRET,
            "at+jwt",
            good(json!({ "sub": "alice" })),
            "InvalidToken",
        ),
        (
            "a service's token",
            JWT_SECRET,
            "at+jwt",
            good(json!({ "lxm": "com.atproto.server.getSession" })),
            "InvalidToken",
        ),
        (
            "a bound token",
            JWT_SECRET,
            "at+jwt",
            good(json!({ "cnf": { "jkt": "x" } })),
            "InvalidToken",
        ),
        (
            "a token whose time is text",
            JWT_SECRET,
            "at+jwt",
            good(json!({ "exp": "later" })),
            "InvalidToken",
        ),
        (
            "a token without claims",
            JWT_SECRET,
            "at+jwt",
            json!({ "aud": audience }),
            "InvalidToken",
        ),
    ] {
        cases.auth(
            what,
            &format!("Bearer {}", token(secret, typ, &claims)?),
            Error(400, name),
        );
    }
    let stranger = token(JWT_SECRET, "at+jwt", &good(json!({ "sub": NOBODY })))?;
    cases.auth("a token of nobody", &format!("Bearer {stranger}"), Refusal);
    cases.auth(
        "a refresh token",
        &format!("Bearer {}", account.refresh),
        Error(400, "InvalidToken"),
    );
    let refresh = "/xrpc/com.atproto.server.refreshSession";
    let with = |token: &str| format!("Bearer {token}");
    cases.send(
        "an access token to refresh",
        "POST",
        refresh,
        &[("authorization", &with(&account.access))],
        b"",
        Error(400, "InvalidToken"),
    );
    cases.send(
        "a revoked refresh token",
        "POST",
        refresh,
        &[("authorization", &with(revoked))],
        b"",
        Error(400, "ExpiredToken"),
    );
    cases.send(
        "no refresh token",
        "POST",
        refresh,
        &[],
        b"",
        Error(401, "AuthMissing"),
    );
    let logout = "/xrpc/com.atproto.server.deleteSession";
    cases.send(
        "an access token to log out",
        "POST",
        logout,
        &[("authorization", &with(&account.access))],
        b"",
        Error(400, "InvalidToken"),
    );
    let basic = |text: &str| format!("Basic {}", data_encoding::BASE64.encode(text.as_bytes()));
    let invite = "/xrpc/com.atproto.server.createInviteCode";
    for (what, credentials) in [
        ("a wrong admin password", "admin:wrong"),
        ("another user", &format!("root:{ADMIN_PASSWORD}")),
    ] {
        let headers = [
            ("authorization", &*basic(credentials)),
            ("content-type", "application/json"),
        ];
        cases.send(
            what,
            "POST",
            invite,
            &headers,
            b"{\"useCount\":1}",
            Error(401, "AuthenticationRequired"),
        );
    }
    Ok(())
}

/// One part of a token as JSON.
fn part(token: &str, index: usize) -> Result<Value> {
    let text = token.split('.').nth(index).context("a token has three parts")?;
    Ok(serde_json::from_slice(&BASE64URL_NOPAD.decode(text.as_bytes())?)?)
}
