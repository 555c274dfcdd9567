//! The queue of mail: rows of the account database, so that a mail outlives crashes and restores.
//!
//! | a row | what it means |
//! |---|---|
//! | queued | it leaves once its entry is in the replica; what fails is tried again, later and later, until the mail expires with its code |
//! | sent | a server took it; kept for a day, because budgets count it |
//! | dead | it was refused for good or expired; kept for a month with the reason, for the operator |
//!
//! A crash between a server's yes and the row that says so sends a mail twice, under one message id. Content is sealed, and is
//! removed from the row as soon as it is of no use. Logs tell ids, kinds and reasons, and neither addresses nor codes.

use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use engine::views::accounts::{AccountsError, LockKey};
use futures_util::StreamExt;
use rusqlite::Transaction;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Accounts, ChangeError};
use crate::auth::tokens::hmac;
use crate::secrets::{KeyWrapError, Purpose};
use crate::service::mail::{Letter, NoMail, SmtpFailure};

/// What sealed mail is for.
const SEALED_MAIL: Purpose = Purpose::new("queued-mail");
/// Makes hashes of addresses differ from others under the same key.
const RECIPIENT_LABEL: &[u8] = b"azure-pds mail recipient\0";

/// Mails that leave at once.
const AT_ONCE: usize = 4;
/// Mails that are looked at together.
const PAGE: u32 = 64;
/// Until the second try; each later one waits twice as long.
const FIRST_DELAY: Duration = Duration::from_secs(2);
/// Longest time between two tries.
const LONGEST_DELAY: Duration = Duration::from_secs(3600);
/// Tries that a mail gets.
const ATTEMPTS_MAX: u32 = 100;
/// How long the rows of sent mail are kept: budgets are per day.
const SENT_KEPT: Duration = Duration::from_secs(24 * 3600);
/// How long dead letters are kept.
const DEAD_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Longest time between two looks at the queue.
const LOOK: Duration = Duration::from_secs(600);

/// Why a mail is not sent.
#[derive(Debug, thiserror::Error)]
pub enum MailError {
    /// No way to send mail.
    #[error(transparent)]
    NoMail(#[from] NoMail),
    /// The receiver's or the server's budget is used up.
    #[error("Too many e-mails were sent; try again tomorrow")]
    TooMany,
    /// Too much text.
    #[error("The e-mail is too long")]
    TooLong,
    /// The account database or the log.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

/// What is sealed in a row.
#[derive(Serialize, Deserialize)]
struct Content {
    to: String,
    letter: Letter,
}

/// A row that is due.
struct Due {
    id: String,
    kind: String,
    content: Vec<u8>,
    expires_at: i64,
    attempts: u32,
}

/// What became of a row.
enum Outcome {
    Sent,
    Again { at: u64, reason: String },
    Dead { reason: String },
}

impl Accounts {
    /// Mails `letter` to an account's address, and changes rows in the same transaction: the code that the letter carries. It
    /// is queued durably when this returns, and leaves soon after.
    ///
    /// # Errors
    /// See [`MailError`]; nothing is changed then.
    pub async fn mail<F>(
        &self,
        did: &str,
        address: &str,
        letter: Letter,
        mut locks: Vec<LockKey>,
        with: F,
    ) -> Result<(), MailError>
    where
        F: FnOnce(&Transaction<'_>) -> Result<(), AccountsError> + Send + 'static,
    {
        let inner = &self.inner;
        inner.mailer.check_letter(&letter)?;
        let now = inner.engine.now_micros();
        let page = inner.mailer.has_page().then(|| {
            inner
                .mailer
                .render(address, &letter, engine::repo::datetime::format_datetime(now))
        });
        let mut random = [0; 16];
        let internal = |error: &dyn std::fmt::Display| ChangeError::Internal(error.to_string());
        let entropy = inner.engine.entropy();
        entropy.fill(&mut random).map_err(|error| internal(&error))?;
        let id = HEXLOWER.encode(&random);
        let (kind, expires_at) = (letter.kind(), now.saturating_add(micros(letter.lifetime())));
        let content = serde_json::to_vec(&Content {
            to: address.to_owned(),
            letter,
        });
        let content = content.map_err(|error| internal(&error))?;
        let sealed = inner.wrap.wrap(SEALED_MAIL, &id, &content, entropy);
        let sealed = sealed.map_err(|error| match error {
            KeyWrapError::TooLong { .. } => MailError::TooLong,
            other => internal(&other).into(),
        })?;
        let recipient = self.recipient(address);
        let (per_address, total) = (inner.config.mail.daily_per_address, inner.config.mail.daily_total);
        let (did, queued, page_only) = (did.to_owned(), micros_sql(now), page.is_some());
        // Two mails to one address must not both see room for one.
        locks.push(LockKey::email(address));
        let taken = self.change(locks, move |tx| {
            let day_ago = queued - micros_sql(micros(SENT_KEPT));
            let (to_address, to_all): (i64, i64) = tx.query_row(
                "SELECT (SELECT count(*) FROM mail WHERE recipient = ?1 AND queuedAt > ?2),
                        (SELECT count(*) FROM mail WHERE queuedAt > ?2)",
                rusqlite::params![recipient, day_ago],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?;
            if to_address >= per_address || to_all >= total {
                return Ok(false);
            }
            with(tx)?;
            if !page_only {
                tx.execute(
                    "INSERT INTO mail (id, did, kind, recipient, content, state, queuedAt, expiresAt, nextAt)
                     VALUES (?1, ?2, ?3, ?4, ?5, 'queued', ?6, ?7, ?6)",
                    rusqlite::params![id, did, kind, recipient, sealed, queued, micros_sql(expires_at)],
                )?;
            }
            Ok(true)
        });
        if !taken.await? {
            count(kind, "over-budget");
            return Err(MailError::TooMany);
        }
        if let Some(mail) = page {
            self.wait_replicated().await?;
            inner.mailer.show(mail);
        } else {
            inner.mailer.wake();
        }
        Ok(())
    }

    /// Sends what is due; gives how long nothing will be. One caller at a time.
    ///
    /// # Errors
    /// The account database or the log; what was sent and could not be noted is sent again.
    pub async fn deliver_mail(&self) -> Result<Duration, ChangeError> {
        let engine = &self.inner.engine;
        self.forget_old_mail().await?;
        let now = engine.now_micros();
        let due = engine.accounts().read(move |conn| {
            let mut rows = conn.prepare(
                "SELECT id, kind, content, expiresAt, attempts FROM mail WHERE state = 'queued' AND nextAt <= ?1
                 ORDER BY nextAt LIMIT ?2",
            )?;
            let rows = rows.query_map(rusqlite::params![micros_sql(now), PAGE], |row| {
                Ok(Due {
                    id: row.get(0)?,
                    kind: row.get(1)?,
                    content: row.get(2)?,
                    expires_at: row.get(3)?,
                    attempts: row.get(4)?,
                })
            })?;
            Ok::<_, AccountsError>(rows.collect::<rusqlite::Result<Vec<_>>>()?)
        });
        let due = due.await?;
        if !due.is_empty() {
            // The rows are in the log; what leaves must be in the replica.
            self.wait_replicated().await?;
            let mut done = futures_util::stream::iter(due)
                .map(|row| self.deliver_one(row))
                .buffer_unordered(AT_ONCE);
            while let Some(noted) = done.next().await {
                noted?;
            }
        }
        self.until_next_mail().await
    }

    async fn deliver_one(&self, row: Due) -> Result<(), ChangeError> {
        let attempt = row.attempts.saturating_add(1);
        let outcome = match self.try_to_send(&row).await {
            Ok(()) => Outcome::Sent,
            Err(SmtpFailure {
                reason,
                is_final: true,
            }) => Outcome::Dead { reason },
            Err(SmtpFailure { reason, .. }) => {
                let at = self
                    .inner
                    .engine
                    .now_micros()
                    .saturating_add(micros(delay(attempt)));
                if micros_sql(at) >= row.expires_at || attempt >= ATTEMPTS_MAX {
                    Outcome::Dead {
                        reason: format!("given up: {reason}"),
                    }
                } else {
                    Outcome::Again { at, reason }
                }
            }
        };
        let (state, next_at, reason, word) = match outcome {
            Outcome::Sent => {
                tracing::info!(id = row.id, kind = row.kind, attempt, "mail sent");
                ("sent", 0, None, "sent")
            }
            Outcome::Again { at, reason } => {
                tracing::warn!(
                    id = row.id,
                    kind = row.kind,
                    attempt,
                    reason,
                    "mail not sent; it is tried again"
                );
                ("queued", at, Some(reason), "retried")
            }
            Outcome::Dead { reason } => {
                tracing::error!(
                    id = row.id,
                    kind = row.kind,
                    attempt,
                    reason,
                    "mail not sent, and not tried again"
                );
                ("dead", 0, Some(reason), "dead")
            }
        };
        metrics::counter!("pds_mail_total", "outcome" => word).increment(1);
        self.change(Vec::new(), move |tx| {
            tx.execute(
                "UPDATE mail SET state = ?2, nextAt = ?3, attempts = ?4, reason = ?5,
                 content = CASE WHEN ?2 = 'queued' THEN content ELSE x'' END WHERE id = ?1",
                rusqlite::params![row.id, state, micros_sql(next_at), attempt, reason],
            )
            .map_err(AccountsError::from)
        })
        .await
        .map(|_| ())
    }

    async fn try_to_send(&self, row: &Due) -> Result<(), SmtpFailure> {
        let inner = &self.inner;
        let failed = |reason: &str, is_final| SmtpFailure {
            reason: reason.to_owned(),
            is_final,
        };
        let now = inner.engine.now_micros();
        if micros_sql(now) >= row.expires_at {
            return Err(failed("expired", true));
        }
        let opened = inner
            .wrap
            .unwrap(SEALED_MAIL, &row.id, &row.content)
            .map_err(|error| failed(&error.to_string(), false))?;
        let content: Content =
            serde_json::from_slice(opened.expose()).map_err(|_| failed("its content is damaged", true))?;
        let mailer = &inner.mailer;
        let Some(transport) = mailer.transport(&content.letter) else {
            return Err(failed("no mail server is configured", false));
        };
        let mail = mailer.render(&content.to, &content.letter, String::new());
        let date = SystemTime::UNIX_EPOCH + Duration::from_micros(now);
        transport.send(&row.id, &mail, date).await
    }

    /// How long until something is due, and the gauges.
    async fn until_next_mail(&self) -> Result<Duration, ChangeError> {
        let read = self.inner.engine.accounts().read(|conn| {
            conn.query_row(
                "SELECT (SELECT min(nextAt) FROM mail WHERE state = 'queued'),
                        (SELECT count(*) FROM mail WHERE state = 'queued'), (SELECT count(*) FROM mail WHERE state = 'dead')",
                [],
                |row| Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, u32>(1)?, row.get::<_, u32>(2)?)),
            )
            .map_err(AccountsError::from)
        });
        let (next, queued, dead) = read.await?;
        metrics::gauge!("pds_mail_queued").set(f64::from(queued));
        metrics::gauge!("pds_mail_dead_letters").set(f64::from(dead));
        let now = self.inner.engine.now_micros();
        Ok(next.map_or(LOOK, |at| {
            let left = at.saturating_sub(micros_sql(now));
            Duration::from_micros(u64::try_from(left).unwrap_or_default()).min(LOOK)
        }))
    }

    /// Removes rows that nobody needs any more.
    async fn forget_old_mail(&self) -> Result<(), ChangeError> {
        const OLD: &str = "SELECT id FROM mail WHERE (state = 'sent' AND queuedAt <= ?1) OR (state = 'dead' AND queuedAt <= ?2)";
        let now = self.inner.engine.now_micros();
        let before = [SENT_KEPT, DEAD_KEPT].map(|kept| micros_sql(now.saturating_sub(micros(kept))));
        let any = self.inner.engine.accounts().read(move |conn| {
            let mut old = conn.prepare(OLD)?;
            Ok::<_, AccountsError>(old.exists(before)?)
        });
        if !any.await? {
            return Ok(());
        }
        self.change(Vec::new(), move |tx| {
            tx.execute(&format!("DELETE FROM mail WHERE id IN ({OLD} LIMIT 500)"), before)
                .map_err(AccountsError::from)
        })
        .await
        .map(|_| ())
    }

    /// An address as budgets know it: the key keeps whoever has the database from trying addresses.
    fn recipient(&self, address: &str) -> String {
        let secret = self.inner.config.jwt_secret.expose();
        let key = Sha256::new()
            .chain_update(RECIPIENT_LABEL)
            .chain_update(secret)
            .finalize();
        let digest = hmac(&key.into(), address.to_lowercase().as_bytes());
        HEXLOWER.encode(digest.get(..16).unwrap_or_default())
    }

    /// An effect on the outside world follows: what it rests on must be in the replica.
    pub(super) async fn wait_replicated(&self) -> Result<(), ChangeError> {
        let engine = &self.inner.engine;
        engine
            .in_time(engine.replicated())
            .await?
            .map_err(|error| ChangeError::Closed(error.to_string()))
    }
}

fn count(kind: &'static str, outcome: &'static str) {
    tracing::warn!(kind, outcome, "mail not taken");
    metrics::counter!("pds_mail_total", "outcome" => outcome).increment(1);
}

/// How long to wait after so many tries.
fn delay(attempt: u32) -> Duration {
    FIRST_DELAY
        .saturating_mul(1 << attempt.saturating_sub(1).min(20))
        .min(LONGEST_DELAY)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// SQLite has no larger numbers.
fn micros_sql(micros: u64) -> i64 {
    i64::try_from(micros).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "mail_tests.rs"]
mod tests;
