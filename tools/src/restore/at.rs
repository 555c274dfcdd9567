//! `pds-tools restore --at`: the whole store as it was at an earlier moment, as a new log that is safe to put on the network.
//!
//! ```text
//! replica ─► the present: log and views ──────────────────────────────┐
//!        └─► the history up to the cut ─► new log, cut, own identity ─► views ─► compare ─► new entries behind the cut
//! ```
//! The new entries have LSNs above everything that the replica's writers can have shown to anybody. They say, in this order:
//! what must not go back in time (`accounts`), that repos which were removed since are removed, what consumers must hear of
//! accounts (`#account`, `#identity`), and which repos stand elsewhere than consumers believe. Those the server signs anew and
//! announces (`#sync`) before it serves anything, since it alone has the keys.
//!
//! Until the last step the directory says that a restore is under way, and a server refuses it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use engine::clock::SystemEntropy;
use engine::engine::{Engine, Shutdown};
use engine::entry::{Change, EntryDraft};
use engine::log::{LogId, Lsn};
use engine::repo::event::{AccountStatus, encode_account, encode_identity};
use engine::repo::{Did, Handle, Tid};
use engine::views::accounts::{AccountsError, queries};
use shipper::restore::MARKER;
use shipper::store::ReplicaStore;
use tokio::runtime::Runtime;

use super::accounts::{Plan, Statement, compare};
use super::transplant::transplant;
use super::{REQUEST_TIMEOUT, blocking_restore, past, runtime};
use crate::{Outcome, summary};

/// The new log begins so far above everything that was ever shown: what a server that is not stopped yet may still show.
const MARGIN_MICROS: u64 = 60 * 1_000_000;
/// Statements on the account database that make one entry.
const STATEMENTS: usize = 200;
/// Repos that are read at once, and events that make one group.
const PAGE: usize = 500;
/// The longest that the end of an engine may take.
const DRAIN: Duration = Duration::from_secs(600);

/// What was done.
#[derive(Debug, Default)]
struct Report {
    repos_back: u64,
    repos_same: u64,
    repos_removed: u64,
    accounts_deleted: u64,
    accounts_unborn: u64,
    accounts_told: u64,
    identities_told: u64,
    rows: BTreeMap<String, u64>,
}

/// Restores into `to`, which is empty or not there. Needs room in `temp` for the log twice and the views once.
pub fn run(
    store: &Arc<dyn ReplicaStore>,
    cut: Lsn,
    to: &Path,
    temp: &Path,
    out: &mut dyn Write,
) -> anyhow::Result<Outcome> {
    let temp = past::temporary(temp)?;
    let runtime = runtime()?;
    let survey = runtime.block_on(shipper::fence::survey(store, REQUEST_TIMEOUT))?;
    let survey = survey.with_context(|| format!("there is no log in the replica {}", store.describe()))?;
    let now_dir = temp.path().join("now");
    let present = blocking_restore(store, &now_dir, true)?;
    if cut >= present.last_lsn {
        bail!(
            "the replica ends at {} ({}), which is not after {cut}; to restore all of it leave out --at",
            present.last_lsn,
            summary::time(present.last_lsn)
        );
    }
    let then_dir = temp.path().join("then");
    past::fetch(store, &then_dir, Some(cut))?;

    mark(to)?;
    let log_id = LogId::random(&SystemEntropy).context("choosing the new log's id")?;
    let last = transplant(&then_dir, to, cut, log_id)?;
    if last == Lsn::ZERO {
        bail!("at {cut} ({}) the log had no entry yet", summary::time(cut));
    }
    std::fs::remove_dir_all(&then_dir).context("removing a temporary directory")?;
    let shown = survey
        .end
        .lsn_floor
        .max(survey.end.last_lsn)
        .max(present.last_lsn);
    let floor = Lsn::saturating(shown.get().saturating_add(MARGIN_MICROS));
    let epoch = present.last_epoch;
    let now = past::open(&runtime, &now_dir, epoch, Lsn::ZERO)?;
    let then = past::open(&runtime, to, epoch, floor)?;
    let report = replay(&runtime, &then, &now)?;
    let end = then.local().get();
    runtime.block_on(close(now, false))?;
    runtime.block_on(close(then, true))?;
    unmark(to)?;
    print(&report, cut, last, end, log_id, to, out)?;
    Ok(Outcome::Clean)
}

fn print(
    report: &Report,
    cut: Lsn,
    last: Lsn,
    end: Lsn,
    log_id: LogId,
    to: &Path,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    writeln!(
        out,
        "restored the store as of {cut} ({}) as new log {log_id} into {}; its last entry of before is {last}",
        summary::time(cut),
        to.display()
    )?;
    writeln!(
        out,
        "repos: {} as now, {} set back (the server signs and announces them at its first start), {} removed since and removed again",
        report.repos_same, report.repos_back, report.repos_removed
    )?;
    writeln!(
        out,
        "accounts: {} deleted since and deleted again, {} created since and not in it, {} announced with another state, {} with a \
         changed handle or key",
        report.accounts_deleted, report.accounts_unborn, report.accounts_told, report.identities_told
    )?;
    for (table, rows) in &report.rows {
        writeln!(out, "rows of {table} that do not go back in time: {rows}")?;
    }
    writeln!(
        out,
        "the log goes on at {end} ({}). Stop the old server before the new one starts, and give that an empty replica; media are not \
         part of the log: keep its blob store",
        summary::time(end)
    )
}

fn mark(to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    let marker = to.join(MARKER);
    let file = std::fs::File::create(&marker).with_context(|| format!("making {}", marker.display()))?;
    file.sync_all()?;
    std::fs::File::open(to)?.sync_all()?;
    Ok(())
}

fn unmark(to: &Path) -> anyhow::Result<()> {
    std::fs::File::open(to)?.sync_all()?;
    std::fs::remove_file(to.join(MARKER)).context("saying that the restore has ended")?;
    std::fs::File::open(to)?.sync_all()?;
    Ok(())
}

async fn close(engine: Engine, checkpoint: bool) -> anyhow::Result<()> {
    let how = Shutdown {
        drain: DRAIN,
        checkpoint,
    };
    engine.shutdown(how).await.context("closing the log")
}

/// Appends to `then` what has to be said there because of `now`.
fn replay(runtime: &Runtime, then: &Engine, now: &Engine) -> anyhow::Result<Report> {
    let plan = then.accounts().read_blocking(|before| {
        now.accounts()
            .read_blocking(|today| Ok::<_, AccountsError>(compare(before, today)?))
    })?;
    let mut report = Report {
        accounts_unborn: plan.unborn.len() as u64,
        accounts_told: plan.statuses.len() as u64,
        identities_told: plan.identities.len() as u64,
        rows: plan.rows.clone(),
        ..Report::default()
    };
    for statements in [&plan.statements, &plan.last] {
        for statements in statements.chunks(STATEMENTS) {
            runtime.block_on(execute(then, statements.to_vec()))?;
        }
    }
    for did in &plan.deleted {
        runtime.block_on(delete(then, did))?;
        report.accounts_deleted += 1;
    }
    repos(runtime, then, now, &plan, &mut report)?;
    let mut events = Vec::new();
    for (did, handle) in &plan.identities {
        let did: Did = did.parse().with_context(|| format!("account {did}"))?;
        let handle: Option<Handle> = handle.as_deref().and_then(|handle| handle.parse().ok());
        events.push(EntryDraft::identity(
            encode_identity(&did, handle.as_ref()),
            Vec::new(),
        ));
    }
    // Nobody can say more of an account that is not here than that it is not served; its identity is its owner's.
    let unborn = plan
        .unborn
        .iter()
        .map(|did| (did, Some(AccountStatus::Deactivated)));
    let told = plan.statuses.iter().map(|(did, status)| (did, *status));
    for (did, status) in told.chain(unborn) {
        let did: Did = did.parse().with_context(|| format!("account {did}"))?;
        events.push(EntryDraft::account(encode_account(&did, status), Vec::new()));
    }
    for group in events.chunks(PAGE) {
        runtime.block_on(append(then, group.to_vec()))?;
    }
    Ok(report)
}

async fn append(engine: &Engine, group: Vec<EntryDraft>) -> anyhow::Result<()> {
    engine.append(group)?.durable().await?;
    Ok(())
}

async fn execute(engine: &Engine, statements: Vec<Statement>) -> anyhow::Result<()> {
    let prepared = engine.accounts().prepare([], move |tx| {
        for statement in statements {
            tx.execute(&statement.sql, rusqlite::params_from_iter(statement.params))?;
        }
        Ok::<_, AccountsError>(())
    });
    let prepared = prepared.await?;
    if prepared.changeset.is_empty() {
        return Ok(());
    }
    let bytes = prepared.changeset;
    let receipt = engine.append(vec![EntryDraft::private(vec![Change::AccountsChangeset {
        bytes,
    }])])?;
    prepared.locks.logged();
    receipt.durable().await?;
    Ok(())
}

/// Deletes an account of then that was deleted since, and says so.
async fn delete(engine: &Engine, did: &str) -> anyhow::Result<()> {
    let parsed: Did = did.parse().with_context(|| format!("account {did}"))?;
    let mut changes = Vec::new();
    if engine.reader()?.repo(&parsed)?.is_some() {
        changes.push(Change::RepoRemoved { did: parsed.clone() });
    }
    let owner = did.to_owned();
    let prepared = engine
        .accounts()
        .prepare([], move |tx| queries::delete_account(tx, &owner));
    let prepared = prepared.await?;
    if !prepared.changeset.is_empty() {
        changes.push(Change::AccountsChangeset {
            bytes: prepared.changeset,
        });
    }
    let event = encode_account(&parsed, Some(AccountStatus::Deleted));
    let receipt = engine.append(vec![
        EntryDraft::private(changes),
        EntryDraft::account(event, Vec::new()),
    ])?;
    prepared.locks.logged();
    receipt.durable().await?;
    Ok(())
}

/// Finds the repos that stand elsewhere than consumers believe, and lets the server know them.
fn repos(
    runtime: &Runtime,
    then: &Engine,
    now: &Engine,
    plan: &Plan,
    report: &mut Report,
) -> anyhow::Result<()> {
    let (before, today) = (then.reader()?, now.reader()?);
    let (mut back, mut removed): (Vec<(Did, Tid)>, Vec<Did>) = (Vec::new(), Vec::new());
    let mut after = None;
    loop {
        let page = before.repos(after, PAGE)?;
        let Some(last) = page.last() else { break };
        after = Some(last.number);
        for repo in page
            .into_iter()
            .filter(|repo| plan.kept.contains(repo.did.as_str()))
        {
            match today.repo(&repo.did)? {
                Some(head) if head.commit == repo.commit => report.repos_same += 1,
                // One that was removed and begun again since has another number: what it had then was deleted.
                Some(head) if head.number != repo.number => {
                    back.push((repo.did.clone(), head.rev.max(repo.rev)));
                    removed.push(repo.did);
                }
                Some(head) => back.push((repo.did, head.rev.max(repo.rev))),
                None => {
                    back.push((repo.did.clone(), repo.rev));
                    removed.push(repo.did);
                }
            }
        }
    }
    after = None;
    loop {
        let page = today.repos(after, PAGE)?;
        let Some(last) = page.last() else { break };
        after = Some(last.number);
        for repo in page {
            if plan.kept.contains(repo.did.as_str()) && before.repo(&repo.did)?.is_none() {
                back.push((repo.did, repo.rev));
            }
        }
    }
    for did in removed {
        let removal = EntryDraft::private(vec![Change::RepoRemoved { did }]);
        runtime.block_on(append(then, vec![removal]))?;
        report.repos_removed += 1;
    }
    report.repos_back = back.len() as u64;
    for repos in back.chunks(STATEMENTS) {
        let statements = repos.iter().map(|(did, rev)| Statement {
            sql: "INSERT INTO restored_repo (did, rev) VALUES (?1, ?2)
                  ON CONFLICT (did) DO UPDATE SET rev = max(rev, excluded.rev)"
                .to_owned(),
            params: vec![did.as_str().to_owned().into(), rev.to_string().into()],
        });
        runtime.block_on(execute(then, statements.collect()))?;
    }
    Ok(())
}
