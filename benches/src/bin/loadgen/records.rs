//! The records that are written, and filling repos with them.
//!
//! Filled records have keys that follow from their number, and a repo is filled in order by atomic batches. So a repo
//! holds a prefix of them whatever interrupted an earlier run, and the prefix' length is found by bisection.

use std::sync::Arc;

use anyhow::{Context, Result};
use engine::repo::{Tid, datetime};
use serde_json::{Value, json};

use crate::accounts::Account;
use crate::api::{Api, ApiError, patiently};

/// The collection that everything is written to.
pub const COLLECTION: &str = "app.bsky.feed.post";
/// Most records in one applyWrites.
pub const BATCH: u64 = 200;

/// Time of the first filled record, microseconds since 1970 (2024-01-01); the next ones are a second apart each.
const FIRST_MICROS: u64 = 1_704_067_200_000_000;
/// Tells the keys of filled records from those that a server gives.
const CLOCK_ID: u16 = 1023;
const WORDS: [&str; 32] = [
    "morning", "coffee", "the", "a", "with", "river", "light", "and", "today", "quiet", "garden", "of",
    "walking", "train", "over", "rain", "bread", "new", "window", "is", "small", "city", "winter", "song",
    "in", "finally", "blue", "read", "letters", "from", "harbour", "again",
];

/// A generator of numbers that look random and are the same in every run.
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// The sequence with this seed.
    #[must_use]
    pub fn new(seed: u64) -> Numbers {
        Numbers(seed)
    }

    /// The next number (SplitMix64).
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, or zero if that is zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The high half of a product: no division, and a bias far below what a load test could notice.
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

/// The key of the nth filled record.
#[must_use]
pub fn key(n: u64) -> String {
    let tid = Tid::from_micros(FIRST_MICROS + n * 1_000_000, CLOCK_ID);
    tid.to_record_key().as_str().to_owned()
}

/// A post of a few words to a few dozen, made from a number.
#[must_use]
pub fn post(n: u64) -> Value {
    let mut numbers = Numbers::new(n);
    let count = 4 + numbers.below(36);
    let mut text = String::with_capacity(256);
    for _ in 0..count {
        let word = usize::try_from(numbers.below(WORDS.len() as u64)).unwrap_or(0);
        text.push_str(WORDS.get(word).copied().unwrap_or_default());
        text.push(' ');
    }
    text.push_str(&n.to_string());
    json!({
        "$type": COLLECTION,
        "text": text,
        "langs": ["en"],
        "createdAt": datetime::format_datetime(FIRST_MICROS + n * 1_000_000),
    })
}

/// The body of a createRecord with the nth post; the server chooses the key unless one is given. Such a key need not be
/// one that posts have, so the record is not validated then.
#[must_use]
pub fn create_body(did: &str, n: u64, key: Option<&str>) -> Vec<u8> {
    let mut body = json!({ "repo": did, "collection": COLLECTION, "record": post(n) });
    if let (Some(key), Some(fields)) = (key, body.as_object_mut()) {
        fields.insert("rkey".to_owned(), key.into());
        fields.insert("validate".to_owned(), false.into());
    }
    body.to_string().into_bytes()
}

/// The body of an applyWrites that creates the filled records of a range.
#[must_use]
pub fn batch_body(did: &str, range: std::ops::Range<u64>) -> Vec<u8> {
    let writes: Vec<Value> = range
        .map(|n| {
            json!({
                "$type": "com.atproto.repo.applyWrites#create",
                "collection": COLLECTION,
                "rkey": key(n),
                "value": post(n),
            })
        })
        .collect();
    json!({ "repo": did, "writes": writes }).to_string().into_bytes()
}

/// The body of an applyWrites that creates the posts of a range under keys that the server chooses.
#[must_use]
pub fn new_posts_body(did: &str, range: std::ops::Range<u64>) -> Vec<u8> {
    let writes: Vec<Value> = range
        .map(|n| {
            json!({
                "$type": "com.atproto.repo.applyWrites#create",
                "collection": COLLECTION,
                "value": post(n),
            })
        })
        .collect();
    json!({ "repo": did, "writes": writes }).to_string().into_bytes()
}

/// How many of the first `wanted` filled records a repo holds.
///
/// # Errors
/// The server does not say.
pub async fn filled(api: &Api, did: &str, wanted: u64) -> Result<u64, ApiError> {
    if wanted == 0 || exists(api, did, wanted - 1).await? {
        return Ok(wanted);
    }
    // All below `low` are there, `high` and all above are not.
    let (mut low, mut high) = (0, wanted - 1);
    while low < high {
        let middle = low + (high - low) / 2;
        if exists(api, did, middle).await? {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

async fn exists(api: &Api, did: &str, n: u64) -> Result<bool, ApiError> {
    let key = key(n);
    let params = [("repo", did), ("collection", COLLECTION), ("rkey", key.as_str())];
    match patiently(|| api.query("com.atproto.repo.getRecord", &params, None)).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_named("RecordNotFound") => Ok(false),
        Err(error) => Err(error),
    }
}

/// Brings one repo up to `wanted` filled records; gives how many it had.
///
/// # Errors
/// A batch was refused or got no answer. A further run goes on where this one stopped.
pub async fn fill(api: &Api, account: &Arc<Account>, wanted: u64) -> Result<u64> {
    let context = || format!("filling the repo of {}", account.handle());
    let had = filled(api, account.did(), wanted).await.with_context(context)?;
    for range in batches(had, wanted) {
        let body = batch_body(account.did(), range);
        patiently(|| account.procedure(api, "com.atproto.repo.applyWrites", &body))
            .await
            .with_context(context)?;
    }
    Ok(had)
}

/// The batches that lead from `had` to `wanted` records.
pub fn batches(had: u64, wanted: u64) -> impl Iterator<Item = std::ops::Range<u64>> {
    std::iter::successors(Some(had), |start| Some(start + BATCH))
        .take_while(move |start| *start < wanted)
        .map(move |start| start..wanted.min(start + BATCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_tids_in_order() {
        for n in [0, 1, 199, 49_999, 9_999_999] {
            let tid: Tid = key(n).parse().unwrap();
            assert_eq!(tid.clock_id(), CLOCK_ID);
            assert!(key(n) < key(n + 1));
        }
    }

    #[test]
    fn batches_cover_what_is_missing_once() {
        let all: Vec<_> = batches(150, 601).collect();
        assert_eq!(all, [150..350, 350..550, 550..601]);
        assert_eq!(batches(7, 7).count(), 0);
        assert_eq!(batches(9, 7).count(), 0);
    }

    #[test]
    fn posts_are_the_same_in_every_run_and_differ_from_each_other() {
        assert_eq!(post(5), post(5));
        assert_ne!(post(5)["text"], post(6)["text"]);
        let longest = (0..2000)
            .filter_map(|n| post(n)["text"].as_str().map(str::len))
            .max();
        assert!(longest.unwrap() <= 300, "{longest:?}");
    }

    #[test]
    fn a_full_batch_fits_the_servers_limit() {
        assert!(batch_body("did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", 0..BATCH).len() < 150_000);
    }

    #[test]
    fn numbers_below_a_bound_reach_all_of_them() {
        let mut numbers = Numbers::new(1);
        let mut seen = [false; 10];
        for _ in 0..1000 {
            seen[usize::try_from(numbers.below(10)).unwrap()] = true;
        }
        assert_eq!(seen, [true; 10]);
        assert_eq!(numbers.below(0), 0);
    }
}
