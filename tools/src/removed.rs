//! Repos that were removed: which of them are still in a log, which were compacted away and may have copies left elsewhere,
//! and which the log says to be gone everywhere. All of it is read from the log, so a replica tells the same as the disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use engine::entry::{Change, Entry, EntryKind, RepoRemoval};
use engine::log::{Frame, LogId, Lsn};
use engine::views::checkpoint::Checkpoints;
use engine::views::index::{FILE_NAME, IndexView};
use serde_json::{Value, json};
use shipper::orphans;
use shipper::restore::CHECKPOINT_DIR;
use shipper::retention;
use shipper::start::SET_ASIDE_DIR;

use crate::restore::{blocking_restore, runtime};
use crate::{Outcome, replica_url, summary};
use audit::data_dir::DataDir;
use audit::segment::{SegmentReader, Step};

/// Removals that are listed one by one, the oldest first; more are counted.
const LISTED_MAX: usize = 1_000;
/// Objects or files that are named.
const NAMED_MAX: usize = 10;
const MICROS_PER_HOUR: u64 = 3_600 * 1_000_000;
const INDEX_CACHE_BYTES: usize = 32 << 20;
/// The longest that one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// What a log says of removed repos.
#[derive(Debug, Default)]
pub struct Removed {
    in_log: u64,
    compacted: u64,
    gone: u64,
    /// Those that are not gone, with the segment of the log that they are in.
    listed: BTreeMap<RepoRemoval, Option<Lsn>>,
    /// The newest that are, and by when they were.
    listed_gone: BTreeMap<RepoRemoval, Lsn>,
    /// What besides the log may hold something of the removals up to here, which were compacted away.
    left: Left,
}

/// What is left besides the log.
#[derive(Debug, Default)]
pub struct Left {
    /// Files or objects, the first of them.
    names: Vec<String>,
    count: usize,
}

impl Left {
    fn add(&mut self, name: impl Into<String>) {
        self.count += 1;
        if self.names.len() < NAMED_MAX {
            self.names.push(name.into());
        }
    }
}

impl Removed {
    /// Looks at a frame of the segment `segment`, which a compaction wrote or not; frames come in the order of the log.
    ///
    /// # Errors
    /// The frame is no entry.
    pub fn note(&mut self, frame: &Frame, segment: Lsn) -> anyhow::Result<()> {
        let header = frame.header();
        // A removal stands alone or beside what tells of the account's end.
        let may = [EntryKind::Private, EntryKind::Account].map(|kind| kind as u8);
        if !may.contains(&header.kind) || header.private_len() == 0 {
            return Ok(());
        }
        for change in Entry::decode(frame)?.changes {
            match change {
                Change::RepoRemoved { did } => {
                    self.in_log += 1;
                    let lsn = header.lsn;
                    self.list(RepoRemoval { lsn, did }, Some(segment));
                }
                Change::RemovalsPending { removals } => {
                    self.compacted += removals.len() as u64;
                    for removal in removals {
                        self.list(removal, None);
                    }
                }
                Change::RemovalsGone { removals } => {
                    for removal in removals {
                        self.end(removal, header.lsn);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn list(&mut self, removal: RepoRemoval, segment: Option<Lsn>) {
        if self.listed.len() < LISTED_MAX {
            self.listed.insert(removal, segment);
        }
    }

    fn end(&mut self, removal: RepoRemoval, at: Lsn) {
        self.gone += 1;
        // A removal that is gone was compacted away; its entry is in the log no more.
        self.compacted = self.compacted.saturating_sub(1);
        self.listed.remove(&removal);
        self.listed_gone.insert(removal, at);
        if self.listed_gone.len() > LISTED_MAX {
            self.listed_gone.pop_first();
        }
    }

    /// Looks for what a stopped server's directory holds besides the log. `erased` is what its index says of itself.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn look_beside(&mut self, dir: &DataDir, log_id: LogId, erased: Lsn) -> anyhow::Result<()> {
        let Some(newest) = self.newest_compacted() else {
            return Ok(());
        };
        let log = dir.root.join(shipper::restore::LOG_DIR);
        for entry in std::fs::read_dir(&log).with_context(|| format!("reading {}", log.display()))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let base = name.strip_suffix(".seg").and_then(Lsn::from_hex);
            if base.is_some_and(|base| dir.segments.binary_search(&base).is_err()) {
                self.left.add(format!("log/{name}"));
            }
        }
        if erased < newest {
            self.left.add(FILE_NAME);
        }
        for lsn in Checkpoints::new(dir.root.join(CHECKPOINT_DIR), log_id).list()? {
            if lsn <= erased || erased < newest {
                self.left.add(format!("{CHECKPOINT_DIR}/{}", lsn.hex()));
            }
        }
        let wal = std::fs::metadata(dir.root.join("account.sqlite-wal"));
        if wal.is_ok_and(|wal| wal.len() > 0) {
            self.left.add("account.sqlite-wal");
        }
        for entry in std::fs::read_dir(dir.root.join(SET_ASIDE_DIR))
            .into_iter()
            .flatten()
        {
            self.left.add(format!(
                "{SET_ASIDE_DIR}/{}",
                entry?.file_name().to_string_lossy()
            ));
        }
        Ok(())
    }

    fn newest_compacted(&self) -> Option<Lsn> {
        let mut compacted = self.listed.iter().filter(|(_, segment)| segment.is_none());
        compacted.next_back().map(|(removal, _)| removal.lsn)
    }

    /// As JSON; entries of the last `keep_hours` stay as they are.
    pub fn as_json(&self, keep_hours: u64) -> Value {
        let (mut in_log, mut compacted) = (Vec::new(), Vec::new());
        for (removal, segment) in &self.listed {
            let mut row = as_json(removal);
            match (segment, row.as_object_mut()) {
                (Some(segment), Some(fields)) => {
                    fields.insert("segment".to_owned(), segment.hex().into());
                    let until = summary::time(until(removal, keep_hours));
                    fields.insert("inLogUntilAfter".to_owned(), until.into());
                    in_log.push(row);
                }
                _ => compacted.push(row),
            }
        }
        let gone = self.listed_gone.iter().map(|(removal, at)| {
            let mut row = as_json(removal);
            if let Some(fields) = row.as_object_mut() {
                fields.insert("goneBy".to_owned(), summary::time(*at).into());
            }
            row
        });
        json!({
            "count": self.in_log,
            "oldest": in_log,
            "compacted": { "count": self.compacted, "oldest": compacted },
            "left": { "count": self.left.count, "names": self.left.names },
            "gone": { "count": self.gone, "newest": gone.collect::<Vec<_>>() },
        })
    }

    /// As lines.
    pub fn print(&self, keep_hours: u64, out: &mut dyn std::io::Write) -> std::io::Result<()> {
        for (removal, segment) in &self.listed {
            let since = summary::time(removal.lsn);
            match segment {
                Some(segment) => writeln!(
                    out,
                    "removed repo {}: since {since}, still in the log up to segment {}, which may be compacted after {}",
                    removal.did,
                    segment.hex(),
                    summary::time(until(removal, keep_hours)),
                )?,
                None => writeln!(
                    out,
                    "removed repo {}: since {since}, not in the log any more; no server has told yet that its last copy is gone",
                    removal.did,
                )?,
            }
        }
        for (removal, at) in &self.listed_gone {
            writeln!(
                out,
                "removed repo {}: since {}, and its last copy was gone by {}",
                removal.did,
                summary::time(removal.lsn),
                summary::time(*at)
            )?;
        }
        if self.compacted > 0 {
            match self.left.count {
                0 => writeln!(
                    out,
                    "nothing is left here of removed repos that are not in the log any more"
                )?,
                count => writeln!(
                    out,
                    "something of removed repos may be left in {count} more files or objects: {}",
                    self.left.names.join(", ")
                )?,
            }
        }
        writeln!(
            out,
            "{} removed repos are still in the log, {} more are not told to be gone",
            self.in_log, self.compacted
        )
    }
}

fn as_json(removal: &RepoRemoval) -> Value {
    json!({
        "did": removal.did.as_str(),
        "lsn": removal.lsn.get(),
        "removedAt": summary::time(removal.lsn),
    })
}

/// Up to when the firehose's retention keeps a removal, and so all that came before, from being compacted.
fn until(removal: &RepoRemoval, keep_hours: u64) -> Lsn {
    let kept = keep_hours.saturating_mul(MICROS_PER_HOUR);
    Lsn::saturating(removal.lsn.get().saturating_add(kept))
}

/// Tells the same of a replica, which is restored into a temporary directory below `temp` for it.
///
/// # Errors
/// The replica cannot be read, or is damaged: `verify` tells where.
pub fn of_replica(
    url: &str,
    temp: &Path,
    keep_hours: u64,
    as_json: bool,
    out: &mut dyn std::io::Write,
) -> anyhow::Result<Outcome> {
    let store = replica_url::open(url)?;
    let temp = tempfile::Builder::new().prefix("pds-stats-").tempdir_in(temp);
    let temp = temp.context("making a temporary directory")?;
    let root = temp.path().join("restored");
    let restored = blocking_restore(&store, &root, true)?;
    let dir = DataDir::open(&root)?;
    let mut removed = Removed::default();
    for base in &dir.segments {
        let mut reader = SegmentReader::open(&dir.segment_path(*base), *base)?;
        while let Some(step) = reader.step()? {
            if let Step::Frame(frame) = &step {
                removed.note(frame, *base)?;
            }
        }
    }
    // After the log was fetched: what is not named now was not named then, or the server has moved on.
    let leftovers = runtime()?.block_on(orphans::leftovers(&store, REQUEST_TIMEOUT))?;
    if let (Some(leftovers), Some(newest)) = (leftovers, removed.newest_compacted()) {
        leftovers
            .objects
            .into_iter()
            .for_each(|object| removed.left.add(object));
        let erased = match &restored.checkpoint {
            Some((checkpoint, _)) => {
                let index = IndexView::open(&checkpoint.join(FILE_NAME), restored.log_id, INDEX_CACHE_BYTES);
                index
                    .context("opening the index of the checkpoint")?
                    .reader()?
                    .erased()?
            }
            None => Lsn::ZERO,
        };
        let newest_one = restored.checkpoint.as_ref().map(|(_, lsn)| lsn.get());
        let displaced = &leftovers.manifest.displaced;
        if retention::erased_through(displaced) < newest {
            for kept in &displaced.segments {
                removed.left.add(&kept.entry.object);
            }
        }
        let kept = displaced.checkpoints.iter().map(|kept| &kept.entry);
        for checkpoint in leftovers.manifest.checkpoints.iter().chain(kept) {
            // What the file says of itself holds for it; and for others that were taken later than that.
            let is_clean =
                erased >= newest && (Some(checkpoint.lsn) == newest_one || checkpoint.lsn > erased.get());
            if !is_clean {
                removed.left.add(format!(
                    "{CHECKPOINT_DIR}/{}",
                    Lsn::saturating(checkpoint.lsn).hex()
                ));
            }
        }
    }
    if as_json {
        writeln!(out, "{}", json!({ "removedRepos": removed.as_json(keep_hours) }))?;
    } else {
        removed.print(keep_hours, out)?;
    }
    Ok(Outcome::Clean)
}
