//! The one thread that writes the account database.
//!
//! It prepares transactions (run, take the changeset, roll back) and applies what comes out of the log. Both happen on
//! this thread, so a transaction is prepared on a state that holds every entry up to some LSN and nothing else.
//!
//! Foreign keys are on while a transaction is prepared: a bad reference is refused there, and what a deletion cascades
//! to is recorded in the changeset. They are off while a changeset is applied: its rows come in no particular order,
//! and a cascade that ran a second time would leave nothing for the recorded deletion to find. That is why there are
//! two connections, of which only one is ever in a transaction.
//!
//! | crash                                   | leaves                                                             |
//! |-----------------------------------------|--------------------------------------------------------------------|
//! | while a transaction is prepared          | nothing; its caller has no answer yet                              |
//! | after its entry is durable, not applied  | a view behind the log; replay applies it                           |
//! | after a batch is applied, not persisted  | the batch (process crash), or an earlier batch (power loss), whole |

use std::collections::VecDeque;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rusqlite::hooks::Action;
use rusqlite::session::{ConflictAction, Session};
use rusqlite::{Connection, Transaction, TransactionBehavior};
use sha2::{Digest, Sha256};

use super::error::AccountsError;
use super::footprint::{claims_of, for_each_row};
use super::locks::{LockGuard, Locks};
use super::schema::{Layout, OWN_TABLES, is_replicated};
use crate::log::{LogId, Lsn};

/// Largest changeset that a transaction may give, bytes. Far below a frame's bound, with room for the rest of an entry.
pub const CHANGESET_BYTES_MAX: usize = 4 << 20;

/// A prepared transaction: what its closure returned, and what must go into the log to make it happen.
#[derive(Debug)]
pub struct Prepared<T> {
    /// What the closure returned.
    pub value: T,
    /// SQLite changeset; empty if nothing changed, and then there is nothing to log.
    pub changeset: Vec<u8>,
    /// Keeps the keys and rows. See [`LockGuard`] for when to let go.
    pub locks: LockGuard,
}

/// One step of an entry that concerns this view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step<'a> {
    /// A schema step.
    Migration { name: &'a str, sql: &'a str },
    /// Row changes.
    Changeset(&'a [u8]),
}

/// Why an entry could not be applied.
#[derive(Debug)]
pub(super) struct ApplyFailure {
    /// The entry; `None` if the database as such failed.
    pub lsn: Option<Lsn>,
    /// What happened.
    pub error: AccountsError,
}

impl From<rusqlite::Error> for ApplyFailure {
    fn from(error: rusqlite::Error) -> ApplyFailure {
        ApplyFailure {
            lsn: None,
            error: error.into(),
        }
    }
}

/// Work for the thread.
pub(super) type Job = Box<dyn FnOnce(&mut Writer) + Send>;

/// The thread's work, bounded for those who prepare. The view driver goes first: nobody is answered before it is done.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<QueueState>,
    ready: Condvar,
    prepares_max: usize,
}

#[derive(Default)]
struct QueueState {
    applies: VecDeque<Job>,
    prepares: VecDeque<Job>,
    closed: bool,
}

impl Queue {
    pub fn new(prepares_max: usize) -> Queue {
        Queue {
            prepares_max,
            ..Queue::default()
        }
    }

    pub fn push_prepare(&self, job: Job) -> Result<(), AccountsError> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(AccountsError::Closed);
        }
        if state.prepares.len() >= self.prepares_max {
            return Err(AccountsError::Busy { what: "transactions" });
        }
        state.prepares.push_back(job);
        self.ready.notify_one();
        Ok(())
    }

    /// Whether there is still a thread behind it.
    pub fn check_open(&self) -> Result<(), AccountsError> {
        if self.state.lock().closed {
            return Err(AccountsError::Closed);
        }
        Ok(())
    }

    /// For the view driver, which waits for each answer, so this queue holds few jobs.
    pub fn push_apply(&self, job: Job) -> Result<(), AccountsError> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(AccountsError::Closed);
        }
        state.applies.push_back(job);
        self.ready.notify_one();
        Ok(())
    }

    /// Takes no more work and drops what waits; whoever waits for an answer sees its channel close.
    pub fn close(&self) {
        let dropped = {
            let mut state = self.state.lock();
            state.closed = true;
            self.ready.notify_all();
            (
                std::mem::take(&mut state.applies),
                std::mem::take(&mut state.prepares),
            )
        };
        drop(dropped);
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(job) = state.applies.pop_front().or_else(|| state.prepares.pop_front()) {
                return Some(job);
            }
            self.ready.wait(&mut state);
        }
    }
}

/// Closes the queue when the thread ends, also by a panic.
struct CloseOnDrop(Arc<Queue>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What the thread owns.
pub(super) struct Writer {
    prepare: Connection,
    apply: Connection,
    layout: Layout,
    locks: Arc<Locks>,
    applied: Arc<AtomicU64>,
    /// See [`Accounts::revision`](super::Accounts::revision).
    revision: Arc<AtomicU64>,
    failed: Option<String>,
    /// Whether it has, for those on other threads.
    stopped: Arc<AtomicBool>,
}

impl Writer {
    /// Opens or creates the database.
    pub fn open(
        path: &Path,
        log_id: LogId,
        locks: Arc<Locks>,
        applied: Arc<AtomicU64>,
    ) -> Result<Writer, AccountsError> {
        let apply = open_writer(path, false)?;
        apply.execute_batch(OWN_TABLES)?;
        apply.execute(
            "INSERT OR IGNORE INTO view_state (key, value) VALUES ('log_id', ?1)",
            [log_id.0],
        )?;
        let owner: Vec<u8> =
            apply.query_row("SELECT value FROM view_state WHERE key = 'log_id'", [], |row| {
                row.get(0)
            })?;
        if owner != log_id.0 {
            return Err(AccountsError::Foreign);
        }
        let prepare = open_writer(path, true)?;
        let layout = Layout::read(&apply)?;
        applied.store(read_applied(&apply)?.get(), Ordering::Release);
        Ok(Writer {
            prepare,
            apply,
            layout,
            locks,
            applied,
            revision: Arc::default(),
            failed: None,
            stopped: Arc::default(),
        })
    }

    /// Whether the writer has failed, and takes nothing more.
    pub fn stopped(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stopped)
    }

    fn fail(&mut self, reason: String) {
        self.failed = Some(reason);
        self.stopped.store(true, Ordering::Release);
    }

    /// The counter that tells caches of accounts to read again.
    pub fn revision(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.revision)
    }

    /// The thread's life: until the queue is closed.
    pub fn run(mut self, queue: Arc<Queue>) {
        let closing = CloseOnDrop(queue);
        while let Some(job) = closing.0.next() {
            job(&mut self);
        }
    }

    fn applied(&self) -> Lsn {
        Lsn::saturating(self.applied.load(Ordering::Acquire))
    }

    fn refuse_if_failed(&self) -> Result<(), AccountsError> {
        match &self.failed {
            None => Ok(()),
            Some(reason) => Err(AccountsError::Failed {
                applied: self.applied(),
                reason: reason.clone(),
            }),
        }
    }

    /// Runs `transaction` and takes it back, keeping what it changed as a changeset that is known to apply.
    pub fn prepare<T, E, F>(&mut self, guard: LockGuard, transaction: F) -> Result<Prepared<T>, E>
    where
        E: From<AccountsError>,
        F: FnOnce(&Transaction<'_>) -> Result<T, E>,
    {
        self.refuse_if_failed()?;
        let mut escaped = false;
        let recorded = record(&mut self.prepare, transaction, &mut escaped);
        if escaped {
            return Err(self.disown()?.into());
        }
        let (value, changeset) = recorded?;
        if changeset.len() > CHANGESET_BYTES_MAX {
            return Err(AccountsError::TooLarge {
                len: changeset.len(),
                max: CHANGESET_BYTES_MAX,
            }
            .into());
        }
        if !changeset.is_empty() {
            let claims = claims_of(&changeset, &self.layout)?;
            self.locks.claim(&guard, &claims, digest_of(&changeset))?;
            // A changeset in the log must apply for ever after. Changes of one transaction may be valid in the order
            // in which it made them, and in no order that SQLite tries when it applies them; better to know now.
            let trial = self
                .apply
                .transaction_with_behavior(TransactionBehavior::Immediate)
                .map_err(AccountsError::from)?;
            let fits = apply_changeset(&trial, &changeset).map(|_| ());
            trial.rollback().map_err(AccountsError::from)?;
            fits.map_err(|reason| AccountsError::Unreplayable { reason })?;
        }
        Ok(Prepared {
            value,
            changeset,
            locks: guard,
        })
    }

    /// A closure ended its transaction, and perhaps its changes are in the file without being in the log. The file is
    /// marked as nobody's, so that the next start has it rebuilt.
    fn disown(&mut self) -> Result<AccountsError, AccountsError> {
        let reason = "a transaction ended itself; its changes are not in the log".to_owned();
        self.fail(reason.clone());
        self.apply
            .execute("UPDATE view_state SET value = x'' WHERE key = 'log_id'", [])?;
        Ok(AccountsError::Failed {
            applied: self.applied(),
            reason,
        })
    }

    /// Applies entries above the applied LSN in one transaction that stores the last one's LSN. After a failure the
    /// state is as before, and nothing more is taken.
    pub fn apply(&mut self, entries: &[(Lsn, Vec<Step<'_>>)]) -> Result<(), ApplyFailure> {
        self.refuse_if_failed()
            .map_err(|error| ApplyFailure { lsn: None, error })?;
        match self.apply_batch(entries) {
            Ok(()) => Ok(()),
            Err(failure) => {
                self.fail(failure.error.to_string());
                Err(failure)
            }
        }
    }

    fn apply_batch(&mut self, entries: &[(Lsn, Vec<Step<'_>>)]) -> Result<(), ApplyFailure> {
        let before = self.applied();
        let fresh = || entries.iter().filter(|(lsn, _)| *lsn > before);
        let Some((last, _)) = fresh().next_back() else {
            return Ok(());
        };
        let digests_wanted = self.locks.any_unfinished();
        let mut digests = Vec::new();
        let mut migrated = false;
        let mut accounts_changed = false;

        let tx = self
            .apply
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        for (lsn, steps) in fresh() {
            let fail = |error| ApplyFailure {
                lsn: Some(*lsn),
                error,
            };
            for step in steps {
                match step {
                    Step::Migration { name, sql } => {
                        migrated = true;
                        tx.execute_batch(sql).map_err(|error| fail(error.into()))?;
                        if tx.is_autocommit() {
                            let reason = format!("schema step {name:?} ends the transaction");
                            return Err(fail(AccountsError::Unreplayable { reason }));
                        }
                        tx.execute(
                            "INSERT INTO view_migration (name, lsn) VALUES (?1, ?2)",
                            (name, to_sqlite(*lsn)),
                        )
                        .map_err(|error| fail(error.into()))?;
                    }
                    Step::Changeset(bytes) => {
                        accounts_changed |= apply_changeset(&tx, bytes)
                            .map_err(|reason| fail(AccountsError::Unreplayable { reason }))?;
                        if digests_wanted {
                            digests.push(digest_of(bytes));
                        }
                    }
                }
            }
        }
        tx.execute(
            "UPDATE view_state SET value = ?1 WHERE key = 'applied'",
            [to_sqlite(*last)],
        )?;
        tx.commit()?;

        if migrated {
            self.layout = Layout::read(&self.apply)?;
        }
        // Before anybody can be told that the change is done.
        if migrated || accounts_changed {
            self.revision.fetch_add(1, Ordering::AcqRel);
        }
        self.applied.store(last.get(), Ordering::Release);
        self.locks.applied(&digests);
        Ok(())
    }

    /// Writes the applied LSN, which entries without changes have moved in memory only.
    pub fn note_position(&mut self) -> Result<(), ApplyFailure> {
        self.refuse_if_failed()
            .map_err(|error| ApplyFailure { lsn: None, error })?;
        self.apply.execute(
            "UPDATE view_state SET value = ?1 WHERE key = 'applied'",
            [to_sqlite(self.applied())],
        )?;
        Ok(())
    }

    /// Makes everything applied survive a power loss: a small commit with `synchronous=FULL` syncs the whole
    /// write-ahead file, all earlier commits included.
    pub fn persist(&mut self) -> Result<(), ApplyFailure> {
        self.refuse_if_failed()
            .map_err(|error| ApplyFailure { lsn: None, error })?;
        let synced = self
            .apply
            .pragma_update(None, "synchronous", "FULL")
            .and_then(|()| {
                self.apply.execute(
                    "UPDATE view_state SET value = CASE key WHEN 'applied' THEN ?1 ELSE value + 1 END
                     WHERE key IN ('applied', 'persisted')",
                    [to_sqlite(self.applied())],
                )
            })
            .and_then(|_| self.apply.pragma_update(None, "synchronous", "NORMAL"));
        if let Err(error) = &synced {
            self.fail(error.to_string());
        }
        Ok(synced?)
    }
}

/// Runs a transaction under a session and rolls it back. `escaped` tells that the closure has ended it instead.
fn record<T, E, F>(conn: &mut Connection, transaction: F, escaped: &mut bool) -> Result<(T, Vec<u8>), E>
where
    E: From<AccountsError>,
    F: FnOnce(&Transaction<'_>) -> Result<T, E>,
{
    let sql = |error: rusqlite::Error| E::from(AccountsError::from(error));
    let tx = conn
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(sql)?;
    let mut changeset = Vec::new();
    let value;
    {
        let mut session = Session::new(&tx).map_err(sql)?;
        session.table_filter(Some(is_replicated));
        session.attach(None::<&str>).map_err(sql)?;
        // Whatever the closure leaves behind when it panics is rolled back with the transaction.
        let outcome = catch_unwind(AssertUnwindSafe(|| transaction(&tx)));
        *escaped = tx.is_autocommit();
        value = outcome.map_err(|_| E::from(AccountsError::Panicked))??;
        session.changeset_strm(&mut changeset).map_err(sql)?;
    }
    tx.rollback().map_err(sql)?;
    Ok((value, changeset))
}

/// Applies one changeset wholly, or says what does not fit. The caller's transaction must be rolled back then. Tells
/// whether accounts that were there before may read differently.
fn apply_changeset(conn: &Connection, changeset: &[u8]) -> Result<bool, String> {
    let mut rows = 0_u64;
    let mut accounts_changed = false;
    // A login that is added to an actor of an earlier changeset changes an account, too.
    let mut logins_without_actor = 0_i64;
    for_each_row::<rusqlite::Error>(changeset, |row| {
        rows += 1;
        let op = row.op()?;
        match (op.table_name(), op.code()) {
            ("actor", Action::SQLITE_INSERT) => logins_without_actor -= 1,
            ("account", Action::SQLITE_INSERT) => logins_without_actor += 1,
            ("signing_key", Action::SQLITE_INSERT) => {}
            ("actor" | "account" | "subject_takedown" | "signing_key", _) => accounts_changed = true,
            _ => {}
        }
        Ok(())
    })
    .map_err(|error| format!("malformed changeset: {error}"))?;

    let conflict = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&conflict);
    let before = conn.total_changes();
    let mut bytes = changeset;
    let input: &mut dyn Read = &mut bytes;
    let outcome = conn.apply_strm(input, None::<fn(&str) -> bool>, move |kind, row| {
        let table = row
            .op()
            .map_or_else(|_| "?".to_owned(), |op| op.table_name().to_owned());
        *seen.lock() = Some(format!("{kind:?} in {table}"));
        ConflictAction::SQLITE_CHANGESET_ABORT
    });
    if let Some(conflict) = conflict.lock().take() {
        return Err(conflict);
    }
    outcome.map_err(|error| error.to_string())?;
    // SQLite passes over tables that it does not find or that have too few columns. Every row must have counted.
    let changed = conn.total_changes() - before;
    if changed == rows {
        Ok(accounts_changed || logins_without_actor > 0)
    } else {
        Err(format!("{rows} rows in the changeset, {changed} changed"))
    }
}

fn digest_of(changeset: &[u8]) -> [u8; 32] {
    Sha256::digest(changeset).into()
}

/// The LSN up to which the database behind `conn` has the log.
pub(super) fn read_applied(conn: &Connection) -> Result<Lsn, AccountsError> {
    let value: i64 = conn.query_row("SELECT value FROM view_state WHERE key = 'applied'", [], |row| {
        row.get(0)
    })?;
    Ok(Lsn::saturating(u64::try_from(value).unwrap_or(0)))
}

/// LSNs are below 2^53.
fn to_sqlite(lsn: Lsn) -> i64 {
    i64::try_from(lsn.get()).unwrap_or(i64::MAX)
}

/// A connection that may write. `synchronous=NORMAL` in WAL mode never corrupts; a power loss may take the newest
/// commits, and with them their LSN. Deleted rows are overwritten, so that what is deleted is gone from the file.
fn open_writer(path: &Path, foreign_keys: bool) -> Result<Connection, AccountsError> {
    let conn = Connection::open(path)?;
    conn.busy_timeout(Duration::from_secs(5))?;
    conn.set_prepared_statement_cache_capacity(128);
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "synchronous", "NORMAL")?;
    conn.pragma_update(None, "foreign_keys", foreign_keys)?;
    conn.pragma_update(None, "secure_delete", true)?;
    conn.pragma_update(None, "trusted_schema", false)?;
    conn.pragma_update(None, "journal_size_limit", 64 << 20)?;
    conn.pragma_update(None, "cache_size", -16_384)?;
    Ok(conn)
}
