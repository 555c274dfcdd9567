//! Accounts as a sign-up makes them, without a did:plc directory: row, login, wrapped signing key, and the entries that
//! announce them. All share one password hash, because thousands would take hours.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use benches::growing::GrowingRepo;
use benches::synthetic::Head;
use engine::Engine;
use engine::clock::SeededEntropy;
use engine::entry::{Change, EntryDraft};
use engine::repo::event::{encode_account, encode_identity};
use engine::repo::{Cid, Handle, Tid};
use engine::views::accounts::{AccountsError, iso_time, model, queries};
use server::auth::password::Passwords;
use server::secrets::{KeyWrap, Purpose, Secret};
use server::service::repos::genesis;

/// Accounts of one changeset.
const AT_ONCE: usize = 200;
/// When all of them were made, microseconds since 1970: before their first record.
const CREATED_MICROS: u64 = 1_699_999_000_000_000;

/// Makes accounts.
pub struct Accounts {
    engine: Engine,
    entropy: Arc<SeededEntropy>,
    wrap: KeyWrap,
    domain: String,
    password: String,
}

/// The rows of one account.
struct Rows {
    actor: model::Actor,
    login: model::Login,
    key: model::SigningKey,
}

impl Accounts {
    /// Makes ready to create accounts with handles below `domain`.
    ///
    /// # Errors
    /// The rotation key is none, or the password is refused.
    pub async fn new(
        engine: Engine,
        entropy: Arc<SeededEntropy>,
        rotation_key: &str,
        domain: &str,
        password: &str,
    ) -> Result<Accounts> {
        let rotation = Secret::new(key_bytes(rotation_key).context("the rotation key is not 64 hex digits")?);
        let wrap = KeyWrap::from_config(None, Some(&rotation))?;
        let salts = Arc::clone(&entropy) as Arc<dyn engine::clock::Entropy>;
        let password = Passwords::new(salts, 1).hash(password).await?;
        Ok(Accounts {
            engine,
            entropy,
            wrap,
            domain: domain.to_owned(),
            password,
        })
    }

    /// Gives each of the repos, which are numbered from `first` on, an account and its first commit, without records.
    ///
    /// # Errors
    /// The engine failed.
    pub async fn create(&self, first: u64, repos: impl Iterator<Item = &mut GrowingRepo>) -> Result<()> {
        let (mut rows, mut entries) = (Vec::new(), Vec::new());
        for (number, repo) in (first..).zip(repos) {
            let handle = format!("load-{number}.{}", self.domain);
            rows.push(self.rows(repo, &handle)?);
            let handle: Handle = handle.parse()?;
            let rev = Tid::next_after(None, CREATED_MICROS, 3);
            let genesis = genesis(&repo.did, repo.key(), rev)?;
            let head = Head {
                commit: genesis.meta.cid,
                rev: genesis.meta.rev,
                data: Cid::for_dag_cbor(&engine::repo::mst::encode_leaf([])),
            };
            repo.stands_at(head, 0);
            entries.extend([
                EntryDraft::identity(encode_identity(&repo.did, Some(&handle)), Vec::new()),
                EntryDraft::account(encode_account(&repo.did, None), Vec::new()),
                genesis.commit,
                genesis.sync,
            ]);
            if rows.len() >= AT_ONCE {
                self.log(std::mem::take(&mut rows), std::mem::take(&mut entries))
                    .await?;
            }
        }
        if rows.is_empty() {
            return Ok(());
        }
        self.log(rows, entries).await
    }

    async fn log(&self, rows: Vec<Rows>, entries: Vec<EntryDraft>) -> Result<()> {
        // Nobody else changes accounts here, so no key needs to be held.
        let prepared = self.engine.accounts().prepare([], move |tx| {
            for row in &rows {
                queries::insert_actor(tx, &row.actor)?;
                queries::insert_login(tx, &row.actor.did, &row.login)?;
                queries::put_signing_key(tx, &row.key)?;
            }
            Ok::<_, AccountsError>(())
        });
        let prepared = prepared.await?;
        let mut group = vec![EntryDraft::private(vec![Change::AccountsChangeset {
            bytes: prepared.changeset,
        }])];
        group.extend(entries);
        let receipt = self.engine.append(group)?;
        prepared.locks.logged();
        receipt.durable().await?;
        Ok(())
    }

    fn rows(&self, repo: &GrowingRepo, handle: &str) -> Result<Rows> {
        let (did, created_at) = (repo.did.to_string(), iso_time(CREATED_MICROS));
        let secret = repo.key().to_bytes();
        let wrapped = self
            .wrap
            .wrap(Purpose::REPO_SIGNING_KEY, &did, secret.as_slice(), &*self.entropy)
            .map_err(|error| anyhow!("wrapping a key: {error}"))?;
        Ok(Rows {
            key: model::SigningKey {
                did: did.clone(),
                public_key: repo.key().public_key().to_did_key(),
                wrapped,
                created_at: created_at.clone(),
            },
            login: model::Login {
                email: format!("{}@example.com", handle.replace('.', "-")),
                password: model::PasswordHash(self.password.clone()),
                email_confirmed_at: None,
                invites_disabled: false,
            },
            actor: model::Actor {
                did,
                handle: Some(handle.to_owned()),
                created_at,
                takedown_ref: None,
                deactivated_at: None,
                delete_after: None,
            },
        })
    }
}

fn key_bytes(hex: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(at * 2..at * 2 + 2)?, 16).ok()?;
    }
    Some(bytes)
}
