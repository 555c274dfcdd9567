//! A server of one handler that answers from memory: what the HTTP stack and this machine can do at best.

use std::process::Stdio;

use anyhow::{Context, Result};
use axum::Router;
use axum::http::header;
use axum::routing::get;
use serde_json::{Map, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::args::Trivial;
use crate::load::closed_loop_of;
use crate::raw::{Asked, Asking};
use crate::report::Outcome;

/// As many bytes as a getRecord of a small post answers.
const ANSWER: &str = concat!(
    r#"{"uri":"at://did:plc:aaaaaaaaaaaaaaaaaaaaaaaa/app.bsky.feed.post/3kh4xq2abcd2x","cid":"#,
    r#""bafyreiaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","value":{"$type":"app.bsky.feed.post","text":"#,
    r#""An answer of the size that a small post has, from memory, so that nothing but the way over HTTP is measured here and"#,
    r#" nothing else at all counts.","langs":["en"],"createdAt":"2024-01-01T00:00:00.000Z"}}"#
);
const PATH: &str = "/xrpc/com.atproto.repo.getRecord";

/// `serve-trivial`: prints its port and serves until it is killed.
///
/// # Errors
/// It cannot listen.
pub async fn serve() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("listen")?;
    println!("{}", listener.local_addr().context("listen")?.port());
    let kind = "application/json; charset=utf-8";
    let routes = Router::new().route(
        PATH,
        get(move || async move { ([(header::CONTENT_TYPE, kind)], ANSWER) }),
    );
    axum::serve(listener, routes).await.context("serve")
}

/// `trivial`.
///
/// # Errors
/// The server's process cannot be started.
pub async fn measure(args: &Trivial) -> Result<Outcome> {
    let program = std::env::current_exe().context("this program's path")?;
    let mut server = Command::new(program)
        .arg("serve-trivial")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("the trivial server does not start")?;
    let out = server.stdout.take().context("the trivial server's output")?;
    let port = BufReader::new(out).lines().next_line().await?;
    let port: u16 = port
        .context("the trivial server ended")?
        .parse()
        .context("its port")?;
    let base = format!("http://127.0.0.1:{port}");
    let ask = |_| Asked {
        target: format!(
            "{PATH}?repo=did:plc:aaaaaaaaaaaaaaaaaaaaaaaa&collection=app.bsky.feed.post&rkey=3kh4xq2abcd2x"
        ),
        ..Asked::default()
    };
    let (tally, usage) = closed_loop_of(args.pace, server.id(), || Asking::new(&base, ask)).await?;
    server.kill().await.context("the trivial server does not end")?;
    Ok(Outcome {
        scenario: "trivial",
        parameters: json!({
            "connections": args.pace.connections,
            "warmup_seconds": args.pace.warmup_seconds,
        }),
        elapsed: args.pace.measured(),
        tally,
        usage,
        extra: Map::new(),
    })
}
