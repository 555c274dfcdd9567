//! Records, writes and blobs.

use serde_json::{Value, json};
use tests::api::Account;

use super::{Cases, Closed, Error, NOBODY, NOTHING, Refusal};

pub(super) fn all(cases: &mut Cases, account: &Account, other: &str) {
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
