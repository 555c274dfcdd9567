//! What an entry says, for people and for programs. Account data is secret: of a changeset, only tables and numbers of
//! rows are told.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use engine::entry::{Change, Entry, RepoRemoval};
use engine::log::Lsn;
use engine::repo::car::{CarLimits, CarSlice};
use engine::repo::commit::Commit;
use engine::repo::event::{self, CommitView, Event, RepoOp};
use engine::repo::json::cbor_to_json;
use engine::repo::{Cid, Did};
use rusqlite::fallible_streaming_iterator::FallibleStreamingIterator;
use rusqlite::hooks::Action;
use rusqlite::session::ChangesetIter;
use serde_json::{Map, Value, json};

/// The time an LSN stands for, as text.
#[must_use]
pub fn time(lsn: Lsn) -> String {
    lsn.timestamp().into_iter().map(char::from).collect()
}

/// Whom an entry is about: the public part's DID first, then those of the changes.
#[must_use]
pub fn dids(entry: &Entry) -> Vec<Did> {
    let public = match event::decode(&entry.public) {
        Ok(Event::Commit(view)) => Some(view.repo),
        Ok(Event::Sync(view)) => Some(view.did),
        Ok(Event::Identity(view)) => Some(view.did),
        Ok(Event::Account(view)) => Some(view.did),
        Ok(Event::Info { .. } | Event::Error { .. }) | Err(_) => None,
    };
    let mut dids: Vec<Did> = public.into_iter().collect();
    for change in &entry.changes {
        let did = match change {
            Change::BlobStored { did, .. }
            | Change::RepoRemoved { did }
            | Change::RepoRows { did, .. }
            | Change::RowsGone { did, .. }
            | Change::RepoHead { did, .. }
            | Change::GenerationSwept { did, .. } => did,
            Change::AccountsMigration { .. }
            | Change::AccountsChangeset { .. }
            | Change::ReposNumbered { .. }
            | Change::RemovalsPending { .. }
            | Change::RemovalsGone { .. } => continue,
        };
        if !dids.contains(did) {
            dids.push(did.clone());
        }
    }
    dids
}

/// An entry in a few words.
#[must_use]
pub fn line(entry: &Entry) -> String {
    let mut parts = Vec::new();
    match event::decode(&entry.public) {
        Ok(Event::Commit(view)) => parts.push(commit_line(&view)),
        Ok(Event::Sync(view)) => parts.push(format!("rev {}", view.rev)),
        Ok(Event::Identity(view)) => {
            parts.extend(view.handle.map(|handle| format!("handle {handle}")));
        }
        Ok(Event::Account(view)) => {
            parts.push(
                view.inactive
                    .map_or("active", event::AccountStatus::name)
                    .to_owned(),
            );
        }
        Ok(Event::Info { name, .. } | Event::Error { error: name, .. }) => parts.push(name.to_owned()),
        Err(_) if entry.public.is_empty() => {}
        Err(error) => parts.push(format!("does not decode: {error}")),
    }
    parts.extend(entry.changes.iter().map(change_line));
    parts.join("; ")
}

fn commit_line(view: &CommitView<'_>) -> String {
    let mut text = format!("rev {}", view.rev);
    let mut ops = view.ops.clone();
    if let Some(first) = ops.next() {
        // Writing to a String cannot fail.
        let _ = write!(text, ", {} {}", first.action.name(), first.path);
    }
    match ops.len() {
        0 => {}
        more => {
            let _ = write!(text, " and {more} more");
        }
    }
    text
}

fn change_line(change: &Change) -> String {
    match change {
        Change::AccountsMigration { name, .. } => format!("schema step {name}"),
        Change::AccountsChangeset { bytes } => match rows(bytes) {
            Ok(tables) => {
                let tables: Vec<String> = tables
                    .iter()
                    .map(|(table, rows)| format!("{table} {rows}"))
                    .collect();
                format!("accounts: {}", tables.join(", "))
            }
            Err(error) => format!("accounts: a changeset that does not decode: {error}"),
        },
        Change::BlobStored { cid, size, mime, .. } => format!("blob {cid}, {size} bytes, {mime}"),
        Change::RepoRemoved { did } => format!("repo {did} removed"),
        Change::RepoRows { generation, rows, .. } => {
            format!("{} records of generation {generation}", rows.len())
        }
        Change::RowsGone {
            generation, paths, ..
        } => format!("{} records gone of generation {generation}", paths.len()),
        Change::RepoHead {
            generation, commit, ..
        } => match Commit::decode(commit.clone()) {
            Ok(commit) => format!("generation {generation} live at rev {}", commit.rev()),
            Err(error) => format!("generation {generation} live at a commit that does not decode: {error}"),
        },
        Change::GenerationSwept { generation, .. } => format!("generation {generation} given up"),
        Change::ReposNumbered { next, repos } => {
            format!("{} repos numbered; the next new one is {next}", repos.len())
        }
        Change::RemovalsPending { removals } => format!(
            "{} repos were removed before, of which copies may be left",
            removals.len()
        ),
        Change::RemovalsGone { removals } => {
            format!("the last copies of {} removed repos are gone", removals.len())
        }
    }
}

/// How many rows of a table a changeset touches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowCounts {
    /// New ones.
    pub inserted: u64,
    /// Changed ones.
    pub updated: u64,
    /// Removed ones.
    pub deleted: u64,
}

impl std::fmt::Display for RowCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let signs = [("+", self.inserted), ("~", self.updated), ("-", self.deleted)];
        let mut first = true;
        for (sign, count) in signs.into_iter().filter(|(_, count)| *count > 0) {
            if !std::mem::take(&mut first) {
                f.write_char(' ')?;
            }
            write!(f, "{sign}{count}")?;
        }
        Ok(())
    }
}

/// The tables of a changeset with their numbers of rows; never a value of a row.
///
/// # Errors
/// The bytes are no changeset.
pub fn rows(mut changeset: &[u8]) -> rusqlite::Result<BTreeMap<String, RowCounts>> {
    let mut tables: BTreeMap<String, RowCounts> = BTreeMap::new();
    let input: &mut dyn std::io::Read = &mut changeset;
    let mut items = ChangesetIter::start_strm(&input)?;
    while let Some(item) = items.next()? {
        let op = item.op()?;
        let counts = tables.entry(op.table_name().to_owned()).or_default();
        match op.code() {
            Action::SQLITE_INSERT => counts.inserted += 1,
            Action::SQLITE_DELETE => counts.deleted += 1,
            _ => counts.updated += 1,
        }
    }
    Ok(tables)
}

/// An entry as one flat object: what a list shows.
#[must_use]
pub fn short_json(entry: &Entry) -> Value {
    let dids: Vec<String> = dids(entry).iter().map(ToString::to_string).collect();
    json!({
        "lsn": entry.lsn.get(),
        "time": time(entry.lsn),
        "kind": entry.kind.name(),
        "did": dids.first(),
        "bytes": entry.public.len(),
        "summary": line(entry),
    })
}

/// An entry with all that may be told about it.
#[must_use]
pub fn full_json(entry: &Entry) -> Value {
    let mut object = Map::new();
    object.insert("lsn".into(), entry.lsn.get().into());
    object.insert("time".into(), time(entry.lsn).into());
    object.insert("kind".into(), entry.kind.name().into());
    object.insert("epoch".into(), entry.epoch.0.into());
    object.insert("segment".into(), entry.public_at.segment.hex().into());
    object.insert("offset".into(), entry.public_at.offset.into());
    object.insert("publicBytes".into(), entry.public.len().into());
    if !entry.public.is_empty() {
        object.insert("event".into(), event_json(&entry.public));
    }
    object.insert("changes".into(), entry.changes.iter().map(change_json).collect());
    Value::Object(object)
}

fn event_json(public: &[u8]) -> Value {
    let view = match event::decode(public) {
        Ok(view) => view,
        Err(error) => return json!({ "error": error.to_string() }),
    };
    match view {
        Event::Commit(view) => {
            let ops: Vec<Value> = view.ops.clone().map(op_json).collect();
            let records: Vec<Cid> = view.ops.clone().filter_map(|op| op.action.cid()).collect();
            json!({
                "seq": view.seq, "time": view.time, "repo": view.repo.as_str(), "rev": view.rev.to_string(),
                "since": view.since.map(|rev| rev.to_string()), "commit": view.commit.to_string(),
                "prevData": view.prev_data.map(|cid| cid.to_string()), "ops": ops,
                "blocks": blocks_json(view.blocks, view.commit, &records),
            })
        }
        Event::Sync(view) => {
            let root = CarSlice::new(view.blocks, lenient())
                .ok()
                .and_then(|car| car.roots().first().copied());
            let blocks = root.map_or(Value::Null, |root| blocks_json(view.blocks, root, &[]));
            json!({
                "seq": view.seq, "time": view.time, "did": view.did.as_str(), "rev": view.rev.to_string(),
                "blocks": blocks,
            })
        }
        Event::Identity(view) => json!({
            "seq": view.seq, "time": view.time, "did": view.did.as_str(),
            "handle": view.handle.map(|handle| handle.to_string()),
        }),
        Event::Account(view) => json!({
            "seq": view.seq, "time": view.time, "did": view.did.as_str(),
            "active": view.inactive.is_none(), "status": view.inactive.map(event::AccountStatus::name),
        }),
        Event::Info { name, message } => json!({ "name": name, "message": message }),
        Event::Error { error, message } => json!({ "error": error, "message": message }),
    }
}

fn op_json(op: RepoOp<'_>) -> Value {
    json!({
        "action": op.action.name(), "path": op.path,
        "cid": op.action.cid().map(|cid| cid.to_string()),
        "prev": op.action.prev().map(|cid| cid.to_string()),
    })
}

fn lenient() -> CarLimits {
    CarLimits {
        verify_hashes: false,
        ..CarLimits::default()
    }
}

fn blocks_json(car: &[u8], root: Cid, records: &[Cid]) -> Value {
    let slice = match CarSlice::new(car, lenient()) {
        Ok(slice) => slice,
        Err(error) => return json!({ "error": error.to_string() }),
    };
    let block_json = |cid: Cid, bytes: &[u8]| {
        let role = if cid == root {
            "commit"
        } else if records.contains(&cid) {
            "record"
        } else {
            "node"
        };
        let mut object = json!({
            "cid": cid.to_string(), "role": role, "bytes": bytes.len(), "sound": cid.matches(bytes),
        });
        if role == "record"
            && let Some(object) = object.as_object_mut()
        {
            let mut text = Vec::new();
            let value = cbor_to_json(bytes, &mut text)
                .ok()
                .and_then(|()| serde_json::from_slice(&text).ok());
            object.insert("value".into(), value.unwrap_or(Value::Null));
        }
        if role == "commit"
            && let Ok(commit) = Commit::decode(bytes::Bytes::copy_from_slice(bytes))
            && let Some(object) = object.as_object_mut()
        {
            object.insert("data".into(), commit.data().to_string().into());
            object.insert("rev".into(), commit.rev().to_string().into());
        }
        object
    };
    slice
        .map(|block| match block {
            Ok(block) => block_json(block.cid, block.bytes),
            Err(error) => json!({ "error": error.to_string() }),
        })
        .collect()
}

fn change_json(change: &Change) -> Value {
    match change {
        Change::AccountsMigration { name, sql } => json!({ "schemaStep": name, "sqlBytes": sql.len() }),
        Change::AccountsChangeset { bytes } => match rows(bytes) {
            Ok(tables) => {
                let tables: Map<String, Value> = tables
                    .into_iter()
                    .map(|(table, rows)| {
                        let counts = json!({
                            "inserted": rows.inserted, "updated": rows.updated, "deleted": rows.deleted,
                        });
                        (table, counts)
                    })
                    .collect();
                json!({ "accounts": tables, "bytes": bytes.len() })
            }
            Err(error) => json!({ "accounts": null, "bytes": bytes.len(), "error": error.to_string() }),
        },
        Change::BlobStored {
            did,
            cid,
            mime,
            size,
            created_at_micros,
        } => json!({
            "blobStored": cid.to_string(), "did": did.as_str(), "mime": mime, "size": size,
            "createdAt": time(Lsn::saturating(*created_at_micros)),
        }),
        Change::RepoRemoved { did } => json!({ "repoRemoved": did.as_str() }),
        Change::RepoRows {
            did,
            generation,
            rows,
        } => {
            let rows: Vec<Value> = rows
                .iter()
                .map(|row| {
                    json!({
                        "path": row.path, "rev": row.rev.to_string(), "cid": row.cid.to_string(),
                        "size": row.block.len(),
                    })
                })
                .collect();
            json!({ "repoRows": rows, "did": did.as_str(), "generation": generation })
        }
        Change::RowsGone {
            did,
            generation,
            paths,
        } => json!({ "rowsGone": paths, "did": did.as_str(), "generation": generation }),
        Change::RepoHead {
            did,
            generation,
            commit,
        } => {
            let commit = Commit::decode(commit.clone());
            json!({
                "repoHead": commit.as_ref().ok().map(|commit| commit.cid().to_string()),
                "rev": commit.as_ref().ok().map(|commit| commit.rev().to_string()),
                "did": did.as_str(), "generation": generation,
            })
        }
        Change::GenerationSwept { did, generation } => {
            json!({ "generationSwept": generation, "did": did.as_str() })
        }
        Change::ReposNumbered { next, repos } => {
            let repos: Vec<Value> = repos
                .iter()
                .map(|repo| {
                    json!({
                        "did": repo.did.as_str(), "number": repo.number, "generation": repo.generation,
                        "newest": repo.newest, "staged": repo.staged,
                    })
                })
                .collect();
            json!({ "reposNumbered": repos, "next": next })
        }
        Change::RemovalsPending { removals } => json!({ "removalsPending": removals_json(removals) }),
        Change::RemovalsGone { removals } => json!({ "removalsGone": removals_json(removals) }),
    }
}

fn removals_json(removals: &[RepoRemoval]) -> Vec<Value> {
    removals
        .iter()
        .map(|removal| {
            json!({
                "did": removal.did.as_str(), "lsn": removal.lsn.get(), "removedAt": time(removal.lsn),
            })
        })
        .collect()
}

/// A JSON value for people: one `key: value` a line, nested values further in.
pub fn write_plain(value: &Value, indent: usize, out: &mut dyn std::io::Write) -> std::io::Result<()> {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                if value.as_object().is_some_and(|object| !object.is_empty())
                    || value.as_array().is_some_and(|items| !items.is_empty())
                {
                    writeln!(out, "{pad}{key}:")?;
                    write_plain(value, indent + 2, out)?;
                } else {
                    writeln!(out, "{pad}{key}: {}", plain(value))?;
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                writeln!(out, "{pad}-")?;
                write_plain(item, indent + 2, out)?;
            }
        }
        scalar => writeln!(out, "{pad}{}", plain(scalar))?,
    }
    Ok(())
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.escape_debug().to_string(),
        Value::Null => "none".to_owned(),
        Value::Array(_) | Value::Object(_) => "none".to_owned(),
        other => other.to_string(),
    }
}
