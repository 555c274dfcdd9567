//! Everything that should not be sent, sent over a bare socket: each gets a 4xx with a name and a message, none a 5xx, and
//! the server goes on serving. What breaks here is a client's mistake, or an attacker's idea, that hurts others.

mod bodies;
mod http;
mod params;
mod tokens;
mod writes;

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use data_encoding::HEXLOWER;
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tests::Outcome;
use tests::api::PASSWORD;
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
    http::all(&mut cases);
    bodies::all(&mut cases);
    params::all(&mut cases, &alice.did);
    tokens::all(&mut cases, &alice, &session.refresh)?;
    writes::all(&mut cases, &alice, &bob.did);
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
