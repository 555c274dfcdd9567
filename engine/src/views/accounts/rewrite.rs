//! The shortest history that gives the account database as it is: what compaction writes in place of the true one.
//!
//! The schema steps as they were, then every row that is left, in changesets of inserts, table after table in key order.
//! What was deleted is not in it. The rows are inserted into a second database under a session, so the changesets are
//! SQLite's own, and in the end both databases are compared.

use std::path::Path;
use std::time::Duration;

use rusqlite::session::Session;
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, TransactionBehavior, params_from_iter};

use super::error::AccountsError;
use super::schema::is_replicated;
use super::{Accounts, AccountsView};
use crate::entry::Change;

/// Bytes of values after which a changeset ends.
const BATCH_BYTES: usize = 256 << 10;
/// How long emptying the write-ahead file waits for those who read or write.
const WAL_WAIT: Duration = Duration::from_secs(2);
/// Rows after which a changeset ends.
const BATCH_ROWS: usize = 1_000;

/// Gives `emit` changes that turn an empty account database into the one of `view`, to which nothing is applied
/// meanwhile. `steps` are the schema steps that it has seen, in their order; `scratch` is a path for the second
/// database, which is left there.
///
/// # Errors
/// A database fails, the result would differ, or what `emit` says.
pub(crate) fn rewrite<E: From<AccountsError>>(
    view: &AccountsView,
    steps: &[Change],
    scratch: &Path,
    emit: &mut dyn FnMut(Change) -> Result<(), E>,
) -> Result<(), E> {
    #[cfg(test)]
    if view.handle.stand_in.is_some() {
        assert_eq!(steps, [], "a stand-in has no schema");
        return Ok(());
    }
    let mut copy = Connection::open(scratch).map_err(sql)?;
    for (name, value) in [
        ("journal_mode", "OFF"),
        ("synchronous", "OFF"),
        ("foreign_keys", "OFF"),
        ("trusted_schema", "OFF"),
    ] {
        copy.pragma_update(None, name, value).map_err(sql)?;
    }
    for step in steps {
        if let Change::AccountsMigration { sql: text, .. } = step {
            copy.execute_batch(text).map_err(sql)?;
            emit(step.clone())?;
        }
    }
    let source = open_source(view.handle.path()).map_err(sql)?;
    let tables = tables_of(&source).map_err(sql)?;
    if tables != tables_of(&copy).map_err(sql)? {
        return Err(differs("tables").into());
    }
    for table in &tables {
        empty(&mut copy, table, emit)?;
        fill(&source, &mut copy, table, emit)?;
    }
    drop(source);
    compare(&copy, view.handle.path(), &tables)?;
    Ok(())
}

fn sql(error: rusqlite::Error) -> AccountsError {
    AccountsError::from(error)
}

fn differs(what: &str) -> AccountsError {
    AccountsError::Unreplayable {
        reason: format!("the shortened history gives other {what}"),
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn open_source(path: &Path) -> rusqlite::Result<Connection> {
    Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
}

fn tables_of(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut tables = conn.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")?;
    let names = tables.query_map([], |row| row.get::<_, String>(0))?;
    names
        .filter(|name| name.as_ref().map_or(true, |name| is_replicated(name)))
        .collect()
}

/// What a schema step put into a table itself is not what is left of it: it goes first.
fn empty<E: From<AccountsError>>(
    copy: &mut Connection,
    table: &str,
    emit: &mut dyn FnMut(Change) -> Result<(), E>,
) -> Result<(), E> {
    let name = quoted(table);
    let any: bool = copy
        .query_row(&format!("SELECT EXISTS (SELECT 1 FROM {name})"), [], |row| {
            row.get(0)
        })
        .map_err(sql)?;
    if any {
        let bytes = recorded(copy, |conn| {
            conn.execute(&format!("DELETE FROM {name}"), []).map(|_| ())
        })
        .map_err(sql)?;
        emit(Change::AccountsChangeset { bytes })?;
    }
    Ok(())
}

fn fill<E: From<AccountsError>>(
    source: &Connection,
    copy: &mut Connection,
    table: &str,
    emit: &mut dyn FnMut(Change) -> Result<(), E>,
) -> Result<(), E> {
    let name = quoted(table);
    let (columns, keys) = columns_of(source, table).map_err(sql)?;
    let order = keys.iter().map(|key| quoted(key)).collect::<Vec<_>>().join(", ");
    let names = columns
        .iter()
        .map(|column| quoted(column))
        .collect::<Vec<_>>()
        .join(", ");
    let places = vec!["?"; columns.len()].join(", ");
    let insert = format!("INSERT INTO {name} ({names}) VALUES ({places})");
    let mut select = source
        .prepare(&format!("SELECT {names} FROM {name} ORDER BY {order}"))
        .map_err(sql)?;
    let mut rows = select.query([]).map_err(sql)?;
    loop {
        let (mut batch, mut bytes): (Vec<Vec<Value>>, usize) = (Vec::new(), 0);
        while batch.len() < BATCH_ROWS && bytes < BATCH_BYTES {
            let Some(row) = rows.next().map_err(sql)? else {
                break;
            };
            let values: Vec<Value> = (0..columns.len())
                .map(|column| row.get(column))
                .collect::<rusqlite::Result<_>>()
                .map_err(sql)?;
            bytes += values.iter().map(size_of_value).sum::<usize>();
            batch.push(values);
        }
        if batch.is_empty() {
            return Ok(());
        }
        let bytes = recorded(copy, |conn| {
            let mut insert = conn.prepare_cached(&insert)?;
            for values in batch {
                insert.execute(params_from_iter(values))?;
            }
            Ok(())
        })
        .map_err(sql)?;
        emit(Change::AccountsChangeset { bytes })?;
    }
}

fn size_of_value(value: &Value) -> usize {
    match value {
        Value::Text(text) => text.len(),
        Value::Blob(bytes) => bytes.len(),
        Value::Null | Value::Integer(_) | Value::Real(_) => 8,
    }
}

/// Names of all columns, and of those of the primary key in its order.
fn columns_of(conn: &Connection, table: &str) -> rusqlite::Result<(Vec<String>, Vec<String>)> {
    let mut info = conn.prepare("SELECT name, pk FROM pragma_table_info(?1) ORDER BY cid")?;
    let columns: Vec<(String, u32)> = info
        .query_map([table], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let mut keys: Vec<&(String, u32)> = columns.iter().filter(|(_, key)| *key > 0).collect();
    keys.sort_unstable_by_key(|(_, key)| *key);
    let keys = keys.into_iter().map(|(name, _)| name.clone()).collect();
    Ok((columns.into_iter().map(|(name, _)| name).collect(), keys))
}

/// The changeset of what `work` does.
fn recorded(
    conn: &mut Connection,
    work: impl FnOnce(&Connection) -> rusqlite::Result<()>,
) -> rusqlite::Result<Vec<u8>> {
    let transaction = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut changeset = Vec::new();
    {
        let mut session = Session::new(&transaction)?;
        session.table_filter(Some(is_replicated));
        session.attach(None::<&str>)?;
        work(&transaction)?;
        session.changeset_strm(&mut changeset)?;
    }
    transaction.commit()?;
    Ok(changeset)
}

/// Whether both databases hold the same rows.
fn compare(copy: &Connection, source: &Path, tables: &[String]) -> Result<(), AccountsError> {
    copy.execute("ATTACH ?1 AS source", [source.to_string_lossy()])?;
    for table in tables {
        let name = quoted(table);
        for (left, right) in [("main", "source"), ("source", "main")] {
            let query = format!(
                "SELECT EXISTS (SELECT * FROM {left}.{name} EXCEPT SELECT * FROM {right}.{name}) \
                 OR (SELECT count(*) FROM {left}.{name}) <> (SELECT count(*) FROM {right}.{name})"
            );
            if copy.query_row(&query, [], |row| row.get::<_, bool>(0))? {
                return Err(differs(&format!("rows of {table}")));
            }
        }
    }
    copy.execute("DETACH source", [])?;
    Ok(())
}

impl Accounts {
    /// Makes everything applied so far survive a power loss. Blocks.
    ///
    /// # Errors
    /// The database failed.
    pub(crate) fn persist_blocking(&self) -> Result<(), AccountsError> {
        let (answer, outcome) = std::sync::mpsc::sync_channel(1);
        self.queue.push_apply(Box::new(move |writer| {
            // The caller waits below.
            let _ = answer.send(writer.persist());
        }))?;
        let done = outcome.recv().map_err(|_| AccountsError::Closed)?;
        done.map_err(|failure| failure.error)
    }

    /// Moves everything from the write-ahead file into the database and empties it, so that rows that were overwritten in the
    /// database are in no file any more. `false` if somebody reads an older state or writes just now. Blocks, and holds up
    /// writers, for as long as that takes.
    ///
    /// # Errors
    /// The database failed.
    pub(crate) fn empty_wal_blocking(&self) -> Result<bool, AccountsError> {
        #[cfg(test)]
        if self.stand_in.is_some() {
            return Ok(true);
        }
        let conn = Connection::open(self.path())?;
        conn.busy_timeout(WAL_WAIT)?;
        let busy: i64 = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        Ok(busy == 0)
    }

    fn path(&self) -> &Path {
        self.readers.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{LogId, Lsn};
    use crate::views::accounts::MIGRATIONS;
    use crate::views::accounts::writer::Step;

    fn view(dir: &Path) -> AccountsView {
        AccountsView::open(dir, LogId([4; 16])).unwrap()
    }

    fn apply(view: &AccountsView, at: u64, changes: Vec<Change>) {
        super::super::on_writer(&view.handle.queue, move |writer| {
            let steps = changes
                .iter()
                .filter_map(super::super::step_of)
                .collect::<Vec<Step<'_>>>();
            writer.apply(&[(Lsn::saturating(at), steps)])
        })
        .map_err(|failure| failure.error)
        .unwrap();
    }

    #[test]
    fn a_shortened_history_gives_the_same_rows_and_nothing_that_was_deleted() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let live = view(first.path());
        let steps: Vec<Change> = MIGRATIONS
            .iter()
            .map(|step| Change::AccountsMigration {
                name: step.name.to_owned(),
                sql: step.sql.to_owned(),
            })
            .collect();
        apply(&live, 1, steps.clone());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        for n in 0..2_500_u64 {
            let prepared = runtime.block_on(live.handle().prepare([], move |tx| {
                tx.execute(
                    "INSERT INTO actor (did, handle, createdAt) VALUES (?1, ?2, 'now')",
                    (format!("did:plc:{n}"), format!("secret-{n}.test")),
                )?;
                if n % 3 == 2 {
                    tx.execute("DELETE FROM actor WHERE did = ?1", [format!("did:plc:{}", n - 1)])?;
                }
                Ok::<_, AccountsError>(())
            }));
            let bytes = prepared.unwrap().changeset;
            apply(&live, 2 + n, vec![Change::AccountsChangeset { bytes }]);
        }
        let mut changes = Vec::new();
        rewrite::<AccountsError>(&live, &steps, &first.path().join("scratch"), &mut |change| {
            changes.push(change);
            Ok(())
        })
        .unwrap();
        assert!(changes.len() > steps.len() + 1 && changes.len() < 20);
        let text = |needle: &str| {
            changes.iter().any(|change| match change {
                Change::AccountsChangeset { bytes } => bytes
                    .windows(needle.len())
                    .any(|window| window == needle.as_bytes()),
                _ => false,
            })
        };
        assert!(text("secret-0.test") && !text("secret-1.test"));

        let rebuilt = view(second.path());
        for (at, change) in changes.into_iter().enumerate() {
            apply(&rebuilt, at as u64 + 1, vec![change]);
        }
        let rows = |view: &AccountsView| {
            view.handle()
                .read_blocking(|conn| {
                    let mut rows = conn.prepare("SELECT did, handle FROM actor ORDER BY did")?;
                    let rows =
                        rows.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
                    Ok::<_, AccountsError>(rows.collect::<rusqlite::Result<Vec<_>>>()?)
                })
                .unwrap()
        };
        assert_eq!(rows(&rebuilt), rows(&live));
        assert_eq!(rows(&live).len(), 2_500 - 833);
    }
}
