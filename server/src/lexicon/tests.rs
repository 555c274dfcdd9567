use engine::repo::json::json_to_record;
use engine::repo::{Cid, Nsid, RecordKey};
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;

const WHEN: &str = "2026-11-20T08:30:15.250Z";

fn schema(collection: &str) -> RecordSchema<'static> {
    known().record(&collection.parse().unwrap()).unwrap()
}

fn verdict(collection: &str, record: &Json) -> Result<(), String> {
    let record = Value::Map(json_to_record(record).unwrap());
    schema(collection)
        .check(&record)
        .map_err(|fault| fault.to_string())
}

fn post(more: Json) -> Result<(), String> {
    let mut record = json!({"$type": "app.bsky.feed.post", "text": "hi", "createdAt": WHEN});
    for (key, value) in more.as_object().unwrap() {
        record[key] = value.clone();
    }
    verdict("app.bsky.feed.post", &record)
}

fn refused(rule: &str) -> Result<(), String> {
    Err(rule.to_owned())
}

fn blob(mime_type: &str, size: i64) -> Json {
    json!({"$type": "blob", "ref": {"$link": Cid::for_raw(b"x")}, "mimeType": mime_type, "size": size})
}

fn images(image: &Json, count: usize) -> Json {
    let image = json!({"alt": "", "image": image, "aspectRatio": {"width": 4, "height": 3}});
    json!({"embed": {"$type": "app.bsky.embed.images", "images": vec![image; count]}})
}

#[test]
fn the_types_of_the_reference_are_known_and_one_more() {
    let of_the_reference = [
        "app.bsky.actor.profile",
        "app.bsky.actor.status",
        "app.bsky.feed.generator",
        "app.bsky.feed.like",
        "app.bsky.feed.post",
        "app.bsky.feed.postgate",
        "app.bsky.feed.repost",
        "app.bsky.feed.threadgate",
        "app.bsky.graph.block",
        "app.bsky.graph.follow",
        "app.bsky.graph.list",
        "app.bsky.graph.listblock",
        "app.bsky.graph.listitem",
        "app.bsky.graph.starterpack",
        "app.bsky.graph.verification",
        "app.bsky.labeler.service",
        "app.bsky.notification.declaration",
        "chat.bsky.actor.declaration",
        "com.atproto.lexicon.schema",
        "com.germnetwork.declaration",
    ];
    let mut found: Vec<&str> = known().collections().collect();
    found.retain(|collection| !of_the_reference.contains(collection));
    assert_eq!(known().collections().count(), of_the_reference.len() + 1);
    assert_eq!(found, ["app.bsky.actor.contentVisibilityDeclaration"]);
    assert!(known().record(&"com.example.thing".parse().unwrap()).is_none());
    // A definition that is no record is no type of records.
    assert!(
        known()
            .record(&"com.atproto.repo.strongRef".parse().unwrap())
            .is_none()
    );
}

#[test]
fn record_keys_follow_their_rule() {
    let takes =
        |collection: &str, rkey: &str| schema(collection).takes_key(&rkey.parse::<RecordKey>().unwrap());
    assert!(takes("app.bsky.feed.post", "3kznmn7xqxl22"));
    assert!(!takes("app.bsky.feed.post", "one"));
    assert!(takes("app.bsky.actor.profile", "self"));
    assert!(!takes("app.bsky.actor.profile", "3kznmn7xqxl22"));
    assert!(takes("com.atproto.lexicon.schema", "com.example.thing"));
    assert!(!takes("com.atproto.lexicon.schema", "thing"));
    assert!(takes("app.bsky.feed.generator", "what-i-like"));
}

#[test]
fn text_is_measured_in_bytes_and_graphemes() {
    let text = |text: String| post(json!({ "text": text }));
    assert_eq!(text("a".repeat(300)), Ok(()));
    assert_eq!(
        text("a".repeat(301)),
        refused("Record/text must not be longer than 300 graphemes")
    );
    assert_eq!(
        text("a".repeat(3001)),
        refused("Record/text must not be longer than 3000 bytes")
    );
    // A family is one grapheme of 25 bytes, a flag one of 8.
    assert_eq!(text("👨‍👩‍👧‍👧".repeat(120)), Ok(()));
    assert_eq!(
        text("👨‍👩‍👧‍👧".repeat(121)),
        refused("Record/text must not be longer than 3000 bytes")
    );
    assert_eq!(text("🇩🇪".repeat(300)), Ok(()));
    assert_eq!(
        text("🇩🇪".repeat(301)),
        refused("Record/text must not be longer than 300 graphemes")
    );
}

#[test]
fn what_is_required_has_to_be_there_and_be_what_it_should() {
    let record = json!({"$type": "app.bsky.feed.post", "text": "hi"});
    assert_eq!(
        verdict("app.bsky.feed.post", &record),
        refused("Record must have the property \"createdAt\"")
    );
    assert_eq!(
        post(json!({"text": null})),
        refused("Record/text must be a string")
    );
    assert_eq!(post(json!({"unheardOf": null, "more": {"a": [1]}})), Ok(()));
    assert_eq!(
        post(json!({"createdAt": "yesterday"})),
        refused("Record/createdAt must be a valid atproto datetime")
    );
    assert_eq!(
        post(json!({"langs": ["en", "de", "fr", "it"]})),
        refused("Record/langs must not have more than 3 elements")
    );
    assert_eq!(
        post(json!({"langs": ["en", "english-"]})),
        refused("Record/langs/1 must be a well-formed BCP 47 language tag")
    );
    let facet = |start: i64| {
        let index = json!({"byteStart": start, "byteEnd": 2});
        post(
            json!({"facets": [{"index": index, "features": [{"$type": "app.bsky.richtext.facet#tag", "tag": "a"}]}]}),
        )
    };
    assert_eq!(facet(0), Ok(()));
    assert_eq!(
        facet(-1),
        refused("Record/facets/0/index/byteStart can not be less than 0")
    );
    let generator =
        json!({"did": "did:web:x.test", "displayName": "x", "createdAt": WHEN, "acceptsInteractions": 1});
    assert_eq!(
        verdict("app.bsky.feed.generator", &generator),
        refused("Record/acceptsInteractions must be a boolean")
    );
    assert_eq!(
        verdict("com.atproto.lexicon.schema", &json!({"lexicon": "1"})),
        refused("Record/lexicon must be an integer")
    );
}

#[test]
fn unions_go_by_the_type_that_is_said() {
    let embed = |embed: Json| post(json!({ "embed": embed }));
    let no_type = refused("Record/embed must be an object which includes the \"$type\" property");
    assert_eq!(embed(json!({"images": []})), no_type);
    assert_eq!(embed(json!("x")), no_type);
    assert_eq!(embed(Json::Null), no_type);
    assert_eq!(embed(json!({"$type": "com.example.other", "images": 5})), Ok(()));
    assert_eq!(
        embed(json!({"$type": "app.bsky.embed.images", "images": 5})),
        refused("Record/embed/images must be an array")
    );
    assert_eq!(
        embed(json!({"$type": "app.bsky.embed.images#main", "images": 5})),
        Ok(()),
        "no name of a type"
    );
}

#[test]
fn a_reference_may_say_its_type_and_no_other() {
    let subject = |more: Option<&str>| {
        let mut subject = json!({"uri": "at://did:plc:abc/app.bsky.feed.post/3kznmn7xqxl22", "cid": Cid::for_dag_cbor(b"x")});
        if let Some(name) = more {
            subject["$type"] = name.into();
        }
        verdict(
            "app.bsky.feed.like",
            &json!({"subject": subject, "createdAt": WHEN}),
        )
    };
    assert_eq!(subject(None), Ok(()));
    assert_eq!(subject(Some("com.atproto.repo.strongRef")), Ok(()));
    assert_eq!(
        subject(Some("app.bsky.feed.post")),
        refused("Record/subject/$type must be \"com.atproto.repo.strongRef\"")
    );
    assert_eq!(
        verdict("app.bsky.feed.like", &json!({"subject": "x", "createdAt": WHEN})),
        refused("Record/subject must be an object")
    );
}

#[test]
fn blobs_are_what_they_claim() {
    let image = |image: &Json| post(images(image, 1));
    assert_eq!(image(&blob("image/png", 0)), Ok(()));
    assert_eq!(
        image(&blob("text/plain", 5)),
        refused("Record/embed/images/0/image/mimeType must be one of (image/*)")
    );
    assert_eq!(
        image(&blob("image/png", 2_000_001)),
        refused("Record/embed/images/0/image/size can not be greater than 2000000")
    );
    let no_blob = refused("Record/embed/images/0/image should be a blob ref");
    let cid = Cid::for_raw(b"x").to_string();
    assert_eq!(image(&json!({"cid": cid, "mimeType": "image/png"})), no_blob);
    let mut more = blob("image/png", 5);
    more["more"] = 1.into();
    assert_eq!(image(&more), no_blob);
    assert_eq!(
        post(images(&blob("image/png", 5), 5)),
        refused("Record/embed/images must not have more than 4 elements")
    );
    let avatar = |mime_type: &str| verdict("app.bsky.actor.profile", &json!({"avatar": blob(mime_type, 5)}));
    assert_eq!(avatar("image/jpeg"), Ok(()));
    assert_eq!(
        avatar("image/gif"),
        refused("Record/avatar/mimeType must be one of (image/png|image/jpeg)")
    );
}

#[test]
fn definitions_that_cannot_be_used_are_refused() {
    let field = |written: &str| {
        Lexicons::from_bundle(&format!(
            r#"{{"a.b.c": {{"type": "object", "properties": {{"x": {written}}}}}}}"#
        ))
        .map(|_| ())
    };
    assert_eq!(field(r#"{"type": "string", "description": "x"}"#), Ok(()));
    assert_eq!(
        field(r##"{"type": "ref", "ref": "#nope"}"##),
        Err(SchemaError::Missing("a.b.c#nope".into()))
    );
    assert!(matches!(
        field(r#"{"type": "string", "format": "nope"}"#),
        Err(SchemaError::Form(_))
    ));
    assert!(matches!(field(r#"{"type": "nope"}"#), Err(SchemaError::Form(_))));
    let whole = |json: &str| Lexicons::from_bundle(json).map(|_| ());
    assert_eq!(
        whole(r#"{"a.b.c": {"type": "object", "required": ["x"]}}"#),
        Err(SchemaError::Field("x".into()))
    );
    assert_eq!(
        whole(r#"{"a.b.c": {"type": "record", "key": "nope", "record": {"type": "object"}}}"#),
        Err(SchemaError::Rule("nope".into()))
    );
    assert_eq!(
        whole(r#"{"a.b.c#d": {"type": "record", "key": "any", "record": {"type": "object"}}}"#),
        Err(SchemaError::Record("a.b.c#d".into()))
    );
}

#[test]
fn tokens_nullable_fields_and_closed_unions_are_kept() {
    let lexicons = Lexicons::from_bundle(
        r##"{
            "a.b.c": {"type": "record", "key": "any", "record": {"type": "object", "nullable": ["n"], "properties": {
                "n": {"type": "integer", "const": 3}, "t": {"type": "ref", "ref": "#t"},
                "u": {"type": "union", "refs": ["#o"], "closed": true}, "b": {"type": "boolean", "const": true}}}},
            "a.b.c#o": {"type": "object", "properties": {"i": {"type": "integer", "enum": [1, 2]}}},
            "a.b.c#t": {"type": "token"}
        }"##,
    )
    .unwrap();
    let schema = lexicons.record(&"a.b.c".parse::<Nsid>().unwrap()).unwrap();
    let check = |record: Json| {
        let record = Value::Map(json_to_record(&record).unwrap());
        schema.check(&record).map_err(|fault| fault.to_string())
    };
    assert_eq!(
        check(json!({"n": null, "t": "a.b.c#t", "u": {"$type": "a.b.c#o"}})),
        Ok(())
    );
    assert_eq!(check(json!({"n": 4})), refused("Record/n must be 3"));
    assert_eq!(check(json!({"b": false})), refused("Record/b must be true"));
    assert_eq!(check(json!({"b": null})), refused("Record/b must be a boolean"));
    assert_eq!(
        check(json!({"t": "a.b.c#o"})),
        refused("Record/t must be the token \"a.b.c#t\"")
    );
    assert_eq!(
        check(json!({"u": {"$type": "a.b.c#x"}})),
        refused("Record/u/$type must be one of a.b.c#o")
    );
    assert_eq!(
        check(json!({"u": {"$type": "a.b.c#o", "i": 3}})),
        refused("Record/u/i must be one of (1|2)")
    );
}

#[test]
fn a_schema_that_nests_without_end_is_followed_to_the_depth_of_the_data_model() {
    let lexicons = Lexicons::from_bundle(
        r##"{"a.b.c": {"type": "record", "key": "any", "record": {"type": "object", "properties": {"x": {"type": "ref", "ref": "a.b.c"}}}}}"##,
    )
    .unwrap();
    let schema = lexicons.record(&"a.b.c".parse::<Nsid>().unwrap()).unwrap();
    let nested = |depth: usize| {
        (0..depth).fold(Value::Map(engine::repo::cbor::Map::new()), |inner, _| {
            Value::Map([("x".to_owned(), inner)].into_iter().collect())
        })
    };
    assert_eq!(schema.check(&nested(100)), Ok(()));
    assert_eq!(
        schema.check(&nested(500)).unwrap_err().rule,
        "is nested too deeply"
    );
}

/// Any value of the data model, with names that schemas have so that it comes into them.
fn any_value() -> impl Strategy<Value = Value> {
    let names = "\\$type|text|embed|reply|images|image|root|labels|values|facets|index|features|langs|subject|uri|cid";
    let types = "app\\.bsky\\.embed\\.(images|record|external)|com\\.atproto\\.label\\.defs#selfLabels|blob";
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        types.prop_map(Value::Text),
        "\\PC{0,400}".prop_map(Value::Text),
        Just(Value::Link(Cid::for_raw(b"x"))),
        proptest::collection::vec(any::<u8>(), 0..8).prop_map(Value::Bytes),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
            proptest::collection::vec((names, inner), 0..8)
                .prop_map(|entries| Value::Map(entries.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_value_is_answered_for_every_type(value in any_value()) {
        for collection in known().collections() {
            let _ = schema(collection).check(&value);
        }
    }
}
