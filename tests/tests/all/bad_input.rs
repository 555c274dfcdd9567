//! Everything that should not be sent, sent over a bare socket: each gets a 4xx with a name and a message, none a 5xx, and
//! the server goes on serving. What breaks here is a client's mistake, or an attacker's idea, that hurts others.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use futures_util::{SinkExt, StreamExt};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use tests::Outcome;
use tests::api::{Account, PASSWORD};
use tests::events::{Said, read};
use tests::stack::{ADMIN_PASSWORD, Pds, ReplicaKind, SOON, Stack};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

/// The secret that the stack gives its servers.
const JWT_SECRET: &str = "a secret for tests that is long enough";
/// A well-formed DID that nobody has.
const NOBODY: &str = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa";
/// A well-formed CID of nothing here.
const NOTHING: &str = "bafyreiclp443lavogvhj3d2ob2cxbfuscni2k5jk7bebjzg7khl3esabwq";

/// What an answer must be.
#[derive(Clone, Copy, Debug)]
enum Want {
    /// This status and this error name.
    Error(u16, &'static str),
    /// Some 4xx with a name and a message.
    Refusal,
    /// Some 4xx, or the connection closed: below XRPC, where the HTTP library speaks.
    Closed,
}

use Want::{Closed, Error, Refusal};

/// One bad request.
struct Case {
    what: String,
    request: Vec<u8>,
    want: Want,
}

/// Builds requests byte by byte.
struct Cases {
    all: Vec<Case>,
}

impl Cases {
    fn raw(&mut self, what: &str, request: impl Into<Vec<u8>>, want: Want) {
        self.all.push(Case {
            what: what.to_owned(),
            request: request.into(),
            want,
        });
    }

    fn send(
        &mut self,
        what: &str,
        verb: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        want: Want,
    ) {
        let mut head = format!("{verb} {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
        for (name, value) in headers {
            let _infallible = write!(head, "{name}: {value}\r\n");
        }
        if !body.is_empty() || verb == "POST" {
            let _infallible = write!(head, "content-length: {}\r\n", body.len());
        }
        let mut request = format!("{head}\r\n").into_bytes();
        request.extend_from_slice(body);
        self.raw(
            &format!("{what} ({verb} {})", target.chars().take(120).collect::<String>()),
            request,
            want,
        );
    }

    fn get(&mut self, what: &str, target: &str, want: Want) {
        self.send(what, "GET", &format!("/xrpc/{target}"), &[], b"", want);
    }

    fn auth(&mut self, what: &str, authorization: &str, want: Want) {
        let headers = [("authorization", authorization)];
        self.send(
            what,
            "GET",
            "/xrpc/com.atproto.server.getSession",
            &headers,
            b"",
            want,
        );
    }

    fn json(&mut self, what: &str, method: &str, token: Option<&str>, body: &[u8], want: Want) {
        let bearer = token.map(|token| format!("Bearer {token}")).unwrap_or_default();
        let mut headers = vec![("content-type", "application/json")];
        if token.is_some() {
            headers.push(("authorization", &bearer));
        }
        self.send(what, "POST", &format!("/xrpc/{method}"), &headers, body, want);
    }
}

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

fn http(cases: &mut Cases) {
    let session = "com.atproto.server.createSession";
    cases.get(
        "a query's verb on a procedure",
        session,
        Error(400, "InvalidRequest"),
    );
    cases.json(
        "a procedure's verb on a query",
        "com.atproto.server.describeServer",
        None,
        b"{}",
        Error(400, "InvalidRequest"),
    );
    for verb in ["PUT", "DELETE", "PATCH", "BREW"] {
        cases.send(
            "a foreign verb",
            verb,
            "/xrpc/com.atproto.server.describeServer",
            &[],
            b"",
            Error(400, "InvalidRequest"),
        );
    }
    cases.get(
        "an unknown method",
        "com.example.unknown",
        Error(400, "InvalidRequest"),
    );
    cases.get("a name that is no NSID", "nonsense", Error(400, "InvalidRequest"));
    cases.get("no name", "", Refusal);
    cases.get(
        "a path below a method",
        "com.atproto.server.describeServer/more",
        Refusal,
    );
    cases.send(
        "an unknown path",
        "GET",
        "/no/such/thing",
        &[],
        b"",
        Error(404, "NotFound"),
    );
    cases.send(
        "a target with dots",
        "GET",
        "/../../etc/passwd",
        &[],
        b"",
        Refusal,
    );
    cases.raw(
        "no HTTP at all",
        *b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
        Closed,
    );
    cases.raw("half a request line", *b"GET /xrpc/com.atproto", Closed);
    cases.raw(
        "a header without colon",
        *b"GET / HTTP/1.1\r\nhost localhost\r\n\r\n",
        Closed,
    );
    let long = "x".repeat(100_000);
    cases.get(
        "a query of 100 kB",
        &format!("com.atproto.identity.resolveHandle?handle={long}"),
        Closed,
    );
    let headers = [("x-long", long.as_str())];
    cases.send(
        "a header of 100 kB",
        "GET",
        "/xrpc/com.example.unknown",
        &headers,
        b"",
        Closed,
    );
    let many = "a=b&".repeat(5000);
    cases.get(
        "5000 parameters",
        &format!("com.atproto.server.describeServer?{many}"),
        Error(400, "InvalidRequest"),
    );

    let post = |more: &str, body: &str| {
        format!(
            "POST /xrpc/{session} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n{more}\r\n{body}"
        )
    };
    cases.raw(
        "a body that ends early",
        post("content-length: 500\r\n", "{\"identifier\":"),
        Closed,
    );
    cases.raw(
        "a chunk that ends early",
        post("transfer-encoding: chunked\r\n", "ff\r\n{\"identifier\":"),
        Closed,
    );
    cases.raw(
        "a chunk of no size",
        post("transfer-encoding: chunked\r\n", "zz\r\n{}\r\n0\r\n\r\n"),
        Closed,
    );
    cases.raw(
        "a chunk that overflows",
        post("transfer-encoding: chunked\r\n", "ffffffffffffffffff\r\n{}"),
        Closed,
    );
    cases.raw(
        "two lengths",
        post("content-length: 2\r\ncontent-length: 3\r\n", "{}"),
        Closed,
    );
    cases.raw("a negative length", post("content-length: -1\r\n", "{}"), Closed);
}

fn bodies(cases: &mut Cases) {
    let session = "com.atproto.server.createSession";
    let target = "/xrpc/com.atproto.server.createSession";
    for (what, body) in [
        ("half an object", &b"{\"identifier\": \"a\""[..]),
        ("no JSON", b"hello"),
        ("an array", b"[]"),
        ("null", b"null"),
        ("a number", b"7"),
        ("a string", b"\"x\""),
        ("an empty object", b"{}"),
        (
            "a number for a string",
            b"{\"identifier\": 5, \"password\": \"x\"}",
        ),
        (
            "an object for a string",
            b"{\"identifier\": {}, \"password\": \"x\"}",
        ),
        (
            "bytes that are no UTF-8",
            b"{\"identifier\": \"\xff\xfe\", \"password\": \"x\"}",
        ),
        (
            "a lone surrogate",
            b"{\"identifier\": \"\\ud800\", \"password\": \"x\"}",
        ),
        (
            "something after the object",
            b"{\"identifier\":\"a\",\"password\":\"b\"} {}",
        ),
    ] {
        cases.json(what, session, None, body, Refusal);
    }
    cases.json("no body", session, None, b"", Refusal);
    cases.json("an abyss", session, None, "[".repeat(100_000).as_bytes(), Refusal);
    cases.send(
        "no content type",
        "POST",
        target,
        &[],
        b"{}",
        Error(400, "InvalidRequest"),
    );
    cases.send(
        "a foreign content type",
        "POST",
        target,
        &[("content-type", "text/plain")],
        b"{}",
        Error(400, "InvalidRequest"),
    );
    let zipped = [("content-type", "application/json"), ("content-encoding", "gzip")];
    cases.send("a zipped body", "POST", target, &zipped, b"\x1f\x8b\x08", Refusal);
    let big = format!(
        "{{\"identifier\": \"{}\", \"password\": \"x\"}}",
        "a".repeat(200_000)
    );
    cases.json(
        "200 kB for a session",
        session,
        None,
        big.as_bytes(),
        Error(413, "PayloadTooLargeError"),
    );
    let chunked = format!(
        "POST {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{big}\r\n0\r\n\r\n",
        big.len()
    );
    cases.raw(
        "200 kB for a session, in chunks",
        chunked,
        Error(413, "PayloadTooLargeError"),
    );
    cases.json(
        "a wrong password",
        session,
        None,
        b"{\"identifier\":\"alice.test\",\"password\":\"wrong\"}",
        Error(401, "AuthenticationRequired"),
    );
    let endless = json!({ "identifier": "alice.test", "password": "x".repeat(10_000) }).to_string();
    cases.json(
        "an endless password",
        session,
        None,
        endless.as_bytes(),
        Error(401, "AuthenticationRequired"),
    );
    cases.json(
        "a login as nobody",
        session,
        None,
        b"{\"identifier\":\"\",\"password\":\"x\"}",
        Error(401, "AuthenticationRequired"),
    );

    let create = "com.atproto.server.createAccount";
    let account = |handle: &str, email: &str, password: &str, more: Value| {
        let mut input = json!({ "handle": handle, "email": email, "password": password });
        if let (Some(input), Some(more)) = (input.as_object_mut(), more.as_object()) {
            input.extend(more.clone());
        }
        input.to_string().into_bytes()
    };
    let plain = json!({});
    for (what, handle, want) in [
        ("no handle", "", Refusal),
        ("a handle without a dot", "carol", Refusal),
        ("a handle with a space", "ca rol.test", Refusal),
        (
            "a handle of two labels",
            "carol.smith.test",
            Error(400, "InvalidHandle"),
        ),
        ("a short handle", "ab.test", Error(400, "InvalidHandle")),
        (
            "a long handle",
            "abcdefghijklmnopqrstuvwxyz.test",
            Error(400, "InvalidHandle"),
        ),
        ("a handle that begins with a hyphen", "-carol.test", Refusal),
        (
            "a handle of a foreign domain",
            "carol.example.org",
            Error(400, "UnsupportedDomain"),
        ),
        (
            "a handle that is taken",
            "alice.test",
            Error(400, "HandleNotAvailable"),
        ),
        (
            "a handle that is taken, in capitals",
            "ALICE.test",
            Error(400, "HandleNotAvailable"),
        ),
    ] {
        cases.json(
            what,
            create,
            None,
            &account(handle, "carol@example.com", PASSWORD, plain.clone()),
            want,
        );
    }
    cases.json(
        "an address without @",
        create,
        None,
        &account("carol.test", "carol", PASSWORD, plain.clone()),
        Error(400, "InvalidRequest"),
    );
    cases.json(
        "an address that is taken",
        create,
        None,
        &account("carol.test", "alice@example.com", PASSWORD, plain.clone()),
        Error(400, "InvalidRequest"),
    );
    cases.json(
        "a password of 257",
        create,
        None,
        &account("carol.test", "carol@example.com", &"p".repeat(257), plain.clone()),
        Error(400, "InvalidRequest"),
    );
    let did = json!({ "did": NOBODY });
    cases.json(
        "somebody else's DID",
        create,
        None,
        &account("carol.test", "carol@example.com", PASSWORD, did),
        Refusal,
    );
    let operation = json!({ "plcOp": {} });
    cases.json(
        "an operation of one's own",
        create,
        None,
        &account("carol.test", "carol@example.com", PASSWORD, operation),
        Error(400, "InvalidRequest"),
    );
    let recovery = json!({ "recoveryKey": "did:key:zNonsense" });
    cases.json(
        "a recovery key that is none",
        create,
        None,
        &account("carol.test", "carol@example.com", PASSWORD, recovery),
        Refusal,
    );
    cases.json(
        "invite codes for anybody",
        "com.atproto.server.createInviteCode",
        None,
        b"{\"useCount\":1}",
        Error(401, "AuthenticationRequired"),
    );
}

fn params(cases: &mut Cases, did: &str) {
    for (what, target) in [
        ("no parameters", "com.atproto.repo.getRecord".to_owned()),
        (
            "one of three parameters",
            format!("com.atproto.repo.getRecord?repo={did}"),
        ),
        (
            "an empty parameter",
            "com.atproto.identity.resolveHandle?handle=".to_owned(),
        ),
        (
            "a handle that is none",
            "com.atproto.identity.resolveHandle?handle=not%20a%20handle".to_owned(),
        ),
        (
            "a limit of 0",
            format!("com.atproto.repo.listRecords?repo={did}&collection=app.bsky.feed.post&limit=0"),
        ),
        (
            "a limit above the largest",
            format!("com.atproto.repo.listRecords?repo={did}&collection=app.bsky.feed.post&limit=101"),
        ),
        (
            "a negative limit",
            "com.atproto.sync.listRepos?limit=-1".to_owned(),
        ),
        ("half a limit", "com.atproto.sync.listRepos?limit=1.5".to_owned()),
        (
            "a limit in words",
            "com.atproto.sync.listRepos?limit=many".to_owned(),
        ),
        (
            "a limit beyond numbers",
            "com.atproto.sync.listRepos?limit=99999999999999999999999".to_owned(),
        ),
        (
            "a cursor of nonsense",
            "com.atproto.sync.listRepos?cursor=nonsense".to_owned(),
        ),
        (
            "a cursor with a huge time",
            format!("com.atproto.sync.listRepos?cursor=99999999999999999999::{did}"),
        ),
        (
            "a cursor without a DID",
            "com.atproto.sync.listRepos?cursor=1700000000000::".to_owned(),
        ),
        (
            "a cursor that is no CID",
            format!("com.atproto.sync.listBlobs?did={did}&cursor=nonsense"),
        ),
        (
            "a since that is no TID",
            format!("com.atproto.sync.getRepo?did={did}&since=yesterday"),
        ),
        (
            "a since that is no TID",
            format!("com.atproto.sync.listBlobs?did={did}&since=0"),
        ),
        (
            "a cursor that is no record key",
            format!("com.atproto.repo.listRecords?repo={did}&collection=app.bsky.feed.post&cursor=a%2Fb"),
        ),
        (
            "a flag that is none",
            format!("com.atproto.repo.listRecords?repo={did}&collection=app.bsky.feed.post&reverse=perhaps"),
        ),
        (
            "a repo that is none",
            "com.atproto.repo.listRecords?repo=!!&collection=app.bsky.feed.post".to_owned(),
        ),
        (
            "a repo of nobody",
            format!("com.atproto.repo.listRecords?repo={NOBODY}&collection=app.bsky.feed.post"),
        ),
        (
            "a collection that is none",
            format!("com.atproto.repo.listRecords?repo={did}&collection=posts"),
        ),
        (
            "a record key that is none",
            format!("com.atproto.sync.getRecord?did={did}&collection=app.bsky.feed.post&rkey=.."),
        ),
        (
            "a record key with a slash",
            format!("com.atproto.repo.getRecord?repo={did}&collection=app.bsky.feed.post&rkey=a%2Fb"),
        ),
        (
            "a CID that is none",
            format!("com.atproto.sync.getBlob?did={did}&cid=bafynonsense"),
        ),
        (
            "a CID of an old kind",
            format!("com.atproto.sync.getBlob?did={did}&cid=QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWKPbdG"),
        ),
        (
            "a blob that is not there",
            format!("com.atproto.sync.getBlob?did={did}&cid={NOTHING}"),
        ),
        ("no CIDs", format!("com.atproto.sync.getBlocks?did={did}")),
        (
            "a block that is not there",
            format!("com.atproto.sync.getBlocks?did={did}&cids={NOTHING}"),
        ),
        (
            "600 blocks",
            format!(
                "com.atproto.sync.getBlocks?did={did}{}",
                format!("&cids={NOTHING}").repeat(600)
            ),
        ),
        (
            "a parameter twice",
            format!("com.atproto.sync.getLatestCommit?did={did}&did={did}"),
        ),
        (
            "half a percent sign",
            "com.atproto.identity.resolveHandle?handle=%zz".to_owned(),
        ),
        (
            "bytes that are no UTF-8",
            "com.atproto.identity.resolveHandle?handle=%ff%fe".to_owned(),
        ),
        (
            "a zero byte",
            "com.atproto.identity.resolveHandle?handle=alice%00.test".to_owned(),
        ),
    ] {
        cases.get(what, &target, Error(400, "InvalidRequest"));
    }
    cases.get(
        "a record that is not there",
        &format!("com.atproto.repo.getRecord?repo={did}&collection=app.bsky.feed.post&rkey=none"),
        Error(400, "RecordNotFound"),
    );
    cases.get(
        "a handle that nobody has",
        "com.atproto.identity.resolveHandle?handle=nobody.test",
        Error(400, "HandleNotFound"),
    );
    for method in ["getRepo", "getLatestCommit", "getRepoStatus", "listBlobs"] {
        cases.get(
            "a repo that is not there",
            &format!("com.atproto.sync.{method}?did={NOBODY}"),
            Error(400, "RepoNotFound"),
        );
        cases.get(
            "a DID that is none",
            &format!("com.atproto.sync.{method}?did=did"),
            Error(400, "InvalidRequest"),
        );
    }
    cases.get(
        "a repo that is not there",
        &format!("com.atproto.repo.describeRepo?repo={NOBODY}"),
        Refusal,
    );
    let subscribe = "/xrpc/com.atproto.sync.subscribeRepos";
    cases.send(
        "a firehose without an upgrade",
        "GET",
        subscribe,
        &[],
        b"",
        Refusal,
    );
    cases.send(
        "a firehose cursor in words",
        "GET",
        &format!("{subscribe}?cursor=latest"),
        &[],
        b"",
        Refusal,
    );
    let upgrade = [
        ("upgrade", "websocket"),
        ("connection", "upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    cases.send(
        "a firehose cursor beyond numbers",
        "GET",
        &format!("{subscribe}?cursor=99999999999999999999"),
        &upgrade,
        b"",
        Refusal,
    );
    cases.send(
        "an upgrade elsewhere",
        "GET",
        "/xrpc/com.example.unknown",
        &upgrade,
        b"",
        Refusal,
    );
}

fn tokens(cases: &mut Cases, account: &Account, revoked: &str) -> Outcome {
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

fn writes(cases: &mut Cases, account: &Account, other: &str) {
    let token = Some(account.access.as_str());
    let did = account.did.as_str();
    let create = "com.atproto.repo.createRecord";
    let record = |record: &str| {
        format!(r#"{{"repo":"{did}","collection":"com.example.bad","record":{record}}}"#).into_bytes()
    };
    for (what, text) in [
        ("an array", "[]"),
        ("a string", "\"x\""),
        ("null", "null"),
        ("a number", "1"),
        ("a float", r#"{"n": 1.5}"#),
        ("a float far down", r#"{"a": [{"b": {"c": [0.1]}}]}"#),
        ("an exponent with a fraction", r#"{"n": 15e-1}"#),
        ("an integer beyond 64 bits", r#"{"n": 9223372036854775808}"#),
        ("another type", r#"{"$type": "com.example.other"}"#),
        ("a type that is a number", r#"{"$type": 5}"#),
        ("a link that is none", r#"{"a": {"$link": "nonsense"}}"#),
        ("a link that is a number", r#"{"a": {"$link": 5}}"#),
        ("bytes that are none", r#"{"a": {"$bytes": "!!!"}}"#),
        (
            "a link with company",
            r#"{"a": {"$link": "bafyreiclp443lavogvhj3d2ob2cxbfuscni2k5jk7bebjzg7khl3esabwq", "b": 1}}"#,
        ),
        (
            "a blob without a link",
            r#"{"a": {"$type": "blob", "mimeType": "image/png", "size": 5}}"#,
        ),
        (
            "a blob of the old kind",
            r#"{"a": {"cid": "bafkreie5cvv4h45feadgeuwhbcutmh6t2ceseocckahdoe6uat64zmz454", "mimeType": "image/png"}}"#,
        ),
    ] {
        cases.json(
            &format!("a record that is {what}"),
            create,
            token,
            &record(text),
            Error(400, "InvalidRequest"),
        );
    }
    let huge = record(r#"{"n": 1e999}"#);
    cases.json(
        "a record with a number beyond doubles",
        create,
        token,
        &huge,
        Refusal,
    );
    let blob = r#"{"a": {"$type": "blob", "ref": {"$link": "bafkreie5cvv4h45feadgeuwhbcutmh6t2ceseocckahdoe6uat64zmz454"}, "mimeType": "image/png", "size": 5}}"#;
    cases.json(
        "a record with a blob that is not there",
        create,
        token,
        &record(blob),
        Error(400, "BlobNotFound"),
    );
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(300), "]".repeat(300));
    cases.json(
        "a record that is too deep",
        create,
        token,
        &record(&deep),
        Refusal,
    );
    let big = format!("{{\"text\":\"{}\"}}", "x".repeat(1_100_000));
    cases.json(
        "a record of 1.1 MB",
        create,
        token,
        &record(&big),
        Error(413, "PayloadTooLargeError"),
    );

    let input = |fields: Value| {
        let mut input = json!({ "repo": did, "collection": "com.example.bad", "record": {} });
        if let (Some(input), Some(fields)) = (input.as_object_mut(), fields.as_object()) {
            input.extend(fields.clone());
        }
        input.to_string().into_bytes()
    };
    for (what, fields) in [
        ("a collection that is none", json!({ "collection": "posts" })),
        ("a collection that is a number", json!({ "collection": 1 })),
        ("a record key of dots", json!({ "rkey": ".." })),
        ("a record key with a slash", json!({ "rkey": "a/b" })),
        ("a record key of 513", json!({ "rkey": "k".repeat(513) })),
        ("an empty record key", json!({ "rkey": "" })),
        ("a swap that is no CID", json!({ "swapCommit": "nonsense" })),
        ("a repo that is none", json!({ "repo": "!!" })),
        ("validation in words", json!({ "validate": "yes" })),
    ] {
        cases.json(what, create, token, &input(fields), Error(400, "InvalidRequest"));
    }
    cases.json(
        "a stale swap",
        create,
        token,
        &input(json!({ "swapCommit": NOTHING })),
        Error(400, "InvalidSwap"),
    );
    cases.json(
        "a write without credentials",
        create,
        None,
        &input(json!({})),
        Error(401, "AuthMissing"),
    );
    cases.json(
        "a broken write without credentials",
        create,
        None,
        b"{",
        Error(401, "AuthMissing"),
    );
    cases.json(
        "a write into another's repo",
        create,
        token,
        &input(json!({ "repo": other })),
        Error(401, "AuthenticationRequired"),
    );
    cases.json(
        "a write into nobody's repo",
        create,
        token,
        &input(json!({ "repo": NOBODY })),
        Error(403, "AccountNotFound"),
    );
    let put = "com.atproto.repo.putRecord";
    cases.json(
        "a put without a key",
        put,
        token,
        &input(json!({})),
        Error(400, "InvalidRequest"),
    );
    cases.json(
        "a put that wants another record",
        put,
        token,
        &input(json!({ "rkey": "new", "swapRecord": NOTHING })),
        Error(400, "InvalidSwap"),
    );

    let apply = "com.atproto.repo.applyWrites";
    let some = |writes: Value| json!({ "repo": did, "writes": writes }).to_string().into_bytes();
    let write = |action: &str, rkey: &str| json!({ "$type": format!("com.atproto.repo.applyWrites#{action}"), "collection": "com.example.bad", "rkey": rkey, "value": {} });
    cases.json(
        "201 writes",
        apply,
        token,
        &some(Value::Array(
            (0..201).map(|n| write("create", &format!("n{n}"))).collect(),
        )),
        Error(400, "InvalidRequest"),
    );
    cases.json(
        "no list of writes",
        apply,
        token,
        &some(json!("all")),
        Error(400, "InvalidRequest"),
    );
    cases.json(
        "a write without an action",
        apply,
        token,
        &some(json!([{ "collection": "com.example.bad", "rkey": "a", "value": {} }])),
        Error(400, "InvalidRequest"),
    );
    cases.json(
        "a write with a foreign action",
        apply,
        token,
        &some(json!([write("destroy", "a")])),
        Error(400, "InvalidRequest"),
    );
    cases.json(
        "an update of nothing",
        apply,
        token,
        &some(json!([write("update", "none")])),
        Refusal,
    );
    cases.json(
        "a deletion of nothing",
        apply,
        token,
        &some(json!([write("delete", "none")])),
        Refusal,
    );
    cases.json(
        "the same record twice",
        apply,
        token,
        &some(json!([write("create", "twice"), write("create", "twice")])),
        Refusal,
    );

    let upload = "/xrpc/com.atproto.repo.uploadBlob";
    let bearer = format!("Bearer {}", account.access);
    let png = [("authorization", bearer.as_str()), ("content-type", "image/png")];
    cases.send(
        "a blob without credentials",
        "POST",
        upload,
        &[("content-type", "image/png")],
        b"x",
        Error(401, "AuthMissing"),
    );
    cases.send(
        "a blob without a type",
        "POST",
        upload,
        &[("authorization", &bearer)],
        b"x",
        Error(400, "InvalidRequest"),
    );
    cases.send(
        "a blob of 6 MB",
        "POST",
        upload,
        &png,
        &vec![7; 6_000_000],
        Error(413, "PayloadTooLarge"),
    );
    let mut chunked = format!("POST {upload} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: {bearer}\r\ncontent-type: image/png\r\ntransfer-encoding: chunked\r\n\r\n").into_bytes();
    for _ in 0..6 {
        chunked.extend(format!("{:x}\r\n", 1_000_000).bytes());
        chunked.extend(std::iter::repeat_n(7, 1_000_000));
        chunked.extend(b"\r\n");
    }
    chunked.extend(b"0\r\n\r\n");
    cases.raw(
        "a blob of 6 MB, in chunks",
        chunked,
        Error(413, "PayloadTooLarge"),
    );
    let cut = format!(
        "POST {upload} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: {bearer}\r\ncontent-type: image/png\r\ncontent-length: 5000\r\n\r\nnot all of it"
    );
    cases.raw("a blob that ends early", cut, Closed);
}

/// Sends bytes and reads the answer; `None` when the connection just ended. With `hang_up` the server is told that no more
/// will come, which it may take for a client that left.
async fn exchange(url: &str, request: &[u8], hang_up: bool) -> Result<Option<(u16, String)>> {
    let address = url.strip_prefix("http://").context("an http URL")?;
    let mut socket = TcpStream::connect(address).await?;
    // The server may answer and close before it has read everything; that answer counts.
    let _refused_early = socket.write_all(request).await;
    if hang_up {
        let _closed_early = socket.shutdown().await;
    }
    let mut answer = Vec::new();
    let mut buffer = vec![0; 65_536];
    while let Ok(read @ 1..) = socket.read(&mut buffer).await {
        answer.extend(buffer.iter().take(read));
    }
    let text = String::from_utf8_lossy(&answer).into_owned();
    if text.is_empty() {
        return Ok(None);
    }
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status: u16 = status.with_context(|| format!("not HTTP: {text}"))?;
    let body = text
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned())
        .unwrap_or_default();
    Ok(Some((status, body)))
}

fn judge(want: Want, answer: Option<(u16, String)>) -> Outcome {
    let Some((status, body)) = answer else {
        ensure!(matches!(want, Closed), "no answer");
        return Ok(());
    };
    ensure!((400..500).contains(&status), "{status} {body}");
    if matches!(want, Closed) {
        return Ok(());
    }
    let json: Value = serde_json::from_str(&body).with_context(|| format!("{status} {body:?}"))?;
    let text = |name: &str| {
        json.get(name)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
    };
    let (Some(name), Some(_)) = (text("error"), text("message")) else {
        bail!("{status} {body} has no name or message")
    };
    if let Error(wanted, wanted_name) = want {
        ensure!((status, name) == (wanted, wanted_name), "{status} {body}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_sent_the_answer_is_a_refusal_and_the_server_goes_on() -> Outcome {
    let stack = Stack::start(ReplicaKind::None)
        .await?
        .context("a stack without an emulator")?;
    let mut pds = Pds::start(&stack.settings(&stack.place("data"))).await?;
    let alice = pds.api.create_account("alice").await?;
    let bob = pds.api.create_account("bob").await?;
    pds.api.post(&alice, "before").await?;
    let session = pds.api.login("alice.test").await?;
    pds.api
        .call("com.atproto.server.deleteSession", Some(&session.refresh))
        .await?;

    let mut cases = Cases { all: Vec::new() };
    http(&mut cases);
    bodies(&mut cases);
    params(&mut cases, &alice.did);
    tokens(&mut cases, &alice, &session.refresh)?;
    writes(&mut cases, &alice, &bob.did);
    let mut wrong = Vec::new();
    for case in &cases.all {
        let answer = timeout(
            SOON,
            exchange(&pds.url, &case.request, matches!(case.want, Closed)),
        )
        .await;
        let outcome = match answer {
            Ok(answer) => judge(case.want, answer.with_context(|| case.what.clone())?),
            Err(_) => Err(anyhow::anyhow!("no answer within {SOON:?}")),
        };
        if let Err(error) = outcome {
            wrong.push(format!("{}: wanted {:?}, got {error:#}", case.what, case.want));
        }
        ensure!(
            pds.process.ended()?.is_none(),
            "{} ended the server:\n{}",
            case.what,
            pds.process.tail()
        );
    }
    println!("{} bad requests", cases.all.len());
    ensure!(
        wrong.is_empty(),
        "{} of {} were answered wrongly:\n{}",
        wrong.len(),
        cases.all.len(),
        wrong.join("\n")
    );
    ensure!(pds.api.ready().await, "not ready any more");
    pds.api.post(&alice, "after").await?;
    let said = pds.process.output();
    ensure!(
        !said.contains("panicked"),
        "something panicked:\n{}",
        pds.process.tail()
    );
    for secret in [
        PASSWORD,
        JWT_SECRET,
        ADMIN_PASSWORD,
        &alice.access,
        &alice.refresh,
    ] {
        ensure!(
            !said.contains(secret),
            "a secret is in the log: {}",
            HEXLOWER.encode(secret.as_bytes())
        );
    }
    pds.stop().await?;
    stack.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_in_the_future_gets_an_error_and_a_talkative_subscriber_hurts_nobody() -> Outcome {
    let stack = Stack::start(ReplicaKind::None)
        .await?
        .context("a stack without an emulator")?;
    let pds = Pds::start(&stack.settings(&stack.place("data"))).await?;
    let alice = pds.api.create_account("alice").await?;
    let mut said = Vec::new();
    timeout(
        SOON,
        read(&pds.url, Some("9007199254740991"), |what| {
            said.push(what);
            true
        }),
    )
    .await
    .context("the connection stays open")??;
    assert_eq!(said, [Said::Error("FutureCursor".to_owned())]);

    let url = format!(
        "{}/xrpc/com.atproto.sync.subscribeRepos",
        pds.url.replacen("http", "ws", 1)
    );
    let (mut talkative, _) = tokio_tungstenite::connect_async(&url).await?;
    for message in [Message::text("hello?"), Message::binary(vec![0u8; 1_000_000])] {
        // The server may hang up in the middle, which is its right.
        let _hung_up = talkative.send(message).await;
    }
    let (mut quiet, _) = tokio_tungstenite::connect_async(&url).await?;
    pds.api.post(&alice, "still here").await?;
    let next = timeout(SOON, async {
        loop {
            match quiet.next().await {
                Some(Ok(Message::Binary(bytes))) => break Ok(bytes),
                Some(Ok(_)) => {}
                other => bail!("{other:?} instead of an event"),
            }
        }
    });
    let event = tests::events::decode(&next.await??)?;
    ensure!(matches!(event, Said::Event(_)), "{event:?}");
    tokio::time::timeout(Duration::from_secs(5), quiet.close(None)).await??;
    pds.stop().await?;
    stack.stop().await
}
