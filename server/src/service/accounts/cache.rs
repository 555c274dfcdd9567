//! Accounts that were looked up lately, so that a request does not ask the database who its caller is.
//!
//! An entry holds for the revision of the account database that was asked for *before* it was read (see
//! [`Accounts::revision`](engine::views::accounts::Accounts::revision)): a change of any account makes all entries old, and
//! it does so before the change is acknowledged. Such changes are rare; sign-ups and sessions are none. What does not exist
//! is not remembered.

use std::sync::Arc;

use engine::repo::{Did, Handle};

use super::Account;

/// Accounts kept at most; each takes about half a kilobyte, its name in the second table included.
const ACCOUNTS_MAX: usize = 8192;

/// See the top of this file.
pub(super) struct Cache {
    by_did: quick_cache::sync::Cache<Did, Entry>,
    /// As they are asked for, which is in lower case.
    dids: quick_cache::sync::Cache<Handle, (u64, Did)>,
}

#[derive(Clone)]
struct Entry {
    revision: u64,
    account: Arc<Account>,
}

impl Default for Cache {
    fn default() -> Cache {
        Cache {
            by_did: quick_cache::sync::Cache::new(ACCOUNTS_MAX),
            dids: quick_cache::sync::Cache::new(ACCOUNTS_MAX),
        }
    }
}

impl Cache {
    pub(super) fn by_did(&self, did: &Did, revision: u64) -> Option<Account> {
        let entry = self.by_did.get(did).filter(|entry| entry.revision == revision)?;
        Some(Account::clone(&entry.account))
    }

    pub(super) fn by_handle(&self, handle: &Handle, revision: u64) -> Option<Account> {
        let (_, did) = self.dids.get(handle).filter(|(at, _)| *at == revision)?;
        self.by_did(&did, revision)
    }

    /// Remembers what was read after `revision` was asked for.
    pub(super) fn insert(&self, account: &Account, revision: u64) {
        if let Some(handle) = &account.handle {
            self.dids.insert(handle.clone(), (revision, account.did.clone()));
        }
        let entry = Entry {
            revision,
            account: Arc::new(account.clone()),
        };
        self.by_did.insert(account.did.clone(), entry);
    }
}
