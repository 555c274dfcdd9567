//! Invite codes: with each so many people can sign up, where the settings ask for one.
//!
//! The administrator gives them to an account, or to nobody in particular. An account also makes codes of its own as it grows
//! older, if `PDS_INVITE_INTERVAL` says so: one for each interval of its life, and five that nobody has used at most.

use std::time::Duration;

use engine::repo::Did;
use engine::repo::datetime::{format_datetime, parse_datetime};
use engine::views::accounts::{AccountsError, LockKey, queries};
use rusqlite::{Connection, Transaction, params};

use super::{Accounts, AccountsUnavailable, ChangeError};

/// Whose codes are those that the administrator makes for nobody in particular, and who made those that it makes.
pub(super) const ADMIN: &str = "admin";
/// Codes of its own that an account may have and that nobody has used.
const UNUSED_MAX: i64 = 5;
/// Most codes that one request makes or disables: they are one entry of the log.
const CODES_AT_ONCE: usize = 5_000;
/// Most codes of an account that are listed, the newest first.
const LISTED_MAX: u32 = 5_000;

/// An invite code and who has used it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invite {
    /// The code.
    pub code: String,
    /// How many people can sign up with it in all.
    pub available: u32,
    /// Whether nobody can any more.
    pub disabled: bool,
    /// Whose it is.
    pub for_account: String,
    /// Who made it.
    pub created_by: String,
    /// When.
    pub created_at: String,
    /// Who has signed up with it, and when.
    pub uses: Vec<(String, String)>,
}

/// Order of a list of all codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InviteOrder {
    /// Newest first.
    Recent,
    /// Most used first.
    Usage,
}

/// Where a page of all codes begins: after this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InviteCursor {
    /// The time in milliseconds, or the number of uses.
    pub key: u64,
    /// The code.
    pub code: String,
}

/// Why invites were not made or changed.
#[derive(Debug, thiserror::Error)]
pub enum InviteError {
    /// The account is not here, or not active.
    #[error("Account not found")]
    NoAccount,
    /// More at once than go into one entry.
    #[error("at most {CODES_AT_ONCE} invite codes at once")]
    TooMany,
    /// What the administrator makes for nobody in particular is not disabled at once.
    #[error("cannot disable admin invite codes")]
    Admin,
    /// The account database or the log.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

impl Accounts {
    /// Makes one code with which `use_count` people can sign up.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn create_invite(&self, use_count: u32, for_account: &str) -> Result<String, ChangeError> {
        let made = self
            .create_invites(use_count, 1, vec![for_account.to_owned()])
            .await;
        match made {
            Ok(made) => made
                .into_iter()
                .flat_map(|(_, codes)| codes)
                .next()
                .ok_or_else(|| ChangeError::Internal("no invite code was made".to_owned())),
            Err(InviteError::Change(error)) => Err(error),
            Err(other) => Err(ChangeError::Internal(other.to_string())),
        }
    }

    /// Makes `count` codes for each account, each for `use_count` people; the codes by account.
    ///
    /// # Errors
    /// See [`InviteError`].
    pub async fn create_invites(
        &self,
        use_count: u32,
        count: usize,
        accounts: Vec<String>,
    ) -> Result<Vec<(String, Vec<String>)>, InviteError> {
        if count.saturating_mul(accounts.len()) > CODES_AT_ONCE {
            return Err(InviteError::TooMany);
        }
        let mut made = Vec::with_capacity(accounts.len());
        for account in accounts {
            made.push((account, self.new_codes(count)?));
        }
        let (rows, now) = (made.clone(), self.inner.now_text());
        let codes = made.iter().flat_map(|(_, codes)| codes);
        let locks = codes.map(|code| LockKey::invite(code)).collect();
        self.change(locks, move |tx| {
            for (account, codes) in &rows {
                for code in codes {
                    insert(tx, code, use_count, false, account, ADMIN, &now)?;
                }
            }
            Ok(())
        })
        .await?;
        Ok(made)
    }

    /// The codes of the account `did` that are not disabled, oldest first; first it makes those that are due, if it is asked to
    /// and the settings let accounts do so.
    ///
    /// # Errors
    /// See [`InviteError`].
    pub async fn invites_of(&self, did: &Did, make: bool) -> Result<Vec<Invite>, InviteError> {
        let account = self.by_did(did).await.map_err(ChangeError::from)?;
        if !account.is_some_and(|account| account.is_active()) {
            return Err(InviteError::NoAccount);
        }
        let config = &self.inner.config;
        if let Some(interval) = config.invite_interval.filter(|_| make && config.invite_required) {
            self.make_due_invites(did, interval).await?;
        }
        let owner = did.as_str().to_owned();
        let listed = self.inner.engine.accounts().read(move |conn| {
            let sql =
                "SELECT code, availableUses, disabled, forAccount, createdBy, createdAt FROM invite_code
                WHERE forAccount = ?1 AND disabled = 0 ORDER BY createdAt DESC, code DESC LIMIT ?2";
            let mut invites = select(conn, sql, params![owner, LISTED_MAX])?;
            invites.reverse();
            Ok::<_, AccountsError>(invites)
        });
        Ok(listed.await.map_err(ChangeError::from)?)
    }

    /// Makes what the account may have by now. All of it is counted under the account's lock, so no two requests make the same.
    async fn make_due_invites(&self, did: &Did, interval: Duration) -> Result<(), InviteError> {
        let inner = &self.inner;
        let codes = self.new_codes(usize::try_from(UNUSED_MAX).unwrap_or_default())?;
        let (owner, now, now_text) = (
            did.as_str().to_owned(),
            inner.engine.now_micros(),
            inner.now_text(),
        );
        let epoch = inner.config.invite_epoch;
        let mut locks: Vec<LockKey> = codes.iter().map(|code| LockKey::invite(code)).collect();
        locks.push(LockKey::did(did.as_str()));
        self.change(locks, move |tx| {
            let Some(account) = queries::account_by_did(tx, &owner)? else {
                return Ok(());
            };
            let could = could_create(&account.actor.created_at, now, interval, epoch);
            let since = format_datetime(micros(epoch));
            let count = |sql: &str, params: &[&dyn rusqlite::ToSql]| {
                tx.query_row(sql, params, |row| row.get::<_, i64>(0))
            };
            let made = count(
                "SELECT count(*) FROM invite_code WHERE forAccount = ?1 AND createdBy = ?1 AND createdAt > ?2",
                &[&owner, &since],
            )?;
            let unused = count(
                "SELECT count(*) FROM invite_code c WHERE forAccount = ?1 AND createdBy = ?1 AND disabled = 0
                 AND (SELECT count(*) FROM invite_code_use u WHERE u.code = c.code) < availableUses",
                &[&owner],
            )?;
            let due = (UNUSED_MAX - unused).min(could.saturating_sub(made));
            let disabled = account.login.is_some_and(|login| login.invites_disabled);
            for code in codes.iter().take(usize::try_from(due).unwrap_or_default()) {
                insert(tx, code, 1, disabled, &owner, &owner, &now_text)?;
            }
            Ok(())
        })
        .await?;
        Ok(())
    }

    /// A page of all codes, with where the next one begins.
    ///
    /// # Errors
    /// The account database cannot be read.
    pub async fn invites(
        &self,
        order: InviteOrder,
        after: Option<InviteCursor>,
        limit: usize,
    ) -> Result<(Vec<Invite>, Option<InviteCursor>), AccountsUnavailable> {
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        let listed = self.inner.engine.accounts().read(move |conn| {
            let columns = "SELECT code, availableUses, disabled, forAccount, createdBy, createdAt FROM";
            match order {
                InviteOrder::Recent => {
                    // Greater than every time, where the page is the first.
                    let (at, code) = match after {
                        Some(InviteCursor { key, code }) => {
                            (format_datetime(key.saturating_mul(1000)), code)
                        }
                        None => ("~".to_owned(), String::new()),
                    };
                    let sql = format!(
                        "{columns} invite_code WHERE (createdAt, code) < (?1, ?2)
                         ORDER BY createdAt DESC, code DESC LIMIT ?3"
                    );
                    select(conn, &sql, params![at, code, limit])
                }
                InviteOrder::Usage => {
                    let (uses, code) = match after {
                        Some(InviteCursor { key, code }) => (i64::try_from(key).unwrap_or(i64::MAX), code),
                        None => (i64::MAX, String::new()),
                    };
                    let sql = format!(
                        "{columns} (SELECT c.*, (SELECT count(*) FROM invite_code_use u WHERE u.code = c.code) AS uses
                         FROM invite_code c) WHERE (uses, code) < (?1, ?2) ORDER BY uses DESC, code DESC LIMIT ?3"
                    );
                    select(conn, &sql, params![uses, code, limit])
                }
            }
        });
        let invites = listed.await.map_err(AccountsUnavailable::from)?;
        let next = invites.last().map(|last| InviteCursor {
            key: match order {
                InviteOrder::Recent => micros_of(&last.created_at).unwrap_or_default() / 1000,
                InviteOrder::Usage => last.uses.len() as u64,
            },
            code: last.code.clone(),
        });
        Ok((invites, next))
    }

    /// Lets an account make and have usable codes, or not. An account that is not here is no error.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn set_invites_disabled(&self, did: &Did, disabled: bool) -> Result<(), ChangeError> {
        let owner = did.as_str().to_owned();
        self.change(vec![LockKey::did(did.as_str())], move |tx| {
            tx.execute(
                "UPDATE account SET invitesDisabled = ?2 WHERE did = ?1",
                params![owner, disabled],
            )?;
            Ok(())
        })
        .await
    }

    /// Disables these codes, and all codes of these accounts. What is not there is no error.
    ///
    /// # Errors
    /// See [`InviteError`].
    pub async fn disable_invites(
        &self,
        mut codes: Vec<String>,
        accounts: Vec<String>,
    ) -> Result<(), InviteError> {
        if accounts.iter().any(|account| account == ADMIN) {
            return Err(InviteError::Admin);
        }
        let owners = accounts.clone();
        let theirs = self.inner.engine.accounts().read(move |conn| {
            let sql = "SELECT code FROM invite_code WHERE forAccount = ?1 AND disabled = 0";
            let mut statement = conn.prepare_cached(sql)?;
            let mut codes = Vec::new();
            for owner in owners {
                let found = statement.query_map([owner], |row| row.get::<_, String>(0))?;
                for code in found.take(CODES_AT_ONCE + 1) {
                    codes.push(code?);
                }
                if codes.len() > CODES_AT_ONCE {
                    break;
                }
            }
            Ok::<_, AccountsError>(codes)
        });
        codes.extend(theirs.await.map_err(ChangeError::from)?);
        codes.sort_unstable();
        codes.dedup();
        if codes.len() > CODES_AT_ONCE {
            return Err(InviteError::TooMany);
        }
        // Nobody signs up with one of them meanwhile.
        let mut locks: Vec<LockKey> = codes.iter().map(|code| LockKey::invite(code)).collect();
        locks.extend(accounts.iter().map(|account| LockKey::did(account)));
        self.change(locks, move |tx| {
            let mut disable = tx.prepare_cached("UPDATE invite_code SET disabled = 1 WHERE code = ?1")?;
            for code in &codes {
                disable.execute([code])?;
            }
            Ok(())
        })
        .await?;
        Ok(())
    }

    /// `count` new codes: the host's name and two groups of five.
    fn new_codes(&self, count: usize) -> Result<Vec<String>, ChangeError> {
        let host = self.inner.config.hostname.replace('.', "-");
        let entropy = self.inner.engine.entropy();
        let mut codes = Vec::with_capacity(count);
        for _ in 0..count {
            let mut random = [0; 10];
            entropy
                .fill(&mut random)
                .map_err(|error| ChangeError::Internal(error.to_string()))?;
            let text = data_encoding::BASE32_NOPAD.encode(&random).to_ascii_lowercase();
            let (first, second) = text.split_at(5);
            codes.push(format!("{host}-{first}-{}", second.get(..5).unwrap_or(second)));
        }
        Ok(codes)
    }
}

fn insert(
    tx: &Transaction<'_>,
    code: &str,
    uses: u32,
    disabled: bool,
    for_account: &str,
    created_by: &str,
    at: &str,
) -> Result<(), AccountsError> {
    tx.prepare_cached(
        "INSERT INTO invite_code (code, availableUses, disabled, forAccount, createdBy, createdAt)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![code, uses, disabled, for_account, created_by, at])?;
    Ok(())
}

/// Codes with their uses.
pub(crate) fn select(
    conn: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
) -> Result<Vec<Invite>, AccountsError> {
    let mut rows = conn.prepare_cached(sql)?;
    let rows = rows.query_map(params, |row| {
        Ok(Invite {
            code: row.get(0)?,
            available: row.get(1)?,
            disabled: row.get(2)?,
            for_account: row.get(3)?,
            created_by: row.get(4)?,
            created_at: row.get(5)?,
            uses: Vec::new(),
        })
    })?;
    let mut invites = rows.collect::<rusqlite::Result<Vec<Invite>>>()?;
    let mut uses = conn.prepare_cached(
        "SELECT usedBy, usedAt FROM invite_code_use WHERE code = ?1 ORDER BY usedAt, usedBy",
    )?;
    for invite in &mut invites {
        let rows = uses.query_map([&invite.code], |row| Ok((row.get(0)?, row.get(1)?)))?;
        invite.uses = rows.collect::<rusqlite::Result<_>>()?;
    }
    Ok(invites)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// A stored time in microseconds since 1970.
fn micros_of(text: &str) -> Option<u64> {
    parse_datetime(text)
        .ok()
        .and_then(|micros| u64::try_from(micros).ok())
}

/// How many codes an account of this age could have made since the epoch: one for each whole interval of its life, less those of
/// its life before the epoch.
fn could_create(created_at: &str, now: u64, interval: Duration, epoch: Duration) -> i64 {
    let interval = micros(interval);
    let Some(created) = micros_of(created_at) else {
        return 0;
    };
    let intervals = |until: u64| {
        until
            .saturating_sub(created)
            .checked_div(interval)
            .unwrap_or_default()
    };
    let since = intervals(now).saturating_sub(intervals(micros(epoch)));
    i64::try_from(since).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_makes_a_code_for_each_interval_of_its_life_since_the_epoch() {
        const DAY: u64 = 24 * 3600;
        let day = |n: u64| Duration::from_secs(n * DAY);
        let could = |created: u64, now: u64, epoch: u64| {
            let created = format_datetime(created * DAY * 1_000_000);
            could_create(&created, now * DAY * 1_000_000, day(7), day(epoch))
        };
        assert_eq!(could(1000, 1006, 0), 0);
        assert_eq!(could(1000, 1007, 0), 1);
        assert_eq!(could(1000, 1070, 0), 10);
        // Ten by now, of which three before the epoch.
        assert_eq!(could(1000, 1070, 1025), 7);
        // The epoch is still to come.
        assert_eq!(could(1000, 1070, 2000), 0);
        assert_eq!(could(2000, 1000, 0), 0, "an account from the future");
        assert_eq!(could_create("nonsense", u64::MAX, day(7), day(0)), 0);
        assert_eq!(
            could_create("1970-01-01T00:00:00.000Z", u64::MAX, day(0), day(0)),
            0
        );
    }
}
