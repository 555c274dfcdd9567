//! What would break without these: a log writer that stamps the wrong bytes, an index that points beside a block, or a
//! message that consumers refuse.

use super::*;
use crate::repo::car::{self, CarLimits, CarSlice};
use crate::repo::commit::{Commit, UnsignedCommit};
use crate::repo::did::Did;
use crate::repo::keys::SigningKey;
use crate::repo::mst::{Tree, invert};
use crate::repo::tid::Tid;
use bytes::Bytes;
use proptest::prelude::*;
use shrike::cbor::{Decoder, Value};
use std::collections::HashMap;

const SEQ: u64 = 1_790_000_000_000_000;
const TIME: &[u8; TIME_BYTES] = b"2026-09-21T14:13:20.000Z";

/// What the log's writer does.
fn stamped(unstamped: Unstamped) -> Vec<u8> {
    let Unstamped {
        mut bytes,
        seq_at,
        time_at,
    } = unstamped;
    bytes[seq_at..seq_at + 8].copy_from_slice(&SEQ.to_be_bytes());
    bytes[time_at..time_at + TIME_BYTES].copy_from_slice(TIME);
    bytes
}

fn did() -> Did {
    "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().unwrap()
}

fn tid(number: u64) -> Tid {
    Tid::from_micros(SEQ + number, 7)
}

fn record(number: u8) -> Cid {
    Cid::for_dag_cbor(&[0x18, number])
}

type Fields<'a> = Vec<(&'a str, Value<'a>)>;

/// Both items as another implementation reads them.
fn foreign(bytes: &[u8]) -> (Fields<'_>, Fields<'_>) {
    let mut decoder = Decoder::new(bytes);
    match (decoder.decode().unwrap(), decoder.decode().unwrap()) {
        (Value::Map(header), Value::Map(body)) => {
            assert!(decoder.is_empty());
            (header, body)
        }
        _ => panic!("two maps"),
    }
}

fn names<'a>(fields: &[(&'a str, Value<'_>)]) -> Vec<&'a str> {
    fields.iter().map(|(name, _)| *name).collect()
}

fn field<'v, 'a>(fields: &'v [(&'a str, Value<'a>)], name: &str) -> &'v Value<'a> {
    &fields.iter().find(|(found, _)| *found == name).unwrap().1
}

#[test]
fn a_commit_travels_from_the_tree_to_a_consumer_who_can_undo_it() {
    let key = SigningKey::from_bytes(&[7; 32]).unwrap();
    let mut tree = Tree::empty();
    let mut store: HashMap<Cid, Bytes> = HashMap::new();
    for number in 0..60 {
        tree.insert(&format!("com.example.record/{number}"), record(number), &store)
            .unwrap();
    }
    let before = tree.flush();
    store.extend(before.added);

    tree.insert("com.example.record/5x", record(100), &store).unwrap();
    let updated = tree.update("com.example.record/9", record(101), &store).unwrap();
    let deleted = tree.remove("com.example.record/30", &store).unwrap();
    let after = tree.flush();
    store.extend(after.added);
    let ops = [
        RepoOp {
            path: "com.example.record/5x",
            action: OpAction::Create { cid: record(100) },
        },
        RepoOp {
            path: "com.example.record/9",
            action: OpAction::Update {
                cid: record(101),
                prev: updated,
            },
        },
        RepoOp {
            path: "com.example.record/30",
            action: OpAction::Delete { prev: deleted },
        },
    ];
    let unsigned = UnsignedCommit {
        did: did(),
        data: after.root,
        rev: tid(1),
    };
    let commit = unsigned.sign(&key).unwrap();
    let mut blocks = Vec::new();
    car::write_header(&mut blocks, &[commit.cid()]);
    car::write_block(&mut blocks, &commit.cid(), commit.bytes());
    for (cid, bytes) in tree.covering_proof(ops.iter().map(|op| op.path), &store).unwrap() {
        car::write_block(&mut blocks, &cid, &bytes);
    }
    car::write_block(&mut blocks, &record(100), &[0x18, 100]);
    car::write_block(&mut blocks, &record(101), &[0x18, 101]);
    let event = CommitEvent {
        repo: &did(),
        commit: commit.cid(),
        rev: tid(1),
        since: Some(tid(0)),
        prev_data: Some(before.root),
        ops: &ops,
        blocks: &blocks,
    };
    let message = stamped(encode_commit(&event).unwrap());

    let Event::Commit(view) = decode(&message).unwrap() else {
        panic!("a commit");
    };
    assert_eq!((view.seq, view.time.as_bytes()), (SEQ, TIME.as_slice()));
    assert_eq!((view.rev, view.since), (tid(1), Some(tid(0))));
    assert_eq!(view.repo, did());
    assert_eq!(view.ops.len(), 3);
    assert_eq!(view.ops.clone().collect::<Vec<_>>(), ops);
    assert_eq!(
        message[view.blocks_at..view.blocks_at + view.blocks.len()],
        *view.blocks
    );

    let car = CarSlice::new(view.blocks, CarLimits::default()).unwrap();
    assert_eq!(car.roots(), [view.commit]);
    let mut received: HashMap<Cid, Bytes> = HashMap::new();
    for block in car {
        let block = block.unwrap();
        let at = view.blocks_at + block.offset;
        assert_eq!(
            message[at..at + block.bytes.len()],
            *block.bytes,
            "where the block lies"
        );
        received.insert(block.cid, Bytes::copy_from_slice(block.bytes));
    }
    let commit = Commit::decode(received[&view.commit].clone()).unwrap();
    assert_eq!(commit.verify(&key.public_key()), Ok(()));
    assert_eq!((commit.did(), commit.rev()), (&view.repo, view.rev));
    let changes: Vec<Change<'_>> = view.ops.map(Change::from).collect();
    assert_eq!(invert(&changes, commit.data(), &received).ok(), view.prev_data);
}

#[test]
fn another_implementation_finds_every_field_of_a_commit() {
    let ops = [
        RepoOp {
            path: "a.b.c/1",
            action: OpAction::Create { cid: record(1) },
        },
        RepoOp {
            path: "a.b.c/2",
            action: OpAction::Delete { prev: record(2) },
        },
    ];
    let mut event = CommitEvent {
        repo: &did(),
        commit: record(3),
        rev: tid(1),
        since: None,
        prev_data: None,
        ops: &ops,
        blocks: b"blocks",
    };
    let message = stamped(encode_commit(&event).unwrap());
    let (header, body) = foreign(&message);
    assert_eq!(
        header,
        [("t", Value::Text("#commit")), ("op", Value::Unsigned(1))]
    );
    let all = [
        "ops", "rev", "seq", "repo", "time", "blobs", "since", "blocks", "commit", "rebase", "tooBig",
        "prevData",
    ];
    assert_eq!(names(&body), all[..11]);
    assert_eq!(*field(&body, "seq"), Value::Unsigned(SEQ));
    assert_eq!(
        *field(&body, "time"),
        Value::Text(std::str::from_utf8(TIME).unwrap())
    );
    assert_eq!(*field(&body, "since"), Value::Null);
    assert_eq!(*field(&body, "blobs"), Value::Array(Vec::new()));
    assert_eq!(*field(&body, "blocks"), Value::Bytes(b"blocks"));
    let Value::Array(found) = field(&body, "ops") else {
        panic!("a list of operations");
    };
    let [Value::Map(create), Value::Map(delete)] = found.as_slice() else {
        panic!("two operations");
    };
    assert_eq!(names(create), ["cid", "path", "action"]);
    assert_eq!(names(delete), ["cid", "path", "prev", "action"]);
    assert_eq!(*field(delete, "cid"), Value::Null);

    event.prev_data = Some(record(4));
    let message = stamped(encode_commit(&event).unwrap());
    assert_eq!(names(&foreign(&message).1), all);
}

#[test]
fn the_other_events_carry_what_they_are_given() {
    let message = stamped(encode_sync(&did(), tid(1), b"car").unwrap());
    assert_eq!(
        names(&foreign(&message).1),
        ["did", "rev", "seq", "time", "blocks"]
    );
    let Event::Sync(sync) = decode(&message).unwrap() else {
        panic!("a sync")
    };
    assert_eq!(
        (sync.seq, sync.did, sync.rev, sync.blocks),
        (SEQ, did(), tid(1), b"car".as_slice())
    );
    assert_eq!(message[sync.blocks_at..], *b"car");

    for handle in [None, Some("alice.example.com".parse().unwrap())] {
        let message = stamped(encode_identity(&did(), handle.as_ref()));
        let fields = ["did", "seq", "time", "handle"];
        assert_eq!(
            names(&foreign(&message).1),
            fields[..3 + usize::from(handle.is_some())]
        );
        let Event::Identity(identity) = decode(&message).unwrap() else {
            panic!("an identity")
        };
        assert_eq!(
            (identity.seq, identity.did, identity.handle),
            (SEQ, did(), handle)
        );
    }

    for inactive in AccountStatus::ALL.into_iter().map(Some).chain([None]) {
        let message = stamped(encode_account(&did(), inactive));
        let fields = ["did", "seq", "time", "active", "status"];
        let (_, body) = foreign(&message);
        assert_eq!(names(&body), fields[..4 + usize::from(inactive.is_some())]);
        assert_eq!(*field(&body, "active"), Value::Bool(inactive.is_none()));
        let Event::Account(account) = decode(&message).unwrap() else {
            panic!("an account")
        };
        assert_eq!(
            (account.seq, account.did, account.inactive),
            (SEQ, did(), inactive)
        );
    }

    let message = encode_info("OutdatedCursor", Some("too old"));
    assert_eq!(names(&foreign(&message).1), ["name", "message"]);
    assert!(matches!(
        decode(&message),
        Ok(Event::Info {
            name: "OutdatedCursor",
            message: Some("too old")
        })
    ));
    let message = encode_error("FutureCursor", None);
    assert_eq!(foreign(&message).0, [("op", Value::Signed(-1))]);
    assert!(matches!(
        decode(&message),
        Ok(Event::Error {
            error: "FutureCursor",
            message: None
        })
    ));
}

#[test]
fn a_message_decodes_before_it_is_stamped() {
    let unstamped = encode_account(&did(), None);
    let Event::Account(account) = decode(&unstamped.bytes).unwrap() else {
        panic!("an account")
    };
    assert_eq!(account.seq, LEAST_SEQ);
}

#[test]
fn the_limits_of_the_stream_are_measured_exactly() {
    let paths: Vec<String> = (0..=MAX_OPS).map(|number| format!("a.b.c/{number}")).collect();
    let ops: Vec<RepoOp<'_>> = paths
        .iter()
        .map(|path| RepoOp {
            path,
            action: OpAction::Create { cid: record(1) },
        })
        .collect();
    let blocks = vec![0; MAX_COMMIT_CAR_BYTES + 1];
    let encode = |ops_len: usize, blocks_len: usize| {
        let event = CommitEvent {
            repo: &did(),
            commit: record(3),
            rev: tid(1),
            since: None,
            prev_data: None,
            ops: &ops[..ops_len],
            blocks: &blocks[..blocks_len],
        };
        encode_commit(&event)
    };
    let largest = encode(MAX_OPS, MAX_COMMIT_CAR_BYTES).unwrap();
    assert!(decode(&largest.bytes).is_ok());
    assert_eq!(encode(MAX_OPS + 1, 0), Err(EncodeError::TooManyOps(MAX_OPS + 1)));
    let (found, limit) = (MAX_COMMIT_CAR_BYTES + 1, MAX_COMMIT_CAR_BYTES);
    assert_eq!(
        encode(1, found),
        Err(EncodeError::BlocksTooLarge { found, limit })
    );
    assert!(encode_sync(&did(), tid(1), &blocks[..MAX_SYNC_CAR_BYTES]).is_ok());
    let (found, limit) = (MAX_SYNC_CAR_BYTES + 1, MAX_SYNC_CAR_BYTES);
    assert_eq!(
        encode_sync(&did(), tid(1), &blocks[..found]),
        Err(EncodeError::BlocksTooLarge { found, limit })
    );
    assert_eq!(
        decode(&vec![0; MAX_MESSAGE_BYTES + 1]).unwrap_err(),
        EventError::Limit("bytes")
    );
}

fn sample(kind: usize) -> Vec<u8> {
    let ops = [
        RepoOp {
            path: "a.b.c/1",
            action: OpAction::Create { cid: record(1) },
        },
        RepoOp {
            path: "a.b.c/2",
            action: OpAction::Update {
                cid: record(1),
                prev: record(2),
            },
        },
    ];
    let event = CommitEvent {
        repo: &did(),
        commit: record(3),
        rev: tid(1),
        since: Some(tid(0)),
        prev_data: Some(record(4)),
        ops: &ops,
        blocks: b"blocks",
    };
    stamped(match kind {
        0 => encode_commit(&event).unwrap(),
        1 => encode_sync(&did(), tid(1), b"car").unwrap(),
        2 => encode_identity(&did(), Some(&"alice.example.com".parse().unwrap())),
        _ => encode_account(&did(), Some(AccountStatus::Deleted)),
    })
}

#[test]
fn a_message_that_is_cut_short_or_has_a_tail_is_refused() {
    for kind in 0..4 {
        let mut message = sample(kind);
        for end in 0..message.len() {
            assert!(decode(&message[..end]).is_err(), "kind {kind} cut at {end}");
        }
        message.push(0xf6);
        assert!(decode(&message).is_err(), "kind {kind} with a tail");
    }
}

proptest! {
    #[test]
    fn messages_with_flipped_bytes_never_panic(
        kind in 0..4usize, flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut message = sample(kind);
        for (at, value) in flips {
            let at = at.index(message.len());
            message[at] = value;
        }
        if let Ok(Event::Commit(view)) = decode(&message) {
            prop_assert_eq!(view.ops.clone().count(), view.ops.len(), "checked operations read again");
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
    }
}
