use std::io::Cursor;

use proptest::prelude::*;

use super::*;

/// Bytes that shrink, of which no two pieces are the same.
fn text(len: usize) -> Vec<u8> {
    let lines = (0u64..).flat_map(|n| format!("row {n} of a table; ").into_bytes());
    lines.take(len).collect()
}

fn noise(len: usize) -> Vec<u8> {
    let random = engine::clock::SeededEntropy::new(1);
    let mut bytes = vec![0; len];
    engine::clock::Entropy::fill(&random, &mut bytes).unwrap();
    bytes
}

fn packed(raw: &[u8]) -> (Vec<u8>, FileEntry) {
    let mut object = Vec::new();
    let (raw_bytes, stored) = encode(&mut &*raw, &mut object).unwrap();
    assert_eq!(stored.bytes, object.len() as u64);
    (object, entry(raw_bytes, stored, true))
}

fn entry(raw_bytes: u64, stored: Stored, packed: bool) -> FileEntry {
    FileEntry {
        name: "index.redb".into(),
        object: "ckpt/1/1-index.redb".into(),
        raw_bytes,
        stored_bytes: stored.bytes,
        sha256: stored.sha256,
        packed,
    }
}

/// An entry that is right about the object, whatever it unpacks to.
fn named(object: &[u8], raw_bytes: u64) -> FileEntry {
    let mut digested = Digested::new(io::sink());
    digested.write_all(object).unwrap();
    entry(raw_bytes, digested.finish().1, true)
}

fn unpack(object: &[u8], entry: &FileEntry, piece: usize) -> Result<Vec<u8>, UnpackError> {
    let mut unpacker = Unpacker::new(entry.clone(), Vec::new()).unwrap();
    for piece in object.chunks(piece) {
        unpacker.push(piece)?;
        assert!(
            unpacker.out.len() as u64 <= entry.raw_bytes,
            "more was written than the file has"
        );
    }
    unpacker.finish()
}

fn refused(object: &[u8], entry: &FileEntry) -> &'static str {
    match (
        unpack(object, entry, 1_000),
        check_object(entry, &mut Cursor::new(object)),
    ) {
        (Err(UnpackError::NotAsNamed(what)), Err(UnpackError::NotAsNamed(_))) => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_comes_back_however_its_object_is_cut() {
    for raw in [
        Vec::new(),
        text(1),
        text(3 * PIECE_BYTES + 5),
        noise(2 * PIECE_BYTES),
    ] {
        let (object, entry) = packed(&raw);
        for piece in [1, 7, 1_000, PIECE_BYTES, 8 << 20] {
            assert!(
                unpack(&object, &entry, piece).unwrap() == raw,
                "{} by {piece}",
                raw.len()
            );
        }
        check_object(&entry, &mut Cursor::new(&object)).unwrap();
    }
}

#[test]
fn what_shrinks_is_packed_and_what_does_not_is_shipped_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (file, temp) = (dir.path().join("file"), dir.path().join("temp"));
    std::fs::create_dir(&temp).unwrap();
    let left = || std::fs::read_dir(&temp).unwrap().count();
    for (raw, shrinks) in [(text(1 << 20), true), (noise(1 << 20), false)] {
        std::fs::write(&file, &raw).unwrap();
        let prepared = prepare(&file, &temp).unwrap();
        assert_eq!(prepared.packed.is_some(), shrinks);
        assert_eq!(prepared.raw_bytes, 1 << 20);
        let object = match &prepared.packed {
            Some(temp) => std::fs::read(temp.path()).unwrap(),
            None => std::fs::read(&file).unwrap(),
        };
        assert!(!shrinks || object.len() < raw.len() / 4);
        let entry = entry(prepared.raw_bytes, prepared.stored, shrinks);
        assert!(unpack(&object, &entry, 10_000).unwrap() == raw);
        assert_eq!(left(), usize::from(shrinks));
        drop(prepared);
        assert_eq!(left(), 0);
    }
    let missing = prepare(&dir.path().join("none"), &temp);
    assert!(matches!(missing, Err(PrepareError::File(_))));
    let nowhere = prepare(&file, &dir.path().join("none"));
    assert!(matches!(nowhere, Err(PrepareError::Temp(_))));
}

#[test]
fn without_room_a_file_is_shipped_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, text(1 << 20)).unwrap();
    assert!(
        prepare_within(&file, dir.path(), 1 << 20)
            .unwrap()
            .packed
            .is_some()
    );
    let prepared = prepare_within(&file, dir.path(), (1 << 20) - 1).unwrap();
    assert!(prepared.packed.is_none());
    assert_eq!(
        (prepared.raw_bytes, prepared.stored),
        (1 << 20, digest_file(&file).unwrap())
    );
    // One that fills up while it is written.
    let full = encode(&mut &*text(1 << 20), Full);
    assert!(matches!(full, Err(PrepareError::Temp(error)) if is_full(&error)));
}

struct Full;

impl Write for Full {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_bomb_and_a_short_file_are_not_what_the_manifest_says() {
    let (object, entry) = packed(&vec![0; 64 << 20]);
    assert!(object.len() < 100_000);
    let bomb = FileEntry {
        raw_bytes: 100_000,
        ..entry.clone()
    };
    assert_eq!(refused(&object, &bomb), "the file is too long");
    let longer = FileEntry {
        raw_bytes: entry.raw_bytes + 1,
        ..entry.clone()
    };
    assert_eq!(refused(&object, &longer), "the file is too short");
    // Cut, and two frames: the manifest is right about the object.
    let cut = &object[..object.len() - 1];
    assert_eq!(
        refused(cut, &named(cut, entry.raw_bytes)),
        "the object is too short"
    );
    let twice = [&*object, &object].concat();
    let both = named(&twice, 2 * entry.raw_bytes);
    assert_eq!(refused(&twice, &both), "the object goes on behind its end");
    assert_eq!(
        refused(&[&*object, b"x"].concat(), &entry),
        "the object is too long"
    );
    assert_eq!(refused(b"", &named(b"", 0)), "the object is too short");
    let text = text(100_000);
    assert_eq!(
        refused(&text, &named(&text, 100_000)),
        "the object does not unpack"
    );
}

#[test]
fn a_frame_that_wants_much_memory_is_refused() {
    let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL).unwrap();
    encoder.window_log(WINDOW_LOG_MAX + 1).unwrap();
    // Of a length that the frame does not know from the start: it announces its window.
    encoder.write_all(&text(1 << 20)).unwrap();
    let object = encoder.finish().unwrap();
    assert_eq!(
        refused(&object, &named(&object, 1 << 20)),
        "the object does not unpack"
    );
}

#[test]
fn a_file_that_is_not_packed_is_compared_with_its_digest() {
    let raw = text(100_000);
    let mut entry = FileEntry {
        packed: false,
        ..named(&raw, 100_000)
    };
    assert!(unpack(&raw, &entry, 999).unwrap() == raw);
    assert_eq!(refused(&raw[1..], &entry), "the object is too short");
    entry.sha256[0] ^= 1;
    assert_eq!(refused(&raw, &entry), "its SHA-256 is another");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_flipped_bit_is_an_error(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let (mut object, entry) = packed(&text(20_000));
        let at = at.index(object.len());
        object[at] ^= 1 << bit;
        prop_assert!(unpack(&object, &entry, 500).is_err());
        // Were the digest right, too, only the frame's own checksum and lengths would be left: no panic, no hang.
        let _ = unpack(&object, &named(&object, entry.raw_bytes), 500);
    }
}
