//! The validator: one walk over a record beside its schema.

use std::fmt;

use engine::repo::cbor::{MAX_DEPTH, Map, Value};
use unicode_segmentation::UnicodeSegmentation;

use super::Fault;
use super::schema::{BlobRule, IntegerRule, Length, Lexicons, Property, Schema, TextRule};

type Checked = Result<(), Fault>;

/// Checks `record` against the definition of a record.
pub(super) fn record(lexicons: &Lexicons, definition: usize, record: &Value) -> Checked {
    let root = At {
        parent: None,
        step: Step::Root,
        depth: 0,
    };
    lexicons.named(definition, record, &root)
}

/// Where the walk is: a chain on the stack, printed only if there is something to say.
struct At<'a> {
    parent: Option<&'a At<'a>>,
    step: Step<'a>,
    depth: usize,
}

enum Step<'a> {
    Root,
    Key(&'a str),
    Index(usize),
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            write!(f, "{parent}/")?;
        }
        match self.step {
            Step::Root => f.write_str("Record"),
            Step::Key(key) => f.write_str(key),
            Step::Index(index) => write!(f, "{index}"),
        }
    }
}

impl<'a> At<'a> {
    fn below(&'a self, step: Step<'a>) -> At<'a> {
        At {
            parent: Some(self),
            step,
            depth: self.depth + 1,
        }
    }

    fn fault(&self, rule: impl fmt::Display) -> Fault {
        Fault {
            path: self.to_string(),
            rule: rule.to_string(),
        }
    }

    /// A fault unless `is_kept`.
    fn rule(&self, is_kept: bool, rule: impl fmt::Display) -> Checked {
        if is_kept { Ok(()) } else { Err(self.fault(rule)) }
    }
}

impl Lexicons {
    fn check(&self, schema: &Schema, value: &Value, at: &At<'_>) -> Checked {
        if at.depth > MAX_DEPTH {
            return Err(at.fault("is nested too deeply"));
        }
        match schema {
            Schema::Object(properties) => self.object(properties, map(value, at)?, at),
            Schema::Text(rule) => match value {
                Value::Text(found) => text(rule, found, at),
                _ => Err(at.fault("must be a string")),
            },
            Schema::Integer(rule) => match value {
                Value::Int(found) => integer(rule, *found, at),
                _ => Err(at.fault("must be an integer")),
            },
            Schema::Boolean(constant) => match value {
                Value::Bool(found) => constant.map_or(Ok(()), |constant| {
                    at.rule(*found == constant, format_args!("must be {constant}"))
                }),
                _ => Err(at.fault("must be a boolean")),
            },
            Schema::Bytes(bounds) => match value {
                Value::Bytes(found) => length(*bounds, found.len(), "bytes", at),
                _ => Err(at.fault("must be a byte array")),
            },
            Schema::Link => at.rule(matches!(value, Value::Link(_)), "must be a CID"),
            Schema::Blob(rule) => blob(rule, value, at),
            Schema::Array(items, bounds) => {
                let Value::Array(found) = value else {
                    return Err(at.fault("must be an array"));
                };
                length(*bounds, found.len(), "elements", at)?;
                for (index, item) in found.iter().enumerate() {
                    self.check(items, item, &at.below(Step::Index(index)))?;
                }
                Ok(())
            }
            Schema::Ref(definition) => self.reference(*definition, value, at),
            Schema::Union { definitions, closed } => self.union(definitions, *closed, value, at),
            Schema::Unknown => {
                let is_blob = map(value, at)?.get_text("$type") == Some("blob");
                at.rule(!is_blob, "must be an object and not a blob")
            }
            // Only a definition is a token, so `named` has seen it.
            Schema::Token => Err(at.fault("must be a token")),
        }
    }

    fn object(&self, properties: &[Property], found: &Map, at: &At<'_>) -> Checked {
        for property in properties {
            match found.get(&property.name) {
                None if property.required => {
                    return Err(at.fault(format_args!("must have the property {:?}", property.name)));
                }
                None => {}
                Some(Value::Null) if property.nullable => {}
                Some(value) => {
                    self.check(&property.schema, value, &at.below(Step::Key(&property.name)))?;
                }
            }
        }
        Ok(())
    }

    /// Checks a value against a definition.
    fn named(&self, definition: usize, value: &Value, at: &At<'_>) -> Checked {
        let Some(definition) = self.definitions.get(definition) else {
            return Err(at.fault("is of a type without a definition"));
        };
        match &definition.schema {
            Schema::Token => {
                let is_it = value.as_text() == Some(&*definition.name);
                at.rule(is_it, format_args!("must be the token {:?}", definition.name))
            }
            schema => self.check(schema, value, at),
        }
    }

    /// Checks what a reference points to. Such a value need not say its type, but must not say another.
    fn reference(&self, definition: usize, value: &Value, at: &At<'_>) -> Checked {
        let said = value.as_map().and_then(|map| map.get_text("$type"));
        if let (Some(said), Some(meant)) = (said, self.definitions.get(definition))
            && said != &*meant.name
        {
            let at = at.below(Step::Key("$type"));
            return Err(at.fault(format_args!("must be {:?}", meant.name)));
        }
        self.named(definition, value, at)
    }

    fn union(&self, definitions: &[usize], closed: bool, value: &Value, at: &At<'_>) -> Checked {
        let said = value.as_map().and_then(|map| map.get_text("$type"));
        let Some(said) = said else {
            return Err(at.fault("must be an object which includes the \"$type\" property"));
        };
        let name = |place: usize| self.definitions.get(place).map_or("", |it| &*it.name);
        match definitions.iter().find(|place| name(**place) == said) {
            Some(definition) => self.named(*definition, value, at),
            None if closed => {
                let names: Vec<&str> = definitions.iter().map(|place| name(*place)).collect();
                let at = at.below(Step::Key("$type"));
                Err(at.fault(format_args!("must be one of {}", names.join(", "))))
            }
            None => Ok(()),
        }
    }
}

fn map<'v>(value: &'v Value, at: &At<'_>) -> Result<&'v Map, Fault> {
    value.as_map().ok_or_else(|| at.fault("must be an object"))
}

fn length(bounds: Length, found: usize, unit: &str, at: &At<'_>) -> Checked {
    if let Some(min) = bounds.min_length {
        at.rule(
            found >= min,
            format_args!("must not have fewer than {min} {unit}"),
        )?;
    }
    if let Some(max) = bounds.max_length {
        at.rule(found <= max, format_args!("must not have more than {max} {unit}"))?;
    }
    Ok(())
}

fn integer(rule: &IntegerRule, found: i64, at: &At<'_>) -> Checked {
    if let Some(constant) = rule.constant {
        at.rule(found == constant, format_args!("must be {constant}"))?;
    }
    if let Some(one_of) = &rule.one_of {
        let allowed: fn(&i64) -> String = i64::to_string;
        at.rule(one_of.contains(&found), OneOf(one_of, allowed))?;
    }
    if let Some(min) = rule.minimum {
        at.rule(found >= min, format_args!("can not be less than {min}"))?;
    }
    if let Some(max) = rule.maximum {
        at.rule(found <= max, format_args!("can not be greater than {max}"))?;
    }
    Ok(())
}

fn text(rule: &TextRule, found: &str, at: &At<'_>) -> Checked {
    if let Some(constant) = &rule.constant {
        at.rule(found == &**constant, format_args!("must be {constant}"))?;
    }
    if let Some(one_of) = &rule.one_of {
        let is_one = one_of.iter().any(|allowed| &**allowed == found);
        let allowed: fn(&Box<str>) -> String = Box::to_string;
        at.rule(is_one, OneOf(one_of, allowed))?;
    }
    if let Some(min) = rule.min_length {
        at.rule(
            found.len() >= min,
            format_args!("must not be shorter than {min} bytes"),
        )?;
    }
    if let Some(max) = rule.max_length {
        at.rule(
            found.len() <= max,
            format_args!("must not be longer than {max} bytes"),
        )?;
    }
    // What has fewer bytes has fewer graphemes.
    if let Some(min) = rule.min_graphemes {
        let enough = found.len() >= min && graphemes_up_to(found, min) >= min;
        at.rule(enough, format_args!("must not be shorter than {min} graphemes"))?;
    }
    if let Some(max) = rule.max_graphemes {
        let fits = found.len() <= max || graphemes_up_to(found, max.saturating_add(1)) <= max;
        at.rule(fits, format_args!("must not be longer than {max} graphemes"))?;
    }
    match rule.format {
        Some(format) => at.rule(format.accepts(found), format_args!("must be {}", format.phrase())),
        None => Ok(()),
    }
}

/// How many graphemes `text` has; counts no further than `most`.
fn graphemes_up_to(text: &str, most: usize) -> usize {
    text.graphemes(true).take(most).count()
}

/// The rule that something be in a list.
struct OneOf<'a, T>(&'a [T], fn(&T) -> String);

impl<T> fmt::Display for OneOf<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(self.1).collect();
        write!(f, "must be one of ({})", names.join("|"))
    }
}

/// The typed form with nothing beside, and what it claims.
fn blob(rule: &BlobRule, value: &Value, at: &At<'_>) -> Checked {
    const FIELDS: usize = 4;
    let typed = value
        .as_map()
        .filter(|map| map.len() == FIELDS && map.get_text("$type") == Some("blob"))
        .and_then(|map| match (map.get("ref"), map.get("size")) {
            (Some(Value::Link(_)), Some(Value::Int(size))) => {
                Some((map.get_text("mimeType")?, u64::try_from(*size).ok()?))
            }
            _ => None,
        });
    let Some((mime_type, size)) = typed else {
        return Err(at.fault("should be a blob ref"));
    };
    if let Some(accept) = &rule.accept {
        let is_accepted = accept.iter().any(|pattern| accepts(pattern, mime_type));
        let patterns: fn(&Box<str>) -> String = Box::to_string;
        at.below(Step::Key("mimeType"))
            .rule(is_accepted, OneOf(accept, patterns))?;
    }
    if let Some(max) = rule.max_size {
        at.below(Step::Key("size"))
            .rule(size <= max, format_args!("can not be greater than {max}"))?;
    }
    Ok(())
}

/// Whether a MIME type is of a pattern: `*/*`, all of a kind as in `image/*`, or itself.
fn accepts(pattern: &str, mime_type: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some("*/") => true,
        Some(kind) => mime_type.starts_with(kind),
        None => mime_type == pattern,
    }
}
