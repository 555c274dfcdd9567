//! Everything outbound: names, web pages, DID documents, the did:plc directory. Whatever a stranger can make us fetch goes
//! through [`http`], which refuses addresses that are not public; what the operator configured does not.

pub mod did;
pub mod dns;
pub mod http;
pub mod plc;

/// Makes rustls use *ring* if nothing was chosen yet; every HTTP client needs a choice before it is built.
pub fn ensure_tls_provider() {
    // An error says that somebody chose before, which is as good.
    drop(rustls::crypto::ring::default_provider().install_default());
}
