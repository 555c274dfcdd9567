use super::*;
use crate::chunk::{self, ChunkDraft, RawFrames};
use crate::wire::testing::lsn;

const LOG: LogId = LogId([1; 16]);

fn draft(epoch: u64, writer: u8, ordinal: u64, prev: u64) -> ChunkDraft {
    ChunkDraft {
        log_id: LOG,
        writer_id: WriterId([writer; 16]),
        epoch: Epoch(epoch),
        ordinal: Ordinal(ordinal),
        prev_lsn: lsn(prev),
        lsn_floor: lsn(prev),
        created_at_micros: 0,
    }
}

fn data(epoch: u64, writer: u8, ordinal: u64, prev: u64, last: u64) -> ChunkHeader {
    let frames = RawFrames {
        first: lsn(prev + 1),
        last: lsn(last),
        count: 1,
        bytes: b"x",
    };
    chunk::encode_data(&draft(epoch, writer, ordinal, prev), frames)
        .unwrap()
        .0
}

fn mark(kind: ChunkKind, epoch: u64, writer: u8, ordinal: u64, prev: u64) -> ChunkHeader {
    chunk::encode_mark(kind, &draft(epoch, writer, ordinal, prev))
        .unwrap()
        .0
}

fn start() -> ChainEnd {
    ChainEnd::after(&Manifest::empty(LOG))
}

#[test]
fn a_chain_runs_over_fences_and_hand_overs() {
    let chain = [
        mark(ChunkKind::Fence, 1, 1, 1, 0),
        data(1, 1, 18, 0, 10),
        data(1, 1, 19, 10, 20),
        mark(ChunkKind::Fence, 2, 2, 20, 20),
        data(2, 2, 37, 20, 30),
        mark(ChunkKind::HandOver, 2, 2, 38, 30),
        mark(ChunkKind::Fence, 3, 3, 39, 30),
    ];
    let end = chain
        .iter()
        .try_fold(start(), |end, chunk| end.follow(chunk))
        .unwrap();
    assert_eq!((end.next, end.last_lsn, end.epoch.0), (Ordinal(56), lsn(30), 3));
    assert_eq!((end.writer, end.handed_over), (Some(WriterId([3; 16])), false));
}

#[test]
fn what_does_not_continue_the_chain_is_named() {
    let reign = start().follow(&mark(ChunkKind::Fence, 2, 1, 1, 0)).unwrap();
    let mut foreign = data(2, 1, 18, 0, 10);
    foreign.log_id = LogId([9; 16]);
    let epoch = |epoch, before| ChainError::Epoch {
        epoch: Epoch(epoch),
        before: Epoch(before),
    };
    let handed = reign.follow(&mark(ChunkKind::HandOver, 2, 1, 18, 0)).unwrap();
    for (end, chunk, error) in [
        (reign, foreign, ChainError::ForeignLog),
        (reign, data(2, 1, 19, 0, 10), ChainError::Ordinal(Ordinal(19))),
        (
            reign,
            data(2, 1, 18, 5, 10),
            ChainError::Gap {
                prev: lsn(5),
                end: lsn(0),
            },
        ),
        (reign, data(1, 1, 18, 0, 10), epoch(1, 2)),
        (reign, data(3, 1, 18, 0, 10), epoch(3, 2)),
        (
            reign,
            data(2, 7, 18, 0, 10),
            ChainError::Writer(WriterId([7; 16])),
        ),
        (reign, mark(ChunkKind::Fence, 2, 2, 18, 0), epoch(2, 2)),
        (start(), data(0, 1, 1, 0, 10), epoch(0, 0)),
        (handed, data(2, 1, 19, 0, 10), epoch(2, 2)),
    ] {
        assert_eq!(end.follow(&chunk), Err(error));
    }
}

#[test]
fn the_start_table_holds_row_by_row() {
    let local = |last| LocalFacts {
        log_id: LOG,
        last_lsn: lsn(last),
        last_epoch: Epoch(4),
    };
    let replica = |last, epoch, nobody_since| ReplicaFacts {
        log_id: LOG,
        last_lsn: lsn(last),
        epoch: Epoch(epoch),
        nobody_since,
    };
    let other = ReplicaFacts {
        log_id: LogId([2; 16]),
        ..replica(10, 4, false)
    };
    let keep = |from| StartDecision::ContinueLocal { ship_from: lsn(from) };
    let restore = |set_aside_local| StartDecision::RestoreReplica { set_aside_local };
    let refuse = StartDecision::Refuse(Refusal::ForeignLog {
        local: LOG,
        replica: other.log_id,
    });
    use Overlap::{Diverged, Prefix};
    for (row, local, replica, overlap, expected) in [
        ("nothing", None, None, Prefix, StartDecision::Fresh),
        (
            "an empty log is none",
            Some(local(0)),
            None,
            Prefix,
            StartDecision::Fresh,
        ),
        ("a new replica", Some(local(9)), None, Prefix, keep(0)),
        (
            "a lost disk",
            None,
            Some(replica(9, 4, false)),
            Diverged,
            restore(false),
        ),
        (
            "an empty log meets a replica",
            Some(local(0)),
            Some(replica(9, 4, false)),
            Diverged,
            restore(false),
        ),
        ("another log", Some(local(9)), Some(other), Prefix, refuse),
        (
            "all shipped",
            Some(local(9)),
            Some(replica(9, 4, false)),
            Prefix,
            keep(9),
        ),
        (
            "all shipped, fenced since",
            Some(local(9)),
            Some(replica(9, 7, false)),
            Prefix,
            keep(9),
        ),
        (
            "more here, same reign",
            Some(local(12)),
            Some(replica(9, 4, false)),
            Prefix,
            keep(9),
        ),
        (
            "more here, our later claim",
            Some(local(12)),
            Some(replica(9, 5, true)),
            Prefix,
            keep(9),
        ),
        (
            "a replica without a frame",
            Some(local(12)),
            Some(replica(0, 5, false)),
            Prefix,
            keep(0),
        ),
        (
            "more here, fenced by another",
            Some(local(12)),
            Some(replica(9, 5, false)),
            Prefix,
            restore(true),
        ),
        (
            "behind",
            Some(local(5)),
            Some(replica(9, 4, true)),
            Diverged,
            restore(true),
        ),
        (
            "another way",
            Some(local(12)),
            Some(replica(9, 4, true)),
            Diverged,
            restore(true),
        ),
    ] {
        assert_eq!(
            decide_start(local.as_ref(), replica.as_ref(), overlap),
            expected,
            "{row}"
        );
    }
}

#[test]
fn an_object_in_our_place_is_ours_only_if_writer_and_frames_are() {
    let ours = data(2, 1, 18, 0, 10);
    assert_eq!(on_chunk_exists(&ours, Ok(ours)), ExistsVerdict::Ours);
    let other_frames = data(2, 1, 18, 0, 11);
    let other_writer = mark(ChunkKind::Fence, 3, 2, 18, 0);
    assert_eq!(
        on_chunk_exists(&ours, Ok(other_frames)),
        ExistsVerdict::Fenced { by: Epoch(2) }
    );
    assert_eq!(
        on_chunk_exists(&ours, Ok(other_writer)),
        ExistsVerdict::Fenced { by: Epoch(3) }
    );
    let damaged = ChunkError::HeaderChecksum;
    assert_eq!(
        on_chunk_exists(&ours, Err(damaged)),
        ExistsVerdict::Unreadable(damaged)
    );
}

#[test]
fn a_manifest_of_an_earlier_reign_is_adopted_and_of_a_later_one_fences() {
    let of = |epoch| Manifest {
        epoch,
        generation: 3,
        ..Manifest::empty(LOG)
    };
    assert_eq!(on_manifest_exists(&of(5), &of(5)), ManifestVerdict::Ours);
    assert_eq!(on_manifest_exists(&of(5), &of(4)), ManifestVerdict::Adopt);
    assert_eq!(
        on_manifest_exists(&of(5), &of(6)),
        ManifestVerdict::Fenced { by: Epoch(6) }
    );
    // A try of before that was told to have failed and had not.
    let earlier = Manifest {
        created_at_micros: 7,
        ..of(5)
    };
    assert_eq!(on_manifest_exists(&of(5), &earlier), ManifestVerdict::Adopt);
    let twin = Manifest {
        writer_id: [9; 16],
        ..of(5)
    };
    assert_eq!(
        on_manifest_exists(&of(5), &twin),
        ManifestVerdict::Fenced { by: Epoch(5) }
    );
}

#[test]
fn only_covered_data_chunks_may_be_deleted() {
    let manifest = Manifest {
        covered_through: 20,
        next_ordinal: 21,
        ..Manifest::empty(LOG)
    };
    let mark = HEADER_BYTES as u64;
    let listed = [
        (1, mark),
        (2, 500),
        (18, 500),
        (20, mark + 1),
        (21, 500),
        (38, mark),
    ]
    .map(|(o, s)| (Ordinal(o), s));
    assert_eq!(deletable_chunks(&manifest, &listed), [2, 18, 20].map(Ordinal));
}

#[test]
fn covered_links_end_with_data() {
    use ChunkKind::{Data, Fence, HandOver};
    let chain = [
        (Fence, 0),
        (Data, 5),
        (Data, 9),
        (HandOver, 9),
        (Fence, 9),
        (Data, 12),
    ]
    .map(|(k, l)| (k, lsn(l)));
    for (covered, expected) in [(0, 0), (4, 0), (5, 2), (8, 2), (9, 3), (11, 3), (12, 6)] {
        assert_eq!(covered_links(&chain, lsn(covered)), expected, "{covered}");
    }
}
