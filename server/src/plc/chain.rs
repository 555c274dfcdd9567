//! What may follow what: the rules by which a DID's operations form one history.
//!
//! An operation follows the newest and is signed by any rotation key of it. Or it follows an older one and *forks*: then
//! everything after that one is nullified, which takes a key that ranks above the key that signed the first of those,
//! and at most 72 hours since then. So whoever holds a stronger key can take back what a weaker, stolen one did.

use engine::repo::{Cid, Did};

use super::op::{OpError, Operation};

/// How long after an operation a stronger key may nullify it, milliseconds.
pub const RECOVERY_WINDOW_MILLIS: u64 = 72 * 60 * 60 * 1000;

/// An operation in a DID's valid history, oldest first in every list here.
#[derive(Clone, Copy, Debug)]
pub struct Accepted<'a> {
    /// The operation.
    pub operation: &'a Operation,
    /// When the directory accepted it, milliseconds since 1970.
    pub created_at: u64,
}

/// Why an operation does not continue a history.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A first operation that gives another DID.
    #[error("the genesis operation hashes to {found}")]
    WrongDid {
        /// The DID it gives.
        found: String,
    },
    /// The first operation of a DID must found it.
    #[error("the first operation must have no prev and must not be a tombstone")]
    NotGenesis,
    /// `prev` is no operation of the valid history, or the one it follows ended the DID, or it is the old form.
    #[error("operations are not correctly ordered: prev must be the latest valid operation")]
    Misordered,
    /// Signed by no key that may.
    #[error(transparent)]
    Operation(#[from] OpError),
    /// A fork after the window.
    #[error("the 72 hour recovery window has passed: the operation to nullify is {age_secs} s old")]
    TooLate {
        /// Age of the oldest operation that would be nullified, seconds.
        age_secs: u64,
    },
}

/// Decides whether `next` may follow `history` (the valid operations of `did`, oldest first) at `now` (milliseconds
/// since 1970), and gives the operations that it nullifies.
///
/// # Errors
/// The rule that it breaks.
pub fn check_next(
    did: &Did,
    history: &[Accepted<'_>],
    next: &Operation,
    now: u64,
) -> Result<Vec<Cid>, ChainError> {
    if history.is_empty() {
        let state = next.state().ok_or(ChainError::NotGenesis)?;
        let found = next.did().ok_or(ChainError::NotGenesis)?;
        next.signed_by(&state.rotation_keys)?;
        if found != *did {
            return Err(ChainError::WrongDid {
                found: found.to_string(),
            });
        }
        return Ok(Vec::new());
    }
    let prev = next.prev().ok_or(ChainError::Misordered)?;
    let at = history
        .iter()
        .position(|one| one.operation.cid() == prev)
        .ok_or(ChainError::Misordered)?;
    let (kept, nullified) = history.split_at(at + 1);
    let last = kept.last().ok_or(ChainError::Misordered)?;
    // A tombstone sets no state, so nothing can follow it; it can only be nullified.
    let keys = last
        .operation
        .state()
        .ok_or(ChainError::Misordered)?
        .rotation_keys;
    let Some(first_nullified) = nullified.first() else {
        next.signed_by(&keys)?;
        return Ok(Vec::new());
    };
    let rank = first_nullified.operation.signed_by(&keys)?;
    next.signed_by(keys.get(..rank).unwrap_or_default())?;
    let age = now.saturating_sub(first_nullified.created_at);
    if age > RECOVERY_WINDOW_MILLIS {
        return Err(ChainError::TooLate { age_secs: age / 1000 });
    }
    Ok(nullified.iter().map(|one| one.operation.cid()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plc::op::PlcState;
    use engine::clock::SeededEntropy;
    use engine::repo::keys::SigningKey;

    const HOUR: u64 = 60 * 60 * 1000;

    fn key(seed: u64) -> SigningKey {
        SigningKey::generate(&SeededEntropy::new(seed)).unwrap()
    }

    /// Rotation keys 1 (strongest), 2, 3; `handle` tells states apart.
    fn state(handle: &str) -> PlcState {
        let keys = [1, 2, 3].map(|seed| key(seed).public_key());
        PlcState::account(
            &keys,
            &key(9).public_key(),
            &handle.parse().unwrap(),
            "https://pds.example",
        )
    }

    fn accepted(operations: &[(Operation, u64)]) -> Vec<Accepted<'_>> {
        operations
            .iter()
            .map(|(operation, created_at)| Accepted {
                operation,
                created_at: *created_at,
            })
            .collect()
    }

    /// A genesis by key 3 and an update by the key with `seed`, an hour later.
    fn two(seed: u64) -> (Did, Vec<(Operation, u64)>) {
        let genesis = Operation::genesis(state("a.test"), &key(3)).unwrap();
        let did = genesis.did().unwrap();
        let update = Operation::update(state("b.test"), genesis.cid(), &key(seed)).unwrap();
        assert_eq!(
            check_next(&did, &accepted(&[(genesis.clone(), 0)]), &update, HOUR),
            Ok(Vec::new())
        );
        (did, vec![(genesis, 0), (update, HOUR)])
    }

    #[test]
    fn a_genesis_founds_the_did_that_it_hashes_to_and_no_other() {
        let genesis = Operation::genesis(state("a.test"), &key(2)).unwrap();
        let did = genesis.did().unwrap();
        assert_eq!(check_next(&did, &[], &genesis, 0), Ok(Vec::new()));
        let other: Did = "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().unwrap();
        assert!(matches!(
            check_next(&other, &[], &genesis, 0),
            Err(ChainError::WrongDid { .. })
        ));
        let foreign = Operation::genesis(state("a.test"), &key(4)).unwrap();
        let did = foreign.did().unwrap();
        assert_eq!(
            check_next(&did, &[], &foreign, 0),
            Err(ChainError::Operation(OpError::Signature))
        );
        let tombstone = Operation::tombstone(genesis.cid(), &key(1)).unwrap();
        assert_eq!(check_next(&did, &[], &tombstone, 0), Err(ChainError::NotGenesis));
        let update = Operation::update(state("b.test"), genesis.cid(), &key(1)).unwrap();
        assert_eq!(check_next(&did, &[], &update, 0), Err(ChainError::NotGenesis));
    }

    #[test]
    fn an_update_needs_a_rotation_key_and_the_right_prev() {
        let (did, history) = two(2);
        let tip = history[1].0.cid();
        for seed in [1, 2, 3] {
            let next = Operation::update(state("c.test"), tip, &key(seed)).unwrap();
            assert_eq!(
                check_next(&did, &accepted(&history), &next, 2 * HOUR),
                Ok(Vec::new())
            );
        }
        let stranger = Operation::update(state("c.test"), tip, &key(9)).unwrap();
        let refused = check_next(&did, &accepted(&history), &stranger, 2 * HOUR);
        assert_eq!(refused, Err(ChainError::Operation(OpError::Signature)));
        let astray = Operation::update(state("c.test"), Cid::for_dag_cbor(b"else"), &key(1)).unwrap();
        assert_eq!(
            check_next(&did, &accepted(&history), &astray, 2 * HOUR),
            Err(ChainError::Misordered)
        );
        let again = &history[0].0;
        assert_eq!(
            check_next(&did, &accepted(&history), again, 2 * HOUR),
            Err(ChainError::Misordered)
        );
    }

    #[test]
    fn a_stronger_key_may_fork_within_72_hours_and_not_after() {
        let (did, history) = two(3);
        let fork = Operation::update(state("mine.test"), history[0].0.cid(), &key(2)).unwrap();
        let in_time = HOUR + RECOVERY_WINDOW_MILLIS;
        assert_eq!(
            check_next(&did, &accepted(&history), &fork, in_time),
            Ok(vec![history[1].0.cid()])
        );
        let late = check_next(&did, &accepted(&history), &fork, in_time + 1);
        assert!(matches!(late, Err(ChainError::TooLate { .. })), "{late:?}");
    }

    #[test]
    fn an_equal_or_weaker_key_may_not_fork() {
        let (did, history) = two(2);
        for seed in [2, 3] {
            let fork = Operation::update(state("mine.test"), history[0].0.cid(), &key(seed)).unwrap();
            let refused = check_next(&did, &accepted(&history), &fork, 2 * HOUR);
            assert_eq!(refused, Err(ChainError::Operation(OpError::Signature)));
        }
    }

    #[test]
    fn nothing_follows_a_tombstone_but_a_stronger_key_undoes_it() {
        let (did, mut history) = two(2);
        let end = Operation::tombstone(history[1].0.cid(), &key(2)).unwrap();
        assert_eq!(
            check_next(&did, &accepted(&history), &end, 2 * HOUR),
            Ok(Vec::new())
        );
        history.push((end, 2 * HOUR));
        let after = Operation::update(state("c.test"), history[2].0.cid(), &key(1)).unwrap();
        assert_eq!(
            check_next(&did, &accepted(&history), &after, 3 * HOUR),
            Err(ChainError::Misordered)
        );
        let undo = Operation::update(state("c.test"), history[1].0.cid(), &key(1)).unwrap();
        assert_eq!(
            check_next(&did, &accepted(&history), &undo, 3 * HOUR),
            Ok(vec![history[2].0.cid()])
        );
    }
}
