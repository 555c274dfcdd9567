//! What every [`ReplicaStore`] must do, as functions that a test of any store can run. Each takes an empty store.
