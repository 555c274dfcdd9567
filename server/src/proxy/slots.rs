//! How many requests are on their way to other services at once: in all, and of one account, so that a service that hangs, or
//! one busy account, leaves room for the others. All who have no account count as one.

use std::collections::HashMap;
use std::sync::Arc;

use engine::repo::Did;
use parking_lot::Mutex;

/// The places. Cheap to clone; clones are the same places.
#[derive(Clone)]
pub(super) struct Slots {
    taken: Arc<Mutex<HashMap<Option<Did>, usize>>>,
    all: usize,
    per_account: usize,
}

/// One taken place, free again when it is dropped.
pub(super) struct Slot {
    slots: Slots,
    account: Option<Did>,
}

impl Slots {
    /// Places for `all`, of which one account has at most `per_account`.
    pub(super) fn new(all: usize, per_account: usize) -> Slots {
        Slots {
            taken: Arc::default(),
            all,
            per_account,
        }
    }

    /// A place, if one is free for this account.
    pub(super) fn take(&self, account: Option<&Did>) -> Option<Slot> {
        let account = account.cloned();
        let mut taken = self.taken.lock();
        // At most `all` accounts have any, so this is a short sum.
        let own = taken.get(&account).copied().unwrap_or_default();
        if own >= self.per_account || taken.values().sum::<usize>() >= self.all {
            return None;
        }
        taken.insert(account.clone(), own + 1);
        Some(Slot {
            slots: self.clone(),
            account,
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.taken.lock();
        if let Some(own) = taken.get_mut(&self.account) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.account);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_account_has_its_share_and_all_have_theirs_together() {
        let [alice, bob, carol] =
            ["did:plc:a", "did:plc:b", "did:plc:c"].map(|did| Some(did.parse::<Did>().unwrap()));
        let slots = Slots::new(3, 2);
        let first = slots.take(alice.as_ref()).unwrap();
        let second = slots.take(alice.as_ref()).unwrap();
        assert!(slots.take(alice.as_ref()).is_none());
        let third = slots.take(bob.as_ref()).unwrap();
        assert!(slots.take(carol.as_ref()).is_none());
        drop(second);
        let fourth = slots.take(carol.as_ref()).unwrap();
        assert!(slots.take(alice.as_ref()).is_none(), "no place is left at all");
        drop((first, third, fourth));
        assert!(slots.taken.lock().is_empty());
        let slots = Slots::new(9, 2);
        let _nobody = [slots.take(None).unwrap(), slots.take(None).unwrap()];
        assert!(
            slots.take(None).is_none(),
            "all without an account have one share"
        );
    }
}
