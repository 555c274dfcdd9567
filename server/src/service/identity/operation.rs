//! Operations of the did:plc directory on the owner's behalf: signed with this server's key, or passed on after a look.

use std::collections::BTreeMap;

use engine::entry::EntryDraft;
use engine::repo::{Did, event};
use serde::Deserialize;
use serde_json::Value;

use super::{Identities, IdentityError};
use crate::plc::op::{ATPROTO_KEY, Operation, PDS_SERVICE, PDS_SERVICE_TYPE, PlcState, Service};

/// What is to be otherwise in the next operation; each part that is given takes the place of the whole part before.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Overlay {
    /// Keys that may sign operations.
    pub rotation_keys: Option<Vec<String>>,
    /// Other names.
    pub also_known_as: Option<Vec<String>>,
    /// Keys for use.
    pub verification_methods: Option<BTreeMap<String, String>>,
    /// Services.
    pub services: Option<BTreeMap<String, Service>>,
}

impl Overlay {
    fn over(self, state: &mut PlcState) {
        let Overlay {
            rotation_keys,
            also_known_as,
            verification_methods,
            services,
        } = self;
        state.rotation_keys = rotation_keys.unwrap_or(std::mem::take(&mut state.rotation_keys));
        state.also_known_as = also_known_as.unwrap_or(std::mem::take(&mut state.also_known_as));
        state.verification_methods =
            verification_methods.unwrap_or(std::mem::take(&mut state.verification_methods));
        state.services = services.unwrap_or(std::mem::take(&mut state.services));
    }
}

impl Identities {
    /// Signs the operation that follows the last one of `did`, for its owner to submit, here or elsewhere. What it says is the
    /// owner's affair.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub async fn sign_operation(&self, did: &Did, overlay: Overlay) -> Result<Operation, IdentityError> {
        let last = self.parts().plc.last_op(did).await?;
        let mut state = last
            .state()
            .ok_or_else(|| IdentityError::Invalid("Did is tombstoned".to_owned()))?;
        overlay.over(&mut state);
        Ok(Operation::update(state, last.cid(), &self.rotation_key()?)?)
    }

    /// Passes an operation on that leaves the account usable here, and tells subscribers.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub async fn submit_operation(&self, did: &Did, operation: &Value) -> Result<(), IdentityError> {
        let refused = |what: &str| IdentityError::Invalid(what.to_owned());
        let operation = Operation::from_json(operation)
            .map_err(|error| refused(&format!("Invalid operation: {error}")))?;
        let state = operation.state().filter(|_| !operation.is_legacy());
        let state = state.ok_or_else(|| refused("Invalid operation"))?;
        let wanted = self.recommended(did).await?;
        // Ours is the last of them; the operator's recovery key is the owner's choice.
        let own = wanted.rotation_keys.last();
        if !own.is_some_and(|own| state.rotation_keys.contains(own)) {
            return Err(refused("Rotation keys do not include server's rotation key"));
        }
        let service = state.services.get(PDS_SERVICE);
        if service.is_none_or(|service| service.kind != PDS_SERVICE_TYPE) {
            return Err(refused("Incorrect type on atproto_pds service"));
        }
        if service.is_none_or(|service| service.endpoint != wanted.endpoint) {
            return Err(refused("Incorrect endpoint on atproto_pds service"));
        }
        if state.verification_methods.get(ATPROTO_KEY) != Some(&wanted.signing_key) {
            return Err(refused("Incorrect signing key"));
        }
        if wanted
            .also_known_as
            .first()
            .is_some_and(|alias| state.also_known_as.first() != Some(alias))
        {
            return Err(refused("Incorrect handle in alsoKnownAs"));
        }
        // A task of its own: what the directory has taken is told, whether the client is still there or not.
        let (identities, did) = (self.clone(), did.clone());
        let submitting = tokio::spawn(async move { identities.pass_on(&did, &operation).await });
        submitting.await.map_err(|error| super::internal(&error))?
    }

    async fn pass_on(&self, did: &Did, operation: &Operation) -> Result<(), IdentityError> {
        let parts = self.parts();
        let _turn = self.turn(did)?;
        // The account's key, which the operation names, must survive whatever happens to this machine.
        self.replicated().await?;
        parts.plc.submit(did, operation).await?;
        let told = |&(): &()| {
            vec![EntryDraft::identity(
                event::encode_identity(did, None),
                Vec::new(),
            )]
        };
        parts
            .accounts
            .change_and_tell(Vec::new(), |_| Ok(()), told)
            .await?;
        self.document_has_changed(did).await;
        Ok(())
    }
}
