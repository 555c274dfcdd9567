use super::*;
use crate::wire::testing::golden;
use proptest::prelude::*;

fn example() -> Manifest {
    Manifest {
        generation: 4,
        log_id: [0x11; 16],
        writer_id: [0x22; 16],
        epoch: 3,
        segments: vec![
            SegmentEntry {
                base: 100,
                last: 200,
                prev: 0,
                raw_bytes: 4_096,
                sha256: [0x33; 32],
                object: "seg/0000000000000064".into(),
                stored_bytes: 1_000,
                epoch: 2,
                frames: 40,
                compaction: 1,
            },
            SegmentEntry {
                base: 201,
                last: 300,
                prev: 200,
                raw_bytes: 8_192,
                sha256: [0x44; 32],
                object: "seg/00000000000000c9".into(),
                stored_bytes: 2_000,
                epoch: 3,
                frames: 70,
                compaction: 0,
            },
        ],
        covered_through: 17,
        next_ordinal: 18,
        covered_epoch: 3,
        checkpoints: vec![CheckpointEntry {
            lsn: 250,
            files: vec![FileEntry {
                name: "index.redb".into(),
                object: "ckpt/00000000000000fa/3-index.redb".into(),
                raw_bytes: 77,
                stored_bytes: 44,
                sha256: [0x55; 32],
                packed: true,
            }],
            verified_at_micros: 1_699_999_999_000_000,
        }],
        lsn_floor: 320,
        created_at_micros: 1_700_000_000_000_000,
        displaced: Displaced {
            segments: vec![DisplacedSegment {
                entry: SegmentEntry {
                    base: 40,
                    last: 120,
                    prev: 0,
                    raw_bytes: 3_000,
                    sha256: [0x66; 32],
                    object: "seg/0000000000000028".into(),
                    stored_bytes: 900,
                    epoch: 1,
                    frames: 12,
                    compaction: 0,
                },
                through: 200,
                at_micros: 1_699_999_000_000_000,
            }],
            checkpoints: vec![DisplacedCheckpoint {
                entry: CheckpointEntry {
                    lsn: 110,
                    files: vec![FileEntry {
                        name: "index.redb".into(),
                        object: "ckpt/000000000000006e/1-index.redb".into(),
                        raw_bytes: 66,
                        stored_bytes: 66,
                        sha256: [0x77; 32],
                        packed: false,
                    }],
                    verified_at_micros: 0,
                },
                at_micros: 1_699_999_000_000_000,
            }],
        },
    }
}

#[test]
fn a_manifest_has_the_bytes_of_the_golden_file_and_comes_back() {
    let bytes = example().encode().unwrap();
    golden("manifest.bin", &bytes);
    assert_eq!(Manifest::decode(&bytes).unwrap(), example());
    assert_eq!(example().covered_lsn().get(), 300);
}

/// What a program of format 2 wrote of [`example`].
fn example_of_format2() -> Manifest {
    let mut manifest = example();
    let file = &mut manifest.checkpoints[0].files[0];
    (file.stored_bytes, file.packed) = (file.raw_bytes, false);
    manifest
}

/// What a program of format 1 wrote of [`example`].
fn example_of_format1() -> Manifest {
    let mut manifest = example_of_format2();
    manifest.displaced = Displaced::default();
    for segment in &mut manifest.segments {
        (segment.epoch, segment.frames, segment.compaction) = (0, 0, 0);
    }
    for checkpoint in &mut manifest.checkpoints {
        checkpoint.verified_at_micros = 0;
    }
    manifest
}

#[test]
fn manifests_of_earlier_formats_are_read_and_a_later_one_is_not() {
    let testdata = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    for (version, expected) in [(1, example_of_format1()), (2, example_of_format2())] {
        let bytes = std::fs::read(testdata.join(format!("manifest-{version}.bin"))).unwrap();
        assert_eq!(bytes[8], version);
        assert_eq!(Manifest::decode(&bytes).unwrap(), expected);
        // What is read is written in the present format.
        assert_eq!(Manifest::decode(&expected.encode().unwrap()).unwrap(), expected);
    }
    let mut bytes = example().encode().unwrap();
    bytes[8] = 4;
    assert_eq!(Manifest::decode(&bytes), Err(ManifestError::UnknownVersion(4)));
    // The fields of one format under the number of another are no manifest.
    for version in [1, 2] {
        bytes[8] = version;
        let end = bytes.len() - CRC_BYTES;
        let crc = crc32fast::hash(&bytes[..end]).to_le_bytes();
        bytes[end..].copy_from_slice(&crc);
        assert!(matches!(Manifest::decode(&bytes), Err(ManifestError::Body(_))));
    }
}

#[test]
fn manifests_that_break_a_rule_are_neither_written_nor_read() {
    type Breaker = (&'static str, fn(&mut Manifest));
    let breakers: Vec<Breaker> = vec![
        ("next ordinal", |m| m.next_ordinal = 17),
        ("gap between segments", |m| m.segments[1].prev = 199),
        ("backward segment", |m| m.segments[0].last = 50),
        ("LSN over 2^53", |m| m.segments[1].last = 1 << 53),
        ("path in a checkpoint", |m| {
            m.checkpoints[0].files[0].name = "../../etc/passwd".into();
        }),
        ("a file that is no file's size", |m| {
            m.checkpoints[0].files[0].packed = false;
        }),
        ("floor over 2^53", |m| m.lsn_floor = u64::MAX),
        ("covered epoch", |m| m.covered_epoch = 4),
        ("displaced by less than it holds", |m| {
            m.displaced.segments[0].through = 119;
        }),
        ("displaced over 2^53", |m| {
            m.displaced.segments[0].through = 1 << 53;
        }),
        ("path in a displaced checkpoint", |m| {
            m.displaced.checkpoints[0].entry.files[0].name = "..".into();
        }),
        ("displaced and live", |m| {
            m.displaced.segments[0].entry.object = m.segments[1].object.clone();
        }),
    ];
    for (name, break_it) in breakers {
        let mut manifest = example();
        break_it(&mut manifest);
        assert!(matches!(manifest.encode(), Err(ManifestError::Body(_))), "{name}");
    }
}

proptest! {
    #[test]
    fn a_truncated_manifest_is_an_error(cut in any::<prop::sample::Index>()) {
        let bytes = example().encode().unwrap();
        prop_assert!(Manifest::decode(&bytes[..cut.index(bytes.len())]).is_err());
    }

    #[test]
    fn a_flipped_bit_is_an_error(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut bytes = example().encode().unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(Manifest::decode(&bytes).is_err());
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Manifest::decode(&bytes);
    }
}
