//! Schemas as they are written, and as they are kept: references resolved, every rule ready to be applied.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use engine::repo::{Nsid, RecordKey, Tid};
use serde::Deserialize;

use super::formats::Format;

/// Why definitions cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// Not of the form of definitions.
    #[error("not lexicon definitions: {0}")]
    Form(String),
    /// Something is referenced that is not there.
    #[error("{0} is referenced and not there")]
    Missing(String),
    /// A definition that only a field may have.
    #[error("{0} is a ref, a union or unknown, which only a field may be")]
    FieldOnly(String),
    /// A record is not an object, or is defined inside of something.
    #[error("a record in {0} is no object of its own")]
    Record(String),
    /// A rule for record keys or text that nobody knows.
    #[error("{0:?} is no rule for record keys and no format of text")]
    Rule(String),
    /// A field is required or nullable and not defined.
    #[error("the field {0:?} is required or nullable and not defined")]
    Field(String),
}

/// A definition or a field, as lexicon documents have it. What is not needed for validation is passed over.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub(super) enum Written {
    Record {
        key: String,
        record: Box<Written>,
    },
    Object {
        #[serde(default)]
        required: Vec<String>,
        #[serde(default)]
        nullable: Vec<String>,
        #[serde(default)]
        properties: BTreeMap<String, Written>,
    },
    String(TextRule),
    Integer(IntegerRule),
    Boolean {
        #[serde(rename = "const")]
        constant: Option<bool>,
    },
    Bytes(Length),
    CidLink,
    Blob(BlobRule),
    Array {
        items: Box<Written>,
        #[serde(flatten)]
        length: Length,
    },
    Ref {
        #[serde(rename = "ref")]
        target: String,
    },
    Union {
        refs: Vec<String>,
        #[serde(default)]
        closed: bool,
    },
    Unknown,
    Token,
}

/// How many there may be of something.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Length {
    pub(super) min_length: Option<usize>,
    pub(super) max_length: Option<usize>,
}

/// What is asked of text.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct TextRule {
    pub(super) min_length: Option<usize>,
    pub(super) max_length: Option<usize>,
    pub(super) min_graphemes: Option<usize>,
    pub(super) max_graphemes: Option<usize>,
    #[serde(deserialize_with = "Format::named")]
    pub(super) format: Option<Format>,
    #[serde(rename = "enum")]
    pub(super) one_of: Option<Vec<Box<str>>>,
    #[serde(rename = "const")]
    pub(super) constant: Option<Box<str>>,
}

/// What is asked of an integer.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct IntegerRule {
    pub(super) minimum: Option<i64>,
    pub(super) maximum: Option<i64>,
    #[serde(rename = "enum")]
    pub(super) one_of: Option<Vec<i64>>,
    #[serde(rename = "const")]
    pub(super) constant: Option<i64>,
}

/// What is asked of a blob, of what the record claims of it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct BlobRule {
    /// MIME types, `image/*` and `*/*`.
    pub(super) accept: Option<Vec<Box<str>>>,
    pub(super) max_size: Option<u64>,
}

/// A schema, ready to be applied.
#[derive(Debug)]
pub(super) enum Schema {
    Object(Vec<Property>),
    Text(TextRule),
    Integer(IntegerRule),
    Boolean(Option<bool>),
    Bytes(Length),
    Link,
    Blob(BlobRule),
    Array(Box<Schema>, Length),
    /// A definition.
    Ref(usize),
    Union {
        definitions: Vec<usize>,
        closed: bool,
    },
    Unknown,
    Token,
}

/// A field of an object.
#[derive(Debug)]
pub(super) struct Property {
    pub(super) name: Box<str>,
    pub(super) schema: Schema,
    pub(super) required: bool,
    pub(super) nullable: bool,
}

/// A definition with its name, `nsid` or `nsid#name`.
#[derive(Debug)]
pub(super) struct Definition {
    pub(super) name: Box<str>,
    pub(super) schema: Schema,
}

/// What record keys of a type have to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyRule {
    /// Anything that is a record key.
    Any,
    /// A TID.
    Tid,
    /// An NSID.
    Nsid,
    /// Exactly this, so there is one such record in a repo.
    Literal(Box<str>),
}

impl KeyRule {
    fn named(rule: &str) -> Result<KeyRule, SchemaError> {
        match rule {
            "any" => Ok(KeyRule::Any),
            "tid" => Ok(KeyRule::Tid),
            "nsid" => Ok(KeyRule::Nsid),
            _ => match rule.strip_prefix("literal:") {
                Some(key) if RecordKey::check(key).is_ok() => Ok(KeyRule::Literal(key.into())),
                _ => Err(SchemaError::Rule(rule.to_owned())),
            },
        }
    }

    /// Whether `rkey` follows the rule.
    #[must_use]
    pub fn takes(&self, rkey: &RecordKey) -> bool {
        match self {
            KeyRule::Any => true,
            KeyRule::Tid => rkey.as_str().parse::<Tid>().is_ok(),
            KeyRule::Nsid => Nsid::check(rkey.as_str()).is_ok(),
            KeyRule::Literal(key) => rkey.as_str() == &**key,
        }
    }
}

impl fmt::Display for KeyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyRule::Any => f.write_str("a record key"),
            KeyRule::Tid => f.write_str("a TID"),
            KeyRule::Nsid => f.write_str("an NSID"),
            KeyRule::Literal(key) => write!(f, "{key:?}"),
        }
    }
}

/// Lexicons with all that they reference.
#[derive(Debug)]
pub struct Lexicons {
    pub(super) definitions: Vec<Definition>,
    /// Key rule and definition of each type of records.
    pub(super) records: HashMap<Box<str>, (KeyRule, usize)>,
}

impl Lexicons {
    /// Reads a bundle: a JSON object of definitions by name, in which `nsid` is the main one of a document and
    /// `nsid#name` another.
    ///
    /// # Errors
    /// Something is not a definition, or references what is not there.
    pub fn from_bundle(json: &str) -> Result<Lexicons, SchemaError> {
        let written: BTreeMap<String, Written> =
            serde_json::from_str(json).map_err(|error| SchemaError::Form(error.to_string()))?;
        Lexicons::compile(&written)
    }

    pub(super) fn compile(written: &BTreeMap<String, Written>) -> Result<Lexicons, SchemaError> {
        let places: HashMap<&str, usize> = written.keys().map(String::as_str).zip(0..).collect();
        let mut lexicons = Lexicons {
            definitions: Vec::with_capacity(written.len()),
            records: HashMap::new(),
        };
        for (name, definition) in written {
            let scope = Scope {
                name,
                places: &places,
            };
            let schema = match definition {
                Written::Record { key, record } => {
                    if name.contains('#') || !matches!(**record, Written::Object { .. }) {
                        return Err(SchemaError::Record(name.clone()));
                    }
                    let place = lexicons.definitions.len();
                    lexicons
                        .records
                        .insert(name.as_str().into(), (KeyRule::named(key)?, place));
                    scope.compile(record)?
                }
                Written::Ref { .. } | Written::Union { .. } | Written::Unknown => {
                    return Err(SchemaError::FieldOnly(name.clone()));
                }
                other => scope.compile(other)?,
            };
            lexicons.definitions.push(Definition {
                name: name.as_str().into(),
                schema,
            });
        }
        Ok(lexicons)
    }

    /// The collections whose records are known.
    pub fn collections(&self) -> impl Iterator<Item = &str> {
        self.records.keys().map(|name| &**name)
    }
}

/// The whole name of what `reference` means in the document of `name`, without `#main`.
pub(super) fn absolute(reference: &str, name: &str) -> String {
    let document = name.split('#').next().unwrap_or(name);
    let whole = match reference.strip_prefix('#') {
        Some(definition) => format!("{document}#{definition}"),
        None => reference.to_owned(),
    };
    match whole.strip_suffix("#main") {
        Some(document) => document.to_owned(),
        None => whole,
    }
}

/// Where a definition is written.
struct Scope<'w> {
    name: &'w str,
    places: &'w HashMap<&'w str, usize>,
}

impl Scope<'_> {
    fn place(&self, reference: &str) -> Result<usize, SchemaError> {
        let name = absolute(reference, self.name);
        let place = self.places.get(name.as_str()).copied();
        place.ok_or(SchemaError::Missing(name))
    }

    fn compile(&self, written: &Written) -> Result<Schema, SchemaError> {
        Ok(match written {
            Written::Record { .. } => return Err(SchemaError::Record(self.name.to_owned())),
            Written::Object {
                required,
                nullable,
                properties,
            } => {
                let mut named = required.iter().chain(nullable);
                if let Some(missing) = named.find(|field| !properties.contains_key(*field)) {
                    return Err(SchemaError::Field(missing.clone()));
                }
                let property = |(name, written): (&String, &Written)| {
                    Ok(Property {
                        name: name.as_str().into(),
                        schema: self.compile(written)?,
                        required: required.contains(name),
                        nullable: nullable.contains(name),
                    })
                };
                Schema::Object(
                    properties
                        .iter()
                        .map(property)
                        .collect::<Result<_, SchemaError>>()?,
                )
            }
            Written::String(rule) => Schema::Text(rule.clone()),
            Written::Integer(rule) => Schema::Integer(rule.clone()),
            Written::Boolean { constant } => Schema::Boolean(*constant),
            Written::Bytes(length) => Schema::Bytes(*length),
            Written::CidLink => Schema::Link,
            Written::Blob(rule) => Schema::Blob(rule.clone()),
            Written::Array { items, length } => Schema::Array(Box::new(self.compile(items)?), *length),
            Written::Ref { target } => Schema::Ref(self.place(target)?),
            Written::Union { refs, closed } => Schema::Union {
                definitions: refs
                    .iter()
                    .map(|target| self.place(target))
                    .collect::<Result<_, _>>()?,
                closed: *closed,
            },
            Written::Unknown => Schema::Unknown,
            Written::Token => Schema::Token,
        })
    }
}
