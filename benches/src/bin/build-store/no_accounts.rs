//! Repos without accounts: what is built without the server's code.

use std::sync::Arc;

use anyhow::Result;
use benches::growing::GrowingRepo;
use engine::Engine;
use engine::clock::SeededEntropy;

/// Makes no accounts.
pub struct Accounts;

impl Accounts {
    /// Makes nothing ready.
    pub async fn new(_: Engine, _: Arc<SeededEntropy>, _: &str, _: &str, _: &str) -> Result<Accounts> {
        Ok(Accounts)
    }

    /// Leaves the repos as they are: their first commit is their first with records.
    pub async fn create(&self, _: u64, _: impl Iterator<Item = &mut GrowingRepo>) -> Result<()> {
        Ok(())
    }
}
