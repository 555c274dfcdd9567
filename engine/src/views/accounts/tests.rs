//! The account view as a whole: what is prepared is not visible, what is applied is the same everywhere, and what does
//! not fit stops the view (I1, I3, I4).

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::Connection;
use rusqlite::types::Value;

use super::model::{Account, Actor, Login, PasswordHash};
use super::*;
use crate::entry::EntryKind;
use crate::log::{Epoch, Location};

pub(crate) const LOG: LogId = LogId([7; 16]);

type Result<T> = std::result::Result<T, AccountsError>;

pub(crate) fn lsn(number: u64) -> Lsn {
    Lsn::new(number).unwrap()
}

pub(crate) fn entry(number: u64, changes: Vec<Change>) -> Entry {
    Entry {
        lsn: lsn(number),
        epoch: Epoch(1),
        kind: EntryKind::Private,
        public: Bytes::new(),
        public_at: Location {
            segment: lsn(1),
            offset: 0,
            len: 0,
        },
        changes,
        private: Bytes::new(),
        private_at: Location {
            segment: lsn(1),
            offset: 0,
            len: 0,
        },
    }
}

pub(crate) fn changeset(number: u64, bytes: &[u8]) -> Entry {
    entry(
        number,
        vec![Change::AccountsChangeset {
            bytes: bytes.to_vec(),
        }],
    )
}

/// The entries 1.. that bring the schema.
pub(crate) fn migrations(view: &AccountsView) -> Vec<Entry> {
    let steps = view.missing_migrations().unwrap();
    steps
        .iter()
        .zip(1..)
        .map(|(step, number)| {
            entry(
                number,
                vec![Change::AccountsMigration {
                    name: step.name.to_owned(),
                    sql: step.sql.to_owned(),
                }],
            )
        })
        .collect()
}

pub(crate) fn open(dir: &Path) -> AccountsView {
    let options = AccountsOptions {
        wait: Duration::from_millis(300),
        ..AccountsOptions::default()
    };
    let mut view = AccountsView::open_with(dir, LOG, options).unwrap();
    let schema = migrations(&view);
    view.apply(&schema).unwrap();
    view
}

pub(crate) fn actor(did: &str, handle: &str) -> Actor {
    Actor {
        did: did.to_owned(),
        handle: Some(handle.to_owned()),
        created_at: "2026-01-01T00:00:00.000Z".to_owned(),
        takedown_ref: None,
        deactivated_at: None,
        delete_after: None,
    }
}

pub(crate) fn login(email: &str) -> Login {
    Login {
        email: email.to_owned(),
        password: PasswordHash("salt:hash".to_owned()),
        email_confirmed_at: None,
        invites_disabled: false,
    }
}

async fn create(accounts: &Accounts, did: &'static str, handle: &'static str) -> Result<Prepared<()>> {
    accounts
        .prepare([LockKey::did(did), LockKey::handle(handle)], move |tx| {
            queries::insert_actor(tx, &actor(did, handle))
        })
        .await
}

/// Every row of every table, sorted, for comparison.
pub(crate) fn dump(conn: &Connection) -> Vec<(String, Vec<Vec<Value>>)> {
    let mut tables = conn
        .prepare(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'view_%' ORDER BY name",
        )
        .unwrap();
    let names: Vec<String> = tables
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(|n| n.unwrap())
        .collect();
    let mut all = Vec::new();
    for name in names {
        let mut rows = conn.prepare(&format!("SELECT * FROM \"{name}\"")).unwrap();
        let width = rows.column_count();
        let mut rows: Vec<Vec<Value>> = rows
            .query_map([], |row| (0..width).map(|column| row.get(column)).collect())
            .unwrap()
            .map(|row| row.unwrap())
            .collect();
        rows.sort_by_key(|row| format!("{row:?}"));
        all.push((name, rows));
    }
    all
}

pub(crate) fn dump_view(view: &AccountsView) -> Vec<(String, Vec<Vec<Value>>)> {
    view.handle()
        .read_blocking(|conn| Ok::<_, AccountsError>(dump(conn)))
        .unwrap()
}

async fn by_handle(accounts: &Accounts, handle: &'static str) -> Option<Account> {
    accounts
        .read(move |conn| queries::account_by_handle(conn, handle))
        .await
        .unwrap()
}

#[tokio::test]
async fn what_is_prepared_is_visible_only_once_it_is_applied() {
    let dir = tempfile::tempdir().unwrap();
    let mut view = open(dir.path());
    let accounts = view.handle();
    let prepared = create(&accounts, "did:plc:a", "Alice.test").await.unwrap();
    assert!(!prepared.changeset.is_empty());
    assert!(by_handle(&accounts, "alice.test").await.is_none());
    view.apply(&[changeset(10, &prepared.changeset)]).unwrap();
    assert_eq!(
        by_handle(&accounts, "ALICE.test").await.unwrap().actor,
        actor("did:plc:a", "Alice.test")
    );
    assert_eq!((view.applied(), accounts.applied()), (lsn(10), lsn(10)));
}

#[tokio::test]
async fn a_transaction_that_changes_nothing_gives_nothing_to_log() {
    let dir = tempfile::tempdir().unwrap();
    let view = open(dir.path());
    let prepared = view
        .handle()
        .prepare([], |tx| {
            queries::insert_actor(tx, &actor("did:plc:a", "a.test"))?;
            tx.execute("DELETE FROM actor", [])?;
            queries::set_handle(tx, "did:plc:nobody", "x.test")
        })
        .await
        .unwrap();
    assert!(prepared.changeset.is_empty() && !prepared.value);
}

#[tokio::test]
async fn a_taken_name_is_a_conflict_that_says_which() {
    let dir = tempfile::tempdir().unwrap();
    let mut view = open(dir.path());
    let accounts = view.handle();
    let first = accounts
        .prepare([LockKey::did("did:plc:a")], |tx| {
            queries::insert_actor(tx, &actor("did:plc:a", "a.test"))?;
            queries::insert_login(tx, "did:plc:a", &login("A@example.com"))
        })
        .await
        .unwrap();
    view.apply(&[changeset(10, &first.changeset)]).unwrap();

    let conflict = |outcome: Result<Prepared<()>>| match outcome {
        Err(AccountsError::Conflict { table, column }) => format!("{table}.{column}"),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        conflict(create(&accounts, "did:plc:a", "b.test").await),
        "actor.did"
    );
    assert_eq!(
        conflict(create(&accounts, "did:plc:b", "A.TEST").await),
        "actor.handle"
    );
    let email = accounts
        .prepare([], |tx| {
            queries::insert_login(tx, "did:plc:b", &login("a@EXAMPLE.com"))
        })
        .await;
    assert_eq!(conflict(email), "account.email");
    let absent = accounts
        .prepare([], |tx| {
            tx.execute(
                "INSERT INTO authorized_client VALUES ('did:plc:x', 'c', 't', 't', '{}')",
                [],
            )?;
            Ok::<_, AccountsError>(())
        })
        .await;
    assert!(
        matches!(absent, Err(AccountsError::Sqlite(_))),
        "a reference to nothing is refused"
    );
}

#[tokio::test]
async fn the_same_keys_wait_for_the_application_and_other_keys_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut view = open(dir.path());
    let accounts = view.handle();
    let first = create(&accounts, "did:plc:a", "a.test").await.unwrap();
    first.locks.logged();
    let timed_out = create(&accounts, "did:plc:b", "a.test").await;
    assert!(matches!(timed_out, Err(AccountsError::LockTimeout { .. })));
    let other = create(&accounts, "did:plc:c", "c.test").await.unwrap();

    let again = accounts.clone();
    let waiting = tokio::spawn(async move { create(&again, "did:plc:b", "a.test").await });
    view.apply(&[changeset(10, &first.changeset), changeset(11, &other.changeset)])
        .unwrap();
    assert!(
        matches!(waiting.await.unwrap(), Err(AccountsError::Conflict { .. })),
        "it saw the first one's row"
    );
    // The second guard was neither handed over nor dropped: what it held went with the application.
    assert_eq!(accounts.locks.tickets(), 0);
    drop(other.locks);
}

#[tokio::test]
async fn a_forgotten_key_fails_one_request_and_not_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut view = open(dir.path());
    let accounts = view.handle();
    let first = create(&accounts, "did:plc:a", "a.test").await.unwrap();
    let same_handle = accounts
        .prepare([], |tx| queries::insert_actor(tx, &actor("did:plc:b", "A.test")))
        .await;
    assert!(matches!(same_handle, Err(AccountsError::Undeclared { .. })));
    let same_row = accounts
        .prepare([], |tx| queries::insert_actor(tx, &actor("did:plc:a", "c.test")))
        .await;
    assert!(matches!(same_row, Err(AccountsError::Undeclared { .. })));
    drop(first);
    let now = accounts
        .prepare([], |tx| queries::insert_actor(tx, &actor("did:plc:b", "A.test")))
        .await
        .unwrap();
    view.apply(&[changeset(10, &now.changeset)]).unwrap();
}

#[tokio::test]
async fn a_reference_and_the_deletion_of_what_it_refers_to_keep_apart() {
    let dir = tempfile::tempdir().unwrap();
    let mut view = open(dir.path());
    let accounts = view.handle();
    let setup = accounts
        .prepare([], |tx| {
            queries::insert_actor(tx, &actor("did:plc:a", "a.test"))?;
            queries::insert_login(tx, "did:plc:a", &login("a@test"))?;
            tx.execute(
                "INSERT INTO authorized_client VALUES ('did:plc:a', 'old', 't', 't', '{}')",
                [],
            )?;
            Ok::<_, AccountsError>(())
        })
        .await
        .unwrap();
    view.apply(&[changeset(10, &setup.changeset)]).unwrap();
    let insert = |client: &'static str| {
        accounts.prepare([], move |tx| {
            tx.execute(
                "INSERT INTO authorized_client VALUES ('did:plc:a', ?1, 't', 't', '{}')",
                [client],
            )?;
            Ok::<_, AccountsError>(())
        })
    };
    let one = insert("one").await.unwrap();
    let two = insert("two").await.unwrap();
    let deletion = accounts
        .prepare([], |tx| queries::delete_account(tx, "did:plc:a"))
        .await;
    assert!(matches!(deletion, Err(AccountsError::Undeclared { .. })));
    view.apply(&[changeset(11, &one.changeset), changeset(12, &two.changeset)])
        .unwrap();
    let deletion = accounts
        .prepare([], |tx| queries::delete_account(tx, "did:plc:a"))
        .await
        .unwrap();
    view.apply(&[changeset(13, &deletion.changeset)]).unwrap();
    assert!(
        dump_view(&view)
            .iter()
            .all(|(table, rows)| rows.is_empty() || table == "sqlite_sequence")
    );
}

#[tokio::test]
async fn changes_that_cannot_be_replayed_are_refused_before_they_are_logged() {
    let dir = tempfile::tempdir().unwrap();
    let mut view = open(dir.path());
    let accounts = view.handle();
    let setup = accounts
        .prepare([], |tx| {
            queries::insert_actor(tx, &actor("did:plc:a", "a.test"))?;
            queries::insert_actor(tx, &actor("did:plc:b", "b.test"))
        })
        .await
        .unwrap();
    view.apply(&[changeset(10, &setup.changeset)]).unwrap();
    let swapped = accounts
        .prepare([], |tx| {
            queries::set_handle(tx, "did:plc:a", "free.test")?;
            queries::set_handle(tx, "did:plc:b", "a.test")?;
            queries::set_handle(tx, "did:plc:a", "b.test")
        })
        .await;
    assert!(
        matches!(swapped, Err(AccountsError::Unreplayable { .. })),
        "{swapped:?}"
    );
    let moved_on = accounts
        .prepare([], |tx| {
            queries::set_handle(tx, "did:plc:a", "free.test")?;
            queries::set_handle(tx, "did:plc:b", "a.test")
        })
        .await
        .unwrap();
    view.apply(&[changeset(11, &moved_on.changeset)]).unwrap();
}

#[tokio::test]
async fn a_changeset_that_does_not_fit_stops_the_view_and_leaves_it_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut view = open(dir.path());
    let accounts = view.handle();
    let first = create(&accounts, "did:plc:a", "a.test").await.unwrap();
    view.apply(&[changeset(10, &first.changeset)]).unwrap();
    let before = dump_view(&view);
    let other = create(&accounts, "did:plc:c", "c.test").await.unwrap();
    let outcome = view.apply(&[changeset(11, &other.changeset), changeset(12, &first.changeset)]);
    assert!(
        matches!(outcome, Err(ViewError::Contradiction { lsn: at, .. }) if at == lsn(12)),
        "{outcome:?}"
    );
    assert_eq!(view.applied(), lsn(10));
    assert_eq!(dump_view(&view), before);
    assert!(matches!(
        create(&accounts, "did:plc:d", "d.test").await,
        Err(AccountsError::Failed { .. })
    ));
    assert!(view.apply(&[entry(13, vec![])]).is_err());
}

#[tokio::test]
async fn hostile_changesets_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = open(dir.path());
    let whole = create(&source.handle(), "did:plc:a", "a.test")
        .await
        .unwrap()
        .changeset;
    for bytes in [
        b"nonsense".to_vec(),
        whole[..whole.len() - 3].to_vec(),
        vec![b'T'; 5000],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut view = open(dir.path());
        let applied = view.applied();
        assert!(view.apply(&[changeset(10, &bytes)]).is_err());
        assert_eq!(view.applied(), applied);
    }
    // A changeset for a table that does not exist: SQLite by itself would pass over it.
    let scheme = "CREATE TABLE extra (id TEXT NOT NULL PRIMARY KEY)".to_owned();
    source
        .apply(&[entry(
            10,
            vec![Change::AccountsMigration {
                name: "extra".into(),
                sql: scheme,
            }],
        )])
        .unwrap();
    let extra = source
        .handle()
        .prepare([], |tx| {
            Ok::<_, AccountsError>(tx.execute("INSERT INTO extra VALUES ('x')", [])?)
        })
        .await
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    assert!(
        open(dir.path())
            .apply(&[changeset(10, &extra.changeset)])
            .is_err()
    );
    assert!(
        matches!(source.missing_migrations(), Err(AccountsError::NewerSchema { name }) if name == "extra")
    );
}

#[tokio::test]
async fn replay_into_a_fresh_file_gives_equal_rows() {
    let dir = tempfile::tempdir().unwrap();
    let mut view = open(dir.path());
    let accounts = view.handle();
    let mut log = Vec::new();
    let mut number = 10;
    for (did, handle) in [
        ("did:plc:a", "a.test"),
        ("did:plc:b", "b.test"),
        ("did:plc:c", "c.test"),
    ] {
        let prepared = create(&accounts, did, handle).await.unwrap();
        log.push(changeset(number, &prepared.changeset));
        view.apply(&log[log.len() - 1..]).unwrap();
        number += 1;
    }
    let more = accounts
        .prepare([], |tx| {
            queries::set_takedown(tx, "did:plc:a", Some("ref"))?;
            queries::deactivate(tx, "did:plc:b", "2026-01-02T00:00:00.000Z", None)?;
            queries::delete_account(tx, "did:plc:c")
        })
        .await
        .unwrap();
    log.push(changeset(number, &more.changeset));
    view.apply(&log[3..]).unwrap();

    let fresh = tempfile::tempdir().unwrap();
    let mut replayed = open(fresh.path());
    replayed.apply(&log).unwrap();
    assert_eq!(dump_view(&replayed), dump_view(&view));
}

#[tokio::test]
async fn after_a_restart_entries_at_or_below_the_applied_lsn_are_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let mut view = open(dir.path());
    let accounts = view.handle();
    let a = create(&accounts, "did:plc:a", "a.test").await.unwrap();
    let b = create(&accounts, "did:plc:b", "b.test").await.unwrap();
    let log = [
        changeset(10, &a.changeset),
        changeset(11, &b.changeset),
        entry(12, vec![]),
    ];
    view.apply(&log[..1]).unwrap();
    view.persist().unwrap();
    drop((a, b, view));
    assert!(matches!(
        accounts.prepare([], |_| Ok::<_, AccountsError>(())).await,
        Err(AccountsError::Closed)
    ));

    let mut view = AccountsView::open(dir.path(), LOG).unwrap();
    assert_eq!(view.applied(), lsn(10));
    assert!(view.missing_migrations().unwrap().is_empty());
    view.apply(&log).unwrap();
    view.apply(&log).unwrap();
    assert_eq!(view.applied(), lsn(12));
    let log_ends = lsn(11);
    assert!(view.applied() > log_ends, "a view ahead of its log is seen to be");
    drop(view);
    AccountsView::delete(dir.path()).unwrap();
    assert_eq!(AccountsView::open(dir.path(), LOG).unwrap().applied(), Lsn::ZERO);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_reported_as_damaged() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(FILE_NAME), vec![0x5a; 8192]).unwrap();
    assert!(matches!(
        AccountsView::open(dir.path(), LOG),
        Err(AccountsError::Corrupt(_))
    ));
}

#[test]
fn a_view_of_another_log_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let applied = open(dir.path()).applied();
    let other = AccountsView::open(dir.path(), LogId([8; 16]));
    assert!(matches!(other, Err(AccountsError::Foreign)));
    assert_eq!(AccountsView::open(dir.path(), LOG).unwrap().applied(), applied);
}

#[tokio::test]
async fn a_panic_in_a_transaction_harms_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let view = open(dir.path());
    let accounts = view.handle();
    let outcome = accounts
        .prepare([LockKey::did("did:plc:a")], |tx| -> Result<()> {
            queries::insert_actor(tx, &actor("did:plc:a", "a.test"))?;
            panic!("on purpose");
        })
        .await;
    assert!(matches!(outcome, Err(AccountsError::Panicked)));
    create(&accounts, "did:plc:a", "a.test").await.unwrap();
}

#[tokio::test]
async fn a_transaction_that_ends_itself_stops_the_view() {
    let dir = tempfile::tempdir().unwrap();
    let view = open(dir.path());
    let accounts = view.handle();
    let escaped = accounts
        .prepare([], |tx| {
            queries::insert_actor(tx, &actor("did:plc:a", "a.test"))?;
            Ok::<_, AccountsError>(tx.execute_batch("COMMIT")?)
        })
        .await;
    assert!(
        matches!(escaped, Err(AccountsError::Failed { .. })),
        "{escaped:?}"
    );
    assert!(matches!(
        create(&accounts, "did:plc:b", "b.test").await,
        Err(AccountsError::Failed { .. })
    ));
    drop(view);
    assert!(
        matches!(AccountsView::open(dir.path(), LOG), Err(AccountsError::Foreign)),
        "it must be rebuilt"
    );
}

#[tokio::test]
async fn a_read_sees_one_state_from_beginning_to_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut view = open(dir.path());
    let accounts = view.handle();
    let prepared = create(&accounts, "did:plc:a", "a.test").await.unwrap();
    let (started, has_started) = std::sync::mpsc::channel();
    let (applied, is_applied) = std::sync::mpsc::channel();
    let reading = tokio::spawn(accounts.clone().read_owned(move |conn| {
        let before = queries::count_actors(conn)?.active;
        started.send(()).unwrap();
        is_applied.recv_timeout(Duration::from_secs(20)).unwrap();
        Ok::<_, AccountsError>((before, queries::count_actors(conn)?.active))
    }));
    let view = tokio::task::spawn_blocking(move || {
        has_started.recv_timeout(Duration::from_secs(20)).unwrap();
        view.apply(&[changeset(10, &prepared.changeset)]).unwrap();
        applied.send(()).unwrap();
        view
    })
    .await
    .unwrap();
    assert_eq!(reading.await.unwrap().unwrap(), (0, 0));
    let now = view.handle().read_blocking(queries::count_actors).unwrap();
    assert_eq!(now.active, 1);
    let written = accounts.read(|conn| {
        conn.execute("DELETE FROM actor", [])?;
        Ok::<_, AccountsError>(())
    });
    assert!(
        matches!(written.await, Err(AccountsError::Sqlite(_))),
        "readers cannot write"
    );
}

impl Accounts {
    /// [`Accounts::read`] as a task of its own.
    async fn read_owned<T: Send + 'static>(
        self,
        read: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.read(read).await
    }
}

/// A database with the schema and nothing around it.
pub(super) fn bare() -> Connection {
    let conn = Connection::open_in_memory().unwrap();
    conn.pragma_update(None, "foreign_keys", true).unwrap();
    for step in MIGRATIONS {
        conn.execute_batch(step.sql).unwrap();
    }
    conn
}

#[test]
fn entries_without_account_changes_move_the_position_which_is_written_when_it_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let mut view = open(dir.path());
    let start = view.applied();
    let at = |n: u64| lsn(start.get() + n);
    view.apply(&[entry(at(1).get(), vec![]), entry(at(2).get(), vec![])])
        .unwrap();
    assert_eq!(view.applied(), at(2));
    // A snapshot is pinned at the position that the others of its checkpoint have.
    assert_eq!(
        crate::views::checkpoint::ViewSnapshot::lsn(&view.handle().snapshot().unwrap()),
        at(2)
    );
    view.apply(&[entry(at(3).get(), vec![])]).unwrap();
    view.persist().unwrap();
    view.apply(&[entry(at(4).get(), vec![])]).unwrap();
    drop(view);
    // As after a crash: what was not written is behind, and comes again.
    let mut view = AccountsView::open(dir.path(), LOG).unwrap();
    assert_eq!(view.applied(), at(3));
    view.apply(&[entry(at(3).get(), vec![]), entry(at(4).get(), vec![])])
        .unwrap();
    assert_eq!(view.applied(), at(4));
}
