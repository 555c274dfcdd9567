//! The views: those on disk against views that are folded anew from the log, row by row (I4), and what the new ones say
//! about every repo against its signed commit.
//!
//! Views on disk are copied before they are opened, because opening one may write to it. Memory: one batch of entries,
//! and the databases' caches; disk: the views twice, in a temporary directory.

use std::path::{Path, PathBuf};

use anyhow::Context;
use engine::entry::Entry;
use engine::log::{LogId, Lsn};
use engine::repo::commit::Commit;
use engine::repo::mst::Builder;
use engine::repo::{Did, PublicKey};
use engine::views::accounts::{self, AccountsError, AccountsView};
use engine::views::checkpoint::Checkpoints;
use engine::views::index::{self, DifferenceKind, IndexReader, IndexView, RepoHead};
use engine::views::{View, ViewError};
use rusqlite::{Connection, OptionalExtension};
use shipper::restore::CHECKPOINT_DIR;
use tempfile::TempDir;

use crate::data_dir::DataDir;
use crate::segment::SegmentReader;
use crate::{LiveIndex, LogFacts, Report, Room};

mod tables;

/// Bytes of entries that are folded at once.
const BATCH_BYTES: usize = 4 << 20;
/// Differing rows that are told of each view.
const ROWS_MAX: usize = 20;
/// Repos that are asked for at once.
const REPOS_AT_A_TIME: usize = 500;
/// What to do about a view that is not what the log says.
const REBUILD: &str = "stop the server and delete this file; the next start rebuilds it from the log";

/// A view's file, and how far it says it is.
struct OnDisk<V> {
    view: V,
    applied: Lsn,
    compared: bool,
}

/// Views folded anew, and those of the directory.
pub struct Views {
    /// None if there is nothing to fold.
    fresh: Option<Fresh>,
    /// Why folding has ended early.
    stopped: bool,
    batch: Vec<Entry>,
    batch_bytes: usize,
}

struct Fresh {
    index: IndexView,
    accounts: AccountsView,
    accounts_path: PathBuf,
    disk_index: Option<OnDisk<IndexView>>,
    disk_accounts: Option<OnDisk<PathBuf>>,
    index_path: PathBuf,
    database_path: PathBuf,
    log_id: LogId,
    root: PathBuf,
    /// Goes last: the views are in it.
    _temp: TempDir,
}

impl Views {
    /// Makes empty views, and copies those of `dir`.
    pub fn begin(dir: &DataDir, room: Room<'_>, report: &mut Report<'_>) -> anyhow::Result<Views> {
        let mut views = Views {
            fresh: None,
            stopped: false,
            batch: Vec::new(),
            batch_bytes: 0,
        };
        let first = dir
            .segments
            .iter()
            .find_map(|base| SegmentReader::open(&dir.segment_path(*base), *base).ok())
            .map(|reader| reader.header);
        let Some(first) = first else { return Ok(views) };
        let log_id = first.log_id;
        let temp = tempfile::Builder::new()
            .prefix("pds-verify-")
            .tempdir_in(room.temp);
        let temp = temp.context("making a temporary directory")?;
        let (fresh, copies) = (temp.path().join("fresh"), temp.path().join("copies"));
        for dir in [&fresh, &copies] {
            std::fs::create_dir(dir).with_context(|| format!("making {}", dir.display()))?;
        }
        let (disk_index, disk_accounts) = if dir.running {
            (None, None)
        } else {
            (
                copy_index(dir, &copies, log_id, room.index_cache_bytes, report)?,
                copy_accounts(dir, &copies, log_id, report)?,
            )
        };
        let index = IndexView::open(&fresh.join(index::FILE_NAME), log_id, room.index_cache_bytes)?;
        index.adopt(first.compaction)?;
        views.fresh = Some(Fresh {
            index,
            accounts: AccountsView::open(&fresh, log_id)?,
            accounts_path: fresh.join(accounts::FILE_NAME),
            disk_index,
            disk_accounts,
            index_path: dir.root.join(index::FILE_NAME),
            database_path: dir.root.join(accounts::FILE_NAME),
            log_id,
            root: dir.root.clone(),
            _temp: temp,
        });
        Ok(views)
    }

    /// Folds the next entry.
    pub fn fold(&mut self, entry: &Entry, report: &mut Report<'_>) -> anyhow::Result<()> {
        let Some(fresh) = &self.fresh else { return Ok(()) };
        if self.stopped {
            return Ok(());
        }
        self.batch_bytes += entry.public.len() + entry.private.len() + 64 * (1 + entry.changes.len());
        self.batch.push(entry.clone());
        if self.batch_bytes >= BATCH_BYTES || fresh.is_compared_at(entry.lsn) {
            self.flush(report)?;
        }
        Ok(())
    }

    fn flush(&mut self, report: &mut Report<'_>) -> anyhow::Result<()> {
        self.batch_bytes = 0;
        let (batch, Some(fresh)) = (std::mem::take(&mut self.batch), &mut self.fresh) else {
            return Ok(());
        };
        if batch.is_empty() {
            return Ok(());
        }
        let folded = fresh
            .index
            .apply(&batch)
            .and_then(|()| fresh.accounts.apply(&batch));
        match folded {
            Ok(()) => {
                fresh.compare(report);
                Ok(())
            }
            Err(error @ (ViewError::Contradiction { .. } | ViewError::Entry { .. })) => {
                self.stopped = true;
                let advice = "it contradicts what came before; restore this directory from the replica";
                report.finding("views", error, advice);
                Ok(())
            }
            Err(error) => Err(error).context("folding the log into new views"),
        }
    }

    /// The log is read to its end.
    pub fn finish(
        mut self,
        facts: &LogFacts,
        live: Option<LiveIndex<'_>>,
        report: &mut Report<'_>,
    ) -> anyhow::Result<()> {
        if !facts.holes && !self.stopped {
            self.flush(report)?;
        }
        let Some(mut fresh) = self.fresh.take() else {
            return Ok(());
        };
        fresh.checkpoints(report)?;
        if facts.holes || self.stopped {
            report.note("the views were not compared to their end, nor were trees built: the log is damaged");
            return Ok(());
        }
        if facts.away > 0 {
            report.note("the views were not compared to their end, nor were trees built: segments are away");
            return Ok(());
        }
        fresh.compare(report);
        fresh.unreached(facts, report);
        fresh.repos(report)?;
        match live {
            Some(live) => fresh.against(&live()?, report),
            None => Ok(()),
        }
    }
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<bool> {
    match std::fs::copy(from, to) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("copying {}", from.display())),
    }
}

fn copy_index(
    dir: &DataDir,
    copies: &Path,
    log_id: LogId,
    index_cache_bytes: usize,
    report: &mut Report<'_>,
) -> anyhow::Result<Option<OnDisk<IndexView>>> {
    let (original, path) = (dir.root.join(index::FILE_NAME), copies.join(index::FILE_NAME));
    if !copy(&original, &path)? {
        report.note(format!(
            "there is no {}; the next start builds it",
            index::FILE_NAME
        ));
        return Ok(None);
    }
    // A damaged file has made databases panic before, and that is a finding as any other.
    let opened = std::panic::catch_unwind(|| IndexView::open(&path, log_id, index_cache_bytes));
    match opened {
        Ok(Ok(view)) => {
            let applied = view.applied();
            Ok(Some(OnDisk {
                view,
                applied,
                compared: false,
            }))
        }
        Ok(Err(error)) => {
            report.finding(original.display(), with_causes(&error), REBUILD);
            Ok(None)
        }
        Err(_) => {
            report.finding(
                original.display(),
                "it is so damaged that the database panics",
                REBUILD,
            );
            Ok(None)
        }
    }
}

fn copy_accounts(
    dir: &DataDir,
    copies: &Path,
    log_id: LogId,
    report: &mut Report<'_>,
) -> anyhow::Result<Option<OnDisk<PathBuf>>> {
    let original = dir.root.join(accounts::FILE_NAME);
    if !copy(&original, &copies.join(accounts::FILE_NAME))? {
        report.note(format!(
            "there is no {}; the next start builds it",
            accounts::FILE_NAME
        ));
        return Ok(None);
    }
    // What was committed last is in the write-ahead file; the shared memory is made anew.
    let wal = format!("{}-wal", accounts::FILE_NAME);
    copy(&dir.root.join(&wal), &copies.join(&wal))?;
    match AccountsView::open(copies, log_id) {
        Ok(view) => {
            let path = copies.join(accounts::FILE_NAME);
            Ok(Some(OnDisk {
                view: path,
                applied: view.applied(),
                compared: false,
            }))
        }
        Err(error @ (AccountsError::Corrupt(_) | AccountsError::Foreign | AccountsError::Failed { .. })) => {
            report.finding(original.display(), with_causes(&error), REBUILD);
            Ok(None)
        }
        Err(error) => Err(error).context("opening a copy of the account database"),
    }
}

/// An error and what caused it, on one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}

impl Fresh {
    /// Whether a view on disk stands at `lsn`, so that the new one must stop there.
    fn is_compared_at(&self, lsn: Lsn) -> bool {
        self.disk_index.as_ref().is_some_and(|disk| disk.applied == lsn)
            || self
                .disk_accounts
                .as_ref()
                .is_some_and(|disk| disk.applied == lsn)
    }

    /// Compares what stands at the same entry now.
    fn compare(&mut self, report: &mut Report<'_>) {
        if let Some(disk) = &mut self.disk_index
            && !disk.compared
            && disk.applied == self.index.applied()
        {
            disk.compared = true;
            let found = disk
                .view
                .reader()
                .and_then(|here| Ok((here, self.index.reader()?)))
                .and_then(|(here, expected)| here.differences(&expected, ROWS_MAX + 1));
            match found {
                Ok(found) => {
                    for row in found.iter().take(ROWS_MAX) {
                        let what = match row.kind {
                            DifferenceKind::Missing => "is missing",
                            DifferenceKind::Surplus => "should not be there",
                            DifferenceKind::Value => "has another value than the log gives it",
                        };
                        let place = format!(
                            "{} table {} row {}",
                            self.index_path.display(),
                            row.table,
                            row.key
                        );
                        report.finding(place, what, REBUILD);
                    }
                    if found.len() > ROWS_MAX {
                        report.note(format!("more rows of {} differ", self.index_path.display()));
                    }
                }
                Err(error) => report.finding(self.index_path.display(), with_causes(&error), REBUILD),
            }
        }
        if let Some(disk) = &mut self.disk_accounts
            && !disk.compared
            && disk.applied == self.accounts.applied()
        {
            disk.compared = true;
            match tables::differences(&disk.view, &self.accounts_path, ROWS_MAX) {
                Ok(found) => {
                    for row in found {
                        let place = format!("{} {}", self.database_path.display(), row.place);
                        report.finding(place, row.what, REBUILD);
                    }
                }
                Err(error) => report.finding(self.database_path.display(), error, REBUILD),
            }
        }
    }

    /// Tells of views that stand nowhere in the log.
    fn unreached(&self, facts: &LogFacts, report: &mut Report<'_>) {
        let index = self.disk_index.as_ref().map(|disk| (disk.applied, disk.compared));
        let accounts = self
            .disk_accounts
            .as_ref()
            .map(|disk| (disk.applied, disk.compared));
        for (path, view) in [(&self.index_path, index), (&self.database_path, accounts)] {
            let Some((applied, false)) = view else { continue };
            if applied == Lsn::ZERO {
                report.note(format!("{} is empty; the next start fills it", path.display()));
            } else if applied > facts.last {
                let what = format!(
                    "it stands at entry {applied}, ahead of the log's end {}",
                    facts.last
                );
                report.finding(path.display(), what, REBUILD);
            } else {
                let what = format!("it stands at entry {applied}, which is not in the log");
                report.finding(path.display(), what, REBUILD);
            }
        }
    }

    /// Builds every repo's tree from its records, and checks the signature of the commit that it is at.
    fn repos(&self, report: &mut Report<'_>) -> anyhow::Result<()> {
        let reader = self.index.reader()?;
        let keys = Connection::open(&self.accounts_path).context("opening the new account database")?;
        let mut after = None;
        loop {
            let page = reader.repos(after, REPOS_AT_A_TIME)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.number);
            for head in &page {
                if let Err(what) = self.repo(&reader, &keys, head)? {
                    let place = format!("repo {} rev {}", head.did, head.rev);
                    let advice =
                        "the log was written so: report it, and have the account's repo imported anew";
                    report.finding(place, what, advice);
                }
            }
        }
    }

    fn repo(
        &self,
        reader: &IndexReader,
        keys: &Connection,
        head: &RepoHead,
    ) -> anyhow::Result<Result<(), String>> {
        let mut builder = Builder::new(|_| Ok::<(), std::convert::Infallible>(()));
        for row in reader.records_from(&head.did, None)? {
            let (path, row) = row?;
            if let Err(error) = builder.push(&path.to_string(), row.cid) {
                return Ok(Err(error.to_string()));
            }
        }
        match builder.finish() {
            Ok(root) if root == head.data => {}
            Ok(root) => {
                let signed = head.data;
                return Ok(Err(format!(
                    "its records make the tree {root}, but the commit is signed for {signed}"
                )));
            }
            Err(error) => return Ok(Err(error.to_string())),
        }
        let Some(key) = public_key(keys, &head.did)? else {
            return Ok(Ok(()));
        };
        let location = head.commit_location;
        let path = self
            .root
            .join(shipper::restore::LOG_DIR)
            .join(engine::log::segment_file_name(location.segment));
        let bytes = read_range(&path, location.offset, location.len)?;
        let signed = Commit::decode(bytes.into()).map_err(|error| error.to_string());
        Ok(signed.and_then(|commit| {
            commit
                .verify(&key)
                .map_err(|error| format!("the commit's signature is not by the account's key: {error}"))
        }))
    }

    /// Compares with the index of a running server, which may have gone on since.
    fn against(&self, live: &IndexReader, report: &mut Report<'_>) -> anyhow::Result<()> {
        let expected = self.index.reader()?;
        let (here, there) = (live.applied(), expected.applied());
        if here < there {
            report.note("the server's index has not got so far: it is not compared");
            return Ok(());
        }
        let rebuild = "stop the server and delete its index; the next start rebuilds it from the log";
        let mut after = None;
        loop {
            let page = expected.repos(after, REPOS_AT_A_TIME)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.number);
            for head in &page {
                let Some(now) = live.repo(&head.did)? else {
                    // It may have been removed since.
                    if here == there {
                        let place = format!("repo {} in the server's index", head.did);
                        report.finding(place, "it is missing", rebuild);
                    }
                    continue;
                };
                let same = (now.commit, now.data) == (head.commit, head.data);
                if now.rev < head.rev || (now.rev == head.rev && !same) {
                    let place = format!("repo {} in the server's index", head.did);
                    let what = format!(
                        "it stands at rev {} commit {}, and the log has rev {} commit {} before",
                        now.rev, now.commit, head.rev, head.commit
                    );
                    report.finding(place, what, rebuild);
                }
            }
        }
    }

    /// Checks the digests of local checkpoints.
    fn checkpoints(&self, report: &mut Report<'_>) -> anyhow::Result<()> {
        let checkpoints = Checkpoints::new(self.root.join(CHECKPOINT_DIR), self.log_id);
        for lsn in checkpoints.list()? {
            if let Err(error) = checkpoints.open(lsn).and_then(|checkpoint| checkpoint.verify()) {
                let place = checkpoints.dir_of(lsn);
                report.finding(
                    place.display(),
                    with_causes(&error),
                    "delete it; a start does without",
                );
            }
        }
        Ok(())
    }
}

/// The key that an account's commits are signed with, if it is known here.
fn public_key(keys: &Connection, did: &Did) -> anyhow::Result<Option<PublicKey>> {
    let exists: bool = keys.query_row(
        "SELECT count(*) > 0 FROM sqlite_schema WHERE type = 'table' AND name = 'signing_key'",
        [],
        |row| row.get(0),
    )?;
    if !exists {
        return Ok(None);
    }
    let text: Option<String> = keys
        .query_row(
            "SELECT publicKey FROM signing_key WHERE did = ?1",
            [did.as_str()],
            |row| row.get(0),
        )
        .optional()?;
    let Some(text) = text else { return Ok(None) };
    let key = PublicKey::from_did_key(&text).or_else(|_| PublicKey::from_multibase(&text));
    Ok(Some(key.with_context(|| format!("the public key of {did}"))?))
}

fn read_range(path: &Path, offset: u64, len: u32) -> anyhow::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, offset)
        .with_context(|| format!("reading {}", path.display()))?;
    Ok(bytes)
}
