//! A repo is told to subscribers as it is.

use engine::entry::EntryDraft;
use engine::repo::{Did, car, event};
use engine::views::accounts::LockGuard;

use super::{Repos, WriteError, internal, unread};

impl Repos {
    /// Logs `group`, and behind it, in the same group, a `#sync` with the head of `did`. No commit comes between the head and its
    /// `#sync`. `locks` are those of the account's change in `group`.
    ///
    /// # Errors
    /// [`WriteError::RepoNotFound`]; [`WriteError::Busy`]: nothing was done. [`WriteError::Closed`] and
    /// [`WriteError::Unconfirmed`]: recovery decides.
    pub(crate) async fn announce(
        &self,
        did: &Did,
        mut group: Vec<EntryDraft>,
        locks: LockGuard,
    ) -> Result<(), WriteError> {
        let shared = &self.inner.shared;
        let closed = self.close_to_writes(did).await?;
        let head = shared.engine.reader().map_err(internal)?.repo(did);
        let head = head.map_err(internal)?;
        let head = head.ok_or_else(|| WriteError::RepoNotFound(did.clone()))?;
        let commit = shared.engine.read_at(head.commit_location).map_err(unread)?;
        let mut blocks = Vec::new();
        car::write_header(&mut blocks, &[head.commit]);
        car::write_block(&mut blocks, &head.commit, &commit);
        let message = event::encode_sync(did, head.rev, &blocks).map_err(internal)?;
        group.push(EntryDraft::sync(message, Vec::new()));
        let receipt = shared.engine.append(group)?;
        locks.logged();
        // What is written now comes behind it.
        drop(closed);
        let durable = shared.engine.in_time(receipt.durable()).await?;
        durable.map_err(|error| WriteError::Closed(error.to_string()))?;
        Ok(())
    }
}
