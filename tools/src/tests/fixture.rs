//! Servers' data without servers, and ways to damage it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use benches::synthetic::SyntheticRepo;
use clap::Parser;
use engine::clock::{SeededEntropy, SystemClock};
use engine::engine::{Durability, Engine, EngineConfig, EnginePrelude, Shutdown, StartOptions};
use engine::entry::{Change, EntryDraft};
use engine::log::{FrameRef, GroupLsns, SEGMENT_HEADER_BYTES};
use engine::storage::OsStorage;
use engine::views::accounts::{AccountsError, LockKey};

use crate::{Cli, Outcome, run};

pub const DEADLINE: Duration = Duration::from_secs(60);

/// A secret that must never be printed.
pub const SECRET: &str = "correct horse battery staple";

/// Waits for it, but not for ever.
pub fn wait<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime
        .block_on(async { tokio::time::timeout(DEADLINE, future).await })
        .expect("in time")
}

/// Small segments, so that a log has several.
pub fn config(dir: &Path, durability: Durability) -> EngineConfig {
    let mut config = EngineConfig {
        index_cache_bytes: 8 << 20,
        ..EngineConfig::new(dir, durability)
    };
    config.log.segment_bytes = 24 << 10;
    config
}

pub fn start(dir: &Path) -> Engine {
    let prelude = EnginePrelude::recover(config(dir, Durability::Local), Arc::new(OsStorage)).unwrap();
    let options = StartOptions::local(prelude.last_epoch().next());
    let engine = prelude
        .start(Arc::new(SystemClock), &SeededEntropy::new(1), options)
        .unwrap();
    wait(engine.ready()).unwrap();
    engine
}

pub fn stop(engine: Engine, checkpoint: bool) {
    wait(engine.shutdown(Shutdown {
        drain: DEADLINE,
        checkpoint,
    }))
    .unwrap();
}

pub fn append(engine: &Engine, draft: EntryDraft) -> GroupLsns {
    wait(engine.append(vec![draft]).unwrap().durable()).unwrap()
}

/// An account with a handle, a password and a public key.
pub fn create_account(engine: &Engine, repo: &SyntheticRepo, handle: &str) {
    create_account_with(engine, repo, handle, &repo.key().public_key().to_did_key());
}

pub fn create_account_with(engine: &Engine, repo: &SyntheticRepo, handle: &str, key: &str) {
    let (did, handle, key) = (repo.did.to_string(), handle.to_owned(), key.to_owned());
    let prepared = wait(
        engine
            .accounts()
            .prepare([LockKey::did(repo.did.as_str())], move |tx| {
                let at = "2026-01-01T00:00:00.000Z";
                tx.execute(
                    "INSERT INTO actor (did, handle, createdAt) VALUES (?1, ?2, ?3)",
                    (&did, &handle, at),
                )?;
                tx.execute(
                    "INSERT INTO account (did, email, passwordScrypt) VALUES (?1, ?2, ?3)",
                    (&did, format!("{handle}@example.test"), SECRET),
                )?;
                tx.execute(
                    "INSERT INTO signing_key (did, publicKey, wrapped, createdAt) VALUES (?1, ?2, ?3, ?4)",
                    (&did, &key, SECRET.as_bytes(), at),
                )?;
                Ok::<_, AccountsError>(())
            }),
    )
    .unwrap();
    let change = Change::AccountsChangeset {
        bytes: prepared.changeset,
    };
    let receipt = engine.append(vec![EntryDraft::private(vec![change])]).unwrap();
    prepared.locks.logged();
    wait(receipt.durable()).unwrap();
}

/// Three accounts with some hundred records, over several segments.
pub fn fill(engine: &Engine) -> Vec<SyntheticRepo> {
    let mut repos: Vec<SyntheticRepo> = (0..3).map(|number| SyntheticRepo::new(number).unwrap()).collect();
    for (number, repo) in repos.iter_mut().enumerate() {
        create_account(engine, repo, &format!("user{number}.test"));
        for round in 0..20 {
            let writes = repo.posts(1 + round % 4);
            let draft = repo.commit(&writes).unwrap();
            append(engine, draft);
        }
    }
    repos
}

/// A directory as a stopped server leaves it.
pub fn stopped() -> (tempfile::TempDir, Vec<SyntheticRepo>) {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path());
    let repos = fill(&engine);
    stop(engine, true);
    (dir, repos)
}

/// The segment files, ascending.
pub fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir.join("log"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .collect();
    found.sort();
    found
}

/// Offset and length of each frame of a segment.
pub fn frames(path: &Path) -> Vec<(usize, usize)> {
    let bytes = std::fs::read(path).unwrap();
    let (mut at, mut found) = (SEGMENT_HEADER_BYTES, Vec::new());
    while let Some(Ok(frame)) = bytes.get(at..).map(FrameRef::parse) {
        found.push((at, frame.header.len()));
        at += frame.header.len();
    }
    found
}

/// Runs a command; its outcome and all that it printed.
pub fn tool(args: &[&str]) -> (Result<Outcome, String>, String) {
    let cli = Cli::try_parse_from(std::iter::once("pds-tools").chain(args.iter().copied())).unwrap();
    let mut out = Vec::new();
    let outcome = run(cli, &mut out).map_err(|error| format!("{error:#}"));
    (outcome, String::from_utf8(out).unwrap())
}

pub fn verify(dir: &Path) -> (Result<Outcome, String>, String) {
    tool(&["verify", dir.to_str().unwrap()])
}

/// Verifies, and expects damage with all of these words in one line.
pub fn expect_finding(dir: &Path, words: &[&str]) -> String {
    let (outcome, text) = verify(dir);
    assert_eq!(outcome, Ok(Outcome::Damaged), "{text}");
    has_line(&text, words);
    text
}

pub fn has_line(text: &str, words: &[&str]) {
    let found = text
        .lines()
        .any(|line| words.iter().all(|word| line.contains(word)));
    assert!(found, "no line with {words:?} in:\n{text}");
}

/// Every file below a directory with its content, to see that nothing was changed.
pub fn content(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(content(&path));
        } else {
            found.push((path.clone(), std::fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}
