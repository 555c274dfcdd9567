//! Lexicon: what records of known types have to look like. Spec: <https://atproto.com/specs/lexicon>.
//!
//! The schemas of [`known`] are compiled in from `bundle.json`: every record definition of the published lexicons
//! `app.bsky`, `chat.bsky`, `com.atproto` and `com.germnetwork`, and all that they reference. It holds what validation
//! needs and nothing else: no descriptions, no known values, no defaults. A test makes the bundle of a folder of lexicon
//! documents again and compares (`bundle.rs` says how to renew it).
//!
//! No schema is fetched from the network: a record of another type is *unknown*, which a caller may accept. The reference
//! server (version 0.5.35) knows the same types. `tests/records` has records of each, and how its verdicts differ.
//!
//! Where the documents of the protocol leave something open, the verdict is that of the reference's validator:
//!
//! - a `$type` inside an object that is referenced (no union) has to be the definition's name, if it is there;
//! - `$type` never ends in `#main`: what says so in an open union is of an unknown type;
//! - a blob has exactly the four fields of the typed form, its MIME type is compared with case;
//! - text in format `cid` is a CID in its one canonical spelling (base32 in lower case, or version 0);
//! - a `datetime` may name a day up to 31 in any month.
//!
//! One verdict is stricter: an `at-uri` has no fragment, as the published test vectors say.

#[cfg(test)]
mod bundle;
mod check;
mod formats;
#[cfg(test)]
mod interop_tests;
mod schema;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use engine::repo::cbor::Value;
use engine::repo::{Nsid, RecordKey};

pub use schema::{KeyRule, Lexicons, SchemaError};

/// What this server knows of lexicons.
const BUNDLE: &str = include_str!("bundle.json");

/// The lexicons that are compiled in.
#[must_use]
pub fn known() -> &'static Lexicons {
    static KNOWN: LazyLock<Lexicons> = LazyLock::new(|| match Lexicons::from_bundle(BUNDLE) {
        Ok(lexicons) => lexicons,
        Err(error) => unreachable!("the bundle is part of the program, and a test reads it: {error}"),
    });
    &KNOWN
}

/// Why a record is not valid: where, and which rule it breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path} {rule}")]
pub struct Fault {
    /// Where in the record, such as `Record/embed/images/0/alt`.
    pub path: String,
    /// The rule, as it follows the path in a sentence.
    pub rule: String,
}

/// What is known of a type of records.
#[derive(Clone, Copy, Debug)]
pub struct RecordSchema<'l> {
    lexicons: &'l Lexicons,
    key: &'l KeyRule,
    definition: usize,
}

impl Lexicons {
    /// The schema of the records of a collection, if it is known.
    #[must_use]
    pub fn record(&self, collection: &Nsid) -> Option<RecordSchema<'_>> {
        let (key, definition) = self.records.get(collection.as_str())?;
        Some(RecordSchema {
            lexicons: self,
            key,
            definition: *definition,
        })
    }
}

impl<'l> RecordSchema<'l> {
    /// What its record keys have to be.
    #[must_use]
    pub fn key(&self) -> &'l KeyRule {
        self.key
    }

    /// Whether `rkey` can name such a record.
    #[must_use]
    pub fn takes_key(&self, rkey: &RecordKey) -> bool {
        self.key.takes(rkey)
    }

    /// Checks a record. What the schema does not name is allowed; nothing is filled in. Allocates nothing for a record
    /// that is valid, and takes time in proportion to the record.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self, record: &Value) -> Result<(), Fault> {
        check::record(self.lexicons, self.definition, record)
    }
}
