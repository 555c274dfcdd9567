//! `pds-tools stats`: what the bytes of a log are used for.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use engine::entry::EntryKind;
use engine::log::Lsn;
use engine::views::index::{FILE_NAME, IndexView, SegmentUse};
use serde_json::json;

use crate::removed::{self, Removed};
use crate::{Outcome, progress, summary};
use audit::data_dir::DataDir;
use audit::segment::{SegmentReader, Step};

const INDEX_CACHE_BYTES: usize = 32 << 20;
const REPOS_AT_A_TIME: usize = 1_000;

/// What to count.
#[derive(Debug, Args)]
pub struct Stats {
    /// The data directory of a server that is stopped.
    #[arg(required_unless_present = "replica", conflicts_with = "replica")]
    dir: Option<PathBuf>,
    /// A replica instead, of which it is told which removed repos are still in it: file:///dir,
    /// `https://ACCOUNT.blob.core.windows.net/CONTAINER[/PREFIX]` or `s3://BUCKET[/PREFIX]`, with the server's PDS_REPLICA_*
    /// variables. It is restored into a temporary directory.
    #[arg(long, value_name = "URL")]
    replica: Option<String>,
    /// Where a restored replica may be put for a while.
    #[arg(long, value_name = "DIR")]
    temp_dir: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// How many of the repos with the most bytes to list.
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    /// Hours that the firehose keeps entries as they are: removed repos leave the log no earlier.
    #[arg(
        long,
        value_name = "HOURS",
        env = "PDS_FIREHOSE_RETENTION_HOURS",
        default_value_t = 72
    )]
    keep_hours: u64,
}

/// One segment.
struct SegmentStats {
    base: Lsn,
    last: Lsn,
    compaction: u32,
    bytes: u64,
    used: SegmentUse,
}

/// Entries of one kind.
#[derive(Clone, Copy, Default)]
struct KindStats {
    entries: u64,
    public_bytes: u64,
    private_bytes: u64,
}

/// One repo.
struct RepoStats {
    did: String,
    records: u64,
    bytes: u64,
}

impl Stats {
    /// Counts. Reads every frame and every record's row.
    ///
    /// # Errors
    /// A server has the directory, or a file cannot be read.
    pub fn run(self, out: &mut dyn Write) -> anyhow::Result<Outcome> {
        let root = match (&self.dir, &self.replica) {
            (Some(dir), _) => dir,
            (None, Some(url)) => {
                let temp = self.temp_dir.unwrap_or_else(std::env::temp_dir);
                return removed::of_replica(url, &temp, self.keep_hours, self.json, out);
            }
            (None, None) => bail!("neither a directory nor a replica"),
        };
        let dir = DataDir::open(root)?;
        if dir.running {
            bail!("a server has {} open; its metrics tell the same", root.display());
        }
        if let Some(away) = dir.say_away() {
            eprintln!("note: {away}");
        }
        let mut removed = Removed::default();
        let (mut segments, kinds, log_id) = scan(&dir, &mut removed)?;
        let index_path = root.join(FILE_NAME);
        let mut repos = Vec::new();
        if let (Some(log_id), true) = (log_id, index_path.exists()) {
            let index =
                IndexView::open(&index_path, log_id, INDEX_CACHE_BYTES).context("opening the index")?;
            let reader = index.reader()?;
            for used in reader.segments()? {
                if let Ok(at) = segments.binary_search_by_key(&used.segment, |segment| segment.base)
                    && let Some(segment) = segments.get_mut(at)
                {
                    segment.used = used;
                }
            }
            repos = top_repos(&reader, self.top)?;
            removed.look_beside(&dir, log_id, reader.erased()?)?;
        }
        if self.json {
            let mut all = as_json(&segments, &kinds, &repos);
            if let Some(all) = all.as_object_mut() {
                all.insert("removedRepos".to_owned(), removed.as_json(self.keep_hours));
            }
            writeln!(out, "{all}")?;
        } else {
            print(&segments, &kinds, &repos, out)?;
            removed.print(self.keep_hours, out)?;
        }
        Ok(Outcome::Clean)
    }
}

type Scanned = (
    Vec<SegmentStats>,
    BTreeMap<&'static str, KindStats>,
    Option<engine::log::LogId>,
);

fn scan(dir: &DataDir, removed: &mut Removed) -> anyhow::Result<Scanned> {
    let (mut segments, mut kinds, mut log_id) = (Vec::new(), BTreeMap::new(), None);
    let bar = progress::bar("counting", 0);
    for base in &dir.segments {
        let mut reader = SegmentReader::open(&dir.segment_path(*base), *base)?;
        log_id = Some(reader.header.log_id);
        let mut last = reader.header.prev;
        while let Some(step) = reader.step()? {
            let header = match &step {
                Step::Frame(frame) => {
                    removed.note(frame, *base)?;
                    frame.header()
                }
                Step::Damaged { header, .. } => header,
                Step::Broken { .. } => continue,
            };
            bar.inc(u64::from(header.frame_len));
            last = header.lsn;
            let name = EntryKind::try_from(header.kind).map_or("unknown", EntryKind::name);
            let kind: &mut KindStats = kinds.entry(name).or_default();
            kind.entries += 1;
            kind.public_bytes += header.public_len() as u64;
            kind.private_bytes += header.private_len() as u64;
        }
        segments.push(SegmentStats {
            base: *base,
            last,
            compaction: reader.header.compaction,
            bytes: reader.segment_len(),
            used: SegmentUse::default(),
        });
    }
    bar.finish_and_clear();
    Ok((segments, kinds, log_id))
}

/// The repos with the most bytes of records, the greatest first. Memory: one page of repos and the answer.
fn top_repos(reader: &engine::views::index::IndexReader, top: usize) -> anyhow::Result<Vec<RepoStats>> {
    let (mut found, mut after): (Vec<RepoStats>, _) = (Vec::new(), None);
    loop {
        let page = reader.repos(after, REPOS_AT_A_TIME)?;
        let Some(end) = page.last() else { return Ok(found) };
        after = Some(end.number);
        for head in &page {
            let mut repo = RepoStats {
                did: head.did.to_string(),
                records: 0,
                bytes: u64::from(head.commit_location.len),
            };
            for row in reader.records_from(&head.did, None)? {
                repo.records += 1;
                repo.bytes += u64::from(row?.1.location.len);
            }
            found.push(repo);
        }
        found.sort_by_key(|repo| std::cmp::Reverse(repo.bytes));
        found.truncate(top);
    }
}

fn as_json(
    segments: &[SegmentStats],
    kinds: &BTreeMap<&'static str, KindStats>,
    repos: &[RepoStats],
) -> serde_json::Value {
    let segments: Vec<_> = segments
        .iter()
        .map(|segment| {
            json!({
                "base": segment.base.hex(),
                "last": segment.last.get(),
                "compaction": segment.compaction,
                "bytes": segment.bytes,
                "liveBytes": segment.used.bytes(),
                "deadBytes": segment.bytes.saturating_sub(segment.used.bytes()),
                "records": segment.used.records,
                "commits": segment.used.commits,
            })
        })
        .collect();
    let kinds: BTreeMap<_, _> = kinds
        .iter()
        .map(|(name, kind)| {
            let kind = json!({
                "entries": kind.entries,
                "publicBytes": kind.public_bytes,
                "privateBytes": kind.private_bytes,
            });
            (*name, kind)
        })
        .collect();
    let repos: Vec<_> = repos
        .iter()
        .map(|repo| json!({ "did": repo.did, "records": repo.records, "bytes": repo.bytes }))
        .collect();
    json!({ "segments": segments, "kinds": kinds, "topRepos": repos })
}

fn print(
    segments: &[SegmentStats],
    kinds: &BTreeMap<&'static str, KindStats>,
    repos: &[RepoStats],
    out: &mut dyn Write,
) -> std::io::Result<()> {
    writeln!(
        out,
        "segment           to                         bytes        live  records  compaction"
    )?;
    let (mut bytes, mut live) = (0, 0);
    for segment in segments {
        bytes += segment.bytes;
        live += segment.used.bytes();
        writeln!(
            out,
            "{}  {}  {:>12}  {:>10}  {:>7}  {}",
            segment.base.hex(),
            summary::time(segment.last),
            segment.bytes,
            segment.used.bytes(),
            segment.used.records,
            match segment.compaction {
                0 => "-".to_owned(),
                number => number.to_string(),
            }
        )?;
    }
    writeln!(
        out,
        "{} segments, {bytes} bytes, of which {live} are records and commits in use",
        segments.len()
    )?;
    for (name, kind) in kinds {
        writeln!(
            out,
            "kind {name}: {} entries, {} public and {} private bytes",
            kind.entries, kind.public_bytes, kind.private_bytes
        )?;
    }
    for repo in repos {
        writeln!(
            out,
            "repo {}: {} records, {} bytes in use",
            repo.did, repo.records, repo.bytes
        )?;
    }
    Ok(())
}
