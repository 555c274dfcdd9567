//! Handles and DIDs of the whole network, as the use cases ask for them.

use std::fmt;
use std::sync::Arc;

use engine::clock::Clock;
use engine::repo::{Did, Handle};
use tokio_util::task::TaskTracker;

use crate::auth::service_jwt::IssuerKeys;
use crate::client::did::{CACHED_DOCUMENTS, DidCacheTimes, DidError, DidResolver, DidResolverParts};
use crate::client::dns::{Dns, DnsError, NameServers};
use crate::client::http::{FetchError, FetchPolicy, Fetcher};
use crate::client::plc::SharedPlc;
use crate::config::Config;
use crate::identity::document::DidDocument;
use crate::identity::handle::{HandleDomain, HandleError, HandlePolicy};
use crate::identity::resolve::HandleResolver;

/// Why names cannot be looked up at all.
#[derive(Debug, thiserror::Error)]
pub enum NamesError {
    /// The system's resolver.
    #[error("no name servers: {0}")]
    Dns(#[from] DnsError),
    /// The HTTP client.
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

/// Look-ups of names; cheap to clone.
#[derive(Clone)]
pub struct Names {
    dids: DidResolver,
    handles: HandleResolver,
    policy: Arc<HandlePolicy>,
    dns: Arc<dyn Dns>,
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names")
            .field("dids", &self.dids)
            .finish_non_exhaustive()
    }
}

impl Names {
    /// Look-ups as the settings want them. Background refreshes belong to `tasks`.
    ///
    /// # Errors
    /// See [`NamesError`].
    pub fn new(
        config: &Config,
        plc: SharedPlc,
        clock: Arc<dyn Clock>,
        tasks: TaskTracker,
    ) -> Result<Names, NamesError> {
        let timeout = config.resolver_timeout;
        let dns: Arc<dyn Dns> = Arc::new(NameServers::of_system(timeout)?);
        let policy = if config.allow_local {
            FetchPolicy::local(timeout)
        } else {
            FetchPolicy::public(timeout)
        };
        let fetcher = Fetcher::new(policy, dns.clone())?;
        let times = DidCacheTimes {
            stale_after: config.did_cache_stale,
            expired_after: config.did_cache_max,
        };
        let dids = DidResolver::new(DidResolverParts {
            plc,
            fetcher: fetcher.clone(),
            allow_local: config.allow_local,
            times,
            cached_documents: CACHED_DOCUMENTS,
            clock,
            tasks,
        });
        Ok(Names {
            dids,
            handles: HandleResolver::new(dns.clone(), None, fetcher, timeout),
            policy: Arc::new(HandlePolicy::new(&config.handle_domains)),
            dns,
        })
    }

    /// How hosts of the network are resolved.
    #[must_use]
    pub fn dns(&self) -> Arc<dyn Dns> {
        self.dns.clone()
    }

    /// The keys in DID documents, for those who verify what other services send.
    #[must_use]
    pub fn issuer_keys(&self) -> Arc<dyn IssuerKeys> {
        Arc::new(self.dids.clone())
    }

    /// The DID document; `fresh` goes past the cache.
    ///
    /// # Errors
    /// See [`DidError`].
    pub async fn document(&self, did: &Did, fresh: bool) -> Result<Arc<DidDocument>, DidError> {
        if fresh {
            self.dids.refresh(did).await
        } else {
            self.dids.resolve(did).await
        }
    }

    /// The DID that a handle of the network leads to.
    pub async fn resolve_handle(&self, handle: &Handle) -> Option<Did> {
        self.handles.resolve(handle).await
    }

    /// Whether a handle is, or lies below, one of the domains under which this server gives handles.
    #[must_use]
    pub fn is_service_handle(&self, handle: &Handle) -> bool {
        let is_bare = |domain: &String| domain.strip_prefix('.') == Some(handle.as_str());
        self.policy.is_service_handle(handle) || self.policy.service_domains().iter().any(is_bare)
    }

    /// Checks the handle that somebody wants with a new identity.
    ///
    /// # Errors
    /// See [`HandleError`].
    pub fn check_new_handle(&self, wanted: &str) -> Result<Handle, HandleError> {
        self.policy.check_for_new_did(wanted, false)
    }

    /// Checks the handle that somebody wants for an identity that there is: one elsewhere has to lead to it now. An administrator
    /// may give reserved names.
    ///
    /// # Errors
    /// See [`HandleError`].
    pub async fn check_handle_of(
        &self,
        did: &Did,
        wanted: &str,
        by_admin: bool,
    ) -> Result<Handle, HandleError> {
        let (handle, domain) = self.policy.check(wanted, by_admin)?;
        if domain == HandleDomain::External && self.resolve_handle(&handle).await.as_ref() != Some(did) {
            return Err(HandleError::Unresolved);
        }
        Ok(handle)
    }
}
