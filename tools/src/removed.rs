//! Repos that were removed and whose bytes are still in the log: found in the part that was never compacted, because a
//! compaction writes neither a removed repo nor its removal. So what is not found here is in no segment of the log.

use engine::entry::{Change, Entry, EntryKind};
use engine::log::{Frame, Lsn};
use serde_json::{Value, json};

use crate::summary;

/// Removals that are listed one by one, the oldest first; more are counted.
const LISTED_MAX: usize = 1_000;
const MICROS_PER_HOUR: u64 = 3_600 * 1_000_000;

/// What waits to be compacted away.
#[derive(Debug, Default)]
pub struct Removed {
    count: u64,
    listed: Vec<RemovedRepo>,
}

#[derive(Debug)]
struct RemovedRepo {
    did: String,
    lsn: Lsn,
    segment: Lsn,
}

impl Removed {
    /// Looks at a frame of the segment `segment`; frames come in the order of the log.
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
            let Change::RepoRemoved { did } = change else {
                continue;
            };
            self.count += 1;
            if self.listed.len() < LISTED_MAX {
                self.listed.push(RemovedRepo {
                    did: did.to_string(),
                    lsn: header.lsn,
                    segment,
                });
            }
        }
        Ok(())
    }

    /// As JSON; entries of the last `keep_hours` stay as they are.
    pub fn as_json(&self, keep_hours: u64) -> Value {
        let oldest: Vec<Value> = self
            .listed
            .iter()
            .map(|repo| {
                json!({
                    "did": repo.did,
                    "lsn": repo.lsn.get(),
                    "removedAt": summary::time(repo.lsn),
                    "segment": repo.segment.hex(),
                    "inLogUntilAfter": summary::time(repo.until(keep_hours)),
                })
            })
            .collect();
        json!({ "count": self.count, "oldest": oldest })
    }

    /// As lines.
    pub fn print(&self, keep_hours: u64, out: &mut dyn std::io::Write) -> std::io::Result<()> {
        for repo in &self.listed {
            writeln!(
                out,
                "removed repo {}: since {}, still in the log up to segment {}, which may be compacted after {}",
                repo.did,
                summary::time(repo.lsn),
                repo.segment.hex(),
                summary::time(repo.until(keep_hours)),
            )?;
        }
        writeln!(out, "{} removed repos are still in the log", self.count)
    }
}

impl RemovedRepo {
    /// Up to when the firehose's retention keeps its removal, and so all that came before, from being compacted.
    fn until(&self, keep_hours: u64) -> Lsn {
        let kept = keep_hours.saturating_mul(MICROS_PER_HOUR);
        Lsn::saturating(self.lsn.get().saturating_add(kept))
    }
}
