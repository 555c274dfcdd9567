//! What a restore of the store to an earlier moment has left to do for whoever has the keys: see the table `restored_repo`.

use engine::repo::{Did, Tid};
use engine::views::accounts::{AccountsError, LockKey};
use futures_util::{StreamExt, TryStreamExt};

use super::{Accounts, ChangeError};

/// Repos that are signed at a time.
const AT_A_TIME: usize = 16;
/// Rows that are read at once.
const PAGE: u32 = 1_000;

impl Accounts {
    /// Signs and announces every repo that was set back; gives how many that were. Called once at start, before anything is
    /// served, and the start fails if it does: with the revs of before nothing of it may be seen.
    ///
    /// # Errors
    /// The account database or the log; what was done stays done.
    pub async fn set_restored_right(&self) -> Result<u64, ChangeError> {
        let (mut done, mut after) = (0, String::new());
        loop {
            let from = after.clone();
            let rows = self.inner.engine.accounts().read(move |conn| {
                let mut rows = conn.prepare(
                    "SELECT r.did, r.rev, a.takedownRef IS NULL AND a.deactivatedAt IS NULL FROM restored_repo r
                     LEFT JOIN actor a ON a.did = r.did WHERE r.did > ?1 ORDER BY r.did LIMIT ?2",
                )?;
                let rows = rows.query_map(rusqlite::params![from, PAGE], |row| {
                    Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, bool>(2)?))
                })?;
                Ok::<_, AccountsError>(rows.collect::<rusqlite::Result<Vec<_>>>()?)
            });
            let rows = rows.await.map_err(ChangeError::from)?;
            let Some((last, ..)) = rows.last() else {
                return Ok(done);
            };
            after = last.clone();
            let signed = futures_util::stream::iter(rows)
                .map(|(did, rev, is_active)| self.set_one_right(did, rev, is_active))
                .buffer_unordered(AT_A_TIME);
            let signed: Vec<()> = signed.try_collect().await?;
            done += signed.len() as u64;
        }
    }

    async fn set_one_right(&self, did: String, rev: String, is_active: bool) -> Result<(), ChangeError> {
        let internal =
            |error: &dyn std::fmt::Display| ChangeError::Internal(format!("restored repo {did}: {error}"));
        let parsed: Did = did.parse().map_err(|error| internal(&error))?;
        let above: Tid = rev.parse().map_err(|error| internal(&error))?;
        let owner = did.clone();
        let prepared = self
            .prepare(vec![LockKey::did(&did)], move |tx| {
                tx.execute("DELETE FROM restored_repo WHERE did = ?1", [owner])
                    .map_err(AccountsError::from)
            })
            .await?;
        let done = (prepared.changeset, prepared.locks);
        let set = self.inner.repos.set_right(&parsed, above, is_active, done).await;
        set.map(|_| ()).map_err(|error| internal(&error))
    }
}
