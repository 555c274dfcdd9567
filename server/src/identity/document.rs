//! A DID document, as far as this server reads it. Spec: <https://atproto.com/specs/did#did-documents>.

use engine::repo::keys::{KeyError, PublicKey};
use engine::repo::{Did, Handle};
use serde_json::Value;

use crate::plc::op::PDS_SERVICE_TYPE;

/// Fragment of an account's server.
pub const PDS_FRAGMENT: &str = "atproto_pds";

/// Why JSON is not the document of a DID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Not a JSON object with an `id`.
    #[error("not a DID document")]
    Shape,
    /// The document of another DID.
    #[error("the document is another DID's")]
    OtherDid,
}

/// A document whose `id` is the DID that it was asked for. Everything else in it is looked at when it is needed, and what
/// is malformed counts as missing.
#[derive(Clone, Debug, PartialEq)]
pub struct DidDocument {
    did: Did,
    json: Value,
}

impl DidDocument {
    /// Takes `json` as the document of `did`.
    ///
    /// # Errors
    /// [`DocumentError`] if it is none, or another's.
    pub fn from_json(did: &Did, json: Value) -> Result<DidDocument, DocumentError> {
        let id = json
            .get("id")
            .and_then(Value::as_str)
            .ok_or(DocumentError::Shape)?;
        if id == did.as_str() {
            Ok(DidDocument {
                did: did.clone(),
                json,
            })
        } else {
            Err(DocumentError::OtherDid)
        }
    }

    /// Whose document it is.
    #[must_use]
    pub fn did(&self) -> &Did {
        &self.did
    }

    /// The document as it was found.
    #[must_use]
    pub fn json(&self) -> &Value {
        &self.json
    }

    /// The handle that the document claims: its first `at://` alias. A claim only, until it resolves to this DID.
    #[must_use]
    pub fn handle(&self) -> Option<Handle> {
        self.list("alsoKnownAs")
            .filter_map(Value::as_str)
            .find_map(|alias| alias.strip_prefix("at://"))
            .and_then(|handle| handle.parse().ok())
    }

    /// The key under `#fragment`, such as `atproto`; `None` if there is none.
    ///
    /// # Errors
    /// There is one, and it is of a kind or form that cannot be used.
    pub fn key(&self, fragment: &str) -> Result<Option<PublicKey>, KeyError> {
        let Some(method) = self
            .list("verificationMethod")
            .find(|method| self.names(method, fragment))
        else {
            return Ok(None);
        };
        let text = |field| method.get(field).and_then(Value::as_str);
        match (text("type"), text("publicKeyMultibase")) {
            (Some(kind), Some(multibase)) => PublicKey::from_verification_method(kind, multibase).map(Some),
            _ => Err(KeyError::Multibase),
        }
    }

    /// The endpoint of the service under `#fragment`, whatever its type, if it is an `http` or `https` URL.
    #[must_use]
    pub fn service(&self, fragment: &str) -> Option<&str> {
        self.endpoint(fragment, None)
    }

    /// The account's server.
    #[must_use]
    pub fn pds(&self) -> Option<&str> {
        self.endpoint(PDS_FRAGMENT, Some(PDS_SERVICE_TYPE))
    }

    fn endpoint(&self, fragment: &str, kind: Option<&str>) -> Option<&str> {
        let service = self
            .list("service")
            .find(|service| self.names(service, fragment))?;
        if kind.is_some() && service.get("type").and_then(Value::as_str) != kind {
            return None;
        }
        let endpoint = service.get("serviceEndpoint").and_then(Value::as_str)?;
        let (scheme, rest) = endpoint.split_once("://")?;
        let sound = matches!(scheme, "https" | "http") && !rest.is_empty();
        sound.then_some(endpoint)
    }

    fn list(&self, field: &str) -> impl Iterator<Item = &Value> {
        self.json
            .get(field)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    }

    /// Whether `entry` has the id `#fragment`, written short or with the DID before it.
    fn names(&self, entry: &Value, fragment: &str) -> bool {
        let id = entry.get("id").and_then(Value::as_str).unwrap_or_default();
        let id = id.strip_prefix(self.did.as_str()).unwrap_or(id);
        id.strip_prefix('#') == Some(fragment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::clock::SeededEntropy;
    use engine::repo::keys::SigningKey;
    use serde_json::json;

    fn did() -> Did {
        "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().unwrap()
    }

    #[test]
    fn keys_services_and_the_handle_are_found_under_short_and_long_ids() {
        let key = SigningKey::generate(&SeededEntropy::new(1)).unwrap().public_key();
        let json = json!({
            "id": did(),
            "alsoKnownAs": ["https://elsewhere.example", "at://Alice.test"],
            "verificationMethod": [
                {"id": "#other", "type": "Unknown", "publicKeyMultibase": "z"},
                {"id": format!("{}#atproto", did()), "type": "Multikey", "publicKeyMultibase": key.to_multibase()},
            ],
            "service": [
                {"id": "#atproto_pds", "type": PDS_SERVICE_TYPE, "serviceEndpoint": "https://pds.example"},
                {"id": "#feed", "type": "Feed", "serviceEndpoint": "javascript:alert(1)"},
            ],
        });
        let document = DidDocument::from_json(&did(), json).unwrap();
        assert_eq!(document.handle().unwrap().as_str(), "alice.test");
        assert_eq!(document.key("atproto"), Ok(Some(key)));
        assert_eq!(document.key("missing"), Ok(None));
        assert!(document.key("other").is_err());
        assert_eq!(document.pds(), Some("https://pds.example"));
        assert_eq!(document.service("feed"), None);
    }

    #[test]
    fn documents_of_others_and_odd_ones_are_refused_or_empty() {
        let refused = DidDocument::from_json(&did(), json!({"id": "did:plc:other"}));
        assert_eq!(refused, Err(DocumentError::OtherDid));
        for odd in [json!([]), json!("x"), json!({}), json!({"id": 7})] {
            assert_eq!(DidDocument::from_json(&did(), odd), Err(DocumentError::Shape));
        }
        let odd = json!({"id": did(), "alsoKnownAs": 1, "verificationMethod": {}, "service": [1, {"id": "#atproto_pds"}]});
        let odd = DidDocument::from_json(&did(), odd).unwrap();
        assert_eq!(
            (odd.handle(), odd.key("atproto"), odd.pds()),
            (None, Ok(None), None)
        );
    }
}
