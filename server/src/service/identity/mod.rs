//! Identities of accounts: their handles, their keys, and what the did:plc directory says of them.
//!
//! A change of an identity concerns the directory, which takes part in no transaction of ours, and what is stored here. So it is
//! fenced by two entries of the log, as a sign-up is (see `intent`): what is about to be sent, durable in the replica before it is
//! sent (I1), and what came of it. One change of an identity is under way at a time.

mod handle;
mod intent;
mod key;
mod operation;

use std::collections::HashSet;
use std::sync::Arc;

use engine::repo::{Did, Handle, SigningKey};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::client::did::DidError;
use crate::client::plc::{PlcError, SharedPlc};
use crate::config::Config;
use crate::identity::document::DidDocument;
use crate::identity::handle::HandleError;
use crate::plc::op::SignOpError;
use crate::secrets::KeyWrap;
use crate::service::accounts::{Accounts, AccountsUnavailable, ChangeError};
use crate::service::core::Core;
use crate::service::keys::SigningKeys;
use crate::service::names::Names;
use crate::service::repos::{Repos, WriteError};

pub use intent::Resumed;
pub use operation::Overlay;

/// Why an identity was not changed, or is not known.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The handle may not be taken.
    #[error(transparent)]
    Handle(#[from] HandleError),
    /// Somebody has it.
    #[error("Handle already taken: {0}")]
    Taken(Handle),
    /// There is no such account here.
    #[error("Account not found")]
    NoAccount,
    /// Something in the request, or about the identity, is not as it has to be.
    #[error("{0}")]
    Invalid(String),
    /// Another change of the same identity is under way.
    #[error("this identity is being changed; try again")]
    Busy,
    /// The directory.
    #[error(transparent)]
    Plc(#[from] PlcError),
    /// The account database or the log.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The account's repo.
    #[error(transparent)]
    Repo(#[from] WriteError),
}

impl From<AccountsUnavailable> for IdentityError {
    fn from(error: AccountsUnavailable) -> IdentityError {
        IdentityError::Change(error.into())
    }
}

impl From<SignOpError> for IdentityError {
    fn from(error: SignOpError) -> IdentityError {
        match error {
            SignOpError::Invalid(error) => IdentityError::Invalid(error.to_string()),
            SignOpError::Signing(error) => internal(&error),
        }
    }
}

/// Who wants a handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The account's owner.
    Owner,
    /// The administrator, who may give reserved names.
    Admin,
}

/// What an account is to be known as, as far as it is up to this server.
#[derive(Clone, Debug)]
pub struct Recommended {
    /// Who may change the identity, strongest first.
    pub rotation_keys: Vec<String>,
    /// The handle's alias, if the account has a handle.
    pub also_known_as: Vec<String>,
    /// The key that signs the repo.
    pub signing_key: String,
    /// This server.
    pub endpoint: String,
}

/// What the network says of an identity.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The document.
    pub document: Arc<DidDocument>,
    /// The handle, if it leads back to the DID.
    pub handle: Option<Handle>,
}

/// The identities of this server's accounts; cheap to clone.
#[derive(Clone)]
pub struct Identities {
    inner: Arc<Inner>,
}

/// The parts that [`Identities`] is composed of.
pub struct Parts {
    /// The engine.
    pub core: Core,
    /// The settings.
    pub config: Arc<Config>,
    /// The accounts.
    pub accounts: Accounts,
    /// Their repos.
    pub repos: Repos,
    /// Their signing keys.
    pub keys: SigningKeys,
    /// The wrap of those keys.
    pub wrap: Arc<KeyWrap>,
    /// The did:plc directory.
    pub plc: SharedPlc,
    /// Look-ups of the whole network.
    pub names: Names,
}

struct Inner {
    parts: Parts,
    /// Identities that are being changed.
    busy: Arc<Mutex<HashSet<Did>>>,
    /// A change was left open.
    left_open: Notify,
}

/// The right to change an identity, until it is dropped.
struct Turn {
    busy: Arc<Mutex<HashSet<Did>>>,
    did: Did,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.busy.lock().remove(&self.did);
    }
}

impl Identities {
    /// Composes the service.
    #[must_use]
    pub fn new(parts: Parts) -> Identities {
        Identities {
            inner: Arc::new(Inner {
                parts,
                busy: Arc::default(),
                left_open: Notify::new(),
            }),
        }
    }

    fn parts(&self) -> &Parts {
        &self.inner.parts
    }

    fn turn(&self, did: &Did) -> Result<Turn, IdentityError> {
        let busy = self.inner.busy.clone();
        if !busy.lock().insert(did.clone()) {
            return Err(IdentityError::Busy);
        }
        Ok(Turn {
            busy,
            did: did.clone(),
        })
    }

    /// Looks back at an open change of this identity, if there is one. Whoever asks does so for the sake of freshness: what cannot
    /// be told now is told later.
    pub async fn settle_open(&self, did: &Did) {
        let Ok(_turn) = self.turn(did) else { return };
        if let Err(error) = self.look_back(did).await {
            tracing::warn!(%did, %error, "an interrupted change of an identity stays open");
        }
    }

    fn rotation_key(&self) -> Result<SigningKey, IdentityError> {
        SigningKey::from_bytes(self.parts().config.plc_rotation_key.expose())
            .map_err(|error| internal(&error))
    }

    /// What the identity of `did` should say so that this server can serve it.
    ///
    /// # Errors
    /// [`IdentityError::NoAccount`], or the key cannot be read.
    pub async fn recommended(&self, did: &Did) -> Result<Recommended, IdentityError> {
        let parts = self.parts();
        let account = parts
            .accounts
            .by_did(did)
            .await?
            .ok_or(IdentityError::NoAccount)?;
        let key = parts.keys.get(did).await.map_err(|error| internal(&error))?;
        let key = key.ok_or(IdentityError::NoAccount)?;
        let own = self.rotation_key()?.public_key().to_did_key();
        Ok(Recommended {
            rotation_keys: parts
                .config
                .recovery_did_key
                .iter()
                .cloned()
                .chain([own])
                .collect(),
            also_known_as: account
                .handle
                .iter()
                .map(|handle| format!("at://{handle}"))
                .collect(),
            signing_key: key.public_key().to_did_key(),
            endpoint: parts.config.public_url(),
        })
    }

    /// The document of a DID of the network and the handle that it claims, if that leads back; `fresh` goes past the cache.
    ///
    /// # Errors
    /// See [`DidError`].
    pub async fn resolve(&self, did: &Did, fresh: bool) -> Result<Resolved, DidError> {
        let names = &self.parts().names;
        let document = names.document(did, fresh).await?;
        let handle = match document.handle() {
            Some(handle) if self.leads_to(&handle, did).await => Some(handle),
            _ => None,
        };
        Ok(Resolved { document, handle })
    }

    /// Whether a handle leads to `did`: one of this server's by its accounts, others by the network.
    async fn leads_to(&self, handle: &Handle, did: &Did) -> bool {
        self.did_of(handle).await.as_ref() == Some(did)
    }

    /// The DID that a handle leads to: of an active account here, or out there. Below this server's own domains there is nobody else.
    pub async fn did_of(&self, handle: &Handle) -> Option<Did> {
        let parts = self.parts();
        let local = parts.accounts.by_handle(handle).await.ok().flatten();
        match local.filter(|account| account.is_active()) {
            Some(account) => Some(account.did),
            None if parts.names.is_service_handle(handle) => None,
            None => parts.names.resolve_handle(handle).await,
        }
    }

    /// Everything that was written here is in the replica, so that what depends on it may be told to others.
    async fn replicated(&self) -> Result<(), IdentityError> {
        let core = &self.parts().core;
        let replicated = core.in_time(core.replicated()).await;
        replicated
            .map_err(ChangeError::from)?
            .map_err(|error| ChangeError::Closed(error.to_string()))?;
        Ok(())
    }

    /// The document of `did` has changed: the cached one goes. What cannot be fetched now is fetched when it is needed.
    async fn document_has_changed(&self, did: &Did) {
        if let Err(error) = self.parts().names.document(did, true).await {
            tracing::warn!(%did, %error, "a changed DID document cannot be fetched now");
        }
    }
}

fn internal(error: &dyn std::fmt::Display) -> IdentityError {
    IdentityError::Change(ChangeError::Internal(error.to_string()))
}
