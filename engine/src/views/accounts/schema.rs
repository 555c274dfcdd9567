//! The account database's schema: its steps, which travel through the log, and what must be unique in it.

use rusqlite::Connection;

/// One step of the schema. It becomes a log entry once, and is applied wherever that entry is replayed; a step that
/// has been released is never edited, since the copy in the log is what counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migration {
    /// Unique and never reused; steps are applied in the order of this list.
    pub name: &'static str,
    /// The statements to run. They must not begin or end a transaction.
    pub sql: &'static str,
}

/// Every step of the schema, oldest first.
pub const MIGRATIONS: &[Migration] = &[
    Migration {
        name: "001-reference-tables",
        sql: include_str!("migrations/001-reference-tables.sql"),
    },
    Migration {
        name: "002-signing-keys",
        sql: include_str!("migrations/002-signing-keys.sql"),
    },
    Migration {
        name: "003-plc-intents",
        sql: include_str!("migrations/003-plc-intents.sql"),
    },
    Migration {
        name: "004-restored-repos",
        sql: include_str!("migrations/004-restored-repos.sql"),
    },
    Migration {
        name: "005-identity-intents",
        sql: include_str!("migrations/005-identity-intents.sql"),
    },
    Migration {
        name: "006-account-preferences",
        sql: include_str!("migrations/006-account-preferences.sql"),
    },
    Migration {
        name: "007-reserved-keys",
        sql: include_str!("migrations/007-reserved-keys.sql"),
    },
    Migration {
        name: "008-mail",
        sql: include_str!("migrations/008-mail.sql"),
    },
    Migration {
        name: "009-moderation",
        sql: include_str!("migrations/009-moderation.sql"),
    },
];

/// Columns that together are unique, besides the primary key.
pub(super) struct UniqueKey {
    /// The index that enforces it.
    pub index: &'static str,
    /// Its table.
    pub table: &'static str,
    /// Its columns.
    pub columns: &'static [&'static str],
    /// Whether values that differ only in ASCII case are the same.
    pub fold: bool,
}

/// Every unique index of the schema. A test compares this list with the schema.
pub(super) const UNIQUE_KEYS: &[UniqueKey] = &[
    UniqueKey {
        index: "actor_handle_lower_idx",
        table: "actor",
        columns: &["handle"],
        fold: true,
    },
    UniqueKey {
        index: "account_email_lower_idx",
        table: "account",
        columns: &["email"],
        fold: true,
    },
    UniqueKey {
        index: "email_token_purpose_token_unique",
        table: "email_token",
        columns: &["purpose", "token"],
        fold: false,
    },
    UniqueKey {
        index: "authorization_request_code_idx",
        table: "authorization_request",
        columns: &["code"],
        fold: false,
    },
    UniqueKey {
        index: "device_session_id_idx",
        table: "device",
        columns: &["sessionId"],
        fold: false,
    },
    UniqueKey {
        index: "token_token_id_idx",
        table: "token",
        columns: &["tokenId"],
        fold: false,
    },
    UniqueKey {
        index: "token_current_refresh_token_idx",
        table: "token",
        columns: &["currentRefreshToken"],
        fold: false,
    },
    UniqueKey {
        index: "token_code_idx",
        table: "token",
        columns: &["code"],
        fold: false,
    },
];

/// The view's own tables, in every database from its creation on and never part of a changeset: where the view
/// stands, and which schema steps it has.
pub(super) const OWN_TABLES: &str = "
    CREATE TABLE IF NOT EXISTS view_state (key TEXT NOT NULL PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS view_migration (name TEXT NOT NULL PRIMARY KEY, lsn INTEGER NOT NULL) WITHOUT ROWID;
    INSERT OR IGNORE INTO view_state (key, value) VALUES ('applied', 0), ('persisted', 0);
";

/// Whether a table's rows travel through the log.
pub(super) fn is_replicated(table: &str) -> bool {
    table != "view_state" && table != "view_migration" && !table.starts_with("sqlite_")
}

/// What a changeset's column numbers mean, read from the database itself because migrations may move columns.
#[derive(Debug, Default)]
pub(super) struct Layout {
    pub tables: Vec<TableLayout>,
}

/// One replicated table.
#[derive(Debug)]
pub(super) struct TableLayout {
    pub name: String,
    /// Unique keys: the index's name, column numbers, whether case is folded.
    pub unique: Vec<(&'static str, Vec<usize>, bool)>,
    /// Foreign keys: the parent table and the child's column number. All parents here have one-column keys.
    pub parents: Vec<(String, usize)>,
}

impl Layout {
    /// Reads the layout of the schema as it is now.
    pub fn read(conn: &Connection) -> rusqlite::Result<Layout> {
        let mut layout = Layout::default();
        let mut tables = conn.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")?;
        let names = tables.query_map([], |row| row.get::<_, String>(0))?;
        for name in names {
            let name = name?;
            if !is_replicated(&name) {
                continue;
            }
            let mut columns = conn.prepare("SELECT name FROM pragma_table_info(?1) ORDER BY cid")?;
            let columns: Vec<String> = columns
                .query_map([&name], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            let at = |wanted: &str| columns.iter().position(|column| column == wanted);
            let mut unique = Vec::new();
            for key in UNIQUE_KEYS.iter().filter(|key| key.table == name) {
                if let Some(numbers) = key
                    .columns
                    .iter()
                    .map(|column| at(column))
                    .collect::<Option<Vec<_>>>()
                {
                    unique.push((key.index, numbers, key.fold));
                }
            }
            let mut foreign = conn.prepare("SELECT \"table\", \"from\" FROM pragma_foreign_key_list(?1)")?;
            let mut parents = Vec::new();
            for pair in foreign.query_map([&name], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))? {
                let (parent, column): (String, String) = pair?;
                if let Some(number) = at(&column) {
                    parents.push((parent, number));
                }
            }
            layout.tables.push(TableLayout {
                name,
                unique,
                parents,
            });
        }
        Ok(layout)
    }

    /// The layout of one table.
    pub fn table(&self, name: &str) -> Option<&TableLayout> {
        self.tables.iter().find(|table| table.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn fresh() -> Connection {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(OWN_TABLES).unwrap();
        for step in MIGRATIONS {
            conn.execute_batch(step.sql).unwrap();
        }
        conn
    }

    #[test]
    fn every_unique_index_of_the_schema_is_known() {
        let conn = fresh();
        let mut indexes = conn
            .prepare(
                "SELECT i.name FROM sqlite_schema AS t, pragma_index_list(t.name) AS i
                 WHERE t.type = 'table' AND i.\"unique\" = 1 AND i.origin <> 'pk'",
            )
            .unwrap();
        let found: BTreeSet<String> = indexes
            .query_map([], |row| row.get(0))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let known: BTreeSet<String> = UNIQUE_KEYS.iter().map(|key| key.index.to_owned()).collect();
        assert_eq!(found, known);
        let layout = Layout::read(&conn).unwrap();
        let resolved: usize = layout.tables.iter().map(|table| table.unique.len()).sum();
        assert_eq!(resolved, UNIQUE_KEYS.len(), "a listed column does not exist");
    }

    #[test]
    fn every_replicated_table_has_a_primary_key_without_nulls_and_one_column_parents() {
        let conn = fresh();
        for table in Layout::read(&conn).unwrap().tables {
            let (keys, nullable): (u32, u32) = conn
                .query_row(
                    "SELECT count(*), coalesce(sum(\"notnull\" = 0), 0) FROM pragma_table_info(?1) WHERE pk > 0",
                    [&table.name],
                    |row| Ok((row.get(0)?, row.get(1)?)),
                )
                .unwrap();
            assert!(keys > 0, "{} has no primary key", table.name);
            assert_eq!(nullable, 0, "{} has a primary key that may be NULL", table.name);
            let composite: u32 = conn
                .query_row(
                    "SELECT count(*) FROM pragma_foreign_key_list(?1) WHERE seq > 0",
                    [&table.name],
                    |row| row.get(0),
                )
                .unwrap();
            assert_eq!(composite, 0, "{} has a composite foreign key", table.name);
        }
    }

    #[test]
    fn names_of_steps_are_unique_and_ascending() {
        assert!(MIGRATIONS.windows(2).all(|pair| pair[0].name < pair[1].name));
    }
}
