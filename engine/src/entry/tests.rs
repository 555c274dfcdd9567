use proptest::prelude::*;

use super::*;
use crate::repo::{Cid, Did, Tid};

fn decoded(bytes: &[u8]) -> Result<Vec<Change>, EntryError> {
    decode_private(&Bytes::copy_from_slice(bytes))
}

fn did() -> Did {
    "did:plc:abc".parse().unwrap()
}

fn samples() -> Vec<Change> {
    vec![
        Change::AccountsMigration {
            name: "001".to_owned(),
            sql: "SELECT 1".to_owned(),
        },
        Change::AccountsChangeset {
            bytes: vec![0x54, 0x01],
        },
        Change::BlobStored {
            did: did(),
            cid: Cid::for_raw(b"blob"),
            mime: "image/png".to_owned(),
            size: 4,
            created_at_micros: 1_767_225_600_000_000,
        },
        Change::RepoRemoved { did: did() },
        Change::RepoRows {
            did: did(),
            generation: 2,
            rows: vec![row("a.b.c/one", &[0xa0]), row("a.b.c/other", &[0xf6])],
        },
        Change::RowsGone {
            did: did(),
            generation: 2,
            paths: vec!["a.b.c/one".to_owned()],
        },
        Change::RepoHead {
            did: did(),
            generation: 2,
            commit: Bytes::from_static(&[0xa0]),
        },
        Change::GenerationSwept {
            did: did(),
            generation: 2,
        },
        Change::ReposNumbered {
            next: 3,
            repos: vec![RepoNumber {
                did: did(),
                number: 1,
                generation: 2,
                newest: 4,
                staged: vec![3],
            }],
        },
        Change::RemovalsPending {
            removals: vec![removal()],
        },
        Change::RemovalsGone {
            removals: vec![removal()],
        },
    ]
}

fn removal() -> RepoRemoval {
    RepoRemoval {
        lsn: Lsn::saturating(1_767_225_600_000_000),
        did: did(),
    }
}

fn row(path: &str, block: &[u8]) -> RepoRow {
    RepoRow {
        path: path.to_owned(),
        rev: Tid::from_u64(3),
        cid: Cid::for_dag_cbor(block),
        block: Bytes::copy_from_slice(block),
    }
}

fn digest_of(block: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(Cid::for_dag_cbor(block).digest())
}

/// A changed byte here is a change of the format on disk: raise [`PRIVATE_VERSION`] and keep reading the old one.
#[test]
fn each_change_has_the_bytes_it_always_had() {
    let did_hex = "0b000000000000006469643a706c633a616263";
    let digest = data_encoding::HEXLOWER.encode(Cid::for_raw(b"blob").digest());
    let golden = [
        "0101000000000000000103000000000000003030310800000000000000".to_owned() + "53454c4543542031",
        "01010000000000000002020000000000000054".to_owned() + "01",
        format!(
            "01010000000000000004{did_hex}01551220{digest}0900000000000000696d6167652f706e67{}{}",
            "0400000000000000", "0040204648470600"
        ),
        format!("01010000000000000005{did_hex}"),
        [
            format!("01010000000000000006{did_hex}020000006f00000000000000"),
            format!(
                "00000900010000000300000000000000{}612e622e632f6f6e65a0",
                digest_of(&[0xa0])
            ),
            format!("07000400010000000300000000000000{}74686572f6", digest_of(&[0xf6])),
        ]
        .concat(),
        format!(
            "01010000000000000007{did_hex}02000000{}0900000000000000612e622e632f6f6e65",
            "0100000000000000"
        ),
        format!("01010000000000000008{did_hex}020000000100000000000000a0"),
        format!("01010000000000000009{did_hex}02000000"),
        [
            format!("0101000000000000000a030000000100000000000000{did_hex}"),
            "0100000002000000040000000100000000000000".to_owned() + "03000000",
        ]
        .concat(),
        format!("0101000000000000000b01000000000000000040204648470600{did_hex}"),
        format!("0101000000000000000c01000000000000000040204648470600{did_hex}"),
    ];
    assert_eq!(samples().len(), golden.len());
    for (change, golden) in samples().into_iter().zip(golden) {
        let bytes = encode_private(std::slice::from_ref(&change)).unwrap();
        assert_eq!(data_encoding::HEXLOWER.encode(&bytes), golden, "{change:?}");
        assert_eq!(decoded(&bytes).unwrap(), [change]);
    }
}

#[test]
fn no_changes_are_no_bytes() {
    assert!(encode_private(&[]).unwrap().is_empty());
    assert_eq!(decoded(&[]).unwrap(), []);
}

#[test]
fn unknown_versions_changes_and_kinds_are_errors() {
    let bytes = encode_private(&samples()).unwrap();
    let with = |at: usize, value: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = value;
        decoded(&bytes)
    };
    assert_eq!(with(0, 2), Err(EntryError::UnknownVersion { version: 2 }));
    assert!(
        matches!(with(9, 10), Err(EntryError::MalformedPrivate { .. })),
        "tag 10 is no change"
    );
    assert_eq!(EntryKind::try_from(0), Err(EntryError::UnknownKind { kind: 0 }));
    assert_eq!(EntryKind::try_from(7), Err(EntryError::UnknownKind { kind: 7 }));
    for kind in EntryKind::ALL {
        assert_eq!(EntryKind::try_from(kind as u8), Ok(kind));
    }
}

#[test]
fn truncated_and_trailing_bytes_are_errors() {
    let bytes = encode_private(&samples()).unwrap();
    for len in 1..bytes.len() {
        assert!(decoded(&bytes[..len]).is_err(), "{len} bytes");
    }
    assert!(decoded(&[&bytes[..], &[0]].concat()).is_err());
}

#[test]
fn a_promised_length_allocates_nothing() {
    for tag in [1u8, 2, 3, 6, 7, 8] {
        let mut bytes = vec![PRIVATE_VERSION];
        bytes.extend_from_slice(&1u64.to_le_bytes());
        bytes.push(tag);
        bytes.extend_from_slice(&u64::MAX.to_le_bytes());
        assert!(decoded(&bytes).is_err());
    }
    let mut bytes = vec![PRIVATE_VERSION];
    bytes.extend_from_slice(&u64::MAX.to_le_bytes());
    assert!(decoded(&bytes).is_err());
}

fn any_row() -> impl Strategy<Value = RepoRow> {
    ("[a-c]{1,12}", proptest::collection::vec(any::<u8>(), 0..60))
        .prop_map(|(rkey, block)| row(&format!("app.test.post/{rkey}"), &block))
}

fn any_change() -> impl Strategy<Value = Change> {
    let did = prop_oneof![Just(did()), Just("did:web:example.com".parse::<Did>().unwrap())];
    prop_oneof![
        (".{0,20}", ".{0,200}").prop_map(|(name, sql)| Change::AccountsMigration { name, sql }),
        proptest::collection::vec(any::<u8>(), 0..500).prop_map(|bytes| Change::AccountsChangeset { bytes }),
        (
            did.clone(),
            any::<[u8; 8]>(),
            ".{0,40}",
            any::<u64>(),
            any::<u64>()
        )
            .prop_map(|(did, seed, mime, size, created_at_micros)| Change::BlobStored {
                did,
                cid: Cid::for_raw(&seed),
                mime,
                size,
                created_at_micros
            }),
        (
            did.clone(),
            any::<u32>(),
            proptest::collection::vec(any_row(), 0..8)
        )
            .prop_map(|(did, generation, rows)| Change::RepoRows {
                did,
                generation,
                rows
            }),
        (
            did.clone(),
            any::<u32>(),
            proptest::collection::vec("[a-z]{1,9}", 0..8)
        )
            .prop_map(|(did, generation, rkeys)| Change::RowsGone {
                did,
                generation,
                paths: rkeys.iter().map(|rkey| format!("a.b.c/{rkey}")).collect()
            }),
        (
            did.clone(),
            any::<u32>(),
            proptest::collection::vec(any::<u8>(), 0..99)
        )
            .prop_map(|(did, generation, commit)| Change::RepoHead {
                did,
                generation,
                commit: commit.into()
            }),
        (did.clone(), any::<u32>()).prop_map(|(did, generation)| Change::GenerationSwept { did, generation }),
        (
            did.clone(),
            any::<[u32; 4]>(),
            proptest::collection::vec(any::<u32>(), 0..3)
        )
            .prop_map(|(did, [next, number, generation, newest], staged)| {
                let repo = RepoNumber {
                    did,
                    number,
                    generation,
                    newest,
                    staged,
                };
                Change::ReposNumbered {
                    next,
                    repos: vec![repo],
                }
            }),
        (did.clone(), 0..1u64 << 53, any::<bool>()).prop_map(|(did, lsn, gone)| {
            let lsn = Lsn::saturating(lsn);
            let removals = vec![RepoRemoval { lsn, did }];
            if gone {
                Change::RemovalsGone { removals }
            } else {
                Change::RemovalsPending { removals }
            }
        }),
        did.prop_map(|did| Change::RepoRemoved { did }),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(changes in proptest::collection::vec(any_change(), 0..8)) {
        prop_assert_eq!(decoded(&encode_private(&changes).unwrap()).unwrap(), changes);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decoded(&bytes);
        let _ = decoded(&[&[PRIVATE_VERSION], &bytes[..]].concat());
    }
}

#[test]
fn blocks_are_parts_of_the_entry_and_know_their_place() {
    let draft = EntryDraft::private(samples()).into_draft().unwrap();
    let private = Bytes::from(draft.private);
    let at = Location {
        segment: Lsn::new(7).unwrap(),
        offset: 1000,
        len: u32::try_from(private.len()).unwrap(),
    };
    let entry = Entry {
        lsn: Lsn::new(9).unwrap(),
        epoch: Epoch(1),
        kind: EntryKind::Private,
        public: Bytes::new(),
        public_at: at,
        changes: decode_private(&private).unwrap(),
        private: private.clone(),
        private_at: at,
    };
    let mut found = 0;
    for change in &entry.changes {
        if let Change::RepoRows { rows, .. } = change {
            for row in rows {
                let place = entry.private_location(&row.block).unwrap();
                let from = usize::try_from(place.offset - at.offset).unwrap();
                assert!(row.cid.matches(&private[from..from + place.len as usize]));
                found += 1;
            }
        }
    }
    assert_eq!(found, 2);
    assert_eq!(entry.private_location(b"somewhere else"), None);
}

#[test]
fn a_row_with_a_path_that_is_none_or_a_foreign_codec_is_refused() {
    let rows = |row| Change::RepoRows {
        did: did(),
        generation: 1,
        rows: vec![row],
    };
    let raw = RepoRow {
        cid: Cid::for_raw(b"x"),
        ..row("a.b.c/x", b"x")
    };
    assert!(encode_private(&[rows(raw)]).is_err());
    for path in ["", "a.b.c", "a.b.c/", "a.b.c/x/y", "no nsid/x"] {
        let bytes = encode_private(&[rows(row(path, b"x"))]).unwrap();
        assert!(decoded(&bytes).is_err(), "{path:?}");
    }
}
