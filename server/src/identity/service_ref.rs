//! A service by its DID and the id of its entry there: `did:web:api.example#bsky_appview`.

use std::fmt;
use std::str::FromStr;

use engine::repo::{Did, Handle};

/// A DID of a method that the protocol knows, and perhaps which of its services is meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceRef {
    /// Whose service.
    pub did: Did,
    /// The entry's id without `#`; never empty.
    pub fragment: Option<String>,
}

/// Why a text names no service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceRefError {
    /// There is nothing before `#`.
    #[error("no did")]
    NoDid,
    /// Not a DID, or not a did:plc or did:web as accounts and services have.
    #[error("not a did:plc or did:web")]
    Did,
    /// `#` without an id, more than one, or an id with a blank.
    #[error("not a service id")]
    Fragment,
}

impl FromStr for ServiceRef {
    type Err = ServiceRefError;

    fn from_str(text: &str) -> Result<ServiceRef, ServiceRefError> {
        let (did, fragment) = match text.split_once('#') {
            Some((did, fragment)) => (did, Some(fragment)),
            None => (text, None),
        };
        if did.is_empty() {
            return Err(ServiceRefError::NoDid);
        }
        let odd = |fragment: &str| {
            fragment.is_empty() || fragment.contains('#') || !fragment.bytes().all(|b| b.is_ascii_graphic())
        };
        if fragment.is_some_and(odd) {
            return Err(ServiceRefError::Fragment);
        }
        let did = did.parse::<Did>().map_err(|_| ServiceRefError::Did)?;
        if !is_known(&did) {
            return Err(ServiceRefError::Did);
        }
        Ok(ServiceRef {
            did,
            fragment: fragment.map(str::to_owned),
        })
    }
}

impl fmt::Display for ServiceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.did.as_str())?;
        match &self.fragment {
            Some(fragment) => write!(f, "#{fragment}"),
            None => Ok(()),
        }
    }
}

/// Whether a DID has the form that the protocol allows: did:plc, or did:web of a bare host; with a port only `localhost`.
fn is_known(did: &Did) -> bool {
    let identifier = did.identifier();
    match did.method() {
        "plc" => identifier.len() == 24 && identifier.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7')),
        "web" => {
            let port = identifier.to_ascii_lowercase();
            let port = port
                .strip_prefix("localhost")
                .map(|port| match port.strip_prefix("%3a") {
                    Some(port) => port.parse::<u16>().is_ok(),
                    None => port.is_empty(),
                });
            port == Some(true) || identifier.parse::<Handle>().is_ok()
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dids_with_and_without_a_service_are_read_and_written_alike() {
        for text in [
            "did:web:api.example.com",
            "did:web:api.example.com#bsky_appview",
            "did:plc:ewvi7nxzyoun6zhxrhs64oiz#atproto_labeler",
            "did:web:localhost%3A2584#x",
            "did:web:localhost",
        ] {
            assert_eq!(text.parse::<ServiceRef>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn whatever_names_no_service_is_refused() {
        use ServiceRefError::{Did, Fragment, NoDid};
        for (text, error) in [
            ("", NoDid),
            ("#bsky_appview", NoDid),
            ("did:web:api.example.com#", Fragment),
            ("did:web:api.example.com#a#b", Fragment),
            ("did:web:api.example.com#a b", Fragment),
            ("did:web:api.example.com ", Did),
            ("did:plc:short#a", Did),
            ("did:web:api.example.com:path#a", Did),
            ("did:web:api.example.com%3A8080", Did),
            ("did:web:localhost%3Aport", Did),
            ("did:key:zQ3#a", Did),
            ("alice.test", Did),
        ] {
            assert_eq!(text.parse::<ServiceRef>(), Err(error), "{text}");
        }
    }
}
