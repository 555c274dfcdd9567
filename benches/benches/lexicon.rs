//! What validating a record costs, beside what else is done to one before it is written. See `benches/README.md`.
#![allow(
    clippy::expect_used,
    reason = "a benchmark that cannot be set up is meant to stop"
)]
#![allow(missing_docs, reason = "criterion's macros write public functions")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use engine::repo::Cid;
use engine::repo::cbor::Value;
use engine::repo::json::json_to_record;
use serde_json::{Value as Json, json};
use server::lexicon::known;

const WHEN: &str = "2026-11-20T08:30:15.250Z";

/// Records as they are written: small, usual, with everything, and the most text that a post may have.
fn records() -> Vec<(&'static str, &'static str, Json)> {
    let subject = json!({
        "uri": "at://did:plc:ewvi7nxzyoun6zhxrhs64oiz/app.bsky.feed.post/3kznmn7xqxl22",
        "cid": Cid::for_dag_cbor(b"a post"),
    });
    let image = json!({
        "alt": "a colour",
        "image": {"$type": "blob", "ref": {"$link": Cid::for_raw(b"x")}, "mimeType": "image/jpeg", "size": 400_000},
        "aspectRatio": {"width": 4, "height": 3},
    });
    let facet = json!({
        "index": {"byteStart": 0, "byteEnd": 10},
        "features": [{"$type": "app.bsky.richtext.facet#mention", "did": "did:plc:ewvi7nxzyoun6zhxrhs64oiz"}],
    });
    let post = "app.bsky.feed.post";
    vec![
        (
            "like",
            "app.bsky.feed.like",
            json!({"subject": subject, "createdAt": WHEN}),
        ),
        (
            "post",
            post,
            json!({"text": "a hundred and forty characters or so, as many posts have them, in plain English and with a few words more than are needed", "langs": ["en"], "createdAt": WHEN}),
        ),
        (
            "post with reply, facets and images",
            post,
            json!({
                "text": "a picture for you", "langs": ["en"], "createdAt": WHEN,
                "reply": {"root": subject, "parent": subject},
                "facets": [facet, facet],
                "embed": {"$type": "app.bsky.embed.images", "images": [image, image]},
            }),
        ),
        (
            "post of 300 flags",
            post,
            json!({"text": "🇩🇪".repeat(300), "createdAt": WHEN}),
        ),
    ]
}

fn validation(c: &mut Criterion) {
    let mut group = c.benchmark_group("lexicon");
    for (name, collection, record) in records() {
        let schema = known()
            .record(&collection.parse().expect("an NSID"))
            .expect("a known type");
        let record = Value::Map(json_to_record(&record).expect("a record"));
        schema.check(&record).expect("a valid record");
        group.bench_function(name, |b| b.iter(|| schema.check(black_box(&record))));
    }
    group.finish();
}

criterion_group!(lexicon, validation);
criterion_main!(lexicon);
