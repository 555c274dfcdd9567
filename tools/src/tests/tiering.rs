//! Directories whose log is in part in the replica only: that is told and is no damage; what is here is checked as ever.

use engine::log::{AwaySegment, SegmentInfo};
use sha2::{Digest, Sha256};

use super::fixture::*;
use crate::Outcome;

/// A stopped server's directory in which one in two sealed segments is away.
fn half_away() -> (tempfile::TempDir, Vec<AwaySegment>) {
    let (dir, _) = stopped();
    let engine = start(dir.path());
    let log = engine.log_reader();
    let files = segments(dir.path());
    let known = log
        .segments()
        .into_iter()
        .zip(&files)
        .filter(|(info, _)| info.sealed);
    let known = known.map(|(info, file)| {
        assert!(file.ends_with(engine::log::segment_file_name(info.base)));
        AwaySegment {
            log_id: engine.log_id(),
            object: format!("seg/{}", info.base.hex()),
            object_bytes: 1,
            file_sha256: Sha256::digest(std::fs::read(file).unwrap()).into(),
            info: SegmentInfo { sha256: None, ..info },
        }
    });
    let known: Vec<AwaySegment> = known.step_by(2).collect();
    assert!(known.len() >= 2);
    log.in_replica(known.clone());
    log.evict(u64::MAX).unwrap();
    assert_eq!(log.tier_use().away, known.len());
    drop(log);
    stop(engine, false);
    (dir, known)
}

#[test]
fn segments_that_are_away_are_told_and_the_rest_is_checked() {
    let (dir, away) = half_away();
    let before = content(dir.path());
    let (outcome, text) = verify(dir.path());
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    for away in &away {
        has_line(&text, &["is away", &away.info.base.hex(), &away.object]);
    }
    has_line(
        &text,
        &[&format!("{} segments", away.len()), "are away", "--replica"],
    );
    has_line(&text, &["views were not compared", "away"]);
    assert_eq!(content(dir.path()), before);

    let path = dir.path().to_str().unwrap();
    let (outcome, text) = tool(&["inspect", path]);
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    has_line(&text, &[&away[0].info.base.hex(), "away"]);
    let (outcome, _) = tool(&["compact", path, "--dry-run"]);
    assert!(outcome.unwrap_err().contains("in the replica"));

    // Damage of what is here is found.
    let here = segments(dir.path());
    let mut bytes = std::fs::read(&here[0]).unwrap();
    let at = frames(&here[0])[1].0 + 60;
    bytes[at] ^= 1;
    std::fs::write(&here[0], bytes).unwrap();
    expect_finding(dir.path(), &["segment"]);
}

#[test]
fn what_is_missing_and_not_listed_is_damage() {
    let (dir, _) = half_away();
    std::fs::remove_file(&segments(dir.path())[0]).unwrap();
    expect_finding(dir.path(), &["segments or frames are missing"]);
}
