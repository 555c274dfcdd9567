//! Bodies that are no JSON, too much of it, or the wrong thing; sign-up and login.

use serde_json::{Value, json};
use tests::api::PASSWORD;

use super::{Cases, Error, NOBODY, Refusal};

pub(super) fn all(cases: &mut Cases) {
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
