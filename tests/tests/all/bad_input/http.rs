//! Below XRPC: verbs, targets, headers, lengths and chunks.

use super::{Cases, Closed, Error, Refusal};

pub(super) fn all(cases: &mut Cases) {
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
