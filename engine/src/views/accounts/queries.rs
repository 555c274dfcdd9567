//! The statements of the account database, as plain functions over a connection: reads for
//! [`Accounts::read`](super::Accounts::read), reads and writes for [`Accounts::prepare`](super::Accounts::prepare).
//!
//! All fail with [`AccountsError`]: [`AccountsError::Conflict`] where a row would break a unique key, else as SQLite
//! does. `did`, `handle` and the like are taken as they are; parsing them is the caller's part.
#![allow(clippy::missing_errors_doc, reason = "the module header says it for all")]

use rusqlite::{Connection, OptionalExtension, Params, Row, params};

use super::error::AccountsError;
use super::model::{
    Account, Actor, ActorCounts, AppPassword, Login, PasswordHash, RefreshToken, Rotation, SigningKey,
};
use super::time::iso_time;

type Result<T> = std::result::Result<T, AccountsError>;

/// How long a refresh token stays good after its first use, microseconds: two hours. A client whose answer was lost
/// asks again and gets the same successor.
pub const REFRESH_GRACE_MICROS: u64 = 2 * 60 * 60 * 1_000_000;

const ACCOUNT: &str = "SELECT a.did, a.handle, a.createdAt, a.takedownRef, a.deactivatedAt, a.deleteAfter,
        l.email, l.passwordScrypt, l.emailConfirmedAt, l.invitesDisabled
    FROM actor AS a LEFT JOIN account AS l ON l.did = a.did ";

fn one<T>(
    conn: &Connection,
    sql: &str,
    params: impl Params,
    row: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Option<T>> {
    Ok(conn.prepare_cached(sql)?.query_row(params, row).optional()?)
}

fn all<T>(
    conn: &Connection,
    sql: &str,
    params: impl Params,
    row: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>> {
    let mut statement = conn.prepare_cached(sql)?;
    Ok(statement
        .query_map(params, row)?
        .collect::<rusqlite::Result<_>>()?)
}

fn run(conn: &Connection, sql: &str, params: impl Params) -> Result<usize> {
    Ok(conn.prepare_cached(sql)?.execute(params)?)
}

fn actor_of(row: &Row<'_>) -> rusqlite::Result<Actor> {
    Ok(Actor {
        did: row.get(0)?,
        handle: row.get(1)?,
        created_at: row.get(2)?,
        takedown_ref: row.get(3)?,
        deactivated_at: row.get(4)?,
        delete_after: row.get(5)?,
    })
}

fn account_of(row: &Row<'_>) -> rusqlite::Result<Account> {
    let email: Option<String> = row.get(6)?;
    let login = match email {
        None => None,
        Some(email) => Some(Login {
            email,
            password: PasswordHash(row.get(7)?),
            email_confirmed_at: row.get(8)?,
            invites_disabled: row.get(9)?,
        }),
    };
    Ok(Account {
        actor: actor_of(row)?,
        login,
    })
}

/// The account with this DID, whatever its status.
pub fn account_by_did(conn: &Connection, did: &str) -> Result<Option<Account>> {
    one(conn, &format!("{ACCOUNT} WHERE a.did = ?1"), [did], account_of)
}

/// The account with this handle, whatever its case and status.
pub fn account_by_handle(conn: &Connection, handle: &str) -> Result<Option<Account>> {
    one(
        conn,
        &format!("{ACCOUNT} WHERE lower(a.handle) = lower(?1)"),
        [handle],
        account_of,
    )
}

/// The account with this e-mail address, whatever its case and status.
pub fn account_by_email(conn: &Connection, email: &str) -> Result<Option<Account>> {
    one(
        conn,
        &format!("{ACCOUNT} WHERE lower(l.email) = lower(?1)"),
        [email],
        account_of,
    )
}

/// Whether anything of an account is hidden by moderators. A follower of a writer that is older than this program has no such
/// table yet.
pub fn has_takedowns(conn: &Connection, did: &str) -> Result<bool> {
    let sql = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'subject_takedown'";
    if !conn.prepare_cached(sql)?.exists([])? {
        return Ok(false);
    }
    let sql = "SELECT 1 FROM subject_takedown WHERE did = ?1 LIMIT 1";
    Ok(conn.prepare_cached(sql)?.exists([did])?)
}

/// Up to `limit` actors in order of creation, then DID, after the one that was created at `after.0` with DID `after.1`.
pub fn list_actors(conn: &Connection, after: Option<(&str, &str)>, limit: u32) -> Result<Vec<Actor>> {
    let (created_at, did) = after.unwrap_or(("", ""));
    let sql = "SELECT did, handle, createdAt, takedownRef, deactivatedAt, deleteAfter FROM actor
        WHERE (createdAt, did) > (?1, ?2) ORDER BY createdAt, did LIMIT ?3";
    all(conn, sql, params![created_at, did, limit], actor_of)
}

/// How many actors there are. Reads the whole table.
pub fn count_actors(conn: &Connection) -> Result<ActorCounts> {
    let sql =
        "SELECT count(*), count(takedownRef), count(CASE WHEN takedownRef IS NULL THEN deactivatedAt END)
        FROM actor";
    let counts = one(conn, sql, [], |row| {
        let (total, takendown, deactivated) = (
            row.get::<_, u32>(0)?.into(),
            row.get::<_, u32>(1)?.into(),
            row.get::<_, u32>(2)?.into(),
        );
        Ok(ActorCounts {
            active: u64::saturating_sub(total, takendown + deactivated),
            deactivated,
            takendown,
        })
    })?;
    Ok(counts.unwrap_or_default())
}

/// Adds an actor.
pub fn insert_actor(conn: &Connection, actor: &Actor) -> Result<()> {
    let sql = "INSERT INTO actor (did, handle, createdAt, takedownRef, deactivatedAt, deleteAfter)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let Actor {
        did,
        handle,
        created_at,
        takedown_ref,
        deactivated_at,
        delete_after,
    } = actor;
    run(
        conn,
        sql,
        params![
            did,
            handle,
            created_at,
            takedown_ref,
            deactivated_at,
            delete_after
        ],
    )?;
    Ok(())
}

/// Gives an actor a login. The e-mail address is stored in lower case.
pub fn insert_login(conn: &Connection, did: &str, login: &Login) -> Result<()> {
    let sql = "INSERT INTO account (did, email, passwordScrypt, emailConfirmedAt, invitesDisabled)
        VALUES (?1, ?2, ?3, ?4, ?5)";
    let email = login.email.to_lowercase();
    run(
        conn,
        sql,
        params![
            did,
            email,
            login.password.0,
            login.email_confirmed_at,
            login.invites_disabled
        ],
    )?;
    Ok(())
}

/// Changes the handle. False if there is no such actor.
pub fn set_handle(conn: &Connection, did: &str, handle: &str) -> Result<bool> {
    Ok(run(conn, "UPDATE actor SET handle = ?2 WHERE did = ?1", [did, handle])? > 0)
}

/// Changes the password's hash. False if the account has no login.
pub fn set_password(conn: &Connection, did: &str, password: &PasswordHash) -> Result<bool> {
    Ok(run(
        conn,
        "UPDATE account SET passwordScrypt = ?2 WHERE did = ?1",
        [did, &password.0],
    )? > 0)
}

/// Takes an account down (`Some` reference) or brings it back. False if there is no such actor.
pub fn set_takedown(conn: &Connection, did: &str, takedown_ref: Option<&str>) -> Result<bool> {
    Ok(run(
        conn,
        "UPDATE actor SET takedownRef = ?2 WHERE did = ?1",
        params![did, takedown_ref],
    )? > 0)
}

/// Deactivates an account as of `at`. False if there is no such actor.
pub fn deactivate(conn: &Connection, did: &str, at: &str, delete_after: Option<&str>) -> Result<bool> {
    let sql = "UPDATE actor SET deactivatedAt = ?2, deleteAfter = ?3 WHERE did = ?1";
    Ok(run(conn, sql, params![did, at, delete_after])? > 0)
}

/// Activates an account. False if there is no such actor or it is taken down.
pub fn activate(conn: &Connection, did: &str) -> Result<bool> {
    let sql =
        "UPDATE actor SET deactivatedAt = NULL, deleteAfter = NULL WHERE did = ?1 AND takedownRef IS NULL";
    Ok(run(conn, sql, [did])? > 0)
}

/// Deletes everything that this database knows of an account. False if there was no such actor.
pub fn delete_account(conn: &Connection, did: &str) -> Result<bool> {
    const OWNED: [&str; 13] = [
        "DELETE FROM identity_intent WHERE did = ?1",
        "DELETE FROM subject_takedown WHERE did = ?1",
        "DELETE FROM repo_root WHERE did = ?1",
        "DELETE FROM email_token WHERE did = ?1",
        "DELETE FROM mail WHERE did = ?1",
        "DELETE FROM refresh_token WHERE did = ?1",
        "DELETE FROM app_password WHERE did = ?1",
        "DELETE FROM token WHERE did = ?1",
        "DELETE FROM authorization_request WHERE did = ?1",
        "DELETE FROM device_account WHERE did = ?1",
        "DELETE FROM signing_key WHERE did = ?1",
        "DELETE FROM account_pref WHERE did = ?1",
        "DELETE FROM account WHERE did = ?1",
    ];
    for sql in OWNED {
        run(conn, sql, [did])?;
    }
    Ok(run(conn, "DELETE FROM actor WHERE did = ?1", [did])? > 0)
}

fn refresh_token_of(row: &Row<'_>) -> rusqlite::Result<RefreshToken> {
    Ok(RefreshToken {
        id: row.get(0)?,
        did: row.get(1)?,
        expires_at: row.get(2)?,
        next_id: row.get(3)?,
        app_password_name: row.get(4)?,
    })
}

/// The refresh token whose `jti` has this hash.
pub fn refresh_token(conn: &Connection, id: &str) -> Result<Option<RefreshToken>> {
    let sql = "SELECT id, did, expiresAt, nextId, appPasswordName FROM refresh_token WHERE id = ?1";
    one(conn, sql, [id], refresh_token_of)
}

/// Adds a refresh token; nothing happens if it is there.
pub fn insert_refresh_token(conn: &Connection, token: &RefreshToken) -> Result<()> {
    let sql = "INSERT INTO refresh_token (id, did, expiresAt, nextId, appPasswordName)
        VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (id) DO NOTHING";
    let RefreshToken {
        id,
        did,
        expires_at,
        next_id,
        app_password_name,
    } = token;
    run(
        conn,
        sql,
        params![id, did, expires_at, next_id, app_password_name],
    )?;
    Ok(())
}

/// Rotates a refresh token: expired tokens of the account go, the presented one lives on for at most the
/// [grace time](REFRESH_GRACE_MICROS), which its further use does not extend, and a successor with `next_id` that is
/// good until `next_expires_at` takes its place. A token that was rotated before keeps its successor.
///
/// `next_id`, like `id`, is the hash of a `jti`. A client that repeats its refresh must get the same `jti` again, and a
/// hash cannot be turned back into one, so derive the successor's `jti` from the presented one under a server secret.
///
/// Needs the lock keys of the token and of the account.
pub fn rotate_refresh_token(
    conn: &Connection,
    id: &str,
    next_id: &str,
    now_micros: u64,
    next_expires_at: &str,
) -> Result<Rotation> {
    let Some(token) = refresh_token(conn, id)? else {
        return Ok(Rotation::Revoked);
    };
    let now = iso_time(now_micros);
    delete_expired_refresh_tokens(conn, &token.did, &now)?;
    if token.expires_at <= now {
        return Ok(Rotation::Expired);
    }
    let grace_ends = iso_time(now_micros.saturating_add(REFRESH_GRACE_MICROS));
    let expires_at = grace_ends.min(token.expires_at.clone());
    let next_id = token.next_id.clone().unwrap_or_else(|| next_id.to_owned());
    let sql = "UPDATE refresh_token SET expiresAt = ?2, nextId = ?3 WHERE id = ?1";
    run(conn, sql, [id, &expires_at, &next_id])?;
    insert_refresh_token(
        conn,
        &RefreshToken {
            id: next_id.clone(),
            did: token.did.clone(),
            expires_at: next_expires_at.to_owned(),
            next_id: None,
            app_password_name: token.app_password_name.clone(),
        },
    )?;
    Ok(Rotation::Rotated { token, next_id })
}

/// Ends a session. False if there is no such token.
pub fn delete_refresh_token(conn: &Connection, id: &str) -> Result<bool> {
    Ok(run(conn, "DELETE FROM refresh_token WHERE id = ?1", [id])? > 0)
}

/// Ends all sessions of an account; how many tokens that were.
pub fn delete_refresh_tokens_of(conn: &Connection, did: &str) -> Result<usize> {
    run(conn, "DELETE FROM refresh_token WHERE did = ?1", [did])
}

/// Ends all sessions that an app password began; how many tokens that were.
pub fn delete_refresh_tokens_of_app_password(conn: &Connection, did: &str, name: &str) -> Result<usize> {
    run(
        conn,
        "DELETE FROM refresh_token WHERE did = ?1 AND appPasswordName = ?2",
        [did, name],
    )
}

/// Deletes an account's refresh tokens that expired at or before `now`; how many that were.
pub fn delete_expired_refresh_tokens(conn: &Connection, did: &str, now: &str) -> Result<usize> {
    run(
        conn,
        "DELETE FROM refresh_token WHERE did = ?1 AND expiresAt <= ?2",
        [did, now],
    )
}

fn app_password_of(row: &Row<'_>) -> rusqlite::Result<AppPassword> {
    Ok(AppPassword {
        name: row.get(0)?,
        created_at: row.get(1)?,
        privileged: row.get(2)?,
    })
}

/// The app password of an account with this hash (its salt is a function of the DID, so equality decides).
pub fn app_password_by_hash(
    conn: &Connection,
    did: &str,
    hash: &PasswordHash,
) -> Result<Option<AppPassword>> {
    let sql = "SELECT name, createdAt, privileged FROM app_password WHERE did = ?1 AND passwordScrypt = ?2";
    one(conn, sql, [did, &hash.0], app_password_of)
}

/// The app password of an account with this name.
pub fn app_password_by_name(conn: &Connection, did: &str, name: &str) -> Result<Option<AppPassword>> {
    let sql = "SELECT name, createdAt, privileged FROM app_password WHERE did = ?1 AND name = ?2";
    one(conn, sql, [did, name], app_password_of)
}

/// The key that signs an account's repo, wrapped.
pub fn signing_key(conn: &Connection, did: &str) -> Result<Option<SigningKey>> {
    let sql = "SELECT did, publicKey, wrapped, createdAt FROM signing_key WHERE did = ?1";
    one(conn, sql, [did], |row| {
        Ok(SigningKey {
            did: row.get(0)?,
            public_key: row.get(1)?,
            wrapped: row.get(2)?,
            created_at: row.get(3)?,
        })
    })
}

/// Stores the key that signs an account's repo, in place of any other.
pub fn put_signing_key(conn: &Connection, key: &SigningKey) -> Result<()> {
    let sql = "INSERT INTO signing_key (did, publicKey, wrapped, createdAt) VALUES (?1, ?2, ?3, ?4)
        ON CONFLICT (did) DO UPDATE SET publicKey = excluded.publicKey, wrapped = excluded.wrapped,
            createdAt = excluded.createdAt";
    run(
        conn,
        sql,
        params![key.did, key.public_key, key.wrapped, key.created_at],
    )?;
    Ok(())
}

/// An app's preference of an account, in order of its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preference {
    /// Its type, as `$type` has it.
    pub name: String,
    /// All of it, as JSON.
    pub json: String,
}

/// The preferences of an account, in their order.
pub fn preferences(conn: &Connection, did: &str) -> Result<Vec<Preference>> {
    let sql = "SELECT name, valueJson FROM account_pref WHERE did = ?1 ORDER BY place";
    all(conn, sql, [did], |row| {
        Ok(Preference {
            name: row.get(0)?,
            json: row.get(1)?,
        })
    })
}

/// Puts `new` in the place of all preferences of an account whose names `replaced` holds for; the others stay as they are. What is there
/// already is not written again.
pub fn replace_preferences(
    conn: &Connection,
    did: &str,
    new: &[Preference],
    replaced: impl Fn(&str) -> bool,
) -> Result<()> {
    let sql = "SELECT place, name, valueJson FROM account_pref WHERE did = ?1 ORDER BY place";
    let present = all(conn, sql, [did], |row| {
        Ok((
            row.get::<_, i64>(0)?,
            Preference {
                name: row.get(1)?,
                json: row.get(2)?,
            },
        ))
    })?;
    let mut last = present.last().map_or(0, |(place, _)| *place);
    let old: Vec<_> = present
        .into_iter()
        .filter(|(_, preference)| replaced(&preference.name))
        .collect();
    // A client sends all of them for a change of one: those before it keep their rows.
    let same = old
        .iter()
        .zip(new)
        .take_while(|((_, old), new)| old == *new)
        .count();
    for (place, _) in old.iter().skip(same) {
        let sql = "DELETE FROM account_pref WHERE did = ?1 AND place = ?2";
        run(conn, sql, params![did, place])?;
    }
    for preference in new.iter().skip(same) {
        last = last.saturating_add(1);
        let sql = "INSERT INTO account_pref (did, place, name, valueJson) VALUES (?1, ?2, ?3, ?4)";
        run(conn, sql, params![did, last, preference.name, preference.json])?;
    }
    Ok(())
}
