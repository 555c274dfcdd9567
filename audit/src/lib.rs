//! Checks what a server keeps: every byte against its checksum, every block against its CID, every commit against the one
//! before, and the views against the log (I4, I7); and that a replica restores.
//!
//! Nothing that is checked is changed: views are copied before they are opened, and a replica is only read. `pds-tools` and the
//! server's drills stand on the same code.
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        reason = "a failing test is meant to stop"
    )
)]

pub mod data_dir;
pub mod drill;
mod events;
mod log;
pub mod replica;
mod report;
pub mod segment;
mod views;

use std::path::Path;

use data_dir::DataDir;
use engine::log::{LogId, Lsn};
use engine::views::index::IndexReader;
use log::{Before, Seen};

pub use report::{Meter, NoMeter, Outcome, Report};

/// Opens the index of a server that is running and has the same log, as it is now.
pub type LiveIndex<'a> = &'a dyn Fn() -> anyhow::Result<IndexReader>;

/// What a check may take, and what it may compare with.
#[derive(Clone, Copy)]
pub struct Room<'a> {
    /// Where copies of the views, and a restored replica, may be put for a while.
    pub temp: &'a Path,
    /// Memory for pages of an index, in bytes; two are open at a time.
    pub index_cache_bytes: usize,
    /// A running server's index, to compare with what is folded from the log.
    pub live: Option<LiveIndex<'a>>,
}

/// What a log was found to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogFacts {
    /// Its name; none if it has no segment.
    pub log_id: Option<LogId>,
    /// Its last whole entry.
    pub last: Lsn,
    /// Whole entries.
    pub entries: u64,
    /// Whether entries are missing or damaged, so that nothing can be folded from it.
    pub holes: bool,
    /// Segments that are in the replica only, so that what was folded lacks theirs.
    pub away: u64,
}

/// Checks a data directory.
///
/// # Errors
/// The check could not be run to its end; that is no statement about the data.
pub fn directory(root: &Path, room: Room<'_>, report: &mut Report<'_>) -> anyhow::Result<LogFacts> {
    let dir = DataDir::open(root)?;
    if dir.running {
        report.note(
            "a server is running here: its views are in use and not compared; stop it to check them, too",
        );
    }
    let mut bytes = 0;
    for base in &dir.segments {
        bytes += std::fs::metadata(dir.segment_path(*base)).map_or(0, |file| file.len());
    }
    report.meter().begin("checking", bytes);
    let mut events = events::Events::default();
    let mut views = views::Views::begin(&dir, room, report)?;
    let facts = log::check(&dir, report, &mut |seen, report| match seen {
        Seen::Away => {
            events.forget();
            Ok(())
        }
        Seen::Entry(entry, before) => {
            events.check(entry, before == Before::Damaged, report);
            // What is folded from a part of a log is no view.
            match before {
                Before::Whole => views.fold(entry, report),
                Before::Away | Before::Damaged => Ok(()),
            }
        }
    })?;
    report.meter().end();
    match dir.say_away() {
        Some(away) => report.note(away),
        None if dir.segments.is_empty() => report.note("the log is empty"),
        None => {}
    }
    views.finish(&facts, room.live, report)?;
    report.note(format!(
        "checked {} entries in {} segments, {} blocks, {} commits of {} repos, up to {}",
        facts.entries,
        dir.segments.len(),
        events.blocks,
        events.commits,
        events.repos(),
        facts.last
    ));
    Ok(facts)
}

/// The time an LSN stands for, as text.
#[must_use]
pub fn time(lsn: Lsn) -> String {
    lsn.timestamp().into_iter().map(char::from).collect()
}
