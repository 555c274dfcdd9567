//! Another signing key: told to the directory, stored, and the repo signed with it.
//!
//! From the moment at which the directory names the new key until the repo is signed with it nobody can verify its commits. So
//! the repo takes no writes meanwhile, and a start looks back at open changes before it serves. Where the directory does not say
//! what became of a change, writes go on with the key of before: if the new one turns out to be in the directory, the `#sync` that
//! comes with it makes consumers fetch the repo anew.

use engine::repo::{Did, PublicKey};
use engine::views::accounts::queries;

use super::intent::Wanted;
use super::{Identities, IdentityError, internal};
use crate::plc::op::{ATPROTO_KEY, Operation};
use crate::service::accounts::{ChangeError, StoredKey};

impl Identities {
    /// Makes a reserved key (`reserveSigningKey`) the one that signs the account's repo. An account that has it already is left
    /// alone.
    ///
    /// # Errors
    /// See [`IdentityError`]. When the directory was not reached, or the log, the change may still be made: asking again says.
    pub async fn update_signing_key(&self, did: &Did, wanted: &str) -> Result<(), IdentityError> {
        // A task of its own: a client that goes away must not leave the directory with a key that does not sign here.
        let (identities, of, wanted) = (self.clone(), did.clone(), wanted.to_owned());
        let changing = tokio::spawn(async move { identities.rekey_to_the_end(&of, &wanted).await });
        let changed = self.parts().core.in_time(changing).await;
        changed
            .map_err(ChangeError::from)?
            .map_err(|error| internal(&error))?
    }

    async fn rekey_to_the_end(&self, did: &Did, wanted: &str) -> Result<(), IdentityError> {
        let parts = self.parts();
        PublicKey::from_did_key(wanted)
            .map_err(|error| IdentityError::Invalid(format!("signingKey: {error}")))?;
        let _turn = self.turn(did)?;
        self.look_back(did).await?;
        if parts.accounts.by_did(did).await?.is_none() {
            return Err(IdentityError::NoAccount);
        }
        if self.signing_key(did).await?.as_deref() == Some(wanted) {
            return Ok(());
        }
        let reserved = parts.accounts.reserved_key_named(did, wanted).await?;
        let wrapped = reserved.ok_or_else(|| {
            IdentityError::Invalid(
                "This server has no such key; com.atproto.server.reserveSigningKey makes one".to_owned(),
            )
        })?;
        let wanted = Wanted::Key(StoredKey {
            public_key: wanted.to_owned(),
            wrapped,
        });
        if did.method() == "plc" {
            self.rekey_in_directory(did, wanted).await
        } else {
            self.rekey_as_document_says(did, wanted).await
        }
    }

    async fn rekey_in_directory(&self, did: &Did, wanted: Wanted) -> Result<(), IdentityError> {
        let parts = self.parts();
        let last = parts.plc.last_op(did).await?;
        let mut state = last
            .state()
            .ok_or_else(|| IdentityError::Invalid("Did is tombstoned".to_owned()))?;
        let closed = parts.repos.close_to_writes(did).await?;
        if wanted.is_in(&state) {
            return self.settle(did, wanted, Some(closed)).await;
        }
        if let Wanted::Key(key) = &wanted {
            state
                .verification_methods
                .insert(ATPROTO_KEY.to_owned(), key.public_key.clone());
        }
        let operation = Operation::update(state, last.cid(), &self.rotation_key()?)?;
        self.carry_out(did, operation, wanted, Some(closed)).await
    }

    /// A document that its owner keeps has to name the key already.
    async fn rekey_as_document_says(&self, did: &Did, wanted: Wanted) -> Result<(), IdentityError> {
        let parts = self.parts();
        let document = parts.names.document(did, true).await;
        let named = document
            .ok()
            .and_then(|document| document.key(ATPROTO_KEY).ok().flatten())
            .map(|key| key.to_did_key());
        if !matches!(&wanted, Wanted::Key(key) if named.as_ref() == Some(&key.public_key)) {
            return Err(IdentityError::Invalid(
                "DID is not properly configured for the signing key".to_owned(),
            ));
        }
        let closed = parts.repos.close_to_writes(did).await?;
        self.settle(did, wanted, Some(closed)).await
    }

    /// The public key of an account, as a `did:key`.
    async fn signing_key(&self, did: &Did) -> Result<Option<String>, IdentityError> {
        let of = did.as_str().to_owned();
        let row = self
            .parts()
            .core
            .accounts()
            .read(move |conn| queries::signing_key(conn, &of));
        let row = row.await.map_err(ChangeError::from)?;
        Ok(row.map(|row| row.public_key))
    }
}
