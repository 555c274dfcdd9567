//! Values for what methods take: mostly as their lexicons say, some at the edge of it, some beyond it, some nonsense.

use serde_json::{Map, Value, json};
use tests::random::Random;

/// How deep generated values nest, beyond what a schema makes them.
const DEPTH: u32 = 5;

/// What there is on the server, so that values may be right.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Texts by the lexicon's name of their format; those of `""` fit none.
    pub texts: Map<String, Value>,
    /// Texts for properties of a name, such as passwords.
    pub named: Map<String, Value>,
    /// References of uploaded blobs.
    pub blobs: Vec<Value>,
}

/// Makes values of one request.
pub struct Values<'a> {
    pub random: Random,
    pub definitions: &'a Value,
    pub known: &'a Known,
}

/// Texts that have broken servers before.
fn odd_texts(random: &mut Random) -> String {
    let odd = [
        "",
        " ",
        "\0",
        "a\0b",
        "null",
        "-1",
        "9223372036854775808",
        "1e400",
        "NaN",
        "'; DROP TABLE actor; --",
        "\" OR \"\"=\"",
        "../../../../etc/passwd",
        "%00%ff%2e%2e%2f",
        "\u{202e}\u{200d}\u{feff}",
        "\u{10ffff}",
        "ＡＢＣ．test",
        "İ.test",
        "xn--80ak6aa92e.test",
        "did:",
        "did:plc:",
        "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa",
        "did:web:localhost",
        "did:web:127.0.0.1%3A1",
        "did:web:[::1]",
        "did:key:zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme",
        "did:x:y#z?a=b/../c",
        "at://",
        "at://did:plc:aaaaaaaaaaaaaaaaaaaaaaaa/app.bsky.feed.post/../../x",
        "app.bsky.feed.post",
        "a.b.c#main",
        ".",
        "..",
        "self",
        "2222222222222",
        "zzzzzzzzzzzzz",
        "bafkqaaa",
        "bafyreiclp443lavogvhj3d2ob2cxbfuscni2k5jk7bebjzg7khl3esabwq",
        "QmdfTbBqBPQ7VNxZEYEj14VmRuZBkqFbiwReogJgS1zR1n",
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:60Z",
        "2026-02-31T00:00:00+14:00",
        "nobody@example.com",
        "\"a b\"@[127.0.0.1]",
        "a@b\r\nBcc: c@d",
        "AAAAA-BBBBB",
        "1755648000000::did:plc:x",
        "{}",
        "[]",
    ];
    let at = usize::try_from(random.between(0, odd.len() as u64 + 6)).unwrap_or(0);
    match odd.get(at) {
        Some(text) => (*text).to_owned(),
        None => {
            let unit = random.choose(&["x", "👩‍👩‍👧‍👦", "\u{0301}", "a."]);
            let times = random.choose(&[65, 257, 3001, 60_000]);
            unit.repeat(times)
        }
    }
}

fn odd_number(random: &mut Random) -> Value {
    let odd = [
        json!(0),
        json!(-1),
        json!(1),
        json!(i64::MIN),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(9_007_199_254_740_993_i64),
        json!(i32::MAX),
        json!(1.5),
        json!(-0.0),
        json!(1e308),
    ];
    pick(random, &odd).cloned().unwrap_or_default()
}

/// One of some values.
pub fn pick<'v, T>(random: &mut Random, values: &'v [T]) -> Option<&'v T> {
    values.get(usize::try_from(random.between(0, values.len() as u64)).unwrap_or(0))
}

impl Values<'_> {
    /// Whether something with this chance of a hundred happens.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.random.between(0, 100) < percent
    }

    /// Anything that JSON has.
    fn nonsense(&mut self, depth: u32) -> Value {
        match self.random.between(0, 9) {
            0 => Value::Null,
            1 => json!(self.chance(50)),
            2 => odd_number(&mut self.random),
            3 | 4 => json!(odd_texts(&mut self.random)),
            5 if depth < DEPTH => {
                let many = if self.chance(10) { 2000 } else { 3 };
                let one = self.nonsense(depth + 1);
                json!(vec![one; many])
            }
            6 if depth < DEPTH => {
                let mut map = Map::new();
                for _ in 0..self.random.between(0, 4) {
                    let name = self.random.choose(&["$type", "$link", "$bytes", "ref"]);
                    map.insert(name.to_owned(), self.nonsense(depth + 1));
                }
                map.insert(odd_texts(&mut self.random), Value::Null);
                Value::Object(map)
            }
            7 => {
                let deep = self.random.choose(&[2, 40, 130, 5000]);
                // As text: a value that is so deep cannot be dropped safely.
                json!("[".repeat(deep))
            }
            _ => {
                json!({ "$type": "blob", "ref": { "$link": odd_texts(&mut self.random) }, "mimeType": "*/*", "size": odd_number(&mut self.random) })
            }
        }
    }

    fn text(&mut self, name: &str, schema: &Value) -> String {
        let format = schema["format"].as_str().unwrap_or_default();
        if self.chance(75) {
            let known = self.known;
            let values = known.named.get(name).or_else(|| known.texts.get(format));
            let choices = schema["knownValues"].as_array().or(schema["enum"].as_array());
            let values = choices.or_else(|| values.and_then(Value::as_array));
            if let Some(text) = values
                .and_then(|values| pick(&mut self.random, values))
                .and_then(Value::as_str)
            {
                return text.to_owned();
            }
        }
        odd_texts(&mut self.random)
    }

    fn integer(&mut self, schema: &Value) -> Value {
        let (low, high) = (
            schema["minimum"].as_i64().unwrap_or(0),
            schema["maximum"].as_i64().unwrap_or(1000),
        );
        match self.random.between(0, 10) {
            0 => json!(low - 1),
            1 => json!(high.saturating_add(1)),
            2 => json!(low),
            3 => json!(high),
            4 => odd_number(&mut self.random),
            _ => json!(low.saturating_add_unsigned(self.random.between(0, high.abs_diff(low).max(1)))),
        }
    }

    /// A record, or something that is handed on as it is.
    fn record(&mut self) -> Value {
        let known = self.known;
        match self.random.between(0, 6) {
            0 => self.nonsense(0),
            1 => {
                let blob = pick(&mut self.random, &known.blobs).cloned().unwrap_or_default();
                json!({ "$type": "app.bsky.feed.post", "text": "a picture", "createdAt": "2026-11-20T08:30:15.250Z",
                        "embed": { "$type": "app.bsky.embed.images", "images": [{ "image": blob, "alt": odd_texts(&mut self.random) }] } })
            }
            2 => json!({ "any": self.nonsense(0), "thing": odd_number(&mut self.random) }),
            3 => {
                json!({ "type": "plc_operation", "rotationKeys": [odd_texts(&mut self.random)], "verificationMethods": self.nonsense(2),
                         "alsoKnownAs": [odd_texts(&mut self.random)], "services": self.nonsense(2), "prev": null, "sig": odd_texts(&mut self.random) })
            }
            _ => {
                json!({ "$type": "app.bsky.feed.post", "text": odd_texts(&mut self.random), "createdAt": "2026-11-20T08:30:15.250Z" })
            }
        }
    }

    /// A value for a schema; `name` is the property's.
    pub fn value(&mut self, name: &str, schema: &Value, depth: u32) -> Value {
        if depth > 12 || self.chance(6) {
            return self.nonsense(0);
        }
        if let Some(name) = schema["ref"].as_str() {
            let definition = self.definitions[name].clone();
            return self.value(name, &definition, depth + 1);
        }
        if let Some(variants) = schema["union"].as_array() {
            let Some(name) = pick(&mut self.random, variants).and_then(Value::as_str) else {
                return Value::Null;
            };
            let definition = self.definitions[name].clone();
            let mut value = self.value(name, &definition, depth + 1);
            if let Value::Object(map) = &mut value
                && self.chance(95)
            {
                map.insert("$type".to_owned(), json!(name.trim_end_matches("#main")));
            }
            return value;
        }
        match schema["type"].as_str() {
            Some("object") => self.object(schema, depth),
            Some("array") => {
                let most = schema["maxLength"].as_u64().unwrap_or(200);
                let length = match self.random.between(0, 20) {
                    0 => most.min(500) + 1,
                    1 => 0,
                    _ => self.random.between(1, 4),
                };
                (0..length)
                    .map(|_| self.value(name, &schema["items"], depth + 1))
                    .collect()
            }
            Some("string") => json!(self.text(name, schema)),
            Some("integer") => self.integer(schema),
            Some("boolean") => json!(self.chance(50)),
            Some("blob") => pick(&mut self.random, &self.known.blobs)
                .cloned()
                .unwrap_or_default(),
            _ => self.record(),
        }
    }

    /// An object with most of what it has to have, and some of what it may.
    pub fn object(&mut self, schema: &Value, depth: u32) -> Value {
        let mut map = Map::new();
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let percent = if required.contains(&json!(name)) { 95 } else { 40 };
            if self.chance(percent) {
                map.insert(name.clone(), self.value(name, property, depth + 1));
            }
        }
        if self.chance(4) {
            map.insert(odd_texts(&mut self.random), self.nonsense(0));
        }
        Value::Object(map)
    }
}
