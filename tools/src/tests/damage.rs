//! I7: what is whole is found clean and left alone; each kind of damage is found, and named by its place.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use benches::synthetic::SyntheticRepo;
use redb::ReadableTable;

use super::fixture::*;
use crate::Outcome;

#[test]
fn a_stopped_server_is_clean_and_nothing_in_it_changes() {
    let (dir, _) = stopped();
    assert!(segments(dir.path()).len() >= 4, "several segments");
    let before = content(dir.path());
    let (outcome, text) = verify(dir.path());
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    has_line(&text, &["checked", "3 repos"]);
    assert_eq!(content(dir.path()), before);
    assert!(!text.contains("not compared"), "{text}");
}

#[test]
fn views_that_are_behind_the_log_or_missing_are_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path());
    fill(&engine);
    drop(engine); // A crash: views are not persisted.
    let (outcome, text) = verify(dir.path());
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    std::fs::remove_file(dir.path().join("index.redb")).unwrap();
    let (outcome, text) = verify(dir.path());
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    has_line(&text, &["note", "no index.redb"]);
}

#[test]
fn a_flipped_bit_in_a_block_is_found_down_to_the_block() {
    let (dir, _) = stopped();
    let path = &segments(dir.path())[1];
    let bytes = std::fs::read(path).unwrap();
    let words = b"synthetic words";
    let at = bytes
        .windows(words.len())
        .position(|window| window == words)
        .unwrap();
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
    let text = expect_finding(
        dir.path(),
        &[
            "DAMAGE segment",
            "offset",
            "entry",
            "block bafyrei",
            "restore this directory",
        ],
    );
    has_line(&text, &["SHA-256 in the footer"]);
}

#[test]
fn a_flipped_bit_in_a_header_does_not_hide_what_follows() {
    let (dir, _) = stopped();
    let path = &segments(dir.path())[1];
    let (offset, _) = frames(path)[2];
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[0xff], offset as u64 + 9).unwrap();
    expect_finding(
        dir.path(),
        &[&format!("offset {offset}"), "checksum of the frame header"],
    );
}

#[test]
fn a_dropped_frame_is_found() {
    let (dir, _) = stopped();
    let path = &segments(dir.path())[1];
    let (offset, len) = frames(path)[3];
    let mut bytes = std::fs::read(path).unwrap();
    bytes.drain(offset..offset + len);
    std::fs::write(path, bytes).unwrap();
    expect_finding(
        dir.path(),
        &[
            "DAMAGE segment",
            &format!("offset {offset}"),
            "frames are missing",
        ],
    );
}

#[test]
fn a_missing_segment_is_found_wherever_it_was() {
    let (dir, _) = stopped();
    let all = segments(dir.path());
    let middle = std::fs::read(&all[2]).unwrap();
    std::fs::remove_file(&all[2]).unwrap();
    let next = all[3].file_stem().unwrap().to_str().unwrap();
    expect_finding(
        dir.path(),
        &["DAMAGE segment", next, "segments or frames are missing"],
    );
    std::fs::write(&all[2], middle).unwrap();
    std::fs::remove_file(&all[0]).unwrap();
    expect_finding(dir.path(), &["the log begins here", "segments are missing"]);
}

#[test]
fn a_lost_newest_segment_shows_in_the_views_that_are_ahead() {
    let (dir, _) = stopped();
    let all = segments(dir.path());
    std::fs::remove_file(all.last().unwrap()).unwrap();
    expect_finding(dir.path(), &["index.redb", "ahead of the log's end"]);
}

#[test]
fn a_wrong_tree_root_is_found_though_every_checksum_holds() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path());
    let mut repos = fill(&engine);
    let repo = &mut repos[1];
    let before = repo.head().unwrap().data;
    let writes = repo.posts(1);
    let forged = repo.commit_claiming(&writes, Some(before)).unwrap();
    let lsn = append(&engine, forged).last;
    let did = repo.did.to_string();
    stop(engine, false);
    let text = expect_finding(
        dir.path(),
        &["DAMAGE entry", &lsn.to_string(), "do not lead to its tree"],
    );
    has_line(&text, &["DAMAGE repo", &did, "its records make the tree"]);
}

#[test]
fn a_signature_by_another_key_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path());
    let (mut repo, other) = (SyntheticRepo::new(50).unwrap(), SyntheticRepo::new(51).unwrap());
    create_account_with(
        &engine,
        &repo,
        "alice.test",
        &other.key().public_key().to_did_key(),
    );
    let writes = repo.posts(2);
    append(&engine, repo.commit(&writes).unwrap());
    stop(engine, false);
    expect_finding(
        dir.path(),
        &[
            "DAMAGE repo",
            repo.did.as_str(),
            "signature is not by the account's key",
        ],
    );
}

#[test]
fn an_account_row_that_disagrees_with_the_log_is_found_and_not_shown() {
    let (dir, repos) = stopped();
    let conn = rusqlite::Connection::open(dir.path().join("account.sqlite")).unwrap();
    let changed = conn
        .execute(
            "UPDATE account SET passwordScrypt = 'another secret' WHERE did = ?1",
            [repos[2].did.as_str()],
        )
        .unwrap();
    assert_eq!(changed, 1);
    conn.close().unwrap();
    let text = expect_finding(
        dir.path(),
        &["account.sqlite table account", repos[2].did.as_str()],
    );
    assert!(
        !text.contains("another secret") && !text.contains(SECRET),
        "{text}"
    );
}

#[test]
fn an_index_row_that_disagrees_with_the_log_is_found() {
    let (dir, repos) = stopped();
    let table: redb::TableDefinition<'_, &[u8], u64> = redb::TableDefinition::new("collections");
    let database = redb::Database::open(dir.path().join("index.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut rows = transaction.open_table(table).unwrap();
        rows.insert(b"app.bsky.feed.like\0\0\0\0\x01".as_slice(), 7)
            .unwrap();
        let heads: redb::TableDefinition<'_, u32, &[u8]> = redb::TableDefinition::new("heads");
        let mut heads = transaction.open_table(heads).unwrap();
        let mut row = heads.get(0).unwrap().unwrap().value().to_vec();
        row[98] ^= 1; // The number of records.
        heads.insert(0, row.as_slice()).unwrap();
    }
    transaction.commit().unwrap();
    drop(database);
    let text = expect_finding(
        dir.path(),
        &[
            "index.redb table heads row",
            repos[0].did.as_str(),
            "another value",
        ],
    );
    has_line(&text, &["table collections", "should not be there"]);
}

#[test]
fn a_damaged_view_file_is_a_finding_and_no_crash() {
    let (dir, _) = stopped();
    std::fs::write(dir.path().join("index.redb"), b"this is no database at all").unwrap();
    // The write-ahead file alone could bring the database back.
    std::fs::remove_file(dir.path().join("account.sqlite-wal")).unwrap();
    std::fs::write(dir.path().join("account.sqlite"), vec![7; 8192]).unwrap();
    let text = expect_finding(dir.path(), &["index.redb", "delete this file"]);
    has_line(&text, &["account.sqlite", "delete this file"]);
}

#[test]
fn a_torn_tail_is_told_and_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path());
    fill(&engine);
    drop(engine);
    let newest = segments(dir.path()).pop().unwrap();
    // Zeros behind the frames were written ahead, and are nothing to speak of.
    let (outcome, text) = verify(dir.path());
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    assert!(!text.contains("never vouched for"), "{text}");
    let (last, len) = frames(&newest).pop().unwrap();
    let file = OpenOptions::new().write(true).open(newest).unwrap();
    let end = (last + len) as u64;
    file.write_all_at(&[7; 100], end).unwrap();
    file.set_len(end + 100).unwrap();
    let (outcome, text) = verify(dir.path());
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    has_line(&text, &["note", "100 bytes", "never vouched for"]);
}

#[test]
fn a_damaged_checkpoint_is_found() {
    let (dir, _) = stopped();
    let checkpoint = std::fs::read_dir(dir.path().join("ckpt"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let file = OpenOptions::new()
        .write(true)
        .open(checkpoint.join("index.redb"))
        .unwrap();
    file.write_all_at(b"x", 5000).unwrap();
    expect_finding(dir.path(), &["ckpt", "a start does without"]);
}

#[test]
fn of_a_running_server_only_the_log_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path());
    fill(&engine);
    let (outcome, text) = verify(dir.path());
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    has_line(&text, &["note", "a server is running here"]);
    stop(engine, false);
}

#[test]
fn directories_that_are_none_of_ours_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("nowhere");
    assert!(verify(&missing).0.unwrap_err().contains("does not exist"));
    assert!(verify(dir.path()).0.unwrap_err().contains("not a data directory"));
    std::fs::create_dir(dir.path().join("log")).unwrap();
    assert_eq!(verify(dir.path()).0, Ok(Outcome::Clean), "an empty log");
    std::fs::write(dir.path().join("log/what.seg"), b"").unwrap();
    assert!(verify(dir.path()).0.unwrap_err().contains("not a segment's name"));
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let (dir, _) = stopped();
    let path = &segments(dir.path())[0];
    let mut bytes = std::fs::read(path).unwrap();
    bytes[8] = 3;
    let crc = crc32(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
    for command in ["verify", "inspect"] {
        let (outcome, _) = tool(&[command, dir.path().to_str().unwrap()]);
        assert!(outcome.unwrap_err().contains("version 3"), "{command}");
    }
}

/// The checksum of the formats, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ 0xedb8_8320
            } else {
                crc >> 1
            };
        }
    }
    !crc
}
