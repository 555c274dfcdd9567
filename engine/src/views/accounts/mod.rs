//! The account database: accounts, sessions, tokens and keys in SQLite, as a view of the log.
//!
//! What holds:
//!
//! - `account.sqlite` is a fold over the log's migrations and changesets; deleting it and replaying gives equal rows.
//! - The applied LSN is stored in the transaction of a change; entries without one move it in memory, and it is written when
//!   the view is made durable or pinned. So the file may be behind what is applied, never ahead of what it holds; a file whose
//!   [`View::applied`] lies beyond the log's end is *ahead*, and must be deleted.
//! - Nothing becomes visible before its entry is durable: a transaction is only [prepared](Accounts::prepare), and its
//!   changeset changes rows when the log's driver applies it.
//! - A changeset that does not fit is an error that stops the view. It is never ignored.
//!
//! What a crash leaves is told in `writer.rs`. The schema follows the reference PDS; `refresh_token.id` holds a hash here,
//! and `signing_key` is our own. `token.id` must be chosen by the caller, at random: two transactions that are
//! prepared side by side would be given the same number.

mod error;
mod footprint;
mod locks;
pub mod model;
#[cfg(test)]
mod property_tests;
pub mod queries;
#[cfg(test)]
mod queries_tests;
mod readers;
mod rewrite;
mod schema;
mod snapshot;
#[cfg(test)]
pub(crate) mod stand_in;
#[cfg(test)]
pub(crate) mod tests;
mod time;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, Transaction};
use tokio::sync::oneshot;

pub use error::AccountsError;
pub use locks::{LockGuard, LockKey};
pub(crate) use rewrite::rewrite;
pub use schema::{MIGRATIONS, Migration};
pub use snapshot::AccountsSnapshot;
pub use time::iso_time;
pub use writer::{CHANGESET_BYTES_MAX, Prepared};

use crate::entry::{Change, Entry};
use crate::log::{LogId, Lsn};
use crate::views::{View, ViewError};
use locks::Locks;
use readers::Readers;
use writer::{ApplyFailure, Queue, Step, Writer};

/// The view's name in logs, metrics and errors.
pub const VIEW_NAME: &str = "accounts";

/// The database's file name, the reference's.
pub const FILE_NAME: &str = "account.sqlite";

/// Bounds of the account database.
#[derive(Clone, Copy, Debug)]
pub struct AccountsOptions {
    /// How many reads may run at once, each on its own connection.
    pub readers: usize,
    /// How many reads may wait or run.
    pub reads_max: usize,
    /// How many transactions may be between the request for their keys and their application.
    pub transactions_max: usize,
    /// How long a transaction waits for its keys, and a read for a connection.
    pub wait: Duration,
}

impl Default for AccountsOptions {
    fn default() -> AccountsOptions {
        AccountsOptions {
            readers: 4,
            reads_max: 1024,
            transactions_max: 4096,
            wait: Duration::from_secs(10),
        }
    }
}

/// The view itself, as the log's driver owns it. Dropping it ends the writing thread; handles then answer
/// [`AccountsError::Closed`] to transactions.
#[derive(Debug)]
pub struct AccountsView {
    handle: Accounts,
    /// The writer has failed; it says why when it is asked.
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// A cheap handle for services: transactions and reads.
#[derive(Clone)]
pub struct Accounts {
    queue: Arc<Queue>,
    locks: Arc<Locks>,
    readers: Arc<Readers>,
    applied: Arc<AtomicU64>,
    revision: Arc<AtomicU64>,
    wait: Duration,
    #[cfg(test)]
    stand_in: Option<Arc<stand_in::StandIn>>,
}

impl std::fmt::Debug for Accounts {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Accounts")
            .field("applied", &self.applied())
            .finish_non_exhaustive()
    }
}

impl AccountsView {
    /// Opens or creates `account.sqlite` of the log `log_id` in `dir`, which exists, with the default bounds.
    ///
    /// # Errors
    /// See [`AccountsView::open_with`].
    pub fn open(dir: &Path, log_id: LogId) -> Result<AccountsView, AccountsError> {
        AccountsView::open_with(dir, log_id, AccountsOptions::default())
    }

    /// Opens or creates `account.sqlite` of the log `log_id` in `dir`, which exists.
    ///
    /// # Errors
    /// [`AccountsError::Corrupt`] for a file that is damaged or no database, [`AccountsError::Foreign`] for one of
    /// another log: [delete](AccountsView::delete) it and
    /// replay. Others: the disk or the thread could not be used.
    pub fn open_with(
        dir: &Path,
        log_id: LogId,
        options: AccountsOptions,
    ) -> Result<AccountsView, AccountsError> {
        #[cfg(test)]
        if let Some(view) = stand_in::open(dir, log_id, options)? {
            return Ok(view);
        }
        let path = dir.join(FILE_NAME);
        let locks = Locks::new(options.transactions_max);
        let applied = Arc::new(AtomicU64::new(0));
        let writer = Writer::open(&path, log_id, Arc::clone(&locks), Arc::clone(&applied))?;
        let (revision, stopped) = (writer.revision(), writer.stopped());
        let readers = Readers::open(&path, options.readers, options.reads_max, options.wait)?;
        let queue = Arc::new(Queue::new(options.transactions_max));
        let for_thread = Arc::clone(&queue);
        let thread = std::thread::Builder::new()
            .name("accounts".to_owned())
            .spawn(move || writer.run(for_thread))?;
        let handle = Accounts {
            queue,
            locks,
            readers,
            applied,
            revision,
            wait: options.wait,
            #[cfg(test)]
            stand_in: None,
        };
        Ok(AccountsView {
            handle,
            stopped,
            thread: Some(thread),
        })
    }

    /// Deletes the database in `dir`, if there is one, so that the log can rebuild it.
    ///
    /// # Errors
    /// A file could not be deleted.
    pub fn delete(dir: &Path) -> std::io::Result<()> {
        for suffix in ["", "-wal", "-shm", "-journal"] {
            match std::fs::remove_file(dir.join(format!("{FILE_NAME}{suffix}"))) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// A handle for services.
    #[must_use]
    pub fn handle(&self) -> Accounts {
        self.handle.clone()
    }

    /// See [`Accounts::missing_migrations`].
    ///
    /// # Errors
    /// As there.
    pub fn missing_migrations(&self) -> Result<Vec<Migration>, AccountsError> {
        self.handle.missing_migrations()
    }
}

/// Runs `job` on the writer's thread, ahead of what waits to be prepared.
fn on_writer<T>(
    queue: &Queue,
    job: impl FnOnce(&mut Writer) -> Result<T, ApplyFailure> + Send + 'static,
) -> Result<T, ApplyFailure>
where
    T: Send + 'static,
{
    let closed = || ApplyFailure {
        lsn: None,
        error: AccountsError::Closed,
    };
    let (answer, outcome) = std::sync::mpsc::sync_channel(1);
    let job = Box::new(move |writer: &mut Writer| {
        // The caller waits below; it cannot have gone.
        let _ = answer.send(job(writer));
    });
    queue.push_apply(job).map_err(|_| closed())?;
    outcome.recv().map_err(|_| closed())?
}

impl View for AccountsView {
    fn name(&self) -> &'static str {
        VIEW_NAME
    }

    fn applied(&self) -> Lsn {
        self.handle.applied()
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<(), ViewError> {
        // Most batches are commits of repos. They only move the position, which is written when it has to be: a file
        // that is behind is caught up from the log.
        let moves_only = !entries.iter().any(|entry| entry.changes.iter().any(concerns));
        if moves_only && !self.stopped.load(Ordering::Acquire) {
            if let Some(last) = entries.last() {
                self.handle
                    .queue
                    .check_open()
                    .map_err(|error| ViewError::store(VIEW_NAME, error))?;
                self.handle.applied.fetch_max(last.lsn.get(), Ordering::AcqRel);
            }
            return Ok(());
        }
        let batch: Vec<(Lsn, Vec<Change>)> = entries
            .iter()
            .map(|entry| {
                (
                    entry.lsn,
                    entry
                        .changes
                        .iter()
                        .filter(|change| concerns(change))
                        .cloned()
                        .collect(),
                )
            })
            .collect();
        on_writer(&self.handle.queue, move |writer| {
            let steps: Vec<(Lsn, Vec<Step<'_>>)> = batch
                .iter()
                .map(|(lsn, changes)| (*lsn, changes.iter().filter_map(step_of).collect()))
                .collect();
            writer.apply(&steps)
        })
        .map_err(|failure| match failure {
            ApplyFailure {
                lsn: Some(lsn),
                error,
            } => ViewError::Contradiction {
                view: VIEW_NAME,
                lsn,
                reason: error.to_string(),
            },
            ApplyFailure { lsn: None, error } => ViewError::store(VIEW_NAME, error),
        })
    }

    fn persist(&mut self) -> Result<(), ViewError> {
        #[cfg(test)]
        if let Some(stand_in) = &self.handle.stand_in {
            let noted = stand_in.write(self.applied());
            return noted.map_err(|error| ViewError::store(VIEW_NAME, error));
        }
        on_writer(&self.handle.queue, Writer::persist)
            .map_err(|failure| ViewError::store(VIEW_NAME, failure.error))
    }
}

fn concerns(change: &Change) -> bool {
    step_of(change).is_some()
}

fn step_of(change: &Change) -> Option<Step<'_>> {
    match change {
        Change::AccountsMigration { name, sql } => Some(Step::Migration { name, sql }),
        Change::AccountsChangeset { bytes } => Some(Step::Changeset(bytes)),
        Change::BlobStored { .. }
        | Change::RepoRemoved { .. }
        | Change::ReposNumbered { .. }
        | Change::RemovalsPending { .. }
        | Change::RemovalsGone { .. }
        | Change::RepoRows { .. }
        | Change::RowsGone { .. }
        | Change::RepoHead { .. }
        | Change::GenerationSwept { .. } => None,
    }
}

impl Drop for AccountsView {
    fn drop(&mut self) {
        self.handle.queue.close();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has closed the queue and has been printed; there is nobody left to tell.
            let _ = thread.join();
        }
    }
}

impl Accounts {
    /// The schema steps that this program has and the view does not, oldest first. Each must go into the log as an
    /// [`Change::AccountsMigration`] and be applied before services start.
    ///
    /// # Errors
    /// [`AccountsError::NewerSchema`] if the view has a step that this program does not know.
    pub fn missing_migrations(&self) -> Result<Vec<Migration>, AccountsError> {
        let present: Vec<String> = self.read_blocking(|conn| {
            let mut names = conn.prepare("SELECT name FROM view_migration ORDER BY lsn, name")?;
            let names = names.query_map([], |row| row.get(0))?;
            Ok::<_, AccountsError>(names.collect::<rusqlite::Result<_>>()?)
        })?;
        if let Some(name) = present
            .iter()
            .find(|name| !MIGRATIONS.iter().any(|step| step.name == **name))
        {
            return Err(AccountsError::NewerSchema { name: name.clone() });
        }
        let missing = MIGRATIONS
            .iter()
            .filter(|step| !present.iter().any(|name| name == step.name));
        Ok(missing.copied().collect())
    }

    /// The LSN of the last entry that reads can see.
    #[must_use]
    pub fn applied(&self) -> Lsn {
        Lsn::saturating(self.applied.load(Ordering::Acquire))
    }

    /// Changes whenever an account that exists may read differently: a row of `actor` or `account` was changed or removed, a takedown of something of it came or went,
    /// its signing key became another, or the schema moved. New accounts, sessions and tokens do not change it. What was read *after* asking for the
    /// revision is still so while the revision is the same: that is all a cache has to compare.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Runs `transaction` against everything applied so far, with `locks` held, and takes it back. What it changed is
    /// in the changeset, to be logged; it happens when the log's driver applies it.
    ///
    /// Declare every key whose present state the outcome depends on, or which it takes: the account, the handle, the
    /// e-mail address, the token. The closure runs on the one writing thread: no network, no password hashing.
    ///
    /// ```text
    /// let prepared = accounts.prepare([LockKey::did(did), LockKey::handle(new)], move |tx| …).await?;
    /// let pending = engine.append(draft.with_changes([Change::AccountsChangeset { bytes: prepared.changeset }]))?;
    /// prepared.locks.logged();                      // before the next await
    /// engine.applied(pending.await?).await?;
    /// ```
    ///
    /// # Errors
    /// What the closure returns; [`AccountsError::Conflict`] if a value is taken (by way of `?` on a query inside);
    /// [`AccountsError::LockTimeout`] and [`AccountsError::Busy`] under contention. Nothing has changed then.
    pub async fn prepare<T, E, F>(
        &self,
        locks: impl IntoIterator<Item = LockKey>,
        transaction: F,
    ) -> Result<Prepared<T>, E>
    where
        T: Send + 'static,
        E: From<AccountsError> + Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
    {
        let guard = self.locks.acquire(locks.into_iter().collect(), self.wait).await?;
        let (answer, outcome) = oneshot::channel();
        self.queue.push_prepare(Box::new(move |writer| {
            if !answer.is_closed() {
                // A caller that went away meanwhile drops the guard, which frees the keys.
                let _ = answer.send(writer.prepare(guard, transaction));
            }
        }))?;
        outcome.await.map_err(|_| E::from(AccountsError::Closed))?
    }

    /// Reads on a snapshot of what is applied, on a blocking thread.
    ///
    /// # Errors
    /// What the closure returns; [`AccountsError::Busy`] if no connection was free in time.
    pub async fn read<T, E, F>(&self, read: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<AccountsError> + Send + 'static,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    {
        self.readers.read(read).await
    }

    /// Reads on a snapshot of what is applied, on this thread, which may have to wait.
    ///
    /// # Errors
    /// See [`Accounts::read`].
    pub fn read_blocking<T, E, F>(&self, read: F) -> Result<T, E>
    where
        E: From<AccountsError>,
        F: FnOnce(&Connection) -> Result<T, E>,
    {
        self.readers.read_blocking(read)
    }

    /// Pins what is applied now, for a checkpoint. Blocks until the writer has noted the position.
    ///
    /// # Errors
    /// The database could not be opened once more, or takes no more work.
    pub fn snapshot(&self) -> Result<AccountsSnapshot, AccountsError> {
        #[cfg(test)]
        if let Some(stand_in) = &self.stand_in {
            return stand_in.snapshot(self.applied());
        }
        let noted = on_writer(&self.queue, Writer::note_position);
        noted.map_err(|failure| failure.error)?;
        AccountsSnapshot::pin(self.readers.path())
    }
}
