//! What of the account database must not go back in time: the account tables of then and of now are compared row by row.
//!
//! | table | what the restored store has |
//! |---|---|
//! | `actor` | accounts of then that there are still; taken down or deactivated if they were then or are now; the handle of now |
//! | `account`, `signing_key` | the row of now: password, address, and the key that the DID's document names |
//! | `invite_code` | the row of now of codes of then |
//! | `invite_code_use` | uses of then and of now |
//! | `subject_takedown` | what was hidden then or is hidden now, of accounts of then; the row of now first |
//! | `admin_audit` | the rows of then and of now |
//! | all others: sessions, app passwords, tokens, devices, intents | rows of then that are the same now |
//!
//! So nothing that was revoked comes back, nothing that was granted since is kept, and what the outside world (a DID's document)
//! knows of an account is not rewound. A table that is new falls under the last rule.

use std::collections::{BTreeMap, BTreeSet};

use engine::repo::event::AccountStatus;
use rusqlite::Connection;
use rusqlite::types::Value;

/// Tables that rows of others refer to come last.
const DELETED_FIRST: [&str; 6] = [
    "used_refresh_token",
    "token",
    "account_device",
    "device_account",
    "authorized_client",
    "device",
];
/// Tables with a rule of their own.
const SPECIAL: [&str; 8] = [
    "actor",
    "account",
    "signing_key",
    "invite_code",
    "invite_code_use",
    "restored_repo",
    "subject_takedown",
    "admin_audit",
];

/// One statement on the account database of the restored store.
#[derive(Clone, Debug)]
pub struct Statement {
    pub sql: String,
    pub params: Vec<Value>,
}

/// What is to be done, and what there is to tell.
#[derive(Debug, Default)]
pub struct Plan {
    /// In this order. A transaction may touch a row once, which those of one list do.
    pub statements: Vec<Statement>,
    /// Afterwards.
    pub last: Vec<Statement>,
    /// Accounts of then that were deleted since.
    pub deleted: Vec<String>,
    /// Accounts that came later.
    pub unborn: Vec<String>,
    /// Accounts of then that there are still.
    pub kept: BTreeSet<String>,
    /// Accounts whose state will not be the one that was told last, and what it will be.
    pub statuses: Vec<(String, Option<AccountStatus>)>,
    /// Accounts whose handle or key has changed since then, and the handle.
    pub identities: Vec<(String, Option<String>)>,
    /// How many rows of each table are changed or removed.
    pub rows: BTreeMap<String, u64>,
}

/// A table with all its rows, by primary key.
struct Table {
    name: String,
    columns: Vec<String>,
    keys: Vec<usize>,
    rows: BTreeMap<String, Vec<Value>>,
}

impl Table {
    fn load(conn: &Connection, name: &str) -> rusqlite::Result<Table> {
        let mut info = conn.prepare("SELECT name, pk FROM pragma_table_info(?1) ORDER BY cid")?;
        let columns: Vec<(String, u32)> = info
            .query_map([name], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        let mut keys: Vec<(u32, usize)> = columns
            .iter()
            .enumerate()
            .filter(|(_, (_, place))| *place > 0)
            .map(|(at, (_, place))| (*place, at))
            .collect();
        keys.sort_unstable();
        let mut table = Table {
            name: name.to_owned(),
            columns: columns.into_iter().map(|(name, _)| name).collect(),
            keys: keys.into_iter().map(|(_, at)| at).collect(),
            rows: BTreeMap::new(),
        };
        let mut all = conn.prepare(&format!("SELECT * FROM \"{name}\""))?;
        let mut rows = all.query([])?;
        while let Some(row) = rows.next()? {
            let values: Vec<Value> = (0..table.columns.len())
                .map(|at| row.get(at))
                .collect::<rusqlite::Result<_>>()?;
            table.rows.insert(table.key_of(&values), values);
        }
        Ok(table)
    }

    fn key_of(&self, row: &[Value]) -> String {
        let parts: Vec<Option<&Value>> = self.keys.iter().map(|at| row.get(*at)).collect();
        format!("{parts:?}")
    }

    fn at(&self, column: &str) -> Option<usize> {
        self.columns.iter().position(|name| name == column)
    }

    fn value<'r>(&self, row: &'r [Value], column: &str) -> &'r Value {
        self.at(column).and_then(|at| row.get(at)).unwrap_or(&Value::Null)
    }

    fn text(&self, row: &[Value], column: &str) -> Option<String> {
        match self.value(row, column) {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        }
    }

    /// `"a" = ? AND "b" = ?`, and the values.
    fn this(&self, row: &[Value]) -> (String, Vec<Value>) {
        let names = self.keys.iter().filter_map(|at| self.columns.get(*at));
        let names: Vec<String> = names.map(|name| format!("\"{name}\" = ?")).collect();
        let values = self.keys.iter().filter_map(|at| row.get(*at).cloned());
        (names.join(" AND "), values.collect())
    }

    fn delete(&self, row: &[Value]) -> Statement {
        let (this, params) = self.this(row);
        Statement {
            sql: format!("DELETE FROM \"{}\" WHERE {this}", self.name),
            params,
        }
    }

    /// Sets `columns` of the row with the key of `row` to what `row` has.
    fn set(&self, row: &[Value], columns: &[&str]) -> Statement {
        let (this, key) = self.this(row);
        let names: Vec<String> = columns.iter().map(|name| format!("\"{name}\" = ?")).collect();
        let mut params: Vec<Value> = columns.iter().map(|name| self.value(row, name).clone()).collect();
        params.extend(key);
        Statement {
            sql: format!("UPDATE \"{}\" SET {} WHERE {this}", self.name, names.join(", ")),
            params,
        }
    }

    fn insert(&self, row: &[Value]) -> Statement {
        let places = vec!["?"; self.columns.len()].join(", ");
        Statement {
            sql: format!("INSERT INTO \"{}\" VALUES ({places})", self.name),
            params: row.to_vec(),
        }
    }

    fn all_but_keys(&self) -> Vec<&str> {
        let columns = self.columns.iter().enumerate();
        let others = columns.filter(|(at, _)| !self.keys.contains(at));
        others.map(|(_, name)| name.as_str()).collect()
    }
}

/// Compares the account database of then with that of now. Both have the schema of this program.
pub fn compare(then: &Connection, now: &Connection) -> rusqlite::Result<Plan> {
    let mut plan = Plan::default();
    let mut names = then.prepare(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'
         AND name NOT IN ('view_state', 'view_migration') ORDER BY name",
    )?;
    let mut names: Vec<String> = names
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    names.retain(|name| !SPECIAL.contains(&name.as_str()));
    let rank = |name: &String| DELETED_FIRST.iter().position(|first| first == name);
    names.sort_by_key(|name| rank(name).unwrap_or(DELETED_FIRST.len()));
    for name in names {
        let (then, now) = (Table::load(then, &name)?, Table::load(now, &name)?);
        for (key, row) in &then.rows {
            if now.rows.get(key) != Some(row) {
                plan.change(&name, then.delete(row));
            }
        }
    }
    let load = |name| Ok::<_, rusqlite::Error>((Table::load(then, name)?, Table::load(now, name)?));
    actors(&mut plan, &load("actor")?);
    logins(&mut plan, &load("account")?);
    keys(&mut plan, &load("signing_key")?);
    invites(&mut plan, &load("invite_code")?, &load("invite_code_use")?);
    takedowns(&mut plan, &load("subject_takedown")?);
    audit(&mut plan, &load("admin_audit")?);
    Ok(plan)
}

impl Plan {
    fn change(&mut self, table: &str, statement: Statement) {
        *self.rows.entry(table.to_owned()).or_default() += 1;
        self.statements.push(statement);
    }
}

fn or(first: &Value, second: &Value) -> Value {
    match first {
        Value::Null => second.clone(),
        value => value.clone(),
    }
}

fn status_of(table: &Table, row: &[Value]) -> Option<AccountStatus> {
    if table.value(row, "takedownRef") != &Value::Null {
        Some(AccountStatus::Takendown)
    } else if table.value(row, "deactivatedAt") != &Value::Null {
        Some(AccountStatus::Deactivated)
    } else {
        None
    }
}

/// Unique values go first to something that nobody has, since two accounts may have exchanged theirs.
fn actors(plan: &mut Plan, (then, now): &(Table, Table)) {
    for (key, row) in &now.rows {
        if !then.rows.contains_key(key) {
            plan.unborn.extend(now.text(row, "did"));
        }
    }
    for (key, row) in &then.rows {
        let Some(did) = then.text(row, "did") else {
            continue;
        };
        let Some(today) = now.rows.get(key) else {
            plan.deleted.push(did);
            continue;
        };
        let mut after = row.clone();
        let mut put = |column: &str, value: Value| {
            if let Some(place) = then.at(column).and_then(|at| after.get_mut(at)) {
                *place = value;
            }
        };
        put("handle", now.value(today, "handle").clone());
        for column in ["takedownRef", "deactivatedAt", "deleteAfter"] {
            put(column, or(now.value(today, column), then.value(row, column)));
        }
        if then.value(row, "handle") != then.value(&after, "handle") {
            plan.identities.push((did.clone(), now.text(today, "handle")));
            let (this, params) = then.this(row);
            let sql = format!("UPDATE actor SET handle = NULL WHERE {this}");
            plan.statements.push(Statement { sql, params });
        }
        if after != *row {
            *plan.rows.entry(then.name.clone()).or_default() += 1;
            let columns = ["handle", "takedownRef", "deactivatedAt", "deleteAfter"];
            plan.last.push(then.set(&after, &columns));
        }
        let status = status_of(then, &after);
        if status != status_of(now, today) {
            plan.statuses.push((did.clone(), status));
        }
        plan.kept.insert(did);
    }
}

fn logins(plan: &mut Plan, (then, now): &(Table, Table)) {
    for (key, row) in &now.rows {
        let kept = now.text(row, "did").is_some_and(|did| plan.kept.contains(&did));
        if !kept {
            continue;
        }
        match then.rows.get(key) {
            Some(before) if before == row => {}
            Some(before) => {
                if then.value(before, "email") != now.value(row, "email") {
                    let (this, params) = then.this(before);
                    let sql = format!("UPDATE account SET email = did || '@restore.invalid' WHERE {this}");
                    plan.statements.push(Statement { sql, params });
                }
                *plan.rows.entry(then.name.clone()).or_default() += 1;
                plan.last.push(then.set(row, &then.all_but_keys()));
            }
            None => {
                *plan.rows.entry(then.name.clone()).or_default() += 1;
                plan.last.push(then.insert(row));
            }
        }
    }
    for (key, row) in &then.rows {
        let kept = then.text(row, "did").is_some_and(|did| plan.kept.contains(&did));
        if kept && !now.rows.contains_key(key) {
            plan.change("account", then.delete(row));
        }
    }
}

fn keys(plan: &mut Plan, (then, now): &(Table, Table)) {
    for (key, row) in &then.rows {
        let did = then.text(row, "did").unwrap_or_default();
        match now.rows.get(key) {
            Some(today) if today == row => {}
            Some(today) if plan.kept.contains(&did) => {
                if then.value(row, "publicKey") != now.value(today, "publicKey")
                    && !plan.identities.iter().any(|(known, _)| *known == did)
                {
                    plan.identities.push((did, None));
                }
                plan.change("signing_key", then.set(today, &then.all_but_keys()));
            }
            // An account that is deleted takes its key with it.
            _ if plan.deleted.contains(&did) => {}
            _ => plan.change("signing_key", then.delete(row)),
        }
    }
}

/// What was shown again since stays hidden: it may be asked for anew.
fn takedowns(plan: &mut Plan, (then, now): &(Table, Table)) {
    for (key, row) in &now.rows {
        let kept = now.text(row, "did").is_some_and(|did| plan.kept.contains(&did));
        match then.rows.get(key) {
            Some(before) if before == row => {}
            Some(_) => plan.change("subject_takedown", then.set(row, &then.all_but_keys())),
            None if kept => plan.change("subject_takedown", then.insert(row)),
            None => {}
        }
    }
}

fn audit(plan: &mut Plan, (then, now): &(Table, Table)) {
    for (key, row) in &now.rows {
        if !then.rows.contains_key(key) {
            plan.change("admin_audit", then.insert(row));
        }
    }
}

fn invites(plan: &mut Plan, (then, now): &(Table, Table), (uses_then, uses_now): &(Table, Table)) {
    for (key, row) in &then.rows {
        match now.rows.get(key) {
            Some(today) if today == row => {}
            Some(today) => plan.change("invite_code", then.set(today, &then.all_but_keys())),
            None => plan.change("invite_code", then.delete(row)),
        }
    }
    for (key, row) in &uses_now.rows {
        let code = uses_now.value(row, "code");
        let known = then.rows.values().any(|row| then.value(row, "code") == code);
        if known && !uses_then.rows.contains_key(key) {
            plan.change("invite_code_use", uses_then.insert(row));
        }
    }
}
