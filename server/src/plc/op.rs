//! One did:plc operation: its forms, its bytes, its signature, the DID that a first one gives.
//!
//! An operation is signed over its DAG-CBOR without `sig`, and named by the CID of its DAG-CBOR with it. The DID is
//! `did:plc:` and the first 24 characters of the base32 SHA-256 of the first signed operation.

use std::collections::BTreeMap;

use data_encoding::BASE64URL_NOPAD;
use engine::repo::cbor::{Map, Value};
use engine::repo::keys::{PublicKey, SIGNATURE_BYTES, SigningError, SigningKey};
use engine::repo::{Cid, Did, Handle};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Longest operation, in bytes of DAG-CBOR.
pub const MAX_OPERATION_BYTES: usize = 7500;
/// Most rotation keys; one is the least.
pub const MAX_ROTATION_KEYS: usize = 10;
/// Most verification methods.
pub const MAX_VERIFICATION_METHODS: usize = 10;
/// Most aliases.
pub const MAX_ALIASES: usize = 10;
/// Most services.
pub const MAX_SERVICES: usize = 10;
/// Longest name of a verification method or service, in bytes.
pub const MAX_NAME_BYTES: usize = 32;
/// Longest key, alias or service type, in bytes.
pub const MAX_FIELD_BYTES: usize = 256;
/// Longest service endpoint, in bytes.
pub const MAX_ENDPOINT_BYTES: usize = 512;

/// Name of the account's signing key among the verification methods.
pub const ATPROTO_KEY: &str = "atproto";
/// Name of the account's server among the services.
pub const PDS_SERVICE: &str = "atproto_pds";
/// Type of the account's server.
pub const PDS_SERVICE_TYPE: &str = "AtprotoPersonalDataServer";

const TYPE_OPERATION: &str = "plc_operation";
const TYPE_TOMBSTONE: &str = "plc_tombstone";
const TYPE_CREATE: &str = "create";
const SHA256_BASE32_CHARS: usize = 24;

/// Why an operation is not one, or may not be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpError {
    /// A field is missing, unknown, or of the wrong type.
    #[error("not a did:plc operation: {0}")]
    Shape(String),
    /// A field breaks a limit.
    #[error("{field}: {rule}")]
    Field {
        /// Which one.
        field: &'static str,
        /// What it must be.
        rule: &'static str,
    },
    /// Longer than [`MAX_OPERATION_BYTES`].
    #[error("the operation has {bytes} bytes, more than {MAX_OPERATION_BYTES}")]
    TooLarge {
        /// Its length in DAG-CBOR.
        bytes: usize,
    },
    /// `sig` is not 64 bytes of unpadded base64url, or by none of the keys that may sign.
    #[error("the signature is by none of the keys that may sign this operation")]
    Signature,
}

/// A service of an account, such as its PDS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Its type in the DID document.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its URL.
    pub endpoint: String,
}

/// The whole state of a DID, as one operation sets it. Keys are `did:key` text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlcState {
    /// Keys that may sign the next operation, strongest first.
    pub rotation_keys: Vec<String>,
    /// Keys for use, by name.
    pub verification_methods: BTreeMap<String, String>,
    /// Other names, `at://<handle>` first.
    pub also_known_as: Vec<String>,
    /// Services, by name.
    pub services: BTreeMap<String, Service>,
}

impl PlcState {
    /// The state of an account of ours: its handle, its signing key, its server, and who may change that.
    #[must_use]
    pub fn account(
        rotation_keys: &[PublicKey],
        signing_key: &PublicKey,
        handle: &Handle,
        pds: &str,
    ) -> PlcState {
        let service = Service {
            kind: PDS_SERVICE_TYPE.to_owned(),
            endpoint: pds.to_owned(),
        };
        PlcState {
            rotation_keys: rotation_keys.iter().map(PublicKey::to_did_key).collect(),
            verification_methods: BTreeMap::from([(ATPROTO_KEY.to_owned(), signing_key.to_did_key())]),
            also_known_as: vec![format!("at://{handle}")],
            services: BTreeMap::from([(PDS_SERVICE.to_owned(), service)]),
        }
    }

    /// Puts `handle` where the first `at://` alias was, or first; other aliases stay.
    pub fn set_handle(&mut self, handle: &Handle) {
        let alias = format!("at://{handle}");
        match self
            .also_known_as
            .iter()
            .position(|alias| alias.starts_with("at://"))
        {
            Some(at) => {
                if let Some(old) = self.also_known_as.get_mut(at) {
                    *old = alias;
                }
            }
            None => self.also_known_as.insert(0, alias),
        }
    }

    fn check(&self) -> Result<(), OpError> {
        let field = |field, rule, good: bool| {
            if good {
                Ok(())
            } else {
                Err(OpError::Field { field, rule })
            }
        };
        let keys = &self.rotation_keys;
        field(
            "rotationKeys",
            "must hold 1 to 10 keys",
            (1..=MAX_ROTATION_KEYS).contains(&keys.len()),
        )?;
        let distinct = keys
            .iter()
            .enumerate()
            .all(|(at, key)| !keys.iter().take(at).any(|other| other == key));
        field("rotationKeys", "must not hold a key twice", distinct)?;
        let sound = keys.iter().all(|key| PublicKey::from_did_key(key).is_ok());
        field("rotationKeys", "must be did:key of secp256k1 or P-256", sound)?;

        let methods = &self.verification_methods;
        field(
            "verificationMethods",
            "must be at most 10",
            methods.len() <= MAX_VERIFICATION_METHODS,
        )?;
        let named = methods.keys().all(|name| is_name(name));
        field("verificationMethods", "names must be 1 to 32 bytes", named)?;
        // Keys for use may be of any curve; the directory never checks a signature with them.
        let sound = methods.values().all(|key| is_did_key(key));
        field(
            "verificationMethods",
            "must be did:key in base58btc, at most 256 bytes",
            sound,
        )?;

        let aliases = &self.also_known_as;
        field("alsoKnownAs", "must be at most 10", aliases.len() <= MAX_ALIASES)?;
        let short = aliases
            .iter()
            .all(|alias| !alias.is_empty() && alias.len() <= MAX_FIELD_BYTES);
        field("alsoKnownAs", "must be 1 to 256 bytes each", short)?;

        let services = &self.services;
        field("services", "must be at most 10", services.len() <= MAX_SERVICES)?;
        field(
            "services",
            "names must be 1 to 32 bytes",
            services.keys().all(|name| is_name(name)),
        )?;
        let typed = services
            .values()
            .all(|service| (1..=MAX_FIELD_BYTES).contains(&service.kind.len()));
        field("services", "types must be 1 to 256 bytes", typed)?;
        let ended = services
            .values()
            .all(|service| (1..=MAX_ENDPOINT_BYTES).contains(&service.endpoint.len()));
        field("services", "endpoints must be 1 to 512 bytes", ended)
    }
}

fn is_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
}

fn is_did_key(key: &str) -> bool {
    let base58 = |byte: u8| byte.is_ascii_alphanumeric() && !matches!(byte, b'0' | b'O' | b'I' | b'l');
    key.len() <= MAX_FIELD_BYTES
        && key
            .strip_prefix("did:key:z")
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(base58))
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Body {
    Operation {
        state: PlcState,
        prev: Option<Cid>,
    },
    Tombstone {
        prev: Cid,
    },
    Create {
        signing_key: String,
        recovery_key: String,
        handle: String,
        service: String,
    },
}

/// A signed operation, sound in itself: every field within its limits. Whether its signature holds depends on the
/// operation before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    body: Body,
    sig: String,
    cid: Cid,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct OperationJson {
    #[serde(rename = "type")]
    kind: String,
    rotation_keys: Vec<String>,
    verification_methods: BTreeMap<String, String>,
    also_known_as: Vec<String>,
    services: BTreeMap<String, Service>,
    /// `null` is required of a first operation, so a missing field is an error.
    #[serde(deserialize_with = "Option::deserialize")]
    prev: Option<String>,
    sig: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TombstoneJson {
    #[serde(rename = "type")]
    kind: String,
    prev: String,
    sig: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct CreateJson {
    #[serde(rename = "type")]
    kind: String,
    signing_key: String,
    recovery_key: String,
    handle: String,
    service: String,
    #[serde(deserialize_with = "Option::deserialize")]
    prev: Option<String>,
    sig: String,
}

impl Operation {
    /// A first operation: the DID that it gives is [`Operation::did`]. `key` must be among the rotation keys.
    ///
    /// # Errors
    /// A field breaks its limit, or signing failed.
    pub fn genesis(state: PlcState, key: &SigningKey) -> Result<Operation, SignOpError> {
        Operation::sign(Body::Operation { state, prev: None }, key)
    }

    /// An operation that follows `prev` and sets the whole state.
    ///
    /// # Errors
    /// As [`Operation::genesis`].
    pub fn update(state: PlcState, prev: Cid, key: &SigningKey) -> Result<Operation, SignOpError> {
        Operation::sign(
            Body::Operation {
                state,
                prev: Some(prev),
            },
            key,
        )
    }

    /// An operation that follows `prev` and ends the DID.
    ///
    /// # Errors
    /// Signing failed.
    pub fn tombstone(prev: Cid, key: &SigningKey) -> Result<Operation, SignOpError> {
        Operation::sign(Body::Tombstone { prev }, key)
    }

    fn sign(body: Body, key: &SigningKey) -> Result<Operation, SignOpError> {
        let signature = key.sign(&body.encode(None)).map_err(SignOpError::Signing)?;
        Ok(Operation::checked(body, BASE64URL_NOPAD.encode(&signature))?)
    }

    fn checked(body: Body, sig: String) -> Result<Operation, OpError> {
        body.check()?;
        let bytes = body.encode(Some(&sig));
        if bytes.len() > MAX_OPERATION_BYTES {
            return Err(OpError::TooLarge { bytes: bytes.len() });
        }
        let cid = Cid::for_dag_cbor(&bytes);
        Ok(Operation { body, sig, cid })
    }

    /// Reads the JSON form. Unknown fields are refused: they would not be covered by what is checked here.
    ///
    /// # Errors
    /// Not an operation, or a field breaks its limit. The signature is not checked.
    pub fn from_json(json: &serde_json::Value) -> Result<Operation, OpError> {
        let shape = |error: serde_json::Error| OpError::Shape(error.to_string());
        let link = |text: &str| {
            text.parse::<Cid>().map_err(|_| OpError::Field {
                field: "prev",
                rule: "must be the CID of an operation",
            })
        };
        let (body, sig) = match json.get("type").and_then(serde_json::Value::as_str) {
            Some(TYPE_OPERATION) => {
                let found = OperationJson::deserialize(json).map_err(shape)?;
                let prev = found.prev.as_deref().map(link).transpose()?;
                let state = PlcState {
                    rotation_keys: found.rotation_keys,
                    verification_methods: found.verification_methods,
                    also_known_as: found.also_known_as,
                    services: found.services,
                };
                (Body::Operation { state, prev }, found.sig)
            }
            Some(TYPE_TOMBSTONE) => {
                let found = TombstoneJson::deserialize(json).map_err(shape)?;
                (
                    Body::Tombstone {
                        prev: link(&found.prev)?,
                    },
                    found.sig,
                )
            }
            Some(TYPE_CREATE) => {
                let found = CreateJson::deserialize(json).map_err(shape)?;
                if found.prev.is_some() {
                    return Err(OpError::Field {
                        field: "prev",
                        rule: "must be null in a create operation",
                    });
                }
                let body = Body::Create {
                    signing_key: found.signing_key,
                    recovery_key: found.recovery_key,
                    handle: found.handle,
                    service: found.service,
                };
                (body, found.sig)
            }
            _ => return Err(OpError::Shape("unknown type".to_owned())),
        };
        Operation::checked(body, sig)
    }

    /// The JSON form, as it is sent and logged.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let sig = self.sig.clone();
        match &self.body {
            Body::Operation { state, prev } => serde_json::json!({
                "type": TYPE_OPERATION,
                "rotationKeys": state.rotation_keys,
                "verificationMethods": state.verification_methods,
                "alsoKnownAs": state.also_known_as,
                "services": state.services,
                "prev": prev.map(|cid| cid.to_string()),
                "sig": sig,
            }),
            Body::Tombstone { prev } => {
                serde_json::json!({"type": TYPE_TOMBSTONE, "prev": prev.to_string(), "sig": sig})
            }
            Body::Create {
                signing_key,
                recovery_key,
                handle,
                service,
            } => serde_json::json!({
                "type": TYPE_CREATE,
                "signingKey": signing_key,
                "recoveryKey": recovery_key,
                "handle": handle,
                "service": service,
                "prev": null,
                "sig": sig,
            }),
        }
    }

    /// The name of this operation, which the next one gives as `prev`.
    #[must_use]
    pub fn cid(&self) -> Cid {
        self.cid
    }

    /// The operation that this one follows; `None` of a first one.
    #[must_use]
    pub fn prev(&self) -> Option<Cid> {
        match &self.body {
            Body::Operation { prev, .. } => *prev,
            Body::Tombstone { prev } => Some(*prev),
            Body::Create { .. } => None,
        }
    }

    /// Whether it ends its DID.
    #[must_use]
    pub fn is_tombstone(&self) -> bool {
        matches!(self.body, Body::Tombstone { .. })
    }

    /// Whether it has the form from before `plc_operation`. Such operations are read, not made.
    #[must_use]
    pub fn is_legacy(&self) -> bool {
        matches!(self.body, Body::Create { .. })
    }

    /// The state that it sets; `None` of a tombstone. The old form is given in the terms of the new.
    #[must_use]
    pub fn state(&self) -> Option<PlcState> {
        match &self.body {
            Body::Operation { state, .. } => Some(state.clone()),
            Body::Tombstone { .. } => None,
            Body::Create {
                signing_key,
                recovery_key,
                handle,
                service,
            } => {
                let with_scheme = |text: &str, known: &[&str], scheme: &str| {
                    if known.iter().any(|known| text.starts_with(known)) {
                        text.to_owned()
                    } else {
                        format!("{scheme}{text}")
                    }
                };
                let endpoint = with_scheme(service, &["https://", "http://"], "https://");
                let pds = Service {
                    kind: PDS_SERVICE_TYPE.to_owned(),
                    endpoint,
                };
                Some(PlcState {
                    rotation_keys: vec![recovery_key.clone(), signing_key.clone()],
                    verification_methods: BTreeMap::from([(ATPROTO_KEY.to_owned(), signing_key.clone())]),
                    also_known_as: vec![with_scheme(handle, &["at://"], "at://")],
                    services: BTreeMap::from([(PDS_SERVICE.to_owned(), pds)]),
                })
            }
        }
    }

    /// The DID that this operation founds; `None` if it follows another.
    #[must_use]
    pub fn did(&self) -> Option<Did> {
        if self.prev().is_some() {
            return None;
        }
        let digest = Sha256::digest(self.body.encode(Some(&self.sig)));
        let mut name = data_encoding::BASE32_NOPAD.encode(&digest).to_ascii_lowercase();
        name.truncate(SHA256_BASE32_CHARS);
        format!("did:plc:{name}").parse().ok()
    }

    /// The first of `keys` (`did:key` text, strongest first) that signed this, as its place in the list.
    ///
    /// # Errors
    /// [`OpError::Signature`] if none did.
    pub fn signed_by(&self, keys: &[String]) -> Result<usize, OpError> {
        let signature = BASE64URL_NOPAD
            .decode(self.sig.as_bytes())
            .map_err(|_| OpError::Signature)?;
        if signature.len() != SIGNATURE_BYTES {
            return Err(OpError::Signature);
        }
        let message = self.body.encode(None);
        keys.iter()
            .position(|key| {
                PublicKey::from_did_key(key).is_ok_and(|key| key.verify(&message, &signature).is_ok())
            })
            .ok_or(OpError::Signature)
    }
}

/// Why an operation was not made.
#[derive(Debug, thiserror::Error)]
pub enum SignOpError {
    /// What was asked for breaks a rule.
    #[error(transparent)]
    Invalid(#[from] OpError),
    /// The key did not sign.
    #[error("a did:plc operation could not be signed")]
    Signing(#[source] SigningError),
}

impl Body {
    fn check(&self) -> Result<(), OpError> {
        match self {
            Body::Operation { state, .. } => state.check(),
            Body::Tombstone { .. } => Ok(()),
            Body::Create {
                signing_key,
                recovery_key,
                handle,
                service,
            } => {
                for key in [signing_key, recovery_key] {
                    PublicKey::from_did_key(key).map_err(|_| OpError::Field {
                        field: "signingKey, recoveryKey",
                        rule: "must be did:key of secp256k1 or P-256",
                    })?;
                }
                if handle.len() > MAX_FIELD_BYTES || service.len() > MAX_ENDPOINT_BYTES {
                    return Err(OpError::Field {
                        field: "handle, service",
                        rule: "must be at most 256 and 512 bytes",
                    });
                }
                Ok(())
            }
        }
    }

    /// DAG-CBOR, with `sig` or as it is signed.
    fn encode(&self, sig: Option<&str>) -> Vec<u8> {
        let text = |text: &str| Value::Text(text.to_owned());
        let list =
            |items: &[String]| Value::Array(items.iter().map(|item| Value::Text(item.clone())).collect());
        let mut map = Map::new();
        match self {
            Body::Operation { state, prev } => {
                let methods = state
                    .verification_methods
                    .iter()
                    .map(|(name, key)| (name.clone(), text(key)));
                let services = state.services.iter().map(|(name, service)| {
                    let fields = [
                        ("type".to_owned(), text(&service.kind)),
                        ("endpoint".to_owned(), text(&service.endpoint)),
                    ];
                    (name.clone(), Value::Map(fields.into_iter().collect()))
                });
                map.insert("type", text(TYPE_OPERATION));
                map.insert("rotationKeys", list(&state.rotation_keys));
                map.insert("verificationMethods", Value::Map(methods.collect()));
                map.insert("alsoKnownAs", list(&state.also_known_as));
                map.insert("services", Value::Map(services.collect()));
                map.insert(
                    "prev",
                    prev.map_or(Value::Null, |cid| Value::Text(cid.to_string())),
                );
            }
            Body::Tombstone { prev } => {
                map.insert("type", text(TYPE_TOMBSTONE));
                map.insert("prev", text(&prev.to_string()));
            }
            Body::Create {
                signing_key,
                recovery_key,
                handle,
                service,
            } => {
                map.insert("type", text(TYPE_CREATE));
                map.insert("signingKey", text(signing_key));
                map.insert("recoveryKey", text(recovery_key));
                map.insert("handle", text(handle));
                map.insert("service", text(service));
                map.insert("prev", Value::Null);
            }
        }
        if let Some(sig) = sig {
            map.insert("sig", text(sig));
        }
        Value::Map(map).encode()
    }
}

#[cfg(test)]
mod tests;
