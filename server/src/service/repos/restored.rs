//! Repos that a restore of the store has set back. Consumers have seen commits of them that are not here; so before anything is
//! served each gets a commit with a rev above all that were ever seen, over the records that it has, and is announced with it.

use engine::entry::{Change, EntryDraft};
use engine::repo::commit::UnsignedCommit;
use engine::repo::{Did, Tid, car, event};
use engine::views::accounts::LockGuard;

use super::{Repos, WriteError, build, internal};

impl Repos {
    /// Signs the head of `did` anew with a rev above `above`, and announces it if the account is active. A repo that is not here
    /// begins anew. `done`, which says in the account database that this was done, goes into the same group.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub(crate) async fn set_right(
        &self,
        did: &Did,
        above: Tid,
        is_active: bool,
        done: (Vec<u8>, LockGuard),
    ) -> Result<Tid, WriteError> {
        let shared = &self.inner.shared;
        let closed = self.close_to_writes(did).await?;
        let key = shared.keys.get(did).await.map_err(internal)?;
        let key = key.ok_or_else(|| WriteError::RepoNotFound(did.clone()))?;
        let reader = shared.engine.reader().map_err(internal)?;
        let head = reader.repo(did).map_err(internal)?;
        let generation = reader.live_generation(did).map_err(internal)?;
        let floor = head.as_ref().map_or(above, |head| head.rev.max(above));
        let rev = shared
            .tids
            .next(shared.engine.now_micros().max(floor.micros() + 1));
        let (changeset, locks) = done;
        let mut changes = vec![Change::AccountsChangeset { bytes: changeset }];
        let mut group = Vec::new();
        match head.zip(generation) {
            Some((head, generation)) => {
                let unsigned = UnsignedCommit {
                    did: did.clone(),
                    data: head.data,
                    rev,
                };
                let commit = unsigned.sign(&key).map_err(internal)?;
                changes.push(Change::RepoHead {
                    did: did.clone(),
                    generation,
                    commit: commit.bytes().clone(),
                });
                group.push(EntryDraft::private(changes));
                if is_active {
                    let mut blocks = Vec::new();
                    car::write_header(&mut blocks, &[commit.cid()]);
                    car::write_block(&mut blocks, &commit.cid(), commit.bytes());
                    let message = event::encode_sync(did, rev, &blocks).map_err(internal)?;
                    group.push(EntryDraft::sync(message, Vec::new()));
                }
            }
            None => {
                let genesis = build::genesis(did, &key, rev)?;
                group.push(EntryDraft::private(changes));
                group.push(genesis.commit);
                if is_active {
                    group.push(genesis.sync);
                }
            }
        }
        let receipt = shared.engine.append(group)?;
        locks.logged();
        let durable = receipt.durable().await;
        drop(closed);
        durable.map_err(|error| WriteError::Closed(error.to_string()))?;
        Ok(rev)
    }
}
