//! A repo whose commits are signed with another key from now on.

use engine::entry::{Change, EntryDraft};
use engine::repo::commit::UnsignedCommit;
use engine::repo::{SigningKey, car, event};
use engine::views::accounts::LockGuard;

use super::closing::Closed;
use super::{Repos, WriteError, internal};

/// What belongs to a change of key, in the account database and for subscribers.
pub(crate) struct Rekeying {
    /// The changeset that stores the key.
    pub(crate) changeset: Vec<u8>,
    /// The locks of its rows.
    pub(crate) locks: LockGuard,
    /// The `#identity` that makes subscribers read the document again.
    pub(crate) identity: EntryDraft,
    /// Whether the account is active, so that subscribers follow its repo.
    pub(crate) is_active: bool,
}

impl Repos {
    /// Signs the head of a closed repo anew, with `key` and a later rev over the same records, and logs it in one group with what
    /// belongs to it. Subscribers are told of the identity first, so that they know the key before the commit. Returns when it is
    /// durable and applied; only then the repo takes writes again, which are signed with the new key.
    ///
    /// # Errors
    /// [`WriteError::RepoNotFound`]; [`WriteError::Busy`]: nothing was done. [`WriteError::Closed`]: recovery decides.
    pub(crate) async fn rekey(
        &self,
        closed: Closed,
        key: SigningKey,
        rekeying: Rekeying,
    ) -> Result<(), WriteError> {
        let repos = self.clone();
        // A task of its own: a caller that goes away must not open the repo to writes before the key is applied.
        let rekeyed = tokio::spawn(async move { repos.rekey_now(closed, &key, rekeying).await });
        rekeyed.await.map_err(internal)?
    }

    async fn rekey_now(
        &self,
        closed: Closed,
        key: &SigningKey,
        rekeying: Rekeying,
    ) -> Result<(), WriteError> {
        let (shared, did) = (&self.inner.shared, closed.did().clone());
        let reader = shared.engine.reader().map_err(internal)?;
        let head = reader.repo(&did).map_err(internal)?;
        let generation = reader.live_generation(&did).map_err(internal)?;
        let Some((head, generation)) = head.zip(generation) else {
            return Err(WriteError::RepoNotFound(did));
        };
        let now = shared.engine.now_micros().max(head.rev.micros() + 1);
        let rev = shared.tids.next(now);
        let unsigned = UnsignedCommit {
            did: did.clone(),
            data: head.data,
            rev,
        };
        let commit = unsigned.sign(key).map_err(internal)?;
        let Rekeying {
            changeset,
            locks,
            identity,
            is_active,
        } = rekeying;
        let stored = EntryDraft::private(vec![
            Change::AccountsChangeset { bytes: changeset },
            Change::RepoHead {
                did: did.clone(),
                generation,
                commit: commit.bytes().clone(),
            },
        ]);
        let mut group = vec![stored, identity];
        if is_active {
            let mut blocks = Vec::new();
            car::write_header(&mut blocks, &[commit.cid()]);
            car::write_block(&mut blocks, &commit.cid(), commit.bytes());
            let message = event::encode_sync(&did, rev, &blocks).map_err(internal)?;
            group.push(EntryDraft::sync(message, Vec::new()));
        }
        let receipt = shared.engine.append(group)?;
        locks.logged();
        // However long it takes: no commit with the old key may come behind it.
        let durable = receipt.durable().await;
        drop(closed);
        durable.map_err(|error| WriteError::Closed(error.to_string()))?;
        Ok(())
    }
}
