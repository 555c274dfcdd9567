//! Writing the shortest history: see [`compact`](super).

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{CompactError, CompactOptions, Compacted, Pace, Stopped, inputs};
use crate::entry::{Change, Entry, EntryDraft, RepoNumber, RepoRow};
use crate::log::{CompactionWriter, Location, LogId, LogReader, Lsn, WrittenCompaction, verify_segment};
use crate::repo::mst::Builder;
use crate::repo::{Cid, Commit};
use crate::views::accounts::{self, AccountsOptions, AccountsView};
use crate::views::driver::{DriverConfig, Fold};
use crate::views::index::{self, IndexReader, IndexView, RepoDump};
use crate::views::{View, ViewError};

/// Below the data directory: what a compaction needs while it works. Of no use to anybody else.
pub(crate) const SCRATCH_DIR: &str = "compact-tmp";
/// Bytes of changes after which an entry is ended.
const ENTRY_BYTES: usize = 1 << 20;
/// Bytes of rows that one change holds at most, unless one row is bigger.
const ROWS_BYTES: usize = 512 << 10;
/// Repos that are looked at together.
const REPOS_AT_A_TIME: usize = 1_000;
/// Bytes of log that the scratch views take in at a time.
const FOLD_BYTES: usize = 4 << 20;
/// The scratch views are never made durable; this is long enough.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3_600);
/// Rows that a piece of a sweep takes from the scratch index.
const SWEEP_ROWS: usize = 10_000;
/// Name of the view that keeps the pace.
const PACER: &str = "compaction";

/// A directory that goes with its owner. What a crash leaves of it, the next one removes.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Scratch {
    fn new(data_dir: &Path) -> Result<Scratch, CompactError> {
        let dir = data_dir.join(SCRATCH_DIR);
        let io = |source| CompactError::Io {
            what: format!("making {}", dir.display()),
            source,
        };
        remove_scratch(data_dir).map_err(io)?;
        std::fs::create_dir_all(&dir).map_err(io)?;
        Ok(Scratch(dir))
    }
}

/// Removes what a compaction left that a crash ended.
pub(crate) fn remove_scratch(data_dir: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(data_dir.join(SCRATCH_DIR)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, dir = %self.0.display(), "scratch files of a compaction are left");
        }
    }
}

/// Writes segments that give, from nothing, the state that `log` gives at `through`, which is the last LSN of a sealed
/// segment. They are whole, durable and checked, and count for nothing yet.
///
/// # Errors
/// [`CompactError`]; the log is as it was.
pub(crate) fn rewrite(
    log: &LogReader,
    log_id: LogId,
    through: Lsn,
    data_dir: &Path,
    options: &CompactOptions,
) -> Result<(WrittenCompaction, Compacted), CompactError> {
    let scratch = Scratch::new(data_dir)?;
    let mut index = IndexView::open(
        &scratch.0.join(index::FILE_NAME),
        log_id,
        options.index_cache_bytes,
    )?;
    index.adopt(log.compaction())?;
    // Nobody else reads it.
    let alone = AccountsOptions {
        readers: 1,
        ..AccountsOptions::default()
    };
    let mut accounts = AccountsView::open_with(&scratch.0, log_id, alone)?;
    let mut steps = Pacer::new(options.pace.clone());
    fold(log, through, &mut index, &mut accounts, &mut steps)?;

    // Rows that are in no answer any more are not to be written down.
    while index.sweep(SWEEP_ROWS)? {}

    let before: Vec<_> = inputs(log, through).collect();
    let writer = log.begin_compaction(through, options.segment_bytes)?;
    let mut out = Emitter {
        done: Compacted {
            compaction: writer.compaction(),
            through,
            segments_before: before.len(),
            bytes_before: before.iter().map(|segment| segment.bytes).sum(),
            ..Compacted::default()
        },
        writer,
        log,
        pace: &options.pace,
        changes: Vec::new(),
        bytes: 0,
    };
    let copy = scratch.0.join("accounts-copy.sqlite");
    accounts::rewrite(&accounts, &steps.migrations, &copy, &mut |change| {
        out.push(change)
    })?;
    drop(accounts);
    let reader = index.reader()?;
    out.repos(&reader)?;
    out.removals(&reader)?;
    drop((reader, index));
    out.flush()?;
    let Emitter { writer, mut done, .. } = out;
    let closing = draft(EntryDraft::marker())?;
    let written = writer.finish(closing)?;
    for segment in written.reader().segments() {
        (options.pace)(segment.bytes)?;
        let sealed = written
            .reader()
            .sealed(segment.base)
            .map_err(CompactError::read)?;
        verify_segment(sealed.bytes())
            .map_err(|damage| CompactError::Unfit(format!("segment {}: {damage}", segment.base.hex())))?;
        done.segments_after += 1;
        done.bytes_after += segment.bytes;
    }
    Ok((written, done))
}

/// Brings the scratch views to `through`.
fn fold(
    log: &LogReader,
    through: Lsn,
    index: &mut IndexView,
    accounts: &mut AccountsView,
    steps: &mut Pacer,
) -> Result<(), CompactError> {
    let config = DriverConfig {
        batch_bytes: FOLD_BYTES,
        persist_bytes: u64::MAX,
        persist_after: NEVER,
    };
    let views: Vec<Box<dyn View + '_>> = vec![Box::new(&mut *steps), Box::new(index), Box::new(accounts)];
    let mut fold = Fold::new(views, |from| log.tail(from), config);
    let folded = loop {
        match fold.step(through) {
            Ok(batch) if batch.entries == 0 => break Ok(fold.applied()),
            Ok(_) => {}
            Err(error) => break Err(error),
        }
    };
    drop(fold);
    if steps.stopped {
        return Err(Stopped.into());
    }
    let applied = folded?;
    if applied == through {
        Ok(())
    } else {
        Err(CompactError::Unfit(format!(
            "the log was to be folded up to {through}, and ends at {applied}"
        )))
    }
}

/// Keeps the pace of the fold and collects the schema steps that pass by.
struct Pacer {
    pace: Pace,
    applied: Lsn,
    stopped: bool,
    migrations: Vec<Change>,
}

impl Pacer {
    fn new(pace: Pace) -> Pacer {
        Pacer {
            pace,
            applied: Lsn::ZERO,
            stopped: false,
            migrations: Vec::new(),
        }
    }
}

impl View for Pacer {
    fn name(&self) -> &'static str {
        PACER
    }

    fn applied(&self) -> Lsn {
        self.applied
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<(), ViewError> {
        let mut bytes = 0;
        for entry in entries {
            bytes += (entry.public.len() + entry.private.len()) as u64;
            let steps = entry.changes.iter();
            let steps = steps.filter(|change| matches!(change, Change::AccountsMigration { .. }));
            self.migrations.extend(steps.cloned());
            self.applied = entry.lsn;
        }
        (self.pace)(bytes).map_err(|stopped| {
            self.stopped = true;
            ViewError::store(PACER, stopped)
        })
    }

    fn persist(&mut self) -> Result<(), ViewError> {
        Ok(())
    }
}

fn draft(entry: EntryDraft) -> Result<crate::log::Draft, CompactError> {
    entry
        .into_draft()
        .map_err(|error| CompactError::Unfit(format!("an entry cannot be written: {error}")))
}

/// Gathers changes into entries.
struct Emitter<'a> {
    writer: CompactionWriter,
    log: &'a LogReader,
    pace: &'a Pace,
    changes: Vec<Change>,
    bytes: usize,
    done: Compacted,
}

impl Emitter<'_> {
    fn push(&mut self, change: Change) -> Result<(), CompactError> {
        self.bytes += match &change {
            Change::AccountsMigration { name, sql } => name.len() + sql.len(),
            Change::AccountsChangeset { bytes } => bytes.len(),
            Change::RepoRows { rows, .. } => rows.iter().map(RepoRow::encoded_len).sum(),
            Change::RepoHead { commit, .. } => commit.len(),
            Change::ReposNumbered { repos, .. } => repos.len() * 64,
            Change::RemovalsPending { removals } => removals.len() * 64,
            _ => 256,
        } + 64;
        self.changes.push(change);
        if self.bytes >= ENTRY_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), CompactError> {
        if self.changes.is_empty() {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.bytes);
        let draft = draft(EntryDraft::private(std::mem::take(&mut self.changes)))?;
        self.writer.append(draft)?;
        (self.pace)(bytes as u64)?;
        Ok(())
    }

    /// A block, compared with its CID.
    fn block(&self, location: Location, cid: Cid) -> Result<bytes::Bytes, CompactError> {
        let bytes = self.log.read_at(location).map_err(CompactError::read)?;
        if cid.matches(&bytes) {
            Ok(bytes)
        } else {
            Err(CompactError::Damaged { location, cid })
        }
    }

    fn repos(&mut self, index: &IndexReader) -> Result<(), CompactError> {
        let next = index.next_repo()?;
        let mut after = None;
        loop {
            let page = index.dump_repos(after, REPOS_AT_A_TIME)?;
            let numbered = page.iter().map(|repo| RepoNumber {
                did: repo.did.clone(),
                number: repo.number,
                generation: u32::from(repo.generation),
                newest: u32::from(repo.newest),
                staged: repo.staged.iter().copied().map(u32::from).collect(),
            });
            self.push(Change::ReposNumbered {
                next,
                repos: numbered.collect(),
            })?;
            for repo in &page {
                self.repo(index, repo)?;
            }
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.number);
        }
    }

    /// Of these repos nothing is written but that they were removed, until the last copy is known to be gone.
    fn removals(&mut self, index: &IndexReader) -> Result<(), CompactError> {
        let mut after = None;
        loop {
            let removals = index.removals(after.as_ref(), REPOS_AT_A_TIME)?;
            let Some(last) = removals.last() else {
                return Ok(());
            };
            after = Some(last.clone());
            self.push(Change::RemovalsPending { removals })?;
        }
    }

    fn repo(&mut self, index: &IndexReader, repo: &RepoDump) -> Result<(), CompactError> {
        let tree = |reason: String| CompactError::Tree {
            did: repo.did.clone(),
            reason,
        };
        let mut live = Builder::new(|_| Ok::<(), std::convert::Infallible>(()));
        let (mut rows, mut bytes, mut generation) = (Vec::new(), 0, repo.generation);
        for record in index.dump_records(repo.number)? {
            let record = record?;
            if bytes >= ROWS_BYTES || record.generation != generation {
                self.rows(repo, generation, &mut rows)?;
                (bytes, generation) = (0, record.generation);
            }
            if generation == repo.generation {
                live.push(&record.path, record.row.cid)
                    .map_err(|error| tree(error.to_string()))?;
            }
            let row = RepoRow {
                block: self.block(record.row.location, record.row.cid)?,
                path: record.path,
                rev: record.row.rev,
                cid: record.row.cid,
            };
            self.done.records += 1;
            self.done.record_bytes += row.block.len() as u64;
            bytes += row.encoded_len();
            rows.push(row);
        }
        self.rows(repo, generation, &mut rows)?;
        if let Some(head) = &repo.head {
            let root = live.finish().map_err(|error| tree(error.to_string()))?;
            let block = self.block(head.location, head.commit)?;
            let commit = Commit::decode(block.clone()).map_err(|error| tree(error.to_string()))?;
            if commit.data() != root || head.data != root {
                return Err(tree(format!(
                    "they make {root}, it is signed for {}",
                    commit.data()
                )));
            }
            if *commit.did() != repo.did || commit.rev() != head.rev {
                return Err(tree("the commit is of another repo or rev".to_owned()));
            }
            self.push(Change::RepoHead {
                did: repo.did.clone(),
                generation: u32::from(repo.generation),
                commit: block,
            })?;
        }
        for blob in index.dump_blobs(repo.number)? {
            let (cid, blob) = blob?;
            self.push(Change::BlobStored {
                did: repo.did.clone(),
                cid,
                mime: blob.mime,
                size: blob.size,
                created_at_micros: blob.created_at_micros,
            })?;
        }
        self.done.repos += 1;
        Ok(())
    }

    fn rows(
        &mut self,
        repo: &RepoDump,
        generation: u16,
        rows: &mut Vec<RepoRow>,
    ) -> Result<(), CompactError> {
        if rows.is_empty() {
            return Ok(());
        }
        self.push(Change::RepoRows {
            did: repo.did.clone(),
            generation: u32::from(generation),
            rows: std::mem::take(rows),
        })
    }
}
