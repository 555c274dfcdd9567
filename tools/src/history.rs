//! `pds-tools history`: the versions of a record that the log still has.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use engine::entry::{Change, Entry, EntryKind};
use engine::log::{Frame, Lsn};
use engine::repo::event::{Event, OpAction, decode};
use engine::repo::{AtIdentifier, AtUri, Cid, Did, Tid};
use serde_json::json;

use crate::restore::past;
use crate::{Outcome, replica_url, summary};
use audit::data_dir::DataDir;
use audit::segment::{SegmentReader, Step};

/// Whose history, and from where.
#[derive(Debug, Args)]
pub struct History {
    /// The record: at://DID/collection/rkey.
    uri: AtUri,
    /// The replica, which has what compactions replaced, too: its log is fetched into a temporary directory.
    #[arg(
        long,
        value_name = "URL",
        env = "PDS_REPLICA_URL",
        required_unless_present = "data"
    )]
    replica: Option<String>,
    /// A data directory in its place; its server may be running.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where the log of a replica is put for it.
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    temp_dir: PathBuf,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// What happened to the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Create,
    Update,
    Delete,
    /// An import put it there, changed it, or left it out.
    Import,
    /// It was so when the log was compacted up to an LSN; what came before is gone.
    Compacted,
    /// The repo was removed.
    Removed,
}

impl What {
    fn word(self) -> &'static str {
        match self {
            What::Create => "create",
            What::Update => "update",
            What::Delete => "delete",
            What::Import => "import",
            What::Compacted => "compacted",
            What::Removed => "repo-removed",
        }
    }
}

/// One version.
#[derive(Debug)]
struct Version {
    /// `None` where a compaction has taken it away.
    lsn: Option<Lsn>,
    rev: Option<Tid>,
    what: What,
    /// `None`: the record is not there.
    cid: Option<Cid>,
}

impl History {
    /// Lists them.
    ///
    /// # Errors
    /// The URI names no record by its DID, or the log cannot be read.
    pub fn run(self, out: &mut dyn Write) -> anyhow::Result<Outcome> {
        let (did, path) = record_of(&self.uri)?;
        let temp;
        let dir = match (&self.data, &self.replica) {
            (Some(dir), _) => DataDir::open(dir)?,
            (None, Some(url)) => {
                let store = replica_url::open(url)?;
                temp = past::temporary(&self.temp_dir)?;
                let root = temp.path().join("log-only");
                past::fetch(&store, &root, None)?;
                DataDir::open(&root)?
            }
            (None, None) => bail!("name --replica or --data"),
        };
        let mut told = Told::new(did, path);
        for base in &dir.segments {
            let mut reader = SegmentReader::open(&dir.segment_path(*base), *base)?;
            let compacted = reader.header.compaction > 0;
            while let Some(step) = reader.step()? {
                match step {
                    Step::Frame(frame) => told.note(&frame, compacted)?,
                    Step::Damaged { offset, error, .. } => {
                        bail!("segment {base} is damaged at offset {offset}: {error}")
                    }
                    // The end of a log that a server has open.
                    Step::Broken { .. } => {}
                }
            }
        }
        self.print(&told.versions, out)?;
        Ok(Outcome::Clean)
    }

    fn print(&self, versions: &[Version], out: &mut dyn Write) -> std::io::Result<()> {
        if !self.json {
            let (lsn, time, rev, what) = ("LSN", "TIME", "REV", "ACTION");
            writeln!(out, "{lsn:<16}  {time:<24}  {rev:<13}  {what:<12}  CID")?;
        }
        for version in versions {
            let lsn = version.lsn.map(|lsn| lsn.get().to_string());
            let micros = version.rev.map(|rev| Lsn::saturating(rev.micros()));
            // A rev is a time, too, if an LSN is not there any more.
            let time = version.lsn.or(micros).map(summary::time).unwrap_or_default();
            let rev = version.rev.map(|rev| rev.to_string());
            let cid = version.cid.map(|cid| cid.to_string());
            let what = version.what.word();
            if self.json {
                let lsn = version.lsn.map(Lsn::get);
                let line = json!({ "lsn": lsn, "time": time, "rev": rev, "action": what, "cid": cid });
                writeln!(out, "{line}")?;
            } else {
                let (lsn, rev) = (lsn.unwrap_or_default(), rev.unwrap_or_default());
                let cid = cid.unwrap_or_default();
                writeln!(out, "{lsn:<16}  {time:<24}  {rev:<13}  {what:<12}  {cid}")?;
            }
        }
        if versions.is_empty() && !self.json {
            writeln!(out, "the log knows nothing of {}", self.uri)?;
        }
        Ok(())
    }
}

/// The repo and the path of a record that is named by its DID.
pub fn record_of(uri: &AtUri) -> anyhow::Result<(Did, String)> {
    let AtIdentifier::Did(did) = uri.authority() else {
        bail!("{uri} names the account by its handle, which may have changed: name its DID");
    };
    match (uri.collection(), uri.rkey()) {
        (Some(collection), Some(rkey)) => Ok((did.clone(), format!("{collection}/{rkey}"))),
        _ => bail!("{uri} names no record: at://DID/collection/rkey"),
    }
}

/// The log's story of one record.
struct Told {
    did: Did,
    path: String,
    versions: Vec<Version>,
    current: Option<Cid>,
    /// What generations that nobody sees yet have at the path.
    staged: HashMap<u32, (Cid, Tid)>,
}

impl Told {
    fn new(did: Did, path: String) -> Told {
        Told {
            did,
            path,
            versions: Vec::new(),
            current: None,
            staged: HashMap::new(),
        }
    }

    fn note(&mut self, frame: &Frame, compacted: bool) -> anyhow::Result<()> {
        let entry = Entry::decode(frame).with_context(|| format!("entry {}", frame.lsn()))?;
        let lsn = (!compacted).then_some(entry.lsn);
        if entry.kind == EntryKind::Commit
            && let Event::Commit(commit) = decode(&entry.public)?
            && commit.repo == self.did
        {
            // A commit touches a record once.
            let mut ops = commit.ops;
            if let Some(op) = ops.find(|op| op.path == self.path) {
                let (what, cid) = match op.action {
                    OpAction::Create { cid } => (What::Create, Some(cid)),
                    OpAction::Update { cid, .. } => (What::Update, Some(cid)),
                    OpAction::Delete { .. } => (What::Delete, None),
                };
                self.add(lsn, Some(commit.rev), what, cid);
            }
        }
        for change in entry.changes {
            match change {
                Change::RepoRows {
                    did,
                    generation,
                    rows,
                } if did == self.did => {
                    let row = rows.into_iter().find(|row| row.path == self.path);
                    self.staged
                        .extend(row.map(|row| (generation, (row.cid, row.rev))));
                }
                Change::RowsGone {
                    did,
                    generation,
                    paths,
                } if did == self.did && paths.contains(&self.path) => {
                    self.staged.remove(&generation);
                }
                Change::GenerationSwept { did, generation } if did == self.did => {
                    self.staged.remove(&generation);
                }
                Change::RepoHead {
                    did,
                    generation,
                    commit,
                } if did == self.did => self.flip(lsn, generation, &commit, compacted)?,
                Change::RepoRemoved { did } if did == self.did => {
                    self.staged.clear();
                    if self.current.is_some() {
                        self.add(lsn, None, What::Removed, None);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What the generation has at the path is what there is now, unless it is live already and says nothing new.
    fn flip(
        &mut self,
        lsn: Option<Lsn>,
        generation: u32,
        commit: &bytes::Bytes,
        compacted: bool,
    ) -> anyhow::Result<()> {
        let staged = self.staged.remove(&generation);
        let what = if compacted { What::Compacted } else { What::Import };
        let now = staged.map(|(cid, _)| cid);
        if now == self.current {
            return Ok(());
        }
        let rev = match staged {
            Some((_, rev)) => rev,
            None => engine::repo::Commit::decode(commit.clone())?.rev(),
        };
        self.add(lsn, Some(rev), what, now);
        Ok(())
    }

    fn add(&mut self, lsn: Option<Lsn>, rev: Option<Tid>, what: What, cid: Option<Cid>) {
        self.current = cid;
        self.versions.push(Version { lsn, rev, what, cid });
    }
}
