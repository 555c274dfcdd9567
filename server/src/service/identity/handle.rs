//! A new handle: checked, told to the directory, stored, told to subscribers.

use engine::repo::{Did, Handle};

use super::intent::{Wanted, first_alias};
use super::{By, Identities, IdentityError, internal};
use crate::plc::op::Operation;

impl Identities {
    /// Gives the account another handle. The one that it has is told to subscribers again.
    ///
    /// # Errors
    /// See [`IdentityError`]. When the directory was not reached, or the log, the change may still be made: asking again says.
    pub async fn update_handle(&self, did: &Did, wanted: &str, by: By) -> Result<(), IdentityError> {
        // A task of its own: a client that goes away must not leave the directory with something that is not here.
        let (identities, did, wanted) = (self.clone(), did.clone(), wanted.to_owned());
        let changing = tokio::spawn(async move { identities.update_to_the_end(&did, &wanted, by).await });
        changing.await.map_err(|error| internal(&error))?
    }

    async fn update_to_the_end(&self, did: &Did, wanted: &str, by: By) -> Result<(), IdentityError> {
        let parts = self.parts();
        let handle = parts.names.check_handle_of(did, wanted, by == By::Admin).await?;
        let holder = parts.accounts.by_handle(&handle).await?;
        if holder.is_some_and(|holder| holder.did != *did) {
            return Err(IdentityError::Taken(handle));
        }
        if parts.accounts.by_did(did).await?.is_none() {
            return Err(IdentityError::NoAccount);
        }
        let _turn = self.turn(did)?;
        self.look_back(did).await?;
        if did.method() == "plc" {
            self.update_in_directory(did, handle).await
        } else {
            self.follow_document(did, handle).await
        }
    }

    async fn update_in_directory(&self, did: &Did, handle: Handle) -> Result<(), IdentityError> {
        let last = self.parts().plc.last_op(did).await?;
        let mut state = last
            .state()
            .ok_or_else(|| IdentityError::Invalid("Did is tombstoned".to_owned()))?;
        if first_alias(&state) == Some(handle.as_str()) {
            return self.settle(did, Wanted::Handle(handle), None).await;
        }
        state.set_handle(&handle);
        let operation = Operation::update(state, last.cid(), &self.rotation_key()?)?;
        self.carry_out(did, operation, Wanted::Handle(handle), None).await
    }

    /// A document that its owner keeps has to name the handle already.
    async fn follow_document(&self, did: &Did, handle: Handle) -> Result<(), IdentityError> {
        let document = self.parts().names.document(did, true).await;
        let named = document.ok().and_then(|document| document.handle());
        if named.as_ref() != Some(&handle) {
            return Err(IdentityError::Invalid(
                "DID is not properly configured for handle".to_owned(),
            ));
        }
        self.settle(did, Wanted::Handle(handle), None).await
    }
}
