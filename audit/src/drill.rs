//! Trials of a restore: a backup that was never restored is a hope.
//!
//! All of a replica is restored into a scratch directory and checked there as any data directory, if it fits into the disk that
//! a drill may take. If not, its chain, its newest checkpoint, its newest segment and others by chance are fetched, one after
//! the other, and compared with their digests. Everything goes away afterwards.
//!
//! | what is checked | restored | sampled |
//! |---|---|---|
//! | the newest manifest, the chain of chunks | yes | yes |
//! | segments by their digests | all | some |
//! | the newest checkpoint by its digests | yes | yes |
//! | every entry's checksum, every block's CID, every commit against the one before | yes | no |
//! | the views of the checkpoint, row by row, against views folded from the log | yes | no |
//! | every repo's records against the root that its commit is signed for, and the signature | yes | no |
//! | rev, commit and root of every repo against the server's own index | yes | no |

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use engine::log::{LogId, Lsn};
use shipper::fence::{self, ReplicaError, ReplicaState};
use shipper::store::ReplicaStore;
use tokio::runtime::Handle;

use crate::replica::{Scope, objects, restored};
use crate::{Meter, Outcome, Report, Room};

/// How often a drill starts over because a running server replaced what it was reading.
const MAX_ROUNDS: u32 = 4;

/// How often the views are on the disk at the same time: in the checkpoint, in their place, copied, and folded anew.
const COPIES_OF_VIEWS: u64 = 4;

/// What a drill may take.
#[derive(Clone, Copy)]
pub struct DrillOptions<'a> {
    /// Where to, and memory.
    pub room: Room<'a>,
    /// Whether all of it may be restored, which takes more memory than looking at one object after the other.
    pub whole: bool,
    /// Bytes of disk.
    pub disk_bytes: u64,
    /// Bytes of the disk that stay free for others.
    pub keep_free: u64,
    /// The longest that one request may take.
    pub request_timeout: Duration,
    /// Decides what is sampled.
    pub seed: u64,
}

/// What a drill has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drill {
    /// Whether all of the replica was restored; else it was sampled.
    pub whole: bool,
    /// Damage that was found.
    pub findings: u64,
    /// The last entry that was restored, or that the chain names where it was sampled.
    pub last: Lsn,
    /// The newest checkpoint.
    pub checkpoint: Option<Lsn>,
    /// Bytes of disk that restoring it takes, as estimated before.
    pub needs: u64,
}

impl Drill {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self.findings {
            0 => Outcome::Clean,
            _ => Outcome::Damaged,
        }
    }
}

/// Tries whether a replica restores. What is found is printed to `out`. Blocks; requests are made on `runtime`.
///
/// # Errors
/// The drill could not be run to its end, which is no statement about the replica; or there is nothing in it.
pub fn run(
    runtime: &Handle,
    store: &Arc<dyn ReplicaStore>,
    options: DrillOptions<'_>,
    meter: &dyn Meter,
    out: &mut dyn Write,
) -> anyhow::Result<Drill> {
    let survey = || runtime.block_on(fence::survey(store, options.request_timeout));
    let mut state = match survey() {
        Ok(Some(state)) => state,
        Ok(None) => bail!("there is no log in {}", store.describe()),
        Err(error @ ReplicaError::Store(_)) => return Err(error).context("looking at the replica"),
        Err(damage) => return unreadable(&anyhow::Error::new(damage), meter, out),
    };
    for round in 1.. {
        let mut text = Vec::new();
        let drill = once(runtime, store, &state, options, meter, &mut text);
        let moved_on = || -> anyhow::Result<Option<ReplicaState>> {
            let now = survey()?.with_context(|| format!("the log in {} is gone", store.describe()))?;
            Ok((now.manifest.generation > state.manifest.generation).then_some(now))
        };
        let suspicious = drill.as_ref().map_or(true, |drill| drill.findings > 0);
        // What a newer manifest does not name is deleted while we read: that is not damage.
        if suspicious
            && round < MAX_ROUNDS
            && meter.advance(0).is_ok()
            && let Some(now) = moved_on()?
        {
            state = now;
            continue;
        }
        out.write_all(&text)?;
        return drill;
    }
    bail!("a running server keeps replacing what is being read")
}

/// The replica does not even tell what is in it.
fn unreadable(damage: &anyhow::Error, meter: &dyn Meter, out: &mut dyn Write) -> anyhow::Result<Drill> {
    let mut report = Report::new(out, meter);
    report.finding(
        "replica",
        format!("it cannot be restored: {damage:#}"),
        "if the server still has its disk, make a new replica from there",
    );
    let findings = report.findings();
    report.finish()?;
    Ok(Drill {
        whole: false,
        findings,
        last: Lsn::ZERO,
        checkpoint: None,
        needs: 0,
    })
}

fn once(
    runtime: &Handle,
    store: &Arc<dyn ReplicaStore>,
    state: &ReplicaState,
    options: DrillOptions<'_>,
    meter: &dyn Meter,
    text: &mut Vec<u8>,
) -> anyhow::Result<Drill> {
    let scratch = tempfile::Builder::new()
        .prefix("pds-drill-")
        .tempdir_in(options.room.temp);
    let scratch = scratch.context("making a scratch directory")?;
    let room = Room {
        temp: scratch.path(),
        ..options.room
    };
    let mut report = Report::new(text, meter);
    let needs = needs(state);
    let may = options
        .disk_bytes
        .min(free_bytes(scratch.path())?.saturating_sub(options.keep_free));
    let whole = options.whole && needs <= may;
    let mut last = state.end.last_lsn;
    if whole {
        last = restore(runtime, store, room, state.log_id, &mut report)?.unwrap_or(Lsn::ZERO);
        if last < state.end.last_lsn && report.findings() == 0 {
            let what = format!("it ends at {last}, its chain at {}", state.end.last_lsn);
            report.finding("the restored log", what, "keep the server's disk, and report it");
        }
    } else {
        report.note(match options.whole {
            true => format!(
                "restoring it takes about {needs} bytes of disk where {may} may be taken: it is sampled"
            ),
            false => "there is no memory to restore it: it is sampled".to_owned(),
        });
        let scope = Scope::Sample {
            bytes: options.disk_bytes,
            seed: options.seed,
        };
        runtime.block_on(objects(store, room.temp, scope, &mut report))?;
    }
    let findings = report.findings();
    report.finish()?;
    Ok(Drill {
        whole,
        findings,
        last,
        checkpoint: state
            .manifest
            .checkpoints
            .first()
            .map(|newest| Lsn::saturating(newest.lsn)),
        needs,
    })
}

fn restore(
    runtime: &Handle,
    store: &Arc<dyn ReplicaStore>,
    room: Room<'_>,
    log_id: LogId,
    report: &mut Report<'_>,
) -> anyhow::Result<Option<Lsn>> {
    let facts = restored(runtime, store, room, log_id, report)?;
    Ok(facts.map(|facts| facts.last))
}

/// Bytes of disk that restoring and checking takes, about.
fn needs(state: &ReplicaState) -> u64 {
    let segments = &state.manifest.segments;
    let raw: u64 = segments.iter().map(|segment| segment.raw_bytes).sum();
    let chunks: u64 = state.chain.iter().map(|chunk| u64::from(chunk.raw_len)).sum();
    let packed = segments.iter().map(|segment| segment.stored_bytes).max();
    let views = match state.manifest.checkpoints.first() {
        Some(newest) => newest.raw_bytes().saturating_mul(COPIES_OF_VIEWS),
        // They are folded from the log, and are not larger.
        None => raw + chunks,
    };
    // Entries after the checkpoint make the views larger.
    raw + chunks * 2 + packed.unwrap_or_default() + views
}

fn free_bytes(dir: &Path) -> anyhow::Result<u64> {
    let disk = rustix::fs::statvfs(dir).with_context(|| format!("the free space of {}", dir.display()))?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}
