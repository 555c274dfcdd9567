use proptest::prelude::*;

use super::*;

fn prepared(count: u64) -> Journal {
    Journal::Prepared {
        compaction: 7,
        through: Lsn::saturating(1 << 50),
        outputs: (1..=count)
            .map(|n| Output {
                base: Lsn::saturating(n),
                last: Lsn::saturating(n + 1),
                sha256: [n as u8; 32],
            })
            .collect(),
    }
}

proptest! {
    #[test]
    fn a_journal_round_trips_and_every_flipped_bit_is_noticed(count in 0u64..4, bit: usize) {
        let journal = if count == 0 { Journal::Writing { compaction: 3 } } else { prepared(count) };
        let mut raw = journal.encode();
        prop_assert_eq!(Journal::decode(&raw), Ok(journal));
        let bit = bit % (raw.len() * 8);
        raw[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Journal::decode(&raw).is_err());
    }

    #[test]
    fn arbitrary_bytes_are_no_journal(bytes: Vec<u8>) {
        prop_assert!(Journal::decode(&bytes).is_err());
    }
}

#[test]
fn lsns_of_a_compaction_are_its_own() {
    let first = lsn_of(3, 1).unwrap();
    assert_eq!(compaction_of(first), 3);
    assert_eq!(compaction_of(lsn_of(3, (1 << LSN_BITS) - 1).unwrap()), 3);
    assert_eq!(lsn_of(3, 1 << LSN_BITS), None);
    assert!(lsn_of(4, 1).unwrap() > lsn_of(3, (1 << LSN_BITS) - 1).unwrap());
}
