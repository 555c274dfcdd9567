//! Rate limits by a real Redis: servers share what they count, nobody's address is in it, and without it each counts for itself.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::redis::{PASSWORD, Redis};
use tests::stack::{Pds, ReplicaKind, SOON, Stack};
use tests::{Outcome, skip};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// 50 in five minutes from one address.
const RESET: &str = "com.atproto.server.resetPassword";

async fn ask(pds: &Pds) -> Result<u16> {
    let input = json!({ "token": "AAAAA-BBBBB", "password": "new horse" });
    Ok(pds.api.procedure(RESET, &input, None).await?.status)
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_share_their_counters_and_go_on_without_redis() -> Outcome {
    let Some(stack) = Stack::start(ReplicaKind::None).await? else {
        return skip("the stack does not start");
    };
    let dir = stack.place("redis");
    std::fs::create_dir_all(&dir)?;
    let Some(mut redis) = Redis::start(&dir).await? else {
        return skip("redis-server is not installed (Debian package redis-server)");
    };
    let mut servers = Vec::new();
    for name in ["one", "two"] {
        let settings = stack.settings(&stack.place(name)).with_all(redis.settings());
        servers.push(Pds::start(&settings).await?);
    }
    let [one, two] = &servers[..] else {
        anyhow::bail!("two servers")
    };
    // Until both have their connections, each may have counted a few by itself.
    for pds in [one, two] {
        let started = Instant::now();
        while counted(&redis).await? == 0 {
            ask(pds).await?;
            ensure!(started.elapsed() < SOON, "nothing is counted in Redis");
        }
    }
    let mut answers = Vec::new();
    for turn in 0..60 {
        answers.push(ask(if turn % 2 == 0 { one } else { two }).await?);
    }
    let good = answers.iter().filter(|status| **status == 400).count();
    ensure!((40..=55).contains(&good), "{good} of both together: {answers:?}");
    ensure!(answers[55..].iter().all(|status| *status == 429), "{answers:?}");

    let keys = command(&redis, "KEYS *").await?;
    ensure!(
        keys.contains("azure-pds:limit:global-ip:") && !keys.contains("127.0.0.1"),
        "{keys}"
    );
    let lasting = command(&redis, "EVAL \"local n = 0 for _, k in ipairs(redis.call('KEYS', '*')) do if redis.call('PTTL', k) < 0 then n = n + 1 end end return n\" 0").await?;
    ensure!(lasting.contains(":0"), "keys that never end: {lasting}");

    redis.kill().await?;
    let started = Instant::now();
    while ask(one).await? != 400 {
        ensure!(started.elapsed() < SOON, "nothing is answered without Redis");
    }
    let mut answers = Vec::new();
    for _ in 0..60 {
        answers.push(ask(one).await?);
    }
    ensure!(
        answers.last() == Some(&429),
        "nothing is limited without Redis: {answers:?}"
    );
    let log = one.process.output();
    ensure!(
        log.contains("Redis cannot be used") && !log.contains(PASSWORD),
        "{log}"
    );
    for pds in servers {
        pds.stop().await?;
    }
    Ok(())
}

/// How many keys there are.
async fn counted(redis: &Redis) -> Result<u64> {
    let answer = command(redis, "DBSIZE").await?;
    let number = answer.lines().rev().find_map(|line| line.strip_prefix(':'));
    number
        .and_then(|text| text.trim().parse().ok())
        .with_context(|| answer.clone())
}

/// What Redis answers to a line.
async fn command(redis: &Redis, line: &str) -> Result<String> {
    let mut stream = TcpStream::connect(redis.address()).await?;
    let lines = format!("AUTH \"{PASSWORD}\"\r\n{line}\r\nQUIT\r\n");
    stream.write_all(lines.as_bytes()).await?;
    let mut answer = String::new();
    tokio::time::timeout(SOON, stream.read_to_string(&mut answer)).await??;
    Ok(answer)
}
