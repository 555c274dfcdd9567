//! Two account databases, table by table and row by row. Their rows are secret: of a row that differs, no more is told
//! than its table and as much of its key as helps to find it.

use std::path::Path;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, Row};

/// Key columns that are told as they are.
const OPEN_COLUMNS: &[&str] = &[
    "did",
    "name",
    "purpose",
    "createdBy",
    "forAccount",
    "usedBy",
    "subjectDid",
];

/// Something in which two databases are not the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableDifference {
    /// Table and row.
    pub place: String,
    /// How it differs.
    pub what: &'static str,
}

/// Where `here` is not what `expected` says, at most `limit` rows.
///
/// # Errors
/// A database is damaged or cannot be opened.
pub fn differences(here: &Path, expected: &Path, limit: usize) -> rusqlite::Result<Vec<TableDifference>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(here, flags)?;
    conn.execute("ATTACH ?1 AS expected", [expected.to_string_lossy()])?;
    let mut found = Vec::new();
    let mut integrity = conn.prepare("PRAGMA main.quick_check(1)")?;
    let sound: String = integrity.query_row([], |row| row.get(0))?;
    if sound != "ok" {
        found.push(TableDifference {
            place: "file".to_owned(),
            what: "SQLite finds it damaged",
        });
    }
    let schema = "SELECT type || ' ' || name, sql FROM {}.sqlite_schema WHERE name NOT LIKE 'sqlite_%'";
    for (left, right, what) in sides("is not in the log's schema", "of the log's schema is not there") {
        let (left, right) = (schema.replace("{}", left), schema.replace("{}", right));
        let mut rows = conn.prepare(&format!("{left} EXCEPT {right}"))?;
        let names = rows.query_map([], |row| row.get::<_, String>(0))?;
        for name in names {
            found.push(TableDifference { place: name?, what });
        }
    }
    if !found.is_empty() {
        found.truncate(limit);
        return Ok(found);
    }
    let mut tables = conn.prepare(
        "SELECT name FROM expected.sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' \
         AND name <> 'view_state' ORDER BY name",
    )?;
    let tables: Vec<String> = tables
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    for table in tables {
        let keys = key_columns(&conn, &table)?;
        let quoted = table.replace('"', "\"\"");
        // A schema step has another place in a log that was compacted since.
        let columns = if table == "view_migration" { "name" } else { "*" };
        for (left, right, what) in sides(
            "is not what the log gives",
            "of the log is not there, or not like this",
        ) {
            let room = limit.saturating_sub(found.len());
            let query = format!(
                "SELECT {columns} FROM {left}.\"{quoted}\" EXCEPT SELECT {columns} FROM {right}.\"{quoted}\" LIMIT {room}"
            );
            let mut rows = conn.prepare(&query)?;
            let places = rows.query_map([], |row| Ok(format!("table {table} row {}", key(row, &keys))))?;
            for place in places {
                found.push(TableDifference { place: place?, what });
            }
        }
    }
    Ok(found)
}

/// What is here and not expected, and the other way round.
fn sides(surplus: &'static str, missing: &'static str) -> [(&'static str, &'static str, &'static str); 2] {
    [("main", "expected", surplus), ("expected", "main", missing)]
}

/// Number and name of the key's columns.
fn key_columns(conn: &Connection, table: &str) -> rusqlite::Result<Vec<(usize, String)>> {
    let mut columns =
        conn.prepare("SELECT cid, name FROM pragma_table_info(?1, 'expected') WHERE pk > 0 ORDER BY pk")?;
    let columns = columns.query_map([table], |row| {
        Ok((usize::try_from(row.get::<_, i64>(0)?).unwrap_or(0), row.get(1)?))
    })?;
    columns.collect()
}

fn key(row: &Row<'_>, columns: &[(usize, String)]) -> String {
    let parts = columns.iter().map(|(at, name)| match row.get_ref(*at) {
        Ok(ValueRef::Text(text)) if OPEN_COLUMNS.contains(&name.as_str()) => {
            format!("{name}={}", String::from_utf8_lossy(text))
        }
        Ok(ValueRef::Text(text)) => {
            let start: String = String::from_utf8_lossy(text).chars().take(4).collect();
            format!("{name}={start}… ({} bytes)", text.len())
        }
        Ok(ValueRef::Integer(number)) => format!("{name}={number}"),
        Ok(ValueRef::Blob(bytes)) => format!("{name}=({} bytes)", bytes.len()),
        Ok(ValueRef::Null | ValueRef::Real(_)) | Err(_) => format!("{name}=?"),
    });
    parts.collect::<Vec<_>>().join(" ")
}
