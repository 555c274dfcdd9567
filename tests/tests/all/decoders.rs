//! The decoders that `cargo fuzz` works on (`tests/fuzz/`), on every build and with the ordinary toolchain: each is given its
//! corpus, and mutations of it that follow from a seed. A panic in a decoder is a server that anybody can stop.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tests::Outcome;
use tests::random::Random;

#[allow(
    clippy::expect_used,
    reason = "what a decoder promises and does not hold is meant to stop the test"
)]
#[path = "../../fuzz/decoders.rs"]
mod all;

/// Mutations per file of a corpus, unless `PDS_DECODER_MUTATIONS` says otherwise.
const MUTATIONS: u64 = 400;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target)
}

#[test]
fn no_decoder_panics_on_its_corpus_or_on_what_is_near_it() -> Outcome {
    let seed = tests::number("PDS_DECODER_SEED", 1);
    let mutations = tests::number("PDS_DECODER_MUTATIONS", MUTATIONS);
    println!("seed {seed}, {mutations} mutations a file");
    for (name, target) in all::TARGETS {
        let began = Instant::now();
        let mut files: Vec<PathBuf> = std::fs::read_dir(corpus(name))
            .with_context(|| format!("the corpus of {name}"))?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        files.sort();
        ensure!(!files.is_empty(), "the corpus of {name} is empty");
        let mut random = Random::new(seed);
        for file in &files {
            let bytes = std::fs::read(file)?;
            target(&bytes);
            for _ in 0..mutations {
                target(&mutated(&bytes, &mut random));
            }
        }
        println!("{name}: {} files, {:?}", files.len(), began.elapsed());
    }
    Ok(())
}

/// A few small changes: bits, bytes that mean something in many formats, cuts, repetitions.
fn mutated(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..random.between(1, 4) {
        if bytes.is_empty() {
            bytes.push(random.bits() as u8);
        }
        let at = random.between(0, bytes.len() as u64 - 1) as usize;
        match random.between(0, 6) {
            0 => bytes[at] ^= 1 << random.between(0, 7),
            1 => bytes[at] = random.choose(&[0x00, 0xff, 0x7f, 0x80]),
            2 => bytes[at] = random.bits() as u8,
            3 => bytes.truncate(at),
            4 => bytes.insert(at, random.bits() as u8),
            5 => {
                let end = (at + random.between(1, 16) as usize).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                let end = (at + 8).min(bytes.len());
                let huge = u64::MAX.to_le_bytes();
                bytes[at..end].copy_from_slice(&huge[..end - at]);
            }
        }
    }
    bytes
}

/// Fills the corpus from the log of a stopped server: `PDS_FUZZ_SEEDS_FROM=<data directory>`. Run by hand when a format changes.
#[test]
#[ignore = "writes files of the repository"]
fn write_seeds_from_a_log() -> Outcome {
    use engine::entry::EntryKind;
    use engine::log::{FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES, frames_in};
    use engine::repo::car::{CarLimits, CarSlice};
    use engine::repo::event::{self, Event};
    use std::collections::HashSet;

    let dir = PathBuf::from(std::env::var("PDS_FUZZ_SEEDS_FROM").context("PDS_FUZZ_SEEDS_FROM")?);
    let mut seen: HashSet<String> = HashSet::new();
    let mut keep = |target: &str, class: String, bytes: &[u8]| -> Result<()> {
        // One of each kind and size class is enough; the fuzzer finds the rest.
        let class = format!("{target} {class} {}", bytes.len().max(1).ilog2());
        if bytes.len() <= 16 << 10 && seen.insert(class) {
            let name = sha_name(bytes);
            std::fs::write(corpus(target).join(name), bytes)?;
        }
        Ok(())
    };
    for file in std::fs::read_dir(dir.join("log"))? {
        let path = file?.path();
        if path.extension().is_none_or(|ending| ending != "seg") {
            continue;
        }
        let file = std::fs::read(path)?;
        for frame in frames_in(file.get(SEGMENT_HEADER_BYTES..).context("a segment")?) {
            let Ok((at, frame)) = frame else { break };
            let start = SEGMENT_HEADER_BYTES + at;
            let bytes = &file[start..start + frame.header.len()];
            let kind = frame.header.kind;
            keep("frame", kind.to_string(), bytes)?;
            let private = &bytes[FRAME_HEADER_BYTES + frame.header.public_len()..];
            keep(
                "entry",
                private.get(9).map(u8::to_string).unwrap_or_default(),
                private,
            )?;
            keep("event", kind.to_string(), frame.public())?;
            if kind != EntryKind::Commit as u8 {
                continue;
            }
            let Ok(Event::Commit(view)) = event::decode(frame.public()) else {
                continue;
            };
            keep("car", String::new(), view.blocks)?;
            for block in CarSlice::new(view.blocks, CarLimits::default())? {
                let block = block?;
                if block.cid == view.commit {
                    keep("commit", String::new(), block.bytes)?;
                } else if engine::repo::mst::NodeData::decode(block.bytes).is_ok() {
                    keep("mst_node", String::new(), block.bytes)?;
                } else {
                    keep("cbor", String::new(), block.bytes)?;
                    let mut json = Vec::new();
                    engine::repo::json::cbor_to_json(block.bytes, &mut json)?;
                    keep("json", String::new(), &json)?;
                }
            }
        }
    }
    Ok(())
}

fn sha_name(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(bytes);
    data_encoding::HEXLOWER.encode(digest.get(..8).unwrap_or_default())
}
